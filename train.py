"""Learn filters from high-resolution volumes.

    python train.py                              train/*.nii.gz -> arrays/h_2.npy
    python train.py --factor 3 --train_dir hcp   ... for a factor of 3, from another folder
    python train.py --restart                    ... from the beginning, whatever was learned before
    python train.py --help

Each volume is degraded and interpolated back; every sampled voxel's patch of that LR volume, together with the HR voxel
at its centre, goes into the Gram matrix of the voxel's bucket; at the end each bucket is solved for its filter.

What was summed is kept in arrays/QVF_2/: a training that was stopped or killed goes on from there, and so does one whose
folder has got more volumes.
"""
import sys
import time

from filter_constant import QUANTIZATION_PATCHES, CannotWrite, UserError, complain, run

FEATURES = ("azimuth", "inclination", "strength", "coherence")  # in the order of Settings.classes


def learn(settings, given):
    """Learn from all volumes of the training folder; returns the exit status."""
    # Imported here: numba and nibabel take a second, which --help and a typing error need not wait for.
    from checkpoint import Checkpoint, only_training, stopped
    from matrix_compute import solve_groups
    from util import find_volumes, progress, save_filters

    started = time.perf_counter()
    volumes = find_volumes(settings.train_dir, settings.train_file_max)
    print(f"Learning x{settings.tag} filters from {len(volumes)} volume{'s' * (len(volumes) > 1)} in {settings.train_dir}",
          flush=True)
    with only_training(settings.arrays_dir):
        checkpoint = Checkpoint(settings)
        if settings.restart:
            checkpoint.clear()
        resumed = checkpoint.find()
        plan = lay_out(volumes, checkpoint, settings)
        if resumed:
            resume(checkpoint, volumes, settings)
        else:
            begin(checkpoint, volumes, settings)
        gram, failed, signal = sum_samples(checkpoint, volumes, plan, settings)
        if signal:
            return stopped(signal, checkpoint)
        if partly := checkpoint.names()[1]:
            raise UserError(f"{', '.join(sorted(partly))}: summed for some buckets only; run the same command again")
        counts = [part.count for part in checkpoint.groups(plan.passes, gram)]
        samples, used = sum(int(count.sum()) for count in counts), sum(int((count > 0).sum()) for count in counts)
        if not samples:
            raise UserError(f"{settings.train_dir}: no voxel in it could be learned from; put volumes of brains in")
        with progress(used, "solving", "bucket", settings.quiet) as bar:
            h = solve_groups(checkpoint.groups(plan.passes, gram), settings, bar.update)
        save_filters(h, checkpoint.boundaries, settings, sorted(checkpoint.names()[0]))
        write_pictures(h, counts, settings)
    print(f"{settings.buckets} filters of {settings.filter_len}^3 voxels from {samples:,} samples in "
          f"{time.perf_counter() - started:.0f} s; {settings.buckets - used} buckets saw no sample "
          f"and are served by their nearest.\nThey are in {settings.arrays_dir}; look at filters_{settings.tag}.png and "
          f"samples_{settings.tag}.png there. Next: {next_command(settings)}\n"
          f"The sums ({checkpoint.bytes_on_disk() / 1e9:.2f} GB) stay in {checkpoint.folder}: with more volumes in "
          f"{settings.train_dir}, the same command goes on. Delete that folder if none will come.", flush=True)
    if failed:
        complain("train", f"{len(failed)} of {len(volumes)} volumes could not be used, see above")
    return 1 if failed else 0


def next_command(settings):
    """What applies these filters, as one would type it."""
    words = ["python test.py"]
    if settings.tag != "2":
        words.append(f"--factor {settings.tag.replace('x', ' ')}")
    if settings.arrays_dir != "arrays":
        words.append(f'--arrays_dir "{settings.arrays_dir}"')
    return " ".join(words)


def lay_out(volumes, checkpoint, settings):
    """Plan the memory, and say how."""
    from memory import describe, memory_budget, plan_passes
    from util import largest_volume

    plan = plan_passes(settings, largest_volume(volumes), memory_budget(settings.max_memory), checkpoint.step)
    print(describe(plan), flush=True)
    return plan


def resume(checkpoint, volumes, settings):
    """Go on with what an earlier run summed, if the volumes in it are still the same, and say what was found."""
    checkpoint.compare(volumes, settings.train_dir)
    done, partly = checkpoint.names()
    print(f"Going on from {checkpoint.folder}: {len(done)} of {len(volumes)} volumes are summed"
          + (f", {len(partly)} in part" if partly else ""), flush=True)


