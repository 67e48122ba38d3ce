"""How much paths of each order matter: the marginal effects of Elhage et al. 2021, patterns and norm scales frozen.

``L(<= n)`` is the loss with all paths through at most ``n`` heads (``circuits.paths.expansion``), and

    marginal effect of order n = L(<= n - 1) - L(<= n)      nats, positive where these paths help;  L(<= -1) = ln d_vocab_out

so effects add up to ``ln d_vocab_out - loss``, as ``L(<= n_layers)`` is the model's loss. Biases are no heads: ``b_U`` and what
a layer writes whatever it reads (output, value and norm biases, ``bias L0 -> logits``) are of order 0; what later heads make of
it is of their order. The paths of order 1 are also taken layer by layer, ``T_l`` being those through one head of layer ``l``:

    alone         L(<= 0) - L(<= 0 and T_l)      against the direct paths only
    given_rest    L(all but T_l) - L(all)        given everything else

The paper gets ``L(<= n)`` by running ``n + 1`` times with patterns forced and each head's output replaced by that of the run
before; here one pass carries the final stream of every order at once, which is the same sum.

The null of every effect: the added paths are those of another example (same positions), the rest is the example's own: what such
paths do without having read this text. Source: Elhage et al. 2021, "Term Importance Analysis"; exchange ours.
"""

from dataclasses import dataclass, field
from math import log
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.models.protocol import model_hash
from circuits.paths.frozen import FrozenRun, against, batches, check_examples, exchanges, fitting, linear_model
from circuits.results import array_hash, check_whole, labelled, mean_and_stderr


@dataclass(frozen=True)
class TermImportance:
    """Marginal effects of paths by order, and of single heads by layer: ``Dataset(order, layer)``, nats.

    Args:
        tokens: text ``[example, pos]`` with BOS first. shifts: exchanges among examples behind the null, or as many as there
            are in a batch. seed: of their distances.
    """

    tokens: Tensor = field(compare=False)
    shifts: int = 8
    seed: int = 0
    name: str = field(default="term_importance", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_examples(self.tokens, "marginal effects")
        check_whole("shifts", self.shifts, 2)
        check_whole("seed", self.seed, 0)

    def spec(self) -> dict[str, Any]:
        return {"tokens": array_hash(self.tokens.cpu()), "shifts": self.shifts, "seed": self.seed}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Dataset. With dim ``order`` (0..n_layers, an addition to the usual words): ``value``, the marginal effect in nats per
            predicted token, ``stderr`` over examples, ``null_mean``, ``null_sd``, ``z`` (over exchanges of these examples),
            ``excess``, the value less its null example by example, and ``excess_stderr`` over examples; ``loss`` with all paths
            up to that order and ``loss_stderr``. With dim ``layer``, of the paths through one head: ``alone`` and
            ``given_rest``, each with ``_stderr``, ``_null_mean``, ``_null_sd``, ``_z``, ``_excess``, ``_excess_stderr``.
            Attributes ``loss`` and ``uniform`` are in nats.

        Raises:
            TypeError, ValueError: not a hooked model, MLPs or capped logits, NaN weights, or tokens that do not fit.
        """
        twin = linear_model(model)
        tokens = fitting(twin, self.tokens, "marginal effects")
        uniform = log(twin.cfg.d_vocab_out)
        parts = list(batches(twin.cfg, tokens))
        smallest = min(map(len, parts))
        count = len(exchanges(smallest, self.shifts, self.seed))  # the same number of draws in every batch
        found = [
            effects_of(FrozenRun(twin, tokens[rows]), exchanges(len(rows), count, self.seed, at)) for at, rows in enumerate(parts)
        ]
        clean = torch.cat([effects.loss for effects in found], dim=1).double().cpu().numpy()  # [order, example]
        depth = twin.cfg.n_layers
        # [draw, effect, example], the first draw being the examples' own
        every = torch.cat([effects.effect for effects in found], dim=2).double().cpu().numpy()
        columns: dict[str, Any] = {}
        for prefix, dim, at in (
            ("", "order", slice(0, depth + 1)),
            ("alone", "layer", slice(depth + 1, 2 * depth + 1)),
            ("given_rest", "layer", slice(2 * depth + 1, None)),
        ):
            value, stderr = mean_and_stderr(every[0, at], axis=-1)
            excess, excess_stderr = mean_and_stderr(every[0, at] - every[1:, at].mean(0), axis=-1)
            measured = {"value": value, "stderr": stderr} | against(value, every[1:, at].mean(-1))
            measured |= {"excess": excess, "excess_stderr": excess_stderr}
            names = {name: f"{prefix}_{name}" if prefix else name for name in measured} | ({"value": prefix} if prefix else {})
            columns |= {names[name]: ((dim,), x) for name, x in measured.items()}
        loss, loss_stderr = mean_and_stderr(clean, axis=-1)
        return labelled(
            columns | {"loss": (("order",), loss), "loss_stderr": (("order",), loss_stderr)},
            {"order": np.arange(depth + 1), "layer": np.arange(depth)},
            measure=self,
            definition="loss with all paths of order < n, less that of order <= n; patterns and norms frozen",
            source="Elhage et al. 2021, term importance analysis",
            model_hash=model_hash(model),
            data_hash=array_hash(self.tokens.cpu()),
            loss=float(loss[-1]),
            uniform=uniform,
            n_examples=len(tokens),
            units="nats per predicted token",
            null=f"the added paths are those of another example, {count} exchanges",
        )


class Marginal(NamedTuple):
    """Losses and effects of a batch.

    Attributes:
        loss: with all paths up to each order, ``[order, batch]``. effect: of each order, of each layer alone and of each
            layer given the rest, ``[1 + exchange, effect, batch]``: the examples' own, then those of other examples.
    """

    loss: Float[Tensor, "order batch"]
    effect: Float[Tensor, "draw effect batch"]


def effects_of(run: FrozenRun, distances: list[int]) -> Marginal:
    """Every marginal effect of a batch, with its own paths and with those of the example so many further on."""
    orders, layers = run.by_order(), [run.of_layer(layer) for layer in range(run.cfg.n_layers)]
    upto = list(torch.stack(orders).cumsum(0))
    whole = upto[-1]
    nothing = torch.full_like(whole[:, 0, 0], log(run.cfg.d_vocab_out))
    loss = _losses(run, upto)
    rest = _losses(run, [whole - added for added in layers])
    # What each effect starts from (stream and loss) and what it adds. Uniform predictions have no stream: order 0 brings b_U too.
    bases = [torch.zeros_like(whole), *upto[:-1], *[upto[0]] * len(layers), *(whole - added for added in layers)]
    before = torch.stack([nothing, *loss[:-1], *[loss[0]] * len(layers), *rest])
    added = [*orders, *layers, *layers]
    draws = [before - _losses(run, [base + x.roll(-d, 0) for base, x in zip(bases, added, strict=True)]) for d in (0, *distances)]
    return Marginal(loss, torch.stack(draws))


def _losses(run: FrozenRun, streams: list[Tensor]) -> Float[Tensor, "stream batch"]:
    """Mean losses of examples with these final streams."""
    return torch.stack([run.losses(stream[None])[0].mean(-1) for stream in streams])
