"""Filters on disk (the only place that knows the layout of arrays/), the figures of a result and its record, progress."""
import contextlib
import csv
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
from skimage.metrics import structural_similarity
from tqdm import tqdm

from files import array_header, file_digest, make_folder, read_json, whole_file
from filter_constant import Settings, UserError, checked_settings, first_line, one_line
from hashtable import Boundaries
from matrix_compute import Filters
from stages import Stage, stage_taps
from threads import in_threads
from tree import MOST_LEAVES, read_tree

FORMAT = 3  # of the saved settings
PRETRAINED = Path(__file__).resolve().parent / "pretrained"  # filters that come with the project
SSIM_WINDOW, SSIM_PLANES = 7, 48  # voxels
FIGURE_MARGIN = 5  # voxels: half a patch of the published size
PACKAGES = ("numpy", "scipy", "numba", "scikit-image", "nibabel")  # whose versions may change a result


# ---------------------------------------------------------------------------------------------- filters

def settings_path(settings):
    """Where the settings lie that filters were learned with."""
    return Path(settings.arrays_dir, f"settings_{settings.tag}.json")


def _layout(settings, leaves):
    """The files of filters, in the order of `_arrays`: path, shape and type of each. `leaves` has a number per stage."""
    folder, tag = Path(settings.arrays_dir), settings.tag
    if settings.feature_space == "spherical":
        *_, strength, coherence = settings.classes
        return [(folder / f"h_{tag}.npy", (settings.buckets, settings.taps), np.float32),
                (folder / f"Qfactor_str{tag}", (strength - 1,), np.float64),
                (folder / f"Qfactor_coh{tag}", (coherence - 1,), np.float64)]
    files = []
    for number, count in enumerate(leaves):
        taps = sum(map(len, stage_taps(number, settings)))
        files.append((folder / f"stage{number + 1}_{tag}.npy", (count, taps), np.float32))
        files.append((folder / f"tree{number + 1}_{tag}.npy", (2 * count - 1, 4), np.float64))
    return files


def _arrays(filters):
    """The arrays of filters, as they are written."""
    if isinstance(filters, Filters):
        return [filters.h, *filters.boundaries]
    return [array for stage in filters for array in
            (stage.weights, np.column_stack([stage.tree.feature, stage.tree.threshold, stage.tree.child]))]


