"""The command lines of train.py and test.py, made from the options of `filter_constant`.

This file imports the standard library only, so that ``--help`` and messages about wrong options
appear at once.
"""
from dataclasses import replace

from filter_constant import OPTIONS, PRESETS, Method, Request
from machine import errors
from machine.compiled import keep_compiled_code
from machine.option_fields import parser_of
from options.checks import checked

GROUPS = {"train": ("preset", "method", "learning", "running", "folders", "output"),
          "test": ("preset", "applying", "method", "running", "folders", "output")}
NOT_FOR = {"train": {"test_dir", "result_dir", "into"},
           "test": {"train_dir", "restart", "checkpoint_minutes", "max_memory"}}
LISTS = {"profile", "test_profile", "test_noise", "include", "exclude"}
STORY = {
    "train": "Learn filters from the high-resolution volumes in train/ and write them to arrays/.",
    "test": "Degrade the volumes in test/, restore them with the filters in arrays/, and compare "
            "them with the originals.\nWith --upscale: restore low-resolution volumes on a finer "
            "grid.\nResults are written to result/. If arrays/ has no filters for the factor, the "
            "filters of the project are used.",
}
EXAMPLES = {
    "train": """examples:
  python train.py --preset scan                     filters for scans
  python train.py --preset best                     the best result in the test of the paper
  python train.py --factor 3 --train_dir /data/hcp --arrays_dir filters_x3
  python train.py --solver cg --sample_rate 1       the published solver, from every voxel""",
    "test": """examples:
  python test.py
  python test.py --test_dir /data/new --arrays_dir filters_x3 --factor 3 --result_dir /data/restored
  python test.py --upscale --test_dir scan.nii.gz --output scan_fine.nii.gz
  python test.py --upscale --isotropic --test_dir thick_slices.nii.gz
  python test.py --preset scan                      evaluate the filters for scans""",
}


def options_of(command):
    """The fields of `Method` and `Request` that are options of a command."""
    return [entry for entry in OPTIONS
            if entry.metadata["group"] in GROUPS[command] and entry.name not in NOT_FOR[command]]


def command_line(command, arguments=None):
    """Read the options of a command.

    Parameters
    ----------
    command : {"train", "test"}
    arguments : list of str, optional
        By default the arguments of the process.

    Returns
    -------
    Request
        Options that are not given have their defaults.
    """
    entries = options_of(command)
    parser = parser_of(entries, GROUPS[command], prog=f"{command}.py", description=STORY[command],
                       epilog=EXAMPLES[command])
    given = vars(parser.parse_args(arguments))
    try:
        for name in {"factor", "voxel_size"} & set(given):
            given[name] = _three(name, given[name], "number")
        if "known_profile" in given:
            given["known_profile"] = _three("profile", given["known_profile"], "profile")
        for name in LISTS & set(given):
            given[name] = tuple(dict.fromkeys(given[name]))
        if "tls" in given:
            given["tls"] = tuple(given["tls"])  # certificate and key may be one file
        preset = PRESETS[given.get("preset", Method.preset)]
        if len(profile := set(given.get("known_profile", ()))) == 1:
            preset = preset | {"test_profile": tuple(profile)}  # an evaluation simulates it
        request = replace(Request.of(**preset | given), given=frozenset(given))
        return checked(request, command)
    except ValueError as fault:
        parser.error(str(fault))


def run(command, story):
    """Read the command line and call ``story(request)``; returns the exit status."""
    request = command_line(command)

    def told():
        keep_compiled_code()
        return story(request)

    return errors.run(command, told, request.quiet)


def _three(name, values, kind):
    """Three values, from one value for all axes or one value for each axis."""
    if len(values) not in (1, 3):
        raise ValueError(f"argument --{name}: one {kind} or three, not {len(values)}")
    return tuple(values * 3 if len(values) == 1 else values)
