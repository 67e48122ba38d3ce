"""The role of a head, from where it looks and from what its ablation does.

Each role has criteria: quantities that must exceed a bar by ``Z_NEEDED`` of their standard errors.

    induction        attention on induction targets; and, as confirmation, the loss of repeated tokens rises when that attention
    is
                     cut, more than when other keys are, and also when what it brings is merely taken out (``InductionCut``)
    previous token, current token, duplicate token, resting
                     attention on the key
    bracket          attention from the position before a closer to its opener above that to other openers, and effect on the
                     closer above that on other tokens of its depth (``BracketScores``)
    multigram        patterns memorised, more than with the head's own effects shifted along the text (``Multigrams``; counts, so
                     with the errors of counts), at least ``PATTERNS`` of them

The bar of attention is the larger of support ``THRESHOLD``, the share of the way from chance to perfect, ``(value - chance) /
(1 - chance)``, and ``Z_NEEDED`` sd above untrained heads' mean; for brackets it is ``BRACKET_BAR`` (for the effect 0), or
untrained heads. A quantity or null that was not measured makes its role untestable, and a head is then never given it.

A head's role is the first of these whose criteria all hold, in the order ``ROLES``, except that of previous, current and
duplicate token the one with the largest support goes first; "none" if there is none. Roles by attention to a stated key say
most, so they come first; what a head memorised can be said of nearly every trained head, so it comes late; resting says what a
head does not do. The order matters where several roles hold (``holds`` says which): the *runner-up* is the role that the same
rule gives with the first taken out.

*Confidence* is the share of ``draws`` in which the head keeps its role when every quantity is drawn anew, on its own, from a
normal law with its standard error (counts: Poisson). It is about the error of the examples alone: not about other thresholds,
kinds of text or definitions.

Source: role names of Wang et al. 2024 and Olsson et al. 2022; the rule ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

if TYPE_CHECKING:
    import xarray as xr

THRESHOLD = 0.2
BRACKET_BAR = 0.1
PATTERNS = 3
Z_NEEDED = 2.0
NONE = "none"
NOT_MEASURED = "not measured"
ATTENTION = {
    "induction": "induction",
    "previous token": "previous_token",
    "current token": "current_token",
    "duplicate token": "duplicate_token",
    "resting": "first_token",
}
ROLES = ("induction", "previous token", "current token", "duplicate token", "bracket", "multigram", "resting")
RIVALS = ROLES[1:4]
"""Of these the one with the largest support counts."""


@dataclass(frozen=True)
class Criterion:
    """A quantity of every head that must exceed a bar by ``Z_NEEDED`` of its errors; one that is NaN does not.

    Attributes:
        value, stderr, bar: of one shape. least: what the value itself must reach.
        count: whether value and bar are counts, which have the errors of counts.
    """

    value: np.ndarray
    stderr: np.ndarray
    bar: np.ndarray
    least: float = -np.inf
    count: bool = False

    def holds(self) -> Bool[np.ndarray, "*head"]:
        with np.errstate(invalid="ignore"):
            counted = np.sqrt(np.maximum(self.value, 0) + np.maximum(self.bar, 0))
            stderr = counted if self.count else np.nan_to_num(self.stderr, nan=np.inf)
            return (self.value - self.bar > Z_NEEDED * stderr) & (self.value >= self.least)

    def drawn(self, rng: np.random.Generator) -> "Criterion":
        """The same with its quantities drawn anew."""
        if self.count:
            value, bar = (rng.poisson(np.nan_to_num(np.maximum(x, 0))) + 0.0 * x for x in (self.value, self.bar))
            return replace(self, value=value, bar=bar)
        return replace(self, value=self.value + np.nan_to_num(self.stderr) * rng.standard_normal(self.value.shape))


def classify_functions(
    scores: "xr.Dataset",
    induction_cut: "xr.Dataset",
    multigrams: "xr.Dataset",
    brackets: "xr.Dataset | None",
    *,
    draws: int = 500,
    seed: int = 0,
) -> "xr.Dataset":
    """Name each head's role from attention and ablation together.

    Args:
        scores: of ``circuits.detect``. induction_cut, multigrams, brackets: of ``InductionCut``, ``Multigrams`` and
            ``BracketScores`` (None where there are no brackets to measure on); all with the same heads, and with the same
            ``step`` or none.
        draws, seed: of the confidence.

    Returns:
        ``Dataset([step,] layer, head)``: ``role``, ``runner_up``, ``confidence`` in [0, 1]; and with ``role_name``: ``holds``
        (1 or 0), ``support`` (share of the way from chance to perfect; bracket: attention above controls; multigram: patterns
        memorised beyond those of shuffled text, as a share). A head without data has the role "not measured".

    Raises:
        TypeError, ValueError: something else was given, or the heads or steps differ.
    """
    import xarray as xr

    given = {"scores": scores, "induction_cut": induction_cut, "multigrams": multigrams}
    given |= {} if brackets is None else {"brackets": brackets}
    _check(given)
    dims = tuple(dim for dim in ("step", "layer", "head") if dim in scores.dims)
    criteria, support = evidence({name: data.transpose(*dims, ...) for name, data in given.items()})
    measured = np.isfinite(np.stack([criteria[role][0].value for role in ATTENTION])).all(0)
    first, second = ranked(criteria, support)
    rng = np.random.default_rng([seed, 42])
    kept = np.zeros(first.shape)
    for _ in range(draws):
        moved = {role: [c.drawn(rng) for c in cs] for role, cs in criteria.items()}
        strength = support | {role: _support(moved[role][0], support[role], criteria[role][0]) for role in RIVALS}
        kept += ranked(moved, strength)[0] == first
    names = np.array([*ROLES, NONE])
    holds = np.stack([_all(criteria[role]) for role in ROLES], -1).astype(np.int64)
    return xr.Dataset(
        {
            "role": (dims, np.where(measured, names[first], NOT_MEASURED)),
            "runner_up": (dims, np.where(measured, names[second], NOT_MEASURED)),
            "confidence": (dims, np.where(measured, kept / draws, np.nan)),
            "holds": ((*dims, "role_name"), holds),
            "support": ((*dims, "role_name"), np.stack([support[role] for role in ROLES], -1)),
        },
        coords={dim: scores[dim] for dim in dims} | {"role_name": list(ROLES)},
        attrs={
            "measure": "head_functions",
            "definition": f"first of {', '.join(ROLES)} whose criteria hold by {Z_NEEDED:g} standard errors",
            "source": "roles of Wang et al. 2024 and Olsson et al. 2022; rule of circuits.detectors.roles",
            "draws": draws,
            "seed": seed,
        },
    )


def evidence(given: "Mapping[str, xr.Dataset]") -> tuple[dict[str, list[Criterion]], dict[str, Float[np.ndarray, "*head"]]]:
    """The criteria of each role, and its support; every dataset has its heads' dims first."""
    criteria: dict[str, list[Criterion]] = {}
    support: dict[str, np.ndarray] = {}
    scores = given["scores"]
    for role, detector in ATTENTION.items():
        at = scores.sel(detector=detector)
        value, stderr, mean, sd = (at[name].values for name in ("value", "stderr", "null_mean", "null_sd"))
        chance = at["chance"].broadcast_like(at["value"]).transpose(*at["value"].dims).values
        criteria[role] = [Criterion(value, stderr, np.maximum(chance + THRESHOLD * (1 - chance), mean + Z_NEEDED * sd))]
        support[role] = (value - chance) / (1 - chance)
    cut = given["induction_cut"]
    zero = np.zeros(cut["value"].shape)
    criteria["induction"] += [
        Criterion(cut[name].values, cut[error].values, zero)
        for name, error in (("value", "stderr"), ("removed", "removed_stderr"), ("difference", "difference_stderr"))
    ]
    number, null = given["multigrams"]["value"].values, given["multigrams"]["null_mean"].values
    criteria["multigram"] = [Criterion(number, zero, null, float(PATTERNS), count=True)]
    support["multigram"] = 1 - null / np.maximum(number, 1)
    criteria["bracket"], support["bracket"] = [Criterion(zero + np.nan, zero, zero)], zero + np.nan
    if "brackets" in given:
        at = given["brackets"].sel(condition="all")
        before = at.sel(query="before")
        looks, helps = (
            Criterion(x[name].values, x[f"{prefix}stderr"].values, np.maximum(bar, untrained(x, prefix)))
            for x, name, prefix, bar in ((before, "value", "", BRACKET_BAR), (at, "effect", "effect_", 0.0))
        )
        criteria["bracket"], support["bracket"] = [looks, helps], looks.value
    return criteria, support


