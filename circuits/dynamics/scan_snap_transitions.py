"""Scan & Snap's flow without noise: when attention moves fastest, how that scales with the rates, and that it then freezes.

Each function is an experiment in one call. A flow has no seeds and no error but that of its Euler steps, which a result names.
``rho = f_n . f_n'`` is the overlap of labels' features, ``t0' = K ln M / eta_y``.

Source: Tian et al. 2023, section 4 and theorems 3 and 4.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from circuits.data.classes import SequenceClasses
from circuits.dynamics.scan_snap_clock import phases
from circuits.dynamics.scan_snap_experiments import Experiment
from circuits.dynamics.scan_snap_flow import Flow
from circuits.dynamics.scan_snap_laws import leading_token
from circuits.dynamics.scan_snap_measures import logit_velocity, observe
from circuits.progress import bar
from circuits.results import labelled

if TYPE_CHECKING:
    import xarray as xr

SIZES = ((10, 1000), (20, 1000), (10, 100), (2, 34))
"""Labels ``K`` and outputs ``M``: the paper's figure 3, and what other sizes change."""
OVERLAPS = (0.009, 0.094, 0.38)
"""``rho``: weak correlation, its edge at ``K = 10``, and beyond it."""
SMALL_RATIO = 0.005
"""``eta_z / eta_y`` at which attention hardly moves while the decoder learns."""
PER_UNIT = 500
"""Steps to ``t0'`` where only scaled times matter."""


def transition_times(
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    overlaps: Sequence[float] = OVERLAPS,
    ratio: float = SMALL_RATIO,
    progress: bool | None = None,
) -> "xr.Dataset":
    """When attention moves fastest, against when the decoder's clock says that it does.

    Args:
        sizes: ``(K, M)``. overlaps: ``rho``. ratio: ``eta_z / eta_y``. progress: show a bar.

    Returns:
        ``value`` (``size, overlap``): time of the largest ``|dz / dt|`` in units of ``K ln M / ((1 - rho) eta_y)``;
        ``predicted`` (``size``): where ``gamma`` peaks, 0.82 to 0.93; ``resolution``: two Euler steps, by which decoder and
        attention may each be behind; ``labels``, ``d_vocab`` (``size``).

    Source: Tian et al. 2023, theorem 1 and remark 1; the closed form of the peak is ours.
    """
    cases = [(labels, d_vocab, overlap) for labels, d_vocab in sizes for overlap in overlaps]
    found, predicted = [], []
    for labels, d_vocab, overlap in bar(cases, label="scan & snap, transition times", on=progress):
        classes = SequenceClasses.with_overlap(overlap, labels=labels, d_vocab=d_vocab)
        found.append(_peak(classes, eta_y=labels * math.log(d_vocab) / PER_UNIT, ratio=ratio))
    for labels, d_vocab in sizes:
        clock = phases(eta_y=1.0, labels=labels, d_vocab=d_vocab)
        predicted.append(clock.peak / clock.scanning_ends)
    return labelled(
        {
            "value": (("size", "overlap"), np.array(found).reshape(len(sizes), len(overlaps))),
            "predicted": (("size",), np.array(predicted)),
            "resolution": ((), 2 / PER_UNIT),
        },
        {
            "size": [f"K={labels}, M={d_vocab}" for labels, d_vocab in sizes],
            "overlap": list(overlaps),
            "labels": ("size", [labels for labels, _ in sizes]),
            "d_vocab": ("size", [d_vocab for _, d_vocab in sizes]),
        },
        measure=Experiment(
            "transition_times", {"sizes": [list(pair) for pair in sizes], "overlaps": list(overlaps), "ratio": ratio}
        ),
        definition="time of the largest |dz/dt| of the flow in units of K ln M / ((1 - rho) eta_y)",
        source="Tian et al. 2023, theorem 1 and remark 1",
        units="scaled time",
    )


def _peak(classes: SequenceClasses, *, eta_y: float, ratio: float) -> float:
    """When logits move fastest, in units of ``K ln M / ((1 - rho) eta_y)``."""
    unit = phases(eta_y=eta_y, labels=classes.n_labels, d_vocab=classes.d_vocab, overlap=classes.overlap).scanning_ends
    steps = round(1.2 * unit)
    z = Flow(classes, eta_y, ratio * eta_y, steps=steps).path(range(steps + 1)).z[0]
    velocity = logit_velocity(z, torch.arange(steps + 1).double())
    return (int(velocity[:-1].argmax()) + 0.5) / unit


