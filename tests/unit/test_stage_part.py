"""The report's part on stages: the order said is the order told apart, and figure and tables show what the dataset has."""

import math
import re

import numpy as np
import pytest
import xarray as xr

from circuits.views.figures import rendered
from circuits.views.published import STAGES
from circuits.views.stage_figure import stage_figure
from circuits.views.stage_part import emergence_pairs, stage_part

STEPS = (0, 10, 100, 1_000, 2_000)
EVIL = "<script>alert(1)</script>"
NARROW = "\N{NARROW NO-BREAK SPACE}"
PREVIOUS, INDUCTION = "strongest_previous_token", "strongest_induction"


def curve(*value: float) -> xr.Dataset:
    return xr.Dataset({"value": ("step", list(value)), "stderr": ("step", [0.1] * len(value))}, coords={"step": list(STEPS)})


CURVES = {"loss": curve(7.0, 5.0, 3.0, 2.0, 1.0), PREVIOUS: curve(0.0, 0.0, 0.1, 0.8, 0.9), INDUCTION: curve(0, 0, 0, 0.5, 0.9)}


def event(of: str, kind: str, at: float, low: float = math.nan, high: float = math.nan, state: str = "") -> dict:
    plateau = kind == "plateau"
    return {
        "event": of + f": {kind}", "curve": of, "kind": kind, "value": at, "low": low, "high": high,
        "start": low if plateau else math.nan, "end": high if plateau else math.nan, "state": state or "clear",
    }  # fmt: skip


ROWS = (
    event("loss", "emergence", 20.0, 10.0, 100.0, "emerged"),
    event("loss", "boundary", 90.0, 10.0, 1_000.0, "unclear"),
    event(PREVIOUS, "emergence", 300.0, 100.0, 1_000.0, "emerged"),
    event(PREVIOUS, "plateau", 1_500.0, 1_000.0, 2_000.0, "pause"),
    event(INDUCTION, "boundary", 900.0, 800.0, 1_000.0),
    event(INDUCTION, "emergence", 1_234.0, 1_000.0, 2_000.0, "emerged"),
)


def stages(rows=ROWS, *, p=None, smallest: float = 0.001, verdict: str = "untestable", back=()) -> xr.Dataset:
    """What ``stages`` gives: all draws in order of time, but for pairs of curves in ``back``; p 0.001 unless given by curves."""
    at = np.array([row["value"] for row in rows])
    before = (at[:, None] < at[None, :]).astype(float)
    chances = np.full(before.shape, 0.001)
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            if (a["curve"], b["curve"]) in back:
                before[i, j], before[j, i] = 0.0, 1.0
            for pair, value in (p or {}).items():
                if {a["curve"], b["curve"]} == set(pair):
                    chances[i, j] = value
    names = [row["event"] for row in rows]
    columns = {key: ("event", [row[key] for row in rows]) for key in ("value", "low", "high", "start", "end", "state")}
    return xr.Dataset(
        columns
        | {
            "before": (("event", "other"), before),
            "p": (("event", "other"), chances),
            "verdict": (("event", "other"), np.full(before.shape, verdict)),
        },
        coords={
            "event": names,
            "other": names,
            "kind": ("event", [row["kind"] for row in rows]),
            "curve": ("event", [row["curve"] for row in rows]),
        },
        attrs={"smallest_p": smallest, "level": 0.95},
    )


def said(found, curves=CURVES, emergence=None) -> str:
    """The text of the part, without tags, on one line, with plain spaces."""
    page = re.sub(r'src="[^"]+"', "", str(stage_part(found, curves, emergence)))
    return " ".join(re.sub(r"<[^>]+>", " ", page).replace(NARROW, " ").split())


def labelled(figure, label: str) -> int:
    """How many artists of a figure carry a label."""
    return sum(art.get_label() == label for axis in figure.axes for art in (*axis.patches, *axis.lines, *axis.collections))


def test_order_of_emergences_comes_first_and_in_time():
    text = said(stages())
    assert (
        "Order of emergences. loss (step 20 [10, 100]), then previous token (step 300 [100, 1 000]), later in all of draws"
        in text
    )
    assert "then induction (step 1 234 [1 000, 2 000]), later in all of draws (p ≤1e−3). 3 of 3 pairs are in order" in text
    assert text.index("Order of emergences") < text.index("Boundaries and plateaus")
    assert "here too, by a factor of 4.11" in text  # 1234 / 300


def test_a_pair_that_holm_does_not_pass_is_not_told_apart():
    # Of three pairs the least p passes at .05 / 3, the next at .05 / 2: .03 does not, nor then does .04.
    text = said(stages(p={("loss", PREVIOUS): 0.03, (PREVIOUS, INDUCTION): 0.04}))
    assert "not told apart from it: previous token (step 300" in text and "not told apart from it: induction" in text
    assert "1 of 3 pairs are in order" in text and "then previous" not in text
    assert "here the two are not told apart" in text


def test_a_pair_further_apart_that_is_not_told_apart_is_named():
    assert "Nor are in order: loss and induction." in said(stages(p={("loss", INDUCTION): 0.5}))


def test_an_order_that_no_draws_could_show_is_not_testable():
    text = said(stages(p={("loss", PREVIOUS): 0.02, (PREVIOUS, INDUCTION): 0.02, ("loss", INDUCTION): 0.02}, smallest=0.02))
    assert "not testable: previous token" in text and "0 of 3 pairs" in text and "here the two are not testable" in text


