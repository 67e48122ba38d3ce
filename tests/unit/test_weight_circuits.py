"""QK and OV circuits against dense products and against what a model computes."""

import numpy as np
import pytest
import torch

from circuits.data.tokenizer import train_bpe
from circuits.models.hooked import HookedTransformer
from circuits.weights.circuits import Reader, norm_scale, ov_circuit, qk_circuit
from circuits.weights.folded import folded
from circuits.weights.reading import Circuit
from circuits.weights.rotary import rotations
from circuits.weights.weight_spectra import WeightSpectra

V, T = 13, 7
SCHEMES = ["shortformer", "standard", "rotary", "none"]
NORMS = ["LN", "LNPre", "RMS", "RMSPre", None]


def small(positions="shortformer", norm="LN", **fields) -> HookedTransformer:
    """A float64 model whose every weight, bias and gain is random."""
    cfg = {
        "n_layers": 2,
        "d_model": 10,
        "n_heads": 2,
        "d_head": 4,
        "n_ctx": T,
        "d_vocab": V,
        "attn_only": True,
        "normalization_type": norm,
        "positional_embedding_type": positions,
        "dtype": "float64",
    }
    model = HookedTransformer(cfg | fields).eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=rng, dtype=weight.dtype) * 0.5)
    return model


def sentence() -> torch.Tensor:
    return torch.randint(0, V, (1, T), generator=torch.Generator().manual_seed(2))


def dense(circuit: Circuit) -> torch.Tensor:
    return circuit.left @ circuit.right


