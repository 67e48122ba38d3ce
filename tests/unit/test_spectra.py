"""Spectra of token circuits: dense twins, circuits known by construction, the published null, and what is refused."""

import math

import numpy as np
import pytest
import torch

from circuits import HookedTransformer, detect
from circuits.models.planted import planted_model
from circuits.models.protocol import model_hash
from circuits.weights import spectra
from circuits.weights.folded import folded, through_tokens
from circuits.weights.k_term import KTermCopying
from circuits.weights.random_heads import two_sided_p
from circuits.weights.weight_spectra import STATISTICS, WeightSpectra, previous_token_attention

TOKENS = torch.randint(0, 40, (10, 16), generator=torch.Generator().manual_seed(0))
SHAPE = {"n_layers": 3, "d_model": 12, "n_heads": 2, "d_head": 5, "n_ctx": 16, "d_vocab": 40, "attn_only": True}


def gaussian(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_model(**changes) -> HookedTransformer:
    """A model with norms whose gains and shifts are not trivial."""
    model = HookedTransformer(SHAPE | changes).eval()
    with torch.no_grad():
        for i, (name, weight) in enumerate(model.named_parameters()):
            noise = gaussian(i, *weight.shape).to(weight)
            weight.copy_(1 + 0.3 * noise if name.endswith(".w") else noise)
    return model


def dense_statistic(circuit: torch.Tensor, rank: int) -> tuple[float, float]:
    """Copying statistic and positive fraction of a V x V matrix, from its ``rank`` largest eigenvalues."""
    eigenvalues = torch.linalg.eigvals(circuit)
    kept = eigenvalues[eigenvalues.abs().argsort(descending=True)[:rank]]
    return float(kept.sum().real / kept.abs().sum()), float((kept.real > 0).double().mean())


@pytest.fixture(scope="module")
def planted():
    return planted_model(d_vocab=16, n_ctx=16)


@pytest.mark.parametrize("norm", ["LN", "RMS", None])
def test_every_statistic_equals_its_dense_twin(norm: str | None):
    model = random_model(normalization_type=norm)
    data = WeightSpectra(TOKENS, null_seeds=0)(model)
    found = data.value
    by_example = previous_token_attention(model, TOKENS)
    w = folded(model)
    W_E = w.W_E.double()
    W_U = w.logits(torch.eye(12, dtype=torch.float64))  # P diag(w) W_U
    for layer in range(3):
        for head in range(2):
            at = (layer, head)
            ov = W_E @ w.W_V[at] @ w.W_O[at] @ W_U
            qk = W_E @ w.W_Q[at] @ w.W_K[at].T @ W_E.T
            here = found.sel(layer=layer, head=head)
            for name, circuit in (("ov_copying", ov), ("qk_matching", qk)):
                statistic, positive = dense_statistic(circuit, 5)
                assert float(here.sel(statistic=name)) == pytest.approx(statistic, abs=1e-9)
                assert float(here.sel(statistic=name[:3] + "positive_fraction")) == pytest.approx(positive)
            rank = (ov > ov.diagonal()[:, None]).sum(1)
            for k in (1, 5):
                assert float(here.sel(statistic=f"ov_top{k}")) == pytest.approx(float((rank < k).double().mean()))
            if not layer:
                assert math.isnan(here.sel(statistic="qk_trace"))
                continue
            traces = sum(
                by_example[:, src, h] * (W_E @ w.W_Q[at] @ (W_E @ w.W_V[src, h] @ w.W_O[src, h] @ w.W_K[at]).T).trace()
                for src in range(layer)
                for h in range(2)
            )
            assert float(here.sel(statistic="qk_trace")) == pytest.approx(float(traces.mean()), rel=1e-9)
            error = data.stderr.sel(layer=layer, head=head, statistic="qk_trace")
            assert float(error) == pytest.approx(float(traces.std() / math.sqrt(10)), rel=1e-6)


def test_the_trace_from_tokens_is_that_of_the_detectors_scores():
    model = random_model()
    data = WeightSpectra(TOKENS, null_seeds=0)(model)
    p = torch.from_numpy(detect(model, TOKENS).value.sel(detector="previous_token").values)
    assert p.std() > 0.01
    w = folded(model)
    for layer, head in ((1, 0), (1, 1), (2, 0), (2, 1)):
        earlier = w.W_V[:layer].flatten(0, 1), w.W_O[:layer].flatten(0, 1)
        expected = spectra.qk_trace(*earlier, w.W_Q[layer, head], w.W_K[layer, head], w.C, p[:layer].flatten())
        assert float(data.value.sel(layer=layer, head=head, statistic="qk_trace")) == pytest.approx(float(expected), rel=1e-6)
    # Each model has its own scores: with patterns that never look back by one, there is no trace.
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.zero_(), block.attn.b_Q.zero_(), block.attn.W_K.zero_()
    assert (WeightSpectra(TOKENS, null_seeds=0)(model).value.sel(layer=[1, 2], statistic="qk_trace") == 0).all()


def test_one_layer_has_no_trace_and_is_not_run():
    model = random_model(n_layers=1)
    model.add_hook("blocks.0.attn.hook_pattern", lambda pattern, hook: pytest.fail("was run"))
    data = WeightSpectra(TOKENS, null_seeds=5)(model)
    assert (data.state.sel(statistic="qk_trace") == "missing").all()
    assert data.value.sel(statistic="qk_trace").isnull().all() and data.null_sd.sel(statistic="qk_trace").isnull().all()


def test_the_k_term_of_every_pair_equals_its_dense_twin_and_is_missing_where_there_is_none():
    model = random_model()
    found = KTermCopying(null_seeds=0)(model)
    w = folded(model)
    W_E = w.W_E.double()
    for src in np.ndindex(3, 2):
        for dst in np.ndindex(3, 2):
            value = float(found.value[(*src, *dst)])
            if src[0] >= dst[0]:
                assert math.isnan(value) and found.state[(*src, *dst)] == "missing"
                continue
            term = W_E @ w.W_Q[dst] @ (W_E @ w.W_V[src] @ w.W_O[src] @ w.W_K[dst]).T
            assert value == pytest.approx(dense_statistic(term, 5)[0], abs=1e-9)
            assert found.state[(*src, *dst)] == "ok"


def test_the_planted_induction_head_copies_and_matches_through_the_previous_token_head(planted: HookedTransformer):
    tokens = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(4)])
    data = WeightSpectra(tokens, null_seeds=39)(planted)
    assert (data.state.sel(layer=0, statistic="qk_trace") == "missing").all()
    head = data.sel(layer=1, head=0)
    exact = {"ov_copying": 1, "ov_positive_fraction": 1, "ov_top1": 1, "ov_top5": 1}
    assert {name: float(head.value.sel(statistic=name)) for name in exact} == pytest.approx(exact)
    assert float(head.value.sel(statistic="qk_trace")) == pytest.approx(60 * 16)  # strength times vocabulary
    assert float(head.z.sel(statistic="ov_copying")) > 5
    assert float(head.p.sel(statistic="ov_copying")) == data.attrs["smallest_p"] == pytest.approx(2 / 40)
    assert float(data.value.sel(layer=0, head=1, statistic="qk_matching")) == pytest.approx(1)  # the duplicate-token head
    pairs = KTermCopying(null_seeds=39)(planted)
    assert float(pairs.value.sel(src_layer=0, src_head=0, dst_layer=1, dst_head=0)) == pytest.approx(1)
    assert float(pairs.z.sel(src_layer=0, src_head=0, dst_layer=1, dst_head=0)) > 5
    assert int((np.abs(pairs.value) > 1e-6).sum()) == 1  # control: no other pair does


