"""One intervention, set up once: which run is edited, with what, what is kept, and what it is judged by.

    effect(paths) = metric(run with these paths edited) - metric(run as it is), per example

The metric is the loss by default (nats per predicted token), so an effect above 0 is what the paths are worth. Under ``patch``
there are two directions: ``noising`` runs on the clean tokens and inserts writes of the corrupt ones (are these paths needed?),
``denoising`` runs on the corrupt tokens and inserts clean writes (are they enough?). In both, the loss is that of predicting the
clean tokens, and a metric is handed the clean tokens.

Edits are made before the reader's norm, in its own copy of the stream. ``patterns`` and ``norms`` say what is kept of the run
that is edited, as in ``circuits.models.interventions``; under preserved patterns only values carry effects, and q and k edges
have none.

Errors are over the examples, given what writes are replaced with: a mean over few other examples is itself uncertain, and no
error says so. Pass a ``reference`` of a hundred sequences or more where values matter.

Memory: examples are taken so many at a time that tensors stay below ``max_bytes`` (``example_bytes`` times their number, beside
the weights and the results); more at a time than ``circuits.models.effects.batch_size`` would not be faster.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.models.effects import batch_size
from circuits.models.hooked import HookedTransformer
from circuits.models.interventions import Ablation
from circuits.models.own import bare
from circuits.models.protocol import check_evaluated, check_finite, check_model, check_tokens, device_of
from circuits.models.stacked import Clean, clean_run
from circuits.paths.all_edges import edge_values
from circuits.paths.edited import edited_stream, unrolled
from circuits.paths.metrics import Metric, Reader, check_metric, reader_of
from circuits.paths.places import Path
from circuits.paths.values import Alternatives, Over, writes
from circuits.paths.wiring import Edge, Wiring

Direction = Literal["noising", "denoising"]
MAX_BYTES = 1 << 29
"""What tensors may take by default: half a gibibyte."""


class Batch(NamedTuple):
    """Some examples, run as they are.

    Attributes:
        rows: which examples. clean: their run. written, alternative: of every source, ``[source, batch, pos, d_model]``.
        positions: where writes are replaced, None for everywhere. reader: of the metric.
    """

    rows: Tensor
    clean: Clean
    written: Tensor
    alternative: Tensor
    positions: Tensor | None
    reader: Reader


class Intervention:
    """What is edited, with what, and how it is judged; see the module's docstring.

    Args:
        model: of the protocol, in evaluation mode; one that is not ours is converted. It is left as found, its hooks are not run.
        tokens: ``[example, pos]``, BOS first. kind: a name of ``circuits.models.interventions.ABLATIONS`` or an ``Ablation``.
        corrupt: tokens of the same shape, for patching; ``kind`` is then only asked what it keeps. direction: of patching.
        over: of mean ablation, "examples" or "positions". reference: tokens of its mean (default: the other examples).
        positions: where writes are replaced: indices for all examples, or bools ``[pos]`` or ``[example, pos]`` (default:
            everywhere). metric: "loss" or a function of (logits, tokens) that gives ``[batch]``.
        count: bools ``[example, pos - 1]``, the predictions the loss is taken of. max_bytes: of the tensors held at a time.

    Raises:
        TypeError, ValueError: one sentence.
    """

    def __init__(
        self,
        model: Any,
        tokens: Int[Tensor, "example pos"],
        kind: str | Ablation = "mean",
        *,
        corrupt: Int[Tensor, "example pos"] | None = None,
        direction: Direction = "noising",
        over: Over = "examples",
        reference: Int[Tensor, "reference pos"] | None = None,
        positions: Any = None,
        metric: Metric = "loss",
        count: Bool[Tensor, "example pos_minus_1"] | None = None,
        max_bytes: int = MAX_BYTES,
    ):
        check_model(model)
        check_evaluated(model)
        check_finite(model)
        fits = {"d_vocab": model.cfg.d_vocab, "n_ctx": model.cfg.n_ctx}
        check_tokens(tokens, **fits, min_length=2, needed_by="an intervention")
        if direction not in get_args(Direction):
            raise ValueError(f"direction={direction!r}: need {' or '.join(map(repr, get_args(Direction)))}")
        if direction == "denoising" and corrupt is None:
            raise ValueError("denoising runs on corrupt tokens and none were given: pass corrupt=")
        if corrupt is not None:
            check_tokens(corrupt, **fits, needed_by="patching")
            if corrupt.shape != tokens.shape:
                raise ValueError(
                    f"clean tokens are {tuple(tokens.shape)} and corrupt ones {tuple(corrupt.shape)}: "
                    "patching goes position by position, so give both the same shape"
                )
        check_metric(metric, count, (tokens.shape[0], tokens.shape[1]))
        self.ablation = Ablation.named(kind)
        self.model: HookedTransformer = bare(model)
        if metric == "loss" and int(tokens.max()) >= self.model.cfg.d_vocab_out:
            raise ValueError(
                f"token {int(tokens.max())} has no logit, the model has d_vocab_out = {self.model.cfg.d_vocab_out}: "
                "it has no loss here"
            )
        self.wiring = Wiring.of(self.model)
        self.targets = tokens.long()
        self.metric, self.count = metric, count
        self.positions = read_positions(positions, tokens)
        run_on, insert = (corrupt, tokens) if direction == "denoising" else (tokens, corrupt)
        assert run_on is not None  # denoising without corrupt tokens was refused
        self.run_on = run_on.long()
        self.max_bytes = max_bytes
        self.each_time, self.keeps = self._examples_at_a_time(max_bytes)
        with torch.no_grad():
            self.alternatives = Alternatives(
                self.model, self.run_on, self.ablation, over=over, reference=reference, corrupt=insert, batch=self.each_time
            )
        self._base: Tensor | None = None
        self._kept: list[Batch] = []

    def __len__(self) -> int:
        return len(self.targets)

    def _examples_at_a_time(self, max_bytes: int) -> tuple[int, bool]:
        """How many, and whether the runs of all examples may be kept from one call to the next."""
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes!r}: need a whole number of bytes, such as 2**29")
        one, always = example_bytes(self.model, self.run_on.shape[1], whole_logits=self.metric != "loss")
        if one + always > max_bytes:
            raise ValueError(
                f"max_bytes={max_bytes:,} and one example of {self.run_on.shape[1]} positions needs {one + always:,}: "
                "allow more, or pass shorter sequences"
            )
        fit = (max_bytes - always) // one
        return min(batch_size(self.model), fit), len(self) <= fit

    def batches(self, *, most: int | None = None) -> Iterator[Batch]:
        """All examples, so many at a time and ``most`` at most, each run once as it is.

        Where they all fit into ``max_bytes`` the runs are kept for the next call, as long as the intervention lives.
        """
        if most is not None and most < self.each_time:
            yield from self._run(most)
            return
        if self._kept:
            yield from self._kept
            return
        made = []
        for batch in self._run(self.each_time):
            made += [batch] if self.keeps else []
            yield batch
        self._kept = made

    def _run(self, each_time: int) -> Iterator[Batch]:
        device = device_of(self.model)
        length = self.targets.shape[1]
        for rows in torch.arange(len(self)).split(each_time):
            with torch.no_grad():
                clean = clean_run(self.model, self.run_on[rows].to(device), self.ablation.patterns, self.ablation.norms)
                written = writes(self.model, clean)
                count = torch.ones(len(rows), length - 1, dtype=torch.bool) if self.count is None else self.count[rows]
                reader = reader_of(self.metric, self.model, clean, self.targets[rows].to(device), count.to(device))
                alternative = self.alternatives.of(rows, written)
            positions = None if self.positions is None else self.positions[rows].to(device)
            yield Batch(rows, clean, written, alternative, positions, reader)

    def _each_batch(self, work: Callable[[Batch], Float[Tensor, "*what batch"]]) -> Float[Tensor, "*what example"]:
        with torch.no_grad():
            return torch.cat([work(batch).cpu() for batch in self.batches()], dim=-1)

    def base(self) -> Float[Tensor, "example"]:
        """The metric of the run as it is."""
        if self._base is None:
            self._base = self._each_batch(lambda batch: batch.reader.of(batch.clean.after[-1][None])[0])
        return self._base

    def together(self, sets: Sequence[Iterable[Path | Edge]], *, from_clean: bool = False) -> Float[Tensor, "set example"]:
        """The effect of each set of paths, the paths of a set edited together.

        Args:
            sets: of concrete paths. from_clean: take differences from clean writes; see ``circuits.paths.edited``.
        """
        trees = [unrolled(tuple(path) for path in paths) for paths in sets]

        def work(batch: Batch) -> Float[Tensor, "set batch"]:
            base = batch.reader.of(batch.clean.after[-1][None])
            start = batch.written if from_clean else None
            edited = (
                edited_stream(self.model, batch.clean, batch.alternative, tree, positions=batch.positions, from_clean=start)
                for tree in trees
            )
            return torch.cat([batch.reader.of(stream[None]) for stream in edited]) - base

        return self._each_batch(work) if trees else torch.zeros(0, len(self))

    def one_by_one(self, edges: Sequence[Edge] | None = None) -> Float[Tensor, "edge example"]:
        """The effect of each edge alone; of all edges of the wiring by default, in its order."""
        wanted = self.wiring.edges if edges is None else tuple(edges)

        def work(batch: Batch) -> Float[Tensor, "edge batch"]:
            found = edge_values(self.model, batch.clean, batch.alternative, batch.written, batch.reader, wanted, batch.positions)
            by_edge = dict(found)
            return torch.stack([by_edge[edge] for edge in wanted]) - batch.reader.of(batch.clean.after[-1][None])

        return self._each_batch(work) if wanted else torch.zeros(0, len(self))


def read_positions(given: Any, tokens: Int[Tensor, "example pos"]) -> Bool[Tensor, "example pos"] | None:
    """Positions as bools for every example.

    Raises:
        TypeError, ValueError: neither indices nor bools that fit, or none at all.
    """
    if given is None:
        return None
    examples, length = tokens.shape
    if isinstance(given, range | set | frozenset):
        given = sorted(given)
    try:
        asked = torch.as_tensor(given).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"positions are {given!r}, need indices such as [3, 5], or bools for each position") from error
    if asked.numel() == 0:
        raise ValueError("positions choose none: leave them out to edit everywhere")
    if asked.dtype == torch.bool:
        if tuple(asked.shape) not in ((length,), (examples, length)):
            raise ValueError(
                f"positions are bools of shape {tuple(asked.shape)}, need ({length},) or ({examples}, {length}) for these tokens"
            )
        chosen = asked.expand(examples, length)
    elif asked.is_floating_point() or asked.is_complex():
        raise TypeError(f"positions are {asked.dtype}, need indices or bools")
    else:
        if asked.ndim > 1:
            raise ValueError(
                f"positions are indices of shape {tuple(asked.shape)}, which hold for all examples: pass bools "
                f"({examples}, {length}) to choose for each"
            )
        if not (-length <= int(asked.min()) and int(asked.max()) < length):
            raise ValueError(f"positions run from {int(asked.min())} to {int(asked.max())}, the tokens have 0..{length - 1}")
        chosen = torch.zeros(examples, length, dtype=torch.bool)
        chosen[:, asked.flatten().long()] = True
    if not bool(chosen.any(-1).all()):
        empty = int((~chosen.any(-1)).nonzero()[0])
        raise ValueError(f"positions choose none in example {empty}, where nothing would be edited: leave it out, or choose one")
    return chosen


def example_bytes(model: HookedTransformer, length: int, *, whole_logits: bool) -> tuple[int, int]:
    """Bytes that one example takes while all edges are done, and bytes that are taken once; upper estimates."""
    cfg = model.cfg
    wiring = Wiring.of(model)
    heads_wide, sources = cfg.n_heads * cfg.d_head, len(wiring.sources)
    kept = 4 * sources * cfg.d_model + cfg.n_layers * (3 * cfg.d_model + heads_wide + cfg.n_heads * length)
    at_the_end = 3 * 3 * sources * heads_wide + 9 * heads_wide if cfg.attn_only else 9 * heads_wide
    wide = 4 * cfg.d_model + 9 * heads_wide + (0 if cfg.attn_only else 3 * (cfg.d_mlp or 0))
    plain = cfg.attn_scores_soft_cap <= 0
    stacked = cfg.n_heads * (wide + (0 if plain else 4 * cfg.n_heads * length))
    logits = 3 * cfg.d_vocab_out if whole_logits else 0
    of_piece = 5 * 256 * cfg.d_vocab_out + cfg.d_model * cfg.d_vocab_out + cfg.n_heads * cfg.d_head * cfg.d_vocab_out
    size = model.W_E.element_size()
    return size * length * (kept + max(at_the_end, stacked) + logits), size * of_piece
