"""Slice profiles: the blur of a scanner along one axis, as matrices from fine to thick voxels.

Both grids have the same field of view: along an axis of factor R, thick voxel i has its centre at
``(i + 1/2) R - 1/2`` fine voxels.
"""
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from degrading.banded import banded

FWHM = 2.3548  # full width at half maximum of a Gaussian, in its standard deviations


class Profile(NamedTuple):
    """A slice profile, or the window of an acquisition in k-space."""

    kind: str  # box, gauss or kspace
    width: float = 1.0  # width of box and gauss, in spacings of the thick voxels
    damping: float = 0.0  # kspace: share of amplitude removed (raised cosine) at the last frequency


PROFILES = {
    "box": Profile("box"),  # mean over the slice; the slices touch
    "gap": Profile("box", 0.75),  # a quarter of the spacing is not measured
    "gauss": Profile("gauss"),
    "sharp": Profile("gauss", 0.6),  # hardly blurred, so aliased
    "kspace": Profile("kspace"),  # the lowest frequencies, as in a 3-D acquisition
    "hamming": Profile("kspace", damping=0.92),  # the lowest frequencies under a Hamming window
}

UNBLURRED = 3 * ("kspace",)  # profiles of a volume without blur along any axis


def in_words(profiles):
    """Profiles of the three axes as text: one name if all are equal.

    Examples
    --------
    >>> in_words(("box", "box", "box")), in_words(("kspace", "kspace", "box"))
    ('box', 'kspace kspace box')
    """
    return " ".join(profiles[:1] if len(set(profiles)) == 1 else profiles)


def profile_matrix(side, factor, profile):
    """The matrix of a profile along an axis.

    Parameters
    ----------
    side : int
        Number of fine voxels, a multiple of the factor.
    factor : int
        If it is 1, the matrix is the identity.
    profile : str or Profile
        A key of PROFILES, or a profile.

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
    kind, width, damping = profile_of(profile)
    centres = (np.arange(side // factor) + 0.5) * factor - 0.5
    apart = centres[:, None] - np.arange(side)
    if kind == "kspace":
        # A cosine window in k-space adds copies, shifted by one thick voxel to either side.
        beside = _dirichlet(apart - factor, side, factor) + _dirichlet(apart + factor, side, factor)
        return (1 - damping / 2) * _dirichlet(apart, side, factor) + damping / 4 * beside
    if kind == "box":
        half = width * factor / 2
        weights = np.clip(np.minimum(apart + 0.5, half) - np.maximum(apart - 0.5, -half), 0, None)
    else:
        weights = np.exp(-0.5 * (apart * FWHM / (width * factor)) ** 2)
    return weights / weights.sum(1, keepdims=True)


@lru_cache(maxsize=64)
def profile_operator(side, factor, profile):
    """`profile_matrix` as a banded matrix."""
    return banded(profile_matrix(side, factor, profile))


def mirrored_matrix(side, factor, profile):
    """The matrix of a profile along an axis, if the fine volume is mirrored at both ends.

    `profile_matrix` counts as zero what lies beyond the ends, or with k-space as periodic. A scan
    may end within the brain; there the mirrored volume is a better guess.

    Examples
    --------
    >>> mirrored_matrix(6, 2, "kspace").sum(1).round(6)
    array([1., 1., 1.])
    """
    if factor == 1:
        return np.eye(side)
    thick = side // factor
    before = thick // 2  # thick voxels of the mirrored volume before this one; the rest is after it
    mirrored = np.pad(np.arange(side), (before * factor, side - before * factor), mode="symmetric")
    # For a profile in k-space, this is one period of the mirrored volume.
    twice = profile_matrix(2 * side, factor, profile)[before:before + thick]
    matrix = np.zeros((thick, side))
    np.add.at(matrix.T, mirrored, twice.T)
    return matrix


def profile_of(profile):
    """The `Profile` of a name; a `Profile` is returned unchanged."""
    return PROFILES[profile] if isinstance(profile, str) else profile


def transfer(profile, share):
    """The transfer function of a profile: the share of a wave's amplitude that remains.

    Parameters
    ----------
    profile : str or Profile
    share : float
        Frequency of the wave, over the highest frequency of the thick grid; at most 1.

    Returns
    -------
    float

    Examples
    --------
    >>> [round(float(transfer(name, 1)), 2) for name in ("box", "gauss", "kspace", "hamming")]
    [0.64, 0.41, 1.0, 0.08]
    """
    kind, width, damping = profile_of(profile)
    if kind == "box":
        return np.sinc(width * share / 2)
    if kind == "gauss":
        return np.exp(-2 * (np.pi * width / FWHM * share / 2) ** 2)
    return 1 - damping * (1 - np.cos(np.pi * share)) / 2


def _dirichlet(apart, side, factor):
    """Closed form of the sum of all waves below the highest frequency of the thick grid."""
    highest = (side - 1) // (2 * factor)  # whole cycles along the axis, below side / (2 factor)
    waves, angle = 2 * highest + 1, np.pi * apart / side
    down = np.sin(angle)
    at_centre = np.abs(down) < 1e-12
    return np.where(at_centre, waves, np.sin(waves * angle) / np.where(at_centre, 1, down)) / side
