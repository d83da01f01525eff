"""Training that survives: its sums are kept on disk.

``arrays/QVF_2/`` (of a stage: ``arrays/QVF_2_stage1/``) holds what was summed so far. ``about.json`` has the settings and
what sorts voxels into buckets; each ``sums_<n>.npy`` has the Gram matrices of a few buckets (float64, lower triangles, only
buckets that saw samples), their counts and the volumes that are in them. A file is complete in itself and replaced whole,
one after another: a kill between two leaves some buckets one volume ahead of others, and the next run gives each bucket the
volumes that it still lacks, in the same order. So a checkpoint takes hardly more disk than it holds, and several passes need
nothing of their own.
"""
import hashlib
import json
import math
import os
import shutil
import stat
import time
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from disk.files import array_header, make_folder, read_json, whole_file
from filter_constant import checked_settings
from machine.errors import CannotWrite, UserError, first_line
from hashtable import Boundaries
from matrix_compute import Gram
from machine.memory import GB, row_bytes
from disk.volumes import relative_name

FORMAT = 2
FILE_BYTES = 128 << 20  # of sums in one file: large enough to write at full speed, small enough to write a second time
SPARE_DISK = 32 << 20
WRITE_SHARE = 10  # a checkpoint is written no sooner than this many times the seconds that the last one took
FREE_TO_CHANGE = {"preset", "stages", "ridge", "train_file_max"}  # they do not enter the sums


class Finished(NamedTuple):
    """A volume that was summed, as it was then."""

    name: str  # relative to the training folder
    size: int
    sha256: str


class Sums(NamedTuple):
    """What a checkpoint holds sums for."""

    folder: str  # under arrays/
    read: Callable  # from a dict of lists to what sorts voxels into buckets (`Boundaries`, `Tree`); ValueError where it is none
    layout: Callable  # from that to the number of buckets, and of taps
    after: str = ""  # identifies what was learned before these sums


def sums_of_boundaries(settings):
    """The sums of the published buckets."""
    def read(held):
        return Boundaries(*(_ascending(held[name], classes) for name, classes in
                            zip(Boundaries._fields, settings.classes[2:], strict=True)))

    return Sums(f"QVF_{settings.tag}", read, lambda boundaries: (settings.buckets, settings.taps))


def fingerprint(path, folder):
    """What a volume is recognised by."""
    digest = hashlib.sha256()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would wait for ever
            raise UserError(f"{path}: not a regular file; put a .nii or .nii.gz volume in its place")
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
            return Finished(relative_name(path, folder), file.tell(), digest.hexdigest())
    except OSError as fault:
        raise UserError(f"{path}: cannot be read ({fault.strerror}); put a readable volume in its place") from fault


