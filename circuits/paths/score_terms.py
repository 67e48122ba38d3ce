"""Which terms make up a head's attention scores: the expansion of scores over what queries and keys read.

The stream that a head reads is a sum of terms, and with norm scales of the clean run its queries and keys are linear in them:

    score[i, k] = sum over (a, b) of  q_a[i] . k_b[k] / attn_scale      before a cap and before softmax, [query, key]

    a, b        "embed"; "pos" where positions are learned; each earlier head "L0H3" (its z W_O) and MLP "L0MLP" (bias included);
                "bias": output biases of earlier attention, the norm's bias, and b_Q or b_K

Shortformer positions are read behind the norm. Rotation and smearing of keys are linear in queries and keys, so they are exact;
rotation makes ``q_a . k_b`` depend on distance. Where scores are capped the sum is the score before the cap.

A constant that all keys of a query share moves no attention, so a term counts by how its scores vary over the keys that a query
sees: with ``cov_i`` and ``var_i`` over keys ``k <= i`` of query ``i``,

    share = sum_i cov_i(term, score) / sum_i var_i(score)        over queries with two keys or more; all shares sum to 1 exactly

negative where a term works against the others. ``spread`` is the mean over queries of the term's standard deviation over keys.

The null asks whether a term fits this text: its scores come from another example of the batch (same positions), the total stays.
Sources: Elhage et al. 2021, the (4, 2)-tensor of two-layer attention scores; shares and null ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.heads import Head
from circuits.models.hooked import HookedTransformer
from circuits.models.layers import smear
from circuits.models.own import bare
from circuits.models.protocol import check_evaluated, check_finite, check_model, check_tokens, device_of, model_hash
from circuits.models.stacked import clean_run
from circuits.paths.frozen import against, batches, check_examples, exchanges, fold, shift_of
from circuits.paths.values import writes
from circuits.paths.wiring import POS, Wiring
from circuits.results import array_hash, check_whole, labelled

BIAS = "bias"


class ScoreExpansion:
    """The scores of one head on some tokens, term by term.

    Example:
        >>> import torch
        >>> from circuits.models.planted import planted_model
        >>> from circuits.paths.score_terms import ScoreExpansion
        >>> expansion = ScoreExpansion(planted_model(), torch.tensor([[0, 5, 6, 7, 5, 6]]), "L1H0")
        >>> expansion.scores("embed", "L0H0").shape
        torch.Size([1, 6, 6])

    Attributes:
        terms: names, of query terms and of key terms alike. queries, keys: ``[term, batch, pos, d_head]``, rotated and smeared,
            queries divided by ``attn_scale``.

    Args:
        model: any hooked model, left as found; hooks that it has are not run. tokens: ``[batch, pos]``. head: its name.

    Raises:
        TypeError, ValueError: not a hooked model, NaN weights, no such head, or tokens that do not fit.
    """

    def __init__(self, model: Any, tokens: Int[Tensor, "batch pos"], head: Head | str | Sequence[int]):
        check_model(model)
        check_evaluated(model)
        check_finite(model)
        twin = bare(model)
        self.head = Head.parse(head, twin.cfg)
        check_tokens(tokens, d_vocab=twin.cfg.d_vocab, n_ctx=twin.cfg.n_ctx, needed_by="an expansion of scores")
        self.terms, self.queries, self.keys = expanded(twin, tokens.to(device_of(twin)).long(), self.head)

    def scores(self, query_term: str, key_term: str) -> Float[Tensor, "batch query key"]:
        """The part of the scores in which this term asks and that one answers; keys behind the query are not masked.

        Raises:
            ValueError: there is no such term.
        """
        for name in (query_term, key_term):
            if name not in self.terms:
                raise ValueError(f"{self.head} reads no {name!r}; its terms are {', '.join(self.terms)}")
        return self.queries[self.terms.index(query_term)] @ self.keys[self.terms.index(key_term)].mT

    def total(self) -> Float[Tensor, "batch query key"]:
        """The scores, before a cap; keys behind the query are not masked."""
        return self.queries.sum(0) @ self.keys.sum(0).mT


def expanded(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], head: Head
) -> tuple[tuple[str, ...], Float[Tensor, "term batch pos d_head"], Float[Tensor, "term batch pos d_head"]]:
    """Terms, and the queries and keys of each: what ``ScoreExpansion`` holds. The model is from ``bare``."""
    block, attn, wiring = model.blocks[head.layer], model.blocks[head.layer].attn, Wiring.of(model)
    clean = clean_run(model, tokens, "recomputed", "frozen")
    known = dict(zip(wiring.sources, writes(model, clean), strict=True))
    names = wiring.sources_of_layer(head.layer)
    scale = clean.scale(f"blocks.{head.layer}.ln1")
    shortformer = model.cfg.positional_embedding_type == "shortformer"
    constant = torch.zeros_like(attn.b_O)
    for earlier in range(head.layer):
        constant = constant + model.blocks[earlier].attn.b_O

    def projected(W: Float[Tensor, "d_model d_head"], b: Float[Tensor, "d_head"]) -> Float[Tensor, "term batch pos d_head"]:
        folded = fold(block.ln1, W)

        def read(x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_head"]:
            return (x if scale is None else x / scale) @ folded

        found = [known[name] @ W if name == POS and shortformer else read(known[name]) for name in names]
        bias = shift_of(block.ln1, attn.b_O) @ W + b
        return torch.stack([*found, read(constant.expand(*tokens.shape, -1)) + bias])

    q, k = projected(attn.W_Q[head.head], attn.b_Q[head.head]), projected(attn.W_K[head.head], attn.b_K[head.head])
    if model.cfg.smeared_keys:
        k = smear(k.flatten(0, 1)[:, :, None], attn.alpha_smear[head.head][None])[:, :, 0].view_as(k)
    if model.cfg.positional_embedding_type == "rotary":
        q, k = (attn.rotate(x.flatten(0, 1)[:, :, None])[:, :, 0].view_as(x) for x in (q, k))
    return (*names, BIAS), q / attn.attn_scale, k


@dataclass(frozen=True)
class ScoreTerms:
    """What share of the variation of a head's scores each pair of terms has: ``Dataset(query_term, key_term)``.

    Args:
        tokens: ``[example, pos]``, BOS first. head: its name, ``"L1H4"``. shifts: exchanges among examples behind the null, or as
            many as there are in a batch. seed: of their distances.
    """

    tokens: Tensor = field(compare=False)
    head: str = "L1H0"
    shifts: int = 8
    seed: int = 0
    name: str = field(default="score_terms", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_examples(self.tokens, "score terms")
        object.__setattr__(self, "head", str(Head.parse(self.head)))
        check_whole("shifts", self.shifts, 2)
        check_whole("seed", self.seed, 0)

    def spec(self) -> dict[str, Any]:
        return {"tokens": array_hash(self.tokens.cpu()), "head": self.head, "shifts": self.shifts, "seed": self.seed}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Dataset with dims ``query_term, key_term`` (additions to the usual words), the terms' names: ``value``, the share of
            the between-key variance of the scores (sums to 1; NaN where scores do not vary), ``stderr`` over examples,
            ``null_mean``, ``null_sd``, ``z`` (the term's scores from other examples), ``spread`` (in units of scores) and
            ``spread_stderr``. Attribute ``score_sd``: the spread of the scores themselves.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, no such head, or tokens that do not fit.
        """
        check_model(model)
        check_evaluated(model)
        check_finite(model)
        twin = bare(model)
        head = Head.parse(self.head, twin.cfg)
        check_tokens(self.tokens, d_vocab=twin.cfg.d_vocab, n_ctx=twin.cfg.n_ctx, needed_by="score terms")
        parts = list(batches(twin.cfg, self.tokens))
        count = len(exchanges(min(map(len, parts)), self.shifts, self.seed))  # the same number of draws in every batch
        terms: tuple[str, ...] = ()
        shared, variances, spreads, totals = [], [], [], []
        for at, rows in enumerate(parts):
            terms, queries, keys = expanded(twin, self.tokens[rows].to(device_of(twin)).long(), head)
            distances = exchanges(len(rows), count, self.seed, at)
            found = [x.double().cpu().numpy() for x in variation(queries, keys, distances)]
            for kept, x in zip((shared, variances, spreads, totals), found, strict=True):
                kept.append(x)
        covariance, spread = np.concatenate(shared, -1), np.concatenate(spreads, -1)  # [draw, term, term, example], without draw
        variance, total = np.concatenate(variances), np.concatenate(totals)  # [example]
        examples = len(variance)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = covariance.sum(-1) / variance.sum()
            # a ratio of sums over examples: its error is that of the mean of what each example adds beyond the ratio
            beyond = (covariance[0] - share[0][..., None] * variance) / variance.mean()
        grid = ("query_term", "key_term")
        return labelled(
            {
                "value": (grid, share[0]),
                "stderr": (grid, beyond.std(-1, ddof=1) / examples**0.5),
                "spread": (grid, spread.mean(-1)),
                "spread_stderr": (grid, spread.std(-1, ddof=1) / examples**0.5),
            }
            | {name: (grid, x) for name, x in against(share[0], share[1:]).items()},
            {"query_term": list(terms), "key_term": list(terms)},
            measure=self,
            definition="covariance over visible keys of the term's scores with the scores, over the scores' variance; pooled",
            source="after Elhage et al. 2021, attention scores of two-layer models",
            model_hash=model_hash(model),
            data_hash=array_hash(self.tokens.cpu()),
            head=self.head,
            score_sd=float(total.mean()),
            n_examples=examples,
            units="share; units of scores before softmax",
            null=f"the term's scores are those of other examples at the same positions, {count} exchanges",
        )


