"""Check a NIfTI file before it is used: the file is complete, and its header is plausible.

Any program may have written the header. Its sizes are compared with the size of the file and with
the free memory before memory is allocated. A gzip stream is read to its end, because its checksum
is at the end.
"""
import math
import os
import stat

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib

from machine.errors import UserError, first_line
from machine.memory import GB, VOXEL_BYTES, free_memory
from nifti.geometry import mend_geometry

IMAGES = {348: nib.Nifti1Image, 540: nib.Nifti2Image}  # class by length of the header in bytes
MOST_DEFLATED = 1032  # largest number of bytes that one byte of a gzip stream can expand to
OFFSET_MAX = 64 << 20  # bytes; a larger offset of the voxels in a file is an error
EXTENSIONS_MAX = 1000
HEAD_BYTES = 64  # bytes that are read to recognise a pointer or another format
GZIP_MAGIC = b"\x1f\x8b"
DICOM_AT, DICOM_MAGIC = 128, b"DICM"
PAIR, PAIR_MAGICS = (".hdr", ".img"), (b"ni1", b"ni2")  # header and voxels in two files
PAIR_REMEDY = "convert such a pair with nib-convert NAME.hdr NAME.nii.gz"  # comes with nibabel
ANNEX_GET = "datalad get or git annex get"
STREAM_FAULTS = (OSError, EOFError, OverflowError, isal_zlib.error)  # errors of reading a file
LARGEST = 1e30  # larger intensities count as infinite: sums of their squares overflow float32
SMALLEST = 1e-30
ROUNDING = np.finfo(np.float32).eps  # relative, of slope and intercept in a header


def checked_image(path, dimensions=(3,), voxel_bytes=VOXEL_BYTES):
    """Open a NIfTI file; read and check its header.

    Parameters
    ----------
    path : path-like
    dimensions : tuple of int
        Accepted numbers of axes, after trailing axes of one element are dropped.
    voxel_bytes : float, optional
        Bytes of memory that the work on this file needs for each voxel. If the memory for all
        voxels is more than the free memory, an error is raised.

    Returns
    -------
    image : nibabel image
        Its voxels are not read yet. Its header has a valid position in space.
        ``image.extra["remarks"]`` lists the repairs, as str.
    shape : tuple of int
        Shape without trailing axes of one element after the third axis.

    Raises
    ------
    UserError
        If the file cannot be used. The message names the file, the fault and the remedy.
    """
    try:
        kind = os.stat(path)
        if not stat.S_ISREG(kind.st_mode):
            raise UserError(f"{path}: not a regular file; put a .nii or .nii.gz volume in its "
                            "place")
        with opened(path) as file:
            block = file.read(540)
    except STREAM_FAULTS as fault:
        raise _unreadable(path, fault) from fault
    size = _header_bytes(block)
    if size is None or len(block) < size:
        remedy = _remedy(path) or "convert it to .nii or .nii.gz"
        raise UserError(f"{path}: not a NIfTI file; {remedy}")
    try:
        header = IMAGES[size].header_class(block[:size], check=False)
        shape, needed, voxels = _claims(header)
    except (ValueError, nib.spatialimages.HeaderDataError) as fault:
        raise UserError(f"{path}: {fault}") from fault
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in dimensions:
        accepted = " or ".join(map(str, dimensions))
        remedy = "; save one volume of the series" if len(shape) > 3 else ""
        raise UserError(f"{path}: has {len(shape)} dimensions {shape}; {accepted} are needed"
                        f"{remedy}")
    held, at_most = kind.st_size, ""
    if _is_gzip(path):
        held, at_most = held * MOST_DEFLATED, "at most "
    if needed > held:
        raise UserError(f"{path}: truncated, or its header is wrong: it claims {needed:,} bytes, "
                        f"and the file holds {at_most}{held:,}; replace it by a whole file")
    memory, free = needed + voxels * voxel_bytes, free_memory()
    if memory > free:
        raise UserError(f"{path}: its shape {shape} needs {memory / GB:.1f} GB of memory, "
                        f"{free / GB:.1f} GB are free; crop it, or use a larger machine")
    try:
        header.extensions.extend(_extensions(path, header, size))
        remarks = _mended(path, header)
        header.check_fix()
        proxy = IMAGES[size].ImageArrayProxy(path, header.copy(), mmap=False)
        affine = header.get_best_affine()
        return IMAGES[size](proxy, affine, header, {"remarks": remarks}), shape
    except UserError:
        raise
    except Exception as fault:  # bad headers raise many types of exceptions in the library
        raise _unreadable(path, fault) from fault


