"""What was published of another model, to be laid beside a run: stages, and when heads formed. Its other numbers stand
beside the claims that they are about.

The model is ``MODEL``, seed 1. Its paper gives the ends of stages; all other numbers are computed from the series of 501
checkpoints that its authors published, by the definitions that stand beside them. Steps of another model, corpus and batch are no
prediction of a run's steps: what can be compared is the order of events, and ratios.

    half-maximum   the first checkpoint at which a head's score is at least half of its maximum
    llc            of all weights, over the Pile, n beta of that run: its differences can be compared in sign alone

Sources: Hoogland et al. 2024, arXiv 2402.02364; Wang et al. 2024, arXiv 2410.02984; the series:
timaeus-research/icl, branch submission, commit 8a8b588, analysis/language.
"""

from typing import NamedTuple

MODEL = "two layers of attention alone, 3.4 million weights, 50,000 steps on a part of the Pile"
PAPERS = "Hoogland et al. 2024 (arXiv 2402.02364), Wang et al. 2024 (arXiv 2410.02984)"
SERIES = "series published by its authors (timaeus-research/icl, commit 8a8b588)"


class Moment(NamedTuple):
    """An event of the published model: the first and the last step of those that are given for it, and its source."""

    what: str
    first: int
    last: int
    source: str


class Stage(NamedTuple):
    """A stage of the published model: first and last step; loss on test text, in nats, and llc, at both."""

    name: str
    what: str
    steps: tuple[int, int]
    loss: tuple[float, float]
    llc: tuple[float, float]


MOMENTS = (
    Moment("loss against bigrams is least", 700, 700, SERIES),
    Moment("positions taken out cost 0.1 nat", 900, 1_500, SERIES),
    Moment("previous-token heads pass half of their maximum", 11_300, 11_900, SERIES),
    Moment("induction heads pass half of their maximum", 13_800, 14_500, SERIES),
)
"""In order. Between the two steps for positions nothing was measured; the heads are 0:4 and 0:1, then 1:7 and 1:6."""
STAGES = (
    Stage("LM1", "bigrams", (0, 900), (7.943, 4.348), (123.6, 149.9)),
    Stage("LM2", "n-grams", (900, 6_500), (4.348, 3.631), (149.9, 172.4)),
    Stage("LM3", "previous-token heads begin", (6_500, 8_500), (3.631, 3.560), (172.4, 170.9)),
    Stage("LM4", "induction heads form", (8_500, 17_000), (3.560, 3.303), (170.9, 179.6)),
    Stage("LM5", "convergence", (17_000, 50_000), (3.303, 3.215), (179.6, 181.3)),
)
"""Ends of stages by the papers; losses and llc at them from the series."""
