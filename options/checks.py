"""What is refused among the options of a command line: values out of range, and without effect."""
import dataclasses
import re
from pathlib import PurePosixPath

from filter_constant import (
    MASK_AUTO,
    MASK_ENTITIES,
    MASK_NAME,
    OCTAHEDRAL_FILTER_MAX,
    ONLY_OCTAHEDRAL,
    ONLY_SCAN,
    ONLY_SPHERICAL,
    Settings,
)
from machine.option_fields import fault_of, flag_of

VOLUME_NAME = re.compile(r"[^/\\]\.nii(\.gz)?$", re.IGNORECASE)


def checked(settings, given, command):
    """The settings with what they imply; ValueError for values out of range, and for no effect."""
    flags = {entry.name: flag_of(entry) for entry in dataclasses.fields(Settings)}
    for entry in dataclasses.fields(Settings):
        values = getattr(settings, entry.name) if entry.name in given else ()
        for value in values if isinstance(values, tuple) else (values,):
            if fault := fault_of(entry, value):
                raise ValueError(f"argument --{flags[entry.name]}: {fault}")
    if max(settings.factor) == 1:
        raise ValueError("argument --factor: at least one axis needs a factor above 1")
    for name in ("voxel_size", "isotropic", "slice_thickness", "known_profile", "adapt"):
        evaluates = name in ("adapt", "known_profile") and settings.preset == "scan"
        if name in given and not settings.upscale and not evaluates:
            raise ValueError(f"argument --{flags[name]}: has no effect without --upscale; add it")
    for name in [name for name in ("voxel_size", "isotropic") if given.get(name)]:
        for other in [other for other in ("factor", "voxel_size") if other != name]:
            if other in given:
                raise ValueError(f"argument --{name}: says how fine voxels become, and so does "
                                 f"--{other}; leave one of the two out")
    lr_type = settings.lr_type
    if given.get("grid") == "centers" and lr_type in ("average", "scan"):
        what = "means of blocks" if lr_type == "average" else "LR volumes of scanners"
        raise ValueError(f"argument --grid: {what} lie on the grid edges; leave --grid out")
    if "grid" in given and lr_type == "kspace":
        raise ValueError("argument --grid: the spectrum sets the grid of k-space volumes; "
                         "leave --grid out")
    asked = command == "train" or "lr_type" in given  # in restoring, filters may decide it
    if "kspace_keep" in given and lr_type != "kspace" and asked:
        raise ValueError(f"argument --kspace_keep: has no effect with --lr_type {lr_type}; "
                         "leave one of the two out")
    if "start" in given and lr_type == "kspace" and settings.start in ("cubic", "quintic"):
        raise ValueError(f"argument --start: {settings.start} has no effect with --lr_type kspace, "
                         "whose spectrum is filled with zeros; leave one of the two out")
    if fault := _fault_of_mask(settings.mask):
        raise ValueError(f"argument --mask: '{settings.mask}' {fault}")
    for name in ("include", "exclude"):
        for pattern in getattr(settings, name):
            if not PurePosixPath(pattern).name:
                raise ValueError(f"argument --{name}: '{pattern}' names no file; give a pattern "
                                 "such as \"*_T1w.nii.gz\" or \"sub-01/*\"")
    if settings.suffix and any(sign in settings.suffix for sign in "/\\"):
        raise ValueError(f"argument --suffix: '{settings.suffix}' holds a slash; folders are for "
                         "--result_dir or --output")
    if settings.output and settings.suffix:
        raise ValueError("argument --output: names the file in full; leave --suffix out")
    if settings.output and not VOLUME_NAME.search(settings.output):
        raise ValueError(f"argument --output: '{settings.output}' must end in .nii or .nii.gz, "
                         "with a name before it")
    if settings.tls and len(settings.tls) != 3:
        raise ValueError(f"argument --tls: three files, CA CERT KEY, not {len(settings.tls)}")
    if settings.tls and not settings.scheduler.startswith("tls://"):
        raise ValueError("argument --tls: is for a --scheduler at tls://...; give its address so, "
                         "or leave --tls out")
    if settings.overwrite and not settings.output:
        raise ValueError("argument --overwrite: has no effect without --output; leave it out")
    if command == "test" and settings.scheduler and settings.device == "gpu":
        raise ValueError("argument --device: workers of a cluster restore on their CPUs; leave one "
                         "of --device gpu and --scheduler out")
    if command == "train":
        _check_spaces(settings, given)
        _check_scan(settings, given)
    if "ridge" in given and settings.solver == "cg":
        raise ValueError("argument --ridge: the solver cg has no ridge; leave one of the two out")
    if lr_type in ("average", "scan"):
        return dataclasses.replace(settings, grid="edges")
    return settings


