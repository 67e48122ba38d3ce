"""One run with any set of edges and paths edited together.

Every path ends in an input of the live run, ``... -> v``, and v's own copy of the stream gets, before v's norm,

    one hop   u -> v                alternative(u) - u, u being the write of this very run: edits further down are in it
    longer    t -> u.c -> v         u' - u, where u' is u's write if only its input c had been edited by t (and so on, backwards):
                                    the graph is unrolled into a tree, and the edit travels along this path alone

The paths of a set act together: norms, softmax and the product of pattern and values are not linear, so this is not the sum of
single effects. Paths that share their end share its instance: ``a -> u.v -> logits, b -> u.k -> logits`` edit both inputs of one
u'. Where a shorter path already replaces u's write at v, a longer one through u to v changes nothing more. ``positions`` says
where the first write of a path is replaced; what follows from it goes wherever attention takes it.

With ``from_clean`` the difference is taken from the clean run's u instead: what one gets by patching cached differences, and
another object as soon as two edits lie behind one another.

Sources: treeified path patching of Goldowsky-Dill et al. 2023; current values as in Miller et al. 2024 (auto-circuit).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.models.hooked import HookedTransformer
from circuits.models.stacked import Clean, placed
from circuits.paths.all_edges import mlp_out
from circuits.paths.places import Path
from circuits.paths.wiring import CHANNELS, EMBED, LOGITS, POS, Edge, Wiring, head_input, head_of, mlp_name


@dataclass
class Instance:
    """A source as one path or several see it: its write with some of its inputs edited.

    Attributes:
        node: the source. inputs: for each edited input of it, what edits it; empty where the write itself is replaced.
    """

    node: str
    inputs: "dict[str, list[Instance]]" = field(default_factory=dict)


def unrolled(paths: Iterable[Path]) -> dict[str, list[Instance]]:
    """The tree of a set of paths: what edits each input of the live run."""
    ends: dict[str, list[Instance]] = {}
    for path in paths:
        _graft(ends, path)
    return ends


def _graft(inputs: dict[str, list[Instance]], path: Path) -> None:
    """Add one path, from its end backwards."""
    *before, destination = path
    node = before[-1].split(".")[0]
    found = inputs.setdefault(destination, [])
    at = next((one for one in found if one.node == node), None)
    if len(before) == 1:
        if at is not None:
            found.remove(at)  # the write itself is replaced: what edits its inputs no longer matters here
        found.append(Instance(node))
    elif at is None:
        found.append(at := Instance(node))
        _graft(at.inputs, tuple(before))
    elif at.inputs:
        _graft(at.inputs, tuple(before))


class Leaves:
    """Zeros added to every input, to take derivatives at: ``[batch, pos, head, d_model]``, or without ``head``."""

    def __init__(self, like: Float[Tensor, "batch pos d_model"], heads: int):
        self.like, self.heads = like, heads
        self.at: dict[tuple[str, ...], Tensor] = {}

    def of(self, *name: str) -> Tensor:
        """The leaf of a layer's channel, all heads (``"L1", "k"``), an MLP, the logits; with a last "pos", behind the norm."""
        if name not in self.at:
            batch, pos, width = self.like.shape
            shape = (batch, pos, self.heads, width) if len(name) > 1 else (batch, pos, width)
            self.at[name] = self.like.new_zeros(shape).requires_grad_()
        return self.at[name]


