"""Stages by hand: clock, draws, intervals, rules and verdicts; what is refused; and what units must not change."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.dynamics.stage_boundaries import change_points
from circuits.dynamics.stage_curves import (
    Errors,
    around,
    example_errors,
    independent_errors,
    interval,
    log_time,
    log_windows,
    steps_of,
    unit_of,
)
from circuits.dynamics.stage_events import emergence_time, plateaus
from circuits.dynamics.stage_order import order_of_events, order_over_seeds
from circuits.dynamics.stage_smooth import smooth
from circuits.dynamics.stages import stages

STEPS = np.array([0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560])
TIME = log_time(STEPS, 10.0)
FINE = np.unique(np.r_[0, np.geomspace(10, 10_000, 30).round()])


def rise(steps: np.ndarray, middle: float = 3.5, seed: int = 0, sd: float = 0.02) -> np.ndarray:
    time = log_time(steps, 10.0)
    return 1 / (1 + np.exp(-4 * (time - middle))) + sd * np.random.default_rng(seed).standard_normal(len(steps))


def exact(curve: np.ndarray, draws: int = 20) -> Errors:
    """A curve without errors."""
    return Errors(np.zeros(len(curve)), np.tile(curve, (draws, 1)), "independent")


# Clock, draws and intervals


def test_log_time_by_hand():
    assert unit_of(STEPS) == 10
    assert TIME[:3].tolist() == pytest.approx([0, np.log(2), np.log(3)])
    assert steps_of(TIME, 10.0).tolist() == pytest.approx(STEPS.tolist())
    assert steps_of(np.log(2), 7.0) == pytest.approx(7)


def test_noise_is_what_neighbours_do_not_share():
    """Even in log time, each inner point is off the middle of its neighbours by its own error and half of both theirs."""
    steps = np.expm1(np.linspace(0, 3, 6))
    curve = np.array([0, 0, 3.0, 0, 0, 0])
    apart = np.array([-1.5, 3, -1.5, 0]) / 1.5**0.5
    found = independent_errors(steps, curve, unit=1.0, draws=20)
    assert found.kind == "residuals" and found.noise.tolist() == pytest.approx([np.sqrt((apart**2).mean())] * 6)
    # Of examples: heights and slopes of their own cancel, their own noise is left.
    rng = np.random.default_rng(0)
    own = 0.3 * rng.standard_normal((400, 6))
    samples = 5 * rng.standard_normal((400, 1)) + rng.standard_normal((400, 1)) * log_time(steps, 1.0) + own
    noise = example_errors(steps, samples, unit=1.0, draws=20).noise
    assert noise == pytest.approx(np.full(6, 0.3 / 20), rel=0.15)
    assert noise[0] == noise[1] and noise[-1] == noise[-2]


def test_curves_are_drawn_with_the_errors_they_have():
    curve = rise(STEPS)
    stderr = np.linspace(0.01, 0.1, 10)
    drawn = independent_errors(STEPS, curve, stderr, draws=4_000).curves
    assert drawn.mean(0) == pytest.approx(curve, abs=5 * 0.1 / 4_000**0.5)
    assert drawn.std(0) == pytest.approx(stderr, rel=0.05)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(10)).max() < 0.08
    samples = np.random.default_rng(0).standard_normal((8, 10))
    examples = example_errors(STEPS, samples, draws=4_000)
    # Student's stretch for 8 examples is 2.365 / 1.96, of the error with 7 degrees of freedom.
    assert examples.curves.std(0) == pytest.approx(2.3646 / 1.96 * samples.std(0, ddof=1) / 8**0.5, rel=0.06)
    again = example_errors(STEPS, samples, draws=4_000)
    assert np.array_equal(examples.curves, again.curves)
    assert not np.array_equal(examples.curves, example_errors(STEPS, samples, draws=4_000, seed=1).curves)
    # The same examples in every call with as many: a sum of two scores is drawn as the sum of what is drawn.
    other = np.random.default_rng(1).standard_normal((8, 10))
    both = example_errors(STEPS, samples + other, draws=4_000).curves
    assert both == pytest.approx(examples.curves + example_errors(STEPS, other, draws=4_000).curves)


def test_intervals_reach_to_checkpoints_where_fewer_than_two_lie_within():
    times = np.linspace(100, 200, 1_001)
    grid = np.array([0, 50, 110, 150, 190, 300])
    assert interval(times, 150.0, grid, 0.95) == pytest.approx((102.5, 197.5))
    assert interval(times, 150.0, grid, 0.95, outward=True) == (50, 300)
    assert interval(times, 150.0, np.array([0, 50, 150, 300]), 0.95) == (50, 300)
    assert interval(times, 99.0, grid, 0.5) == pytest.approx((99, 175))  # what was found lies in its interval
    assert around(110 + 1e-12, grid) == (50, 150) and around(120.0, grid) == (110, 150)
    assert around(-1.0, grid)[0] == 0 and around(400.0, grid)[1] == 300


def test_windows_of_a_curve_with_every_step():
    steps = np.arange(10_000)
    loss = 5 - np.log1p(steps) / 4 + 0.1 * np.random.default_rng(0).standard_normal(10_000)
    at, mean, stderr = log_windows(steps, loss, windows=50)
    assert (np.diff(at) > 0).all() and len(at) == len(mean) == len(stderr) < 50
    z = (mean - (5 - np.log1p(at) / 4)) / stderr
    assert np.abs(z[5:]).max() < 4 and z[5:].std() == pytest.approx(1, abs=0.35)
    few = log_windows(steps[:20], loss[:20], windows=4)
    assert sum(len(part) for part in few) >= 9


# Smoothing


@pytest.mark.parametrize("kernel", ["spline", "rbf"])
def test_smoothing_reproduces_what_it_must(kernel):
    """A constant to the letter, and where there is no noise every value; a line too, for the spline, in every draw of noise."""
    flat = np.full(10, 3.0)
    assert smooth(TIME, flat, exact(flat), kernel=kernel).value == pytest.approx(np.full(217, 3.0))
    curve = rise(STEPS)
    found = smooth(TIME, curve, exact(curve), kernel=kernel)
    at = np.searchsorted(found.time, TIME - 1e-9)
    assert found.value[at] == pytest.approx(curve, abs=0.01) and found.values[:, at].std(0).max() < 0.01
    line = 2 * TIME + 1
    known = independent_errors(STEPS, line, np.full(10, 0.5), draws=20)
    if kernel == "spline":
        assert smooth(TIME, line, known).value == pytest.approx(2 * smooth(TIME, line, known).time + 1, abs=1e-6)


def test_smoothing_is_less_sure_between_checkpoints():
    """What a bootstrap of the values does not see: without errors the curve is known where it was measured only."""
    curve = rise(STEPS, sd=0.0)
    found = smooth(TIME, curve, exact(curve, 200))
    at = np.searchsorted(found.time, TIME - 1e-9)
    between = (at[:-1] + at[1:]) // 2
    assert found.values[:, between].std(0).min() > 3 * found.values[:, at].std(0).max()


# Events


def test_emergence_by_hand():
    """Half of the way from 0 to 1 lies where the line between 160 and 320 passes it, in log time."""
    curve = np.array([0, 0, 0, 0, 0, 0.4, 0.6, 1, 1, 1.0])
    found = emergence_time(STEPS, curve, errors=exact(curve))
    assert found.state == "emerged" and (found.low, found.high) == (160, 320)
    assert log_time(found.at, 10.0) == pytest.approx(TIME[5:7].mean(), abs=0.02)
    # It comes earlier from a lower baseline, and was there from the start if that is low enough.
    assert emergence_time(STEPS, curve, errors=exact(curve), baseline=-0.5).at < found.at
    start = emergence_time(STEPS, curve, errors=exact(curve), baseline=-3.0)
    assert (start.state, start.at, start.high) == ("from the start", 0, 10) and np.isnan(start.low)
    fallen = emergence_time(STEPS, -curve, errors=exact(-curve), falls=True)
    assert fallen.at == pytest.approx(found.at)
    for options in ({"falls": True}, {"baseline": 1.0}, {"baseline": 2.0}):
        none = emergence_time(STEPS, curve, errors=exact(curve), **options)
        assert none.state == "not risen" and np.isnan([none.at, none.low, none.high]).all() and np.isnan(none.times).all()


def test_three_errors_or_it_has_not_risen():
    for end, state in ((0.3, "not risen"), (1.2, "emerged")):
        curve = end * (TIME > 3) + 0.0
        errors = independent_errors(STEPS, curve, np.full(10, 0.15), draws=200)
        assert emergence_time(STEPS, curve, errors=errors).state == state


def test_a_curve_that_never_moves_has_no_stages():
    for errors in (
        independent_errors(STEPS, np.ones(10), draws=20),
        independent_errors(STEPS, np.ones(10), np.ones(10), draws=20),
    ):
        assert errors.noise.max() in (0, 1)
        assert emergence_time(STEPS, np.ones(10), errors=errors).state == "not risen"
        assert plateaus(STEPS, np.ones(10), errors=errors) == ()
        assert change_points(STEPS, np.ones(10), errors=errors).events == ()


def test_boundaries_by_hand():
    """Flat, then one up for one of log time: where these lines meet, also between two checkpoints."""
    for kink in (TIME[5], (TIME[5] + 2 * TIME[6]) / 3):
        curve = np.maximum(TIME - kink, 0)
        found = change_points(STEPS, curve, n=1, errors=exact(curve))
        (event,) = found.events
        assert log_time(event.at, 10.0) == pytest.approx(kink) and event.low < event.at < event.high
        assert found.slopes.tolist() == pytest.approx([0, 1], abs=1e-6)
        assert len(found.criterion) == 2 and found.criterion[1] < found.criterion[0]
    assert len(change_points(STEPS, curve, n=0).events) == 0
    # A dear boundary is not bought.
    noisy = np.maximum(TIME - TIME[5], 0) + 0.1 * np.random.default_rng(0).standard_normal(10)
    errors = independent_errors(STEPS, noisy, np.full(10, 0.1), draws=50)
    assert len(change_points(STEPS, noisy, errors=errors).events) == 1
    assert len(change_points(STEPS, noisy, penalty=1e4, errors=errors).events) == 0


def test_a_boundary_that_examples_share_is_not_clear():
    """Each example bends up or down: the bend of their mean is noise, though every point is known well from its neighbours."""
    rng = np.random.default_rng(3)
    bend = np.maximum(log_time(FINE, 10.0) - 3, 0)
    samples = 5 * rng.standard_normal((20, 1)) * bend + 0.01 * rng.standard_normal((20, len(FINE)))
    (event,) = change_points(FINE, samples.mean(0), n=1, errors=example_errors(FINE, samples, draws=200)).events
    assert event.state == "unclear"
    (sure,) = change_points(FINE, samples.mean(0), n=1, errors=independent_errors(FINE, samples.mean(0), draws=200)).events
    assert sure.state == "clear"


def similar(one, other, stretch: float) -> None:
    assert (one.kind, one.state) == (other.kind, other.state)
    for name in ("at", "low", "high", "start", "end"):
        assert getattr(other, name) == pytest.approx(stretch * getattr(one, name), rel=1e-5, nan_ok=True)


@settings(max_examples=5)
@given(
    seed=st.integers(0, 1_000),
    scale=st.floats(0.01, 100),
    shift=st.floats(-50, 50),
    stretch=st.sampled_from([2, 3.5, 1_000]),
)
def test_units_of_value_and_step_do_not_matter(seed, scale, shift, stretch):
    curve, sd = rise(FINE, seed=seed), np.full(len(FINE), 0.02)
    moved, errors = shift + scale * curve, independent_errors(FINE, curve, sd, draws=40)
    other = Errors(scale * errors.noise, shift + scale * errors.curves, errors.kind)
    similar(emergence_time(FINE, curve, errors=errors), emergence_time(stretch * FINE, moved, errors=other), stretch)
    one, two = (change_points(s, c, n=2, errors=e) for s, c, e in ((FINE, curve, errors), (stretch * FINE, moved, other)))
    assert two.slopes == pytest.approx(scale * one.slopes, rel=1e-5, abs=1e-6 * scale)
    for a, b in zip(one.events, two.events, strict=True):
        similar(a, b, stretch)
    before, after = plateaus(FINE, curve, errors=errors), plateaus(stretch * FINE, moved, errors=other)
    assert len(before) == len(after)
    # A drawn curve is given at 8 times between two checkpoints, so that a tie of two times may fall either way.
    assert [event.at * stretch for event in before] == pytest.approx([event.at for event in after], rel=1e-5)


# The order


def test_order_by_hand():
    """Four draws a before b, all before c; one of the four cannot be told from the next for want of a checkpoint."""
    times = np.array([[10.0, 20, 90], [12, 22, 90], [14, 19, 90], [15, 18, 90]])
    free = order_of_events(times, ["a", "b", "c"])
    assert free.before.tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert free.smallest_p == 0.4 and set(free.verdict.ravel()) == {"same", "untestable"}
    assert (free.order, free.confidence) == ("a < b < c", 1.0)
    held = order_of_events(times, ["a", "b", "c"], [np.array([0, 17, 19.5, 100])] * 3)
    assert held.before[0].tolist() == [0, 0.75 + 0.25, 1] and held.before[1, 0] == 0
    apart = order_of_events(times, ["a", "b", "c"], [np.array([0, 18.5, 100])] * 3)
    assert apart.before[0].tolist() == [0, 0.75, 1] and apart.before[1, 2] == 0.25
    assert (apart.order, apart.confidence) == ("a < b = c", 0.5 + 0.25)


def test_events_there_from_the_start_are_not_told_apart():
    times = np.array([[0.0, 0, 30]] * 200)
    said = order_of_events(times, ["b", "a", "c"], [np.array([0, 10, 20, 40]), np.array([0, 5, 20]), np.array([0, 10, 20, 40])])
    assert said.order == "a = b < c" and said.verdict[0].tolist() == ["same", "undecided", "before"]
    assert said.p[0, 1] == 1 and said.p[0, 2] == pytest.approx(2 / 201)


def test_verdicts_are_corrected_for_the_number_of_pairs():
    """Of 100 draws 99 say one thing: p = 4 / 101, enough for one pair and not for three."""
    rng = np.random.default_rng(0)
    times = np.c_[np.r_[np.full(99, 1.0), 3], np.full(100, 2.0), rng.uniform(0, 9, 100)]
    assert order_of_events(times[:, :2], ["a", "b"]).verdict[0, 1] == "before"
    assert order_of_events(times[:, :2], ["a", "b"]).p[0, 1] == pytest.approx(4 / 101)
    assert order_of_events(times, ["a", "b", "c"]).verdict[0, 1] == "untestable"  # 2 / 101 is above 0.05 / 3
    more = np.r_[times, np.tile(times[:1], (300, 1))]  # p = 4 / 401 is below 0.05 / 3
    more[:, 2] = rng.uniform(0, 4, 400)
    assert order_of_events(more, ["a", "b", "c"]).verdict[0, 1:].tolist() == ["before", "undecided"]
    # Pairs of a group are given and do not count.
    grouped = order_of_events(times, ["a", "b", "c"], groups=["x", "y", "y"])
    assert grouped.verdict[1, 2] == "given" and np.isnan(grouped.p[1, 2])


@settings(max_examples=10)
@given(seed=st.integers(0, 1_000), move=st.permutations(range(4)))
def test_the_order_does_not_depend_on_that_of_the_names(seed, move):
    times = np.random.default_rng(seed).normal([1, 2, 2.5, 4], 0.5, (150, 4))
    names = np.array(["a", "b", "c", "d"])
    one, other = order_of_events(times, names.tolist()), order_of_events(times[:, move], names[move].tolist())
    assert (other.verdict == one.verdict[np.ix_(move, move)]).all() and (other.order, other.confidence) == (
        one.order,
        one.confidence,
    )


def test_seeds_vote():
    times = np.array([[1.0, 2, 9], [1, 3, np.nan], [2, 4, 3], [1, 5, 1]])
    counts, p = order_over_seeds(times)
    assert counts.tolist() == [[0, 4, 2], [0, 0, 1], [0, 2, 0]]
    assert p[0, 1] == pytest.approx(0.125) and p[1, 2] == pytest.approx(1.0) and p[0, 2] == pytest.approx(0.5)
    assert order_over_seeds(np.ones((2, 2)))[1][0, 1] == 1


# The labelled function


def curves() -> dict[str, xr.Dataset | xr.DataArray]:
    rng = np.random.default_rng(0)
    late = rise(FINE, 4.5, sd=0.0) + 0.3 * rng.standard_normal((30, 1)) + 0.05 * rng.standard_normal((30, len(FINE)))
    loss = xr.Dataset(
        {
            "value": ("step", 1 - rise(FINE, 2.5)),
            "stderr": ("step", np.full(len(FINE), 0.02)),
            "status": ("step", ["ok"] * len(FINE)),
        },
        coords={"step": FINE},
    )
    return {"loss": loss, "score": xr.DataArray(late, dims=("example", "step"), coords={"step": FINE})}


def test_stages_of_two_curves():
    found = stages(curves(), falls=["loss"], draws=100)
    assert found.attrs["measure"] == "stages" and found.attrs["smallest_p"] == pytest.approx(2 / 101)
    loss, score = (found.sel(event=f"{name}: emergence") for name in ("loss", "score"))
    assert str(loss["state"].values) == str(score["state"].values) == "emerged"
    for one, middle in ((loss, 2.5), (score, 4.5)):
        assert one["low"] <= steps_of(middle, 10.0) <= one["high"] and one["low"] <= one["value"] <= one["high"]
    assert str(loss["errors"].values) == "independent" and str(score["errors"].values) == "examples"
    assert int(loss["n_checkpoints"]) == len(FINE) and float(loss["unit"]) == 10
    assert set(found["kind"].values) <= {"boundary", "plateau", "emergence"} and set(found["curve"].values) == {"loss", "score"}
    pair = found.sel(event="loss: emergence", other="score: emergence")
    assert (
        float(pair["before"]) == 1
        and str(found["verdict"].sel(event="loss: emergence", other="loss: emergence").values) == "same"
    )
    few = stages(curves(), falls=["loss"], kinds=["emergence"], draws=400)
    assert few["event"].values.tolist() == ["loss: emergence", "score: emergence"]
    assert few["verdict"].values.tolist() == [["same", "before"], ["after", "same"]]
    assert str(few["order"].values) == "loss: emergence < score: emergence" and float(few["order_confidence"]) == 1
    # The same events, chosen by name, with the same times: what is found in a curve does not depend on the others.
    last = ["plateau", "emergence"]
    chosen = stages(curves(), falls=["loss"], kinds=last, events=["score: emergence", "loss: emergence"], draws=400)
    alone = stages({"score": curves()["score"]}, kinds=last, draws=400)
    for name in ("value", "low", "high", "state", "verdict"):
        assert (chosen[name].values == few[name].values).all()
        assert name == "verdict" or alone[name].sel(event="score: emergence").values == few[name].values[1]
    assert str(stages({"loss": curves()["loss"]}, kinds=["emergence"], draws=50)["order"].values) == ""


def test_stages_are_the_same_bytes_twice_and_other_ones_for_another_seed(tmp_path):
    data, kinds = curves(), ["boundary", "emergence"]
    data["noisy"] = xr.Dataset(
        {"value": ("step", rise(FINE, sd=0.2)), "stderr": ("step", np.full(len(FINE), 0.2))}, data["loss"].coords
    )
    one, two, other = (
        stages(data, kinds=kinds, boundaries=dict.fromkeys(data, 1), falls=["loss"], draws=50, seed=seed) for seed in (0, 0, 1)
    )
    xr.testing.assert_identical(one, two)
    assert one["low"].sel(event="noisy: emergence") != other["low"].sel(event="noisy: emergence")
    one.to_netcdf(tmp_path / "stages.nc", engine="h5netcdf")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "stages.nc", engine="h5netcdf"), one)


def test_checkpoints_without_data_are_left_out_and_counted():
    data, one = curves()["loss"].copy(deep=True), {"kinds": ["emergence"], "draws": 50}
    data["value"][3] = np.nan
    data["stderr"][5] = np.nan
    data["status"][7] = "failed"
    found = stages({"loss": data}, falls=["loss"], draws=50)
    assert found.sizes["event"] > 1 and set(found["n_checkpoints"].values.tolist()) == {len(FINE) - 3}
    chance = {"loss": data.assign(chance=("step", np.full(len(FINE), 5.0)))}
    assert stages(chance, **one)["state"].item() == "not risen"
    assert stages(chance, falls=["loss"], **one)["state"].item() == "from the start"
    assert stages(chance, falls=["loss"], baselines={"loss": 1.0}, **one)["state"].item() == "emerged"
    assert stages({"loss": data.drop_vars("stderr")}, falls=["loss"], **one)["errors"].item() == "residuals"


@pytest.mark.parametrize("count", [3, 6])
def test_seeds_are_read_one_by_one(count):
    """Three seeds give three values; only from four on a mean with its interval. The second seed's score never rises."""
    early = np.stack([rise(FINE, 2.5, seed) for seed in range(count)])
    late = np.stack([rise(FINE, 4.5 + 0.1 * seed, 10 + seed) for seed in range(count)])
    dims, coords = ("seed", "step"), {"seed": np.arange(count) + 5, "step": FINE}
    made = {name: xr.DataArray(x, dims=dims, coords=coords) for name, x in {"early": early, "late": late}.items()}
    found = stages(made, kinds=["emergence"], draws=100)
    assert found["value"].dims == ("seed", "event") and found["before"].dims == ("seed", "event", "other")
    assert found["seed"].values.tolist() == list(range(5, 5 + count)) and found["order"].dims == ("seed",)
    assert found["seeds_before"].values.tolist() == [[0, count], [0, 0]]
    assert found["seeds_p"].values[0, 1] == pytest.approx(2.0 ** (1 - count)) == found.attrs["smallest_p_of_seeds"]
    assert bool(found["mean"].isnull().all()) == (count < 4)
    if count == 6:
        time = log_time(found["value"].values[:, 1], 10.0)
        half = 2.5706 * time.std(ddof=1) / 6**0.5
        assert log_time(found["mean_low"].values[1], 10.0) == pytest.approx(time.mean() - half, rel=1e-4)
    made["late"] = made["late"].copy(data=np.where(np.arange(count)[:, None] == 1, 0.02 * late % 0.01, late))
    gone = stages(made, kinds=["emergence"], draws=100)
    assert gone["state"].values[1].tolist() == ["emerged", "not risen"] and str(gone["order"].values[1]) == ""
    assert gone["verdict"].values[1, 0].tolist() == ["missing", "missing"]
    assert gone["seeds_before"].values[0, 1] == count - 1


