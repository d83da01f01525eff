"""Volumes with values below zero: shifted, so that the background is zero, and shifted back."""
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion

NEGATIVE_SHARE = 0.01  # of a volume's voxels; up to so many are clipped: ringing, noise
OF_OBJECT = 0.05  # the same, of the voxels that are not zero: of a small object in many zeros
SURROUND = 0.5  # share of the voxels on a volume's faces that have the value of its background
SLAB = 0.01  # share of a volume that a background fills at least where it surrounds nothing
SOLID = 0.5  # share of its voxels that have it on all six sides, which no tissue comes near
CLEARANCE = 0.01  # of the range of intensities: how far above background the lowest is put
OUTERMOST = 0.001  # share of the voxels on either side that the range leaves out
OUTLYING = 0.25  # of the range: what lies farther below it is clipped there


class Shift(NamedTuple):
    """Between a volume's own intensities and those that filters take: background 0, none below.

    A volume without background has none of its values taken for it.
    """

    low: float  # the intensity that becomes zero
    background: float | None  # the value of what is no tissue, before and after
    least: float = 0.0  # what all else becomes at least: a voxel far below it is an outlier
    # Which voxels of that value are background: "all", "solid" (those in regions of it), or "none"
    # but those that are known to be: outside a mask, or not a number.
    which: str = "all"

    def __str__(self):
        """What is said of it."""
        kept = "" if self.background is None else f", the background of {self.background:g} stays"
        return f"shifted above it for the work, and back in the result{kept}"

    def work(self, data, outside=None):
        """The volume as filters take it, float32.

        Parameters
        ----------
        data : ndarray of float32, shape (X, Y, Z)
        outside : ndarray of bool, of the same shape, optional
            Voxels that are background whatever their value.
        """
        shifted = np.maximum(data - np.float32(self.low), np.float32(self.least))
        if self.background is not None and self.which != "none":
            black = data == np.float32(self.background)
            if self.which == "solid":
                black &= binary_dilation(_core(black))
            shifted[black] = 0
        if outside is not None:
            shifted[outside] = 0
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


def shift_of(data, outside=None):
    """How to shift a volume of which more than one voxel in a hundred is below zero.

    Of a small object in many zeros, one in twenty of its own voxels is enough. Background is the
    value of most voxels on the faces, if there is one: the zeros around a z-scored brain, the
    padding of a CT. So is a value that fills a whole region at the faces. It stays what it is; all
    else is shifted above zero. What lies far below all others is clipped: one such voxel would
    leave filters nothing to see of the rest.

    Parameters
    ----------
    data : ndarray of float32, shape (X, Y, Z)
        Finite.
    outside : ndarray of bool, of the same shape, optional
        Voxels that are known to be no tissue, and are 0 here: outside a mask, or not a number.
        These become background; 0 is background elsewhere only where it surrounds the rest.

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
    below = np.count_nonzero(data < 0)
    if below <= min(NEGATIVE_SHARE * data.size, OF_OBJECT * np.count_nonzero(data)):
        return None
    known = data if outside is None else data[~outside]
    background, which = surround_of(data, outside)
    if background is not None and background == known.min():
        return Shift(background, background)
    first, last = np.quantile(known if background is None else known[known != background],
                              [OUTERMOST, 1 - OUTERMOST])
    low = float(max(known.min(), first - OUTLYING * (last - first)))
    clearance = CLEARANCE * float(last - first)
    if background is None and outside is not None:
        background, which = 0.0, "all" if known.all() else "none"
    return Shift(low - clearance, background, clearance, which)


def surround_of(data, outside=None):
    """The background of a volume, and which voxels of its value are background.

    Parameters
    ----------
    data : ndarray of float32, shape (X, Y, Z)
    outside : ndarray of bool, of the same shape, optional
        Voxels that are known to be no tissue, and are not looked at.

    Returns
    -------
    background : float or None
        The value of most voxels on the faces, or one that fills a region there; None if there is
        none.
    which : str
        As of a `Shift`.
    """
    faces = _faces(data)
    if outside is not None:
        faces = faces[~_faces(outside)]
    if not faces.size:
        return None, "all"
    values, counts = np.unique(faces, return_counts=True)
    value = float(values[counts.argmax()])
    if counts.max() >= SURROUND * faces.size:
        return value, "all"
    same = data == np.float32(value)
    if outside is not None:
        same &= ~outside
    filled = np.count_nonzero(same)
    if filled < SLAB * data.size or np.count_nonzero(_core(same)) < SOLID * filled:
        return None, "all"
    return value, "solid"


def _faces(volume):
    """All voxels on the six faces of a volume."""
    return np.concatenate([volume.take((0, -1), axis).ravel() for axis in range(3)])


def _core(region):
    """The voxels of a region that have it on all six sides; faces of the volume count as it."""
    return binary_erosion(region, border_value=1)
