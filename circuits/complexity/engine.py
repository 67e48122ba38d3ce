"""The loss of one head's weights, with all else of the model run once: fast and exact.

Of a head in layer ``l`` these never change and are shared by all its chains and draws: what it reads, ``ln1(resid_pre)``; the
stream behind its layer less what it wrote itself, ``rest``; and in the last layer the logits of that, ``rest M``. A draw costs
the head's own attention, the layers above it, and the unembedding; in the last layer a product of rank ``d_head`` instead of
that. Chains are stacked: every chain multiplies its own batch with its own weights.

A head's weights are one vector: ``W_Q, W_K, W_V [d_model, d_head]``, ``W_O [d_head, d_model]``, ``b_Q, b_K, b_V [d_head]``, one
behind the other (the weights that Wang et al. 2024 and devinterp call a head's; its output bias and norms belong to the layer).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.complexity.blocks import HEAD_PARTS
from circuits.complexity.final_gradients import Behind
from circuits.complexity.pool import TOGETHER, Pool
from circuits.models.heads import Head
from circuits.models.layers import Attention, smear

MAX_BYTES = 2**28
"""Of the logits of the frozen part, which are kept only if they are no larger."""

Losses = Float[Tensor, "chain example pos_minus_1"]


class Weights(NamedTuple):
    """A head's weights, of every chain."""

    W_Q: Float[Tensor, "chain d_model d_head"]
    W_K: Float[Tensor, "chain d_model d_head"]
    W_V: Float[Tensor, "chain d_model d_head"]
    W_O: Float[Tensor, "chain d_head d_model"]
    b_Q: Float[Tensor, "chain 1 d_head"]
    b_K: Float[Tensor, "chain 1 d_head"]
    b_V: Float[Tensor, "chain 1 d_head"]


def head_vector(attn: Attention, head: int) -> Float[Tensor, "parameter"]:
    """A head's weights as one vector."""
    return torch.cat([getattr(attn, part)[head].detach().flatten() for part in HEAD_PARTS])


