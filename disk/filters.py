"""Filters and the settings they were learned with: the one file that knows arrays/."""
import contextlib
import dataclasses
import itertools
import math
import os
from pathlib import Path

import numpy as np

from disk.files import array_header, file_digest, make_folder, read_json, whole_file, write_json
from filter_constant import Settings, checked_settings
from machine.errors import UserError, first_line, one_line
from structure import structure_of

FORMAT, EARLIER = 4, 3  # of the saved settings; both are read
PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"  # filters of the project
PRETRAINED_SCAN = PRETRAINED / "scan"  # those for real scans


def settings_path(settings):
    """Where the settings lie that filters were learned with."""
    return Path(settings.arrays_dir, f"settings_{settings.tag}.json")


def save_filters(stages, settings, volumes):
    """Write filters and the settings they were learned with; all plain npy content and JSON.

    Parameters
    ----------
    stages : list of Stage
    settings : Settings
    volumes : iterable of str
        Names of those that were learned from.
    """
    structure = structure_of(settings)
    leaves = structure.leaves(stages)
    make_folder(settings.arrays_dir)
    about = {"format": FORMAT, "settings": settings.of_groups("method", "learning"),
             "leaves": leaves, "volumes": [str(name) for name in volumes], "sha256": {}}
    about |= mask_setting(settings)
    # All are written before any is renamed. Should a kill fall between two renames, the digests
    # tell.
    with contextlib.ExitStack() as written:
        files = zip(structure.layout(leaves), structure.arrays(stages), strict=True)
        for (name, *_), array in files:
            temporary = written.enter_context(whole_file(Path(settings.arrays_dir, name)))
            with open(temporary, "wb") as file:
                np.save(file, array, allow_pickle=False)
            about["sha256"][name] = file_digest(temporary)
        write_json(settings_path(settings), about)


def mask_setting(settings):
    """--mask as files beside filters and sums hold it: a dict, empty where it was not given."""
    return {"mask": settings.mask} if settings.mask else {}


def load_filters(settings, given=frozenset()):
    """Read filters and what they were learned with.

    Where the usual --arrays_dir holds none for the factor, those that come with the project are
    taken: with --upscale or --preset scan the ones for real scans. Filters for one thick axis serve
    any other: `restoring` exchanges the axes.

    Parameters
    ----------
    settings : Settings
        Where to look, and for which factor.
    given : set of str, optional
        Options that the user gave: they must be those of the filters.

    Returns
    -------
    stages : list of Stage
    settings : Settings
        With the method and learning of the filters, and where they lie.

    Raises
    ------
    UserError
        If a file is missing, is not what it should be, or was learned with other settings than
        given.

    Examples
    --------
    >>> stages, settings = load_filters(Settings(factor=(1, 1, 4), arrays_dir=str(PRETRAINED)))
    >>> len(stages), settings.preset
    (3, 'best')
    """
    return load_with_digests(settings, given)[:2]


def load_with_digests(settings, given=frozenset()):
    """Read filters as `load_filters` does: stages, settings, and SHA-256 by file name, a dict."""
    path, settings = _find_settings(settings)
    learned, digests, leaves, earlier = _read_settings(path, settings)
    for name in sorted((given - {"factor"}) & set(learned.of_groups("method", "learning"))):
        theirs, ours = getattr(learned, name), getattr(settings, name)
        if theirs != ours:
            raise UserError(f"{path}: learned with --{name} {theirs}, not {ours}; "
                            "leave the option out, or learn again with it")
    structure, arrays = structure_of(learned), []
    for name, shape, *dtypes in structure.layout(leaves):
        dtype = dtypes[earlier]
        if dtype is None:
            continue
        file = Path(learned.arrays_dir, name)
        if not file.is_file():
            raise UserError(f"{file}: not there; run python train.py first")
        arrays.append(_load_array(file, shape, dtype))
        if digests.get(name) != file_digest(file):
            raise UserError(f"{file}: is not the one that {path.name} describes; "
                            "run python train.py once more")
    try:
        return structure.from_arrays(arrays), learned, digests
    except (ValueError, OverflowError) as fault:
        raise UserError(f"{path.parent}: {first_line(fault)}; "
                        "learn again with python train.py") from fault


def digests_there(settings, factors):
    """SHA-256 of the files of filters for some factors, by name, as their settings say: a dict.

    Factors without readable settings are left out.
    """
    found = {}
    for factor in factors:
        with contextlib.suppress(UserError, ValueError, KeyError, TypeError):
            path = _find_settings(dataclasses.replace(settings, factor=factor))[0]
            found |= dict(read_json(path)["sha256"])
    return found


