"""The ledger of a training: its settings, and the volumes that are in the sums of each bucket.

``about.json`` holds the settings, the classes that sort voxels into buckets, and the volumes from
which the classes were learned. Each file of sums (`learning.sums`) lists the volumes in its sums,
because some files contain one volume more than others if the program was killed between two files.
"""
import contextlib
import hashlib
import json
import os
import stat
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from disk.files import read_json, stream_digest, write_json
from disk.filters import mask_setting
from disk.saved_method import checked_settings
from disk.seal import Seal
from machine.errors import UserError, first_line
from nifti.masks import find_mask
from nifti.volumes import relative_name

FORMAT = 2  # format number of about.json and of the files of sums
FREE_TO_CHANGE = {"preset", "stages", "ridge", "train_file_max"}  # the sums do not depend on them


class Finished(NamedTuple):
    """A volume whose samples are in the sums: name and content of its file."""

    name: str  # relative to the training folder
    size: int
    sha256: str


def fingerprint(path, folder):
    """Name, size and SHA-256 of a volume, to recognise it later.

    Parameters
    ----------
    path : Path
    folder : path-like
        Folder of the training volumes.

    Returns
    -------
    Finished

    Raises
    ------
    UserError
        If the file cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would wait for ever
            raise UserError(f"{path}: not a regular file; put a .nii or .nii.gz volume in its "
                            "place")
        with open(path, "rb") as file:
            digest = stream_digest(file)
            return Finished(relative_name(path, folder), file.tell(), digest)
    except OSError as fault:
        raise UserError(f"{path}: cannot be read ({fault.strerror}); put a readable volume in its "
                        "place") from fault


def record_of(path, request):
    """The `fingerprint` of a volume; with --mask, of both files, since sums depend on both.

    UserError is also raised if the volume has no mask.
    """
    record = fingerprint(path, request.train_dir)
    if not request.mask:
        return record
    mask = fingerprint(find_mask(path, request.mask), request.train_dir)
    both = hashlib.sha256(f"{record.sha256} {mask.sha256}".encode())
    return record._replace(sha256=both.hexdigest())


def seal_of(path, request):
    """A `Seal` for a volume and, with --mask, for its mask."""
    masks = []
    if request.mask:
        with contextlib.suppress(UserError):  # is raised again when the mask is read
            masks = [find_mask(path, request.mask)]
    return Seal(path, *masks)


class Ledger:
    """The settings of a training, and the volumes that are in the sums of each bucket.

    Parameters
    ----------
    folder : Path
    request : Request
    sums : checkpoint.Sums

    Attributes
    ----------
    key : str or None
        Identifies this training; its files of sums contain the same key. If no training was begun
        in the folder, the key is None and the other attributes are empty.
    classes : Boundaries or Tree or None
        Classes that sort voxels into buckets.
    sources : list of Finished
        Volumes from which the classes were learned.
    buckets, taps : int
        Number of buckets, and of taps (weights) of a filter.
    step : int
        Number of buckets in a file of sums.
    starts : range
        First bucket of each file.
    finished, kept : dict of int to list of Finished
        The volumes in the sums of each file, by its first bucket: `finished` for the sums in
        memory, `kept` for the sums on disk.
    """

    def __init__(self, folder, request, sums):
        self.folder, self.request, self.sums = folder, request, sums
        self.path = folder / "about.json"
        self.key, self.classes, self.sources = None, None, []
        self.buckets = self.taps = self.step = 0
        self.starts, self.finished, self.kept = range(0), {}, {}

    # ---- settings and classes

    def begin(self, classes, sources, step):
        """Begin a training: write about.json.

        Parameters
        ----------
        classes : Boundaries or Tree
            Classes that sort voxels into buckets.
        sources : list of Finished
            Volumes from which the classes were learned.
        step : int
            Number of buckets in a file of sums.

        Raises
        ------
        CannotWrite
            If writing fails.
        """
        self.key, self.sources = uuid.uuid4().hex, sources
        self._divide(classes, *self.sums.layout(classes), step)
        about = {
            "format": FORMAT, "key": self.key,
            "settings": asdict(self.request.method),
            "after": self.sums.after, "buckets_per_file": step, "sources": self.sources,
            "classes": {name: array.tolist() for name, array in classes._asdict().items()}}
        about |= mask_setting(self.request)
        write_json(self.path, about | {"sha256": _digest_of(about)})

    def read(self):
        """Read about.json of an earlier training.

        Returns
        -------
        bool
            True if the sums can be used for this stage; False if the earlier stages were learned
            again after these sums.

        Raises
        ------
        UserError
            If the training was begun with other settings, or about.json is damaged.
        """
        try:
            about = read_json(self.path)
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}")
            if about["after"] != self.sums.after:
                return False
            digest = about.pop("sha256", None)  # earlier versions wrote none
            if digest not in (None, _digest_of(about)):
                raise ValueError("its checksum is wrong")
            saved = checked_settings(about["settings"]) | {"mask": str(about.get("mask", ""))}
        except (ValueError, KeyError, TypeError) as fault:
            raise damaged(self.path, fault) from fault
        self._compare_settings(saved)
        try:
            self.key, step = str(about["key"]), about["buckets_per_file"]
            self.sources = checked_volumes(about["sources"])
            classes = self.sums.read(about["classes"])
            buckets, taps = self.sums.layout(classes)
            if type(step) is not int or not 1 <= step <= buckets:
                raise ValueError("its number of buckets per file is not valid")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as fault:
            raise damaged(self.path, fault) from fault
        self._divide(classes, buckets, taps, step)
        return True

    def _compare_settings(self, saved):
        """Raise UserError if the settings differ from those with which the sums were begun."""
        for name, value in saved.items():
            now = self.request.value(name)
            if name not in FREE_TO_CHANGE and value != now:
                raise UserError(f"{self.folder}: was begun with --{name} {_shown(value)}, not "
                                f"{_shown(now)}; give that, or --restart to begin anew")

    def _divide(self, classes, buckets, taps, step):
        """Set the classes, and divide the buckets among files, which contain no volume yet."""
        self.classes, self.buckets, self.taps, self.step = classes, buckets, taps, step
        self.starts = range(0, buckets, step)
        self.finished = {start: [] for start in self.starts}
        self.kept = {start: [] for start in self.starts}

    # ---- volumes in the buckets

    def compare(self, volumes):
        """Check that the volumes of this run (list of Path) hold all of the earlier run, unchanged.

        If a volume has changed or is missing, UserError is raised and names it.
        """
        folder = self.request.train_dir
        paths = {relative_name(path, folder): path for path in volumes}
        known = {record.name: record for records in (self.sources, *self.finished.values())
                 for record in records}
        for name, record in known.items():
            if name not in paths:
                path = Path(folder, name)
                remedy = "put it back"
                if path.exists():
                    remedy = "check that --train_file_max, --include and --exclude still select it"
                raise UserError(f"{path}: was learned from and is not among the volumes now; "
                                f"{remedy}, or --restart to begin anew")
            if record_of(paths[name], self.request) != record:
                raise UserError(f"{paths[name]}: has changed since it was learned from; put the "
                                "old one back, or --restart to begin anew")

    def names(self):
        """Two sets of names: volumes in the sums of all buckets, and of only some buckets."""
        each = [{record.name for record in records} for records in self.finished.values()]
        in_all = set.intersection(*each)
        return in_all, set.union(*each) - in_all

    def lacking(self, buckets, record):
        """The buckets of a range whose sums lack a volume.

        Parameters
        ----------
        buckets : range
            All buckets of one or more files.
        record : Finished

        Returns
        -------
        ndarray of bool, shape (all buckets,), or None
            None if the sums of all buckets of the range contain the volume.

        Raises
        ------
        UserError
            If the sums of some buckets contain a different file of this name.
        """
        wanted = np.zeros(self.buckets, bool)
        for start in self.starts:  # an earlier pass over the volumes may have summed another file
            seen = {known.name: known for known in self.finished[start]}
            if seen.get(record.name, record) != record:
                raise UserError(f"{record.name}: changed while it was learned from; start again "
                                "with --restart")
            wanted[start:start + self.step] = start in buckets and record.name not in seen
        return wanted if wanted.any() else None

    def add(self, wanted, record):
        """Record that the buckets that lacked a volume now contain it.

        Parameters
        ----------
        wanted : ndarray of bool, shape (all buckets,)
            The result of `lacking`.
        record : Finished
        """
        for start in self.starts:
            if wanted[start]:
                self.finished[start].append(record)

    def starts_in(self, buckets):
        """First buckets of the files in a range of buckets."""
        return [start for start in self.starts if start in buckets]


def checked_volumes(entries):
    """Records of volumes from JSON: list of Finished; ValueError is raised if they are damaged."""
    records = [Finished(*entry) for entry in entries]
    if not all(type(record.name) is str and type(record.size) is int
               and type(record.sha256) is str for record in records):
        raise ValueError("its list of volumes is not valid")
    return records


def damaged(path, fault):
    """The error for a file of a checkpoint that cannot be used."""
    return UserError(f"{path}: not a complete checkpoint of this version ({first_line(fault)}); "
                     "begin anew with --restart")


def _digest_of(about):
    """SHA-256 of a JSON object, in hexadecimal."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _shown(value):
    if value == "":
        return "left out"
    return " ".join(map(str, value)) if isinstance(value, tuple) else value
