"""Learn the published filters: sum the Gram matrices of training samples, and solve for filters.

A sample is a patch a (P voxels of LR) and the voxel b of HR at its centre. Each bucket (a class of
voxels) has one Gram matrix of [a, b]: Q = sum a a^T, V = sum a b and sum b b. Products are computed
in float32 for about a thousand samples at a time. Sums are float64. Only the lower triangle is
stored, row after row ("packed"). The sums of each bucket are computed in one thread with
single-threaded BLAS, so that they do not depend on the number of threads.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from get_lar import LRVolume
from hashtable import buckets_of, features, interior_voxels, nearest_buckets, sample_voxels
from machine.blas import cholesky_in_place, gram_of_rows, solve_transposed, symmetric_product
from machine.kernels import njit
from machine.simd import LANES, load, multiply_add, splat, store
from machine.threads import in_threads, spans
from published.apply_filters import filter_voxels
from published.patches import patch_lines, readable

BLOCK = 1024  # samples multiplied at a time: their 5 MB of patches fit in the processor's cache
ENOUGH_SAMPLES = 30  # with fewer samples, a bucket takes the nearest bucket's ridge filter
CG_RESIDUAL = 1e-5  # relative residual at which conjugate gradients stop, as in the paper


class Stage(NamedTuple):
    """Classes of voxels, and one filter per class."""

    classes: Any  # hashtable.Boundaries or octahedral.tree.Tree
    weights: np.ndarray  # (classes, taps) float32


class TrainingSamples(NamedTuple):
    """The samples of one volume, bucket after bucket."""

    volume: LRVolume
    voxels: np.ndarray  # (n,) int64, flat indices
    ends: np.ndarray  # (buckets + 1,) int: bucket b has the samples ends[b] to ends[b + 1]
    fill: Callable  # fill(slice of samples, rows) writes rows of shape (m, taps + 1), float32


class Gram:
    """Gram matrices of buckets from `first` on, as lower triangles in float64, with counts."""

    def __init__(self, buckets, taps, first=0):
        side = taps + 1
        self.side, self.first = side, first
        self.packed = np.zeros((buckets, side * (side + 1) // 2))  # memory is taken on first use
        self.count = np.zeros(buckets, np.int64)

    def __sizeof__(self):  # Dask calls it before it moves an object
        return object.__sizeof__(self) + self.packed.nbytes + self.count.nbytes

    @property
    def buckets(self):
        """The numbers of the buckets whose sums this object holds: a range."""
        return range(self.first, self.first + len(self.count))

    def full(self, bucket):
        """The lower triangle of one bucket's matrix, shape (P + 1, P + 1), zeros above."""
        return unpacked(self.packed[bucket], self.side)


# ------------------------------------------------------------------------------------------ samples

def training_samples(volume, boundaries, method, name, buckets, wanted=None):
    """The training samples of a volume, sorted by bucket.

    Parameters
    ----------
    volume : LRVolume
        LR volume with its original.
    boundaries : Boundaries
    method : Method
    name : str
        Name of the volume. The random choice of voxels depends on it and on the seed.
    buckets : range
        Buckets to sum.
    wanted : ndarray of bool, shape (all buckets,), optional
        True for the buckets whose samples are returned; they must be among `buckets`.

    Returns
    -------
    TrainingSamples
    """
    inside = interior_voxels(volume.hr != 0, method.margin)
    voxels = sample_voxels(inside, method.sample_rate, method.seed, f"{name} learn")
    bucket = buckets_of(features(volume.lr, voxels, method), boundaries, method)
    if wanted is not None:
        voxels, bucket = voxels[wanted[bucket]], bucket[wanted[bucket]]
    return sorted_samples(volume, voxels, bucket - buckets.start, len(buckets), method)


def sorted_samples(volume, voxels, bucket, buckets, method):
    """`TrainingSamples` from voxels and their buckets; `buckets` is the number of buckets."""
    order, ends = bucket_order(bucket, buckets)
    voxels, lines = voxels[order], patch_lines(volume.lr.shape, method.filter_len)
    lr, hr, centred = readable(volume.lr), volume.hr.reshape(-1), method.solver == "ridge"
    return TrainingSamples(volume, voxels, ends, lambda samples, rows: gather(
        lr, hr, voxels[samples], *lines, centred, rows))


