"""The report's part on clusters and lags: each verdict by its rule, and figure and tables show what the datasets have."""

import math
import re

import numpy as np
import xarray as xr

from circuits.views.cluster_figure import cluster_figure, lag_figure
from circuits.views.cluster_part import cluster_part, lag_part
from circuits.views.figures import rendered

EVIL = "<script>alert(1)</script>"
NARROW = "\N{NARROW NO-BREAK SPACE}"
CURVES = ("rllc", "hessian_trace", "weight_norm", "attention_induction")
GRID = ("curve", "layer", "clustering", "scaling")
ROLES = xr.DataArray(
    [["previous token", "none", "none"], ["induction", "multigram", "none"]],
    dims=("layer", "head"),
    coords={"layer": [0, 1], "head": [0, 1, 2]},
)


def clusters(curves=CURVES, **cells: dict[tuple[str, int], object]) -> xr.Dataset:
    """What ``compare`` gives: everything testable and at chance but for what ``cells`` says of (curve, layer), by variable.

    Other clusterings and scalings have the index 0.5 and p 0.5 throughout.
    """
    shape = (len(curves), 2, 2, 1)
    usual = {
        "value": 0.1, "low": 0.0, "high": 0.2, "difference": 0.0, "difference_low": -0.2, "difference_high": 0.2, "p": 0.4,
        "smallest_p": 0.01, "k": 2, "silhouette": 0.25, "state": "ok",
    }  # fmt: skip
    made = {}
    for name, value in usual.items():
        values = np.full(shape, value, dtype=object)
        if name in ("value", "p"):
            values[:, :, 1] = 0.5
        for (curve, layer), other in cells.get(name, {}).items():
            values[curves.index(curve), layer, 0] = other
        made[name] = (GRID, values.astype("U20" if name == "state" else type(value)))
    labels = np.zeros((*shape, 3), dtype=np.int64)
    labels[..., 1], labels[..., 2] = 1, -1
    made |= {"labels": ((*GRID, "head"), labels), "n_heads": ("layer", [2, 2]), "n_steps": ("layer", [12, 9])}
    names = {"clustering": ["kmeans", "hierarchical"], "scaling": ["standardised"], "layer": [0, 1], "head": [0, 1, 2]}
    return xr.Dataset(made, coords={"curve": list(curves), **names})


def said(page: object) -> str:
    """The text of a page, without tags, on one line, with plain spaces."""
    text = re.sub(r'src="[^"]+"', "", str(page)).replace(NARROW, " ")
    return " ".join(re.sub(r"<[^>]+>", " ", text).split()).replace(" :", ":")


def labelled(figure, label: str) -> int:
    return sum(art.get_label() == label for axis in figure.axes for art in (*axis.patches, *axis.lines))


def test_roles_recovered_beyond_chance_or_not():
    text = said(cluster_part(clusters(p={("rllc", 0): 0.02}, value={("rllc", 0): 0.8})))
    assert "Layer 0, rLLC: it recovers roles beyond chance (index 0.800 [0.000, 0.200], p 0.020)." in text
    assert "Layer 1, rLLC: it does not recover roles beyond chance (index 0.100 [0.000, 0.200], p 0.400; the smallest" in text


def test_what_no_arrangement_could_show_is_not_testable():
    found = clusters(smallest_p={("rllc", 0): 0.107, ("hessian_trace", 0): 0.107}, p={("rllc", 0): 0.107})
    text = said(cluster_part(found))
    assert "Layer 0, rLLC: whether it recovers roles is not testable: the smallest p there could be is 0.107" in text
    assert "not told apart from weight norm (0.000 [−0.200, 0.200]); it is not testable against Hessian trace" in text
    assert "0 rLLC 0.100 [0.000, 0.200] 0.107 0.107 – 2 0.25 ok, not testable" in text
    assert "1 rLLC 0.100 [0.000, 0.200] 0.400 0.010 – 2 0.25 ok 1" in text


def test_a_null_is_beaten_where_the_interval_of_the_difference_leaves_0_out():
    ends = {
        "difference": {("hessian_trace", 0): 0.5, ("weight_norm", 0): -0.5},
        "difference_low": {("hessian_trace", 0): 0.1, ("weight_norm", 0): -0.6, ("weight_norm", 1): 1e-17},
        "difference_high": {("hessian_trace", 0): 0.6, ("weight_norm", 0): -0.1},
    }
    text = said(cluster_part(clusters(**ends)))
    assert "it beats Hessian trace (0.500 [0.100, 0.600]); it is beaten by weight norm (−0.500 [−0.600, −0.100])." in text
    # Of layer 1 the lower end is 0 to rounding.
    assert "it is not told apart from Hessian trace (0.000 [−0.200, 0.200]), weight norm (0.000 [0.000, 0.200])." in text


def test_what_is_missing_is_not_compared():
    nothing = {("hessian_trace", 0): math.nan, ("rllc", 1): math.nan}
    ends = dict.fromkeys(("value", "low", "high", "difference_low", "difference_high", "p", "smallest_p"), nothing)
    found = clusters(**ends, state={("hessian_trace", 0): "missing", ("rllc", 1): "one role"})
    text = said(cluster_part(found))
    assert "is not compared with Hessian trace (0.000)" in text and "0 Hessian trace – – – 0.000 2 0.25 missing" in text
    assert "Layer 1, rLLC: there is nothing to compare (one role)" in text
    drawn = [text.get_text() for axis in cluster_figure(found).axes for text in axis.texts]
    assert drawn == ["missing", "one role"]


