"""Models from transformer-lens and Hugging Face become ours; our weights become transformer-lens 3's.

A config field of the other side is copied, ignored because it does not touch the arithmetic, or refused by name. Then
both models read a short probe and must agree: some versions of transformer-lens accept fields that they do not apply,
or apply what their config does not say.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import LENS_BUFFERS, HookedTransformer
from circuits.models.protocol import undisturbed

NOT_COPIED = {"positional_init", "smeared_keys", "initializer_range", "init_mode", "seed", "dtype"}
COPIED = set(HookedTransformerConfig.model_fields) - NOT_COPIED

IGNORED = {
    # who the model is, where it lies, how it was started and how text becomes tokens
    *("model_name", "original_architecture", "architecture", "device", "n_devices", "dtype", "n_params", "trust_remote_code"),
    *("from_checkpoint", "checkpoint_index", "checkpoint_label_type", "checkpoint_value"),
    *("seed", "init_mode", "init_weights", "initializer_range"),
    *("tokenizer_name", "tokenizer_prepends_bos", "tokenizer_appends_eos", "default_prepend_bos", "default_padding_side"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    # how a bridge keeps its weights (they are copied as they are), or what it says twice
    *("tie_word_embeddings", "attn_implementation", "split_attention_weights", "layer_norm_folding", "uses_rms_norm"),
    *("hidden_act", "intermediate_size", "attention_bias", "use_parallel_residual"),
    # settings of mechanisms whose switch is refused
    *("window_size", "attn_types", "rotary_base_local", "train_seq_length", "NTK_original_ctx_len"),
    *("NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor", "NTK_by_parts_factor"),
    *("yarn_factor", "yarn_attention_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_truncate", "yarn_global_attn_only"),
    *("yarn_original_max_position_embeddings", "ungroup_grouped_query_attention", "experts_per_token", "norm_topk_prob"),
    *("relative_attention_max_distance", "relative_attention_num_buckets", "decoder_start_token_id"),
}
"""Fields of transformer-lens configs that leave logits, activations and gradients as they are."""

NATIVE = "TransformerLensNative"
BRIDGES = (NATIVE, "GPT2LMHeadModel", "GPTNeoXForCausalLM")
"""Architectures of a 4.x bridge whose config says all of their arithmetic; in others it leaves things out."""

NATIVE_DEAF = ("use_attn_scale", "scale_attn_by_inverse_layer_idx", "parallel_attn_mlp")
"""Fields that a native bridge accepts and does not apply."""

ACTIVATION_ALIASES = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}


def from_transformer_lens(model: Any) -> HookedTransformer:
    """Our HookedTransformer with the weights and the arithmetic of a transformer-lens model.

    Args:
        model: a transformer-lens 3.9 ``HookedTransformer`` (processed or not), or a 4.x ``TransformerBridge`` of a native,
            GPT-2 or GPT-NeoX (Pythia) model. It is left as found.

    Returns:
        A new model in ``eval()`` mode on the same device, with copies of the weights.

    Raises:
        TypeError: not a transformer-lens model.
        ValueError: the model does what ours cannot; the config field or weight is named.
    """
    bridged = hasattr(model, "tl_parameters")
    if not bridged and not any(
        c.__name__ == "HookedTransformer" and c.__module__.startswith("transformer_lens") for c in type(model).mro()
    ):
        raise TypeError(f"got {type(model).__name__}, need a transformer-lens HookedTransformer (3.9) or TransformerBridge (4.x)")
    fields = _fields(model)
    weights = dict(model.tl_parameters() if bridged else model.state_dict())
    weights = {name: weight for name, weight in weights.items() if not name.endswith(LENS_BUFFERS)}
    if fields["attn_only"]:  # a bridge reports zeros for the MLPs that it does not have
        weights = {name: weight for name, weight in weights.items() if ".mlp." not in name}
    dtype = str(weights["embed.W_E"].dtype).removeprefix("torch.")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype is {dtype}, a HookedTransformer computes in float32 or float64: pass model.to(torch.float32)")
    ours = HookedTransformer(HookedTransformerConfig.parse(fields | {"dtype": dtype}, origin="the transformer-lens config"))
    _load(ours, weights)
    ours = ours.to(weights["embed.W_E"].device).eval()
    _check_same(ours, model)
    return ours


def from_hf(path_or_name: str | Path, *, revision: str | None = None) -> HookedTransformer:
    """Load a GPT-2 or GPT-NeoX (Pythia) model, through transformer-lens.

    Args:
        path_or_name: a local folder with ``config.json`` and weights, or a name on the Hugging Face hub.
        revision: a branch, tag or commit of the hub's repository, such as ``"step1000"``.

    Returns:
        Our model in ``eval()`` mode on the CPU in float32, with the weights as they are stored: nothing is folded or centred.

    Raises:
        ValueError: transformer-lens cannot load it, or it does what ours cannot; what is wrong is named.
    """
    from transformer_lens.model_bridge import TransformerBridge

    try:
        bridge = TransformerBridge.boot_transformers(str(path_or_name), device="cpu", revision=revision)
    except Exception as error:  # of many types, by what is wrong with the folder or the name
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"transformer-lens cannot load {path_or_name} ({reason}); pass a folder with config.json and weights, or a hub name"
        ) from error
    return from_transformer_lens(bridge)


def to_transformer_lens_state(model: HookedTransformer) -> dict[str, Tensor]:
    """Our weights as ``transformer_lens.HookedTransformer.load_state_dict(strict=True)`` of version 3.9 takes them.

    Adds what that class derives from its config: empty masks, the masking constant and rotary tables. It has no
    positions of type ``"none"``: a model without any is a ``"standard"`` one whose ``W_pos`` is zero.

    Raises:
        ValueError: the model has smeared keys, which transformer-lens does not.
    """
    cfg = model.cfg
    if cfg.smeared_keys:
        raise ValueError("the model has smeared_keys, which transformer-lens cannot compute; there is no state dict for it")
    state = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    device = model.embed.W_E.device
    if cfg.positional_embedding_type == "none":
        state["pos_embed.W_pos"] = model.embed.W_E.new_zeros(cfg.n_ctx, cfg.d_model).detach()
    for layer, block in enumerate(model.blocks):
        state[f"blocks.{layer}.attn.mask"] = torch.empty((0, 0), dtype=torch.bool, device=device)
        state[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-torch.inf, device=device)
        if cfg.positional_embedding_type == "rotary":
            # the other class keeps at most 2,048 rows and extends them as sequences come
            state[f"blocks.{layer}.attn.rotary_sin"] = block.attn.rotary_sin[:2048].clone()
            state[f"blocks.{layer}.attn.rotary_cos"] = block.attn.rotary_cos[:2048].clone()
    return state


def _fields(model: Any) -> dict[str, Any]:
    """Our config's fields from a transformer-lens model's config; what cannot be honoured is refused."""
    cfg = model.cfg
    given = dict(vars(cfg))
    architecture = given.get("architecture")
    if architecture is not None and architecture not in BRIDGES:
        raise ValueError(f"architecture is {architecture}; a bridge can be represented here if it is one of {', '.join(BRIDGES)}")
    if given.pop("n_key_value_heads", None) not in (None, cfg.n_heads):
        raise ValueError(
            f"n_key_value_heads is {cfg.n_key_value_heads}: grouped keys cannot be represented, every head has its own"
        )
    rope = given.pop("rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope_parameters ask for {rope['rope_type']} scaling, which cannot be represented; only 'default' can")
    for name, value in given.items():
        if name in NATIVE_DEAF and architecture == NATIVE and value != HookedTransformerConfig.model_fields[name].default:
            raise ValueError(
                f"{name} is {value}, which a native bridge accepts and does not apply; unset it to convert what is computed"
            )
        if name not in COPIED | IGNORED and not (
            value is None or value is False or (name == "rotary_scaling_factor" and value == 1)
        ):
            raise ValueError(f"{name} is {value!r}, which a HookedTransformer cannot represent")

    fields = {name: value for name, value in given.items() if name in COPIED}
    hf_config = getattr(getattr(model, "original_model", None), "config", None)
    if getattr(hf_config, "scale_attn_weights", True) is False:  # GPT-2's name for it, which the bridge's config leaves out
        fields["use_attn_scale"] = False
    fields["act_fn"] = ACTIVATION_ALIASES.get(fields["act_fn"], fields["act_fn"])
    for cap in ("attn_scores_soft_cap", "output_logits_soft_cap"):
        if fields.get(cap) is None or fields[cap] <= 0:
            fields[cap] = -1.0
    if "rope_theta" in rope:
        fields["rotary_base"] = rope["rope_theta"]
        fields["rotary_dim"] = int(cfg.d_head * rope.get("partial_rotary_factor", 1.0))
    if architecture == NATIVE:
        fields["rotary_adjacent_pairs"] = True  # whatever its config says
    unused = {
        "rotary_dim": fields["positional_embedding_type"] != "rotary",
        "rotary_base": fields["positional_embedding_type"] != "rotary",
        "rotary_adjacent_pairs": fields["positional_embedding_type"] != "rotary",
        "d_mlp": fields["attn_only"],
        "act_fn": fields["attn_only"],
        "use_hook_mlp_in": fields["attn_only"],
        "final_rms": fields["normalization_type"] is None,
        "attn_scale": not fields["use_attn_scale"],
    }
    return {name: value for name, value in fields.items() if not unused.get(name, False)}


def _load(ours: HookedTransformer, weights: Mapping[str, Tensor]) -> None:
    """Copy weights by name, after checking that the names and shapes are ours."""
    needed = ours.state_dict()
    for name, weight in weights.items():
        if name not in needed:
            raise ValueError(
                f"the model has a weight {name}, which a HookedTransformer of its config does not; it cannot be represented"
            )
        if weight.shape != needed[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(weight.shape)}, its config means {tuple(needed[name].shape)}; it cannot be represented"
            )
    if missing := sorted(set(needed) - set(weights)):
        raise ValueError(f"the model shows no weight {missing[0]}, which its config means it to have; it cannot be represented")
    ours.load_state_dict(weights)


def _check_same(ours: HookedTransformer, theirs: Any) -> None:
    """Both models' logits on a short probe must agree to 1e-4 of the largest."""
    length = min(ours.cfg.n_ctx, 16)
    tokens = (7 * torch.arange(2 * length, device=ours.embed.W_E.device) % ours.cfg.d_vocab).view(2, length)
    with undisturbed(theirs), torch.no_grad():
        expected = theirs(tokens)
        gap = float((ours(tokens) - expected).abs().max())
    size = float(expected.abs().max())
    if not gap <= 1e-4 * size:
        raise ValueError(
            f"the converted model's logits are off by {gap:.2g} where the largest is {size:.2g}: the model computes "
            "something that "
            "its config does not say (or a hook is on it: call model.reset_hooks()), so it cannot be represented"
        )
