"""Local learning coefficients: of all weights (LLC), and refined to a head, a text, or a reference model (rLLC).

    llc = nbeta (E[L(w)] - L(w*)),   w ~ exp(-nbeta L(w) - gamma/2 |w - w*|^2)

``L`` is the mean next-token loss in nats; refined, only the head's weights move (weight-refined), the text is another one than
the model was trained on (data-refined), or ``L`` is the divergence from a reference model, ``KL(reference || model)`` per token
(loss-refined). Every draw's loss is paired with that of ``w*`` on the same sequences; burn-in and the start are left out.

What it measures at a given setting: along a direction of curvature ``h`` a quadratic loss adds ``nbeta h / 2 (nbeta h +
gamma)``, at most 1/2, so that a regular model of ``d`` weights has at most ``d / 2``. Where most ``h`` are far below ``gamma /
nbeta`` the sum is near ``nbeta / 2 gamma`` times the trace of the Hessian: read it beside ``circuits.complexity.nulls``, which
are computed on the same text. It may be negative where ``w*`` is no minimum of ``L``, as on another text than the model's own.

Sources: Lau et al. 2023 (estimator); Wang et al. 2024, equation 5 and section 3 (refinements, settings).
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from torch import Tensor

from circuits.complexity.blocks import Block
from circuits.complexity.chains import Loss, Traces, run_chains
from circuits.complexity.config import SamplerConfig, sampler_config
from circuits.complexity.diagnostics import Estimate, estimate
from circuits.complexity.engine import HeadLoss
from circuits.complexity.general import GeneralLoss
from circuits.complexity.pool import Pool, check_text
from circuits.complexity.stability import EXAMPLES, check_stable, sharpness, spaced
from circuits.models.heads import Head, named
from circuits.models.own import own
from circuits.models.protocol import check_evaluated, check_finite, check_model, model_hash, named_parameters
from circuits.progress import bar
from circuits.results import array_hash, labelled

VERSION = 1
SOURCE = "Lau et al. 2023; Wang et al. 2024, section 3"
DEFINITION = (
    "nbeta (E[L(w)] - L(w*)) over draws of exp(-nbeta L(w) - gamma/2 |w - w*|^2), each draw paired with w* on the same sequences"
)
FIELDS = ("value", "stderr", "rhat", "ess", "state", "distance", "n_diverged")


@dataclass(frozen=True)
class RLLC:
    """The refined local learning coefficient of every head: ``Dataset(layer, head)`` with traces ``(layer, head, chain, draw)``.

    Args:
        tokens: the text, ``[example, pos]``, BOS first. config: settings, or their name. on: what the text is called; part of
        the name. heads: which heads; the others are NaN, state "not asked". None: all. reference: a model whose predictions are
        the target instead of the text's next tokens. keep_tokens: also give
            ``token_value (layer, head, example, pos)``, what the prediction at each position contributes.
    """

    tokens: Int[Tensor, "example pos"] = field(compare=False)
    config: SamplerConfig | str = "paper"
    on: str = "text"
    heads: Any = None
    reference: Any = field(default=None, compare=False)
    keep_tokens: bool = False
    progress: bool | None = field(default=False, compare=False)
    version: int = field(default=VERSION, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", sampler_config(self.config))
        if self.heads is not None:
            object.__setattr__(self, "heads", named(self.heads))
            if not self.heads:
                raise ValueError("heads is empty; name some, such as ['L0H3', 'L1H0'], or None for all")
        check_named(self.on, self.keep_tokens, self.tokens)
        if self.reference is not None:
            check_model(self.reference)

    @property
    def name(self) -> str:
        return f"rllc_{self.on}"

    def spec(self) -> dict[str, Any]:
        heads = None if self.heads is None else [str(head) for head in self.heads]
        return spec_of(self, {"heads": heads})

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            ``value`` (half the number of weights at most for a regular model; no chance level), ``stderr`` of sampling,
            ``rhat``, ``ess``, ``state`` ("ok", "not mixed", "few draws", "unmoved", "diverged", "not asked"), ``distance``
            (root mean square, from ``w*``), ``n_diverged`` chains, ``gamma`` and ``curvature`` (of eight sequences at ``w*``,
            a lower bound of the largest), all ``(layer, head)``; ``loss``, ``initial_loss`` (of ``w*`` on the same batch) and
            ``squared_distance``, ``(layer, head, chain, draw)``, NaN from where a chain diverged.

        Raises:
            TypeError, ValueError: not a hooked model or in training mode, NaN weights, tokens that do not fit or are fewer than
            a batch, an unknown head; settings that would diverge for one of the heads, before any is sampled.
        """
        config = check_asked(self, model)
        cfg = model.cfg
        every = [Head(layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
        asked = every if self.heads is None else sorted({Head.parse(head, cfg) for head in self.heads})
        make = head_losses(model, self.tokens, self.reference)
        found = Collected((cfg.n_layers, cfg.n_heads), config, self.tokens.shape if self.keep_tokens else None)
        settled = {head: settle(make(head), config, str(head)) for head in asked}
        with bar(asked, label=self.name, on=self.progress, unit="head") as shown:
            for head in shown:
                loss, at = make(head), (head.layer, head.head)
                found.put(at, *sample(loss, config, settled[head].gamma, at, self.keep_tokens), *settled[head])
        coords = {"layer": np.arange(cfg.n_layers), "head": np.arange(cfg.n_heads)}
        return found.labelled(coords, measure=self, model=model, initial=initial_loss(loss.base), units="nbeta nats")


@dataclass(frozen=True)
class LLC:
    """The local learning coefficient of all weights, or of any block of them: a scalar, with traces ``(chain, draw)``.

    Args:
        tokens, config, on, reference, keep_tokens: see ``RLLC``. weights: "all", "L0", "embed", a head, a list, parameter names;
            see ``circuits.complexity.blocks``.
    """

    tokens: Int[Tensor, "example pos"] = field(compare=False)
    config: SamplerConfig | str = "paper"
    on: str = "text"
    weights: Any = "all"
    reference: Any = field(default=None, compare=False)
    keep_tokens: bool = False
    progress: bool | None = field(default=False, compare=False)
    version: int = field(default=VERSION, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", sampler_config(self.config))
        if isinstance(self.weights, list):
            object.__setattr__(self, "weights", tuple(self.weights))
        check_named(self.on, self.keep_tokens, self.tokens)
        if self.reference is not None:
            check_model(self.reference)

    @property
    def name(self) -> str:
        return f"llc_{self.on}"

    @property
    def asked(self) -> Any:
        """The weights as ``Block`` takes them: a pair of numbers is a head, any other tuple a list."""
        given = self.weights
        pair = isinstance(given, tuple) and len(given) == 2 and all(isinstance(part, int) for part in given)
        return list(given) if isinstance(given, tuple) and not pair else given

    def spec(self) -> dict[str, Any]:
        return spec_of(self, {"weights": str(self.weights)})

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            As ``RLLC``, without ``layer`` and ``head``.

        Raises:
            As ``RLLC``; weights that the model does not have.
        """
        config = check_asked(self, model)
        loss = GeneralLoss(model, self.tokens, self.asked, self.reference)
        found = Collected((), config, self.tokens.shape if self.keep_tokens else None)
        settled = settle(loss, config, loss.block.text)
        found.put((), *sample(loss, config, settled.gamma, (), self.keep_tokens), *settled)
        return found.labelled({}, measure=self, model=model, initial=initial_loss(loss.base), units="nbeta nats")


class Settled(NamedTuple):
    """The localisation of a block of weights, and the largest curvature found."""

    gamma: float
    curvature: float


def settle(loss: Loss, config: SamplerConfig, name: str) -> Settled:
    """What the settings are for one block of weights.

    Raises:
        ValueError: chains would diverge.
    """
    gamma = config.gamma_for(float(loss.centre.square().mean().sqrt()))
    found = sharpness(loss, spaced(loss, EXAMPLES), config.seed)
    check_stable(name, loss, found, gamma, config)
    return Settled(gamma, found.curvature)


def sample(
    loss: Loss, config: SamplerConfig, gamma: float, stream: tuple[int, ...], keep_parts: bool = False
) -> tuple[Traces, Estimate]:
    """Traces and the estimate of one block of weights."""
    traces = run_chains(loss, config, gamma=gamma, stream=stream, keep_parts=keep_parts)
    return traces, estimate(traces, config)


def head_losses(model: Any, tokens: Tensor, reference: Any) -> Any:
    """A function from heads to their losses: by the engine, or by running the model whole where it cannot be one of ours."""
    try:
        ours = own(model)
        other = None if reference is None else own(reference)
    except ValueError:
        return lambda head: GeneralLoss(model, tokens, head, reference)
    pool = Pool(ours, tokens, other)
    return lambda head: HeadLoss(pool, head)


class Collected:
    """Estimates and traces of several blocks of weights, filled in one by one."""

    def __init__(self, shape: tuple[int, ...], config: SamplerConfig, text: tuple[int, ...] | None):
        self.dims = ("layer", "head")[: len(shape)]
        self.config = config
        self.numbers = {name: np.full(shape, np.nan) for name in (*FIELDS, "gamma", "curvature") if name != "state"}
        self.state = np.full(shape, "not asked", dtype=object)
        traced = (*shape, config.chains, config.draws)
        self.traces = {name: np.full(traced, np.nan, np.float32) for name in ("loss", "initial_loss", "squared_distance")}
        self.parts = None if text is None else np.full((*shape, text[0], text[1] - 1), np.nan, np.float32)

    def put(self, at: tuple[int, ...], traces: Traces, found: Estimate, gamma: float, curvature: float) -> None:
        """One block's."""
        for name, value in {**found._asdict(), "gamma": gamma, "curvature": curvature}.items():
            if name != "state":
                self.numbers[name][at] = value
        self.state[at] = found.state
        seen = zip(self.traces.values(), (traces.loss, traces.base, traces.distance), strict=True)
        for into, trace in seen:
            into[at] = trace.cpu().numpy()
        if self.parts is not None and traces.parts is not None:
            self.parts[at] = self.config.nbeta * traces.parts.cpu().numpy()

    def labelled(self, coords: dict[str, Any], *, measure: Any, model: Any, initial: tuple[float, float], units: str) -> Any:
        """All of it as one dataset."""
        variables: dict[str, Any] = {name: (self.dims, values) for name, values in self.numbers.items()}
        variables["state"] = (self.dims, self.state.astype("U"))
        for name, values in self.traces.items():
            variables[name] = ((*self.dims, "chain", "draw"), values)
        coords = {**coords, "chain": np.arange(self.config.chains), "draw": np.arange(self.config.draws)}
        if self.parts is not None:
            variables["token_value"] = ((*self.dims, "example", "pos"), self.parts)
            coords |= {"example": np.arange(self.parts.shape[-2]), "pos": 1 + np.arange(self.parts.shape[-1])}
        variables["mean_loss"], variables["mean_loss_stderr"] = ((), initial[0]), ((), initial[1])
        return labelled(
            variables,
            coords,
            measure=measure,
            definition=DEFINITION,
            source=SOURCE,
            model_hash=model_hash(model),
            data_hash=array_hash(measure.tokens.cpu()),
            n_examples=len(measure.tokens),
            units=units,
        )


def initial_loss(base: Tensor) -> tuple[float, float]:
    """The loss of ``w*`` over the whole pool, with its standard error over sequences."""
    each = base.double().flatten(1).mean(1)
    return float(each.mean()), float(each.std() / len(each) ** 0.5) if len(each) > 1 else float("nan")


def spec_of(measure: Any, more: dict[str, Any]) -> dict[str, Any]:
    """What the numbers depend on. Settings at their defaults do not count, so that one added later changes no name of a file."""
    return {
        "tokens": array_hash(measure.tokens.cpu()),
        "config": measure.config.model_dump(exclude_defaults=True, exclude={"force"}),
        "reference": None if measure.reference is None else model_hash(measure.reference),
        "keep_tokens": measure.keep_tokens,
        **more,
    }


def check_named(on: Any, keep_tokens: Any, tokens: Any) -> None:
    """Refuse a name that cannot be part of a file's, a switch that is none, and tokens that are no tensor.

    Raises:
        TypeError, ValueError: as said.
    """
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens are a {type(tokens).__name__}; need an integer tensor [example, pos]: use torch.tensor(ids)")
    if not isinstance(on, str) or not on.isidentifier():
        raise ValueError(f"on={on!r}: need a word that names the text, such as 'code' or 'shuffled_code'")
    if not isinstance(keep_tokens, bool):
        raise ValueError(f"keep_tokens={keep_tokens!r}: need True or False")


def check_asked(measure: Any, model: Any) -> SamplerConfig:
    """Refuse a model and tokens that cannot be sampled, before any work.

    Raises:
        TypeError, ValueError: as ``RLLC`` says.
    """
    config = measure.config
    for one in (model,) if measure.reference is None else (model, measure.reference):
        check_model(one)
        check_evaluated(one)
        check_finite(one)
        check_text(measure.tokens, one.cfg, config.batch)
    if measure.reference is not None and measure.reference.cfg.d_vocab_out != model.cfg.d_vocab_out:
        raise ValueError(
            f"the reference predicts {measure.reference.cfg.d_vocab_out} tokens and the model {model.cfg.d_vocab_out}: "
            "take a reference with the same vocabulary"
        )
    for head in getattr(measure, "heads", None) or ():
        Head.parse(head, model.cfg)
    if isinstance(measure, LLC):
        Block(measure.asked, dict(named_parameters(model)), model.cfg)
    return config
