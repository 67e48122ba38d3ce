"""Local learning coefficients: settings, blocks of weights, chains, diagnostics, and the measures on small models."""

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import circuits
from circuits import Checkpoints, Head, HookedTransformer, SamplerConfig
from circuits.complexity import rllc as rllc_module
from circuits.complexity import stability
from circuits.complexity.blocks import Block
from circuits.complexity.chains import Traces, run_chains
from circuits.complexity.config import PRESETS, sampler_config
from circuits.complexity.diagnostics import estimate, nested_rhat
from circuits.complexity.engine import HeadLoss
from circuits.complexity.ground_truth import Quadratic
from circuits.complexity.pool import Pool
from circuits.complexity.rllc import LLC, RLLC
from circuits.complexity.samplers import init, step
from circuits.complexity.stability import NEAR, Sharpness, check_stable, sharpness, smallest_curvature
from circuits.dynamics.artefacts import pack
from circuits.dynamics.coefficients import coefficient_measures, named, texts_of, training_mix
from circuits.dynamics.sweep import Task, evenly, gather, run_task

SIZES: dict[str, Any] = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 12, "d_vocab": 11, "attn_only": True}
TOKENS = torch.randint(11, (12, 10), generator=torch.Generator().manual_seed(0))
QUICK = sampler_config("laptop", draws=6, burn_in=2, batch=4)


def make(**fields: Any) -> HookedTransformer:
    return HookedTransformer({**SIZES, "normalization_type": "LN", "initializer_range": 0.3, "seed": 0, **fields}).eval()


class Slope:
    """L(w) = g . w on every example: its gradient is the same everywhere."""

    def __init__(self, gradient: Tensor, examples: int = 3):
        self.gradient, self.centre = gradient, torch.zeros_like(gradient)
        self.base = torch.zeros(examples, dtype=gradient.dtype)

    def loss(self, w: Tensor, examples: Tensor) -> Tensor:
        return (w @ self.gradient)[:, None].expand(-1, examples.shape[1])

    def loss_and_gradient(self, w: Tensor, examples: Tensor) -> tuple[Tensor, Tensor]:
        return self.loss(w, examples), self.gradient.expand_as(w)


def test_one_step_of_each_sampler_by_hand() -> None:
    centre, w, g, xi = (torch.tensor([x], dtype=torch.float64) for x in (1.0, 3.0, 0.5, 2.0))
    given = {"centre": centre, "gamma": 10.0}
    plain = sampler_config("paper", epsilon=0.01, gamma=10.0, nbeta=4.0, chains=1)
    state = init(centre, plain)._replace(w=w[None])
    moved = step(state, g[None], xi[None], config=plain, **given)
    assert float(moved.w) == pytest.approx(3 - 0.005 * (4 * 0.5 + 10 * 2) + 0.1 * 2)
    exact = plain.changed(sampler="exponential")
    rho = np.exp(-0.05)
    expected = 1 + rho * 2 - (1 - rho) * 4 * 0.5 / 10 + np.sqrt((1 - rho**2) / 10) * 2
    assert float(step(state, g[None], xi[None], config=exact, **given).w) == pytest.approx(expected)
    adapted = plain.changed(sampler="rmsprop_sgld", rms_decay=0.9, rms_floor=0.2)
    state = init(centre, adapted)._replace(w=w[None])
    rate = 1 / (0.2 + np.sqrt(0.9 * 1 + 0.1 * 0.25))
    moved = step(state, g[None], xi[None], config=adapted, **given)
    assert float(moved.w) == pytest.approx(3 - 0.005 * rate * 22 + np.sqrt(0.01 * rate) * 2)
    assert moved.mean_square is not None and float(moved.mean_square) == pytest.approx(0.925)
    assert float(state.w) == 3.0  # nothing given is changed


