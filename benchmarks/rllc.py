"""One head's coefficient to a given error: ours against devinterp 2.0.1, on one model, text, setting and thread.

    python benchmarks/rllc.py                 # in the environment of constraints-tl3.txt; about 20 minutes

Both sample head ``HEAD`` of the last checkpoint of ``fixtures/stdlib-2l`` by SGLD at epsilon 1e-3, gamma 200, n beta 30, losses
on batches of 16 sequences of 128 tokens, 2 chains, one thread, of ``EXAMPLES`` windows of the training mix. devinterp keeps 50
draws, as shipped (32 batches behind the initial loss, unpaired) and with its workaround (as many as steps: paired). Ours leaves
out 10 steps first and takes gradients of 2 of the 16 sequences, as the shipped curves do, and of all 16 in a row of its own; it
runs the model clean on its whole pool, so it takes as few of the windows, drawn anew for each seed, as the draws are worth.
Errors are root mean squares over repeats with other seeds, against one long run of ours on all windows. Times are those of the
public calls, with all that they check. A number of draws counts as enough where the ratio of errors is below 1 in 39 of 40 draws
of the repeats with replacement. With few windows devinterp's unpaired error is small, as its batches go through all of them in
turn: try ``--examples 128``.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from circuits import Checkpoints, Head
from circuits.complexity.chains import run_chains
from circuits.complexity.config import sampler_config
from circuits.complexity.diagnostics import estimate
from circuits.complexity.engine import HeadLoss
from circuits.complexity.pool import Pool
from circuits.complexity.rllc import RLLC
from circuits.dynamics.coefficients import training_mix
from circuits.models.convert import to_transformer_lens_state

HEAD = Head(1, 2)
SETTING = sampler_config("paper", chains=2, draws=50, batch=16, burn_in=10)
EXAMPLES, REPEATS = 1024, 5
OURS = ((16, 2), (32, 2), (32, 4), (64, 8), (128, 16), (128, 50))
"""Windows, and draws of each chain."""


def seconds(work: Callable[[], float]) -> tuple[float, float]:
    """What it gives, and its CPU time."""
    start = time.process_time()
    return work(), time.process_time() - start


def by_devinterp(model: object, tokens: torch.Tensor, batches: int, seed: int) -> float:
    """Its estimate, the mean over chains."""
    from devinterp.slt.llc import llc
    from devinterp.slt.weight_restrictions import create_param_masks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = llc(
            model, [{"input_ids": row} for row in tokens], {}, lr=SETTING.epsilon, n_beta=SETTING.nbeta,
            param_masks=create_param_masks(model, str(HEAD).lower()), num_chains=SETTING.chains, num_draws=SETTING.draws,
            num_init_loss_batches=batches, batch_size=SETTING.batch, localization=SETTING.gamma, init_seed=seed, device="cpu",
        )  # fmt: skip
    return float(found["llc_mean"])


def by_us(model: Any, tokens: torch.Tensor, size: tuple[int, int], seed: int, part: int | None = 2) -> float:
    """Our estimate from so many of the windows and draws."""
    windows, draws = size
    tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:windows]]
    found = RLLC(tokens, SETTING.changed(draws=draws, seed=seed, gradient_batch=part), on="mix", heads=HEAD)(model)
    return float(found["value"].sel(layer=HEAD.layer, head=HEAD.head))


def main() -> None:
    """Measure and say it."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    torch.set_num_threads(1)
    run = Checkpoints.from_dir(Path(__file__).parents[1] / "fixtures/stdlib-2l")
    ours, tokens = run.at(run.steps[-1]), training_mix(run, parser.parse_args().examples)
    assert tokens is not None  # the run ships its training text
    fields = ("n_layers", "d_model", "n_heads", "d_head", "n_ctx", "d_vocab", "attn_only", "normalization_type")
    cfg = {name: getattr(ours.cfg, name) for name in fields}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = HookedTransformer(HookedTransformerConfig(**cfg, positional_embedding_type="shortformer", device="cpu"))
    theirs.load_state_dict(to_transformer_lens_state(ours), strict=True)
    long = SETTING.changed(chains=4, draws=1000, burn_in=50, seed=10**6)
    reference = estimate(run_chains(HeadLoss(Pool(ours, tokens), HEAD), long, gamma=long.gamma), long)
    sys.stdout.write(f"reference: {reference.value:.4f} +- {reference.stderr:.4f} ({HEAD}, 4 x 1000 draws)\n")

    def row(name: str, work: Callable[[int], float], repeats: int) -> tuple[np.ndarray, float]:
        found = [seconds(lambda seed=seed: work(seed)) for seed in range(repeats)]
        values, cpu = np.array([value for value, _ in found]), float(np.median([time for _, time in found]))
        off = values - reference.value
        said = f"mean {values.mean():6.3f}  sd {values.std(ddof=1):6.3f}  RMSE {rms(off):6.3f}"
        sys.stdout.write(f"{name:<54} {cpu:7.2f} CPU s  {said}\n")
        sys.stdout.flush()
        return off, cpu

    peer = {
        "as shipped": row("devinterp, as shipped", lambda seed: by_devinterp(theirs, tokens, 32, 100 + seed), REPEATS),
        "paired": row("devinterp, paired by hand", lambda seed: by_devinterp(theirs, tokens, SETTING.draws, 100 + seed), REPEATS),
    }
    by_draws = {size: row(named(size), lambda seed, size=size: by_us(ours, tokens, size, seed), 2 * REPEATS) for size in OURS}
    most = OURS[-1]
    whole = row(f"{named(most)}, whole gradients", lambda seed: by_us(ours, tokens, most, seed, None), 2 * REPEATS)
    for name, (theirs_off, cpu) in peer.items():
        enough = [size for size, (off, _) in by_draws.items() if ratio(off, theirs_off)[1] < 1]
        told = f"{named(enough[0])}, {cpu / by_draws[enough[0]][1]:.0f} times less CPU" if enough else "none of ours surely"
        sys.stdout.write(f"to the error of devinterp {name}: {told}\n")
    for name, (off, cpu) in {"2 of 16 in gradients": by_draws[most], "whole gradients": whole}.items():
        low, high = ratio(off, peer["paired"][0])
        sys.stdout.write(
            f"beside devinterp paired, {named(most)} ({name}): {rms(off) / rms(peer['paired'][0]):.2f} of its RMSE "
            f"[{low:.2f}, {high:.2f}], {peer['paired'][1] / cpu:.0f} times less CPU\n"
        )


def named(size: tuple[int, int]) -> str:
    """What a row is called."""
    return f"ours, {size[0]} windows, 2 x {size[1]} draws"


def rms(off: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(off**2)))


def ratio(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """A 95% interval of the ratio of root mean squares, by drawing repeats again."""
    rng = np.random.default_rng(0)
    drawn = [np.sqrt(np.mean(rng.choice(off, (4000, len(off))) ** 2, axis=1)) for off in (ours, theirs)]
    low, high = np.quantile(drawn[0] / drawn[1], (0.025, 0.975))
    return float(low), float(high)


if __name__ == "__main__":
    main()
