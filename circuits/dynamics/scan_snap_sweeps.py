"""Scan & Snap over rates on Syn-Medium: how sparse attention becomes, and how many distinct tokens it keeps in sight.

The paper's tables in one call: four sizes, four rates of attention, four ratios ``eta_y / eta_z``, ten seeds, from the random
start and with the momentum of 0.9 that the authors used. Seeds are ``0 .. seeds - 1`` and not the authors' own draws.

Source: Tian et al. 2023, figures 6, 11 and 12.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from circuits.data.classes import SequenceClasses
from circuits.dynamics.scan_snap_experiments import AUTHORS_MOMENTUM, Experiment, seeded
from circuits.results import labelled, mean_and_stderr

if TYPE_CHECKING:
    import xarray as xr

QUERIES, ETAS, RATIOS, SEEDS = (1, 3, 5, 10), (0.5, 1.0, 2.0, 3.0), (1.0, 2.0, 5.0, 10.0), 10
"""The paper's: queries with two labels each, ``eta_z``, ``eta_y / eta_z``, and how many seeds."""
PUBLISHED_ENTROPY = {
    1: ((1.971, 2.007, 2.066, 2.092), (1.871, 1.937, 2.022, 2.053), (1.699, 1.810, 1.934, 1.900), (1.551, 1.708, 1.786, 1.825)),
    3: ((2.019, 1.988, 2.031, 2.063), (1.963, 1.920, 1.982, 2.024), (1.842, 1.809, 1.899, 1.955), (1.737, 1.715, 1.821, 1.839)),
    5: ((2.026, 1.994, 2.020, 2.055), (1.995, 1.931, 1.971, 2.014), (1.906, 1.816, 1.884, 1.926), (1.817, 1.718, 1.802, 1.831)),
    10: ((2.033, 2.012, 2.018, 2.051), (2.027, 1.975, 1.976, 2.015), (1.990, 1.888, 1.899, 1.947), (1.940, 1.805, 1.829, 1.875)),
}
"""Figure 6 as published: mean entropy in nats by queries, then ``ETAS``, then ``RATIOS``; 10 seeds. Source: the aggregated table
beside the authors' code (facebookresearch/luckmatters, ssl/real-dataset/scan_snap), decoded; numbers only."""
THRESHOLDS = tuple(float(x) for x in np.geomspace(0.1, 10, 21))
"""In units of ``1 / M``, the share that uniform attention over all tokens would give."""


def entropy_table(
    *,
    queries: Sequence[int] = QUERIES,
    eta_z: Sequence[float] = ETAS,
    ratio: Sequence[float] = RATIOS,
    seeds: int = SEEDS,
    steps: int = 100,
    momentum: float = AUTHORS_MOMENTUM,
    progress: bool | None = None,
) -> "xr.Dataset":
    """Entropy of attention among distinct tokens, over rates and sizes, beside what the authors published.

    Args:
        queries: how many, with two labels each. eta_z: rates of attention. ratio: ``eta_y / eta_z``. seeds, steps, momentum:
            the authors' unless given. progress: show a bar.

    Returns:
        Over ``queries, eta_z, ratio``: ``value`` (nats, 0 to ln 10; 2.15 at ``z = 0``), mean over seeds, with ``stderr``;
        ``published`` (NaN where the authors have no number or other steps were taken), ``difference`` from it, and
        ``difference_stderr``, the authors' seeds taken to spread as ours do; ``by_seed`` (.., ``seed``). The attribute
        ``largest_difference`` is that of absolute values, NaN without published numbers.

    Source: Tian et al. 2023, figure 6.
    """
    by_seed = []
    for count in queries:
        rates = [(eta * one, eta) for eta, one in itertools.product(eta_z, ratio)]
        options = {"steps": steps, "momentum": momentum, "start": "uniform", "progress": progress}
        got = seeded(SequenceClasses.syn_medium(count), rates, seeds, (0, steps), **options)["distinct_entropy"][..., -1]
        by_seed.append(got.reshape(len(eta_z), len(ratio), seeds))
    values = np.stack(by_seed)
    mean, error = mean_and_stderr(values, -1)
    published = np.array([[[_published(q, z, r, steps, momentum) for r in ratio] for z in eta_z] for q in queries])
    off, dims = mean - published, ("queries", "eta_z", "ratio")
    known = np.abs(off)[np.isfinite(off)]
    return labelled(
        {
            "value": (dims, mean),
            "stderr": (dims, error),
            "published": (dims, published),
            "difference": (dims, off),
            "difference_stderr": (dims, error * np.sqrt(1 + seeds / SEEDS)),
            "by_seed": ((*dims, "seed"), values),
        },
        {"queries": list(queries), "eta_z": list(eta_z), "ratio": list(ratio), "seed": np.arange(seeds)},
        measure=Experiment("entropy_table", _config(queries, eta_z, ratio, seeds, steps, momentum)),
        definition="entropy of attention among a label's distinct tokens after SGD on Syn-Medium, mean over labels and seeds",
        source="Tian et al. 2023, figure 6",
        units="nats",
        largest_difference=float(known.max()) if len(known) else float("nan"),
    )


