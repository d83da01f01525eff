"""matrix_compute.py: the Gram matrices of samples."""

from dataclasses import replace

import naive
import numpy as np
import pytest
from gram_cases import BOUNDARIES, SMALL, accumulate, add, pair_of, random_case, symmetric

import matrix_compute
from filter_constant import Method
from get_lar import make_pair
from hashtable import interior_voxels
from machine import threads
from matrix_compute import BLOCK, Gram, solve, unpacked
from published.patches import patch_lines

# ---- against the released code


def golden_gram(golden, chosen, gram=None):
    """Our Gram matrices of some golden buckets, of all voxels that the released code gave them.

    `gram`: whose memory they may take.
    """
    method = replace(golden.method, solver="cg")
    place = np.full(method.buckets, -1, np.int32)
    place[chosen] = np.arange(len(chosen))
    bucket = place[golden.bucket.ravel()[golden.voxels]]
    gram = gram or Gram(len(chosen), method.taps)
    gram.packed[:], gram.count[:] = 0, 0
    add(
        gram,
        pair_of(golden.lr, golden.hr),
        golden.voxels[bucket >= 0],
        bucket[bucket >= 0],
        method,
    )
    return gram


def test_sums_of_every_bucket_are_the_released_codes(golden):
    # Of a packed lower triangle, without the target's.
    diagonal = np.arange(1, 1332) * np.arange(2, 1333) // 2 - 1
    gram = Gram(24, 1331)  # all 576 at once would take 4 GB, and seconds to get them
    for start in range(0, 576, 24):
        chosen = np.arange(start, start + 24)
        golden_gram(golden, chosen, gram)
        trace = gram.packed[:, diagonal].sum(1)
        np.testing.assert_array_equal(gram.count, golden.count[chosen])
        # Products are float32 on both sides, of patches in another order.
        np.testing.assert_allclose(trace, golden.Q_trace[chosen], rtol=1e-4)
        np.testing.assert_allclose(
            2 * gram.packed[:, : diagonal[-1] + 1].sum(1) - trace, golden.Q_sum[chosen], rtol=1e-4
        )


def test_gram_matrices_are_the_released_codes(golden):
    gram = golden_gram(golden, golden.Q_bucket)
    for b, strided in enumerate(golden.Q_strided):
        np.testing.assert_allclose(
            symmetric(gram.full(b)[:-1, :-1])[::19, ::19], strided, rtol=1e-4
        )


def test_correlations_with_the_target_are_the_released_codes(golden):
    gram = golden_gram(golden, golden.V_bucket)
    for b, v in enumerate(golden.V):
        np.testing.assert_allclose(gram.full(b)[-1, :-1], v, rtol=1e-4)


def test_released_codes_filters_solve_our_equations(golden):
    chosen = golden.h_bucket[np.argsort(-golden.count[golden.h_bucket])][:4]
    gram = golden_gram(golden, chosen)
    for b, number in enumerate(chosen):
        matrix = gram.full(b)
        h = golden.h[np.flatnonzero(golden.h_bucket == number)[0]].astype(np.float64)
        v = matrix[-1, :-1]
        # Their residual is 1e-5 of V against their own Q; h is rounded to float32 besides.
        assert np.linalg.norm(symmetric(matrix[:-1, :-1]) @ h - v) < 1e-4 * np.linalg.norm(v)


# ---- Gram matrices


@pytest.mark.parametrize("centred", [False, True], ids=["cg", "ridge"])
@pytest.mark.parametrize("length", [3, 5])
@pytest.mark.parametrize("shape", [(7, 8, 9), (5, 5, 5), (12, 5, 6)])
def test_gram_equals_the_literal_sums(shape, length, centred):
    pair, indices, voxels, bucket = random_case(shape, length, 6)
    gram = Gram(6, length**3)
    add(
        gram, pair, voxels, bucket, Method(filter_len=length, solver="ridge" if centred else "cg")
    )
    q, v, bb, count = naive.gram(pair.lr, pair.hr, indices, bucket, 6, length, centred)
    np.testing.assert_array_equal(gram.count, count)
    for b in range(6):
        matrix = gram.full(b)
        tolerance = 1e-6 * max(count[b], 1)  # float32 products of values up to 1
        np.testing.assert_allclose(symmetric(matrix[:-1, :-1]), q[b], atol=tolerance)
        np.testing.assert_allclose(matrix[-1, :-1], v[b], atol=tolerance)
        assert matrix[-1, -1] == pytest.approx(bb[b], abs=tolerance)


