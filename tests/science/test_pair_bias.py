"""Token-pair logits and biases: exact, regressed and dense least squares agree; planted biases are found, absent ones are not."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from circuits import HookedTransformer
from circuits.data.pairs import PairStatistics, pair_statistics
from circuits.detectors.pair_bias import STATISTICS, BiasTest, PairBias, beside, unit_ranks
from circuits.detectors.pair_logits import (
    centred,
    embedding_logits,
    fitted_logits,
    pair_design,
    pair_logits,
)

V, LENGTH = 48, 32
NO: Any = 3


def model_of(**fields: Any) -> HookedTransformer:
    sizes = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "n_ctx": LENGTH, "d_vocab": V, "initializer_range": 0.5}
    kind = {"attn_only": True, "positional_embedding_type": "none", "normalization_type": "LN", "dtype": "float64"}
    return HookedTransformer({**sizes, **kind, "seed": 0, **fields}).eval()


def text(n: int, seed: int = 0) -> np.ndarray:
    """A Markov chain on a Zipfian vocabulary: half of the time a token's own follower, else a common token."""
    rng = np.random.default_rng(seed)
    rates = 1 / np.arange(1, V)
    drawn, follower = rng.choice(np.arange(1, V), n, p=rates / rates.sum()), np.random.default_rng(1).permutation(V)
    for t in np.flatnonzero(rng.random(n) < 0.5)[1:]:
        drawn[t] = max(1, follower[drawn[t - 1]])
    return drawn


@pytest.fixture(scope="module")
def statistics() -> PairStatistics:
    return pair_statistics([text(60_000)], V, window=8)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.from_numpy(np.c_[np.zeros(64, dtype=np.int64), text(64 * (LENGTH - 1), seed=2).reshape(64, -1)])


@pytest.fixture(scope="module")
def tested(statistics: PairStatistics) -> tuple[BiasTest, np.ndarray, np.ndarray]:
    """The test on all pairs that occur 20 times, and their queries and keys."""
    pairs = np.flatnonzero(statistics.count >= 20)
    return BiasTest(pairs, statistics, draws=99, seed=0), statistics.query[pairs], statistics.key[pairs]


def test_regression_against_dense_least_squares(tokens: torch.Tensor) -> None:
    """Whatever the scores: the same fit, and the same logits up to what no data can tell."""
    few = tokens[:8]
    design = pair_design(few, min_count=6)
    S = np.random.default_rng(0).normal(size=(len(design.places), 3))
    z, error, steps = fitted_logits(S, design)
    X = design.columns.toarray().T
    beta, _, rank, _ = np.linalg.lstsq(X, S, rcond=None)
    assert z == pytest.approx(centred(beta[: len(design.query)], design.query).T, abs=1e-5)
    residual = S - X @ beta
    sd = np.sqrt((residual**2).sum(0) / (len(S) - rank))
    assert error == pytest.approx(sd[:, None] / np.sqrt(design.count), rel=0.05)
    assert 0 < steps < 500


def test_the_design_is_what_it_says(tokens: torch.Tensor) -> None:
    """Every observation against a loop; its row has its pair, its distance and its query position."""
    few = tokens[:8]
    design = pair_design(few, min_count=6)
    met: dict[tuple[int, int], int] = {}
    for example in few.tolist():
        for t in range(LENGTH):
            for s in range(1, t):
                met[example[t], example[s]] = met.get((example[t], example[s]), 0) + 1
    assert {pair: n for pair, n in met.items() if n >= 6} == {
        (int(m), int(n)): int(count) for m, n, count in zip(design.query, design.key, design.count, strict=True)
    }
    X = design.columns.toarray().T
    assert (X.sum(1) == 3).all()
    example, t, s = np.unravel_index(design.places, (8, LENGTH, LENGTH))
    pair = X[:, : len(design.query)].argmax(1)
    x = few.numpy()
    assert (design.query[pair] == x[example, t]).all() and (design.key[pair] == x[example, s]).all()
    rest = X[:, len(design.query) :]
    for effect in (t - s, example * LENGTH + t):
        _, group = np.unique(effect, return_inverse=True)
        columns = rest[:, : group.max() + 1]
        assert (columns.argmax(1) == group).all()
        rest = rest[:, group.max() + 1 :]
    assert rest.shape[1] == 0


