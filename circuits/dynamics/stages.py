"""The stages of a training run: what happened to several curves, when, and in which order.

    boundary     where a curve, in straight pieces in log time, changes its slope     ``stage_boundaries.change_points``
    plateau      where it stands still: a maximum, a minimum or a pause               ``stage_events.plateaus``
    emergence    when a score has passed half of its way for good                     ``stage_events.emergence_time``
    order        which of these came first, as far as their errors tell               ``stage_order.order_of_events``

Log time and errors: ``stage_curves``. Smoothing: ``stage_smooth``. Every curve is read on its own checkpoints; one clock serves
all.

Curves of as many examples are taken to be of the same ones: these are drawn together, so that an order does not suffer from
what the curves share. Errors of curves without examples are drawn independently, between checkpoints and between curves.

Seeds of training are never drawn: of two or three runs a bootstrap knows nothing. Every seed is read by itself; beside these
readings stand, for four seeds or more, the mean log time with Student's interval, and how many seeds have which order.

Source: Hoogland et al. 2024 and Wang et al. 2024 (stages end at critical points of the LLC); Olsson et al. 2022 (one phase
change in several curves). Errors, and the test of an order, are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from circuits.dynamics.stage_boundaries import change_points
from circuits.dynamics.stage_curves import DRAWS, LEVEL, Event, log_time, steps_of, unit_of
from circuits.dynamics.stage_events import FLAT, emergence_of, plateaus_of
from circuits.dynamics.stage_inputs import Curve, curve_of, seeds_of
from circuits.dynamics.stage_order import order_of_events, order_over_seeds
from circuits.dynamics.stage_smooth import smooth
from circuits.results import array_hash, labelled

if TYPE_CHECKING:
    import xarray as xr

KINDS = ("boundary", "plateau", "emergence")
FEW = 4
"""Seeds: with fewer there is no interval of their mean."""


@dataclass(frozen=True)
class _Stages:
    """What made a result of ``stages``: the options, and the curves by hash."""

    kinds: tuple[str, ...]
    boundaries: Mapping[str, int]
    baselines: Mapping[str, float]
    falls: tuple[str, ...]
    draws: int
    events: tuple[str, ...]
    level: float
    seed: int
    curves: Mapping[str, str]

    name = "stages"
    version = 1

    def spec(self) -> dict[str, Any]:
        return vars(self) | {key: dict(vars(self)[key]) for key in ("boundaries", "baselines", "curves")}


class _Found(NamedTuple):
    """An event, the curve that it happened to, and what that was read from."""

    event: Event
    curve: str
    steps: np.ndarray
    errors: str


def stages(
    curves: "Mapping[str, xr.Dataset | xr.DataArray]",
    *,
    kinds: Sequence[str] = KINDS,
    boundaries: Mapping[str, int] | None = None,
    baselines: Mapping[str, float] | None = None,
    falls: Sequence[str] = (),
    events: Sequence[str] | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> "xr.Dataset":
    """What happened to curves of a training run, when, and in which order.

    Args:
        curves: by name, each with dims ``step``, ``example`` where known, and ``seed`` where several runs were trained: a
            DataArray, or a Dataset with ``value`` and, without examples, ``stderr``; its ``chance`` is the curve's baseline, and
            steps whose ``status`` is not "ok" are left out, as are those without a finite value and error.
        kinds: of events to look for. boundaries: for these curves the number of boundaries, fixed beforehand. baselines: for
            these the value from which they emerge (default: ``chance``, else the first value). falls: names of curves that fall
            as they emerge, such as losses.
        events: names such as "llc: boundary 1", to leave out all others and test the order of few; choose them before looking:
            the test does not know how many were looked at.
        draws: of the bootstrap; an order needs 40 for each pair of events. level: of intervals, and one less the chance of a
            wrong verdict on the order. seed: of all randomness.

    Returns:
        ``Dataset`` over ``[seed,] event``: ``value``, ``low``, ``high``: steps; ``state``: see what found the event, or "missing"
        in this seed; ``start``, ``end`` of plateaus; ``errors``: "examples", "independent" or "residuals"; ``n_checkpoints``;
        ``unit`` of log time; ``kind`` and ``curve`` as coordinates. A curve has a row for its emergence in any case, and for
        boundaries and plateaus as many as it has. The order: ``before`` (``event, other``), the share of draws; ``p``;
        ``verdict``, also "missing"; ``order``, ``order_confidence``, see ``Order``: "" and NaN where fewer than two events
        happened. With seeds also ``mean``, ``mean_low``, ``mean_high`` (NaN below four seeds), ``seeds_before`` and ``seeds_p``
        (``event, other``). Attributes name the smallest p that there could have been.

    Raises:
        ValueError: no curves, dims other than these, options for curves that are not there, or see ``check_curve``.
    """
    _check(curves, kinds, (boundaries or {}, baselines or {}, falls), level)
    seeds = seeds_of(curves)
    count = 1 if seeds is None else len(seeds)
    runs = [{name: curve_of(name, data, run) for name, data in curves.items()} for run in range(count)]
    read = {name: [run[name] for run in runs] for name in curves}
    hashes = {name: array_hash(*(x for curve in read[name] for x in curve if x is not None)) for name in curves}
    asked = _Stages(
        tuple(kinds), boundaries or {}, baselines or {}, tuple(falls), draws, tuple(events or ()), level, seed, hashes
    )
    found = [
        {name: one for of, curve in run.items() for name, one in _events(of, curve, asked, r).items()}
        for r, run in enumerate(runs)
    ]
    every = {name: one for run in found for name, one in run.items()}
    names = sorted(every, key=lambda name: (list(curves).index(every[name].curve), KINDS.index(every[name].event.kind)))
    if events is not None:
        absent = [name for name in events if name not in names]
        if absent:
            raise ValueError(f"no {', '.join(map(repr, absent))} among the events, which are {', '.join(map(repr, names))}")
        names = [name for name in names if name in events]
    columns = _stacked([_columns(run, names, 1 - level) for run in found], alone=seeds is None)
    if seeds is not None:
        unit = min(unit_of(curve.steps) for run in runs for curve in run.values())
        columns |= _over_seeds(columns["value"][1], unit, level)
    smallest = {} if seeds is None else {"smallest_p_of_seeds": min(2.0 ** (1 - count), 1.0)}
    coords = {
        "event": names,
        "other": names,
        "kind": ("event", [every[name].event.kind for name in names]),
        "curve": ("event", [every[name].curve for name in names]),
    }
    return labelled(
        columns,
        coords if seeds is None else {"seed": seeds, **coords},
        measure=asked,
        definition="boundary: straight pieces in log time change slope; plateau: the smoothed curve stands still; emergence: "
        "half of its way passed for good",
        source="circuits.dynamics.stages, after Hoogland et al. 2024 and Wang et al. 2024",
        units="training steps",
        level=level,
        smallest_p=2 / (1 + draws),
        seed=seed,
        **smallest,
    )


def _check(curves: Mapping[str, Any], kinds: Sequence[str], options: Sequence[Any], level: float) -> None:
    if not curves:
        raise ValueError("no curves were given; give {'name': Dataset or DataArray over step}")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"kinds={tuple(kinds)!r}: need some of {', '.join(KINDS)}")
    foreign = [repr(name) for option in options for name in option if name not in curves]
    if foreign:
        raise ValueError(f"options are given for {', '.join(foreign)}, curves are {', '.join(map(repr, curves))}")
    if not 0.5 <= level < 1:
        raise ValueError(f"level={level!r}: need a share from 0.5 to 1, such as 0.95")


def _events(of: str, curve: Curve, asked: _Stages, run: int) -> dict[str, _Found]:
    """Everything that happened to a curve, by name; its own stream of randomness is by its name and run."""
    unit = unit_of(curve.steps)
    own = int(np.random.SeedSequence([asked.seed, run, *of.encode()]).generate_state(1)[0])
    drawn = curve.errors(unit, asked.draws, asked.seed, own)
    events: list[Event] = []
    if "boundary" in asked.kinds:
        number = asked.boundaries.get(of)
        events += change_points(curve.steps, curve.mean, n=number, errors=drawn, unit=unit, level=asked.level).events
    if {"plateau", "emergence"} & set(asked.kinds):
        smoothed = smooth(log_time(curve.steps, unit), curve.mean, drawn, seed=own)
        if "plateau" in asked.kinds:
            events += plateaus_of(smoothed, curve.steps, unit, flat=FLAT, level=asked.level)
        if "emergence" in asked.kinds:
            base = asked.baselines.get(of, curve.chance)
            events.append(emergence_of(smoothed, curve.steps, unit, baseline=base, falls=of in asked.falls, level=asked.level))
    found = {}
    for event in events:
        number = sum(one.event.kind == event.kind for one in found.values()) + 1
        name = f"{of}: {event.kind}" if event.kind == "emergence" else f"{of}: {event.kind} {number}"
        found[name] = _Found(event, of, curve.steps, drawn.kind)
    return found


def _columns(found: Mapping[str, _Found], names: Sequence[str], level: float) -> dict[str, tuple[tuple[str, ...], Any]]:
    """The variables of one run."""
    nothing = _Found(Event("", "missing", np.nan, np.nan, np.nan, np.empty(0)), "", np.empty(0), "missing")
    rows = [found.get(name, nothing) for name in names]
    each, pair = ("event",), ("event", "other")
    columns: dict[str, tuple[tuple[str, ...], Any]] = {
        key: (each, [getattr(row.event, name) for row in rows])
        for key, name in {"value": "at", "low": "low", "high": "high", "state": "state", "start": "start", "end": "end"}.items()
    }
    columns["errors"] = (each, [row.errors for row in rows])
    columns["unit"] = (each, [unit_of(row.steps) if len(row.steps) else np.nan for row in rows])
    columns["n_checkpoints"] = (each, [len(row.steps) for row in rows])
    happened = [i for i, row in enumerate(rows) if np.isfinite(row.event.at)]
    size = (len(names), len(names))
    before, p, verdict = np.full(size, np.nan), np.full(size, np.nan), np.full(size, "missing", dtype="<U10")
    order, confidence = "", np.nan
    if len(happened) > 1:
        some = [rows[i] for i in happened]
        times = np.stack([row.event.times for row in some], 1)
        groups = [(row.curve, row.event.kind) for row in some]
        said = order_of_events(times, [names[i] for i in happened], [row.steps for row in some], groups=groups, level=level)
        at = np.ix_(happened, happened)
        before[at], p[at], verdict[at], order, confidence = said.before, said.p, said.verdict, said.order, said.confidence
    return columns | {
        "before": (pair, before), "p": (pair, p), "verdict": (pair, verdict),
        "order": ((), order), "order_confidence": ((), confidence),
    }  # fmt: skip


def _stacked(runs: Sequence[Mapping[str, Any]], *, alone: bool) -> dict[str, tuple[tuple[str, ...], Any]]:
    """The variables of all runs; of a single one without the axis of seeds."""
    if alone:
        return dict(runs[0])
    return {name: (("seed", *dims), np.stack([np.asarray(run[name][1]) for run in runs])) for name, (dims, _) in runs[0].items()}


def _over_seeds(value: np.ndarray, unit: float, level: float) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Mean log time of events that every seed has, with Student's interval; and how many seeds have which order."""
    from scipy import stats

    seeds, events = value.shape
    mean, low, high = np.full((3, events), np.nan)
    if seeds >= FEW:
        time = log_time(value, unit)
        centre, spread = time.mean(0), time.std(0, ddof=1) / np.sqrt(seeds) * stats.t.ppf((1 + level) / 2, seeds - 1)
        mean, low, high = (steps_of(x, unit) for x in (centre, centre - spread, centre + spread))
    counts, p = order_over_seeds(value)
    each, pair = ("event",), ("event", "other")
    return {
        "mean": (each, mean), "mean_low": (each, low), "mean_high": (each, high),
        "seeds_before": (pair, counts), "seeds_p": (pair, p),
    }  # fmt: skip
