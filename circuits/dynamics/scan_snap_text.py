"""Does attention on text get sparser, bounce back, freeze? One-layer transformers without positions, trained on words.

Norms stand behind attention and feed-forward layer, as in the papers' models of text, or with ``norm="before"`` where the hooked
model has them. Attention of the lowest layer is read on a fixed probe of held-out text. A bounce is tested by bootstrap over the
probe's sequences, for each seed by itself (``circuits.dynamics.bounce``); a snap by the velocity of attention between evenly
spaced checkpoints (``circuits.dynamics.snap``). Learning rates are constant, and gradients are clipped to norm 0.5. Models of one
seed start with the same weights as far as they have the same parts, and read the same batches.

Source: Tian et al. 2023 ("Scan and Snap"), section 7, figures 7 and 10; Tian et al. 2024 (JoMA), figures 4 and 6.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuits.dynamics.bounce import bootstrap_bounce
from circuits.dynamics.determinism import deterministic
from circuits.dynamics.scan_snap import recorded
from circuits.dynamics.scan_snap_text_model import (
    LiteralBlock,
    Text,
    begin_as_torch,
    lowest_attention,
    normalised_entropy,
    stdlib_words,
)
from circuits.dynamics.snap import attention_distance, snap, velocity
from circuits.models.hooked import HookedTransformer
from circuits.progress import bar
from circuits.results import check_whole, labelled, mean_and_stderr
from circuits.weights.stable_rank import stable_rank

if TYPE_CHECKING:
    import xarray as xr

Kind = Literal["relu", "linear", "attention", "bare"]
"""Feed-forward layer with ReLU, or a linear one, or none, each with residual stream; ``bare``: none, and no residual stream."""
CLIP = 0.5
"""Norm that gradients are clipped to, as in the authors' training of text."""
CHECKPOINTS = 32
"""Intervals between checkpoints unless told."""
BATCH, LENGTH, PROBE = 20, 35, 64
"""Sequences of a batch and their predictions, the authors'; sequences of the probe."""