def read_voxels(path, image, shape):
    """All voxels of an image from `checked_image` as float32, with the scaling of its header.

    Scaling is done in float64, so that the intensities do not depend on the data type of the file.

    Parameters
    ----------
    path : path-like
    image : nibabel image
    shape : tuple of int

    Returns
    -------
    ndarray of float32, of shape `shape`
        In Fortran order, as in the file.

    Raises
    ------
    UserError
        If the file ends early, is corrupt, or has many bytes after its voxels.
    """
    proxy = image.dataobj
    count, dtype = math.prod(shape), proxy.dtype
    needed = int(proxy.offset) + count * dtype.itemsize
    try:
        with opened(path) as file:
            raw = file.read(needed)
            _read_to_end(file, path, max(needed, 1 << 24))
        if len(raw) < needed:
            raise EOFError(f"{len(raw):,} bytes where its header claims {needed:,}")
        voxels = np.frombuffer(raw, dtype, count, int(proxy.offset)).reshape(shape, order="F")
        # Values beyond the range of float32 become infinite; `clean_voxels` replaces them.
        with np.errstate(all="ignore"):
            if (proxy.slope, proxy.inter) != (1, 0):
                voxels = voxels * np.float64(proxy.slope) + np.float64(proxy.inter)
                if dtype.kind in "iu" and proxy.inter:  # zero is background, and may be missed
                    off = min(ROUNDING * abs(proxy.inter), abs(proxy.slope) / 2)
                    voxels[(voxels >= -off) & (voxels <= off)] = 0
            return voxels.astype(np.float32)
    except (*STREAM_FAULTS, ValueError, TypeError) as fault:
        raise _unreadable(path, fault) from fault
    except MemoryError as fault:
        raise UserError(f"{path}: too little memory for its {count:,} voxels; close other programs "
                        "or crop it") from fault


def clean_voxels(path, data):
    """Replace invalid intensities by background, with a message.

    Parameters
    ----------
    path : path-like
        Source of the voxels, for messages.
    data : ndarray of float32

    Returns
    -------
    data : ndarray of float32, of the same shape
        Finite values, possibly below zero. If nothing was replaced, this is the input array itself.
    remarks : list of str
    replaced : ndarray of bool, of the same shape
        True for replaced voxels; None if no voxel was replaced.

    Raises
    ------
    UserError
        If no voxel is above zero, all voxels are equal, or the intensities are too large or too
        small to compute with.
    """
    remarks, replaced, good = [], None, np.abs(data) < LARGEST  # False for not-a-number
    if not good.all():
        large = bool((np.isfinite(data) & ~good).any())
        if (large or (data == np.inf).any()) and not (data[good] > 0).any():
            raise UserError(f"{path}: its intensities are too large, beyond {LARGEST:g} or "
                            "infinite; rescale it")
        data, replaced = np.where(good, data, np.float32(0)), ~good
        remarks.append(f"{path}: not-a-number and infinite voxels are taken as background"
                       + (f", and voxels beyond {LARGEST:g}" if large else ""))
    low, high = float(data.min()), float(data.max())
    if high <= 0:
        raise UserError(f"{path}: holds no voxel above zero; replace it by a volume with positive "
                        "intensities")
    if low == high:
        raise UserError(f"{path}: all its voxels are {high:g}, so nothing can be restored; "
                        "replace it by a volume of a brain")
    if high < SMALLEST:
        raise UserError(f"{path}: its largest intensity is {high:g}; rescale it to values above "
                        f"{SMALLEST:g}")
    return data, remarks, replaced


def _header_bytes(block):
    """Length of the NIfTI header with which a file begins; None if it begins with another one."""
    sizes = (int.from_bytes(block[:4], order) for order in ("little", "big"))
    return next((size for size in sizes if size in IMAGES), None)


def _claims(header):
    """Shape, size of the file in bytes and number of voxels according to a header."""
    dimensions, *sides = (int(number) for number in header["dim"])  # always seven sides
    shape = tuple(sides[:max(0, dimensions)])
    if not 1 <= dimensions <= len(sides) or min(shape) < 1:
        raise ValueError(f"its header claims the shape {shape}; every side must be 1 or more; "
                         "replace it by a whole file")
    voxels = math.prod(shape)
    try:
        dtype = header.get_data_dtype()
    except (KeyError, ValueError, TypeError, nib.spatialimages.HeaderDataError):
        raise ValueError(f"its data type {int(header['datatype'])} is unknown; save it as "
                         "float32") from None
    if dtype.kind == "c":
        raise _not_real("complex numbers")
    if dtype.kind == "V" and not dtype.fields:  # of 128 bits and more
        raise ValueError(f"its data type {int(header['datatype'])} cannot be read on this machine; "
                         "save it as float64")
    if dtype.kind not in "iuf":
        raise _not_real("colours (RGB)" if dtype.fields else str(dtype))
    offset = float(header["vox_offset"])
    if offset < header.single_vox_offset and bytes(header["magic"])[:3] in PAIR_MAGICS:
        raise ValueError(f"is the header of a pair of files, .hdr and .img; {PAIR_REMEDY}")
    if not header.single_vox_offset <= offset <= OFFSET_MAX:  # not-a-number is an error too
        raise ValueError(f"its header puts the voxels at byte {offset:g}, and they can begin at "
                         f"byte {header.single_vox_offset} to {OFFSET_MAX}; replace it by a "
                         "whole file")
    return shape, int(offset) + voxels * dtype.itemsize, voxels


