"""Checks of the arguments of the functions in api.py; a wrong argument is a ValueError of one line.

Arrays are copied: no argument is changed.
"""
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from filter_constant import METHOD_NAMES, OPTION, PROFILES
from machine.option_fields import as_typed

MOST = OPTION["factor"].metadata["high"]  # largest factor
PER_AXIS = 3
LONGEST = 200  # bytes of a name; beside a volume, files with longer names are written
NOISE_MOST = OPTION["test_noise"].metadata["high"]  # per cent
# Options of `learn`: those of the method, and those that concern the sums in its folder.
OF_LEARN = METHOD_NAMES - {"preset", "factor"} | {"restart", "checkpoint_minutes", "max_memory"}


def volume_like(name: str, array: ArrayLike) -> NDArray[np.float32]:
    """A copy of an array as float32, after checks of its shape and type.

    Masked voxels are not a number in the copy, so they count as background.
    """
    found = _array_of(name, array)
    if found.ndim != PER_AXIS:
        raise ValueError(f"{name} must be 3-D, got shape {found.shape}")
    if found.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers, got {found.dtype}")
    if not found.size:
        raise ValueError(f"{name} is empty, shape {found.shape}")
    with np.errstate(over="ignore"):  # too large numbers become infinite, and are found later
        data = np.array(np.asarray(found), np.float32, order="C")
    if isinstance(found, np.ma.MaskedArray):
        data[np.ma.getmaskarray(found)] = np.nan
    return data


def _array_of(name: str, array: ArrayLike) -> NDArray[Any]:
    """An array; ValueError is raised for an image of nibabel, or the path of a file."""
    if hasattr(array, "get_fdata") or isinstance(array, (str, PurePath)):
        raise ValueError(f"{name} must be an array, got {type(array).__name__}; read a file with "
                         "nibabel.load(path).get_fdata()")
    return np.asanyarray(array)


def mask_like(mask: ArrayLike, shape: tuple[int, ...], least: float) -> NDArray[np.bool_]:
    """The voxels of a mask that are above `least`; masked voxels are not."""
    found = _array_of("mask", mask)
    if found.shape != shape:
        raise ValueError(f"mask must have the shape of array, {shape}, got {found.shape}")
    if found.dtype.kind not in "biuf":
        raise ValueError(f"mask must hold real numbers, got {found.dtype}")
    inside = np.asarray(found) > least
    if isinstance(found, np.ma.MaskedArray):
        inside &= ~np.ma.getmaskarray(found)
    if not inside.any():
        raise ValueError(f"mask holds no voxel above {least}")
    return inside


def flag_like(name: str, value: Any) -> bool | None:
    """True, False or None; ValueError is raised for other values, such as ``"no"``."""
    if value is not None and not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True, False or None, got {value!r}")
    return None if value is None else bool(value)


def factor_of(factor: int | Sequence[int]) -> tuple[int, ...]:
    """Three factors, from one for all axes or one for each."""
    try:
        found = np.atleast_1d(np.asarray(factor))
    except ValueError:  # lists of different lengths
        found = np.zeros(0)
    whole = found.dtype.kind in "iu" and found.shape in ((1,), (PER_AXIS,))
    if not whole or found.min() < 1 or not 1 < found.max() <= MOST:
        raise ValueError(f"factor must be a whole number from 2 to {MOST}, or three from 1 to "
                         f"{MOST}, not all 1; got {factor!r}")
    return tuple(map(int, np.broadcast_to(found, PER_AXIS)))


def sizes_of(voxel_size: float | Sequence[float] | None,
             factor: tuple[int, ...]) -> NDArray[np.float64]:
    """Three voxel sizes; by default finer voxels are cubes, and the shortest side is 1 mm."""
    by_default = np.divide(factor, min(factor))
    found = _numbers(by_default if voxel_size is None else voxel_size)
    if found.shape not in ((), (PER_AXIS,)) or not (np.isfinite(found) & (found > 0)).all():
        raise ValueError("voxel_size must be one length in mm above 0, or three, "
                         f"got {voxel_size!r}")
    return np.array(np.broadcast_to(found, PER_AXIS))


