"""A model in our own class, where its weights are to be read or its layers rearranged."""

from typing import Any

from circuits.models.hooked import HookedTransformer
from circuits.models.protocol import check_model


def own(model: Any) -> HookedTransformer:
    """The model itself, or the same one in our class; see ``circuits.from_transformer_lens``.

    Raises:
        TypeError: not a hooked model. ValueError: one that cannot be represented.
    """
    check_model(model)
    if isinstance(model, HookedTransformer):
        return model
    from circuits.models.convert import from_transformer_lens

    return from_transformer_lens(model)
