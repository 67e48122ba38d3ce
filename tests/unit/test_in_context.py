"""Losses along the context and over repeats, by models whose loss is known."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from circuits.data.tokens import repeated_random_tokens, shuffle_second_copy
from circuits.detectors.in_context import LossCurves, RepeatLoss, in_context_learning_score, loss_per_token
from circuits.models.hooked import HookedTransformer
from circuits.models.planted import planted_model, uniform_model


def test_uniform_logits_cost_log_vocabulary_everywhere():
    tokens = torch.randint(0, 101, (5, 32), generator=torch.Generator().manual_seed(0))
    found = LossCurves({"any": tokens})(uniform_model(d_vocab=101))
    assert np.allclose(found.value, math.log(101)) and np.allclose(found.loss, float(found.chance))
    assert np.allclose(found.stderr, 0, atol=1e-6) and np.allclose(found.in_context_learning_score, 0, atol=1e-6)
    assert found.pos.values.tolist() == list(range(1, 32))


def test_loss_per_token_is_the_literal_cross_entropy():
    cfg = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 16, "d_vocab": 20, "attn_only": True}
    model = HookedTransformer(cfg)
    tokens = torch.randint(0, 20, (3, 16), generator=torch.Generator().manual_seed(0))
    losses = loss_per_token(model, tokens)
    logits = model.eval()(tokens)
    for e, t in ((0, 1), (1, 7), (2, 15)):
        probability = logits[e, t - 1].softmax(-1)[tokens[e, t]]
        assert losses[e, t - 1].item() == pytest.approx(-math.log(probability.item()), abs=1e-5)


def test_the_in_context_score_is_late_minus_early():
    losses = torch.full((2, 63), 5.0)  # context of 64: early is [4, 8), late is [48, 64)
    losses[0, 3:7] = 4.0
    losses[0, 47:] = 1.5
    assert in_context_learning_score(losses).tolist() == [-2.5, 0.0]


def test_the_literal_score_is_that_of_two_indices_and_missing_in_short_contexts():
    tokens = torch.randint(0, 7, (3, 502), generator=torch.Generator().manual_seed(0))
    cfg = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 502, "d_vocab": 7, "attn_only": True}
    model = HookedTransformer(cfg)
    found = LossCurves({"any": tokens})(model)
    here = found.sel(corpus="any")
    assert float(here.loss_500_minus_50) == pytest.approx(float(here.value.sel(pos=500) - here.value.sel(pos=50)), abs=1e-6)
    assert float(here.loss_500_minus_50_stderr) > 0
    longest = LossCurves({"any": tokens[:, :501]})(model)  # its last index is 500
    assert longest.loss_500_minus_50.equals(found.loss_500_minus_50)
    assert LossCurves({"any": tokens[:, :500]})(model).loss_500_minus_50.isnull().all()


@pytest.mark.science
def test_a_planted_induction_circuit_gains_from_exact_repeats_only():
    model = planted_model()
    with torch.no_grad():
        model.W_U.mul_(8.0)  # sharpen the copies: the planted OV writes a logit of 1
    found = RepeatLoss(n=25, examples=16)(model)
    assert found.value > 20 * found.stderr and found.value > 1.0
    # Shuffled, the circuit is right where a pair of neighbours survived by chance. Elsewhere it copies a wrong token: of the
    # two logits of 8, the current token's and the copied one's, neither is the target's, which costs 8 nats more.
    repeats = repeated_random_tokens(101, n=25, examples=16)
    survived = [len(set(pairwise(row[1:26])) & set(pairwise(row[26:51]))) / 24 for row in shuffle_second_copy(repeats).tolist()]
    assert float(found.drop_shuffled) == pytest.approx(float(found.drop_exact) - 8 * (1 - np.mean(survived)), abs=0.05)
    untrained = RepeatLoss(n=25, examples=16)(uniform_model())
    assert untrained.value == 0.0


def test_repeat_loss_leaves_out_the_first_token_of_each_copy():
    """A model that is right exactly on the second copy's tokens 2..n gains log V on each of them, and nothing is diluted."""
    measure = RepeatLoss(n=5, examples=2)
    losses = torch.ones(2, 10) * 3
    losses[:, 6:10] = 0.0  # predictions of tokens 7..10, the second copy is tokens 6..10
    assert measure._drop(losses).tolist() == [3.0, 3.0]


def test_repeated_tokens_of_the_measure_depend_on_its_ids():
    some = RepeatLoss(n=5, ids=tuple(range(1, 30)))
    assert some.spec() != RepeatLoss(n=5).spec()
    assert repeated_random_tokens(np.arange(1, 30), n=5).tokens.max() < 30
