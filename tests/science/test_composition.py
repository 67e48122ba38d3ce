"""Composition scores: dense twins, transformer-lens' numbers, planted channels, and what the nulls call large."""

from typing import Any

import numpy as np
import pytest
import torch

from circuits.models.hooked import HookedTransformer
from circuits.models.planted import planted_model
from circuits.weights.calibration import Law, channel_auc, squared_spectrum
from circuits.weights.components import components
from circuits.weights.composition import Composition, false_discovery
from circuits.weights.embedding_composition import EmbeddingComposition
from circuits.weights.factored import compose, product_norm
from circuits.weights.folded import folded
from circuits.weights.haar import shares, squared_score_moments, upper_tails
from circuits.weights.interfaces import Side, activation_moments, side
from circuits.weights.pairs import compose_pairs, gaussian_baseline
from circuits.weights.pooled import drawn_heads, pooled_counts
from circuits.weights.scores import composition_scores

CFG = {"n_layers": 3, "d_model": 24, "n_heads": 3, "d_head": 6, "n_ctx": 16, "d_vocab": 40, "attn_only": True}


def model(**changes: Any) -> HookedTransformer:
    """A model in double precision, with gains that are not 1."""
    made = HookedTransformer(CFG | {"dtype": "float64"} | changes)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "ln" in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=rng, dtype=weight.dtype))
    return made


def read_by(made: HookedTransformer, name: str, layer: int, head: int) -> torch.Tensor:
    """A reading weight with the norm in front of it written out as a matrix."""
    d, weight = made.cfg.d_model, getattr(made, name).detach().double()[layer, head]
    if made.cfg.normalization_type != "LN":
        return weight
    return (torch.eye(d, dtype=torch.float64) - 1 / d) @ torch.diag(made.blocks[layer].ln1.w.detach().double()) @ weight


def ratio(writes: torch.Tensor, reads: torch.Tensor) -> float:
    return float((writes @ reads).norm() / (writes.norm() * reads.norm()))


def dense(
    made: HookedTransformer,
    mode: str,
    src: tuple[int, int],
    dst: tuple[int, int],
    *,
    incoming: torch.Tensor | None = None,
    onto: torch.Tensor | None = None,
    other: torch.Tensor | None = None,
) -> float:
    """The definition with d x d matrices. ``incoming`` multiplies from the left, ``onto`` is a projector of the stream,
    ``other`` replaces what the later head's other side reads."""
    eye = torch.eye(made.cfg.d_model, dtype=torch.float64)
    out = eye - 1 / made.cfg.d_model if made.cfg.normalization_type == "LN" else eye
    enter, onto = eye if incoming is None else incoming, eye if onto is None else onto
    W_O = made.W_O.detach().double()
    writes = enter @ read_by(made, "W_V", *src) @ W_O[src] @ out @ onto
    q, k = read_by(made, "W_Q", *dst), read_by(made, "W_K", *dst)
    reads = {
        "Q": onto @ q @ (enter @ k if other is None else other).T,
        "K": onto @ k @ (enter @ q if other is None else other).T,
        "V": onto @ read_by(made, "W_V", *dst) @ W_O[dst] @ out,
    }[mode]
    return ratio(writes, reads)


PAIRS = [(mode, src, dst) for mode in ("Q", "K", "V") for src, dst in (((0, 1), (1, 2)), ((0, 2), (2, 0)), ((1, 0), (2, 1)))]


def at(mode: str, src: tuple[int, int], dst: tuple[int, int]) -> dict[str, Any]:
    return {"mode": mode, "src_layer": src[0], "src_head": src[1], "dst_layer": dst[0], "dst_head": dst[1]}


