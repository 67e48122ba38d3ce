"""Measures take any model of the protocol: ours, a 4.x bridge, and (marker tl3) the original 3.9 class give the same numbers."""

from typing import Any

import numpy as np
import pytest
import torch

from circuits import EdgeEffects, HookedTransformer, Multigrams, ablate, detect, from_transformer_lens, head_effects, view
from circuits.data.bracket_set import bracket_set
from circuits.detectors.brackets import BracketScores
from circuits.detectors.copying import CopyingScores
from circuits.detectors.in_context import LossCurves
from circuits.detectors.induction_cut import InductionCut
from circuits.detectors.multigrams import MultigramRule
from circuits.detectors.nested_brackets import NestedBrackets
from circuits.detectors.positions import PositionAblation
from circuits.detectors.profile import FunctionProfile
from circuits.models.convert import to_transformer_lens_state
from circuits.models.interventions import ABLATIONS
from circuits.paths.term_importance import TermImportance

CFG = {
    "n_layers": 2,
    "d_model": 16,
    "n_heads": 2,
    "d_head": 8,
    "n_ctx": 32,
    "d_vocab": 40,
    "attn_only": True,
    "normalization_type": "LN",
    "positional_embedding_type": "standard",
    "seed": 0,
}
TOKENS = torch.randint(1, 40, (3, 24), generator=torch.Generator().manual_seed(0))
TEXT = torch.randint(1, 40, (16, 24), generator=torch.Generator().manual_seed(1))
KINDS = (TEXT[:, 1:] > 20).long()
BRACKETS = bracket_set([(1, 2), (3, 4)], range(5, 40), length=24, examples=8)


def sharp_model() -> HookedTransformer:
    """Random weights with attention far from uniform, so that equal scores mean something."""
    model = HookedTransformer(CFG).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.mul_(6)
            block.attn.W_K.mul_(6)
    return model


def assert_measured_alike(theirs: Any, ours: HookedTransformer) -> None:
    for tokens in (None, TOKENS):
        a, b = (detect(m, tokens, examples=4, null_seeds=1) for m in (theirs, ours))
        for variable in ("value", "stderr", "chance", "null_mean", "null_sd"):
            assert np.allclose(a[variable], b[variable], atol=1e-5, equal_nan=True), variable
        assert float(b.value.sel(detector="entropy").min()) < 0.9 * float(b.chance.sel(detector="entropy"))
    curves = [LossCurves({"text": TOKENS})(m).value for m in (theirs, ours)]
    assert np.allclose(curves[0], curves[1], atol=1e-4)
    functions: tuple[tuple[Any, tuple[str, ...]], ...] = (
        (InductionCut(examples=4, groups=2), ("value", "removed", "control")),
        (FunctionProfile(TEXT, KINDS, names=("a", "b"), shifts=2, draws=100), ("effect", "total", "direct")),
        (Multigrams(TEXT, MultigramRule(threshold=0.01), nulls=()), ("events", "found", "share")),
        (CopyingScores(examples=4, groups=2, null_seeds=1), ("value", "null_mean")),
        (PositionAblation({"text": TOKENS}), ("value",)),
        (BracketScores(BRACKETS, null_seeds=1), ("value", "effect")),
        (NestedBrackets(BRACKETS, null_seeds=2), ("value",)),
    )
    for measure, variables in functions:
        a, b = (measure(m) for m in (theirs, ours))
        for variable in variables:
            assert np.allclose(a[variable], b[variable], atol=2e-5, equal_nan=True), (measure.name, variable)
    for name in ABLATIONS:
        a, b = (torch.cat([e.total for e in head_effects(m, TOKENS, name)], 2) for m in (theirs, ours))
        assert torch.allclose(a, b, atol=2e-5) and a.abs().max() > 1e-3, name
    assert np.allclose(*(view(m, TOKENS[0], "L1H1").patterns.value for m in (theirs, ours)), atol=1e-5)
    assert np.allclose(*(EdgeEffects(TOKENS)(m).value for m in (theirs, ours)), atol=1e-5)
    place = "embed -> L0H1.v -> L1H0.k -> logits"
    assert np.allclose(*(ablate(m, TOKENS, place, "zero", controls=2).effect for m in (theirs, ours)), atol=1e-5)
    assert np.allclose(*(TermImportance(TOKENS)(m).value for m in (theirs, ours)), atol=1e-5)


def test_a_native_bridge_is_measured_as_our_own_model():
    from transformer_lens import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    fields = {
        k: CFG[k] for k in ("n_layers", "d_model", "n_heads", "d_head", "n_ctx", "d_vocab", "attn_only", "normalization_type")
    }
    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**fields, device="cpu", seed=0))  # type: ignore[arg-type]
    bridge.eval()
    with torch.no_grad():
        for name, weight in bridge.named_parameters():
            if name.endswith("weight") and (".q." in name or ".k." in name):
                weight.mul_(6)
    assert_measured_alike(bridge, from_transformer_lens(bridge))


@pytest.mark.tl3
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_the_original_class_is_measured_as_our_own_model():
    from transformer_lens import HookedTransformer as Original
    from transformer_lens import HookedTransformerConfig as OriginalConfig

    ours = sharp_model()
    theirs = Original(OriginalConfig(**(CFG | {"device": "cpu"})))  # type: ignore[arg-type]
    theirs.load_state_dict(to_transformer_lens_state(ours))
    theirs.eval()
    assert_measured_alike(theirs, ours)
    assert torch.equal(from_transformer_lens(theirs).W_Q, ours.W_Q)
