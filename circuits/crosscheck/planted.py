"""Evidence whose circuit is known by construction: results shaped as those of a run, random but for what is planted.

    circuit     a previous-token head and an induction head after it: K-composition ``COMPOSED`` null sd above chance, a key edge
                worth ``WORTH`` nats, copying and K-term far out, and both curves rise by ``RISE`` about ``FORMED``, where their
                roles emerge
    otherwise   z of weights are standard normal, edges normal with their errors, and curves walk at random: steps between
                checkpoints are normal, independent, of one size for all heads
    no circuit  all of it is otherwise, and every head has a role drawn from all roles, which emerges at a random checkpoint

p of weights are those of their z, no smaller than with ``ORIENTATIONS`` draws.

Source: the shapes are those of ``fixtures/stdlib-2l``; numbers near it, rounded.
"""

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from circuits.detectors.roles import NONE, ROLES
from circuits.models.heads import Head
from circuits.weights.composition import false_discovery
from circuits.weights.interfaces import MODES

if TYPE_CHECKING:
    import xarray as xr

STEPS = (
    0,
    16,
    64,
    128,
    256,
    512,
    1024,
    1250,
    1500,
    1750,
    1875,
    2000,
    2125,
    2250,
    2500,
    2750,
    3000,
    3500,
    4000,
    6000,
    8000,
    10000,
)
LAYERS, HEADS = 2, 8
PREVIOUS_HEAD, INDUCTION_HEAD = Head(0, 6), Head(1, 0)
FORMED = 2000
COMPOSED, FAR, WORTH, RISE = 60.0, 9.0, 7.0, 3.5
WALK, STDERR = 0.03, 0.03
ORIENTATIONS, RANDOM_HEADS, EXAMPLES = 10_000, 199, 8
PAIR = ("src_layer", "src_head", "dst_layer", "dst_head")


def planted_evidence(seed: int = 0, *, circuit: bool = True, delay: float = 1.0) -> "dict[str, xr.Dataset]":
    """Results of a run of two layers of eight heads, by the names of their measures.

    Args:
        seed: of all that is drawn. circuit: whether there is an induction circuit. delay: curves of its heads rise at so many
            times the step at which their roles emerge.
    """
    rng = np.random.default_rng(seed)
    found = {"head_functions": _roles(rng, circuit), "rllc_mix": _curves(rng, circuit, delay)}
    return found | _weights(rng, circuit) | {"edge_effects_repeats": _edges(rng, circuit)}


def _roles(rng: np.random.Generator, circuit: bool) -> "xr.Dataset":
    import xarray as xr

    shape = (len(STEPS), LAYERS, HEADS)
    role = np.full(shape, NONE, dtype=object)
    others = ("current token", "multigram", "resting", "duplicate token", NONE)
    for at in np.ndindex(shape[1:]):
        role[rng.integers(2, len(STEPS)) :, *at] = rng.choice(others if circuit else (*ROLES, NONE))
    if circuit:
        for head, name in ((PREVIOUS_HEAD, "previous token"), (INDUCTION_HEAD, "induction")):
            role[:, head.layer, head.head] = np.where(np.array(STEPS) >= FORMED, name, NONE)
    dims = ("step", "layer", "head")
    return xr.Dataset(
        {"role": (dims, role.astype("U")), "confidence": (dims, np.ones(shape))},
        coords={"step": list(STEPS), "layer": np.arange(LAYERS), "head": np.arange(HEADS)},
    )


def _curves(rng: np.random.Generator, circuit: bool, delay: float) -> "xr.Dataset":
    import xarray as xr

    dims, shape = ("step", "layer", "head"), (len(STEPS), LAYERS, HEADS)
    value = rng.uniform(0.5, 2.0, shape[1:]) + np.cumsum(WALK * rng.standard_normal(shape), 0)
    if circuit:
        # In log time, over about half a doubling.
        late = np.log2(np.array(STEPS) + 1) - np.log2(FORMED * delay)
        for head in (PREVIOUS_HEAD, INDUCTION_HEAD):
            value[:, head.layer, head.head] += RISE / (1 + np.exp(-12 * late))
    value += STDERR * rng.standard_normal(shape)
    return xr.Dataset(
        {"value": (dims, value), "stderr": (dims, np.full(shape, STDERR)), "state": (dims, np.full(shape, "ok"))},
        coords={"step": list(STEPS), "layer": np.arange(LAYERS), "head": np.arange(HEADS)},
    )


