"""What the training text says of patterns [far ... near ... destination -> out]: how often they occur, and their lift.

    lift = log P(out | destination, sources there) / P(out | destination)   nats, chance 0

over the places of the corpus where the destination stands and something follows. The sources are *there* if they stand right
before the destination (contiguous patterns), or anywhere among the ``gap`` tokens before it (all others), in the same stream. A
pattern without sources, [destination -> out], is held against the frequency of out: log P(out | destination) / P(out).

Orientation as in ``detectors/multigrams.py``, where patterns come from: ``near`` is nearer to the destination than ``far``.
A lift is an association in the text; that a head uses the source is for its ablation to say. Source: as ``data/skip_ngrams.py``,
with two sources at once and with the token right before the destination among them.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from circuits.data.lift import lift_of
from circuits.data.ngrams import NgramTable
from circuits.data.skip_ngrams import GAP
from circuits.detectors.sources import NONE
from circuits.results import check_whole

if TYPE_CHECKING:
    import xarray as xr

KEYS = ("far", "near", "destination", "out")


def pattern_statistics(patterns: "xr.Dataset", table: NgramTable, *, gap: int = GAP) -> "xr.Dataset":
    """How often each pattern occurs in a corpus, and how much likelier its sources make out there.

    Args:
        patterns: ``far, near, destination, out`` (ids, ``NONE`` or NaN where there is none) and ``contiguous`` with dim
            ``pattern``, e.g. of one head from ``Multigrams``. table: of the corpus. gap: how far back sources may stand.

    Returns:
        ``Dataset(pattern)``: ``value``, the lift in nats, ``stderr`` (places taken as independent, so too small), ``chance`` 0,
        ``z`` against sources dealt out at random, and the counts ``hits`` (the whole pattern), ``occasions`` (all of it but out),
        ``all_hits`` and ``all_occasions`` (without the condition). NaN where the condition never holds or there is no pattern.

    Raises:
        ValueError: the variables are missing, or ``gap`` is below 1.
    """
    import xarray as xr

    check_whole("gap", gap, 1)
    if missing := {*KEYS, "contiguous"} - set(patterns):
        raise ValueError(
            f"patterns lack {', '.join(sorted(missing))}: pass those of one head, Multigrams(tokens)(model).sel(...)"
        )
    ids = {name: np.nan_to_num(patterns[name].values, nan=NONE).astype(np.int64) for name in KEYS}
    in_a_row = np.nan_to_num(patterns["contiguous"].values, nan=NONE) == 1
    counts = np.zeros((4, len(in_a_row)), dtype=np.int64)
    for i in np.flatnonzero(ids["destination"] != NONE):
        sources = [int(ids[name][i]) for name in ("near", "far") if ids[name][i] != NONE]
        destination, out = int(ids["destination"][i]), int(ids["out"][i])
        places = np.flatnonzero((table.tokens == destination) & (table.bigrams >= 0))
        follows = table.tokens[places + 1] == out
        if sources:
            there = sources_there(table, places, sources, gap=gap, contiguous=bool(in_a_row[i]))
            counts[:, i] = (follows & there).sum(), there.sum(), follows.sum(), len(places)
        else:
            counts[:, i] = follows.sum(), len(places), table.counts_of(np.array([out])), len(table.tokens)
    found = lift_of(*counts)
    each = {"value": found.value, "stderr": found.stderr, "z": found.z}
    each |= dict(zip(("hits", "occasions", "all_hits", "all_occasions"), counts, strict=True))
    return xr.Dataset(
        {name: ("pattern", x) for name, x in each.items()} | {"chance": 0.0},
        coords={"pattern": patterns["pattern"]},
        attrs={
            "measure": "pattern_statistics",
            "definition": "log P(out | destination, sources there) / P(out | destination) in the corpus",
            "source": "circuits.detectors.pattern_statistics",
            "data_hash": table.data_hash,
            "gap": gap,
            "units": "nats",
        },
    )


def sources_there(
    table: NgramTable, places: Int[np.ndarray, "place"], sources: list[int], *, gap: int, contiguous: bool
) -> Bool[np.ndarray, "place"]:
    """Where all sources, the nearest first, stand before these places of the corpus, in the same stream.

    Args:
        places: of the destination. contiguous: whether they must stand right before it, without a gap.
    """
    begin = table.starts[np.searchsorted(table.starts, places, side="right") - 1]
    there = np.ones(len(places), dtype=bool)
    for distance, source in enumerate(sources, start=1):
        if contiguous:
            there &= (places - distance >= begin) & (table.tokens[np.maximum(places - distance, 0)] == source)
            continue
        stands = np.flatnonzero(table.tokens == source)
        latest = np.searchsorted(stands, places) - 1  # the last one in front of each place
        nearest = stands[np.maximum(latest, 0)] if len(stands) else np.full(len(places), -1)
        there &= (latest >= 0) & (nearest >= np.maximum(begin, places - gap))
    return there
