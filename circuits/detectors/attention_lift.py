"""Does a head attend to common or to rare tokens? Attention times visible keys, over the keys of a bin of tokens by frequency.

    lift = sum over queries t and keys s of the bin of (t + 1) A[t, s] / how many such pairs of query and key there are

Uniform attention has lift 1 in every bin. Position 0 (BOS) is no key of any bin. The null deals the tokens of each sequence out
anew among its positions.

Source: Tian et al. 2023 ("Scan and Snap"), frequency bias; the measure ours.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.detectors.attention_spread import SHORTEST, fitting, layer_patterns
from circuits.detectors.pair_bias import beside
from circuits.models.protocol import check_tokens, model_hash
from circuits.results import array_hash, check_whole, labelled

RANKS = (0, 3, 10, 30, 100, 300, 1000, 3000, 10000)
"""Where bins of tokens by frequency begin."""


def key_lift(pattern: Float[Tensor, "example head query key"]) -> Float[Tensor, "example head key"]:
    """Attention times visible keys that each key position gets, summed over queries: ``sum_t (t + 1) A[t, s]``.

    Args:
        pattern: causal attention after softmax.

    Returns:
        At least 0; under uniform attention ``length - s``, the number of queries that see the key.

    Source: Tian et al. 2023, frequency bias; the measure ours.
    """
    keys = torch.arange(1, pattern.shape[-1] + 1, dtype=pattern.dtype, device=pattern.device)
    return torch.einsum("ehqk,q->ehk", pattern, keys)


@dataclass(frozen=True)
class AttentionLift:
    """Attention on common and on rare tokens: ``Dataset(layer, head, bin)``.

    Args:
        tokens: ``[example, pos]`` with BOS first. counts: how often each token occurs, ``run.token_counts``.
        ranks: where bins begin, the commonest token having rank 0. draws, seed: of the null.
    """

    tokens: Int[Tensor, "example pos"] = field(compare=False)
    counts: Int[np.ndarray, "d_vocab"] = field(compare=False)
    ranks: tuple[int, ...] = RANKS
    draws: int = 199
    seed: int = 0
    name: str = field(default="attention_lift", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.counts, np.ndarray) or self.counts.ndim != 1 or self.counts.dtype.kind not in "iu":
            raise TypeError("counts are no flat integer array: pass run.token_counts, or np.bincount(stream, minlength=d_vocab)")
        check_tokens(self.tokens, d_vocab=len(self.counts), n_ctx=2**31, min_length=SHORTEST, needed_by="the lift of attention")
        check_whole("draws", self.draws, 19)
        check_whole("seed", self.seed, 0)
        if len(self.tokens) < 2:
            raise ValueError("one sequence was given, and an error over sequences needs two: pass more")
        if self.ranks[:1] != (0,) or any(a >= b for a, b in pairwise(self.ranks)):
            raise ValueError(f"ranks={self.ranks!r}: need ascending whole numbers that begin with 0, e.g. {RANKS}")

    def spec(self) -> dict[str, Any]:
        data = {"tokens": array_hash(self.tokens.cpu()), "counts": array_hash(self.counts)}
        return {**data, "ranks": list(self.ranks), "draws": [self.draws, self.seed]}

    def __call__(self, model: Any) -> Any:
        """Measure a model, in evaluation mode whatever its own; it is left as found.

        Returns:
            ``(layer, head, bin)``: ``value`` (at least 0; ``chance`` 1), ``stderr`` over sequences, ``null_mean``, ``null_sd``,
            ``z``, ``p`` (two-sided, empirical); ``keys [bin]``, key positions behind each. A bin without any is NaN.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, or tokens that do not fit it.
        """
        tokens = fitting(model, self.tokens, "the lift of attention")
        parts = [
            torch.stack(layers) for layers in layer_patterns(model, tokens, lambda pattern: key_lift(pattern).double().cpu())
        ]
        lift = torch.cat(parts, dim=1).permute(1, 3, 0, 2).numpy()[:, 1:]  # [example, key, layer, head]
        seen = np.arange(lift.shape[1], 0, -1)
        rank = np.argsort(np.argsort(-self.counts, kind="stable"), kind="stable")
        bins = np.searchsorted(self.ranks, rank[self.tokens[:, 1:].cpu().numpy()], side="right") - 1
        sums, queries = _by_bin(bins, lift, seen, len(self.ranks))
        with np.errstate(divide="ignore", invalid="ignore"):
            value = sums.sum(0) / queries.sum(0)[:, None, None]
            error = np.sqrt(((sums - queries[..., None, None] * value) ** 2).sum(0) * len(sums) / (len(sums) - 1))
            error = error / queries.sum(0)[:, None, None]
            rng, null = np.random.default_rng([self.seed, 41]), []
            for _ in range(self.draws):
                sums, queries = _by_bin(rng.permuted(bins, axis=1), lift, seen, len(self.ranks))
                null.append(sums.sum(0) / queries.sum(0)[:, None, None])
        columns = {"value": value, "stderr": error, **beside(value, np.stack(null))}
        dims = ("layer", "head", "bin")
        return labelled(
            {
                **{name: (dims, np.moveaxis(part, 0, -1)) for name, part in columns.items()},
                "chance": ((), 1.0),
                "keys": (dims[2:], np.bincount(bins.ravel(), minlength=len(self.ranks))),
            },
            {
                "layer": np.arange(value.shape[1]),
                "head": np.arange(value.shape[2]),
                "bin": [f"rank {rank}+" for rank in self.ranks],
            },
            measure=self,
            definition="attention times visible keys, over keys of a bin of tokens by frequency",
            source="Tian et al. 2023, frequency bias; the measure ours",
            model_hash=model_hash(model),
            data_hash=array_hash(self.tokens.cpu()),
            seed=self.seed,
            n_examples=len(tokens),
            units="uniform attention is 1",
            null="tokens of each sequence dealt out anew among its positions",
            smallest_p=2 / (self.draws + 1),
        )


def _by_bin(bins: np.ndarray, lift: np.ndarray, seen: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the keys of each bin, of lift ``[example, bin, layer, head]`` and of queries that see them ``[example, bin]``."""
    member = (bins[:, None] == np.arange(n_bins)[:, None]).astype(np.float64)  # [example, bin, key]
    flat = lift.reshape(*lift.shape[:2], -1)
    return (member @ flat).reshape(*member.shape[:2], *lift.shape[2:]), member @ seen
