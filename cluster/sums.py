"""Sum the Gram matrices of a training stage on the workers of a Dask cluster.

A task sums a batch of volumes with the same code as without a cluster. The sums of a batch are
split into groups of buckets (classes of voxels). For each group, the sums of all batches are added
pairwise, from worker to worker. Each group holds the names of the volumes in its sums. Sums are
float64. They are added in another order than without a cluster, and so differ by rounding.
No task changes its arguments, so that Dask may run a task again if a worker is lost.
"""
import time
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from cluster.workers import demand_same_here, itself, with_remedy
from learning.ledger import record_of, seal_of
from learning.steps import pairs_of
from machine.errors import UserError
from machine.remarks import listening
from matrix_compute import Gram, sum_rows
from structure import structure_of

# Trainings to stop. Each worker keeps this set, because a running task receives no messages.
_stopped = set()


class Group(NamedTuple):
    """Sums of a group of buckets, with the names of the volumes that were summed."""

    gram: Gram
    volumes: tuple  # of str


class Note(NamedTuple):
    """The messages and figures of a volume."""

    name: str
    samples: int | None  # number of samples summed; None if the volume could not be used
    seconds: float
    fault: str  # empty if the volume could be used
    said: list  # of (str, str): messages, see `machine.remarks.listening`


class Batch(NamedTuple):
    """The sums of a batch of volumes on a worker."""

    groups: list  # of Group, ascending
    notes: list  # of Note; shorter than the batch after a stop


class Task(NamedTuple):
    """The data that all batches share."""

    classes: object  # Boundaries or Tree
    stages: list  # of Stage: the earlier stages
    request: object  # filter_constant.Request
    taps: int
    groups: list  # of range, ascending: the buckets of each group
    wanted: np.ndarray  # bool, for all buckets: True if the bucket's sums lack the volumes
    training: str = ""  # identifier of the training for `stop_summing`
    software: dict | None = None  # versions of the command, see `cluster.workers.software`


def sum_batch(volumes, task):
    """Sum the samples of some volumes on a worker.

    Parameters
    ----------
    volumes : list of (Finished, Path)
        The records of the volumes, and their paths on the worker.
    task : Task

    Returns
    -------
    Batch
        If a volume cannot be used, the sums contain none of its samples, and its `Note` holds the
        fault.

    Raises
    ------
    UserError
        If a volume fails after its first samples were summed, or the worker has other software.
    """
    if task.software:
        demand_same_here(task.software)
    buckets = range(task.groups[0].start, task.groups[-1].stop)
    gram, notes = Gram(len(buckets), task.taps, buckets.start), []
    for record, path in volumes:
        if task.training in _stopped:
            break
        begun = time.perf_counter()
        with listening() as said:
            try:
                samples, fault = _sum_volume(record, path, gram, task, buckets), ""
            except _NoUse as found:
                samples, fault = None, str(found)
        notes.append(Note(record.name, samples, time.perf_counter() - begun, fault, said))
    summed = tuple(note.name for note in notes if note.samples is not None)
    return Batch([Group(_rows(gram, group), summed) for group in task.groups], notes)


class _NoUse(Exception):
    """Raised for a volume that cannot be used, before any of its samples is summed."""


def _sum_volume(record, path, gram, task, buckets):
    """Add a volume's samples to the sums; returns their number."""
    request, seen, seal = task.request, 0, seal_of(path, task.request)
    structure = structure_of(request.method)
    parts = (structure.samples(pair, task.stages, task.classes, part, buckets, task.wanted)
             for part, pair in pairs_of(path, request))
    try:
        if record_of(path, request) != record:  # the sums are saved with the record
            raise UserError(f"{path}: was changed during the training; run the same command again")
        first = next(parts, None)  # a volume that cannot be used raises its error here
        seal.check()
    except UserError as fault:
        raise _NoUse(with_remedy(fault, path)) from fault
    for drawn in chain([first] if first else [], parts):
        sum_rows(gram, drawn.ends, drawn.fill)
        seen += drawn.voxels.size
    return seen


def stop_summing(training):
    """Mark a training as stopped, so that this worker begins no further volume of it."""
    _stopped.add(training)


def add_groups(left, right):
    """The sum of two groups as a new group, because a task must not change its arguments."""
    total = Gram(0, left.gram.side - 1, left.gram.first)
    total.packed = left.gram.packed + right.gram.packed
    total.count = left.gram.count + right.gram.count
    return Group(total, left.volumes + right.volumes)


def submit_sums(client, batches, task):
    """Submit the summing of batches of volumes to a cluster.

    Parameters
    ----------
    client : distributed.Client
    batches : list of list of (Finished, Path)
    task : Task

    Returns
    -------
    groups : list of Future of Group
        In the order of ``task.groups``. The groups stay on the workers until they are fetched.
    notes : list of Future of list of Note
        One for each batch.
    """
    common = client.submit(itself, task, pure=False)
    done = [client.submit(sum_batch, batch, common, pure=False) for batch in batches]
    notes = [client.submit(attrgetter("notes"), batch, pure=False) for batch in done]
    groups = []
    for number in range(len(task.groups)):
        level = [client.submit(_group, batch, number, pure=False) for batch in done]
        while len(level) > 1:
            pairs = [level[n:n + 2] for n in range(0, len(level), 2)]
            level = [client.submit(add_groups, *pair, pure=False) if len(pair) > 1 else pair[0]
                     for pair in pairs]
        groups += level
    return groups, notes


def _rows(gram, buckets):
    """The sums of a range of buckets, as a view of `gram`."""
    part, rows = Gram(0, gram.side - 1, buckets.start), slice(buckets.start - gram.first,
                                                              buckets.stop - gram.first)
    part.packed, part.count = gram.packed[rows], gram.count[rows]
    return part


def _group(batch, number):
    return batch.groups[number]
