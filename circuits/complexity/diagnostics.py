"""Whether chains can be believed, and how far: standard error, effective sample size, R-hat, and one word.

The estimate is ``nbeta`` times the mean paired loss over the draws of all chains that did not diverge. Its standard error is
the Monte Carlo error of that mean, with autocorrelation within chains and differences between them (Geyer 1992; Vehtari et al.
2021). It is the error of sampling, given the pool of examples, not of having no other text.

``rhat`` is the largest of four nested R-hats (Margossian et al. 2024), each ``sqrt(1 + B / W)``: of the paired loss and of the
squared distance from ``w*``, once between superchains (chains that started together against others) and once between the first
and second halves of all chains, which chains that all wander alike cannot hide from.

    ok           rhat < 1.1 and an effective sample of at least 40 draws
    not mixed    rhat is larger
    few draws    the effective sample is smaller
    unmoved      no chain has left w*
    diverged     a chain diverged and is left out of the value
"""

from typing import Any, NamedTuple

import numpy as np

from circuits.complexity.chains import Traces
from circuits.complexity.config import SamplerConfig

MIXED, ENOUGH = 1.1, 40.0


class Estimate(NamedTuple):
    """One local learning coefficient with its diagnostics.

    Attributes:
        value, stderr: in units of ``nbeta`` times nats. rhat, ess: see above; ess is of the paired loss, over all chains.
        state: the word. distance: root mean square distance from ``w*``. n_diverged: chains.
    """

    value: float
    stderr: float
    rhat: float
    ess: float
    state: str
    distance: float
    n_diverged: int


def estimate(traces: Traces, config: SamplerConfig) -> Estimate:
    """Value and diagnostics of what the chains saw."""
    from arviz_stats.base.array import array_stats

    well = ~traces.diverged.cpu().numpy()
    lost = int((~well).sum())
    paired, distance = (x.cpu().numpy()[well] for x in (traces.paired, traces.distance))
    if not len(paired):
        return Estimate(np.nan, np.nan, np.nan, 0.0, "diverged", np.nan, lost)
    value, moved = config.nbeta * float(paired.mean()), float(np.sqrt(distance.mean()))
    if not distance.any():
        return Estimate(value, 0.0, np.nan, 0.0, "diverged" if lost else "unmoved", moved, lost)
    groups = np.repeat(np.arange(config.groups), config.chains // config.groups)
    # A superchain that lost a chain is no longer like the others: what is left is then compared chain by chain.
    groups = groups if not lost else np.arange(len(paired))
    enough = paired.shape[1] >= 4
    rhat = max(nested_rhat(x, groups) for x in (paired, distance)) if enough else np.nan
    ess = number(array_stats.ess(paired, method="mean")) if enough else np.nan
    stderr = config.nbeta * number(array_stats.mcse(paired, method="mean")) if enough else np.nan
    state = "diverged" if lost else "not mixed" if not rhat < MIXED else "few draws" if not ess >= ENOUGH else "ok"
    return Estimate(value, stderr, rhat, ess, state, moved, lost)


def nested_rhat(draws: np.ndarray, groups: np.ndarray) -> float:
    """The larger of two nested R-hats of ``draws [chain, draw]``: between groups of chains, and between halves of all chains."""
    from arviz_stats.base.array import array_stats

    if not np.ptp(draws):
        return 1.0  # draws that are all alike disagree in nothing
    half = draws.shape[1] // 2
    halves = np.concatenate([draws[:, :half], draws[:, -half:]])
    found = number(array_stats.rhat_nested(halves, superchain_ids=np.repeat([0, 1], len(draws)), method="identity"))
    if groups.max(initial=0) > 0:
        found = max(found, number(array_stats.rhat_nested(draws, superchain_ids=groups, method="split")))
    return found


def number(found: Any) -> float:
    """The one number that arviz gives as an array."""
    return float(np.asarray(found).item())
