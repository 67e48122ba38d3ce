"""Pure functions of attention patterns: how much attention goes where a definition says it should.

Conventions. ``pattern[example, head, query, key]`` is attention after softmax; rows sum to 1; position 0 is BOS. Every
target score is the same sentence: *over the query rows the definition includes, the mean attention on the keys it names*.
The rows and keys are given by a mask ``[example, query, key]``; a row is included if its mask has a key, and a score
averages over included rows of one example first, then over examples. Definitions (x are token ids):

    previous token   key i-1 for i >= 2     (at i = 1 the previous token is BOS: excluded)
    current token    key i   for i >= 1
    first token      key 0   for i >= 1     (elsewhere called BOS, resting or sink attention)
    duplicate token  every 1 <= j < i with x[j] = x[i]
    induction        every 2 <= j <= i with x[j-1] = x[i]   (j - 1 >= 1, so that BOS is never the match)
    fixed lag        key i-d for one d >= 2, the d that gets most attention (chosen on other examples)

Under uniform causal attention row i gives 1/(i+1) to every key; the chance level of a score is its value there, computed
on the same tokens. Source: Olsson et al. 2022 (prefix matching, previous token); Elhage et al. 2021; Voita et al. 2019
for fixed offsets. On ``[BOS, r, r]`` the induction mask selects exactly rows n+1..2n, so a perfect head scores 1 and
not n/(n+2), the off-by-one of diagonal readings.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def check_pattern(pattern: Tensor, *, where: str = "pattern") -> None:
    """Refuse what is not attention after softmax.

    Raises:
        TypeError: not a floating tensor. ValueError: wrong rank or not square, values outside [0, 1], or rows not summing to 1.
    """
    if not isinstance(pattern, Tensor) or not pattern.dtype.is_floating_point:
        raise TypeError(
            f"{where} is {getattr(pattern, 'dtype', type(pattern).__name__)}; need a floating tensor [example, head, query, key]"
        )
    if pattern.ndim != 4 or pattern.shape[-1] != pattern.shape[-2] or 0 in pattern.shape:
        raise ValueError(
            f"{where} has shape {tuple(pattern.shape)}; need [example, head, query, key] with query = key, e.g. "
            "cache['pattern', 0]"
        )
    rows = pattern.sum(-1)
    worst = (rows - 1).abs().amax(dim=(0, 2))
    bad = ~(worst < 1e-3) | (pattern.amin(dim=(0, 2, 3)) < -1e-6)
    if bool(bad.any()):
        head = int(bad.nonzero()[0])
        found = float(rows[:, head].flatten()[(rows[:, head].flatten() - 1).abs().nan_to_num(nan=torch.inf).argmax()])
        raise ValueError(
            f"{where} rows sum to {found:.2f} at head {head}; pass cache['pattern', layer] (after softmax), not attention scores"
        )


def uniform_pattern(length: int, *, dtype: torch.dtype = torch.float64) -> Float[Tensor, "1 1 query key"]:
    """Uniform causal attention: row i spreads 1/(i+1) over keys 0..i."""
    lower = torch.ones(length, length, dtype=dtype).tril()
    return (lower / lower.sum(-1, keepdim=True))[None, None]


def lag_mask(length: int, lag: int, *, first_row: int) -> Bool[Tensor, "1 query key"]:
    """Key ``i - lag`` for rows ``i >= first_row``."""
    rows = torch.arange(length)
    return ((rows[:, None] - rows[None]) == lag)[None] & (rows >= first_row)[None, :, None]


def previous_token_mask(tokens: Int[Tensor, "example pos"]) -> Bool[Tensor, "1 query key"]:
    return lag_mask(tokens.shape[1], 1, first_row=2)


def current_token_mask(tokens: Int[Tensor, "example pos"]) -> Bool[Tensor, "1 query key"]:
    return lag_mask(tokens.shape[1], 0, first_row=1)


def first_token_mask(tokens: Int[Tensor, "example pos"]) -> Bool[Tensor, "1 query key"]:
    rows = torch.arange(tokens.shape[1])
    return ((rows[None] == 0) & (rows[:, None] >= 1))[None]


def duplicate_token_mask(tokens: Int[Tensor, "example pos"]) -> Bool[Tensor, "example query key"]:
    rows = torch.arange(tokens.shape[1], device=tokens.device)
    same = tokens[:, :, None] == tokens[:, None, :]
    return same & (rows[None] < rows[:, None]) & (rows >= 1)[None]


def induction_mask(tokens: Int[Tensor, "example pos"]) -> Bool[Tensor, "example query key"]:
    rows = torch.arange(tokens.shape[1], device=tokens.device)
    follows = torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.bool, device=tokens.device)
    follows[:, :, 1:] = tokens[:, :, None] == tokens[:, None, :-1]
    return follows & (rows[None] <= rows[:, None]) & (rows >= 2)[None]


def attention_on(
    pattern: Float[Tensor, "example head query key"], mask: Bool[Tensor, "#example query key"], *, what: str = "the detector"
) -> Float[Tensor, "example head"]:
    """Mean attention on the masked keys, over the rows that have one.

    ``score[e, h] = mean over rows i with any mask[e, i] of sum_j pattern[e, h, i, j] mask[e, i, j]``, in [0, 1].

    Raises:
        ValueError: an example has no row with a target: the tokens hold nothing for this definition.
    """
    check_pattern(pattern)
    if mask.shape[1:] != pattern.shape[2:] or mask.shape[0] not in (1, pattern.shape[0]):
        raise ValueError(
            f"the pattern is {tuple(pattern.shape)} and the tokens {tuple(mask.shape[:2])}; need one pattern [head, query, key] "
            "per sequence and one query per token: take both from the same batch"
        )
    rows = mask.any(-1).sum(-1)  # [example]
    if bool((rows == 0).any()):
        raise ValueError(
            f"example {int((rows == 0).nonzero()[0])} has no position at which {what} has a target; "
            "use sequences that repeat, e.g. circuits.repeated_random_tokens"
        )
    weights = (mask / rows[:, None, None]).to(pattern).expand(pattern.shape[0], -1, -1)
    return torch.einsum("ehqk,eqk->eh", pattern, weights)


def previous_token_score(
    pattern: Float[Tensor, "example head query key"], tokens: Int[Tensor, "example pos"]
) -> Float[Tensor, "example head"]:
    """Mean attention from each position to the one before it, ``mean_{i>=2} A[i, i-1]``; in [0, 1].

    Chance under uniform attention over T positions is ``mean_{i=2}^{T-1} 1/(i+1)`` (.037 for T = 101).
    Source: Olsson et al. 2022, "previous token head"; elsewhere also averaged from i = 1.
    """
    return attention_on(pattern, previous_token_mask(tokens), what="previous-token attention")


def current_token_score(
    pattern: Float[Tensor, "example head query key"], tokens: Int[Tensor, "example pos"]
) -> Float[Tensor, "example head"]:
    """Mean attention from each position to itself, ``mean_{i>=1} A[i, i]``; in [0, 1]. Source: Elhage et al. 2021."""
    return attention_on(pattern, current_token_mask(tokens), what="current-token attention")


def first_token_score(
    pattern: Float[Tensor, "example head query key"], tokens: Int[Tensor, "example pos"]
) -> Float[Tensor, "example head"]:
    """Mean attention to BOS, ``mean_{i>=1} A[i, 0]``; in [0, 1]. Elsewhere called resting or attention sink."""
    return attention_on(pattern, first_token_mask(tokens), what="first-token attention")


def duplicate_token_score(
    pattern: Float[Tensor, "example head query key"], tokens: Int[Tensor, "example pos"]
) -> Float[Tensor, "example head"]:
    """Mean attention to earlier occurrences of the current token, over rows that have one; in [0, 1].

    Source: Wang et al. 2022 (IOI), duplicate-token heads; the sum over all earlier occurrences.
    """
    return attention_on(pattern, duplicate_token_mask(tokens), what="duplicate-token attention")


def induction_score(
    pattern: Float[Tensor, "example head query key"], tokens: Int[Tensor, "example pos"]
) -> Float[Tensor, "example head"]:
    """Mean attention to the tokens that followed the current token before, over rows that have one; in [0, 1].

    On 25 random tokens repeated 4 times this is Olsson et al. 2022's prefix-matching score (read as "the token we
    expect": keys whose predecessor equals the current token, summed over earlier repeats); on ``[BOS, r, r]`` it is the
    induction stripe ``mean_{i=n+1}^{2n} A[i, i-n+1]``.
    """
    return attention_on(pattern, induction_mask(tokens), what="induction")


def attention_by_lag(
    pattern: Float[Tensor, "example head query key"], lags: Int[Tensor, "lag"]
) -> Float[Tensor, "example head lag"]:
    """Mean attention at each fixed distance ``d``: ``mean_{i>d} A[i, i-d]`` (key 0 excluded)."""
    per_lag = [pattern.diagonal(-int(d), dim1=-2, dim2=-1)[..., 1:].mean(-1) for d in lags]
    return torch.stack(per_lag, dim=-1)


def fixed_lag_score(
    pattern: Float[Tensor, "example head query key"],
) -> tuple[Float[Tensor, "example head"], Int[Tensor, "head"]]:
    """Attention at the best single distance d >= 2, and that distance.

    ``max_{2 <= d <= T/2} mean_{i>d} A[i, i-d]``. The distance is chosen on the other half of the examples (even for odd,
    odd for even), so that picking the largest of many does not inflate the score. In [0, 1]; chance under uniform
    attention is that of d = T/2 or 2, whichever is larger. Source: positional heads, Voita et al. 2019.
    """
    check_pattern(pattern)
    examples, _, length, _ = pattern.shape
    if length < 6:
        raise ValueError(f"sequences have {length} positions, fixed-lag attention needs at least 6: pass longer ones")
    lags = torch.arange(2, length // 2 + 1, device=pattern.device)
    by_lag = attention_by_lag(pattern, lags)  # [example, head, lag]
    if examples == 1:
        best = by_lag[0].argmax(-1)
        return by_lag[0].gather(-1, best[:, None]).T, lags[best]
    scores = torch.empty(by_lag.shape[:2], dtype=pattern.dtype, device=pattern.device)
    for half in (0, 1):
        best = by_lag[1 - half :: 2].mean(0).argmax(-1)  # [head], chosen on the other half
        chosen = best[None, :, None].expand(by_lag[half::2].shape[0], -1, 1)
        scores[half::2] = by_lag[half::2].gather(-1, chosen)[..., 0]
    return scores, lags[by_lag.mean(0).argmax(-1)]


def attention_entropy(pattern: Float[Tensor, "example head query key"]) -> Float[Tensor, "example head"]:
    """Mean Shannon entropy of attention rows i >= 1, in nats; from 0 (one key) to ``mean_i log(i+1)`` (uniform)."""
    check_pattern(pattern)
    return torch.special.entr(pattern[:, :, 1:]).sum(-1).mean(-1)
