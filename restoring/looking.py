"""Describe a scan and suggest a command for it: the lines that test.py --look prints."""
import contextlib
import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np

from degrading.descriptors import NOISE, descriptors_of
from degrading.likeness import Weights, texture_of, weights_of
from degrading.measured_grid import mask_onto_measured, measured_grid, onto_measured
from degrading.profile_reader import blur_of, nearest_profile, read, strangeness
from degrading.slice_profile import in_words
from disk.files import stem
from get_lar import brightness_of, in_units
from machine.errors import UserError
from machine.memory import SERIES_BYTES
from nifti.checks import checked_image
from nifti.geometry import MM, is_upscaled, ratio_of_lengths, unit_of, voxel_sizes_of
from nifti.masks import find_mask, mask_for
from nifti.slices import THICK, filled_up, slices_in_words
from nifti.volumes import read_series, relative_name
from restoring.adaptation import is_thick
from restoring.estimates import usual_distance
from restoring.measured_scan import first_seen
from restoring.planning import find_head
from restoring.spacing import of_three, route_to

# A part of a file's name that says that the scan is not T1-weighted.
OTHER_WEIGHTING = re.compile(r"(?:^|[_.-])(flair|t2w?|t2star|pdw?)(?=[_.-]|$)", re.IGNORECASE)
FINEST = 0.85  # mm; no training volume has voxels smaller than this


def look(path, store):
    """Describe a scan, and suggest the best command for it, with the filters of a `FilterStore`.

    Returns
    -------
    list of (str, str)
        Pairs of a topic and a line of text.

    Raises
    ------
    UserError
        If the file is not a volume.
    """
    image, shape = opened = checked_image(path, (3, 4), SERIES_BYTES)
    sizes, unit = voxel_sizes_of(image), unit_of(image)
    codes = "".join(code or "?" for code in nib.aff2axcodes(image.affine))
    grid = " x ".join(map(str, shape[:3]))
    series = f", {shape[3]} volumes" if len(shape) > 3 else ""
    lines = [("grid", f"{grid} voxels of {of_three(sizes, unit)}{series}; axes {codes}; "
                      f"{image.get_data_dtype().name}")]
    if said := slices_in_words(path, image, sizes, unit):
        lines.append(("slices", said))
    volume, mask = read_series(path, opened), mask_for(path, store.request.mask, opened)
    low = np.clip(first_seen(volume), 0, None)
    measured = measured_grid(low, filled_up(path, image, sizes))
    seen = measured.in_words(sizes, unit)  # empty if it was not interpolated
    grids = f"interpolated after it was measured ({seen})" if seen else ""
    lines.append(("measured", "no: a result of upscaling; take the measured scan" if
                  is_upscaled(image) else grids or "no sign of interpolation"))
    inside, own = mask and mask.inside, sizes
    if seen:
        low, sizes = onto_measured(low, measured), sizes / measured.shares
        if inside is not None:
            inside = mask_onto_measured(inside, measured)
    in_mm = sizes * MM[unit]
    content, inside, head = _content(low, in_mm, mask, inside)
    request = store.request
    if head:
        with contextlib.suppress(UserError):  # there is none
            content += f"; {find_mask(path, 'auto').name} lies beside it"
            request = request.but(mask="auto", given=request.given | {"mask"})
    part = in_units(low, brightness_of(low, inside), inside)
    lines.append(("content", content))
    thick = ratio_of_lengths(sizes.max(), np.sort(sizes)[1]) > THICK
    factor, goal = (2, 2, 2), None
    if seen:
        goal = own
        if thick:  # slices as thin as the measured voxels are wide
            goal = np.where(sizes == sizes.max(), np.minimum(np.sort(sizes)[1], own), own)
    elif ratio_of_lengths(sizes.max(), sizes.min()) > THICK:
        goal = np.full(3, sizes.min())  # --isotropic
    if goal is not None:  # the scan is judged by the first filters of the suggested command
        if thick:
            factor = tuple(np.where(sizes == sizes.max(), 2, 1))
        with contextlib.suppress(ValueError):
            factor = route_to(goal, sizes, store.there).factors[0]
    descriptors = descriptors_of(part, factor)
    lines.append(("noise", f"about {100 * descriptors[NOISE]:.1f} % of the brightest intensity"))
    weights, filters = Weights(), None
    known = () if seen else store.request.known_profile
    with contextlib.suppress(UserError):  # there are none for this factor
        filters = store(factor)
    if filters is not None and filters.method.for_scans:
        reader = filters.stages[0].classes.reader
        voxel = np.cbrt(in_mm.prod())
        usual = usual_distance(descriptors, filters.method, voxel)
        distance = strangeness(reader, descriptors)
        how, reason = "like" if distance <= usual else "unlike", ""
        if not is_thick(filters.method):  # filters for thick slices are used whatever the scan
            if not known and reader.any():
                texture = texture_of(part, descriptors)
                weights = weights_of(reader, descriptors, texture, voxel, factor)
            if weights.reason:
                how, reason = "unlike", f"{weights.reason}; "
            lines.append(("blur", _blur(reader, descriptors, known, factor)))
        lines.append(("brains", f"{how} the training brains ({reason}distance {distance:.1f}, "
                                f"usual up to {usual:.1f})"))
    if 1 in shape[:3]:
        return [*lines, ("advice", "none: a volume with a single slice cannot be made finer across "
                                   "it")]
    unfit = filters is not None and not filters.method.for_scans
    return lines + _advice(path, in_mm, thick, weights, request, known,
                           goal if seen else None, unfit)


