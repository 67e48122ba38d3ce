"""Multigrams: the n-grams and skip-n-grams that a head has memorised, found on one half of a corpus and held to the other.

1. *Events*: positions of text where ablating the head costs at least ``threshold`` nats, and the pair (token, next token) has not
   stood earlier in the example (there, induction could do it). What carried the effect makes each a pattern ``[far ... near ...
   destination -> out]`` (``detectors/sources.py``); without a source it is a bigram.
2. *Found*: patterns with events in at least ``min_examples`` examples of one half of the corpus, the simplest only: one that
   contains another found pattern with the same destination and out is dropped (a second source that happened to be attended to).
3. *Held out*: wherever such a pattern occurs in the other half, event or not, the effect of the head is read. The pattern is
   *memorised* if it occurs in at least ``min_examples`` examples there, its mean effect is at least half of the threshold and
   exceeds the head's mean effect on that half by the one-sided ``LEVEL`` quantile of Student's t (examples as clusters, degrees
   of freedom one less than their number). A contiguous pattern occurs where its tokens stand in a row, any other where its
   sources stand anywhere earlier in the example.
4. Halves change places; ``value`` is the number of distinct patterns memorised either way: a lower bound, since patterns too rare
   for the corpus are not counted, so compare counts at one corpus size only. Its error is that of a count, its square root,
   which is what disjoint samples of text differ by. ``share`` is how much of the head's positive effect on the held-out half
   (repeats aside) lies where patterns found on the first half occur, no pattern being chosen by what it is scored on; its
   chance is the share of places they cover.

Nulls. *shifted*: the head's own effects, moved along each sequence by a random distance, cyclically, with the text and the
attention as they are: is it these tokens, or would any effects of this size do? *shuffled*: the same model on the corpus with
every example's tokens shuffled: same unigrams, nothing to memorise. *untrained*: a model of the same shape that never learned,
on the corpus: how many patterns the thresholds let through. And for each listed pattern the mean effect of the other heads of
the layer at the same places: is it this head?

Source: the analysis behind "multigram heads" in Wang et al. 2024, appendix B, whose thresholds are not published; these are ours.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuits.detectors.event_store import EventStore, Frame, pandas
from circuits.detectors.sources import COLUMNS, LEAST_SHARE, NONE, Events, events, repeats_in_context, value_weights
from circuits.models.effects import head_effects
from circuits.models.interventions import Ablation
from circuits.models.protocol import device_of
from circuits.results import check_whole

LEVEL = 0.0228
"""Of two standard errors, where they are known exactly."""
KEY = ["far", "near", "destination", "out"]
PLACES = 10_000
"""Places whose contexts are searched at a time."""


@dataclass(frozen=True)
class MultigramRule:
    """What counts as an event, and as a pattern; see the module's docstring.

    Args:
        threshold: nats an ablation must cost. min_share: of value-weighted attention that makes a token a source.
        min_examples: examples of a half a pattern must recur in. ablation: a name of ``ABLATIONS``.
    """

    threshold: float = 0.5
    min_share: float = 0.25
    min_examples: int = 3
    ablation: str = "mean"

    def __post_init__(self) -> None:
        for name in ("threshold", "min_share"):
            if isinstance(given := getattr(self, name), bool) or not isinstance(given, int | float):
                raise ValueError(f"{name}={given!r}: need a number")
        if not self.threshold > 0:
            raise ValueError(f"threshold={self.threshold!r}: an ablation must cost something, give nats above 0")
        if not LEAST_SHARE <= self.min_share < 1:
            raise ValueError(f"min_share={self.min_share!r}: it is a share of attention, from {LEAST_SHARE} to below 1")
        check_whole("min_examples", self.min_examples, 2)
        Ablation.named(self.ablation)

    def spec(self) -> dict[str, Any]:
        return asdict(self)


def collect(model: Any, tokens: Int[Tensor, "example pos"], rule: MultigramRule, *paths: Path, seed: int = 0) -> list[EventStore]:
    """Stream a corpus through the model once: effects and events go to files, batch by batch.

    Args:
        paths: of the store of effects as they are and, if a second is given, of one with each sequence's effects shifted.
    """
    size = (len(tokens), tokens.shape[1] - 1, model.cfg.n_layers * model.cfg.n_heads)
    stores = [EventStore.create(path, *size) for path in paths]
    distance = np.random.default_rng([seed, 43]).integers(1, size[1] - 1, size=len(tokens))
    for batch in head_effects(model, tokens, rule.ablation, direct=False):
        part = tokens[batch.rows]
        usable = usable_places(part)
        weights = [w.cpu() for w in value_weights(model, part.to(device_of(model)))]
        place = torch.arange(size[1])
        moved = (place[1:] - 1 - torch.from_numpy(distance[batch.rows])[:, None]) % (size[1] - 1) + 1  # the place after BOS stays
        moved = torch.cat([torch.zeros_like(moved[:, :1]), moved], 1)
        for shifted, store in enumerate(stores):
            effect = batch.total.gather(-1, moved.expand_as(batch.total)) if shifted else batch.total
            chosen = (effect >= rule.threshold) & usable
            made = events(weights, part, effect, chosen, min_share=rule.min_share, first_example=batch.rows.start)
            store.add(batch.rows.start, effect.flatten(0, 1).numpy(), made)
    return stores


def usable_places(tokens: Int[Tensor, "example pos"]) -> Bool[Tensor, "example query"]:
    """Query places that patterns may end at: not BOS, and not where the pair has stood before."""
    usable = ~repeats_in_context(tokens)
    usable[:, 0] = False
    return usable


SUMMED = ("n", "clusters", "effect", "squares", "products", "weights", "others")
PER_HEAD = ("covered", "positive", "net", "covered_places", "places")
"""The fields of ``HeldOut``, of patterns and of heads."""


def halves(examples: int) -> tuple[range, range]:
    """The first and second half of a corpus: neighbouring text stays together, so nothing is shared."""
    return range(examples // 2), range(examples // 2, examples)


def found_patterns(store: EventStore, head: int, part: range, rule: MultigramRule) -> Frame:
    """Patterns of a head that recur in a part of the corpus, the largest total effect first.

    Columns: ``KEY``, ``contiguous`` (as most of its events are), ``events``, ``examples``, ``total`` nats.
    """
    pd = pandas()
    kept = pd.concat([pd.DataFrame(_recurring(bucket, rule)) for bucket in store.buckets(head, part)])
    return kept.sort_values(["total", *KEY], ascending=[False, True, True, True, True], ignore_index=True)


def _recurring(bucket: Events, rule: MultigramRule) -> dict[str, np.ndarray]:
    """Patterns with events in enough examples, without those that hold another one."""
    at = {name: bucket.columns[:, i] for i, name in enumerate(COLUMNS)}
    sources = (at["far"] != NONE).astype(int) + (at["near"] != NONE)
    in_a_row = (sources == 0) | ((at["near_gap"] == 1) & ((sources == 1) | (at["far_gap"] == 2)))
    code = _pair(_pair(at["destination"], at["out"]), _pair(at["far"], at["near"]))
    _, first, which = np.unique(code, return_index=True, return_inverse=True)
    size = len(first)
    by_example = np.unique(which * (int(at["example"].max(initial=0)) + 1) + at["example"], return_index=True)[1]
    events, examples = np.bincount(which, minlength=size), np.bincount(which[by_example], minlength=size)
    enough = np.flatnonzero(examples >= rule.min_examples)
    found = {name: at[name][first[enough]] for name in KEY} | {
        "events": events[enough],
        "examples": examples[enough],
        "total": np.bincount(which, bucket.effect, minlength=size)[enough],
        "contiguous": np.bincount(which, in_a_row, minlength=size)[enough] >= 0.5 * events[enough],
    }
    simple = ~_contains_another(found)
    return {name: x[simple] for name, x in found.items()}


def _pair(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A number for each pair; equal pairs, equal numbers below the number of pairs."""
    return np.unique((a + 1) * (int(b.max(initial=0)) + 2) + b + 1, return_inverse=True)[1].reshape(-1)


