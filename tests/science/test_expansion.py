"""The sum over paths is the model, term by term removable; shares add up to the loss; scores are the sum of their terms."""

from collections.abc import Iterable
from functools import partial
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuits.models.heads import Head
from circuits.models.hooked import HookedTransformer, next_token_loss
from circuits.models.interventions import Norms, ablated, held, recorded, replacement
from circuits.models.layers import Norm
from circuits.models.planted import planted_model
from circuits.models.protocol import norm_scale_names, pattern_name, scores_name, z_name
from circuits.paths.expansion import PathExpansion, PathTerm
from circuits.paths.path_terms import PathTerms, mean_softmax
from circuits.paths.score_terms import ScoreExpansion, ScoreTerms, score_terms
from circuits.paths.term_importance import TermImportance

BASE = {"n_layers": 2, "d_model": 12, "n_heads": 2, "d_head": 4, "n_ctx": 12, "d_vocab": 17, "initializer_range": 0.5}
NORMS: tuple[Norms, ...] = ("frozen", "live")


def make(seed: int = 0, **changes: Any) -> HookedTransformer:
    """A model in which no bias and no gain is the trivial one."""
    fields = BASE | {"dtype": "float64", "seed": seed} | changes
    model = HookedTransformer(fields if "act_fn" in fields else fields | {"attn_only": True}).eval()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "b_" in name or name.endswith((".b", "alpha_smear")):
                parameter.normal_(std=0.3, generator=rng)
            elif name.endswith(".w"):
                parameter.add_(torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype), alpha=0.2)
    return model.requires_grad_(False)


