"""The exact effect of every edge, one at a time, in batched passes that share what an edge leaves unchanged.

Editing the edge u -> v adds ``alternative(u) - u`` to v's own input, before v's norm, at the chosen positions; v and what follows
are computed anew, other readers of u see the clean u. So:

- What lies below v's layer is computed once. All heads of a layer, and all three inputs of each, read a source's alternative
  through one norm and one projection: changing the query changes one head's ``z`` alone, and likewise key and value.
- In the last layer of an attention-only model such a change reaches the logits as ``dz W_O W_U``, of rank ``d_head``: no second
  product with the whole unembedding (``circuits.models.final_losses``).
- Otherwise the streams with one edge edited are stacked along the batch and later layers run once for all heads.

Exact up to rounding. Its twins are ``circuits.paths.by_hooks`` (one hooked forward pass an edge) and ``circuits.paths.edited``.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.models.hooked import HookedTransformer
from circuits.models.layers import Block
from circuits.models.stacked import Clean, onward, placed, reacting
from circuits.paths.metrics import Reader
from circuits.paths.wiring import CHANNELS, LOGITS, POS, Edge, Wiring, head_input, mlp_name

FINAL = 8
"""Edges into the logits whose streams are held at a time."""


class Change(NamedTuple):
    """Heads' outputs where each of them in turn has one input edited.

    Attributes:
        source: whose edge is edited. channel: the input. dz: the change of ``z``, ``[batch, pos, head, d_head]``.
    """

    source: str
    channel: str
    dz: Tensor


def edge_values(
    model: HookedTransformer,
    clean: Clean,
    alternative: Float[Tensor, "source batch pos d_model"],
    written: Float[Tensor, "source batch pos d_model"],
    reader: Reader,
    wanted: Collection[Edge],
    positions: Bool[Tensor, "batch pos"] | None = None,
) -> Iterator[tuple[Edge, Float[Tensor, "batch"]]]:
    """The metric with each wanted edge edited, edge by edge.

    Args:
        model: from ``bare``. clean: its run on the batch, with patterns and scales that are to be kept. alternative, written:
            of each source. reader: of the metric. positions: where edits apply; everywhere if None.
    """
    wiring = Wiring.of(model)
    difference = alternative - written
    if positions is not None:
        difference = difference * positions[None, :, :, None]
    diffs = {source: one for source, one in zip(wiring.sources, difference, strict=True) if bool(one.any())}
    unchanged = [edge for edge in wanted if edge.source not in diffs]
    if unchanged:
        value = reader.of(clean.after[-1][None])[0]
        yield from ((edge, value) for edge in unchanged)
    wanted = set(wanted).difference(unchanged)
    last = model.cfg.n_layers - 1
    for layer in range(model.cfg.n_layers):
        changes = _changes(model, clean, layer, diffs, wanted)
        if layer == last and model.cfg.attn_only:
            yield from _at_the_end(clean, reader, layer, list(changes), wanted)
        else:
            for change in changes:
                values = reader.of(reacting(model, clean, layer, change.dz))
                yield from _named(change, layer, values, wanted)
        if not model.cfg.attn_only:
            yield from _into_mlp(model, clean, layer, diffs, reader, wanted)
    into = [edge for edge in wiring.edges if edge in wanted and edge.destination == LOGITS]
    for start in range(0, len(into), FINAL):
        part = into[start : start + FINAL]
        yield from zip(part, reader.of(torch.stack([clean.after[-1] + diffs[edge.source] for edge in part])), strict=True)


def _changes(model: HookedTransformer, clean: Clean, layer: int, diffs: dict[str, Tensor], wanted: set[Edge]) -> Iterator[Change]:
    """What each source's edges do to the heads of a layer."""
    heads = range(model.cfg.n_heads)
    block, kept = model.blocks[layer], clean.pattern[layer] if clean.pattern else None
    reading = None
    for source, diff in diffs.items():
        asked = [c for c in CHANNELS if any(Edge(source, head_input(layer, head, c)) in wanted for head in heads)]
        if not asked:
            continue
        if reading is None:  # the clean one, which every source's edges share
            reading = read(block, clean.resid_pre[layer], placed(model, clean.tokens), clean.scale(f"blocks.{layer}.ln1"))
        pos = placed(model, clean.tokens)
        if source == POS and pos is not None:
            edited = read(block, clean.resid_pre[layer], pos + diff, clean.scale(f"blocks.{layer}.ln1"))
        else:
            edited = read(block, clean.resid_pre[layer] + diff, pos, clean.scale(f"blocks.{layer}.ln1"))
        for channel, dz in zip(asked, _moved(block, reading, edited, clean.z[layer], asked, kept), strict=True):
            yield Change(source, channel, dz)


