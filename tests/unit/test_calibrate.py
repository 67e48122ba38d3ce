"""Calibration: the acceptance of a step worked out by hand, what unstable and slow settings are called, and what is proposed."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from circuits.complexity.acceptance import Point, metropolis_acceptance
from circuits.complexity.calibrate import calibrate
from circuits.complexity.config import SamplerConfig, sampler_config
from circuits.complexity.proposal import gradients, predicted_seconds, predicted_stderr, proposal
from circuits.complexity.samplers import State, step
from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import HookedTransformer
from circuits.views.calibration_figure import calibration_figure
from circuits.views.figures import rendered

ASKED: dict[str, Any] = {"weights": "L0H1", "batch": 8, "gradient_batch": 8, "progress": False}


@pytest.fixture(scope="module")
def model():
    """Untrained, but sure of what it says."""
    cfg = HookedTransformerConfig(n_layers=1, d_model=16, n_heads=2, d_head=8, n_ctx=16, d_vocab=30, attn_only=True, seed=4)
    model = HookedTransformer(cfg).eval()
    with torch.no_grad():
        for weight, factor in ((model.unembed.W_U, 3.5), (model.blocks[0].attn.W_V, 2), (model.blocks[0].attn.W_O, 2)):
            weight *= factor
    return model


@pytest.fixture(scope="module")
def tokens(model):
    """Text that the model wrote: over all such text its own weights are the minimum of the loss."""
    rng = torch.Generator().manual_seed(0)
    text = torch.randint(30, (32, 1), generator=rng)
    with torch.no_grad():
        for _ in range(15):
            text = torch.cat([text, torch.multinomial(model(text)[:, -1].softmax(-1), 1, generator=rng)], 1)
    return text


@pytest.fixture(scope="module")
def calibration(model, tokens):
    """Slow steps, good ones, and such as grow where the loss is sharpest."""
    return calibrate(model, tokens, gammas=[200.0], epsilons=[0.001, 0.006, 0.2], draws=30, **ASKED)


@pytest.fixture(scope="module")
def hopeless(model, tokens):
    """SGLD at 50 times the step size that diverges without a loss."""
    return calibrate(model, tokens, sampler="sgld", gammas=[200.0], epsilons=[1.0], draws=4, **ASKED)


def quadratic(w, h):
    """``h/2 w^2`` in every direction: where chains are, the loss, its gradient."""
    w = w.double()
    return Point(w, h / 2 * w.square().sum(-1), h * w)


def stepped(point, h, config, gamma, seed=0):
    """A step of the sampler around 0, and what is seen at its end."""
    noise = torch.randn(point.w.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    centre = torch.zeros(point.w.shape[1], dtype=torch.float64)
    return quadratic(step(State(point.w, None), point.gradient, noise, centre=centre, gamma=gamma, config=config).w, h)


def accepted(before, after, config, gamma):
    centre = torch.zeros(before.w.shape[1], dtype=torch.float64)
    return metropolis_acceptance(before, after, centre=centre, gamma=gamma, config=config)


def spread(draws, parameters, variance):
    """Draws of a normal posterior around 0."""
    normal = torch.randn(draws, parameters, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return normal * math.sqrt(variance)


def test_acceptance_of_sgld_in_one_dimension_is_the_one_worked_out_by_hand():
    """On a Gaussian of precision ``a = nbeta h + gamma``, ``log alpha = epsilon a^2 / 8 (w^2 - v^2)``; here ``a = 5``."""
    config, h, gamma = SamplerConfig(epsilon=0.4, nbeta=2.0, gamma=2.0), 1.5, 2.0
    before, after = (quadratic(torch.tensor([[w]]), h) for w in (0.3, 1.1))
    by_hand = math.exp(0.4 * 25 / 8 * (0.3**2 - 1.1**2))
    assert float(accepted(before, after, config, gamma)) == pytest.approx(by_hand, rel=1e-6)
    assert float(accepted(after, before, config, gamma)) == 1.0


def test_acceptance_of_the_exponential_sampler_in_one_dimension():
    """Literally: two potentials and two normal densities, from the formulas of the docstring."""
    config, h, gamma = SamplerConfig(sampler="exponential", epsilon=0.4, nbeta=2.0), 1.5, 2.0
    rho = math.exp(-0.4)

    def density(end, start):
        mean = rho * start - (1 - rho) * 2.0 * h * start / gamma
        return norm.pdf(end, mean, math.sqrt((1 - rho**2) / gamma))

    w, v = 0.3, 1.1
    ratio = math.exp(-(2.0 * h + gamma) / 2 * (v**2 - w**2)) * density(w, v) / density(v, w)
    assert 0.05 < ratio < 0.95
    before, after = (quadratic(torch.tensor([[x]]), h) for x in (w, v))
    assert float(accepted(before, after, config, gamma)) == pytest.approx(ratio, rel=1e-6)


@pytest.mark.parametrize("sampler", ["sgld", "exponential"])
def test_acceptance_goes_to_one_with_the_step_size(sampler):
    h, gamma, before = 3.0, 5.0, quadratic(spread(50, 40, 1 / 11), 3.0)
    means = []
    for epsilon in (0.2, 0.02, 1e-4):
        config = SamplerConfig(sampler=sampler, epsilon=epsilon, gamma=gamma, nbeta=2.0)
        means.append(float(accepted(before, stepped(before, h, config, gamma), config, gamma).mean()))
    assert means[0] < means[1] < means[2]
    assert means[2] == pytest.approx(1, abs=1e-3)


def test_without_a_loss_the_exponential_sampler_is_exact_and_sgld_is_not():
    """SGLD's share over many weights is ``2 Phi(-sqrt(d) (epsilon gamma)^(3/2) / 8)``, to the sampling error of 100 steps."""
    gamma, before = 200.0, quadratic(spread(100, 16_000, 1 / 200), 0.0)
    exact = SamplerConfig(sampler="exponential", epsilon=7e-3)
    assert accepted(before, stepped(before, 0.0, exact, gamma), exact, gamma).numpy() == pytest.approx(1, abs=1e-9)
    sgld = SamplerConfig(epsilon=1e-3)
    seen = accepted(before, stepped(before, 0.0, sgld, gamma), sgld, gamma).numpy()
    share = 2 * norm.cdf(-math.sqrt(16_000) * 0.2**1.5 / 8)
    assert share == pytest.approx(0.157, abs=1e-3)
    assert seen.mean() == pytest.approx(share, abs=3 * seen.std() / 10)


