"""Random samples and sums, for the tests of matrix_compute.py and gpu/compute.py."""

import naive
import numpy as np

from filter_constant import Method
from get_lar import LRVolume
from hashtable import Boundaries
from matrix_compute import Gram, sorted_samples, sum_rows, training_samples

# 36 buckets each, of 28 x 28 and of 126 x 126.
SMALL = Method(filter_len=3, grad_len=3, q_angle_p=2, q_angle_t=2, sample_rate=1)
MEDIUM = Method(filter_len=5, grad_len=5, q_angle_p=2, q_angle_t=2, sample_rate=1)
BOUNDARIES = Boundaries(np.array([1e-3, 1e-2]), np.array([0.3, 0.6]))


def pair_of(lr, hr):
    return LRVolume(lr, lr, None, (slice(None),) * 3, lr.shape, 1.0, hr != 0, hr=hr)


def add(gram, pair, voxels, bucket, method, advance=lambda samples: None):
    """Add [patch, target] of these voxels to the Gram matrices of their buckets."""
    drawn = sorted_samples(pair, voxels, bucket, len(gram.count), method)
    sum_rows(gram, drawn.ends, drawn.fill, advance)


def accumulate(gram, volume, boundaries, method, name):
    """Add one volume's samples to the Gram matrices."""
    drawn = training_samples(volume, boundaries, method, name, gram.buckets)
    sum_rows(gram, drawn.ends, drawn.fill)


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


def random_gram(method, samples, seed=31, empty=()):
    """Well-conditioned Gram matrices with `samples` of every bucket but the empty ones."""
    rng = np.random.default_rng(seed)
    matrices = []
    for _ in range(method.buckets):
        rows = rng.standard_normal((samples, method.taps + 1))
        matrices.append(rows.T @ rows)
    gram = packed(matrices)
    gram.count[:] = samples
    for b in empty:
        gram.packed[b], gram.count[b] = 0, 0
    return gram


def random_samples(method=MEDIUM, seed=3, shape=(17, 18, 19)):
    """A random volume, voxels of it and a bucket for each; some buckets stay empty."""
    rng = np.random.default_rng(seed)
    pair = pair_of(*(rng.random(shape, np.float32) for _ in range(2)))
    inner = np.zeros(shape, bool)
    half = method.filter_len // 2
    inner[(slice(half, -half),) * 3] = True
    voxels = np.flatnonzero(inner)
    bucket = rng.integers(0, method.buckets - 1, voxels.size) // 2 * 2 % method.buckets
    return pair, voxels, bucket.astype(np.int32)
