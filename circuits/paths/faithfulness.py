"""How much of what a model does a circuit does, and whether it is whole and without waste.

m(C) is the mean loss with every edge outside C ablated together (with current values), M the whole model, 0 the empty circuit.

    faithfulness   F(C) = (m(C) - m(0)) / (m(M) - m(0)), a ratio of means: 1 is the model, 0 is no circuit; it may lie outside
    completeness   |F(C without K) - F(M without K)|, mean and largest over random K of half of C's edges: 0 where C holds all
                   that K works with; as a mean of moduli it is above 0 by chance too
    minimality     of each edge v: the larger of |F(C without K) - F(C without K and v)| for K = nothing and for one random K:
                   near 0 where v is not needed (after Wang et al. 2022, who look for the worst K)

The numbers depend on the kind of ablation, on edges against nodes, on positions and averaging (Miller et al. 2024); what was
used is in the result's config. Alternatives that share the layout of the tokens make circuits look whole (see
``circuits.paths.values``). Errors are a bootstrap over examples; a circuit chosen on the same examples looks better than it is.
The null of F are random circuits with as many edges of each kind (heads of the same layers, the same input): what is known from
the kinds alone. Where ablating everything changes the loss by less than two standard errors, F is NaN and its state says so.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuits.models.protocol import model_hash
from circuits.paths.ablate import Made
from circuits.paths.circuit import Circuit
from circuits.paths.edges import EdgeEffects
from circuits.paths.frozen import ROUNDING
from circuits.paths.joint import check_effects
from circuits.paths.matched import beside
from circuits.paths.wiring import Edge, Wiring, by_kind, wiring_of
from circuits.results import array_hash, check_whole, labelled, mean_and_stderr

if TYPE_CHECKING:
    import xarray as xr

DRAWS = 1000


class Scale:
    """From effects of ablating edges to faithfulness, with its bootstrap.

    Args:
        nothing: ``[example]``, the effect of ablating every edge: m(0) - m(M). seed: of the bootstrap.
    """

    def __init__(self, nothing: Float[np.ndarray, "example"], seed: int):
        self.nothing = nothing
        mean, stderr = mean_and_stderr(nothing)
        examples = len(nothing)
        self.state = "one example" if examples < 2 else "ok" if abs(mean) > 2 * stderr else "no effect"
        self.works = self.state == "ok"
        rng = np.random.default_rng([seed, 53])
        self.weights = rng.multinomial(examples, np.full(examples, 1 / examples), size=DRAWS) / examples

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
        ``smallest_p`` (random circuits with as many edges of each kind; p two-sided by rank); ``incompleteness`` (mean over K),
        its ``_stderr`` and ``incompleteness_worst``; ``minimality [edge]`` of each edge of the circuit, its ``_stderr`` and
        ``minimality_least``; ``whole``, ``alone`` and ``nothing`` with ``_stderr``: mean loss of the model, the circuit and the
        empty circuit; ``state`` ("ok", "no effect" or "one example").

    Raises:
        TypeError, ValueError: a circuit of another model, or what ``EdgeEffects`` refuses.
    """
    check_whole("random_circuits", random_circuits, 0)
    check_whole("subsets", subsets, 1)
    check_whole("seed", seed, 0)
    check_effects(effects)
    check_circuit(circuit, wiring_of(model))
    made = effects.intervention(model)
    rng = np.random.default_rng([seed, 54])
    everything = made.wiring.edges
    drawn = [_subset(rng, circuit.edges, len(circuit) // 2) for _ in range(subsets)]
    sets: list[Sequence[Edge]] = [everything, circuit.complement]
    sets += [_alike(rng, circuit).complement for _ in range(random_circuits)]
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
    errors = _errors(scale, found[1], found[at : at + len(singles)], found[at + len(singles) :], len(pairs))
    base, base_stderr = mean_and_stderr(made.base().double().numpy())
    means = {
        name: mean_and_stderr(made.base().double().numpy() + effect)
        for name, effect in (("alone", found[1]), ("nothing", found[0]))
    }
    return labelled(
        {
            "value": ((), value),
            "stderr": ((), stderr),
            "low": ((), low),
            "high": ((), high),
            **{name: ((), number) for name, number in _beside(float(value), nulls).items()},
            "incompleteness": ((), incomplete.mean()),
            "incompleteness_stderr": ((), errors[0]),
            "incompleteness_worst": ((), incomplete.max()),
            "minimality": (("edge",), needed),
            "minimality_stderr": (("edge",), errors[1]),
            "minimality_least": ((), needed.min() if len(needed) else np.nan),
            "whole": ((), base),
            "whole_stderr": ((), base_stderr),
            **{name: ((), mean) for name, (mean, _) in means.items()},
            **{f"{name}_stderr": ((), stderr) for name, (_, stderr) in means.items()},
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
        null="random circuits with as many edges of each kind",
    )


def check_circuit(circuit: Any, wiring: Wiring) -> None:
    """Refuse what is no circuit of this model.

    Raises:
        TypeError, ValueError: as said.
    """
    if not isinstance(circuit, Circuit):
        raise TypeError(f"the circuit is a {type(circuit).__name__}; make one with threshold, ranked, greedy or Circuit.of")
    if circuit.wiring.edges != wiring.edges:
        raise ValueError(
            f"the circuit has {len(circuit.wiring.edges)} edges to choose of and the model {len(wiring.edges)}, they are of "
            "different shape: choose the circuit on this model"
        )


def _errors(
    scale: Scale, alone: np.ndarray, removed: np.ndarray, paired: np.ndarray, pairs: int
) -> tuple[float, Float[np.ndarray, "edge"]]:
    """Standard errors of incompleteness and of each edge's minimality, on the bootstrap's examples."""
    if not scale.works:
        return np.nan, np.full(len(removed), np.nan)
    drawn = scale.drawn(paired).reshape(-1, 2, DRAWS)
    apart = np.abs(drawn[:, 0] - drawn[:, 1])
    needed = np.maximum(np.abs(scale.drawn(alone) - scale.drawn(removed)), apart[pairs:])
    return float(apart[:pairs].mean(0).std(ddof=1)), needed.std(-1, ddof=1)


def _beside(value: float, nulls: Float[np.ndarray, "circuit"]) -> dict[str, float]:
    """An F among those of random circuits; no z where they differ by rounding only."""
    found = beside(value, nulls)._asdict()
    if found["null_sd"] <= ROUNDING:
        found["z"] = np.nan
    return found


def _alike(rng: np.random.Generator, circuit: Circuit) -> Circuit:
    """A random circuit with as many edges of each kind."""
    kept = by_kind(circuit.wiring, circuit.edges)
    edges: list[Edge] = []
    for kind, group in by_kind(circuit.wiring, circuit.wiring.edges).items():
        edges += _subset(rng, group, len(kept.get(kind, [])))
    return Circuit(circuit.wiring, tuple(edges))


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
