"""How much a scan resembles the training brains: the weights of its blur and of the filters.

Filters learned from brains make other volumes worse if they assume too much blur: they create false
rims in a phantom, and ringing in an average of subjects. Four measures detect such volumes: the
distance of the descriptors from the training descriptors, few edges, sharpness that differs from
place to place, and more blur than any scanner causes. The estimate of the blur is then replaced,
partly or fully, by the least blur that occurs. Only in volumes that resemble no scan at all does a
spline replace the filters.
"""
import math
from typing import NamedTuple

import numpy as np

from degrading.descriptors import NOISE, SECOND, edge_density, without_air
from degrading.profile_reader import estimate, strangeness
from util import tight_box

# Strangeness up to which the estimated blur is believed (USUAL), and from which on it is not, for
# these noise levels (columns) and geometric means of the voxel size in mm (rows). With little noise
# and voxels as large as in training, the strangeness of brains is up to 1.1, that of volumes which
# oversharpening makes worse by 2 dB is 1.45 or more. Brains with finer voxels reach 1.5, or 1.8
# with noise; averages of subjects have no noise. Brains in voxels of 3 and 4 mm under a Hamming
# window reach 1.4, or 1.65 with 3 % of noise. With much noise and a Hamming window, brains reach
# 2.5; there the filters mainly remove noise, which helps other volumes too.
NOISE_LEVELS = (0.01, 0.03, 0.05)
VOXELS = (1.4, 1.8, 2.6, 3.0)
USUAL = (1.5, 2.2, 3.0), (1.2, 1.25, 3.0), (1.2, 1.25, 3.0), (1.4, 1.7, 3.0)
TOO_STRANGE = (2.0, 2.7, 3.5), (1.45, 1.5, 3.5), (1.45, 1.5, 3.5), (1.7, 2.0, 3.5)
# Strangeness up to which filters are fully used with the least blur, and from which on the spline
# replaces them. Brains smoothed by a Gaussian with a full width of eight voxels reach 4; over the
# whole brain the filters still restore them better than the spline.
USED, UNUSED = 4.0, 5.0
# The blur is believed if the edge density is DENSE or more, and not if it is SPARSE or less. It is
# 0.42 to 0.58 in brains, 0.28 and more in heads, 0.07 in a CT without noise.
DENSE, SPARSE = 0.3, 0.2
# Unevenness up to which the blur is believed, and from which on it is not, for the same noise
# levels (columns) and these voxel sizes (rows). That of 25 brains is up to 0.56 (1 mm) and 0.36
# (2 mm, no noise; with 3 % 0.38). That of averages of subjects is from 0.7 (1 mm) and 0.5 (2 mm)
# on, but for CIT168 and ICBM 2009a, which gain. With 5 % of noise and a Hamming window, brains
# reach 0.7.
UNEVEN_VOXELS = (1.0, 1.7)
EVEN = (0.62, 0.58, 2.0), (0.40, 0.38, 2.0)
UNEVEN = (0.78, 0.74, 2.5), (0.50, 0.48, 2.5)
# The blur is believed if the mean of the unclipped readings is SIGNAL or more, and not if it is
# BLURRED or less, for the same noise levels. A Hamming window leaves 0.15; at factor 2 the reading
# of brains under it is from 0.13 on, and from 0.09 on with 3 % of noise. Volumes that were smoothed
# after their acquisition have less. At larger factors the reading of brains may be negative.
SIGNAL, BLURRED = (0.13, 0.09, 0.09), (0.08, 0.03, 0.03)
LARGEST = 2  # largest factor at which the reading shows that a volume was smoothed
REASONS = "noise and blur", "few edges", "uneven sharpness", "smoothed"
USUAL_DENSITY, PER_DENSITY = 0.4, 2.0  # unevenness that a lower edge density adds
CUBE, CUBES = 10, 20  # voxels along the side of a cube; fewest cubes whose sharpness is compared
STRONGEST, OVER_NOISE = 0.3, 4.0  # compared cubes: quantile of their energy, energy over noise
FAINTEST = 0.02  # smallest share of second differences in the energy
MOST_VOXELS = 4_000_000  # voxels in which cubes are compared; in larger volumes, every few cubes


class Texture(NamedTuple):
    """Two measures of the structure of a volume."""

    density: float  # of edges, see degrading/descriptors.py
    # Spread of the sharpness, and twice the edge density that is missing from 0.4. It is large in
    # averages of subjects.
    uneven: float


UNKNOWN = Texture(1.0, 0.0)  # of volumes without descriptors; it casts no doubt


