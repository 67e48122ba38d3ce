"""From final residual streams to next-token losses: norm, unembedding and cross-entropy, some positions at a time.

With the norm's centring and gain folded into ``M`` and its bias into ``c``, logits are ``x M / scale + c``. A change of the
stream of rank ``d_head``, ``dz W_O``, changes ``x M`` by ``dz (W_O M)``: no second product with the whole unembedding.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.hooked import HookedTransformer
from circuits.models.layers import Norm

TOKENS = 256
"""Positions whose logits are held at a time: they stay in a core's cache."""


class FinalLosses:
    """From final streams to losses: norm, unembedding and cross-entropy, some positions at a time."""

    def __init__(self, model: HookedTransformer, tokens: Int[Tensor, "batch pos"], scale: Float[Tensor, "batch pos 1"] | None):
        self.model, self.cap = model, model.cfg.output_logits_soft_cap
        norm, W_U, b_U = model.ln_final, model.W_U, model.b_U
        self.norm = norm if isinstance(norm, Norm) else None
        # logits = x M / scale + c: the norm's centring and gain go into M, its bias into c.
        gain = W_U if self.norm is None or self.norm.w is None else self.norm.w[:, None] * W_U
        self.M = gain - gain.mean(0) if self.norm is not None and self.norm.centred else gain
        self.c = b_U if self.norm is None or self.norm.b is None else self.norm.b @ W_U + b_U
        self.targets = tokens[:, 1:].flatten()
        self.held = None if scale is None else 1 / scale[:, :-1].flatten(0, 1)

    def losses(self, resid: Float[Tensor, "stack batch pos d_model"]) -> Float[Tensor, "stack batch pos_minus_1"]:
        """Next-token losses of these final streams."""
        return torch.stack([self._losses_of_one(x) for x in resid])

    def _losses_of_one(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos_minus_1"]:
        x = resid[:, :-1].flatten(0, 1)
        found = [
            self._loss(x[at] @ self.M, self._rate(x[at]) if self.held is None else self.held[at], at) for at in _pieces(len(x))
        ]
        return torch.cat(found).view(len(resid), -1)

    def losses_after(
        self, resid: Float[Tensor, "batch pos d_model"], change: Float[Tensor, "*stack batch pos head d_head"], layer: int
    ) -> Float[Tensor, "*stack head batch pos_minus_1"]:
        """Losses where the final stream gets ``change[..., head, :] W_O[head]``, one head at a time, and nothing else notices."""
        W_O = self.model.blocks[layer].attn.W_O
        out = W_O @ self.M  # [head, d_head, d_vocab]
        stack = change.shape[:-4]
        x = resid[:, :-1].flatten(0, 1)
        rows = change[..., :-1, :, :].flatten(-4, -3).reshape(-1, len(x), *change.shape[-2:])
        dz = rows.transpose(1, 2).flatten(0, 1).contiguous()  # heads of all of the stack, then rows
        found = x.new_empty(len(dz), len(x))  # once: small results kept between large temporaries would keep the heap apart
        for at in _pieces(len(x)):
            y = x[at] @ self.M
            for one in range(len(dz)):
                head = one % len(W_O)
                rate = self._rate(torch.addmm(x[at], dz[one, at], W_O[head])) if self.held is None else self.held[at]
                found[one, at] = self._loss(torch.addmm(y, dz[one, at], out[head]), rate, at)
        return found.view(*stack, len(W_O), len(resid), -1)

    def _rate(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row 1"]:
        """One over the norm's scale."""
        if self.norm is None:
            return torch.ones_like(x[:, :1])
        if self.norm.centred and x.requires_grad:  # the kernel below takes no derivative of this output
            return (x.var(-1, keepdim=True, unbiased=False) + self.norm.eps).rsqrt()
        if self.norm.centred:  # the kernel of layer norm gives it several times as fast as a variance
            return torch.native_layer_norm(x, x.shape[-1:], None, None, self.norm.eps)[2]
        return (x.pow(2).mean(-1, keepdim=True) + self.norm.eps).rsqrt()

    def _loss(self, logits: Float[Tensor, "row d_vocab"], rate: Float[Tensor, "row 1"], at: slice) -> Float[Tensor, "row"]:
        # In place, these being the large tensors; where derivatives are wanted the product is needed as it was.
        logits = torch.addcmul(self.c, logits, rate, out=None if logits.requires_grad else logits)
        if self.cap > 0:
            logits = self.cap * torch.tanh(logits / self.cap)
        return F.cross_entropy(logits, self.targets[at], reduction="none")


def _pieces(length: int) -> Iterator[slice]:
    return (slice(start, start + TOKENS) for start in range(0, length, TOKENS))
