"""How close are a model's predictions to those of the corpus' n-grams, order by order?

At every held-out position whose last ``n - 1`` tokens ``c`` (BOS not among them) occur in the corpus ``min_count`` times,
``q_n(o | c)`` is the relative frequency of what follows them there, and the model, which has read all before, says ``p(o)``:

    value  = mean of -sum_o q_n(o | c) log p(o)     cross-entropy of the model to the predictor of order n, nats
    floor  = mean of -sum_o q_n(o | c) log q_n(o | c)
    kl     = value - floor >= 0                     0 for a model that is that predictor and uses nothing more

A model that passes through the bigram solution has a minimum of the bigrams' ``kl``, from which it rises as more than the last
token is used. Chance is ``log d_vocab``, a model that knows nothing. The null is the predictor of one order less (uniform for
n = 1): ``null_mean = mean of -sum_o q_n log q_{n-1}``; below it lies a model that knows something of what the oldest token adds.

``q_n`` is counted, so it is noisy: a model that knew the true rates would have a ``kl`` of about ``kl_noise``, the mean of
``(different tokens after c - 1) / (2 occurrences of c)`` (Miller 1955; first order, from below). Where ``kl`` is not far above
that, it says nothing. Beside them stand the model's own ``loss`` at the same positions and ``ngram_loss``, that of the
interpolated n-gram predictor (``NgramTable.log_prob``): below it the model predicts better than the order can.

Averages are over positions, ``share`` of all; errors are over examples. Source: Hoogland et al. 2024, "bigram score"
(cross-entropy to the empirical bigram distribution); Edelman et al. 2024, KL to m-gram predictors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from circuits.data.ngrams import MIN_COUNT, NgramTable
from circuits.detectors.ngram_predictions import Predictions, cross_entropies, predictions
from circuits.models.protocol import check_finite, check_model, check_tokens, device_of, model_hash, undisturbed
from circuits.results import array_hash, check_whole, labelled

BLOCK = 2**22
"""Log-probabilities held at once: 16 MB of float32."""
LABELS = ("value", "floor", "kl", "kl_noise", "null_mean", "loss", "ngram_loss")


def pooled(sums: Float[np.ndarray, "example"], counts: Int[np.ndarray, "example"]) -> tuple[float, float]:
    """``sum / count`` over all examples and its standard error over examples (linearised ratio); NaN without any count.

    Source: Cochran 1977, section 6.4. Examples without a place count as such.
    """
    if not counts.sum():
        return np.nan, np.nan
    ratio, n = sums.sum() / counts.sum(), len(sums)
    if n < 2:
        return float(ratio), np.nan
    residual = sums - ratio * counts
    return float(ratio), float(np.sqrt(residual @ residual / (n - 1) / n) / counts.mean())


@dataclass(frozen=True)
class PredictorLoss:
    """Cross-entropy of a model to the corpus' n-gram predictors: ``Dataset(corpus, order)``.

    Args:
        table: of the training text, e.g. ``NgramTable.count(split_blocks(run.corpus["code_train"]), d_vocab)``.
        tokens: held-out text, ``{corpus: [example, pos]}`` with BOS first.
        min_count: how often a context must occur in the corpus to be used.
    """

    table: NgramTable = field(compare=False)
    tokens: Mapping[str, Tensor] = field(compare=False)
    min_count: int = MIN_COUNT
    name: str = field(default="predictor_loss", init=False)
    version: int = field(default=1, init=False)
    _read: tuple[str, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        check_whole("min_count", self.min_count, 1)
        if not isinstance(self.table, NgramTable):
            raise TypeError(
                f"table is a {type(self.table).__name__}, need the corpus' counts: pass NgramTable.count(streams, d_vocab)"
            )
        if not isinstance(self.tokens, Mapping) or not self.tokens:
            raise ValueError("no tokens were given; pass {'corpus name': tokens [example, pos]}, e.g. run.evaluation")
        for corpus, tokens in self.tokens.items():
            needed = f"the loss to n-gram predictors on {corpus!r}"
            check_tokens(tokens, d_vocab=self.table.d_vocab, n_ctx=2**31, min_length=self.table.order + 1, needed_by=needed)
        read = (self.table.data_hash, *(f"{corpus} {array_hash(tokens.cpu())}" for corpus, tokens in self.tokens.items()))
        object.__setattr__(self, "_read", read)

    def spec(self) -> dict[str, Any]:
        return {
            "corpus": self.table.data_hash,
            "order": self.table.order,
            "tokens": {corpus: array_hash(tokens.cpu()) for corpus, tokens in self.tokens.items()},
            "min_count": self.min_count,
        }

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            By ``corpus`` and ``order`` (1 to the table's), in nats, each with its ``_stderr`` (``value``'s is ``stderr``):
            ``value``, ``floor``, ``kl``, ``kl_noise``, ``null_mean``, ``loss`` and ``ngram_loss``; the ``share`` of positions
            that are used, and ``positions``, their number. NaN where none is. ``chance`` is that of ``value`` and ``loss``.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, a model of another vocabulary or too short a context.
        """
        check_model(model)
        check_finite(model)
        reads, predicts = model.cfg.d_vocab, getattr(model.cfg, "d_vocab_out", model.cfg.d_vocab)
        if not reads == predicts == self.table.d_vocab:
            raise ValueError(
                f"the table counts {self.table.d_vocab} ids, the model reads {reads} and predicts {predicts}: all must be one "
                "vocabulary, so count the model's own corpus"
            )
        for corpus, tokens in self.tokens.items():
            check_tokens(
                tokens, d_vocab=model.cfg.d_vocab, n_ctx=model.cfg.n_ctx, needed_by=f"the loss to n-gram predictors on {corpus!r}"
            )
        grid, shape = ("corpus", "order"), (len(self.tokens), self.table.order)
        data = {name: np.full(shape, np.nan) for label in LABELS for name in (label, _error(label))}
        data |= {"share": np.zeros(shape), "positions": np.zeros(shape, dtype=np.int64)}
        for at, (corpus, tokens) in enumerate(self.tokens.items()):
            said = _said(self, corpus)
            for order, found in enumerate(_measured(model, tokens, said)):
                places = np.bincount(said[order].example, minlength=len(tokens))
                data["share"][at, order] = places.sum() / tokens[:, 1:].numel()
                data["positions"][at, order] = places.sum()
                for label, each in found.items():
                    sums = np.bincount(said[order].example, weights=each, minlength=len(tokens)).astype(np.float64)
                    data[label][at, order], data[_error(label)][at, order] = pooled(sums, places)
        return labelled(
            {name: (grid, values) for name, values in data.items()} | {"chance": ((), np.log(model.cfg.d_vocab))},
            {"corpus": list(self.tokens), "order": np.arange(1, self.table.order + 1)},
            measure=self,
            definition="cross-entropy of the model to what follows the last order - 1 tokens in the corpus; kl = value - floor",
            source="Hoogland et al. 2024 (bigram score); Edelman et al. 2024 (m-gram predictors)",
            model_hash=model_hash(model),
            data_hash=array_hash(*(t.cpu() for t in self.tokens.values())),
            null="the corpus' predictor of one order less",
            units="nats",
        )


