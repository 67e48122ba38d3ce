"""Scan & Snap by minibatch SGD: what attention turns to on Syn-Small, in which order, and what the norm is for.

Each function is an experiment of the paper in one call: runs of every seed at once, means with standard errors over seeds, and
what single seeds gave beside them. Seeds are ``0 .. seeds - 1``; runs of one seed see the same sequences at all rates. Momentum
is the authors' 0.9 unless another is given, so rates in the long run are ten times those named.

Source: Tian et al. 2023, section 6; tables over many rates stand in ``scan_snap_sweeps``, flows in ``scan_snap_laws``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.data.classes import SequenceClasses
from circuits.dynamics.joma import EntropyBounce, attention_entropy, blow_up_time, linear_activation
from circuits.dynamics.scan_snap_measures import observe
from circuits.dynamics.scan_snap_sgd import Sgd
from circuits.progress import bar
from circuits.results import check_whole, labelled, mean_and_stderr

if TYPE_CHECKING:
    import xarray as xr

AUTHORS_MOMENTUM = 0.9
"""Of all SGD runs of the paper's figures."""
EXP_TEMPERATURE = 2.0
"""At which ``softmax(v^2 / T)`` is the attention of theorem 2 of JoMA, ``exp(v^2 / 2)`` over its sum."""


@dataclass(frozen=True)
class Experiment:
    """What made an experiment's result: its name, and everything its numbers depend on."""

    name: str
    config: dict[str, Any]
    version: int = 1

    def spec(self) -> dict[str, Any]:
        return self.config


