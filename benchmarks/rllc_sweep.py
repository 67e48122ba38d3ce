"""How long the shipped curves take, and how much memory: every head of checkpoints of the shipped run at the shipped settings.

    python benchmarks/rllc_sweep.py --steps 2375 10000 --workers 2        # about a minute on two cores

Each checkpoint is a process of its own, as in a sweep, on one thread. A sweep of one text has 28 checkpoints.
"""

import argparse
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from circuits import Checkpoints
from circuits.complexity.rllc import RLLC
from circuits.dynamics.coefficients import texts_of
from circuits.dynamics.determinism import deterministic

RUN = Path(__file__).parents[1] / "fixtures" / "stdlib-2l"


def one(step: int) -> tuple[int, float, float, float]:
    """A checkpoint's wall and CPU seconds, and the process's peak memory in MiB."""
    run = Checkpoints.from_dir(RUN)
    measure = RLLC(texts_of(run)["mix"], "laptop", on="mix")
    wall, cpu = time.perf_counter(), time.process_time()
    with deterministic(1):
        measure(run.at(step))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return step, time.perf_counter() - wall, time.process_time() - cpu, peak


def main() -> None:
    """Measure and say it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, nargs="+", default=[2375, 10000])
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    start = time.perf_counter()
    with ProcessPoolExecutor(asked.workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        found = list(pool.map(one, asked.steps))
    took = time.perf_counter() - start
    for step, wall, cpu, peak in found:
        sys.stdout.write(f"step {step:>6}, 16 heads: {wall:.0f} s, {cpu:.0f} CPU s, peak memory {peak:.0f} MiB\n")
    each = took / len(found)
    count = len(Checkpoints.from_dir(RUN))
    sys.stdout.write(
        f"{asked.workers} at a time: {each:.0f} s a checkpoint with the start of processes, {count * each / 60:.0f} minutes for "
        f"a text of {count}; {np.mean([cpu for _, _, cpu, _ in found]):.0f} CPU s each\n"
    )


if __name__ == "__main__":
    main()
