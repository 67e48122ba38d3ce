"""Names and order of paths, what is refused and in which words, and that models, batches and repetition change nothing."""

from typing import Any

import numpy as np
import pytest
import torch

from circuits.models.hooked import HookedTransformer
from circuits.models.protocol import model_hash
from circuits.paths import frozen
from circuits.paths.expansion import PathExpansion
from circuits.paths.frozen import against, batches, exchanges
from circuits.paths.path_terms import PathTerms, number_of_paths
from circuits.paths.score_terms import ScoreExpansion, ScoreTerms, score_terms
from circuits.paths.term_importance import TermImportance
from circuits.results import Measure

SIZES = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 12, "d_vocab": 11}
TOKENS = torch.randint(0, 11, (5, 9), generator=torch.Generator().manual_seed(0))


def make(**changes: Any) -> HookedTransformer:
    fields = SIZES | changes
    return HookedTransformer(fields if "act_fn" in fields else fields | {"attn_only": True}).eval()


def test_paths_are_listed_depth_first_with_their_names():
    paths = PathExpansion(make(), TOKENS)
    assert paths.paths(0) == (("b_U",), ("embed",), ("pos",), ("bias L0",), ("bias L1",))
    embed = [path for path in paths.paths() if path[0] == "embed"]
    assert embed[:5] == [("embed",), ("embed", "L0H0"), ("embed", "L0H0", "L1H0"), ("embed", "L0H0", "L1H1"), ("embed", "L0H1")]
    assert [path for path in paths.paths([1, 2]) if path[0] == "bias L0"] == [("bias L0", "L1H0"), ("bias L0", "L1H1")]
    assert [term.path for term in paths.terms(1)] == list(paths.paths(1))
    assert {term.order for term in paths.terms(2)} == {2}
    term = paths.term("embed -> L0H1 -> L1H0 -> logits")
    assert term.name == "embed -> L0H1 -> L1H0 -> logits" == paths.term(("embed", "L0H1", "L1H0")).name
    assert paths.term("b_U").name == "b_U -> logits" and paths.term("b_U").stream.abs().max() == 0
    assert all(torch.equal(paths.term(t.name).stream, t.stream) for t in paths.terms())
    assert not any("pos" in path for path in PathExpansion(make(positional_embedding_type="shortformer"), TOKENS).paths())


def test_factors_of_a_virtual_head_have_its_rank():
    paths = PathExpansion(make(), TOKENS)
    left, right = paths.term("embed -> L0H1 -> L1H0").ov()
    assert left.shape == (8, 4) and right.shape == (4, 8)
    assert torch.equal(paths.term("pos").pattern()[0], torch.eye(9)) and torch.equal(paths.term("pos").ov()[0], torch.eye(8))


