"""circuits: what the heads of a small transformer do, and how they came to do it.

The public names below are loaded when they are first asked for, so ``import circuits`` costs neither torch nor
transformer_lens. Everything else lives in its room: ``circuits.models``, ``circuits.data``, ``circuits.detectors``,
``circuits.weights``, ``circuits.paths``, ``circuits.complexity``, ``circuits.dynamics``, ``circuits.views``.
"""

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.complexity.calibrate import calibrate as calibrate
    from circuits.complexity.config import SamplerConfig as SamplerConfig
    from circuits.data.tokens import repeated_random_tokens as repeated_random_tokens
    from circuits.detectors.classify import classify as classify
    from circuits.detectors.multigram_measure import Multigrams as Multigrams
    from circuits.dynamics.coefficients import coefficients as coefficients
    from circuits.dynamics.coefficients import llc as llc
    from circuits.dynamics.coefficients import rllc as rllc
    from circuits.dynamics.detect import detect as detect
    from circuits.dynamics.functions import functions as functions
    from circuits.dynamics.pathways import pathways as pathways
    from circuits.dynamics.presets import preset as preset
    from circuits.dynamics.sweep import gather as gather
    from circuits.dynamics.sweep import sweep as sweep
    from circuits.dynamics.train import train as train
    from circuits.dynamics.weigh import weigh as weigh
    from circuits.models import planted as planted
    from circuits.models.checkpoints import Checkpoints as Checkpoints
    from circuits.models.config import HookedTransformerConfig as HookedTransformerConfig
    from circuits.models.convert import from_hf as from_hf
    from circuits.models.convert import from_transformer_lens as from_transformer_lens
    from circuits.models.demo import demo_model as demo_model
    from circuits.models.effects import head_effects as head_effects
    from circuits.models.heads import Head as Head
    from circuits.models.hooked import HookedTransformer as HookedTransformer
    from circuits.paths.ablate import ablate as ablate
    from circuits.paths.ablate import patch as patch
    from circuits.paths.edges import EdgeEffects as EdgeEffects
    from circuits.paths.expansion import PathExpansion as PathExpansion
    from circuits.views.attention import view as view
    from circuits.views.report import report as report
    from circuits.weights.circuits import ov_circuit as ov_circuit
    from circuits.weights.circuits import qk_circuit as qk_circuit
    from circuits.weights.composition import Composition as Composition
    from circuits.weights.skip_trigrams import skip_trigrams as skip_trigrams

    __version__: str

# The same names for the running program, each with the module it is imported from; a test holds the two lists equal.
_HOMES = {
    "Checkpoints": "circuits.models.checkpoints",
    "Composition": "circuits.weights.composition",
    "EdgeEffects": "circuits.paths.edges",
    "Head": "circuits.models.heads",
    "HookedTransformer": "circuits.models.hooked",
    "HookedTransformerConfig": "circuits.models.config",
    "Multigrams": "circuits.detectors.multigram_measure",
    "PathExpansion": "circuits.paths.expansion",
    "SamplerConfig": "circuits.complexity.config",
    "ablate": "circuits.paths.ablate",
    "calibrate": "circuits.complexity.calibrate",
    "classify": "circuits.detectors.classify",
    "coefficients": "circuits.dynamics.coefficients",
    "demo_model": "circuits.models.demo",
    "detect": "circuits.dynamics.detect",
    "from_hf": "circuits.models.convert",
    "from_transformer_lens": "circuits.models.convert",
    "functions": "circuits.dynamics.functions",
    "gather": "circuits.dynamics.sweep",
    "head_effects": "circuits.models.effects",
    "llc": "circuits.dynamics.coefficients",
    "ov_circuit": "circuits.weights.circuits",
    "patch": "circuits.paths.ablate",
    "pathways": "circuits.dynamics.pathways",
    "planted": "circuits.models",
    "preset": "circuits.dynamics.presets",
    "qk_circuit": "circuits.weights.circuits",
    "repeated_random_tokens": "circuits.data.tokens",
    "report": "circuits.views.report",
    "rllc": "circuits.dynamics.coefficients",
    "skip_trigrams": "circuits.weights.skip_trigrams",
    "sweep": "circuits.dynamics.sweep",
    "train": "circuits.dynamics.train",
    "view": "circuits.views.attention",
    "weigh": "circuits.dynamics.weigh",
}

if not TYPE_CHECKING:  # a type checker knows the names by the imports above, and a wrong one is an error to it
    __all__ = [*_HOMES, "__version__"]

    def __getattr__(name: str) -> Any:
        """Load a public name on first use (PEP 562) and keep it."""
        if name == "__version__":
            value = _version()
        elif name in _HOMES:
            value = getattr(__import__(_HOMES[name], fromlist=[name]), name)
        else:
            near = get_close_matches(name, _HOMES, n=3, cutoff=0.4)
            offers = f"it offers {', '.join(near)} and others" if near else "see what it offers"
            raise AttributeError(f"module 'circuits' has no attribute {name!r}; {offers}: dir(circuits)")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "__version__"})


def _version() -> str:
    """The installed distribution's version; a checkout that is only on the path has none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("circuits-interp")
    except PackageNotFoundError:
        return "0+uninstalled"
