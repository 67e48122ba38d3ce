"""What every head is worth at every token: the change of loss when it is ablated, all heads in few batched passes.

    total effect     loss with the head ablated - clean loss; later layers react to what is missing (``models/interventions.py``)
    direct effect    the same when only the final residual stream loses what the head wrote: later layers do not notice

each at every predicted token, in nats; positive where the head helps. ``[..., t]`` is about predicting token ``t + 1`` at query
position ``t``. Where the direct effect is larger than the total one, later layers repair what was lost (self-repair: McGrath
et al. 2023; Wang et al. 2022); in the last layer of an attention-only model the two are one.

How it is done. What lies below a head's layer is computed once. The streams in which one head of a layer is ablated are
stacked along the batch, so that every later layer runs once for all heads of an earlier one. Behind the last attention layer
a head changes the stream by ``dz W_O``, of rank ``d_head``: its logits follow from the clean ones by ``dz (W_O W_U)`` and a new
scale of the norm, without another product with ``W_U``. Memory is bounded by the rows of a pass, not by tokens. Exact up to
rounding; the twin by hooks is ``effects_by_hooks``, which also serves models that are not ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.heads import Head
from circuits.models.hooked import HookedTransformer, next_token_loss
from circuits.models.interventions import Ablation, Norms, Patterns, ablated, donors, held, mean_z, recorded, replacement
from circuits.models.layers import is_heard
from circuits.models.protocol import (
    check_finite,
    check_model,
    check_tokens,
    device_of,
    norm_scale_names,
    resid_post_name,
    undisturbed,
    z_name,
)
from circuits.models.stacked import effects_stacked

EXAMPLES = 32
"""Examples that are given at a time."""
ROWS = 32
"""Sequences in one stacked pass: what it holds stays near the cores' caches."""


class Effects(NamedTuple):
    """Of a batch of examples ``rows``: clean loss ``[example, pos - 1]``, effects ``[layer, head, example, pos - 1]``, nats."""

    rows: slice
    loss: Tensor
    total: Tensor
    direct: Tensor | None


def head_effects(
    model: Any,
    tokens: Int[Tensor, "example pos"],
    ablation: str | Ablation = "zero",
    *,
    direct: bool = True,
    reference: Int[Tensor, "example pos"] | None = None,
) -> Iterator[Effects]:
    """The effect of every head at every token, batch by batch.

    ``total[l, h, e, t] = loss(x[t + 1] | head l, h ablated) - loss(x[t + 1])``.

    Args:
        model: of the protocol; ours goes fast. tokens: with BOS first. ablation: a name or an ``Ablation``.
        direct: whether to measure direct effects too. reference: whose mean ``mean`` ablation
            takes (default: the other examples of the tokens).

    Raises:
        TypeError, ValueError: tokens that do not fit the model, an unknown ablation, one example for ``resample``, or a
            reference that is too short.

    Source: per-token ablation of Olsson et al. 2022; direct and total effects of Wang et al. 2022.
    """
    ablation = Ablation.named(ablation)
    check_model(model)
    check_finite(model)
    fits = {"d_vocab": model.cfg.d_vocab, "n_ctx": model.cfg.n_ctx}
    check_tokens(tokens, **fits, min_length=2, needed_by="the effect of a head")
    outputs = getattr(model.cfg, "d_vocab_out", model.cfg.d_vocab)
    if int(tokens.max()) >= outputs:
        raise ValueError(f"token {int(tokens.max())} has no logit, the model has d_vocab_out = {outputs}: it has no loss here")
    if reference is not None:
        if ablation.kind != "mean":
            raise ValueError(f"a reference is for mean ablation, and this is {ablation.kind}: leave it out")
        check_tokens(reference, **fits, needed_by="mean ablation")
        if reference.shape[1] < tokens.shape[1]:
            raise ValueError(
                f"the reference has {reference.shape[1]} positions and the tokens {tokens.shape[1]}: pass a longer one"
            )
    elif ablation.kind == "mean" and len(tokens) < 2:
        raise ValueError("mean ablation takes the mean over other examples and one was given: pass two or more, or a reference")
    given = donors(len(tokens), ablation.seed) if ablation.kind == "resample" else None
    return _batches(model, tokens.long(), ablation, direct, reference, given)


