"""Training with the sums of each pass made on a Dask cluster; the rest as in the plain run.

The client surveys, saves and solves; the workers read, degrade and sum. Sums come back a group of
buckets at a time, into the sums that the plain run would have made.
"""
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import time
from functools import partial
from pathlib import Path

import psutil
from distributed import Client, KilledWorker, LocalCluster, wait

from cluster.sums import submit_sums
from disk.interrupt import Stop
from disk.ledger import fingerprint
from disk.volumes import relative_name
from learning import save
from machine.errors import UserError, complain, first_line
from machine.memory import GB, memory_budget
from machine.threads import thread_count

PATIENCE = 10  # seconds to wait for a scheduler, and for its first worker
COPIES = 3  # of a pass's sums that a worker holds at most: its own, its groups, a sum of two
ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def on_cluster(settings):
    """Connect to the cluster that the settings name.

    Yields
    ------
    settings : Settings
        With `max_memory` such that the sums of a pass fit the smallest worker.
    summing : callable
        For `learning.learn_stages`.

    Raises
    ------
    UserError
        If there is no such scheduler, it has no worker, or one has other software.
    """
    # What happens to a worker is Dask's to mend; a loss of all of them is reported below.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_connect(settings.scheduler, stack))
        workers = _checked_workers(client, settings.scheduler)
        limits = {address: about["memory_limit"] or psutil.virtual_memory().total
                  for address, about in workers.items()}
        least = min(limits, key=limits.get)
        plural = "s" if len(workers) > 1 else ""
        print(f"Cluster: {len(workers)} worker{plural}, the smallest {least} with "
              f"{limits[least] / GB:.1f} GB, of which a pass may take a third", flush=True)
        if importlib.util.find_spec("bokeh"):
            print(f"Dashboard: {client.dashboard_link}", flush=True)
        held = psutil.Process().memory_info().rss
        budget = min(memory_budget(settings.max_memory), limits[least] / COPIES)
        yield (dataclasses.replace(settings, max_memory=(budget + held) / GB),
               partial(sum_samples, client))


def sum_samples(client, checkpoint, structure, engine, stages, volumes, passes):
    """Sum on the workers what `learning.sum_samples` sums here; the same but for `client`."""
    failed, gram, settings = set(), None, checkpoint.settings
    shape = checkpoint.buckets, checkpoint.taps
    # Workers may run in other folders; names, which the drawing of samples hangs on, stay.
    there = dataclasses.replace(settings, train_dir=os.path.abspath(settings.train_dir))
    with Stop() as stop:
        for buckets in passes:
            del gram  # before the next is made: the two would not fit
            gram = checkpoint.load(buckets)
            left, faulty = _left(checkpoint, buckets, volumes, failed, settings)
            failed |= faulty
            for wanted, paths in left:
                batches = _batches(list(paths), len(client.scheduler_info(n_workers=-1)["workers"]))
                groups, notes = submit_sums(
                    client, [[path.absolute() for path in batch] for batch in batches],
                    checkpoint.classes, stages, there, shape, buckets,
                    wanted)
                if not _finished(groups + notes, stop):
                    client.cancel(groups + notes)
                    break
                _collect(client, groups, gram)
                noted = client.gather(notes)
                for batch, (samples, faults) in zip(batches, noted, strict=True):
                    for path, seen, fault in zip(batch, samples, faults, strict=True):
                        if fault:
                            complain("train", fault)
                            failed.add(path)
                            continue
                        checkpoint.add(wanted, paths[path])
                        print(f"[{volumes.index(path) + 1}/{len(volumes)}] "
                              f"{relative_name(path, settings.train_dir)}: {seen:,} samples",
                              flush=True)
            save(checkpoint, gram, passes)
            if stop.asked:
                break
    return gram, failed, stop.asked


