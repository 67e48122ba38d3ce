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
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.models.config import HookedTransformerConfig
from circuits.models.heads import Head
from circuits.models.hooked import HookedTransformer
from circuits.models.own import own
from circuits.models.protocol import undisturbed
from circuits.models.upstream import HookPoint
from circuits.weights.folded import TOKEN_BLOCK, FoldedWeights, folded
from circuits.weights.reading import Axis, Circuit
from circuits.weights.rotary import rotations

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class Reader:
    """A model with its weights folded once, from which circuits of many heads are taken; see ``qk_circuit``, ``ov_circuit``."""

    model: HookedTransformer
    weights: FoldedWeights
    tokenizer: "Tokenizer | None" = None

    @classmethod
    def of(cls, model: Any, tokenizer: "Tokenizer | None" = None) -> "Reader":
        """Fold a model's weights. Raises as ``circuits.weights.folded.folded``."""
        model = own(model)
        return cls(model, folded(model), tokenizer)

    @property
    def cfg(self) -> HookedTransformerConfig:
        return self.model.cfg

    def qk(
        self,
        head: Any,
        *,
        embed: bool = True,
        offset: int | str | None = None,
        rows: Axis = "token",
        columns: Axis = "token",
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
        self, head: Any, *, embed: bool = True, rows: Axis = "token", exact_norm: bool = True, effective: bool = False
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
            right=w.logits(W_O) if embed else W_O,
            dims=("source", "out"),
            sides=(rows, "token") if embed else ("d_model", "d_model"),
            exact=exact,
            note=note,
            tokenizer=self.tokenizer,
        )

    def _check_sides(self, at: Head, embed: bool, sides: tuple[Axis, ...], effective: bool, *, reads: str) -> None:
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

    def _read(self, at: Head, token: Tensor, position: Tensor, side: Axis, exact_norm: bool, effective: bool) -> Tensor:
        """What a head reads of every token or position, ``[rows, d_head]``."""
        w = self.weights
        if side == "position":
            assert w.W_pos is not None
            return w.W_pos @ position[at.layer, at.head]
        reader = token[at.layer, at.head]
        read = self._effective_embedding() @ reader if effective else w.of_tokens(reader)
        if self.cfg.normalization_type is None or not self._exact(at, exact_norm):
            return read
        return read / self._token_scale

    @cached_property
    def _token_scale(self) -> Float[Tensor, "d_vocab 1"]:
        """``sigma`` of a norm that reads an embedding and nothing else."""
        return norm_scale(self.weights.W_E, centred=str(self.cfg.normalization_type).startswith("LN"), eps=self.cfg.eps)

    def _effective_embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """``W_E + MLP0(norm(W_E))``, on a float64 copy of the MLP that no hook of the model listens to."""
        block = self.model.blocks[0]
        with undisturbed(self.model):
            norm, mlp = copy.deepcopy(block.ln2).double(), copy.deepcopy(block.mlp).double()
            for module in (*norm.modules(), *mlp.modules()):
                if isinstance(module, HookPoint):
                    module.remove_hooks("both", including_permanent=True)
            norm, mlp = norm.cpu(), mlp.cpu()
            blocks = (rows.double() for rows in self.weights.W_E.split(TOKEN_BLOCK))
            return torch.cat([rows + mlp(norm(rows[None]))[0] for rows in blocks])

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
    """``sigma`` of a norm at each row: ``sqrt(var + eps)``, or ``sqrt(mean square + eps)`` where it does not centre.

    In float64, by blocks of rows: ``x`` may be an embedding of another precision.
    """
    squares = []
    for rows in x.split(TOKEN_BLOCK):
        rows = rows.double()
        rows = rows - rows.mean(1, keepdim=True) if centred else rows
        squares.append(rows.square().mean(1, keepdim=True))
    return (torch.cat(squares) + eps).sqrt()


def qk_circuit(
    model: Any,
    head: Any,
    *,
    tokenizer: "Tokenizer | None" = None,
    embed: bool = True,
    offset: int | str | None = None,
    rows: Axis = "token",
    columns: Axis = "token",
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
    rows: Axis = "token",
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
