"""Figures of Scan & Snap on text: they draw the data's numbers, leave out what is NaN and say so, and refuse other results."""

import numpy as np
import pytest
import xarray as xr

from circuits.views.figures import rendered
from circuits.views.scan_snap_text_figures import text_bounce_curves, text_depth_maps, text_pair_bars, text_rate_curves

STEP = np.array([0, 100, 200, 300, 400, 500, 600])
STATISTICS = ["frequency", "frequency_pmi", "discriminative", "discriminative_partial", "common_gap"]
COORDS = {
    "seed": [0, 1, 2],
    "step": STEP,
    "kind": ["relu", "linear", "bare"],
    "lr": [1.0, 2.0, 5.0, 10.0],
    "depth": [1, 3],
    "query": range(4),
    "key": range(4),
    "stage": ["start", "end", "gained"],
    "statistic": STATISTICS,
    "bin": ["rank 0+", "rank 10+", "rank 30+"],
}


def made(**variables):
    """A result of random values by name: the dims of each, or values after its dims."""
    rng, data = np.random.default_rng(0), {}
    for name, dims in variables.items():
        dims, values = dims if isinstance(dims, list) else (dims, None)
        dims = tuple(dims.split())
        data[name] = (dims, rng.uniform(0.1, 0.9, [len(COORDS[dim]) for dim in dims]) if values is None else values)
    used = {dim for dims, _ in data.values() for dim in dims}
    return xr.Dataset(data, coords={dim: COORDS[dim] for dim in used})


def bounce_data():
    """ReLU bounces in two seeds of three, the linear one in one; the kind without feed-forward layer has no rank."""
    states = [["bounced", "bounced", "dropped"], ["bounced", "dropped", "dropped"], ["dropped"] * 3]
    found = made(value="kind seed step", stable_rank="kind seed step", bounce_state=["kind seed", states])
    found["stable_rank"].loc[{"kind": "bare"}] = np.nan
    return found


def rate_data():
    """One seed of three diverged at 5, all at 10."""
    found = made(value="lr seed step")
    found["value"].loc[{"lr": 5.0, "seed": 1, "step": slice(300, None)}] = np.nan
    found["value"].loc[{"lr": 10.0, "step": slice(100, None)}] = np.nan
    return found


def depth_data():
    found = made(value="depth seed step", velocity="depth seed step", pattern="depth seed step query key")
    found["velocity"][..., 0] = np.nan
    seen = np.tril(found["pattern"].values)
    return found.assign(pattern=(found["pattern"].dims, (seen / seen.sum(-1, keepdims=True)).astype(np.float32)))


def pair_data():
    dims = "seed stage statistic"
    return made(value="seed step", bias=dims, null_mean=dims, null_sd=dims)


def null_data():
    """One seed of the linear kind diverged, and no key is in the last bin."""
    dims = "kind seed stage statistic"
    found = made(value="kind seed bin", bias=dims, null_mean=dims, null_sd=dims)
    for name in found:
        found[name].loc[{"kind": "linear", "seed": 2}] = np.nan
    found["value"].loc[{"bin": "rank 30+"}] = np.nan
    return found


DRAWN = {
    "text_bounce": (text_bounce_curves, bounce_data, ("value", "stable_rank", "bounce_state")),
    "text_rates": (text_rate_curves, rate_data, ("value",)),
    "text_depths": (text_depth_maps, depth_data, ("value", "velocity", "pattern")),
    "text_pairs": (text_pair_bars, pair_data, ("value", "bias", "null_mean", "null_sd")),
    "text_null": (text_pair_bars, null_data, ("value", "bias", "null_mean", "null_sd")),
}


def errors(runs):
    """Two standard errors over seeds."""
    return 2 * runs.std(0, ddof=1) / len(runs) ** 0.5


def curves(axis):
    """What is drawn over the steps."""
    return np.array([line.get_ydata() for line in axis.lines if len(line.get_xdata()) == len(STEP)])


def bands(axis):
    """Lower and upper edge of every band."""
    edges = []
    for band in axis.collections:
        corners = band.get_paths()[0].vertices
        edges.append([[of(corners[corners[:, 0] == step, 1]) for step in STEP] for of in (np.min, np.max)])
    return edges


def bars(axis):
    """Place, mean and half-width of every point with its bar, ``[bar, 3]``, places along the axis that has no errors."""
    rows = []
    for bar in axis.containers:
        if hasattr(bar, "has_xerr"):
            mean = [float(bar.lines[0].get_xdata()[0]), float(bar.lines[0].get_ydata()[0])]
            ends = bar.lines[2][0].get_segments()[0]
            along = 0 if bar.has_xerr else 1
            rows.append([mean[1 - along], mean[along], np.ptp(ends[:, along]) / 2])
    return np.array(rows)


