"""Measure the speed and memory of all steps, with reference computations in the same run.

    python bench.py                         the volume in test/ (see sample.py), or a synthetic one
    python bench.py --volume brain.nii.gz   another volume
    python bench.py --json                  one JSON object instead of the table
    python bench.py --quick                 one run only: a rough estimate, not for comparisons

Machines differ, and may be busy with other work. So the results to compare are ratios of times that
were measured close together: restoring against scipy.ndimage.zoom, learning against a matrix
product, solving against a Cholesky factorisation. Each run gives one ratio of each kind; the report
gives the median over the runs. Steps are measured on the volume at its own size, and tiled to 2 and
4 times its number of voxels. train.py and test.py are also measured as whole processes on the
volume, and test.py on the volume of 4 times the voxels.
"""
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from filter_constant import OPTION, Method, Request
from machine.bench_figures import ratios, spread, table
from machine.errors import UserError, run
from machine.option_fields import OneLineParser, fault_of

SIZES = {"1x": (1, 1, 1), "2x": (2, 1, 1), "4x": (2, 2, 1)}  # repeats along each axis
ROWS = 4096  # rows of the matrices that sgemm multiplies
HERE = Path(__file__).resolve().parent


def main():
    # Imported here and in the functions below, so that --help does not wait for numba and scipy.
    from machine.measure import machine, medians
    from machine.sources import PACKAGES

    options = command_line()
    grad_len = min(options.filter_len, Method.grad_len)
    method = replace(Method(), filter_len=options.filter_len, grad_len=grad_len)

    def say(*words):
        if not options.json:
            print(*words, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        folder = Path(folder)
        image, what = volume_to_measure(options.volume, method)
        paths = {size: save(image, repeats, folder / size / "brain.nii.gz")
                 for size, repeats in SIZES.items()}
        say("compiling ...")
        small = save(made_up_brain((40, 40, 40)), (1, 1, 1), folder / "small" / "brain.nii.gz")
        measure_volume(small, replace(method, q_angle_p=1, q_angle_t=1),
                       folder / "restored.nii.gz", 1)
        runs = []
        for number in range(options.runs):
            say(f"run {number + 1} of {options.runs} ...")
            runs.append(measure(paths, method, folder))
        say("whole processes ...")
        processes = measure_processes(paths, method, folder)
    report = {"volume": what, "machine": machine((*PACKAGES, "isal")),
              "settings": asdict(method), "runs": options.runs,
              "ratios": ratios(runs, processes), "spread": spread(runs), "seconds": medians(runs),
              "processes": processes}
    print(json.dumps(report, indent=1) if options.json else table(report))
    return 0


def command_line():
    """Read the options."""
    parser = OneLineParser(prog="bench.py",
                           description="Measure speed and memory, with references.")
    parser.add_argument("--volume", metavar="PATH", help="NIfTI volume of a brain (default: the "
                        "first in test/, else a synthetic one)")
    parser.add_argument("--runs", type=int, default=5, metavar="N",
                        help="number of timed runs (default: 5)")
    parser.add_argument("--quick", action="store_true", help="time one run only")
    parser.add_argument("--json", action="store_true",
                        help="print one JSON object instead of the table")
    parser.add_argument("--filter_len", type=int, default=Method.filter_len, metavar="N",
                        help="side of the patch, in voxels (default: %(default)s)")
    options = parser.parse_args()
    if fault := fault_of(OPTION["filter_len"], options.filter_len):
        parser.error(f"argument --filter_len: {fault}")
    if options.runs < 1:
        parser.error("argument --runs: must be at least 1")
    options.runs = 1 if options.quick else options.runs
    return options


def volume_to_measure(path, method):
    """The volume of a file, or a synthetic brain if there is none, and a description of it.

    UserError is raised if the method cannot be applied to the volume.
    """
    from get_lar import make_pair  # as in main
    from nifti.study import find_volumes  # as in main
    from nifti.volumes import read_volume  # as in main

    if not path:
        try:
            path = find_volumes(Request.test_dir)[0][0]
        except UserError:
            return made_up_brain(), "synthetic, 181 x 217 x 181 voxels"
    data = read_volume(path).data
    try:
        make_pair(data, method)
    except ValueError as fault:
        raise UserError(f"{path}: {fault}") from fault
    return data, f"{Path(path).name}, {' x '.join(map(str, data.shape))} voxels"


def made_up_brain(shape=(181, 217, 181)):
    """An ellipsoid of smooth noise surrounded by zeros, float32, by default as large as a brain."""
    import numpy as np  # as in main
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    noise = gaussian_filter(noise, 1.5)
    axes = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in shape),
                       indexing="ij", sparse=True)
    inside = sum((axis / 0.8)**2 for axis in axes) < 1
    return np.where(inside, 100 + 500 * noise, 0).astype(np.float32).clip(0)


