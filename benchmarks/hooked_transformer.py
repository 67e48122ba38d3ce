"""Is our HookedTransformer faster than transformer-lens 3.9's? Same process, same weights, alternating order, medians.

Run where transformer-lens 3.9 is installed (``constraints-tl3.txt``)::

    python benchmarks/hooked_transformer.py --repeats 15

The shape is the shipped fixture's: 2 attention-only layers, d_model 128, 8 heads of 32, vocabulary 1,024, context 128,
batch 32, shortformer positions, LN. Exit code 1 if ours is the slower one in any row.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from transformer_lens import HookedTransformer as LensTransformer
from transformer_lens import HookedTransformerConfig as LensConfig

from circuits.models.hooked import HookedTransformer

SHAPE = {
    "n_layers": 2,
    "d_model": 128,
    "n_heads": 8,
    "d_head": 32,
    "n_ctx": 128,
    "d_vocab": 1024,
    "attn_only": True,
    "normalization_type": "LN",
    "positional_embedding_type": "shortformer",
}
BATCH = 32


def training_step(model: torch.nn.Module, tokens: torch.Tensor) -> Callable[[], object]:
    """Forward, backward and AdamW, in train() mode."""
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        model(tokens, return_type="loss").backward()
        optimiser.step()

    return step


def cached_run(model: torch.nn.Module, tokens: torch.Tensor) -> Callable[[], object]:
    """run_with_cache of every activation, in eval() mode without gradients."""
    model.eval()

    def run() -> None:
        with torch.no_grad():
            model.run_with_cache(tokens)

    return run


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int, clock: Callable[[], float]
) -> tuple[float, float, float]:
    """Median seconds of each, and the median of the ratios theirs / ours of runs next to each other."""
    for run in (ours, theirs, ours, theirs):
        run()

    def timed(run: Callable[[], object]) -> float:
        start = clock()
        run()
        return clock() - start

    mine, other = [], []
    for repeat in range(repeats):
        if repeat % 2:
            mine.append(timed(ours))
            other.append(timed(theirs))
        else:
            other.append(timed(theirs))
            mine.append(timed(ours))
    return statistics.median(mine), statistics.median(other), statistics.median(b / a for a, b in zip(mine, other, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each (default 15)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: where other work shares the machine")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore", message="HookedTransformer is deprecated")

    tokens = torch.randint(SHAPE["d_vocab"], (BATCH, SHAPE["n_ctx"]), generator=torch.Generator().manual_seed(0))
    rows = (("training step", training_step), ("run_with_cache", cached_run))
    clock = time.perf_counter if given.clock == "wall" else time.process_time
    slower = 0
    print(f"{'':16} {'ours ms':>9} {'3.9 ms':>9} {'speed-up':>9}")
    for name, task in rows:
        ours, theirs = HookedTransformer(SHAPE), LensTransformer(LensConfig(**SHAPE, device="cpu"))
        theirs.load_state_dict(ours.state_dict(), strict=False)
        mine, other, ratio = compare(task(ours, tokens), task(theirs, tokens), given.repeats, clock)
        slower += ratio <= 1
        print(f"{name:16} {1e3 * mine:9.1f} {1e3 * other:9.1f} {ratio:8.2f}x")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
