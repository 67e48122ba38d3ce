"""Claims 1 to 7 about Scan & Snap: what SGD does on the paper's own data, each with its checks computed from experiments.

Numbers to come out are of the authors' logs and tables, or of a separate implementation with 3 to 5 seeds; where that named no
spread, its seeds are taken to spread as ours do. Where it printed a number without error, one unit of its last digit is allowed.

Source: Tian et al. 2023, section 6, figures 4 and 6.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.data.classes import SequenceClasses
from circuits.dynamics.scan_snap_experiments import attention_by_iteration, norm_ablation, peak_order
from circuits.dynamics.scan_snap_measures import observe
from circuits.dynamics.scan_snap_sgd import Sgd
from circuits.dynamics.scan_snap_sweeps import ETAS, QUERIES, RATIOS, entropy_table
from circuits.dynamics.scan_snap_text_experiments import text_bounce, text_rates
from circuits.dynamics.scan_snap_text_model import Text, stdlib_words
from circuits.dynamics.scan_snap_text_pairs import PairReader, text_null, text_pairs
from circuits.dynamics.scan_snap_transitions import freeze, rate_sweep
from circuits.dynamics.scan_snap_verdicts import ERRORS, Check, Claim, near, ordered, within

if TYPE_CHECKING:
    import xarray as xr

LOSSES = {2: 2.368, 4: 0.733, 6: 0.161, 8: 0.0444, 10: 0.0130}
"""The authors' log of Syn-Small at rates of 1."""
SLOW = 0.1
"""Of the peak's velocity: below it for good, attention counts as frozen."""


