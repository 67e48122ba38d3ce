"""Evidence of a run: what is gathered, that a file gives it back, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from circuits import Checkpoints, HookedTransformer
from circuits.crosscheck.evidence import LAST, Evidence, evidence_measures, evidence_of
from circuits.files import write_json
from circuits.models.checkpoints import save_weights, step_file
from circuits.models.config import HookedTransformerConfig

CFG = HookedTransformerConfig(n_layers=2, d_model=8, n_heads=2, d_head=4, n_ctx=16, d_vocab=24, attn_only=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Two checkpoints, with a text and without a tokenizer."""
    path = tmp_path_factory.mktemp("runs") / "mine"
    write_json(path / "config.json", CFG.model_dump(mode="json"))
    write_json(path / "meta.json", {"name": "mine", "seed": 7})
    tokens = np.random.default_rng(0).integers(1, CFG.d_vocab, (20, CFG.n_ctx)).astype(np.int32)
    save_weights(path / "evaluation.safetensors", {"code": torch.from_numpy(tokens)})
    for step in (0, 5):
        states = HookedTransformer(CFG).state_dict()
        save_weights(step_file(path, step), {name: w * (1 + step) for name, w in states.items()}, step=step)
    return Checkpoints.from_dir(path)


@pytest.fixture
def few() -> Evidence:
    """Results of the kinds that there are: numbers, counts, words, NaN, and attributes of any type."""
    rng, dims = np.random.default_rng(0), ("step", "layer", "head")
    value = rng.normal(size=(2, 2, 3))
    value[0, 0, 0] = np.nan
    role = np.array([["none", "induction"]] * 2)
    results = {
        "repeat_loss": xr.Dataset({"value": (dims, value), "n": (dims, rng.integers(0, 9, value.shape))}, {"step": [0, 5]}),
        "head_functions": xr.Dataset({"role": (("layer", "head"), role)}),
    }
    results["repeat_loss"].attrs = {"version": 3, "smallest_p": np.nan, "config": '{"a": "<b>"}'}
    return Evidence("mine", 7, results, {"rllc_mix": "It takes long."})


@pytest.mark.slow
def test_what_is_gathered(run: Checkpoints, tmp_path: Path) -> None:
    """Every cheap measure, roles among them, and for coefficients the command that samples them."""
    evidence = evidence_of(run, tmp_path / "store")
    names = {measure.name for measure, _ in evidence_measures(run)}
    assert evidence.results.keys() == names | {"head_functions"} and {"attention_scores", "composition", "multigrams"} <= names
    assert (evidence.run, evidence.seed) == ("mine", 7)
    assert evidence.results["attention_scores"].sizes["step"] == 2
    assert all(evidence.results[name]["step"].values.tolist() == [5] for name in LAST & names)
    assert "circuits rllc mine" in evidence.absent["rllc_code"]
    with pytest.raises(ValueError, match="nothing is known of mine"):
        evidence_of(run, tmp_path / "empty", compute=False)


def test_a_file_gives_it_back(few: Evidence, tmp_path: Path) -> None:
    """To single precision, and equal evidence in equal bytes."""
    first, second = (few.save(tmp_path / f"{name}.npz.xz").read_bytes() for name in "ab")
    assert first == second
    found = Evidence.load(tmp_path / "a.npz.xz")
    assert (found.run, found.seed, found.absent) == (few.run, few.seed, few.absent)
    assert found.results.keys() == few.results.keys()
    for name, data in few.results.items():
        xr.testing.assert_allclose(found.results[name], data, rtol=1e-6)
        np.testing.assert_equal(found.results[name].attrs, data.attrs)


def test_draws_are_left_out(tmp_path: Path) -> None:
    data = xr.Dataset({"value": ("step", [1.0, 2.0]), "loss": (("step", "draw"), np.ones((2, 9)))}, coords={"step": [0, 5]})
    found = Evidence.load(Evidence("mine", None, {"rllc_mix": data}).save(tmp_path / "x.npz.xz")).results["rllc_mix"]
    assert set(found.data_vars) == {"value"} and found["value"].values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("content", [b"", b"no file of ours", None])
def test_other_files_are_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.npz.xz").write_bytes(content)
    with pytest.raises(ValueError, match="evidence") as caught:
        Evidence.load(tmp_path / "x.npz.xz")
    assert "\n" not in str(caught.value)


def test_files_of_another_format_are_refused(few: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuits.crosscheck.evidence.FORMAT", 2)
    path = few.save(tmp_path / "x.npz.xz")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 2, this version reads 1"):
        Evidence.load(path)


def test_a_store_that_is_a_file_is_refused(run: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="give a folder"):
        evidence_of(run, tmp_path / "file")
