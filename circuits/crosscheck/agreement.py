"""Do three witnesses agree about a head: what it does, what its weights and paths say, and how its coefficient grew?

Behaviour names a role, and a role predicts what the two other witnesses find at the last checkpoint that has roles. Whether an
effect is "there" (present) or "none" (missing) is tested as ``circuits.crosscheck.witnesses`` says.

    prediction          induction               previous token              any other role
    k_composition_from  there, any earlier head                             none, from previous-token heads
    key_edge_from       there, any earlier head                             none, from previous-token heads
    ov_copying          there
    k_term_copying      there
    k_composition_into                          there, an induction head    none, into induction heads
    key_edge_into                               there, an induction head    none, into induction heads
    rllc_rise           there, in the window    there, in the window of     none, in windows of induction
                        of its role             its role or of induction

    for         "there" and it is present; "none" and it is missing
    against     "there" and it is missing, and not even beyond chance; "none" and it is present, of weights and paths also not
                shown to be below ``SHARE`` of the strongest other head's. In both cases beyond Holm's correction, at ``ALPHA``,
                for all predictions of all heads that have a p which could speak against them
    undecided   else, with the reason

The last belongs to the witness "complexity", all others to "weights and paths". A head's verdict is "agree" where each of the two
has a prediction for and none against, "disagree" where one is against, else "undecided"; its flag says who is against,
``detector_vs_weights`` or ``detector_vs_curve``. For is not corrected: it takes both witnesses. Absence counts only where the run
shows what is absent, so that in a run without an induction circuit heads are undecided whatever they are called. A previous-token
head that writes to a head which behaviour calls otherwise than induction is undecided: one of the two is called wrongly.

The window of a role are the two checkpoints between which it emerged; the curve after it is compared with the curve before it
(``circuits.crosscheck.testimony``). A head whose history has another role than it is given takes the windows of heads that have
it. Of several windows any will do. A role that was not measured, or kept in fewer than ``SURE`` of draws, predicts nothing.

Sources: induction circuits: Elhage et al. 2021, Olsson et al. 2022; curves: Wang et al. 2024; correction: Holm 1979.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from circuits.crosscheck import witnesses
from circuits.crosscheck.partitions import ALPHA
from circuits.crosscheck.testimony import AROUND, SOURCES, Testimony, read_testimony
from circuits.crosscheck.witnesses import Finding
from circuits.detectors.roles import NOT_MEASURED
from circuits.models.heads import Head
from circuits.results import array_hash, labelled

if TYPE_CHECKING:
    import xarray as xr

SURE = 0.5
INDUCTION, PREVIOUS = "induction", "previous token"
WEIGHTS, CURVE = "weights and paths", "complexity"
PREDICTIONS = {
    "k_composition_from": WEIGHTS,
    "key_edge_from": WEIGHTS,
    "ov_copying": WEIGHTS,
    "k_term_copying": WEIGHTS,
    "k_composition_into": WEIGHTS,
    "key_edge_into": WEIGHTS,
    "rllc_rise": CURVE,
}
FLAGS = {WEIGHTS: "detector_vs_weights", CURVE: "detector_vs_curve"}
FOR, AGAINST, UNDECIDED = "for", "against", "undecided"
AGREE, DISAGREE, NO_FLAG = "agree", "disagree", "none"
THERE, NONE, NOTHING = "there", "none", ""


class Rule:
    """What the verdicts depend on beside the results."""

    name = "agreement"
    version = 1

    def spec(self) -> dict[str, Any]:
        bars = {name.lower(): getattr(witnesses, name) for name in ("OUT", "ERRORS", "ORIENTED", "SHARE", "FEWEST")}
        return {"alpha": ALPHA, "around": AROUND, "sure": SURE} | bars


class Prediction(NamedTuple):
    """What a head's role predicts of one effect ("there", "none" or nothing), and what was found."""

    expected: str
    found: Finding

    @property
    def p_against(self) -> float:
        """The p that would speak against the prediction; NaN where nothing could."""
        if not self.expected or self.found.why:
            return np.nan
        return self.found.p_less if self.expected == THERE else self.found.p


