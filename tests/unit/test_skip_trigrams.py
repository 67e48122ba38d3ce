"""Skip-trigrams against brute force, a planted table, and counts done by hand."""

import math

import numpy as np
import pytest
import torch
import xarray as xr

import circuits.weights.skip_trigrams as skip_trigrams_module
from circuits.data.tokenizer import train_bpe
from circuits.models.hooked import HookedTransformer
from circuits.results import Measure
from circuits.weights.circuits import ov_circuit, qk_circuit
from circuits.weights.lift import bug_share, measured_lift, pooled_lift
from circuits.weights.skip_trigrams import SkipTrigrams, skip_trigrams, top_triples


def small(**fields) -> HookedTransformer:
    cfg = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 8, "d_vocab": 12, "attn_only": True, "seed": 3}
    return HookedTransformer(cfg | {"positional_embedding_type": "shortformer"} | fields).eval()


def brute(qk: torch.Tensor, ov: torch.Tensor) -> torch.Tensor:
    """All V^3 values ``[source, destination, out]``, by the definition."""
    z_qk = qk - qk.mean(1, keepdim=True)  # [destination, source]
    z_ov = ov - ov.mean(1, keepdim=True)  # [source, out]
    return z_qk.T.clamp(min=0)[:, :, None] * z_ov.clamp(min=0)[:, None, :]


def planted() -> HookedTransformer:
    """Token 2 is noticed by 5 and 6 and says 8 (strongly) and 9; embeddings are one-hot and there is no norm."""
    cfg = {"n_layers": 1, "d_model": 12, "n_heads": 1, "d_head": 4, "n_ctx": 8, "d_vocab": 12, "attn_only": True}
    model = HookedTransformer(cfg | {"positional_embedding_type": "none", "normalization_type": None, "dtype": "float64"}).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.embed.W_E.copy_(torch.eye(12))
        model.unembed.W_U.copy_(torch.eye(12))
        attn = model.blocks[0].attn
        attn.W_K[0, 2, 0] = 1.0
        attn.W_Q[0, 5, 0], attn.W_Q[0, 6, 0] = 4.0, 2.0
        attn.W_V[0, 2, 1] = 1.0
        attn.W_O[0, 1, 8], attn.W_O[0, 1, 9] = 3.0, 1.0
    return model


def table(*triples) -> xr.Dataset:
    columns = zip(*triples, strict=True)
    return xr.Dataset({name: ("triple", np.array(x)) for name, x in zip(("source", "destination", "out"), columns, strict=True)})


@pytest.mark.parametrize("k", [1, 7, 100, 5000])
@pytest.mark.parametrize("positions", ["shortformer", "rotary", "standard"])
def test_the_fast_top_k_is_that_of_all_triples(positions, k):
    model = small(positional_embedding_type=positions)
    offset = "mean" if positions == "rotary" else None
    for head in ("L0H0", "L0H1"):
        qk, ov = qk_circuit(model, head, offset=offset), ov_circuit(model, head)
        every = brute(qk.left @ qk.right, ov.left @ ov.right)
        expected = every.flatten().sort(descending=True).values
        expected = expected[expected > 0][:k]
        found = skip_trigrams(model, head, k=k)
        assert found.sizes["triple"] == len(expected) and np.allclose(found.value, expected, rtol=1e-10)
        assert np.allclose(every[found.source.values, found.destination.values, found.out.values], found.value, rtol=1e-10)
        assert np.allclose(found.qk * found.ov, found.value) and (found.qk > 0).all() and (found.ov > 0).all()
        assert len({*zip(found.source.values, found.destination.values, found.out.values, strict=True)}) == len(expected)


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_bounds_skip_sources_without_losing_triples(spread, monkeypatch):
    """300 sources of like and of very unlike length: most are never computed, and the answer is that of brute force."""
    computed = []
    merge = skip_trigrams_module._merge
    monkeypatch.setattr(skip_trigrams_module, "_merge", lambda best, s, *rest: computed.append(s) or merge(best, s, *rest))
    rng = torch.Generator().manual_seed(0)
    keys, queries, values, outputs = (torch.randn(300, 5, generator=rng, dtype=torch.float64) for _ in range(4))
    keys *= (spread * torch.rand(300, 1, generator=rng, dtype=torch.float64)).exp()
    f, g = (keys @ queries.T).clamp(min=0), (values @ outputs.T).clamp(min=0)
    found = top_triples(keys, queries, values, outputs, 50)
    best = torch.stack([(f[s, :, None] * g[s, None, :]).flatten().topk(50).values for s in range(300)])
    assert torch.allclose(found.value, best.flatten().sort(descending=True).values[:50], rtol=1e-12)
    assert len(computed) < 150
    for s in (3, 250):  # of one source, where every pair with i j <= k can be needed
        assert torch.allclose(top_triples(keys, queries, values, outputs, 50, torch.tensor([s, s])).value, best[s], rtol=1e-12)


