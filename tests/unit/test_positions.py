"""What positions bring, on models where it is known."""

import math

import numpy as np
import pytest
import torch

from circuits.detectors.in_context import loss_per_token
from circuits.detectors.positions import KINDS, PositionAblation
from circuits.models.hooked import HookedTransformer
from circuits.models.planted import uniform_model

CFG = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 16, "d_vocab": 20, "attn_only": True}
TEXT = torch.randint(0, 20, (5, 12), generator=torch.Generator().manual_seed(0))
MEASURE = PositionAblation({"text": TEXT, "more": TEXT[:3].flip(1)})


@pytest.mark.parametrize("kind", ["standard", "shortformer"])
def test_ablation_is_the_model_with_other_position_weights(kind: str):
    cfg = CFG | {"positional_embedding_type": kind, "initializer_range": 0.3}
    found = MEASURE(HookedTransformer(cfg))
    assert str(found.state.values) == "ok" and found.kind.values.tolist() == list(KINDS)
    for corpus, tokens in MEASURE.tokens.items():
        model = HookedTransformer(cfg)
        clean = loss_per_token(model, tokens).mean(1)
        assert float(found.loss.sel(corpus=corpus)) == pytest.approx(float(clean.mean()), abs=1e-6)
        with torch.no_grad():
            for name, given in (("mean", model.W_pos[:12].mean(0)), ("zero", torch.zeros(8))):
                model.pos_embed.W_pos[:] = given
                cost = loss_per_token(model, tokens).mean(1) - clean
                here = found.sel(corpus=corpus, kind=name)
                assert float(here.value) == pytest.approx(float(cost.mean()), abs=1e-6)
                assert float(here.stderr) == pytest.approx(float(cost.std() / math.sqrt(len(tokens))), abs=1e-6)
                assert abs(float(here.value)) > 1e-3


def test_a_model_that_knows_the_token_by_its_place_loses_exactly_that():
    """Position i says which token comes next and nothing else is known: taken out, every token costs log 20."""
    model = HookedTransformer(CFG | {"d_model": 20, "normalization_type": None, "positional_embedding_type": "standard"})
    row = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:12]
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.W_pos[range(11), range(11)] = 1.0
        model.W_U[range(11), row[1:]] = 5.0
    found = PositionAblation({"places": row.expand(2, -1)})(model).isel(corpus=0)
    known = math.log(1 + 19 * math.exp(-5))
    assert float(found.value.sel(kind="zero")) == pytest.approx(math.log(20) - known, abs=1e-5)
    # The mean embedding raises the eleven tokens that come by 5/12 each: as many nats better than knowing nothing of them.
    spread = math.log(11 * math.exp(5 / 12) + 9) - 5 / 12
    assert float(found.value.sel(kind="mean")) == pytest.approx(spread - known, abs=1e-5)


@pytest.mark.parametrize("kind", ["rotary", "none"])
def test_a_model_without_position_embeddings_says_so(kind: str):
    rotary = {"rotary_dim": 4} if kind == "rotary" else {}
    found = MEASURE(HookedTransformer(CFG | {"positional_embedding_type": kind} | rotary))
    assert str(found.state.values) == "no position embedding"
    assert found.value.isnull().all() and found.stderr.isnull().all() and found.loss.notnull().all()


def test_a_model_without_positions_in_use_pays_nothing():
    found = PositionAblation({"text": TEXT})(uniform_model(d_vocab=20, n_ctx=16))
    assert (found.value == 0).all() and float(found.chance) == 0.0


def test_two_calls_agree_and_precision_hardly_matters():
    model = HookedTransformer(CFG)
    found = MEASURE(model)
    assert found.identical(MEASURE(HookedTransformer(CFG)))
    assert np.allclose(MEASURE(model.double()).value, found.value, atol=1e-5)
    assert MEASURE.spec() != PositionAblation({"text": TEXT}).spec()


@pytest.mark.usefixtures("unchecked")
def test_wrong_calls_get_a_sentence():
    with pytest.raises(ValueError, match="no tokens were given; pass"):
        PositionAblation({})
    with pytest.raises(ValueError, match="sequences have 1 tokens, position ablation on 'a' needs at least 2"):
        PositionAblation({"a": TEXT[:, :1]})
    with pytest.raises(ValueError, match=r"the vocabulary is 0\.\.19"):
        PositionAblation({"a": TEXT + 10})(HookedTransformer(CFG))
    with pytest.raises(ValueError, match="20 tokens, the model reads n_ctx = 16"):
        PositionAblation({"a": TEXT.repeat(1, 2)[:, :20]})(HookedTransformer(CFG))
