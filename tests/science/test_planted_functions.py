"""Planted functions do what they claim, by closed forms: memories, brackets, copy suppression, two roles in one head."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from circuits.data.languages import dyck
from circuits.data.pattern_corpus import pattern_corpus
from circuits.detectors.in_context import loss_per_token
from circuits.models import planted
from circuits.models.effects import head_effects
from circuits.models.planted import bracket_closer, copy_suppressor, memoriser, planted_loss, random_patterns, superposed

PAIRS = [(1, 2), (3, 4), (5, 6)]


def run(model, tokens):
    """Logits, and each layer's patterns."""
    with torch.no_grad():
        logits, cache = model.run_with_cache(torch.as_tensor(tokens).reshape(-1, np.shape(tokens)[-1]))
    return logits, [cache["pattern", layer] for layer in range(model.cfg.n_layers)]


def effects(model, tokens):
    """Total effects of zero ablation ``[layer, head, example, pos - 1]``."""
    return torch.cat([found.total for found in head_effects(model, tokens, direct=False)], dim=2)


def silent_heads(model):
    """Heads that write nothing, whatever the input."""
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    return {(layer, head) for layer, head in product(range(layers), range(heads)) if not model.W_O[layer, head].any()}


@pytest.mark.science
@pytest.mark.parametrize("k", [5, 20, 100])
def test_a_memoriser_raises_the_out_of_each_of_its_patterns_and_no_other_token(k: int):
    patterns = random_patterns(k, 301, seed=k)
    corpus = pattern_corpus(patterns, d_vocab=301, examples=64, seed=1)
    model = memoriser(patterns, gain=10.0)
    logits, (attention,) = run(model, corpus.tokens)
    here = corpus.pattern >= 0
    expected = torch.zeros_like(logits)
    e, t = here.nonzero().T
    expected[e, t, torch.tensor(patterns)[corpus.pattern[here], 2]] = 10.0
    assert (logits - expected).abs().max() < 1e-5
    assert attention[e, 0, t, corpus.source[here]].min() > 1 - 1e-6
    rest = attention[:, 0, :-1, 0][~here]
    assert rest.min() > 1 - 1e-6  # on BOS everywhere else, decoys among them
    losses = loss_per_token(model, corpus.tokens)
    assert losses[here].numpy() == pytest.approx(planted_loss(10.0, 301), abs=1e-5)
    assert losses[~here].numpy() == pytest.approx(math.log(301), abs=1e-5)
    found = effects(model, corpus.tokens)
    assert found[0, 0][here].numpy() == pytest.approx(math.log(301) - planted_loss(10.0, 301), abs=1e-4)
    assert found[0, 0][~here].abs().max() < 1e-5 and found[0, 1:].abs().max() == 0
    assert silent_heads(model) == {(0, 1), (0, 2), (0, 3)}
    assert torch.equal(attention[:, 3], attention[:, 0])  # a control: it attends alike and says nothing


@pytest.mark.science
def test_two_sources_of_one_destination_share_the_attention_and_the_gain():
    model = memoriser([(1, 9, 5), (2, 9, 6)], d_vocab=20, n_ctx=8, gain=6.0)
    logits, _ = run(model, [0, 1, 3, 2, 1, 9])
    assert logits[0, 5, [5, 6]].tolist() == pytest.approx([4.0, 2.0], abs=1e-5)  # two of the three sources there are 1


@pytest.mark.science
@pytest.mark.parametrize("gap", [1, 3])
def test_with_a_gap_only_sources_at_that_distance_count(gap: int):
    patterns = random_patterns(20, 101)
    model = memoriser(patterns, d_vocab=101, gap=gap)
    for distance in (1, 2, 3, 4):
        corpus = pattern_corpus(patterns, d_vocab=101, gap=(distance, distance), examples=16)
        losses = loss_per_token(model, corpus.tokens)[corpus.pattern >= 0]
        assert losses.numpy() == pytest.approx(planted_loss(10.0, 101) if distance == gap else math.log(101), abs=1e-5)