@pytest.mark.parametrize("norm", ["LN", None])
@pytest.mark.parametrize("d_head", [6, 16])
def test_scores_are_the_dense_ratio_of_norms(norm: str | None, d_head: int):
    """Also where heads are wider than half the stream, without rank, or zero; float32 models to their precision."""
    made = model(normalization_type=norm, d_head=d_head)
    with torch.no_grad():
        made.blocks[0].attn.W_O[2, 3:] = 0.0  # rank 3
        made.blocks[1].attn.W_V[0] = 0.0
    found = Composition(draws=20, pooled_heads=0)(made)
    for pair in PAIRS[:2] + PAIRS[3:5] + PAIRS[6:8]:
        assert float(found.value.sel(at(*pair))) == pytest.approx(dense(made, *pair), abs=1e-10)
    later = found.value.sel(src_layer=2)
    assert bool(np.isnan(later).all()) and bool(np.isfinite(found.value.sel(src_layer=0, dst_layer=[1, 2])).all())
    zero = found.sel(at("K", (1, 0), (2, 1)))
    assert float(zero.value) == 0 and str(zero.state.values) == "zero" and float(zero.p) == 1
    assert all(np.isfinite(float(zero[name])) for name in ("normalised", "by_writer", "strongest", "kernel", "z", "z_layer"))
    assert str(found.state.sel(at("K", (1, 1), (1, 0))).values) == "missing"
    single = Composition(draws=20, pooled_heads=0)(made.float())
    assert np.nanmax(np.abs(single.value.values - found.value.values)) < 1e-6


@pytest.mark.parametrize("norm", ["LN", "RMS", None])
def test_scores_by_what_comes_in(norm: str | None):
    """Tokens, standard positions and activations: the roots of their second moments, multiplied in densely."""
    made = model(normalization_type=norm)
    tokens = torch.randint(0, 40, (3, 16), generator=torch.Generator().manual_seed(2))
    _, cache = made.run_with_cache(tokens)
    streams = [cache["resid_pre", layer].detach().flatten(0, 1) for layer in range(3)]
    if norm == "LN":
        streams = [x - x.mean(-1, keepdim=True) for x in streams]
    if norm:
        streams = [x / (x.square().mean(-1, keepdim=True) + made.cfg.eps).sqrt() for x in streams]
    measures = {
        "tokens": (Composition("tokens", draws=5, pooled_heads=0), made.W_E.detach().double()),
        "positions": (Composition("positions", draws=5, pooled_heads=0), made.W_pos.detach().double()),
    }
    for measure, rows in measures.values():
        found = measure(made)
        if norm != "RMS":  # dense() has no RMS gain
            for pair in PAIRS:
                assert float(found.value.sel(at(*pair))) == pytest.approx(dense(made, *pair, incoming=rows), abs=1e-9)
    moments = activation_moments(made, folded(made), tokens)
    for layer, x in enumerate(streams):
        torch.testing.assert_close(moments[layer], x.T @ x / len(x), rtol=0, atol=1e-10)
    found = Composition("activations", tokens, draws=5, pooled_heads=0)(made)
    if norm != "RMS":
        # The later head's other side reads its own layer's stream, the earlier head's values theirs.
        other = streams[2] @ read_by(made, "W_Q", 2, 1)
        expected = dense(made, "K", (0, 2), (2, 1), incoming=streams[0], other=other)
        assert float(found.value.sel(at("K", (0, 2), (2, 1)))) == pytest.approx(expected, abs=1e-9)


def test_shortformer_positions_reach_the_other_side_alone():
    made = model(positional_embedding_type="shortformer")
    found = Composition("positions", draws=5, pooled_heads=0)(made)
    other = made.W_pos.detach() @ made.W_Q.detach()[1, 2]
    expected = dense(made, "K", (0, 1), (1, 2), incoming=made.W_E.detach(), other=other)
    assert float(found.value.sel(at("K", (0, 1), (1, 2)))) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("norm", "dims"), [("LN", 23), ("RMS", 24), (None, 24)])
def test_without_the_mean_direction_there_is_one_dimension_less(norm: str | None, dims: int):
    """LN takes out the all-ones direction, ``remove_mean`` that of the mean embedding: the null is in d - 1, d - 2 dimensions."""
    made = model(normalization_type=norm)
    plain, removed = (Composition(draws=20, pooled_heads=0, remove_mean=flag)(made) for flag in (False, True))
    assert (plain.attrs["dims"], removed.attrs["dims"]) == (dims, dims - 1)
    assert np.nanmax(np.abs(plain.null_mean - 1 / dims)) < 1e-15 > np.nanmax(np.abs(removed.null_mean - 1 / (dims - 1)))
    mean = made.W_E.detach().mean(0)
    mean = mean - mean.mean() if norm == "LN" else mean
    onto = torch.eye(24, dtype=torch.float64) - torch.outer(mean, mean) / mean.square().sum()
    if norm != "RMS":
        for pair in PAIRS:
            assert float(removed.value.sel(at(*pair))) == pytest.approx(dense(made, *pair, onto=onto), abs=1e-10)


