"""Our HookedTransformer against the original class of transformer-lens 3.9: the same weights give the same everything.

Run in the environment of ``constraints-tl3.txt``: ``pytest -m tl3``.
"""

import dataclasses
import functools
import itertools

import pytest
import torch

from circuits.models.config import HookedTransformerConfig
from circuits.models.convert import COPIED, IGNORED, from_transformer_lens, to_transformer_lens_state
from circuits.models.hooked import LENS_BUFFERS, HookedTransformer

pytestmark = [
    pytest.mark.tl3,
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),
]

SMALL = {"n_layers": 2, "d_model": 12, "n_heads": 3, "d_head": 4, "n_ctx": 9, "d_vocab": 17}
ATTN = {"attn_only": True}
MLP = {"act_fn": "gelu_new", "d_mlp": 20}
SHORT = {"positional_embedding_type": "shortformer"}
ROTARY = {"positional_embedding_type": "rotary"}
NONE = {"positional_embedding_type": "none"}

GRID = {
    "attn_only": ATTN,
    "attn_only_shortformer": ATTN | SHORT,
    "attn_only_shortformer_1_layer": ATTN | SHORT | {"n_layers": 1},
    "attn_only_shortformer_3_layers": ATTN | SHORT | {"n_layers": 3},
    "attn_only_no_norm": ATTN | SHORT | {"normalization_type": None},
    "attn_only_lnpre": ATTN | SHORT | {"normalization_type": "LNPre"},
    "attn_only_rms": ATTN | SHORT | {"normalization_type": "RMS"},
    "attn_only_rmspre": ATTN | SHORT | {"normalization_type": "RMSPre"},
    "attn_only_rotary": ATTN | ROTARY,
    "attn_only_no_positions": ATTN | NONE,
    "relu": {"act_fn": "relu"},
    "gelu": MLP | {"act_fn": "gelu"},
    "gelu_new": MLP,
    "gelu_fast": MLP | {"act_fn": "gelu_fast"},
    "silu": MLP | {"act_fn": "silu"},
    "solu": MLP | {"act_fn": "solu"},
    "solu_ln": MLP | {"act_fn": "solu_ln"},
    "solu_ln_lnpre": MLP | {"act_fn": "solu_ln", "normalization_type": "LNPre"},
    "solu_ln_rms": MLP | {"act_fn": "solu_ln", "normalization_type": "RMS"},
    "mlp_no_norm": MLP | {"normalization_type": None},
    "mlp_rmspre_rotary": MLP | ROTARY | {"normalization_type": "RMSPre"},
    "mlp_shortformer": MLP | SHORT,
    "mlp_no_positions_3_layers": MLP | NONE | {"n_layers": 3},
    "parallel": MLP | {"parallel_attn_mlp": True},
    "parallel_rotary": MLP | ROTARY | {"parallel_attn_mlp": True, "rotary_dim": 2},
    "final_rms": MLP | {"final_rms": True},
    "final_rms_lnpre": ATTN | {"final_rms": True, "normalization_type": "LNPre"},
    "rotary_partial": MLP | ROTARY | {"rotary_dim": 2, "rotary_base": 100.0},
    "rotary_adjacent": ATTN | ROTARY | {"rotary_adjacent_pairs": True},
    "rotary_adjacent_partial": ATTN | ROTARY | {"rotary_adjacent_pairs": True, "rotary_dim": 2},
    "no_attn_scale": ATTN | SHORT | {"use_attn_scale": False},
    "attn_scale": ATTN | {"attn_scale": 3.5},
    "scale_by_layer": ATTN | SHORT | {"scale_attn_by_inverse_layer_idx": True, "n_layers": 3},
    "scale_by_layer_alone": ATTN | {"scale_attn_by_inverse_layer_idx": True, "use_attn_scale": False},
    "soft_caps": MLP | {"attn_scores_soft_cap": 0.7, "output_logits_soft_cap": 1.3},
    "eps": ATTN | {"eps": 0.1},
    "attn_result": ATTN | SHORT | {"use_attn_result": True},
    "attn_result_mlp": MLP | {"use_attn_result": True},
    "split_qkv": MLP | {"use_split_qkv_input": True, "use_hook_mlp_in": True},
    "split_qkv_shortformer": ATTN | SHORT | {"use_split_qkv_input": True, "use_attn_result": True},
    "attn_in": ATTN | ROTARY | {"use_attn_in": True},
    "attn_in_shortformer_rms": MLP | SHORT | {"use_attn_in": True, "normalization_type": "RMS"},
    "mlp_in_parallel": MLP | {"use_hook_mlp_in": True, "parallel_attn_mlp": True},
    "more_outputs_than_inputs": ATTN | SHORT | {"d_vocab_out": 23},
    "d_head_not_d_model_over_heads": ATTN | SHORT | {"d_head": 7},
}
MANY = pytest.mark.parametrize("name", GRID)