def bucket_order(bucket, buckets):
    """The order that sorts samples by bucket, and the start and end of each bucket.

    Returns
    -------
    order : ndarray of int64, shape (n,)
    ends : ndarray of int64, shape (buckets + 1,)
        In that order, bucket b has the samples from ``ends[b]`` up to ``ends[b + 1]``.
    """
    order = np.argsort(bucket, kind="stable")
    return order, np.searchsorted(bucket[order], np.arange(buckets + 1))


# --------------------------------------------------------------------------------------------- sums

def sum_rows(gram, ends, fill, advance=lambda samples: None):
    """Add products of samples to the Gram matrices (section 3.3), in parallel over buckets.

    Parameters
    ----------
    gram : Gram
        Changed in place.
    ends, fill
        See `TrainingSamples`. `fill` may write up to one vector beyond its last row.
    advance : callable, optional
        Called from time to time with the number of samples that were added.
    """
    def add_bucket(b, buffer, product):
        for start in range(ends[b], ends[b + 1], BLOCK):
            samples = slice(start, min(start + BLOCK, ends[b + 1]))
            count = samples.stop - start
            rows = buffer[:count * gram.side].reshape(count, gram.side)
            fill(samples, rows)
            gram_of_rows(rows, product)
            fold(product, gram.packed[b])
            advance(count)

    def buffers():
        return (np.empty(BLOCK * gram.side + LANES, np.float32),
                np.empty((gram.side, gram.side), np.float32))

    largest_first = sorted(np.flatnonzero(np.diff(ends)), key=lambda b: ends[b] - ends[b + 1])
    in_threads(largest_first, add_bucket, buffers, blas=True)
    gram.count += np.diff(ends)


# ------------------------------------------------------------------------------------------ solving

def solve(gram, method, advance=lambda buckets: None):
    """The filters of all buckets (section 3.3 of the paper).

    Returns
    -------
    h : ndarray of float32, shape (buckets, P)
        Filters for plain patches, with both solvers: SR = patch . h.
    """
    return solve_groups([gram], method, advance)


def solve_groups(grams, method, advance=lambda buckets: None, solve_buckets=None):
    """The filters of all buckets, as `solve`, from Gram matrices of several groups of buckets.

    Parameters
    ----------
    grams : iterable of Gram
        Groups of buckets in ascending order; together they contain all buckets. They are iterated
        twice; only one needs to be in memory at a time. The filters do not depend on the grouping.
    solve_buckets : callable, optional
        Replacement for `ridge_filters` with its arguments, for a GPU.
    """
    pooled, counts = pool(grams)
    if method.solver == "cg":
        h = np.concatenate([_solve_cg(gram, advance) for gram in grams])
        served = counts > 0
    else:
        g0 = ridge_filter(unpacked(pooled, method.taps + 1), method.ridge, np.zeros(method.taps))
        h = np.concatenate([_solve_ridge(gram, method.ridge, advance, g0,
                                         solve_buckets or ridge_filters) for gram in grams])
        served = counts >= min(ENOUGH_SAMPLES, counts.max())
    return h[nearest_buckets(served, method)].astype(np.float32)


def pool(grams):
    """The packed sum of all buckets' Gram matrices, and the number of samples of each bucket."""
    pooled, counts = None, []
    for gram in grams:
        counts.append(gram.count)
        if pooled is None:
            pooled = np.zeros(gram.packed.shape[1])
        used = np.flatnonzero(gram.count)

        def add_columns(span, pooled=pooled, packed=gram.packed, used=used):
            columns = slice(*span)
            for b in used:
                pooled[columns] += packed[b, columns]

        in_threads(spans(pooled.size, 1 << 15), add_columns)
    return pooled, np.concatenate(counts)


def _solve_cg(gram, advance):
    """Q h = V by conjugate gradients, as in the paper."""
    # Here: sparse matrices take a tenth of the time to start a command, and few commands need them.
    from scipy.sparse.linalg import LinearOperator, cg

    h = np.zeros((len(gram.count), gram.side - 1))

    def solve_bucket(b, matrix):
        unpack(gram.packed[b], matrix)
        q = LinearOperator((gram.side - 1,) * 2, lambda x: symmetric_product(matrix, x),
                           dtype=np.float64)
        h[b] = cg(q, matrix[-1, :-1], rtol=CG_RESIDUAL)[0]
        advance(1)

    in_threads(np.flatnonzero(gram.count), solve_bucket,
               lambda: (np.empty((gram.side, gram.side)),), blas=True)
    return h