@pytest.mark.science
def test_a_mean_that_all_heads_share_is_no_evidence_once_removed():
    """Every head writes the mean embedding strongly and reads it: all pairs look large, and none of them without it."""
    made = model(normalization_type=None, n_heads=8, d_model=48)
    with torch.no_grad():
        mean = torch.nn.functional.normalize(made.W_E.mean(0), dim=0)
        for block in made.blocks:
            for name in ("W_Q", "W_K", "W_V"):
                getattr(block.attn, name)[:] += 3 * getattr(block.attn, name).norm() / 8 * mean[:, None] / 6**0.5
            block.attn.W_O[:] += 3 * block.attn.W_O.norm() / 8 * mean / 6**0.5
    plain, removed = (Composition(draws=2000, pooled_heads=0, remove_mean=flag)(made) for flag in (False, True))
    p = [found.p.values[np.isfinite(found.p.values)] for found in (plain, removed)]
    assert np.mean(p[0] < 0.01) > 0.9
    # 3 x 3 x 64 pairs that share heads: about 200 independent ones, 5 +- 1.5%.
    assert np.mean(p[1] < 0.05) == pytest.approx(0.05, abs=0.045)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_scores_alone_are_those_of_the_measure(dtype: str):
    """Fast = slow, with heads without rank and zero heads; to 1e-6 in float32, 1e-10 in float64 (1e-7 without rank: Grams)."""
    for rank in (6, 3, 0):
        made = model(dtype=dtype)
        with torch.no_grad():
            made.blocks[0].attn.W_O[1, rank:] = 0.0
            made.blocks[2].attn.W_K[2, :, rank:] = 0.0
        w = folded(made)
        weights = [x.to(made.W_Q.dtype) for x in (w.W_Q, w.W_K, w.W_V, w.writes(w.W_O))]
        found, slow = composition_scores(*weights).double().numpy(), Composition(draws=5, pooled_heads=0)(made).value.values
        np.testing.assert_array_equal(np.isnan(found), np.isnan(slow))
        assert np.nanmax(np.abs(found - slow)) < (1e-6 if dtype == "float32" else 1e-10 if rank == 6 else 1e-7)


@pytest.mark.usefixtures("unchecked")
def test_grouped_keys_are_refused_by_the_scores_alone():
    w = folded(model())
    with pytest.raises(
        ValueError, match=r"W_K has shape \(3, 1, 24, 6\), with W_Q \(3, 3, 24, 6\) it has to be .*repeat_interleave"
    ):
        composition_scores(w.W_Q, w.W_K[:, :1], w.W_V, w.W_O)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scores_are_those_of_transformer_lens():
    from transformer_lens import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    fields = {key: value for key, value in CFG.items() if key != "n_ctx"}
    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**fields, n_ctx=16, normalization_type=None, device="cpu"))
    ours = Composition(draws=20, pooled_heads=0)(bridge.eval())
    for mode in ("Q", "K", "V"):
        theirs = torch.as_tensor(getattr(bridge.all_composition_scores(mode), "scores", bridge.all_composition_scores(mode)))
        for src in range(2):
            for dst in range(src + 1, 3):
                found = ours.value.sel(mode=mode, src_layer=src, dst_layer=dst).values
                assert np.abs(found - theirs[src, :, dst].detach().numpy()).max() < 1e-6


@pytest.mark.science
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("law", ["1/sqrt(i)", "1/i"])
def test_a_narrow_channel_shows_in_its_components_and_hardly_in_the_score(law: Law, width: int):
    """100 pairs with a channel in the middle of both spectra, 100 without: components and kernel tell them apart.

    By how much is said in standard errors of the areas. At 1/i the score, and components weighted by the other side's spectrum,
    are at chance; that ``by_writer`` is no better there is why ``strongest`` exists.
    """
    found = channel_auc(law, width)
    area, stderr = found.value.to_series(), found.stderr.to_series()
    for name in ("strongest", "kernel"):
        assert area[name] - area["squared"] > 3 * stderr["squared"]
    assert area["strongest"] > 0.99 and area["kernel"] > 0.85
    if law == "1/sqrt(i)":
        assert min(area["by_writer"], area["by_reader"]) > area["squared"]
    else:
        assert abs(area["squared"] - 0.5) < 3 * stderr["squared"] > abs(area["by_writer"] - 0.5)


