"""The report's table of witnesses: every word by its rule, every number that of the data, and who is against whom first."""

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import xarray as xr

from circuits.crosscheck.agreement import PREDICTIONS, agreement
from circuits.crosscheck.planted import INDUCTION_HEAD, PREVIOUS_HEAD, planted_evidence
from circuits.crosscheck.timing import lag
from circuits.models.heads import Head
from circuits.views.witness_part import COLUMNS, witness_part

EVIL = "<script>alert(1)</script>"
NARROW = "\N{NARROW NO-BREAK SPACE}"
NUMBERS = {"value": 0.25, "stderr": 0.05, "p": 0.5, "smallest_p": math.nan, "p_less": 0.02, "corrected": 1.0}
WORDS = {"says": "for", "expected": "none", "partner": "L1H0", "reason": ""}
HEADS = {"role": "resting", "confidence": 0.9, "verdict": "agree", "flag": "none"}


def witnesses(curve: str = "rllc_mix", **heads: dict[str, Any]) -> xr.Dataset:
    """Two layers of two heads about which all is agreed by absence, but for what ``heads`` say, by head and then by variable.

    Of variables of predictions it is a mapping by prediction.
    """
    shape = (2, 2, len(PREDICTIONS))
    made: dict[str, np.ndarray] = {name: np.full(shape, value, dtype=object) for name, value in (NUMBERS | WORDS).items()}
    made |= {name: np.full(shape[:2], value, dtype=object) for name, value in HEADS.items()}
    for name in ("ov_copying", "k_term_copying"):
        at = list(PREDICTIONS).index(name)
        made["says"][..., at] = made["expected"][..., at] = ""
    for head, changes in heads.items():
        at = Head.parse(head)
        for name, value in changes.items():
            if name in HEADS:
                made[name][at.layer, at.head] = value
                continue
            for prediction, cell in value.items():
                made[name][at.layer, at.head, list(PREDICTIONS).index(prediction)] = cell
    dims = ("layer", "head", "prediction")
    words = {*WORDS, "role", "verdict", "flag"}
    coords = {
        "layer": [0, 1],
        "head": [0, 1],
        "prediction": list(PREDICTIONS),
        "witness": ("prediction", [*PREDICTIONS.values()]),
    }
    return xr.Dataset(
        {name: (dims[: cells.ndim], cells.astype("U" if name in words else float)) for name, cells in made.items()},
        coords=coords,
        attrs={
            "step": 1000,
            "curve": curve,
            "n_tested": 12,
            "config": json.dumps({"alpha": 0.05, "out": 3.0, "sure": 0.5, "share": 0.5}),
        },
    )


ALL = ("k_composition_from", "key_edge_from", "k_composition_into", "key_edge_into", "rllc_rise")
OPEN = {
    "verdict": "undecided",
    "says": {"rllc_rise": "undecided"},
    "reason": {"rllc_rise": "there, but not beyond the correction"},
}
FLAGGED = {
    "role": "induction", "verdict": "disagree", "flag": "detector_vs_curve",
    "says": {"rllc_rise": "against"}, "expected": dict.fromkeys(ALL, "there"), "corrected": {"rllc_rise": 0.003},
    "value": {"rllc_rise": 0.125}, "partner": {"rllc_rise": "steps 4-8 to 16-32"},
}  # fmt: skip


def coefficients(value: float = 2.0, state: str = "ok") -> xr.Dataset:
    """The same coefficient of every head; at the last step it was not measured."""
    dims, shape = ("step", "layer", "head"), (3, 2, 2)
    cells = np.full(shape, value)
    cells[0], cells[2] = 0.5, np.nan
    return xr.Dataset(
        {
            "value": (dims, cells),
            "stderr": (dims, np.full(shape, 0.1)),
            "state": (dims, np.full(shape, state)),
            "status": ("step", ["ok", "ok", "missing"]),
        },
        coords={"step": [0, 1000, 2000], "layer": [0, 1], "head": [0, 1]},
    )


def nulls(closed: float, noise: float, steps: tuple[int, ...] = (0, 1000, 2000)) -> xr.Dataset:
    dims, shape = ("step", "kind", "layer", "head"), (len(steps), 2, 2, 2)
    values = np.broadcast_to(np.array([closed, noise])[None, :, None, None], shape)
    return xr.Dataset(
        {"as_llc": (dims, values), "as_llc_stderr": (dims, np.full(shape, 0.1))},
        coords={"step": list(steps), "kind": ["local_estimate", "noise_loss"], "layer": [0, 1], "head": [0, 1]},
    )


