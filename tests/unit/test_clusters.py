"""Clusters of curves against roles: each formula by hand, and each fast way against a literal one."""

from itertools import permutations, product
from math import comb, log

import numpy as np
import pytest
import xarray as xr
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.stats import f_oneway, mannwhitneyu, pearsonr, rankdata, spearmanr
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

from circuits.crosscheck import clusters
from circuits.crosscheck.cluster_agreement import compare, over_seeds
from circuits.crosscheck.clusters import (
    METHODS,
    SCALINGS,
    canonical_labels,
    choose_k,
    cluster,
    every_partition,
    log_time_weights,
    scaled,
    silhouette,
    squared_distances,
    stirling,
)
from circuits.crosscheck.explained import explained_share, partial_spearman
from circuits.crosscheck.partitions import adjusted_rand, arrangements, rand_indices, sign_test, tail
from circuits.crosscheck.plausible import (
    WIDEST,
    drawn_curves,
    drawn_from_units,
    index_bounds,
    open_partitions,
    open_roles,
)
from circuits.crosscheck.separation import rank_biserial, separation
from circuits.views.ranks import linear_fit

EQUAL = np.full(5, 0.2)
ROLES = np.array([0, 0, 0, 1, 1, 1, 2, 2])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# Curves to clusters


def test_weights_of_log_time_by_hand() -> None:
    """Steps 0, 1, 7 lie at 0, 1 and 3 times log 2: gaps 1 and 2, of which each end gets half."""
    assert log_time_weights([0, 1, 7]) == pytest.approx([1 / 6, 3 / 6, 2 / 6])
    assert log_time_weights([3, 15]) == pytest.approx([0.5, 0.5])
    steps = [0, 16, 64, 1000, 10_000]
    at = [log(1 + step) for step in steps]
    inner = [(c - a) / 2 / (at[-1] - at[0]) for a, c in zip(at, at[2:], strict=False)]
    assert log_time_weights(steps)[1:-1] == pytest.approx(inner) and log_time_weights(steps).sum() == pytest.approx(1)


def test_scaling_by_hand() -> None:
    weights = np.array([0.5, 0.25, 0.25])
    curves = np.array([[0.0, 4.0, 4.0], [1.0, 1.0, 1.0], [0.0, 1.0, 3.0]])
    root = np.sqrt(weights)
    assert scaled(curves, weights, "raw") == pytest.approx(curves * root)
    assert scaled(curves, weights, "standardised")[0] == pytest.approx(np.array([-1, 1, 1]) * root), "mean 2, sd 2"
    assert scaled(curves, weights, "minmax")[0] == pytest.approx(np.array([0, 1, 1]) * root)
    assert scaled(curves, weights, "minmax")[2] == pytest.approx(np.array([0, 1 / 3, 1]) * root)
    for scaling in ("standardised", "minmax"):
        assert (scaled(curves, weights, scaling)[1] == 0).all(), "a constant has no shape"
        assert (scaled(1e5 + 1e-11 * curves, weights, scaling) == 0).all(), "nor has rounding"


def test_distance_of_standardised_curves_is_a_correlation() -> None:
    weights = log_time_weights([0, 1, 7, 20, 100, 1000])
    curves = noise(2, 6)
    r = np.cov(curves, aweights=weights, ddof=0)
    expected = 2 * (1 - r[0, 1] / np.sqrt(r[0, 0] * r[1, 1]))
    assert squared_distances(scaled(curves, weights, "standardised")) == pytest.approx([expected])


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("method", METHODS)
def test_labels_do_not_depend_on_what_scaling_takes_away(method, scaling) -> None:
    curves = np.repeat([[0.0, 1, 2, 3, 4], [4, 3, 2, 1, 0.0]], 4, axis=0) + 0.1 * noise(8, 5)
    curves = curves[[0, 4, 1, 5, 2, 6, 3, 7]]
    assert cluster(curves, 2, method=method, scaling=scaling).tolist() == [0, 1] * 4
    if scaling != "raw":
        assert cluster(curves * np.geomspace(1, 100, 8)[:, None] + 7, 2, method=method, scaling=scaling).tolist() == [0, 1] * 4


def test_a_checkpoint_of_no_log_time_does_not_count() -> None:
    """Two heads differ at the first checkpoint alone, two others at the last."""
    curves = np.array([[9.0, 0, 0], [0, 0, 0], [9, 0, 1], [0, 0, 1]])
    late = {"scaling": "raw", "weights": np.array([0.0, 0.5, 0.5])}
    assert cluster(curves, 2, scaling="raw").tolist() == [0, 1, 0, 1]
    assert cluster(curves, 2, **late).tolist() == [0, 0, 1, 1]


def test_all_partitions_are_tried() -> None:
    for n, k in ((4, 2), (5, 3), (6, 1), (6, 6)):
        literal = {tuple(canonical_labels(labels)) for labels in product(range(k), repeat=n) if len(set(labels)) == k}
        found, costs = every_partition(n, k)
        assert {tuple(labels) for labels in found} == literal and len(found) == len(literal) == stirling(n, k)
        points = noise(n, 3)
        for labels, cost in zip(found, costs @ squared_distances(points), strict=True):
            own = [points[labels == part] for part in range(k)]
            assert cost == pytest.approx(sum(np.square(part - part.mean(0)).sum() for part in own))