def score_terms(model: Any, tokens: Int[Tensor, "example pos"], head: Head | str, *, shifts: int = 8, seed: int = 0) -> Any:
    """What share of the variation of a head's scores each pair of terms has; see ``ScoreTerms``, which this calls.

    Raises:
        TypeError, ValueError: not a hooked model, NaN weights, no such head, or tokens that do not fit.
    """
    return ScoreTerms(tokens, str(Head.parse(head)), shifts=shifts, seed=seed)(model)


def variation(
    queries: Float[Tensor, "term batch pos d_head"], keys: Float[Tensor, "term batch pos d_head"], distances: Sequence[int]
) -> tuple[
    Float[Tensor, "draw term term batch"], Float[Tensor, "batch"], Float[Tensor, "term term batch"], Float[Tensor, "batch"]
]:
    """How scores vary over keys, term by term.

    Args:
        queries, keys: of ``ScoreExpansion``. distances: of the exchanges; a term's scores then come from that many examples on.

    Returns:
        Sums over queries of covariances with the total, ``[1 + exchange, query_term, key_term, batch]`` (first the examples'
        own), of the total's variances ``[batch]``; means over queries of standard deviations, of terms and of the total.
    """
    length, queries = queries.shape[2], queries[:, :, 1:]
    seen = torch.ones(length, length, dtype=queries.dtype, device=queries.device).tril()[1:]  # queries with two keys or more
    share = seen / seen.sum(-1, keepdim=True)  # of each visible key in its query's mean

    def centred(scores: Float[Tensor, "*some query key"]) -> Float[Tensor, "*some query key"]:
        return (scores - (scores * share).sum(-1, keepdim=True)) * seen

    def mean_sd(deviations: Float[Tensor, "*some query key"]) -> Float[Tensor, "*some"]:
        return (deviations.square() * share).sum(-1).sqrt().mean(-1)

    total = centred(queries.sum(0) @ keys.sum(0).mT)  # [batch, query, key]
    weighted = (total * share).flatten(1)
    covariance, spread = [], []
    for key in keys:  # one key term with every query term at a time: what is held grows with terms, not with pairs
        scores = centred(queries @ key.mT)  # [query_term, batch, query, key]
        every = scores.flatten(2) @ weighted.T  # [query_term, whose scores, whose total]
        covariance.append(torch.stack([every.roll(-d, 1).diagonal(dim1=1, dim2=2) for d in (0, *distances)]))
        spread.append(mean_sd(scores))
    return torch.stack(covariance, 2), (weighted * total.flatten(1)).sum(-1), torch.stack(spread, 1), mean_sd(total)
