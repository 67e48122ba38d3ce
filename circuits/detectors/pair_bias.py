"""Does a head look for what often stands before a token, or for what tells the next one? Frequency and discriminative bias.

Of each head, ``z[m, l]`` are the logits that query token m gives key token l (``pair_logits``), or what they gained since a
reference, ``z(t) - z(0)``: initial logits are a prior of about the size of what is learned. The text (``circuits.data.pairs``)
says how often l stands before m, ``log P(l|m)``; how much more often than elsewhere, PMI; and how much it tells of the next token
that m does not, ``D_{l|m}``. For each query with ``min_keys`` keys or more, over its keys:

    frequency               Spearman(z, log P(l|m))         on text mostly a preference for common tokens
    frequency_pmi           Spearman(z, PMI)                frequency bias proper
    discriminative          Spearman(z, D)
    discriminative_partial  partial Spearman(z, D) given log P(l|m)

and the mean over queries, in [-1, 1]. Errors are over queries, which share keys and a head: they are too small, and the null is
what decides. It relabels keys by a permutation, one for all queries, within bins of nearly equal frequency, and so answers "more
than a head whose logits depend on how common the key is, and on nothing else of it?". Not quite: frequencies still differ within
a bin, which ``frequency`` notices (on the shipped run, logits that are the log frequency stand 2.5 sd above the null, for PMI 1.3
sd). Of logits that are one random number for each key, 7 to 11 in a hundred have p < .05: read p near .05 with care.

    common_gap              [mean z of the 30 commonest keys - mean z] / sd z    < 0: common tokens are suppressed

with mean and sd within each query, then the mean over the queries that know a key, then over those keys of the 30 that ten
queries know. Its error is over keys. Its null is as many keys drawn from all that ten queries know, and is too wide: rarer keys
have noisier means (1 random head in a hundred has p < .05).

Source: Tian et al. 2023 ("Scan and Snap"), theorems 2 to 4, frequency and discriminative bias; measures on text and nulls ours.
Davison & Hinkley 1997, section 4.2, for p.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.stats import rankdata
from torch import Tensor

from circuits.data.pairs import PairStatistics, frequency_bins, permuted_keys
from circuits.detectors.pair_logits import MOST_STEPS, PairDesign, centred, pair_design, pair_logits
from circuits.models.protocol import check_finite, check_model, check_tokens, model_hash
from circuits.results import array_hash, check_whole, labelled, mean_and_stderr

STATISTICS = ("frequency", "frequency_pmi", "discriminative", "discriminative_partial", "common_gap")
COMMON = 30
"""Keys that ``common_gap`` calls common."""
LEAST_KNOWN = 10
"""Queries that must know a key for its mean to count."""
NOTHING = 1e-6
"""A standard deviation of logits that no softmax sees."""


def unit_ranks(values: Float[np.ndarray, "pair column"], first: Int[np.ndarray, "query"]) -> Float[np.ndarray, "pair column"]:
    """Ranks within each query, mean 0 and length 1, so that sums of products are Spearman's correlations; 0 where all are tied.

    Args:
        values: of pairs, those of a query together. first: where those of each query begin.
    """
    counts = np.diff(first, append=len(values))
    ranks = centred(np.concatenate([rankdata(part, axis=0) for part in np.split(values, first[1:])]), np.repeat(first, counts))
    size = np.sqrt(np.add.reduceat(ranks**2, first, axis=0))
    return ranks / np.repeat(np.where(size > 0, size, 1), counts, axis=0)


class BiasTest:
    """The statistics of one set of pairs, and the relabellings behind their null: the same for every head and checkpoint.

    Args:
        pairs: places of pairs in the statistics, ascending. statistics: of the corpus. draws, seed: of relabellings.
    """

    def __init__(self, pairs: Int[np.ndarray, "pair"], statistics: PairStatistics, *, draws: int, seed: int):
        query, key = statistics.query[pairs], statistics.key[pairs]
        self.query = query
        self.first = np.flatnonzero(np.append(True, np.diff(query) != 0))
        self.counts = np.diff(self.first, append=len(query))
        of = (statistics.log_p, statistics.pmi, statistics.discriminativeness)
        self.x = np.ascontiguousarray(unit_ranks(np.stack([values[pairs] for values in of], -1), self.first).T)
        self.given = np.add.reduceat(self.x[0] * self.x[2], self.first)[:, None]
        rng, bins = np.random.default_rng([seed, 40]), frequency_bins(statistics.unigram)
        self.relabelled = [permuted_keys(query, key, bins, rng).astype(np.int32) for _ in range(draws)]
        known = np.bincount(key, minlength=len(bins))
        keys = np.flatnonzero(known >= LEAST_KNOWN)
        place = np.searchsorted(keys, key)
        kept = np.flatnonzero(np.isin(key, keys))
        self.means = csr_array((1 / known[key[kept]], (place[kept], kept)), shape=(len(keys), len(key)))
        self.common = np.flatnonzero(np.isin(keys, np.argsort(-statistics.unigram, kind="stable")[:COMMON]))
        self.others = [rng.permutation(len(keys))[: len(self.common)] for _ in range(draws)]

    def samples(self, z: Float[np.ndarray, "pair column"]) -> list[Float[np.ndarray, "sample column"]]:
        """What each statistic is the mean of, in the order of ``STATISTICS``: one value a query, for the gap one a common key."""
        unmoved = np.arange(len(z), dtype=np.int32)
        return [*self._correlations(unit_ranks(z, self.first), unmoved), self._by_key(z)[self.common]]

    def null(self, z: Float[np.ndarray, "pair column"]) -> Float[np.ndarray, "draw statistic column"]:
        """The statistics under the relabellings."""
        ranks, keys = unit_ranks(z, self.first), self._by_key(z)
        found = [[x.mean(0) for x in self._correlations(ranks, moved)] for moved in self.relabelled]
        gaps = [keys[some].mean(0) if len(some) else np.full(z.shape[1], np.nan) for some in self.others]
        return np.concatenate([np.array(found), np.array(gaps)[:, None]], axis=1)

    def centred(self, z: Float[np.ndarray, "pair column"]) -> Float[np.ndarray, "pair column"]:
        """z without the mean of each query."""
        return centred(z, self.query)

    def _by_key(self, z: np.ndarray) -> np.ndarray:
        """Each key's mean over the queries that know it, of z with mean 0 and sd 1 within a query."""
        z = self.centred(z)
        sd = np.sqrt(np.add.reduceat(z**2, self.first, axis=0) / self.counts[:, None])
        return self.means @ (z / np.repeat(np.where(sd > 0, sd, 1), self.counts, axis=0))

    def _correlations(self, ranks: np.ndarray, moved: np.ndarray) -> list[np.ndarray]:
        """The four correlations by query, each pair with the ranks of another one."""
        rows = np.append(self.first, len(moved))
        # As sparse matrices whose columns are the other pairs: ranks of all heads stay where they are.
        p, pmi, D = (csr_array((x, moved, rows), shape=(len(self.first), len(moved))) @ ranks for x in self.x)
        left = (1 - p**2) * (1 - self.given**2)
        partial = np.where(left > 1e-12, (D - p * self.given) / np.sqrt(np.maximum(left, 1e-12)), 0.0)
        return [p, pmi, D, partial]