def assert_same_below_diagonal(found, expected, atol=1e-9):
    """Equal on and below the diagonal, once each row's constant, which softmax does not see, is taken out."""
    for query in range(1, T):
        gap = (found - expected)[query, : query + 1]
        assert (gap - gap[0]).abs().max() < atol


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("positions", SCHEMES)
def test_factored_is_dense(positions, norm):
    model = small(positions, norm)
    w, offset = folded(model), 2 if positions == "rotary" else None
    turn = rotations(model.cfg, [2])[0] if offset else torch.eye(4, dtype=torch.float64)
    for layer, head in ((0, 1), (1, 0)):
        E = w.W_E
        if norm is not None and layer == 0 and positions != "standard":
            centre = E - E.mean(1, keepdim=True) if norm.startswith("LN") else E
            E = E / ((centre**2).mean(1, keepdim=True) + model.cfg.eps).sqrt()
        W_QK = w.W_Q[layer, head] @ turn @ w.W_K[layer, head].T / 2.0  # attn_scale = sqrt(4)
        W_OV = w.W_V[layer, head] @ w.W_O[layer, head]
        cases = [
            (qk_circuit(model, (layer, head), offset=offset), E @ W_QK @ E.T),
            (qk_circuit(model, (layer, head), offset=offset, embed=False), W_QK),
            (ov_circuit(model, (layer, head)), w.logits(E @ W_OV)),
            (ov_circuit(model, (layer, head), embed=False), W_OV),
        ]
        for circuit, expected in cases:
            assert torch.allclose(dense(circuit), expected, rtol=0, atol=1e-10)
            assert circuit.norm() == pytest.approx(expected.norm().item(), rel=1e-10)
            values = circuit.eigenvalues()
            assert values.sum().real.item() == pytest.approx(expected.trace().item(), rel=1e-9, abs=1e-9)
            assert (values**2).sum().real.item() == pytest.approx((expected @ expected).trace().item(), rel=1e-9, abs=1e-9)
            assert torch.allclose(circuit.factored.AB, expected, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_shortformer_blocks_and_bias_are_the_scores_of_layer_0(norm):
    model, tokens = small("shortformer", norm), sentence()
    _, cache = model.run_with_cache(tokens)
    x = tokens[0]
    for head in range(2):
        blocks = {
            (r, c): qk_circuit(model, (0, head), rows=r, columns=c) for r in ("token", "position") for c in ("token", "position")
        }
        found = torch.zeros(T, T, dtype=torch.float64)
        places = {"token": x, "position": torch.arange(T)}
        for (r, c), circuit in blocks.items():
            assert circuit.exact and circuit.sides == (r, c)
            found += dense(circuit)[places[r]][:, places[c]]
        for c in ("token", "position"):
            found += blocks["token", c].bias[places[c]]
        scores = cache["attn_scores", 0][0, head]
        assert_same_below_diagonal(found, scores)
        for r in ("token", "position"):
            found += blocks[r, "token"].row_bias[places[r], None]
        constant = folded(model).b_Q[0, head] @ folded(model).b_K[0, head] / 2.0
        assert torch.allclose((found + constant).tril(), scores.tril(), rtol=0, atol=1e-9)


def test_standard_blocks_are_the_scores_up_to_the_norm_and_exact_without_one():
    model, tokens = small("standard", None), sentence()
    _, cache = model.run_with_cache(tokens)
    places = {"token": tokens[0], "position": torch.arange(T)}
    found = torch.zeros(T, T, dtype=torch.float64)
    for r in places:
        for c in places:
            circuit = qk_circuit(model, "L0H1", rows=r, columns=c)
            found += dense(circuit)[places[r]][:, places[c]]
            if r == "token":
                found += circuit.bias[places[c]]
    assert_same_below_diagonal(found, cache["attn_scores", 0][0, 1])
    normed = qk_circuit(small("standard", "LN"), "L0H1")
    assert not normed.exact and "norm scales" in normed.note


@pytest.mark.parametrize("adjacent", [False, True])
def test_rotary_entries_are_the_scores_at_their_offset(adjacent):
    model, tokens = small("rotary", "LN", rotary_dim=2, rotary_adjacent_pairs=adjacent), sentence()
    _, cache = model.run_with_cache(tokens)
    x, scores = tokens[0], cache["attn_scores", 0][0, 1]
    circuits = [qk_circuit(model, "L0H1", offset=n) for n in range(T)]
    w = folded(model)
    for query in range(T):
        for key in range(query + 1):
            c = circuits[query - key]
            constant = w.b_Q[0, 1] @ rotations(model.cfg, [query - key])[0] @ w.b_K[0, 1] / 2.0
            entry = dense(c)[x[query], x[key]] + c.bias[x[key]] + c.row_bias[x[query]] + constant
            assert entry.item() == pytest.approx(scores[query, key].item(), abs=1e-9)
    mean = qk_circuit(model, "L0H1", offset="mean")
    assert torch.allclose(dense(mean), torch.stack([dense(c) for c in circuits]).mean(0), atol=1e-10)
    assert mean.left.shape[1] == 4


def test_no_positions_and_scaled_layers():
    model, tokens = small("none", None, scale_attn_by_inverse_layer_idx=True, attn_scale=3.0), sentence()
    _, cache = model.run_with_cache(tokens)
    c = qk_circuit(model, "L0H0")
    assert_same_below_diagonal((dense(c) + c.bias)[tokens[0]][:, tokens[0]], cache["attn_scores", 0][0, 0])
    w = folded(model)
    assert torch.allclose(dense(qk_circuit(model, "L1H0", embed=False)), w.W_Q[1, 0] @ w.W_K[1, 0].T / 6.0)


@pytest.mark.parametrize("norm", NORMS)
def test_ov_is_what_the_head_adds_to_the_logits(norm):
    model = small("shortformer", norm)
    tokens = torch.arange(V)[:, None]  # alone in its context, a token attends to itself with weight 1
    _, cache = model.run_with_cache(tokens)
    for head in range(2):
        written = cache["z", 0][:, 0, head] @ model.W_O[0, head]
        written = written - model.b_V[0, head] @ model.W_O[0, head]
        if norm == "LN":
            written = written - model.blocks[0].ln1.b @ model.W_V[0, head] @ model.W_O[0, head]
        logits = folded(model).logits(written)
        assert torch.allclose(dense(ov_circuit(model, (0, head))), logits, atol=1e-10)


def test_the_effective_embedding_is_what_the_first_mlp_makes_of_a_token():
    model = small("none", "LN", attn_only=False, act_fn="gelu", d_mlp=12)
    with torch.no_grad():
        model.blocks[0].attn.W_O.zero_()
        model.blocks[0].attn.b_O.zero_()
        seen = []
        model.blocks[0].mlp.hook_pre.add_hook(lambda value, hook: seen.append(1))
        stream = model(torch.arange(V)[:, None], stop_at_layer=1)[:, 0]
    heard = len(seen)
    found = ov_circuit(model, "L1H0", effective=True)
    assert len(seen) == heard  # no hook of the model fires
    assert torch.allclose(found.left, stream @ folded(model).W_V[1, 0], atol=1e-10)
    assert not torch.allclose(found.left, ov_circuit(model, "L1H0").left)


@pytest.mark.parametrize("centred", [True, False])
def test_norm_scales_in_blocks_are_those_of_the_whole_in_float64(centred, monkeypatch):
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 1
    wide = x.double()
    expected = (wide.var(1, correction=0) if centred else wide.square().mean(1)) + 1e-5
    monkeypatch.setattr("circuits.weights.circuits.TOKEN_BLOCK", 7)
    assert torch.allclose(norm_scale(x, centred=centred, eps=1e-5)[:, 0], expected.sqrt(), rtol=1e-12)


@pytest.mark.parametrize("measure", [lambda m: qk_circuit(m, "L0H0"), WeightSpectra(null_seeds=0)], ids=["circuit", "spectra"])
def test_a_bridge_that_cannot_be_represented_is_refused_in_a_sentence(measure, monkeypatch):
    from transformer_lens import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    shape = {"n_layers": 2, "d_model": 16, "n_heads": 4, "d_head": 4, "n_ctx": 16, "d_vocab": 20, "attn_only": True}
    shape |= {"normalization_type": "LN", "device": "cpu"}
    grouped = TransformerBridge.boot_native(TransformerBridgeConfig(**shape, n_key_value_heads=1)).eval()
    with pytest.raises(ValueError, match="n_key_value_heads is 1: grouped keys cannot be represented, every head has its own"):
        measure(grouped)
    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**shape)).eval()
    measure(bridge)
    shown = {name: weight for name, weight in bridge.tl_parameters().items() if name != "blocks.1.attn.W_K"}
    monkeypatch.setattr(type(bridge), "tl_parameters", lambda _: shown)
    with pytest.raises(ValueError, match=r"shows no weight blocks\.1\.attn\.W_K, which its config means it to have"):
        measure(bridge)


