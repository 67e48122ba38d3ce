"""The composition scores alone, as fast as they can be had: no nulls, no components, any precision.

For every earlier head and every later one (rows are vectors; weights of any kind, folded or not)

    S = ||A B||^2 / (||A||^2 ||B||^2),   A = W_V W_O,   B = W_Q W_K^T (Q), W_K W_Q^T (K), W_V W_O (V),

and the score is its root. The factor that a product begins or ends with enters by the triangle of its Gram matrix,
``||L X|| = ||R X||`` for ``L^T L = R^T R``, so every head writes, or reads, one ``r x d`` matrix. With ``X`` of a writer and
``Y`` of a reader

    ||X Y^T||^2 = <X^T X, Y^T Y>,

an inner product of two symmetric ``d x d`` matrices. They cost ``r d^2`` for each *head* and ``d^2`` for each pair, where
products cost ``r^2 d`` for each pair: several times less where there are many heads. Only a strip of rows of each is held, and
of a symmetric matrix half is enough. Grams cancel where two heads hardly meet, so pairs with ``S < 1e-4`` are multiplied out.

``circuits.weights.composition`` has the same numbers with their nulls, through singular vectors. Source: Elhage et al. 2021,
"composition scores".
"""

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.weights.interfaces import MODES

STRIP_BYTES = 24 * 2**20
"""How much of the symmetric matrices is held at once."""
HARDLY = 1e-4


def composition_scores(
    W_Q: Float[Tensor, "layer head d_model d_head"],
    W_K: Float[Tensor, "layer head d_model d_head"],
    W_V: Float[Tensor, "layer head d_model d_head"],
    W_O: Float[Tensor, "layer head d_head d_model"],
) -> Float[Tensor, "mode src_layer src_head dst_layer dst_head"]:
    """Q-, K- and V-composition of every earlier head with every later one.

    Args:
        W_Q, W_K, W_V, W_O: a model's weights. Fold its norms in first, or unequal gains distort the scores:
            ``w = folded(model)``, then ``w.W_Q, w.W_K, w.W_V, w.writes(w.W_O)``.

    Returns:
        In [0, 1], modes in the order Q, K, V; 0 for a zero head, NaN where the source is not in an earlier layer. Chance about
        ``1 / sqrt(d_model)``; see ``circuits.weights.composition`` for what a score is worth. Exact to 1e-6 in float32.

    Raises:
        TypeError: not tensors of one precision, float32 or float64. ValueError: NaN weights, or shapes that do not belong
            together (grouped keys and values must be expanded to one for each head).

    Source: the module's docstring.
    """
    weights = {"W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": W_O}
    for name, weight in weights.items():
        if not isinstance(weight, Tensor) or weight.dtype not in (torch.float32, torch.float64) or weight.dtype != W_Q.dtype:
            given = str(weight.dtype) if isinstance(weight, Tensor) else type(weight).__name__
            raise TypeError(f"{name} is {given}; need four float32 or four float64 tensors, e.g. model.W_Q")
        if weight.ndim != 4 or not bool(torch.isfinite(weight).all()):
            fault = "holds NaN or infinite weights" if weight.ndim == 4 else f"has shape {tuple(weight.shape)}"
            raise ValueError(f"{name} {fault}; need [layer, head, d_model, d_head] of finite numbers, e.g. model.W_Q")
    layers, heads, d_model, r = W_Q.shape
    expected = {"W_K": (layers, heads, d_model, r), "W_V": (layers, heads, d_model, r), "W_O": (layers, heads, r, d_model)}
    for name, weight in (("W_K", W_K), ("W_V", W_V), ("W_O", W_O)):
        if tuple(weight.shape) != expected[name]:
            raise ValueError(
                f"{name} has shape {tuple(weight.shape)}, with W_Q {tuple(W_Q.shape)} it has to be {expected[name]}: "
                "expand grouped heads with repeat_interleave(n_heads // n_key_value_heads, 1)"
            )
    q, k, v, o = (weight.detach().flatten(0, 1) for weight in (W_Q.mT, W_K.mT, W_V.mT, W_O))  # [head r d_model]
    grams = [(x @ x.mT).double() for x in (q, k, v, o)]
    writes, reads = ((grams[i] * grams[j]).sum((1, 2)).clamp(min=0) for i, j in ((2, 3), (0, 1)))
    # What multiplies W_O of a writer, and W_Q, W_K, W_V of a reader: small, so it is here that norms are divided by.
    of_v, of_k, of_q, of_o = (
        (triangle(gram) / _root(squares)).to(o.dtype)
        for gram, squares in ((grams[2], writes), (grams[1], reads), (grams[0], reads), (grams[3], writes))
    )
    earlier, later = slice(0, (layers - 1) * heads), slice(heads, None)
    written = of_v[earlier] @ o[earlier]
    read = o.new_empty(layers - 1, len(MODES), heads, r, d_model)
    for mode, (left, x) in enumerate(((of_k, q), (of_q, k), (of_o, v))):
        read[:, mode] = (left[later] @ x[later]).unflatten(0, (layers - 1, heads))
    read = read.flatten(1, 2)
    squared = _overlaps(written, read)
    scores = o.new_full((layers * heads, len(MODES), layers, heads), torch.nan)
    for later in range(1, layers):
        found = squared[: later * heads, later - 1]
        for source, reader in ((found < HARDLY) & (found != 0)).nonzero().tolist():
            found[source, reader] = (written[source] @ read[later - 1, reader].mT).square().sum()
        scores[: later * heads, :, later] = found.sqrt().unflatten(1, (len(MODES), heads))
    return scores.view(layers, heads, len(MODES), layers, heads).permute(2, 0, 1, 3, 4)


def _overlaps(
    written: Float[Tensor, "src r d_model"], read: Float[Tensor, "later reader r d_model"]
) -> Float[Tensor, "src later reader"]:
    """``||X Y^T||^2`` of every writer with every reader of a later layer, strip by strip of rows of ``X^T X`` and ``Y^T Y``."""
    later, readers, _, d_model = read.shape
    heads = len(written) // later if later else 0
    total = written.new_zeros(len(written), later, readers)
    rows = max(1, STRIP_BYTES // (written.element_size() * d_model * (len(written) + later * readers) or 1))
    for start in range(0, d_model, rows):
        # Right of the diagonal block every entry stands for its mirror image too; twice half the block is the block.
        strip, rest = slice(start, start + rows), slice(start, None)
        of_writers = (written[..., strip].mT @ written[..., rest]).flatten(1)
        of_readers = read[..., strip].mT @ read[..., rest]
        of_readers[..., :rows] *= 0.5
        for layer in range(later):
            n = (layer + 1) * heads
            total[:n, layer] += of_writers[:n] @ of_readers[layer].flatten(1).mT
    return (2 * total).clamp(min=0)


def _root(squares: Float[Tensor, "head"]) -> Float[Tensor, "head 1 1"]:
    """Norms to divide by; 1 for a zero head, whose matrix stays zero."""
    return torch.where(squares > 0, squares, 1).sqrt()[:, None, None]


def triangle(gram: Float[Tensor, "head r r"]) -> Float[Tensor, "head r r"]:
    """``R`` with ``R^T R`` the Gram matrix: Cholesky's, or the root by eigenvalues where one of them is singular."""
    lower, fault = torch.linalg.cholesky_ex(gram)
    if not bool(fault.any()):
        return lower.mT
    values, vectors = torch.linalg.eigh(gram)
    return values.clamp(min=0).sqrt()[..., None] * vectors.mT
