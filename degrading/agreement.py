"""Correct a restored volume by the scan it came from, if the slice profile of the scan is known.

The restored volume, degraded by the profile, should equal the scan except for noise. What noise
cannot explain of the difference is brought back to the fine grid (data consistency).
"""
import numpy as np
import scipy.fft

from degrading.back_projection import Projection, covariance_at, operators_between
from degrading.cosine import CosineOperator
from degrading.slice_profile import mirrored_matrix, profile_of, transfer
from machine.threads import thread_count

# s in the formula of degrading/back_projection.py. It is small, because noise is weighted here.
RESIDUAL_NOISE = 3e-3
CORRELATED = 50  # voxels; the covariance of voxels that are farther apart is negligible
BANDS = 12  # bands of frequencies of about the same length, up to the highest frequency of an axis
HIGHEST = 16  # first band of the highest frequencies, in the corners of the spectrum
TINY = 1e-30  # avoids a division by zero


class NoisyProjection(Projection):
    """Agreement with a noisy LR volume: only what noise cannot explain of the residual is used.

    Each frequency of the residual is weighted as in a Wiener filter, by 1 - noise / power, or 0 if
    this is negative. The power is the mean over frequencies of about the same length. A residual
    that is noise alone has the weight 0, so that noise is not put back. The finest detail of a
    scan is taken for noise in part; the residual at the highest frequencies, where tissue has
    hardly any power, shows if the noise is lower.

    The fine volume is mirrored at its ends, because a scan may end within the brain.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        LR volume in [0, 1].
    profiles : sequence of three str
        Slice profile of each axis.
    factor : sequence of three int
    box, mask
        See `degrading.back_projection.Projection`.
    noise : float
        Standard deviation of the Rician noise of `low`, as estimated.

    Examples
    --------
    Of a residual of noise alone, nearly nothing is left:

    >>> noise = np.random.default_rng(0).normal(0, 0.1, (20, 20, 20)).astype(np.float32)
    >>> bool(beyond_noise(noise, noise.size, 0.1).std() < 0.03)
    True
    >>> bool(beyond_noise(noise, noise.size, 0.01).std() > 0.09)
    True
    """

    def __init__(self, low, profiles, factor, box, mask, noise):
        axes = zip(low.shape, factor, profiles, box, strict=True)
        super().__init__(low, [axis_operators(*axis) for axis in axes], mask)
        self.noise = np.float32(noise)

    def expected(self, estimate):
        # Noise raises the mean of a magnitude; this is close to the mean for any intensity.
        return np.hypot(super().expected(estimate), self.noise)

    def residual(self, estimate):
        return beyond_noise(super().residual(estimate), np.count_nonzero(self.low), self.noise)


def axis_operators(thick, factor, profile, side):
    """The operators along one axis, see `degrading.back_projection.operators_between`.

    Parameters
    ----------
    thick : int
        Number of LR voxels.
    factor : int
    profile : str
    side : slice
        Position of the box along the axis.
    """
    if profile_of(profile).kind != "kspace" or factor == 1:
        matrix = mirrored_matrix(thick * factor, factor, profile)
        return operators_between(matrix, side, RESIDUAL_NOISE)
    fine, seen = thick * factor, slice(0, thick)
    kept = transfer(profile, np.arange(thick) / thick)
    scale = np.sqrt(thick / fine)  # of waves of length 1 on both grids
    apart = np.arange(-CORRELATED, CORRELATED + 1)
    power = np.cos(np.pi / fine * np.outer(np.arange(thick), apart)) @ covariance_at(apart)
    # The formula of degrading/back_projection.py for each wave: these matrices mix no waves.
    back = power * scale * kept / (power * (scale * kept) ** 2 + RESIDUAL_NOISE)
    return (seen, CosineOperator(np.float32(scale * kept), fine, thick, side, seen),
            CosineOperator(np.float32(back), thick, fine, seen, side))


def beyond_noise(residual, voxels, noise):
    """The part of a residual that noise cannot explain, see `NoisyProjection`.

    Parameters
    ----------
    residual : ndarray of float32, shape (x, y, z)
    voxels : int
        Number of voxels with a residual; the other voxels are 0.
    noise : float
        Standard deviation of the noise.

    Returns
    -------
    ndarray of float32, shape (x, y, z)
    """
    spectrum = scipy.fft.rfftn(residual, workers=thread_count())
    along = [np.square(2 * scipy.fft.fftfreq(side)) for side in residual.shape[:2]]
    along.append(np.square(2 * scipy.fft.rfftfreq(residual.shape[2])))
    across = np.add.outer(*along[1:])
    # `rfftn` leaves out the waves that are the mirror image of another wave.
    waves_of = np.full(across.shape, 2.0)
    waves_of[:, 0] = 1
    if residual.shape[2] % 2 == 0:
        waves_of[:, -1] = 1
    power, count = np.zeros((2, 2 * BANDS))

    def bands_of(plane):
        return (BANDS * np.sqrt(along[0][plane] + across)).astype(int)

    for plane, waves in enumerate(spectrum):
        bands = bands_of(plane).ravel()
        power += np.bincount(bands, (waves_of * np.square(np.abs(waves))).ravel(), 2 * BANDS)
        count += np.bincount(bands, waves_of.ravel(), 2 * BANDS)
    variance = np.square(np.float64(noise))
    if highest := voxels * count[HIGHEST:].sum():
        variance = min(variance, power[HIGHEST:].sum() / highest)
    kept = np.clip(1 - count * voxels * variance / np.maximum(power, TINY), 0, 1)
    kept = kept.astype(np.float32)
    for plane, waves in enumerate(spectrum):
        waves *= kept[bands_of(plane)]
    return scipy.fft.irfftn(spectrum, residual.shape, workers=thread_count())