def rate_sweep(
    *,
    eta_y: Sequence[float] = (0.5, 1.0, 2.0, 5.0),
    ratio: float = SMALL_RATIO,
    overlap: float = 0.38,
    points: int = 100,
    progress: bool | None = None,
) -> "xr.Dataset":
    """One clock for all learning rates: attention in scaled time, and where it moves fastest, do not depend on ``eta_y``.

    Args:
        eta_y: rates of the decoder. ratio: ``eta_z / eta_y``. overlap: of ten labels, 1,000 outputs. points: of scaled time, to
            ``2 t0'``. progress: show a bar.

    Returns:
        ``value`` (``eta_y, tau``): ``z eta_y / eta_z`` of the likeliest distinct token, 0 at first, at ``tau = eta_y t /
        (K ln M)``, linear between steps; ``peak`` (``eta_y``): the ``tau`` at which logits move fastest; ``resolution``
        (``eta_y``): of two steps.

    Source: Tian et al. 2023, lemmas 4 to 6; that the flow depends on ``eta_y t`` and ``eta_z / eta_y`` alone.
    """
    classes = SequenceClasses.with_overlap(overlap)
    leader, tau = leading_token(classes), np.linspace(0, 2, points + 1)
    values, peaks, steps = [], [], []
    for eta in bar(eta_y, label="scan & snap, rates", on=progress):
        unit = phases(eta_y=eta, labels=classes.n_labels, d_vocab=classes.d_vocab).scanning_ends
        last = math.ceil(2 * unit)
        z = Flow(classes, eta, ratio * eta, steps=last).path(range(last + 1)).z[0]
        velocity = logit_velocity(z, torch.arange(last + 1).double())
        peaks.append((int(velocity[:-1].argmax()) + 0.5) / unit)
        values.append(np.interp(tau, np.arange(last + 1) / unit, z[:, 0, leader].numpy() / ratio))
        steps.append(2 / unit)
    return labelled(
        {
            "value": (("eta_y", "tau"), np.stack(values)),
            "peak": (("eta_y",), np.array(peaks)),
            "resolution": (("eta_y",), np.array(steps)),
        },
        {"eta_y": list(eta_y), "tau": tau},
        measure=Experiment("rate_sweep", {"classes": classes.spec(), "eta_y": list(eta_y), "ratio": ratio, "points": points}),
        definition="z eta_y / eta_z of the likeliest distinct token over tau = eta_y t / (K ln M)",
        source="Tian et al. 2023, lemmas 4 to 6",
        units="logits",
    )


def gain_ratios(
    *, ratio: Sequence[float] = (1e-3, 1e-2, 1.0), overlap: float = 0.1, eta_y: float = 0.05, progress: bool | None = None
) -> "xr.Dataset":
    """Theorem 3 in the flow: how tokens share the gain, ``z_l / z_l0``, which tends to ``(P_l / P_l0)^2`` for slow attention.

    Args:
        ratio: ``eta_z / eta_y``. overlap: of ten labels with distinct tokens ``P`` = 1 : 2 : 3 : 4, 1,000 outputs. eta_y: of the
            decoder. progress: show a bar.

    Returns:
        ``value`` (``ratio, token``): ``z_l / z_l0`` at ``t0 = 2 t0'``, ``l0`` the likeliest; ``theorem`` (``token``);
        ``residual`` (``ratio, token``): theorem 3's ``r(t) / (r(0) chi)``, 1 where it holds, NaN for the likeliest.

    Source: Tian et al. 2023, theorem 3.
    """
    classes = SequenceClasses.with_overlap(overlap)
    own = np.flatnonzero(classes.distinct[0].numpy())
    steps = round(phases(eta_y=eta_y, labels=classes.n_labels, d_vocab=classes.d_vocab).snapping_begins)
    run = Flow(classes, eta_y, tuple(eta_y * one for one in ratio), steps=steps).run((0, steps), progress=progress)
    z, p = run["z"].values[:, 1, 0, own], classes.p.numpy()[0, own]
    return labelled(
        {
            "value": (("ratio", "token"), z / z[:, p.argmax(), None]),
            "theorem": (("token",), (p / p.max()) ** 2),
            "residual": (("ratio", "token"), observe(run, classes)["gain_residual"].values[:, 1, 0, own]),
        },
        {"ratio": list(ratio), "token": own},
        measure=Experiment("gain_ratios", {"classes": classes.spec(), "ratio": list(ratio), "eta_y": eta_y}),
        definition="z_l / z_l0 of a label's distinct tokens at t0, l0 the likeliest",
        source="Tian et al. 2023, theorem 3",
        units="1",
    )


def freeze(*, doublings: int = 6, eta: float = 0.1, progress: bool | None = None) -> "xr.Dataset":
    """Attention freezes while the loss falls: what is added to the top logit with each doubling of time.

    Args:
        doublings: of time, after ``8.5 t0'``; six lead to about ``550 t0'``. eta: rate of decoder and attention alike. progress:
            show a bar.

    Returns:
        Over ``classes, time`` (``classes``: Syn-Small's tokens with one query for both labels, and Syn-Small itself, one to
        each): ``value``, ``z`` of the likeliest distinct token, 0 at time 0; ``distinct_entropy`` (nats, 0 to ln 10),
        ``loss`` (nats). ``tau`` is time in units of ``t0'``.

    Source: Tian et al. 2023, theorem 4: after ``t0`` growth is at most logarithmic, never stationary.
    """
    kinds = {"one query": SequenceClasses.build(d_vocab=34), "a query each": SequenceClasses.syn_small()}
    first = kinds["one query"]
    unit = phases(eta_y=eta, labels=first.n_labels, d_vocab=first.d_vocab).scanning_ends
    times = [0, *(round(8.5 * unit * 2**doubling) for doubling in range(doublings + 1))]
    values: dict[str, list[np.ndarray]] = {"value": [], "distinct_entropy": [], "loss": []}
    for classes in kinds.values():
        run = Flow(classes, eta, eta, steps=times[-1]).run(times, progress=progress)
        values["value"].append(run["z"].values[0, :, 0, leading_token(classes)])
        values["distinct_entropy"].append(observe(run, classes)["distinct_entropy"].values[0].mean(-1))
        values["loss"].append(run["loss"].values[0])
    return labelled(
        {name: (("classes", "time"), np.stack(rows)) for name, rows in values.items()},
        {"classes": list(kinds), "time": times, "tau": ("time", np.array(times) / unit)},
        measure=Experiment("freeze", {"classes": [one.spec() for one in kinds.values()], "doublings": doublings, "eta": eta}),
        definition="logit z of the likeliest distinct token along the flow, at doublings of time",
        source="Tian et al. 2023, theorem 4",
        units="logits",
    )
