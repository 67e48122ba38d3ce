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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.heads import Head
from circuits.models.hooked import HookedTransformer, next_token_loss
from circuits.models.interventions import Ablation, Norms, Patterns, ablated, donors, mean_z, recorded, replacement
from circuits.models.layers import Block, Norm, project
from circuits.models.protocol import (
    check_model,
    check_tokens,
    device_of,
    norm_scale_names,
    pattern_name,
    resid_post_name,
    resid_pre_name,
    undisturbed,
    z_name,
)

ROWS = 32
"""Sequences in one stacked pass: what it holds stays near the cores' caches."""
TOKENS = 256
"""Positions whose logits are held at a time."""


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
        direct: whether to measure direct effects too. reference: whose mean ``mean`` ablation takes (default: the tokens).

    Raises:
        TypeError, ValueError: tokens that do not fit the model, an unknown ablation, one example for ``resample``, or a
            reference that is too short.

    Source: per-token ablation of Olsson et al. 2022; direct and total effects of Wang et al. 2022.
    """
    ablation = Ablation.named(ablation)
    check_model(model)
    fits = {"d_vocab": model.cfg.d_vocab, "n_ctx": model.cfg.n_ctx}
    check_tokens(tokens, **fits, min_length=2, needed_by="the effect of a head")
    known = tokens if reference is None else reference
    if ablation.kind == "mean":
        check_tokens(known, **fits, needed_by="mean ablation")
        if known.shape[1] < tokens.shape[1]:
            raise ValueError(f"the reference has {known.shape[1]} positions and the tokens {tokens.shape[1]}: pass a longer one")
    given = donors(len(tokens), ablation.seed) if ablation.kind == "resample" else None
    return _batches(model, tokens, ablation, direct, known, given)


def _batches(
    model: Any, tokens: Tensor, ablation: Ablation, direct: bool, reference: Tensor, given: Tensor | None
) -> Iterator[Effects]:
    mean = mean_z(model, reference[:, : tokens.shape[1]]) if ablation.kind == "mean" else None
    size, device = batch_size(model), device_of(model)
    for start in range(0, len(tokens), size):
        rows = slice(start, min(start + size, len(tokens)))
        part = tokens[rows].to(device)
        donor = None if given is None else tokens[given[rows]].to(device)
        put = replacement(model, part, ablation.kind, mean=mean, donor=donor)
        found = effects_of(model, part, put, patterns=ablation.patterns, norms=ablation.norms, direct=direct)
        loss, total, straight = found
        yield Effects(rows, loss.cpu(), total.cpu(), None if straight is None else straight.cpu())


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
    way = effects_stacked if isinstance(model, HookedTransformer) else effects_by_hooks
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
    hooks = [(name, lambda scale, hook: clean[hook.name]) for name in scales]
    with undisturbed(model):
        change = (put - z) @ model.blocks[head.layer].attn.W_O[head.head]
        with model.hooks(fwd_hooks=[*hooks, (resid_post_name(depth - 1), lambda resid, hook: resid + change)]):
            yield


class Clean(NamedTuple):
    """What every ablation of a batch shares: the clean run, layer by layer."""

    tokens: Tensor  # [batch, pos]
    resid_pre: list[Tensor]  # [batch, pos, d_model]
    z: list[Tensor]  # [batch, pos, head, d_head]
    pattern: list[Tensor]  # [batch, head, query, key]; empty unless preserved
    scales: dict[str, Tensor]  # [batch, pos, 1]; empty unless frozen
    final: Tensor  # [batch, pos, d_model]


def effects_stacked(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    put: Float[Tensor, "layer batch pos head d_head"],
    *,
    patterns: Patterns = "recomputed",
    norms: Norms = "live",
    direct: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``effects_of`` with the heads of a layer stacked: our own models."""
    depth = model.cfg.n_layers
    with undisturbed(model):
        model.train()  # no dropout: the fused kernels' only key
        clean = _clean_run(model, tokens, patterns, norms)
        reader = _Reader(model, tokens, clean.scales.get("ln_final.hook_scale"))
        loss = reader.losses(clean.final[None])[0]
        total, straight = [], []
        for layer in range(depth):
            change = put[layer] - clean.z[layer]
            last = layer == depth - 1 and model.cfg.attn_only
            if direct or last:
                straight.append(reader.losses_after(clean.final, change, layer) - loss)
            total.append(straight[-1] if last else reader.losses(_reacting(model, clean, layer, change)) - loss)
    return loss, torch.stack(total), torch.stack(straight) if direct else None


