"""Allow only one training at a time in a folder, and stop a training safely after a volume."""
import contextlib
import os
import signal
import socket
import time
from pathlib import Path

from disk.files import TEMPORARY, cannot_write, make_folder
from disk.locks import holds_lock
from machine.errors import UserError


@contextlib.contextmanager
def only_training(folder):
    """A context that locks a folder for one training.

    The operating system releases the lock at the end of the process, even if the process is killed.
    So the lock file of a killed training does not block the next training. On network disks with
    locks, the lock also works between machines.

    Parameters
    ----------
    folder : path-like
        The folder is made if it is missing. Incomplete files of a killed training are removed.

    Raises
    ------
    UserError
        If another training holds the lock.
    CannotWrite
        If the disk is full or the folder is not writable.
    """
    make_folder(folder)
    path = Path(folder, "train.lock")
    with cannot_write(path):
        file = _locked(path)
    try:
        with cannot_write(path):
            file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode())
        for below in (".", "QVF_*"):
            for left in Path(folder).glob(f"{below}/{TEMPORARY}"):
                left.unlink(missing_ok=True)  # a training was killed while it wrote this file
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.name != "nt":  # Windows cannot remove an open file
                path.unlink()
        file.close()
        with contextlib.suppress(OSError):
            if os.name == "nt":
                path.unlink()


def _locked(path):
    """Open a lock file and lock it; raises UserError if another process holds the lock."""
    while True:
        file = open(path, "a+b", buffering=0)  # closing must write nothing more
        try:
            if holds_lock(file, path):
                return file
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip() or "another process"
            file.close()
            raise UserError(f"{path}: a training runs here already ({holder}); wait for it, or "
                            "give another --arrays_dir") from None
        file.close()  # the training that held the lock has just removed the file: try again


@contextlib.contextmanager
def on_signals(handler):
    """A context in which Ctrl-C and SIGTERM call ``handler(number, frame)``; main thread only."""
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not in the main thread
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, kept in before.items():
            signal.signal(number, kept)


class Stop:
    """A context that notes Ctrl-C or SIGTERM, so that the current volume is finished and saved.

    A second signal raises KeyboardInterrupt.

    Attributes
    ----------
    asked : int or None
        The signal that was noted.
    wake : callable
        Called by the signal handler, to wake code that waits.
    """

    def __init__(self):
        self.asked, self.wake = None, lambda: None

    def __enter__(self):
        self._until = contextlib.ExitStack()
        self._until.enter_context(on_signals(self._note))
        return self

    def __exit__(self, *_):
        self._until.close()

    def _note(self, number, frame):
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number
        self.wake()
        # No print here: the signal may interrupt a print, and Python forbids nested prints.
        os.write(2, b"\ntrain.py: stopping after this volume; "
                    b"once more stops without saving it\n")


def stopped(number, checkpoint):
    """Print that a training was stopped by a signal and saved.

    Returns
    -------
    int
        Exit status, as shells expect it after the signal of this number.
    """
    each = ({record.name for record in records} for records in checkpoint.ledger.kept.values())
    done = len(set.intersection(*each))
    plural = "" if done == 1 else "s"
    without = " without --restart" if checkpoint.request.restart else ""
    print(f"Stopped; {done} volume{plural} saved in {checkpoint.folder}. "
          f"The same command{without} goes on from there.", flush=True)
    return 128 + number
