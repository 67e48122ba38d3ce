"""Checkpoints: a run in each of its layouts, lazily, one model at a time."""

import json
import pickle
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from circuits.files import write_json
from circuits.models.checkpoints import Checkpoints, save_weights, step_file
from circuits.models.hooked import HookedTransformer

# W_E 88, W_pos 64, four attention matrices of 64, their biases 8 each, two norms of 16, W_U 88, b_U 11
PARAMETERS = 88 + 64 + 4 * 64 + 4 * 8 + 2 * 16 + 88 + 11
W_Q = "blocks.0.attn.W_Q"


@pytest.fixture
def run(tiny, tmp_path):
    return Checkpoints.from_dir(tiny.run(tmp_path / "tiny"))


def test_the_run_folder_reads_back_what_was_saved(tiny, run, tmp_path):
    assert (run.steps, len(run), run.name, run.path, run.meta, run.cfg) == (
        (0, 10, 100),
        3,
        "tiny",
        tmp_path / "tiny",
        {},
        tiny.cfg,
    )
    assert (tmp_path / "tiny" / "checkpoints" / "step_000000010.safetensors").is_file()
    assert 10 in run
    assert 11 not in run
    model = run.at(10)
    assert tiny.same(model.state_dict(), tiny.weights(10))
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert run.at(np.int64(10)) is not model
    assert [step for step, _ in run] == [0, 10, 100]


def test_a_weight_file_has_one_metadata_entry_and_the_same_bytes_each_time(tiny, tmp_path):
    files = [save_weights(tmp_path / name, tiny.weights(0), step=7).read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]
    header = json.loads(files[0][8 : 8 + int.from_bytes(files[0][:8], "little")])
    assert header["__metadata__"] == {"step": "7"}
    assert b"__metadata__" not in save_weights(tmp_path / "c", tiny.weights(0)).read_bytes()


@pytest.mark.parametrize("name", ["step_{:06d}.safetensors", "tiny_2l_{}.pt", "tiny_{}.pth"])
def test_weight_files_beside_the_config(tiny, name, tmp_path):
    write_json(tmp_path / "config.json", tiny.cfg.model_dump(mode="json"))
    save_weights(tmp_path / "evaluation.safetensors", {"code": torch.ones(2, 3, dtype=torch.int32)})
    for step in (5, 1000):
        path = tmp_path / name.format(step)
        if path.suffix == ".safetensors":
            save_weights(path, tiny.weights(step))
        else:
            torch.save({"model": tiny.weights(step), "step": step}, path)
    run = Checkpoints.from_dir(tmp_path)
    assert run.steps == (5, 1000)
    assert tiny.same(run.at(1000).state_dict(), tiny.weights(1000))


def test_one_folder_per_checkpoint_keeps_its_label(tiny, tmp_path):
    (tiny.folders(tmp_path, ["step-001000-2BT", "step-0-0BT", "12-start"]) / "logs").mkdir()
    run = Checkpoints.from_dir(tmp_path)
    assert run.steps == (0, 12, 1000)
    assert run.labels == {0: "step-0-0BT", 12: "12-start", 1000: "step-001000-2BT"}
    assert tiny.same(run.at(1000).state_dict(), tiny.weights(0))


def test_states_in_memory_are_copied_checked_and_cast(tiny):
    state = {name: weight.clone() for name, weight in tiny.weights(3).items()}
    run = Checkpoints.from_states({np.int64(3): state, 0: tiny.weights(0)}, tiny.cfg, name="mine")
    state["unembed.b_U"].fill_(7.0)
    assert (run.steps, run.path, run.tokenizer, run.evaluation, run.token_counts) == ((0, 3), None, None, {}, None)
    assert tiny.same(run.at(3).state_dict(), tiny.weights(3))
    half = {name: weight.to(torch.bfloat16) for name, weight in tiny.weights(3).items()}
    loaded = Checkpoints.from_states({1: half}, tiny.cfg).at(1)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.W_Q[0], half[W_Q].float())


