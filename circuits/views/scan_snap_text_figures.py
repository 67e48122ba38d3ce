"""Figures of Scan & Snap on text: the bounce of attention, its sparsity by rate, its maps by depth, and which keys it chose.

As in ``curves``: labelled results in, a matplotlib ``Figure`` out, equal bytes for equal input. Bands and bars are two standard
errors over seeds; a single seed has none. Runs that diverged are left out whole and counted, above the panel or beside the
statistic. Dashed lines are uniform attention.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.results import mean_and_stderr
from circuits.views.figures import PALETTE, drawing, label_ends, line_with_band
from circuits.views.scan_snap_figures import ERRORS, GREY, require

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {"relu": "ReLU", "linear": "linear", "attention": "attention only", "bare": "no residual"}
"""What a kind of ``TextRuns`` is called at the end of its curve."""
UNITS = ("rank correlation of logits gained", "sd of logits gained")
"""Of statistics, and of the gap of common keys."""
MAPS = 4
"""Heat maps of a row: of the first step, the last, and between."""
PALE = "#d9d9d9"
"""Of a null, and of attention that is NaN."""
LEVEL: dict[str, Any] = {"color": GREY, "lw": 0.9, "ls": "--", "zorder": 0}


def text_bounce_curves(found: "xr.Dataset", *, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """Normalised entropy of every kind over training, then the stable rank of ``W_in`` of those that have one.

    A dot stands at the lowest point of a curve that bounced in most seeds.

    Args:
        found: of ``text_bounce``. axes: two.
    """
    dims = ("kind", "seed", "step")
    require(found, "text_bounce", value=dims, stable_rank=dims, bounce_state=dims[:2])
    with drawing(axes[0] if axes else None, width=9.6, height=3.3, columns=2) as made:
        left, right = axes or made
        _draw_curves(left, found, "kind", "value")
        _draw_curves(right, found, "kind", "stable_rank")
        right.set_ylabel("stable rank of W_in")
        for i, kind in enumerate(found["kind"].values):
            here = found.sel(kind=kind)
            if (here["bounce_state"] == "bounced").mean() > 0.5:
                mean = _finished(here, "value").mean(0)
                low = int(mean.argmin())
                left.plot(found["step"].values[low], mean[low], "o", color=PALETTE[i % len(PALETTE)], ms=6, zorder=3)
        return left.figure  # type: ignore[return-value]


def text_rate_curves(found: "xr.Dataset", *, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """Normalised entropy over training at every rate of SGD, then its last value over the rate; small dots: single seeds.

    Args:
        found: of ``text_rates``. axes: two.
    """
    require(found, "text_rates", value=("lr", "seed", "step"))
    rates = found["lr"].values
    with drawing(axes[0] if axes else None, width=9.6, height=3.3, columns=2) as made:
        left, right = axes or made
        _draw_curves(left, found, "lr", "value")
        for i, rate in enumerate(rates):
            _draw_seeds(right, float(rate), _finished(found.sel(lr=rate), "value")[:, -1], PALETTE[i % len(PALETTE)])
        right.set_xscale("log")
        right.set_xticks(rates, [f"{rate:g}" for rate in rates])
        right.minorticks_off()
        right.axhline(1, **LEVEL)
        right.set(xlim=(rates.min() / 1.3, rates.max() * 1.3), ylim=left.get_ylim())
        right.set(xlabel="rate of SGD, η", ylabel="H / ln i at the end")
        return left.figure  # type: ignore[return-value]


def text_depth_maps(found: "xr.Dataset", *, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """Attention of the lowest layer, a row for each depth: maps of the first seed on one sequence, then entropy and velocity.

    Thin lines are single seeds. Velocities differ by orders of magnitude, so their mean and band are of logarithms.

    Args:
        found: of ``text_depths``. axes: six for each depth, row by row; fewer where fewer than four steps were read.
    """
    dims = ("depth", "seed", "step")
    require(found, "text_depths", value=dims, velocity=dims, pattern=(*dims, "query", "key"))
    step, depths = found["step"].values, found["depth"].values
    shown = np.unique(np.abs(step[:, None] - np.linspace(step[0], step[-1], MAPS)).argmin(0))
    pattern = found["pattern"].isel(seed=0, step=shown).transpose("depth", "step", "query", "key").values
    found = found.assign(logs=np.log10(found["velocity"].where(found["velocity"] > 0)))
    logs = found["logs"].values[np.isfinite(found["logs"].values)] if found["logs"].notnull().any() else np.zeros(1)
    decades = np.arange(np.floor(logs.min()), np.floor(logs.max()) + 2)
    rows, columns = len(depths), len(shown) + 2
    with drawing(axes[0] if axes else None, width=11.6, height=1.85 * rows + 0.3, columns=columns, rows=rows) as made:
        from matplotlib.colors import LinearSegmentedColormap

        colours = LinearSegmentedColormap.from_list("attention", ["#ffffff", "#0000ff"]).with_extremes(bad=PALE)
        panels = np.array(axes or made, dtype=object).reshape(rows, columns)
        for row, depth, maps in zip(panels, depths, pattern, strict=True):
            for axis, attention, at in zip(row, maps, step[shown], strict=False):
                image = axis.imshow(attention, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
                axis.set_title(f"step {at}" if np.isfinite(attention).all() else f"step {at}: diverged", loc="left", fontsize=8)
                axis.set(xticks=[], yticks=[], xlabel="key")
            row[0].set_ylabel(f"{_named('depth', depth)}\nquery")
            here, (entropy, speed) = found.sel(depth=depth), row[-2:]
            for axis, x, runs, colour in (
                (entropy, step, _finished(here, "value"), PALETTE[0]),
                (speed, (step[1:] + step[:-1]) / 2, _finished(here, "logs")[:, 1:], PALETTE[1]),
            ):
                axis.plot(x, runs.T, color=colour, lw=0.6, alpha=0.5)
                _draw_mean(axis, x, runs, colour)
            _finish_entropy(entropy, found)
            entropy.set_title(_diverged(found.sel(depth=[depth]), "depth"), loc="left", fontsize=8)
            _finish_steps(speed, step)
            speed.set_yticks(decades, [f"{10.0**power:g}" for power in decades])
            speed.set(ylim=decades[[0, -1]], ylabel="mass moved a step")
        if not axes:
            panels[0, 0].get_gridspec().set_width_ratios([1.0] * len(shown) + [1.15] * 2)
            bar = panels[0, 0].figure.colorbar(image, ax=list(panels[:, : len(shown)].flat), shrink=0.8, aspect=25, pad=0.02)
            bar.set_label("attention")
        return panels[0, 0].figure


def text_pair_bars(found: "xr.Dataset", *, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """What logits gained in training say of the text, statistic by statistic, then the gap of common keys in its own units.

    Grey: the null's mean and two of its sd to either side. Small dots: single seeds. The last panel is attention: of the (Y, Z)
    model its entropy over training; of transformers, a row for each kind, the lift of keys by how common their word is.

    Args:
        found: of ``text_pairs`` or ``text_null``. axes: three, or three for each kind, row by row.
    """
    null = "kind" in found.dims
    kinds = found["kind"].values if null else [None]
    dims = ("kind", "seed", "stage", "statistic")[not null :]
    read = dict.fromkeys(("bias", "null_mean", "null_sd"), dims)
    require(found, "text_null" if null else "text_pairs", value=("kind", "seed", "bin") if null else ("seed", "step"), **read)
    with drawing(axes[0] if axes else None, width=10.4, height=2.3 * len(kinds) + 0.4, columns=3, rows=len(kinds)) as made:
        panels = np.array(axes or made, dtype=object).reshape(len(kinds), 3)
        if not axes:
            for row in panels[1:]:  # kinds are compared: numbers of a column have one scale
                for axis, top, share in zip(row, panels[0], ("sharex", "sharex", "sharey"), strict=True):
                    getattr(axis, share)(top)
        for i, (row, kind) in enumerate(zip(panels, kinds, strict=True)):
            here, colour = found.sel(kind=kind) if null else found, PALETTE[i % len(PALETTE)]
            gained = here.sel(stage="gained")
            gap = gained["statistic"] == "common_gap"
            for axis, some, unit in zip(row, (gained.sel(statistic=~gap), gained.sel(statistic=gap)), UNITS, strict=False):
                _draw_bias(axis, some, colour)
                axis.set_xlabel(unit)
            if null:
                row[0].set_title(_named("kind", kind), loc="left")
                _draw_lift(row[2], here["value"], colour)
            else:
                _draw_mean(row[2], found["step"].values, _finished(found, "value"), colour)
                _finish_entropy(row[2], found)
        return panels[0, 0].figure


def _draw_curves(axis: "Axes", found: "xr.Dataset", dim: str, variable: str) -> None:
    """The mean over seeds at every place on ``dim`` that has the variable, named at its end."""
    ends, step = [], found["step"].values
    for i, one in enumerate(found[dim].values):
        colour = PALETTE[i % len(PALETTE)]
        mean = _draw_mean(axis, step, _finished(found.sel({dim: one}), variable), colour)
        if mean is not None:
            ends.append((float(step[-1]), float(mean[-1]), _named(dim, one), colour))
    if variable == "value":
        _finish_entropy(axis, found)
        axis.set_title(_diverged(found, dim), loc="left", fontsize=8)
    else:
        _finish_steps(axis, step)
    label_ends(axis, ends)


def _draw_bias(axis: "Axes", found: "xr.Dataset", colour: str) -> None:
    """A row for each statistic, the first on top: seeds, their mean, and the null behind them."""
    axis.use_sticky_edges = False
    labels, count = [], found.sizes["seed"]
    for row, name in enumerate(found["statistic"].values):
        here = found.sel(statistic=name)
        centre, half = float(here["null_mean"].mean()), 2 * float(here["null_sd"].mean())
        axis.barh(row, 2 * half, left=centre - half, height=0.7, color=PALE, zorder=0)
        axis.plot([centre, centre], [row - 0.35, row + 0.35], color=GREY, lw=0.9)
        _draw_seeds(axis, row, here["bias"].values, colour, flat=True)
        known = int(np.isfinite(here["bias"].values).sum())
        label = str(name).replace("_", " ").replace("pmi", "PMI")
        labels.append(label if known == count else f"{label}\n{known} of {count} seeds")
    axis.locator_params(axis="x", nbins=4)
    axis.axvline(0, color=GREY, lw=0.6, zorder=0)
    axis.set_yticks(range(len(labels)), labels)
    margin = 0.5 if len(labels) > 1 else 1.5
    axis.set_ylim(len(labels) - 1 + margin, -margin)


def _draw_lift(axis: "Axes", lift: "xr.DataArray", colour: str) -> None:
    """Attention to each bin of keys over what uniform attention gives it."""
    bins = [str(name).removeprefix("rank ") for name in lift["bin"].values]
    for at, samples in enumerate(lift.transpose("bin", "seed").values):
        _draw_seeds(axis, at, samples, colour)
    axis.axhline(1, **LEVEL)
    axis.set_xticks(range(len(bins)), bins)
    axis.set(xlim=(-0.5, len(bins) - 0.5), xlabel="rank of the key's word", ylabel="lift of attention")


def _draw_seeds(axis: "Axes", at: int | float, samples: np.ndarray, colour: str, *, flat: bool = False) -> None:
    """Seeds as small dots at one place, and their mean with its bar, along x if ``flat``; what is NaN is left out."""
    known = samples[np.isfinite(samples)]
    if not len(known):
        return
    mean, error = mean_and_stderr(known)
    where = np.full(len(known), at)
    dots: dict[str, Any] = {"color": colour, "mew": 0}
    axis.plot(known if flat else where, where if flat else known, "o", ms=3, alpha=0.45, **dots)
    bar: dict[str, Any] = {"xerr" if flat else "yerr": ERRORS * np.nan_to_num(error)}
    axis.errorbar(mean if flat else at, at if flat else mean, fmt="o", ms=5, elinewidth=1.4, **dots, **bar)


def _draw_mean(axis: "Axes", x: np.ndarray, runs: np.ndarray, colour: str) -> "np.ndarray | None":
    """The mean of runs ``[seed, x]`` and its band; returns the mean, None where there is nothing to draw."""
    if not np.isfinite(runs).any():
        return None
    mean, error = mean_and_stderr(runs)
    line_with_band(axis, x, mean, ERRORS * error, colour=colour, dots=False)
    return mean


def _finished(found: "xr.Dataset", variable: str) -> np.ndarray:
    """A variable of the runs that did not diverge, ``[seed, step]``."""
    whole = np.isfinite(found["value"].transpose("seed", "step").values).all(1)
    return found[variable].transpose("seed", "step").values[whole]


def _diverged(found: "xr.Dataset", dim: str) -> str:
    """How many runs diverged, a line for each place on ``dim`` where some did."""
    count = found.sizes["seed"]
    lost = {_named(dim, one): count - len(_finished(found.sel({dim: one}), "value")) for one in found[dim].values}
    return "\n".join(f"{name}: {n} of {count} runs diverged" for name, n in lost.items() if n)


def _named(dim: str, one: Any) -> str:
    """What a place on a dim is called."""
    if dim == "lr":
        return f"η = {one:g}"
    if dim == "depth":
        return f"{one} layer{'' if one == 1 else 's'}"
    return KINDS.get(str(one), str(one))


def _finish_steps(axis: "Axes", step: np.ndarray) -> None:
    axis.set(xlim=(step[0], step[-1]), xlabel="step")


def _finish_entropy(axis: "Axes", found: "xr.Dataset") -> None:
    """Axes of normalised entropy: from a little under the least of the whole result to the chance level."""
    _finish_steps(axis, found["step"].values)
    known = found["value"].values[np.isfinite(found["value"].values)]
    low = float(known.min(initial=0.9))
    axis.axhline(1, **LEVEL)
    axis.set(ylim=(low - 0.06 * (1 - low), 1 + 0.04 * (1 - low)), ylabel="H / ln i")
