"""Sections of what heads do: numbers reach the page, tokens stay text, and what a run has nothing for is named."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from tokenizers import Tokenizer, models, pre_tokenizers

from circuits import Checkpoints
from circuits.data.ngrams import NgramTable
from circuits.data.skip_ngrams import skip_lift
from circuits.detectors.pattern_statistics import pattern_statistics
from circuits.detectors.roles import classify_functions
from circuits.dynamics.emergence import UNDECIDED, emerged, roles_over_training
from circuits.dynamics.together import merged
from circuits.files import write_json
from circuits.models.checkpoints import save_weights, step_file
from circuits.models.config import HookedTransformerConfig
from circuits.models.heads import Head
from circuits.models.hooked import HookedTransformer
from circuits.results import canonical
from circuits.views import function_figures
from circuits.views.curves import rendered
from circuits.views.function_wanted import PLAN, available, not_measured
from circuits.views.passages import passage, places_of
from circuits.views.sections import discover, multigrams
from circuits.views.sections.behaviour import plane

NAMES = ("functions", "multigrams", "behaviour", "bracket_heads")
EVIL = "</script><script>alert(1)</script>"
WORDS = ["<bos>", EVIL, *"()[]{}\"'", *(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(30))]
CFG = HookedTransformerConfig(n_layers=2, d_model=16, n_heads=2, d_head=8, n_ctx=32, d_vocab=len(WORDS), attn_only=True)


def text_of_cycles(n: int, seed: int) -> np.ndarray:
    """Tokens each of which is mostly followed by the next id: bigrams to be known."""
    rng = np.random.default_rng(seed)
    ids = np.zeros(n, dtype=np.int64)
    for i in range(1, n):
        ids[i] = 1 + ids[i - 1] % (len(WORDS) - 1) if rng.random() < 0.8 else rng.integers(1, len(WORDS))
    return np.maximum(ids, 1)


def make_run(path: Path, *, layers: int = 2, corpus: bool = True, tokenizer: bool = True, steps: tuple[int, ...] = (10, 100)):
    """A run of untrained models with large weights, whose second token is a script."""
    cfg = CFG.model_copy(update={"n_layers": layers})
    write_json(path / "config.json", cfg.model_dump(mode="json"))
    if tokenizer:
        made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<bos>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
        made.save(str(path / "tokenizer.json"))
    if corpus:
        streams = {"code": text_of_cycles(31 * 24, 0), "code_train": text_of_cycles(4000, 1)}
        save_weights(path / "corpus.safetensors", {name: torch.from_numpy(ids) for name, ids in streams.items()})
        text = torch.from_numpy(text_of_cycles(4 * 32, 2).reshape(4, 32)).to(torch.int32)
        text[:, 0] = 0
        save_weights(path / "evaluation.safetensors", {"code": text, f"x{EVIL}": text.flip(0).contiguous()})
    for step in steps:
        state = HookedTransformer(cfg.model_copy(update={"seed": step})).state_dict()
        save_weights(step_file(path, step), {name: weight * 4 for name, weight in state.items()}, step=step)
    return Checkpoints.from_dir(path)


SECTIONS = {section.name: section for section in discover() if section.name in NAMES}


def over_steps(measure: Any, run: Checkpoints, steps: tuple[int, ...]) -> xr.Dataset:
    """A measure over some checkpoints, as ``gather`` gives it, without a store."""
    found = [measure(run.at(step)).expand_dims(step=[step]) for step in steps]
    return xr.concat(found, dim="step", data_vars="all", combine_attrs="override").assign(status=("step", ["ok"] * len(steps)))


def grams(run: Checkpoints) -> xr.Dataset:
    """What ``Multigrams`` gives of two layers of two heads: the first has a skip pattern, the others have none."""
    tokens = available(run, "multigrams")[0]["multigrams"].tokens  # type: ignore[attr-defined]
    example, query = 0, 20
    near, destination, out = (int(tokens[example, i]) for i in (query - 3, query, query + 1))
    head, cells = ("step", "layer", "head"), ("step", "layer", "head", "pattern")
    shape = (1, 2, 2, 2)

    def column(first: float, fill: float) -> tuple[tuple[str, ...], np.ndarray]:
        values = np.full(shape, fill)
        values[0, 0, 0, 0] = first
        return cells, values

    counts = {"value": 1.0, "stderr": 1.0, "z": 1.0, "with_source": 1.0, "found": 4.0, "share": 0.25, "share_stderr": 0.125}
    counts |= {"share_chance": 0.0625, "null_mean": 0.0, "shifted_value": 0.0, "untrained_value": 0.0}
    listed = {"far": -1, "near": near, "destination": destination, "out": out, "contiguous": 0}
    listed |= {"pattern_effect": 1.5, "pattern_stderr": 0.25, "pattern_others": -0.5, "occurrences": 7, "memorised": 1}
    nothing = dict.fromkeys(("far", "near", "destination", "out", "contiguous"), -1.0) | {"occurrences": 0.0, "memorised": 0.0}
    places = np.full((*shape, 3), -1.0)
    where = {name: places.copy() for name in ("example", "query")}
    where["example"][0, 0, 0, 0, 0], where["query"][0, 0, 0, 0, 0] = example, query
    return xr.Dataset(
        {name: (head, [[[x, 0.0], [0.0, 0.0]]]) for name, x in counts.items()}
        | {name: column(x, nothing.get(name, np.nan)) for name, x in listed.items()}
        | {name: ((*cells, "place"), x) for name, x in where.items()}
        | {"status": ("step", ["ok"])},
        coords={"step": [100], "layer": [0, 1], "head": [0, 1]},
        attrs={"config": canonical({"rule": {"threshold": 0.5, "min_examples": 3}}), "n_examples": 24},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return make_run(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture(scope="module")
def results(run: Checkpoints) -> dict[str, xr.Dataset]:
    """Everything at the last checkpoint, and what roles rest on, but for the patterns, at the one before; few draws."""
    measures, lacking = available(run, *PLAN)
    assert lacking == {} and measures.pop("multigrams")
    twice = ("attention_scores", "induction_cut", "bracket_scores", "token_losses")
    found = {name: over_steps(measure, run, (10, 100) if name in twice else (100,)) for name, measure in measures.items()}
    found["multigrams"] = grams(run)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("circuits.dynamics.functions.classify_functions", partial(classify_functions, draws=5))
        for section in SECTIONS.values():
            found.update(section.derive(run, found))
    return found


def test_a_run_with_text_has_all_of_it_on_the_page(run: Checkpoints, results: dict[str, xr.Dataset], elements: Any):
    page = "\n".join(section.render(run, results) for section in SECTIONS.values())
    said = (
        "heads at step 100", "The evidence for every role", "Which predictions each head serves", "Effect by kind",
        "share of tokens", "patterns too rare for the text", "Copying, by head", "in-context learning lost",
        "How near to n-gram predictors?", "Without positions", "2 checkpoints with losses are too few",
        "Do nested pairs need both layers?", "untrained, layer 1",
    )  # fmt: skip
    assert [words for words in said if words not in page] == [] and "Left out" not in page
    found = elements(page)
    assert not [tag for tag, _ in found.tags if tag == "script"] and not found.scripts
    alts = [a["alt"] for tag, a in found.tags if tag == "img"]
    assert len(alts) == 3 and all(re.search(r"\d\.\d", alt or "") for alt in alts), "figures say their key numbers in words"


def test_what_is_derived_is_kept_with_the_results(results: dict[str, xr.Dataset]):
    whole = merged(results, title="all")
    assert {"head_functions_role", "function_emergence_before", "multigrams_share", "token_losses_corpus"} <= set(whole.data_vars)
    assert whole["head_functions_role"].sizes["layer"] == 2


def test_a_run_without_text_or_tokenizer_names_what_is_left_out(tmp_path: Path):
    bare = make_run(tmp_path / "bare", layers=1, corpus=False, tokenizer=False, steps=(0,))
    page = "\n".join(section.render(bare, {}) for section in SECTIONS.values())
    for name in ("multigrams", "function profile", "bracket scores", "predictor loss", "token losses"):
        assert f"<b>Left out: {name}.</b> It needs" in page, name
    assert [want.measure.name for want in SECTIONS["behaviour"].measures(bare)] == ["copying_scores"]
    assert SECTIONS["behaviour"].derive(bare, {}) == SECTIONS["functions"].derive(bare, {}) == {}
    lacking = not_measured(bare, ["roles"])
    assert set(lacking) == {"multigrams", "bracket_scores"} and "which this run does not have" in lacking["multigrams"]


def test_a_run_without_brackets_has_roles_without_them(run: Checkpoints, results: dict[str, xr.Dataset]):
    some = {name: data for name, data in results.items() if "bracket" not in name and name != "function_profile"}
    last = {name: data.sel(step=[100]) for name, data in some.items() if "step" in data.dims}
    some["head_functions"] = classify_functions(
        last["attention_scores"], last["induction_cut"], last["multigrams"], None, draws=2
    )
    made = SECTIONS["functions"].render(run, some)
    assert "The evidence for every role" in made and "bracket: effect" not in made
    assert roles_over_training(some) is not None


def test_roles_that_hang_on_counts_are_undecided_where_nothing_was_counted(results: dict[str, xr.Dataset]):
    role = roles_over_training(results)
    assert role is not None and role["step"].values.tolist() == [10, 100]
    assert not set(role.sel(step=10).values.flatten().tolist()) & {"multigram", "resting", "none"}
    assert UNDECIDED not in role.sel(step=100).values
    assert roles_over_training({name: data for name, data in results.items() if name != "multigrams"}) is None


def test_a_text_that_is_too_short_is_left_out_with_its_reason(tmp_path: Path):
    short = make_run(tmp_path / "short", steps=(0,))
    save_weights(tmp_path / "short" / "corpus.safetensors", {"code": torch.arange(1, 60) % 30 + 1})
    short = Checkpoints.from_dir(short.path or "")
    found, lacking = available(short, "multigrams", "attention_scores")
    assert set(found) == {"attention_scores"} and "examples" in lacking["multigrams"]


# Patterns ----------------------------------------------------------------------------------------------------------------


def patterns(*rows: tuple[int, int, int, int, int]) -> xr.Dataset:
    """``(far, near, destination, out, contiguous)`` of each."""
    columns = np.array(rows, dtype=float).T
    names = ("far", "near", "destination", "out", "contiguous")
    return xr.Dataset(
        {name: ("pattern", x) for name, x in zip(names, columns, strict=True)}, coords={"pattern": np.arange(len(rows))}
    )


def literally(streams: list[np.ndarray], row: tuple[int, ...], gap: int) -> tuple[int, int, int, int]:
    """Counts of one pattern, place by place."""
    far, near, destination, out, contiguous = row
    sources = [x for x in (near, far) if x >= 0]
    hits = occasions = all_hits = all_occasions = 0
    for stream in streams:
        for p in range(len(stream) - 1):
            if stream[p] != destination:
                continue
            all_occasions += 1
            all_hits += stream[p + 1] == out
            if contiguous:
                there = all(p - d >= 0 and stream[p - d] == s for d, s in enumerate(sources, start=1))
            else:
                there = all(s in stream[max(0, p - gap) : p] for s in sources)
            occasions += there
            hits += there and stream[p + 1] == out
    return hits, occasions, all_hits, all_occasions


def test_pattern_statistics_count_what_a_loop_counts():
    rng = np.random.default_rng(0)
    streams = [rng.integers(1, 8, size=n) for n in (700, 300, 2)]
    table = NgramTable.count(streams, 8, order=3)
    rows = [(-1, 3, 4, 5, 1), (2, 3, 4, 5, 1), (-1, 3, 4, 5, 0), (2, 3, 4, 5, 0), (3, 3, 4, 4, 0)]
    found = pattern_statistics(patterns(*rows), table, gap=5)
    names = ("hits", "occasions", "all_hits", "all_occasions")
    for i, row in enumerate(rows):
        assert tuple(int(found[name].values[i]) for name in names) == literally(streams, row, 5), row
    hits, occasions, all_hits, all_occasions = literally(streams, rows[2], 5)
    assert float(found["value"][2]) == pytest.approx(np.log(hits / occasions / (all_hits / all_occasions)))


def test_statistics_of_bigrams_of_missing_patterns_and_of_one_source_agree_with_the_table():
    streams = [text_of_cycles(3000, 5)]
    table = NgramTable.count(streams, len(WORDS), order=2)
    found = pattern_statistics(patterns((-1, -1, 4, 5, 1), (-1, -1, -1, -1, -1), (-1, 2, 7, 8, 0)), table)
    expected = table.lift(np.array([[4]]), np.array([5]))
    assert float(found["value"][0]) == pytest.approx(float(expected.value[0])) and float(found["hits"][0]) == expected.hits[0]
    assert np.isnan(found["value"].values[1])
    away = skip_lift(table, np.array([[2, 7, 8]]))  # the same but for the token right before, which 2 is of 7 by chance alone
    assert abs(float(found["occasions"][2]) - float(away.occasions[0])) <= table.counts_of(np.array([2, 7]))
    with pytest.raises(ValueError, match="patterns lack contiguous, far"):
        pattern_statistics(
            xr.Dataset({"near": ("pattern", [1.0]), "destination": ("pattern", [1.0]), "out": ("pattern", [1.0])}), table
        )


def test_patterns_are_listed_with_their_numbers_and_shown_in_text(run: Checkpoints, elements: Any):
    made = multigrams.SECTION.render(run, {"multigrams": grams(run)})
    for words in (
        "1 ± 1.0",
        "0.250 ± 0.125",
        "0.062",
        "1.50 ± 0.25",
        "−0.50",
        ">skip<",
        ">yes<",
        "No pattern: L0H1, L1H0, L1H1.",
    ):
        assert words in made, words
    found = elements(made)
    marks = [a["title"] for tag, a in found.tags if tag == "mark"]
    assert marks == ["source", "destination", "out"] * 2, "the legend, then the text"
    assert not [tag for tag, _ in found.tags if tag == "script"] and not found.scripts


def test_tokens_that_look_like_markup_stay_text():
    made = passage(["<b>", EVIL, "x", "y"], {1: "source", 2: "destination", 3: "out"})
    assert "<script" not in made and "&lt;b&gt;" in made and "&lt;/script&gt;" in made
    labels = [f"t{i}" for i in range(60)]
    far = passage(labels, {5: "source", 40: "destination", 41: "out"}, around=2)
    assert re.findall(r"t\d+|…", re.sub(r"<[^>]*>", "", far)) == [
        "…", "t3", "t4", "t5", "t6", "t7", "…", "t38", "t39", "t40", "t41", "t42", "t43", "…",
    ]  # fmt: skip


def test_a_pattern_is_marked_where_it_stands():
    tokens = [0, 7, 5, 7, 8, 9, 4]
    assert places_of(tokens, 4, [7], contiguous=True) == {3: "source", 4: "destination", 5: "out"}
    assert places_of(tokens, 5, [7, 5], contiguous=False) == {3: "source", 2: "source", 5: "destination", 6: "out"}
    assert places_of(tokens, 6, [0], contiguous=False) == {6: "destination"}, "BOS is no source, and nothing follows the last"


# Roles over training -----------------------------------------------------------------------------------------------------


def history(*columns: list[str], steps: tuple[int, ...] = (0, 10, 20, 30)) -> xr.DataArray:
    names = np.array(columns).T[:, None, :]
    return xr.DataArray(
        names, dims=("step", "layer", "head"), coords={"step": list(steps), "layer": [0], "head": np.arange(len(columns))}
    )


def test_a_role_emerges_between_the_checkpoints_after_which_it_stays():
    found = emerged(
        history(
            ["none", "induction", "none", "induction"],  # there, gone, and back: only the last time counts
            ["resting"] * 4,
            ["none"] * 4,
            [UNDECIDED, UNDECIDED, "bracket", "bracket"],  # whatever it was, it was no bracket head
            [UNDECIDED, "bracket", UNDECIDED, "multigram"],
            [UNDECIDED, UNDECIDED, UNDECIDED, "multigram"],
            ["not measured", "none", "not measured", "bracket"],
        )
    )
    value, before = (found[name].values[0].tolist() for name in ("value", "before"))
    assert value[:2] == [30, 0] and before[0] == 20 and np.isnan(before[1])
    assert np.isnan(value[2]) and (value[3], before[3]) == (20, 10)
    assert (value[4], before[4]) == (30, 10), "undecided checkpoints are passed over"
    assert np.isnan(value[5]) and found["n_checkpoints"].values[0].tolist() == [4, 4, 4, 4, 2, 1, 2]
    assert (value[6], before[6]) == (30, 10)


# Figures -----------------------------------------------------------------------------------------------------------------


def profile(total: float = 0.5) -> xr.Dataset:
    kinds = [*function_figures.KIND_COLOURS]
    effect = np.linspace(-0.1, 0.3, 2 * 1 * 2 * len(kinds)).reshape(2, 1, 2, len(kinds))
    return xr.Dataset(
        {
            "effect": (("step", "layer", "head", "kind"), effect),
            "total": (("step", "layer", "head"), effect.sum(-1)),
            "total_stderr": (("step", "layer", "head"), np.full((2, 1, 2), 0.01)),
        },
        coords={"step": [0, 100], "layer": [0], "head": [0, 1], "kind": kinds},
    )


def test_bars_stack_up_what_helps_and_down_what_harms():
    figure = function_figures.profile_bars(profile(), [Head(0, 0), Head(0, 1)])
    for head, axis in enumerate(figure.axes[:2]):
        effect = profile()["effect"].sel(head=head, layer=0).values
        corners = np.concatenate([path.vertices for path in axis.collections[0].get_paths()])
        assert corners[:, 1].max() == pytest.approx(np.where(effect > 0, effect, 0).sum(1).max())
        assert corners[:, 1].min() == pytest.approx(min(0.0, np.where(effect < 0, effect, 0).sum(1).min()))
        assert len(axis.collections[0].get_paths()) == np.count_nonzero(effect)


def test_figures_are_the_same_bytes_twice():
    made = [rendered(function_figures.profile_bars(profile(), [Head(0, 0)]), "svg") for _ in range(2)]
    assert made[0] == made[1]


def test_the_plane_of_losses_has_a_dot_and_a_step_for_each_checkpoint():
    steps, places = [0, 10, 2000], np.array([[3.0, 0.0], [0.0, 1.0], [-1.0, -0.5]])
    pca = xr.Dataset(
        {
            "value": (("step", "component"), places),
            "stderr": (("step", "component"), np.full((3, 2), 0.1)),
            "explained": ("component", [0.75, 0.125]),
        }
        | {f"explained_{name}": ("component", [0.5, 0.25]) for name in ("stderr", "null_mean", "null_sd", "p")},
        coords={"step": steps, "component": [1, 2]},
        attrs={"smallest_p": 0.005, "n_tokens": 8, "n_snapshots": 3},
    )
    axis = function_figures.loss_plane(pca).axes[0]
    assert axis.collections[-1].get_offsets().tolist() == places.tolist()
    assert {text.get_text().replace("\N{NARROW NO-BREAK SPACE}", "") for text in axis.texts} == {"0", "10", "2000"}
    made = "".join(plane(pca, pca))
    assert "component 1 0.750 ± 0.500 (walks 0.500, sd 0.500; p 0.500)" in made
