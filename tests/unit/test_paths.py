"""Ablating and patching places, matched controls, joint effects, circuits and their faithfulness: numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

import circuits
from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import HookedTransformer
from circuits.models.interventions import Ablation
from circuits.paths.ablate import ablate, patch
from circuits.paths.attribution import EdgeAttribution, agreement
from circuits.paths.circuit import Circuit, greedy, ranked, threshold
from circuits.paths.curve import faithfulness_curve
from circuits.paths.edges import EdgeEffects, edge_list, matrix
from circuits.paths.faithfulness import faithfulness
from circuits.paths.intervention import Intervention, read_positions
from circuits.paths.joint import ConditionalEffects, bootstrap_interval, interaction
from circuits.paths.matched import beside, matched_sets
from circuits.paths.places import Place
from circuits.paths.wiring import Edge, Wiring

V, N = 101, 8
KEY = "L0H0 -> L1H0.k"


@pytest.fixture(scope="module")
def planted():
    return circuits.planted.planted_model()


@pytest.fixture(scope="module")
def tokens():
    return circuits.repeated_random_tokens(V, n=N, examples=6).tokens


@pytest.fixture(scope="module")
def random_model():
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=12, n_heads=3, d_head=4, n_ctx=12, d_vocab=13, attn_only=True,
        positional_embedding_type="shortformer", initializer_range=0.5, dtype="float64",
    )  # fmt: skip
    return HookedTransformer(cfg).eval()


@pytest.fixture(scope="module")
def text():
    return torch.randint(1, 13, (6, 10), generator=torch.Generator().manual_seed(0))


def second_half(tokens):
    count = torch.zeros(len(tokens), tokens.shape[1] - 1, dtype=torch.bool)
    count[:, N + 1 :] = True
    return count


def test_the_wiring_counts_its_edges():
    """The numbers of the module's docstring; 81 is also auto-circuit's own count."""

    def of(layers, heads, **more):
        shape = {"n_layers": layers, "d_model": 8, "n_heads": heads, "d_head": 2, "n_ctx": 4, "d_vocab": 5}
        kind = {"positional_embedding_type": "none"} | (more or {"attn_only": True})
        return Wiring.of(HookedTransformer(HookedTransformerConfig(**shape | kind)))

    assert [len(of(*size).edges) for size in ((2, 4), (2, 8), (4, 8))] == [81, 257, 1281]
    assert len(of(2, 4, act_fn="relu").edges) == 12 * (1 + 6) + (5 + 10) + 11
    assert not of(2, 2, act_fn="relu", parallel_attn_mlp=True).has("L0H0", "L0MLP")
    assert of(2, 2, act_fn="relu").has("L0H0", "L0MLP") and of(2, 2, act_fn="relu").has("L0MLP", "L1H0.q")


def test_the_key_edge_of_a_planted_induction_head_in_nats(planted, tokens):
    """With the edge, repeated tokens are predicted by 1 for the current and 1 for the right token; without, by all that came."""
    clean, cut = [], []
    for row in tokens.tolist():
        for t in range(N + 1, 2 * N):
            logits = np.zeros(V)
            logits[row[t]] += 1
            with_edge, without = logits.copy(), logits.copy()
            with_edge[row[t + 1]] += 1
            for past in row[: t + 1]:
                without[past] += 1 / (t + 1)
            clean.append(np.log(np.exp(with_edge).sum()) - with_edge[row[t + 1]])
            cut.append(np.log(np.exp(without).sum()) - without[row[t + 1]])
    found = ablate(planted, tokens, KEY, "zero", count=second_half(tokens))
    assert float(found.base.mean()) == pytest.approx(np.mean(clean), abs=1e-5)
    assert float(found.value) == pytest.approx(np.mean(cut) - np.mean(clean), abs=1e-5)
    assert float(found.effect.mean()) == pytest.approx(float(found.value)) and found.sizes["example"] == 6
    assert found.sizes["edge"] == 16 and float(found.p) == float(found.smallest_p) == 1 / 17
    assert float(abs(found.control).max()) == pytest.approx(0, abs=1e-6)  # no other head's keys matter
    for silent in ("L0H0 -> L1H0.v", "L0H0 -> L1H0.q", "L0H0 -> logits", "L0H1", "L1H1"):
        assert float(ablate(planted, tokens, silent, "zero", controls=0).value) == pytest.approx(0, abs=1e-6)


def test_a_place_is_ablated_whole_and_a_path_through_it_alone(planted, tokens):
    whole, path, both = (
        float(ablate(planted, tokens, place, "zero", controls=0).value)
        for place in ("L0H0", f"{KEY} -> logits", ["L0H0 -> L1H0.v", KEY])
    )
    assert whole == pytest.approx(path, abs=1e-6) == pytest.approx(both, abs=1e-6)  # this head's write is read there only


def test_positions_choose_whose_write_is_replaced(planted, tokens):
    """The induction head reads keys of the first copy: the second copy's previous-token writes are not needed."""
    everywhere = float(ablate(planted, tokens, KEY, "zero", controls=0).value)
    first = float(ablate(planted, tokens, KEY, "zero", positions=range(N + 2), controls=0).value)
    second = float(ablate(planted, tokens, KEY, "zero", positions=list(range(N + 2, 2 * N + 1)), controls=0).value)
    assert first == pytest.approx(everywhere, rel=0.05) and abs(second) < 0.1 * everywhere
    with pytest.raises(ValueError, match="choose none"):
        read_positions([], tokens)
    assert read_positions([-1], tokens)[:, -1].all()


