"""Degrade high-resolution volumes, restore them with learned filters, and say how near the restored come.

    python test.py                               test/*.nii.gz -> result/<MMDDHH>/, metrics.csv beside them
    python test.py --test_dir mine --arrays_dir filters
    python test.py --help

Figures are over the brain. They are given for the LR volume, for the best plain spline from the same low-resolution
volume, and for the restored volume: the one to beat is the spline.
"""
import sys
import time
from pathlib import Path

from filter_constant import CannotWrite, UserError, complain, run


def restore(settings, given):
    """Restore all volumes of the test folder; returns the exit status."""
    # Imported here: numba and nibabel take a second, which --help and a typing error need not wait for.
    import numpy as np

    from util import find_volumes, load_filters, make_folder, relative_name, write_metrics

    h, boundaries, settings = load_filters(settings, given)
    volumes = find_volumes(settings.test_dir)
    folder = Path(settings.result_dir, time.strftime("%m%d%H"))
    make_folder(folder)
    print(f"Restoring {len(volumes)} volume{'s' * (len(volumes) > 1)} of {settings.test_dir}, x{settings.tag}; "
          "PSNR in dB and SSIM over the brain\n"
          f"{'':32} {'LR':>16} {'spline':>16} {'restored':>16}  gain over spline", flush=True)
    rows, failed = [], 0
    for path in volumes:
        name = relative_name(path, settings.test_dir)
        try:
            rows.append({**restore_one(path, folder / name, h, boundaries, settings), "volume": name})
        except CannotWrite:
            raise
        except UserError as fault:
            complain("test", fault)
            failed += 1
        else:
            write_metrics(folder / "metrics.csv", rows)  # each time: it never lacks more than the volume at hand
            print_row(rows[-1])
    if not rows:
        return 2
    if len(rows) > 1:
        print_row({"volume": "mean"} | {key: np.mean([row[key] for row in rows]) for key in rows[0] if key != "volume"})
    print(f"Restored volumes and metrics.csv are in {folder}", flush=True)
    if failed:
        complain("test", f"{failed} of {len(volumes)} volumes could not be restored, see above")
    return 1 if failed else 0


def restore_one(path, target, h, boundaries, settings):
    """Degrade, restore and write one volume; returns its row of figures."""
    from filter_func import census_blend
    from get_lar import best_spline, make_pair
    from matrix_compute import apply_filters
    from util import brain_mask, figures, make_folder, metrics_row, read_volume, uncrop, write_volume

    if target.exists() and target.samefile(path):
        raise UserError(f"{path}: the result would overwrite it; give another --result_dir")
    volume = read_volume(path)
    try:
        pair = make_pair(volume.data, settings)
        sr = apply_filters(pair.lr, h, boundaries, settings)
        if settings.blend_threshold is not None:
            sr = census_blend(pair.lr, sr, settings.blend_threshold)
        spline = best_spline(pair, settings)
        mask = brain_mask(pair.hr, settings.margin)
        row = metrics_row(path.name, mask.sum(), {name: figures(pair.hr, estimate, mask)
                                                  for name, estimate in (("lr", pair.lr), ("spline5", spline), ("sr", sr))})
    except ValueError as fault:
        raise UserError(f"{path}: {fault}") from fault
    make_folder(target.parent)
    write_volume(target, uncrop(sr, pair, volume.data.shape), volume.image)
    return row


def print_row(row):
    """One line of the table of figures."""
    cells = "".join(f" {row[f'{image}_psnr']:8.2f} {row[f'{image}_ssim']:.4f} " for image in ("lr", "spline5", "sr"))
    print(f"{row['volume'][:32]:32}{cells} {row['gain_over_spline']:+.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(run("test", restore))