def untrained(data: "xr.Dataset", prefix: str) -> Float[np.ndarray, "*head"]:
    """``Z_NEEDED`` sd above the mean of untrained heads; NaN without that null."""
    return data[f"{prefix}null_mean"].values + Z_NEEDED * data[f"{prefix}null_sd"].values


def ranked(
    criteria: Mapping[str, list[Criterion]], support: Mapping[str, Float[np.ndarray, "*head"]]
) -> tuple[np.ndarray, np.ndarray]:
    """Places in ``(*ROLES, NONE)`` of each head's role and of the runner-up."""
    holds = np.stack([_all(criteria[role]) for role in ROLES])
    rivals = [ROLES.index(role) for role in RIVALS]
    # Of the rivals that hold, the strongest comes first: they take each other's places in the order of their support.
    strength = np.where(holds[rivals], np.nan_to_num(np.stack([support[role] for role in RIVALS]), nan=-np.inf), -np.inf)
    order = np.argsort(-strength, axis=0, kind="stable")
    place = np.broadcast_to(np.arange(len(ROLES)).reshape(-1, *[1] * (holds.ndim - 1)), holds.shape).copy()
    place[rivals] = rivals[0] + order
    in_order = np.take_along_axis(holds, place, axis=0)
    nothing = np.full(holds.shape[1:], len(ROLES))
    first = np.where(in_order.any(0), in_order.argmax(0), len(ROLES))
    without = in_order & (np.arange(len(ROLES)).reshape(-1, *[1] * (holds.ndim - 1)) != first)
    second = np.where(without.any(0), without.argmax(0), len(ROLES))
    padded = np.concatenate([place, nothing[None]])
    role, runner_up = (np.take_along_axis(padded, x[None], axis=0)[0] for x in (first, second))
    return role, runner_up