def test_pairs_that_nothing_compares_are_left_out() -> None:
    """Query 9 sees keys 1 and 2 in some rows and 3 in others, never together: 3 has no logit that could be compared."""
    rows = [[0, 1, 2, 9], [0, 2, 1, 9]] * 6 + [[0, 3, 3, 9]] * 6
    design = pair_design(torch.tensor(rows), min_count=3)
    assert [pair for pair in zip(design.query.tolist(), design.key.tolist(), strict=True) if pair[0] == 9] == [(9, 1), (9, 2)]


def test_planted_logits_are_recovered_under_query_and_distance_effects(tokens: torch.Tensor) -> None:
    design, rng = pair_design(tokens), np.random.default_rng(0)
    planted = rng.normal(size=(len(design.query), 1))
    X = design.columns.T
    effects = np.r_[planted, 3 * rng.normal(size=(X.shape[1] - len(planted), 1))]
    z, error, _ = fitted_logits(X @ effects + 0.5 * rng.normal(size=(X.shape[0], 1)), design)
    miss = (z[0] - centred(planted, design.query)[:, 0]) / error[0]
    assert 0.8 < miss.std() < 1.5  # its own errors, a little too small as documented
    exact, *_ = fitted_logits(X @ effects, design)
    assert exact[0] == pytest.approx(centred(planted, design.query)[:, 0], abs=1e-5)


