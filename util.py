"""What touches disk: volumes, filters, metrics. One reader, one writer, and the only place that knows their layout."""
import contextlib
import csv
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from isal import igzip
from skimage.metrics import structural_similarity
from tqdm import tqdm

from filter_constant import CannotWrite, Settings, UserError, checked_settings, one_line
from hashtable import Boundaries
from matrix_compute import Filters
from nifti_check import checked_image, clean_voxels, read_voxels
from stages import Stage, stage_taps
from threads import in_threads
from tree import MOST_LEAVES, read_tree

SUFFIXES = (".nii.gz", ".nii")
GZIP_LEVEL = 2  # of igzip: files of zlib's level 1 in a seventh of its time
TEMPORARY = ".*." + 12 * "[0-9a-f]" + ".part*"  # what a file is called while it is written, see `whole_file`
FORMAT = 3  # of the saved settings
PRETRAINED = Path(__file__).resolve().parent / "pretrained"  # filters that come with the project
SSIM_WINDOW, SSIM_PLANES = 7, 48  # voxels
FIGURE_MARGIN = 5  # voxels: half a patch of the published size
JSON_BYTES = 64 << 20  # a larger one is not ours
PACKAGES = ("numpy", "scipy", "numba", "scikit-image", "nibabel")  # whose versions may change a result


class Volume(NamedTuple):
    """A volume as it was read: voxels as float32, and the image they came from, for its header and place in space."""

    data: np.ndarray  # (X, Y, Z) float32
    image: nib.Nifti1Image


# ---------------------------------------------------------------------------------------------- volumes

def find_volumes(folder, at_most=0):
    """NIfTI files below a folder, sorted by name; of a single file, that file.

    Raises
    ------
    UserError
        If the folder is missing or holds none.
    """
    folder = Path(folder)
    if folder.is_file():
        if not folder.name.endswith(SUFFIXES):
            raise UserError(f"{folder}: not a NIfTI volume; its name must end in .nii or .nii.gz")
        return [folder]
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make it and put .nii.gz volumes in")
    found = sorted(Path(here, name) for here, names in _walk(folder) for name in names
                   if name.endswith(SUFFIXES) and not name.startswith("."))
    if not found:
        raise UserError(f"{folder}: no .nii or .nii.gz volume in it; put some in, or run python sample.py for two public ones")
    return found[:at_most] if at_most else found


def _walk(folder):
    """Folders below a folder, each once: links to folders are followed, but not in circles."""
    seen = set()
    for here, below, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(here)
        if place in seen:
            below.clear()
            continue
        seen.add(place)
        below.sort()
        yield here, names


def relative_name(path, folder):
    """The name of a volume below its folder, with / between the parts: what it is known by in records and results."""
    path, folder = Path(path), Path(folder)
    return path.relative_to(folder).as_posix() if folder != path and folder in path.parents else path.name


def read_volume(path):
    """Read a 3-D volume as float32.

    Raises
    ------
    UserError
        If the file is no whole NIfTI volume of real numbers in three dimensions, or holds nothing.
    """
    image, shape = checked_image(path)
    data, remarks = clean_voxels(path, read_voxels(path, image, shape))
    for remark in remarks:
        tqdm.write(one_line(remark), file=sys.stderr)
    while image.ndim > 3:
        image = image.slicer[..., 0]
    return Volume(data, image)


def largest_volume(volumes):
    """Voxels of the largest of these volumes, by their headers; faulty ones are left for their turn."""
    largest = 0
    for path in volumes:
        with contextlib.suppress(UserError):
            largest = max(largest, math.prod(checked_image(path)[1]))
    return largest


def read_series(path):
    """Read a volume or a series of volumes: shape (X, Y, Z) or (X, Y, Z, T) as float32, and the image it came from.

    Raises
    ------
    UserError
        If the file is no readable NIfTI image of real numbers in three or four dimensions.
    """
    image, shape = checked_image(path, dimensions=(3, 4))
    if len(shape) == 3:
        return read_volume(path)
    data, remarks = clean_voxels(path, read_voxels(path, image, shape))
    for remark in remarks:
        tqdm.write(one_line(remark), file=sys.stderr)
    return Volume(data, image)


def finer_header(image, shape, fine_to_low):
    """The header of an image for voxels on a finer grid.

    sform and qform, each with the code it had, say where the new voxels lie; where neither has a code, only the voxel
    size says something.

    Parameters
    ----------
    image : nibabel image
    shape : tuple of int
        Of the new voxels, with the fourth axis where there is one.
    fine_to_low : ndarray, shape (4, 4)
        From new voxels to those of `image`.
    """
    header = image.header.copy()
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = header.get_qform(coded=True)
    zooms = np.array(header.get_zooms())
    zooms[:3] *= np.diag(fine_to_low)[:3]
    header.set_data_shape(shape)
    header.set_zooms(zooms[:len(shape)])
    if qform_code:
        header.set_qform(qform @ fine_to_low, int(qform_code))
    if sform_code:
        header.set_sform(sform @ fine_to_low, int(sform_code))
    for name in ("slice_start", "slice_end", "slice_code", "slice_duration"):
        header[name] = 0  # the finer slices were not measured one after another
    return header


