"""Scan & Snap: the flow's speed, and all runs of figure 6 at once against the plain loop over runs.

    python benchmarks/scan_snap.py --threads 2            # all of it: a minute or two
    python benchmarks/scan_snap.py --seeds 1 --loop 2     # a part

Flow: 10 labels, 1,000 outputs, 10,000 steps, one thread, every tenth step kept. Figure 6: 4 sets of classes, 4 rates of
attention, 4 ratios, ``--seeds`` seeds, 100 steps of 128 sequences of 128 tokens; ``--threads`` are torch's. The plain loop is the
same code a run at a time, on ``--loop`` runs of each set of classes, scaled to all of them; both sides give the same attention,
to 1e-9. CPU and wall seconds; exit code 1 if the flow takes more than 10 s of CPU, the sweep, scaled to 640 runs, more than 5
minutes of wall time, or results differ.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from circuits.data.classes import SequenceClasses
from circuits.dynamics.scan_snap_flow import Flow
from circuits.dynamics.scan_snap_sgd import Sgd

QUERIES, ETAS, RATIOS = (1, 3, 5, 10), (0.5, 1.0, 2.0, 3.0), (1.0, 2.0, 5.0, 10.0)
RUNS = len(QUERIES) * len(ETAS) * len(RATIOS) * 10
FLOW_CPU, SWEEP_WALL = 10.0, 300.0


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds of all threads, wall seconds, result."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    return time.process_time() - cpu, time.perf_counter() - wall, found


def sweep(queries: int, seeds: int) -> Sgd:
    """Figure 6's runs of one set of classes."""
    cells = itertools.product(ETAS, RATIOS, range(seeds))
    eta_y, eta_z, seed = zip(*((eta * ratio, eta, seed) for eta, ratio, seed in cells), strict=True)
    return Sgd(SequenceClasses.syn_medium(queries), eta_y, eta_z, seed, momentum=0.9, start="uniform")


def alone(config: Sgd, run: int) -> np.ndarray:
    """One of the runs by itself."""
    own = {name: values[run].item() for name, values in config.runs.items()}
    return Sgd(config.classes, **own, momentum=0.9, start="uniform").run((0, 100)).z.values[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--loop", type=int, default=8, help="runs of each set of classes that the loop is measured on")
    given = parser.parse_args()
    good = True

    torch.set_num_threads(1)
    flow = Flow(SequenceClasses.with_overlap(0.01), 0.05, 0.05, steps=10_000)
    cpu, wall, _ = timed(lambda: flow.run(range(0, 10_001, 10)))
    good &= cpu <= FLOW_CPU
    print(f"flow, K=10, M=1000, 10,000 steps   {cpu:7.1f} s CPU {wall:7.1f} s wall")

    torch.set_num_threads(given.threads)
    totals = np.zeros(4)
    runs = 0
    for queries in QUERIES:
        config = sweep(queries, given.seeds)
        count = len(config.runs["seed"])
        cpu, wall, found = timed(lambda config=config: config.run((0, 100)))
        chosen = np.linspace(0, count - 1, min(given.loop, count)).astype(int)
        loop_cpu, loop_wall, each = timed(lambda config=config, chosen=chosen: np.stack([alone(config, run) for run in chosen]))
        scale = count / len(chosen)
        worst = float(np.abs(each - found.z.values[chosen]).max())
        good &= worst < 1e-9
        totals += np.array([cpu, wall, loop_cpu * scale, loop_wall * scale])
        runs += count
        print(
            f"figure 6, {queries:2} queries, {count:3} runs     {cpu:7.1f} s CPU {wall:7.1f} s wall   "
            f"loop {loop_cpu * scale:7.1f} s CPU {loop_wall * scale:7.1f} s wall   differ by {worst:.0e}"
        )
    whole = totals * RUNS / runs
    good &= bool(whole[1] <= SWEEP_WALL)
    print(f"figure 6, scaled to {RUNS} runs       {whole[0]:7.1f} s CPU {whole[1]:7.1f} s wall   ", end="")
    print(f"loop {whole[2]:7.1f} s CPU {whole[3]:7.1f} s wall   {whole[2] / whole[0]:.1f} times less CPU at once")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
