"""The steps of restoring: a volume, an array or a file, degraded here or truly low-resolution.

Evaluating and upscaling are one path. They differ in where the LR volume comes from, and in what is
known to compare with.
"""
import itertools
from typing import NamedTuple

import numpy as np

from disk.files import make_folder
from disk.volumes import finer_header, read_series, read_volume, write_volume
from engine import CPU
from filter_func import census_blend
from get_lar import best_spline, comparison_images, make_fine, make_pair
from intensities import shift_of
from machine.errors import UserError
from machine.progress import Stopwatch, progress
from report.figures import brain_mask, figures_of, metrics_row
from scan_cues import NOISE
from structure import structure_of
from util import without_nonsense


class Restored(NamedTuple):
    """What restoring a file leaves to be shown."""

    row: dict  # figures, or what was upscaled
    images: dict  # of str to ndarray of float32, (X, Y, Z), in [0, 1]
    affine: np.ndarray  # (4, 4), of the images' orientation and voxel size
    watch: Stopwatch


def restore(volume, stages, settings, engine=None):
    """Restore an LR volume with learned filters, whichever structure they have.

    Parameters
    ----------
    volume : get_lar.LRVolume
    stages : list of Stage
    settings : Settings
        As the filters were learned.
    engine : engine.CPU or its like, optional

    Returns
    -------
    sr : ndarray of float32, shape of ``volume.lr``, in [0, 1]

    Examples
    --------
    >>> from disk.filters import PRETRAINED, load_filters
    >>> from filter_constant import Settings
    >>> stages, settings = load_filters(Settings(arrays_dir=str(PRETRAINED)))
    >>> hr = np.pad(np.random.default_rng(0).random((16, 16, 16), np.float32), 4)
    >>> restore(make_pair(hr, settings), stages, settings).shape
    (16, 16, 16)
    """
    sr = structure_of(settings).restore(volume, stages, engine or CPU())
    if settings.blend_threshold is None:
        return sr
    # The outermost shell has no 26 neighbours and becomes 0. Where that could be brain, one more
    # is set around.
    around = 0 if settings.margin else 1
    blended = census_blend(*(np.pad(part, around, mode="edge") for part in (volume.lr, sr)),
                           settings.blend_threshold)
    return blended[tuple(slice(around, around + side) for side in sr.shape)]


def upscale(low, stages, settings, engine=None):
    """Bring a truly low-resolution volume to the finer grid and restore it there.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        Background 0. Where more than one voxel in a hundred is below zero, see `intensities`.
    stages : list of Stage
    settings : Settings
        As the filters were learned.
    engine : engine.CPU or its like, optional

    Returns
    -------
    fine : ndarray of float32, shape (factor[0] * x, factor[1] * y, factor[2] * z)
        In the intensities of `low`. `Degradation.fine_to_low` says where its voxels lie.

    Examples
    --------
    >>> from disk.filters import PRETRAINED, load_filters
    >>> from filter_constant import Settings
    >>> stages, settings = load_filters(Settings(factor=(1, 1, 4), arrays_dir=str(PRETRAINED)))
    >>> upscale(np.random.default_rng(0).random((12, 12, 6), np.float32), stages, settings).shape
    (12, 12, 24)
    """
    low = without_nonsense(low)
    shift = shift_of(low)
    low = shift.work(low) if shift else low
    fine = make_fine(low, settings)
    sr = restore(fine, stages, settings, engine)
    return fine.whole_shifted(sr, shift, low) if shift else fine.whole(sr)


def axes_between(asked, learned):
    """The order of axes that turns the factor that is asked for into the one that was learned.

    Where axes can go round they do, so that the others keep their order.

    Examples
    --------
    >>> axes_between((4, 1, 1), (1, 1, 4))
    (1, 2, 0)
    """
    orders = [(0, 1, 2), (1, 2, 0), (2, 0, 1), *itertools.permutations(range(3))]
    return next(axes for axes in orders if tuple(asked[axis] for axis in axes) == learned)


def restore_file(path, target, stages, settings, engine, axes=(0, 1, 2)):
    """Restore one file, degraded first or, with --upscale, as it is; each volume of a series.

    Parameters
    ----------
    path, target : Path
    stages, settings, engine
        As for `restore`.
    axes : tuple of three int, optional
        The volume's axes in the order in which the filters take them, see `axes_between`.

    Returns
    -------
    Restored

    Raises
    ------
    UserError
        If the file is no volume to restore, or the result cannot be written.
    """
    watch = Stopwatch()
    prepare, preparing = make_pair, "degrade and interpolate"
    if settings.upscale:
        prepare, preparing = make_fine, "interpolate"
    with watch("read"):
        volume = read_series(path) if settings.upscale else read_volume(path)
        series = volume.data.reshape(*volume.data.shape[:3], -1).transpose(*axes, 3)
    whole, quiet = [], settings.quiet or series.shape[3] == 1
    with progress(series.shape[3], "series", "volume", quiet) as bar:
        for data in np.moveaxis(series, -1, 0):
            try:
                with watch(preparing):
                    lr_volume = prepare(data, settings)
            except ValueError as fault:
                raise UserError(f"{path}: {fault}") from fault
            with watch("restore"):
                sr = restore(lr_volume, stages, settings, engine)
                found = lr_volume.whole(sr)
                if not whole:
                    shown = found
                if volume.shift:
                    found = lr_volume.whole_shifted(sr, volume.shift, data)
                whole.append(found)
            bar.update()
    back = np.argsort(axes)  # from the filters' order of axes to the volume's
    whole = [restored.transpose(back) for restored in whole]
    restored = whole[0] if len(whole) == 1 else np.stack(whole, axis=-1)
    restored = restored.reshape(*whole[0].shape, *volume.data.shape[3:])
    with watch("write"):
        header = None
        if settings.upscale:
            order = [*back, 3]
            fine_to_low = lr_volume.operator.fine_to_low()[np.ix_(order, order)]
            header = finer_header(volume.image, restored.shape, fine_to_low)
        make_folder(target.parent)
        write_volume(target, restored, volume.image, header, settings.dtype)
    if settings.upscale:
        seconds = watch.seconds[preparing] + watch.seconds["restore"]
        row = {"volume": path.name, "from": volume.data.shape, "to": restored.shape,
               "voxel_mm": tuple(round(float(mm), 4) for mm in header.get_zooms()[:3]),
               "seconds": seconds}
        if lr_volume.cues is not None:
            row["noise"] = float(lr_volume.cues[NOISE])
        images = comparison_images(series[..., 0], shown, settings)
        images = {name: image.transpose(back) for name, image in images.items()}
        return Restored(row, images, header.get_best_affine(), watch)
    del whole, restored, shown  # a volume less in memory while the figures are taken
    with watch("figures"):
        spline, mask = best_spline(lr_volume), brain_mask(lr_volume)
        images = {"lr": lr_volume.lr, "spline5": spline, "sr": sr}
        row = metrics_row(path.name, mask.sum(), figures_of(lr_volume.hr, images, mask))
    images = {"HR": lr_volume.hr, "Spline": spline, "Restored": sr}
    images = {name: image.transpose(back) for name, image in images.items()}
    return Restored(row, images, volume.image.affine, watch)
