"""Does each head copy, match, and find prefixes? Spectra, diagonals and the QK trace of every head, beside random heads.

Definitions are those of ``circuits.weights.spectra``, the null that of ``circuits.weights.random_heads``. Its random heads are
the same for every head, but for ``qk_trace``, which depends on scale: there random readers have the head's own norms, and
writers and previous-token scores are kept. For the diagonal the null's mean is k / V whatever the embeddings are: a Gaussian
``W_V`` gives every token's row the same law up to a factor, so the chances of all V tokens to be among the k largest add up to
k. Its spread has no such form and is sampled, with logits of random heads in float32: rounding can change places only where a
token's own logit all but equals the k-th largest, which of 819,200 rows of 800 random heads on the shipped model none does.

Source: Elhage et al. 2021, "Detecting copying behavior"; Olsson et al. 2022, "trace of QK eigenvalues".
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.models.patterns import previous_token_score
from circuits.models.protocol import check_tokens, device_of, model_hash, pattern_name, undisturbed
from circuits.results import array_hash, check_whole, digest, labelled, mean_and_stderr
from circuits.weights.factored import product_norm
from circuits.weights.folded import FoldedWeights, folded
from circuits.weights.random_heads import NULL, beside, check_null, random_heads, remembered, smallest_p
from circuits.weights.spectra import (
    copying_statistic,
    diagonal_ranks,
    ov_eigenvalues,
    positive_fraction,
    qk_eigenvalues,
    qk_trace,
)

STATISTICS = (
    "ov_copying",
    "ov_positive_fraction",
    "ov_top1",
    "ov_top5",
    "qk_matching",
    "qk_positive_fraction",
    "qk_trace",
)
OUT_BLOCK = 2**23
"""Logits of heads' output directions held at once: 64 MB."""
EXAMPLES = 8
"""Sequences that are read together."""
SHORTEST = 3
"""Tokens of a sequence in which one stands behind a previous token other than the first."""


