"""Does a head's attention to induction targets do anything? Cut it, and see what repeated tokens cost.

On random tokens repeated once, at many lags (the battery of ``detectors/attention.py``), take the query rows ``i`` that have a
target, the key ``j`` with ``x[j - 1] = x[i]``, and whose next token is what stands there, ``x[i + 1] = x[j]``. The head's
attention on its targets is set to zero and the rest of each row scaled to sum to 1, which is what scores of minus infinity do;
the head's output follows, and later layers with it. The effect is the loss of ``x[i + 1]`` with the cut less the clean loss, in
nats: how much of what induction could give passes through this attention. In the control as many other keys of the same rows,
drawn at random (BOS aside), are cut in place of the targets. Scaling a row up amplifies what else the head attends to, so
beside it stands ``removed``: what the targets bring is taken out of the head's output, and the rest of the row stays as it was.

Source: attention knock-out of the induction entries (Crosbie and Shutova 2024); the control ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.detectors.attention import AttentionScores
from circuits.models.effects import batch_size, effects_of
from circuits.models.interventions import recorded
from circuits.models.patterns import induction_mask
from circuits.models.protocol import check_finite, check_model, device_of, model_hash, pattern_name, value_name
from circuits.results import array_hash, labelled, mean_and_stderr


@dataclass(frozen=True)
class InductionCut:
    """What cutting each head's attention to induction targets costs: ``Dataset(layer, head)``, nats.

    Args:
        examples, groups, seed, ids: of the repeated tokens, as in ``AttentionScores``.
    """

    examples: int = 32
    groups: int = 8
    seed: int = 0
    ids: Sequence[int] | np.ndarray | Tensor | None = None
    name: str = field(default="induction_cut", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", self._battery().ids)

    def _battery(self) -> AttentionScores:
        return AttentionScores(examples=self.examples, groups=self.groups, seed=self.seed, ids=self.ids, null_seeds=0)

    def spec(self) -> dict[str, Any]:
        ids = None if self.ids is None else array_hash(np.asarray(self.ids))
        return {"examples": self.examples, "groups": self.groups, "seed": self.seed, "ids": ids}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Dataset with dims ``layer, head``: ``value``, the mean cost of the cut (nats; 0 is chance), ``stderr`` over examples,
            ``removed`` and ``removed_stderr``, ``control`` and ``control_stderr`` (other keys cut), ``chance`` 0, and
            ``difference`` with ``difference_stderr`` and ``z``, of value less control, paired by example; ``untouched``, the
            clean loss of the same tokens.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, a context or vocabulary too small.
        """
        check_model(model)
        check_finite(model)
        tokens = self._battery().tokens_for(model.cfg.n_ctx, model.cfg.d_vocab).lags.to(device_of(model))
        target = induction_mask(tokens)
        other = other_keys(target, seed=self.seed)
        rows = completed_rows(tokens, target)
        found: dict[str, list[Tensor]] = {"value": [], "removed": [], "control": [], "clean": []}
        for part in torch.arange(len(tokens), device=tokens.device).split(batch_size(model)):
            names = [name(layer) for layer in range(model.cfg.n_layers) for name in (pattern_name, value_name)]
            kept = recorded(model, tokens[part], names)
            for name, mask in (("value", target), ("removed", target), ("control", other)):
                scaled = name != "removed"
                cuts = [cut(kept[a], kept[b], mask[part], scaled=scaled) for a, b in zip(names[::2], names[1::2], strict=True)]
                put = torch.stack(cuts)
                clean, total, _ = effects_of(model, tokens[part], put, direct=False)
                found[name].append(_mean_over(total, rows[part]))
            found["clean"].append(_mean_over(clean, rows[part]))
        sampled = {name: torch.cat(parts, -1).movedim(-1, 0).double().cpu().numpy() for name, parts in found.items()}
        value, stderr = mean_and_stderr(sampled["value"])
        removed, removed_stderr = mean_and_stderr(sampled["removed"])
        control, control_stderr = mean_and_stderr(sampled["control"])
        difference, difference_stderr = mean_and_stderr(sampled["value"] - sampled["control"])
        with np.errstate(divide="ignore", invalid="ignore"):
            z = difference / difference_stderr
        dims = ("layer", "head")
        columns = {
            "value": value, "stderr": stderr, "removed": removed, "removed_stderr": removed_stderr,
            "control": control, "control_stderr": control_stderr,
            "difference": difference, "difference_stderr": difference_stderr, "z": z,
        }  # fmt: skip
        return labelled(
            {name: (dims, x) for name, x in columns.items()}
            | {"chance": ((), 0.0), "untouched": ((), float(sampled["clean"].mean()))},
            {"layer": np.arange(model.cfg.n_layers), "head": np.arange(model.cfg.n_heads)},
            measure=self,
            definition="loss of repeated tokens with the head's attention to induction targets cut, less the clean loss",
            source="Crosbie and Shutova 2024, attention knock-out; control of random other keys ours",
            model_hash=model_hash(model),
            data_hash=array_hash(tokens.cpu()),
            n_examples=len(tokens),
            seed=self.seed,
            units="nats",
        )


def completed_rows(
    tokens: Int[Tensor, "example pos"], target: Bool[Tensor, "example query key"]
) -> Bool[Tensor, "example pos_minus_1"]:
    """Rows with an induction target that holds the next token."""
    return (target[:, :-1] & (tokens[:, None, :] == tokens[:, 1:, None])).any(-1)


def other_keys(mask: Bool[Tensor, "example query key"], *, seed: int) -> Bool[Tensor, "example query key"]:
    """As many other keys of each row, drawn at random up to the query, BOS aside; fewer where there are not so many."""
    keys = torch.arange(mask.shape[-1], device=mask.device)
    allowed = ~mask & (keys >= 1) & (keys <= keys[:, None])
    drawn = torch.from_numpy(np.random.default_rng([seed, 31]).random(mask.shape)).to(mask.device)
    rank = torch.where(allowed, drawn, 2.0).argsort(-1).argsort(-1)
    return allowed & (rank < mask.sum(-1, keepdim=True))


def cut(
    pattern: Float[Tensor, "batch head query key"],
    value: Float[Tensor, "batch pos head d_head"],
    mask: Bool[Tensor, "batch query key"],
    *,
    scaled: bool = True,
) -> Float[Tensor, "batch pos head d_head"]:
    """A head's output with its attention on masked keys taken away and, if ``scaled``, each row made to sum to 1 again.

    A row that attends to nothing else gathers nothing, as scores of minus infinity everywhere would give.
    """
    left = pattern.masked_fill(mask[:, None], 0.0)
    if scaled:
        left = left / left.sum(-1, keepdim=True).clamp_min(1e-30)
    return (left @ value.transpose(1, 2)).transpose(1, 2)


def _mean_over(
    effect: Float[Tensor, "*head example query"], rows: Bool[Tensor, "example query"]
) -> Float[Tensor, "*head example"]:
    return (effect * rows).sum(-1) / rows.sum(-1).clamp_min(1)