def recall_of_distinct(
    *,
    queries: int = 5,
    eta_z: Sequence[float] = ETAS,
    ratio: Sequence[float] = (1.0, 2.0),
    thresholds: Sequence[float] = THRESHOLDS,
    seeds: int = SEEDS,
    steps: int = 100,
    momentum: float = AUTHORS_MOMENTUM,
    progress: bool | None = None,
) -> "xr.Dataset":
    """Share of a label's distinct tokens that get more attention than a threshold: what sparse attention still sees.

    Args:
        queries: how many, with two labels each. eta_z, ratio: rates. thresholds: in units of ``1 / M``. seeds, steps, momentum:
            the authors' unless given. progress: show a bar.

    Returns:
        ``value`` (``eta_z, ratio, threshold``), recall in [0, 1], mean over labels and seeds, with ``stderr`` over seeds;
        ``start`` (``threshold``), that of ``P(l | n)`` itself, attention that has learned nothing; ``by_seed``.

    Source: Tian et al. 2023, figures 11 and 12.
    """
    classes = SequenceClasses.syn_medium(queries)
    rates = [(eta * one, eta) for eta, one in itertools.product(eta_z, ratio)]
    options = {"steps": steps, "momentum": momentum, "start": "uniform", "progress": progress}
    attention = seeded(classes, rates, seeds, (0, steps), **options)["attention"][:, :, -1]
    levels = np.asarray(thresholds) / classes.d_vocab
    distinct = classes.distinct.numpy()

    def recall(c: np.ndarray) -> np.ndarray:
        above = (c[..., None] > levels) & distinct[..., None]
        return (above.sum(-2) / distinct.sum(-1)[:, None]).mean(-2)

    values = recall(attention).reshape(len(eta_z), len(ratio), seeds, len(levels))
    mean, error = mean_and_stderr(values, 2)
    dims = ("eta_z", "ratio", "threshold")
    return labelled(
        {
            "value": (dims, mean),
            "stderr": (dims, error),
            "start": (("threshold",), recall(classes.p.numpy())),
            "by_seed": (("eta_z", "ratio", "seed", "threshold"), values),
        },
        {"eta_z": list(eta_z), "ratio": list(ratio), "threshold": list(thresholds), "seed": np.arange(seeds)},
        measure=Experiment(
            "recall_of_distinct",
            _config((queries,), eta_z, ratio, seeds, steps, momentum) | {"thresholds": list(thresholds)},
        ),
        definition="share of a label's distinct tokens with attention above threshold / M",
        source="Tian et al. 2023, figures 11 and 12",
        units="recall; thresholds in 1 / M",
    )


def _published(queries: int, eta_z: float, ratio: float, steps: int, momentum: float) -> float:
    """The authors' number, NaN where there is none."""
    same = queries in PUBLISHED_ENTROPY and eta_z in ETAS and ratio in RATIOS and steps == 100 and momentum == AUTHORS_MOMENTUM
    return PUBLISHED_ENTROPY[queries][ETAS.index(eta_z)][RATIOS.index(ratio)] if same else float("nan")


def _config(
    queries: Sequence[int], eta_z: Sequence[float], ratio: Sequence[float], seeds: int, steps: int, momentum: float
) -> dict[str, object]:
    rates = {"queries": list(queries), "eta_z": list(eta_z), "ratio": list(ratio)}
    return rates | {"seeds": seeds, "steps": steps, "momentum": momentum}