def test_states_that_are_one_memory_or_none_are_refused(tiny):
    model = HookedTransformer(tiny.cfg)
    with pytest.raises(ValueError, match=r"steps 0 and 5 are the same memory.*keep copies: .*clone"):
        Checkpoints.from_states({0: model.state_dict(), 5: model.state_dict()}, tiny.cfg)
    with pytest.raises(ValueError, match=r"states is empty; give .*state_dict"):
        Checkpoints.from_states({}, tiny.cfg)
    with pytest.raises(TypeError, match=r"state of step 0 is a HookedTransformer, a state dict is needed: use model.state_dict"):
        Checkpoints.from_states({0: model}, tiny.cfg)
    with pytest.raises(ValueError, match=r"state dict of step 0 lacks unembed.b_U that its config needs"):
        Checkpoints.from_states({0: {name: w for name, w in tiny.weights(0).items() if name != "unembed.b_U"}}, tiny.cfg)


def test_only_one_model_is_alive_while_iterating(run):
    alive, seen = weakref.WeakSet(), []
    for step, model in run:
        alive.add(model)
        seen.append((step, len(alive)))
        del model
        assert len(alive) == 0
    assert seen == [(0, 1), (10, 1), (100, 1)]


def test_lens_buffers_in_a_file_are_accepted_and_change_nothing(tiny, run, tmp_path):
    buffers = {
        "blocks.0.attn.mask": torch.ones(8, 8, dtype=torch.bool).tril(),
        "blocks.0.attn.IGNORE": torch.tensor(float("-inf")),
        "blocks.0.attn.rotary_sin": torch.zeros(8, 4),
        "blocks.0.attn.rotary_cos": torch.ones(8, 4),
    }
    other = Checkpoints.from_dir(tiny.run(tmp_path / "lens", changes=buffers))
    assert tiny.same(other.at(100).state_dict(), run.at(100).state_dict())
    assert other.weights_hash(100) == run.weights_hash(100)
    assert repr(other).startswith(f"Checkpoints('lens': 3 checkpoints, steps 0..100, {PARAMETERS} parameters, ")


def test_the_hash_is_of_config_and_weights_alone(tiny, run, tmp_path):
    first = run.weights_hash(100)
    assert len(first) == 16
    assert int(first, 16) > 0
    assert Checkpoints.from_states({4: tiny.weights(100)}, tiny.cfg).weights_hash(4) == first
    torch.save(tiny.weights(100), tmp_path / "tiny" / "checkpoints" / "step_7.pt")
    assert Checkpoints.from_dir(tmp_path / "tiny").weights_hash(7) == first
    assert run.weights_hash(10) != first
    half = {name: weight.half() for name, weight in tiny.weights(100).items()}
    nudged = tiny.weights(100) | {"unembed.b_U": torch.nextafter(torch.zeros(11), torch.ones(11))}
    others = [(half, tiny.cfg), (nudged, tiny.cfg), (tiny.weights(100), tiny.cfg.model_copy(update={"eps": 1e-6}))]
    assert len({first} | {Checkpoints.from_states({0: state}, cfg).weights_hash(0) for state, cfg in others}) == 4
    step_file(tmp_path / "tiny", 100).unlink()
    assert run.weights_hash(100) == first


def test_selected_steps_are_a_run_of_their_own(tiny, run):
    chosen = run.select([100, 0])
    assert (chosen.steps, chosen.name, run.steps) == ((0, 100), "tiny", (0, 10, 100))
    assert tiny.same(chosen.at(100).state_dict(), tiny.weights(100))
    with pytest.raises(ValueError, match=r"no checkpoint at step 10; .* of 2 \(0\.\.100\): use run.at\(0\)"):
        chosen.at(10)
    with pytest.raises(ValueError, match=r"no step was selected; give some of the 3 steps 0\.\.100"):
        run.select([])


def test_an_unknown_step_names_the_nearest(run):
    with pytest.raises(ValueError, match=r"tiny has no checkpoint at step 12; the nearest are 0, 10, 100 of 3 .*run.at\(10\)"):
        run.at(12)
    with pytest.raises(TypeError, match=r"step is 1\.5 \(float\), an integer is needed: one of run.steps"):
        run.at(1.5)


