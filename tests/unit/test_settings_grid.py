"""Coefficients under several settings: what settings are, what a tiny model gives, and where they are found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuits import Checkpoints, HookedTransformer, SamplerConfig
from circuits.complexity import grid as grid_module
from circuits.complexity.grid import BY_NORM, CELLS, GRID, REFUSED, SettingsGrid, for_weights
from circuits.complexity.ground_truth import Quadratic
from circuits.crosscheck.claims_llc_statistics import kendall
from circuits.crosscheck.evidence import evidence_of
from circuits.dynamics.coefficients import FEW, coefficient_measures, coefficients, grid_measures
from circuits.files import write_json
from circuits.models.checkpoints import save_weights, step_file

CFG: dict[str, Any] = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 16, "d_vocab": 24, "attn_only": True}
TOKENS = torch.from_numpy(np.random.default_rng(0).integers(1, 24, (16, 16)))
SMALL = SamplerConfig(chains=2, draws=8, batch=4)


def make() -> HookedTransformer:
    return HookedTransformer({**CFG, "initializer_range": 0.3, "seed": 0}).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    path = tmp_path_factory.mktemp("runs") / "mine"
    write_json(path / "config.json", make().cfg.model_dump(mode="json"))
    write_json(path / "meta.json", {"name": "mine", "seed": 7})
    save_weights(path / "evaluation.safetensors", {"code": TOKENS.to(torch.int32)})
    for step in (0, 5):
        save_weights(step_file(path, step), {name: w * (1 + step) for name, w in make().state_dict().items()}, step=step)
    return Checkpoints.from_dir(path)


def test_cells_are_around_the_base() -> None:
    base = CELLS["base"]
    assert len(CELLS) == 9 and (base.gamma, base.nbeta) == (200.0, 30.0)
    assert {(one.gamma / base.gamma, round(one.nbeta / base.nbeta, 6)) for one in CELLS.values()} == {
        (f, round(g, 6)) for f in (0.25, 1, 4) for g in (1 / 3, 1, 3)
    }
    assert CELLS["gamma / 4, nbeta * 3"].gamma == 50 and CELLS["gamma / 4, nbeta * 3"].nbeta == 90
    assert all(one.epsilon * one.gamma == pytest.approx(1.4) for one in CELLS.values())
    assert {one.sampler for one in GRID.values()} == {"exponential", "sgld", "rmsprop_sgld"}
    assert (GRID["sgld"].gamma, GRID["sgld"].nbeta, GRID["sgld"].epsilon) == (200, 30, 1e-3)


def test_gamma_by_norm_keeps_epsilon_gamma() -> None:
    """Weights of 0.3, three times 0.1: a ninth of the gamma, nine times the epsilon."""
    (given,) = BY_NORM.values()
    found = for_weights(given, 0.3)
    assert found.gamma == pytest.approx(200 / 9) and found.epsilon == pytest.approx(7e-3 * 9)
    assert for_weights(CELLS["base"], 0.3) is CELLS["base"]


def test_a_tiny_model_and_a_setting_that_would_diverge() -> None:
    model = make()
    found = SettingsGrid(TOKENS, {"base": SMALL, "wild": SMALL.changed(nbeta=1e9), "again": SMALL})(model)
    assert found["value"].dims == ("setting", "layer", "head") and found["value"].shape == (3, 2, 2)
    assert np.isfinite(found["value"].sel(setting="base")).all() and (found["gamma"].sel(setting="base") == 200).all()
    wild = found.sel(setting="wild")
    assert wild["value"].isnull().all() and (wild["state"] == REFUSED).all()
    assert not np.isin(found["state"].sel(setting=["base", "again"]), REFUSED).any()
    assert (found["value"].sel(setting="base") != found["value"].sel(setting="again")).all(), "randomness of its own"
    assert "draw" not in found.dims and found.identical(
        SettingsGrid(TOKENS, {"base": SMALL, "wild": SMALL.changed(nbeta=1e9), "again": SMALL})(model)
    )


def test_a_head_that_is_refused_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    real = grid_module.check_stable
    calls = iter([True, False, False, False])

    def refuses(*given: Any) -> None:
        if next(calls):
            raise ValueError("too large")
        real(*given)

    monkeypatch.setattr(grid_module, "check_stable", refuses)
    found = SettingsGrid(TOKENS, {"base": SMALL})(make())
    assert (found["state"].values.ravel() == REFUSED).tolist() == [True, False, False, False]
    assert np.isfinite(found["value"].values.ravel()).tolist() == [False, True, True, True]


@pytest.mark.slow
def test_a_planted_order_is_found_under_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quadratic losses whose curvatures rise from head to head by a half each: tau is 1 between any two settings, and with the
    closed form; curvatures that are all alike have no order to agree on."""
    monkeypatch.setattr(grid_module, "check_text", lambda *given: None)
    curved = np.array([0.3, 0.45, 0.675, 1.0])

    def losses(h: np.ndarray) -> Any:
        def loss(head: Any) -> Quadratic:
            return Quadratic(torch.eye(30, dtype=torch.float64) * float(h[2 * head.layer + head.head]), torch.zeros(30).double())

        return lambda *given: loss

    settings = {name: one.changed(chains=8, draws=100) for name, one in CELLS.items()}
    monkeypatch.setattr(grid_module, "head_losses", losses(curved))
    found = SettingsGrid(TOKENS, settings)(make())
    values = found["value"].values.reshape(len(settings), -1)
    assert (found["state"] == "ok").all() and kendall(values, np.roll(values, 1, axis=0)).min() == 1
    for numbers, one in zip(values, settings.values(), strict=True):
        form = 15 * one.nbeta * curved / (one.nbeta * curved + one.gamma)
        assert kendall(numbers, form) == 1 and 0.95 < numbers.sum() / form.sum() < 2.5
    monkeypatch.setattr(grid_module, "head_losses", losses(np.ones(4)))
    alike = SettingsGrid(TOKENS, CELLS)(make())["value"].values.reshape(len(CELLS), -1)
    assert kendall(alike, np.roll(alike, 1, axis=0)).min() < 0.8


