"""Positions of voxels in NIfTI headers: checks, repairs, and headers of volumes on finer grids."""
import numpy as np
from nibabel.affines import voxel_sizes

SMALLEST_MM, LARGEST_MM = 1e-6, 1e6  # range of valid voxel sizes
MM = {"mm": 1, "um": 1e-3, "m": 1e3}  # length of each unit, in mm
FARTHEST_MM = 1e9  # largest valid entry of an sform, and largest offset of a qform
FLATTEST = 1e-4  # smallest valid ratio of a voxel's volume to the product of its edges
READABLE = 1 + 2 * np.finfo(np.float32).eps  # largest squared length of a quaternion for nibabel
ROUNDING = 1e-3  # a squared length up to this much above 1 is a rounding error, and repaired
CODES = range(1, 6)  # valid codes of sform and qform
QUATERNION = ("quatern_b", "quatern_c", "quatern_d")
OFFSETS = ("qoffset_x", "qoffset_y", "qoffset_z")
ROWS = ("srow_x", "srow_y", "srow_z")
UPSCALED = b"upscaled, not measured"  # mark in the description of a result's header


def mend_geometry(header):
    """Repair the position in space of a header.

    If one of sform and qform is invalid and the other is valid, the invalid one is cleared. A
    quaternion that is longer than 1 by rounding is shortened.

    Parameters
    ----------
    header : nibabel.Nifti1Header
        Changed in place. Its values may be unchecked.

    Returns
    -------
    remarks : list of str
        The changes, in words.

    Raises
    ------
    ValueError
        If every form (sform, qform) that is present is invalid, or if both are absent and the voxel
        sizes are invalid.

    Examples
    --------
    >>> import nibabel
    >>> header = nibabel.Nifti1Header()
    >>> header.set_sform(np.diag([2, 2, 2, 1]), 1)
    >>> header["pixdim"][3] = np.nan
    >>> mend_geometry(header)
    ['its voxel sizes are not above zero; the voxel sizes of its sform are used']
    >>> header["pixdim"][3].item()
    2.0
    """
    remarks = _mend_quaternion(header)
    sform, qform = (int(header[name]) in CODES for name in ("sform_code", "qform_code"))
    sized = _are_sizes(np.abs(_numbers(header["pixdim"][1:4])))
    faults = {}
    if sform and (fault := _fault_of_sform(header)):
        faults["sform"] = fault
    if qform and (fault := _fault_of_qform(header, sized)):
        faults["qform"] = fault
    if len(faults) == sform + qform and (faults or not sized):
        said = [f"its {form} {fault}" for form, fault in faults.items()]
        raise ValueError(f"{' and '.join(said) or 'its voxel sizes are not above zero'}, so its "
                         "position in space is unknown; give it a good sform or qform")
    for form, fault in faults.items():
        other = "qform" if form == "sform" else "sform"
        remarks.append(f"its {form} {fault}; its {other} is used")
        _clear(header, form)
    if not sized:
        header["pixdim"][1:4] = voxel_sizes(_sform_of(header))
        if not faults:
            remarks.append("its voxel sizes are not above zero; the voxel sizes of its sform are "
                           "used")
    steps = _numbers(header["pixdim"][4:])
    header["pixdim"][4:] = np.where(np.isfinite(steps) & (steps >= 0), steps, 0)
    return remarks


def _numbers(values):
    with np.errstate(invalid="ignore"):  # numpy warns about signalling NaNs
        return np.array(values, np.float64)


def _are_sizes(sizes):
    return bool(((sizes > SMALLEST_MM) & (sizes < LARGEST_MM)).all())  # False if not a number


def _sform_of(header):
    return np.vstack([*(_numbers(header[name]) for name in ROWS), [0, 0, 0, 1]])


