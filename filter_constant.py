"""The constants of the method, and all options: a `Method`, and a `Request` of one run.

Every option of ``train.py`` and ``test.py`` is one field below: its default, its help and the
values it takes stand on one spot. Nothing here imports more than the standard library, so that
``--help`` and a typing error answer at once.
"""
import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from machine.option_fields import option

LR_TYPES = ("interpolation", "kspace", "average", "scan")
KSPACE_KEEPS = ("third", "auto")
GRIDS = ("centers", "edges")
FEATURE_TYPES = ("lambda1_coh2", "lambda1_fa", "trace_coh2", "trace_fa")
SOLVERS = ("ridge", "cg")
STARTS = ("quadratic", "cubic", "quintic", "projected")
PROFILES = ("box", "gap", "gauss", "sharp", "kspace", "hamming")
FEATURE_SPACES = ("spherical", "octahedral")
DEVICES = ("auto", "cpu", "gpu")
MASK_AUTO = "auto"  # of --mask: by the names of BIDS and other common ones
MASK_NAME, MASK_ENTITIES = "{name}", "{entities}"  # in its patterns

WINDOW_SIGMA = 0.85  # voxels; of the Gaussian over a window of gradients (section 3.2 of the paper)
CLIP_FRACTION = 0.999  # of the sorted voxels: clipped above, so that a bright vessel sets no scale
QUANTIZATION_PATCHES = 2_500_000  # boundaries come from the first volumes that hold so many voxels

# What --preset best sets; measured in docs/quality.md.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "best": {
        "start": "projected",
        "feature_space": "octahedral",
        "filter_len": 7,
        "stages": 3,
        "back_projections": 2,
        "ridge": None,
        "sample_rate": 1,
    },
    "scan": {
        "lr_type": "scan",
        "start": "quintic",
        "feature_space": "octahedral",
        "filter_len": 7,
        "stages": 2,
        "trees": 3,
        "ridge": None,
    },
}
ONLY_SPHERICAL = ("grad_len", "q_angle_p", "q_angle_t", "feature_type", "quantization_rate")
ONLY_OCTAHEDRAL = ("stages", "trees", "leaves", "back_projections")
OCTAHEDRAL_FILTER_MAX = 13  # of --filter_len: half of it is what volumes are padded by there
ONLY_SCAN = ("profile", "noise", "original_noise", "draws")


