"""Messages about a volume: printed at once, or collected on a worker.

Nobody reads the output of a cluster's worker. So its messages are collected, and the command prints
them. A worker may have several threads, each with a volume of its own, and collects the messages of
each thread separately. A volume that is read several times gives equal messages each time; a
command prints such messages once.
"""
import contextlib
import threading

_listeners = threading.local()
_printed = []  # sets of lines, one for each `each_once` that was entered


@contextlib.contextmanager
def listening():
    """Inside, collect the messages of this thread instead of printing them.

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
    """Inside, note the messages of this thread; they are also printed or collected as usual.

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
    """True if a line must not be printed: it is collected here, or was printed before."""
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
    """Inside, each line of standard error is printed once, also if several threads print it."""
    _printed.append(set())
    try:
        yield
    finally:
        _printed.pop()
