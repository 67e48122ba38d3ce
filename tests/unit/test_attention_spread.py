"""How widely attention is spread, on whom, and its probe: by hand, uniform attention, literal twins. Stable ranks too."""

from typing import Any

import numpy as np
import pytest
import torch

from circuits import HookedTransformer
from circuits.detectors.attention_lift import AttentionLift, key_lift
from circuits.detectors.attention_probe import AttentionProbe
from circuits.detectors.attention_spread import STATISTICS, AttentionSpread, gini, spread_scores
from circuits.models.patterns import attention_entropy, uniform_pattern
from circuits.models.planted_parts import blank
from circuits.weights.stable_rank import StableRank, stable_rank

TOKENS = torch.randint(1, 40, (6, 24), generator=torch.Generator().manual_seed(0))


def model_of(**fields: Any) -> HookedTransformer:
    sizes = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 32, "d_vocab": 40, "initializer_range": 0.6}
    return HookedTransformer({**sizes, "attn_only": True, "seed": 0, **fields}).eval()


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return model_of()


def test_by_hand() -> None:
    pattern = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0.1, 0.2, 0.7]], dtype=torch.float64)[None, None]
    assert gini(pattern)[0, 0].tolist() == pytest.approx([0, 0.25, 0.4])
    H = -np.array([0.25 * np.log(0.25) + 0.75 * np.log(0.75), 0.1 * np.log(0.1) + 0.2 * np.log(0.2) + 0.7 * np.log(0.7)])
    found = spread_scores(pattern)
    expected = [H.mean(), (H / np.log([2, 3])).mean(), np.exp(H).mean(), (0.75 + 0.7) / 2, (0.25 + 0.4) / 2, (0.25 + 0.1) / 2]
    assert [float(found[name]) for name in STATISTICS] == pytest.approx(expected)
    assert key_lift(pattern)[0, 0].tolist() == pytest.approx([1 + 0.5 + 0.3, 1.5 + 0.6, 2.1])


def test_uniform_and_one_hot_attention() -> None:
    i = np.arange(2, 13)
    uniform = spread_scores(uniform_pattern(12))
    expected = [np.log(i).mean(), 1, i.mean(), (1 / i).mean(), 0, (1 / i).mean()]
    assert [float(uniform[name]) for name in STATISTICS] == pytest.approx(expected, abs=1e-12)
    one_hot = spread_scores(torch.eye(12, dtype=torch.float64)[None, None])
    assert [float(one_hot[name]) for name in STATISTICS] == pytest.approx([0, 0, 1, 1, 1 - (1 / i).mean(), 0], abs=1e-12)


def test_spread_of_a_model(model: HookedTransformer) -> None:
    found = AttentionSpread(TOKENS)(model)
    assert found["value"].dims == found["stderr"].dims == ("layer", "head", "statistic")
    cache = model.run_with_cache(TOKENS)[1]
    for layer in range(2):
        pattern = cache["pattern", layer].detach()
        entropy = attention_entropy(pattern).double()
        assert found["value"].sel(layer=layer, statistic="entropy").values == pytest.approx(entropy.mean(0).numpy(), rel=1e-5)
        error = (entropy.std(0) / len(TOKENS) ** 0.5).numpy()
        assert found["stderr"].sel(layer=layer, statistic="entropy").values == pytest.approx(error, rel=1e-3)
        # Gini by its other definition: half the mean absolute difference over the mean.
        row = pattern[2, 1, 9, :10]
        assert float(gini(pattern)[2, 1, 9]) == pytest.approx(float((row[:, None] - row).abs().sum() / (2 * 10)), abs=1e-5)
    assert float(found["chance"].sel(statistic="sink_mass")) == pytest.approx((1 / np.arange(2, 25)).mean())
    assert AttentionSpread(TOKENS[:1])(model)["stderr"].isnull().all()


def test_a_blank_head_is_at_chance() -> None:
    found = AttentionSpread(TOKENS)(blank(n_layers=1, n_heads=2, d_head=4, d_vocab=40, n_ctx=32)[0])
    assert found["value"].values == pytest.approx(np.broadcast_to(found["chance"].values, (1, 2, 6)), abs=1e-5)


