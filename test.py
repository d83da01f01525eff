"""Restore volumes with learned filters: degrade good ones to see how near one comes, or upscale low-resolution ones.

    python test.py                               test/*.nii.gz -> result/<MMDDHH>/, metrics.csv beside them
    python test.py --upscale --test_dir scan.nii.gz --output scan_fine.nii.gz
    python test.py --help

Figures are over the brain. They are given for the LR volume, for the best plain spline from the same low-resolution
volume, and for the restored volume: the one to beat is the spline. What is upscaled has no original, so no figures.
"""
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filter_constant import CannotWrite, UserError, complain, run, start_name


def restore(settings, given):
    """Restore all volumes of the test folder; returns the exit status."""
    # Imported here: numba and nibabel take a second, which --help and a typing error need not wait for.
    from device import choose_cards
    from util import about_filters, load_filters, progress, write_metrics
    from volumes import companions, find_volumes, relative_name, target_paths

    filters, settings = load_filters(settings, given)
    volumes = find_volumes(settings.test_dir)
    folder = Path(settings.output).parent if settings.output else Path(settings.result_dir, time.strftime("%m%d%H"))
    targets = target_paths(volumes, folder, settings)
    print(about_filters(settings))
    card = next(iter(choose_cards(settings, most=1)), None)
    print_head(len(volumes), settings)
    rows, viewers, failed = [], [], 0
    with progress(len(volumes), "restoring", "volume", settings.quiet) as bar:
        for path, target, beside in zip(volumes, targets, companions(targets), strict=True):
            bar.set_description(path.name[:32])
            try:
                row, views, record = (upscale_one if settings.upscale else restore_one)(path, target, filters, settings, card)
            except CannotWrite:
                raise
            except UserError as fault:
                bar.clear()
                complain("test", fault)
                failed += 1
            else:
                row["volume"] = relative_name(path, settings.test_dir)
                rows.append(row)
                if not settings.upscale:
                    write_metrics(folder / "metrics.csv", rows)  # each time: it never lacks more than the volume at hand
                bar.write(line(row))
                if settings.report:
                    viewers.append(look(path, beside, views, record, len(volumes), settings))
            bar.update()
    if not rows:
        return 2
    if not settings.upscale and len(rows) > 1:
        print(line(mean_row(rows)))
    if settings.report:
        write_page(folder / "report.html", rows, viewers, settings)
    also = [] if settings.upscale else ["metrics.csv"]
    print(f"Restored volumes{' and metrics.csv' * len(also)} are in {folder}")
    if settings.report:
        print(f"Look at them in a browser: {folder / 'report.html'}", flush=True)
    if failed:
        complain("test", f"{failed} of {len(volumes)} volumes could not be restored, see above")
    return 1 if failed else 0


def restore_one(path, target, filters, settings, card=None):
    """Degrade, restore and write one volume; returns its row of figures, what to look at and how long each stage took."""
    from files import make_folder
    from get_lar import best_spline, make_pair
    from restore import restore
    from util import Stages, brain_mask, figures_of, metrics_row
    from volumes import read_volume, uncrop, write_volume

    stages = Stages()
    with stages("read"):
        volume = read_volume(path)
    with stages("degrade and interpolate"):
        try:
            pair = make_pair(volume.data, settings)
        except ValueError as fault:
            raise UserError(f"{path}: {fault}") from fault
    with stages("restore"):
        sr = restore(pair, filters, settings, card)
    with stages("write"):
        make_folder(target.parent)
        write_volume(target, uncrop(sr, pair, volume.data.shape), volume.image, dtype=settings.dtype)
    with stages("figures"):
        spline = best_spline(pair, settings)
        mask = brain_mask(pair)
        row = metrics_row(path.name, mask.sum(), figures_of(pair.hr, {"lr": pair.lr, "spline5": spline, "sr": sr}, mask))
    return row, ({"HR": pair.hr, "Spline": spline, "Restored": sr}, volume.image.affine), stages


