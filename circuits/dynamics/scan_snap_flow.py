"""Scan & Snap without noise: the population's gradient in the limit of long sequences (recipe R2).

Frequencies of context tokens are their probabilities and every label weighs ``1 / K``:

    dY/dt = eta_y / K sum_n f_n (e_n - alpha_n)^T
    dz_m/dt = eta_z / K sum_{n: psi(n) = m} f_n o P_perp(f_n) Y (e_n - alpha_n),        P_perp(f) = I - f f^T

One unit of time is one step of SGD on a batch's mean, or one sample by itself. It is integrated by ``substeps`` Euler steps a
unit; one of them is gradient descent on the whole population, the limit of large batches. The flow depends on ``eta_y t`` and
``eta_z / eta_y`` alone, so rates half as large for twice as long show what Euler's steps cost.

Source: Tian et al. 2023, equation 5, lemmas 1 and 2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from circuits.data.classes import SequenceClasses
from circuits.dynamics.scan_snap import (
    Batch,
    Path,
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


@dataclass(frozen=True)
class Flow:
    """The population's gradient from ``Y = Z = 0``.

    Args:
        classes: of which sequences. eta_y, eta_z: rates of the decoder and of attention, one for all runs or one for each.
        steps: units of time. substeps: Euler steps to a unit.
        momentum: 0 is the flow; else of Euler's steps, for comparison with SGD. norm: l2-normalise attention's output.

    Raises:
        ValueError: a number that makes no sense.
    """

    classes: SequenceClasses
    eta_y: float | tuple[float, ...] = 0.1
    eta_z: float | tuple[float, ...] = 0.1
    steps: int = 1000
    substeps: int = 1
    momentum: float = 0.0
    norm: bool = True
    name: str = field(default="scan_snap_flow", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_steps(self.steps)
        check_whole("substeps", self.substeps, 1)
        check_rates(self.momentum, **self.runs)

    @property
    def runs(self) -> dict[str, np.ndarray]:
        """``eta_y`` and ``eta_z`` of each run."""
        return spread_runs(eta_y=self.eta_y, eta_z=self.eta_z)

    def spec(self) -> dict[str, Any]:
        """Everything the numbers depend on."""
        runs = {name: values.tolist() for name, values in self.runs.items()}
        rest = {name: getattr(self, name) for name in ("steps", "substeps", "momentum", "norm")}
        return {"classes": self.classes.spec()} | runs | rest

    def run(self, record: Sequence[int] | None = None, *, progress: bool | None = None) -> "xr.Dataset":
        """Integrate every run.

        Args:
            record: units of time to keep (default: 0, the last, and about 200 ever wider apart). progress: show a bar (default:
                where somebody watches).

        Returns:
            ``z`` (``run, time, query, token``): attention logits, exactly 0 for what never co-occurs; ``loss`` (``run, time``):
            nats, of the population, ``ln M`` at first.
        """
        kept = recorded(record, self.steps)
        with bar(total=kept[-1], label="scan & snap, flow", on=progress) as shown:
            path = self.path(kept, shown)
        source = "Tian et al. 2023, equation 5 and lemma 1"
        return trajectory(path.z.numpy(), path.loss.numpy(), kept, self.runs, measure=self, source=source)

    def path(self, record: Sequence[int], shown: Any = None) -> Path:
        """The same as tensors, with the last decoder."""
        eta_y, eta_z = (torch.as_tensor(self.runs[name].astype(float)) / self.substeps for name in ("eta_y", "eta_z"))
        classes = self.classes
        sizes = {"tokens": classes.n_tokens, "queries": classes.n_queries, "labels": classes.n_labels}
        return descend(
            zero_weights(len(eta_y), **sizes, d_vocab=classes.d_vocab),
            self._batches(record[-1], shown),
            eta_y=eta_y,
            eta_z=eta_z,
            record=[time * self.substeps for time in record],
            momentum=self.momentum,
            norm=self.norm,
        )

    def _batches(self, steps: int, shown: Any) -> Iterator[Batch]:
        """Every label once, with probabilities for counts, at every step."""
        labels = torch.arange(self.classes.n_labels)[None]
        batch = Batch(self.classes.p[None], labels, self.classes.psi[None])
        for step in range(steps * self.substeps + 1):
            yield batch
            if shown is not None and step % self.substeps == 0 and step:
                shown.update(1)
