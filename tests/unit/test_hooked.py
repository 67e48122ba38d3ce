"""HookedTransformer: arithmetic against literal twins, hooks that count, and the habits of a torch module."""

import copy
import math
import pickle

import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

from circuits.dynamics.presets import paper_model, stdlib_model
from circuits.models.hooked import HookedTransformer, next_token_loss, sinusoids
from circuits.models.layers import smear

SMALL = {"n_layers": 2, "d_model": 12, "n_heads": 3, "d_head": 4, "n_ctx": 9, "d_vocab": 17, "dtype": "float64"}
SHORT = SMALL | {"attn_only": True, "positional_embedding_type": "shortformer"}
MLP = SMALL | {"act_fn": "gelu_new"}
KINDS = {
    "shortformer": SHORT,
    "standard_mlp": MLP,
    "rotary_parallel": MLP | {"positional_embedding_type": "rotary", "rotary_dim": 2, "parallel_attn_mlp": True},
    "smeared_rms": SHORT | {"smeared_keys": True, "normalization_type": "RMS"},
    "no_positions": SMALL | {"attn_only": True, "positional_embedding_type": "none", "normalization_type": None},
}
EACH = pytest.mark.parametrize("kind", KINDS)


def build(fields):
    """A model with no weight at a special value, in eval() mode."""
    model = HookedTransformer(fields).eval()
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=rng, dtype=weight.dtype))
    return model


def batch(length=8, rows=3):
    return torch.randint(17, (rows, length), generator=torch.Generator().manual_seed(4))


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_the_papers_model():
    """Wang et al. 2024's two-layer model: 3,355,016 weights; 3,346,432 of sd 0.05 and 768 ones (norms) have length 95.57."""
    model = HookedTransformer(paper_model())
    weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    assert len(weights) == 3_355_016
    expected = math.sqrt(3_346_432 * 0.05**2 + 5 * 0 + 3 * 256)
    assert expected == pytest.approx(95.57, abs=0.01)
    assert float(weights.norm()) == pytest.approx(expected, abs=0.1)  # four standard errors of a norm of that many normals


def test_initial_weights_depend_on_the_seed_alone():
    first, again = HookedTransformer(SHORT), HookedTransformer(SHORT)
    other = HookedTransformer(SHORT | {"seed": 1})
    assert torch.equal(first.W_Q, again.W_Q)
    assert not torch.equal(first.W_Q, other.W_Q)
    state = torch.random.get_rng_state()
    HookedTransformer(SHORT)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sinusoidal_positions():
    code = sinusoids(5, 4)
    close(code[0], torch.tensor([0.0, 1.0, 0.0, 1.0]), 0)
    close(code[3], torch.tensor([math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)]), 1e-6)
    assert torch.equal(HookedTransformer(stdlib_model(1)).W_pos, sinusoids(128, 128))


def test_one_head_by_hand():
    """One layer, one head, no norm, two tokens: every number below is worked out on paper."""
    cfg = {"n_layers": 1, "d_model": 2, "n_heads": 1, "d_head": 2, "n_ctx": 2, "d_vocab": 2, "attn_only": True}
    model = HookedTransformer(
        cfg | {"normalization_type": None, "positional_embedding_type": "none", "use_attn_scale": False}
    ).eval()
    eye = torch.eye(2)
    with torch.no_grad():
        model.embed.W_E.copy_(eye)  # token 0 is (1, 0), token 1 is (0, 1)
        model.unembed.W_U.copy_(eye)
        for weight in (model.blocks[0].attn.W_Q, model.blocks[0].attn.W_V, model.blocks[0].attn.W_O):
            weight.copy_(eye[None])
        model.blocks[0].attn.W_K.copy_(math.log(3.0) * eye[None])  # a token that sees itself scores log 3, another one 0
        logits, cache = model.run_with_cache(torch.tensor([[0, 1]]))
    close(cache["pattern", 0][0, 0], torch.tensor([[1.0, 0.0], [0.25, 0.75]]), 1e-6)
    close(logits[0], torch.tensor([[2.0, 0.0], [0.25, 1.75]]), 1e-6)
    loss = model(torch.tensor([[0, 1]]), return_type="loss").detach()
    assert float(loss) == pytest.approx(math.log(1 + math.exp(2.0)), rel=1e-6)  # -log softmax(2, 0) at token 1


