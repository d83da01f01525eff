"""Learn filters from high-resolution volumes.

    python train.py                              train/*.nii.gz -> arrays/h_2.npy
    python train.py --factor 3 --train_dir hcp   ... for a factor of 3, from another folder
    python train.py --help

Each volume is degraded and interpolated back; every sampled voxel's patch of that LR volume, together with the HR voxel
at its centre, goes into the Gram matrix of the voxel's bucket; at the end each bucket is solved for its filter.
"""
import sys
import time

from filter_constant import QUANTIZATION_PATCHES, UserError, run

FEATURES = ("azimuth", "inclination", "strength", "coherence")  # in the order of Settings.classes


def learn(settings, given):
    """Learn from all volumes of the training folder; returns the exit status."""
    # Imported here: numba and nibabel take a second, which --help and a typing error need not wait for.
    from matrix_compute import Gram, accumulate, solve
    from util import find_volumes, progress, save_filters

    started = time.perf_counter()
    volumes = find_volumes(settings.train_dir, settings.train_file_max)
    print(f"Learning x{settings.tag} filters from {len(volumes)} volume{'s' * (len(volumes) > 1)} in {settings.train_dir}",
          flush=True)

    boundaries = find_boundaries(volumes, settings)
    gram = Gram(settings.buckets, settings.taps)
    learned, failed = [], []
    for number, path in enumerate(volumes, 1):
        begun = time.perf_counter()
        try:
            pair = read_pair(path, settings)
        except UserError as fault:
            print(f"train.py: {fault}", file=sys.stderr, flush=True)
            failed.append(path)
            continue
        before = gram.count.sum()
        with progress(None, path.name, "sample", settings.quiet) as bar:
            accumulate(gram, pair, boundaries, settings, path.name, bar.update)
        learned.append(path)
        print(f"[{number}/{len(volumes)}] {path.name}: {gram.count.sum() - before:,} samples, "
              f"{time.perf_counter() - begun:.1f} s", flush=True)

    with progress(int((gram.count > 0).sum()), "solving", "bucket", settings.quiet) as bar:
        h = solve(gram, settings, bar.update)
    save_filters(h, boundaries, settings, learned)
    write_pictures(h, gram.count, settings)
    print(f"{settings.buckets} filters of {settings.filter_len}^3 voxels from {gram.count.sum():,} samples in "
          f"{time.perf_counter() - started:.0f} s; {(gram.count == 0).sum()} buckets saw no sample "
          "and are served by their nearest.\n"
          f"They are in {settings.arrays_dir}; look at filters_{settings.tag}.png and samples_{settings.tag}.png there.\n"
          "Next: python test.py", flush=True)
    if failed:
        print(f"train.py: {len(failed)} of {len(volumes)} volumes could not be used, see above", file=sys.stderr)
    return 1 if failed else 0


def read_pair(path, settings):
    """Read a volume and make its LR counterpart; with --sharpen, sharpen the HR side."""
    import dataclasses

    from filter_func import sharpen
    from get_lar import make_pair
    from util import read_volume

    try:
        pair = make_pair(read_volume(path).data, settings)
    except ValueError as fault:
        raise UserError(f"{path}: {fault}") from fault
    return dataclasses.replace(pair, hr=sharpen(pair.hr)) if settings.sharpen else pair


def find_boundaries(volumes, settings):
    """Boundaries of the strength and coherence classes, from the first volumes."""
    import numpy as np

    from hashtable import Boundaries, features, interior_voxels, quantile_boundaries, sample_voxels
    from util import progress

    strength, coherence, seen = [], [], 0
    with progress(len(volumes), "class boundaries", "volume", settings.quiet) as bar:
        for path in volumes:
            try:
                pair = read_pair(path, settings)
            except UserError:
                continue  # said when its turn to be learned from comes
            voxels = sample_voxels(interior_voxels(pair.lr != 0, settings.margin), settings.quantization_rate, settings.seed,
                                   f"{path.name} boundaries")
            found = features(pair.lr, voxels, settings)
            strength.append(found.strength)
            coherence.append(found.coherence)
            seen += voxels.size
            bar.update()
            if seen > QUANTIZATION_PATCHES:
                break
    if not seen:
        raise UserError(f"{settings.train_dir}: no volume in it can be learned from")
    _, _, *classes = settings.classes
    return Boundaries(*(quantile_boundaries(np.concatenate(values), n)
                        for values, n in zip((strength, coherence), classes, strict=True)))


def write_pictures(h, count, settings):
    """Leave pictures of the filters and of the samples per bucket beside the filters."""
    from pathlib import Path

    from report import picture_counts, picture_filters
    from util import write_whole

    folder = Path(settings.arrays_dir)
    write_whole(folder / f"filters_{settings.tag}.png", picture_filters(h, settings.classes, FEATURES))
    write_whole(folder / f"samples_{settings.tag}.png", picture_counts(count, settings.classes, FEATURES))


if __name__ == "__main__":
    sys.exit(run("train", learn))