def test_a_metric_of_ones_own(planted, tokens):
    def right_logit(logits, tokens):
        return logits[:, -2].gather(1, tokens[:, -1:])[:, 0]

    found = ablate(planted, tokens, KEY, "zero", metric=right_logit, controls=2)
    assert float(found.base.mean()) == pytest.approx(1, abs=1e-5)
    assert float(found.value) == pytest.approx(1 / (2 * N) * 1 - 1, abs=1e-5)  # uniform over 2N keys, one of them right
    assert found.attrs["units"].endswith("right_logit")
    with pytest.raises(ValueError, match="one number for each"):
        ablate(planted, tokens, KEY, metric=lambda logits, tokens: logits[:, 0])


def test_patching_one_edge_moves_what_it_carries(planted, tokens):
    """Corrupt: the first copy's order is turned, so that what followed a token is another one."""
    corrupt = tokens.clone()
    corrupt[:, 1 : N + 1] = tokens[:, 1 : N + 1].flip(1)
    count = second_half(tokens)
    noising = patch(planted, tokens, corrupt, KEY, count=count, controls=0)
    assert float(noising.value) > 0.5  # the right key is no longer found
    whole = patch(planted, tokens, corrupt, "embed", count=count, controls=0)
    back = patch(planted, tokens, corrupt, "embed", direction="denoising", count=count, controls=0)
    assert float(back.value) == pytest.approx(-float(whole.value), abs=1e-5)
    assert float(back.base.mean()) == pytest.approx(float(whole.base.mean()) + float(whole.value), abs=1e-5)


def test_mean_ablation_leaves_out_the_examples_own(random_model, text):
    made = Intervention(random_model, text, "mean")
    batch = next(iter(made.batches()))
    expected = (batch.written.sum(1, keepdim=True) - batch.written) / (len(text) - 1)
    assert made.each_time >= len(text)
    torch.testing.assert_close(batch.alternative, expected)
    given = Intervention(random_model, text, "mean", reference=text[:2])
    torch.testing.assert_close(next(iter(given.batches())).alternative[:, 3], batch.written[:, :2].mean(1))
    flat = Intervention(random_model, text, "mean", over="positions")
    own = batch.written.mean(2)
    torch.testing.assert_close(
        next(iter(flat.batches())).alternative[:, :, 4], (own.sum(1, keepdim=True) - own) / (len(text) - 1)
    )


def test_controls_exchange_heads_within_layers():
    wiring = Wiring.of(circuits.planted.planted_model())

    def count(place, most=40):
        return len(matched_sets([Place.parse(place).paths(wiring)], wiring, most, seed=0))

    assert count("L0H0") == 5 and count(KEY) == 35 and count("embed -> logits") == 0 and count("L0H*") == 0
    assert count("{L0H0, L0H1} -> logits") == 6  # pairs of the other four heads
    assert count("L0H0 -> L1H0.k -> logits, L0H1 -> L1H2.v") == 40  # of 899
    assert count(KEY, most=7) == 7
    other = matched_sets([[("L0H0", "L1H0.k")], [("L0H0", "logits")]], wiring, 40, seed=0)
    assert all(first[0][0] == second[0][0] for first, second in other)  # exchanged alike in all groups
    there = beside(3.0, np.array([1.0, 2.0, 3.0]))
    assert there.null_mean == 2 and there.null_sd == 1 and there.z == 1 and there.p == 0.75 and there.smallest_p == 0.25
    assert beside(-9.0, np.array([1.0, 2.0, 3.0])).p == 0.25  # two-sided: far below is far
    assert all(math.isnan(x) for x in beside(np.nan, np.array([1.0, 2.0])))
    assert all(math.isnan(x) for x in beside(3.0, np.array([1.0])))


