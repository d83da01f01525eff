"""Progress bars, lines printed above them, and a stopwatch for the steps of long work."""
import contextlib
import sys
import threading
import time

from tqdm import tqdm

from machine.errors import one_line
from machine.remarks import is_heard, withheld


def progress(total, what, unit, quiet=False):
    """A progress bar with rate and remaining time; shown only on a terminal, and not if quiet."""
    quiet = quiet or is_heard()  # on a worker
    return Bar(total=total, desc=one_line(what), unit=unit, unit_scale=True, leave=False,
               disable=quiet or None, dynamic_ncols=True)


class Bar(tqdm):
    """A progress bar that shows escape sequences in names and does not send them to terminals."""

    def set_description(self, desc=None, refresh=True):
        super().set_description(one_line(desc or ""), refresh)


# By default bars share a semaphore between processes; of a killed process, Python reports it as
# leaked. Bars of the processes of a cluster are not shown.
Bar.set_lock(threading.RLock())


def say(text, stream="stdout"):
    """Print a line, above the progress bar if there is one; `stream` is "stderr" for problems."""
    if not withheld(one_line(text), stream):
        Bar.write(one_line(text), file=getattr(sys, stream))


class Stopwatch:
    """Seconds by name of a step: ``with watch("restore"): ...`` adds to ``watch.seconds``."""

    def __init__(self):
        self.seconds = {}

    @contextlib.contextmanager
    def __call__(self, name):
        begun = time.perf_counter()
        yield
        seconds = self.seconds.get(name, 0) + time.perf_counter() - begun
        self.seconds[name] = round(seconds, 3)
