"""Where voxels lie in space, as NIfTI headers say it: checked, mended, and of a finer grid."""
import numpy as np
from nibabel.affines import voxel_sizes

SMALLEST_MM, LARGEST_MM = 1e-6, 1e6  # of a voxel; others are no sizes
MM = {"mm": 1, "um": 1e-3, "m": 1e3}  # by the units of headers
FARTHEST_MM = 1e9  # that a voxel may lie from the origin
FLATTEST = 1e-4  # volume of a voxel, as a share of what upright edges would give
READABLE = 1 + 2 * np.finfo(np.float32).eps  # a quaternion's square that nibabel lets pass
ROUNDING = 1e-3  # by which the square of a quaternion's length may lie above 1
CODES = range(1, 6)  # of sform and qform that say something
QUATERNION = ("quatern_b", "quatern_c", "quatern_d")
OFFSETS = ("qoffset_x", "qoffset_y", "qoffset_z")
ROWS = ("srow_x", "srow_y", "srow_z")


def mend_geometry(header):
    """Leave in a header only what can be true of where its voxels lie.

    Of sform and qform a good one is enough: the other is cleared. A quaternion that is longer than
    1 by rounding is shortened.

    Parameters
    ----------
    header : nibabel.Nifti1Header
        Changed in place; of unchecked values.

    Returns
    -------
    remarks : list of str
        What was changed, for people.

    Raises
    ------
    ValueError
        If neither is good or, where neither is there, the voxel sizes are none.

    Examples
    --------
    >>> import nibabel
    >>> header = nibabel.Nifti1Header()
    >>> header.set_sform(np.diag([2, 2, 2, 1]), 1)
    >>> header["pixdim"][3] = np.nan
    >>> mend_geometry(header)
    ['its voxel sizes are not above zero; those of its sform are taken']
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
                         "header does not say where its voxels lie; give it a good sform or qform")
    for form, fault in faults.items():
        other = "qform" if form == "sform" else "sform"
        remarks.append(f"its {form} {fault}; its {other} is taken")
        _clear(header, form)
    if not sized:
        header["pixdim"][1:4] = voxel_sizes(_sform_of(header))
        if not faults:
            remarks.append("its voxel sizes are not above zero; those of its sform are taken")
    steps = _numbers(header["pixdim"][4:])
    header["pixdim"][4:] = np.where(np.isfinite(steps) & (steps >= 0), steps, 0)
    return remarks


def _numbers(values):
    with np.errstate(invalid="ignore"):  # said of signalling numbers that are none
        return np.array(values, np.float64)


def _are_sizes(sizes):
    return bool(((sizes > SMALLEST_MM) & (sizes < LARGEST_MM)).all())  # False where no number


def _sform_of(header):
    return np.vstack([*(_numbers(header[name]) for name in ROWS), [0, 0, 0, 1]])


def _mend_quaternion(header):
    """Shorten a quaternion that rounding made longer than 1; returns the remarks on it."""
    quaternion = _numbers([header[name] for name in QUATERNION])
    square = quaternion @ quaternion
    if not READABLE < square <= 1 + ROUNDING:
        return []
    # A step below 1, so that it stays there when it is rounded to the header's type.
    shortened = quaternion / np.sqrt(square) * (1 - 2**-23)
    for name, value in zip(QUATERNION, shortened, strict=True):
        header[name] = value
    return ["the quaternion of its qform is longer than 1 by rounding; shortened"]


def _fault_of_sform(header):
    """What is wrong with the sform, in words; None where nothing is."""
    sform = _sform_of(header)
    if not np.isfinite(sform).all():
        return "holds values that are no numbers"
    sizes = voxel_sizes(sform)
    flat = abs(np.linalg.det(sform[:3, :3])) < FLATTEST * np.prod(sizes)
    if flat or not _are_sizes(sizes) or np.abs(sform).max() > FARTHEST_MM:
        return "is singular or out of all bounds"
    return None


def _fault_of_qform(header, sized):
    """What is wrong with the qform, in words; None where nothing is."""
    quaternion = _numbers([header[name] for name in QUATERNION])
    offsets = _numbers([header[name] for name in OFFSETS])
    if not (np.isfinite(quaternion).all() and np.isfinite(offsets).all()):
        return "holds values that are no numbers"
    if not sized:
        return "has voxel sizes that are not above zero"
    if quaternion @ quaternion > READABLE:
        return "has a quaternion longer than 1"
    if np.abs(offsets).max() > FARTHEST_MM:
        return "is out of all bounds"
    return None


def _clear(header, form):
    header[f"{form}_code"] = 0
    for name in ROWS if form == "sform" else (*QUATERNION, *OFFSETS):
        header[name] = 0


def voxel_sizes_of(image):
    """The voxel sizes of an image, as its place in space has them: ndarray, shape (3,)."""
    return sizes_in(image.header)


def sizes_in(header):
    """The voxel sizes of a header's best affine, which its own field of them may not be."""
    return voxel_sizes(header.get_best_affine())


def unit_of(image):
    """The unit of an image's voxel sizes, as its header says it: mm where it does not.

    Returns
    -------
    {"mm", "um", "m"}
    """
    unit = image.header["xyzt_units"].item() % 8  # the rest is the unit of time
    return {1: "m", 3: "um"}.get(unit, "mm")


def voxel_sizes_in_mm(image):
    """The voxel sizes of an image in mm, whatever its unit is: ndarray, shape (3,)."""
    return voxel_sizes_of(image) * MM[unit_of(image)]


def finer_header(image, shape, fine_to_low):
    """The header of an image for voxels on a finer grid.

    sform and qform, each with the code it had, say where the new voxels lie; where neither has a
    code, only the voxel size says something.

    Parameters
    ----------
    image : nibabel image
    shape : tuple of int
        Of the new voxels, with the fourth axis where there is one.
    fine_to_low : ndarray, shape (4, 4)
        From new voxels to those of `image`.

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
        header[name] = 0  # the finer slices were not measured one after another
    return header
