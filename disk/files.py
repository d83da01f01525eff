"""Files that are whole or not there at all, and readers that expect anything.

What is written appears under its name when all of it is on the disk. What is read may have been cut
off, or made to harm.
"""
import contextlib
import errno
import hashlib
import json
import os
import uuid
from pathlib import Path

import numpy as np

from machine.errors import CannotWrite, UserError, first_line

# What a file is called while it is written, see `whole_file`.
TEMPORARY = ".*." + 12 * "[0-9a-f]" + ".part*"
JSON_BYTES = 64 << 20  # a larger one is not ours
BLOCK_BYTES = 1 << 20  # that a digest is computed from at a time


# ------------------------------------------------------------------------------------------ writing

@contextlib.contextmanager
def whole_file(path, suffix=""):
    """A temporary name beside `path`, which takes its place once all is written and on the disk.

    If the block ends in an exception, the temporary file is removed and what stood under `path`
    still does.

    Parameters
    ----------
    path : path-like
    suffix : str, optional
        What the temporary name ends in, for writers that choose the format by it.

    Yields
    ------
    str
        The temporary name, of an empty file.

    Raises
    ------
    CannotWrite
        If the disk is full or the folder takes no files.
    UserError
        If the name is too long.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:12]}.part{suffix}")
    try:
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield str(temporary)
            _flush(temporary)
            os.replace(temporary, path)
        except OSError as fault:
            if fault.errno == errno.ENAMETOOLONG:  # another volume's may be shorter
                raise UserError(f"{path}: cannot be written ({fault.strerror}); shorten its name "
                                "or its --suffix") from fault
            raise CannotWrite(
                f"{path}: cannot be written ({fault.strerror or fault}); make room on that disk, "
                "or give a folder that takes files") from fault
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(folder, name=None):
    """Remove temporary files that killed processes left below a folder; of one name, if given."""
    start = f".{name[:40]}." if name else ""
    for left in Path(folder).rglob(TEMPORARY):
        if left.name.startswith(start):
            left.unlink(missing_ok=True)


def _flush(path):
    """Have the system put a file on the disk itself.

    A power cut after the renaming then finds it whole.
    """
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path, content):
    """Write text or bytes under a name that appears only when all is written.

    Parameters
    ----------
    path : path-like
    content : str or bytes
        Text is written as UTF-8, its line ends as they are.

    Raises
    ------
    CannotWrite
        If the disk is full or the folder takes no files.
    """
    with whole_file(path) as temporary:
        # A file name in a text may hold bytes that are no UTF-8; they are written as they are.
        Path(temporary).write_bytes(content.encode("utf-8", "surrogateescape")
                                    if isinstance(content, str) else content)


def write_json(path, content):
    """Write a JSON object, indented for people, as `write_whole` does.

    Parameters
    ----------
    path : path-like
    content : dict

    Raises
    ------
    CannotWrite
        If the disk is full or the folder takes no files.
    """
    write_whole(path, json.dumps(content, indent=1) + "\n")


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