@dataclass(frozen=True)
class WeightSpectra:
    """Spectra and diagonals of every head's token circuits: ``Dataset(layer, head, statistic)``.

    Args:
        tokens: what each model's own previous-token attention, which ``qk_trace`` weighs earlier heads with, is measured on,
            ``[example, pos]`` with BOS first; without tokens ``qk_trace`` is missing.
        null_seeds: random heads behind the null; 0 leaves it out (NaN). seed: of the random heads and the token sample.
        diagonal_tokens: rows of the OV circuit looked at for ``ov_top1`` and ``ov_top5``, drawn without replacement (all of
            them if the vocabulary is no larger); 0 leaves both out.
    """

    tokens: Tensor | None = field(default=None, compare=False)
    null_seeds: int = 199
    seed: int = 0
    diagonal_tokens: int = 1024
    name: str = field(default="weight_spectra", init=False)
    version: int = field(default=2, init=False)
    _text: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        check_null(self.null_seeds, self.seed)
        check_whole("diagonal_tokens", self.diagonal_tokens, 0, "which leaves the diagonal out")
        if self.tokens is not None:
            check_tokens(self.tokens, d_vocab=2**31, n_ctx=2**31, min_length=SHORTEST, needed_by="qk_trace")
            object.__setattr__(self, "_text", array_hash(self.tokens.cpu()))

    def spec(self) -> dict[str, Any]:
        return {
            "tokens": self._text or None,
            "null_seeds": self.null_seeds,
            "seed": self.seed,
            "diagonal_tokens": self.diagonal_tokens,
        }

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Dataset with dims ``layer, head, statistic``: ``value``, ``stderr`` (binomial over tokens for the diagonal, over
            examples for ``qk_trace``, NaN for functions of the weights alone), ``null_mean``, ``null_sd``, ``z``, ``p``
            (two-sided, empirical) and ``state``: ok, zero (a circuit that does nothing; its value is 0) or missing
            (``qk_trace`` in layer 0 or without tokens, a diagonal that was not asked for).

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, two vocabularies, tokens that the model cannot read.
        """
        w = folded(model)
        if self.tokens is not None:
            check_tokens(self.tokens, d_vocab=w.cfg.d_vocab, n_ctx=w.cfg.n_ctx, min_length=SHORTEST, needed_by="qk_trace")
        scores = None if self.tokens is None or len(w.W_V) < 2 else previous_token_attention(model, self.tokens)
        rows = self._rows(w.W_E.shape[0])
        values, zero = _spectra(w)
        errors = {name: np.full(w.W_V.shape[:2], np.nan) for name in STATISTICS}
        values |= {name: errors[name] for name in set(STATISTICS) - set(values)}
        if len(rows):
            shares = _diagonal(w, w.W_V.flatten(0, 1), w.W_O.flatten(0, 1), rows, torch.float64)
            values |= {name: share.reshape(w.W_V.shape[:2]) for name, share in shares.items()}
            # Drawn without replacement: the error is 0 where all tokens were looked at.
            left = 1 - (len(rows) - 1) / max(1, w.W_E.shape[0] - 1)
            errors |= {name: np.sqrt(values[name] * (1 - values[name]) / len(rows) * left) for name in shares}
        if scores is not None:
            values["qk_trace"], errors["qk_trace"] = mean_and_stderr(_traces(w, scores))
        identity = model_hash(model)
        nulls: dict[str, np.ndarray] = {}
        if self.null_seeds:
            # Without the tokens: they change the null of qk_trace alone, which has the scores of one model in it.
            key = digest([self.name, self.null_seeds, self.seed, self.diagonal_tokens, identity])
            nulls |= remembered(key, lambda: self._null(w, rows))
            if scores is not None:
                nulls["qk_trace"] = self._trace_null(w, scores.mean(0))
        columns = [beside(values[name], nulls.get(name)) for name in STATISTICS]
        dims = ("layer", "head", "statistic")
        variables = {key: (dims, np.stack([column[key] for column in columns], -1)) for key in columns[0]}
        empty = np.stack([zero[name] for name in STATISTICS], -1)
        state = np.where(np.isnan(variables["value"][1]), "missing", np.where(empty, "zero", "ok"))
        stderr = np.stack([errors[name] for name in STATISTICS], -1)
        return labelled(
            {"value": variables.pop("value"), "stderr": (dims, stderr), **variables, "state": (dims, state)},
            {"layer": np.arange(len(w.W_V)), "head": np.arange(w.W_V.shape[1]), "statistic": list(STATISTICS)},
            measure=self,
            definition="spectra, diagonals of W_E W_V W_O W_U and W_E W_Q W_K^T W_E^T, norms folded (circuits.weights.spectra)",
            source="Elhage et al. 2021; Olsson et al. 2022",
            model_hash=identity,
            data_hash=self._text or "none",
            seed=self.seed,
            stderr="none: functions of the weights alone; ov_top1, ov_top5: binomial over tokens; qk_trace: over examples",
            n_tokens=len(rows),
            n_examples=0 if self.tokens is None else len(self.tokens),
            null=f"{NULL}; qk_trace: random readers with the head's own norms" if self.null_seeds else "none asked for",
            smallest_p=smallest_p(self.null_seeds),
        )

    def _rows(self, d_vocab: int) -> Int[Tensor, "token"]:
        """Tokens whose OV rows are looked at."""
        drawn = np.random.default_rng([self.seed, 20]).permutation(d_vocab)[: self.diagonal_tokens]
        return torch.from_numpy(np.sort(drawn))

    def _null(self, w: FoldedWeights, rows: Int[Tensor, "token"]) -> dict[str, np.ndarray]:
        """The statistics of random heads, each ``[sample, 1, 1]``: the same for every head of the model."""
        found: dict[str, list[np.ndarray]] = {}
        for W_V, W_O in random_heads(w, self.null_seeds, (self.seed, 21), "W_V", "W_O"):
            ov = ov_eigenvalues(W_V, W_O, w.G)
            found.setdefault("ov_copying", []).append(copying_statistic(ov).numpy())
            found.setdefault("ov_positive_fraction", []).append(positive_fraction(ov).numpy())
            for name, share in (_diagonal(w, W_V, W_O, rows, torch.float32) if len(rows) else {}).items():
                found.setdefault(name, []).append(share)
        for W_Q, W_K in random_heads(w, self.null_seeds, (self.seed, 22), "W_Q", "W_K"):
            qk = qk_eigenvalues(W_Q, W_K, w.C)
            found.setdefault("qk_matching", []).append(copying_statistic(qk).numpy())
            found.setdefault("qk_positive_fraction", []).append(positive_fraction(qk).numpy())
        return {name: np.concatenate(samples)[:, None, None] for name, samples in found.items()}

    def _trace_null(self, w: FoldedWeights, scores: Float[Tensor, "layer head"]) -> np.ndarray:
        """``qk_trace`` of random readers with each head's own norms, ``[sample, layer, head]``; writers and scores are kept."""
        # tr(W_Q W_K^T Y^T) with Y = sum_e p_e C W_V^e W_O^e: one d x d matrix a layer serves every reader.
        weighted = scores[..., None, None] * w.W_V
        per_layer = torch.stack([(w.C @ one @ other).sum(0) for one, other in zip(weighted, w.W_O, strict=True)])
        Y = per_layer.cumsum(0) - per_layer  # earlier layers only
        samples = []
        for W_Q, W_K in random_heads(w, self.null_seeds, (self.seed, 23), "W_Q", "W_K"):
            size = torch.linalg.matrix_norm(W_Q) * torch.linalg.matrix_norm(W_K)
            samples.append(torch.stack([(W_Q * (one @ W_K)).sum((-2, -1)) / size for one in Y], -1))
        norms = torch.linalg.matrix_norm(w.W_Q) * torch.linalg.matrix_norm(w.W_K)
        return (torch.cat(samples)[..., None] * norms).numpy()


