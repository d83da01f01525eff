"""Learned filters and their settings on disk; only this file depends on the layout of arrays/."""
import contextlib
import itertools
import math
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from disk.files import array_header, file_digest, make_folder, read_json, whole_file, write_json
from disk.saved_method import checked_settings
from filter_constant import METHOD_NAMES, Method, Request, tag_of
from machine.errors import UserError, first_line, one_line
from structure import structure_of

FORMAT, EARLIER = 4, 3  # format number that is written, and an earlier one that can also be read
PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"  # the project's own filters
PRETRAINED_SCAN = PRETRAINED / "scan"  # filters for real scans
ANY_SIZE = "--voxel_size, in place of --factor, gives any voxel size"  # true of the command only


class Filters(NamedTuple):
    """Learned filters for one factor, ready to be used."""

    stages: list  # of Stage
    method: Method  # method of their training
    axes: tuple = (0, 1, 2)  # axis of the volume for each axis of the filters
    digests: dict | None = None  # SHA-256 of their files, by file name
    folder: str = ""  # folder of their files

    def __repr__(self):  # without the arrays, which fill a notebook
        return (f"<Filters of preset {self.method.preset} for factor "
                f"{' '.join(map(str, self.factor))}>")

    @property
    def factor(self):
        """The factor along each axis of the volume."""
        return tuple(self.method.factor[place] for place in np.argsort(self.axes))

    @property
    def cpu_only(self):
        """The reason why only the CPU can apply the filters; empty if there is none."""
        return structure_of(self.method).cpu_only

    @property
    def asked(self):
        """The method, with its factor in the order of the volume's axes."""
        return replace(self.method, factor=self.factor)


def settings_path(folder, factor):
    """Path of the settings file beside the filters for a factor."""
    return Path(folder, f"settings_{tag_of(factor)}.json")


def save_filters(stages, request, volumes):
    """Write filters as npy files, and their settings as JSON.

    Parameters
    ----------
    stages : list of Stage
    request : Request
        Its method is the method of the filters, and its arrays_dir is the folder to write to.
    volumes : iterable of str
        Names of the training volumes.
    """
    structure, folder = structure_of(request.method), request.arrays_dir
    leaves = structure.leaves(stages)
    make_folder(folder)
    about = {"format": FORMAT, "settings": asdict(request.method),
             "leaves": leaves, "volumes": [str(name) for name in volumes], "sha256": {}}
    about |= mask_setting(request)
    # All files are written before the first is renamed. If the process is killed between two
    # renames, the digests in the settings do not match the files.
    with contextlib.ExitStack() as written:
        files = zip(structure.layout(leaves), structure.arrays(stages), strict=True)
        for (name, *_), array in files:
            temporary = written.enter_context(whole_file(Path(folder, name)))
            with open(temporary, "wb") as file:
                np.save(file, array, allow_pickle=False)
            about["sha256"][name] = file_digest(temporary)
        write_json(settings_path(folder, request.method.factor), about)


def mask_setting(request):
    """The entry for --mask in the JSON files of filters and sums: dict, empty without --mask."""
    return {"mask": request.mask} if request.mask else {}


