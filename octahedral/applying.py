"""Apply the filters of a stage.

Each voxel gets the filter of its leaf (its class in a tree), turned to the voxel's orientation.

A filter covers a ball of voxels. A ball is the same in all 48 orientations, so the same lines of
eight voxels are loaded around every voxel, and only the weights of the filter are permuted. A
bucket is a pair of a leaf and an orientation. Voxels are processed bucket by bucket: the weights
are permuted once per bucket, and the results of four voxels are computed at a time.
"""
from typing import NamedTuple

import numpy as np

from machine.kernels import njit
from machine.simd import HALF, load_half, multiply_add, total, zeros_half
from machine.threads import in_threads, spans
from octahedral.scene import turned

ORIENTATIONS = 48
SPAN = 1 << 17  # voxels per task: many per bucket, but few enough that patches are close in memory


class Lines(NamedTuple):
    """The taps (voxels that a filter multiplies by a weight), as lines of `HALF` voxels."""

    in_estimate: np.ndarray  # (lines,) int64: flat offset from a voxel to each line's first voxel
    in_start: np.ndarray  # the same for lines of the initial estimate
    slots: np.ndarray  # (48, taps) int64: index of each turned tap among the voxels of the lines
    centre: int  # index of the centre voxel among the voxels of the lines


def lines_of(taps, shape):
    """The lines that contain the taps of a filter, and the indices of the turned taps in them.

    Parameters
    ----------
    taps : pair of ndarray of int, shape (taps, 3)
        Displacements in the current estimate (a ball of radius >= 1), and in the initial one.
    shape : tuple of three int
        Shape of the padded volume.

    Returns
    -------
    Lines

    Examples
    --------
    >>> from octahedral.scene import ball
    >>> lines = lines_of((ball(1, centre=False), ball(-1)), (9, 9, 9))
    >>> lines.in_estimate.tolist(), lines.centre
    ([-82, -10, -1, 8, 80], 17)
    >>> lines.slots[0].tolist()
    [1, 9, 16, 18, 25, 33]
    """
    begins, slots, before = [], [], 0
    for displacements in taps:
        reach = int(np.abs(displacements).max(initial=0))
        at = turned(displacements)
        across, line = np.unique(at[..., :2].reshape(-1, 2), axis=0, return_inverse=True)
        first = across @ np.array([shape[1] * shape[2], shape[2]]) - reach
        pieces = HALF * np.arange(-(-(2 * reach + 1) // HALF))  # starts of eight voxels each
        side = HALF * len(pieces)
        slots.append(before + line.reshape(at.shape[:2]) * side + at[..., 2] + reach)
        begins.append((first[:, None] + pieces).reshape(-1))
        if not before:  # the lines of the estimate are sorted, so the middle one has the centre
            centre = len(first) // 2 * side + reach
        before += len(first) * side
    return Lines(*begins, np.concatenate(slots, axis=1), centre)


def apply_turned(estimate, start, voxels, leaf, orientation, lines, weights, result):
    """Restore voxels: write the mean of the filter outputs of all trees to `result`.

    Parameters
    ----------
    estimate, start, result : ndarray of float32, flat
        Padded volumes; `start` is the initial estimate.
    voxels : ndarray of int64, shape (n,)
        Flat indices of the voxels to restore.
    leaf : ndarray of int32, shape (trees, n)
    orientation : ndarray of uint8, shape (n,)
    lines : Lines
    weights : ndarray of float32, shape (leaves, taps)
        Each weight multiplies a tap minus the voxel's estimate; the sum is added to the estimate.
    """
    buckets, sides = ORIENTATIONS * len(weights), len(lines.in_estimate) + len(lines.in_start)

    share = np.float32(1 / len(leaf))

    def restore_span(span, order, ends, filter_):
        part = slice(*span)
        result[voxels[part]] = 0
        for of_tree in leaf:
            _apply(estimate, start, voxels[part], of_tree[part], orientation[part], *lines, weights,
                   order, ends, filter_, share, result)

    in_threads(spans(voxels.size, SPAN), restore_span,
               lambda: (np.empty(min(SPAN, voxels.size), np.int64), np.empty(buckets + 1, np.int64),
                        np.empty(sides * HALF, np.float32)))


# ------------------------------------------------------------------------------------------ kernels

@njit(cache=True, nogil=True)
def _apply(x, start, voxels, leaf, orientation, in_estimate, in_start, slots, centre, weights,
           order, ends, filter_, share, result):
    """Add `share` times the output of one tree to `result`; `order`, `ends`, `filter_`: scratch."""
    ends[:] = 0
    for n in range(voxels.size):
        ends[leaf[n] * ORIENTATIONS + orientation[n] + 1] += 1
    for bucket in range(ends.size - 1):
        ends[bucket + 1] += ends[bucket]
    for n in range(voxels.size):
        bucket = leaf[n] * ORIENTATIONS + orientation[n]
        order[ends[bucket]] = voxels[n]
        ends[bucket] += 1
    m = 0
    for bucket in range(ends.size - 1):
        if m < ends[bucket]:
            _turn(weights[bucket // ORIENTATIONS], slots[bucket % ORIENTATIONS], centre, filter_)
        while m + 3 < ends[bucket]:
            at, at1, at2, at3 = order[m], order[m + 1], order[m + 2], order[m + 3]
            sum0, sum1, sum2, sum3 = zeros_half(), zeros_half(), zeros_half(), zeros_half()
            sum0, sum1, sum2, sum3 = _add_lines(x, in_estimate, filter_, 0, at, at1, at2, at3,
                                                sum0, sum1, sum2, sum3)
            sum0, sum1, sum2, sum3 = _add_lines(start, in_start, filter_, in_estimate.size,
                                                at, at1, at2, at3, sum0, sum1, sum2, sum3)
            result[at] += share * total(sum0)
            result[at1] += share * total(sum1)
            result[at2] += share * total(sum2)
            result[at3] += share * total(sum3)
            m += 4
        while m < ends[bucket]:
            at, sum0, place = order[m], zeros_half(), 0
            for line in range(in_estimate.size):
                w, offset = load_half(filter_, place), in_estimate[line]
                sum0 = multiply_add(w, load_half(x, at + offset), sum0)
                place += HALF
            for line in range(in_start.size):
                w, offset = load_half(filter_, place), in_start[line]
                sum0 = multiply_add(w, load_half(start, at + offset), sum0)
                place += HALF
            result[at] += share * total(sum0)
            m += 1


@njit(cache=True, inline="always")
def _add_lines(volume, lines, filter_, first, at, at1, at2, at3, sum0, sum1, sum2, sum3):
    """Add weights times lines to the sums of four voxels; their weights begin at line `first`."""
    for line in range(lines.size):
        w, offset = load_half(filter_, (first + line) * HALF), lines[line]
        sum0 = multiply_add(w, load_half(volume, at + offset), sum0)
        sum1 = multiply_add(w, load_half(volume, at1 + offset), sum1)
        sum2 = multiply_add(w, load_half(volume, at2 + offset), sum2)
        sum3 = multiply_add(w, load_half(volume, at3 + offset), sum3)
    return sum0, sum1, sum2, sum3


@njit(cache=True)
def _turn(weights, slots, centre, filter_):
    """Write the permuted weights; the centre gets the weight that makes the sum of weights 1."""
    filter_[:] = 0
    rest = 1.0
    for tap in range(weights.size):
        filter_[slots[tap]] = weights[tap]
        rest -= weights[tap]
    # In later stages the centre is also a tap of the initial estimate, but at another index.
    filter_[centre] = rest