def _extensions(path, header, size):
    """The extensions of a header, which are copied to results: list of Nifti1Extension.

    They are read here and not by nibabel, because nibabel does not check their sizes.

    Raises
    ------
    UserError
        If an extension does not fit between header and voxels, or there are too many extensions.
    """
    with opened(path) as file:
        head = file.read(size + 4)
        extended = len(head) == size + 4 and head[size] != 0
        block = file.read(max(int(header["vox_offset"]) - len(head), 0)) if extended else b""
    found, at, order = [], 0, "big" if header.endianness == ">" else "little"
    while len(block) - at >= 16:  # fewer bytes are padding
        length, code = (int.from_bytes(block[place:place + 4], order, signed=True)
                        for place in (at, at + 4))
        if not 8 <= length <= len(block) - at:
            raise UserError(f"{path}: header extension {len(found) + 1} claims {length:,} bytes, "
                            f"of {len(block) - at:,} before its voxels; replace it by a whole file")
        if len(found) == EXTENSIONS_MAX:
            raise UserError(f"{path}: has more than {EXTENSIONS_MAX:,} header extensions; save it "
                            "without them")
        content = block[at + 8:at + length].rstrip(b"\0")
        found.append(nib.nifti1.Nifti1Extension(code, content))
        at += length
    return found


def _mended(path, header):
    """Repair the position in space of a header; returns remarks that name the file."""
    try:
        return [f"{path}: {remark}" for remark in mend_geometry(header)]
    except ValueError as fault:
        raise UserError(f"{path}: {fault}") from fault


def _not_real(what):
    return ValueError(f"holds {what}, not real numbers; save its magnitude or one channel instead")


def _is_gzip(path):
    return str(path).lower().endswith(".gz")


def _is_gzip_inside(path):
    try:
        with opened(path) as file:
            return file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    except STREAM_FAULTS:
        return False


def is_of_pair(path):
    """True if a name is that of a header or of the voxels of a pair, compressed or not."""
    return str(path).lower().removesuffix(".gz").endswith(PAIR)


def opened(path):
    return igzip.open(path) if _is_gzip(path) else open(path, "rb")


def _read_to_end(file, path, most):
    """Read the rest of a file; for a gzip stream this also checks the checksum."""
    left = 0
    while block := file.read(1 << 20):
        left += len(block)
        if left > most:
            raise UserError(f"{path}: has more than {most:,} bytes after its voxels; "
                            "replace it by a whole file")


def is_dicom(path):
    """True if a file is a DICOM image, by its content or name."""
    try:
        with open(path, "rb") as file:
            head = file.read(DICOM_AT + len(DICOM_MAGIC))
    except OSError:
        return False
    return head[DICOM_AT:] == DICOM_MAGIC or os.path.splitext(path)[1].lower() in (".dcm", ".ima")


def _unreadable(path, fault):
    text = getattr(fault, "strerror", None) or first_line(fault)
    remedy = _remedy(path) or "replace it by a whole file"
    if isinstance(fault, PermissionError):
        remedy = "change its permissions"
    return UserError(f"{path}: not a readable NIfTI volume ({text}); {remedy}")


def _remedy(path):
    """A remedy if the file is a broken link, a pointer or of another format; None otherwise.

    In data sets, links or pointers (small text files) may replace files not yet downloaded.
    """
    if os.path.islink(path) and not os.path.lexists(os.path.realpath(path)):
        return f"fetch the file it links to, {os.readlink(path)}; with git-annex: {ANNEX_GET}"
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return None
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, fetch the volume with git lfs pull"
    if head.startswith(b"/annex/objects/"):
        return f"it is a pointer of git-annex, fetch the volume with {ANNEX_GET}"
    if head.startswith(GZIP_MAGIC) and not _is_gzip(path):
        return "it is compressed, rename it to end in .nii.gz"
    if _is_gzip(path) and head.startswith(GZIP_MAGIC) and _is_gzip_inside(path):
        return "it is compressed twice, decompress it once with gunzip"
    if _is_gzip(path) and _header_bytes(head):
        return "it is not compressed, rename it to end in .nii"
    if is_dicom(path):
        return "it is a DICOM file, convert its series with dcm2niix"
    return None
