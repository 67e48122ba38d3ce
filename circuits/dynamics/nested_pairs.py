"""Do edges between layers make up for each other on nested pairs? Which tokens are counted, and the measures of a run.

    nested    closers of brackets and quotes with another pair inside, in the run's held-out text
    flat      closers of pairs with none inside, one for each nested one: of the same sequence and depth, the nearest that is left
    layers    the edges out of each head of layer 0 into all heads of layer 1: as many places as heads
    keys      the edges from layer 0 into keys of layer 1 that repeated tokens need most: previous-token heads into induction

A write is replaced by its mean over other sequences of the text, position by position. Closers without a partner are not counted,
so that both conditions have as many, at the same depths of the same sequences.

Random bracketed sequences would not do: they are no text that the model was trained on, and a write's mean over them says that
brackets are frequent, which lowers the loss of every closer.
"""

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from circuits.data.brackets import BracketTokens, annotate
from circuits.data.token_classes import TokenClasses
from circuits.data.tokens import shuffle_tokens
from circuits.dynamics.functions import spread, text_of
from circuits.dynamics.pathways import REFERENCE, TEXT, repeated
from circuits.models.checkpoints import Checkpoints
from circuits.paths.edges import EdgeEffects
from circuits.paths.interactions import Interaction
from circuits.results import Measure

WINDOWS, EXAMPLES = 512, 96
"""Sequences of the text in which pairs are looked for, and those of them that are measured at most."""
KEYS = "L0H* -> L1H*.k"
STRONGEST = 4


def matched_closers(data: BracketTokens) -> tuple[Bool[Tensor, "example pos_minus_1"], Bool[Tensor, "example pos_minus_1"]]:
    """Predictions of nested closers and of the flat ones matched to them; in a sequence without such pairs none."""
    counts = np.zeros((2, data.tokens.shape[0], data.tokens.shape[1] - 1), dtype=bool)
    taken = np.zeros(len(data.closer), dtype=bool)
    for nested in np.flatnonzero(data.nested):
        alike = (data.example == data.example[nested]) & (data.depth == data.depth[nested]) & ~data.nested & ~taken
        if not alike.any():
            continue
        left = np.flatnonzero(alike)
        flat = left[np.abs(data.closer[left] - data.closer[nested]).argmin()]
        taken[flat] = True
        for condition, closer in enumerate((nested, flat)):
            counts[condition, data.example[closer], data.closer[closer] - 1] = True
    first, second = (torch.from_numpy(count) for count in counts)
    return first, second


def interaction_measures(run: Checkpoints) -> tuple[Measure, ...]:
    """Interactions between layers on nested closers and on flat ones; none without two layers, a text or a tokenizer."""
    text = text_of(run)
    if run.cfg.n_layers < 2 or run.cfg.n_heads < 2 or run.tokenizer is None or text is None:
        return ()
    tokens = spread(text.tokens, WINDOWS)
    counts = matched_closers(annotate(tokens, TokenClasses.from_tokenizer(run.tokenizer)))
    there = counts[0].any(1)
    if int(there.sum()) < 2:
        return ()
    chosen, others = spread(there.nonzero()[:, 0], EXAMPLES), tokens[~there]
    reference = spread(others, REFERENCE) if len(others) >= TEXT else None
    layers = tuple(f"L0H{head} -> L1H*" for head in range(run.cfg.n_heads))
    among = _on_repeats(run)
    found: list[Measure] = []
    for condition, count in zip(("nested", "flat"), counts, strict=True):

        def effects(on: str, count: Tensor = count) -> EdgeEffects:
            return EdgeEffects(tokens[chosen], reference=reference, count=count[chosen], on=on)

        found.append(Interaction(effects(condition), layers))
        if among is not None:
            found.append(Interaction(effects(f"{condition}_keys"), strongest=STRONGEST, among=among))
    return tuple(found)


def _on_repeats(run: Checkpoints) -> EdgeEffects | None:
    """Edges into keys on repeated tokens, replaced as ``path_measures`` does; None where there are too few tokens or edges."""
    copies, others = repeated(run), repeated(run, REFERENCE, seed=1)
    if copies is None or others is None or run.cfg.n_heads**2 < STRONGEST:
        return None
    return EdgeEffects(copies[0], reference=shuffle_tokens(others[0], seed=1), count=copies[1], where=KEYS, on="repeats")