@pytest.mark.science
def test_scores_of_two_random_groups_are_at_chance():
    found = channel_auc("1/sqrt(i)", 0)
    assert bool((abs(found.value - 0.5) < 3 * found.stderr).all())


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
    plain = Composition(draws=200, pooled_heads=0)(made).sel(place)
    tokens = Composition("tokens", draws=200, pooled_heads=0)(made).sel(place)
    assert float(plain.value) ** 2 < float(plain.null_mean), "the plant must lie below its baseline, or this shows nothing"
    assert float(plain.p) > 0.05
    assert float(plain.p_by_writer) == pytest.approx(1 / 201), "the one direction that carries the token is read in full"
    assert float(tokens.p) == pytest.approx(1 / 201) and float(tokens.z) > 5
    assert float(plain.by_reader) < float(tokens.by_reader)


@pytest.mark.science
def test_the_gaussian_constant_is_one_over_root_d():
    mean, sd = gaussian_baseline(64, 16)
    assert mean == pytest.approx(1 / 8, abs=4 * 0.007 / 1000**0.5) and sd == pytest.approx(0.007, rel=0.1)


@pytest.mark.science
def test_gaussian_heads_without_their_matrices_score_as_with_them():
    """The triangles and blocks of gaussian_baseline against 1,000 pairs of whole Gaussian heads, mean and sd within 4 errors."""
    rng = torch.Generator().manual_seed(0)
    out, value, read, other = (torch.randn(1000, 40, 8, generator=rng, dtype=torch.float64) for _ in range(4))
    norms = product_norm(out, value.mT) * product_norm(read, other.mT)
    literal = product_norm(*compose(out, value.mT, read, other.mT)) / norms
    mean, sd = gaussian_baseline(40, 8)
    error = float(literal.std()) / 1000**0.5
    assert abs(mean - float(literal.mean())) < 4 * error * 2**0.5
    assert abs(sd - float(literal.std())) < 4 * error


@pytest.mark.science
def test_untrained_heads_beat_random_orientation_as_often_as_p_says():
    """The null as a whole, from weights to p: of untrained pairs about 5% have p < .05, and z has sd 1."""
    made = HookedTransformer(CFG | {"n_heads": 12, "d_model": 48, "d_head": 8, "normalization_type": "LNPre"})
    found = Composition(draws=4000, pooled_heads=0)(made)
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
    squared, whole = compose_pairs(writer, reader, 48).squared, [(slice(0, 8), slice(0, 8))]
    haar = upper_tails(squared, writer.squares, reader.squares, whole, 48, 2000, rng)["p"]
    heads = [drawn_heads(one, 45, rng) for one in (writer, reader)]
    drawn = (1 + pooled_counts(squared, writer.squares, reader.squares, *heads)).double() / (1 + 45**2)
    assert float((haar < 0.01).double().mean()) > 0.9
    assert float((drawn < 0.05).double().mean()) < 0.1


@pytest.mark.science
@pytest.mark.parametrize("law", ["flat", "1/sqrt(i)", "1/i"])
@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_unrelated_heads_of_one_covariance_do_not_beat_the_pooled_null(law: Law, slope: float):
    """Rows drawn from a covariance with eigenvalues i^-slope, weighted by a spectrum: 25 models of 8 x 8 unrelated pairs.

    Pairs of a model share heads, so 1,600 pairs count as 200 independent ones or so: 5 +- 1.6% below .05, 1 +- .7% below .01;
    three times that above is the bound, and below there is none, the null errs to the careful side. The control is random
    orientation.
    """
    r, dims, heads = 16, 128, 8
    below, control = [], []
    for seed in range(25):
        rng = torch.Generator().manual_seed(seed)
        scale = torch.arange(1, dims + 1, dtype=torch.float64) ** (-slope / 2)
        weights = squared_spectrum(law, r).sqrt()[:, None]
        outer = torch.eye(r, dtype=torch.float64).expand(heads, r, r)
        made = [torch.randn(heads, r, dims, generator=rng, dtype=torch.float64) * scale * weights for _ in range(2)]
        writer, reader = (side(outer, rows) for rows in made)
        squared = compose_pairs(writer, reader, dims).squared
        drawn = [drawn_heads(one, 40, rng) for one in (writer, reader)]
        below.append((1 + pooled_counts(squared, writer.squares, reader.squares, *drawn)).double() / (1 + 40**2))
        mean, sd = squared_score_moments(writer.squares[:, None], reader.squares[None], dims)
        control.append((squared - mean) / sd)
    p, z = torch.stack(below), torch.stack(control)
    assert float((p < 0.05).double().mean()) < 0.1 and float((p < 0.01).double().mean()) < 0.031
    if slope == 2:
        assert float((z > 3).double().mean()) > 0.4, "or sharing a covariance is no difficulty"


