"""Composition scores: dense twins, transformer-lens' numbers, planted channels, and what the nulls call large."""

from typing import Any

import numpy as np
import pytest
import torch

from circuits.models.hooked import HookedTransformer
from circuits.models.planted import planted_model
from circuits.weights.composition import (
    Composition,
    Side,
    compose_pairs,
    covariance_blocks,
    gaussian_baseline,
    readers,
    side,
    writers,
)
from circuits.weights.folded import folded
from circuits.weights.haar import corner_blocks, shares, squared_score_moments, upper_tail

CFG = {"n_layers": 3, "d_model": 24, "n_heads": 3, "d_head": 6, "n_ctx": 16, "d_vocab": 40, "attn_only": True}


def model(**changes: Any) -> HookedTransformer:
    made = HookedTransformer(CFG | changes)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "ln" in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=rng))
    return made


def dense(made: HookedTransformer, mode: str, src: tuple[int, int], dst: tuple[int, int]) -> float:
    """The definition, with d x d matrices and the norm in front of every reader written out."""
    d = made.cfg.d_model
    centre = torch.eye(d, dtype=torch.float64) - 1 / d
    weight = {name: getattr(made, name).detach().double() for name in ("W_Q", "W_K", "W_V", "W_O")}

    def read(name: str, layer: int, head: int) -> torch.Tensor:
        if made.cfg.normalization_type != "LN":
            return weight[name][layer, head]
        return centre @ torch.diag(made.blocks[layer].ln1.w.detach().double()) @ weight[name][layer, head]

    out = centre if made.cfg.normalization_type == "LN" else torch.eye(d, dtype=torch.float64)
    writes = read("W_V", *src) @ weight["W_O"][src] @ out
    reads = {
        "Q": read("W_Q", *dst) @ read("W_K", *dst).T,
        "K": read("W_K", *dst) @ read("W_Q", *dst).T,
        "V": read("W_V", *dst) @ weight["W_O"][dst] @ out,
    }[mode]
    return float((writes @ reads).norm() / (writes.norm() * reads.norm()))


@pytest.mark.parametrize("norm", ["LN", None])
def test_scores_are_the_dense_ratio_of_norms(norm: str | None):
    made = model(normalization_type=norm)
    found = Composition(draws=20, covariance_draws=0)(made)
    for mode in ("Q", "K", "V"):
        for src, dst in (((0, 1), (1, 2)), ((0, 2), (2, 0)), ((1, 0), (2, 1))):
            place = {"mode": mode, "src_layer": src[0], "src_head": src[1], "dst_layer": dst[0], "dst_head": dst[1]}
            assert float(found.value.sel(place)) == pytest.approx(dense(made, mode, src, dst), abs=1e-10)
    later = found.value.sel(src_layer=2)
    assert bool(np.isnan(later).all()) and bool(np.isfinite(found.value.sel(src_layer=0, dst_layer=[1, 2])).all())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scores_are_those_of_transformer_lens():
    from transformer_lens import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    fields = {key: value for key, value in CFG.items() if key != "n_ctx"}
    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**fields, n_ctx=16, normalization_type=None, device="cpu"))
    ours = Composition(draws=20, covariance_draws=0)(bridge.eval())
    for mode in ("Q", "K", "V"):
        theirs = torch.as_tensor(getattr(bridge.all_composition_scores(mode), "scores", bridge.all_composition_scores(mode)))
        for src in range(2):
            for dst in range(src + 1, 3):
                found = ours.value.sel(mode=mode, src_layer=src, dst_layer=dst).values
                assert np.abs(found - theirs[src, :, dst].detach().numpy()).max() < 1e-6


def planted_channel(width: int, strength: float, law: float, seed: int, dims: int = 64, r: int = 16) -> tuple[Side, Side]:
    """A writer and a reader of random orientation, ``width`` directions of the writer's spectrum read by the reader."""
    rng = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(dims, dims, generator=rng, dtype=torch.float64)).Q.T
    other = torch.linalg.qr(torch.randn(dims, r, generator=rng, dtype=torch.float64)).Q.T
    squares = torch.arange(1, r + 1, dtype=torch.float64) ** -law
    place = torch.arange(4, 4 + width)  # in the middle of both spectra, where a realistic channel lies
    shared = other.clone()
    shared[place] = strength * frame[place] + (1 - strength**2) ** 0.5 * other[place]
    shared = torch.linalg.qr(shared.T).Q.T
    return Side(squares[None], frame[None, :r]), Side(squares[None], shared[None])


