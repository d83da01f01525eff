"""Label maps: volumes that hold numbers of regions, not intensities."""
import math

import numpy as np

from machine.errors import UserError
from nifti.checks import STREAM_FAULTS, checked_image, opened

LABEL_INTENT = 1002  # what NIfTI headers call labels
BLOCK = 1 << 18  # voxels that are looked at together for labels


def is_label_map(path, most):
    """Whether a file holds a mask or labels: 2 to `most` values, all of them whole numbers.

    Read is no more than it takes to find more values: of a scan the first slices with tissue.

    Parameters
    ----------
    path : path-like
    most : int

    Returns
    -------
    bool
        Also by what its header calls it. False for a file that cannot be read.
    """
    try:
        image, shape = checked_image(path, (3, 4))
        if int(image.header["intent_code"]) == LABEL_INTENT:
            return True
        proxy, seen = image.dataobj, np.empty(0)
        left = math.prod(shape)
        with opened(path) as file:
            file.read(int(proxy.offset))
            while left > 0 and seen.size <= most:
                block = file.read(min(left, BLOCK) * proxy.dtype.itemsize)
                values = np.frombuffer(block, proxy.dtype, len(block) // proxy.dtype.itemsize)
                if not values.size:
                    return False  # cut short
                if values[0] == values[-1] and values.min() == values.max():
                    values = values[:1]  # background, mostly; finding values takes longer
                with np.errstate(invalid="ignore"):  # said of infinite ones
                    if values.dtype.kind == "f" and (values % 1 != 0).any():
                        return False
                seen = np.union1d(seen, values[:BLOCK // 64])  # mostly enough
                if seen.size <= most:
                    seen = np.union1d(seen, values)
                left -= len(block) // proxy.dtype.itemsize
        return 2 <= seen.size <= most
    except (*STREAM_FAULTS, ValueError, UserError):
        return False
