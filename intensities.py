"""Shift of a volume with values below zero, because filters expect none and a background of 0."""
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion

# A volume is shifted if its voxels below zero exceed one of two shares; else they are clipped.
NEGATIVE_SHARE = 0.01  # share of all voxels
OF_OBJECT = 0.05  # share of the nonzero voxels, for a small object in many zeros
SURROUND = 0.5  # a value of this share of the voxels on the faces is a surrounding background
SLAB = 0.01  # other values are background if they fill this share of the volume ...
SOLID = 0.5  # ... and if six equal neighbours surround this share of its voxels; few in tissue
CLEARANCE = 0.01  # distance of the lowest intensity from the background, as a share of the range
OUTERMOST = 0.001  # share of the voxels left out at each end of the intensities, for the range
OUTLYING = 0.25  # share of the range; voxels farther below the range are clipped


class Shift(NamedTuple):
    """Shift from a volume's own intensities to intensities for filters: 0 or more, background 0."""

    low: float  # the intensity that becomes zero
    background: float | None  # value of the background in original and result; None: it has none
    least: float = 0.0  # lowest shifted intensity of tissue; lower outliers are clipped to it
    # Voxels with the background value that count as background: "all", "solid" (those in regions of
    # this value), or "none". Voxels outside a mask or not a number are background in any case.
    which: str = "all"

    def __str__(self):
        """The shift in words, for a message."""
        kept = "" if self.background is None else f", the background of {self.background:g} stays"
        return f"shifted above zero for the filters; results are shifted back{kept}"

    def work(self, data, outside=None):
        """The shifted volume for the filters, float32.

        Parameters
        ----------
        data : ndarray of float32, shape (X, Y, Z)
        outside : ndarray of bool, of the same shape, optional
            Voxels that are background, whatever their value is.
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
        """The shifted volume, back in its original intensities.

        Parameters
        ----------
        work : ndarray of float32
        black : ndarray of bool, of the same shape, optional
            The background; by default the voxels that are zero.
        """
        own = work + np.float32(self.low)
        if self.background not in (None, self.low):
            own[work == 0 if black is None else black] = self.background
        return own


def shift_of(data, outside=None):
    """The `Shift` of a volume with more than one voxel in a hundred below zero.

    For a small object in many zeros, one in twenty of its own voxels is enough. A value of at least
    half of the voxels on the faces is background: the zeros around a z-scored brain, or the padding
    of a CT. If no value reaches half, the most frequent value on the faces is still background if
    its voxels form a solid block. The background keeps its value, and all other voxels are shifted
    above zero; a background far below the tissue is first brought near to it. Voxels far below all
    others are clipped: otherwise a single one of them would compress the other intensities.

    Parameters
    ----------
    data : ndarray of float32, shape (X, Y, Z)
        Finite.
    outside : ndarray of bool, of the same shape, optional
        Voxels that are not tissue: outside a mask, or not a number. They are 0 in `data`, and
        become background. Other zeros are background only if they surround the rest.

    Returns
    -------
    Shift or None
        None if the volume has so few voxels below zero that they are clipped.

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
    tissue = known if background is None else known[known != background]
    if not tissue.size:
        return Shift(background, background)
    first, last = np.quantile(tissue, [OUTERMOST, 1 - OUTERMOST])
    # A background far below the tissue would leave the tissue a small part of the range only.
    if background == known.min() and first - background <= last - first:
        return Shift(background, background)
    low = float(max(tissue.min(), first - OUTLYING * (last - first)))
    clearance = CLEARANCE * float(last - first)
    if background is None and outside is not None:
        background, which = 0.0, "all" if known.all() else "none"
    return Shift(low - clearance, background, clearance, which)


def surround_of(data, outside=None):
    """The background value of a volume, and which voxels with this value are background.

    Parameters
    ----------
    data : ndarray of float32, shape (X, Y, Z)
    outside : ndarray of bool, of the same shape, optional
        Voxels that are not tissue, and are left out.

    Returns
    -------
    background : float or None
        The value of half or more of the voxels on the faces, or a value that fills a region at
        the faces; None if there is no such value.
    which : str
        See `Shift.which`.
    """
    faces = _faces(data)
    if outside is not None:
        faces = faces[~_faces(outside)]
    if not faces.size:
        return None, "all"
    values, counts = np.unique(faces, return_counts=True)
    value = float(values[counts.argmax()]) + 0.0  # no -0.0, as a map times a mask has
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
    """The voxels whose six neighbours are in the region, or outside the volume."""
    return binary_erosion(region, border_value=1)
