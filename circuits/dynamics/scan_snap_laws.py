"""Scan & Snap's laws of growth: the curves of the theory, with the flow and SGD laid beside them.

Each function is an experiment in one call. Where SGD is laid over, it has means and standard errors over seeds;
flows and formulas have no noise and no error but that of their steps. ``t0' = K ln M / eta_y`` ends scanning, ``t0 = 2 t0'``
begins snapping; ``tau`` is time in units of ``t0'``.

Source: Tian et al. 2023, section 4, figures 3, 8 and 9.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from circuits.data.classes import SequenceClasses
from circuits.dynamics.scan_snap_clock import decoder_clock, driven, growth, growth_constant, phases
from circuits.dynamics.scan_snap_experiments import Experiment, seeded
from circuits.dynamics.scan_snap_flow import Flow
from circuits.dynamics.scan_snap_theory import Beta, Reduced
from circuits.results import labelled, mean_and_stderr

if TYPE_CHECKING:
    import xarray as xr

_BETAS: dict[str, Beta] = {"reduced": "decoder", "paper": "overlap"}


def gain_growth(
    *,
    eta_y: Sequence[float] = (0.5, 1.0, 2.0, 5.0),
    eta_z: float = 0.5,
    overlap: float = 0.1,
    steps: int = 700,
    seeds: int = 3,
    progress: bool | None = None,
) -> "xr.Dataset":
    """How the likeliest distinct token gains: ``chi = e^{2 (z(t) - z(0))}`` by theorem 4, by the flow and by SGD.

    Ten labels of one query, 1,000 outputs, one common token that makes up the overlap.

    Args:
        eta_y: rates of the decoder. eta_z: of attention. overlap: ``f_n . f_n'``. steps: the last. seeds: of SGD, without
            momentum. progress: show a bar.

    Returns:
        Over ``eta_y, time``: ``theorem``, the paper's curve ``e^{2 B}`` with ``B(0) = 0``; ``value`` and ``stderr``, SGD;
        ``flow``; ``reduced``, the limit of ``eta_z / eta_y`` to 0 (lemma 4 from ``Y(0) = 0``), and ``paper``, lemma 4 with the
        paper's ``beta``. All start at 1, where attention that does not learn stays. ``snapping_begins`` (``eta_y``): ``t0``.
        The paper gives no ``C0``, and its steps are all of one label: shapes and order can be compared, not sizes.

    Source: Tian et al. 2023, figure 3, theorems 3 and 4.
    """
    classes = SequenceClasses.with_overlap(overlap)
    leader = leading_token(classes)
    times = np.unique(np.linspace(0, steps, min(steps, 140) + 1).round().astype(int))
    rates = [(eta, eta_z) for eta in eta_y]
    flow = Flow(classes, tuple(eta_y), eta_z, steps=steps, substeps=4).run(times.tolist(), progress=progress)
    sgd = seeded(classes, rates, seeds, times.tolist(), steps=steps, progress=progress)
    mean, error = mean_and_stderr(np.exp(2 * sgd["z"][:, :, :, 0, leader]), 1)
    clocks = {name: Reduced(classes, tuple(eta_y), eta_z, beta=beta).run(times) for name, beta in _BETAS.items()}
    sizes = {"labels": classes.n_labels, "d_vocab": classes.d_vocab}
    pushed = []
    for eta in eta_y:
        h = decoder_clock(times, eta_y=eta, **sizes)
        pushed.append(driven(h, eta_y=eta, eta_z=eta_z, **sizes))
    dims = ("eta_y", "time")
    return labelled(
        {
            "value": (dims, mean),
            "stderr": (dims, error),
            "flow": (dims, np.exp(2 * flow["z"].values[:, :, 0, leader])),
            "theorem": (dims, np.exp(2 * growth(np.stack(pushed), constant=growth_constant(classes)))),
            "snapping_begins": (("eta_y",), np.array([phases(eta_y=eta, **sizes).snapping_begins for eta in eta_y])),
        }
        | {name: (dims, np.exp(2 * run["z"].values[:, :, 0, leader])) for name, run in clocks.items()},
        {"eta_y": list(eta_y), "time": times},
        measure=Experiment(
            "gain_growth", {"classes": classes.spec(), "rates": [list(pair) for pair in rates], "steps": steps, "seeds": seeds}
        ),
        definition="chi_l = e^{2 (z_l(t) - z_l(0))} of the likeliest distinct token",
        source="Tian et al. 2023, figure 3, theorems 3 and 4",
        units="1",
    )


def leading_token(classes: SequenceClasses) -> int:
    """The likeliest distinct token of the first label."""
    return int(torch.where(classes.distinct[0], classes.p[0], 0.0).argmax())


def decoder_phases(*, d_vocab: Sequence[int] = (100, 1000, 10_000), until: float = 8.0, points: int = 400) -> "xr.Dataset":
    """The decoder's clock ``M h`` and the two approximations that the paper's phases are made of.

    In scaled time there is one curve for each ``M``: ``M eta_y t / K = tau M ln M``.

    Args:
        d_vocab: outputs ``M``. until: the last scaled time. points: how many.

    Returns:
        Over ``d_vocab, tau``: ``value``, ``M h``; ``scanning``, ``eta_y t / K``, good before ``tau = 1``; ``snapping``,
        ``ln(M eta_y t / K)``, good after ``tau = 2``; ``probability``, of the right label, ``1 / M`` by chance.

    Source: Tian et al. 2023, lemmas 5 and 6, the ``h*`` of figure 8, and the two phases of theorem 4.
    """
    tau = np.linspace(0, until, points + 1)[1:]
    scale = np.log(np.asarray(d_vocab, dtype=float))[:, None] * tau
    x = np.stack([m * decoder_clock(s, eta_y=1.0, labels=1, d_vocab=m) for m, s in zip(d_vocab, scale, strict=True)])
    m, dims = np.asarray(d_vocab, dtype=float)[:, None], ("d_vocab", "tau")
    return labelled(
        {
            "value": (dims, x),
            "scanning": (dims, scale),
            "snapping": (dims, np.log(m * scale)),
            "probability": (dims, 1 / (1 + (m - 1) * np.exp(-x))),
        },
        {"d_vocab": list(d_vocab), "tau": tau},
        measure=Experiment("decoder_phases", {"d_vocab": list(d_vocab), "until": until, "points": points}),
        definition="M h(t) with e^{M h} + (M - 1) M h = M eta_y t / K + 1",
        source="Tian et al. 2023, lemmas 5 and 6, figure 8",
        units="logits; tau in K ln M / eta_y",
    )


def attention_growth(
    *,
    ratio: Sequence[float] = (1.0, 2.0, 5.0, 10.0),
    eta_y: Sequence[float] = (0.5, 1.0, 2.0),
    overlap: float = 0.1,
    steps: int = 700,
) -> "xr.Dataset":
    """How far attention has moved, ``B_n(t)``, at fixed ``nu = eta_y / eta_z``: where it snaps depends on ``nu`` alone.

    Args:
        ratio: ``nu``. eta_y: rates of the decoder. overlap: of ten labels with one common token, 1,000 outputs. steps: the last.

    Returns:
        ``value`` (``ratio, eta_y, time``): ``B``, from 0 up; ``snapping_begins`` (``eta_y``): ``t0``; ``at_snap``
        (``ratio, eta_y``): ``B(t0)``, the same for all ``eta_y``.

    Source: Tian et al. 2023, figure 9, theorem 4 (here with ``B(0) = 0``).
    """
    classes = SequenceClasses.with_overlap(overlap)
    sizes, constant = {"labels": classes.n_labels, "d_vocab": classes.d_vocab}, growth_constant(classes)
    times = np.arange(steps + 1)
    begins = np.array([phases(eta_y=eta, **sizes).snapping_begins for eta in eta_y])

    def b(at: np.ndarray, eta: float, nu: float) -> np.ndarray:
        return growth(driven(decoder_clock(at, eta_y=eta, **sizes), eta_y=eta, eta_z=eta / nu, **sizes), constant=constant)

    return labelled(
        {
            "value": (("ratio", "eta_y", "time"), np.array([[b(times, eta, nu) for eta in eta_y] for nu in ratio])),
            "snapping_begins": (("eta_y",), begins),
            "at_snap": (
                ("ratio", "eta_y"),
                np.array([[float(b(t[None], eta, nu)[0]) for eta, t in zip(eta_y, begins, strict=True)] for nu in ratio]),
            ),
        },
        {"ratio": list(ratio), "eta_y": list(eta_y), "time": times},
        measure=Experiment(
            "attention_growth", {"classes": classes.spec(), "ratio": list(ratio), "eta_y": list(eta_y), "steps": steps}
        ),
        definition="B_n = 1/4 ln(1 + 4 Gamma / C0)",
        source="Tian et al. 2023, figure 9, theorem 4",
        units="logits",
    )