def upscale_one(path, target, filters, settings, card=None):
    """Bring one low-resolution volume, or each of a series, to the finer grid; returns as `restore_one` does."""
    import numpy as np

    from files import make_folder
    from get_lar import beside, fine_to_low
    from restore import upscale
    from util import Stages, progress
    from volumes import finer_header, read_series, write_volume

    stages = Stages()
    with stages("read"):
        volume = read_series(path)
        series = volume.data.reshape(*volume.data.shape[:3], -1)
    if series.min() < 0:
        complain("test", f"{path}: voxels below zero are taken as background")
    alone = series.shape[3] == 1
    with stages("restore"), progress(series.shape[3], "series", "volume", settings.quiet or alone) as bar:
        try:
            fine = []
            for low in np.moveaxis(series, -1, 0):
                fine.append(upscale(np.ascontiguousarray(low), filters, settings, card))
                bar.update()
        except ValueError as fault:
            raise UserError(f"{path}: {fault}") from fault
    fine = np.stack(fine, axis=-1).reshape(*fine[0].shape, *volume.data.shape[3:])
    with stages("write"):
        header = finer_header(volume.image, fine.shape, fine_to_low(series.shape[:3], settings))
        make_folder(target.parent)
        write_volume(target, fine, volume.image, header, settings.dtype)
    row = {"volume": path.name, "from": volume.data.shape, "to": fine.shape,
           "voxel_mm": tuple(round(float(size), 4) for size in header.get_zooms()[:3]), "seconds": stages.seconds["restore"]}
    return row, (beside(series[..., 0], fine.reshape(*fine.shape[:3], -1)[..., 0], settings), header.get_best_affine()), stages


def look(path, beside, views, stages, volumes, settings):
    """Write a volume's picture and its JSON file under the name `beside`; returns its viewer for the page."""
    from files import write_whole
    from pictures import picture
    from report import viewer
    from util import sidecar
    from volumes import relative_name

    with stages("picture and viewer"), ThreadPoolExecutor(1) as aside:  # one draws while the other packs slices
        drawn = aside.submit(picture, *views, compare=not settings.upscale)
        shown = viewer(relative_name(path, settings.test_dir), *views, volumes)
        write_whole(beside.with_name(f"{beside.name}.png"), drawn.result())
    write_whole(beside.with_name(f"{beside.name}.json"), sidecar(path, stages, settings))
    return shown


def write_page(path, rows, viewers, settings):
    """Write the page with all figures and viewers."""
    from files import write_whole
    from report import page
    from util import about_run

    write_whole(path, page(about_run(settings, sys.argv), rows, viewers))


def print_head(volumes, settings):
    """What is done, and the heads of the columns."""
    heads = f"{'':32} {start_name(settings.start):>16} {'spline':>16} {'restored':>16}  gain over spline"
    print(f"{'Upscaling' if settings.upscale else 'Restoring'} {volumes} volume{'s' * (volumes > 1)} of {settings.test_dir}, "
          f"x{settings.tag}" + ("" if settings.upscale else f"; PSNR in dB and SSIM over the brain\n{heads}"), flush=True)


def line(row):
    """One line of the table of figures, or of what was upscaled."""
    if "to" in row:
        return (f"{row['volume'][:32]:32} {'x'.join(map(str, row['from']))} -> {'x'.join(map(str, row['to']))} voxels of "
                f"{' x '.join(f'{size:g}' for size in row['voxel_mm'])} mm, {row['seconds']:.1f} s")
    cells = "".join(f" {row[f'{image}_psnr']:8.2f} {row[f'{image}_ssim']:.4f} " for image in ("lr", "spline5", "sr"))
    return f"{row['volume'][:32]:32}{cells} {row['gain_over_spline']:+.2f}"


def mean_row(rows):
    """The mean of each figure."""
    return {"volume": "mean"} | {key: sum(row[key] for row in rows) / len(rows) for key in rows[0] if key != "volume"}


if __name__ == "__main__":
    sys.exit(run("test", restore))