def _mend_quaternion(header):
    """Shorten a quaternion that is longer than 1 by rounding; returns a list of remarks."""
    quaternion = _numbers([header[name] for name in QUATERNION])
    square = quaternion @ quaternion
    if not READABLE < square <= 1 + ROUNDING:
        return []
    # Slightly below 1, so that it does not exceed 1 after rounding to the header's data type.
    shortened = quaternion / np.sqrt(square) * (1 - 2**-23)
    for name, value in zip(QUATERNION, shortened, strict=True):
        header[name] = value
    return ["the quaternion of its qform is longer than 1 by rounding; shortened"]


def _fault_of_sform(header):
    """The fault of the sform, in words; None if it is valid."""
    sform = _sform_of(header)
    if not np.isfinite(sform).all():
        return "holds values that are no numbers"
    sizes = voxel_sizes(sform)
    flat = abs(np.linalg.det(sform[:3, :3])) < FLATTEST * np.prod(sizes)
    if flat or not _are_sizes(sizes) or np.abs(sform).max() > FARTHEST_MM:
        return "is singular or has values out of range"
    return None


def _fault_of_qform(header, sized):
    """The fault of the qform, in words; None if it is valid."""
    quaternion = _numbers([header[name] for name in QUATERNION])
    offsets = _numbers([header[name] for name in OFFSETS])
    if not (np.isfinite(quaternion).all() and np.isfinite(offsets).all()):
        return "holds values that are no numbers"
    if not sized:
        return "has voxel sizes that are not above zero"
    if quaternion @ quaternion > READABLE:
        return "has a quaternion longer than 1"
    if np.abs(offsets).max() > FARTHEST_MM:
        return "has values out of range"
    return None


def _clear(header, form):
    header[f"{form}_code"] = 0
    for name in ROWS if form == "sform" else (*QUATERNION, *OFFSETS):
        header[name] = 0


def voxel_sizes_of(image):
    """The voxel sizes of an image, from its affine: ndarray, shape (3,)."""
    return voxel_sizes(image.header.get_best_affine())  # the field pixdim may differ from them


def ratio_of_lengths(one, other):
    """The ratio of two lengths, to five significant digits, because headers hold rounded sizes.

    Otherwise, rotation and unit would change the last bits of a ratio, and with them what follows
    from a limit for it.

    Examples
    --------
    >>> ratio_of_lengths(2.2, 2), ratio_of_lengths(2.2, 2.0000001), ratio_of_lengths(1, 0.7)
    (1.1, 1.1, 1.4286)
    """
    return float(f"{one / other:.5g}")


def unit_of(image):
    """The unit of an image's voxel sizes according to its header; mm if the header has no unit.

    Returns
    -------
    {"mm", "um", "m"}
    """
    unit = image.header["xyzt_units"].item() % 8  # the rest is the unit of time
    return {1: "m", 3: "um"}.get(unit, "mm")


def voxel_sizes_in_mm(image):
    """The voxel sizes of an image, converted to mm: ndarray, shape (3,)."""
    return voxel_sizes_of(image) * MM[unit_of(image)]


def finer_header(image, shape, fine_to_low):
    """The header of an image for voxels on a finer grid.

    In the new header, sform and qform keep their codes and give the positions of the new voxels. If
    both codes are 0, only the voxel sizes change. The description gets the mark UPSCALED, if there
    is room for it.

    Parameters
    ----------
    image : nibabel image
    shape : tuple of int
        Shape of the new volume, with the fourth axis of a series.
    fine_to_low : ndarray, shape (4, 4)
        Affine from voxel indices of the new volume to voxel indices of `image`.

    Returns
    -------
    nibabel header
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
        header[name] = 0  # interpolated slices have no time of acquisition
    if not is_upscaled(image):
        marked = b"; ".join(filter(None, [header["descrip"].item(), UPSCALED]))
        if len(marked) < header["descrip"].itemsize:
            header["descrip"] = marked
    return header


def is_upscaled(image):
    """True if the header of an image has the mark of `finer_header`."""
    return UPSCALED in image.header["descrip"].item()
