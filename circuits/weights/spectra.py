"""Do a head's token circuits copy and match? Spectra of OV, QK and K-composition in token space, with nulls.

Rows are vectors; ``W_V, W_Q, W_K, W_U`` are norm-folded (``folded``). Token circuits are V x V and of rank d_head or less, and
their nonzero eigenvalues are those of r x r matrices, for which ``G = W_U W_E`` and ``C = W_E^T W_E`` are built once:

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
without any other has statistic 0 and status "zero".

The null is a random head: Gaussian weights of the same shapes in place of the head's (both heads' for the K-term), with the
norms' centring but not their gains, and this model's own embeddings. It answers "does a head of random orientation do
this?"; a trained head that has nothing to do with copying may still beat it. The statistics do not depend on scale;
``qk_trace`` does, and its random heads have the head's own norms. For the diagonal the null's mean is k / V whatever the
embeddings are: a Gaussian ``W_V`` gives every token's row the same law up to a factor, so the chances of all V tokens to
be among the k largest add up to k.

Source: Elhage et al. 2021, "Detecting copying behavior" and "How induction heads work"; Olsson et al. 2022, "trace of QK
eigenvalues"; Ginibre 1965 for the sign symmetry of random spectra.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from circuits.models.protocol import model_hash
from circuits.results import array_hash, digest, labelled
from circuits.weights.factored import product_eigenvalues, product_norm, product_trace
from circuits.weights.folded import FoldedWeights, folded

STATISTICS = (
    "ov_copying",
    "ov_positive_fraction",
    "ov_top1",
    "ov_top5",
    "qk_matching",
    "qk_positive_fraction",
    "qk_trace",
)
NEGLIGIBLE = 1e-10
TOKEN_BLOCK = 4096
ROW_BLOCK = 1024
LOGIT_BLOCK = 2**24
"""Logits held at once: 128 MB; at large vocabularies row blocks are smaller than ROW_BLOCK."""
NO_STDERR = "none: a function of the weights alone"
NULL = "random heads: Gaussian weights of the same shapes, the model's own embeddings"


def through_tokens(
    W_U: Float[Tensor, "d_model d_vocab"], W_E: Float[Tensor, "d_vocab d_model"]
) -> Float[Tensor, "d_model d_model"]:
    """``W_U W_E``, summed over the vocabulary in blocks, in float64 without a float64 copy of either.

    Args:
        W_U: unembedding, or ``W_E.mT`` for the Gram matrix of the embedding. W_E: embedding.

    Returns:
        Its trace is the trace of the direct path ``W_E W_U``.

    Raises:
        ValueError: two vocabularies of different size.

    Source: Elhage et al. 2021; the cyclic identity in the module's docstring.
    """
    if W_U.shape[1] != W_E.shape[0]:
        raise ValueError(
            f"W_U predicts {W_U.shape[1]} tokens and W_E reads {W_E.shape[0]}: copying needs one vocabulary for both; "
            "pass W_U[:, ids] and W_E[ids] of the tokens they share"
        )
    total = torch.zeros(W_U.shape[0], W_E.shape[1], dtype=torch.float64, device=W_E.device)
    for columns, rows in zip(W_U.split(TOKEN_BLOCK, dim=1), W_E.split(TOKEN_BLOCK), strict=True):
        total.addmm_(columns.double(), rows.double())
    return total


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


def _nonzero(left: Float[Tensor, "*batch m r"], right: Float[Tensor, "*batch r m"]) -> Complex[Tensor, "*batch k"]:
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
    return _nonzero(W_V.double(), W_O.double() @ G)


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
    return _nonzero(C @ W_Q.double(), W_K.double().mT)


def k_term_factors(
    W_V: Float[Tensor, "*src d_model d_head"],
    W_O: Float[Tensor, "*src d_head d_model"],
    W_Q: Float[Tensor, "d_model d_head"],
    W_K: Float[Tensor, "d_model d_head"],
    C: Float[Tensor, "d_model d_model"],
) -> tuple[Float[Tensor, "*src d_head d_head"], Float[Tensor, "*src d_head d_head"]]:
    """``W_V^T C W_Q`` and ``(W_O W_K)^T``: their product has the trace and nonzero eigenvalues of the K-term.

    Args:
        W_V, W_O: earlier heads, which write. W_Q, W_K: one later head, which reads. C: ``through_tokens(W_E.mT, W_E)``.

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
    W_Q: Float[Tensor, "d_model d_head"],
    W_K: Float[Tensor, "d_model d_head"],
    C: Float[Tensor, "d_model d_model"],
) -> Float[Tensor, "*src"]:
    """How much a head attends to what earlier heads moved, where it is its own token: the statistic of the K-term.

    Args:
        W_V, W_O: earlier heads, which write. W_Q, W_K: one later head, which reads. C: ``through_tokens(W_E.mT, W_E)``.

    Returns:
        In [-1, 1]; random heads have mean 0. It says nothing of the term's size.

    Raises:
        TypeError, ValueError: factors that do not multiply.

    Source: Elhage et al. 2021, "How induction heads work".
    """
    return copying_statistic(_nonzero(*k_term_factors(W_V, W_O, W_Q, W_K, C)))


