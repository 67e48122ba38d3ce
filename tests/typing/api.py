"""What a type checker knows of the public names; read by pyright and never run.

Lazy names must not be ``Any``: a wrong call is an error in the editor, and completion works on what comes back.
"""

from pathlib import Path
from typing import assert_type

import torch
import xarray as xr

import circuits
from circuits import Checkpoints, Head, HookedTransformer, HookedTransformerConfig


def models(path: Path) -> None:
    cfg = HookedTransformerConfig(n_layers=2, d_model=16, n_heads=2, d_head=8, n_ctx=32, d_vocab=50, attn_only=True)
    model = HookedTransformer(cfg)
    assert_type(model.cfg, HookedTransformerConfig)
    assert_type(model.W_Q, torch.Tensor)
    assert_type(circuits.demo_model(), HookedTransformer)
    assert_type(circuits.from_hf(path), HookedTransformer)
    assert_type(circuits.from_transformer_lens(model), HookedTransformer)
    assert_type(Head.parse("L0H3", cfg).layer, int)


def runs(path: Path) -> None:
    run = Checkpoints.from_dir(path)
    assert_type(run, Checkpoints)
    assert_type(run.steps, tuple[int, ...])
    assert_type(run.at(0), HookedTransformer)
    for step, model in run:
        assert_type(step, int)
        assert_type(model, HookedTransformer)
    assert_type(run.select([0, 1]), Checkpoints)
    assert_type(run.export(path, steps=[0], dtype="float16"), Path)
    assert_type(circuits.train(circuits.preset("stdlib-2l", steps=10), path), Path)


def results(path: Path, run: Checkpoints) -> None:
    scores = circuits.detect(run, store=path)
    assert_type(scores, xr.Dataset)
    assert_type(circuits.classify(scores), xr.Dataset)
    assert_type(circuits.repeated_random_tokens(50, n=10).tokens, torch.Tensor)
    written = circuits.report(run, path, path / "store")
    assert_type(written.html, Path)
    assert_type(written.results, Path)


def refused(run: Checkpoints) -> None:
    """Wrong calls that have to be errors; an ignore that nothing needs is one itself."""
    HookedTransformerConfig(n_layer=2)  # pyright: ignore[reportCallIssue]
    circuits.sweep(1, run, store="here")  # pyright: ignore[reportArgumentType]
    _ = circuits.Transformer  # pyright: ignore[reportAttributeAccessIssue]
