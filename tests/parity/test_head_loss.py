"""The engine for heads against the plain way: the whole model run with the head's weights in place, chain by chain."""

import itertools
from typing import Any

import pytest
import torch

from circuits import Head, HookedTransformer
from circuits.complexity.engine import HeadLoss
from circuits.complexity.general import GeneralLoss
from circuits.complexity.pool import Pool

MLPS: list[dict[str, Any]] = [
    {"attn_only": True},
    {"attn_only": False, "d_mlp": 20, "act_fn": "gelu"},
    {"attn_only": False, "d_mlp": 20, "act_fn": "solu_ln"},
    {"attn_only": False, "d_mlp": 20, "act_fn": "silu", "parallel_attn_mlp": True},
]
NORMS = (None, "LN", "LNPre", "RMS", "RMSPre")
POSITIONS: list[dict[str, Any]] = [
    {"positional_embedding_type": "standard"},
    {"positional_embedding_type": "shortformer"},
    {"positional_embedding_type": "rotary", "rotary_dim": 8},
    {"positional_embedding_type": "none"},
]
ODD: list[dict[str, Any]] = [
    {},
    {"smeared_keys": True},
    {"attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 3.0, "use_attn_scale": False},
]
TOKENS = torch.randint(23, (6, 10), generator=torch.Generator().manual_seed(0))
EXAMPLES = torch.tensor([[0, 3], [5, 1], [2, 4]])


def make(n_layers: int, seed: int = 1, **fields: Any) -> HookedTransformer:
    sizes = {"d_model": 16, "n_heads": 2, "d_head": 8, "n_ctx": 12, "d_vocab": 23, "initializer_range": 0.2}
    model = HookedTransformer({"n_layers": n_layers, "seed": seed, **sizes, **fields}).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():  # biases and norms that do something
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype), alpha=0.05)
    return model


def differences(model: Any, head: Head, reference: Any = None, max_bytes: int = 2**28) -> list[tuple[str, float]]:
    """How far engine and plain way are apart, each relative to the larger of 1 and what is compared."""
    fast = HeadLoss(Pool(model, TOKENS, reference), head, max_bytes=max_bytes)
    plain = GeneralLoss(model, TOKENS, head, reference)
    assert torch.equal(fast.centre, plain.centre)
    moves = torch.randn(3, len(fast.centre), generator=torch.Generator().manual_seed(2), dtype=fast.centre.dtype)
    w = fast.centre + 0.1 * moves
    losses, gradient = fast.loss_and_gradient(w, EXAMPLES)
    expected, slope = plain.loss_and_gradient(w, EXAMPLES)
    pairs = {
        "base": (fast.base, plain.base),
        "loss": (losses, expected),
        "loss alone": (fast.loss(w, EXAMPLES), expected),
        "gradient": (gradient, slope),
    }
    return [(name, float((a - b).abs().max() / max(1.0, float(b.abs().max())))) for name, (a, b) in pairs.items()]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("positions", POSITIONS, ids=lambda p: p["positional_embedding_type"])
def test_every_head(depth: int, positions: dict[str, Any]) -> None:
    """Norms, MLPs and oddities go round with depth and positions; all with all is the slow test below."""
    at = depth + POSITIONS.index(positions) + POSITIONS.index(positions) // 2
    kind = {"normalization_type": NORMS[at % len(NORMS)], **positions, **MLPS[at % len(MLPS)], **ODD[at % len(ODD)]}
    double = make(depth, dtype="float64", **kind)
    for layer, head in itertools.product(range(depth), range(2)):
        for name, apart in differences(double, Head(layer, head)):
            assert apart < 1e-10, (name, layer, head)
    for name, apart in differences(make(depth, **kind), Head(depth // 2, 1)):
        assert apart < 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("norm", NORMS)
def test_all_with_all(unchecked: None, depth: int, norm: str | None) -> None:
    """Every norm with every position and every MLP at every depth; oddities go round."""
    for at, (positions, mlp) in enumerate(itertools.product(POSITIONS, MLPS)):
        odd = ODD[(at + depth) % len(ODD)]
        model = make(depth, dtype="float64", normalization_type=norm, **positions, **mlp, **odd)
        for layer in range(depth):
            for name, apart in differences(model, Head(layer, 1)):
                assert apart < 1e-10, (name, layer, positions, mlp, odd)


@pytest.mark.parametrize("norm", ["LN", None])
def test_a_reference_model_as_the_target(norm: str | None) -> None:
    model = make(2, dtype="float64", normalization_type=norm, attn_only=True)
    reference = make(1, seed=5, dtype="float64", normalization_type=norm, attn_only=True)
    for layer in range(2):
        for name, apart in differences(model, Head(layer, 1), reference):
            assert apart < 1e-10, (name, layer)
    pool = Pool(model, TOKENS, reference)
    p, q = (m(TOKENS).softmax(-1)[:, :-1] for m in (reference, model))
    assert torch.allclose(pool.base, (p * (p / q).log()).sum(-1), atol=1e-12)  # the divergence, literally
    assert Pool(model, TOKENS, model).base.abs().max() < 1e-12  # of a model from itself


@pytest.mark.parametrize("odd", ODD)
def test_without_room_for_the_frozen_logits(odd: dict[str, Any]) -> None:
    model = make(2, dtype="float64", normalization_type="LN", attn_only=True, **odd)
    assert HeadLoss(Pool(model, TOKENS), Head(1, 0), max_bytes=0).behind is None
    assert max(apart for _, apart in differences(model, Head(1, 0), max_bytes=0)) < 1e-10


def test_a_gradient_is_a_difference_quotient() -> None:
    """The plain way is autograd's; here neither is trusted."""
    model = make(2, dtype="float64", normalization_type="LN", attn_only=True, positional_embedding_type="shortformer")
    for head in (Head(0, 1), Head(1, 0)):
        loss = HeadLoss(Pool(model, TOKENS), head)
        v = torch.randn(len(loss.centre), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        _, gradient = loss.loss_and_gradient(loss.centre[None], EXAMPLES[:1])
        ends = torch.stack([loss.centre + 1e-5 * v, loss.centre - 1e-5 * v])
        plus, minus = loss.loss(ends, EXAMPLES[[0, 0]]).mean((1, 2))
        assert float(gradient[0] @ v) == pytest.approx(float((plus - minus) / 2e-5), rel=1e-6)
