"""Locks on files; the system releases a lock when its process ends, even if it is killed."""
import contextlib
import os


def holds_lock(file, path):
    """Lock an open file for this process, if its file system has locks.

    Parameters
    ----------
    file : binary file
    path : path-like
        Path from which the file was opened.

    Returns
    -------
    bool
        True if `file` is still the file at `path`. False if its previous holder has removed it.

    Raises
    ------
    BlockingIOError
        If another process has locked it.
    """
    try:
        lock_file(file)
    except BlockingIOError:
        raise
    except OSError:
        return True  # a file system without locks
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


def lock_file(file):
    """Lock an open file for this process.

    Parameters
    ----------
    file : binary file
        An open file; except on Windows, also a file descriptor.

    Raises
    ------
    BlockingIOError
        If another process has locked it.
    OSError
        If the file system has no locks.
    """
    if os.name == "nt":
        import msvcrt  # imported here: only Windows has it

        file.seek(1 << 30)  # far behind the text, so that others can read the text
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as fault:
            raise BlockingIOError from fault
        finally:
            file.seek(0)
    else:
        import fcntl  # imported here: Windows does not have it

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def only_one_in(folder):
    """A context that makes other callers for the folder wait, if the system can lock folders."""
    handle = None
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # imported here: Windows does not have it, and cannot open folders

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
