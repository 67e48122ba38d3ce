"""The part of a report on clusters and lags: do coefficients sort heads into roles, and do they change when roles emerge.

The first clustering and scaling of ``compare`` are what sentences are about; others are folded away. Of a layer it is said that

    rLLC recovers roles      its p, roles exchanged among heads, is at most .05; "not testable" where no p could be
    it beats a measure       the interval of the difference of indices is above 0; is beaten: below 0; else not told apart. "Not
                             testable" where neither of the two could have agreed with roles beyond chance

By chance up to 1 in 20 of these intervals leaves 0 out: they are not corrected for how many there are.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from circuits.crosscheck.partitions import ALPHA
from circuits.models.heads import Head
from circuits.views.cells import heads_of
from circuits.views.cluster_figure import DETECTED, by_default, called, cluster_figure, lag_figure
from circuits.views.figures import rendered
from circuits.views.html import count, decimal, image, paragraph, probability, table

if TYPE_CHECKING:
    import xarray as xr

ROUNDING = 1e-9
NEAR = 0.15
"""Doublings of training: a time and 1.11 times that."""


def cluster_part(clusters: "xr.Dataset", roles: "xr.DataArray | None" = None) -> Markup:
    """The figure of Rand indices, what they say, a table of them, other clusterings, and which head is where.

    Args:
        clusters: of ``circuits.crosscheck.cluster_agreement.compare``. roles: words ``(layer, head)``, those that it was given.
    """
    here = by_default(clusters)
    how = f"{here['clustering'].values} of {here['scaling'].values} curves"
    steps = ", ".join(f"{count(float(here['n_steps'].sel(layer=layer)))} in layer {int(layer)}" for layer in here["layer"].values)
    parts = [
        image(
            rendered(cluster_figure(clusters), "svg"), "image/svg+xml", alt=described(here),
            caption=f"Adjusted Rand index of clusters ({how}) with roles: 1 for equal partitions, 0, dashed, by chance. Bars: "
            "the index that curves without noise would have, 95% or more; no bar: not known. Square: rLLC; dot: what costs less; "
            "diamond: detectors that roles rest on. Hollow: not testable, no arrangement of these roles has p ≤ 0.05.",
        ),
        *(said_of(here.sel(layer=layer)) for layer in here["layer"].values),
    ]  # fmt: skip
    if any(str(name).startswith(DETECTED) for name in here["curve"].values):
        parts.append(paragraph("Detector curves are no independent test, as roles rest on them: they show what can be reached."))
    caption = (
        f"Clusters by {how}; checkpoints: {steps}. p: roles exchanged among the heads of the layer; beside it the smallest there "
        "could be. Intervals in brackets; k: clusters, as many as the layer has roles unless asked otherwise."
    )
    parts += [
        table(COLUMNS, index_rows(here), caption=caption, numeric=range(2, 8)),
        folded("Other clusterings and scalings", every_cell(clusters)),
        folded("Which head is in which cluster", members(here, roles)),
    ]
    return Markup("\n").join(parts)


COLUMNS = ("layer", "curves", "index [interval]", "p", "smallest p", "rLLC less it [interval]", "k", "silhouette", "state")


def said_of(layer: "xr.Dataset") -> Markup:
    """Whether the reference's clusters recover the roles of a layer, and which measures it beats."""
    names = [str(name) for name in layer["curve"].values]
    base = layer.sel(curve=names[0])
    value, p, smallest = (float(base[name]) for name in ("value", "p", "smallest_p"))
    what = f"index {with_interval(base, 'value', 'low', 'high')}, p {probability(p)}"
    if not np.isfinite(value):
        found = f"there is nothing to compare ({base['state'].values})"
    elif not smallest <= ALPHA:
        found = f"whether it recovers roles is not testable: the smallest p there could be is {probability(smallest)} ({what})"
    elif p <= ALPHA:
        found = f"it recovers roles beyond chance ({what})"
    else:
        found = f"it does not recover roles beyond chance ({what}; the smallest there could be is {probability(smallest)})"
    sorted_in: dict[str, list[str]] = {}
    for name in names[1:]:
        if not name.startswith(DETECTED):
            sorted_in.setdefault(against(base, layer.sel(curve=name)), []).append(beside(layer.sel(curve=name)))
    words = [f"it {verdict} {', '.join(whom)}" for verdict in AGAINST if (whom := sorted_in.get(verdict))]
    beats = f" Of measures that cost less {'; '.join(words)}." if words else ""
    return paragraph("<b>Layer {}, {}</b>: {}.{}", int(layer["layer"]), called(names[0]), found, beats)


