"""What each path of an attention-only model does to the loss: shares that add up exactly, with errors and a null.

With ``l = sum_p l_p`` the logits that predict token ``t``, one term for each path (``circuits.paths.expansion``),

    share_p = integral_0^1 ( E_{softmax(a l)}[l_p] - l_p[t] ) da      nats,      sum_p share_p = loss - ln d_vocab_out

which is integrated gradients along the scaling of all logits from the uniform prediction (a = 0) to the model's (a = 1): negative
where the path lowers the loss, zero for what all logits share. It is linear in ``l_p``: one vector of weights over the
vocabulary, pulled back through unembedding and final norm, gives every share as a product with the term's stream.

The null asks whether a term knows its own target: every example gets the targets of another one, position by position, by cyclic
exchanges of different distances. What a term does for any text (such as raising frequent tokens) it does there too.

Sources: Sundararajan et al. 2017 (integrated gradients); Elhage et al. 2021, "Path Expansion Trick"; targets' exchange ours.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from math import comb, log
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.config import HookedTransformerConfig
from circuits.models.heads import Head
from circuits.models.protocol import model_hash
from circuits.paths.expansion import B_U, name_of
from circuits.paths.frozen import FrozenRun, against, batches, check_examples, exchanges, fitting, linear_model
from circuits.results import array_hash, check_whole, labelled, mean_and_stderr

MOST = 100_000
"""Paths of one result."""
NODES = 24
"""Of Gauss-Legendre on one panel."""
PANELS = 4096
"""The most that [0, 1] is cut in: enough for logits of some ten thousand."""
TOLERANCE = 1e-10
"""Of the integral, relative to 1 + the largest logit."""
PIECE = 2**20
"""Logits held at a time."""


@dataclass(frozen=True)
class PathTerms:
    """The share of every path in the loss: ``Dataset(edge)``, nats per predicted token.

    Args:
        tokens: text ``[example, pos]`` with BOS first. max_order: list paths through so many heads at most; the others are
            summed in ``rest``. shifts: exchanges of targets behind the null, or as many as there are. seed: of their distances.
    """

    tokens: Tensor = field(compare=False)
    max_order: int | None = None
    seed: int = 0
    shifts: int = 10
    name: str = field(default="path_terms", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_examples(self.tokens, "path terms")
        if self.max_order is not None:
            check_whole("max_order", self.max_order, 0, "or None for all paths")
        check_whole("seed", self.seed, 0)
        check_whole("shifts", self.shifts, 2)

    def spec(self) -> dict[str, Any]:
        return {
            "tokens": array_hash(self.tokens.cpu()),
            "max_order": self.max_order,
            "seed": self.seed,
            "shifts": self.shifts,
        }

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Dataset with dim ``edge``, the paths' names (``"embed -> L0H3 -> logits"``): ``value``, the mean share (nats per
            predicted token, negative where the path lowers the loss; adds up to loss - ln d_vocab_out), ``stderr`` over
            examples, ``null_mean``, ``null_sd`` and ``z`` (targets of other examples, over exchanges of these very examples),
            ``excess`` and ``excess_stderr``, the share less its null example by example, ``order``. Where ``max_order`` leaves
            paths out, ``rest`` and ``rest_stderr``, ``rest_null_mean``, ``rest_null_sd``, ``rest_z`` are those of their sum.
            Attributes ``loss`` and ``uniform`` are in nats.

        Raises:
            TypeError, ValueError: not a hooked model, MLPs or capped logits, NaN weights, tokens that do not fit, or too many
                paths.
        """
        twin = linear_model(model)
        tokens = fitting(twin, self.tokens, "path terms")
        depth = twin.cfg.n_layers
        orders = range(min(depth, depth if self.max_order is None else self.max_order) + 1)
        if (count := sum(number_of_paths(twin.cfg, order) for order in orders)) > MOST:
            raise ValueError(
                f"there are {count:,} paths of order up to {orders[-1]}, at most {MOST:,} are listed: lower max_order"
            )
        distances = exchanges(len(tokens), self.shifts, self.seed)
        shares, totals = [], []
        paths: tuple[tuple[str, ...], ...] = ()
        for rows in batches(twin.cfg, tokens):
            others = [tokens[(rows + distance) % len(tokens)] for distance in distances]
            paths, found, total = shares_of(
                FrozenRun(twin, tokens[rows]), torch.stack([tokens[rows], *others])[..., 1:], orders[-1]
            )
            shares.append(found)
            totals.append(total)
        every = torch.cat(shares, dim=2).double().cpu().numpy()  # [edge, target, example]
        total = torch.cat(totals, dim=1).double().cpu().numpy()  # [target, example]
        value, stderr = mean_and_stderr(every[:, 0], axis=-1)
        excess, excess_stderr = mean_and_stderr(every[:, 0] - every[:, 1:].mean(1), axis=-1)
        columns = {"value": value, "stderr": stderr} | against(value, every[:, 1:].mean(-1).T)
        columns |= {"excess": excess, "excess_stderr": excess_stderr}
        rest: dict[str, Any] = {}
        if len(orders) <= depth:
            left = total - every.sum(0)
            mean, error = mean_and_stderr(left[0])
            rest = {"rest": mean, "rest_stderr": error}
            rest |= {f"rest_{name}": x for name, x in against(mean, left[1:].mean(-1)).items()}
        return labelled(
            {name: (("edge",), x) for name, x in columns.items()}
            | {"order": (("edge",), np.array([len(path) - 1 for path in paths]))}
            | {name: ((), x) for name, x in rest.items()},
            {"edge": [name_of(path) for path in paths]},
            measure=self,
            definition="integral over a in [0, 1] of E_softmax(a l)[l_p] - l_p[target], l_p the path's logits, l their sum",
            source="path expansion of Elhage et al. 2021; integrated gradients of Sundararajan et al. 2017",
            model_hash=model_hash(model),
            data_hash=array_hash(self.tokens.cpu()),
            loss=float(total[0].mean() + log(twin.cfg.d_vocab_out)),
            uniform=log(twin.cfg.d_vocab_out),
            n_examples=len(tokens),
            units="nats per predicted token",
            null=f"targets of other examples at the same positions, {len(distances)} exchanges",
        )


