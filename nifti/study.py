"""Which volumes a folder of a study holds: what is taken, what is left out, and by which rule.

Studies lie on disk beside masks, label maps, earlier results and version control. What is left out
is counted and said, one line a rule.
"""
import os
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath

from disk.files import read_json, stem
from disk.results import is_ours
from machine.errors import UserError
from machine.progress import say
from nifti.checks import checked_image, is_dicom
from nifti.labels import is_label_map
from nifti.masks import BIDS_FILE, DERIVATIVES, masks_among
from nifti.volumes import is_volume_name, relative_name

LABEL_NAMES = ("mask", "seg", "label", "labels")  # BIDS dseg and probseg among them
LABEL_VALUES = 32  # whole numbers, at most, that a volume holds to be taken for a label map
DICOM_REMEDY = "dcm2niix -z y -o FOLDER {}, and give that folder"
DICOM_LOOKED_AT = 100  # files of a folder without volumes
BIDS_SUFFIX = "_T1w"
BIDS_ASIDE = (DERIVATIVES, "sourcedata")  # folders of a BIDS dataset that are not its raw data


def find_volumes(folder, at_most=None, include=(), exclude=(), results=None, mask=""):
    """NIfTI files below a folder, sorted by name; of a single file, that file, whatever it is.

    Links to folders are followed; hidden files and folders are left out. So are, with one line on
    standard error for each rule: results of earlier runs, masks and label maps, and of a BIDS
    dataset all but its T1w volumes, unless `include` says which.

    Parameters
    ----------
    folder : path-like
    at_most : int, optional
        How many of them; by default all.
    include, exclude : sequence of str, optional
        Patterns (``*_T1w.nii.gz``, ``sub-0[12]/*``) of a file's name or of its path below `folder`.
        One of `include` must fit, none of `exclude` may.
    results : path-like, optional
        A folder that is not searched, since results are written there.
    mask : str, optional
        Pattern by which masks are found, see `masks.find_mask`: none of these is taken.

    Returns
    -------
    list of Path

    Raises
    ------
    UserError
        If the folder is missing or holds none.
    """
    folder = Path(folder)
    if folder.is_file():
        if not is_volume_name(folder.name):
            remedy = (f"convert it with {DICOM_REMEDY.format(folder.parent)}" if is_dicom(folder)
                      else "its name must end in .nii or .nii.gz, with something before it")
            raise UserError(f"{folder}: not a NIfTI volume; {remedy}")
        if stem(folder).lower().endswith(LABEL_NAMES) or is_label_map(folder, LABEL_VALUES):
            say(f"{folder}: looks like a mask or label map; it is taken as a scan, which leaves no "
                "labels", "stderr")
        return [folder]
    if not folder.is_dir():
        raise _not_there(folder)
    found, rules = [], _Rules(folder, include, exclude)
    for here, names, dataset in _walk(folder, results, rules):
        for name in names:
            if is_volume_name(name) and not name.startswith("."):
                path = Path(here, name)
                if rules.takes(path, dataset):
                    found.append(path)
    masks = {os.path.abspath(path) for path in masks_among(found, mask)}
    for path in sorted(found):
        if os.path.abspath(path) in masks:
            rules.leave(rules.masks, path)
    found = [path for path in sorted(found) if os.path.abspath(path) not in masks]
    for remark in rules.remarks():
        say(remark, "stderr")
    if not found:
        if rules.passed_over:
            raise UserError(f"{folder}: no volume in it is left to take, see --include and "
                            "--exclude; give one of its files itself to take it whatever it is")
        remedy = "put some in, or run python sample.py for two public ones"
        if any(map(is_dicom, islice(_files_below(folder), DICOM_LOOKED_AT))):
            remedy = f"it holds DICOM files: convert them with {DICOM_REMEDY.format(folder)}"
        raise UserError(f"{folder}: no .nii or .nii.gz volume in it; {remedy}")
    return found[:at_most]


