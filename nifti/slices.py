"""What is known of a volume's slices beyond its header: by its BIDS sidecar, and by the user."""
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from disk.files import read_json, stem
from machine.errors import complain
from nifti.geometry import MM

TOUCHING = 0.02  # of the spacing: slices thinner or thicker by less just touch


class Slices(NamedTuple):
    """Of a volume's slices, in mm; None where nobody says."""

    thickness: float | None
    spacing: float | None  # from the middle of one to that of the next


def slices_beside(path):
    """What the JSON file of a volume's own name says of its slices.

    Parameters
    ----------
    path : path-like
        Of the volume.

    Returns
    -------
    Slices
        Nothing, where there is no such file, it cannot be read, or does not say.

    Examples
    --------
    >>> slices_beside("no_such_scan.nii.gz")
    Slices(thickness=None, spacing=None)
    """
    held = _sidecar(path)
    return Slices(*(_length(held.get(name)) for name in ("SliceThickness", "SpacingBetweenSlices")))


def filled_up(path, sizes):
    """What the sidecar says of an interpolated plane: measured shares of its voxels, per axis.

    Scanners write how many lines they acquired and how many they hand out. Slices are taken to be
    along the longest voxel size; 1 where nothing is said.

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
    held = _sidecar(path)
    acquired, given = (_length(held.get(name)) for name in ("AcquisitionMatrixPE", "ReconMatrixPE"))
    if not acquired or not given or acquired >= given:
        return (1.0, 1.0, 1.0)
    return tuple(1.0 if axis == int(np.argmax(sizes)) else acquired / given for axis in range(3))


def _sidecar(path):
    """What the JSON file of a volume's own name holds; empty where there is none to be read."""
    try:
        return read_json(Path(path).with_name(f"{stem(path)}.json"))
    except ValueError:
        return {}


def slices_in_words(path, sizes, unit="mm"):
    """What is known of the slices beyond the header: their thickness, and gaps or overlaps.

    Parameters
    ----------
    path : Path
        A BIDS sidecar may lie beside it.
    sizes : ndarray, shape (3,)
        Voxel sizes. Slices are taken to be along the longest.
    unit : {"mm", "um", "m"}, optional
        Of the sizes. Sidecars are in mm.

    Returns
    -------
    str
        Empty where nobody says how thick they are, or they just touch.
    """
    beside = Slices(*(said and said / MM[unit] for said in slices_beside(path)))
    axis = int(np.argmax(sizes))
    spacing, thickness = sizes[axis], beside.thickness
    if beside.spacing and abs(beside.spacing - spacing) > TOUCHING * spacing:
        complain("test", f"{path}: its sidecar says that slices lie {beside.spacing:.4g} {unit} "
                 f"apart, its header says {spacing:.4g} {unit}, which is taken; correct the one "
                 "that is wrong")
    if not thickness or abs(thickness - spacing) <= TOUCHING * spacing:
        return ""
    apart = f"slices of {thickness:.4g} {unit} lie {spacing:.4g} {unit} apart along axis {axis}"
    if thickness > spacing:
        complain("test", f"{path}: {apart}, so they overlap; filters have learned from none that "
                 "do, and may leave some blur there")
        return ""
    return f"{apart}, a gap of {spacing - thickness:.4g} {unit}"


def _length(value):
    """A length in mm; None where it is none."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if good and math.isfinite(value) and value > 0 else None
