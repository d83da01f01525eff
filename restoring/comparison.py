"""Images to compare with an upscaled volume in its report, on the grid of this volume."""
import numpy as np

from degrading.banded import apply_operators
from degrading.spline import spline_operator
from util import bright_level_of_scan


def comparison_images(low, fine, fine_to_low):
    """Images for the report of an upscaled volume, on its grid and in [0, 1].

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        The scan.
    fine : ndarray of float32, shape (X, Y, Z)
        The upscaled scan.
    fine_to_low : ndarray, shape (4, 4)
        Matrix from voxels of `fine` to voxels of `low`.

    Returns
    -------
    dict of str to ndarray
        LR voxels by nearest neighbour, the quintic spline, and the restored volume.
    """
    scale = np.float32(bright_level_of_scan(low) or low.max())
    places = zip(_places(fine.shape, fine_to_low), low.shape, strict=True)
    near = [np.clip(np.floor(along + 0.5).astype(int), 0, side - 1) for along, side in places]
    spline = spline_onto(low, fine.shape, fine_to_low)
    spline *= fine > 0
    images = {"LR": low[np.ix_(*near)], "Spline": spline, "Restored": fine.copy()}
    for image in images.values():
        image /= scale
        np.clip(image, 0, 1, out=image)
    return images


def spline_onto(low, shape, fine_to_low, order=5):
    """Interpolate a volume to another grid by a spline, the alternative without filters.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
    shape : tuple of three int
        Shape of the other grid.
    fine_to_low : ndarray, shape (4, 4)
        Matrix from voxels of the other grid to voxels of `low`.
    order : int, optional

    Returns
    -------
    ndarray of float32, of `shape`
        Intensities not below zero.
    """
    places = zip(low.shape, _places(shape, fine_to_low), strict=True)
    operators = [spline_operator(side, along, order, at_faces=True) for side, along in places]
    return np.clip(apply_operators(low, operators), 0, None)


def _places(shape, fine_to_low):
    """Positions of the voxels of a grid along each axis, in voxels of another grid."""
    return [fine_to_low[axis][3] + fine_to_low[axis][axis] * np.arange(side)
            for axis, side in enumerate(shape)]
