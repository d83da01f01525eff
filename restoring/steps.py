"""The steps of restoring: a volume or an array, degraded here or truly low-resolution, or a file.

Files that are truly low-resolution are for restoring/upscaling.py.
"""
import contextlib
import dataclasses
import itertools
from typing import NamedTuple

import numpy as np

from disk.files import make_folder
from disk.filters import digests_there, factors_there, load_with_digests
from disk.metrics import metrics_row
from disk.seal import Seal
from engine import CPU
from filter_constant import Settings
from filter_func import census_blend
from get_lar import best_spline, make_fine, make_pair
from intensities import shift_of
from machine.errors import UserError, complain
from machine.progress import Stopwatch
from nifti.masks import read_brain
from nifti.volumes import write_volume
from restoring.figures import brain_mask, figures_of
from structure import structure_of
from util import clipping_in_words, without_nonsense


class Restored(NamedTuple):
    """What restoring a file leaves to be shown."""

    row: dict  # figures, or what was upscaled
    images: dict  # of str to ndarray of float32, (X, Y, Z), in [0, 1]
    affine: np.ndarray  # (4, 4), of the images' orientation and voxel size
    watch: Stopwatch
    settings: Settings  # as the filters, or the last of them, were learned; its factor is in all
    uses: list  # of Use, one after another
    origin: dict  # the files it came from, and their SHA-256, as `origin_of` gives them
    missed: int = 0  # volumes of a series that could not be restored


class Use(NamedTuple):
    """Filters for one factor, ready to be used."""

    stages: list  # of Stage
    settings: object  # Settings, as the filters were learned
    axes: tuple  # the volume's axes in the order in which the filters take them
    digests: dict | None = None  # SHA-256 of the filters' files, by name

    @property
    def factor(self):
        """How many times finer each axis of the volume becomes."""
        return tuple(self.settings.factor[place] for place in np.argsort(self.axes))

    @property
    def asked(self):
        """The settings, their factor along the axes of the volume."""
        return dataclasses.replace(self.settings, factor=self.factor)


class Filters:
    """Filters by the factor that is asked for, each read once.

    Parameters
    ----------
    settings : Settings
        As the user gave them.
    given : set of str
        Options that stood on the command line.

    Attributes
    ----------
    there : list of tuple of three int
        Factors that there are filters for.
    """

    def __init__(self, settings, given):
        self.settings, self.given, self._read = settings, given, {}
        self.there = factors_there(settings)

    def read_all(self):
        """Read what any volume may need, for a worker that does not find the files; returns self.

        What cannot be read is refused where it is needed.
        """
        self.first()
        if self.settings.voxel_size or self.settings.isotropic:
            for factor in self.there:
                with contextlib.suppress(UserError):
                    self(factor)
        return self

    def first(self):
        """The `Use` for --factor; with --voxel_size that for any factor, to say what they are."""
        asked = self.settings
        free = asked.voxel_size or asked.isotropic
        return self(self.there[0] if free and self.there else asked.factor)

    def __call__(self, factor):
        """The `Use` for a factor; raises UserError where there are no filters."""
        if factor not in self._read:
            asked = dataclasses.replace(self.settings, factor=factor)
            stages, settings, digests = load_with_digests(asked, self.given)
            axes = axes_between(factor, settings.factor)
            self._read[factor] = Use(stages, settings, axes, digests)
        return self._read[factor]

    def digests(self):
        """SHA-256, by file name, of all filters that volumes may be restored with: a dict."""
        asked = self.settings
        if asked.voxel_size or asked.isotropic:
            return digests_there(asked, self.there)
        return self.first().digests


def restore(volume, stages, settings, engine=None, advance=lambda share: None):
    """Restore an LR volume with learned filters, whichever structure they have.

    Parameters
    ----------
    volume : get_lar.LRVolume
    stages : list of Stage
    settings : Settings
        As the filters were learned.
    engine : engine.CPU or its like, optional
    advance : callable, optional
        Told, now and then, of the share of the work that was done since.

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
    sr = structure_of(settings).restore(volume, stages, engine or CPU(), advance)
    if settings.blend_threshold is None:
        return sr
    # The outermost shell has no 26 neighbours and becomes 0. Where that could be brain, one more
    # is set around.
    around = 0 if settings.margin else 1
    blended = census_blend(*(np.pad(part, around, mode="edge") for part in (volume.lr, sr)),
                           settings.blend_threshold)
    return blended[tuple(slice(around, around + side) for side in sr.shape)]


def upscale(low, stages, settings, engine=None, inside=None):
    """Bring a truly low-resolution volume to the finer grid and restore it there.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        Background 0. Where more than one voxel in a hundred is below zero, see `intensities`.
    stages : list of Stage
    settings : Settings
        As the filters were learned.
    engine : engine.CPU or its like, optional
    inside : ndarray of bool, shape (x, y, z), optional
        The brain of a whole head, see `get_lar.make_fine`.

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
    outside = ~np.isfinite(low)
    low, outside = without_nonsense(low), outside if outside.any() else None
    shift = shift_of(low, outside)
    if not shift:
        fine = make_fine(low, settings, inside)
        return fine.whole(restore(fine, stages, settings, engine))
    work = shift.work(low, outside)
    if outside is not None:
        low[outside] = shift.background
    fine = make_fine(work, settings, inside)
    whole = fine.whole(restore(fine, stages, settings, engine))
    return fine.whole_shifted(whole, shift, low, work == 0)


