"""Effects of all heads of a layer at once, in models of our own: streams with one head ablated each, stacked along the batch."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.final_losses import FinalLosses
from circuits.models.hooked import HookedTransformer
from circuits.models.interventions import Norms, Patterns
from circuits.models.layers import Block, project
from circuits.models.protocol import norm_scale_names, pattern_name, resid_post_name, resid_pre_name, undisturbed, z_name


class Clean(NamedTuple):
    """What every ablation of a batch shares: the clean run, layer by layer."""

    tokens: Tensor  # [batch, pos]
    resid_pre: list[Tensor]  # [batch, pos, d_model]
    after: list[Tensor]  # the streams behind each layer, [batch, pos, d_model]
    z: list[Tensor]  # [batch, pos, head, d_head]
    pattern: list[Tensor]  # [batch, head, query, key]; empty unless preserved
    scales: dict[str, Tensor]  # [batch, pos, 1]; empty unless frozen

    def scale(self, norm: str, copies: int = 1) -> Tensor | None:
        """The kept scale of a norm for so many copies of the batch; None where norms are live."""
        kept = self.scales.get(f"{norm}.hook_scale")
        return kept if kept is None or copies == 1 else kept.repeat(copies, 1, 1)


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
        clean = clean_run(model, tokens, patterns, norms)
        reader = FinalLosses(model, tokens, clean.scales.get("ln_final.hook_scale"))
        loss = reader.losses(clean.after[-1][None])[0]
        total, straight = [], []
        for layer in range(depth):
            change = put[layer] - clean.z[layer]
            last = layer == depth - 1 and model.cfg.attn_only
            if direct or last:
                straight.append(reader.losses_after(clean.after[-1], change, layer) - loss)
            total.append(straight[-1] if last else reader.losses(reacting(model, clean, layer, change)) - loss)
    return loss, torch.stack(total), torch.stack(straight) if direct else None


def clean_run(model: HookedTransformer, tokens: Int[Tensor, "batch pos"], preserve: Patterns, norms: Norms) -> Clean:
    """The clean run, with patterns and scales of norms where they are to be kept."""
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
        [kept[resid_pre_name(layer + 1) if layer + 1 < len(layers) else last] for layer in layers],
        [kept[z_name(layer)] for layer in layers],
        [kept[name] for name in patterns],
        {name: kept[name] for name in scales},
    )


def reacting(
    model: HookedTransformer, clean: Clean, layer: int, change: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "head batch pos d_model"]:
    """Final streams with each head of a layer ablated in turn and everything later at work; stacked head by head."""
    attn = model.blocks[layer].attn
    by_head = change.permute(2, 0, 1, 3).flatten(1, 2)  # [head, batch * pos, d_head]
    if model.cfg.attn_only:
        resid = torch.baddbmm(clean.after[layer].flatten(0, 1), by_head, attn.W_O).unflatten(1, change.shape[:2]).flatten(0, 1)
    else:
        heads = change.shape[2]
        written = F.linear(clean.z[layer].flatten(2), attn.W_O.flatten(0, 1).T, attn.b_O).flatten(0, 1)
        written = torch.baddbmm(written, by_head, attn.W_O).unflatten(1, change.shape[:2]).flatten(0, 1)
        scale = clean.scale(f"blocks.{layer}.ln2", heads)
        resid = model.blocks[layer].after_attention(clean.resid_pre[layer].repeat(heads, 1, 1), written, scale)
    return onward(model, clean, layer + 1, resid).unflatten(0, (change.shape[2], -1))


def onward(
    model: HookedTransformer, clean: Clean, first: int, resid: Float[Tensor, "stack pos d_model"]
) -> Float[Tensor, "stack pos d_model"]:
    """Final streams from those on entry to layer ``first``: copies of the batch, one behind the other; they are written over."""
    copies = len(resid) // len(clean.tokens)
    pos = placed(model, clean.tokens)
    for at in range(first, model.cfg.n_layers):
        block = model.blocks[at]
        if clean.pattern:
            out = _gathered(block, resid, clean.pattern[at], clean.scale(f"blocks.{at}.ln1", copies))
            resid = block.after_attention(resid, out, clean.scale(f"blocks.{at}.ln2", copies))
        elif is_plain(model) and not clean.scales:
            resid = _attended(block, resid, pos)
        else:
            names = [name for name in norm_scale_names(model, at) if name in clean.scales]
            held = [(name, lambda scale, hook: clean.scales[hook.name].repeat(copies, 1, 1)) for name in names]
            with model.hooks(fwd_hooks=held):
                resid = block(resid, pos)
    return resid


def placed(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "1 pos d_model"] | None:
    """Shortformer positions, which queries and keys read behind the norm; None for other models."""
    if model.cfg.positional_embedding_type != "shortformer":
        return None
    return model.pos_embed.W_pos[: tokens.shape[1]][None]


def is_plain(model: HookedTransformer) -> bool:
    """Whether layers are attention alone, without rotation, smearing or caps: then queries, keys and values are one product."""
    cfg = model.cfg
    return cfg.attn_only and not (cfg.smeared_keys or cfg.positional_embedding_type == "rotary" or cfg.attn_scores_soft_cap > 0)


def _attended(
    block: Block, resid: Float[Tensor, "stack pos d_model"], pos: Float[Tensor, "1 pos d_model"] | None
) -> Float[Tensor, "stack pos d_model"]:
    """The streams behind a plain layer: what its ``forward`` gives, in fewer passes over memory; ``resid`` is written over."""
    attn = block.attn
    heads, _, d_head = attn.W_Q.shape
    flat = [weight.transpose(0, 1).flatten(1) for weight in (attn.W_Q, attn.W_K, attn.W_V)]  # [d_model, head * d_head]
    offset = torch.cat([bias.flatten() for bias in (attn.b_Q, attn.b_K, attn.b_V)]).expand(resid.shape[1], -1)
    if pos is not None:  # behind the norm, to queries and keys
        placed = pos[0] @ torch.cat(flat[:2], 1)
        offset = offset + torch.cat([placed, torch.zeros_like(placed[:, : heads * d_head])], 1)
    qkv = (block.ln1(resid).flatten(0, 1) @ torch.cat(flat, 1)).unflatten(0, resid.shape[:2]).add_(offset)
    q, k, v = qkv.unflatten(-1, (3, heads, d_head)).permute(2, 0, 3, 1, 4)  # each [stack, head, pos, d_head]
    z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0 / attn.attn_scale)
    out = resid.flatten(0, 1).addmm_(z.transpose(1, 2).flatten(2).flatten(0, 1), attn.W_O.flatten(0, 1))
    return out.add_(attn.b_O).unflatten(0, resid.shape[:2])


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