def test_the_repr_shows_sizes_and_gaps_and_is_escaped(tiny, run, tmp_path):
    size = sum(path.stat().st_size for path in (tmp_path / "tiny" / "checkpoints").iterdir())
    assert repr(run) == (
        f"Checkpoints('tiny': 3 checkpoints, steps 0..100, {PARAMETERS} parameters, {size / 1000:.1f} kB, largest gap 90 (at 10))"
    )
    single = Checkpoints.from_states({5: tiny.weights(5)}, tiny.cfg, name="<b>x</b>")
    assert repr(single) == f"Checkpoints('<b>x</b>': 1 checkpoint, step 5, {PARAMETERS} parameters, 2.3 kB)"
    assert "&lt;b&gt;x&lt;/b&gt;</b>: 1 checkpoint, step 5" in single._repr_html_()
    assert "<b>x</b>" not in single._repr_html_()


def test_pickling_carries_places_and_not_what_was_read(tiny, run, tmp_path):
    save_weights(tmp_path / "tiny" / "evaluation.safetensors", {"code": torch.zeros(100, 100, dtype=torch.int32)})
    known, tokens = run.weights_hash(0), run.evaluation["code"]
    assert tokens.shape == (100, 100)
    packed = pickle.dumps(run)
    assert len(packed) < 10_000
    again = pickle.loads(packed)
    step_file(tmp_path / "tiny", 0).unlink()
    assert (again.steps, again.weights_hash(0)) == (run.steps, known)
    assert tiny.same(again.at(10).state_dict(), tiny.weights(10))
    assert tiny.same(
        pickle.loads(pickle.dumps(Checkpoints.from_states({0: tiny.weights(0)}, tiny.cfg))).at(0).state_dict(), tiny.weights(0)
    )


def test_corpus_streams_are_read_when_asked_for_and_do_not_travel(run, tmp_path):
    assert run.corpus == {}
    stored = {"code": torch.arange(20_000, dtype=torch.int32).to(torch.uint16), "prose": torch.tensor([70_000])}
    save_weights(tmp_path / "tiny" / "corpus.safetensors", stored)
    run = Checkpoints.from_dir(tmp_path / "tiny")
    assert list(run.corpus) == ["code", "prose"] and run.corpus is run.corpus
    assert {ids.dtype for ids in run.corpus.values()} == {np.dtype(np.int64)}
    assert (run.corpus["code"] == np.arange(20_000)).all() and run.corpus["prose"].tolist() == [70_000]
    packed = pickle.dumps(run)
    assert len(packed) < 10_000 and pickle.loads(packed).corpus["prose"].tolist() == [70_000]