def test_kmeans_is_never_worse_than_many_starts() -> None:
    for seed, k in product(range(6), (2, 3, 4)):
        points = noise(8, 5, seed=seed)
        ours = cluster(points, k, scaling="raw")
        inertia = 5 * squared_distances(scaled(points, EQUAL, "raw")) @ _cost(ours)
        theirs = KMeans(k, n_init=20, random_state=0).fit(points)
        assert inertia <= theirs.inertia_ * (1 + 1e-12)


def _cost(labels: np.ndarray) -> np.ndarray:
    found, costs = every_partition(len(labels), len(set(labels.tolist())))
    return costs[(found == labels).all(1)][0]


def test_kmeans_of_many_heads_is_scikit_learns(monkeypatch) -> None:
    curves = np.repeat(noise(3, 5), [4, 3, 1], axis=0) + 0.01 * noise(8, 5, seed=1)
    whole = cluster(curves, 3)
    monkeypatch.setattr(clusters, "PARTITIONS", 10)
    assert cluster(curves, 3, seed=1).tolist() == whole.tolist() == [0, 0, 0, 0, 1, 1, 1, 2]


def test_hierarchical_is_ward() -> None:
    for seed, k in product(range(5), (2, 3, 5)):
        points = noise(8, 5, seed=seed)
        theirs = fcluster(linkage(points, "ward"), k, "maxclust")
        assert cluster(points, k, method="hierarchical", scaling="raw").tolist() == canonical_labels(theirs).tolist()


def test_number_of_clusters_by_silhouettes() -> None:
    curves = np.repeat([[0.0, 1, 2, 3], [3, 0, 0, 1], [0, 3, 1, 0]], [3, 3, 2], axis=0) + 0.05 * noise(8, 4)
    found = choose_k(curves)
    points = scaled(curves, np.full(4, 0.25), "standardised")
    literal = [float(silhouette_score(points, cluster(curves, k))) for k in range(2, 8)]
    assert found.k == 3 and found.silhouettes == pytest.approx(literal) and found.silhouette == max(literal)
    by_hand = silhouette(np.array([[0.0], [1.0], [4.0]]), np.array([0, 0, 1]))
    assert by_hand == pytest.approx((3 / 4 + 2 / 3 + 0) / 3), "a = 1, b = 4 and 3; alone: 0"
    assert np.isnan(silhouette(points, np.zeros(8, dtype=int)))


# Clusters against roles


def test_adjusted_rand_by_hand() -> None:
    """S = 1 pair together in both, A = 2, B = 1 of 6: E = 1/3, M = 3/2, (1 - 1/3) / (3/2 - 1/3) = 4/7."""
    assert adjusted_rand([0, 0, 1, 1], ["a", "a", "b", "c"]).value == pytest.approx(4 / 7)
    assert adjusted_rand([0, 0, 1, 1], ["a", "b", "a", "b"]).value == pytest.approx(-1 / 2), "the least there is"
    assert adjusted_rand([0, 1, 1], ["x", "y", "y"]).value == 1


def test_many_indices_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 5, 9):
        partitions, roles = rng.integers(0, 4, (50, n)), rng.integers(0, 3, n)
        expected = [adjusted_rand_score(roles, labels) for labels in partitions]
        assert rand_indices(partitions, roles) == pytest.approx(expected)
        assert rand_indices(partitions, np.stack([roles, partitions[0]]))[:, 0] == pytest.approx(expected)
    for labels in ([0, 0, 0], [0, 1, 2]):
        for roles in ([0, 0, 0], [0, 1, 2], [0, 0, 1]):
            assert rand_indices(np.array([labels]), np.array(roles))[0] == adjusted_rand_score(roles, labels)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 2, 2]])
def test_permutation_p_by_literal_enumeration(labels) -> None:
    for roles in ([0, 0, 1, 1, 1], [1, 0, 0, 1, 2], [0, 1, 2, 3, 4]):
        every = [adjusted_rand_score(labels, order) for order in set(permutations(roles))]
        found = adjusted_rand(labels, roles)
        assert found.p == pytest.approx(np.mean(np.array(every) >= found.value - 1e-12))
        assert found.smallest == pytest.approx(np.mean(np.array(every) >= max(every) - 1e-12))
        assert found.null_mean == pytest.approx(np.mean(every)) and found.null_sd == pytest.approx(np.std(every))
    assert adjusted_rand(labels, [0, 0, 1, 1, 1]).null_mean == pytest.approx(0, abs=1e-12), "adjusted for chance"


@pytest.mark.parametrize(
    ("sizes", "ways", "verdict"), [([1, 7], 8, "untestable"), ([2, 6], 28, "agree"), ([3, 3, 2], 280, "agree")]
)
def test_smallest_p_is_that_of_agreement_itself(sizes, ways, verdict) -> None:
    roles = np.repeat(np.arange(len(sizes)), sizes)
    found = adjusted_rand(roles[::-1], roles[::-1])
    assert (found.value, found.verdict) == (1, verdict) and found.p == found.smallest == pytest.approx(1 / ways)


