"""Choose a folder for numba's compiled code: beside the sources, in the user's cache, or temporary.

In containers and shared installs, the project's folder may be read-only, and the user may have no
home folder. numba then finds no folder for compiled code, and does not compile at all.
"""
import atexit
import os
import shutil
import tempfile


def keep_compiled_code():
    """Give numba a folder for compiled code; if the folder is temporary, print a message.

    Call it before a module with kernels is imported. A temporary folder is removed at the end of
    the run: others could put code into a folder that stays where all users can write.
    """
    # Imported here, because numba takes half a second to import, and --help must not wait for it.
    import numba

    def kernel():
        """A function to compile, as a test."""

    try:
        numba.njit(cache=True)(kernel)
    except RuntimeError:  # numba finds no folder
        folder = tempfile.mkdtemp(prefix="numba_")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        numba.config.CACHE_DIR = folder
        os.environ["NUMBA_CACHE_DIR"] = folder  # for the processes of --scheduler local
        print("Note: compiled code cannot be kept, so each run compiles again; set NUMBA_CACHE_DIR "
              "to a folder of your own that can be written")
