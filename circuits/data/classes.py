"""Sequence classes of Scan & Snap: which tokens stand before a query, given the token that comes next.

A sequence is ``T - 1`` context tokens, a query and the next token. The next token ``n`` is one of ``K`` labels, all equally
likely; it decides the query ``psi(n)`` and the distribution ``P(l | n)`` from which every context token is drawn by itself. A
context token is *distinct* where one label alone has it, else *common*.

Labels, queries and context tokens are numbered apart, each from 0: which ids of the vocabulary they have does not matter to the
theory. ``d_vocab``, the paper's ``M``, is how many outputs there are; ``d_vocab - K`` of them never come next.

Source: Tian et al. 2023, sections 2 and 3.1; the settings of figures 3, 4 and 6.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.results import array_hash, check_whole

SUMS_TO = 1e-9
"""How far from 1 the sum of a label's probabilities may be: rounding of a few thousand numbers, no more."""
SYN_COMMON, SYN_DISTINCT = (1.0,) * 10, tuple(tenth / 10 for tenth in range(1, 11))
"""Weights of the shared tokens, and of each label's own, of the paper's Syn-Small and Syn-Medium."""


@dataclass(frozen=True)
class SequenceClasses:
    """Labels with their query and their context tokens.

    Args:
        probabilities: ``P(l | n)``, a row for every label, a column for every context token.
        queries: ``psi(n)`` of every label; all of 0, 1, .. up to the largest.
        d_vocab: outputs ``M``; no fewer than labels, context tokens or queries.

    Raises:
        ValueError: probabilities that are negative or do not sum to 1, a label without context tokens, a context token or a
            query that no label has, or ``d_vocab`` too small.

    Example:
        >>> one = SequenceClasses(((0.5, 0.5, 0.0), (0.5, 0.0, 0.5)), queries=(0, 0), d_vocab=6)
        >>> one.common.tolist(), one.distinct.tolist()
        ([True, False, False], [[False, True, False], [False, False, True]])
    """

    probabilities: tuple[tuple[float, ...], ...]
    queries: tuple[int, ...]
    d_vocab: int

    def __post_init__(self) -> None:
        rows = tuple(tuple(float(x) for x in row) for row in self.probabilities)
        object.__setattr__(self, "probabilities", rows)
        object.__setattr__(self, "queries", tuple(int(query) for query in self.queries))
        _check_rows(rows)
        check_whole("d_vocab", self.d_vocab, 1)
        if len(self.queries) != len(rows) or set(self.queries) != set(range(max(self.queries) + 1)):
            raise ValueError(
                f"queries={self.queries} for {len(rows)} labels: give each label its query, numbered 0, 1, .. without gaps"
            )
        needed = max(len(rows), len(rows[0]))
        if self.d_vocab < needed:
            raise ValueError(
                f"d_vocab={self.d_vocab} with {len(rows)} labels and {len(rows[0])} context tokens: need d_vocab >= {needed}"
            )

    @classmethod
    def build(
        cls,
        *,
        queries: int = 1,
        labels_per_query: int = 2,
        common: Sequence[float] = SYN_COMMON,
        distinct: Sequence[float] | Sequence[Sequence[float]] = SYN_DISTINCT,
        common_per_query: Sequence[float] = (),
        d_vocab: int | None = None,
    ) -> "SequenceClasses":
        """Classes of a regular layout: tokens that all labels share, tokens that a query's labels share, each label's own.

        Args:
            queries, labels_per_query: how many; label ``n`` has query ``n // labels_per_query``.
            common, common_per_query, distinct: relative weights of the tokens of each kind. ``distinct`` is one sequence for all
                labels, or one for each.
            d_vocab: default: one output for every context token, query and label.

        Raises:
            ValueError: as the class; or no queries or labels, or as many sequences of distinct weights as there are not labels.
        """
        check_whole("queries", queries, 1)
        check_whole("labels_per_query", labels_per_query, 1)
        count = queries * labels_per_query
        nested = [[float(x) for x in one] for one in distinct if isinstance(one, Sequence)]
        own = nested or [[float(x) for x in distinct if not isinstance(x, Sequence)]] * count
        if len(own) != count:
            raise ValueError(f"{len(own)} sequences of distinct weights for {count} labels: give one for each, or one for all")
        shared, local = [float(x) for x in common], [float(x) for x in common_per_query]
        tokens = len(shared) + queries * len(local) + sum(map(len, own))
        rows, start = [], len(shared) + queries * len(local)
        for label, weights in enumerate(own):
            row = [0.0] * tokens
            row[: len(shared)] = shared
            first = len(shared) + label // labels_per_query * len(local)
            row[first : first + len(local)] = local
            row[start : start + len(weights)] = weights
            start += len(weights)
            total = math.fsum(row)
            rows.append(tuple(x / total if total > 0 else x for x in row))
        default = tokens + queries + count
        psi = tuple(label // labels_per_query for label in range(count))
        return cls(tuple(rows), psi, default if d_vocab is None else d_vocab)

    @classmethod
    def syn_small(cls) -> "SequenceClasses":
        """The paper's Syn-Small (figure 4): 2 labels, each with its own query, 10 shared and 10 distinct tokens, ``M`` = 34."""
        return cls.build(queries=2, labels_per_query=1)

    @classmethod
    def syn_medium(cls, queries: int) -> "SequenceClasses":
        """The paper's Syn-Medium (figure 6): 2 labels to each of 1, 3, 5 or 10 queries; ``M`` is 33, 79, 125, 240."""
        return cls.build(queries=queries)

    @classmethod
    def with_overlap(
        cls,
        overlap: float,
        *,
        labels: int = 10,
        d_vocab: int = 1000,
        queries: int = 1,
        common: int = 1,
        distinct: Sequence[float] = (1.0, 2.0, 3.0, 4.0),
    ) -> "SequenceClasses":
        """Classes whose features overlap by ``f_n . f_n' = overlap`` at ``Z = 0``; a small one is the theory's weak correlation.

        ``common`` equally likely tokens are shared by all labels; with ``D = sum distinct^2`` each has the weight ``w`` that
        makes ``common w^2 / (common w^2 + D)`` the overlap.

        Raises:
            ValueError: as the class; an overlap outside [0, 1), labels that queries do not divide, or no common token.
        """
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap={overlap}: need f_n . f_n' in [0, 1), e.g. 0.01 for weak correlation")
        for name, value in {"labels": labels, "queries": queries, "common": common}.items():
            check_whole(name, value, 1)
        if labels % queries:
            raise ValueError(f"{labels} labels over {queries} queries: give a multiple, or build the classes by hand")
        weight = math.sqrt(overlap * math.fsum(x * x for x in distinct) / ((1 - overlap) * common))
        shared = (weight,) * common if overlap else ()
        return cls.build(queries=queries, labels_per_query=labels // queries, common=shared, distinct=distinct, d_vocab=d_vocab)

    @property
    def n_labels(self) -> int:
        """``K``."""
        return len(self.queries)

    @property
    def n_queries(self) -> int:
        """How many different queries there are."""
        return max(self.queries) + 1

    @property
    def n_tokens(self) -> int:
        """How many context tokens there are."""
        return len(self.probabilities[0])

    @cached_property
    def p(self) -> Float[Tensor, "label token"]:
        """``P(l | n)`` in double precision."""
        return torch.tensor(self.probabilities, dtype=torch.float64)

    @cached_property
    def psi(self) -> Int[Tensor, "label"]:
        """The query of every label."""
        return torch.tensor(self.queries)

    @cached_property
    def omega(self) -> Int[Tensor, "token"]:
        """``|Omega(l)|``: how many labels have the token."""
        return (self.p > 0).sum(0)

    @cached_property
    def common(self) -> Bool[Tensor, "token"]:
        """Tokens of several labels."""
        return self.omega > 1

    @cached_property
    def distinct(self) -> Bool[Tensor, "label token"]:
        """Tokens of this label alone."""
        return (self.p > 0) & (self.omega == 1)

    @cached_property
    def cooccur(self) -> Bool[Tensor, "query token"]:
        """Which tokens ever stand before which query; attention logits of others have no gradient."""
        seen = torch.zeros(self.n_queries, self.n_tokens, dtype=torch.bool)
        for query, row in zip(self.queries, self.p > 0, strict=True):
            seen[query] |= row
        return seen

    @cached_property
    def overlap(self) -> float:
        """``rho``: ``f_n . f_n'`` at ``Z = 0``, the mean over pairs of labels; 0 for a single label.

        The theory needs it small (assumption 2: largest eigenvalue of the off-diagonal part below ``1 / K``); it is 0.722 in the
        paper's own Syn-Small and Syn-Medium.
        """
        f = self.p / self.p.norm(dim=1, keepdim=True)
        pairs = self.n_labels * (self.n_labels - 1)
        return float((f @ f.T).sum() - self.n_labels) / pairs if pairs else 0.0

    def spec(self) -> dict[str, Any]:
        """Sizes, and the probabilities by hash."""
        sizes = {"labels": self.n_labels, "queries": self.n_queries, "tokens": self.n_tokens, "d_vocab": self.d_vocab}
        return sizes | {"hash": array_hash(self.p, self.psi)}


def _check_rows(rows: tuple[tuple[float, ...], ...]) -> None:
    """Refuse what is no table of probabilities."""
    if not rows or len({len(row) for row in rows}) != 1:
        raise ValueError(f"rows of {sorted({len(row) for row in rows})} probabilities: need one row a label, one column a token")
    for label, row in enumerate(rows):
        if not any(row):
            raise ValueError(f"label {label} has no context tokens: give it at least one P(l | {label}) > 0")
        total = math.fsum(row)
        if not min(row) >= 0 or not abs(total - 1) <= SUMS_TO:
            raise ValueError(
                f"P(l | {label}) sums to {total:.4g}, its least is {min(row):.4g}: need numbers from 0 up that sum to 1; "
                "SequenceClasses.build takes weights"
            )
    if unused := [token for token, column in enumerate(zip(*rows, strict=True)) if not any(column)]:
        raise ValueError(f"no label has context tokens {unused}: leave out their columns")
