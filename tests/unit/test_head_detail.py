"""What is known of each head: every block shows what the data has, and what is missing is left out or named with its command."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from tokenizers import Tokenizer, models

from circuits import Checkpoints
from circuits.files import write_json
from circuits.models.checkpoints import save_weights, step_file
from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import HookedTransformer
from circuits.views.head_board import Board, Curve, board
from circuits.views.head_detail import head_details

EVIL = "</script><script>alert(1)</script>"
NARROW = "\N{NARROW NO-BREAK SPACE}"
CFG = HookedTransformerConfig(n_layers=2, d_model=16, n_heads=2, d_head=8, n_ctx=32, d_vocab=30, attn_only=True)
STEPS = [0, 10, 1000]
HEADS = {"layer": [0, 1], "head": [0, 1]}
GRID = ("step", "layer", "head")
DETECTORS = ["previous_token", "current_token", "duplicate_token", "induction", "entropy"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """A run whose text is made of tokens that try to be scripts."""
    path = tmp_path_factory.mktemp("runs") / "mine"
    write_run(path)
    return Checkpoints.from_dir(path)


def write_run(path: Path) -> None:
    write_json(path / "config.json", CFG.model_dump(mode="json"))
    vocabulary = {word: i for i, word in enumerate(["<bos>", EVIL, *(f"w{i}" for i in range(28))])}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<bos>")).save(str(path / "tokenizer.json"))
    text = torch.randint(1, 30, (2, 32), generator=torch.Generator().manual_seed(0))
    text[:, 0], text[:, 3] = 0, 1
    save_weights(path / "evaluation.safetensors", {"code": text.to(torch.int32)})
    for step in STEPS:
        save_weights(step_file(path, step), HookedTransformer(CFG.model_copy(update={"seed": step})).state_dict(), step=step)


def swept(dims: tuple[str, ...], value: Any, coords: dict[str, Any], **more: Any) -> xr.Dataset:
    """A result at ``STEPS`` of which the last is missing, so that the one before is the end."""
    sizes = {"step": len(STEPS)} | {dim: len(names) for dim, names in coords.items()}
    shape = tuple(sizes[dim] for dim in dims)
    made = {name: (dims, np.broadcast_to(cells, shape).copy()) for name, cells in ({"value": value} | more).items()}
    return xr.Dataset(made | {"status": ("step", ["ok", "ok", "missing"])}, coords={"step": STEPS, **coords})


def scores() -> xr.Dataset:
    value = np.array([0.9, 0.1, 0.05, 0.5, 2.0])
    null = {"null_mean": 0.02, "null_sd": 0.01, "z": 88.0}
    made = swept((*GRID, "detector"), value, HEADS | {"detector": DETECTORS}, stderr=0.02, **null)
    return made.assign(chance=(("step", "detector"), np.full((3, 5), 0.03)))


def coefficient(value: float) -> xr.Dataset:
    made = swept(GRID, value, HEADS, stderr=0.1)
    made["value"][0] = 0.25
    return made


def nulls() -> xr.Dataset:
    kinds = ["local_estimate", "noise_loss", "weight_norm"]
    value = np.array([1.5, 2.5, np.nan])[:, None, None]
    return swept(("step", "kind", "layer", "head"), 1.0, HEADS | {"kind": kinds}, as_llc=value, as_llc_stderr=0.2)


def profile() -> xr.Dataset:
    kinds = ["induction", EVIL]
    numbers = {"effect_stderr": 0.011, "low": 0.7, "high": 0.8, "z": 41.0, "chance": 0.107}
    made = swept((*GRID, "kind"), 0.757, HEADS | {"kind": kinds}, effect=np.array([0.279, -0.03]), **numbers)
    made["value"][..., 1] = np.nan
    return made.assign(total=(GRID, np.full((3, 2, 2), 0.368)), total_stderr=(GRID, np.full((3, 2, 2), 0.027)))


def multigrams() -> xr.Dataset:
    """Of L0H0 five memorised patterns and one that is not; of the others none."""
    dims, names = (*GRID, "pattern"), HEADS | {"pattern": range(6)}
    ids = {name: -1.0 if name == "far" else np.array([1.0, 2, 3, 4, 5, 6]) for name in ("far", "near", "destination", "out")}
    more = {"contiguous": 1.0, "pattern_effect": 1.25, "pattern_stderr": 0.25, "pattern_others": 0.07, "occurrences": 17.0}
    made = swept(dims, 0.0, names, memorised=np.array([0.0, 1, 1, 1, 1, 1]), **ids, **more).drop_vars("value")
    made["memorised"][:, 1:], made["memorised"][:, 0, 1] = 0.0, 0.0
    counts = {"value": 5.0, "stderr": 2.2, "null_mean": 1.0}
    return made.assign({name: (GRID, np.full((3, 2, 2), number)) for name, number in counts.items()})


EDGES = ["embed -> L0H0.q", "L0H0 -> L1H0.k", "L0H0 -> L1H0.q", "L0H0 -> L1H1.k", "L0H0 -> logits", "L1H0 -> logits"]


def edges(effects: list[float]) -> xr.Dataset:
    numbers = {"stderr": 0.2, "null_mean": 0.01, "null_sd": 0.02, "p": 0.016, "smallest_p": 0.016}
    return swept(("step", "edge"), np.array(effects), {"edge": EDGES}, **numbers)


def composition() -> xr.Dataset:
    dims = ("step", "mode", "src_layer", "src_head", "dst_layer", "dst_head")
    names = {"mode": ["Q", "K"], **{dim: [0, 1] for dim in dims[2:]}}
    numbers = {"null_mean": 0.008, "null_sd": 0.0004, "p": 0.001, "q": 0.01}
    made = swept(dims, 0.2, names, z=3.0, **numbers)
    made["z"][:, 1, 0, 1, 1, 0], made["value"][:, 1, 0, 1, 1, 0] = 66.0, 0.181
    for src in range(2):
        made["z"][:, :, src, :, : src + 1] = np.nan
    return made.assign_attrs(smallest_p=0.001)


def functions() -> xr.Dataset:
    made = swept(GRID, 0.0, HEADS, confidence=0.96).drop_vars(["value", "status"]).isel(step=[0, 1])
    words = {"role": np.full((2, 2, 2), "resting", dtype="U40"), "runner_up": np.full((2, 2, 2), "none")}
    return made.assign({name: (GRID, word) for name, word in words.items()})


def agreement() -> xr.Dataset:
    words = {"role": [["resting", EVIL], ["induction", "none"]], "verdict": [["agree", "undecided"], ["disagree", "agree"]]}
    words["flag"] = [["none", "none"], ["detector_vs_curve", "none"]]
    return xr.Dataset({name: (GRID[1:], np.array(word)) for name, word in words.items()}, coords=HEADS)


@pytest.fixture(scope="module")
def page(run: Checkpoints, results: dict[str, xr.Dataset]) -> str:
    return str(head_details(run, results))


@pytest.fixture(scope="module")
def results() -> dict[str, xr.Dataset]:
    return {
        "attention_scores": scores(), "rllc_mix": coefficient(2.0), "rllc_code": coefficient(1.75),
        "rllc_shuffled_code": coefficient(-0.5), "rllc_mix_kl": coefficient(9.0), "nulls_mix": nulls(),
        "function_profile": profile(), "multigrams": multigrams(), "composition": composition(),
        "edge_effects_repeats": edges([0.5, 7.75, -1.5, 0.25, 0.125, 8.5]),
        "edge_effects_text": edges([0.0, 0.375, 0.25, 1.0, 2.0, 3.0]),
        "head_functions": functions(), "agreement": agreement(),
    }  # fmt: skip


def said(page: object) -> str:
    text = re.sub(r'src="[^"]+"', "", str(page)).replace(NARROW, " ")
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def of(page: object, head: str) -> str:
    """The part of one head."""
    (part,) = (part for part in str(page).split("<details ")[1:] if part.startswith(f'id="head-{head}"'))
    return part


def test_every_head_has_one_part_with_an_anchor_and_a_summary(page: str, elements: Any):
    tags = elements(page).tags
    ids = [attributes["id"] for tag, attributes in tags if tag == "details"]
    assert ids == ["head-L0H0", "head-L0H1", "head-L1H0", "head-L1H1"]
    assert [attributes.get("id") for _, attributes in tags if attributes.get("id")] == ids, "no other ids"
    assert page.count("<details") == page.count("</details>") == page.count("<summary>") == 4
    summaries = [said(part) for part in re.findall("<summary>(.*?)</summary>", page)]
    assert summaries[0] == "L0H0 resting · ✓ agree" and summaries[2:] == ["L1H0 induction · ✗ disagree", "L1H1 none · ✓ agree"]
    text = said(of(page, "L1H0"))
    assert "By behaviour at step 10: resting, kept in 96% of draws; without it none. Flagged: detector_vs_curve." in text
    assert "No witness is against it." in said(of(page, "L0H0"))


def test_text_stays_text(page: str, elements: Any):
    assert "<script" not in page and "alert(1)" in page and not elements(page).scripts
    assert "&lt;/script&gt;" in page.split("<summary>")[2], "the role"
    assert page.count("</s…rt(1)") == 0


def test_pictures_say_their_numbers_and_measures(page: str):
    text = said(of(page, "L1H0"))
    assert "Step 10: rLLC 2.000 ± 0.100, closed form 1.500 ± 0.200, noise null 2.500 ± 0.200. rllc_mix , nulls_mix" in text
    assert "Step 10: previous token 0.90 ± 0.02 (chance 0.03; untrained 0.02, sd 0.01, z = 88.0); induction 0.50" in text
    assert "duplicate token" not in text and "entropy" not in text
    assert "Step 10, by text: code 1.750 ± 0.100, shuffled code −0.500 ± 0.100. Shuffled text is the control. rllc_code" in text
    assert "9.000" not in text, "loss-refined coefficients are no text"
    assert "Attention on held-out text: code, step 10; query down" in text
    alts = re.findall(' alt="([^"]+)"', of(page, "L1H0"))
    assert len(alts) == of(page, "L1H0").count("<img") == 4 and alts[3].startswith("Heat map of attention. L1H0: most at query")


def test_the_attention_is_that_of_the_last_measured_checkpoint(run: Checkpoints, results: dict[str, xr.Dataset], page: str):
    at_10 = re.findall('src="([^"]+)"', of(page, "L0H1"))[-1]
    last = results["attention_scores"].assign(status=("step", ["ok", "ok", "ok"]))
    made = of(head_details(run, {"attention_scores": last}), "L0H1")
    assert "code, step 1 000; query" in said(made) and re.findall('src="([^"]+)"', made)[-1] != at_10


def test_tables_have_the_numbers_of_the_data(page: str):
    text = said(of(page, "L1H0"))
    assert "induction 0.279 ± 0.011 0.76 (0.70 to 0.80) 0.11 41.0" in text and "all 0.368 ± 0.027" in text
    assert "−0.030 ± 0.011 – 0.11 41.0" in text
    assert "in K L0H1→L1H0 0.181 0.0328; 0.0080 (0.00040) 66.0 ≤1e−3, q 0.010" in text
    assert text.count("→L1H0") == 4 and "out K" not in text and "out Q L0H0→L1H0" in said(of(page, "L0H0"))
    first = said(of(page, "L0H0"))
    assert "5 ± 2.2 patterns memorised, 1 by the null" in first and "the 4 of largest total effect" in first
    assert "w0 w0 → w0 trigram 1.25 ± 0.25 0.07 17" in first and EVIL not in first, "the first is not memorised"
    assert "memorised" not in text


def test_the_strongest_edges_in_and_out(page: str):
    rows = re.findall("<tr>.*?</tr>", of(page, "L0H0"), re.DOTALL)
    shown = [said(row).replace("-&gt;", "→") for row in rows if "-&gt;" in row]
    assert shown[:2] == [
        "in embed → L0H0.q repeats 0.500 ± 0.200 0.010 (0.020) ≤0.016",
        "in embed → L0H0.q text 0.000 ± 0.200 0.010 (0.020) ≤0.016",
    ]
    assert [row.split(" ±")[0] for row in shown[2:]] == [
        "out L0H0 → L1H0.k repeats 7.750", "out L0H0 → L1H0.q repeats −1.500", "out L0H0 → L1H1.k repeats 0.250",
        "out L0H0 → logits text 2.000", "out L0H0 → L1H1.k text 1.000", "out L0H0 → L1H0.k text 0.375",
    ]  # fmt: skip


def test_links_lead_to_measures_that_there_are(page: str, results: dict[str, xr.Dataset]):
    cited = set(re.findall('href="#measure-([^"]+)"', page))
    assert cited == set(results) - {"rllc_mix_kl", "head_functions", "agreement"}


@pytest.mark.parametrize(
    ("gone", "named", "blocks"),
    [
        (
            ("rllc_mix", "rllc_code", "rllc_shuffled_code", "attention_scores", "edge_effects_repeats"),
            "attention_scores ( circuits detect RUN ); edge_effects_repeats ( circuits paths RUN ); rllc ( circuits rllc RUN ).",
            ("Coefficient of", "Attention scores", " repeats "),
        ),
        (
            ("nulls_mix", "head_functions", "function_profile", "multigrams", "composition"),
            "head_functions ( circuits detect RUN --what roles ); function_profile ( circuits detect RUN --what effects ); "
            "multigrams ( circuits detect RUN --what multigrams ); composition ( circuits weights RUN ); nulls ( circuits rllc "
            "RUN ).",
            ("noise null", "By behaviour", "share (95%)", "patterns memorised", "squared; random"),
        ),
        (("rllc_code", "rllc_shuffled_code"), "rllc on other texts ( circuits rllc RUN ).", ("by text",)),
    ],
)
def test_what_is_missing_is_left_out_and_named(
    run: Checkpoints, results: dict[str, xr.Dataset], page: str, gone: tuple[str, ...], named: str, blocks: tuple[str, ...]
):
    made = str(head_details(run, {name: data for name, data in results.items() if name not in gone}))
    lead, *parts = made.split("<details ")
    assert said(lead) == f"Not measured, and left out: {named}" and "Not measured" not in said(page)
    for block in blocks:
        assert block in said_with_alts(page) and all(block not in said_with_alts(part) for part in parts), block


def said_with_alts(page: object) -> str:
    return " ".join([said(page), *re.findall(' alt="([^"]+)"', str(page))])


def test_nothing_but_a_model_is_enough(run: Checkpoints):
    page = str(head_details(run, {}))
    assert page.count("<details") == 4 and page.count("<img") == 4 and "<table" not in page
    assert "<b>L0H0</b> role not measured" in page and "step 1 000" in said(page)
    lead = said(page.split("<details")[0])
    assert "edge_effects_repeats, edge_effects_text ( circuits paths RUN )" in lead and "rllc ( circuits rllc RUN )" in lead


def test_equal_results_give_equal_bytes(run: Checkpoints, results: dict[str, xr.Dataset], page: str):
    assert str(head_details(run, results)) == page


def curve(name: str, *value: float) -> Curve:
    return Curve(name, np.array([0, 10, 1000][: len(value)]), np.array(value), np.full(len(value), 0.1))


def drawn(axes: Any) -> list[tuple[str, str]]:
    return [(line.get_linestyle(), line.get_color()) for line in axes.lines if len(line.get_xdata()) == 3]


def test_curves_differ_without_colour_and_leave_no_trace_on_the_next():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with board() as one:
        alone = one.curves([curve("b", 1, 2, 3)], "nats")
        one.curves([curve("a", 0, 1, 9), curve("b", 3, 2, 1), curve("c", 1, 1, 1)], "x", levels=[0.5], grey=[curve("d", 1, 2, 3)])
        assert [style for style, _ in drawn(one.wide)] == ["-", "-", "--", ":"]  # the grey one first
        assert sorted(text.get_text() for text in one.wide.texts) == ["a", "b", "c"]
        low, high = one.wide.get_ylim()
        assert low < -0.1 and high > 9.1
        assert one.curves([curve("b", 1, 2, 3)], "nats") == alone
        assert [text.get_text() for text in one.wide.get_xticklabels()] == ["0", "10", f"1{NARROW}000"]
        one.curves([curve("b", 1, 2, 3)], "nats", limits=(0.0, 5.0))
        assert one.wide.get_ylim() == (0, 5)
        one.curves([Curve("none", *(np.array([]) for _ in range(3)))], "nats")
    assert dict(matplotlib.rcParams) == before


def test_a_pattern_is_shown_as_it_is():
    value = np.array([[[1.0, 0.0], [0.25, 0.75]], [[1.0, 0.0], [0.5, 0.5]]])
    tokens = {"head": ["L0H0", "L0H1"], "query": [0, 1], "key": [0, 1], "token": ("key", ["a", "a very long token"])}
    patterns = xr.Dataset({"value": (("head", "query", "key"), value)}, coords=tokens)
    with board() as one:
        assert isinstance(one, Board)
        for i, head in enumerate(("L0H0", "L0H1")):
            one.pattern(patterns.sel(head=[head]))
            (image,) = one.square.images
            shown = np.ma.asarray(image.get_array())
            assert shown[0, 1] is np.ma.masked and shown[1].tolist() == value[i, 1].tolist() and image.get_clim() == (0, 1)
        assert [text.get_text() for text in one.square.get_yticklabels()] == ["a", "a v…en"]
