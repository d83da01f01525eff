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
import contextlib
import math
import sys
import time
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from filter_constant import QUANTIZATION_PATCHES, CannotWrite, UserError, complain, run

FEATURES = ("azimuth", "inclination", "strength", "coherence")  # in the order of Settings.classes


def learn(settings, given):
    """Learn from all volumes of the training folder; returns the exit status."""
    # Imported here: numba and nibabel take a second, which --help and a typing error need not wait for.
    from interrupt import only_training, stopped
    from util import save_filters
    from volumes import find_volumes

    started = time.perf_counter()
    volumes = find_volumes(settings.train_dir, settings.train_file_max)
    print(f"Learning x{settings.tag} filters from {len(volumes)} volume{'s' * (len(volumes) > 1)} in {settings.train_dir}",
          flush=True)
    with only_training(settings.arrays_dir):
        learned = (learn_stages if settings.feature_space == "octahedral" else learn_buckets)(volumes, settings)
        if learned.signal:
            return stopped(learned.signal, learned.checkpoint)
        save_filters(learned.filters, settings, sorted(learned.checkpoint.names()[0]))
        write_pictures(learned, settings)
    print(f"{learned.summary} in {time.perf_counter() - started:.0f} s.\n"
          f"They are in {settings.arrays_dir}; look at filters_{settings.tag}.png and samples_{settings.tag}.png there. "
          f"Next: {next_command(settings)}\n"
          f"The sums stay in {Path(settings.arrays_dir, f'QVF_{settings.tag}')}*: with more volumes in {settings.train_dir}, "
          "the same command goes on. Delete them if none will come.", flush=True)
    if learned.failed:
        complain("train", f"{len(learned.failed)} of {len(volumes)} volumes could not be used, see above")
    return 1 if learned.failed else 0


class Learned(NamedTuple):
    """What a training ends with; only `checkpoint`, `failed` and `signal` where it was stopped."""

    checkpoint: object
    failed: set  # volumes that could not be used
    signal: int | None
    filters: object = None
    counts: object = None  # samples of each bucket or, per stage, of each leaf
    summary: str = ""


class OnCpu:
    """How samples get into the sums: on the CPU, one volume after another. `gpu_compute.CardSums` is its like for GPUs.

    Parameters
    ----------
    accumulate : callable
        As `matrix_compute.accumulate`.
    """

    ahead = 0  # so many more volumes are worked on, and in memory, beside the one whose turn it is

    def __init__(self, accumulate):
        self.accumulate = accumulate

    def prepare(self, pair, classes, settings, name, wanted):
        """What of a volume can be done before its `place` is free."""
        return pair

    def place(self):
        """The context in which one volume is summed; it gives what has the method `accumulate`."""
        return contextlib.nullcontext(self)

    def settled(self, gram):
        """The context in which no volume is half summed, and `gram` has all of those that are."""
        return contextlib.nullcontext()


def learn_buckets(volumes, settings):
    """The published structure: sum the samples of each bucket of the spherical feature space, solve for its filter."""
    import numpy as np

    from checkpoint import Checkpoint
    from device import choose_cards
    from gpu_compute import CardSums, ridge_filters
    from matrix_compute import Filters, accumulate, solve_groups
    from util import progress

    cards = choose_cards(settings)
    adding = CardSums(cards) if cards else OnCpu(accumulate)
    checkpoint = Checkpoint(settings)
    if settings.restart:
        checkpoint.clear()
    resumed = checkpoint.find()
    plan = lay_out(volumes, checkpoint, settings, adding.ahead)
    if resumed:
        resume(checkpoint, volumes, settings)
    else:
        begin(checkpoint, *find_boundaries(volumes, settings), settings)
    gram, failed, signal = sum_samples(checkpoint, volumes, plan, settings, adding)
    if signal:
        return Learned(checkpoint, failed, signal)
    counts = np.concatenate([part.count for part in checkpoint.groups(plan.passes, gram)])
    demand_samples(checkpoint, counts, settings)
    used = int((counts > 0).sum())
    with progress(used, "solving", "bucket", settings.quiet) as bar:
        h = solve_groups(checkpoint.groups(plan.passes, gram), settings, bar.update,
                         partial(ridge_filters, cards[0]) if cards else None)
    return Learned(checkpoint, failed, None, Filters(h, checkpoint.classes), counts,
                   f"{settings.buckets} filters of {settings.filter_len}^3 voxels from {counts.sum():,} samples "
                   f"({settings.buckets - used} buckets saw none and are served by their nearest)")


