"""Do a head's token circuits copy and match? Spectra of OV, QK and K-composition in token space.

Rows are vectors; ``W_V, W_Q, W_K, W_U`` are norm-folded (``folded``). Token circuits are V x V and of rank d_head or less, and
their nonzero eigenvalues are those of r x r matrices, for which ``G = W_U W_E`` and ``C = W_E^T W_E`` are built once
(``FoldedWeights.G``, ``FoldedWeights.C``):

    OV         W_E W_V W_O W_U                        eigenvalues of  W_O G W_V
    QK         W_E W_Q W_K^T W_E^T                    eigenvalues of  W_K^T C W_Q           [query token, key token]
    K-term     W_E W_Q^l (W_E W_V^e W_O^e W_K^l)^T    eigenvalues of  (W_O^e W_K^l)^T (W_V^eT C W_Q^l)
    statistic  Re(sum of eigenvalues) / sum of their moduli, in [-1, 1]

+1 copies (OV: attending to a token raises that token) or matches (QK: tokens attend to themselves; K-term: to a key behind
a copy of themselves); -1 is the opposite. Positive eigenvalues do not prove copying, for the circuits are not normal
matrices; hence also the share of tokens whose own logit is among the k largest of their OV row.

What is left out: ``sigma`` of the norms (every token's embedding counts at its own length), positions and biases, MLPs (a
layer behind one reads more than ``W_E``), scale of attention scores. Rotary models are read at offset 0, smeared keys as
if not smeared. Eigenvalues below 1e-10 of the factors' norms count as 0: the positive fraction ignores them, and a circuit
without any other has statistic 0 and state "zero".

Measured with their nulls in ``weight_spectra`` and ``k_term``.

Source: Elhage et al. 2021, "Detecting copying behavior" and "How induction heads work"; Olsson et al. 2022, "trace of QK
eigenvalues".
"""

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from circuits.weights.factored import product_eigenvalues, product_trace

NEGLIGIBLE = 1e-10
ROW_BLOCK = 256
"""Rows of logits held at once: of a small vocabulary they stay in a processor's cache until they are compared."""


def copying_statistic(eigenvalues: Complex[Tensor, "*batch r"]) -> Float[Tensor, "*batch"]:
    """How one-sided a spectrum is: ``Re(sum of eigenvalues) / sum of moduli``.

    Args:
        eigenvalues: the nonzero ones; zeros change nothing.

    Returns:
        In [-1, 1]; 0 where all eigenvalues are 0. Chance level 0: random heads have spectra symmetric in sign.

    Source: Elhage et al. 2021, "Detecting copying behavior"; Olsson et al. 2022.
    """
    moduli = eigenvalues.abs().sum(-1)
    return eigenvalues.real.sum(-1) / torch.where(moduli > 0, moduli, 1.0)


def positive_fraction(eigenvalues: Complex[Tensor, "*batch r"]) -> Float[Tensor, "*batch"]:
    """Share of the nonzero eigenvalues with positive real part, each counted once (not weighted by modulus).

    Args:
        eigenvalues: of one matrix each.

    Returns:
        In [0, 1]; 0 where all eigenvalues are 0. Chance level one half.

    Source: Elhage et al. 2021, "Detecting copying behavior"; weighted by modulus it would repeat ``copying_statistic``.
    """
    count = (eigenvalues != 0).sum(-1)
    return (eigenvalues.real > 0).sum(-1).double() / count.clamp(min=1)


def nonzero_eigenvalues(left: Float[Tensor, "*batch m r"], right: Float[Tensor, "*batch r m"]) -> Complex[Tensor, "*batch k"]:
    """Eigenvalues of a product; exactly 0 where only rounding keeps them from it."""
    found = product_eigenvalues(left, right)
    size = torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(right)
    return torch.where(found.abs() > NEGLIGIBLE * size[..., None], found, 0.0)