def save_filters(filters, settings, volumes):
    """Write filters and the settings they were learned with; all plain npy content and JSON.

    Parameters
    ----------
    filters : Filters or list of Stage
    settings : Settings
    volumes : iterable of str
        Names of those that were learned from.
    """
    leaves = [] if isinstance(filters, Filters) else [stage.tree.leaves for stage in filters]
    make_folder(settings.arrays_dir)
    about = {"format": FORMAT, "settings": settings.of_groups("method", "learning"), "leaves": leaves,
             "volumes": [str(name) for name in volumes], "sha256": {}}
    # All are written before any is renamed. Should a kill fall between two renames, the digests tell.
    with contextlib.ExitStack() as written:
        for (path, *_), array in zip(_layout(settings, leaves), _arrays(filters), strict=True):
            temporary = written.enter_context(whole_file(path))
            with open(temporary, "wb") as file:
                np.save(file, array, allow_pickle=False)
            about["sha256"][path.name] = file_digest(temporary)
        with whole_file(settings_path(settings)) as temporary:
            Path(temporary).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def load_filters(settings, given):
    """Read filters and what they were learned with.

    Where the usual --arrays_dir holds none for the factor, those that come with the project are taken.

    Parameters
    ----------
    settings : Settings
        Where to look, and for which factor.
    given : set of str
        Options that the user gave: they must be those of the filters.

    Returns
    -------
    filters : Filters or list of Stage
    settings : Settings
        With the method and learning of the filters, and where they lie.

    Raises
    ------
    UserError
        If a file is missing, is not what it should be, or was learned with other settings than given.
    """
    path = settings_path(settings)
    if not path.exists() and settings.arrays_dir == Settings().arrays_dir:
        pretrained = dataclasses.replace(settings, arrays_dir=str(PRETRAINED))
        if settings_path(pretrained).is_file():
            return load_filters(pretrained, given)
    if not path.is_file():
        others = sorted(p.stem.partition("_")[2] for p in path.parent.glob("settings_*.json"))
        hint = f"; there are filters for --factor {', '.join(others)}" if others else ""
        raise UserError(f"{path}: not there{hint or '; run python train.py first'}")
    try:
        about = read_json(path)
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}")
        saved, digests, leaves = checked_settings(about["settings"]), dict(about["sha256"]), list(about["leaves"])
        learned = dataclasses.replace(settings, **saved)
        if learned.factor != settings.factor:
            raise ValueError(f"they are for factor {learned.tag}")
        if len(leaves) != (0 if learned.feature_space == "spherical" else learned.stages):
            raise ValueError("its stages are incomplete")
        if not all(type(count) is int and 0 < count <= MOST_LEAVES for count in leaves):
            raise ValueError("its number of leaves makes no sense")
    except (ValueError, KeyError, TypeError) as fault:
        raise UserError(f"{path}: not settings of this version ({first_line(fault)}); "
                        "learn again with python train.py") from fault
    for name in sorted(given & set(saved)):
        if getattr(settings, name) != getattr(learned, name):
            raise UserError(f"{path}: learned with --{name} {getattr(learned, name)}, not {getattr(settings, name)}; "
                            "leave the option out, or learn again with it")
    arrays = []
    for file, shape, dtype in _layout(learned, leaves):
        if not file.is_file():
            raise UserError(f"{file}: not there; run python train.py first")
        arrays.append(_load_array(file, shape, dtype))
        if digests.get(file.name) != file_digest(file):
            raise UserError(f"{file}: is not the one that {path.name} describes; run python train.py once more")
    if learned.feature_space == "spherical":
        return Filters(arrays[0], Boundaries(*arrays[1:])), learned
    try:
        return [Stage(_tree(nodes), weights) for weights, nodes in zip(arrays[::2], arrays[1::2], strict=True)], learned
    except (ValueError, OverflowError) as fault:
        raise UserError(f"{path.parent}: {first_line(fault)}; learn again with python train.py") from fault


def about_filters(settings):
    """Where filters lie and what they were learned from, in one line."""
    path = settings_path(settings)
    volumes = list(read_json(path).get("volumes", []))
    names = ", ".join(map(str, volumes)) if len(volumes) < 4 else f"{volumes[0]} ... {volumes[-1]}"
    where = "those that come with the project" if path.parent == PRETRAINED else str(path.parent)
    more = "; see pretrained/README.md" if path.parent == PRETRAINED else ""
    return one_line(f"Filters: {where} (preset {settings.preset}), learned from {len(volumes)} "
                    f"volume{'s' * (len(volumes) != 1)} ({names}){more}")


def _tree(nodes):
    """A tree from its array: feature, threshold and children of each node; leaves are numbered in their order."""
    if (np.abs(nodes) > 1e9).any():
        raise ValueError("the nodes of a tree do not hang together")
    leaf = nodes[:, 0] < 0
    return read_tree({"feature": nodes[:, 0], "threshold": nodes[:, 1], "child": nodes[:, 2:],
                      "leaf": np.where(leaf, np.cumsum(leaf) - 1, -1)})


def _load_array(path, shape, dtype):
    """Read an array whose shape and type are known; its header is compared with them and with the file's size first."""
    try:
        with open(path, "rb") as file:
            found = array_header(file)
            if found != (shape, dtype):
                raise UserError(f"{path}: holds {found[1]} of shape {found[0]}, not {np.dtype(dtype)} of {shape}; "
                                "learn again with python train.py")
            if os.fstat(file.fileno()).st_size != file.tell() + math.prod(shape) * np.dtype(dtype).itemsize:
                raise ValueError("its length is wrong")
            array = np.fromfile(file, dtype, math.prod(shape)).reshape(shape)
    except (ValueError, OSError, EOFError) as fault:
        raise UserError(f"{path}: not a whole npy file ({first_line(fault)}); learn again with python train.py") from fault
    if not np.isfinite(array).all():
        raise UserError(f"{path}: holds values that are not numbers; learn again with python train.py")
    return array


# ---------------------------------------------------------------------------------------------- records

class Stages:
    """How long each stage took: ``with stages("restore"): ...`` adds to ``stages.seconds``."""

    def __init__(self):
        self.seconds = {}

    @contextlib.contextmanager
    def __call__(self, name):
        begun = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - begun, 3)


