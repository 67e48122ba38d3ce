"""The multigram detector as a measure of one model: counts, shares and nulls of every head, and the patterns behind them.

Definitions are in ``circuits.detectors.multigrams``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.data.tokens import shuffle_tokens
from circuits.detectors.event_store import EventStore, Frame, pandas
from circuits.detectors.multigrams import (
    KEY,
    PER_HEAD,
    SUMMED,
    HeldOut,
    MultigramRule,
    collect,
    found_patterns,
    halves,
    held_out,
    memorised,
)
from circuits.detectors.sources import COLUMNS, NONE
from circuits.models.config import HookedTransformerConfig
from circuits.models.protocol import check_finite, check_model, check_tokens, device_of, model_hash
from circuits.models.random_init import config_of, random_twins
from circuits.results import array_hash, check_whole, labelled

NULLS = ("shifted", "shuffled", "untrained")
SHOWN = 3
"""Places of a pattern that are given as examples."""


@dataclass(frozen=True)
class Multigrams:
    """The n-grams and skip-n-grams every head has memorised: ``Dataset(layer, head[, pattern])``.

    Args:
        tokens: text ``[example, pos]`` with BOS first, examples in the order of the text and not overlapping: the two halves must
            not share any of it (``circuits.data.tokens.consecutive_windows``).
        rule: thresholds. k: patterns listed of each head. nulls: which of ``NULLS`` to measure; "shuffled" and "untrained" take a
            pass more each, the latter once for a run. seed: of shifts and shuffles.
        store: folder for the file that effects and events are streamed to while measuring (default: a temporary one).
    """

    tokens: Tensor = field(compare=False)
    rule: MultigramRule = field(default_factory=MultigramRule)
    k: int = 20
    nulls: tuple[str, ...] = ("shifted", "untrained")
    seed: int = 0
    store: Path | None = field(default=None, compare=False)
    name: str = field(default="multigrams", init=False)
    version: int = field(default=1, init=False)
    _text: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        check_tokens(self.tokens, d_vocab=2**31, n_ctx=2**31, min_length=8, needed_by="the multigram detector")
        object.__setattr__(self, "_text", array_hash(self.tokens.cpu()))
        check_whole("k", self.k, 1)
        check_whole("seed", self.seed, 0)
        needed = 2 * self.rule.min_examples
        if len(self.tokens) < needed:
            raise ValueError(
                f"the corpus has {len(self.tokens)} examples, and a pattern must recur in {self.rule.min_examples} of each half: "
                f"{needed - len(self.tokens)} more are needed, or a rule with a smaller min_examples"
            )
        if unknown := set(self.nulls) - set(NULLS):
            raise ValueError(f"nulls={self.nulls!r} has {', '.join(sorted(map(str, unknown)))}; there are {', '.join(NULLS)}")

    def spec(self) -> dict[str, Any]:
        return {
            "tokens": self._text,
            "rule": self.rule.spec(),
            "k": self.k,
            "nulls": list(self.nulls),
            "seed": self.seed,
        }

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Dataset with dims ``layer, head``: ``value``, distinct patterns memorised (>= 0; a lower bound), ``stderr``, its
            square root; ``with_source``, those of them that are no bigrams; ``share`` of the head's positive effect, in [0, 1],
            with ``share_stderr``, half the difference between the two directions, and ``share_chance``; ``found``, patterns
            that recur in the whole corpus; ``events``, ``unattributed``; for each null ``<name>_value``, ``<name>_share``,
            ``<name>_found``; ``null_mean``, the value with shifted effects, with
            ``null_sd`` and ``z`` of counts. And with ``pattern``, the largest total effect first,
            NONE (-1) or NaN where there are fewer: ``far, near, destination, out``, ``contiguous``, ``pattern_effect`` (mean
            over all occurrences, nats) with ``pattern_stderr`` and ``pattern_others`` (mean effect of the other heads of the
            layer there), ``occurrences``, ``pattern_events``, ``pattern_total`` (nats, over its events), ``memorised`` (1 or
            0); ``example, query [layer, head, pattern, place]``, where it had events.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, tokens that do not fit.
        """
        check_model(model)
        check_finite(model)
        cfg = model.cfg
        check_tokens(self.tokens, d_vocab=cfg.d_vocab, n_ctx=cfg.n_ctx, needed_by="the multigram detector")
        shape = (cfg.n_layers, cfg.n_heads)
        found: dict[str, dict[str, np.ndarray]] = {}
        with self._pass(model, self.tokens, shifted="shifted" in self.nulls) as stores:
            one, scored = self._counts(stores[0], self.tokens, cfg.n_layers)
            listed = self._listed(stores[0], scored, cfg.n_layers)
            if "shifted" in self.nulls:
                found["shifted"] = self._counts(stores[1], self.tokens, cfg.n_layers)[0]
        if "shuffled" in self.nulls:
            tokens = shuffle_tokens(self.tokens, seed=self.seed)
            with self._pass(model, tokens) as stores:
                found["shuffled"] = self._counts(stores[0], tokens, cfg.n_layers)[0]
        if "untrained" in self.nulls:
            found["untrained"] = _untrained(self, config_of(model), device_of(model))
        variables: dict[str, tuple[tuple[str, ...], Any]] = {
            f"{null}_{key}": (("layer", "head"), counts[key].reshape(shape))
            for null, counts in found.items()
            for key in ("value", "share", "found")
        }
        nothing = np.full(shape, np.nan)
        null_mean = variables.get("shifted_value", ((), nothing))[1]
        value = one["value"].reshape(shape)
        with np.errstate(invalid="ignore", divide="ignore"):
            z = (value - null_mean) / np.sqrt(value + null_mean)
        beside = {"null_mean": null_mean, "null_sd": np.sqrt(null_mean), "z": z}
        variables |= {name: (("layer", "head"), x) for name, x in beside.items()}
        each = {key: (("layer", "head"), x.reshape(shape)) for key, x in one.items()}
        return labelled(
            {**each, **variables, **listed},
            {
                "layer": np.arange(cfg.n_layers),
                "head": np.arange(cfg.n_heads),
                "pattern": np.arange(self.k),
                "place": np.arange(SHOWN),
            },
            measure=self,
            definition="distinct (source ... destination -> out) whose ablation costs, found on one half and held to the other",
            source="after Wang et al. 2024, appendix B; rule of circuits.detectors.multigrams",
            model_hash=model_hash(model),
            n_examples=len(self.tokens),
            n_tokens=self.tokens.numel(),
            units="patterns; nats",
            null="null_mean: the head's own effects shifted along the sequences",
        )

    @contextmanager
    def _pass(self, model: Any, tokens: Tensor, *, shifted: bool = False) -> Iterator[list[EventStore]]:
        with TemporaryDirectory(dir=self.store) as folder:
            paths = [Path(folder) / f"{name}.h5" for name in ("effects", "shifted")[: 1 + shifted]]
            stores = collect(model, tokens, self.rule, *paths, seed=self.seed)
            try:
                yield stores
            finally:
                for store in stores:
                    store.file.close()

    def _counts(self, store: EventStore, tokens: Tensor, layers: int) -> tuple[dict[str, np.ndarray], Frame]:
        """Of every head the numbers; and every pattern found on a half, with what it scored on the other."""
        pd = pandas()
        both = halves(len(tokens))
        share, chance, scored = [], [], []
        for one, other in (both, both[::-1]):
            patterns = self._of_all(store, one)
            sums = held_out(store, patterns, tokens, other, layers)
            per_pattern = {name: getattr(sums, name) for name in SUMMED}
            good = memorised(sums, patterns["head"].to_numpy(), self.rule)
            scored.append(patterns[["head", *KEY]].assign(memorised=good, **per_pattern))
            share.append(sums.covered / np.maximum(sums.positive, 1e-30))
            chance.append(sums.covered_places / np.maximum(sums.places, 1))
        # A pattern found on both halves is scored on both.
        merged = (
            pd.concat(scored).groupby(["head", *KEY], as_index=False).agg({"memorised": "any", **dict.fromkeys(SUMMED, "sum")})
        )
        kept = merged[merged["memorised"]]
        value = np.bincount(kept["head"], minlength=store.heads).astype(float)
        sourced = np.bincount(kept.loc[kept["near"] != NONE, "head"], minlength=store.heads)
        whole = [len(found_patterns(store, head, range(len(tokens)), self.rule)) for head in range(store.heads)]
        numbers = {
            "value": value,
            "stderr": np.sqrt(value),
            "with_source": sourced,
            "share": np.mean(share, axis=0),
            "share_stderr": np.abs(share[0] - share[1]) / 2,
            "share_chance": np.mean(chance, axis=0),
            "found": np.array(whole),
            "events": np.array([store.count(head) for head in range(store.heads)]),
            "unattributed": store.file["unattributed"][:],
        }
        return numbers, merged

    def _of_all(self, store: EventStore, part: range) -> Frame:
        pd = pandas()
        return pd.concat(
            [found_patterns(store, head, part, self.rule).assign(head=head) for head in range(store.heads)], ignore_index=True
        )

    def _listed(self, store: EventStore, scored: Frame, layers: int) -> Mapping[str, tuple[tuple[str, ...], Any]]:
        """The patterns of the whole corpus with the largest total effect; what they scored on a half they were not found on."""
        patterns = self._of_all(store, range(len(self.tokens)))
        patterns = patterns.groupby("head", sort=True).head(self.k).reset_index(drop=True)
        patterns = patterns.merge(scored, on=["head", *KEY], how="left")
        nothing = np.zeros(0)
        per_pattern = {name: patterns[name].fillna(0.0).to_numpy() for name in SUMMED}
        sums = HeldOut(**per_pattern, **dict.fromkeys(PER_HEAD, nothing))
        rank = patterns.groupby("head").cumcount().to_numpy()
        at = (patterns["head"].to_numpy() // (store.heads // layers), patterns["head"].to_numpy() % (store.heads // layers), rank)
        shape = (layers, store.heads // layers, self.k)

        def spread(values: Any, fill: Any) -> np.ndarray:
            out = np.full(shape, fill)
            out[at] = values
            return out

        with np.errstate(invalid="ignore"):
            others = sums.others / sums.n
        columns = {name: spread(patterns[name], NONE) for name in KEY}
        columns |= {
            "contiguous": spread(patterns["contiguous"].astype(int), NONE),
            "pattern_effect": spread(sums.mean, np.nan),
            "pattern_stderr": spread(sums.stderr, np.nan),
            "pattern_others": spread(others, np.nan),
            "occurrences": spread(sums.n.astype(int), 0),
            "pattern_events": spread(patterns["events"], 0),
            "pattern_total": spread(patterns["total"], np.nan),
            "memorised": spread(patterns["memorised"].eq(True).astype(int), 0),
        }
        example, query = self._places(store, patterns)
        dims = ("layer", "head", "pattern")
        places = {
            "example": np.stack([spread(example[:, i], NONE) for i in range(SHOWN)], -1),
            "query": np.stack([spread(query[:, i], NONE) for i in range(SHOWN)], -1),
        }
        return {name: (dims, x) for name, x in columns.items()} | {name: ((*dims, "place"), x) for name, x in places.items()}

    def _places(self, store: EventStore, patterns: Frame) -> tuple[np.ndarray, np.ndarray]:
        """The first events of each pattern, each of another example: ``example`` and ``query [pattern, place]``."""
        found = np.full((2, len(patterns), SHOWN), NONE)
        asked = patterns[["head", *KEY]].assign(row=np.arange(len(patterns)))
        for head in asked["head"].unique().tolist():
            for bucket in store.buckets(head, range(len(self.tokens))):
                met = (
                    pandas()
                    .DataFrame(bucket.columns, columns=list(COLUMNS))
                    .merge(asked[asked["head"] == head], on=["head", *KEY])
                )
                met = met.drop_duplicates(["row", "example"]).sort_values(["row", "example", "query"])
                place = met.groupby("row").cumcount()
                met, place = met[place < SHOWN], place[place < SHOWN].to_numpy()
                for i, column in enumerate(("example", "query")):
                    found[i, met["row"].to_numpy(), place] = met[column]
        return found[0], found[1]


@lru_cache(maxsize=4)
def _untrained(made: Multigrams, cfg: HookedTransformerConfig, device: torch.device) -> dict[str, np.ndarray]:
    """The numbers of an untrained model of the same shape: the same for every checkpoint of a run."""
    twin = next(random_twins(cfg, 1)).to(device)
    with made._pass(twin, made.tokens) as stores:
        return made._counts(stores[0], made.tokens, cfg.n_layers)[0]
