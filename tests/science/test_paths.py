"""Edges of planted circuits are found, of the right kind; where single edges and derivatives fail, that is shown."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import circuits
from circuits.paths.attribution import attributed
from circuits.paths.edges import EdgeEffects
from circuits.paths.joint import ConditionalEffects, interaction
from circuits.paths.wiring import Edge

pytestmark = pytest.mark.science

V, N = 31, 8
KEY = Edge("L0H0", "L1H0.k")
CARRIED = {
    Edge("embed", "L0H0.v"), KEY, Edge("embed", "L1H0.q"), Edge("embed", "L1H0.v"), Edge("L1H0", "logits"),
}  # fmt: skip
"""What tells one text from another on its way to the right prediction; the current token's own logit is not among it."""
PLACED = {Edge("pos", "L0H0.q"), Edge("pos", "L0H0.k")}
"""The positions of the previous-token head: the same in all examples, so that only zero or a mean over positions sees them."""


def planted(noise=0.0, **more):
    return circuits.planted.planted_model(noise=noise, lag=3, d_vocab=V, n_ctx=2 * N + 1, **more)


@pytest.fixture(scope="module")
def tokens():
    return circuits.repeated_random_tokens(V, n=N, examples=12).tokens


@pytest.fixture(scope="module")
def count(tokens):
    repeated = torch.zeros(len(tokens), tokens.shape[1] - 1, dtype=torch.bool)
    repeated[:, N + 1 :] = True
    return repeated


def effect_of_all(model, tokens, count, kind="mean", **more):
    made = EdgeEffects(tokens, kind, count=count, **more).intervention(model)
    effect = made.one_by_one().mean(-1).numpy()
    return made.wiring.edges, effect


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_every_planted_edge_is_told_from_every_other(kind, tokens, count):
    """ROC AUC 1 without noise, under each replacement. The token's own way to the logits matters too and is left out."""
    edges, effect = effect_of_all(planted(), tokens, count, kind)
    truth = CARRIED | PLACED if kind == "zero" else CARRIED
    judged = [at for at, edge in enumerate(edges) if edge != Edge("embed", "logits")]
    labels = np.array([edges[at] in truth for at in judged])
    assert labels.sum() == len(truth)
    assert roc_auc_score(labels, np.abs(effect[judged])) == 1.0
    shuffled = np.random.default_rng(0).permutation(labels)
    assert roc_auc_score(shuffled, np.abs(effect[judged])) < 0.9  # the control: other edges of that number


def test_the_previous_token_head_is_read_as_key(tokens, count):
    edges, effect = effect_of_all(planted(), tokens, count, "mean")
    by_edge = dict(zip(edges, effect, strict=True))
    assert by_edge[KEY] > 0.3
    for channel in "qv":
        assert abs(by_edge[Edge("L0H0", f"L1H0.{channel}")]) < 1e-4
    assert abs(by_edge[Edge("L0H0", "logits")]) < 1e-4


def test_positions_are_seen_by_a_mean_over_positions(tokens, count):
    edges, effect = effect_of_all(planted(), tokens, count, "mean", over="positions")
    by_edge = dict(zip(edges, effect, strict=True))
    assert all(by_edge[edge] > 0.3 for edge in PLACED)
    edges, effect = effect_of_all(planted(), tokens, count, "mean")
    assert all(abs(effect[edges.index(edge)]) < 1e-6 for edge in PLACED)


def test_noise_buries_the_circuit(tokens, count):
    edges, effect = effect_of_all(planted(noise=2.0, seed=1), tokens, count)
    labels = np.array([edge in CARRIED for edge in edges])
    assert roc_auc_score(labels, np.abs(effect)) < 1.0
    assert effect[edges.index(KEY)] < 0.05  # of .85 without noise


def test_first_order_attribution_misses_saturated_keys_and_queries(tokens, count):
    """Softmax at a score of 60 has no derivative: the key edge is worth the whole circuit and gets nothing."""
    made = EdgeEffects(tokens, "mean", count=count).intervention(planted())
    edges = made.wiring.edges
    first = attributed(made, edges).mean(-1).numpy()
    exact = made.one_by_one().mean(-1).numpy()
    at = edges.index(KEY)
    assert exact[at] > 0.3 and abs(first[at]) < 1e-6
    values = edges.index(Edge("L1H0", "logits"))  # where nothing saturates, the estimate is of the right size
    assert 0.3 < first[values] / exact[values] < 3
    seen = {edge for edge, value in zip(edges, np.abs(first), strict=True) if value > 0.01 * np.abs(first).max()}
    found = {edge for edge, value in zip(edges, np.abs(exact), strict=True) if value > 0.01 * np.abs(exact).max()}
    assert found >= CARRIED and CARRIED - seen == {KEY, Edge("embed", "L1H0.q"), Edge("embed", "L0H0.v")}
    weak = EdgeEffects(tokens, "mean", count=count).intervention(planted(strength=4.0))
    assert float(attributed(weak, [KEY]).mean()) > 0.05  # the control: scores that do not saturate


def test_redundant_edges_hide_each_other_until_they_are_cut_together(tokens, count):
    """A second previous-token head with the same write: either is enough, and no single edge shows them."""
    model = planted()
    with torch.no_grad():
        attn = model.blocks[0].attn
        for weight in (attn.W_Q, attn.W_K, attn.W_V, attn.W_O):
            weight[5] = weight[0]
    effects = EdgeEffects(tokens, "mean", count=count)
    twins = ["L0H0 -> L1H0.k", "L0H5 -> L1H0.k"]
    found = interaction(model, effects, twins, controls=4)
    assert float(abs(found.single).max()) < 1e-3 < 0.3 < float(found.together)
    assert float(found.low) > 0.3 and float(found.p) == float(found.smallest_p)
    given = ConditionalEffects(EdgeEffects(tokens, "mean", count=count, where="* -> L1H0.k"), twins[1])(model)
    assert float(given.value.sel(edge=twins[0])) > 0.3 > 1e-3 > float(abs(given.alone.sel(edge=twins[0])))
    lone = interaction(planted(), effects, twins, controls=0)  # the control: where the second head is another one
    assert float(abs(lone.value)) < 1e-3


@pytest.mark.slow
def test_the_induction_circuit_of_the_shipped_run(checkout):
    """The key edge from the previous-token head carries the repeat; its value and query edges carry below a tenth of that."""
    run = circuits.Checkpoints.from_dir(checkout / "fixtures" / "stdlib-2l")
    from circuits.dynamics.pathways import repeated

    model = run.at(run.steps[-1])
    copies, count = repeated(run)
    key = circuits.ablate(model, copies, "L0H6 -> L1H0.k", count=count, controls=63)
    assert float(key.value) > 5 and float(key.value) > 20 * float(key.stderr) and float(key.p) == 1 / 64
    for channel in "qv":
        other = circuits.ablate(model, copies, f"L0H6 -> L1H0.{channel}", count=count, controls=0)
        assert float(abs(other.value)) < 0.1 * float(key.value)  # the query edge is small and not nothing
    loss = circuits.ablate(model, copies, "L1H0", count=count, controls=7)
    assert float(key.value) > 0.7 * float(loss.value)  # most of what the head is worth hangs on this edge
