"""Claims 1, 13 and 23 about circuits: equalities, true of the library whatever was trained, shown live and in seconds.

Models are untrained, of the layers and heads that the runs have, between 5 and 12 heads and 2 layers at most (2 layers of 8
heads without runs), and small otherwise. An equality is exact to a stated bound, and its
p counts what should differ and does not: with the wrong partner, such as a sum without some of its terms or another head's
paths, ``(1 + as near) / (1 + wrong partners)``.

    path sum        sum over all paths of their logits, patterns and norm scales frozen (``circuits.paths.expansion``)
    diagonal        mean of the diagonal 1 - n of a pattern on [BOS, r, r], the reading of public code: it has n + 2 rows, of
                    which two are no repeats

Tests of the library say the same of more cases: ``tests/science/test_expansion.py``, ``tests/unit/test_factored.py`` and
``test_patterns.py``.

Sources: Elhage et al. 2021 (path expansion, factored matrices and their erratum); Olsson et al. 2022, appendix (ablation).
"""

from collections.abc import Sequence
from itertools import combinations
from math import ceil, log10
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.verdict import Check, Claim, Reading, decide
from circuits.data.tokens import repeated_random_tokens
from circuits.models.config import HookedTransformerConfig
from circuits.models.heads import Head
from circuits.models.hooked import HookedTransformer
from circuits.models.interventions import Norms, ablated, replacement
from circuits.models.patterns import induction_mask, induction_score
from circuits.paths.expansion import PathExpansion
from circuits.weights.factored import compose, product_norm, product_singular_values
from circuits.weights.folded import folded
from circuits.weights.spectra import copying_statistic, ov_eigenvalues, qk_eigenvalues

EXACT, SINGLE, EQUAL, ROUNDING = 1e-10, 1e-4, 1e-5, 1e-6
REPEATS = tuple(range(5, 51, 5))


class Shape(NamedTuple):
    """Layers and heads of a model."""

    layers: int
    heads: int

    def __str__(self) -> str:
        return f"{self.layers} layer{'s' * (self.layers > 1)} of {self.heads} heads"


def shapes(seeds: Sequence[Evidence], one_layer: Evidence | None) -> list[Shape]:
    """The different shapes for these runs: few heads have too few wrong partners, many layers too many paths."""
    scores = [run.results["attention_scores"] for run in (*seeds, one_layer) if run and "attention_scores" in run.results]
    found = (Shape(min(data.sizes["layer"], 2), min(max(data.sizes["head"], 5), 12)) for data in scores)
    return list(dict.fromkeys(found)) or [Shape(2, 8)]