def sharpness_spread(unit, noise):
    """Differences of sharpness between places of a volume.

    The volume is divided into cubes. The sharpness of a cube is the logarithm of a ratio of
    energies, without noise: that of second differences over that of differences across two voxels.
    Averages of subjects are sharp where all brains agree, and blurred in the cortex.

    Parameters
    ----------
    unit : ndarray of float32, shape (x, y, z), in [0, 1]
        The background is 0.
    noise : float
        Standard deviation.

    Returns
    -------
    float
        Range from the first to the third quartile of the sharpness of cubes, relative to the median
        of their axis; 0 if there are few cubes.

    Examples
    --------
    >>> from scipy.ndimage import gaussian_filter
    >>> texture = np.random.default_rng(0).random((60, 60, 60), np.float32)
    >>> blurred = gaussian_filter(texture, 1)
    >>> mixed = np.where(np.arange(60)[:, None, None] < 30, texture, 5 * blurred)
    >>> [round(sharpness_spread(volume, 0), 1) for volume in (texture, blurred, mixed)]
    [0.1, 0.1, 0.7]
    """
    if not unit.any():
        return 0.0
    # The cubes lie in the middle of the brain, so that background and flips hardly move them.
    box = tight_box(unit > 0)
    voxels = math.prod(side.stop - side.start for side in box)
    step = max(math.ceil(np.cbrt(voxels / MOST_VOXELS)), 1)  # every cube is used, or every few
    unit = unit[tuple(_middle(side, step) for side in box)]
    spread, cubes = [], 0
    for axis in range(3):
        finest, energy = _energies_of_cubes(unit, axis, step) - noise**2
        if not energy.size:
            continue
        least = max(np.quantile(energy, STRONGEST), OVER_NOISE * noise**2 / np.sqrt(CUBE**3 / 4))
        sharpness = finest[energy > least] / energy[energy > least]
        spread.append(np.log(np.maximum(sharpness, FAINTEST)))
        cubes += sharpness.size
    if cubes < CUBES:
        return 0.0
    # Differences between axes come from the scanner.
    spread = np.concatenate([part - np.median(part) for part in spread if part.size])
    first, third = np.quantile(spread, [0.25, 0.75])
    return float(third - first)


def _middle(side, step):
    """The middle of a slice of voxels: whole cubes, of which every `step`-th is used.

    The first and the last cube are used, so that a flip changes nothing.

    Examples
    --------
    >>> _middle(slice(0, 30), 1), _middle(slice(5, 34), 2), _middle(slice(0, 45), 2)
    (slice(0, 30, None), slice(14, 24, None), slice(7, 37, None))
    """
    voxels = side.stop - side.start
    cubes = voxels // CUBE
    cubes -= (cubes - 1) % step if cubes else 0
    start = side.start + (voxels - cubes * CUBE) // 2
    return slice(start, start + cubes * CUBE)


