"""Volumes with values below zero: shifted, so that the background is zero, and shifted back."""
from typing import NamedTuple

import numpy as np

NEGATIVE_SHARE = 0.01  # of a volume's voxels; up to so many are clipped: ringing, noise
SURROUND = 0.5  # share of the voxels on a volume's faces that have the value of its background
CLEARANCE = 0.01  # of the range of intensities: how far above background the lowest is put
OUTERMOST = 0.001  # share of the voxels on either side that the range leaves out
OUTLYING = 0.25  # of the range: what lies farther below it is clipped there


class Shift(NamedTuple):
    """Between a volume's own intensities and those that filters take: background 0, none below.

    A volume without background has none of its values taken for it.
    """

    low: float  # the intensity that becomes zero
    background: float | None  # what surrounds the head: exactly this value is background
    least: float = 0.0  # what all else becomes at least: a voxel far below it is an outlier

    def __str__(self):
        """What is said of it."""
        kept = "" if self.background is None else f", the background of {self.background:g} stays"
        return f"shifted above it for the work, and back in the result{kept}"

    def work(self, data):
        """The volume as filters take it, float32."""
        shifted = np.maximum(data - np.float32(self.low), np.float32(self.least))
        if self.background is not None:
            shifted[data == np.float32(self.background)] = 0
        return shifted

    def undo(self, work, black=None):
        """The volume in its own intensities, from what `work` gave.

        Parameters
        ----------
        work : ndarray of float32
        black : ndarray of bool, of the same shape, optional
            Where its background is; by default where it is zero.
        """
        own = work + np.float32(self.low)
        if self.background not in (None, self.low):
            own[work == 0 if black is None else black] = self.background
        return own


def shift_of(data):
    """How to shift a volume of which more than one voxel in a hundred is below zero.

    Background is the value of most voxels on the faces, if there is one: the zeros around a
    z-scored brain, the padding of a CT. It stays what it is; all else is shifted above zero. What
    lies far below all others is clipped: one such voxel would leave filters nothing to see of the
    rest.

    Parameters
    ----------
    data : ndarray of float32, shape (X, Y, Z)
        Finite.

    Returns
    -------
    Shift or None
        None where not so many voxels are below zero.

    Examples
    --------
    >>> scores = np.zeros((9, 9, 9), np.float32)
    >>> scores[2:7, 2:7, 2:7] = np.linspace(-2, 2, 125).reshape(5, 5, 5)
    >>> shift = shift_of(scores)
    >>> shift.background, round(shift.low, 2), round(float(shift.work(scores).max()), 2)
    (0.0, -2.04, 4.04)
    """
    if np.count_nonzero(data < 0) <= NEGATIVE_SHARE * data.size:
        return None
    background = surround_of(data)
    if background == data.min():
        return Shift(background, background)
    first, last = np.quantile(data if background is None else data[data != background],
                              [OUTERMOST, 1 - OUTERMOST])
    low = float(max(data.min(), first - OUTLYING * (last - first)))
    clearance = CLEARANCE * float(last - first)
    return Shift(low - clearance, background, clearance)


def surround_of(data):
    """The value that most voxels on the faces of a volume have; None if there is none."""
    faces = np.concatenate([data.take((0, -1), axis).ravel() for axis in range(3)])
    values, counts = np.unique(faces, return_counts=True)
    return None if counts.max() < SURROUND * faces.size else float(values[counts.argmax()])
