"""Where the patches of the published method lie in memory."""
import numpy as np

from machine.simd import LANES


def patch_lines(shape, length):
    """Where a cubic patch is read from: its lines along the last axis, in vectors of 16 voxels.

    Returns
    -------
    offsets : ndarray of int64, shape (vectors,)
        How far each vector's first voxel is from the patch's centre, in the flat volume, in C
        order.
    places : ndarray of int64, shape (vectors,)
        Which voxel of the patch, in C order, that is. A line's last vector reads on behind its end.
    """
    reach, starts = np.arange(length) - length // 2, np.arange(0, length, LANES)
    lines = (reach[:, None, None] * shape[1] + reach[:, None]) * shape[2]
    offsets = (lines + starts - length // 2).ravel()
    return offsets, (np.arange(length**2)[:, None] * length + starts).ravel()


def readable(volume):
    """A copy of a volume, flat, that can be read 16 voxels on from any of it."""
    return np.concatenate([volume.ravel(), np.zeros(LANES, volume.dtype)])
