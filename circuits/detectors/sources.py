"""Which tokens carried a head's effect: value-weighted attention, and the pattern that it makes with what follows.

At query position ``q`` key ``k`` weighs ``w[k] = A[q, k] ||v_k W_O||`` (value biases included): attention times what it brings,
which is small for a key that a head rests on (Kobayashi et al. 2020; Elhage et al. 2021). Weights of keys with the same token are
added, and as shares of the row's sum they lie in [0, 1]. The *sources* are the tokens, other than BOS and the query's own, with a
share of at least ``min_share``: at most ``MAX_SOURCES``, the heaviest, each at its nearest position. With the query's own
token, the destination, and the next one, out, they make a pattern

    [far source ... near source ... destination -> out]

which is *contiguous*, an n-gram, if the sources stand right before the destination without a gap, and a skip-n-gram otherwise. A
head that looks at its own position, or at earlier copies of its own token, makes ``[destination -> out]``, a bigram. Where
neither has the share, nothing carried the effect: it is *unattributed* (a head that rests on BOS, or spreads).
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.models.interventions import recorded
from circuits.models.protocol import pattern_name, value_name

MAX_SOURCES = 2
NONE = -1
"""Where a pattern has fewer sources."""
LEAST_SHARE = 0.1
"""The least ``min_share``: below, so many tokens would be sources that patterns say nothing."""
PIECE = 256
"""Events whose rows are added up at a time."""

COLUMNS = ("head", "example", "query", "far", "near", "far_gap", "near_gap", "destination", "out")
"""Of an event: who (``layer * n_heads + head``), where, the two sources, and how far before the destination they stand."""


class Events(NamedTuple):
    """Positions where a head's ablation costs more than a threshold, with what carried the effect.

    Attributes:
        columns: ``[event, column]`` as in ``COLUMNS``, int64. effect: ``[event]``, nats. unattributed: ``[head]``, how many
            had no source.
    """

    columns: Int[np.ndarray, "event column"]
    effect: Float[np.ndarray, "event"]
    unattributed: Int[np.ndarray, "head"]


def value_weights(model: Any, tokens: Int[Tensor, "batch pos"]) -> list[Float[Tensor, "batch head query key"]]:
    """``A[q, k] ||v_k W_O||`` of every layer, as shares of each row; a row without any weight stays zero."""
    layers = range(model.cfg.n_layers)
    kept = recorded(model, tokens, [name(layer) for layer in layers for name in (pattern_name, value_name)])
    found = []
    for layer in layers:
        W_O = model.blocks[layer].attn.W_O.detach()
        gram = W_O @ W_O.transpose(-2, -1)  # [head, d_head, d_head]
        v = kept[value_name(layer)]
        size = torch.einsum("bphd,hde,bphe->bhp", v, gram, v).clamp_min(0).sqrt()
        weight = kept[pattern_name(layer)] * size[:, :, None]
        found.append(weight / weight.sum(-1, keepdim=True).clamp_min(1e-30))
    return found


def events(
    weights: list[Float[Tensor, "batch head query key"]],
    tokens: Int[Tensor, "batch pos"],
    effect: Float[Tensor, "layer head batch pos_minus_1"],
    chosen: Bool[Tensor, "layer head batch pos_minus_1"],
    *,
    min_share: float,
    first_example: int = 0,
) -> Events:
    """The events of a batch: what carried the effect at each chosen position.

    Args:
        weights: of ``value_weights``. effect: of ``head_effects``. chosen: the positions asked for. first_example: number of the
            batch's first example in the corpus.
    """
    layer, head, example, query = chosen.nonzero(as_tuple=True)
    n_heads, length = effect.shape[1], tokens.shape[1]
    same = tokens[:, :, None] == tokens[:, None, :]
    same[:, 0], same[:, :, 0] = False, False  # BOS is never a source
    places = torch.arange(length)
    # Where a key's token stands next; a key that stands no more up to the query represents its token.
    following = torch.where(same & (places > places[:, None]), places, length).amin(-1)  # [example, key]
    # Places come in the order of layers, so what is gathered layer by layer is in their order.
    rows = [w[example[layer == i], head[layer == i], query[layer == i]] for i, w in enumerate(weights)]
    weight = torch.cat(rows)  # [event, key]
    share = torch.empty_like(weight)
    for at in torch.arange(len(weight)).split(PIECE):
        share[at] = torch.einsum("nk,nkj->nj", weight[at], same[example[at]].to(weight))
    own = tokens[example, query]
    heavy = (share >= min_share) & (following[example] > query[:, None]) & (places <= query[:, None])
    at_itself = (heavy & (tokens[example] == own[:, None])).any(-1)
    source = heavy & (tokens[example] != own[:, None])
    ranked = torch.where(source, share, -1.0).topk(min(MAX_SOURCES, length), dim=-1)
    where = torch.where(ranked.values > 0, ranked.indices, NONE).sort(-1).values  # far before near, NONE first
    if where.shape[1] < MAX_SOURCES:
        where = torch.nn.functional.pad(where, (MAX_SOURCES - where.shape[1], 0), value=NONE)
    there = where != NONE
    sources = torch.where(there, tokens[example[:, None], where.clamp_min(0)], NONE)
    gaps = torch.where(there, query[:, None] - where, 0)
    carried = (there.any(-1) | at_itself).cpu()
    columns = torch.stack(
        [layer * n_heads + head, example + first_example, query, *sources.T, *gaps.T, own, tokens[example, query + 1]], dim=1
    ).cpu()
    lost = torch.bincount(columns[~carried, 0], minlength=effect.shape[0] * n_heads)
    return Events(columns[carried].numpy(), effect[chosen].cpu()[carried].numpy().astype(np.float64), lost.numpy())


def repeats_in_context(tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos_minus_1"]:
    """Where the pair (token, next token) has stood earlier in the example: what induction can predict; pairs from BOS aside."""
    pair = tokens[:, :-1].long() * (int(tokens.max()) + 1) + tokens[:, 1:]
    pair[:, 0] = NONE  # BOS
    earlier = torch.ones(pair.shape[1], pair.shape[1], dtype=torch.bool, device=pair.device).tril(-1)
    return ((pair[:, :, None] == pair[:, None, :]) & earlier).any(-1)