AGAINST = ("beats", "is beaten by", "is not told apart from", "is not testable against", "is not compared with")


def against(base: "xr.Dataset", other: "xr.Dataset") -> str:
    """What the difference of two indices says, in a word of ``AGAINST``."""
    low, high = float(other["difference_low"]), float(other["difference_high"])
    if not np.isfinite([low, high]).all():
        return AGAINST[4]
    if not min(float(base["smallest_p"]), float(other["smallest_p"])) <= ALPHA:
        return AGAINST[3]
    return AGAINST[0] if low > ROUNDING else AGAINST[1] if high < -ROUNDING else AGAINST[2]


def beside(row: "xr.Dataset") -> str:
    return f"{called(str(row['curve'].values))} ({with_interval(row, 'difference', 'difference_low', 'difference_high')})"


def with_interval(row: "xr.Dataset", value: str, low: str, high: str, digits: int = 3) -> str:
    """``0.303 [0.164, 0.303]``, without the interval where that is not known."""
    known, ends = float(row[value]), (float(row[low]), float(row[high]))
    said = f" [{decimal(ends[0], digits)}, {decimal(ends[1], digits)}]" if np.isfinite(ends).all() else ""
    return decimal(known, digits) + said


def index_rows(here: "xr.Dataset") -> list[tuple[Any, ...]]:
    rows = []
    for layer in here["layer"].values:
        for i, name in enumerate(here["curve"].values):
            row = here.sel(layer=layer, curve=name)
            testable = "" if float(row["smallest_p"]) <= ALPHA or not np.isfinite(float(row["value"])) else ", not testable"
            gap = with_interval(row, "difference", "difference_low", "difference_high") if i else "–"
            rows.append(
                (int(layer), called(str(name)), with_interval(row, "value", "low", "high"), probability(float(row["p"])),
                 probability(float(row["smallest_p"])), gap, int(row["k"]), decimal(float(row["silhouette"]), 2),
                 f"{row['state'].values}{testable}")
            )  # fmt: skip
    return rows


def every_cell(clusters: "xr.Dataset") -> Markup:
    """Index and p of every measure by every clustering and scaling."""
    cells = [(method, scaling) for method in clusters["clustering"].values for scaling in clusters["scaling"].values]

    def cell(row: "xr.Dataset") -> str:
        return f"{decimal(float(row['value']), 2)} ({probability(float(row['p']))})"

    rows = [
        (int(layer), called(str(name)), *(cell(clusters.sel(layer=layer, curve=name, clustering=m, scaling=s)) for m, s in cells))
        for layer in clusters["layer"].values
        for name in clusters["curve"].values
    ]
    return table(
        ("layer", "curves", *(f"{method}, {scaling}" for method, scaling in cells)), rows,
        caption="Adjusted Rand index with roles, and p in parentheses. The first pair is that of the figure; to pick "
        "another after looking is to test as many times as there are pairs.",
        numeric=range(2, 2 + len(cells)),
    )  # fmt: skip


def members(here: "xr.Dataset", roles: "xr.DataArray | None") -> Markup:
    """Every head with its role and its cluster by the reference's curves."""
    labels = here["labels"].isel(curve=0)
    name = called(str(here["curve"].values[0]))
    heads = heads_of(here)
    clusters = [int(labels.sel(layer=head.layer, head=head.head)) for head in heads]
    return table(
        ("head", "role", f"cluster by {name}"),
        [
            (str(head), role_of(head, roles), "left out" if cluster < 0 else f"{head.layer}.{cluster + 1}")
            for head, cluster in zip(heads, clusters, strict=True)
        ],
        caption="Clusters are of each layer by itself, numbered by first appearance; numbers say nothing of likeness.",
    )


def role_of(head: Head, roles: "xr.DataArray | None") -> str:
    return "not given" if roles is None else str(roles.sel(layer=head.layer, head=head.head).values)