def test_smeared_keys_against_a_literal_loop():
    """k_j <- s k_j + (1 - s) k_(j-1), s = sigmoid(alpha) of the head; the first key stays."""
    rng = torch.Generator().manual_seed(0)
    keys, alpha = torch.randn(2, 5, 3, 4, generator=rng), torch.randn(3, generator=rng)
    expected = torch.zeros_like(keys)
    for row in range(2):
        for pos in range(5):
            for head in range(3):
                share = 1 / (1 + math.exp(-float(alpha[head])))
                for d in range(4):
                    before = keys[row, pos - 1, head, d] if pos > 0 else keys[row, pos, head, d]
                    expected[row, pos, head, d] = share * keys[row, pos, head, d] + (1 - share) * before
    close(smear(keys, alpha), expected, 1e-6)

    model = build(KINDS["smeared_rms"])
    _, cache = model.run_with_cache(batch())
    attn = model.blocks[1].attn
    smeared = smear(cache["k", 1], attn.alpha_smear)
    close(cache["blocks.1.attn.hook_k_smeared"], smeared)
    scores = torch.einsum("bqhd,bkhd->bhqk", cache["q", 1], smeared) / 2  # sqrt(d_head) = 2
    causal = torch.ones(8, 8, dtype=torch.bool).tril()
    close(cache["attn_scores", 1][..., causal], scores[..., causal])


@pytest.mark.parametrize("adjacent", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("rotary_dim", [2, 4, 8])
def test_rotary_turns_complex_numbers(rotary_dim, adjacent):
    """Pairs of dimensions are the complex numbers z exp(i pos / base^(2j / rotary_dim)); the rest stays."""
    fields = SMALL | {"attn_only": True, "d_head": 8, "positional_embedding_type": "rotary", "rotary_base": 50.0}
    model = build(fields | {"rotary_dim": rotary_dim, "rotary_adjacent_pairs": adjacent})
    _, cache = model.run_with_cache(batch())
    half = rotary_dim // 2
    real, imaginary = (
        (slice(0, rotary_dim, 2), slice(1, rotary_dim, 2)) if adjacent else (slice(0, half), slice(half, rotary_dim))
    )
    angle = torch.arange(8, dtype=torch.float64)[:, None] / 50.0 ** (torch.arange(half, dtype=torch.float64) * 2 / rotary_dim)
    turn = torch.polar(torch.ones_like(angle), angle)[None, :, None]
    for name in ("q", "k"):
        before, after = cache[name, 0], cache[f"rot_{name}", 0]
        expected = torch.complex(before[..., real], before[..., imaginary]) * turn
        close(after[..., real], expected.real)
        close(after[..., imaginary], expected.imag)
        close(after[..., rotary_dim:], before[..., rotary_dim:], 0)


@EACH
def test_nothing_sees_the_future(kind):
    model = build(KINDS[kind])
    tokens = batch()
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 17
    for train in (False, True):
        model.train(train)
        difference = (model(tokens) - model(changed)).detach().abs().amax((0, 2))
        assert float(difference[:5].max()) <= 1e-12
        assert float(difference[5:].min()) > 1e-4
    pattern = model.run_with_cache(tokens)[1]["pattern", 1]
    assert float(pattern.triu(1).abs().max()) == 0
    close(pattern.sum(-1), torch.ones(3, 3, 8, dtype=torch.float64), 1e-12)


@EACH
def test_train_and_eval_agree(kind):
    """train() takes fused kernels where nothing listens; logits and gradients are those of the written-out steps."""
    model = build(KINDS[kind])
    results = []
    for train in (False, True):
        model.train(train).zero_grad()
        loss = model(batch(), return_type="loss")
        loss.backward()
        results.append([loss.detach(), *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)])
    for written, fused in zip(*results, strict=True):
        close(fused, written, 1e-12)
    model.train()
    _, cache = model.run_with_cache(batch())
    close(cache["hook_embed"], model.W_E[batch()], 0)
    assert "blocks.0.attn.hook_pattern" in cache.cache_dict


