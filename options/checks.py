"""Checks of the options: values out of range, and options without effect."""
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
    OPTION,
    OPTIONS,
)
from machine.option_fields import fault_of, flag_of

NEED_SCAN = ("adapt", "known_profile")  # options of test.py for filters for scans
NO_SCAN = "leave it out, or add --preset scan"  # remedy if other filters are used
VOLUME_NAME = re.compile(r"[^/\\]\.nii(\.gz)?$", re.IGNORECASE)


def checked(request, command):
    """Check all options; returns the request, with the grid that its --lr_type needs.

    It raises ValueError for values out of range and for options without effect.
    """
    method, given = request.method, {name: request.value(name) for name in request.given}
    for entry in OPTIONS:
        values = given.get(entry.name, ())
        for value in values if isinstance(values, tuple) else (values,):
            if fault := fault_of(entry, value):
                raise ValueError(f"argument --{flag_of(entry)}: {fault}")
    if max(method.factor) == 1:
        raise ValueError("argument --factor: at least one axis needs a factor above 1")
    for name in ("voxel_size", "isotropic", "known_profile", "adapt"):
        evaluates = name in NEED_SCAN and method.preset == "scan"
        if name in given and not (request.upscale or request.look or evaluates):
            instead = ", or --preset scan" if name in NEED_SCAN else ""
            raise ValueError(f"argument --{flag_of(OPTION[name])}: has no effect without "
                             f"--upscale; add it{instead}")
    if request.look:
        for name in ("output", "into", "suffix", "dtype", "report", "scheduler", "upscale",
                     "voxel_size",
                     "isotropic", "factor", "blend_threshold", "adapt", "test_profile",
                     "test_noise", "tissue"):
            if name in given:
                raise ValueError(f"argument --{name}: has no effect with --look, which restores "
                                 "nothing; leave one of the two out")
    for name in ("voxel_size", "isotropic"):
        for other in ("factor", "voxel_size"):
            if given.get(name) and other in given and other != name:
                raise ValueError(f"argument --{name}: sets the new voxel size, and so does "
                                 f"--{other}; leave one of the two out")
    lr_type = method.lr_type
    if given.get("grid") == "centers" and lr_type in ("average", "scan"):
        what = "means of blocks" if lr_type == "average" else "LR volumes of scanners"
        raise ValueError(f"argument --grid: {what} lie on the grid edges; leave --grid out")
    if "grid" in given and lr_type == "kspace":
        raise ValueError("argument --grid: the spectrum sets the grid of k-space volumes; "
                         "leave --grid out")
    asked = command == "train" or "lr_type" in given  # otherwise the filters may set lr_type
    if "kspace_keep" in given and lr_type != "kspace" and asked:
        raise ValueError(f"argument --kspace_keep: has no effect with --lr_type {lr_type}; "
                         "leave one of the two out")
    if "start" in given and lr_type == "kspace" and method.start in ("cubic", "quintic"):
        raise ValueError(f"argument --start: {method.start} has no effect with --lr_type kspace, "
                         "whose spectrum is filled with zeros; leave one of the two out")
    if fault := _fault_of_mask(request.mask):
        raise ValueError(f"argument --mask: '{request.mask}' {fault}")
    for name in ("include", "exclude"):
        for pattern in getattr(request, name):
            if not PurePosixPath(pattern).name:
                raise ValueError(f"argument --{name}: '{pattern}' names no file; give a pattern "
                                 "such as \"*_T1w.nii.gz\" or \"sub-01/*\"")
    if request.suffix and any(sign in request.suffix for sign in "/\\"):
        raise ValueError(f"argument --suffix: '{request.suffix}' holds a slash; folders are for "
                         "--result_dir or --output")
    if request.output and request.suffix:
        raise ValueError("argument --output: names the file in full; leave --suffix out")
    if request.output and not VOLUME_NAME.search(request.output):
        raise ValueError(f"argument --output: '{request.output}' must end in .nii or .nii.gz, "
                         "with a name before it")
    if request.tls and len(request.tls) != 3:
        raise ValueError(f"argument --tls: three files, CA CERT KEY, not {len(request.tls)}")
    if request.tls and not request.scheduler.startswith("tls://"):
        raise ValueError("argument --tls: works only with --scheduler tls://ADDRESS; give that "
                         "address, or leave --tls out")
    for name, what in (("output", "file"), ("into", "folder")):
        if name in given and not getattr(request, name):  # a shell variable that is not set
            raise ValueError(f"argument --{name}: is empty; name a {what}, or leave --{name} out")
    for name in ("output", "result_dir"):
        if request.into and name in given:
            raise ValueError(f"argument --into: names the folder of the results, and so does "
                             f"--{name}; leave one of the two out")
    if request.overwrite and not (request.output or request.into):
        raise ValueError("argument --overwrite: has no effect without --output or --into; leave "
                         "it out")
    if command == "test" and request.scheduler and request.device == "gpu":
        raise ValueError("argument --device: workers of a cluster restore on their CPUs; leave one "
                         "of --device gpu and --scheduler out")
    if command == "train":
        _check_spaces(method, given)
        _check_scan(method, given)
    if "ridge" in given and method.solver == "cg":
        raise ValueError("argument --ridge: the solver cg has no ridge; leave one of the two out")
    if lr_type in ("average", "scan"):
        return request.but(grid="edges")
    return request


