"""All heads at once equal one hooked pass a head; and ablation with everything frozen equals the removal of path terms."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuits.models.demo import demo_model
from circuits.models.effects import effects_by_hooks, effects_of, head_effects
from circuits.models.heads import Head
from circuits.models.hooked import HookedTransformer, next_token_loss
from circuits.models.interventions import ABLATIONS, Ablation, donors, mean_z, recorded, replacement
from circuits.models.layers import Norm
from circuits.models.stacked import effects_stacked

BASE = {"n_layers": 2, "d_model": 12, "n_heads": 2, "d_head": 4, "n_ctx": 12, "d_vocab": 17, "initializer_range": 0.5}
SHAPES: dict[str, dict[str, Any]] = {
    "attention only, shortformer": {"attn_only": True, "positional_embedding_type": "shortformer"},
    "three layers without norms": {"attn_only": True, "n_layers": 3, "normalization_type": None},
    "one layer": {"attn_only": True, "n_layers": 1},
    "RMS and rotary": {
        "attn_only": True, "n_layers": 3, "normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary_dim": 4,
    },
    "MLPs": {"d_mlp": 8, "act_fn": "gelu"},
    "parallel MLPs, smeared keys, soft caps": {
        "d_mlp": 8, "act_fn": "relu", "parallel_attn_mlp": True, "smeared_keys": True, "output_logits_soft_cap": 5.0,
        "attn_scores_soft_cap": 3.0, "positional_embedding_type": "shortformer",
    },
    "LNPre": {"attn_only": True, "normalization_type": "LNPre"},
}  # fmt: skip


def make(dtype: str = "float64", seed: int = 0, **changes: Any) -> HookedTransformer:
    """A model whose biases and gains are not the trivial ones."""
    model = HookedTransformer(BASE | {"dtype": dtype, "seed": seed} | changes).eval()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "b_" in name or name.endswith(".b"):
                parameter.normal_(std=0.3, generator=rng)
            elif name.endswith(".w"):
                parameter.add_(torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype), alpha=0.2)
    return model


def text(examples: int = 5, length: int = 10, d_vocab: int = 17, seed: int = 0) -> Tensor:
    return torch.randint(0, d_vocab, (examples, length), generator=torch.Generator().manual_seed(seed))


WAYS = [
    *(("zero", patterns, norms) for patterns in ("recomputed", "preserved") for norms in ("live", "frozen")),
    ("mean", "recomputed", "live"),
    ("resample", "preserved", "live"),
    ("resample", "recomputed", "live"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_stacked_equals_hooked(shape: str):
    model, tokens = make(**SHAPES[shape]), text(examples=3)
    mean, donor = mean_z(model, tokens), tokens[donors(len(tokens), 0)]
    for kind, patterns, norms in WAYS:
        put = replacement(model, tokens, kind, mean=mean, donor=donor)
        slow = effects_by_hooks(model, tokens, put, patterns=patterns, norms=norms)
        fast = effects_stacked(model, tokens, put, patterns=patterns, norms=norms)
        for a, b in zip(slow, fast, strict=True):
            assert a is not None and b is not None
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        assert fast[1].abs().max() > 1e-3


def test_batches_do_not_matter_and_donors_are_the_corpus_own():
    """A corpus in many batches gives what one call on all of it gives, resampling included."""
    model, tokens = make(attn_only=True), text(examples=40, length=6)
    for name in ABLATIONS:
        found = list(head_effects(model, tokens, name))
        assert len(found) > 1
        ablation = ABLATIONS[name]
        mean = mean_z(model, tokens) if ablation.kind == "mean" else None
        donor = tokens[donors(len(tokens), 0)] if ablation.kind == "resample" else None
        put = replacement(model, tokens, ablation.kind, mean=mean, donor=donor, examples=len(tokens))
        whole = effects_by_hooks(model, tokens, put, patterns=ablation.patterns)
        torch.testing.assert_close(torch.cat([e.total for e in found], 2), whole[1], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(torch.cat([e.direct for e in found], 2), whole[2], rtol=1e-9, atol=1e-9)


def test_the_shipped_model_in_single_precision():
    model = demo_model()
    tokens = text(examples=2, length=48, d_vocab=1000) + 1
    tokens[:, 0] = 0
    for name in ("zero", "pattern_preserving"):
        put = replacement(model, tokens, "zero")
        slow = effects_by_hooks(model, tokens, put, patterns=ABLATIONS[name].patterns)
        fast = effects_of(model, tokens, put, patterns=ABLATIONS[name].patterns)
        # Effects are differences of losses: rounding is relative to those.
        bound = 1e-5 * max(1.0, float(slow[0].max()))
        assert all((a - b).abs().max() <= bound for a, b in zip(slow, fast, strict=True))


def path_terms(model: HookedTransformer, tokens: Tensor) -> dict[tuple[Any, ...], Tensor]:
    """Logits of every path, with patterns and norm scales as in the clean run: the literal expansion.

    A path is where it begins ("embed", ("b_O", layer), or ("bias", head) for what value and norm biases bring in) and the heads
    it goes through.
    """
    cfg = model.cfg
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(cfg.n_layers)]
    names += [f"blocks.{layer}.ln1.hook_scale" for layer in range(cfg.n_layers)] + ["ln_final.hook_scale"]
    kept = recorded(model, tokens, [name for name in names if name in model.hook_dict])

    def normed(norm: Any, x: Tensor, scale_name: str) -> Tensor:
        if not isinstance(norm, Norm):
            return x
        centred = x - x.mean(-1, keepdim=True) if norm.centred else x
        return centred / kept[scale_name] * (1.0 if norm.w is None else norm.w)

    with torch.no_grad():
        start = model.embed(tokens)
        if cfg.positional_embedding_type == "standard":
            start = start + model.pos_embed(tokens)
        terms: dict[tuple[Any, ...], Tensor] = {("embed",): start}
        for layer, block in enumerate(model.blocks):
            attn, new = block.attn, {("b_O", layer): block.attn.b_O.expand_as(start)}
            bias = block.ln1.b if isinstance(block.ln1, Norm) and block.ln1.b is not None else torch.zeros_like(attn.b_O)
            for h in range(cfg.n_heads):
                head = Head(layer, h)
                new["bias", head] = ((bias @ attn.W_V[h] + attn.b_V[h]) @ attn.W_O[h]).expand_as(start)
                pattern = kept[f"blocks.{layer}.attn.hook_pattern"][:, h]
                for path, x in terms.items():
                    read = normed(block.ln1, x, f"blocks.{layer}.ln1.hook_scale")
                    new[*path, head] = pattern @ (read @ attn.W_V[h]) @ attn.W_O[h]
            terms |= new
        return {path: normed(model.ln_final, x, "ln_final.hook_scale") @ model.W_U for path, x in terms.items()}


@settings(max_examples=10)
@given(
    n_layers=st.integers(1, 3),
    norm=st.sampled_from(["LN", "LNPre", "RMS", None]),
    positions=st.sampled_from(["standard", "shortformer"]),
    seed=st.integers(0, 100),
)
def test_pattern_preserving_ablation_subtracts_every_path_through_the_head(n_layers: int, norm: Any, positions: str, seed: int):
    shape = {"n_layers": n_layers, "normalization_type": norm, "positional_embedding_type": positions}
    model = make(seed=seed, attn_only=True, **shape)
    tokens = text(examples=2, length=6, seed=seed)
    terms = path_terms(model, tokens)
    with torch.no_grad():
        logits = model(tokens)
    final_bias = model.ln_final.b if isinstance(model.ln_final, Norm) and model.ln_final.b is not None else None
    constant = model.b_U if final_bias is None else model.b_U + final_bias @ model.W_U
    whole = torch.stack(list(terms.values())).sum(0) + constant
    torch.testing.assert_close(whole, logits, rtol=1e-9, atol=1e-9)
    clean = next_token_loss(logits, tokens, per_token=True)
    zero = replacement(model, tokens, "zero")
    _, total, _ = effects_of(model, tokens, zero, patterns="preserved", norms="frozen")
    for layer in range(n_layers):
        for h in range(2):
            through = torch.stack([x for path, x in terms.items() if Head(layer, h) in path]).sum(0)
            without = next_token_loss(logits - through, tokens, per_token=True) - clean
            torch.testing.assert_close(total[layer, h], without, rtol=1e-8, atol=1e-8)


def test_the_mean_of_others_leaves_nothing_of_an_example_itself():
    """With two examples each gets the other's output; against a reference, that one's mean."""
    model, tokens = make(attn_only=True), text(examples=2, length=6)
    own = replacement(model, tokens, "mean", mean=mean_z(model, tokens), examples=2)
    torch.testing.assert_close(own, replacement(model, tokens, "resample", donor=tokens.flip(0)))
    swapped = next(iter(head_effects(model, tokens, "mean"))).total
    resampled = next(iter(head_effects(model, tokens, "resample"))).total
    torch.testing.assert_close(swapped, resampled, rtol=1e-9, atol=1e-9)


def test_hooks_on_the_model_are_heard_in_every_pass():
    model, tokens = make(attn_only=True), text(examples=2, length=6)
    put = replacement(model, tokens, "zero")
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: 0.5 * z)]):
        heard = effects_of(model, tokens, put)
        literal = effects_by_hooks(model, tokens, put)
    assert all(torch.equal(a, b) for a, b in zip(heard, literal, strict=True))


def test_live_norms_give_something_else():
    """The control: under live norms the path terms of the head are not all that changes."""
    model, tokens = make(attn_only=True), text(examples=2, length=6)
    zero = replacement(model, tokens, "zero")
    frozen, live = (effects_of(model, tokens, zero, patterns="preserved", norms=norms)[1] for norms in ("frozen", "live"))
    assert (frozen - live).abs().max() > 1e-3


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, t: head_effects(m, t, "half"), "there is no ablation 'half'; use zero, mean, resample, pattern_preserving"),
        (lambda m, t: head_effects(m, t[:1], "resample"), "from another example and one was given"),
        (lambda m, t: head_effects(m, t, "mean", reference=t[:, :4]), "the reference has 4 positions and the tokens 10"),
        (lambda m, t: head_effects(m, t[:1], "mean"), "the mean over other examples and one was given"),
        (lambda m, t: head_effects(m, t, reference=t), "a reference is for mean ablation, and this is zero"),
        (lambda m, t: head_effects(make(attn_only=True, d_vocab_out=5), t), "has no logit, the model has d_vocab_out = 5"),
        (lambda m, t: head_effects(m, t[:, :1]), "1 tokens, the effect of a head needs at least 2"),
        (lambda m, t: Ablation("one"), "kind='one': need 'zero' or 'mean' or 'resample'"),
        (lambda m, t: Ablation(seed=-1), "seed=-1"),
    ],
)
def test_wrong_calls_get_one_sentence(call: Any, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        call(make(attn_only=True), text())
