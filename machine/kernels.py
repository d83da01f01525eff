"""Compile kernels by numba, and cache the compiled code until one of the source files changes.

numba itself checks only the file of the kernel. Kernels also use functions and constants of other
files. The names of the cached files therefore contain a digest of all these source files.
"""
import contextlib
from functools import cache
from glob import escape
from pathlib import Path

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

from machine.sources import digest_of, sources_behind


def njit(**options):
    """Compile as `numba.njit` with these options, and cache the compiled code.

    Parameters
    ----------
    **options
        Options of `numba.njit`. Code is always cached, with or without ``cache=True``.

    Returns
    -------
    callable
        A decorator of functions.
    """
    options.pop("cache", None)

    def compiled(function):
        dispatcher = numba.njit(**options)(function)
        if hasattr(dispatcher, "enable_caching"):  # with NUMBA_DISABLE_JIT, it is the function
            dispatcher._cache = _KeptCode(function)
        return dispatcher

    return compiled


class _KeptCode(FunctionCache):
    """numba's cache of the compiled code of a function; file names hold the digest of sources."""

    def __init__(self, function):
        super().__init__(function)
        # The name is numba's own name (module, function, line, Python), then the digest.
        self._base = f"{self._impl.filename_base}.{_digest_behind(function.__code__.co_filename)}"
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = IndexDataCacheFile(self._cache_path, self._base, stamp)

    def save_overload(self, sig, data):
        """Save the compiled code, and remove code that was compiled from earlier sources."""
        super().save_overload(sig, data)
        name, _, rest = self._impl.filename_base.rpartition("-")
        python = rest.partition(".")[2]
        for path in Path(self._cache_path).glob(f"{escape(name)}-*.{escape(python)}.*nb[ic]"):
            if not path.name.startswith(f"{self._base}."):
                with contextlib.suppress(OSError):  # another process removed the file, or reads it
                    path.unlink()


@cache
def _digest_behind(path):
    """The digest of a source file and of all files that it imports."""
    return digest_of(sources_behind(path))