class Pulled(NamedTuple):
    """What turns terms into shares, for several choices of targets.

    Attributes:
        streams: ``[batch, target, pos, d_model]``, a term's share at each position being the product with its stream; zero at
            the last position, which predicts nothing. bias: the mean share of the logits' bias, ``[target, batch]``.
        total: of all terms, ``[target, batch]``, loss - ln d_vocab_out.
    """

    streams: Tensor
    bias: Tensor
    total: Tensor


def shares_of(
    run: FrozenRun, targets: Int[Tensor, "target batch pos_minus_1"], max_order: int
) -> tuple[tuple[tuple[str, ...], ...], Float[Tensor, "edge target batch"], Float[Tensor, "target batch"]]:
    """Paths up to an order as ``PathExpansion`` lists them, their mean shares in the loss, and what all paths together have.

    What a head adds at the end of a path is read where it is of rank ``d_head``: streams are made of paths that go on alone.
    """
    pulled = pulled_back(run, targets)
    outputs = [block.attn.W_O for block in run.model.blocks]
    # [batch, head, target, pos * d_head]: a head's share is the product with what it gathers
    through = [torch.einsum("bkpd,hrd->bhkpr", pulled.streams, W_O).flatten(3) for W_O in outputs]
    paths: list[tuple[str, ...]] = [(B_U,)]
    shares = [pulled.bias.to(pulled.streams)]

    def visit(path: tuple[str, ...], first: int, stream: Float[Tensor, "batch pos d_model"]) -> None:
        """The paths that go on from a stream, depth first."""
        for layer in range(first, run.cfg.n_layers if len(path) <= max_order else first):
            z = run.gathered(layer, stream)  # [batch, head, pos, d_head]
            of_heads = (through[layer] @ z.flatten(2)[..., None])[..., 0] / targets.shape[-1]
            for head in range(run.cfg.n_heads):
                paths.append((*path, str(Head(layer, head))))
                shares.append(of_heads[:, head].T)
                if layer + 1 < run.cfg.n_layers and len(path) < max_order:
                    visit(paths[-1], layer + 1, z[:, head] @ outputs[layer][head])

    for start, (first, stream) in run.starts.items():
        paths.append((start,))
        shares.append((pulled.streams.flatten(2) @ stream.flatten(1)[..., None])[..., 0].T / targets.shape[-1])
        visit((start,), first, stream)
    return tuple(paths), torch.stack(shares), pulled.total


