"""Sections of local learning coefficients: sentences say what planted numbers say, and nothing that is not ok is hidden."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from markupsafe import Markup
from scipy.stats import spearmanr

from circuits import Checkpoints
from circuits.complexity.nulls import KINDS
from circuits.dynamics.artefacts import write_dataset
from circuits.dynamics.coefficients import coefficient_measures
from circuits.dynamics.sweep import Task
from circuits.dynamics.together import gather_all
from circuits.files import write_json
from circuits.models.checkpoints import save_weights, step_file
from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import HookedTransformer
from circuits.views import ranks
from circuits.views.coefficient_figures import coefficient_curves, predicted, text_curves, whole_curve
from circuits.views.report import body, measures_of, notices, read_at, steps_of
from circuits.views.sections import (
    Section,
    coefficient_nulls,
    coefficient_reference,
    coefficient_texts,
    coefficient_texts_nulls,
    coefficient_whole,
)
from circuits.views.sections import coefficients as heads_section

MODULES = (
    heads_section,
    coefficient_nulls,
    coefficient_texts,
    coefficient_texts_nulls,
    coefficient_reference,
    coefficient_whole,
)
SECTIONS: list[Section] = [module.SECTION for module in MODULES]
CONFIG = HookedTransformerConfig(n_layers=2, d_model=8, n_heads=4, d_head=2, n_ctx=16, d_vocab=20, attn_only=True)
STEPS = tuple(range(0, 1000, 100))
EVIL = "</script><script>alert(1)</script>"


def make_run(
    path: Path, *, steps: tuple[int, ...] = STEPS, layers: int = 2, texts: tuple[str, ...] = ("code", "prose", "shuffled_code"),
    mix: bool = True, reference: bool = True,
) -> Checkpoints:  # fmt: skip
    """An untrained run with texts, a training stream, and a one-layer run as its reference."""
    tokens = np.random.default_rng(0).integers(1, CONFIG.d_vocab, (4, CONFIG.n_ctx)).astype(np.int32)
    cfg = CONFIG.model_copy(update={"n_layers": layers})
    write_json(path / "config.json", cfg.model_dump(mode="json"))
    write_json(path / "meta.json", {"name": f"mine{EVIL}", "reference": "../one"} if reference else {"name": "mine"})
    if texts:
        save_weights(path / "evaluation.safetensors", {text: torch.from_numpy(tokens + 0) for text in texts})
    if mix:
        stream = np.random.default_rng(1).integers(1, CONFIG.d_vocab, 400)
        save_weights(path / "corpus.safetensors", {"code_train": torch.from_numpy(stream)})
    for step in steps:
        save_weights(step_file(path, step), HookedTransformer(cfg.model_copy(update={"seed": step})).state_dict(), step=step)
    if reference and not (path.parent / "one").exists():
        make_run(path.parent / "one", steps=(7,), layers=1, texts=(), mix=False, reference=False)
    return Checkpoints.from_dir(path)


def sampled(value: Any, stderr: Any = 0.01, steps: tuple[int, ...] = STEPS, state: Any = "ok", status: Any = "ok") -> xr.Dataset:
    """What ``gather`` gives of RLLC, ``[step, layer, head]``, or of LLC, ``[step]``; numbers are spread over all cells."""
    value = np.asarray(value, dtype=float)
    dims = ("step", "layer", "head")[: value.ndim]
    made = {"value": (dims, value), "stderr": (dims, np.broadcast_to(stderr, value.shape) + 0.0)}
    words = np.broadcast_to(np.asarray(state, dtype="U12"), value.shape).copy()
    config = {"config": {"sampler": "exponential", "epsilon": 7e-3, "draws": 50}}
    coords = {"step": list(steps)} | {dim: np.arange(value.shape[i]) for i, dim in enumerate(dims) if i}
    found = xr.Dataset(made, coords=coords, attrs={"config": json.dumps(config), "n_examples": 128})
    found["state"] = (dims, words)
    found["status"] = ("step", np.broadcast_to(np.asarray(status, dtype="U12"), len(steps)).copy())
    return found.assign(reason=("step", [""] * len(steps)))


def nulls_of(local: Any, noise: Any, *, error: float = 0.01, steps: tuple[int, ...] = STEPS, **values: Any) -> xr.Dataset:
    """What ``gather`` gives of ComplexityNulls, the same at every step, from ``[layer, head]``."""
    local, noise = np.asarray(local, dtype=float), np.asarray(noise, dtype=float)
    given = {"local_estimate": local, "noise_loss": noise / 30} | values
    value = np.stack([np.asarray(given.get(kind, 1.0 + np.arange(local.size).reshape(local.shape))) for kind in KINDS])
    scales = {"hessian_trace": 30 / 400, "noise_loss": 30.0, "local_estimate": 1.0}
    as_llc = np.stack([value[i] * scales.get(kind, np.nan) for i, kind in enumerate(KINDS)])
    state = np.where(np.isfinite(value), "ok", "unbounded")
    dims = ("step", "kind", "layer", "head")
    made = {"value": value, "stderr": np.full_like(value, error), "as_llc": as_llc, "as_llc_stderr": np.full_like(value, error)}
    shape = (len(steps), *value.shape)
    found = xr.Dataset(
        {name: (dims, np.broadcast_to(x, shape) + 0.0) for name, x in made.items()}
        | {"state": (dims, np.broadcast_to(state, shape))},
        coords={"step": list(steps), "kind": list(KINDS), "layer": np.arange(shape[2]), "head": np.arange(shape[3])},
    )
    return found.assign(status=("step", ["ok"] * len(steps)), reason=("step", [""] * len(steps)))


HEADS = np.arange(1.0, 9.0).reshape(2, 4)
"""Coefficients at the last step: L0H0 1, L0H1 2, ..., L1H3 8."""


def growing(last: Any = HEADS, steps: int = len(STEPS)) -> np.ndarray:
    """Values that grow to these over the steps."""
    return np.linspace(0.1, 1, steps)[:, None, None] * last


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return make_run(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture(scope="module")
def results() -> dict[str, xr.Dataset]:
    few = (0, 200, 500, 900)
    return {
        "rllc_mix": sampled(growing()),
        "nulls_mix": nulls_of(HEADS * 1.01, HEADS * 2),
        "rllc_code": sampled(growing(HEADS * [[1.5, 2, 2, 2], [2, 2, 2, 2.5]])),
        "rllc_prose": sampled(growing(HEADS / 2)),
        "rllc_shuffled_code": sampled(growing(HEADS * [[1, 2, 2, 1], [2, 2, 1, 3]], 4), steps=few),
        "rllc_mix_kl": sampled(growing(HEADS, 4), steps=few),
        "llc_mix": sampled(np.arange(10.0), 0.1),
        "nulls_code": nulls_of(HEADS * [[1.5, 2, 2, 2], [2, 2, 2, 2.5]] * 1.01, HEADS * 6, steps=few),
        "nulls_prose": nulls_of(HEADS * 1.01, HEADS * 2, steps=few),
        "nulls_shuffled_code": nulls_of(HEADS * 1.01, HEADS * 2, steps=few),
        "nulls_mix_kl": nulls_of(HEADS * 1.2, HEADS, steps=few),
    }


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections without their pictures, which take longer than the words."""
    for module in MODULES:
        drawers = {"coefficient_curves", "predicted", "text_curves", "whole_curve"} & set(vars(module))
        for name in drawers:
            monkeypatch.setattr(module, name, lambda *_, **__: None)
        monkeypatch.setattr(module, "rendered", lambda *_: b"", raising=False)


