"""Along which few directions do the losses of many tokens move as training goes on, and do they turn?

Rows are snapshots (checkpoints of one run or several), columns tokens (``TokenLosses``). Columns are centred on their mean over
all snapshots; component ``c`` is the ``c``-th right singular vector, and a snapshot's coordinate is its product with that,
divided by the root of the number of tokens: nats, as a root mean square over tokens. Snapshots count alike, wherever in training
they lie. Signs: the snapshot that lies farthest out along a component has a positive coordinate.

Errors: tokens are drawn anew by example (tokens of one example are not independent), components fitted again, and coordinates
turned back onto the first fit by the best orthogonal map (Procrustes): left is the error of the curve's shape in its plane.

The null: a curve of few dimensions that turns is also what chance draws. Principal components of a random walk in many dimensions
explain 61% and 15% whatever it walks in, and its second coordinate goes out and comes back (Antognini & Sohl-Dickstein 2018). So
each step of each token between neighbouring snapshots gets a random sign: walks with the same step lengths, in which no two
tokens move together. The null answers "do tokens move together, beyond each walking by itself?"; after a first component that is
larger than the walks', later ones have less left to explain. It does not say that a turn in the plane is a transition: lay
change-points of the loss and of scores beside it for that.

Source: Olsson et al. 2022, "Per-token loss analysis" (PCA over all snapshots of all models); errors and null ours.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from circuits.results import canonical, check_whole

if TYPE_CHECKING:
    import xarray as xr


def loss_pca(
    losses: "xr.Dataset | Mapping[str, xr.Dataset]", *, n_components: int = 2, draws: int = 200, seed: int = 0
) -> "xr.Dataset":
    """Principal components of per-token losses over the snapshots of one run, or of several together.

    Args:
        losses: what ``sweep`` and ``gather`` of ``TokenLosses`` give for a run, or ``{name: that}`` for runs on the same tokens.
        n_components: how many. draws: of the bootstrap, and of the null. seed: of both, in separate streams.

    Returns:
        ``Dataset([run,] step, component)``: ``value`` (coordinates, nats) and ``stderr``, NaN at steps that a run does not have
        or whose measure failed; and by component ``explained``, the share of the variance, with ``explained_stderr``,
        ``explained_null_mean``, ``explained_null_sd``, ``explained_z`` and one-sided ``explained_p`` (at least ``smallest_p``).

    Raises:
        TypeError, ValueError: no losses over steps, losses of other tokens in different runs, too few snapshots or tokens.
    """
    import xarray as xr

    check_whole("n_components", n_components, 1)
    check_whole("draws", draws, 20)
    check_whole("seed", seed, 0)
    several = isinstance(losses, Mapping) and not hasattr(losses, "data_vars")
    runs: dict[str, Any] = {str(run): data for run, data in losses.items()} if several else {"": losses}
    _check(runs)
    values = {run: data["value"].transpose("step", "token") for run, data in runs.items()}
    kept = {run: np.isfinite(value.values).all(1) for run, value in values.items()}
    parts = [value.values[kept[run]] for run, value in values.items()]
    snapshots = np.concatenate(parts)
    _check_size(snapshots, n_components)
    coordinates, explained = components(snapshots, n_components)
    cluster = _clusters(next(iter(runs.values())))
    stderr, explained_stderr = bootstrap(snapshots, cluster, coordinates, draws=draws, seed=seed)
    null = walk_null(parts, n_components, draws=draws, seed=seed)
    null_mean, null_sd = null.mean(0), null.std(0, ddof=1)
    by_run = []
    ends = np.cumsum([len(part) for part in parts])
    for (run, value), end in zip(values.items(), ends, strict=True):
        rows = slice(end - kept[run].sum(), end)
        whole = {name: np.full((len(value), n_components), np.nan) for name in ("value", "stderr")}
        whole["value"][kept[run]], whole["stderr"][kept[run]] = coordinates[rows], stderr[rows]
        by_run.append(xr.Dataset({k: (("step", "component"), v) for k, v in whole.items()}, coords={"step": value.step.values}))
    together = by_run[0] if not several else xr.concat(by_run, dim="run", join="outer").assign_coords(run=list(runs))
    together = together.assign_coords(component=np.arange(1, n_components + 1))
    of_components = {
        "explained": explained,
        "explained_stderr": explained_stderr,
        "explained_null_mean": null_mean,
        "explained_null_sd": null_sd,
        "explained_z": (explained - null_mean) / null_sd,
        "explained_p": (1 + (null >= explained).sum(0)) / (1 + draws),
    }
    about: dict[str, str | int | float] = {
        "measure": "loss_pca",
        "version": 1,
        "definition": "principal components of per-token losses over snapshots; coordinates root mean square over tokens",
        "source": "Olsson et al. 2022, per-token loss analysis; errors and null of circuits.detectors.loss_pca",
        "config": canonical({"n_components": n_components, "draws": draws, "seed": seed}),
        "data_hash": next(iter(runs.values())).attrs["data_hash"],
        "seed": seed,
        "n_tokens": snapshots.shape[1],
        "n_examples": int(cluster.max()) + 1,
        "n_snapshots": len(snapshots),
        "null": "walks with the same step lengths in which no two tokens move together",
        "smallest_p": 1 / (1 + draws),
        "units": "nats",
    }
    return together.assign({name: ("component", x) for name, x in of_components.items()}).assign_attrs(about)


def components(
    snapshots: Float[np.ndarray, "snapshot token"], n_components: int
) -> tuple[Float[np.ndarray, "snapshot component"], Float[np.ndarray, "component"]]:
    """Coordinates of every snapshot (root mean square over tokens, signs as the module says), and explained shares."""
    from sklearn.decomposition import PCA

    fit = PCA(n_components, svd_solver="full")
    found = fit.fit_transform(snapshots) / np.sqrt(snapshots.shape[1])
    farthest = found[np.abs(found).argmax(0), np.arange(n_components)]
    return found * np.where(farthest < 0, -1.0, 1.0), fit.explained_variance_ratio_


def explained_shares(snapshots: Float[np.ndarray, "snapshot token"], n_components: int) -> Float[np.ndarray, "component"]:
    """The same shares alone, from the products of snapshots with each other: many times cheaper."""
    centred = snapshots - snapshots.mean(0)
    variances = np.linalg.eigvalsh(centred @ centred.T)[::-1]
    return variances[:n_components] / variances.sum()


def bootstrap(
    snapshots: Float[np.ndarray, "snapshot token"],
    cluster: Int[np.ndarray, "token"],
    coordinates: Float[np.ndarray, "snapshot component"],
    *,
    draws: int,
    seed: int,
) -> tuple[Float[np.ndarray, "snapshot component"], Float[np.ndarray, "component"]]:
    """Standard errors of coordinates and explained shares; ``cluster`` says which tokens are drawn together."""
    from scipy.linalg import orthogonal_procrustes

    rng = np.random.default_rng([seed, 42])
    members = np.split(np.argsort(cluster, kind="stable"), np.cumsum(np.bincount(cluster))[:-1])
    turned, shares = [], []
    for _ in range(draws):
        drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        again, explained = components(snapshots[:, drawn], coordinates.shape[1])
        turn, _ = orthogonal_procrustes(again, coordinates)
        turned.append(again @ turn)
        shares.append(explained)
    return np.std(turned, axis=0, ddof=1), np.std(shares, axis=0, ddof=1)


def walk_null(
    parts: list[Float[np.ndarray, "_ token"]], n_components: int, *, draws: int, seed: int
) -> Float[np.ndarray, "draw component"]:
    """Explained shares of walks that begin where each run begins and take its steps, the sign of each token's step at random."""
    rng = np.random.default_rng([seed, 43])
    shares = []
    for _ in range(draws):
        walks = []
        for part in parts:
            steps = np.diff(part, axis=0)
            steps *= rng.choice((-1.0, 1.0), size=steps.shape)
            walks.append(np.concatenate([part[:1], part[:1] + np.cumsum(steps, axis=0)]))
        shares.append(explained_shares(np.concatenate(walks), n_components))
    return np.array(shares)


