"""The multigram detector finds what was planted and nothing else; noise takes the finding away; untrained models have nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.data.tokens import shuffle_tokens
from circuits.detectors.event_store import EventStore
from circuits.detectors.multigram_measure import Multigrams
from circuits.detectors.multigrams import MultigramRule, found_patterns, halves, held_out, memorised, usable_places
from circuits.detectors.sources import events, value_weights
from circuits.models.planted_functions import Pattern, memoriser, planted_loss, random_patterns

D_VOCAB, LENGTH = 301, 48


def text_with(patterns: list[Pattern], *, each: int, seed: int = 0) -> Tensor:
    """Random tokens with every pattern put in ``each`` times: source, some tokens, destination, out."""
    rng = np.random.default_rng(seed)
    per_example = 6
    turns = np.concatenate([rng.permutation(len(patterns)) for _ in range(each)])
    turns = turns[: len(turns) // per_example * per_example].reshape(-1, per_example)
    plain = np.setdiff1d(np.arange(1, D_VOCAB), np.unique(np.array(patterns)))
    tokens = rng.choice(plain, size=(len(turns), LENGTH))
    tokens[:, 0] = 0
    slot = (LENGTH - 1) // per_example
    for row, chosen in zip(tokens, turns, strict=True):
        for i, p in enumerate(chosen):
            start = 1 + i * slot
            source = start + int(rng.integers(0, slot - 3))
            place = int(rng.integers(source + 1, start + slot - 1))
            row[source], row[place], row[place + 1] = patterns[p]
    return torch.from_numpy(tokens)


def recovered(found, head: int = 0) -> list[tuple[int, int, int]]:
    """The patterns listed of a head: those with two sources never match a planted one."""
    x = found.sel(layer=0, head=head)
    rows = zip(*(x[name].values.tolist() for name in ("far", "near", "destination", "out")), strict=True)
    return [(near, destination, out) if far < 0 else (far, near, out) for far, near, destination, out in rows if destination >= 0]


def precision_and_recall(found, patterns: list[Pattern]) -> tuple[float, float]:
    listed = recovered(found)
    right = len(set(listed) & {tuple(p) for p in patterns})
    return right / max(len(listed), 1), right / len(patterns)


@pytest.mark.science
@pytest.mark.parametrize("k", [5, 20, 100])
def test_a_memoriser_gives_back_what_it_knows(k: int):
    patterns = random_patterns(k, D_VOCAB)
    model, text = memoriser(patterns, d_vocab=D_VOCAB), text_with(patterns, each=max(8, 60 // k))
    found = Multigrams(text, k=2 * k)(model)
    precision, recall = precision_and_recall(found, patterns)
    assert precision >= 0.95 and recall >= 0.95
    assert found.found.values[0, 1:].tolist() == [0, 0, 0]  # its neighbours, one of which attends as it does
    assert found.untrained_found.sum() == 0 and found.shifted_value.sum() <= 1
    top = found.sel(layer=0, head=0).isel(pattern=slice(k))
    assert float(top.pattern_others.max()) == 0.0


@pytest.mark.science
def test_the_finding_fades_as_noise_grows():
    patterns = random_patterns(20, D_VOCAB)
    text = text_with(patterns, each=8)
    curve = [
        precision_and_recall(Multigrams(text, k=40, nulls=())(memoriser(patterns, d_vocab=D_VOCAB, noise=noise)), patterns)
        for noise in (0.0, 0.1, 0.4)
    ]
    recall = [r for _, r in curve]
    assert recall[0] == 1.0 and recall == sorted(recall, reverse=True) and recall[-1] < 0.3


@pytest.mark.science
def test_shuffled_text_holds_nothing_to_memorise():
    """The control: the same unigrams without order have too few occurrences to recur."""
    patterns = random_patterns(20, D_VOCAB)
    model, text = memoriser(patterns, d_vocab=D_VOCAB), text_with(patterns, each=14)
    found = Multigrams(text, nulls=("shifted", "shuffled"))(model)
    assert found.value.values[0, 0] == 20 and found.shuffled_value.sum() == 0 and found.null_mean.sum() <= 1
    assert found.z.values[0, 0] > 4 and found.share_chance.values[0, 0] < 0.2
    # What is missing from the share: the other out of a destination, and patterns with two sources in context.
    assert found.share.values[0, 0] > 0.6 and found.shuffled_share.values[0, 0] < 0.05
    again = Multigrams(shuffle_tokens(text, seed=0), nulls=())(model)
    assert float(again.value.sum()) == 0


@pytest.mark.science
@pytest.mark.parametrize(("gap", "contiguous"), [(1, True), (3, False)])
def test_an_n_gram_is_told_from_a_skip_n_gram(gap: int, contiguous: bool):
    patterns = random_patterns(5, D_VOCAB, sharing=1)
    rng = np.random.default_rng(0)
    tokens = rng.choice(np.setdiff1d(np.arange(1, D_VOCAB), np.unique(np.array(patterns))), size=(24, 32))
    tokens[:, 0] = 0
    for i, row in enumerate(tokens):
        for j, p in enumerate((patterns[i % 5], patterns[(i + 1) % 5])):
            place = 10 + 12 * j
            row[place - gap], row[place], row[place + 1] = p
    rule = MultigramRule(ablation="zero")
    found = Multigrams(torch.from_numpy(tokens), rule, k=10, nulls=())(memoriser(patterns, d_vocab=D_VOCAB, gap=gap))
    assert precision_and_recall(found, patterns) == (1.0, 1.0)
    top = found.sel(layer=0, head=0).isel(pattern=slice(5))
    assert (top.contiguous == contiguous).all()
    # Known exactly: with the out's logit raised by 10 of 301 the loss is log(1 + 300 exp(-10)), without it log 301.
    assert top.pattern_effect.values == pytest.approx(np.log(D_VOCAB) - planted_loss(10.0, D_VOCAB), abs=1e-4)
    assert top.pattern_stderr.values == pytest.approx(0.0, abs=1e-4)


@pytest.mark.science
@pytest.mark.parametrize("size", [0.6, 0.0])
def test_effects_that_have_nothing_to_do_with_tokens_are_not_memorised(size: float, tmp_path: Path):
    """The false-positive rate: random effects of any mean size, on text and attention of a head that is attended along."""
    patterns = random_patterns(20, D_VOCAB)
    model, text = memoriser(patterns, d_vocab=D_VOCAB), text_with(patterns, each=14)
    rule, rng = MultigramRule(), torch.Generator().manual_seed(0)
    found, kept = 0, 0
    for draw in range(5):
        with EventStore.create(tmp_path / f"{draw}.h5", len(text), LENGTH - 1, 4) as store:
            effect = size + 0.7 * torch.randn(1, 4, len(text), LENGTH - 1, generator=rng)
            chosen = (effect >= rule.threshold) & usable_places(text)
            store.add(0, effect[0].numpy(), events(value_weights(model, text), text, effect, chosen, min_share=rule.min_share))
            half, other = halves(len(text))
            patterns_of = found_patterns(store, 0, half, rule).assign(head=0)
            sums = held_out(store, patterns_of, text, other, 1)
            found, kept = found + len(patterns_of), kept + int(memorised(sums, np.zeros(len(patterns_of), int), rule).sum())
    assert found >= 10
    assert kept <= 2 + 0.05 * found