def without_effect(request, drawn):
    """A message about an option of test.py that has no effect with the filters in use.

    Parameters
    ----------
    request : Request
    drawn : bool
        True for filters that were learned from sampled acquisitions.

    Returns
    -------
    str
        The fault and its remedy; empty if all options have an effect.
    """
    scan_figures = ["test_profile", "test_noise", "tissue"]
    if request.upscale:
        places = [("with --upscale; leave it out", scan_figures)]
        if not drawn:
            places.append((f"with filters that were not learned for scans; {NO_SCAN}", NEED_SCAN))
    elif drawn:
        places = [("in an evaluation of filters for scans, which writes figures only; leave it out",
                   ["output", "into", "suffix", "dtype", "report", "blend_threshold"])]
    else:
        places = [(f"without filters for scans; {NO_SCAN}", [*scan_figures, "adapt"])]
    for where, names in places:
        for name in names:
            if name in request.given and request.value(name) is not False:
                return f"argument --{flag_of(OPTION[name])}: has no effect {where}"
    return ""


def _fault_of_mask(pattern):
    """The fault of a pattern of --mask; empty if there is none."""
    if pattern in ("", MASK_AUTO):
        return ""
    bare = pattern.replace(MASK_NAME, "").replace(MASK_ENTITIES, "")
    if "{" in bare or "}" in bare:
        return f"has braces that are neither {MASK_NAME} nor {MASK_ENTITIES}"
    if not pattern.lower().endswith((".nii", ".nii.gz", "*")):
        return "must end in .nii, .nii.gz or *, or be auto"
    return ""


def _check_spaces(method, given):
    """Raise ValueError for options of the other feature space."""
    space = method.feature_space
    for name in ONLY_SPHERICAL if method.octahedral else ONLY_OCTAHEDRAL:
        if name in given:
            raise ValueError(f"argument --{name}: has no effect with --feature_space {space}; "
                             "leave it out")
    if method.octahedral and method.filter_len > OCTAHEDRAL_FILTER_MAX:
        raise ValueError(f"argument --filter_len: {method.filter_len} is above "
                         f"{OCTAHEDRAL_FILTER_MAX}, the most with --feature_space octahedral")
    if method.octahedral and method.solver == "cg":
        raise ValueError("argument --solver: cg is for --feature_space spherical; "
                         "leave one of the two out")
    if not method.octahedral and method.ridge is None:
        raise ValueError("argument --ridge: auto is for --feature_space octahedral; give a number")


def _check_scan(method, given):
    """Raise ValueError for options that contradict --lr_type scan, or that require it."""
    if method.lr_type != "scan":
        for name in ONLY_SCAN:
            if name in given:
                raise ValueError(f"argument --{name}: has no effect without --lr_type scan; "
                                 "leave it out, or take --preset scan")
        return
    if not method.octahedral:
        raise ValueError("argument --lr_type: scan is for --feature_space octahedral; "
                         "take --preset scan")
    if method.start == "quadratic":
        raise ValueError("argument --start: the published quadratic spline adds blur, and "
                         "--lr_type scan needs one that does not; take cubic or quintic, or leave "
                         "it out")
    if method.start == "projected" or method.back_projections:
        raise ValueError("argument --lr_type: scan has noisy LR volumes, and agreement with them "
                         "would bring the noise back; leave --start projected and "
                         "--back_projections out")
    if method.sharpen:
        raise ValueError("argument --sharpen: has no effect with --lr_type scan; leave it out")