@pytest.mark.science
@pytest.mark.parametrize(("r", "published"), [(16, 0.095), (32, 0.05)])
def test_gaussian_heads_have_the_published_null(r: int, published: float):
    # Claim: mean 0 and that sd at V = 4000. Control: the sd of the other head size lies outside the tolerance.
    V, d, n = 4000, 256, 300
    G = through_tokens(gaussian(1, d, V), gaussian(2, V, d))
    scores = spectra.ov_copying(gaussian(3, n, d, r), gaussian(4, n, r, d), G)
    sd = float(scores.std())
    assert abs(float(scores.mean())) < 4 * sd / math.sqrt(n)
    error = published / math.sqrt(2 * n)
    assert abs(sd - published) < 4 * error
    assert abs(sd - (0.05 if r == 16 else 0.095)) > 4 * error


def test_the_sampled_null_is_the_law_of_a_random_head_and_is_sampled_once(monkeypatch: pytest.MonkeyPatch):
    model = random_model(d_vocab=60)
    measure = WeightSpectra(TOKENS, null_seeds=400, diagonal_tokens=60)
    data = measure(model)
    w = folded(model)
    top = data.sel(statistic=["ov_top1", "ov_top5"])
    # Whatever the embeddings: k / V, within 4 standard errors of the sampled mean.
    assert (np.abs(top.null_mean - np.array([1, 5]) / 60) < 4 * top.null_sd / 20).all()
    for name in ("ov_copying", "qk_matching"):
        null = data.sel(statistic=name)
        assert (np.abs(null.null_mean) < 4 * null.null_sd / 20).all()
    # qk_trace: directions of W_Q and W_K uniform in r (d - 1) dimensions have covariance 1 / (r (d - 1)), which gives the sd
    # sqrt(r) ||P Y P|| / (r (d - 1)) times their norms. Its kurtosis is at most 3 (1 + 2 / r) (Gaussian given W_K, with a
    # variance that is a mean of r squares), so the standard error of a sampled sd is sqrt((kurtosis - 1) / (4 n)) of it.
    p = previous_token_attention(model, TOKENS).mean(0)
    P = torch.eye(12, dtype=torch.float64) - 1 / 12
    Y = P @ sum(p[0, s] * w.C @ w.W_V[0, s] @ w.W_O[0, s] for s in range(2)) @ P
    norms = w.W_Q[1].norm(dim=(-2, -1)) * w.W_K[1].norm(dim=(-2, -1))
    expected = math.sqrt(5) * Y.norm() * norms / (5 * 11)
    found = data.null_sd.sel(layer=1, statistic="qk_trace").values
    assert np.abs(found / expected.numpy() - 1).max() < 4 * math.sqrt((3 * (1 + 2 / 5) - 1) / (4 * 400))
    monkeypatch.setattr(WeightSpectra, "_null", lambda *_: pytest.fail("sampled again"))
    assert measure(model).identical(data)
    with torch.no_grad():
        model.W_E[0, 0] += 1
    with pytest.raises(pytest.fail.Exception, match="sampled again"):
        measure(model)


