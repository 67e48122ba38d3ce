"""transformer-lens' permanent hook machinery, imported in one place where both of its lines (3.9 and 4.x) have it."""

from transformer_lens import ActivationCache, FactoredMatrix
from transformer_lens.hook_points import HookPoint

try:
    from transformer_lens.HookedRootModule import HookedRootModule
except ImportError:
    from transformer_lens.hook_points import HookedRootModule

__all__ = ["ActivationCache", "FactoredMatrix", "HookPoint", "HookedRootModule"]
