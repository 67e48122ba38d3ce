"""Claims about circuits on made-up evidence: each holds where it was made to hold, fails where it was made to fail, and is not
testable where the evidence lacks something."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import xarray as xr

from circuits.crosscheck import claims_circuits_planted
from circuits.crosscheck.claims_circuits import CLAIMS, claims_circuits
from circuits.crosscheck.claims_circuits_exact import against, matched, shapes
from circuits.crosscheck.claims_circuits_reading import correlated, jackknifed, measured, ratio, share
from circuits.crosscheck.claims_circuits_times import bump, change, doublings, in_order, least, together
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.verdict import Claim, Lacking, Reading

STEPS = np.array([0, *np.unique(np.geomspace(16, 10_000, 40).round().astype(int))])
U = np.log2(1 + STEPS / 16)
HEADS = 8
PREVIOUS, INDUCTION = (0, 6), (1, 2)
LIVE = ("1", "13", "22", "23", "24")
UNTOLD = ("2", "5", "15", "17", "18", "20", "21", "25")
READ = ("3", "4", "6", "7", "8", "9", "10", "11", "12", "14", "16", "19")
Results = dict[str, xr.Dataset]


def rise(at: float, high: float, low: float = 0.0, width: float = 0.1) -> np.ndarray:
    """A curve over ``STEPS`` that rises at so many doublings."""
    return low + (high - low) / (1 + np.exp(-(U - at) / width))


def swept(
    steps: np.ndarray, variables: dict[str, tuple[tuple[str, ...], Any]], coords: dict[str, Any], **attrs: Any
) -> xr.Dataset:
    """A result as ``gather`` gives it: every variable with ``step``, and the state of every checkpoint."""
    columns = {}
    for name, (dims, x) in variables.items():
        given = np.asarray(x)
        whole = given if given.ndim > len(dims) else np.broadcast_to(given, (len(steps), *given.shape))
        columns[name] = (("step", *dims), whole)
    columns["status"] = (("step",), np.full(len(steps), "ok"))
    return xr.Dataset(columns, coords={"step": steps, **coords}, attrs=attrs)


def attention(layers: int) -> xr.Dataset:
    names = ["previous_token", "induction", "prefix_matching"]
    value = np.full((len(STEPS), layers, HEADS, 3), 0.01) + 0.001 * np.arange(HEADS)[:, None]
    if layers > 1:
        value[:, *PREVIOUS, 0] = rise(6.2, 0.5, 0.04)
        value[:, *INDUCTION, 1] = rise(7.2, 0.8, 0.02)
        value[:, *INDUCTION, 2] = rise(7.2, 0.9, 0.02)
    return swept(
        STEPS,
        {
            "value": (("layer", "head", "detector"), value),
            "stderr": (("layer", "head", "detector"), np.full(value.shape[1:], 0.002)),
            "chance": (("detector",), np.array([0.04, 0.02, 0.03])),
        },
        {"layer": np.arange(layers), "head": np.arange(HEADS), "detector": names},
        n_examples=16,
    )


def losses(layers: int, last: float) -> xr.Dataset:
    fall = 7.0 - rise(2.0, 3.0, width=0.8) - (rise(7.2, 4.0 - last) if layers > 1 else rise(2.0, 4.0 - last, width=0.8))
    score = -0.2 - (rise(7.2, 0.5) if layers > 1 else np.zeros(len(STEPS)))
    return swept(
        STEPS,
        {
            "loss": (("corpus",), fall[:, None]),
            "loss_stderr": (("corpus",), np.array([0.03])),
            "in_context_learning_score": (("corpus",), score[:, None]),
            "n": (("corpus",), np.array([128])),
        },
        {"corpus": ["code"]},
        data_hash="text",
    )


def predictors() -> xr.Dataset:
    kl = np.stack([(U - at) ** 2 / 9 + 1 for at in (1.0, 3.0, 5.0)], -1)[:, None]
    flat = {"loss": 3.1, "loss_stderr": 0.05, "ngram_loss": 4.0, "ngram_loss_stderr": 0.05}
    return swept(
        STEPS,
        {"kl": (("corpus", "order"), kl)} | {name: (("corpus", "order"), np.full((1, 3), x)) for name, x in flat.items()},
        {"corpus": ["code"], "order": [1, 2, 3]},
    )


def spectra(layers: int) -> xr.Dataset:
    rng = np.random.default_rng(3)
    names = ["ov_copying", "ov_top1", "qk_trace"]
    value = 0.1 * rng.standard_normal((layers, HEADS, 3))
    if layers > 1:
        value[INDUCTION][0] = 0.85
        value[1, :, 2] = 10.0 * np.arange(HEADS) - 100
        value[1, INDUCTION[1], 2] = 4000.0
    else:
        value[0, :6, 0] = 0.6
    return swept(
        STEPS,
        {
            "value": (("layer", "head", "statistic"), value),
            "stderr": (("layer", "head", "statistic"), np.full(value.shape, 0.02)),
            "z": (("layer", "head", "statistic"), np.where(np.arange(len(STEPS))[:, None, None, None] > 0, value / 0.05, 0.0)),
            "p": (("layer", "head", "statistic"), np.where(np.abs(value) > 0.2, 0.01, 0.5)),
        },
        {"layer": np.arange(layers), "head": np.arange(HEADS), "statistic": names},
        smallest_p=0.01,
        n_tokens=256,
    )


def pairs() -> Results:
    """Composition and K-terms of two layers."""
    rng = np.random.default_rng(4)
    shape = (2, HEADS, 2, HEADS)
    between = np.full(shape, np.nan)
    between[0, :, 1] = 1.0
    score = between * rng.uniform(0.06, 0.08, (3, *shape))
    z, p = between * rng.uniform(-3, 3, (3, *shape)), between * np.full((3, *shape), 0.5)
    at = (1, *PREVIOUS, *INDUCTION)
    score[at], z[at], p[at] = 0.2, 50.0, 0.0001
    term, term_p = between * rng.uniform(-0.2, 0.2, shape), between * np.full(shape, 0.5)
    term[(*PREVIOUS, *INDUCTION)], term_p[(*PREVIOUS, *INDUCTION)] = 0.9, 0.01
    coords = {"src_layer": [0, 1], "src_head": np.arange(HEADS), "dst_layer": [0, 1], "dst_head": np.arange(HEADS)}
    grid = tuple(coords)
    modes = ("mode", *grid)
    return {
        "composition": swept(
            STEPS,
            {"value": (modes, score), "z": (modes, z), "p": (modes, p), "chance": ((), 0.09)},
            {"mode": ["Q", "K", "V"], **coords},
            smallest_p=0.0001,
        ),
        "k_term_copying": swept(STEPS, {"value": (grid, term), "p": (grid, term_p)}, coords, smallest_p=0.01),
    }


def at_the_end() -> Results:
    """What is measured at the last checkpoint."""
    last, rng = STEPS[-1:], np.random.default_rng(5)
    copying = -0.85 + 0.05 * rng.standard_normal((2, HEADS)) + 2 * spectra(2)["value"].values[-1, :, :, 0]
    heads = {"layer": [0, 1], "head": np.arange(HEADS)}
    lost = -0.01 * np.ones((2, HEADS))
    lost[INDUCTION] = 0.9
    role = np.full((2, HEADS), "none", dtype="U20")
    role[PREVIOUS], role[INDUCTION] = "previous token", "induction"
    l0, l1 = "L0H6", "L1H2"
    edges = {
        f"{l0} -> {l1}.k": 7.0,
        f"{l0} -> {l1}.v": 0.1,
        f"{l0} -> {l1}.q": 0.2,
        f"{l1} -> logits": 7.5,
        f"pos -> {l1}.q": 0.0,
    }
    return {
        "copying_scores": swept(
            last, {"value": (("layer", "head", "detector"), copying[..., None])}, heads | {"detector": ["copying"]}, n_examples=16
        ),
        "in_context_ablation": swept(
            last,
            {
                "value": (("layer", "head"), lost),
                "stderr": (("layer", "head"), 0.01 * np.ones((2, HEADS))),
                "clean": ((), -1.0),
                "clean_stderr": ((), 0.01),
            },
            heads,
            n_examples=64,
        ),
        "term_importance": swept(
            last,
            {
                "value": (("order",), np.array([1.8, 5.2, 0.3])),
                "stderr": (("order",), np.array([0.1, 0.1, 0.02])),
                "given_rest": (("layer",), np.array([0.05, 3.0])),
                "given_rest_stderr": (("layer",), np.array([0.01, 0.1])),
            },
            {"order": [0, 1, 2], "layer": [0, 1]},
            n_examples=16,
        ),
        "edge_effects_repeats": swept(
            last,
            {"value": (("edge",), np.array(list(edges.values()))), "stderr": (("edge",), np.full(len(edges), 0.02))},
            {"edge": list(edges)},
            n_examples=8,
        ),
        "head_functions": xr.Dataset(
            {"role": (("step", "layer", "head"), role[None])}, coords={"step": last} | heads, attrs={"draws": 500}
        ),
    }


@cache
def made(layers: int) -> Results:
    """Results of which every claim holds; not to be changed."""
    rest = pairs() | at_the_end() if layers > 1 else {}
    return {
        "attention_scores": attention(layers),
        "loss_curves": losses(layers, 3.2 - 0.3 * layers),
        "predictor_loss": predictors(),
        "weight_spectra": spectra(layers),
    } | rest


def run(name: str = "made", *, without: tuple[str, ...] = (), **changes: Callable[[xr.Dataset], xr.Dataset]) -> Evidence:
    """A two-layer run of which every claim holds, with some results changed or left out."""
    results = {name: data for name, data in made(2).items() if name not in without}
    return Evidence(name, 0, results | {result: mend(results[result]) for result, mend in changes.items()})


def shallow(**changes: Callable[[xr.Dataset], xr.Dataset]) -> Evidence:
    """A one-layer run of which every claim holds."""
    return Evidence("flat", 0, made(1) | {result: mend(made(1)[result]) for result, mend in changes.items()})


def put(variable: str, to: Any, **at: Any) -> Callable[[xr.Dataset], xr.Dataset]:
    """A change: some values of a variable, at all checkpoints."""

    def mend(data: xr.Dataset) -> xr.Dataset:
        values = data[variable].copy()
        if at:
            values.loc[at] = to
        else:
            values[:] = to
        return data.assign({variable: values})

    return mend


def judged(number: str, seeds: list[Evidence], one_layer: Evidence | None = None) -> Claim:
    return CLAIMS[f"circuits {number}"](seeds, one_layer)


def the(claim: Claim, start: str) -> Any:
    """The check whose quantity begins so."""
    return next(check for check in claim.checks if check.quantity.startswith(start))


@pytest.mark.parametrize("number", READ)
def test_each_holds_where_it_was_made_to_hold(number: str):
    """Two runs, so that one induction head among eight heads can be told from chance."""
    claim = judged(number, [run("a"), run("b")], shallow())
    assert claim.verdict == "holds", claim.reason
    assert claim.least_p <= 0.05 and claim.statement and claim.definition and claim.control and claim.source


@pytest.mark.parametrize("number", READ)
def test_each_holds_in_one_run_but_where_heads_are_too_few(number: str):
    claim = judged(number, [run()], shallow())
    assert claim.verdict == ("not testable here" if number == "8" else "holds"), claim.reason


def curve(detector: str, values: np.ndarray) -> Callable[[xr.Dataset], xr.Dataset]:
    """A change: every head's score follows this curve."""

    def mend(data: xr.Dataset) -> xr.Dataset:
        value = data["value"].copy()
        value.loc[{"detector": detector}] = values[:, None, None]
        return data.assign(value=value)

    return mend