def test_hooks_change_the_output():
    """Editing a score, a pattern or a head's output has exactly the effect that recomputing by hand gives."""
    model = build(SHORT)
    tokens = batch()
    logits, cache = model.run_with_cache(tokens)
    attn = model.blocks[1].attn

    def rest(z):
        resid = cache["resid_pre", 1] + torch.einsum("bphd,hdm->bpm", z, attn.W_O) + attn.b_O
        return model.unembed(model.ln_final(resid))

    def halve_first_key(scores, hook):
        return scores.masked_fill(torch.arange(8) == 0, -torch.inf).masked_fill(torch.ones(8, 8).triu(0).bool() == 0, 0.0)

    def uniform(pattern, hook):
        return torch.ones_like(pattern).tril() / torch.arange(1, 9, dtype=pattern.dtype)[:, None]

    def without_head_2(z, hook):
        z[:, :, 2] = 0.0

    values = cache["v", 1].transpose(1, 2)
    mean = torch.stack([values[:, :, : t + 1].mean(2) for t in range(8)], dim=1)
    close(model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_pattern", uniform)]), rest(mean))
    ablated = cache["z", 1].clone()
    ablated[:, :, 2] = 0.0
    close(model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", without_head_2)]), rest(ablated))
    scores = halve_first_key(cache["attn_scores", 1], None)
    pattern = scores[:, :, 1:].softmax(-1)
    edited = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_attn_scores", halve_first_key)])
    close(
        edited[:, 1:],
        rest(
            (pattern @ values)
            .transpose(1, 2)
            .new_zeros(3, 8, 3, 4)
            .index_copy(1, torch.arange(1, 8), (pattern @ values).transpose(1, 2))
        )[:, 1:],
    )
    assert float((edited - logits).detach().abs().max()) > 1e-3
    close(model(tokens), logits, 0)


def test_a_query_without_keys_attends_to_nothing():
    model = build(SHORT)

    def knock_out_first(scores, hook):
        scores[..., 0] = -torch.inf
        return scores

    def keep(z, hook):
        kept.append(z)

    kept = []
    logits = model.run_with_hooks(
        batch(), fwd_hooks=[("blocks.0.attn.hook_attn_scores", knock_out_first), ("blocks.0.attn.hook_z", keep)]
    )
    assert float(kept[0][:, 0].abs().max().detach()) == 0
    assert bool(torch.isfinite(logits).all())


def test_a_hook_that_writes_into_positions_leaves_the_weights_alone():
    model = build(SHORT)
    before = model.W_pos.detach().clone()

    def blank(pos, hook):
        pos[:] = 0.0

    with torch.no_grad():
        blanked = model.run_with_hooks(batch(rows=1), fwd_hooks=[("hook_pos_embed", blank)])
        assert torch.equal(model.W_pos, before)
        model.pos_embed.W_pos.zero_()
        close(model(batch(rows=1)), blanked, 0)


@EACH
def test_the_cache_decomposes_the_residual_stream(kind):
    """Embedding, positions where they are in the stream, heads, MLPs and biases add up to the last residual stream."""
    model = build(KINDS[kind])
    with torch.no_grad():
        _, cache = model.run_with_cache(batch())
        close(cache.decompose_resid().sum(0), cache["resid_post", -1])
        parts, labels = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
        close(parts.sum(0), cache["resid_post", -1])
        assert {"L0H0", "L1H2", "embed"} <= set(labels)
        assert ("pos_embed" in labels) == (kind == "standard_mlp")
        heads = cache.stack_head_results()  # [layer and head, batch, pos, d_model]
        outputs = sum(cache["attn_out", layer] - model.b_O[layer] for layer in range(2))
        close(heads.sum(0), outputs)
        assert tuple(cache["pattern", 0].shape) == (3, 3, 8, 8)


def test_memory_hungry_hook_points_are_switched():
    model = build(MLP)
    tokens = batch()
    plain, cache = model.run_with_cache(tokens)
    switched = {"blocks.0.attn.hook_result", "blocks.1.hook_mlp_in", "blocks.0.hook_q_input"}
    assert not switched & set(cache.keys())
    with pytest.raises(
        ValueError, match=r"hook_result fires only with use_attn_result; call model\.use_hooks\(use_attn_result=True\)"
    ):
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_result", lambda x, hook: x)])
    with pytest.raises(ValueError, match="hook_mlp_in fires only with use_hook_mlp_in"):
        model.add_hook("blocks.1.hook_mlp_in", lambda x, hook: x)
    model.use_hooks(use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True)
    logits, cache = model.run_with_cache(tokens)
    close(logits, plain)
    assert switched <= set(cache.keys())
    close(cache["result", 0].sum(2) + model.b_O[0], cache["attn_out", 0])
    model.set_use_split_qkv_input(False)
    model.set_use_attn_in(True)
    logits, cache = model.run_with_cache(tokens)
    close(logits, plain)
    assert tuple(cache["blocks.0.hook_attn_in"].shape) == (3, 8, 3, 12)
    with pytest.raises(ValueError, match="use_attn_in and use_split_qkv_input exclude each other"):
        model.use_hooks(use_split_qkv_input=True)
    with pytest.raises(ValueError, match="use_hooks got n_layers; it switches use_attn_in, "):
        model.use_hooks(n_layers=True)
    model.use_hooks(use_attn_result=False, use_attn_in=False, use_hook_mlp_in=False)
    assert not switched & set(model.run_with_cache(tokens)[1].keys())


def test_a_split_input_edits_one_head_alone():
    """Path patching's tool: what one head's queries read is changed, the other heads' patterns stay."""
    model = build(SHORT | {"use_split_qkv_input": True})

    def blank_head_1(x, hook):
        x[:, :, 1] = 0.0

    _, plain = model.run_with_cache(batch())
    with model.hooks(fwd_hooks=[("blocks.1.hook_q_input", blank_head_1)]):
        _, edited = model.run_with_cache(batch())
    close(edited["pattern", 1][:, [0, 2]], plain["pattern", 1][:, [0, 2]], 0)
    assert float((edited["pattern", 1][:, 1] - plain["pattern", 1][:, 1]).detach().abs().max()) > 1e-3


def test_losses():
    model = build(SHORT)
    logits, loss = model(batch(), return_type="both")
    per_token = model(batch(), return_type="loss", loss_per_token=True)
    probabilities = logits[:, :-1].softmax(-1)
    by_hand = torch.stack([-probabilities[b, t, batch()[b, t + 1]].log() for b in range(3) for t in range(7)]).view(3, 7)
    close(per_token, by_hand)
    close(loss, by_hand.mean())
    assert model(batch(), return_type="both").loss.equal(loss)
    assert model(batch(), return_type=None) is None
    close(next_token_loss(torch.zeros(1, 3, 17), torch.tensor([[1, 2, 3]])), torch.tensor(math.log(17)), 1e-6)
    with pytest.raises(ValueError, match="a loss needs sequences of at least 2 tokens"):
        model(torch.tensor([[1]]), return_type="loss")
    with pytest.raises(ValueError, match="return_type is 'logit'; it must be 'logits', 'loss', 'both' or None"):
        model(batch(), return_type="logit")


def test_stop_at_layer():
    model = build(MLP)
    _, cache = model.run_with_cache(batch())
    close(model(batch(), stop_at_layer=0), cache["hook_embed"] + cache["hook_pos_embed"], 0)
    close(model(batch(), stop_at_layer=1), cache["resid_post", 0], 0)
    close(model(batch(), stop_at_layer=-1), cache["resid_post", 0], 0)
    close(model(batch(), stop_at_layer=2), cache["resid_post", 1], 0)
    for layer in (3, -3):
        with pytest.raises(ValueError, match=rf"stop_at_layer is {layer}; the model has 2 layers, so stop at -2\.\.2"):
            model(batch(), stop_at_layer=layer)


@EACH
def test_copies_and_pickles_are_independent(kind):
    model = build(KINDS[kind])
    expected = model(batch()).detach()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not twin.training
        close(twin(batch()), expected, 0)
        _, cache = twin.run_with_cache(batch())
        assert not any(point.fwd_hooks for point in model.hook_points())
        with torch.no_grad():
            twin.embed.W_E.zero_()
        close(model(batch()), expected, 0)
        close(cache["hook_embed"], model.W_E[batch()], 0)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_torch_func(train):
    """functional_call, grad and vmap, over weights and over tokens: many models as one, as an SGLD engine wants them."""
    models = [build(SHORT | {"seed": seed}).train(train) for seed in range(3)]
    weights, buffers = stack_module_state(models)
    shared = copy.deepcopy(models[0])
    tokens = torch.stack([(batch() + seed) % 17 for seed in range(3)])

    def loss(weights, buffers, tokens):
        return functional_call(shared, (weights, buffers), (tokens,), {"return_type": "loss"})

    each = torch.stack([model(part, return_type="loss") for model, part in zip(models, tokens, strict=True)])
    assert len({round(float(one), 6) for one in each.detach()}) == 3
    close(vmap(loss)(weights, buffers, tokens), each)
    gradients = vmap(grad(loss))(weights, buffers, tokens)
    each.sum().backward()
    close(gradients["blocks.0.attn.W_Q"], torch.stack([model.blocks[0].attn.W_Q.grad for model in models]))
    row = {name: weight.detach()[1] for name, weight in weights.items()}
    close(functional_call(shared, row, (tokens[1],)), models[1](tokens[1]), 0)


def test_second_derivatives_in_eval_mode():
    """d2 loss / dw2 along one direction, against a central difference of gradients."""
    model = build(SHORT)
    weight = model.blocks[0].attn.W_Q
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5), dtype=weight.dtype)
    (first,) = torch.autograd.grad(model(batch(), return_type="loss"), weight, create_graph=True)
    (second,) = torch.autograd.grad((first * direction).sum(), weight)
    ends = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            moved.blocks[0].attn.W_Q.add_(sign * 1e-5 * direction)
        ends.append(torch.autograd.grad(moved(batch(), return_type="loss"), moved.blocks[0].attn.W_Q)[0])
    close(second, (ends[0] - ends[1]) / 2e-5, 1e-7)
    assert float(second.abs().max()) > 1e-4