def _clusters(data: "xr.Dataset") -> Int[np.ndarray, "token"]:
    """A number for each (corpus, example)."""
    pairs = list(zip(data.corpus.values.tolist(), data.example.values.tolist(), strict=True))
    known = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
    return np.array([known[pair] for pair in pairs])


def _check_size(snapshots: Float[np.ndarray, "snapshot token"], n_components: int) -> None:
    """Refuse what has fewer directions than are asked for."""
    if len(snapshots) <= n_components:
        raise ValueError(
            f"{len(snapshots)} snapshots have losses, {n_components} components need at least {n_components + 1}: "
            "measure more checkpoints, or use a smaller n_components"
        )
    if snapshots.shape[1] < n_components:
        raise ValueError(f"there are {snapshots.shape[1]} tokens for {n_components} components: measure more tokens")
    if not np.ptp(snapshots, axis=0).any():
        raise ValueError("the losses are the same at all snapshots, so they move along no direction: pass another run")


def _check(runs: Mapping[str, Any]) -> None:
    """Refuse what is not per-token losses over steps, or not of one set of tokens."""
    if not runs:
        raise ValueError("no run was given; pass {'name': losses over steps} for each run")
    first: Any = None
    for run, data in runs.items():
        whose = f" of {run!r}" if run else ""
        if not hasattr(data, "data_vars"):
            raise TypeError(f"got a {type(data).__name__}{whose}; pass what gather(TokenLosses(...), run, store) returned")
        if data.attrs.get("measure") != "token_losses" or "step" not in data.dims:
            raise ValueError(
                f"got a dataset{whose} of {data.attrs.get('measure', 'no measure')} with dims {tuple(data.dims)}; pass what "
                "gather(TokenLosses(...), run, store) returned, with its step axis"
            )
        first = data if first is None else first
        if any(data.attrs[name] != first.attrs[name] for name in ("config", "data_hash")):
            raise ValueError(
                f"the losses{whose} are of other tokens than those of {next(iter(runs))!r}: measure all runs with one TokenLosses"
            )
    if len(set(_clusters(first).tolist())) < 2:
        raise ValueError("the losses are of one example, which has no error over examples: measure at least 2")