def test_reading_by_row_column_block_and_diagonal(monkeypatch):
    monkeypatch.setattr("circuits.weights.reading.BLOCK", 3 * V + 1)  # several blocks, the last one shorter
    c = ov_circuit(small(), "L0H0")
    full = dense(c).numpy()
    assert np.allclose(c.row(3), full[3]) and np.allclose(c.column(5), full[:, 5])
    block = c.block([4, 1], [0, 12, 7])
    assert block.dims == ("source", "out") and np.allclose(block, full[[4, 1]][:, [0, 12, 7]])
    assert block.source.values.tolist() == [4, 1] and block.out_label.values.tolist() == ["0", "12", "7"]
    assert np.allclose(c.diagonal(), full.diagonal())
    ranks = [(full[i] > full[i, i]).sum() for i in range(V)]
    assert c.rank_of_diagonal().values.tolist() == ranks
    top = c.top(20)
    order = np.argsort(-full, axis=None)[:20]
    assert np.allclose(top.value, full.ravel()[order])
    assert (top.source.values * V + top.out.values).tolist() == order.tolist()
    assert np.allclose(dense(c.centred()), full - full.mean(1, keepdims=True)) and np.allclose(dense(c.T), full.T)
    assert c.top(10**6).sizes["rank"] == V * V
    assert "OV of L0H0" in repr(c) and "final norm" in repr(c)


