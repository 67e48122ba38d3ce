"""Evidence of which claims C5 to C20 are true by construction, or any of them false: results shaped as those of a run.

    heads         8 of layer 0: 2 previous token, 2 current token, 4 multigram; 8 of layer 1: 2 induction, 1 current token, 5
                  multigram; in an order drawn from the seed
    events        bigrams at 400, positions by 800, previous token by 1,600, induction and in-context learning by 2,600
    whole         the whole model's coefficient rises, but for a dip of 0.7% from 1,200 to 2,000
    K             in baselines: previous token -> induction 2.3, -> others of layer 1 0.5; multigram -> multigram 0.3 at 1,600,
                  0.9 later
    coefficients  equal at the start but for errors with Q = n - 1; each role has a curve of its own; at T those of multigram
                  heads are 8 + count / 400, and others have larger counts but lower coefficients; simpler measures are random
    texts         on code the ratios of the two induction heads are 1.5 and 1.9, of others 1, all but for 0.01; on shuffled
                  code all are 1
    one layer     against the one-layer run multigram heads peak at 1,200 in layer 0 and at 4,000 in layer 1
    settings      scale coefficients, and leave their order

``wrong`` names claims for which the opposite is planted. Others read coefficients at T too, which are wrong for C10, C12, C13
and C18; C20 is wrong where C8, C12 or C14 are.

Source: shapes are those of ``circuits.crosscheck.evidence`` of ``fixtures/stdlib-2l``; numbers near those of Wang et al. 2024.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from circuits.complexity.grid import BY_NORM, GRID
from circuits.crosscheck.claims_llc_curves import RIVALS
from circuits.crosscheck.evidence import Evidence
from circuits.detectors.roles import ROLES

if TYPE_CHECKING:
    import xarray as xr

STEPS = (0, 100, 200, 400, 600, 800, 1000, 1200, 1600, 2000, 2400, 2600, 3000, 4000, 6000, 8000)
FEW = (0, 400, 800, 1200, 1600, 2600, 4000, 8000)
END = (8000,)
WHOLE = (100, 108, 114, 120, 126, 132, 136, 140, 139.5, 139, 145, 152, 160, 161, 162, 163)
HEADS = (
    ("previous token",) * 2 + ("current token",) * 2 + ("multigram",) * 4,
    ("induction",) * 2 + ("current token",) + ("multigram",) * 5,
)
SHAPES = {"previous token": 0.6, "current token": 0.68, "induction": 0.9, "multigram": 0.78}
"""Share of log time by which the curves of a role have risen."""
LEVELS = {"previous token": 2.0, "current token": 3.0, "induction": 1.0}
ERROR = 0.005
DIMS = 128


def planted_run(seed: int = 0, *, wrong: Collection[str] = (), without: Collection[str] = (), name: str = "planted") -> Evidence:
    """Evidence by the description at the top of this module.

    Args:
        seed: of the order of heads and of all that is random. wrong: names of claims to be false. without: results to leave out.
        name: of the run.
    """
    rng = np.random.default_rng([seed, 31])
    words = np.array([rng.permutation(row) for row in HEADS])
    results = _development(words, wrong) | _coefficients(words, wrong, rng) | {"composition": _composition(words, wrong)}
    absent = dict.fromkeys(without, "it was left out")
    return Evidence(f"{name}-{seed}", seed, {name: data for name, data in results.items() if name not in without}, absent)


def rise(steps: Collection[int], at: float, sharpness: float = 12.0) -> np.ndarray:
    """From 0 to 1, half of it at a step: logistic in the logarithm of time."""
    return 1 / (1 + ((at + 1) / (np.array(list(steps)) + 1)) ** sharpness)


def _development(words: np.ndarray, wrong: Collection[str]) -> "dict[str, xr.Dataset]":
    """Roles, scores, losses and the whole model's coefficient."""
    steps = np.array(STEPS)
    induction = 900.0 if "C5" in wrong else 2500.0
    scores = np.full((len(STEPS), *words.shape, 2), 0.01)
    scores[:, words == "previous token", 0] += 0.5 * rise(STEPS, 1400.0)[:, None]
    scores[:, words == "induction", 1] += 0.5 * rise(STEPS, induction)[:, None]
    helped = rise(STEPS, 1000.0 if "C6" in wrong else 2500.0)
    whole = 100 * (1 + steps) ** 0.1 if "C7" in wrong else np.array(WHOLE)
    holds = np.stack([words == role for role in ROLES], -1).astype(np.int64)
    to_bigrams = np.abs(np.log((steps + 1) / 401)) + 4
    positions = np.where(steps > 600, 0.3, 0.01)
    return {
        "head_functions": _data(
            END,
            {"role": (words[None], _LH), "holds": (holds[None], (*_LH, "role_name"))},
            role_name=list(ROLES),
        ),
        "attention_scores": _data(
            STEPS, {"value": (scores, (*_LH, "detector"))}, detector=["previous_token", "induction"], layer=[0, 1]
        ),
        "predictor_loss": _data(
            STEPS,
            {"value": (np.stack([to_bigrams, to_bigrams], -1)[:, None], ("corpus", "order"))},
            corpus=["code"],
            order=[1, 2],
        ),
        "position_ablation": _data(
            STEPS,
            {"value": (np.stack([positions, positions / 2], -1)[:, None], ("corpus", "kind"))},
            corpus=["code"],
            kind=["zero", "mean"],
        ),
        "loss_curves": _data(STEPS, {"in_context_learning_score": (-helped[:, None], ("corpus",))}, corpus=["code"]),
        "repeat_loss": _data(STEPS, {"value": (6 * helped, ())}),
        "llc_mix": _data(STEPS, {"value": (whole, ()), "stderr": (np.full(len(STEPS), 0.01), ())}),
        "nested_brackets": _data(
            END,
            {"contrast": (np.full((1, 1), 0.2), ("cut",)), "contrast_stderr": (np.full((1, 1), 0.05), ("cut",))},
            cut=["composition"],
        ),
        "interaction_nested": _interaction(0.05, 0.01),
        "interaction_flat": _interaction(0.05 if "C17" in wrong else 0.0, 0.005),
    }