def learn_stages(volumes, settings):
    """Stages in the octahedral space: each grows a tree, sums the samples of its leaves, solves for their filters."""
    from checkpoint import Checkpoint, Sums
    from device import choose_cards
    from memory import Plan, describe, memory_budget, plan_stages
    from stages import Stage, accumulate_stage, digest, solve_stage, stage_taps
    from tree import read_tree
    from volumes import largest_volume

    choose_cards(settings)  # the CPU, and why
    print(describe(plan_stages(settings, largest_volume(volumes), memory_budget(settings.max_memory))), flush=True)
    stages, counts, failed = [], [], set()
    for number in range(settings.stages):
        taps = sum(map(len, stage_taps(number, settings)))
        checkpoint = Checkpoint(settings, Sums(f"QVF_{settings.tag}_stage{number + 1}", read_tree,
                                               lambda tree, taps=taps: (2 * tree.leaves, taps), digest(stages)))
        if settings.restart:
            checkpoint.clear()
        if checkpoint.find():
            resume(checkpoint, volumes, settings)
        else:
            begin(checkpoint, *find_tree(volumes, stages, settings), settings)
        tree = checkpoint.classes
        gram, faulty, signal = sum_samples(checkpoint, volumes, Plan([range(checkpoint.buckets)], 0, 0), settings,
                                           OnCpu(partial(accumulate_stage, stages)))
        failed |= faulty
        if signal:
            return Learned(checkpoint, failed, signal)
        demand_samples(checkpoint, gram.count, settings)
        weights, ridge, missed = solve_stage(gram, tree, settings)
        stages.append(Stage(tree, weights))
        counts.append(gram.count[:tree.leaves] + gram.count[tree.leaves:])
        chosen = f", chosen for {-10 * math.log10(missed[ridge]):.2f} dB on voxels held out" if missed else ""
        print(f"Stage {number + 1}: {tree.leaves} classes, filters of {taps} voxels, {counts[-1].sum():,} samples; "
              f"ridge of {ridge:g} samples{chosen}", flush=True)
    return Learned(checkpoint, failed, None, stages, counts, f"{sum(map(len, counts))} filters in {len(stages)} stages")


def demand_samples(checkpoint, counts, settings):
    """Refuse to solve before every volume is summed, or where nothing was."""
    if partly := checkpoint.names()[1]:
        raise UserError(f"{', '.join(sorted(partly))}: summed for some buckets only; run the same command again")
    if not counts.sum():
        raise UserError(f"{settings.train_dir}: no voxel in it could be learned from; put volumes of brains in")


def next_command(settings):
    """What applies these filters, as one would type it."""
    words = ["python test.py"]
    if settings.tag != "2":
        words.append(f"--factor {settings.tag.replace('x', ' ')}")
    if settings.arrays_dir != "arrays":
        words.append(f'--arrays_dir "{settings.arrays_dir}"')
    return " ".join(words)


def lay_out(volumes, checkpoint, settings, ahead=0):
    """Plan the memory, and say how; each volume that is worked on ahead takes as much as the one at hand."""
    from checkpoint import buckets_per_file
    from memory import describe, memory_budget, plan_passes
    from volumes import largest_volume

    step = checkpoint.step or buckets_per_file(settings.buckets, settings.taps)
    plan = plan_passes(settings, largest_volume(volumes) * (1 + ahead), memory_budget(settings.max_memory), step)
    print(describe(plan), flush=True)
    return plan


def resume(checkpoint, volumes, settings):
    """Go on with what an earlier run summed, if the volumes in it are still the same, and say what was found."""
    checkpoint.compare(volumes, settings.train_dir)
    done, partly = checkpoint.names()
    print(f"Going on from {checkpoint.folder}: {len(done)} of {len(volumes)} volumes are summed"
          + (f", {len(partly)} in part" if partly else ""), flush=True)


def begin(checkpoint, classes, sources, settings):
    """Begin a checkpoint with what sorts voxels into buckets, and the volumes this came from."""
    from checkpoint import fingerprint

    checkpoint.begin(classes, [fingerprint(path, settings.train_dir) for path in sources])