def begin(checkpoint, volumes, settings):
    """Find the boundaries, and begin a checkpoint with them."""
    from checkpoint import fingerprint

    boundaries, sources = find_boundaries(volumes, settings)
    checkpoint.begin(boundaries, [fingerprint(path, settings.train_dir) for path in sources])


def sum_samples(checkpoint, volumes, plan, settings):
    """Add the samples of all volumes to the Gram matrices, saving now and then.

    Returns
    -------
    gram : Gram
        Of the last pass: all there is, where there is one pass.
    failed : set of Path
        Volumes that could not be used.
    signal : int or None
        What stopped it before the end.
    """
    from checkpoint import Stop, fingerprint
    from matrix_compute import accumulate
    from util import progress, relative_name

    failed, gram = set(), None
    with Stop() as stop:
        for turn, buckets in enumerate(plan.passes, 1):
            del gram  # before the next is made: the two would not fit
            gram = checkpoint.load(buckets)
            for number, path in enumerate(volumes, 1):
                if stop.asked or path in failed:
                    continue
                begun, before, name = time.perf_counter(), gram.count.sum(), relative_name(path, settings.train_dir)
                try:
                    record = fingerprint(path, settings.train_dir)
                    wanted = checkpoint.lacking(buckets, record)
                    if wanted is None:
                        continue
                    pair = read_pair(path, settings)
                except UserError as fault:
                    complain("train", fault)
                    failed.add(path)
                    continue
                with progress(None, path.name, "sample", settings.quiet) as bar:
                    accumulate(gram, pair, checkpoint.boundaries, settings, name, bar.update, wanted)
                checkpoint.add(wanted, record)
                del pair
                print(f"[{number}/{len(volumes)}] {f'pass {turn}, ' * (len(plan.passes) > 1)}{name}: "
                      f"{gram.count.sum() - before:,} samples, {time.perf_counter() - begun:.1f} s", flush=True)
                if checkpoint.due():
                    save(checkpoint, gram, plan)
            save(checkpoint, gram, plan)
            if stop.asked:
                break
    return gram, failed, stop.asked


def save(checkpoint, gram, plan):
    """Save the sums. A disk too full for them stops a training only where the next pass needs their memory."""
    from util import progress

    try:
        with progress(int((gram.count > 0).sum()), "saving the sums", "bucket", checkpoint.settings.quiet) as bar:
            checkpoint.save(gram, bar.update)
    except CannotWrite as fault:
        if len(plan.passes) > 1:
            raise
        complain("train", f"not saved, going on without: {fault}")
        checkpoint.postpone()


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
    """Boundaries of the strength and coherence classes, from the first volumes; and which volumes these were."""
    import numpy as np

    from hashtable import Boundaries, features, interior_voxels, quantile_boundaries, sample_voxels
    from util import progress, relative_name

    strength, coherence, seen, sources, faults = [], [], 0, [], []
    with progress(len(volumes), "class boundaries", "volume", settings.quiet) as bar:
        for path in volumes:
            try:
                pair = read_pair(path, settings)
            except UserError as fault:
                faults.append(fault)  # said when its turn to be learned from comes
                continue
            voxels = sample_voxels(interior_voxels(pair.lr != 0, settings.margin), settings.quantization_rate, settings.seed,
                                   f"{relative_name(path, settings.train_dir)} boundaries")
            found = features(pair.lr, voxels, settings)
            strength.append(found.strength)
            coherence.append(found.coherence)
            seen += voxels.size
            sources.append(path)
            bar.update()
            if seen > QUANTIZATION_PATCHES:
                break
    if not seen:
        for fault in faults:
            complain("train", fault)
        raise UserError(f"{settings.train_dir}: no volume in it can be learned from; put volumes of brains in")
    _, _, *classes = settings.classes
    return Boundaries(*(quantile_boundaries(np.concatenate(values), n)
                        for values, n in zip((strength, coherence), classes, strict=True))), sources


def write_pictures(h, counts, settings):
    """Leave pictures of the filters and of the samples per bucket beside the filters."""
    from pathlib import Path

    import numpy as np

    from report import picture_counts, picture_filters
    from util import write_whole

    folder = Path(settings.arrays_dir)
    write_whole(folder / f"filters_{settings.tag}.png", picture_filters(h, settings.classes, FEATURES))
    write_whole(folder / f"samples_{settings.tag}.png", picture_counts(np.concatenate(counts), settings.classes, FEATURES))


if __name__ == "__main__":
    sys.exit(run("train", learn))
