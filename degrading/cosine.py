"""Operators along an axis that weight the waves of a mirrored volume, by cosine transforms.

A profile in k-space has wide matrices, so a transform is faster than a product with its matrix.
"""
from dataclasses import dataclass

import numpy as np
import scipy.fft

from machine.threads import spans, thread_count

CHUNK = 1 << 22  # voxels that are transformed at a time


@dataclass(frozen=True)
class CosineOperator:
    """Weighting of the waves along an axis, from one grid to another of the same field of view.

    The volume is mirrored at its ends. Parts of both grids can be cut out: the input is zero
    outside its part, and only a part of the output is computed.

    Attributes
    ----------
    gains : ndarray of float32
        Weight of each wave of half a cycle more along the axis; waves beyond these are dropped.
    from_side, to_side : int
        Number of voxels of the whole grids.
    from_part, to_part : slice
        The parts of the grids.
    """

    gains: np.ndarray
    from_side: int
    to_side: int
    from_part: slice
    to_part: slice

    @property
    def n_in(self):
        """Number of voxels of the input along the axis."""
        return self.from_part.stop - self.from_part.start

    @property
    def n_out(self):
        """Number of voxels of the output along the axis."""
        return self.to_part.stop - self.to_part.start

    def apply(self, volume, axis):
        """Apply the operator along an axis of a volume of float32; returns another volume."""
        shape = [*volume.shape[:axis], self.n_out, *volume.shape[axis + 1:]]
        result, other = np.empty(shape, np.float32), 1 if axis == 0 else 0
        planes = max(CHUNK * volume.shape[other] // volume.size, 1)
        for span in spans(volume.shape[other], planes):
            part = [slice(None)] * 3
            part[other] = slice(*span)
            part = tuple(part)
            result[part] = self._weighted(volume[part], axis)
        return result

    def _weighted(self, volume, axis):
        def along(part):
            return (slice(None),) * axis + (part,)

        shape = list(volume.shape)
        shape[axis] = self.from_side
        whole = np.zeros(shape, np.float32)
        whole[along(self.from_part)] = volume
        waves = scipy.fft.dct(whole, axis=axis, norm="ortho", overwrite_x=True,
                              workers=thread_count())
        shape[axis] = self.to_side
        weighted = np.zeros(shape, np.float32)
        count = len(self.gains)
        gains = self.gains.reshape([-1 if a == axis else 1 for a in range(3)])
        np.multiply(waves[along(slice(count))], gains, out=weighted[along(slice(count))])
        found = scipy.fft.idct(weighted, axis=axis, norm="ortho", overwrite_x=True,
                               workers=thread_count())
        return found[along(self.to_part)]
