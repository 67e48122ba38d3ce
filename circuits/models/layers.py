"""The parts of a HookedTransformer: norms, attention and MLP, on transformer-lens 3's names and shapes.

Weights multiply from the right: ``q = x @ W_Q``, ``W_Q [head, d_model, d_head]``; scores and patterns are
``[batch, head, query, key]``. In ``eval()`` mode every step is written out, so what a hook sees or changes never
alters the arithmetic around it. In ``train()`` mode, where nothing listens, norms and attention go through torch's
fused kernels; those have no second derivative, so take Hessians in ``eval()`` mode.
"""

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from circuits.models.config import HookedTransformerConfig
from circuits.models.upstream import HookPoint


def is_heard(*points: HookPoint) -> bool:
    """Whether any of these hook points has a hook, transformer-lens' or plain torch's."""
    return any(
        p.fwd_hooks or p.bwd_hooks or p._forward_hooks or p._forward_pre_hooks or p._backward_hooks or p._backward_pre_hooks
        for p in points
    )


def may_fuse(module: nn.Module, x: Tensor, *points: HookPoint) -> bool:
    """Whether torch's fused kernels may run: in ``train()`` mode, unheard, outside ``torch.func`` (they cannot be batched)."""
    return module.training and not is_heard(*points) and not is_transformed(x)


def is_transformed(x: Tensor) -> bool:
    """Whether ``x`` is inside a ``torch.func`` transform (``vmap``, ``grad``, ...), where its values cannot be looked at."""
    return is_functorch_wrapped_tensor(x)


def dtype_of(cfg: HookedTransformerConfig) -> torch.dtype:
    return torch.float64 if cfg.dtype == "float64" else torch.float32