@pytest.mark.parametrize("positions", ["standard", "rotary"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_number_of_paths_is_known_before_they_are_listed(positions: str, layers: int):
    model = make(n_layers=layers, positional_embedding_type=positions)
    paths = PathExpansion(model, TOKENS)
    for order in range(layers + 1):
        assert number_of_paths(model.cfg, order) == len(paths.paths(order))


@pytest.mark.parametrize("measure", [PathTerms(TOKENS), TermImportance(TOKENS), ScoreTerms(TOKENS, "L1H0")])
def test_measures_are_measures_repeat_themselves_and_leave_the_model_as_it_was(measure: Any):
    model = make()
    before, hooks = model_hash(model), [len(point.fwd_hooks) for point in model.hook_dict.values()]
    first, second = measure(model), measure(model)
    assert isinstance(measure, Measure) and first.identical(second)
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert model_hash(model) == before and hooks == [len(point.fwd_hooks) for point in model.hook_dict.values()]
    assert {"value", "stderr", "null_mean", "null_sd", "z"} <= set(first) and first.attrs["measure"] == measure.name
    assert np.isfinite(first.stderr).all()


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    """Of nulls only that of path terms, whose exchanged targets are all examples'."""
    tokens, model = TOKENS.repeat(3, 1)[:13], make()
    tokens[:, 3] = torch.arange(13) % 11
    made = (PathTerms(tokens), TermImportance(tokens), ScoreTerms(tokens, "L1H0"))
    whole = [measure(model) for measure in made]
    monkeypatch.setattr(frozen, "EXAMPLES", 3)
    assert [len(rows) for rows in batches(model.cfg, tokens)] == [4, 3, 3, 3]
    for a, measure in zip(whole, made, strict=True):
        b = measure(model)
        names = set(a) if measure.name == "path_terms" else {"value", "stderr"}
        for name in names - {"z"}:
            np.testing.assert_allclose(a[name], b[name], atol=2e-6)


def test_exchanges_differ_and_give_nobody_its_own():
    assert sorted(exchanges(6, 10, 0)) == [1, 2, 3, 4, 5]
    assert len(set(exchanges(100, 10, 0))) == 10 and exchanges(100, 10, 0) != exchanges(100, 10, 1)
    found = against(np.array([2.0, 2.0]), np.array([[1.0, 0.3], [1.0 + 1e-9, 0.5]]))
    assert np.isnan(found["z"][0]) and found["z"][1] == pytest.approx((2 - 0.4) / np.std([0.3, 0.5], ddof=1))


def test_a_head_whose_scores_do_not_vary_has_no_shares():
    model = make()
    with torch.no_grad():
        model.blocks[0].attn.W_Q.zero_()
        model.blocks[0].attn.b_Q.zero_()
    found = score_terms(model, TOKENS, "L0H1")
    assert np.isnan(found.value).all() and found.attrs["score_sd"] == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: PathExpansion(make(act_fn="relu"), TOKENS), "the model has MLPs, which are not linear"),
        (lambda: PathExpansion(make(output_logits_soft_cap=3.0), TOKENS), "output_logits_soft_cap is 3.0, so logits are no sum"),
        (lambda: TermImportance(TOKENS)(make(act_fn="relu")), "the model has MLPs"),
        (lambda: PathExpansion(make(), TOKENS[0]), r"tokens have shape \(9,\)"),
        (lambda: PathExpansion(make(), TOKENS).term("L0H0 -> logits"), "a path begins with embed, pos, bias L0, bias L1"),
        (lambda: PathExpansion(make(), TOKENS).term("embed -> L1H0 -> L0H0"), "L0H0 cannot read what is written in its layer"),
        (lambda: PathExpansion(make(), TOKENS).term("bias L0 -> L0H1"), "L0H1 cannot read"),
        (lambda: PathExpansion(make(), TOKENS).term("embed -> L2H0"), "there is no head L2H0"),
        (lambda: PathExpansion(make(), TOKENS).term("b_U -> L0H0"), "or is b_U alone"),
        (lambda: PathExpansion(make(), TOKENS).paths(3), "order=3: a path goes through each of 2 layers at most once"),
        (lambda: PathExpansion(make(), TOKENS).terms(-1), "order=-1: need a whole number"),
        (lambda: PathTerms(TOKENS[:2]), "path terms need 3 examples, .* and 2 were given"),
        (lambda: PathTerms(TOKENS[:, :1]), "sequences have 1 tokens, path terms needs at least 2"),
        (lambda: PathTerms(TOKENS, max_order=-1), "max_order=-1"),
        (lambda: PathTerms(TOKENS, shifts=1), "shifts=1"),
        (lambda: PathTerms(TOKENS)(make(d_vocab_out=5)), "token 10 has no logit, the model has d_vocab_out = 5"),
        (lambda: PathTerms(TOKENS)(make(n_layers=12, n_heads=4)), "of order up to 12, at most 100,000 are listed"),
        (lambda: PathTerms(TOKENS)(make(n_ctx=4)), "the model reads n_ctx = 4"),
        (lambda: TermImportance(TOKENS[:1]), "marginal effects need 3 examples"),
        (lambda: ScoreTerms(TOKENS, "head"), "'head' does not name a head"),
        (lambda: score_terms(make(), TOKENS, "L2H0"), "there is no head L2H0"),
        (lambda: ScoreExpansion(make(), TOKENS, "L0H0").scores("pos", "L0H0"), "no 'L0H0'; its terms are embed, pos, bias"),
    ],
)  # fmt: skip
def test_wrong_calls_get_one_sentence(call: Any, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_model_and_no_path():
    with pytest.raises(TypeError, match="need a hooked model"):
        PathTerms(TOKENS)(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="a path is 3, need a name"):
        PathExpansion(make(), TOKENS).term(3)  # pyright: ignore[reportArgumentType]