def profiles_of(profile: str | Sequence[str] | None) -> tuple[str, ...]:
    """Slice profiles of the three axes; empty if they are not known."""
    if profile is None:
        return ()
    found = PER_AXIS * (profile,) if _is_single(profile) else tuple(profile)
    if len(found) != PER_AXIS or not all(name in PROFILES for name in found):
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, or three of them, "
                         f"got {profile!r}")
    return tuple(map(str, found))


def noise_of(noise: float) -> float:
    """A noise level in per cent."""
    found = _numbers(noise)
    if found.shape or not 0 <= found <= NOISE_MOST:  # False for not-a-number
        raise ValueError(f"noise must be a number of per cent from 0 to {NOISE_MOST}, "
                         f"got {noise!r}")
    return float(found)


def several_of(name: str, values: Any) -> tuple[Any, ...]:
    """The values of a sequence or another iterable, each once; no text and no single value."""
    if _is_single(values) or not (found := tuple(values)):
        raise ValueError(f"{name} must be a list of at least one value, got {values!r}")
    return tuple(value for number, value in enumerate(found) if value not in found[:number])


def seed_of(seed: int) -> int:
    """A seed of random numbers."""
    found = np.asarray(seed)
    if found.dtype.kind not in "iu" or found.shape or found < 0:
        raise ValueError(f"seed must be a whole number, 0 or more, got {seed!r}")
    return int(found)


def images_of(images: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """File names and arrays of volumes to learn from.

    Parameters
    ----------
    images : dict of str to array_like, or iterable of array_like
        The names in a dict are paths of files, relative and with /; .nii is added if it is missing.

    Yields
    ------
    name : str
    data : ndarray of float32, shape (X, Y, Z)
    """
    if not isinstance(images, Mapping):
        if _is_single(images):
            raise ValueError(f"images must be a dict or a list of arrays, got {images!r}")
        images = {f"volume_{number:03}.nii": image for number, image in enumerate(images)}
    if not images:
        raise ValueError("images holds no volume")
    before: dict[str, str] = {}
    for name, image in images.items():
        data, file = volume_like(name, image), _file_name(name)
        key = f"{file.casefold()}/"  # so that a file and a folder of one name are found too
        for known, other in before.items():
            if known.startswith(key) or key.startswith(known):
                raise ValueError(f"images holds {other!r} and {name!r}, which may name one file; "
                                 "rename one of them")
        before[key] = name
        yield file, data


def _file_name(name: Any) -> str:
    """The relative path of a volume, from its name; never a path to a folder above."""
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part != PurePath(part).name or set(part) & {"\\", "\0"} or part in ("", "..")
           for part in parts):
        raise ValueError(f"images has the name {name!r}; names must be those of files, such as "
                         "'sub-01_T1w.nii' or 'sub-01/anat/sub-01_T1w.nii'")
    if max(len(os.fsencode(part)) for part in parts) > LONGEST:
        raise ValueError(f"images has a name of {len(name)} letters, {name[:20]}...; shorten it "
                         f"to {LONGEST} bytes")
    return name if name.lower().endswith((".nii", ".nii.gz")) else f"{name}.nii"


def options_of_learn(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `learn`, with tuples where an option takes several values."""
    found = {}
    for name, value in options.items():
        if name not in OF_LEARN:
            raise ValueError(f"options: learn has no option {name}; it takes the options of "
                             "train.py about the method and the learning, see docs/options.md")
        if isinstance(value, np.generic):
            value = value.item()
        if "several" in OPTION[name].metadata:
            values = [as_typed(OPTION[name], each)
                      for each in ([value] if _is_single(value) else value)]
            found[name] = tuple(dict.fromkeys(values))  # each once, as the command reads them
            if not found[name]:
                raise ValueError(f"{name} is empty; give at least one value")
        else:
            found[name] = as_typed(OPTION[name], value)
    return found


def _is_single(value: Any) -> bool:
    """True for a text, and for any other value that is not iterable."""
    return isinstance(value, str) or not hasattr(value, "__iter__")


def _numbers(values: Any) -> NDArray[np.float64]:
    """Values as an array of float; not-a-number if they are no numbers."""
    try:
        found = np.asarray(values)
    except ValueError:  # lists of different lengths
        found = np.zeros(0, object)
    return found.astype(float) if found.dtype.kind in "iuf" else np.asarray(np.nan)