def text(examples: int = 3, length: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(0, 17, (examples, length), generator=torch.Generator().manual_seed(seed))


def summed(terms: Iterable[PathTerm]) -> Tensor:
    """The terms' logits, added up."""
    return torch.stack([term.logits() for term in terms]).sum(0)


CONFIGS = st.fixed_dictionaries(
    {
        "n_layers": st.integers(1, 3),
        "n_heads": st.integers(1, 3),
        "normalization_type": st.sampled_from(["LN", "LNPre", "RMS", "RMSPre", None]),
        "positional_embedding_type": st.sampled_from(["standard", "shortformer", "rotary", "none"]),
        "smeared_keys": st.booleans(),
        "attn_scores_soft_cap": st.sampled_from([-1.0, 2.0]),
        "seed": st.integers(0, 99),
    }
)


@pytest.mark.science
@settings(max_examples=10, deadline=None)
@given(config=CONFIGS)
def test_the_sum_over_paths_is_the_logits(config: dict[str, Any]):
    model, tokens = make(**config), text()
    paths, logits = PathExpansion(model, tokens), model(tokens)
    terms = list(paths.terms())
    assert (summed(terms) - logits).abs().max() < 1e-10
    assert (paths.logits() - logits).abs().max() < 1e-10
    # Each term is its pattern times its OV, and the two agree with the stream.
    for term in terms[1:]:
        start = paths.term(term.path[:1]).stream
        left, right = term.ov()
        assert (term.pattern(scaled=True) @ start @ left @ right - term.stream).abs().max() < 1e-10
        torch.testing.assert_close(term.pattern().sum(-1), torch.ones(tokens.shape, dtype=torch.float64))
    # The control: no term but a zero one can be left out.
    assert all((summed(t for t in terms if t is not out) - logits).abs().max() > 1e-6 for out in terms[:4])


@pytest.mark.science
@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
def test_in_single_precision(n_layers: int):
    model, tokens = make(n_layers=n_layers, dtype="float32"), text()
    total = summed(PathExpansion(model, tokens).terms())
    assert total.dtype == torch.float32 and (total - model(tokens)).abs().max() < 1e-4


@pytest.mark.science
@settings(max_examples=6, deadline=None)
@given(config=CONFIGS)
def test_pattern_preserving_ablation_subtracts_every_term_that_holds_the_head(config: dict[str, Any]):
    """What is left in the head's place is the constant of its value and norm biases, which is a term of its own."""
    model, tokens = make(**config), text()
    terms, clean = list(PathExpansion(model, tokens).terms()), model(tokens)
    for head in (Head(0, 0), Head(model.cfg.n_layers - 1, model.cfg.n_heads - 1)):
        block = model.blocks[head.layer]
        put = replacement(model, tokens, "zero").clone()
        constant = block.attn.b_V[head.head]
        if isinstance(block.ln1, Norm) and block.ln1.b is not None:
            constant = constant + block.ln1.b @ block.attn.W_V[head.head]
        put[head.layer, :, :, head.head] = constant
        through = summed(term for term in terms if head in term.heads)
        with ablated(model, tokens, [head], put, patterns="preserved", norms="frozen"):
            assert (model(tokens) - (clean - through)).abs().max() < 1e-9


@pytest.mark.science
def test_live_norms_are_not_the_same_subtraction():
    model, tokens = make(), text()
    for block in model.blocks:  # so that zero is what the head writes if it reads nothing
        block.attn.b_V.zero_()
        if isinstance(block.ln1, Norm) and block.ln1.b is not None:
            block.ln1.b.zero_()
    without = model(tokens) - summed(term for term in PathExpansion(model, tokens).terms() if Head(0, 1) in term.heads)
    put = replacement(model, tokens, "zero")
    gaps = []
    for norms in NORMS:
        with ablated(model, tokens, [Head(0, 1)], put, patterns="preserved", norms=norms):
            gaps.append((model(tokens) - without).abs().max())
    assert gaps[0] < 1e-9 and gaps[1] > 1e-3


@pytest.mark.science
@pytest.mark.parametrize("size", [3.0, 30.0, 1000.0])
def test_the_integral_of_softmax(size: float):
    """For two logits, x and 0: (softplus(x) - ln 2) / x. For several: Simpson's rule on many points."""
    x = torch.tensor([size, size / 3], dtype=torch.float64)
    logits = torch.stack([x, torch.zeros_like(x)], -1)
    expected = (torch.nn.functional.softplus(x) - log(2)) / x
    assert (mean_softmax(logits)[:, 0] - expected).abs().max() < 1e-10
    rng = torch.Generator().manual_seed(0)
    logits = (torch.rand(2, 7, generator=rng, dtype=torch.float64) * 2 - 1) * min(size, 30.0) + 100.0
    a = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    weight = torch.ones_like(a)
    weight[1:-1:2], weight[2:-1:2] = 4, 2
    literal = torch.einsum("a,arv->rv", weight / weight.sum(), (a[:, None, None] * (logits - 100)).softmax(-1))
    assert (mean_softmax(logits) - literal).abs().max() < 1e-9


@pytest.mark.science
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_shares_add_up_to_the_loss_and_are_the_integral_of_each_term(size: float):
    model, tokens = make(positional_embedding_type="standard"), text(examples=4)
    model.W_U.mul_(size)
    logits = model(tokens)
    found = PathTerms(tokens)(model)
    loss = float(next_token_loss(logits, tokens))
    assert size == 1.0 or logits.abs().max() > 30
    assert found.attrs["loss"] == pytest.approx(loss, abs=1e-8)
    assert float(found.value.sum()) == pytest.approx(loss - log(17), abs=1e-8)
    # The literal integral, for every term and each choice of targets.
    a = torch.linspace(0, 1, 4001, dtype=torch.float64)
    weight = torch.ones_like(a)
    weight[1:-1:2], weight[2:-1:2] = 4, 2
    mean = sum(w * (s * logits[:, :-1]).softmax(-1) for w, s in zip(weight / weight.sum(), a, strict=True))
    terms = list(PathExpansion(model, tokens).terms())
    assert [term.name for term in terms] == found.edge.values.tolist()
    for name, term in ((term.name, term.logits()[:, :-1]) for term in terms):
        shares = [
            float(((mean * term).sum(-1) - term.gather(-1, tokens.roll(-d, 0)[:, 1:, None])[..., 0]).mean()) for d in range(4)
        ]
        assert float(found.value.sel(edge=name)) == pytest.approx(shares[0], abs=1e-6)
        assert float(found.null_mean.sel(edge=name)) == pytest.approx(np.mean(shares[1:]), abs=1e-6)


@pytest.mark.science
def test_what_is_cut_is_in_the_rest():
    model, tokens = make(n_layers=3), text(examples=4)
    whole, part = PathTerms(tokens)(model), PathTerms(tokens, max_order=1)(model)
    assert "rest" not in whole and set(part.order.values) == {0, 1}
    assert part.value.equals(whole.value.sel(edge=part.edge))
    assert float(part.rest) == pytest.approx(float(whole.value[whole.order > 1].sum()), abs=1e-10)
    assert float(part.rest_null_mean) == pytest.approx(float(whole.null_mean[whole.order > 1].sum()), abs=1e-10)


def repeats(examples: int = 8, seed: int = 0) -> Tensor:
    """BOS, a random sequence with all tokens different, and part of it again after a gap: at a distance of its own each."""
    rng = torch.Generator().manual_seed(seed)
    rows = []
    for example in range(examples):
        ids = 1 + torch.randperm(60, generator=rng)[: 24 + example]
        rows.append(torch.cat([torch.zeros(1, dtype=torch.int64), ids, ids[:8]])[:33])
    return torch.stack(rows)


@pytest.mark.science
def test_the_planted_induction_path_lowers_the_loss_and_knows_its_targets():
    """Its term raises the token that came next before; the paths of heads that copy nothing do nothing."""
    found = PathTerms(repeats())(planted_model(d_vocab=64, n_ctx=40))
    name = "embed -> L1H0 -> logits"
    assert str(found.edge.values[found.value.values.argmin()]) == name and float(found.sel(edge=name).z) < -5
    assert abs(float(found.value.sel(edge="embed -> L0H2 -> logits"))) < 1e-6
    assert np.isnan(float(found.z.sel(edge="b_U -> logits")))


def losses_by_passes(model: HookedTransformer, tokens: Tensor) -> list[Tensor]:
    """The paper's algorithm, pass by pass: patterns and scales forced, each head's output replaced by that of the pass before."""
    layers = range(model.cfg.n_layers)
    names = [pattern_name(layer) for layer in layers]
    names += [name for layer in range(len(layers) + 1) for name in norm_scale_names(model, layer)]
    forced = [(name, partial(held, value)) for name, value in recorded(model, tokens, names).items()]
    saved = [torch.zeros(*tokens.shape, model.cfg.n_heads, model.cfg.d_head, dtype=torch.float64) for _ in layers]
    losses = []
    for _ in range(len(layers) + 1):
        new: list[Tensor] = [torch.empty(0)] * len(layers)

        def exchange(z: Tensor, hook: Any, layer: int, new: list[Tensor] = new, saved: list[Tensor] = saved) -> Tensor:
            new[layer] = z.clone()
            return saved[layer]

        with model.hooks(fwd_hooks=[*forced, *((z_name(layer), partial(exchange, layer=layer)) for layer in layers)]):
            losses.append(next_token_loss(model(tokens), tokens))
        saved = new
    return losses


@pytest.mark.science
@pytest.mark.parametrize("shape", [{"n_layers": 3}, {"normalization_type": None}, {"normalization_type": "RMS"}])
def test_marginal_effects_are_those_of_the_papers_algorithm(shape: dict[str, Any]):
    """Without biases in values, which the algorithm counts as outputs of heads and the expansion as constants."""
    model, tokens = make(**shape), text(examples=4)
    for block in model.blocks:
        block.attn.b_V.zero_()
        if isinstance(block.ln1, Norm) and block.ln1.b is not None:
            block.ln1.b.zero_()
    found = TermImportance(tokens)(model)
    literal = torch.stack(losses_by_passes(model, tokens))
    np.testing.assert_allclose(found.loss, literal, atol=1e-10)
    np.testing.assert_allclose(found.value, -np.diff(np.array([log(17), *literal])), atol=1e-10)
    assert found.attrs["loss"] == pytest.approx(float(next_token_loss(model(tokens), tokens)), abs=1e-10)
    assert np.abs(found.value).min() > 1e-4


@pytest.mark.science
def test_effects_by_layer_are_those_of_the_terms_and_the_null_takes_them_from_others():
    model, tokens = make(n_layers=3, positional_embedding_type="standard"), text(examples=4)
    found, terms = TermImportance(tokens)(model), list(PathExpansion(model, tokens).terms())

    def loss(logits: Tensor) -> float:
        return float(next_token_loss(logits, tokens))

    direct = summed(term for term in terms if term.order == 0)
    upto = [summed(term for term in terms if term.order <= order) for order in range(4)]
    np.testing.assert_allclose(found.loss, [loss(logits) for logits in upto], atol=1e-10)
    for layer in range(3):
        own = summed(term for term in terms if term.order == 1 and term.heads[0].layer == layer)
        assert float(found.alone[layer]) == pytest.approx(loss(direct) - loss(direct + own), abs=1e-10)
        assert float(found.given_rest[layer]) == pytest.approx(loss(upto[3] - own) - loss(upto[3]), abs=1e-10)
    # With another example's stream, read through one's own final norm.
    scale = recorded(model, tokens, norm_scale_names(model, 3))[norm_scale_names(model, 3)[0]]
    second = summed(term for term in terms if term.order == 2) * scale
    null = [loss(upto[1]) - loss(upto[1] + second.roll(-d, 0) / scale) for d in (1, 2, 3)]
    assert float(found.null_mean[2]) == pytest.approx(np.mean(null), abs=1e-10)
    assert float(found.null_sd[2]) == pytest.approx(np.std(null, ddof=1), abs=1e-10)


@pytest.mark.science
@settings(max_examples=10, deadline=None)
@given(config=CONFIGS, mlp=st.sampled_from(["none", "sequential", "parallel"]), inverse=st.booleans())
def test_the_sum_of_score_terms_is_the_scores(config: dict[str, Any], mlp: str, inverse: bool):
    parts = {} if mlp == "none" else {"act_fn": "gelu", "d_mlp": 8, "parallel_attn_mlp": mlp == "parallel"}
    model, tokens = make(**config, **parts, scale_attn_by_inverse_layer_idx=inverse), text()
    for head in (Head(0, 0), Head(model.cfg.n_layers - 1, model.cfg.n_heads - 1)):
        scores = recorded(model, tokens, [scores_name(head.layer)])[scores_name(head.layer)][:, head.head]
        expansion = ScoreExpansion(model, tokens, head)
        total = torch.stack([expansion.scores(a, b) for a in expansion.terms for b in expansion.terms]).sum(0)
        assert (total - expansion.total()).abs().max() < 1e-10
        cap = model.cfg.attn_scores_soft_cap
        after = cap * torch.tanh(total / cap) if cap > 0 else total
        assert (after - scores).tril().nan_to_num(0.0, neginf=0.0, posinf=0.0).abs().max() < 1e-10
        found = ScoreTerms(tokens, str(head))(model)
        assert float(found.value.sum()) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.science
def test_the_planted_induction_head_matches_its_token_with_the_previous_token_heads_write():
    found = score_terms(planted_model(d_vocab=64, n_ctx=40), repeats(), "L1H0")
    value = found.value.copy()
    assert float(value.sel(query_term="embed", key_term="L0H0")) == pytest.approx(1.0, abs=1e-4)
    assert float(found.z.sel(query_term="embed", key_term="L0H0")) > 5
    value.loc[{"query_term": "embed", "key_term": "L0H0"}] = 0
    assert np.abs(value).max() < 1e-4 and {"L0H2", "pos", "bias"} < set(value.key_term.values)


@pytest.mark.science
def test_shares_of_scores_by_hand():
    """Covariances, spreads, errors and null as loops over queries."""
    model, tokens = make(), text(examples=4)
    found, expansion = ScoreTerms(tokens, "L1H1")(model), ScoreExpansion(model, tokens, "L1H1")
    total, term = expansion.total().numpy(), expansion.scores("L0H0", "bias").numpy()

    def covariance(example: int, other: int) -> float:
        return sum(np.cov(term[other, i, : i + 1], total[example, i, : i + 1], bias=True)[0, 1] for i in range(1, 8))

    variance = np.array([sum(total[e, i, : i + 1].var() for i in range(1, 8)) for e in range(4)])
    own = np.array([covariance(e, e) for e in range(4)])
    cell = found.sel(query_term="L0H0", key_term="bias")
    share = own.sum() / variance.sum()
    assert float(cell.value) == pytest.approx(share, abs=1e-10)
    assert float(cell.stderr) == pytest.approx(np.std((own - share * variance) / variance.mean(), ddof=1) / 2, abs=1e-10)
    null = [sum(covariance(e, (e + d) % 4) for e in range(4)) / variance.sum() for d in (1, 2, 3)]
    assert float(cell.null_mean) == pytest.approx(np.mean(null), abs=1e-10)
    spread = np.mean([[term[e, i, : i + 1].std() for i in range(1, 8)] for e in range(4)])
    assert float(cell.spread) == pytest.approx(spread, abs=1e-10)