def test_what_norms_take_out_of_embeddings_changes_neither_value_nor_null():
    model, shifted = random_model(), random_model()
    with torch.no_grad():
        shifted.W_E.add_(gaussian(9, 40, 1).float() * 20)  # along the mean direction, which no reader behind a LayerNorm sees
    for measure in (WeightSpectra(TOKENS, null_seeds=20), KTermCopying(null_seeds=20)):
        here, there = measure(model), measure(shifted)
        for name in ("value", "null_mean", "null_sd", "p"):
            assert np.allclose(here[name], there[name], rtol=1e-3, atol=1e-4, equal_nan=True), (measure.name, name)


def test_random_heads_are_found_by_chance_alone():
    # Control of every p: heads that are themselves Gaussian have p below .1 in about a tenth of all cases.
    model = random_model(n_layers=2, n_heads=50, d_model=16, d_head=4, normalization_type=None)
    p = WeightSpectra(null_seeds=199, diagonal_tokens=0)(model).p
    for name in ("ov_copying", "qk_matching"):
        share = float((p.sel(statistic=name) < 0.1).mean())
        assert abs(share - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 100)


def test_identity_and_minus_identity_are_plus_and_minus_one():
    eye = torch.eye(6)
    both = torch.stack([eye, -eye])
    G = through_tokens(eye, eye)
    assert spectra.ov_copying(both, eye.expand(2, 6, 6), G).tolist() == [1, -1]
    assert spectra.qk_matching(both, eye.expand(2, 6, 6), G).tolist() == [1, -1]
    assert spectra.k_composition_copying(both, eye.expand(2, 6, 6), eye, eye, G).tolist() == [1, -1]
    assert spectra.positive_fraction(spectra.ov_eigenvalues(both, eye.expand(2, 6, 6), G)).tolist() == [1, 0]
    ids = torch.arange(6)
    assert spectra.diagonal_ranks(eye, eye, ids).tolist() == [0] * 6
    assert spectra.diagonal_ranks(-eye, eye, ids).tolist() == [5] * 6
    assert spectra.diagonal_ranks(0 * eye, eye, ids).tolist() == [5] * 6  # ties copy nothing


