"""Untrained models: what the null is made of, and that no role is found where nothing was learned."""

import numpy as np
import pytest

from circuits.detectors.attention import AttentionScores
from circuits.detectors.classify import NO_ROLE, classify
from circuits.models.hooked import HookedTransformer
from circuits.models.planted import planted_model

CFG = {
    "n_layers": 2,
    "d_model": 32,
    "n_heads": 8,
    "d_head": 8,
    "n_ctx": 64,
    "d_vocab": 100,
    "attn_only": True,
    "positional_embedding_type": "shortformer",
}


@pytest.mark.science
def test_untrained_models_have_no_roles_and_lie_inside_their_null():
    """Of 48 heads of 3 untrained models none gets a role, and z scores look like draws from the null itself."""
    measure = AttentionScores(examples=8, groups=4, null_seeds=4)
    z = []
    for seed in range(3):
        found = measure(HookedTransformer(CFG | {"seed": seed}))
        assert set(classify(found).role.values.flatten()) == {NO_ROLE}
        z.append(found.z.values)
    spread = np.stack(z).reshape(-1, found.sizes["detector"])  # [48, detector]
    # 48 draws of a z against a null of 32 heads a layer: the mean has sd .23 (heads and null together), the sd stays near 1.
    assert (np.abs(spread.mean(0)) < 5 * 0.23).all()
    assert (spread.std(0) > 0.4).all() and (spread.std(0) < 2.5).all()


@pytest.mark.science
def test_the_null_does_not_depend_on_the_weights_measured():
    measure = AttentionScores(examples=4, groups=2, null_seeds=2)
    first, second = (measure(HookedTransformer(CFG | {"seed": 5})) for _ in range(2))
    louder = HookedTransformer(CFG | {"seed": 5})
    louder.blocks[0].attn.W_Q.data.mul_(30.0)
    third = measure(louder)
    assert np.array_equal(first.null_mean, second.null_mean) and np.array_equal(first.null_mean, third.null_mean)
    assert not np.array_equal(first.value, third.value)


@pytest.mark.science
def test_a_role_needs_support_certainty_and_the_null():
    scores = AttentionScores(examples=4, groups=2, null_seeds=0)(planted_model())
    assert str(classify(scores).role.sel(layer=0, head=0).values) == "previous token"
    uncertain = scores.copy(deep=True)
    uncertain["stderr"][:] = 0.6  # two standard errors reach from one to chance
    assert set(classify(uncertain).role.values.flatten()) == {NO_ROLE}
    ordinary = scores.copy(deep=True)
    ordinary["z"][:] = 1.0  # untrained heads do as well
    assert set(classify(ordinary).role.values.flatten()) == {NO_ROLE}
    assert str(classify(scores, threshold=0.999).role.sel(layer=1, head=1).values) == NO_ROLE
    with pytest.raises(ValueError, match=r"threshold is 2\.0"):
        classify(scores, threshold=2.0)


@pytest.mark.science
def test_margin_tells_how_clear_a_role_is():
    scores = AttentionScores(examples=4, groups=2, null_seeds=0)(planted_model())
    torn = scores.copy(deep=True)
    torn["value"].loc[{"layer": 0, "head": 0, "detector": "current_token"}] = 0.95
    clear, close = classify(scores).margin.sel(layer=0, head=0), classify(torn).margin.sel(layer=0, head=0)
    assert float(clear) > 0.9 and float(close) < 0.1
