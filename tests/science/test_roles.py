"""Roles of heads whose function is known: each planted head gets its own, mixtures get both, and nothing else gets one."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from circuits.data.bracket_set import bracket_set
from circuits.detectors.attention import AttentionScores
from circuits.detectors.brackets import BracketScores
from circuits.detectors.induction_cut import InductionCut
from circuits.detectors.multigram_measure import Multigrams
from circuits.detectors.roles import NONE, NOT_MEASURED, ROLES, classify_functions
from circuits.models.hooked import HookedTransformer
from circuits.models.planted import planted_model
from circuits.models.planted_brackets import bracket_closer
from circuits.models.planted_functions import memoriser, random_patterns, superposed

D_VOCAB = 101
PAIRS = [(91, 92), (93, 94)]
PATTERNS = random_patterns(8, 80, sharing=1, seed=1)
BRACKETS = bracket_set(PAIRS, range(81, 90), length=48, examples=24)


def text() -> Tensor:
    """Random tokens with the patterns put in."""
    rng = np.random.default_rng(0)
    plain = np.setdiff1d(np.arange(1, 80), np.unique(np.array(PATTERNS)))
    tokens = rng.choice(plain, size=(24, 40))
    tokens[:, 0] = 0
    for i, row in enumerate(tokens):
        for j in range(4):
            p, place = PATTERNS[(i + j) % 8], 5 + 8 * j
            row[place - 2], row[place], row[place + 1] = p
    return torch.from_numpy(tokens)


def roles(model: HookedTransformer) -> xr.Dataset:
    return classify_functions(
        AttentionScores(examples=8, null_seeds=1)(model),
        InductionCut(examples=8)(model),
        Multigrams(text(), nulls=("shifted",))(model),
        BracketScores(BRACKETS, null_seeds=1)(model),
        draws=50,
    )


@pytest.mark.science
def test_every_planted_head_gets_its_own_role():
    """The confusion matrix of planted heads is diagonal; silent heads, a look-back and a uniform head get none."""
    models = {
        "attention": planted_model(d_vocab=D_VOCAB),
        "memoriser": memoriser(PATTERNS, d_vocab=D_VOCAB, n_ctx=101),
        "brackets": bracket_closer(PAIRS, d_vocab=D_VOCAB, n_ctx=64),
    }
    truth = {
        ("attention", 0, 0): "previous token",
        ("attention", 0, 1): "duplicate token",
        ("attention", 0, 2): "current token",
        ("attention", 0, 3): "resting",
        ("attention", 0, 4): NONE,
        ("attention", 0, 5): NONE,
        ("attention", 1, 0): "induction",
        ("memoriser", 0, 0): "multigram",
        ("memoriser", 0, 1): NONE,
        ("memoriser", 0, 2): "resting",
        ("brackets", 1, 0): "bracket",
        ("brackets", 1, 1): NONE,
        ("brackets", 1, 2): "resting",
    }
    found = {name: roles(model) for name, model in models.items()}
    names = [*ROLES, NONE]
    confusion = np.zeros((len(names), len(names)), int)
    for (name, layer, head), role in truth.items():
        given = str(found[name].role.sel(layer=layer, head=head).values)
        confusion[names.index(role), names.index(given)] += 1
    assert confusion.sum() == np.trace(confusion) == len(truth)
    assert (found["attention"].confidence > 0.9).all()


@pytest.mark.science
def test_a_mixture_gets_one_role_and_the_other_as_runner_up():
    both = roles(superposed("induction", "memoriser", patterns=PATTERNS, d_vocab=D_VOCAB)).sel(layer=1, head=0)
    assert (str(both.role.values), str(both.runner_up.values)) == ("induction", "multigram")
    both = roles(superposed("previous_token", "memoriser", patterns=PATTERNS, d_vocab=D_VOCAB)).sel(layer=1, head=0)
    assert (str(both.role.values), str(both.runner_up.values)) == ("previous token", "multigram")


@pytest.mark.science
def test_induction_attention_that_does_nothing_is_no_induction():
    """The control for the causal criterion: the same attention with its output taken away."""
    model = planted_model(d_vocab=D_VOCAB)
    with torch.no_grad():
        model.blocks[1].attn.W_O[0] = 0.0
    found = roles(model).sel(layer=1, head=0)
    assert float(found.support.sel(role_name="induction")) == pytest.approx(1.0, abs=1e-4)
    assert str(found.role.values) != "induction" and int(found.holds.sel(role_name="induction")) == 0


def test_a_missing_checkpoint_has_no_role_and_other_heads_are_refused():
    model = planted_model(d_vocab=D_VOCAB)
    scores = AttentionScores(examples=4, groups=4, null_seeds=1)(model)
    cut, grams = InductionCut(examples=4, groups=4)(model), Multigrams(text(), nulls=())(model)
    brackets = BracketScores(BRACKETS, null_seeds=0)(model)
    gone = scores.copy(deep=True)
    gone["value"][1, 0] = np.nan
    assert str(classify_functions(gone, cut, grams, brackets, draws=10).role.values[1, 0]) == NOT_MEASURED
    with pytest.raises(ValueError, match="induction_cut and scores differ in head"):
        classify_functions(scores, cut.isel(head=slice(3)), grams, brackets)
    with pytest.raises(ValueError, match=r"brackets has dims .* and is not what BracketScores"):
        classify_functions(scores, cut, grams, cut)
    with pytest.raises(TypeError, match="multigrams is a int"):
        classify_functions(scores, cut, 3, brackets)  # type: ignore[arg-type]


def test_what_was_not_measured_gives_no_role():
    """Without a null no role; without brackets no bracket, and the others as before."""
    model = planted_model(d_vocab=D_VOCAB)
    cut, grams = InductionCut(examples=4, groups=4)(model), Multigrams(text(), nulls=())(model)
    bare = classify_functions(AttentionScores(examples=4, groups=4, null_seeds=0)(model), cut, grams, None, draws=10)
    assert set(bare.role.values.ravel()) == {NONE}
    with_null = classify_functions(AttentionScores(examples=4, groups=4, null_seeds=1)(model), cut, grams, None, draws=10)
    assert str(with_null.role.values[1, 0]) == "induction" and not with_null.holds.sel(role_name=["bracket", "multigram"]).any()