def lens_config(cfg):
    """The other class's config, from ours."""
    from transformer_lens import HookedTransformerConfig as LensConfig

    fields = {name: value for name, value in cfg.model_dump().items() if name in COPIED}
    if not cfg.use_attn_scale:
        del fields["attn_scale"]
    if cfg.positional_embedding_type == "none":
        fields["positional_embedding_type"] = "standard"
    if cfg.attn_only:
        del fields["act_fn"], fields["d_mlp"]
    return LensConfig(**fields, dtype=getattr(torch, cfg.dtype), device="cpu")


@functools.cache
def weights(name, dtype):
    """One state dict for a row of the grid, no weight at a value where an error would hide (no zero bias, no unit scale)."""
    model = HookedTransformer(HookedTransformerConfig(**SMALL | GRID[name], dtype=dtype))
    rng = torch.Generator().manual_seed(1)
    # Nothing holds activations near 1 in a model without norms: at 0.4 they reach 50 and the loss 19 nats.
    size = 0.4 if model.cfg.normalization_type else 0.2
    return {
        key: (weight.ndim == 1) * key.endswith(".w") + size * torch.randn(weight.shape, generator=rng).to(weight.dtype)
        for key, weight in model.state_dict().items()
    }


def pair(name, dtype="float64"):
    """Our model and theirs, with the same weights."""
    from transformer_lens import HookedTransformer as LensTransformer

    ours = HookedTransformer(HookedTransformerConfig(**SMALL | GRID[name], dtype=dtype)).eval()
    ours.load_state_dict(weights(name, dtype))
    theirs = LensTransformer(lens_config(ours.cfg)).eval()
    theirs.load_state_dict(to_transformer_lens_state(ours), strict=True)
    return ours, theirs


def batch():
    return torch.randint(SMALL["d_vocab"], (3, 8), generator=torch.Generator().manual_seed(2))


def assert_equal(found, expected, what):
    """To 1e-10 in fp64 and 1e-5 in fp32, of max(1, the largest); infinities in the same places."""
    assert found.shape == expected.shape, what
    assert found.dtype == expected.dtype, what
    infinite = expected.isinf()
    assert torch.equal(found.isinf(), infinite), what
    assert torch.equal(found[infinite], expected[infinite]), what
    found, expected = found[~infinite].detach(), expected[~infinite].detach()
    assert bool(torch.isfinite(expected).all()), what
    tolerance = (1e-10 if expected.dtype == torch.float64 else 1e-5) * max(1.0, float(expected.abs().max()))
    worst = float((found - expected).abs().max())
    assert worst <= tolerance, f"{what}: off by {worst}"


def assert_equal_gradients(ours, theirs):
    found = dict(ours.named_parameters())
    extra = {"pos_embed.W_pos"} if ours.cfg.positional_embedding_type == "none" else set()
    expected = {name: weight for name, weight in theirs.named_parameters() if name not in extra}
    assert set(found) == set(expected)
    for name, weight in expected.items():
        gradient, reference = found[name].grad, weight.grad
        if reference is None:
            assert gradient is None or float(gradient.abs().max()) == 0, name
        else:
            assert_equal(gradient, reference, f"gradient of {name}")
    assert any(float(weight.grad.abs().max()) > 1e-3 for weight in found.values() if weight.grad is not None)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@MANY
def test_cache_loss_and_gradients(name, dtype):
    """eval(): loss, every activation with its gradient, every parameter's gradient; the same hook names on both sides."""
    ours, theirs = pair(name, dtype)
    loss, cache = ours.run_with_cache(batch(), return_type="loss", incl_bwd=True)
    expected, reference = theirs.run_with_cache(batch(), return_type="loss", incl_bwd=True)
    assert_equal(loss, expected, "loss")
    extra = {"hook_pos_embed", "hook_pos_embed_grad"} if ours.cfg.positional_embedding_type == "none" else set()
    assert set(cache.keys()) == set(reference.keys()) - extra
    for key in set(reference.keys()) - extra:
        # transformer-lens calls ln1 three times, for q, k and v, and keeps the gradient of one of the three alone
        if not (".ln1." in key and key.endswith("_grad")):
            assert_equal(cache[key], reference[key], key)
    assert_equal_gradients(ours, theirs)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@MANY