def text_of(markup: Any) -> str:
    return " ".join(Markup(str(markup).replace("</td>", " </td>").replace("</th>", " </th>")).striptags().split())


@pytest.mark.usefixtures("undrawn")
def test_curves_and_table_say_the_planted_numbers(run: Checkpoints, results: dict[str, xr.Dataset], elements: Any):
    page = heads_section.render(run, results)
    said = text_of(page)
    assert "At step 900: highest L1H3 8.000 ± 0.010, lowest L0H0 1.000 ± 0.010." in said
    assert "exponential sampler, nβ 30, γ 200, ε 0.007, 4 chains of 50 draws" in said and "Text: mix, 128 sequences" in said
    between = HEADS.std(ddof=1)
    assert f"{between / 10:.3f} at step 0, where errors alone would give 0.010; {between:.3f} at step 900" in said
    assert "All 80 cells are ok" in said and "below 0" not in said
    order = [said.index(f"L{i // 4}H{i % 4} {i + 1}.000 ± 0.010 {1.01 * (i + 1):.3f}") for i in reversed(range(8))]
    assert order == sorted(order), "highest first, the closed form beside"
    alts = [a["alt"] for tag, a in elements(str(page)).tags if tag == "img"]
    assert len(alts) == 1 and "L1H3 8.000" in alts[0]


