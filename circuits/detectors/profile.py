"""The function profile of a head: which kinds of predictions its effect goes to.

Every predicted token has one kind (bracket, induction, ngram, ...; ``circuits.data.contexts`` assigns them) and, for every head,
the loss that ablating the head adds (``circuits.models.effects``). The *share* of kind k is

    share(k) = sum over tokens of kind k of effect / sum over all tokens of effect

in nats over nats: shares add up to 1, and one is negative where the head harms predictions of its kind. A head whose mean effect
does not exceed zero by ``Z_NEEDED`` standard errors has no profile: its state is "no effect" and its shares are NaN.

Chance is the kind's share of tokens: what it would get if the effect fell on all alike; ``loss_share`` is its share of the clean
loss, what it would get from a head that costs in proportion to surprise. The null asks whether the labels say something beyond
their position: every example gets the labels of another one, position by position, ``shifts`` times by cycles of random length;
z is the distance from that. Errors and the 95% interval are a bootstrap over blocks of neighbouring examples.

Self-repair is the direct effect (later layers do not notice) less the total one, in nats per token; positive where later layers
make up for the head.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.models.effects import head_effects
from circuits.models.interventions import Ablation
from circuits.models.protocol import check_finite, check_model, check_tokens, model_hash
from circuits.results import array_hash, check_whole, labelled

Z_NEEDED = 2.0
FEWEST = 16
"""Examples: with fewer, intervals by bootstrap are too narrow."""
BLOCKS = 64
"""The most blocks that examples are gathered in."""


@dataclass(frozen=True)
class FunctionProfile:
    """What each head's effect goes to: ``Dataset(layer, head, kind)``.

    Args:
        tokens: text ``[example, pos]``, BOS first. kinds: ``[example, pos - 1]``, the kind of each predicted token as an index
            into ``names``. names: of the kinds (default: those of ``circuits.data.contexts``).
        ablation: a name of ``circuits.models.interventions.ABLATIONS``, or an ``Ablation``.
        shifts: exchanges of labels behind the null. draws: of the bootstrap. seed: of both.
        rule: hash of how kinds were assigned, for the record.
    """

    tokens: Tensor = field(compare=False)
    kinds: Tensor = field(compare=False)
    names: tuple[str, ...] = ("bracket", "induction", "ngram", "bigram", "skip_ngram", "positional", "other")
    ablation: str | Ablation = "mean"
    shifts: int = 50
    draws: int = 1000
    seed: int = 0
    rule: str = ""
    name: str = field(default="function_profile", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        check_tokens(self.tokens, d_vocab=2**31, n_ctx=2**31, min_length=4, needed_by="a function profile")
        if len(self.tokens) < FEWEST:
            raise ValueError(
                f"a function profile needs {FEWEST} examples for its errors and {len(self.tokens)} were given: pass more text"
            )
        if not isinstance(self.names, tuple | list) or not all(isinstance(name, str) for name in self.names):
            raise TypeError(f"names are {self.names!r}, need a tuple of kinds' names")
        wanted = (len(self.tokens), self.tokens.shape[1] - 1)
        if not isinstance(self.kinds, Tensor) or tuple(self.kinds.shape) != wanted:
            given = tuple(self.kinds.shape) if isinstance(self.kinds, Tensor) else type(self.kinds).__name__
            raise ValueError(
                f"kinds are {given}, need one for each predicted token, {wanted}: classify_contexts(tokens, ...).kind"
            )
        if self.kinds.is_floating_point():
            raise TypeError(f"kinds have dtype {self.kinds.dtype}, need whole numbers: classify_contexts(tokens, ...).kind")
        if int(self.kinds.min()) < 0 or int(self.kinds.max()) >= len(self.names):
            raise ValueError(f"kinds run from {int(self.kinds.min())} to {int(self.kinds.max())}, names has {len(self.names)}")
        check_whole("shifts", self.shifts, 2)
        check_whole("draws", self.draws, 100)
        check_whole("seed", self.seed, 0)
        object.__setattr__(self, "ablation", Ablation.named(self.ablation))

    def spec(self) -> dict[str, Any]:
        ablation = Ablation.named(self.ablation)
        return {
            "tokens": array_hash(self.tokens.cpu()),
            "kinds": array_hash(self.kinds.cpu().to(torch.int8)),
            "names": list(self.names),
            "ablation": [ablation.kind, ablation.patterns, ablation.norms, ablation.seed],
            "shifts": self.shifts,
            "draws": self.draws,
            "seed": self.seed,
            "rule": self.rule,
        }

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Dataset with dims ``layer, head, kind``: ``value``, the share of the total effect (adds up to 1 over kinds; NaN
            without effect), ``stderr``, ``low`` and ``high`` (95%), ``chance`` (the kind's share of tokens), ``null_mean``,
            ``null_sd``, ``z`` (labels of other examples), ``loss_share`` (the kind's share of the clean loss); ``effect`` (nats
            per token of text that the kind contributes, the sum over kinds being the head's mean effect) and ``effect_stderr``;
            ``per_token`` (mean effect on tokens of the kind, nats); with dims ``layer, head``: ``total``, ``direct``,
            ``repair`` (nats per token) and their ``_stderr``, ``state`` ("ok" or "no effect"); ``n [kind]``, tokens of each
            kind.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, tokens that do not fit.
        """
        check_model(model)
        check_finite(model)
        sums = profile_sums(model, self)
        rng = np.random.default_rng([self.seed, 41])
        total = sums.total.sum(0)  # [layer, head, kind]
        blocks = len(sums.total)
        weights = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=self.draws)
        tokens = sums.count.sum()

        widen = np.sqrt(blocks / (blocks - 1))  # drawing from so few blocks varies less than drawing new ones

        def drawn(x: Float[np.ndarray, "block *rest"]) -> Float[np.ndarray, "draw *rest"]:
            return np.tensordot(1 + widen * (weights - 1), x, axes=1)

        drawn_total, drawn_count = drawn(sums.total), drawn(sums.count)
        mean = total.sum(-1) / tokens
        mean_drawn = drawn_total.sum(-1) / drawn_count.sum(-1)[:, None, None]
        mean_stderr = mean_drawn.std(0, ddof=1)
        works = mean > Z_NEEDED * mean_stderr
        nothing = np.where(works[..., None], 0.0, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = total / total.sum(-1, keepdims=True) + nothing
            drawn_share = drawn_total / drawn_total.sum(-1, keepdims=True)
            null = sums.exchanged / sums.exchanged.sum(-1, keepdims=True)
            null_mean, null_sd = null.mean(0) + nothing, null.std(0, ddof=1) + nothing
            z = (share - null_mean) / null_sd
            count = sums.count.sum(0)
            per_token = total / count
        low, high = (np.quantile(drawn_share, q, axis=0) + nothing for q in (0.025, 0.975))
        contributed = drawn_total / drawn_count.sum(-1)[:, None, None, None]
        straight = sums.direct.sum((0, -1)) / tokens
        straight_drawn = drawn(sums.direct).sum(-1) / drawn_count.sum(-1)[:, None, None]
        grid, each = ("layer", "head", "kind"), ("layer", "head")
        return labelled(
            {
                "value": (grid, share),
                "stderr": (grid, drawn_share.std(0, ddof=1) + nothing),
                "low": (grid, low),
                "high": (grid, high),
                "chance": (("kind",), count / tokens),
                "loss_share": (("kind",), sums.loss / sums.loss.sum()),
                "null_mean": (grid, null_mean),
                "null_sd": (grid, null_sd),
                "z": (grid, z),
                "effect": (grid, total / tokens),
                "effect_stderr": (grid, contributed.std(0, ddof=1)),
                "per_token": (grid, per_token),
                "total": (each, mean),
                "total_stderr": (each, mean_stderr),
                "direct": (each, straight),
                "direct_stderr": (each, straight_drawn.std(0, ddof=1)),
                "repair": (each, straight - mean),
                "repair_stderr": (each, (straight_drawn - mean_drawn).std(0, ddof=1)),
                "state": (each, np.where(works, "ok", "no effect")),
                "n": (("kind",), count.astype(np.int64)),
            },
            {"layer": np.arange(model.cfg.n_layers), "head": np.arange(model.cfg.n_heads), "kind": list(self.names)},
            measure=self,
            definition="share of the loss that ablating the head adds which falls on predicted tokens of the kind",
            source="after Wang et al. 2024, appendix B; kinds of circuits.data.contexts",
            model_hash=model_hash(model),
            data_hash=array_hash(self.tokens.cpu()),
            n_examples=len(self.tokens),
            units="share; nats per token",
            null="kinds of other examples at the same positions",
        )


@dataclass(frozen=True)
class ProfileSums:
    """Sums of effects over tokens: by block of examples, and with exchanged labels.

    Attributes:
        total, direct: ``[block, layer, head, kind]``, nats. count: ``[block, kind]``, tokens.
        exchanged: ``[shift, layer, head, kind]``, nats, with the labels of other examples. loss: ``[kind]``, clean loss, nats.
    """

    total: Float[np.ndarray, "block layer head kind"]
    direct: Float[np.ndarray, "block layer head kind"]
    count: Float[np.ndarray, "block kind"]
    exchanged: Float[np.ndarray, "shift layer head kind"]
    loss: Float[np.ndarray, "kind"]


def profile_sums(model: Any, made: FunctionProfile) -> ProfileSums:
    """One pass over the corpus; what is kept does not grow with it."""
    examples = len(made.kinds)
    blocks, kinds = min(BLOCKS, examples), len(made.names)
    block_of = np.arange(examples) * blocks // examples
    shape = (model.cfg.n_layers, model.cfg.n_heads, kinds)
    sums = ProfileSums(
        total=np.zeros((blocks, *shape)),
        direct=np.zeros((blocks, *shape)),
        count=np.zeros((blocks, kinds)),
        exchanged=np.zeros((made.shifts, *shape)),
        loss=np.zeros(kinds),
    )
    distance = np.random.default_rng([made.seed, 40]).integers(1, examples, size=made.shifts)
    for batch in head_effects(model, made.tokens, Ablation.named(made.ablation)):
        assert batch.direct is not None
        labels = made.kinds[batch.rows].long().cpu()
        hot = torch.nn.functional.one_hot(labels, kinds).double()  # [example, query, kind]
        total, direct = batch.total.double(), batch.direct.double()
        for name, value in (("total", total), ("direct", direct)):
            np.add.at(getattr(sums, name), block_of[batch.rows], _by_kind(value, hot).numpy())
        np.add.at(sums.count, block_of[batch.rows], hot.sum(1).numpy())
        sums.loss[:] += torch.einsum("eq,eqk->k", batch.loss.double(), hot).numpy()
        example = torch.arange(batch.rows.start, batch.rows.stop)
        for shift in range(made.shifts):
            others = made.kinds[(example + int(distance[shift])) % examples].long().cpu()
            sums.exchanged[shift] += _by_kind(total, torch.nn.functional.one_hot(others, kinds).double()).sum(0).numpy()
    return sums


def _by_kind(
    effect: Float[Tensor, "layer head example query"], hot: Float[Tensor, "example query kind"]
) -> Float[Tensor, "example layer head kind"]:
    return torch.einsum("lheq,eqk->elhk", effect, hot)
