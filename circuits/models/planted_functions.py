"""Models that do one known thing: memorise skip-trigrams, suppress copies, or play two roles in one head.

Slots, and what a head that is not named here does, are those of ``circuits.models.planted_parts``: a silent head attends
uniformly and writes nothing. Scores are ``strength`` (S) times a small number and softmax leaves ``exp(-S / 2)`` per other key
(1e-13 at the default), which is what "exact" means. All logits that are not named are 0, so a loss without help is
``log d_vocab`` and one with its target alone raised by ``g`` is ``log(1 + (d_vocab - 1) exp(-g))`` (``planted_loss``).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from circuits.models.hooked import HookedTransformer
from circuits.models.planted_parts import blank, check_noise, finished, look_back, rest

ROLES = ("previous_token", "current_token", "first_token", "induction", "memoriser")
"""What a superposed head can be made of. The first three read positions (or nothing), the last two the query's token."""
BY_TOKEN = ROLES[3:]


class Pattern(NamedTuple):
    """A skip-trigram ``source ... destination -> out``, of token ids."""

    source: int
    destination: int
    out: int


def planted_loss(raised: float, d_vocab: int) -> float:
    """Cross-entropy in nats of a token whose logit is ``raised`` where all others are 0."""
    return math.log1p((d_vocab - 1) * math.exp(-raised))


