"""What any model must offer to be measured, and the only place that spells hook names.

A measure needs: a ``cfg`` with ``n_layers, n_heads, d_vocab, n_ctx``; a call ``model(tokens)`` that returns logits;
the context manager ``model.hooks(fwd_hooks=[(name, function)])``; and the hook points named below. Our own class,
transformer-lens 3.9's ``HookedTransformer`` and a 4.x ``TransformerBridge`` all do. Attention is ``[query, key]``.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class HookedModel(Protocol):
    """What measures ask of a model; see the module's docstring."""

    cfg: Any

    def __call__(self, tokens: Any, *args: Any, **kwargs: Any) -> Any: ...

    def hooks(self, *args: Any, **kwargs: Any) -> Any: ...

    def parameters(self, recurse: bool = True) -> Any: ...


def pattern_name(layer: int) -> str:
    """Attention after softmax, ``[batch, head, query, key]``."""
    return f"blocks.{layer}.attn.hook_pattern"


def resid_pre_name(layer: int) -> str:
    """The residual stream before a layer, ``[batch, pos, d_model]``."""
    return f"blocks.{layer}.hook_resid_pre"


def value_name(layer: int) -> str:
    """Values, ``[batch, pos, head, d_head]``."""
    return f"blocks.{layer}.attn.hook_v"


def z_name(layer: int) -> str:
    """What a head has gathered: values weighted by attention, ``[batch, pos, head, d_head]``."""
    return f"blocks.{layer}.attn.hook_z"


def scores_name(layer: int) -> str:
    """Attention before softmax, ``[batch, head, query, key]``."""
    return f"blocks.{layer}.attn.hook_attn_scores"


def resid_mid_name(layer: int) -> str:
    """The residual stream between attention and MLP, ``[batch, pos, d_model]``; not in attention-only models."""
    return f"blocks.{layer}.hook_resid_mid"


def resid_post_name(layer: int) -> str:
    """The residual stream behind a layer, ``[batch, pos, d_model]``."""
    return f"blocks.{layer}.hook_resid_post"


def norm_scale_names(model: Any, layer: int) -> list[str]:
    """The scales of a layer's norms, ``[batch, pos, 1]``; of the final norm where ``layer`` is the number of layers."""
    norms = ["ln_final"] if layer == model.cfg.n_layers else [f"blocks.{layer}.ln1", f"blocks.{layer}.ln2"]
    return [name for name in (f"{norm}.hook_scale" for norm in norms) if name in model.hook_dict]


def pos_embed_name() -> str:
    """Position embeddings, ``[batch, pos, d_model]``; only where the model has any (standard or shortformer)."""
    return "hook_pos_embed"


def embed_name() -> str:
    """Token embeddings, ``[batch, pos, d_model]``."""
    return "hook_embed"


def query_name(layer: int) -> str:
    """Queries before any rotation, ``[batch, pos, head, d_head]``."""
    return f"blocks.{layer}.attn.hook_q"


def key_name(layer: int) -> str:
    """Keys before smearing and rotation, ``[batch, pos, head, d_head]``."""
    return f"blocks.{layer}.attn.hook_k"


def head_input_name(layer: int, channel: str) -> str:
    """Every head's own copy of the stream for its ``"q"``, ``"k"`` or ``"v"``, before the norm, ``[batch, pos, head, d_model]``;
    fires only with ``use_split_qkv_input``."""
    return f"blocks.{layer}.hook_{channel}_input"


def mlp_in_name(layer: int) -> str:
    """The MLP's own copy of the stream, before the norm, ``[batch, pos, d_model]``; fires only with ``use_hook_mlp_in``."""
    return f"blocks.{layer}.hook_mlp_in"


def mlp_out_name(layer: int) -> str:
    """What an MLP writes, with its output bias, ``[batch, pos, d_model]``."""
    return f"blocks.{layer}.hook_mlp_out"


