"""What a head's output does to logits, source by source: pure functions behind copying, its opposite and OV-supported induction.

At query ``i`` a head writes ``sum_k A[i, k] v_k W_O``, ``v_k`` the value at key ``k`` with its bias. Through key ``k`` alone it
changes the logits directly by

    A[i, k] L_k / sigma_i,    L_k = v_k W_O W,    W = P diag(w) W_U, less its mean over the vocabulary

``P diag(w)`` is what is linear in the final norm (centring and gain); ``sigma_i`` is its scale in the clean run, held fixed. A
logit that the whole vocabulary shares moves no probability, so effects are centred over it. Every score here is a ratio of
effects at one query, from which ``sigma_i`` cancels: it is never computed. Only the direct path counts, not what later layers
make of it, and a soft cap on logits is left out. Sources: Olsson et al. 2022, direct logit attribution (footnote 21); Elhage et
al. 2021, "Handling layer normalization".
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.models.hooked import HookedTransformer
from circuits.models.layers import Norm

BLOCK = 2**22
"""Logits held at once: 16 MB of float32."""


@dataclass(frozen=True, eq=False)
class Readout:
    """How logits are read from a residual stream: ``x W / sigma(x) + bias``, up to a constant over the vocabulary.

    Attributes:
        W: unembedding with the final norm's centring and gain, less its mean over the vocabulary. bias: of the logits.
        norm: the final norm, None if there is none.
    """

    W: Float[Tensor, "d_model d_vocab"]
    bias: Float[Tensor, "d_vocab"]
    norm: Norm | None

    @classmethod
    def of(cls, model: HookedTransformer) -> "Readout":
        """The readout of a model.

        Raises:
            ValueError: it predicts other tokens than it reads.
        """
        W_U, bias = model.W_U.detach(), model.b_U.detach()
        if W_U.shape[1] != model.cfg.d_vocab:
            raise ValueError(
                f"the model reads {model.cfg.d_vocab} tokens and predicts {W_U.shape[1]}: copying needs one vocabulary for both; "
                "measure a model with d_vocab_out = d_vocab"
            )
        norm = model.ln_final if isinstance(model.ln_final, Norm) else None
        if norm is not None and norm.b is not None:
            bias = bias + norm.b.detach() @ W_U
        W = W_U if norm is None or norm.w is None else norm.w.detach()[:, None] * W_U
        W = W - W.mean(1, keepdim=True)
        return cls(W - W.mean(0) if norm is not None and norm.centred else W, bias, norm)

    def lens(self, resid: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """Logits of a stream read as if it were the last: the logit lens, up to a constant of each row."""
        if self.norm is None:
            return resid @ self.W + self.bias
        x = resid - resid.mean(-1, keepdim=True) if self.norm.centred else resid
        return (x @ self.W) / (x.pow(2).mean(-1, keepdim=True) + self.norm.eps).sqrt() + self.bias


def sample_effects(
    v: Float[Tensor, "example key head d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    W: Float[Tensor, "d_model d_vocab"],
    tokens: Int[Tensor, "example sample"],
) -> Float[Tensor, "example head key sample"]:
    """``L_k`` at the tokens of a sample alone."""
    out = torch.einsum("ekhr,hrm->ehkm", v, W_O)
    return torch.einsum("ehkm,mes->ehks", out, W[:, tokens])


def copying_ratio(
    pattern: Float[Tensor, "example head query key"], effects: Float[Tensor, "example head key key"]
) -> Float[Tensor, "example head"]:
    """The share of what a head raises that falls on the very tokens it attends to, from -1 to 1.

    With ``raised[k, t] = max(L_k[x_t], 0)`` for every two positions of a sample of ``n`` different tokens,

        a_i = sum_k A[i, k] raised[k, k],    S_i = sum_k A[i, k] sum_t raised[k, t],    score = 4 mean_i a_i / (a_i + S_i) - 1.

    1 where every source raises itself and nothing else of the sample, -1 where none raises itself; a source that raises all
    alike gives ``4 / (n + 1) - 1``, which is chance. A query from which nothing of the sample is raised counts as chance.
    Of ``-effects`` it is the anti-copying ratio.

    Args:
        pattern: attention among the sample's positions (rows need not sum to 1: attention on BOS is no source).
        effects: of ``sample_effects``, the sample being what stands at the keys.

    Source: Olsson et al. 2022, "Head Activation Evaluators: copying"; which ratio is ours to read, see ``detectors.copying``.
    """
    raised = effects.clamp_min(0)
    own_raise = torch.einsum("ehqk,ehkk->ehq", pattern, raised)
    total = own_raise + torch.einsum("ehqk,ehk->ehq", pattern, raised.sum(-1))
    chance = 1 / (effects.shape[-1] + 1)
    ratio = torch.where(total > 0, own_raise / total.where(total > 0, 1), chance)
    return 4 * ratio.mean(-1) - 1


def own_shares(
    v: Float[Tensor, "source head d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    W: Float[Tensor, "d_model d_vocab"],
    tokens: Int[Tensor, "source"],
) -> Float[Tensor, "source head"]:
    """What a source does to its own token, relative to the largest thing it does: ``s_k = L_k[x_k] / max_t |L_k[t]|``.

    From -1 (no logit is changed more than that of the source's own token, and it is lowered) to 1 (raised); 0 where a source
    writes nothing. By sign symmetry the mean over heads with random weights is 0. Logits are held ``BLOCK`` at a time.
    """
    size = max(1, BLOCK // W.shape[1])
    shares = []
    for head in range(len(W_O)):
        out = W_O[head] @ W  # [d_head, d_vocab]: one product a head, and the sources' are d_model / d_head times smaller
        for part, at in zip(v[:, head].split(size), tokens.split(size), strict=True):
            effects = part @ out
            largest = torch.maximum(effects.amax(1), -effects.amin(1))
            its_own = effects.gather(1, at[:, None])[:, 0]
            shares.append(torch.where(largest > 0, its_own / largest.where(largest > 0, 1), 0))
    return torch.cat(shares).view(len(W_O), -1).T


def share_through(
    pattern: Float[Tensor, "example head query key"],
    mask: Bool[Tensor, "example query key"],
    shares: Float[Tensor, "example key head"],
) -> Float[Tensor, "example head"]:
    """Attention on the masked keys, each weighed by a share: ``mean over rows i with any mask of sum_k mask[i, k] A[i, k] s_k``.

    NaN for an example without such a row. At most the attention on the masked keys in size, so within [-1, 1].
    """
    rows = mask.any(-1).sum(-1)  # [example]
    weights = (mask / rows.where(rows > 0, 1)[:, None, None]).to(pattern)
    score = torch.einsum("ehqk,eqk,ekh->eh", pattern, weights, shares)
    return score.masked_fill((rows == 0)[:, None], torch.nan)


def predicted_mask(
    resid: Float[Tensor, "example pos d_model"], readout: Readout, tokens: Int[Tensor, "example pos"], most: int
) -> Bool[Tensor, "example query key"]:
    """Earlier tokens (not BOS, not the query's own position) that are among the ``most`` likeliest next ones by the logit lens.

    ``mask[i, k]``, 1 <= k < i: fewer than ``most`` tokens have a larger logit than ``x_k`` at query ``i``; ties are all in.
    """
    examples, length = tokens.shape
    size = max(1, BLOCK // readout.W.shape[1])
    seen = tokens[:, None].expand(-1, length, -1).flatten(0, 1)  # what stands at the keys, for each query
    found = []
    for part, at in zip(resid.flatten(0, 1).split(size), seen.split(size), strict=True):
        logits = readout.lens(part)
        least = logits.topk(min(most, logits.shape[1]), dim=1).values[:, -1:]
        found.append(logits.gather(1, at) >= least)
    earlier = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril(-1)
    earlier[:, 0] = False
    return torch.cat(found).view(examples, length, length) & earlier
