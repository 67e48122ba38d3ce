"""Do training curves sort heads into their types: clusters of each layer's curves laid against roles, several measures at once.

For every measure, layer, method and scaling: the adjusted Rand index of the clusters with the roles (``value``, 0 by chance), its
p when roles are exchanged among the heads of the layer, the smallest p that was to be had, and an interval for what noise-free
curves would give. ``difference`` is the index of the reference less that of the measure, on the same heads, checkpoints and
roles: above 0, the reference's curves sort heads better.

Measures are compared on the checkpoints at which all of them are there for every head of the layer. A head that a measure has
nowhere, or whose role is "not measured", is left out for all (its label is -1). Every other word is a role, "none" too.

    agree           p at most .05
    no agreement    p above
    untestable      no arrangement of these roles could have p at most .05, or there is nothing to compare, and ``state`` says why

"agree" is agreement beyond chance, not agreement of a size: that is ``value``, with ``low`` and ``high``, an interval of 95% or
more (see ``circuits.crosscheck.plausible``). Errors are ``stderr``, taken for independent between checkpoints, or where a measure
has them ``drawn (draw, step, layer, head)``: the measure anew, each as far from ``value`` as that may be from the truth, such as
from chains or examples that heads and checkpoints share. A measure with neither counts as exact.

Sources: Wang et al. 2024, section 4; Hubert & Arabie 1985; claim C11 of this package's scorecard.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.crosscheck.cluster_cells import NOT_MEASURED, Cell, Comparison, clustered, common_layer, read_curve
from circuits.crosscheck.partitions import ALPHA, UNTESTABLE, sign_test
from circuits.results import array_hash, labelled

if TYPE_CHECKING:
    import xarray as xr

GRID = ("curve", "layer", "clustering", "scaling")
BOUNDS = ("low", "high", "difference", "difference_low", "difference_high")


def compare(
    curves: "Mapping[str, xr.DataArray | xr.Dataset]",
    roles: "xr.DataArray",
    *,
    confidence: "xr.DataArray | None" = None,
    **settings: Any,
) -> "xr.Dataset":
    """Cluster every measure's curves and lay the clusters against the roles of heads.

    Args:
        curves: by name, with dims ``step, layer, head``: a Dataset with ``value`` and ``stderr`` or ``drawn``, or a DataArray,
            which is exact. roles: words ``(layer, head)``. confidence: probability ``(layer, head)`` that the role is right;
            intervals then have its error too. settings: fields of ``Comparison``, such as ``reference="rllc"``.

    Returns:
        ``Dataset(curve, layer, clustering, scaling)``, ``clustering`` the method and the reference first: ``value`` in [-1/2, 1],
        ``chance`` 0, ``low``, ``high``; ``p``, ``smallest_p``, ``null_mean``, ``null_sd``, ``z``, ``verdict``; ``difference``,
        ``difference_low``, ``difference_high``; ``k``, and ``silhouette`` of the clusters; ``labels`` with ``head``; ``state``
        ("ok", "missing", "one role", "alike": fewer curves differ than there are to be clusters); ``n_heads`` and ``n_steps``,
        ``(layer)``.

    Raises:
        TypeError, ValueError: curves or roles of other dims, layers or heads; no such reference; settings that are none.

    Source: Wang et al. 2024, section 4; Hubert & Arabie 1985.
    """
    how = Comparison(**settings)
    for name, words in (("roles", roles), ("confidence", roles if confidence is None else confidence)):
        if not hasattr(words, "dims") or set(words.dims) != {"layer", "head"} or not words.sizes == roles.sizes:
            raise ValueError(f"{name} must be a DataArray (layer, head), one for each head, such as classify_functions(...).role")
    if confidence is not None and not ((confidence >= 0) & (confidence <= 1) | (roles == NOT_MEASURED)).all():
        raise ValueError(f"confidence must be from 0 to 1 for each head, but for those of role {NOT_MEASURED!r}")
    given = {name: read_curve(name, curve, roles) for name, curve in curves.items()}
    if how.reference not in given:
        raise ValueError(f"the reference {how.reference!r} is none of the curves, {', '.join(given)}: name one with reference=")
    names = [how.reference, *(name for name in given if name != how.reference)]
    # Sorted, too, where there is one measure alone: weights are of neighbours in time.
    shared = np.unique(reduce(np.intersect1d, [curve["step"].values for curve in given.values()]))
    if len(shared) < 2:
        raise ValueError(f"the curves share {len(shared)} checkpoints, need two or more: leave out the one that has others")
    layers, heads = roles["layer"].values, roles["head"].values
    # Two sets of clusterings, and the set of roles where these are uncertain, share what may go wrong.
    alpha = ALPHA / (2 if confidence is None else 3)
    shape = (len(names), len(layers), len(how.methods), len(how.scalings))
    cells: dict[tuple[int, ...], Cell] = {}
    common = []
    for at, layer in enumerate(layers):
        part = {name: given[name].sel(layer=layer, step=shared) for name in names}
        words = roles.sel(layer=layer).values.astype("U")
        sure = None if confidence is None else confidence.sel(layer=layer, head=heads).values
        common.append(common_layer(part, words, sure, how, alpha))
        for which, *place in np.ndindex(shape[0], *shape[2:]):
            curve = part[names[which]].isel(head=common[at].heads, step=common[at].steps)
            method, scaling = how.methods[place[0]], how.scalings[place[1]]
            cells[which, at, *place] = clustered(curve, common[at], method, scaling, how, alpha)
    bounds = np.full((5, *shape), np.nan)
    labels = np.full((*shape, len(heads)), -1)
    for where in np.ndindex(shape):
        cell, base = cells[where], cells[0, *where[1:]]
        labels[where][common[where[1]].heads] = cell.labels
        gap = base.agreement.value - cell.agreement.value
        # The reference differs from itself by nothing, whatever its errors.
        least, most = (base.low - cell.high, base.high - cell.low) if where[0] else (gap, gap)
        bounds[:, *where] = cell.low.min(), cell.high.max(), gap, np.min(least), np.max(most)

    def grid(read: Any) -> tuple[tuple[str, ...], np.ndarray]:
        return GRID, np.array([read(cells[where]) for where in np.ndindex(shape)]).reshape(shape)

    return labelled(
        {
            "value": grid(lambda cell: cell.agreement.value),
            **{name: (GRID, values) for name, values in zip(BOUNDS, bounds, strict=True)},
            "chance": ((), 0.0),
            "p": grid(lambda cell: cell.agreement.p),
            "smallest_p": grid(lambda cell: cell.agreement.smallest),
            "null_mean": grid(lambda cell: cell.agreement.null_mean),
            "null_sd": grid(lambda cell: cell.agreement.null_sd),
            "z": grid(lambda cell: (cell.agreement.value - cell.agreement.null_mean) / (cell.agreement.null_sd or np.nan)),
            "verdict": grid(lambda cell: cell.agreement.verdict),
            "k": grid(lambda cell: cell.k),
            "silhouette": grid(lambda cell: cell.silhouette),
            "state": grid(lambda cell: cell.state),
            "labels": ((*GRID, "head"), labels),
            "n_heads": (("layer",), [len(one.heads) for one in common]),
            "n_steps": (("layer",), [len(one.steps) for one in common]),
        },
        {"curve": names, "layer": layers, "clustering": list(how.methods), "scaling": list(how.scalings), "head": heads},
        measure=how,
        definition="adjusted Rand index of clusters of a layer's training curves with the roles of its heads",
        source="Wang et al. 2024, section 4; Hubert & Arabie 1985",
        data_hash=array_hash(
            roles.values.astype("U"),
            *(given[name][part].values for name in names for part in sorted(map(str, given[name].data_vars))),
            *([] if confidence is None else [confidence.values]),
        ),
        null="roles exchanged among the heads of the layer",
        units="1",
    )


def over_seeds(comparisons: "Sequence[xr.Dataset]") -> "xr.Dataset":
    """Whether the reference's curves sort heads better than each other measure's in more seeds than by chance.

    Args:
        comparisons: what ``compare`` returned for each seed, with the same measures, layers, methods and scalings.

    Returns:
        ``Dataset(curve, layer, clustering, scaling)`` without the reference: ``value``, the share of seeds in which
        ``difference`` is above 0 (``chance`` 1/2), ``p`` of the sign test, ``smallest_p`` (1/8 for three seeds), ``verdict``
        ("above", "not above", "untestable": also where a seed has no difference); ``n_seeds``.

    Raises:
        ValueError: none, or comparisons that differ in their dims.

    Source: Dixon & Mood 1946.
    """
    import xarray as xr

    if not comparisons or any(
        not np.array_equal(one[dim].values, comparisons[0][dim].values) for one in comparisons for dim in GRID
    ):
        raise ValueError(f"{len(comparisons)} comparisons; need one or more with the same curves, layers, methods and scalings")
    gaps = np.stack([one["difference"].transpose(*GRID).values[1:] for one in comparisons])
    value, p = np.full((2, *gaps.shape[1:]), np.nan)
    verdict = np.full(gaps.shape[1:], UNTESTABLE, dtype=object)
    for where in np.ndindex(gaps.shape[1:]):
        if np.isfinite(gaps[:, *where]).all():
            signs = sign_test(gaps[:, *where])
            value[where], p[where], verdict[where] = signs.above / signs.seeds, signs.p, signs.verdict
    first = comparisons[0]
    return xr.Dataset(
        {
            "value": (GRID, value),
            "chance": ((), 0.5),
            "p": (GRID, p),
            "smallest_p": ((), 2.0 ** -len(gaps)),
            "verdict": (GRID, verdict.astype("U")),
            "n_seeds": ((), len(gaps)),
        },
        coords={dim: first[dim].values for dim in GRID} | {"curve": first["curve"].values[1:]},
        attrs={
            "measure": "cluster_agreement_over_seeds",
            "definition": "share of seeds in which the reference's clusters agree better with roles; p: sign test, one-sided",
            "source": "Dixon & Mood 1946",
            "version": first.attrs["version"],
            "config": first.attrs["config"],
            "data_hash": array_hash(*(np.array(one.attrs["data_hash"]) for one in comparisons)),
        },
    )
