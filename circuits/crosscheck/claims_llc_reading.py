"""What the claims about refined coefficients read of a run: heads by role, and curves.

Roles are those of ``head_functions`` at the last checkpoint at which they were measured, ``T``; heads are found by role, never by
their number. In a model of two layers "layer 1" is the second one; in deeper ones it is the layer with most induction heads (the
last, if there are none), and "layer 0" is every layer below it.

In the order of ``detectors.roles`` "multigram" comes late, so a run may have few heads with this role. The *wide* reading takes
every head that meets its criteria, but for those of a circuit that the claims tell from memorising (``APART``).

What a run lacks is raised as ``Lacking``, with what would make it.

Source: types of heads of Wang et al. 2024, appendix B; the rule of roles is this package's.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.verdict import Lacking, Reading
from circuits.detectors.roles import NOT_MEASURED
from circuits.models.heads import Head

if TYPE_CHECKING:
    import xarray as xr

LAYERS = ("L0", "L1")
APART = ("induction", "previous token", NOT_MEASURED)


def each(runs: Sequence[Evidence], read: Callable[[Evidence], Reading]) -> list[Reading | Lacking]:
    """What every run says, or what it lacks."""
    found: list[Reading | Lacking] = []
    for run in runs:
        try:
            found.append(read(run))
        except Lacking as lacks:
            found.append(Lacking(f"{run.run}: {lacks}"))
    return found


def result(run: Evidence, name: str) -> "xr.Dataset":
    """A result at the checkpoints that have data."""
    if name not in run.results:
        raise Lacking(run.absent.get(name, f"{name} was not measured"))
    data = run.results[name]
    if "status" in data:
        data = data.isel(step=np.flatnonzero(data["status"].values == "ok"))
    if not data.sizes["step"]:
        raise Lacking(f"{name} has no checkpoint with data")
    return data


def roles(run: Evidence) -> "xr.DataArray":
    """The words ``(layer, head)`` at the last checkpoint, ``step``."""
    return result(run, "head_functions")["role"].isel(step=-1).transpose("layer", "head")


def final(run: Evidence, name: str) -> "xr.Dataset":
    """A result at the checkpoint that roles are of."""
    data, last = result(run, name), int(roles(run)["step"])
    if last not in data["step"].values:
        raise Lacking(f"{name} was not measured at the last checkpoint, {last}")
    return data.sel(step=last)


def upper(run: Evidence) -> int:
    """The layer that is called layer 1."""
    words = roles(run)
    counts = (words == "induction").sum("head").values
    return int(words["layer"].values[counts.argmax() if counts.any() else -1])


def heads(run: Evidence, role: str, layers: str = "all", *, wide: bool = False) -> list[Head]:
    """Heads with a role, of all layers, ``"L0"`` or ``"L1"``; at least one.

    Args:
        wide: also heads that meet the criteria of the role while another comes first, but for ``APART``.
    """
    words = roles(run)
    chosen = words.values == role
    if wide:
        holds = result(run, "head_functions")["holds"].isel(step=-1).sel(role_name=role).transpose("layer", "head")
        chosen = chosen | ((holds.values == 1) & ~np.isin(words.values, APART))
    named = _named(words, chosen, run, layers)
    if not named:
        where = {"all": "", "L0": " of layer 0", "L1": " of layer 1"}[layers]
        raise Lacking(f"at the last checkpoint no head{where} is {'an' if role[0] in 'aeiou' else 'a'} {role} head")
    return named


def words_of(run: Evidence, layers: str) -> tuple[list[Head], np.ndarray]:
    """All heads of ``"L0"``, ``"L1"`` or ``"all"`` whose role is known, and their roles."""
    words = roles(run)
    kept = _named(words, words.values != NOT_MEASURED, run, layers)
    if not kept:
        raise Lacking(f"no head of {layers} has a known role")
    table = words.to_series()
    return kept, np.array([str(table[head.layer, head.head]) for head in kept])


def of(data: "xr.DataArray", asked: Sequence[Head]) -> np.ndarray:
    """The values ``[*step, head]`` of some heads."""
    rest = [dim for dim in data.dims if dim not in ("layer", "head")]
    table = data.transpose(*rest, "layer", "head")
    places = [table[dim].values.tolist() for dim in ("layer", "head")]
    at = [(places[0].index(one.layer), places[1].index(one.head)) for one in asked]
    return np.stack([table.values[..., layer, head] for layer, head in at], -1).astype(np.float64)


def known(name: str, values: np.ndarray, asked: Sequence[Head]) -> np.ndarray:
    """The values, all finite."""
    there = np.asarray(np.isfinite(np.atleast_2d(values)).all(0))
    if lost := [str(head) for i, head in enumerate(asked) if not there[i]]:
        raise Lacking(f"{name} has no value for {', '.join(lost)}")
    return values


def coefficients(run: Evidence, text: str, asked: Sequence[Head]) -> tuple[np.ndarray, np.ndarray]:
    """Refined coefficients at the last checkpoint and their errors ``[head]``."""
    data = final(run, f"rllc_{text}")
    value, stderr = (known(f"rllc_{text}", of(data[part], asked), asked) for part in ("value", "stderr"))
    return value, stderr


def counted(run: Evidence, asked: Sequence[Head]) -> tuple[np.ndarray, np.ndarray]:
    """Memorised multigrams at the last checkpoint and their errors as counts ``[head]``."""
    count = known("multigrams", of(final(run, "multigrams")["value"], asked), asked)
    return count, np.sqrt(count)


def simpler(run: Evidence, asked: Sequence[Head], kinds: Sequence[str]) -> np.ndarray:
    """Simpler measures of the same weights on the training mix at the last checkpoint, ``[head, kind]``."""
    data = final(run, "nulls_mix")["value"]
    if lost := set(kinds) - set(data["kind"].values.tolist()):
        raise Lacking(f"nulls_mix has no {', '.join(sorted(lost))}")
    return np.stack([known(kind, of(data.sel(kind=kind), asked), asked) for kind in kinds], 1)


def attention(run: Evidence, detector: str, role: str, layers: str = "all") -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the score of every head with a role, ``[step, head]``."""
    asked, data = heads(run, role, layers), result(run, "attention_scores")
    if detector not in data["detector"].values:
        raise Lacking(f"attention_scores has no {detector}")
    value = of(data["value"].sel(detector=detector), asked)
    there = np.isfinite(value).all(1)
    if there.sum() < 2:
        raise Lacking(f"{detector} was measured at fewer than two checkpoints")
    return data["step"].values[there].astype(float), value[there]


def text_in(data: "xr.Dataset") -> str:
    """The corpus that is read: code where it is one."""
    corpora = [str(corpus) for corpus in data["corpus"].values]
    return "code" if "code" in corpora else corpora[0]


def _named(words: "xr.DataArray", chosen: np.ndarray, run: Evidence, layers: str) -> list[Head]:
    """The chosen heads of the layers that are meant."""
    layer, head = (words[dim].values[at] for dim, at in zip(words.dims, np.nonzero(chosen), strict=True))
    named = [Head(*pair) for pair in zip(layer.tolist(), head.tolist(), strict=True)]
    if layers == "all":
        return named
    top = upper(run)
    return [one for one in named if (one.layer == top if layers == "L1" else one.layer < top)]