def said(page: object) -> str:
    """The text of a page, without tags, on one line, with plain spaces."""
    return " ".join(re.sub(r"<[^>]+>", " ", str(page).replace(NARROW, " ")).split())


def rows(page: object) -> dict[str, str]:
    """The text of each row by its head, in order."""
    body = str(page).split("<tbody>")[1].split("</tbody>")[0]
    texts = [said(row) for row in body.split("</tr>")]
    return {text.split()[0]: text for text in texts if text}


def cells(page: object, head: str) -> list[str]:
    (row,) = (row for row in str(page).split("<tr>") if f'href="#head-{head}"' in row)
    return [said(cell) for cell in row.split("<td")[1:]]


def test_the_sentence_counts_and_names():
    page = witness_part(witnesses(L0H1=OPEN, L1H0=FLAGGED))
    assert (
        "Of 4 heads: ✓ 2 agree (0 by what is there, 2 by absence), ✗ 1 disagrees, ? 1 undecided (L0H1). "
        "Flagged: L1H0 (detector_vs_curve)." in said(page)
    )
    assert "Of 4 heads: ✓ 4 agree (0 by what is there, 4 by absence), ✗ 0 disagree, ? 0 undecided. No head is flagged." in said(
        witness_part(witnesses())
    )
    present = {"role": "induction", "expected": dict.fromkeys(ALL, "there")}
    page = witness_part(witnesses(L1H1=present, L0H0=OPEN, L0H1=OPEN, L1H0=FLAGGED))
    assert "✓ 1 agrees (1 by what is there, 0 by absence)" in said(page)
    assert cells(page, "L1H1")[5].endswith("✓ agree by what is there") and cells(page, "L0H0")[5].endswith("? undecided")


def test_heads_against_come_first_then_the_undecided_one_row_each():
    page = witness_part(witnesses(L0H1=OPEN, L1H1=FLAGGED))
    assert list(rows(page)) == ["L1H1", "L0H1", "L0H0", "L1H0"]
    assert len(COLUMNS) <= 8 and all(len(cells(page, head)) == len(COLUMNS) for head in rows(page))
    assert str(page).count('href="#head-L0H0"') == 1


def test_what_contradicts_what_is_named_with_its_number():
    row = cells(witness_part(witnesses(L1H0=FLAGGED)), "L1H0")
    assert row[6].endswith(
        "detector_vs_curve : called induction, was to be there, and is missing: rise over steps 4-8 to 16-32 (corrected p 3e−3)"
    )
    assert "✗ rise over steps 4-8 to 16-32: 0.125 ± 0.050, p 0.500, p½ 0.020" in row[3]
    there = FLAGGED | {"role": "resting", "expected": {"rllc_rise": "none"}, "partner": {"rllc_rise": "steps 1 to 2"}}
    row = cells(witness_part(witnesses(L1H0=there)), "L1H0")
    assert row[6].endswith("called resting, was to be none, and is there: rise over steps 1 to 2 (corrected p 3e−3)")
    assert cells(witness_part(witnesses(L1H0=there)), "L0H0")[6].endswith("–")


def test_an_undecided_head_says_which_witness_is_open_and_why():
    row = cells(witness_part(witnesses(L0H1=OPEN)), "L0H1")
    assert row[6].endswith("complexity: there, but not beyond the correction") and "weights" not in row[6]
    silent = {name: dict.fromkeys(PREDICTIONS, "") for name in ("says", "expected")}
    unknown = silent | {"verdict": "undecided", "role": "not measured", "reason": dict.fromkeys(PREDICTIONS, "not measured")}
    row = cells(witness_part(witnesses(L0H1=unknown)), "L0H1")
    assert row[6].endswith("weights and paths: not measured; complexity: not measured")
    assert row[2].endswith("no prediction") and row[3].endswith("no prediction")
    row = cells(witness_part(witnesses(L0H1=silent | {"verdict": "undecided"})), "L0H1")
    assert row[6].endswith("complexity: the role predicts nothing of it")


