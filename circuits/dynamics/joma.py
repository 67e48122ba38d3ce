"""JoMA: what a layer's weights do once attention has been eliminated, as differential equations.

A block ``h_k = phi(w_k . f)`` reads ``f = U b + u_query``, with attention ``b`` over tokens ``l`` of logits ``z_l``. Under
gradient flow the logits follow the weights ``v_lk = (U^T w_k)_l``, so one family of equations is left.

    linear activation       vdot = drive o exp(v^2 / 2)          one component takes all attention
    nonlinear activation    vdot = (mu - v) o exp(v^2 / 2)       entropy falls, and comes back

That logits follow the weights is ``circuits.dynamics.joma_invariant``.

Sources: Tian et al. 2023b (arXiv 2310.00535), theorems 2 and 3 and figure 4; the solution by ``erf`` is ours, from its ODE.
"""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.results import check_whole, labelled

if TYPE_CHECKING:
    import xarray as xr

SOURCE = "Tian et al. 2023b"


def blow_up_time(drive: Float[Tensor, "component"]) -> float:
    """When a linear activation diverges: ``t* = sqrt(pi / 2) / max |drive|``, in the units of ``1 / drive``.

    Raises:
        ValueError: nothing is driven.

    Source: Tian et al. 2023b, theorem 2; the integral of ``exp(-v^2 / 2)`` over all ``v > 0``.
    """
    largest = float(drive.abs().max())
    if not 0 < largest < math.inf:
        raise ValueError(f"the largest |drive| is {largest}; give finite drives, one of them not 0")
    return math.sqrt(math.pi / 2) / largest


def linear_activation(drive: Float[Tensor, "component"], time: Float[Tensor, "time"]) -> Float[Tensor, "time component"]:
    """The weights of a linear activation under exp attention, exactly: winner takes all.

        vdot = drive o exp(v^2 / 2),  v(0) = 0      so      erf(v_l / sqrt 2) / drive_l = sqrt(2 / pi) t   for every l

    Args:
        drive: ``Delta``, how far a token's frequency differs between classes; any sign. time: at least 0.

    Returns:
        ``v``: infinite at ``blow_up_time`` for the largest ``|drive|``, where the others have come to ``linear_limit``; NaN
        after it, when there is no solution.

    Raises:
        ValueError: nothing is driven, or a time before 0.

    Source: Tian et al. 2023b, theorem 2.
    """
    end = blow_up_time(drive)
    if bool((time < 0).any()):
        raise ValueError(f"the earliest time is {float(time.min())}; the weights start at 0 at time 0: give times from there on")
    reached = (time / end)[:, None] * drive / drive.abs().max()
    return torch.where((time > end)[:, None], math.nan, math.sqrt(2) * torch.erfinv(reached))


def linear_limit(drive: Float[Tensor, "component"]) -> Float[Tensor, "component"]:
    """Where a linear activation's weights stop, as the first diverges: ``sqrt 2 erfinv(drive / max |drive|)``, infinite for that.

    Raises:
        ValueError: nothing is driven.

    Source: Tian et al. 2023b, theorem 2.
    """
    blow_up_time(drive)
    return math.sqrt(2) * torch.erfinv(drive / drive.abs().max())


def linear_flow(drive: Float[Tensor, "component"], *, rate: float, steps: int) -> Float[Tensor, "step component"]:
    """The ODE of ``linear_activation`` by steps of length ``rate`` from 0: ``steps + 1`` points, an error of order ``rate``."""
    v, path = torch.zeros_like(drive), [torch.zeros_like(drive)]
    for _ in range(steps):
        v = v + rate * drive * (v * v / 2).exp()
        path.append(v)
    return torch.stack(path)


def nonlinear_flow(
    mu: Float[Tensor, "component"],
    *,
    start: float = 0.05,
    rate: float = 0.02,
    steps: int = 5_000,
    temperature: float | None = 3.0,
) -> Float[Tensor, "step component"]:
    """The weights of a nonlinear activation: each tends to its ``mu``, the largest first.

        vdot = (mu - v) o exp(v^2 / 2),             or with a temperature     vdot = (mu - v) o softmax(v^2 / T)

    Under the first, what is missing, ``d = 1 - v / mu``, falls as ``ln(1 / d)`` of slope ``exp(mu^2 / 2)``.

    Args:
        mu: what the activation's saddle attracts to. start: of every component. rate: length of an Euler step.
        temperature: of the softmax; None: the exponential of theorem 3.

    Returns:
        ``steps + 1`` points, the start included; a ``rate`` above ``exp(-mu^2 / 2)`` overshoots.

    Source: Tian et al. 2023b, theorem 3 (exponential) and figure 4 (softmax).
    """
    v = torch.full_like(mu, start)
    path = [v]
    for _ in range(steps):
        gain = (v * v / 2).exp() if temperature is None else (v * v / temperature).softmax(0)
        v = v + rate * (mu - v) * gain
        path.append(v)
    return torch.stack(path)


def attention_entropy(v: Float[Tensor, "step component"], *, temperature: float = 3.0) -> Float[Tensor, "step"]:
    """Entropy of ``softmax(v^2 / T)``, the attention that weights ``v`` imply, in nats: 0 to ``ln(components)`` (uniform)."""
    logs = (v * v / temperature).log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


@dataclass(frozen=True, kw_only=True)
class EntropyBounce:
    """The nonlinear activation's attention drops in entropy and comes back, from targets ``mu = sort(1 + 3 U(0, 1))``.

    The defaults are the authors': entropy goes 2.303 -> 0.942 (step 669) -> 1.549, on its way to 1.622.

    Source: Tian et al. 2023b, figure 4.
    """

    components: int = 10
    start: float = 0.05
    rate: float = 0.02
    temperature: float = 3.0
    steps: int = 5_000
    seed: int = 0

    name = "joma_entropy"
    version = 1

    def spec(self) -> dict[str, Any]:
        return asdict(self)

    def run(self) -> "xr.Dataset":
        """Simulate.

        Returns:
            ``Dataset(step, component)``: ``value``, the entropy (nats), ``v``, ``target``, ``limit``, the entropy at ``v = mu``.

        Raises:
            ValueError: no components, or no steps.
        """
        check_whole("components", self.components, 1)
        check_whole("steps", self.steps, 1)
        uniform = torch.rand(self.components, generator=torch.Generator().manual_seed(self.seed))
        mu = (1 + 3 * uniform).sort().values.double()
        v = nonlinear_flow(mu, start=self.start, rate=self.rate, steps=self.steps, temperature=self.temperature)
        return labelled(
            {
                "value": (("step",), attention_entropy(v, temperature=self.temperature)),
                "v": (("step", "component"), v),
                "target": (("component",), mu),
                "limit": ((), attention_entropy(mu[None], temperature=self.temperature)[0]),
            },
            {"step": range(self.steps + 1), "component": range(self.components)},
            measure=self,
            definition="entropy of softmax(v^2 / T) along vdot = (mu - v) o softmax(v^2 / T)",
            source=f"{SOURCE}, figure 4",
            units="nats",
        )
