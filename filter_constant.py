"""The constants of the method in one frozen dataclass, and the command line made from it.

Every option of ``train.py`` and ``test.py`` is one field below: its default, its help and the values it takes stand
on one spot. Nothing here imports more than the standard library, so that ``--help`` and a typing error answer at once.
"""
import argparse
import contextlib
import dataclasses
import math
import os
import signal
import sys
from dataclasses import dataclass, field

LR_TYPES = ("interpolation", "kspace", "average")
KSPACE_KEEPS = ("third", "auto")
GRIDS = ("centers", "edges")
FEATURE_TYPES = ("lambda1_coh2", "lambda1_fa", "trace_coh2", "trace_fa")
SOLVERS = ("ridge", "cg")
STARTS = ("quadratic", "cubic", "projected")
FEATURE_SPACES = ("spherical", "octahedral")
SPLITS = ("learned", "quantiles")
DEVICES = ("auto", "cpu", "gpu")

WINDOW_SIGMA = 0.85  # voxels; of the Gaussian that weighs the gradients in a window (section 3.2 of the paper)
CLIP_FRACTION = 0.999  # of the sorted voxels: what lies above is clipped, so that a bright vessel sets no scale
QUANTIZATION_PATCHES = 2_500_000  # boundaries are taken from the first volumes, until this many voxels are seen


# What --preset best sets; measured in docs/quality.md.
PRESETS = {"paper": {}, "best": {"start": "projected", "feature_space": "octahedral", "filter_len": 7, "stages": 3,
                                 "back_projections": 2, "ridge": 0.0, "sample_rate": 1}}
ONLY_SPHERICAL = ("grad_len", "q_angle_p", "q_angle_t", "feature_type", "quantization_rate", "train_div")
ONLY_OCTAHEDRAL = ("stages", "splits", "leaves", "back_projections")


class UserError(Exception):
    """A fault that the user can mend: printed as one line, exit status 2."""


class CannotWrite(UserError):
    """A folder that takes no files, or a full disk: no use in going on to the next volume."""


def option(default, group, text, **limits):
    """A field of `Settings`: default, the heading it stands under in ``--help``, its help and what it may be."""
    return field(default=default, metadata={"group": group, "help": text, **limits})