def _coefficients(words: np.ndarray, wrong: Collection[str], rng: np.random.Generator) -> "dict[str, xr.Dataset]":
    """Refined coefficients on every text, counts and simpler measures."""
    memory = words == "multigram"
    count = 40.0 * rng.integers(10, 14, words.shape)
    count[memory] = 40.0 * (1 + rng.permutation(int(memory.sum())))
    last = np.select([words == role for role in LEVELS], list(LEVELS.values()), 8 + count / 400)
    last = last + np.where(memory, 0.0, rng.uniform(0, 0.3, words.shape))
    simpler = {kind: rng.uniform(1, 5, words.shape) for kind in RIVALS}
    if "C18" in wrong:
        last[memory] = 8 + rng.uniform(0, 1, int(memory.sum()))
    if "C13" in wrong:
        last[memory] = 9 - count[memory] / 400
    if "C12" in wrong:
        last[words == "induction"] = 30.0
    if "C10" in wrong:
        last = rng.uniform(1, 10, words.shape)
    time = np.log1p(STEPS) / np.log1p(STEPS[-1])
    drawn = np.array(list(SHAPES.values()))[rng.integers(0, len(SHAPES), words.shape)]
    middle = drawn if "C11" in wrong else np.select([words == role for role in SHAPES], list(SHAPES.values()))
    start = rng.standard_normal(words.shape)
    start = 0.1 + ERROR * (start - start.mean(1, keepdims=True)) / start.std(1, ddof=1, keepdims=True)
    shape = 1 / (1 + np.exp(-(time[:, None, None] - middle) / 0.02))
    shape = (shape - shape[:1]) / (shape[-1:] - shape[:1])
    curves = start + shape * (last - start)
    wander = np.cumsum(rng.standard_normal((len(RIVALS), len(STEPS), *words.shape)), axis=1)
    nulls = np.stack([*(wander[i] - wander[i][-1:] + simpler[kind] for i, kind in enumerate(RIVALS)), 0.9 * curves], 1)
    found = {
        "rllc_mix": _rllc(STEPS, curves),
        "nulls_mix": _data(
            STEPS,
            {"value": (nulls, ("kind", *_LH)), "stderr": (np.full(nulls.shape, 1e-3), ("kind", *_LH))},
            kind=[*RIVALS, "local_estimate"],
        ),
        "multigrams": _data(END, {"value": (count[None], _LH)}),
    }
    prose = np.where(words == "induction", 2.0, 5.0)
    on_code = np.ones(words.shape)
    on_code[words == "induction"] = (1.5, 1.9)
    if "C14" in wrong:
        on_code = np.where(memory, 2.5, 1.2)
    on_code = on_code + 0.01 * rng.uniform(-1, 1, words.shape)
    shuffled = on_code if "C15" in wrong else np.ones(words.shape)
    found |= {
        f"rllc_{text}": _rllc(END, (prose * ratio)[None])
        for text, ratio in (("prose", np.ones(words.shape)), ("code", on_code), ("shuffled_code", shuffled))
    }
    peaks = np.array([8000 if "C16" in wrong else 1200, 4000])
    distance = np.abs(np.log((np.array(FEW)[:, None] + 1) / (peaks + 1)))
    found["rllc_mix_kl"] = _rllc(FEW, np.broadcast_to((3 - distance / 3)[..., None], (len(FEW), *words.shape)))
    grid = np.linspace(0.5, 2.0, len(GRID))[:, None, None] * last
    if "C19" in wrong:
        grid[list(GRID).index("gamma / 4")] *= -1
    found["rllc_mix_grid"] = _rllc(END, grid[None], "setting", setting=list(GRID))
    normed = 0.3 * curves[[STEPS.index(step) for step in FEW]][:, None]
    found["rllc_mix_by_norm"] = _rllc(FEW, normed, "setting", setting=list(BY_NORM))
    return found


