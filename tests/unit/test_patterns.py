"""Attention detectors by hand-computed numbers."""

import math

import pytest
import torch

from circuits.data.tokens import repeated_random_tokens
from circuits.models import patterns


def hard(keys: list[int], length: int) -> torch.Tensor:
    """A pattern in which row i puts everything on keys[i]."""
    pattern = torch.zeros(1, 1, length, length)
    for row, key in enumerate(keys):
        pattern[0, 0, row, key] = 1.0
    return pattern


TOKENS = torch.tensor([[0, 5, 6, 7, 5, 6, 7]])  # [BOS, r, r] with n = 3


def test_a_perfect_induction_head_scores_one_and_not_n_over_n_plus_two():
    # From 5 (row 4) look at 6 (key 2), from 6 (row 5) at 7 (key 3), from 7 (row 6) at 5 (key 4).
    pattern = hard([0, 0, 0, 0, 2, 3, 4], 7)
    assert patterns.induction_score(pattern, TOKENS).item() == 1.0
    mask = patterns.induction_mask(TOKENS)[0]
    assert mask.nonzero().tolist() == [[4, 2], [5, 3], [6, 4]]


def test_bos_is_never_the_match_and_a_repeat_of_bos_is_no_target():
    tokens = torch.tensor([[0, 5, 0, 6, 5]])
    # Row 2 holds id 0 again; key 1 follows BOS at position 0, which the definition leaves out.
    assert patterns.induction_mask(tokens)[0].nonzero().tolist() == [[4, 2]]


def test_all_earlier_repeats_count():
    tokens = torch.tensor([[0, 5, 6, 5, 7, 5]])
    pattern = torch.zeros(1, 1, 6, 6)
    pattern[0, 0, range(6), 0] = 1.0
    pattern[0, 0, 5] = torch.tensor([0.1, 0.0, 0.3, 0.0, 0.4, 0.2])
    pattern[0, 0, 3] = torch.tensor([0.5, 0.0, 0.5, 0.0, 0.0, 0.0])
    # Row 3 (second 5): key 2 follows position 1. Row 5 (third 5): keys 2 and 4.
    assert patterns.induction_score(pattern, tokens).item() == pytest.approx((0.5 + 0.7) / 2)


def test_previous_token_leaves_out_the_row_whose_predecessor_is_bos():
    pattern = hard([0, 0, 1, 2, 0, 4, 5], 7)  # rows 2..6 look back one, but for row 4
    assert patterns.previous_token_score(pattern, TOKENS).item() == pytest.approx(4 / 5)


def test_current_and_first_token():
    pattern = hard([0, 1, 2, 0, 0, 0, 6], 7)
    assert patterns.current_token_score(pattern, TOKENS).item() == pytest.approx(3 / 6)
    assert patterns.first_token_score(pattern, TOKENS).item() == pytest.approx(3 / 6)


def test_duplicate_token():
    pattern = hard([0, 1, 2, 3, 1, 2, 0], 7)  # rows 4 and 5 find their earlier copies, row 6 rests
    assert patterns.duplicate_token_score(pattern, TOKENS).item() == pytest.approx(2 / 3)


def test_entropy_of_uniform_and_of_hard_attention():
    uniform = patterns.uniform_pattern(4)
    assert patterns.attention_entropy(uniform).item() == pytest.approx((math.log(2) + math.log(3) + math.log(4)) / 3)
    assert patterns.attention_entropy(hard([0, 0, 0], 3)).item() == 0.0


def test_fixed_lag_finds_the_distance_and_does_not_reward_the_luckiest_of_many():
    length = 12
    looks_back_four = hard([max(0, i - 4) for i in range(length)], length).expand(4, -1, -1, -1)
    score, lag = patterns.fixed_lag_score(looks_back_four)
    assert lag.tolist() == [4] and score.mean().item() == 1.0
    rng = torch.Generator().manual_seed(0)
    random = (torch.rand(200, 1, length, length, generator=rng) * torch.ones(length, length).tril()).pow(8)
    random = random / random.sum(-1, keepdim=True)
    score, _ = patterns.fixed_lag_score(random)
    by_lag = patterns.attention_by_lag(random, torch.arange(2, 7)).mean(0)
    assert score.mean() <= by_lag.max() + 1e-6
    # Chosen on the same single examples the score would be the mean of maxima, far above.
    assert patterns.attention_by_lag(random, torch.arange(2, 7)).amax(-1).mean() > 1.5 * score.mean()


@pytest.mark.parametrize(("n", "repeats", "chance"), [(25, 4, 0.0307), (50, 2, 0.0136), (100, 2, 0.0069)])
def test_published_chance_levels_of_uniform_attention(n: int, repeats: int, chance: float):
    tokens = repeated_random_tokens(500, n=n, repeats=repeats, examples=1).tokens
    score = patterns.induction_score(patterns.uniform_pattern(tokens.shape[1]), tokens)
    assert score.item() == pytest.approx(chance, abs=5e-5)


def test_scores_before_softmax_are_refused():
    scores = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"rows sum to .* at head 0; pass cache\['pattern', layer\] \(after softmax\)"):
        patterns.check_pattern(scores)


@pytest.mark.parametrize("shape", [(2, 5, 5), (1, 2, 5, 4), (0, 2, 5, 5)])
def test_patterns_of_another_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="need \\[example, head, query, key\\]"):
        patterns.check_pattern(torch.full(shape, 0.2))


def test_integer_patterns_are_refused():
    with pytest.raises(TypeError, match="need a floating tensor"):
        patterns.check_pattern(torch.ones(1, 1, 2, 2, dtype=torch.long))


def test_nan_rows_are_refused():
    pattern = patterns.uniform_pattern(4).clone()
    pattern[0, 0, 2, 1] = math.nan
    with pytest.raises(ValueError, match="rows sum to nan"):
        patterns.check_pattern(pattern)


def test_tokens_without_a_repeat_have_no_induction_score():
    with pytest.raises(ValueError, match="example 0 has no position at which induction has a target"):
        patterns.induction_score(patterns.uniform_pattern(4).float(), torch.tensor([[0, 1, 2, 3]]))