def _error(label: str) -> str:
    return "stderr" if label == "value" else f"{label}_stderr"


@lru_cache(maxsize=8)
def _said(made: PredictorLoss, corpus: str) -> tuple[Predictions, ...]:
    """What the predictors say of one corpus: the same for every checkpoint of a run."""
    return predictions(made.table, made.tokens[corpus], made.min_count)


def _measured(model: Any, tokens: Int[Tensor, "example pos"], said: Sequence[Predictions]) -> list[dict[str, np.ndarray]]:
    """For each order, what is averaged at each place; some examples' log-probabilities at a time."""
    examples, length = tokens.shape
    size = max(1, min(32, BLOCK // (length * model.cfg.d_vocab)))
    values: list[list[np.ndarray]] = [[] for _ in said]
    losses: list[list[np.ndarray]] = [[] for _ in said]
    with undisturbed(model):
        for start in range(0, examples, size):
            part = tokens[start : start + size].long().to(device_of(model))
            log_probs = model(part).log_softmax(-1).flatten(0, 1).cpu().numpy()
            ids = part.flatten().cpu().numpy()
            for order, of in enumerate(said):
                here = slice(*np.searchsorted(of.example, (start, start + size)))
                at = (of.example[here] - start) * length + of.pos[here]  # of the predicted token; its prediction stands before it
                values[order].append(cross_entropies(log_probs, at - 1, of.context[here], of))
                losses[order].append(-log_probs[at - 1, ids[at]].astype(np.float64))
    found = []
    for of, value, loss in zip(said, map(np.concatenate, values), map(np.concatenate, losses), strict=True):
        fixed = {"floor": of.floor[of.context], "kl_noise": of.kl_noise[of.context], "null_mean": of.null_mean[of.context]}
        found.append({"value": value, "kl": value - fixed["floor"], "loss": loss, "ngram_loss": of.loss} | fixed)
    return found