@dataclass(frozen=True)
class Method:
    """What filters mean and how they were learned: saved with them, and read with them."""

    preset: str = option("paper", "learning", "paper: the published structure; best: what restores "
                         "most in its protocol; scan: for upscaling real scans (see PRESETS). "
                         "Other options change a preset", choices=tuple(PRESETS))

    # Method: what a filter means. Applying with others than learned with is refused.
    factor: tuple = option((2, 2, 2), "method", "how many times finer than the LR volume: one "
                           "number, or one per axis", kind=int, several=True, low=1, high=8)
    lr_type: str = option("interpolation", "method", "how LR volumes come from HR ones: published "
                          "spline zoom, truncated spectrum, mean of blocks (thick slices), or as "
                          "scanners make them, drawn anew for each part of a volume (scan)",
                          choices=LR_TYPES)
    kspace_keep: str = option("third", "method", "how much of the spectrum k-space LR keeps along "
                              "each axis: the published third, or 1/factor (auto), which upscaling "
                              "needs", choices=KSPACE_KEEPS)
    grid: str = option("centers", "method", "what LR and HR grid share: the centres of the first "
                       "and last voxels, as published, or the edges of the field of view; average "
                       "and scan imply edges", choices=GRIDS)
    start: str = option("quadratic", "method", "how LR volumes are brought to the HR grid: the "
                        "published quadratic spline without prefilter, the cubic or quintic one "
                        "through the voxels, or by projections", choices=STARTS)
    feature_space: str = option("spherical", "method", "spherical: the published angles; "
                                "octahedral: patches are turned into one of 48 orientations first",
                                choices=FEATURE_SPACES)
    filter_len: int = option(11, "method", "side of the patch that a filter covers, in voxels: a "
                             "cube, or with octahedral a ball", low=3, high=21, odd=True)
    grad_len: int = option(9, "method", "side of the window of gradients, in voxels",
                           low=3, high=21, odd=True)
    q_angle_p: int = option(8, "method", "classes of the azimuth (angle phi)", low=1, high=64)
    q_angle_t: int = option(8, "method", "classes of the inclination (angle theta)",
                            low=1, high=64)
    feature_type: str = option("lambda1_coh2", "method", "strength and coherence: which formulas",
                               choices=FEATURE_TYPES)
    stages: int = option(1, "method", "each further stage learns on the output of the one before "
                         "(octahedral only)", low=1, high=4)
    trees: int = option(1, "method", "trees of a stage with learned splits: each leaves out a "
                        "part of the draws, and the mean of what they restore is taken",
                        low=1, high=8, since=True)
    leaves: int = option(512, "method", "classes of a stage with learned splits", low=1, high=4096)
    back_projections: int = option(0, "method", "how often each stage's output is corrected until "
                                   "it agrees with the LR volume (octahedral only)",
                                   low=0, high=20)

    # Learning: how the filters are learned.
    profile: tuple = option(PROFILES, "learning", "of scan: slice profiles to draw from (mean over "
                            "the slice, slices with gaps, Gaussian, hardly blurred, k-space, the "
                            "same under a Hamming window)",
                            kind=str, several=True, since=True,
                            choices=PROFILES)
    noise: float = option(7.0, "learning", "of scan: the most noise that is drawn, in per cent of "
                          "the 99.9 % intensity (Rician standard deviation)",
                          low=0, high=50, since=True)
    original_noise: float = option(4.0, "learning", "of scan: the most noise that half of the "
                                   "originals get, in per cent: good volumes of many scanners are "
                                   "noisy themselves", low=0, high=50, since=True)
    draws: int = option(16, "learning", "of scan: parts of a volume, each with a profile and a "
                        "noise level of its own", low=1, high=1000, since=True)
    solver: str = option("ridge", "learning", "ridge: centred patches, Cholesky, pulled to the "
                         "pooled filter; cg: the published one, raw patches, conjugate gradients",
                         choices=SOLVERS)
    ridge: float | None = option(10.0, "learning", "weight of the pull to the pooled filter; in "
                                 "the octahedral space a number of samples, or auto: chosen on "
                                 "voxels held out from learning",
                                 low=1e-6, high=1e9, auto=True)
    sharpen: bool = option(False, "learning", "sharpen the HR side before learning (differences "
                           "of Gaussians)")
    sample_rate: int = option(3, "learning", "learn from one voxel in this many",
                              low=1, high=10_000)
    quantization_rate: int = option(5, "learning", "take class boundaries from one voxel in this "
                                    "many", low=1, high=10_000)
    train_file_max: int | None = option(None, "learning", "learn from at most this many volumes, "
                                        "by name (default: all)", kind=int, low=0, none=0)
    seed: int = option(0, "learning", "of the random choice of voxels", low=0, high=2**32 - 1)

    @property
    def classes(self) -> tuple[int, int, int, int]:
        """Classes of azimuth, inclination, strength, coherence; their product is the buckets."""
        return (self.q_angle_p, self.q_angle_t, 3, 3)

    @property
    def buckets(self) -> int:
        return math.prod(self.classes)

    @property
    def taps(self) -> int:
        """Voxels in a patch, P in the paper."""
        return self.filter_len**3

    @property
    def margin(self) -> int:
        """Voxels between a face of the cropped box and the first voxel that is restored.

        From there on, patch and window lie inside the box. In the octahedral space there are none:
        volumes are mirrored at the faces.
        """
        return 0 if self.octahedral else max(self.filter_len, self.grad_len) // 2

    @property
    def octahedral(self) -> bool:
        return self.feature_space == "octahedral"

    @property
    def tag(self) -> str:
        """The factor as file names carry it: ``2``, or ``1x1x4`` where axes differ."""
        return tag_of(self.factor)