def about_run(settings, command):
    """What decides a result: command, settings, the filters' SHA-256 and the versions, as a plain dict."""
    return {"command": " ".join(map(str, command)), "settings": dataclasses.asdict(settings),
            "filters": read_json(settings_path(settings))["sha256"],
            "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}}


def sidecar(path, stages, settings):
    """The JSON text that lies beside a result: where it came from and how."""
    about = {"input": str(path), "input_sha256": file_digest(path), **about_run(settings, sys.argv), "seconds": stages.seconds}
    return json.dumps(about, indent=1) + "\n"


# ---------------------------------------------------------------------------------------------- figures

def brain_mask(pair):
    """HR voxels that are not zero, FIGURE_MARGIN or more from the faces of the volume: what figures are taken over.

    Nearer to the faces the published filters have no whole patch. In a volume so small that nothing is left: all of them.
    """
    mask = pair.hr != 0
    for axis, (part, side) in enumerate(zip(pair.box, pair.shape, strict=True)):
        place = np.arange(part.start, part.stop)
        inside = (place >= FIGURE_MARGIN) & (place < side - FIGURE_MARGIN)
        mask = mask & inside.reshape([-1 if a == axis else 1 for a in range(3)])
    return mask if mask.any() else pair.hr != 0


def figures(hr, estimate, mask):
    """PSNR (dB) and SSIM of an estimate, data range 1: over the brain, and over the whole cropped box as published.

    The box's black surround is restored without error whatever the method, so box figures are higher and say less; the
    difference between two methods in PSNR is the same in both.
    """
    squares = np.square(hr - estimate)
    short = [max(SSIM_WINDOW - side, 0) for side in hr.shape]  # of what the window needs
    padded = [np.pad(volume, [(0, n) for n in short], mode="symmetric") if any(short) else volume for volume in (hr, estimate)]
    similarity = _similarity(*padded)
    inner = (slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2)),) * 3
    return {"psnr": _decibel(np.mean(squares[mask], dtype=np.float64)),
            "ssim": float(similarity[tuple(map(slice, hr.shape))][mask].mean(dtype=np.float64)),
            "psnr_box": _decibel(np.mean(squares, dtype=np.float64)), "ssim_box": float(similarity[inner].mean(dtype=np.float64))}


def _similarity(hr, estimate):
    """scikit-image's SSIM of each voxel, some planes at a time: at once it takes a dozen volumes of memory."""
    half, found = SSIM_WINDOW // 2, np.empty(hr.shape, np.float32)
    for start in range(0, len(hr), SSIM_PLANES):
        stop = min(start + SSIM_PLANES, len(hr))
        last = min(stop + half, len(hr))
        first = max(min(start - half, last - SSIM_WINDOW), 0)
        part = structural_similarity(hr[first:last], estimate[first:last], win_size=SSIM_WINDOW, data_range=1.0, full=True)[1]
        found[start:stop] = part[start - first:stop - first]
    return found


def figures_of(hr, estimates, mask):
    """The figures of several estimates, a dict of arrays; two or more at a time, where there are cores."""
    found = {}
    in_threads(list(estimates), lambda name: found.__setitem__(name, figures(hr, estimates[name], mask)))
    return {name: found[name] for name in estimates}


def _decibel(error):
    return float(-10 * np.log10(error)) if error > 0 else float("inf")


def metrics_row(name, voxels, by_image):
    """One row of metrics.csv from the figures of each image, a dict of dicts."""
    row = {"volume": name, "brain_voxels": int(voxels)}
    for image, found in by_image.items():
        row |= {f"{image}_{figure}": round(value, 5) for figure, value in found.items()}
    return row | {"gain_over_spline": round(by_image["sr"]["psnr"] - by_image["spline5"]["psnr"], 5)}


def write_metrics(path, rows):
    """Write the figures of all volumes as CSV."""
    with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def progress(total, what, unit, quiet=False):
    """A progress bar with rate and time left on a terminal, nothing elsewhere or when quiet."""
    return tqdm(total=total, desc=what, unit=unit, unit_scale=True, leave=False, disable=quiet or None, dynamic_ncols=True)