def test_blocks_of_sources_and_columns_change_nothing(monkeypatch):
    rng = torch.Generator().manual_seed(1)
    factors = [torch.randn(90, 4, generator=rng, dtype=torch.float64) for _ in range(4)]
    whole = top_triples(*factors, 40)
    for name, size in (("SOURCES", 16), ("COLUMNS", 7), ("TOGETHER", 3)):
        monkeypatch.setattr(skip_trigrams_module, name, size)
    found = top_triples(*factors, 40)
    assert torch.allclose(found.value, whole.value, rtol=1e-12)
    assert all(torch.equal(getattr(found, name), getattr(whole, name)) for name in ("source", "destination", "out"))


def test_pairs_of_ranks_i_j_up_to_k_are_enough_and_all_needed():
    """Factors 1 + small: the best k are near the corner of ranks, and at k = 6 a pair (3, 2), with 3 * 2 = k, is the last."""
    f, g = torch.tensor([10.0, 9.0, 8.0, 1.0]).double(), torch.tensor([10.0, 9.9, 1.0]).double()
    eye = torch.ones(1, 1).double()
    found = top_triples(eye, f[:, None], eye, g[:, None], 6)
    assert found.value.tolist() == pytest.approx([100, 99, 90, 89.1, 80, 79.2])
    assert (found.destination[-1], found.out[-1]) == (2, 1)


def test_a_planted_table_is_found_with_its_labels():
    tokenizer = train_bpe(["abc"], vocab_size=257)
    found = skip_trigrams(planted(), "L0H0", k=4, tokenizer=tokenizer)
    triples = [*zip(found.source.values, found.destination.values, found.out.values, strict=True)]
    assert triples == [(2, 5, 8), (2, 6, 8), (2, 5, 9), (2, 6, 9)]
    # Source 2 is 1 of 12: QK is 4 / 2 there and 0 else, its mean 2 / 12; OV is 3 and 1 of 12, their mean 4 / 12.
    assert found.qk.values[0] == pytest.approx(2 - 2 / 12) and found.ov.values[0] == pytest.approx(3 - 4 / 12)
    assert found.source_label.values[0] == tokenizer.decode([2]) and found.attrs["head"] == "L0H0"
    assert skip_trigrams(planted(), "L0H0", sources=[1, 3]).sizes["triple"] == 0  # only 2 says anything


def test_pooled_lift_by_counts():
    """Three examples: 8 follows 5 behind a 2 in two of two places, and in one of two without; 7 is never seen without."""
    tokens = torch.tensor([[0, 2, 5, 8, 1], [0, 2, 1, 5, 8], [0, 5, 8, 5, 1]])
    found = pooled_lift(table((2, 5, 8)), tokens)
    assert (float(found.observed), float(found.expected)) == (2.0, 2 * 0.5)
    assert float(found.value) == pytest.approx(np.log(2.0))
    # Without example 0 or 1 one of the two is left, over .5; without example 2 there is no place without a 2: nothing expected.
    assert math.isnan(float(found.stderr))
    both = pooled_lift(table((2, 5, 8), (2, 7, 8), (5, 1, 3)), tokens)
    assert float(both.value) == pytest.approx(np.log(2.0)), "no occasion without the source, nothing expected, nothing counted"