@pytest.mark.usefixtures("undrawn")
def test_cells_that_are_not_ok_are_hatched_and_counted(run: Checkpoints):
    state = np.full((10, 2, 4), "ok", dtype="U12")
    value = growing()
    state[3, 0, 1], state[5, 1, 2], state[6, 0, 0], state[0] = "not mixed", "diverged", "not asked", "missing"
    value[5, 1, 2] = value[6, 0, 0] = value[0] = np.nan
    value[1] = -1.0
    status = ["missing", *["ok"] * 9]
    planted = sampled(value, state=state, status=status)
    said = text_of(heads_section.render(run, {"rllc_mix": planted}))
    assert "2 of 71 cells are not ok: 1 diverged (a chain diverged and is not in the value), 1 not mixed (R-hat from 1.1)" in said
    assert "L0H1 at step 300, L1H2 at step 500" in said
    assert "8 of 70 values are below 0 by more than 2 standard errors (at step 100)" in said
    assert "nulls beside it were not measured" in said and "at step 100, where" in said, "steps without data are no first step"
    upper, lower = coefficient_curves(planted).axes
    assert [bool(band.get_hatch()) for band in upper.collections].count(True) == 1, "a hatched band where a cell is not ok"
    assert not any(band.get_hatch() for band in lower.collections), "and none elsewhere"

    def marked(axis: Any, mark: str, face: str) -> list[list[int]]:
        lines = [line for line in axis.lines if line.get_marker() == mark and line.get_markerfacecolor() == face]
        return [x for line in lines if (x := list(np.asarray(line.get_xdata())))]

    assert marked(upper, "o", "white") == [[300]] and marked(lower, "o", "white") == []
    crosses = [line for line in lower.lines if line.get_marker() == "x" and len(np.asarray(line.get_xdata()))]
    assert [list(np.asarray(line.get_xdata())) for line in crosses] == [[500]], "a head without a value has a cross at the foot"


def test_many_cells_that_are_not_ok_are_not_all_listed():
    found = sampled(growing(), state="few draws")
    assert "80 of 80 cells" in heads_section.not_ok(found) and "and 74 more" in heads_section.not_ok(found)
    whole = sampled([1.0, 2.0], steps=(0, 10), state=["ok", "few draws"])
    assert "1 of 2 cells" in heads_section.not_ok(whole) and ": step 10. " in heads_section.not_ok(whole)


@pytest.mark.usefixtures("undrawn")
def test_the_planted_gap_to_the_closed_form_is_named(run: Checkpoints):
    local = HEADS.copy()
    local[1, 2] = HEADS[1, 2] / 1.4
    local[0, 0] = np.nan
    results = {"rllc_mix": sampled(growing()), "nulls_mix": nulls_of(local, HEADS)}
    trace = results["nulls_mix"]["as_llc"]  # the noise null is HEADS
    trace.loc[{"kind": "hessian_trace", "step": list(STEPS[:4])}] = 2 * HEADS
    trace.loc[{"kind": "hessian_trace", "step": list(STEPS[4:])}] = 1.05 * HEADS
    said = text_of(coefficient_nulls.render(run, results))
    # Values are .1, .2, ... 1 of the last: two steps of six heads are near their forms, and two others of L1H2.
    assert "Where noise and the trace agree within 10%, 42 cells: 14 within 15%" in said
    assert "Elsewhere, 28 cells: 0 within 15%, median gap −71%" in said
    assert "within 15% of that for 6 of 7 heads, and differs by more than 2 standard errors for 1" in said
    assert "the largest gap is that of L1H2, +40% (7.000 ± 0.010 against 5.000 ± 0.010)" in said
    assert "1 of 8 have no closed form" in said
    assert "unbounded" in text_of(heads_section.render(run, results)), "the table says why there is no number"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("factor", "within", "verdict"), [(1.0, 8, True), (2.0, 0, False)])
