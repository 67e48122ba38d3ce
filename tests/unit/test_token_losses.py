"""Losses of single tokens, the same for every model, and the principal components of their histories."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.linalg import orthogonal_procrustes

from circuits.detectors import loss_pca as module
from circuits.detectors.in_context import loss_per_token
from circuits.detectors.loss_pca import bootstrap, components, explained_shares, loss_pca, walk_null
from circuits.detectors.token_losses import TokenLosses
from circuits.dynamics.sweep import measured
from circuits.models.checkpoints import Checkpoints
from circuits.models.hooked import HookedTransformer
from circuits.models.planted import uniform_model

CFG = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 16, "d_vocab": 20, "attn_only": True}
TEXT = {
    "code": torch.randint(0, 20, (5, 16), generator=torch.Generator().manual_seed(0)),
    "prose": torch.randint(0, 20, (3, 12), generator=torch.Generator().manual_seed(1)),
}
MEASURE = TokenLosses(TEXT, kept=3)


def losses_of(values: np.ndarray, *, examples: int | None = None, **attrs: str) -> xr.Dataset:
    """What ``gather`` gives of such losses ``[step, token]``, tokens dealt out over examples."""
    steps, tokens = values.shape
    example = np.arange(tokens) % (examples or tokens)
    coords = {"step": 10 * np.arange(steps), "token": np.arange(tokens), "corpus": ("token", ["code"] * tokens)}
    about = {"measure": "token_losses", "config": "{}", "data_hash": "d"} | attrs
    return xr.Dataset({"value": (("step", "token"), values)}, coords=coords | {"example": ("token", example)}, attrs=about)


def walks(seed: int, steps: int = 20, tokens: int = 300) -> np.ndarray:
    """Losses that wander, each by itself."""
    return np.random.default_rng(seed).standard_normal((steps, tokens)).cumsum(0)


def test_each_loss_is_the_one_at_its_place():
    model = HookedTransformer(CFG)
    found = MEASURE(model)
    assert found.sizes["token"] == 3 * 8
    for token in range(found.sizes["token"]):
        here = found.isel(token=token)
        tokens = TEXT[str(here.corpus.values)]
        example, pos = int(here.example), int(here.pos)
        assert 1 <= pos < tokens.shape[1] and int(here.id) == int(tokens[example, pos])
        assert float(here.value) == pytest.approx(float(loss_per_token(model, tokens)[example, pos - 1]), abs=1e-6)
    places = list(zip(found.corpus.values.tolist(), found.example.values.tolist(), found.pos.values.tolist(), strict=True))
    assert len(set(places)) == len(places) and sorted(set(found.example.values[:15])) == [0, 1, 2, 3, 4]


def test_the_tokens_are_the_same_for_all_models_and_others_for_another_seed():
    a, b = MEASURE(HookedTransformer(CFG)), MEASURE(HookedTransformer(CFG | {"n_layers": 2, "seed": 5}))
    assert a.pos.equals(b.pos) and not a.value.equals(b.value)
    other = TokenLosses(TEXT, kept=3, seed=1)
    assert not other(HookedTransformer(CFG)).pos.equals(a.pos) and other.spec() != MEASURE.spec()
    assert a.identical(MEASURE(HookedTransformer(CFG)))
    double = MEASURE(HookedTransformer(CFG).double()).value
    assert np.allclose(double, a.value, atol=1e-5)


def test_uniform_logits_cost_log_vocabulary():
    found = TokenLosses({"any": TEXT["code"]})(uniform_model(d_vocab=20, n_ctx=16))
    assert np.allclose(found.value, math.log(20)) and float(found.chance) == math.log(20)


def test_components_are_the_eigenvectors_of_the_covariance():
    values = walks(0, steps=7, tokens=40)
    found, explained = components(values, 3)
    centred = values - values.mean(0)
    variances, vectors = np.linalg.eigh(centred.T @ centred)
    literal = centred @ vectors[:, ::-1][:, :3] / math.sqrt(40)
    assert np.allclose(np.abs(found), np.abs(literal), atol=1e-10)
    assert np.allclose(explained, variances[::-1][:3] / variances.sum())
    assert np.allclose(explained, explained_shares(values, 3))
    assert (found[np.abs(found).argmax(0), range(3)] > 0).all()


@pytest.mark.science
def test_a_known_plane_is_found_with_its_error():
    """Two directions of known size and noise: coordinates within 4 errors, and errors that are those of new tokens."""
    time = np.linspace(0, 1, 15)
    curve = np.stack([3 * (1 - time), np.sin(np.pi * time)], axis=1)
    curve -= curve.mean(0)

    def drawn(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return curve @ rng.standard_normal((2, 1500)) + 0.3 * rng.standard_normal((15, 1500))

    found = loss_pca(losses_of(drawn(0)), draws=60)
    # In the plane the axes are those of the curve: what is compared is its shape, by the distances between snapshots.
    distances = np.linalg.norm(found.value.values[:, None] - found.value.values[None], axis=-1)
    true = np.linalg.norm(curve[:, None] - curve[None], axis=-1)
    assert np.allclose(distances, true, atol=4 * math.sqrt(2) * float(found.stderr.max()))
    assert float(found.explained.sum()) > 0.9
    others = np.array([components(drawn(seed), 2)[0] for seed in range(1, 40)])
    turned = np.array([x @ orthogonal_procrustes(x, found.value.values)[0] for x in others])
    assert np.median(found.stderr.values / turned.std(0, ddof=1)) == pytest.approx(1.0, abs=0.25)


@pytest.mark.science
def test_walks_are_no_more_than_walks_and_shared_motion_is():
    """The null holds its level: of 40 sets of independent walks at most 6 have p < .05 at the first component (P < 2%)."""
    made = [walks(seed, tokens=100) for seed in range(40)]
    null = [walk_null([values], 1, draws=59, seed=seed) for seed, values in enumerate(made)]
    p = np.array([(1 + (n >= explained_shares(values, 1)).sum()) / 60 for n, values in zip(null, made, strict=True)])
    assert (p <= 0.05).sum() <= 6
    lone = loss_pca(losses_of(walks(0)))
    assert float(lone.explained[0]) == pytest.approx(6 / np.pi**2, abs=0.05)  # a walk explains this much by itself
    shared = np.linspace(3, 0, 20)[:, None] * np.ones(300) + 0.1 * walks(1)
    together = loss_pca(losses_of(shared))
    assert float(together.explained_p[0]) == float(together.smallest_p) and float(together.explained_z[0]) > 5


def test_walks_take_the_runs_own_steps(monkeypatch: pytest.MonkeyPatch):
    values = [walks(0, steps=4, tokens=3), walks(1, steps=2, tokens=3)]
    kept: list[np.ndarray] = []
    monkeypatch.setattr(module, "explained_shares", lambda snapshots, n: kept.append(snapshots.copy()) or np.zeros(n))
    walk_null(values, 1, draws=20, seed=0)
    for made in kept:
        first, second = made[:4], made[4:]
        assert np.allclose(first[0], values[0][0]) and np.allclose(second[0], values[1][0])
        assert np.allclose(np.abs(np.diff(first, axis=0)), np.abs(np.diff(values[0], axis=0)))
        assert np.allclose(np.abs(np.diff(second, axis=0)), np.abs(np.diff(values[1], axis=0)))
    assert not np.allclose(kept[0], kept[1])


def test_tokens_of_one_example_are_drawn_together():
    """Three copies of every token tell nothing new: the error stays that of the single ones, where it knows of the copies."""
    values = walks(0, steps=6, tokens=60)
    copies = np.tile(values, (1, 3))
    found, _ = components(values, 2)
    alone, _ = bootstrap(values, np.arange(60), found, draws=200, seed=0)
    known, _ = bootstrap(copies, np.arange(180) % 60, found, draws=200, seed=0)
    unknown, _ = bootstrap(copies, np.arange(180), found, draws=200, seed=0)
    assert np.median(known / alone) == pytest.approx(1.0, abs=0.15)
    assert np.median(unknown / alone) == pytest.approx(1 / math.sqrt(3), abs=0.15)


def test_a_run_and_several_runs_together():
    states = {step: HookedTransformer(CFG | {"seed": seed}).state_dict() for step, seed in ((0, 0), (10, 1), (20, 2), (40, 3))}
    run, short = Checkpoints.from_states(states, CFG), Checkpoints.from_states({0: states[10], 30: states[40]}, CFG)
    losses = {"long": measured(MEASURE, run), "short": measured(MEASURE, short)}
    alone = loss_pca(losses["long"], draws=20)
    assert dict(alone.sizes) == {"step": 4, "component": 2} and alone.identical(loss_pca(losses["long"], draws=20))
    both = loss_pca(losses, draws=20)
    assert both.value.dims == ("run", "step", "component") and both.step.values.tolist() == [0, 10, 20, 30, 40]
    assert both.n_snapshots == 6 and both.n_examples == 8
    assert both.value.notnull().all("component").values.tolist() == [
        [True] * 3 + [False, True],
        [True, False, False, True, False],
    ]
    # The same weights lie at the same place, whichever run they are of.
    assert np.allclose(both.value.sel(run="long", step=10), both.value.sel(run="short", step=0))


def test_a_checkpoint_without_losses_is_left_out_and_shown_as_missing():
    values = walks(0)
    values[3] = np.nan
    found = loss_pca(losses_of(values), draws=20)
    assert found.n_snapshots == 19 and found.value.isnull().all("component").values.nonzero()[0].tolist() == [3]
    without = loss_pca(losses_of(np.delete(values, 3, axis=0)), draws=20)
    assert np.allclose(found.value.dropna("step"), without.value)


WRONG = {
    "a model": (lambda: loss_pca(uniform_model()), TypeError, "got a HookedTransformer; pass what gather"),
    "a list": (lambda: loss_pca({"a": [1, 2]}), TypeError, "got a list of 'a'; pass what gather"),
    "no run": (lambda: loss_pca({}), ValueError, "no run was given"),
    "one checkpoint": (lambda: loss_pca(MEASURE(HookedTransformer(CFG))), ValueError, r"dims \('token',\); pass what gather"),
    "other tokens": (
        lambda: loss_pca({"a": losses_of(walks(0)), "b": losses_of(walks(1), data_hash="e")}),
        ValueError,
        "losses of 'b' are of other tokens than those of 'a'",
    ),
    "few snapshots": (
        lambda: loss_pca(losses_of(walks(0)[:2])),
        ValueError,
        "2 snapshots have losses, 2 components need at least 3",
    ),
    "few tokens": (lambda: loss_pca(losses_of(walks(0, tokens=2)), n_components=3), ValueError, "2 tokens for 3 components"),
    "one example": (lambda: loss_pca(losses_of(walks(0), examples=1)), ValueError, "of one example"),
    "no motion": (lambda: loss_pca(losses_of(np.ones((4, 9)))), ValueError, "the same at all snapshots"),
    "few draws": (lambda: loss_pca(losses_of(walks(0)), draws=3), ValueError, "draws=3: need a whole number of at least 20"),
    "no tokens": (lambda: TokenLosses({}), ValueError, "no tokens were given; pass"),
    "a tensor": (lambda: TokenLosses(TEXT["code"]), ValueError, "no tokens were given; pass"),  # type: ignore[arg-type]
    "more than there are": (
        lambda: TokenLosses(TEXT, kept=12),
        ValueError,
        "sequences have 12 tokens, 12 losses of each example of 'prose' needs at least 13",
    ),
    "foreign tokens": (
        lambda: TokenLosses({"a": TEXT["code"] + 9})(HookedTransformer(CFG)),
        ValueError,
        "the vocabulary is 0..19",
    ),
    "kept in words": (lambda: TokenLosses(TEXT, kept="all"), ValueError, "kept='all': need a whole number"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.usefixtures("unchecked")
def test_a_wrong_call_gets_one_sentence(case: str):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