def previous_token_attention(model: Any, tokens: Int[Tensor, "example pos"]) -> Float[Tensor, "example layer head"]:
    """Each head's mean attention to the previous token, by example, in float64.

    Args:
        model: a hooked model; left as found. tokens: with BOS first; read ``EXAMPLES`` sequences at a time.

    Returns:
        In [0, 1]; see ``circuits.models.patterns.previous_token_score``.
    """
    parts = []
    with undisturbed(model):
        for part in tokens.to(device_of(model)).split(EXAMPLES):
            layers: list[Tensor] = []

            def score(pattern: Tensor, hook: Any, layers: list[Tensor] = layers, part: Tensor = part) -> None:
                layers.append(previous_token_score(pattern, part).double().cpu())

            with model.hooks(fwd_hooks=[(pattern_name(layer), score) for layer in range(model.cfg.n_layers)]):
                model(part)
            parts.append(torch.stack(layers, dim=1))
    return torch.cat(parts)


def _spectra(w: FoldedWeights) -> tuple[dict[str, np.ndarray], dict[str, Bool[np.ndarray, "layer head"]]]:
    """The statistics of the eigenvalues of every head, and for each statistic which circuits are zero."""
    ov, qk = ov_eigenvalues(w.W_V, w.W_O, w.G), qk_eigenvalues(w.W_Q, w.W_K, w.C)
    values = {
        "ov_copying": copying_statistic(ov).numpy(),
        "ov_positive_fraction": positive_fraction(ov).numpy(),
        "qk_matching": copying_statistic(qk).numpy(),
        "qk_positive_fraction": positive_fraction(qk).numpy(),
    }
    no_ov, no_qk = (~(found != 0).any(-1).numpy() for found in (ov, qk))
    writes_nothing = (product_norm(w.W_V, w.W_O) == 0).numpy()
    zero = {"ov_copying": no_ov, "ov_positive_fraction": no_ov, "qk_matching": no_qk, "qk_positive_fraction": no_qk}
    zero |= {"ov_top1": writes_nothing, "ov_top5": writes_nothing}
    return values, zero | {"qk_trace": (product_norm(w.W_Q, w.W_K.mT) == 0).numpy()}


def _diagonal(
    w: FoldedWeights,
    W_V: Float[Tensor, "n d_model d_head"],
    W_O: Float[Tensor, "n d_head d_model"],
    rows: Int[Tensor, "token"],
    dtype: torch.dtype,
) -> dict[str, Float[np.ndarray, "n"]]:
    """Share of tokens whose own logit is among the k largest of their OV row, of any number of heads."""
    seen = w.W_E[rows].to(dtype)
    found = torch.stack([diagonal_ranks(seen @ W_V[head].to(dtype), out.to(dtype), rows) for head, out in _outputs(w, W_O)])
    return {f"ov_top{k}": (found < k).double().mean(-1).numpy() for k in (1, 5)}


def _outputs(w: FoldedWeights, W_O: Float[Tensor, "n d_head d_model"]) -> Iterator[tuple[int, Float[Tensor, "d_head d_vocab"]]]:
    """``W_O W_U`` of one head after the other, several made together so that the unembedding is converted less often."""
    n, d_head, _ = W_O.shape
    together = max(1, OUT_BLOCK // (d_head * w.W_U.shape[1]))
    for first in range(0, n, together):
        block = W_O[first : first + together]
        yield from enumerate(w.logits(block.flatten(0, 1)).unflatten(0, block.shape[:2]), first)


def _traces(w: FoldedWeights, scores: Float[Tensor, "example layer head"]) -> Float[np.ndarray, "example layer head"]:
    """``qk_trace`` of every head by example; NaN in layer 0."""
    found = np.full(scores.shape, np.nan)
    for layer, head in np.ndindex(*scores.shape[1:]):
        if layer:
            earlier = w.W_V[:layer].flatten(0, 1), w.W_O[:layer].flatten(0, 1), w.W_Q[layer, head], w.W_K[layer, head]
            found[:, layer, head] = qk_trace(*earlier, w.C, scores[:, :layer].flatten(1)).numpy()
    return found
