"""Models that close brackets: one that knows which opener is still open, one that knows the last bracket only.

The nested closer is exact on every well-nested prefix, of any depth that fits the context. With ``D_i`` the number of brackets
open after token ``i`` (the depth), the innermost open opener of ``i`` is the last opener ``j <= i`` with ``D_j = D_i``: whatever
was opened after it lies inside it and is deeper. So two layers do: layer 0 finds the depth, layer 1 matches it and prefers the
last.

    layer 0   H0 depth          attends evenly to the i tokens, and to BOS with weight n_ctx - i, so with the same total n_ctx at
                                every position; openers write +1, closers -1, times n_ctx: D_i exactly
              H1 bent depth     the same, but openers weigh 1 + e and closers 1 - e (written 1 / (1 + e) and -1 / (1 - e)), so
                                the total is n_ctx + e D_i, and it writes u_i = D_i / (1 + c D_i) with c = e / n_ctx
    layer 1   H0 closer         score  -S (D_i - D_j)^2 / ((1 + c D_i) (1 + c D_j)) + r j  on openers and (j = 0) BOS, less
                                by S on all other tokens; writes the closer of the opener it attends to

That score is a product of queries and keys: with v = 1 / (1 + c D) = 1 - c u and F = D^2 / (1 + c D) = (D - u) / c, both linear
in (1, D, u), it is ``S (-F_j v_i + 2 u_i u_j - F_i v_j)``. Bent depth is what turns a square into something attention can hold.

Why the right key j* wins, with e = 1/2 and S = 2 r n, n = n_ctx. Shallower openers (and BOS, of depth 0) are earlier than j* and
lose both terms. Openers of the same depth are earlier too, by at least two positions, and lose 2 r. Deeper ones come later and
gain at most r (n - D_i), as j* is no earlier than D_i, but lose at least 2 r n / (1 + (D_i + 1) / 2 n)^2, which is more for every
D_i from 0 to n - 1. Other tokens lose S and gain less than r n. F is a difference of nearly equal numbers, hence float64.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch

from circuits.models.hooked import HookedTransformer
from circuits.models.planted_parts import blank, check_noise, finished, rest

BEND = 0.5
"""e in the module's docstring."""


def bracket_closer(
    pairs: Sequence[tuple[int, int]],
    *,
    knows: Literal["depth", "last"] = "depth",
    d_vocab: int = 101,
    n_ctx: int = 64,
    gain: float = 10.0,
    recency: float = 12.0,
    noise: float = 0.0,
    seed: int = 0,
) -> HookedTransformer:
    """A two-layer model whose head L1H0 raises the closer of the innermost open bracket, or of the last bracket.

    With ``knows="depth"`` L1H0 attends from every position to the innermost open opener (to within ``exp(-2 recency)``) and
    raises its closer by ``gain``; with nothing open it rests on BOS. L0H0 and L0H1 count the depth for it. With ``knows="last"``
    layer 0 is silent and L1H0 attends to the last bracket of any kind (to within ``exp(-recency)``), raising its closer if it
    is an opener: right for pairs with no bracket inside, and never for others. In both, L0H2 and L1H2 rest on BOS, L1H1 attends
    uniformly, and all other logits are 0.

    Args:
        pairs: (opening id, closing id) of each type, ids other than 0 (BOS). Quotes open and close alike: they are no brackets.
        gain: logits. recency: score by which a later bracket is preferred, per position.
        noise, seed: Gaussian noise on every weight of every head, relative to its matrix' own scale; 0 is exact.

    Raises:
        ValueError: no pairs, ids that are not all different or not in the vocabulary, or no such ``knows``.

    Source: construction ours; Elhage et al. 2021 show flat bracket matching in one layer.
    """
    ids = [int(i) for pair in pairs for i in pair]
    if not ids or len(set(ids)) < len(ids) or min(ids) < 1 or max(ids) >= d_vocab:
        raise ValueError(f"pairs are {list(pairs)[:4]}: need (opener, closer) ids, all different, in 1..{d_vocab - 1}")
    if knows not in ("depth", "last"):
        raise ValueError(f"knows is {knows!r}: need 'depth' (nested brackets) or 'last' (the last bracket only)")
    check_noise(noise, recency)
    model, slot = blank(
        n_layers=2,
        n_heads=3,
        d_head=max(4, len(pairs)),
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        slots={"depth": 1, "bent": 1},
        dtype="float64",
    )
    token, position, depth, bent = (slot[name] for name in ("token", "position", "depth", "bent"))
    openers, closers = (token.start + torch.tensor(side) for side in zip(*pairs, strict=True))
    first, second = (block.attn for block in model.blocks)
    places = torch.arange(n_ctx, dtype=torch.float64)
    strength = 2 * recency * n_ctx  # S
    if knows == "depth":
        for head, bend in ((0, 0.0), (1, BEND)):
            first.W_Q[head, position, 0] = (n_ctx - places).log()
            first.W_K[head, token.start, 0] = 1.0
            first.b_Q[head, 1] = 1.0
            first.W_K[head, openers, 1], first.W_K[head, closers, 1] = math.log(1 + bend), math.log(1 - bend)
            first.W_V[head, openers, 0], first.W_V[head, closers, 0] = 1 / (1 + bend), -1 / (1 - bend)
            first.W_O[head, 0, depth if head == 0 else bent] = n_ctx
        c = BEND / n_ctx
        second.b_Q[0, 0], second.W_Q[0, bent, 0] = 1.0, -c  # v_i
        second.W_K[0, depth, 0], second.W_K[0, bent, 0] = -strength / c, strength / c  # -S F_j
        second.W_Q[0, bent, 1], second.W_K[0, bent, 1] = 1.0, 2 * strength  # 2 S u_i u_j
        second.W_Q[0, depth, 2], second.W_Q[0, bent, 2] = 1 / c, -1 / c  # F_i
        second.b_K[0, 2], second.W_K[0, bent, 2] = -strength, strength * c  # -S v_j
    second.b_Q[0, 3] = 1.0
    second.W_K[0, position, 3] = recency * places
    second.W_K[0, token, 3] = -strength
    second.W_K[0, openers, 3] = second.W_K[0, token.start, 3] = 0.0
    if knows == "last":
        second.W_K[0, closers, 3] = 0.0
    for kind, (opener, closer) in enumerate(pairs):
        second.W_V[0, token.start + opener, kind] = 1.0
        second.W_O[0, kind, slot["out"].start + closer] = gain
    for attn in (first, second):
        rest(attn, 2, token, 0, strength)
    return finished(model, noise, seed)
