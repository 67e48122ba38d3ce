"""A model trained on a language whose kinds are known: recovered shares of each head's effect against the true ones."""

import numpy as np
import pytest
import torch

from circuits.data.contexts import KINDS, classify_contexts
from circuits.data.languages import MixedLanguage
from circuits.data.ngrams import NgramTable
from circuits.data.token_classes import TokenClasses
from circuits.detectors.in_context import loss_per_token
from circuits.detectors.profile import FunctionProfile
from circuits.dynamics.language_run import language_model, train_on_language

LANGUAGE = MixedLanguage()


@pytest.mark.slow
@pytest.mark.science
def test_recovered_shares_of_kinds_are_the_true_ones():
    """Kinds by the rule on corpus statistics against the reasons for which the language wrote each token.

    A language has bigrams in its n-grams and skip-trigrams, and the rule, which knows tables and no reasons, calls part of the
    latter two by the shorter pattern that explains them too: so those three are held to the truth together, the others one by
    one.
    """
    model = train_on_language(LANGUAGE, language_model(LANGUAGE), steps=2000, threads=1)
    sample = LANGUAGE.sample(256, seed=[9])
    loss = loss_per_token(model, sample.tokens)
    by_kind = {kind: float(loss[sample.kind == k].mean()) for k, kind in enumerate(KINDS) if (sample.kind == k).any()}
    assert by_kind["ngram"] < 0.1 and by_kind["bigram"] < 0.3 and by_kind["skip_ngram"] < 0.2  # what can be known is learnt
    assert by_kind["bracket"] < 2.0 < by_kind["other"]
    counted = LANGUAGE.sample(4000, seed=[7]).tokens[:, 1:]
    pairs = [(int(o), int(c)) for o, c in LANGUAGE.tables.pairs]
    table = NgramTable.count(list(counted.numpy()), LANGUAGE.d_vocab)
    classes = TokenClasses.by_hand(LANGUAGE.d_vocab, pairs=pairs, quotes=[], whitespace=[])
    found = torch.from_numpy(classify_contexts(sample.tokens, table, classes).kind.astype(np.int64))
    assert (found == sample.kind).double().mean() > 0.9
    truth, recovered = (FunctionProfile(sample.tokens, kinds.long())(model) for kinds in (sample.kind, found))
    assert (truth.state == "ok").sum() >= 4
    together = {
        "bracket": ["bracket"],
        "induction": ["induction"],
        "other": ["other"],
        "known": ["ngram", "bigram", "skip_ngram"],
    }
    for name, kinds in together.items():
        a, b = (x.value.sel(kind=kinds).sum("kind").where(x.state == "ok") for x in (truth, recovered))
        assert float(abs(a - b).max()) < 0.15, name
        assert np.corrcoef(a.values.ravel(), b.values.ravel())[0, 1] > 0.9, name
    for kind in ("bracket", "induction"):  # within the recovered interval
        inside = (truth.value.sel(kind=kind) >= recovered.low.sel(kind=kind) - 0.01) & (
            truth.value.sel(kind=kind) <= recovered.high.sel(kind=kind) + 0.01
        )
        assert bool((inside | (truth.state != "ok")).all())
    # The control: labels of other examples are no reason of anything.
    shuffled = FunctionProfile(sample.tokens, sample.kind.long().roll(7, 0))(model)
    assert float(abs(shuffled.z.sel(kind=["bracket", "induction"])).max()) < float(abs(truth.z.sel(kind="bracket")).max()) / 2
