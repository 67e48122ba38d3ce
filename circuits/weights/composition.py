"""Q-, K- and V-composition: how much of what a head reads is what an earlier head writes.

With ``W_OV = W_V W_O`` of the earlier head (``src``) and ``W_QK = W_Q W_K^T``, ``W_OV`` of the later one (``dst``), rows in,
columns out, the score of Elhage et al. 2021 is a ratio of Frobenius norms in [0, 1],

    Q: ||W_OV^src W_QK|| / (||W_OV^src|| ||W_QK||),   K: ||W_OV^src W_QK^T|| / (...),   V: ||W_OV^src W_OV^dst|| / (...),

with every norm folded in. Through singular value decompositions ``A = X diag(s) V^T`` of the writer and ``B = W diag(t) Y^T`` of
the reader (``circuits.weights.interfaces``) its square is ``sum_ij s_i^2 t_j^2 C_ij^2 / (sum s^2 sum t^2)``, where ``C = V^T W``
are the cosines between what is written and what is read; so one matrix of cosines gives everything here:

    value               the score
    normalised          (S - 1/d) / (S_max - 1/d), S the squared score, S_max that of perfectly aligned sorted spectra
    centred             the score minus the means of its row and column within the two layers, plus their mean: not what all
                        writers of a layer share with all readers of another; z_layer is that over 1.4826 times the median of
                        its moduli: how far out a pair lies among the others (a description, no test)
    by_writer           max_i sum_j t_j^2 C_ij^2 / sum t^2: how strongly the best-read single direction of the writer is read,
    by_reader           and the converse: where spectra are mild a channel of 1 to 4 dimensions shows here and hardly in the
                        score (``components`` has every direction of one pair)
    strongest           max_ij C_ij^2, the best aligned pair of single directions, whatever their shares: where spectra are steep
                        and a channel lies beside their strongest directions, the two above do not see it and this does
    kernel              sum_ij C_ij^2 / min(r, q), the overlap of the two subspaces in [0, 1] (projection kernel)

A large score is no evidence by itself, nor is a small one (a trained model with a perfect K-composition circuit can score
below random). Beside it stand three nulls, each with its question:

    null_mean, null_sd, z, p   of S: more than matrices with these spectra in random orientation? (``circuits.weights.haar``;
    p_by_writer, p_by_reader, p_strongest, p_kernel   likewise for those; too large for heads without full rank)
    p_layer                    more than the other pairs of the same two layers? The rank, so never below 1 / number of pairs
    p_covariance               more than directions drawn from what earlier heads write and the layer's heads read on the whole?
                               (``circuits.weights.pooled``)

``q`` and ``q_covariance`` are the smallest false discovery rates at which a pair is among the findings (Benjamini and Hochberg
1995) over all pairs and modes. ``p_layer`` cannot be corrected that way: under it the best pair of every two layers is 1 / n.

Source: Elhage et al. 2021, "composition scores"; Merullo et al. 2024 (components); Yamagiwa et al. 2026 (projection kernel).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.models.own import own
from circuits.models.protocol import model_hash
from circuits.results import array_hash, check_whole, labelled
from circuits.weights.folded import folded
from circuits.weights.haar import squared_score_moments, upper_tails
from circuits.weights.interfaces import INCOMING, MODES, Incoming, Interfaces, Side, interfaces
from circuits.weights.pairs import compose_pairs, gaussian_baseline
from circuits.weights.pooled import drawn_heads, pooled_counts

GRID = ("mode", "src_layer", "src_head", "dst_layer", "dst_head")
NULL_WORK, POOLED_WORK = 5e9, 1e10
"""Multiplications that random orientation and pooled directions may cost by default: some tenths of a second."""


@dataclass(frozen=True)
class Composition:
    """Composition of every earlier head with every later one: ``Dataset(mode, src_layer, src_head, dst_layer, dst_head)``.

    Args:
        incoming: what comes into the heads: ``"everything"`` (the plain score), ``"tokens"``, ``"positions"`` or
            ``"activations"``, the directions that are in fact written and read (``circuits.weights.interfaces``).
        tokens: ids ``[example, pos]`` behind ``"activations"``.
        remove_mean: take the direction of the mean token embedding out of what is written and read; one dimension less.
        draws: sampled orientations behind ``p``, which is never below ``1 / (1 + draws)``. pooled_heads: heads drawn
            on each side behind ``p_covariance``, whose draws are all pairs of them; 0 leaves it out (NaN). None, for either,
            is what a second or so allows, 2,000 to 10,000 orientations and 10 to 144 heads: all of it for small models.
        seed: of both nulls.
    """

    incoming: Incoming = "everything"
    tokens: Any = field(default=None, compare=False)
    remove_mean: bool = False
    draws: int | None = None
    pooled_heads: int | None = None
    seed: int = 0
    name: str = field(default="composition", init=False)
    version: int = field(default=3, init=False)
    _tokens: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        check_incoming(self.incoming, self.tokens)
        if self.draws is not None:
            check_whole("draws", self.draws, 1, "or None for what a second allows")
        if self.pooled_heads is not None and self.pooled_heads != 0:
            check_whole("pooled_heads", self.pooled_heads, 2, "0 for no covariance null, or None")
        check_whole("seed", self.seed, 0)
        check_remove_mean(self.remove_mean)
        if self.tokens is not None:
            object.__setattr__(self, "_tokens", array_hash(self.tokens.cpu()))
        # One name for each kind, so that several can stand in one report.
        kind = "" if self.incoming == "everything" else f"_{self.incoming}"
        object.__setattr__(self, "name", f"composition{kind}{'_without_mean' if self.remove_mean else ''}")

    def spec(self) -> dict[str, Any]:
        return {
            "incoming": self.incoming,
            "tokens": self._tokens or None,
            "remove_mean": self.remove_mean,
            "draws": self.draws,
            "pooled_heads": self.pooled_heads,
            "seed": self.seed,
        }

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            ``value`` in [0, 1] and the variables of this module's docstring; ``state`` is ok, zero (one of the two writes or
            reads nothing; its score is 0) or missing (NaN: the source is not in an earlier layer). Scores are functions of
            the weights alone and have no standard error.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, one layer alone, or a model that cannot be represented.
        """
        weights = folded(model := own(model))
        layers, heads = weights.W_O.shape[:2]
        if layers < 2:
            raise ValueError("the model has 1 layer, composition needs 2: an earlier head to write and a later one to read")
        faces = interfaces(model, weights, self.incoming, self.tokens, remove_mean=self.remove_mean)
        draws, pooled = self._sizes(weights.cfg)
        found = self._scores(faces, draws, pooled)
        squared = found.pop("squared")
        states = np.where(np.isnan(squared), "missing", np.where(squared == 0, "zero", "ok"))
        found |= {"value": np.sqrt(squared), "stderr": np.full_like(squared, np.nan)}
        found["q"], found["q_covariance"] = false_discovery(found["p"]), false_discovery(found["p_covariance"])
        mean, sd = gaussian_baseline(faces.dims, weights.cfg.d_head)
        order = sorted(found, key=lambda name: (name not in ("value", "stderr"), name))
        return labelled(
            {name: (GRID, found[name]) for name in order} | {"state": (GRID, states), "chance": ((), mean)},
            {"mode": list(MODES), **{dim: np.arange(n) for dim, n in zip(GRID[1:], (layers, heads) * 2, strict=True)}},
            measure=self,
            definition="||A B|| / (||A|| ||B||) of what one head writes and another reads, norms folded in",
            source="Elhage et al. 2021; nulls of circuits.weights.haar",
            model_hash=model_hash(model),
            seed=self.seed,
            stderr="none: a function of the weights alone",
            null="matrices of the same spectra in random orientation; null_mean, null_sd and z are of the squared score",
            dims=faces.dims,
            smallest_p=1 / (1 + draws),
            smallest_p_layer=1 / heads**2,
            smallest_p_covariance=1 / (1 + pooled**2) if pooled else np.nan,
            gaussian_sd=sd,
        )

    def _sizes(self, cfg: Any) -> tuple[int, int]:
        """Orientations and pooled heads of the two nulls: as asked, or what ``NULL_WORK`` allows."""
        later, r = len(MODES) * (cfg.n_layers - 1), cfg.d_head
        readers, writers = later * cfg.n_heads, (cfg.n_layers - 1) * cfg.n_heads
        # An orientation: making its block, passing all writers and readers through it, and all pairs of them.
        of_draw = r * r * (2 * r + writers + readers) + r * writers * readers / 2
        of_pooled = cfg.d_model * r**2 * later
        draws = int(np.clip(NULL_WORK / of_draw, 2_000, 10_000)) if self.draws is None else self.draws
        pooled = int(np.clip((POOLED_WORK / of_pooled) ** 0.5, 10, 144)) if self.pooled_heads is None else self.pooled_heads
        return draws, pooled

    def _scores(self, faces: Interfaces, draws: int, pooled: int) -> dict[str, np.ndarray]:
        """Every score and its nulls on the whole grid; NaN where the source is not in an earlier layer."""
        n, heads = faces.weights.cfg.n_layers - 1, faces.weights.cfg.n_heads
        names = ("squared", "normalised", "by_writer", "by_reader", "strongest", "kernel", "p_covariance")
        # Flat: sources [layer head], destinations [layer mode head].
        flat = {name: torch.full((n * heads, n * len(MODES) * heads), torch.nan, dtype=torch.float64) for name in names}
        writers: list[Side] = []
        b, asked = [], []
        rng = torch.Generator().manual_seed(self.seed)
        drawn: Tensor | float = 0.0
        for later in range(n):
            writers.append(faces.writers(later))
            a = torch.cat([one.squares for one in writers])
            sources = slice(0, len(a))
            if pooled:
                drawn = drawn + drawn_heads(writers[-1], pooled, rng)
            for m, mode in enumerate(MODES):
                reader = faces.readers(later + 1, mode)
                to = slice((later * len(MODES) + m) * heads, (later * len(MODES) + m + 1) * heads)
                for earlier, writer in enumerate(writers):
                    pairs = compose_pairs(writer, reader, faces.dims)
                    for name in names[:-1]:
                        flat[name][earlier * heads : (earlier + 1) * heads, to] = getattr(pairs, name)
                if pooled:
                    assert isinstance(drawn, Tensor)
                    counts = pooled_counts(
                        flat["squared"][sources, to], a, reader.squares, drawn, drawn_heads(reader, pooled, rng)
                    )
                    flat["p_covariance"][sources, to] = (1 + counts).double() / (1 + pooled**2)
                b.append(reader.squares)
                asked.append((sources, to))
        whole = flat | self._random_orientation(flat, a, torch.cat(b), asked, faces.dims, draws)
        grid = {name: _grid(values, n, heads) for name, values in whole.items()}
        return grid | _among_layers(grid["squared"])

    def _random_orientation(
        self, flat: dict[str, Tensor], a: Tensor, b: Tensor, asked: list[tuple[slice, slice]], dims: int, draws: int
    ) -> dict[str, Tensor]:
        """Exact moments and sampled tails of the null of ``circuits.weights.haar``."""
        squared = flat["squared"].nan_to_num(0.0)
        single = {name: flat[name].nan_to_num(0.0) for name in ("by_writer", "by_reader", "strongest", "kernel")}
        rng = torch.Generator().manual_seed(self.seed)
        tails = upper_tails(squared, a, b, asked, dims, draws, rng, **single)
        mean, sd = squared_score_moments(a[:, None], b[None], dims)
        z = torch.where(sd > 0, (squared - mean) / torch.where(sd > 0, sd, 1), 0.0)
        nulls = {"null_mean": mean, "null_sd": sd, "z": z} | tails
        return {name: values.masked_fill(flat["squared"].isnan(), torch.nan) for name, values in nulls.items()}