@dataclass(frozen=True)
class Settings:
    """All that decides a result. The fields under "method" and "learning" are saved with the filters."""

    preset: str = option("paper", "learning", "paper: the published structure; best: what restores most (see PRESETS). "
                         "Other options change a preset", choices=("paper", "best"))

    # Method: what a filter means. Applying with others than learned with is refused.
    factor: tuple = option((2, 2, 2), "method", "how many times finer than the LR volume: one number, or one per axis",
                           low=1, high=8)
    lr_type: str = option("interpolation", "method", "how LR volumes come from HR ones: published spline zoom, truncated "
                          "spectrum, or mean of blocks (thick slices)", choices=LR_TYPES)
    kspace_keep: str = option("third", "method", "how much of the spectrum k-space LR keeps along each axis: the published "
                              "third, or 1/factor (auto), which upscaling needs", choices=KSPACE_KEEPS)
    grid: str = option("centers", "method", "what LR and HR grid share: the centres of the first and last voxels, as "
                       "published, or the edges of the field of view; average implies edges", choices=GRIDS)
    start: str = option("quadratic", "method", "how LR volumes are brought to the HR grid: the published quadratic spline "
                        "without prefilter, the cubic one through the voxels, or by projections", choices=STARTS)
    feature_space: str = option("spherical", "method", "spherical: the published angles; octahedral: patches are turned "
                                "into one of 48 orientations first", choices=FEATURE_SPACES)
    filter_len: int = option(11, "method", "side of the patch that a filter covers, in voxels: a cube, or with octahedral a "
                             "ball", low=3, high=21, odd=True)
    grad_len: int = option(9, "method", "side of the window of gradients, in voxels", low=3, high=21, odd=True)
    q_angle_p: int = option(8, "method", "classes of the azimuth (angle phi)", low=1, high=64)
    q_angle_t: int = option(8, "method", "classes of the inclination (angle theta)", low=1, high=64)
    feature_type: str = option("lambda1_coh2", "method", "strength and coherence: which formulas", choices=FEATURE_TYPES)

    stages: int = option(1, "method", "each further stage learns on the output of the one before (octahedral only)",
                         low=1, high=4)
    splits: str = option("learned", "method", "classes of the octahedral space: a tree that learns its splits, or 144 by "
                         "quantiles", choices=SPLITS)
    leaves: int = option(512, "method", "classes of a stage with learned splits", low=1, high=4096)
    back_projections: int = option(0, "method", "how often each stage's output is corrected until it agrees with the LR "
                                   "volume (octahedral only)", low=0, high=20)

    # Learning: how the filters are learned.
    solver: str = option("ridge", "learning", "ridge: centred patches, Cholesky, pulled to the pooled filter; "
                         "cg: the published one, raw patches, conjugate gradients", choices=SOLVERS)
    ridge: float = option(10.0, "learning", "weight of the pull to the pooled filter; in the octahedral space a number of "
                          "samples, or auto: chosen on voxels held out from learning", low=1e-6, high=1e9, auto=0.0)
    sharpen: bool = option(False, "learning", "sharpen the HR side before learning (differences of Gaussians)")
    sample_rate: int = option(3, "learning", "learn from one voxel in this many", low=1, high=10_000)
    quantization_rate: int = option(5, "learning", "take class boundaries from one voxel in this many", low=1, high=10_000)
    train_div: int = option(3, "learning", "parts in which a volume's samples are summed; more need less memory",
                            low=1, high=1000)
    train_file_max: int = option(0, "learning", "learn from at most this many volumes, by name; 0: all", low=0)
    seed: int = option(0, "learning", "of the random choice of voxels", low=0, high=2**32 - 1)

    # Applying.
    blend_threshold: int | None = option(None, "applying", "keep the LR voxel where more than this many of its 26 neighbours "
                                         "change rank (census blend); off unless given, 10 if given bare",
                                         low=0, high=26, bare=10)

    upscale: bool = option(False, "applying", "take the volumes as truly low-resolution and bring them to the finer grid")
    dtype: str = option("float32", "applying", "of the restored voxels; same: the input's own type and scaling",
                        choices=("float32", "same"))
    output: str = option("", "applying", "name of the restored volume, where one volume is restored", metavar="FILE")
    suffix: str = option("", "applying", "put between a volume's name and .nii of what is restored", metavar="TEXT")
    report: bool = option(True, "applying", "pictures, report.html and a JSON file beside the restored volumes", switch=True)

    quiet: bool = option(False, "output", "print warnings and errors only, no progress", switch=True)
    # How the work is done. None of these changes the filters, but for the rounding of another device.
    device: str = option("auto", "running", "where to compute: auto takes a GPU if CuPy finds one, else the CPU",
                         choices=DEVICES)
    restart: bool = option(False, "running", "forget what an earlier training left in arrays/, begin anew")
    checkpoint_minutes: float = option(5.0, "running", "save the sums after a volume when this many minutes have passed; "
                                       "0: after each", low=0, high=1e6)
    max_memory: float = option(0.0, "running", "memory to use at most, in GB; 0: what is free", low=0, high=1e6)

    # Folders.
    train_dir: str = option("train", "folders", "volumes to learn from (.nii, .nii.gz): a folder or one file")
    test_dir: str = option("test", "folders", "volumes to restore: a folder or one file")
    arrays_dir: str = option("arrays", "folders", "the learned filters")
    result_dir: str = option("result", "folders", "restored volumes, under <MMDDHH>/")

    @property
    def classes(self):
        """Classes per feature: azimuth, inclination, strength, coherence. Their product is the number of buckets."""
        return (self.q_angle_p, self.q_angle_t, 3, 3)

    @property
    def buckets(self):
        return math.prod(self.classes)

    @property
    def taps(self):
        """Voxels in a patch, P in the paper."""
        return self.filter_len**3

    @property
    def margin(self):
        """Voxels between a face of the cropped box and the first voxel whose patch and window lie inside it.

        In the octahedral space there are none: volumes are mirrored at the faces.
        """
        return 0 if self.feature_space == "octahedral" else max(self.filter_len, self.grad_len) // 2

    @property
    def tag(self):
        """The factor as file names carry it: ``2``, or ``1x1x4`` where axes differ."""
        return str(self.factor[0]) if len(set(self.factor)) == 1 else "x".join(map(str, self.factor))

    def of_groups(self, *groups):
        """The settings of these groups as a plain dict."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["group"] in groups}


GROUPS = {"train": ("method", "learning", "running", "folders", "output"),
          "test": ("method", "applying", "running", "folders", "output")}
NOT_FOR = {"train": {"test_dir", "result_dir"}, "test": {"train_dir", "restart", "checkpoint_minutes", "max_memory"}}
STORY = {
    "train": "Learn filters from the high-resolution volumes in train/ into arrays/.",
    "test": "Degrade the volumes in test/, restore them with the filters in arrays/, write them to result/.\n"
            "With --upscale: bring volumes that are low-resolution to the finer grid.",
}
EXAMPLES = {
    "train": """examples:
  python train.py --preset best                     what restores most
  python train.py --factor 3 --train_dir /data/hcp --arrays_dir filters_x3
  python train.py --solver cg --sample_rate 1       the published solver, every voxel""",
    "test": """examples:
  python test.py
  python test.py --test_dir /data/new --arrays_dir filters_x3 --factor 3 --result_dir /data/restored
  python test.py --upscale --test_dir scan.nii.gz --output scan_fine.nii.gz""",
}


def start_name(start):
    """What the volume that filters begin with is called: LR where it is the published one."""
    return "LR" if start == "quadratic" else "start"


class OneLineParser(argparse.ArgumentParser):
    """Answers a wrong option with one line instead of the whole usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def command_line(command, arguments=None):
    """Read the options of a command.

    Parameters
    ----------
    command : {"train", "test"}
    arguments : list of str, optional
        Default: those of the process.

    Returns
    -------
    settings : Settings
        Defaults where nothing was given.
    given : set of str
        Names of the options that stood on the command line.
    """
    parser = OneLineParser(prog=f"{command}.py", description=STORY[command], epilog=EXAMPLES[command], allow_abbrev=False,
                           formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS)
    headings = {group: parser.add_argument_group(group) for group in GROUPS[command]}
    for entry in dataclasses.fields(Settings):
        if entry.metadata["group"] in headings and entry.name not in NOT_FOR[command]:
            headings[entry.metadata["group"]].add_argument(f"--{entry.name}", **_argument(entry))
    given = vars(parser.parse_args(arguments))
    try:
        if "factor" in given:
            given["factor"] = _three_factors(given["factor"])
        settings = dataclasses.replace(Settings(), **PRESETS[given.get("preset", "paper")] | given)
        _check(settings, given, command)
        if settings.lr_type == "average":
            settings = dataclasses.replace(settings, grid="edges")
    except ValueError as fault:
        parser.error(str(fault))
    return settings, set(given)


