"""Positions in memory of the patches of the published method."""
import numpy as np

from machine.simd import LANES


def patch_lines(shape, length):
    """Positions of the lines of a cubic patch along the last axis, in vectors of 16 voxels.

    Returns
    -------
    offsets : ndarray of int64, shape (vectors,)
        Offset of each vector's first voxel from the patch's centre, in the flat volume in C order.
    places : ndarray of int64, shape (vectors,)
        Index of this voxel in the patch, in C order. The last vector extends beyond its line.
    """
    reach, starts = np.arange(length) - length // 2, np.arange(0, length, LANES)
    lines = (reach[:, None, None] * shape[1] + reach[:, None]) * shape[2]
    offsets = (lines + starts - length // 2).ravel()
    return offsets, (np.arange(length**2)[:, None] * length + starts).ravel()


def readable(volume):
    """A flat copy of a volume with padding, so that 16 voxels can be read from any position."""
    return np.concatenate([volume.ravel(), np.zeros(LANES, volume.dtype)])
