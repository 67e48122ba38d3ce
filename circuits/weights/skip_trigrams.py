"""Skip-trigrams ``[source ... destination -> out]``: what one head says about pairs of tokens, ranked, and checked on text.

For a head with circuits ``QK[d, s]`` (score of destination ``d`` as query on source ``s`` as key) and ``OV[s, o]``,

    z_QK(s, d) = QK[d, s] - mean over s' of QK[d, s']      how much d prefers s to the average source
    z_OV(s, o) = OV[s, o] - mean over o' of OV[s, o']      how much s raises o above the average output
    value(s, d, o) = max(z_QK, 0) * max(z_OV, 0)

Means are over the whole vocabulary, with equal weights. Query biases add the same to every destination and are left out;
norm scales as in ``circuits.weights.circuits``: in layer 0 they are exact for the source and query (no standard positions),
and later they are left out, so that tokens with large embeddings come first. Products of two preferences are no probability:
``measured_lift`` asks held-out text. Since value is a product, every head that raises ``s...d1 -> o1`` and ``s...d2 -> o2``
raises ``s...d1 -> o2`` too, wanted or not (``bug_share``).

Source: Elhage et al. 2021, "Skip-trigrams" and "bugs"; ranking by the product and the estimators ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.data.tokenizer import token_strings
from circuits.models.heads import Head
from circuits.models.protocol import check_tokens, model_hash
from circuits.results import array_hash, labelled
from circuits.weights.circuits import Reader, first_largest, token_id

if TYPE_CHECKING:
    import xarray as xr
    from tokenizers import Tokenizer

SOURCES = 64
"""Sources looked at together: 64 x V numbers are held."""


@dataclass(frozen=True, eq=False)
class Triples:
    """Triples in order of value, largest first; of equal values the smaller ids first among those found."""

    value: Float[Tensor, "triple"]
    source: Int[Tensor, "triple"]
    destination: Int[Tensor, "triple"]
    out: Int[Tensor, "triple"]


def top_triples(
    keys: Float[Tensor, "source r"],
    queries: Float[Tensor, "destination r"],
    values: Float[Tensor, "source r"],
    outputs: Float[Tensor, "out r"],
    k: int,
    sources: Int[Tensor, "n"] | None = None,
) -> Triples:
    """The ``k`` triples with the largest positive ``(keys[s] . queries[d]) * (values[s] . outputs[o])``, both factors positive.

    Exact, in memory of ``SOURCES x (destinations + outs)``. Fewer than ``k`` come back where fewer are positive.

    Two facts make it fast. (1) For one source, sort its positive factors ``f_1 >= f_2 >= ...`` over destinations and
    ``g_1 >= g_2 >= ...`` over outputs. ``f_i g_j`` is at most each of the ``i j`` products ``f_a g_b`` with ``a <= i`` and
    ``b <= j``, so a triple with ``i j > k`` has ``k`` others at least as large before it and is never needed. The top ``k``
    are found among the ``k`` best destinations and ``k`` best outputs, in the ``k (1 + log k)`` pairs with ``i j <= k``.
    (2) No triple of a source beats ``f_1 g_1``. With ``t`` the ``k``-th best value so far, a source with ``f_1 g_1 <= t`` is
    done; ``f_1`` and ``g_1`` are bounded by Cauchy-Schwarz, in whose order sources come, so that the first one below ``t`` ends
    the search, and then by a float32 product plus its rounding error. Only survivors are computed in float64.

    Args:
        keys, queries: factors of the attention preference. values, outputs: factors of the output effect.
        k: how many. sources: only these (default: all).
    """
    far = queries.norm(dim=1).max(), outputs.norm(dim=1).max()
    key_norms, value_norms = keys.norm(dim=1), values.norm(dim=1)
    bound = key_norms * far[0] * value_norms * far[1] * (1 + 1e-9)
    order = torch.arange(len(keys)) if sources is None else sources.unique()
    order = order[bound[order].argsort(descending=True, stable=True)]
    # A float32 dot product of r terms, its inputs rounded, errs by less than (r + 4) 2^-23 |a| |b| (twice Higham's gamma).
    slack = (keys.shape[1] + 4) * 2.0**-23
    queries32, outputs32 = queries.float().T.contiguous(), outputs.float().T.contiguous()
    best = Triples(torch.empty(0, dtype=torch.float64), *(torch.empty(0, dtype=torch.int64) for _ in range(3)))
    for block in order.split(SOURCES):
        least = float(best.value[-1]) if len(best.value) == k else 0.0
        if float(bound[block[0]]) <= least:
            break
        f_1 = (keys[block].float() @ queries32).amax(1).double() + slack * key_norms[block] * far[0]
        g_1 = (values[block].float() @ outputs32).amax(1).double() + slack * value_norms[block] * far[1]
        left = block[(f_1 > 0) & (g_1 > 0) & (f_1 * g_1 > least)]
        if not len(left):
            continue
        attends, writes = keys[left] @ queries.T, values[left] @ outputs.T
        for source, f, g in zip(left.tolist(), attends, writes, strict=True):
            best = _merge(best, source, f, g, k)
    return best


def _merge(best: Triples, source: int, f: Float[Tensor, "destination"], g: Float[Tensor, "out"], k: int) -> Triples:
    """The ``k`` best of those held and those of one source."""
    least = best.value[-1] if len(best.value) == k else torch.zeros((), dtype=torch.float64)
    # Rounding keeps order (f <= f' gives fl(f g) <= fl(f' g)), so what is dropped here could not have come in.
    destinations = ((f > 0) & (f * g.max() > least)).nonzero()[:, 0]
    outs = ((g > 0) & (g * f.max() > least)).nonzero()[:, 0]
    if not (len(destinations) and len(outs)):
        return best
    destinations = destinations[first_largest(f[destinations], k)]
    outs = outs[first_largest(g[outs], k)]
    # Pairs (i, j), counted from 1, with i j <= k.
    widths = (k // torch.arange(1, len(destinations) + 1)).clamp(max=len(outs))
    i = torch.arange(len(destinations)).repeat_interleave(widths)
    j = torch.arange(len(i)) - (widths.cumsum(0) - widths).repeat_interleave(widths)
    value = f[destinations[i]] * g[outs[j]]
    new = (value > least).nonzero()[:, 0]
    new = new[first_largest(value[new], k)]
    i, j = destinations[i[new]], outs[j[new]]
    columns = [
        torch.cat((best.value, value[new])),
        torch.cat((best.source, torch.full_like(i, source))),
        torch.cat((best.destination, i)),
        torch.cat((best.out, j)),
    ]
    ranks = np.lexsort([column.numpy() for column in (columns[3], columns[2], columns[1], -columns[0])])[:k]
    return Triples(*(column[torch.from_numpy(ranks)] for column in columns))


def skip_trigrams(
    model: Any,
    head: Any,
    *,
    k: int = 100,
    tokenizer: "Tokenizer | None" = None,
    sources: Sequence[int | str] | None = None,
    offset: int | str | None = None,
    effective: bool = False,
) -> "xr.Dataset":
    """The strongest ``[source ... destination -> out]`` triples of a head, by ``max(z_QK, 0) * max(z_OV, 0)``.

    Args:
        model: a HookedTransformer, or a transformer-lens model that converts to one; left as found.
        head: ``"L0H3"`` or ``(0, 3)``. k: how many triples.
        tokenizer: labels tokens and reads texts. sources: only these ids or one-token texts (means stay over all).
        offset: for rotary positions, a distance or ``"mean"`` (the default there). effective: as of ``qk_circuit``.

    Returns:
        ``Dataset(triple)``, largest first: ``value = qk * ov``, ``qk`` (score above the mean source, > 0), ``ov`` (logit above
        the mean output, > 0), ids ``source, destination, out``, and ``source_label, destination_label, out_label``. Fewer than
        ``k`` where fewer are positive; of values equal to the last, any.

    Raises:
        TypeError: not a hooked model. ValueError: no such head, NaN weights, ``k`` not positive, not a token.

    Source: Elhage et al. 2021, "Skip-trigrams"; shared definition of z_QK and z_OV in the module's docstring.
    """
    import xarray as xr

    check_count(k)
    reader = Reader.of(model, tokenizer)
    size = reader.cfg.d_vocab
    chosen = None
    if sources is not None:
        if isinstance(sources, str) or not len(sources):
            raise ValueError(f"sources are {sources!r}; need a list of ids or tokens, or None for all")
        chosen = torch.tensor([token_id(s, size, "token", tokenizer) for s in sources], dtype=torch.int64)
    found, qk, ov = head_triples(reader, head, k, sources=chosen, offset=offset, effective=effective)
    data: dict[str, Any] = {"value": ("triple", found.value.numpy()), "qk": ("triple", qk), "ov": ("triple", ov)}
    for name in ("source", "destination", "out"):
        ids = getattr(found, name).numpy()
        data[name] = ("triple", ids)
        data[f"{name}_label"] = ("triple", np.asarray(token_strings(tokenizer, ids.tolist()), dtype=object))
    return xr.Dataset(
        data,
        coords={"triple": np.arange(len(found.value))},
        attrs={
            "head": str(Head.parse(head, reader.cfg)),
            "definition": "max(z_QK, 0) * max(z_OV, 0), z_QK centred over sources, z_OV over outputs",
            "source": "Elhage et al. 2021, skip-trigrams; ranking of circuits.weights.skip_trigrams",
        },
    )


def head_triples(
    reader: Reader,
    head: Any,
    k: int,
    *,
    sources: Int[Tensor, "n"] | None = None,
    offset: int | str | None = None,
    effective: bool = False,
) -> tuple[Triples, np.ndarray, np.ndarray]:
    """The triples of one head of a model folded once, with ``z_QK`` and ``z_OV`` of each."""
    if reader.cfg.positional_embedding_type == "rotary" and offset is None:
        offset = "mean"
    attention = reader.qk(head, offset=offset, effective=effective).centred()  # means over keys: over sources
    output = reader.ov(head, effective=effective).centred()
    keys, queries = attention.right.T.contiguous(), attention.left
    values, outputs = output.left, output.right.T.contiguous()
    found = top_triples(keys, queries, values, outputs, k, sources)
    qk = torch.einsum("tr,tr->t", keys[found.source], queries[found.destination]).numpy()
    ov = torch.einsum("tr,tr->t", values[found.source], outputs[found.out]).numpy()
    return found, qk, ov


def check_count(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least one triple, e.g. k=100")


def measured_lift(triples: "xr.Dataset", tokens: Int[Tensor, "example pos"]) -> "xr.Dataset":
    """How much likelier ``out`` follows ``destination`` where ``source`` stands earlier in the context, on held-out text.

    ``lift = log P(next = out | destination now, source earlier) - log P(next = out | destination now, source not earlier)``,
    each ``P = (count + 1/2) / (n + 1)``. It is an association in the text, of which the head is one possible user: no claim
    that the head causes it.

    Args:
        triples: what ``skip_trigrams`` gave: ``source, destination, out`` along ``triple``.
        tokens: ``[example, pos]``; each example is a context of its own, "earlier" is strictly before the destination.

    Returns:
        ``Dataset(triple)``: ``value`` in nats (chance 0), ``stderr`` by the delta method, ``sqrt(sum of (1 - P) / (P (n + 1)))``,
        which takes positions as independent and so is too small where one text repeats itself; ``n_with, count_with,
        n_without, count_without``. NaN where either condition is never met.

    Raises:
        TypeError, ValueError: no triples, or not tokens of at least two positions.

    Source: skip-trigram statistics of Elhage et al. 2021; the estimator ours.
    """
    source, destination, out = _columns(triples)
    check_tokens(tokens, d_vocab=2**31, n_ctx=2**31, min_length=2, needed_by="a measured lift")
    text = tokens.cpu().numpy().astype(np.int64)
    length = text.shape[1]
    places = _Places(text)
    first: dict[int, np.ndarray] = {}
    for s in np.unique(source).tolist():
        example, pos = places.of(s)
        first[s] = np.full(len(text), length)
        np.minimum.at(first[s], example, pos)
    counts = np.zeros((4, len(source)), dtype=np.int64)
    for d in np.unique(destination).tolist():
        example, pos = places.of(d)
        example, pos = example[pos < length - 1], pos[pos < length - 1]
        following = text[example, pos + 1]
        for t in np.flatnonzero(destination == d).tolist():
            seen, hit = first[int(source[t])][example] < pos, following == out[t]
            counts[:, t] = seen.sum(), (seen & hit).sum(), (~seen).sum(), (~seen & hit).sum()
    n_with, count_with, n_without, count_without = counts
    p_with, p_without = (count_with + 0.5) / (n_with + 1), (count_without + 0.5) / (n_without + 1)
    never = (n_with == 0) | (n_without == 0)
    lift = np.where(never, np.nan, np.log(p_with / p_without))
    variance = (1 - p_with) / (p_with * (n_with + 1)) + (1 - p_without) / (p_without * (n_without + 1))
    return _along(
        triples,
        {
            "value": lift,
            "stderr": np.where(never, np.nan, np.sqrt(variance)),
            "n_with": n_with,
            "count_with": count_with,
            "n_without": n_without,
            "count_without": count_without,
        },
        chance=0.0,
        units="nats",
        definition="log P(out | destination, source earlier) - log P(out | destination, source not earlier), add-half",
        data_hash=array_hash(tokens.cpu()),
    )


def bug_share(
    triples: "xr.Dataset", tokens: Int[Tensor, "example pos"], *, min_expected: float = 1.0, pmi_below: float = 0.0
) -> "xr.Dataset":
    """The share of crossed skip-trigrams that the text speaks against.

    Two triples of one source, ``(s, d1 -> o1)`` and ``(s, d2 -> o2)``, cross to ``(s, d1 -> o2)`` and ``(s, d2 -> o1)``. Both
    have a positive weight *by construction*, whatever the text says, so "is it raised too?" is no question. Here a crossed triple
    is a bug if ``o`` follows ``d`` in the text less often than chance, whatever the context:
    ``PMI(d, o) = log(n(d -> o) N / (n(d ->) n(-> o))) < pmi_below`` (-inf if never). This is a proxy: it cannot see that ``o``
    is wrong only after ``s``, nor that another head repairs it.

    Args:
        triples, tokens: as of ``measured_lift``.
        min_expected: a crossed triple counts only where independence expects this many ``d -> o``; below, zero says nothing.

    Returns:
        Scalars: ``value`` = bugs / measured in [0, 1]; ``stderr`` (binomial; crossed triples share tokens, so too small);
        ``n_crossed`` distinct crossed triples that are not among the triples themselves, ``n_measured`` of them with enough text,
        ``n_bugs``; ``chance``, the same share among the triples themselves (``n_chance`` measured): a head's bugs exceed it.
        NaN where nothing is measured.

    Raises:
        TypeError, ValueError: no triples, not tokens of at least two positions, or ``min_expected`` not positive.

    Source: Elhage et al. 2021, skip-trigram "bugs"; the definition against a text ours.
    """
    import xarray as xr

    source, destination, out = _columns(triples)
    check_tokens(tokens, d_vocab=2**31, n_ctx=2**31, min_length=2, needed_by="a share of bugs")
    if not min_expected > 0:
        raise ValueError(f"min_expected is {min_expected}; it must be positive, e.g. 1.0")
    own = set(zip(source.tolist(), destination.tolist(), out.tolist(), strict=True))
    crossed: set[tuple[int, int, int]] = set()
    for s in np.unique(source).tolist():
        mine = np.flatnonzero(source == s)
        pairs = {(int(destination[t]), int(out[t])) for t in mine}
        # d1 -> o2 crosses two triples of s unless it is one itself: then it was ranked, and is no by-product.
        crossed |= {(s, d, o) for d, _ in pairs for _, o in pairs} - own
    text = tokens.cpu().numpy().astype(np.int64)
    bigrams = _Bigrams(text)

    def share(cells: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
        pmi = [bigrams.pmi(d, o, min_expected) for _, d, o in cells]
        measured = [x for x in pmi if not math.isnan(x)]
        return sum(x < pmi_below for x in measured), len(measured)

    bugs, measured = share(sorted(crossed))
    own_bugs, own_measured = share(sorted(own))
    value = bugs / measured if measured else math.nan
    scalars = {
        "value": value,
        "stderr": math.sqrt(value * (1 - value) / measured) if measured else math.nan,
        "chance": own_bugs / own_measured if own_measured else math.nan,
        "n_crossed": len(crossed),
        "n_measured": measured,
        "n_bugs": bugs,
        "n_chance": own_measured,
    }
    return xr.Dataset(
        {name: ((), x) for name, x in scalars.items()},
        attrs={
            "definition": "crossed triples (s, d1 -> o2) with PMI(d1, o2) below pmi_below / those with enough text",
            "source": "Elhage et al. 2021, skip-trigram bugs; against a text ours",
            "min_expected": min_expected,
            "pmi_below": pmi_below,
            "data_hash": array_hash(tokens.cpu()),
        },
    )


@dataclass(frozen=True)
class SkipTrigrams:
    """The strongest skip-trigrams of every head: ``Dataset(layer, head, rank)``.

    Args:
        k: triples of each head.
    """

    k: int = 20
    name: str = field(default="skip_trigrams", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_count(self.k)

    def spec(self) -> dict[str, Any]:
        return {"k": self.k, "offset": "mean where rotary", "effective": False}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            ``value = qk * ov``, ``qk``, ``ov`` and the ids ``source, destination, out``. Where a head has fewer than ``k``
            positive triples the rest is NaN with id -1, and ``status`` of that head is ``missing`` instead of ``ok``.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, or weights that cannot be represented.
        """
        reader = Reader.of(model)
        layers, heads = reader.cfg.n_layers, reader.cfg.n_heads
        grid, each = ("layer", "head", "rank"), ("layer", "head")
        numbers = {name: np.full((layers, heads, self.k), np.nan) for name in ("value", "qk", "ov")}
        ids = {name: np.full((layers, heads, self.k), -1, dtype=np.int64) for name in ("source", "destination", "out")}
        status = np.full((layers, heads), "ok", dtype=object)
        for at in np.ndindex(layers, heads):
            found, qk, ov = head_triples(reader, at, self.k)
            n = len(found.value)
            numbers["value"][at][:n], numbers["qk"][at][:n], numbers["ov"][at][:n] = found.value.numpy(), qk, ov
            for name in ids:
                ids[name][at][:n] = getattr(found, name).numpy()
            if n < self.k:
                status[at] = "missing"
        return labelled(
            {name: (grid, x) for name, x in (numbers | ids).items()} | {"status": (each, status.astype(str))},
            {"layer": np.arange(layers), "head": np.arange(heads), "rank": np.arange(self.k)},
            measure=self,
            definition="max(z_QK, 0) * max(z_OV, 0) of (source, destination, out); z_QK centred over sources, z_OV over outputs",
            source="Elhage et al. 2021, skip-trigrams; ranking of circuits.weights.skip_trigrams",
            model_hash=model_hash(model),
            units="score * logit, up to norm scales",
        )