def claim_1(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """The path sum."""

    def gap(shape: Shape, dtype: str, bound: float) -> Check:
        model, tokens = _model(shape, dtype=dtype), _text()
        logits = model(tokens)
        terms = {term.path: term.logits() for term in PathExpansion(model, tokens).terms()}
        off = torch.stack(list(terms.values())).sum(0) - logits
        paths = [term for path, term in terms.items() if path[0] == "embed"]
        fewer = [*paths, *(a + b for a, b in combinations(paths, 2))]
        wrong = [_largest(off - gone) for gone in fewer]
        return decide(f"largest difference, {dtype}, {shape}", [against(_largest(off), wrong, bound)], most=bound)

    every = shapes(seeds, one_layer)
    return Claim(
        "circuits 1",
        "Logits of an attention-only model are the sum over its paths.",
        f"The sum differs from the logits by at most {EXACT:g} in float64 and {SINGLE:g} in float32, with layer norms.",
        "The sum without one or two of the paths from the embedding.",
        "Elhage et al. 2021, Path Expansion Trick",
        tuple(gap(shape, *how) for shape in every for how in (("float64", EXACT), ("float32", SINGLE))),
    )


def claim_13(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Ablation as subtraction."""

    def gaps(shape: Shape) -> tuple[Check, Check]:
        model, tokens = _model(shape), _text()
        every = [Head(layer, head) for layer in range(shape.layers) for head in range(shape.heads)]
        through = {head: torch.zeros(()) for head in every}
        for term in PathExpansion(model, tokens).terms():
            logits = term.logits()
            for head in term.heads:
                through[head] = through[head] + logits
        clean, put = model(tokens), replacement(model, tokens, "zero")

        def without(head: Head, norms: Norms) -> Tensor:
            with ablated(model, tokens, [head], put, patterns="preserved", norms=norms):
                return model(tokens)

        gone = {head: without(head, "frozen") - clean for head in every}
        table = np.array([[_largest(gone[a] + through[b]) for b in every] for a in every])
        live = max(_largest(without(head, "live") - clean + through[head]) for head in every)
        return (
            decide(f"largest difference, {shape}", [matched(table, EQUAL)], most=EQUAL),
            decide(f"the same with norms live, {shape}", [Reading(float(f"{live:.6g}"))], role="report"),
        )

    return Claim(
        "circuits 13",
        "In an attention-only model pattern-preserving ablation of a head subtracts every path through it.",
        "Logits with the head's write at zero, patterns and norm scales kept, are the logits less the sum over its paths, to "
        f"{EQUAL:g}.",
        "Paths through another head; norms that follow.",
        "Olsson et al. 2022, argument 3 (ablation); Elhage et al. 2021",
        tuple(check for shape in shapes(seeds, one_layer) for check in gaps(shape)),
    )


def claim_23(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Factored and dense; one row too many."""

    def both(shape: Shape) -> Check:
        w = folded(_model(shape))
        fast, slow = [], []
        for q, k, v, o in zip(*(x.flatten(0, 1) for x in (w.W_Q, w.W_K, w.W_V, w.W_O)), strict=True):
            ov, qk = (w.of_tokens(v), w.logits(o)), (w.of_tokens(q), w.of_tokens(k).mT)
            spectra = ov_eigenvalues(v, o, w.G), qk_eigenvalues(q, k, w.C)
            composed = product_norm(*compose(v, o, k, q.mT))
            fast.append([*map(copying_statistic, spectra), product_norm(*ov), *product_singular_values(*qk)[:2], composed])
            dense = ov[0] @ ov[1], qk[0] @ qk[1]
            eigen = [copying_statistic(torch.linalg.eigvals(x)) for x in dense]
            values = torch.linalg.svdvals(dense[1])[:2]
            slow.append([*eigen, torch.linalg.matrix_norm(dense[0]), *values, torch.linalg.matrix_norm(v @ o @ k @ q.mT)])
        a, b = (np.array([[float(x) for x in row] for row in table]) for table in (fast, slow))
        off = np.abs(a[:, None] - b[None]) / np.maximum(1, np.abs(b[None]))
        return decide(f"largest relative difference, {shape}", [matched(off.max(-1), EXACT)], most=EXACT)

    ratios = np.array([_diagonal(n) for n in REPEATS])
    factors = np.array([n / (n + 2) for n in REPEATS])
    return Claim(
        "circuits 23",
        "Factored mathematics is the dense one, and reading two rows too many costs what it must.",
        f"Copying statistics, norms, singular values and composition from factors equal those of dense matrices to {EXACT:g} in "
        f"float64; the diagonal's score of a perfect head is n / (n + 2), for n of {REPEATS[0]} to {REPEATS[-1]}.",
        "Another head's dense matrices; another n.",
        "Elhage et al. 2021 (erratum on composition)",
        (
            *(both(shape) for shape in shapes(seeds, one_layer)),
            decide(
                "largest difference of the diagonal's score from n / (n + 2)",
                [matched(np.abs(ratios[:, None] - factors[None]), ROUNDING)],
                most=ROUNDING,
            ),
        ),
    )


def matched(table: Float[np.ndarray, "ours theirs"], bound: float) -> Reading:
    """The largest difference of partners, on the diagonal; and how many wrong partners are as near as the bound."""
    return against(float(table.diagonal().max()), table[~np.eye(len(table), dtype=bool)].tolist(), bound)


def against(value: float, wrong: Sequence[float], bound: float) -> Reading:
    """A difference, and how many that should be larger are as near as the bound.

    Differences of rounding hang on where arrays lie in memory, so that the next power of ten is told: equal runs, equal bytes.
    """
    near = sum(other <= bound for other in wrong)
    told = 10.0 ** ceil(log10(value)) if value > 0 else 0.0
    return Reading(told, p=(1 + near) / (1 + len(wrong)), least_p=1 / (1 + len(wrong)))


def config(shape: Shape, **changes: Any) -> HookedTransformerConfig:
    """An attention-only model with positions outside the residual stream, as the shipped runs."""
    fields = {"n_layers": shape.layers, "n_heads": shape.heads, "d_head": 8, "attn_only": True}
    return HookedTransformerConfig.parse(fields | {"positional_embedding_type": "shortformer"} | changes)


def _model(shape: Shape, dtype: str = "float64") -> HookedTransformer:
    """An untrained model whose attention is not uniform."""
    sizes = {"d_model": 4 * shape.heads + 8, "n_ctx": 12, "d_vocab": 40, "initializer_range": 0.5}
    return HookedTransformer(config(shape, dtype=dtype, **sizes)).eval().requires_grad_(False)


def _text() -> Tensor:
    return torch.randint(0, 40, (2, 10), generator=torch.Generator().manual_seed(0))


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _diagonal(n: int) -> float:
    """The diagonal's reading of a head that looks at induction targets, and else at its own token, over its score."""
    tokens = repeated_random_tokens(100, n=n, examples=1).tokens
    mask = induction_mask(tokens).double()
    own = torch.eye(tokens.shape[1], dtype=torch.float64) * (mask.sum(-1, keepdim=True) == 0)
    pattern = (mask + own)[:, None]
    return float(pattern.diagonal(1 - n, dim1=-2, dim2=-1).mean() / induction_score(pattern, tokens).mean())