def sum_samples(checkpoint, volumes, plan, settings, adding):
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
    from checkpoint import fingerprint
    from interrupt import Stop
    from threads import in_turn
    from util import progress
    from volumes import relative_name

    def sum_volume(path):
        """Add a volume's samples and note that: how many these were, None if they are in already; and what was wrong."""
        name = relative_name(path, settings.train_dir)
        try:
            record = fingerprint(path, settings.train_dir)
            wanted = checkpoint.lacking(buckets, record)
            if wanted is None:
                return None, None
            prepared = adding.prepare(read_pair(path, settings), checkpoint.classes, settings, name, wanted)
        except UserError as fault:
            return None, fault
        with adding.place() as place, progress(None, path.name, "sample", settings.quiet or adding.ahead > 1) as bar:
            samples = place.accumulate(gram, prepared, checkpoint.classes, settings, name, bar.update, wanted)
            checkpoint.add(wanted, record)  # here, so that none is saved without the other
        return samples, None

    failed, gram = set(), None
    with Stop() as stop:
        for turn, buckets in enumerate(plan.passes, 1):
            del gram  # before the next is made: the two would not fit
            gram = checkpoint.load(buckets)
            left, begun = [path for path in volumes if path not in failed], time.perf_counter()
            # Once a stop is asked for no volume is begun, but those that are begun are finished.
            for path, summed in in_turn(sum_volume, takewhile(lambda _: not stop.asked, left), adding.ahead):
                samples, fault = summed()
                if fault:
                    complain("train", fault)
                    failed.add(path)
                elif samples is not None:
                    print(f"[{volumes.index(path) + 1}/{len(volumes)}] {f'pass {turn}, ' * (len(plan.passes) > 1)}"
                          f"{relative_name(path, settings.train_dir)}: {samples:,} samples, "
                          f"{time.perf_counter() - begun:.1f} s", flush=True)
                    if checkpoint.due():
                        with adding.settled(gram):
                            save(checkpoint, gram, plan)
                begun = time.perf_counter()
            with adding.settled(gram):
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
    from volumes import read_volume

    try:
        pair = make_pair(read_volume(path).data, settings)
    except ValueError as fault:
        raise UserError(f"{path}: {fault}") from fault
    return dataclasses.replace(pair, hr=sharpen(pair.hr)) if settings.sharpen else pair


def read_pairs(volumes, settings, faults):
    """Yield each volume's path and pair; what is wrong with others is kept: it is said when they were to be summed."""
    for path in volumes:
        try:
            pair = read_pair(path, settings)
        except UserError as fault:
            faults.append(fault)
        else:
            yield path, pair


def nothing_to_learn_from(faults, settings):
    """The fault of a folder in which no volume is of use, once each of its volumes' was said."""
    for fault in faults:
        complain("train", fault)
    return UserError(f"{settings.train_dir}: no volume in it can be learned from; put volumes of brains in")


def find_boundaries(volumes, settings):
    """Boundaries of the strength and coherence classes, from the first volumes; and which volumes these were."""
    import numpy as np

    from hashtable import Boundaries, features, interior_voxels, quantile_boundaries, sample_voxels
    from util import progress
    from volumes import relative_name

    strength, coherence, seen, sources, faults = [], [], 0, [], []
    with progress(len(volumes), "class boundaries", "volume", settings.quiet) as bar:
        for path, pair in read_pairs(volumes, settings, faults):
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
        raise nothing_to_learn_from(faults, settings)
    _, _, *classes = settings.classes
    return Boundaries(*(quantile_boundaries(np.concatenate(values), n)
                        for values, n in zip((strength, coherence), classes, strict=True))), sources


def find_tree(volumes, stages, settings):
    """The tree of the stage after `stages`, grown from some voxels of a few volumes; and which volumes these were."""
    from stages import TREE_SAMPLES, TREE_VOLUMES, draw, plant
    from util import progress
    from volumes import relative_name

    chosen = volumes[::-(-len(volumes) // TREE_VOLUMES)]
    drawn, sources, faults = [], [], []
    with progress(len(chosen), f"stage {len(stages) + 1}, drawing", "volume", settings.quiet) as bar:
        for path, pair in read_pairs(chosen, settings, faults):
            name = relative_name(path, settings.train_dir)
            drawn.append(draw(pair, stages, settings, TREE_SAMPLES // len(chosen), name))
            sources.append(path)
            bar.update()
    if not drawn:
        raise nothing_to_learn_from(faults, settings)
    with progress(settings.leaves, f"stage {len(stages) + 1}, growing a tree", "leaf", settings.quiet) as bar:
        return plant(drawn, settings, bar.update), sources


def write_pictures(learned, settings):
    """Leave pictures of the filters and of the samples per bucket beside the filters."""
    from files import write_whole
    from matrix_compute import Filters
    from pictures import as_cubes, leaves_in_rows, picture_counts, picture_filters
    from stages import stage_taps

    if isinstance(learned.filters, Filters):
        h, counts, layout = learned.filters.h, learned.counts, (settings.classes, FEATURES)
    else:
        cubes = [as_cubes(stage.weights, stage_taps(number, settings)[0]) for number, stage in enumerate(learned.filters)]
        h, *layout = leaves_in_rows(cubes, learned.counts)
        counts, *_ = leaves_in_rows(learned.counts, learned.counts)
    write_whole(Path(settings.arrays_dir, f"filters_{settings.tag}.png"), picture_filters(h, *layout))
    write_whole(Path(settings.arrays_dir, f"samples_{settings.tag}.png"), picture_counts(counts, *layout))


if __name__ == "__main__":
    sys.exit(run("train", learn))
