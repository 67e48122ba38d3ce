"""Every detector finds its planted head and only it; noise takes the finding away; a decoy is not called induction."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from circuits.detectors.attention import DETECTORS, AttentionScores, periods_and_gaps
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
    """ROC curves of all eight detectors: AUC 1.0 without noise, at chance when nothing is left of the circuit."""
    few = AttentionScores(examples=4, groups=4, null_seeds=0)
    noises, seeds = (0.0, 0.1, 0.2, 0.4), (0, 1, 2)
    found = {(noise, seed): few(planted_model(noise=noise, seed=seed)).value for noise in noises for seed in seeds}
    curve = np.array(
        [[[auc(found[noise, seed].sel(detector=d).values, PLANTED[d]) for d in PLANTED] for seed in seeds] for noise in noises]
    )  # [noise, seed, detector]
    assert (curve[0] == 1.0).all()
    mean = curve.mean((1, 2))
    assert mean.tolist() == sorted(mean, reverse=True) and mean[-1] < 0.9
    for detector in ("induction", "previous_token"):
        head = PLANTED[detector]
        heights = [float(found[noise, 0].sel(detector=detector, layer=head.layer, head=head.head)) for noise in noises]
        assert heights == sorted(heights, reverse=True)
        assert heights[0] == pytest.approx(1.0, abs=1e-5) and heights[-1] < 0.2


@pytest.mark.science
@pytest.mark.parametrize("n_ctx", [16, 32, 101])
def test_a_look_back_over_any_distance_of_the_battery_scores_one_group_in_eight(n_ctx: int):
    """The decoy that fits a group exactly gets that group and no other, so no role."""
    made = MEASURE.tokens_for(n_ctx, 101).lags
    per_group = len(made) // MEASURE.groups
    for group in range(MEASURE.groups):
        row = made[group * per_group].tolist()
        first = next(i for i, token in enumerate(row) if token in row[:i])
        lag = first - row.index(row[first])
        scores = MEASURE(planted_model(lag=lag - 1, n_ctx=n_ctx))
        decoy = scores.sel(layer=0, head=4)
        # Rows with no key so far back attend uniformly: they add chance.
        found, chance = (float(decoy[name].sel(detector="induction")) for name in ("value", "chance"))
        assert 1 / MEASURE.groups - 0.05 < found < 1 / MEASURE.groups + chance
        assert str(classify(scores).role.sel(layer=0, head=4).values) != "induction"
        if lag - 1 <= min(n_ctx, 101) // 2:
            assert int(decoy.lag) == lag - 1


@pytest.mark.science
@given(seed=st.integers(0, 10**6), length=st.integers(16, 101), groups=st.integers(2, 8))
def test_no_two_groups_share_a_lag(seed: int, length: int, groups: int):
    made = periods_and_gaps(groups, length, np.random.default_rng(seed))
    assert len({period + gap for period, gap in made}) == len(made) == groups
    assert all(period >= 3 and gap >= 0 and 1 + 2 * period + gap <= length for period, gap in made)


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
