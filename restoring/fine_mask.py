"""Write the brain mask of a whole head on the grid of its upscaled volume, for a BIDS dataset."""
import numpy as np

from disk.files import stem, write_json
from nifti.bids import mask_sidecar, mask_stem
from nifti.geometry import finer_header
from nifti.masks import INSIDE
from nifti.volumes import write_volume
from restoring.comparison import spline_onto


def write_fine_mask(target, mask, image, shape, to_low, root, files=None):
    """Write a mask on the grid of a result, beside the result, with a sidecar.

    Parameters
    ----------
    target : Path
        Path of the result, a BIDS name.
    mask : nifti.masks.Mask
        Mask on the grid of the scan.
    image : nibabel image
        The scan.
    shape : tuple of three int
        Shape of the result.
    to_low : ndarray, shape (4, 4)
        Matrix from voxels of the result to voxels of the scan.
    root : Path
        Folder of the raw dataset.
    files : disk.files.WholeFiles, optional
        Group of files that the mask belongs to.
    """
    # Linear interpolation, because a spline of a higher order would ring at the outline.
    fine = spline_onto(mask.inside.astype(np.float32), shape, to_low, 1) > INSIDE
    name = mask_stem(stem(target))
    ending = target.name[len(stem(target)):]
    write_volume(target.with_name(name + ending), fine, image,
                 finer_header(image, shape, to_low), "uint8", files)
    write_json(target.with_name(f"{name}.json"), mask_sidecar(mask.path, root), files)