def test_sizes_that_cannot_agree_are_untestable() -> None:
    """Three clusters of one, two and five heads with one head apart: the best there is has it in a cluster of its own."""
    found = adjusted_rand([0, 1, 1, 2, 2, 2, 2, 2], [1, 0, 0, 0, 0, 0, 0, 0])
    assert found.p == found.smallest == 1 / 8 and found.value < 1 and found.verdict == "untestable"
    one_role = adjusted_rand([0, 0, 1, 1], ["a"] * 4)
    assert (one_role.p, one_role.smallest, one_role.verdict) == (1, 1, "untestable")


def test_arrangements_are_all_different_or_drawn() -> None:
    every = arrangements(["b", "a", "b", "c"])
    assert every.every and {tuple(one) for one in every.labels} == set(permutations([0, 1, 0, 2]))
    assert len(every.labels) == 12
    some = arrangements(np.arange(12), draws=50)
    assert not some.every and some.labels.shape == (50, 12) and (np.sort(some.labels) == np.arange(12)).all()
    assert len(np.unique(some.labels, axis=0)) == 50, "each row is exchanged on its own"


def test_p_of_random_exchanges_is_never_0() -> None:
    roles = np.repeat([0, 1, 2], [5, 5, 6])
    found = adjusted_rand(roles, roles, draws=99)
    assert found.p == found.smallest == 1 / 100 and found.verdict == "agree"
    assert tail(2.0, np.array([1.0, 2.0, 3.0]), every=False) == (3 / 4, 2 / 4)
    assert tail(2.0, np.array([1.0, 2.0, 3.0]), every=True) == (2 / 3, 1 / 3)


def test_sign_test_by_hand() -> None:
    assert sign_test([0.1, 0.2, 0.3]) == (3, 3, 1 / 8, 1 / 8, "untestable")
    assert sign_test([0.1] * 5) == (5, 5, 1 / 32, 1 / 32, "above")
    assert sign_test([0.1] * 4 + [0.0]) == (4, 5, 6 / 32, 1 / 32, "not above"), "a tie is not above"


# What errors leave open


def opened(curves, stderr, *, method="kmeans", scaling="raw", alpha=0.05, k=3):
    labels = cluster(curves, k, method=method, scaling=scaling)
    weights = np.full(curves.shape[1], 1 / curves.shape[1])
    drawn = drawn_curves(curves, np.broadcast_to(np.asarray(stderr, dtype=float), curves.shape), 200)
    return open_partitions(curves, drawn, labels, method=method, scaling=scaling, weights=weights, alpha=alpha)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("method", METHODS)
def test_exact_curves_leave_one_clustering_open(method, scaling) -> None:
    for seed in range(5):
        curves = noise(7, 6, seed=seed)
        found = opened(curves, 0.0, method=method, scaling=scaling)
        assert found.tolist() == [cluster(curves, 3, method=method, scaling=scaling).tolist()]