def _connect(name, stack):
    """A client of the scheduler at an address, or of processes here."""
    if found := re.fullmatch(r"local(?::([1-9]\d{0,3}))?", name):
        count = int(found[1] or thread_count())
        threads = str(max(thread_count() // count, 1))
        # Before a process starts: numba and BLAS read it once.
        threads = {name: threads for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS",
                                              "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        cluster = stack.enter_context(LocalCluster(
            n_workers=count, threads_per_worker=1, processes=True, silence_logs=logging.CRITICAL,
            dashboard_address="127.0.0.1:0", env=threads))
        return Client(cluster)
    try:
        return Client(name, timeout=PATIENCE)
    except (OSError, ValueError) as fault:  # TimeoutError is an OSError
        raise UserError(f"argument --scheduler: no Dask scheduler answers at {name}; start one "
                        "with: dask scheduler, or give local:2") from fault


def _checked_workers(client, name):
    """What the scheduler knows of its workers, by address; all have the software of this side."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError as fault:
        raise UserError(f"argument --scheduler: {name} has no worker; start one with: "
                        f"dask worker {name}") from fault
    here = software()
    for worker, there in client.run(software, on_error="return").items():
        if isinstance(there, Exception):
            raise UserError(f"worker {worker}: does not find this project "
                            f"({first_line(there)}); start it with PYTHONPATH={ROOT}")
        for what, version in here.items():
            if there.get(what) != version:
                raise UserError(f"worker {worker}: has {what} {there.get(what)}, here it is "
                                f"{version}; install the same on both and start it again")
    return client.scheduler_info(n_workers=-1)["workers"]


def software():
    """What must be the same on all machines, by name: str to str."""
    found = hashlib.sha256()
    folders = ("", "cluster", "disk", "machine", "octahedral")
    for path in sorted(path for folder in folders for path in (ROOT / folder).glob("*.py")):
        found.update(path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in ("numba", "numpy", "scipy")}
    return {"a version of this project": found.hexdigest()[:12]} | versions


def _left(checkpoint, buckets, volumes, failed, settings):
    """Volumes to sum, as pairs of the buckets that lack them and their records; those of no use."""
    left, faulty = {}, set()
    for path in volumes:
        if path in failed:
            continue
        try:
            record = fingerprint(path, settings.train_dir)
            wanted = checkpoint.lacking(buckets, record)
        except UserError as fault:
            complain("train", fault)
            faulty.add(path)
            continue
        if wanted is not None:
            left.setdefault(wanted.tobytes(), (wanted, {}))[1][path] = record
    return list(left.values()), faulty


def _batches(paths, workers):
    """Two batches for each worker: a lost one costs half its work, and none waits for long."""
    size = max(len(paths) // (2 * max(workers, 1)), 1)
    return [paths[start:start + size] for start in range(0, len(paths), size)]


def _finished(futures, stop):
    """Wait for all; whether they came to their end before a stop was asked for."""
    alone = time.monotonic()
    while not stop.asked:
        with contextlib.suppress(TimeoutError):
            wait(futures, timeout=0.5)
            for future in futures:
                if future.status == "error":
                    raise _told(future.exception()) from None
                if future.status != "finished":
                    raise UserError("the scheduler was lost; run the same command again")
            return True
        if futures[0].client.scheduler_info(n_workers=1)["workers"]:
            alone = time.monotonic()
        elif time.monotonic() - alone > 3 * PATIENCE:
            raise UserError("the cluster has lost all its workers; run the same command again")
    return False


def _told(fault):
    """The error of a task, in one line with a remedy."""
    if isinstance(fault, UserError):
        return fault
    if isinstance(fault, KilledWorker):
        return UserError(f"worker {fault.last_worker.address}: was killed again and again, most "
                         "often for want of memory; give workers more, or a smaller --max_memory")
    return UserError(f"a worker failed: {type(fault).__name__}: {first_line(fault)}")


def _collect(client, groups, gram):
    """Add groups to the sums, one after the other so that few are here at a time."""
    for group in groups:
        part = client.gather(group)
        rows = slice(part.first - gram.first, part.first - gram.first + len(part.count))
        gram.packed[rows] += part.packed
        gram.count[rows] += part.count