def test_pooled_lift_has_the_jackknifes_error():
    """Against the definition: everything counted again without one example, the rate without the source included."""
    rng = np.random.default_rng(1)
    tokens = torch.from_numpy(rng.integers(0, 6, (25, 20)))
    triples = table((1, 2, 3), (1, 4, 3), (0, 2, 5))
    found = pooled_lift(triples, tokens)
    others = [float(pooled_lift(triples, tokens[[i for i in range(25) if i != left]]).value) for left in range(25)]
    assert float(found.stderr) == pytest.approx(math.sqrt(24 / 25 * np.square(np.array(others) - np.mean(others)).sum()))


@pytest.mark.science
def test_pooled_lift_covers_zero_where_the_source_is_nearly_everywhere():
    """The rate without the source rests on few places then, and its error counts: |z| > 2 in 5% of texts, 12% at most."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(200):
        tokens = rng.integers(3, 9, (60, 12))
        tokens[rng.random(60) < 0.8, 0] = 1
        result = pooled_lift(table((1, 4, 5)), torch.from_numpy(tokens))
        found.append(float(result.value) / float(result.stderr))
    assert np.mean(np.abs(found) > 2) < 0.12


def test_pooled_lift_is_zero_by_chance_where_a_mean_of_lifts_is_not():
    """Independent tokens: 60 rare triples have a positive mean lift by the halves, and pooled none beyond its error."""
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, 40, (60, 30)))
    triples = table(*(tuple(int(x) for x in rng.permutation(40)[:3]) for _ in range(60)))
    pooled, each = pooled_lift(triples, tokens), measured_lift(triples, tokens)
    assert abs(float(pooled.value)) < 3 * float(pooled.stderr) < 0.9
    assert float(each.value.mean()) > 0.3, "or this control shows nothing"


def test_measured_lift_by_counts():
    # Context: 5 is followed by 8 after a 2 (2 of 3 times), and by 8 without one 1 of 2 times.
    tokens = torch.tensor([[2, 5, 8, 5, 8, 5, 1], [5, 8, 5, 1, 1, 1, 2], [2, 1, 1, 1, 1, 1, 5]])
    found = measured_lift(table((2, 5, 8), (2, 7, 8), (9, 5, 8)), tokens)
    assert found.n_with.values.tolist() == [3, 0, 0] and found.count_with.values.tolist() == [2, 0, 0]
    assert found.n_without.values.tolist() == [2, 0, 5] and found.count_without.values.tolist() == [1, 0, 3]
    p, q = 2.5 / 4, 1.5 / 3
    assert found.value.values[0] == pytest.approx(math.log(p / q))
    assert found.stderr.values[0] == pytest.approx(math.sqrt((1 - p) / (p * 4) + (1 - q) / (q * 3)))
    assert np.isnan(found.value.values[1:]).all() and np.isnan(found.stderr.values[1:]).all()
    # "Earlier" is strictly before the destination, so a token is not its own source.
    assert measured_lift(table((5, 5, 8)), tokens).n_with.values.tolist() == [3]


@pytest.mark.science
def test_lift_is_found_where_planted_and_not_where_shuffled():
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, 30, (400, 20))
    tokens[::2, 1], tokens[:, 15] = 2, 5
    tokens[::2, 16] = np.where(rng.random(200) < 0.6, 8, 9)
    tokens[1::2, 16] = np.where(rng.random(200) < 0.1, 8, 9)
    found = measured_lift(table((2, 5, 8)), torch.from_numpy(tokens))
    assert abs(found.value[0] - math.log(6)) < 4 * found.stderr[0] and found.value[0] > 4 * found.stderr[0]
    tokens[:, 16] = rng.permutation(tokens[:, 16])
    control = measured_lift(table((2, 5, 8)), torch.from_numpy(tokens))
    assert abs(control.value[0]) < 4 * control.stderr[0]


def test_bugs_are_crossed_triples_that_the_text_speaks_against():
    # "keep ... in mind", "keep ... at bay": in = 3, at = 4, mind = 5, bay = 6; each follows its own and never the other.
    tokens = torch.tensor([[1, 3, 5], [1, 4, 6]] * 10)
    found = bug_share(table((1, 3, 5), (1, 4, 6)), tokens)
    assert int(found.n_crossed) == 2 and int(found.n_measured) == 2 and float(found.value) == 1.0 and float(found.chance) == 0.0
    # Where each follows both, no crossed triple is a bug: PMI(3, 5) > 0 since 5 stands behind 3 or 4 only.
    mixed = torch.tensor([[1, 3, 5], [1, 4, 6], [1, 3, 6], [1, 4, 5]] * 10)
    assert float(bug_share(table((1, 3, 5), (1, 4, 6)), mixed).value) == 0.0
    # Of another source, or with the crossed triples ranked themselves, nothing is crossed; too little text measures nothing.
    assert int(bug_share(table((1, 3, 5), (2, 4, 6)), tokens).n_crossed) == 0
    assert int(bug_share(table((1, 3, 5), (1, 4, 6), (1, 3, 6), (1, 4, 5)), tokens).n_crossed) == 0
    little = bug_share(table((1, 3, 5), (1, 4, 6)), tokens[:2])
    assert int(little.n_measured) == 0 and np.isnan(little.value)


def test_the_measure_has_one_table_for_every_head_and_says_what_is_missing():
    measure = SkipTrigrams(k=5)
    assert isinstance(measure, Measure)
    model = small(n_layers=2)
    with torch.no_grad():
        model.blocks[1].attn.W_O[1].zero_()
    found = measure(model)
    assert dict(found.sizes) == {"layer": 2, "head": 2, "rank": 5} and found.attrs["measure"] == "skip_trigrams"
    assert found.state.values.tolist() == [["ok", "ok"], ["ok", "missing"]]
    assert np.isnan(found.value[1, 1]).all() and (found.source[1, 1] == -1).all()
    alone = skip_trigrams(model, "L1H0", k=5)
    assert np.array_equal(found.value[1, 0], alone.value) and np.array_equal(found.out[1, 0], alone.out)
    assert measure(model).identical(found)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: skip_trigrams(small(), "L0H0", k=0), ValueError, "at least one triple"),
        (lambda: SkipTrigrams(k=0), ValueError, "at least one triple"),
        (lambda: skip_trigrams(small(), "L0H7"), ValueError, "there is no head L0H7"),
        (lambda: skip_trigrams(small(), "L0H0", sources=[12]), ValueError, "there is no token 12"),
        (lambda: skip_trigrams(small(), "L0H0", sources=[]), ValueError, "need a list of ids or tokens"),
        (lambda: skip_trigrams(small(), "L0H0", sources=["in"]), ValueError, "no tokenizer"),
        (lambda: skip_trigrams("a model", "L0H0"), TypeError, "need a hooked model"),
        (lambda: measured_lift(xr.Dataset(), torch.zeros(1, 4).long()), TypeError, "without ids along 'triple'"),
        (lambda: measured_lift(table((1, 2, 3)), torch.zeros(1, 1).long()), ValueError, "at least 2"),
        (lambda: measured_lift(table((1, 2, 3)), [[1, 2]]), TypeError, "need"),
        (lambda: measured_lift(table((1, 2, 3)).isel(triple=[]), torch.zeros(1, 4).long()), ValueError, "no triples"),
        (lambda: bug_share(table((1, 2, 3)), torch.zeros(1, 4)), TypeError, "integer ids"),
        (lambda: bug_share(table((1, 2, 3)), torch.zeros(1, 4).long(), min_expected=0), ValueError, "must be positive"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