def pulled_back(run: FrozenRun, targets: Int[Tensor, "target batch pos_minus_1"]) -> Pulled:
    """The weights of all shares, pulled back to the final stream; some positions at a time."""
    choices, batch, predictions = targets.shape
    stream, M = run.clean.after[-1], run.readout.M
    scale = run.clean.scale("ln_final")
    read = (stream if scale is None else stream / scale)[:, :-1].flatten(0, 1)
    wanted = targets.flatten(1)  # [target, row]
    gradient = read.new_empty(len(read), choices, M.shape[0])
    bias, total = (read.new_empty(choices, len(read), dtype=torch.float64) for _ in range(2))
    for at in torch.arange(len(read), device=read.device).split(max(1, PIECE // M.shape[1])):
        logits = (read[at] @ M + run.bias).double()
        mean = mean_softmax(logits)
        ids = wanted[:, at]
        gradient[at] = ((mean.to(M) @ M.T) - M.T[ids]).transpose(0, 1)
        bias[:, at] = mean @ run.bias.double() - run.bias.double()[ids]
        total[:, at] = (mean * logits).sum(-1) - logits.gather(1, ids.T).T
    if scale is not None:
        gradient = gradient / scale[:, :-1].flatten(0, 1)[:, None]
    streams = torch.nn.functional.pad(gradient.unflatten(0, (batch, predictions)).transpose(1, 2), (0, 0, 0, 1))
    return Pulled(streams, *(x.unflatten(1, (batch, predictions)).mean(-1) for x in (bias, total)))


def mean_softmax(logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, "row d_vocab"]:
    """``integral_0^1 softmax(a l) da``, in float64.

    Gauss-Legendre on panels that are halved, row by row, until ``integral E_{softmax(a l)}[l] da`` is what it must be, the
    difference of its antiderivative ``logsumexp(a l)``: ``logsumexp(l) - ln d_vocab``.

    Raises:
        ValueError: logits so large that even ``PANELS`` panels do not do.
    """
    logits = logits.double()
    logits = logits - logits.amax(-1, keepdim=True)  # changes no softmax, and makes no difference of large numbers below
    known = logits.logsumexp(-1) - log(logits.shape[-1])
    close = TOLERANCE * (1 - logits.amin(-1))
    found = torch.empty_like(logits)
    left, panels = torch.arange(len(logits), device=logits.device), 1
    while len(left):
        if panels > PANELS:
            raise ValueError(
                f"logits of one token differ by up to {-float(logits.min()):.3g}, too far to integrate along their scaling: "
                "path terms need a model with smaller logits"
            )
        part = logits[left]
        mean = torch.zeros_like(part)
        for node, weight in zip(*_nodes(panels), strict=True):
            mean.add_(torch.softmax(float(node) * part, -1), alpha=float(weight))
        found[left] = mean
        left = left[((mean * part).sum(-1) - known[left]).abs() > close[left]]
        panels *= 2
    return found


@lru_cache(maxsize=16)
def _nodes(panels: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss-Legendre on so many equal panels of [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(NODES)
    starts = np.arange(panels)[:, None]
    return ((starts + (x + 1) / 2) / panels).ravel(), np.tile(w / (2 * panels), panels)


def number_of_paths(cfg: HookedTransformerConfig, order: int) -> int:
    """How many paths go through so many heads, known before they are listed."""
    readers = [cfg.n_layers] * (1 + (cfg.positional_embedding_type == "standard")) + list(range(cfg.n_layers))
    return sum(comb(layers, order) for layers in readers) * cfg.n_heads**order + (order == 0)
