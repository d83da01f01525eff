"""Estimates from a scan: its noise, its blur, and the weight of the filters in the result."""
from typing import NamedTuple

import numpy as np

from degrading.descriptors import NOISE, SPECTRAL
from degrading.profile_reader import (
    claims_too_much_blur,
    limits_of,
    nearest_profile,
    read,
    strangeness,
)
from restoring.adaptation import is_thick
from structure import structure_of

COARSE = 3.0  # mm; the limits of slices, whatever their voxel size


class Estimates(NamedTuple):
    """Estimates from a volume: noise, blur, and the weight of the filters."""

    descriptors: np.ndarray | None  # noise and blur; None if the filters do not use descriptors
    trust: float  # weight of the filters in the result, see degrading/profile_reader.py
    # Distance of the descriptors from the training descriptors, its usual limit, and the most
    # similar slice profile; None if the filters do not use descriptors.
    distance: float | None = None
    usual: float | None = None
    like: str | None = None
    doubted: bool = False  # True if the given profile has much more blur than the estimate
    density: float = 1.0  # density of edges, see degrading/descriptors.py

    @property
    def few_edges(self):
        """True if few edges alone are the reason why a spline replaces the filters."""
        return (self.trust < 1 and self.distance is not None
                and self.distance <= self.usual)


def estimates_of(volume, use):
    """The `Estimates` from an `LRVolume`, for the `Filters` that restore it first."""
    trust, descriptors = structure_of(use.method).trust(volume, use.stages), volume.descriptors
    if descriptors is None or not (reader := use.stages[0].classes.reader).any():
        return Estimates(descriptors, trust)
    reading = read(reader, descriptors)
    # The reading of a volume that is too small for a spectrum is only the usual one.
    doubted = (volume.blur is not None and bool(np.any(descriptors[SPECTRAL:]))
               and claims_too_much_blur(reading, volume.blur))
    usual = usual_distance(descriptors, use.method, volume.voxel)
    return Estimates(descriptors, trust, strangeness(reader, descriptors), usual,
                     nearest_profile(reading), doubted, volume.density)


def usual_distance(descriptors, method, voxel):
    """The distance up to which a scan is like the training brains.

    `voxel` is the geometric mean of the voxel size in mm. The limits for voxels as in training, and
    for finer ones, belong to filters for all axes.
    """
    return limits_of(descriptors[NOISE], COARSE if is_thick(method) else voxel)[0]