def _composition(words: np.ndarray, wrong: Collection[str]) -> "xr.Dataset":
    """K-composition of all pairs, in baselines as described, over the baseline's value."""
    steps, (early, late) = np.array(STEPS), words
    table = np.ones((len(STEPS), len(early), len(late)))
    grown = rise(STEPS, 2500.0)[:, None]
    previous, induction = early == "previous token", late == "induction"
    table[:, np.ix_(previous, induction)[0], np.ix_(previous, induction)[1]] += 1.3 * grown[..., None]
    others = 1.0 if "C8" in wrong else 0.5
    table[np.ix_(np.arange(len(STEPS)), previous, ~induction)] = others
    dip = np.full(len(STEPS), 0.9) if "C9" in wrong else 0.3 + 0.2 * np.abs(np.log((steps + 1) / 1601)).clip(0, 3)
    table[np.ix_(np.arange(len(STEPS)), early == "multigram", late == "multigram")] = np.where(steps > 2600, 0.9, dip)[
        :, None, None
    ]
    value = np.full((len(STEPS), 1, 2, len(early), 2, len(late)), np.nan)
    value[:, 0, 0, :, 1] = table / np.sqrt(DIMS)
    dims = ("mode", "src_layer", "src_head", "dst_layer", "dst_head")
    places = {"src_layer": [0, 1], "dst_layer": [0, 1], "src_head": range(len(early)), "dst_head": range(len(late))}
    found = _data(STEPS, {"value": (value, dims)}, mode=["K"], **{dim: list(at) for dim, at in places.items()})
    return found.assign_attrs(dims=DIMS)


_LH = ("layer", "head")


def _data(
    steps: Collection[int], variables: dict[str, tuple[np.ndarray, tuple[str, ...]]], **coords: list[int] | list[str]
) -> "xr.Dataset":
    import xarray as xr

    data = xr.Dataset({name: (("step", *dims), values) for name, (values, dims) in variables.items()}, {"step": list(steps)})
    places = {dim: list(range(data.sizes[dim])) for dim in _LH if dim in data.sizes}
    return data.assign_coords(places | coords)


def _rllc(steps: Collection[int], value: np.ndarray, *before: str, **coords: list[str]) -> "xr.Dataset":
    dims = (*before, *_LH)
    state = np.full(value.shape, "ok")
    return _data(steps, {"value": (value, dims), "stderr": (np.full(value.shape, ERROR), dims), "state": (state, dims)}, **coords)


def _interaction(value: float, stderr: float) -> "xr.Dataset":
    numbers = {"value": value, "stderr": stderr, "low": value - 1.96 * stderr, "high": value + 1.96 * stderr}
    return _data(END, {name: (np.array([number]), ()) for name, number in numbers.items()})
