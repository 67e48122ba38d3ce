"""How widely does each head spread its attention?

Of the row of query ``t``, which sees ``i = t + 1`` keys, with weights ``a`` that sum to 1; rows that see one key are left out:

    entropy              H = -sum a ln a, nats         0 .. ln i    uniform: mean ln i   (``patterns.attention_entropy``)
    normalised_entropy   H / ln i                      0 .. 1       uniform: 1           causal rows have different ceilings
    effective_keys       exp H                         1 .. i       uniform: mean i
    max_weight           max a                         1/i .. 1     uniform: mean 1/i
    gini                 sum_k (2k - i - 1) a_(k) / i  0 .. 1-1/i   uniform: 0           a_(k) ascending
    sink_mass            a on position 0               0 .. 1       uniform: mean 1/i    (``patterns.first_token_score``)

each averaged over the rows of a sequence, then over sequences. Beside them stands their value under uniform attention on as many
positions, which is exact. Zero weights add nothing to H; Tian et al.'s code adds 1e-8 inside the logarithm, which changes H by
less than 1e-6.

Source: Tian et al. 2023 ("Scan and Snap"), section 7; Zhai et al. 2023, entropy per head; Xiao et al. 2024, sinks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.patterns import check_pattern, uniform_pattern
from circuits.models.protocol import check_finite, check_model, check_tokens, device_of, model_hash, pattern_name, undisturbed
from circuits.results import array_hash, labelled, mean_and_stderr

STATISTICS = ("entropy", "normalised_entropy", "effective_keys", "max_weight", "gini", "sink_mass")
UNITS = "nats, 1, keys, attention mass, 1, attention mass"

EXAMPLES = 16
"""Sequences that are read together."""
SHORTEST = 2
"""Tokens of a sequence in which a query sees more than one key."""


def gini(pattern: Float[Tensor, "example head query key"]) -> Float[Tensor, "example head query"]:
    """How unequal the weights of the visible keys are, of every causal row.

    ``G = sum_k (2k - i - 1) a_(k) / i`` over the ``i`` visible keys, weights ascending, summing to 1.

    Args:
        pattern: causal attention after softmax.

    Returns:
        From 0 (uniform) to ``1 - 1/i`` (one key has all); 0 for a row that sees one key. A worked value: weights .1, .2, .7
        have (-2 * .1 + 0 * .2 + 2 * .7) / 3 = .4.

    Source: Gini 1912, for weights that sum to 1.
    """
    length = pattern.shape[-1]
    place = torch.arange(1, length + 1, dtype=pattern.dtype, device=pattern.device)
    # The hidden keys have weight 0 and sort first: the visible ones hold places length - i + 1 .. length of the whole row.
    ranked = 2 * torch.einsum("ehqk,k->ehq", pattern.sort(-1).values, place)
    return (ranked - (2 * length - place + 1)) / place


def spread_scores(pattern: Float[Tensor, "example head query key"]) -> dict[str, Float[Tensor, "example head"]]:
    """The statistics of one layer's attention by sequence, in the order of ``STATISTICS``; definitions in the module.

    Args:
        pattern: causal attention after softmax, at least two positions.

    Returns:
        ``{statistic: [example, head]}``, means over the rows that see more than one key.

    Raises:
        TypeError, ValueError: not attention after softmax.

    Source: Tian et al. 2023; see the module.
    """
    check_pattern(pattern)
    keys = torch.arange(1, pattern.shape[-1] + 1, dtype=pattern.dtype, device=pattern.device)[1:]
    H = torch.special.entr(pattern[:, :, 1:]).sum(-1)  # by row, since exp and division come before the mean
    return {
        "entropy": H.mean(-1),
        "normalised_entropy": (H / keys.log()).mean(-1),
        "effective_keys": H.exp().mean(-1),
        "max_weight": pattern[:, :, 1:].amax(-1).mean(-1),
        "gini": gini(pattern)[:, :, 1:].mean(-1),
        "sink_mass": pattern[:, :, 1:, 0].mean(-1),  # first_token_score, without its rounding to float32
    }


@dataclass(frozen=True)
class AttentionSpread:
    """How widely every head spreads its attention: ``Dataset(layer, head, statistic)``.

    Args:
        tokens: ``[example, pos]``, position 0 the one whose mass is ``sink_mass``, e.g. ``run.evaluation["code"]``. An error
            needs two sequences or more.
    """

    tokens: Int[Tensor, "example pos"] = field(compare=False)
    name: str = field(default="attention_spread", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_tokens(self.tokens, d_vocab=2**31, n_ctx=2**31, min_length=SHORTEST, needed_by="the spread of attention")

    def spec(self) -> dict[str, Any]:
        return {"tokens": array_hash(self.tokens.cpu())}

    def __call__(self, model: Any) -> Any:
        """Measure a model, in evaluation mode whatever its own; it is left as found.

        Returns:
            ``value``, ``stderr`` over sequences (NaN for one), both ``(layer, head, statistic)``, and ``chance [statistic]``,
            exact, under uniform attention.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, or tokens that do not fit it.
        """
        tokens = fitting(model, self.tokens, "the spread of attention")
        found = [
            np.stack([[scores[name].double().cpu() for name in STATISTICS] for scores in layers])
            for layers in layer_patterns(model, tokens, spread_scores)
        ]
        value, stderr = mean_and_stderr(np.concatenate(found, axis=2), axis=2)  # [layer, statistic, head]
        uniform = spread_scores(uniform_pattern(tokens.shape[1]))
        dims = ("layer", "head", "statistic")
        return labelled(
            {
                "value": (dims, value.swapaxes(1, 2)),
                "stderr": (dims, stderr.swapaxes(1, 2)),
                "chance": (dims[2:], [float(uniform[name]) for name in STATISTICS]),
            },
            {"layer": np.arange(len(value)), "head": np.arange(value.shape[2]), "statistic": list(STATISTICS)},
            measure=self,
            definition="spread of attention rows that see more than one key; see circuits.detectors.attention_spread",
            source="Tian et al. 2023; Zhai et al. 2023",
            model_hash=model_hash(model),
            data_hash=array_hash(self.tokens.cpu()),
            n_examples=len(tokens),
            units=UNITS,
            null="none: chance is uniform attention, exact",
        )


def fitting(model: Any, tokens: Int[Tensor, "example pos"], needed_by: str) -> Int[Tensor, "example pos"]:
    """The tokens on the model's device, after a look at both.

    Raises:
        TypeError, ValueError: not a hooked model, NaN weights, or tokens that do not fit it.
    """
    check_model(model)
    check_finite(model)
    check_tokens(tokens, d_vocab=model.cfg.d_vocab, n_ctx=model.cfg.n_ctx, min_length=SHORTEST, needed_by=needed_by)
    return tokens.to(device_of(model))


def layer_patterns(model: Any, tokens: Int[Tensor, "example pos"], make: Callable[[Tensor], Any]) -> Iterator[list[Any]]:
    """What ``make`` gives of every layer's pattern, a list by layer for each batch of ``EXAMPLES``; no pattern is kept."""
    for part in tokens.split(EXAMPLES):
        made: list[Any] = []

        def look(pattern: Tensor, hook: Any, made: list[Any] = made) -> None:
            made.append(make(pattern))

        hooks = [(pattern_name(layer), look) for layer in range(model.cfg.n_layers)]
        with undisturbed(model), model.hooks(fwd_hooks=hooks):
            model(part)
        yield made
