"""Sum the Gram matrices of a stage on the workers of a Dask cluster.

Every task is a pure function of its arguments, so that Dask may run it again where a worker was
lost, and nothing is added twice. A task sums a batch of volumes with the code of the plain run;
its sums are cut into groups of buckets, and each group is added up in a tree, worker to worker.
Sums are float64, but are added in another order than in the plain run: they differ by rounding.
"""
from itertools import chain
from typing import NamedTuple

import numpy as np
from distributed import get_worker

from engine import CPU
from learning import pairs_of
from machine.errors import UserError, one_line
from machine.memory import row_bytes
from machine.threads import spans
from matrix_compute import Gram
from structure import structure_of

GROUP_BYTES = 200e6  # of sums in one message, at most, where a bucket's are no larger


class Batch(NamedTuple):
    """What a worker summed from a batch of volumes."""

    groups: list  # of Gram, ascending, together all buckets asked for
    samples: list  # of int, per volume; None where it could not be used
    faults: list  # of str, per volume; empty where it could be used


def sum_batch(paths, classes, stages, settings, shape, buckets, wanted=None):
    """Sum some volumes' samples; what a worker does.

    Parameters
    ----------
    paths : list of Path
        As a worker can read them.
    classes : Boundaries or Tree
    stages : list of Stage
        Those before.
    settings : Settings
    shape : (int, int)
        Buckets of the stage, of which `buckets` are summed, and taps.
    buckets : range
    wanted : ndarray of bool, shape (all buckets,), optional
        Those of `buckets` that lack the volumes; all where left out.

    Returns
    -------
    Batch
        A volume that cannot be used is named in `faults`; none of its samples are in the sums.

    Raises
    ------
    UserError
        If a volume turns out to be of no use after its first samples were summed.
    """
    structure, engine, taps = structure_of(settings), CPU(), shape[1]
    gram, samples, faults = Gram(len(buckets), taps, buckets.start), [], []
    if wanted is None:
        wanted = np.zeros(shape[0], bool)
        wanted[buckets.start:buckets.stop] = True
    for path in paths:
        parts = (structure.draw(pair, stages, classes, part, buckets, wanted)
                 for part, pair in pairs_of(path, settings))
        try:
            first = next(parts, None)  # what is wrong with a volume is found here
        except UserError as found:
            samples.append(None)
            faults.append(one_line(found))
            continue
        seen = 0
        for drawn in chain([first] if first else [], parts):
            engine.add(gram, drawn, settings)
            seen += drawn.voxels.size
        samples.append(seen)
        faults.append("")
    return Batch([_part(gram, *span) for span in group_spans(len(buckets), taps)], samples, faults)


def group_spans(buckets, taps):
    """Where sums of so many buckets are cut into groups of at most `GROUP_BYTES`."""
    return spans(buckets, max(int(GROUP_BYTES // row_bytes(taps)), 1))


def add_grams(left, right):
    """The sum of two groups, a new one: a task must not change what another may ask for again."""
    total = Gram(0, left.side - 1, left.first)
    total.packed, total.count = left.packed + right.packed, left.count + right.count
    return total


def submit_sums(client, batches, classes, stages, settings, shape, buckets, wanted=None):
    """Hand the summing of batches of volumes to a cluster.

    Parameters
    ----------
    client : distributed.Client
    batches : list of list of Path
    classes, stages, settings, shape, buckets, wanted
        As for `sum_batch`.

    Returns
    -------
    groups : list of Future of Gram
        Ascending. They stay on the workers until they are asked for.
    notes : list of Future of (list, list)
        Samples and faults of each batch, see `Batch`.
    """
    # A task, where `scatter` would do but for a lost worker: what is scattered is not made again.
    common = client.submit(_both, classes, stages)
    done = [client.submit(_sum_batch, paths, common, settings, shape, buckets, wanted)
            for paths in batches]
    notes = [client.submit(_notes, batch) for batch in done]
    groups = []
    for number in range(len(group_spans(len(buckets), shape[1]))):
        level = [client.submit(_group, batch, number) for batch in done]
        while len(level) > 1:
            pairs = [level[n:n + 2] for n in range(0, len(level), 2)]
            level = [client.submit(add_grams, *pair) if len(pair) > 1 else pair[0]
                     for pair in pairs]
        groups += level
    return groups, notes


def _both(classes, stages):
    return classes, stages


def _sum_batch(paths, common, settings, shape, buckets, wanted):
    done = sum_batch(paths, *common, settings, shape, buckets, wanted)
    try:
        worker = f" (on worker {get_worker().address})"
    except ValueError:  # called by no worker
        return done
    return done._replace(faults=[fault and fault + worker for fault in done.faults])


def _part(gram, start, stop):
    """A group of its buckets; a copy, so that it does not hold the memory of all."""
    part = Gram(0, gram.side - 1, gram.first + start)
    part.packed, part.count = gram.packed[start:stop].copy(), gram.count[start:stop].copy()
    return part


def _notes(batch):
    return batch.samples, batch.faults


def _group(batch, number):
    return batch.groups[number]
