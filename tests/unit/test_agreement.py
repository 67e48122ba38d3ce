"""Three witnesses of heads: findings and corrections by hand, every missing measure, and when curves change."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.stats import norm, t

from circuits.crosscheck import agreement as module
from circuits.crosscheck.agreement import AGAINST, FOR, PREDICTIONS, THERE, UNDECIDED, Prediction, agreement, holm
from circuits.crosscheck.planted import HEADS, INDUCTION_HEAD, LAYERS, PREVIOUS_HEAD, STEPS, planted_evidence
from circuits.crosscheck.testimony import any_of, curve_of, read_testimony
from circuits.crosscheck.timing import change_point, clock, lag, level, read_curves
from circuits.crosscheck.witnesses import (
    Effects,
    Finding,
    composition_effects,
    edge_effects,
    k_term_effects,
    rise_effects,
    standing,
)
from circuits.dynamics.emergence import emerged
from circuits.models.heads import Head

LAST = STEPS[-1]
INDUCTION, PREVIOUS = "induction", "previous token"


@pytest.fixture(scope="module")
def results() -> dict[str, xr.Dataset]:
    return planted_evidence(0)


@pytest.fixture(scope="module")
def found(results: dict[str, xr.Dataset]) -> xr.Dataset:
    return agreement(results)


def says(data: xr.Dataset, head: Head, prediction: str, name: str = "says") -> Any:
    return data[name].sel(layer=head.layer, head=head.head, prediction=prediction).item()


def of(data: xr.Dataset, name: str, head: Head) -> str:
    return str(data[name].values[head.layer, head.head])


def last_roles(results: dict[str, xr.Dataset]) -> xr.DataArray:
    return results["head_functions"]["role"].isel(step=-1, drop=True)


def named(role: xr.DataArray, **words: str) -> xr.DataArray:
    """Roles with other words for some heads."""
    names = role.values.astype(object)
    for head, word in words.items():
        at = Head.parse(head)
        names[at.layer, at.head] = word
    return role.copy(data=names.astype("U"))


# Findings


def test_standing_by_hand() -> None:
    """Of 0, 1, 2, 3 the median is 1.5 and moduli of differences are .5, .5, 1.5, 1.5; four values have three others."""
    far, unit = standing(np.array([0.0, 1, 2, 3, 10]), np.array([0.0, 0, 0, 0, 3]))
    assert far[-1] == pytest.approx(8.5) and unit[-1] == pytest.approx(np.hypot(1.4826, 3))
    assert far[0] == pytest.approx(-2.5) and unit[0] == pytest.approx(1.4826)  # others 1, 2, 3, 10: moduli 1.5, .5, .5, 7.5
    assert all(np.isnan(part).all() for part in standing(np.arange(4.0), np.zeros(4)))


def pairs(effect: np.ndarray, present: np.ndarray, p: float = 0.01) -> Effects:
    flat = np.full_like(effect, p)
    return Effects(10 * effect, flat, effect, np.ones_like(effect), flat, present, present, present, norm.sf, 0.001)


def test_a_head_with_partners_by_hand() -> None:
    """p times the partners, p_less of the strongest pair that is not the head's, missing only if it is with every partner."""
    effect = np.full((2, 2, 2, 2), np.nan)
    effect[0, :, 1] = [[3.0, 0.5], [4.0, 1.0]]
    present = effect >= 3
    of_last = pairs(effect, present).of_pairs(Head(1, 1), [Head(0, 0), Head(0, 1)], into=False)
    assert (of_last.value, of_last.p, of_last.smallest_p, of_last.partner) == (10.0, 0.02, 0.002, "L0H1")
    # Against the 4 of L0H1 -> L1H0: half of it is 2, with half its error; the 1 is nearer to that than the 0.5.
    assert of_last.p_less == pytest.approx(norm.sf(1 / np.hypot(1, 0.5))) and not of_last.missing
    first = pairs(effect, present).of_pairs(Head(0, 0), [Head(1, 0)], into=True)
    assert first.present and first.p_less == pytest.approx(norm.sf(-1 / np.hypot(1, 0.5)))
    # The only other pairs are the head's own: there is nothing to compare it with.
    assert np.isnan(pairs(effect, present).of_pairs(Head(1, 0), [Head(0, 0)], into=False).p_less)
    assert pairs(effect, present).of_pairs(Head(0, 0), [Head(0, 1)], into=True).why == "not measured"
    far = pairs(10 * effect, present).of_pairs(Head(1, 1), [Head(0, 0), Head(0, 1)], into=False)
    assert far.missing and not far._replace(present=True).missing
    capped = pairs(effect, present, 0.7).of_pairs(Head(1, 1), [Head(0, 0), Head(0, 1)], into=False)
    assert capped.p == 1.0