def test_numbers_are_those_of_the_data():
    data = {
        "value": {"k_composition_from": 0.181, "key_edge_from": 7.749, "ov_copying": 0.7021},
        "stderr": {"k_composition_from": math.nan, "key_edge_from": 0.237, "ov_copying": math.nan},
        "p": {"k_composition_from": 8e-4, "key_edge_from": 2.6e-8, "ov_copying": 1e-15},
        "smallest_p": {"k_composition_from": 8e-4},
        "says": {"ov_copying": "for"}, "expected": dict.fromkeys(PREDICTIONS, "there"), "partner": {"ov_copying": ""},
        "role": "induction", "confidence": 0.875,
    }  # fmt: skip
    row = cells(witness_part(witnesses(L1H0=data)), "L1H0")
    assert "induction kept in 88% of draws" in row[1]
    assert "✓ K-composition from L1H0: 0.181, p ≤8e−4 ✓ key edge from L1H0: 7.749 ± 0.237 nats, p 3e−8" in row[2]
    assert "✓ copying (value): 0.702, p &lt;1e−12" in row[2] and "p½" not in row[2], "nothing is to be missing"
    row = cells(witness_part(witnesses(L0H0={"confidence": math.nan, "p_less": {"rllc_rise": math.nan}})), "L0H0")
    assert "no confidence known" in row[1] and "✓ no key edge into L1H0: 0.250 ± 0.050 nats, p 0.500, p½ 0.020" in row[2]
    assert row[3].endswith("✓ no rise over L1H0: 0.250 ± 0.050, p 0.500")
    nothing = {"value": {"rllc_rise": math.nan}, "says": {"rllc_rise": "undecided"}, "partner": {"rllc_rise": ""}}
    row = cells(witness_part(witnesses(L0H0=nothing | {"reason": {"rllc_rise": "not measured"}})), "L0H0")
    assert row[3].endswith("? no rise (not measured)")


def test_the_coefficient_at_its_last_measured_step_beside_its_nulls():
    results = {"rllc_mix": coefficients(), "nulls_mix": nulls(1.5, 2.5)}
    text = rows(witness_part(witnesses(), None, results))["L0H0"]
    assert "rLLC 2.000 ± 0.100 at step 1 000; closed form 1.500 ± 0.100 (above); noise null 2.500 ± 0.100 (below)" in text
    # Two errors of both are 0.283.
    text = rows(witness_part(witnesses(), None, results | {"nulls_mix": nulls(1.72, math.nan)}))["L0H0"]
    assert "closed form 1.720 ± 0.100 (within error); noise null – ± 0.100 (not known)" in text
    text = rows(witness_part(witnesses(), None, {"rllc_mix": coefficients(state="not mixed")}))["L0H0"]
    assert "rLLC 2.000 ± 0.100 at step 1 000 (not mixed)" in text and "closed form" not in text
    text = rows(witness_part(witnesses(), None, results | {"nulls_mix": nulls(1.5, 2.5, (0,))}))["L0H0"]
    assert "at step 1 000 " in text and "closed form" not in text


STEPS = [0, 100, 200, 400, 800, 1600, 3200, 6400]


def lags(before: list[float], value: list[float], jumps: list[int], error: float = 1e-6) -> xr.Dataset:
    """Lags of four heads whose curves jump between the step before ``jumps`` and that one."""
    steps = np.array(STEPS, dtype=float)
    curve = np.stack([(steps >= jump).astype(float) for jump in jumps], 1).reshape(len(steps), 2, 2)
    dims = ("layer", "head")
    coords = {"layer": [0, 1], "head": [0, 1]}
    when = xr.Dataset(
        {name: (dims, np.reshape(np.array(x), (2, 2))) for name, x in (("before", before), ("value", value))}, coords=coords
    )
    curves = xr.Dataset(
        {"value": (("step", *dims), curve), "stderr": (("step", *dims), np.full_like(curve, error))},
        coords={"step": STEPS, **coords},
    )
    return lag(when, curves, draws=20)