def test_small_steps_of_the_exponential_sampler_are_those_of_sgld() -> None:
    centre = torch.zeros(5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    w, g, xi = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    moves = []
    for sampler in ("sgld", "exponential"):
        config = sampler_config("paper", sampler=sampler, epsilon=1e-8)
        moves.append(step(init(centre, config)._replace(w=w), g, xi, centre=centre, gamma=100.0, config=config).w - w)
    assert torch.allclose(*moves, rtol=1e-5)


def test_a_slope_has_its_closed_form() -> None:
    """L = g w: w is normal around -nbeta g / gamma, so the coefficient is -(nbeta |g|)^2 / gamma, exactly at any step size."""
    gradient = torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64)
    config = sampler_config("laptop", draws=400, chains=8, gamma=50.0, nbeta=10.0, epsilon=0.03, batch=2)
    found = estimate(run_chains(Slope(gradient), config, gamma=50.0), config)
    assert found.value == pytest.approx(-(100 * 0.13) / 50, abs=3 * found.stderr)
    assert found.state == "ok"


def test_without_steps_the_coefficient_is_exactly_0() -> None:
    model = make()
    for config in (sampler_config("paper", epsilon=0.0, draws=6, batch=4), QUICK.changed(epsilon=0.0)):
        found = RLLC(TOKENS, config)(model)
        assert (found["value"].values == 0).all() and (found["stderr"].values == 0).all()
        assert (found["state"].values == "unmoved").all()
        whole = LLC(TOKENS, config)(model)
        assert float(whole["value"]) == 0 and str(whole["state"].values) == "unmoved"


def test_draws_are_paired_and_the_start_and_burn_in_are_left_out() -> None:
    """A loss that is the number of times it was asked, and w that does not move: what is kept can be counted."""

    class Counting(Slope):
        asked = 0

        def loss(self, w: Tensor, examples: Tensor) -> Tensor:
            self.asked += 1
            return torch.full(examples.shape, float(self.asked), dtype=w.dtype)

    loss = Counting(torch.zeros(2, dtype=torch.float64))
    loss.base = torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)
    config = sampler_config("paper", epsilon=1e-6, draws=3, burn_in=2, thin=2, batch=1, chains=2, superchains=1, nbeta=1e-4)
    traces = run_chains(loss, config, gamma=1.0)
    # Steps 0..8 ask once each; 0 is the start, 1 and 2 burn-in, then every second is kept.
    assert traces.loss.tolist() == [[5.0, 7.0, 9.0]] * 2
    assert set(traces.base.flatten().tolist()) <= {10.0, 20.0, 30.0}
    assert torch.equal(traces.paired, traces.loss - traces.base)


@pytest.mark.parametrize("part", [None, 1, 3])
def test_a_loss_is_paired_with_that_of_the_same_sequences(part: int | None) -> None:
    """Chains that stay have the loss of ``w*`` itself, so the two traces agree draw by draw while batches differ."""
    loss = HeadLoss(Pool(make(dtype="float64"), TOKENS), Head(1, 0))
    config = sampler_config("paper", epsilon=0.0, draws=6, batch=4, gradient_batch=part)
    traces = run_chains(loss, config, gamma=200.0)
    assert torch.allclose(traces.loss, traces.base, rtol=0, atol=1e-12)
    assert float(traces.base.std()) > 1e-3, "the control: another batch's would not do"


def test_a_batch_has_every_sequence_once_and_chains_differ() -> None:
    seen: list[Tensor] = []

    class Watching(Slope):
        def loss(self, w: Tensor, examples: Tensor) -> Tensor:
            seen.append(examples)
            return super().loss(w, examples)

    config = sampler_config("paper", epsilon=1e-3, gamma=1.0, draws=8, burn_in=4, batch=5, chains=4, gradient_batch=2)
    run_chains(Watching(torch.zeros(2), examples=7), config, gamma=1.0)
    full = [torch.cat(pair, 1) for pair in pairwise(seen) if [p.shape[1] for p in pair] == [2, 3]]
    assert len(full) == 7  # the last draw, which makes no step, asks for all five at once
    assert all(len(set(row)) == 5 for batch in (*full, seen[-1]) for row in batch.tolist())
    first, late = seen[0], seen[6]
    assert torch.equal(first[0], first[1]) and torch.equal(first[2], first[3]) and not torch.equal(first[0], first[2])
    assert len({tuple(row) for row in late.tolist()}) > 2  # after half the burn-in chains go apart


