"""Python functions for all that the commands do: arrays in, arrays out.

    from api import degrade, evaluate, learn, upscale

Results equal those of the commands to the last bit. Nothing is printed: messages of a command
become Python warnings.
"""
import contextlib
import io
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from degrading.acquisition import make_low
from degrading.degradation import SliceProfile
from disk.filters import ANY_SIZE, PRETRAINED_SCAN, Filters, load_filters, save_filters
from disk.interrupt import only_training
from filter_constant import PRESETS, Method, Request
from learning.steps import learn_stages, picture_paths
from machine.errors import UserError, one_line
from machine.progress import Stopwatch
from machine.remarks import listening
from nifti.masks import INSIDE, Mask
from nifti.volumes import volume_of
from options.arguments import (
    MOST,
    factor_of,
    flag_like,
    images_of,
    mask_like,
    noise_of,
    options_of_learn,
    profiles_of,
    seed_of,
    several_of,
    sizes_of,
    volume_like,
)
from options.checks import checked
from restoring.evaluation import evaluate_volume
from restoring.measured_scan import Scan, as_measured
from restoring.planning import check_slices
from restoring.spacing import Route
from restoring.steps import FilterStore
from restoring.upscaling import upscale_volumes
from util import bright_level_of_scan, mod_crop, random_of

MOST_SIGNED = 0.01  # share of voxels below zero that counts as noise around zero

__all__ = ["MOST", "degrade", "evaluate", "learn", "upscale"]


def upscale(array: ArrayLike, factor: int | Sequence[int] = 2, *,
            voxel_size: float | Sequence[float] | None = None, mask: ArrayLike | None = None,
            profile: str | Sequence[str] | None = None, adapt: bool | None = None,
            filters: Filters | str | Path | None = None) -> NDArray[np.float32]:
    """Bring a low-resolution volume to a finer grid, as ``test.py --upscale`` does.

    Parameters
    ----------
    array : array_like, shape (x, y, z)
        The background is 0. Voxels that are infinite, not a number or masked (`numpy.ma`) count as
        background.
    factor : int or three int, optional
        Number of times that voxels become finer, 1 to 8: for all axes, or for each.
    voxel_size : float or three float, optional
        Voxel size of the array, in mm. By default its shortest side is 1 mm, and the finer voxels
        are cubes.
    mask : array_like, shape (x, y, z), optional
        Brain mask of a whole head: voxels above 0.5 are brain. Noise and blur are estimated inside
        the mask; the whole head is restored.
    profile : str or three str, optional
        Slice profile of the scan, for all axes or for each: a key of
        `degrading.slice_profile.PROFILES`. By default it is estimated.
    adapt : bool, optional
        If True, filters are first fine-tuned on the scan itself. The default is True for thick
        slices, otherwise False.
    filters : Filters or path-like, optional
        Result of `learn`, or a folder that ``train.py`` wrote. By default the filters for scans
        that come with the project.

    Returns
    -------
    ndarray of float32, shape (factor[0] * x, factor[1] * y, factor[2] * z)
        Restored volume in the intensity units of `array`, over the same field of view.

    Raises
    ------
    ValueError
        If an argument is not valid, or there is nothing to restore.

    Examples
    --------
    >>> scan = np.pad(np.random.default_rng(0).random((12, 12, 6), np.float32), 4)
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # noise is not like a brain
    ...     upscale(scan, (1, 1, 4)).shape
    (20, 20, 56)
    """
    data, factor = volume_like("array", array), factor_of(factor)
    sizes = sizes_of(voxel_size, factor)
    inside = None if mask is None else mask_like(mask, data.shape, INSIDE)
    request = Request.of(factor=factor, upscale=True, adapt=flag_like("adapt", adapt), quiet=True,
                         known_profile=profiles_of(profile))
    with _as_python_does():
        check_slices("array", data.shape, factor)
        volume = volume_of(data, nib.Nifti1Image(data, np.diag([*sizes, 1])), "array")
        store = _store_of(request, filters)
        use = store(factor)
        for name, value in (("profile", request.known_profile), ("adapt", request.adapt)):
            if value and not use.method.for_scans:
                raise ValueError(f"{name} has no effect with filters that were not learned for "
                                 "scans; leave it out")
        scan = Scan(volume, inside, sizes, Route([factor], None), [use], np.eye(4),
                    request.known_profile)
        scan = as_measured("array", scan, store)
        brain = None if inside is None else Mask(Path("mask"), inside, "")
        found = upscale_volumes("array", scan, request, None, Stopwatch(), brain)
    return found.fine[0]


