"""Every public measure leaves the model as it found it: weights, gradients and their flags, hooks, mode, settings."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import circuits
from circuits import Checkpoints, HookedTransformer
from circuits.complexity.config import sampler_config
from circuits.complexity.nulls import ComplexityNulls
from circuits.data.bracket_set import bracket_set
from circuits.data.ngrams import NgramTable
from circuits.detectors.attention import AttentionScores
from circuits.detectors.brackets import BracketScores
from circuits.detectors.copying import CopyingScores
from circuits.detectors.in_context import LossCurves, RepeatLoss
from circuits.detectors.in_context_ablation import InContextAblation
from circuits.detectors.induction_cut import InductionCut
from circuits.detectors.multigram_measure import Multigrams
from circuits.detectors.names import NameCompletion, NamePrompts
from circuits.detectors.nested_brackets import NestedBrackets
from circuits.detectors.positions import PositionAblation
from circuits.detectors.predictors import PredictorLoss
from circuits.detectors.profile import FunctionProfile
from circuits.detectors.token_losses import TokenLosses
from circuits.models.effects import effects_by_hooks
from circuits.models.interventions import ABLATIONS, mean_z, replacement
from circuits.models.protocol import model_hash
from circuits.paths.attribution import EdgeAttribution
from circuits.paths.by_hooks import logits_by_hooks
from circuits.paths.circuit import Circuit, greedy
from circuits.paths.edges import EdgeEffects
from circuits.paths.faithfulness import faithfulness
from circuits.paths.joint import ConditionalEffects, interaction
from circuits.paths.path_terms import PathTerms
from circuits.paths.score_terms import score_terms
from circuits.paths.term_importance import TermImportance
from circuits.paths.wiring import Edge
from circuits.weights.components import components
from circuits.weights.composition import Composition
from circuits.weights.embedding_composition import EmbeddingComposition
from circuits.weights.k_term import KTermCopying
from circuits.weights.skip_trigrams import SkipTrigrams
from circuits.weights.weight_spectra import WeightSpectra

TOKENS = torch.randint(1, 40, (3, 24), generator=torch.Generator().manual_seed(0))
TEXT = torch.randint(1, 40, (8, 24), generator=torch.Generator().manual_seed(1))
COUNTED = np.random.default_rng(0).integers(1, 40, 400)
BRACKETS = bracket_set([(1, 2), (3, 4)], range(5, 40), length=24, examples=8)
SAMPLER = sampler_config("laptop", draws=4, burn_in=2, chains=2, superchains=1, batch=2)
PROMPTS = NamePrompts(TOKENS, TOKENS, torch.tensor([2, 2, 2]), ("a", "b", "c"))

MEASURES: dict[str, Callable[[Any], Any]] = {
    "detect": lambda m: circuits.detect(m, examples=4, null_seeds=1),
    "detect on text": lambda m: circuits.detect(m, TOKENS, examples=4, null_seeds=1),
    "AttentionScores": AttentionScores(examples=4, null_seeds=0),
    "LossCurves": LossCurves({"text": TOKENS}),
    "RepeatLoss": RepeatLoss(n=8, examples=4),
    "NameCompletion": NameCompletion(PROMPTS),
    **{f"head_effects, {name}": lambda m, name=name: list(circuits.head_effects(m, TOKENS, name)) for name in ABLATIONS},
    "effects_by_hooks": lambda m: effects_by_hooks(
        m, TOKENS, replacement(m, TOKENS, "zero"), patterns="preserved", norms="frozen"
    ),
    "mean_z": lambda m: mean_z(m, TOKENS),
    "Multigrams": Multigrams(TEXT),
    "FunctionProfile": FunctionProfile(TEXT.repeat(2, 1), torch.zeros(16, 23).long(), shifts=2, draws=100),
    "InductionCut": InductionCut(examples=4, groups=2),
    "InContextAblation": InContextAblation(TEXT),
    "CopyingScores": CopyingScores(examples=4, groups=2, null_seeds=1),
    "CopyingScores on text": CopyingScores(examples=4, groups=2, null_seeds=0, tokens=TOKENS),
    "PositionAblation": PositionAblation({"text": TOKENS}),
    "TokenLosses": TokenLosses({"text": TOKENS}),
    "PredictorLoss": PredictorLoss(NgramTable.count([COUNTED], 40, order=2), {"text": TOKENS}),
    "BracketScores": BracketScores(BRACKETS, null_seeds=1),
    "NestedBrackets": NestedBrackets(BRACKETS, null_seeds=2),
    "WeightSpectra": WeightSpectra(TOKENS, null_seeds=9, diagonal_tokens=8),
    "KTermCopying": KTermCopying(null_seeds=9),
    "Composition": Composition(draws=20, pooled_heads=5),
    "Composition of activations": Composition("activations", TOKENS, draws=20, pooled_heads=0),
    "EmbeddingComposition": EmbeddingComposition(draws=20),
    "components": lambda m: components(m, "K", "L0H0", "L1H1", draws=20),
    "ov_circuit": lambda m: circuits.ov_circuit(m, "L1H0").top(3),
    "qk_circuit": lambda m: circuits.qk_circuit(m, "L1H0").top(3),
    "skip_trigrams": lambda m: circuits.skip_trigrams(m, "L1H0", k=3),
    "SkipTrigrams": SkipTrigrams(k=3),
    "view": lambda m: circuits.view(m, TOKENS[0], "L0H1"),
    "value-weighted view": lambda m: circuits.view(m, TOKENS[0], "L0H1", value_weighted=True),
    **{f"ablate, {kind}": lambda m, kind=kind: circuits.ablate(m, TOKENS, "L0H1 -> L1H0.k", kind) for kind in ABLATIONS},
    "ablate a path": lambda m: circuits.ablate(m, TOKENS, "embed -> L0H1.v -> L1H0.k -> logits", "zero", controls=1),
    "patch": lambda m: circuits.patch(m, TOKENS, TOKENS.flip(0), "L0H1", direction="denoising"),
    "EdgeEffects": EdgeEffects(TOKENS, "mean"),
    "EdgeAttribution": EdgeAttribution(EdgeEffects(TOKENS), "inputs", steps=2),
    "ConditionalEffects": ConditionalEffects(EdgeEffects(TOKENS, where="L0H* -> L1H0.v"), "L0H1 -> L1H1.v"),
    "interaction": lambda m: interaction(m, EdgeEffects(TOKENS), ["L0H0", "L0H1"], controls=1),
    "greedy": lambda m: greedy(EdgeEffects(TOKENS).intervention(m), 0.1),
    "faithfulness": lambda m: faithfulness(m, EdgeEffects(TOKENS), Circuit.of(m, "L0H1"), random_circuits=2, subsets=1),
    "PathExpansion": lambda m: circuits.PathExpansion(m, TOKENS).logits(),
    "PathTerms": PathTerms(TOKENS),
    "TermImportance": TermImportance(TOKENS),
    "score_terms": lambda m: score_terms(m, TOKENS, "L1H0"),
    "rllc": lambda m: circuits.rllc(m, TOKENS, heads=["L0H1", "L1H0"], config=SAMPLER),
    "rllc against a reference": lambda m: circuits.rllc(m, TOKENS, heads="L1H0", config=SAMPLER, reference=make_model(False)),
    "llc": lambda m: circuits.llc(m, TOKENS, config=SAMPLER),
    "ComplexityNulls": ComplexityNulls(TOKENS, SAMPLER, probes=2, sequences=1, noises=2),
    "calibrate": lambda m: circuits.calibrate(m, TOKENS, weights="L1H0", batch=2, chains=2, draws=4),
    "logits_by_hooks": lambda m: logits_by_hooks(m, TOKENS, [Edge("L0H0", "L1H0.k")], torch.zeros(6, *TOKENS.shape, 8)),
    "model_hash": model_hash,
    "Checkpoints": lambda m: Checkpoints.from_states({0: m.state_dict()}, m.cfg).at(0),
}


WANT_EVALUATION = {
    "ablate", "patch", "EdgeEffects", "EdgeAttribution", "ConditionalEffects", "interaction", "greedy", "faithfulness",
    "PathExpansion", "PathTerms", "TermImportance", "score_terms", "rllc", "llc", "ComplexityNulls", "calibrate",
}  # fmt: skip
"""Interventions refuse a model in training mode, and leave it as they found it."""


def make_model(training: bool) -> HookedTransformer:
    cfg = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 32, "d_vocab": 40, "attn_only": True}
    model = HookedTransformer(cfg).train(training)
    model.blocks[0].eval()  # a mixed state, as a user may have left it
    model.blocks[0].attn.W_Q.requires_grad_(False)
    model(TOKENS, return_type="loss").backward()
    model.add_hook("blocks.0.attn.hook_pattern", lambda pattern, hook: None)
    model.blocks[1].attn.hook_z.register_forward_hook(lambda *_: None)
    return model


def state(model: HookedTransformer) -> dict[str, Any]:
    return {
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: (len(h.fwd_hooks), len(h.bwd_hooks), len(h._forward_hooks)) for name, h in model.hook_dict.items()},
        "cfg": model.cfg,
        "caching": model.is_caching,
        "level": model.context_level,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "generator": torch.get_rng_state(),
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_leaves_the_model_as_found(measure: str, training: bool):
    model = make_model(training)
    before = state(model)
    if training and measure.split(",")[0].split(" ")[0] in WANT_EVALUATION:
        with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
            MEASURES[measure](model)
    else:
        MEASURES[measure](model)
    after = state(model)
    for what in before:
        assert same(before[what], after[what]), f"{measure} changed {what}"


def test_a_measure_that_fails_leaves_the_model_as_found():
    model = make_model(training=True)
    with torch.no_grad():
        model.W_E[0, 0] = torch.nan
    before = {k: v for k, v in state(model).items() if k != "weights"}
    with pytest.raises(ValueError, match="W_E"):
        AttentionScores(examples=4, null_seeds=0)(model)
    after = state(model)
    assert all(same(before[what], after[what]) for what in before)


def test_every_public_measure_is_walked():
    """A new public function that takes a model must be added above, or named here with its reason."""
    takes_no_model = {
        "Checkpoints", "Head", "HookedTransformer", "HookedTransformerConfig", "SamplerConfig", "classify", "coefficients",
        "demo_model", "from_hf", "functions", "gather", "pathways", "planted", "preset", "repeated_random_tokens", "report",
        "sweep", "train", "weigh",
    }  # fmt: skip
    converts_a_foreign_model = {"from_transformer_lens"}  # tests/parity
    walked = {name.split(" ")[0].strip(",") for name in MEASURES} | {"detect", "view"}
    public = {name for name in circuits.__all__ if not name.startswith("_")}
    assert public - takes_no_model - converts_a_foreign_model - walked == set()
