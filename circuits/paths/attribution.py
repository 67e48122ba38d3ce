"""Attribution: every edge's effect estimated from derivatives, beside the exact effects on the same data.

    first order       value(u -> v) = (alternative(u) - u) . dm/dx_v                      one forward and one backward pass
    "inputs"          the derivative is the mean over runs on embeddings (1 - a) clean + a alternative,
                      a = 0, 1/steps, ..., (steps - 1)/steps (EAP-IG, Hanna et al. 2024)
    "edges"           the mean over runs in which every edge carries (1 - a) u + a alternative(u), u being the current write and
                      a at the nodes of a Gauss-Legendre rule: the derivative of m by this edge's own share, so the values of
                      all edges add up to m(every edge replaced) - m(clean) up to the rule's error, which is reported

``x_v`` is what v reads (before its norm), m the metric of an example; positions and inputs are summed. The sign is that of an
effect: above 0 where replacing the source would cost. Sources: Syed et al. 2023 (EAP); Sundararajan et al. 2017.

Each estimate stands beside the exact effect and their rank agreement: Spearman's over all edges, the same over moduli (which
edges matter?), each with a 95% interval by bootstrap over examples. Where softmax saturates, derivatives by queries and keys
vanish though the edge is needed: attribution fails there, which is why the exact effect stands beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.paths.edges import EdgeEffects, edge_results
from circuits.paths.edited import Leaves, edited_stream, of_edges
from circuits.paths.intervention import Batch, Intervention
from circuits.paths.wiring import EMBED, LOGITS, POS, Edge, head_of, layer_of
from circuits.results import check_whole

if TYPE_CHECKING:
    import xarray as xr

Integrated = Literal["no", "inputs", "edges"]
DRAWS = 500


@dataclass(frozen=True)
class EdgeAttribution:
    """Every edge's effect by attribution, and how well its ranks agree with the exact effects: ``Dataset(edge)``.

    Args:
        effects: the exact effects this estimates: tokens, what replaces writes, which predictions count.
        integrated: "no" (first order), "inputs" or "edges"; see the module's docstring. steps: of the integration.
        seed: of the bootstrap.
    """

    effects: EdgeEffects
    integrated: Integrated = "no"
    steps: int = 5
    seed: int = 0
    name: str = field(default="edge_attribution", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.effects, EdgeEffects):
            raise TypeError(f"effects are a {type(self.effects).__name__}, need EdgeEffects(tokens, ...): what is estimated")
        if self.integrated not in get_args(Integrated):
            raise ValueError(f"integrated={self.integrated!r}: need one of {', '.join(get_args(Integrated))}")
        check_whole("steps", self.steps, 1)
        check_whole("seed", self.seed, 0)

    def spec(self) -> dict[str, Any]:
        return {"effects": self.effects.spec(), "integrated": self.integrated, "steps": self.steps, "seed": self.seed}

    def __call__(self, model: Any) -> "xr.Dataset":
        """Measure a model.

        Returns:
            As ``EdgeEffects``, with ``value`` the estimate in nats, and ``exact``, ``exact_stderr``: the exact effects;
            ``agreement``, ``agreement_low``, ``agreement_high`` and the same of ``agreement_of_moduli``: Spearman's, with 95%
            intervals; ``total`` and ``total_exact`` (nats): the sum of all values, and the effect of every measured edge
            together, which the sum equals up to the rule's error where ``integrated`` is "edges" and all edges are measured.

        Raises:
            TypeError, ValueError: as ``EdgeEffects``.
        """
        made = self.effects.intervention(model)
        edges = self.effects.edges(made.wiring)
        estimate = attributed(made, edges, integrated=self.integrated, steps=self.steps).double().numpy()
        exact = made.one_by_one(edges).double().numpy()
        together = float(made.together([edges])[0].double().mean())
        agreed = agreement(estimate, exact, draws=DRAWS, seed=self.seed)
        each = ("edge",)
        return edge_results(
            self,
            model,
            made,
            edges,
            estimate,
            definition=f"change of the loss estimated by attribution, integrated: {self.integrated}",
            source="Syed et al. 2023 (EAP); Hanna et al. 2024 (EAP-IG); Sundararajan et al. 2017",
            more={
                "exact": (each, exact.mean(1)),
                "exact_stderr": (each, exact.std(1, ddof=1) / np.sqrt(exact.shape[1])),
                "total": ((), estimate.mean(1).sum()),
                "total_exact": ((), together),
                **{name: ((), number) for name, number in agreed.items()},
            },
        )


def attributed(
    made: Intervention, edges: Sequence[Edge], *, integrated: Integrated = "no", steps: int = 5
) -> Float[Tensor, "edge example"]:
    """The estimate of each edge's effect, per example."""
    found = []
    for batch in made.batches():
        total: Any = 0.0
        for weight, share, inputs in _runs(made, batch, integrated, steps):
            total = total + weight * products(made, batch, edges, share, inputs)
        found.append(total.cpu())
    return torch.cat(found, dim=1)