@dataclass(frozen=True)
class TextRuns:
    """Transformers of one head trained on a text, one for each seed.

    Args:
        text: what they learn. kind: see ``Kind``. optimiser, lr: ``"adam"`` or ``"sgd"`` at a constant rate.
        seeds: of weights and batches. steps: updates. norm: where norms stand, see ``LiteralBlock``; kinds ``relu`` and
            ``attention`` with norm before are hooked models. n_layers, positions: more layers, and ``"standard"`` positions that
            start sinusoidal, only where the model is hooked. d_model, batch, length, examples: width (feed-forward: 4 times it),
            sequences of a batch, predictions of each, and sequences of the probe. start: of weights where norms stand behind: as
            torch starts an encoder layer, which the authors train, or ``"scaled"``, normal with sd ``d_model ** -0.5`` all over.

    Raises:
        ValueError: a number or word that makes no sense, or too little text.
    """

    text: Text = field(compare=False)
    kind: Kind = "relu"
    optimiser: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 800
    norm: Literal["after", "before"] = "after"
    n_layers: int = 1
    positions: Literal["none", "standard"] = "none"
    d_model: int = 64
    batch: int = BATCH
    length: int = LENGTH
    examples: int = PROBE
    start: Literal["torch", "scaled"] = "torch"
    name: str = field(default="scan_snap_text", init=False)
    version: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        for option, least in {"steps": 3, "n_layers": 1, "d_model": 1, "batch": 1, "length": 3, "examples": 2}.items():
            check_whole(option, getattr(self, option), least)
        check_seeds(self.seeds)
        known = {
            "kind": get_args(Kind),
            "optimiser": ("adam", "sgd"),
            "norm": ("after", "before"),
            "start": ("torch", "scaled"),
            "positions": ("none", "standard"),
        }
        for option, words in known.items():
            if (given := getattr(self, option)) not in words:
                raise ValueError(f"{option}={given!r}; it is one of {', '.join(words)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr}; need a positive, finite learning rate")
        if not self._hooked and (self.n_layers, self.positions) != (1, "none"):
            raise ValueError(
                f"kind={self.kind!r}, norm={self.norm!r} is written out for one layer without positions; use norm='before' with "
                "'relu' or 'attention'"
            )
        self.text.check_length(self.length, self.examples)

    def spec(self) -> dict[str, Any]:
        """Everything the numbers depend on."""
        rest = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("text", "name", "version")}
        return self.text.spec() | rest | {"seeds": list(self.seeds)}

    @property
    def _hooked(self) -> bool:
        return self.norm == "before" and self.kind in ("relu", "attention")

    def build(self, seed: int) -> HookedTransformer | LiteralBlock:
        """The model of a seed before training."""
        fields: dict[str, Any] = {"attn_only": True} if self.kind in ("attention", "bare") else {"act_fn": "relu"}
        if self.positions == "standard":
            fields["positional_init"] = "sinusoidal"
        sizes = {"n_layers": self.n_layers, "d_model": self.d_model, "n_heads": 1, "d_head": self.d_model, "n_ctx": self.length}
        sizes |= {"d_vocab": self.text.d_vocab, "seed": seed}
        if self.norm == "after":
            fields["initializer_range"] = self.d_model**-0.5
        model = HookedTransformer(fields | sizes | {"positional_embedding_type": self.positions})
        if self._hooked:
            return model
        block = LiteralBlock(model, residual=self.kind != "bare", norm=self.norm, linear=self.kind == "linear")
        if self.norm == "after":
            if self.start == "torch":
                begin_as_torch(block, seed)
            else:
                with torch.no_grad():  # what is read is not normed: embeddings of variance 1, d_mlp inputs summed to as much
                    block.w["W_E"].mul_(self.d_model**0.5)
                    if block.feed_forward:
                        block.w["W_out"].mul_((self.d_model / len(block.w["W_out"])) ** 0.5)
        return block

    def train(self, seed: int, look: Callable[[Any], None], record: Sequence[int], shown: Any = None) -> Any:
        """Train the model of a seed, calling ``look(model)`` before the update of each recorded step and after the last.

        Returns:
            The model, in training mode.
        """
        model = self.build(seed).train()
        make = torch.optim.Adam if self.optimiser == "adam" else torch.optim.SGD
        optimiser = make(model.parameters(), lr=self.lr)
        kept = set(record)
        for step in range(self.steps + 1):
            if step in kept:
                look(model)
            if step == self.steps:
                break
            tokens = self.text.batch(seed=seed, step=step, size=self.batch, length=self.length)
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            if shown is not None:
                shown.update(1)
        return model

    def run(self, record: Sequence[int] | None = None, *, progress: bool | None = None) -> "xr.Dataset":
        """Train and read every seed.

        Args:
            record: steps to read at, at least 4; None: about 33 evenly spaced ones. progress: show a bar.

        Returns:
            Over ``seed, step``: ``value``, ``H / ln i`` of the lowest layer (0 to 1; ``chance`` 1, uniform attention), and
            ``loss`` (nats a word, held out; chance ln d_vocab), with ``stderr`` and ``loss_stderr`` over the probe's sequences;
            ``distance``, how far attention moved since the checkpoint before (0 to 2, NaN at the first), and ``velocity``, the
            same a step; ``pattern`` ``[.., query, key]``, attention on the probe's first sequence; ``stable_rank`` of the lowest
            ``W_in`` (1 to d_model; NaN without one); ``status``, "diverged" where the loss is not finite, all else then NaN.
            Over ``seed``: ``drop``, ``bounce``, ``ratio`` with their ``_stderr``, ``minimum`` (its step) and ``bounce_state``,
            see ``Bounce``; ``snap_state``, ``snap`` and ``peak`` (steps) and ``freeze_ratio``, see ``Snap``.

        Raises:
            ValueError: steps to read at that are out of order or too few.
        """
        steps = np.array(recorded(even_steps(self.steps) if record is None else record, self.steps))
        probe = self.text.probe(examples=self.examples, length=self.length)
        read = _Reader(probe)
        with deterministic(1), bar(total=self.steps * len(self.seeds), label=f"text, {self.kind}", on=progress) as shown:
            for seed in self.seeds:
                read.begin()
                self.train(seed, read, steps.tolist(), shown)
        value, stderr = mean_and_stderr(read.entropy, axis=2)
        loss, loss_stderr = mean_and_stderr(read.loss, axis=2)
        distance = np.array(read.distance)
        speed = np.stack([np.append(np.nan, velocity(one[1:], steps.astype(float))) for one in distance])
        both = ("seed", "step")
        columns = {"value": value, "stderr": stderr, "loss": loss, "loss_stderr": loss_stderr, "distance": distance}
        columns |= {"velocity": speed, "stable_rank": np.array(read.rank)}
        columns |= {"status": np.where(np.isfinite(loss), "ok", "diverged")}
        rows = [_readings(np.array(H), moved[1:], steps) for H, moved in zip(read.entropy, distance, strict=True)]
        return labelled(
            {name: (both, values) for name, values in columns.items()}
            | {name: (both[:1], [row[name] for row in rows]) for name in rows[0]}
            | {"pattern": ((*both, "query", "key"), np.array(read.pattern)), "chance": ((), 1.0)},
            {"seed": list(self.seeds), "step": steps},
            measure=self,
            definition="attention of the lowest layer on a held-out probe, H / ln i over queries that see more than one key",
            source="Tian et al. 2023, section 7; Tian et al. 2024 (JoMA)",
            units="1; loss: nats; distance: attention mass; snap, minimum, peak: steps",
            n_examples=self.examples,
        )