def test_the_probe_is_the_attention(model: HookedTransformer) -> None:
    found = AttentionProbe(TOKENS.repeat(4, 1), examples=20, length=10)(model)
    assert found["value"].dims == ("layer", "head", "example", "query", "key") and found["value"].dtype == np.float16
    assert found["value"].shape == (2, 2, 20, 10, 10)
    cache = model.run_with_cache(TOKENS.repeat(4, 1)[:20])[1]
    for layer in range(2):
        pattern = cache["pattern", layer].detach()[..., :10, :10].transpose(0, 1).numpy()
        assert found["value"].sel(layer=layer).values == pytest.approx(pattern, abs=5e-4)
    same = AttentionProbe(TOKENS[:, :10], examples=6), AttentionProbe(TOKENS, examples=6, length=10)
    assert same[0].spec() == same[1].spec()  # what is read names the artefact


def test_lift_against_a_loop(model: HookedTransformer) -> None:
    counts = np.bincount(TOKENS.flatten(), minlength=40)
    found = AttentionLift(TOKENS, counts, ranks=(0, 5, 20), draws=19)(model)
    rank = {int(token): place for place, token in enumerate(np.argsort(-counts, kind="stable"))}
    pattern = model.run_with_cache(TOKENS)[1]["pattern", 1].detach().numpy()
    total, n = np.zeros((2, 3)), np.zeros(3)
    for example, t in np.ndindex(*TOKENS.shape):
        for s in range(1, t + 1):
            bin_ = sum(rank[int(TOKENS[example, s])] >= low for low in (5, 20))
            total[:, bin_] += (t + 1) * pattern[example, :, t, s]
            n[bin_] += 1
    assert found["value"].sel(layer=1).values == pytest.approx(total / n, rel=1e-4)
    assert found["keys"].sum() == TOKENS[:, 1:].numel()


def test_lift_finds_a_head_that_prefers_common_tokens() -> None:
    """Head 0 has a bonus for the five commonest tokens; head 1 attends uniformly, and its lift is 1 with no spread at all."""
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(np.minimum(rng.geometric(0.1, (24, 24)), 39))
    tokens[:, 0] = 0
    counts = np.bincount(tokens[:, 1:].flatten(), minlength=40)
    model, places = blank(n_layers=1, n_heads=2, d_head=4, d_vocab=40, n_ctx=32)
    with torch.no_grad():
        model.blocks[0].attn.b_Q[0, 0] = 1
        model.blocks[0].attn.W_K[0, torch.from_numpy(np.argsort(-counts)[:5].copy()) + places["token"].start, 0] = 1.0
    found = AttentionLift(tokens, counts, ranks=(0, 5, 20))(model)
    common, rare = found["value"].sel(layer=0, head=0).values[[0, 2]]
    assert common - rare > 5 * np.hypot(*found["stderr"].sel(layer=0, head=0).values[[0, 2]])
    assert found["p"].sel(head=0, bin="rank 0+") == pytest.approx(found.attrs["smallest_p"])
    assert found["z"].sel(head=0, bin="rank 0+") > 5 and found["z"].sel(head=0, bin="rank 20+") < -3
    assert found["value"].sel(head=1).values == pytest.approx(1, abs=1e-5)
    assert (found["p"].sel(head=1) > 0.05).all()


def test_an_empty_bin_is_nan(model: HookedTransformer) -> None:
    found = AttentionLift(TOKENS, np.bincount(TOKENS.flatten(), minlength=40), ranks=(0, 1000), draws=19)(model)
    assert found["value"].isel(bin=1).isnull().all() and found["p"].isel(bin=1).isnull().all()