def check_model(model: Any) -> None:
    """Refuse what is not a model of the protocol.

    Raises:
        TypeError: it lacks ``cfg`` or ``hooks``.
    """
    if not isinstance(model, HookedModel) or not all(
        hasattr(model.cfg, field) for field in ("n_layers", "n_heads", "d_vocab", "n_ctx")
    ):
        raise TypeError(
            f"got {type(model).__name__}, need a hooked model (with .cfg and .hooks): wrap it with "
            "circuits.from_transformer_lens(model), or load it with circuits.from_hf(path)"
        )


def check_evaluated(model: Any) -> None:
    """Refuse a model in training mode, whose dropout, if it has any, would be mistaken for an effect.

    Raises:
        ValueError: it is.
    """
    if getattr(model, "training", False):
        raise ValueError("the model is in training mode, interventions compare runs in evaluation mode: call model.eval() first")


def check_finite(model: HookedModel) -> None:
    """Refuse weights that are not numbers, or too coarse to measure.

    Raises:
        ValueError: a parameter holds NaN or infinity, or is of reduced precision, named.
    """
    for name, weight in named_parameters(model):
        if weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {weight.dtype}, measures need float32 or float64 weights: pass model.float()")
        # A finite sum has finite terms, and is many times cheaper than looking at each; only an overflow needs the look.
        if not bool(torch.isfinite(weight.sum())) and not bool(torch.isfinite(weight).all()):
            raise ValueError(f"{name} holds NaN or infinite weights; the checkpoint is broken or the run diverged, load another")


def named_parameters(model: Any) -> Iterator[tuple[str, Tensor]]:
    return iter(model.named_parameters())


def device_of(model: HookedModel) -> torch.device:
    return next(iter(model.parameters())).device


def check_tokens(
    tokens: Any,
    *,
    d_vocab: int,
    n_ctx: int,
    device: torch.device | None = None,
    min_length: int = 1,
    needed_by: str = "the model",
) -> None:
    """Refuse what cannot be a batch of token ids ``[batch, pos]``, in one sentence.

    Raises:
        TypeError: not a tensor, or not integers.
        ValueError: wrong rank, empty, too short or too long, ids outside the vocabulary, or on another device.
    """
    if not isinstance(tokens, Tensor):
        raise TypeError(
            f"tokens are a {type(tokens).__name__}, {needed_by} needs an integer tensor [batch, pos]: use torch.tensor(ids), "
            "or run.tokenizer.encode(text) for text"
        )
    if tokens.dtype.is_floating_point or tokens.dtype.is_complex or tokens.dtype == torch.bool:
        raise TypeError(f"tokens have dtype {tokens.dtype}, {needed_by} needs integer ids: pass tokens.long()")
    if tokens.ndim != 2:
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)}, {needed_by} needs [batch, pos]: use tokens.reshape(1, -1) for one sequence"
        )
    if tokens.shape[0] == 0 or tokens.shape[1] == 0:
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)}, which is empty; {needed_by} needs at least one sequence of one token"
        )
    if tokens.shape[1] < min_length:
        raise ValueError(f"sequences have {tokens.shape[1]} tokens, {needed_by} needs at least {min_length}: pass longer ones")
    if tokens.shape[1] > n_ctx:
        raise ValueError(f"sequences have {tokens.shape[1]} tokens, the model reads n_ctx = {n_ctx}: pass tokens[:, :{n_ctx}]")
    if device is not None and tokens.device != device:
        raise ValueError(f"tokens are on {tokens.device} and the model on {device}: pass tokens.to('{device}')")
    if not tokens.is_cuda:
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= d_vocab:
            raise ValueError(
                f"token ids run from {low} to {high}, the vocabulary is 0..{d_vocab - 1}: use the model's own tokenizer"
            )


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; mode, hooks and flags are as found afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    caching = getattr(model, "is_caching", None)
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        if caching is not None:
            model.is_caching = caching


def model_hash(model: Any) -> str:
    """A 16-digit hash of the config and every weight: the identity of a checkpoint."""
    digest = hashlib.sha256()
    cfg = model.cfg
    described = cfg.model_dump_json() if hasattr(cfg, "model_dump_json") else repr(sorted(map(str, vars(cfg).items())))
    digest.update(described.encode())
    for name, weight in sorted(named_parameters(model)):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