@pytest.mark.parametrize("method", METHODS)
def test_a_head_between_two_clusters_is_left_open(method) -> None:
    """Heads at 0 and 10, and one at 5.1: it may be of either; errors of its neighbours are too small for any other change."""
    curves = np.array([[0.0], [0.01], [0.02], [10.0], [10.01], [10.02], [5.1]]) * np.ones(4)
    found = opened(curves, np.array([[0.001]] * 6 + [[0.3]]), method=method, k=2)
    assert found.tolist() == [[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert len(opened(curves, 1e-4, method=method, k=2)) == 1


def test_noise_is_taken_off_distances() -> None:
    """One head with large errors looks far from all; without its noise it is where the others are."""
    rng = np.random.default_rng(0)
    stderr = np.array([[1.0]] + [[0.01]] * 5) * np.ones(400)
    curves = np.repeat([0.0, 0.5], 3)[:, None] + stderr * rng.standard_normal((6, 400))
    assert cluster(curves, 2, scaling="raw").tolist() == [0, 1, 1, 1, 1, 1]
    assert [0, 0, 0, 1, 1, 1] in opened(curves, stderr, k=2).tolist()


@pytest.mark.parametrize("scaling", ["standardised", "minmax"])
@pytest.mark.parametrize("method", METHODS)
def test_a_curve_of_noise_has_no_known_shape(method, scaling) -> None:
    shapes = np.array([[0.0, 1, 2, 3, 4], [4, 3, 2, 1, 0.0]])
    curves = np.vstack([np.repeat(shapes, 3, axis=0) * np.linspace(1, 1.2, 6)[:, None], 0.01 * noise(1, 5)])
    stderr = np.full((7, 5), 1e-3)
    assert len(opened(curves, stderr, method=method, scaling=scaling, k=2)) == 1
    stderr[-1] = 0.01
    assert {0, 1} == set(opened(curves, stderr, method=method, scaling=scaling, k=2)[:, 6].tolist())
    everywhere = opened(noise(7, 40), 1.0, method=method, scaling=scaling, k=2)
    assert len(everywhere) == stirling(7, 2), "of curves that are all noise any clustering may be the true one"


def test_a_constant_that_is_known_stays_a_constant() -> None:
    curves = np.vstack([np.ones(5), np.repeat([[0.0, 1, 2, 3, 4], [4, 3, 2, 1, 0.0]], 2, axis=0) + 0.01 * noise(4, 5)])
    assert opened(curves, 0.0, scaling="standardised").tolist() == [[0, 1, 1, 2, 2]]


def test_too_many_partitions_leave_all_open(monkeypatch) -> None:
    monkeypatch.setattr("circuits.crosscheck.plausible.PARTITIONS", 20)
    curves = noise(7, 5)
    for method in METHODS:
        found = opened(curves, 1.0, method=method)
        assert found is None
    for nothing in (index_bounds(None, ROLES[None]), index_bounds(ROLES[None], None)):
        assert [bound.tolist() for bound in nothing] == [[bound] for bound in WIDEST]


def test_units_give_the_covariance_of_their_mean() -> None:
    units = noise(6, 2, 3)
    drawn = drawn_from_units(units, 40_000)
    expected = np.cov(units.reshape(6, -1).T) / 6 * 5 / 3
    assert drawn.mean(0) == pytest.approx(units.mean(0), abs=0.02)
    assert np.cov(drawn.reshape(len(drawn), -1).T) == pytest.approx(expected, abs=0.02)


def test_open_roles_by_hand() -> None:
    """Heads wrong with probability 0, .1 and .3: none .63, the last .27, the middle .07, both .03."""
    roles, confidence = np.array([0, 1, 1]), np.array([1.0, 0.9, 0.7])
    given = [0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0]
    for alpha, sets in ((0.4, 1), (0.2, 2), (0.1, 2), (0.09, 3), (0.02, 4)):
        found = open_roles(roles, confidence, alpha)
        assert found is not None and sorted(found.tolist()) == sorted(given[:sets])
    three = open_roles(np.array([0, 1, 2]), np.array([1.0, 1, 0.9]), 0.05)
    assert three is not None and sorted(three.tolist()) == [[0, 1, 0], [0, 1, 1], [0, 1, 2]], "with every other role"
    equal = open_roles(roles, np.array([1.0, 0.9, 0.9]), 0.1)
    assert equal is not None and len(equal) == 3, "what is as probable comes in together"
    sure = open_roles(roles, np.ones(3), 0.05)
    assert sure is not None and sure.tolist() == [[0, 1, 1]]
    assert open_roles(np.arange(8), np.full(8, 0.9), 0.05) is None


def test_bounds_follow_the_roles() -> None:
    found = np.array([[0, 0, 1, 1], [0, 1, 1, 1]])
    low, high = index_bounds(found, np.array([[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]))
    assert high.tolist() == [1, 1, 1] and low == pytest.approx([0, 0, 0])
    many = np.tile(ROLES, (40_000, 1))
    low, high = index_bounds(np.tile(ROLES, (100, 1)), many)
    assert len(low) == len(high) == len(many) and (low == 1).all() and (high == 1).all(), "in parts"


# Datasets


STEPS = [0, 10, 100, 1000, 10_000]
SHAPES = np.array([[0.0, 1, 2, 3, 4], [4, 3, 2, 1, 0.0], [0, 4, 0, 4, 0]])
WORDS = ["previous token"] * 3 + ["multigram"] * 3 + ["induction"] * 2


def measure(curves: np.ndarray, stderr: float | None = 0.02) -> xr.Dataset:
    """``curves [layer, head, step]``."""
    dims = ("layer", "head", "step")
    data = {"value": (dims, curves)} | ({} if stderr is None else {"stderr": (dims, np.full(curves.shape, stderr))})
    coords = {"layer": np.arange(len(curves)), "head": np.arange(curves.shape[1]), "step": STEPS}
    return xr.Dataset(data, coords=coords).transpose("step", "layer", "head")


def roles_of(*layers) -> xr.DataArray:
    coords = {"layer": np.arange(len(layers)), "head": np.arange(len(layers[0]))}
    return xr.DataArray(np.array(layers), dims=("layer", "head"), coords=coords)


@pytest.fixture
def good() -> xr.Dataset:
    return measure(np.stack([SHAPES[ROLES] + 0.05 * noise(8, 5), SHAPES[ROLES] + 0.05 * noise(8, 5, seed=1)]))


@pytest.fixture
def bad() -> xr.DataArray:
    return measure(noise(2, 8, 5, seed=2), None)["value"]


def test_compare_lays_curves_against_roles(good, bad) -> None:
    roles = roles_of(WORDS, WORDS)
    found = compare({"weight_norm": bad, "rllc": good}, roles)
    assert found["value"].dims == ("curve", "layer", "clustering", "scaling") and found["curve"].values.tolist() == [
        "rllc",
        "weight_norm",
    ]
    ours, theirs = found.sel(curve="rllc"), found.sel(curve="weight_norm")
    assert (ours["value"] == 1).all() and (ours["p"] == ours["smallest_p"]).all() and (ours["verdict"] == "agree").all()
    assert (ours["low"] == 1).all() and (ours["k"] == 3).all() and (ours["labels"] == ROLES).all()
    assert (ours["difference"] == 0).all() and (ours["difference_high"] == 0).all()
    assert (theirs["verdict"] == "no agreement").all() and (theirs["low"] == theirs["value"]).all(), "exact"
    assert np.allclose(theirs["difference"], 1 - theirs["value"])
    assert (theirs["difference_low"] <= theirs["difference"]).all() and (theirs["difference_low"] > 0).all()
    assert found["chance"] == 0 and np.allclose(found["null_mean"], 0) and np.allclose(ours["z"], 1 / ours["null_sd"])
    one = found.sel(curve="weight_norm", layer=1, clustering="hierarchical", scaling="minmax")
    labels = cluster(
        bad.sel(layer=1).transpose("head", "step").values,
        3,
        method="hierarchical",
        scaling="minmax",
        weights=log_time_weights(STEPS),
    )
    assert one["labels"].values.tolist() == labels.tolist() and float(one["value"]) == pytest.approx(
        adjusted_rand_score(ROLES, labels)
    )
    assert found.attrs["measure"] == "cluster_agreement" and '"weights":"log"' in found.attrs["config"]
    assert found.identical(compare({"weight_norm": bad, "rllc": good}, roles))


def test_heads_and_checkpoints_that_are_missing_are_left_out_for_all(good, bad) -> None:
    good["value"][{"step": 1, "layer": 0}] = np.nan
    good["value"][{"layer": 1, "head": 7}] = np.nan
    words = list(WORDS)
    words[0] = "not measured"
    found = compare({"rllc": good, "other": bad}, roles_of(words, WORDS), methods=["kmeans"], scalings=["standardised"])
    assert found["n_steps"].values.tolist() == [4, 5] and found["n_heads"].values.tolist() == [7, 7]
    labels = found["labels"].isel(clustering=0, scaling=0)
    assert (labels.sel(layer=0, head=0) == -1).all() and (labels.sel(layer=1, head=7) == -1).all()
    assert (labels != -1).sum() == 28 and (found["state"] == "ok").all()
    kept = bad.sel(layer=0, head=slice(1, 7)).isel(step=[0, 2, 3, 4]).transpose("head", "step").values
    expected = cluster(kept, 3, weights=log_time_weights([0, 100, 1000, 10_000]))
    assert labels.sel(curve="other", layer=0).values[1:].tolist() == expected.tolist()


def test_what_cannot_be_compared_says_why(good, bad) -> None:
    bad[{"layer": 0}] = np.nan
    flat = measure(np.ones((2, 8, 5)))
    found = compare({"rllc": good, "gone": bad, "flat": flat}, roles_of(WORDS, ["multigram"] * 8), scalings=["raw"])
    state = found["state"].isel(scaling=0, clustering=0)
    assert state.sel(layer=0).values.tolist() == ["ok", "missing", "alike"]
    assert (state.sel(layer=1) == "one role").all() and found["value"].sel(layer=1).isnull().all()
    lost = found.where(found["state"] != "ok", drop=True)
    assert (found["verdict"].values[found["state"].values != "ok"] == "untestable").all() and lost[
        "difference_low"
    ].isnull().all()
    assert found["value"].sel(curve="rllc", layer=0).notnull().all(), "others are not touched"


def test_one_head_apart_is_untestable(good) -> None:
    curves = measure(np.stack([SHAPES[[0] + [1] * 7] + 0.05 * noise(8, 5)]))
    found = compare({"rllc": curves}, roles_of(["induction"] + ["multigram"] * 7))
    assert (found["value"] == 1).all() and (found["p"] == 1 / 8).all() and (found["verdict"] == "untestable").all()


def test_options_of_compare(good, bad) -> None:
    roles = roles_of(WORDS, WORDS)
    one = {"methods": ["kmeans"], "scalings": ["standardised"]}
    assert (compare({"rllc": good}, roles, k="silhouette", **one)["k"] == 3).all()
    assert (compare({"rllc": good}, roles, k=2, **one)["k"] == 2).all()
    equal = compare({"rllc": bad}, roles, weights="equal", **one)["labels"].values[0, :, 0, 0]
    x = bad.transpose("layer", "head", "step").values
    assert equal.tolist() == [cluster(layer, 3).tolist() for layer in x]
    unknown = compare({"rllc": good.assign(stderr=good["stderr"] * np.nan)}, roles, **one)
    assert unknown["low"].isnull().all() and (unknown["value"] == 1).all()
    turned = compare({"x": bad, "rllc": good}, roles, reference="x", **one)
    assert turned["curve"].values.tolist() == ["x", "rllc"] and (turned["difference"].sel(curve="rllc") < 0).all()


def test_difference_runs_over_both_sets(good, bad) -> None:
    """From the least of one less the largest of the other, and the other way round: whatever noise they share."""
    noisy = good + xr.Dataset({"value": 0.5 * bad, "stderr": xr.full_like(bad, 0.5)})
    other = xr.Dataset({"value": bad, "stderr": xr.full_like(bad, 0.2)})
    found = compare({"rllc": noisy, "other": other}, roles_of(WORDS, WORDS), methods=["kmeans"])
    ours, theirs = found.sel(curve="rllc"), found.sel(curve="other")
    assert (ours["low"] < ours["high"]).any() and (theirs["low"] < theirs["high"]).all()
    assert np.allclose(theirs["difference_low"], ours["low"] - theirs["high"])
    assert np.allclose(theirs["difference_high"], ours["high"] - theirs["low"])


def test_uncertain_roles_and_shared_noise_widen_the_interval(good) -> None:
    roles = roles_of(WORDS, WORDS)
    one = {"methods": ["kmeans"], "scalings": ["raw"]}
    sure = xr.full_like(roles, 1.0, dtype=float)
    plain = compare({"rllc": good}, roles, **one)
    assert (plain["low"] == 1).all() and (compare({"rllc": good}, roles, confidence=sure, **one)["low"] == 1).all()
    sure[{"layer": 0, "head": 0}] = np.nan
    lost = roles.copy()
    lost[{"layer": 0, "head": 0}] = "not measured"
    assert (compare({"rllc": good}, lost, confidence=sure, **one)["low"] == 1).all()
    sure[:] = 1.0
    unsure = compare({"rllc": good}, roles, confidence=sure * 0.8, **one)
    assert (unsure["low"] < 0.6).all() and (unsure["value"] == 1).all() and (unsure["high"] == 1).all()
    # Errors of one size, shared by all checkpoints of a head: it may be any height, and height is what raw curves show.
    shared = good["value"] + xr.DataArray(3 * noise(200, 2, 8), dims=("draw", "layer", "head"))
    assert (compare({"rllc": good[["value"]].assign(drawn=shared)}, roles, **one)["low"] < 0.6).all()
    standing = compare({"rllc": good[["value"]].assign(drawn=shared)}, roles, methods=["kmeans"], scalings=["standardised"])
    assert (standing["low"] == 1).all(), "and is what standardised curves do not"


def test_over_seeds(good, bad) -> None:
    roles = roles_of(WORDS, WORDS)
    one = {"methods": ["kmeans"], "scalings": ["raw"]}
    each = [compare({"rllc": good, "norm": bad}, roles, seed=seed, **one) for seed in range(3)]
    found = over_seeds(each)
    assert (found["value"] == 1).all() and (found["p"] == 1 / 8).all() and (found["verdict"] == "untestable").all()
    assert found["curve"].values.tolist() == ["norm"] and found["smallest_p"] == 1 / 8
    five = over_seeds([*each, *each[:2]])
    assert (five["verdict"] == "above").all() and (five["smallest_p"] == 1 / 32)
    assert (over_seeds([compare({"rllc": bad, "norm": good}, roles, **one)] * 5)["verdict"] == "not above").all()


# Types in one number


def test_f_ratio_by_hand() -> None:
    """Means 1, 4 of 3 and 2 heads, mean 2.2: between 3 (1.2^2) + 2 (1.8^2) = 10.8 on 1, within 2 + 2 = 4 on 3."""
    found = separation(np.array([0.0, 1, 2, 3, 5]), ["a", "a", "a", "b", "b"])
    assert found.value == pytest.approx(10.8 / (4 / 3)) == pytest.approx(f_oneway([0, 1, 2], [3, 5]).statistic)
    literal = [
        f_oneway(*([y for y, type_ in zip([0, 1, 2, 3, 5], order, strict=True) if type_ == name] for name in "ab")).statistic
        for order in permutations("aaabb")
    ]
    assert found.p == pytest.approx(np.mean(np.array(literal) >= found.value - 1e-9)) and found.smallest == 1 / 10
    assert found.verdict == "untestable" and np.isnan(found.chi_square)
    assert found.spread == pytest.approx(np.std([0, 1, 2, 3, 5], ddof=1))


def test_smallest_p_of_f() -> None:
    y = np.array([1.0, 2, 4, 8, 16, 32, 64, 128])
    assert separation(y, [0] * 4 + [1] * 4).smallest == pytest.approx(2 / comb(8, 4)), "groups of one size may be exchanged"
    assert separation(y, [0] + [1] * 7).smallest == 1 / 8
    assert separation(np.array([0.0, 0, 1, 1]), list("aabb")).value == np.inf
    for types in (["a"] * 4, list("abcd")):
        none = separation(y[:4], types)
        assert np.isnan(none.value) and none.verdict == "untestable"


def test_spread_against_errors_by_hand() -> None:
    """Weights 1 and 1/4: mean (1 + 4/4) / (5/4) = 1.6; Q = 0.6^2 + (2.4 / 2)^2 = 1.8."""
    found = separation(np.array([1.0, 4.0]), list("ab"), np.array([1.0, 2.0]))
    assert (found.chi_square, found.degrees) == (pytest.approx(1.8), 1)
    assert found.chi_square_p == pytest.approx(2 * (1 - 0.910157), abs=1e-4), "of a normal deviation of 1.3416"
    assert found.error == pytest.approx(np.sqrt(2.5))


def test_rank_biserial_by_hand() -> None:
    """Of 6 pairs 4 are above, 1 below, 1 tied."""
    found = rank_biserial(np.array([2.0, 5, 6]), np.array([3.0, 2]))
    assert found.value == pytest.approx((4 - 1) / 6)
    first, second = np.array([5.0, 7, 8, 9, 10, 11]), np.array([1.0, 6])
    for alternative in ("two-sided", "greater", "less"):
        ours = rank_biserial(first, second, alternative=alternative)
        theirs = mannwhitneyu(first, second, alternative=alternative, method="exact")
        assert ours.p == pytest.approx(theirs.pvalue) and ours.value == pytest.approx(2 * theirs.statistic / 12 - 1)
    apart = rank_biserial(np.arange(6) + 10.0, np.arange(2.0), alternative="greater")
    assert apart.p == apart.smallest == pytest.approx(1 / 28) and apart.verdict == "separated"
    both = rank_biserial(np.arange(6) + 10.0, np.arange(2.0))
    assert both.p == both.smallest == pytest.approx(2 / 28) and both.verdict == "untestable"
    assert rank_biserial(np.array([3.0]), np.arange(7.0), alternative="greater").smallest == 1 / 8


def test_interval_of_rank_biserial_solves_its_equation() -> None:
    found = rank_biserial(np.array([5.0, 7, 8, 9, 10, 11]), np.array([1.0, 6, 8.5]))
    at = (1 + found.value) / 2
    for theta in ((1 + found.low) / 2, (1 + found.high) / 2):
        variance = theta * (1 - theta) / 18 * (1 + 3.5 * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
        assert (theta - at) ** 2 == pytest.approx(1.959964**2 * variance, abs=3e-4)
    assert found.low < found.value < found.high
    assert rank_biserial(np.arange(3) + 5.0, np.arange(3.0)).high == 1


# Shares and partial correlations


def test_partial_spearman_by_hand() -> None:
    """With one other, (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2)) of ranks."""
    x, y, z = noise(3, 9)
    xy, xz, yz = (spearmanr(*pair).statistic for pair in ((x, y), (x, z), (y, z)))
    found = partial_spearman(x, y, z[:, None])
    assert found.value == pytest.approx((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))) and found.heads == 9
    assert partial_spearman(x, y, np.zeros((9, 0))).value == pytest.approx(xy)
    reach = 1.959964 * np.sqrt((1 + found.value**2 / 2) / (9 - 1 - 3))
    assert np.arctanh([found.low, found.high]) == pytest.approx(
        [np.arctanh(found.value) - reach, np.arctanh(found.value) + reach], rel=1e-5
    )


def test_exchanged_residuals_by_literal_enumeration() -> None:
    x, y, z = noise(3, 5, seed=3)
    found = partial_spearman(x, y, z[:, None])

    def left(values):
        design = np.column_stack([np.ones(5), rankdata(z)])
        return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]

    ours, theirs = left(rankdata(x)), left(rankdata(y))
    literal = [abs(pearsonr(ours, left(theirs[list(order)])).statistic) for order in permutations(range(5))]
    assert found.p == pytest.approx(np.mean(np.array(literal) >= abs(found.value) - 1e-9))
    assert found.smallest == pytest.approx(np.mean(np.array(literal) >= max(literal) - 1e-9))


def test_too_few_heads_are_refused_with_a_reason() -> None:
    found = partial_spearman(noise(5), noise(5, seed=1), noise(5, 2, seed=2))
    assert (
        np.isnan(found.value) and found.smallest == 1 and "5 heads are too few to hold 2 others fixed: 6 or more" in found.reason
    )
    x = noise(8)
    x[:3] = np.nan
    assert partial_spearman(x, noise(8, seed=1), noise(8, 2, seed=2)).heads == 5, "missing values are left out"
    assert "nothing" in partial_spearman(noise(8), noise(8), noise(8)[:, None]).reason
    share = explained_share(noise(5), noise(5, 3, seed=1))
    assert np.isnan(share.value) and "5 heads are too few for 3 columns: 6 or more" in share.reason
    assert "one value" in explained_share(np.ones(9), noise(9, 2)).reason


def test_explained_share_leaves_each_head_out() -> None:
    y, x = noise(12), noise(12, 3, seed=1) * [1, 1e6, 1e-6]
    found = explained_share(y, x)
    off, alone = [], []
    for head in range(12):
        rest = np.arange(12) != head
        design = np.column_stack([np.ones(12), x / [1, 1e6, 1e-6]])
        fit = np.linalg.lstsq(design[rest], y[rest], rcond=None)[0]
        off.append(y[head] - design[head] @ fit)
        alone.append(y[head] - y[rest].mean())
    assert found.foretold == pytest.approx(1 - np.square(off).sum() / np.square(alone).sum())
    assert (found.value, found.foretold) == pytest.approx(linear_fit(y, x)) and found.chance == 3 / 11
    certain = explained_share(x @ [1, 1e-6, 1e6], x, draws=99)
    assert certain.value == pytest.approx(1) and certain.p == certain.smallest == 1 / 100
    alone_decides = explained_share(y, np.eye(12)[:, :2])
    assert np.isnan(alone_decides.foretold) and "one head alone" in alone_decides.reason and alone_decides.value > 0


# Bad input


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: log_time_weights([0, 5, 5]), "rising: sort them"),
        (lambda: log_time_weights([-1, 5]), "from 0 on"),
        (lambda: log_time_weights([5]), "two or more"),
        (lambda: cluster(noise(5), 2), r"need \[head, step\]"),
        (lambda: cluster(np.full((3, 2), np.nan), 2), "6 of 6 values are missing"),
        (lambda: cluster(noise(4, 3), 2, scaling="z"), "'z' is none of standardised"),
        (lambda: cluster(noise(4, 3), 2, method="dtw"), "'dtw' is none of kmeans"),
        (lambda: cluster(noise(4, 3), 2, weights=np.ones(2)), "log_time_weights"),
        (lambda: cluster(noise(4, 3), 2, weights=-np.ones(3)), "below 0"),
        (lambda: cluster(noise(4, 3), 0), "whole number of at least 1"),
        (lambda: cluster(np.ones((4, 3)), 2), "1 differ once scaled"),
        (lambda: choose_k(noise(2, 3)), "three or more"),
        (lambda: adjusted_rand([0, 1], [0, 1, 2]), "in the same order"),
        (lambda: adjusted_rand([0], [0]), "two heads or more"),
        (lambda: sign_test([]), "one finite number for each seed"),
        (lambda: sign_test([np.nan, 1]), "one finite number for each seed"),
        (lambda: drawn_from_units(noise(3, 2, 2)), "four or more"),
        (lambda: separation(noise(3), [0, 1]), "need one of each"),
        (lambda: separation(np.array([np.nan, 1]), [0, 1]), "leave out heads"),
        (lambda: separation(noise(2), [0, 1], np.zeros(2)), "not above 0"),
        (lambda: rank_biserial(noise(0), noise(2)), "one or more of each"),
        (lambda: rank_biserial(noise(2), noise(2), alternative="more"), "none of two-sided"),
        (lambda: partial_spearman(noise(4), noise(5), noise(4, 1)), "of the same heads"),
        (lambda: explained_share(noise(4), noise(4)), "of the same heads"),
    ],
)
def test_bad_input_is_told_in_a_sentence(call, told) -> None:
    with pytest.raises(ValueError, match=told):
        call()


