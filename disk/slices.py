"""What a BIDS sidecar says of a volume's slices."""
import math
from pathlib import Path
from typing import NamedTuple

from disk.files import read_json
from disk.volumes import stem


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
    try:
        held = read_json(Path(path).with_name(f"{stem(path)}.json"))
    except ValueError:
        return Slices(None, None)
    return Slices(*(_length(held.get(name)) for name in ("SliceThickness", "SpacingBetweenSlices")))


def _length(value):
    """A length in mm; None where it is none."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if good and math.isfinite(value) and value > 0 else None
