"""Training on a Dask cluster: workers sample and sum the volumes.

The command itself grows trees, saves sums and solves for filters, as without a cluster. Workers
return sums in groups of buckets. Each group is as large as a file of the checkpoint (the sums on
disk), and is saved when it arrives. The command therefore never holds all sums in memory.
"""
import contextlib
import time
import uuid
from functools import partial

import numpy as np

from cluster.sums import Task, stop_summing, submit_sums
from cluster.workers import connected, software
from disk.interrupt import Stop
from learning.checkpoint import WRITE_SHARE
from learning.ledger import record_of
from machine.errors import UserError, complain, one_line
from machine.memory import GB, TooLittle, memory_budget
from machine.progress import say
from machine.threads import spans

COPIES = 3  # a worker may hold sums of a pass three times: its own, a sum of two, received ones
PROCESS_BYTES = 0.35 * GB  # memory of an idle worker
FIRST_ROUND = 4  # volumes per slot in the first round; also how many times a round may grow


@contextlib.contextmanager
def on_cluster(request):
    """Connect to the cluster that the request names.

    Yields
    ------
    OnCluster

    Raises
    ------
    UserError
        If no scheduler answers, it has no worker, or a worker has other software or too little
        memory.
    """
    with connected(request.scheduler, request.tls) as workers:
        try:
            yield OnCluster(workers)
        except TooLittle as fault:
            address, memory = workers.smallest()
            raise UserError(f"worker {address}: has {memory / GB:.1f} GB for each task, and "
                            f"sums may take a third of it; {fault}, or start workers with a larger "
                            "--memory-limit, or fewer on each machine") from fault


class OnCluster:
    """A training on the workers of a cluster; same interface as `learning.steps.Here`.

    Parameters
    ----------
    workers : cluster.workers.Workers
    """

    def __init__(self, workers):
        self.workers, self.training = workers, uuid.uuid4().hex

    def in_order(self, work, paths):
        """See `Workers.in_order`."""
        return self.workers.in_order(work, paths)

    def budget(self, max_memory):
        """Bytes that the sums of a pass may take, on the worker with the least memory."""
        share = (self.workers.smallest()[1] - PROCESS_BYTES) / COPIES
        return share if max_memory is None else min(share, memory_budget(max_memory))

    def sum_samples(self, checkpoint, structure, engine, stages, volumes, passes):
        """Do the same as `learning.steps.sum_samples`, on the workers; equal up to rounding."""
        failed, request = set(), checkpoint.request
        with Stop() as stop:
            for turn, buckets in enumerate(passes, 1):
                left, faulty = self._left(checkpoint, buckets, volumes, failed)
                failed |= faulty
                which = f"pass {turn}, " if len(passes) > 1 else ""
                for wanted, records in left:
                    where = {name: f"[{volumes.index(path) + 1}/{len(volumes)}] {which}"
                                   f"{one_line(name)}" for name, (path, _) in records.items()}
                    groups = [checkpoint.files.inside(start) for start
                              in checkpoint.ledger.starts_in(buckets) if wanted[start]]
                    task = Task(checkpoint.ledger.classes, stages, request, checkpoint.ledger.taps,
                                groups, wanted, self.training, software())
                    for part in self._rounds(records, request, stop):
                        faults = self._sum_round(part, task, checkpoint, where, stop)
                        failed |= {records[name][0] for name in faults}
                if stop.asked:
                    return None, failed, stop.asked
        if structure.at_once:
            return [checkpoint.load(range(checkpoint.ledger.buckets))], failed, None
        files = map(checkpoint.files.inside, checkpoint.ledger.starts)
        return checkpoint.groups(list(files)), failed, None

    def _left(self, checkpoint, buckets, volumes, failed):
        """Volumes that are still to be summed, and the paths of unreadable volumes.

        Pairs of some buckets and the volumes that they lack: a dict of path and record by name.
        """
        left, faulty = {}, set()
        recorded = partial(record_of, request=checkpoint.request)
        for path, found in self.in_order(recorded, [path for path in volumes
                                                    if path not in failed]):
            try:
                record = found()
                wanted = checkpoint.ledger.lacking(buckets, record)
            except UserError as fault:
                complain("train", fault)
                faulty.add(path)
                continue
            if wanted is not None:
                _, records = left.setdefault(wanted.tobytes(), (wanted, {}))
                records[record.name] = path, record
        return list(left.values()), faulty

    def _rounds(self, records, request, stop):
        """Split volumes into rounds of one checkpoint interval; after a stop, no round begins."""
        names, size = list(records), FIRST_ROUND * self.workers.slots
        while names and not stop.asked:
            begun, self.saving = time.monotonic(), 0.0
            yield {name: records[name] for name in names[:size]}
            del names[:size]
            wait = max(60 * request.checkpoint_minutes, WRITE_SHARE * self.saving)
            size = int(size * min(wait / (time.monotonic() - begun), FIRST_ROUND))
            size = max(size, self.workers.slots)

    def _sum_round(self, records, task, checkpoint, where, stop):
        """Sum some volumes and save the sums; returns the names of volumes that failed."""
        client = self.workers.client
        volumes = [(record, path) for path, record in records.values()]
        batches = [volumes[slice(*span)]
                   for span in spans(len(volumes), -(-len(volumes) // self.workers.slots))]
        groups, notes = submit_sums(client, batches, task)
        left, faults = {note.key for note in notes}, []
        # After a stop, workers finish the volumes that they have begun.
        for awaited in (stop, None):
            for note in self.workers.completed([note for note in notes if note.key in left],
                                               awaited):
                left.discard(note.key)
                faults += _say(note.result(), where)
            if left:
                client.run(stop_summing, self.training, on_error="ignore")  # a worker may be lost
        begun = time.monotonic()
        for group in self.workers.completed(groups):
            _save(checkpoint, group.result(), task.wanted, records)
            group.release()
        self.saving = time.monotonic() - begun
        return faults


def _say(notes, where):
    """Print the messages of each volume; returns the names of volumes that failed."""
    faults = []
    for note in notes:
        for stream, line in note.said:
            say(line, stream)
        if note.fault:
            complain("train", note.fault)
            faults.append(note.name)
        else:
            print(f"{where[note.name]}: {note.samples:,} samples, {note.seconds:.1f} s", flush=True)
    return faults


def _save(checkpoint, group, wanted, records):
    """Add a group of sums to its file of the checkpoint, and record the volumes in it."""
    buckets = group.gram.buckets
    gram = checkpoint.load(buckets)
    gram.packed += group.gram.packed
    gram.count += group.gram.count
    here = np.zeros_like(wanted)
    here[buckets.start:buckets.stop] = wanted[buckets.start:buckets.stop]
    for name in group.volumes:
        checkpoint.ledger.add(here, records[name][1])
    checkpoint.save(gram)
