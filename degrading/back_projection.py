"""Back-projection: correct an estimate until its degraded version equals the LR volume.

The degradation of the LR volume y is known: along each axis it multiplies by a small matrix D. The
residual of an estimate x is y - D x. The matrix M = C D^T (D C D^T + s I)^-1 brings the residual
back to the fine grid. The sum of x and the result is the best linear estimate, if C is the
covariance of neighbouring voxels. Two more constraints are known: the fine volume is zero outside
the brain, and lies in [0, 1]. All constraints are enforced in turn (projections onto convex sets).
This restores detail that no spline restores, without training. Nesterov's momentum speeds it up.
"""
from functools import partial

import numpy as np
import scipy.fft

from degrading.banded import apply_operators, banded
from machine.kernels import njit
from machine.threads import in_threads, spans, thread_count

COVARIANCE_LENGTH, COVARIANCE_POWER = 5.0, 1.7  # C is exp(-(distance in voxels / length)^power)
ITERATIONS = 10
PIECE = 1 << 17  # voxels per task of a thread
RESIDUAL_NOISE = 1e-2  # s in the formula above, relative to the variance of a voxel
NEGLIGIBLE = 1e-3  # M's weights below this share of its largest become 0: PSNR falls by < 0.001 dB


class DataConsistency:
    """Constraints on a fine volume: it is zero outside a mask, lies in [0, 1] and agrees with LR.

    A subclass for one type of LR volume has a method ``correction(estimate)``. It returns a volume
    that is added to the estimate, so that the sum agrees with the LR volume.

    Parameters
    ----------
    mask : ndarray of bool, shape of the estimates
        True where the fine volume may differ from zero.
    """

    def __init__(self, mask):
        self.mask = mask

    def start(self, iterations=ITERATIONS):
        """The initial estimate by projections: made from the constraints alone, in [0, 1]."""
        before = np.zeros(self.mask.shape, np.float32)
        ahead = before
        for i in range(iterations):
            estimate = self.refine(ahead)
            ahead = _voxelwise(partial(_ahead, np.float32(i / (i + 3))), estimate, before)
            before = estimate
        return estimate

    def refine(self, estimate, times=1):
        """Back-project `times` times, with clipping to the mask and [0, 1]; returns a new array.

        If `times` is 0, the estimate is only clipped.
        """
        for _ in range(times):
            estimate = _voxelwise(_within_bounds, estimate, self.correction(estimate), self.mask)
        if not times:
            estimate = np.clip(estimate, 0, 1)
            estimate *= self.mask
        return estimate


class Projection(DataConsistency):
    """Agreement with an LR volume that was degraded by a matrix along each axis.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        LR volume in the units of the estimates: [0, 1].
    operators : sequence of three
        The result of `operators_between` for each axis: for the matrix of the degradation along it,
        and the position of the estimates in the fine volume, which is zero elsewhere.
    mask : ndarray of bool, shape of the estimates
        True where the fine volume may differ from zero.

    Examples
    --------
    A cube is restored from means of 2 x 2 x 2 voxels:

    >>> fine = np.zeros((12, 12, 12), np.float32)
    >>> fine[3:9, 3:9, 3:9] = 1
    >>> mean_of_two = np.kron(np.eye(6), [0.5, 0.5])
    >>> low = apply_operators(fine, 3 * [banded(mean_of_two)])
    >>> operators = 3 * [operators_between(mean_of_two, slice(0, 12))]
    >>> consistency = Projection(low, operators, mask=fine > 0)
    >>> bool(np.abs(consistency.start() - fine).max() < 0.02)
    True
    """

    def __init__(self, low, operators, mask):
        super().__init__(mask)
        seen, self.down, self.back = zip(*operators, strict=True)
        self.low = np.ascontiguousarray(low[tuple(seen)])

    def correction(self, estimate):
        """The residual of an estimate, brought back to the fine grid."""
        return apply_operators(self.residual(estimate), self.back)

    def residual(self, estimate):
        """The LR volume minus the degraded estimate.

        It is 0 where the LR volume is zero: there the background was removed, so the measured
        values are unknown.
        """
        return np.where(self.low > 0, self.low - self.expected(estimate), 0)

    def expected(self, estimate):
        """The LR volume that is expected if the estimate is true."""
        return apply_operators(estimate, self.down)