ONE = xr.DataArray(rise(FINE), dims="step", coords={"step": FINE})
GRID = xr.DataArray(np.ones((2, len(FINE))), dims=("head", "step"), coords={"step": FINE})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: emergence_time(STEPS[:3], rise(STEPS[:3])),
            "^the curve has values at 3 checkpoints; its stages need at least",
        ),
        (lambda: plateaus(STEPS, rise(STEPS[:9])), "^the curve has 9 values for 10 steps; give one for each"),
        (lambda: change_points(STEPS[::-1], rise(STEPS)), r"steps of the curve go 2560, 1280, .*\.\.\.; give them rising"),
        (lambda: change_points(STEPS - 5, rise(STEPS)), "go -5, 5, 15"),
        (lambda: emergence_time(STEPS, np.full(10, np.nan)), "no finite value at 10 of 10 checkpoints, the first at step 0;"),
        (lambda: example_errors(STEPS, np.ones((3, 10))), "^3 examples cannot be drawn anew; give at least 4, or their mean"),
        (lambda: example_errors(STEPS, np.full((5, 10), np.inf)), "^the samples has no finite value at 10 of 10"),
        (lambda: independent_errors(STEPS, rise(STEPS), -np.ones(10)), "^errors are one finite number of at least 0"),
        (lambda: independent_errors(STEPS, rise(STEPS), draws=3), "draws=3: need a whole number of at least 20"),
        (lambda: change_points(STEPS, rise(STEPS), n=1, penalty=2.0), "n and penalty are both given"),
        (lambda: change_points(STEPS, rise(STEPS), n=5), "10 checkpoints have room for 4 boundaries, not 5; give fewer"),
        (lambda: change_points(STEPS, rise(STEPS), n=-1), "n=-1: need a whole number"),
        (lambda: change_points(STEPS, rise(STEPS), penalty=0.0), "penalty=0.0: need a number above 0"),
        (lambda: plateaus(STEPS, rise(STEPS), flat=1.0), "flat=1.0: need a share of the mean slope"),
        (lambda: emergence_time(STEPS, rise(STEPS), kernel="cubic"), "kernel='cubic': need one of spline, rbf"),
        (lambda: log_windows(STEPS, rise(STEPS), windows=3), "windows=3: need a whole number of at least 4"),
        (lambda: order_of_events(np.ones((9, 1)), ["a"]), "1 events and 1 different names; give at least two"),
        (lambda: order_of_events(np.ones((9, 2)), ["a", "a"]), "2 events and 1 different names"),
        (lambda: order_of_events(np.array([[1.0, np.nan]]), ["a", "b"]), "^b has draws without a time; leave out events"),
        (lambda: stages({}), "no curves were given; give"),
        (lambda: stages({"x": GRID}), "'x' has dims head, step; select one of each head first"),
        (lambda: stages({"x": GRID.isel(step=0)}), "'x' has value; need a 'value' over 'step'"),
        (lambda: stages({"x": ONE}, kinds=["peak"]), r"kinds=\('peak',\): need some of boundary, plateau, emergence"),
        (lambda: stages({"x": ONE}, falls=["y"]), "options are given for 'y', curves are 'x'"),
        (lambda: stages({"x": ONE}, level=95), "level=95: need a share from 0.5 to 1"),
        (
            lambda: stages({"x": ONE}, events=["x: start"], kinds=["emergence"]),
            "no 'x: start' among the events, which are 'x: em",
        ),
        (lambda: stages({"x": ONE * np.nan}), "^'x' has values at 0 checkpoints; its stages need at least 4"),
        (lambda: stages({"x": ONE, "y": ONE.expand_dims(seed=[1])}), r"'x' is of seeds None, 'y' of \[1\]; give all curves"),
        (
            lambda: stages({"x": xr.Dataset({"value": ONE, "chance": 0.1 * ONE})}),
            "the chance of 'x' goes from .*; give value less chance, without it",
        ),
    ],
)
def test_refusals(make, says):
    with pytest.raises(ValueError, match=says):
        make()
