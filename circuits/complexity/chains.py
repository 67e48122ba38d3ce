"""Run chains on a loss: traces of the paired loss and of the distance from ``w*``.

Every chain reads its own batches of a fixed pool of examples, each drawn anew, and every loss is paired with the loss of ``w*``
on the same batch: what batches differ by cancels. The loss of a draw is taken before the step that its batch makes, so a draw
and its batch are independent. Step 0 is ``w*`` itself and no draw.

A chain diverges where its loss is not finite, where ``nbeta (L(w) - L(w*))`` exceeds ``EXPLODED`` times what a quadratic loss has
in the mean at most (half the number of parameters; of ``FEWEST``, as few of them vary more), or where it is ``FAR`` times as
far from ``w*`` as localisation alone lets it; it is stopped there. Of thousands of weights and a loss in nats per token the first
bound is never met, and the distance decides.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.complexity.config import STABLE, SamplerConfig
from circuits.complexity.samplers import State, init, step

EXPLODED, FEWEST = 10.0, 20
FAR = 5.0


@runtime_checkable
class Loss(Protocol):
    """A loss of one block of parameters over a fixed pool of examples; all else stays at ``w*``.

    Attributes:
        centre: ``w*``. base: losses of ``w*``, ``[example, ...]``: what an example has several of (positions) counts alike.
    """

    centre: Float[Tensor, "parameter"]
    base: Float[Tensor, "example *part"]

    def loss(
        self, w: Float[Tensor, "chain parameter"], examples: Int[Tensor, "chain example"]
    ) -> Float[Tensor, "chain example *part"]:
        """Losses of every chain on examples of its own."""
        ...

    def loss_and_gradient(
        self, w: Float[Tensor, "chain parameter"], examples: Int[Tensor, "chain example"]
    ) -> tuple[Float[Tensor, "chain example *part"], Float[Tensor, "chain parameter"]]:
        """The same, and the gradient of each chain's mean."""
        ...


class Traces(NamedTuple):
    """What the chains saw at their kept draws; NaN from where a chain diverged.

    Attributes:
        loss: mean over the draw's batch. base: of ``w*`` on the same batch. distance: squared, from ``w*``.
        diverged: which chains did. parts: mean over draws of ``L(w) - L(w*)`` for every part of every example, NaN where no
            draw of a chain that ended well had it; None unless asked for.
    """

    loss: Float[Tensor, "chain draw"]
    base: Float[Tensor, "chain draw"]
    distance: Float[Tensor, "chain draw"]
    diverged: Bool[Tensor, "chain"]
    parts: Float[Tensor, "example *part"] | None

    @property
    def paired(self) -> Float[Tensor, "chain draw"]:
        """``L(w) - L(w*)``; exactly 0 where a chain has not moved, which rounding would spoil."""
        return torch.where(self.distance == 0, 0.0, self.loss - self.base)


def run_chains(
    loss: Loss, config: SamplerConfig, *, gamma: float, stream: tuple[int, ...] = (), keep_parts: bool = False
) -> Traces:
    """Sample.

    Args:
        loss: what to sample. config: how. gamma: the localisation, ``config.gamma_for(rms)``.
        stream: numbers that keep the randomness of this block of parameters apart from others of the same seed.
        keep_parts: also average every example's every part.
    """
    centre, size, device = loss.centre, len(loss.centre), loss.centre.device
    rng = torch.Generator().manual_seed(_seed(config.seed, *stream))
    state, start = init(centre, config), init(centre, config)
    stopped = torch.zeros(config.chains, dtype=torch.bool, device=device)
    shape = (config.chains, config.draws)
    seen = tuple(torch.full(shape, torch.nan, dtype=torch.float64, device=device) for _ in range(3))
    sums = loss.base.new_zeros(config.chains, *loss.base.shape) if keep_parts else None
    times = loss.base.new_zeros(config.chains, len(loss.base)) if keep_parts else None
    most = EXPLODED * max(size, FEWEST) / 2 / config.nbeta
    furthest = FAR**2 * size / gamma / max(1 - config.epsilon * gamma / STABLE, 0.1) if gamma else torch.inf
    for at in range(config.steps + 1):
        draw, between = divmod(at - config.burn_in, config.thin)
        kept, last = at > config.burn_in and between == 0, at == config.steps
        examples = _apart(at, config, lambda groups: _batches(groups, len(loss.base), config.batch, rng)).to(device)
        # Which sequences a batch has first is random, so the gradient of the first is one of a smaller batch.
        first, others = examples.tensor_split([config.batch if config.gradient_batch is None else config.gradient_batch], 1)
        losses, gradient = (loss.loss(state.w, examples), None) if last else loss.loss_and_gradient(state.w, first)
        if not last and others.numel() and kept:
            losses = torch.cat([losses, loss.loss(state.w, others)], 1)
        elif not kept:
            examples = first
        base = loss.base[examples]
        value, before = mean_of(losses), mean_of(base)
        distance = (state.w - centre).double().square().sum(-1)
        stopped |= ~((value - before <= most) & (distance <= furthest))  # NaN fails both
        if kept:
            for trace, now in zip(seen, (value, before, distance), strict=True):
                trace[:, draw - 1] = torch.where(stopped, torch.nan, now)
            if sums is not None and times is not None:
                for chain, places in enumerate(examples):
                    sums[chain].index_add_(0, places, losses[chain] - base[chain])
                    times[chain].index_add_(0, places, torch.ones_like(times[chain, : len(places)]))
        if gradient is None:
            break
        noise = _apart(at, config, lambda groups: torch.randn(groups, size, generator=rng, dtype=centre.dtype)).to(device)
        moved = step(state, gradient, noise, centre=centre, gamma=gamma, config=config)
        state = _held(moved, start, stopped) if bool(stopped.any()) else moved
    parts = None
    if sums is not None and times is not None:
        parts = sums[~stopped].sum(0) / times[~stopped].sum(0).view(-1, *[1] * (sums.ndim - 2))
    values, initial, distances = seen
    return Traces(values, initial, distances, stopped, parts)


def mean_of(losses: Float[Tensor, "batch *part"]) -> Float[Tensor, "batch"]:
    """The mean over all that follows the first axis, summed in double precision."""
    return losses.flatten(1).double().mean(1)


def _batches(groups: int, examples: int, batch: int, rng: torch.Generator) -> Int[Tensor, "chain example"]:
    """A batch for each chain: different examples, in random order; independent of all other batches."""
    return torch.stack([torch.randperm(examples, generator=rng)[:batch] for _ in range(groups)])


def _apart(at: int, config: SamplerConfig, draw: Callable[[int], Tensor]) -> Tensor:
    """Randomness of one step: the same for the chains of a superchain while they are together, each its own afterwards."""
    if at < config.burn_in // 2:
        return draw(config.groups).repeat_interleave(config.chains // config.groups, 0)
    return draw(config.chains)


def _held(moved: State, start: State, stopped: Bool[Tensor, "chain"]) -> State:
    """Chains that diverged are put back to where nothing overflows; their traces stay NaN."""
    out = stopped[:, None]
    square, first = moved.mean_square, start.mean_square
    return State(torch.where(out, start.w, moved.w), None if square is None or first is None else torch.where(out, first, square))


def _seed(*numbers: int) -> int:
    """One 63-bit seed of several numbers."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))
