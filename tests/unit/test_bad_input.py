"""Wrong calls get one sentence: what was given, what is needed, how to mend it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import circuits
from circuits import Checkpoints, Head, HookedTransformer, HookedTransformerConfig, detect, repeated_random_tokens
from circuits.detectors.attention import AttentionScores
from circuits.detectors.classify import classify
from circuits.detectors.copying import CopyingScores
from circuits.detectors.in_context import LossCurves, RepeatLoss
from circuits.detectors.in_context_ablation import InContextAblation
from circuits.detectors.induction_cut import InductionCut
from circuits.detectors.loss_pca import loss_pca
from circuits.detectors.positions import PositionAblation
from circuits.detectors.predictors import PredictorLoss
from circuits.detectors.profile import FunctionProfile
from circuits.detectors.token_losses import TokenLosses
from circuits.models import patterns
from circuits.models.planted import planted_model, uniform_model
from circuits.paths.ablate import ablate, patch
from circuits.paths.attribution import EdgeAttribution
from circuits.paths.circuit import Circuit, ranked, threshold
from circuits.paths.curve import faithfulness_curve
from circuits.paths.edges import EdgeEffects
from circuits.paths.faithfulness import faithfulness
from circuits.paths.joint import ConditionalEffects, interaction

pytestmark = pytest.mark.usefixtures("unchecked")

CFG = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 32, "d_vocab": 40, "attn_only": True}


def model(**changes: Any) -> HookedTransformer:
    return HookedTransformer(CFG | changes)


def broken_model() -> HookedTransformer:
    made = model()
    with torch.no_grad():
        made.blocks[0].attn.W_K[1, 0, 0] = math.nan
    return made


def on_meta() -> torch.Tensor:
    return torch.zeros(1, 8, dtype=torch.long, device="meta")


def eight() -> HookedTransformer:
    return model(n_layers=2).eval()


TWO = torch.arange(16).reshape(2, 8)
IDS = torch.arange(8)[None]
FUTURE = torch.ones(8, 8, dtype=torch.bool).triu(1)
CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no such head in a place": (
        lambda: ablate(eight(), TWO, "L0H9 -> L1H0.k"),
        ValueError,
        r"there is no L0H9; heads of layer 0 are L0H0..L0H1",
    ),
    "a place that goes backwards": (lambda: ablate(eight(), TWO, "L1H0 -> L0H1.q"), ValueError, "goes backwards"),
    "an input as a place": (lambda: ablate(eight(), TWO, "L1H0.k"), ValueError, r"write '\* -> L1H0.k' for all it reads"),
    "a place that is a number": (lambda: ablate(eight(), TWO, 3), TypeError, "3 is no place"),
    "a mean over nothing else": (lambda: ablate(eight(), TWO[:1], "L0H0"), ValueError, "mean ablation.*pass two or more"),
    "a mean over no reference": (
        lambda: ablate(eight(), TWO, "L0H0", reference=TWO[:0]),
        ValueError,
        "which is empty; mean ablation needs",
    ),
    "a reference and no mean": (lambda: ablate(eight(), TWO, "L0H0", "zero", reference=TWO), ValueError, "is for mean ablation"),
    "a short reference": (lambda: ablate(eight(), TWO, "L0H0", reference=TWO[:, :4]), ValueError, "pass a longer one"),
    "resampling from nobody": (lambda: ablate(eight(), TWO[:1], "L0H0", "resample"), ValueError, "pass two or more"),
    "corrupt tokens of another shape": (lambda: patch(eight(), TWO, TWO[:, :6], "L0H0"), ValueError, "give both the same shape"),
    "a direction there is not": (
        lambda: patch(eight(), TWO, TWO, "L0H0", direction="both"),
        ValueError,
        "direction='both'.*'denoising'",
    ),
    "ablation in training mode": (lambda: ablate(model(n_layers=2), TWO, "L0H0"), ValueError, r"call model.eval\(\) first"),
    "ablation of what is no model": (lambda: ablate("gpt2", TWO, "L0H0"), TypeError, "got str, need a hooked model"),
    "ablation of broken weights": (lambda: ablate(broken_model().eval(), TWO, "L0H0"), ValueError, "W_K.*load another"),
    "ablation on text": (lambda: ablate(eight(), "def f():", "L0H0"), TypeError, "tokens are a str"),
    "ablation on one token": (lambda: ablate(eight(), TWO[:, :1], "L0H0"), ValueError, "needs at least 2"),
    "an ablation there is not": (lambda: ablate(eight(), TWO, "L0H0", "median"), ValueError, "no ablation 'median'"),
    "a metric that is a word": (lambda: ablate(eight(), TWO, "L0H0", metric="accuracy"), TypeError, "need 'loss' or a function"),
    "a metric that gives a float": (
        lambda: ablate(eight(), TWO, "L0H0", metric=lambda logits, tokens: 1.0),
        ValueError,
        "gave float for 2 examples",
    ),
    "nothing counted": (
        lambda: ablate(eight(), TWO, "L0H0", count=torch.zeros(2, 7).bool()),
        ValueError,
        "example 0 has no prediction that counts",
    ),
    "a count of another shape": (
        lambda: ablate(eight(), TWO, "L0H0", count=torch.ones(2, 8).bool()),
        ValueError,
        r"\(2, 8\), need one bool.*\(2, 7\)",
    ),
    "positions beyond the text": (lambda: ablate(eight(), TWO, "L0H0", positions=[8]), ValueError, "the tokens have 0..7"),
    "positions that choose none": (lambda: ablate(eight(), TWO, "L0H0", positions=[]), ValueError, "choose none"),
    "positions that are halves": (lambda: ablate(eight(), TWO, "L0H0", positions=[0.5]), TypeError, "need indices or bools"),
    "fewer controls than none": (lambda: ablate(eight(), TWO, "L0H0", controls=-1), ValueError, "controls=-1"),
    "no memory": (lambda: ablate(eight(), TWO, "L0H0", max_bytes=1000), ValueError, "allow more, or pass shorter sequences"),
    "a mean over what": (lambda: ablate(eight(), TWO, "L0H0", over="heads"), ValueError, "over='heads'.*'positions'"),
    "a path where edges are measured": (
        lambda: EdgeEffects(TWO, where="L0H0 -> L1H0.k -> logits")(eight()),
        ValueError,
        "takes single edges",
    ),
    "edges of a name with a space": (lambda: EdgeEffects(TWO, on="my text"), ValueError, "need one word"),
    "attribution of what": (lambda: EdgeAttribution(TWO), TypeError, "need EdgeEffects"),
    "a way to integrate there is not": (
        lambda: EdgeAttribution(EdgeEffects(TWO), "weights"),
        ValueError,
        "integrated='weights'.*no, inputs, edges",
    ),
    "an interaction of one": (lambda: interaction(eight(), EdgeEffects(TWO), ["L0H0"]), ValueError, "pass another"),
    "a condition that is a path": (
        lambda: ConditionalEffects(EdgeEffects(TWO), "L0H0 -> L1H0.k -> logits")(eight()),
        ValueError,
        "takes single edges",
    ),
    "a circuit of another model": (
        lambda: faithfulness(eight(), EdgeEffects(TWO), Circuit.of(model(n_layers=3), "L0H0")),
        ValueError,
        "different shape",
    ),
    "a circuit that is a list": (lambda: faithfulness(eight(), EdgeEffects(TWO), []), TypeError, "the circuit is a list"),
    "a threshold that is none": (
        lambda: threshold(eight(), EdgeEffects(TWO, "zero")(eight()), math.nan),
        ValueError,
        "need a number of nats",
    ),
    "a score there is not": (
        lambda: ranked(eight(), EdgeEffects(TWO, "zero")(eight()), 3, variable="exact"),
        ValueError,
        "there is no number 'exact'",
    ),
    "edges without scores": (
        lambda: faithfulness_curve(eight(), EdgeEffects(TWO), {}),
        ValueError,
        "scores lack .* score every edge",
    ),
    "shares that fall": (
        lambda: faithfulness_curve(eight(), EdgeEffects(TWO), {}, shares=(1.0, 0.5)),
        ValueError,
        "growing numbers from 0 to 1",
    ),
    "float tokens": (lambda: model()(torch.rand(1, 8)), TypeError, "tokens have dtype torch.float32.*pass tokens.long()"),
    "boolean tokens": (lambda: model()(torch.ones(1, 8).bool()), TypeError, "dtype torch.bool"),
    "a list": (lambda: model()([1, 2, 3]), TypeError, "tokens are a list.*use torch.tensor"),
    "text": (lambda: model()("def f():"), TypeError, "tokens are a str.*encode"),
    "id too large": (lambda: model()(IDS + 40), ValueError, "token ids run from 40 to 47, the vocabulary is 0..39"),
    "negative id": (lambda: model()(IDS - 1), ValueError, "token ids run from -1"),
    "rank 3": (lambda: model()(IDS[None]), ValueError, r"shape \(1, 1, 8\).*needs \[batch, pos\]"),
    "empty batch": (lambda: model()(IDS[:0]), ValueError, r"shape \(0, 8\), which is empty"),
    "no positions": (lambda: model()(IDS[:, :0]), ValueError, "which is empty"),
    "too long": (
        lambda: model()(torch.zeros(1, 33).long()),
        ValueError,
        r"33 tokens, the model reads n_ctx = 32: pass tokens\[:, :32\]",
    ),
    "another device": (lambda: model()(on_meta()), ValueError, "tokens are on meta and the model on cpu: pass tokens.to"),
    "loss of one token": (lambda: model()(IDS[:, :1], return_type="loss"), ValueError, "at least 2 tokens"),
    "short text for detect": (lambda: detect(model(), tokens=IDS), ValueError, "8 tokens, detect needs at least 16"),
    "foreign text for detect": (
        lambda: detect(model(), tokens=torch.full((2, 20), 99)),
        ValueError,
        "run from 99 to 99, the vocabulary is 0..39",
    ),
    "short context": (lambda: detect(model(n_ctx=8)), ValueError, "n_ctx = 8 tokens, attention detectors need at least 16"),
    "few ids": (lambda: detect(model(d_vocab=20)), ValueError, "19 token ids are allowed and a sequence needs 31"),
    "foreign ids": (
        lambda: detect(model(), ids=tuple(range(1, 90))),
        ValueError,
        "ids run from 1 to 89, the vocabulary is 0..39",
    ),
    "no model": (lambda: detect("gpt2"), TypeError, "got str, need a hooked model"),
    "plain module": (lambda: detect(torch.nn.Linear(2, 2)), TypeError, "got Linear, need a hooked model.*from_transformer_lens"),
    "NaN weights": (lambda: detect(broken_model()), ValueError, "blocks.0.attn.W_K holds NaN or infinite weights"),
    "no predicted tokens": (lambda: CopyingScores(predicted=0), ValueError, "predicted=0: need a whole number of at least 1"),
    "copying into another vocabulary": (
        lambda: CopyingScores()(model(d_vocab_out=5)),
        ValueError,
        "reads 40 tokens and predicts 5",
    ),
    "copying in a short context": (lambda: CopyingScores()(model(n_ctx=8)), ValueError, "n_ctx = 8 tokens"),
    "a dictionary for n-grams": (lambda: PredictorLoss({}, {"a": IDS}), TypeError, "need the corpus' counts"),
    "a model for losses": (lambda: loss_pca(model()), TypeError, "pass what gather"),
    "losses of one checkpoint": (lambda: loss_pca(TokenLosses({"a": IDS})(model())), ValueError, "with its step axis"),
    "no tokens for positions": (lambda: PositionAblation({}), ValueError, "no tokens were given"),
    "kinds of another text": (
        lambda: FunctionProfile(IDS.repeat(16, 1), torch.zeros(16, 5).long()),
        ValueError,
        r"kinds are \(16, 5\), need one for each predicted token, \(16, 7\)",
    ),
    "unknown kinds": (
        lambda: FunctionProfile(IDS.repeat(16, 1), torch.full((16, 7), 9)),
        ValueError,
        "kinds run from 9 to 9, names has 7",
    ),
    "a profile of one example": (
        lambda: FunctionProfile(IDS, torch.zeros(1, 7).long()),
        ValueError,
        "needs 16 examples for its errors and 1 were given",
    ),
    "in-context ablation of one example": (
        lambda: InContextAblation(torch.zeros(1, 20).long()),
        ValueError,
        "one example has no standard error",
    ),
    "the cut in a short context": (lambda: InductionCut()(model(n_ctx=8)), ValueError, "n_ctx = 8 tokens"),
    "effects of no model": (lambda: circuits.head_effects("gpt2", IDS), TypeError, "got str, need a hooked model"),
    "effects of foreign tokens": (lambda: circuits.head_effects(model(), IDS + 40), ValueError, "token ids run from 40 to 47"),
    "functions of a model": (lambda: circuits.functions(model()), TypeError, "got HookedTransformer, need Checkpoints"),
    "one example": (lambda: AttentionScores(examples=1), ValueError, "examples=1.*need whole numbers of at least 2"),
    "examples in words": (lambda: detect(model(), examples="many"), ValueError, "examples='many', groups=8.*need whole numbers"),
    "scores, not patterns": (
        lambda: patterns.check_pattern(torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(0))),
        ValueError,
        r"pass cache\['pattern', layer\] \(after softmax\), not attention scores",
    ),
    "scores, not patterns, in a detector": (
        lambda: patterns.previous_token_score(
            torch.zeros(1, 2, 8, 8).masked_fill(torch.ones(8, 8).bool().triu(1), -torch.inf), IDS
        ),
        ValueError,
        "not attention scores",
    ),
    "scores, not patterns, in entropy": (
        lambda: patterns.attention_entropy(torch.randn(1, 2, 8, 8)),
        ValueError,
        "not attention scores",
    ),
    "scores, not patterns, at a lag": (
        lambda: patterns.fixed_lag_score(torch.randn(2, 2, 8, 8)),
        ValueError,
        "not attention scores",
    ),
    "tokens of another length": (
        lambda: patterns.induction_score(patterns.uniform_pattern(8), torch.ones(1, 9).long()),
        ValueError,
        "take both from the same batch",
    ),
    "bfloat16 weights": (
        lambda: detect(model().bfloat16()),
        ValueError,
        r"torch\.bfloat16, measures need float32.*model\.float\(\)",
    ),
    "ids twice": (lambda: detect(model(), ids=[5] * 40), ValueError, "ids name a token twice, or BOS"),
    "float ids": (lambda: repeated_random_tokens(torch.rand(90), n=3), TypeError, "ids have dtype float32, need integer"),
    "one head's spread": (
        lambda: detect(model(n_heads=1, d_head=8), null_seeds=1),
        ValueError,
        "has no spread: use null_seeds=2",
    ),
    "more groups than lags": (
        lambda: AttentionScores(groups=40, examples=40)(model()),
        ValueError,
        "groups=40, and sequences of 32",
    ),
    "repeat of one": (lambda: RepeatLoss(n=1), ValueError, "n=1, examples=64: need whole numbers of at least 2"),
    "a model for scores": (lambda: classify(model()), TypeError, "got a HookedTransformer; pass what"),
    "states in a list": (lambda: Checkpoints.from_states([{}], model().cfg), TypeError, "states is a list, need a dictionary"),
    "no config": (lambda: HookedTransformer(None), TypeError, "cfg is a NoneType, need a HookedTransformerConfig"),
    "head of letters": (lambda: Head.parse(("a", "b")), TypeError, "does not name a head"),
    "a name for a tokenizer": (
        lambda: circuits.view(model(), IDS[0], "L0H0", tokenizer="gpt2"),
        TypeError,
        "need an object with decode",
    ),
    "fewer outputs than ids": (
        lambda: model(d_vocab_out=5)(IDS, return_type="loss"),
        ValueError,
        "token 7 has no logit, the model has d_vocab_out = 5",
    ),
    "a preset's name": (lambda: circuits.train("stdlib-2l", "/no/where"), TypeError, "config is a str, need a TrainConfig"),
    "a learning rate that is none": (
        lambda: circuits.preset("stdlib-2l", lr=math.nan),
        ValueError,
        "lr is nan; it must be positive",
    ),
    "backwards warm-up": (lambda: circuits.preset("stdlib-2l", warmup=-5), ValueError, "warmup is -5; it must not be negative"),
    "the class of a measure": (
        lambda: circuits.sweep(RepeatLoss, Checkpoints.from_states({0: model().state_dict()}, model().cfg), store="x"),
        TypeError,
        "need a measure",
    ),
    "pattern without head axis": (
        lambda: patterns.check_pattern(torch.ones(2, 5, 5) / 5),
        ValueError,
        r"need \[example, head, query, key\]",
    ),
    "no repeat": (
        lambda: patterns.duplicate_token_score(patterns.uniform_pattern(8), IDS),
        ValueError,
        "no position at which duplicate-token attention has a target",
    ),
    "head of another model": (
        lambda: Head.parse("L9H9", uniform_model().cfg),
        ValueError,
        r"there is no head L9H9: the model has layers 0..0 with heads 0..1",
    ),
    "not a head": (lambda: Head.parse("head three"), ValueError, "'head three' does not name a head; write it as 'L0H3'"),
    "not a head at all": (lambda: Head.parse(3.5), TypeError, "3.5 does not name a head"),  # type: ignore[arg-type]
    "no corpora": (lambda: LossCurves({}), ValueError, "no tokens were given"),
    "corpora of two lengths": (
        lambda: LossCurves({"a": torch.zeros(1, 20).long(), "b": torch.zeros(1, 30).long()}),
        ValueError,
        r"sequences have \[20, 30\] tokens; cut all corpora to one length",
    ),
    "corpus too long": (
        lambda: LossCurves({"a": torch.zeros(1, 40).long()})(model()),
        ValueError,
        "40 tokens, the model reads n_ctx = 32",
    ),
    "repeat too long": (
        lambda: RepeatLoss(n=50)(model()),
        ValueError,
        "n = 50 makes 101 tokens, the model reads n_ctx = 32: use a smaller n",
    ),
    "not detector scores": (
        lambda: classify(LossCurves({"a": torch.zeros(2, 20).long()})(model())),
        ValueError,
        "pass what circuits.detect",
    ),
    "unreadable run": (lambda: Checkpoints.from_dir("/no/such/run"), ValueError, "/no/such/run"),
    "unknown config field": (
        lambda: HookedTransformer(CFG | {"n_key_value_heads": 1}),
        ValueError,
        "n_key_value_heads is not a field here",
    ),
    "size of zero": (lambda: HookedTransformer(CFG | {"n_heads": 0}), ValueError, "n_heads is 0; it must be a positive integer"),
    "MLP without activation": (
        lambda: HookedTransformerConfig.parse(CFG | {"attn_only": False}),
        ValueError,
        "a model with MLPs needs act_fn",
    ),
    "decoy beyond the context": (lambda: planted_model(lag=500), ValueError, "lag=500.*need 2 <= lag < n_ctx"),
    "unknown public name": (lambda: circuits.induction_heads, AttributeError, "induction_heads"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_call_gets_one_sentence(case: str):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 400


def test_there_are_at_least_twenty_five_cases():
    assert len(CASES) >= 25
