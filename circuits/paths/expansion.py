"""The exact path expansion of attention-only models: logits as a sum over paths, path by path.

With patterns and norm scales frozen at the clean run (``circuits.paths.frozen``),

    logits = b_U + sum over paths of  logits(A^{hn} ... A^{h1} (x W_V^{h1} W_O^{h1} ... W_V^{hn} W_O^{hn}))

(scales of norms left out of the line; ``b_U`` holds the final norm's bias). A path begins with ``x``: ``embed``, ``pos``
(standard positions), or ``bias L0``, ``bias L1``, ... (the constant that a layer writes: output, value and norm biases); and goes
through zero or more heads of ascending layers. Its *order* is the number of those heads, so ``bias L0 -> logits`` and ``b_U`` are
of order 0. Written ``embed -> L0H3 -> L1H4 -> logits``; terms of order 2 and more are virtual heads.

What each term does to the loss is ``circuits.paths.path_terms``. Source: Elhage et al. 2021, "Path Expansion Trick".
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.heads import Head
from circuits.models.protocol import check_tokens, device_of
from circuits.paths.frozen import FrozenRun, linear_model
from circuits.paths.wiring import LOGITS
from circuits.results import check_whole

B_U = "b_U"


@dataclass(frozen=True, eq=False)
class PathTerm:
    """One path's part of a run.

    Attributes:
        path: where it begins, then its heads: ``("embed", "L0H3", "L1H4")``. stream: what it adds to the final residual stream
            (before the final norm), ``[batch, pos, d_model]``; zero for ``b_U``, which is in the logits only.
    """

    path: tuple[str, ...]
    stream: Float[Tensor, "batch pos d_model"]
    run: FrozenRun

    @property
    def name(self) -> str:
        """``"embed -> L0H3 -> L1H4 -> logits"``."""
        return name_of(self.path)

    @property
    def order(self) -> int:
        """The number of heads on the path."""
        return len(self.path) - 1

    @property
    def heads(self) -> tuple[Head, ...]:
        return tuple(Head.parse(name) for name in self.path[1:])

    def logits(self) -> Float[Tensor, "batch pos d_vocab_out"]:
        """What it adds to the logits."""
        if self.path == (B_U,):
            return self.run.bias.expand(*self.stream.shape[:2], -1)
        return self.run.logits(self.stream)

    def pattern(self, *, scaled: bool = False) -> Float[Tensor, "batch query key"]:
        """``A^{hn} ... A^{h1}``: where it moves from and to; the identity without heads, so that rows sum to 1.

        Args:
            scaled: each pattern's keys divided by the scale of the norm that the head reads through. Then
                ``stream = pattern @ start @ left @ right``, the two of ``ov()``, whatever the norm.
        """
        batch, length, _ = self.stream.shape
        product = torch.eye(length, dtype=self.stream.dtype, device=self.stream.device).expand(batch, -1, -1)
        for head in self.heads:
            pattern = self.run.clean.pattern[head.layer][:, head.head]
            scale = self.run.clean.scale(f"blocks.{head.layer}.ln1")
            product = (pattern / scale.mT if scaled and scale is not None else pattern) @ product
        return product

    def ov(self) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, "rank d_model"]]:
        """``W_V^{h1} W_O^{h1} ... W_V^{hn} W_O^{hn}``, gains and centring of norms in it, as two factors.

        The rank is ``d_head``; without heads it is the identity twice.
        """
        if not self.heads:
            one = torch.eye(self.run.cfg.d_model, dtype=self.stream.dtype, device=self.stream.device)
            return one, one
        first, *later = self.heads
        left, right = self.run.W_V[first.layer][first.head], self.run.model.blocks[first.layer].attn.W_O[first.head]
        for head in later:
            right = right @ self.run.W_V[head.layer][head.head] @ self.run.model.blocks[head.layer].attn.W_O[head.head]
        return left, right


class PathExpansion:
    """All paths of an attention-only model on some tokens.

    Example:
        >>> import torch
        >>> from circuits import HookedTransformer
        >>> from circuits.paths.expansion import PathExpansion
        >>> cfg = dict(n_layers=2, d_model=8, n_heads=2, d_head=4, n_ctx=16, d_vocab=50, attn_only=True)
        >>> model = HookedTransformer(cfg).eval()
        >>> paths = PathExpansion(model, torch.arange(10)[None])
        >>> paths.term("embed -> L0H1 -> L1H0 -> logits").pattern().shape
        torch.Size([1, 10, 10])

    Args:
        model: a hooked model without MLPs and without a cap on logits, any depth, norm and kind of positions; left as found, and
            hooks that it has are not run. tokens: ``[batch, pos]``, all in one batch.

    Raises:
        TypeError, ValueError: not such a model, or tokens that do not fit it.
    """

    def __init__(self, model: Any, tokens: Int[Tensor, "batch pos"]):
        twin = linear_model(model)
        check_tokens(tokens, d_vocab=twin.cfg.d_vocab, n_ctx=twin.cfg.n_ctx, needed_by="a path expansion")
        self.run = FrozenRun(twin, tokens.to(device_of(twin)))

    def paths(self, order: int | Iterable[int] | None = None) -> tuple[tuple[str, ...], ...]:
        """All paths, ``("embed", "L0H3", "L1H4")``, in the order of ``terms``.

        Args:
            order: those through so many heads; one number or several. All by default.
        """
        return tuple(path for path, _ in walk(self.run, order, streams=False))

    def terms(self, order: int | Iterable[int] | None = None) -> Iterator[PathTerm]:
        """Every path's term, depth first: no more streams are held than the model is deep, beside what the caller keeps.

        Raises:
            ValueError: an order that is no whole number from 0 to the number of layers.
        """
        return (PathTerm(path, stream, self.run) for path, stream in walk(self.run, order))

    def term(self, path: str | Sequence[str]) -> PathTerm:
        """One term.

        Args:
            path: ``"embed -> L0H3 -> L1H4 -> logits"``, or ``("embed", "L0H3", "L1H4")``.

        Raises:
            ValueError: there is no such path. TypeError: neither a name nor a tuple of names.
        """
        if not isinstance(path, str | Sequence) or not all(isinstance(hop, str) for hop in path):
            raise TypeError(f"a path is {path!r}, need a name such as 'embed -> L0H3 -> logits', or a tuple of its hops")
        hops = [hop.strip() for hop in path.split("->")] if isinstance(path, str) else list(path)
        start, *heads = hops[:-1] if hops[-1:] == [LOGITS] else hops or [""]
        if start == B_U and not heads:
            return PathTerm((B_U,), torch.zeros_like(self.run.clean.after[-1]), self.run)
        if start not in self.run.starts:
            raise ValueError(f"a path begins with {', '.join(self.run.starts)} (or is b_U alone), and {path!r} does not")
        first, stream = self.run.starts[start]
        through = [Head.parse(head, self.run.cfg) for head in heads]
        for head in through:
            if head.layer < first:
                raise ValueError(f"{path!r}: {head} cannot read what is written in its layer or later; heads ascend in layers")
            stream = self.run.gathered(head.layer, stream)[:, head.head] @ self.run.model.blocks[head.layer].attn.W_O[head.head]
            first = head.layer + 1
        return PathTerm((start, *map(str, through)), stream, self.run)

    def logits(self) -> Float[Tensor, "batch pos d_vocab_out"]:
        """The sum of all terms, order by order rather than path by path: the model's logits up to rounding."""
        return self.run.logits(torch.stack(self.run.by_order()).sum(0)) + self.run.bias