def test_any_of_several_windows() -> None:
    one, two = Finding(1.0, p=0.01, p_less=0.2), Finding(2.0, p=0.4, p_less=0.01)
    both = any_of([one, two, Finding(why="no checkpoint")])
    assert (both.value, both.p, both.p_less, both.why) == (1.0, 0.02, 0.2, "")
    assert any_of([two._replace(present=True), one]).value == 2.0
    assert any_of([Finding(why="no checkpoint")]).why == "no checkpoint" and any_of([]).why


def test_composition_needs_every_null(results: dict[str, xr.Dataset]) -> None:
    """False discovery, covariance and the other pairs of the two layers; z alone where draws are too few for a q."""
    data = results["composition"].isel(step=0)
    planted = (0, 6, 1, 0)
    at = dict(zip(("src_layer", "src_head", "dst_layer", "dst_head"), planted, strict=True)) | {"mode": "K"}

    def present(data: xr.Dataset) -> bool:
        return bool(composition_effects(data).present[planted])

    def changed(name: str, number: float) -> xr.Dataset:
        other = data.copy(deep=True)
        other[name].loc[at] = number
        return other

    assert present(data) and composition_effects(data).present.sum() == 1
    assert not present(changed("value", 0.094)) and composition_effects(changed("value", 0.094)).beyond[planted]
    for name, number in (("q", 0.06), ("q_covariance", 0.06), ("value", 0.094)):
        assert not present(changed(name, number)), name
    assert present(changed("q_covariance", np.nan))
    # Three writers that compose with three readers do not hide each other.
    several = data.copy(deep=True)
    for name in ("value", "q", "q_covariance"):
        block = several[name].sel(mode="K").transpose("src_layer", "src_head", "dst_layer", "dst_head").values
        block[0, 5:, 1, :3] = block[planted]
    assert composition_effects(several).present.sum() == 9
    # 192 pairs at 1 / 2001 are .096 at best: q says nothing, z of 5 or more does.
    few = changed("q", 0.9).assign_attrs(smallest_p=1 / 2001)
    assert present(few) and not present(few.assign(z=few["z"].clip(max=4.9)))


def test_edges_are_read_by_name(results: dict[str, xr.Dataset]) -> None:
    """Key edges between heads alone; beyond error and out among those of their kind."""
    data = results["edge_effects_repeats"].isel(step=0)
    effects = edge_effects(data, LAYERS, HEADS)
    assert np.argwhere(effects.present).tolist() == [[0, 6, 1, 0]] and np.isfinite(effects.value).sum() == HEADS**2
    assert effects.value[0, 3, 1, 2] == data["value"].sel(edge="L0H3 -> L1H2.k").item()
    p = effects.p[0, 3, 1, 2]
    assert p == pytest.approx(t.sf(effects.value[0, 3, 1, 2] / effects.stderr[0, 3, 1, 2], 7))
    # As large and as certain, but no larger than the others of its kind.
    crowd = data.copy(deep=True)
    keys = [str(edge).endswith(".k") and "H" in str(edge).split()[0] for edge in data["edge"].values]
    crowd["value"][keys], crowd["stderr"][keys] = np.linspace(6, 8, sum(keys)), 0.1
    assert not edge_effects(crowd, LAYERS, HEADS).present.any() and edge_effects(crowd, LAYERS, HEADS).p[0, 6, 1, 0] < 1e-6
    exact = data.copy(deep=True)
    exact["stderr"].loc[{"edge": "L0H3 -> L1H2.k"}] = 0.0
    assert np.isnan(edge_effects(exact, LAYERS, HEADS).effect[0, 3, 1, 2])
    with pytest.raises(ValueError, match=r"an edge L0H4 -> L1H0.k, and roles of 2 layers of 4 heads"):
        edge_effects(data, LAYERS, 4)