def test_edge_effects_of_a_part_of_the_graph(random_model, text):
    everything = EdgeEffects(text, "resample")(random_model)
    some = EdgeEffects(text, "resample", where="* -> L1H2.k", on="keys")
    part = some(random_model)
    assert some.name == "edge_effects_keys" and list(part.edge.values) == [
        name for name in everything.edge.values if name.endswith("L1H2.k")
    ]
    np.testing.assert_allclose(part.value, everything.value.sel(edge=part.edge))
    assert np.isnan(part.z.sel(edge="embed -> L1H2.k")) and np.isfinite(part.z.sel(edge="L0H0 -> L1H2.k"))
    table = matrix(everything)
    assert float(table.sel(source="L0H1", destination="L1H2.k")) == float(part.value.sel(edge="L0H1 -> L1H2.k"))
    assert np.isnan(table.sel(source="L1H0", destination="L1H2.k")) and np.isnan(table.sel(source="pos", destination="L0H0.v"))
    assert edge_list(part)[0] == Edge("embed", "L1H2.k")


def test_interaction_and_conditional_effects_are_differences_of_joint_ones(random_model, text):
    effects = EdgeEffects(text, "zero")
    made = effects.intervention(random_model)
    a, b = Edge("L0H0", "L1H1.v"), Edge("L0H2", "L1H1.v")
    joint, one, other = (x.numpy() for x in made.together([[a, b], [a], [b]]))
    found = interaction(random_model, effects, [str(a), str(b)])
    assert float(found.value) == pytest.approx((joint - one - other).mean()) and float(found.together) == pytest.approx(
        joint.mean()
    )
    assert float(found.low) < float(found.value) < float(found.high) and 1 / 9 <= float(found.smallest_p) < 1 / 3
    given = ConditionalEffects(EdgeEffects(text, "zero", where="* -> L1H1.v"), str(b))(random_model)
    assert float(given.value.sel(edge=str(a))) == pytest.approx((joint - other).mean())
    assert float(given.hidden.sel(edge=str(a))) == pytest.approx(float(found.value))
    assert str(b) not in given.edge.values
    with pytest.raises(ValueError, match=r"share the path L0H0 -> L1H1\.k"):
        interaction(random_model, effects, ["L0H0", "L0H0 -> L1H1.k"])
    assert float(given.condition) == pytest.approx(other.mean())
    assert all(np.isnan(bootstrap_interval(np.array([1.0]), 0)))


def test_a_linear_model_has_no_interaction(text):
    """Without norms and with patterns kept, a logit is a sum over edges into the logits."""
    cfg = HookedTransformerConfig(
        n_layers=1, d_model=12, n_heads=3, d_head=4, n_ctx=12, d_vocab=13, attn_only=True, normalization_type=None,
        dtype="float64", initializer_range=0.5,
    )  # fmt: skip
    made = Intervention(
        HookedTransformer(cfg).eval(), text, Ablation("mean", "preserved"), metric=lambda logits, tokens: logits[:, -1, 3]
    )
    edges = [edge for edge in made.wiring.edges if edge.destination == "logits"]
    torch.testing.assert_close(made.together([edges])[0], made.one_by_one(edges).sum(0))


def test_agreement_is_spearmans():
    exact = np.array([[1.0], [2.0], [3.0], [4.0]]) + np.zeros((4, 5))
    kinds = ["a"] * 4
    found = agreement(-exact, exact, kinds, draws=100, seed=0)
    assert found["agreement"] == -1 and found["agreement_of_moduli"] == 1 and found["agreement_low"] == -1
    assert abs(found["agreement_null_mean"]) < 0.2 < found["agreement_null_sd"]
    alone = agreement(exact, exact, ["a", "b", "c", "d"], draws=10, seed=0)  # the kinds say it all: the null is the value
    assert alone["agreement_null_mean"] == alone["agreement"] == 1 and np.isnan(alone["agreement_z"])
    silent = np.vstack([exact, np.zeros((6, 5))])  # 0 in both: such edges agree by construction and are left out
    assert agreement(-silent, silent, ["a"] * 10, draws=10, seed=0)["agreement"] == -1
    assert np.isnan(agreement(exact[:, :1], exact[:, :1], kinds, draws=10, seed=0)["agreement_low"])


def test_attribution_stands_beside_the_exact_effects(random_model, text):
    effects = EdgeEffects(text, "resample")
    found = EdgeAttribution(effects, "edges", steps=24)(random_model)
    np.testing.assert_allclose(found.exact, effects(random_model).value)
    assert float(found.total) == pytest.approx(float(found.total_exact), abs=0.02)  # the rule's error at 24 nodes
    first = EdgeAttribution(effects)(random_model)
    assert abs(float(first.total) - float(first.total_exact)) > 0.1  # of one derivative nothing of the kind is true
    assert -1 <= float(found.agreement_low) <= float(found.agreement) <= float(found.agreement_high) <= 1