@pytest.mark.usefixtures("unchecked")
def test_bad_curves_are_told_in_a_sentence(good, bad) -> None:
    roles = roles_of(WORDS, WORDS)
    later = bad.assign_coords(step=[1, 2, 3, 4, 5])
    cases = [
        ({"curves": {"norm": good}}, "'rllc' is none of the curves, norm"),
        ({"curves": {"rllc": bad.expand_dims(kind=2)}}, "select one of any other dim"),
        ({"curves": {"rllc": good.isel(head=slice(4))}}, "other layers or heads than roles"),
        ({"curves": {"rllc": good.assign(stderr=-good["stderr"])}}, "errors below 0"),
        ({"curves": {"rllc": good.assign(drawn=good["value"].expand_dims(draw=5))}}, "30 draws or more"),
        ({"curves": {"rllc": good, "norm": later}}, "share 0 checkpoints"),
        ({"roles": roles.isel(layer=0)}, "roles must be a DataArray"),
        ({"confidence": roles.isel(head=slice(4))}, "confidence must be"),
        ({"confidence": xr.full_like(roles, 1.5, dtype=float)}, "from 0 to 1"),
        ({"methods": "kmeans"}, "need a list of some of"),
        ({"scalings": ["log"]}, "need a list of some of"),
        ({"weights": "linear"}, "neither 'log' nor 'equal'"),
        ({"k": 0}, "'roles' or 'silhouette'"),
        ({"draws": 3}, "at least 30"),
    ]
    for changed, told in cases:
        with pytest.raises(ValueError, match=told):
            compare(**{"curves": {"rllc": good}, "roles": roles, **changed})
    with pytest.raises(TypeError, match="pass a Dataset with value"):
        compare({"rllc": np.ones((2, 8, 5))}, roles)
    with pytest.raises(ValueError, match="need one or more with the same"):
        over_seeds([])
    one = compare({"rllc": good, "norm": bad}, roles, methods=["kmeans"], scalings=["raw"])
    with pytest.raises(ValueError, match="need one or more with the same"):
        over_seeds([one, one.assign_coords(curve=["rllc", "trace"])])


def test_the_order_of_steps_does_not_count(good) -> None:
    """Weights are of neighbours in time, however a dataset has its steps in order."""
    roles = roles_of(WORDS, WORDS)
    one = {"methods": ["kmeans"], "scalings": ["raw"]}
    found = compare({"rllc": good.isel(step=[3, 0, 4, 1, 2])}, roles, **one)
    assert found["labels"].identical(compare({"rllc": good}, roles, **one)["labels"])
