"""The exact effect of every edge of a model, one at a time, with errors and matched edges beside.

    value(u -> v) = mean over examples of metric(v reads u's alternative in place of u) - metric(clean)

in nats of loss: above 0 where the edge helps. All that v changes downstream is computed anew; other readers of u see the clean u.
The null of an edge are the other edges of its kind (heads of the same two layers, the same input). ``all_edges`` says how the
effects are computed, ``values`` what alternatives are, ``wiring`` which edges there are.

A single edge's effect misses what is redundant: where two edges carry the same, removing either costs nothing. Of the published
methods this one finds planted circuits worst (Mueller et al. 2025, MIB). ``circuits.paths.joint`` has effects of sets and
effects given that others are gone, ``circuits.paths.attribution`` first-order and integrated estimates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from torch import Tensor

from circuits.models.interventions import Ablation
from circuits.models.protocol import check_tokens, model_hash
from circuits.paths.intervention import MAX_BYTES, Intervention
from circuits.paths.matched import edges_beside
from circuits.paths.metrics import check_metric
from circuits.paths.places import Place, edges_in, read
from circuits.paths.values import Over
from circuits.paths.wiring import Edge, Wiring, wiring_of
from circuits.results import array_hash, check_whole, labelled, mean_and_stderr

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class EdgeEffects:
    """What every edge is worth: ``Dataset(edge)``.

    Args:
        tokens: ``[example, pos]``, BOS first. ablation: a name of ``circuits.models.interventions.ABLATIONS`` or an ``Ablation``.
        over: of mean ablation, "examples" (position by position) or "positions". reference: tokens of the mean (default: the
            other examples; pass many where values matter). corrupt: tokens of the same shape; writes of the run on them are then
            put in (a counterfactual), and of ``ablation`` only what it keeps is used.
        count: bools ``[example, pos - 1]``, the predictions whose loss is taken (default: all). positions: bools
            ``[example, pos]``, where writes are replaced (default: everywhere). where: a place whose edges alone are measured
            (default: all edges). on: what the tokens are, in a word; part of the measure's name, so that effects on several
            texts can stand side by side. max_bytes: of tensors held at a time.
    """

    tokens: Tensor = field(compare=False)
    ablation: str | Ablation = "mean"
    over: Over = "examples"
    reference: Tensor | None = field(default=None, compare=False)
    corrupt: Tensor | None = field(default=None, compare=False)
    positions: Tensor | None = field(default=None, compare=False)
    count: Tensor | None = field(default=None, compare=False)
    where: str | None = None
    on: str = ""
    max_bytes: int = MAX_BYTES
    version: int = field(default=1, init=False)

    @property
    def name(self) -> str:
        return f"edge_effects_{self.on}" if self.on else "edge_effects"

    def __post_init__(self) -> None:
        check_tokens(self.tokens, d_vocab=2**31, n_ctx=2**31, min_length=2, needed_by="the effect of an edge")
        check_metric("loss", self.count, (self.tokens.shape[0], self.tokens.shape[1]))
        if self.over not in get_args(Over):
            raise ValueError(f"over={self.over!r}: need {' or '.join(map(repr, get_args(Over)))}")
        for name in ("reference", "corrupt", "positions"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), Tensor):
                raise TypeError(f"{name} is a {type(getattr(self, name)).__name__}, need a tensor")
        check_whole("max_bytes", self.max_bytes, 1)
        object.__setattr__(self, "ablation", Ablation.named(self.ablation))
        if not isinstance(self.on, str) or (self.on and not self.on.isidentifier()):
            raise ValueError(f"on={self.on!r}: need one word, such as 'repeats'")
        if self.where is not None:
            object.__setattr__(self, "where", str(Place.parse(self.where)))

    def spec(self) -> dict[str, Any]:
        ablation = Ablation.named(self.ablation)
        return {
            "tokens": array_hash(self.tokens.cpu()),
            "ablation": [ablation.kind, ablation.patterns, ablation.norms, ablation.seed],
            "over": self.over,
            **{
                name: None if given is None else array_hash(given.cpu())
                for name, given in (
                    ("reference", self.reference),
                    ("corrupt", self.corrupt),
                    ("positions", self.positions),
                    ("count", self.count),
                )
            },
            "where": self.where,
        }

    def intervention(self, model: Any) -> Intervention:
        """The intervention whose single edges this measures, to edit sets of them on the same data."""
        return Intervention(
            model,
            self.tokens,
            self.ablation,
            over=self.over,
            reference=self.reference,
            corrupt=self.corrupt,
            positions=self.positions,
            count=self.count,
            max_bytes=self.max_bytes,
        )

    def edges(self, wiring: Wiring) -> tuple[Edge, ...]:
        return wiring.edges if self.where is None else edges_in(read(self.where), wiring)

    def __call__(self, model: Any) -> "xr.Dataset":
        """Measure a model.

        Returns:
            Dataset with dim ``edge`` (``"L0H3 -> L1H4.k"``): ``value``, nats of mean loss that replacing the source's write at
            this input alone adds; ``stderr`` over examples; ``null_mean``, ``null_sd``, ``z``, ``p`` and ``smallest_p`` among
            the other edges of its kind (NaN where there are fewer than two; z describes, p is two-sided by rank); ``source``
            and ``destination``, their names; ``base``, the clean loss, and ``base_stderr``.

        Raises:
            TypeError, ValueError: not a hooked model, one in training mode, NaN weights, tokens or a place that do not fit.
        """
        edges = self.edges(wiring_of(model))
        made = self.intervention(model)
        return edge_results(self, model, made, edges, made.one_by_one(edges).double().numpy())


def edge_results(
    measure: Any,
    model: Any,
    made: Intervention,
    edges: Sequence[Edge],
    effect: np.ndarray,
    *,
    definition: str = "change of the loss when a source's write is replaced at one input alone",
    source: str = "edge patching (direct paths): Goldowsky-Dill et al. 2023; Miller et al. 2024",
    more: dict[str, Any] | None = None,
) -> "xr.Dataset":
    """Effects of edges ``[edge, example]`` as a labelled result, with errors and matched edges."""
    value, stderr = mean_and_stderr(effect, axis=1)
    base, base_stderr = mean_and_stderr(made.base().double().numpy())
    return labelled(
        {
            "value": (("edge",), value),
            "stderr": (("edge",), stderr),
            **{name: (("edge",), numbers) for name, numbers in edges_beside(value, edges, made.wiring).items()},
            "source": (("edge",), np.array([edge.source for edge in edges])),
            "destination": (("edge",), np.array([edge.destination for edge in edges])),
            "base": ((), base),
            "base_stderr": ((), base_stderr),
            **(more or {}),
        },
        {"edge": [str(edge) for edge in edges]},
        measure=measure,
        definition=definition,
        source=source,
        model_hash=model_hash(model),
        data_hash=array_hash(made.targets.cpu()),
        n_examples=len(made),
        units="nats",
        null="the other edges of its kind: heads of the same layers, the same input",
    )


def edge_list(effects: "xr.Dataset") -> list[Edge]:
    """The edges of a result."""
    return [Edge(*str(name).split(" -> ")) for name in effects["edge"].values]


def matrix(effects: "xr.Dataset", variable: str = "value") -> "xr.DataArray":
    """A result's edges as a table ``[source, destination]``; NaN where there is no edge.

    Raises:
        ValueError: no such result of one checkpoint.
    """
    import xarray as xr

    if not isinstance(effects, xr.Dataset) or variable not in effects or effects[variable].dims != ("edge",):
        raise ValueError(
            f"a table needs {variable!r} of every edge at one checkpoint: pass EdgeEffects(...)(model), or .sel(step=...)"
        )
    edges = edge_list(effects)
    sources = list(dict.fromkeys(sorted((edge.source for edge in edges), key=_order)))
    destinations = list(dict.fromkeys(edge.destination for edge in edges))
    table = np.full((len(sources), len(destinations)), np.nan)
    for edge, number in zip(edges, effects[variable].values, strict=True):
        table[sources.index(edge.source), destinations.index(edge.destination)] = number
    return xr.DataArray(table, coords={"source": sources, "destination": destinations}, dims=("source", "destination"))


def _order(source: str) -> tuple[int, int, int]:
    """Embeddings, then heads and the MLP of each layer."""
    if source in ("embed", "pos"):
        return -1, 0, int(source == "pos")
    layer, _, head = source[1:].partition("H")
    return (int(layer), 0, int(head)) if head else (int(layer.removesuffix("MLP")), 1, 0)
