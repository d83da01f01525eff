"""Read and write volumes as NIfTI files, with their position in space."""
import contextlib
import math
import os
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from isal import igzip

from disk.files import ENDING, stem, whole_file
from intensities import shift_of, surround_of
from machine.errors import UserError
from machine.memory import SERIES_BYTES
from machine.progress import say
from nifti.bids import derivative_stem, makes_derivatives
from nifti.checks import checked_image, clean_voxels, read_voxels

LEAST_TISSUE = 0.01  # share of voxels above a background that is not zero, to report it
GZIP_LEVEL = 2  # level of igzip: file size as with level 1 of zlib, in a seventh of the time


class Volume(NamedTuple):
    """A volume, or a series of volumes, as it was read from a file."""

    data: np.ndarray  # (X, Y, Z) or (X, Y, Z, T) float32
    image: nib.Nifti1Image  # source image, with header and position in space
    shifts: tuple = (None,)  # of `Shift`, for each volume; None if (almost) no voxel is below zero

    @property
    def shift(self):
        """Shift of the first volume, or None."""
        return self.shifts[0]


# -------------------------------------------------------------------------------------------- names

def relative_name(path, folder):
    """Name of a volume in records and results: its path below its folder.

    Parameters
    ----------
    path, folder : path-like
        `folder` may be the volume itself.

    Returns
    -------
    str
        Path with / as the separator.

    Examples
    --------
    >>> relative_name("train/site1/sub-01.nii.gz", "train")
    'site1/sub-01.nii.gz'
    >>> relative_name("sub-01.nii.gz", "sub-01.nii.gz")
    'sub-01.nii.gz'
    """
    path, folder = Path(path), Path(folder)
    if folder == path or folder not in path.parents:
        return path.name
    return path.relative_to(folder).as_posix()


def is_volume_name(name):
    """True if a name consists of a stem and .nii or .nii.gz, in lower or upper case."""
    return bool(ENDING.search(name, 1))


def target_paths(volumes, folder, request, masks=()):
    """The path of the result of each volume.

    Parameters
    ----------
    volumes : list of Path
        Volumes to restore.
    folder : Path
        Folder of the results.
    request : Request
    masks : sequence of Path, optional
        Masks, which must not be overwritten either.

    Returns
    -------
    list of Path
        The path of --output, or for each input its name with --suffix, in `folder` or a subfolder.
        Upscaled volumes of a BIDS dataset get the names of derivatives.

    Raises
    ------
    UserError
        If --output names one file for several volumes, or a result would overwrite an input.
    """
    if request.output and len(volumes) > 1:
        raise UserError(f"--output names one file, {request.test_dir} holds {len(volumes)}; "
                        "use --result_dir, or one volume")
    if request.output:
        targets = [Path(request.output)]
    else:
        dataset = makes_derivatives(request)
        targets = [_target_path(path, folder, request, dataset) for path in volumes]
    inputs = {os.path.realpath(path): path for path in [*volumes, *masks]}
    for target in targets:
        if path := inputs.get(os.path.realpath(target)):
            raise UserError(f"{path}: a result would overwrite it; give another --output, "
                            "--suffix, --into or --result_dir")
    return targets


def _target_path(path, folder, request, dataset):
    name, ending = stem(path), path.name[len(stem(path)):]
    target = folder / relative_name(path, request.test_dir)
    derived = derivative_stem(name, request.suffix) if dataset else None
    return target.with_name((derived or name + request.suffix) + ending)


# ------------------------------------------------------------------------------------------ reading

def read_volume(path, inside=None):
    """Read a 3-D volume.

    Parameters
    ----------
    path : path-like
    inside : ndarray of bool, shape (X, Y, Z), optional
        Brain mask. Voxels outside the mask are set to zero, and do not count as tissue.

    Returns
    -------
    Volume
        Data of shape (X, Y, Z), in the file's intensities. Not-a-number and infinite voxels are 0.
        If many voxels are below zero, the intensities are shifted, and `shift` records this. Each
        volume of a series is shifted separately.

    Raises
    ------
    UserError
        If the file is not a complete NIfTI volume of real numbers in three dimensions, or all its
        voxels are equal or not above zero.
    """
    return _read(path, *checked_image(path), inside)


def read_series(path, opened=None):
    """Read a volume or a series of volumes.

    Parameters
    ----------
    path : path-like
    opened : tuple, optional
        Result of `checks.checked_image` for this file, if its header was read before.

    Returns
    -------
    Volume
        See `read_volume`; data of shape (X, Y, Z) or (X, Y, Z, T).

    Raises
    ------
    UserError
        If the file is not a complete NIfTI image of real numbers in three or four dimensions, or
        all its voxels are equal or not above zero.
    """
    return _read(path, *(opened or checked_image(path, (3, 4), SERIES_BYTES)))


def _read(path, image, shape, inside=None):
    volume = volume_of(read_voxels(path, image, shape), image, path, inside)
    while len(shape) == 3 and image.ndim > 3:  # the result of a series of one volume is a volume
        scaling = _scaling(image)
        image = image.slicer[..., 0]
        image.header.set_slope_inter(*scaling)  # slicing loses the scaling
    return volume._replace(image=image)


