"""Banded matrices (nonzero only near the diagonal), and their products with volumes along axes."""
from dataclasses import dataclass

import numpy as np

from machine.kernels import njit
from machine.threads import in_threads, spans

COLUMN = 2048  # voxels per step: they stay in the first-level cache while weights are applied
COLUMNS = 128  # columns of a full matrix in memory at a time, while its band is determined
NEGLIGIBLE = 1e-7  # smaller weights outside the band are dropped: a spline's decrease fast
ROWS = 64  # smallest number of output rows or planes per task of a thread


@dataclass(frozen=True)
class Operator:
    """A banded matrix: output i is the sum over t of ``weights[i, t] * input[start[i] + t]``."""

    start: np.ndarray  # (n_out,) int64
    weights: np.ndarray  # (n_out, taps) float32
    n_in: int

    @property
    def n_out(self):
        """Number of voxels of the output along the axis."""
        return len(self.start)

    def apply(self, volume, axis):
        """Apply the operator along an axis of a volume of float32; returns another volume."""
        if self.n_in == self.n_out and self.weights.shape[1] == 1 and (self.weights == 1).all():
            return volume  # the identity
        shape = (*volume.shape[:axis], self.n_out, *volume.shape[axis + 1:])
        result = np.empty(shape, np.float32)
        if axis == 2:
            source, target = volume.reshape(-1, self.n_in), result.reshape(-1, shape[2])
            kernel = _along_rows
        else:
            before = int(np.prod(shape[:axis]))
            source = volume.reshape(before, self.n_in, -1)
            target = result.reshape(before * shape[axis], -1)
            kernel = _across_rows
        rows = len(target)
        in_threads(spans(rows, max(ROWS, -(-rows // 64))),
                   lambda span: kernel(source, self.start, self.weights, target, *span))
        return result


def identity(side):
    """The identity as a banded matrix."""
    return Operator(np.arange(side), np.ones((side, 1), np.float32), side)


def banded(matrix):
    """Convert a matrix to the narrowest band that holds all weights larger than NEGLIGIBLE."""
    n_out, n_in = matrix.shape
    used = np.abs(matrix) > NEGLIGIBLE
    start = used.argmax(1)
    taps = int((n_in - used[:, ::-1].argmax(1) - start).max())
    start = np.minimum(start, n_in - taps)
    weights = np.take_along_axis(matrix, start[:, None] + np.arange(taps), axis=1)
    return Operator(start, np.ascontiguousarray(weights, np.float32), n_in)


def banded_by_columns(n_out, n_in, columns):
    """The same as `banded`, with only some columns of the matrix in memory at a time.

    Parameters
    ----------
    n_out, n_in : int
        Shape of the matrix.
    columns : callable
        ``columns(first, last)`` returns these columns of the matrix (`last` excluded) as an ndarray
        of float64. It is called twice for each group of columns.

    Returns
    -------
    Operator

    Examples
    --------
    >>> matrix = np.eye(300) + np.eye(300, k=1)
    >>> found = banded_by_columns(300, 300, lambda first, last: matrix[:, first:last])
    >>> bool((found.weights == banded(matrix).weights).all())
    True
    """
    start, stop = np.full(n_out, n_in), np.zeros(n_out, int)
    for first, last in spans(n_in, COLUMNS):
        used = np.abs(columns(first, last)) > NEGLIGIBLE
        rows = np.flatnonzero(used.any(1))
        start[rows] = np.minimum(start[rows], first + used[rows].argmax(1))
        stop[rows] = last - used[rows][:, ::-1].argmax(1)
    start[stop == 0], stop[stop == 0] = 0, n_in  # rows without weights, as in `banded`
    taps = int((stop - start).max())
    start = np.minimum(start, n_in - taps)
    weights = np.empty((n_out, taps), np.float32)
    for first, last in spans(n_in, COLUMNS):
        part = columns(first, last)
        for tap in range(taps):
            place = start + tap - first
            rows = np.flatnonzero((place >= 0) & (place < last - first))
            weights[rows, tap] = part[rows, place[rows]]
    return Operator(start, weights, n_in)


def apply_operators(volume, operators):
    """Apply one operator per axis.

    Parameters
    ----------
    volume : ndarray of float32, shape (X, Y, Z)
    operators : sequence of three Operator or cosine.CosineOperator

    Returns
    -------
    ndarray of float32, C-contiguous

    Examples
    --------
    >>> mean_of_two = banded(np.kron(np.eye(2), [0.5, 0.5]))
    >>> volume = np.broadcast_to(np.arange(4), (4, 4, 4))
    >>> apply_operators(volume, 3 * [mean_of_two])[0, 0]
    array([0.5, 2.5], dtype=float32)
    """
    volume = np.ascontiguousarray(volume, np.float32)
    # Axes whose operator makes the volume smallest come first. The operator of the last axis is
    # slowest: it comes last if operators shrink the volume, and first if they enlarge it.
    growth = [operator.n_out / operator.n_in for operator in operators]
    for axis in sorted(range(3), key=lambda a: (growth[a], a) if min(growth) < 1 else -a):
        volume = operators[axis].apply(volume, axis)
    return volume


@njit(cache=True, nogil=True, fastmath=True)
def _across_rows(volume, start, weights, result, first, last):
    n_out, taps = weights.shape
    for begin in range(0, result.shape[1], COLUMN):
        end = min(begin + COLUMN, result.shape[1])
        for row in range(first, last):
            a, o, target = row // n_out, row % n_out, result[row, begin:end]
            target[:] = 0
            for t in range(taps):
                weight, source = weights[o, t], volume[a, start[o] + t, begin:end]
                if weight != 0:
                    for k in range(target.size):
                        target[k] += weight * source[k]


@njit(cache=True, nogil=True, fastmath=True)
def _along_rows(volume, start, weights, result, first, last):
    n_out, taps = weights.shape
    for row in range(first, last):
        for o in range(n_out):
            total = np.float32(0)
            for t in range(taps):
                total += weights[o, t] * volume[row, start[o] + t]
            result[row, o] = total
