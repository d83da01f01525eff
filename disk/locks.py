"""Locks on files, which the system lets go of when their process ends, however it ends."""
import contextlib
import os


def holds_lock(file, path):
    """Lock an open file for this process, where its file system has locks.

    Parameters
    ----------
    file : binary file
    path : path-like
        That it was opened by.

    Returns
    -------
    bool
        Whether it still is the file at that path: else its holder has just removed it.

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
        Or, but for Windows, its descriptor.

    Raises
    ------
    BlockingIOError
        If another process has locked it.
    OSError
        If the file system has no locks.
    """
    if os.name == "nt":
        import msvcrt  # here: Windows alone has it

        file.seek(1 << 30)  # far behind the text, so that others can read that
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as fault:
            raise BlockingIOError from fault
        finally:
            file.seek(0)
    else:
        import fcntl  # here: Windows lacks it

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def only_one_in(folder):
    """While inside, others that ask for the same folder wait, where the system can lock folders."""
    handle = None
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # here: Windows lacks it, and cannot open folders

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