@dataclass(frozen=True)
class Request:
    """What a user asks of one run: the method, and how it is applied, where, and on what.

    In restoring the method is that of the filters that are found; this one names their factor and
    preset, and what they must agree with.
    """

    method: Method = Method()
    given: frozenset = frozenset()  # names of the options that stood on the command line

    # Applying.
    blend_threshold: int | None = option(None, "applying", "keep the LR voxel where more than this "
                                         "many of its 26 neighbours change rank (census blend); "
                                         "off unless given, 10 if given bare",
                                         kind=int, low=0, high=26, bare=10)
    upscale: bool = option(False, "applying", "take the volumes as truly low-resolution and bring "
                           "them to the finer grid")
    look: bool = option(False, "applying", "print what each scan is (grid, noise, blur, whether it "
                        "was interpolated) and the command that serves it best; restore nothing")
    voxel_size: tuple | None = option(None, "applying", "voxel size to bring volumes to with "
                                      "--upscale, in the header's unit (mm), one number or "
                                      "one per axis, instead of --factor: axes and factors "
                                      "follow from each header",
                                      kind=float, several=True, low=1e-6, high=1e6, metavar="MM")
    isotropic: bool = option(False, "applying", "bring volumes to their smallest voxel size along "
                             "all axes, in place of a factor")
    known_profile: tuple = option((), "applying", "slice profile of the scans that are upscaled, "
                                  "where it is known: one, or one per axis (default: read off "
                                  "each scan)", kind=str, several=True, choices=PROFILES,
                                  flag="profile")
    adapt: bool = option(True, "applying", "of thick slices: correct the filters by what a scan "
                         "shows within its own plane, before they are used across it", switch=True)
    test_profile: tuple = option(("box", "kspace"), "applying", "to evaluate filters of scan: the "
                                 "slice profiles that volumes are degraded by", kind=str,
                                 several=True, choices=PROFILES)
    test_noise: tuple = option((0.0, 3.0), "applying", "to evaluate filters of scan: the noise "
                               "that is added, in per cent", kind=float, several=True, low=0,
                               high=50)
    dtype: str = option("float32", "applying", "of the restored voxels; same: the input's own type "
                        "and scaling", choices=("float32", "same"))
    output: str = option("", "applying", "name of the restored volume, where one volume is "
                         "restored", metavar="FILE")
    overwrite: bool = option(False, "applying", "replace the file that the result is named, also "
                             "where test.py did not write it as it is")
    suffix: str = option("", "applying", "put between a volume's name and .nii of what is "
                         "restored", metavar="TEXT")
    report: bool = option(True, "applying", "pictures, report.html and a JSON file beside the "
                          "restored volumes", switch=True)

    quiet: bool = option(False, "output", "print warnings and errors only, no progress",
                         switch=True)
    # How the work is done. None of these changes the filters, but for the rounding of a device.
    device: str = option("auto", "running", "where to compute: auto takes a GPU if CuPy finds one, "
                         "else the CPU", choices=DEVICES)
    restart: bool = option(False, "running", "forget what an earlier training left in arrays/, "
                           "begin anew")
    checkpoint_minutes: float = option(5.0, "running", "save the sums after a volume when this "
                                       "many minutes have passed, and ten times as long as "
                                       "saving took", low=0, high=1e6)
    max_memory: float | None = option(None, "running", "memory to use at most, in GB (default: "
                                      "what is free)", kind=float, low=0, high=1e6, none=0)
    scheduler: str = option("", "running", "sum samples, or restore volumes, on the workers of "
                            "a Dask cluster: its scheduler's address, or local:N for N processes "
                            "here",
                            metavar="ADDRESS")
    tls: tuple = option((), "running", "three files in PEM, of the certificate authority, of this "
                        "command's certificate and of its key, for a --scheduler at tls://...",
                        kind=str, several=True, metavar="PEM")

    # Folders.
    train_dir: str = option("train", "folders", "volumes to learn from (.nii, .nii.gz): a folder "
                            "or one file")
    test_dir: str = option("test", "folders", "volumes to restore: a folder or one file")
    include: tuple = option((), "folders", "of a folder, only volumes whose name or path fits one "
                            "of these patterns, such as \"*_T1w.nii.gz\" (default: all; of a BIDS "
                            "dataset its T1w)", kind=str, several=True, metavar="PATTERN")
    exclude: tuple = option((), "folders", "leave out volumes whose name or path fits one of these "
                            "patterns", kind=str, several=True, metavar="PATTERN")
    mask: str = option("", "folders", "of whole heads, the brain masks beside them: auto, by the "
                       "names of BIDS and other common ones, or a path from the volume's folder, "
                       "such as \"masks/{name}.nii.gz\", with wildcards; learned from and "
                       "evaluated is what lies inside; upscaled is the whole head, its noise and "
                       "blur read inside", metavar="PATTERN")
    arrays_dir: str = option("arrays", "folders", "the learned filters")
    result_dir: str = option("result", "folders", "restored volumes, under <MMDDHH>/")

    @classmethod
    def of(cls, **values: Any) -> "Request":
        """A request from options of both kinds, by name.

        Examples
        --------
        >>> Request.of(factor=(1, 1, 4), upscale=True).method.tag
        '1x1x4'
        """
        method = {name: values.pop(name) for name in METHOD_NAMES & set(values)}
        return cls(Method(**method), **values)

    def value(self, name: str) -> Any:
        """The value of an option, whichever kind it is of."""
        return getattr(self.method if name in METHOD_NAMES else self, name)

    def but(self, **values: Any) -> "Request":
        """The request with other values of options of both kinds."""
        method = {name: values.pop(name) for name in METHOD_NAMES & set(values)}
        return dataclasses.replace(self, method=dataclasses.replace(self.method, **method),
                                   **values)

    def as_dict(self) -> dict[str, Any]:
        """All options by name, for records."""
        return {entry.name: self.value(entry.name) for entry in OPTIONS}

    def with_whole_paths(self, *names: str) -> "Request":
        """The request with these paths absolute, for workers that may run in other folders."""
        paths = {name: os.path.abspath(path) for name in names if (path := getattr(self, name))}
        return dataclasses.replace(self, **paths)


OPTIONS = [entry for kind in (Method, Request) for entry in dataclasses.fields(kind)
           if "group" in entry.metadata]
METHOD_NAMES = {entry.name for entry in dataclasses.fields(Method)}


def tag_of(factor: Sequence[int]) -> str:
    """A factor as file names carry it."""
    return str(factor[0]) if len(set(factor)) == 1 else "x".join(map(str, factor))


def start_name(start: str) -> str:
    """What the volume that filters begin with is called: LR where it is the published one."""
    return "LR" if start == "quadratic" else "start"

