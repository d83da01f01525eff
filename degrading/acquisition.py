"""Simulated acquisition of an LR volume: blur, noise, and the outline of its brain."""
import numpy as np

from degrading.banded import apply_operators
from degrading.slice_profile import profile_operator
from util import bright_level_of_scan, mod_crop, tight_box

PADDING = 8  # voxels of background around the brain


def original_of(image, factor):
    """The brain of a volume with some background around it, in [0, 1].

    The sides are multiples of the factor. ValueError is raised if no voxel is above zero, or a side
    has fewer than two LR voxels.
    """
    image = np.clip(image, 0, np.float32(bright_level_of_scan(image)))
    if not image.max(initial=0) > 0:
        raise ValueError("no voxel is above zero; take another volume")
    box = [slice(max(side.start - PADDING, 0), side.stop + PADDING)
           for side in tight_box(image > 0)]
    hr = np.ascontiguousarray(mod_crop(image[tuple(box)], factor)) / image.max()
    # Without the shape: filters for other axes turn the volume before it comes here.
    if short := [f for side, f in zip(hr.shape, factor, strict=True) if side < 2 * f]:
        raise ValueError("around its brain, a side has fewer than two LR voxels for factor "
                         f"{short[0]}; give a larger volume")
    return hr


def make_low(hr, operator, sigma, random):
    """Simulate the LR volume of a fine volume, with noise and with a background of zeros.

    Parameters
    ----------
    hr : ndarray of float32, shape (X, Y, Z), in [0, 1]
        The background is 0.
    operator : degradation.SliceProfile
    sigma : float
        Standard deviation of the noise in the real and in the imaginary part.
    random : numpy.random.Generator

    Returns
    -------
    low : ndarray of float32, shape (x, y, z)
        Zero in voxels of which less than half is brain, as after skull-stripping of the LR volume.
    """
    clean = np.maximum(operator.forward(hr), 0)
    noise = sigma * random.standard_normal((2, *clean.shape), np.float32)
    return np.hypot(clean + noise[0], noise[1]) * outline_of(hr > 0, operator.factor)


def outline_of(brain, factor):
    """True for LR voxels of which half or more is brain."""
    box = [profile_operator(side, f, "box") for side, f in zip(brain.shape, factor, strict=True)]
    return apply_operators(brain.astype(np.float32), box) >= 0.5
