"""Effects of several places together, and of edges where others are gone already.

    interaction   effect(a and b together) - effect(a) - effect(b): above 0 where either alone makes up for the other (redundant:
                  losing both costs more than the sum), below 0 where one needs the other (losing the second costs little more)
    conditional   effect(edge and condition together) - effect(condition): what the edge is worth where the condition's edges are
                  edited already

in nats of loss. Single effects miss redundant edges; these do not. Intervals are a bootstrap over
examples, the null of an interaction is that of the same places through other heads of their layers
(``circuits.paths.matched``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.models.protocol import model_hash
from circuits.paths.ablate import Made, effects_of_sets, named
from circuits.paths.edges import EdgeEffects, edge_results
from circuits.paths.intervention import Intervention
from circuits.paths.matched import beside, matched_sets
from circuits.paths.places import Place, edges_in, read
from circuits.paths.wiring import wiring_of
from circuits.results import array_hash, check_whole, labelled, mean_and_stderr

if TYPE_CHECKING:
    import xarray as xr

DRAWS = 1000


def interaction(
    model: Any,
    effects: EdgeEffects,
    places: "Sequence[Place | str]",
    *,
    controls: int = 16,
    seed: int = 0,
) -> "xr.Dataset":
    """The effect of places edited together, less the sum of their single effects.

    Args:
        model: of the protocol, in evaluation mode. effects: what is edited on which tokens (its ``where`` is not used).
        places: two or more; see ``circuits.paths.places``. controls: how many matched arrangements at most. seed: of their choice
            and of the bootstrap.

    Returns:
        Dataset: ``value`` (joint less sum), ``stderr``, ``low`` and ``high`` (95%, bootstrap over examples), ``together`` and
        ``together_stderr``; with dim ``edge``, the places: ``single``, ``single_stderr``; ``per_example [example]``; and
        ``null_mean``, ``null_sd``, ``z``, ``p``, ``smallest_p`` among the matched arrangements. Nats.

    Raises:
        TypeError, ValueError: fewer than two places, or what ``ablate`` refuses.
    """
    check_whole("controls", controls, 0)
    check_whole("seed", seed, 0)
    check_effects(effects)
    if not isinstance(places, Sequence):
        raise TypeError(f"places are {places!r}, need a list of two or more, such as ['L0H0', 'L0H1']")
    asked = [read(place) for place in ([places] if isinstance(places, str) else places)]
    if len(asked) < 2:
        raise ValueError(f"an interaction is between two places or more and {len(asked)} was given: pass another")
    groups = [place.paths(wiring_of(model)) for place in asked]
    for at, group in enumerate(groups):
        for other in groups[at + 1 :]:
            if shared := set(group) & set(other):
                raise ValueError(
                    f"two of the places share the path {named((min(shared),))}, whose effect would be counted twice: "
                    "pass places without a common path"
                )
    made = effects.intervention(model)
    joint, single = _together(made, groups)
    per_example = joint - single.sum(0)
    others = []
    for control in matched_sets(groups, made.wiring, controls, seed):
        of_control, singles = _together(made, control)
        others.append(float((of_control - singles.sum(0)).mean()))
    value, stderr = mean_and_stderr(per_example)
    low, high = bootstrap_interval(per_example, seed)
    together, together_stderr = mean_and_stderr(joint)
    alone, alone_stderr = mean_and_stderr(single, axis=1)
    config = {**effects.spec(), "places": [str(place) for place in asked], "controls": controls, "seed": seed}
    return labelled(
        {
            "value": ((), value),
            "stderr": ((), stderr),
            "low": ((), low),
            "high": ((), high),
            "together": ((), together),
            "together_stderr": ((), together_stderr),
            "single": (("edge",), alone),
            "single_stderr": (("edge",), alone_stderr),
            "per_example": (("example",), per_example),
            **{name: ((), number) for name, number in beside(float(value), np.array(others))._asdict().items()},
        },
        {"edge": [str(place) for place in asked], "example": np.arange(len(per_example))},
        measure=Made("interaction", 1, config),
        definition="effect of the places edited together less the sum of their single effects",
        source="second differences of path ablation; after Miller et al. 2024 on redundant edges",
        model_hash=model_hash(model),
        data_hash=array_hash(made.targets.cpu()),
        n_examples=len(made),
        units="nats",
        null="the same places through other heads of their layers",
    )


def _together(made: Intervention, groups: "Sequence[Sequence[Any]]") -> tuple[np.ndarray, np.ndarray]:
    """Joint effect ``[example]`` and single ones ``[place, example]``."""
    union = tuple(dict.fromkeys(path for paths in groups for path in paths))
    found = effects_of_sets(made, [union, *(tuple(paths) for paths in groups)]).double().numpy()
    return found[0], found[1:]


def check_effects(effects: Any) -> None:
    """Refuse what does not say what is edited, on which tokens.

    Raises:
        TypeError: it is no ``EdgeEffects``.
    """
    if not isinstance(effects, EdgeEffects):
        raise TypeError(f"effects are a {type(effects).__name__}, need EdgeEffects(tokens, ...): what is edited on which tokens")


def bootstrap_interval(per_example: np.ndarray, seed: int, *, level: float = 0.95) -> tuple[float, float]:
    """An interval of the mean, drawing examples anew."""
    examples = len(per_example)
    if examples < 2:
        return np.nan, np.nan
    weights = np.random.default_rng([seed, 52]).multinomial(examples, np.full(examples, 1 / examples), size=DRAWS) / examples
    low, high = np.quantile(weights @ per_example, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


@dataclass(frozen=True)
class ConditionalEffects:
    """What every edge is worth where a condition's edges are edited already: ``Dataset(edge)``.

    Args:
        effects: tokens, what replaces writes, which edges are measured (``where``). given: the place that is edited already.
    """

    effects: EdgeEffects
    given: str
    version: int = field(default=1, init=False)

    @property
    def name(self) -> str:
        return f"conditional_effects_{self.effects.on}" if self.effects.on else "conditional_effects"

    def __post_init__(self) -> None:
        check_effects(self.effects)
        object.__setattr__(self, "given", str(read(self.given)))

    def spec(self) -> dict[str, Any]:
        return {"effects": self.effects.spec(), "given": self.given}

    def __call__(self, model: Any) -> "xr.Dataset":
        """Measure a model.

        Returns:
            As ``EdgeEffects``, ``value`` being the conditional effect; ``alone``, ``alone_stderr``, the edge's effect by itself;
            ``hidden`` and ``hidden_stderr``, the difference: above 0 where the condition's edges had made up for this one;
            ``condition`` and ``condition_stderr``, the effect of the condition. Edges of the condition itself are left out.

        Raises:
            TypeError, ValueError: as ``EdgeEffects``; a condition of paths longer than one hop.
        """
        wiring = wiring_of(model)
        given = edges_in(read(self.given), wiring)
        edges = tuple(edge for edge in self.effects.edges(wiring) if edge not in given)
        if not edges:
            raise ValueError(f"all edges of where={self.effects.where!r} are in the condition {self.given!r}: measure others")
        made = self.effects.intervention(model)
        sets = [tuple(dict.fromkeys((*given, edge))) for edge in edges]
        joint = made.together([given, *sets]).double().numpy()
        value, alone = joint[1:] - joint[0], made.one_by_one(edges).double().numpy()
        alone_mean, alone_stderr = mean_and_stderr(alone, axis=1)
        condition, condition_stderr = mean_and_stderr(joint[0])
        hidden, hidden_stderr = mean_and_stderr(value - alone, axis=1)
        each = ("edge",)
        return edge_results(
            self,
            model,
            made,
            edges,
            value,
            definition=f"change of the loss when the edge is edited where these are already: {named(given)}",
            source="conditional path ablation; redundancy in Miller et al. 2024",
            more={
                "alone": (each, alone_mean),
                "alone_stderr": (each, alone_stderr),
                "hidden": (each, hidden),
                "hidden_stderr": (each, hidden_stderr),
                "condition": ((), condition),
                "condition_stderr": ((), condition_stderr),
            },
        )