class Norm(nn.Module):
    """LN, LNPre, RMS or RMSPre: ``(x - mean) / sqrt(var + eps) * w + b``, without what the type leaves out."""

    def __init__(self, cfg: HookedTransformerConfig, kind: str, length: int | None = None):
        super().__init__()
        self.length = cfg.d_model if length is None else length
        self.centred = kind.startswith("LN")
        self.eps = cfg.eps
        dtype = dtype_of(cfg)
        self.w = None if kind.endswith("Pre") else nn.Parameter(torch.ones(self.length, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(self.length, dtype=dtype)) if kind == "LN" else None
        self.hook_scale = HookPoint()  # [batch, pos, 1]
        self.hook_normalized = HookPoint()  # [batch, pos, length]

    def forward(self, x: Float[Tensor, "*batch length"], scale: Tensor | None = None) -> Float[Tensor, "*batch length"]:
        """Norm ``x``, by its own scale or, frozen, by the one given ``[*batch, 1]``."""
        if scale is None and self.centred and may_fuse(self, x, self.hook_scale, self.hook_normalized):
            return F.layer_norm(x, (self.length,), self.w, self.b, self.eps)
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        divisor = self.hook_scale((x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()) if scale is None else scale
        x = self.hook_normalized(x / divisor)
        if self.w is not None:
            x = x * self.w
        return x if self.b is None else x + self.b


def make_norm(cfg: HookedTransformerConfig, *, final: bool = False) -> nn.Module:
    kind = cfg.normalization_type
    if kind is None:
        return nn.Identity()
    if final and cfg.final_rms:
        kind = "RMSPre" if kind.endswith("Pre") else "RMS"
    return Norm(cfg, kind)


class Attention(nn.Module):
    """Causal multi-head attention with a hook on every step."""

    rotary_sin: Tensor  # [n_ctx, rotary_dim]
    rotary_cos: Tensor

    def __init__(self, cfg: HookedTransformerConfig, layer: int):
        super().__init__()
        self.cfg = cfg
        self.layer = layer
        heads, d_model, d_head, dtype = cfg.n_heads, cfg.d_model, cfg.d_head, dtype_of(cfg)
        self.W_Q = nn.Parameter(torch.empty(heads, d_model, d_head, dtype=dtype))
        self.W_K = nn.Parameter(torch.empty(heads, d_model, d_head, dtype=dtype))
        self.W_V = nn.Parameter(torch.empty(heads, d_model, d_head, dtype=dtype))
        self.W_O = nn.Parameter(torch.empty(heads, d_head, d_model, dtype=dtype))
        self.b_Q = nn.Parameter(torch.zeros(heads, d_head, dtype=dtype))
        self.b_K = nn.Parameter(torch.zeros(heads, d_head, dtype=dtype))
        self.b_V = nn.Parameter(torch.zeros(heads, d_head, dtype=dtype))
        self.b_O = nn.Parameter(torch.zeros(d_model, dtype=dtype))
        self.attn_scale = cfg.attn_scale if cfg.use_attn_scale else 1.0
        if cfg.scale_attn_by_inverse_layer_idx:
            self.attn_scale *= layer + 1
        self.hook_q, self.hook_k, self.hook_v, self.hook_z = HookPoint(), HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores = HookPoint()  # [batch, head, query, key], -inf above the diagonal
        self.hook_pattern = HookPoint()  # [batch, head, query, key]
        self.hook_result = HookPoint()  # [batch, pos, head, d_model], only with use_attn_result
        if cfg.smeared_keys:
            self.alpha_smear = nn.Parameter(torch.zeros(heads, dtype=dtype))
            self.hook_k_smeared = HookPoint()  # [batch, pos, head, d_head]
        if cfg.positional_embedding_type == "rotary":
            self.hook_rot_q, self.hook_rot_k = HookPoint(), HookPoint()
            sin, cos = rotary_tables(cfg)
            self.register_buffer("rotary_sin", sin, persistent=False)
            self.register_buffer("rotary_cos", cos, persistent=False)

    def forward(self, query_input: Tensor, key_input: Tensor, value_input: Tensor) -> Float[Tensor, "batch pos d_model"]:
        z = self.gather(*self.read(query_input, key_input, value_input))  # [batch, pos, head, d_head]
        if self.cfg.use_attn_result:
            result = self.hook_result(torch.einsum("bphd,hdm->bphm", z, self.W_O))
            return result.sum(2) + self.b_O
        return F.linear(z.flatten(2), self.W_O.flatten(0, 1).T, self.b_O)

    def read(self, query_input: Tensor, key_input: Tensor, value_input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as scores and sums use them, smeared and turned, each ``[batch, pos, head, d_head]``."""
        q, k, v = self._project(query_input, key_input, value_input)
        if self.cfg.smeared_keys:
            k = self.hook_k_smeared(smear(k, self.alpha_smear))
        if self.cfg.positional_embedding_type == "rotary":
            q = self.hook_rot_q(self.rotate(q))
            k = self.hook_rot_k(self.rotate(k))
        return q, k, v

    def gather(
        self,
        q: Float[Tensor, "batch pos head d_head"],
        k: Float[Tensor, "batch pos head d_head"],
        v: Float[Tensor, "batch pos head d_head"],
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Values weighted by attention."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [batch, head, pos, d_head]
        capped = self.cfg.attn_scores_soft_cap > 0
        if not capped and may_fuse(self, q, self.hook_attn_scores, self.hook_pattern):
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0 / self.attn_scale)
        else:
            scores = (q / self.attn_scale) @ k.transpose(-2, -1)  # [batch, head, query, key]
            if capped:
                scores = self.cfg.attn_scores_soft_cap * torch.tanh(scores / self.cfg.attn_scores_soft_cap)
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = self.hook_attn_scores(scores.masked_fill_(future, -torch.inf))  # in place: these are the large tensors
            pattern = self.hook_pattern(self._softmax(scores))  # [batch, head, query, key], rows sum to 1
            z = pattern @ v
        return self.hook_z(z.transpose(1, 2))

    def _project(self, query_input: Tensor, key_input: Tensor, value_input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each ``[batch, pos, head, d_head]``."""
        if query_input.ndim == 4:  # [batch, pos, head, d_model]: every head reads its own copy
            return (
                self.hook_q(torch.einsum("bphm,hmd->bphd", query_input, self.W_Q) + self.b_Q),
                self.hook_k(torch.einsum("bphm,hmd->bphd", key_input, self.W_K) + self.b_K),
                self.hook_v(torch.einsum("bphm,hmd->bphd", value_input, self.W_V) + self.b_V),
            )
        return (
            self.hook_q(project(query_input, self.W_Q, self.b_Q)),
            self.hook_k(project(key_input, self.W_K, self.b_K)),
            self.hook_v(project(value_input, self.W_V, self.b_V)),
        )

    def _softmax(self, scores: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
        """Softmax over keys. A row that a hook filled with -inf attends to nothing, as in transformer-lens."""
        pattern = scores.softmax(-1)
        if is_heard(self.hook_attn_scores) and pattern[..., 0].isnan().any():
            silent = scores.amax(-1, keepdim=True) == -torch.inf
            pattern = scores.masked_fill(silent, 0.0).softmax(-1).masked_fill(silent, 0.0)
        # The derivative of softmax needs its result, and a hook may write into what it is given.
        return pattern.clone() if pattern.requires_grad and is_heard(self.hook_pattern) else pattern

    def rotate(self, x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        """Turn each pair of the first ``rotary_dim`` dimensions by ``pos / base**(2 i / rotary_dim)``."""
        turned, kept = x[..., : self.cfg.rotary_dim], x[..., self.cfg.rotary_dim :]
        if self.cfg.rotary_adjacent_pairs:
            quarter = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
        else:
            first, second = turned.chunk(2, dim=-1)
            quarter = torch.cat((-second, first), dim=-1)
        sin = self.rotary_sin[None, : x.shape[1], None]
        cos = self.rotary_cos[None, : x.shape[1], None]
        return torch.cat((turned * cos + quarter * sin, kept), dim=-1)


def project(x: Float[Tensor, "batch pos d_model"], weight: Tensor, bias: Tensor) -> Float[Tensor, "batch pos head d_head"]:
    """All heads' ``x @ W + b`` as one matrix product."""
    heads, d_model, d_head = weight.shape
    flat = weight.transpose(0, 1).reshape(d_model, heads * d_head)
    return F.linear(x, flat.T, bias.flatten()).unflatten(-1, (heads, d_head))


def smear(k: Float[Tensor, "batch pos head d_head"], alpha: Float[Tensor, "head"]) -> Float[Tensor, "batch pos head d_head"]:
    """Smeared keys (Olsson et al. 2022, argument 2): ``s k_j + (1 - s) k_{j-1}``, ``s = sigmoid(alpha)``; ``k_0`` stays."""
    share = alpha.sigmoid()[:, None]
    return torch.cat((k[:, :1], share * k[:, 1:] + (1 - share) * k[:, :-1]), dim=1)


def rotary_tables(cfg: HookedTransformerConfig) -> tuple[Float[Tensor, "n_ctx rotary_dim"], Float[Tensor, "n_ctx rotary_dim"]]:
    """Sines and cosines of every position and rotated dimension."""
    assert cfg.rotary_dim is not None
    dtype = dtype_of(cfg)
    half = torch.arange(cfg.rotary_dim // 2, dtype=dtype)
    wavelength = cfg.rotary_base ** (half / (cfg.rotary_dim / 2))
    wavelength = wavelength.repeat_interleave(2) if cfg.rotary_adjacent_pairs else wavelength.repeat(2)
    angles = torch.arange(cfg.n_ctx, dtype=dtype)[:, None] / wavelength
    return angles.sin(), angles.cos()


def solu(x: Tensor) -> Tensor:
    """Softmax linear unit ``x * softmax(x)`` (Elhage et al. 2022)."""
    return x * x.softmax(-1)


def gelu_new(x: Tensor) -> Tensor:
    """GPT-2's tanh form of GELU."""
    return F.gelu(x, approximate="tanh")


def gelu_fast(x: Tensor) -> Tensor:
    """The tanh form of GELU with GPT-J's rounded constant."""
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": gelu_new,
    "gelu_fast": gelu_fast,
    "silu": F.silu,
    "solu": solu,
    "solu_ln": solu,
}


class MLP(nn.Module):
    """``act(x W_in + b_in) W_out + b_out``; ``solu_ln`` puts a norm behind the activation."""

    def __init__(self, cfg: HookedTransformerConfig):
        super().__init__()
        assert cfg.d_mlp is not None and cfg.act_fn is not None
        dtype = dtype_of(cfg)
        self.act_fn = ACTIVATION[cfg.act_fn]
        self.W_in = nn.Parameter(torch.empty(cfg.d_model, cfg.d_mlp, dtype=dtype))
        self.b_in = nn.Parameter(torch.zeros(cfg.d_mlp, dtype=dtype))
        self.W_out = nn.Parameter(torch.empty(cfg.d_mlp, cfg.d_model, dtype=dtype))
        self.b_out = nn.Parameter(torch.zeros(cfg.d_model, dtype=dtype))
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()  # [batch, pos, d_mlp]
        self.normed = cfg.act_fn == "solu_ln"
        if self.normed:
            self.hook_mid = HookPoint()
            self.ln = Norm(cfg, "LN" if cfg.normalization_type == "LN" else "LNPre", cfg.d_mlp)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        pre = self.hook_pre(F.linear(x, self.W_in.T, self.b_in))
        if self.normed:
            post = self.hook_post(self.ln(self.hook_mid(self.act_fn(pre))))
        else:
            post = self.hook_post(self.act_fn(pre))
        return F.linear(post, self.W_out.T, self.b_out)


class Block(nn.Module):
    """One layer: attention, then (or in parallel) an MLP, each reading a normed residual stream."""

    def __init__(self, cfg: HookedTransformerConfig, layer: int):
        super().__init__()
        self.cfg = cfg
        self.ln1 = make_norm(cfg)
        self.attn = Attention(cfg, layer)
        if not cfg.attn_only:
            self.ln2 = make_norm(cfg)
            self.mlp = MLP(cfg)
            self.hook_mlp_in, self.hook_mlp_out = HookPoint(), HookPoint()
        self.hook_attn_in = HookPoint()  # [batch, pos, head, d_model], only with use_attn_in
        self.hook_q_input, self.hook_k_input, self.hook_v_input = HookPoint(), HookPoint(), HookPoint()
        self.hook_resid_pre, self.hook_attn_out, self.hook_resid_post = HookPoint(), HookPoint(), HookPoint()
        if not cfg.attn_only and not cfg.parallel_attn_mlp:
            self.hook_resid_mid = HookPoint()

    def forward(self, resid_pre: Float[Tensor, "batch pos d_model"], pos: Tensor | None) -> Float[Tensor, "batch pos d_model"]:
        """``pos`` are shortformer positions (added to what queries and keys read), or None."""
        resid_pre = self.hook_resid_pre(resid_pre)
        attn_out = self.hook_attn_out(self.attn(*self.attention_inputs(resid_pre, pos)))
        return self.after_attention(resid_pre, attn_out)

    def after_attention(
        self,
        resid_pre: Float[Tensor, "batch pos d_model"],
        attn_out: Float[Tensor, "batch pos d_model"],
        scale: Tensor | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """What is left of the layer once attention is known; ``scale`` freezes the MLP's norm."""
        if self.cfg.attn_only:
            return self.hook_resid_post(resid_pre + attn_out)
        frozen = () if scale is None else (scale,)  # a model without norms has nothing to freeze
        if self.cfg.parallel_attn_mlp:
            mlp_out = self.hook_mlp_out(self.mlp(self.ln2(self._mlp_input(resid_pre), *frozen)))
            return self.hook_resid_post(resid_pre + attn_out + mlp_out)
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        mlp_out = self.hook_mlp_out(self.mlp(self.ln2(self._mlp_input(resid_mid), *frozen)))
        return self.hook_resid_post(resid_mid + mlp_out)

    def _mlp_input(self, resid: Tensor) -> Tensor:
        return self.hook_mlp_in(resid.clone()) if self.cfg.use_hook_mlp_in else resid

    def attention_inputs(self, resid: Tensor, pos: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What queries, keys and values read of a stream."""
        if not (self.cfg.use_attn_in or self.cfg.use_split_qkv_input):
            normed = self.ln1(resid)
            placed = normed if pos is None else normed + pos
            return placed, placed, normed
        copies = resid[:, :, None].expand(-1, -1, self.cfg.n_heads, -1)  # cloned: a hook may write into one head's copy
        if self.cfg.use_split_qkv_input:
            inputs = tuple(hook(copies.clone()) for hook in (self.hook_q_input, self.hook_k_input, self.hook_v_input))
        else:
            inputs = (self.hook_attn_in(copies.clone()),) * 3
        query, key, value = (self.ln1(x) for x in inputs)
        if pos is not None:
            query, key = query + pos[:, :, None], key + pos[:, :, None]
        return query, key, value
