"""What every head, chain and draw of a checkpoint shares: a fixed pool of sequences, and the clean run of the model on it.

The last token of a sequence predicts nothing: it is run with the others, as products are faster in whole rows, and its loss and
gradient are left out.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.complexity.final_gradients import FinalGradients
from circuits.models.hooked import HookedTransformer
from circuits.models.own import bare
from circuits.models.protocol import check_tokens
from circuits.models.stacked import placed

TOGETHER = 16
"""Sequences of the clean run at a time."""


class Pool:
    """The clean run of a model on a pool of sequences.

    Attributes:
        model: a twin of the given one on the same weights, without gradients or hooks. tokens: ``[example, pos]``.
        streams: the residual stream before each layer and behind the last; mid: behind each layer's attention; normed: what
            values read of it; all ``[example, pos, d_model]``. pos: what queries and keys read beside it, or None.
        target: of every position, ids ``[example, pos]``, or what a reference model says ``[example, pos, d_vocab]``; entropy:
            of that, ``[example, pos - 1]``, to be taken from losses; 0 of ids. base: losses of ``w*``, ``[example, pos - 1]``.
    """

    def __init__(self, model: Any, tokens: Int[Tensor, "example pos"], reference: Any = None):
        self.model: HookedTransformer = bare(model)
        self.tokens = tokens.to(self.model.W_E.device)
        self.final = FinalGradients(self.model, tokens.shape[1])
        self.pos = placed(self.model, self.tokens)
        runs = [self._run(sequences) for sequences in self.tokens.split(TOGETHER)]
        depth = self.model.cfg.n_layers
        self.streams = [torch.cat([run[0][layer] for run in runs]) for layer in range(depth + 1)]
        self.mid = [torch.cat([run[1][layer] for run in runs]) for layer in range(depth)]
        with torch.no_grad():
            self.normed = [block.ln1(x) for block, x in zip(self.model.blocks, self.streams, strict=False)]
            self.target = next_tokens(self.tokens) if reference is None else said_by(bare(reference), self.tokens)
            self.entropy = torch.zeros(self.tokens.shape[0], self.tokens.shape[1] - 1).to(self.streams[0])
            if reference is not None:
                self.entropy = torch.stack([-torch.special.xlogy(p, p).sum(-1) for p in self.target])[:, :-1]
            losses = self.final.losses(self.streams[-1], self.target)[:, :-1]
            self.base: Float[Tensor, "example pos_minus_1"] = losses - self.entropy

    @torch.no_grad()
    def _run(self, sequences: Int[Tensor, "example pos"]) -> tuple[list[Tensor], list[Tensor]]:
        """Streams before each layer and behind the last, and behind each attention."""
        streams, mid = [self.model(sequences, stop_at_layer=0)], []
        for block in self.model.blocks:
            mid.append(streams[-1] + block.attn(*block.attention_inputs(streams[-1], self.pos)))
            streams.append(block(streams[-1], self.pos))
        return streams, mid


def next_tokens(tokens: Int[Tensor, "example pos"]) -> Int[Tensor, "example pos"]:
    """What every position is to predict; id 0 at last positions, which count for nothing."""
    return torch.cat([tokens[:, 1:], torch.zeros_like(tokens[:, :1])], 1).long()


@torch.no_grad()
def said_by(reference: HookedTransformer, tokens: Int[Tensor, "example pos"]) -> Float[Tensor, "example pos d_vocab"]:
    """What a reference model predicts, as probabilities."""
    return torch.cat([reference(sequences).softmax(-1) for sequences in tokens.split(TOGETHER)])


def check_text(tokens: Any, cfg: Any, batch: int, needed_by: str = "a local learning coefficient") -> None:
    """Refuse tokens that the model cannot be sampled on.

    Raises:
        TypeError, ValueError: not integer sequences of at least two tokens of this vocabulary, or fewer than a batch of them.
    """
    check_tokens(tokens, d_vocab=min(cfg.d_vocab, cfg.d_vocab_out), n_ctx=cfg.n_ctx, min_length=2, needed_by=needed_by)
    if len(tokens) < batch:
        raise ValueError(f"there are {len(tokens)} sequences and a batch is {batch}: give more, or take a smaller batch")
