"""How much of in-context learning passes through each head: the in-context-learning score with the head ablated.

The score is late minus early loss (``detectors/in_context.py``; negative where context helps), so a head that in-context learning
needs makes it rise, towards 0. Since the score also improves where only early predictions get worse, the change of both windows
stands beside it (Olsson et al. 2022, footnote 17). What to compare with: the other heads of the layer, and heads whose ablation
costs as much on the whole; ``z_layer`` is the distance from the median of the layer's other heads in their robust standard
deviations (1.4826 median absolute deviations).

Source: Olsson et al. 2022, argument 3; they use pattern-preserving ablation.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from circuits.detectors.in_context import early_and_late, in_context_learning_score
from circuits.models.effects import head_effects
from circuits.models.interventions import Ablation
from circuits.models.protocol import check_finite, check_model, check_tokens, model_hash
from circuits.results import array_hash, labelled, mean_and_stderr


@dataclass(frozen=True)
class InContextAblation:
    """The change of the in-context-learning score when each head is ablated: ``Dataset(layer, head)``, nats.

    Args:
        tokens: text ``[example, pos]``, BOS first, or repeated random tokens.
        ablation: a name of ``ABLATIONS``, or an ``Ablation``.
    """

    tokens: Tensor = field(compare=False)
    ablation: str | Ablation = "pattern_preserving"
    name: str = field(default="in_context_ablation", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_tokens(self.tokens, d_vocab=2**31, n_ctx=2**31, min_length=16, needed_by="the in-context-learning score")
        if len(self.tokens) < 2:
            raise ValueError("one example has no standard error: pass two or more")
        object.__setattr__(self, "ablation", Ablation.named(self.ablation))

    def spec(self) -> dict[str, Any]:
        ablation = Ablation.named(self.ablation)
        how = [ablation.kind, ablation.patterns, ablation.norms, ablation.seed]
        return {"tokens": array_hash(self.tokens.cpu()), "ablation": how}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Dataset with dims ``layer, head``: ``value``, score with the head ablated less the clean score (nats; positive:
            in-context learning is lost; 0 is chance), ``stderr`` over examples, ``early`` and ``late``, the changes of the two
            windows' losses, with their errors, ``loss``, the change of the mean loss, ``z_layer``; ``clean``, the score of the
            whole model, with ``clean_stderr``.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, or tokens that do not fit it.
        """
        check_model(model)
        check_finite(model)
        check_tokens(self.tokens, d_vocab=model.cfg.d_vocab, n_ctx=model.cfg.n_ctx, needed_by="the in-context-learning score")
        parts: dict[str, list[np.ndarray]] = {name: [] for name in ("clean", "value", "early", "late", "loss")}
        for batch in head_effects(model, self.tokens, Ablation.named(self.ablation), direct=False):
            clean = in_context_learning_score(batch.loss)
            ablated = (batch.loss + batch.total).flatten(0, -2)  # every head's examples, one below the other
            shape = batch.total.shape[:-1]
            parts["clean"].append(clean.double().numpy())
            parts["value"].append((in_context_learning_score(ablated).view(shape) - clean).double().numpy())
            for name, change in zip(("early", "late"), early_and_late(batch.total.flatten(0, -2)), strict=True):
                parts[name].append(change.view(shape).double().numpy())
            parts["loss"].append(batch.total.mean(-1).double().numpy())
        sampled = {name: np.concatenate(x, axis=-1) for name, x in parts.items()}
        dims = ("layer", "head")
        variables: dict[str, tuple[tuple[str, ...], Any]] = {"chance": ((), 0.0)}
        for name, samples in sampled.items():
            mean, stderr = mean_and_stderr(samples, axis=-1)
            which = () if name == "clean" else dims
            variables[name] = (which, mean)
            variables["stderr" if name == "value" else f"{name}_stderr"] = (which, stderr)
        variables["z_layer"] = (dims, z_among_others(np.asarray(variables["value"][1])))
        return labelled(
            variables,
            {"layer": np.arange(model.cfg.n_layers), "head": np.arange(model.cfg.n_heads)},
            measure=self,
            definition="in-context-learning score (late - early loss) with the head ablated, less the clean one",
            source="Olsson et al. 2022, argument 3; windows of circuits.detectors.in_context",
            model_hash=model_hash(model),
            data_hash=array_hash(self.tokens.cpu()),
            n_examples=len(self.tokens),
            units="nats",
        )


def z_among_others(value: Float[np.ndarray, "layer head"]) -> Float[np.ndarray, "layer head"]:
    """Distance of each head from the median of the other heads of its layer, in their robust standard deviations."""
    out = np.full(value.shape, np.nan)
    for layer, head in np.ndindex(*value.shape):
        others = np.delete(value[layer], head)
        if len(others) < 2:
            continue
        middle = np.median(others)
        with np.errstate(divide="ignore", invalid="ignore"):
            out[layer, head] = (value[layer, head] - middle) / (1.4826 * np.median(np.abs(others - middle)))
    return out