class Checkpoint:
    """The sums of a training on disk.

    Attributes
    ----------
    classes : Boundaries or Tree or None
        What sorts voxels into buckets; None where no training was begun here.
    buckets, taps : int
        Known with the classes.
    """

    def __init__(self, settings, sums):
        self.settings, self.sums = settings, sums
        self.folder = Path(settings.arrays_dir, self.sums.folder)
        self.key, self.classes, self.sources = None, None, []
        self.buckets = self.taps = self.step = 0
        self.starts, self.finished, self.kept = range(0), {}, {}
        self.saved_at, self.took = time.monotonic(), 0.0

    def _divide(self, classes, step=None):
        """Take note of the classes, and keep `step` buckets in a file."""
        self.classes, (self.buckets, self.taps) = classes, self.sums.layout(classes)
        self.step = step or buckets_per_file(self.buckets, self.taps)
        self.starts = range(0, self.buckets, self.step)
        self.finished = {start: [] for start in self.starts}  # as summed in memory
        self.kept = {start: [] for start in self.starts}  # as it stands on disk

    # ---- what was found

    def find(self):
        """Read what an earlier run left; returns whether there is anything.

        Raises
        ------
        UserError
            If it was made with other settings, or is damaged.
        """
        path = self.folder / "about.json"
        if not path.exists():
            return False
        try:
            about = read_json(path)
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}")
            saved = checked_settings(about["settings"])
        except (ValueError, KeyError, TypeError) as fault:
            raise self._damaged(path, fault) from fault
        for name, value in saved.items():
            if name not in FREE_TO_CHANGE and value != getattr(self.settings, name):
                raise UserError(f"{self.folder}: was begun with --{name} {_shown(value)}, not "
                                f"{_shown(getattr(self.settings, name))}; give that, or --restart to begin anew")
        try:
            self.key, step = str(about["key"]), about["buckets_per_file"]
            if about["after"] != self.sums.after:  # the stage before was learned from more volumes since
                self.clear()
                return False
            self.sources = _finished(about["sources"])
            classes = self.sums.read(about["classes"])
            if type(step) is not int or not 1 <= step <= self.sums.layout(classes)[0]:
                raise ValueError("its files hold no number of buckets")
            self._divide(classes, step)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as fault:
            raise self._damaged(path, fault) from fault
        for start in self.starts:
            if self._path(start).exists():
                try:
                    with open(self._path(start), "rb") as file:
                        self.finished[start] = self._read_head(file, start)[2]
                except OSError as fault:
                    raise self._damaged(self._path(start), fault) from fault
            self.kept[start] = list(self.finished[start])
        return True

    def compare(self, volumes, folder):
        """Refuse to go on where a volume that was learned from has changed or is gone."""
        paths = {relative_name(path, folder): path for path in volumes}
        known = {record.name: record for records in (self.sources, *self.finished.values()) for record in records}
        for name, record in known.items():
            if name not in paths:
                raise UserError(f"{Path(folder, name)}: was learned from and is not among the volumes now; put it back, "
                                "or --restart to begin anew")
            if fingerprint(paths[name], folder) != record:
                raise UserError(f"{paths[name]}: has changed since it was learned from; put the old one back, "
                                "or --restart to begin anew")

    def names(self):
        """Names of the volumes that all buckets have seen, and of those that only some have."""
        each = [{record.name for record in records} for records in self.finished.values()]
        return set.intersection(*each), set.union(*each) - set.intersection(*each)

    def lacking(self, buckets, record):
        """Which of `buckets` have not seen a volume: ndarray of bool over all buckets, or None where none lacks it.

        Raises
        ------
        UserError
            If the volume is another one than some buckets have seen.
        """
        wanted = np.zeros(self.buckets, bool)
        for start in self._files(buckets):
            seen = {known.name: known for known in self.finished[start]}
            if seen.get(record.name, record) != record:
                raise UserError(f"{record.name}: changed while it was learned from; start again with --restart")
            wanted[start:start + self.step] = record.name not in seen
        return wanted if wanted.any() else None

    def add(self, wanted, record):
        """Note that the buckets that lacked a volume have seen it now."""
        for start in self.starts:
            if wanted[start]:
                self.finished[start].append(record)

    # ---- to and from disk

    def clear(self):
        """Forget what an earlier run left."""
        if self.folder.is_dir():
            for path in [self.folder / "about.json", *self.folder.glob("sums_*.npy")]:
                path.unlink(missing_ok=True)

    def begin(self, classes, sources):
        """Start a checkpoint: what sorts voxels into buckets, and the volumes that this came from."""
        self.clear()
        make_folder(self.folder)
        self.key, self.sources = uuid.uuid4().hex, sources
        self._divide(classes)
        about = {"format": FORMAT, "key": self.key, "settings": self.settings.of_groups("method", "learning"),
                 "after": self.sums.after, "buckets_per_file": self.step, "sources": sources,
                 "classes": {name: array.tolist() for name, array in classes._asdict().items()}}
        with whole_file(self.folder / "about.json") as temporary:
            Path(temporary).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def load(self, buckets):
        """The sums of a range of buckets, as far as they were saved."""
        gram = Gram(len(buckets), self.taps, buckets.start)
        for start in self._files(buckets):
            self.finished[start] = list(self.kept[start])
            if not self._path(start).exists():
                continue
            try:
                with open(self._path(start), "rb") as file:
                    seen, counts, _, checksum = self._read_head(file, start)
                    self._read_header(file, start, len(seen), gram)
                    found = 0
                    for bucket, count in zip(seen, counts, strict=True):
                        row = gram.packed[bucket - gram.first]
                        if file.readinto(memoryview(row).cast("B")) != row.nbytes:
                            raise self._damaged(self._path(start), "it ends early")
                        found = zlib.crc32(row, found)
                        gram.count[bucket - gram.first] = count
            except OSError as fault:
                raise self._damaged(self._path(start), fault) from fault
            if found != checksum:
                raise self._damaged(self._path(start), "its checksum is wrong")
        return gram

    def due(self):
        """Whether it is time to save: after --checkpoint_minutes, and not while saving takes a tenth of the time."""
        return time.monotonic() - self.saved_at >= max(60 * self.settings.checkpoint_minutes, WRITE_SHARE * self.took)

    def save(self, gram, advance=lambda buckets: None):
        """Write the sums that are ahead of their file; returns the bytes written. `advance` is told of each bucket.

        Raises
        ------
        CannotWrite
            If there is too little space, or the disk refuses. The files before stay.
        """
        begun, written = time.monotonic(), 0
        buckets = range(gram.first, gram.first + len(gram.count))
        ahead = [start for start in self._files(buckets) if self.finished[start] != self.kept[start]]
        make_folder(self.folder)
        self._demand_space(gram, ahead)
        for start in ahead:
            rows = [b for b in range(start, min(start + self.step, self.buckets)) if gram.count[b - gram.first]]
            checksum = 0
            for b in rows:
                checksum = zlib.crc32(gram.packed[b - gram.first], checksum)
            head = {"format": FORMAT, "key": self.key, "buckets": rows,
                    "counts": [int(gram.count[b - gram.first]) for b in rows],
                    "finished": self.finished[start], "crc32": checksum}
            with whole_file(self._path(start)) as temporary, open(temporary, "wb") as file:
                np.save(file, np.frombuffer(json.dumps(head).encode(), np.uint8), allow_pickle=False)
                np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False,
                                                            "shape": (len(rows), gram.packed.shape[1])})
                for b in rows:
                    file.write(memoryview(gram.packed[b - gram.first]).cast("B"))
                    advance(1)
                written += file.tell()
            self.kept[start] = list(self.finished[start])
        self.saved_at = time.monotonic()
        self.took = self.saved_at - begun
        return written

    def postpone(self):
        """Saving failed: try again after the usual time."""
        self.saved_at = time.monotonic()

    def groups(self, passes, gram=None):
        """The sums of each pass in turn, as often as they are asked for; `gram`, where all are in memory already."""
        return [gram] if gram is not None and len(passes) == 1 else _Groups(self, passes)

    # ---- inside

    def _files(self, buckets):
        return [start for start in self.starts if start in buckets]

    def _path(self, start):
        return self.folder / f"sums_{start:05d}.npy"

    def _demand_space(self, gram, starts):
        """Refuse before writing what would not fit: files grow, and one is there twice while it is replaced."""
        sizes = [sum(1 for count in gram.count[start - gram.first:start - gram.first + self.step] if count)
                 * row_bytes(self.taps) for start in starts]
        old = [self._path(start).stat().st_size if self._path(start).exists() else 0 for start in starts]
        needed = sum(max(new - was, 0) for new, was in zip(sizes, old, strict=True)) + max(sizes, default=0)
        free = shutil.disk_usage(self.folder).free
        if starts and needed + min(SPARE_DISK, needed) > free:
            raise CannotWrite(f"{self.folder}: a checkpoint needs {needed / GB:.2f} GB more, {free / GB:.2f} GB are free; "
                              "make room on that disk, or give another --arrays_dir")

    def _read_head(self, file, start):
        """Buckets, counts, finished volumes and checksum of one file, each checked."""
        path = self._path(start)
        try:
            shape, dtype = array_header(file)
            if dtype != np.uint8 or len(shape) != 1 or shape[0] > os.fstat(file.fileno()).st_size:
                raise ValueError(f"{dtype} of shape {shape} where its description should stand")
            head = json.loads(file.read(shape[0]))
            if head["format"] != FORMAT or head["key"] != self.key:
                raise ValueError("it belongs to another training")
            seen, counts, inside = head["buckets"], head["counts"], range(start, start + self.step)
            if (not all(type(n) is int for n in [*seen, *counts, head["crc32"]]) or len(seen) != len(counts)
                    or sorted(set(seen)) != seen or not all(b in inside and b < self.buckets for b in seen)
                    or not all(0 < n < 2**62 for n in counts)):
                raise ValueError("its buckets or counts make no sense")
            return seen, counts, _finished(head["finished"]), head["crc32"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as fault:
            raise self._damaged(path, fault) from fault

    def _read_header(self, file, start, rows, gram):
        """Check that the sums of `rows` buckets follow, and nothing else."""
        try:
            shape, dtype = array_header(file)
        except ValueError as fault:
            raise self._damaged(self._path(start), fault) from fault
        expected = (rows, gram.packed.shape[1])
        if shape != expected or dtype != np.dtype("<f8"):
            raise self._damaged(self._path(start), f"{dtype} of shape {shape}, not float64 of {expected}")
        if os.fstat(file.fileno()).st_size != file.tell() + math.prod(shape) * 8:
            raise self._damaged(self._path(start), "its length is wrong")

    def _damaged(self, path, fault):
        return UserError(f"{path}: not a whole checkpoint of this version ({first_line(fault)}); begin anew with --restart")


class _Groups:
    def __init__(self, checkpoint, passes):
        self.checkpoint, self.passes = checkpoint, passes

    def __iter__(self):
        for buckets in self.passes:
            gram = self.checkpoint.load(buckets)
            yield gram
            gram.packed = gram.count = None  # whoever still holds it does not hold its memory


def buckets_per_file(buckets, taps):
    return max(1, min(buckets, FILE_BYTES // row_bytes(taps)))


def _ascending(values, classes):
    array = np.array([float(value) for value in values])
    if array.shape != (classes - 1,) or not np.isfinite(array).all() or (np.diff(array) < 0).any():
        raise ValueError("its class boundaries make no sense")
    return array


def _finished(entries):
    records = [Finished(*entry) for entry in entries]
    if not all(type(r.name) is str and type(r.size) is int and type(r.sha256) is str for r in records):
        raise ValueError("its list of volumes makes no sense")
    return records


def _shown(value):
    return " ".join(map(str, value)) if isinstance(value, tuple) else value