def test_circuits_are_sets_of_edges(random_model, text):
    effects = EdgeEffects(text, "zero")(random_model)
    wiring = Wiring.of(random_model)
    order = effects.edge.values[np.argsort(-abs(effects.value.values), kind="stable")]
    best = ranked(random_model, effects, 7)
    assert {str(edge) for edge in best} == set(order[:7]) and len(best.complement) == len(wiring.edges) - 7
    tau = float(abs(effects.value).sel(edge=order[6]))
    assert threshold(random_model, effects, tau).edges == best.edges
    helping = threshold(random_model, effects, tau, modulus=False)
    assert {str(edge) for edge in helping} == set(effects.edge.values[effects.value.values >= tau])
    assert repr(best) == f"Circuit(7 of {len(wiring.edges)} edges)" and best.without(best.edges).edges == ()

    made = Circuit.of(
        random_model, "embed -> L0H0.v, L0H0 -> L1H1.k, L1H1 -> logits, L0H2 -> L1H1.q, L0H1 -> logits, embed -> L1H0"
    )
    graph = made.graph()
    assert ("L0H0", "L1H1.k") in graph.edges and ("L1H1.k", "L1H1") in graph.edges
    assert [str(edge) for edge in made.connected()] == ["embed -> L0H0.v", "L0H0 -> L1H1.k", "L1H1 -> logits"]
    with pytest.raises(ValueError, match="no edge of this model"):
        Circuit(wiring, (Edge("L1H0", "L0H0.q"),))


def test_greedy_keeps_what_costs_more_than_tau():
    planted = circuits.planted.planted_model(d_vocab=21, n_ctx=11, lag=3)
    tokens = circuits.repeated_random_tokens(21, n=5, examples=4).tokens
    made = EdgeEffects(tokens, "zero").intervention(planted)
    found = greedy(made, 0.02, progress=False)
    expected = {
        "embed -> L0H0.v", "pos -> L0H0.q", "pos -> L0H0.k", "embed -> L1H0.q", "embed -> L1H0.v", KEY, "L1H0 -> logits",
    }  # fmt: skip
    assert {str(edge) for edge in found} - expected <= {"embed -> logits"} and expected <= {str(edge) for edge in found}
    assert all(abs(found.scores[edge]) >= 0.02 for edge in found) and set(found.scores) == set(found.wiring.edges)


def test_faithfulness_is_one_for_the_model_and_zero_for_nothing(random_model, text):
    effects = EdgeEffects(text, "zero")
    everything = effects(random_model)
    wiring = Wiring.of(random_model)
    whole = faithfulness(random_model, effects, Circuit(wiring, wiring.edges), random_circuits=3, subsets=2)
    assert float(whole.value) == pytest.approx(1) and float(whole.stderr) == pytest.approx(0, abs=1e-9)
    assert float(whole.incompleteness) == pytest.approx(0, abs=1e-9)  # both sides of the difference are one circuit
    some = ranked(random_model, everything, 20)
    found = faithfulness(random_model, effects, some, random_circuits=3, subsets=2)
    by_hand = (float(found.alone) - float(found.nothing)) / (float(found.whole) - float(found.nothing))
    assert float(found.value) == pytest.approx(by_hand) and found.sizes["edge"] == 20
    made = effects.intervention(random_model)
    alone, without, nothing = made.together(
        [some.complement, some.without([some.edges[3]]).complement, wiring.edges]
    ).mean(1).tolist()  # fmt: skip
    assert float(found.minimality[3]) >= abs(alone - without) / abs(nothing) - 1e-12
    scores = dict(zip(edge_list(everything), everything.value.values.tolist(), strict=True))
    curve = faithfulness_curve(random_model, effects, scores, shares=(0.0, 0.3, 1.0), random_rankings=2)
    f = curve.value.values
    assert f[0] == pytest.approx(0) and f[-1] == pytest.approx(1)
    share = curve.share.values
    assert float(curve.area) == pytest.approx(((f[:-1] + f[1:]) / 2 * np.diff(share)).sum())
    assert curve["size"].values.tolist() == [0, round(0.3 * len(wiring.edges)), len(wiring.edges)]
    assert np.isnan(curve.z.values[[0, -1]]).all()  # all rankings end alike


def test_a_model_that_does_nothing_has_no_faithfulness(text):
    model = circuits.planted.uniform_model(n_layers=2, d_vocab=13, n_ctx=12)
    effects = EdgeEffects(text, "zero")
    found = faithfulness(model, effects, Circuit.of(model, "L0H0"), random_circuits=2, subsets=1)
    assert str(found.state.values) == "no effect" and np.isnan(found.value) and np.isnan(found.minimality).all()
