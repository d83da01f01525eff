"""What touches disk: volumes, filters, metrics. One reader, one writer, and the only place that knows their layout."""
import contextlib
import csv
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from skimage.metrics import structural_similarity
from tqdm import tqdm

from filter_constant import UserError
from hashtable import Boundaries

SUFFIXES = (".nii.gz", ".nii")
FORMAT = 1  # of the saved settings


class Volume(NamedTuple):
    """A volume as it was read: voxels as float32, and the image they came from, for its header and place in space."""

    data: np.ndarray  # (X, Y, Z) float32
    image: nib.Nifti1Image


# ---------------------------------------------------------------------------------------------- volumes

def find_volumes(folder, at_most=0):
    """NIfTI files below a folder, sorted by name.

    Raises
    ------
    UserError
        If the folder is missing or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make it and put .nii.gz volumes in")
    found = sorted(Path(here, name) for here, _, names in os.walk(folder) for name in names
                   if name.endswith(SUFFIXES) and not name.startswith("."))
    if not found:
        raise UserError(f"{folder}: no .nii or .nii.gz volume in it; put some in, or run python sample.py for two public ones")
    return found[:at_most] if at_most else found


def read_volume(path):
    """Read a 3-D volume as float32.

    Raises
    ------
    UserError
        If the file is no readable NIfTI volume of real numbers in three dimensions.
    """
    try:
        image = nib.load(path)
        if image.ndim == 4 and image.shape[3] == 1:
            image = image.slicer[..., 0]
        if image.ndim != 3:
            raise UserError(f"{path}: has {image.ndim} dimensions {image.shape}; a 3-D volume is needed")
        data = image.get_fdata(dtype=np.float32, caching="unchanged")
    except (ImageFileError, OSError, EOFError, ValueError) as fault:
        raise UserError(f"{path}: not a readable NIfTI volume ({_line(fault)}); replace it by a whole file") from fault
    data = np.asarray(data, np.float32)
    if not np.isfinite(data).all():
        data = np.nan_to_num(data, nan=0, posinf=0, neginf=0)
        tqdm.write(f"{path}: not-a-number and infinite voxels are taken as background")
    return Volume(data, image)


def write_volume(path, data, like):
    """Write voxels as float32 under the header, affine and codes of the image they came from."""
    header = like.header.copy()
    header.set_data_dtype(np.float32)
    image = type(like)(np.ascontiguousarray(data, np.float32), None, header)
    with whole_file(path, suffix="".join(Path(path).suffixes[-2:])[-7:]) as temporary:
        nib.save(image, temporary)


def uncrop(cropped, pair, shape):
    """Put a cropped volume back at its place in a volume of zeros of the raw shape, in the input's intensities."""
    volume = np.zeros(shape, np.float32)
    volume[pair.box] = cropped * np.float32(pair.scale)
    return volume


