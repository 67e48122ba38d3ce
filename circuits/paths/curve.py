"""Faithfulness along a ranking of edges: how many of the best ones does it take?

F of the n best edges of a ranking (``circuits.paths.faithfulness``), at shares of all edges from 0 to 1; its area (CPR, higher is
better) and the area of |1 - F| (CMD, 0 is best) are trapezoids over the share. The null are rankings in which scores are
exchanged within kinds of edges: what is known from the kinds alone. Source: Mueller et al. 2025 (MIB).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuits.models.protocol import model_hash
from circuits.paths.ablate import Made
from circuits.paths.circuit import ranking
from circuits.paths.edges import EdgeEffects
from circuits.paths.faithfulness import Scale
from circuits.paths.frozen import against
from circuits.paths.joint import check_effects
from circuits.paths.wiring import Edge, Wiring, by_kind, wiring_of
from circuits.results import array_hash, check_whole, labelled

if TYPE_CHECKING:
    import xarray as xr

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


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
        model, effects: as ``faithfulness``. scores: of every edge. shares: of all edges, growing, from 0 to 1.
        modulus: whether the ranking is by moduli. random_rankings: behind the null. seed: of the draws.

    Returns:
        Dataset with dim ``size``, the number of edges kept: ``share`` of all edges, ``value`` and its ``stderr``,
        ``null_mean``, ``null_sd``, ``z`` (scores exchanged within kinds); ``area`` (CPR, the integral of F over the share),
        ``distance`` (CMD, that of |1 - F|), each with ``_stderr``, ``_null_mean`` and ``_null_sd``; ``state``.

    Raises:
        TypeError, ValueError: shares that do not grow, or what ``faithfulness`` refuses.

    Source: Mueller et al. 2025 (MIB), CPR and CMD.
    """
    at = _shares(shares)
    check_whole("random_rankings", random_rankings, 2)
    check_whole("seed", seed, 0)
    check_effects(effects)
    everything = wiring_of(model).edges
    if not isinstance(scores, dict):
        raise TypeError(
            f"scores are a {type(scores).__name__}, need a number for each edge: dict(zip(edge_list(found), found.value.values))"
        )
    if missing := [edge for edge in everything if edge not in scores]:
        raise ValueError(f"scores lack {len(missing)} of {len(everything)} edges, {missing[0]} first: score every edge")
    if not all(np.isfinite(scores[edge]) for edge in everything):
        raise ValueError("some scores are NaN or infinite, which cannot be ranked: give every edge a number")
    made = effects.intervention(model)
    sizes = np.unique(np.round(at * len(everything)).astype(int))
    rng = np.random.default_rng([seed, 55])
    rankings = [ranking({edge: scores[edge] for edge in everything}, modulus=modulus)]
    rankings += [ranking(_exchanged(rng, made.wiring, scores), modulus=modulus) for _ in range(random_rankings)]
    sets = [tuple(order[size:]) for order in rankings for size in sizes]
    found = made.together([everything, *sets]).double().numpy()
    scale = Scale(found[0], seed)
    effect = found[1:].reshape(len(rankings), len(sizes), -1)
    curves, share = scale.faithfulness(effect), sizes / len(everything)
    stderr = scale.spread(effect[0])[0]
    drawn = scale.drawn(effect[0]) if scale.works else np.full((len(sizes), 2), np.nan)
    areas = {"area": lambda f: np.trapezoid(f, share, axis=0), "distance": lambda f: np.trapezoid(np.abs(1 - f), share, axis=0)}
    null = curves[1:]
    beside_null = against(curves[0], null)
    of_areas: dict[str, Any] = {}
    for name, area in areas.items():
        nulls = area(null.T)
        of_areas |= {name: ((), area(curves[0])), f"{name}_stderr": ((), area(drawn).std(ddof=1))}
        of_areas |= {f"{name}_null_mean": ((), nulls.mean()), f"{name}_null_sd": ((), nulls.std(ddof=1))}
    each = ("size",)
    return labelled(
        {
            "value": (each, curves[0]),
            "stderr": (each, stderr),
            **{name: (each, numbers) for name, numbers in beside_null.items()},
            "share": (each, share),
            **of_areas,
            "state": ((), scale.state),
        },
        {"size": sizes},
        measure=Made("faithfulness_curve", 1, {**effects.spec(), "shares": at.tolist(), "modulus": modulus, "seed": seed}),
        definition="faithfulness of the best edges of a ranking by the share of edges kept",
        source="Mueller et al. 2025 (MIB)",
        model_hash=model_hash(model),
        data_hash=array_hash(made.targets.cpu()),
        n_examples=len(made),
        null="rankings with scores exchanged among edges of one kind",
    )


def _shares(given: Any) -> Float[np.ndarray, "share"]:
    """Shares of all edges, checked."""
    try:
        at = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        at = np.empty(0)
    if at.ndim != 1 or len(at) < 2 or not (np.diff(at) > 0).all() or at[0] != 0 or at[-1] != 1:
        raise ValueError(f"shares={given!r}: need growing numbers from 0 to 1, both among them, such as (0.0, 0.1, 1.0)")
    return at


def _exchanged(rng: np.random.Generator, wiring: Wiring, scores: dict[Edge, float]) -> dict[Edge, float]:
    """The same scores, exchanged among edges of one kind."""
    found: dict[Edge, float] = {}
    for group in by_kind(wiring, wiring.edges).values():
        order = rng.permutation(len(group))
        found |= {edge: scores[group[at]] for edge, at in zip(group, order, strict=True)}
    return {edge: found[edge] for edge in wiring.edges}
