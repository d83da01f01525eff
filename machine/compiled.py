"""Where numba keeps compiled code: beside the sources, in the user's cache, or else for this run.

A clone that takes no files and a user without a home (containers, shared installs) leave numba no
place, and it refuses to compile at all.
"""
import atexit
import shutil
import tempfile


def keep_compiled_code():
    """See to it that numba finds a folder for compiled code; say where it is for this run only.

    To be called before a module with kernels is imported. What is made for this run is removed
    at its end: a folder that stays where all users write would be a way to slip in code.
    """
    # Here: numba takes half a second, which --help need not wait for.
    import numba

    def kernel():
        """Something to compile."""

    try:
        numba.njit(cache=True)(kernel)
    except RuntimeError:  # what it says where it finds none
        folder = tempfile.mkdtemp(prefix="numba_")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        numba.config.CACHE_DIR = folder
        print("Note: compiled code cannot be kept, each run compiles anew; set NUMBA_CACHE_DIR to "
              "a folder of your own that can be written")
