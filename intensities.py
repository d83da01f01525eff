"""Volumes with values below zero: shifted, so that the background is zero, and shifted back."""
from typing import NamedTuple

import numpy as np

NEGATIVE_SHARE = 0.01  # of a volume's voxels; up to so many are clipped: ringing, noise
SURROUND = 0.5  # share of the voxels on a volume's faces that have the value of its background
CLEARANCE = 0.01  # of the range of intensities: how far above background the lowest is put


class Shift(NamedTuple):
    """Between a volume's own intensities and those that filters take: background 0, none below.

    A volume without background has none of its values taken for it.
    """

    low: float  # the intensity that becomes zero
    background: float | None  # what surrounds the head: exactly this value is background

    def __str__(self):
        """What is said of it."""
        kept = "" if self.background is None else f", the background of {self.background:g} stays"
        return f"shifted above it for the work, and back in the result{kept}"

    def work(self, data):
        """The volume as filters take it, float32."""
        shifted = data - np.float32(self.low)
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
    z-scored brain, the padding of a CT. It stays what it is; all else is shifted above zero.

    Parameters
    ----------
    data : ndarray of float32, shape (X, Y, Z) or (X, Y, Z, T)
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
    low, high = float(data.min()), float(data.max())
    faces = np.concatenate([data.take((0, -1), axis).ravel() for axis in range(3)])
    values, counts = np.unique(faces, return_counts=True)
    background = float(values[counts.argmax()])
    if counts.max() < SURROUND * faces.size:
        background = None
    if background != low:
        low -= CLEARANCE * (high - low)
    return Shift(low, background)
