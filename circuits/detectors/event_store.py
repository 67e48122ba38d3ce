"""Effects and events of a corpus on disk: written batch by batch, read back in parts of bounded size.

What is held in memory does not grow with the corpus: effects are read in batches of ``ROWS`` examples, and events head by head,
in buckets of about ``EVENTS``, chosen so that all events of a pattern fall into one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from circuits.detectors.sources import COLUMNS, Events

Frame = Any
"""A pandas DataFrame."""


def pandas() -> Any:
    """pandas, imported when first needed; untyped, since its own hints take every column for a scalar."""
    import pandas

    return pandas


ROWS = 32
EVENTS = 100_000


@dataclass(frozen=True)
class EventStore:
    """An open HDF5 file: ``effect [head, example, query]`` float32, and for each head ``events/<head>`` and ``nats/<head>``.

    Attributes:
        file: h5py's. heads: their number, ``layer * n_heads + head`` being one's place.
    """

    file: Any
    heads: int

    @classmethod
    def create(cls, path: Path, examples: int, queries: int, heads: int) -> "EventStore":
        import h5py

        file = h5py.File(path, "w")
        chunk = (heads, 1, queries)
        file.create_dataset("effect", (heads, examples, queries), np.float32, chunks=chunk)
        file.create_dataset("unattributed", (heads,), np.int64)
        for head in range(heads):
            file.create_dataset(
                f"events/{head}", (0, len(COLUMNS)), np.int32, maxshape=(None, len(COLUMNS)), chunks=(4096, len(COLUMNS))
            )
            file.create_dataset(f"nats/{head}", (0,), np.float32, maxshape=(None,), chunks=(4096,))
        return cls(file, heads)

    def __enter__(self) -> "EventStore":
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def add(self, first: int, effect: Float[np.ndarray, "head example query"], events: Events) -> None:
        """Append a batch whose first example has the number ``first``."""
        self.file["effect"][:, first : first + effect.shape[1]] = effect
        self.file["unattributed"][:] += events.unattributed
        head = events.columns[:, 0]
        for which in np.unique(head):
            mine = head == which
            columns, nats = self.file[f"events/{which}"], self.file[f"nats/{which}"]
            start = len(nats)
            columns.resize(start + int(mine.sum()), axis=0)
            nats.resize(start + int(mine.sum()), axis=0)
            columns[start:], nats[start:] = events.columns[mine], events.effect[mine]

    def count(self, head: int) -> int:
        """Events of a head."""
        return len(self.file[f"nats/{head}"])

    def buckets(self, head: int, part: range) -> Iterator[Events]:
        """A head's events in a part of the corpus; all with one destination and one out are in the same bucket."""
        length = self.count(head)
        number = max(1, -(-length // EVENTS))
        for bucket in range(number):
            kept = []
            for start in range(0, max(length, 1), EVENTS):
                columns = self.file[f"events/{head}"][start : start + EVENTS].astype(np.int64)
                effect = self.file[f"nats/{head}"][start : start + EVENTS].astype(np.float64)
                example, destination, out = (columns[:, COLUMNS.index(name)] for name in ("example", "destination", "out"))
                inside = (example >= part.start) & (example < part.stop)
                if number > 1:
                    inside &= (destination * 1_000_003 + out * 8_191) % number == bucket
                kept.append((columns[inside], effect[inside]))
            yield Events(np.concatenate([c for c, _ in kept]), np.concatenate([e for _, e in kept]), np.zeros(0, np.int64))

    def batches(self, part: range) -> Iterator[tuple[slice, Float[np.ndarray, "head example query"]]]:
        """Effects of a part of the corpus, some examples at a time."""
        for start in range(part.start, part.stop, ROWS):
            rows = slice(start, min(start + ROWS, part.stop))
            yield rows, self.file["effect"][:, rows]