def _not_there(path):
    """The error of a folder or file that does not exist."""
    if path.is_symlink():
        checked_image(path)  # says how to fetch what it links to
    if not is_volume_name(path.name):
        return UserError(f"{path}: no such folder or file; check its name, or make the folder and "
                         "put .nii.gz volumes in")
    beside = filter(is_volume_name, os.listdir(path.parent)) if path.parent.is_dir() else []
    near = get_close_matches(path.name, beside, 1, 0.8)
    return UserError(f"{path}: no such file; check its name"
                     + (f", there is {near[0]}" if near else ""))


def _files_below(folder):
    """All files below a folder, its own first."""
    for here, _, names in os.walk(folder):
        yield from (Path(here, name) for name in names)


def _walk(folder, results, rules):
    """Folders below a folder, each once, their files, and whether they are of a BIDS dataset.

    Links to folders are followed, but not in circles.
    """
    results = results and os.path.realpath(results)
    seen, datasets = set(), set()
    for here, below, names in os.walk(folder, followlinks=True):
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
        if results != os.path.realpath(folder):  # results beside their inputs
            aside = [name for name in kept if os.path.realpath(Path(here, name)) == results]
            rules.folders += [Path(here, name) for name in aside]
            kept = [name for name in kept if name not in aside]
        below[:] = kept
        if root or os.path.dirname(here) in datasets:
            datasets.add(here)
        yield here, names, here in datasets


class _Rules:
    """What is left out of a folder, and what is said of it."""

    def __init__(self, folder, include, exclude):
        self.folder, self.include, self.exclude = folder, include, exclude
        self.fitted = set()  # patterns that fit a volume
        self.datasets, self.folders = [], []  # of BIDS; of results
        self.named, self.labels, self.results, self.not_t1w, self.masks = [], [], [], [], []
        self.passed_over = 0

    def takes(self, path, dataset):
        """Whether a volume is taken; notes by which rule it is not."""
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
        """Those of some patterns that a path below the folder, or its last parts, fit."""
        path = PurePosixPath(name)
        found = [pattern for pattern in patterns
                 if fnmatchcase(name, pattern) or path.match(pattern)]
        self.fitted.update(found)
        return found

    def leave(self, rule, path):
        """Note that a volume is left out by a rule, given as the list of such."""
        rule.append(relative_name(path, self.folder))
        self.passed_over += 1

    def _against(self, path, dataset):
        """The list of those that are left out by the same rule; None for a volume to take."""
        name = stem(path).lower()
        if _is_result(path):
            return self.results
        if name.endswith(LABEL_NAMES):
            return self.named
        if dataset and not self.include and not name.endswith(BIDS_SUFFIX.lower()):
            return self.not_t1w
        return self.labels if is_label_map(path, LABEL_VALUES) else None

    def remarks(self):
        """What is said: a line for each rule that left something out."""
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if pattern not in self.fitted:
                    yield (f"{self.folder}: --{option} {pattern} fits no volume; a folder is "
                           f"chosen as \"{pattern.rstrip('/')}/*\"")
        for dataset in [] if self.include else self.datasets:
            others = f", {len(self.not_t1w)} others are not" if self.not_t1w else ""
            yield (f"{dataset}: a BIDS dataset; its T1w volumes are taken{others} "
                   f"(--include says which), nor is {' or '.join(BIDS_ASIDE)} searched")
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
                   "by the JSON file beside")
        for folder in self.folders:
            yield f"{folder}: not searched, since results are written there"


def _counted(names, what):
    many = "s" if len(names) > 1 else ""
    return f"{len(names)} {what.replace(' or ', f'{many} or ')}{many} such as {names[0]}"


def _is_result(path):
    """Whether the JSON file beside a volume says that test.py wrote it, from another volume."""
    names = (stem(path), path.name)
    for record in (path.with_name(f"{sign}{name}.json") for sign in ("", ".") for name in names):
        if is_ours(record):
            written_from = str(read_json(record).get("input"))
            return os.path.realpath(written_from) != os.path.realpath(path)
    return False
