"""Files that are whole or not there at all, and readers that expect anything.

What is written appears under its name when all of it is on the disk. What is read may have been cut
off, or made to harm.
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

# What a file is called while it is written, see `WholeFiles`.
TEMPORARY = ".*." + 12 * "[0-9a-f]" + ".part*"
JSON_BYTES = 64 << 20  # a larger one is not ours
ENDING = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)  # of a volume's name
BLOCK_BYTES = 1 << 20  # that a digest is computed from at a time


# ------------------------------------------------------------------------------------------ writing


class WholeFiles:
    """Files that appear under their names together, when all of them are on the disk.

    See `whole_files`.
    """

    def __init__(self):
        self._written = {}  # temporary name by name, in order
        self._open = []  # handles that hold locks, by which the files of killed processes are told
        self._outdated = []

    @contextlib.contextmanager
    def writing(self, path, suffix=""):
        """A temporary name beside `path`, of an empty file; it is on the disk after the block.

        Parameters
        ----------
        path : path-like
        suffix : str, optional
            What the temporary name ends in, for writers that choose the format by it.

        Yields
        ------
        str

        Raises
        ------
        CannotWrite
            If the disk is full or the folder takes no files.
        UserError
            If the name is too long.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:12]}.part{suffix}")
        with _cannot_write(path):
            handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            self._written[path] = temporary
            self._hold(handle)
            yield str(temporary)
            _flush(temporary)

    def digest(self, path):
        """SHA-256 of what was written for a path, in hexadecimal."""
        return file_digest(self._written[Path(path)])

    def outdate(self, path):
        """Have a file removed that would belong to the first one no more."""
        self._outdated.append(Path(path))

    def place(self):
        """Give all files their names.

        The old ones that belong to the first are removed before it takes its place, so that none
        ever stands beside a new first one.
        """
        if not self._written:
            return
        paths = list(self._written)
        together = only_one_in(paths[0].parent) if len(paths) > 1 else contextlib.nullcontext()
        with together:
            for path in paths:
                with _cannot_write(path):
                    if path.is_dir():
                        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            for path in [*paths[1:], *self._outdated]:
                with _cannot_write(path):
                    path.unlink(missing_ok=True)
            for path, temporary in self._written.items():
                with _cannot_write(path):
                    os.replace(temporary, path)
        self._written.clear()

    def end(self):
        """Remove temporary files that are left, and let go of locks."""
        for temporary in self._written.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        for handle in self._open:
            os.close(handle)

    def _hold(self, handle):
        """Lock a temporary file while this process writes it."""
        if os.name == "nt":  # where an open file cannot be renamed
            os.close(handle)
            return
        self._open.append(handle)
        with contextlib.suppress(OSError):  # a file system without locks
            lock_file(handle)


@contextlib.contextmanager
def whole_files():
    """Inside, files are written under temporary names; at its end all get their names at once.

    If the block ends in an exception, the temporary files are removed and what stood there before
    still does.

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
    """A temporary name beside `path`, which takes its place once all is written and on the disk.

    Parameters, what is yielded and raised are those of `WholeFiles.writing`.
    """
    with whole_files() as files, files.writing(path, suffix) as temporary:
        yield temporary


@contextlib.contextmanager
def _cannot_write(path):
    """Inside, an error of the system says that a file cannot be written."""
    try:
        yield
    except OSError as fault:
        if fault.errno == errno.ENAMETOOLONG:  # another volume's may be shorter
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
        Those of these files in the folder itself alone; by default of all below it.
    running : bool, optional
        Whether those that a running process has locked are removed as well. Else those stay of
        which that cannot be told.
    """
    found = Path(folder).rglob(TEMPORARY) if names is None else Path(folder).glob(TEMPORARY)
    starts = tuple(f".{name[:40]}." for name in names or ())
    for left in list(found):
        wanted = names is None or left.name.startswith(starts)
        if wanted and (running or _is_left(left)):
            with contextlib.suppress(FileNotFoundError):
                left.unlink()


def _is_left(path):
    """Whether no process writes a temporary file any more."""
    try:
        with open(path, "r+b") as file:
            lock_file(file)
            return True
    except OSError:  # locked, gone, or without locks
        return False


def _flush(path):
    """Have the system put a file on the disk itself.

    A power cut after the renaming then finds it whole.
    """
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path, content, files=None):
    """Write text or bytes under a name that appears only when all is written.

    Parameters
    ----------
    path : path-like
    content : str or bytes
        Text is written as UTF-8, its line ends as they are.
    files : WholeFiles, optional
        Those that it belongs to.

    Raises
    ------
    CannotWrite
        If the disk is full or the folder takes no files.
    """
    with (files.writing(path) if files else whole_file(path)) as temporary:
        # A file name in a text may hold bytes that are no UTF-8; they are written as they are.
        Path(temporary).write_bytes(content.encode("utf-8", "surrogateescape")
                                    if isinstance(content, str) else content)


def write_json(path, content, files=None):
    """Write a JSON object, indented for people, as `write_whole` does.

    Parameters
    ----------
    path : path-like
    content : dict
    files : WholeFiles, optional

    Raises
    ------
    CannotWrite
        If the disk is full or the folder takes no files.
    """
    write_whole(path, json.dumps(content, indent=1) + "\n", files)


def make_folder(path):
    """Make a folder, and those above it.

    Raises
    ------
    CannotWrite
        If that cannot be.
    """
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
        If it is none, cannot be read or is larger than any of ours.
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
    """Read the header of the npy array that starts here; nothing is allocated.

    Parameters
    ----------
    file : binary file
        Left where the array's values begin.

    Returns
    -------
    shape : tuple of int
    dtype : numpy.dtype

    Raises
    ------
    ValueError
        If there is none, or one of objects or in Fortran order.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except Exception as fault:  # the header is a Python literal: hostile ones end in many kinds
        raise ValueError(first_line(fault)) from fault
    if fortran and len(shape) > 1 or dtype.hasobject or any(side < 0 for side in shape):
        raise ValueError("objects, Fortran order or a negative size")
    return shape, dtype


def file_digest(path):
    """SHA-256 of a file, in hexadecimal; raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return stream_digest(file)


def stream_digest(file):
    """SHA-256 of what is left of an open binary file, in hexadecimal."""
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