def ov_eigenvalues(
    W_V: Float[Tensor, "*batch d_model d_head"],
    W_O: Float[Tensor, "*batch d_head d_model"],
    G: Float[Tensor, "d_model d_model"],
) -> Complex[Tensor, "*batch r"]:
    """Nonzero eigenvalues of the token OV circuit ``W_E W_V W_O W_U``, from ``W_O G W_V``.

    Args:
        W_V, W_O: of any number of heads, norms folded. G: ``through_tokens(W_U, W_E)``.

    Returns:
        ``r = min(d_model, d_head)`` numbers, logits per token; zeros fill up a lower rank.

    Raises:
        TypeError, ValueError: factors that do not multiply.

    Source: Elhage et al. 2021, "Detecting copying behavior".
    """
    return nonzero_eigenvalues(W_V.double(), W_O.double() @ G)


def qk_eigenvalues(
    W_Q: Float[Tensor, "*batch d_model d_head"],
    W_K: Float[Tensor, "*batch d_model d_head"],
    C: Float[Tensor, "d_model d_model"],
) -> Complex[Tensor, "*batch r"]:
    """Nonzero eigenvalues of the token QK circuit ``W_E W_Q W_K^T W_E^T``, from ``W_K^T C W_Q``.

    Args:
        W_Q, W_K: of any number of heads, norms folded. C: ``through_tokens(W_E.mT, W_E)``.

    Returns:
        ``r = min(d_model, d_head)`` numbers, attention scores before scaling; zeros fill up a lower rank.

    Raises:
        TypeError, ValueError: factors that do not multiply.

    Source: Elhage et al. 2021, "Detecting copying behavior" (QK analogue).
    """
    return nonzero_eigenvalues(W_Q.double(), W_K.double().mT @ C)


def k_term_factors(
    W_V: Float[Tensor, "*src d_model d_head"],
    W_O: Float[Tensor, "*src d_head d_model"],
    W_Q: Float[Tensor, "*#src d_model d_head"],
    W_K: Float[Tensor, "*#src d_model d_head"],
    C: Float[Tensor, "d_model d_model"],
) -> tuple[Float[Tensor, "*src d_head d_head"], Float[Tensor, "*src d_head d_head"]]:
    """``W_V^T C W_Q`` and ``(W_O W_K)^T``: their product has the trace and nonzero eigenvalues of the K-term.

    Args:
        W_V, W_O: earlier heads, which write. W_Q, W_K: one later head, which reads, or one for each earlier head.
        C: ``through_tokens(W_E.mT, W_E)``.

    Returns:
        Two d_head x d_head factors for each earlier head.

    Source: Elhage et al. 2021, "How induction heads work".
    """
    return W_V.double().mT @ (C @ W_Q.double()), (W_O.double() @ W_K.double()).mT


def ov_copying(
    W_V: Float[Tensor, "*batch d_model d_head"],
    W_O: Float[Tensor, "*batch d_head d_model"],
    G: Float[Tensor, "d_model d_model"],
) -> Float[Tensor, "*batch"]:
    """How much a head copies: ``Re(sum of eigenvalues) / sum of moduli`` of ``W_E W_V W_O W_U``.

    Args:
        W_V, W_O: of any number of heads, norms folded. G: ``through_tokens(W_U, W_E)``.

    Returns:
        In [-1, 1]; elsewhere called copying score. Random heads: mean 0, sd .095 (d_head 16), .05 (32), .024 (64).

    Raises:
        TypeError, ValueError: factors that do not multiply.

    Source: Elhage et al. 2021, "Detecting copying behavior".
    """
    return copying_statistic(ov_eigenvalues(W_V, W_O, G))


