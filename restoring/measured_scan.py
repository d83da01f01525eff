"""Prepare a scan for upscaling: an interpolated scan is first brought to its measured grid."""
from typing import NamedTuple

import numpy as np

from degrading.measured_grid import mask_onto_measured, measured_grid, onto_measured
from degrading.slice_profile import UNBLURRED
from machine.progress import say
from nifti.geometry import unit_of
from nifti.volumes import Volume
from restoring.spacing import Route, describe, route_to


class Scan(NamedTuple):
    """The volumes of a file, on the grid from which they are upscaled, and the filters to use."""

    volume: Volume
    inside: np.ndarray | None  # of bool: brain mask
    sizes: np.ndarray  # (3,): voxel sizes of `volume`
    route: Route
    uses: list  # of Filters
    to_low: np.ndarray  # (4, 4): matrix from voxels of `volume` to voxels of the file
    profiles: tuple  # of three str: slice profiles; empty if unknown
    agree_with: tuple | None = None  # of three str: see `get_lar.make_fine`


def as_measured(name, scan, store, filled=(1.0, 1.0, 1.0)):
    """Bring a scan to its measured grid, if the scanner interpolated it; else return it unchanged.

    Parameters
    ----------
    name : str
        Name of the scan, for messages.
    scan : Scan
    store : restoring.steps.FilterStore
    filled : sequence of three float, optional
        Ratio of measured to written voxels along each axis, from the sidecar.

    Returns
    -------
    Scan
    """
    if not scan.uses[0].method.for_scans:
        return scan
    grid = measured_grid(first_seen(scan.volume), filled)
    if grid.is_own:
        return scan
    sizes, unit = scan.sizes / grid.shares, unit_of(scan.volume.image)
    goal = scan.route.sizes or tuple(scan.sizes / scan.route.factor)
    seen = grid.in_words(scan.sizes, unit)
    try:
        route = route_to(goal, sizes, store.there, unit)
    except ValueError:
        say(f"{name}: it was interpolated ({seen}), and there are no filters for "
            "its measured grid; it is restored as it is")
        return scan
    say(f"{name}: it was interpolated ({seen}); restored from what was measured: "
        f"{describe(route, sizes, unit)}")
    if scan.profiles:
        say(f"{name}: --profile is not used, because it describes the interpolated grid")
    volume, inside = scan.volume, scan.inside
    data = np.stack([onto_measured(low, grid) for low in volumes_of(volume)], -1)
    data = data.reshape(*grid.shape, *volume.data.shape[3:])
    if inside is not None:
        inside = mask_onto_measured(inside, grid)
    uses = [store(factor) for factor in route.factors]
    # The measured grid was cut out of k-space, but other axes may have any profile.
    known = all(share < 1 for share, f in zip(grid.shares, uses[0].factor, strict=True) if f > 1)
    return scan._replace(volume=volume._replace(data=data), inside=inside, sizes=sizes, route=route,
                         uses=uses, to_low=grid.to_low(), profiles=(),
                         agree_with=UNBLURRED if known else ())


def volumes_of(volume):
    """The volumes of a file: a view, shape (volumes, x, y, z)."""
    return np.moveaxis(volume.data.reshape(*volume.data.shape[:3], -1), 3, 0)


def first_seen(volume):
    """The first volume of a file that is not all zero; the first volume if all of them are."""
    lows = volumes_of(volume)
    return next(filter(np.any, lows), lows[0])
