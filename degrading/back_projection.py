"""Back-projection: an estimate is corrected until, degraded, it equals the given LR volume.

How a volume was degraded is known: along each axis it was multiplied by a small matrix D. What an
estimate x lacks shows in the residual y - D x, which the matrix M = C D^T (D C D^T + s I)^-1 brings
back to the fine grid: the best linear guess where neighbouring voxels covary like C. The fine
volume is also known to be zero outside the brain and to lie in [0, 1]. Enforcing all of this in
turn (projections onto convex sets) restores detail that no spline can, without anything learned.
The momentum is that of Nesterov's accelerated gradient method.
"""
from functools import partial

import numpy as np
import scipy.fft

from degrading.banded import apply_operators, banded
from machine.kernels import njit
from machine.threads import in_threads, spans, thread_count

COVARIANCE_LENGTH, COVARIANCE_POWER = 5.0, 1.7  # voxels; of exp(-(distance / length)^power)
ITERATIONS = 10
PIECE = 1 << 17  # voxels that a thread takes at a time
RESIDUAL_NOISE = 1e-2  # s, of the variance of a voxel
NEGLIGIBLE = 1e-3  # of the largest weight of M: smaller ones are left out, for less than 0.001 dB


class DataConsistency:
    """What is known of a fine volume: zero outside a mask, in [0, 1], and what an LR volume says.

    The latter is for the subclass to say: its ``correction(estimate)`` is what to add to an
    estimate so that it agrees with the LR volume.

    Parameters
    ----------
    mask : ndarray of bool, shape of the estimates
        Where the fine volume may be other than zero.
    """

    def __init__(self, mask):
        self.mask = mask

    def start(self, iterations=ITERATIONS):
        """An estimate from what is known alone, in [0, 1]."""
        before = np.zeros(self.mask.shape, np.float32)
        ahead = before
        for i in range(iterations):
            estimate = self.refine(ahead)
            ahead = _voxelwise(partial(_ahead, np.float32(i / (i + 3))), estimate, before)
            before = estimate
        return estimate

    def refine(self, estimate, times=1):
        """Back-project so many times, each followed by a clip to mask and [0, 1]; a new array.

        With `times` 0 it only clips.
        """
        for _ in range(times):
            estimate = _voxelwise(_within_bounds, estimate, self.correction(estimate), self.mask)
        if not times:
            estimate = np.clip(estimate, 0, 1)
            estimate *= self.mask
        return estimate


class Projection(DataConsistency):
    """Agreement with an LR volume that came from the fine one by a matrix along each axis.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        In the units of the estimates: [0, 1].
    degrading : sequence of three ndarray of float64
        The matrix D of each axis, shape (side of low, side of the fine volume).
    box : tuple of three slice
        Where in the fine volume the estimates lie; it is zero elsewhere.
    mask : ndarray of bool, shape of the box
        Where the fine volume may be other than zero.

    Examples
    --------
    A cube is restored from means of 2 x 2 x 2 voxels:

    >>> fine = np.zeros((12, 12, 12), np.float32)
    >>> fine[3:9, 3:9, 3:9] = 1
    >>> mean_of_two = np.kron(np.eye(6), [0.5, 0.5])
    >>> low = apply_operators(fine, 3 * [banded(mean_of_two)])
    >>> box = 3 * (slice(0, 12),)
    >>> consistency = Projection(low, 3 * [mean_of_two], box, mask=fine > 0)
    >>> bool(np.abs(consistency.start() - fine).max() < 0.02)
    True
    """

    def __init__(self, low, degrading, box, mask):
        super().__init__(mask)
        self.down, self.back, seen = [], [], []
        for matrix, side in zip(degrading, box, strict=True):
            inside = matrix[:, side]
            rows = np.flatnonzero(np.abs(inside).max(1) > 0)
            # Where a thin box lies between two LR voxels, none sees it: take one that says nothing.
            seen.append(slice(int(rows[0]), int(rows[-1]) + 1) if rows.size else slice(0, 1))
            inside = inside[seen[-1]]
            self.down.append(banded(inside))
            matrix = returning(inside)
            # Here, not in `banded`, so that both ends of the axis are treated alike.
            matrix[np.abs(matrix) < NEGLIGIBLE * np.abs(matrix).max()] = 0
            self.back.append(banded(matrix))
        self.low = np.ascontiguousarray(low[tuple(seen)])

    def correction(self, estimate):
        """What to add to an estimate: its residual, brought back to the fine grid.

        Where the LR volume is zero it says nothing: a brain was cut out of it, and what had been
        measured there is not known.
        """
        residual = np.where(self.low > 0, self.low - apply_operators(estimate, self.down), 0)
        return apply_operators(residual, self.back)