@pytest.mark.parametrize("number", ["8", "9", "16"])
def test_one_run_that_is_clearly_otherwise_stands_against_the_claim(number: str):
    """These claims are of each run, not of the mean of runs."""
    others: dict[str, dict[str, Any]] = {
        "8": {"k_term_copying": put("value", 0.5, src_layer=0, src_head=6, dst_layer=1, dst_head=2)},
        "9": {"composition": put("value", 0.3, mode="K", src_layer=0, src_head=0, dst_layer=1, dst_head=0)},
        "16": {"attention_scores": curve("induction", rise(1.5, 0.9))},
    }
    claim = judged(number, [run("a"), run("b"), run("c", **others[number])])
    assert claim.verdict != "holds" and len(claim.checks[0].values) == 3


def swap_roles(data: xr.Dataset) -> xr.Dataset:
    """The previous-token head is said to be another one."""
    role = data["role"].copy()
    role.loc[{"layer": 0, "head": 6}], role.loc[{"layer": 0, "head": 1}] = "none", "previous token"
    return data.assign(role=role)


FAILS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "no gain of the second layer": ("3", {"loss_curves": put("loss", 3.4)}, {}),
    "no better than bigrams": ("3", {}, {"predictor_loss": put("loss", 4.3)}),
    "induction with one layer": ("3", {}, {"attention_scores": put("value", 0.5, layer=0, head=1, detector="induction")}),
    "no induction with two": ("3", {"attention_scores": put("value", 0.1, detector="induction")}, {}),
    "few copy": ("4", {}, {"weight_spectra": put("z", 4.9, head=[0, 1, 2], statistic="ov_copying")}),
    "copying in the weights alone": ("6", {"copying_scores": lambda data: data.assign(value=-data["value"])}, {}),
    "trace does not foretell": ("7", {"weight_spectra": put("value", -4000.0, layer=1, head=2, statistic="qk_trace")}, {}),
    "below the corner": ("8", {"k_term_copying": put("value", 0.5, src_layer=0, src_head=6, dst_layer=1, dst_head=2)}, {}),
    "not the top pair": ("9", {"composition": put("value", 0.3, mode="K", src_layer=0, src_head=0, dst_layer=1, dst_head=0)}, {}),
    "small z": ("9", {"composition": put("z", 4.0, mode="K", src_layer=0, src_head=6, dst_layer=1, dst_head=2)}, {}),
    "Q stands out": ("9", {"composition": put("z", 60.0, mode="Q", src_layer=0, src_head=0, dst_layer=1, dst_head=0)}, {}),
    "another head's role": ("9", {"head_functions": swap_roles}, {}),
    "most compose more": ("10", {"composition": put("chance", 0.01)}, {}),
    "virtual heads matter": ("11", {"term_importance": put("value", 2.0, order=2)}, {}),
    "the first layer matters": ("11", {"term_importance": put("given_rest", 2.0, layer=0)}, {}),
    "keys carry little": ("11", {"edge_effects_repeats": put("value", 3.0, edge="L0H6 -> L1H2.k")}, {}),
    "other heads carry it": ("12", {"in_context_ablation": put("value", 0.3, layer=1, head=2)}, {}),
    "most others carry it": ("12", {"in_context_ablation": put("value", 0.5, layer=[0, 1], head=[0, 1, 3, 4, 5, 6, 7])}, {}),
    "early prefix matching": ("14", {"attention_scores": curve("prefix_matching", rise(2.5, 0.9))}, {}),
    "a change with one layer": ("14", {}, {"attention_scores": put("value", 0.4, layer=0, head=1, detector="prefix_matching")}),
    "bigrams last": ("16", {"predictor_loss": lambda data: data.assign(kl=data["kl"].copy(data=data["kl"].values[::-1]))}, {}),
    "induction first": ("16", {"attention_scores": curve("induction", rise(1.5, 0.9))}, {}),
    "values carry it": ("19", {"edge_effects_repeats": put("value", 2.0, edge="L0H6 -> L1H2.v")}, {}),
    "queries carry it": ("20", {"edge_effects_repeats": put("value", 2.0, edge="L0H6 -> L1H2.q")}, {}),
}