@contextlib.contextmanager
def whole_file(path, suffix=""):
    """A temporary name beside `path` that takes its place when all went well, and is removed otherwise."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=f".part{suffix}", dir=path.parent)
    os.close(handle)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------------------------------------- filters

def filter_paths(settings):
    """Where the filters of a factor lie: filters, boundaries of strength and of coherence, settings."""
    folder, tag = Path(settings.arrays_dir), settings.tag
    return folder / f"h_{tag}.npy", folder / f"Qfactor_str{tag}", folder / f"Qfactor_coh{tag}", folder / f"settings_{tag}.json"


def save_filters(h, boundaries, settings, volumes):
    """Write filters, boundaries and the settings they were learned with; all plain npy content and JSON."""
    paths = filter_paths(settings)
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path, array in zip(paths, (h, boundaries.strength, boundaries.coherence), strict=False):
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)
    about = {"format": FORMAT, "settings": settings.of_groups("method", "learning"), "volumes": [path.name for path in volumes]}
    with whole_file(paths[-1]) as temporary:
        Path(temporary).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def load_filters(settings, given):
    """Read filters and what they were learned with.

    Parameters
    ----------
    settings : Settings
        Where to look, and for which factor.
    given : set of str
        Options that the user gave: they must be those of the filters.

    Returns
    -------
    h : ndarray of float32, shape (buckets, P)
    boundaries : Boundaries
    settings : Settings
        With the method and learning of the filters.

    Raises
    ------
    UserError
        If a file is missing, is not what it should be, or was learned with other settings than given.
    """
    paths = filter_paths(settings)
    for path in paths:
        if not path.is_file():
            others = sorted(p.name for p in paths[0].parent.glob("h_*.npy"))
            hint = f"; there is {', '.join(others)}: give that --factor" if others and path == paths[0] else ""
            raise UserError(f"{path}: not there{hint or '; run python train.py first'}")
    try:
        about = json.loads(paths[-1].read_text(encoding="utf-8"))
        saved = about["settings"]
        learned = dataclasses.replace(settings, **{**saved, "factor": tuple(saved["factor"])})
    except (ValueError, KeyError, TypeError) as fault:
        raise UserError(f"{paths[-1]}: not settings of this version ({_line(fault)}); "
                        "learn again with python train.py") from fault
    for name in given & set(saved):
        if getattr(settings, name) != getattr(learned, name):
            raise UserError(f"{paths[0]}: learned with --{name} {getattr(learned, name)}, not {getattr(settings, name)}; "
                            "leave the option out, or learn again with it")
    h = _load_array(paths[0], (learned.buckets, learned.taps), np.float32)
    boundaries = Boundaries(*(_load_array(path, (classes - 1,), np.float64)
                              for path, classes in zip(paths[1:3], learned.classes[2:4], strict=True)))
    return h, boundaries, learned


def _load_array(path, shape, dtype):
    try:
        with open(path, "rb") as file:
            array = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as fault:
        raise UserError(f"{path}: not a whole npy file ({_line(fault)}); learn again with python train.py") from fault
    if array.shape != shape or array.dtype != dtype:
        raise UserError(f"{path}: holds {array.dtype} of shape {array.shape}, not {np.dtype(dtype)} of {shape}; "
                        "learn again with python train.py")
    if not np.isfinite(array).all():
        raise UserError(f"{path}: holds values that are not numbers; learn again with python train.py")
    return array


def _line(fault):
    """The first line of an exception's text."""
    return (str(fault).splitlines() or [type(fault).__name__])[0]


# ---------------------------------------------------------------------------------------------- figures

def brain_mask(hr, margin):
    """HR voxels of the cropped box that are not zero, up to the last slice that set the box.

    That slice is the one at ``side - margin``: a voxel too near to the face to be restored, but part of the brain.
    """
    mask = np.zeros(hr.shape, bool)
    inner = tuple(slice(margin, side - margin + 1) for side in hr.shape)
    mask[inner] = hr[inner] != 0
    return mask


def figures(hr, estimate, mask):
    """PSNR (dB) and SSIM of an estimate, data range 1: over the brain, and over the whole cropped box as published.

    The box's black surround is restored without error whatever the method, so box figures are higher and say less; the
    difference between two methods in PSNR is the same in both.
    """
    squares = np.square(hr - estimate)
    mean, similarity = structural_similarity(hr, estimate, data_range=1.0, full=True)
    return {"psnr": _decibel(np.mean(squares[mask], dtype=np.float64)), "ssim": float(similarity[mask].mean(dtype=np.float64)),
            "psnr_box": _decibel(np.mean(squares, dtype=np.float64)), "ssim_box": float(mean)}


def _decibel(error):
    return float(-10 * np.log10(error)) if error > 0 else float("inf")


def metrics_row(name, voxels, by_image):
    """One row of metrics.csv from the figures of each image, a dict of dicts."""
    row = {"volume": name, "brain_voxels": int(voxels)}
    for image, found in by_image.items():
        row |= {f"{image}_{figure}": round(value, 5) for figure, value in found.items()}
    return row | {"gain_over_spline": round(by_image["sr"]["psnr"] - by_image["spline5"]["psnr"], 5)}


def write_metrics(path, rows):
    """Write the figures of all volumes as CSV."""
    with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def progress(total, what, unit):
    """A progress bar on a terminal, nothing elsewhere."""
    return tqdm(total=total, desc=what, unit=unit, unit_scale=True, leave=False, disable=None, dynamic_ncols=True)
