"""Find the volumes to use in the folder of a study.

Such a folder may also hold masks, label maps, earlier results and files of version control. These
files are left out by rules; one message for each rule reports how many.
"""
import contextlib
import os
from collections import defaultdict
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath

from disk.files import file_digest, read_json, stem
from disk.results import is_ours
from machine.errors import UserError
from machine.progress import say
from nifti.bids import BIDS_FILE
from nifti.checks import PAIR_REMEDY, checked_image, is_dicom, is_of_pair
from nifti.labels import LABEL_VALUES, is_label_map
from nifti.masks import DERIVATIVES, masks_among
from nifti.volumes import is_volume_name, relative_name

LABEL_NAMES = ("mask", "seg", "label", "labels")  # how names end; "seg": also BIDS's dseg, probseg
DICOM_REMEDY = "dcm2niix -z y -o FOLDER {}, and give that folder"
MIDDLE_BYTES = 1 << 14  # bytes in the middle of a file that distinguish brains of one shape
FILES_LOOKED_AT = 100  # files checked for other formats in a folder without volumes
BIDS_SUFFIX = "_T1w"
BIDS_ASIDE = (DERIVATIVES, "sourcedata")  # folders of a BIDS dataset that are not searched


def find_volumes(folder, at_most=None, include=(), exclude=(), results=None, mask=""):
    """The NIfTI volumes in a folder and in its subfolders, sorted by name, and their masks.

    Links to folders are followed. Hidden files and folders are left out. Results of earlier runs,
    masks and label maps are also left out, and counted on standard error. In a BIDS dataset, only
    the T1w volumes are used unless `include` is given. A `folder` that is a file is always used.

    Parameters
    ----------
    folder : path-like
        A folder or a file.
    at_most : int, optional
        Largest number of volumes; by default all.
    include, exclude : sequence of str, optional
        Patterns (``*_T1w.nii.gz``, ``sub-0[12]/*``) of a file's name, of its path below `folder` or
        of the last parts of this path. A file must match a pattern of `include`, if given, and no
        pattern of `exclude`.
    results : path-like, optional
        Folder of the results, which is not searched.
    mask : str, optional
        Pattern of masks, see `masks.find_mask`. The masks that match it are left out.

    Returns
    -------
    volumes : list of Path
    masks : list of Path
        The masks of those volumes that have exactly one.

    Raises
    ------
    UserError
        If the folder is missing or holds no volume.
    """
    folder = Path(folder)
    if folder.is_file():
        if not is_volume_name(folder.name):
            remedy = "its name must end in .nii or .nii.gz, with something before it"
            if is_of_pair(folder):
                remedy = PAIR_REMEDY
            elif is_dicom(folder):
                remedy = f"convert it with {DICOM_REMEDY.format(folder.parent)}"
            raise UserError(f"{folder}: not a NIfTI volume; {remedy}")
        if stem(folder).lower().endswith(LABEL_NAMES) or is_label_map(folder):
            say(f"{folder}: looks like a mask or label map; it is used as a scan, and the result "
                "holds no labels", "stderr")
        return [folder], list(masks_among([folder], mask).values())
    if not folder.is_dir():
        raise _not_there(folder)
    found, rules = [], _Rules(folder, include, exclude)
    for here, names, dataset in _walk(folder, results, rules):
        for name in names:
            if is_volume_name(name) and not name.startswith("."):
                path = Path(here, name)
                if rules.takes(path, dataset):
                    found.append(path)
    masks = masks_among(found, mask)
    masks_there, volumes = set(map(os.path.abspath, masks.values())), []
    for path in sorted(found):
        if os.path.abspath(path) in masks_there:
            rules.leave(rules.masks, path)
        else:
            volumes.append(path)
    for remark in rules.remarks():
        say(remark, "stderr")
    if not volumes:
        if rules.unread:
            raise UserError(f"{folder}: no .nii or .nii.gz volume found in it, because it or a "
                            "folder in it cannot be read; change its permissions")
        if rules.passed_over:
            raise UserError(f"{folder}: all its volumes are left out; change --include or "
                            "--exclude, or give one of its files by its own name")
        remedy = "put volumes into it, or run python sample.py for two public ones"
        if any(map(is_dicom, islice(_files_below(folder), FILES_LOOKED_AT))):
            remedy = f"it holds DICOM files: convert them with {DICOM_REMEDY.format(folder)}"
        elif any(map(is_of_pair, islice(_files_below(folder), FILES_LOOKED_AT))):
            remedy = f"it holds .hdr and .img files: {PAIR_REMEDY}"
        raise UserError(f"{folder}: no .nii or .nii.gz volume in it; {remedy}")
    volumes = volumes[:at_most]
    return volumes, [masks[path] for path in volumes if path in masks]


