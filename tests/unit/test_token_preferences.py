"""Sections of token preferences: verdicts and numbers of planted results, null results, and what a run has nothing for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from markupsafe import Markup

from circuits import Checkpoints, HookedTransformer, report
from circuits.dynamics.scan_snap_run import scan_snap
from circuits.files import write_json
from circuits.models.checkpoints import save_weights, step_file
from circuits.models.config import HookedTransformerConfig
from circuits.models.heads import Head
from circuits.views.beyond import fewest, judged, medians, verdict
from circuits.views.preference_figures import bias_curves, lift_bins, rank_curves
from circuits.views.report import measures_of
from circuits.views.sections import common_tokens, discover, token_preferences

SECTIONS = [token_preferences.SECTION, common_tokens.SECTION]
CFG = HookedTransformerConfig(n_layers=2, d_model=8, n_heads=2, d_head=4, n_ctx=24, d_vocab=16, attn_only=True)
EVIL = "</script><script>alert(1)</script>"
STATISTICS = ("frequency_pmi", "discriminative_partial", "common_gap")
LEAST = 0.01


def drawn(n: int, seed: int) -> torch.Tensor:
    """Tokens of unequal frequency."""
    rates = 1 / np.arange(1, CFG.d_vocab)
    return torch.from_numpy(np.random.default_rng(seed).choice(np.arange(1, CFG.d_vocab), n, p=rates / rates.sum()))


def make_run(
    path: Path, *, steps: tuple[int, ...] = (0, 10, 100), text: bool = True, stream: bool = True, counts: bool = True
) -> Checkpoints:
    """Untrained models with large weights, whose run's name is a script."""
    write_json(path / "config.json", CFG.model_dump(mode="json"))
    write_json(path / "meta.json", {"name": f"mine{EVIL}"})
    kept = {"code": drawn(60 * CFG.n_ctx, 0).reshape(60, -1).to(torch.int32)} if text else {}
    kept |= {"token_counts": torch.bincount(drawn(4000, 1), minlength=CFG.d_vocab)} if counts and text else {}
    if kept:
        save_weights(path / "evaluation.safetensors", kept)
    if stream:
        save_weights(path / "corpus.safetensors", {"code_train": drawn(4000, 1)})
    for step in steps:
        state = HookedTransformer(CFG.model_copy(update={"seed": step})).state_dict()
        save_weights(step_file(path, step), {name: weight * 4 for name, weight in state.items()}, step=step)
    return Checkpoints.from_dir(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return make_run(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections without their pictures, which take longer than the words."""
    for module in (token_preferences, common_tokens):
        monkeypatch.setattr(module, "rendered", lambda *_: b"")


def text_of(markup: Any) -> str:
    return " ".join(Markup(str(markup).replace("<br>", " ").replace("</td>", " </td>")).striptags().split())


def planted(
    last: str, labels: tuple[str, ...], value: Any, p: Any, *, steps: tuple[int, ...] = (0, 10, 100), smallest: float = LEAST
) -> xr.Dataset:
    """What ``gather`` gives: ``[layer, head, last]`` at every step but the first of several, null 0.1 and sd 0.02."""
    shape = np.broadcast_shapes(np.shape(value), np.shape(p), (1, 1, len(labels)))
    value, p = (np.broadcast_to(np.asarray(x, dtype=float), shape) for x in (value, p))
    parts = {"value": value, "stderr": 0.01, "null_mean": 0.1, "null_sd": 0.02, "z": (value - 0.1) / 0.02, "p": p}
    there = np.array([step > 0 or len(steps) == 1 for step in steps])[:, None, None, None] & np.isfinite(value)
    made = {name: np.where(there, x, np.nan) for name, x in parts.items()}
    dims = ("step", "layer", "head", last)
    found = xr.Dataset(
        {name: (dims, x) for name, x in made.items()},
        coords={"step": list(steps), "layer": range(shape[0]), "head": range(shape[1]), last: list(labels)},
        attrs={"smallest_p": smallest, "n_pairs": 1234},
    )
    return found.assign(status=("step", ["ok"] * len(steps)), reason=("step", [""] * len(steps)))


def biases(value: Any, p: Any, **options: Any) -> xr.Dataset:
    found = planted("statistic", STATISTICS, value, p, **options)
    grid = ("step", "layer", "head")
    shape = tuple(found.sizes[dim] for dim in grid)
    sizes = np.broadcast_to([313, 313, 30], (shape[0], 3))
    return found.assign(
        n=(("step", "statistic"), sizes), reliability=(grid, np.full(shape, 0.9)), state=(grid, np.full(shape, "ok", "U13"))
    )


def lifts(value: Any, p: Any) -> xr.Dataset:
    found = planted("bin", ("rank 0+", "rank 3+", "rank 10+"), value, p, steps=(100,))
    return found.assign(chance=("step", [1.0]), keys=(("step", "bin"), [[20, 30, 0]]))


def ranks(value: Any, p: Any, **options: Any) -> xr.Dataset:
    return planted("component", ("W_QK", "W_OV"), value, p, **options)


FOUND = np.array([[0.2, 0.3, 0.15], [0.25, 0.1, 0.1]] * 2).reshape(2, 2, 3)
P = np.array([[0.01, 0.01, 0.5], [0.01, 0.9, 0.9]] * 2).reshape(2, 2, 3)
"""Frequency bias in all four heads, discriminative bias in the first of each layer."""


def test_q_is_adjusted_over_what_is_named_and_apart_from_the_rest() -> None:
    p = xr.DataArray([[0.01, 0.02], [0.04, np.nan]], dims=("head", "statistic"))
    data = xr.Dataset({"p": p})
    apart, whole = judged(data, "head"), judged(data, "head", "statistic")
    assert apart["q"].values[:, 0] == pytest.approx([0.02, 0.04]) and apart["q"].values[0, 1] == pytest.approx(0.02)
    assert whole["q"].values[:, 0] == pytest.approx([0.03, 0.04]) and whole["q"].values[0, 1] == pytest.approx(0.03)
    assert np.isnan(apart["q"].values[1, 1]) and apart["beyond"].values.tolist() == [[True, True], [True, False]]


def test_how_few_could_have_been_told() -> None:
    assert fewest(16, 0.01) == 4, "0.01 * 16 / 4 = 0.04, and with three 0.053"
    assert fewest(5, 0.01) == 2, "0.05 is not below it"
    assert fewest(4, 0.01) == 1 and fewest(16, 0.1) is None and fewest(0, 0.01) is None


def one(value: Any, p: Any, smallest: float = LEAST) -> tuple[xr.Dataset, list[str]]:
    """Heads of one layer, judged, and their names."""
    here = planted("statistic", ("x",), np.reshape(value, (1, -1, 1)), np.reshape(p, (1, -1, 1)), steps=(1,), smallest=smallest)
    return judged(here, "layer", "head").isel(step=0, statistic=0), [str(Head(0, head)) for head in range(len(value))]


def test_a_verdict_names_both_sides_the_farthest_first() -> None:
    here, names = one([0.2, 0.3, 0.0, 0.1], [0.01, 0.01, 0.01, 0.8])
    assert verdict(here, names, expected="above") == (
        "3 of 4 heads are beyond their null (q < 0.05): 2 above, as the theory has it (L0H1, L0H0) and 1 below (L0H2)."
    )
    assert "1 below, as the theory has it (L0H2)" in verdict(here, names, expected="below")
    assert medians(here) == "median 0.150, of their nulls 0.100"
    many, names = one(np.linspace(0.2, 0.3, 9), [0.01] * 9)
    assert "9 above (L0H8, L0H7, L0H6, L0H5, L0H4, L0H3 and 3 more) and none below" in verdict(many, names)


def test_nothing_found_is_said_with_what_could_have_been() -> None:
    here, names = one([0.12] * 15 + [0.0], [0.3] * 15 + [0.01])
    assert verdict(here, names, expected="above") == (
        "No head of 16 is beyond its null: the smallest q is 0.160 (L0H15, z −5.0, p ≤0.010). As p cannot be below 0.010, a q "
        "below 0.05 takes 4 heads at that p."
    )
    alone, names = one([0.12], [0.3])
    assert verdict(alone, names).endswith(
        "(L0H0, z 1.0, p 0.300). As p cannot be below 0.010, a q below 0.05 takes 1 head at that p."
    )
    coarse, names = one([0.12] * 4, [0.1] * 4, smallest=0.1)
    assert verdict(coarse, names).startswith("Untestable here: p cannot be below 0.100, and so no q over 4 heads below 0.05")
    gone, names = one([np.nan] * 2, [np.nan] * 2)
    assert verdict(gone, names) == "No head has a value to test." and medians(gone) == "median –, of their nulls –"


@pytest.mark.usefixtures("undrawn")
def test_biases_stand_beside_their_nulls(run: Checkpoints) -> None:
    roles = xr.Dataset({name: (("step", "layer", "head"), np.full((1, 2, 2), f"<i>{name}")) for name in ("role", "detector")})
    roles = roles.assign_coords(step=[100], layer=[0, 1], head=[0, 1])
    formed = xr.Dataset(
        {"value": (("layer", "head", "detector"), np.zeros((2, 2, 1)))},
        coords={"layer": [0, 1], "head": [0, 1], "detector": ["<i>detector"]},
    )
    made = token_preferences.render(run, {"pair_bias": biases(FOUND, P), "head_roles": roles, "formation": formed})
    said = text_of(made)
    assert "as gained since step 0, are laid against" in said and "313 queries, for the gap over 30 keys; 1 234 pairs" in said
    assert "Frequency bias. 4 of 4 heads are beyond their null (q < 0.05): 4 above, as the theory has it" in said
    assert (
        "Discriminative bias. 2 of 4 heads are beyond their null (q < 0.05): 2 above, as the theory has it (L0H0, L1H0)" in said
    )
    assert "Common gap. No head of 4 is beyond its null: the smallest q is 0.900" in said
    assert "Over heads: median 0.225, of their nulls 0.100." in said
    assert "At step 10: frequency bias 4 above and 0 below, discriminative bias 2 above and 0 below, common gap 0" in said
    assert "L0H1 <i>role 0.250 ± 0.010 null 0.100, sd 0.020 z 7.5, p ≤0.010, q 0.010" in said
    assert "7 to 11 in a hundred have p < 0.05" in said and "Without values" not in said
    assert "<i>" not in made.replace("&lt;i&gt;", "")


@pytest.mark.usefixtures("undrawn")
def test_logits_that_are_no_solution_are_no_evidence(run: Checkpoints) -> None:
    bias = biases(np.where(np.arange(4).reshape(2, 2, 1) == 3, np.nan, FOUND), P)
    bias["state"][-1, 0, 1], bias["state"][-1, 1, 1] = "not converged", "constant"
    said = text_of(token_preferences.render(run, {"pair_bias": bias}))
    assert "Frequency bias. 2 of 2 heads" in said and "Without values: 1 constant, 1 not converged." in said
    assert "L0H1 – not converged not converged not converged 0.90" in said and "L1H1 – constant constant constant" in said


@pytest.mark.usefixtures("undrawn")
def test_checkpoints_without_data_are_passed_over(run: Checkpoints) -> None:
    bias = biases(FOUND, P)
    gone = bias.where(bias["step"] < 100).assign(status=("step", ["ok", "ok", "missing"]), state=bias["state"])
    assert "Step 10: value ± standard error" in text_of(token_preferences.render(run, {"pair_bias": gone}))
    nothing = text_of(token_preferences.render(run, {"pair_bias": bias.isel(step=[0])}))
    assert nothing.count("No head has a value to test. Over heads: median –, of their nulls –.") == 3


@pytest.mark.usefixtures("undrawn")
def test_lift_and_stable_rank(run: Checkpoints) -> None:
    lift = lifts([[[0.2, 0.05, np.nan], [0.1, 0.05, np.nan]]], [[[0.01, 0.01, np.nan], [0.9, 0.02, np.nan]]])
    value = np.array([[[5.0, 0.1]], [[7.0, 0.0]]])
    rank = ranks(value, [[[0.01, 0.5]], [[0.01, 0.01]]])
    rank["value"][1] = value / 2
    said = text_of(common_tokens.render(run, {"attention_lift": lift, "stable_rank": rank}))
    assert (
        "A cell is one head and bin. 3 of 4 cells are beyond their null (q < 0.05): 1 above (L0H0 at rank 0+) and 2 below" in said
    )
    assert "Tokens of rank 0+: of 2 heads 1 are above their null and 0 below (median 0.150, of their nulls 0.100)" in said
    assert "Tokens of rank 3+: of 2 heads 0 are above their null and 2 below" in said and "rank 10+" not in said, "no key, no bin"
    assert "L0H0 0.20 ± 0.01 null 0.10, sd 0.02 z 5.0, q 0.020" in said and "key positions 20 30" in said
    assert "Stable rank of what the heads’ circuits gained since step 0" in said
    assert "W_QK at step 100. 2 of 2 heads are beyond their null (q < 0.05): 2 above (L1H0, L0H0) and none below." in said
    assert "W_OV at step 100. No head of 1 is beyond its null" in said, "a matrix of zeros is no evidence"
    assert "W_QK, median over heads: 3.00 at step 10, 6.00 at step 100." in said and "W_in" not in said


@pytest.mark.usefixtures("undrawn")
def test_mlps_have_a_line(run: Checkpoints) -> None:
    rank = ranks([[[5.0, 4.0]]], LEAST)
    numbers = {"mlp": 20.0, "mlp_null_mean": 30.0, "mlp_null_sd": 1.5, "mlp_p": 0.01}
    rank = rank.assign({name: (("step", "layer"), np.full((3, 1), x)) for name, x in numbers.items()})
    said = text_of(common_tokens.render(run, {"attention_lift": lifts([[[0.1]]], 0.9), "stable_rank": rank}))
    assert "W_in of the MLPs: layer 0 20.00 (random matrices 30.00, sd 1.50, p ≤0.010)." in said
    assert "No cell of 2 is beyond its null: the smallest q is 0.900" in said


def test_what_a_run_lacks_is_named_with_the_remedy(run: Checkpoints, tmp_path: Path) -> None:
    missing = token_preferences.render(run, {})
    assert "pair_bias has no data; make it with circuits scan-snap measure mine&lt;/script&gt;" in missing
    assert "--what bias" in missing and "<script" not in missing
    bare = make_run(tmp_path / "bare", text=False)
    assert [section.measures(bare) for section in SECTIONS] == [[], []]
    assert all("ships no text to read attention on" in section.render(bare, {}) for section in SECTIONS)
    silent = make_run(tmp_path / "silent", stream=False, counts=False)
    assert [[want.measure.name for want in section.measures(silent)] for section in SECTIONS] == [[], ["stable_rank"]]
    assert "no training text to count pairs of tokens in" in token_preferences.render(silent, {})
    state = HookedTransformer(CFG).state_dict()
    state["embed.W_E"][0, 0] = torch.nan
    save_weights(step_file(tmp_path / "silent", 0), state, step=0)
    broken = Checkpoints.from_dir(tmp_path / "silent")
    assert [section.measures(broken) for section in SECTIONS] == [[], []]
    assert all("NaN or infinite" in section.render(broken, {}) for section in SECTIONS)


def test_only_what_is_cheap_is_computed_for_a_report(run: Checkpoints) -> None:
    names = [section.name for section in discover()]
    assert names[names.index("scan_snap") :][1:3] == ["token_preferences", "common_tokens"]
    wanted = measures_of(SECTIONS, run)
    assert {name: (want.cheap, want.last, want.few) for name, want in wanted.items()} == {
        "pair_bias": (False, False, None),
        "attention_lift": (True, True, None),
        "stable_rank": (True, False, token_preferences.CHECKPOINTS),
    }


def test_a_report_reads_what_scan_snap_measured(tmp_path: Path, elements: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, store = make_run(tmp_path / "mine", steps=(0, 100)), tmp_path / "store"
    options: dict[str, Any] = {"sections": SECTIONS, "progress": False}
    with monkeypatch.context() as patched:
        patched.setattr(common_tokens, "rendered", lambda *_: b"")
        before = report(run, tmp_path / "before", store, **options).html.read_text()
    assert "pair_bias has no data" in before and "Which tokens does a head look for?" not in before
    assert "Attention by frequency at step 100" in text_of(before) and "W_OV, median over heads" in text_of(before)
    scan_snap(run, ["bias"], store=store, progress=False)
    after = report(run, tmp_path / "after", store, **options).html.read_text()
    assert "has no data" not in after and "could not be drawn" not in after
    pictures = [a for tag, a in elements(after).tags if tag == "img"]
    assert len(pictures) == 3 and all((a["src"] or "").startswith("data:image/svg+xml;base64,") for a in pictures)


def test_a_run_of_one_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", steps=(7,))
    results = scan_snap(run, ["bias", "lift", "rank"], progress=False).results
    bias, common = (text_of(section.render(run, results)) for section in SECTIONS)
    assert "gives to key tokens are laid against" in bias and "At step 7: frequency bias" in bias
    assert "Stable rank of the heads’ circuits:" in common and "median over heads: " in common


def ends(axis: Any) -> dict[str, list[float]]:
    """Values of full and of hollow dots."""
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    return {
        kind: [float(y) for line in dots if (line.get_markerfacecolor() == "white") == hollow for y in line.get_ydata()]
        for kind, hollow in (("full", False), ("hollow", True))
    }


def test_figures_show_what_is_beyond() -> None:
    bias = judged(biases(FOUND, P).isel(step=[1, 2]), "layer", "head")
    figure = bias_curves(bias, {"discriminative_partial": "ρ"})
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["layer 0", "layer 1"]
    for axis in figure.axes:
        assert ends(axis)["full"] == pytest.approx([0.2, 0.2]) and ends(axis)["hollow"] == pytest.approx([0.0, 0.0])
        assert axis.get_ylim() == figure.axes[0].get_ylim()
    lift = judged(lifts([[[0.2, 1.5, 1.2]]], [[[0.01, 0.9, 0.9]]]), "layer", "head", "bin").isel(step=0)
    (axis,) = lift_bins(lift).axes
    assert ends(axis) == {"full": [0.2], "hollow": [1.5, 1.2]} and [t.get_text() for t in axis.get_xticklabels()][1] == "3+"
    rank = judged(ranks(FOUND[..., :2] * 50, LEAST), "layer", "head")
    assert [axis.get_ylabel() for axis in rank_curves(rank).axes] == ["stable rank of W_QK", "", "stable rank of W_OV", ""]


def test_figures_refuse_what_they_cannot_draw() -> None:
    bias = biases(FOUND, P)
    with pytest.raises(ValueError, match="no 'beyond' in this dataset"):
        bias_curves(bias, {"frequency_pmi": "ρ"})
    with pytest.raises(ValueError, match="no 'step' in this dataset"):
        rank_curves(judged(bias, "layer", "head").isel(step=0))
    with pytest.raises(ValueError, match="there is no frequency to draw"):
        bias_curves(judged(bias, "layer", "head"), {"frequency": "ρ"})
    with pytest.raises(ValueError, match="no 'bin' in this dataset"):
        lift_bins(judged(bias, "layer", "head"))
