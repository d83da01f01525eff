"""The files of sums of a training: each holds the Gram matrices of a range of buckets.

A file holds two npy arrays, one after the other. The first array, the head, holds the bytes of a
JSON text: the key of the training, the buckets that have samples, their numbers of samples, the
volumes from which the samples came, and a checksum. The second array holds the lower triangles of
these buckets' matrices in float64.
"""
import json
import math
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from disk.files import array_header, whole_file
from learning.ledger import FORMAT, checked_volumes, damaged
from machine.errors import CannotWrite
from machine.memory import MB, row_bytes

# A file of this size is written at full speed, and a second copy of it needs little disk space.
FILE_BYTES = 128 << 20
SPARE_DISK = 32 << 20  # bytes that stay free on the disk
MOST_SAMPLES = 2**62  # largest number per bucket: counts must fit into int64


def buckets_per_file(buckets, taps):
    """Number of buckets in one file, for filters of `taps` weights: int, at most `buckets`."""
    return max(1, min(buckets, FILE_BYTES // row_bytes(taps)))


class Head(NamedTuple):
    """The head of a file of sums."""

    buckets: list  # of int, ascending: buckets that have samples
    counts: list  # of int: number of samples of each of these buckets
    finished: list  # of Finished: the volumes in these sums
    checksum: int  # CRC-32 of the matrices


@dataclass(frozen=True)
class SumFiles:
    """The files of sums of one training.

    Attributes
    ----------
    folder : Path
    key : str
        Identifies the training that the files belong to.
    buckets, taps : int
        Number of all buckets, and of taps (weights) of a filter.
    step : int
        Number of buckets in a file.
    """

    folder: Path
    key: str
    buckets: int
    taps: int
    step: int

    def path(self, start):
        """The file whose first bucket is `start`."""
        return self.folder / f"sums_{start:05d}.npy"

    def inside(self, start):
        """The range of buckets of the file whose first bucket is `start`."""
        return range(start, min(start + self.step, self.buckets))

    # ---- reading

    def volumes(self, start):
        """The volumes in the sums of a file: list of Finished, empty if there is no file.

        UserError is raised if the file is damaged.
        """
        if not self.path(start).exists():
            return []
        try:
            with open(self.path(start), "rb") as file:
                return self._read_head(file, start).finished
        except OSError as fault:
            raise damaged(self.path(start), fault) from fault

    def read(self, start, gram):
        """Read the sums of a file, if it exists.

        Parameters
        ----------
        start : int
            First bucket of the file.
        gram : Gram
            Sums of at least the buckets of the file. The sums of these buckets are replaced.

        Raises
        ------
        UserError
            If the file is damaged.
        """
        path, found = self.path(start), 0
        if not path.exists():
            return
        try:
            with open(path, "rb") as file:
                head = self._read_head(file, start)
                self._check_length(file, start, (len(head.buckets), gram.packed.shape[1]))
                for bucket, count in zip(head.buckets, head.counts, strict=True):
                    row = gram.packed[bucket - gram.first]
                    if file.readinto(memoryview(row).cast("B")) != row.nbytes:
                        raise damaged(path, "it ends early")
                    found = zlib.crc32(row, found)
                    gram.count[bucket - gram.first] = count
        except OSError as fault:
            raise damaged(path, fault) from fault
        if found != head.checksum:
            raise damaged(path, "its checksum is wrong")

    def _read_head(self, file, start):
        """Read and check the `Head` of an open file."""
        try:
            shape, dtype = array_header(file)
            length = os.fstat(file.fileno()).st_size
            if dtype != np.uint8 or len(shape) != 1 or shape[0] > length:
                raise ValueError(f"{dtype} of shape {shape} in place of its head")
            head = json.loads(file.read(shape[0]))
            if head["format"] != FORMAT or head["key"] != self.key:
                raise ValueError("it belongs to another training")
            seen, counts, checksum = head["buckets"], head["counts"], head["crc32"]
            inside = self.inside(start)
            if (not all(type(number) is int for number in [*seen, *counts, checksum])
                    or len(seen) != len(counts) or sorted(set(seen)) != seen
                    or not all(bucket in inside for bucket in seen)
                    or not all(0 < count < MOST_SAMPLES for count in counts)):
                raise ValueError("its buckets or counts are not valid")
            return Head(seen, counts, checked_volumes(head["finished"]), checksum)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError,
                OSError) as fault:
            raise damaged(self.path(start), fault) from fault

    def _check_length(self, file, start, expected):
        """Check that the rest of an open file is an array of sums of this shape."""
        path = self.path(start)
        try:
            shape, dtype = array_header(file)
        except ValueError as fault:
            raise damaged(path, fault) from fault
        if shape != expected or dtype != np.dtype("<f8"):
            raise damaged(path, f"{dtype} of shape {shape}, not float64 of {expected}")
        if os.fstat(file.fileno()).st_size != file.tell() + math.prod(shape) * dtype.itemsize:
            raise damaged(path, "its length is wrong")

    # ---- writing

    def write(self, start, gram, volumes, advance=lambda buckets: None):
        """Write a file; it replaces the old one.

        Parameters
        ----------
        start : int
            First bucket of the file.
        gram : Gram
            Sums of at least the buckets of the file.
        volumes : list of Finished
            The volumes in these sums.
        advance : callable, optional
            Called with 1 for each bucket that is written.

        Returns
        -------
        int
            Bytes written.

        Raises
        ------
        CannotWrite
            If writing fails. The old file stays.
        """
        seen = self._seen(start, gram)
        counts = [int(gram.count[bucket - gram.first]) for bucket in seen]
        checksum = 0
        for bucket in seen:
            checksum = zlib.crc32(gram.packed[bucket - gram.first], checksum)
        head = {"format": FORMAT, "key": self.key, "buckets": seen, "counts": counts,
                "finished": volumes, "crc32": checksum}
        header = {"descr": "<f8", "fortran_order": False,
                  "shape": (len(seen), gram.packed.shape[1])}
        with whole_file(self.path(start)) as temporary, open(temporary, "wb") as file:
            text = np.frombuffer(json.dumps(head).encode(), np.uint8)
            np.save(file, text, allow_pickle=False)
            np.lib.format.write_array_header_1_0(file, header)
            for bucket in seen:  # one at a time, because a copy of all would double the memory
                file.write(memoryview(gram.packed[bucket - gram.first]).cast("B"))
                advance(1)
            return file.tell()

    def demand_space(self, gram, starts):
        """Check, before writing, that the disk has enough space.

        Files grow, and while a file is replaced, both its old and its new content need space.

        Parameters
        ----------
        gram : Gram
        starts : list of int
            First buckets of the files to write.

        Raises
        ------
        CannotWrite
            If the space is too small; the message states the needed and the free space.
        """
        row = row_bytes(self.taps)
        new = [len(self._seen(start, gram)) * row for start in starts]
        old = [path.stat().st_size if path.exists() else 0 for path in map(self.path, starts)]
        grown = sum(max(size - was, 0) for size, was in zip(new, old, strict=True))
        needed = grown + max(new, default=0)
        free = shutil.disk_usage(self.folder).free
        if starts and needed + min(SPARE_DISK, needed) > free:
            raise CannotWrite(
                f"{self.folder}: a checkpoint needs {needed / MB:.0f} MB more, {free / MB:.0f} MB "
                "are free; make room on that disk, or give another --arrays_dir")

    def _seen(self, start, gram):
        """The buckets of a file that have samples: list of int."""
        return [bucket for bucket in self.inside(start) if gram.count[bucket - gram.first]]