@pytest.mark.science
@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_narrow_channel_shows_in_its_components_and_hardly_in_the_score(width: int):
    """ROC over 60 pairs with a channel and 60 without, spectra s ~ 1/sqrt(i): components and kernel beat the score."""
    curves = {}
    for name in ("squared", "by_writer", "by_reader", "kernel"):
        made = [
            [float(getattr(compose_pairs(*planted_channel(w, 0.95, 1.0, seed), 64), name)) for seed in seeds]
            for w, seeds in ((width, range(60)), (0, range(60, 120)))
        ]
        with_channel, without = np.array(made[0]), np.array(made[1])
        curves[name] = float(np.mean(with_channel[:, None] > without[None]))
    assert all(curves[name] > curves["squared"] for name in ("by_writer", "by_reader"))
    assert curves["kernel"] > curves["squared"] and curves["kernel"] > 0.75
    assert curves["squared"] < 0.999


@pytest.mark.science
def test_a_planted_circuit_below_the_random_baseline_is_found_where_tokens_come_in():
    """A perfect K-composition circuit beside strong directions that nobody reads: the score misses it, tokens find it."""
    made = planted_model(d_vocab=20, n_ctx=20)
    with torch.no_grad():
        attn, size = made.blocks[0].attn, made.cfg.d_head
        rng = torch.Generator().manual_seed(0)
        # What no token carries (the position slot is never written) is read and written out strongly, into unread room.
        attn.W_V[0, 40:60, size // 2 :] += 30 * torch.randn(20, size // 2, generator=rng)
        attn.W_O[0, size // 2 :, 40:60] += 30 * torch.randn(size // 2, 20, generator=rng)
    place = {"mode": "K", "src_layer": 0, "src_head": 0, "dst_layer": 1, "dst_head": 0}
    plain = Composition(draws=200, covariance_draws=0)(made).sel(place)
    tokens = Composition(draws=200, covariance_draws=0, tokens=True)(made).sel(place)
    assert float(plain.value) ** 2 < float(plain.null_mean), "the plant must lie below its baseline, or this shows nothing"
    assert float(plain.p) > 0.05
    assert float(tokens.p) == pytest.approx(1 / 201) and float(tokens.z) > 5
    assert float(plain.by_reader) < float(tokens.by_reader)


@pytest.mark.science
def test_the_gaussian_constant_is_one_over_root_d():
    mean, sd = gaussian_baseline(64, 16)
    assert mean == pytest.approx(0.1255, abs=4 * 0.0068 / 200**0.5) and sd == pytest.approx(0.0068, rel=0.2)


@pytest.mark.science
def test_untrained_heads_beat_random_orientation_as_often_as_p_says():
    """The null as a whole, from weights to p: of untrained pairs about 5% have p < .05, and z has sd 1."""
    made = HookedTransformer(CFG | {"n_heads": 12, "d_model": 48, "d_head": 8, "normalization_type": "LNPre"})
    found = Composition(draws=4000, covariance_draws=0)(made)
    p, z = (found[name].values[np.isfinite(found[name].values)] for name in ("p", "z"))
    count = len(p)
    assert count == 3 * 3 * 12 * 12
    # Pairs share heads, so the effective number is smaller; 3% either way is 3 standard errors of 475 independent pairs.
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.03)
    assert 0.8 < z.std() < 1.25 and abs(z.mean()) < 0.3


@pytest.mark.science
def test_directions_shared_by_all_heads_are_no_evidence_under_the_covariance_null():
    """Every writer writes into, every reader reads from, the same 6 of 48 directions: random orientation calls all large."""
    rng = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(48, 6, generator=rng, dtype=torch.float64)).Q.T
    heads = [torch.randn(8, 48, 4, generator=rng, dtype=torch.float64), torch.randn(8, 4, 6, generator=rng, dtype=torch.float64)]
    writer = side(heads[0], heads[1] @ basis)
    reader = side(torch.randn(8, 48, 4, generator=rng, dtype=torch.float64), torch.randn(8, 4, 6, generator=rng).double() @ basis)
    squared = compose_pairs(writer, reader, 48).squared
    haar = upper_tail(squared, writer.squares, reader.squares, corner_blocks(4, 4, 48, 2000, rng))
    drawn = upper_tail(squared, writer.squares, reader.squares, covariance_blocks(writer, reader, 2000, rng))
    assert float((haar < 0.01).double().mean()) > 0.9
    assert float((drawn < 0.05).double().mean()) < 0.2