@pytest.mark.parametrize("what", FAILS)
def test_each_fails_where_it_was_made_to_fail(what: str):
    number, deep, flat = FAILS[what]
    claim = judged(number, [run(**deep)], shallow(**flat))
    assert claim.verdict == "fails", [(check.quantity, check.measured, check.verdict) for check in claim.checks]
    assert claim.reason


NEEDS = {
    "3": ("loss_curves",), "6": ("copying_scores",), "7": ("weight_spectra",), "8": ("k_term_copying",), "9": ("composition",),
    "10": ("composition",), "11": ("term_importance",), "12": ("in_context_ablation",), "14": ("loss_curves",),
    "16": ("predictor_loss",), "19": ("edge_effects_repeats",),
}  # fmt: skip


@pytest.mark.parametrize("number", NEEDS)
def test_what_the_evidence_lacks_is_said(number: str):
    claim = judged(number, [run(without=NEEDS[number])], shallow())
    assert claim.verdict == "not testable here"
    assert NEEDS[number][0] in claim.reason and "made: " in claim.reason


@pytest.mark.parametrize("number", ["8", "9", "11", "12", "16", "19", "20"])
def test_without_an_induction_head_there_is_nothing_to_test(number: str):
    claim = judged(number, [run(head_functions=put("role", "none"))], shallow())
    assert claim.verdict == "not testable here" and "is an induction head" in claim.reason


