"""HookedTransformer: a small causal transformer with a hook on every activation.

Names and shapes of parameters and hooks are those of transformer-lens 3 (``blocks.0.attn.W_Q [head, d_model,
d_head]``, ``blocks.0.attn.hook_pattern``), so its snippets and state dicts work here. Logits at position ``t`` predict
token ``t + 1``; the loss is their mean cross-entropy in nats.

Source: the class transformer-lens removed in 4.0; Elhage et al. 2021 for the architecture.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.config import HookedTransformerConfig
from circuits.models.layers import Block, dtype_of, is_heard, is_transformed, make_norm
from circuits.models.protocol import check_tokens
from circuits.models.upstream import ActivationCache, FactoredMatrix, HookedRootModule, HookPoint

IGNORED = -100
"""A target that no loss is taken of."""

LENS_BUFFERS = ("attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos")
"""Buffers in transformer-lens 3 state dicts that follow from the config and are therefore not weights here."""

SWITCHES = {
    "attn.hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
}
"""Hook points that fire only where a config field says so."""


class Output(NamedTuple):
    """What ``return_type="both"`` gives."""

    logits: Tensor
    loss: Tensor


class Stacked:
    """An attribute of the model: this weight of every layer, ``[layer, ...]``."""

    def __init__(self, part: str, name: str):
        self.part, self.name = part, name

    def __get__(self, model: Any, owner: Any = None) -> Tensor:
        return torch.stack([getattr(getattr(block, self.part), self.name) for block in model.blocks])


class Embed(nn.Module):
    def __init__(self, cfg: HookedTransformerConfig):
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model, dtype=dtype_of(cfg)))

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return F.embedding(tokens, self.W_E)


class PosEmbed(nn.Module):
    def __init__(self, cfg: HookedTransformerConfig):
        super().__init__()
        self.W_pos = nn.Parameter(torch.empty(cfg.n_ctx, cfg.d_model, dtype=dtype_of(cfg)))

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        batch, length = tokens.shape
        return self.W_pos[:length].expand(batch, -1, -1)


class Unembed(nn.Module):
    def __init__(self, cfg: HookedTransformerConfig):
        super().__init__()
        self.W_U = nn.Parameter(torch.empty(cfg.d_model, cfg.d_vocab_out, dtype=dtype_of(cfg)))
        self.b_U = nn.Parameter(torch.zeros(cfg.d_vocab_out, dtype=dtype_of(cfg)))
        self.hook_in, self.hook_out = HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab_out"]:
        return self.hook_out(F.linear(self.hook_in(x), self.W_U.T, self.b_U))


class HookedTransformer(HookedRootModule):
    """A small transformer on hook points.

    Example:
        >>> from circuits import HookedTransformer, HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=2, d_model=16, n_heads=2, d_head=8, n_ctx=32, d_vocab=50, attn_only=True)
        >>> model = HookedTransformer(cfg).eval()
        >>> logits, cache = model.run_with_cache(torch.arange(10)[None])
        >>> tuple(cache["pattern", 1].shape)
        (1, 2, 10, 10)
    """

    def __init__(self, cfg: HookedTransformerConfig | Mapping[str, Any]):
        super().__init__()
        if not isinstance(cfg, HookedTransformerConfig):
            if not isinstance(cfg, Mapping):
                raise TypeError(f"cfg is a {type(cfg).__name__}, need a HookedTransformerConfig or a dictionary of its fields")
            cfg = HookedTransformerConfig.parse(dict(cfg))
        self.cfg = cfg
        self.embed = Embed(cfg)
        self.hook_embed = HookPoint()  # [batch, pos, d_model]
        if cfg.positional_embedding_type in ("standard", "shortformer"):
            self.pos_embed = PosEmbed(cfg)
            self.hook_pos_embed = HookPoint()  # [batch, pos, d_model]
        # torch calls the items of a ModuleList plain modules; a type checker should know what they are.
        self.blocks = cast(Sequence[Block], nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers)))
        self.ln_final = make_norm(cfg, final=True)
        self.unembed = Unembed(cfg)
        self._initialise()
        self.setup()

    def _initialise(self) -> None:
        """Normal weights of ``initializer_range``, zero biases, from ``cfg.seed`` and no global randomness."""
        rng = torch.Generator().manual_seed(self.cfg.seed or 0)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "W_" in name:
                    parameter.normal_(std=self.cfg.initializer_range, generator=rng)
            if self.cfg.positional_init == "sinusoidal":
                self.pos_embed.W_pos.copy_(sinusoids(self.cfg.n_ctx, self.cfg.d_model))

    def forward(
        self,
        tokens: Any,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        stop_at_layer: int | None = None,
    ) -> Any:
        """Run the model.

        Args:
            tokens: integer tensor of token ids, ``[batch, pos]`` (a single sequence is given a batch axis).
            return_type: ``"logits" [batch, pos, d_vocab_out]``, ``"loss"`` (mean next-token cross-entropy, nats),
                ``"both"``, or None.
            loss_per_token: leave the loss as ``[batch, pos - 1]``; entry ``t`` is that of predicting token ``t + 1``.
            stop_at_layer: return the residual stream on entry to this layer instead; ``-1`` is the last layer.

        Raises:
            TypeError: tokens are not integers. ValueError: wrong rank, too long, empty, ids outside the vocabulary (looked
            at on the CPU only: reading them back from a GPU would stall it), another device, an unknown
            ``return_type``, or no such layer.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise ValueError(f"return_type is {return_type!r}; it must be 'logits', 'loss', 'both' or None")
        depth = self.cfg.n_layers
        if stop_at_layer is not None and not -depth <= stop_at_layer <= depth:
            raise ValueError(f"stop_at_layer is {stop_at_layer}; the model has {depth} layers, so stop at {-depth}..{depth}")
        tokens = self._accept(tokens)
        resid = self.hook_embed(self.embed(tokens))
        pos = self._positions(tokens)
        if self.cfg.positional_embedding_type == "standard":
            resid, pos = resid + pos, None
        for block in self.blocks[:stop_at_layer]:
            resid = block(resid, pos)
        if stop_at_layer is not None:
            return resid
        resid = self.ln_final(resid)
        if return_type is None:
            return None
        logits = self.unembed(resid)
        cap = self.cfg.output_logits_soft_cap
        if cap > 0:
            logits = cap * torch.tanh(logits / cap)
        if return_type == "logits":
            return logits
        loss = next_token_loss(logits, tokens, per_token=loss_per_token)
        return loss if return_type == "loss" else Output(logits, loss)

    def _accept(self, tokens: Any) -> Tensor:
        """Refuse what cannot be a batch of token ids, in one sentence, before any work."""
        if isinstance(tokens, Tensor) and tokens.ndim == 1:
            tokens = tokens[None]
        if isinstance(tokens, Tensor) and is_transformed(tokens):
            return tokens
        check_tokens(tokens, d_vocab=self.cfg.d_vocab, n_ctx=self.cfg.n_ctx, device=self.embed.W_E.device)
        return tokens.long() if tokens.dtype not in (torch.int64, torch.int32) else tokens

    def _positions(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"] | None:
        if self.cfg.positional_embedding_type not in ("standard", "shortformer"):
            return None
        pos = self.pos_embed(tokens)
        if is_heard(self.hook_pos_embed):
            pos = pos.clone()  # a hook may write into what it is given, and this is a view of the weights
        return self.hook_pos_embed(pos)

    def run_with_cache(
        self, *model_args: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **kwargs: Any
    ) -> Any:
        """As transformer-lens': the output and an ``ActivationCache`` (or a plain dict) of every hooked activation."""
        out, cache = super().run_with_cache(*model_args, remove_batch_dim=remove_batch_dim, **kwargs)
        if not return_cache_object:
            return out, cache
        cache = ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)
        if self.cfg.positional_embedding_type == "shortformer":
            cache.has_pos_embed = False  # positions are no part of the residual stream, so of no decomposition of it
        return out, cache

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; transformer-lens 3's derived buffers (masks, rotary tables) may be among them."""
        weights = {name: value for name, value in state_dict.items() if not name.endswith(LENS_BUFFERS)}
        return super().load_state_dict(weights, strict=strict, assign=assign)

    def use_hooks(self, **flags: bool) -> None:
        """Switch memory-hungry hook points: ``use_attn_result``, ``use_split_qkv_input``, ``use_attn_in``, ``use_hook_mlp_in``.

        Raises:
            ValueError: another field is named, or the flags exclude each other.
        """
        allowed = {"use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"}
        if unknown := set(flags) - allowed:
            raise ValueError(f"use_hooks got {', '.join(sorted(unknown))}; it switches {', '.join(sorted(allowed))}")
        self.cfg = HookedTransformerConfig.parse(self.cfg.model_dump() | flags)
        for block in self.blocks:
            block.cfg = block.attn.cfg = self.cfg

    def set_use_attn_result(self, on: bool) -> None:
        self.use_hooks(use_attn_result=on)

    def set_use_split_qkv_input(self, on: bool) -> None:
        self.use_hooks(use_split_qkv_input=on)

    def set_use_attn_in(self, on: bool) -> None:
        self.use_hooks(use_attn_in=on)

    def set_use_hook_mlp_in(self, on: bool) -> None:
        self.use_hooks(use_hook_mlp_in=on)

    def _switch(self, name: str) -> str | None:
        """The config field without which the hook point ``name`` stays silent, if that is off."""
        off = (switch for ending, switch in SWITCHES.items() if name.endswith(ending) and not getattr(self.cfg, switch))
        return next(off, None)

    def check_hooks_to_add(self, hook_point: HookPoint | None, hook_point_name: str, *args: Any, **kwargs: Any) -> None:
        """Refuse a hook that would never fire (the base class asks before ``add_hook``)."""
        if hook_point_name not in self.hook_dict:
            raise ValueError(f"there is no hook point {hook_point_name!r}; list(model.hook_dict) has their names")
        if switch := self._switch(hook_point_name):
            raise ValueError(f"{hook_point_name} fires only with {switch}; call model.use_hooks({switch}=True) first")

    def hooks(self, fwd_hooks: Sequence[Any] = (), bwd_hooks: Sequence[Any] = (), *args: Any, **kwargs: Any) -> Any:
        """As transformer-lens': a context in which these hooks are on. A hook that would never fire is refused."""
        for name, _ in (*fwd_hooks, *bwd_hooks):
            if isinstance(name, str):
                self.check_hooks_to_add(None, name)
        return super().hooks(list(fwd_hooks), list(bwd_hooks), *args, **kwargs)

    def get_caching_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """As transformer-lens', without the hook points that are switched off."""
        cache, forward, backward = super().get_caching_hooks(*args, **kwargs)
        return cache, *([hook for hook in hooks if not self._switch(hook[0])] for hooks in (forward, backward))

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> Float[Tensor, "d_model"]:
        """Sum of output biases in the residual stream on entry to ``layer`` (to its MLP, with ``mlp_input``)."""
        biases = [block.attn.b_O for block in self.blocks[: layer + mlp_input]]
        if include_mlp_biases and not self.cfg.attn_only:
            biases += [block.mlp.b_out for block in self.blocks[:layer]]
        return sum(biases, torch.zeros_like(self.blocks[0].attn.b_O))

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "... d_model"]:
        """Columns of ``W_U`` (one id, or a tensor of them): what a residual stream is multiplied with to give their logits."""
        if isinstance(tokens, str):
            raise TypeError(f"got the text {tokens!r}, need token ids: encode it with the run's tokenizer")
        return self.W_U.T[tokens]

    W_Q, W_K, W_V = Stacked("attn", "W_Q"), Stacked("attn", "W_K"), Stacked("attn", "W_V")  # [layer, head, d_model, d_head]
    b_Q, b_K, b_V = Stacked("attn", "b_Q"), Stacked("attn", "b_K"), Stacked("attn", "b_V")  # [layer, head, d_head]
    W_O, b_O = Stacked("attn", "W_O"), Stacked("attn", "b_O")  # [layer, head, d_head, d_model] and [layer, d_model]
    W_in, b_in = Stacked("mlp", "W_in"), Stacked("mlp", "b_in")  # [layer, d_model, d_mlp] and [layer, d_mlp]
    W_out, b_out = Stacked("mlp", "W_out"), Stacked("mlp", "b_out")  # [layer, d_mlp, d_model] and [layer, d_model]

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.embed.W_E

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        return self.pos_embed.W_pos

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab_out"]:
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, "d_vocab_out"]:
        return self.unembed.b_U

    @property
    def QK(self) -> FactoredMatrix:
        """``W_Q W_K^T`` of every head, ``[layer, head, d_model, d_model]``, kept as its two factors."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """``W_V W_O`` of every head, ``[layer, head, d_model, d_model]``, kept as its two factors."""
        return FactoredMatrix(self.W_V, self.W_O)


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab_out"], tokens: Int[Tensor, "batch pos"], *, per_token: bool = False
) -> Float[Tensor, "batch pos_minus_1"] | Float[Tensor, ""]:
    """Cross-entropy in nats of the logits at ``t`` against token ``t + 1``."""
    if tokens.shape[1] < 2:
        raise ValueError("a loss needs sequences of at least 2 tokens, the first predicts the second; got 1")
    batch, length, vocab = logits.shape
    if not is_transformed(tokens) and not tokens.is_cuda and int(tokens.max()) >= vocab:
        raise ValueError(
            f"token {int(tokens.max())} has no logit, the model has d_vocab_out = {vocab}: take losses of logits yourself"
        )
    targets = F.pad(tokens[:, 1:].long(), (0, 1), value=IGNORED)  # the last position predicts nothing; no copy of the logits
    loss = F.cross_entropy(
        logits.reshape(-1, vocab), targets.flatten(), ignore_index=IGNORED, reduction="none" if per_token else "mean"
    )
    return loss.view(batch, length)[:, :-1] if per_token else loss


def sinusoids(n_ctx: int, d_model: int) -> Float[Tensor, "n_ctx d_model"]:
    """Vaswani et al. 2017's position code: sines in even dimensions, cosines in odd ones."""
    angles = torch.arange(n_ctx)[:, None] / 10000.0 ** (torch.arange(0, d_model, 2) / d_model)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :d_model]
