"""How far edges make up for each other, as a measure of one model: ``interaction`` of named places, or of the strongest edges.

    value   loss with all places edited together, less the sum of their single effects; nats, above 0 where they are redundant

The strongest edges are found on other tokens than those they are judged on: chosen on the same ones, chance would make their
single effects too large and the interaction too low.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.paths.edges import EdgeEffects
from circuits.paths.joint import check_effects, interaction
from circuits.results import canonical, check_whole

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Interaction:
    """The joint effect of places less the sum of their single effects: a scalar, with dims ``edge`` and ``example`` beside.

    Args:
        effects: what is edited on which tokens, and what these are called (``on``). places: two or more; none where the strongest
            edges are meant. strongest: how many of them. among: their effects are these, on other tokens; its ``where`` says of
            which edges. controls, seed: see ``interaction``.
    """

    effects: EdgeEffects
    places: tuple[str, ...] = ()
    strongest: int = 4
    among: EdgeEffects | None = None
    controls: int = 0
    seed: int = 0
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_effects(self.effects)
        if isinstance(self.places, str) or not isinstance(self.places, Sequence):
            raise TypeError(f"places are {self.places!r}, need a list of two or more, such as ['L0H0 -> L1H*', 'L0H1 -> L1H*']")
        object.__setattr__(self, "places", tuple(str(place) for place in self.places))
        if bool(self.places) == (self.among is not None):
            raise ValueError("need either places, or among=EdgeEffects(...), whose strongest edges are the places")
        if self.among is not None:
            check_effects(self.among)
        check_whole("strongest", self.strongest, 2)
        check_whole("controls", self.controls, 0)
        check_whole("seed", self.seed, 0)

    @property
    def name(self) -> str:
        return f"interaction_{self.effects.on}" if self.effects.on else "interaction"

    def spec(self) -> dict[str, Any]:
        chosen = None if self.among is None else [self.strongest, self.among.spec()]
        return {
            "effects": self.effects.spec(),
            "places": list(self.places),
            "strongest": chosen,
            "controls": self.controls,
            "seed": self.seed,
        }

    def __call__(self, model: Any) -> "xr.Dataset":
        """Measure a model.

        Returns:
            As ``interaction``; ``edge`` counts the places, and ``place [edge]`` names them: another model may have others.

        Raises:
            TypeError, ValueError: as ``interaction``; fewer edges than the strongest that are asked for.
        """
        places = self.places if self.among is None else strongest_edges(model, self.among, self.strongest)
        found = interaction(model, self.effects, places, controls=self.controls, seed=self.seed)
        names = found["edge"].values
        found = found.assign_coords(edge=np.arange(len(names))).assign(place=("edge", names))
        return found.assign_attrs(measure=self.name, version=self.version, config=canonical(self.spec()))


def strongest_edges(model: Any, effects: EdgeEffects, count: int) -> tuple[str, ...]:
    """The edges of largest effect, first the largest.

    Raises:
        ValueError: there are fewer.
    """
    found = effects(model)
    if found.sizes["edge"] < count:
        raise ValueError(f"where={effects.where!r} has {found.sizes['edge']} edges and the strongest {count} were asked for")
    order = np.argsort(-found["value"].values, kind="stable")[:count]
    return tuple(str(edge) for edge in found["edge"].values[order])
