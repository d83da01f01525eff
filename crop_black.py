"""Cut off the black surround of a volume."""
import numpy as np


def black_crop_box(image, padding, factor):
    """The box that holds all that is not black, with some padding.

    Per axis, the first slice at `padding` or later that is not all zero starts the box, less `padding` and rounded down
    to a multiple of the factor; the last such slice before ``size - padding`` ends it, plus `padding` (exclusive).

    Parameters
    ----------
    image : ndarray, shape (X, Y, Z)
    padding : int
        Voxels; half a patch.
    factor : tuple of three int

    Returns
    -------
    box : tuple of three slice

    Raises
    ------
    ValueError
        If nothing but black lies inside the padding.
    """
    used = image != 0
    box = []
    for axis in range(3):
        slices = np.flatnonzero(used.any(axis=tuple(a for a in range(3) if a != axis)))
        slices = slices[(slices >= padding) & (slices < image.shape[axis] - padding)]
        if not slices.size:
            raise ValueError(f"no voxel above zero lies {padding} voxels or more inside the volume; "
                             "pad the volume with zeros, or give a smaller --filter_len")
        start = slices[0] - padding
        box.append(slice(int(start - start % factor[axis]), int(slices[-1] + padding)))
    return tuple(box)


def tight_box(used):
    """The smallest box that holds all True voxels: a tuple of slices. There must be one."""
    box = []
    for axis in range(3):
        slices = np.flatnonzero(used.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(int(slices[0]), int(slices[-1]) + 1))
    return tuple(box)