def test_acceptance_is_zero_where_the_loss_is_not_finite():
    config = SamplerConfig(epsilon=0.1, gamma=1.0)
    before, after = (quadratic(torch.tensor([[w]]), 1.0) for w in (0.3, 0.2))
    assert float(accepted(before, after._replace(loss=torch.tensor([torch.nan])), config, 1.0)) == 0.0


def test_a_step_that_cannot_be_stable_is_called_so_and_not_proposed(calibration, hopeless):
    assert calibration["verdict"].values[-1] == "unstable"
    assert calibration["margin"].values[-1] > 1
    assert proposal(calibration).epsilon < 0.2
    assert hopeless["n_diverged"].values[0] == 4
    assert hopeless["verdict"].values[0] == "unstable"
    assert hopeless["acceptance"].values[0] == 0
    assert np.isnan(hopeless["value"].values[0])
    with pytest.raises(ValueError, match=r"no epsilon .* nbeta 30 and gamma 200, of 1 \(unstable\): take smaller epsilons"):
        proposal(hopeless)


def test_a_step_that_changes_the_value_departs(model, tokens):
    """Gradients of two sequences add their own noise at long steps: stable, mixed and wrong."""
    asked: dict[str, Any] = ASKED | {"gradient_batch": 2}
    found = calibrate(model, tokens, gammas=[200.0], epsilons=[0.001, 0.01], draws=20, **asked).isel(cell=1)
    assert found["margin"] < 1
    assert found["state"] == "ok"
    assert found["departure"] > 2
    assert found["verdict"] == "departs"


def test_the_proposal_is_validated_settings_that_the_calibration_speaks_for(calibration):
    found, best = proposal(calibration), calibration.isel(cell=1)
    assert found == sampler_config(found)
    assert (found.sampler, found.epsilon, found.gamma, found.nbeta) == ("exponential", 0.006, 200.0, 30.0)
    assert (found.chains, found.batch, found.gradient_batch, found.force) == (4, 8, 8, False)
    assert found.draws == int(best["draws_needed"])
    assert found.burn_in == math.ceil(math.log(20) / 1.2)
    assert float(predicted_stderr(calibration, found.draws)[1]) <= 0.05 * float(best["value"])


