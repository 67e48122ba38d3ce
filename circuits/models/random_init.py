"""The random-init null: models of the same shape that never saw data."""

from collections.abc import Iterator
from typing import Any

from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import HookedTransformer

FIRST_SEED = 1_000_003
"""Far from the seeds of training runs, so that a null model is never a run's own step 0."""


def random_twins(cfg: HookedTransformerConfig, seeds: int) -> Iterator[HookedTransformer]:
    """Untrained models of this configuration, one for each seed, in ``eval()`` mode."""
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        yield HookedTransformer(cfg.model_copy(update={"seed": seed})).eval()


def config_of(model: Any) -> HookedTransformerConfig:
    """Our configuration of a hooked model, ours or transformer-lens'.

    Raises:
        ValueError: the model's configuration cannot be represented.
    """
    if isinstance(model.cfg, HookedTransformerConfig):
        return model.cfg
    from circuits.models.convert import from_transformer_lens

    return from_transformer_lens(model).cfg
