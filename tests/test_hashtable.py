"""hashtable.py: class boundaries, buckets, and which voxels are sampled."""

import naive
import numpy as np
import pytest

from filter_constant import Method
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

# ---- against the released code


def test_boundaries_are_the_released_codes(golden):
    found = features(golden.lr, golden.voxels, golden.method)
    np.testing.assert_allclose(
        quantile_boundaries(found.strength, 3), golden.strength_boundary, rtol=1e-4
    )
    np.testing.assert_allclose(
        quantile_boundaries(found.coherence, 3), golden.coherence_boundary, rtol=1e-4
    )


def test_buckets_are_the_released_codes(golden):
    found = features(golden.lr, golden.voxels, golden.method)
    bucket = buckets_of(
        found, Boundaries(golden.strength_boundary, golden.coherence_boundary), golden.method
    )
    # Only a feature that lies on a boundary to rounding may fall on its other side.
    assert np.mean(bucket == golden.bucket.ravel()[golden.voxels]) >= 0.999


def test_voxels_with_a_bucket_are_the_released_codes(golden):
    np.testing.assert_array_equal(
        interior_voxels(golden.lr != 0, golden.method.margin), golden.voxels
    )


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
    method = Method(q_angle_p=bins[0], q_angle_t=bins[1])
    found = Features(
        np.stack([rng.integers(0, n, 500) for n in bins], 1).astype(np.uint8),
        rng.random(500, np.float32),
        rng.random(500, np.float32),
    )
    bucket = buckets_of(found, Boundaries(np.array([0.2, 0.6]), np.array([0.1, 0.9])), method)
    literal = [
        naive.bucket_number(
            int(p), int(t), int(s > 0.2) + int(s > 0.6), int(c > 0.1) + int(c > 0.9), bins[1]
        )
        for (p, t), s, c in zip(*found)
    ]
    np.testing.assert_array_equal(bucket, literal)
    assert bucket.max() < method.buckets


def test_value_on_a_boundary_is_in_the_class_below():
    found = Features(
        np.zeros((3, 2), np.uint8), np.array([0.25, 0.5, 0.75], np.float32), np.zeros(3, np.float32)
    )
    bucket = buckets_of(found, Boundaries(np.array([0.25, 0.5]), np.array([0.0, 1.0])), Method())
    np.testing.assert_array_equal(bucket, [0, 3, 6])


# ---- the nearest bucket


@pytest.mark.parametrize("bins", [(8, 8), (3, 4), (1, 1)])
def test_nearest_buckets_equal_the_literal_ones(bins):
    method = Method(q_angle_p=bins[0], q_angle_t=bins[1])
    served = np.random.default_rng(26).random(method.buckets) < 0.2
    nearest = nearest_buckets(served, method)
    for bucket in range(0, method.buckets, 1 + method.buckets // 80):
        least, candidates = naive.nearest_bucket(bucket, np.flatnonzero(served).tolist(), *bins)
        assert nearest[bucket] in candidates, (bucket, least)


def test_bucket_that_is_served_keeps_its_own_filter():
    np.testing.assert_array_equal(nearest_buckets(np.ones(576, bool), Method()), np.arange(576))


def test_one_served_bucket_serves_all():
    served = np.zeros(576, bool)
    served[123] = True
    assert (nearest_buckets(served, Method()) == 123).all()


def test_opposite_directions_are_one():
    method = Method()

    def number(angle_p, angle_t):
        return naive.bucket_number(angle_p, angle_t, 1, 1, method.q_angle_t)

    served = np.zeros(method.buckets, bool)
    served[[number(7, 5), number(2, 2)]] = True
    # Azimuth bin 7 at inclination bin 5 is one azimuth bin below bin 0 at inclination bin 2, seen
    # from its other end.
    assert nearest_buckets(served, method)[number(0, 2)] == number(7, 5)


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


def test_one_voxel_more_shifts_the_draws_of_those_behind_it():
    voxels = np.arange(3000)
    first = sample_voxels(voxels, 3, 0, "a.nii.gz learn")
    more = sample_voxels(np.delete(voxels, 1000), 3, 0, "a.nii.gz learn")
    np.testing.assert_array_equal(first[first < 1000], more[more < 1000])
    behind = first[first > 1000]
    assert np.isin(behind, more).mean() == pytest.approx(1 / 3, abs=0.1)


@pytest.mark.parametrize("rate", [2, 3, 10])
def test_sampling_draws_one_voxel_in_rate_in_raster_order(rate):
    drawn = sample_voxels(np.arange(100_000), rate, 5, "x")
    assert drawn.size == pytest.approx(100_000 / rate, rel=0.05)  # some five standard deviations
    assert (np.diff(drawn) > 0).all()


def test_sampling_rate_one_takes_every_voxel():
    np.testing.assert_array_equal(sample_voxels(np.arange(50), 1, 3, "x"), np.arange(50))


def test_name_may_hold_any_letters():
    assert sample_voxels(np.arange(100), 2, 0, "脳 ü.nii.gz").size > 0
