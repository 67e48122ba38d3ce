"""Scan and snap of a run: movement by hand, what is asked of which run, and what the report says of planted readings."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from markupsafe import Markup

from circuits import Checkpoints, HookedTransformer
from circuits.dynamics.readings import read_trajectory
from circuits.dynamics.scan_snap_run import LENGTH, movement, rates_of, scan_snap, scan_snap_measures
from circuits.files import write_json
from circuits.models.checkpoints import save_weights, step_file
from circuits.models.config import HookedTransformerConfig
from circuits.views.movement_figures import spread_curves, velocity_curves
from circuits.views.sections import scan_snap as section

CFG = HookedTransformerConfig(n_layers=2, d_model=8, n_heads=2, d_head=4, n_ctx=12, d_vocab=11, attn_only=True)
STEPS = (0, 1, 2, 5, 10, 20)


def make_run(path: Path, steps: tuple[int, ...] = STEPS, *, text: bool = True) -> Checkpoints:
    """A run whose weights grow, so that attention moves."""
    write_json(path / "config.json", CFG.model_dump(mode="json"))
    write_json(path / "meta.json", {"name": "mine"})
    rng = np.random.default_rng(0)
    if text:
        tokens = rng.integers(1, CFG.d_vocab, (20, CFG.n_ctx)).astype(np.int32)
        counts = np.bincount(tokens.ravel(), minlength=CFG.d_vocab)
        kept = {"code": torch.from_numpy(tokens), "token_counts": torch.from_numpy(counts)}
        save_weights(path / "evaluation.safetensors", kept)
    base = HookedTransformer(CFG).state_dict()
    for step in steps:
        save_weights(step_file(path, step), {name: w * (1 + step) for name, w in base.items()}, step=step)
    return Checkpoints.from_dir(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return make_run(tmp_path_factory.mktemp("runs") / "mine")


def swept(values: np.ndarray, **coords: list[object]) -> xr.Dataset:
    """What ``gather`` gives, of attention ``[step, layer, head, example, query, key]`` or of a statistic."""
    dims = ("step", "layer", "head", *("example", "query", "key")[: values.ndim - 3]) if values.ndim == 6 else tuple(coords)
    found = xr.Dataset({"value": (dims, values)}, coords={dim: np.arange(n) for dim, n in zip(dims, values.shape, strict=True)})
    return found.assign(status=("step", ["ok"] * len(values)))


def planted(moved: list[float]) -> tuple[xr.Dataset, xr.Dataset]:
    """One head with two queries of two keys; the second row moves by so much mass from key 0 to key 1 at each checkpoint."""
    at = np.cumsum([0.0, *moved])
    attention = np.zeros((len(at), 1, 1, 2, 2, 2), np.float16)
    attention[..., 0, 0] = 1
    attention[..., 1, 0], attention[..., 1, 1] = (1 - at)[:, None, None, None], at[:, None, None, None]
    values = {"value": 0.5, "stderr": 0.01}
    dims = ("step", "layer", "head", "statistic")
    spread = xr.Dataset(
        {name: (dims, np.full((len(at), 1, 1, 1), x)) for name, x in values.items()},
        coords={"statistic": ["entropy"], "step": range(len(at)), "layer": [0], "head": [0]},
    )
    return swept(attention), spread.assign(status=("step", ["ok"] * len(at)))


def test_movement_by_hand() -> None:
    """Half of the queries move by ``2 x`` in L1."""
    found = movement(*planted([0.5, 0.25, 0.0, 0.125]))
    assert np.isnan(found["distance"].values[0, 0, 0]) and found["distance"].values[1:, 0, 0].tolist() == [0.5, 0.25, 0.0, 0.125]
    assert found["distance_stderr"].values[1:].max() == 0 and (found["entropy"] == 0.5).all()
    probe, spread = planted([0.5, 0.25, 0.0])
    gone = probe.assign(status=("step", ["ok", "failed", "ok", "ok"]))
    assert movement(gone, spread)["distance"].values[1:, 0, 0].tolist() == [0.75, 0.0], "from the last that there is"
    with pytest.raises(ValueError, match="different checkpoints"):
        movement(probe, spread.isel(step=[0, 1]))


def test_what_is_measured_of_a_run(run: Checkpoints, tmp_path: Path) -> None:
    assert list(scan_snap_measures(run)) == ["spread", "probe", "rank", "lift"], "no stream to count pairs in"
    assert rates_of(run) is None
    found = scan_snap(run, ["spread", "probe"], store=tmp_path / "store", progress=False)
    assert set(found.results) == {"attention_spread", "attention_probe", "movement", "snap"} and not found.absent
    assert found.results["attention_probe"].sizes["query"] == min(LENGTH, CFG.n_ctx)
    assert found.results["snap"]["value"].dims == ("layer", "head")
    assert scan_snap(run, "rank", progress=False).results["stable_rank"].sizes["step"] == len(STEPS)
    with pytest.raises(ValueError, match="mine has no 'bias' to measure, only spread, probe, rank, lift"):
        scan_snap(run, ["bias"])
    with pytest.raises(ValueError, match="mine ships no text to read attention on"):
        scan_snap(make_run(tmp_path / "bare", text=False))


def text(markup: object) -> str:
    return " ".join(Markup(str(markup)).striptags().split())


def test_the_section_says_whether_a_snap_is_a_freeze(run: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("spread_curves", "velocity_curves"):
        monkeypatch.setattr(section, name, lambda *_: None)
    monkeypatch.setattr(section, "rendered", lambda *_: b"")
    probe, _ = planted([0.01] * 5)
    spread = xr.Dataset(
        {"value": (("step", "layer", "head", "statistic"), np.full((24, 1, 1, 1), 0.5))},
        coords={"step": range(24), "layer": [0], "head": [0], "statistic": ["normalised_entropy"]},
    )
    spread = spread.assign(stderr=spread["value"] * 0.02, status=("step", ["ok"] * 24))
    said = {}
    for name, distances in {"freeze": [1.0] * 5 + [0.001] * 18, "crawl": [0.3] + [0.029] * 22}.items():
        data = xr.Dataset({"distance": (("step", "layer", "head"), np.array([np.nan, *distances])[:, None, None])}).assign_coords(
            step=range(24), layer=[0], head=[0]
        )
        snap = read_trajectory(data)
        said[name] = text(section.left_to_go(snap))
        page = text(section.render(run, {"attention_spread": spread, "attention_probe": probe, "movement": data, "snap": snap}))
        assert "Here 1 of 1 heads have (1 frozen)" in page and "L0H0" in page
    assert "0.00 (median) comes after the snap; it is more than half in 0 of 1 heads. For most heads" in said["freeze"]
    assert "more than half in 1 of 1 heads. So the fall of velocity is no freeze" in said["crawl"]
    assert "at least 4 checkpoints" in section.render(run, {}) and section.measures(run.select([0, 1, 2])) == []


def test_figures(run: Checkpoints) -> None:
    found = scan_snap(run, ["spread", "probe"], progress=False).results
    upper = spread_curves(found["attention_spread"])
    assert [axis.get_title(loc="left") for axis in upper.axes] == ["layer 0", "layer 1"]
    speeds = velocity_curves(found["movement"], found["snap"]).axes[0].lines[0]
    distance = found["movement"]["distance"].values[1:, 0, 0]
    with np.errstate(divide="ignore"):
        assert np.allclose(
            np.asarray(speeds.get_ydata()), np.log10(np.where(distance > 0, distance, np.nan) / np.diff(STEPS)), equal_nan=True
        )
    with pytest.raises(ValueError, match="need 'sharpness' over steps"):
        spread_curves(found["attention_spread"], "sharpness")
    with pytest.raises(ValueError, match="1 checkpoint has no velocity"):
        velocity_curves(found["movement"].isel(step=[0]))
