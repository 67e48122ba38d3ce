"""Nulls and the closed form against the whole Hessian and the literal Fisher information of a small model."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from circuits import Head, HookedTransformer
from circuits.complexity.config import sampler_config
from circuits.complexity.engine import HeadLoss
from circuits.complexity.general import GeneralLoss
from circuits.complexity.ground_truth import Quadratic
from circuits.complexity.hessian import hessian_products, lanczos, mean_gradient, random_signs
from circuits.complexity.nulls import KINDS, ComplexityNulls, fisher_traces, local_estimate
from circuits.complexity.pool import Pool

HEAD = Head(0, 1)
TOKENS = torch.randint(11, (16, 12), generator=torch.Generator().manual_seed(0))
NBETA, GAMMA = 30.0, 200.0


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    sizes = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 12, "d_vocab": 11, "initializer_range": 0.4}
    kind = {"attn_only": True, "normalization_type": "LN", "positional_embedding_type": "shortformer", "dtype": "float64"}
    return HookedTransformer({**sizes, **kind, "seed": 0}).eval()


@pytest.fixture(scope="module")
def loss(model: HookedTransformer) -> HeadLoss:
    return HeadLoss(Pool(model, TOKENS), HEAD)


@pytest.fixture(scope="module")
def exact(model: HookedTransformer) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole Hessian and the gradient, by autograd through the plain model in ``eval()`` mode."""
    plain = GeneralLoss(model, TOKENS, HEAD)
    plain.model = model

    def mean(w: torch.Tensor) -> torch.Tensor:
        return plain._losses(w, torch.arange(len(TOKENS))).mean()

    hessian = torch.autograd.functional.hessian(mean, plain.centre)
    gradient = torch.autograd.functional.jacobian(mean, plain.centre)
    assert isinstance(hessian, torch.Tensor) and isinstance(gradient, torch.Tensor)
    return hessian, gradient


def everyone(vectors: int) -> torch.Tensor:
    return torch.arange(len(TOKENS)).expand(vectors, -1)


