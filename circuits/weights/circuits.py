r"""QK and OV circuits of a head: what it attends to and what attending does, as products that are never multiplied out.

With rows as vectors, norm-folded weights (``circuits.weights.folded``) and ``E`` the embeddings that a head reads,

    QK = E W_Q R W_K^T E^T / attn_scale    [query token, key token]       scores before softmax
    OV = E W_V W_O W_U                     [source token, output token]   logits of attending to the source with weight 1

both ``left [rows, r] @ right [r, columns]`` with ``r = d_head``, float64. ``R`` is the identity but for rotary positions,
where it turns a query by ``offset`` = query position - key position, or is the mean of that over 0..n_ctx-1 (a
``d_head x d_head`` matrix either way). Without embeddings both are ``[d_model, d_model]``.

What is left out. *Norm scales*: a score is the entry over the ``sigma`` of query and key, a logit the entry over those of
source and final position; all positive. In layer 0, where a norm reads an embedding and nothing else, each row of ``E`` is
divided by its own ``sigma = sqrt(var + eps)`` (``exact_norm``) and QK entries are exact; later layers, and standard
positions, which share a norm with the token, have no such number. *Biases*: ``b_Q`` adds ``b_Q R k``, which depends on the
key and is ``bias``; ``b_K`` adds ``q R b_K``, which softmax does not see at one offset and is ``row_bias``; ``b_Q R b_K`` is
one number. Value and output biases add the same to every row of OV. *Positions*: shortformer adds ``p W_Q`` and ``p W_K`` to
queries and keys behind the norm, standard adds ``p`` to the stream, so scores are the sum of four blocks, token or position by
token or position, each its own circuit. *Smeared keys* mix a key's column with that of the token before it; *soft caps* act
on the sum. *Earlier layers*: layers above 0 also read what those before them write; with MLPs, ``effective`` reads the token
as ``W_E + MLP0(norm(W_E))``, what the first MLP makes of it without attention.

Source: Elhage et al. 2021, "One-layer attention-only transformers"; rotary, biases and effective embeddings ours.
"""

import copy
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from circuits.data.tokenizer import token_strings
from circuits.models.config import HookedTransformerConfig
from circuits.models.heads import Head
from circuits.models.hooked import HookedTransformer
from circuits.models.layers import rotary_tables
from circuits.models.protocol import check_model, undisturbed
from circuits.models.upstream import FactoredMatrix, HookPoint
from circuits.weights.folded import FoldedWeights, folded

if TYPE_CHECKING:
    import xarray as xr
    from tokenizers import Tokenizer

Side = str
"""What an axis runs over: ``"token"``, ``"position"``, or ``"d_model"`` (without embeddings)."""

