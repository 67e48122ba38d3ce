"""Two one-layer models of text whose attention can be read off exactly, and the text that they learn.

``LiteralBlock`` is the transformer block that ``HookedTransformer`` cannot be: with its norms behind attention and feed-forward
layer, as the papers' models of text have them, with a linear feed-forward layer, or without residual stream. With ``x`` the
embeddings, causal attention of one head, no positions, and ``[..]`` for the residual stream,

    norm after     A = softmax(x W_Q (x W_K)^T / sqrt(d_head))      h = LN1([x +] A x W_V W_O)
                   h <- LN2([h +] act(h W_in) W_out)                logits = h W_U
    norm before    the same with LN1(x) for x in the first line, LN2(h) in the second, and LN(h) in the last, none elsewhere

biases as in the hooked model, whose weights it starts with, so that models of one seed differ by what is named.

The (Y, Z) model has no weights but a number for every pair of words. Query ``m = x_t`` looks at the keys before it,

    a = softmax_s(Z[x_t, x_s] + mask)      c_l = sum over s with x_s = l of a_s      f = c / |c|      logits = Y^T f + b

with ``mask`` a finite -1e9 on the query itself and what follows, and ``b`` the log frequency of words, which stays. Keys that are
the same word add up, so the norm needs no vector of all words: ``|c|^2 = a^T [x_s = x_s'] a``. The log likelihood of the next
word ``n`` has, with ``e = e_n - alpha`` and ``G_s = Y[x_s] . e``, the gradients

    dY = f e^T        dZ[x_t, x_s] += a_s (G_s - c_{x_s} (sum_s' a_s' G_s') / |c|^2) / |c|

in which softmax's own mean is 0, as the norm has taken the part along ``f`` out.

Source: Tian et al. 2023 ("Scan and Snap"), sections 2 and 3, lemma 1; section 7 for models of text.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuits.data.corpora import stdlib_prose
from circuits.data.streams import check_ids
from circuits.models.hooked import HookedTransformer
from circuits.models.protocol import pattern_name, undisturbed
from circuits.results import array_hash, check_whole

WORD = re.compile(r"[a-z_]+|[0-9]+|[^\sa-z_0-9]")
"""Of lower-case text: a run of letters, a number, or a single sign."""
HIDDEN = -1e9
"""Added to what is not looked at; ``exp`` makes it exactly 0, and unlike ``-inf`` it is no NaN in a row without keys."""


@dataclass(frozen=True, eq=False)
class Text:
    """A text as ids, the part to learn from and the part to measure on.

    Args:
        train, held_out: flat integer arrays of ids ``0 .. d_vocab - 1``, such as ``run.corpus["prose_train"]``.

    Raises:
        ValueError: arrays that are not flat integers, or ids outside the vocabulary.
    """

    train: Int[np.ndarray, "train_token"]
    held_out: Int[np.ndarray, "held_out_token"]
    d_vocab: int

    def __post_init__(self) -> None:
        check_whole("d_vocab", self.d_vocab, 2)
        for name in ("train", "held_out"):
            ids = getattr(self, name)
            if ids.ndim != 1 or ids.dtype.kind not in "iu":
                raise ValueError(f"{name} is {ids.dtype} of shape {ids.shape}; give a flat array of integer ids")
            check_ids(ids, self.d_vocab, name)

    def spec(self) -> dict[str, Any]:
        """The text by hash."""
        return {"text": array_hash(self.train, self.held_out), "d_vocab": self.d_vocab}

    @property
    def rates(self) -> Float[np.ndarray, "d_vocab"]:
        """How often each id stands in the training text, every one counted once more than it does so that none is 0."""
        counts = np.bincount(self.train, minlength=self.d_vocab) + 1.0
        return counts / counts.sum()

    def batch(self, *, seed: int, step: int, size: int, length: int) -> Int[Tensor, "example pos"]:
        """Windows of the training text for one step, which follow from ``(seed, step)``; the last id is only predicted."""
        starts = np.random.default_rng([seed, 60, step]).integers(0, len(self.train) - length, size=size)
        return torch.from_numpy(self.train[starts[:, None] + np.arange(length + 1)].astype(np.int64))

    def probe(self, *, examples: int, length: int) -> Int[Tensor, "example pos"]:
        """Windows evenly spread over the held-out text, the same at every checkpoint and for every seed."""
        starts = np.arange(examples) * (len(self.held_out) - length) // examples
        return torch.from_numpy(self.held_out[starts[:, None] + np.arange(length + 1)].astype(np.int64))

    def check_length(self, length: int, examples: int) -> None:
        """Refuse windows that the text does not have.

        Raises:
            ValueError: either part is shorter than that.
        """
        least = {"train": length + 1, "held_out": length + examples}
        for name, needed in least.items():
            if (there := len(getattr(self, name))) < needed:
                raise ValueError(f"{name} has {there} ids, windows of {length} need {needed}: give more text or a smaller length")


def stdlib_words(top: int = 1000) -> Text:
    """The prose of the installed standard library as its ``top - 1`` commonest words; id 0 is every other word.

    Words and not the shipped tokenizer's pieces: theory and claims are about which *words* a query looks for, and without
    positions a model cannot tell which pieces make one. Ids follow frequency in the training part, ties the alphabet.

    Raises:
        ValueError: ``top`` is below 2.
    """
    check_whole("top", top, 2)
    corpus = stdlib_prose()
    parts = [[w for d in corpus.split(part).documents for w in WORD.findall(d.lower())] for part in ("train", "held_out")]
    counts = Counter(parts[0])
    known = {word: i for i, word in enumerate(sorted(counts, key=lambda word: (-counts[word], word))[: top - 1], 1)}
    train, held_out = (np.array([known.get(word, 0) for word in words], dtype=np.int32) for words in parts)
    return Text(train, held_out, len(known) + 1)


class LiteralBlock(nn.Module):
    """One block of one head, written out; see the module.

    Args:
        twin: a hooked model of one layer, one head, LN and no positions, whose weights it starts with. residual: keep the stream.
        norm: where norms stand. linear: leave the feed-forward layer's ReLU out.

    Raises:
        ValueError: another kind of hooked model.
    """

    def __init__(
        self, twin: HookedTransformer, *, residual: bool, norm: Literal["after", "before"] = "after", linear: bool = False
    ):
        super().__init__()
        cfg = twin.cfg
        shape = (cfg.n_layers, cfg.n_heads, cfg.normalization_type, cfg.positional_embedding_type, cfg.act_fn or "relu")
        if shape != (1, 1, "LN", "none", "relu"):
            raise ValueError(
                f"the hooked model has layers, heads, norm, positions and act_fn {shape}; give one of 1 layer, 1 head, 'LN', "
                "'none' and 'relu' (or none)"
            )
        self.residual, self.after, self.feed_forward, self.linear = residual, norm == "after", not cfg.attn_only, linear
        self.scale, self.eps = math.sqrt(cfg.d_head), cfg.eps
        weights = {_short(name): nn.Parameter(value.detach().clone()) for name, value in twin.named_parameters()}
        self.w = nn.ParameterDict(weights)

    def _norm(self, x: Float[Tensor, "*batch d_model"], name: str) -> Float[Tensor, "*batch d_model"]:
        return F.layer_norm(x, (x.shape[-1],), self.w[f"{name}_w"], self.w[f"{name}_b"], self.eps)

    def _read(self, x: Float[Tensor, "*batch d_model"]) -> tuple[Float[Tensor, "*batch d_head"], Float[Tensor, "*batch d_head"]]:
        """Queries, divided by the scale, and keys."""
        w, seen = self.w, x if self.after else self._norm(x, "ln1")
        return (seen @ w["W_Q"][0] + w["b_Q"][0]) / self.scale, seen @ w["W_K"][0] + w["b_K"][0]

    def pair_logits(self, query: Int[np.ndarray, "pair"], key: Int[np.ndarray, "pair"]) -> Float[np.ndarray, "pair"]:
        """The score before softmax that each query word gives each key word, exact."""
        with torch.no_grad():
            q, k = self._read(self.w["W_E"])
            return (q[torch.from_numpy(query)] * k[torch.from_numpy(key)]).sum(-1).double().numpy()

    def attention(self, tokens: Int[Tensor, "example pos"]) -> Float[Tensor, "example query key"]:
        """Attention after softmax; row ``t`` is spread over keys ``0 .. t``."""
        q, k = self._read(F.embedding(tokens, self.w["W_E"]))
        scores = q @ k.mT
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(future, -torch.inf).softmax(-1)

    def forward(self, tokens: Int[Tensor, "example pos"]) -> Float[Tensor, "example pos d_vocab"]:
        """Logits of the next word."""
        x, w = F.embedding(tokens, self.w["W_E"]), self.w
        seen = x if self.after else self._norm(x, "ln1")
        read = self.attention(tokens) @ (seen @ w["W_V"][0] + w["b_V"][0]) @ w["W_O"][0] + w["b_O"]
        h = x + read if self.residual else read
        h = self._norm(h, "ln1") if self.after else h
        if self.feed_forward:
            inner = (h if self.after else self._norm(h, "ln2")) @ w["W_in"] + w["b_in"]
            fed = (inner if self.linear else inner.relu()) @ w["W_out"] + w["b_out"]
            h = h + fed if self.residual else fed
            h = self._norm(h, "ln2") if self.after else h
        h = h if self.after else self._norm(h, "ln_final")
        return F.linear(h, w["W_U"].T, w["b_U"])


def begin_as_torch(block: LiteralBlock, seed: int) -> None:
    """Draw weights anew, in place, as torch starts an embedding, an encoder layer and a linear layer; norms keep 1 and 0.

    Embeddings are standard normal; query, key and value uniform within ``sqrt(6 / 4d)`` (Glorot, of the three stacked); every
    other weight and its bias within ``1 / sqrt(inputs)``, but for biases of attention, which are 0. What all kinds of block have
    is drawn first, so that blocks of one seed begin alike.

    Source: ``reset_parameters`` of ``torch.nn.Embedding``, ``Linear`` and ``MultiheadAttention``.
    """
    rng, w = torch.Generator().manual_seed(seed), block.w
    d, d_mlp = len(w["W_U"]), len(w["W_out"]) if block.feed_forward else 0
    glorot = (6 / (4 * d)) ** 0.5
    within = {"W_U": d**-0.5, "b_U": d**-0.5, "W_O": d**-0.5, "W_Q": glorot, "W_K": glorot, "W_V": glorot}
    if block.feed_forward:
        within |= {"W_in": d**-0.5, "b_in": d**-0.5, "W_out": d_mlp**-0.5, "b_out": d_mlp**-0.5}
    with torch.no_grad():
        w["W_E"].normal_(generator=rng)
        for name, most in within.items():
            w[name].copy_((2 * torch.rand(w[name].shape, generator=rng) - 1) * most)


def _short(name: str) -> str:
    """``blocks.0.attn.W_Q`` as ``W_Q``, ``blocks.0.ln1.w`` as ``ln1_w``."""
    *_, part, weight = name.split(".")
    return f"{part}_{weight}" if part.startswith("ln") else weight


def lowest_attention(
    model: HookedTransformer | LiteralBlock, tokens: Int[Tensor, "example pos"]
) -> tuple[Float[Tensor, "example query key"], Float[Tensor, "example pos d_vocab"]]:
    """Attention of the lowest layer (the mean of its heads), and logits; the model is left as found."""
    if isinstance(model, LiteralBlock):
        with torch.no_grad():
            return model.attention(tokens), model(tokens)
    kept: list[Tensor] = []

    def keep(pattern: Tensor, hook: Any) -> None:
        kept.append(pattern.mean(1))

    with undisturbed(model), model.hooks(fwd_hooks=[(pattern_name(0), keep)]):
        logits = model(tokens)
    return kept[0], logits


def normalised_entropy(attention: Float[Tensor, "example query key"], seen: Int[Tensor, "query"]) -> Float[Tensor, "example"]:
    """``H / ln i``, the mean over queries that see ``i > 1`` keys: 0 (one key has all) to 1 (uniform, the chance level).

    Args:
        attention: after softmax. seen: how many keys each query may look at.

    Source: Tian et al. 2023, figure 10, by the ceiling of each row; ours.
    """
    rows = torch.where(seen > 1)[0]
    return (torch.special.entr(attention[:, rows]).sum(-1) / seen[rows].to(attention).log()).mean(-1)


class PairGradient(NamedTuple):
    """Of the mean log likelihood of a batch, by the rows and entries that it moves.

    Attributes:
        words, y: rows of ``Y`` and what to add to each. pairs, z: the same of entries of ``Z``, flat; a place may come twice.
        attention: of queries 1, 2, ... to all positions. loss: mean of the batch by sequence, nats.
    """

    words: Int[Tensor, "moved"]
    y: Float[Tensor, "moved d_vocab"]
    pairs: Int[Tensor, "pair"]
    z: Float[Tensor, "pair"]
    attention: Float[Tensor, "example query key"]
    loss: Float[Tensor, "example"]


def pair_gradient(
    y: Float[Tensor, "d_vocab d_vocab"],
    z: Float[Tensor, "d_vocab d_vocab"],
    bias: Float[Tensor, "d_vocab"],
    tokens: Int[Tensor, "example pos"],
) -> PairGradient:
    """The (Y, Z) model's gradient on a batch, written out (see the module); the first position is no query, the last no key.

    Args:
        y: ``[key, next]``. z: ``[query, key]``. bias: of next words. tokens: at least three positions.

    Source: Tian et al. 2023, lemma 1; the form on text ours.
    """
    x, n = tokens[:, :-1], tokens[:, 2:]
    length = x.shape[1]
    mask = torch.where(torch.ones(length, length).tril(-1) > 0, 0.0, HIDDEN)[1:].to(z)
    at = x[:, 1:, None] * z.shape[1] + x[:, None]  # [example, query, key], places in z
    a = (z.flatten()[at] + mask).softmax(-1)
    c = a @ (x[:, :, None] == x[:, None]).to(a)  # [example, query, key]: c of the key's word
    norm = (a * c).sum(-1, keepdim=True).sqrt()
    share = a / norm
    read = y[x]  # [example, key, next]
    logits = share @ read + bias
    loss = F.cross_entropy(logits.flatten(0, 1), n.flatten(), reduction="none").view(n.shape)
    error = -logits.softmax(-1)
    error.scatter_add_(-1, n[..., None], torch.ones_like(error[..., :1]))
    g = error @ read.mT  # [example, query, key]
    moved = share * (g - c * (share * g).sum(-1, keepdim=True) / norm)
    count = n.numel()
    return PairGradient(
        x.flatten(), (share.mT @ error).flatten(0, 1) / count, at.flatten(), moved.flatten() / count, a, loss.mean(-1)
    )
