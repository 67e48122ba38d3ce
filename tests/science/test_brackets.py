"""The bracket detector finds the planted closer and only it; nested pairs need both layers where that was planted."""

import math

import numpy as np
import pytest
import torch

from circuits.data.bracket_set import bracket_set
from circuits.detectors.brackets import BracketScores
from circuits.detectors.nested_brackets import NestedBrackets, cut_effects, without_composition, without_later_heads
from circuits.models.hooked import HookedTransformer, next_token_loss
from circuits.models.planted import bracket_closer, planted_loss, uniform_model
from circuits.models.protocol import model_hash

PAIRS = [(1, 2), (3, 4), (5, 6)]
TOKENS = bracket_set(PAIRS, range(10, 60), examples=48, length=64, seed=3)
CFG = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "n_ctx": 64, "d_vocab": 101, "attn_only": True, "seed": 1}
CFG |= {"positional_embedding_type": "shortformer"}


@pytest.fixture(scope="module")
def nested():
    return BracketScores(TOKENS, null_seeds=0)(bracket_closer(PAIRS))


@pytest.fixture(scope="module")
def last():
    return BracketScores(TOKENS, null_seeds=0)(bracket_closer(PAIRS, knows="last"))


@pytest.mark.science
def test_the_planted_closer_attends_to_openers_and_no_other_head_does(nested):
    value = nested.value.sel(query="before").values
    assert value[1, 0] == pytest.approx(1.0, abs=1e-9)  # all, flat and nested
    others = np.delete(value.reshape(-1, 3), 3, axis=0)
    assert np.abs(others).max() < 0.02
    assert np.abs(nested.value.sel(query="at").values).max() < 0.02  # behind its closer a pair is closed: it looks further out
    assert nested.on_opener.sel(query="before").values[1, 0] == pytest.approx(1.0) and float(nested.chance) == 0.0


@pytest.mark.science
def test_its_effect_is_the_closed_form_and_silent_heads_have_none(nested):
    """Closers gain log V - loss(g); tokens inside brackets lose by the wrong closer raised, log V - (loss(g) + g): together g."""
    assert nested.effect.values[1, 0] == pytest.approx(10.0, abs=1e-6)
    assert nested.effect_on_closer.values[1, 0] == pytest.approx(math.log(101) - planted_loss(10.0, 101), abs=1e-6)
    assert nested.effect_on_control.values[1, 0] == pytest.approx(math.log(101) - planted_loss(10.0, 101) - 10, abs=1e-6)
    assert np.abs(nested.effect.values[[0, 1, 1], [2, 1, 2]]).max() < 1e-9
    depth = nested.effect.sel(layer=0, condition="nested").values[:2]
    assert (depth > 5 * nested.effect_stderr.sel(layer=0, condition="nested").values[:2]).all() and (depth > 2).all()


@pytest.mark.science
def test_a_head_that_knows_the_last_bracket_only_passes_on_flat_pairs_alone(last):
    value = last.value.sel(layer=1, head=0, query="before")
    right = math.log(101) - planted_loss(10.0, 101)
    tolerance = 2 * math.exp(-12)  # what neighbouring brackets leave to each other
    assert float(value.sel(condition="flat")) == pytest.approx(1.0, abs=tolerance)
    assert float(value.sel(condition="nested")) == pytest.approx(0.0, abs=tolerance)
    assert last.effect_on_closer.values[1, 0].tolist()[1:] == pytest.approx([right, 0.0], abs=100 * tolerance)


@pytest.mark.science
def test_uniform_attention_is_at_chance_and_a_liking_for_openers_earns_nothing():
    found = BracketScores(TOKENS, null_seeds=0)(uniform_model(n_ctx=64))
    assert np.abs(found.value.values).max() < 1e-6 and np.abs(found.effect.values).max() < 1e-6
    model = uniform_model(n_ctx=64, n_heads=1)
    with torch.no_grad():  # attends to openers of every type alike
        model.W_E[[1, 3, 5], 0] = 1.0
        model.blocks[0].attn.b_Q[0, 0] = 1.0
        model.blocks[0].attn.W_K[0, 0, 0] = 20.0
    found = BracketScores(TOKENS, null_seeds=0)(model)
    assert float(found.on_opener.sel(query="before", condition="all").squeeze()) > 0.1
    assert np.abs(found.value.values).max() < 1e-6