def test_draws_say_who_is_first():
    pairs = emergence_pairs(stages(back={(PREVIOUS, INDUCTION)}))
    assert [pair.verdict for pair in pairs] == ["before", "before", "after"]
    assert "then induction" not in said(stages(back={(PREVIOUS, INDUCTION)}))


def test_induction_before_previous_token_is_said_to_differ_from_what_was_published():
    rows = (event(INDUCTION, "emergence", 50.0, 10.0, 100.0, "emerged"), *ROWS[2:3])
    assert "here it is the other way round" in said(stages(rows))
    assert "here both are not dated" in said(stages(ROWS[:1]))


def test_too_few_emergences_have_no_order():
    gone = event(INDUCTION, "emergence", math.nan, state="not risen")
    text = said(stages((ROWS[0], gone)))
    assert "Only loss emerged; there is no order to tell. Without an emergence: induction (not risen)." in text
    assert "induction emergence – not risen" in text
    assert "No curve emerged; there is no order" in said(stages((gone,)))


def test_a_score_there_from_the_start_has_no_lower_end():
    text = said(stages((event("loss", "emergence", 10.0, high=100.0, state="from the start"), *ROWS[2:3])))
    assert "loss emergence by step 10 from the start" in text


def test_tables_hold_the_numbers_of_the_dataset():
    text = said(stages())
    assert "loss boundary step 90 [10, 1 000] unclear" in text
    assert "previous token plateau step 1 500 [1 000, 2 000] pause (1 000 to 2 000)" in text
    assert "loss previous token all ≤1e−3 before" in text
    for stage in STAGES:
        assert f"{stage.loss[0]:.3f} → {stage.loss[1]:.3f} {stage.llc[0]} → {stage.llc[1]}" in text
    assert "LM3: previous-token heads begin 6 500 to 8 500 3.631 → 3.560 172.4 → 170.9 −1.5" in text


def test_boundaries_are_in_order_by_the_verdicts_of_the_dataset_alone():
    untold, told = said(stages()), said(stages(verdict="before"))
    # Three others, a boundary of the loss, one of induction, a plateau: three pairs, of fifteen of all six.
    assert "Of 3 pairs from different curves or of different kinds 0 are in order" in untold
    assert "15 pairs of events are tested at once" in untold and "Neighbours" not in untold
    assert "Of 3 pairs from different curves or of different kinds 3 are in order" in told
    assert "loss, boundary at 90 before induction, boundary at 900; induction, boundary at 900 before previous token" in told


def test_the_figure_has_an_interval_for_each_event_and_a_panel_for_each_curve():
    figure = stage_figure(stages(), CURVES)
    assert len(figure.axes) == 3
    assert [labelled(figure, name) for name in ("_boundary", "_plateau", "_emergence", "_roles")] == [2, 1, 3, 0]
    dotted = [line.get_linestyle() for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert ":" in dotted and ":" not in [line.get_linestyle() for line in figure.axes[2].lines]


def test_curves_that_are_absent_are_left_out():
    one = {"loss": CURVES["loss"]}
    assert len(stage_figure(stages(), one).axes) == 1
    assert 'in steps. loss: emergence step 20 [10, 100], boundaries at 90."' in str(stage_part(stages(), one)).replace(
        NARROW, " "
    )
    with pytest.raises(ValueError, match="no curves to draw"):
        stage_figure(stages(), {})


def test_roles_have_a_panel_whose_band_is_between_checkpoints():
    # Of four heads one had its role from the first checkpoint, one got it after 100 and by 1000, two never.
    emergence = xr.Dataset(
        {
            "value": (("layer", "head"), [[10.0, 1_000.0], [math.nan, math.nan]]),
            "before": (("layer", "head"), [[math.nan, 100.0], [math.nan, math.nan]]),
        }
    )
    figure = stage_figure(stages(), CURVES, emergence)
    last = figure.axes[-1]
    assert last.get_title(loc="left") == "heads that had their last role (of 4)" and labelled(figure, "_roles") == 1
    np.testing.assert_array_equal(last.lines[0].get_ydata(), [0, 1, 1, 2, 2])
    assert last.collections[0].get_paths()[0].vertices[:, 1].max() == 2
    assert "Last panel" in said(stages(), emergence=emergence) and "Last panel" not in said(stages())


def test_stages_of_several_seeds_are_refused():
    with pytest.raises(ValueError, match=r"isel\(seed=0\)"):
        stage_part(stages().expand_dims(seed=2), CURVES)


def test_equal_inputs_give_equal_bytes_and_numbers_stand_in_the_alt_text():
    first, second = stage_part(stages(), CURVES), stage_part(stages(), CURVES)
    assert first == second and rendered(stage_figure(stages(), CURVES), "png") == rendered(stage_figure(stages(), CURVES), "png")
    alt = re.search(r'alt="([^"]+)"', first)[1].replace(NARROW, " ")
    assert "loss: emergence step 20 [10, 100], boundaries at 90" in alt and "plateaus at 1 500" in alt


def test_names_are_text():
    rows = (*ROWS, event(EVIL, "emergence", 500.0, 100.0, 1_000.0, f"emerged {EVIL}"))
    page = str(stage_part(stages(rows), CURVES | {EVIL: CURVES["loss"]}))
    assert "<script" not in page and "&lt;script&gt;" in page
