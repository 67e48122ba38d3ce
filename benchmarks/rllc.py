"""One head's coefficient to a given error: ours against devinterp 2.0.1, on one model, text, setting and thread.

    python benchmarks/rllc.py                 # in the environment of constraints-tl3.txt; about 20 minutes

Both sample head ``HEAD`` of the last checkpoint of ``fixtures/stdlib-2l`` by SGLD at epsilon 1e-3, gamma 200, n beta 30, on
batches of 16 sequences of 128 tokens. devinterp runs 2 chains of 50 draws, as shipped (32 batches behind the initial loss,
unpaired) and with its workaround (as many as steps: paired). Errors are root mean squares over repeats with other seeds,
against one long run of ours. Ours is run at growing numbers of draws until its error is no larger; its time includes the clean
run of the pool, which all 16 heads would share.
"""

import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from circuits import Checkpoints, Head
from circuits.complexity.chains import run_chains
from circuits.complexity.config import sampler_config
from circuits.complexity.diagnostics import estimate
from circuits.complexity.engine import HeadLoss
from circuits.complexity.pool import Pool
from circuits.models.convert import to_transformer_lens_state

HEAD = Head(1, 2)
SETTING = sampler_config("paper", chains=2, draws=50, batch=16, burn_in=10)
REPEATS, OURS = 5, (2, 4, 8, 16, 32, 50)


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


def by_us(run: Checkpoints, tokens: torch.Tensor, draws: int, seed: int) -> float:
    """Our estimate, from the model on."""
    pool = Pool(run.at(run.steps[-1]), tokens)
    config = SETTING.changed(draws=draws, seed=seed, gradient_batch=4)
    return estimate(run_chains(HeadLoss(pool, HEAD), config, gamma=config.gamma), config).value


def main() -> None:
    """Measure and say it."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.set_num_threads(1)
    run = Checkpoints.from_dir(Path(__file__).parents[1] / "fixtures/stdlib-2l")
    ours, tokens = run.at(run.steps[-1]), run.evaluation["code"]
    fields = ("n_layers", "d_model", "n_heads", "d_head", "n_ctx", "d_vocab", "attn_only", "normalization_type")
    cfg = {name: getattr(ours.cfg, name) for name in fields}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = HookedTransformer(HookedTransformerConfig(**cfg, positional_embedding_type="shortformer", device="cpu"))
    theirs.load_state_dict(to_transformer_lens_state(ours), strict=True)
    long = SETTING.changed(chains=4, draws=1000, burn_in=50, seed=10**6)
    reference = estimate(run_chains(HeadLoss(Pool(ours, tokens), HEAD), long, gamma=long.gamma), long)
    lines = [f"reference: {reference.value:.4f} +- {reference.stderr:.4f} ({HEAD}, 4 x 1000 draws)"]

    def row(name: str, work: Callable[[int], float], repeats: int) -> tuple[float, float]:
        found = [seconds(lambda seed=seed: work(seed)) for seed in range(repeats)]
        error = float(np.sqrt(np.mean([(value - reference.value) ** 2 for value, _ in found])))
        values, cpu = np.array([value for value, _ in found]), float(np.median([time for _, time in found]))
        lines.append(f"{name:<34} {cpu:8.2f} CPU s  mean {values.mean():7.3f}  sd {values.std(ddof=1):6.3f}  RMSE {error:6.3f}")
        return error, cpu

    peer = {
        "as shipped": row("devinterp, as shipped", lambda seed: by_devinterp(theirs, tokens, 32, 100 + seed), REPEATS),
        "paired": row("devinterp, paired by hand", lambda seed: by_devinterp(theirs, tokens, SETTING.draws, 100 + seed), REPEATS),
    }
    by_draws = {
        draws: row(f"ours, 2 x {draws} draws", lambda seed, draws=draws: by_us(run, tokens, draws, seed), 2 * REPEATS)
        for draws in OURS
    }
    for name, (error, cpu) in peer.items():
        enough = [draws for draws, (ours_error, _) in by_draws.items() if ours_error <= error]
        told = f"2 x {enough[0]} draws of ours, {cpu / by_draws[enough[0]][1]:.0f} times less CPU" if enough else "none of ours"
        lines.append(f"to the error of devinterp {name}: {told}")
    (paired, theirs_cpu), (last, ours_cpu) = peer["paired"], by_draws[OURS[-1]]
    lines.append(
        f"2 x {OURS[-1]} draws: {last / paired:.2f} of the RMSE of devinterp paired, {theirs_cpu / ours_cpu:.0f} times less CPU"
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    sys.stdout.write("\n".join([*lines, f"peak memory of the process: {memory:.0f} MiB"]) + "\n")


if __name__ == "__main__":
    main()