def equal_files(paths):
    """Pairs of files with the same content: each file that equals an earlier one, and this one.

    Only files with the same size and the same bytes in the middle are read as a whole. Files that
    cannot be read, and pipes, are left out.
    """
    groups, by_content, pairs = defaultdict(list), {}, []
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_file():
                size = path.stat().st_size
                with open(path, "rb") as file:
                    file.seek(size // 2)
                    groups[size, file.read(MIDDLE_BYTES)].append(path)
    for alike in groups.values():
        for path in alike if len(alike) > 1 else ():
            with contextlib.suppress(OSError):
                other = by_content.setdefault(file_digest(path), path)
                if other != path:
                    pairs.append((path, other))
    return pairs


def _not_there(path):
    """The error of a folder or file that does not exist."""
    if path.is_symlink():
        checked_image(path)  # raises an error that says how to fetch the file
    if not is_volume_name(path.name):
        return UserError(f"{path}: no such folder or file; check its name, or make the folder and "
                         "put .nii.gz volumes into it")
    beside = filter(is_volume_name, os.listdir(path.parent)) if path.parent.is_dir() else []
    near = get_close_matches(path.name, beside, 1, 0.8)
    return UserError(f"{path}: no such file; check its name"
                     + (f", there is {near[0]}" if near else ""))


def _files_below(folder):
    """All files below a folder, first the files directly in it."""
    for here, _, names in os.walk(folder):
        yield from (Path(here, name) for name in names)


def _walk(folder, results, rules):
    """Yield each folder to search: its path, the names of its files, True if in a BIDS dataset.

    Links to folders are followed, but each folder is searched only once.
    """
    results = results and os.path.realpath(results)
    seen, datasets = set(), set()
    for here, below, names in os.walk(folder, onerror=rules.unread.append, followlinks=True):
        place = os.path.realpath(here)
        if place in seen:
            below.clear()
            continue
        seen.add(place)
        root = BIDS_FILE in names
        kept = [name for name in sorted(below) if not name.startswith(".")]
        if root:
            rules.datasets.append(here)
            kept = [name for name in kept if name not in BIDS_ASIDE]
        if results != os.path.realpath(folder):  # results may be written beside their inputs
            aside = [name for name in kept if os.path.realpath(Path(here, name)) == results]
            rules.folders += [Path(here, name) for name in aside]
            kept = [name for name in kept if name not in aside]
        below[:] = kept
        if root or os.path.dirname(here) in datasets:
            datasets.add(here)
        yield here, names, here in datasets


class _Rules:
    """Rules that leave files of a folder out, and the messages about them."""

    def __init__(self, folder, include, exclude):
        self.folder, self.include, self.exclude = folder, include, exclude
        self.fitted = set()  # patterns that matched a volume
        self.datasets, self.folders = [], []  # BIDS datasets; folders of results
        self.named, self.labels, self.results, self.not_t1w, self.masks = [], [], [], [], []
        self.passed_over = 0  # number of volumes that are left out
        self.unread = []  # OSError for each folder that cannot be read

    def takes(self, path, dataset):
        """True if a volume is used; otherwise notes the rule that leaves it out."""
        name = relative_name(path, self.folder)
        wanted = self._fitting(name, self.include) if self.include else True
        if self._fitting(name, self.exclude) or not wanted:
            self.passed_over += 1
            return False
        rule = self._against(path, dataset)
        if rule is None:
            return True
        self.leave(rule, path)
        return False

    def _fitting(self, name, patterns):
        """The patterns that match a path below the folder, or the last parts of this path."""
        path = PurePosixPath(name)
        found = [pattern for pattern in patterns
                 if fnmatchcase(name, pattern) or path.match(pattern)]
        self.fitted.update(found)
        return found

    def leave(self, rule, path):
        """Add a volume to the list of the rule that leaves it out."""
        rule.append(relative_name(path, self.folder))
        self.passed_over += 1

    def _against(self, path, dataset):
        """The list of the rule that leaves this volume out; None if the volume is used."""
        name = stem(path).lower()
        if _is_result(path):
            return self.results
        if name.endswith(LABEL_NAMES):
            return self.named
        if dataset and not name.endswith(BIDS_SUFFIX.lower()) and not self._asked_for(path):
            return self.not_t1w
        return self.labels if is_label_map(path) else None

    def _asked_for(self, path):
        """True if a pattern of --include names the BIDS suffix or folder of a volume it matches.

        A pattern such as sub-01* selects a subject, and not its field maps.
        """
        name = relative_name(path, self.folder)
        kinds = stem(path).rpartition("_")[2], PurePosixPath(name).parent.name
        return any(kind.lower() in pattern.lower() for kind in kinds if kind and "-" not in kind
                   for pattern in self._fitting(name, self.include))

    def remarks(self):
        """Yield a message for each rule that left files out, and for each pattern without match."""
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if pattern not in self.fitted:
                    yield (f"{self.folder}: --{option} {pattern} fits no volume; to select a "
                           f"folder write \"{pattern.rstrip('/')}/*\"")
        for dataset in self.datasets:
            left = sum(Path(self.folder, name).is_relative_to(dataset) for name in self.not_t1w)
            if self.include and not left:
                continue
            others = f", {left} other{'s are' if left > 1 else ' is'} not" if left else ""
            yield (f"{dataset}: a BIDS dataset; its T1w volumes are used{others} (--include "
                   "selects others by their suffix, such as \"*_bold*\"); "
                   f"{' and '.join(BIDS_ASIDE)} are not searched")
        aside = [*self.named, *self.labels]
        if aside:
            ways = ([f"{len(self.named)} by names that end in mask, seg or label"]
                    * bool(self.named)
                    + [f"{len(self.labels)} that hold at most {LABEL_VALUES} whole numbers"]
                    * bool(self.labels))
            yield (f"{self.folder}: {_counted(aside, 'mask or label map')} left out "
                   f"({', '.join(ways)})")
        if self.masks:
            yield f"{self.folder}: {_counted(self.masks, 'mask')} of --mask left out"
        if self.results:
            yield (f"{self.folder}: {_counted(self.results, 'result')} of earlier runs left out, "
                   "recognised by the JSON file beside")
        for fault in self.unread:
            yield (f"{fault.filename}: this folder cannot be read ({fault.strerror}), so its "
                   "volumes are left out; change its permissions and run the command again")
        for folder in self.folders:
            yield f"{folder}: not searched, because results are written there"


def _counted(names, what):
    many = "s" if len(names) > 1 else ""
    return f"{len(names)} {what.replace(' or ', f'{many} or ')}{many} such as {names[0]}"


def _is_result(path):
    """True if the JSON record beside a volume states that test.py made it from another volume."""
    names = (stem(path), path.name)
    for record in (path.with_name(f"{sign}{name}.json") for sign in ("", ".") for name in names):
        if is_ours(record):
            written_from = str(read_json(record).get("input"))
            return os.path.realpath(written_from) != os.path.realpath(path)
    return False
