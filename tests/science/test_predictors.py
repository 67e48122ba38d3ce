"""On real text a model passes the predictors of one order after the other, and leaves each behind."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from circuits import Checkpoints
from circuits.data.ngrams import NgramTable
from circuits.data.streams import split_blocks
from circuits.detectors.predictors import PredictorLoss

pytestmark = pytest.mark.science

STEPS = (0, 16, 64, 256, 1250, 10_000)


@pytest.fixture(scope="module")
def over_training(checkout: Path) -> xr.Dataset:
    """Code alone, 32 held-out sequences, at six checkpoints."""
    run = Checkpoints.from_dir(checkout / "fixtures" / "stdlib-2l")
    table = NgramTable.count(split_blocks(run.corpus["code_train"]), run.cfg.d_vocab, order=3)
    measure = PredictorLoss(table, {"code": run.evaluation["code"][:32]})
    return xr.concat([measure(run.at(step)) for step in STEPS], "step").assign_coords(step=list(STEPS)).isel(corpus=0)


def test_each_order_has_its_time(over_training: xr.Dataset):
    """Nearest to the unigrams at step 64, to the bigrams at 256, to the trigrams at 1,250: and then away, by 10 errors."""
    for order, step in ((1, 64), (2, 256), (3, 1250)):
        here = over_training.sel(order=order)
        assert int(here.step[here.kl.argmin("step")]) == step, order
        best, end = here.sel(step=step), here.sel(step=10_000)
        assert float(end.kl - best.kl) > (10 if order < 3 else 3) * float(np.hypot(end.kl_stderr, best.kl_stderr)), order
        assert float(best.kl) > 2 * float(best.kl_noise), order


def test_the_model_overtakes_each_predictor(over_training: xr.Dataset):
    """Untrained worse than every order, at the end better than all, the trigrams last."""
    ahead = over_training.loss + 3 * over_training.loss_stderr < over_training.ngram_loss
    assert not ahead.sel(step=0).any() and ahead.sel(step=10_000).all()
    assert ahead.sel(step=256).values.tolist() == [True, False, False]


def test_untrained_it_knows_less_than_nothing(over_training: xr.Dataset):
    """The control: at step 0 every order is at chance or worse, by no more than an untrained model's spread of logits."""
    start = over_training.sel(step=0)
    assert (np.abs(start.value - start.chance) < 0.5).all()
    assert (start.value > start.null_mean).all()