@pytest.mark.science
def test_drawn_heads_have_the_pooled_covariance_and_are_counted_one_by_one():
    rng = torch.Generator().manual_seed(0)
    one = side(torch.randn(3, 20, 4, generator=rng), torch.randn(3, 4, 12, generator=rng))
    vectors = drawn_heads(one, 4000, rng).double().flatten(0, 1)
    expected = torch.einsum("hr,hrd,hre->de", shares(one.squares), one.directions, one.directions)
    error = (torch.outer(expected.diagonal(), expected.diagonal()) + expected.square()).div(len(vectors)).sqrt()
    assert bool(((vectors.T @ vectors / len(vectors) - expected).abs() < 5 * error).all())
    writer, reader = (drawn_heads(one, n, rng).double() for n in (5, 7))
    a = b = shares(one.squares)
    both = torch.einsum("mi,fid,gjd,nj->fgmn", a, writer, reader, b) * 0
    for f, g in np.ndindex(5, 7):
        cosines = (writer[f] @ reader[g].T).square()
        sizes = torch.outer(a @ writer[f].square().sum(1), b @ reader[g].square().sum(1))
        both[f, g] = a @ cosines @ b.T / sizes
    bound = torch.full((3, 3), float(both.median())).double()
    literal = (both >= bound).sum((0, 1))
    assert (pooled_counts(bound, one.squares, one.squares, writer.float(), reader.float()) - literal).abs().max() <= 1  # rounding


@pytest.mark.parametrize(
    ("norm", "remove_mean", "dims"), [("LN", False, 15), ("LN", True, 14), (None, True, 15), (None, False, 16)]
)
def test_a_head_as_wide_as_the_stream(norm: str | None, remove_mean: bool, dims: int):
    """One head of d_model dimensions: norms leave fewer directions than it has, and everything is still a number."""
    made = model(d_model=16, n_heads=1, d_head=16, normalization_type=norm)
    found = Composition(remove_mean=remove_mean, draws=20, pooled_heads=4)(made).sel(src_layer=0, src_head=0, dst_head=0)
    assert found.attrs["dims"] == dims and bool(np.isfinite(found.sel(dst_layer=[1, 2]).drop_vars("stderr").z).all())
    if not remove_mean:
        value = float(found.value.sel(mode="K", dst_layer=1))
        assert value == pytest.approx(dense(made, "K", (0, 0), (1, 0)), abs=1e-10)
    assert components(made, "K", "L0H0", "L1H0", remove_mean=remove_mean, draws=20).sizes["component"] == dims
    assert bool(np.isfinite(EmbeddingComposition(draws=20)(made).z.sel(part=["embed.K", "unembed"])).all())


def test_rounding_of_a_low_rank_float32_head_is_no_direction():
    """Weights of rank 2 in float32: kernel and strongest are those of the two directions there are."""
    made = model(d_model=64, d_head=16, dtype="float32", normalization_type=None)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in made.blocks:
            for name in ("W_Q", "W_K", "W_V"):
                low = torch.randn(3, 64, 2, generator=rng) @ torch.randn(3, 2, 16, generator=rng)
                getattr(block.attn, name).copy_(low)
    found = Composition(draws=20, pooled_heads=0)(made).sel(at("K", (0, 1), (1, 2)))
    W = {name: getattr(made, name).detach().double() for name in ("W_V", "W_O", "W_K", "W_Q")}
    writes = torch.linalg.svd(W["W_V"][0, 1] @ W["W_O"][0, 1]).Vh[:2]
    reads = torch.linalg.svd(W["W_K"][1, 2] @ W["W_Q"][1, 2].T).U[:, :2]
    cosines = (writes @ reads).square()
    assert float(found.kernel) == pytest.approx(float(cosines.sum() / 2), abs=1e-5)
    assert float(found.strongest) == pytest.approx(float(cosines.max()), abs=1e-5)