class _Places:
    """Where each token stands in a text, by one sort."""

    def __init__(self, text: np.ndarray):
        self.length = text.shape[1]
        self.order = np.argsort(text, axis=None, kind="stable")
        self.sorted = text.ravel()[self.order]

    def of(self, token: int) -> tuple[np.ndarray, np.ndarray]:
        """Examples and positions, in reading order."""
        low, high = np.searchsorted(self.sorted, [token, token + 1])
        return np.divmod(self.order[low:high], self.length)


class _Bigrams:
    """Counts of adjacent pairs in a text."""

    def __init__(self, text: np.ndarray):
        now, following = text[:, :-1].ravel(), text[:, 1:].ravel()
        self.base = int(text.max()) + 1
        self.total = len(now)
        self.pairs = dict(zip(*(x.tolist() for x in np.unique(now * self.base + following, return_counts=True)), strict=True))
        self.now, self.following = np.bincount(now, minlength=self.base), np.bincount(following, minlength=self.base)

    def pmi(self, d: int, o: int, min_expected: float) -> float:
        """``log(n(d -> o) N / (n(d ->) n(-> o)))``; NaN where fewer than ``min_expected`` pairs are expected."""
        if max(d, o) >= self.base:
            return math.nan
        expected = int(self.now[d]) * int(self.following[o]) / self.total
        if expected < min_expected:
            return math.nan
        count = self.pairs.get(d * self.base + o, 0)
        return math.log(count / expected) if count else -math.inf


def _columns(triples: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = ("source", "destination", "out")
    if not all(name in getattr(triples, "data_vars", ()) and triples[name].dims == ("triple",) for name in names):
        raise TypeError(
            f"triples are {type(triples).__name__} without ids along 'triple'; pass what "
            "circuits.weights.skip_trigrams.skip_trigrams gives, a Dataset with source, destination and out"
        )
    source, destination, out = (np.asarray(triples[name].values, dtype=np.int64) for name in names)
    if not len(source):
        raise ValueError("there are no triples; this head has no positive ones, take another head")
    return source, destination, out


def _along(triples: "xr.Dataset", variables: dict[str, np.ndarray], *, chance: float, **attrs: str) -> "xr.Dataset":
    import xarray as xr

    kept = [name for name in triples.data_vars if str(name).startswith(("source", "destination", "out"))]
    data = {name: ("triple", x) for name, x in variables.items()} | {"chance": ((), chance)}
    return triples[kept].assign(xr.Dataset(data)).assign_attrs(attrs)
