"""Thickness and spacing of a volume's slices, from its BIDS sidecar."""
import math
from pathlib import Path

import numpy as np

from disk.files import read_json, stem
from machine.errors import complain
from nifti.geometry import MM

TOUCHING = 0.02  # share of the spacing; slices with a smaller gap or overlap count as touching


def filled_up(path, sizes):
    """Ratio of acquired to reconstructed voxels along each axis, from the sidecar.

    A sidecar may state the number of acquired lines and the number of reconstructed lines within a
    slice. The ratio is 1 along the slice axis (the axis with the largest voxel size). Without an
    interpolation in the sidecar it is 1 along all axes.

    Parameters
    ----------
    path : Path
    sizes : sequence of three float
        Voxel sizes.

    Returns
    -------
    tuple of three float

    Examples
    --------
    >>> filled_up("no_such_scan.nii.gz", (1, 1, 4))
    (1.0, 1.0, 1.0)
    """
    held = sidecar_beside(path)
    acquired, given = (_length(held.get(name)) for name in ("AcquisitionMatrixPE", "ReconMatrixPE"))
    if not acquired or not given or acquired >= given:
        return (1.0, 1.0, 1.0)
    return tuple(1.0 if axis == int(np.argmax(sizes)) else acquired / given for axis in range(3))


def sidecar_beside(path):
    """Content of a volume's JSON sidecar; empty if the sidecar is missing or unreadable."""
    try:
        return read_json(Path(path).with_name(f"{stem(path)}.json"))
    except ValueError:
        return {}


def slices_in_words(path, sizes, unit="mm"):
    """A text with the thickness of the slices and the gap between them.

    If slices overlap, or the sidecar contradicts the header, a message is printed.

    Parameters
    ----------
    path : Path
        Path of the volume, with or without a BIDS sidecar.
    sizes : ndarray, shape (3,)
        Voxel sizes. The axis with the largest size is taken as the slice axis.
    unit : {"mm", "um", "m"}, optional
        Unit of the sizes. Sidecars are in mm.

    Returns
    -------
    str
        Empty if the thickness is unknown, or the slices touch or overlap.
    """
    held = sidecar_beside(path)
    thickness, said = (length and length / MM[unit] for length in (
        _length(held.get(name)) for name in ("SliceThickness", "SpacingBetweenSlices")))
    axis = int(np.argmax(sizes))
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


def _length(value):
    """A positive finite number as float; None for other values."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if good and math.isfinite(value) and value > 0 else None