def test_aligned_heads_reach_their_maximum_and_zero_heads_compose_with_nothing():
    rng = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(12, 4, generator=rng, dtype=torch.float64)).Q.T
    squares = torch.tensor([[4.0, 3.0, 2.0, 1.0]], dtype=torch.float64)
    one, none = Side(squares, frame[None]), Side(torch.zeros_like(squares), frame[None])
    best = compose_pairs(one, one, 12)
    assert float(best.normalised) == pytest.approx(1.0) and float(best.kernel) == pytest.approx(1.0)
    assert float(best.by_writer) == pytest.approx(0.4) and float(best.squared) == pytest.approx(0.3)
    nothing = compose_pairs(one, none, 12)
    assert [
        float(getattr(nothing, name)) for name in ("squared", "normalised", "by_writer", "by_reader", "strongest", "kernel")
    ] == [0.0] * 6
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
    torch.testing.assert_close(made(tokens)[0], weights.logits(resid / scale) + weights.b_U, rtol=0, atol=1e-12)


def test_components_add_up_to_the_score_and_show_a_channel():
    made = model()
    found = components(made, "K", "L0H1", "L1H2", draws=500)
    squared = dense(made, "K", (0, 1), (1, 2)) ** 2
    assert float((found.writer_share * found["read"]).sum()) == pytest.approx(squared, abs=1e-10)
    assert float((found.reader_share * found.written).sum()) == pytest.approx(squared, abs=1e-10)
    assert float(found.chance) == pytest.approx(1 / 23)
    whole = Composition(draws=20, pooled_heads=0)(made).sel(at("K", (0, 1), (1, 2)))
    assert float(found["read"].max()) == pytest.approx(float(whole.by_writer), abs=1e-10)
    assert float(found.written.max()) == pytest.approx(float(whole.by_reader), abs=1e-10)
    with torch.no_grad():  # the reader's one strong direction is the writer's third
        weights = folded(made)
        third = side(weights.W_V[0], weights.writes(weights.W_O[0])).directions[1, 2]
        made.blocks[1].attn.W_K[2] = 0.05 * made.W_K[1, 2]
        made.blocks[1].attn.W_K[2, :, 0] += 5 * third / made.blocks[1].ln1.w
    channel = components(made, "K", "L0H1", "L1H2", draws=500)
    assert int(channel["read"].values.argmax()) == 2 and float(channel.p_read[2]) == pytest.approx(1 / 501)
    # What is written into that direction is the third's share of all that is written, no more.
    assert float(channel.written[0]) == pytest.approx(float(channel.writer_share[2]), rel=0.02)
    assert float(channel["read"][2]) > 0.9 and float(channel.p_read[5]) > 0.01


@pytest.mark.parametrize("norm", ["LN", None])
def test_embeddings_compose_as_dense_matrices_do(norm: str | None):
    made = model(normalization_type=norm)
    with torch.no_grad():
        made.blocks[2].attn.W_O[1] = 0.0
    found = EmbeddingComposition(draws=50)(made)
    eye = torch.eye(24, dtype=torch.float64)
    out = eye - 1 / 24 if norm else eye
    last = out @ torch.diag(made.ln_final.w.detach()) if norm else eye
    rows = {"embed": made.W_E.detach() @ out, "position": made.W_pos.detach() @ out}
    for layer, head in ((0, 1), (2, 0)):
        q, k, v = (read_by(made, name, layer, head) for name in ("W_Q", "W_K", "W_V"))
        W_O = made.W_O.detach()[layer, head]
        for name, matrix in rows.items():
            for mode, reads in (("Q", q @ k.T), ("K", k @ q.T), ("V", v @ W_O @ out)):
                value = float(found.value.sel(part=f"{name}.{mode}", layer=layer, head=head))
                assert value == pytest.approx(ratio(matrix, reads), abs=1e-10)
        value = float(found.value.sel(part="unembed", layer=layer, head=head))
        assert value == pytest.approx(ratio(v @ W_O @ out, last @ made.W_U.detach()), abs=1e-10)
    zero = found.sel(part="unembed", layer=2, head=1)
    assert float(zero.value) == 0 and str(zero.state.values) == "zero" and float(zero.p) == 1
    assert bool(np.isfinite(found.z).all())


def test_shortformer_positions_compose_behind_the_norm():
    made = model(positional_embedding_type="shortformer")
    found = EmbeddingComposition(draws=50)(made)
    rows, q, k = made.W_pos.detach(), made.W_Q.detach()[1, 2], read_by(made, "W_K", 1, 2)
    assert float(found.value.sel(part="position.Q", layer=1, head=2)) == pytest.approx(ratio(rows, q @ k.T), abs=1e-10)
    assert str(found.state.sel(part="position.V", layer=1, head=2).values) == "missing"
    no = EmbeddingComposition(draws=50)(model(positional_embedding_type="rotary"))
    assert bool(np.isnan(no.value.sel(part="position.K")).all()) and bool(np.isfinite(no.value.sel(part="embed.K")).all())


