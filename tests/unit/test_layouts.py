"""What is broken about a run on disk is refused in one sentence: the file, what was found, what is needed, how to mend it."""

import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.files import write_json
from circuits.models.checkpoints import Checkpoints, save_weights, step_file
from circuits.models.config import HookedTransformerConfig
from circuits.models.layouts import parse_step
from circuits.models.weights_io import read_tensors

W_Q = "blocks.0.attn.W_Q"


@pytest.mark.parametrize(
    ("label", "last", "step"),
    [
        ("step1000", False, 1000),
        ("step-001000-2BT", False, 1000),
        ("checkpoint-500", False, 500),
        ("pythia-70m-step512", False, 512),
        ("step_000000016", True, 16),
        ("SoLU_2L_v9_000100", True, 100),
        ("final", False, None),
    ],
)
def test_the_step_in_a_name(label, last, step):
    assert parse_step(label, last=last) == step


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {W_Q: torch.zeros(2, 16, 4)},
            rf"000100.safetensors: {W_Q} has shape \[2, 16, 4\], its config needs \[2, 8, 4\]; pair the",
        ),
        ({W_Q: None}, rf"000100.safetensors lacks {W_Q} that its config needs; pair the weights with the config"),
        ({W_Q: None, "unembed.b_U": None}, rf"000100.safetensors lacks {W_Q} and 1 more that its config needs"),
        ({"head.W": torch.zeros(1)}, r"000100.safetensors holds head.W that its config has no place for; pair"),
        ({W_Q: torch.zeros(2, 8, 4, dtype=torch.int8)}, rf"{W_Q} has dtype torch.int8, floating-point weights are needed; save"),
    ],
)
def test_weights_of_another_config_are_refused_when_the_run_is_opened(tiny, tmp_path, changes, sentence):
    tiny.run(tmp_path, changes=changes)
    with pytest.raises(ValueError, match=sentence):
        Checkpoints.from_dir(tmp_path)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite_are_refused_when_their_step_is_asked_for(tiny, tmp_path, value):
    broken = torch.zeros(2, 8, 4)
    broken[1, 2] = float(value)
    run = Checkpoints.from_dir(tiny.run(tmp_path, changes={W_Q: broken}))
    sentence = (
        rf"000100.safetensors: {W_Q} holds NaN or infinite weights \(4 of 64\), finite ones are needed; .* run.select\(steps\)"
    )
    with pytest.raises(ValueError, match=sentence):
        run.at(100)
    assert tiny.same(run.at(10).state_dict(), tiny.weights(10))
    assert len(run.weights_hash(100)) == 16


def test_weights_too_large_for_the_config_are_refused(tiny):
    state = tiny.weights(0) | {W_Q: torch.full((2, 8, 4), 1e300, dtype=torch.float64)}
    with pytest.raises(ValueError, match=rf"the state dict of step 3: {W_Q} holds NaN or infinite weights \(64 of 64\)"):
        Checkpoints.from_states({3: state}, tiny.cfg).at(3)


@pytest.fixture(scope="module", params=[".safetensors", ".pt", "legacy.pt"])
def whole(request, tiny, tmp_path_factory):
    """The bytes of a weight file in each format, and where to put shortened ones."""
    path = tmp_path_factory.mktemp("whole") / f"step_7{request.param}"
    if path.suffix == ".safetensors":
        save_weights(path, tiny.weights(0))
    else:
        torch.save(tiny.weights(0), path, _use_new_zipfile_serialization="legacy" not in path.name)
    assert tiny.same(read_tensors(path), tiny.weights(0))
    return path.read_bytes(), path.with_name(f"short{path.suffix}")


@settings(max_examples=40)
@given(data=st.data())
def test_a_truncated_file_of_any_length_is_refused(whole, data):
    content, path = whole
    size = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(content[:size])
    with pytest.raises(
        ValueError, match=rf"short\.(pt|safetensors) is truncated.* it has {size:,} bytes.*; copy or save it again, or"
    ):
        read_tensors(path)


def test_a_truncated_file_says_what_it_announces_and_nothing_is_loaded(tiny, tmp_path):
    path = step_file(tiny.run(tmp_path), 10)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    sentence = (
        rf"000010.safetensors is truncated: it has {len(content) - 1:,} bytes and announces at least {len(content):,}; copy"
    )
    with pytest.raises(ValueError, match=sentence):
        Checkpoints.from_dir(tmp_path)


def test_a_file_that_breaks_or_goes_after_opening_is_refused(tiny, tmp_path):
    run = Checkpoints.from_dir(tiny.run(tmp_path))
    step_file(tmp_path, 0).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    step_file(tmp_path, 10).unlink()
    with pytest.raises(
        ValueError, match=r"000000.safetensors is a Git LFS pointer of 63 bytes, weights are needed: .*git lfs pull"
    ):
        run.at(0)
    with pytest.raises(ValueError, match=r"000010.safetensors is missing; open the run again"):
        run.weights_hash(10)


