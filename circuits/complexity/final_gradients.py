"""Losses of final streams and their gradients in one pass: norm, unembedding and target, some sequences at a time.

With the norm's centring and gain folded into ``M`` and its bias into ``c`` (see ``circuits.models.final_losses``), logits are
``l = x M / s + c`` where ``s`` is the norm's scale, ``1 / s = r``. Let ``t`` be the target's distribution: one token, or what a
reference model says. Then

    loss  = -sum t log softmax(l)                             the divergence KL(t || softmax(l)), but for the entropy of t
    g     = softmax(l) - t                                    the gradient of the logits
    dx    = r (g M^T) - r^3 (x . g M^T) (x - mean x) / d      the gradient of the stream; the second term is the scale's

A last-layer head moves the stream by ``z W_O``, of rank ``d_head``. With ``x M = rest M + z (W_O M)`` and ``rest M`` known,
nothing of width ``d_model`` has to meet the vocabulary: since ``x . g M^T = g . x M``,

    dz   = r g (W_O M)^T - r^3 (g . x M) (x - mean x) W_O^T / d
    dW_O = ((r z)^T g) M^T - (r^3 (g . x M) z)^T (x - mean x) / d

The last position of a sequence predicts nothing: its loss means nothing, and its gradient is 0.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.final_losses import FinalLosses
from circuits.models.hooked import HookedTransformer

ROWS = 256
"""Positions whose logits are held at a time: they stay in a core's cache."""

Target = Int[Tensor, "example pos"] | Float[Tensor, "example pos d_vocab"]
RowTarget = Int[Tensor, "row"] | Float[Tensor, "row d_vocab"]


class Behind:
    """What a last-layer head does not touch: streams less its own part, and their logits' numerators ``rest M``."""

    def __init__(self, rest: Float[Tensor, "example pos d_model"], M: Float[Tensor, "d_model d_vocab"]):
        self.rest, self.rest_M = rest, rest @ M


