"""What a head's coefficient has to beat: simpler measures of the same weights on the same text, ``value (kind, layer, head)``.

    hessian_trace    tr H of the head's weights (Hutchinson), nats
    fisher_trace     E |grad log p|^2 per token, labels drawn from the model; tr H if the model were the truth
    noise_loss       E L(w* + xi) - L(w*), xi normal of sd 1 / sqrt(gamma): how much localisation alone hurts, nats
    weight_norm      |w*|, the Euclidean norm of the head's weights
    ablation_loss    rise of the loss when the head's z is its mean over other sequences, nats
    local_estimate   the coefficient if the loss were quadratic: with curvatures h, gradient g and a = nbeta h + gamma,
                     sum of [ nbeta h / 2a - ((nbeta g)^2 / a) (1 - nbeta h / 2a) ]

The last is the closed form of what the sampler estimates; without its gradient term it is wrong wherever ``w*`` is no minimum.
It needs ``a > 0`` in every direction and is "unbounded" where one is met that is not; few steps of Lanczos miss some. Curvatures
are those of many sequences at once: ``h / a`` bends down, so its mean over few of them lies below its value for the text.

``as_llc`` is what each of them alone would predict: ``nbeta / 2 gamma`` times the trace (to first order in ``nbeta h / gamma``),
``nbeta`` times the noise loss, and the local estimate itself; the others have no such scale.

The Fisher trace comes from one gradient a sequence: given the text, scores of labels drawn from the model are uncorrelated
between positions, so ``T |grad of the sequence's mean|^2`` has the mean over positions as its expectation.

Sources: llc of a quadratic: standard Gaussian integrals; nulls after the reviews of Wang et al. 2024.
"""

import math
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from circuits.complexity.config import SamplerConfig, sampler_config
from circuits.complexity.engine import HeadLoss
from circuits.complexity.hessian import Quadrature, lanczos, mean_gradient, random_signs
from circuits.complexity.pool import TOGETHER, Pool
from circuits.complexity.rllc import check_asked, check_named, spec_of
from circuits.models.effects import head_effects
from circuits.models.heads import Head
from circuits.models.own import own
from circuits.models.protocol import check_model, model_hash
from circuits.progress import bar
from circuits.results import array_hash, check_whole, labelled

KINDS = ("hessian_trace", "fisher_trace", "noise_loss", "weight_norm", "ablation_loss", "local_estimate")
UNITS = "nats, nats, nats, 1, nats, nbeta nats"