def save(image, repeats, path):
    """Write the volume, tiled by `repeats` along each axis; returns the path."""
    import nibabel as nib  # as in main
    import numpy as np

    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(np.tile(image, repeats), np.eye(4)), path)
    return path


# -------------------------------------------------------------------------------------------- steps

def measure(paths, method, folder):
    """Time every step and reference at each size: dict of seconds and amounts of work by size."""
    target = folder / "restored.nii.gz"
    return {size: measure_volume(path, method, target, times)
            for (size, path), times in zip(paths.items(), (1, 2, 4), strict=True)}


def measure_volume(path, method, target, times):
    """Time each step on one volume, and the references between the steps.

    The volume is `times` times as large as the original. If this is 1, steps that do not depend on
    the size of the volume are also timed.
    """
    import numpy as np  # as in main
    import scipy.ndimage

    from get_lar import make_pair
    from hashtable import (
        Boundaries,
        buckets_of,
        features,
        interior_voxels,
        quantile_boundaries,
        sample_voxels,
    )
    from machine.measure import Clock
    from matrix_compute import Gram, solve, sorted_samples, sum_rows
    from nifti.volumes import read_volume, write_volume
    from published.apply_filters import filter_voxels
    from util import clip_bright, mod_crop

    clock = Clock()
    volume = clock("read", lambda: read_volume(path))
    image = mod_crop(clip_bright(volume.data), method.factor)
    pair = make_pair(volume.data, method)
    operator = pair.operator
    clock("memory copy", image.copy)
    low = clock("degrade", lambda: operator.degrade(image))
    clock("cubic zoom", lambda: scipy.ndimage.zoom(low, method.factor, order=3))
    clock("interpolate", lambda: operator.interpolate(low))
    voxels = interior_voxels(pair.lr != 0, method.margin)
    found = clock("features", lambda: features(pair.lr, voxels, method))
    boundaries = Boundaries(quantile_boundaries(found.strength, 3),
                            quantile_boundaries(found.coherence, 3))
    bucket = buckets_of(found, boundaries, method)
    h = np.full((method.buckets, method.taps), 1 / method.taps, np.float32)
    sr = clock("apply", lambda: filter_voxels(pair.lr, voxels, bucket, h, method.filter_len))
    clock("write", lambda: write_volume(target, pair.whole(sr), volume.image))
    # The same number of samples is drawn at every size, so that times of learning can be compared.
    drawn = sample_voxels(np.arange(voxels.size), method.sample_rate * times, method.seed,
                          "bench")
    gram = Gram(method.buckets, method.taps)
    gram.packed.fill(0)  # so that the system allocates no memory while the clock runs

    def add_samples():
        samples = sorted_samples(pair, voxels[drawn], bucket[drawn], method.buckets, method)
        sum_rows(gram, samples.ends, samples.fill)

    clock("gather", lambda: gather_all(pair, voxels[drawn], method))
    clock("sgemm", product(method))
    clock("gather and Gram products", add_samples)
    clock("sgemm", product(method))
    if times == 1:
        measure_factorisation(clock, method)
        clock("solve", lambda: solve(gram, method))
        measure_factorisation(clock, method)
    if times != 2:
        measure_stages(clock, volume.data, low, method)
    return clock.seconds | {"voxels": image.size, "restored": voxels.size, "samples": drawn.size,
                            "side": gram.side, "flops": 2 * ROWS * method.taps**2,
                            "buckets": method.buckets}


