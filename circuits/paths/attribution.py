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
edges matter?), each with a 95% interval by bootstrap over examples and a null that knows each edge's kind only. Where softmax
saturates, derivatives by queries and keys vanish though the edge is needed: attribution fails there, which is why the exact
effect stands beside it.
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
from circuits.results import check_whole, mean_and_stderr

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
    version: int = field(default=1, init=False)

    @property
    def name(self) -> str:
        on = f"_{self.effects.on}" if self.effects.on else ""
        return f"edge_attribution{on}" if self.integrated == "no" else f"edge_attribution_{self.integrated}{on}"

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
            ``agreement`` and ``agreement_of_moduli``: Spearman's over the edges that are not 0 in both, each with ``_low`` and
            ``_high`` (95%), ``_null_mean``, ``_null_sd`` and ``_z`` (estimates exchanged among edges of one kind); ``total`` and
            ``total_exact`` with ``_stderr`` (nats): the sum of all values, and the effect of every measured edge together, which
            the sum equals up to the rule's error where ``integrated`` is "edges" and all edges are measured.

        Raises:
            TypeError, ValueError: as ``EdgeEffects``.
        """
        made = self.effects.intervention(model)
        edges = self.effects.edges(made.wiring)
        estimate = attributed(made, edges, integrated=self.integrated, steps=self.steps).double().numpy()
        exact = made.one_by_one(edges).double().numpy()
        together = made.together([edges])[0].double().numpy()
        kinds = [made.wiring.kind(edge) for edge in edges]
        agreed = agreement(estimate, exact, kinds, draws=DRAWS, seed=self.seed)
        exact_mean, exact_stderr = mean_and_stderr(exact, axis=1)
        (total, total_stderr), (whole, whole_stderr) = mean_and_stderr(estimate.sum(0)), mean_and_stderr(together)
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
                "exact": (each, exact_mean),
                "exact_stderr": (each, exact_stderr),
                "total": ((), total),
                "total_stderr": ((), total_stderr),
                "total_exact": ((), whole),
                "total_exact_stderr": ((), whole_stderr),
                **{name: ((), number) for name, number in agreed.items()},
            },
        )


def attributed(
    made: Intervention, edges: Sequence[Edge], *, integrated: Integrated = "no", steps: int = 5
) -> Float[Tensor, "edge example"]:
    """The estimate of each edge's effect, per example."""
    found = []
    for batch in made.batches(most=derivable(made)):
        total: Any = 0.0
        for weight, share, inputs in _runs(made, batch, integrated, steps):
            total = total + weight * products(made, batch, edges, share, inputs)
        found.append(total.cpu())
    return torch.cat(found, dim=1)


def derivable(made: Intervention) -> int:
    """How many examples may be taken at a time where derivatives are wanted: what a run holds for them grows with its depth."""
    cfg, length = made.model.cfg, made.run_on.shape[1]
    heads_wide = cfg.n_heads * cfg.d_head
    each_layer = 12 * cfg.n_heads * cfg.d_model + 12 * heads_wide + 4 * cfg.n_heads * length + 4 * (cfg.d_mlp or 0)
    one = made.model.W_E.element_size() * length * (cfg.n_layers * each_layer + 6 * cfg.d_vocab_out)
    return max(1, int(made.max_bytes // one))


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
                name: batch.written[index[name]] + at * difference_at(batch, index[name])
                for name in (EMBED, POS)
                if name in index
            }  # fmt: skip


def difference_at(batch: Batch, source: int) -> Float[Tensor, "batch pos d_model"]:
    """What replacing a source's write adds, where writes are replaced."""
    difference = batch.alternative[source] - batch.written[source]
    return difference if batch.positions is None else difference * batch.positions[..., None]


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
    estimate: Float[np.ndarray, "edge example"],
    exact: Float[np.ndarray, "edge example"],
    kinds: Sequence[str],
    *,
    draws: int,
    seed: int,
) -> dict[str, float]:
    """Spearman's rank correlation of mean effects, and of their moduli, with intervals over examples and a null by kind.

    Edges that are 0 in every example in both, as those of positions under a mean, are left out: they would agree by construction.
    The null exchanges estimates among edges of one kind: what is known from the kind alone.
    """
    from scipy.stats import rankdata

    there = (np.abs(estimate).max(1) > 0) | (np.abs(exact).max(1) > 0)
    estimate, exact = estimate[there], exact[there]
    groups = [np.flatnonzero([kind == one for one in np.asarray(kinds)[there]]) for kind in dict.fromkeys(kinds)]
    examples = exact.shape[1]
    rng = np.random.default_rng([seed, 51])
    weights = rng.multinomial(examples, np.full(examples, 1 / examples), size=draws) / examples
    orders = []
    for _ in range(draws):
        order = np.arange(len(exact))
        for group in groups:
            order[group] = rng.permutation(group)
        orders.append(order)
    found: dict[str, float] = {}
    for name, turned in (("agreement", np.asarray), ("agreement_of_moduli", np.abs)):
        ours, theirs = turned(estimate.mean(1)), turned(exact.mean(1))
        value = _correlation(rankdata(ours), rankdata(theirs))
        null = np.array([_correlation(rankdata(ours[order]), rankdata(theirs)) for order in orders])
        drawn = [_correlation(rankdata(turned(estimate @ w)), rankdata(turned(exact @ w))) for w in weights]
        low, high = np.nanquantile(drawn, (0.025, 0.975)) if examples > 1 and np.isfinite(drawn).any() else (np.nan, np.nan)
        sd = float(null.std(ddof=1))
        found |= {name: value, f"{name}_low": low, f"{name}_high": high}
        found |= {f"{name}_null_mean": null.mean(), f"{name}_null_sd": sd}
        found |= {f"{name}_z": (value - null.mean()) / sd if sd > 0 else np.nan}
    return {name: float(number) for name, number in found.items()}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else np.nan