@dataclass(frozen=True)
class ComplexityNulls:
    """Nulls of ``RLLC``: ``Dataset(kind, layer, head)``.

    Args:
        tokens, config, on: as ``RLLC``'s; of the settings ``gamma``, ``nbeta``, ``chains``, ``batch`` and ``seed`` count.
        probes: vectors of random signs behind traces, each with ``sequences`` drawn for it. steps: of Lanczos. noises: draws of
            noise of each chain. reference: as ``RLLC``'s; then the loss is the divergence from it, and ablation is not measured.
    """

    tokens: Int[Tensor, "example pos"] = field(compare=False)
    config: SamplerConfig | str = "paper"
    on: str = "text"
    probes: int = 3
    sequences: int = 64
    steps: int = 3
    noises: int = 8
    reference: Any = field(default=None, compare=False)
    progress: bool | None = field(default=False, compare=False)
    keep_tokens: bool = field(default=False, init=False)
    version: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", sampler_config(self.config))
        check_named(self.on, self.keep_tokens, self.tokens)
        if self.reference is not None:
            check_model(self.reference)
        check_whole("probes", self.probes, 2)
        check_whole("sequences", self.sequences, 1)
        check_whole("steps", self.steps, 1)
        check_whole("noises", self.noises, 2)

    @property
    def name(self) -> str:
        return f"nulls_{self.on}"

    def spec(self) -> dict[str, Any]:
        return spec_of(self, {"probes": [self.probes, self.sequences, self.steps], "noises": self.noises})

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            ``value``, ``stderr``, ``as_llc``, ``as_llc_stderr`` and ``state`` ("ok", "unbounded", "not measured"), all ``(kind,
            layer, head)``; ``smallest`` and ``largest`` curvature met, from inside, and the gradient's norm ``slope``, ``(layer,
            head)``. Errors are over probes, sequences or draws; a norm has none.

        Raises:
            TypeError, ValueError: as ``RLLC``; a model that cannot be one of ours.
        """
        config = check_asked(self, model)
        model_ = own(model)
        pool = Pool(model_, self.tokens, None if self.reference is None else own(self.reference))
        shape = (len(KINDS), model_.cfg.n_layers, model_.cfg.n_heads)
        value, stderr, as_llc, as_llc_stderr = (np.full(shape, np.nan) for _ in range(4))
        state = np.full(shape, "ok", dtype=object)
        extremes = {name: np.full(shape[1:], np.nan) for name in ("smallest", "largest", "slope")}
        ablation = np.full((*shape[1:], 2), np.nan)  # [layer, head, example]
        if self.reference is None:
            effects = [found.total.double() for found in head_effects(model_, self.tokens, "mean", direct=False)]
            ablation = torch.cat(effects, 2).mean(-1).numpy()
        else:
            state[KINDS.index("ablation_loss")] = "not measured"
        heads = [Head(layer, head) for layer in range(shape[1]) for head in range(shape[2])]
        with bar(heads, label=self.name, on=self.progress, unit="head") as shown:
            for head in shown:
                at = (head.layer, head.head)
                loss = HeadLoss(pool, head)
                generator = torch.Generator().manual_seed(config.seed * 1_000_003 + head.layer * 1_009 + head.head)
                gamma = config.gamma_for(float(loss.centre.square().mean().sqrt()))
                spectrum, slopes, slope = self._spectra(loss, generator)
                local = local_estimate(spectrum, slopes, config.nbeta, gamma)
                trace, noise = spectrum.of(lambda h: h), self._noise(loss, gamma, generator)
                fisher = fisher_traces(loss, generator)
                for kind, samples in (
                    ("hessian_trace", trace),
                    ("fisher_trace", fisher),
                    ("noise_loss", noise),
                    ("ablation_loss", torch.from_numpy(ablation[at])),
                    ("local_estimate", local),
                ):
                    where = (KINDS.index(kind), *at)
                    value[where] = float(samples.mean())
                    stderr[where] = float(samples.std() / math.sqrt(len(samples)))
                norm = (KINDS.index("weight_norm"), *at)
                value[norm], stderr[norm] = float(loss.centre.norm()), 0.0
                every = torch.cat([spectrum.ritz.flatten(), slopes.ritz.flatten()])
                extremes["smallest"][at], extremes["largest"][at] = float(every.min()), float(every.max())
                extremes["slope"][at] = slope
                if float(every.min()) * config.nbeta + gamma <= 0:
                    where = (KINDS.index("local_estimate"), *at)
                    value[where], stderr[where], state[where] = np.nan, np.nan, "unbounded"
                if not gamma:
                    state[KINDS.index("noise_loss"), *at] = "unbounded"
                scales = {
                    "hessian_trace": config.nbeta / (2 * gamma) if gamma else np.nan,
                    "noise_loss": config.nbeta,
                    "local_estimate": 1.0,
                }
                for kind, scale in scales.items():
                    where = (KINDS.index(kind), *at)
                    as_llc[where], as_llc_stderr[where] = scale * value[where], scale * stderr[where]
        dims = ("kind", "layer", "head")
        found = {"value": value, "stderr": stderr, "as_llc": as_llc, "as_llc_stderr": as_llc_stderr, "state": state.astype("U")}
        variables: dict[str, Any] = {name: (dims, values) for name, values in found.items()}
        variables |= {name: (dims[1:], values) for name, values in extremes.items()}
        return labelled(
            variables,
            {"kind": list(KINDS), "layer": np.arange(shape[1]), "head": np.arange(shape[2])},
            measure=self,
            definition="simpler measures of a head's weights on the same text; see circuits.complexity.nulls",
            source="reviews of Wang et al. 2024; Hutchinson 1990; Ubaru et al. 2017",
            model_hash=model_hash(model),
            data_hash=array_hash(self.tokens.cpu()),
            n_examples=len(self.tokens),
            units=UNITS,
        )

    def _spectra(self, loss: HeadLoss, generator: torch.Generator) -> tuple[Quadrature, Quadrature, float]:
        """The spectrum as random probes and as the gradient see it, and the gradient's norm."""
        size = min(self.sequences, len(loss.base))
        drawn = [torch.randperm(len(loss.base), generator=generator)[:size] for _ in range(self.probes)]
        examples = torch.stack(drawn).to(loss.centre.device)
        signs = random_signs(self.probes, len(loss.centre), loss.centre, generator)
        spectrum = lanczos(loss, signs, examples, self.steps)
        gradient = mean_gradient(loss, TOGETHER)
        slopes = lanczos(loss, gradient[None], examples[:1], self.steps)
        return spectrum, slopes, float(gradient.norm())

    def _noise(self, loss: HeadLoss, gamma: float, generator: torch.Generator) -> Tensor:
        """``L(w* + xi) - L(w*)`` of independent draws, each on a batch of its own."""
        config = self.config
        assert isinstance(config, SamplerConfig)
        if gamma == 0:
            return torch.full((2,), torch.nan)
        found = []
        for _ in range(self.noises):
            xi = torch.randn(config.chains, len(loss.centre), generator=generator, dtype=loss.centre.dtype) / math.sqrt(gamma)
            examples = torch.stack([torch.randperm(len(loss.base), generator=generator)[: config.batch] for _ in xi])
            examples = examples.to(loss.centre.device)
            moved = loss.loss(loss.centre + xi.to(loss.centre.device), examples)
            found.append((moved - loss.base[examples]).double().flatten(1).mean(1).cpu())
        return torch.cat(found)


def local_estimate(spectrum: Quadrature, slopes: Quadrature, nbeta: float, gamma: float) -> Tensor:
    """The closed form, one value for every probe: curvature from it, the gradient's term in the mean."""

    def curved(h: Tensor) -> Tensor:
        return nbeta * h / (2 * (nbeta * h + gamma))

    def sloped(h: Tensor) -> Tensor:
        a = nbeta * h + gamma
        return nbeta**2 / a * (1 - nbeta * h / (2 * a))

    return spectrum.of(curved) - slopes.of(sloped).mean()


def fisher_traces(loss: HeadLoss, generator: torch.Generator) -> Tensor:
    """``E |grad log p|^2`` per token, one value for every sequence, labels drawn from the model at ``w*``."""
    pool = loss.pool
    drawn = copy(loss)
    drawn.pool = copy(pool)
    labels = []
    for x in pool.streams[-1]:
        p = pool.final.probabilities(x).cpu()
        labels.append(torch.multinomial(p, 1, generator=generator)[:, 0])
    drawn.pool.target = torch.stack(labels).to(pool.tokens.device)
    length = pool.tokens.shape[1] - 1
    found = []
    for some in torch.arange(len(pool.tokens), device=pool.tokens.device).split(4):
        _, gradient = drawn.loss_and_gradient(loss.centre.expand(len(some), -1), some[:, None])
        found.append(gradient.double().square().sum(1) * length)
    return torch.cat(found).cpu()
