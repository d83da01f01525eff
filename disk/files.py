"""Write files completely or not at all, and read files with checks.

A file gets its final name only when its whole content is on the disk. Files that are read may be
truncated or malicious.
"""
import contextlib
import errno
import hashlib
import json
import os
import re
import uuid
from pathlib import Path

import numpy as np

from disk.locks import lock_file, only_one_in
from machine.errors import CannotWrite, UserError, first_line

# Pattern of the temporary names of files, see `WholeFiles`.
TEMPORARY = ".*." + 12 * "[0-9a-f]" + ".part*"
JSON_BYTES = 64 << 20  # largest JSON file that is read; the project writes no larger one
ENDING = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)  # ending of a volume's name
BLOCK_BYTES = 1 << 20  # bytes that are read at a time to compute a digest


# ------------------------------------------------------------------------------------------ writing


class WholeFiles:
    """A group of files that get their final names together, when all are on the disk.

    See `whole_files`.
    """

    def __init__(self):
        self._written = {}  # temporary path by final path; the first file first
        self._open = []  # locked handles: a temporary file without a lock is of a killed process
        self._outdated = []  # files that `place` removes

    @contextlib.contextmanager
    def writing(self, path, suffix=""):
        """A context that creates an empty temporary file beside `path`; its block writes the file.

        At the end of the block, the content is flushed to the disk.

        Parameters
        ----------
        path : path-like
        suffix : str, optional
            Ending of the temporary name, for writers that choose the format by the ending.

        Yields
        ------
        str

        Raises
        ------
        CannotWrite
            If the disk is full or the folder is not writable.
        UserError
            If the name is too long.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:12]}.part{suffix}")
        with cannot_write(path):
            handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            self._written[path] = temporary
            self._hold(handle)
            yield str(temporary)
            with open(temporary, "r+b") as written:
                os.fsync(written.fileno())  # complete even after a power cut

    def digest(self, path):
        """SHA-256 of the temporary file for a path, in hexadecimal."""
        return file_digest(self._written[Path(path)])

    def outdate(self, path):
        """Mark a file that `place` removes, because it does not belong to the new first file."""
        self._outdated.append(Path(path))

    def place(self):
        """Give all files their final names.

        All old files except the first are removed before the first new file gets its name. An old
        file therefore never lies beside a new first file.
        """
        if not self._written:
            return
        paths = list(self._written)
        together = only_one_in(paths[0].parent) if len(paths) > 1 else contextlib.nullcontext()
        with together:
            for path in paths:
                with cannot_write(path):
                    if path.is_dir():
                        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            for path in [*paths[1:], *self._outdated]:
                with cannot_write(path):
                    path.unlink(missing_ok=True)
            for path, temporary in self._written.items():
                with cannot_write(path):
                    os.replace(temporary, path)
        self._written.clear()

    def end(self):
        """Remove the remaining temporary files, and release the locks."""
        for temporary in self._written.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        for handle in self._open:
            os.close(handle)

    def _hold(self, handle):
        """Lock a temporary file while this process writes it."""
        if os.name == "nt":  # Windows cannot rename an open file
            os.close(handle)
            return
        self._open.append(handle)
        with contextlib.suppress(OSError):  # the file system has no locks
            lock_file(handle)


@contextlib.contextmanager
def whole_files():
    """A context to write files under temporary names; at its end, all get their final names.

    If the block raises an exception, the temporary files are removed and the old files stay.

    Yields
    ------
    WholeFiles
    """
    files = WholeFiles()
    try:
        yield files
        files.place()
    finally:
        files.end()


@contextlib.contextmanager
def whole_file(path, suffix=""):
    """A context like `whole_files` for a single file; yields its temporary name.

    Its parameters and errors are those of `WholeFiles.writing`.
    """
    with whole_files() as files, files.writing(path, suffix) as temporary:
        yield temporary


@contextlib.contextmanager
def cannot_write(path):
    """A context that turns an OSError into CannotWrite, or UserError if a name is too long."""
    try:
        yield
    except OSError as fault:
        if fault.errno == errno.ENAMETOOLONG:  # other volumes may have shorter names
            raise UserError(f"{path}: cannot be written ({fault.strerror}); shorten its name "
                            "or its --suffix") from fault
        raise CannotWrite(
            f"{path}: cannot be written ({fault.strerror or fault}); make room on that disk, "
            "or give a folder that takes files") from fault


def remove_unfinished(folder, names=None, running=True):
    """Remove temporary files that killed processes left below a folder.

    Parameters
    ----------
    folder : path-like
    names : sequence of str, optional
        Final names of files. If given, only the temporary files of these names, directly in the
        folder, are removed. By default, all temporary files in the folder and below are removed.
    running : bool, optional
        If True, all these files are removed, also files that a running process has locked. If
        False, locked files stay, and on a file system without locks all files stay.
    """
    found = Path(folder).rglob(TEMPORARY) if names is None else Path(folder).glob(TEMPORARY)
    starts = tuple(f".{name[:40]}." for name in names or ())
    for left in list(found):
        wanted = names is None or left.name.startswith(starts)
        if wanted and (running or _is_left(left)):
            with contextlib.suppress(FileNotFoundError):
                left.unlink()


def _is_left(path):
    """True if no process is writing a temporary file."""
    try:
        with open(path, "r+b") as file:
            lock_file(file)
            return True
    except OSError:  # locked, removed, or on a file system without locks
        return False


def write_whole(path, content, files=None):
    """Write text or bytes to a file that gets its name only when it is complete.

    Parameters
    ----------
    path : path-like
    content : str or bytes
        Text is written as UTF-8, with unchanged line ends.
    files : WholeFiles, optional
        Group of files that the file belongs to.

    Raises
    ------
    CannotWrite
        If the disk is full or the folder is not writable.
    """
    with (files.writing(path) if files else whole_file(path)) as temporary:
        # A file name in a text may hold bytes that are not UTF-8; they are written unchanged.
        Path(temporary).write_bytes(content.encode("utf-8", "surrogateescape")
                                    if isinstance(content, str) else content)


def write_json(path, content, files=None):
    """Write a dict as a JSON object, indented for readers; otherwise like `write_whole`."""
    write_whole(path, json.dumps(content, indent=1) + "\n", files)


def write_pieces(path, pieces):
    """Write texts to a file like `write_whole`, with only one text in memory at a time."""
    with (whole_file(path) as temporary,
          open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file):
        file.writelines(pieces)


def make_folder(path):
    """Make a folder and its parent folders; CannotWrite is raised if that is impossible."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise CannotWrite(f"{path}: cannot be made ({fault.strerror}); "
                          "give a folder that can be written") from fault