def _clean_run(model: HookedTransformer, tokens: Tensor, preserve: Patterns, norms: Norms) -> Clean:
    layers = range(model.cfg.n_layers)
    kept: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> None:
        kept[hook.name] = value

    last = resid_post_name(len(layers) - 1)
    names = [last, *(name(layer) for layer in layers for name in (resid_pre_name, z_name))]
    patterns = [pattern_name(layer) for layer in layers] if preserve == "preserved" else []
    scales = [name for layer in (*layers, len(layers)) for name in norm_scale_names(model, layer)] if norms == "frozen" else []
    with model.hooks(fwd_hooks=[(name, keep) for name in (*names, *patterns, *scales)]):
        model(tokens, return_type=None)
    return Clean(
        tokens,
        [kept[resid_pre_name(layer)] for layer in layers],
        [kept[z_name(layer)] for layer in layers],
        [kept[name] for name in patterns],
        {name: kept[name] for name in scales},
        kept[last],
    )


def _reacting(
    model: HookedTransformer, clean: Clean, layer: int, change: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "head batch pos d_model"]:
    """Final streams with each head of a layer ablated in turn and everything later at work; stacked head by head."""
    heads = model.cfg.n_heads
    attn = model.blocks[layer].attn
    written = F.linear(clean.z[layer].flatten(2), attn.W_O.flatten(0, 1).T, attn.b_O)
    written = (written + torch.einsum("bphd,hdm->hbpm", change, attn.W_O)).flatten(0, 1)

    def frozen(name: str) -> Tensor | None:
        return clean.scales[name].repeat(heads, 1, 1) if name in clean.scales else None

    def ln2(at: int) -> Tensor | None:
        return frozen(f"blocks.{at}.ln2.hook_scale")

    resid = model.blocks[layer].after_attention(clean.resid_pre[layer].repeat(heads, 1, 1), written, ln2(layer))
    pos = None
    if model.cfg.positional_embedding_type == "shortformer":
        pos = model.pos_embed.W_pos[: clean.tokens.shape[1]][None]
    for at in range(layer + 1, model.cfg.n_layers):
        block = model.blocks[at]
        if clean.pattern:
            out = _gathered(block, resid, clean.pattern[at], frozen(f"blocks.{at}.ln1.hook_scale"))
            resid = block.after_attention(resid, out, ln2(at))
        else:
            held = [(name, lambda scale, hook: frozen(hook.name)) for name in norm_scale_names(model, at) if name in clean.scales]
            with model.hooks(fwd_hooks=held):
                resid = block(resid, pos)
    return resid.unflatten(0, (heads, -1))


def _gathered(
    block: Block, resid: Float[Tensor, "stack pos d_model"], pattern: Float[Tensor, "batch head query key"], scale: Tensor | None
) -> Float[Tensor, "stack pos d_model"]:
    """A layer's attention output where the patterns are given: values alone are read from the stacked streams."""
    attn = block.attn
    normed = block.ln1(resid) if scale is None else block.ln1(resid, scale)
    v = project(normed, attn.W_V, attn.b_V).unflatten(0, (-1, len(pattern)))  # [ablated, batch, pos, head, d_head]
    ablated_heads, d_head = v.shape[0], v.shape[-1]
    wide = v.permute(1, 3, 2, 0, 4).flatten(3)  # [batch, head, key, ablated * d_head]: one product for all of them
    z = (pattern @ wide).unflatten(-1, (ablated_heads, d_head)).permute(3, 0, 2, 1, 4)
    return F.linear(z.flatten(0, 1).flatten(2), attn.W_O.flatten(0, 1).T, attn.b_O)


