"""How much of what a model does a circuit does, and whether it is whole and without waste.

m(C) is the mean metric with every edge outside C ablated together (with current values), M the whole model, 0 the empty circuit.

    faithfulness   F(C) = (m(C) - m(0)) / (m(M) - m(0)), a ratio of means: 1 is the model, 0 is no circuit; it may lie outside
    [0, 1] curve          F of the n best edges of a ranking, at shares of all edges; its area (CPR, higher is better) and the
    area of
                   |1 - F| (CMD, 0 is best), trapezoids over the share (Mueller et al. 2025, MIB)
    completeness   |F(C without K) - F(M without K)| over random K in C: 0 where C holds all that K works with. Half of C by
    default minimality     of each edge v: the largest |F(C without K) - F(C without K and v)| over K = nothing and random K in
    C: near 0
                   where v is not needed (Wang et al. 2022)

The numbers depend on the kind of ablation, on edges against nodes, positions and averaging (Miller et al. 2024): all are in the
result's attributes. Errors are a bootstrap over examples; the null of F are random circuits with as many edges. Where ablating
everything changes the metric by less than two standard errors, F is NaN and its state says so.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuits.models.protocol import model_hash
from circuits.paths.ablate import Made
from circuits.paths.circuit import Circuit, ranking
from circuits.paths.edges import EdgeEffects
from circuits.paths.intervention import Intervention
from circuits.paths.matched import beside
from circuits.paths.wiring import Edge
from circuits.results import array_hash, check_whole, labelled, mean_and_stderr

if TYPE_CHECKING:
    import xarray as xr

DRAWS = 1000
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Scale:
    """From effects of ablating edges to faithfulness, with its bootstrap.

    Args:
        nothing: ``[example]``, the effect of ablating every edge: m(0) - m(M). seed: of the bootstrap.
    """

    def __init__(self, nothing: Float[np.ndarray, "example"], seed: int):
        self.nothing = nothing
        mean, stderr = mean_and_stderr(nothing)
        self.works = bool(abs(mean) > 2 * stderr)
        examples = len(nothing)
        rng = np.random.default_rng([seed, 53])
        self.weights = rng.multinomial(examples, np.full(examples, 1 / examples), size=DRAWS) / examples

    @property
    def state(self) -> str:
        return "ok" if self.works else "no effect"

    def faithfulness(self, effect: Float[np.ndarray, "*what example"]) -> Float[np.ndarray, "*what"]:
        """``1 - effect / effect of ablating everything``, as a ratio of means."""
        return np.asarray(1 - effect.mean(-1) / self.nothing.mean()) if self.works else np.full(effect.shape[:-1], np.nan)

    def drawn(self, effect: Float[np.ndarray, "*what example"]) -> Float[np.ndarray, "*what draw"]:
        """The same on examples drawn anew."""
        return 1 - effect @ self.weights.T / (self.nothing @ self.weights.T)

    def spread(self, effect: Float[np.ndarray, "*what example"]) -> tuple[np.ndarray, ...]:
        """Standard error and the ends of the 95% interval."""
        if not self.works:
            nan = np.full(effect.shape[:-1], np.nan)
            return nan, nan, nan
        drawn = self.drawn(effect)
        low, high = np.quantile(drawn, (0.025, 0.975), axis=-1)
        return tuple(np.asarray(x) for x in (drawn.std(-1, ddof=1), low, high))


def faithfulness(
    model: Any, effects: EdgeEffects, circuit: Circuit, *, random_circuits: int = 20, subsets: int = 20, seed: int = 0
) -> "xr.Dataset":
    """Faithfulness, completeness and minimality of a circuit.

    Args:
        model: of the protocol, in evaluation mode. effects: what is ablated on which tokens. circuit: of this model.
        random_circuits: of as many edges, behind the null. subsets: random K of half the circuit's edges. seed: of all draws.

    Returns:
        Dataset: ``value``, the faithfulness, ``stderr``, ``low``, ``high`` (95%), ``null_mean``, ``null_sd``, ``z``, ``p``,
        ``smallest_p`` (random circuits of equal size); ``incompleteness`` (mean over K) and ``incompleteness_worst``;
        ``minimality [edge]`` of each edge of the circuit and ``minimality_least``; ``whole``, ``alone`` and ``nothing``: mean
        metric of the model, the circuit and the empty circuit; ``state`` ("ok" or "no effect").

    Raises:
        TypeError, ValueError: a circuit of another model, or what ``EdgeEffects`` refuses.
    """
    check_whole("random_circuits", random_circuits, 0)
    check_whole("subsets", subsets, 1)
    check_whole("seed", seed, 0)
    made = effects.intervention(model)
    check_circuit(circuit, made)
    rng = np.random.default_rng([seed, 54])
    everything = made.wiring.edges
    drawn = [_subset(rng, circuit.edges, len(circuit) // 2) for _ in range(subsets)]
    sets: list[Sequence[Edge]] = [everything, circuit.complement]
    sets += [_subset(rng, everything, len(everything) - len(circuit)) for _ in range(random_circuits)]
    pairs = [(circuit.without(k).complement, k) for k in drawn]
    singles = [circuit.without([edge]).complement for edge in circuit]
    # One subset for each edge is enough to see that others hide it; all of them would be a run for every edge and subset.
    hidden = [(circuit.without(k).complement, circuit.without([*k, edge]).complement) for edge, k in _each_with(circuit, drawn)]
    flat = [one for pair in (*pairs, *hidden) for one in pair]
    found = made.together([*sets, *singles, *flat]).double().numpy()
    scale = Scale(found[0], seed)
    nulls = scale.faithfulness(found[2 : len(sets)])
    value, (stderr, low, high) = scale.faithfulness(found[1]), scale.spread(found[1])
    at = len(sets)
    removed = scale.faithfulness(found[at : at + len(singles)])
    paired = scale.faithfulness(found[at + len(singles) :]).reshape(-1, 2)
    incomplete = np.abs(paired[: len(pairs), 0] - paired[: len(pairs), 1])
    needed = np.maximum(np.abs(value - removed), np.abs(paired[len(pairs) :, 0] - paired[len(pairs) :, 1]))
    base = float(made.base().double().mean())
    beside_random = beside(float(value), nulls) if scale.works else beside(np.nan, np.empty(0))
    return labelled(
        {
            "value": ((), value),
            "stderr": ((), stderr),
            "low": ((), low),
            "high": ((), high),
            **{name: ((), number) for name, number in beside_random._asdict().items()},
            "incompleteness": ((), incomplete.mean()),
            "incompleteness_worst": ((), incomplete.max()),
            "minimality": (("edge",), needed),
            "minimality_least": ((), needed.min() if len(needed) else np.nan),
            "whole": ((), base),
            "alone": ((), base + found[1].mean()),
            "nothing": ((), base + found[0].mean()),
            "state": ((), scale.state),
        },
        {"edge": [str(edge) for edge in circuit]},
        measure=Made("faithfulness", 1, _config(effects, circuit, seed, random_circuits=random_circuits, subsets=subsets)),
        definition="(m(circuit) - m(nothing)) / (m(model) - m(nothing)), ratio of means, everything else ablated together",
        source="Wang et al. 2022; Miller et al. 2024",
        model_hash=model_hash(model),
        data_hash=array_hash(made.targets.cpu()),
        n_examples=len(made),
        edges=len(circuit),
        of=len(everything),
        null="random circuits with as many edges",
    )


def faithfulness_curve(
    model: Any,
    effects: EdgeEffects,
    scores: dict[Edge, float],
    *,
    shares: Sequence[float] = SHARES,
    modulus: bool = True,
    random_rankings: int = 5,
    seed: int = 0,
) -> "xr.Dataset":
    """Faithfulness of the best edges of a ranking, at growing shares of all edges.

    Args:
        model, effects: as ``faithfulness``. scores: of every edge. shares: of all edges, growing, in [0, 1].
        modulus: whether the ranking is by moduli. random_rankings: behind the null. seed: of the draws.

    Returns:
        Dataset with dim ``draw`` for the shares (coordinate ``draw``: number of edges): ``share``, ``value`` and its ``stderr``,
        ``null_mean``, ``null_sd``, ``z`` (random rankings); ``area`` (CPR, the integral of F over the share), ``distance``
        (CMD, that of |1 - F|), each with ``_stderr``, ``_null_mean`` and ``_null_sd``; ``state``.

    Raises:
        TypeError, ValueError: shares that do not grow, or what ``faithfulness`` refuses.

    Source: Mueller et al. 2025 (MIB), CPR and CMD.
    """
    at = np.asarray(shares, dtype=np.float64)
    if at.ndim != 1 or len(at) < 2 or (np.diff(at) <= 0).any() or at[0] < 0 or at[-1] > 1:
        raise ValueError(f"shares={list(shares)}: need two or more growing numbers from 0 to 1")
    check_whole("random_rankings", random_rankings, 2)
    check_whole("seed", seed, 0)
    made = effects.intervention(model)
    everything = made.wiring.edges
    if missing := [edge for edge in everything if edge not in scores]:
        raise ValueError(f"scores lack {len(missing)} of {len(everything)} edges, {missing[0]} first: score every edge")
    sizes = np.unique(np.round(at * len(everything)).astype(int))
    rng = np.random.default_rng([seed, 55])
    rankings = [ranking({edge: scores[edge] for edge in everything}, modulus=modulus)]
    rankings += [[everything[one] for one in rng.permutation(len(everything))] for _ in range(random_rankings)]
    sets = [tuple(order[size:]) for order in rankings for size in sizes]
    found = made.together([everything, *sets]).double().numpy()
    scale = Scale(found[0], seed)
    effect = found[1:].reshape(len(rankings), len(sizes), -1)
    curves, share = scale.faithfulness(effect), sizes / len(everything)
    stderr = scale.spread(effect[0])[0]
    drawn = scale.drawn(effect[0]) if scale.works else np.full((len(sizes), 2), np.nan)
    areas = {"area": lambda f: np.trapezoid(f, share, axis=0), "distance": lambda f: np.trapezoid(np.abs(1 - f), share, axis=0)}
    null = curves[1:]
    sd = null.std(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(sd > 0, (curves[0] - null.mean(0)) / sd, np.nan)
    of_areas: dict[str, Any] = {}
    for name, area in areas.items():
        nulls = area(null.T)
        of_areas |= {name: ((), area(curves[0])), f"{name}_stderr": ((), area(drawn).std(ddof=1))}
        of_areas |= {f"{name}_null_mean": ((), nulls.mean()), f"{name}_null_sd": ((), nulls.std(ddof=1))}
    each = ("draw",)
    return labelled(
        {
            "value": (each, curves[0]),
            "stderr": (each, stderr),
            "null_mean": (each, null.mean(0)),
            "null_sd": (each, sd),
            "z": (each, z),
            "share": (each, share),
            **of_areas,
            "state": ((), scale.state),
        },
        {"draw": sizes},
        measure=Made("faithfulness_curve", 1, {**effects.spec(), "shares": at.tolist(), "modulus": modulus, "seed": seed}),
        definition="faithfulness of the best edges of a ranking by the share of edges kept",
        source="Mueller et al. 2025 (MIB)",
        model_hash=model_hash(model),
        data_hash=array_hash(made.targets.cpu()),
        n_examples=len(made),
        null="random rankings",
    )


def check_circuit(circuit: Any, made: Intervention) -> None:
    """Refuse what is no circuit of this model.

    Raises:
        TypeError, ValueError: as said.
    """
    if not isinstance(circuit, Circuit):
        raise TypeError(f"the circuit is a {type(circuit).__name__}; make one with threshold, ranked, greedy or Circuit.of")
    if circuit.wiring != made.wiring:
        raise ValueError(
            f"the circuit has {len(circuit.wiring.edges)} edges to choose of and the model {len(made.wiring.edges)}, they are of "
            "different shape: choose the circuit on this model"
        )


def _subset(rng: np.random.Generator, edges: Sequence[Edge], size: int) -> tuple[Edge, ...]:
    return tuple(edges[at] for at in np.sort(rng.choice(len(edges), size, replace=False)))


def _each_with(circuit: Circuit, drawn: Sequence[Sequence[Edge]]) -> list[tuple[Edge, Sequence[Edge]]]:
    """Each edge with a subset that lacks it; nothing where all drawn ones have it."""
    found: list[tuple[Edge, Sequence[Edge]]] = []
    for at, edge in enumerate(circuit):
        turned = [*drawn[at % len(drawn) :], *drawn[: at % len(drawn)]]
        found.append((edge, next((k for k in turned if edge not in k), ())))
    return found


def _config(effects: EdgeEffects, circuit: Circuit, seed: int, **more: int) -> dict[str, Any]:
    return {**effects.spec(), "circuit": [str(edge) for edge in circuit], "seed": seed, **more}
