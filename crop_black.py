"""Box around the brain in a volume, as in the published method."""
from util import used_along


def black_crop_box(image, padding, factor):
    """The box around the nonzero voxels, with some padding.

    Along each axis, slices closer than `padding` to a face are ignored. The box starts `padding`
    before the first other slice that is not all zero, rounded down to a multiple of the factor. It
    ends `padding` after the last of these slices (exclusive index).

    Parameters
    ----------
    image : ndarray, shape (X, Y, Z)
    padding : int
        Half a patch, in voxels.
    factor : tuple of three int

    Returns
    -------
    box : tuple of three slice

    Raises
    ------
    ValueError
        If all voxels at least `padding` away from the faces are zero.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.zeros((20, 20, 20))
    >>> image[8:12, 9:12, 7:15] = 1
    >>> black_crop_box(image, 3, (2, 2, 2))
    (slice(4, 14, None), slice(6, 14, None), slice(4, 17, None))
    """
    used = image != 0
    box = []
    for axis in range(3):
        slices = used_along(used, axis)
        slices = slices[(slices >= padding) & (slices < image.shape[axis] - padding)]
        if not slices.size:
            raise ValueError(f"no voxel above zero is {padding} voxels or more away from the "
                             "border; pad the volume with zeros, or learn with smaller "
                             "--filter_len and --grad_len")
        start = slices[0] - padding
        box.append(slice(int(start - start % factor[axis]), int(slices[-1] + padding)))
    return tuple(box)
