"""Plan the upscaling of a file: steps to the requested voxel sizes, filters, memory."""
import math

import numpy as np

from degrading.descriptors import bright_part, head_in_zeros
from degrading.measured_grid import measured_grid
from machine.errors import FineAlready, UserError, complain
from machine.memory import CODE_BYTES, GB, free_memory
from machine.progress import say
from nifti.geometry import is_upscaled, ratio_of_lengths, unit_of, voxel_sizes_of
from nifti.slices import THICK, filled_up, slices_in_words
from restoring.adaptation import wants_adapting
from restoring.measured_scan import first_seen
from restoring.spacing import FineEnough, Route, describe, of_three, route_to, voxels_along
from structure import structure_of

ADAPT_BYTES = 0.45 * GB  # memory to fine-tune filters on a scan
LAST_SPLINE_BYTES = 12  # memory per voxel of the result, for the spline to exact voxel sizes
WORK_BYTES = 0.45 * GB  # memory for the work on a tile, without volumes and compiled code


def plan(path, name, store, opened, read):
    """Plan the upscaling of an opened file; `read` reads its voxels; returns `Route`, filters."""
    request = store.request
    image, shape = opened
    sizes, unit = voxel_sizes_of(image), unit_of(image)
    if is_upscaled(image):
        complain("test", f"{path}: is itself a result of upscaling; upscale the measured scan "
                 "instead, with a larger factor")
    if store.by_size:
        goal = request.voxel_size or 3 * (float(sizes.min()),)
        try:
            route = route_to(goal, sizes, store.there, unit)
            say(f"{name}: {describe(route, sizes, unit)}")
        except ValueError as fault:
            route, sizes, shape = _from_measured(path, goal, sizes, read, store, fault)
    else:
        route = Route([request.method.factor], None)
        warn_of_axis(path, request.method.factor, sizes, unit)
    if said := slices_in_words(path, image, voxel_sizes_of(image), unit):
        say(f"{name}: {said}")
    check_slices(path, shape, route.factor)
    uses = [store(factor) for factor in route.factors]
    _check_memory(path, image, shape, sizes, route, uses, request)
    return route, uses


def _from_measured(path, goal, sizes, read, store, fault):
    """Route, voxel sizes and shape on the measured grid, for a scan that is as fine as requested.

    If the scan was not interpolated, UserError with the message `fault` is raised.
    """
    volume = read()
    grid = measured_grid(first_seen(volume), filled_up(path, volume.image, sizes))
    sizes = sizes / grid.shares
    try:
        route = route_to(goal, sizes, store.there)
        useful = store(route.factors[0]).method.for_scans
    except ValueError:
        useful = False
    if not useful:
        kind = FineAlready if isinstance(fault, FineEnough) else UserError
        raise kind(f"{path}: {fault}") from fault
    return route, sizes, grid.shape + volume.data.shape[3:]


def check_slices(name, shape, factor):
    """Raise UserError if an axis with a single slice is to be refined."""
    for axis in range(3):
        if factor[axis] > 1 and shape[axis] == 1:
            raise UserError(f"{name}: has a single slice along axis {axis}, which cannot be made "
                            "finer; give several slices, or a factor of 1 for this axis")


def find_head(low, voxel_size):
    """Decide whether a volume without a mask seems to be a whole head.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
    voxel_size : ndarray, shape (3,)
        Voxel size in mm.

    Returns
    -------
    head : bool
    bright : ndarray of bool, shape (x, y, z), or None
        Bright part of a head with zeros for air. It is None for noisy air, because the descriptors
        then find the bright part themselves.
    """
    bright = head_in_zeros(low, voxel_size)
    return bright is not None or bright_part(low) is not None, bright


def say_of_head(name, low, voxel_size, use, mask=None):
    """Report that a volume is, or seems to be, a whole head, and where its noise is estimated.

    Parameters
    ----------
    name : str
        Name of the volume.
    low : ndarray of float32, shape (x, y, z)
    voxel_size : ndarray, shape (3,)
        Voxel size in mm.
    use : Filters
    mask : nifti.masks.Mask, optional

    Returns
    -------
    bool or None
        True if the volume is a whole head, or seems to be one; None if the filters do not use this.
    """
    if mask:
        read = "noise and blur are" if use.method.for_scans else "the brightness is"
        say(f"{name}: {read} estimated inside its mask, {mask.path.name}; the whole head is "
            "restored")
        return True
    if not use.method.for_scans:
        return None
    head, _ = find_head(low, voxel_size)
    if head:
        say(f"{name}: seems to be a whole head without a brain mask; noise and blur are estimated "
            "in its bright part (better: give a mask with --mask)")
    return head


def inside_of(low, voxel_size, use, mask=None):
    """The voxels in which brightness and descriptors of a whole head are estimated.

    Each volume of a series has its own bright part, because their contrasts differ. The parameters
    are those of `say_of_head`.

    Returns
    -------
    ndarray of bool, shape (x, y, z), or None
        Brain mask or bright part of a head; None if all voxels are used.
    """
    if mask:
        return mask.inside
    return head_in_zeros(low, voxel_size) if use.method.for_scans else None


def warn_of_axis(path, factor, sizes, unit="mm"):
    """Warn if slices are thick along an axis other than the refined one."""
    refined = [axis for axis in range(3) if factor[axis] > 1]
    thick = int(np.argmax(sizes))
    if len(refined) == 1 and ratio_of_lengths(sizes[thick], sizes[refined[0]]) > THICK:
        better = " ".join(str(max(factor) if axis == thick else 1) for axis in range(3))
        complain("test", f"{path}: axis {refined[0]} is refined ({sizes[refined[0]]:.4g} {unit}), "
                 f"but slices are thick along axis {thick} ({sizes[thick]:.4g} {unit}): --factor "
                 f"{better} refines that one")


def _check_memory(path, image, shape, sizes, route, uses, request):
    """Raise UserError, before work begins, if the memory is too small."""
    count, shape = shape[3] if len(shape) > 3 else 1, shape[:3]
    voxels = math.prod(shape) * math.prod(map(int, route.factor))
    each = max(structure_of(use.method).restore_bytes for use in uses)
    working, doing = voxels * each, f"make it {' x '.join(map(str, route.factor))} times finer"
    if route.sizes:  # the last spline writes other voxels
        last = math.prod(map(voxels_along, shape, sizes, route.sizes))
        working, voxels = max(working, 4 * voxels + LAST_SPLINE_BYTES * last), last
        doing = f"bring it to voxels of {of_three(route.sizes, unit_of(image))}"
    learning = ADAPT_BYTES if wants_adapting(request, uses[0].method) else 0  # before restoring
    storing = count * voxels * image.get_data_dtype().itemsize if request.dtype == "same" else 0
    needed = max(working, learning, storing) + (count - 1) * voxels * 4 + WORK_BYTES + CODE_BYTES
    if needed > (free := free_memory()):
        raise UserError(f"{path}: to {doing} takes {needed / GB:.1f} GB of "
                        f"memory, {free / GB:.1f} GB are free; close other programs, crop it, or "
                        "ask for fewer voxels")
