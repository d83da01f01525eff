"""matrix_compute.py: filters from Gram matrices, by both solvers."""

from dataclasses import replace

import naive
import numpy as np
import pytest
from gram_cases import SMALL, add, pair_of, random_case, random_gram, symmetric

from hashtable import interior_voxels, nearest_buckets
from matrix_compute import CG_RESIDUAL, ENOUGH_SAMPLES, Gram, ridge_filter, solve, unpacked


@pytest.mark.parametrize("weight", [1e-6, 0.1, 10, 1e4])
def test_ridge_filters_equal_a_dense_solution(weight):
    method = replace(SMALL, ridge=weight)
    gram = random_gram(method, samples=60)
    matrices = [symmetric(gram.full(b)) for b in range(method.buckets)]
    h = naive.ridge_filters(
        np.array([m[:-1, :-1] for m in matrices]), np.array([m[-1, :-1] for m in matrices]), weight
    )
    np.testing.assert_allclose(solve(gram, method), h, atol=1e-6)  # stored as float32


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
    method = replace(SMALL, ridge=weight)
    gram = random_gram(method, samples=60)
    gram.packed[4] = 0
    h = solve(gram, method)
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
    method = replace(SMALL, solver="cg")
    gram = random_gram(method, samples=60)
    for b, h in enumerate(solve(gram, method).astype(np.float64)):
        matrix = symmetric(gram.full(b))
        v = matrix[-1, :-1]
        # Twice the residual: filters are rounded to float32.
        assert np.linalg.norm(matrix[:-1, :-1] @ h - v) < 2 * CG_RESIDUAL * np.linalg.norm(v)


def test_cg_filters_equal_a_dense_solution():
    method = replace(SMALL, solver="cg")
    gram = random_gram(method, samples=600)
    matrices = [symmetric(gram.full(b)) for b in range(method.buckets)]
    dense = np.array([np.linalg.solve(m[:-1, :-1], m[-1, :-1]) for m in matrices])
    # A residual of 1e-5 at a condition of about 2; the filters are some 0.1 long.
    np.testing.assert_allclose(solve(gram, method), dense, atol=1e-5)


def test_cg_bucket_without_a_sample_is_served_by_the_nearest():
    method, empty = replace(SMALL, solver="cg"), (0, 7, 8, 35)
    gram = random_gram(method, samples=60, empty=empty)
    h, nearest = solve(gram, method), nearest_buckets(gram.count > 0, method)
    for bucket in empty:
        assert nearest[bucket] not in empty and h[bucket].any()
        np.testing.assert_array_equal(h[bucket], h[nearest[bucket]])


def test_cg_bucket_with_one_sample_keeps_its_own_filter():
    method = replace(SMALL, solver="cg")
    gram = random_gram(method, samples=60)
    rows = np.random.default_rng(36).random((1, 28))
    gram.packed[5], gram.count[5] = (rows.T @ rows)[np.tril_indices(28)], 1
    a, b = rows[0, :-1], rows[0, -1]
    # The shortest that fits it.
    np.testing.assert_allclose(solve(gram, method)[5], a * b / (a @ a), rtol=1e-4)


@pytest.mark.parametrize("solver", ["ridge", "cg"])
def test_filters_are_float32_and_finite_even_of_very_few_samples(solver):
    pair, _, voxels, bucket = random_case((5, 5, 5), 3, SMALL.buckets)
    method = replace(SMALL, solver=solver)
    gram = Gram(method.buckets, method.taps)
    add(gram, pair, voxels[:3], bucket[:3], method)
    h = solve(gram, method)
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
    method = replace(SMALL, solver=solver, ridge=1e-6)
    voxels = interior_voxels(np.ones(lr.shape, bool), 1)
    gram = Gram(method.buckets, method.taps)
    add(gram, pair_of(lr, hr), voxels, np.zeros(voxels.size, np.int32), method)
    # cg stops at 1e-5 of V; raw patches all share their mean, so that Q's condition is some
    # hundreds.
    np.testing.assert_allclose(solve(gram, method)[0], true, atol=1e-3)
