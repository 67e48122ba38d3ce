"""Ablate or patch any place: a node, an edge, a path, or a set of them together, beside the same done to other heads.

    ablate   the writes at the place are replaced by zero, a mean, or those of another example
    patch    by those of the run on other tokens; clean and corrupt may be swapped (``direction``)

The value is the mean change of the metric over examples: nats of next-token loss unless another metric is given, above 0 where
the place helps the model. What exactly is edited is said in ``circuits.paths.edited``, what replaces a write in
``circuits.paths.values``, directions and memory in ``circuits.paths.intervention``, the controls in ``circuits.paths.matched``.

Sources: Wang et al. 2022 (path patching); Goldowsky-Dill et al. 2023 (path sets); Wang et al. 2024 (a layer-0 head's output
removed from the input of one layer-1 head only: ``"L0H3 -> L1H4"``).
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from circuits.models.heads import Head
from circuits.models.interventions import Ablation, Norms, Patterns
from circuits.models.protocol import model_hash
from circuits.paths.intervention import MAX_BYTES, Direction, Intervention
from circuits.paths.matched import beside, matched_sets
from circuits.paths.metrics import Metric
from circuits.paths.places import Path, Place, read
from circuits.paths.values import Over
from circuits.paths.wiring import Edge, wiring_of
from circuits.results import array_hash, check_whole, labelled, mean_and_stderr

if TYPE_CHECKING:
    import xarray as xr

CONTROLS = 16
VERSION = 1


class Made(NamedTuple):
    """What made a result, for its attributes."""

    name: str
    version: int
    config: dict[str, Any]

    def spec(self) -> dict[str, Any]:
        return self.config


def ablate(
    model: Any,
    tokens: Int[Tensor, "example pos"],
    place: "Place | str | Head | Edge | list[Any]",
    kind: str | Ablation = "mean",
    *,
    over: Over = "examples",
    reference: Int[Tensor, "reference pos"] | None = None,
    positions: Any = None,
    metric: Metric = "loss",
    count: Bool[Tensor, "example pos_minus_1"] | None = None,
    controls: int = CONTROLS,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> "xr.Dataset":
    """What a place is worth: the change of the loss, or of any metric, when it is ablated.

    ``value = mean over examples of metric(place ablated) - metric(clean)``.

    Args:
        model: of the protocol, in evaluation mode. tokens: BOS first.
        place: ``"L0H3"`` (all it writes), ``"L0H3 -> L1H4.k"``, ``"L0H3 -> L1H4.v -> logits"``, globs, sets; see
            ``circuits.paths.places``. All its paths are edited together.
        kind: "zero", "mean", "resample", "pattern_preserving", or an ``Ablation``.
        over, reference: of mean ablation: "examples" keeps positions apart, "positions" does not; whose mean (default: that of
            the other examples). positions: where writes are replaced (default: everywhere).
        metric: "loss", or a function of (logits [batch, pos, d_vocab], tokens [batch, pos]) that gives [batch].
        count: which predictions the loss is taken of, bools. controls: how many matched places at most. seed: of their choice.
        max_bytes: of tensors held at a time.

    Returns:
        Dataset: ``value`` and ``stderr`` (over examples; unit of the metric, nats for the loss), ``effect [example]``,
        ``base [example]`` (the metric without the edit), ``control [edge]``, the effects of the matched places, which are the
        coordinate; ``null_mean``, ``null_sd``, ``z``, ``p`` (two-sided, by rank), ``smallest_p`` of the value among them (NaN
        with fewer than two). Errors are given the alternatives: see ``circuits.paths.intervention``.

    Raises:
        TypeError, ValueError: a place, tokens or options that do not fit; a model in training mode.

    Example:
        >>> import circuits
        >>> model = circuits.planted.planted_model()
        >>> tokens = circuits.repeated_random_tokens(model.cfg.d_vocab, n=20, examples=8).tokens
        >>> found = circuits.ablate(model, tokens, "L0H0 -> L1H0.k", "zero")  # previous-token head into the induction head's keys
        >>> bool(found.value > 0.4), bool(found.p == found.smallest_p)
        (True, True)
    """
    check_asked(model, place, controls, seed)
    made = Intervention(
        model, tokens, kind, over=over, reference=reference, positions=positions, metric=metric, count=count, max_bytes=max_bytes
    )
    ablation = made.ablation
    config = {
        "ablation": [ablation.kind, ablation.patterns, ablation.norms, ablation.seed],
        "over": over,
        "reference": None if reference is None else array_hash(reference.cpu()),
    }
    return _judged(model, made, place, controls, seed, "path_ablation", config)


def patch(
    model: Any,
    clean: Int[Tensor, "example pos"],
    corrupt: Int[Tensor, "example pos"],
    place: "Place | str | Head | Edge | list[Any]",
    *,
    direction: Direction = "noising",
    patterns: Patterns = "recomputed",
    norms: Norms = "live",
    positions: Any = None,
    metric: Metric = "loss",
    count: Bool[Tensor, "example pos_minus_1"] | None = None,
    controls: int = CONTROLS,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> "xr.Dataset":
    """What a place carries from one input to another: its writes are exchanged for those of the run on other tokens.

    Args:
        model: of the protocol, in evaluation mode. clean, corrupt: tokens of one shape. place: see ``ablate``.
        direction: "noising" runs on clean tokens and inserts corrupt writes: above 0 where the place is needed; "denoising"
            runs on corrupt tokens and inserts clean writes: below 0 where the place is enough to bring the prediction back.
        patterns, norms: what is kept of the run that is edited. The rest: see ``ablate``; loss and metric are about the clean
            tokens in both directions.

    Returns:
        As ``ablate``; ``base`` is the metric of the run that is edited.

    Raises:
        TypeError, ValueError: as ``ablate``, and tokens of different shapes.

    Source: Goldowsky-Dill et al. 2023; noising and denoising after Heimersheim & Nanda 2024.
    """
    check_asked(model, place, controls, seed)
    if not isinstance(corrupt, Tensor):
        raise TypeError(f"corrupt tokens are a {type(corrupt).__name__}, patching needs an integer tensor [batch, pos]")
    made = Intervention(
        model,
        clean,
        Ablation("zero", patterns, norms),
        corrupt=corrupt,
        direction=direction,
        positions=positions,
        metric=metric,
        count=count,
        max_bytes=max_bytes,
    )
    config = {"corrupt": array_hash(corrupt.cpu()), "direction": direction, "kept": [patterns, norms]}
    return _judged(model, made, place, controls, seed, "path_patching", config)


def check_asked(model: Any, place: Any, controls: Any, seed: Any) -> None:
    """Refuse a place that the model has not, and options that are no numbers, before anything is run.

    Raises:
        TypeError, ValueError: as said.
    """
    check_whole("controls", controls, 0)
    check_whole("seed", seed, 0)
    read(place).paths(wiring_of(model))


def _judged(
    model: Any, made: Intervention, place: Any, controls: int, seed: int, name: str, config: dict[str, Any]
) -> "xr.Dataset":
    asked = read(place)
    paths = asked.paths(made.wiring)
    others = [control for (control,) in matched_sets([paths], made.wiring, controls, seed)]
    effect = effects_of_sets(made, [paths, *others]).double().numpy()
    value, stderr = mean_and_stderr(effect[0])
    against = effect[1:].mean(-1)
    base = made.base().double().numpy()
    metric = made.metric if isinstance(made.metric, str) else getattr(made.metric, "__qualname__", repr(made.metric))
    config = {
        **config,
        "place": str(asked),
        "metric": metric,
        "count": None if made.count is None else array_hash(made.count.cpu()),
        "positions": None if made.positions is None else array_hash(made.positions.cpu()),
        "controls": controls,
        "seed": seed,
    }
    return labelled(
        {
            "value": ((), value),
            "stderr": ((), stderr),
            "effect": (("example",), effect[0]),
            "base": (("example",), base),
            "control": (("edge",), against),
            **{field: ((), number) for field, number in beside(float(value), against)._asdict().items()},
        },
        {"example": np.arange(len(base)), "edge": [named(one) for one in others]},
        measure=Made(name, VERSION, config),
        definition="change of the metric when the writes at the place are replaced, mean over examples",
        source="Goldowsky-Dill et al. 2023; Wang et al. 2022",
        place=str(asked),
        paths=len(paths),
        model_hash=model_hash(model),
        data_hash=array_hash(made.targets.cpu()),
        n_examples=len(base),
        units="nats" if metric == "loss" else metric,
        null="the same paths through other heads of the same layers",
    )


def effects_of_sets(made: Intervention, sets: "list[tuple[Path, ...]]") -> Tensor:
    """Effects of sets of paths, ``[set, example]``; single edges go the fast way."""
    if all(len(paths) == 1 and len(paths[0]) == 2 for paths in sets):
        return made.one_by_one([Edge(*paths[0]) for paths in sets])
    return made.together(sets)


def named(paths: "tuple[Path, ...]") -> str:
    """Concrete paths as a place's text."""
    return ", ".join(" -> ".join(path) for path in paths)