def _energies_of_cubes(unit, axis, step):
    """Mean squares of second differences, and of differences across two voxels, along an axis.

    Returns
    -------
    ndarray of float64, shape (2, cubes)
        For every `step`-th cube along each axis that lies within the brain.
    """
    found, (beside, at, _) = [np.zeros((2, 0))], SECOND.astype(np.float32)
    some = slice(None), slice(None, None, step), slice(None, None, step)
    for number in range(0, len(unit) // CUBE, step):
        begin, end = number * CUBE - 2, (number + 1) * CUBE + 2  # a layer, and two voxels around it
        layer = np.pad(unit[max(begin, 0):end],
                       [(max(-begin, 0), max(end - len(unit), 0)), (2, 2), (2, 2)])
        along = np.moveaxis(layer, axis, 0)
        side, within = len(along), [slice(2, -2)] * 3
        within[0] = slice(None)  # differences along this axis lack two voxels at both ends
        inside = np.all([along[k:side - 4 + k] > 0 for k in range(5)], axis=0)
        before, here, after = (along[k:side - 4 + k] for k in (1, 2, 3))
        second = np.square((before + after) * beside + here * at)
        first = np.square(after - before) / 2
        count, *sums = (_sums(np.moveaxis((part * inside)[tuple(within)], 0, axis))[some]
                        for part in (np.float32(1), second, first))
        whole = count >= 0.6 * CUBE**3
        found.append([part[whole] / count[whole] for part in sums])
    return np.concatenate(found, axis=1)


def _sums(volume):
    """Sums over cubes of CUBE voxels, which fill the volume."""
    parts = [size for side in volume.shape for size in (side // CUBE, CUBE)]
    return volume.reshape(parts).sum((1, 3, 5), dtype=np.float64)


def texture_of(unit, descriptors):
    """The `Texture` of an LR volume, in [0, 1], with these noise and blur descriptors (or None).

    Examples
    --------
    >>> flat = np.random.default_rng(0).normal(0.5, 0.03, (48, 48, 48)).astype(np.float32)
    >>> [round(value, 1) for value in texture_of(flat, np.zeros(22))]
    [0.7, -0.5]
    """
    if descriptors is None:
        return UNKNOWN
    unit = without_air(unit)
    density = edge_density(unit)
    return Texture(density, sharpness_spread(unit, descriptors[NOISE])
                   + PER_DENSITY * (USUAL_DENSITY - density))


def limits_of(noise, voxel=1.0):
    """Strangeness up to which the estimated blur is believed, and from which on it is not.

    Parameters
    ----------
    noise : float
        Standard deviation, as a share of the brightest intensity.
    voxel : float
        Geometric mean of the voxel size of the scan in mm.

    Examples
    --------
    >>> limits_of(noise=0, voxel=1), limits_of(noise=0, voxel=2), limits_of(noise=0.05, voxel=2)
    ((1.5, 2.0), (1.2, 1.45), (3.0, 3.5))
    """
    return tuple(_limit(rows, noise, voxel, VOXELS) for rows in (USUAL, TOO_STRANGE))


def _limit(rows, noise, voxel, voxels):
    """A limit from a table with a row for each voxel size, and a column for each noise level."""
    return float(np.interp(voxel, voxels, [np.interp(noise, NOISE_LEVELS, row) for row in rows]))


def belief(reader, descriptors, texture, voxel, factor):
    """Weight of the estimated blur, and the reason if it is below 1.

    Parameters
    ----------
    reader : ndarray, see `degrading.profile_reader.fit_reader`
    descriptors : ndarray of float32, shape (descriptors,)
    texture : Texture
    voxel : float
        Geometric mean of the voxel size of the scan in mm.
    factor : sequence of three int
        Factor of the filters.

    Returns
    -------
    belief : float
        1 for scans like brains, 0 where the least blur is assumed.
    reason : str
        One of REASONS; empty if `belief` is 1.

    Examples
    --------
    >>> from degrading.profile_reader import fit_reader
    >>> descriptors = np.random.default_rng(0).normal(size=(500, 3))
    >>> reader = fit_reader(descriptors, np.ones((500, 2)))
    >>> belief(reader, np.zeros(3), Texture(0.5, 0.2), voxel=1, factor=(2, 2, 2))
    (1.0, '')
    >>> belief(reader, np.full(3, 9.0), Texture(0.5, 0.2), voxel=1, factor=(2, 2, 2))
    (0.0, 'noise and blur')
    >>> belief(reader, np.zeros(3), Texture(0.2, 0.2), voxel=1, factor=(2, 2, 2))
    (0.0, 'few edges')
    """
    noise = descriptors[NOISE]
    usual, too_strange = limits_of(noise, voxel)
    even, too_uneven = (_limit(rows, noise, voxel, UNEVEN_VOXELS) for rows in (EVEN, UNEVEN))
    signal, blurred = (np.interp(noise, NOISE_LEVELS, row) for row in (SIGNAL, BLURRED))
    left = estimate(reader, descriptors).mean() if max(factor) <= LARGEST else 1.0
    shares = (_share(strangeness(reader, descriptors), usual, too_strange),
              _share(-texture.density, -DENSE, -SPARSE),
              _share(texture.uneven, even, too_uneven), _share(-left, -signal, -blurred))
    least = min(shares)
    return least, "" if least == 1 else REASONS[shares.index(least)]


def trust(reader, descriptors):
    """Weight of the filters in the result: 1 for most volumes, 0 for those that resemble no scan.

    Examples
    --------
    >>> from degrading.profile_reader import fit_reader
    >>> descriptors = np.random.default_rng(0).normal(size=(500, 3))
    >>> reader = fit_reader(descriptors, np.ones((500, 2)))
    >>> trust(reader, np.zeros(3)), trust(reader, np.full(3, 9.0))
    (1.0, 0.0)
    """
    return _share(strangeness(reader, descriptors), USED, UNUSED)


class Weights(NamedTuple):
    """How much the filters, and the estimated blur of a scan, count in its restoring."""

    filters: float = 1.0  # the spline has the remaining weight
    blur: float = 1.0  # the least blur has the remaining weight
    reason: str = ""  # one of REASONS if the weight of the blur is below 1


def weights_of(reader, descriptors, texture, voxel, factor):
    """The `Weights` of a scan; parameters as in `belief`."""
    return Weights(trust(reader, descriptors),
                   *belief(reader, descriptors, texture, voxel, factor))


def _share(value, full, none):
    """1 if a value is `full` or less, 0 if it is `none` or more, and linear between."""
    return float(np.clip((none - value) / (none - full), 0, 1))
