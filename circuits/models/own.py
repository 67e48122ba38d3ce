"""A model in our own class, where its weights are to be read or its layers rearranged."""

from typing import Any

from circuits.models.hooked import HookedTransformer
from circuits.models.protocol import check_model, device_of


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


def bare(model: Any) -> HookedTransformer:
    """A model of ours on the same weights, to be rearranged at will: no hooks, no optional hook points, no gradients wanted.

    It is in ``train()`` mode, the key to the fused kernels (there is no dropout). The given model is left as found; hooks
    that it has are not run.

    Raises:
        TypeError: not a hooked model. ValueError: one that cannot be represented.
    """
    model = own(model)
    switches = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")
    twin = HookedTransformer(model.cfg.model_copy(update=dict.fromkeys(switches, False)))
    twin.load_state_dict({name: weight.detach() for name, weight in model.state_dict().items()}, assign=True)
    return twin.to(device_of(model)).requires_grad_(False).train()