class Harmful:
    """Unpickled without care, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 4"])
def test_an_unsafe_pickle_is_refused_and_does_nothing(tiny, tmp_path, form):
    write_json(tmp_path / "config.json", tiny.cfg.model_dump(mode="json"))
    state, path = tiny.weights(0) | {"note": Harmful(tmp_path / "harm")}, tmp_path / "run_10.pt"
    if form == "protocol 4":
        path.write_bytes(pickle.dumps({"note": Harmful(tmp_path / "harm")}, protocol=4))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        ValueError, match=r"run_10.pt is an unsafe pickle: it holds more than tensors \(.+\).* not read; .* as .safetensors"
    ):
        Checkpoints.from_dir(tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], r"run_10.pt holds a list, a checkpoint needs a state dict .name to tensor.: save model.state_dict"),
        ({"epoch": 3}, r"run_10.pt holds a dictionary with 'epoch': int, a checkpoint needs a state dict"),
        ({}, r"run_10.pt holds no tensors, a checkpoint needs a state dict"),
    ],
)
def test_a_pickle_of_something_else_is_refused(tiny, tmp_path, content, sentence):
    write_json(tmp_path / "config.json", tiny.cfg.model_dump(mode="json"))
    torch.save(content, tmp_path / "run_10.pt")
    with pytest.raises(ValueError, match=sentence):
        Checkpoints.from_dir(tmp_path)


def without_config(tiny, path):
    (tiny.run(path) / "config.json").unlink()
    return path


def without_a_folders_config(tiny, path):
    (tiny.folders(path, ["step0", "step10"]) / "step10" / "config.json").unlink()
    return path


def with_two_configs(tiny, path):
    tiny.folders(path, ["step0"])
    return tiny.folders(path, ["step10"], HookedTransformerConfig.parse(tiny.cfg.model_dump() | {"n_heads": 4, "eps": 1e-6}))


def with_config(tiny, path, text):
    (tiny.run(path) / "config.json").write_text(text)
    return path


def with_a_step_twice(tiny, path):
    torch.save(tiny.weights(10), tiny.run(path) / "checkpoints" / "step_10.pt")
    return path


def with_a_nameless_file(tiny, path):
    save_weights(tiny.run(path) / "checkpoints" / "final.safetensors", tiny.weights(0))
    return path


def with_an_empty_folder(tiny, path):
    (tiny.folders(path, ["step0", "step1"]) / "step1" / "model.safetensors").unlink()
    return path


def with_meta(tiny, path):
    write_json(tiny.run(path) / "meta.json", [1])
    return path


def one_model(tiny, path):
    return tiny.folders(path, ["step5"]) / "step5"


def empty(tiny, path):
    path.mkdir()
    return path


LAYOUTS = [
    (lambda tiny, path: path, r"x does not exist; give the folder of a run, with config.json and checkpoints/"),
    (lambda tiny, path: tiny.run(path) / "config.json", r"config.json is a file; give the folder of a run"),
    (empty, r"x holds no checkpoints; a run has config.json and checkpoints/.*: circuits train writes one"),
    (without_config, r"x/config.json is missing; the config of these weights \(.*write_json.*\) is needed there"),
    (without_a_folders_config, r"step10/config.json is missing; the config of these weights"),
    (
        with_two_configs,
        r"step10/config.json differs from .*step0/config.json in eps \(1e-06, not 1e-05\), n_heads \(4, not 2\); .*folders",
    ),
    (lambda tiny, path: with_config(tiny, path, "{"), r"x/config.json is not readable JSON \(.*\); the config of these weights"),
    (lambda tiny, path: with_config(tiny, path, "[]"), r"x/config.json holds a list, an object of config fields is needed"),
    (lambda tiny, path: with_config(tiny, path, '{"n_layers": 1}'), r"x/config.json: .*d_model"),
    (
        with_a_step_twice,
        r"step_10.pt and .*step_000000010.safetensors are both step 10, each step is needed once; rename or delete",
    ),
    (with_a_nameless_file, r"final.safetensors has no step number in its name \('final'\), like step_1000; rename it or move it"),
    (with_an_empty_folder, r"step1 has a config.json but no weights; put its model.safetensors there, or delete"),
    (with_meta, r"x/meta.json holds a list, an object is needed; mend or delete it"),
    (one_model, r"step5 holds one model \(model.safetensors\) of unknown step; name it step_1000.safetensors"),
    (
        lambda tiny, path: tiny.run(path) / "checkpoints",
        r"checkpoints is the inside of a run, the folder with config.json .*: give .*x$",
    ),
    (lambda tiny, path: tiny.run(path / "a").parent, r"x holds whole runs \(a\), the folder of one is needed: give .*x/a"),
]


@pytest.mark.parametrize(("make", "sentence"), LAYOUTS)
def test_a_folder_that_is_no_run_is_refused(tiny, tmp_path, make, sentence):
    with pytest.raises(ValueError, match=sentence) as refused:
        Checkpoints.from_dir(make(tiny, tmp_path / "x"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("code", torch.zeros(2, 3)),
        ("code", torch.zeros(3, dtype=torch.int32)),
        ("token_counts", torch.zeros(2, 3, dtype=torch.int32)),
    ],
)
def test_evaluation_tokens_that_are_no_tokens_are_refused(tiny, tmp_path, name, tokens):
    save_weights(tiny.run(tmp_path) / "evaluation.safetensors", {name: tokens})
    run = Checkpoints.from_dir(tmp_path)
    rank = 1 if name == "token_counts" else 2
    with pytest.raises(
        ValueError, match=rf"evaluation.safetensors: {name} is torch.* integers of rank {rank} are needed; save it again"
    ):
        _ = run.evaluation


def test_a_broken_tokenizer_is_refused_when_it_is_asked_for(tiny, tmp_path):
    (tiny.run(tmp_path) / "tokenizer.json").write_text("{}")
    run = Checkpoints.from_dir(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read the tokenizer .*tokenizer.json \(.*\); give a tokenizers-format"):
        _ = run.tokenizer