class FinalGradients:
    """Losses and gradients behind the last layer of a model of ours, of sequences of one length."""

    def __init__(self, model: HookedTransformer, length: int):
        folded = FinalLosses(model, torch.zeros(1, 2, dtype=torch.long, device=model.W_U.device), None)
        self.M, self.c, self.norm = folded.M, folded.c, folded.norm
        self.M_T = self.M.T.contiguous()
        self.cap = model.cfg.output_logits_soft_cap
        self.length = length

    def losses(self, x: Float[Tensor, "example pos d_model"], target: Target) -> Float[Tensor, "example pos"]:
        """The loss at every position."""
        losses = x.new_empty(x.shape[:2])
        for some in self._pieces(len(x)):
            rows = x[some].flatten(0, 1)
            losses[some] = self._loss(rows @ self.M, self._rate(rows)[0], target[some].flatten(0, 1))[0].view(-1, self.length)
        return losses

    def probabilities(self, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_vocab"]:
        """What is predicted at every position of one sequence."""
        return self._loss(x @ self.M, self._rate(x)[0], torch.zeros(len(x), dtype=torch.long, device=x.device))[1]

    def losses_and_gradients(
        self, x: Float[Tensor, "example pos d_model"], target: Target
    ) -> tuple[Float[Tensor, "example pos"], Float[Tensor, "example pos d_model"]]:
        """The loss at every position, and the gradient of the sum of those that count."""
        losses, dx = x.new_empty(x.shape[:2]), torch.empty_like(x)
        for some in self._pieces(len(x)):
            rows = x[some].flatten(0, 1)
            rate, centred = self._rate(rows)
            loss, g = self._loss_and_gradient(rows @ self.M, rate, target[some].flatten(0, 1))
            back = g @ self.M_T
            if rate is not None:
                along = (rows * back).sum(-1, keepdim=True)
                back = torch.addcmul(back * rate, centred, rate.pow(3) * along, value=-1 / x.shape[-1])
            losses[some], dx[some] = loss.view(-1, self.length), back.view(-1, *x.shape[1:])
        return losses, dx

    def head_losses(
        self,
        behind: Behind,
        examples: Int[Tensor, "example"],
        z: Float[Tensor, "example pos d_head"],
        W_O: Float[Tensor, "d_head d_model"],
        target: Target,
    ) -> Float[Tensor, "example pos"]:
        """The loss at every position of ``rest + z W_O``; ``examples`` are the sequences' places in ``behind``."""
        W_O_M, losses = W_O @ self.M, z.new_empty(z.shape[:2])
        for some in self._pieces(len(z)):
            rows, at = z[some].flatten(0, 1), examples[some]
            rate, _ = self._rate(behind.rest[at].flatten(0, 1).addmm_(rows, W_O))
            y = behind.rest_M[at].flatten(0, 1).addmm_(rows, W_O_M)
            losses[some] = self._loss(y, rate, target[some].flatten(0, 1))[0].view(-1, self.length)
        return losses

    def head_losses_and_gradients(
        self,
        behind: Behind,
        examples: Int[Tensor, "example"],
        z: Float[Tensor, "example pos d_head"],
        W_O: Float[Tensor, "d_head d_model"],
        target: Target,
    ) -> tuple[Float[Tensor, "example pos"], Float[Tensor, "example pos d_head"], Float[Tensor, "d_head d_model"]]:
        """The same, and the gradients of the sum of those that count: of ``z`` and of ``W_O``."""
        W_O_M = W_O @ self.M
        W_O_M_T = W_O_M.T.contiguous()
        losses, dz = z.new_empty(z.shape[:2]), torch.empty_like(z)
        seen = torch.zeros_like(W_O_M)  # (r z)^T g
        scaled = torch.zeros_like(W_O)  # what the scale adds to dW_O
        for some in self._pieces(len(z)):
            rows, at = z[some].flatten(0, 1), examples[some]
            y = behind.rest_M[at].flatten(0, 1).addmm_(rows, W_O_M)
            rate, centred = self._rate(behind.rest[at].flatten(0, 1).addmm_(rows, W_O))
            loss, g = self._loss_and_gradient(y, rate, target[some].flatten(0, 1))
            back = g @ W_O_M_T
            if rate is None:
                seen.addmm_(rows.T, g)
            else:
                pull = centred * (torch.linalg.vecdot(g, y)[:, None] * rate.pow(3) / W_O.shape[1])
                back = back.mul_(rate).addmm_(pull, W_O.T, alpha=-1)
                seen.addmm_((rows * rate).T, g)
                scaled.addmm_(rows.T, pull, alpha=-1)
            losses[some], dz[some] = loss.view(-1, self.length), back.view(-1, *z.shape[1:])
        return losses, dz, scaled.addmm_(seen, self.M_T)

    def _pieces(self, examples: int) -> Iterator[slice]:
        together = max(1, ROWS // self.length)
        return (slice(start, start + together) for start in range(0, examples, together))

    def _rate(self, x: Float[Tensor, "row d_model"]) -> tuple[Float[Tensor, "row 1"] | None, Tensor]:
        """One over the norm's scale, None without a norm, and the stream less its mean if the norm takes that away."""
        if self.norm is None:
            return None, x
        if self.norm.centred:
            x = x - x.mean(-1, keepdim=True)
        return (torch.linalg.vecdot(x, x)[:, None] / x.shape[-1] + self.norm.eps).rsqrt(), x

    def _loss(
        self, y: Float[Tensor, "row d_vocab"], rate: Float[Tensor, "row 1"] | None, target: RowTarget
    ) -> tuple[Float[Tensor, "row"], Float[Tensor, "row d_vocab"], Float[Tensor, "row d_vocab"]]:
        """Losses, probabilities and logits."""
        logits = y + self.c if rate is None else torch.addcmul(self.c, y, rate)
        if self.cap > 0:
            logits = self.cap * torch.tanh(logits / self.cap)
        p = logits.softmax(-1)
        # log sum exp from the largest probability, which is exp(largest logit - log sum exp): one exponential, not two.
        total = logits.amax(-1) - p.amax(-1).log()
        if target.ndim == 1:
            return total - logits.gather(1, target[:, None])[:, 0], p, logits
        return total - torch.linalg.vecdot(target, logits), p, logits

    def _loss_and_gradient(
        self, y: Float[Tensor, "row d_vocab"], rate: Float[Tensor, "row 1"] | None, target: RowTarget
    ) -> tuple[Float[Tensor, "row"], Float[Tensor, "row d_vocab"]]:
        losses, g, logits = self._loss(y, rate, target)
        if target.ndim == 1:
            g.scatter_add_(1, target[:, None], g.new_full((len(g), 1), -1.0))
        else:
            g -= target
        g[self.length - 1 :: self.length] = 0
        return losses, g if self.cap <= 0 else g * (1 - (logits / self.cap).square())