class HeadLoss:
    """The loss of one head's weights over a pool; see ``circuits.complexity.chains.Loss``."""

    def __init__(self, pool: Pool, head: Head, max_bytes: int = MAX_BYTES):
        self.pool, self.head = pool, head
        self.block = pool.model.blocks[head.layer]
        self.centre = head_vector(self.block.attn, head.head)
        self.base = pool.base
        cfg = pool.model.cfg
        self.reads = pool.normed[head.layer]
        beside = cfg.attn_only or cfg.parallel_attn_mlp  # nothing else of the layer reads what the head writes
        behind = pool.streams[head.layer + 1] if beside else pool.mid[head.layer]
        with torch.no_grad():
            places = torch.arange(len(behind), device=behind.device)
            own = [self._written(self.centre[None], some[None])[0] for some in places.split(TOGETHER)]
            self.rest = behind - torch.cat(own)
            fits = self.rest[..., 0].numel() * cfg.d_vocab_out * self.rest.element_size() <= max_bytes
            last = head.layer == cfg.n_layers - 1 and beside
            self.behind = Behind(self.rest, pool.final.M) if last and fits else None

    def loss(self, w: Float[Tensor, "chain parameter"], examples: Int[Tensor, "chain example"]) -> Losses:
        """Losses of every chain on its sequences."""
        final, targets = self.pool.final, self.pool.target
        with torch.no_grad():
            weights = self._unpacked(w)
            if self.behind is None:
                pairs = zip(self._streams(weights, examples), examples, strict=True)
                found = [final.losses(x, targets[at]) for x, at in pairs]
            else:
                chains = zip(examples, self._gathered(weights, examples), weights.W_O, strict=True)
                found = [final.head_losses(self.behind, at, z, W_O, targets[at]) for at, z, W_O in chains]
        return torch.stack(found)[..., :-1] - self.pool.entropy[examples]

    def loss_and_gradient(
        self, w: Float[Tensor, "chain parameter"], examples: Int[Tensor, "chain example"]
    ) -> tuple[Losses, Float[Tensor, "chain parameter"]]:
        """The same, and the gradient of each chain's mean."""
        final, targets = self.pool.final, self.pool.target
        w = w.detach().requires_grad_()
        weights = self._unpacked(w)
        if self.behind is None:
            streams = self._streams(weights, examples)
            with torch.no_grad():
                pairs = zip(streams, examples, strict=True)
                found = [final.losses_and_gradients(x, targets[at]) for x, at in pairs]
            losses, back = (torch.stack(part) for part in zip(*found, strict=True))
            (gradient,) = torch.autograd.grad(streams, w, back)
        else:
            gathered = self._gathered(weights, examples)
            with torch.no_grad():
                chains = zip(examples, gathered, weights.W_O, strict=True)
                found = [final.head_losses_and_gradients(self.behind, at, z, W_O, targets[at]) for at, z, W_O in chains]
            losses, dz, dW_O = (torch.stack(part) for part in zip(*found, strict=True))
            (gradient,) = torch.autograd.grad(gathered, w, dz)
            self._unpacked(gradient).W_O.add_(dW_O)
        losses = losses[..., :-1] - self.pool.entropy[examples]
        return losses, gradient / losses[0].numel()

    def _unpacked(self, w: Float[Tensor, "chain parameter"]) -> Weights:
        attn, head = self.block.attn, self.head.head
        shapes = [getattr(attn, part)[head].shape for part in HEAD_PARTS]
        parts = zip(w.split([shape.numel() for shape in shapes], dim=1), shapes, strict=True)
        return Weights(*(part.unflatten(1, shape if len(shape) > 1 else (1, *shape)) for part, shape in parts))

    def _gathered(self, weights: Weights, examples: Int[Tensor, "chain example"]) -> Float[Tensor, "chain example pos d_head"]:
        """What the head attends to, weighted: ``z``."""
        attn, head = self.block.attn, self.head.head
        normed = self.reads[examples]  # [chain, example, pos, d_model]
        placed = normed if self.pool.pos is None else normed + self.pool.pos
        rows = (*normed.shape[:1], -1, normed.shape[-1])
        q = torch.baddbmm(weights.b_Q, placed.reshape(rows), weights.W_Q)
        k = torch.baddbmm(weights.b_K, placed.reshape(rows), weights.W_K)
        v = torch.baddbmm(weights.b_V, normed.reshape(rows), weights.W_V)
        q, k, v = (x.reshape(-1, normed.shape[2], 1, x.shape[-1]) for x in (q, k, v))  # [chain * example, pos, 1 head, d_head]
        if attn.cfg.smeared_keys:
            k = smear(k, attn.alpha_smear[head : head + 1])
        if attn.cfg.positional_embedding_type == "rotary":
            q, k = attn.rotate(q), attn.rotate(k)
        return attn.gather(q, k, v).reshape(*normed.shape[:3], -1)

    def _written(
        self, w: Float[Tensor, "chain parameter"], examples: Int[Tensor, "chain example"]
    ) -> Float[Tensor, "chain example pos d_model"]:
        weights = self._unpacked(w)
        return self._gathered(weights, examples) @ weights.W_O[:, None]

    def _streams(self, weights: Weights, examples: Int[Tensor, "chain example"]) -> Float[Tensor, "chain example pos d_model"]:
        """Final streams."""
        model = self.pool.model
        resid = self.rest[examples] + self._gathered(weights, examples) @ weights.W_O[:, None]
        shape, resid = resid.shape, resid.flatten(0, 1)
        if not (model.cfg.attn_only or model.cfg.parallel_attn_mlp):
            resid = resid + self.block.mlp(self.block.ln2(resid))
        for block in model.blocks[self.head.layer + 1 :]:
            resid = block(resid, self.pool.pos)
        return resid.view(shape)
