"""Of what kind is a prediction? Bracket, induction, n-gram, bigram, skip-n-gram, layout, or none of these.

For each prediction of token ``o = x[t + 1]`` from ``x[0 .. t]``, d = x[t] (index t of ``[example, pos - 1]``; BOS at 0 takes no
part). One rule serves all kinds that rest on a corpus: a condition *explains* o if it makes o at least ``probability`` likely and
at least ``ratio`` times as likely as without it, is followed by o at least ``min_count`` times, and would be by chance
(``lift.tail_chance``) with probability at most ``alpha``. The flags, in order of precedence:

1. ``bracket``: o closes the innermost open bracket or quote of this context (``token_classes``); *nested* if another stays open.
2. ``induction``: of the earlier places of this context with the longest match of what was just read (``matches``), at least
   ``agreement`` were followed by o, and the corpus does not expect it: its interpolated n-gram probability is below
   ``probability``. Copying is then the better account: on text the copied token comes several times as often as the corpus
   expects below .2, and no more often than it expects above .5, whatever the length of the match.
3. ``ngram``: n - 1 = 2 or more contiguous tokens explain o against d alone, and the longest context known says no less than
   ``probability``. ``order`` is the least such n.
4. ``bigram``: d explains o against the frequency of o.
5. ``skip_ngram``: a source 2 to ``gap`` tokens before d explains o against d alone (``skip_ngrams``), ``alpha`` divided by the
   number of different sources tried; ``source`` is the least likely by chance.
6. ``positional``: o is white space, a line break or indentation.
7. ``other``.

Several flags may hold; ``kind`` is the first. What this very context shows goes before what the corpus knows, since a bracket or
a copy needs the context whatever else also fits; longer contexts go before shorter ones; layout is last, for a line break that an
n-gram explains is one. The overlap table says how much hangs on that.

Statistics of a corpus take its places as independent, which favours what one document repeats; the share of a kind in shuffled
text (``circuits.data.tokens.shuffle_tokens``: same topics, no order) is its null.

Source: the kinds are those of Wang et al. 2024 (rLLC), appendix B, whose rules are not public; skip-trigrams of Elhage et al.
2021; the rules are ours.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from circuits.data.lift import tail_chance
from circuits.data.matches import Matches, longest_matches
from circuits.data.ngrams import MIN_COUNT, Counts, NgramTable
from circuits.data.skip_ngrams import GAP, next_same, skip_lift, sources
from circuits.data.streams import check_text
from circuits.data.token_classes import TokenClasses
from circuits.results import array_hash, canonical, check_whole, digest, mean_and_stderr

if TYPE_CHECKING:
    import xarray as xr

KINDS = ("bracket", "induction", "ngram", "bigram", "skip_ngram", "positional", "other")
BRACKET, INDUCTION, NGRAM, BIGRAM, SKIP_NGRAM, POSITIONAL, OTHER = range(len(KINDS))


@dataclass(frozen=True)
class ContextOptions:
    """The thresholds of the rule; see the module.

    Attributes:
        probability: a kind makes the next token at least so likely. ratio: and at least so many times likelier.
        min_count: occurrences of the whole pattern, next token included. alpha: chance of a false flag, per kind and prediction.
        gap: how far back a skip-n-gram's source may stand. agreement: share of the longest matches that the token followed.
    """

    probability: float = 0.2
    ratio: float = 2.0
    min_count: int = MIN_COUNT
    alpha: float = 1e-4
    gap: int = GAP
    agreement: float = 0.5

    def __post_init__(self) -> None:
        check_whole("min_count", self.min_count, 1)
        check_whole("gap", self.gap, 2)
        for name in ("probability", "alpha", "agreement"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: need a number above 0 and up to 1")
        if not 1 < self.ratio < np.inf:
            raise ValueError(f"ratio={self.ratio!r}: need a number above 1, e.g. 2.0")

    def spec(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def hash(self) -> str:
        """Of the thresholds alone."""
        return digest(self.spec())


@dataclass(frozen=True, eq=False)
class Contexts:
    """The kinds of all predictions of a text; index t is about token ``t + 1``.

    Attributes:
        kind: index into ``KINDS``. flags: every kind that holds. nested: a bracket that closes inside another.
        order: least n of the n-gram that explains the token, 2 for a bigram alone, 0 for neither.
        opener: position of the bracket that is closed. match: latest position that was followed by the same token at the longest
            match. source: position of the skip-n-gram's source. Each -1 where there is none, and of every flag, not of the kind.
        repeated: the pair of tokens t, t + 1 stood earlier in this context, whether or not it counts as induction.
        options: thresholds. data_hash: of text, corpus, classes of tokens and thresholds.
    """

    kind: Int[np.ndarray, "example pos_minus_1"]
    flags: Bool[np.ndarray, "kind example pos_minus_1"]
    nested: Bool[np.ndarray, "example pos_minus_1"]
    order: Int[np.ndarray, "example pos_minus_1"]
    opener: Int[np.ndarray, "example pos_minus_1"]
    match: Int[np.ndarray, "example pos_minus_1"]
    source: Int[np.ndarray, "example pos_minus_1"]
    repeated: Bool[np.ndarray, "example pos_minus_1"]
    options: ContextOptions
    data_hash: str

    @property
    def overlap(self) -> Int[np.ndarray, "kind kind"]:
        """How many predictions carry both flags; the diagonal is how many carry one."""
        flat = self.flags.reshape(len(KINDS), -1).astype(np.int64)
        return flat @ flat.T

    def summary(self, null: "Contexts | None" = None) -> "xr.Dataset":
        """Shares of the kinds.

        Args:
            null: the same of a control, e.g. of the text shuffled.

        Returns:
            ``Dataset(kind)``: ``value``, the share of predictions of each kind in [0, 1], which sum to 1, with ``stderr`` over
            examples; ``flagged``, the share that carries the flag; ``overlap (kind, also)``, counts; ``null_mean`` and
            ``null_stderr``, the shares in the control, where one is given.
        """
        import xarray as xr

        value, stderr = self._shares()
        flagged = self.flags.mean(axis=(1, 2))
        variables = {"value": ("kind", value), "stderr": ("kind", stderr), "flagged": ("kind", flagged)}
        if null is not None:
            variables |= {name: ("kind", x) for name, x in zip(("null_mean", "null_stderr"), null._shares(), strict=True)}
        return xr.Dataset(
            variables | {"overlap": (("kind", "also"), self.overlap)},
            coords={"kind": list(KINDS), "also": list(KINDS)},
            attrs={
                "definition": "share of next-token predictions of each kind, circuits.data.contexts",
                "source": "kinds of Wang et al. 2024, appendix B; rules ours",
                "config": canonical(self.options.spec()),
                "data_hash": self.data_hash,
                "n": self.kind.size,
            },
        )

    def _shares(self) -> tuple[np.ndarray, np.ndarray]:
        return mean_and_stderr(np.stack([(self.kind == k).mean(axis=1) for k in range(len(KINDS))], axis=1))


def classify_contexts(
    tokens: Int[Tensor, "example pos"], table: NgramTable, classes: TokenClasses, options: ContextOptions | None = None
) -> Contexts:
    """Give every prediction of a text its kind.

    Args:
        tokens: ``[example, pos]``, BOS at 0; better not of the text that was counted.
        table: n-grams of the corpus, of order 3 or more for n-grams to be found.
        classes: ``TokenClasses.from_tokenizer(run.tokenizer)``, or ``by_hand`` for a vocabulary without text.

    Raises:
        TypeError, ValueError: not integer ids of this vocabulary of rank 2 with at least two positions; classes of another
            vocabulary; or more than half of the text's tokens are too rare in the corpus for it to say anything.

    Source: see the module.
    """
    options = ContextOptions() if options is None else options
    text = check_text(tokens, table.d_vocab)
    if len(classes.texts) != table.d_vocab:
        raise ValueError(
            f"classes are of {len(classes.texts)} ids and the corpus of {table.d_vocab}; make both for one vocabulary"
        )
    known = table.coverage(tokens, min_count=options.min_count)[1]
    if known < 0.5:
        raise ValueError(
            f"{known:.0%} of the text's tokens occur {options.min_count} times in the corpus of {len(table.tokens):,} tokens and "
            "50% are needed; count a larger corpus, of the kind of the text and with its tokenizer"
        )
    closings, matches, counts = classes.closings(tokens), longest_matches(text), table.context_counts(tokens)
    flags = np.zeros((len(KINDS), *matches.length.shape), dtype=bool)
    flags[BRACKET] = closings.closes
    flags[INDUCTION] = _induction(matches, np.exp(table.log_prob(tokens)[-1]), options)
    order = _orders(counts, options)
    flags[NGRAM] = order > 2
    flags[BIGRAM] = _explains(counts, 2, 1, options)
    source = _skip_sources(text, table, counts, options)
    flags[SKIP_NGRAM] = source >= 0
    flags[POSITIONAL] = classes.whitespace[text[:, 1:]]
    flags[OTHER] = ~flags[:OTHER].any(axis=0)
    return Contexts(
        kind=flags.argmax(axis=0).astype(np.int8),
        flags=flags,
        nested=closings.nested,
        order=np.where(order > 2, order, np.where(flags[BIGRAM], 2, 0)).astype(np.int8),
        opener=closings.opener,
        match=matches.latest,
        source=source,
        repeated=matches.repeated,
        options=options,
        data_hash=digest([array_hash(text), table.data_hash, classes.hash, options.hash]),
    )


def _induction(matches: Matches, expected: np.ndarray, options: ContextOptions) -> np.ndarray:
    agreed = (matches.hits > 0) & (matches.hits >= options.agreement * matches.places)
    return agreed & (expected < options.probability)


def _explains(counts: Counts, order: int, against: int, options: ContextOptions) -> np.ndarray:
    """Whether the context of one order explains the next token against that of a lower one."""
    hits, occasions = counts.hits[order - 1], counts.occasions[order - 1]
    fewer, all_occasions = counts.hits[against - 1], counts.occasions[against - 1]
    often = (hits >= options.min_count) & (hits >= options.probability * occasions)
    # hits / occasions >= ratio * fewer / all_occasions, without dividing
    likelier = often & (hits * all_occasions >= options.ratio * fewer * occasions)
    likelier[likelier] = tail_chance(*(x[likelier] for x in (hits, occasions, fewer, all_occasions))) <= options.alpha
    return likelier


def _orders(counts: Counts, options: ContextOptions) -> np.ndarray:
    """The least n >= 3 whose context explains the next token against the bigram, 0 where none does or the longest denies it."""
    denied, found = np.zeros(counts.hits.shape[1:], dtype=bool), np.zeros(counts.hits.shape[1:], dtype=np.int64)
    for n in range(3, len(counts.hits) + 1):
        hits, occasions = counts.hits[n - 1], counts.occasions[n - 1]
        denied = np.where(occasions >= options.min_count, hits < options.probability * occasions, denied)
        found[(found == 0) & _explains(counts, n, 2, options)] = n
    return np.where(denied, 0, found)


def _skip_sources(text: np.ndarray, table: NgramTable, counts: Counts, options: ContextOptions) -> np.ndarray:
    """The position of the source that explains the next token best against the present one, -1 where none does."""
    n_pos, found = text.shape[1], np.full(counts.hits.shape[1:], -1)
    hits, occasions = counts.hits[1], counts.occasions[1]
    possible = (hits >= options.min_count) & (options.ratio * hits <= occasions)  # the source can only lessen and raise these
    example, pos = np.nonzero(possible)
    flat, places = text.ravel(), example * n_pos + pos
    pairs = list(sources(next_same(flat), example * n_pos + 1, places, options.gap))
    of, at = (np.concatenate(column) for column in zip(*pairs, strict=True))
    lift = skip_lift(table, np.stack([flat[at], flat[places[of]], flat[places[of] + 1]], axis=-1), gap=options.gap)
    often = (lift.hits >= options.min_count) & (lift.hits >= options.probability * lift.occasions)
    kept = np.flatnonzero(often & (lift.value >= np.log(options.ratio)))
    chance = tail_chance(lift.hits[kept], lift.occasions[kept], lift.all_hits[kept], lift.all_occasions[kept])
    tried = np.bincount(of, minlength=len(places))
    good = chance * tried[of[kept]] <= options.alpha
    chance, of, at = chance[good], of[kept[good]], at[kept[good]]
    best = np.lexsort((-at, chance, of))
    first = best[np.flatnonzero(np.diff(of[best], prepend=-1))]
    found[example[of[first]], pos[of[first]]] = at[first] % n_pos
    return found
