"""Noise and blur descriptors of an LR volume: its noise, its spectrum and the shape of its edges.

The blur and the noise of a scan are unknown. The descriptors are computed from the scan in training
and in restoring. profile_reader.py estimates the slice profile from all descriptors. The decision
trees split on this estimate and on the first two descriptors, to choose filters for the scan.
"""
import numpy as np
from scipy.ndimage import uniform_filter
from skimage.filters import threshold_otsu

from util import bright_level_of_scan

DESCRIPTOR_NAMES = (
    "floor",  # standard deviation of the finest detail, in the flattest tenth of the brain
    "noise",  # noise: the floor without the contribution of structure
    "second",  # log energy ratio: second differences over differences across two voxels
    "lag",  # log energy ratio: differences across four voxels over those across two
    "edge_2",  # rise of strong edges across four voxels over the rise across two
    "edge_3",  # rise of strong edges across six voxels over the rise across two
    "grain",  # log energy ratio: floor over differences across two voxels
    "fourth",  # log energy ratio: fourth differences over differences across two voxels
    *(f"spectrum_{k}" for k in range(3, 17)),  # log power at k / 16 of the highest frequency
)
SPECTRUM = np.arange(3, 17) / 16  # frequencies of spectrum_*, relative to the highest frequency
SPECTRAL = len(DESCRIPTOR_NAMES) - len(SPECTRUM)  # index of the first spectral descriptor
FLOOR, NOISE = 0, 1  # indices of the first two descriptors
SECOND = np.array([1.0, -2.0, 1.0]) / np.sqrt(6.0)  # unit energy: noise keeps its sigma
FLATTEST, FLAT = 0.1, 0.3  # shares of the brain's voxels: flattest regions, and flat regions
NOISE_GAIN = 2.54  # noise^2 = gain flattest^2 - (gain - 1) flat^2 removes the part of structure
MEDIAN_OF_NORMAL = 0.6745  # rounded, as when the project's filters were learned; see util.py
REACH = 4  # differences reach this many LR voxels to either side of a voxel
WINDOWS = 60_000  # largest number of voxels per axis at which differences are computed
LINE, LINE_STEP = 32, 4  # voxels of a line for the spectrum; voxels from one start to the next
SHORT_LINE, SHORT_FROM = 16, 3  # shorter lines, and from which factor on: brains have few voxels
LINES, LEAST_LINES = 20_000, 50  # largest and smallest number of lines per axis
LEAST_SIGNAL = 0.05  # smallest share of the power at a frequency that counts as signal
STRONG = 0.9  # differences above this quantile count as strong edges
HEAD_ZEROS = 0.1  # in a head with noisy air, a smaller share of the voxels is zero
MOST_BRAIN = 2.2e6  # cubic millimetres; a human brain with its fluid has up to 2 litres
AIR = 1 / 3  # largest ratio in a head with noisy air: median of its dark over its bright voxels


def descriptors_of(unit, factor):
    """The descriptors of an LR volume.

    Parameters
    ----------
    unit : ndarray of float32, shape (x, y, z), in [0, 1]
        The background is 0.
    factor : tuple of three int
        Blur is measured along axes whose factor is above 1.

    Notes
    -----
    For a whole head in noisy air only the bright part is used, because the noise of air differs
    from that of tissue, and hides the shape of edges.

    Returns
    -------
    descriptors : ndarray of float32, shape (len(DESCRIPTOR_NAMES),)
        A descriptor is 0 if the volume is too small for it.

    Examples
    --------
    >>> unit = np.random.default_rng(0).normal(0.5, 0.03, (48, 48, 48)).astype(np.float32)
    >>> round(float(descriptors_of(unit, (2, 2, 2))[NOISE]), 2)
    0.03
    """
    unit = without_air(unit)
    floor, noise = noise_of(unit)
    along = [np.moveaxis(unit, axis, -1) for axis in range(3) if factor[axis] > 1]
    axes = [found for axis in along if (found := _along(axis)) is not None]
    if not axes:
        return np.array([floor, noise, *[0] * (len(DESCRIPTOR_NAMES) - 2)], np.float32)
    lag_2, lag_4, second, fourth, edge_2, edge_3 = np.mean(axes, axis=0)
    return np.array([floor, noise, np.log(second / lag_2), np.log(lag_4 / lag_2), edge_2, edge_3,
                     np.log(floor**2 / lag_2 + 1e-4), np.log(fourth / lag_2),
                     *_log_spectrum(along, noise, max(factor))], np.float32)