def run(command, story):
    """Run ``story(settings, given)`` for a command line; a user's mistake becomes one line and exit status 2."""
    settings, given = command_line(command)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream of the caller's own
            stream.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary files are removed
    silence = open(os.devnull, "w", encoding="utf-8") if settings.quiet else contextlib.nullcontext(sys.stdout)
    try:
        with silence as stdout, contextlib.redirect_stdout(stdout):
            return story(settings, given)
    except UserError as fault:
        complain(command, f"error: {fault}")
        return 2
    except OSError as fault:
        complain(command, f"error: {fault.filename or 'files'}: {fault.strerror or fault}; see to that disk or folder")
        return 2
    except MemoryError:
        complain(command, "error: too little memory; close other programs, or take smaller volumes or a smaller --filter_len")
        return 2
    except KeyboardInterrupt:
        complain(command, "stopped")
        return 130


def complain(command, text):
    """One line on standard error."""
    print(f"{command}.py: {one_line(text)}", file=sys.stderr, flush=True)


def one_line(text):
    """A text in one line that any terminal can show, whatever a file name in it holds."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode() for sign in str(text))


def first_line(fault):
    """The first line of what an exception says, or its class where it says nothing."""
    return (str(fault).splitlines() or [type(fault).__name__])[0]


def checked_settings(saved):
    """Values of settings that were read from a file: names, types, ranges and choices are checked.

    Parameters
    ----------
    saved : object
        What the file held.

    Returns
    -------
    values : dict
        Of the groups "method" and "learning".

    Raises
    ------
    ValueError
        Naming the setting.
    """
    entries = {f.name: f for f in dataclasses.fields(Settings) if f.metadata["group"] in ("method", "learning")}
    if not isinstance(saved, dict) or set(saved) != set(entries):
        odd = sorted(set(saved) ^ set(entries), key=str)[:3] if isinstance(saved, dict) else [type(saved).__name__]
        raise ValueError(f"settings missing or unknown: {', '.join(map(str, odd))}")
    values = dict(saved)
    if not isinstance(values["factor"], (list, tuple)) or len(values["factor"]) != 3:
        raise ValueError("factor is not three numbers")
    values["factor"] = tuple(values["factor"])
    for name, entry in entries.items():
        kind = int if name == "factor" else type(entry.default)
        for value in values[name] if name == "factor" else (values[name],):
            if type(value) is not kind:
                raise ValueError(f"{name} is {value!r:.40}, not {kind.__name__}")
            if fault := _fault(entry, value):
                raise ValueError(f"{name}: {fault}")
    return values


def _argument(entry):
    """What argparse needs to know of a field."""
    limits, default = entry.metadata, entry.default
    shown = default[0] if entry.name == "factor" else default
    if isinstance(default, bool) and "switch" in limits:
        shown = "yes" if default else "no"
    text = limits["help"].replace("%", "%%") + ("" if default in (None, "") else f" (default: {shown})")
    if entry.name == "factor":
        return {"type": _whole, "nargs": "+", "metavar": "N", "help": text}
    if "switch" in limits:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    if isinstance(default, bool):
        # The released code wants "--sharpen True"; a bare --sharpen says the same.
        return {"type": _yes_or_no, "nargs": "?", "const": True, "metavar": "BOOL", "help": text}
    if "choices" in limits:
        return {"choices": limits["choices"], "help": text}
    if "bare" in limits:
        return {"type": _whole, "nargs": "?", "const": limits["bare"], "metavar": "N", "help": text}
    kind = {int: _whole, float: _number, str: str}[type(default)]
    if "auto" in limits:
        kind = _number_or_auto
    return {"type": kind, "metavar": limits.get("metavar", {int: "N", float: "X", str: "PATH"}[type(default)]), "help": text}


def _whole(text):
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def _number(text):
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None


def _number_or_auto(text):
    return 0.0 if text == "auto" else _number(text)


def _yes_or_no(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False")
    return text.lower() == "true"


def _three_factors(numbers):
    if len(numbers) not in (1, 3):
        raise ValueError(f"argument --factor: one number or three, not {len(numbers)}")
    return tuple(numbers * 3 if len(numbers) == 1 else numbers)


def _fault(entry, value):
    """What is wrong with one value of a field; empty where it is good."""
    low, high = entry.metadata.get("low", -math.inf), entry.metadata.get("high", math.inf)
    if "choices" in entry.metadata and value not in entry.metadata["choices"]:
        return f"{value} is none of {', '.join(entry.metadata['choices'])}"
    if value == entry.metadata.get("auto"):
        return ""
    if isinstance(value, (int, float)) and not low <= value <= high:
        return f"{value} is not in {low} to {high}"
    if entry.metadata.get("odd") and value % 2 == 0:
        return f"{value} is even; it needs a centre voxel, so an odd number"
    return ""


def _check(settings, given, command):
    """Refuse values out of range, and options that would have no effect."""
    for entry in dataclasses.fields(Settings):
        if entry.name not in given:
            continue
        values = getattr(settings, entry.name)
        for value in values if isinstance(values, tuple) else (values,):
            if fault := _fault(entry, value):
                raise ValueError(f"argument --{entry.name}: {fault}")
    if max(settings.factor) == 1:
        raise ValueError("argument --factor: at least one axis needs a factor above 1")
    if given.get("grid") == "centers" and settings.lr_type == "average":
        raise ValueError("argument --grid: means of blocks lie on the grid edges; leave --grid out")
    if "grid" in given and settings.lr_type == "kspace":
        raise ValueError("argument --grid: the spectrum sets the grid of k-space volumes; leave --grid out")
    if "kspace_keep" in given and settings.lr_type != "kspace" and "lr_type" in given:
        raise ValueError(f"argument --kspace_keep: has no effect with --lr_type {settings.lr_type}; leave one of the two out")
    if settings.suffix and any(sign in settings.suffix for sign in "/\\"):
        raise ValueError(f"argument --suffix: '{settings.suffix}' holds a slash; folders are for --result_dir or --output")
    if settings.output and settings.suffix:
        raise ValueError("argument --output: names the file in full; leave --suffix out")
    if settings.output and not settings.output.endswith((".nii", ".nii.gz")):
        raise ValueError(f"argument --output: '{settings.output}' must end in .nii or .nii.gz")
    if command == "train":
        _check_spaces(settings, given)
    if "ridge" in given and settings.solver == "cg":
        raise ValueError("argument --ridge: the solver cg has no ridge; leave one of the two out")


def _check_spaces(settings, given):
    """Refuse what belongs to the other feature space."""
    octahedral = settings.feature_space == "octahedral"
    for name in ONLY_SPHERICAL if octahedral else ONLY_OCTAHEDRAL:
        if name in given:
            raise ValueError(f"argument --{name}: has no effect with --feature_space {settings.feature_space}; leave it out")
    if octahedral and settings.solver == "cg":
        raise ValueError("argument --solver: cg is for --feature_space spherical; leave one of the two out")
    if not octahedral and settings.ridge == 0:
        raise ValueError("argument --ridge: auto is for --feature_space octahedral; give a number")
    if octahedral and settings.splits == "quantiles" and "leaves" in given:
        raise ValueError("argument --leaves: has no effect with --splits quantiles; leave one of the two out")