def test_products_with_the_hessian(loss: HeadLoss, exact: tuple[torch.Tensor, torch.Tensor]) -> None:
    v = torch.randn(2, len(loss.centre), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(hessian_products(loss, v, everyone(2)), v @ exact[0], atol=1e-3 * float((v @ exact[0]).abs().max()))
    assert torch.allclose(mean_gradient(loss, 5), exact[1], atol=1e-12)


def test_trace_and_closed_form(loss: HeadLoss, exact: tuple[torch.Tensor, torch.Tensor]) -> None:
    hessian, gradient = exact
    signs = random_signs(60, len(loss.centre), loss.centre, torch.Generator().manual_seed(0))
    spectrum = lanczos(loss, signs, everyone(60), 2)
    trace = spectrum.of(lambda h: h)
    error = float(trace.std()) / 60**0.5
    assert float(trace.mean()) == pytest.approx(float(hessian.trace()), abs=3 * error)
    h, basis = torch.linalg.eigh(hessian)
    g, a = basis.T @ gradient, NBETA * h + GAMMA
    curved = (NBETA * h / (2 * a)).sum()
    literal = curved - ((NBETA * g) ** 2 / a * (1 - NBETA * h / (2 * a))).sum()
    slopes = lanczos(loss, mean_gradient(loss, 16)[None], everyone(1), 2)
    found = local_estimate(spectrum, slopes, NBETA, GAMMA)
    error = float(found.std()) / 60**0.5
    assert float(found.mean()) == pytest.approx(float(literal), abs=3 * error)
    # The control: this w* is no minimum, and without the gradient's term the number is another one.
    assert abs(float(found.mean() - curved)) > 6 * error


def test_three_steps_see_outliers_on_both_sides() -> None:
    """Two see the bulk and one outlier: they would give a number where there is no bound, or a wrong one where there is."""
    d = 2000
    for positive, negative in (([30.0] * 20, [-5.0] * 5), ([10.0] * 20, [-9.0])):
        h = 1e-3 * torch.rand(d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        h[: len(positive)], h[len(positive) : len(positive) + len(negative)] = torch.tensor([positive[0], negative[0]]).double()
        loss = Quadratic(torch.diag(h), torch.zeros(d, dtype=torch.float64))
        loss.centre = loss.centre + 1.0  # differences are as long as weights
        signs = random_signs(2, d, loss.centre, torch.Generator().manual_seed(0))
        one = torch.zeros(2, 1, dtype=torch.long)
        two, three = (lanczos(loss, signs, one, steps) for steps in (2, 3))
        literal = float((NBETA * h / (2 * (NBETA * h + GAMMA))).sum())
        assert torch.allclose(three.ritz.amin(1), h.min(), rtol=1e-3)
        assert (two.ritz.amin(1) > 0.1 * h.min()).all(), "the control: two steps miss it"
        curved = three.of(lambda h: NBETA * h / (2 * (NBETA * h + GAMMA)))
        assert torch.allclose(curved, torch.tensor(literal).double(), rtol=1e-3)


def test_fisher_trace(model: HookedTransformer) -> None:
    """Against the sum over all labels of all predictions, one derivative each."""
    some = TOKENS[:4, :8]
    loss, plain = HeadLoss(Pool(model, some), HEAD), GeneralLoss(model, some, HEAD)

    def logp(w: torch.Tensor) -> torch.Tensor:
        logits = functional_call(model, plain.block.placed(w, plain.parameters), (some,))
        return logits[:, :-1].log_softmax(-1).flatten()

    slopes = torch.autograd.functional.jacobian(logp, plain.centre)
    assert isinstance(slopes, torch.Tensor)
    literal = (logp(plain.centre).exp()[:, None] * slopes**2).sum() / (some.shape[0] * (some.shape[1] - 1))
    found = torch.stack([fisher_traces(loss, torch.Generator().manual_seed(seed)).mean() for seed in range(60)])
    assert float(found.mean()) == pytest.approx(float(literal.detach()), abs=3 * float(found.std()) / 60**0.5)


def test_the_measure(model: HookedTransformer) -> None:
    config = sampler_config("laptop", batch=8)
    found = ComplexityNulls(TOKENS, config, on="text", noises=40)(model)
    assert found["value"].dims == ("kind", "layer", "head") and list(found["kind"].values) == list(KINDS)
    assert np.isfinite(found["value"].values).all() and (found["state"].values == "ok").all()
    at = {"layer": HEAD.layer, "head": HEAD.head}
    norm = HeadLoss(Pool(model, TOKENS), HEAD).centre.norm()
    assert float(found["value"].sel(kind="weight_norm", **at)) == pytest.approx(float(norm))
    # Curvature is small against gamma here, so noise and the trace foretell one number: half nbeta / gamma tr H.
    noise, trace = (found["as_llc"].sel(kind=kind, **at) for kind in ("noise_loss", "hessian_trace"))
    errors = [found["as_llc_stderr"].sel(kind=kind, **at) for kind in ("noise_loss", "hessian_trace")]
    assert float(noise) == pytest.approx(float(trace), abs=3 * float(np.hypot(*errors)) + 0.1 * abs(float(trace)))
    assert np.isnan(found["as_llc"].sel(kind="ablation_loss")).all()


def test_a_posterior_without_a_bound_is_said_to_have_none(
    model: HookedTransformer, exact: tuple[torch.Tensor, torch.Tensor]
) -> None:
    smallest = float(torch.linalg.eigvalsh(exact[0])[0])
    assert smallest < 0
    states = []
    for share in (0.5, 2.0):  # of the localisation that just holds the head
        config = sampler_config("laptop", batch=8, gamma=-share * smallest * NBETA, epsilon=1e-4)
        found = ComplexityNulls(TOKENS, config, on="text", steps=8)(model)
        local = found.sel(kind="local_estimate", layer=HEAD.layer, head=HEAD.head)
        states.append(str(local["state"].values))
        assert np.isfinite(float(local["value"])) == (states[-1] == "ok")
        assert float(found["smallest"].sel(layer=HEAD.layer, head=HEAD.head)) == pytest.approx(smallest, rel=0.3)
    assert states == ["unbounded", "ok"]
    free = ComplexityNulls(TOKENS, sampler_config("laptop", batch=8, gamma=0.0), on="text")(model)
    assert (free["state"].sel(kind="noise_loss") == "unbounded").all(), "noise of no localisation has no size"


def test_nulls_of_a_divergence(model: HookedTransformer) -> None:
    """Beside a reference the loss has soft labels; at the reference itself it is 0, without slope, and only curved."""
    config = sampler_config("laptop", batch=8)
    alike = ComplexityNulls(TOKENS, config, on="text_kl", reference=model, noises=40)(model)
    assert (alike["state"].sel(kind="ablation_loss") == "not measured").all() and float(alike["slope"].max()) < 1e-8
    assert (alike["value"].sel(kind="noise_loss") > 0).all(), "every move away from the reference costs"
    trace, fisher = (alike.sel(kind=kind) for kind in ("hessian_trace", "fisher_trace"))
    error = np.hypot(trace["stderr"], fisher["stderr"])
    assert (np.abs(trace["value"] - fisher["value"]) < 4 * error).all(), (
        "the Hessian of a divergence at 0 is the Fisher information"
    )
    assert ComplexityNulls(TOKENS, config, on="text").spec() != ComplexityNulls(TOKENS, config, on="text", reference=model).spec()