def check_incoming(incoming: Any, tokens: Any) -> None:
    """Refuse a kind of input that there is not, and tokens that are missing or of no use.

    Raises:
        ValueError, TypeError: as said.
    """
    if incoming not in INCOMING:
        raise ValueError(f"incoming={incoming!r}: need one of {', '.join(INCOMING)}")
    if (incoming == "activations") != (tokens is not None):
        fault = "tokens are given" if tokens is not None else "no tokens are given"
        raise ValueError(f"incoming={incoming!r} and {fault}; tokens belong to incoming='activations', and it needs them")
    if tokens is not None and not isinstance(tokens, Tensor):
        raise TypeError(f"tokens are a {type(tokens).__name__}; need an integer tensor [example, pos]")


def check_remove_mean(remove_mean: Any) -> None:
    """Refuse what is neither True nor False.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(remove_mean, bool):
        raise TypeError(f"remove_mean={remove_mean!r}: need True or False")


def false_discovery(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg: the smallest false discovery rate at which each test is a finding; NaN stays and does not count."""
    from scipy.stats import false_discovery_control

    found, given = np.full_like(p, np.nan), np.isfinite(p)
    if given.any():
        found[given] = false_discovery_control(p[given])
    return found


def _grid(values: Float[Tensor, "src dst"], n: int, heads: int) -> np.ndarray:
    """From sources [layer head] and destinations [layer mode head] to ``GRID``."""
    whole = np.full((len(MODES), n + 1, heads, n + 1, heads), np.nan)
    whole[:, :-1, :, 1:] = values.view(n, heads, n, len(MODES), heads).permute(3, 0, 1, 2, 4).numpy()
    return whole


def _among_layers(squared: np.ndarray) -> dict[str, np.ndarray]:
    """``p_layer``, ``centred`` and ``z_layer``: each pair against the others of its two layers."""
    score, heads = np.sqrt(squared), squared.shape[2]
    pairs = squared.transpose(0, 1, 3, 2, 4).reshape(*squared.shape[:2], squared.shape[3], heads**2)
    at_least = (pairs[..., None, :] >= pairs[..., :, None] * (1 - 1e-12)).sum(-1)
    rank = np.where(np.isnan(pairs), np.nan, at_least / heads**2)
    centred = score - score.mean(2, keepdims=True) - score.mean(4, keepdims=True) + score.mean((2, 4), keepdims=True)
    spread = 1.4826 * np.median(np.abs(centred), axis=(2, 4), keepdims=True)
    return {
        "p_layer": rank.reshape(*squared.shape[:2], squared.shape[3], heads, heads).transpose(0, 1, 3, 2, 4),
        "centred": centred,
        "z_layer": np.divide(centred, spread, out=np.where(np.isnan(centred), np.nan, 0.0), where=spread > 0),
    }
