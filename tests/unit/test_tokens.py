"""Token generators: what repeats, what does not, and what is refused."""

import numpy as np
import pytest
import torch

from circuits.data.languages import dyck
from circuits.data.mixture import RepeatConfig, training_batch
from circuits.data.tokens import random_ids, repeated_random_tokens, shuffle_second_copy, shuffle_tokens, windows


def test_repeats_with_gap_and_tail():
    made = repeated_random_tokens(100, n=6, repeats=3, gap=4, length=40, examples=5, seed=3)
    tokens = made.tokens
    assert tokens.shape == (5, 40) and made.lag == 10 and made.second == 11
    assert (tokens[:, 0] == 0).all() and (tokens[:, 1:] > 0).all()
    for start in (11, 21):
        assert torch.equal(tokens[:, start : start + 6], tokens[:, 1:7])
    for row in tokens:
        ids, counts = row[1:].unique(return_counts=True)
        assert len(ids) == 39 - 2 * 6 and sorted(counts.tolist())[-6:] == [3] * 6


def test_repeats_are_the_same_for_the_same_seed_only():
    first, again, other = (repeated_random_tokens(100, n=10, seed=s).tokens for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_shuffled_control_keeps_the_tokens_and_loses_the_order():
    made = repeated_random_tokens(200, n=50, examples=4)
    shuffled = shuffle_second_copy(made)
    assert torch.equal(shuffled[:, :51], made.tokens[:, :51])
    assert torch.equal(shuffled[:, 51:].sort().values, made.tokens[:, 51:].sort().values)
    assert (shuffled[:, 51:] == made.tokens[:, 51:]).float().mean() < 0.1


def test_shuffle_tokens_keeps_bos_and_unigrams():
    tokens = torch.arange(40).reshape(2, 20)
    shuffled = shuffle_tokens(tokens)
    assert torch.equal(shuffled[:, 0], tokens[:, 0])
    assert torch.equal(shuffled.sort().values, tokens) and not torch.equal(shuffled, tokens)


def test_random_ids_leave_out_unseen_special_most_and_least_common():
    counts = np.arange(100)  # id = its count; id 0 is unseen
    counts[0] = 10_000
    assert random_ids(counts, trim=0.1).tolist() == list(range(10, 91))


def test_windows_start_with_bos_and_are_contiguous():
    out = windows(np.arange(500, 600, dtype=np.uint16), n_ctx=10, examples=7, seed=0)
    assert out.shape == (7, 10) and (out[:, 0] == 0).all()
    assert (out[:, 2:] - out[:, 1:-1] == 1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: repeated_random_tokens(20, n=30), "30 different tokens are needed and 19 ids are allowed"),
        (lambda: repeated_random_tokens(100, n=0), "need n >= 1"),
        (lambda: repeated_random_tokens(100, n=20, length=30), "make 41 tokens and length is 30"),
        (lambda: windows(np.arange(5), n_ctx=10, examples=1, seed=0), "the token stream has 5 tokens"),
        (lambda: dyck([(1, 2)], length=5, examples=1), "need an even length"),
        (lambda: RepeatConfig(shortest=9, longest=3), "need 1 <= shortest <= longest"),
    ],
)
def test_what_cannot_be_made_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def batch(step: int, **config: float) -> torch.Tensor:
    stream = np.random.default_rng(0).integers(100, 200, 5000).astype(np.uint16)
    repeats = RepeatConfig(**config)  # type: ignore[arg-type]
    return training_batch(stream, step=step, seed=0, batch=64, n_ctx=64, repeats=repeats, ids=np.arange(1, 100))


def test_a_batch_depends_on_seed_and_step_alone():
    assert torch.equal(batch(7), batch(7)) and not torch.equal(batch(7), batch(8))


def test_without_repeats_a_batch_is_plain_text():
    stream = np.random.default_rng(0).integers(100, 200, 5000)
    text = " ".join(map(str, stream))
    for row in batch(0, share=0.0)[:8]:
        assert " ".join(map(str, row[1:].tolist())) in text


def test_random_spans_are_repeated_at_varying_distances():
    lags = []
    for row in batch(3, share=1.0, random_share=1.0, shortest=10, longest=20):
        ids = row[1:].tolist()
        where = [i for i, x in enumerate(ids) if x < 100]
        length = len(where) // 2
        assert 10 <= length <= 20
        assert [ids[i] for i in where[:length]] == [ids[i] for i in where[length:]]
        lags.append(where[length] - where[0])
    assert len(set(lags)) > 10


def test_dyck_strings_are_balanced_and_openers_are_right():
    pairs = [(1, 2), (3, 4), (5, 6)]
    made = dyck(pairs, length=20, examples=30, max_depth=3)
    closes = {c: o for o, c in pairs}
    depths = set()
    for tokens, opener in zip(made.tokens.tolist(), made.opener.tolist(), strict=True):
        stack = []
        for i, token in enumerate(tokens[1:], start=1):
            if token in closes:
                start = stack.pop()
                assert tokens[start] == closes[token] and opener[i] == start
            else:
                stack.append(i)
                assert opener[i] == -1
            depths.add(len(stack))
        assert not stack
    assert max(depths) == 3