def test_aligned_heads_reach_their_maximum_and_zero_heads_compose_with_nothing():
    rng = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(12, 4, generator=rng, dtype=torch.float64)).Q.T
    squares = torch.tensor([[4.0, 3.0, 2.0, 1.0]], dtype=torch.float64)
    one, none = Side(squares, frame[None]), Side(torch.zeros_like(squares), frame[None])
    best = compose_pairs(one, one, 12)
    assert float(best.normalised) == pytest.approx(1.0) and float(best.kernel) == pytest.approx(1.0)
    assert float(best.by_writer) == pytest.approx(0.4) and float(best.squared) == pytest.approx(0.3)
    nothing = compose_pairs(one, none, 12)
    assert [float(getattr(nothing, name)) for name in ("squared", "normalised", "by_writer", "by_reader", "kernel")] == [0.0] * 5
    mean, sd = squared_score_moments(shares(squares), shares(squares), 12)
    assert float((best.squared - mean) / sd) > 3


def test_folded_weights_give_the_models_own_scores():
    """Layer 0, shortformer and LN: (x/sigma + p) as the folded weights read it is the q and k that the model computes."""
    made = model(positional_embedding_type="shortformer", dtype="float64").eval()
    tokens = torch.arange(10)[None]
    _, cache = made.run_with_cache(tokens)
    weights = folded(made)
    x = weights.W_E[tokens[0]]
    sigma = (x.var(-1, correction=0, keepdim=True) + made.cfg.eps).sqrt()
    assert weights.W_pos is not None and weights.centred and weights.dims == 23
    for name, reader, position, bias in (
        ("q", weights.W_Q, weights.pos_Q, weights.b_Q),
        ("k", weights.W_K, weights.pos_K, weights.b_K),
    ):
        read = [torch.einsum("pd,hdr->phr", *pair) for pair in ((x / sigma, reader[0]), (weights.W_pos[:10], position[0]))]
        expected = read[0] + read[1] + bias[0]
        torch.testing.assert_close(cache[name, 0][0], expected, rtol=0, atol=1e-12)
    resid = cache["resid_post", 2][0]
    scale = (resid.var(-1, correction=0, keepdim=True) + made.cfg.eps).sqrt()
    torch.testing.assert_close(made(tokens)[0], resid / scale @ weights.W_U + weights.b_U, rtol=0, atol=1e-12)


def test_a_subspace_restricts_the_interface():
    weights = folded(model())
    basis = torch.eye(24, dtype=torch.float64)[:, :10]
    writer, reader = writers(weights, 0, basis=basis), readers(weights, 1, "K", basis=basis)
    found = compose_pairs(writer, reader, 10).squared.sqrt()
    a = weights.W_V[0, 1] @ weights.writes(weights.W_O[0, 1])[:, :10]
    b = (weights.W_K[1, 2] @ weights.W_Q[1, 2].T)[:10]
    assert float(found[1, 2]) == pytest.approx(float((a @ b).norm() / (a.norm() * b.norm())), abs=1e-10)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Composition(draws=0), ValueError, "draws=0, covariance_draws=500: need whole numbers of at least 1 and 0"),
        (lambda: Composition(draws="many"), ValueError, "draws='many', covariance_draws=500: need whole numbers"),
        (lambda: Composition()(model(n_layers=1)), ValueError, "the model has 1 layer, composition needs 2"),
        (lambda: Composition()("gpt2"), TypeError, "got str, need a hooked model"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()