def load_filters(request, factor=None):
    """Read filters and the method of their training.

    If the default --arrays_dir holds no filters for the factor, the project's filters in
    pretrained/ are used. With --upscale or --preset scan, pretrained/scan is searched before
    pretrained. Filters for one thick axis also serve another one: see `Filters.axes`.

    Parameters
    ----------
    request : Request
        Its arrays_dir is searched. The user's options of the method (`given`) must fit the filters.
    factor : tuple of three int, optional
        By default the factor of the request's method.

    Returns
    -------
    Filters

    Raises
    ------
    UserError
        If a file is missing or not valid, or if the filters were learned with other values of the
        given options.

    Examples
    --------
    >>> filters = load_filters(Request.of(factor=(4, 1, 1), arrays_dir=str(PRETRAINED)))
    >>> len(filters.stages), filters.method.preset, filters.method.factor, filters.axes
    (3, 'best', (1, 1, 4), (1, 2, 0))
    """
    factor = factor or request.method.factor
    path, learned = _find_settings(request, factor)
    method, digests, leaves, version = _read_settings(path, learned)
    for name in sorted((request.given - {"factor"}) & METHOD_NAMES):
        theirs, ours = getattr(method, name), getattr(request.method, name)
        if theirs != ours:
            raise UserError(f"{path}: learned with --{name} {theirs}, not {ours}; "
                            "leave the option out, or learn again with it")
    structure, arrays = structure_of(method), []
    for name, shape, dtypes, since in structure.layout(leaves):
        if version < since:
            continue
        file = path.with_name(name)
        if not file.is_file():
            raise UserError(f"{file}: not there; run python train.py first")
        arrays.append(_load_array(file, shape, dtypes))
        if digests.get(name) != file_digest(file):
            raise UserError(f"{file}: does not match its digest in {path.name}; "
                            "run python train.py again")
    try:
        stages = structure.from_arrays(arrays)
    except (ValueError, OverflowError) as fault:
        raise UserError(f"{path.parent}: {first_line(fault)}; "
                        "learn again with python train.py") from fault
    return Filters(stages, method, axes_between(factor, learned), digests, str(path.parent))


def digests_there(request, factors):
    """SHA-256 of the files of filters for some factors: dict by file name.

    The digests are read from the settings files. Factors without readable settings are left out.
    """
    found = {}
    for factor in factors:
        with contextlib.suppress(UserError, ValueError, KeyError, TypeError):
            path = _find_settings(request, factor)[0]
            found |= dict(read_json(path)["sha256"])
    return found


def _find_settings(request, factor):
    """Path of the settings file to use, and the factor in the order of the filters' axes."""
    folders = _folders(request)
    for folder in folders:
        for learned in axis_orders(factor):
            path = settings_path(folder, learned)
            # With --preset scan, filters of another preset in arrays/ are skipped.
            other = (len(folders) > 1 and request.method.preset == "scan"
                     and not _are_for_scans(path))
            if path.is_file() and not other:
                return path, learned
    raise UserError(f"{settings_path(request.arrays_dir, factor)}: there are no filters for "
                    f"--factor {tags([factor])}{_what_serves(request, factor)}")


def _folders(request):
    """The folders to search for filters, in the order of the search."""
    folders = [request.arrays_dir]
    if os.path.abspath(request.arrays_dir) == os.path.abspath(Request.arrays_dir):
        scan = request.upscale or request.method.preset == "scan"
        folders += map(str, (PRETRAINED_SCAN, PRETRAINED) if scan else (PRETRAINED,))
    return folders


def replaced(request):
    """Folder of the project's filters for scans that those in --arrays_dir replace, or None."""
    factor = request.method.factor
    if request.method.for_scans and str(PRETRAINED_SCAN) in _folders(request) and settings_path(
            PRETRAINED_SCAN, factor).is_file():
        return PRETRAINED_SCAN
    return None


def factors_there(request):
    """Factors of the available filters, isotropic factors first: list of tuple of three int.

    Examples
    --------
    >>> factors_there(Request(arrays_dir=str(PRETRAINED)))
    [(2, 2, 2), (3, 3, 3), (4, 4, 4), (1, 1, 4)]
    """
    found = set()
    for path in (path for folder in _folders(request)
                 for path in Path(folder).glob("settings_*.json")):
        with contextlib.suppress(ValueError):
            sides = [int(side) for side in path.stem.partition("_")[2].split("x")]
            found.add(tuple(3 * sides if len(sides) == 1 else sides))
    return sorted((factor for factor in found if len(factor) == 3),
                  key=lambda factor: (len(set(factor)) > 1, factor))


def _what_serves(request, factor):
    """The end of the message about a factor without filters: available factors, and a remedy."""
    preset = " --preset scan" if request.upscale or request.method.preset == "scan" else ""
    there, learn = factors_there(request), f"python train.py{preset} --factor {tags([factor])}"
    if not there:
        return f"; run python train.py{preset} first"
    text = f", but for --factor {tags(there)}"
    if not request.upscale:
        return f"{text}; {learn} learns the missing ones"
    return f"{text}; {ANY_SIZE}; {learn} learns the missing ones"