@pytest.mark.parametrize("number", ["3", "4", "14"])
def test_without_a_run_of_one_layer(number: str):
    claim = judged(number, [run()])
    assert claim.verdict == "not testable here" and "no run of one layer was given" in claim.reason
    assert "has 2" in judged(number, [run()], run("deep")).reason


@pytest.mark.parametrize("number", UNTOLD)
def test_what_no_evidence_has_is_not_testable_and_says_what_is_needed(number: str):
    claim = judged(number, [run("a"), run("b")], shallow())
    assert claim.verdict == "not testable here" and "need" in claim.reason


@pytest.mark.parametrize("number", [*READ, *UNTOLD])
def test_nothing_known_is_no_error(number: str):
    """No runs, and a run of which nothing is known."""
    empty = Evidence("empty", None, {}, {"loss_curves": "it has no text"})
    for seeds, one_layer in (([], None), ([empty], empty)):
        claim = judged(number, seeds, one_layer)
        assert claim.name == f"circuits {number}" and claim.verdict == "not testable here"
        assert all(check.reason for check in claim.checks if check.verdict == "not testable here")
    if number == "14":
        assert "it has no text" in claim.reason


def test_every_claim_is_judged_once_and_in_order(monkeypatch: pytest.MonkeyPatch):
    assert list(CLAIMS) == [f"circuits {number}" for number in range(1, 26)]
    assert {*READ, *UNTOLD, *LIVE} == {name.split()[1] for name in CLAIMS}
    for number in LIVE:
        monkeypatch.setitem(CLAIMS, f"circuits {number}", CLAIMS["circuits 2"])
    assert len(claims_circuits([])) == 25


