"""A lock for one training at a time in a folder, and a stop between two volumes without loss."""
import contextlib
import os
import signal
import socket
import time
from pathlib import Path

from disk.files import TEMPORARY, make_folder
from disk.locks import holds_lock
from machine.errors import CannotWrite, UserError


@contextlib.contextmanager
def only_training(folder):
    """Hold the lock of a folder; a second training there is refused.

    The operating system keeps the lock and releases it at the end of the process, even if it is
    killed. So the lock file of a killed training is no lock, and no process numbers are compared.
    On network disks with locks, the lock holds between machines, too.

    Parameters
    ----------
    folder : path-like
        Made if it is missing. Half-written files of a killed training are removed from it.

    Raises
    ------
    UserError
        If another training holds it.
    CannotWrite
        If the folder takes no files.
    """
    make_folder(folder)
    path = Path(folder, "train.lock")
    try:
        file = _locked(path)
    except OSError as fault:
        raise CannotWrite(f"{path}: cannot be written ({fault.strerror}); give an --arrays_dir "
                          "that can") from fault
    try:
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode())
        file.flush()
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
        file = open(path, "a+b")
        try:
            if holds_lock(file, path):
                return file
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip() or "another process"
            file.close()
            raise UserError(f"{path}: a training runs here already ({holder}); wait for it, or "
                            "give another --arrays_dir") from None
        file.close()  # its holder has just removed it


@contextlib.contextmanager
def on_signals(handler):
    """Inside, Ctrl-C and SIGTERM call ``handler(number, frame)``, in the main thread only."""
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
    """Inside, Ctrl-C and SIGTERM are noted, so that the present volume can be finished and saved.

    A second signal interrupts as usual.

    Attributes
    ----------
    asked : int or None
        The signal that was noted.
    wake : callable
        Called by the signal's handler, to wake code that waits for something else.
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
        # Not print: the signal may interrupt another print, and Python refuses a nested one.
        os.write(2, b"\ntrain.py: stopping after this volume; "
                    b"once more stops without saving it\n")


def stopped(number, checkpoint):
    """Print that a training was stopped and saved.

    Parameters
    ----------
    number : int
        Number of the signal.
    checkpoint : Checkpoint
        Its request decides the advice: a training begun with --restart continues without it.

    Returns
    -------
    int
        The exit status that shells expect.
    """
    each = ({record.name for record in records} for records in checkpoint.ledger.kept.values())
    done = len(set.intersection(*each))
    plural = "" if done == 1 else "s"
    without = " without --restart" if checkpoint.request.restart else ""
    print(f"Stopped; {done} volume{plural} saved in {checkpoint.folder}. "
          f"The same command{without} goes on from there.", flush=True)
    return 128 + number
