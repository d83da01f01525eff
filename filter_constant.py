"""All options of ``train.py`` and ``test.py``, and constants of the method.

Each option is one field of `Method` or `Request`, with its default, its help text and its allowed
values. This file imports the standard library only, so that ``--help`` and messages about wrong
options appear at once.
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
MASK_AUTO = "auto"  # value of --mask: masks are found by BIDS names and other common names
MASK_NAME, MASK_ENTITIES = "{name}", "{entities}"  # placeholders in the patterns of --mask

QUANTIZATION_PATCHES = 2_500_000  # sampling of voxels for class boundaries ends above this number

# Options that each preset sets; measured in docs/quality.md and docs/scan_figures.md.
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
        "draws": 48,
        "sample_rate": 1,
    },
}
ONLY_SPHERICAL = ("grad_len", "q_angle_p", "q_angle_t", "feature_type", "quantization_rate")
ONLY_OCTAHEDRAL = ("stages", "trees", "leaves", "back_projections")
OCTAHEDRAL_FILTER_MAX = 13  # largest octahedral --filter_len; volumes are padded by half of it
ONLY_SCAN = ("profile", "noise", "original_noise", "draws")


@dataclass(frozen=True)
class Method:
    """The options that define filters and their training; saved and loaded with the filters."""

    preset: str = option("paper", "preset", "set of defaults: paper is the published method; "
                         "best gives the highest PSNR in the test of the paper; scan is for "
                         "upscaling real scans. Other options override its values",
                         choices=tuple(PRESETS))

    # Options that define a filter. Filters are applied only with the values of their training.
    factor: tuple = option((2, 2, 2), "method", "number of times that voxels become finer: one "
                           "number, or one per axis", kind=int, several=True, low=1, high=8)
    lr_type: str = option("interpolation", "method", "degradation that makes LR volumes from HR "
                          "ones: published spline zoom (interpolation), truncated spectrum "
                          "(kspace), mean of blocks, as in thick slices (average), or sampled "
                          "acquisitions, as scanners make them (scan)", choices=LR_TYPES)
    kspace_keep: str = option("third", "method", "share of the spectrum that k-space LR volumes "
                              "keep along each axis: the published third, or 1/factor (auto). "
                              "Upscaling by other factors than 3 needs auto", choices=KSPACE_KEEPS)
    grid: str = option("centers", "method", "alignment of the LR and the HR grid: by the centres "
                       "of the first and last voxels, as in the paper, or by the edges of the "
                       "field of view; --lr_type average and scan always use edges", choices=GRIDS)
    start: str = option("quadratic", "method", "initial estimate on the HR grid: the published "
                        "quadratic spline without prefilter, the cubic or quintic spline through "
                        "the LR voxels, or projections, which repeatedly correct the estimate by "
                        "the LR volume (projected)", choices=STARTS)
    feature_space: str = option("spherical", "method", "features that sort voxels into classes: "
                                "the published angles (spherical), or learned trees, after each "
                                "patch is turned into one of 48 orientations (octahedral)",
                                choices=FEATURE_SPACES)
    filter_len: int = option(11, "method", "side of the patch that a filter covers, in voxels (a "
                             "cube; in the octahedral space a ball)", low=3, high=21, odd=True)
    grad_len: int = option(9, "method", "side of the window of gradients from which features are "
                           "computed, in voxels", low=3, high=21, odd=True)
    q_angle_p: int = option(8, "method", "number of classes of the azimuth (angle phi)", low=1,
                            high=64)
    q_angle_t: int = option(8, "method", "number of classes of the inclination (angle theta)",
                            low=1, high=64)
    feature_type: str = option("lambda1_coh2", "method", "formulas for strength (lambda1, trace) "
                               "and coherence (coh2, fa)", choices=FEATURE_TYPES)
    stages: int = option(1, "method", "number of stages; each further stage learns on the output "
                         "of the stage before (octahedral only)", low=1, high=4)
    trees: int = option(1, "method", "number of trees in a stage (octahedral only): each leaves "
                        "out a part of the training data, and their outputs are averaged", low=1,
                        high=8, since=True)
    leaves: int = option(512, "method", "number of leaves of a tree; each leaf is one class of "
                         "voxels (octahedral only)", low=1, high=4096)
    back_projections: int = option(0, "method", "number of corrections after each stage that "
                                   "bring its output to agree with the LR volume (octahedral "
                                   "only)", low=0, high=20)

    # Options of the training.
    profile: tuple = option(PROFILES, "learning", "slice profiles of the sampled acquisitions: "
                            "mean over the slice (box), slices with gaps (gap), Gaussian (gauss), "
                            "hardly blurred (sharp), k-space (kspace), k-space under a Hamming "
                            "window (hamming); for --lr_type scan only", kind=str,
                            several=True, since=True, choices=PROFILES)
    noise: float = option(7.0, "learning", "highest noise of the sampled acquisitions: standard "
                          "deviation of Rician noise, in per cent of the 99.9 % quantile of the "
                          "intensities; for --lr_type scan only", low=0, high=50, since=True)
    original_noise: float = option(4.0, "learning", "highest noise that is added to the original "
                                   "in 40 % of the sampled acquisitions, in per cent as for "
                                   "--noise: good volumes of many scanners are noisy; for "
                                   "--lr_type scan only", low=0, high=50, since=True)
    draws: int = option(16, "learning", "number of sampled acquisitions per volume, each with a "
                        "slice profile and a noise level of its own; for --lr_type scan only",
                        low=1, high=1000, since=True)
    solver: str = option("ridge", "learning", "method to solve for the filters: ridge uses "
                         "centred patches and Cholesky factors, and pulls each filter toward the "
                         "filter of all samples; cg is the published method, with raw patches and "
                         "conjugate gradients", choices=SOLVERS)
    ridge: float | None = option(10.0, "learning", "weight of the ridge, which pulls each filter "
                                 "toward the filter of all samples (octahedral: of its parent "
                                 "node); in the octahedral space a number of samples, or auto: "
                                 "chosen on held-out voxels", low=1e-6, high=1e9, auto=True)
    sharpen: bool = option(False, "learning", "sharpen the HR volumes before learning "
                           "(differences of Gaussians)")
    sample_rate: int = option(3, "learning", "number N: learn from one voxel in N", low=1,
                              high=10_000)
    quantization_rate: int = option(5, "learning", "number N: compute class boundaries from one "
                                    "voxel in N", low=1, high=10_000)
    train_file_max: int | None = option(None, "learning", "learn from at most this many volumes, "
                                        "the first by name (default: all)", kind=int, low=0, none=0)
    seed: int = option(0, "learning", "seed for the random choice of voxels and of acquisitions",
                       low=0, high=2**32 - 1)

    @property
    def classes(self) -> tuple[int, int, int, int]:
        """Classes of azimuth, inclination, strength, coherence; one bucket per combination."""
        return (self.q_angle_p, self.q_angle_t, 3, 3)

    @property
    def buckets(self) -> int:
        return math.prod(self.classes)

    @property
    def taps(self) -> int:
        """Voxels in a patch, P in the paper."""
        return self.filter_len**3

    @property
    def refines_one_axis(self) -> bool:
        """True for filters that make slices thinner, and leave the voxels of the plane."""
        return sorted(self.factor)[1] == 1

    @property
    def margin(self) -> int:
        """Number of voxels between a face of the cropped box and the first restored voxel.

        The margin gives each restored voxel a whole patch and gradient window inside the box. It is
        0 in the octahedral space, where volumes are mirrored at the faces.
        """
        return 0 if self.octahedral else max(self.filter_len, self.grad_len) // 2

    @property
    def octahedral(self) -> bool:
        return self.feature_space == "octahedral"

    @property
    def for_scans(self) -> bool:
        """True if filters learn from sampled acquisitions, see learning/acquisitions.py."""
        return self.lr_type == "scan"

    @property
    def tag(self) -> str:
        """The factor in file names: ``2``, or ``1x1x4`` if axes differ."""
        return tag_of(self.factor)


@dataclass(frozen=True)
class Request:
    """All options of one run: the method, the way to apply it, and the folders.

    Restoring uses the method that was saved with the filters. The method in the request then only
    selects filters, by factor and preset; its other options must agree with these filters.
    """

    method: Method = Method()
    given: frozenset = frozenset()  # names of the options on the command line

    # Applying.
    upscale: bool = option(False, "applying", "restore low-resolution volumes on a finer grid; "
                           "without --upscale, volumes are degraded and restored as a test")
    look: bool = option(False, "applying", "describe each scan (grid, noise, blur, interpolated "
                        "or not) and suggest a command; restore nothing")
    voxel_size: tuple | None = option(None, "applying", "voxel size of the upscaled volumes, in "
                                      "the header's unit (mm), in place of --factor: one number, "
                                      "or one per axis; factors are computed from each header",
                                      kind=float, several=True, low=1e-6, high=1e6, metavar="MM")
    isotropic: bool = option(False, "applying", "make voxels cubes of the volume's smallest voxel "
                             "size, in place of --factor")
    known_profile: tuple = option((), "applying", "slice profile of the scans, if it is known: "
                                  "one for all axes, or one per axis (default: estimated from "
                                  "each scan)", kind=str, several=True, choices=PROFILES,
                                  flag="profile")
    adapt: bool | None = option(None, "applying", "fine-tune the filters on each scan itself: "
                                "recommended for other weightings than T1 (default: on for thick "
                                "slices, otherwise off)", kind=bool, switch=True)
    blend_threshold: int | None = option(None, "applying", "keep the initial estimate of a voxel "
                                         "if more than N of its 26 neighbours change from darker "
                                         "to brighter than the voxel, or the reverse (census "
                                         "blend); 10 if no number is given", kind=int, low=0,
                                         high=26, bare=10)
    test_profile: tuple = option(("box", "kspace"), "applying", "slice profiles to degrade test "
                                 "volumes with, one after another; that of --profile, if it is "
                                 "one for all axes (evaluation of preset scan)",
                                 kind=str, several=True, choices=PROFILES)
    test_noise: tuple = option((0.0, 3.0), "applying", "noise levels that are added to test "
                               "volumes, in per cent (evaluation of preset scan)", kind=float,
                               several=True, low=0, high=50)
    tissue: bool = option(False, "applying", "compare three-class segmentations of the volumes "
                          "with that of the original: Dice, volumes (evaluation of preset scan)")
    dtype: str = option("float32", "applying", "data type of the restored volumes; same keeps the "
                        "input's type and scaling", choices=("float32", "same"))
    output: str = option("", "applying", "name of the restored volume, for a run that restores "
                         "one volume", metavar="FILE")
    overwrite: bool = option(False, "applying", "replace an existing output file, even if test.py "
                             "did not write it or it was changed since")
    suffix: str = option("", "applying", "text between a volume's name and .nii in the name of "
                         "its result", metavar="TEXT")
    report: bool = option(True, "applying", "write pictures, a page to open in a browser and a "
                          "JSON record beside the restored volumes", switch=True)

    quiet: bool = option(False, "output", "print warnings and errors only, no progress",
                         switch=True)
    # Options of the computation. They do not change the filters, except for rounding.
    device: str = option("auto", "running", "device to compute on: auto takes a GPU if CuPy finds "
                         "one, else the CPU", choices=DEVICES)
    restart: bool = option(False, "running", "discard the sums of an earlier training in "
                           "--arrays_dir, and start from the beginning")
    checkpoint_minutes: float = option(5.0, "running", "shortest time between two saves of the "
                                       "sums, in minutes; this time is also at least ten times "
                                       "the duration of a save", low=0, high=1e6)
    max_memory: float | None = option(None, "running", "limit of the memory to use, in GB "
                                      "(default: 90 % of the free memory)", kind=float, low=0,
                                      high=1e6)
    scheduler: str = option("", "running", "address of the scheduler of a Dask cluster, whose "
                            "workers sum samples or restore volumes; local:N starts N processes "
                            "on this machine", metavar="ADDRESS")
    tls: tuple = option((), "running", "three PEM files (certificate authority, this command's "
                        "certificate and its key) for a --scheduler at tls://...", kind=str,
                        several=True, metavar="PEM")

    # Folders.
    train_dir: str = option("train", "folders", "folder of volumes to learn from (.nii, .nii.gz), "
                            "or one file")
    test_dir: str = option("test", "folders", "folder of volumes to restore, or one file")
    include: tuple = option((), "folders", "use only volumes of a folder whose name or path "
                            "matches one of these patterns, such as \"*_T1w.nii.gz\" (default: "
                            "all; of a BIDS dataset its T1w)", kind=str, several=True,
                            metavar="PATTERN")
    exclude: tuple = option((), "folders", "leave out volumes whose name or path matches one of "
                            "these patterns", kind=str, several=True, metavar="PATTERN")
    mask: str = option("", "folders", "brain masks of whole-head volumes: auto finds them by BIDS "
                       "names and other common names; otherwise a path relative to the volume's "
                       "folder, such as \"masks/{name}.nii.gz\", with wildcards. Training and "
                       "evaluation use the voxels inside; upscaling restores the whole head but "
                       "estimates noise and blur inside", metavar="PATTERN")
    arrays_dir: str = option("arrays", "folders", "folder of the learned filters")
    result_dir: str = option("result", "folders", "folder of the results; each run writes into a "
                             "folder <MMDDHH>/ in it")
    into: str = option("", "folders", "folder of the results, instead of a new one in "
                       "--result_dir; later, the same command restores only volumes that are new",
                       metavar="FOLDER")

    @classmethod
    def of(cls, **values: Any) -> "Request":
        """A request from options of the method and of the run, by name.

        Examples
        --------
        >>> Request.of(factor=(1, 1, 4), upscale=True).method.tag
        '1x1x4'
        """
        return cls().but(**values)

    def value(self, name: str) -> Any:
        """The value of an option of the method or of the run."""
        return getattr(self.method if name in METHOD_NAMES else self, name)

    def but(self, **values: Any) -> "Request":
        """The request with other values of options of the method or of the run."""
        method = {name: values.pop(name) for name in METHOD_NAMES & set(values)}
        return dataclasses.replace(self, method=dataclasses.replace(self.method, **method),
                                   **values)

    def as_dict(self) -> dict[str, Any]:
        """All options by name, for the JSON record of a result."""
        return {entry.name: self.value(entry.name) for entry in OPTIONS}

    def with_whole_paths(self, *names: str) -> "Request":
        """The request with these paths absolute, for workers that may run in other folders."""
        paths = {name: os.path.abspath(path) for name in names if (path := getattr(self, name))}
        return dataclasses.replace(self, **paths)


OPTIONS = [entry for kind in (Method, Request) for entry in dataclasses.fields(kind)
           if "group" in entry.metadata]
OPTION = {entry.name: entry for entry in OPTIONS}
METHOD_NAMES = {entry.name for entry in dataclasses.fields(Method)}


def tag_of(factor: Sequence[int]) -> str:
    """The factor in file names."""
    return str(factor[0]) if len(set(factor)) == 1 else "x".join(map(str, factor))
