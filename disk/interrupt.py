"""One training at a time in a folder, and a stop of it between two volumes that loses nothing."""
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
    """Hold the lock of a folder: a second training there is refused.

    The system itself keeps the lock, and lets go of it when the process ends, however it ends: a
    file that a killed training left behind is no lock, and no process number can be mistaken for
    another. Over network disks it holds between machines where these support locks.

    Parameters
    ----------
    folder : path-like
        Made where it is missing. Half-written files of a killed training are removed from it.

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
                left.unlink(missing_ok=True)  # of a training that was killed while it wrote
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
    """Open a lock file and lock it; raises UserError if another process has."""
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
        file.close()  # it was removed by its holder just before


@contextlib.contextmanager
def on_signals(handler):
    """While inside, have Ctrl-C and SIGTERM call ``handler(number, frame)``, in the main thread."""
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
    """While inside, Ctrl-C and SIGTERM are noted, so that the volume at hand can be saved.

    A second one interrupts as usual.

    Attributes
    ----------
    asked : int or None
        The signal that was noted.
    wake : callable
        Called then, within the signal's handler: for who waits for something else meanwhile.
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
        # Not print: the signal may fall into another print, and Python refuses the second.
        os.write(2, b"\ntrain.py: stopping after this volume; "
                    b"once more stops without saving it\n")


def stopped(number, checkpoint):
    """Say that a training was stopped and is saved.

    Parameters
    ----------
    number : int
        Of the signal.
    checkpoint : Checkpoint
        What was begun with --restart goes on without it.

    Returns
    -------
    int
        The exit status that shells expect.
    """
    each = ({record.name for record in records} for records in checkpoint.kept.values())
    done = len(set.intersection(*each))
    plural = "" if done == 1 else "s"
    without = " without --restart" if checkpoint.request.restart else ""
    print(f"Stopped; {done} volume{plural} saved in {checkpoint.folder}. "
          f"The same command{without} goes on from there.", flush=True)
    return 128 + number
