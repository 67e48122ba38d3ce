"""Loss along the context and over repeats: does a model use what it has read?

All losses are next-token cross-entropies in nats. The loss at context index ``t`` is that of predicting token ``t`` from
tokens ``0..t-1``. The in-context-learning score is *late minus early*, so negative means that a longer context helps
(the sign of Olsson et al. 2022's formula, ``loss(500) - loss(50)``; their text also states the opposite). In place of
two single positions, which short contexts do not have, two windows: early is ``[T/16, T/8)``, late is ``[3T/4, T)``. The
literal reading stands beside it where sequences are long enough, to be laid against published values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.data.tokens import check_ids, repeated_random_tokens, shuffle_second_copy
from circuits.models.hooked import HookedTransformer, next_token_loss
from circuits.models.protocol import check_finite, check_model, check_tokens, device_of, model_hash, undisturbed
from circuits.results import array_hash, labelled, mean_and_stderr

BATCH = 32
EARLY, LATE = 50, 500
"""The two context indices of Olsson et al.'s score."""


def loss_per_token(model: Any, tokens: Int[Tensor, "example pos"]) -> Float[Tensor, "example pos_minus_1"]:
    """Loss of predicting tokens 1.. of every sequence, in batches, without gradients."""
    with undisturbed(model):
        if isinstance(model, HookedTransformer):
            model.train()  # no dropout: the fused kernels' only key
        parts = [next_token_loss(model(part), part, per_token=True) for part in tokens.to(device_of(model)).split(BATCH)]
    return torch.cat(parts).cpu()


def in_context_learning_score(losses: Float[Tensor, "example pos_minus_1"]) -> Float[Tensor, "example"]:
    """Late minus early loss of each example, nats; 0 if context does not help. Source: Olsson et al. 2022, windows ours."""
    early, late = early_and_late(losses)
    return late - early


