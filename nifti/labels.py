"""Recognise label maps: volumes that hold the numbers of regions, not intensities."""
import math

import numpy as np

from machine.errors import UserError
from nifti.checks import STREAM_FAULTS, checked_image, opened

LABEL_INTENT = 1002  # NIfTI's intent code of labels
LABEL_VALUES = 32  # a volume whose only values are at most this many integers is a label map
BLOCK = 1 << 18  # voxels read at a time


def is_label_map(path):
    """True if a file holds a mask or labels: 2 to LABEL_VALUES different integers, nothing else.

    True also if the header declares labels; False for a file that cannot be read. Reading stops at
    the first fraction, or when more values were found: for a scan, in the first slices with tissue.
    """
    try:
        image, shape = checked_image(path, (3, 4))
        if int(image.header["intent_code"]) == LABEL_INTENT:
            return True
        proxy, seen = image.dataobj, np.empty(0)
        left = math.prod(shape)
        with opened(path) as file:
            file.read(int(proxy.offset))
            while left > 0 and seen.size <= LABEL_VALUES:
                block = file.read(min(left, BLOCK) * proxy.dtype.itemsize)
                values = np.frombuffer(block, proxy.dtype, len(block) // proxy.dtype.itemsize)
                if not values.size:
                    return False  # the file ends early
                if values[0] == values[-1] and values.min() == values.max():
                    values = values[:1]  # one value is enough, and saves time for background
                with np.errstate(invalid="ignore"):  # numpy warns about infinite values
                    if values.dtype.kind == "f" and (values % 1 != 0).any():
                        return False
                seen = np.union1d(seen, values[:BLOCK // 64])  # enough values, for a scan
                if seen.size <= LABEL_VALUES:
                    seen = np.union1d(seen, values)
                left -= len(block) // proxy.dtype.itemsize
        return 2 <= seen.size <= LABEL_VALUES
    except (*STREAM_FAULTS, ValueError, UserError):
        return False