def test_embedding_null_is_random_orientation():
    """Untrained heads read random embeddings as often as p says: 3 x 3 x 12 heads, share of p < .05 within 5 +- 5%."""
    made = HookedTransformer(CFG | {"n_heads": 12, "d_model": 48, "d_head": 8})
    found = EmbeddingComposition(draws=2000)(made).sel(part=["embed.Q", "embed.K", "embed.V"])
    assert float((found.p < 0.05).mean()) == pytest.approx(0.05, abs=0.05) and abs(float(found.z.mean())) < 0.5


def test_false_discovery_rates_by_hand():
    """Benjamini-Hochberg: p n / rank, made monotone from below; what is missing is no test."""
    p = np.array([[0.01, 0.04], [np.nan, 0.03]])
    np.testing.assert_allclose(false_discovery(p), [[0.03, 0.04], [np.nan, 0.04]])
    assert bool(np.isnan(false_discovery(np.array([np.nan]))).all())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Composition(draws=0), ValueError, "draws=0: need a whole number of at least 1"),
        (lambda: Composition(draws="many"), ValueError, "draws='many': need a whole number"),
        (lambda: Composition(pooled_heads=1), ValueError, "pooled_heads=1: need a whole number of at least 2, 0 for no"),
        (lambda: Composition("words"), ValueError, "incoming='words': need one of everything, tokens, positions, activations"),
        (lambda: Composition("activations"), ValueError, "incoming='activations' and no tokens are given"),
        (lambda: Composition(tokens=torch.zeros(1, 2)), ValueError, "incoming='everything' and tokens are given"),
        (lambda: Composition("activations", [1, 2]), TypeError, "tokens are a list; need an integer tensor"),
        (lambda: Composition("activations", torch.full((1, 4), 99))(model()), ValueError, "token ids run from 99 to 99"),
        (lambda: Composition("positions")(model(positional_embedding_type="rotary")), ValueError, "'rotary' positions, which"),
        (lambda: Composition()(model(n_layers=1)), ValueError, "the model has 1 layer, composition needs 2"),
        (lambda: Composition()("gpt2"), TypeError, "got str, need a hooked model"),
        (lambda: EmbeddingComposition(draws=0), ValueError, "draws=0: need a whole number"),
        (lambda: Composition()(model(d_model=2, n_heads=1, d_head=1)), ValueError, "meet in 1 dimensions, a null needs 2"),
        (lambda: EmbeddingComposition()(model(d_model=2, n_heads=1, d_head=1)), ValueError, "meet in 1 dimensions"),
        (lambda: composition_scores(*[torch.ones(2, 2, 4)] * 4), ValueError, r"W_Q has shape \(2, 2, 4\); need \[layer, head"),
        (lambda: composition_scores(*[torch.full((2, 2, 4, 4), torch.nan)] * 4), ValueError, "W_Q holds NaN or infinite weights"),
        (
            lambda: composition_scores(*[np.ones((2, 2, 4, 4))] * 4),
            TypeError,
            "W_Q is ndarray; need four float32 or four float64",
        ),
        (lambda: Composition(draws=True), ValueError, "draws=True: need a whole number of at least 1"),
        (lambda: Composition(seed="a"), ValueError, "seed='a': need a whole number of at least 0"),
        (lambda: Composition(remove_mean="yes"), TypeError, "remove_mean='yes': need True or False"),
        (lambda: components(model(), "K", "L0H0", "L1H0", draws="5"), ValueError, "draws='5': need a whole number"),
        (lambda: channel_auc("flat", 13), ValueError, "width=13: a channel begins behind the 4 strongest"),
        (lambda: channel_auc("steep", 1), ValueError, "law is 'steep'; need one of flat"),
        (lambda: components(model(), "X", "L0H0", "L1H0"), ValueError, "mode is 'X'; need 'Q', 'K' or 'V'"),
        (lambda: components(model(), "K", "L1H0", "L1H1"), ValueError, "L1H0 is not in an earlier layer than L1H1"),
        (lambda: components(model(), "K", "L0H9", "L1H1"), ValueError, "L0H9"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()
