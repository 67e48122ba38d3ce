"""Coefficients of all heads under several settings of the sampler: what the order of heads is to be compared over.

    gamma * f, nbeta * g   f of 1/4, 1 and 4, g of 1/3, 1 and 3: around the settings of the shipped curves, "base"
    epsilon / 2            steps half as long, every second kept
    sgld                   the base's posterior, by plain steps of the paper's length
    rmsprop_sgld           the same, steps divided by the gradient's running size
    gamma by norm          gamma / (rms of the head's weights / 0.1)^2: the spread stays the same share of the weights

``epsilon gamma`` is the base's wherever gamma changes, so that a step forgets the same share of what came before. Every setting
has randomness of its own: errors are independent between settings. A head for which a setting would diverge is not sampled at it
and its state is "refused"; those of ``circuits.complexity.diagnostics`` stand beside all others.

Draws are not kept. Batches are of as few sequences as leave a coefficient an error of some per cent: wherever gamma is large
what the loss rises by is small, and they are larger there.

``rms_floor`` of "rmsprop_sgld" lies among the sizes of single weights' gradients in the shipped run (1e-3 to 8e-3 for batches of
two): far above them, as at its default, preconditioning is none.

Sources: settings around those of Wang et al. 2024, appendix F; samplers: Hitchcock & Hoogland 2025.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from circuits.complexity.chains import Loss
from circuits.complexity.config import SamplerConfig, sampler_config
from circuits.complexity.pool import check_text
from circuits.complexity.rllc import DEFINITION, FIELDS, check_named, head_losses, sample
from circuits.complexity.stability import EXAMPLES, Sharpness, check_stable, sharpness, spaced
from circuits.models.heads import Head
from circuits.models.protocol import check_evaluated, check_finite, check_model, model_hash
from circuits.progress import bar
from circuits.results import array_hash, labelled

if TYPE_CHECKING:
    import xarray as xr

REFUSED = "refused"
_BASE = sampler_config("laptop", draws=40, batch=6)
_GAMMA = {"gamma / 4": 0.25, "": 1.0, "gamma * 4": 4.0}
_NBETA = {"nbeta / 3": 1 / 3, "": 1.0, "nbeta * 3": 3.0}


def _cell(gamma: float, nbeta: float) -> SamplerConfig:
    batch = 2 * _BASE.batch if gamma > 1 else _BASE.batch
    return _BASE.changed(gamma=_BASE.gamma * gamma, nbeta=_BASE.nbeta * nbeta, epsilon=_BASE.epsilon / gamma, batch=batch)


CELLS: Mapping[str, SamplerConfig] = {
    ", ".join(filter(None, (g, b))) or "base": _cell(_GAMMA[g], _NBETA[b]) for g in _GAMMA for b in _NBETA
}
GRID: Mapping[str, SamplerConfig] = {
    **CELLS,
    "epsilon / 2": _BASE.changed(epsilon=_BASE.epsilon / 2, thin=2, burn_in=2 * _BASE.burn_in),
    "sgld": _BASE.changed(sampler="sgld", epsilon=1e-3, thin=3, burn_in=20),
    "rmsprop_sgld": _BASE.changed(sampler="rmsprop_sgld", epsilon=4e-6, rms_floor=2e-3, rms_decay=0.8, thin=3, burn_in=70),
}
BY_NORM: Mapping[str, SamplerConfig] = {"gamma by norm": _BASE.changed(gamma_at_rms=0.1, draws=30)}


@dataclass(frozen=True)
class SettingsGrid:
    """The refined coefficient of every head under every setting: ``Dataset(setting, layer, head)``.

    Args:
        tokens: the text, ``[example, pos]``, BOS first. settings: by name. on: what the text is called. called: what these
            settings are called; both are parts of the measure's name.
    """

    tokens: Int[Tensor, "example pos"] = field(compare=False)
    settings: Mapping[str, SamplerConfig] = field(default_factory=lambda: dict(GRID), hash=False)
    on: str = "text"
    called: str = "grid"
    progress: bool | None = field(default=False, compare=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_named(self.on, False, self.tokens)
        if not isinstance(self.called, str) or not self.called.isidentifier():
            raise ValueError(f"called={self.called!r}: need a word that names the settings, such as 'grid'")
        if not isinstance(self.settings, Mapping) or not self.settings:
            raise ValueError(f"settings are {self.settings!r}; give some by name, such as {{'base': sampler_config('laptop')}}")
        object.__setattr__(self, "settings", {str(name): sampler_config(one) for name, one in self.settings.items()})

    @property
    def name(self) -> str:
        return f"rllc_{self.on}_{self.called}"

    def spec(self) -> dict[str, Any]:
        settings = [[name, one.model_dump(exclude_defaults=True, exclude={"force"})] for name, one in self.settings.items()]
        return {"tokens": array_hash(self.tokens.cpu()), "settings": settings}

    def __call__(self, model: Any) -> "xr.Dataset":
        """Measure a model.

        Returns:
            ``value``, ``stderr``, ``rhat``, ``ess``, ``state``, ``distance``, ``n_diverged`` as of ``RLLC``, and ``gamma``, all
            ``(setting, layer, head)``; NaN and "refused" where chains would diverge. ``curvature (layer, head)``.

        Raises:
            TypeError, ValueError: not a hooked model or in training mode, NaN weights, tokens that do not fit or are fewer than
            the largest batch.
        """
        check_model(model)
        check_evaluated(model)
        check_finite(model)
        check_text(self.tokens, model.cfg, max(one.batch for one in self.settings.values()))
        shape = (len(self.settings), model.cfg.n_layers, model.cfg.n_heads)
        numbers = {name: np.full(shape, np.nan) for name in (*FIELDS, "gamma") if name != "state"}
        state, curvature = np.full(shape, REFUSED, dtype=object), np.full(shape[1:], np.nan)
        make = head_losses(model, self.tokens, None)
        heads = [Head(*at) for at in np.ndindex(shape[1:])]
        with bar(heads, label=self.name, on=self.progress, unit="head") as shown:
            for head in shown:
                loss, at = make(head), (head.layer, head.head)
                sharp = sharpness(loss, spaced(loss, EXAMPLES))
                curvature[at] = sharp.curvature
                for place, given in enumerate(self.settings.values()):
                    found = _estimated(loss, given, sharp, (*at, place))
                    for name, value in found.items():
                        (state if name == "state" else numbers[name])[(place, *at)] = value
        grid = ("setting", "layer", "head")
        return labelled(
            {
                **{name: (grid, values) for name, values in numbers.items()},
                "state": (grid, state.astype("U")),
                "curvature": (grid[1:], curvature),
            },
            {"setting": list(self.settings), "layer": np.arange(shape[1]), "head": np.arange(shape[2])},
            measure=self,
            definition=DEFINITION,
            source="settings around those of Wang et al. 2024, appendix F; samplers: Hitchcock & Hoogland 2025",
            model_hash=model_hash(model),
            data_hash=array_hash(self.tokens.cpu()),
            n_examples=len(self.tokens),
            units="nbeta nats",
        )


def for_weights(config: SamplerConfig, rms: float) -> SamplerConfig:
    """The settings for weights of this root mean square: gamma scaled if it is to be, and ``epsilon gamma`` kept.

    Raises:
        ValueError: gamma is to be scaled by weights that are all 0.
    """
    if config.gamma_at_rms is None:
        return config
    gamma = config.gamma_for(rms)
    return config.changed(gamma=gamma, epsilon=config.epsilon * config.gamma / gamma, gamma_at_rms=None)


def _estimated(loss: Loss, given: SamplerConfig, sharp: Sharpness, stream: tuple[int, ...]) -> dict[str, Any]:
    """A head's estimate at one setting and its gamma; nothing where it is refused."""
    try:
        config = for_weights(given, float(loss.centre.square().mean().sqrt()))
        check_stable("", loss, sharp, config.gamma, config)
    except ValueError:
        return {}
    _, found = sample(loss, config, config.gamma, stream)
    return {**found._asdict(), "gamma": config.gamma}
