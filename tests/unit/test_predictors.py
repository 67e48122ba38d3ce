"""Cross-entropy to n-gram predictors, by models that are such predictors and by counting with dictionaries."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from circuits.data.ngrams import NgramTable
from circuits.detectors.ngram_predictions import predictions
from circuits.detectors.predictors import LABELS, PredictorLoss, pooled
from circuits.models.hooked import HookedTransformer
from circuits.models.planted import uniform_model

V = 6
CFG = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 12, "d_vocab": V, "attn_only": True}


def markov(length: int, seed: int, rates: np.ndarray) -> np.ndarray:
    """A stream of ids 1..V - 1 in which the next depends on the last alone."""
    rng = np.random.default_rng(seed)
    stream = [1]
    while len(stream) < length:
        stream.append(int(rng.choice(V, p=rates[stream[-1]])))
    return np.array(stream)


@pytest.fixture(scope="module")
def rates() -> np.ndarray:
    made = np.random.default_rng(0).dirichlet(np.ones(V - 1), size=V)
    return np.concatenate([np.zeros((V, 1)), made], axis=1)  # BOS follows nothing


@pytest.fixture(scope="module")
def table(rates: np.ndarray) -> NgramTable:
    return NgramTable.count([markov(700, 0, rates), markov(500, 1, rates)], V, order=3)


@pytest.fixture(scope="module")
def text(rates: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.r_[0, markov(11, 2 + e, rates)] for e in range(7)]))


def of_last_token(log_rates: torch.Tensor) -> HookedTransformer:
    """A model whose logits are a row of this table, that of the last token."""
    model = HookedTransformer(CFG | {"d_model": V, "normalization_type": None})
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.W_E[:] = torch.eye(V)
        model.W_U[:] = log_rates
    return model


def bigram_logits(table: NgramTable) -> torch.Tensor:
    """log q_2, -50 for what never follows."""
    contexts = np.arange(V)[:, None].repeat(V, 1)[..., None]
    rates = np.nan_to_num(table.prob(contexts, np.arange(V)[None].repeat(V, 0)))
    return torch.from_numpy(np.log(np.maximum(rates, math.exp(-50)))).float()


def test_all_is_what_counting_with_dictionaries_gives(table: NgramTable, text: torch.Tensor):
    model = HookedTransformer(CFG | {"dtype": "float64", "initializer_range": 0.5})
    found = PredictorLoss(table, {"text": text}, min_count=25)(model).sel(corpus="text")
    log_probs = model.eval()(text).detach().log_softmax(-1)
    streams = np.split(table.tokens, table.starts[1:])
    for n in (1, 2, 3):
        follows: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        shorter: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for stream in streams:
            for i in range(len(stream)):
                if i >= n - 1:
                    follows[tuple(stream[i - n + 1 : i])][stream[i]] += 1
                if n > 1 and i >= n - 2:
                    shorter[tuple(stream[i - n + 2 : i])][stream[i]] += 1
        each = {label: [[] for _ in text] for label in LABELS}
        for e, row in enumerate(text.tolist()):
            for pos in range(n, len(row)):
                after = follows[tuple(row[pos - n + 1 : pos])]
                count = after.total()
                if count < 25:
                    continue
                said = {o: c / count for o, c in after.items()}
                p = log_probs[e, pos - 1]
                values = {
                    "value": -sum(q * float(p[o]) for o, q in said.items()),
                    "floor": -sum(q * math.log(q) for q in said.values()),
                    "kl_noise": (len(said) - 1) / (2 * count),
                    "loss": -float(p[row[pos]]),
                    "ngram_loss": -table.log_prob(text)[n - 1, e, pos - 1],
                }
                values["kl"] = values["value"] - values["floor"]
                less = shorter[tuple(row[pos - n + 2 : pos])] if n > 1 else Counter(dict.fromkeys(range(V), 1))
                values["null_mean"] = -sum(q * math.log(less[o] / less.total()) for o, q in said.items())
                for label, value in values.items():
                    each[label][e].append(value)
        here = found.sel(order=n)
        for label in LABELS:
            sums, counts = np.array([sum(x) for x in each[label]]), np.array([len(x) for x in each[label]])
            assert float(here[label]) == pytest.approx(sums.sum() / counts.sum(), abs=1e-9), (n, label)
        assert int(here.positions) == counts.sum() and float(here.share) == pytest.approx(counts.sum() / (7 * 11))
    assert 0 < float(found.share.sel(order=3)) < float(found.share.sel(order=2)) <= float(found.share.sel(order=1)) == 1.0


def test_a_model_that_is_the_bigram_predictor_has_no_distance_to_it(table: NgramTable, text: torch.Tensor):
    found = PredictorLoss(table, {"text": text})(of_last_token(bigram_logits(table))).isel(corpus=0)
    assert float(found.kl.sel(order=2)) == pytest.approx(0.0, abs=1e-5)
    # It knows all but the oldest token of a trigram's context: the null of order 3, and something to learn above the floor.
    assert float(found.value.sel(order=3)) == pytest.approx(float(found.null_mean.sel(order=3)), abs=1e-5)
    assert float(found.kl.sel(order=3)) > 0.01
    # What order 3 adds in a first-order language is noise alone, as large as it is said to be.
    assert float(found.kl.sel(order=3)) == pytest.approx(float(found.kl_noise.sel(order=3)), rel=0.5)


def test_a_model_that_knows_nothing_is_at_chance(table: NgramTable, text: torch.Tensor):
    found = PredictorLoss(table, {"text": text})(uniform_model(d_vocab=V, n_ctx=12))
    assert np.allclose(found.value, math.log(V)) and float(found.chance) == math.log(V)
    assert np.allclose(found.stderr, 0, atol=1e-6)
    assert np.allclose(found.kl, math.log(V) - found.floor)
    assert np.allclose(found.null_mean.sel(order=1), math.log(V))


def test_the_error_is_that_of_new_examples():
    rng = np.random.default_rng(0)

    def drawn() -> tuple[np.ndarray, np.ndarray]:
        counts = rng.integers(0, 9, size=60)
        return counts * (1 + rng.standard_normal(60)) + rng.standard_normal(60), counts

    found = [pooled(*drawn()) for _ in range(400)]
    assert np.std([value for value, _ in found]) == pytest.approx(np.mean([error for _, error in found]), rel=0.15)
    sums = np.array([2.0, 6.0, 4.0])
    by_hand = (sums.mean(), sums.std(ddof=1) / math.sqrt(3))
    assert pooled(sums, np.ones(3, dtype=np.int64)) == pytest.approx(by_hand)  # equal counts: the usual error of a mean
    assert np.isnan(pooled(np.zeros(3), np.zeros(3, dtype=np.int64))).all()
    assert np.isnan(pooled(np.ones(1), np.ones(1, dtype=np.int64))[1])


def test_contexts_hold_no_beginning_of_sequence(table: NgramTable, text: torch.Tensor):
    said = predictions(table, text, 1)
    assert [int(of.pos.min()) for of in said] == [1, 2, 3]
    for of in said:
        assert np.allclose(np.add.reduceat(of.probs, of.rows[:-1]), 1.0) and (np.diff(of.example) >= 0).all()


def test_an_order_without_a_known_context_is_missing(table: NgramTable, text: torch.Tensor):
    found = PredictorLoss(table, {"text": text}, min_count=1000)(HookedTransformer(CFG)).isel(corpus=0)
    assert found.positions.values.tolist() == [77, 0, 0] and found.share.values.tolist() == [1.0, 0.0, 0.0]
    for label in LABELS:
        assert found[label].isnull().values.tolist() == [False, True, True]


def test_batches_do_not_show(table: NgramTable, text: torch.Tensor, monkeypatch: pytest.MonkeyPatch):
    measure = PredictorLoss(table, {"text": text, "again": text[:3]})
    model = HookedTransformer(CFG)
    whole = measure(model)
    monkeypatch.setattr("circuits.detectors.predictors.BLOCK", 2 * 12 * V)
    parts = measure(model)
    assert all(np.allclose(whole[name], parts[name], atol=1e-6) for name in whole.data_vars)
    assert measure(model).identical(parts)
    assert np.allclose(measure(HookedTransformer(CFG).double()).value, whole.value, atol=1e-5)


def test_the_spec_names_corpus_text_and_threshold(table: NgramTable, text: torch.Tensor):
    first = PredictorLoss(table, {"text": text})
    other = NgramTable.count([table.tokens], V, order=3)
    for changed in (
        PredictorLoss(other, {"text": text}),
        PredictorLoss(table, {"text": text[1:]}),
        PredictorLoss(table, {"t": text}),
    ):
        assert changed.spec() != first.spec() and changed != first
    assert PredictorLoss(table, {"text": text}, min_count=9).spec() != first.spec()
    assert PredictorLoss(table, {"text": text.clone()}) == first


@pytest.mark.usefixtures("unchecked")
def test_wrong_calls_get_a_sentence(table: NgramTable, text: torch.Tensor):
    with pytest.raises(TypeError, match="table is a dict, need the corpus' counts"):
        PredictorLoss({}, {"text": text})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no tokens were given; pass"):
        PredictorLoss(table, {})
    with pytest.raises(ValueError, match="min_count=0: need a whole number of at least 1"):
        PredictorLoss(table, {"text": text}, min_count=0)
    with pytest.raises(ValueError, match="sequences have 3 tokens, the loss to n-gram predictors on 'text' needs at least 4"):
        PredictorLoss(table, {"text": text[:, :3]})
    with pytest.raises(ValueError, match="token ids run from 3 to 8"):
        PredictorLoss(table, {"text": text + 3})
    measure = PredictorLoss(table, {"text": text})
    with pytest.raises(ValueError, match="the table counts 6 ids, the model reads 9 and predicts 9: all must be one vocabulary"):
        measure(HookedTransformer(CFG | {"d_vocab": 9}))
    with pytest.raises(ValueError, match="the model reads 6 and predicts 4"):
        measure(HookedTransformer(CFG | {"d_vocab_out": 4}))
    with pytest.raises(ValueError, match="12 tokens, the model reads n_ctx = 10"):
        measure(HookedTransformer(CFG | {"n_ctx": 10}))
