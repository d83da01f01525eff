"""Upscale a file: from its header to the finer volume, or series, on disk.

With --factor, filters are applied once. With --voxel_size and --isotropic, filters may be applied
several times, followed by a spline; see restoring/spacing.py.
"""
import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from nibabel.affines import voxel_sizes

from degrading.descriptors import NOISE
from degrading.slice_profile import UNBLURRED, in_words
from disk.files import make_folder
from disk.seal import Seal
from get_lar import make_fine
from machine.errors import UserError, complain, short
from machine.memory import SERIES_BYTES
from machine.progress import Stopwatch, progress, say
from nifti.bids import makes_derivatives
from nifti.checks import checked_image
from nifti.geometry import MM, finer_header, unit_of, voxel_sizes_of
from nifti.masks import mask_for
from nifti.slices import filled_up
from nifti.volumes import read_series, relative_name, write_volume
from restoring.adaptation import Adapted, adapt_to_scan, is_thick, wants_adapting
from restoring.comparison import comparison_images, spline_onto
from restoring.estimates import Estimates, estimates_of
from restoring.fine_mask import write_fine_mask
from restoring.measured_scan import Scan, as_measured, first_seen, volumes_of
from restoring.planning import inside_of, plan, say_of_head
from restoring.remarks import (
    say_of_doubt,
    say_of_later,
    say_of_trust,
    say_of_unlike_slices,
)
from restoring.spacing import onto_sizes
from restoring.steps import Restored, origin_of, restore

STEPS = ("adapt", "interpolate", "restore")  # steps whose seconds are reported


def upscale_file(path, target, store, engine, files=None):
    """Upscale one file. Each volume of a series is upscaled separately.

    Parameters
    ----------
    path, target : Path
    store : restoring.steps.FilterStore
    engine : engine.CPU or its like
    files : disk.files.WholeFiles, optional
        Group of files that the result belongs to.

    Returns
    -------
    restoring.steps.Restored

    Raises
    ------
    UserError
        If the file cannot be upscaled, the memory is too small, or the result cannot be written.
    """
    watch, request, seal = Stopwatch(), store.request, Seal(path)
    name = relative_name(path, request.test_dir)
    opened = checked_image(path, (3, 4), SERIES_BYTES)
    read = functools.cache(lambda: read_series(path, opened))
    route, uses = plan(path, name, store, opened, read)
    with watch("read"):
        mask = mask_for(path, request.mask, opened)
        volume = read()
        origin = origin_of(path, seal.digest(), mask)
    with watch("interpolate"):
        scan = Scan(volume, mask and mask.inside, voxel_sizes_of(volume.image), route, uses,
                     np.eye(4), request.known_profile)
        scan = as_measured(name, scan, store, filled_up(path, volume.image, scan.sizes))
    found = upscale_volumes(name, scan, request, engine, watch, mask, path)
    for remark in found.missed:
        complain("test", f"{path}: {remark}")
    shape = found.fine.shape[1:] + volume.data.shape[3:]
    with watch("write"):
        header = finer_header(volume.image, shape, found.to_low)
        affine = header.get_best_affine()
        make_folder(target.parent)
        write_volume(target, np.moveaxis(found.fine, 0, -1).reshape(shape), volume.image, header,
                     request.dtype, files)
        if mask and makes_derivatives(request):
            write_fine_mask(target, mask, volume.image, shape[:3], found.to_low, request.test_dir,
                            files)
    seconds = sum(watch.seconds.get(step, 0) for step in STEPS)
    row = {"volume": name, "from": volume.data.shape, "to": shape,
           "voxel_size": tuple(float(f"{side:.5g}") for side in voxel_sizes(affine)),
           "unit": unit_of(volume.image), "seconds": seconds}
    if found.seen.descriptors is not None:
        row["noise"] = float(found.seen.descriptors[NOISE])
        row |= {"trust": round(found.seen.trust, 2), "blur_trust": round(found.seen.belief, 2)}
    if found.seen.distance is not None:
        row |= {"distance": round(found.seen.distance, 3),
                "usual_distance": round(found.seen.usual, 3), "like": found.seen.like,
                "edge_density": round(found.seen.texture.density, 3),
                "unevenness": round(found.seen.texture.uneven, 3)}
    if found.tuning and not found.tuning.why_not:
        row |= {"fine_tuned": True} if found.tuning.profile is None else {
            "profile": found.tuning.profile}
    if found.head is not None:
        row["skull_stripped"] = not found.head
    if scan.profiles and scan.uses[0].method.for_scans:
        row["told"] = in_words(scan.profiles)
    if mask:
        row["mask"] = mask.path.name
    if scan.volume is not volume:
        row["measured"] = scan.volume.data.shape[:3]
    images = {}
    if request.report:
        low, fine = volumes_of(volume)[found.first], found.fine[found.first]
        shift = volume.shifts[found.first]
        images = comparison_images(low, shift.work(fine) if shift else fine, found.to_low)
    method = dataclasses.replace(scan.uses[-1].method, factor=scan.route.factor)
    return Restored(row, images, affine, watch, method, scan.uses, origin,
                    len(found.missed))