def _find_settings(settings):
    """The path of the settings to take, and where and for which order of axes they were found."""
    folders = _folders(settings)
    for folder in folders:
        for factor in axis_orders(settings.factor):
            found = dataclasses.replace(settings, arrays_dir=folder, factor=factor)
            path = settings_path(found)
            # Asked for by name, those of the project are taken rather than other ones in arrays/.
            other = len(folders) > 1 and settings.preset == "scan" and not _are_for_scans(path)
            if path.is_file() and not other:
                return path, found
    raise UserError(f"{settings_path(settings)}: not there{_what_serves(settings)}")


def _folders(settings):
    """Where filters are looked for."""
    folders = [settings.arrays_dir]
    if os.path.abspath(settings.arrays_dir) == os.path.abspath(Settings.arrays_dir):
        scan = settings.upscale or settings.preset == "scan"
        folders += map(str, (PRETRAINED_SCAN, PRETRAINED) if scan else (PRETRAINED,))
    return folders


def factors_there(settings):
    """Factors that there are filters for, cubes first: a list of tuple of three int.

    Examples
    --------
    >>> factors_there(Settings(arrays_dir=str(PRETRAINED)))
    [(2, 2, 2), (3, 3, 3), (4, 4, 4), (1, 1, 4)]
    """
    found = set()
    for path in (path for folder in _folders(settings)
                 for path in Path(folder).glob("settings_*.json")):
        with contextlib.suppress(ValueError):
            sides = [int(side) for side in path.stem.partition("_")[2].split("x")]
            found.add(tuple(3 * sides if len(sides) == 1 else sides))
    return sorted((factor for factor in found if len(factor) == 3),
                  key=lambda factor: (len(set(factor)) > 1, factor))


def _what_serves(settings):
    """What to do where there are no filters for a factor."""
    there, learn = factors_there(settings), f"python train.py --factor {tags([settings.factor])}"
    if not there:
        return "; run python train.py first"
    text = f"; there are filters for --factor {tags(there)}"
    if not settings.upscale:
        return f"{text}; {learn} learns those"
    return f"{text}; --voxel_size, in place of --factor, reaches any size; {learn} learns those"


def _are_for_scans(path):
    """Whether a file of settings says so; False where it cannot be read."""
    try:
        return read_json(path)["settings"]["preset"] == "scan"
    except (ValueError, KeyError, TypeError):
        return False


def tags(factors):
    """Factors as they are given to --factor.

    Examples
    --------
    >>> tags([(2, 2, 2), (1, 1, 4)])
    '2, 1 1 4'
    """
    return ", ".join(str(factor[0]) if len(set(factor)) == 1 else " ".join(map(str, factor))
                     for factor in factors)


def axis_orders(factor):
    """A factor, and the same with its axes exchanged, nearest first.

    Examples
    --------
    >>> axis_orders((4, 1, 1))
    [(4, 1, 1), (1, 4, 1), (1, 1, 4)]
    """
    orders = set(itertools.permutations(factor))
    return sorted(orders, key=lambda order: (order != factor, order[::-1]))


def about_filters(settings):
    """Where filters lie and what they were learned from, in one line."""
    path = settings_path(settings)
    volumes = list(map(str, read_json(path).get("volumes", [])))
    names = ", ".join(volumes) if len(volumes) < 4 else f"{volumes[0]} ... {volumes[-1]}"
    where, more = str(path.parent), ""
    if path.parent in (PRETRAINED, PRETRAINED_SCAN):
        where, more = "those that come with the project", "; see pretrained/README.md"
    plural = "" if len(volumes) == 1 else "s"
    return one_line(f"Filters: {where} (preset {settings.preset}), learned from {len(volumes)} "
                    f"volume{plural} ({names}){more}")


def _read_settings(path, settings):
    """The settings in a file, the digests of the arrays and the sizes of stages, all checked.

    Last, whether an earlier version wrote them.
    """
    try:
        about = read_json(path)
        if about["format"] not in (FORMAT, EARLIER):
            raise ValueError(f"format {about['format']}")
        learned = dataclasses.replace(settings, **checked_settings(about["settings"]))
        digests, leaves = dict(about["sha256"]), list(about["leaves"])
        if not isinstance(about.get("volumes", []), list):
            raise ValueError("volumes is no list")
        if learned.factor != settings.factor:
            raise ValueError(f"they are for factor {learned.tag}")
        structure_of(learned).check_leaves(leaves)
    except (ValueError, KeyError, TypeError) as fault:
        raise UserError(f"{path}: not settings of this version ({first_line(fault)}); "
                        "learn again with python train.py") from fault
    return learned, digests, leaves, about["format"] == EARLIER


def _load_array(path, shape, dtype):
    """Read an array of known shape and type.

    Its header is compared with these and with the file's size first.
    """
    try:
        with open(path, "rb") as file:
            found = array_header(file)
            if found != (shape, dtype):
                raise UserError(f"{path}: holds {found[1]} of shape {found[0]}, not "
                                f"{np.dtype(dtype)} of {shape}; learn again with python train.py")
            length = math.prod(shape) * np.dtype(dtype).itemsize
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