def whole_of(data, volume, sr, stages, settings, engine):
    """Put what was restored back into the whole volume, with the brain that lies outside its box.

    The published crop leaves out the last plane of a brain that fills its array, and trailing
    planes of a side that is no multiple of the factor. These are restored from the same volume,
    mirrored at its faces. Figures are over the box, as published.

    Parameters
    ----------
    data : ndarray of float32, shape (X, Y, Z)
        The volume that `volume` was made from.
    volume : get_lar.LRVolume
    sr : ndarray of float32, shape of ``volume.lr``
    stages, settings, engine
        As for `restore`.

    Returns
    -------
    ndarray of float32, shape ``volume.whole_shape``
    """
    whole = volume.whole(sr)
    outside = data > 0
    outside[volume.box] = False
    if not outside.any():
        return whole
    # Half a patch on each side and a voxel more, so many that blocks of the factor stay whole.
    around = []
    for side, factor in zip(data.shape, settings.factor, strict=True):
        before = -(-(settings.margin + 1) // factor) * factor
        around.append((before, before - side % -factor))
    inner = tuple(slice(before, before + side)
                  for (before, _), side in zip(around, data.shape, strict=True))
    larger = make_pair(np.pad(data, around, mode="symmetric"), settings, volume.scale)
    restored = larger.whole(restore(larger, stages, settings, engine))[inner]
    whole[outside] = restored[outside]
    return whole


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


def origin_of(path, digest, mask=None, mask_digest=""):
    """The files that a result comes from, for its record.

    Parameters
    ----------
    path : path-like
    digest : str
        SHA-256 of the file, taken when it was read.
    mask, mask_digest : optional
        The same of its mask.

    Returns
    -------
    dict of str to str
    """
    masked = {"mask": str(mask), "mask_sha256": mask_digest} if mask else {}
    return {"input": str(path), "input_sha256": digest} | masked


def restore_file(path, target, stages, settings, engine, axes=(0, 1, 2), digests=None,
                 files=None):
    """Degrade and restore one file.

    Parameters
    ----------
    path, target : Path
    stages, settings, engine
        As for `restore`.
    axes, digests : optional
        As of a `Use`.
    files : disk.files.WholeFiles, optional
        Those that the result belongs to.

    Returns
    -------
    Restored

    Raises
    ------
    UserError
        If the file is no volume to restore, or the result cannot be written.
    """
    watch, use = Stopwatch(), Use(stages, settings, axes, digests)
    with watch("read"):
        seal = Seal(path)
        volume, mask = read_brain(path, settings.mask)
        origin = origin_of(path, seal.digest(), mask, volume.mask_digest)
    try:
        with watch("degrade and interpolate"):
            data = volume.data.transpose(axes)
            pair = make_pair(data, settings)
        if said := clipping_in_words(data, pair.scale):
            complain("test", f"{path}: {said}")
    except ValueError as fault:
        raise UserError(f"{path}: {fault}") from fault
    with watch("restore"):
        sr = restore(pair, stages, settings, engine)
        whole = whole_of(data, pair, sr, stages, settings, engine)
    back = np.argsort(axes)  # from the filters' order of axes to the volume's
    with watch("write"):
        make_folder(target.parent)
        if volume.shift:
            whole = volume.shift.undo(whole, data == 0)
        write_volume(target, whole.transpose(back), volume.image, None, settings.dtype, files)
    affine = volume.image.affine
    del volume, data, whole  # three less in memory while the figures are taken
    with watch("figures"):
        spline, brain = best_spline(pair), brain_mask(pair)
        images = {"lr": pair.lr, "spline5": spline, "sr": sr}
        row = metrics_row(path.name, brain.sum(), figures_of(pair.hr, images, brain))
        row |= {"mask": mask.name} if mask else {}
    images = {"HR": pair.hr, "Spline": spline, "Restored": sr}
    images = {name: image.transpose(back) for name, image in images.items()}
    return Restored(row, images, affine, watch, use.asked, [use], origin)