def _are_for_scans(path):
    """True if a settings file belongs to filters for scans; False if it cannot be read."""
    try:
        return read_json(path)["settings"]["preset"] == "scan"
    except (ValueError, KeyError, TypeError):
        return False


def tags(factors):
    """Factors as text, in the form that --factor takes.

    Examples
    --------
    >>> tags([(2, 2, 2), (1, 1, 4)])
    '2, 1 1 4'
    """
    return ", ".join(tag_of(factor).replace("x", " ") for factor in factors)


def axis_orders(factor):
    """All orders of a factor's axes, its own order first.

    Examples
    --------
    >>> axis_orders((4, 1, 1))
    [(4, 1, 1), (1, 4, 1), (1, 1, 4)]
    """
    orders = set(itertools.permutations(factor))
    return sorted(orders, key=lambda order: (order != factor, order[::-1]))


def axes_between(asked, learned):
    """The order of axes that turns the requested factor into the factor of the filters.

    Of several orders, a cyclic one is preferred.

    Examples
    --------
    >>> axes_between((4, 1, 1), (1, 1, 4))
    (1, 2, 0)
    """
    orders = [(0, 1, 2), (1, 2, 0), (2, 0, 1), *itertools.permutations(range(3))]
    return next(axes for axes in orders if tuple(asked[axis] for axis in axes) == learned)


def about_filters(filters, which=""):
    """One line with the folder of filters and their training volumes; `which` is their factor."""
    path, volumes = settings_path(filters.folder, filters.method.factor), learned_from(filters)
    names = ", ".join(volumes) if len(volumes) < 4 else f"{volumes[0]} ... {volumes[-1]}"
    where, more = str(path.parent), ""
    if path.parent in (PRETRAINED, PRETRAINED_SCAN):
        where, more = "those that come with the project", "; see pretrained/README.md"
    plural = "" if len(volumes) == 1 else "s"
    return one_line(f"Filters{which}: {where} (preset {filters.method.preset}), learned from "
                    f"{len(volumes)} volume{plural} ({names}){more}")


def learned_from(filters):
    """Names of the training volumes of filters, relative to the training folder: list of str."""
    about = read_json(settings_path(filters.folder, filters.method.factor))
    return list(map(str, about.get("volumes", [])))


def _read_settings(path, factor):
    """Read and check a settings file.

    It returns the method, the digests of the arrays, the leaves of each stage and the format.
    """
    try:
        about = read_json(path)
        if about["format"] not in (FORMAT, EARLIER):
            raise ValueError(f"format {about['format']}")
        method = Method(**checked_settings(about["settings"]))
        digests, leaves = dict(about["sha256"]), list(about["leaves"])
        if not isinstance(about.get("volumes", []), list):
            raise ValueError("volumes is no list")
        if method.factor != factor:
            raise ValueError(f"they are for factor {method.tag}")
        structure_of(method).check_leaves(leaves)
    except (ValueError, KeyError, TypeError) as fault:
        raise UserError(f"{path}: not settings of this version ({first_line(fault)}); "
                        "learn again with python train.py") from fault
    return method, digests, leaves, about["format"]


def _load_array(path, shape, dtypes):
    """Read an array that must have the given shape and one of the given types.

    The header is checked first, also against the size of the file.
    """
    try:
        with open(path, "rb") as file:
            found, dtype = array_header(file)
            if found != shape or dtype not in dtypes:
                raise UserError(f"{path}: holds {dtype} of shape {found}, not "
                                f"{np.dtype(dtypes[0])} of {shape}; learn again with "
                                "python train.py")
            length = math.prod(shape) * dtype.itemsize
            if os.fstat(file.fileno()).st_size != file.tell() + length:
                raise ValueError("its length is wrong")
            array = np.fromfile(file, dtype, math.prod(shape)).reshape(shape)
    except (ValueError, OSError, EOFError) as fault:
        raise UserError(f"{path}: not a whole npy file ({first_line(fault)}); "
                        "learn again with python train.py") from fault
    if not np.isfinite(array).all():
        raise UserError(f"{path}: holds values that are not numbers; "
                        "learn again with python train.py")
    return array