def _runs(
    made: Intervention, batch: Batch, integrated: Integrated, steps: int
) -> Iterator[tuple[float, float, dict[str, Tensor]]]:
    """Weight, share of every edge that is replaced, and embeddings of each run that derivatives are taken in."""
    if integrated == "no":
        yield 1.0, 0.0, {}
    elif integrated == "edges":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        for node, weight in zip(nodes, weights, strict=True):
            yield float(weight) / 2, (float(node) + 1) / 2, {}
    else:
        index = made.wiring.source_index
        for step in range(steps):
            at = step / steps
            yield 1 / steps, 0.0, {
                name: torch.lerp(batch.written[index[name]], batch.alternative[index[name]], at)
                for name in (EMBED, POS)
                if name in index
            }  # fmt: skip


def products(
    made: Intervention, batch: Batch, edges: Sequence[Edge], share: float, inputs: dict[str, Tensor]
) -> Float[Tensor, "edge batch"]:
    """``difference(u) . dm/dx_v`` of each edge in one run."""
    heads = made.model.cfg.n_heads
    leaves = Leaves(batch.clean.after[-1], heads)
    current: list[Tensor] = []
    with torch.enable_grad():
        stream = edited_stream(
            made.model,
            batch.clean,
            batch.alternative,
            of_edges(made.wiring.edges) if share else {},
            positions=batch.positions,
            share=share,
            leaves=leaves,
            inputs=inputs,
            keep=current,
        )
        value = batch.reader.of(stream[None])[0].sum()
        names = list(leaves.at)
        slopes = dict(zip(names, torch.autograd.grad(value, [leaves.at[name] for name in names], allow_unused=True), strict=True))
    difference = batch.alternative - (torch.stack([x.detach() for x in current]) if share else batch.written)
    if batch.positions is not None:
        difference = difference * batch.positions[None, :, :, None]
    with torch.no_grad():
        found = [_product(made, edge, difference, slopes) for edge in edges]
    return torch.stack(found)


def _product(
    made: Intervention, edge: Edge, difference: Float[Tensor, "source batch pos d_model"], slopes: dict[tuple[str, ...], Any]
) -> Float[Tensor, "batch"]:
    change = difference[made.wiring.source_index[edge.source]]
    if edge.destination == LOGITS or edge.destination.endswith("MLP"):
        slope = slopes[(edge.destination,)]
    else:
        name = (f"L{layer_of(edge.destination)}", edge.destination.split(".")[1])
        apart = edge.source == POS and (*name, POS) in slopes
        slope = slopes[(*name, POS) if apart else name]
        slope = None if slope is None else slope[:, :, head_of(edge.destination).head]
    return change.new_zeros(len(change)) if slope is None else (change * slope).sum((1, 2))


def agreement(
    estimate: Float[np.ndarray, "edge example"], exact: Float[np.ndarray, "edge example"], *, draws: int, seed: int
) -> dict[str, float]:
    """Spearman's rank correlation of mean effects, of their moduli too, with 95% intervals by bootstrap over examples."""
    from scipy.stats import rankdata

    examples = exact.shape[1]
    weights = np.random.default_rng([seed, 51]).multinomial(examples, np.full(examples, 1 / examples), size=draws) / examples
    found: dict[str, float] = {}
    for name, turned in (("agreement", np.asarray), ("agreement_of_moduli", np.abs)):
        pairs = [(turned(estimate @ w), turned(exact @ w)) for w in (np.full(examples, 1 / examples), *weights)]
        values = np.array([_correlation(rankdata(a), rankdata(b)) for a, b in pairs])
        found |= {name: values[0]}
        spread = values[1:][np.isfinite(values[1:])]
        low, high = np.quantile(spread, (0.025, 0.975)) if len(spread) else (np.nan, np.nan)
        found |= {f"{name}_low": low, f"{name}_high": high}
    return {name: float(number) for name, number in found.items()}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else np.nan
