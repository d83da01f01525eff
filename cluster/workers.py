"""The workers of a Dask cluster: connection, tasks, results and errors.

The result of a task, or the files that it writes, depend only on its arguments. Dask may therefore
run a task again after the loss of a worker.
"""
import contextlib
import functools
import itertools
import logging
import time
from collections import deque
from concurrent.futures import CancelledError
from pathlib import Path
from queue import Empty, SimpleQueue

import dask
import psutil
from distributed import KilledWorker, get_worker, wait

from cluster.connecting import connect, has_dashboard
from disk.interrupt import on_signals
from machine.errors import UserError, blamed_on, first_line
from machine.memory import GB
from machine.progress import say
from machine.remarks import listening
from machine.sources import PACKAGES, ROOT, all_sources, digest_of, versions_of

PATIENCE = 60  # seconds to wait for the first worker
ALONE = 300  # seconds without workers before a command ends: busy machines start them slowly
LOOK = 10  # seconds between checks for workers
AHEAD = 2  # volumes submitted per slot (task at a time), so that no worker waits for the next one
NONE_LEFT = "the cluster has lost all its workers; run the same command again"


@contextlib.contextmanager
def connected(name, tls=()):
    """Connect to the `Workers` of a scheduler; for the parameters see `connecting.connect`.

    Raises
    ------
    UserError
        If no scheduler answers, it has no worker, or a worker has other software.
    """
    # No message: Dask handles the loss of a worker, and `_last_seen` reports the loss of all.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"})  # filters: 10 MB
    with contextlib.ExitStack() as stack:
        workers = Workers(connect(name, stack, tls), name)
        stack.enter_context(workers.noting_interrupts())
        workers.check()
        plural = "s" if len(workers.about) > 1 else ""
        address, memory = workers.smallest()
        print(f"Cluster: {len(workers.about)} worker{plural}, the smallest {address} with "
              f"{memory / GB:.1f} GB for each task", flush=True)
        if has_dashboard():
            print(f"Dashboard: {workers.client.dashboard_link}", flush=True)
        yield workers


class Workers:
    """The workers of a scheduler.

    Parameters
    ----------
    client : distributed.Client
    name : str
        Address of the scheduler, as given to --scheduler.
    """

    def __init__(self, client, name):
        self.client, self.name, self.interrupted = client, name, False
        self._last_started = time.monotonic()  # when local processes were last started

    @property
    def about(self):
        """The scheduler's information about each worker, by address: dict of dict."""
        return self.client.scheduler_info(n_workers=-1)["workers"]

    @property
    def slots(self):
        """Number of tasks that run at once: int, at least 1."""
        return max(sum(about["nthreads"] for about in self.about.values()), 1)

    def smallest(self):
        """Address and memory (bytes) of the worker with the least memory for a task.

        If all workers are lost, this method waits for one. It raises UserError if none comes back.
        """
        seen = time.monotonic()
        while not (workers := self.about):
            seen = self._last_seen(seen)
            time.sleep(0.1)
        each = {address: (about["memory_limit"] or psutil.virtual_memory().total)
                / about["nthreads"] for address, about in workers.items()}
        return min(each.items(), key=lambda item: item[1])

    def check(self):
        """Raise UserError if no worker exists, or a worker has other software than the command."""
        try:
            self.client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as fault:
            raise UserError(f"argument --scheduler: {self.name} has no worker; start one with: "
                            f"dask worker {self.name}") from fault
        try:
            self.client.run_on_scheduler(software)
        except Exception as fault:  # its type depends on the version of Dask
            raise UserError(f"argument --scheduler: the scheduler {self.name} does not find this "
                            f"project ({first_line(fault)}); start it with PYTHONPATH={ROOT}"
                            ) from fault
        for worker, there in self.client.run(software, on_error="return").items():
            if isinstance(there, Exception):
                raise UserError(f"worker {worker}: does not find this project "
                                f"({first_line(there)}); start it with PYTHONPATH={ROOT}")
            demand_same(software(), there, worker)

    @contextlib.contextmanager
    def noting_interrupts(self):
        """A context in which Ctrl-C and SIGTERM raise KeyboardInterrupt and set `interrupted`.

        Python ignores a KeyboardInterrupt in the finalizer of a future. In this case the command
        raises it again, while it waits for volumes.
        """
        def note(number, frame):
            self.interrupted = True
            raise KeyboardInterrupt

        with on_signals(note):
            yield

    def in_order(self, work, items):
        """Compute ``work(item)`` on the workers; same interface as `machine.threads.in_turn`.

        Parameters
        ----------
        work : callable
            The function, which is sent to the workers once.
        items : iterable
            Volumes: paths, or objects with an attribute `path`.

        Yields
        ------
        item
        result : callable
            It prints the messages about the volume. It returns the result of `work`, or raises the
            UserError of `work`.

        Raises
        ------
        UserError
            If the scheduler or all workers are lost, or a worker that joined has other software.
        """
        submit = functools.partial(self.client.submit, pure=False)
        shared, begun, items = submit(itself, (work, software())), deque(), iter(items)
        while True:
            for item in itertools.islice(items, max(AHEAD * self.slots + 1 - len(begun), 0)):
                begun.append((item, submit(_done, shared, item)))
            if not begun:
                return
            item, future = begun.popleft()
            self._wait([future])
            if future.status == "error" and isinstance(future.exception(), KilledWorker):
                # Dask blames all tasks of a killed worker. So this task is tried again, alone.
                self._wait([other for _, other in begun])
                future = submit(_done, shared, item)
                self._wait([future])
            if future.status == "error" and isinstance(future.exception(), UserError):
                raise future.exception()  # a UserError outside `work` is a fault of the worker
            yield item, functools.partial(self._told, future, getattr(item, "path", item))

    def _told(self, future, path):
        """Print the messages of a finished volume; return its result or raise its error."""
        if future.status == "error":
            raise error_of(future.exception(), f"{path}: ")
        found, fault, said = self._fetched(future, path)
        for stream, line in said:
            say(line, stream)
        if fault:
            raise fault
        return found

    def _fetched(self, future, path):
        """The result of a finished future; Dask computes it again if its worker is lost.

        It raises UserError if the task fails again, or if all workers are lost and none comes back.
        """
        seen = time.monotonic()
        while True:
            try:
                return future.result(timeout=LOOK)
            except TimeoutError as fault:
                if self.interrupted:
                    raise KeyboardInterrupt from fault
                seen = self._last_seen(seen)
            except KilledWorker as fault:
                raise error_of(fault, f"{path}: ") from fault

    def _last_seen(self, seen):
        """The time when workers were last seen: now, or `seen` if there are none now.

        Without workers, local processes are started again, because Dask does not restart a process
        that dies while it starts. After ALONE seconds without workers, UserError is raised.
        """
        now, cluster = time.monotonic(), self.client.cluster
        if self.about:
            return now
        if now - seen > ALONE:
            raise UserError(NONE_LEFT)
        if cluster is not None and now - max(seen, self._last_started) > LOOK:
            cluster.scale(len(cluster.worker_spec))
            self._last_started = now
        return seen

    def _wait(self, futures):
        """Wait until all futures have succeeded or failed."""
        for _ in self.completed(futures, whatever=True):
            pass

    def completed(self, futures, stop=None, whatever=False):
        """Yield futures in the order in which they finish. After a stop, no more are yielded.

        Parameters
        ----------
        futures : list of distributed.Future
        stop : disk.interrupt.Stop, optional
        whatever : bool, optional
            If True, failed futures are yielded too; otherwise they raise their error.

        Raises
        ------
        UserError
            If a task failed, or the scheduler or all workers are lost.
        """
        done, left, seen = SimpleQueue(), len(futures), time.monotonic()
        for future in futures:
            future.add_done_callback(done.put)
        if stop:
            stop.wake = functools.partial(done.put, None)
        while left and not (stop and stop.asked):
            if self.interrupted:
                raise KeyboardInterrupt
            seen = self._last_seen(seen)
            try:
                future = done.get(timeout=LOOK)
            except Empty:
                continue
            if future is None:  # a stop
                continue
            if future.status == "lost":  # lost with its worker; Dask computes it again
                with contextlib.suppress(TimeoutError, CancelledError):
                    wait(future, timeout=1)
                done.put(future)
                continue
            if future.status not in ("finished", "error"):
                raise UserError("the scheduler was lost; run the same command again")
            if future.status == "error" and not whatever:
                raise error_of(future.exception())
            left -= 1
            yield future