def gather_all(pair, voxels, method):
    """Gather the patches of voxels, without further use of the patches."""
    import numpy as np  # as in main

    from machine.simd import LANES
    from machine.threads import in_threads, spans
    from matrix_compute import BLOCK, gather
    from published.patches import patch_lines, readable

    lines, side = patch_lines(pair.lr.shape, method.filter_len), method.taps + 1
    lr, hr = readable(pair.lr), pair.hr.reshape(-1)

    def work(span, rows):
        part = voxels[slice(*span)]
        gather(lr, hr, part, *lines, True, rows[:part.size * side].reshape(part.size, side))

    in_threads(spans(voxels.size, BLOCK), work,
               lambda: (np.empty(BLOCK * side + LANES, np.float32),))


def product(method):
    """A function to time as the reference for learning: sgemm, one column per patch voxel."""
    import numpy as np  # as in main

    a, b = np.random.default_rng(0).random((2, ROWS, method.taps), np.float32)
    return lambda: a.T @ b


def measure_factorisation(clock, method):
    """Time the reference for solving: a dpotrf with one row per patch voxel.

    The dpotrf runs in one thread and in all threads; the clock keeps the shorter time.
    """
    import numpy as np  # as in main
    from scipy.linalg.lapack import dpotrf
    from threadpoolctl import threadpool_limits

    for threads in (None, 1) * 3:
        matrix = np.asfortranarray(np.eye(method.taps) + 1 / method.taps)
        with threadpool_limits(threads, "blas"):
            clock("dpotrf", lambda matrix=matrix: dpotrf(matrix, overwrite_a=True, clean=False))


def measure_stages(clock, image, low, method):
    """Time the filters of the presets: one stage of best, all of best, upscaling with scan."""
    from disk.filters import PRETRAINED, load_filters  # as in main
    from get_lar import make_fine, make_pair
    from octahedral.stages import apply_stage, scene_of
    from restoring.steps import restore

    stages, best, *_ = load_filters(Request(method, arrays_dir=str(PRETRAINED)))
    pair = make_pair(image, best)
    clock("start by projections", pair.consistency.start)

    def stage():
        scene = scene_of(pair, pair.lr, best)
        sr = apply_stage(scene, stages[-1], len(stages) - 1, best)
        return pair.consistency.refine(sr, best.back_projections)

    clock("one stage of best", stage)
    clock("all of best", lambda: (pair.consistency.start(), restore(pair, stages, best)))
    scan_stages, scan, *_ = load_filters(Request(method, arrays_dir=str(PRETRAINED / "scan")))

    def upscale():
        fine = make_fine(low, scan)
        return fine.whole(restore(fine, scan_stages, scan))

    clock("upscale, scan", upscale)


# ---------------------------------------------------------------------------------- whole processes

def measure_processes(paths, method, folder):
    """Measure seconds and peak memory of train.py and test.py, also with compilation."""
    from machine.measure import process  # as in main

    option = ["--filter_len", method.filter_len, "--grad_len", method.grad_len]
    folders = ["--arrays_dir", folder / "arrays"]
    learn = ["train.py", "--train_dir", paths["1x"].parent, *folders, *option]
    restore = {size: ["test.py", "--test_dir", paths[size].parent, *folders,
                      "--result_dir", folder / f"result{size}"] for size in ("1x", "4x")}
    found = {"train": process(*learn, cwd=HERE), "test": process(*restore["1x"], cwd=HERE),
             "test 4x": process(*restore["4x"], cwd=HERE)}
    for name, command in (("train", [*learn, "--restart"]), ("test", restore["1x"])):
        found[f"{name}, nothing compiled"] = process(
            *command, cwd=HERE, NUMBA_CACHE_DIR=folder / f"compiled by {name}")
    record = next((folder / "result1x").rglob("brain*.json"))
    return found | {"stages of test": json.loads(record.read_text())["seconds"]}


if __name__ == "__main__":
    sys.exit(run("bench", main))