def test_stable_rank() -> None:
    assert float(stable_rank(torch.tensor([1.0, 2.0, 1.0]))) == 1.5
    assert float(stable_rank(torch.zeros(3))) == 0
    model = model_of(attn_only=False, act_fn="relu", normalization_type="LN", seed=1)
    first = model_of(attn_only=False, act_fn="relu", normalization_type="LN", seed=2)
    alone, gained = StableRank(null_seeds=29)(model), StableRank(first, null_seeds=29)(model)
    assert alone["value"].dims == ("layer", "head", "component")

    def dense(m: HookedTransformer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # A fresh norm has gain 1, and centres what is read.
        W_Q, W_K, W_V = (W - W.mean(-2, keepdim=True) for W in (m.W_Q, m.W_K, m.W_V))
        W_O = m.W_O - m.W_O.mean(-1, keepdim=True)
        return W_Q @ W_K.mT, W_V @ W_O, torch.stack([block.mlp.W_in for block in m.blocks])

    def literal(W: torch.Tensor) -> np.ndarray:
        return (W.square().sum((-2, -1)) / torch.linalg.matrix_norm(W, 2) ** 2).detach().numpy()

    for found, matrices in (alone, dense(model)), (gained, [a - b for a, b in zip(dense(model), dense(first), strict=True)]):
        assert found["value"].sel(component="W_QK").values == pytest.approx(literal(matrices[0]), rel=1e-4)
        assert found["value"].sel(component="W_OV").values == pytest.approx(literal(matrices[1]), rel=1e-4)
        assert found["mlp"].values == pytest.approx(literal(matrices[2]), rel=1e-4)
        # Untrained heads are Gaussian, as the null is.
        assert (abs(found["z"]) < 4.5).all() and found["null_sd"].min() > 0
    assert "mlp" not in StableRank(null_seeds=0)(model_of())
    assert (StableRank(model, null_seeds=0)(model)["value"] == 0).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: AttentionSpread(TOKENS[:, :1]), ValueError, "at least 2"),
        (lambda: AttentionSpread(TOKENS.float()), TypeError, "integer ids"),
        (lambda: AttentionProbe(TOKENS, examples=0), ValueError, "examples=0"),
        (lambda: AttentionProbe(TOKENS, length=1), ValueError, "length=1"),
        (lambda: AttentionLift(TOKENS, np.ones(40)), TypeError, "token_counts"),
        (lambda: AttentionLift(TOKENS, np.ones(10, dtype=int)), ValueError, "vocabulary is 0..9"),
        (lambda: AttentionLift(TOKENS[:1], np.ones(40, dtype=int)), ValueError, "needs two"),
        (lambda: AttentionLift(TOKENS, np.ones(40, dtype=int), ranks=(3, 5)), ValueError, "begin with 0"),
        (lambda: AttentionLift(TOKENS, np.ones(40, dtype=int), draws=3), ValueError, "draws=3"),
        (lambda: StableRank(null_seeds=1), ValueError, "null_seeds"),
        (lambda: StableRank(reference=3), TypeError, "hooked model"),
        (lambda: StableRank(model_of(d_head=2), null_seeds=0)(model_of()), ValueError, "same run"),
        (lambda: spread_scores(torch.ones(1, 1, 3, 3)), ValueError, "rows sum to"),
        (lambda: AttentionSpread(TOKENS + 30)(model_of()), ValueError, "vocabulary is 0..39"),
        (lambda: AttentionSpread(TOKENS)(3), TypeError, "hooked model"),
    ],
)
def test_bad_input(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_found(training: bool) -> None:
    model = model_of().train(training)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    counts = np.bincount(TOKENS.flatten(), minlength=40)
    evaluated = [
        AttentionSpread(TOKENS)(model.eval()),
        AttentionProbe(TOKENS)(model),
        AttentionLift(TOKENS, counts, draws=19)(model),
    ]
    model.train(training)
    again = [AttentionSpread(TOKENS)(model), AttentionProbe(TOKENS)(model), AttentionLift(TOKENS, counts, draws=19)(model)]
    assert all(one.identical(other) for one, other in zip(evaluated, again, strict=True))
    assert model.training == training and not any(point.fwd_hooks for point in model.hook_dict.values())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
