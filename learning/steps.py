"""The steps of a training for each stage: find classes, sum samples, solve for filters.

train.py calls `learn_stages`, which learns both the published and the octahedral method. The sums
are kept on disk, so that a training that was stopped or killed can continue.
"""
import hashlib
import time
from dataclasses import replace
from functools import partial
from itertools import chain, takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from disk.files import write_whole
from disk.interrupt import Stop
from engine import choose_engine
from filter_func import sharpen
from get_lar import make_pair
from learning.acquisitions import sampled_volumes
from learning.checkpoint import Checkpoint, Sums, buckets_per_file
from learning.ledger import record_of, seal_of
from machine.errors import CannotWrite, UserError, blamed_on, complain, one_line
from machine.memory import memory_budget
from machine.progress import progress
from machine.threads import in_turn, one_ahead
from matrix_compute import Stage
from nifti.masks import read_brain
from nifti.volumes import largest_volume, relative_name
from structure import structure_of
from util import clipping_in_words


class Learned(NamedTuple):
    """The result of a training."""

    stages: list  # of Stage; only the finished ones if the training was stopped
    counts: list  # of ndarray, one per stage: number of samples of each class
    failed: set  # of Path: volumes that could not be used
    checkpoint: Checkpoint  # of the last stage
    signal: int | None  # the signal that stopped the training before its end
    saved: bool = True  # True if the sums of all stages are on the disk


class Here:
    """Sampling and summing in this process; `cluster.training.OnCluster` does them on a cluster."""

    def in_order(self, work, paths):
        """See `machine.threads.in_turn`."""
        return in_turn(work, paths)

    def budget(self, max_memory):
        """See `machine.memory.memory_budget`."""
        return memory_budget(max_memory)

    def sum_samples(self, *arguments):
        """See the function `sum_samples`."""
        return sum_samples(*arguments)


def learn_stages(volumes, request, place=None):
    """Learn all stages of the requested method.

    Parameters
    ----------
    volumes : list of Path
    request : Request
    place : Here or cluster.training.OnCluster, optional
        Place where volumes are sampled and summed: this process or a cluster.

    Returns
    -------
    Learned
    """
    structure, place = structure_of(request.method), place or Here()
    engine = choose_engine(request.device, structure.cpu_only)
    # `before` holds stages without the held-out voxels; later stages are trained on its output.
    stages, before, counts, failed, saved = [], [], [], set(), True
    budget = place.budget(request.max_memory)  # measured once: later, this training takes a part
    for number in range(structure.stages):
        checkpoint = checkpoint_of(structure, before, request)
        if request.restart:
            checkpoint.clear()
        resumed = checkpoint.find()
        plan = plan_memory(structure, volumes, checkpoint, engine, budget)
        if number == 0:
            print(plan, flush=True)
        if resumed:
            go_on(checkpoint, volumes)
        else:
            begin(checkpoint, structure, volumes, before, place)
        passes = plan.passes or [range(checkpoint.ledger.buckets)]
        groups, faulty, signal = place.sum_samples(
            checkpoint, structure, engine, before, volumes, passes)
        failed |= faulty
        if signal:
            return Learned(stages, counts, failed, checkpoint, signal)
        solved = solve(checkpoint, structure, engine, groups)
        del groups  # frees memory before the next stage's sums are made
        saved = saved and checkpoint.ledger.finished == checkpoint.ledger.kept
        stages.append(Stage(checkpoint.ledger.classes, solved.weights))
        before.append(Stage(checkpoint.ledger.classes, solved.before_others))
        counts.append(solved.counts)
        if solved.remark:
            print(f"Stage {number + 1}: {solved.remark}", flush=True)
    return Learned(stages, counts, failed, checkpoint, None, saved)


def checkpoint_of(structure, stages, request):
    """The checkpoint for the sums of the stage after `stages`."""
    number = len(stages)
    return Checkpoint(request, Sums(
        structure.sums_folder(number), structure.read_classes,
        lambda classes: structure.sums_shape(number, classes), digest_of(stages)))


def digest_of(stages):
    """SHA-256 of all filters and classes of stages, in hexadecimal; empty if there are none."""
    found = hashlib.sha256()
    for stage in stages:
        for array in (stage.weights, *stage.classes):
            found.update(np.ascontiguousarray(array))
    return found.hexdigest() if stages else ""