def _all(criteria: list[Criterion]) -> Bool[np.ndarray, "*head"]:
    return np.logical_and.reduce([criterion.holds() for criterion in criteria])


def _support(drawn: Criterion, support: np.ndarray, criterion: Criterion) -> np.ndarray:
    """The support that goes with a drawn value: the same linear function of it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return support * (drawn.value - drawn.bar) / (criterion.value - criterion.bar)


def _check(given: "Mapping[str, Any]") -> None:
    needed = {
        "scores": ({"detector"}, "circuits.detect(model)"),
        "induction_cut": ({"difference"}, "InductionCut()(model)"),
        "multigrams": ({"memorised"}, "Multigrams(tokens)(model)"),
        "brackets": ({"effect", "query"}, "BracketScores(tokens)(model)"),
    }
    for name, data in given.items():
        marks, call = needed[name]
        if not hasattr(data, "data_vars"):
            raise TypeError(f"{name} is a {type(data).__name__}; pass what {call} returned")
        if not marks <= {*data.dims, *data.data_vars} or "value" not in data:
            raise ValueError(f"{name} has dims {tuple(data.dims)} and is not what {call} returns")
    first = given["scores"]
    for name, data in given.items():
        for dim in ("step", "layer", "head"):
            if (dim in data.dims) != (dim in first.dims) or (dim in first.dims and not np.array_equal(data[dim], first[dim])):
                raise ValueError(
                    f"{name} and scores differ in {dim}: measure all of them on the same model or the same checkpoints"
                )