def test_adding_twice_is_adding_all_at_once():
    pair, _, voxels, bucket = random_case((9, 9, 9), 3, 6)
    once, twice = Gram(6, 27), Gram(6, 27)
    add(once, pair, voxels, bucket, SMALL)
    add(twice, pair, voxels[:100], bucket[:100], SMALL)
    add(twice, pair, voxels[100:], bucket[100:], SMALL)
    np.testing.assert_array_equal(once.count, twice.count)
    np.testing.assert_allclose(once.packed, twice.packed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_blocks_of_every_filling_are_counted_whole(samples):
    rng = np.random.default_rng(32)
    pair = pair_of(*(rng.random((20, 21, 22), np.float32) for _ in range(2)))
    voxels = interior_voxels(np.ones(pair.lr.shape, bool), 1)[:samples]
    gram = Gram(2, 27)
    add(gram, pair, voxels, np.zeros(voxels.size, np.int32), replace(SMALL, solver="cg"))
    assert gram.count.tolist() == [samples, 0] and not gram.packed[1].any()
    expected = np.sum(pair.hr.ravel()[voxels].astype(np.float64) ** 2)
    assert gram.full(0)[-1, -1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_sums_do_not_hang_on_the_block_size(monkeypatch, block):
    pair, _, voxels, bucket = random_case((10, 9, 8), 3, 5)
    whole, small = Gram(5, 27), Gram(5, 27)
    add(whole, pair, voxels, bucket, SMALL)
    monkeypatch.setattr(matrix_compute, "BLOCK", block)
    add(small, pair, voxels, bucket, SMALL)
    # float32 products, float64 sums.
    np.testing.assert_allclose(small.packed, whole.packed, rtol=1e-5, atol=1e-5)


def test_fewer_samples_than_buckets_are_no_fault(brain):
    pair = make_pair(brain, SMALL)
    method = replace(SMALL, sample_rate=2000)
    gram = Gram(SMALL.buckets, SMALL.taps)
    accumulate(gram, pair, BOUNDARIES, method, "brain")
    assert 0 < gram.count.sum() < 30


@pytest.mark.parametrize("solver", ["ridge", "cg"])
def test_sums_and_filters_are_bit_identical_for_any_number_of_threads(monkeypatch, solver, brain):
    method = replace(SMALL, filter_len=5, grad_len=5, solver=solver)
    pair, results = make_pair(brain, method), []
    for number in (1, 2, 5):
        monkeypatch.setattr(threads, "thread_count", lambda number=number: number)
        gram = Gram(method.buckets, method.taps)
        accumulate(gram, pair, BOUNDARIES, method, "brain")
        results.append((gram.packed, gram.count, solve(gram, method)))
    for other in results[1:]:
        for mine, theirs in zip(results[0], other):
            np.testing.assert_array_equal(mine, theirs)


def test_progress_is_told_of_every_sample_and_every_bucket():
    pair, _, voxels, bucket = random_case((9, 9, 9), 3, SMALL.buckets)
    gram, samples, solved = Gram(SMALL.buckets, SMALL.taps), [], []
    add(gram, pair, voxels, bucket, SMALL, samples.append)
    solve(gram, SMALL, solved.append)
    assert sum(samples) == voxels.size and sum(solved) == np.count_nonzero(gram.count)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_packed_triangle_is_unpacked_row_after_row(side):
    matrix = np.tril(np.random.default_rng(33).random((side, side)))
    np.testing.assert_array_equal(unpacked(matrix[np.tril_indices(side)], side), matrix)


@pytest.mark.parametrize("length", [1, 3, 5, 17])
def test_patch_lines_walk_the_patch_in_c_order(length):
    shape = (19, 18, 20)
    volume = np.arange(np.prod(shape)).reshape(shape)
    index = (9, 8, 10)
    offsets, places = patch_lines(shape, length)
    patch = naive.patch(volume, index, length)
    np.testing.assert_array_equal(volume[index] + offsets, np.asarray(patch)[places])
    assert np.diff(np.append(places, patch.size)).max() <= 16  # so that vectors of 16 leave no gap