# ------------------------------------------------------------------------------------------ reading

def read_json(path):
    """A JSON object from a file.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If the file is not a JSON object, cannot be read, or is larger than JSON_BYTES.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(JSON_BYTES + 1)
        content = json.loads(text) if len(text) <= JSON_BYTES else None
    except (OSError, RecursionError) as fault:
        raise ValueError(first_line(fault)) from fault
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def array_header(file):
    """Read the header of the npy array at the file's position, without reading the array.

    Parameters
    ----------
    file : binary file
        Its position moves to the array's values.

    Returns
    -------
    shape : tuple of int
    dtype : numpy.dtype

    Raises
    ------
    ValueError
        If there is no valid header, or the array has objects, Fortran order or a negative size.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except Exception as fault:  # a malicious header can raise many types of exceptions
        raise ValueError(first_line(fault)) from fault
    if fortran and len(shape) > 1 or dtype.hasobject or any(side < 0 for side in shape):
        raise ValueError("objects, Fortran order or a negative size")
    return shape, dtype


def file_digest(path):
    """SHA-256 of a file, in hexadecimal; raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        return stream_digest(file)


def stream_digest(file):
    """SHA-256 of the rest of an open binary file, in hexadecimal."""
    digest = hashlib.sha256()
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def stem(path):
    """The name of a volume without .nii or .nii.gz.

    Examples
    --------
    >>> stem("scans/sub-01_T1w.nii.gz"), stem("SCAN.NII")
    ('sub-01_T1w', 'SCAN')
    """
    return ENDING.sub("", Path(path).name)
