"""One progress bar, on in terminals and notebooks and off elsewhere."""

import os
import sys
from collections.abc import Iterable
from typing import Any


def bar(
    items: Iterable[Any] | None = None, *, total: int | None = None, label: str, on: bool | None = None, **options: Any
) -> Any:
    """A tqdm bar over ``items`` (or a manual one), written to stderr.

    Args:
        on: True, False, or None for "where somebody watches": a terminal or a notebook kernel.
    """
    from tqdm.auto import tqdm

    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    shown = watched if on is None else on
    if os.environ.get("CIRCUITS_PROGRESS") in ("0", "1"):
        shown = os.environ["CIRCUITS_PROGRESS"] == "1"
    return tqdm(items, total=total, desc=label, disable=not shown, dynamic_ncols=True, **options)
