"""What reports and the cross-check measure of a run's losses: one configuration of each, so that they share artefacts."""

from circuits.detectors.in_context import LossCurves, RepeatLoss
from circuits.dynamics.detect import attention_measure
from circuits.models.checkpoints import Checkpoints
from circuits.results import Measure

LONGEST_REPEAT = 50


def loss_measures(run: Checkpoints) -> list[Measure]:
    """Loss on repeated random tokens, which every model can read, and on the run's own evaluation tokens if it ships some."""
    n = min(LONGEST_REPEAT, (run.cfg.n_ctx - 1) // 2)
    found: list[Measure] = [RepeatLoss(n=n, ids=attention_measure(run).ids)]
    if run.evaluation:
        shortest = min(tokens.shape[1] for tokens in run.evaluation.values())
        found.append(LossCurves({corpus: tokens[:, :shortest] for corpus, tokens in run.evaluation.items()}))
    return found