def _contains_another(found: dict[str, np.ndarray]) -> np.ndarray:
    """Which patterns hold another one with fewer sources, the same destination and the same out."""
    ends = _pair(found["destination"], found["out"])
    bare = found["near"] == NONE
    one = ~bare & (found["far"] == NONE)
    base = int(max(found["near"].max(initial=0), found["far"].max(initial=0))) + 2
    short = (ends * base + found["near"])[one]
    holds = np.isin(ends, ends[bare])
    for name in ("far", "near"):
        holds |= np.isin(ends * base + found[name], short) & ~one
    return holds & ~bare


def occurrences(patterns: Frame, tokens: Int[Tensor, "example pos"]) -> Frame:
    """Where patterns occur in these examples, repeats in context aside: columns ``pattern, example, query``.

    Args:
        patterns: ``KEY`` and ``contiguous``, one pattern a row.
    """
    pd = pandas()
    ids = tokens.numpy()
    example, query = np.nonzero(usable_places(tokens).numpy())
    here = pd.DataFrame({"example": example, "query": query, "destination": ids[example, query], "out": ids[example, query + 1]})
    asked = patterns[[*KEY, "contiguous"]].assign(pattern=np.arange(len(patterns)))
    met = here.merge(asked, on=["destination", "out"])
    row, q = met["example"].to_numpy(), met["query"].to_numpy()
    holds = np.ones(len(met), dtype=bool)
    in_a_row = met["contiguous"].to_numpy()
    for column, gap in (("near", 1), ("far", 2)):
        source = met[column].to_numpy()
        # A key at or before BOS is none: position q - gap must be 1 or more.
        beside = (q - gap >= 1) & (ids[row, np.maximum(q - gap, 0)] == source)
        holds &= (source == NONE) | np.where(in_a_row, beside, _stood_before(ids, row, q, source))
    return met.loc[holds, ["pattern", "example", "query"]]