def agreement(results: "Mapping[str, xr.Dataset]", roles: "xr.DataArray | xr.Dataset | None" = None) -> "xr.Dataset":
    """Lay what each head does beside what its weights, paths and coefficient say.

    Args:
        results: of one run by the names of their measures, such as ``Evidence.results``; what is missing leaves predictions
            undecided. roles: in place of those in ``results["head_functions"]``: words ``(layer, head)``, with ``step`` for their
            history too, or a Dataset with ``role`` and ``confidence``.

    Returns:
        ``Dataset(layer, head, prediction)``: ``says`` ("for", "against", "undecided"; "" where the role predicts nothing),
        ``expected`` ("there", "none", ""), ``value`` and ``stderr`` in the measure's units, ``p`` of no effect, ``smallest_p``
        (NaN: no bound), ``p_less`` of an effect at least half of the strongest other head's, ``corrected``, the one of them that
        could speak against it after Holm's correction, ``partner`` (the head, or the steps compared) and ``reason``; ``role``,
        ``confidence``, ``verdict`` ("agree", "disagree", "undecided") and ``flag``, all ``(layer, head)``; ``witness``.

    Raises:
        TypeError, ValueError: no results or roles, or results of other heads.

    Source: this module; Elhage et al. 2021, Wang et al. 2024 for what roles predict.
    """
    known = read_testimony(results, roles)
    role = known.behaviour.role
    shape = (*role.shape, len(PREDICTIONS))
    tested: dict[tuple[int, ...], Prediction] = {}
    for layer, head in np.ndindex(role.shape):
        predicted = _tested(known, Head(layer, head))
        for at, name in enumerate(PREDICTIONS):
            tested[layer, head, at] = predicted.get(name, Prediction(NOTHING, Finding()))
    corrected = holm(np.array([tested[at].p_against for at in np.ndindex(shape)])).reshape(shape)
    witness = list(PREDICTIONS.values())
    said = {at: _says(tested[at], float(corrected[at]), witness[at[-1]]) for at in np.ndindex(shape)}
    verdict, flag = np.full(role.shape, UNDECIDED, dtype=object), np.full(role.shape, NO_FLAG, dtype=object)
    for at in np.ndindex(role.shape):
        verdict[at], flag[at] = _verdict([said[*at, i][0] for i in range(shape[2])])
    dims = ("layer", "head", "prediction")

    def grid(read: Any) -> tuple[tuple[str, ...], np.ndarray]:
        return dims, np.array([read(at) for at in np.ndindex(shape)]).reshape(shape)

    numbers = ("value", "stderr", "p", "smallest_p", "p_less")
    used = [name for name in (*SOURCES.values(), known.curve) if name in results]
    return labelled(
        {
            **{name: grid(lambda at, name=name: getattr(tested[at].found, name)) for name in numbers},
            "corrected": (dims, corrected),
            "expected": grid(lambda at: tested[at].expected),
            "says": grid(lambda at: said[at][0]),
            "partner": grid(lambda at: tested[at].found.partner),
            "reason": grid(lambda at: said[at][1]),
            "role": (dims[:2], role.values),
            "confidence": (dims[:2], known.behaviour.confidence.values),
            "verdict": (dims[:2], verdict.astype("U")),
            "flag": (dims[:2], flag.astype("U")),
        },
        {
            "layer": role["layer"].values,
            "head": role["head"].values,
            "prediction": list(PREDICTIONS),
            "witness": ("prediction", witness),
        },
        measure=Rule(),
        definition="what a head's role predicts of its weights, paths and coefficient, and what is found",
        source="Elhage et al. 2021; Wang et al. 2024; rules of circuits.crosscheck.agreement",
        data_hash=array_hash(role.values, *(results[name]["value"].values for name in used)),
        step=known.behaviour.step,
        curve=known.curve or "none",
        n_tested=int(np.isfinite(corrected).sum()),
        null="random orientation, random heads, errors and other heads: circuits.crosscheck.witnesses",
    )