class Evidence:
    """The experiments that several claims look at, each run once; fewer seeds, sizes, doublings and steps if it must be fast.

    Args:
        text: what claims 15 to 19 train on; None: ``stdlib_words()``.
    """

    def __init__(self, *, fast: bool = False, text: Text | None = None):
        self.fast = fast
        self.seeds = 6 if fast else 10
        self._text = text

    @cached_property
    def small(self) -> "xr.Dataset":
        """Syn-Small at ``eta_y`` of 1 and 10."""
        return attention_by_iteration(seeds=self.seeds, progress=False)

    @cached_property
    def order(self) -> "xr.Dataset":
        """Syn-Small at rates of 3."""
        return peak_order(eta=(3.0,), seeds=self.seeds, progress=False)

    @cached_property
    def table(self) -> "xr.Dataset":
        """Figure 6, or a corner of it."""
        if self.fast:
            return entropy_table(queries=(3,), eta_z=(0.5, 3.0), ratio=(1.0, 2.0, 5.0), seeds=5, progress=False)
        return entropy_table(queries=QUERIES, eta_z=ETAS, ratio=RATIOS, progress=False)

    @cached_property
    def ablation(self) -> "xr.Dataset":
        """With and without the norm."""
        return norm_ablation(seeds=self.seeds, progress=False)

    @cached_property
    def rates(self) -> "xr.Dataset":
        """The flow over learning rates."""
        return rate_sweep(progress=False)

    @cached_property
    def frozen(self) -> "xr.Dataset":
        """The flow over doublings of time."""
        return freeze(doublings=2 if self.fast else 6, progress=False)

    @cached_property
    def text(self) -> Text:
        """Words to train on."""
        return stdlib_words() if self._text is None else self._text

    @cached_property
    def reader(self) -> PairReader:
        """The text's statistics, and the pairs that logits are read at."""
        return PairReader(self.text)

    @cached_property
    def bounced(self) -> "xr.Dataset":
        """Adam on text with a ReLU, a linear and no feed-forward layer."""
        return text_bounce(self.text, progress=False, **self._shorter(800))

    @cached_property
    def text_rates(self) -> "xr.Dataset":
        """SGD on text over rates."""
        return text_rates(self.text, progress=False, **self._shorter(800))

    @cached_property
    def pairs(self) -> "xr.Dataset":
        """The (Y, Z) model on text."""
        return text_pairs(self.text, reader=self.reader, progress=False, **self._shorter(700))

    @cached_property
    def text_null(self) -> "xr.Dataset":
        """Pair logits of transformers on text."""
        return text_null(self.text, reader=self.reader, progress=False, **self._shorter(1000))

    def _shorter(self, steps: int) -> dict[str, Any]:
        """Options of an experiment on text: as it is, or one seed and so few steps that its claims are not testable."""
        return {"seeds": 1, "steps": max(3, steps // 50)} if self.fast else {}


def claim_1(_: Evidence) -> Claim:
    """Where training starts."""
    classes = SequenceClasses.syn_small()
    start = Sgd(classes, steps=1).run((0, 1), progress=False)
    seen = observe(start, classes).isel(run=0, time=0)
    checks = (
        near("loss at step 0 (nats)", start["loss"].values[0, 0], np.log(34), 1e-12, role="claim"),
        near("loss at step 0, as the authors logged it", start["loss"].values[0, 0], 3.5264, 1e-4),
        near("entropy among distinct tokens (nats)", float(seen["distinct_entropy"].mean()), 2.1513, 1e-4, role="claim"),
        near("mass on common tokens", float(seen["common_mass"].mean()), 0.645, 1e-3, role="claim"),
    )
    return Claim(1, "Syn-Small starts at a loss of ln 34, with the entropy and common mass of its probabilities", checks)


def claim_2(evidence: Evidence) -> Claim:
    """How fast the loss falls."""
    loss = evidence.small["loss"].values[0]
    checks = [
        near(f"loss at step {step} (nats), 15%", loss[:, step], authors, 0.15 * authors, expected_stderr=0.0, role="claim")
        for step, authors in LOSSES.items()
    ]
    return Claim(2, "Syn-Small at rates of 1 learns as fast as in the authors' log", tuple(checks))


def claim_3(evidence: Evidence) -> Claim:
    """Density against the decoder's rate."""
    entropy, mass = (evidence.small[name].values[:, :, -1] for name in ("distinct_entropy", "common_mass"))
    theirs = 0.011 / 5**0.5
    checks = (
        ordered("entropy at eta_y = 10 less that at 1, by seed (nats)", entropy[1] - entropy[0]),
        ordered("common mass at eta_y = 10 less that at 1, by seed", mass[1] - mass[0]),
        near("entropy at eta_y = 1 (nats)", entropy[0], 1.936, 1e-3, expected_stderr=theirs),
        near("entropy at eta_y = 10 (nats)", entropy[1], 2.080, 1e-3, expected_stderr=theirs),
        near("common mass at eta_y = 1", mass[0], 0.386, 1e-3),
        near("common mass at eta_y = 10", mass[1], 0.543, 1e-3),
    )
    return Claim(3, "A faster decoder leaves attention denser", checks)


def claim_4(evidence: Evidence) -> Claim:
    """Signs of the attention logits after 100 steps."""
    z, kinds = evidence.small["z"].values[0], evidence.small
    common, distinct = kinds["common"].values, kinds["distinct"].values
    apart = ~SequenceClasses.syn_small().cooccur.numpy()
    own = np.stack([z[:, label, row] for label, row in enumerate(distinct)], 1)
    p = np.stack([kinds["probability"].values[label, row] for label, row in enumerate(distinct)])
    along = np.array([[np.corrcoef(seed[label], p[label])[0, 1] for label in range(len(p))] for seed in own])
    top = np.take_along_axis(own, p.argmax(1)[None, :, None], 2)[..., 0]
    checks = (
        within("largest logit of a common token, any seed", z[..., common].max(), -np.inf, 0.0, why="below 0"),
        ordered("logit of the likeliest distinct token", top.mean(1)),
        ordered("correlation of distinct tokens' logits with P", along.mean(1)),
        within("logits of tokens that never co-occur with the query", z[:, apart], 0.0, 0.0, why="exactly 0"),
        near("logit of a common token", z[..., common].mean((1, 2)), -0.37, 0.01),
        near("logit of the likeliest distinct token", top.mean(1), 1.04, 0.01),
        near("correlation of distinct tokens' logits with P", along.mean(1), 0.96, 0.01),
    )
    return Claim(4, "Attention to common tokens falls, to distinct ones it rises with P, elsewhere it does not move", checks)


def claim_5(evidence: Evidence) -> Claim:
    """The order in which attention leaves tokens."""
    order = evidence.order
    peak = order["peak_time"].values[0].mean(1)
    own = order["end_over_start"].values[0].mean(1)
    checks = [
        ordered(
            "later peak of the next likelier token (steps)",
            np.diff(peak, axis=1),
            f">= -{ERRORS:g} standard errors",
            least=-ERRORS,
        ),
        ordered("peak of the likeliest less that of the rarest token (steps)", peak[:, -1] - peak[:, 0]),
        ordered("gain of the likeliest less that of the rarest token", own[:, -1] - own[:, 0]),
        near("attention at the end over that at the start, rarest token", own[:, 0], 0.72, 0.01),
        near("attention at the end over that at the start, likeliest token", own[:, -1], 3.66, 0.01),
    ]
    checks += [
        near(f"peak of token {rank + 1} of 10 (step)", peak[:, rank], step, 1.0)
        for rank, step in enumerate((0.0, 5.0, 6.0, 8.0, 13.0, 15.0))
    ]
    return Claim(5, "Attention scans: it leaves rare distinct tokens first, the likeliest last", tuple(checks))


def claim_6(evidence: Evidence) -> Claim:
    """What comes first: decoder, attention's motion, its freeze."""
    checks: list[Check] = []
    for rate, (eta, steps) in enumerate({"1": (7.0, 9.0, 34.0), "10": (2.0, 3.0, 28.0)}.items()):
        loss, velocity = (evidence.small[name].values[rate] for name in ("loss", "attention_velocity"))
        learned, fastest, frozen = np.transpose([_events(*one) for one in zip(loss, velocity[:, :-1], strict=True)])
        checks += [
            ordered(f"velocity's peak less the step of loss < .1, eta_y = {eta}", fastest - learned),
            ordered(f"steps from frozen to the end, eta_y = {eta}", velocity.shape[1] - 2 - frozen),
            near(f"step of loss < .1, eta_y = {eta}", learned, steps[0], 1.0),
            near(f"step of the velocity's peak, eta_y = {eta}", fastest, steps[1], 1.0),
            near(f"step of velocity < .1 of its peak, eta_y = {eta}", frozen, steps[2], 1.0),
        ]
    return Claim(6, "The decoder learns first, then attention moves fastest, then it freezes", tuple(checks))


def _events(loss: np.ndarray, velocity: np.ndarray) -> tuple[int, int, int]:
    """Steps: loss below .1, fastest attention, and from where on it is slow for good (the last step if never)."""
    moving = np.flatnonzero(velocity >= SLOW * velocity.max())
    return int((loss < 0.1).argmax()) if (loss < 0.1).any() else len(loss), int(velocity.argmax()), int(moving[-1]) + 1


def claim_7(evidence: Evidence) -> Claim:
    """Entropy over rates and sizes, against the published table."""
    table = evidence.table
    values, ratios = table["by_seed"].values, list(table["ratio"].values)
    off, error = np.abs(table["difference"].values), table["difference_stderr"].values
    big = table["queries"].values == 10
    many = table["queries"].values > 1
    two = ratios.index(2.0)
    beside = [at for at in (two - 1, two + 1) if at < len(ratios)]
    checks: list[Check] = []
    if big.any():
        checks.append(within("largest difference from the authors, 20 labels (nats)", off[big].max(), 0.0, 0.02))
    if not big.all():
        checks.append(
            within("largest difference from the authors, other sizes (standard errors)", (off / error)[~big].max(), 0.0, ERRORS)
        )
    falls = -np.diff(values, axis=1)
    above = values[many][:, :, beside] - values[many][:, :, two, None]
    checks += _direction("eta_z: entropy less that at the next larger one", falls, falls.mean((1, 2)))
    checks += _direction("ratio, 6 labels and more: entropy beside 2 less that at 2", above, above.mean(1))
    if not many.all():
        rises = np.diff(values[~many], axis=2)
        checks += _direction("ratio, 2 labels: entropy at the next larger one less that before", rises, rises.mean((1, 2)))
    return Claim(
        7, "Entropy over rates is that of the authors' table: sparser with eta_z, sparsest near a ratio of 2", tuple(checks)
    )


def _direction(quantity: str, cells: np.ndarray, pooled: np.ndarray) -> list[Check]:
    """Whether entropy goes one way: on the whole, in no cell against it, and, as the table reads, in every cell by itself."""
    bound = f">= -{ERRORS:g} standard errors"
    return [
        ordered(f"{quantity}, mean over cells", _by_seed(pooled)),
        ordered(f"{quantity}, none to the contrary", _by_seed(cells), bound, least=-ERRORS),
        ordered(f"{quantity}, every cell", _by_seed(cells), role="number"),
    ]


def _by_seed(values: np.ndarray) -> np.ndarray:
    """``[.., seed]`` as ``[seed, comparison]``."""
    return np.moveaxis(values, -1, 0).reshape(values.shape[-1], -1)
