"""What long work shows of itself: progress bars, and how long each step took."""
import contextlib
import time

from tqdm import tqdm


def progress(total, what, unit, quiet=False):
    """A progress bar with rate and time left on a terminal, nothing elsewhere or when quiet."""
    return tqdm(total=total, desc=what, unit=unit, unit_scale=True, leave=False,
                disable=quiet or None, dynamic_ncols=True)


class Stopwatch:
    """How long each step took: ``with watch("restore"): ...`` adds to ``watch.seconds``."""

    def __init__(self):
        self.seconds = {}

    @contextlib.contextmanager
    def __call__(self, name):
        begun = time.perf_counter()
        yield
        seconds = self.seconds.get(name, 0) + time.perf_counter() - begun
        self.seconds[name] = round(seconds, 3)
