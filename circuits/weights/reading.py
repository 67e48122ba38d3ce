"""A product of two thin factors, read like an array of tokens by tokens that is never formed whole.

Rows and columns are looked up by id or by the text of one token; the largest entries and ranks come from blocks of rows,
norms and eigenvalues from the factors alone.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from circuits.data.tokenizer import token_strings
from circuits.models.upstream import FactoredMatrix
from circuits.weights.factored import product_eigenvalues, product_norm

if TYPE_CHECKING:
    import xarray as xr
    from tokenizers import Tokenizer

Axis = str
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
    sides: tuple[Axis, Axis]
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

        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k is {k!r}; ask for a whole number, at least one entry, e.g. top(20)")
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
        """Frobenius norm, from the factors."""
        return float(product_norm(self.left, self.right))

    def eigenvalues(self) -> Complex[Tensor, "r"]:
        """The eigenvalues that can differ from zero, from the factors (``circuits.weights.factored``).

        Raises:
            ValueError: rows and columns are not the same space.
        """
        self._check_square("eigenvalues")
        return product_eigenvalues(self.left, self.right)

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


def token_id(given: int | str, size: int, side: Axis = "token", tokenizer: "Tokenizer | None" = None) -> int:
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