class Upscaled(NamedTuple):
    """The upscaled volumes of a file."""

    fine: np.ndarray  # (volumes, X, Y, Z) float32, in the file's intensities
    to_low: np.ndarray  # (4, 4): matrix from voxels of `fine` to voxels of the file
    first: int  # number of the first volume that could be restored, which the report shows
    seen: Estimates  # estimates from the first restored volume; the lowest weights of all volumes
    tuning: Adapted | None  # result of fine-tuning; None if it was not wanted
    head: bool | None  # True if it seems to be a whole head; None if the filters do not need this
    missed: list  # of str: messages about volumes that could not be restored


def upscale_volumes(name, scan, request, engine, watch, mask=None, path=None):
    """Upscale each volume of a scan separately.

    Parameters
    ----------
    name : str
        Name of the scan, for messages.
    scan : measured_scan.Scan
    request : Request
    engine : engine.CPU or its like
    watch : machine.progress.Stopwatch
    mask : nifti.masks.Mask, optional
        Mask of a whole head, on the grid of the file.
    path : Path, optional
        Path to print in error messages, instead of the name.

    Returns
    -------
    Upscaled

    Raises
    ------
    UserError
        If no volume can be restored.
    """
    path = path or name
    volume, brain, sizes, route, uses, _, profiles, agree_with = scan
    lows = volumes_of(volume)
    count, shape = lows.shape[0], lows.shape[1:]
    mask = mask and mask._replace(inside=brain)
    in_mm = sizes * MM[unit_of(volume.image)]
    head = say_of_head(name, first_seen(volume), in_mm, uses[0], mask)
    fine, missed, lost, tuning, estimates = None, [], {}, None, {}
    with progress(100 * count, short(name), "%", request.quiet) as bar:
        for number, (low, shift) in enumerate(zip(lows, volume.shifts, strict=True)):
            inside = inside_of(low, in_mm, uses[0], mask)
            try:
                if fine is None and wants_adapting(request, uses[0].method):
                    with watch("adapt"):
                        uses[0], tuning = adapted(name, low, in_mm, uses[0], mask and mask.inside,
                                                  inside, profiles)
                if fine is None and request.adapt is not False:
                    say_of_later(name, uses)
                found, to_low, seen = upscale_by(low, uses, engine, watch, bar.update, shift,
                                                 inside, profiles, request.blend_threshold,
                                                 agree_with, in_mm)
            except ValueError as fault:
                if count == 1:
                    raise UserError(f"{path}: {fault}") from fault
                missed.append(f"volume {number + 1} of {count} is left black: {fault}")
                lost[number] = fault
                continue
            finally:
                bar.update(100 * (number + 1) - bar.n)
            with watch("restore"):
                if route.sizes is not None:
                    least, background = (float(found.min()), shift.background) if shift else (0, 0)
                    found, to_low = onto_sizes(found, to_low, shape, sizes, route.sizes, least,
                                               background)
            if not np.isfinite(found).all() and count > 1:
                found = _own_spline(low, found.shape, to_low, shift)
                missed.append(f"volume {number + 1} of {count} is a spline, not restored: "
                              "restoring gave voxels that are not finite")
            else:
                estimates[number] = seen
            if fine is None:
                first, told = number, seen
                say_of_doubt(name, told)
                say_of_unlike_slices(name, told, uses[0].method)
                fine = found[None] if count == 1 else np.zeros((count, *found.shape), np.float32)
            if count > 1:
                fine[number] = found
            del found
    if fine is None:
        raise UserError(f"{path}: none of its {count} volumes can be restored: {lost[0]}")
    say_of_trust(name, estimates, count, measured=agree_with is not None)
    told = told._replace(**{field: min((getattr(one, field) for one in estimates.values()),
                                       default=1.0) for field in ("trust", "belief")})
    for number in lost:
        if shift := volume.shifts[number]:
            fine[number] = shift.undo(np.zeros(1, np.float32))
    return Upscaled(fine, scan.to_low @ to_low, first, told, tuning, head, missed)