def qk_trace(
    W_V: Float[Tensor, "src d_model d_head"],
    W_O: Float[Tensor, "src d_head d_model"],
    W_Q: Float[Tensor, "d_model d_head"],
    W_K: Float[Tensor, "d_model d_head"],
    C: Float[Tensor, "d_model d_model"],
    previous_token: Float[Tensor, "src"],
) -> Float[Tensor, ""]:
    """Prefix matching from weights: ``sum_e p_e tr(W_E W_Q (W_E W_V^e W_O^e W_K)^T)`` over earlier heads e.

    Args:
        W_V, W_O: earlier heads. W_Q, W_K: one later head. C: ``through_tokens(W_E.mT, W_E)``.
        previous_token: p_e, attention of each earlier head to the previous token, in [0, 1].

    Returns:
        Attention scores before scaling, summed over the vocabulary: any real number, 0 by chance. Not normalised.

    Raises:
        TypeError, ValueError: factors that do not multiply.

    Source: Olsson et al. 2022, "trace of QK eigenvalues".
    """
    return (previous_token.double() * product_trace(*k_term_factors(W_V, W_O, W_Q, W_K, C))).sum()


def diagonal_ranks(
    W_E: Float[Tensor, "d_vocab d_model"],
    W_V: Float[Tensor, "d_model d_head"],
    W_O: Float[Tensor, "d_head d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    tokens: Int[Tensor, "token"],
) -> Int[Tensor, "token"]:
    """How many other tokens have at least a token's own logit in its row of ``W_E W_V W_O W_U``.

    Args:
        W_E, W_V, W_O, W_U: norms folded. tokens: the rows to look at; they are made in blocks of at most 1024.

    Returns:
        In 0 (own logit largest) .. V - 1; ties count against the token, so that a zero head copies nothing.

    Source: Elhage et al. 2021, "Detecting copying behavior" (alternatives named there).
    """
    out = W_O.double() @ W_U.double()
    ranks = []
    for block in tokens.split(max(1, min(ROW_BLOCK, LOGIT_BLOCK // out.shape[1]))):
        logits = (W_E[block].double() @ W_V.double()) @ out  # [token, d_vocab]
        own = logits.gather(1, block[:, None])
        ranks.append((logits >= own).sum(1) - 1)
    return torch.cat(ranks)


def two_sided_p(value: Float[np.ndarray, "*shape"], null: Float[np.ndarray, "sample *#shape"]) -> Float[np.ndarray, "*shape"]:
    """Empirical p: ``2 (1 + number of null samples at least as far out on the nearer side) / (n + 1)``, at most 1.

    Args:
        value: what was measured. null: samples of it by chance, first axis; broadcast against the rest.

    Returns:
        In [2 / (n + 1), 1]; NaN where the value is.

    Source: Davison & Hinkley 1997, section 4.2.
    """
    beyond = np.minimum((null >= value).sum(0), (null <= value).sum(0))
    return np.where(np.isnan(value), np.nan, np.minimum(1.0, 2.0 * (1 + beyond) / (len(null) + 1)))


_KEPT: dict[str, dict[str, np.ndarray]] = {}


def _remembered(key: str, sample: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The null of one shape and embedding, sampled once; the last eight are kept."""
    if key not in _KEPT:
        if len(_KEPT) >= 8:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = sample()
    return _KEPT[key]


def _embedding_hash(w: FoldedWeights, *, both: bool) -> str:
    """Of the embedding, and of the unembedding where the null reads ``both``; block by block, to copy neither whole."""
    blocks = [*w.W_E.split(TOKEN_BLOCK), *(w.W_U.split(TOKEN_BLOCK, dim=1) if both else ())]
    return digest([array_hash(block) for block in blocks])


def _random_heads(w: FoldedWeights, count: int, stream: tuple[int, int], *kinds: str) -> Iterator[list[Tensor]]:
    """Gaussian weights, one head after the other; readers do not see the mean where the model's do not."""
    d_model, d_head = w.W_V.shape[-2:]
    rng = torch.Generator().manual_seed(int(np.random.SeedSequence(stream).generate_state(1)[0]))
    for _ in range(count):
        drawn = [torch.randn(d_head, d_model, generator=rng, dtype=torch.float64) for _ in kinds]
        yield [x if kind == "W_O" else w.writes(x).T for kind, x in zip(kinds, drawn, strict=True)]


def _checked(null_seeds: int, seed: int) -> None:
    if null_seeds < 0 or null_seeds == 1 or seed < 0:
        raise ValueError(
            f"null_seeds={null_seeds}, seed={seed}: need a seed of at least 0 and at least 2 random heads for a standard "
            "deviation; null_seeds=0 leaves the null out"
        )


def _beside(value: np.ndarray, null: np.ndarray | None) -> dict[str, np.ndarray]:
    """Null mean, sd, z and p of an array of values; NaN without a null."""
    nothing = np.full_like(value, np.nan)
    if null is None:
        return {"value": value, "null_mean": nothing, "null_sd": nothing, "z": nothing, "p": nothing}
    defined = ~np.isnan(value)
    mean = np.where(defined, null.mean(0), np.nan)
    sd = np.where(defined, null.std(0, ddof=1), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (value - mean) / sd
    return {"value": value, "null_mean": mean, "null_sd": sd, "z": z, "p": two_sided_p(value, null)}


@dataclass(frozen=True)
class WeightSpectra:
    """Spectra and diagonals of every head's token circuits: ``Dataset(layer, head, statistic)``.

    Args:
        previous_token: attention of every head to the previous token, ``[layer, head]`` in [0, 1], for ``qk_trace`` (the
            previous_token column of ``circuits.detect``); without it ``qk_trace`` is missing. Every model measured gets the same.
        null_seeds: random heads behind the null; 0 leaves it out (NaN). seed: of the random heads and the token sample.
        diagonal_tokens: rows of the OV circuit looked at for ``ov_top1`` and ``ov_top5``, drawn without replacement (all of
            them if the vocabulary is no larger); 0 leaves both out.
    """

    previous_token: Any = field(default=None, compare=False)
    null_seeds: int = 199
    seed: int = 0
    diagonal_tokens: int = 1024
    name: str = field(default="weight_spectra", init=False)
    version: int = field(default=1, init=False)
    _scores: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        _checked(self.null_seeds, self.seed)
        if self.diagonal_tokens < 0:
            raise ValueError(f"diagonal_tokens={self.diagonal_tokens}: need at least 0, which leaves the diagonal out")
        if self.previous_token is not None:
            given = self.previous_token
            scores = np.array(given.detach().cpu().numpy() if isinstance(given, Tensor) else given, dtype=np.float64)
            if scores.ndim != 2 or not scores.size or not bool(((scores >= 0) & (scores <= 1)).all()):
                span = f"{scores.min():.2f}..{scores.max():.2f}" if scores.size else "none"
                raise ValueError(
                    f"previous_token has shape {scores.shape} and values {span}; need attention "
                    "in [0, 1] for each [layer, head]: circuits.detect(model).value.sel(detector='previous_token').values"
                )
            object.__setattr__(self, "previous_token", scores)
            object.__setattr__(self, "_scores", array_hash(scores))

    def spec(self) -> dict[str, Any]:
        return {
            "previous_token": self._scores or None,
            "null_seeds": self.null_seeds,
            "seed": self.seed,
            "diagonal_tokens": self.diagonal_tokens,
        }

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Dataset with dims ``layer, head, statistic``: ``value``, ``stderr`` (binomial over tokens for the diagonal, NaN
            for functions of the weights alone), ``null_mean``, ``null_sd``, ``z``, ``p`` (two-sided, empirical) and
            ``status``: ok, zero (a circuit that does nothing; its value is 0) or missing (``qk_trace`` in layer 0 or
            without previous-token scores, a diagonal that was not asked for).

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, two vocabularies, previous-token scores of another shape.
        """
        w = folded(model)
        shape = w.W_V.shape[:2]
        if self.previous_token is not None and self.previous_token.shape != tuple(shape):
            raise ValueError(
                f"previous_token has shape {self.previous_token.shape} and the model has (layers, heads) = {tuple(shape)}; pass "
                "the scores of this model: circuits.detect(model).value.sel(detector='previous_token').values"
            )
        G, C = through_tokens(w.W_U, w.W_E), through_tokens(w.W_E.mT, w.W_E)
        rows = self._rows(w.W_E.shape[0])
        values, zero = self._values(w, G, C, rows)
        nulls: dict[str, np.ndarray] = {}
        if self.null_seeds:
            key = self._key(w)
            nulls |= _remembered(key, lambda: self._null(w, G, C, rows))
            if self.previous_token is not None and shape[0] > 1:
                nulls["qk_trace"] = self._trace_null(w, C)
        columns = [_beside(values[name], nulls.get(name)) for name in STATISTICS]
        dims = ("layer", "head", "statistic")
        variables = {key: (dims, np.stack([column[key] for column in columns], -1)) for key in columns[0]}
        value = variables["value"][1]
        stderr = np.full_like(value, np.nan)
        for name in ("ov_top1", "ov_top5"):
            share = value[..., STATISTICS.index(name)]
            stderr[..., STATISTICS.index(name)] = np.sqrt(share * (1 - share) / max(len(rows), 1))
        empty = np.stack([zero[name] for name in STATISTICS], -1)
        status = np.where(np.isnan(value), "missing", np.where(empty, "zero", "ok"))
        return labelled(
            {"value": variables.pop("value"), "stderr": (dims, stderr), **variables, "status": (dims, status)},
            {"layer": np.arange(shape[0]), "head": np.arange(shape[1]), "statistic": list(STATISTICS)},
            measure=self,
            definition="spectra, diagonals of W_E W_V W_O W_U and W_E W_Q W_K^T W_E^T, norms folded (circuits.weights.spectra)",
            source="Elhage et al. 2021; Olsson et al. 2022",
            model_hash=model_hash(model),
            seed=self.seed,
            stderr=f"{NO_STDERR}; ov_top1 and ov_top5: binomial over tokens",
            n_tokens=len(rows),
            null=f"{NULL}; qk_trace: random readers with the head's own norms" if self.null_seeds else "none asked for",
            smallest_p=2 / (self.null_seeds + 1) if self.null_seeds else np.nan,
        )

    def _key(self, w: FoldedWeights) -> str:
        """What the null depends on; previous-token scores are not among it."""
        asked = [self.name, self.null_seeds, self.seed, self.diagonal_tokens]
        return digest([*asked, list(w.W_V.shape[-2:]), w.centred, _embedding_hash(w, both=True)])

    def _rows(self, d_vocab: int) -> Tensor:
        """Tokens whose OV rows are looked at."""
        drawn = np.random.default_rng([self.seed, 20]).permutation(d_vocab)[: self.diagonal_tokens]
        return torch.from_numpy(np.sort(drawn))

    def _diagonal(self, ranks: Int[Tensor, "*batch token"]) -> dict[str, np.ndarray]:
        return {f"ov_top{k}": (ranks < k).double().mean(-1).numpy() for k in (1, 5)}

    def _values(
        self, w: FoldedWeights, G: Tensor, C: Tensor, rows: Tensor
    ) -> tuple[dict[str, np.ndarray], dict[str, Bool[np.ndarray, "layer head"]]]:
        """Every statistic of every head, and which circuits are zero."""
        ov, qk = ov_eigenvalues(w.W_V, w.W_O, G), qk_eigenvalues(w.W_Q, w.W_K, C)
        heads = [divmod(i, w.W_V.shape[1]) for i in range(w.W_V.shape[0] * w.W_V.shape[1])]
        trace = np.full(w.W_V.shape[:2], np.nan)
        if self.previous_token is not None:
            for layer, head in heads[w.W_V.shape[1] :]:
                earlier = (w.W_V[:layer].flatten(0, 1), w.W_O[:layer].flatten(0, 1))
                scores = torch.from_numpy(self.previous_token[:layer]).flatten()
                trace[layer, head] = float(qk_trace(*earlier, w.W_Q[layer, head], w.W_K[layer, head], C, scores))
        ranks = torch.stack([diagonal_ranks(w.W_E, w.W_V[at], w.W_O[at], w.W_U, rows) for at in heads]) if len(rows) else None
        nothing = np.full(w.W_V.shape[:2], np.nan)
        diagonal = (
            {"ov_top1": nothing, "ov_top5": nothing} if ranks is None else self._diagonal(ranks.unflatten(0, nothing.shape))
        )
        values = {
            "ov_copying": copying_statistic(ov).numpy(),
            "ov_positive_fraction": positive_fraction(ov).numpy(),
            "qk_matching": copying_statistic(qk).numpy(),
            "qk_positive_fraction": positive_fraction(qk).numpy(),
            "qk_trace": trace,
            **diagonal,
        }
        no_ov, no_qk = (~(found != 0).any(-1).numpy() for found in (ov, qk))
        writes_nothing, reads_nothing = product_norm(w.W_V, w.W_O) == 0, product_norm(w.W_Q, w.W_K.mT) == 0
        zero = {"ov_copying": no_ov, "ov_positive_fraction": no_ov, "qk_matching": no_qk, "qk_positive_fraction": no_qk}
        return values, zero | {
            "qk_trace": reads_nothing.numpy(),
            "ov_top1": writes_nothing.numpy(),
            "ov_top5": writes_nothing.numpy(),
        }

    def _null(self, w: FoldedWeights, G: Tensor, C: Tensor, rows: Tensor) -> dict[str, np.ndarray]:
        """The statistics of random heads, each ``[sample, 1, 1]``: the same for every head of the model."""
        ov, qk, ranks = [], [], []
        for W_V, W_O in _random_heads(w, self.null_seeds, (self.seed, 21), "W_V", "W_O"):
            ov.append(ov_eigenvalues(W_V, W_O, G))
            if len(rows):
                ranks.append(diagonal_ranks(w.W_E, W_V, W_O, w.W_U, rows))
        for W_Q, W_K in _random_heads(w, self.null_seeds, (self.seed, 22), "W_Q", "W_K"):
            qk.append(qk_eigenvalues(W_Q, W_K, C))
        found = {
            "ov_copying": copying_statistic(torch.stack(ov)).numpy(),
            "ov_positive_fraction": positive_fraction(torch.stack(ov)).numpy(),
            "qk_matching": copying_statistic(torch.stack(qk)).numpy(),
            "qk_positive_fraction": positive_fraction(torch.stack(qk)).numpy(),
            **(self._diagonal(torch.stack(ranks)) if ranks else {}),
        }
        return {name: samples[:, None, None] for name, samples in found.items()}

    def _trace_null(self, w: FoldedWeights, C: Tensor) -> np.ndarray:
        """``qk_trace`` of random readers with each head's own norms, ``[sample, layer, head]``; writers and scores are kept."""
        # tr(W_Q W_K^T Y^T) with Y = sum_e p_e C W_V^e W_O^e: one d x d matrix a layer serves every reader.
        scores = torch.from_numpy(self.previous_token)[..., None, None]
        per_layer = torch.stack([(C @ (scores * w.W_V)[layer] @ w.W_O[layer]).sum(0) for layer in range(w.W_V.shape[0])])
        Y = per_layer.cumsum(0) - per_layer  # earlier layers only
        samples = []
        for W_Q, W_K in _random_heads(w, self.null_seeds, (self.seed, 23), "W_Q", "W_K"):
            samples.append((W_Q * (Y @ W_K)).sum((-2, -1)) / (W_Q.norm() * W_K.norm()))
        norms = torch.linalg.matrix_norm(w.W_Q) * torch.linalg.matrix_norm(w.W_K)
        return (torch.stack(samples)[..., None] * norms).numpy()


@dataclass(frozen=True)
class KTermCopying:
    """The copying statistic of the K-term of every pair of heads: ``Dataset(src_layer, src_head, dst_layer, dst_head)``.

    Args:
        null_seeds: random pairs of heads behind the null; 0 leaves it out (NaN). seed: of them.
    """

    null_seeds: int = 199
    seed: int = 0
    name: str = field(default="k_term_copying", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        _checked(self.null_seeds, self.seed)

    def spec(self) -> dict[str, Any]:
        return {"null_seeds": self.null_seeds, "seed": self.seed}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Dataset with dims ``src_layer, src_head, dst_layer, dst_head``: ``value`` in [-1, 1], ``stderr`` (NaN: there is
            none), ``null_mean``, ``null_sd``, ``z``, ``p`` (two-sided, empirical) and ``status``: ok, zero (the pair's
            K-term has no nonzero eigenvalue; its value is 0) or missing (the source is not in an earlier layer: NaN).

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, a model that cannot be represented.
        """
        w = folded(model)
        layers, heads = w.W_V.shape[:2]
        C = through_tokens(w.W_E.mT, w.W_E)
        value = np.full((layers, heads, layers, heads), np.nan)
        zero = np.zeros(value.shape, dtype=bool)
        for layer in range(1, layers):
            for head in range(heads):
                term = k_term_factors(w.W_V[:layer], w.W_O[:layer], w.W_Q[layer, head], w.W_K[layer, head], C)
                found = _nonzero(*term)
                value[:layer, :, layer, head] = copying_statistic(found).numpy()
                zero[:layer, :, layer, head] = ~(found != 0).any(-1).numpy()
        null = None
        if self.null_seeds:
            key = digest([self.name, self.spec(), list(w.W_V.shape[-2:]), w.centred, _embedding_hash(w, both=False)])
            null = _remembered(key, lambda: {"value": self._null(w, C)})["value"]
        dims = ("src_layer", "src_head", "dst_layer", "dst_head")
        variables = {name: (dims, found) for name, found in _beside(value, null).items()}
        status = np.where(np.isnan(value), "missing", np.where(zero, "zero", "ok"))
        return labelled(
            {
                "value": variables.pop("value"),
                "stderr": (dims, np.full_like(value, np.nan)),
                **variables,
                "status": (dims, status),
            },
            {dim: np.arange(layers if "layer" in dim else heads) for dim in dims},
            measure=self,
            definition="Re(sum of eigenvalues) / sum of moduli of W_E W_Q^l (W_E W_V^e W_O^e W_K^l)^T, norms folded",
            source="Elhage et al. 2021, How induction heads work",
            model_hash=model_hash(model),
            seed=self.seed,
            stderr=NO_STDERR,
            null=f"both heads are {NULL}" if self.null_seeds else "none asked for",
            smallest_p=2 / (self.null_seeds + 1) if self.null_seeds else np.nan,
        )

    def _null(self, w: FoldedWeights, C: Tensor) -> np.ndarray:
        """The statistic of pairs of random heads, ``[sample, 1, 1, 1, 1]``."""
        copying = [
            float(k_composition_copying(W_V, W_O, W_Q, W_K, C))
            for W_V, W_O, W_Q, W_K in _random_heads(w, self.null_seeds, (self.seed, 24), "W_V", "W_O", "W_Q", "W_K")
        ]
        return np.array(copying)[:, None, None, None, None]