def test_whether_the_coefficient_is_only_noise_is_said_plainly(run: Checkpoints, factor: float, within: int, verdict: bool):
    results = {"rllc_mix": sampled(growing()), "nulls_mix": nulls_of(HEADS, HEADS * factor)}
    said = text_of(coefficient_nulls.render(run, results))
    assert f"For {within} of 8 heads rllc is within 2 standard errors" in said
    assert ("Here the coefficient says what noise of that size would." in said) == verdict
    assert ("8 are below it and 0 above. The largest difference is that of L1H3, 8.000 ± 0.010 against 16.000" in said) != verdict


@pytest.mark.usefixtures("undrawn")
def test_ranks_and_the_joint_fit(run: Checkpoints):
    falling = HEADS[::-1, ::-1]
    odd = {"fisher_trace": HEADS**2, "ablation_loss": np.sin(HEADS), "weight_norm": np.ones((2, 4)), "hessian_trace": falling}
    said = text_of(coefficient_nulls.render(run, {"rllc_mix": sampled(growing()), "nulls_mix": nulls_of(HEADS, HEADS, **odd)}))
    assert "fisher trace trace of the Fisher information, labels drawn from the model 1.00 [1.00, 1.00] ≤5e−4 8" in said
    assert "trace of the Hessian of the head’s weights −1.00" in said
    assert "norm of the head’s weights – – untestable 8" in said, "a null that is the same for all heads orders none"
    assert "explains 1.00 of the variance of rllc between 8 heads" in said and "would explain 0.71 on average" in said


@pytest.mark.usefixtures("undrawn")
def test_few_heads_are_untestable(tmp_path: Path):
    run = make_run(tmp_path / "mine", layers=1)
    one = HEADS[:1]
    results = {"rllc_mix": sampled(growing(one)), "nulls_mix": nulls_of(one, one)}
    said = text_of(coefficient_nulls.render(run, results))
    assert "untestable (≤0.083)" in said and "4 heads are too few to fit 5 nulls to: untestable here" in said


def test_rank_correlation_against_scipy_and_by_hand():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=12), rng.normal(size=12)
    value, low, high, p, smallest, _ = ranks.rank_correlation(x, y)
    oracle: Any = spearmanr(x, y)
    assert value == pytest.approx(oracle.statistic) and low < value < high
    assert p == pytest.approx(oracle.pvalue, abs=4 * math.sqrt(0.25 / 1999)) and smallest == 1 / 2000
    three = ranks.rank_correlation(np.arange(3), np.arange(3) ** 2)
    assert three.value == pytest.approx(1.0) and three[3:] == (pytest.approx(1 / 3), pytest.approx(1 / 3), 3)
    assert np.isnan(ranks.rank_correlation(np.ones(5), np.arange(5))[:5]).all()
    assert np.isnan(ranks.rank_correlation(np.array([1.0, np.nan]), np.arange(2))[:5]).all()


def test_the_joint_fit_foretells_as_leaving_heads_out_does():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(12, 3))
    y = x @ [1.0, -2.0, 0.5] + rng.normal(size=12)
    explained, foretold = ranks.linear_fit(y, x)
    design = np.column_stack([np.ones(12), x])
    off = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    kept = [np.delete(np.arange(12), i) for i in range(12)]
    errors = [y[i] - design[i] @ np.linalg.lstsq(design[rest], y[rest], rcond=None)[0] for i, rest in enumerate(kept)]
    mean = [y[i] - y[rest].mean() for i, rest in enumerate(kept)]
    assert explained == pytest.approx(1 - np.square(off).sum() / np.square(y - y.mean()).sum())
    assert foretold == pytest.approx(1 - np.square(errors).sum() / np.square(mean).sum())
    assert np.isnan(ranks.linear_fit(np.ones(12), x)).all()


@pytest.mark.usefixtures("undrawn")
def test_ratios_of_texts_stand_against_shuffled_text(run: Checkpoints, results: dict[str, xr.Dataset]):
    said = text_of(coefficient_texts.render(run, results))
    assert "rllc on code is between 1.50 ± 0.02 (L0H0) and 2.50 ± <0.01 (L1H3) times that on mix" in said
    assert "above the ratio on shuffled code for 3 of 8 heads and below for 1, by more than 2 standard errors" in said
    assert "rllc on prose is between 0.50" in said and "All 32 cells are ok" in said
    assert "head mix code prose shuffled code code / mix prose / mix shuffled code / mix" in said