def holm(p: Float[np.ndarray, "test"]) -> Float[np.ndarray, "test"]:
    """Holm's correction: the least level at which each test is rejected and no true null at all, with that probability.

    With p in order, ``max over j <= i of (m - j + 1) p_j``, at most 1. NaN stays and does not count.

    Source: Holm 1979.
    """
    found, given = np.full(p.shape, np.nan), np.flatnonzero(np.isfinite(p))
    order = given[np.argsort(p[given], kind="stable")]
    found[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return found


def _tested(known: Testimony, head: Head) -> dict[str, Prediction]:
    """What the role of a head predicts, each with what was found."""
    role, confidence = (data.values[head.layer, head.head] for data in (known.behaviour.role, known.behaviour.confidence))
    if role == NOT_MEASURED or confidence < SURE:
        why = NOT_MEASURED if role == NOT_MEASURED else f"the head keeps its role in {confidence:.0%} of draws"
        return dict.fromkeys(PREDICTIONS, Prediction(NOTHING, Finding(why=why)))
    pairs, induction = ("k_composition", "key_edge"), known.windows(INDUCTION)
    if role == INDUCTION:
        found = {f"{name}_from": known.of_pairs(name, head) for name in pairs}
        found |= {name: known.of_head(name, head) for name in ("ov_copying", "k_term_copying")}
        found["rllc_rise"] = known.rise(head, known.windows(INDUCTION, head))
        return {name: Prediction(THERE, finding) for name, finding in found.items()}
    if role == PREVIOUS:
        found = {f"{name}_into": _writes(known, name, head) for name in pairs}
        found["rllc_rise"] = known.rise(head, [*known.windows(PREVIOUS, head), *induction])
        return {name: Prediction(THERE, finding) for name, finding in found.items()}
    found = {"rllc_rise": known.rise(head, induction)}
    if head.layer > 0:
        found |= {f"{name}_from": known.of_pairs(name, head, PREVIOUS) for name in pairs}
    if head.layer < known.behaviour.role.sizes["layer"] - 1:
        found |= {f"{name}_into": known.of_pairs(name, head, INDUCTION, into=True) for name in pairs}
    return {name: Prediction(NONE, finding) for name, finding in found.items()}


def _writes(known: Testimony, name: str, head: Head) -> Finding:
    """An effect of a previous-token head on induction heads; if it has one on another head alone, who that is."""
    found, any_later = (known.of_pairs(name, head, role, into=True) for role in (INDUCTION, None))
    if found.why or found.present or not any_later.present:
        return found
    other = Head.parse(any_later.partner)
    called = known.behaviour.role.values[other.layer, other.head]
    return any_later._replace(why=f"it is there with {other}, which behaviour calls {called}")


def _says(tested: Prediction, corrected: float, witness: str) -> tuple[str, str]:
    """What a prediction says, and why where that is neither for nor against."""
    found = tested.found
    if not tested.expected or found.why:
        return (UNDECIDED if tested.expected else NOTHING), found.why
    # Half of all pairs beat random orientation, so that this is no effect; but it is more than nothing.
    if tested.expected == THERE and found.beyond and not found.present:
        return UNDECIDED, "beyond chance, but not out among others"
    if not found.present and not found.missing:
        return UNDECIDED, "no other head shows it" if np.isnan(found.p_less) else "neither there nor shown to be missing"
    if found.present == (tested.expected == THERE):
        return FOR, ""
    # Of enough examples the error of an edge is so small that edges are there which do next to nothing.
    if found.present and witness == WEIGHTS and found.p_less <= ALPHA:
        return UNDECIDED, "there, but less than half of what another head shows"
    if corrected <= ALPHA:
        return AGAINST, ""
    return UNDECIDED, f"{'there' if found.present else 'missing'}, but not beyond the correction"


def _verdict(says: list[str]) -> tuple[str, str]:
    """The verdict on a head, and its flag."""
    of = {witness: {says[at] for at, name in enumerate(PREDICTIONS) if PREDICTIONS[name] == witness} for witness in FLAGS}
    against = [flag for witness, flag in FLAGS.items() if AGAINST in of[witness]]
    if against:
        return DISAGREE, ", ".join(against)
    return (AGREE if all(FOR in said for said in of.values()) else UNDECIDED), NO_FLAG