def _batches(
    model: Any, tokens: Tensor, ablation: Ablation, direct: bool, reference: Tensor | None, given: Tensor | None
) -> Iterator[Effects]:
    known = tokens if reference is None else reference[:, : tokens.shape[1]]
    mean = mean_z(model, known) if ablation.kind == "mean" else None
    among = len(tokens) if reference is None else None
    device = device_of(model)
    for start in range(0, len(tokens), EXAMPLES):
        rows = slice(start, min(start + EXAMPLES, len(tokens)))
        found = []
        for at in torch.arange(rows.start, rows.stop).split(batch_size(model)):
            part = tokens[at].to(device)
            donor = None if given is None else tokens[given[at]].to(device)
            put = replacement(model, part, ablation.kind, mean=mean, donor=donor, examples=among)
            found.append(effects_of(model, part, put, patterns=ablation.patterns, norms=ablation.norms, direct=direct))
        loss, total, straight = zip(*found, strict=True)
        yield Effects(
            rows, torch.cat(loss).cpu(), torch.cat(total, dim=2).cpu(), torch.cat(straight, dim=2).cpu() if direct else None
        )


def batch_size(model: Any) -> int:
    """Examples in one call of ``effects_of``, so that what it stacks stays near the cores' caches."""
    return max(1, ROWS // model.cfg.n_heads) if isinstance(model, HookedTransformer) else ROWS


def effects_of(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    put: Float[Tensor, "layer batch pos head d_head"],
    *,
    patterns: Patterns = "recomputed",
    norms: Norms = "live",
    direct: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Clean loss, total and direct effects where each head in turn gets the ``z`` that ``put`` has for it."""
    fast = isinstance(model, HookedTransformer) and not is_heard(*model.hook_dict.values())  # hooks would see stacked streams
    way = effects_stacked if fast else effects_by_hooks
    return way(model, tokens, put, patterns=patterns, norms=norms, direct=direct)


def effects_by_hooks(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    put: Float[Tensor, "layer batch pos head d_head"],
    *,
    patterns: Patterns = "recomputed",
    norms: Norms = "live",
    direct: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``effects_of`` by one hooked forward pass a head: any model of the protocol, and the twin of the fast way."""
    depth, heads = model.cfg.n_layers, model.cfg.n_heads
    with undisturbed(model):
        clean = next_token_loss(model(tokens), tokens, per_token=True)
    total, straight = [], []
    for head in (Head(layer, head) for layer in range(depth) for head in range(heads)):
        with ablated(model, tokens, [head], put, patterns=patterns, norms=norms):
            total.append(next_token_loss(model(tokens), tokens, per_token=True) - clean)
        if direct:
            with _directly(model, tokens, head, put[head.layer, :, :, head.head], norms):
                straight.append(next_token_loss(model(tokens), tokens, per_token=True) - clean)
    shape = (depth, heads, *clean.shape)
    return clean, torch.stack(total).view(shape), torch.stack(straight).view(shape) if direct else None


@contextmanager
def _directly(model: Any, tokens: Tensor, head: Head, put: Float[Tensor, "batch pos d_head"], norms: Norms) -> Iterator[None]:
    """A context in which the final stream alone gets the replacement."""
    depth = model.cfg.n_layers
    scales = norm_scale_names(model, depth) if norms == "frozen" else []
    clean = recorded(model, tokens, [z_name(head.layer), *scales])
    z = clean.pop(z_name(head.layer))[:, :, head.head]
    hooks: list[Any] = [(name, partial(held, clean[name])) for name in scales]
    with undisturbed(model):
        change = (put - z) @ model.blocks[head.layer].attn.W_O[head.head]
        with model.hooks(fwd_hooks=[*hooks, (resid_post_name(depth - 1), lambda resid, hook: resid + change)]):
            yield
