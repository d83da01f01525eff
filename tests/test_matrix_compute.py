"""matrix_compute.py: Gram matrices, both solvers, and the application of filters."""

from dataclasses import replace

import naive
import numpy as np
import pytest

import matrix_compute
from apply_filters import apply_filters, filter_voxels
from filter_constant import Settings
from get_lar import LRVolume, make_pair
from hashtable import Boundaries, features, interior_voxels, nearest_buckets
from machine import threads
from matrix_compute import (
    BLOCK,
    CG_RESIDUAL,
    ENOUGH_SAMPLES,
    Gram,
    accumulate,
    patch_lines,
    ridge_filter,
    solve,
    sorted_samples,
    sum_rows,
    unpacked,
)

SMALL = Settings(filter_len=3, grad_len=3, q_angle_p=2, q_angle_t=2, sample_rate=1, train_div=1)


def pair_of(lr, hr):
    return LRVolume(lr, lr, None, (slice(None),) * 3, lr.shape, 1.0, hr != 0, hr=hr)


def add(gram, pair, voxels, bucket, settings, advance=lambda samples: None):
    """Add [patch, target] of these voxels to the Gram matrices of their buckets."""
    drawn = sorted_samples(pair, voxels, bucket, len(gram.count), settings)
    sum_rows(gram, drawn.ends, drawn.fill, advance)


def symmetric(lower):
    return lower + np.tril(lower, -1).T


def packed(matrices):
    """A Gram that holds these (P + 1)-sided matrices."""
    gram = Gram(len(matrices), len(matrices[0]) - 1)
    for b, matrix in enumerate(matrices):
        gram.packed[b] = matrix[np.tril_indices(gram.side)]
    return gram