def plan_memory(structure, volumes, checkpoint, engine, budget):
    """Plan the memory for the sums, for the current volume and for volumes prepared ahead."""
    request = checkpoint.request
    step = checkpoint.ledger.step or buckets_per_file(request.method.buckets, request.method.taps)
    voxels = largest_volume(volumes) * (1 + engine.ahead)
    return structure.plan(voxels, budget, step)


def go_on(checkpoint, volumes):
    """Continue an earlier training if its volumes have not changed; print its state."""
    checkpoint.ledger.compare(volumes)
    done, partly = checkpoint.ledger.names()
    print(f"Going on from {checkpoint.folder}: {len(done)} of {len(volumes)} volumes are summed"
          + (f", {len(partly)} in part" if partly else ""), flush=True)


# ------------------------------------------------------------------------------------------ classes

def begin(checkpoint, structure, volumes, stages, place):
    """Learn the classes of a stage, and begin its sums."""
    request = checkpoint.request
    chosen, title = structure.volumes_to_sample(volumes), structure.sampling_title
    title = f"stage {len(stages) + 1}, {title}" if structure.stages > 1 else title
    feature_samples, seen, sources, faults = [], 0, [], []
    seals = {path: seal_of(path, request) for path in chosen}
    with progress(len(chosen), title, "volume", request.quiet) as bar:
        work = partial(sample_volume, stages=stages, request=request, volumes=len(chosen))
        for path, sampled in place.in_order(work, chosen):
            try:
                found = sampled()
            except UserError as fault:
                faults.append(fault)  # reported later, when the samples of this volume are summed
                continue
            feature_samples += [sample for sample, _ in found]
            seen += sum(voxels for _, voxels in found)
            sources.append(path)
            bar.update()
            if structure.enough(seen):
                break
    if not seen:
        for fault in faults:
            complain("train", fault)
        raise nothing_to_learn_from(request, bool(faults))
    title = f"stage {len(stages) + 1}, {structure.classes_title}"
    quiet = request.quiet or not structure.classes_title
    with progress(request.method.leaves, title, structure.classes_unit, quiet) as bar:
        classes = structure.find_classes(feature_samples, bar.update)
    records = [record_of(path, request) for path in sources]
    for path in sources:
        seals[path].check()
    checkpoint.begin(classes, records)


def sample_volume(path, stages, request, volumes):
    """Sample features of one of `volumes` volumes; returns pairs of sample and number of voxels."""
    structure = structure_of(request.method)
    return [structure.sample_features(pair, stages, name, volumes)
            for name, pair in pairs_of(path, request)]


def nothing_to_learn_from(request, faulty=False):
    """The error for a folder whose volumes are faulty, as was reported, or too small to sample."""
    if faulty:
        return UserError(f"{request.train_dir}: no volume in it can be learned from; "
                         "put volumes of brains in")
    return UserError(f"{request.train_dir}: no volume in it has samples to learn from; put volumes "
                     "of brains in, or for very small ones give --sample_rate 1 and "
                     "--quantization_rate 1")


def pairs_of(path, request):
    """Read a volume; yield its LR volumes, each with a name that the random choices depend on.

    There is one LR volume or, with --preset scan, one for each sampled acquisition.
    """
    with blamed_on(path):
        image = read_brain(path, request.mask)[0].data
    name = relative_name(path, request.train_dir)
    try:
        if request.method.for_scans:
            volumes = sampled_volumes(image, request.method, name)
            for number, volume in enumerate(one_ahead(volumes)):
                yield f"{name} draw {number}", volume
            return
        pair = make_pair(image, request.method)
        if said := clipping_in_words(image, pair.scale):
            complain("train", f"{path}: {said}")
    except ValueError as fault:
        raise UserError(f"{path}: {fault}") from fault
    yield name, replace(pair, hr=sharpen(pair.hr)) if request.method.sharpen else pair


# ------------------------------------------------------------------------------------ sums, filters

