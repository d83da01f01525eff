"""Estimates from a scan: noise, blur, and the weight of the filters; messages about them."""
from typing import NamedTuple

import numpy as np

from degrading.descriptors import SPECTRAL
from degrading.profile_reader import claims_too_much_blur, nearest_profile, read, strangeness
from machine.progress import say
from structure import structure_of


class Estimates(NamedTuple):
    """Estimates from a volume: noise, blur, and the weight of the filters."""

    descriptors: np.ndarray | None  # noise and blur; None if the filters do not use descriptors
    trust: float  # weight of the filters in the result, see degrading/profile_reader.py
    # Distance of the descriptors from the training descriptors, and the most similar slice profile;
    # None if the filters do not use descriptors.
    distance: float | None = None
    like: str | None = None
    doubted: bool = False  # True if the given profile has much more blur than the estimate


def estimates_of(volume, use):
    """The estimates from an LR volume.

    Parameters
    ----------
    volume : get_lar.LRVolume
    use : Filters
        The filters that restore it first.

    Returns
    -------
    Estimates
    """
    trust, descriptors = structure_of(use.method).trust(volume, use.stages), volume.descriptors
    if descriptors is None or not (reader := use.stages[0].classes.reader).any():
        return Estimates(descriptors, trust)
    reading = read(reader, descriptors)
    # The reading of a volume that is too small for a spectrum is only the usual one.
    doubted = (volume.blur is not None and bool(np.any(descriptors[SPECTRAL:]))
               and claims_too_much_blur(reading, volume.blur))
    return Estimates(descriptors, trust, strangeness(reader, descriptors),
                     nearest_profile(reading), doubted)


def say_of_estimates(name, seen):
    """Print a message if the filters are replaced by the spline, or if a given profile is doubted.

    Parameters
    ----------
    name : str
        Name of the volume.
    seen : Estimates
    """
    if seen.trust < 1:
        what = "all" if seen.trust == 0 else f"{1 - seen.trust:.0%}"
        say(f"{name}: is unlike the training brains of the filters; {what} of the weight goes to "
            "the quintic spline, so that no detail is invented")
    if seen.doubted:
        say(f"{name}: the given profile has more blur than the scan seems to have (it is most like "
            f"{seen.like}); a profile with too much blur does harm: leave --profile out unless "
            "you are sure")