def walk(run: FrozenRun, order: int | Iterable[int] | None, *, streams: bool = True) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths of these orders, each with its stream if wanted, depth first.

    Raises:
        ValueError: an order that is no whole number from 0 to the number of layers.
    """
    depth = run.cfg.n_layers
    orders = set(range(depth + 1)) if order is None else set(order) if isinstance(order, Iterable) else {order}
    for number in orders:
        check_whole("order", number, 0, f"and at most n_layers = {depth}")
        if number > depth:
            raise ValueError(f"order={number}: a path goes through each of {depth} layers at most once, so 0..{depth}")

    def onward(path: tuple[str, ...], first: int, stream: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        if len(path) - 1 in orders:
            yield path, stream
        if len(path) > max(orders):
            return
        for layer in range(first, depth):
            z = run.gathered(layer, stream) if streams else None
            for head in range(run.cfg.n_heads):
                new = None if z is None else z[:, head] @ run.model.blocks[layer].attn.W_O[head]
                yield from onward((*path, str(Head(layer, head))), layer + 1, new)

    def begin() -> Iterator[tuple[tuple[str, ...], Any]]:
        if 0 in orders:
            yield (B_U,), torch.zeros_like(run.clean.after[-1]) if streams else None
        for start, (first, stream) in run.starts.items():
            yield from onward((start,), first, stream)

    return begin() if orders else iter(())


def name_of(path: Sequence[str]) -> str:
    """``"embed -> L0H3 -> logits"`` of ``("embed", "L0H3")``."""
    return " -> ".join((*path, LOGITS))
