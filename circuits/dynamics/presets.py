"""What ``circuits train --preset`` trains, as validated objects."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, model_validator

from circuits.data.mixture import RepeatConfig
from circuits.models.config import HookedTransformerConfig, describe


class TrainConfig(BaseModel, frozen=True, extra="forbid"):
    """A training run: model, data, optimiser and checkpoint schedule.

    Attributes:
        data: ``"stdlib"`` (code and prose of the installed Python), or ``"file:PATH"`` / ``"hf:NAME"`` that the user names.
        steps, batch: length of the run; one step reads ``batch * n_ctx`` tokens.
        lr: constant after a linear warm-up of ``warmup`` steps, so that step counts and learning-rate time agree.
        log_checkpoints: checkpoints at 0 and powers of two up to ``linear_from``, then every ``every`` steps.
        save_every: steps between resumable states.
    """

    name: str
    model: HookedTransformerConfig
    data: str = "stdlib"
    seed: int = 0
    steps: int = 10_000
    batch: int = 32
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup: int = 100
    grad_clip: float | None = 1.0
    repeats: RepeatConfig = RepeatConfig()
    linear_from: int = 1024
    every: int = 125
    save_every: int = 250
    threads: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        for field in ("steps", "batch", "every", "save_every", "threads"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr}; it must be positive")
        for field in ("seed", "warmup", "linear_from", "weight_decay"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"{field} is {getattr(self, field)}; it must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; each must lie in [0, 1)")
        if self.grad_clip is not None and not 0 < self.grad_clip < math.inf:
            raise ValueError(f"grad_clip is {self.grad_clip}; it must be positive, or None for no clipping")
        return self

    def checkpoint_steps(self) -> list[int]:
        """Steps at which weights are kept: 0, 1, 2, 4, ..., then linear, and the last."""
        powers = [2**i for i in range(64) if 2**i <= min(self.linear_from, self.steps)]
        linear = range(-(-self.linear_from // self.every) * self.every, self.steps + 1, self.every)
        return sorted({0, *powers, *linear, self.steps})


def stdlib_model(n_layers: int) -> HookedTransformerConfig:
    return HookedTransformerConfig(
        n_layers=n_layers,
        d_model=128,
        n_heads=8,
        d_head=32,
        n_ctx=128,
        d_vocab=1024,
        attn_only=True,
        normalization_type="LN",
        positional_embedding_type="shortformer",
        positional_init="sinusoidal",
        seed=0,
    )


def paper_model() -> HookedTransformerConfig:
    """The 3.4M-parameter model of Wang et al. 2024 (arXiv 2410.02984): 3,355,016 parameters."""
    return HookedTransformerConfig(
        n_layers=2,
        d_model=256,
        n_heads=8,
        d_head=32,
        n_ctx=1024,
        d_vocab=5000,
        attn_only=True,
        normalization_type="LN",
        positional_embedding_type="shortformer",
        seed=1,
    )


def preset(name: str, **changes: Any) -> TrainConfig:
    """A named training configuration, with fields changed by keyword.

    Raises:
        ValueError: no such preset, or a change that does not validate.
    """
    presets: dict[str, dict[str, Any]] = {
        "stdlib-2l": {"model": stdlib_model(2)},
        "stdlib-1l": {"model": stdlib_model(1)},
        "paper-2l": {
            "model": paper_model(),
            "data": "",
            "steps": 50_000,
            "batch": 100,
            "lr": 1e-3,
            "weight_decay": 0.05,
            "warmup": 0,
            "grad_clip": None,
            "repeats": RepeatConfig(share=0.0),
            "every": 2000,
        },
    }
    if name not in presets:
        raise ValueError(f"there is no preset {name!r}; choose one of {', '.join(presets)}")
    try:
        return TrainConfig.model_validate({"name": name} | presets[name] | changes)
    except ValidationError as error:
        raise ValueError(f"training configuration: {describe(error)}") from error
