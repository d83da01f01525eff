"""What is said of a volume while it is worked on: printed, or kept for who shall print it.

A worker of a cluster has nobody who reads what it prints. Some have several threads, each with a
volume of its own: what each says is kept apart. A volume that is read several times has the same
remarks each time: a command prints them once.
"""
import contextlib
import threading

_listeners = threading.local()
_printed = []  # sets of lines, one for each `each_once` that was entered


@contextlib.contextmanager
def listening():
    """Keep what this thread would print of a volume.

    Yields
    ------
    list of (str, str)
        What was said so far, in order: "stdout" or "stderr", and a line.
    """
    before, _listeners.lines = getattr(_listeners, "lines", None), []
    try:
        yield _listeners.lines
    finally:
        _listeners.lines = before


def is_heard():
    """Whether what this thread says is kept."""
    return getattr(_listeners, "lines", None) is not None


def withheld(line, stream):
    """Whether a line shall not be printed: it is kept for who listens, or was printed before."""
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
    """Print each line of standard error once; all threads do."""
    _printed.append(set())
    try:
        yield
    finally:
        _printed.pop()