def test_the_k_term_is_that_of_the_partner(results: dict[str, xr.Dataset]) -> None:
    composition = composition_effects(results["composition"].isel(step=0))
    data = results["k_term_copying"].isel(step=0)
    effects = k_term_effects(data, composition)
    assert effects.effect[1, 0] == data["z"].values[0, 6, 1, 0] and np.isnan(effects.effect[0]).all()
    for head in range(HEADS):
        partner = int(composition.effect[0, :, 1, head].argmax())
        assert effects.effect[1, head] == data["z"].values[0, partner, 1, head]
    near = k_term_effects(data.assign(z=data["z"].clip(max=4.9)), composition)
    assert near.present[1, 0] and not near.shown[1, 0] and effects.shown[1, 0]
    # A negative K-term, however far out, is none that copies.
    assert not k_term_effects(data.assign(z=-data["z"]), composition).present[1, 0]


def test_a_rise_by_hand() -> None:
    rise = np.array([[0.0, 1, 2], [3, 10, np.nan]])
    stderr = np.array([[0.0, 0, 0], [0, 3, 1]])
    effects = rise_effects(rise, stderr)
    unit = np.hypot(1.4826, 3)
    assert effects.effect[1, 1] == 8.5 and effects.error[1, 1] == pytest.approx(unit * np.sqrt(1 + np.pi / 8))
    assert effects.p[1, 1] == pytest.approx(max(t.sf(8.5 / unit / np.sqrt(1 + np.pi / 8), 0.37 * 3), norm.sf(10 / 3)))
    assert not effects.present[1, 1] and np.isnan(effects.p[1, 2]) and not effects.present[1, 2]
    many = np.concatenate([np.linspace(-0.1, 0.1, 15), [2.0]]).reshape(2, 8)
    sure = np.full((2, 8), 0.05)
    assert np.argwhere(rise_effects(many, sure).present).tolist() == [[1, 7]]
    # Out among others that all fall, without a rise of its own by two errors: 1.8 of them have a p below .05.
    own = rise_effects(many - 1.91, sure)
    assert not own.present.any() and own.p[1, 7] < 0.05
    # One head in twenty is out by chance; what others are compared with must be out among all that were looked at.
    for last, shown in ((0.35, False), (2.0, True)):
        effects = rise_effects(np.where(many == 2, last, many), sure)
        assert effects.present[1, 7] and effects.shown[1, 7] == shown
    with np.errstate(all="raise"):
        assert np.isnan(rise_effects(np.array([[1.0, 2.0]]), np.ones((1, 2))).effect).all()


# Curves and windows


def test_levels_by_hand() -> None:
    """Steps 0, 1, 7 have shares 1/6, 3/6, 2/6 of log time; what is missing leaves its share to the others."""
    value = np.array([6.0, 2, 3])[:, None, None] * np.ones((3, 1, 2))
    value[1, 0, 1] = np.nan
    curves = read_curves(dataset(np.array([0, 1, 7]), value, 0.6 + 0 * value))
    mean, error = level(curves, np.ones(3, dtype=bool))
    assert mean[0] == pytest.approx([3.0, (6 + 2 * 3) / 3]) and error[0] == pytest.approx([0.6, 0.6])
    assert level(curves, np.array([False, True, False]))[0][0].tolist() == pytest.approx([2.0, np.nan], nan_ok=True)


def dataset(steps: np.ndarray, value: np.ndarray, stderr: np.ndarray) -> xr.Dataset:
    dims = ("step", "layer", "head")
    coords = {"step": steps, "layer": np.arange(value.shape[1]), "head": np.arange(value.shape[2])}
    return xr.Dataset({"value": (dims, value), "stderr": (dims, stderr)}, coords=coords)