def _named(path):
    """A path as an argument of a command: one that begins with a dash would be an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _content(low, in_mm, mask, inside):
    """A text about a volume's content, and the voxels in which noise and blur are estimated.

    The third value is True for a whole head without a mask.
    """
    if mask:
        return f"a head with a mask, {mask.path.name}", inside, False
    head, bright = find_head(low, in_mm)
    if head:
        return ("a whole head, it seems: noise and blur are estimated in its bright part", bright,
                True)
    share = np.count_nonzero(low) / low.size
    if share >= 0.995:  # "100%" below
        return "tissue up to all faces, or a background that is not zero", None, False
    return f"tissue in {share:.0%} of its voxels, zeros around", None, False


def _blur(reader, descriptors, known, factor):
    """A text about the slice profile, given by the user or estimated."""
    found = blur_of(known, factor) if known else read(reader, descriptors)
    left = "signal left: {:.0f} % at 3/4 of the highest frequency, {:.0f} % at the highest".format(
        *(100 * value for value in found))
    if known:
        return f"{in_words(known)}, by --profile ({left})"
    return f"most like {nearest_profile(found)}, estimated ({left})"


def _advice(path, in_mm, thick, weights, request, known, own, unfit):
    """The best command for the scan, and the reason.

    `weights` are those of the filters and of the estimated blur. `own` is the voxel size to restore
    an interpolated scan to; it is None for other scans. `unfit` is True if the command would use
    filters that are not for scans.
    """
    words = ["python", "test.py", "--upscale"]
    uneven = ratio_of_lengths(in_mm.max(), in_mm.min()) > THICK
    if own is not None and weights.filters:
        words += ["--voxel_size", *(f"{size:.6g}" for size in own)]
        why = "it was interpolated: its own grid is finer than the measured one, and fine enough " \
              "for the restored detail"
    elif thick:
        words.append("--isotropic")
        why = f"slices are {in_mm.max() / np.sort(in_mm)[1]:.2g} times as thick as in-plane " \
              "voxels: filters for thick slices are fine-tuned on the plane"
    elif uneven:
        words.append("--isotropic")
        why = f"voxels are {in_mm.max() / in_mm.min():.2g} times as long along one axis as along " \
              "another: filters make the coarse axes finer, one after another"
    elif not weights.filters:
        return [("advice", "none: the scan is so unlike the training brains that a spline would "
                           "replace the filters everywhere")]
    else:
        words += ["--factor", "2"]
        why = "voxels are about as long along all axes"
        if weighting := OTHER_WEIGHTING.search(stem(path)):
            words.append("--adapt")
            why += (f"; the name says {weighting[1]}, and the filters have learned from "
                    "T1-weighted brains")
        if in_mm.min() / 2 < FINEST:
            why += "; the result has smaller voxels than the training volumes of the filters: " \
                   "check its details with care"
    if weights.filters < 1:
        why += f"; {1 - weights.filters:.0%} of the weight would go to a spline"
    elif weights.blur < 1:
        why += f"; the least blur would be assumed with {1 - weights.blur:.0%} of the weight"
        why += ", unless you give --profile" * (own is None)
    for name in ("mask", "arrays_dir"):
        if name in request.given:
            words += [f"--{name}", getattr(request, name)]
    if "preset" in request.given or unfit:
        words += ["--preset", "scan" if unfit else request.method.preset]
    if known:
        words += ["--profile", *in_words(known).split()]
    # Volumes of several folders may have the same name, or differ in their endings only.
    inside = Path(relative_name(path, request.test_dir))
    inside = inside.with_name(f"{stem(path)}_fine{path.name[len(stem(path)):]}")
    words += ["--test_dir", _named(path), "--output", _named("__".join(inside.parts))]
    return [("try", shlex.join(words)), ("because", why)]
