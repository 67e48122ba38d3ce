"""The scorecard as a dataset, to be kept and carried beside other results, and back.

A row for every check; what a claim says of all its checks stands in each of their rows. ``values`` has a column for every run
that had the data of the check, NaN in the others: which runs these are stands in ``reason``.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.crosscheck.verdict import Check, Claim

if TYPE_CHECKING:
    import xarray as xr

VERSION = 1
OF_CLAIM = ("name", "statement", "definition", "control", "source")
OF_CHECK = tuple(field.name for field in fields(Check) if field.name != "values")
NUMBERS = ("measured", "low", "high", "p", "least_p")


def scorecard(claims: Sequence[Claim], runs: Sequence[str] = ()) -> "xr.Dataset":
    """Claims as a dataset over ``check``, with the verdict, the smallest p and the reason of each claim in its rows.

    Args:
        claims: of ``claims_llc`` and ``claims_circuits``. runs: names of the runs they were checked on, for the attributes.

    Raises:
        ValueError: there are no claims.
    """
    import xarray as xr

    rows = [(claim, check) for claim in claims for check in claim.checks]
    if not rows:
        raise ValueError("no claims were given; give those of circuits.crosscheck.crosscheck.crosscheck")
    columns = {
        f"claim_{name}": [getattr(claim, name) for claim, _ in rows] for name in (*OF_CLAIM, "verdict", "least_p", "reason")
    }
    columns |= {name: [getattr(check, name) for _, check in rows] for name in OF_CHECK}
    values = np.full((len(rows), max(1, *(len(check.values) for _, check in rows))), np.nan)
    for row, (_, check) in zip(values, rows, strict=True):
        row[: len(check.values)] = check.values
    attrs = {
        "measure": "scorecard",
        "version": VERSION,
        "definition": "checkable claims of three papers, each with its control; verdicts by circuits.crosscheck.verdict",
        "source": "Elhage et al. 2021; Olsson et al. 2022; Wang et al. 2024",
        "runs": "; ".join(runs),
    }
    return xr.Dataset(
        {name: ("check", np.array(column)) for name, column in columns.items()} | {"values": (("check", "run"), values)},
        attrs=attrs,
    )


def claims_of(data: "xr.Dataset") -> tuple[Claim, ...]:
    """The claims that a dataset of ``scorecard`` holds."""
    found: dict[str, list[Check]] = {}
    of: dict[str, dict[str, str]] = {}
    for at in range(data.sizes["check"]):
        row = data.isel(check=at)
        values = row["values"].values[np.isfinite(row["values"].values)]
        told: dict[str, Any] = {name: row[name].item() if name in NUMBERS else str(row[name].item()) for name in OF_CHECK}
        name = str(row["claim_name"].item())
        of[name] = {field: str(row[f"claim_{field}"].item()) for field in OF_CLAIM}
        found.setdefault(name, []).append(Check(values=tuple(values.tolist()), **told))
    return tuple(Claim(**of[name], checks=tuple(checks)) for name, checks in found.items())
