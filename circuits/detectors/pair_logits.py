"""How much does a head's attention score depend on which token asks and which is asked? Token-pair logits ``z[m, l]``.

``z[m, l]`` is what query token ``m`` gives key token ``l`` before softmax (Tian et al.'s Z); only differences between the keys of
one query act, so every query's mean over its pairs is taken out.

    exact        layer 0 of a model without positions:  z = (LN(W_E) W_Q + b_Q) (LN(W_E) W_K + b_K)^T / scale, norm included
    regression   anywhere else, on scores S over real sequences:   S_ts = a_t + r_{t-s} + z[x_t, x_s] + e

with one effect for each query position of each sequence, ``a_t``, which softmax does not see, one for each distance, ``r``, and
least squares. Left out are position 0 (BOS, where sinks live), a query's own position, pairs met fewer than ``min_count`` times,
and those of a query that no row of attention compares with the rest of its pairs. What the context moves in a score beyond its
two tokens and their distance is ``e``.

The design depends on tokens alone and serves every head of every checkpoint: with its Gram matrix made once, a head costs one
product with the design and its share of a conjugate-gradient solution on coefficients. The error of ``z`` is that of a mean,
``sd(e) / sqrt(count)``: residuals as independent, the other effects as known; both make it a little too small.

Source: Tian et al. 2023 ("Scan and Snap"), section 2, for Z; fixed effects by conjugate gradient on the normal equations as in
Abowd, Creecy & Kramarz 2002; the use on attention scores ours.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import block_array, coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from circuits.models.own import bare
from circuits.models.protocol import check_tokens, device_of, scores_name, undisturbed
from circuits.results import check_whole

EXAMPLES = 32
"""Sequences that are read together."""
TOLERANCE = 1e-8
MOST_STEPS = 1000


@dataclass(frozen=True, eq=False)
class PairDesign:
    """The design of the regression on one set of tokens; made by ``pair_design``.

    Attributes:
        query, key, count: the pairs, sorted by query, then key, and how often each is met.
        places: of each observation in a flat ``[example, query, key]``, ascending.
        columns: the transposed design: one row for each coefficient, z first, then r, then a; one column an observation.
        gram: the design's Gram matrix.
        shape: of the tokens.
    """

    query: Int[np.ndarray, "pair"]
    key: Int[np.ndarray, "pair"]
    count: Int[np.ndarray, "pair"]
    places: Int[np.ndarray, "observation"]
    columns: csr_array
    gram: csr_array
    shape: tuple[int, int]


class PairLogits(NamedTuple):
    """Pair logits of every head.

    Attributes:
        value: each query's mean over its pairs is 0. stderr: 0 where exact.
        exact: which layers are. steps: conjugate-gradient steps of each layer; ``MOST_STEPS`` where they were not enough.
    """

    value: Float[np.ndarray, "layer head pair"]
    stderr: Float[np.ndarray, "layer head pair"]
    exact: list[bool]
    steps: list[int]


def pair_design(tokens: Int[Tensor, "example pos"], *, min_count: int = 20) -> PairDesign:
    """Which observations and coefficients the regression has; the same for every head and checkpoint.

    Args:
        tokens: with BOS first, e.g. ``run.evaluation["code"]``. min_count: how often a pair must be met.

    Raises:
        TypeError, ValueError: not tokens of at least three positions, a ``min_count`` below 2, or no pair met so often.
    """
    check_tokens(tokens, d_vocab=2**31, n_ctx=2**31, min_length=3, needed_by="the regression of pair logits")
    check_whole("min_count", min_count, 2, "since a pair met once says nothing of any other")
    x = tokens.cpu().numpy().astype(np.int64)
    n, length = x.shape
    t, s = np.tril_indices(length, -1)
    t, s = t[s > 0], s[s > 0]
    base = int(x.max()) + 1
    met = x[:, t] * base + x[:, s]
    pair, count = np.unique(met, return_counts=True)
    if not (count >= min_count).any():
        raise ValueError(
            f"no pair of tokens is met {min_count} times in {n} sequences of {length} tokens: pass more of them, or a smaller "
            "min_count"
        )
    pair = _linked(met, pair[count >= min_count], t + length * np.arange(n)[:, None], base)
    of = np.minimum(np.searchsorted(pair, met), len(pair) - 1)
    example, at = np.nonzero(pair[of] == met)
    z, lag, row = of[example, at], t[at] - s[at], example * length + t[at]
    rows, lags = (np.unique(ids, return_inverse=True) for ids in (row, lag))
    coefficient = np.concatenate([z, len(pair) + lags[1], len(pair) + len(lags[0]) + rows[1]])
    size = (len(pair) + len(lags[0]) + len(rows[0]), len(z))
    columns = csr_array((np.ones(len(coefficient)), (coefficient, np.tile(np.arange(len(z)), 3))), shape=size)
    count = np.bincount(z)
    query, key = np.divmod(pair, base)
    return PairDesign(query, key, count, row * length + s[at], columns, csr_array(columns @ columns.T), (n, length))


def _linked(met: np.ndarray, pair: np.ndarray, row: np.ndarray, base: int) -> np.ndarray:
    """Of each query's pairs the largest set that rows link: between two sets that no row shares, a_t takes every difference."""
    of = np.minimum(np.searchsorted(pair, met), len(pair) - 1)
    kept = pair[of] == met
    size = (int(row.max()) + 1, len(pair))
    links = coo_array((np.ones(int(kept.sum()), dtype=np.int8), (np.broadcast_to(row, met.shape)[kept], of[kept])), shape=size)
    label = connected_components(block_array([[None, links], [links.T, None]]), directed=False)[1][size[0] :]
    # Sets lie within one query, as a row has one. Sorted by query and size, the last of each query is its largest.
    largest = np.lexsort([label, np.bincount(label)[label], pair // base])
    last = np.append(np.diff(pair[largest] // base) != 0, True)
    return pair[np.isin(label, label[largest[last]])]


def fitted_logits(
    scores: Float[np.ndarray, "observation head"], design: PairDesign
) -> tuple[Float[np.ndarray, "head pair"], Float[np.ndarray, "head pair"], int]:
    """Pair logits by least squares on attention scores, their standard errors, and how many steps were taken.

    ``S_ts = a_t + r_{t-s} + z[x_t, x_s] + e``, each query's mean of z over its pairs (each pair once) set to 0.

    Args:
        scores: before softmax, at ``design.places``; of any number of heads. design: ``pair_design(tokens)``.

    Returns:
        ``z`` and its error, in the units of the scores; ``MOST_STEPS`` steps mean that it has not converged.

    Source: see the module.
    """
    n_pairs = len(design.query)
    # What softmax does not see, and what rounding would suffer from: the mean of a head's scores.
    S = scores.astype(np.float64)
    S -= S.mean(0)
    right = design.columns @ S
    found, steps = _conjugate_gradient(design.gram, right)
    squares = np.square(S).sum(0) - (found * right).sum(0)
    freedom = max(1, len(S) - len(found))
    error = np.sqrt(np.maximum(squares, 0) / freedom)
    return centred(found[:n_pairs], design.query).T, error[:, None] / np.sqrt(design.count), steps


def _conjugate_gradient(gram: csr_array, right: np.ndarray) -> tuple[np.ndarray, int]:
    """Solve ``gram x = right`` for every column, scaled by the diagonal; and the number of steps.

    The Gram matrix is singular (a constant may move between effects). As the right side lies in its range, so do all steps,
    and what is found is one of the solutions, which differ by what centring takes out.
    """
    scale = 1 / gram.diagonal()[:, None]
    x, r = np.zeros_like(right), right.copy()
    p = y = scale * r
    ry = (r * y).sum(0)
    enough = TOLERANCE**2 * ry
    for step in range(MOST_STEPS):
        if (ry <= enough).all():
            return x, step
        forward = gram @ p
        curvature = (p * forward).sum(0)
        alpha = np.where(ry > enough, ry / np.where(curvature > 0, curvature, 1), 0)
        x += alpha * p
        r -= alpha * forward
        y = scale * r
        before, ry = ry, (r * y).sum(0)
        p = y + ry / np.where(before > 0, before, 1) * p
    return x, MOST_STEPS


def centred(values: Float[np.ndarray, "pair head"], query: Int[np.ndarray, "pair"]) -> Float[np.ndarray, "pair head"]:
    """Values without the mean of each query's pairs, which lie together."""
    first = np.flatnonzero(np.append(True, np.diff(query) != 0))
    counts = np.diff(first, append=len(query))
    return values - np.repeat(np.add.reduceat(values, first, axis=0) / counts[:, None], counts, axis=0)


def is_exact(model: Any) -> bool:
    """Whether scores of layer 0 are functions of two tokens: no positions of any kind, and keys that are not smeared."""
    return model.cfg.positional_embedding_type == "none" and not model.cfg.smeared_keys


def embedding_logits(model: Any, query: Int[np.ndarray, "pair"], key: Int[np.ndarray, "pair"]) -> Float[np.ndarray, "head pair"]:
    """Scores that layer 0 gives pairs of tokens as embedded, exactly: norm with its scale, biases, attention scale and cap.

    ``z[m, l] = (LN(W_E[m]) W_Q + b_Q) . (LN(W_E[l]) W_K + b_K) / scale``, not centred.

    Args:
        model: without positions and without smeared keys. query, key: token ids of the pairs.

    Raises:
        TypeError, ValueError: not a hooked model, or one whose scores depend on more than two tokens.

    Source: Tian et al. 2023, Z; Elhage et al. 2021, QK circuit.
    """
    twin = bare(model)
    if not is_exact(twin):
        raise ValueError(
            f"the model has {twin.cfg.positional_embedding_type} positions{' and smeared keys' * twin.cfg.smeared_keys}, so its "
            "scores depend on more than two tokens: use pair_logits(model, tokens, pair_design(tokens)), a regression"
        )
    attn, cap = twin.blocks[0].attn, twin.cfg.attn_scores_soft_cap
    with torch.no_grad():
        seen = twin.blocks[0].ln1(twin.W_E)[None]
        q, k, _ = attn.read(seen, seen, seen)  # [1, d_vocab, head, d_head]
        scores = torch.einsum("phd,phd->hp", q[0, torch.from_numpy(query)], k[0, torch.from_numpy(key)]) / attn.attn_scale
    scores = scores.double().cpu().numpy()
    return cap * np.tanh(scores / cap) if cap > 0 else scores


def pair_logits(model: Any, tokens: Int[Tensor, "example pos"], design: PairDesign) -> PairLogits:
    """Pair logits of every head of a model: exact where they are, by regression elsewhere; see the module.

    Args:
        model: a hooked model, read in evaluation mode and left as found. tokens: those of the design, on any device.

    Returns:
        In units of attention scores, each query's mean 0.

    Raises:
        TypeError, ValueError: tokens that are not the design's, or that do not fit the model.

    Source: see the module.
    """
    if tuple(tokens.shape) != design.shape:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}, the design is of {design.shape}: pass pair_design(tokens)")
    check_tokens(tokens, d_vocab=model.cfg.d_vocab, n_ctx=model.cfg.n_ctx, needed_by="the regression of pair logits")
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    exact = [layer == 0 and is_exact(bare(model)) for layer in range(layers)]
    precise = next(iter(model.parameters())).dtype == torch.float64
    scores = np.empty((layers, len(design.places), heads), dtype=np.float64 if precise else np.float32)
    tokens, square = tokens.to(device_of(model)), design.shape[1] ** 2
    with undisturbed(model):
        for start in range(0, len(tokens), EXAMPLES):
            part = tokens[start : start + EXAMPLES]
            low, high = np.searchsorted(design.places, [start * square, (start + len(part)) * square])
            at = torch.from_numpy(design.places[low:high] - start * square).to(part.device)
            into = scores[:, low:high]

            def keep(found: Tensor, hook: Any, at: Tensor = at, into: np.ndarray = into) -> None:
                layer = int(hook.name.split(".")[1])
                into[layer] = found.flatten(2).transpose(1, 2).flatten(0, 1)[at].cpu().numpy()

            with model.hooks(fwd_hooks=[(scores_name(layer), keep) for layer in range(layers) if not exact[layer]]):
                model(part)
    value, stderr, steps = [], [], []
    for layer in range(layers):
        if exact[layer]:
            z = centred(embedding_logits(model, design.query, design.key).T, design.query).T
            error, taken = np.zeros_like(z), 0
        else:
            z, error, taken = fitted_logits(scores[layer], design)
        value.append(z)
        stderr.append(error)
        steps.append(taken)
    return PairLogits(np.stack(value), np.stack(stderr), exact, steps)