class _Reader:
    """Collects what is read of one model after another, ``[seed][step]``."""

    def __init__(self, probe: Int[Tensor, "example pos"]):
        self.tokens, self.next = probe[:, :-1], probe[:, 1:]
        self.seen = torch.arange(1, self.tokens.shape[1] + 1)
        self.entropy: list[list[np.ndarray]] = []
        self.loss: list[list[np.ndarray]] = []
        self.distance: list[list[float]] = []
        self.rank: list[list[float]] = []
        self.pattern: list[list[np.ndarray]] = []
        self.before: Tensor | None = None

    def begin(self) -> None:
        """From here on another model."""
        for kept in (self.entropy, self.loss, self.distance, self.rank, self.pattern):
            kept.append([])
        self.before = None

    def __call__(self, model: Any) -> None:
        attention, logits = lowest_attention(model, self.tokens)
        loss = F.cross_entropy(logits.mT, self.next, reduction="none").mean(-1).double()
        fine = bool(torch.isfinite(loss).all())
        gone = torch.full_like(loss, torch.nan)
        attention = attention.double()
        self.entropy[-1].append((normalised_entropy(attention, self.seen) if fine else gone).numpy())
        self.loss[-1].append((loss if fine else gone).numpy())
        if self.before is None or not fine:
            self.distance[-1].append(np.nan)
        else:
            self.distance[-1].append(float(attention_distance(self.before, attention).mean()))
        self.rank[-1].append(input_rank(model) if fine else np.nan)
        self.pattern[-1].append((attention[0] if fine else torch.full_like(attention[0], torch.nan)).float().numpy())
        self.before = attention


def input_rank(model: HookedTransformer | LiteralBlock) -> float:
    """Stable rank of the lowest layer's ``W_in``; NaN without a feed-forward layer."""
    weights = {name.split(".")[-1]: value for name, value in reversed(list(model.named_parameters()))}
    if "W_in" not in weights:
        return math.nan
    return float(stable_rank(torch.linalg.svdvals(weights["W_in"].detach().double())))


def even_steps(steps: int) -> list[int]:
    """0, the last step, and between them about ``CHECKPOINTS`` evenly spaced ones: what a snap is best seen on."""
    return sorted({*range(0, steps, max(1, steps // CHECKPOINTS)), steps})


def chosen(text: Text | None, seeds: int) -> tuple[Text, tuple[int, ...]]:
    """What an experiment trains on: a text, or the standard library's words, and seeds from 0 on.

    Raises:
        TypeError: the text is something else. ValueError: no seeds.
    """
    check_whole("seeds", seeds, 1)
    if text is not None and not isinstance(text, Text):
        raise TypeError(f"text is a {type(text).__name__}; give Text(train, held_out, d_vocab) of word ids, or None")
    return stdlib_words() if text is None else text, tuple(range(seeds))


def check_seeds(seeds: tuple[int, ...]) -> None:
    """Refuse seeds that are none, twice the same, or no whole numbers.

    Raises:
        ValueError: they are.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={seeds}; give at least one, each once, e.g. (0, 1, 2)")
    for seed in seeds:
        check_whole("a seed", seed, 0)


def _readings(
    entropy: Float[np.ndarray, "step example"], distance: Float[np.ndarray, "interval"], steps: Int[np.ndarray, "step"]
) -> dict[str, Any]:
    fall, stop = bootstrap_bounce(entropy), snap(distance, steps)
    row = {name: value for name, value in fall._asdict().items() if name not in ("state", "at")}
    row |= {"bounce_state": fall.state, "minimum": float(steps[fall.at]) if fall.at >= 0 else np.nan}
    return row | {"snap_state": stop.state, "snap": stop.at, "peak": stop.peak, "freeze_ratio": stop.freeze_ratio}
