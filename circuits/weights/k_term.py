"""Which pairs of heads match through what the earlier one moved: the K-term's copying statistic of every pair, with its null.

The statistic is that of ``circuits.weights.spectra``; +1 is a head that attends to a key behind a copy of its own token. In the
null both heads of the pair are random (``circuits.weights.random_heads``).

Source: Elhage et al. 2021, "How induction heads work".
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from circuits.models.protocol import model_hash
from circuits.results import digest, labelled
from circuits.weights.folded import FoldedWeights, folded
from circuits.weights.random_heads import NULL, beside, check_null, random_heads, remembered, smallest_p
from circuits.weights.spectra import copying_statistic, k_composition_copying, k_term_factors, nonzero_eigenvalues


@dataclass(frozen=True)
class KTermCopying:
    """The copying statistic of the K-term of every pair of heads: ``Dataset(src_layer, src_head, dst_layer, dst_head)``.

    Args:
        null_seeds: random pairs of heads behind the null; 0 leaves it out (NaN). seed: of them.
    """

    null_seeds: int = 199
    seed: int = 0
    name: str = field(default="k_term_copying", init=False)
    version: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        check_null(self.null_seeds, self.seed)

    def spec(self) -> dict[str, Any]:
        return {"null_seeds": self.null_seeds, "seed": self.seed}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Dataset with dims ``src_layer, src_head, dst_layer, dst_head``: ``value`` in [-1, 1], ``stderr`` (NaN: there is
            none), ``null_mean``, ``null_sd``, ``z``, ``p`` (two-sided, empirical) and ``state``: ok, zero (the pair's
            K-term has no nonzero eigenvalue; its value is 0) or missing (the source is not in an earlier layer: NaN).

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, a model that cannot be represented.
        """
        w = folded(model)
        layers, heads = w.W_V.shape[:2]
        value = np.full((layers, heads, layers, heads), np.nan)
        zero = np.zeros(value.shape, dtype=bool)
        for layer in range(1, layers):
            for head in range(heads):
                term = k_term_factors(w.W_V[:layer], w.W_O[:layer], w.W_Q[layer, head], w.W_K[layer, head], w.C)
                found = nonzero_eigenvalues(*term)
                value[:layer, :, layer, head] = copying_statistic(found).numpy()
                zero[:layer, :, layer, head] = ~(found != 0).any(-1).numpy()
        identity, null = model_hash(model), None
        if self.null_seeds:
            key = digest([self.name, self.spec(), identity])
            null = remembered(key, lambda: {"value": self._null(w)})["value"]
        dims = ("src_layer", "src_head", "dst_layer", "dst_head")
        variables = {name: (dims, found) for name, found in beside(value, null).items()}
        state = np.where(np.isnan(value), "missing", np.where(zero, "zero", "ok"))
        return labelled(
            {
                "value": variables.pop("value"),
                "stderr": (dims, np.full_like(value, np.nan)),
                **variables,
                "state": (dims, state),
            },
            {dim: np.arange(layers if "layer" in dim else heads) for dim in dims},
            measure=self,
            definition="Re(sum of eigenvalues) / sum of moduli of W_E W_Q^l (W_E W_V^e W_O^e W_K^l)^T, norms folded",
            source="Elhage et al. 2021, How induction heads work",
            model_hash=identity,
            seed=self.seed,
            stderr="none: a function of the weights alone",
            null=f"both heads are {NULL}" if self.null_seeds else "none asked for",
            smallest_p=smallest_p(self.null_seeds),
        )

    def _null(self, w: FoldedWeights) -> np.ndarray:
        """The statistic of pairs of random heads, ``[sample, 1, 1, 1, 1]``."""
        pairs = random_heads(w, self.null_seeds, (self.seed, 24), "W_V", "W_O", "W_Q", "W_K")
        copying = [k_composition_copying(W_V, W_O, W_Q, W_K, w.C) for W_V, W_O, W_Q, W_K in pairs]
        return torch.cat(copying).numpy()[:, None, None, None, None]