class SpectrumProjection(DataConsistency):
    """Agreement with the middle of the fine volume's spectrum: its lowest frequencies are given.

    Parameters
    ----------
    spectrum : ndarray of complex64
        The middle of the centred spectrum of the fine volume, as ``fftn`` gives it.
    shape : tuple of int
        Of the fine volume.
    box, mask
        As for `Projection`.
    """

    def __init__(self, spectrum, shape, box, mask):
        super().__init__(mask)
        self.spectrum, self.shape, self.box = spectrum, shape, box
        self.kept = middle(shape, spectrum.shape)

    def correction(self, estimate):
        """What to add to an estimate: its kept frequencies become the given ones."""
        full = np.zeros(self.shape, np.float32)
        full[self.box] = estimate
        lacks = np.zeros(self.shape, np.complex64)
        lacks[self.kept] = self.spectrum - scipy.fft.fftshift(
            scipy.fft.fftn(full, workers=thread_count()))[self.kept]
        added = scipy.fft.ifftn(scipy.fft.ifftshift(lacks), workers=thread_count()).real
        return np.ascontiguousarray(added[self.box])


def middle(shape, kept):
    """Where the lowest frequencies lie in a centred spectrum: a tuple of slices.

    Parameters
    ----------
    shape : tuple of int
        Of the spectrum.
    kept : tuple of int
        How many frequencies along each axis.

    Examples
    --------
    >>> middle((8, 9), (4, 3))
    (slice(2, 6, None), slice(3, 6, None))
    """
    return tuple(slice(side // 2 - n // 2, side // 2 - n // 2 + n)
                 for side, n in zip(shape, kept, strict=True))


def returning(degrading):
    """The matrix M that brings residuals along one axis back to the fine grid.

    Parameters
    ----------
    degrading : ndarray of float64, shape (low side, fine side)
        The matrix D.

    Returns
    -------
    matrix : ndarray of float64, shape (fine side, low side)

    Examples
    --------
    What it brings back is, degraded, the residual again, less what is taken for noise:

    >>> mean_of_two = np.kron(np.eye(4), [0.5, 0.5])
    >>> np.allclose(mean_of_two @ returning(mean_of_two), np.eye(4), atol=0.15)
    True
    """
    apart = np.abs(np.subtract.outer(*2 * [np.arange(degrading.shape[1])]))
    covariance = np.exp(-((apart / COVARIANCE_LENGTH) ** COVARIANCE_POWER))
    across = covariance @ degrading.T
    noise = RESIDUAL_NOISE * np.eye(len(degrading))
    return np.linalg.solve(degrading @ across + noise, across.T).T


def _voxelwise(kernel, *volumes):
    """Apply a kernel voxel by voxel, in threads; the result is like the first volume."""
    result = np.empty_like(volumes[0])
    flat = [volume.reshape(-1) for volume in (*volumes, result)]
    in_threads(spans(result.size, PIECE),
               lambda span: kernel(*(volume[slice(*span)] for volume in flat)))
    return result


@njit(cache=True, nogil=True)
def _within_bounds(estimate, correction, mask, result):
    """Add the correction, and clip to [0, 1] in the mask and to zero outside."""
    for n in range(estimate.size):
        value = estimate[n] + correction[n]
        result[n] = min(max(value, np.float32(0)), np.float32(1)) if mask[n] else np.float32(0)


@njit(cache=True, nogil=True)
def _ahead(momentum, now, before, result):
    """Nesterov's extrapolation: beyond an estimate, along its step from the one before."""
    for n in range(now.size):
        result[n] = now[n] + momentum * (now[n] - before[n])
