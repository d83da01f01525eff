"""Estimates from a scan: its noise, its blur, and the weights of the filters and of this blur."""
from typing import NamedTuple

import numpy as np

from degrading.descriptors import NOISE, SPECTRAL
from degrading.likeness import NOISE_LEVELS, UNKNOWN, Texture, limits_of
from degrading.profile_reader import claims_too_much_blur, nearest_profile, read, strangeness
from restoring.adaptation import is_thick
from structure import structure_of

USUAL_OF_SLICES = (1.5, 1.5, 3.0)  # usual distance of thick slices, for NOISE_LEVELS


class Estimates(NamedTuple):
    """Estimates from a volume: noise, blur, and weights; see degrading/likeness.py."""

    descriptors: np.ndarray | None  # noise and blur; None if the filters do not use descriptors
    trust: float  # weight of the filters in the result
    belief: float = 1.0  # weight of the estimated blur; 1 if the profile is given
    # Distance of the descriptors from the training descriptors, its usual limit, and the most
    # similar slice profile; None if the filters do not use descriptors.
    distance: float | None = None
    usual: float | None = None
    like: str | None = None
    doubted: bool = False  # True if the given profile has much more blur than the estimate
    texture: Texture = UNKNOWN
    reason: str = ""  # why the estimated blur is not fully believed, see degrading/likeness.py


def estimates_of(volume, use):
    """The `Estimates` from an `LRVolume`, for the `Filters` that restore it first."""
    weights, descriptors = structure_of(use.method).weights(volume, use.stages), volume.descriptors
    if descriptors is None or not (reader := use.stages[0].classes.reader).any():
        return Estimates(descriptors, weights.filters)
    reading = read(reader, descriptors)
    # The reading of a volume that is too small for a spectrum is only the usual one.
    doubted = (volume.blur is not None and bool(np.any(descriptors[SPECTRAL:]))
               and claims_too_much_blur(reading, volume.blur))
    usual = usual_distance(descriptors, use.method, volume.voxel)
    return Estimates(descriptors, weights.filters, weights.blur, strangeness(reader, descriptors),
                     usual, nearest_profile(reading), doubted, volume.texture, weights.reason)


def usual_distance(descriptors, method, voxel):
    """The distance up to which a scan is like the training brains.

    `voxel` is the geometric mean of the voxel size in mm. The limits for voxels as in training, and
    for finer ones, belong to filters for all axes.
    """
    if is_thick(method):
        return float(np.interp(descriptors[NOISE], NOISE_LEVELS, USUAL_OF_SLICES))
    return limits_of(descriptors[NOISE], voxel)[0]
