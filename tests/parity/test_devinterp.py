"""Head coefficients against devinterp 2.0.1, on a transformer-lens 3.9 HookedTransformer, with devinterp's own way of pairing.

devinterp subtracts the mean loss of ``w*`` over the first ``num_init_loss_batches`` batches; where that is the number of steps
and all chains read the same batches, its estimate is paired. What is left different: it counts the start as a draw, and the
transient. Run in the environment of ``constraints-tl3.txt``: ``pytest -m tl3``.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import circuits
from circuits.complexity.config import sampler_config

pytestmark = [pytest.mark.tl3, pytest.mark.filterwarnings("default")]

HEADS = ["L0H0", "L0H1", "L0H2", "L1H0", "L1H1", "L1H2"]
STEPS, CHAINS, BATCH = 60, 4, 16
EPSILON, GAMMA, NBETA = 8e-3, 100.0, 25.0
"""Far from the fixture's, so that weights forget by 0.6 a step, and the start, which devinterp counts, weighs little."""


def text(examples: int, seed: int) -> torch.Tensor:
    """Mostly ``next = 3 last + first + 1``, so that heads are needed; the rest is random."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(40, (examples, 24), generator=generator)
    known = torch.rand(examples, 24, generator=generator) < 0.9
    for at in range(1, 24):
        tokens[:, at] = torch.where(known[:, at], (3 * tokens[:, at - 1] + tokens[:, 0] + 1) % 40, tokens[:, at])
    return tokens


TOKENS = text(160, 0)


@pytest.fixture(scope="module")
def lens() -> Iterator[Any]:
    """The original class, trained a little, so that its heads matter."""
    transformer_lens = pytest.importorskip("transformer_lens")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cfg = transformer_lens.HookedTransformerConfig(
            n_layers=2, d_model=32, n_heads=3, d_head=8, n_ctx=24, d_vocab=40, attn_only=True, normalization_type="LN", seed=0,
            positional_embedding_type="shortformer", device="cpu",
        )  # fmt: skip
        model = transformer_lens.HookedTransformer(cfg)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(150):
            optimiser.zero_grad()
            model(text(32, 1 + step), return_type="loss").backward()
            optimiser.step()
        yield model.eval()


@pytest.fixture(scope="module")
def theirs(lens: Any) -> dict[str, tuple[float, float]]:
    """Mean and standard error over chains of their paired estimate."""
    llc = pytest.importorskip("devinterp.slt.llc").llc
    masks = pytest.importorskip("devinterp.slt.weight_restrictions").create_param_masks
    dataset = [{"input_ids": row} for row in TOKENS]
    found = {}
    for head in HEADS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = llc(
                lens, dataset, {}, lr=EPSILON, n_beta=NBETA, param_masks=masks(lens, head.lower()), num_chains=CHAINS,
                num_draws=STEPS, num_init_loss_batches=STEPS, batch_size=BATCH, localization=GAMMA, device="cpu",
            )  # fmt: skip
        chains = result["llc_per_chain"].values
        found[head] = float(chains.mean()), float(chains.std(ddof=1) / np.sqrt(CHAINS))
    return found


def test_six_heads_agree(lens: Any, theirs: dict[str, tuple[float, float]]) -> None:
    config = sampler_config("paper", epsilon=EPSILON, gamma=GAMMA, nbeta=NBETA, chains=CHAINS, draws=STEPS, batch=BATCH)
    ours = circuits.rllc(lens, TOKENS, config=config)
    values = []
    for head, (value, error) in theirs.items():
        at = circuits.Head.parse(head)
        mine, stderr = (float(ours[name][at.layer, at.head]) for name in ("value", "stderr"))
        assert abs(mine - value) < 3 * np.hypot(stderr, error), head
        values.append(mine)
    # The comparison can tell heads apart: they differ by far more than it allows.
    errors = [error for _, error in theirs.values()]
    assert np.ptp(values) > 6 * max(errors)


def test_without_its_workaround_it_is_another_number(lens: Any) -> None:
    """The control: unpaired, at a step size of 0, devinterp does not find 0; ours does."""
    llc = pytest.importorskip("devinterp.slt.llc").llc
    masks = pytest.importorskip("devinterp.slt.weight_restrictions").create_param_masks
    dataset = [{"input_ids": row} for row in TOKENS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = {"num_chains": 2, "num_draws": 20, "num_init_loss_batches": 32, "batch_size": BATCH, "device": "cpu"}
        result = llc(lens, dataset, {}, lr=0.0, n_beta=NBETA, param_masks=masks(lens, "l1h0"), localization=GAMMA, **given)
    assert abs(float(result["llc_mean"])) > 0.01
    config = sampler_config("paper", epsilon=0.0, nbeta=NBETA, draws=20, chains=2, batch=BATCH)
    assert float(circuits.rllc(lens, TOKENS, heads="L1H0", config=config)["value"][1, 0]) == 0