def test_a_head_of_zeros_has_ties_and_no_nan():
    model = small()
    with torch.no_grad():
        model.blocks[0].attn.W_V.zero_()
    c = ov_circuit(model, "L0H0")
    assert c.norm() == 0 and (c.eigenvalues() == 0).all() and (c.rank_of_diagonal() == 0).all()
    assert c.top(3).out.values.tolist() == [0, 1, 2]  # ties in reading order


def test_tokens_may_be_named_by_their_text():
    tokenizer = train_bpe(["def f(x): return x"], vocab_size=257)
    model = small(d_vocab=257)
    c = qk_circuit(model, "L0H0", tokenizer=tokenizer)
    d, x = (tokenizer.encode(t).ids[0] for t in "dx")
    assert float(c.row("d")[x]) == pytest.approx(float(c.block([d], ["x"])[0, 0]))
    assert c.block(["d"], ["x"]).key_label.values.tolist() == ["x"]
    with pytest.raises(ValueError, match=r"'def' is 3 tokens \('d', 'e', 'f'\), need one"):
        c.row("def")


def test_circuits_leave_the_model_as_found_and_share_one_folding():
    model = small().train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    reader = Reader.of(model)
    assert torch.equal(reader.qk("L0H0").left, qk_circuit(model, "L0H0").left)
    assert model.training and all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: qk_circuit(small("rotary"), "L0H0"), ValueError, "pass offset=1"),
        (lambda: qk_circuit(small("rotary"), "L0H0", offset=T), ValueError, r"'mean' or a distance 0\.\.6"),
        (lambda: qk_circuit(small("rotary"), "L0H0", offset=1.5), ValueError, "'mean' or a distance"),
        (lambda: qk_circuit(small("none"), "L0H0", offset=1), ValueError, "drop it"),
        (lambda: qk_circuit(small("none"), "L0H0", rows="position"), ValueError, "have no position part; use 'token'"),
        (lambda: qk_circuit(small(), "L0H0", rows="tokens"), ValueError, "'token' or 'position'"),
        (lambda: qk_circuit(small(), "L0H0", embed=False, columns="position"), ValueError, "or use embed=True"),
        (lambda: ov_circuit(small(), "L0H0", rows="position"), ValueError, "reach queries and keys and no value"),
        (lambda: ov_circuit(small(), "L1H0", effective=True), ValueError, "has no MLP"),
        (lambda: ov_circuit(small(), "L2H0"), ValueError, "there is no head L2H0"),
        (lambda: ov_circuit(small(), "L0H0").row(V), ValueError, r"there is no token 13; this axis has 0\.\.12"),
        (lambda: ov_circuit(small(), "L0H0").row("a"), ValueError, "no tokenizer; pass tokenizer="),
        (lambda: ov_circuit(small(), "L0H0").row(1.5), TypeError, "got 1.5 for an axis of tokens"),
        (lambda: ov_circuit(small(), "L0H0").block("ab", [0]), TypeError, r"pass \['ab'\]"),
        (lambda: ov_circuit(small(), "L0H0").block(None, None), ValueError, r"use \.top\(k\)"),
        (lambda: ov_circuit(small(), "L0H0").top(0), ValueError, "at least one entry"),
        (lambda: qk_circuit(small(), "L0H0", rows="position").row("a"), TypeError, "for an axis of positions"),
        (lambda: qk_circuit(small(), "L0H0", rows="position").diagonal(), ValueError, "needs the same tokens on both sides"),
        (lambda: qk_circuit("a model", "L0H0"), TypeError, "need a hooked model"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