def test_a_ratio_has_the_errors_of_both():
    there, own = (sampled(np.reshape(v, (1, 1, 3)), np.array(e), steps=(0,)).isel(step=0) for v, e in (
        ([4.0, 4.0, np.nan], [0.4, 0.4, 0.1]), ([2.0, 0.1, 1.0], [0.1, 0.06, 0.1]),
    ))  # fmt: skip
    value, stderr = coefficient_texts.ratio(there, own)
    assert value[0] == 2.0 and stderr[0] == pytest.approx(2.0 * math.hypot(0.1, 0.05))
    assert np.isnan([value[1:], stderr[1:]]).all(), "no ratio to 0, and none of what has no value"


@pytest.mark.usefixtures("undrawn")
def test_ratios_of_nulls_stand_beside_those_of_coefficients(run: Checkpoints, results: dict[str, xr.Dataset]):
    results = dict(results)
    said = text_of(coefficient_texts_nulls.render(run, results))
    assert "on code the closed form has the same ratio within 15% for 8 of 8 heads" in said
    assert "on prose the closed form has the same ratio within 15% for 0 of 8 heads" in said
    assert "code closed form of a quadratic loss 2.00 2.00 8 of 8 0 1.00" in said
    assert "code noise alone 2.00 3.00 0 of 8 8 – – untestable" in said, "a ratio that is one for all heads orders none"
    assert "prose noise alone 0.50 1.00 0 of 8 8" in said
    del results["rllc_code"]
    assert "rllc_code has no data" in text_of(coefficient_texts_nulls.render(run, results))


@pytest.mark.usefixtures("undrawn")
def test_ratios_need_a_checkpoint_that_has_all_texts(run: Checkpoints, results: dict[str, xr.Dataset]):
    apart = results | {"rllc_mix": results["rllc_mix"].assign(status=("step", ["failed"] * 10))}
    for given in (apart, {name: data for name, data in results.items() if name != "rllc_mix"}):
        said = text_of(coefficient_texts.render(run, given))
        assert "There are no ratios" in said and "Bands are" in said


def test_a_peak_and_a_fall_beyond_error_are_told_apart():
    value = np.array([1.0, 4.0, 3.0])[:, None, None] * np.ones((3, 2, 4))
    value[:, 1] = [[1.0], [2.0], [1.999]]
    value = np.concatenate([value, np.full((1, 2, 4), np.nan)])
    found = sampled(value, 0.01, steps=(0, 10, 100, 1000))
    first, second = (coefficient_reference.peak(found, layer) for layer in (0, 1))
    assert (
        first
        == "Layer 0: the mean over heads is largest at step 10, 4.000 ± 0.005, and 3.000 ± 0.005 at step 100: a fall of 25%."
    )
    assert second.endswith("at step 100: no fall beyond the 2.2 standard errors that chance bounds.")
    assert coefficient_reference.peak(found.isel(step=[0]), 0).endswith("the last that was measured.")
    assert "no checkpoint has all heads" in coefficient_reference.peak(found.isel(step=[3]), 0)


def test_the_course_of_the_whole_model_names_its_largest_fall():
    said = coefficient_whole.course(sampled([1.0, 5.0, np.nan, 4.0, 9.0], 0.1, steps=(0, 1, 2, 3, 4)))
    assert said.startswith("The coefficient is 1.00 ± 0.10 at step 0 and 9.00 ± 0.10 at step 4.")
    assert "fall between neighbouring checkpoints is 1.00 ± 0.14 from step 1 to 3, more than the 2.4 standard errors" in said
    assert "not more" in coefficient_whole.course(sampled([5.0, 4.9], 0.1, steps=(0, 1)))
    assert "never falls" in coefficient_whole.course(sampled([1.0, 2.0], steps=(0, 1)))
    assert coefficient_whole.course(sampled([np.nan], steps=(0,))) == "No checkpoint has a value."


def test_a_single_checkpoint_of_one_layer_is_drawn_to_equal_bytes(tmp_path: Path, results: dict[str, xr.Dataset], elements: Any):
    run = make_run(tmp_path / "mine", steps=(900,), layers=1)
    last = {name: data.sel(step=[900]).isel(layer=[0], missing_dims="ignore") for name, data in results.items()}
    pages = [str(module.render(run, last)) for module in MODULES]
    assert "highest L0H3 4.000 ± 0.010" in pages[0] and "The coefficient is 9.00 ± 0.10 at step 900." in pages[-1]
    assert str(coefficient_whole.render(run, last)) == pages[-1]
    assert all(want.few is None for section in SECTIONS for want in section.measures(run))
    images = [a for page in pages for tag, a in elements(page).tags if tag == "img"]
    assert len(images) == 5 and all((a["src"] or "").startswith("data:image/svg+xml;base64,") for a in images)