class SpectrumProjection(DataConsistency):
    """Agreement with an LR volume that consists of the lowest frequencies of the fine volume.

    Parameters
    ----------
    spectrum : ndarray of complex64
        The middle of the centred spectrum of the fine volume, in the scaling of ``fftn``.
    shape : tuple of int
        Shape of the fine volume.
    box, mask
        See `Projection`.
    """

    def __init__(self, spectrum, shape, box, mask):
        super().__init__(mask)
        self.spectrum, self.shape, self.box = spectrum, shape, box
        self.kept = middle(shape, spectrum.shape)

    def correction(self, estimate):
        """The volume to add to an estimate, so that the sum has the known lowest frequencies."""
        full = np.zeros(self.shape, np.float32)
        full[self.box] = estimate
        lacks = np.zeros(self.shape, np.complex64)
        lacks[self.kept] = self.spectrum - scipy.fft.fftshift(
            scipy.fft.fftn(full, workers=thread_count()))[self.kept]
        added = scipy.fft.ifftn(scipy.fft.ifftshift(lacks), workers=thread_count()).real
        return np.ascontiguousarray(added[self.box])


def middle(shape, kept):
    """Index (a tuple of slices) of the lowest frequencies in a centred spectrum.

    Parameters
    ----------
    shape : tuple of int
        Shape of the spectrum.
    kept : tuple of int
        Number of frequencies along each axis.

    Examples
    --------
    >>> middle((8, 9), (4, 3))
    (slice(2, 6, None), slice(3, 6, None))
    """
    return tuple(slice(side // 2 - n // 2, side // 2 - n // 2 + n)
                 for side, n in zip(shape, kept, strict=True))


def operators_between(degrading, side, residual_noise=RESIDUAL_NOISE):
    """The operators along one axis from a box to the LR volume, and back.

    Parameters
    ----------
    degrading : ndarray of float64, shape (low side, fine side)
        The matrix D.
    side : slice
        Position of the box along the axis.
    residual_noise : float, optional
        See `returning`.

    Returns
    -------
    seen : slice
        Voxels of the LR volume that depend on the box.
    down, back : banded.Operator
    """
    inside = degrading[:, side]
    rows = np.flatnonzero(np.abs(inside).max(1) > 0)
    # A thin box may lie between two LR voxels. Then one LR voxel with zero weights is kept.
    seen = slice(int(rows[0]), int(rows[-1]) + 1) if rows.size else slice(0, 1)
    matrix = returning(inside[seen], residual_noise)
    # Small weights are set to 0 here, because `banded` keeps all weights within its band.
    matrix[np.abs(matrix) < NEGLIGIBLE * np.abs(matrix).max()] = 0
    return seen, banded(inside[seen]), banded(matrix)


def returning(degrading, residual_noise=RESIDUAL_NOISE):
    """The matrix M that brings residuals along one axis back to the fine grid.

    Parameters
    ----------
    degrading : ndarray of float64, shape (low side, fine side)
        The matrix D.
    residual_noise : float, optional
        The s in the formula of this module, relative to the variance of a voxel.

    Returns
    -------
    matrix : ndarray of float64, shape (fine side, low side)

    Examples
    --------
    The degraded output equals the residual, except for a small part that counts as noise:

    >>> mean_of_two = np.kron(np.eye(4), [0.5, 0.5])
    >>> np.allclose(mean_of_two @ returning(mean_of_two), np.eye(4), atol=0.15)
    True
    """
    covariance = covariance_at(np.subtract.outer(*2 * [np.arange(degrading.shape[1])]))
    across = covariance @ degrading.T
    noise = residual_noise * np.eye(len(degrading))
    return np.linalg.solve(degrading @ across + noise, across.T).T


def covariance_at(apart):
    """Covariance of two voxels at a distance in voxels, relative to the variance of a voxel."""
    return np.exp(-((np.abs(apart) / COVARIANCE_LENGTH) ** COVARIANCE_POWER))


def _voxelwise(kernel, *volumes):
    """Apply a kernel voxel by voxel, in threads; returns a volume like the first one."""
    result = np.empty_like(volumes[0])
    flat = [volume.reshape(-1) for volume in (*volumes, result)]
    in_threads(spans(result.size, PIECE),
               lambda span: kernel(*(volume[slice(*span)] for volume in flat)))
    return result


@njit(cache=True, nogil=True)
def _within_bounds(estimate, correction, mask, result):
    """Add the correction; clip to [0, 1] inside the mask and set to zero outside."""
    for n in range(estimate.size):
        value = estimate[n] + correction[n]
        result[n] = min(max(value, np.float32(0)), np.float32(1)) if mask[n] else np.float32(0)


@njit(cache=True, nogil=True)
def _ahead(momentum, now, before, result):
    """Nesterov's extrapolation beyond an estimate, along the step from the previous estimate."""
    for n in range(now.size):
        result[n] = now[n] + momentum * (now[n] - before[n])
