"""What the shipped runs' heads do: roles that a second sample confirms, and in-context learning that hangs on one head."""

import numpy as np
import pytest
import torch
import xarray as xr

from circuits.data.bracket_set import bracket_ids, bracket_set
from circuits.data.tokens import random_ids
from circuits.detectors.attention import AttentionScores
from circuits.detectors.brackets import BracketScores
from circuits.detectors.in_context_ablation import InContextAblation
from circuits.detectors.induction_cut import InductionCut
from circuits.detectors.multigram_measure import Multigrams
from circuits.detectors.roles import classify_functions
from circuits.dynamics.functions import text_of
from circuits.models.checkpoints import Checkpoints
from circuits.models.effects import effects_of
from circuits.models.interventions import replacement

SAMPLE = 128


def roles(run: Checkpoints, sample: int) -> xr.Dataset:
    """Roles at the end of a run, from the ``sample``-th part of its text and seeds of its own."""
    model, text, ids = run.at(run.steps[-1]), text_of(run), random_ids(run.token_counts)
    assert text is not None
    pairs, quotes, filler = bracket_ids(run.tokenizer)
    brackets = bracket_set(pairs, filler, quotes=quotes, examples=64, length=64, seed=sample)
    windows = text.tokens[sample::2]
    chosen = windows[torch.arange(SAMPLE) * len(windows) // SAMPLE]
    return classify_functions(
        AttentionScores(ids=ids, seed=sample)(model),
        InductionCut(ids=ids, seed=sample)(model),
        Multigrams(chosen, nulls=("shifted",))(model),
        BracketScores(brackets)(model),
    )


@pytest.mark.slow
@pytest.mark.science
def test_roles_of_the_shipped_runs_hold_on_a_second_sample(checkout):
    run = Checkpoints.from_dir(checkout / "fixtures/stdlib-2l")
    one, two = (roles(run, sample) for sample in (0, 1))
    assert int((one.role == two.role).sum()) >= 14
    for found in (one, two):
        assert np.argwhere(found.role.values == "induction").tolist() == [[1, 0]]
        assert str(found.role.values[0, 6]) == "previous token"
    flat = roles(Checkpoints.from_dir(checkout / "fixtures/stdlib-1l"), 0)
    assert "induction" not in flat.role.values and not flat.holds.sel(role_name="induction").any()


@pytest.mark.slow
@pytest.mark.science
def test_in_context_learning_hangs_on_the_induction_head(checkout):
    """Against matched controls: the other heads of its layer, and the heads whose ablation costs as much on the whole."""
    run = Checkpoints.from_dir(checkout / "fixtures/stdlib-2l")
    model, tokens = run.at(run.steps[-1]), run.evaluation["code"]
    found = InContextAblation(tokens)(model)
    value, loss = found.value.values, found.loss.values
    lost = value[1, 0] / -float(found.clean)
    assert lost > 0.5 and value[1, 0] > 5 * found.stderr.values[1, 0]
    as_costly = (loss >= 0.4 * loss[1, 0]) & (np.arange(16).reshape(2, 8) != 8)
    assert as_costly.sum() >= 3
    assert max(value[as_costly].max(), value[1, 1:].max()) < 0.1 * -float(found.clean)
    zero = replacement(model, tokens[:16], "zero")
    live, frozen = (effects_of(model, tokens[:16], zero, patterns="preserved", norms=norms)[1] for norms in ("live", "frozen"))
    assert 0.001 < float((live - frozen).abs().mean()) < 0.2  # what the norms' reaction is worth, nats a token