@pytest.mark.parametrize("name", DRAWN)
def test_equal_results_give_equal_pictures_and_others_others(name):
    draw, make, _ = DRAWN[name]
    found = make()
    first = rendered(draw(found), "svg")
    assert first == rendered(draw(found.copy(deep=True)), "svg") and first.startswith(b"<?xml")
    assert first != rendered(draw(found.assign(value=found["value"] * 0.7)), "svg")


@pytest.mark.parametrize("name", DRAWN)
def test_another_result_is_refused_in_one_sentence(name):
    draw, make, variables = DRAWN[name]
    for missing in variables:
        with pytest.raises(ValueError, match=rf"^need `{missing}` by [a-z, ]+: give what {name} gives$"):
            draw(make().drop_vars(missing))
    with pytest.raises(ValueError, match=r"^need `value` by .*: give what text_\w+ gives$"):
        draw(made(value="query key"))


@pytest.mark.parametrize("name", DRAWN)
def test_a_single_seed_has_no_band(name):
    draw, make, _ = DRAWN[name]
    for axis in draw(make().isel(seed=[0])).axes:
        if axis.images or axis.get_label() == "<colorbar>":
            continue
        assert not len(bars(axis)) or (bars(axis)[:, 2] == 0).all()
        for low, high in bands(axis) if axis.get_ylabel() in ("H / ln i", "stable rank of W_in") else ():
            assert low == high


def test_bounce_curves_are_means_with_bands_and_a_dot_where_most_seeds_bounced():
    found = bounce_data()
    left, right = text_bounce_curves(found).axes
    for axis, variable, kinds in ((left, "value", 3), (right, "stable_rank", 2)):
        runs = found[variable].values[:kinds]
        assert np.allclose(curves(axis), runs.mean(1))
        wide = np.stack([errors(one) for one in runs])
        assert np.allclose(bands(axis), np.stack([runs.mean(1) - wide, runs.mean(1) + wide], 1))
    assert {text.get_text() for text in left.texts} == {"ReLU", "linear", "no residual"}
    assert {text.get_text() for text in right.texts} == {"ReLU", "linear"}
    mean = found["value"].values[0].mean(0)
    dots = np.array([line.get_xydata() for line in left.lines if line.get_marker() == "o"])
    assert dots.tolist() == [[[STEP[mean.argmin()], mean.min()]]]


def test_rates_leave_out_what_diverged_and_count_it():
    found = rate_data()
    left, right = text_rate_curves(found).axes
    kept = [found["value"].values[0], found["value"].values[1], found["value"].values[2, [0, 2]]]
    assert np.allclose(curves(left), [runs.mean(0) for runs in kept])
    assert left.get_title(loc="left") == "η = 5: 1 of 3 runs diverged\nη = 10: 3 of 3 runs diverged"
    last = [runs[:, -1] for runs in kept]
    assert np.allclose(bars(right), [[rate, ends.mean(), errors(ends)] for rate, ends in zip((1, 2, 5), last, strict=True)])
    seeds = [line for line in right.lines if line.get_alpha()]
    assert all(np.array_equal(line.get_ydata(), ends) for line, ends in zip(seeds, last, strict=True))
    assert right.get_xscale() == "log" and [label.get_text() for label in right.get_xticklabels()] == ["1", "2", "5", "10"]


def test_depth_maps_show_the_first_seed_on_one_scale_and_velocity_between_checkpoints():
    found = depth_data()
    found["value"].loc[{"depth": 3, "seed": 1}] = np.nan
    figure = text_depth_maps(found)
    panels = np.array(figure.axes[:12], dtype=object).reshape(2, 6)
    for row, depth, seeds in zip(panels, (0, 1), ([0, 1, 2], [0, 2]), strict=True):
        for axis, at in zip(row[:4], (0, 2, 4, 6), strict=True):
            assert np.array_equal(axis.images[0].get_array(), found["pattern"].values[depth, 0, at])
            assert axis.images[0].get_clim() == (0, 1) and axis.get_title(loc="left") == f"step {STEP[at]}"
        value, logs = found["value"].values[depth, seeds], np.log10(found["velocity"].values[depth, seeds, 1:])
        assert np.allclose(curves(row[4]), [*value, value.mean(0)])
        assert np.allclose([line.get_ydata() for line in row[5].lines], [*logs, logs.mean(0)])
        assert all(np.array_equal(line.get_xdata(), (STEP[1:] + STEP[:-1]) / 2) for line in row[5].lines)
        assert [label.get_text() for label in row[5].get_yticklabels()] == ["0.1", "1"]
    assert [row[4].get_title(loc="left") for row in panels] == ["", "3 layers: 1 of 3 runs diverged"]
    assert [row[0].get_ylabel() for row in panels] == ["1 layer\nquery", "3 layers\nquery"]