def _solve_ridge(gram, weight, advance, g0, solve_buckets):
    """Filters by ridge regression on centred patches: (Q + w I) g = V + w g0.

    The ridge of weight w pulls each filter g toward g0, the filter of all samples. The filter g
    predicts HR - LR from the patch minus its centre. The filter for plain patches is g with
    1 - sum(g) added at the centre.
    """
    g = np.tile(g0, (len(gram.count), 1))
    solve_buckets(gram, np.flatnonzero(gram.count), weight, g0, g, advance)
    g[:, g.shape[1] // 2] += 1 - g.sum(1)
    return g


def ridge_filters(gram, buckets, weight, g0, g, advance):
    """Write the solution of (Q + w I) g = V + w g0 to ``g[b]`` for each b of `buckets`."""
    def solve_bucket(b, matrix):
        unpack(gram.packed[b], matrix)
        g[b] = ridge_filter(matrix, weight, g0)
        advance(1)

    in_threads(buckets, solve_bucket, lambda: (np.empty((gram.side, gram.side)),), blas=True)


def ridge_filter(matrix, weight, towards):
    """The g that minimises |b - a.g|^2 + weight |g - towards|^2.

    `matrix` is the lower triangle of the Gram matrix of [a, b]; it is overwritten. Its Cholesky
    factor contains the factor of Q, and in the last row the forward substitution of V.
    """
    matrix[-1, :-1] += weight * towards
    diagonal = np.einsum("ii->i", matrix)
    diagonal[:-1] += weight
    # This keeps the whole matrix positive definite: |L^-1 (V + w g0)|^2 <= (sum b b) + w |g0|^2.
    diagonal[-1] = 2 * diagonal[-1] + weight * (towards @ towards) + 1
    cholesky_in_place(matrix)
    return solve_transposed(matrix, matrix[-1, :-1].copy())


# ------------------------------------------------------------------------------------------ kernels

@njit(cache=True, nogil=True)
def gather(lr, hr, voxels, offsets, places, centred, rows):
    """Write rows [patch, target] of the voxels; with `centred`, minus the LR voxel at the centre.

    A vector is longer than a line of a patch: it writes some voxels beyond its line, and the next
    vector overwrites them. After the last row, `rows` must therefore have room for one more vector.
    """
    side = rows.shape[1]
    for n in range(voxels.size):
        at = voxels[n]
        base = lr[at] if centred else np.float32(0)
        for line in range(offsets.size):
            store(rows, n * side + places[line],
                  multiply_add(splat(np.float32(1)), load(lr, at + offsets[line]), splat(-base)))
        rows[n, side - 1] = hr[at] - base


@njit(cache=True, nogil=True)
def fold(product, packed):
    """Add the lower triangle of a float32 matrix to a packed float64 one."""
    place = 0
    for i in range(product.shape[0]):
        for j in range(i + 1):
            packed[place + j] += product[i, j]
        place += i + 1


def unpacked(packed, side):
    """The square matrix of a lower triangle that is packed row after row; zeros above."""
    matrix = np.zeros((side, side))
    unpack(packed, matrix)
    return matrix


@njit(cache=True, nogil=True)
def unpack(packed, matrix):
    """Fill the lower triangle of a matrix from its rows, packed one after another."""
    place = 0
    for i in range(matrix.shape[0]):
        for j in range(i + 1):
            matrix[i, j] = packed[place + j]
        place += i + 1


def apply_filters(lr, h, boundaries, method, apply=filter_voxels):
    """Give each voxel the filter of its bucket (section 3.4 of the paper).

    Parameters
    ----------
    lr : ndarray of float32, shape (X, Y, Z), in [0, 1]
        Cropped to the brain.
    h : ndarray of float32, shape (buckets, P)
    apply : callable, optional
        `filter_voxels`, or for a GPU a replacement with its arguments.

    Returns
    -------
    sr : ndarray of float32, shape (X, Y, Z), in [0, 1]
        Equal to `lr` outside the brain and near the faces of the box.
    """
    voxels = interior_voxels(lr != 0, method.margin)
    bucket = buckets_of(features(lr, voxels, method), boundaries, method)
    return apply(lr, voxels, bucket, h, method.filter_len)