BAD_TOKENS = [
    ([[1, 2]], TypeError, r"tokens are a list, the model needs an integer tensor \[batch, pos\]"),
    (torch.zeros(1, 3), TypeError, r"dtype torch\.float32, the model needs integer ids: pass tokens\.long\(\)"),
    (torch.zeros(1, 1, 3).long(), ValueError, r"shape \(1, 1, 3\), the model needs \[batch, pos\]"),
    (torch.zeros(0, 3).long(), ValueError, "which is empty"),
    (torch.zeros(1, 10).long(), ValueError, r"sequences have 10 tokens, the model reads n_ctx = 9: pass tokens\[:, :9\]"),
    (torch.tensor([[0, 17]]), ValueError, r"token ids run from 0 to 17, the vocabulary is 0\.\.16"),
    (torch.tensor([[-1, 2]]), ValueError, "token ids run from -1 to 2"),
]


@pytest.mark.parametrize(("tokens", "kind", "sentence"), BAD_TOKENS, ids=[sentence[:24] for _, _, sentence in BAD_TOKENS])
def test_bad_tokens(tokens, kind, sentence):
    with pytest.raises(kind, match=sentence):
        HookedTransformer(SHORT)(tokens)


def test_bad_names_are_refused():
    model = build(SHORT)
    with pytest.raises(
        ValueError, match=r"there is no hook point 'blocks\.7\.attn\.hook_z'; list\(model\.hook_dict\) has their names"
    ):
        model.run_with_hooks(batch(), fwd_hooks=[("blocks.7.attn.hook_z", lambda x, hook: x)])
    with pytest.raises(TypeError, match="got the text 'a', need token ids"):
        model.tokens_to_residual_directions("a")
    with pytest.raises(ValueError, match="config: n_heads is missing"):
        HookedTransformer({key: value for key, value in SHORT.items() if key != "n_heads"})
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})


def test_one_sequence_gets_a_batch_axis_and_short_integers_are_read():
    model = build(SHORT)
    expected = model(batch(rows=1))
    close(model(batch(rows=1)[0]), expected, 0)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        close(model(batch(rows=1).to(dtype)), expected, 0)
    _, cache = model.run_with_cache(batch(rows=1), remove_batch_dim=True)
    assert tuple(cache["pattern", 0].shape) == (3, 8, 8)
    assert isinstance(model.run_with_cache(batch(), return_cache_object=False)[1], dict)
    close(model.tokens_to_residual_directions(3), model.W_U[:, 3], 0)
    assert tuple(model.tokens_to_residual_directions(batch()).shape) == (3, 8, 12)