def write_volume(path, data, like, header=None, dtype="float32"):
    """Write voxels under the header, affine and codes of the image they came from, or under another header.

    With dtype "same" they are stored as that image stores them, with its scaling, rounded and clipped to what it can hold.
    """
    header = (header or like.header).copy()
    header.set_data_dtype(np.float32)
    data = np.ascontiguousarray(data, np.float32)
    kept = like.get_data_dtype()
    if dtype == "same":
        header.set_data_dtype(kept)
    if dtype == "same" and kept.kind in "iu":
        slope, inter = (getattr(like.dataobj, name, default) for name, default in (("slope", 1), ("inter", 0)))
        limits = np.iinfo(kept)
        data = np.clip(np.rint((data.astype(np.float64) - inter) / slope), limits.min, limits.max).astype(kept)
    image = type(like)(data, None, header)
    if data.dtype.kind in "iu":
        image.header.set_slope_inter(slope, inter)  # only now: an image made from a header forgets its scaling
    with whole_file(path, suffix="".join(Path(path).suffixes[-2:])[-7:]) as temporary:
        with open(temporary, "wb") as plain:
            if temporary.endswith(".gz"):  # neither name nor time in the stream: the same voxels give the same bytes
                with igzip.IGzipFile("", "wb", GZIP_LEVEL, plain, mtime=0) as packed:
                    image.to_stream(packed)
            else:
                image.to_stream(plain)


def target_paths(volumes, folder, settings):
    """Where each restored volume goes: the name of its input, or --suffix behind it, or --output.

    Raises
    ------
    UserError
        If --output names one file for several volumes, or a result would fall on an input.
    """
    if settings.output and len(volumes) > 1:
        raise UserError(f"--output names one file, {settings.test_dir} holds {len(volumes)}; use --result_dir, or one volume")
    targets = [Path(settings.output)] if settings.output else [
        (folder / relative_name(path, settings.test_dir)).with_name(stem(path) + settings.suffix + path.name[len(stem(path)):])
        for path in volumes]
    inputs = {os.path.realpath(path): path for path in volumes}
    for target in targets:
        if path := inputs.get(os.path.realpath(target)):
            raise UserError(f"{path}: a result would overwrite it; give another --output or --result_dir")
    return targets


def companions(targets):
    """The name that the picture and the record of each result carry, without their endings.

    The result's own name without .nii or .nii.gz; with it, where two results in one folder differ in nothing else.
    """
    plain = [target.with_name(stem(target)) for target in targets]
    return [target if plain.count(name) > 1 else name for target, name in zip(targets, plain, strict=True)]


def stem(path):
    """The name of a volume without .nii or .nii.gz."""
    name = Path(path).name
    return name[:-len(next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")) or None]


def uncrop(cropped, pair, shape):
    """Put a cropped volume back at its place in a volume of zeros of the raw shape, in the input's intensities."""
    volume = np.zeros(shape, np.float32)
    volume[pair.box] = cropped * np.float32(pair.scale)
    return volume


@contextlib.contextmanager
def whole_file(path, suffix=""):
    """A temporary name beside `path` that takes its place when all is written and on disk, and is removed otherwise.

    Raises
    ------
    CannotWrite
        If the disk is full or the folder takes no files. What stood under `path` still does.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:12]}.part{suffix}")
    try:
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield str(temporary)
            _flush(temporary)
            os.replace(temporary, path)
        except OSError as fault:
            raise CannotWrite(f"{path}: cannot be written ({fault.strerror or fault}); make room on that disk, "
                              "or give a folder that takes files") from fault
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _flush(path):
    """Have the system put a file on the disk itself, so that a power cut after the renaming finds it whole."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path):
    """Make a folder, and those above it."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise CannotWrite(f"{path}: cannot be made ({fault.strerror}); give a folder that can be written") from fault


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
        raise UserError(f"{path}: not settings of this version ({_line(fault)}); learn again with python train.py") from fault
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
        raise UserError(f"{path.parent}: {_line(fault)}; learn again with python train.py") from fault


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
        raise UserError(f"{path}: not a whole npy file ({_line(fault)}); learn again with python train.py") from fault
    if not np.isfinite(array).all():
        raise UserError(f"{path}: holds values that are not numbers; learn again with python train.py")
    return array


def array_header(file):
    """Shape and dtype of the npy array that starts here; nothing is allocated.

    Raises
    ------
    ValueError
        If there is none, or one in Fortran order.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except Exception as fault:  # the header is a Python literal: hostile ones end in many kinds of exception
        raise ValueError(_line(fault)) from fault
    if fortran and len(shape) > 1 or dtype.hasobject or any(side < 0 for side in shape):
        raise ValueError("objects, Fortran order or a negative size")
    return shape, dtype


def read_json(path):
    """A JSON object from a file.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(JSON_BYTES + 1)
        content = json.loads(text) if len(text) <= JSON_BYTES else None
    except (OSError, RecursionError) as fault:
        raise ValueError(_line(fault)) from fault
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def file_digest(path):
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _line(fault):
    """The first line of an exception's text."""
    return (str(fault).splitlines() or [type(fault).__name__])[0]


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


def write_whole(path, content):
    """Write text or bytes under a name that appears only when all is written."""
    with whole_file(path) as temporary:
        Path(temporary).write_bytes(content.encode() if isinstance(content, str) else content)


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
