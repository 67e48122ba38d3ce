"""Has this context been here before? The longest earlier match of what was just read, and what followed it.

At position t a *match* of length L is an earlier place j with ``x[j - L + 1 .. j] = x[t - L + 1 .. t]``; what followed it is
``x[j + 1]``, ``j + 1 <= t``. Position 0 is BOS and never part of a match. Elsewhere called prefix match (Olsson et al. 2022, for
L = 1) or n-gram head's match (Akyurek et al. 2024).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class Matches(NamedTuple):
    """Of each prediction of token ``t + 1``, ``[example, pos - 1]``.

    Attributes:
        length: of the longest earlier match, 0 where token t did not occur before. places: how many earlier places match as long.
        hits: how many of those were followed by token ``t + 1``. latest: the last j of these, or -1.
        repeated: token ``t + 1`` stood behind token t anywhere earlier, whatever the length of the match.
    """

    length: Int[np.ndarray, "example pos_minus_1"]
    places: Int[np.ndarray, "example pos_minus_1"]
    hits: Int[np.ndarray, "example pos_minus_1"]
    latest: Int[np.ndarray, "example pos_minus_1"]
    repeated: Bool[np.ndarray, "example pos_minus_1"]


def longest_matches(text: Int[np.ndarray, "example pos"]) -> Matches:
    """The longest earlier match at every position but the last, lag by lag: time ``example * pos^2``, memory linear."""
    n_pos = text.shape[1]
    length, places, hits = np.zeros((3, text.shape[0], n_pos - 1), dtype=np.int64)
    latest, repeated = np.full(length.shape, -1), np.zeros(length.shape, dtype=bool)
    for lag in range(n_pos - 2, 0, -1):  # from the farthest place to the nearest, so that the latest is kept
        # t runs from lag + 1, as j = t - lag is at least 1
        same = text[:, 1 + lag : n_pos - 1] == text[:, 1 : n_pos - 1 - lag]
        index = np.arange(same.shape[1])
        run = np.where(same, index - np.maximum.accumulate(np.where(same, -1, index), axis=1), 0)
        hit = same & (text[:, 2 + lag :] == text[:, 2 : n_pos - lag])
        at = (slice(None), slice(lag + 1, None))
        longer, as_long = run > length[at], same & (run == length[at])
        places[at] = np.where(longer, 1, places[at] + as_long)
        hits[at] = np.where(longer, hit, hits[at] + (as_long & hit))
        latest[at] = np.where((longer | as_long) & hit, index + 1, np.where(longer, -1, latest[at]))
        length[at] = np.where(longer, run, length[at])
        repeated[at] |= hit
    return Matches(length, places, hits, latest, repeated)
