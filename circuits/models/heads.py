"""Names of heads: parse ``"L0H3"``, ``"l0h3"``, ``"0:3"`` or ``(0, 3)``; print ``L0H3``."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_FORM = re.compile(r"[lL](\d+)[hH](\d+)|(\d+)[:.](\d+)")


@dataclass(frozen=True, order=True)
class Head:
    """One attention head; ``str(head)`` is ``L0H3`` and parses back to itself."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, given: "Head | str | Sequence[int]", cfg: Any = None) -> "Head":
        """Read a head's name.

        Args:
            given: ``"L0H3"``, ``"l0h3"``, ``"0:3"``, ``(0, 3)`` or a Head.
            cfg: if given, its ``n_layers`` and ``n_heads`` bound the answer.

        Raises:
            TypeError: neither a name nor a pair. ValueError: not a head's name, or not a head of this model.
        """
        if isinstance(given, Head):
            layer, head = given.layer, given.head
        elif isinstance(given, str):
            match = _FORM.fullmatch(given.strip())
            if match is None:
                raise ValueError(f"{given!r} does not name a head; write it as 'L0H3' or (0, 3)")
            layer, head = (int(part) for part in match.groups() if part is not None)
        elif isinstance(given, Sequence) and len(given) == 2 and all(hasattr(part, "__index__") for part in given):
            layer, head = int(given[0]), int(given[1])
        else:
            raise TypeError(f"{given!r} does not name a head; write it as 'L0H3' or (0, 3)")
        if cfg is not None and not (0 <= layer < cfg.n_layers and 0 <= head < cfg.n_heads):
            raise ValueError(
                f"there is no head L{layer}H{head}: the model has layers 0..{cfg.n_layers - 1} with heads 0..{cfg.n_heads - 1}"
            )
        return cls(layer, head)


def named(given: Any) -> tuple[Head, ...]:
    """The heads of a list, or the one that is given alone, in any of the forms that ``Head.parse`` reads.

    Raises:
        TypeError, ValueError: something in it names no head.
    """
    pair = isinstance(given, tuple) and len(given) == 2 and all(hasattr(part, "__index__") for part in given)
    if pair or isinstance(given, str) or not isinstance(given, Iterable):
        return (Head.parse(given),)
    return tuple(Head.parse(one) for one in given)
