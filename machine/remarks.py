"""What is said of a volume while it is worked on: printed, or kept for who shall print it.

A worker of a cluster has nobody who reads what it prints. Some have several threads, each with a
volume of its own: what each says is kept apart.
"""
import contextlib
import threading

_listeners = threading.local()


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


def kept(line, stream):
    """Keep a line where somebody listens; returns whether that was so."""
    if is_heard():
        _listeners.lines.append((stream, line))
    return is_heard()
