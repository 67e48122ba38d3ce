"""The loss of single tokens in context: the same ones at every checkpoint, so that their histories can be laid side by side.

Of every example some positions are drawn, once and for all models; the loss of the token there is its next-token cross-entropy in
nats, given all before it. Over checkpoints this is a vector that moves, whose principal components are ``loss_pca``'s.

Source: Olsson et al. 2022, "Per-token loss analysis" (one random token of each of 10,000 examples).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from circuits.detectors.in_context import loss_per_token
from circuits.models.protocol import check_finite, check_model, check_tokens, model_hash
from circuits.results import array_hash, check_whole, labelled


@dataclass(frozen=True)
class TokenLosses:
    """The loss of some tokens of every example: ``Dataset(token)``.

    Args:
        tokens: ``{corpus: [example, pos]}`` with BOS first, e.g. ``run.evaluation``.
        kept: how many tokens of each example, at different positions. seed: of the positions.
    """

    tokens: Mapping[str, Tensor] = field(compare=False)
    kept: int = 1
    seed: int = 0
    name: str = field(default="token_losses", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_whole("kept", self.kept, 1)
        check_whole("seed", self.seed, 0)
        if not isinstance(self.tokens, Mapping) or not self.tokens:
            raise ValueError("no tokens were given; pass {'corpus name': tokens [example, pos]}, e.g. run.evaluation")
        for corpus, tokens in self.tokens.items():
            needed = f"{self.kept} losses of each example of {corpus!r}"
            check_tokens(tokens, d_vocab=2**31, n_ctx=2**31, min_length=self.kept + 1, needed_by=needed)

    def spec(self) -> dict[str, Any]:
        return {
            "tokens": {corpus: array_hash(tokens.cpu()) for corpus, tokens in self.tokens.items()},
            "kept": self.kept,
            "seed": self.seed,
        }

    def positions(self) -> dict[str, Int[Tensor, "_ _"]]:
        """Positions of the predicted tokens, ``[example, kept]``, ascending, from 1 on; by corpus, each with its own stream."""
        places = {}
        for number, (corpus, tokens) in enumerate(self.tokens.items()):
            rng = np.random.default_rng([self.seed, 41, number])
            drawn = [np.sort(1 + rng.permutation(tokens.shape[1] - 1)[: self.kept]) for _ in range(len(tokens))]
            places[corpus] = torch.from_numpy(np.stack(drawn))
        return places

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            ``value [token]`` in nats, with coordinates ``corpus``, ``example``, ``pos`` (of the predicted token) and ``id``
            (which token that is). The loss of one token is a number without a sampling error; ``loss_pca`` has errors over
            tokens. ``chance`` is ``log d_vocab``.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, or tokens that do not fit it.
        """
        check_model(model)
        check_finite(model)
        for corpus, tokens in self.tokens.items():
            check_tokens(
                tokens, d_vocab=model.cfg.d_vocab, n_ctx=model.cfg.n_ctx, needed_by=f"the losses of tokens of {corpus!r}"
            )
        where: dict[str, list[np.ndarray]] = {name: [] for name in ("corpus", "example", "pos", "id")}
        losses = []
        for corpus, places in self.positions().items():
            tokens = self.tokens[corpus].long()
            losses.append(loss_per_token(model, tokens).gather(1, places - 1).flatten())
            where["corpus"].append(np.repeat(corpus, places.numel()))
            where["example"].append(np.repeat(np.arange(len(places)), self.kept))
            where["pos"].append(places.flatten().numpy())
            where["id"].append(tokens.cpu().gather(1, places).flatten().numpy())
        coords = {name: ("token", np.concatenate(parts)) for name, parts in where.items()}
        value = torch.cat(losses).double().numpy()
        return labelled(
            {"value": (("token",), value), "chance": ((), np.log(model.cfg.d_vocab))},
            {"token": np.arange(len(value)), **coords},
            measure=self,
            definition="cross-entropy of one token given those before it; positions drawn once for all models",
            source="Olsson et al. 2022, per-token loss analysis",
            model_hash=model_hash(model),
            data_hash=array_hash(*(t.cpu() for t in self.tokens.values())),
            seed=self.seed,
            units="nats",
            stderr="none: the loss of one token; errors over tokens are loss_pca's",
        )
