"""Edges ablated the literal way: one forward pass in which hooks write into what each destination reads.

Every destination v of the graph reads its own copy ``x_v [batch, pos, d_model]`` of the residual stream, before its norm. For the
edges E that are ablated, and at the positions that are,

    x_v  <-  x_v + sum over u with (u -> v) in E of (alternative_u - u)

where u is what the source writes: ``hook_embed``; standard positions ``hook_pos_embed``, which are in the stream too; a head's
``z W_O``, without b_O; an MLP's output, with its bias. The value of u is the source's in this very pass (``"current"``: the
destination then reads the alternative in the source's place, whatever happened upstream) or in the clean pass (``"clean"``:
what is ablated upstream still reaches v past the edge).

Shortformer positions are added behind the norm, to what queries and keys read. Both are linear in it, so their edges change
``q`` and ``k`` by ``(alternative - pos) W_Q`` and ``(alternative - pos) W_K``, exactly.

With patterns preserved every attention pattern is put back to the clean run's; with norms frozen every norm of the stream
divides by the clean run's scale, in all copies (norms inside MLPs stay live, as in ``circuits.models.interventions``).

One pass for each set of edges: slow, simple, and what faster ways are held to. It runs on our models and, by the same hook names,
on transformer-lens 3.9's HookedTransformer. Sources: Wang et al. 2022 (path patching); Miller et al. 2024 (edges of the
factorised graph).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.models.hooked import HookedTransformer
from circuits.models.interventions import Norms, Patterns, held, recorded
from circuits.models.protocol import (
    check_model,
    check_tokens,
    device_of,
    embed_name,
    head_input_name,
    key_name,
    mlp_in_name,
    mlp_out_name,
    norm_scale_names,
    pattern_name,
    pos_embed_name,
    query_name,
    resid_post_name,
    undisturbed,
    z_name,
)
from circuits.models.random_init import config_of
from circuits.paths.wiring import EMBED, LOGITS, POS, Edge, Wiring, head_of, layer_of

Sources = Literal["current", "clean"]


def logits_by_hooks(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    edges: Sequence[Edge],
    alternatives: Float[Tensor, "source batch pos d_model"],
    *,
    patterns: Patterns = "recomputed",
    norms: Norms = "live",
    positions: Bool[Tensor, "batch pos"] | None = None,
    sources: Sources = "current",
) -> Float[Tensor, "batch pos d_vocab_out"]:
    """The logits of a model some of whose edges carry alternatives; the equation is in the module's docstring.

    Args:
        model: ours, or transformer-lens 3.9's HookedTransformer; left exactly as found.
        tokens: ids ``[batch, pos]``. edges: those ablated, each once however often it is named; none gives the clean logits.
        alternatives: what the sources write instead, in the order of ``Wiring.sources``; those of sources without an ablated
            edge are not read.
        patterns: ``"recomputed"`` or ``"preserved"``. norms: ``"live"`` or ``"frozen"``.
        positions: where edges are ablated: the rows of the destination's copy; everywhere if None.
        sources: take the alternative's difference to the source in this pass (``"current"``) or in the ``"clean"`` one.

    Raises:
        TypeError: the model is no hooked model of these two classes, or tokens are no ids.
        ValueError: an edge does not exist, or shapes, devices or options do not fit; the first that does not is named.
    """
    check_model(model)
    if not hasattr(model, "set_use_split_qkv_input") or hasattr(model, "tl_parameters"):  # a bridge has other inputs
        raise TypeError(
            f"got {type(model).__name__}, edges need a HookedTransformer, of circuits or transformer-lens 3.9: "
            "use circuits.from_transformer_lens(model)"
        )
    check_tokens(tokens, d_vocab=model.cfg.d_vocab, n_ctx=model.cfg.n_ctx, device=device_of(model))
    wiring = Wiring.of(model) if isinstance(model, HookedTransformer) else Wiring(config_of(model))
    _check(wiring, tokens, edges, alternatives, positions)
    for name, given, allowed in (
        ("patterns", patterns, get_args(Patterns)),
        ("norms", norms, get_args(Norms)),
        ("sources", sources, get_args(Sources)),
    ):
        if given not in allowed:
            raise ValueError(f"{name}={given!r}: need {' or '.join(map(repr, allowed))}")

    edges = tuple(dict.fromkeys(Edge(*edge) for edge in edges))
    layers = range(wiring.cfg.n_layers)
    written = sorted({_written_at(edge.source) for edge in edges})
    back = [pattern_name(layer) for layer in layers] if patterns == "preserved" else []
    if norms == "frozen":
        back += [name for layer in (*layers, len(layers)) for name in norm_scale_names(model, layer)]

    with undisturbed(model), own_copies(model):
        # Recorded under the same flags as they are put back: with a copy for each head a scale is [batch, pos, head, 1].
        clean = recorded(model, tokens, back + (written if sources == "clean" else []))
        values = {name: clean[name] for name in written} if sources == "clean" else {}

        def keep(value: Tensor, hook: Any, name: str) -> None:
            values[name] = value.clone()

        def difference(source: str) -> Float[Tensor, "batch pos d_model"]:
            value = values[_written_at(source)]
            if "H" in source:
                layer, head = layer_of(source), head_of(source).head
                value = value[:, :, head] @ model.blocks[layer].attn.W_O[head]
            gap = alternatives[wiring.source_index[source]].to(value.dtype) - value
            return gap if positions is None else gap.masked_fill(~positions[..., None], 0.0)

        def write(x: Tensor, hook: Any, arriving: Sequence[Edge]) -> Tensor:
            x = x.clone()
            for edge in arriving:
                change = difference(edge.source)
                if edge.destination == LOGITS or edge.destination.endswith("MLP"):
                    x += change
                    continue
                layer, head = layer_of(edge.destination), head_of(edge.destination).head
                if _behind_the_norm(wiring, edge):
                    attn = model.blocks[layer].attn
                    change = change @ (attn.W_Q if edge.destination.endswith(".q") else attn.W_K)[head]
                x[:, :, head] += change
            return x

        hooks: list[tuple[str, Callable[..., Tensor | None]]] = [(name, partial(held, clean[name])) for name in back]
        if sources == "current":
            hooks += [(name, partial(keep, name=name)) for name in written]
        arriving: dict[str, list[Edge]] = {}
        for edge in edges:
            arriving.setdefault(_read_at(wiring, edge), []).append(edge)
        hooks += [(name, partial(write, arriving=here)) for name, here in arriving.items()]
        with model.hooks(fwd_hooks=hooks):
            return model(tokens)


@contextmanager
def own_copies(model: Any) -> Iterator[None]:
    """A context in which every head's input and every MLP reads its own copy of the stream; flags are as found afterwards."""
    wanted = {"use_attn_in": False, "use_split_qkv_input": True} | ({} if model.cfg.attn_only else {"use_hook_mlp_in": True})
    if isinstance(model, HookedTransformer):
        holders = [model, *model.blocks, *(block.attn for block in model.blocks)]
        configs = [holder.cfg for holder in holders]
        try:
            model.use_hooks(**wanted)
            yield
        finally:
            for holder, cfg in zip(holders, configs, strict=True):
                holder.cfg = cfg
        return
    found = {flag: getattr(model.cfg, flag) for flag in wanted}
    try:
        for flag, on in wanted.items():
            getattr(model, f"set_{flag}")(on)
        yield
    finally:
        for flag, on in found.items():
            getattr(model, f"set_{flag}")(on)