def adapted(name, low, sizes, use, brain=None, inside=None, profiles=()):
    """Fine-tune filters on a scan.

    Parameters
    ----------
    name : str
        Name of the scan, for messages.
    low : ndarray of float32, shape (x, y, z)
        A volume of the scan.
    sizes : sequence of three float
        Voxel sizes of `low` in mm.
    use : Filters
    brain : ndarray of bool, shape (x, y, z), optional
        Mask of a whole head: for thick slices, only these voxels are used.
    inside, profiles
        See `adapt_to_scan`.

    Returns
    -------
    use : Filters
    found : restoring.adaptation.Adapted
    """
    order = list(use.axes)
    low = low * brain if brain is not None and is_thick(use.method) else low
    found = adapt_to_scan(low.transpose(order), use.stages, use.method, np.asarray(sizes)[order],
                          None if inside is None else inside.transpose(order),
                          [profiles[axis] for axis in order] if len(profiles) else ())
    if found.why_not:
        say(f"{name}: filters are used as they are: {found.why_not}")
    return use._replace(stages=found.stages), found


def upscale_by(low, uses, engine, watch, advance=lambda percent: None, shift=None, inside=None,
               profiles=(), blend_threshold=None, agree_with=None, voxel_size=(1, 1, 1)):
    """Upscale a volume by one or more sets of filters, one after another.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        The background is 0.
    uses : list of Filters
    engine : engine.CPU or its like
    watch : machine.progress.Stopwatch
    advance : callable, optional
        Called from time to time with the percentage of the work done since the last call.
    shift : intensities.Shift, optional
        The shift of intensities by which `low` was made.
    inside : ndarray of bool, shape (x, y, z), optional
        The brain of a whole head, see `get_lar.make_fine`.
    profiles : sequence of three str, optional
        Slice profile of each axis of `low`, if known.
    blend_threshold : int, optional
        See --blend_threshold.
    agree_with : sequence of three str, optional
        Slice profiles with which the result of the first filters must agree; by default `profiles`.
    voxel_size : sequence of three float, optional
        Voxel sizes of `low` in mm.

    Returns
    -------
    fine : ndarray of float32, shape (X, Y, Z)
        In the intensity units of `low` before the shift.
    to_low : ndarray, shape (4, 4)
        Matrix from voxels of `fine` to voxels of `low`.
    seen : Estimates
        Estimates from `low`, before the first filters.

    Raises
    ------
    ValueError
        If `low` cannot be upscaled.
    """
    to_low, own = np.eye(4), None
    for number, use in enumerate(uses):
        back = np.argsort(use.axes)  # from the filters' order of axes to the volume's
        with watch("interpolate"):
            within = None if inside is None else inside.transpose(use.axes)
            known, agreed = (names and [names[axis] for axis in use.axes]
                             for names in (profiles, agree_with))
            if number:
                refined = np.prod([earlier.factor for earlier in uses[:number]], axis=0) > 1
                # Axes that earlier filters have refined are free of the scanner's blur.
                again = (refined & (np.array(use.factor) > 1)).any() and use.method.for_scans
                known, agreed = UNBLURRED if again else known or agreed or (), ()
            lr_volume = make_fine(low.transpose(use.axes), use.method, within, known, agreed,
                                  np.take(voxel_size, use.axes))
        voxel_size = np.divide(voxel_size, use.factor)
        with watch("restore"):
            sr = restore(lr_volume, use.stages, use.method, engine,
                         lambda share: advance(100 * share / len(uses)), blend_threshold)
            lr_volume = dataclasses.replace(lr_volume, lr=None)  # frees a volume
            whole = lr_volume.whole(sr)
            del sr
            lr_volume = dataclasses.replace(lr_volume, low=None, mask=None, above=None)
            if shift:  # `low` is the shifted volume, `own` has the original intensities
                black = None  # after the first filters, a zero may be a restored intensity
                if number == 0:
                    own, black = shift.undo(low), (low == 0).transpose(use.axes)
                own = lr_volume.whole_shifted(
                    whole, shift, own.transpose(use.axes), black).transpose(back)
            low = whole.transpose(back)
        order = [*back, 3]
        to_low = to_low @ lr_volume.operator.fine_to_low()[np.ix_(order, order)]
        if number == 0:
            seen = estimates_of(lr_volume, use)
        if inside is not None and number + 1 < len(uses):
            inside = lr_volume.operator.nearest(within).transpose(back)
        del lr_volume, whole  # frees memory before the next filters
    return own if shift else low, to_low, seen


def _own_spline(low, shape, to_low, shift):
    """Cubic spline of a volume on another grid, in the intensities before the shift."""
    if not shift:
        return spline_onto(low, shape, to_low, 3)
    own = shift.undo(low)
    least = own.min()
    return spline_onto(own - least, shape, to_low, 3) + least
