"""Can weights of GPT-2's size be read on a laptop? Wall seconds, CPU seconds and peak memory, each job in a fresh process.

Run anywhere the package is installed, on cores that nothing else uses::

    python benchmarks/weights_large.py --threads 2

The model is attention-only and has GPT-2 small's shape (12 layers of 12 heads, d_model 768, d_head 64, vocabulary 50,257) with
random float32 weights. Jobs: copying scores of all heads beside 199 random heads, and the 1,000 strongest skip-trigrams of one
head. Memory is the process' peak above what it held with the model built, so it counts everything a job makes, and the imports
it causes. Random weights are the worst case for skip-trigrams: no source is so weak that it could be passed over unseen. Exit
code 1 if a goal is missed.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import torch

from circuits.models.hooked import HookedTransformer
from circuits.weights.skip_trigrams import skip_trigrams
from circuits.weights.weight_spectra import WeightSpectra

SHAPE = {
    "n_layers": 12,
    "d_model": 768,
    "n_heads": 12,
    "d_head": 64,
    "n_ctx": 1024,
    "d_vocab": 50257,
    "attn_only": True,
    "normalization_type": "LN",
    "positional_embedding_type": "standard",
}
JOBS: dict[str, Callable[[HookedTransformer], object]] = {
    "copying scores": WeightSpectra(diagonal_tokens=0),
    "skip-trigrams": lambda model: skip_trigrams(model, "L5H3", k=1000),
}
GOALS = {"copying scores": (10, 1024), "skip-trigrams": (40, 1024)}
"""Wall seconds on two cores, MiB beyond the model."""


def peak() -> float:
    """The most memory this process ever held, in MiB."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / (2**20 if sys.platform == "darwin" else 2**10)


def measure(job: str, threads: int) -> dict[str, float]:
    """One job in this process: build the model, take the baseline, run."""
    torch.set_num_threads(threads)
    model = HookedTransformer(SHAPE).eval()
    baseline = psutil.Process().memory_info().rss / 2**20
    wall, cpu = time.perf_counter(), time.process_time()
    JOBS[job](model)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "memory": peak() - baseline}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--job", choices=JOBS, help="measure one job in this process and print JSON")
    given = parser.parse_args()
    if given.job:
        print(json.dumps(measure(given.job, given.threads)))
        return 0
    missed = 0
    print(f"{'':16} {'wall s':>8} {'goal':>6} {'cpu s':>8} {'extra MiB':>10} {'goal':>6}")
    for job, (seconds, memory) in GOALS.items():
        command = [sys.executable, __file__, "--job", job, "--threads", str(given.threads)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        missed += found["wall"] >= seconds or found["memory"] >= memory
        print(f"{job:16} {found['wall']:8.1f} {seconds:6} {found['cpu']:8.1f} {found['memory']:10.0f} {memory:6}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
