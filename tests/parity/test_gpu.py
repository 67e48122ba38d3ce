"""The engine on a GPU against the CPU: noise and batches are drawn on the CPU, so that both walk the same chains."""

import numpy as np
import pytest
import torch

from circuits import Head, HookedTransformer
from circuits.complexity.chains import run_chains
from circuits.complexity.config import sampler_config
from circuits.complexity.engine import HeadLoss
from circuits.complexity.pool import Pool

CFG = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "n_ctx": 12, "d_vocab": 11, "attn_only": True, "seed": 0}
TOKENS = torch.randint(11, (16, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("layer", [0, 1])
def test_a_gpu_walks_the_same_chains(layer: int) -> None:
    config = sampler_config("laptop", batch=8, draws=10)
    traces = []
    for device in ("cpu", "cuda"):
        model = HookedTransformer(CFG).eval().to(device)
        loss = HeadLoss(Pool(model, TOKENS), Head(layer, 1))
        traces.append(run_chains(loss, config, gamma=config.gamma, stream=(layer, 1)).paired.cpu().numpy())
    assert np.abs(traces[0] - traces[1]).max() < 1e-4 * np.abs(traces[0]).max()