def test_the_gradient_of_part_of_a_batch_changes_little_and_the_loss_is_of_all_of_it() -> None:
    loss = HeadLoss(Pool(make(), TOKENS), Head(1, 0))
    config = sampler_config("laptop", draws=60, batch=12)
    whole, part = (run_chains(loss, config.changed(gradient_batch=n), gamma=200.0) for n in (12, 3))
    assert torch.allclose(whole.base, part.base)  # all twelve, in whatever order
    # The gradient's noise adds epsilon nbeta^2 s^2 / 4 to the variance: per mille here.
    assert float(part.paired.mean()) == pytest.approx(float(whole.paired.mean()), rel=0.1, abs=2e-4)


def test_a_chain_that_diverges_is_left_out_and_said_to_have() -> None:
    class Cliff(Slope):
        """Infinite beyond a distance that one chain in some is sure to reach."""

        def loss(self, w: Tensor, examples: Tensor) -> Tensor:
            flat = torch.where(w.norm(dim=1) > self.edge, torch.inf, 0.0)
            return flat[:, None].expand(-1, examples.shape[1])

        edge = 2.3

    config = sampler_config("laptop", draws=20, chains=8, gamma=2.0, epsilon=0.7, batch=2, nbeta=1.0)
    traces = run_chains(Cliff(torch.zeros(4, dtype=torch.float64)), config, gamma=2.0)
    lost = int(traces.diverged.sum())
    assert 0 < lost < 8
    found = estimate(traces, config)
    assert found.state == "diverged" and found.n_diverged == lost and found.value == 0
    for chain in range(8):
        gone = traces.loss[chain].isnan()
        assert bool(gone.any()) == bool(traces.diverged[chain])
        assert gone.tolist() == sorted(gone.tolist())  # from then on, for good
    everything = traces._replace(diverged=torch.ones(8, dtype=torch.bool))
    assert np.isnan(estimate(everything, config).value)


def test_an_exploding_loss_is_a_divergence() -> None:
    steep = Slope(torch.full((4,), -1e4, dtype=torch.float64))
    steep.loss = lambda w, examples: 1e6 * w.square().sum(1)[:, None].expand(-1, examples.shape[1])
    config = sampler_config("paper", epsilon=1e-2, gamma=1.0, draws=10, batch=1, chains=2)
    assert run_chains(steep, config, gamma=1.0).diverged.all()


def test_rhat_sees_groups_apart_and_drift() -> None:
    rng = np.random.default_rng(0)
    groups = np.array([0, 0, 1, 1])
    draws = rng.normal(size=(4, 200))
    assert nested_rhat(draws, groups) < 1.05
    assert nested_rhat(draws + 0.8 * groups[:, None], groups) > 1.1
    assert nested_rhat(draws + np.linspace(0, 2.5, 200), groups) > 1.1  # all chains alike: groups do not see it


def test_the_words() -> None:
    def traces(paired: np.ndarray, distance: np.ndarray) -> Traces:
        lost = torch.zeros(len(paired), dtype=torch.bool)
        values = torch.from_numpy(paired)
        return Traces(values, torch.zeros_like(values), torch.from_numpy(distance), lost, None)

    config, rng = sampler_config("paper"), np.random.default_rng(0)
    noise, far = rng.normal(size=(4, 200)), rng.normal(size=(4, 200)) + 50
    found = estimate(traces(noise, far), config)
    assert found.state == "ok" and found.ess > 400
    assert found.value == pytest.approx(30 * noise.mean()) and found.stderr == pytest.approx(30 / 800**0.5, rel=0.25)
    assert found.distance == pytest.approx(far.mean() ** 0.5)
    slow = np.cumsum(rng.normal(size=(4, 200)), axis=1)
    assert estimate(traces(noise, slow + 50), config).state == "not mixed"
    assert estimate(traces(np.repeat(rng.normal(size=(4, 8)), 25, axis=1), far), config).state in ("few draws", "not mixed")


