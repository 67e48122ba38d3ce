"""The classification of contexts, whatever the text: its order of precedence, and what one example's kinds depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.data.contexts import KINDS, classify_contexts
from circuits.data.ngrams import NgramTable
from circuits.data.token_classes import TokenClasses

CLASSES = TokenClasses.by_hand(8, pairs=[(1, 2)], quotes=[3], whitespace=[4])
rows = st.integers(3, 12).flatmap(
    lambda n: st.lists(st.lists(st.integers(1, 7), min_size=n, max_size=n).map(lambda row: [0, *row]), min_size=1, max_size=4)
)


@pytest.fixture(scope="module")
def table():
    """A chain whose tokens differ much in what follows them."""
    rng = np.random.default_rng(0)
    chain, walk = rng.dirichlet(np.full(8, 0.3), size=8).cumsum(axis=1), [1]
    for u in rng.random(4000):
        walk.append(int((chain[walk[-1]] < u).sum().clip(0, 7)))
    table = NgramTable.count([np.array(walk)], 8, order=3)
    assert table.counts[0].min() >= 5 and len(table.counts[0]) == 8  # so that no text is refused as unknown
    return table


@given(drawn=rows)
@settings(max_examples=100)
def test_the_kind_is_the_first_flag_and_other_where_there_is_none(table, drawn):
    found = classify_contexts(torch.tensor(drawn), table, CLASSES)
    other = KINDS.index("other")
    assert (found.flags[other] == ~found.flags[:other].any(axis=0)).all()
    first = [[next(k for k in range(7) if found.flags[k, e, t]) for t in range(len(row) - 1)] for e, row in enumerate(drawn)]
    assert found.kind.tolist() == first
    assert (found.nested <= found.flags[KINDS.index("bracket")]).all()
    assert ((found.source >= 0) == found.flags[KINDS.index("skip_ngram")]).all()
    assert ((found.order > 2) == found.flags[KINDS.index("ngram")]).all()
    assert (found.match >= 0)[found.flags[KINDS.index("induction")]].all()


@given(drawn=rows, cut=st.integers(2, 12))
@settings(max_examples=100)
def test_a_prediction_depends_on_its_own_example_up_to_its_token(table, drawn, cut):
    """Brackets and quotes alone look at the next character, so whole tokens are enough here."""
    together = classify_contexts(torch.tensor(drawn), table, CLASSES)
    for e, row in enumerate(drawn):
        kept = row[:cut]
        alone = classify_contexts(torch.tensor([kept]), table, CLASSES)
        assert (alone.flags[:, 0] == together.flags[:, e, : len(kept) - 1]).all()
        assert (alone.source[0] == together.source[e, : len(kept) - 1]).all()