@pytest.mark.science
def test_a_gap_of_zero_is_a_bigram_of_the_current_token():
    logits, _ = run(memoriser([(7, 7, 3)], d_vocab=20, n_ctx=8, gap=0), [0, 4, 7, 7, 5])
    assert logits[0, :, 3].tolist() == pytest.approx([0, 0, 10, 10, 0], abs=1e-5)


@pytest.mark.science
def test_crossed_patterns_have_bugs_and_random_ones_have_none():
    """Elhage et al.: raising (1, 9 -> 5) and (1, 8 -> 6) raises 6 at 9 as well. Random patterns never share a source."""
    logits, _ = run(memoriser([(1, 9, 5), (1, 8, 6)], d_vocab=20, n_ctx=8), [0, 1, 9])
    assert logits[0, 2, [5, 6]].tolist() == pytest.approx([10.0, 10.0], abs=1e-5)
    drawn = random_patterns(100, 301, sharing=4)
    sources, destinations, outs = (set(column) for column in zip(*drawn, strict=True))
    assert len(sources) == len(outs) == len(drawn) == 100 and len(destinations) == 25
    assert not sources & destinations and not (sources | destinations) & outs and 0 not in sources | destinations | outs


@pytest.mark.science
def test_noise_takes_the_memory_away():
    patterns = random_patterns(20, 101)
    corpus = pattern_corpus(patterns, d_vocab=101, examples=16)
    losses = [
        loss_per_token(memoriser(patterns, d_vocab=101, noise=noise, seed=1), corpus.tokens)[corpus.pattern >= 0].mean()
        for noise in (0.0, 0.05, 0.2)
    ]
    assert losses[0] < 0.01 < losses[1] < losses[2] and losses[2] > math.log(101)