@pytest.mark.parametrize(
    ("given", "slices"),
    [
        ("L1H0", 7), ((1, 0), 7), (Head(1, 0), 7), (["L1H0", "L0H1"], 14), ("L0", 10), ("embed", 1), ("unembed", 2),
        ("blocks.0.attn.W_O", 1), (["blocks.0.attn.W_O", "L1H1"], 8), ("all", 25),
    ],
)  # fmt: skip
def test_blocks_of_weights(given: Any, slices: int) -> None:
    model = make(positional_embedding_type="none")
    parameters = dict(model.named_parameters())
    block = Block(given, parameters, model.cfg)
    assert len(block.slices) == slices
    w = torch.arange(float(len(block.vector(parameters))))
    placed = block.placed(w, parameters)
    assert torch.equal(block.vector(parameters | placed), w)  # there and back
    changed = sum(int((placed[name] != parameters[name]).sum()) for name in placed)
    assert changed >= len(w) - 1  # nothing else is touched: of a head, one of the slices
    assert sum(value.numel() for value in placed.values()) >= len(w)


def test_what_a_block_leaves_alone() -> None:
    model = make()
    parameters = dict(model.named_parameters())
    block = Block("L1H0", parameters, model.cfg)
    placed = block.placed(torch.zeros(len(block.vector(parameters))), parameters)
    assert set(placed) == {f"blocks.1.attn.{name}" for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")}
    assert all((value[0] == 0).all() and torch.equal(value[1], parameters[name][1]) for name, value in placed.items())


def test_the_measure_of_heads() -> None:
    model = make()
    found = RLLC(TOKENS, QUICK, on="code", keep_tokens=True)(model)
    assert found["value"].dims == ("layer", "head") and found["loss"].dims == ("layer", "head", "chain", "draw")
    assert found["token_value"].dims == ("layer", "head", "example", "pos") and found.attrs["measure"] == "rllc_code"
    paired = (found["loss"] - found["initial_loss"]).mean(("chain", "draw")) * QUICK.nbeta
    assert np.allclose(found["value"], paired, atol=1e-5)
    loss = model(TOKENS, return_type="loss", loss_per_token=True).mean(1).detach()
    assert float(found["mean_loss"]) == pytest.approx(float(loss.mean()), abs=1e-5)
    assert float(found["mean_loss_stderr"]) == pytest.approx(float(loss.std() / 12**0.5), rel=1e-4)
    # Tokens were averaged over the draws that had them, so their mean is the value but for how often each sequence was drawn.
    assert np.allclose(found["token_value"].mean(("example", "pos")), found["value"], rtol=0.5, atol=0.05)
    one = RLLC(TOKENS, QUICK, heads=("L1H0",))(model)
    assert float(one["value"][1, 0]) == float(found["value"][1, 0])  # whoever else is asked for
    assert str(one["state"][0, 0].values) == "not asked" and np.isnan(one["value"][0, 0])
    assert RLLC(TOKENS, QUICK)(model).identical(RLLC(TOKENS, QUICK)(model))


def test_a_head_by_the_engine_and_by_the_whole_model_is_one_number() -> None:
    model = make(dtype="float64")
    heads, block = RLLC(TOKENS, QUICK)(model), LLC(TOKENS, QUICK, weights="L1H0")
    again = LLC(TOKENS, QUICK, weights="L1H0")(model)
    assert abs(float(heads["value"][1, 0]) - float(again["value"])) < 4 * np.hypot(heads["stderr"][1, 0], again["stderr"])
    assert block.name == "llc_text"


def test_gamma_may_follow_the_weights() -> None:
    model = make()
    rms = float(HeadLoss(Pool(model, TOKENS), Head(0, 0)).centre.square().mean().sqrt())
    found = RLLC(TOKENS, QUICK.changed(gamma_at_rms=2 * rms), heads=("L0H0",))(model)
    assert float(found["gamma"][0, 0]) == pytest.approx(800.0)


def test_public_functions() -> None:
    model = make()
    found = circuits.rllc(model, TOKENS, heads="L0H1", config=QUICK, seed=3)
    assert str(found["status"][0, 1].values) in ("ok", "few draws", "not mixed") and '"seed":3' in found.attrs["config"]
    whole = circuits.llc(model, TOKENS, weights=["L0H1", "unembed"], config=QUICK)
    assert whole["value"].dims == () and "unembed" in whole.attrs["config"]
    assert {"paper", "laptop", "laptop-whole"} == set(PRESETS)


class TestRuns:
    @pytest.fixture
    def run(self) -> Checkpoints:
        states = {step: make(seed=step).state_dict() for step in range(2)}
        return Checkpoints.from_states(states, make().cfg, name="small")

    def test_a_run_gets_a_step_axis(self, run: Checkpoints) -> None:
        found = circuits.rllc(run, TOKENS, config=QUICK)
        assert found["value"].dims == ("step", "layer", "head") and (found["status"].values == "ok").all()
        alone = circuits.rllc(run.at(1), TOKENS, config=QUICK)
        assert np.array_equal(found["value"].sel(step=1), alone["value"])

    def test_anything_that_counts_changes_the_name(self, run: Checkpoints, tmp_path: Path) -> None:
        def key(measure: Any, step: int = 0) -> str:
            return Task(measure, run, step, tmp_path).key

        reference = make(seed=7)
        known = RLLC(TOKENS, QUICK)
        others = [
            RLLC(TOKENS.flip(0), QUICK), RLLC(TOKENS, QUICK, heads=("L0H0",)), RLLC(TOKENS, QUICK, reference=reference),
            RLLC(TOKENS, QUICK, reference=make(seed=8)), RLLC(TOKENS, QUICK, on="code"), RLLC(TOKENS, QUICK, keep_tokens=True),
            LLC(TOKENS, QUICK), LLC(TOKENS, QUICK, weights="L0"),
            *[RLLC(TOKENS, QUICK.changed(**{name: value})) for name, value in {
                "epsilon": 1e-3, "gamma": 100.0, "nbeta": 10.0, "chains": 2, "draws": 13, "burn_in": 5, "thin": 2, "batch": 5,
                "seed": 1, "superchains": 4, "gradient_batch": 1, "gamma_at_rms": 0.1, "sampler": "sgld",
            }.items()],
        ]  # fmt: skip
        keys = [key(known), key(known, step=1), *map(key, others)]
        assert len(set(keys)) == len(keys)
        assert key(RLLC(TOKENS.clone(), QUICK, progress=True)) == key(known)  # and nothing else does

    def test_results_that_come_with_a_run(self, tmp_path: Path) -> None:
        """They are read where the store has none; not for other settings, not for other weights, and not when told not to."""
        states = {step: make(seed=step).state_dict() for step in range(2)}
        run = Checkpoints.from_dir(
            Checkpoints.from_states(states, make().cfg, name="s").export(tmp_path / "run", dtype="float32")
        )
        measure, store = RLLC(TOKENS, QUICK), tmp_path / "store"
        shipped = run.path / "results" if run.path else tmp_path
        for at in run.steps:
            assert run_task(Task(measure, run, at, shipped)).status == "ok"
        found = gather(measure, run, store)
        assert (found["status"].values == "ok").all() and not store.exists()
        with pytest.raises(ValueError, match="nothing was computed"):
            gather(RLLC(TOKENS, QUICK.changed(seed=1)), run, store)
        with pytest.raises(ValueError, match="nothing was computed"):
            gather(measure, run.without_results(), store)
        other = Checkpoints.from_states({5: make(seed=5).state_dict()}, make().cfg).export(tmp_path / "other", dtype="float32")
        (other / "results").symlink_to(shipped)
        with pytest.raises(ValueError, match="nothing was computed"):
            gather(measure, Checkpoints.from_dir(other), store)
        assert run_task(Task(measure, run.without_results(), 0, store)).status == "ok"
        anew, known = (next(folder.rglob(f"{Task(measure, run, 0, store).key}.nc")) for folder in (store, shipped))
        assert anew.read_bytes() == known.read_bytes()
        known_size = known.stat().st_size
        plain = [next(shipped.rglob(f"{Task(measure, run, at, store).key}.nc")) for at in run.steps]
        packed = [pack(file, file.parent) for file in plain]
        for file in plain:
            file.unlink()
        assert gather(measure, run, tmp_path / "empty").identical(found) and packed[0].stat().st_size < known_size
        packed[0].write_bytes(packed[0].read_bytes()[:-9])
        assert list(gather(measure, run, tmp_path / "empty")["status"].values) == ["missing", "ok"], (
            "cut short is as good as absent"
        )

    def test_evenly(self, run: Checkpoints) -> None:
        longer = Checkpoints.from_states({at: make().state_dict() for at in range(0, 50, 10)}, run.cfg)
        assert evenly(longer, 3) == [0, 20, 40] and evenly(longer, 9) == list(longer.steps) and evenly(longer, 1) == [0, 40]


class TestShippedRun:
    @pytest.fixture
    def run(self, checkout: Path) -> Checkpoints:
        return Checkpoints.from_dir(checkout / "fixtures/stdlib-2l")

    def test_the_mix_is_what_training_read(self, run: Checkpoints) -> None:
        mix = training_mix(run)
        assert mix is not None and mix.shape == (128, 128) and (mix[:, 0] == 0).all()
        assert torch.equal(mix, training_mix(run))  # type: ignore[arg-type]
        texts = texts_of(run)
        assert list(texts) == ["mix", "code", "prose", "shuffled_code"] and "brackets" in run.evaluation

    def test_a_text_has_a_name_that_is_a_word_and_no_other_part(self) -> None:
        kinds = ("code", "shuffled_code", "open-web text", "whole", "2024", "mix")
        words = ["code", "shuffled_code", "open_web_text", "text_whole", "text_2024", "text_mix"]
        assert [named(kind) for kind in kinds] == words

    def test_what_is_measured_where(self, run: Checkpoints) -> None:
        parts = coefficient_measures(run, reference=run)
        where = {measure.name: len(part) for pairs in parts.values() for measure, part in pairs}
        assert where == {
            "rllc_mix": 28, "rllc_code": 28, "rllc_prose": 28, "rllc_shuffled_code": 8, "rllc_mix_kl": 8, "llc_mix": 28,
            "nulls_mix": 28, "nulls_code": 8, "nulls_prose": 8, "nulls_shuffled_code": 8, "nulls_mix_kl": 8,
        }  # fmt: skip
        with pytest.raises(ValueError, match=r"'kl': the run that meta.json names as its reference, \.\./stdlib-1l, is not"):
            coefficient_measures(run, ["kl"])


class TestStability:
    """A quadratic loss of known curvature, its one sequence standing for all; then heads of a model."""

    @staticmethod
    def quadratic(*h: float) -> Quadratic:
        diagonal = torch.zeros(40, dtype=torch.float64)
        diagonal[: len(h)] = torch.tensor(h)
        loss = Quadratic(torch.diag(diagonal), torch.zeros(40, dtype=torch.float64))
        loss.centre = loss.centre + 1.0  # differences are as long as weights
        return loss

    def test_curvatures_from_inside(self) -> None:
        loss = self.quadratic(5.0, 1.0, -3.0)
        assert sharpness(loss, torch.zeros(1).long(), iterations=30) == pytest.approx((5.0, 5.0), rel=1e-3)
        assert smallest_curvature(loss, torch.zeros(1).long()) == pytest.approx(-3.0, rel=1e-3)
        assert smallest_curvature(self.quadratic(), torch.zeros(1).long()) == torch.inf

    @pytest.mark.parametrize("sampler", ["sgld", "exponential"])
    def test_settings_that_would_diverge_are_refused(self, sampler: str) -> None:
        config = sampler_config("paper", sampler=sampler, epsilon=1e-3)
        limit = config.limit(200.0) / config.nbeta
        refused = "epsilon = 0.001 is too large for L1H0: .* take a smaller epsilon"
        for h, message in ((1.05 * limit, refused), (-7.0, "gamma = 200 does not hold L1H0: .* take gamma above 210")):
            loss = self.quadratic(h)
            found = sharpness(loss, torch.zeros(1).long(), iterations=20)
            with pytest.raises(ValueError, match=message):
                check_stable("L1H0", loss, found, 200.0, config)
            check_stable("L1H0", loss, found, 200.0, config.changed(force=True))
            check_stable("L1H0", self.quadratic(0.9 * h), Sharpness(0.9 * found.curvature, 0.9 * found.reach), 200.0, config)
        assert SamplerConfig(epsilon=0.0).limit(1.0) == np.inf

    def test_one_sharp_sequence_is_not_the_text(self) -> None:
        """What is too sharp on the few sequences that are looked at first is looked at on many."""
        config = sampler_config("paper")
        limit = config.limit(200.0) / config.nbeta
        check_stable("L1H0", self.quadratic(0.9 * limit), Sharpness(10 * limit, 10 * limit), 200.0, config)

    def test_the_falling_direction_is_looked_for_where_there_can_be_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Power iteration finds the largest curvature of either sign; far below the localisation nothing can fall so steeply."""
        config = sampler_config("paper")
        looked: list[float] = []
        monkeypatch.setattr(stability, "smallest_curvature", lambda *_: looked.append(1.0) or 0.0)
        for share in (0.9, 1.1):
            reach = share * NEAR * 200.0 / config.nbeta
            check_stable("L1H0", self.quadratic(-reach), Sharpness(-reach, reach), 200.0, config)
        assert len(looked) == 1

    def test_all_heads_are_looked_at_before_any_is_sampled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = rllc_module.settle

        def sharp(loss: Any, config: SamplerConfig, name: str) -> Any:
            if name == "L1H1":
                raise ValueError("too sharp")
            return known(loss, config, name)

        monkeypatch.setattr(rllc_module, "settle", sharp)
        monkeypatch.setattr(rllc_module, "sample", lambda *_: pytest.fail("sampled"))
        with pytest.raises(ValueError, match="too sharp"):
            circuits.rllc(make(), TOKENS, config=QUICK)


SCRIPT = """
import sys
import torch
import circuits
from circuits import Checkpoints, HookedTransformer
from circuits.complexity.config import sampler_config
from circuits.complexity.rllc import RLLC

model = HookedTransformer(dict(n_layers=2, d_model=8, n_heads=2, d_head=4, n_ctx=12, d_vocab=11, attn_only=True))
run = Checkpoints.from_states({step: {k: w + step / 100 for k, w in model.state_dict().items()} for step in range(12)}, model.cfg)
tokens = torch.randint(11, (16, 10), generator=torch.Generator().manual_seed(0))
measure = RLLC(tokens, sampler_config("laptop", draws=8, burn_in=2), on="code")
if __name__ == "__main__":
    circuits.sweep(measure, run, store=sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.1, 0.6])
def test_killed_at_some_moment_it_resumes_to_the_same_bytes(tmp_path: Path, delay: float) -> None:
    (tmp_path / "run.py").write_text(SCRIPT)
    started = subprocess.Popen([sys.executable, str(tmp_path / "run.py"), str(tmp_path / "killed")])
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("killed/*/*.nc")) and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(delay)
    started.kill()
    started.wait()
    told: dict[str, Any] = {"__name__": "told"}
    exec(SCRIPT, told)
    run, measure = told["run"], told["measure"]
    done = gather(measure, run, tmp_path / "killed")["status"].values.tolist()
    assert 1 <= done.count("ok") < 12 and done.count("failed") == 0
    for place in ("killed", "whole"):
        circuits.sweep(measure, run, store=tmp_path / place)
    whole = sorted((tmp_path / "whole").rglob("*.nc"))
    assert len(whole) == 12
    for artefact in whole:
        assert artefact.read_bytes() == (tmp_path / "killed" / artefact.relative_to(tmp_path / "whole")).read_bytes()