def qk_matching(
    W_Q: Float[Tensor, "*batch d_model d_head"],
    W_K: Float[Tensor, "*batch d_model d_head"],
    C: Float[Tensor, "d_model d_model"],
) -> Float[Tensor, "*batch"]:
    """How much tokens attend to their like: the copying statistic of ``W_E W_Q W_K^T W_E^T``.

    Args:
        W_Q, W_K: of any number of heads, norms folded. C: ``through_tokens(W_E.mT, W_E)``.

    Returns:
        In [-1, 1]; random heads have mean 0.

    Raises:
        TypeError, ValueError: factors that do not multiply.

    Source: Elhage et al. 2021, "Detecting copying behavior" (QK analogue).
    """
    return copying_statistic(qk_eigenvalues(W_Q, W_K, C))


def k_composition_copying(
    W_V: Float[Tensor, "*src d_model d_head"],
    W_O: Float[Tensor, "*src d_head d_model"],
    W_Q: Float[Tensor, "*#src d_model d_head"],
    W_K: Float[Tensor, "*#src d_model d_head"],
    C: Float[Tensor, "d_model d_model"],
) -> Float[Tensor, "*src"]:
    """How much a head attends to what earlier heads moved, where it is its own token: the statistic of the K-term.

    Args:
        W_V, W_O, W_Q, W_K, C: as of ``k_term_factors``.

    Returns:
        In [-1, 1]; random heads have mean 0. It says nothing of the term's size.

    Raises:
        TypeError, ValueError: factors that do not multiply.

    Source: Elhage et al. 2021, "How induction heads work".
    """
    return copying_statistic(nonzero_eigenvalues(*k_term_factors(W_V, W_O, W_Q, W_K, C)))


def qk_trace(
    W_V: Float[Tensor, "src d_model d_head"],
    W_O: Float[Tensor, "src d_head d_model"],
    W_Q: Float[Tensor, "d_model d_head"],
    W_K: Float[Tensor, "d_model d_head"],
    C: Float[Tensor, "d_model d_model"],
    previous_token: Float[Tensor, "*example src"],
) -> Float[Tensor, "*example"]:
    """Prefix matching from weights: ``sum_e p_e tr(W_E W_Q (W_E W_V^e W_O^e W_K)^T)`` over earlier heads e.

    Args:
        W_V, W_O: earlier heads. W_Q, W_K: one later head. C: ``through_tokens(W_E.mT, W_E)``.
        previous_token: p_e, attention of each earlier head to the previous token, in [0, 1]; on average, or by example.

    Returns:
        Attention scores before scaling, summed over the vocabulary: any real number, 0 by chance. Not normalised.

    Raises:
        TypeError, ValueError: factors that do not multiply.

    Source: Olsson et al. 2022, "trace of QK eigenvalues".
    """
    return previous_token.double() @ product_trace(*k_term_factors(W_V, W_O, W_Q, W_K, C))


def diagonal_ranks(
    read: Float[Tensor, "token r"], out: Float[Tensor, "r d_vocab"], tokens: Int[Tensor, "token"]
) -> Int[Tensor, "token"]:
    """How many other tokens have at least a token's own logit in its row of ``W_E W_V W_O W_U``.

    Args:
        read: what the head reads of each token looked at, ``W_E[tokens] W_V``. out: logits of what it writes, ``W_O W_U``, norms
            folded, of the same precision. tokens: the ids of the rows, which are made in blocks of ``ROW_BLOCK``.

    Returns:
        In 0 (own logit largest) .. V - 1; ties count against the token, so that a zero head copies nothing.

    Source: Elhage et al. 2021, "Detecting copying behavior" (alternatives named there).
    """
    ranks = []
    for rows, ids in zip(read.split(ROW_BLOCK), tokens.split(ROW_BLOCK), strict=True):
        logits = rows @ out  # [token, d_vocab]
        own = logits.gather(1, ids[:, None])
        above = torch.from_numpy(np.greater_equal(logits.numpy(), own.numpy()))  # numpy compares twice as fast as torch
        ranks.append(above.view(torch.uint8).sum(1, dtype=torch.int32).long() - 1)
    return torch.cat(ranks)