def test_runs_that_lack_something_are_left_out_and_named():
    claim = judged("10", [run("a"), run("b", without=("composition",)), run("c")])
    assert claim.verdict == "holds" and len(claim.checks[0].values) == 2 and "b: " in claim.checks[0].reason


def test_roles_and_not_numbers_choose_heads():
    """All heads of a layer renumbered together: nothing changes."""
    turned = run()
    results = {
        name: data.roll(head=3, roll_coords=False) if "head" in data.dims else data for name, data in turned.results.items()
    }
    for name in ("composition", "k_term_copying"):
        results[name] = results[name].roll(src_head=3, dst_head=3, roll_coords=False)
    names = {"L0H6": "L0H1", "L1H2": "L1H5"}
    edges = results["edge_effects_repeats"]
    renamed = [
        " -> ".join(part.replace(part[:4], names.get(part[:4], part[:4])) for part in edge.split(" -> "))
        for edge in edges.edge.values
    ]
    results["edge_effects_repeats"] = edges.assign_coords(edge=renamed)
    for number in ("8", "9", "12", "16", "19"):
        ours, theirs = (judged(number, [one]) for one in (turned, replace(turned, results=results)))
        assert ours.verdict == theirs.verdict
        assert [check.measured for check in ours.checks] == pytest.approx(
            [check.measured for check in theirs.checks], nan_ok=True
        )


