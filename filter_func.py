"""Gaussian window, sharpening and census blend of the published method."""
from itertools import product

import numpy as np
from scipy.ndimage import gaussian_filter

WINDOW_SIGMA = 0.85  # voxels; Gaussian over a window of gradients (section 3.2 of the paper)
NARROW, WIDE = 0.85, 0.85 * 1.414  # voxels; sigmas of the Gaussians that sharpen
NEIGHBOURS = [offset for offset in product((-1, 0, 1), repeat=3) if any(offset)]


def gaussian_weights(length, sigma):
    """Normalised samples of a Gaussian, shape (length,), float64.

    The outer product of three such arrays is the 3-D window.

    Examples
    --------
    >>> gaussian_weights(3, 0.85).round(3)
    array([0.25, 0.5 , 0.25])
    """
    x = np.arange(length) - (length - 1) / 2
    weights = np.exp(-(x**2) / (2 * sigma**2))
    return weights / weights.sum()


def gaussian_smooth(image, sigma):
    """Correlate with the 3x3x3 Gaussian of `sigma` voxels; edges are reflected."""
    return gaussian_filter(image, sigma, mode="reflect", radius=1)


def sharpen(image):
    """Sharpen by three differences of Gaussians of growing width, blended by `census_blend`.

    Parameters
    ----------
    image : ndarray, shape (X, Y, Z), float
        Intensities in [0, 1].

    Returns
    -------
    sharpened : ndarray of the same shape and dtype, in [0, 1]

    Examples
    --------
    A blurred edge, from 0.3 to 0.7 between two voxels, becomes steeper:

    >>> image = np.tile([0.1, 0.1, 0.1, 0.3, 0.7, 0.9, 0.9, 0.9], (8, 8, 1))
    >>> sharpen(image)[4, 4, 3:5].round(2)
    array([0.22, 0.78])
    """
    def difference(source):
        return 16 * gaussian_smooth(source, NARROW) - 15 * gaussian_smooth(source, WIDE)

    once = gaussian_smooth(image, WIDE)
    twice = gaussian_smooth(once, WIDE)
    result = census_blend(image, difference(twice))
    result = census_blend(image, result)
    for source in (once, image):
        result = census_blend(image, census_blend(result, difference(source)))
    return np.clip(result, 0, 1).astype(image.dtype, copy=False)


def census_changes(first, second):
    """Number of each voxel's 26 neighbours that are darker than the voxel in one volume only.

    Returns
    -------
    changes : ndarray of uint8, shape (X - 2, Y - 2, Z - 2)
        Without the outermost shell, which has no 26 neighbours.

    Examples
    --------
    >>> rising = np.arange(27).reshape(3, 3, 3)
    >>> int(census_changes(rising, -rising)[0, 0, 0]), int(census_changes(rising, 2 * rising).max())
    (26, 0)
    """
    inner = tuple(slice(1, side - 1) for side in first.shape)
    changes = np.zeros(tuple(side - 2 for side in first.shape), np.uint8)
    for offset in NEIGHBOURS:
        shifted = tuple(slice(1 + o, side - 1 + o)
                        for o, side in zip(offset, first.shape, strict=True))
        changes += (first[shifted] < first[inner]) != (second[shifted] < second[inner])
    return changes


def census_blend(lr, sr, threshold=10):
    """Keep `lr` where `sr` changes the local order of intensities too much.

    Parameters
    ----------
    lr, sr : ndarray, shape (X, Y, Z)
    threshold : int
        `lr` is kept where more than this many of the 26 census bits differ.

    Returns
    -------
    blended : ndarray, shape (X, Y, Z)
        The outermost shell is 0, as in the code released with the paper.

    Examples
    --------
    The middle voxel is the median of its neighbourhood in `lr`, and the darkest voxel in `sr`:

    >>> lr = np.arange(27.0).reshape(3, 3, 3)
    >>> sr = lr.copy()
    >>> sr[1, 1, 1] = -1
    >>> float(census_blend(lr, sr)[1, 1, 1]), float(census_blend(lr, sr, threshold=26)[1, 1, 1])
    (13.0, -1.0)
    """
    blended = np.zeros_like(lr)
    inner = tuple(slice(1, side - 1) for side in lr.shape)
    blended[inner] = np.where(census_changes(lr, sr) > threshold, lr[inner], sr[inner])
    return blended