def edited_stream(
    model: HookedTransformer,
    clean: Clean,
    alternative: Float[Tensor, "source batch pos d_model"],
    ends: Mapping[str, Sequence[Instance]],
    *,
    positions: Bool[Tensor, "batch pos"] | None = None,
    from_clean: Float[Tensor, "source batch pos d_model"] | None = None,
    share: float = 1.0,
    leaves: Leaves | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    keep: list[Tensor] | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """The final residual stream with these inputs edited.

    Args:
        model: from ``bare``. clean: its run, with patterns and scales that are to be kept. alternative: of every source.
        ends: of ``unrolled``. positions: where first writes are replaced; everywhere if None. from_clean: the clean writes, to
            take differences from. share: of every difference that is added. leaves: added to every input.
        inputs: embeddings to run on in place of the model's own. keep: takes what sources write in this run, in their order, if
            anything is edited.
    """
    run = _Run(model, clean, alternative, ends, positions, from_clean, share, leaves, inputs or {})
    stream = run.go()
    if keep is not None:
        keep.extend(run.written)
    return stream


class _Run:
    """The state of one edited run: the stream, what sources have written so far, and instances of theirs."""

    def __init__(
        self,
        model: HookedTransformer,
        clean: Clean,
        alternative: Tensor,
        ends: Mapping[str, Sequence[Instance]],
        positions: Tensor | None,
        from_clean: Tensor | None,
        share: float,
        leaves: Leaves | None,
        inputs: Mapping[str, Tensor],
    ):
        self.model, self.clean, self.ends, self.leaves = model, clean, ends, leaves
        self.wiring = Wiring.of(model)
        self.alternative, self.from_clean, self.share = alternative, from_clean, share
        self.positions = None if positions is None else positions[..., None]
        self.written: list[Tensor] = []
        self.difference: dict[str, Tensor] = {}  # of each source so far: what replacing its write adds
        self.moved: dict[int, Tensor] = {}  # of each instance with edited inputs, by id: what it writes less what its node does
        self.pos = placed(model, clean.tokens)  # behind the norm, for shortformer models
        self.inputs = inputs
        self.instances = list(_within(instance for found in ends.values() for instance in found))

    def go(self) -> Float[Tensor, "batch pos d_model"]:
        tokens, cfg = self.clean.tokens, self.model.cfg
        resid = self._source(EMBED, self.inputs.get(EMBED, self.model.embed(tokens)))
        if cfg.positional_embedding_type in ("standard", "shortformer"):
            written = self._source(POS, self.inputs.get(POS, self.model.pos_embed(tokens)))
            if self.pos is None:
                resid = resid + written
            else:
                self.pos = written
        for layer in range(cfg.n_layers):
            resid = self._layer(layer, resid)
        return self._edited(LOGITS, resid)

    def _source(self, name: str, written: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        at = self.wiring.source_index[name]
        if self.ends:  # else nothing is edited
            self.written.append(written)
            start = written if self.from_clean is None else self.from_clean[at]
            difference = self.alternative[at] - start
            self.difference[name] = difference if self.positions is None else difference * self.positions
        return written

    def _delta(self, instances: Sequence[Instance]) -> Float[Tensor, "batch pos d_model"] | float:
        """What these instances add to one input."""
        return self._deltas([instances])[:, :, 0] if instances else 0.0

    def _deltas(self, into: Sequence[Sequence[Instance]]) -> Float[Tensor, "batch pos into d_model"]:
        """The same for several inputs, each with the instances that edit it."""
        parts = {id(one) if one.inputs else one.node: one for found in into for one in found}
        values = [self.moved[id(one)] if one.inputs else self.difference[one.node] for one in parts.values()]
        row = {key: at for at, key in enumerate(parts)}
        weight = values[0].new_zeros(len(values), len(into))
        for column, found in enumerate(into):
            for one in found:
                weight[row[id(one) if one.inputs else one.node], column] = self.share
        return torch.einsum("sh,sbpm->bphm", weight, torch.stack(values))

    def _edited(self, name: str, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """An MLP's input, or the final stream."""
        x = x + self._delta(self.ends.get(name, ()))
        return x if self.leaves is None else x + self.leaves.of(name)

    def _layer(self, layer: int, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        block, cfg = self.model.blocks[layer], self.model.cfg
        inputs = self._head_inputs(layer, resid, self.ends)
        z = self._attend(layer, inputs)
        for head in range(cfg.n_heads):
            self._source(f"L{layer}H{head}", z[:, :, head] @ block.attn.W_O[head])
        for one in self.instances:
            if one.inputs and not one.node.endswith("MLP") and _is_head_of(one.node, layer):
                head = head_of(one.node).head
                prefixed = {f"{one.node}.{channel}": found for channel, found in _by_channel(one).items()}
                moved = self._attend(layer, self._head_inputs(layer, resid, self.ends, prefixed))[:, :, head] - z[:, :, head]
                self.moved[id(one)] = moved @ block.attn.W_O[head]
        after = resid + F.linear(z.flatten(2), block.attn.W_O.flatten(0, 1).T, block.attn.b_O)
        if cfg.attn_only:
            return after
        name, scale = mlp_name(layer), self.clean.scale(f"blocks.{layer}.ln2")
        entry = self._edited(name, resid if cfg.parallel_attn_mlp else after)
        written = self._source(name, mlp_out(block, entry, scale))
        for one in self.instances:
            if one.inputs and one.node == name:
                live = self.ends.get(name, ())
                more = _joined(live, one.inputs[name])[len(live) :]
                self.moved[id(one)] = mlp_out(block, entry + self._delta(more), scale) - written
        return after + written

    def _head_inputs(
        self,
        layer: int,
        resid: Float[Tensor, "batch pos d_model"],
        ends: Mapping[str, Sequence[Instance]],
        more: Mapping[str, Sequence[Instance]] | None = None,
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Of each channel what its heads read, before the norm, and positions behind it: with or without an axis ``head``."""
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        for channel in CHANNELS:
            stream, behind = resid, self.pos if channel in "qk" else None
            names = [head_input(layer, head, channel) for head in range(self.model.cfg.n_heads)]
            into = [_joined(ends.get(name, ()), (more or {}).get(name, ())) for name in names]
            apart = [[one for one in on if one.node == POS and behind is not None] for on in into]
            if any(into) or self.leaves is not None:
                in_stream = [[one for one in on if one not in other] for on, other in zip(into, apart, strict=True)]
                stream = resid[:, :, None].expand(-1, -1, len(names), -1)
                stream = stream + self._deltas(in_stream) if any(in_stream) else stream
                if behind is not None:
                    behind = behind[:, :, None].expand(*stream.shape)
                    behind = behind + self._deltas(apart) if any(apart) else behind
            if self.leaves is not None:
                stream = stream + self.leaves.of(f"L{layer}", channel)
                behind = None if behind is None else behind + self.leaves.of(f"L{layer}", channel, POS)
            found[channel] = stream, behind
        return found

    def _attend(self, layer: int, inputs: Mapping[str, tuple[Tensor, Tensor | None]]) -> Float[Tensor, "batch pos head d_head"]:
        block = self.model.blocks[layer]
        scale = self.clean.scale(f"blocks.{layer}.ln1")
        apart = any(stream.ndim == 4 for stream, _ in inputs.values())  # some head reads a copy of its own
        read = []
        for stream, pos in inputs.values():
            if apart and stream.ndim == 3:
                stream = stream[:, :, None].expand(-1, -1, self.model.cfg.n_heads, -1)
                pos = None if pos is None else pos[:, :, None]
            normed = block.ln1(stream) if scale is None else block.ln1(stream, scale[:, :, None] if apart else scale)
            read.append(normed if pos is None else normed + pos)
        q, k, v = block.attn.read(*read)
        if self.clean.pattern:
            return torch.einsum("bhqk,bkhd->bqhd", self.clean.pattern[layer], v)
        return block.attn.gather(q, k, v)


def _joined(live: Sequence[Instance], more: Sequence[Instance]) -> list[Instance]:
    """What edits an input in the live run, and in one instance besides; a write that is replaced is not replaced twice."""
    taken = {one.node for one in live if not one.inputs}
    return [*live, *(one for one in more if one.node not in taken)]


def _within(instances: Iterable[Instance]) -> Iterable[Instance]:
    """These instances and all that edit their inputs."""
    for one in instances:
        yield one
        for found in one.inputs.values():
            yield from _within(found)


def _is_head_of(node: str, layer: int) -> bool:
    return node.startswith(f"L{layer}H")


def _by_channel(one: Instance) -> dict[str, list[Instance]]:
    return {destination.split(".")[1]: found for destination, found in one.inputs.items()}


def of_edges(edges: Iterable[Edge]) -> dict[str, list[Instance]]:
    """The tree of single edges."""
    return unrolled((edge.source, edge.destination) for edge in edges)