def test_unhooked(name, dtype):
    """Logits, loss and gradients with nothing listening: in eval(), and in train() through the fused kernels."""
    ours, theirs = pair(name, dtype)
    for train in (False, True):
        ours.train(train).zero_grad()
        theirs.train(train).zero_grad()
        logits, loss = ours(batch(), return_type="both")
        reference, expected = theirs(batch(), return_type="both")
        assert_equal(logits, reference, "logits")
        assert_equal(loss, expected, "loss")
        loss.backward()
        expected.backward()
        assert_equal_gradients(ours, theirs)
    assert_equal(
        ours(batch(), return_type="loss", loss_per_token=True),
        theirs(batch(), return_type="loss", loss_per_token=True),
        "per token",
    )
    for layer in range(-1, ours.cfg.n_layers + 1):
        assert_equal(ours(batch(), stop_at_layer=layer), theirs(batch(), stop_at_layer=layer), f"stop at {layer}")


def zero_head(value, hook):
    value[:, :, 1] = 0.0
    return value


def ramp(value, hook):
    return value * torch.linspace(0.5, 1.5, value.shape[-1], dtype=value.dtype)


def halve_in_place(value, hook):
    value *= 0.5


def look_at_self(pattern, hook):
    pattern[:, 0] = torch.eye(pattern.shape[-1], dtype=pattern.dtype)
    return pattern


def knock_out_first(scores, hook):
    scores[:, :2, :, 0] = -torch.inf  # leaves no key to the first query of two heads
    return scores


EDITS = [
    *itertools.product(
        ("blocks.0.attn.hook_q", "blocks.0.attn.hook_k", "blocks.1.attn.hook_v", "blocks.0.attn.hook_z"), (zero_head, ramp)
    ),
    *itertools.product(
        ("hook_embed", "hook_pos_embed", "blocks.1.hook_resid_pre", "blocks.0.hook_attn_out"), (ramp, halve_in_place)
    ),
    *itertools.product(("blocks.0.ln1.hook_normalized", "blocks.1.ln1.hook_scale", "ln_final.hook_normalized"), (ramp,)),
    ("blocks.0.attn.hook_pattern", look_at_self),
    ("blocks.1.attn.hook_attn_scores", ramp),
    ("blocks.0.attn.hook_attn_scores", knock_out_first),
    ("unembed.hook_out", halve_in_place),
]


@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize(("point", "edit"), EDITS, ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_edits(point, edit, gradients):
    """A hook that edits, in place or not, has the same effect on the logits, and on gradients."""
    ours, theirs = pair("attn_only_shortformer")
    plain = theirs(batch()).detach()
    with torch.set_grad_enabled(gradients):
        found = ours.run_with_hooks(batch(), fwd_hooks=[(point, edit)])
        expected = theirs.run_with_hooks(batch(), fwd_hooks=[(point, edit)])
    assert_equal(found, expected, point)
    assert float((expected.detach() - plain).abs().max()) > 1e-3
    assert_equal(ours(batch()), plain, "afterwards")
    if gradients and edit is not knock_out_first:  # a row without any key has no gradient in either
        found[..., :5].pow(2).mean().backward()
        expected[..., :5].pow(2).mean().backward()
        assert_equal_gradients(ours, theirs)


@pytest.mark.parametrize("name", ["attn_only", "gelu_new", "parallel_rotary", "attn_result_mlp", "mlp_no_norm"])
def test_decompositions(name):
    """What an ActivationCache makes of our model and of theirs."""
    ours, theirs = pair(name, "float32")
    with torch.no_grad():
        cache, reference = ours.run_with_cache(batch())[1], theirs.run_with_cache(batch())[1]
    for found, expected in (
        (cache.decompose_resid(return_labels=True), reference.decompose_resid(return_labels=True)),
        (cache.accumulated_resid(return_labels=True), reference.accumulated_resid(return_labels=True)),
        (cache.stack_head_results(return_labels=True), reference.stack_head_results(return_labels=True)),
        (
            cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True),
            reference.get_full_resid_decomposition(expand_neurons=False, return_labels=True),
        ),
    ):
        assert found[1] == expected[1]
        assert_equal(found[0], expected[0], str(found[1]))
    parts = cache.decompose_resid()
    assert_equal(cache.logit_attrs(parts, batch()), reference.logit_attrs(parts, batch()), "logit_attrs")