@functools.cache
def software():
    """Versions that must be equal on all machines, by name: dict of str."""
    packages = sorted((*PACKAGES, "isal", "llvmlite"))
    return {"the code of this project": digest_of(all_sources())} | versions_of(packages)


def demand_same(asked, there, worker):
    """Raise UserError if a worker has other software than the command."""
    for what, version in asked.items():
        if there.get(what) != version:
            raise UserError(f"worker {worker}: {what} is {there.get(what)} there and {version} "
                            "here; install the same version on both and start the worker again")


def demand_same_here(asked):
    """Call `demand_same` on this worker, which may have joined after the start of the run."""
    with contextlib.suppress(ValueError):  # not on a worker
        demand_same(asked, software(), get_worker().address)


def with_remedy(fault, path):
    """A fault's message with the worker's address, and a remedy if the file is missing there."""
    missing = "" if Path(path).exists() else "; volumes must lie there at the same paths as here"
    try:
        return f"{fault} (on worker {get_worker().address}{missing})"
    except ValueError:  # not on a worker
        return str(fault)


def error_of(fault, about=""):
    """A UserError with one line and a remedy, from a task's error; `about` names the volume."""
    if isinstance(fault, UserError):
        return fault
    if isinstance(fault, KilledWorker):
        return UserError(f"{about}worker {fault.last_worker.address}: was killed several times, "
                         "probably because it had too little memory; start workers with a larger "
                         "--memory-limit, or fewer on each machine")
    if isinstance(fault, MemoryError):
        return UserError(f"{about}a worker has too little memory; start workers with a larger "
                         "--memory-limit, or fewer on each machine")
    return UserError(f"{about}a worker failed: {type(fault).__name__}: {first_line(fault)}")


def itself(work):
    """Return `work`: in place of Dask's `scatter`, whose data are lost when a worker dies."""
    return work


def _done(shared, item):
    """A task of `in_order`: the result, a UserError or None, and the messages."""
    work, asked = shared
    demand_same_here(asked)
    with listening() as said:
        try:
            with blamed_on(item):
                return work(item), None, said
        except UserError as fault:
            return None, type(fault)(with_remedy(fault, getattr(item, "path", item))), said
