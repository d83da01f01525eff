"""What is done with filters: sum the Gram matrices, solve for the filters, apply them.

A sample is a patch a (P voxels of LR) and the voxel b of HR at its centre. Per bucket, [a, b] has one Gram matrix of side
P + 1 that holds Q = sum a a^T, V = sum a b and sum b b together. Products are float32, a few thousand samples at a time;
sums are float64, and only the lower triangle is kept, row after row.

Each bucket is one task, done in one thread with single-threaded BLAS: the sums do not depend on the number of threads.
"""
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import NamedTuple

import numpy as np
from numba import njit, prange
from scipy.linalg import solve_triangular
from scipy.sparse.linalg import cg
from threadpoolctl import threadpool_limits

from hashtable import Boundaries, buckets_of, features, interior_voxels, nearest_buckets, sample_voxels

BLOCK = 2048  # samples multiplied at a time: 11 MB of patches, enough for the product to run at full speed
ENOUGH_SAMPLES = 30  # a ridge filter of a bucket that saw fewer is replaced by the nearest bucket's
CG_RESIDUAL = 1e-5  # relative, as published


class Filters(NamedTuple):
    """Filters in the published, spherical feature space."""

    h: np.ndarray  # (buckets, P) float32
    boundaries: Boundaries


class Gram:
    """Gram matrices of `buckets` buckets from `first` on, lower triangles in float64, and the samples in each."""

    def __init__(self, buckets, taps, first=0):
        side = taps + 1
        self.side, self.first = side, first
        self.packed = np.zeros((buckets, side * (side + 1) // 2))  # untouched pages cost no memory
        self.count = np.zeros(buckets, np.int64)

    def full(self, bucket):
        """The lower triangle of one bucket's matrix, shape (P + 1, P + 1), zeros above."""
        return unpacked(self.packed[bucket], self.side)


def patch_offsets(shape, length):
    """How far each voxel of a cubic patch is from its centre, in the flat volume, in C order: shape (length**3,)."""
    reach = np.arange(length) - length // 2
    return ((reach[:, None, None] * shape[1] + reach[:, None]) * shape[2] + reach).ravel()


def accumulate(gram, pair, boundaries, settings, name, advance=lambda samples: None, wanted=None):
    """Add one volume's samples to the Gram matrices (section 3.3 of the paper).

    Parameters
    ----------
    gram : Gram
        Changed in place.
    pair : Pair
    boundaries : Boundaries
    settings : Settings
    name : str
        Of the volume: with the seed, it decides which voxels are drawn.
    advance : callable, optional
        Told of the number of samples added, now and then.
    wanted : ndarray of bool, shape (all buckets,), optional
        Only the samples of these buckets are added; they must be among those of `gram`.
    """
    voxels = sample_voxels(interior_voxels(pair.hr != 0, settings.margin), settings.sample_rate, settings.seed, f"{name} learn")
    for part in np.array_split(voxels, settings.train_div):
        bucket = buckets_of(features(pair.lr, part, settings), boundaries, settings)
        if wanted is not None:
            part, bucket = part[wanted[bucket]], bucket[wanted[bucket]] - gram.first
        add_samples(gram, pair, part, bucket, settings, advance)


def add_samples(gram, pair, voxels, bucket, settings, advance=lambda samples: None):
    """Add [patch, target] of these voxels to the Gram matrices of their buckets."""
    order = np.argsort(bucket, kind="stable")
    voxels, ends = voxels[order], np.searchsorted(bucket[order], np.arange(len(gram.count) + 1))
    offsets = patch_offsets(pair.lr.shape, settings.filter_len)
    lr, hr, centred = pair.lr.reshape(-1), pair.hr.reshape(-1), settings.solver == "ridge"
    tasks = sorted(np.flatnonzero(np.diff(ends)), key=lambda b: ends[b] - ends[b + 1])  # the largest first

    def add_bucket(b, samples, product):
        for start in range(ends[b], ends[b + 1], BLOCK):
            block = voxels[start:min(start + BLOCK, ends[b + 1])]
            rows = samples[:block.size]
            _gather(lr, hr, block, offsets, centred, rows)
            fold(np.dot(rows.T, rows, out=product), gram.packed[b])
            advance(block.size)

    in_threads(tasks, add_bucket, lambda: (np.empty((BLOCK, gram.side), np.float32),
                                           np.empty((gram.side, gram.side), np.float32)))
    gram.count += np.diff(ends)


def solve(gram, settings, advance=lambda buckets: None):
    """The filters of all buckets (section 3.3 of the paper).

    Returns
    -------
    h : ndarray of float32, shape (buckets, P)
        Plain filters: SR = patch . h, whichever the solver.
    """
    return solve_groups([gram], settings, advance)


def solve_groups(grams, settings, advance=lambda buckets: None):
    """As `solve`, from Gram matrices of groups of buckets that together are all, in ascending order.

    Parameters
    ----------
    grams : iterable of Gram
        Gone through twice; only the one at hand needs to be in memory. The filters do not depend on the grouping.
    """
    pooled, counts = pool(grams)
    if settings.solver == "cg":
        h = np.concatenate([_solve_cg(gram, advance) for gram in grams])
        served = counts > 0
    else:
        h = np.concatenate([_solve_ridge(gram, settings.ridge, advance, pooled) for gram in grams])
        served = counts >= min(ENOUGH_SAMPLES, counts.max())
    return h[nearest_buckets(served, settings)].astype(np.float32)


def pool(grams):
    """The packed sum of the Gram matrices of all buckets, bucket after bucket, and the samples of each bucket."""
    pooled, counts = 0.0, []
    for gram in grams:
        counts.append(gram.count)
        for b in np.flatnonzero(gram.count):
            pooled = pooled + gram.packed[b] if np.isscalar(pooled) else np.add(pooled, gram.packed[b], out=pooled)
    return pooled, np.concatenate(counts)


def apply_filters(lr, h, boundaries, settings):
    """Give each voxel the filter of its bucket (section 3.4 of the paper).

    Parameters
    ----------
    lr : ndarray of float32, shape (X, Y, Z), in [0, 1]
        Cropped to the brain.
    h : ndarray of float32, shape (buckets, P)

    Returns
    -------
    sr : ndarray of float32, shape (X, Y, Z), in [0, 1]
        `lr` itself outside the brain and near the faces of the box.
    """
    voxels = interior_voxels(lr != 0, settings.margin)
    bucket = buckets_of(features(lr, voxels, settings), boundaries, settings)
    return filter_voxels(lr, voxels, bucket, h, settings.filter_len)


def filter_voxels(lr, voxels, bucket, h, filter_len):
    """``patch . h[bucket]`` at the voxels, clipped to [0, 1]; `lr` elsewhere."""
    sr = lr.copy()
    _apply(lr.reshape(-1), voxels, bucket, h, patch_offsets(lr.shape, filter_len), sr.reshape(-1))
    return sr


def in_threads(tasks, work, buffers):
    """Call ``work(task, *buffers())`` for each task, a thread to a core; each thread makes its buffers once."""
    queue = SimpleQueue()
    threads = os.cpu_count() or 1
    for task in [*tasks, *[None] * threads]:
        queue.put(task)

    def worker(_):
        own = buffers()
        while (task := queue.get()) is not None:
            work(task, *own)

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as workers:
        try:
            list(workers.map(worker, range(threads)))
        except BaseException:  # Ctrl-C: leave nothing to do, so that the threads end after the task at hand
            with contextlib.suppress(Empty):
                while True:
                    queue.get_nowait()
            for _ in range(threads):
                queue.put(None)
            raise


def _solve_cg(gram, advance):
    """Q h = V by conjugate gradients, the published way."""
    h = np.zeros((len(gram.count), gram.side - 1))

    def solve_bucket(b):
        matrix = gram.full(b)
        q = matrix[:-1, :-1]
        q += np.tril(q, -1).T
        h[b] = cg(q, matrix[-1, :-1], rtol=CG_RESIDUAL)[0]
        advance(1)

    in_threads(np.flatnonzero(gram.count), solve_bucket, tuple)
    return h


def _solve_ridge(gram, weight, advance, pooled):
    """Least squares on centred patches, each bucket's filter g pulled to the one pooled over all buckets.

    (Q + w I) g = V + w g0, with g0 the filter of all samples. What is learned is HR - LR from the patch less its centre:
    as a plain filter, g with 1 - sum(g) added at the centre.
    """
    taps = gram.side - 1
    g0 = ridge_filter(unpacked(pooled, gram.side), weight, np.zeros(taps))
    g = np.tile(g0, (len(gram.count), 1))

    def solve_bucket(b):
        g[b] = ridge_filter(gram.full(b), weight, g0)
        advance(1)

    in_threads(np.flatnonzero(gram.count), solve_bucket, tuple)
    g[:, taps // 2] += 1 - g.sum(1)
    return g


def ridge_filter(matrix, weight, towards):
    """The g that minimises |b - a.g|^2 + weight |g - towards|^2, from the Gram matrix of [a, b] (lower triangle; consumed).

    The Cholesky factor of the whole matrix holds that of Q, and in its last row the forward substitution of V.
    """
    matrix[-1, :-1] += weight * towards
    diagonal = np.einsum("ii->i", matrix)
    diagonal[:-1] += weight
    # Large enough to keep the whole positive definite: |L^-1 (V + w g0)|^2 <= (sum b b) + w |g0|^2.
    diagonal[-1] = 2 * diagonal[-1] + weight * (towards @ towards) + 1
    factor = np.linalg.cholesky(matrix)
    return solve_triangular(factor[:-1, :-1], factor[-1, :-1], trans="T", lower=True, check_finite=False)


# ---------------------------------------------------------------------------------------------- kernels

@njit(cache=True, nogil=True)
def _gather(lr, hr, voxels, offsets, centred, rows):
    """Rows [patch, target] of the voxels. Centred: less the LR voxel at the patch's centre, both."""
    taps = offsets.size
    for n in range(voxels.size):
        at = voxels[n]
        base = lr[at] if centred else np.float32(0)
        row = rows[n]
        for j in range(taps):
            row[j] = lr[at + offsets[j]] - base
        row[taps] = hr[at] - base


@njit(cache=True, nogil=True)
def fold(product, packed):
    """Add the lower triangle of a float32 matrix to a packed float64 one."""
    place = 0
    for i in range(product.shape[0]):
        for j in range(i + 1):
            packed[place + j] += product[i, j]
        place += i + 1


@njit(cache=True, nogil=True)
def unpacked(packed, side):
    """The square matrix whose lower triangle is packed row after row; zeros above."""
    matrix = np.zeros((side, side))
    place = 0
    for i in range(side):
        matrix[i, :i + 1] = packed[place:place + i + 1]
        place += i + 1
    return matrix


@njit(parallel=True, cache=True, fastmath=True)
def _apply(lr, voxels, bucket, h, offsets, sr):
    for n in prange(voxels.size):
        at, weights = voxels[n], h[bucket[n]]
        total = np.float32(0)
        for j in range(offsets.size):
            total += lr[at + offsets[j]] * weights[j]
        sr[at] = min(max(total, np.float32(0)), np.float32(1))
