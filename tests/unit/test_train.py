"""Training: the schedule, the data it refuses, and the same bytes after any interruption."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuits.data.streams import BLOCK, split_blocks
from circuits.dynamics import train as train_module
from circuits.dynamics.presets import TrainConfig, paper_model, preset
from circuits.dynamics.train import corpora_of, corpus_tokens, train
from circuits.models.checkpoints import Checkpoints
from circuits.models.config import HookedTransformerConfig

TINY = HookedTransformerConfig(
    n_layers=1,
    d_model=16,
    n_heads=2,
    d_head=8,
    n_ctx=32,
    d_vocab=300,
    attn_only=True,
    positional_embedding_type="shortformer",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {i} tells of the number {i * i} and then of {i}. " * 12 for i in range(60)))
    return path


def config(corpus: Path, **changes: Any) -> TrainConfig:
    options = {
        "model": TINY,
        "data": f"file:{corpus}",
        "steps": 14,
        "batch": 4,
        "save_every": 4,
        "every": 6,
        "linear_from": 4,
        "threads": 1,
    }
    return preset("stdlib-1l", **(options | changes))


def content(out: Path) -> dict[str, str]:
    return {
        p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.rglob("*")) if p.is_file()
    }


def test_a_run_is_whole_and_readable(corpus: Path, tmp_path: Path):
    out = train(config(corpus), tmp_path / "run", progress=False)
    run = Checkpoints.from_dir(out)
    assert run.steps == (0, 1, 2, 4, 6, 12, 14)
    assert run.tokenizer is not None and run.evaluation["brackets"].shape[0] == 128
    assert sorted(run.corpus) == ["text", "text_train"] and run.token_counts is not None
    assert (np.bincount(run.corpus["text_train"], minlength=300) == run.token_counts).all()
    assert 0 not in run.corpus["text"]
    losses = (out / "losses.csv").read_text().splitlines()
    assert losses[0] == "step,loss" and len(losses) == 15
    assert float(losses[-1].split(",")[1]) < float(losses[1].split(",")[1])
    assert run.meta["data"][0]["sha256"] == corpora_of(f"file:{corpus}")[0].identity["sha256"]
    assert not list(out.rglob("*.partial"))


def test_a_long_corpus_is_sampled_in_evenly_spaced_blocks():
    stream = np.arange(BLOCK * 200 + 17) % 50_000
    found = corpus_tokens({"code": stream}, {"code": stream[: BLOCK * 10]})
    assert {name: ids.dtype for name, ids in found.items()} == {"code_train": torch.uint16, "code": torch.uint16}
    assert (found["code"].numpy() == stream[: BLOCK * 10]).all()
    kept = split_blocks(found["code_train"].numpy())
    assert len(kept) == 600_000 // BLOCK == 146 and {len(piece) for piece in kept} == {BLOCK}
    starts = [next(i for i in range(200) if (stream[i * BLOCK : (i + 1) * BLOCK] == piece).all()) for piece in kept]
    assert starts == [i * 200 // 146 for i in range(146)] and starts[-1] == 198
    large = corpus_tokens({"code": np.array([0, 70_000], dtype=np.uint32)}, {})
    assert large["code_train"].dtype == torch.int32


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stops", [[5], [0, 9], [13]])
def test_an_interrupted_run_ends_with_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: list[int]
):
    whole = content(train(config(corpus), tmp_path / "whole", progress=False))
    original = train_module.training_batch

    for stop in stops:

        def interrupted(stream: Any, *, step: int, stop: int = stop, **rest: Any) -> torch.Tensor:
            if step == stop:
                raise Stopped
            return original(stream, step=step, **rest)

        monkeypatch.setattr(train_module, "training_batch", interrupted)
        with pytest.raises(Stopped):
            train(config(corpus), tmp_path / "broken", progress=False)
    monkeypatch.setattr(train_module, "training_batch", original)
    assert content(train(config(corpus), tmp_path / "broken", progress=False)) == whole


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.05, 0.5, 1.5])
def test_a_killed_run_ends_with_the_same_bytes(corpus: Path, tmp_path: Path, delay: float):
    """SIGKILL at some moment after the first checkpoint, in another process, then the same command again."""
    script = (
        "import sys; from circuits.dynamics.presets import TrainConfig; from circuits.dynamics.train import train;"
        "train(TrainConfig.model_validate_json(sys.argv[1]), sys.argv[2], progress=False)"
    )
    settings = config(corpus, steps=300, save_every=20).model_dump_json()
    command = [sys.executable, "-c", script, settings]
    process = subprocess.Popen([*command, str(tmp_path / "killed")])
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(delay)
    process.kill()
    process.wait()
    for place in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / place)], check=True)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_training_leaves_the_global_generator_and_settings_alone(corpus: Path, tmp_path: Path):
    before = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    train(config(corpus, steps=2), tmp_path / "run", progress=False)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())


def test_going_on_with_other_options_or_text_is_refused(corpus: Path, tmp_path: Path):
    train(config(corpus, steps=2), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="holds a run of another configuration"):
        train(config(corpus, steps=2, lr=1e-4), tmp_path / "run", progress=False)
    next((tmp_path / "run").glob("checkpoints/*2.safetensors")).unlink()  # as if it had not finished
    text = corpus.read_text()
    try:
        corpus.write_text(text + "\n\nMore text than before, of the same file. " * 30)
        with pytest.raises(ValueError, match="was begun on other text"):
            train(config(corpus, steps=2), tmp_path / "run", progress=False)
    finally:
        corpus.write_text(text)


def test_a_broken_state_says_what_to_do(corpus: Path, tmp_path: Path):
    out = train(config(corpus, steps=2), tmp_path / "run", progress=False)
    assert not (out / "state.pt").exists()
    (out / "state.pt").write_bytes(b"not a state")
    with pytest.raises(ValueError, match=r"state.pt cannot be read .* delete it to begin again"):
        train(config(corpus, steps=2), out, progress=False)


def test_a_diverged_run_stops_with_a_sentence(corpus: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="the run diverged; train with a smaller lr"):
        train(config(corpus, lr=1e30, warmup=0, grad_clip=None), tmp_path / "run", progress=False)


def test_the_checkpoint_schedule_is_logarithmic_then_linear():
    steps = preset("stdlib-2l", steps=2000).checkpoint_steps()
    assert steps == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, *range(1125, 2001, 125)]


def test_the_paper_preset_is_the_papers_model():
    cfg = preset("paper-2l", data="file:x")
    assert (cfg.lr, cfg.weight_decay, cfg.batch, cfg.steps) == (1e-3, 0.05, 100, 50_000)
    assert cfg.model == paper_model()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preset("stdlib-3l"), "there is no preset 'stdlib-3l'; choose one of stdlib-2l, stdlib-1l, paper-2l"),
        (lambda: preset("stdlib-2l", steps=0), "steps is 0; it must be at least 1"),
        (lambda: preset("stdlib-2l", lr=-1.0), "lr is -1.0; it must be positive"),
        (lambda: preset("stdlib-2l", speed=3), "speed"),
        (lambda: corpora_of(""), "name it with --data"),
        (lambda: corpora_of("file:/no/such/file"), "cannot read /no/such/file as UTF-8 text"),
    ],
)
def test_bad_training_options_are_refused(call: Any, message: str):
    with pytest.raises(ValueError, match=message):
        call()