def _weights(rng: np.random.Generator, circuit: bool) -> "dict[str, xr.Dataset]":
    import xarray as xr
    from scipy.stats import norm

    at, to = PREVIOUS_HEAD, INDUCTION_HEAD
    coords = {dim: np.arange(LAYERS if dim.endswith("layer") else HEADS) for dim in PAIR}
    z = np.full((len(MODES), LAYERS, HEADS, LAYERS, HEADS), np.nan)
    z[:, 0, :, 1] = rng.standard_normal((len(MODES), HEADS, HEADS))
    term = np.full(z.shape[1:], np.nan)
    term[0, :, 1] = rng.standard_normal((HEADS, HEADS))
    copying = rng.standard_normal((LAYERS, HEADS))
    if circuit:
        z[MODES.index("K"), at.layer, at.head, to.layer, to.head] = COMPOSED
        term[at.layer, at.head, to.layer, to.head] = copying[to.layer, to.head] = FAR
    p = np.maximum(norm.sf(z), 1 / (1 + ORIENTATIONS))
    dims = ("mode", *PAIR)
    scores = {"value": 0.09 + 0.002 * z, "stderr": z * np.nan, "z": z, "p": p, "q": false_discovery(p)}
    return {
        "composition": xr.Dataset(
            {name: (dims, values) for name, values in scores.items()} | {"q_covariance": (dims, false_discovery(p))},
            coords={"mode": list(MODES), **coords},
            attrs={"smallest_p": 1 / (1 + ORIENTATIONS)},
        ).expand_dims(step=[STEPS[-1]]),
        "k_term_copying": xr.Dataset(
            {name: (PAIR, values) for name, values in _beside(term).items()}, coords=coords, attrs=_smallest()
        ).expand_dims(step=[STEPS[-1]]),
        "weight_spectra": xr.Dataset(
            {name: (("layer", "head", "statistic"), values[..., None]) for name, values in _beside(copying).items()},
            coords={"layer": np.arange(LAYERS), "head": np.arange(HEADS), "statistic": ["ov_copying"]},
            attrs=_smallest(),
        ).expand_dims(step=[STEPS[-1]]),
    }


def _beside(z: np.ndarray) -> dict[str, np.ndarray]:
    """A statistic of so many sd of random heads."""
    from scipy.stats import norm

    return {"value": 0.07 * z, "z": z, "p": np.maximum(2 * norm.sf(np.abs(z)), 2 / (1 + RANDOM_HEADS))}


def _smallest() -> dict[str, float]:
    return {"smallest_p": 2 / (1 + RANDOM_HEADS)}


def _edges(rng: np.random.Generator, circuit: bool) -> "xr.Dataset":
    import xarray as xr

    names = [f"{src} -> {Head(1, head)}.{channel}" for channel in "qkv" for head in range(HEADS) for src in _sources()]
    stderr = rng.uniform(0.002, 0.02, len(names))
    value = stderr * rng.standard_t(EXAMPLES - 1, len(names))
    if circuit:
        planted = names.index(f"{PREVIOUS_HEAD} -> {INDUCTION_HEAD}.k")
        value[planted], stderr[planted] = WORTH, WORTH / 30
    return xr.Dataset(
        {"value": ("edge", value), "stderr": ("edge", stderr)}, coords={"edge": names}, attrs={"n_examples": EXAMPLES}
    ).expand_dims(step=[STEPS[-1]])


def _sources() -> list[str]:
    return ["embed", *(str(Head(*at)) for at in product(range(1), range(HEADS)))]