def volume_of(data, image, name, inside=None):
    """A `Volume` from voxels in memory, after the same checks as in `read_volume`.

    Parameters
    ----------
    data : ndarray of float32, shape (X, Y, Z) or (X, Y, Z, T)
        May be changed in place.
    image : nibabel image
        Source of header and position in space.
    name : path-like
        Name in messages.
    inside : ndarray of bool, shape (X, Y, Z), optional
        See `read_volume`.

    Raises
    ------
    UserError
        If all voxels are equal or not above zero.
    """
    named = name
    if inside is not None:
        data[~inside] = 0
        named = f"{name}, inside its mask"
    data, remarks, outside = clean_voxels(named, data)
    if inside is not None:
        outside = ~inside if outside is None else outside | ~inside
    shifts, below = _shifted(data.reshape(*data.shape[:3], -1),
                             None if outside is None else outside.reshape(*data.shape[:3], -1))
    remarks += [f"{name}: {remark}" for remark in below]
    for remark in [*image.extra.get("remarks", ()), *remarks]:
        say(remark, "stderr")
    return Volume(data, image, shifts)


def _shifted(series, outside=None):
    """Shift volumes with many voxels below zero above zero, in place; returns shifts and remarks.

    `series` and `outside` have the shape (X, Y, Z, T). `outside` marks voxels that are not tissue.
    """
    shifts, remarks, moved, lowest, grey = [], [], [], 0.0, 0.0
    for number in range(series.shape[3]):
        volume = series[..., number]
        none = None if outside is None else outside[..., number]
        if none is not None and not none.any():
            none = None
        low, shift = float(volume.min()), shift_of(volume, none)
        shifts.append(shift)
        if shift:
            moved.append((low, np.count_nonzero(volume < 0) / volume.size, shift))
            series[..., number] = shift.work(volume, none)
        else:
            lowest = min(lowest, low)
            if low > 0 and surround_of(volume, none)[0] == low and (
                    np.count_nonzero(volume > low) > LEAST_TISSUE * volume.size):
                grey = grey or low
    if moved:
        low, share, shift = min(moved, key=lambda of_one: of_one[0])
        remarks.append(f"{share:.0%} of its voxels are below zero (down to {low:g}): {shift}"
                       if len(shifts) == 1 else
                       f"in {len(moved)} of its {len(shifts)} volumes many voxels are below zero "
                       f"(down to {low:g}): each of these is {shift}")
    if grey:
        remarks.append(f"its background seems to be {grey:g}, not 0, and counts as tissue; "
                       "subtract this value, or give a brain mask (--mask)")
    if lowest < 0:
        remarks.append(f"voxels below zero (down to {lowest:g}) are clipped to 0, as in the paper")
    return tuple(shifts), remarks


def _scaling(image):
    """Slope and intercept that turn the stored numbers of an image into intensities."""
    if hasattr(image.dataobj, "slope"):
        return image.dataobj.slope, image.dataobj.inter
    slope, inter = image.header.get_slope_inter()
    return (1, 0) if slope is None else (slope, inter or 0)


def largest_volume(volumes):
    """Number of voxels of the largest volume, from the headers; unreadable files are skipped."""
    largest = 0
    for path in volumes:
        with contextlib.suppress(UserError):
            largest = max(largest, math.prod(checked_image(path)[1]))
    return largest


# ------------------------------------------------------------------------------------------ writing

def _stored(data, kept, slope, inter):
    """Intensities as integers of type `kept`, by a scaling; plane after plane to save memory."""
    limits, stored = np.iinfo(kept), np.empty_like(data, kept)
    highest = float(limits.max)
    if int(highest) > limits.max:  # the float next to the largest integer of 64 bits lies beyond it
        highest = np.nextafter(highest, 0)
    slowest = int(np.argmax(np.abs(data.strides)))
    for plane, target in zip(np.moveaxis(data, slowest, 0), np.moveaxis(stored, slowest, 0),
                             strict=True):
        numbers = np.rint((plane.astype(np.float64) - inter) / slope)
        target[...] = np.clip(numbers, limits.min, highest)
    return stored


def write_volume(path, data, like, header=None, dtype="float32", files=None):
    """Write voxels to a file with the header, affine and codes of their source image.

    Equal voxels always give equal files, because no time and no file name is stored in them.

    Parameters
    ----------
    path : path-like
        Compressed if it ends in .gz.
    data : ndarray, shape (X, Y, Z) or (X, Y, Z, T)
    like : nibabel image
        The source image.
    header : nibabel header, optional
        Used in place of the header of `like`.
    dtype : {"float32", "uint8", "same"}, optional
        "uint8" is for masks. "same" is the data type of `like`. Integers keep its scaling too,
        and values are rounded and clipped to the range of the type.
    files : disk.files.WholeFiles, optional
        Group of files that the volume belongs to.

    Raises
    ------
    CannotWrite
        If the disk is full or the folder is not writable.
    UserError
        If a voxel is infinite or not a number.
    """
    if not np.isfinite(data).all():
        raise UserError(f"{path}: not written, because restored voxels are not finite numbers; "
                        "rescale the intensities of its input, or learn the filters again")
    header = (header or like.header).copy()
    header.set_data_dtype(np.uint8 if dtype == "uint8" else np.float32)
    data = np.asarray(data, header.get_data_dtype())
    kept, slope, inter = like.get_data_dtype(), 1, 0
    if dtype == "same":
        header.set_data_dtype(kept)
    if dtype == "same" and kept.kind in "iu":
        slope, inter = _scaling(like)
        data = _stored(data, kept, slope, inter)
    image = type(like)(data, None, header)
    if data.dtype.kind in "iu":
        # The scaling is set here, because an image made from a header loses the header's scaling.
        image.header.set_slope_inter(slope, inter)
    suffix = "".join(Path(path).suffixes[-2:])[-7:]
    writing = files.writing if files else whole_file
    with writing(path, suffix) as temporary, open(temporary, "wb") as plain:
        if temporary.lower().endswith(".gz"):  # without name and time in the stream
            with igzip.IGzipFile("", "wb", GZIP_LEVEL, plain, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(plain)
