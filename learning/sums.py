"""The files of sums of a training: each the Gram matrices of a few buckets.

Two npy arrays stand in a file, one behind the other. The first holds bytes, its head in JSON: the
training it belongs to, the buckets that saw samples, how many samples, the volumes that these came
from, and a checksum. The second holds the matrices of those buckets, float64, lower triangles.
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

# Of sums in one file: large enough to write at full speed, small enough to write a second time.
FILE_BYTES = 128 << 20
SPARE_DISK = 32 << 20
MOST_SAMPLES = 2**62  # of a bucket: counts stay within int64


def buckets_per_file(buckets, taps):
    """How many of so many buckets, of filters of so many taps, one file holds: int."""
    return max(1, min(buckets, FILE_BYTES // row_bytes(taps)))


class Head(NamedTuple):
    """What a file of sums says of itself."""

    buckets: list  # of int, ascending: those that saw samples
    counts: list  # of int: samples of each
    finished: list  # of Finished: the volumes these came from
    checksum: int  # CRC-32 of the matrices


@dataclass(frozen=True)
class SumFiles:
    """The files of sums of one training.

    Attributes
    ----------
    folder : Path
    key : str
        Of the training that they belong to.
    buckets, taps : int
        How many there are.
    step : int
        Buckets in a file.
    """

    folder: Path
    key: str
    buckets: int
    taps: int
    step: int

    def path(self, start):
        """The file of the buckets from `start` on."""
        return self.folder / f"sums_{start:05d}.npy"

    def inside(self, start):
        """The buckets of that file: a range."""
        return range(start, min(start + self.step, self.buckets))

    # ---- reading

    def volumes(self, start):
        """The volumes in a file's buckets: list of Finished, empty where there is no file.

        Raises
        ------
        UserError
            If the file is damaged.
        """
        if not self.path(start).exists():
            return []
        try:
            with open(self.path(start), "rb") as file:
                return self._read_head(file, start).finished
        except OSError as fault:
            raise damaged(self.path(start), fault) from fault

    def read(self, start, gram):
        """Read a file's sums, where there is one.

        Parameters
        ----------
        start : int
            Its first bucket.
        gram : Gram
            It holds the file's buckets, perhaps among others; their sums are replaced.

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
        """The `Head` of an open file, all of it checked."""
        try:
            shape, dtype = array_header(file)
            length = os.fstat(file.fileno()).st_size
            if dtype != np.uint8 or len(shape) != 1 or shape[0] > length:
                raise ValueError(f"{dtype} of shape {shape} where its description should stand")
            head = json.loads(file.read(shape[0]))
            if head["format"] != FORMAT or head["key"] != self.key:
                raise ValueError("it belongs to another training")
            seen, counts, checksum = head["buckets"], head["counts"], head["crc32"]
            inside = self.inside(start)
            if (not all(type(number) is int for number in [*seen, *counts, checksum])
                    or len(seen) != len(counts) or sorted(set(seen)) != seen
                    or not all(bucket in inside for bucket in seen)
                    or not all(0 < count < MOST_SAMPLES for count in counts)):
                raise ValueError("its buckets or counts make no sense")
            return Head(seen, counts, checked_volumes(head["finished"]), checksum)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError,
                OSError) as fault:
            raise damaged(self.path(start), fault) from fault

    def _check_length(self, file, start, expected):
        """Check that sums of this shape follow in an open file, and nothing else."""
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
        """Write a file, in place of the one before.

        Parameters
        ----------
        start : int
            Its first bucket.
        gram : Gram
            It holds the file's buckets, perhaps among others.
        volumes : list of Finished
            Those in them.
        advance : callable, optional
            Told of each bucket that is written.

        Returns
        -------
        int
            Bytes written.

        Raises
        ------
        CannotWrite
            If the disk refuses. The file before stays.
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
            for bucket in seen:  # a copy of them all would take as much memory again
                file.write(memoryview(gram.packed[bucket - gram.first]).cast("B"))
                advance(1)
            return file.tell()

    def demand_space(self, gram, starts):
        """Refuse before writing what would not fit.

        Files grow, and one is there twice while it is replaced.

        Parameters
        ----------
        gram : Gram
        starts : list of int
            First buckets of the files that are to be written.

        Raises
        ------
        CannotWrite
            Saying how much is needed and how much there is.
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
        """The buckets of a file that saw samples: list of int."""
        return [bucket for bucket in self.inside(start) if gram.count[bucket - gram.first]]
