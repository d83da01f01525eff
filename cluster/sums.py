"""Sum the Gram matrices of a stage on the workers of a Dask cluster.

Every task is a function of its arguments that changes none of them, so that Dask may run it again
where a worker was lost, and nothing is added twice. A task sums a batch of volumes with the code of
the plain run; its sums are cut into groups of buckets, and each group is added up in a tree, worker
to worker. Each says itself which volumes are in it.
Sums are float64, but are added in another order than in the plain run: they differ by rounding.
"""
import time
from itertools import chain
from typing import NamedTuple

import numpy as np

from cluster.workers import demand_same_here, itself, with_remedy
from engine import CPU
from learning.steps import pairs_of
from machine.errors import UserError
from machine.remarks import listening
from matrix_compute import Gram
from structure import structure_of

# Trainings that were asked to stop. A worker's own, since no task can be told once it has begun.
_stopped = set()


class Group(NamedTuple):
    """Sums of a group of buckets."""

    gram: Gram
    volumes: tuple  # of str: names of those that are in it


class Note(NamedTuple):
    """What is said of a volume."""

    name: str
    samples: int | None  # that were summed; None where it could not be used, or was not begun
    seconds: float
    fault: str  # empty where it could be used
    said: list  # of (str, str), see `machine.remarks.listening`


class Batch(NamedTuple):
    """What a worker summed from a batch of volumes."""

    groups: list  # of Group, ascending
    notes: list  # of Note; shorter than the batch where a stop was asked for


class Task(NamedTuple):
    """What all batches share."""

    classes: object  # Boundaries or Tree
    stages: list  # of Stage: those before
    request: object  # filter_constant.Request
    taps: int
    groups: list  # of range, ascending: the buckets of each
    wanted: np.ndarray  # bool, of all buckets: those that lack the volumes
    training: str = ""  # what `stop_summing` knows it by
    software: dict | None = None  # of the command, see `cluster.workers.software`


def sum_batch(volumes, task):
    """Sum some volumes' samples; what a worker does.

    Parameters
    ----------
    volumes : list of (str, Path)
        Names, and paths as a worker can read them.
    task : Task

    Returns
    -------
    Batch
        A volume that cannot be used is named in its note; none of its samples are in the sums.

    Raises
    ------
    UserError
        If a volume turns out to be of no use after its first samples were summed, or the worker
        has other software.
    """
    if task.software:
        demand_same_here(task.software)
    buckets = range(task.groups[0].start, task.groups[-1].stop)
    gram, notes = Gram(len(buckets), task.taps, buckets.start), []
    for name, path in volumes:
        if task.training in _stopped:
            break
        begun = time.perf_counter()
        with listening() as said:
            try:
                samples, fault = _sum_volume(path, gram, task, buckets), ""
            except _NoUse as found:
                samples, fault = None, str(found)
        notes.append(Note(name, samples, time.perf_counter() - begun, fault, said))
    summed = tuple(note.name for note in notes if note.samples is not None)
    return Batch([Group(_rows(gram, group), summed) for group in task.groups], notes)


class _NoUse(Exception):
    """A volume that cannot be used, found before any of its samples was summed."""


def _sum_volume(path, gram, task, buckets):
    """Add a volume's samples to the sums; returns how many."""
    request, seen = task.request, 0
    structure = structure_of(request.method)
    parts = (structure.draw(pair, task.stages, task.classes, part, buckets, task.wanted)
             for part, pair in pairs_of(path, request))
    try:
        first = next(parts, None)  # what is wrong with a volume is found here
    except UserError as fault:
        raise _NoUse(with_remedy(fault, path)) from fault
    for drawn in chain([first] if first else [], parts):
        CPU().add(gram, drawn, request.method)
        seen += drawn.voxels.size
    return seen


def stop_summing(training):
    """Have this worker begin no more volumes of a training."""
    _stopped.add(training)


def add_groups(left, right):
    """The sum of two groups, a new one: a task must not change what another may ask for again."""
    total = Gram(0, left.gram.side - 1, left.gram.first)
    total.packed = left.gram.packed + right.gram.packed
    total.count = left.gram.count + right.gram.count
    return Group(total, left.volumes + right.volumes)


def submit_sums(client, batches, task):
    """Hand the summing of batches of volumes to a cluster.

    Parameters
    ----------
    client : distributed.Client
    batches : list of list of (str, Path)
    task : Task

    Returns
    -------
    groups : list of Future of Group
        As ``task.groups``. They stay on the workers until they are asked for.
    notes : list of Future of list of Note
        Of each batch.
    """
    common = client.submit(itself, task, pure=False)
    done = [client.submit(sum_batch, batch, common, pure=False) for batch in batches]
    notes = [client.submit(_notes, batch, pure=False) for batch in done]
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
    """A group of its buckets, which shares its memory."""
    part, rows = Gram(0, gram.side - 1, buckets.start), slice(buckets.start - gram.first,
                                                              buckets.stop - gram.first)
    part.packed, part.count = gram.packed[rows], gram.count[rows]
    return part


def _notes(batch):
    return batch.notes


def _group(batch, number):
    return batch.groups[number]