def test_the_spec_is_what_numbers_depend_on() -> None:
    one, other = SettingsGrid(TOKENS, {"a": SMALL}), SettingsGrid(TOKENS, {"a": SMALL.changed(gamma=100.0)})
    assert one.spec() != other.spec() != SettingsGrid(TOKENS, {"b": SMALL.changed(gamma=100.0)}).spec()
    assert one.spec() != SettingsGrid(TOKENS + 1 - 1 * (TOKENS > 1).long(), {"a": SMALL}).spec()
    assert one.spec() == SettingsGrid(TOKENS.clone(), {"a": SMALL}, called="other").spec()
    assert (one.name, SettingsGrid(TOKENS, on="mix", called="by_norm").name) == ("rllc_text_grid", "rllc_mix_by_norm")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tokens": [[1, 2]]}, "tokens are a list"),
        ({"settings": {}}, "give some by name"),
        ({"settings": {"a": "no such"}}, "no sampler settings 'no such'"),
        ({"called": "by norm"}, "called='by norm'"),
        ({"on": "a b"}, "on='a b'"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        SettingsGrid(**{"tokens": TOKENS, **given})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="sequences"):
        SettingsGrid(TOKENS[:3], {"a": SMALL})(make())


@pytest.mark.slow
def test_it_is_a_part_that_is_made_where_it_is_asked_for(
    run: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "grid" not in coefficient_measures(run)
    ((grid, last), (normed, few)) = coefficient_measures(run, "grid")["grid"]
    assert (grid.name, normed.name) == ("rllc_code_grid", "rllc_code_by_norm")
    assert list(last.steps) == [5] and list(few.steps) == [0, 5] and len(few) <= FEW
    assert grid_measures(Checkpoints.from_states({0: make().state_dict()}, make().cfg)) == []
    quick = {"base": SMALL}
    monkeypatch.setattr(
        "circuits.dynamics.coefficients.SettingsGrid", lambda tokens, *given, **named: SettingsGrid(tokens, quick, **named)
    )
    store = tmp_path / "store"
    assert "--what grid" in evidence_of(run, store).absent["rllc_code_grid"]
    found = coefficients(run, "grid", store=store)
    assert set(found.results) == {"rllc_code_grid", "rllc_code_by_norm"} and found.not_ok()[1] == 4 + 8
    gathered = evidence_of(run, store, compute=False).results["rllc_code_grid"]
    assert gathered["step"].values.tolist() == [5] and gathered["setting"].values.tolist() == ["base"]