@pytest.mark.science
def test_untrained_models_are_the_null_and_pass_it():
    measure = BracketScores(TOKENS, null_seeds=3)
    found = measure(HookedTransformer(CFG))
    assert found.null_sd.shape == found.value.shape and (found.null_sd > 0).all() and (found.effect_null_sd > 0).all()
    assert np.abs(found.z.sel(condition="all").values).max() < 5 and np.abs(found.value.values).max() < 0.05
    assert found.identical(measure(HookedTransformer(CFG)))


@pytest.mark.science
def test_nested_pairs_need_both_layers_where_that_was_planted():
    found = NestedBrackets(TOKENS, null_seeds=2)(bracket_closer(PAIRS))
    assert str(found.state.values) == "ok"
    for cut in ("composition", "later_heads"):
        assert found.value.sel(cut=cut, condition="nested") > 5 * found.stderr.sel(cut=cut, condition="nested") + 1.0
        assert found.z.sel(cut=cut, condition="nested") > 5
    # without depth the head falls back on the last opener, which is right for flat pairs
    assert np.abs(float(found.value.sel(cut="composition", condition="flat"))) < 0.01
    contrast = found.sel(cut="composition")
    assert contrast.contrast > 5 * contrast.contrast_stderr and contrast.contrast > 4
    assert found.value.sel(cut="later_heads").values == pytest.approx(10.0, abs=1e-6)


@pytest.mark.science
def test_they_do_not_where_the_head_knows_the_last_bracket_only():
    found = NestedBrackets(TOKENS, null_seeds=0)(bracket_closer(PAIRS, knows="last"))
    assert np.abs(found.value.sel(cut="composition").values).max() < 1e-9
    assert abs(float(found.contrast.sel(cut="composition"))) < 1e-9
    assert float(found.on_closer.sel(cut="later_heads", condition="nested")) == pytest.approx(0.0, abs=1e-3)
    assert float(found.on_closer.sel(cut="later_heads", condition="flat")) > 4


@pytest.mark.science
def test_one_layer_cannot_be_asked():
    found = NestedBrackets(TOKENS)(HookedTransformer(CFG | {"n_layers": 1}))
    assert (
        str(found.state.values) == "untestable" and np.isnan(found.value.values).all() and np.isnan(found.contrast.values).all()
    )


@pytest.mark.science
@pytest.mark.parametrize("changes", [{}, {"n_layers": 3}, {"attn_only": False, "act_fn": "gelu"}])
def test_the_cuts_are_what_they_say(changes):
    """By hand: the stream is rebuilt layer by layer, and attention behind layer 0 reads it without what layer 0's heads wrote."""
    model = HookedTransformer(CFG | changes).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.b_O.normal_(generator=torch.Generator().manual_seed(0))
    tokens = TOKENS.tokens[:2]
    with torch.no_grad():
        resid, pos = model.embed(tokens), model.pos_embed(tokens)
        wrote = None
        for block in model.blocks:
            read = block.ln1(resid if wrote is None else resid - wrote)
            attention = block.attn(read + pos, read + pos, read)
            if wrote is None:
                wrote = attention - block.attn.b_O
            resid = resid + attention
            if not model.cfg.attn_only:
                resid = resid + block.mlp(block.ln2(resid))
        by_hand = model.unembed(model.ln_final(resid))
        with without_composition(model):
            assert torch.allclose(model(tokens), by_hand, atol=1e-5)
        clean = model(tokens)
        with without_later_heads(model):
            later = model(tokens)
    assert (by_hand - clean).abs().max() > 1e-3 < (later - clean).abs().max()
    found = cut_effects(model, tokens)
    expected = [
        next_token_loss(x, tokens, per_token=True) - next_token_loss(clean, tokens, per_token=True) for x in (by_hand, later)
    ]
    assert np.allclose(found, torch.stack(expected).numpy(), atol=1e-5)


@pytest.mark.parametrize("measure", [BracketScores(TOKENS, null_seeds=0), NestedBrackets(TOKENS, null_seeds=0)])
def test_a_model_is_left_as_found(measure):
    model = HookedTransformer(CFG).train()
    before = model_hash(model)
    found = measure(model)
    assert model.training and model_hash(model) == before and not any(h.fwd_hooks for h in model.hook_dict.values())
    assert found.attrs["measure"] == measure.name and all(p.requires_grad for p in model.parameters())
    assert set(found.data_vars) & {"step", "status", "reason", "model_hash"} == set()