@pytest.mark.parametrize("name", ["attn_only_shortformer", "parallel_rotary", "d_head_not_d_model_over_heads"])
def test_stacked_weights_agree(name):
    ours, theirs = pair(name)
    names = ["W_E", "W_U", "b_U", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"]
    names += [] if ours.cfg.attn_only else ["W_in", "b_in", "W_out", "b_out"]
    for part in names:
        assert_equal(getattr(ours, part), getattr(theirs, part), part)
    assert_equal(ours.OV.AB, theirs.OV.AB, "OV")
    assert_equal(ours.QK.AB, theirs.QK.AB, "QK")


@MANY
def test_conversion_and_state_dicts(name):
    """Theirs becomes ours with an equal config, and loads its state dict with its buffers in it."""
    ours, theirs = pair(name)
    before = {key: value.clone() for key, value in theirs.state_dict().items()}
    converted = from_transformer_lens(theirs)
    if ours.cfg.positional_embedding_type == "none":
        assert not converted.W_pos.any()
    else:
        assert converted.cfg == ours.cfg
        assert {key: value.tolist() for key, value in converted.state_dict().items()} == {
            key: value.tolist() for key, value in ours.state_dict().items()
        }
        fresh = HookedTransformer(ours.cfg).eval()
        fresh.load_state_dict(theirs.state_dict())
        assert torch.equal(fresh(batch()), ours(batch()))
    assert_equal(converted(batch()), theirs(batch()), "logits")
    assert set(to_transformer_lens_state(ours)) == set(before)
    assert all(torch.equal(value, before[key]) or key.endswith(LENS_BUFFERS) for key, value in theirs.state_dict().items())
    assert not converted.training


@pytest.mark.parametrize(
    ("name", "faithful"),
    # transformer-lens folds ln1 across shortformer's positions, and RMS without MLPs wrongly: another model, which converts too
    [("attn_only", True), ("gelu_new", True), ("solu_ln", True), ("attn_only_shortformer", False), ("attn_only_rms", False)],
)
def test_processed_models(name, faithful):
    """Folded norms and centred weights, as transformer-lens' from_pretrained leaves them, convert."""
    ours, theirs = pair(name, "float32")
    theirs.process_weights_(fold_ln=True)
    converted = from_transformer_lens(theirs)
    assert converted.cfg.normalization_type in ("LNPre", "RMSPre")
    assert_equal(converted(batch()), theirs(batch()), "logits")
    if faithful:
        assert_equal(converted(batch()).log_softmax(-1), ours(batch()).log_softmax(-1), "probabilities of the model as it was")


REFUSED = {
    "use_qk_norm": True,
    "clip_qkv": 3.0,
    "use_logn_attn": True,
    "use_dynamic_ntk_rope": True,
    "use_local_attn": True,
    "gated_mlp": True,
    "use_hook_tokens": True,
    "post_embedding_ln": True,
    "rotary_scaling_factor": 2.0,
    "load_in_4bit": True,
    "quantization_method": "gptq",
    "num_experts": 2,
    "use_normalization_before_and_after": True,
    "use_NTK_by_parts_rope": True,
    "use_yarn_rope": True,
    "use_attention_sinks": True,
    "n_key_value_heads": 1,
}


def test_every_field_is_honoured_ignored_or_refused():
    from transformer_lens import HookedTransformerConfig as LensConfig

    fields = {field.name for field in dataclasses.fields(LensConfig)}
    # the bridge's own, which the older class inherits
    assert fields - COPIED - IGNORED - set(REFUSED) == set()
    assert not set(REFUSED) & (COPIED | IGNORED)


@pytest.mark.parametrize(
    ("field", "value"),
    [*REFUSED.items(), ("positional_embedding_type", "alibi"), ("attention_dir", "bidirectional"), ("act_fn", "relu2")],
)
def test_refusals_name_the_field(field, value):
    _, theirs = pair("gelu_new")
    setattr(theirs.cfg, field, value)
    with pytest.raises(ValueError, match=field):
        from_transformer_lens(theirs)


@pytest.mark.parametrize(("field", "value"), [("eps", 0.5), ("attn_scale", 1.1), ("act_fn", "relu"), ("use_attn_scale", False)])
def test_a_config_that_lies_is_found_out(field, value):
    """The parts of a 3.9 model took their constants when it was made: a config changed since then is refused."""
    _, theirs = pair("gelu_new", "float32")
    theirs.cfg = dataclasses.replace(theirs.cfg, **{field: value})
    with pytest.raises(ValueError, match="logits are off by"):
        from_transformer_lens(theirs)


def test_reduced_precision_and_strange_weights_are_refused():
    _, theirs = pair("gelu_new", "float32")
    with pytest.raises(ValueError, match=r"dtype is bfloat16.*torch\.float32"):
        from_transformer_lens(theirs.to(torch.bfloat16))
    _, theirs = pair("attn_only", "float32")
    theirs.blocks[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"blocks\.0\.extra\.weight"):
        from_transformer_lens(theirs)
    with pytest.raises(TypeError, match="got Linear, need a transformer-lens"):
        from_transformer_lens(torch.nn.Linear(2, 2))
