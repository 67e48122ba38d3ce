"""Which weights are sampled: a head, heads, a layer, embeddings, all, or parameters by name; all others stay at ``w*``.

A head's weights are its slices of ``W_Q, W_K, W_V, W_O`` and of ``b_Q, b_K, b_V``; the output bias, norms and anything else of
its layer are not among them (devinterp's mask of ``"l0h1"`` is the same).

    "L0H3", (0, 3)          a head                 "L0"        everything in layer 0
    ["L0H3", "L1H0"]        a set                  "embed"     token and position embeddings
    "all"                   every parameter        "unembed"   the unembedding and its bias
    "blocks.0.attn.W_O"     a parameter by name

Source: Wang et al. 2024, section 3.2 (weight-refined local learning coefficients).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.models.heads import Head

HEAD_PARTS = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")
"""What is a head's own, in the order in which its weights are one vector."""


class Slice(NamedTuple):
    """A parameter, or one head's part of it."""

    name: str
    head: int | None = None


class Block:
    """Weights to be sampled, as one vector and back.

    Attributes:
        slices: where they lie, none twice. text: what was asked for, in words.
    """

    def __init__(self, given: Any, parameters: Mapping[str, Tensor], cfg: Any):
        parts = list(given) if isinstance(given, Sequence) and not isinstance(given, str) and not _is_pair(given) else [given]
        if not parts:
            raise ValueError("no weights were named; give a head such as 'L0H3', 'all', or parameter names")
        self.slices: list[Slice] = []
        for part in parts:
            for slice_ in _slices(part, parameters, cfg):
                whole = slice_.name in {known.name for known in self.slices if known.head is None or slice_.head is None}
                if slice_ in self.slices or whole:
                    raise ValueError(f"{slice_.name} is named twice by {given!r}; name every weight once")
                self.slices.append(slice_)
        self.text = ", ".join(str(Head.parse(part)) if _is_pair(part) else str(part) for part in parts)

    def vector(self, parameters: Mapping[str, Tensor]) -> Float[Tensor, "parameter"]:
        """The weights, one behind the other."""
        return torch.cat([self._of(slice_, parameters).detach().flatten() for slice_ in self.slices])

    def placed(self, w: Float[Tensor, "parameter"], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters that are touched, with ``w`` in its places; differentiable in ``w``."""
        sizes = [self._of(slice_, parameters).numel() for slice_ in self.slices]
        found: dict[str, Tensor] = {}
        for slice_, part in zip(self.slices, w.split(sizes), strict=True):
            whole = parameters[slice_.name].detach()
            if slice_.head is None:
                found[slice_.name] = part.view_as(whole)
            else:
                place = torch.tensor([slice_.head], device=whole.device)
                found[slice_.name] = found.get(slice_.name, whole).index_copy(0, place, part.view_as(whole[:1]))
        return found

    @staticmethod
    def _of(slice_: Slice, parameters: Mapping[str, Tensor]) -> Tensor:
        whole = parameters[slice_.name]
        return whole if slice_.head is None else whole[slice_.head]


def _is_pair(given: Any) -> bool:
    return isinstance(given, Head) or (isinstance(given, tuple) and len(given) == 2 and all(isinstance(n, int) for n in given))


def _slices(part: Any, parameters: Mapping[str, Tensor], cfg: Any) -> list[Slice]:
    if isinstance(part, str) and part in parameters:
        return [Slice(part)]
    if isinstance(part, str):
        layer = re.fullmatch(r"[lL](\d+)", part.strip())
        starts = {"all": ("",), "embed": ("embed.", "pos_embed."), "unembed": ("unembed.",)}.get(part.strip())
        if layer is not None:
            if int(layer[1]) >= cfg.n_layers:
                raise ValueError(f"there is no layer {layer[1]}: the model has layers 0..{cfg.n_layers - 1}")
            starts = (f"blocks.{layer[1]}.",)
        if starts is not None:
            found = [Slice(name) for name in parameters if name.startswith(starts)]
            if not found:
                raise ValueError(f"the model has no parameters called {' or '.join(starts)}...; name some of {_some(parameters)}")
            return found
    if isinstance(part, str) and re.match(r"[lL\d]", part) is None:
        raise ValueError(
            f"{part!r} names no weights; give a head such as 'L0H3', a layer 'L0', 'embed', 'unembed', 'all', or a parameter "
            f"such as {_some(parameters)}"
        )
    head = Head.parse(part, cfg)
    found = [Slice(f"blocks.{head.layer}.attn.{name}", head.head) for name in HEAD_PARTS]
    missing = [slice_.name for slice_ in found if slice_.name not in parameters]
    if missing:
        raise ValueError(f"{head} has no parameter {missing[0]} in this model: name parameters, such as {_some(parameters)}")
    return found


def _some(parameters: Mapping[str, Tensor]) -> str:
    return ", ".join(list(parameters)[:3])
