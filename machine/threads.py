"""Run tasks in as many threads as there are cores.

The kernels release the interpreter's lock, so threads are enough and no processes are needed.
"""
import contextlib
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock

from threadpoolctl import OpenBLASController, threadpool_limits

from machine.errors import blamed_on


def thread_count():
    """Number of threads: OMP_NUM_THREADS, or else the number of cores that this process may use.

    Of a list in OMP_NUM_THREADS, which has a number for each level of nesting, the first counts.
    """
    with contextlib.suppress(ValueError):
        if (wanted := int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0])) > 0:
            return wanted
    with contextlib.suppress(AttributeError):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Alone:
    """State of `blas_alone`: the number of threads inside, and their common limit of BLAS."""

    lock, inside, limit = Lock(), 0, None


@contextlib.contextmanager
def blas_alone():
    """A context in which BLAS and LAPACK use one thread only, the calling one.

    The limit applies to the whole process, and several threads may be inside at the same time. So
    the first thread that enters sets the limit, and the last one that leaves removes it.
    """
    with _Alone.lock:
        if not _Alone.inside:
            _take_control()
            _Alone.limit = threadpool_limits(1, "blas")
        _Alone.inside += 1
    try:
        yield
    finally:
        with _Alone.lock:
            _Alone.inside -= 1
            if not _Alone.inside:
                _take_control()  # another thread may have set the limit
                _Alone.limit.restore_original_limits()
                _take_control()


def _take_control():
    """Let this thread set the limit: newer threadpoolctl obeys only the first thread to do so."""
    if hasattr(OpenBLASController, "clear_controlling_thread"):
        OpenBLASController.clear_controlling_thread(force=True)


def in_threads(tasks, work, buffers=tuple, blas=False):
    """Call ``work(task, *buffers())`` for each task, in threads; each makes its buffers once.

    Parameters
    ----------
    tasks : iterable
        No task may be None.
    work : callable
        Its results must not depend on the order of the tasks.
    buffers : callable, optional
        Returns a tuple or list of the working memory of a thread.
    blas : bool, optional
        True if the work calls BLAS or LAPACK. Each call then uses one thread, so that results do
        not depend on the number of threads. Setting this takes a millisecond, so it is omitted for
        other work.
    """
    tasks = list(tasks)
    alone = blas_alone() if blas else contextlib.nullcontext()
    threads = min(thread_count(), len(tasks))
    if threads <= 1:
        with alone:
            own = buffers() if tasks else ()
            for task in tasks:
                work(task, *own)
        return
    queue = SimpleQueue()
    for task in [*tasks, *[None] * threads]:
        queue.put(task)

    def worker(_):
        own = buffers()
        while (task := queue.get()) is not None:
            work(task, *own)

    with alone, ThreadPoolExecutor(threads) as workers:
        try:
            list(workers.map(worker, range(threads)))
        except BaseException:  # such as Ctrl-C: threads must end after their present task
            with contextlib.suppress(Empty):
                while True:
                    queue.get_nowait()
            for _ in range(threads):
                queue.put(None)
            raise


def in_turn(work, items, ahead=0):
    """Yield each item with a function that returns ``work(item)`` or raises the error of ``work``.

    An error of the file system becomes a `UserError` that names the item, see `errors.blamed_on`.

    Parameters
    ----------
    work : callable
    items : iterable
    ahead : int
        Number of following items that are processed in advance, each in its own thread. With 0, the
        function that is yielded does the work when it is called.

    Examples
    --------
    >>> [(item, result()) for item, result in in_turn(len, ["a", "bcd"], ahead=1)]
    [('a', 1), ('bcd', 3)]
    """
    if not ahead:
        for item in items:
            yield item, partial(_blamed, work, item)
        return
    workers, begun = ThreadPoolExecutor(ahead + 1), deque()
    try:
        for item in items:
            begun.append((item, workers.submit(_blamed, work, item).result))
            if len(begun) > ahead:
                yield begun.popleft()
        yield from begun
    finally:  # also if the caller stops early
        workers.shutdown(cancel_futures=True)


def _blamed(work, item):
    with blamed_on(item):
        return work(item)


def one_ahead(items):
    """Yield items; meanwhile another thread makes the next item, if `thread_count` is above one.

    Examples
    --------
    >>> list(one_ahead(number**2 for number in range(4)))
    [0, 1, 4, 9]
    """
    items, end = iter(items), object()
    if thread_count() == 1:
        yield from items
        return
    with ThreadPoolExecutor(1) as worker:
        following = worker.submit(next, items, end)
        while (item := following.result()) is not end:
            following = worker.submit(next, items, end)
            yield item


def spans(count, at_most):
    """Cut ``range(count)`` into parts (start, stop) of about equal length, at most `at_most`.

    Examples
    --------
    >>> spans(10, 4)
    [(0, 3), (3, 6), (6, 10)]
    """
    pieces = -(-count // at_most)
    return [(count * n // pieces, count * (n + 1) // pieces) for n in range(pieces)]
