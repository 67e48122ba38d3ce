"""Invariances of the attention detectors, and the fast masks against the literal loops of their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.models import patterns

SCORES = {
    "previous": patterns.previous_token_score,
    "current": patterns.current_token_score,
    "first": patterns.first_token_score,
    "duplicate": patterns.duplicate_token_score,
    "induction": patterns.induction_score,
}


def literal(name: str, pattern: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The definition as written: loops over rows and keys, nothing shared with the code under test."""
    examples, heads, length, _ = pattern.shape
    out = torch.zeros(examples, heads, dtype=pattern.dtype)
    for e in range(examples):
        x = tokens[e].tolist()
        for h in range(heads):
            rows = []
            for i in range(length):
                keys = {
                    "previous": [i - 1] if i >= 2 else [],
                    "current": [i] if i >= 1 else [],
                    "first": [0] if i >= 1 else [],
                    "duplicate": [j for j in range(1, i) if x[j] == x[i]],
                    "induction": [j for j in range(2, i + 1) if x[j - 1] == x[i]] if i >= 2 else [],
                }[name]
                if keys:
                    rows.append(sum(pattern[e, h, i, j].item() for j in keys))
            out[e, h] = sum(rows) / len(rows)
    return out


def attention(seed: int, examples: int, heads: int, length: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(examples, heads, length, length, generator=rng, dtype=torch.float64)
    return scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)


def with_repeats(seed: int, examples: int, length: int) -> torch.Tensor:
    tokens = torch.randint(1, 4, (examples, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = 0
    tokens[:, -1] = tokens[:, 1]
    return tokens


@pytest.mark.parametrize("name", SCORES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), length=st.integers(5, 12))
def test_masks_equal_the_literal_definition(name: str, seed: int, length: int):
    pattern, tokens = attention(seed, 2, 2, length), with_repeats(seed, 2, length)
    assert torch.allclose(SCORES[name](pattern, tokens), literal(name, pattern, tokens), atol=1e-12)


@pytest.mark.parametrize("name", SCORES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_of_examples_and_heads_does_not_matter(name: str, seed: int):
    pattern, tokens = attention(seed, 3, 4, 9), with_repeats(seed, 3, 9)
    score = SCORES[name](pattern, tokens)
    rng = torch.Generator().manual_seed(seed + 1)
    examples, heads = torch.randperm(3, generator=rng), torch.randperm(4, generator=rng)
    assert torch.equal(SCORES[name](pattern[examples][:, heads], tokens[examples]), score[examples][:, heads])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_renaming_tokens_does_not_matter(seed: int):
    pattern, tokens = attention(seed, 2, 2, 10), with_repeats(seed, 2, 10)
    renamed = torch.tensor([0, 17, 4, 9])[tokens]
    assert torch.equal(patterns.induction_score(pattern, tokens), patterns.induction_score(pattern, renamed))


@pytest.mark.parametrize("name", SCORES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_scores_lie_between_zero_and_one(name: str, seed: int):
    score = SCORES[name](attention(seed, 2, 2, 9), with_repeats(seed, 2, 9))
    assert (score >= 0).all() and (score <= 1 + 1e-12).all()