def test_only_sampling_that_is_ok_counts(results: dict[str, xr.Dataset]) -> None:
    curves = results["rllc_mix"].isel(step=slice(None, None, -1)).copy(deep=True)
    curves["state"][3, 1, 2] = "not mixed"
    known = read_curves(curves)
    assert np.argwhere(np.isnan(known.value)).tolist() == [[len(STEPS) - 4, 1, 2]] and known.steps.tolist() == list(STEPS)
    assert np.isnan(known.stderr[len(STEPS) - 4, 1, 2])


def test_which_curve_stands_for_the_run() -> None:
    empty = xr.Dataset()
    names = ("rllc_prose", "rllc_code", "rllc_shuffled_code", "rllc_mix_kl", "llc_mix")
    assert curve_of(dict.fromkeys((*names, "rllc_mix"), empty)) == "rllc_mix"
    assert curve_of(dict.fromkeys(names, empty)) == "rllc_code" and curve_of({"rllc_mix_kl": empty}) == ""


def test_windows_are_a_doubling_to_either_side(results: dict[str, xr.Dataset], found: xr.Dataset) -> None:
    """The role emerged in (1875, 2000]: from 938 to 1875, and from 2000 to 4000; where nothing lies there, the next outside."""
    assert says(found, INDUCTION_HEAD, "rllc_rise", "partner") == "steps 1024-1875 to 2000-4000"
    sparse = results["rllc_mix"].sel(step=[0, 512, 6000, 10000])
    assert says(agreement(results | {"rllc_mix": sparse}), INDUCTION_HEAD, "rllc_rise", "partner") == "steps 512 to 6000"
    early = agreement(results | {"rllc_mix": results["rllc_mix"].sel(step=[0, 512, 1024])})
    assert says(early, INDUCTION_HEAD, "rllc_rise", "reason") == "coefficients do not reach around it"


# Verdicts


def test_holm_by_hand() -> None:
    """Of three p in order .01, .02, .04: 3 times, 2 times, once, never less than the one before."""
    assert holm(np.array([0.04, np.nan, 0.01, 0.015])) == pytest.approx([0.04, np.nan, 0.03, 0.03], nan_ok=True)
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0] and holm(np.array([])).size == 0


PRESENT, MISSING = Finding(1.0, p=1e-4, p_less=0.9, present=True), Finding(0.0, p=0.8, p_less=1e-4)
OPEN, UNSEEN = Finding(0.1, p=0.2, p_less=0.3), Finding(0.0, p=0.8)
WEAK = PRESENT._replace(p_less=1e-4)


@pytest.mark.parametrize(
    ("expected", "finding", "corrected", "answer", "reason"),
    [
        ("there", PRESENT, 1.0, FOR, ""),
        ("there", WEAK, 1e-3, FOR, ""),
        ("there", MISSING, 0.04, AGAINST, ""),
        ("there", MISSING, 0.06, UNDECIDED, "missing, but not beyond the correction"),
        ("there", MISSING._replace(beyond=True), 0.001, UNDECIDED, "beyond chance, but not out among others"),
        ("none", MISSING._replace(beyond=True), 1.0, FOR, ""),
        ("there", OPEN, 1.0, UNDECIDED, "neither there nor shown to be missing"),
        ("there", UNSEEN, np.nan, UNDECIDED, "no other head shows it"),
        ("none", MISSING, 1.0, FOR, ""),
        ("none", PRESENT, 0.04, AGAINST, ""),
        ("none", PRESENT, 0.06, UNDECIDED, "there, but not beyond the correction"),
        ("none", WEAK, 0.001, UNDECIDED, "there, but less than half of what another head shows"),
        ("none", OPEN, 0.001, UNDECIDED, "neither there nor shown to be missing"),
        ("none", UNSEEN, 1.0, UNDECIDED, "no other head shows it"),
        ("none", Finding(why="no rllc_mix"), np.nan, UNDECIDED, "no rllc_mix"),
        ("", Finding(), np.nan, "", ""),
    ],
)
def test_what_a_prediction_says(expected: str, finding: Finding, corrected: float, answer: str, reason: str) -> None:
    assert module._says(Prediction(expected, finding), corrected, module.WEIGHTS) == (answer, reason)


def test_a_small_rise_that_is_out_among_others_counts() -> None:
    assert module._says(Prediction("none", WEAK), 0.001, module.CURVE) == (AGAINST, "")


