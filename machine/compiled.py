"""The folder of numba's compiled code: beside the sources, in the user's cache, or temporary.

In containers and shared installs, the clone may be read-only and the user may have no home folder.
numba then finds no folder for compiled code, and does not compile at all.
"""
import atexit
import shutil
import tempfile


def keep_compiled_code():
    """Give numba a folder for compiled code; a message reports if the folder is temporary.

    It must be called before a module with kernels is imported. A temporary folder is removed at the
    end of the run: in a folder where all users write, other users could put code into it.
    """
    # Imported here: numba takes half a second, and --help does not wait for it.
    import numba

    def kernel():
        """Something to compile."""

    try:
        numba.njit(cache=True)(kernel)
    except RuntimeError:  # numba finds no folder
        folder = tempfile.mkdtemp(prefix="numba_")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        numba.config.CACHE_DIR = folder
        print("Note: compiled code cannot be kept, each run compiles anew; set NUMBA_CACHE_DIR to "
              "a folder of your own that can be written")