def described(here: "xr.Dataset") -> str:
    """The figure's key numbers, for readers who cannot see it."""
    names = here["curve"].values
    layers = [
        f"layer {int(layer)}: "
        + ", ".join(f"{called(str(name))} {decimal(float(here['value'].sel(layer=layer, curve=name)))}" for name in names)
        for layer in here["layer"].values
    ]
    return f"Adjusted Rand index of clusters with roles, chance 0. {'; '.join(layers)}."


def lag_part(lags: "xr.Dataset", roles: "xr.DataArray | None" = None, *, near: float = NEAR) -> Markup:
    """The figure of lags, how many heads change with their role, and a table of all.

    Args:
        lags: of ``circuits.crosscheck.timing.lag``. roles: words ``(layer, head)``. near: half of the band that is called close.
    """
    rows = {head: lags.sel(layer=head.layer, head=head.head) for head in heads_of(lags)}
    states = [str(row["state"].values) for row in rows.values()]
    tally = {state: states.count(state) for state in ("together", "curve first", "role first", "untestable")}
    told = "; ".join(f"{state} {number}" for state, number in tally.items())
    return Markup("\n").join(
        [
            image(
                rendered(lag_figure(lags, near), "svg"), "image/svg+xml", alt=f"Lags of {len(rows)} heads: {told}.",
                caption="From the emergence of a head’s role to the largest rise of its coefficient, in doublings of training; "
                "left of 0 the curve came first. Bars: all that the checkpoints around both, and 95% of curves drawn anew, leave "
                f"open. Dashed: 0, at one time; shaded: within {decimal(near, 2)} of that. No mark: untestable.",
            ),
            paragraph(
                "<b>Do coefficients change when roles emerge?</b> {}", told_of(rows, tally, near, float(lags.attrs["unit"]))
            ),
            table(
                ("head", "role", "lag, doublings", "curve changes at step", "state", "reason"),
                [
                    (str(head), role_of(head, roles), with_interval(row, "value", "low", "high", 2), change_of(row),
                     str(row["state"].values), str(row["reason"].values) or "–")
                    for head, row in rows.items()
                ],
                caption="Together: the interval holds 0, which a wide one does easily. A role emerges where a threshold is "
                "crossed, a curve changes where it is steepest: an order is not a cause.",
                numeric=(2, 3),
            ),
        ]
    )  # fmt: skip


def told_of(rows: "Mapping[Head, xr.Dataset]", tally: Mapping[str, int], near: float, unit: float) -> str:
    """How many heads have which state, which of them are close, and which curves rise most right at the start."""
    dated = [head for head, row in rows.items() if np.isfinite(float(row["value"]))]
    if not dated:
        return f"Not testable: none of {len(rows)} heads has both a role that emerged and a curve that rises beyond its errors."
    close = [str(head) for head in dated if max(abs(float(rows[head][end])) for end in ("low", "high")) <= near]
    start = [str(head) for head in dated if float(rows[head]["change_low"]) == 0 and float(rows[head]["change_high"]) <= unit]
    parts = [
        f"Of {len(dated)} heads with a lag, {tally['together']} are together with their role within error, "
        f"{tally['curve first']} have the curve first and {tally['role first']} the role first; "
        f"{tally['untestable']} of {len(rows)} are not testable.",
        f"Wholly within {decimal(near, 2)} of a doubling: {', '.join(close)}." if close
        else f"The interval of none lies wholly within {decimal(near, 2)} of a doubling.",
    ]  # fmt: skip
    if start:
        parts.append(
            f"The curves of {len(start)} ({', '.join(start)}) rise most before step {count(unit)}, the first checkpoint: that is "
            "what the first steps of training do to a coefficient, and not the mark of a role."
        )
    return " ".join(parts)


def change_of(row: "xr.Dataset") -> str:
    ends = [float(row[name]) for name in ("change", "change_low", "change_high")]
    return f"{count(ends[0])} [{count(ends[1])}, {count(ends[2])}]" if np.isfinite(ends).all() else "–"


def folded(summary: str, *content: Markup) -> Markup:
    return Markup("<details><summary>{}</summary>\n{}\n</details>").format(summary, Markup("\n").join(content))