BLOCK = 2**22
"""Entries that streaming methods hold at once: 32 MB of float64."""


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """``left @ right``, read like an array and never formed whole.

    Attributes:
        name: e.g. ``"QK of L0H3"``. left, right: the factors.
        dims: names of rows and columns, ``("query", "key")`` or ``("source", "out")``.
        sides: what rows and columns run over: ``"token"``, ``"position"`` or ``"d_model"``.
        bias: what biases add to every entry of a column; no part of the entries. None where there is no such thing.
        row_bias: what biases add to every entry of a row, which softmax over a row does not see; no part of the entries.
        exact: whether entries are divided by the norm scales of layer 0 (or there is no norm in front of the head).
        note: what the entries leave out. tokenizer: reads and labels tokens; None labels them by id.
    """

    name: str
    left: Float[Tensor, "rows r"]
    right: Float[Tensor, "r columns"]
    dims: tuple[str, str]
    sides: tuple[Side, Side]
    bias: Float[Tensor, "columns"] | None = None
    row_bias: Float[Tensor, "rows"] | None = None
    exact: bool = False
    note: str = ""
    tokenizer: "Tokenizer | None" = None

    def __repr__(self) -> str:
        axes = ", ".join(f"{dim} {side} {n}" for dim, side, n in zip(self.dims, self.sides, self.shape, strict=True))
        return f"<Circuit {self.name} [{axes}] rank {self.left.shape[1]} float64: {self.note}>"

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def factored(self) -> FactoredMatrix:
        """The same two factors as transformer-lens' ``FactoredMatrix``."""
        return FactoredMatrix(self.left, self.right)

    @property
    def T(self) -> "Circuit":
        """Rows and columns exchanged; biases with them."""
        return replace(
            self,
            left=self.right.T.contiguous(),
            right=self.left.T.contiguous(),
            dims=(self.dims[1], self.dims[0]),
            sides=(self.sides[1], self.sides[0]),
            bias=self.row_bias,
            row_bias=self.bias,
        )

    def centred(self) -> "Circuit":
        """Without the mean of each row: ``M - mean over columns``; a logit that all outputs share moves no probability."""
        bias = None if self.bias is None else self.bias - self.bias.mean()
        return replace(
            self, right=self.right - self.right.mean(1, keepdim=True), bias=bias, row_bias=None, name=f"centred {self.name}"
        )

    def row(self, token: int | str) -> "xr.DataArray":
        """Entries of one row, by the label of the columns.

        Args:
            token: an id, or a text that is one token (needs ``tokenizer``).

        Raises:
            TypeError, ValueError: not an id of this axis, or not one token.
        """
        return self.block([token], None)[0]

    def column(self, token: int | str) -> "xr.DataArray":
        """Entries of one column, by the label of the rows; arguments as those of ``row``."""
        return self.block(None, [token])[:, 0]

    def block(self, rows: Sequence[int | str] | None, columns: Sequence[int | str] | None) -> "xr.DataArray":
        """Entries of some rows and columns, labelled by id and by token.

        Args:
            rows, columns: ids, or texts that are one token each; None is all of them (one side at most).

        Returns:
            ``DataArray(*dims)`` with ids as coordinates and ``<dim>_label`` beside them.

        Raises:
            TypeError, ValueError: not ids of this axis, not one token each, or both sides None.
        """
        if rows is None and columns is None:
            raise ValueError(
                f"block(None, None) would form all {self.shape[0]} x {self.shape[1]} entries; name rows or columns, "
                "or use .top(k)"
            )
        at_rows, at_columns = self._ids(0, rows), self._ids(1, columns)
        left = self.left if rows is None else self.left[at_rows]
        right = self.right if columns is None else self.right[:, at_columns]
        return self._labelled((left @ right).numpy(), at_rows.numpy(), at_columns.numpy())

    def diagonal(self) -> "xr.DataArray":
        """Entries ``M[t, t]`` of every token: attending to itself, or copying itself.

        Raises:
            ValueError: rows and columns are not the same tokens.
        """
        self._check_square("a diagonal")
        values = torch.einsum("ir,ri->i", self.left, self.right)
        return self._along_rows(values)

    def rank_of_diagonal(self) -> "xr.DataArray":
        """How many entries of its row are larger than ``M[t, t]``: 0 where it is the largest; chance ``(columns - 1) / 2``.

        Entries equal to it are not larger, so a head of zeros has rank 0 everywhere. Raises as ``diagonal``.
        """
        self._check_square("a rank of the diagonal")
        parts = []
        for start, entries in self._row_blocks():
            own = entries.diagonal(start)[:, None]
            parts.append((entries > own).sum(1))
        return self._along_rows(torch.cat(parts))

    def top(self, k: int = 20) -> "xr.Dataset":
        """The ``k`` largest entries, streamed over blocks of rows; of equal entries the first in reading order.

        Returns:
            ``Dataset(rank)``: ``value``, the ids ``<row>`` and ``<column>`` by the names of ``dims``, and their ``_label``.

        Raises:
            ValueError: ``k`` is not positive.
        """
        import xarray as xr

        if k < 1:
            raise ValueError(f"k is {k}; ask for at least one entry, e.g. top(20)")
        values, at = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
        for start, entries in self._row_blocks():
            flat = entries.flatten()
            # Once k are held only a larger entry can come in: equal ones stand behind those of earlier rows.
            found = (flat > values[-1]).nonzero()[:, 0] if len(values) == k else torch.arange(len(flat))
            found = found[first_largest(flat[found], k)]
            values, at = torch.cat((values, flat[found])), torch.cat((at, found + start * self.shape[1]))
            keep = first_largest(values, k)
            values, at = values[keep], at[keep]
        rows, columns = at // self.shape[1], at % self.shape[1]
        data: dict[str, Any] = {"value": ("rank", values.numpy())}
        for axis, ids in enumerate((rows.numpy(), columns.numpy())):
            data[self.dims[axis]] = ("rank", ids)
            data[f"{self.dims[axis]}_label"] = ("rank", self._labels(axis, ids))
        return xr.Dataset(data, coords={"rank": np.arange(len(values))}, attrs={"circuit": self.name, "note": self.note})

    def norm(self) -> float:
        """Frobenius norm through the two ``r x r`` Grams: ``||L R||^2 = sum (L^T L) * (R R^T)``."""
        return float(((self.left.T @ self.left) * (self.right @ self.right.T)).sum().clamp(min=0).sqrt())

    def eigenvalues(self) -> Complex[Tensor, "r"]:
        """The eigenvalues that can differ from zero: those of ``right @ left``, ``r x r``, since ``LR`` and ``RL`` share them.

        Raises:
            ValueError: rows and columns are not the same space.
        """
        self._check_square("eigenvalues")
        return torch.linalg.eigvals(self.right @ self.left)

    def _row_blocks(self) -> Iterator[tuple[int, Float[Tensor, "block columns"]]]:
        size = max(1, BLOCK // self.shape[1])
        for start in range(0, self.shape[0], size):
            yield start, self.left[start : start + size] @ self.right

    def _check_square(self, what: str) -> None:
        if self.sides[0] != self.sides[1] or self.shape[0] != self.shape[1]:
            raise ValueError(
                f"{self.name} has {self.shape[0]} rows ({self.sides[0]}) and {self.shape[1]} columns ({self.sides[1]}); {what} "
                "needs the same tokens on both sides: use rows='token', columns='token' and one vocabulary"
            )

    def _along_rows(self, values: Tensor) -> "xr.DataArray":
        import xarray as xr

        ids = np.arange(self.shape[0])
        dim = self.dims[0]
        coords = {dim: ids, f"{dim}_label": (dim, self._labels(0, ids))}
        return xr.DataArray(values.numpy(), dims=(dim,), coords=coords, name=self.name)

    def _labelled(self, values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> "xr.DataArray":
        import xarray as xr

        coords: dict[str, Any] = {}
        for axis, ids in enumerate((rows, columns)):
            coords[self.dims[axis]] = ids
            coords[f"{self.dims[axis]}_label"] = (self.dims[axis], self._labels(axis, ids))
        return xr.DataArray(values, dims=self.dims, coords=coords, name=self.name, attrs={"note": self.note})

    def _labels(self, axis: int, ids: np.ndarray) -> list[str]:
        return token_strings(self.tokenizer if self.sides[axis] == "token" else None, ids.tolist())

    def _ids(self, axis: int, given: Sequence[int | str] | None) -> Int[Tensor, "n"]:
        size = self.shape[axis]
        if given is None:
            return torch.arange(size)
        if isinstance(given, str):
            raise TypeError(f"got the text {given!r}, need a list of ids or tokens: pass [{given!r}]")
        return torch.tensor([token_id(x, size, self.sides[axis], self.tokenizer) for x in given], dtype=torch.int64)


def first_largest(values: Float[Tensor, "n"], k: int) -> Int[Tensor, "at_most_k"]:
    """Places of the ``k`` largest values, largest first; of equal ones those that come first."""
    if len(values) > k:
        least = values.topk(k).values[-1]
        above, equal = (values > least).nonzero()[:, 0], (values == least).nonzero()[:, 0]
        places = torch.cat((above, equal[: k - len(above)])).sort().values
    else:
        places = torch.arange(len(values))
    return places[values[places].sort(descending=True, stable=True).indices]


def token_id(given: int | str, size: int, side: Side = "token", tokenizer: "Tokenizer | None" = None) -> int:
    """The place on an axis that an id or a one-token text names.

    Raises:
        TypeError: neither an id nor a text. ValueError: outside the axis, a text without a tokenizer, or not one token.
    """
    if isinstance(given, str):
        if side != "token":
            raise TypeError(f"got the text {given!r} for an axis of {side}s; give a number 0..{size - 1}")
        if tokenizer is None:
            raise ValueError(f"got the text {given!r} and no tokenizer; pass tokenizer=run.tokenizer, or a token id")
        ids = tokenizer.encode(given, add_special_tokens=False).ids
        if len(ids) != 1:
            parts = ", ".join(repr(part) for part in token_strings(tokenizer, ids))
            raise ValueError(
                f"{given!r} is {len(ids)} tokens ({parts}), need one: a leading space may matter; or give a token id"
            )
        given = ids[0]
    try:
        place = operator.index(given)
    except TypeError:
        raise TypeError(f"got {given!r} for an axis of {side}s; give an id 0..{size - 1} or the text of one token") from None
    if not 0 <= place < size:
        raise ValueError(f"there is no {side} {place}; this axis has 0..{size - 1}")
    return place


@dataclass(frozen=True, eq=False)
class Reader:
    """A model with its weights folded once, from which circuits of many heads are taken; see ``qk_circuit``, ``ov_circuit``."""

    model: HookedTransformer
    weights: FoldedWeights
    tokenizer: "Tokenizer | None" = None

    @classmethod
    def of(cls, model: Any, tokenizer: "Tokenizer | None" = None) -> "Reader":
        """Fold a model's weights. Raises as ``circuits.weights.folded.folded``."""
        check_model(model)
        if not isinstance(model, HookedTransformer):
            from circuits.models.convert import from_transformer_lens

            model = from_transformer_lens(model)
        weights = folded(model)
        # Of a float64 model the embeddings are its own parameters; products with those would carry a graph.
        positions = None if weights.W_pos is None else weights.W_pos.detach()
        return cls(model, replace(weights, W_E=weights.W_E.detach(), W_pos=positions), tokenizer)

    @property
    def cfg(self) -> HookedTransformerConfig:
        return self.model.cfg

    def qk(
        self,
        head: Any,
        *,
        embed: bool = True,
        offset: int | str | None = None,
        rows: Side = "token",
        columns: Side = "token",
        exact_norm: bool = True,
        effective: bool = False,
    ) -> Circuit:
        """As ``qk_circuit``, of this model."""
        at, w, cfg = Head.parse(head, self.cfg), self.weights, self.cfg
        self._check_sides(at, embed, (rows, columns), effective, reads="queries and keys")
        turn = self._rotation(offset)
        scale = (cfg.attn_scale if cfg.use_attn_scale else 1.0) * (at.layer + 1 if cfg.scale_attn_by_inverse_layer_idx else 1)
        if embed:
            query = self._read(at, w.W_Q, w.pos_Q, rows, exact_norm, effective)
            key = self._read(at, w.W_K, w.pos_K, columns, exact_norm, effective)
        else:
            query, key = w.W_Q[at.layer, at.head], w.W_K[at.layer, at.head]
            rows = columns = "d_model"
        left = query if turn is None else query @ turn
        b_Q = w.b_Q[at.layer, at.head] if turn is None else w.b_Q[at.layer, at.head] @ turn
        exact = self._exact(at, exact_norm) if embed else cfg.normalization_type is None
        left_out = "scores before softmax" + ("" if exact else ", up to the norm scales of query and key") + "; biases apart"
        if cfg.smeared_keys:
            left_out += "; keys before smearing"
        if cfg.attn_scores_soft_cap > 0:
            left_out += "; before the soft cap"
        if turn is not None:
            left_out += f"; at offset {offset}" if offset != "mean" else f"; mean of offsets 0..{cfg.n_ctx - 1}"
        return Circuit(
            name=f"QK of {at}",
            left=left / scale,
            right=key.T.contiguous(),
            dims=("query", "key"),
            sides=(rows, columns),
            bias=key @ b_Q / scale,
            row_bias=left @ w.b_K[at.layer, at.head] / scale,
            exact=exact,
            note=left_out,
            tokenizer=self.tokenizer,
        )

    def ov(
        self, head: Any, *, embed: bool = True, rows: Side = "token", exact_norm: bool = True, effective: bool = False
    ) -> Circuit:
        """As ``ov_circuit``, of this model."""
        at, w, cfg = Head.parse(head, self.cfg), self.weights, self.cfg
        self._check_sides(at, embed, (rows,), effective, reads="values")
        if rows == "position" and cfg.positional_embedding_type == "shortformer":
            raise ValueError("shortformer positions reach queries and keys and no value; OV has rows='token' only")
        exact = self._exact(at, exact_norm) if embed else cfg.normalization_type is None
        scales = [s for s, out in (("of the source", exact), ("of the final norm", cfg.normalization_type is None)) if not out]
        note = "logits" if embed else "what is written to the stream"
        scales = scales if embed else scales[:1]
        note += (
            f", up to the scale{'s' * (len(scales) > 1)} {' and '.join(scales)}" if scales else ""
        ) + "; value biases left out"
        if cfg.output_logits_soft_cap > 0:
            note += "; before the soft cap"
        W_O = w.W_O[at.layer, at.head]
        return Circuit(
            name=f"OV of {at}",
            left=self._read(at, w.W_V, w.W_V, rows, exact_norm, effective) if embed else w.W_V[at.layer, at.head],
            right=W_O @ w.W_U if embed else W_O,
            dims=("source", "out"),
            sides=(rows, "token") if embed else ("d_model", "d_model"),
            exact=exact,
            note=note,
            tokenizer=self.tokenizer,
        )

    def _check_sides(self, at: Head, embed: bool, sides: tuple[Side, ...], effective: bool, *, reads: str) -> None:
        positional = self.cfg.positional_embedding_type
        for side in sides:
            if side not in ("token", "position"):
                raise ValueError(f"an axis of {side!r} is asked for; rows and columns are 'token' or 'position'")
            if side == "position" and positional not in ("standard", "shortformer"):
                raise ValueError(f"{reads} of a model with {positional!r} positions have no position part; use 'token'")
        if not embed and (effective or "position" in sides):
            raise ValueError("embed=False reads no embedding; drop effective and rows or columns = 'position', or use embed=True")
        if effective and (self.cfg.attn_only or at.layer == 0):
            why = "the model has no MLP" if self.cfg.attn_only else f"{at} reads the stream before the first MLP"
            raise ValueError(f"effective=True adds what MLP 0 makes of a token, but {why}; use effective=False")

    def _exact(self, at: Head, exact_norm: bool) -> bool:
        """Whether a norm that reads embeddings alone can be applied, or there is none."""
        if self.cfg.normalization_type is None:
            return True
        return exact_norm and at.layer == 0 and self.cfg.positional_embedding_type != "standard"

    def _read(self, at: Head, token: Tensor, position: Tensor, side: Side, exact_norm: bool, effective: bool) -> Tensor:
        """What a head reads of every token or position, ``[rows, d_head]``."""
        w = self.weights
        if side == "position":
            assert w.W_pos is not None
            return w.W_pos @ position[at.layer, at.head]
        embeddings = self._effective_embedding() if effective else w.W_E
        read = embeddings @ token[at.layer, at.head]
        if self.cfg.normalization_type is None or not self._exact(at, exact_norm):
            return read
        return read / norm_scale(w.W_E, centred=self.cfg.normalization_type.startswith("LN"), eps=self.cfg.eps)

    def _effective_embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """``W_E + MLP0(norm(W_E))``, on a float64 copy of the MLP that no hook of the model listens to."""
        block = self.model.blocks[0]
        with undisturbed(self.model):
            norm, mlp = copy.deepcopy(block.ln2).double(), copy.deepcopy(block.mlp).double()
            for module in (*norm.modules(), *mlp.modules()):
                if isinstance(module, HookPoint):
                    module.remove_hooks("both", including_permanent=True)
            norm, mlp = norm.cpu(), mlp.cpu()
            parts = [part + mlp(norm(part[None]))[0] for part in self.weights.W_E.split(2048)]
        return torch.cat(parts)

    def _rotation(self, offset: int | str | None) -> Float[Tensor, "d_head d_head"] | None:
        """``R`` of the module's docstring; None where positions do not turn anything."""
        cfg = self.cfg
        if cfg.positional_embedding_type != "rotary":
            if offset is not None:
                raise ValueError(
                    f"offset = {offset!r} was given, but {cfg.positional_embedding_type!r} positions do not make scores depend "
                    "on the distance; drop it"
                )
            return None
        if offset is None:
            raise ValueError(
                "rotary positions make scores depend on the distance; pass offset=1 (query position - key position), "
                "or offset='mean' for the average over all distances"
            )
        if offset == "mean":
            return rotations(cfg, range(cfg.n_ctx)).mean(0)
        if isinstance(offset, str | float) or not 0 <= offset < cfg.n_ctx:
            raise ValueError(f"offset is {offset!r}; it must be 'mean' or a distance 0..{cfg.n_ctx - 1} back from the query")
        return rotations(cfg, [offset])[0]


def norm_scale(x: Float[Tensor, "n d_model"], *, centred: bool, eps: float) -> Float[Tensor, "n 1"]:
    """``sigma`` of a norm at each row: ``sqrt(var + eps)``, or ``sqrt(mean square + eps)`` where it does not centre."""
    if centred:
        square = x.var(1, correction=0, keepdim=True)
    else:
        square = torch.linalg.vector_norm(x, dim=1, keepdim=True) ** 2 / x.shape[1]
    return (square + eps).sqrt()


def rotations(cfg: HookedTransformerConfig, offsets: Sequence[int]) -> Float[Tensor, "offset d_head d_head"]:
    """Rotary matrices: ``q R_i (k R_j)^T = q R_{i-j} k^T``, since each ``R`` turns planes and ``R_j^T = R_{-j}``.

    The angles are the model's own (``circuits.models.layers.rotary_tables``), in float64; dimensions beyond
    ``rotary_dim`` stay.
    """
    turned = cfg.rotary_dim
    assert turned is not None
    sin, cos = rotary_tables(cfg.model_copy(update={"dtype": "float64"}))
    eye = torch.eye(turned, dtype=torch.float64)
    if cfg.rotary_adjacent_pairs:
        quarter = torch.stack((-eye[:, 1::2], eye[:, ::2]), dim=-1).flatten(-2)
    else:
        first, second = eye.chunk(2, dim=-1)
        quarter = torch.cat((-second, first), dim=-1)
    at = list(offsets)
    out = torch.eye(cfg.d_head, dtype=torch.float64).repeat(len(at), 1, 1)
    out[:, :turned, :turned] = eye * cos[at][:, None] + quarter * sin[at][:, None]
    return out


def qk_circuit(
    model: Any,
    head: Any,
    *,
    tokenizer: "Tokenizer | None" = None,
    embed: bool = True,
    offset: int | str | None = None,
    rows: Side = "token",
    columns: Side = "token",
    exact_norm: bool = True,
    effective: bool = False,
) -> Circuit:
    """Attention scores of a head between query tokens (rows) and key tokens (columns), before softmax.

    ``E W_Q R W_K^T E^T / attn_scale``; see the module's docstring for what entries leave out.

    Args:
        model: a HookedTransformer, or a transformer-lens model that converts to one; left as found.
        head: ``"L0H3"`` or ``(0, 3)``. tokenizer: labels tokens and reads texts.
        embed: token by token; False gives ``[d_model, d_model]``.
        offset: for rotary positions, query position - key position, or ``"mean"`` of all; None otherwise.
        rows, columns: ``"token"``, or ``"position"`` (shortformer, standard) for the part of a score that comes from positions.
        exact_norm: divide by the norm scale of each token, where that is a number: layer 0 without standard positions.
        effective: read tokens through the first MLP (layers above 0).

    Returns:
        A ``Circuit(query, key)`` in score units, 0 for no preference; ``bias`` is ``b_Q``'s part of each key, ``row_bias``
        that of ``b_K``.

    Raises:
        TypeError: not a hooked model. ValueError: no such head, NaN weights, an offset missing or out of place, no such block.

    Source: Elhage et al. 2021, "query-key circuit".
    """
    reader = Reader.of(model, tokenizer)
    return reader.qk(head, embed=embed, offset=offset, rows=rows, columns=columns, exact_norm=exact_norm, effective=effective)


def ov_circuit(
    model: Any,
    head: Any,
    *,
    tokenizer: "Tokenizer | None" = None,
    embed: bool = True,
    rows: Side = "token",
    exact_norm: bool = True,
    effective: bool = False,
) -> Circuit:
    """What attending to a source token (rows) adds to the logit of every output token (columns).

    ``E W_V W_O W_U``; the mean over outputs, which moves no probability, is in the entries: ``.centred()`` takes it out.

    Args:
        model, head, tokenizer, exact_norm, effective: as of ``qk_circuit``.
        embed: token by token; False gives ``[d_model, d_model]``, ``W_O`` as it is.
        rows: ``"token"``, or ``"position"`` for standard positions, which values read too.

    Returns:
        A ``Circuit(source, out)`` in logits up to the positive scale of the final norm; 0 for no effect.

    Raises:
        TypeError: not a hooked model. ValueError: no such head, NaN weights, no such block.

    Source: Elhage et al. 2021, "output-value circuit".
    """
    return Reader.of(model, tokenizer).ov(head, embed=embed, rows=rows, exact_norm=exact_norm, effective=effective)