@pytest.mark.parametrize("norm", ["LN", "RMSPre", None])
def test_exact_logits_are_the_scores(norm: str | None, tokens: torch.Tensor) -> None:
    """Layer 0 without positions: each score is the pair's logit, whatever the norm, biases, scale and cap."""
    model = model_of(normalization_type=norm, attn_scores_soft_cap=3.0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "b_Q" in name or "b_K" in name or "ln1" in name:
                weight.normal_(generator=torch.Generator().manual_seed(len(name)))
    scores = model.run_with_cache(tokens[:2])[1]["attn_scores", 0].detach().numpy()
    t, s = np.tril_indices(LENGTH)
    x = tokens[:2].numpy()
    for example in range(2):
        z = embedding_logits(model, x[example, t], x[example, s])
        assert z == pytest.approx(scores[example][:, t, s], abs=1e-12)


def test_regression_gives_the_exact_logits(tokens: torch.Tensor) -> None:
    """On a layer where both can be had; position embeddings of zero make a model that is not read exactly and scores the same."""
    model, other = model_of(), model_of(positional_embedding_type="shortformer")
    state = model.state_dict()
    other.load_state_dict({**state, "pos_embed.W_pos": torch.zeros(LENGTH, 16, dtype=torch.float64)})
    design = pair_design(tokens)
    exact, fitted = pair_logits(model, tokens, design), pair_logits(other, tokens, design)
    assert exact.exact == [True, False] and fitted.exact == [False, False]
    assert fitted.value == pytest.approx(exact.value, abs=1e-5)
    assert (exact.stderr[0] == 0).all() and fitted.stderr[0].max() < 1e-6
    # The control: the second layer reads its context too, and what that moves is error.
    assert fitted.stderr[1].min() > 1e-3


def test_statistics_against_scipy(tested: tuple[BiasTest, np.ndarray, np.ndarray], statistics: PairStatistics) -> None:
    test, query, key = tested
    z = np.random.default_rng(0).normal(size=(len(query), 2))
    found = test.samples(z)
    at = statistics.find(query, key)
    for place, m in enumerate(np.unique(query)):
        mine = query == m
        ranks = {name: getattr(statistics, name)[at][mine] for name in ("log_p", "pmi", "discriminativeness")}
        for samples, x in zip(found[:3], ranks.values(), strict=True):
            assert samples[place, 1] == pytest.approx(spearmanr(x, z[mine, 1])[0])
        p, d, y = (rankdata(x) for x in (ranks["log_p"], ranks["discriminativeness"], z[mine, 1]))
        rest = [x - np.polyval(np.polyfit(p, x, 1), p) for x in (d, y)]
        assert found[3][place, 1] == pytest.approx(np.corrcoef(*rest)[0, 1])
    standard = z.copy()
    for m in np.unique(query):
        standard[query == m] = (standard[query == m] - standard[query == m].mean(0)) / standard[query == m].std(0)
    common = [k for k in np.argsort(-statistics.unigram, kind="stable")[:30] if (key == k).sum() >= 10]
    gap = [standard[key == k].mean(0) for k in common]
    assert found[4].mean(0) == pytest.approx(np.mean(gap, 0))


def test_planted_biases_are_found_and_told_apart(
    tested: tuple[BiasTest, np.ndarray, np.ndarray], statistics: PairStatistics
) -> None:
    test, query, key = tested
    at, rng = statistics.find(query, key), np.random.default_rng(0)
    noise = 0.7 * rng.normal(size=len(query))
    known = {name: getattr(statistics, name)[at] for name in ("log_p", "pmi", "discriminativeness")}
    unigram = np.log(statistics.unigram[key])
    columns = {"pmi": known["pmi"] + noise, "discriminative": 8 * known["discriminativeness"] + noise, "unigram": unigram}
    columns["rare"] = -unigram
    z = np.stack(list(columns.values()), -1)
    value = np.stack([samples.mean(0) for samples in test.samples(z)])
    found = beside(value, test.null(z))
    at_name = {(s, c): (i, j) for i, s in enumerate(STATISTICS) for j, c in enumerate(columns)}
    smallest = 2 / 100
    assert found["p"][at_name["frequency_pmi", "pmi"]] == smallest and found["z"][at_name["frequency_pmi", "pmi"]] > 4
    assert found["p"][at_name["discriminative_partial", "discriminative"]] == smallest
    # The control: logits that are a function of how common the key is have no bias beyond it, however large their correlation.
    for column in ("unigram", "rare"):
        where = at_name["frequency_pmi", column]
        assert found["p"][where] > smallest and abs(found["z"][where]) < 2.5
        where = at_name["frequency", column]
        assert abs(value[where]) > 0.3 and abs(value[where] - found["null_mean"][where]) < 0.03
    assert value[at_name["common_gap", "unigram"]] > 0.3 > -0.3 > value[at_name["common_gap", "rare"]]
    assert found["p"][at_name["common_gap", "rare"]] == smallest


def test_null_heads_have_uniform_p(tested: tuple[BiasTest, np.ndarray, np.ndarray]) -> None:
    """Heads of random orientation, whose low-rank logits queries share. The share of small p is what it says."""
    test, query, key = tested
    rng, heads = np.random.default_rng(0), 150
    asks, answers = rng.normal(size=(V, 4, heads)), rng.normal(size=(V, 4, heads))
    z = (asks[query] * answers[key]).sum(1)
    found = beside(np.stack([samples.mean(0) for samples in test.samples(z)]), test.null(z))
    for name, p, score in zip(STATISTICS, found["p"], found["z"], strict=True):
        tolerance = 3.5 * (0.2 * 0.8 / heads) ** 0.5
        assert (p <= 0.2).mean() < 0.2 + tolerance, name
        if name != "common_gap":  # its null is too wide, as documented
            assert (p <= 0.2).mean() > 0.2 - tolerance and 0.8 < score.std() < 1.25, name
    # The control: were the keys of each query permuted by itself, random heads that give a key one logit would seem biased.
    shared, x = (unit_ranks(values, test.first) for values in (rng.normal(size=(V, heads))[key], key[:, None].astype(float)))
    null = []
    for _ in range(99):
        moved = np.lexsort([rng.random(len(query)), query])
        null.append((x * shared[moved]).sum(0) / len(test.first))
    alone = beside((x * shared).sum(0) / len(test.first), np.stack(null))
    assert (alone["p"] <= 0.2).mean() > 0.5


def test_a_head_with_a_planted_bias_is_found_in_a_model(statistics: PairStatistics, tokens: torch.Tensor) -> None:
    """Layer 0, head 0 of a model without norm has z = 2 PMI by construction: W_Q = I on one-hot embeddings, W_K = (2 PMI)^T."""
    from circuits.models.planted_parts import blank

    model, places = blank(n_layers=1, n_heads=2, d_head=V, d_vocab=V, n_ctx=LENGTH, dtype="float64")
    pmi = torch.from_numpy(statistics.matrix(2 * statistics.pmi).toarray())
    with torch.no_grad():
        model.blocks[0].attn.W_Q[0, places["token"]] = torch.eye(V, dtype=torch.float64)
        model.blocks[0].attn.W_K[0, places["token"]] = pmi.T
        model.blocks[0].attn.W_Q[1, places["position"]] = torch.randn(
            LENGTH, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        model.blocks[0].attn.W_K[1, places["position"]] = 1.0
    found = PairBias(statistics, tokens)(model)
    assert found["value"].dims == ("layer", "head", "statistic") and found.attrs["smallest_p"] == 2 / 200
    planted = found.sel(layer=0, head=0)
    assert float(planted["value"].sel(statistic="frequency_pmi")) == pytest.approx(1, abs=1e-6)
    assert float(planted["p"].sel(statistic="frequency_pmi")) == pytest.approx(2 / 200)
    assert float(planted["reliability"]) == pytest.approx(1, abs=1e-6)
    # Head 1 looks at positions alone: it has no logits to rank, and says so.
    assert str(found["state"].sel(layer=0, head=1).values) == "constant" and found["value"].sel(head=1).isnull().all()
    gained = PairBias(statistics, tokens, reference=model)(model)
    assert (gained["state"] == "constant").all() and gained["p"].isnull().all()


def test_untrained_heads_have_no_bias_and_the_model_is_left_as_found(statistics: PairStatistics, tokens: torch.Tensor) -> None:
    model = model_of(positional_embedding_type="shortformer", n_heads=4, d_head=4, dtype="float32")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    measure = PairBias(statistics, tokens)
    found = measure(model)
    again = PairBias(statistics, tokens)(model.train())
    assert found.identical(again) and model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    assert (found["state"] == "ok").all()
    p = found["p"].sel(statistic=["frequency_pmi", "discriminative_partial"]).values
    assert np.median(p) > 0.15  # eight heads of each: the median of uniform p has sd .16
    assert measure.spec() == PairBias(statistics, tokens).spec() != PairBias(statistics, tokens, reference=model).spec()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda s, x: PairBias(NO, x), TypeError, "pair_statistics"),
        (lambda s, x: PairBias(s, x + V), ValueError, "vocabulary is 0..47"),
        (lambda s, x: PairBias(s, x, draws=3), ValueError, "draws=3"),
        (lambda s, x: PairBias(s, x, min_keys=1), ValueError, "min_keys=1"),
        (lambda s, x: PairBias(s, x, reference=3), TypeError, "hooked model"),
        (lambda s, x: PairBias(s, x, min_keys=40)(model_of()), ValueError, "at least 2 are needed"),
        (lambda s, x: PairBias(s, x)(model_of(d_vocab=50)), ValueError, "count a corpus"),
        (lambda s, x: PairBias(s, x, reference=model_of(n_layers=1))(model_of()), ValueError, "same run"),
        (lambda s, x: pair_design(x[:1], min_count=500), ValueError, "smaller min_count"),
        (lambda s, x: pair_design(x, min_count=1), ValueError, "min_count=1"),
        (lambda s, x: pair_design(x[:, :2]), ValueError, "at least 3"),
        (lambda s, x: pair_logits(model_of(), x[:3], pair_design(x)), ValueError, "pair_design"),
        (
            lambda s, x: embedding_logits(model_of(positional_embedding_type="rotary"), np.array([1]), np.array([2])),
            ValueError,
            "a regression",
        ),
    ],
)
def test_bad_input(make: Any, error: type[Exception], words: str, statistics: PairStatistics, tokens: torch.Tensor) -> None:
    with pytest.raises(error, match=words):
        make(statistics, tokens)
