"""Which keys does a query word choose on text: those that co-occur with it, and those that tell the next word?

    text_pairs   claim 18: the (Y, Z) model by SGD; Z is a number for every pair of words
    text_null    claim 19, the null: one-layer transformers with embeddings, Q and K; pair logits are exact there

Both are read at the same pairs, by the same statistics, against the same relabellings of keys within bins of equal frequency
(``circuits.detectors.pair_bias``), at three stages: ``start``; ``end``; ``gained``, the difference of the two. Pairs are those
that stand ``min_count`` times in the training text within the window of attention, of queries with ``min_keys`` such keys.

Source: Tian et al. 2023 ("Scan and Snap"), theorems 2 to 4, frequency and discriminative bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.data.pairs import PairStatistics, pair_statistics
from circuits.detectors.pair_bias import STATISTICS, BiasTest, beside
from circuits.dynamics.determinism import deterministic
from circuits.dynamics.scan_snap import recorded
from circuits.dynamics.scan_snap_text import BATCH, LENGTH, PROBE, Kind, TextRuns, check_seeds, chosen, even_steps
from circuits.dynamics.scan_snap_text_model import Text, lowest_attention, normalised_entropy, pair_gradient
from circuits.progress import bar
from circuits.results import canonical, check_whole, labelled, mean_and_stderr

if TYPE_CHECKING:
    import xarray as xr

STAGES = ("start", "end", "gained")
RANKS = (0, 10, 30, 100, 300)
"""Where bins of words by frequency begin, for the lift."""


@dataclass(frozen=True, eq=False)
class PairReader:
    """Statistics of a text and the pairs at which logits are read.

    Args:
        text: counted in its training part. window: how far back keys may stand. min_count: how often a pair must stand there.
        min_keys: such keys a query must have. draws, seed: relabellings of the null.

    Raises:
        ValueError: fewer than two queries have so many keys.
    """

    text: Text
    window: int = LENGTH - 1
    min_count: int = 5
    min_keys: int = 10
    draws: int = 99
    seed: int = 0
    statistics: PairStatistics = field(init=False)
    places: Int[np.ndarray, "pair"] = field(init=False)

    def __post_init__(self) -> None:
        for option, least in {"window": 1, "min_count": 1, "min_keys": 4, "draws": 19, "seed": 0}.items():
            check_whole(option, getattr(self, option), least)
        counted = pair_statistics([self.text.train], self.text.d_vocab, window=self.window)
        often = counted.count >= self.min_count
        keys = np.bincount(counted.query[often], minlength=self.text.d_vocab)
        places = np.flatnonzero(often & (keys[counted.query] >= self.min_keys))
        if (n := len(np.unique(counted.query[places]))) < 2:
            raise ValueError(
                f"{n} query words have {self.min_keys} keys that stand {self.min_count} times before them, need at least 2: "
                "give more text, or a smaller min_count"
            )
        object.__setattr__(self, "statistics", counted)
        object.__setattr__(self, "places", places)

    def spec(self) -> dict[str, Any]:
        """Everything the readings depend on."""
        options = {name: getattr(self, name) for name in ("window", "min_count", "min_keys", "draws", "seed")}
        return {"statistics": self.statistics.data_hash} | options

    @property
    def pairs(self) -> tuple[Int[np.ndarray, "pair"], Int[np.ndarray, "pair"]]:
        """Query and key of each."""
        return self.statistics.query[self.places], self.statistics.key[self.places]

    def read(self, start: Float[np.ndarray, "pair run"], end: Float[np.ndarray, "pair run"]) -> dict[str, np.ndarray]:
        """``bias``, ``bias_stderr`` over queries, ``null_mean``, ``null_sd``, ``z``, ``p``; all ``[run, stage, statistic]``.

        Args:
            start, end: logits of the pairs before and after training, of any number of runs.
        """
        z = np.concatenate([start, end, end - start], axis=1)
        test = BiasTest(self.places, self.statistics, draws=self.draws, seed=self.seed)
        value, stderr = (np.stack(part) for part in zip(*map(mean_and_stderr, test.samples(z)), strict=True))
        columns = {"bias": value, "bias_stderr": stderr, **beside(value, test.null(z))}
        shape = (len(STATISTICS), len(STAGES), start.shape[1])
        return {name: part.reshape(shape).transpose(2, 1, 0) for name, part in columns.items()}


@dataclass(frozen=True)
class PairRuns:
    """The (Y, Z) model of a text by SGD, one for each seed; see ``pair_gradient``.

    Args:
        text: what it learns. eta_y, eta_z: constant rates of the decoder's and of attention's logits, on the mean gradient of a
            batch. seeds: of starts (both uniform within 1 / sqrt(d_vocab), as a linear layer starts in torch) and batches. steps:
            updates. batch, length, examples: sequences of a batch, words of each that are read, and sequences of the probe.

    Raises:
        ValueError: a number that makes no sense, or too little text.
    """

    text: Text = field(compare=False)
    eta_y: float = 10.0
    eta_z: float = 10.0
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 700
    batch: int = BATCH
    length: int = LENGTH
    examples: int = PROBE
    name: str = field(default="scan_snap_pairs", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        for option, least in {"steps": 1, "batch": 1, "length": 3, "examples": 2}.items():
            check_whole(option, getattr(self, option), least)
        check_seeds(self.seeds)
        for option in ("eta_y", "eta_z"):
            if not 0 <= (rate := getattr(self, option)) < np.inf:
                raise ValueError(f"{option}={rate}; need a finite rate from 0 up")
        self.text.check_length(self.length, self.examples)

    def spec(self) -> dict[str, Any]:
        """Everything the numbers depend on."""
        rest = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("text", "name", "version")}
        return self.text.spec() | rest | {"seeds": list(self.seeds)}

    def run(
        self, reader: PairReader | None = None, record: Sequence[int] | None = None, *, progress: bool | None = None
    ) -> "xr.Dataset":
        """Train and read every seed.

        Args:
            reader: of the same text; None: ``PairReader(text, window=length - 1)``. record: steps to read attention at; None:
            about 33. progress: show a bar.

        Returns:
            Over ``seed, step``: ``value``, ``H / ln i`` on the probe (0 to 1; ``chance`` 1: uniform), and ``loss`` (nats a word,
            held out), with errors over sequences. Over ``seed, stage, statistic``: ``bias`` and what stands beside it, see
            ``PairReader.read`` and ``circuits.detectors.pair_bias``; correlations in [-1, 1], the gap in sd.

        Raises:
            ValueError: steps out of order, or a reader of another text.
        """
        reader = PairReader(self.text, window=self.length - 1) if reader is None else reader
        check_reader(reader, self.text)
        steps = recorded(even_steps(self.steps) if record is None else record, self.steps)
        probe, bias = self.text.probe(examples=self.examples, length=self.length), torch.from_numpy(self.text.rates).log().float()
        entropy, loss, logits = [], [], ([], [])
        with deterministic(1), bar(total=self.steps * len(self.seeds), label="text, (Y, Z)", on=progress) as shown:
            for seed in self.seeds:
                y, z = self.begin(seed)
                logits[0].append(z.numpy()[reader.pairs].copy())
                read = [[], []]
                for step in range(self.steps + 1):
                    if step in steps:
                        on_probe = pair_gradient(y, z, bias, probe)
                        # Query t of a sequence, from 1 on, may look at t keys.
                        seen = torch.arange(1, self.length)
                        read[0].append(normalised_entropy(on_probe.attention.double(), seen).numpy())
                        read[1].append(on_probe.loss.double().numpy())
                    if step < self.steps:
                        self.update(y, z, bias, self.text.batch(seed=seed, step=step, size=self.batch, length=self.length))
                        shown.update(1)
                entropy.append(read[0])
                loss.append(read[1])
                logits[1].append(z.numpy()[reader.pairs].copy())
        both = ("seed", "step")
        columns: dict[str, Any] = {"chance": ((), 1.0)}
        for name, samples in (("value", entropy), ("loss", loss)):
            mean, error = mean_and_stderr(samples, axis=2)
            columns |= {name: (both, mean), "stderr" if name == "value" else "loss_stderr": (both, error)}
        found = reader.read(*(np.stack(part, -1).astype(np.float64) for part in logits))
        columns |= {name: (("seed", "stage", "statistic"), part) for name, part in found.items()}
        return labelled(
            columns,
            {"seed": list(self.seeds), "step": list(steps), "stage": list(STAGES), "statistic": list(STATISTICS)},
            measure=self,
            definition="H / ln i of attention; rank correlation of Z with corpus statistics: see circuits.detectors.pair_bias",
            source="Tian et al. 2023, lemma 1, theorems 2 to 4",
            units="1; loss: nats; bias: correlation, common_gap in sd of logits",
            smallest_p=2 / (reader.draws + 1),
            reader=canonical(reader.spec()),
        )

    def begin(self, seed: int) -> tuple[Float[Tensor, "d_vocab d_vocab"], Float[Tensor, "d_vocab d_vocab"]]:
        """Y and Z of a seed before training."""
        rng, size = torch.Generator().manual_seed(seed), self.text.d_vocab
        y, z = ((2 * torch.rand(size, size, generator=rng) - 1) / size**0.5 for _ in range(2))
        return y, z

    def update(self, y: Tensor, z: Tensor, bias: Tensor, tokens: Int[Tensor, "example pos"]) -> None:
        """One step uphill, in place."""
        step = pair_gradient(y, z, bias, tokens)
        y.index_add_(0, step.words, step.y, alpha=self.eta_y)
        z.view(-1).index_add_(0, step.pairs, step.z, alpha=self.eta_z)


def check_reader(reader: PairReader, text: Text) -> None:
    """Refuse a reader that counted another text.

    Raises:
        ValueError: it did.
    """
    if reader.text.spec() != text.spec():
        raise ValueError("the reader counted another text than the models learn: pass PairReader(text)")


def lift_by_rank(
    attention: Float[Tensor, "example query key"],
    tokens: Int[Tensor, "example pos"],
    rates: Float[np.ndarray, "d_vocab"],
    ranks: Sequence[int] = RANKS,
) -> Float[np.ndarray, "bin"]:
    """Attention times visible keys, the mean over visible keys whose word has its rank by frequency in each bin.

    Args:
        attention: causal, after softmax. tokens: that it was read on. rates: of every word. ranks: where bins begin.

    Returns:
        At least 0; 1 under uniform attention, the chance level; NaN for a bin without keys.

    Source: Tian et al. 2023, frequency bias; the measure ours.
    """
    rank = np.argsort(np.argsort(-rates, kind="stable"), kind="stable")
    bins = torch.from_numpy(np.searchsorted(ranks, rank[tokens.numpy()], side="right") - 1)
    length = tokens.shape[1]
    seen = torch.arange(1, length + 1)
    member = torch.nn.functional.one_hot(bins, len(ranks)).double()
    mass = torch.einsum("eqk,q,ekb->b", attention.double(), seen.double(), member)
    keys = torch.einsum("k,ekb->b", seen.flip(0).double(), member)  # key s is seen by queries s .. length - 1
    return (mass / torch.where(keys > 0, keys, torch.nan)).numpy()


def text_pairs(
    text: Text | None = None,
    *,
    seeds: int = 5,
    steps: int = 700,
    reader: PairReader | None = None,
    progress: bool | None = None,
) -> "xr.Dataset":
    """The (Y, Z) model by SGD at rates of 10: which keys it comes to look for (claim 18).

    Returns:
        As ``PairRuns.run``.

    Raises:
        ValueError: as ``PairRuns`` and its ``run``.

    Source: Tian et al. 2023, lemma 1, theorems 2 to 4.
    """
    words, numbers = chosen(text, seeds)
    return PairRuns(words, seeds=numbers, steps=steps).run(reader, progress=progress)


def text_null(
    text: Text | None = None,
    *,
    kinds: Sequence[Kind] = ("attention", "relu"),
    seeds: int = 5,
    steps: int = 1000,
    lr: float = 1e-3,
    reader: PairReader | None = None,
    progress: bool | None = None,
) -> "xr.Dataset":
    """What pair logits of transformers trained with Adam say of the text, beside that of the (Y, Z) model (claim 19).

    ``z[m, l] = (W_E[m] W_Q + b_Q) . (W_E[l] W_K + b_K) / sqrt(d_head)``, exact in one layer without positions.

    Args:
        kinds: of ``TextRuns``, norms after. reader: of the same text; None: ``PairReader(text)``.

    Returns:
        Over ``kind, seed, stage, statistic``: ``bias`` and what stands beside it, see ``PairReader.read``. Over ``kind, seed,
        bin``: ``value``, the lift of words by frequency after training (``chance`` 1), see ``lift_by_rank``.

    Raises:
        ValueError: as ``TextRuns``, or a reader of another text.

    Source: ours; Tian et al. 2023 have no such measurement on text.
    """
    words, numbers = chosen(text, seeds)
    reader = PairReader(words) if reader is None else reader
    check_reader(reader, words)
    runs = [TextRuns(words, kind, "adam", lr, numbers, steps) for kind in kinds]
    tokens = words.probe(examples=PROBE, length=LENGTH)[:, :-1]
    logits: list[np.ndarray] = []
    lifts: list[np.ndarray] = []

    def look(model: Any) -> None:
        logits.append(model.pair_logits(*reader.pairs))

    with deterministic(1), bar(total=steps * seeds * len(kinds), label="text, pair logits", on=progress) as shown:
        for one in runs:
            for seed in numbers:
                model = one.train(seed, look, (0, steps), shown)
                lifts.append(lift_by_rank(lowest_attention(model, tokens)[0], tokens, words.rates))
    found = reader.read(np.stack(logits[::2], -1), np.stack(logits[1::2], -1))
    grid = (len(kinds), seeds)
    dims = ("kind", "seed", "stage", "statistic")
    return labelled(
        {name: (dims, part.reshape(*grid, *part.shape[1:])) for name, part in found.items()}
        | {"value": (("kind", "seed", "bin"), np.stack(lifts).reshape(*grid, -1)), "chance": ((), 1.0)},
        {"kind": list(kinds), "seed": list(numbers), "stage": list(STAGES), "statistic": list(STATISTICS)}
        | {"bin": [f"rank {rank}+" for rank in RANKS]},
        measure=runs[0],
        definition="pair logits against corpus statistics, see circuits.detectors.pair_bias; value: lift by frequency of the key",
        source="Tian et al. 2023, frequency and discriminative bias; ours on text",
        units="bias: correlation, common_gap in sd of logits; value: uniform attention is 1",
        smallest_p=2 / (reader.draws + 1),
        reader=canonical(reader.spec()),
    )
