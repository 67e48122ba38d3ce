"""Files that are whole or absent, results with provenance, hashes, heads, progress."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuits.detectors.in_context import RepeatLoss
from circuits.files import read_json, write_json, write_whole
from circuits.models.heads import Head
from circuits.models.hooked import HookedTransformer
from circuits.models.protocol import model_hash
from circuits.progress import bar
from circuits.results import Measure, array_hash, canonical, digest, labelled, mean_and_stderr


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'

    def breaks(aside: Path) -> None:
        aside.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, breaks)
    assert read_json(path, what="a test") == {"a": "é", "b": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_unreadable_json_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none.json is missing; a config is needed there"):
        read_json(tmp_path / "none.json", what="a config")
    (tmp_path / "broken.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"broken.json is not readable JSON .* a config is needed there"):
        read_json(tmp_path / "broken.json", what="a config")


def test_hashes_see_content_type_and_shape_and_not_order_of_keys():
    assert canonical({"b": 1, "a": [2]}) == '{"a":[2],"b":1}'
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1}) != digest({"a": 2, "b": 2})
    base = np.arange(6)
    others = [base.reshape(2, 3), base.astype(np.int32), base + 1]
    assert array_hash(base) == array_hash(torch.arange(6))
    assert len({array_hash(base), *map(array_hash, others)}) == 4


def test_stderr_by_hand():
    mean, stderr = mean_and_stderr(np.array([[1.0, 2.0], [3.0, 2.0]]))
    assert mean.tolist() == [2.0, 2.0] and stderr.tolist() == [pytest.approx(1.0), 0.0]
    assert np.isnan(mean_and_stderr(np.ones((1, 2)))[1]).all()


def test_results_carry_what_made_them(tmp_path: Path):
    measure = RepeatLoss(n=5)
    assert isinstance(measure, Measure)
    made = labelled({"value": (("head",), [0.5])}, {"head": [0]}, measure=measure, definition="d", source="s", seed=3)
    assert made.attrs["measure"] == "repeat_loss" and made.attrs["version"] == measure.version and '"n":5' in made.attrs["config"]
    made.to_netcdf(tmp_path / "r.nc", engine="h5netcdf")
    import xarray as xr

    assert dict(xr.load_dataset(tmp_path / "r.nc", engine="h5netcdf").attrs) == made.attrs


def test_model_hash_is_of_config_and_weights():
    cfg = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 16, "d_vocab": 20, "attn_only": True}
    model = HookedTransformer(cfg)
    before = model_hash(model)
    assert before == model_hash(HookedTransformer(cfg)) != model_hash(HookedTransformer(cfg | {"eps": 1e-6}))
    with torch.no_grad():
        model.W_E[3, 3] += 1e-3
    assert model_hash(model) != before


@pytest.mark.parametrize("given", ["L1H3", "l1h3", " L1H3 ", "1:3", "1.3", (1, 3), [1, 3], Head(1, 3)])
def test_heads_are_read_in_every_spelling_and_printed_in_one(given: Any):
    assert str(Head.parse(given)) == "L1H3" and Head.parse(str(Head.parse(given))) == Head(1, 3)


def test_the_bar_is_silent_unless_watched(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CIRCUITS_PROGRESS", raising=False)
    assert list(bar(range(3), label="quiet")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    assert list(bar(range(3), label="loud", on=True)) == [0, 1, 2]
    assert "loud" in capsys.readouterr().err
    monkeypatch.setenv("CIRCUITS_PROGRESS", "0")
    list(bar(range(3), label="overruled", on=True))
    assert capsys.readouterr().err == ""
