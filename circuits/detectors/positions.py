"""What do positions bring? The loss with position embeddings taken out, less the loss with them.

    zero   the embedding of every position is 0
    mean   every position has the mean embedding of the positions read: what is common to all is kept, only the order is gone

In a standard model this takes positions out of the residual stream, in a shortformer model out of every query and key.
Nats per token, positive where positions help; 0 by chance. Rotary positions are no embedding and are not taken out here.

Source: Hoogland et al. 2024, loss with the positional embedding ablated (theirs is zero).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.detectors.in_context import loss_per_token
from circuits.models.hooked import HookedTransformer
from circuits.models.own import own
from circuits.models.protocol import check_finite, check_model, check_tokens, model_hash, pos_embed_name
from circuits.results import array_hash, labelled, mean_and_stderr

KINDS = ("zero", "mean")
EMBEDDED = ("standard", "shortformer")
NO_EMBEDDING = "no position embedding"


@dataclass(frozen=True)
class PositionAblation:
    """What ablating position embeddings costs, per corpus: ``Dataset(corpus, kind)``.

    Args:
        tokens: ``{corpus: [example, pos]}`` with BOS first, e.g. ``run.evaluation``.
    """

    tokens: Mapping[str, Tensor] = field(compare=False)
    name: str = field(default="position_ablation", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, Mapping) or not self.tokens:
            raise ValueError("no tokens were given; pass {'corpus name': tokens [example, pos]}, e.g. run.evaluation")
        for corpus, tokens in self.tokens.items():
            check_tokens(tokens, d_vocab=2**31, n_ctx=2**31, min_length=2, needed_by=f"position ablation on {corpus!r}")

    def spec(self) -> dict[str, Any]:
        return {corpus: array_hash(tokens.cpu()) for corpus, tokens in self.tokens.items()}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Nats with standard errors over examples: ``value [corpus, kind]``, ablated minus clean loss, chance 0, and the clean
            ``loss [corpus]``. ``state`` is ``ok``, or ``no position embedding`` for rotary positions and none, where
            ``value`` is NaN.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, one that cannot be represented, or tokens that do not fit it.
        """
        check_model(model)
        check_finite(model)
        for corpus, tokens in self.tokens.items():
            check_tokens(tokens, d_vocab=model.cfg.d_vocab, n_ctx=model.cfg.n_ctx, needed_by=f"position ablation on {corpus!r}")
        ours = own(model)
        has_any = ours.cfg.positional_embedding_type in EMBEDDED
        cost, clean = [], []
        for tokens in self.tokens.values():
            loss = loss_per_token(ours, tokens).mean(1)
            clean.append(mean_and_stderr(loss))
            without = [loss_without_positions(ours, tokens, kind) - loss if has_any else loss * np.nan for kind in KINDS]
            cost.append([mean_and_stderr(x) for x in without])
        grid, each = ("corpus", "kind"), ("corpus",)
        return labelled(
            {
                "value": (grid, [[m for m, _ in row] for row in cost]),
                "stderr": (grid, [[e for _, e in row] for row in cost]),
                "chance": ((), 0.0),
                "loss": (each, [m for m, _ in clean]),
                "loss_stderr": (each, [e for _, e in clean]),
                "state": ((), "ok" if has_any else NO_EMBEDDING),
            },
            {"corpus": list(self.tokens), "kind": list(KINDS)},
            measure=self,
            definition="loss with position embeddings ablated (zero, or their mean over positions) - loss",
            source="Hoogland et al. 2024, positional embedding ablated",
            model_hash=model_hash(model),
            data_hash=array_hash(*(t.cpu() for t in self.tokens.values())),
            units="nats",
        )


def loss_without_positions(model: HookedTransformer, tokens: Int[Tensor, "example pos"], kind: str) -> Float[Tensor, "example"]:
    """Mean loss of each example with position embeddings ablated; ``kind`` is one of ``KINDS``."""

    def ablate(pos: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(pos) if kind == "zero" else pos.mean(1, keepdim=True).expand_as(pos)

    with model.hooks(fwd_hooks=[(pos_embed_name(), ablate)]):
        return loss_per_token(model, tokens).mean(1)