class _Reader:
    """From final streams to losses: norm, unembedding and cross-entropy, some positions at a time."""

    def __init__(self, model: HookedTransformer, tokens: Int[Tensor, "batch pos"], scale: Float[Tensor, "batch pos 1"] | None):
        self.model, self.cap = model, model.cfg.output_logits_soft_cap
        norm, W_U, b_U = model.ln_final, model.W_U, model.b_U
        self.norm = norm if isinstance(norm, Norm) else None
        # logits = x M / scale + c: the norm's centring and gain go into M, its bias into c.
        gain = W_U if self.norm is None or self.norm.w is None else self.norm.w[:, None] * W_U
        self.M = gain - gain.mean(0) if self.norm is not None and self.norm.centred else gain
        self.c = b_U if self.norm is None or self.norm.b is None else self.norm.b @ W_U + b_U
        self.targets = tokens[:, 1:].flatten()
        self.held = None if scale is None else 1 / scale[:, :-1].flatten(0, 1)

    def losses(self, resid: Float[Tensor, "stack batch pos d_model"]) -> Float[Tensor, "stack batch pos_minus_1"]:
        """Next-token losses of these final streams."""
        return torch.stack([self._losses_of_one(x) for x in resid])

    def _losses_of_one(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos_minus_1"]:
        x = resid[:, :-1].flatten(0, 1)
        found = [
            self._loss(x[at] @ self.M, self._rate(x[at]) if self.held is None else self.held[at], at) for at in _pieces(len(x))
        ]
        return torch.cat(found).view(len(resid), -1)

    def losses_after(
        self, resid: Float[Tensor, "batch pos d_model"], change: Float[Tensor, "batch pos head d_head"], layer: int
    ) -> Float[Tensor, "head batch pos_minus_1"]:
        """Losses where the final stream gets ``change[head] W_O[head]``, one head at a time, and nothing else notices."""
        W_O = self.model.blocks[layer].attn.W_O
        out = W_O @ self.M  # [head, d_head, d_vocab]
        x, dz = resid[:, :-1].flatten(0, 1), change[:, :-1].flatten(0, 1).transpose(0, 1).contiguous()
        found = []
        for at in _pieces(len(x)):
            y = x[at] @ self.M
            per_head = []
            for head in range(len(W_O)):
                rate = self._rate(torch.addmm(x[at], dz[head, at], W_O[head])) if self.held is None else self.held[at]
                per_head.append(self._loss(torch.addmm(y, dz[head, at], out[head]), rate, at))
            found.append(torch.stack(per_head))
        return torch.cat(found, dim=1).view(len(W_O), len(resid), -1)

    def _rate(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row 1"]:
        """One over the norm's scale."""
        if self.norm is None:
            return torch.ones_like(x[:, :1])
        if self.norm.centred:  # the kernel of layer norm gives it several times as fast as a variance
            return torch.native_layer_norm(x, x.shape[-1:], None, None, self.norm.eps)[2]
        return (x.pow(2).mean(-1, keepdim=True) + self.norm.eps).rsqrt()

    def _loss(self, logits: Float[Tensor, "row d_vocab"], rate: Float[Tensor, "row 1"], at: slice) -> Float[Tensor, "row"]:
        logits = torch.addcmul(self.c, logits, rate, out=logits)
        if self.cap > 0:
            logits = self.cap * torch.tanh(logits / self.cap)
        return F.cross_entropy(logits, self.targets[at], reduction="none")


def _pieces(length: int) -> Iterator[slice]:
    return (slice(start, start + TOKENS) for start in range(0, length, TOKENS))
