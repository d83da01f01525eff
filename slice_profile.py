"""How a scanner blurs along one axis: slice profiles, as matrices from fine voxels to thick ones.

The field of view is kept: along an axis of factor R, thick voxel i has its centre at
``(i + 1/2) R - 1/2`` fine voxels.
"""
import numpy as np

FWHM = 2.3548  # full width at half maximum of a Gaussian, in its standard deviations

# Kind of profile and its width, in spacings of the thick voxels.
PROFILES = {
    "box": ("box", 1.0),  # the mean over the slice: slices that touch
    "gap": ("box", 0.75),  # a quarter of the spacing is not measured
    "gauss": ("gauss", 1.0),
    "sharp": ("gauss", 0.6),  # hardly blurred, so aliased
    "kspace": ("kspace", 1.0),  # the lowest frequencies: what a 3-D acquisition measures
}


def profile_matrix(side, factor, profile):
    """The matrix of a profile along an axis.

    Parameters
    ----------
    side : int
        Fine voxels, a multiple of the factor.
    factor : int
        1 leaves the axis alone.
    profile : str
        A key of PROFILES.

    Returns
    -------
    matrix : ndarray of float64, shape (side // factor, side)
        Its rows sum to 1.

    Examples
    --------
    >>> profile_matrix(6, 3, "box").round(2)
    array([[0.33, 0.33, 0.33, 0.  , 0.  , 0.  ],
           [0.  , 0.  , 0.  , 0.33, 0.33, 0.33]])
    """
    if factor == 1:
        return np.eye(side)
    kind, width = PROFILES[profile]
    centres = (np.arange(side // factor) + 0.5) * factor - 0.5
    apart = centres[:, None] - np.arange(side)
    if kind == "kspace":
        return _dirichlet(apart, side, factor)
    if kind == "box":
        half = width * factor / 2
        weights = np.clip(np.minimum(apart + 0.5, half) - np.maximum(apart - 0.5, -half), 0, None)
    else:
        weights = np.exp(-0.5 * (apart * FWHM / (width * factor)) ** 2)
    return weights / weights.sum(1, keepdims=True)


def _dirichlet(apart, side, factor):
    """The sum of all waves below the thick grid's highest frequency, by its closed form."""
    highest = (side - 1) // (2 * factor)  # whole cycles along the axis, below side / (2 factor)
    waves, angle = 2 * highest + 1, np.pi * apart / side
    down = np.sin(angle)
    at_centre = np.abs(down) < 1e-12
    return np.where(at_centre, waves, np.sin(waves * angle) / np.where(at_centre, 1, down)) / side