def test_the_positive_fraction_counts_eigenvalues_and_leaves_zeros_out():
    eye = torch.eye(4)
    signs = torch.diag(torch.tensor([9.0, -1.0, -1.0, 0.0]))
    found = spectra.ov_eigenvalues(signs, eye, eye.double())
    assert float(spectra.positive_fraction(found)) == pytest.approx(1 / 3)  # not 9/11
    assert float(spectra.copying_statistic(found)) == pytest.approx(7 / 11)


def test_a_rotation_by_a_right_angle_copies_nothing():
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    assert float(spectra.ov_copying(turn, torch.eye(2), torch.eye(2, dtype=torch.float64))) == pytest.approx(0, abs=1e-15)


def test_blocks_of_rows_of_heads_and_of_the_vocabulary_change_nothing(monkeypatch: pytest.MonkeyPatch):
    read, out, W_E, W_U = gaussian(0, 50, 3), gaussian(1, 3, 50), gaussian(2, 50, 8), gaussian(3, 8, 50)
    whole = spectra.diagonal_ranks(read, out, torch.arange(50))
    model = random_model()
    data = WeightSpectra(null_seeds=3)(model)
    monkeypatch.setattr(spectra, "ROW_BLOCK", 7)
    monkeypatch.setattr("circuits.weights.weight_spectra.OUT_BLOCK", 400)  # two heads of 5 x 40
    monkeypatch.setattr("circuits.weights.folded.TOKEN_BLOCK", 7)
    monkeypatch.setattr("circuits.weights.random_heads._KEPT", {})
    assert torch.equal(spectra.diagonal_ranks(read, out, torch.arange(50)), whole)
    assert torch.allclose(through_tokens(W_U, W_E), W_U @ W_E, rtol=1e-12)
    blocked = WeightSpectra(null_seeds=3)(model)
    for name in ("value", "null_mean", "null_sd"):
        assert np.allclose(blocked[name], data[name], rtol=1e-9, atol=1e-12, equal_nan=True)


def test_zero_heads_give_zeros_without_nan_and_say_so():
    model = random_model()
    with torch.no_grad():
        model.blocks[1].attn.W_V[0] = 0
        model.blocks[1].attn.W_K[0] = 0
    data = WeightSpectra(TOKENS, null_seeds=20)(model)
    head = data.sel(layer=1, head=0)
    assert (head.value == 0).all() and (head.state == "zero").all()
    assert all(np.isfinite(head[name]).all() for name in ("null_mean", "p"))
    assert np.isfinite(head.z.sel(statistic=["ov_copying", "qk_matching", "ov_top1"])).all()
    assert (data.sel(layer=1, head=1).state == "ok").all()
    pairs = KTermCopying(null_seeds=20)(model)
    assert (pairs.state.sel(src_layer=1, src_head=0, dst_layer=2) == "zero").all()
    assert (pairs.value.sel(src_layer=0, dst_layer=1, dst_head=0) == 0).all()
    assert pairs.value.sel(src_layer=0, dst_layer=1).notnull().all()