def test_a_map_of_a_diverged_run_says_so():
    found = depth_data()
    for name in ("value", "velocity", "pattern"):
        found[name].loc[{"depth": 1, "step": slice(400, None)}] = np.nan
    panels = text_depth_maps(found).axes
    assert [axis.get_title(loc="left") for axis in panels[:4]] == [
        "step 0",
        "step 200",
        "step 400: diverged",
        "step 600: diverged",
    ]
    assert panels[4].get_title(loc="left") == "1 layer: 3 of 3 runs diverged" and not panels[5].lines and not panels[4].lines[1:]


@pytest.mark.parametrize("name", DRAWN)
def test_a_result_of_nothing_but_diverged_runs_can_be_drawn(name):
    draw, make, variables = DRAWN[name]
    found = make()
    gone = {one: xr.full_like(found[one], np.nan, float) for one in variables if one != "bounce_state"}
    if "bounce_state" in variables:
        gone["bounce_state"] = xr.full_like(found["bounce_state"], "missing")
    figure = draw(found.assign(gone))
    assert all(not axis.collections and not len(bars(axis)) for axis in figure.axes if axis.get_label() != "<colorbar>")


def check_bias(axis, found):
    """Dots, bars and the null behind them are those of a result's statistics, ``[seed, statistic]``."""
    bias = found["bias"].values
    assert np.allclose(bars(axis), np.stack([np.arange(bias.shape[1]), bias.mean(0), errors(bias)], -1))
    mean, sd = found["null_mean"].values.mean(0), found["null_sd"].values.mean(0)
    grey = np.array([[patch.get_x(), patch.get_x() + patch.get_width()] for patch in axis.patches])
    assert np.allclose(grey, np.stack([mean - 2 * sd, mean + 2 * sd], -1))


def test_pair_bars_are_what_was_gained_against_the_null():
    found = pair_data()
    axes = text_pair_bars(found).axes
    gained = found.sel(stage="gained")
    check_bias(axes[0], gained.isel(statistic=slice(4)))
    check_bias(axes[1], gained.isel(statistic=[4]))
    assert np.allclose(curves(axes[2]), found["value"].values.mean(0))
    names = [label.get_text() for axis in axes[:2] for label in axis.get_yticklabels()]
    assert names == ["frequency", "frequency PMI", "discriminative", "discriminative partial", "common gap"]
    assert axes[0].get_ylim()[0] > axes[0].get_ylim()[1]  # the first on top


def test_the_null_has_a_row_for_each_kind_with_its_lift():
    found = null_data()
    axes = np.array(text_pair_bars(found).axes, dtype=object).reshape(3, 3)
    for row, kind, seeds in zip(axes, COORDS["kind"], (3, 2, 3), strict=True):
        here = found.sel(kind=kind, stage="gained").isel(seed=slice(seeds))
        check_bias(row[0], here.isel(statistic=slice(4)))
        check_bias(row[1], here.isel(statistic=[4]))
        lift = here["value"].values[:, :2]
        assert np.allclose(bars(row[2]), np.stack([np.arange(2), lift.mean(0), errors(lift)], -1))
        assert [label.get_text() for label in row[2].get_xticklabels()] == ["0+", "10+", "30+"]
        assert [line.get_ydata() for line in row[2].lines if line.get_linestyle() == "--"] == [[1, 1]]
        assert row[0].get_xlim() == axes[0, 0].get_xlim() and row[2].get_ylim() == axes[0, 2].get_ylim()
    assert [row[0].get_title(loc="left") for row in axes] == ["ReLU", "linear", "no residual"]
    assert [row[1].get_yticklabels()[0].get_text() for row in axes] == ["common gap", "common gap\n2 of 3 seeds", "common gap"]


def test_statistics_that_nobody_could_read_leave_an_empty_row():
    found = null_data()
    for name in ("bias", "null_mean", "null_sd"):
        found[name].loc[{"statistic": "common_gap"}] = np.nan
    figure = text_pair_bars(found)
    gap = figure.axes[1]
    assert not len(bars(gap)) and gap.get_yticklabels()[0].get_text() == "common gap\n0 of 3 seeds"
    assert rendered(figure, "png")


@pytest.mark.parametrize("name", DRAWN)
def test_figures_can_be_drawn_on_axes_that_are_given(name):
    from matplotlib.figure import Figure

    draw, make, _ = DRAWN[name]
    panels = [axis for axis in draw(make()).axes if axis.get_label() != "<colorbar>"]
    figure = Figure()
    own = list(np.ravel(figure.subplots(1, len(panels))))
    assert draw(make(), axes=own) is figure and figure.axes == own
