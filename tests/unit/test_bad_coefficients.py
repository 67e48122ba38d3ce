"""Wrong calls of local learning coefficients: one sentence each, before any work."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import circuits
from circuits import Checkpoints, HookedTransformer, SamplerConfig
from circuits.complexity.config import sampler_config
from circuits.complexity.nulls import ComplexityNulls
from circuits.complexity.rllc import LLC, RLLC

CFG: dict[str, Any] = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 12, "d_vocab": 11, "attn_only": True}
TOKENS = torch.randint(11, (8, 10), generator=torch.Generator().manual_seed(0))
QUICK = sampler_config("laptop", draws=4, batch=4)


def model(**fields: Any) -> HookedTransformer:
    return HookedTransformer(CFG | fields).eval()


def broken() -> HookedTransformer:
    made = model()
    with torch.no_grad():
        made.blocks[1].attn.W_O[0, 0, 0] = torch.inf
    return made


def run(**fields: Any) -> Checkpoints:
    return Checkpoints.from_states({0: model(**fields).state_dict()}, model(**fields).cfg, name="bare")


CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "localisation alone diverges": (lambda: sampler_config("paper", epsilon=0.02), ValueError, r"epsilon \* gamma is 4"),
    "negative step size": (lambda: sampler_config("paper", epsilon=-1.0), ValueError, "epsilon is -1.0; it must be a number"),
    "infinite gamma": (lambda: sampler_config("paper", gamma=float("inf")), ValueError, "gamma is inf"),
    "no temperature": (lambda: sampler_config("paper", nbeta=0.0), ValueError, "nbeta is 0.0; it must be positive"),
    "one draw": (lambda: sampler_config("paper", draws=1), ValueError, "draws is 1; it must be at least 2"),
    "three superchains of four": (lambda: sampler_config("paper", superchains=3), ValueError, "must divide the 4 chains"),
    "gradient of more than the batch": (lambda: sampler_config("paper", gradient_batch=40), ValueError, "must be 1..32"),
    "unknown preset": (lambda: sampler_config("desktop"), ValueError, "choose one of paper, laptop, laptop-whole"),
    "settings of another kind": (lambda: sampler_config(3), TypeError, "sampler settings are a int"),  # type: ignore[arg-type]
    "unknown setting": (lambda: circuits.rllc(model(), TOKENS, learning_rate=1.0), ValueError, "learning_rate is not a field"),
    "unknown sampler": (lambda: SamplerConfig(sampler="hmc"), ValueError, "hmc"),  # type: ignore[arg-type]
    "too few sequences": (lambda: RLLC(TOKENS)(model()), ValueError, "8 sequences and a batch is 32: give more"),
    "tokens out of range": (lambda: RLLC(TOKENS + 9, QUICK)(model()), ValueError, "the vocabulary is 0..10"),
    "tokens as text": (lambda: circuits.rllc(model(), "def f():", config=QUICK), TypeError, "tokens are a str"),  # type: ignore[arg-type]
    "sequences of one token": (lambda: RLLC(TOKENS[:, :1], QUICK)(model()), ValueError, "needs at least 2"),
    "sequences too long": (lambda: RLLC(TOKENS.repeat(1, 2), QUICK)(model()), ValueError, "the model reads n_ctx = 12"),
    "unknown head": (lambda: circuits.rllc(model(), TOKENS, heads=["L0H7"], config=QUICK), ValueError, "there is no head L0H7"),
    "no heads": (lambda: circuits.rllc(model(), TOKENS, heads=[], config=QUICK), ValueError, "heads is empty; name some"),
    "infinite weights": (lambda: RLLC(TOKENS, QUICK)(broken()), ValueError, "blocks.1.attn.W_O holds NaN or infinite weights"),
    "training mode": (lambda: RLLC(TOKENS, QUICK)(model().train()), ValueError, r"call model.eval\(\) first"),
    "not a model": (lambda: RLLC(TOKENS, QUICK)(torch.nn.Linear(2, 2)), TypeError, "got Linear, need a hooked model"),
    "unknown weights": (lambda: circuits.llc(model(), TOKENS, weights="mlp", config=QUICK), ValueError, "'mlp' names no weights"),
    "unknown layer": (lambda: circuits.llc(model(), TOKENS, weights="L5", config=QUICK), ValueError, "there is no layer 5"),
    "weights named twice": (
        lambda: LLC(TOKENS, QUICK, weights=["L0", "L0H1"])(model()), ValueError, "W_Q is named twice .* name every weight once",
    ),
    "no weights": (lambda: LLC(TOKENS, QUICK, weights=[])(model()), ValueError, "no weights were named"),
    "a reference with other tokens": (
        lambda: RLLC(TOKENS, QUICK, reference=model(d_vocab=30))(model()), ValueError, "predicts 30 tokens and the model 11",
    ),
    "a run as the reference": (lambda: RLLC(TOKENS, QUICK, reference=run()), TypeError, "got Checkpoints, need a hooked model"),
    "a text called nothing": (lambda: RLLC(TOKENS, QUICK, on="my text"), ValueError, "need a word that names the text"),
    "a switch that is none": (lambda: RLLC(TOKENS, QUICK, keep_tokens=1), ValueError, "keep_tokens=1"),  # type: ignore[arg-type]
    "a model alone": (lambda: circuits.rllc(model()), ValueError, "a model alone has no text"),
    "a run without text": (lambda: circuits.rllc(run()), ValueError, "bare ships no training text: give tokens"),
    "nothing to measure": (lambda: circuits.coefficients(run()), ValueError, "bare ships no text to measure coefficients on"),
    "an unknown part": (lambda: circuits.coefficients(run(), ["mix"]), ValueError, "bare has no 'mix' to measure"),
    "not a run": (lambda: circuits.coefficients(model()), TypeError, "need Checkpoints"),  # type: ignore[arg-type]
    "heads by number": (lambda: circuits.rllc(model(), TOKENS, heads=0, config=QUICK), TypeError, "0 does not name a head"),
    "tokens in a list": (lambda: circuits.rllc(run(), TOKENS.tolist(), config=QUICK), TypeError, "tokens are a list; need"),
    "an unknown head of a run": (
        lambda: circuits.rllc(run(), TOKENS, heads="L5H0", config=QUICK), ValueError, "^there is no head L5H0",
    ),
    "weights a run does not have": (lambda: circuits.llc(run(), TOKENS, weights="L5", config=QUICK), ValueError, "no layer 5"),
    "too few sequences for a run": (lambda: circuits.rllc(run(), TOKENS), ValueError, "^there are 8 sequences and a batch is 32"),
    "a model as a run's reference": (
        lambda: circuits.coefficients(run(), reference=model()), TypeError, "got HookedTransformer, need Checkpoints",  # type: ignore[arg-type]
    ),
    "one part as text": (lambda: circuits.coefficients(run(), "mix"), ValueError, "bare has no 'mix' to measure"),
    "half a worker": (
        lambda: circuits.rllc(run(), TOKENS, config=QUICK, workers=0.5), ValueError, "workers is 0.5; give 0",  # type: ignore[arg-type]
    ),
    "settings built by hand": (lambda: SamplerConfig(epsilon=-1.0), ValueError, "^sampler settings: epsilon is -1.0"),
    "a long step where gradients vanish": (
        lambda: sampler_config("paper", sampler="rmsprop_sgld", epsilon=2.5e-3), ValueError, "take epsilon below 0.002",
    ),
    "gamma by the size of nothing": (
        lambda: sampler_config("paper", gamma_at_rms=0.1).gamma_for(0.0), ValueError, "all of these are 0: give gamma alone",
    ),
    "one probe": (lambda: ComplexityNulls(TOKENS, QUICK, probes=1), ValueError, "probes=1: need a whole number of at least 2"),
}  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", CASES)
def test_a_wrong_call_gets_one_sentence(case: str) -> None:
    call, error, message = CASES[case]
    with pytest.raises(error, match=message) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 400