def edge_density(unit):
    """Median of the differences across two voxels in the brain, divided by their root mean square.

    This ratio is small if the volume has few and sharp edges, as a CT or phantom without noise.

    Parameters
    ----------
    unit : ndarray of float32, shape (x, y, z), in [0, 1]
        The background is 0.

    Returns
    -------
    float
        1 if all voxels are equal.

    Examples
    --------
    >>> texture = np.random.default_rng(0).normal(0.5, 0.03, (20, 20, 20)).astype(np.float32)
    >>> round(edge_density(texture), 1)
    0.7
    """
    unit, found = without_air(unit), []
    for axis in range(3):
        along = np.moveaxis(unit, axis, 0)
        inside = along > 0
        steps = (along[2:] - along[:-2])[inside[2:] & inside[1:-1] & inside[:-2]]
        found.append(np.abs(steps[::max(steps.size // WINDOWS, 1)]))
    steps = np.concatenate(found).astype(np.float64)
    if not steps.any():
        return 1.0
    return float(np.median(steps) / np.sqrt(np.mean(np.square(steps))))


def bright_part(volume):
    """The voxels above Otsu's threshold in a whole head whose air is noisy, not zero.

    Parameters
    ----------
    volume : ndarray of float32, shape (x, y, z)
        Intensities not below zero.

    Returns
    -------
    ndarray of bool, shape (x, y, z)
        None if the volume has no noisy air, for example a skull-stripped brain with a background of
        zeros, or a volume that lies inside a brain.

    Examples
    --------
    >>> head = np.random.default_rng(0).random((20, 20, 20), np.float32) / 10
    >>> head[5:15, 5:15, 5:15] += 1
    >>> int(bright_part(head).sum()), bright_part(np.where(head > 0.5, head, 0))
    (1000, None)
    """
    if np.count_nonzero(volume) <= (1 - HEAD_ZEROS) * volume.size:
        return None
    bright = _bright(volume)
    if bright is None or np.median(volume[~bright]) > AIR * np.median(volume[bright]):
        return None
    return bright


def without_air(volume):
    """The volume, with zeros for all but its `bright_part` if it has one."""
    bright = bright_part(volume)
    return volume if bright is None else volume * bright


def head_in_zeros(volume, voxel_size):
    """The bright part of an unmasked head with zeros for air, recognised by its size in litres.

    Parameters
    ----------
    volume : ndarray of float32, shape (x, y, z)
        Intensities not below zero.
    voxel_size : sequence of three float
        Voxel size in mm.

    Returns
    -------
    ndarray of bool, shape (x, y, z)
        Voxels above Otsu's threshold; None if the nonzero voxels are not larger than a human brain.

    Examples
    --------
    >>> volume = np.zeros((40, 40, 40), np.float32)
    >>> volume[5:35, 5:35, 5:35] = 1
    >>> volume[10:30, 10:30, 10:30] = 3
    >>> int(head_in_zeros(volume, (5, 5, 5)).sum()), head_in_zeros(volume, (1, 1, 1))
    (8000, None)
    """
    if np.count_nonzero(volume) * np.prod(voxel_size) <= MOST_BRAIN:
        return None
    return _bright(volume)


def _bright(volume):
    """Voxels above Otsu's threshold; None if there are none."""
    # The volume is clipped: otherwise a few saturated voxels might be the only bright ones. It is
    # flattened, because scikit-image would treat three slices as colour channels.
    clipped = np.minimum(volume, np.float32(bright_level_of_scan(volume)))
    bright = volume > threshold_otsu(clipped.reshape(-1))
    return bright if bright.any() else None


def noise_of(unit):
    """Standard deviations of the finest detail and of the noise in it.

    Second differences along all three axes remove most anatomy, and leave mostly noise. Their
    median over regions of small gradient is robust against edges. The rest of the anatomy is
    extrapolated from the flattest tenth and the flattest three tenths of the voxels, and removed.

    Parameters
    ----------
    unit : ndarray of float32, shape (x, y, z)
        The background is 0.

    Returns
    -------
    floor, noise : float
        In intensity units of the volume.
    """
    if min(unit.shape) < 3:
        return 0.0, 0.0
    finest, smooth, inside = unit, unit, (unit > 0).astype(np.float32)
    for axis in range(3):
        finest = _three_taps(finest, SECOND.astype(np.float32), axis)
        smooth = _three_taps(smooth, np.full(3, 1 / 3, np.float32), axis)
        inside = _three_taps(inside, np.ones(3, np.float32), axis)
    inside = inside > 26.5  # all 27 voxels
    if min(smooth.shape) < 2 or not inside.any():
        return 0.0, 0.0
    slope = sum(np.square(np.gradient(smooth, axis=axis)) for axis in range(3))
    slope, finest = uniform_filter(slope, 3)[inside], np.abs(finest[inside])
    flattest, flat = (np.median(finest[slope <= limit]) / MEDIAN_OF_NORMAL
                      for limit in np.quantile(slope, [FLATTEST, FLAT]))
    noise = np.sqrt(max(NOISE_GAIN * flattest**2 - (NOISE_GAIN - 1) * flat**2, 0))
    return float(flattest), float(noise)


def differences_along(volume, axis):
    """Five descriptors of the blur along one axis, to compare axes in restoring/adaptation.py.

    Parameters
    ----------
    volume : ndarray of float32, shape (x, y, z)
        The background is 0.
    axis : int

    Returns
    -------
    ndarray of float64, shape (5,)
        The descriptors from ``second`` to ``fourth``, without ``grain``; None if the axis is too
        short.
    """
    found = _along(np.moveaxis(volume, axis, -1))
    if found is None:
        return None
    lag_2, lag_4, second, fourth, edge_2, edge_3 = found
    return np.array([np.log(second / lag_2), np.log(lag_4 / lag_2), edge_2, edge_3,
                     np.log(fourth / lag_2)])


def _log_spectrum(along, noise, factor):
    """Log power spectrum of the brain without noise, relative to the power of low frequencies.

    Parameters
    ----------
    along : list of ndarray of float32
        One view of the volume for each axis, with this axis last.
    noise : float
        Standard deviation of the noise.
    factor : int
        The largest factor. The length of the lines depends on it.

    Returns
    -------
    ndarray of float64, shape (len(SPECTRUM),)
        Zeros if there are too few lines within the brain.
    """
    for line in (LINE, SHORT_LINE) if factor < SHORT_FROM else (SHORT_LINE,):
        powers = [power for axis in along if (power := power_along(axis, line)) is not None]
        if powers:
            break
    else:
        return np.zeros(len(SPECTRUM))
    power = np.mean(powers, axis=0)
    low = power[line // 16:line // 8].mean()
    # If most of the power is noise, the difference is not reliable: a lowest share is assumed.
    clean = np.maximum(power - noise**2, LEAST_SIGNAL * power)
    return np.interp(SPECTRUM, np.linspace(0, 1, len(power)), np.log(clean / (low + 1e-12) + 1e-9))


def power_along(volume, line):
    """Power of tapered lines within the brain, along the last axis; None if they are too few.

    Parameters
    ----------
    volume : ndarray of float32
    line : int
        Number of voxels of a line.

    Returns
    -------
    ndarray of float64, shape (line // 2 + 1,)
        Power from frequency zero to the highest frequency.
    """
    lines = _lines_inside(volume, line, LINE_STEP, LEAST_LINES, LINES)
    if lines is None:
        return None
    taper = np.hanning(line + 2)[1:-1].astype(np.float32)
    lines = (lines - lines.mean(1, keepdims=True)) * taper
    return np.square(np.abs(np.fft.rfft(lines, axis=1))).mean(0) / np.square(taper).sum()


def _lines_inside(volume, length, step, least, most):
    """Lines of voxels within the brain, along the last axis: ndarray, shape (lines, length).

    A line may begin at each `step`-th voxel. If there are many, about `most` of them are taken, at
    even distances; if there are fewer than `least`, the result is None.
    """
    if volume.shape[2] < length:
        return None
    inside = np.cumsum(np.pad(volume > 0, ((0, 0), (0, 0), (1, 0))), axis=2, dtype=np.int32)
    places = np.flatnonzero((inside[..., length:] - inside[..., :-length] == length)[..., ::step])
    if places.size < least:
        return None
    places = places[::max(places.size // most, 1)]
    windows = np.lib.stride_tricks.sliding_window_view(volume, length, axis=2)[..., ::step, :]
    return windows[np.unravel_index(places, windows.shape[:3])]


def _three_taps(volume, weights, axis):
    """Correlate with three weights along an axis, without the ends."""
    along = np.moveaxis(volume, axis, 0)
    found = weights[0] * along[:-2]
    for k in (1, 2):
        found += weights[k] * along[k:len(along) - 2 + k]
    return np.moveaxis(found, 0, axis)


def _along(volume):
    """Energies of differences along the last axis, and rise of strong edges; None if too short."""
    lines = _lines_inside(volume, 2 * REACH + 1, 1, 1, WINDOWS)
    if lines is None:
        return None
    x = lines.astype(np.float64).T  # (9, n)
    if not np.ptp(x, axis=0).any():
        return None
    lag_2, lag_4 = (np.mean(np.square(x[REACH + k] - x[REACH - k])) for k in (1, 2))
    second = np.mean(np.square(x[3] - 2 * x[4] + x[5]))
    fourth = np.mean(np.square(x[2] - 4 * x[3] + 6 * x[4] - 4 * x[5] + x[6]))
    rise = x[5] - x[3]
    strong = np.abs(rise) >= np.quantile(np.abs(rise), STRONG)
    edges = (x[:, strong] * np.sign(rise[strong])).mean(1)
    step = edges[5] - edges[3]  # it is 0 if each slice is repeated: then no edge is found
    edge_2, edge_3 = ((edges[REACH + k] - edges[REACH - k]) / step if step else 1.0 for k in (2, 3))
    tiny = 1e-12  # for axes without variation
    return max(lag_2, tiny), max(lag_4, tiny), max(second, tiny), max(fourth, tiny), edge_2, edge_3
