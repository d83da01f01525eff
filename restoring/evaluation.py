"""Evaluate filters for scans on simulated scans, for test.py --preset scan.

A high-resolution volume is degraded by a slice profile, noise is added, and the result is masked on
the LR grid. The filters restore it without information from the original. The restored volume is
then compared with the original, by PSNR and by measures of practical use. Three splines and, if
noise was added, a denoiser followed by the quintic spline are compared in the same way.
"""
import contextlib
import itertools
import shutil
from functools import partial

import numpy as np
from skimage.restoration import denoise_nl_means

from degrading.acquisition import make_low, original_of
from degrading.degradation import SliceProfile
from degrading.descriptors import NOISE, head_in_zeros
from degrading.measured_grid import measured_grid
from disk.files import make_folder, read_json, write_json
from disk.metrics import write_metrics
from disk.seal import Seal
from get_lar import make_fine
from machine.errors import UserError, complain, short_names
from machine.progress import progress
from machine.threads import in_threads, in_turn
from nifti.geometry import voxel_sizes_in_mm
from nifti.masks import is_same_input, read_brain
from nifti.volumes import relative_name
from restoring.adaptation import adapt_to_scan, wants_adapting
from restoring.figures_of_use import figures_of_use, regions_of, table_of_use, tissue_figures
from restoring.steps import origin_of, restore
from util import decibel, random_of

FINISHED = ".finished"  # folder with the figures of finished volumes, until the run ends
SPLINES = {"linear": 1, "cubic": 3, "quintic": 5}


def evaluate_scan(image, filters, request, profile, noise, name, engine=None,
                  voxel_size=(1, 1, 1), regions=None):
    """Degrade a volume as a scanner does, restore it, and compare it with the original.

    Parameters
    ----------
    image : ndarray of float32, shape (X, Y, Z)
        The background is 0.
    filters : Filters
    request : Request
    profile : str
        A key of `degrading.slice_profile.PROFILES`.
    noise : float
        Standard deviation of the Rician noise, in per cent of the 99.9 % quantile of intensities.
    name : str
        Name of the volume. The random noise depends on the name.
    engine : engine.CPU or gpu.compute.Cards, optional
    voxel_size : sequence of three float, optional
        Voxel size of the image, in mm. It is used to fine-tune filters for thick slices, and to
        recognise a whole head.
    regions : figures_of_use.Regions, optional
        Regions of the original, in which the measures are computed; by default they are chosen.

    Returns
    -------
    row : dict
        PSNR in dB of each method inside the brain and over the whole brain, and the gains of the
        filters over the best alternative. Also the measures of `figures_of_use` for the original,
        the spline that is best inside, the denoised volume (if noisy), and the restored volume.

    Examples
    --------
    >>> from disk.filters import load_filters
    >>> from filter_constant import Request
    >>> request = Request.of(preset="scan")
    >>> brain = np.pad(np.random.default_rng(0).random((24, 24, 24), np.float32), 8)
    >>> row = evaluate_scan(brain, load_filters(request), request, "box", 3, "brain")
    >>> row["profile"], row["noise"], [name for name in row if "quintic" in name]
    ('box', 3, ['quintic_inside', 'quintic_whole'])
    """
    stages, method = filters.stages, filters.method
    hr = original_of(image, method.factor)
    operator = SliceProfile(hr.shape, method, 3 * (profile,))
    low = make_low(hr, operator, noise / 100, random_of(0, f"{name} {profile} {noise}"))
    if not low.any():
        raise ValueError("when it is degraded, no voxel above zero is left; take another volume, "
                         "or another mask")
    sizes = np.multiply(voxel_size, method.factor)
    inside, known = head_in_zeros(low, sizes), request.known_profile
    if wants_adapting(request, method):
        stages = adapt_to_scan(low, stages, method, sizes, inside, known).stages
    fine = make_fine(low, method, inside, known, voxel_size=sizes)
    found = {spline: operator.spline(low, order) for spline, order in SPLINES.items()}
    if noise:
        clean = denoise_nl_means(low, patch_size=3, patch_distance=4, h=0.8 * noise / 100,
                                 sigma=noise / 100)
        found["denoised"] = operator.spline(clean, SPLINES["quintic"])
    found["restored"] = fine.whole(restore(fine, stages, method, engine))
    for volume in found.values():
        np.clip(volume, 0, 1, out=volume)
    regions = regions or regions_of(hr, voxel_size)
    places = {"inside": regions.inside, "whole": regions.whole}
    row = {"profile": profile, "noise": noise,
           "noise_found": round(100 * float(fine.descriptors[NOISE]) * fine.scale, 2)}
    for place, voxels in places.items():
        if not np.ptp(hr[voxels]):
            raise ValueError("all brain voxels to compare have the same intensity, which any "
                             "method restores; take another volume, or another mask")
        for way, volume in found.items():
            error = np.mean(np.square(volume - hr)[voxels], dtype=np.float64)
            row[f"{way}_{place}"] = round(decibel(error), 3)
        rivals = [row[f"{way}_{place}"] for way in found if way != "restored"]
        row[f"gain_{place}"] = round(row[f"restored_{place}"] - max(rivals), 3)
    row["best_spline"] = max(SPLINES, key=lambda way: row[f"{way}_inside"])
    compared = {"spline": found[row["best_spline"]]} | {
        way: found[way] for way in ("denoised", "restored") if way in found}
    return row | _columns_of_use(compared, regions, request.tissue)


