"""What a source's write is replaced with: ``alternative [source, batch, pos, d_model]``, sources in the order of the wiring.

    zero        nothing
    mean        its mean over the examples of a reference, position by position (``over="examples"``), or over examples and
                positions (``over="positions"``). Where the reference is the tokens themselves each example is left out of its
                own mean, so that nothing of its own is left
    resample    its write in another example, same position; who gives to whom is one seeded cycle
    patch       its write in the run on other tokens, example by example (a counterfactual)

Examples of one layout, such as repeats at one distance, leave that layout in their means and in each other's writes: queries and
keys that are replaced together still meet at the right place. Give a ``reference`` or other tokens without it.

What a source writes: the token's embedding; the position's; a head's ``z W_O`` without ``b_O``; an MLP's output with its bias.
Positions are the same in every example: zero ablates them, and so does ``over="positions"``; other means, resampling and patching
change nothing about them, to the bit.
"""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.hooked import HookedTransformer
from circuits.models.interventions import Ablation, donors
from circuits.models.protocol import check_tokens, device_of
from circuits.models.stacked import Clean, clean_run
from circuits.paths.wiring import EMBED, POS, Wiring, mlp_name

Over = Literal["examples", "positions"]


def writes(model: HookedTransformer, clean: Clean) -> Float[Tensor, "source batch pos d_model"]:
    """What every source writes in a clean run."""
    cfg, tokens = model.cfg, clean.tokens
    found = {EMBED: model.embed(tokens)}
    if cfg.positional_embedding_type in ("standard", "shortformer"):
        found[POS] = model.pos_embed(tokens)
    for layer, block in enumerate(model.blocks):
        of_heads = torch.einsum("bphd,hdm->hbpm", clean.z[layer], block.attn.W_O)
        found |= {f"L{layer}H{head}": written for head, written in enumerate(of_heads)}
        if not cfg.attn_only:
            found[mlp_name(layer)] = clean.after[layer] - clean.resid_pre[layer] - of_heads.sum(0) - block.attn.b_O
    return torch.stack([found[name] for name in Wiring.of(model).sources])


class Alternatives:
    """Makes the alternatives of any part of the tokens.

    Args:
        model: from ``bare``. tokens: ``[example, pos]``, all of them. ablation: its kind and seed are used.
        over: of the mean. reference: of the mean, None for the tokens themselves. corrupt: the other tokens of a patch, which
            then stand in for any ablation. batch: examples of the mean that are run at a time.

    Raises:
        TypeError, ValueError: what is given does not fit together.
    """

    def __init__(
        self,
        model: HookedTransformer,
        tokens: Int[Tensor, "example pos"],
        ablation: Ablation,
        *,
        over: Over = "examples",
        reference: Int[Tensor, "reference pos"] | None = None,
        corrupt: Int[Tensor, "example pos"] | None = None,
        batch: int = 32,
    ):
        self.model, self.tokens, self.kind, self.over, self.batch = model, tokens, ablation.kind, over, batch
        self.reference, self.corrupt = reference, corrupt
        self._check()
        patched = corrupt is not None
        self.given = donors(len(tokens), ablation.seed) if self.kind == "resample" and not patched else None
        self.mean = self._mean_write() if self.kind == "mean" and not patched else None

    def _check(self) -> None:
        if self.over not in get_args(Over):
            raise ValueError(f"over={self.over!r}: need {' or '.join(map(repr, get_args(Over)))}")
        if self.corrupt is not None:
            if self.reference is not None:
                raise ValueError("a reference is for mean ablation, and this patches from other tokens: leave it out")
            return
        if self.over != "examples" and self.kind != "mean":
            raise ValueError(f"over={self.over!r} is of mean ablation, and this is {self.kind}: leave it out")
        fits: dict[str, Any] = {"d_vocab": self.model.cfg.d_vocab, "n_ctx": self.model.cfg.n_ctx}
        if self.reference is not None:
            if self.kind != "mean":
                raise ValueError(f"a reference is for mean ablation, and this is {self.kind}: leave it out")
            check_tokens(self.reference, **fits, needed_by="mean ablation")
            if self.reference.shape[1] < self.tokens.shape[1]:
                raise ValueError(
                    f"the reference has {self.reference.shape[1]} positions and the tokens {self.tokens.shape[1]}: "
                    "pass a longer one"
                )
        elif self.kind == "mean" and len(self.tokens) < 2:
            raise ValueError(
                "mean ablation takes the mean over other examples and one was given: pass two or more, or a reference"
            )

    def _run(self, tokens: Tensor) -> Float[Tensor, "source batch pos d_model"]:
        tokens = tokens.to(device_of(self.model)).long()
        return writes(self.model, clean_run(self.model, tokens, "recomputed", "live"))

    def _mean_write(self) -> Float[Tensor, "source pos d_model"]:
        known = self.tokens if self.reference is None else self.reference[:, : self.tokens.shape[1]]
        total: Any = 0.0
        for part in known.split(self.batch):
            total = total + self._run(part).sum(1)
        mean = total / len(known)
        return mean.mean(1, keepdim=True).expand_as(mean) if self.over == "positions" else mean

    def of(
        self, rows: Int[Tensor, "batch"], written: Float[Tensor, "source batch pos d_model"]
    ) -> Float[Tensor, "source batch pos d_model"]:
        """The alternatives of these examples, whose own writes are given."""
        found = self._of(rows, written)
        at = Wiring.of(self.model).source_index.get(POS)
        shared = (self.kind != "zero" and self.over == "examples") or self.corrupt is not None
        if at is not None and shared:  # a mean of equal things is that thing, but for rounding
            found = found.clone()
            found[at] = written[at]
        return found

    def _of(
        self, rows: Int[Tensor, "batch"], written: Float[Tensor, "source batch pos d_model"]
    ) -> Float[Tensor, "source batch pos d_model"]:
        if self.corrupt is not None:
            return self._run(self.corrupt[rows])
        if self.given is not None:
            return self._run(self.tokens[self.given[rows]])
        if self.mean is None:
            return torch.zeros_like(written)
        mean = self.mean[:, None]
        if self.reference is not None:
            return mean.expand_as(written)
        own = written.mean(2, keepdim=True) if self.over == "positions" else written
        count = len(self.tokens)
        return ((count * mean - own) / (count - 1)).expand_as(written)
