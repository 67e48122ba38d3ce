"""What the kinds of contexts claim about text: shuffled text has few of them, and copying is called so where copying explains."""

from pathlib import Path

import numpy as np
import pytest
import torch

from circuits import Checkpoints
from circuits.data.contexts import ContextOptions, classify_contexts
from circuits.data.matches import longest_matches
from circuits.data.ngrams import NgramTable
from circuits.data.streams import split_blocks
from circuits.data.token_classes import TokenClasses
from circuits.data.tokens import shuffle_tokens

pytestmark = pytest.mark.science


@pytest.fixture(scope="module")
def run(checkout: Path) -> Checkpoints:
    return Checkpoints.from_dir(checkout / "fixtures" / "stdlib-2l")


@pytest.fixture(scope="module")
def table(run: Checkpoints) -> NgramTable:
    return NgramTable.count(split_blocks(run.corpus["code_train"]), run.cfg.d_vocab)


def test_held_out_code_has_every_kind_and_shuffled_code_only_layout(run: Checkpoints, table: NgramTable):
    tokens, classes = run.evaluation["code"][:64], TokenClasses.from_tokenizer(run.tokenizer)
    found = classify_contexts(tokens, table, classes).summary(classify_contexts(shuffle_tokens(tokens), table, classes))
    assert float(found.value.sum()) == pytest.approx(1) == float(found.null_mean.sum())
    excess = (found.value - found.null_mean) / np.hypot(found.stderr, found.null_stderr)
    for kind, least in (("bracket", 1.5), ("induction", 8), ("ngram", 50), ("bigram", 8), ("skip_ngram", 2.5)):
        assert excess.sel(kind=kind) > 4, kind
        assert found.value.sel(kind=kind) > least * found.null_mean.sel(kind=kind) and found.value.sel(kind=kind) > 0.03, kind
    # white space is as frequent when shuffled, and then nothing else explains it
    assert excess.sel(kind="positional") < -4 and excess.sel(kind="other") < -4
    assert found.flagged.sel(kind="positional") == pytest.approx(float(found.null_mean.sel(kind="positional")), abs=0.01)


def test_copies_come_more_often_than_the_corpus_expects_only_where_they_are_called_induction(run: Checkpoints, table: NgramTable):
    """Of predictions whose longest match names one next token: how often it comes, against its n-gram probability."""
    tokens, options = run.evaluation["code"], ContextOptions()
    text = tokens.numpy()
    lengths = longest_matches(text).length
    example, pos = np.nonzero(lengths[:, 5:])
    pos += 5
    places = [
        [j for j in range(1, t) if j >= n and (text[e, j - n + 1 : j + 1] == text[e, t - n + 1 : t + 1]).all()]
        for e, t, n in zip(example.tolist(), pos.tolist(), lengths[example, pos].tolist(), strict=True)
    ]
    named = [np.unique(text[e, np.array(at) + 1]) for e, at in zip(example.tolist(), places, strict=True)]
    one = np.array([len(tokens) == 1 for tokens in named])
    copied = np.array([tokens[0] for tokens in named])
    window = text[example[:, None], pos[:, None] + np.arange(-3, 1)]
    expected = np.exp(table.log_prob(torch.from_numpy(np.column_stack([np.zeros_like(pos), window, copied])))[-1, :, -1])
    came = text[example, pos + 1] == copied

    def times(kept: np.ndarray) -> float:
        return came[kept].sum() / expected[kept].sum()

    low, high = one & (expected < options.probability), one & (expected >= 0.5)
    assert min(low.sum(), high.sum()) > 500
    assert times(low) > 6
    assert 1 - 4 / high.sum() ** 0.5 < times(high) < 1.25
    for n in (1, 2, 3):  # whatever the length of the match
        assert times(low & (lengths[example, pos] == n)) > 5