def test_results_say_what_they_are():
    model = random_model()
    data = WeightSpectra(null_seeds=20, diagonal_tokens=30)(model)
    assert data.value.dims == ("layer", "head", "statistic") and data.statistic.values.tolist() == list(STATISTICS)
    assert set(data.data_vars) == {"value", "stderr", "null_mean", "null_sd", "z", "p", "state"}
    assert data.attrs["stderr"].startswith("none: functions of the weights alone") and data.attrs["n_tokens"] == 30
    share = data.value.sel(statistic="ov_top5")
    assert np.allclose(
        data.stderr.sel(statistic="ov_top5"), np.sqrt(share * (1 - share) / 30 * (1 - 29 / (model.cfg.d_vocab - 1)))
    )
    every = WeightSpectra(null_seeds=0, diagonal_tokens=10**6)(model)
    assert bool((every.stderr.sel(statistic=["ov_top1", "ov_top5"]) == 0).all()), "nothing was sampled"
    assert data.stderr.sel(statistic=[s for s in STATISTICS if "top" not in s]).isnull().all()
    assert (data.state.sel(statistic="qk_trace") == "missing").all()
    assert data.z.equals((data.value - data.null_mean) / data.null_sd)
    bare = WeightSpectra(null_seeds=0, diagonal_tokens=0)(model)
    assert all(bare[name].isnull().all() for name in ("null_mean", "null_sd", "z", "p"))
    assert bare.value.sel(statistic=["ov_top1", "ov_top5"]).isnull().all() and np.isnan(bare.attrs["smallest_p"])
    pairs = KTermCopying(null_seeds=20)(model)
    assert pairs.value.dims == ("src_layer", "src_head", "dst_layer", "dst_head")
    assert pairs.attrs["smallest_p"] == pytest.approx(2 / 21) and "both heads" in pairs.attrs["null"]
    assert (pairs.p.isnull() == pairs.value.isnull()).all()
    assert KTermCopying(null_seeds=0)(random_model(n_layers=1)).value.isnull().all()


def test_p_is_two_sided_and_never_below_its_smallest():
    null = np.arange(19.0)
    found = two_sided_p(np.array([100.0, -100.0, 9.0, 17.5, np.nan]), null[:, None])
    assert found[:4].tolist() == [0.1, 0.1, 1.0, 0.2] and np.isnan(found[4])


def test_specs_differ_where_numbers_do():
    made = [WeightSpectra(), WeightSpectra(TOKENS), WeightSpectra(TOKENS + 1), WeightSpectra(seed=1)]
    assert len({str(measure.spec()) for measure in made}) == 4 and len(set(made)) == 4
    assert WeightSpectra(TOKENS.clone()) == WeightSpectra(TOKENS)
    assert WeightSpectra().name == "weight_spectra" and WeightSpectra().version == KTermCopying().version == 2


@pytest.mark.parametrize("measure", [WeightSpectra(TOKENS, null_seeds=2), KTermCopying(null_seeds=2)])
def test_the_model_is_left_as_found(measure):
    model = random_model().train()
    model.W_E.requires_grad_(False)
    before, flags, state = model_hash(model), [x.requires_grad for x in model.parameters()], torch.get_rng_state()
    measure(model)
    assert model_hash(model) == before and model.training and torch.equal(torch.get_rng_state(), state)
    assert [x.requires_grad for x in model.parameters()] == flags


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"null_seeds=1, seed=0: need .* at least 2 random heads"):
        WeightSpectra(null_seeds=1)
    with pytest.raises(ValueError, match=r"null_seeds=-1"):
        KTermCopying(null_seeds=-1)
    with pytest.raises(ValueError, match=r"diagonal_tokens=-1"):
        WeightSpectra(diagonal_tokens=-1)
    with pytest.raises(TypeError, match=r"tokens are a list, qk_trace needs an integer tensor"):
        WeightSpectra([[0.5, 0.5]])
    with pytest.raises(ValueError, match=r"sequences have 2 tokens, qk_trace needs at least 3"):
        WeightSpectra(TOKENS[:, :2])
    with pytest.raises(ValueError, match=r"token ids run from 0 to 45, the vocabulary is 0\.\.39"):
        WeightSpectra(TOKENS.clone().index_fill_(1, torch.tensor([3]), 45))(random_model())
    with pytest.raises(ValueError, match=r"sequences have 32 tokens, the model reads n_ctx = 16"):
        WeightSpectra(TOKENS.repeat(1, 2))(random_model())
    with pytest.raises(TypeError, match=r"got dict, need a hooked model"):
        WeightSpectra()({})
    model = random_model()
    with torch.no_grad():
        model.W_E[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"W_E holds NaN"):
        KTermCopying()(model)


@pytest.mark.usefixtures("unchecked")
def test_two_vocabularies_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"predicts 30 tokens and W_E reads 40: copying needs one vocabulary"):
        WeightSpectra(null_seeds=0)(random_model(d_vocab_out=30))
    assert KTermCopying(null_seeds=0)(random_model(d_vocab_out=30)).value.notnull().any()  # it asks for no unembedding