@pytest.mark.science
@pytest.mark.parametrize("n_ctx", [32, 128])
def test_the_nested_closer_attends_to_the_innermost_open_bracket_at_every_position(n_ctx: int):
    """Brackets of any depth, with other tokens among them; the raised logit is its closer's and nothing else's."""
    rng = np.random.default_rng(n_ctx)
    made = dyck(PAIRS, length=n_ctx // 2, examples=24, max_depth=n_ctx, seed=n_ctx).tokens.numpy()
    tokens = np.full((len(made), n_ctx), 50)
    tokens[:, 0] = 0
    for row, brackets in zip(tokens, made, strict=True):
        row[np.sort(rng.choice(np.arange(1, n_ctx), size=made.shape[1] - 1, replace=False))] = brackets[1:]
    tokens[0, 1:] = ([1, 3, 5] * n_ctx)[: n_ctx - 1]  # all open, to the end
    closer = dict(PAIRS)
    model = bracket_closer(PAIRS, n_ctx=n_ctx)
    logits, (_, attention) = run(model, tokens)
    expected = torch.zeros_like(logits)
    innermost = torch.zeros(tokens.shape, dtype=torch.long)
    for e, row in enumerate(tokens.tolist()):
        stack = [0]
        for i, token in enumerate(row):
            if token in closer:
                stack.append(i)
            elif token in closer.values():
                stack.pop()
            innermost[e, i] = stack[-1]
            if len(stack) > 1:
                expected[e, i, closer[row[stack[-1]]]] = 10.0
    on_it = attention[:, 0].gather(-1, innermost[..., None])
    assert 1 - on_it.min() < 1e-10
    assert (logits - expected).abs().max() < 1e-8
    assert silent_heads(model) == {(0, 2), (1, 1), (1, 2)}


@pytest.mark.science
def test_the_last_bracket_closer_is_right_for_flat_pairs_and_silent_behind_a_closed_one():
    model = bracket_closer(PAIRS, knows="last", n_ctx=16)
    #                     (  a  [  b  ]  c  )
    logits, _ = run(model, [0, 1, 50, 3, 50, 4, 50, 2])
    raised = [[int(i) for i in row.nonzero()] for row in (logits[0] > 5)]
    assert raised == [[], [2], [2], [4], [4], [], [], []]
    assert not model.W_O[0].any()


@pytest.mark.science
def test_the_nested_closer_needs_the_depth_of_both_its_heads():
    """Without either depth head the outer bracket is lost; the inner one, also the last, survives their joint loss."""
    model = bracket_closer(PAIRS, n_ctx=16)
    tokens = torch.tensor([[0, 1, 50, 3, 50, 4, 50, 2]])
    found = effects(model, tokens)
    assert found[0, 0, 0, 6] > 2 and found[0, 1, 0, 6] > 2  # the closer of the outer pair
    assert found[1, 0, 0, [4, 6]].numpy() == pytest.approx(math.log(101) - planted_loss(10.0, 101), abs=1e-8)


@pytest.mark.science
def test_copy_suppression_lowers_what_is_predicted_and_was_seen_and_nothing_else():
    follows = {5: 7, 7: 9, 9: 5}
    model = copy_suppressor(follows, d_vocab=20, n_ctx=12, gain=10.0, suppression=6.0)
    logits, (_, attention) = run(model, [0, 7, 3, 7, 5, 9, 5])
    # after 7 comes 9 (not seen yet); after 3 nothing; after 5 comes 7 (seen twice); after 9 comes 5 (seen)
    expected = torch.zeros(7, 20)
    expected[1, 9] = expected[3, 9] = 10.0
    expected[4, 7] = expected[5, 5] = expected[6, 7] = 4.0
    assert (logits[0] - expected).abs().max() < 1e-5
    assert attention[0, 0, 4, [1, 3]].tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
    assert attention[0, 0, 5, 4] == pytest.approx(1.0, abs=1e-6) and attention[0, 0, :4, 0].min() > 1 - 1e-6
    assert silent_heads(model) == {(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)}


@pytest.mark.science
def test_copy_suppression_is_self_repair_of_known_size():
    """What L0H0 predicts, L1H0 takes 6 of 10 logits off where it was seen: L0H0's direct effect exceeds its total one."""
    model = copy_suppressor({}, patterns=[(3, 4, 5), (6, 8, 9)], d_vocab=50, n_ctx=12, gain=10.0, suppression=6.0)
    tokens = torch.tensor([[0, 5, 3, 2, 4, 5, 6, 2, 8, 9]])  # at 4 its out, 5, was seen; at 8 its out, 9, was not
    found = next(iter(head_effects(model, tokens)))
    for t, logit in ((4, 4.0), (8, 10.0)):
        assert found.loss[0, t] == pytest.approx(planted_loss(logit, 50), abs=1e-5)
        assert found.total[0, 0, 0, t] == pytest.approx(math.log(50) - planted_loss(logit, 50), abs=1e-5)
        # directly, the 10 logits are gone and what L1H0 took off stays
        assert found.direct[0, 0, 0, t] == pytest.approx(planted_loss(logit - 10, 50) - planted_loss(logit, 50), abs=1e-4)
    assert found.direct[0, 0, 0, 4] > found.total[0, 0, 0, 4] + 1
    assert found.total[1, 0, 0, 4] == pytest.approx(planted_loss(10.0, 50) - planted_loss(4.0, 50), abs=1e-5)


@pytest.mark.science
@pytest.mark.parametrize("role", ["previous_token", "current_token", "first_token"])
@pytest.mark.parametrize("other", ["induction", "memoriser"])
def test_a_superposed_head_plays_each_role_where_it_should(role: str, other: str):
    patterns = random_patterns(12, 61) if other == "memoriser" else []
    model = superposed(role, other, patterns=patterns, d_vocab=61, n_ctx=40)
    there = {p.destination for p in patterns} if patterns else set(range(2, 61, 2))
    if patterns:
        tokens = pattern_corpus(patterns, d_vocab=61, length=40, examples=8).tokens
    else:
        half = np.random.default_rng(0).permutation(np.arange(1, 61))[:19]
        tokens = torch.tensor([[0, *half, *half]])
    logits, (_, attention) = run(model, tokens)
    sources = {(p.source, p.destination) for p in patterns}
    for e, row in enumerate(tokens.tolist()):
        for i in range(2, len(row)):
            if row[i] in there:
                if patterns:
                    keys = [j for j in range(1, i + 1) if (row[j], row[i]) in sources]
                else:
                    keys = [j for j in range(2, i + 1) if row[j - 1] == row[i]]
                keys = keys or [0]
            else:
                keys = [{"previous_token": i - 1, "current_token": i, "first_token": 0}[role]]
            assert attention[e, 0, i, keys].sum() > 1 - 1e-6, (i, keys)
            if other == "induction":
                assert logits[e, i].max() == pytest.approx(10.0 if keys != [0] else 0.0, abs=1e-4)


@pytest.mark.science
def test_induction_and_a_memoriser_share_one_head_by_destination():
    model = superposed("induction", "memoriser", patterns=[(3, 4, 5)], d_vocab=20, n_ctx=16)
    logits, (_, attention) = run(model, [0, 3, 7, 8, 4, 9, 7])
    assert attention[0, 0, 4, 1] > 1 - 1e-6 and attention[0, 0, 6, 3] > 1 - 1e-6  # source of 4; what followed 7
    assert logits[0, 6, 8] == pytest.approx(10.0, abs=1e-5)
    assert logits[0, 4, [3, 5]].tolist() == pytest.approx([10.0, 10.0], abs=1e-5)  # one OV: the source is copied as well


WRONG = {
    "no triples": (lambda: memoriser([(1, 2)]), "need triples"),
    "BOS as a source": (lambda: memoriser([(0, 2, 3)]), "ids in 1..300"),
    "twice": (lambda: memoriser([(1, 2, 3), (1, 2, 3)]), "given twice"),
    "gap beyond the context": (lambda: memoriser([(1, 2, 3)], gap=64), "need a distance inside the context of 64"),
    "negative noise": (lambda: memoriser([(1, 2, 3)], noise=-1.0), "need noise >= 0"),
    "too many patterns": (lambda: random_patterns(50, 100), "50 patterns need 125 different tokens"),
    "no pattern": (lambda: random_patterns(0, 100), "need at least one pattern"),
    "follows itself": (lambda: copy_suppressor({3: 3}), "no token follows itself"),
    "same role twice": (lambda: superposed("induction", "induction"), "need one of"),
    "two positions": (lambda: superposed("previous_token", "current_token"), "another one of"),
    "patterns without a memoriser": (lambda: superposed("first_token", "induction", patterns=[(1, 2, 3)]), "others have none"),
    "memoriser without patterns": (lambda: superposed("first_token", "memoriser"), "a memoriser needs some"),
    "pattern elsewhere": (
        lambda: superposed("first_token", "memoriser", patterns=[(1, 2, 3)], destinations=[5]),
        "where the memoriser does not play",
    ),
    "one bracket": (lambda: bracket_closer([(1, 1)]), "all different"),
    "unknown knowledge": (lambda: bracket_closer(PAIRS, knows="everything"), "need 'depth'"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_planted_is_refused_in_one_sentence(case: str):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_the_planted_module_offers_them_all():
    for name in ("Pattern", "bracket_closer", "copy_suppressor", "memoriser", "planted_loss", "random_patterns", "superposed"):
        assert hasattr(planted, name)


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_is_the_same_for_the_same_seed_only(seed: int):
    first, again, other = (bracket_closer(PAIRS, n_ctx=8, noise=0.1, seed=s).W_Q for s in (seed, seed, seed + 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
