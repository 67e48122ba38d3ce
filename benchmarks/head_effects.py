"""All heads' per-token effects at once against the plain loop over heads with hooks: CPU time and largest difference.

    python benchmarks/head_effects.py --tokens 100000 --threads 2

The model is the shipped two-layer run's last checkpoint, the text its held-out code. The plain loop is what one writes with
hooks: for every head a forward pass of the model with that head's ``z`` replaced (and, for pattern-preserving ablation, with all
patterns put back), and the loss of every token. Both sides get the same batches of 32 sequences, the same threads and take turns;
the loop is measured on a part of the text and scaled, as it takes minutes. Exit code 1 if the results differ by more than 1e-5
times the largest loss.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from circuits.data.tokens import consecutive_windows
from circuits.models.checkpoints import Checkpoints
from circuits.models.effects import effects_by_hooks, head_effects
from circuits.models.hooked import HookedTransformer
from circuits.models.interventions import ABLATIONS, donors, mean_z, replacement

RUN = Path(__file__).parents[1] / "fixtures" / "stdlib-2l"
BATCH = 32


def cpu(work: Callable[[], object]) -> tuple[float, object]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def all_at_once(model: HookedTransformer, tokens: torch.Tensor, name: str) -> torch.Tensor:
    return torch.cat([batch.total for batch in head_effects(model, tokens, name, direct=False)], dim=2)


def plain_loop(model: HookedTransformer, tokens: torch.Tensor, name: str, corpus: torch.Tensor) -> torch.Tensor:
    """The first sequences of a corpus, one hooked pass a head."""
    ablation = ABLATIONS[name]
    mean = mean_z(model, corpus) if ablation.kind == "mean" else None
    given = donors(len(corpus), ablation.seed)
    found = []
    for start in range(0, len(tokens), BATCH):
        part = tokens[start : start + BATCH]
        put = replacement(model, part, ablation.kind, mean=mean, donor=corpus[given[start : start + BATCH]], examples=len(corpus))
        found.append(effects_by_hooks(model, part, put, patterns=ablation.patterns, direct=False)[1])
    return torch.cat(found, dim=2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000, help="how much text")
    parser.add_argument("--loop", type=int, default=8_192, help="how much of it for the plain loop")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    run = Checkpoints.from_dir(RUN)
    model = run.at(run.steps[-1])
    corpus = consecutive_windows(run.corpus["code"], n_ctx=model.cfg.n_ctx, examples=given.tokens // model.cfg.n_ctx)
    part = corpus[: given.loop // model.cfg.n_ctx]
    all_at_once(model, corpus[:64], "zero"), plain_loop(model, part[:32], "zero", corpus)  # warm up
    print(f"{corpus.numel():,} tokens, 16 heads, {given.threads} threads; the loop on {part.numel():,}, scaled")
    largest = max(float(batch.loss.max()) for batch in head_effects(model, part, "zero", direct=False))
    wrong = False
    for name in ABLATIONS:
        slow, literal = cpu(lambda name=name: plain_loop(model, part, name, corpus))
        fast, found = cpu(lambda name=name: all_at_once(model, corpus, name))
        scaled = slow * corpus.numel() / part.numel()
        difference = float((found[:, :, : len(part)] - literal).abs().max())
        wrong |= difference > 1e-5 * largest
        print(f"{name:19s} loop {scaled:7.1f} CPU s   at once {fast:6.1f}   {scaled / fast:4.1f} x   difference {difference:.1e}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
