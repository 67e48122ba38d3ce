"""How many directions does a matrix use, weighted by how much? Stable rank of every head's circuits and every MLP's input.

    sr(W) = ||W||_F^2 / ||W||_2^2 = sum of squared singular values / the largest of them,     1 <= sr(W) <= rank W

of ``W_QK = W_Q W_K^T`` and ``W_OV = W_V W_O``, norms folded (``circuits.weights.folded``), and of ``W_in`` as it stands, which
JoMA measures on pretrained models; or of what they gained since a reference model. It does not depend on scale, and small
singular values add little, unlike to the rank. The null is random matrices: Gaussian factors of the same shapes, whose product
has sr well below its rank, since products of random matrices have uneven spectra.

Source: Tian et al. 2024 (JoMA), stable rank of MLP lower matrices; Rudelson & Vershynin 2007 for the name.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.models.own import own
from circuits.models.protocol import check_model, model_hash
from circuits.results import labelled
from circuits.weights.factored import product_singular_values
from circuits.weights.folded import FoldedWeights, folded
from circuits.weights.random_heads import beside, check_null, random_heads, smallest_p

CIRCUITS = ("W_QK", "W_OV")
NEGLIGIBLE = 1e-10


def stable_rank(singular_values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """``sum s^2 / max s^2`` of matrices given by their singular values.

    Args:
        singular_values: of each matrix, in any order; zeros change nothing.

    Returns:
        From 1 (one direction) to the rank (all equal); 0 for a zero matrix. A worked value: 2, 1, 1 give 6 / 4 = 1.5.

    Source: Tian et al. 2024 (JoMA); Rudelson & Vershynin 2007.
    """
    squares = singular_values.square()
    largest = squares.amax(-1)
    return squares.sum(-1) / torch.where(largest > 0, largest, 1.0)


@dataclass(frozen=True)
class StableRank:
    """Stable ranks of heads and MLPs: ``Dataset(layer, head, component)``, and ``mlp (layer,)`` where there are MLPs.

    Args:
        reference: a model of the same shape, e.g. a run's first checkpoint, whose matrices are taken off. None: nothing is.
        null_seeds: random matrices behind the null; 0 leaves it out (NaN). seed: of these.
    """

    reference: Any = field(default=None, compare=False)
    null_seeds: int = 199
    seed: int = 0
    name: str = field(default="stable_rank", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_null(self.null_seeds, self.seed)
        if self.reference is not None:
            check_model(self.reference)

    def spec(self) -> dict[str, Any]:
        reference = None if self.reference is None else model_hash(self.reference)
        return {"reference": reference, "null_seeds": self.null_seeds, "seed": self.seed}

    def __call__(self, model: Any) -> Any:
        """Measure a model, which is left as found.

        Returns:
            ``(layer, head, component)``, components ``W_QK`` and ``W_OV``: ``value`` (1 to d_head; to twice that with a
            reference; 0 for a zero matrix), ``stderr`` (NaN: functions of the weights alone), ``null_mean``, ``null_sd``, ``z``,
            ``p`` (two-sided, empirical). With MLPs, the same of ``W_in`` by layer as ``mlp``, ``mlp_null_mean``, ...

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, or a reference of another shape.
        """
        w = folded(model)
        base = None if self.reference is None else folded(self.reference)
        if base is not None and base.W_Q.shape != w.W_Q.shape:
            raise ValueError(
                f"the reference has heads of shape {tuple(base.W_Q.shape)} and the model {tuple(w.W_Q.shape)}: pass a checkpoint "
                "of the same run"
            )
        value = torch.stack([_of_product(*factors) for factors in _circuits(w, base)], -1).numpy()
        columns = beside(value, self._null(w))
        dims = ("layer", "head", "component")
        variables: dict[str, Any] = {name: (dims, part) for name, part in columns.items()}
        variables["stderr"] = (dims, np.full_like(value, np.nan))
        if not w.cfg.attn_only:
            inputs = _mlp_inputs(model)
            inputs = inputs if self.reference is None else inputs - _mlp_inputs(self.reference)
            found = beside(stable_rank(torch.linalg.svdvals(inputs)).numpy(), self._mlp_null(inputs))
            variables |= {"mlp" if name == "value" else f"mlp_{name}": (dims[:1], part) for name, part in found.items()}
        return labelled(
            variables,
            {"layer": np.arange(value.shape[0]), "head": np.arange(value.shape[1]), "component": list(CIRCUITS)},
            measure=self,
            definition="||W||_F^2 / ||W||_2^2; heads with norms folded, W_in as it stands",
            source="Tian et al. 2024 (JoMA)",
            model_hash=model_hash(model),
            seed=self.seed,
            stderr="none: functions of the weights alone",
            null="Gaussian factors of the same shapes" if self.null_seeds else "none asked for",
            smallest_p=smallest_p(self.null_seeds),
        )

    def _null(self, w: FoldedWeights) -> np.ndarray | None:
        """Stable ranks of products of random factors, ``[sample, 1, 1, component]``; of a difference twice as many directions."""
        if not self.null_seeds:
            return None
        kinds = (("W_Q", "W_K"), ("W_V", "W_O"))
        found = [torch.cat(list(self._random(w, stream, *kind))) for stream, kind in enumerate(kinds)]
        return torch.stack(found, -1).numpy()[:, None, None]

    def _random(self, w: FoldedWeights, stream: int, left: str, right: str) -> Iterator[Float[Tensor, "sample"]]:
        parts = [
            random_heads(w, self.null_seeds, (self.seed, 50 + 2 * stream + of), left, right) for of in range(1 + self._differs)
        ]
        for drawn in zip(*parts, strict=True):
            pairs = [(one, w.writes(other) if right == "W_O" else other.mT) for one, other in drawn]
            yield _of_product(torch.cat([one for one, _ in pairs], -1), torch.cat([other for _, other in pairs], -2))

    @property
    def _differs(self) -> bool:
        return self.reference is not None

    def _mlp_null(self, inputs: Float[Tensor, "layer d_model d_mlp"]) -> np.ndarray | None:
        """Of Gaussian matrices: one and a difference of two have the same law up to scale."""
        if not self.null_seeds:
            return None
        rng = torch.Generator().manual_seed(int(np.random.SeedSequence((self.seed, 54)).generate_state(1)[0]))
        drawn = (torch.randn(inputs.shape[1:], generator=rng, dtype=torch.float64) for _ in range(self.null_seeds))
        return torch.stack([stable_rank(torch.linalg.svdvals(one)) for one in drawn]).numpy()[:, None]


def _of_product(left: Float[Tensor, "*batch m r"], right: Float[Tensor, "*batch r n"]) -> Float[Tensor, "*batch"]:
    """Stable ranks of products; 0 where only rounding keeps a product from 0, as of a model's difference from itself."""
    found = product_singular_values(left, right)
    size = torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(right)
    return stable_rank(torch.where(found > NEGLIGIBLE * size[..., None], found, 0.0))


def _circuits(w: FoldedWeights, base: FoldedWeights | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Factors of ``W_QK`` and ``W_OV`` as readers see what is written, or of differences: ``A B - C D = [A, -C] [B; D]``."""
    if base is None:
        yield w.W_Q, w.W_K.mT
        yield w.W_V, w.writes(w.W_O)
    else:
        yield torch.cat([w.W_Q, -base.W_Q], -1), torch.cat([w.W_K, base.W_K], -1).mT
        yield torch.cat([w.W_V, -base.W_V], -1), torch.cat([w.writes(w.W_O), base.writes(base.W_O)], -2)


def _mlp_inputs(model: Any) -> Float[Tensor, "layer d_model d_mlp"]:
    return torch.stack([block.mlp.W_in.detach().double().cpu() for block in own(model).blocks])