def without_effect(settings, given, drawn):
    """What was given to test.py that changes nothing with the filters that were found.

    Parameters
    ----------
    settings : Settings
    given : set of str
        Options that stood on the command line.
    drawn : bool
        Whether the filters are for LR volumes as scanners make them.

    Returns
    -------
    str
        The fault and its remedy; empty where all options have an effect.
    """
    where = "with --upscale"
    names = ["test_profile", "test_noise"]
    if not settings.upscale and drawn:
        where = "where filters for scans are evaluated, which leaves figures alone"
        names = ["output", "suffix", "dtype", "report"]
    elif not settings.upscale:
        where, names = "without filters for scans; take --preset scan", [*names, "adapt"]
    for name in names:
        if name in given and getattr(settings, name) is not False:
            return f"argument --{name}: has no effect {where}; leave it out"
    return ""


def _fault_of_mask(pattern):
    """What is wrong with a pattern of masks; empty where nothing is."""
    if pattern in ("", MASK_AUTO):
        return ""
    bare = pattern.replace(MASK_NAME, "").replace(MASK_ENTITIES, "")
    if "{" in bare or "}" in bare:
        return f"has braces around what is neither {MASK_NAME} nor {MASK_ENTITIES}"
    if not pattern.lower().endswith((".nii", ".nii.gz", "*")):
        return "must end in .nii, .nii.gz or *, or be auto"
    return ""


def _check_spaces(settings, given):
    """Refuse what belongs to the other feature space."""
    space = settings.feature_space
    for name in ONLY_SPHERICAL if settings.octahedral else ONLY_OCTAHEDRAL:
        if name in given:
            raise ValueError(f"argument --{name}: has no effect with --feature_space {space}; "
                             "leave it out")
    if settings.octahedral and settings.filter_len > OCTAHEDRAL_FILTER_MAX:
        raise ValueError(f"argument --filter_len: {settings.filter_len} is above "
                         f"{OCTAHEDRAL_FILTER_MAX}, the most with --feature_space octahedral")
    if settings.octahedral and settings.solver == "cg":
        raise ValueError("argument --solver: cg is for --feature_space spherical; "
                         "leave one of the two out")
    if not settings.octahedral and settings.ridge is None:
        raise ValueError("argument --ridge: auto is for --feature_space octahedral; give a number")
    if settings.octahedral and settings.splits == "quantiles" and "leaves" in given:
        raise ValueError("argument --leaves: has no effect with --splits quantiles; "
                         "leave one of the two out")


def _check_scan(settings, given):
    """Refuse what means nothing for LR volumes as scanners make them, or only for these."""
    if settings.lr_type != "scan":
        for name in ONLY_SCAN:
            if name in given:
                raise ValueError(f"argument --{name}: has no effect without --lr_type scan; "
                                 "leave it out, or take --preset scan")
        return
    if not settings.octahedral:
        raise ValueError("argument --lr_type: scan is for --feature_space octahedral; "
                         "take --preset scan")
    if settings.start == "quadratic":
        raise ValueError("argument --start: the published spline blurs once more, which scan does "
                         "not learn for; take cubic or quintic, or leave it out")
    if settings.start == "projected" or settings.back_projections:
        raise ValueError("argument --lr_type: scan demands no agreement with a noisy volume; "
                         "leave --start projected and --back_projections out")
    if settings.sharpen:
        raise ValueError("argument --sharpen: has no effect with --lr_type scan; leave it out")
