"""The kernel that applies the filters (section 3.4 of the paper)."""
import numpy as np

from machine.kernels import njit
from machine.simd import LANES, load, multiply_add, total, zeros
from machine.threads import in_threads, spans
from published.patches import patch_lines, readable

TILE = 8192  # voxels per task: about fifty rows of a brain, whose patches fit in the cache


def filter_voxels(lr, voxels, bucket, h, filter_len):
    """A copy of `lr` in which each of `voxels` is ``patch . h[bucket]``, clipped to [0, 1]."""
    sr, lines = lr.copy(), h.reshape(len(h), filter_len**2, filter_len)
    padded = -filter_len % LANES
    # Lines of filters are padded to whole vectors; voxels after a line's end get a weight of zero.
    h = np.pad(lines, ((0, 0), (0, 0), (0, padded)))
    offsets, flat = patch_lines(lr.shape, filter_len)[0], readable(lr)

    def restore_tile(span):
        tile = slice(*span)
        _apply(flat, voxels[tile], bucket[tile], h, offsets, sr.reshape(-1))

    in_threads(spans(voxels.size, TILE), restore_tile)
    return sr


# ------------------------------------------------------------------------------------------ kernels

@njit(cache=True, nogil=True)
def _apply(lr, voxels, bucket, h, offsets, sr):
    """``sr[voxels] = patch . h[bucket]``, clipped to [0, 1].

    Voxels are visited bucket after bucket, four of one bucket at a time: a filter of 8 kB stays in
    the cache. Reading it from memory for each voxel would take longer than the products.
    """
    ends, order = np.zeros(h.shape[0] + 1, np.int64), np.empty(voxels.size, np.int64)
    for n in range(voxels.size):
        ends[bucket[n] + 1] += 1
    for b in range(h.shape[0]):
        ends[b + 1] += ends[b]
    for n in range(voxels.size):
        order[ends[bucket[n]]] = n
        ends[bucket[n]] += 1
    m = 0
    while m < voxels.size:
        b, at = bucket[order[m]], voxels[order[m]]
        first = b * offsets.size * LANES
        if m + 3 < voxels.size and bucket[order[m + 3]] == b:
            at1, at2, at3 = voxels[order[m + 1]], voxels[order[m + 2]], voxels[order[m + 3]]
            sum0, sum1, sum2, sum3 = zeros(), zeros(), zeros(), zeros()
            for line in range(offsets.size):
                weights, offset = load(h, first + line * LANES), offsets[line]
                sum0 = multiply_add(weights, load(lr, at + offset), sum0)
                sum1 = multiply_add(weights, load(lr, at1 + offset), sum1)
                sum2 = multiply_add(weights, load(lr, at2 + offset), sum2)
                sum3 = multiply_add(weights, load(lr, at3 + offset), sum3)
            sr[at], sr[at1] = clipped(sum0), clipped(sum1)
            sr[at2], sr[at3] = clipped(sum2), clipped(sum3)
            m += 4
        else:
            sum0 = zeros()
            for line in range(offsets.size):
                weights = load(h, first + line * LANES)
                sum0 = multiply_add(weights, load(lr, at + offsets[line]), sum0)
            sr[at] = clipped(sum0)
            m += 1


@njit(cache=True)
def clipped(vector):
    """The sum of a vector, clipped to [0, 1]."""
    return min(max(total(vector), np.float32(0)), np.float32(1))
