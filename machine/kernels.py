"""Kernels that numba compiles and keeps, for as long as all that they are made of stays the same.

numba itself looks at the one file that a kernel stands in. Kernels take in functions and constants
of other files, so the names of kept files hold a digest of all of these.
"""
import contextlib
from functools import cache
from glob import escape
from pathlib import Path

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

from machine.sources import digest_of, sources_behind


def njit(**options):
    """Compile as `numba.njit` with these options, and keep what was compiled.

    Parameters
    ----------
    **options
        Of `numba.njit`. ``cache=True`` is one of them: it is meant in any case.

    Returns
    -------
    callable
        What decorates a function.
    """
    options.pop("cache", None)

    def compiled(function):
        dispatcher = numba.njit(**options)(function)
        if hasattr(dispatcher, "enable_caching"):  # with NUMBA_DISABLE_JIT, it is the function
            dispatcher._cache = _KeptCode(function)
        return dispatcher

    return compiled


class _KeptCode(FunctionCache):
    """numba's kept code of a function, under names that hold the digest of all its sources."""

    def __init__(self, function):
        super().__init__(function)
        # As numba has it: module, function, line, Python; then the digest.
        self._base = f"{self._impl.filename_base}.{_digest_behind(function.__code__.co_filename)}"
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = IndexDataCacheFile(self._cache_path, self._base, stamp)

    def save_overload(self, sig, data):
        """Keep what was compiled, and remove what was compiled from earlier sources."""
        super().save_overload(sig, data)
        name, _, rest = self._impl.filename_base.rpartition("-")
        python = rest.partition(".")[2]
        for path in Path(self._cache_path).glob(f"{escape(name)}-*.{escape(python)}.*nb[ic]"):
            if not path.name.startswith(f"{self._base}."):
                with contextlib.suppress(OSError):  # another process was faster, or still reads it
                    path.unlink()


@cache
def _digest_behind(path):
    """The digest of a source file and of all that it imports."""
    return digest_of(sources_behind(path))