@dataclass(frozen=True)
class PairBias:
    """Frequency and discriminative bias of every head: ``Dataset(layer, head, statistic)``.

    Args:
        statistics: of the corpus, ``pair_statistics(streams, d_vocab)``. tokens: what scores are read on, ``[example, pos]`` with
            BOS first. reference: a model of the same shape, e.g. the run's first checkpoint; its logits are taken off.
        min_count: how often a pair must stand in the corpus. min_met: and in the tokens. min_keys: such keys a query must have.
        draws, seed: relabellings behind the null.
    """

    statistics: PairStatistics = field(compare=False)
    tokens: Int[Tensor, "example pos"] = field(compare=False)
    reference: Any = field(default=None, compare=False)
    min_count: int = 5
    min_met: int = 20
    min_keys: int = 10
    draws: int = 199
    seed: int = 0
    name: str = field(default="pair_bias", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.statistics, PairStatistics):
            raise TypeError(f"statistics are {type(self.statistics).__name__}, need pair_statistics(streams, d_vocab)")
        check_tokens(self.tokens, d_vocab=self.statistics.d_vocab, n_ctx=2**31, min_length=3, needed_by="the bias of a head")
        for option, least in {"min_count": 1, "min_met": 2, "min_keys": 4, "draws": 19, "seed": 0}.items():
            check_whole(option, getattr(self, option), least)
        if self.reference is not None:
            check_model(self.reference)

    def spec(self) -> dict[str, Any]:
        return {
            "statistics": self.statistics.data_hash,
            "tokens": array_hash(self.tokens.cpu()),
            "reference": None if self.reference is None else model_hash(self.reference),
            "least": [self.min_count, self.min_met, self.min_keys],
            "draws": [self.draws, self.seed],
        }

    def __call__(self, model: Any) -> Any:
        """Measure a model, in evaluation mode whatever its own; it is left as found.

        Returns:
            ``(layer, head, statistic)``: ``value`` (correlations, and the gap in sd; by chance ``null_mean``, which is seldom
            0, as logits depend on frequency), ``stderr``, ``null_mean``, ``null_sd``, ``z``, ``p`` (two-sided, empirical);
            ``n [statistic]``, how many queries, or keys; and by ``(layer, head)`` ``logit_sd``, ``reliability`` (the share of
            their variance that is no error) and ``state``: ok, constant (no logits to rank: NaN), not converged.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, tokens or a reference that do not fit it, or too few pairs.
        """
        check_model(model)
        check_finite(model)
        if model.cfg.d_vocab != self.statistics.d_vocab:
            raise ValueError(
                f"the model has {model.cfg.d_vocab} tokens and the statistics {self.statistics.d_vocab}: count a corpus with the "
                "model's tokenizer"
            )
        grid = (model.cfg.n_layers, model.cfg.n_heads)
        if self.reference is not None and (self.reference.cfg.n_layers, self.reference.cfg.n_heads) != grid:
            raise ValueError("the reference has other layers or heads than the model: pass a checkpoint of the same run")
        design, chosen, test = self._made
        z, error, converged = self._logits(model, design, chosen)
        if self.reference is not None:
            z, error, converged = z - self._base[0], error + self._base[1], converged & self._base[2]
        spread = test.centred(z).std(0)
        dead = spread < NOTHING
        samples = test.samples(z)
        value, stderr = (np.stack(part) for part in zip(*map(_mean_and_stderr, samples), strict=True))
        null = test.null(z)
        for part in (value, stderr):
            part[:, dead] = np.nan
        columns = {"value": value, "stderr": stderr, **beside(value, null)}
        with np.errstate(divide="ignore", invalid="ignore"):
            reliability = np.where(dead, np.nan, 1 - error.mean(0) / spread**2)
        state = np.where(~converged, "not converged", np.where(dead, "constant", "ok"))
        dims = ("layer", "head", "statistic")
        variables: dict[str, Any] = {name: (dims, part.T.reshape(*grid, -1)) for name, part in columns.items()}
        variables |= {
            name: (dims[:2], part.reshape(grid))
            for name, part in {"logit_sd": spread, "reliability": reliability, "state": state}.items()
        }
        return labelled(
            {**variables, "n": (dims[2:], [len(values) for values in samples])},
            {"layer": np.arange(grid[0]), "head": np.arange(grid[1]), "statistic": list(STATISTICS)},
            measure=self,
            definition="rank correlation of token-pair logits with corpus statistics; see circuits.detectors.pair_bias",
            source="Tian et al. 2023, frequency and discriminative bias",
            model_hash=model_hash(model),
            data_hash=array_hash(self.tokens.cpu()),
            seed=self.seed,
            n_examples=len(self.tokens),
            n_pairs=len(chosen),
            units="correlation; common_gap: sd of logits; logit_sd: attention scores",
            null="keys relabelled within bins of nearly equal frequency; common_gap: other keys",
            smallest_p=2 / (self.draws + 1),
        )

    @cached_property
    def _made(self) -> tuple[PairDesign, Int[np.ndarray, "pair"], BiasTest]:
        """The design, which of its pairs count, and the test on them."""
        design = pair_design(self.tokens, min_count=self.min_met)
        place = self.statistics.find(design.query, design.key)
        known = (place >= 0) & (self.statistics.count[place] >= self.min_count)
        keys = np.bincount(design.query[known], minlength=self.statistics.d_vocab)
        chosen = np.flatnonzero(known & (keys[design.query] >= self.min_keys))
        if (n := len(np.unique(design.query[chosen]))) < 2:
            raise ValueError(
                f"{n} query tokens have {self.min_keys} keys that stand {self.min_count} times before them in the corpus and "
                f"{self.min_met} times in the tokens, at least 2 are needed: give more tokens, or a smaller min_met"
            )
        return design, chosen, BiasTest(place[chosen], self.statistics, draws=self.draws, seed=self.seed)

    @cached_property
    def _base(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits of the reference."""
        design, chosen, _ = self._made
        return self._logits(self.reference, design, chosen)

    def _logits(self, model: Any, design: PairDesign, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits of the chosen pairs, their squared errors, both ``[pair, layer * head]``, and whether each column converged."""
        found = pair_logits(model, self.tokens, design)
        z, error = (part[..., chosen].reshape(-1, len(chosen)).T for part in (found.value, found.stderr**2))
        return z, error, np.repeat(np.array(found.steps) < MOST_STEPS, found.value.shape[1])


def _mean_and_stderr(values: Float[np.ndarray, "sample column"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error, NaN without samples."""
    if len(values):
        return mean_and_stderr(values)
    nothing = np.full(values.shape[1], np.nan)
    return nothing, nothing


def beside(value: Float[np.ndarray, "*shape"], null: Float[np.ndarray, "draw *shape"]) -> dict[str, np.ndarray]:
    """Mean and sd of a null, z and two-sided p of a value; NaN where the value is, z also where the null has no spread."""
    known = np.isfinite(value)
    mean, sd = np.where(known, null.mean(0), np.nan), np.where(known, null.std(0, ddof=1), np.nan)
    # Sums in another order differ in the last place, and a relabelling that changes nothing is no draw further out.
    near = 1e-12 + np.abs(value) * 1e-12
    beyond = np.minimum((null >= value - near).sum(0), (null <= value + near).sum(0))
    z = np.divide(value - mean, sd, out=np.full_like(mean, np.nan), where=sd > 0)
    return {
        "null_mean": mean,
        "null_sd": sd,
        "z": z,
        "p": np.where(known, np.minimum(1, 2 * (1 + beyond) / (len(null) + 1)), np.nan),
    }
