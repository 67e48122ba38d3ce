"""What an intervention is judged by: one number per example, from final residual streams.

    "loss"      mean next-token cross-entropy over the predictions that count, in nats; ``count[e, t]`` is about predicting
                token t + 1 at position t. All are counted unless the caller says otherwise.
    a function  ``metric(logits [batch, pos, d_vocab], tokens [batch, pos]) -> [batch]``, of whatever unit

An intervention's effect is its metric less that of the run it starts from.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.models.final_losses import FinalLosses
from circuits.models.hooked import HookedTransformer
from circuits.models.stacked import Clean

Metric = str | Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Reader(Protocol):
    """Judges final streams of one batch."""

    def of(self, streams: Float[Tensor, "stack batch pos d_model"]) -> Float[Tensor, "stack batch"]: ...

    def after(
        self, resid: Float[Tensor, "batch pos d_model"], change: Float[Tensor, "stack batch pos head d_head"], layer: int
    ) -> Float[Tensor, "stack head batch"]:
        """Where the final stream gets ``change[head] W_O[head]`` of this layer, one head at a time."""
        ...


class LossReader:
    """Mean loss over the predictions that count."""

    def __init__(self, model: HookedTransformer, clean: Clean, targets: Tensor, count: Bool[Tensor, "batch pos_minus_1"]):
        self.losses = FinalLosses(model, targets, clean.scale("ln_final"))
        self.weight = count.to(clean.after[-1].dtype) / count.sum(-1, keepdim=True)

    def of(self, streams: Float[Tensor, "stack batch pos d_model"]) -> Float[Tensor, "stack batch"]:
        return (self.losses.losses(streams) * self.weight).sum(-1)

    def after(
        self, resid: Float[Tensor, "batch pos d_model"], change: Float[Tensor, "stack batch pos head d_head"], layer: int
    ) -> Float[Tensor, "stack head batch"]:
        return (self.losses.losses_after(resid, change, layer) * self.weight).sum(-1)


class LogitReader:
    """A function of logits and tokens."""

    def __init__(self, model: HookedTransformer, clean: Clean, targets: Tensor, metric: Callable[[Tensor, Tensor], Tensor]):
        self.model, self.scale, self.targets, self.metric = model, clean.scale("ln_final"), targets, metric

    def of(self, streams: Float[Tensor, "stack batch pos d_model"]) -> Float[Tensor, "stack batch"]:
        return torch.stack([self._judged(logits_of(self.model, x, self.scale)) for x in streams])

    def after(
        self, resid: Float[Tensor, "batch pos d_model"], change: Float[Tensor, "stack batch pos head d_head"], layer: int
    ) -> Float[Tensor, "stack head batch"]:
        W_O = self.model.blocks[layer].attn.W_O
        return torch.stack([self.of(torch.stack([resid + dz[:, :, h] @ W_O[h] for h in range(len(W_O))])) for dz in change])

    def _judged(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, "batch"]:
        value = self.metric(logits, self.targets)
        if not isinstance(value, Tensor) or value.shape != (len(self.targets),):
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the metric gave {given} for {len(self.targets)} examples; it must give one number for each, a tensor [batch]"
            )
        if not bool(torch.isfinite(value).all()):
            raise ValueError("the metric gave NaN or infinity for some example; it must give a number for each")
        return value.to(logits.dtype)


def logits_of(
    model: HookedTransformer, stream: Float[Tensor, "batch pos d_model"], scale: Tensor | None = None
) -> Float[Tensor, "batch pos d_vocab"]:
    """Final norm (its scale kept, if one is given), unembedding and cap."""
    logits = model.unembed(model.ln_final(stream) if scale is None else model.ln_final(stream, scale))
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def reader_of(
    metric: Metric,
    model: HookedTransformer,
    clean: Clean,
    targets: Int[Tensor, "batch pos"],
    count: Bool[Tensor, "batch pos_minus_1"],
) -> Reader:
    """The reader of a metric for one batch."""
    return LossReader(model, clean, targets, count) if isinstance(metric, str) else LogitReader(model, clean, targets, metric)


def check_metric(metric: Any, count: Any, shape: tuple[int, int]) -> None:
    """Refuse what is no metric, and a choice of predictions that does not fit it.

    Raises:
        TypeError, ValueError: as said.
    """
    if metric != "loss" and not callable(metric):
        raise TypeError(f"metric={metric!r}: need 'loss' or a function of (logits, tokens) that gives a tensor [batch]")
    if count is None:
        return
    if metric != "loss":
        raise ValueError("count chooses predictions of the metric 'loss': leave it out and let your own metric choose")
    wanted = (shape[0], shape[1] - 1)
    if not isinstance(count, Tensor) or count.dtype != torch.bool or tuple(count.shape) != wanted:
        given = f"{count.dtype} {tuple(count.shape)}" if isinstance(count, Tensor) else type(count).__name__
        raise ValueError(f"count is {given}, need one bool for each predicted token, {wanted}")
    if not bool(count.any(-1).all()):
        raise ValueError(
            f"example {int((~count.any(-1)).nonzero()[0])} has no prediction that counts: leave it out, or count something in it"
        )
