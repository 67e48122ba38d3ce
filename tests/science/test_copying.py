"""Copying, its opposite and OV-supported induction: found where planted, absent where one half of the act is missing."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from circuits import Checkpoints
from circuits.detectors.attention import AttentionScores
from circuits.detectors.copying import CopyingScores
from circuits.detectors.direct_logits import Readout, sample_effects
from circuits.dynamics.detect import attention_measure
from circuits.models.planted import copy_suppressor, planted_model, uniform_model
from circuits.weights.weight_spectra import WeightSpectra

pytestmark = pytest.mark.science

MEASURE = CopyingScores(examples=8, null_seeds=0)
INDUCTION = {"layer": 1, "head": 0}


def others(values: xr.DataArray) -> np.ndarray:
    """The scores of every head but L1H0."""
    return np.delete(values.values.flatten(), values.sizes["head"])


@pytest.fixture(scope="module")
def scores() -> xr.Dataset:
    return MEASURE(planted_model())


def test_the_planted_induction_head_copies_and_does_induction(scores: xr.Dataset):
    for detector in ("copying", "ov_induction"):
        values = scores.value.sel(detector=detector)
        assert float(values.sel(INDUCTION)) == pytest.approx(1.0, abs=1e-5), detector
    assert others(scores.value.sel(detector="ov_induction")) == pytest.approx(0.0, abs=1e-5)
    # The previous-token head writes into a slot that no logit is read from, and the others write nothing: chance exactly.
    assert others(scores.value.sel(detector="copying")) == pytest.approx(4 / 26 - 1)


def test_with_its_output_turned_round_it_is_anti_induction():
    model = planted_model()
    with torch.no_grad():
        model.blocks[1].attn.W_O[0].neg_()
    found = MEASURE(model).value.sel(INDUCTION)
    assert float(found.sel(detector="anti_copying")) == pytest.approx(1.0, abs=1e-5)
    assert float(found.sel(detector="ov_induction")) == pytest.approx(-1.0, abs=1e-5)
    assert float(found.sel(detector="copying")) == pytest.approx(-1.0, abs=1e-5)  # it raises all but what it attends to


def test_a_head_that_looks_right_and_writes_a_wrong_token_does_no_induction():
    """The control for attention alone: the same pattern, the OV of another vocabulary order."""
    model = planted_model()
    with torch.no_grad():
        attn = model.blocks[1].attn
        attn.W_O[0, :101] = attn.W_O[0, :101].roll(1, dims=0)
    attention = AttentionScores(examples=8, null_seeds=0)(model).value.sel(INDUCTION).sel(detector="induction")
    found = MEASURE(model).value.sel(INDUCTION)
    assert float(attention) == pytest.approx(1.0, abs=1e-5)
    assert abs(float(found.sel(detector="ov_induction"))) < 0.02  # -1/100: the centred logit of a token that is not raised


def test_what_is_predicted_and_suppressed_is_found_and_what_is_predicted_and_copied_is_negative():
    measure = CopyingScores(examples=8, null_seeds=0, predicted=1)
    model = copy_suppressor()
    found = measure(model)
    planted = found.value.sel(detector="copy_suppression")
    assert int(found.rows.sel(detector="copy_suppression", layer=1)) > 100
    assert float(planted.sel(INDUCTION)) > 0.99
    assert np.abs(others(planted)).max() < 0.01
    with torch.no_grad():
        model.blocks[1].attn.W_O[0].neg_()
    assert float(measure(model).value.sel(INDUCTION).sel(detector="copy_suppression")) < -0.99
    # A head that suppresses all it sees, predicted or not, spreads its attention and is told apart from one that selects.
    with torch.no_grad():
        model.blocks[1].attn.W_O[0].neg_()
        model.blocks[1].attn.W_Q[0].zero_()
        model.blocks[1].attn.b_Q[0].zero_()
    broad = measure(model).value.sel(INDUCTION)
    assert float(broad.sel(detector="anti_copying")) == pytest.approx(1.0, abs=1e-5)
    assert float(broad.sel(detector="copy_suppression")) < 0.1


def test_a_broad_copier_would_be_near_chance_by_its_mixed_output():
    """Why raises are taken source by source: what the docstring of the module says of the planted head."""
    model = planted_model()
    tokens = MEASURE.tokens_for(101, 101)["sample"]
    _, cache = model.run_with_cache(tokens)
    pattern = cache["pattern", 1][:, :1, 1:, 1:]
    effects = sample_effects(cache["v", 1][:, 1:, :1], model.W_O[1, :1], Readout.of(model).W, tokens[:, 1:])
    mixed = torch.einsum("ehqk,ehks->ehqs", pattern, effects).clamp_min(0)
    attended = (pattern * mixed).sum(-1)
    assert (4 * attended / (attended + mixed.sum(-1)) - 1).mean().item() == pytest.approx(-0.62, abs=0.01)


def test_no_head_of_a_model_without_weights_has_any_score():
    found = MEASURE(uniform_model())
    assert np.allclose(found.value, found.chance)


@pytest.fixture(scope="module")
def fixture_run(checkout: Path) -> Checkpoints:
    return Checkpoints.from_dir(checkout / "fixtures" / "stdlib-2l")


def test_the_fixtures_induction_head_also_raises_what_it_attends_to(fixture_run: Checkpoints):
    """L1H0 alone, by 10 standard errors, and nearly all of its attention on targets is of use; not yet at step 1,500."""
    ids = attention_measure(fixture_run).ids
    measure = CopyingScores(ids=ids)
    end = measure(fixture_run.at(10_000)).sel(detector="ov_induction")
    attention = AttentionScores(ids=ids, null_seeds=0)(fixture_run.at(10_000)).value.sel(INDUCTION).sel(detector="induction")
    here = end.sel(INDUCTION)
    assert float(here.value - 10 * here.stderr) > np.abs(others(end.value)).max()
    assert 0.95 * float(attention) < float(here.value) <= float(attention)
    before = measure(fixture_run.at(1500)).sel(detector="ov_induction")
    assert np.abs(before.value).max() < 0.1 * float(here.value)


def test_copying_in_use_agrees_with_copying_in_the_weights(fixture_run: Checkpoints):
    """Olsson et al.: strongly correlated with the eigenvalues of the OV circuit. Over 16 heads r = .82, 95% interval .54 to .94.

    Before training there is nothing to agree on.
    """
    correlation = {}
    for step in (0, 10_000):
        model = fixture_run.at(step)
        used = CopyingScores(ids=attention_measure(fixture_run).ids, null_seeds=0)(model).value.sel(detector="copying")
        written = WeightSpectra(null_seeds=2, diagonal_tokens=8)(model).value.sel(statistic="ov_copying")
        correlation[step] = float(np.corrcoef(used.values.flatten(), written.values.flatten())[0, 1])
    assert correlation[10_000] > 0.54
    assert abs(correlation[0]) < 0.5


def test_untrained_heads_stay_within_their_null(fixture_run: Checkpoints):
    """Another untrained model than the null's own: of 64 scores none lies 5 sd out."""
    found = CopyingScores(ids=attention_measure(fixture_run).ids, null_seeds=8)(fixture_run.at(0))
    assert np.abs(found.z).max() < 5
    assert np.abs(found.null_mean - found.chance).max() < 0.02
