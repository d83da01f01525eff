"""hashtable.py: gradient features, class boundaries, buckets, and which voxels are sampled."""

import naive
import numpy as np
import pytest

import hashtable
from filter_constant import FEATURE_TYPES, Settings
from hashtable import (
    Boundaries,
    Features,
    buckets_of,
    features,
    interior_voxels,
    nearest_buckets,
    quantile_boundaries,
    sample_voxels,
)
from machine import threads
from structure_tensor import eigen_3x3


def grid(shape):
    return np.meshgrid(*(np.arange(side, dtype=np.float32) for side in shape), indexing="ij")


def ramp(shape, direction):
    return sum(np.float32(step) * axis for step, axis in zip(direction, grid(shape))) / np.float32(
        sum(shape)
    )


def ball(shape):
    return (
        np.sqrt(sum((axis - side // 2) ** 2 for axis, side in zip(grid(shape), shape))).astype(
            np.float32
        )
        / 20
    )


def one_voxel(shape):
    volume = np.zeros(shape, np.float32)
    volume[tuple(side // 2 for side in shape)] = 1
    return volume


def random(shape):
    return np.random.default_rng(20).random(shape, np.float32)


VOLUMES = {
    "random": random,
    "faint": lambda shape: random(shape) * np.float32(1e-4),
    "constant": lambda shape: np.full(shape, 0.5, np.float32),
    "zero": lambda shape: np.zeros(shape, np.float32),
    "ramp along x": lambda shape: ramp(shape, (1, 0, 0)),  # a plane: two eigenvalues are zero
    "ramp along z": lambda shape: ramp(shape, (0, 0, 1)),
    "oblique ramp": lambda shape: ramp(shape, (1, -2, 0.5)),
    # A line: one eigenvalue is zero.
    "cylinder": lambda shape: (
        np.hypot(grid(shape)[0] - shape[0] // 2, grid(shape)[1] - shape[1] // 2) / 20
    ),
    "ball": ball,  # at its centre all three eigenvalues are equal
    "one bright voxel": one_voxel,
    # Central differences see nothing of this one.
    "checkerboard": lambda shape: (sum(grid(shape)) % 2).astype(np.float32),
    "step": lambda shape: (grid(shape)[1] > shape[1] // 2).astype(np.float32),
}


def compare_with_twin(lr, settings):
    """Features of all interior voxels against the twin's.

    Returns the fraction of voxels whose direction was compared.
    """
    voxels = interior_voxels(np.ones(lr.shape, bool), settings.grad_len // 2)
    found = features(lr, voxels, settings)
    indices = naive.interior(np.ones(lr.shape, bool), settings.grad_len // 2)
    twins = naive.features(lr, indices, settings.grad_len, settings.feature_type)
    assert found.strength.shape == (len(twins),)

    # The tensor is float32: its entries, and so the eigenvalues, are right to about 1e-6 of the
    # largest.
    np.testing.assert_allclose(found.strength, [twin[2] for twin in twins], rtol=3e-6, atol=1e-12)
    for coherence, (values, _, _, twin) in zip(found.coherence, twins):
        # Coherence takes roots of eigenvalues: where the second is near zero, 1e-6 becomes 1e-3.
        second = max(values[1], 0) / values[0] if values[0] > 1e-12 else 0
        assert abs(coherence - twin) < (
            2e-3 if second < 1e-2 or values[2] < 1e-2 * values[0] else 5e-5
        )

    compared = 0
    for classes, (values, vector, _, _) in zip(found.angle, twins):
        bins = np.array(naive.angles(vector)) / np.pi * (settings.q_angle_p, settings.q_angle_t)
        well_known = values[0] > 1e-12 and values[1] < 0.999 * values[0]
        # A direction is known to about 1e-3 of a bin then; a class can only be demanded away from
        # the bins' edges. Near the pole the azimuth hangs on rounding as well.
        pole = np.hypot(vector[0], vector[1]) < 1e-3
        if well_known and (np.abs(bins - np.rint(bins)) > 5e-3).all() and not pole:
            assert tuple(classes) == naive.angle_classes(
                vector, settings.q_angle_p, settings.q_angle_t
            )
            compared += 1
    return compared / len(twins)


# ---- against the released code


def test_features_are_the_released_codes(golden):
    found = features(golden.lr, golden.voxels, golden.settings)
    # float32 sums of 729 terms; in the coherence the roots magnify the rounding of small
    # eigenvalues (measured: 7e-6)
    np.testing.assert_allclose(found.strength[::3], golden.features[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found.coherence[::3], golden.features[:, 1], atol=5e-5)


def test_boundaries_are_the_released_codes(golden):
    found = features(golden.lr, golden.voxels, golden.settings)
    np.testing.assert_allclose(
        quantile_boundaries(found.strength, 3), golden.strength_boundary, rtol=1e-4
    )
    np.testing.assert_allclose(
        quantile_boundaries(found.coherence, 3), golden.coherence_boundary, rtol=1e-4
    )


def test_buckets_are_the_released_codes(golden):
    found = features(golden.lr, golden.voxels, golden.settings)
    bucket = buckets_of(
        found, Boundaries(golden.strength_boundary, golden.coherence_boundary), golden.settings
    )
    # Only a feature that lies on a boundary to rounding may fall on its other side.
    assert np.mean(bucket == golden.bucket.ravel()[golden.voxels]) >= 0.999


def test_voxels_with_a_bucket_are_the_released_codes(golden):
    np.testing.assert_array_equal(
        interior_voxels(golden.lr != 0, golden.settings.margin), golden.voxels
    )


# ---- features against the twin


@pytest.mark.parametrize("feature_type", FEATURE_TYPES)
@pytest.mark.parametrize("kind", VOLUMES)
def test_features_equal_the_literal_ones(kind, feature_type):
    compare_with_twin(VOLUMES[kind]((9, 8, 10)), Settings(grad_len=5, feature_type=feature_type))


@pytest.mark.parametrize(
    "settings",
    [
        dict(grad_len=3),
        dict(grad_len=5, q_angle_p=5, q_angle_t=7),
        dict(grad_len=7, q_angle_p=1),
        dict(grad_len=9, q_angle_p=24, q_angle_t=1),
        dict(grad_len=9),
    ],
    ids=str,
)
def test_window_and_angle_bins_do_what_they_say(settings):
    assert compare_with_twin(random((12, 11, 13)), Settings(**settings)) > 0.5


@pytest.mark.parametrize("shape", [(9, 9, 9), (9, 10, 30), (30, 9, 9), (9, 30, 10)])
def test_windows_that_reach_the_faces_use_one_sided_gradients(shape):
    assert compare_with_twin(random(shape), Settings(grad_len=9)) > 0.5


def test_features_of_some_voxels_are_those_of_all_at_these_voxels(brain):
    settings = Settings(grad_len=5)
    lr = brain / brain.max()
    voxels = interior_voxels(lr != 0, 2)
    whole = features(lr, voxels, settings)
    for chosen in (
        np.arange(0, voxels.size, 7),
        np.arange(1),
        np.arange(voxels.size - 1, voxels.size),
        np.arange(0),
    ):
        for some, every in zip(features(lr, voxels[chosen], settings), whole):
            np.testing.assert_array_equal(some, every[chosen])


def test_features_do_not_depend_on_the_number_of_threads(brain, monkeypatch):
    settings, lr = Settings(grad_len=5), brain / brain.max()
    voxels = interior_voxels(lr != 0, 2)
    by_threads = []
    for number in (1, 2, 5):
        monkeypatch.setattr(hashtable, "thread_count", lambda number=number: number)
        monkeypatch.setattr(threads, "thread_count", lambda number=number: number)
        by_threads.append(features(lr, voxels, settings))
    for other in by_threads[1:]:
        for one, two in zip(by_threads[0], other):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("feature_type", FEATURE_TYPES)
def test_features_scale_as_their_formulas_say(feature_type):
    lr, settings = random((11, 11, 11)), Settings(feature_type=feature_type)
    voxels = interior_voxels(lr != 0, 4)
    full, half = features(lr, voxels, settings), features(lr / 2, voxels, settings)
    np.testing.assert_allclose(half.strength, full.strength / 4, rtol=1e-5)
    np.testing.assert_allclose(half.coherence, full.coherence, atol=1e-5)


def test_no_gradient_is_no_strength_and_no_coherence():
    for feature_type in FEATURE_TYPES:
        found = features(
            np.full((9, 9, 9), 0.7, np.float32),
            np.array([364]),
            Settings(feature_type=feature_type),
        )
        assert found.strength == found.coherence == 0 and not found.angle.any()


def test_azimuth_and_inclination_are_those_of_the_gradient():
    # Azimuth 45 degrees: class 2 of 8 begins there; a little off it, to be on no edge.
    lr = ramp((9, 9, 9), (1, 1, 0))
    lr += ramp((9, 9, 9), (0, 0.1, 0.05))
    found = features(lr, np.array([364]), Settings())
    assert tuple(found.angle[0]) == (2, 3)
    found = features(np.ascontiguousarray(lr[::-1]), np.array([364]), Settings())
    assert tuple(found.angle[0]) == (5, 3)  # mirrored at x: azimuth 180 degrees less what it was
    found = features(np.ascontiguousarray(lr[::-1, ::-1]), np.array([364]), Settings())
    # Turned by 180 degrees about z: its other end has the same azimuth.
    assert tuple(found.angle[0]) == (2, 4)


# ---- eigenvalues


def assert_eigen(tensor):
    """The closed form against LAPACK, on a matrix of any kind."""
    a = np.asarray(tensor, np.float64)
    l1, l2, l3, *v = eigen_3x3(a[0, 0], a[1, 1], a[2, 2], a[0, 1], a[0, 2], a[1, 2])
    values, vector = naive.eigen(a)
    # Where two eigenvalues meet, the arc cosine of the closed form is flat: right to the root of
    # float64's rounding, 1e-8.
    np.testing.assert_allclose((l1, l2, l3), values, atol=1e-7 * max(values[0], 1e-300))
    if not a.any():
        return
    assert np.linalg.norm(v) == pytest.approx(1, abs=1e-6)
    # It is an eigenvector, of the largest; less exactly so where the next one is nearer than 1e-12.
    exact = values[0] - values[1] > 1e-12 * values[0] or values[0] == values[1]
    np.testing.assert_allclose(a @ v, l1 * np.array(v), atol=(1e-6 if exact else 1e-3) * values[0])
    if values[1] < 0.99 * values[0]:
        assert abs(vector @ v) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3, 10])
def test_eigenvalues_of_random_tensors_are_lapacks(rank):
    rng = np.random.default_rng(rank)
    for _ in range(300):
        a = rng.standard_normal((3, rank))
        assert_eigen(a @ a.T)


@pytest.mark.parametrize(
    "values",
    [
        (1, 1, 1),
        (1, 1, 0),
        (1, 0, 0),
        (2, 2, 1),
        (2, 1, 1),
        (0, 0, 0),
        (1, 1 - 1e-6, 0),
        (1, 1 - 1e-9, 1 - 1e-9),
        (1, 1e-9, 1e-9),
        (1, 1 - 1e-13, 0.5),
    ],
    ids=str,
)
def test_eigenvalues_of_degenerate_tensors_are_lapacks(values):
    assert_eigen(np.diag(values))
    for axes in ((0, 2, 1), (1, 0, 2), (2, 1, 0)):
        assert_eigen(np.diag(np.array(values, float)[list(axes)]))
    rng = np.random.default_rng(22)
    for _ in range(50):
        turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        assert_eigen(turn * values @ turn.T)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_eigenvalues_do_not_hang_on_the_scale(size):
    rng = np.random.default_rng(23)
    for _ in range(50):
        a = rng.standard_normal((3, 3))
        assert_eigen(a @ a.T * size)


def test_line_along_each_axis_is_its_own_eigenvector():
    for axis in range(3):
        entries = np.zeros(6)
        entries[axis] = 4
        l1, l2, l3, *v = eigen_3x3(*entries)
        assert (l1, l2, l3) == pytest.approx((4, 0, 0), abs=1e-7)
        assert abs(v[axis]) == pytest.approx(1)


# ---- boundaries and buckets


@pytest.mark.parametrize("classes", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_quantile_boundaries_equal_the_literal_ones(classes, count):
    values = np.random.default_rng(count).random(count).astype(np.float32)
    result = quantile_boundaries(values, classes)
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, naive.boundaries(values.tolist(), classes))


def test_three_classes_share_the_values_evenly():
    values = np.random.default_rng(24).random(3000)
    classes = np.searchsorted(quantile_boundaries(values, 3), values)
    np.testing.assert_allclose(np.bincount(classes), 1000, atol=1)


@pytest.mark.parametrize("bins", [(8, 8), (2, 3), (1, 1), (24, 5)])
def test_bucket_numbers_equal_the_literal_ones(bins):
    rng = np.random.default_rng(25)
    settings = Settings(q_angle_p=bins[0], q_angle_t=bins[1])
    found = Features(
        np.stack([rng.integers(0, n, 500) for n in bins], 1).astype(np.uint8),
        rng.random(500, np.float32),
        rng.random(500, np.float32),
    )
    bucket = buckets_of(found, Boundaries(np.array([0.2, 0.6]), np.array([0.1, 0.9])), settings)
    literal = [
        naive.bucket_number(
            int(p), int(t), int(s > 0.2) + int(s > 0.6), int(c > 0.1) + int(c > 0.9), bins[1]
        )
        for (p, t), s, c in zip(*found)
    ]
    np.testing.assert_array_equal(bucket, literal)
    assert bucket.max() < settings.buckets


def test_value_on_a_boundary_is_in_the_class_below():
    found = Features(
        np.zeros((3, 2), np.uint8), np.array([0.25, 0.5, 0.75], np.float32), np.zeros(3, np.float32)
    )
    bucket = buckets_of(found, Boundaries(np.array([0.25, 0.5]), np.array([0.0, 1.0])), Settings())
    np.testing.assert_array_equal(bucket, [0, 3, 6])


# ---- the nearest bucket


@pytest.mark.parametrize("bins", [(8, 8), (3, 4), (1, 1)])
def test_nearest_buckets_equal_the_literal_ones(bins):
    settings = Settings(q_angle_p=bins[0], q_angle_t=bins[1])
    served = np.random.default_rng(26).random(settings.buckets) < 0.2
    nearest = nearest_buckets(served, settings)
    for bucket in range(0, settings.buckets, 1 + settings.buckets // 80):
        least, candidates = naive.nearest_bucket(bucket, np.flatnonzero(served).tolist(), *bins)
        assert nearest[bucket] in candidates, (bucket, least)


def test_bucket_that_is_served_keeps_its_own_filter():
    np.testing.assert_array_equal(nearest_buckets(np.ones(576, bool), Settings()), np.arange(576))


def test_one_served_bucket_serves_all():
    served = np.zeros(576, bool)
    served[123] = True
    assert (nearest_buckets(served, Settings()) == 123).all()


def test_opposite_directions_are_one():
    settings = Settings()

    def number(angle_p, angle_t):
        return naive.bucket_number(angle_p, angle_t, 1, 1, settings.q_angle_t)

    served = np.zeros(settings.buckets, bool)
    served[[number(7, 5), number(2, 2)]] = True
    # Azimuth bin 7 at inclination bin 5 is one azimuth bin below bin 0 at inclination bin 2, seen
    # from its other end.
    assert nearest_buckets(served, settings)[number(0, 2)] == number(7, 5)


# ---- which voxels


@pytest.mark.parametrize("margin", [0, 1, 4, 5])
@pytest.mark.parametrize("shape", [(11, 12, 13), (9, 20, 7), (1, 1, 1), (8, 30, 30)])
def test_interior_voxels_equal_the_literal_ones(shape, margin):
    mask = np.random.default_rng(27).random(shape) > 0.4
    literal = [np.ravel_multi_index(index, shape) for index in naive.interior(mask, margin)]
    np.testing.assert_array_equal(interior_voxels(mask, margin), literal)


def test_sampling_is_reproducible_and_differs_by_seed_and_by_name():
    voxels = np.arange(0, 30_000, 3)
    first = sample_voxels(voxels, 3, 0, "a.nii.gz learn")
    np.testing.assert_array_equal(first, sample_voxels(voxels, 3, 0, "a.nii.gz learn"))
    for other in (
        sample_voxels(voxels, 3, 1, "a.nii.gz learn"),
        sample_voxels(voxels, 3, 0, "b.nii.gz learn"),
        sample_voxels(voxels, 3, 0, "a.nii.gz boundaries"),
    ):
        # Independent draws of a third share a third of their voxels.
        assert np.intersect1d(first, other).size / first.size == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("rate", [2, 3, 10])
def test_sampling_draws_one_voxel_in_rate_in_raster_order(rate):
    drawn = sample_voxels(np.arange(100_000), rate, 5, "x")
    assert drawn.size == pytest.approx(100_000 / rate, rel=0.05)  # some five standard deviations
    assert (np.diff(drawn) > 0).all()


def test_sampling_rate_one_takes_every_voxel():
    np.testing.assert_array_equal(sample_voxels(np.arange(50), 1, 3, "x"), np.arange(50))


def test_name_may_hold_any_letters():
    assert sample_voxels(np.arange(100), 2, 0, "脳 ü.nii.gz").size > 0
