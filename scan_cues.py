"""What an LR volume shows of itself: its noise, and how much is left of its finest detail.

Nobody says how a scan was blurred, nor how noisy it is. These numbers are read off the volume in
learning as in restoring, and trees may split on them: which filters fit is learned, not decided.
All but the first two are ratios of energies near the end of the spectrum, where profiles differ
most and anatomy and scanner least.
"""
import numpy as np
from scipy.ndimage import uniform_filter

CUE_NAMES = (
    "cue_floor",  # standard deviation of what is finest, in the flattest tenth of the brain
    "cue_noise",  # the same, less what structure leaves in it: the noise
    "cue_fourth",  # log energy of fourth differences along refined axes, over that of second ones
    "cue_second",  # log energy of second differences, over that of first ones
    "cue_flat",  # log energy of the floor, over that of fourth differences
    "cue_grain",  # the same of all voxels instead of the flattest
)
FLOOR, NOISE = 0, 1  # places of the first two
SECOND = np.array([1.0, -2.0, 1.0]) / np.sqrt(6.0)  # of unit energy: noise keeps its size
FLATTEST, FLAT = 0.1, 0.3  # shares of the brain's voxels
NOISE_GAIN = 2.54  # of flattest^2; less NOISE_GAIN - 1 of flat^2: structure cancels
MEDIAN_OF_NORMAL = 0.6745  # median of |x|, x of standard deviation 1
REACH = 4  # LR voxels on either side of one
WINDOWS = 60_000  # voxels per axis whose surroundings are looked at


def cues_of(unit, factor):
    """The cues of an LR volume.

    Parameters
    ----------
    unit : ndarray of float32, shape (x, y, z), in [0, 1]
        Background 0.
    factor : tuple of three int
        Blur is looked for along axes whose factor is above 1.

    Returns
    -------
    cues : ndarray of float32, shape (len(CUE_NAMES),)
        Zeros where the volume is too small to tell.

    Examples
    --------
    >>> unit = np.random.default_rng(0).normal(0.5, 0.03, (48, 48, 48)).astype(np.float32)
    >>> round(float(cues_of(unit, (2, 2, 2))[NOISE]), 2)
    0.03
    """
    floor, noise, grain = noise_of(unit)
    axes = [_along(np.moveaxis(unit, axis, -1)) for axis in range(3) if factor[axis] > 1]
    axes = [found for found in axes if found is not None]
    if not axes:
        return np.array([floor, noise, *[0] * (len(CUE_NAMES) - 2)], np.float32)
    first, second, fourth = np.mean(axes, axis=0)
    return np.array([floor, noise, np.log(fourth / second), np.log(second / first),
                     np.log(floor**2 / fourth + 1e-4), np.log(grain**2 / fourth + 1e-4)],
                    np.float32)


def noise_of(unit):
    """The standard deviation of what is finest, and of the noise in it.

    The volume is filtered by second differences along all three axes, which leaves little but
    noise; the median over flat places is robust against the rest. What structure does leave grows
    from the flattest tenth of the voxels to the flattest three tenths, and is extrapolated away.

    Parameters
    ----------
    unit : ndarray of float32, shape (x, y, z)
        Background 0.

    Returns
    -------
    floor, noise, grain : float
        In the units of the volume: of the flattest places, of the noise, of all places.
    """
    if min(unit.shape) < 3:
        return 0.0, 0.0, 0.0
    finest, smooth, inside = unit, unit, (unit > 0).astype(np.float32)
    for axis in range(3):
        finest = _three_taps(finest, SECOND.astype(np.float32), axis)
        smooth = _three_taps(smooth, np.full(3, 1 / 3, np.float32), axis)
        inside = _three_taps(inside, np.ones(3, np.float32), axis)
    inside = inside > 26.5  # all 27 voxels
    if min(smooth.shape) < 2 or not inside.any():
        return 0.0, 0.0, 0.0
    slope = sum(np.square(np.gradient(smooth, axis=axis)) for axis in range(3))
    slope, finest = uniform_filter(slope, 3)[inside], np.abs(finest[inside])
    flattest, flat = (np.median(finest[slope <= limit]) / MEDIAN_OF_NORMAL
                      for limit in np.quantile(slope, [FLATTEST, FLAT]))
    noise = np.sqrt(max(NOISE_GAIN * flattest**2 - (NOISE_GAIN - 1) * flat**2, 0))
    grain = np.median(finest) / MEDIAN_OF_NORMAL
    return float(flattest), float(noise), float(grain)


def _three_taps(volume, weights, axis):
    """Correlate with three weights along an axis, without the ends."""
    count = volume.shape[axis] - 2
    parts = (weights[k] * volume.take(range(k, k + count), axis) for k in range(3))
    return sum(parts)


def _along(volume):
    """Energies of first, second, fourth differences along the last axis; None if too small."""
    length = 2 * REACH + 1
    if volume.shape[2] < length:
        return None
    inside = np.cumsum(np.pad(volume > 0, ((0, 0), (0, 0), (1, 0))), axis=2, dtype=np.int32)
    places = np.flatnonzero(inside[..., length:] - inside[..., :-length] == length)
    if not places.size:
        return None
    places = places[::max(places.size // WINDOWS, 1)]
    windows = np.lib.stride_tricks.sliding_window_view(volume, length, axis=2)
    x = windows[np.unravel_index(places, windows.shape[:3])].astype(np.float64).T  # (9, n)
    first = np.mean(np.square(x[5] - x[4]))
    second = np.mean(np.square(x[3] - 2 * x[4] + x[5]))
    fourth = np.mean(np.square(x[2] - 4 * x[3] + 6 * x[4] - 4 * x[5] + x[6]))
    return [max(energy, 1e-12) for energy in (first, second, fourth)]  # where nothing varies