def test_runs_of_one_text_share_its_streams(tiny, tmp_path):
    """Read from the run that has them, written in full by an export, and missed in one sentence where that run is gone."""
    for name in ("a", "b"):
        tiny.run(tmp_path / name)
    save_weights(tmp_path / "a" / "corpus.safetensors", {"code": torch.arange(40, dtype=torch.int32)})
    write_json(tmp_path / "b" / "meta.json", {"name": "b", "corpus_of": "../a"})
    run = Checkpoints.from_dir(tmp_path / "b")
    assert run.corpus["code"].tolist() == list(range(40))
    written = Checkpoints.from_dir(run.export(tmp_path / "out" / "b"))
    assert written.corpus["code"].tolist() == list(range(40)) and "corpus_of" not in written.meta
    (tmp_path / "a" / "corpus.safetensors").unlink()
    with pytest.raises(ValueError, match=r"b reads its text from \.\./a, and there is no .*corpus.safetensors; put that run"):
        _ = Checkpoints.from_dir(tmp_path / "b").corpus


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        (torch.zeros(3), r"torch.float32 \[3\], integers of rank 1 are needed"),
        (torch.ones(3, dtype=torch.bool), r"torch.bool \[3\], integers of rank 1 are needed"),
        (torch.zeros(2, 3, dtype=torch.int32), r"torch.int32 \[2, 3\], integers of rank 1 are needed"),
        (torch.tensor([4, -1]), "holds the id -1, token ids from 0 up are needed"),
        (torch.tensor([], dtype=torch.int32), "holds no tokens, token ids from 0 up are needed"),
    ],
)
def test_corpus_streams_that_are_no_tokens_are_refused(tiny, tmp_path, ids, what):
    save_weights(tiny.run(tmp_path) / "corpus.safetensors", {"code": ids})
    run = Checkpoints.from_dir(tmp_path)
    with pytest.raises(ValueError, match=rf"corpus.safetensors: code .*{what}; save it again"):
        _ = run.corpus
    (tmp_path / "corpus.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match=r"corpus.safetensors is truncated, or no .safetensors weight file"):
        _ = Checkpoints.from_dir(tmp_path).corpus


def test_revisions_in_a_local_folder(tiny, tmp_path, monkeypatch):
    tiny.folders(tmp_path / "model", ["step0", "step1000", "step2000"])
    monkeypatch.chdir(tmp_path)
    run = Checkpoints.from_hub("model", ["step1000", 0])
    assert (run.steps, run.labels, run.name) == ((0, 1000), {0: "step0", 1000: "step1000"}, "model")
    monkeypatch.chdir("/")
    assert tiny.same(run.at(1000).state_dict(), tiny.weights(0))
    with pytest.raises(ValueError, match=r"no folder for the revision 'step5'; there are: step0, step1000, step2000"):
        Checkpoints.from_hub(tmp_path / "model", ["step5"])
    with pytest.raises(ValueError, match=r"revisions is 'step0'; give a list of names"):
        Checkpoints.from_hub(tmp_path / "model", "step0")
    with pytest.raises(ValueError, match=r"nowhere is neither a folder nor a hub name .owner/model.; give a folder"):
        Checkpoints.from_hub(tmp_path / "nowhere", ["step0"])


def test_revisions_on_the_hub_are_fetched_by_name(tiny, tmp_path, monkeypatch):
    tiny.folders(tmp_path, ["step0", "step512"])
    asked = []

    def fetch(repo, *, revision, allow_patterns):
        asked.append((repo, revision, allow_patterns))
        return str(tmp_path / revision)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=fetch))
    run = Checkpoints.from_hub("lab/model", ["step512", "step0"])
    assert (run.name, run.labels, run.path) == ("lab/model", {0: "step0", 512: "step512"}, None)
    assert asked == [("lab/model", name, ["*.json", "*.safetensors"]) for name in ("step512", "step0")]
    assert tiny.same(run.at(512).state_dict(), tiny.weights(0))
    with pytest.raises(ValueError, match=r"lab/model at 'step7' was not fetched \(.*step7.*\); check name and network"):
        Checkpoints.from_hub("lab/model", ["step7"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ValueError, match=r"lab/model is no folder, .* needs huggingface-hub: pip install 'circuits-interp\[hub\]'"
    ):
        Checkpoints.from_hub("lab/model", ["step0"])


def test_hugging_face_models_are_built_by_their_converter(tiny, tmp_path, monkeypatch):
    for step in (0, 4):
        config = {"model_type": "gpt_neox", "hidden_size": 8, "_name_or_path": str(step)}
        write_json(tmp_path / f"step{step}" / "config.json", config)
        stored = {"embed_in.weight": torch.full((11, 8), float(step)), "h.0.attention.masked_bias": torch.tensor(float("-inf"))}
        save_weights(tmp_path / f"step{step}" / "model.safetensors", stored)
    asked = []

    def from_hf(folder):
        asked.append(folder)
        return HookedTransformer(tiny.cfg).train()

    monkeypatch.setitem(sys.modules, "circuits.models.convert", SimpleNamespace(from_hf=from_hf))
    run = Checkpoints.from_dir(tmp_path)
    assert ", 88 parameters, " in repr(run)
    assert run.weights_hash(0) != run.weights_hash(4)
    assert asked == []
    assert (run.at(4).training, run.cfg, asked) == (False, tiny.cfg, [str(tmp_path / "step4"), str(tmp_path / "step0")])
    write_json(tmp_path / "config.json", {"model_type": "gpt2"})
    save_weights(tmp_path / "step_1.safetensors", tiny.weights(0))
    with pytest.raises(ValueError, match=r"config.json describes a Hugging Face model \(gpt2\); such a run needs one folder per"):
        Checkpoints.from_dir(tmp_path)
