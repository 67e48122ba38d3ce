"""Coefficients of the shipped run: errors are what they say they are, at the shipped settings."""

from pathlib import Path

import numpy as np
import pytest
import torch

from circuits import Checkpoints, Head
from circuits.complexity.chains import run_chains
from circuits.complexity.config import sampler_config
from circuits.complexity.diagnostics import estimate
from circuits.complexity.engine import HeadLoss
from circuits.complexity.general import GeneralLoss
from circuits.complexity.hessian import lanczos, random_signs
from circuits.complexity.pool import Pool
from circuits.dynamics.coefficients import coefficient_measures, texts_of
from circuits.dynamics.sweep import gather
from circuits.views.sections.coefficient_nulls import CLOSE, QUADRATIC

REPEATS = 50
BAND = (0.75, 1.26)
"""99% of ratios of a standard deviation over 50 repeats to the true one: the square root of chi-square with 49 degrees over 49.
"""


@pytest.fixture(scope="module")
def pool(checkout: Path) -> Pool:
    torch.set_num_threads(1)
    run = Checkpoints.from_dir(checkout / "fixtures/stdlib-2l")
    return Pool(run.at(2000), run.evaluation["code"])


def test_the_engine_on_the_shipped_model(pool: Pool) -> None:
    """One head of each layer, in single precision, at weights as far off as the sampler goes."""
    examples = torch.tensor([[0, 40, 80]])
    for head in (Head(0, 6), Head(1, 0)):
        fast, plain = HeadLoss(pool, head), GeneralLoss(pool.model, pool.tokens, head)
        w = (fast.centre + torch.randn(len(fast.centre), generator=torch.Generator().manual_seed(0)) / 200**0.5)[None]
        losses, gradient = fast.loss_and_gradient(w, examples)
        expected, slope = plain.loss_and_gradient(w, examples)
        assert (losses - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
        assert (gradient - slope).abs().max() < 1e-5 * max(1.0, float(slope.abs().max()))
        assert (gradient - slope).norm() < 1e-4 * slope.norm()  # gradients are small; this is the sharper of the two


def test_curvature_is_that_of_many_sequences(checkout: Path) -> None:
    """``nbeta h / 2 a`` bends down, so that its mean over Hessians of few sequences lies below its value for the text."""
    run = Checkpoints.from_dir(checkout / "fixtures/stdlib-2l")
    loss = HeadLoss(Pool(run.at(2375), run.evaluation["code"][:64]), Head(0, 6))
    signs = random_signs(1, len(loss.centre), loss.centre, torch.Generator().manual_seed(0))
    whole = lanczos(loss, signs, torch.arange(64)[None], 3)
    groups = lanczos(loss, signs.expand(8, -1), torch.arange(64).view(8, 8), 3)
    curved = [float(some.of(lambda h: 30 * h / (2 * (30 * h + 200))).mean()) for some in (groups, whole)]
    traces = [float(some.of(lambda h: h).mean()) for some in (groups, whole)]
    assert curved[0] < 0.95 * curved[1] and traces[0] == pytest.approx(traces[1], rel=0.01)


def test_shipped_coefficients_against_what_is_simpler(checkout: Path) -> None:
    """The closed form where the loss is quadratic at the size of noise, and noise itself everywhere but at the very start."""
    run = Checkpoints.from_dir(checkout / "fixtures/stdlib-2l")
    parts = coefficient_measures(run, ["mix", "nulls"])
    (mix, _), (null, _) = parts["mix"][0], parts["nulls"][0]
    found, nulls = (gather(measure, run, checkout / "no store") for measure in (mix, null))
    assert (found["state"] == "ok").all() and (found["status"] == "ok").all() and (nulls["status"] == "ok").all()
    form, noise, trace = (nulls["as_llc"].sel(kind=kind) for kind in ("local_estimate", "noise_loss", "hessian_trace"))
    gap, quadratic = np.abs(found["value"] / form - 1), np.abs(trace / noise - 1) <= QUADRATIC
    assert int(quadratic.sum()) > 100 and float((gap <= CLOSE).where(quadratic).mean()) > 0.9
    assert float(gap.where(~quadratic).median()) > CLOSE, "elsewhere curvature at the weights is not the whole of it"
    trained = found["value"].sel(step=slice(64, None)) / noise.sel(step=slice(64, None))
    assert float((np.abs(trained - 1) <= CLOSE).mean()) > 0.99


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("head", "step", "text"), [("L1H2", 2000, "code"), ("L0H6", 2375, "mix")], ids=["flat", "sharp"])
def test_stated_errors_are_honest(checkout: Path, head: str, step: int, text: str) -> None:
    """Also where the loss is sharpest: the previous-token head as induction forms."""
    run = Checkpoints.from_dir(checkout / "fixtures/stdlib-2l")
    loss = HeadLoss(Pool(run.at(step), texts_of(run)[text]), Head.parse(head))
    found = []
    for seed in range(REPEATS):
        config = sampler_config("laptop", seed=seed)
        found.append(estimate(run_chains(loss, config, gamma=config.gamma), config))
    spread = np.std([one.value for one in found], ddof=1)
    stated = np.sqrt(np.mean([one.stderr**2 for one in found]))
    assert BAND[0] < spread / stated < BAND[1]
    assert np.mean([one.state == "ok" for one in found]) > 0.9