def degrade(array: ArrayLike, factor: int | Sequence[int] = 2, *,
            profile: str | Sequence[str] = "box", noise: float = 0.0,
            seed: int = 0) -> NDArray[np.float32]:
    """Simulate the volume that a scanner with coarser voxels would have measured.

    Parameters
    ----------
    array : array_like, shape (X, Y, Z)
        Skull-stripped, background 0. Trailing voxels that do not fill a coarse voxel are unused.
    factor : int or three int, optional
    profile : str or three str, optional
        A key of `degrading.slice_profile.PROFILES`.
    noise : float, optional
        Standard deviation of the Rician noise, in per cent of the 99.9 % quantile of `array`.
    seed : int, optional
        Seed of the noise.

    Returns
    -------
    ndarray of float32, shape (X // factor[0], Y // factor[1], Z // factor[2])
        In the intensity units of `array`; 0 in voxels of which less than half is brain.

    Raises
    ------
    ValueError
        If an argument is not valid.

    Examples
    --------
    >>> degrade(np.ones((8, 8, 9)), (2, 2, 4)).shape
    (4, 4, 2)
    """
    data, factor = volume_like("array", array), factor_of(factor)
    if min(side // f for side, f in zip(data.shape, factor, strict=True)) < 1:
        raise ValueError(f"array of shape {data.shape} is smaller than factor {factor}")
    noise, seed = noise_of(noise), seed_of(seed)
    signed = np.count_nonzero(data < 0) > MOST_SIGNED * data.size
    data = mod_crop(np.clip(np.nan_to_num(data, posinf=0), 0, None), factor)
    level = np.float32(bright_level_of_scan(data) or data.max())
    if not level > 0:
        raise ValueError("array holds no voxel above zero")
    if signed:
        raise ValueError("array has many voxels below zero, which no scanner measures; shift its "
                         "intensities above zero, with the background at 0")
    operator = SliceProfile(data.shape, Method(**PRESETS["scan"] | {"factor": factor}),
                            profiles_of(profile))
    low = make_low(data / level, operator, noise / 100, random_of(seed, "degrade"))
    return (low * level).astype(np.float32)


def evaluate(array: ArrayLike, factor: int | Sequence[int] = 2, *,
             voxel_size: float | Sequence[float] | None = None,
             profiles: Sequence[str] = ("box", "kspace"), noises: Sequence[float] = (0, 3),
             name: str = "array", adapt: bool | None = None, tissue: bool = False,
             filters: Filters | str | Path | None = None) -> list[dict[str, Any]]:
    """Degrade and upscale a volume, and compare the results, as ``test.py --preset scan`` does.

    Parameters
    ----------
    array : array_like, shape (X, Y, Z)
        High-resolution volume of good quality, skull-stripped, background 0.
    factor : int or three int, optional
    voxel_size : float or three float, optional
        Voxel size of the array, in mm; default 1.
    profiles, noises : sequences, optional
        Slice profiles, and noise levels in per cent of the 99.9 % quantile of `array`.
    name : str, optional
        Name of the volume, on which its random noise depends. The command uses the path below
        --test_dir.
    adapt, filters
        See `upscale`.
    tissue : bool, optional
        If True, three-class segmentations are also compared with that of the original.

    Returns
    -------
    list of dict
        PSNR in dB of each method, inside the brain and over the whole brain; gains of the restored
        volume over the best alternative; measures of practical use. docs/scans.md explains keys.

    Raises
    ------
    ValueError
        If an argument is not valid, or the volume is too small.
    """
    data, factor = volume_like("array", array), factor_of(factor)
    sizes = sizes_of(1.0 if voxel_size is None else voxel_size, factor)
    profiles = tuple(profiles_of(one if isinstance(one, str) else (one,))[0]
                     for one in several_of("profiles", profiles))
    noises = tuple(map(noise_of, several_of("noises", noises)))
    request = Request.of(factor=factor, preset="scan", adapt=flag_like("adapt", adapt), quiet=True,
                         test_profile=profiles, test_noise=noises,
                         tissue=bool(flag_like("tissue", tissue)))
    with _as_python_does():
        volume = volume_of(data, nib.Nifti1Image(data, np.diag([*sizes, 1])), "array")
        used = _store_of(request, filters)(factor)
        if not used.method.for_scans:
            raise ValueError("filters were not learned for scans; give filters of preset scan")
        return evaluate_volume(volume.data, sizes, used, request, name)


def learn(images: Mapping[str, ArrayLike] | Sequence[ArrayLike],
          factor: int | Sequence[int] = 2, *, preset: str = "scan",
          folder: str | Path | None = None, **options: Any) -> Filters:
    """Learn filters from high-resolution volumes, as ``train.py`` does.

    Parameters
    ----------
    images : dict of str to array_like, or sequence of array_like, each of shape (X, Y, Z)
        Skull-stripped volumes, background 0. The random choices of the training depend on their
        names, which are paths below --train_dir in the command; the volumes of a sequence are named
        ``volume_000.nii`` and so on.
    factor : int or three int, optional
    preset : {"scan", "best", "paper"}, optional
    folder : path-like, optional
        Folder for the filters; by default they are only returned.
    **options
        Other options of ``train.py`` about the method and the learning, by name: ``leaves=64``.

    Returns
    -------
    Filters

    Raises
    ------
    ValueError
        If an argument is not valid, or a volume cannot be learned from.
    """
    if preset not in tuple(PRESETS):
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    given = {"preset": preset, "factor": factor_of(factor)} | options_of_learn(options)
    with tempfile.TemporaryDirectory() as made, _as_python_does(Path(made, "train")):
        train, arrays = Path(made, "train"), Path(folder or Path(made, "arrays"))
        train.mkdir()
        volumes = []
        for name, data in images_of(images):
            volumes.append(train / name)
            volumes[-1].parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(data, np.eye(4)), volumes[-1])
        request = Request.of(**PRESETS[preset] | given, train_dir=str(train),
                             arrays_dir=str(arrays), quiet=True, device="cpu",
                             given=frozenset(given))
        request = checked(request, "train")
        with only_training(arrays):
            with contextlib.redirect_stdout(io.StringIO()):
                learned = learn_stages(sorted(volumes)[:request.method.train_file_max], request)
            if learned.signal:
                raise KeyboardInterrupt
            if learned.failed:
                names = ", ".join(path.name for path in sorted(learned.failed))
                raise ValueError(f"{names}: cannot be learned from, see the warnings")
            save_filters(learned.stages, request, sorted(learned.checkpoint.ledger.names()[0]))
            for picture in picture_paths(request):  # of earlier filters of train.py
                picture.unlink(missing_ok=True)
        return load_filters(request)


# ------------------------------------------------------------------------ filters and warnings

@contextlib.contextmanager
def _as_python_does(folder: Path | None = None) -> Iterator[None]:
    """A context that turns a command's messages into warnings, and UserError into ValueError.

    Options lose their dashes, except in commands, and files in `folder`, which is temporary, lose
    its path.
    """
    def translated(text: str) -> str:
        if folder:
            text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), "images")
        text, command, options = text.replace(f"{ANY_SIZE}; ", "").partition("python train.py")
        text = re.sub(r"(?<![\w.-])--(?=[a-z])", "", text)  # not within a file name
        return text + command + options

    with listening() as lines:
        try:
            yield
        except UserError as fault:
            raise ValueError(translated(one_line(fault))) from None
        finally:
            for _, line in dict.fromkeys(lines):
                warnings.warn(translated(line), stacklevel=4)


def _store_of(request: Request, filters: Filters | str | Path | None) -> FilterStore:
    if isinstance(filters, Filters):
        return FilterStore.of(request, filters)
    return FilterStore(request.but(arrays_dir=str(PRETRAINED_SCAN if filters is None else filters)))
