"""A run written again, thinned and rounded: it reads back as what was written; and the model that comes with the package."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models

from circuits.files import read_json, write_json
from circuits.models import demo
from circuits.models.checkpoints import Checkpoints, save_weights, step_file

COUNTS = torch.tensor([0, 70_000, *range(9)], dtype=torch.int32)


@pytest.fixture
def full(tiny, tmp_path):
    """A run with all that ``circuits train`` writes."""
    path = tiny.run(tmp_path / "full", steps=(0, 1, 2, 512))
    write_json(path / "meta.json", {"name": "mine", "seed": 3})
    write_json(path / "train.json", {"steps": 512})
    (path / "losses.csv").write_text("step,loss\n0,2.5\n")
    (path / "state.pt").write_bytes(b"not part of an export")
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(path / "tokenizer.json"))
    tokens = {"prose": torch.tensor([[0, 65_535]]), "code": torch.tensor([[1, 2], [3, 4]]), "large": torch.tensor([[65_536]])}
    save_weights(path / "evaluation.safetensors", {kind: ids.int() for kind, ids in tokens.items()} | {"token_counts": COUNTS})
    save_weights(path / "corpus.safetensors", {"code_train": torch.tensor([1, 65_535]), "large": torch.tensor([65_536, 2])})
    return path


def test_an_export_reads_back_as_the_rounded_run(tiny, full, tmp_path):
    run = Checkpoints.from_dir(full)
    out = run.export(tmp_path / "out", steps=[512, 0])
    written = Checkpoints.from_dir(out)
    assert (out, written.steps, written.name, written.cfg) == (tmp_path / "out", (0, 512), "mine", tiny.cfg)
    rounded = {name: weight.half().float() for name, weight in tiny.weights(512).items()}
    assert tiny.same(written.at(512).state_dict(), rounded)
    assert {weight.dtype for weight in load_file(step_file(out, 512)).values()} == {torch.float16}
    assert list(written.evaluation) == ["code", "large", "prose"]
    assert tiny.same(written.evaluation, run.evaluation)
    assert {ids.dtype for ids in written.evaluation.values()} == {torch.int64}
    assert np.array_equal(written.token_counts, COUNTS.numpy())
    stored = {name: ids.dtype for name, ids in load_file(out / "evaluation.safetensors").items()}
    assert stored == {"code": torch.uint16, "prose": torch.uint16, "large": torch.int32, "token_counts": torch.int32}
    assert {name: ids.tolist() for name, ids in written.corpus.items()} == {"code_train": [1, 65_535], "large": [65_536, 2]}
    stored = {name: ids.dtype for name, ids in load_file(out / "corpus.safetensors").items()}
    assert stored == {"code_train": torch.uint16, "large": torch.int32}
    assert written.tokenizer.encode("b").ids == run.tokenizer.encode("b").ids == [1]
    assert written.tokenizer is written.tokenizer


def test_an_export_describes_itself(full, tmp_path):
    out = Checkpoints.from_dir(full).export(tmp_path / "out", steps=(0, 512))
    meta = read_json(out / "meta.json", what="the description")
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file() and path.name != "meta.json"}
    assert (meta["name"], meta["seed"], meta["steps"], meta["dtype"]) == ("mine", 3, [0, 512], "float16")
    assert meta["sha256"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert set(files) == {
        "checkpoints/step_000000000.safetensors",
        "checkpoints/step_000000512.safetensors",
        "config.json",
        "corpus.safetensors",
        "evaluation.safetensors",
        "losses.csv",
        "tokenizer.json",
        "train.json",
    }
    assert (out / "losses.csv").read_bytes() == (full / "losses.csv").read_bytes()


def test_exporting_again_or_an_export_gives_the_same_bytes(full, tmp_path):
    run = Checkpoints.from_dir(full)
    out = run.export(tmp_path / "out", steps=(0, 512))
    before = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    run.export(out, steps=(0, 512))
    again = Checkpoints.from_dir(out).export(tmp_path / "again")
    for folder in (out, again):
        assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_full_precision_and_runs_in_memory_are_exported_too(tiny, tmp_path):
    run = Checkpoints.from_states({3: tiny.weights(3)}, tiny.cfg, name="memory")
    written = Checkpoints.from_dir(run.export(tmp_path / "out", dtype="float32"))
    assert tiny.same(written.at(3).state_dict(), tiny.weights(3))
    assert (written.name, written.tokenizer, written.evaluation, written.token_counts) == ("memory", None, {}, None)
    assert written.corpus == {}
    assert written.weights_hash(3) == run.weights_hash(3)


def test_values_beyond_the_dtype_are_refused_and_nothing_is_written(tiny, tmp_path):
    edge = tiny.weights(0) | {"unembed.b_U": torch.full((11,), -65_504.0)}
    Checkpoints.from_states({0: edge}, tiny.cfg).export(tmp_path / "edge")
    beyond = tiny.weights(0) | {"unembed.b_U": torch.full((11,), -65_505.0)}
    run = Checkpoints.from_states({0: tiny.weights(0), 5: beyond}, tiny.cfg)
    with pytest.raises(ValueError, match=r"step 5: unembed.b_U reaches 65505, torch.float16 ends at 65504; .* dtype='float32'"):
        run.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_into_the_wrong_place_is_refused(full, tmp_path):
    run = Checkpoints.from_dir(full)
    run.export(tmp_path / "out", steps=[0, 1])
    with pytest.raises(
        ValueError, match=r"step_000000001.safetensors is of an export with other steps; delete .*checkpoints or give"
    ):
        run.export(tmp_path / "out", steps=[0, 512])
    with pytest.raises(ValueError, match=r"full is the run itself; export needs another, empty folder"):
        run.export(full)
    with pytest.raises(ValueError, match=r"losses.csv is a file; export needs another, empty folder"):
        run.export(full / "losses.csv")
    with pytest.raises(ValueError, match=r"dtype is 'int8'; export writes float16, float32, float64"):
        run.export(tmp_path / "other", dtype="int8")
    with pytest.raises(ValueError, match=r"mine has no checkpoint at step 7; the nearest are 0, 1, 2 of 4"):
        run.export(tmp_path / "other", steps=[7])


def test_the_demo_comes_from_the_package_or_from_the_checkout_or_not_at_all(tiny, full, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "files", lambda package: tmp_path / package)
    monkeypatch.setattr(demo, "CHECKOUT_RUN", tmp_path / "nowhere")
    for load in (demo.demo_model, demo.demo_tokenizer):
        with pytest.raises(
            ValueError, match=r"neither in the package .circuits/demo. nor in .*nowhere; install the circuits-interp wheel"
        ):
            load()
    monkeypatch.setattr(demo, "CHECKOUT_RUN", full)
    assert tiny.same(demo.demo_model().state_dict(), tiny.weights(512))
    assert demo.demo_tokenizer().get_vocab_size() == 2
    data = tmp_path / "circuits" / "demo"
    shutil.copytree(full, data, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copy(step_file(full, 2), data / "model.safetensors")
    model = demo.demo_model()
    assert tiny.same(model.state_dict(), tiny.weights(2))
    assert not model.training
    assert demo.demo_tokenizer().get_vocab_size() == 2