def random_case(shape, length, buckets, seed=30):
    """A random pair, its interior voxels and a random bucket for each; the last one stays empty."""
    rng = np.random.default_rng(seed)
    pair = pair_of(*(rng.random(shape, np.float32) for _ in range(2)))
    indices = naive.interior(np.ones(shape, bool), length // 2)
    voxels = np.array([np.ravel_multi_index(index, shape) for index in indices], np.int64)
    return (
        pair,
        indices,
        voxels,
        rng.integers(0, max(buckets - 1, 1), len(indices)).astype(np.int32),
    )


def random_gram(settings, samples, seed=31, empty=()):
    """Well-conditioned Gram matrices with `samples` of every bucket but the empty ones."""
    rng = np.random.default_rng(seed)
    matrices = []
    for _ in range(settings.buckets):
        rows = rng.standard_normal((samples, settings.taps + 1))
        matrices.append(rows.T @ rows)
    gram = packed(matrices)
    gram.count[:] = samples
    for b in empty:
        gram.packed[b], gram.count[b] = 0, 0
    return gram


# ---- against the released code


def golden_gram(golden, chosen):
    """Our Gram matrices of some golden buckets, of all voxels that the released code gave them."""
    settings = replace(golden.settings, solver="cg")
    place = np.full(settings.buckets, -1, np.int32)
    place[chosen] = np.arange(len(chosen))
    bucket = place[golden.bucket.ravel()[golden.voxels]]
    gram = Gram(len(chosen), settings.taps)
    add(
        gram,
        pair_of(golden.lr, golden.hr),
        golden.voxels[bucket >= 0],
        bucket[bucket >= 0],
        settings,
    )
    return gram


def test_sums_of_every_bucket_are_the_released_codes(golden):
    # Of a packed lower triangle, without the target's.
    diagonal = np.arange(1, 1332) * np.arange(2, 1333) // 2 - 1
    for start in range(0, 576, 96):  # all 576 at once would take 4 GB
        chosen = np.arange(start, start + 96)
        gram = golden_gram(golden, chosen)
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


def test_restored_volume_is_the_released_codes(golden):
    kept = np.isin(golden.bucket.ravel()[golden.voxels], golden.h_bucket)
    h = np.zeros((golden.settings.buckets, golden.settings.taps), np.float32)
    h[golden.h_bucket] = golden.h
    voxels = golden.voxels[kept]
    sr = filter_voxels(golden.lr, voxels, golden.bucket.ravel()[voxels].astype(np.int32), h, 11)
    assert voxels.size > 9000
    np.testing.assert_allclose(sr.ravel()[voxels], golden.sr.ravel()[voxels], atol=1e-5)
    elsewhere = golden.bucket < 0
    np.testing.assert_array_equal(sr[elsewhere], golden.sr[elsewhere])


def test_whole_application_is_the_released_codes(golden):
    h = np.zeros((golden.settings.buckets, golden.settings.taps), np.float32)
    h[golden.h_bucket] = golden.h
    sr = apply_filters(
        golden.lr,
        h,
        Boundaries(golden.strength_boundary, golden.coherence_boundary),
        golden.settings,
    )
    kept = np.isin(golden.bucket, golden.h_bucket)
    # One voxel in a thousand may fall into a neighbouring bucket.
    assert np.mean(np.abs(sr - golden.sr)[kept] > 1e-5) < 1e-3


# ---- Gram matrices


@pytest.mark.parametrize("centred", [False, True], ids=["cg", "ridge"])
@pytest.mark.parametrize("length", [3, 5])
@pytest.mark.parametrize("shape", [(7, 8, 9), (5, 5, 5), (12, 5, 6)])
def test_gram_equals_the_literal_sums(shape, length, centred):
    pair, indices, voxels, bucket = random_case(shape, length, 6)
    gram = Gram(6, length**3)
    add(
        gram, pair, voxels, bucket, Settings(filter_len=length, solver="ridge" if centred else "cg")
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


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_sums_do_not_hang_on_train_div(brain, parts):
    pair = make_pair(brain, SMALL)
    boundaries, grams = Boundaries(np.array([1e-3, 1e-2]), np.array([0.3, 0.6])), []
    for train_div in (1, parts):
        grams.append(Gram(SMALL.buckets, SMALL.taps))
        accumulate(grams[-1], pair, boundaries, replace(SMALL, train_div=train_div), "brain")
    np.testing.assert_array_equal(grams[0].count, grams[1].count)
    np.testing.assert_allclose(grams[0].packed, grams[1].packed, rtol=1e-5, atol=1e-5)
    assert grams[0].count.sum() == interior_voxels(pair.hr != 0, SMALL.margin).size


def test_more_parts_than_samples_are_no_fault(brain):
    pair = make_pair(brain, SMALL)
    settings = replace(SMALL, sample_rate=2000, train_div=100)
    gram = Gram(SMALL.buckets, SMALL.taps)
    accumulate(
        gram, pair, Boundaries(np.array([1e-3, 1e-2]), np.array([0.3, 0.6])), settings, "brain"
    )
    assert 0 < gram.count.sum() < 30


@pytest.mark.parametrize("solver", ["ridge", "cg"])
def test_sums_and_filters_are_bit_identical_for_any_number_of_threads(monkeypatch, solver, brain):
    settings = replace(SMALL, filter_len=5, grad_len=5, solver=solver)
    pair, results = make_pair(brain, settings), []
    for number in (1, 2, 5):
        monkeypatch.setattr(threads, "thread_count", lambda number=number: number)
        gram = Gram(settings.buckets, settings.taps)
        accumulate(
            gram, pair, Boundaries(np.array([1e-3, 1e-2]), np.array([0.3, 0.6])), settings, "brain"
        )
        results.append((gram.packed, gram.count, solve(gram, settings)))
    for other in results[1:]:
        for mine, theirs in zip(results[0], other):
            np.testing.assert_array_equal(mine, theirs)


def test_progress_is_told_of_every_sample_and_every_bucket():
    pair, _, voxels, bucket = random_case((9, 9, 9), 3, SMALL.buckets)
    gram, samples, solved = Gram(SMALL.buckets, SMALL.taps), [], []
    add(gram, pair, voxels, bucket, SMALL, samples.append)
    solve(gram, SMALL, solved.append)
    assert sum(samples) == voxels.size and sum(solved) == np.count_nonzero(gram.count)


def test_fault_in_a_thread_is_not_swallowed():
    def work(task):
        raise ZeroDivisionError(task)

    with pytest.raises(ZeroDivisionError):
        threads.in_threads(range(5), work, tuple)


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


# ---- solvers


@pytest.mark.parametrize("weight", [1e-6, 0.1, 10, 1e4])
def test_ridge_filters_equal_a_dense_solution(weight):
    settings = replace(SMALL, ridge=weight)
    gram = random_gram(settings, samples=60)
    matrices = [symmetric(gram.full(b)) for b in range(settings.buckets)]
    h = naive.ridge_filters(
        np.array([m[:-1, :-1] for m in matrices]), np.array([m[-1, :-1] for m in matrices]), weight
    )
    np.testing.assert_allclose(solve(gram, settings), h, atol=1e-6)  # stored as float32


@pytest.mark.parametrize("rank", [0, 1, 5, 26])
def test_ridge_solves_a_rank_deficient_bucket(rank):
    rows = np.random.default_rng(34).standard_normal((rank, 28))
    matrix, towards = rows.T @ rows, np.linspace(-1, 1, 27)
    direct = np.linalg.solve(matrix[:-1, :-1] + 2 * np.eye(27), matrix[-1, :-1] + 2 * towards)
    np.testing.assert_allclose(ridge_filter(np.tril(matrix), 2.0, towards), direct, atol=1e-9)


def test_ridge_filter_reads_the_lower_triangle_only():
    rows = np.random.default_rng(35).standard_normal((50, 28))
    matrix = rows.T @ rows
    spoilt = np.tril(matrix) + np.triu(np.full_like(matrix, 1e9), 1)
    np.testing.assert_array_equal(
        ridge_filter(np.tril(matrix), 1.0, np.zeros(27)), ridge_filter(spoilt, 1.0, np.zeros(27))
    )


@pytest.mark.parametrize("weight", [1e-3, 10])
def test_ridge_survives_a_bucket_of_constant_patches(weight):
    # All patches alike, centred to zero: Q is zero and the pooled filter is all there is.
    settings = replace(SMALL, ridge=weight)
    gram = random_gram(settings, samples=60)
    gram.packed[4] = 0
    h = solve(gram, settings)
    assert np.isfinite(h).all()
    pooled = symmetric(unpacked(gram.packed.sum(0), gram.side))
    g0 = np.linalg.solve(pooled[:-1, :-1] + weight * np.eye(27), pooled[-1, :-1])
    g0[13] += 1 - g0.sum()
    np.testing.assert_allclose(h[4], g0, atol=1e-6)


def test_strong_ridge_gives_every_bucket_the_pooled_filter():
    h = solve(random_gram(SMALL, samples=60), replace(SMALL, ridge=1e9))
    np.testing.assert_allclose(h, np.tile(h[0], (len(h), 1)), atol=1e-5)


def test_ridge_filters_sum_to_one_so_that_a_flat_patch_keeps_its_value():
    np.testing.assert_allclose(solve(random_gram(SMALL, samples=60), SMALL).sum(1), 1, atol=1e-5)


def test_ridge_bucket_that_saw_too_few_samples_is_served_by_the_nearest():
    gram = random_gram(SMALL, samples=60)
    gram.count[[3, 20]] = ENOUGH_SAMPLES - 1
    h, nearest = solve(gram, SMALL), nearest_buckets(gram.count >= ENOUGH_SAMPLES, SMALL)
    for bucket in (3, 20):
        assert nearest[bucket] != bucket
        np.testing.assert_array_equal(h[bucket], h[nearest[bucket]])


def test_ridge_bucket_with_just_enough_samples_keeps_its_own_filter():
    gram = random_gram(SMALL, samples=60)
    gram.count[3] = ENOUGH_SAMPLES
    h = solve(gram, SMALL)
    assert (np.abs(h[np.arange(len(h)) != 3] - h[3]).max(1) > 1e-3).all()


def test_cg_filters_have_the_published_residual():
    settings = replace(SMALL, solver="cg")
    gram = random_gram(settings, samples=60)
    for b, h in enumerate(solve(gram, settings).astype(np.float64)):
        matrix = symmetric(gram.full(b))
        v = matrix[-1, :-1]
        # Twice the residual: filters are rounded to float32.
        assert np.linalg.norm(matrix[:-1, :-1] @ h - v) < 2 * CG_RESIDUAL * np.linalg.norm(v)


def test_cg_filters_equal_a_dense_solution():
    settings = replace(SMALL, solver="cg")
    gram = random_gram(settings, samples=600)
    matrices = [symmetric(gram.full(b)) for b in range(settings.buckets)]
    dense = np.array([np.linalg.solve(m[:-1, :-1], m[-1, :-1]) for m in matrices])
    # A residual of 1e-5 at a condition of about 2; the filters are some 0.1 long.
    np.testing.assert_allclose(solve(gram, settings), dense, atol=1e-5)


def test_cg_bucket_without_a_sample_is_served_by_the_nearest():
    settings, empty = replace(SMALL, solver="cg"), (0, 7, 8, 35)
    gram = random_gram(settings, samples=60, empty=empty)
    h, nearest = solve(gram, settings), nearest_buckets(gram.count > 0, settings)
    for bucket in empty:
        assert nearest[bucket] not in empty and h[bucket].any()
        np.testing.assert_array_equal(h[bucket], h[nearest[bucket]])


def test_cg_bucket_with_one_sample_keeps_its_own_filter():
    settings = replace(SMALL, solver="cg")
    gram = random_gram(settings, samples=60)
    rows = np.random.default_rng(36).random((1, 28))
    gram.packed[5], gram.count[5] = (rows.T @ rows)[np.tril_indices(28)], 1
    a, b = rows[0, :-1], rows[0, -1]
    # The shortest that fits it.
    np.testing.assert_allclose(solve(gram, settings)[5], a * b / (a @ a), rtol=1e-4)


@pytest.mark.parametrize("solver", ["ridge", "cg"])
def test_filters_are_float32_and_finite_even_of_very_few_samples(solver):
    pair, _, voxels, bucket = random_case((5, 5, 5), 3, SMALL.buckets)
    settings = replace(SMALL, solver=solver)
    gram = Gram(settings.buckets, settings.taps)
    add(gram, pair, voxels[:3], bucket[:3], settings)
    h = solve(gram, settings)
    assert h.shape == (36, 27) and h.dtype == np.float32 and np.isfinite(h).all() and h.any(1).all()


@pytest.mark.parametrize("solver", ["ridge", "cg"])
def test_learned_filters_undo_a_known_blur(solver):
    # HR is a fixed combination of LR's neighbours: learning finds it, with weights that sum to one.
    rng = np.random.default_rng(37)
    true = rng.standard_normal(27) * 0.05
    true[13] += 1 - true.sum()
    lr = rng.random((16, 16, 16), np.float32)
    hr = lr.copy()
    for index in naive.interior(np.ones(lr.shape, bool), 1):
        hr[index] = naive.patch(lr, index, 3) @ true
    settings = replace(SMALL, solver=solver, ridge=1e-6)
    voxels = interior_voxels(np.ones(lr.shape, bool), 1)
    gram = Gram(settings.buckets, settings.taps)
    add(gram, pair_of(lr, hr), voxels, np.zeros(voxels.size, np.int32), settings)
    # cg stops at 1e-5 of V; raw patches all share their mean, so that Q's condition is some
    # hundreds.
    np.testing.assert_allclose(solve(gram, settings)[0], true, atol=1e-3)


# ---- application


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
    settings = replace(SMALL, filter_len=5)
    pair = make_pair(brain, settings)
    h = np.zeros((settings.buckets, settings.taps), np.float32)
    h[:, settings.taps // 2] = 1
    sr = apply_filters(
        pair.lr, h, Boundaries(np.array([1e-3, 1e-2]), np.array([0.3, 0.6])), settings
    )
    np.testing.assert_array_equal(sr, pair.lr)


@pytest.mark.parametrize("lengths", [(3, 7), (7, 3), (5, 5)])
def test_black_and_outer_voxels_keep_lr_whichever_window_is_larger(brain, lengths):
    settings = replace(SMALL, filter_len=lengths[0], grad_len=lengths[1])
    lr = make_pair(brain, settings).lr
    # Whatever it touches becomes white.
    h = np.full((settings.buckets, settings.taps), 2.0, np.float32)
    sr = apply_filters(lr, h, Boundaries(np.array([1e-3, 1e-2]), np.array([0.3, 0.6])), settings)
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
    sr = apply_filters(lr, h, Boundaries(np.array([1e-3, 1e-2]), np.array([0.3, 0.6])), SMALL)
    np.testing.assert_array_equal(sr, lr)


def test_application_and_learning_agree_on_the_bucket(brain):
    """Each voxel is served by the filter of the bucket that it was learned in."""
    settings = replace(SMALL, solver="cg")
    pair = make_pair(brain, settings)
    boundaries = Boundaries(np.array([1e-3, 1e-2]), np.array([0.3, 0.6]))
    gram = Gram(settings.buckets, settings.taps)
    accumulate(gram, pair, boundaries, settings, "brain")
    h = np.zeros((settings.buckets, settings.taps), np.float32)
    seen = []
    for b in np.flatnonzero(gram.count):
        h[:] = 0
        h[b] = 1000
        sr = apply_filters(pair.lr, h, boundaries, settings)
        voxels = interior_voxels(pair.lr != 0, settings.margin)
        seen.append(np.count_nonzero(sr.ravel()[voxels] == 1))
    # hr and lr have the same zeros here, so that each sample is also restored.
    np.testing.assert_array_equal(seen, gram.count[gram.count > 0])
    assert features(pair.lr, voxels, settings).strength.size == sum(seen)