def _written_at(source: str) -> str:
    """The hook point of what a source writes; that of a head is its layer's ``z``."""
    if source in (EMBED, POS):
        return embed_name() if source == EMBED else pos_embed_name()
    return mlp_out_name(layer_of(source)) if source.endswith("MLP") else z_name(layer_of(source))


def _read_at(wiring: Wiring, edge: Edge) -> str:
    """The hook point where an edge arrives."""
    name = edge.destination
    if name == LOGITS:
        return resid_post_name(wiring.cfg.n_layers - 1)
    if name.endswith("MLP"):
        return mlp_in_name(layer_of(name))
    if _behind_the_norm(wiring, edge):
        return query_name(layer_of(name)) if name.endswith(".q") else key_name(layer_of(name))
    return head_input_name(layer_of(name), name[-1])


def _behind_the_norm(wiring: Wiring, edge: Edge) -> bool:
    return edge.source == POS and wiring.cfg.positional_embedding_type == "shortformer"


def _check(wiring: Wiring, tokens: Tensor, edges: Sequence[Edge], alternatives: Tensor, positions: Tensor | None) -> None:
    """Refuse edges that do not exist and tensors that do not fit."""
    for edge in edges:
        if not isinstance(edge, tuple) or len(edge) != 2 or not all(isinstance(end, str) for end in edge):
            raise TypeError(f"{edge!r} is no edge: pass Edge('L0H3', 'L1H4.k'), or the edges_in of a place")
        if not wiring.has(*edge):
            raise ValueError(f"there is no edge {Edge(*edge)} in this model: Wiring.of(model).edges has them all")
    needed = (len(wiring.sources), *tokens.shape, wiring.cfg.d_model)
    if not isinstance(alternatives, Tensor) or tuple(alternatives.shape) != needed:
        given = tuple(alternatives.shape) if isinstance(alternatives, Tensor) else type(alternatives).__name__
        raise ValueError(
            f"alternatives are {given}, need [source, batch, pos, d_model] = {needed}: one for each of Wiring.sources"
        )
    if positions is not None and (positions.shape != tokens.shape or positions.dtype != torch.bool):
        raise ValueError(f"positions are {positions.dtype} {tuple(positions.shape)}, need bool {tuple(tokens.shape)}")
    for name, given in (("alternatives", alternatives), ("positions", positions)):
        if given is not None and given.device != tokens.device:
            raise ValueError(f"{name} are on {given.device} and tokens on {tokens.device}: pass {name}.to('{tokens.device}')")