def small(layers: int = 2) -> Evidence:
    """A run of which only its layers and its five heads are known."""
    return Evidence("small", 0, {"attention_scores": attention(layers).isel(head=slice(5))})


def test_of_several_previous_token_heads_the_strongest_counts():
    also = put("role", "previous token", layer=0, head=[1, 6])
    weak = put("value", 0.2, layer=0, head=1, detector="previous_token")
    claim = judged("9", [run(head_functions=also, attention_scores=weak)])
    assert claim.verdict == "holds" and "L0H6 -> L1H2" in claim.checks[0].reason


@pytest.mark.parametrize("number", ["1", "13", "23"])
def test_equalities_of_the_library_hold_and_can_fail(number: str, monkeypatch: pytest.MonkeyPatch):
    claim = judged(number, [small()])
    assert claim.verdict == "holds" and "2 layers of 5 heads" in claim.checks[0].quantity
    if number == "23":
        monkeypatch.setattr("circuits.crosscheck.claims_circuits_exact.product_norm", lambda a, b: a.norm() * b.norm())
    else:
        monkeypatch.setattr("circuits.crosscheck.claims_circuits_exact._largest", lambda gap: float(gap.abs().max()) + 1e-3)
    assert judged(number, [small()]).verdict == "fails"


def test_shapes_are_those_of_the_runs():
    assert shapes([run("a"), run("b")], shallow()) == [(2, 8), (1, 8)] and shapes([], None) == [(2, 8)]
    assert [str(shape) for shape in shapes([small(1)], None)] == ["1 layer of 5 heads"]


def test_planted_heads_are_found_and_untrained_ones_are_not(monkeypatch: pytest.MonkeyPatch):
    """With few heads and pairs; the whole of it is a science test."""
    monkeypatch.setattr(claims_circuits_planted, "UNTRAINED", 32)
    monkeypatch.setattr(claims_circuits_planted, "PAIRS", 40)
    monkeypatch.setattr(claims_circuits_planted, "NOISES", (0.4,))
    nothing = judged("22", [])
    rate, uniform = nothing.checks
    assert rate.values == (0.0,) and rate.verdict == "not testable here" and uniform.verdict == "holds"
    planted = judged("24", [])
    assert the(planted, "share of planted").verdict == the(planted, "least area").verdict == "holds"
    assert the(planted, "mean area, noise 0.4").measured < 0.9


def test_p_counts_wrong_partners_that_are_as_near():
    table = np.full((4, 4), 1.0)
    np.fill_diagonal(table, 0.0)
    table[0, 1] = 1e-12
    assert matched(table, 1e-10) == Reading(0.0, p=2 / 13, least_p=1 / 13)
    assert against(0.0, [1.0, 2.0], 1e-10) == Reading(0.0, p=1 / 3, least_p=1 / 3)


def test_intervals_by_hand():
    found = measured(1.0, 0.5, 3)
    assert (found.low, found.high) == pytest.approx((1 - 4.302653 * 0.5, 1 + 4.302653 * 0.5))
    assert np.isnan(measured(1.0, np.nan, 3).low) and measured(1.0, 0.0, 3).high == 1.0
    found = ratio((2.0, 0.2), (4.0, 0.8), 3)
    assert found.value == 0.5 and found.high - 0.5 == pytest.approx(4.302653 * np.hypot(0.05, 0.1))
    found = share(3, 3)
    assert (found.value, found.low, found.p, found.least_p) == pytest.approx((1.0, 0.025 ** (1 / 3), 0.125, 0.125))
    with pytest.raises(Lacking):
        ratio((1.0, 0.1), (0.0, 0.1), 3)


