"""Thickness and spacing of a volume's slices, from its BIDS sidecar."""
import math
from pathlib import Path

import numpy as np

from disk.files import read_json, stem
from machine.errors import complain
from nifti.geometry import MM, ratio_of_lengths, unit_of

THICK = 1.5  # slices count as thick if the voxel sizes of two axes have a larger ratio
TOUCHING = 0.02  # share of the spacing; slices with a smaller gap or overlap count as touching


def slice_axis(image, sizes, lengths=()):
    """The axis across the slices of a scan; None if it is unknown.

    Parameters
    ----------
    image : nibabel image
        Its header may state the axis.
    sizes : ndarray, shape (3,)
        Voxel sizes.
    lengths : sequence of float or None, optional
        Spacing and thickness of the slices, from the sidecar; None if unknown.

    Returns
    -------
    int or None

    Examples
    --------
    >>> import nibabel as nib
    >>> image = nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4))
    >>> slice_axis(image, np.array([1, 1, 4])), slice_axis(image, np.array([2.5, 2.5, 2]), [2.0])
    (2, 2)
    >>> slice_axis(image, np.array([1, 1, 0.9]))
    """
    stated = image.header.get_dim_info()[2]
    if stated is not None:
        return stated
    if ratio_of_lengths(sizes.max(), np.sort(sizes)[1]) > THICK:
        return int(np.argmax(sizes))
    for length in filter(None, lengths):
        alike = np.flatnonzero(np.abs(sizes - length) <= TOUCHING * length)
        if alike.size == 1:
            return int(alike[0])
    return None


def filled_up(path, image, sizes):
    """Ratio of acquired to reconstructed voxels along each axis, from the sidecar.

    A sidecar may state the number of acquired lines and the number of reconstructed lines within a
    slice. The ratio is 1 along the slice axis, if this is known. Without an interpolation in the
    sidecar it is 1 along all axes.

    Parameters
    ----------
    path : Path
    image : nibabel image
    sizes : ndarray, shape (3,)
        Voxel sizes, in the unit of the header.

    Returns
    -------
    tuple of three float

    Examples
    --------
    >>> import nibabel as nib
    >>> image = nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4))
    >>> filled_up("no_such_scan.nii.gz", image, np.array([1, 1, 4]))
    (1.0, 1.0, 1.0)
    """
    held = sidecar_beside(path)
    acquired, given = (_length(held.get(name)) for name in ("AcquisitionMatrixPE", "ReconMatrixPE"))
    if not acquired or not given or acquired >= given:
        return (1.0, 1.0, 1.0)
    across = slice_axis(image, sizes, _slice_lengths(held, unit_of(image)))
    return tuple(1.0 if axis == across else acquired / given for axis in range(3))


def sidecar_beside(path):
    """Content of a volume's JSON sidecar; empty if the sidecar is missing or unreadable."""
    try:
        return read_json(Path(path).with_name(f"{stem(path)}.json"))
    except ValueError:
        return {}


def slices_in_words(path, image, sizes, unit="mm"):
    """A text with the thickness of the slices and the gap between them.

    If slices overlap, or the sidecar contradicts the header, a message is printed.

    Parameters
    ----------
    path : Path
        Path of the volume, with or without a BIDS sidecar.
    image : nibabel image
    sizes : ndarray, shape (3,)
        Voxel sizes.
    unit : {"mm", "um", "m"}, optional
        Unit of the sizes. Sidecars are in mm.

    Returns
    -------
    str
        Empty if the thickness or the slice axis is unknown, or the slices touch or overlap.
    """
    held = sidecar_beside(path)
    said, thickness = lengths = _slice_lengths(held, unit)
    if (axis := slice_axis(image, sizes, lengths)) is None:
        return ""
    spacing = sizes[axis]
    if said and abs(said - spacing) > TOUCHING * spacing:
        complain("test", f"{path}: its sidecar says that slices lie {said:.4g} {unit} "
                 f"apart, its header says {spacing:.4g} {unit}; the header is used; correct the "
                 "one that is wrong")
    if not thickness or abs(thickness - spacing) <= TOUCHING * spacing:
        return ""
    apart = f"slices of {thickness:.4g} {unit} lie {spacing:.4g} {unit} apart along axis {axis}"
    if thickness > spacing:
        complain("test", f"{path}: {apart}, so they overlap; the filters have not learned from "
                 "overlapping slices, and may leave some blur")
        return ""
    return f"{apart}, a gap of {spacing - thickness:.4g} {unit}"


def _slice_lengths(held, unit):
    """Spacing and thickness of the slices in a sidecar; None for each that it does not state."""
    return [_length(held.get(name), unit) for name in ("SpacingBetweenSlices", "SliceThickness")]


def _length(value, unit="mm"):
    """A positive finite number, in mm in a sidecar, in another unit; None for other values."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value / MM[unit] if good and math.isfinite(value) and value > 0 else None
