"""Back-projection: an estimate is corrected until it, degraded, is the low-resolution volume that was given.

How a volume was degraded is known: along each axis it was multiplied by a small matrix D. What an estimate x lacks is seen in
the residual y - D x, and brought back to the fine grid by the matrix M = C D^T (D C D^T + s I)^-1, the best linear guess when
neighbouring voxels covary like C. The fine volume is further known to be zero outside the brain and to lie in [0, 1];
alternating between what is known (projections onto convex sets) restores detail that no spline sees, without anything learned.
The momentum is that of Nesterov's accelerated gradient method.
"""
from functools import partial

import numpy as np
import scipy.fft
from numba import njit

from spline import apply_operators, banded
from threads import in_threads, spans

COVARIANCE_LENGTH, COVARIANCE_POWER = 5.0, 1.7  # voxels; of exp(-(distance / length)^power)
ITERATIONS = 10
PIECE = 1 << 17  # voxels that a thread takes at a time
RESIDUAL_NOISE = 1e-2  # s, of the variance of a voxel
NEGLIGIBLE = 1e-3  # weights of M below this share of its largest are left out: less than 0.001 dB


class Known:
    """What is known of a fine volume; `correction` of a subclass says what an estimate lacks.

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
        """Back-project so many times, and clip to what is known; a new array. No times: only clip."""
        for _ in range(times):
            estimate = _voxelwise(_known, estimate, self.correction(estimate), self.mask)
        return estimate if times else np.clip(estimate, 0, 1) * self.mask


class Projection(Known):
    """What a low-resolution volume says that came from the fine one by a matrix along each axis.

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
    """

    def __init__(self, low, degrading, box, mask):
        super().__init__(mask)
        self.down, self.back, seen = [], [], []
        for matrix, side in zip(degrading, box, strict=True):
            inside = matrix[:, side]
            rows = np.flatnonzero(np.abs(inside).max(1) > 0)
            seen.append(slice(int(rows[0]), int(rows[-1]) + 1))
            inside = inside[seen[-1]]
            self.down.append(banded(inside))
            matrix = returning(inside)
            matrix[np.abs(matrix) < NEGLIGIBLE * np.abs(matrix).max()] = 0  # here, so that both ends are treated alike
            self.back.append(banded(matrix))
        self.low = np.ascontiguousarray(low[tuple(seen)])

    def correction(self, estimate):
        """What an estimate lacks.

        Zeros of a low-resolution volume say nothing: a brain was cut out of it there, and what was measured is not known.
        """
        residual = np.where(self.low > 0, self.low - apply_operators(estimate, self.down), 0)
        return apply_operators(residual, self.back)


class SpectrumProjection(Known):
    """What the middle of a volume's spectrum says of it: the kept frequencies are replaced by the given ones.

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
        """What an estimate lacks."""
        full = np.zeros(self.shape, np.float32)
        full[self.box] = estimate
        lacks = np.zeros(self.shape, np.complex64)
        lacks[self.kept] = self.spectrum - scipy.fft.fftshift(scipy.fft.fftn(full, workers=-1))[self.kept]
        return np.ascontiguousarray(scipy.fft.ifftn(scipy.fft.ifftshift(lacks), workers=-1).real[self.box])


def middle(shape, kept):
    """Where in a centred spectrum of a shape the lowest frequencies lie, so many along each axis: a tuple of slices."""
    return tuple(slice(side // 2 - n // 2, side // 2 - n // 2 + n) for side, n in zip(shape, kept, strict=True))


def returning(degrading):
    """The matrix M that brings residuals of one axis back to the fine grid, shape (fine side, low side)."""
    apart = np.abs(np.subtract.outer(*2 * [np.arange(degrading.shape[1])]))
    covariance = np.exp(-((apart / COVARIANCE_LENGTH) ** COVARIANCE_POWER))
    across = covariance @ degrading.T
    return np.linalg.solve(degrading @ across + RESIDUAL_NOISE * np.eye(len(degrading)), across.T).T


def _voxelwise(kernel, *volumes):
    """What a kernel makes of volumes, voxel by voxel, in threads; of the shape and type of the first."""
    result = np.empty_like(volumes[0])
    flat = [volume.reshape(-1) for volume in (*volumes, result)]
    in_threads(spans(result.size, PIECE), lambda span: kernel(*(volume[slice(*span)] for volume in flat)))
    return result


@njit(cache=True, nogil=True)
def _known(estimate, correction, mask, result):
    """Add the correction, and clip to [0, 1] in the mask and to zero outside."""
    for n in range(estimate.size):
        value = estimate[n] + correction[n]
        result[n] = min(max(value, np.float32(0)), np.float32(1)) if mask[n] else np.float32(0)


@njit(cache=True, nogil=True)
def _ahead(momentum, now, before, result):
    """Go on beyond an estimate, the way that it came from the one before."""
    for n in range(now.size):
        result[n] = now[n] + momentum * (now[n] - before[n])