def sum_samples(checkpoint, structure, engine, stages, volumes, passes):
    """Add the samples of all volumes to the Gram matrices; save them from time to time.

    Returns
    -------
    groups : iterable of Gram
        The sums to solve, one pass at a time.
    failed : set of Path
        Volumes that could not be used.
    signal : int or None
        The signal that stopped the work before its end.
    """
    request = checkpoint.request

    def sum_volume(path):
        """Add a volume's samples to the sums, and its record to the ledger.

        It returns two values: the number of samples (None if the sums contain them already), and
        the error or None.
        """
        try:
            seal = seal_of(path, request)
            record = record_of(path, request)
            wanted = checkpoint.ledger.lacking(buckets, record)
            if wanted is None:
                return None, None
            classes = checkpoint.ledger.classes
            parts = (structure.samples(pair, stages, classes, part, buckets, wanted)
                     for part, pair in pairs_of(path, request))
            first = next(parts, None)  # this call raises the errors of a volume
            seal.check()
        except UserError as fault:
            return None, fault
        quiet, samples = request.quiet or engine.ahead > 1, 0
        with engine.place() as place, progress(None, path.name, "sample", quiet) as bar:
            for drawn in chain([first] if first else [], parts):
                place.add(gram, drawn, request.method, bar.update)
                samples += drawn.voxels.size
            checkpoint.ledger.add(wanted, record)  # inside `place`: sums and record agree on a save
        return samples, None

    failed, gram = set(), None
    with Stop() as stop:
        for turn, buckets in enumerate(passes, 1):
            del gram  # frees memory before the next sums are loaded
            gram = checkpoint.load(buckets)
            left = [path for path in volumes if path not in failed]
            begun = time.perf_counter()
            # After a request to stop, no further volume is begun, but begun volumes are finished.
            wanted = takewhile(lambda _: not stop.asked, left)
            for path, summed in in_turn(sum_volume, wanted, engine.ahead):
                samples, fault = summed()
                if fault:
                    complain("train", fault)
                    failed.add(path)
                elif samples is not None:
                    which = f"pass {turn}, " if len(passes) > 1 else ""
                    print(f"[{volumes.index(path) + 1}/{len(volumes)}] {which}"
                          f"{one_line(relative_name(path, request.train_dir))}: "
                          f"{samples:,} samples, "
                          f"{time.perf_counter() - begun:.1f} s", flush=True)
                    if checkpoint.due():
                        with engine.settled(gram):
                            save(checkpoint, gram, passes)
                begun = time.perf_counter()
            with engine.settled(gram):
                save(checkpoint, gram, passes)
            if stop.asked:
                break
    return checkpoint.groups(passes, gram), failed, stop.asked


def save(checkpoint, gram, passes):
    """Save the sums on disk.

    If saving fails, a training in one pass continues without saving. A training in several passes
    stops, because the next pass needs the memory of these sums.
    """
    used, quiet = int((gram.count > 0).sum()), checkpoint.request.quiet
    try:
        with progress(used, "saving the sums", "bucket", quiet) as bar:
            checkpoint.save(gram, bar.update)
    except CannotWrite as fault:
        if len(passes) > 1:
            raise
        complain("train", f"the sums were not saved, training continues: {fault}")
        checkpoint.postpone()


def solve(checkpoint, structure, engine, groups):
    """Solve a stage's sums; UserError is raised if a volume is in the sums of only some buckets."""
    request = checkpoint.request
    if partly := checkpoint.ledger.names()[1]:
        raise UserError(f"{', '.join(sorted(partly))}: summed for some buckets only; "
                        "run the same command again")
    counts = np.concatenate([part.count for part in groups])
    if not counts.any():
        raise nothing_to_learn_from(request)
    with progress(int((counts > 0).sum()), "solving", "bucket", request.quiet) as bar:
        try:
            return structure.solve(groups, counts, checkpoint.ledger.classes, engine, bar.update)
        except np.linalg.LinAlgError as fault:
            tried = "auto" if request.method.ridge is None else f"{request.method.ridge:g}"
            raise UserError(f"argument --ridge: {tried} is too small to solve for the filters; "
                            "give a larger number") from fault


def write_pictures(learned, request):
    """Write pictures of the filters, and of the samples per class, beside the filters."""
    # Imported here: it takes half a second to load, and is needed only at the end of a training.
    from report.filter_pictures import picture_counts, picture_filters

    filters, counts, *layout = structure_of(request.method).for_pictures(learned.stages,
                                                                         learned.counts)
    of_filters, of_samples = picture_paths(request)
    write_whole(of_filters, picture_filters(filters, *layout))
    write_whole(of_samples, picture_counts(counts, *layout))


def picture_paths(request):
    """Paths of the two pictures of `write_pictures`."""
    return [Path(request.arrays_dir, f"{name}_{request.method.tag}.png")
            for name in ("filters", "samples")]
