"""Apply filters to volumes, and degrade and restore files for test.py without --upscale.

restoring/upscaling.py upscales the files of scans.
"""
import contextlib
from typing import NamedTuple

import numpy as np

from disk.files import make_folder
from disk.filters import (
    axes_between,
    axis_orders,
    digests_there,
    factors_there,
    load_filters,
    tags,
)
from disk.metrics import metrics_row
from disk.seal import Seal
from engine import CPU
from filter_constant import Method
from filter_func import census_blend
from get_lar import best_spline, make_pair
from machine.errors import UserError, complain
from machine.progress import Stopwatch
from nifti.bids import digests_beside
from nifti.masks import read_brain
from nifti.volumes import write_volume
from restoring.figures import brain_mask, figures_of
from structure import structure_of
from util import clipping_in_words


class Restored(NamedTuple):
    """The result of restoring a file, for tables, report and record."""

    row: dict  # PSNR and SSIM of a test; or noise, voxel sizes ... of an upscaled volume
    images: dict  # of str to ndarray of float32, (X, Y, Z), in [0, 1]: for the report
    affine: np.ndarray  # (4, 4): orientation and voxel size of the images
    watch: Stopwatch
    method: Method  # method of the last filters, with the total factor of all filters
    uses: list  # of Filters, in the order of their use
    origin: dict  # the input files and their SHA-256, see `origin_of`
    missed: int = 0  # number of volumes of a series that could not be restored


class FilterStore:
    """The available filters by their factor; each file of filters is read only once.

    Parameters
    ----------
    request : Request

    Attributes
    ----------
    there : list of tuple of three int
        Factors of the available filters.
    """

    def __init__(self, request):
        self.request, self._read = request, {}
        self.there = factors_there(request)

    @classmethod
    def of(cls, request, filters):
        """A store of these `Filters` only; UserError is raised if they are for another factor."""
        asked, learned = request.method.factor, filters.method.factor
        if sorted(asked) != sorted(learned):
            raise UserError(f"the filters are for factor {tags([learned])}, not {tags([asked])}; "
                            "learn others")
        store = cls(request)
        store._read = {factor: filters._replace(axes=axes_between(factor, learned))
                       for factor in axis_orders(learned)}
        store.there = [asked]
        return store

    @property
    def by_size(self):
        """True if factors are computed from each header, by --voxel_size or --isotropic."""
        return bool(self.request.voxel_size or self.request.isotropic)

    def read_all(self):
        """Read all filters that a volume may need, before they are sent to workers; returns self.

        A file that cannot be read gives an error only when a volume needs its filters.
        """
        self.first()
        if self.by_size:
            for factor in (order for there in self.there for order in axis_orders(there)):
                with contextlib.suppress(UserError):
                    self(factor)
        return self

    def first(self):
        """The `Filters` for --factor; the first available ones if sizes in mm are requested."""
        return self(self.there[0] if self.by_size and self.there else self.request.method.factor)

    def __call__(self, factor):
        """The `Filters` for a factor; UserError is raised if there are none."""
        if factor not in self._read:
            self._read[factor] = load_filters(self.request, factor)
        return self._read[factor]

    def digests(self):
        """SHA-256 of all filters that may be used for restoring: a dict by file name."""
        if self.by_size:
            return digests_there(self.request, self.there)
        return self.first().digests


def restore(volume, stages, method, engine=None, advance=lambda share: None,
            blend_threshold=None):
    """Restore an LR volume with learned filters of either method.

    Parameters
    ----------
    volume : get_lar.LRVolume
    stages : list of Stage
    method : Method
        Method of the filters.
    engine : engine.CPU or its like, optional
    advance : callable, optional
        Called from time to time with the share of the work done since the last call.
    blend_threshold : int, optional
        See --blend_threshold.

    Returns
    -------
    sr : ndarray of float32, shape of ``volume.lr``, in [0, 1]

    Examples
    --------
    >>> from disk.filters import PRETRAINED, load_filters
    >>> from filter_constant import Request
    >>> stages, method, *_ = load_filters(Request(arrays_dir=str(PRETRAINED)))
    >>> hr = np.pad(np.random.default_rng(0).random((16, 16, 16), np.float32), 4)
    >>> restore(make_pair(hr, method), stages, method).shape
    (16, 16, 16)
    """
    sr = structure_of(method).restore(volume, stages, engine or CPU(), advance)
    if blend_threshold is None:
        return sr
    # `census_blend` sets the outermost shell to 0, because its voxels lack neighbours. The shell
    # may contain brain, so one more shell is added around it first.
    blended = census_blend(*(np.pad(part, 1, mode="edge") for part in (volume.lr, sr)),
                           blend_threshold)
    return blended[1:-1, 1:-1, 1:-1]


