"""Scan & Snap by minibatch SGD: the paper's simulations, many runs at once (recipe R1).

Every step each run draws labels, and for each the counts of ``length - 1`` context tokens: a multinomial, which is all that
the model sees of a sequence without positions. Runs of one seed see the same sequences and, at random, start from the same
weights, whatever their rates: differences between rates are then not differences between draws, and the draws cost once.
What a run sees depends on its seed alone, not on which runs stand beside it.

The paper's own runs have momentum 0.9, batches of 128 sequences of ``length`` 128, and 100 steps. Its theory has no momentum,
which is 0 here unless asked for; see ``circuits.dynamics.scan_snap`` for what it does to the clock.

Source: Tian et al. 2023, section 6 (figures 4 and 6) and appendix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.data.classes import SequenceClasses
from circuits.dynamics.scan_snap import (
    Batch,
    Path,
    Weights,
    check_rates,
    check_steps,
    descend,
    recorded,
    spread_runs,
    trajectory,
    zero_weights,
)
from circuits.progress import bar
from circuits.results import check_whole

if TYPE_CHECKING:
    import xarray as xr

Start = Literal["zero", "uniform"]
TOGETHER = 1 << 20
"""Numbers of attention and of logits that runs computed together may have: what fits a cache is faster."""
START, DRAWS = 71, 72
"""Streams of randomness: of the first weights, and of sequences."""


@dataclass(frozen=True)
class Sgd:
    """Minibatch SGD of ``(Y, Z)``.

    Args:
        classes: what sequences are drawn from.
        eta_y, eta_z: learning rates of the decoder and of attention: one for all runs, or one for each.
        seed: likewise.
        steps, batch, length: updates, sequences in a batch, and the paper's ``T``: context tokens and the query.
        momentum: of both; the rate in the long run is ``eta / (1 - momentum)``. norm: l2-normalise attention's output.
        start: "zero" for ``Y = Z = 0``; "uniform" for entries within ``1 / sqrt(M)``, as ``torch.nn.Linear`` starts.

    Raises:
        ValueError: a number that makes no sense.
    """

    classes: SequenceClasses
    eta_y: float | tuple[float, ...] = 1.0
    eta_z: float | tuple[float, ...] = 1.0
    seed: int | tuple[int, ...] = 0
    steps: int = 100
    batch: int = 128
    length: int = 128
    momentum: float = 0.0
    norm: bool = True
    start: Start = "zero"
    name: str = field(default="scan_snap_sgd", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_steps(self.steps)
        check_whole("batch", self.batch, 1)
        check_whole("length", self.length, 2, "one context token and the query")
        if self.start not in get_args(Start):
            raise ValueError(f"start={self.start!r}: need one of {get_args(Start)}")
        runs = self.runs
        check_rates(self.momentum, eta_y=runs["eta_y"], eta_z=runs["eta_z"])
        if runs["seed"].dtype.kind not in "iu" or runs["seed"].min() < 0:
            raise ValueError(f"seed={self.seed!r}: need whole numbers from 0 up")

    @property
    def runs(self) -> dict[str, np.ndarray]:
        """``eta_y``, ``eta_z`` and ``seed`` of each run."""
        return spread_runs(eta_y=self.eta_y, eta_z=self.eta_z, seed=self.seed)

    def spec(self) -> dict[str, Any]:
        """Everything the numbers depend on."""
        runs = {name: values.tolist() for name, values in self.runs.items()}
        rest = {name: getattr(self, name) for name in ("steps", "batch", "length", "momentum", "norm", "start")}
        return {"classes": self.classes.spec()} | runs | rest

    def run(self, record: Sequence[int] | None = None, *, progress: bool | None = None) -> "xr.Dataset":
        """Train every run.

        Args:
            record: steps to keep, before their update (default: 0, the last, and about 200 ever wider apart). progress: show a
                bar (default: where somebody watches).

        Returns:
            ``z`` (``run, time, query, token``): attention logits, 0 for what never co-occurs unless the start is random;
            ``loss`` (``run, time``): nats, mean over the step's batch, near ``ln M`` at first. ``time`` counts updates.
        """
        kept, runs = recorded(record, self.steps), self.runs
        columns = self.classes.n_tokens + self.classes.d_vocab
        size = max(1, TOGETHER // (self.batch * columns))
        # Runs of one seed stand together, as they share their sequences.
        order = np.argsort(runs["seed"], kind="stable")
        chunks = [order[first : first + size] for first in range(0, len(order), size)]
        z: np.ndarray | None = None
        loss = np.empty((len(order), len(kept)))
        with bar(total=len(order) * self.steps, label="scan & snap, SGD", on=progress) as shown:
            for chunk in chunks:
                path = self.path(chunk, kept, shown)
                z = np.empty((len(order), *path.z.shape[1:])) if z is None else z
                z[chunk], loss[chunk] = path.z.numpy(), path.loss.numpy()
        assert z is not None  # there is a run
        return trajectory(z, loss, kept, runs, measure=self, source="Tian et al. 2023, section 6")

    def path(self, chosen: Sequence[int] | np.ndarray, record: Sequence[int], shown: Any = None) -> Path:
        """Some of the runs, in the order given, as tensors."""
        runs = {name: values[np.asarray(chosen)] for name, values in self.runs.items()}
        seeds, own = np.unique(runs["seed"], return_inverse=True)
        return descend(
            self.first_weights(runs["seed"].tolist()),
            self._batches(seeds.tolist(), torch.from_numpy(own), record[-1], shown),
            eta_y=torch.as_tensor(runs["eta_y"].astype(float)),
            eta_z=torch.as_tensor(runs["eta_z"].astype(float)),
            record=record,
            momentum=self.momentum,
            norm=self.norm,
        )

    def first_weights(self, seeds: Sequence[int]) -> Weights:
        """Where each run starts. At random every output has a column of its own."""
        classes = self.classes
        sizes = {"tokens": classes.n_tokens, "queries": classes.n_queries, "labels": classes.n_labels}
        if self.start == "zero":
            return zero_weights(len(seeds), **sizes, d_vocab=classes.d_vocab)
        bound = classes.d_vocab**-0.5
        y, z = [], []
        for seed in seeds:
            rng = np.random.default_rng([seed, START])
            y.append(torch.from_numpy(rng.uniform(-bound, bound, (classes.n_tokens, classes.d_vocab))))
            z.append(torch.from_numpy(rng.uniform(-bound, bound, (classes.n_queries, classes.n_tokens))))
        return Weights(torch.stack(y), torch.stack(z), torch.ones(classes.d_vocab, dtype=torch.float64))

    def _batches(self, seeds: list[int], own: Int[Tensor, "run"], steps: int, shown: Any) -> Iterator[Batch]:
        """Batches of runs whose seeds are ``seeds[own]``."""
        draws = [ContextDraws(self.classes, seed) for seed in seeds]
        for step in range(steps + 1):
            labels, counts = zip(*(one.draw(self.batch, self.length - 1) for one in draws), strict=True)
            chosen = torch.stack(labels)[own]
            yield Batch(torch.stack(counts)[own], chosen, self.classes.psi[chosen])
            if shown is not None and step:
                shown.update(len(own))


class ContextDraws:
    """Random labels and counts of their context tokens, one seed's stream of them."""

    def __init__(self, classes: SequenceClasses, seed: int):
        self.rng = np.random.default_rng([seed, DRAWS])
        self.tokens = classes.n_tokens
        p = classes.p.numpy()
        width = int((p > 0).sum(1).max())
        # Each label's own tokens at the end of its row: numpy gives what rounding leaves over to the last category.
        self.places = np.argsort(p > 0, axis=1, kind="stable")[:, -width:]
        self.p = np.take_along_axis(p, self.places, 1)

    def draw(self, batch: int, contexts: int) -> tuple[Int[Tensor, "example"], Float[Tensor, "example token"]]:
        """Labels, each equally likely, and how often each token stands among ``contexts`` of them."""
        labels = self.rng.integers(len(self.p), size=batch)
        counts = np.zeros((batch, self.tokens))
        np.put_along_axis(counts, self.places[labels], self.rng.multinomial(contexts, self.p[labels]), 1)
        return torch.from_numpy(labels), torch.from_numpy(counts)
