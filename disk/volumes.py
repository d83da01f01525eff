"""Volumes from and to NIfTI files: one reader and one writer. Their place in space comes with them."""
import contextlib
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from isal import igzip
from tqdm import tqdm

from disk.files import whole_file
from machine.errors import UserError, one_line
from disk.nifti_check import checked_image, clean_voxels, read_voxels

SUFFIXES = (".nii.gz", ".nii")
GZIP_LEVEL = 2  # of igzip: files of zlib's level 1 in a seventh of its time


class Volume(NamedTuple):
    """A volume as it was read: voxels as float32, and the image they came from, for its header and place in space."""

    data: np.ndarray  # (X, Y, Z) float32
    image: nib.Nifti1Image


def find_volumes(folder, at_most=0):
    """NIfTI files below a folder, sorted by name; of a single file, that file.

    Raises
    ------
    UserError
        If the folder is missing or holds none.
    """
    folder = Path(folder)
    if folder.is_file():
        if not folder.name.endswith(SUFFIXES):
            raise UserError(f"{folder}: not a NIfTI volume; its name must end in .nii or .nii.gz")
        return [folder]
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make it and put .nii.gz volumes in")
    found = sorted(Path(here, name) for here, names in _walk(folder) for name in names
                   if name.endswith(SUFFIXES) and not name.startswith("."))
    if not found:
        raise UserError(f"{folder}: no .nii or .nii.gz volume in it; put some in, or run python sample.py for two public ones")
    return found[:at_most] if at_most else found


def _walk(folder):
    """Folders below a folder, each once: links to folders are followed, but not in circles."""
    seen = set()
    for here, below, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(here)
        if place in seen:
            below.clear()
            continue
        seen.add(place)
        below.sort()
        yield here, names


def relative_name(path, folder):
    """The name of a volume below its folder, with / between the parts: what it is known by in records and results."""
    path, folder = Path(path), Path(folder)
    return path.relative_to(folder).as_posix() if folder != path and folder in path.parents else path.name


def read_volume(path):
    """Read a 3-D volume as float32.

    Raises
    ------
    UserError
        If the file is no whole NIfTI volume of real numbers in three dimensions, or holds nothing.
    """
    image, shape = checked_image(path)
    data, remarks = clean_voxels(path, read_voxels(path, image, shape))
    for remark in remarks:
        tqdm.write(one_line(remark), file=sys.stderr)
    while image.ndim > 3:
        image = image.slicer[..., 0]
    return Volume(data, image)


def largest_volume(volumes):
    """Voxels of the largest of these volumes, by their headers; faulty ones are left for their turn."""
    largest = 0
    for path in volumes:
        with contextlib.suppress(UserError):
            largest = max(largest, math.prod(checked_image(path)[1]))
    return largest


def read_series(path):
    """Read a volume or a series of volumes: shape (X, Y, Z) or (X, Y, Z, T) as float32, and the image it came from.

    Raises
    ------
    UserError
        If the file is no readable NIfTI image of real numbers in three or four dimensions.
    """
    image, shape = checked_image(path, dimensions=(3, 4))
    if len(shape) == 3:
        return read_volume(path)
    data, remarks = clean_voxels(path, read_voxels(path, image, shape))
    for remark in remarks:
        tqdm.write(one_line(remark), file=sys.stderr)
    return Volume(data, image)


def finer_header(image, shape, fine_to_low):
    """The header of an image for voxels on a finer grid.

    sform and qform, each with the code it had, say where the new voxels lie; where neither has a code, only the voxel
    size says something.

    Parameters
    ----------
    image : nibabel image
    shape : tuple of int
        Of the new voxels, with the fourth axis where there is one.
    fine_to_low : ndarray, shape (4, 4)
        From new voxels to those of `image`.
    """
    header = image.header.copy()
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = header.get_qform(coded=True)
    zooms = np.array(header.get_zooms())
    zooms[:3] *= np.diag(fine_to_low)[:3]
    header.set_data_shape(shape)
    header.set_zooms(zooms[:len(shape)])
    if qform_code:
        header.set_qform(qform @ fine_to_low, int(qform_code))
    if sform_code:
        header.set_sform(sform @ fine_to_low, int(sform_code))
    for name in ("slice_start", "slice_end", "slice_code", "slice_duration"):
        header[name] = 0  # the finer slices were not measured one after another
    return header


def write_volume(path, data, like, header=None, dtype="float32"):
    """Write voxels under the header, affine and codes of the image they came from, or under another header.

    With dtype "same" they are stored as that image stores them, with its scaling, rounded and clipped to what it can hold.
    """
    header = (header or like.header).copy()
    header.set_data_dtype(np.float32)
    data = np.ascontiguousarray(data, np.float32)
    kept = like.get_data_dtype()
    if dtype == "same":
        header.set_data_dtype(kept)
    if dtype == "same" and kept.kind in "iu":
        slope, inter = (getattr(like.dataobj, name, default) for name, default in (("slope", 1), ("inter", 0)))
        limits = np.iinfo(kept)
        data = np.clip(np.rint((data.astype(np.float64) - inter) / slope), limits.min, limits.max).astype(kept)
    image = type(like)(data, None, header)
    if data.dtype.kind in "iu":
        image.header.set_slope_inter(slope, inter)  # only now: an image made from a header forgets its scaling
    with whole_file(path, suffix="".join(Path(path).suffixes[-2:])[-7:]) as temporary:
        with open(temporary, "wb") as plain:
            if temporary.endswith(".gz"):  # neither name nor time in the stream: the same voxels give the same bytes
                with igzip.IGzipFile("", "wb", GZIP_LEVEL, plain, mtime=0) as packed:
                    image.to_stream(packed)
            else:
                image.to_stream(plain)


def target_paths(volumes, folder, settings):
    """Where each restored volume goes: the name of its input, or --suffix behind it, or --output.

    Raises
    ------
    UserError
        If --output names one file for several volumes, or a result would fall on an input.
    """
    if settings.output and len(volumes) > 1:
        raise UserError(f"--output names one file, {settings.test_dir} holds {len(volumes)}; use --result_dir, or one volume")
    targets = [Path(settings.output)] if settings.output else [
        (folder / relative_name(path, settings.test_dir)).with_name(stem(path) + settings.suffix + path.name[len(stem(path)):])
        for path in volumes]
    inputs = {os.path.realpath(path): path for path in volumes}
    for target in targets:
        if path := inputs.get(os.path.realpath(target)):
            raise UserError(f"{path}: a result would overwrite it; give another --output or --result_dir")
    return targets


def sidecar_names(targets):
    """The name that the picture and the record of each result carry, without their endings.

    The result's own name without .nii or .nii.gz; with it, where two results in one folder differ in nothing else.
    """
    plain = [target.with_name(stem(target)) for target in targets]
    return [target if plain.count(name) > 1 else name for target, name in zip(targets, plain, strict=True)]


def stem(path):
    """The name of a volume without .nii or .nii.gz."""
    name = Path(path).name
    return name[:-len(next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")) or None]


def uncrop(cropped, pair, shape):
    """Put a cropped volume back at its place in a volume of zeros of the raw shape, in the input's intensities."""
    volume = np.zeros(shape, np.float32)
    volume[pair.box] = cropped * np.float32(pair.scale)
    return volume
