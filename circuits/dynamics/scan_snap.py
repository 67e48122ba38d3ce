"""The one-layer model of Scan & Snap: its attention, its exact gradient, and steps along it.

With ``Z`` the attention logits (a row for every query, a column for every context token) and ``Y`` the decoder's logits (a row
for every context token, a column for every output), a sequence of label ``n`` and query ``m`` in which token ``l`` stands
``x_l`` times gives

    c_l = x_l e^{z_ml} / sum_l' x_l' e^{z_ml'}        f = c / |c|        logits = Y^T f        alpha = softmax(logits)

There are no positions, no residual and no MLP, and the query does not attend to itself. The log likelihood of label ``n`` has,
with ``g = Y (e_n - alpha)``, the gradients (lemma 1)

    dY = f (e_n - alpha)^T        dz_m = f o (g - f (f . g))          all other rows of Z: 0

so row sums of both, and ``z`` of tokens that never stand before a query, keep their values. Without the norm ``f = c`` and
``dz_m = c o (g - c . g)``. ``x_l = P(l | n)`` is the limit of long sequences (lemma 2).

Outputs that never come next have the same column of ``Y`` for all time if they start with it: they are one column here, counted
``multiplicity`` times. Weights climb the mean gradient of a batch; one step is one unit of time. With momentum, ``v <- momentum
v + gradient`` and ``w <- w + eta v``: after ``1 / (1 - momentum)`` steps of lag the weights move at ``eta / (1 - momentum)``, so
a clock of the theory is to be read with that rate, and says nothing about times below the lag.

Everything here has a leading axis of runs, each with its own rates.

Source: Tian et al. 2023, sections 2 and 3, lemmas 1 and 2.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.results import check_whole, labelled

if TYPE_CHECKING:
    import xarray as xr

RECORDED = 200
"""Steps that a trajectory keeps, unless told which."""


class Batch(NamedTuple):
    """Sequences of every run, or the same of all (one run).

    Attributes:
        counts: how often each token stands in the sequence, or its probability. labels, queries: of each sequence.
    """

    counts: Float[Tensor, "run example token"]
    labels: Int[Tensor, "run example"]
    queries: Int[Tensor, "run example"]


class Weights(NamedTuple):
    """``Y`` and ``Z`` of every run, and how many outputs each column of ``Y`` stands for."""

    y: Float[Tensor, "run token output"]
    z: Float[Tensor, "run query token"]
    multiplicity: Float[Tensor, "output"]


class Gradients(NamedTuple):
    """Of the batch's mean log likelihood; of ``y``, of each of the outputs that a column stands for. ``loss``: its negative."""

    y: Float[Tensor, "run token output"]
    z: Float[Tensor, "run query token"]
    loss: Float[Tensor, "run"]


class Path(NamedTuple):
    """What was kept: ``Z`` and the loss before the update of each kept step; the weights after the last."""

    z: Float[Tensor, "run time query token"]
    loss: Float[Tensor, "run time"]
    last: Weights


def zero_weights(runs: int, *, tokens: int, queries: int, labels: int, d_vocab: int) -> Weights:
    """``Y = Z = 0``, the ``d_vocab - labels`` unused outputs in one column (none if there are no such outputs)."""
    unused = d_vocab - labels
    multiplicity = torch.ones(labels + bool(unused), dtype=torch.float64)
    multiplicity[labels:] = unused
    y = torch.zeros(runs, tokens, len(multiplicity), dtype=torch.float64)
    return Weights(y, torch.zeros(runs, queries, tokens, dtype=torch.float64), multiplicity)


def gradients(weights: Weights, batch: Batch, *, norm: bool = True) -> Gradients:
    """The gradient of the mean log likelihood, written out (see the module).

    Args:
        weights: where. batch: of which sequences. norm: divide attention's output by its l2 norm, as the paper does.

    Returns:
        Gradients in the weights' own shapes, and the loss in nats; ``ln M`` at ``Y = 0``.

    Source: Tian et al. 2023, lemma 1.
    """
    y, z, multiplicity = weights
    runs, examples = len(z), batch.labels.shape[1]
    at = torch.arange(runs)[:, None]
    labels, queries = batch.labels.expand(runs, -1), batch.queries.expand(runs, -1)
    f = batch.counts * (z - z.amax(-1, keepdim=True)).exp()[at, queries]
    f = f / (f.norm(dim=-1, keepdim=True) if norm else f.sum(-1, keepdim=True))
    logits = f @ y
    log_total = (logits + multiplicity.log()).logsumexp(-1, keepdim=True)
    wanted = labels[..., None]
    loss = log_total - logits.gather(-1, wanted)
    error = -(logits - log_total).exp()  # e_n - alpha, of one of the outputs that a column stands for
    error.scatter_add_(-1, wanted, torch.ones_like(loss))
    g = (error * multiplicity) @ y.mT
    along = (f * g).sum(-1, keepdim=True)
    dz = f * (g - f * along if norm else g - along)
    to_query = torch.nn.functional.one_hot(queries, z.shape[1]).to(f)
    return Gradients(f.mT @ error / examples, to_query.mT @ dz / examples, loss.mean((1, 2)))