def random_patterns(k: int, d_vocab: int, *, sharing: int = 2, seed: int = 0) -> list[Pattern]:
    """``k`` skip-trigrams with distinct sources and distinct outs, ``sharing`` sources to a destination.

    One head can hold them without Elhage et al.'s "bugs": what a source writes does not depend on the destination, so two
    patterns (s, d1 -> o1), (s, d2 -> o2) of one source would also raise o2 at d1; no source has two here. A destination alone
    does not tell the out, and no token has two parts to play.

    Raises:
        ValueError: the vocabulary (without BOS) is too small for so many tokens.
    """
    if k < 1 or sharing < 1:
        raise ValueError(f"k={k}, sharing={sharing}: need at least one pattern, and one source to a destination")
    destinations = -(-k // sharing)
    if 2 * k + destinations > d_vocab - 1:
        raise ValueError(
            f"{k} patterns need {2 * k + destinations} different tokens and d_vocab={d_vocab} has {d_vocab - 1} beside BOS: "
            "use fewer patterns, more sharing or a larger vocabulary"
        )
    ids = np.random.default_rng([seed, 30]).permutation(np.arange(1, d_vocab))
    sources, outs, shared = ids[:k], ids[k : 2 * k], ids[2 * k : 2 * k + destinations]
    return [Pattern(int(sources[i]), int(shared[i // sharing]), int(outs[i])) for i in range(k)]


def check_patterns(patterns: Iterable[Sequence[int]], d_vocab: int) -> list[Pattern]:
    """Patterns as triples of ids of this vocabulary.

    Raises:
        ValueError: not triples, none, one twice, or ids outside 1..d_vocab - 1 (0 is BOS, where heads rest).
    """
    made = list(patterns)
    if any(len(p) != 3 for p in made) or not all(0 < int(i) < d_vocab for p in made for i in p):
        raise ValueError(f"patterns {made[:3]}...: need triples (source, destination, out) of ids in 1..{d_vocab - 1}")
    if len(set(map(tuple, made))) < len(made):
        raise ValueError("a pattern is given twice: pass each (source, destination, out) once")
    return [Pattern(*map(int, p)) for p in made]


def memoriser(
    patterns: Iterable[Sequence[int]],
    *,
    d_vocab: int = 301,
    n_ctx: int = 64,
    gap: int | None = None,
    gain: float = 10.0,
    strength: float = 60.0,
    noise: float = 0.0,
    seed: int = 0,
) -> HookedTransformer:
    """A one-layer model whose head L0H0 knows these skip-trigrams and nothing else.

    At a pattern's destination L0H0 spreads its attention evenly over the sources of the destination's patterns in context and
    raises the out of each by ``gain`` times its share (so by ``gain`` where one source stands there); elsewhere it rests on BOS
    and writes nothing. L0H1 attends uniformly, L0H2 rests on BOS and L0H3 attends as L0H0 does; these three write nothing.

    Args:
        patterns: (source, destination, out) ids; ``random_patterns`` draws some without bugs, with others every out of a source
            is raised wherever the source is attended to.
        gap: only sources exactly so far before the destination count (1: directly before, an n-gram of order 3; 0 with
            source = destination: a bigram). None: at any distance.
        gain: logits. strength: score of a source.
        noise, seed: Gaussian noise on every weight of every head, relative to its matrix' own scale; 0 is exact.

    Raises:
        ValueError: bad patterns (see ``check_patterns``), or a gap outside the context.

    Source: Elhage et al. 2021, "Skip-trigrams"; construction ours.
    """
    known = check_patterns(patterns, d_vocab)
    check_noise(noise, strength)
    if gap is not None and not 0 <= gap < n_ctx:
        raise ValueError(f"gap={gap}: need a distance inside the context of {n_ctx}, or None for any")
    destinations = {d: i for i, d in enumerate(sorted({p.destination for p in known}))}
    sources = {s: i for i, s in enumerate(sorted({p.source for p in known}))}
    at = len(destinations)  # dimension for resting on BOS; positions come behind it
    model, slot = blank(n_layers=1, n_heads=4, d_head=max(at + 1 + n_ctx, len(sources)), d_vocab=d_vocab, n_ctx=n_ctx)
    attn = model.blocks[0].attn
    # Without a gap sources score S and BOS S / 2. With one, a source scores S, the place S, both 2 S, and BOS 3 S / 2.
    for head in (0, 3):
        remember(attn.W_Q[head], attn.W_K[head], known, destinations, slot["token"], strength)
        rest(attn, head, slot["token"], at, strength * (0.5 if gap is None else 1.5))
        if gap is not None:
            look_back(attn, head, slot["position"], at + 1, gap, strength)
    rest(attn, 2, slot["token"], at, strength)
    for p in known:
        attn.W_V[0, slot["token"].start + p.source, sources[p.source]] = 1.0
        attn.W_O[0, sources[p.source], slot["out"].start + p.out] = gain
    return finished(model, noise, seed)


def remember(
    W_Q: Tensor, W_K: Tensor, patterns: Iterable[Pattern], destinations: Mapping[int, int], token: slice, score: float
) -> None:
    """Queries of a pattern's destination give its source this score, one dimension of the head to a destination."""
    for p in patterns:
        W_Q[token.start + p.destination, destinations[p.destination]] = score**0.5
        W_K[token.start + p.source, destinations[p.destination]] = score**0.5


def copy_suppressor(
    follows: Mapping[int, int] | None = None,
    *,
    patterns: Iterable[Sequence[int]] = (),
    d_vocab: int = 101,
    n_ctx: int = 101,
    gain: float = 10.0,
    suppression: float = 6.0,
    strength: float = 60.0,
    noise: float = 0.0,
    seed: int = 0,
) -> HookedTransformer:
    """A two-layer model whose head L1H0 lowers the logit of what is predicted and has been seen before.

    The direct path predicts ``follows[d]`` after ``d`` by raising its logit by ``gain``; L0H0 adds predictions by memorised
    skip-trigrams, if any are given. L1H0 reads the predictions in the stream, attends evenly to the earlier occurrences of the
    predicted token and takes ``suppression`` off its logit; where there is none it rests on BOS. L0H1 and L1H1 attend uniformly,
    L0H2 and L1H2 rest on BOS, all four silently. It is also self-repair that is known: where L1H0 suppresses what L0H0
    predicted, ablating L0H0 costs its logit ``gain`` directly and ``gain - suppression`` in total.

    Args:
        follows: what is predicted after each id; default a random cycle through all ids but BOS. patterns: of L0H0.
        gain, suppression: logits. strength: score of a predicted token's key.
        noise, seed: Gaussian noise on every weight of every head, relative to its matrix' own scale; 0 is exact.

    Raises:
        ValueError: a token is said to follow itself, or ids lie outside the vocabulary.

    Source: McDougall et al. 2023, copy suppression (large ``W_U W_QK W_E`` and negative ``W_U W_OV W_E`` diagonal).
    """
    known = check_patterns(patterns, d_vocab)
    check_noise(noise, strength)
    if follows is None:
        cycle = np.random.default_rng([seed, 31]).permutation(np.arange(1, d_vocab)).tolist()
        follows = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    if any(a == b or not (0 < a < d_vocab and 0 < b < d_vocab) for a, b in follows.items()):
        raise ValueError(f"follows must send ids in 1..{d_vocab - 1} to other ids there: no token follows itself, none is BOS")
    destinations = {d: i for i, d in enumerate(sorted({p.destination for p in known}))}
    d_head = max(d_vocab, len(destinations)) + 1
    model, slot = blank(n_layers=2, n_heads=3, d_head=d_head, d_vocab=d_vocab, n_ctx=n_ctx)
    token, out, eye = slot["token"], slot["out"], torch.eye(d_vocab)
    for a, b in follows.items():
        model.W_E[a, out.start + b] = gain
    first, second = (block.attn for block in model.blocks)
    remember(first.W_Q[0], first.W_K[0], known, destinations, token, strength)
    for p in known:
        first.W_V[0, token.start + p.source, p.source] = 1.0
        first.W_O[0, p.source, out.start + p.out] = gain
    # A prediction of `gain` logits scores S on its token's keys. The current token is none of them: nothing follows itself.
    second.W_Q[0, out, :d_vocab] = strength**0.5 / gain * eye
    second.W_K[0, token, :d_vocab] = strength**0.5 * eye
    second.W_V[0, token, :d_vocab] = eye
    second.W_V[0, token.start, 0] = 0.0  # BOS says nothing
    second.W_O[0, :d_vocab, out] = -suppression * eye
    for attn, head, score in ((first, 0, 0.5), (first, 2, 1.0), (second, 0, 0.5), (second, 2, 1.0)):
        rest(attn, head, token, d_head - 1, score * strength)
    return finished(model, noise, seed)


def superposed(
    role: str,
    other: str,
    *,
    destinations: Iterable[int] | None = None,
    patterns: Iterable[Sequence[int]] = (),
    d_vocab: int = 101,
    n_ctx: int = 101,
    gain: float = 10.0,
    strength: float = 60.0,
    noise: float = 0.0,
    seed: int = 0,
) -> HookedTransformer:
    """A two-layer model whose head L1H0 plays ``other`` where the current token is in ``destinations``, and ``role`` elsewhere.

    So the mixture is known: the share of positions whose token is in ``destinations``. L0H0 is a plain previous-token head
    (induction needs it); the others, L0H1, L1H1 (uniform), L0H2, L1H2 (on BOS), write nothing. A head has one OV for both roles:
    induction raises the attended token by ``gain``, a memoriser the outs of an attended source, and the first three roles copy
    the attended token into a slot nobody reads. What one role writes of a token is therefore written wherever the other attends
    to it: beside induction, every token that ``role`` attends to is raised as well.

    Args:
        role: one of ``ROLES``. other: ``"induction"`` or ``"memoriser"``, another than ``role``.
        destinations: ids; default the even ones, or the patterns' destinations where ``other`` is the memoriser.
        patterns: of the memoriser; their destinations must be where it plays.
        gain: logits. strength: score of ``role``.
        noise, seed: Gaussian noise on every weight of every head, relative to its matrix' own scale; 0 is exact.

    Raises:
        ValueError: roles that cannot share a head this way, patterns without a memoriser or the reverse, or that do not fit.
    """
    if role not in ROLES or other not in BY_TOKEN or role == other:
        raise ValueError(f"roles {role!r} and {other!r}: need one of {ROLES} and another one of {BY_TOKEN}")
    known = check_patterns(patterns, d_vocab)
    check_noise(noise, strength)
    if bool(known) != ("memoriser" in (role, other)):
        raise ValueError(f"{len(known)} patterns for the roles {role!r} and {other!r}: a memoriser needs some, others have none")
    if destinations is None:
        destinations = {p.destination for p in known} if other == "memoriser" else range(2, d_vocab, 2)
    there = {other: sorted(set(map(int, destinations)))}
    there[role] = sorted(set(range(1, d_vocab)) - set(there[other]))
    if stray := {p.destination for p in known} - set(there["memoriser" if known else other]):
        raise ValueError(f"patterns end at {sorted(stray)[:5]}, where the memoriser does not play: change destinations")
    numbers = {d: d_vocab + i for i, d in enumerate(sorted({p.destination for p in known}))}
    at = d_vocab + len(numbers)  # dimensions of a head: tokens, destinations, two for BOS, positions
    model, slot = blank(
        n_layers=2,
        n_heads=3,
        d_head=at + 2 + n_ctx,
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        slots={"previous": d_vocab, "moved": d_vocab},
    )
    token, out, eye = slot["token"], slot["out"], torch.eye(d_vocab)
    first, second = (block.attn for block in model.blocks)
    look_back(first, 0, slot["position"], at + 2, 1, strength)
    first.W_V[0, token, :d_vocab] = eye
    first.W_O[0, :d_vocab, slot["previous"]] = eye
    # A role by position scores S for every query. One by token scores 2 S, for its own destinations only, and with these BOS
    # scores 3 S / 2 in all: so they do what the token asks for where that is found, and rest where it is not.
    if role == "first_token":
        rest(second, 0, token, at, strength)
    elif role not in BY_TOKEN:
        look_back(second, 0, slot["position"], at + 2, int(role == "previous_token"), strength)
    by_token = {name: torch.tensor(there[name]) for name in (role, other) if name in BY_TOKEN}
    for ids in by_token.values():
        second.W_Q[0, token.start + ids, at + 1] = 1.0
    second.W_K[0, token.start, at + 1] = strength * (0.5 if role == "first_token" else 1.5)
    if "induction" in by_token:  # the current token is matched with each key's previous token
        ids = by_token["induction"]
        second.W_Q[0, token.start + ids, ids] = (2 * strength) ** 0.5
        second.W_K[0, slot["previous"].start + ids, ids] = (2 * strength) ** 0.5
    remember(second.W_Q[0], second.W_K[0], known, numbers, token, 2 * strength)
    second.W_V[0, token, :d_vocab] = eye
    second.W_V[0, token.start, 0] = 0.0  # BOS says nothing
    if role not in BY_TOKEN:
        second.W_O[0, :d_vocab, slot["moved"]] = eye
    if "induction" in by_token:
        second.W_O[0, :d_vocab, out] = gain * eye
    for p in known:
        second.W_O[0, p.source, out.start + p.out] += gain
    for attn in (first, second):
        rest(attn, 2, token, at, strength)
    return finished(model, noise, seed)