def _stood_before(ids: np.ndarray, row: np.ndarray, q: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Whether a token stands anywhere before a position of its example, BOS aside."""
    stood = np.empty(len(q), dtype=bool)
    for part in range(0, len(q), PLACES):
        at = slice(part, part + PLACES)
        keys = np.arange(ids.shape[1])
        stood[at] = ((ids[row[at]] == source[at, None]) & (keys >= 1) & (keys < q[at, None])).any(1)
    return stood


@dataclass
class HeldOut:
    """Sums over the occurrences of patterns in a part of the corpus: effects of the head and of the others of its layer.

    Attributes:
        n, clusters: occurrences and examples with one. effect, squares, products, weights: sums over examples of ``S``, ``S^2``,
            ``S n``, ``n^2``, where an example has ``n`` occurrences with effects that add up to ``S``. others: mean effect of the
            other heads, summed. covered, positive, net: per head, positive effect where patterns occur, all of it, and all
            effect; repeats aside. covered_places, places: the numbers of places these are sums over.
    """

    n: np.ndarray
    clusters: np.ndarray
    effect: np.ndarray
    squares: np.ndarray
    products: np.ndarray
    weights: np.ndarray
    others: np.ndarray
    covered: np.ndarray
    positive: np.ndarray
    net: np.ndarray
    covered_places: np.ndarray
    places: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return self.effect / self.n

    @property
    def stderr(self) -> np.ndarray:
        """Of a mean over clusters of unequal size, linearised; NaN below two clusters."""
        m = np.nan_to_num(self.mean)
        spread = np.maximum(self.squares - 2 * m * self.products + m**2 * self.weights, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.clusters > 1, np.sqrt(spread * self.clusters / (self.clusters - 1)) / self.n, np.nan)


def held_out(store: EventStore, patterns: Frame, tokens: Int[Tensor, "example pos"], part: range, layers: int) -> HeldOut:
    """Score patterns where they occur in a part of the corpus.

    Args:
        patterns: of all heads, with their ``head``. tokens: the whole corpus. layers: of the model.
    """
    size, n_heads = len(patterns), store.heads // layers
    per_pattern, per_head = [np.zeros(size) for _ in range(7)], [np.zeros(store.heads) for _ in range(5)]
    sums = HeldOut(*per_pattern, *per_head)
    owner = patterns["head"].to_numpy()
    for rows, effect in store.batches(part):
        batch = tokens[rows]
        usable = usable_places(batch).numpy()
        positive = np.where(usable, np.maximum(effect, 0), 0.0)  # [head, example, query]
        sums.positive += positive.sum((1, 2), dtype=np.float64)
        sums.net += (effect * usable).sum((1, 2), dtype=np.float64)
        sums.places += usable.sum()
        at = occurrences(patterns, batch)
        p, e, q = (at[name].to_numpy() for name in ("pattern", "example", "query"))
        covered = np.zeros(effect.shape, dtype=bool)
        covered[owner[p], e, q] = True
        sums.covered += (positive * covered).sum((1, 2), dtype=np.float64)
        sums.covered_places += covered.sum((1, 2))
        own = effect[owner[p], e, q].astype(np.float64)
        layer = owner[p] // n_heads
        together = effect.reshape(layers, n_heads, *effect.shape[1:]).sum(1, dtype=np.float64)[layer, e, q]
        sums.others += np.bincount(p, (together - own) / max(n_heads - 1, 1), minlength=size)
        clusters = at.assign(own=own).groupby(["pattern", "example"])["own"].agg(["sum", "size"]).reset_index()
        which, S, n = (clusters[name].to_numpy() for name in ("pattern", "sum", "size"))
        for name, value in (
            ("n", n),
            ("clusters", np.ones(len(n))),
            ("effect", S),
            ("squares", S**2),
            ("products", S * n),
            ("weights", n**2),
        ):
            getattr(sums, name)[:] += np.bincount(which, value, minlength=size)
    return sums


def memorised(sums: HeldOut, head: Int[np.ndarray, "pattern"], rule: MultigramRule) -> Bool[np.ndarray, "pattern"]:
    """Which patterns hold on the part they were scored on; ``head`` is each one's."""
    from scipy.stats import t

    usual = sums.net[head] / np.maximum(sums.places[head], 1)
    with np.errstate(invalid="ignore"):
        clear = sums.mean - usual > t.ppf(1 - LEVEL, np.maximum(sums.clusters - 1, 1)) * sums.stderr
    return (sums.clusters >= rule.min_examples) & clear & (sums.mean >= rule.threshold / 2)