def test_what_cells_show(calibration):
    """Forgetting more a step mixes faster and is accepted less; work is counted, and no time is kept."""
    slow, fast = calibration["autocorrelation_distance"].values[:2]
    assert slow > 1.5 * fast
    assert (np.diff(calibration["acceptance"].values) < 0).all()
    assert calibration["departure"].values[0] == 0
    np.testing.assert_allclose(predicted_stderr(calibration, 120), calibration["stderr"] / 2)
    run = proposal(calibration).changed(draws=30)
    assert gradients(run) == 4 * 33 * 8
    assert gradients(run.changed(gradient_batch=2)) == 4 * (33 * 2 + 30 * 6 / 2)
    assert calibration["gradients"].values[1] == gradients(run) + 13 * 8
    assert predicted_seconds(run, 0.01) == pytest.approx(gradients(run) / 100)


def test_sgld_that_spreads_weights_too_far_departs(model, tokens):
    """At ``epsilon gamma = 2`` variances are twice what they should be, which a value need not show."""
    found = calibrate(model, tokens, sampler="sgld", gammas=[3000.0], epsilons=[2 / 3000], draws=20, **ASKED)
    np.testing.assert_allclose(found["inflation"], 1.0)
    assert (found["state"].item(), found["departure"].item(), found["verdict"].item()) == ("ok", 0.0, "departs")


def test_slow_chains_are_told_how_many_draws_they_need(model, tokens):
    found = calibrate(model, tokens, gammas=[200.0], epsilons=[1e-4], draws=8, **ASKED)
    with pytest.raises(ValueError, match=r"no epsilon will do .* 0\.0001 \(.*\): take at least \d+ draws"):
        proposal(found)


def test_a_loss_below_that_of_the_weights_is_still_training(model):
    """On random text the model's own weights are far from a minimum."""
    text = torch.randint(30, (32, 16), generator=torch.Generator().manual_seed(1))
    found = calibrate(model, text, gammas=[50.0], epsilons=[0.01], draws=8, **ASKED)
    assert found["value"].item() < 0
    assert found["below"].item() > 0.9
    with pytest.raises(ValueError, match=r"still training.*: take a larger gamma"):
        proposal(found, gamma=50.0)


def test_equal_calls_give_equal_datasets_and_any_weights_will_do(model, tokens):
    settings: dict[str, Any] = ASKED | {"gammas": [200.0], "epsilons": [0.006], "draws": 4}
    first, second = (calibrate(model, tokens, **settings) for _ in range(2))
    assert first.identical(second)
    settings["weights"] = "unembed"
    assert np.isfinite(calibrate(model, tokens, **settings)["value"]).all()


def test_the_figure_draws_every_cell_and_equal_bytes(calibration, hopeless):
    figure = calibration_figure(calibration)
    assert rendered(figure, "png") == rendered(calibration_figure(calibration), "png")
    axes = figure.axes
    assert [axis.get_title(loc="left") for axis in axes] == ["Value, nbeta 30", "Metropolis acceptance", "Autocorrelation time"]
    rings = [np.asarray(line.get_xdata()).tolist() for line in axes[0].lines if line.get_markersize() == 11]
    assert rings == [[0.006]]
    crosses = [line for line in calibration_figure(hopeless).axes[0].lines if line.get_marker() == "x"]
    assert [np.asarray(line.get_xdata()).tolist() for line in crosses] == [[1.0]]
    with pytest.raises(ValueError, match=r"give a result of circuits\.complexity\.calibrate"):
        calibration_figure(calibration.drop_vars("acceptance"))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sampler": "rmsprop_sgld"}, "need 'exponential' or 'sgld'"),
        ({"epsilons": [0.0]}, r"epsilons=\[0.0\]: need different numbers above 0 in a list"),
        ({"gammas": 200.0}, "gammas=200.0: need different numbers above 0 in a list"),
        ({"nbetas": [30, 30]}, "nbetas=.*: need different numbers above 0"),
        ({"draws": 2}, "draws=2: need a whole number of at least 4"),
        ({"chains": 0}, "chains is 0"),
        ({"target_stderr": 0}, "target_stderr=0: need a share of the value"),
        ({"batch": 64}, "there are 32 sequences and a batch is 64"),
        ({"weights": "L5H0"}, "there is no head L5H0"),
        ({"weights": "nothing"}, "'nothing' names no weights"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(model, tokens, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        calibrate(model, tokens, **(ASKED | changes))


def test_a_proposal_outside_the_grid_is_refused(calibration):
    with pytest.raises(ValueError, match=r"was not calibrated; the grid has \(nbeta, gamma\) = \(30, 200\)"):
        proposal(calibration, gamma=100.0)