def test_only_what_could_speak_against_is_corrected_for() -> None:
    assert (Prediction(THERE, MISSING).p_against, Prediction("none", MISSING).p_against) == (1e-4, 0.8)
    assert all(
        np.isnan(one.p_against)
        for one in (Prediction("", MISSING), Prediction(THERE, UNSEEN), Prediction("none", Finding(why="no")))
    )


@pytest.mark.parametrize(
    ("weights", "curve", "verdict", "flag"),
    [
        (FOR, FOR, "agree", "none"),
        (FOR, UNDECIDED, "undecided", "none"),
        (UNDECIDED, FOR, "undecided", "none"),
        (AGAINST, FOR, "disagree", "detector_vs_weights"),
        (UNDECIDED, AGAINST, "disagree", "detector_vs_curve"),
        (AGAINST, AGAINST, "disagree", "detector_vs_weights, detector_vs_curve"),
    ],
)
def test_verdicts(weights: str, curve: str, verdict: str, flag: str) -> None:
    """One prediction for and one against of the same witness is against."""
    assert module._verdict(
        [FOR, weights, "", "", UNDECIDED, "", curve] if weights == AGAINST else [weights, *[""] * 5, curve]
    ) == (
        verdict,
        flag,
    )


def test_the_planted_circuit(results: dict[str, xr.Dataset], found: xr.Dataset) -> None:
    """Every head agrees, by every prediction of its role; partners and numbers are those planted."""
    assert (found["verdict"] == "agree").all() and (found["flag"] == "none").all()
    asked = found["expected"] != ""
    assert (found["says"].values[asked.values] == FOR).all()
    assert (
        says(found, INDUCTION_HEAD, "k_composition_from", "partner"),
        says(found, PREVIOUS_HEAD, "key_edge_into", "partner"),
    ) == (
        "L0H6",
        "L1H0",
    )
    assert says(found, INDUCTION_HEAD, "k_composition_from", "smallest_p") == pytest.approx(8 / 10_001)
    assert says(found, INDUCTION_HEAD, "key_edge_from", "value") == results["edge_effects_repeats"]["value"].max().item()
    expected = {name: says(found, INDUCTION_HEAD, name, "expected") for name in PREDICTIONS}
    assert [name for name, word in expected.items() if word] == [
        *("k_composition_from", "key_edge_from", "ov_copying", "k_term_copying", "rllc_rise")
    ]
    other = {str(word) for word in found["expected"].sel(layer=0, head=0).values}
    assert other == {"none", ""} and says(found, Head(0, 0), "k_composition_from", "expected") == ""


def test_the_form_of_the_result(results: dict[str, xr.Dataset], found: xr.Dataset) -> None:
    assert found["says"].dims == ("layer", "head", "prediction") and found.sizes["prediction"] == len(PREDICTIONS)
    assert found["witness"].sel(prediction="rllc_rise").item() == "complexity"
    assert (found.attrs["measure"], found.attrs["step"], found.attrs["curve"]) == ("agreement", LAST, "rllc_mix")
    assert found.attrs["n_tested"] == np.isfinite(found["corrected"]).sum() and '"share":0.5' in found.attrs["config"]
    before = {name: data.copy(deep=True) for name, data in results.items()}
    xr.testing.assert_identical(agreement(results), found)
    for name, data in results.items():
        xr.testing.assert_identical(data, before[name])


@pytest.mark.parametrize(
    ("absent", "prediction", "reason"),
    [
        ("composition", "k_composition_from", "no composition"),
        ("k_term_copying", "k_term_copying", "no k_term_copying"),
        ("weight_spectra", "ov_copying", "no weight_spectra"),
        ("edge_effects_repeats", "key_edge_from", "no edge_effects_repeats"),
        ("rllc_mix", "rllc_rise", "no rllc_mix and no coefficient on another text"),
    ],
)
def test_a_missing_measure_is_undecided(results: dict[str, xr.Dataset], absent: str, prediction: str, reason: str) -> None:
    """And its data at another checkpoint alone."""
    without = agreement({name: data for name, data in results.items() if name != absent})
    assert (says(without, INDUCTION_HEAD, prediction), says(without, INDUCTION_HEAD, prediction, "reason")) == (UNDECIDED, reason)
    assert not (without["verdict"] == "disagree").any()
    assert (without["verdict"] == ("undecided" if absent == "rllc_mix" else "agree")).all()
    if absent != "rllc_mix":
        elsewhere = agreement(results | {absent: results[absent].assign_coords(step=[500])})
        assert says(elsewhere, INDUCTION_HEAD, prediction, "reason") == f"{reason} at step 10000"