def test_correlation_and_its_exchanges():
    x = np.array([[1.0, 2.0, 3.0, 4.0]])
    found = correlated(x, np.array([[1.0, 2.0, 3.0, 5.0]]))
    r = np.corrcoef([1, 2, 3, 4], [1, 2, 3, 5])[0, 1]
    assert found.value == pytest.approx(r) and (found.p, found.least_p) == pytest.approx((1 / 24, 1 / 24))
    assert found.low == pytest.approx(np.tanh(np.arctanh(r) - 1.959964))
    # Heads stay in their layers: between two layers of two heads there are four arrangements.
    two = correlated(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert two.least_p == 1 / 4
    with pytest.raises(Lacking, match="2 heads have both"):
        correlated(x, np.array([[1.0, 2.0, np.nan, np.nan]]))


def test_leaving_out_heads_sees_what_heads_share():
    """A share that writers differ in by themselves has the error of so many writers, not of so many pairs."""
    values = np.zeros((1, 4, 50))
    values[:, :2] = 1.0
    found = jackknifed(values)
    by_writer = np.array([1.0, 1.0, 0.0, 0.0])
    assert (found.high - found.value) / 3.182446 == pytest.approx(by_writer.std(ddof=1) / 2)


def test_changes_are_found_where_they_are():
    found = change(STEPS, rise(6.0, 1.0))
    assert found.low <= 6.0 <= found.high and found.at == pytest.approx(6.0, abs=0.15)
    assert least(STEPS, (U - 3.0) ** 2).at == pytest.approx(3.0, abs=0.2)
    loss = 7.0 - rise(2.0, 3.0, width=0.8) - rise(7.0, 0.5)
    found = bump(STEPS, loss)
    assert found.at == pytest.approx(7.0, abs=0.3) and found.size > 0.1
    assert bump(STEPS, 7.0 - 3.0 * (1 - np.exp(-U))).size == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(Lacking, match="needs 5 checkpoints"):
        change(STEPS[:3], np.zeros(3))


def test_noise_widens_the_interval_of_a_change():
    noisy = rise(6.0, 1.0, width=1.0) + 0.05 * np.random.default_rng(0).standard_normal(len(STEPS))
    clean, rough = change(STEPS, rise(6.0, 1.0, width=1.0)), change(STEPS, noisy)
    assert rough.high - rough.low > clean.high - clean.low
    assert rough.low <= np.quantile(rough.drawn, 0.025) < np.quantile(rough.drawn, 0.975) <= rough.high


def test_chance_of_being_together_and_in_order():
    """Three changes in the same place of U doublings, by the closed form; simulated for a span that is not small."""
    events = [change(STEPS, rise(at, 1.0, width=0.05)) for at in (2.0, 4.0, 6.0)]
    u = doublings(STEPS)
    found = together(u, events)
    assert found.value == pytest.approx(4.0 / u[-1], abs=0.03)
    spans = np.ptp(np.random.default_rng(0).uniform(0, 1, (20_000, 3)), axis=1)
    assert found.p == pytest.approx(np.mean(spans <= found.value), abs=0.015)
    assert found.least_p < 0.01 < found.p
    assert in_order(u, events).value == 3.0
    backwards = in_order(u, events[::-1])
    assert (backwards.value, backwards.low, backwards.high, backwards.p) == (0.0, 0.0, 0.0, 1.0)
    assert in_order(u, events).least_p == in_order(u, events).p == pytest.approx(1 / 6)


def test_events_between_the_same_checkpoints_are_not_in_order():
    event = change(STEPS, rise(6.0, 1.0))
    later = event._replace(at=event.at + 1e-3, drawn=event.drawn + 1e-3)
    found = in_order(doublings(STEPS), [event, later])
    assert found.value == 1.0 and found.low == 0.0
