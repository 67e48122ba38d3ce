"""Where was each head's attention on a fixed batch? Read at every checkpoint of a run, it says how fast a head moves.

The distance between a head's attention at two checkpoints on the same tokens is ``circuits.dynamics.snap``'s; here the attention
itself is kept on a small batch, in float16 (relative error 5e-4), and a sweep over a run lines it up by step.

Source: Tian et al. 2023 ("Scan and Snap"), figure 7.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from circuits.detectors.attention_spread import SHORTEST, fitting, layer_patterns
from circuits.models.patterns import uniform_pattern
from circuits.models.protocol import check_tokens, model_hash
from circuits.results import array_hash, labelled

LARGEST_PROBE = 2**26
"""Weights a probe may hold for each checkpoint: 128 MB in float16."""


@dataclass(frozen=True)
class AttentionProbe:
    """Every head's attention on a small fixed batch: ``Dataset(layer, head, example, query, key)`` in float16.

    Args:
        tokens: ``[example, pos]``. examples, length: the first so many sequences and positions are kept, fewer where there are
            no more; a sequence's first positions see no later ones, so their attention is that in the whole sequence.
    """

    tokens: Int[Tensor, "example pos"] = field(compare=False)
    examples: int = 4
    length: int = 64
    name: str = field(default="attention_probe", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_tokens(self.tokens, d_vocab=2**31, n_ctx=2**31, min_length=SHORTEST, needed_by="a probe of attention")
        sizes = (self.examples, self.length)
        if (
            not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
            or min(sizes) < 1
            or sizes[1] < SHORTEST
        ):
            raise ValueError(
                f"examples={self.examples!r}, length={self.length!r}: need whole numbers of at least 1 and {SHORTEST}"
            )

    @property
    def probe(self) -> Int[Tensor, "example pos"]:
        """The tokens that are read."""
        return self.tokens[: self.examples, : self.length]

    def spec(self) -> dict[str, Any]:
        return {"tokens": array_hash(self.probe.cpu())}

    def __call__(self, model: Any) -> Any:
        """Measure a model, in evaluation mode whatever its own; it is left as found.

        Returns:
            ``value``, attention mass in [0, 1], float16; rows sum to 1 to 1e-3. It is what the head does on these tokens and
            has no error; ``chance [query, key]`` is uniform attention.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, tokens that do not fit it, or a probe that is too large.
        """
        tokens = fitting(model, self.probe, "a probe of attention")
        size = model.cfg.n_layers * model.cfg.n_heads * tokens.numel() * tokens.shape[1]
        if size > LARGEST_PROBE:
            raise ValueError(
                f"the probe would hold {size:,} weights at each checkpoint, at most {LARGEST_PROBE:,} are kept: use fewer "
                "examples or a smaller length"
            )
        parts = [torch.stack(layers) for layers in layer_patterns(model, tokens, lambda pattern: pattern.half().cpu())]
        value = torch.cat(parts, dim=1).transpose(1, 2)  # [layer, head, example, query, key]
        dims = ("layer", "head", "example", "query", "key")
        return labelled(
            {
                "value": (dims, value.numpy()),
                "chance": (dims[3:], uniform_pattern(tokens.shape[1])[0, 0].to(torch.float16).numpy()),
            },
            {dim: np.arange(n) for dim, n in zip(dims, value.shape, strict=True)},
            measure=self,
            definition="attention after softmax on a fixed batch, float16",
            source="Tian et al. 2023; velocity of attention, circuits.dynamics.snap",
            model_hash=model_hash(model),
            data_hash=array_hash(self.probe.cpu()),
            n_examples=len(tokens),
            units="attention mass",
        )