def test_detectors_are_not_counted_as_a_test():
    text = said(cluster_part(clusters(difference_low={("attention_induction", 0): 0.1})))
    assert "Detector curves are no independent test, as roles rest on them" in text
    assert "beats" not in text and "detector: induction 0.100 [0.000, 0.200]" in text
    assert "Detector curves" not in said(cluster_part(clusters(CURVES[:2])))


def test_other_clusterings_and_members_are_folded_away():
    page = str(cluster_part(clusters(), ROLES))
    visible = said(re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL))
    assert "hierarchical" not in visible and "previous token" not in visible
    text = said(page)
    assert "layer curves kmeans, standardised hierarchical, standardised 0 rLLC 0.10 (0.400) 0.50 (0.500)" in text
    assert "L0H0 previous token 0.1 L0H1 none 0.2 L0H2 none left out L1H0 induction 1.1" in text
    assert "checkpoints: 12 in layer 0, 9 in layer 1" in text
    assert "L0H0 not given 0.1" in said(cluster_part(clusters()))


def test_the_figure_has_a_dot_and_an_interval_for_each_curve_and_layer():
    figure = cluster_figure(clusters(smallest_p={("weight_norm", 1): 0.2}, low={("rllc", 0): math.nan}))
    assert len(figure.axes) == 2 and labelled(figure, "_interval") == 7
    hollow = [[line.get_markerfacecolor() for line in axis.lines].count("white") for axis in figure.axes]
    assert hollow == [0, 1]
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert len(dashed) == 1 and list(dashed[0].get_xdata()) == [0, 0]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][:2] == ["rLLC", "Hessian trace"]


def lags(**cells: dict[tuple[int, int], object]) -> xr.Dataset:
    """What ``lag`` gives of two layers of three heads: all together but for ``cells``."""
    usual = {"value": 0.1, "low": -0.5, "high": 0.5, "change": 100.0, "change_low": 50.0, "change_high": 200.0}
    words = {"state": "together", "reason": ""}
    made = {}
    for name, value in (usual | words).items():
        values = np.full((2, 3), value, dtype=object)
        for at, other in cells.get(name, {}).items():
            values[at] = other
        made[name] = (("layer", "head"), values.astype(float if name in usual else "U40"))
    return xr.Dataset(made, coords={"layer": [0, 1], "head": [0, 1, 2]}, attrs={"unit": 16.0})


MIXED = {
    "value": {(0, 0): -5.0, (0, 1): 3.0, (1, 2): math.nan, (1, 0): 0.05},
    "low": {(0, 0): -6.0, (0, 1): 2.0, (1, 2): math.nan, (1, 0): -0.1},
    "high": {(0, 0): -4.0, (0, 1): 4.0, (1, 2): math.nan, (1, 0): 0.15},
    "change": {(0, 0): 7.0},
    "change_low": {(0, 0): 0.0},
    "change_high": {(0, 0): 16.0},
    "state": {(0, 0): "curve first", (0, 1): "role first", (1, 2): "untestable"},
    "reason": {(1, 2): f"no role {EVIL}"},
}


def test_lags_are_counted_and_those_close_to_0_named():
    text = said(lag_part(lags(**MIXED), ROLES))
    assert (
        "Of 5 heads with a lag, 3 are together with their role within error, 1 have the curve first and 1 the role first" in text
    )
    assert "1 of 6 are not testable. Wholly within 0.15 of a doubling: L1H0." in text
    assert "The curves of 1 (L0H0) rise most before step 16, the first checkpoint" in text
    assert "L0H0 previous token −5.00 [−6.00, −4.00] 7 [0, 16] curve first –" in text
    assert "Wholly within 0.50 of a doubling: L0H2, L1H0, L1H1." in said(lag_part(lags(**MIXED), near=0.5))
    usual = said(lag_part(lags()))
    assert "The interval of none lies wholly within 0.15" in usual and "rise most before" not in usual


def test_without_any_lag_nothing_is_testable():
    gone = {(layer, head): math.nan for layer in range(2) for head in range(3)}
    found = lags(value=gone, state=dict.fromkeys(gone, "untestable"))
    assert "Not testable: none of 6 heads has both" in said(lag_part(found))
    assert lag_figure(found, 0.15).axes[0].get_legend() is None


def test_the_figure_of_lags_has_an_interval_for_each_lag_a_band_and_a_mark_for_each_state():
    figure = lag_figure(lags(**MIXED), 0.15)
    (axis,) = figure.axes
    assert labelled(figure, "_interval") == 5 and labelled(figure, "_near") == 1
    assert axis.patches[0].get_xy()[0] == -0.15 and axis.patches[0].get_width() == 0.3
    assert [text.get_text() for text in axis.texts] == ["untestable"]
    assert {line.get_label(): line.get_marker() for line in axis.lines if not line.get_label().startswith("_")} == {
        "together": "o", "curve first": "<", "role first": ">",
    }  # fmt: skip


def test_equal_inputs_give_equal_bytes_and_numbers_stand_in_the_alt_text():
    assert cluster_part(clusters(), ROLES) == cluster_part(clusters(), ROLES)
    assert lag_part(lags(**MIXED)) == lag_part(lags(**MIXED))
    assert rendered(lag_figure(lags(), 0.15), "png") == rendered(lag_figure(lags(), 0.15), "png")
    assert 'alt="Adjusted Rand index of clusters with roles, chance 0. layer 0: rLLC 0.100' in cluster_part(clusters())
    assert 'alt="Lags of 6 heads: together 3; curve first 1; role first 1; untestable 1."' in lag_part(lags(**MIXED))


def test_names_are_text():
    roles = ROLES.copy(data=np.full((2, 3), EVIL))
    pages = [cluster_part(clusters(("rllc", EVIL)), roles), lag_part(lags(**MIXED), roles)]
    assert all("<script" not in page and "&lt;script&gt;" in page for page in map(str, pages))
