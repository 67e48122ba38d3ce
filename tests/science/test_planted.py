"""Every detector finds its planted head and only it; noise takes the finding away; a decoy is not called induction."""

import numpy as np
import pytest
import xarray as xr

from circuits.detectors.attention import DETECTORS, AttentionScores
from circuits.detectors.classify import NO_ROLE, classify
from circuits.models.heads import Head
from circuits.models.planted import PLANTED, planted_model, uniform_model

MEASURE = AttentionScores(examples=8, null_seeds=0)


@pytest.fixture(scope="module")
def scores() -> xr.Dataset:
    return MEASURE(planted_model())


def auc(values: np.ndarray, head: Head) -> float:
    """Area under the ROC curve for one positive: the share of other heads below it, ties half."""
    positive = values[head.layer, head.head]
    others = np.delete(values.flatten(), head.layer * values.shape[1] + head.head)
    return float(np.mean((others < positive) + 0.5 * (others == positive)))


@pytest.mark.science
@pytest.mark.parametrize("detector", PLANTED)
def test_each_detector_finds_its_head_and_only_it(detector: str, scores: xr.Dataset):
    values = scores.value.sel(detector=detector).values
    head = PLANTED[detector]
    assert values[head.layer, head.head] == pytest.approx(1.0, abs=1e-5)
    assert auc(values, head) == 1.0
    others = np.delete(values.flatten(), head.layer * values.shape[1] + head.head)
    assert others.max() < 0.1


@pytest.mark.science
def test_uniform_attention_scores_exactly_its_stated_chance():
    found = MEASURE(uniform_model())
    assert np.abs(found.value - found.chance).max() < 1e-6


@pytest.mark.science
def test_the_finding_fades_as_noise_grows():
    few = AttentionScores(examples=4, groups=4, null_seeds=0)
    noises = (0.0, 0.1, 0.2, 0.4)
    values = xr.concat([few(planted_model(noise=noise)).value for noise in noises], dim="noise")
    for detector in ("induction", "previous_token"):
        head = PLANTED[detector]
        curve = values.sel(detector=detector).values
        heights = curve[:, head.layer, head.head]
        assert heights.tolist() == sorted(heights, reverse=True)
        assert heights[0] == pytest.approx(1.0, abs=1e-5) and heights[-1] < 0.2
        assert auc(curve[0], head) == 1.0


@pytest.mark.science
@pytest.mark.parametrize(("lag", "fooled"), [(24, "prefix_matching"), (49, "induction_stripe")])
def test_a_head_that_looks_back_a_fixed_distance_is_positional_and_not_induction(lag: int, fooled: str):
    scores = MEASURE(planted_model(lag=lag))
    decoy = scores.sel(layer=0, head=4)
    assert decoy.value.sel(detector=fooled) == pytest.approx(1.0, abs=1e-5)
    assert decoy.value.sel(detector="induction") <= 1 / MEASURE.groups + 0.05
    roles = classify(scores).role
    assert str(roles.sel(layer=0, head=4).values) == "positional"
    assert str(roles.sel(layer=1, head=0).values) == "induction"


@pytest.mark.science
def test_roles_of_the_planted_heads(scores: xr.Dataset):
    roles = classify(scores).role.values.tolist()
    assert roles == [
        ["previous token", "duplicate token", "current token", "first token", "positional", NO_ROLE],
        ["induction"] + [NO_ROLE] * 5,
    ]


@pytest.mark.science
def test_shuffling_the_second_copy_takes_the_induction_score_to_chance():
    """The control: the same tokens in another order hold no stripe for a true induction head to follow."""
    from circuits.data.tokens import repeated_random_tokens, shuffle_second_copy
    from circuits.detectors.attention import attention_scores
    from circuits.models.patterns import attention_on, induction_mask

    repeats = repeated_random_tokens(101, n=50, examples=8)
    stripe = induction_mask(repeats.tokens)
    model = planted_model()
    kept = {}
    for name, tokens in (("exact", repeats.tokens), ("shuffled", shuffle_second_copy(repeats))):
        _, cache = model.run_with_cache(tokens, names_filter="blocks.1.attn.hook_pattern")
        kept[name] = attention_on(cache["pattern", 1], stripe)[:, 0].mean().item()
    assert kept["exact"] == pytest.approx(1.0, abs=1e-5)
    assert kept["shuffled"] < 0.06
    assert attention_scores(model, {"stripe": repeats.tokens})["induction_stripe"][:, 1, 0].mean() == pytest.approx(1.0, abs=1e-5)


def test_every_detector_but_entropy_has_a_planted_head():
    assert set(DETECTORS) == {*PLANTED, "entropy"}