def whole_of(data, volume, sr, stages, method, engine, blend_threshold=None):
    """Put a restored box back into the whole volume, and restore the brain outside the box.

    The crop of the published method cuts off the last plane of a brain that fills its array, and
    the trailing planes of a side that is not a multiple of the factor. These planes are restored in
    a second pass, from the volume mirrored at its faces. PSNR and SSIM are computed in the box.

    Parameters
    ----------
    data : ndarray of float32, shape (X, Y, Z)
        The whole volume from which `volume` was made.
    volume : get_lar.LRVolume
    sr : ndarray of float32, shape of ``volume.lr``
    stages, method, engine, blend_threshold
        See `restore`.

    Returns
    -------
    ndarray of float32, shape ``volume.whole_shape``
    """
    whole = volume.whole(sr)
    outside = data > 0
    outside[volume.box] = False
    if not outside.any():
        return whole
    # Half a patch and one voxel are added on each side, rounded up to a multiple of the factor.
    around = []
    for side, factor in zip(data.shape, method.factor, strict=True):
        before = -(-(method.margin + 1) // factor) * factor
        around.append((before, before - side % -factor))
    inner = tuple(slice(before, before + side)
                  for (before, _), side in zip(around, data.shape, strict=True))
    larger = make_pair(np.pad(data, around, mode="symmetric"), method, volume.scale)
    restored = restore(larger, stages, method, engine, blend_threshold=blend_threshold)
    whole[outside] = larger.whole(restored)[inner][outside]
    return whole


def origin_of(path, digest, mask=None):
    """The input files of a result and their digests, for its record.

    Parameters
    ----------
    path : path-like
    digest : str
        SHA-256 of the file when it was read.
    mask : nifti.masks.Mask, optional

    Returns
    -------
    dict
        Paths and digests; "beside_input_sha256" holds those of the sidecar and gradient tables.
    """
    masked = {"mask": str(mask.path), "mask_sha256": mask.digest} if mask else {}
    return {"input": str(path), "input_sha256": digest,
            "beside_input_sha256": digests_beside(path)} | masked


def restore_file(path, target, filters, request, engine, files=None):
    """Degrade and restore one file.

    Parameters
    ----------
    path, target : Path
    filters : Filters
    request : Request
    engine : engine.CPU or its like
    files : disk.files.WholeFiles, optional
        Group of files that the result belongs to.

    Returns
    -------
    Restored

    Raises
    ------
    UserError
        If the file is not a volume to restore, or the result cannot be written.
    """
    watch, (stages, method, axes, *_) = Stopwatch(), filters
    with watch("read"):
        seal = Seal(path)
        volume, mask = read_brain(path, request.mask)
        origin = origin_of(path, seal.digest(), mask)
    try:
        with watch("degrade and interpolate"):
            data = volume.data.transpose(axes)
            pair = make_pair(data, method)
        if said := clipping_in_words(data, pair.scale):
            complain("test", f"{path}: {said}")
    except ValueError as fault:
        raise UserError(f"{path}: {fault}") from fault
    with watch("restore"):
        blend = request.blend_threshold
        sr = restore(pair, stages, method, engine, blend_threshold=blend)
        whole = whole_of(data, pair, sr, stages, method, engine, blend)
    back = np.argsort(axes)  # from the filters' order of axes to the volume's
    with watch("write"):
        make_folder(target.parent)
        if volume.shift:
            whole = volume.shift.undo(whole, data == 0)
        write_volume(target, whole.transpose(back), volume.image, None, request.dtype, files)
    affine = volume.image.affine
    masked = {"mask": mask.path.name} if mask else {}
    del volume, mask, data, whole  # frees these volumes before the figures are computed
    with watch("figures"):
        spline, brain = best_spline(pair), brain_mask(pair)
        images = {"lr": pair.lr, "spline5": spline, "sr": sr}
        row = metrics_row(path.name, brain.sum(), figures_of(pair.hr, images, brain)) | masked
    images = {"HR": pair.hr, "Spline": spline, "Restored": sr}
    images = {name: image.transpose(back) for name, image in images.items()}
    return Restored(row, images, affine, watch, filters.asked, [filters], origin)
