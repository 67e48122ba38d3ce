"""Made-up names: the prompts, the interval, and models that complete all of them or none."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from circuits.data.tokenizer import token_strings, train_bpe
from circuits.detectors.names import NameCompletion, NamePrompts, derangement, made_up_names, name_prompts, wilson_interval


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["a plain text about nothing in particular. " * 20], vocab_size=270)


def text(length: int = 96) -> torch.Tensor:
    return torch.full((4, length), 33)


def test_names_are_different_and_the_same_for_a_seed():
    names = made_up_names(300)
    assert len(set(names)) == 300 and names == made_up_names(300) and names != made_up_names(300, seed=1)
    assert all(name[0].isupper() and name.isalpha() for name in names)


def test_prompts_hold_the_name_twice_and_the_control_no_bigram_of_it(tokenizer: Tokenizer):
    prompts = name_prompts(tokenizer, text(), count=20)
    assert len(prompts.names) == 20 and prompts.exact.shape == (20, 95)
    for name, exact, shuffled, answer in zip(prompts.names, prompts.exact, prompts.shuffled, prompts.answer, strict=True):
        ids = tokenizer.encode(" " + name).ids
        assert "".join(token_strings(tokenizer, ids)) == " " + name
        assert answer == len(ids) - 2 and exact[-len(ids) :].tolist() == ids == shuffled[-len(ids) :].tolist()
        first = exact.tolist()[: -len(ids)]
        assert any(first[i : i + len(ids)] == ids for i in range(len(first)))
        control = shuffled.tolist()[: -len(ids)]
        assert sorted(control) == sorted(first)
        bigrams = set(pairwise(control))
        assert not bigrams & set(pairwise(ids))


class Echo(torch.nn.Module):
    """Predicts the token that followed the last earlier occurrence of the current one: induction, literally."""

    def __init__(self, knows: bool):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.knows = knows
        self.cfg = type("cfg", (), {"n_layers": 1, "n_heads": 1, "d_vocab": 270, "n_ctx": 128})()

    def hooks(self, **_: object) -> None:
        raise AssertionError("not needed")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, 270)
        if self.knows:
            for e, row in enumerate(tokens.tolist()):
                for i, token in enumerate(row):
                    earlier = [j for j in range(i) if row[j] == token]
                    if earlier:
                        logits[e, i, row[earlier[-1] + 1]] = 1.0
        return logits


def test_literal_induction_completes_every_exact_name_and_no_shuffled_one(tokenizer: Tokenizer):
    prompts = name_prompts(tokenizer, text(), count=20)
    found = NameCompletion(prompts)(Echo(knows=True))
    assert found.value.sel(condition="exact") == 1.0 and found.value.sel(condition="shuffled") == 0.0
    assert found.token_rate.sel(condition="exact") == 1.0 and found.token_rate.sel(condition="shuffled") < 0.1
    ignorant = NameCompletion(prompts)(Echo(knows=False))
    assert (ignorant.value == 0.0).all() and (ignorant.high < 0.2).all()


def test_a_name_is_completed_if_all_its_tokens_are_right_and_the_token_rate_says_how_many_are():
    tokens = torch.tensor([[0, 5, 6, 7, 8], [0, 5, 6, 7, 9]])
    prompts = NamePrompts(tokens, tokens, torch.tensor([2, 3]), ("a", "b"))

    class CountsUp(Echo):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(tokens + 1, 270).float()  # right but for the 9

    found = NameCompletion(prompts)(CountsUp(knows=True)).sel(condition="exact")
    assert found.completed.values.tolist() == [True, False]
    assert found.value == 0.5 and found.token_rate == pytest.approx((1 + 2 / 3) / 2)
    assert found.token_rate_stderr == pytest.approx(1 / 6)


def test_a_tokenizer_that_keeps_names_whole_is_refused(tokenizer: Tokenizer):
    with pytest.raises(ValueError, match="only 0 of 5 names have 42 or more different tokens: use a smaller stem or count"):
        name_prompts(tokenizer, text(), count=5, stem=40)


def test_wilson_interval_by_hand():
    low, high = wilson_interval(5, 10)
    assert (low, high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert wilson_interval(0, 200)[0] == 0.0 and wilson_interval(0, 200)[1] == pytest.approx(0.0188, abs=1e-4)


def test_derangements_keep_no_neighbours():
    rng = np.random.default_rng(0)
    for size in (3, 4, 7):
        order = derangement(size, rng)
        assert sorted(order) == list(range(size)) and all(b != a + 1 for a, b in pairwise(order))


def test_short_text_is_refused(tokenizer: Tokenizer):
    with pytest.raises(ValueError, match="the text has 30 tokens a sequence"):
        name_prompts(tokenizer, text(30))