def test_roles_alone_one_layer_and_few_heads(results: dict[str, xr.Dataset]) -> None:
    alone = agreement({"head_functions": results["head_functions"]})
    assert (alone["verdict"] == UNDECIDED).all() and alone.attrs["curve"] == "none"
    bare = agreement({}, last_roles(results))
    assert (bare["verdict"] == UNDECIDED).all() and says(bare, Head(0, 0), "k_composition_into", "reason") == "no composition"
    one = agreement({name: results[name].isel(layer=[0]) for name in ("head_functions", "rllc_mix", "weight_spectra")})
    assert (one["verdict"] == UNDECIDED).all()
    assert says(one, Head(0, 6), "k_composition_into", "reason") == "no head in a later layer is called induction"
    few = agreement({name: results[name].isel(head=[0, 6]) for name in ("head_functions", "rllc_mix")})
    assert says(few, Head(1, 0), "rllc_rise", "reason") == "too few others to compare with"
    lowest = agreement({"head_functions": results["head_functions"]}, named(last_roles(results), L0H0=INDUCTION))
    assert says(lowest, Head(0, 0), "k_composition_from", "reason") == "there is no head in an earlier layer"


def test_missing_values_are_not_measured(results: dict[str, xr.Dataset]) -> None:
    """A head whose coefficient was not sampled, and a checkpoint that failed."""
    curves = results["rllc_mix"].copy(deep=True)
    curves["state"][:, 1, 0] = "diverged"
    other = agreement(results | {"rllc_mix": curves})
    assert (
        says(other, INDUCTION_HEAD, "rllc_rise", "reason") == "not measured" and of(other, "verdict", INDUCTION_HEAD) == UNDECIDED
    )
    numbers = [name for name, values in results["composition"].data_vars.items() if values.dtype.kind == "f"]
    failed = results["composition"].assign({name: results["composition"][name] * np.nan for name in numbers})
    assert says(agreement(results | {"composition": failed}), PREVIOUS_HEAD, "k_composition_into", "reason") == "not measured"


def test_roles_that_predict_nothing(results: dict[str, xr.Dataset]) -> None:
    """Not measured, or kept in fewer than half of draws; a confidence does not pass to another role."""
    roles = results["head_functions"].copy(deep=True)
    roles["confidence"][-1, 1, 0] = 0.4
    roles["role"] = roles["role"].astype("<U20")
    roles["role"][-1, 0, 2] = "not measured"
    unsure = agreement(results | {"head_functions": roles})
    for head, reason in ((INDUCTION_HEAD, "the head keeps its role in 40% of draws"), (Head(0, 2), "not measured")):
        assert of(unsure, "verdict", head) == UNDECIDED and says(unsure, head, "rllc_rise", "reason") == reason
        assert (unsure["says"].values[head.layer, head.head] == "").all()
    renamed = agreement(results | {"head_functions": roles}, named(last_roles(results), L1H0="multigram"))
    assert np.isnan(renamed["confidence"].values[1, 0]) and renamed["confidence"].values[0, 0] == 1


def test_who_is_called_wrongly(results: dict[str, xr.Dataset]) -> None:
    """A previous-token head whose reader is not called induction is undecided, and says who the reader is."""
    swapped = agreement(results, named(last_roles(results), L1H0="resting", L1H3=INDUCTION))
    reason = says(swapped, PREVIOUS_HEAD, "k_composition_into", "reason")
    assert reason == "it is there with L1H0, which behaviour calls resting" and of(swapped, "verdict", PREVIOUS_HEAD) == UNDECIDED
    nobody = agreement(results, named(last_roles(results), L1H0="resting"))
    assert says(nobody, PREVIOUS_HEAD, "k_composition_into", "reason") == "no head in a later layer is called induction"
    # L1H3 takes the window of the head whose history has the role.
    assert says(swapped, Head(1, 3), "rllc_rise", "partner") == "steps 1024-1875 to 2000-4000"


