"""Composition of the embeddings and the unembedding with heads: who reads tokens directly, and who writes to the logits.

The score is that of ``circuits.weights.composition`` with one side of the pair replaced. With norms folded in,

    embed.Q, embed.K, embed.V     ||W_E B|| / (||W_E|| ||B||),   B what the head reads as queries, keys or values
    position.Q, .K, .V            the same for ``W_pos``; shortformer positions reach queries and keys behind the norm, so they
                                  meet the unfolded ``pos_Q`` and ``pos_K`` in all d_model dimensions, and no value
    unembed                       ||A W_U|| / (||A|| ||W_U||),   A = W_V W_O what the head writes

Embeddings span every dimension there is, so a score differs from ``1 / sqrt(d)`` by how unevenly they fill them: it is high where
a head reads the few directions in which tokens differ most, low where it reads what tokens hardly use (what earlier heads
write, say). ``null_mean, null_sd, z, p`` are those of random orientation (``circuits.weights.haar``), z and its moments of the
squared score; ``q`` is the smallest false discovery rate over all heads and parts (Benjamini and Hochberg 1995).

Source: Elhage et al. 2021, "composition scores", for embeddings in place of a head.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.models.protocol import model_hash
from circuits.results import check_whole, labelled
from circuits.weights.composition import false_discovery
from circuits.weights.folded import FoldedWeights, folded, through_tokens
from circuits.weights.haar import squared_score_moments, upper_tails
from circuits.weights.interfaces import MODES, Interfaces, Side, check_dims, side
from circuits.weights.pairs import compose_pairs

PARTS = (*(f"embed.{mode}" for mode in MODES), *(f"position.{mode}" for mode in MODES), "unembed")


def side_of(moment: Float[Tensor, "d_model d_model"], dims: int, dtype: torch.dtype) -> Side:
    """The side of one matrix with ``moment = M^T M``: its squared singular values and directions, ``dims`` of them."""
    values, vectors = torch.linalg.eigh(moment)
    squares = values.flip(0)[:dims].clamp(min=0)
    return Side(squares[None], vectors.mT.flip(0)[None, :dims].to(dtype))


def all_heads(sides: list[Side]) -> Side:
    return Side(torch.cat([one.squares for one in sides]), torch.cat([one.directions for one in sides]))


@dataclass(frozen=True)
class EmbeddingComposition:
    """Composition of the embeddings and the unembedding with every head: ``Dataset(part, layer, head)``.

    Args:
        draws: sampled orientations behind ``p``, which is never below ``1 / (1 + draws)``. seed: of them.
    """

    draws: int = 2_000
    seed: int = 0
    name: str = field(default="embedding_composition", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_whole("draws", self.draws, 1)
        check_whole("seed", self.seed, 0)

    def spec(self) -> dict[str, Any]:
        return {"draws": self.draws, "seed": self.seed}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            ``value`` in [0, 1] with the null beside it; ``state`` is ok, zero (the head or the embedding is zero) or missing
            (NaN: positions that this model does not have there).

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, or a model that cannot be represented.
        """
        weights = folded(model)
        check_dims(weights.dims)
        layers, heads = weights.W_O.shape[:2]
        found = {
            name: np.full((len(PARTS), layers, heads), np.nan) for name in ("value", "stderr", "null_mean", "null_sd", "z", "p")
        }
        for parts, writer, reader, dims in self._meetings(weights):
            for name, values in self._scores(writer, reader, dims).items():
                found[name][[PARTS.index(part) for part in parts]] = values.view(len(parts), layers, heads).numpy()
        found["q"] = false_discovery(found["p"])
        value, grid = found["value"], ("part", "layer", "head")
        state = np.where(np.isnan(value), "missing", np.where(value == 0, "zero", "ok"))
        return labelled(
            {name: (grid, values) for name, values in found.items()} | {"state": (grid, state)},
            {"part": list(PARTS), "layer": np.arange(layers), "head": np.arange(heads)},
            measure=self,
            definition="||A B|| / (||A|| ||B||) of an embedding and what a head reads, or of what a head writes and W_U",
            source="Elhage et al. 2021; null of circuits.weights.haar",
            model_hash=model_hash(model),
            seed=self.seed,
            stderr="none: a function of the weights alone",
            null="matrices of the same spectra in random orientation; null_mean, null_sd and z are of the squared score",
            smallest_p=1 / (1 + self.draws),
        )

    def _meetings(self, w: FoldedWeights) -> list[tuple[list[str], Side, Side, int]]:
        """Which parts are scored together: their names, who writes, who reads, and in how many dimensions they meet."""
        faces = Interfaces(w, (None,) * w.cfg.n_layers, (None,) * w.cfg.n_layers)
        layers, dtype = range(w.cfg.n_layers), w.W_E.dtype
        readers = all_heads([faces.readers(layer, mode) for mode in MODES for layer in layers])
        meetings = [([f"embed.{mode}" for mode in MODES], side_of(_seen(w, w.C), w.dims, dtype), readers, w.dims)]
        if w.W_pos is not None and w.cfg.positional_embedding_type == "standard":
            positions = side_of(_seen(w, w.W_pos.mT @ w.W_pos), w.dims, dtype)
            meetings.append(([f"position.{mode}" for mode in MODES], positions, readers, w.dims))
        elif w.W_pos is not None:
            positions = side_of(w.W_pos.mT @ w.W_pos, w.cfg.d_model, dtype)
            sides = [side(w.W_K[layer], w.pos_Q[layer].mT) for layer in layers]
            sides += [side(w.W_Q[layer], w.pos_K[layer].mT) for layer in layers]
            behind = all_heads([Side(one.squares, one.directions.to(dtype)) for one in sides])
            meetings.append((["position.Q", "position.K"], positions, behind, w.cfg.d_model))
        gain = w.gain_U[:, None]
        read = _seen(w, gain * through_tokens(w.W_U, w.W_U.mT) * gain.mT)
        writers = all_heads([faces.writers(layer) for layer in layers])
        return [*meetings, (["unembed"], writers, side_of(read, w.dims, dtype), w.dims)]

    def _scores(self, writer: Side, reader: Side, dims: int) -> dict[str, Tensor]:
        """Scores of one side that is alone with all of the other, and their null; ``[src, dst]``."""
        pairs = compose_pairs(writer, reader, dims)
        mean, sd = squared_score_moments(writer.squares[:, None], reader.squares[None], dims)
        every = [(slice(0, len(writer.squares)), slice(0, len(reader.squares)))]
        rng = torch.Generator().manual_seed(self.seed)
        tails = upper_tails(pairs.squared, writer.squares, reader.squares, every, dims, self.draws, rng)
        z = torch.where(sd > 0, (pairs.squared - mean) / torch.where(sd > 0, sd, 1), 0.0)
        return {"value": pairs.squared.sqrt(), "null_mean": mean, "null_sd": sd, "z": z} | tails


def _seen(w: FoldedWeights, moment: Float[Tensor, "d_model d_model"]) -> Float[Tensor, "d_model d_model"]:
    """``P M P``: a second moment as readers see it."""
    return w.writes(w.writes(moment).mT).mT
