"""Sequence classes: the paper's settings by hand, masks, overlap, and what is refused."""

import math

import pytest
import torch

from circuits.data.classes import SYN_COMMON, SYN_DISTINCT, SequenceClasses

HALVES = ((0.5, 0.5, 0.0), (0.5, 0.0, 0.5))


def test_by_hand():
    one = SequenceClasses(HALVES, queries=(0, 1), d_vocab=7)
    assert (one.n_labels, one.n_queries, one.n_tokens, one.d_vocab) == (2, 2, 3, 7)
    assert one.omega.tolist() == [2, 1, 1] and one.common.tolist() == [True, False, False]
    assert one.distinct.tolist() == [[False, True, False], [False, False, True]]
    assert one.cooccur.tolist() == [[True, True, False], [True, False, True]]
    assert one.overlap == pytest.approx(0.5, rel=1e-15)  # (1/4) / (1/2)
    together = SequenceClasses(HALVES, queries=(0, 0), d_vocab=7)
    assert together.cooccur.all() and together.spec()["hash"] != one.spec()["hash"]
    assert SequenceClasses(((1.0,),), queries=(0,), d_vocab=2).overlap == 0.0


def test_syn_small_is_the_papers():
    small = SequenceClasses.syn_small()
    assert (small.d_vocab, small.n_labels, small.queries, small.n_tokens) == (34, 2, (0, 1), 30)
    assert small.p[:, :10].flatten().tolist() == pytest.approx([1 / 15.5] * 20)
    for label in range(2):
        own = small.p[label, small.distinct[label]]
        assert own.tolist() == pytest.approx([weight / 15.5 for weight in SYN_DISTINCT])
        assert small.distinct[label].nonzero().flatten().tolist() == list(range(10 + 10 * label, 20 + 10 * label))
    assert small.common.tolist() == [True] * 10 + [False] * 20
    assert small.overlap == pytest.approx(10 / 13.85)  # squares of the shared weights over all squares


@pytest.mark.parametrize(("queries", "d_vocab"), [(1, 33), (3, 79), (5, 125), (10, 240)])
def test_syn_medium_is_the_papers(queries, d_vocab):
    medium = SequenceClasses.syn_medium(queries)
    assert medium.d_vocab == d_vocab and medium.n_labels == 2 * queries and medium.n_queries == queries
    assert medium.queries == tuple(label // 2 for label in range(2 * queries))
    assert medium.overlap == pytest.approx(10 / 13.85)
    assert bool((medium.p.sum(1) - 1).abs().max() < 1e-12) and int(medium.common.sum()) == 10


@pytest.mark.usefixtures("unchecked")
def test_weights_of_each_label_and_of_each_query():
    built = SequenceClasses.build(
        queries=2, labels_per_query=1, common=[2], common_per_query=[1, 3], distinct=[[4], [2, 2]], d_vocab=20
    )
    assert built.p.tolist() == [
        pytest.approx([0.2, 0.1, 0.3, 0, 0, 0.4, 0, 0]),
        pytest.approx([0.2, 0, 0, 0.1, 0.3, 0, 0.2, 0.2]),
    ]
    pairs = SequenceClasses.build(queries=2, labels_per_query=2, common=[], common_per_query=[1], distinct=[1])
    assert pairs.common.tolist() == [True, True] + [False] * 4 and pairs.omega.tolist() == [2, 2, 1, 1, 1, 1]
    assert pairs.d_vocab == 6 + 2 + 4  # context, queries, labels


@pytest.mark.parametrize("overlap", [0.0, 0.009, 0.38])
@pytest.mark.parametrize("common", [1, 3])
def test_overlap_is_what_was_asked_for(overlap, common):
    weak = SequenceClasses.with_overlap(overlap, labels=6, queries=2, common=common, d_vocab=500)
    assert weak.overlap == pytest.approx(overlap, abs=1e-15)
    f = weak.p / weak.p.norm(dim=1, keepdim=True)
    products = (f @ f.T)[~torch.eye(6, dtype=torch.bool)]
    assert bool((products - overlap).abs().max() < 1e-15) and weak.queries == (0, 0, 0, 1, 1, 1)
    assert int(weak.common.sum()) == (common if overlap else 0)


@pytest.mark.usefixtures("unchecked")
def test_classes_are_values():
    assert SequenceClasses.syn_small() == SequenceClasses.syn_small() and len({SequenceClasses.syn_small()} | {1}) == 2
    weights = SequenceClasses.build(common=SYN_COMMON, distinct=[SYN_DISTINCT] * 2)
    assert weights == SequenceClasses.build() and weights.spec() == SequenceClasses.build().spec()
    from_tensor = SequenceClasses(torch.tensor(HALVES, dtype=torch.float64).tolist(), queries=[0, 0], d_vocab=4)
    assert from_tensor == SequenceClasses(HALVES, queries=(0, 0), d_vocab=4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SequenceClasses(((0.5, 0.4),), (0,), 5), r"P\(l \| 0\) sums to 0.9, .* sum to 1; .*build takes weights"),
        (lambda: SequenceClasses(((1.5, -0.5),), (0,), 5), r"its least is -0.5: need numbers from 0 up"),
        (lambda: SequenceClasses(((math.nan, 1.0),), (0,), 5), r"P\(l \| 0\) sums to nan"),
        (lambda: SequenceClasses(((1.0, 0.0), (0.0, 0.0)), (0, 0), 5), r"label 1 has no context tokens: give it at least one"),
        (lambda: SequenceClasses(((1.0, 0.0), (1.0, 0.0)), (0, 0), 5), r"no label has context tokens \[1\]: leave out"),
        (lambda: SequenceClasses(((1.0,), (1.0,), (1.0,)), (0, 0, 0), 2), r"d_vocab=2 with 3 labels .* need d_vocab >= 3"),
        (lambda: SequenceClasses(((0.2,) * 5,), (0,), 4), r"d_vocab=4 with 1 labels and 5 context tokens: need d_vocab >= 5"),
        (lambda: SequenceClasses(((1.0,), (1.0,)), (0,), 5), r"queries=\(0,\) for 2 labels: give each label its query"),
        (lambda: SequenceClasses(((1.0,), (1.0,)), (0, 2), 5), r"queries=\(0, 2\) .* without gaps"),
        (lambda: SequenceClasses(((1.0, 0.0), (1.0,)), (0, 0), 5), r"rows of \[1, 2\] probabilities: need one row a label"),
        (lambda: SequenceClasses((), (), 5), r"rows of \[\] probabilities"),
        (lambda: SequenceClasses(HALVES, (0, 0), 0), r"d_vocab=0: need a whole number"),
        (lambda: SequenceClasses.build(queries=0), r"queries=0: need a whole number"),
        (lambda: SequenceClasses.build(distinct=[[1], [1], [1]]), r"3 sequences of distinct weights for 2 labels"),
        (lambda: SequenceClasses.build(common=[], distinct=[]), r"label 0 has no context tokens|rows of"),
        (lambda: SequenceClasses.build(queries=10, d_vocab=100), r"d_vocab=100 with 20 labels and 210 context tokens"),
        (lambda: SequenceClasses.with_overlap(1.0), r"overlap=1.0: need f_n . f_n' in \[0, 1\)"),
        (lambda: SequenceClasses.with_overlap(0.1, queries=3), r"10 labels over 3 queries: give a multiple"),
        (lambda: SequenceClasses.with_overlap(0.1, common=0), r"common=0: need a whole number"),
    ],
)
def test_refusals_are_one_sentence(make, says):
    with pytest.raises(ValueError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