def test_lags_say_when_role_and_curve_changed_and_whether_that_tells():
    late, nan = 7000, math.nan
    found = lags([200.0, 1600.0, nan, 400.0], [400.0, 3200.0, 100.0, 800.0], [3200, 100, 1600, late])
    page = witness_part(witnesses(), found)
    first = cells(page, "L0H0")[4]
    ends = [f"{float(found[name][0, 0]):.2f}" for name in ("value", "low", "high")]
    assert f"role first: {ends[0]} ({ends[1]} to {ends[2]})" in first and "role emerged 200–400, curve changed" in first
    assert "curve first (at the start): −" in cells(page, "L0H1")[4] and "role emerged 1 600–3 200" in cells(page, "L0H1")[4]
    assert "role first (undated): " in cells(page, "L1H0")[4]
    assert cells(page, "L1H1")[4].endswith("untestable the curve does not rise beyond its errors")
    same = lags([200.0, 800.0, 200.0, 200.0], [400.0, 1600.0, 400.0, 400.0], [400, 1600, 400, 400])
    assert {str(state) for state in same["state"].values.ravel()} == {"together"}
    assert "together (too wide to tell): " in cells(witness_part(witnesses(), same), "L0H0")[4]
    narrow = same.copy(deep=True)
    narrow["low"][:], narrow["high"][:] = -0.2, 0.5
    assert "together: " in cells(witness_part(witnesses(), narrow), "L0H0")[4]
    assert cells(witness_part(witnesses()), "L0H0")[4].endswith("–")


def test_what_is_missing_is_named_with_its_command():
    lost = "Not measured, and left out:"
    assert lost not in said(witness_part(witnesses(), lags([200.0] * 4, [400.0] * 4, [800] * 4)))
    text = said(witness_part(witnesses()))
    assert f"{lost} lags ( circuits detect RUN --what roles, then circuits rllc RUN )" in text
    text = said(witness_part(witnesses(curve="none")))
    assert f"{lost} rllc ( circuits rllc RUN ); lags" in text
    reason = {"reason": {"k_composition_into": "no composition", "key_edge_into": "no edge_effects_repeats at step 5"}}
    text = said(witness_part(witnesses(L0H0=reason), None, {"rllc_mix": coefficients()}))
    assert (
        f"{lost} composition ( circuits weights RUN ); edge_effects_repeats ( circuits paths RUN ); nulls ( circuits rllc RUN )"
        in text
    )


def test_the_rule_has_the_numbers_of_the_data():
    data = witnesses()
    assert "beyond chance or error and stands out by 3 robust" in said(witness_part(data))
    assert "at level 0.05 after Holm’s correction for 12 tests that could" in said(witness_part(data))
    data.attrs |= {"n_tested": 1, "config": json.dumps({"alpha": 0.01, "out": 4.0, "sure": 0.75})}
    text = said(witness_part(data))
    assert "by 4 robust" in text and "p½ ≤ 0.01" in text and "level 0.01 after Holm’s correction for 1 test that" in text
    assert "fewer than 75% of draws" in text


def test_text_stays_text():
    evil = {"role": EVIL, "reason": {"rllc_rise": EVIL}, "partner": {"rllc_rise": EVIL}, "flag": EVIL, "verdict": "disagree"}
    page = str(witness_part(witnesses(L0H0=evil)))
    assert "<script" not in page and page.count("&lt;script&gt;") >= 4


@pytest.fixture(scope="module")
def planted() -> dict[str, xr.Dataset]:
    return planted_evidence(0)


def test_a_planted_disagreement_stands_first_and_is_named(planted: dict[str, xr.Dataset]):
    right = agreement(planted)
    assert "16 agree (2 by what is there, 14 by absence)" in said(witness_part(right, None, planted))
    role = planted["head_functions"]["role"].isel(step=-1, drop=True)
    names = role.values.astype(object)
    names[INDUCTION_HEAD.layer, INDUCTION_HEAD.head], names[1, 2] = "multigram", "induction"
    page = witness_part(agreement(planted, role.copy(data=names.astype("U"))), None, planted)
    assert list(rows(page))[:3] == [str(INDUCTION_HEAD), "L1H2", str(PREVIOUS_HEAD)]
    both = "detector_vs_weights, detector_vs_curve"
    assert f"✗ 2 disagree, ? 1 undecided (L0H6). Flagged: {INDUCTION_HEAD} ({both}); L1H2 ({both})." in said(page)
    assert f"was to be none, and is there: K-composition from {PREVIOUS_HEAD} (corrected p" in cells(page, str(INDUCTION_HEAD))[6]
    assert f"it is there with {INDUCTION_HEAD}, which behaviour calls multigram" in cells(page, str(PREVIOUS_HEAD))[6]
