"""The reduced theory of Scan & Snap: attention that follows the decoder's clock (recipe R3).

Lemma 4 reads, per batch-mean step,

    dz_m/dt = eta_z gamma / K sum_{n: psi(n) = m} f_n o sum_{n' != n} beta_nn' (f_n f_n^T - I) f_n'

The paper writes it without ``1 / K``, for steps that are all of one label. Time enters by ``gamma`` alone, so ``z`` is one curve
along ``Gamma(t) = eta_z int_0^t gamma`` whatever the rates. Along it theorem 3 is exact for any ``beta``: for two distinct tokens
``l, l'`` of a label ``r_{l/l'}(t) = f_l^2 / f_l'^2 - 1 = r(0) e^{2 (z_l(t) - z_l(0))}``. Under the full gradient flow it is not;
see ``scan_snap_measures.gain_residual``.

Two choices of ``beta``. "overlap" is the paper's, ``f_n . f_n'``, on its clock. "decoder" is what the gradient flow tends to as
``eta_z / eta_y`` goes to 0, if all pairs of labels overlap alike: the same for all pairs, and with ``gamma`` it is the push of
``scan_snap_clock.frozen_push``. Attention moves by far less under it: at first by ``1 / (M rho)`` times as much.

Source: Tian et al. 2023, lemma 4, theorems 1 to 3, remark 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from circuits.data.classes import SequenceClasses
from circuits.dynamics.scan_snap import check_rates, spread_runs
from circuits.dynamics.scan_snap_clock import ATOL, RTOL, decoder_clock, driven, frozen_push, speed
from circuits.results import labelled

if TYPE_CHECKING:
    import xarray as xr

Beta = Literal["overlap", "decoder"]


@dataclass(frozen=True)
class Reduced:
    """Attention that follows the decoder's clock, from ``Z = 0``.

    Args:
        classes: of which sequences. eta_y, eta_z: rates of the decoder and of attention, one for all runs or one for each.
        beta: how other labels push, see the module.
        slowed: whether overlap slows the paper's clock (remark 1); the other clock knows of overlap anyway.

    Raises:
        ValueError: rates that make no sense (a decoder that does not learn is no clock), or another ``beta``.
    """

    classes: SequenceClasses
    eta_y: float | tuple[float, ...] = 0.1
    eta_z: float | tuple[float, ...] = 0.1
    beta: Beta = "overlap"
    slowed: bool = True
    name: str = field(default="scan_snap_reduced", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        runs = self.runs
        check_rates(0.0, **runs)
        if not runs["eta_y"].min() > 0:
            raise ValueError(f"eta_y={self.eta_y}: need rates above 0, as the decoder is the clock")
        if self.beta not in get_args(Beta):
            raise ValueError(f"beta={self.beta!r}: need one of {get_args(Beta)}")

    @property
    def runs(self) -> dict[str, np.ndarray]:
        """``eta_y`` and ``eta_z`` of each run."""
        return spread_runs(eta_y=self.eta_y, eta_z=self.eta_z)

    def spec(self) -> dict[str, Any]:
        """Everything the numbers depend on."""
        runs = {name: values.tolist() for name, values in self.runs.items()}
        return {"classes": self.classes.spec(), "beta": self.beta, "slowed": self.slowed} | runs

    def run(self, times: Sequence[float] | np.ndarray) -> "xr.Dataset":
        """Integrate every run to the given times.

        Returns:
            ``z`` (``run, time, query, token``): attention logits, to about 1e-9; ``push`` and ``pushed`` (``run, time``): what
            drives attention, ``gamma`` (with "decoder" ``gamma beta``), and ``eta_z`` times its integral over steps.

        Raises:
            ValueError: no times, or one below 0.
        """
        at = np.asarray(times, dtype=np.float64)
        if at.ndim != 1 or not len(at) or not at.min() >= 0:
            raise ValueError(f"times={at.tolist()}: need at least one, from 0 up")
        push, pushed = self._paper_clock(at) if self.beta == "overlap" else self._exact_clock(at)
        along, places = np.unique(pushed, return_inverse=True)
        z = attention_along(self.classes, along, beta=self.beta)[places.reshape(pushed.shape)]
        dims = ("run", "time")
        return labelled(
            {"z": ((*dims, "query", "token"), z), "push": (dims, push), "pushed": (dims, pushed)},
            {"run": np.arange(len(z)), "time": at} | {name: ("run", values) for name, values in self.runs.items()},
            measure=self,
            definition="attention logits z_ml of query m and context token l under lemma 4",
            source="Tian et al. 2023, lemmas 4 to 6, theorem 1 and remark 1",
            units="logits",
        )

    def _paper_clock(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``gamma`` and ``Gamma``."""
        sizes = {"labels": self.classes.n_labels, "d_vocab": self.classes.d_vocab}
        pushes, totals = [], []
        for eta_y, eta_z in zip(self.runs["eta_y"], self.runs["eta_z"], strict=True):
            rate = float(eta_y) * (1 - self.classes.overlap if self.slowed else 1)
            h = decoder_clock(at, eta_y=rate, **sizes)
            pushes.append(speed(h, d_vocab=self.classes.d_vocab))
            totals.append(driven(h, eta_y=rate, eta_z=float(eta_z), **sizes))
        return np.stack(pushes), np.stack(totals)

    def _exact_clock(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``push`` and its integral; both depend on ``eta_y t`` alone, so one solution serves all runs."""
        labels, rates = self.classes.n_labels, self.runs
        learned, places = np.unique(rates["eta_y"][:, None] * at / labels, return_inverse=True)
        places = places.reshape(-1, len(at))
        push, total = frozen_push(learned, labels=labels, d_vocab=self.classes.d_vocab, overlap=self.classes.overlap)
        return push[places], total[places] * (labels * rates["eta_z"] / rates["eta_y"])[:, None]


def attention_along(classes: SequenceClasses, pushed: np.ndarray, *, beta: Beta = "overlap") -> np.ndarray:
    """``z [place, query, token]`` at rising values of ``Gamma`` (with "decoder" of its share), from ``Z = 0`` at 0."""
    from scipy.integrate import solve_ivp

    p, psi = classes.p.numpy(), classes.psi.numpy()
    shape = (classes.n_queries, classes.n_tokens)
    to_query = np.eye(classes.n_queries)[:, psi] / classes.n_labels

    def slope(_: float, flat: np.ndarray) -> np.ndarray:
        z = flat.reshape(shape)
        c = p * np.exp(z - z.max(1, keepdims=True))[psi]
        f = c / np.linalg.norm(c, axis=1, keepdims=True)
        products = f @ f.T
        share = products.copy() if beta == "overlap" else np.ones_like(products)
        np.fill_diagonal(share, 0.0)
        return (to_query @ (f * ((share * products).sum(1, keepdims=True) * f - share @ f))).ravel()

    end = max(float(pushed[-1]), np.finfo(float).tiny)
    found = solve_ivp(slope, (0.0, end), np.zeros(shape).ravel(), method="DOP853", t_eval=pushed, rtol=RTOL, atol=ATOL)
    return found.y.T.reshape(-1, *shape)
