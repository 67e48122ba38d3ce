"""What measures of one layer have in common, and one of them clustered and laid against the roles of its heads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from circuits.crosscheck.clusters import (
    METHODS,
    SCALINGS,
    Method,
    Scaling,
    canonical_labels,
    choose_k,
    cluster,
    different,
    log_time_weights,
    scaled,
    silhouette,
)
from circuits.crosscheck.partitions import UNTESTABLE, Agreement, adjusted_rand
from circuits.crosscheck.plausible import drawn_curves, index_bounds, open_partitions, open_roles
from circuits.results import check_whole

if TYPE_CHECKING:
    import xarray as xr

NOT_MEASURED = "not measured"
FEWEST = 30
"""Draws of a measure: fewer say little of how its errors hang together."""
DIMS = ("step", "layer", "head")


@dataclass(frozen=True)
class Comparison:
    """How curves are clustered and compared.

    Attributes:
        reference: the measure that the others are compared with. methods, scalings: see ``circuits.crosscheck.clusters``.
        weights: of checkpoints, their shares of log time or equal. k: how many clusters: as many as the layer has roles, a
            number, or that of the largest silhouette. draws: of curves, for intervals. seed: of all that is random.
    """

    reference: str = "rllc"
    methods: Sequence[Method] = METHODS
    scalings: Sequence[Scaling] = SCALINGS
    weights: Literal["log", "equal"] = "log"
    k: int | Literal["roles", "silhouette"] = "roles"
    draws: int = 400
    seed: int = 0

    name = "cluster_agreement"
    version = 1

    def __post_init__(self) -> None:
        for name, every in (("methods", METHODS), ("scalings", SCALINGS)):
            given = getattr(self, name)
            if isinstance(given, str) or not given or not set(given) <= set(every):
                raise ValueError(f"{name} are {given!r}; need a list of some of {', '.join(every)}")
            object.__setattr__(self, name, tuple(given))
        if self.weights not in ("log", "equal"):
            raise ValueError(f"weights {self.weights!r} are neither 'log' nor 'equal'")
        if self.k not in ("roles", "silhouette"):
            check_whole("k", self.k, 1, "or 'roles' or 'silhouette'")
        check_whole("draws", self.draws, FEWEST)
        check_whole("seed", self.seed, 0)

    def spec(self) -> dict[str, Any]:
        return asdict(self)


class Layer(NamedTuple):
    """What the measures of a layer have in common.

    Attributes:
        heads, steps: places of what all of them have. weights: of these steps. roles: of these heads, numbered.
        open_roles: those that may be the true ones, ``[set, head]``; None where they are too many to tell.
    """

    heads: np.ndarray
    steps: np.ndarray
    weights: np.ndarray
    roles: np.ndarray
    open_roles: np.ndarray | None


class Cell(NamedTuple):
    """One clustering, and the least and the largest index that errors leave open with each of the open roles; NaN: not known."""

    state: str
    agreement: Agreement
    k: int
    silhouette: float
    labels: np.ndarray
    low: np.ndarray
    high: np.ndarray


def read_curve(name: str, curve: Any, roles: "xr.DataArray") -> "xr.Dataset":
    """A measure's ``value``, with ``stderr`` or ``drawn`` if it has them, heads in the order of roles.

    Raises:
        TypeError, ValueError: something else, other dims, layers or heads, errors below 0 or too few draws.
    """
    if not hasattr(curve, "dims"):
        raise TypeError(f"curve {name!r} is a {type(curve).__name__}; pass a Dataset with value, or a DataArray")
    data = curve if hasattr(curve, "data_vars") else curve.to_dataset(name="value")
    if "value" not in data or set(data["value"].dims) != set(DIMS):
        given = tuple(data["value"].dims) if "value" in data else tuple(data.dims)
        raise ValueError(f"curve {name!r} has dims {given}, needs value with {', '.join(DIMS)}: select one of any other dim")
    if not all(set(data[dim].values.tolist()) == set(roles[dim].values.tolist()) for dim in ("layer", "head")):
        raise ValueError(f"curve {name!r} has other layers or heads than roles: measure both on the same model")
    kept = data[[part for part in ("value", "stderr", "drawn") if part in data]]
    kept = kept.sel(layer=roles["layer"].values, head=roles["head"].values)
    if "stderr" in kept and (kept["stderr"] < 0).any():
        raise ValueError(f"curve {name!r} has errors below 0: pass standard errors")
    if "drawn" in kept and (set(kept["drawn"].dims) != {*DIMS, "draw"} or kept.sizes["draw"] < FEWEST):
        raise ValueError(
            f"curve {name!r} has drawn of {dict(kept['drawn'].sizes)}; need {FEWEST} draws or more, (draw, step, layer, head)"
        )
    return kept


def common_layer(
    curves: "Mapping[str, xr.Dataset]", roles: np.ndarray, sure: Float[np.ndarray, "head"] | None, how: Comparison, alpha: float
) -> Layer:
    """The heads and checkpoints that all measures of a layer have; a measure that has nothing there does not count.

    ``sure`` is the confidence in each role (None: certain), and ``alpha`` what the set of open roles may miss.
    """
    there = [np.isfinite(curve["value"].transpose("step", "head").values) for curve in curves.values()]
    there = np.array([one for one in there if one.any()]).reshape(-1, *there[0].shape)
    heads = np.flatnonzero((roles != NOT_MEASURED) & there.any(1).all(0))
    steps = np.flatnonzero(there[:, :, heads].all((0, 2)))
    at = next(iter(curves.values()))["step"].values[steps]
    weights = log_time_weights(at) if how.weights == "log" and len(at) > 1 else np.full(len(at), 1 / max(len(at), 1))
    names = canonical_labels(roles[heads]) if len(heads) else np.zeros(0, dtype=np.int64)
    return Layer(
        heads, steps, weights, names, names[None] if sure is None or not len(heads) else open_roles(names, sure[heads], alpha)
    )


def clustered(curve: "xr.Dataset", layer: Layer, method: Method, scaling: Scaling, how: Comparison, alpha: float) -> Cell:
    """Cluster one measure's curves of one layer, and lay the clusters against its roles.

    Args:
        curve: ``(step, head)``, those of ``layer`` alone. alpha: what an interval may miss by errors of curves.
    """
    x = curve["value"].transpose("head", "step").values.astype(np.float64)
    roles = len(np.unique(layer.roles))
    unknown = np.full(1, np.nan)

    def none(state: str) -> Cell:
        nothing = Agreement(np.nan, np.nan, 1.0, np.nan, np.nan, UNTESTABLE)
        return Cell(state, nothing, 0, np.nan, np.full(len(x), -1), unknown, unknown)

    if min(x.shape) < 2 or not np.isfinite(x).all():
        return none("missing")
    if roles < 2:
        return none("one role")
    points = scaled(x, layer.weights, scaling)
    apart, by_silhouette = different(points), how.k == "silhouette"
    k = 2 if by_silhouette else roles if how.k == "roles" else int(how.k)
    if k > (min(apart, len(x) - 1) if by_silhouette else apart):
        return none("alike")
    options: dict[str, Any] = {"method": method, "scaling": scaling, "weights": layer.weights}
    if by_silhouette:
        k = choose_k(x, **options, seed=how.seed).k
    labels = cluster(x, k, **options, seed=how.seed)
    drawn, low, high = _drawn(curve, x, how), unknown, unknown
    if drawn is not None:
        low, high = index_bounds(open_partitions(x, drawn, labels, **options, alpha=alpha), layer.open_roles)
    return Cell("ok", adjusted_rand(labels, layer.roles, seed=how.seed), k, silhouette(points, labels), labels, low, high)


def _drawn(curve: "xr.Dataset", x: np.ndarray, how: Comparison) -> np.ndarray | None:
    """The curves measured anew; None where their errors are not known."""
    if "drawn" in curve:
        drawn = curve["drawn"].transpose("draw", "head", "step").values.astype(np.float64)
        return drawn if np.isfinite(drawn).all() else None
    if "stderr" not in curve:
        return np.stack([x, x])
    stderr = curve["stderr"].transpose("head", "step").values
    return drawn_curves(x, stderr, how.draws, how.seed) if np.isfinite(stderr).all() else None