def _columns_of_use(compared, regions, tissue):
    """Measures of practical use, for the original and the volumes in `compared`, by column name."""
    figures = {"original": regions.own} | dict.fromkeys(compared)  # columns in this order

    def measure(way):
        figures[way] = figures_of_use(compared[way], regions)
        if tissue:
            figures[way] |= tissue_figures(compared[way], regions)

    in_threads(list(compared), measure)
    return {f"{way}_{name}": value for way, own in figures.items() for name, value in own.items()}


def evaluate_file(path, filters, request, engine):
    """Evaluate a volume for each pair of --test_profile and --test_noise.

    Parameters
    ----------
    path : Path
    filters, request, engine
        See `evaluate_scan`.

    Returns
    -------
    dict
        "origin": the result of `steps.origin_of`; "rows": the result of `evaluate_volume`.

    Raises
    ------
    UserError
        If the file is not a volume that can be evaluated.
    """
    seal = Seal(path)
    (volume, mask), name = read_brain(path, request.mask), relative_name(path, request.test_dir)
    origin = origin_of(path, seal.digest(), mask)
    masked = {"mask": mask.path.name} if mask else {}
    sizes = voxel_sizes_in_mm(volume.image)
    if not (grid := measured_grid(volume.data)).is_own:
        complain("test", f"{path}: it was interpolated ({grid.in_words(sizes, 'mm')}), so as an "
                         "original it lacks fine detail")
    try:
        rows = evaluate_volume(volume.data, sizes, filters, request, name, engine)
    except ValueError as fault:
        raise UserError(f"{path}: {fault}") from fault
    return {"origin": origin, "rows": [row | masked for row in rows]}


def evaluate_volume(data, voxel_size, filters, request, name, engine=None):
    """Evaluate a volume for each pair of --test_profile and --test_noise.

    Parameters
    ----------
    data : ndarray of float32, shape (X, Y, Z)
        The background is 0.
    voxel_size : ndarray, shape (3,)
        Voxel size of `data`, in mm.
    filters, request, name, engine
        See `evaluate_scan`.

    Returns
    -------
    list of dict
        The volume's name and the row of `evaluate_scan`, for each pair of profile and noise.
    """
    axes = list(filters.axes)
    if known := request.known_profile:
        request = request.but(known_profile=tuple(known[axis] for axis in axes))
    image, sizes = data.transpose(axes), voxel_size[axes]
    regions = regions_of(original_of(image, filters.method.factor), sizes)
    return [{"volume": name} | evaluate_scan(image, filters, request, *cell, name, engine, sizes,
                                             regions)
            for cell in itertools.product(request.test_profile, request.test_noise)]


def evaluate_files(volumes, folder, filters, request, engine, each=in_turn):
    """Evaluate volumes for each pair of --test_profile and --test_noise; returns the exit status.

    The figures are written to metrics.csv in the folder, and a table is printed. `each` processes
    the volumes, here or on a cluster; see `machine.threads.in_turn`.
    """
    make_folder(folder)
    print(f"Degrading {len(volumes)} volume(s) of {request.test_dir} as scanners do, "
          f"x{filters.asked.tag}; PSNR in dB inside the brain\n{'':32} {'profile':>8} {'noise':>6} "
          f"{'best other':>10} {'restored':>9}  gain inside, whole", flush=True)
    kept = {path: folder / FINISHED / f"{number}.json" for number, path in enumerate(volumes)}
    finished = _finished_before(kept, request.mask)
    left, failed = [path for path in volumes if path not in finished], 0
    if finished:
        print(f"{len(finished)} of {len(volumes)} volumes were finished before", flush=True)
    titles = short_names([relative_name(path, request.test_dir) for path in volumes])
    work = partial(evaluate_file, filters=filters, request=request, engine=engine)
    with progress(len(left), "evaluating", "volume", request.quiet) as bar:
        for path, evaluated in each(work, left):
            try:
                found = evaluated()
            except UserError as fault:
                complain("test", fault)
                failed += 1
            else:
                finished[path] = found["rows"]
                make_folder(folder / FINISHED)
                write_json(kept[path], found)
                for row in found["rows"]:
                    bar.write(line(row, titles[row["volume"]]))
            bar.update()
    rows = [row for path in volumes for row in finished.get(path, ())]
    if not rows:
        return 2
    # Rows may lack columns: without noise nothing is denoised, and some measures may be missing.
    columns = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    write_metrics(folder / "metrics.csv", [dict.fromkeys(columns, "") | row for row in rows])
    shutil.rmtree(folder / FINISHED, ignore_errors=True)
    for place in ("inside", "whole"):
        gains = [row[f"gain_{place}"] for row in rows]
        print(f"{place}: {np.mean(gains):+.2f} dB over the best other on average, "
              f"{min(gains):+.2f} at worst")
    for words in table_of_use(rows):
        print(words)
    print(f"The figures are in {folder / 'metrics.csv'}", flush=True)
    if failed:
        complain("test", f"{failed} of {len(volumes)} volumes could not be evaluated, see above")
    return 1 if failed else 0


def _finished_before(kept, mask):
    """Rows of the volumes that an interrupted run has finished: a dict by path.

    A volume is left out if its file or its mask has changed since then.
    """
    found = {}
    for path, file in kept.items():
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            about = read_json(file)
            if is_same_input(about["origin"], path, mask):
                found[path] = about["rows"]
    return found


def line(row, name):
    """One line of the printed table; `name` is the short name of the volume."""
    best = row["restored_inside"] - row["gain_inside"]
    return (f"{name:32} {row['profile']:>8} {row['noise']:5g}% {best:10.2f} "
            f"{row['restored_inside']:9.2f}  {row['gain_inside']:+.2f}, {row['gain_whole']:+.2f}")
