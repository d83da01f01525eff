"""Files that are whole or not there at all, and readers that expect anything.

What is written appears under its name when all of it is on the disk. What is read may have been cut off, or made to harm.
"""
import contextlib
import hashlib
import json
import os
import uuid
from pathlib import Path

import numpy as np

from machine.errors import CannotWrite, first_line

TEMPORARY = ".*." + 12 * "[0-9a-f]" + ".part*"  # what a file is called while it is written, see `whole_file`
JSON_BYTES = 64 << 20  # a larger one is not ours


@contextlib.contextmanager
def whole_file(path, suffix=""):
    """A temporary name beside `path` that takes its place when all is written and on disk, and is removed otherwise.

    Raises
    ------
    CannotWrite
        If the disk is full or the folder takes no files. What stood under `path` still does.
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
            raise CannotWrite(f"{path}: cannot be written ({fault.strerror or fault}); make room on that disk, "
                              "or give a folder that takes files") from fault
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _flush(path):
    """Have the system put a file on the disk itself, so that a power cut after the renaming finds it whole."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path, content):
    """Write text or bytes under a name that appears only when all is written."""
    with whole_file(path) as temporary:
        Path(temporary).write_bytes(content.encode() if isinstance(content, str) else content)


def make_folder(path):
    """Make a folder, and those above it."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise CannotWrite(f"{path}: cannot be made ({fault.strerror}); give a folder that can be written") from fault


def array_header(file):
    """Shape and dtype of the npy array that starts here; nothing is allocated.

    Raises
    ------
    ValueError
        If there is none, or one in Fortran order.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except Exception as fault:  # the header is a Python literal: hostile ones end in many kinds of exception
        raise ValueError(first_line(fault)) from fault
    if fortran and len(shape) > 1 or dtype.hasobject or any(side < 0 for side in shape):
        raise ValueError("objects, Fortran order or a negative size")
    return shape, dtype


def read_json(path):
    """A JSON object from a file.

    Raises
    ------
    ValueError
        If it is none.
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


def file_digest(path):
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path, content):
    write_whole(path, json.dumps(content, indent=1) + "\n")