def descend(
    weights: Weights,
    batches: Iterable[Batch],
    *,
    eta_y: Float[Tensor, "run"],
    eta_z: Float[Tensor, "run"],
    record: Sequence[int],
    momentum: float = 0.0,
    norm: bool = True,
) -> Path:
    """Follow the gradient, one step a batch; the last batch is only measured.

    Args:
        weights: the start, left as it is. batches: one more than steps. eta_y, eta_z: rates of each run.
        record: steps to keep, rising, the last no later than the number of steps. momentum, norm: see the module.
    """
    y, z, multiplicity = weights
    speed_y, speed_z = torch.zeros_like(y), torch.zeros_like(z)
    rate_y, rate_z = (eta.to(y)[:, None, None] for eta in (eta_y, eta_z))
    kept_z, kept_loss = z.new_empty(len(z), len(record), *z.shape[1:]), z.new_empty(len(z), len(record))
    places, last = {step: place for place, step in enumerate(record)}, record[-1]
    for step, batch in enumerate(batches):
        found = gradients(Weights(y, z, multiplicity), batch, norm=norm)
        if step in places:
            kept_z[:, places[step]], kept_loss[:, places[step]] = z, found.loss
        if step == last:
            break
        speed_y, speed_z = momentum * speed_y + found.y, momentum * speed_z + found.z
        y, z = y + rate_y * speed_y, z + rate_z * speed_z
    return Path(kept_z, kept_loss, Weights(y, z, multiplicity))


def trajectory(
    z: np.ndarray, loss: np.ndarray, times: Sequence[int], runs: dict[str, np.ndarray], *, measure: Any, source: str
) -> "xr.Dataset":
    """Label attention logits and losses along training."""
    return labelled(
        {"z": (("run", "time", "query", "token"), z), "loss": (("run", "time"), loss)},
        {"run": np.arange(len(z)), "time": np.asarray(times)} | {name: ("run", values) for name, values in runs.items()},
        measure=measure,
        definition="attention logits z_ml of query m and context token l; loss: mean cross-entropy over all M outputs",
        source=source,
        units="logits; nats",
    )


def recorded(record: Sequence[int] | None, steps: int) -> tuple[int, ...]:
    """The steps that a trajectory keeps: those given, or about ``RECORDED``, the first ones all and then ever wider apart.

    Raises:
        ValueError: none, one given twice, or one outside ``0 .. steps``.
    """
    if record is None:
        wide = np.geomspace(1, max(steps, 1), RECORDED).round().astype(int)
        return tuple(sorted({0, steps, *(int(step) for step in wide if step <= steps)}))
    chosen = tuple(int(step) for step in record)
    if not chosen or sorted(set(chosen)) != list(chosen) or chosen[0] < 0 or chosen[-1] > steps:
        raise ValueError(f"record={list(chosen)[:8]}: need rising steps from 0 to {steps}, e.g. range({steps + 1})")
    return chosen


def spread_runs(**of_runs: int | float | Sequence[float] | Sequence[int]) -> dict[str, np.ndarray]:
    """One value a run of everything: of each, one for all runs or as many as there are runs.

    Raises:
        ValueError: numbers of values that do not go together, or none.
    """
    arrays = {name: np.atleast_1d(np.asarray(values)) for name, values in of_runs.items()}
    runs = max(len(one) for one in arrays.values())
    if any(one.ndim != 1 or len(one) not in (1, runs) or not len(one) for one in arrays.values()):
        counts = ", ".join(f"{one.size} of {name}" for name, one in arrays.items())
        raise ValueError(f"{counts}: give one value for each run, or one for all")
    return {name: np.broadcast_to(one, runs) for name, one in arrays.items()}


def check_rates(momentum: float, **rates: np.ndarray) -> None:
    """Refuse rates that are negative or not finite, and a momentum outside [0, 1).

    Raises:
        ValueError: one is.
    """
    for name, values in rates.items():
        if values.dtype.kind not in "iuf" or not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(f"{name}={values.tolist()}: need finite rates from 0 up, numbers")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum}: need a number in [0, 1); the rate in the long run is eta / (1 - momentum)")


def check_steps(steps: int) -> None:
    """Refuse fewer steps than one.

    Raises:
        ValueError: there are.
    """
    check_whole("steps", steps, 1)