def read(
    block: Block, resid: Float[Tensor, "batch pos d_model"], pos: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a layer, each ``[batch, pos, head, d_head]``."""
    normed = block.ln1(resid) if scale is None else block.ln1(resid, scale)
    at_place = normed if pos is None else normed + pos
    return block.attn.read(at_place, at_place, normed)


def _moved(
    block: Block,
    clean: tuple[Tensor, Tensor, Tensor],
    edited: tuple[Tensor, Tensor, Tensor],
    z: Float[Tensor, "batch pos head d_head"],
    channels: list[str],
    pattern: Float[Tensor, "batch head query key"] | None,
) -> list[Float[Tensor, "batch pos head d_head"]]:
    """How every head's ``z`` moves with one of its inputs edited, for each of the channels."""
    if pattern is not None:  # kept: queries and keys move nothing
        by_value = torch.einsum("bhqk,bkhd->bqhd", pattern, edited[2] - clean[2])
        return [by_value if channel == "v" else torch.zeros_like(z) for channel in channels]
    inputs = [
        torch.cat([edited[at] if channel == CHANNELS[at] else clean[at] for channel in channels]) for at in range(len(CHANNELS))
    ]
    return [moved - z for moved in block.attn.gather(*inputs).chunk(len(channels))]


def _at_the_end(
    clean: Clean, reader: Reader, layer: int, changes: list[Change], wanted: set[Edge]
) -> Iterator[tuple[Edge, Tensor]]:
    """Edges into the last attention layer, where nothing follows but the unembedding."""
    if not changes:
        return
    values = reader.after(clean.after[-1], torch.stack([change.dz for change in changes]), layer)
    for change, of_heads in zip(changes, values, strict=True):
        yield from _named(change, layer, of_heads, wanted)


def _named(
    change: Change, layer: int, values: Float[Tensor, "head batch"], wanted: set[Edge]
) -> Iterator[tuple[Edge, Float[Tensor, "batch"]]]:
    for head, value in enumerate(values):
        edge = Edge(change.source, head_input(layer, head, change.channel))
        if edge in wanted:
            yield edge, value


def _into_mlp(
    model: HookedTransformer, clean: Clean, layer: int, diffs: dict[str, Tensor], reader: Reader, wanted: set[Edge]
) -> Iterator[tuple[Edge, Float[Tensor, "batch"]]]:
    """Edges into the MLP of a layer: its output changes, and later layers with it."""
    block, scale = model.blocks[layer], clean.scale(f"blocks.{layer}.ln2")
    into = [edge for edge in (Edge(source, mlp_name(layer)) for source in diffs) if edge in wanted]
    if not into:
        return
    entry = clean.resid_pre[layer]
    if not model.cfg.parallel_attn_mlp:
        entry = entry + _attention_out(block, clean.z[layer])
    unchanged = mlp_out(block, entry, scale)
    for edge in into:
        change = mlp_out(block, entry + diffs[edge.source], scale) - unchanged
        stream = onward(model, clean, layer + 1, clean.after[layer] + change)
        yield edge, reader.of(stream[None])[0]


def mlp_out(block: Block, entry: Float[Tensor, "batch pos d_model"], scale: Tensor | None) -> Float[Tensor, "batch pos d_model"]:
    """What the MLP of a layer writes, given the stream it reads."""
    return block.mlp(block.ln2(entry) if scale is None else block.ln2(entry, scale))


def _attention_out(block: Block, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
    return torch.nn.functional.linear(z.flatten(2), block.attn.W_O.flatten(0, 1).T, block.attn.b_O)
