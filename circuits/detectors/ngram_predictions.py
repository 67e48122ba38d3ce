"""What the n-gram predictors of a corpus say at the places of a text, and the cross-entropy of a model to that.

The predictor of order ``n`` is ``q_n(o | c)``, the relative frequency in the corpus of what follows ``n - 1`` tokens ``c``;
``detectors.predictors`` has the definitions. A place is a predicted token. What is said depends on no model and is made once.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from circuits.data.ngrams import NgramTable


class Predictions(NamedTuple):
    """What a predictor of one order says at the places of a text that it knows, in reading order.

    Attributes:
        example, pos: of each predicted token. context: which of the contexts below stands before it.
        loss: of the interpolated predictor of this order at each place.
        rows, outs, probs: what follows each context, entries ``rows[i] : rows[i + 1]``.
        floor, null_mean, kl_noise: of each context, nats.
    """

    example: Int[np.ndarray, "place"]
    pos: Int[np.ndarray, "place"]
    context: Int[np.ndarray, "place"]
    loss: Float[np.ndarray, "place"]
    rows: Int[np.ndarray, "context_plus_1"]
    outs: Int[np.ndarray, "entry"]
    probs: Float[np.ndarray, "entry"]
    floor: Float[np.ndarray, "context"]
    null_mean: Float[np.ndarray, "context"]
    kl_noise: Float[np.ndarray, "context"]


def predictions(table: NgramTable, tokens: Int[Tensor, "example pos"], min_count: int) -> tuple[Predictions, ...]:
    """The predictors of order 1, 2, ... of a table, at every place whose context occurs ``min_count`` times in the corpus.

    Contexts hold no BOS: order ``n`` predicts from position ``n`` on.
    """
    losses, text = -table.log_prob(tokens), tokens.cpu().numpy().astype(np.int64)
    return tuple(_of_order(table, text, n, min_count, losses[n - 1]) for n in range(1, table.order + 1))


def _of_order(
    table: NgramTable,
    text: Int[np.ndarray, "example pos"],
    n: int,
    min_count: int,
    losses: Float[np.ndarray, "example pos_minus_1"],
) -> Predictions:
    pos = np.arange(n, text.shape[1])
    windows = text[:, pos[:, None] + np.arange(1 - n, 0)]  # [example, place, n - 1]
    if n == 1:
        unique, which = windows[0, :1], np.zeros(windows.shape[:2], dtype=np.int64)
    else:
        unique, which = np.unique(windows.reshape(-1, n - 1), axis=0, return_inverse=True)
        which = which.reshape(windows.shape[:2])
    known = table.occasions(unique) >= min_count
    follow = table.next_distribution(unique[known])
    example, at = np.nonzero(known[which])
    sizes, first = np.diff(follow.rows), follow.rows[:-1]
    if n == 1:
        shorter = np.full(len(follow.outs), 1 / table.d_vocab)
    else:
        shorter = table.prob(np.repeat(unique[known][:, 1:], sizes, axis=0), follow.outs)
    return Predictions(
        example=example,
        pos=pos[at],
        context=(np.cumsum(known) - 1)[which[example, at]],
        loss=losses[example, pos[at] - 1],
        rows=follow.rows,
        outs=follow.outs,
        probs=follow.probs,
        floor=np.add.reduceat(-follow.probs * np.log(follow.probs), first) if len(first) else np.zeros(0),
        null_mean=np.add.reduceat(-follow.probs * np.log(shorter), first) if len(first) else np.zeros(0),
        kl_noise=(sizes - 1) / (2 * table.occasions(unique[known])),
    )


def cross_entropies(
    log_probs: Float[np.ndarray, "row d_vocab"],
    row: Int[np.ndarray, "place"],
    context: Int[np.ndarray, "place"],
    said: Predictions,
) -> Float[np.ndarray, "place"]:
    """``-sum_o q(o | context) log p(o)`` at places whose model predictions are these rows."""
    if not len(row):
        return np.zeros(0)
    if len(said.floor) == 1:  # one context for all places, as of order 1: a product, where most of the vocabulary follows
        dense = np.zeros(log_probs.shape[1])
        dense[said.outs] = said.probs
        return -(log_probs[row] @ dense)
    low, sizes = said.rows[context], said.rows[context + 1] - said.rows[context]
    starts = np.cumsum(sizes) - sizes
    entries = np.arange(starts[-1] + sizes[-1]) + np.repeat(low - starts, sizes)
    return -np.add.reduceat(log_probs[np.repeat(row, sizes), said.outs[entries]] * said.probs[entries], starts)
