"""Skip-trigrams ``[source ... destination -> out]``: what one head says about pairs of tokens, ranked.

For a head with circuits ``QK[d, s]`` (score of destination ``d`` as query on source ``s`` as key) and ``OV[s, o]``,

    z_QK(s, d) = QK[d, s] - mean over s' of QK[d, s']      how much d prefers s to the average source
    z_OV(s, o) = OV[s, o] - mean over o' of OV[s, o']      how much s raises o above the average output
    value(s, d, o) = max(z_QK, 0) * max(z_OV, 0)

Means are over the whole vocabulary, with equal weights. Query biases add the same to every destination and are left out;
norm scales as in ``circuits.weights.circuits``: in layer 0 they are exact for the source and query (no standard positions),
and later they are left out, so that tokens with large embeddings come first. Products of two preferences are no probability:
``circuits.weights.lift`` asks held-out text.

Source: Elhage et al. 2021, "Skip-trigrams"; ranking by the product ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.data.tokenizer import token_strings
from circuits.models.heads import Head
from circuits.models.protocol import model_hash
from circuits.results import labelled
from circuits.weights.circuits import Reader
from circuits.weights.reading import first_largest, token_id

if TYPE_CHECKING:
    import xarray as xr
    from tokenizers import Tokenizer

SOURCES = 1024
COLUMNS = 4096
"""Sources that are bounded together, and how many products of each are in memory at once (16 MB: a processor's cache)."""
TOGETHER = 16
"""Sources that are computed together: so many times all destinations and outputs are in memory."""


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

    Exact, in memory of ``2 (r + TOGETHER)`` numbers a token. Fewer than ``k`` come back where fewer are positive.

    Two facts make it fast. (1) For one source, sort its positive factors ``f_1 >= f_2 >= ...`` over destinations and
    ``g_1 >= g_2 >= ...`` over outputs. ``f_i g_j`` is at most each of the ``i j`` products ``f_a g_b`` with ``a <= i`` and
    ``b <= j``, so a triple with ``i j > k`` has ``k`` others at least as large before it and is never needed. The top ``k``
    are found among the ``k`` best destinations and ``k`` best outputs, in the ``k (1 + log k)`` pairs with ``i j <= k``.
    (2) No triple of a source beats ``f_1 g_1``. With ``t`` the ``k``-th best value so far, a source with ``f_1 g_1 <= t`` is
    done; ``f_1`` and ``g_1`` are bounded by Cauchy-Schwarz, in whose order blocks of sources come, so that the first block below
    ``t`` ends the search, and then by a float32 product plus its rounding error, in whose order the sources of a block come.
    Only survivors are computed in float64.

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
    queries32, outputs32 = queries.float(), outputs.float()
    best = Triples(torch.empty(0, dtype=torch.float64), *(torch.empty(0, dtype=torch.int64) for _ in range(3)))
    for block in order.split(SOURCES):
        if float(bound[block[0]]) <= _least(best, k):
            break
        f_1 = _largest(keys[block].float(), queries32).double() + slack * key_norms[block] * far[0]
        g_1 = _largest(values[block].float(), outputs32).double() + slack * value_norms[block] * far[1]
        ceiling = torch.where((f_1 > 0) & (g_1 > 0), f_1 * g_1, 0.0)
        for left in ceiling.argsort(descending=True, stable=True).split(TOGETHER):
            left = left[ceiling[left] > _least(best, k)]
            attends, writes = (keys[block[left]] @ queries.T).numpy(), (values[block[left]] @ outputs.T).numpy()
            for source, most, f, g in zip(block[left].tolist(), ceiling[left].tolist(), attends, writes, strict=True):
                if most > _least(best, k):
                    best = _merge(best, source, f, g, k)
    return best


def _least(best: Triples, k: int) -> float:
    """What a triple must exceed to come in."""
    return float(best.value[-1]) if len(best.value) == k else 0.0


def _largest(rows: Float[Tensor, "n r"], columns: Float[Tensor, "m r"]) -> Float[Tensor, "n"]:
    """The largest product of each row with any column."""
    # numpy takes the maxima in this thread: short parallel steps between products wait for each other on a busy machine.
    return torch.from_numpy(np.stack([(rows @ part.T).numpy().max(1) for part in columns.split(COLUMNS)]).max(0))


def _merge(best: Triples, source: int, f: Float[np.ndarray, "destination"], g: Float[np.ndarray, "out"], k: int) -> Triples:
    """The ``k`` best of those held and those of one source."""
    least = _least(best, k)
    # Rounding keeps order (f <= f' gives fl(f g) <= fl(f' g)), so what is dropped here could not have come in.
    destinations, outs = (np.flatnonzero((x > 0) & (x * y.max() > least)) for x, y in ((f, g), (g, f)))
    if not (len(destinations) and len(outs)):
        return best
    destinations, outs = (at[first_largest(torch.from_numpy(x[at]), k).numpy()] for at, x in ((destinations, f), (outs, g)))
    # Pairs (i, j), counted from 1, with i j <= k.
    widths = (k // np.arange(1, len(destinations) + 1)).clip(max=len(outs))
    i = np.arange(len(destinations)).repeat(widths)
    j = np.arange(len(i)) - (widths.cumsum() - widths).repeat(widths)
    value = f[destinations[i]] * g[outs[j]]
    new = np.flatnonzero(value > least)
    new = new[first_largest(torch.from_numpy(value[new]), k).numpy()]
    found = value[new], np.full(len(new), source), destinations[i[new]], outs[j[new]]
    held = best.value, best.source, best.destination, best.out
    columns = [np.concatenate((old.numpy(), x)) for old, x in zip(held, found, strict=True)]
    ranks = np.lexsort((columns[3], columns[2], columns[1], -columns[0]))[:k]
    return Triples(*(torch.from_numpy(column[ranks]) for column in columns))


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
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k is {k!r}; ask for a whole number, at least one triple, e.g. k=100")


@dataclass(frozen=True)
class SkipTrigrams:
    """The strongest skip-trigrams of every head: ``Dataset(layer, head, rank)``.

    Args:
        k: triples of each head.
    """

    k: int = 20
    name: str = field(default="skip_trigrams", init=False)
    version: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        check_count(self.k)

    def spec(self) -> dict[str, Any]:
        return {"k": self.k, "offset": "mean where rotary", "effective": False}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            ``value = qk * ov``, ``qk``, ``ov`` and the ids ``source, destination, out``. Where a head has fewer than ``k``
            positive triples the rest is NaN with id -1, and ``state`` of that head is ``missing`` instead of ``ok``.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, or weights that cannot be represented.
        """
        reader = Reader.of(model)
        layers, heads = reader.cfg.n_layers, reader.cfg.n_heads
        grid, each = ("layer", "head", "rank"), ("layer", "head")
        numbers = {name: np.full((layers, heads, self.k), np.nan) for name in ("value", "qk", "ov")}
        ids = {name: np.full((layers, heads, self.k), -1, dtype=np.int64) for name in ("source", "destination", "out")}
        state = np.full((layers, heads), "ok", dtype=object)
        for at in np.ndindex(layers, heads):
            found, qk, ov = head_triples(reader, at, self.k)
            n = len(found.value)
            numbers["value"][at][:n], numbers["qk"][at][:n], numbers["ov"][at][:n] = found.value.numpy(), qk, ov
            for name in ids:
                ids[name][at][:n] = getattr(found, name).numpy()
            if n < self.k:
                state[at] = "missing"
        return labelled(
            {name: (grid, x) for name, x in (numbers | ids).items()} | {"state": (each, state.astype(str))},
            {"layer": np.arange(layers), "head": np.arange(heads), "rank": np.arange(self.k)},
            measure=self,
            definition="max(z_QK, 0) * max(z_OV, 0) of (source, destination, out); z_QK centred over sources, z_OV over outputs",
            source="Elhage et al. 2021, skip-trigrams; ranking of circuits.weights.skip_trigrams",
            model_hash=model_hash(model),
            units="score * logit, up to norm scales",
        )