def test_windows_are_asked_without_brackets(results: dict[str, xr.Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which are measured at few checkpoints; roles at all others come from the rest."""
    given: list[set[str]] = []

    def roles(measured: dict[str, xr.Dataset]) -> None:
        given.append(set(measured))

    monkeypatch.setattr("circuits.crosscheck.testimony.roles_over_training", roles)
    agreement(results | {"bracket_scores": xr.Dataset()})
    assert given == [set(results)]


def test_roles_with_their_own_history(results: dict[str, xr.Dataset]) -> None:
    """Histories move windows: induction from step 512 on, where no curve rises."""
    role = results["head_functions"]["role"]
    names = role.values.astype(object)
    names[:, 1, 0] = np.where(np.array(STEPS) >= 512, INDUCTION, "none")
    early = agreement(results, role.copy(data=names.astype("U")))
    assert says(early, INDUCTION_HEAD, "rllc_rise", "partner") == "steps 128-256 to 512-1024"
    assert says(early, INDUCTION_HEAD, "rllc_rise") != FOR
    whole = agreement(results, results["head_functions"])
    xr.testing.assert_identical(whole.drop_attrs(), agreement(results).drop_attrs())
    # From the first checkpoint on: since step 0.
    names[:, 1, 0] = INDUCTION
    assert read_testimony(results, role.copy(data=names.astype("U"))).windows(INDUCTION) == [(0.0, 0.0)]
    last = agreement({"head_functions": results["head_functions"].isel(step=[-1]), "rllc_mix": results["rllc_mix"]})
    assert says(last, INDUCTION_HEAD, "rllc_rise", "reason") == "no such role emerged within the run"


def test_bad_input_is_refused(results: dict[str, xr.Dataset], unchecked: None) -> None:
    bad: Any = [results]
    with pytest.raises(TypeError, match=r"results are no mapping from names to Datasets: pass Evidence\.results"):
        agreement(bad)
    with pytest.raises(ValueError, match="results have no head_functions, the roles of heads"):
        agreement({"rllc_mix": results["rllc_mix"]})
    with pytest.raises(ValueError, match="roles must be words with dims layer, head"):
        agreement(results, last_roles(results).isel(layer=0))
    with pytest.raises(ValueError, match="roles must be words with dims layer, head"):
        agreement(results, results["rllc_mix"])
    with pytest.raises(ValueError, match=r"rllc_mix has \{'layer': 2, 'head': 3\}, roles"):
        agreement(results | {"rllc_mix": results["rllc_mix"].isel(head=[0, 1, 2])})
    with pytest.raises(ValueError, match=r"composition has .*'src_head': 4"):
        agreement(results | {"composition": results["composition"].isel(src_head=slice(4))})


# Timing


def test_a_change_point_by_hand() -> None:
    """Steps of whole u: a rise from u = 3 to 4 alone is between these checkpoints, in the middle; to their neighbours if ends."""
    steps = np.concatenate([[0], 2.0 ** np.arange(1, 8) - 1])  # with unit 1, u is 0, 1, 2, ..., 7
    assert clock(steps, 1.0).tolist() == list(range(8))
    value = np.array([0.0, 0, 0, 0, 1, 1, 1, 1])
    change = change_point(steps, value, np.full(8, 1e-6))
    assert (change.at, change.low, change.high, change.why) == (3.5, 3.0, 4.0, "")
    # Of two rises the larger, per u and not per checkpoint: 1 over one u is more than 1.5 over two.
    kept = np.array([0, 1, 3, 4, 5, 6, 7])
    uneven = change_point(steps[kept], np.array([0.0, 0, 1.5, 2.5, 2.5, 2.5, 2.5]), np.full(7, 1e-6))
    assert (uneven.at, uneven.low, uneven.high) == (3.5, 3.0, 4.0)


def test_a_change_point_has_the_errors_of_its_curve() -> None:
    """Of two rises that differ by half an error the later is larger, and either may be the largest."""
    steps = 2.0 ** np.arange(8) - 1
    value = np.array([0.0, 0, 1, 1, 1, 1, 2.05, 2.05])
    sure, unsure = (change_point(steps, value, np.full(8, error)) for error in (1e-6, 0.1))
    assert (sure.low, sure.high) == (5.0, 6.0) and (unsure.at, unsure.low, unsure.high) == (5.5, 1.0, 6.0)


def test_a_flat_or_short_curve_has_no_change() -> None:
    steps = np.array(STEPS, dtype=float)
    assert (
        change_point(steps, np.linspace(1, 0, len(steps)), np.full(len(steps), 0.1)).why
        == "the curve does not rise beyond its errors"
    )
    value = np.where(np.arange(len(steps)) < 3, 1.0, np.nan)
    assert change_point(steps, value, np.full(len(steps), 0.1)).why == "the curve has 3 checkpoints, its change needs 4"


def test_lags_and_their_states(results: dict[str, xr.Dataset]) -> None:
    """Curve and role together, the curve a factor of four later and earlier; a role from the first checkpoint on; no role."""
    when = emerged(results["head_functions"]["role"])
    for factor, state, expected in ((1.0, "together", 0), (4.0, "role first", 2), (0.25, "curve first", -2)):
        lags = lag(when, planted_evidence(0, delay=factor)["rllc_mix"], draws=50)
        of_both = [lags.sel(layer=head.layer, head=head.head) for head in (PREVIOUS_HEAD, INDUCTION_HEAD)]
        for one in of_both:
            assert one["state"].item() == state and abs(one["value"].item() - expected) < 0.4, factor
            assert one["low"] < one["value"] < one["high"]
    silent = lags["state"].values == "untestable"
    assert ((lags["reason"].values != "") == silent).all() and (np.isnan(lags["value"].values) == silent).all()
    assert lags.attrs["unit"] == 16 and lags.attrs["measure"] == "role_curve_lag"
    xr.testing.assert_identical(lags, lag(when, planted_evidence(0, delay=0.25)["rllc_mix"], draws=50))
    since_start = when.assign(before=when["before"] * np.nan)
    one = lag(since_start, results["rllc_mix"], draws=50).sel(layer=1, head=0)
    assert one["state"].item() == "together" and one["high"].item() == pytest.approx(np.log2(1 + one["change_high"].item() / 16))
    never = lag(when.assign(value=when["value"] * np.nan), results["rllc_mix"], draws=50)
    assert (never["state"] == "untestable").all()
    assert never["reason"].values[1, 0] == "no role emerged within the run" and np.isfinite(never["change"].values[1, 0])


def test_the_lags_interval_has_every_difference(results: dict[str, xr.Dataset]) -> None:
    when = emerged(results["head_functions"]["role"])
    one = lag(when, results["rllc_mix"], draws=50).sel(layer=1, head=0)
    since, until = clock(np.array([when[name].values[1, 0] for name in ("before", "value")]), 16.0)
    low, high = clock(np.array([one[f"change_{name}"].item() for name in ("low", "high")]), 16.0)
    assert [one["low"].item(), one["high"].item()] == pytest.approx([low - until, high - since])


def test_bad_curves_are_refused(results: dict[str, xr.Dataset], unchecked: None) -> None:
    when = emerged(results["head_functions"]["role"])
    bad: Any = when["value"]
    with pytest.raises(TypeError, match="emergence has no value and before; pass what emerged"):
        lag(bad, results["rllc_mix"])
    with pytest.raises(TypeError, match="curves are a ndarray; pass a Dataset"):
        lag(when, np.zeros(3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="curves need value and stderr with dims step, layer, head"):
        lag(when, results["rllc_mix"].isel(layer=0))
    with pytest.raises(ValueError, match="curves and emergence have other layers or heads"):
        lag(when, results["rllc_mix"].isel(head=slice(3)))
    with pytest.raises(ValueError, match="curves have no checkpoint after step 0"):
        lag(when, results["rllc_mix"].sel(step=[0]))
    with pytest.raises(ValueError, match="draws=3: need a whole number of at least 20"):
        lag(when, results["rllc_mix"], draws=3)