def test_what_is_missing_is_named(tmp_path: Path):
    bare = make_run(tmp_path / "bare", texts=(), mix=False, reference=False)
    assert [section.measures(bare) for section in SECTIONS] == [[]] * 6
    assert all("no text to measure coefficients on" in section.render(bare, {}) for section in SECTIONS)
    odd = make_run(tmp_path / "odd", texts=("a-b", "a b"))
    assert [section.measures(odd) for section in SECTIONS] == [[]] * 6
    assert "would be called &#39;a_b&#39;" in heads_section.render(odd, {})
    alone = make_run(tmp_path / "alone", texts=("prose",), mix=False, reference=False)
    names = [[want.measure.name for want in section.measures(alone)] for section in SECTIONS]
    assert names == [["rllc_prose"], ["nulls_prose"], [], [], [], ["llc_prose"]], (
        "without a mix the first text stands in its place"
    )
    assert "one text alone" in coefficient_texts.render(alone, {}) and "meta.json names none" in coefficient_reference.render(
        alone, {}
    )
    assert "rllc_prose has no data" in coefficient_nulls.render(alone, {})


@pytest.mark.usefixtures("undrawn")
def test_the_report_reads_what_the_store_has_and_samples_nothing(
    run: Checkpoints, results: dict[str, xr.Dataset], tmp_path: Path, elements: Any
):
    wanted = measures_of(SECTIONS, run)
    assert set(wanted) == set(results) and not any(want.cheap for want in wanted.values())
    few = ("rllc_shuffled_code", "rllc_mix_kl", "nulls_code", "nulls_prose", "nulls_shuffled_code", "nulls_mix_kl")
    assert {name: want.few for name, want in wanted.items() if want.few} == dict.fromkeys(few, 8)
    parts = {m.name: (m, part) for pairs in coefficient_measures(run).values() for m, part in pairs}
    (mix, _), (shuffled, few) = parts["rllc_mix"], parts["rllc_shuffled_code"]
    extra = next(step for step in run.steps if step not in few)
    for what, step in ((mix, 0), (mix, 900), (shuffled, 900), (shuffled, extra)):
        task = Task(what, run, step, tmp_path / "store")
        one = results["rllc_mix"].sel(step=step, drop=True).drop_vars(["status", "reason"])
        write_dataset(task.artefact, one.assign_attrs(measure=what.name, key=task.key))
    asked_for = [(want.measure, run.select(steps_of(want, run))) for want in wanted.values()]
    found, absent = gather_all((read_at(*pair, run, tmp_path / "store") for pair in asked_for), tmp_path / "store")
    page = "\n".join(f"{notices(section, found, absent, run)}{body(section, run, found)}" for section in SECTIONS)
    assert page.count("circuits rllc mine&lt;/script&gt;") == len(wanted) and page.count("has no data.") == len(wanted) - 2
    assert "rllc_mix: 8 of 10 checkpoints have no data" in page and "All 16 cells are ok" in page
    assert "rllc_shuffled_code: 7 of 9 checkpoints" in page, "few by design is not missing, and what else there is is read"
    assert EVIL not in page and not elements(page).scripts


def test_figures_refuse_what_they_cannot_draw(results: dict[str, xr.Dataset]):
    with pytest.raises(ValueError, match="need `value` by step, layer, head"):
        coefficient_curves(results["llc_mix"])
    with pytest.raises(ValueError, match="need `value` by step: give what LLC gives"):
        whole_curve(results["rllc_mix"])
    with pytest.raises(ValueError, match="no text to draw"):
        text_curves({})
    with pytest.raises(ValueError, match="need `as_llc` by kind, layer and head"):
        predicted(results["rllc_mix"].isel(step=-1), results["nulls_mix"])
    nothing = results["nulls_mix"].isel(step=-1)[["as_llc", "as_llc_stderr"]] * np.nan
    assert "no head has both" in [
        t.get_text() for a in predicted(results["rllc_mix"].isel(step=-1), nothing).axes for t in a.texts
    ]
