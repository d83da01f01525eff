"""Messages about a volume: printed at once, or collected on a worker.

Nobody reads the output of a cluster's worker. So the worker collects its messages, and the command
prints them. A worker may have several threads, each with its own volume; the messages of each
thread are collected separately. A volume that is read several times gives equal messages each time;
a command prints equal messages only once.
"""
import contextlib
import threading

_listeners = threading.local()
_printed = []  # one set of printed lines for each active `each_once`


@contextlib.contextmanager
def listening():
    """A context in which the messages of this thread are collected instead of printed.

    Yields
    ------
    list of (str, str)
        The messages so far, in order: "stdout" or "stderr", and a line.
    """
    before, _listeners.lines = getattr(_listeners, "lines", None), []
    try:
        yield _listeners.lines
    finally:
        _listeners.lines = before


@contextlib.contextmanager
def noting():
    """A context that notes the messages of this thread, which are also printed or collected.

    Yields
    ------
    list of str
        The lines so far, in order.
    """
    before, _listeners.noted = getattr(_listeners, "noted", None), []
    try:
        yield _listeners.noted
    finally:
        _listeners.noted = before


def is_heard():
    """True if the messages of this thread are collected."""
    return getattr(_listeners, "lines", None) is not None


def withheld(line, stream):
    """True if a line must not be printed, because it is collected or was printed before."""
    if (noted := getattr(_listeners, "noted", None)) is not None:
        noted.append(line)
    if is_heard():
        _listeners.lines.append((stream, line))
        return True
    if not _printed or stream != "stderr":
        return False
    before = line in _printed[-1]
    _printed[-1].add(line)
    return before


@contextlib.contextmanager
def each_once():
    """A context in which equal lines on standard error are printed once, from all threads."""
    _printed.append(set())
    try:
        yield
    finally:
        _printed.pop()
