"""Check that files did not change while they were read."""
import os

from disk.files import file_digest
from machine.errors import UserError


class Seal:
    """The state of a file before it is read, and its digest after it was read.

    Parameters
    ----------
    path : path-like
    others : path-like
        Files that are read with it, such as its mask; they are checked too.
    """

    def __init__(self, path, *others):
        self.path, self.before = path, {file: _state(file) for file in (path, *others)}

    def digest(self):
        """SHA-256 of the file that was read, in hexadecimal.

        Raises
        ------
        UserError
            If a file was changed, replaced or removed since the seal was made.
        """
        try:
            found = file_digest(self.path)
        except OSError as fault:
            raise UserError(f"{self.path}: cannot be read any more ({fault.strerror or fault}); "
                            "put it back and run the same command again") from fault
        self.check()
        return found

    def check(self):
        """Raise UserError if a file was changed, replaced or removed since the seal was made."""
        for file, before in self.before.items():
            if _state(file) != before:
                raise UserError(f"{file}: was changed while it was read; run the same command "
                                "again when it is complete")


def _state(path):
    """Numbers that differ after a file was changed or replaced; None if there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
