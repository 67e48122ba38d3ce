"""Figures of Scan & Snap: what they draw, equal bytes for equal input, refusals, and the command that writes them."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from circuits.dynamics.scan_snap_laws import attention_growth, decoder_phases
from circuits.scan_snap_cli import EXPERIMENTS, app, read_names, run_experiment
from circuits.views.figures import rendered
from circuits.views.scan_snap_figures import ablation_curves, attention_heat_maps, entropy_lines, recall_curves, scan_curves
from circuits.views.scan_snap_theory_figures import (
    bounce_curve,
    decoder_curves,
    freeze_curve,
    gain_curves,
    growth_curves,
    rate_curves,
    ratio_curves,
    transition_points,
)


def made(dims, *names, **coords):
    """A result of random values."""
    rng = np.random.default_rng(0)
    shape = [len(coords[dim]) for dim in dims]
    return {name: (dims, rng.uniform(0.1, 1, shape)) for name in names}


RATES, TIME, TAU, RANK = [1.0, 10.0], np.arange(13), np.linspace(0.1, 2, 9), np.arange(4)
SIZES = {"eta_y": RATES, "eta": RATES, "time": TIME, "tau": TAU, "rank": RANK, "label": [0, 1], "token": RANK, "seed": [0, 1]}
SIZES |= {
    "queries": [1, 3],
    "eta_z": [0.5, 1.0, 2.0],
    "ratio": [1.0, 2.0, 5.0],
    "threshold": [0.1, 1.0, 10.0],
    "norm": ["l2", "none"],
}
SIZES |= {"classes": ["one query", "a query each"], "step": TIME, "size": ["K=10, M=100", "K=2, M=34"], "overlap": [0.01, 0.1]}


def result(*variables):
    """A dataset of ``(dims, names..)``."""
    data, used = {}, set()
    for dims, *names in variables:
        data |= made(dims, *names, **SIZES)
        used |= set(dims)
    return xr.Dataset(data, coords={dim: SIZES[dim] for dim in used})


def heat_map_data():
    found = result((("eta_y", "time", "label", "token"), "value"))
    return found.assign(common=("token", [False, True, True, False]))


def freeze_data():
    found = result((("classes", "time"), "value", "loss"))
    return found.assign_coords(tau=("time", TIME * 8.5))


DRAWN = {
    "attention_by_iteration": (attention_heat_maps, heat_map_data),
    "entropy_table": (entropy_lines, lambda: result((("queries", "eta_z", "ratio"), "value", "stderr", "published"))),
    "recall_of_distinct": (
        recall_curves,
        lambda: result((("eta_z", "ratio", "threshold"), "value", "stderr"), (("threshold",), "start")),
    ),
    "peak_order": (
        scan_curves,
        lambda: result((("eta", "rank"), "value", "stderr"), (("eta", "time", "rank"), "attention"), (("rank",), "probability")),
    ),
    "norm_ablation": (ablation_curves, lambda: result((("norm", "time"), "value", "stderr", "mass", "mass_stderr"))),
    "gain_growth": (
        gain_curves,
        lambda: result(
            (("eta_y", "time"), "value", "stderr", "flow", "theorem", "reduced", "paper"), (("eta_y",), "snapping_begins")
        ),
    ),
    "decoder_phases": (decoder_curves, lambda: decoder_phases(d_vocab=(100, 1000), points=20)),
    "attention_growth": (growth_curves, lambda: attention_growth(ratio=(1.0, 2.0), eta_y=(1.0, 2.0), steps=50)),
    "freeze": (freeze_curve, freeze_data),
    "entropy_bounce": (
        bounce_curve,
        lambda: result((("step",), "value", "stderr"), (("seed", "step"), "nonlinear", "linear"), (("seed",), "limit")),
    ),
    "rate_sweep": (rate_curves, lambda: result((("eta_y", "tau"), "value"), (("eta_y",), "peak"))),
    "transition_times": (transition_points, lambda: result((("size", "overlap"), "value"), (("size",), "predicted"))),
    "gain_ratios": (ratio_curves, lambda: result((("ratio", "token"), "value"), (("token",), "theorem"))),
}


def test_every_experiment_has_its_figure():
    assert set(DRAWN) == {name for name in EXPERIMENTS if not name.startswith("text_")}
    for name, (draw, _) in DRAWN.items():
        assert EXPERIMENTS[name].figure.split(".")[1] == draw.__name__


@pytest.mark.parametrize("name", DRAWN)
def test_equal_results_give_equal_pictures_and_others_others(name):
    draw, make = DRAWN[name]
    found = make()
    first = rendered(draw(found), "png")
    assert first == rendered(draw(found.copy(deep=True)), "png") and first[:4] == b"\x89PNG"
    assert first != rendered(draw(found.assign(value=found["value"] * 0.7)), "png")
    with pytest.raises(ValueError, match=rf"need `value` by .*: give what {name} gives"):
        draw(found.drop_vars("value"))


def test_heat_maps_show_the_first_ten_steps_and_the_last_with_common_tokens_first():
    found = heat_map_data()
    panels = attention_heat_maps(found).axes[:4]
    image = panels[1].images[0].get_array()
    assert np.array_equal(image, found["value"].values[0, [*range(11), 12], 1][:, [1, 2, 0, 3]])
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [*(str(i) for i in range(11)), "12"]
    assert panels[0].lines[0].get_xdata()[0] == 1.5 and panels[3].get_title(loc="left") == "η_Y = 10, label 1"


def test_entropy_lines_carry_the_published_points():
    found = DRAWN["entropy_table"][1]()
    axis = entropy_lines(found).axes[1]
    drawn = [line.get_ydata() for line in axis.lines]
    for i in range(3):
        assert np.array_equal(drawn[2 * i], found["value"].values[1, i])
        assert np.array_equal(drawn[2 * i + 1], found["published"].values[1, i])


def test_the_gain_lies_over_its_theory():
    """Each panel has its own source; the second both forms of ``beta``; ``t0`` is dotted in all."""
    found = DRAWN["gain_growth"][1]()
    axes = gain_curves(found).axes
    for axis, names in zip(axes, (["theorem"], ["reduced", "paper"], ["flow"], ["value"]), strict=True):
        curves = [line for line in axis.lines if len(line.get_xdata()) == len(TIME)]
        assert len(curves) == 2 * len(names)
        for i, name in enumerate(names):
            assert np.array_equal(curves[i].get_ydata(), found[name].values[0])
        dotted = sorted(line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":")
        assert dotted == sorted(found["snapping_begins"].values)


def test_the_command_writes_what_it_is_asked_for(tmp_path: Path):
    done = CliRunner().invoke(app, ["simulate", "--what", "decoder_phases,attention-growth", "--out", str(tmp_path)])
    assert done.exit_code == 0
    names = [f"{name}.{kind}" for name in ("decoder_phases", "attention_growth") for kind in ("nc", "png", "svg")]
    assert [Path(line).name for line in done.output.split()] == names and {path.name for path in tmp_path.iterdir()} == set(names)
    with xr.open_dataset(tmp_path / "decoder_phases.nc", engine="h5netcdf") as stored:
        assert stored.identical(decoder_phases()) and stored.attrs["measure"] == "decoder_phases"


@pytest.mark.usefixtures("unchecked")
def test_seeds_and_haste_reach_the_experiment():
    found, figure = run_experiment("norm_ablation", seeds=1, quick=True)
    assert found.sizes["seed"] == 1 and len(figure.axes) == 2
    assert run_experiment("norm_ablation", quick=True)[0].sizes["seed"] == 2


def test_names_of_experiments():
    assert read_names("freeze, gain-growth,freeze") == ["freeze", "gain_growth"]
    assert read_names("all") == [*EXPERIMENTS, "scorecard"]
    with pytest.raises(ValueError, match=r"--what has 'snap'; give gain_growth, .* or all"):
        read_names("snap")