def seeded(
    classes: SequenceClasses,
    rates: Sequence[tuple[float, float]],
    seeds: int,
    record: Sequence[int],
    *,
    progress: bool | None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """SGD at every pair ``(eta_y, eta_z)`` from every seed, as arrays that begin with axes ``rate, seed``.

    Args:
        classes: of which sequences. rates: pairs. seeds: how many. record: steps to keep. progress: show a bar. options: of
            ``Sgd``.

    Returns:
        ``attention`` (``.., time, label, token``); ``distinct_entropy`` and ``common_mass`` (``.., time``, mean over labels);
        ``loss``, ``attention_velocity`` (``.., time``); ``peak_time`` (``.., label, token``); ``z`` (``.., time, query, token``).
        Ranges stand in ``scan_snap_measures``.

    Raises:
        ValueError: no seeds, or an option that ``Sgd`` refuses.
    """
    check_whole("seeds", seeds, 1)
    cells = [(eta_y, eta_z, seed) for eta_y, eta_z in rates for seed in range(seeds)]
    eta_y, eta_z, seed = zip(*cells, strict=True)
    found = Sgd(classes, eta_y, eta_z, seed, **options).run(record, progress=progress)
    seen = observe(found, classes)
    kept = {name: seen[name].values for name in ("attention", "attention_velocity", "peak_time")}
    kept |= {name: seen[name].values.mean(-1) for name in ("distinct_entropy", "common_mass")}
    kept |= {"loss": found["loss"].values, "z": found["z"].values}
    return {name: values.reshape(len(rates), seeds, *values.shape[1:]) for name, values in kept.items()}


def attention_by_iteration(
    *,
    eta_y: Sequence[float] = (1.0, 10.0),
    eta_z: float = 1.0,
    seeds: int = 10,
    steps: int = 100,
    momentum: float = AUTHORS_MOMENTUM,
    progress: bool | None = None,
) -> "xr.Dataset":
    """Attention on every token of Syn-Small, step by step: a faster decoder leaves it denser.

    Args:
        eta_y: rates of the decoder. eta_z: of attention. seeds, steps, momentum: see the module. progress: show a bar.

    Returns:
        ``value`` (``eta_y, time, label, token``): attention ``c_l|n`` in [0, 1], mean over seeds, with ``stderr``; ``P(l | n)``
        at time 0 is chance. By seed: ``distinct_entropy`` (nats), ``common_mass``, ``loss`` (nats), ``attention_velocity``
        (mass a step, NaN at the last), all ``eta_y, seed, time``; ``z`` (``eta_y, seed, query, token``), the last logits.
        ``common`` (``token``), ``distinct`` and ``probability`` (``label, token``) say what the tokens are.

    Source: Tian et al. 2023, figure 4.
    """
    classes = SequenceClasses.syn_small()
    rates = [(eta, eta_z) for eta in eta_y]
    got = seeded(classes, rates, seeds, range(steps + 1), steps=steps, momentum=momentum, progress=progress)
    mean, error = mean_and_stderr(got["attention"], 1)
    dims, by_seed = ("eta_y", "time", "label", "token"), ("eta_y", "seed", "time")
    scalars = ("distinct_entropy", "common_mass", "loss", "attention_velocity")
    return labelled(
        {"value": (dims, mean), "stderr": (dims, error), "z": (("eta_y", "seed", "query", "token"), got["z"][:, :, -1])}
        | {name: (by_seed, got[name]) for name in scalars}
        | kinds(classes),
        {"eta_y": list(eta_y), "seed": np.arange(seeds), "time": np.arange(steps + 1)},
        measure=_described("attention_by_iteration", classes, rates, seeds=seeds, steps=steps, momentum=momentum),
        definition="attention c_l|n of long sequences at every step of SGD on Syn-Small, mean over seeds",
        source="Tian et al. 2023, figure 4",
        units="attention mass",
    )


def kinds(classes: SequenceClasses) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Which tokens are common, which distinct, and how likely: variables for a result."""
    dims = ("label", "token")
    found: dict[str, tuple[tuple[str, ...], np.ndarray]] = {"common": (("token",), classes.common.numpy())}
    return found | {"distinct": (dims, classes.distinct.numpy()), "probability": (dims, classes.p.numpy())}


def peak_order(
    *,
    eta: Sequence[float] = (1.0, 3.0),
    seeds: int = 10,
    steps: int = 100,
    momentum: float = AUTHORS_MOMENTUM,
    progress: bool | None = None,
) -> "xr.Dataset":
    """In which order attention leaves the distinct tokens of Syn-Small: rare ones first, the likeliest last or never.

    Args:
        eta: rates of decoder and attention alike. seeds, steps, momentum: see the module. progress: show a bar.

    Returns:
        Over ``rank``, a label's distinct tokens from the rarest to the likeliest: ``value`` (``eta, rank``), the step at which
        attention was largest, 0 to ``steps``, mean over labels and seeds, with ``stderr`` over seeds (without an order all
        tokens would have one value); ``peak_time`` and ``end_over_start`` (``eta, seed, label, rank``), the latter attention at
        the end over that at the start; ``attention`` (``eta, time, rank``), mean over labels and seeds; ``probability``.

    Source: Tian et al. 2023, sections 1 and 6; figure 4 shows it as pictures.
    """
    classes = SequenceClasses.syn_small()
    rates = [(one, one) for one in eta]
    got = seeded(classes, rates, seeds, range(steps + 1), steps=steps, momentum=momentum, progress=progress)
    p = classes.p.numpy()
    own = np.stack([sorted(np.flatnonzero(row), key=lambda token, n=n: p[n, token]) for n, row in enumerate(classes.distinct)])
    peak = np.take_along_axis(got["peak_time"], own[None, None], -1)
    attention = np.take_along_axis(got["attention"], own[None, None, None], -1)
    mean, error = mean_and_stderr(peak.mean(2), 1)
    return labelled(
        {
            "value": (("eta", "rank"), mean),
            "stderr": (("eta", "rank"), error),
            "peak_time": (("eta", "seed", "label", "rank"), peak),
            "end_over_start": (("eta", "seed", "label", "rank"), attention[:, :, -1] / attention[:, :, 0]),
            "attention": (("eta", "time", "rank"), attention.mean((1, 3))),
            "probability": (("rank",), p[0, own[0]]),
        },
        {"eta": list(eta), "seed": np.arange(seeds), "time": np.arange(steps + 1), "rank": np.arange(own.shape[1])},
        measure=_described("peak_order", classes, rates, seeds=seeds, steps=steps, momentum=momentum),
        definition="step at which attention to a distinct token was largest, tokens by rising probability",
        source="Tian et al. 2023, section 6",
        units="steps",
    )


def norm_ablation(
    *,
    eta: float = 1.0,
    seeds: int = 10,
    steps: int = 100,
    momentum: float = AUTHORS_MOMENTUM,
    progress: bool | None = None,
) -> "xr.Dataset":
    """Attention with and without the l2 norm of its output: without it there is no snap and the winner takes all.

    Args:
        eta: rate of decoder and attention alike. seeds, steps, momentum: see the module. progress: show a bar.

    Returns:
        ``value`` (``norm, time``): entropy among distinct tokens (nats, 0 to 2.30, 2.15 at the start), mean over seeds, with
        ``stderr``; ``mass``, ``mass_stderr``, the same of attention on common tokens; ``distinct_entropy`` and ``common_mass``
        (``norm, seed, time``).

    Source: ours; the norm is section 2 of Tian et al. 2023, and what its absence leads to is like Tarzanagh et al. 2023.
    """
    classes, rates = SequenceClasses.syn_small(), [(eta, eta)]
    options = {"steps": steps, "momentum": momentum, "progress": progress}
    got = [seeded(classes, rates, seeds, range(steps + 1), norm=norm, **options) for norm in (True, False)]
    entropy, mass = (np.concatenate([one[name] for one in got]) for name in ("distinct_entropy", "common_mass"))
    dims, by_seed = ("norm", "time"), ("norm", "seed", "time")
    (mean, error), (mass_mean, mass_error) = mean_and_stderr(entropy, 1), mean_and_stderr(mass, 1)
    return labelled(
        {
            "value": (dims, mean),
            "stderr": (dims, error),
            "mass": (dims, mass_mean),
            "mass_stderr": (dims, mass_error),
            "distinct_entropy": (by_seed, entropy),
            "common_mass": (by_seed, mass),
        },
        {"norm": ["l2", "none"], "seed": np.arange(seeds), "time": np.arange(steps + 1)},
        measure=_described("norm_ablation", classes, rates, seeds=seeds, steps=steps, momentum=momentum),
        definition="entropy of attention among a label's distinct tokens, with and without f = c / |c|",
        source="ours, of the model of Tian et al. 2023, section 2",
        units="nats",
    )


def entropy_bounce(*, seeds: int = 10, steps: int = 5_000, progress: bool | None = None) -> "xr.Dataset":
    """JoMA's attention entropy under a nonlinear activation, which drops and comes back, and under a linear one, which drops.

    Args:
        seeds: of the targets ``mu``; seed 0 is the authors'. steps: of Euler. progress: show a bar.

    Returns:
        ``value`` (``step``), entropy (nats, 0 to ln 10) over seeds, with ``stderr``; ``nonlinear`` (``seed, step``) and
        ``limit`` (``seed``), where it tends; ``linear`` (``seed, step``), that of a linear activation driven by the same ``mu``,
        its time stretched so that it diverges just after the last step; ``minimum`` (``seed``), the step of least entropy, and
        ``ratio`` (``seed``), bounce over drop: 0 where nothing comes back, 1 where all of it does.

    Source: Tian et al. 2023b, theorems 2 and 3, figure 4.
    """
    import torch

    check_whole("seeds", seeds, 1)
    runs = [EntropyBounce(seed=seed, steps=steps).run() for seed in bar(range(seeds), label="JoMA, entropy", on=progress)]
    nonlinear = np.stack([run["value"].values for run in runs])
    linear = []
    for run in runs:
        drive = torch.from_numpy(run["target"].values)
        time = torch.linspace(0, blow_up_time(drive), steps + 2, dtype=torch.float64)[:-1]
        linear.append(attention_entropy(linear_activation(drive, time), temperature=EXP_TEMPERATURE).numpy())
    mean, error = mean_and_stderr(nonlinear)
    low = nonlinear.min(1)
    both = ("seed", "step")
    return labelled(
        {
            "value": (("step",), mean),
            "stderr": (("step",), error),
            "nonlinear": (both, nonlinear),
            "linear": (both, np.stack(linear)),
            "limit": (("seed",), np.array([float(run["limit"]) for run in runs])),
            "minimum": (("seed",), nonlinear.argmin(1)),
            "ratio": (("seed",), (nonlinear[:, -1] - low) / (nonlinear[:, 0] - low)),
        },
        {"seed": np.arange(seeds), "step": np.arange(steps + 1)},
        measure=Experiment("entropy_bounce", {"seeds": seeds, "of": EntropyBounce(steps=steps).spec()}),
        definition="entropy of softmax(v^2 / T) along JoMA's equations, mean over seeds of the targets",
        source="Tian et al. 2023b, theorems 2 and 3, figure 4",
        units="nats",
    )


def _described(name: str, classes: SequenceClasses, rates: Sequence[tuple[float, float]], **options: Any) -> Experiment:
    return Experiment(name, {"classes": classes.spec(), "rates": [list(pair) for pair in rates]} | options)
