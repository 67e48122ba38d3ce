"""Ablation of heads: what a head writes is replaced, and the rest of the model goes on with the replacement.

A head writes ``z W_O`` into the residual stream, ``z [batch, pos, head, d_head]`` being values weighted by attention. An ablation
replaces ``z`` (value biases are part of it) and says what is kept of the clean run:

    kind       zero        z = 0
               mean        z = its mean over the examples of a reference, position by position; if those are the tokens
                           themselves, over all other examples, so that nothing of an example's own is left
               resample    z = that of another example at the same position; who gives to whom is one seeded cycle
    patterns   recomputed  later heads attend as the changed stream makes them attend
               preserved   every pattern stays as it was in the clean run: only what values carry is lost
    norms      live        the scales of norms follow the changed stream
               frozen      they stay as they were in the clean run

``pattern_preserving`` is zero with patterns preserved. With norms frozen as well, an attention-only model is linear in what
each head writes, and the ablation subtracts every path term that holds the head. Sources: Olsson et al. 2022
(pattern-preserving), Wang et al. 2022 (mean), Chan et al. 2022 (resample).

All of this goes by hooks, on any model of the protocol, one forward pass an intervention; ``circuits.models.effects`` does all
heads at once and is held to this.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.heads import Head
from circuits.models.hooked import HookedTransformer
from circuits.models.protocol import device_of, norm_scale_names, pattern_name, undisturbed, z_name
from circuits.results import check_whole

Kind = Literal["zero", "mean", "resample"]
Patterns = Literal["recomputed", "preserved"]
Norms = Literal["live", "frozen"]


@dataclass(frozen=True)
class Ablation:
    """How a head is ablated; see the module's docstring.

    Args:
        kind: what replaces the head's ``z``. patterns, norms: what is kept of the clean run. seed: of the donors of ``resample``.
    """

    kind: Kind = "zero"
    patterns: Patterns = "recomputed"
    norms: Norms = "live"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("kind", get_args(Kind)), ("patterns", get_args(Patterns)), ("norms", get_args(Norms))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: need {' or '.join(map(repr, allowed))}")
        check_whole("seed", self.seed, 0)

    @classmethod
    def named(cls, name: "str | Ablation") -> "Ablation":
        """One of the four usual ones: ``"zero"``, ``"mean"``, ``"resample"``, ``"pattern_preserving"``.

        Raises:
            ValueError: another name.
        """
        if isinstance(name, Ablation):
            return name
        if not isinstance(name, str) or name not in ABLATIONS:
            raise ValueError(f"there is no ablation {name!r}; use {', '.join(ABLATIONS)}, or Ablation(kind, patterns, norms)")
        return ABLATIONS[name]


ABLATIONS = {
    "zero": Ablation("zero"),
    "mean": Ablation("mean"),
    "resample": Ablation("resample"),
    "pattern_preserving": Ablation("zero", patterns="preserved"),
}


def donors(examples: int, seed: int) -> Int[Tensor, "example"]:
    """Who gives to whom under ``resample``: a random cycle through all examples, so that none gives to itself.

    Raises:
        ValueError: there is one example only.
    """
    if examples < 2:
        raise ValueError("resample ablation takes the head's output from another example and one was given: pass two or more")
    order = np.random.default_rng([seed, 30]).permutation(examples)
    gives = np.empty(examples, dtype=np.int64)
    gives[order] = np.roll(order, 1)
    return torch.from_numpy(gives)


def recorded(model: Any, tokens: Int[Tensor, "batch pos"], names: Sequence[str]) -> dict[str, Tensor]:
    """The activations of these hook points in a run on ``tokens``."""
    kept: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any, name: str) -> None:
        # By the name asked for: a bridge's hook points have names of their own. A later hook may write into what it is given.
        kept[name] = value.detach().clone()

    with undisturbed(model), model.hooks(fwd_hooks=[(name, partial(keep, name=name)) for name in names]):
        if isinstance(model, HookedTransformer):
            model.train()  # no dropout: the key to the fused kernels, which step back where a pattern or scale is asked for
        model(tokens, return_type=None)
    return kept


def held(kept: Tensor, value: Tensor, hook: Any) -> Tensor:
    """A hook, once its first argument is given, that puts this activation in the place of what comes."""
    return kept


def mean_z(model: Any, tokens: Int[Tensor, "example pos"], *, batch: int = 32) -> Float[Tensor, "layer pos head d_head"]:
    """Every head's mean ``z`` at each position over the examples: what ``mean`` ablation puts in its place."""
    names = [z_name(layer) for layer in range(model.cfg.n_layers)]
    total = None
    for part in tokens.to(device_of(model)).split(batch):
        kept = recorded(model, part, names)
        summed = torch.stack([kept[name].sum(0) for name in names])
        total = summed if total is None else total + summed
    assert total is not None  # tokens were checked to be there
    return total / len(tokens)


def replacement(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    kind: Kind,
    *,
    mean: Float[Tensor, "layer pos head d_head"] | None = None,
    donor: Int[Tensor, "batch pos"] | None = None,
    examples: int | None = None,
) -> Float[Tensor, "layer batch pos head d_head"]:
    """What every head's ``z`` is replaced with on these tokens.

    Args:
        mean: of ``mean_z``, for kind ``mean``. donor: the donors' tokens, for kind ``resample``.
        examples: how many the mean is over, if the tokens are among them: each is then left out of its own mean.
    """
    layers = range(model.cfg.n_layers)
    if kind == "mean":
        assert mean is not None  # head_effects gives it
        if examples is None:
            return mean[:, None].expand(-1, len(tokens), -1, -1, -1)
        own = recorded(model, tokens, [z_name(layer) for layer in layers])
        return torch.stack([(examples * mean[layer] - own[z_name(layer)]) / (examples - 1) for layer in layers])
    if kind == "resample":
        assert donor is not None
        given = recorded(model, donor, [z_name(layer) for layer in layers])
        return torch.stack([given[z_name(layer)] for layer in layers])
    weight = model.blocks[0].attn.W_O
    heads, d_head = weight.shape[0], weight.shape[1]
    return weight.new_zeros(()).expand(len(layers), *tokens.shape, heads, d_head)


@contextmanager
def ablated(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    heads: Sequence[Head],
    put: Float[Tensor, "layer batch pos head d_head"],
    *,
    patterns: Patterns = "recomputed",
    norms: Norms = "live",
) -> Iterator[None]:
    """A context in which ``model(tokens)``, for exactly these tokens, runs with the heads' ``z`` replaced by what ``put`` has.

    The model is as found afterwards.
    """
    layers = range(model.cfg.n_layers)
    clean: dict[str, Tensor] = {}
    if patterns == "preserved":
        clean |= recorded(model, tokens, [pattern_name(layer) for layer in layers])
    if norms == "frozen":
        clean |= recorded(model, tokens, [name for layer in (*layers, len(layers)) for name in norm_scale_names(model, layer)])

    def replace(z: Tensor, hook: Any, layer: int) -> Tensor:
        z = z.clone()
        for head in heads:
            if head.layer == layer:
                z[:, :, head.head] = put[layer, :, :, head.head]
        return z

    hooks: list[tuple[str, Callable[..., Tensor]]] = [(name, partial(held, clean[name])) for name in clean]
    hooks += [(z_name(layer), partial(replace, layer=layer)) for layer in {head.layer for head in heads}]
    with undisturbed(model), model.hooks(fwd_hooks=hooks):
        yield
