"""published/apply_filters.py: volumes restored by filters."""

from dataclasses import replace

import naive
import numpy as np
import pytest
from gram_cases import BOUNDARIES, SMALL, accumulate, random_case

from get_lar import make_pair
from hashtable import Boundaries, features, interior_voxels
from matrix_compute import Gram, apply_filters
from published.apply_filters import filter_voxels

# ---- against the released code


def test_restored_volume_is_the_released_codes(golden):
    kept = np.isin(golden.bucket.ravel()[golden.voxels], golden.h_bucket)
    h = np.zeros((golden.method.buckets, golden.method.taps), np.float32)
    h[golden.h_bucket] = golden.h
    voxels = golden.voxels[kept]
    sr = filter_voxels(golden.lr, voxels, golden.bucket.ravel()[voxels].astype(np.int32), h, 11)
    assert voxels.size > 9000
    np.testing.assert_allclose(sr.ravel()[voxels], golden.sr.ravel()[voxels], atol=1e-5)
    elsewhere = golden.bucket < 0
    np.testing.assert_array_equal(sr[elsewhere], golden.sr[elsewhere])


def test_whole_application_is_the_released_codes(golden):
    h = np.zeros((golden.method.buckets, golden.method.taps), np.float32)
    h[golden.h_bucket] = golden.h
    sr = apply_filters(
        golden.lr,
        h,
        Boundaries(golden.strength_boundary, golden.coherence_boundary),
        golden.method,
    )
    kept = np.isin(golden.bucket, golden.h_bucket)
    # One voxel in a thousand may fall into a neighbouring bucket.
    assert np.mean(np.abs(sr - golden.sr)[kept] > 1e-5) < 1e-3


# ---- against the twin


@pytest.mark.parametrize("length", [3, 5, 7])
@pytest.mark.parametrize("shape", [(7, 7, 7), (8, 9, 7), (15, 7, 8)])
def test_application_equals_the_literal_one(shape, length):
    rng = np.random.default_rng(38)
    pair, indices, voxels, bucket = random_case(shape, length, 6)
    # Sums below 0 and above 1 occur.
    h = (3 * rng.standard_normal((6, length**3)) / length**1.5).astype(np.float32)
    sr = filter_voxels(pair.lr, voxels, bucket, h, length)
    literal = naive.restore(pair.lr, indices, bucket, h, length)
    np.testing.assert_allclose(sr, literal, atol=3e-5)  # float32 sums of up to 343 terms
    assert sr.dtype == np.float32
    # Both ends are clipped somewhere.
    assert len(indices) < 10 or ((literal == 0).any() and (literal == 1).any())


def test_filter_of_one_centre_tap_gives_lr_back(brain):
    method = replace(SMALL, filter_len=5)
    pair = make_pair(brain, method)
    h = np.zeros((method.buckets, method.taps), np.float32)
    h[:, method.taps // 2] = 1
    sr = apply_filters(pair.lr, h, BOUNDARIES, method)
    np.testing.assert_array_equal(sr, pair.lr)


@pytest.mark.parametrize("lengths", [(3, 7), (7, 3), (5, 5)])
def test_black_and_outer_voxels_keep_lr_whichever_window_is_larger(brain, lengths):
    method = replace(SMALL, filter_len=lengths[0], grad_len=lengths[1])
    lr = make_pair(brain, method).lr
    # Whatever it touches becomes white.
    h = np.full((method.buckets, method.taps), 2.0, np.float32)
    sr = apply_filters(lr, h, BOUNDARIES, method)
    inside = np.zeros(lr.shape, bool)
    inside[3:-3, 3:-3, 3:-3] = True
    if lengths == (5, 5):
        inside[:] = False
        inside[2:-2, 2:-2, 2:-2] = True
    np.testing.assert_array_equal(sr[~inside | (lr == 0)], lr[~inside | (lr == 0)])
    assert (sr[inside & (lr > 0.26)] == 1).all()


@pytest.mark.parametrize("kind", ["zero", "constant", "smaller than a patch"])
def test_application_to_degenerate_volumes(kind):
    lr = {
        "zero": np.zeros((9, 9, 9)),
        "constant": np.full((9, 9, 9), 0.5),
        "smaller than a patch": np.ones((2, 9, 9)),
    }[kind].astype(np.float32)
    h = np.zeros((SMALL.buckets, SMALL.taps), np.float32)
    h[:, 13] = 1
    sr = apply_filters(lr, h, BOUNDARIES, SMALL)
    np.testing.assert_array_equal(sr, lr)


def test_application_and_learning_agree_on_the_bucket(brain):
    """Each voxel is served by the filter of the bucket that it was learned in."""
    method = replace(SMALL, solver="cg")
    pair = make_pair(brain, method)
    boundaries = BOUNDARIES
    gram = Gram(method.buckets, method.taps)
    accumulate(gram, pair, boundaries, method, "brain")
    h = np.zeros((method.buckets, method.taps), np.float32)
    seen = []
    for b in np.flatnonzero(gram.count):
        h[:] = 0
        h[b] = 1000
        sr = apply_filters(pair.lr, h, boundaries, method)
        voxels = interior_voxels(pair.lr != 0, method.margin)
        seen.append(np.count_nonzero(sr.ravel()[voxels] == 1))
    # hr and lr have the same zeros here, so that each sample is also restored.
    np.testing.assert_array_equal(seen, gram.count[gram.count > 0])
    assert features(pair.lr, voxels, method).strength.size == sum(seen)