def early_and_late(
    losses: Float[Tensor, "example pos_minus_1"],
) -> tuple[Float[Tensor, "example"], Float[Tensor, "example"]]:
    """Mean loss of each example in the two windows of the score."""
    length = losses.shape[1] + 1
    early = losses[:, max(length // 16 - 1, 0) : max(length // 8 - 1, 1)].mean(1)
    return early, losses[:, 3 * length // 4 - 1 :].mean(1)


def literal_score(losses: Float[Tensor, "example pos_minus_1"]) -> Float[Tensor, "example"]:
    """``loss(500) - loss(50)`` of each example, nats; NaN where sequences have no 500th index. Source: Olsson et al. 2022."""
    if losses.shape[1] < LATE:
        return torch.full_like(losses[:, 0], torch.nan)
    return losses[:, LATE - 1] - losses[:, EARLY - 1]


@dataclass(frozen=True)
class LossCurves:
    """Loss at every context index for several corpora: ``Dataset(corpus, pos)`` and summaries ``(corpus,)``.

    Args:
        tokens: ``{corpus: [example, pos]}``, all of one length, BOS first.
    """

    tokens: Mapping[str, Tensor] = field(compare=False)
    name: str = field(default="loss_curves", init=False)
    version: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ValueError("no tokens were given; pass {'corpus name': tokens [example, pos]}, e.g. run.evaluation")
        for corpus, tokens in self.tokens.items():
            check_tokens(tokens, d_vocab=2**31, n_ctx=2**31, min_length=16, needed_by=f"the loss curve of {corpus!r}")
        if len({tokens.shape[1] for tokens in self.tokens.values()}) > 1:
            raise ValueError(f"sequences have {[t.shape[1] for t in self.tokens.values()]} tokens; cut all corpora to one length")

    def spec(self) -> dict[str, Any]:
        return {corpus: array_hash(tokens.cpu()) for corpus, tokens in self.tokens.items()}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Nats, each with a standard error over examples: ``value [corpus, pos]``, the loss of token ``pos``, by chance
            ``log d_vocab``; and by ``corpus`` its mean ``loss``, ``in_context_learning_score`` (late minus early window) and
            ``loss_500_minus_50`` (NaN for sequences of 500 tokens or fewer). Both scores are 0 where context does not help.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, or tokens that do not fit it.
        """
        check_model(model)
        check_finite(model)
        for corpus, tokens in self.tokens.items():
            check_tokens(tokens, d_vocab=model.cfg.d_vocab, n_ctx=model.cfg.n_ctx, needed_by=f"the loss curve of {corpus!r}")
        losses = {corpus: loss_per_token(model, tokens) for corpus, tokens in self.tokens.items()}
        per_pos = [mean_and_stderr(x) for x in losses.values()]
        overall = [mean_and_stderr(x.mean(1)) for x in losses.values()]
        score = [mean_and_stderr(in_context_learning_score(x)) for x in losses.values()]
        literal = [mean_and_stderr(literal_score(x)) for x in losses.values()]
        length = next(iter(self.tokens.values())).shape[1]
        grid, each = ("corpus", "pos"), ("corpus",)
        return labelled(
            {
                "value": (grid, [m for m, _ in per_pos]),
                "stderr": (grid, [e for _, e in per_pos]),
                "chance": ((), np.log(model.cfg.d_vocab)),
                "loss": (each, [m for m, _ in overall]),
                "loss_stderr": (each, [e for _, e in overall]),
                "in_context_learning_score": (each, [m for m, _ in score]),
                "in_context_learning_score_stderr": (each, [e for _, e in score]),
                "loss_500_minus_50": (each, [m for m, _ in literal]),
                "loss_500_minus_50_stderr": (each, [e for _, e in literal]),
                "n": (each, [len(x) for x in losses.values()]),
            },
            {"corpus": list(self.tokens), "pos": np.arange(1, length)},
            measure=self,
            definition="mean cross-entropy of token `pos` given those before it; in_context_learning_score = late - early",
            source="Olsson et al. 2022, section 2.1; windows of circuits.detectors.in_context",
            model_hash=model_hash(model),
            data_hash=array_hash(*(t.cpu() for t in self.tokens.values())),
            units="nats",
        )


@dataclass(frozen=True)
class RepeatLoss:
    """How much a repeat of random tokens lowers the loss: exact repeat against a shuffled second copy.

    On ``[BOS, r, r]``, *drop* = mean loss on the first copy - mean loss on the second (first token of each left out: it
    has no counterpart to learn from). ``value`` is drop(exact) - drop(second copy shuffled), in nats: what the *order*
    of the first copy gives, which is induction and not a preference for tokens already seen. Untrained models give 0;
    the largest possible value is about the loss on random tokens.

    Args:
        n: length of r. examples: sequences. seed: of the tokens. ids: ids to draw from (default: all but 0).
    """

    n: int = 50
    examples: int = 64
    seed: int = 0
    ids: Sequence[int] | np.ndarray | Tensor | None = None
    name: str = field(default="repeat_loss", init=False)
    version: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.n, int) and isinstance(self.examples, int)) or self.n < 2 or self.examples < 2:
            raise ValueError(f"n={self.n!r}, examples={self.examples!r}: need whole numbers of at least 2")
        if self.ids is not None:
            object.__setattr__(self, "ids", tuple(check_ids(self.ids).tolist()))

    def spec(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "examples": self.examples,
            "seed": self.seed,
            "ids": None if self.ids is None else array_hash(np.asarray(self.ids)),
        }

    def __call__(self, model: Any) -> Any:
        """Measure a model; ``value`` and ``stderr`` in nats, the two drops beside it, chance 0.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, or a context shorter than ``2 n + 1``.
        """
        check_model(model)
        check_finite(model)
        if 2 * self.n + 1 > model.cfg.n_ctx:
            raise ValueError(
                f"n = {self.n} makes {2 * self.n + 1} tokens, the model reads n_ctx = {model.cfg.n_ctx}: use a smaller n"
            )
        ids = model.cfg.d_vocab if self.ids is None else np.asarray(self.ids)
        repeats = repeated_random_tokens(ids, n=self.n, examples=self.examples, seed=self.seed)
        exact = self._drop(loss_per_token(model, repeats.tokens))
        shuffled = self._drop(loss_per_token(model, shuffle_second_copy(repeats, seed=self.seed)))
        variables: dict[str, tuple[tuple[str, ...], Any]] = {"chance": ((), 0.0)}
        named = {"": exact - shuffled, "drop_exact": exact, "drop_shuffled": shuffled}
        for label, samples in named.items():
            mean, stderr = mean_and_stderr(samples)
            variables[label or "value"] = ((), mean)
            variables[f"{label}_stderr" if label else "stderr"] = ((), stderr)
        return labelled(
            variables,
            {},
            measure=self,
            definition="drop(exact repeat) - drop(second copy shuffled), drop = loss on first copy - loss on second",
            source="Elhage et al. 2021 and Olsson et al. 2022, repeated random tokens; shuffled control ours",
            model_hash=model_hash(model),
            data_hash=array_hash(repeats.tokens),
            units="nats",
            n_examples=self.examples,
            seed=self.seed,
        )

    def _drop(self, losses: Float[Tensor, "example pos_minus_1"]) -> Float[Tensor, "example"]:
        first, second = losses[:, 1 : self.n], losses[:, self.n + 1 : 2 * self.n]
        return first.mean(1) - second.mean(1)
