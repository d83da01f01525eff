"""Write results as a BIDS derivative dataset (BIDS specification, Derivatives)."""
import contextlib
import json
import os
import re
from pathlib import Path

from disk.files import file_digest, read_json, stem, write_json, write_whole
from disk.results import MADE_BY
from machine.errors import UserError, complain
from nifti.slices import sidecar_beside

BIDS_FILE = "dataset_description.json"  # in the root of a dataset
VERSION = "1.10.0"  # version of BIDS, if the dataset states none
NAME = re.compile(r"(?P<entities>(?=sub-)(?:[a-zA-Z]+-[a-zA-Z0-9]+_)+)(?P<suffix>[a-zA-Z0-9]+)")
DESCRIBED = re.compile(r"_?desc-([a-zA-Z0-9]+)_")
LABEL = "fine"  # label of the entity desc in names of results, if --suffix gives none
GRADIENTS = (".bval", ".bvec")  # gradient files of diffusion series, also valid for results
# Fields about the slices and the grid of the raw volume, which are not true of a finer grid.
OF_THE_GRID = ["SliceTiming", "SliceThickness", "SpacingBetweenSlices", "NumberOfSlices",
               "AcquisitionMatrixPE", "ReconMatrixPE", "BaseResolution", "EffectiveEchoSpacing"]
IGNORED = "*.png\n*.html\nmetrics.csv\n**/*.png\n"  # files that BIDS validators must ignore


def makes_derivatives(request):
    """True if a run writes a derivative dataset: it upscales a BIDS dataset without --output."""
    return request.upscale and not request.output and Path(request.test_dir, BIDS_FILE).is_file()


def derivative_stem(name, suffix):
    """The name of a result in a derivative dataset, without .nii and .nii.gz.

    Parameters
    ----------
    name : str
        Name of the raw volume, without .nii and .nii.gz.
    suffix : str
        The option --suffix; its letters and digits become the label of the entity ``desc``.

    Returns
    -------
    str
        None if the name has no BIDS entities.

    Examples
    --------
    >>> derivative_stem("sub-01_run-1_T1w", "_fine")
    'sub-01_run-1_desc-fine_T1w'
    >>> derivative_stem("sub-01_desc-preproc_T1w", "")
    'sub-01_desc-preprocfine_T1w'
    """
    found = NAME.fullmatch(name)
    if not found:
        return None
    label = re.sub("[^a-zA-Z0-9]", "", suffix) or LABEL
    entities, suffix = found["entities"], found["suffix"]
    if described := DESCRIBED.search(entities):
        start, end = described.span(1)
        return f"{entities[:end]}{label}{entities[end:]}{suffix}"
    return f"{entities}desc-{label}_{suffix}"


def mask_stem(name):
    """The name of the mask for a result, without .nii and .nii.gz.

    The suffix of a derivative joins the label of its entity ``desc``; other names keep all signs,
    so that different results have different masks.

    Examples
    --------
    >>> mask_stem("sub-01_run-1_desc-fine_T1w")
    'sub-01_run-1_desc-fineT1w_mask'
    >>> mask_stem("t1_mprage_fine")
    't1_mprage_fine_mask'
    """
    found = NAME.fullmatch(name)
    described = found and DESCRIBED.search(found["entities"])
    if not described:
        return f"{name}_mask"
    end = described.end(1)
    return f"{name[:end]}{found['suffix']}{found['entities'][end:]}mask"


def mask_sidecar(path, root):
    """Fields of the sidecar of a brain mask on the grid of a result.

    The mask at `path` is on the grid of the scan; `root` is the folder of the raw dataset.
    """
    path, root = path.absolute(), Path(root).absolute()
    source = (f"bids:raw:{path.relative_to(root).as_posix()}" if path.is_relative_to(root)
              else path.as_uri())
    return {"Type": "Brain", "Sources": [source],
            "Description": "Brain mask on the grid of the restored volume"}


def sidecar_of(path, root, row):
    """Fields of a result's sidecar: those of the raw volume's sidecar, and those of a derivative.

    Parameters
    ----------
    path : Path
        The raw volume, with or without a JSON sidecar.
    root : Path
        The raw dataset.
    row : dict
        Figures of the restored volume.

    Returns
    -------
    dict
        Without fields that are not true of a finer grid, and without fields that JSON cannot hold,
        such as not-a-number; a message names the latter.
    """
    inside = path.absolute().relative_to(Path(root).absolute()).as_posix()
    held = sidecar_beside(path)
    if spoilt := [name for name, value in held.items() if not _fits_json(value)]:
        complain("test", f"{path}: fields of its JSON sidecar are not copied, because they hold "
                 f"values that are not finite numbers: {', '.join(spoilt)}; correct the sidecar")
    held = {name: value for name, value in held.items() if name not in spoilt + OF_THE_GRID}
    held |= {"Description": "Restored on a finer grid by learned filters",
             "Sources": [f"bids:raw:{inside}"]}
    if "skull_stripped" in row:
        held["SkullStripped"] = row["skull_stripped"]
    return held


def _fits_json(value):
    """True if a value that Python read from a file is valid JSON: no NaN and no infinity in it."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def check_description(folder):
    """Raise UserError if a run would replace the description of a dataset of others."""
    path = Path(folder, BIDS_FILE)
    if not os.path.lexists(path):
        return
    with contextlib.suppress(ValueError):
        if MADE_BY in str(read_json(path).get("GeneratedBy")):
            return
    raise UserError(f"{path}: exists already and was not written by test.py, which would replace "
                    "it; give another --into")


def write_description(folder, root, command):
    """Write the description of a derivative dataset, and its .bidsignore file.

    `folder` is that of the results, `root` that of the raw dataset; `command` is the command line.
    """
    address = Path(root).absolute().as_uri()
    try:
        raw = read_json(Path(root, BIDS_FILE))
    except ValueError:
        raw = {}
    write_json(folder / BIDS_FILE, {
        "Name": f"{raw.get('Name', Path(root).absolute().name)}, restored on a finer grid",
        "BIDSVersion": str(raw.get("BIDSVersion", VERSION)),
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": MADE_BY, "Description": command}],
        "SourceDatasets": [{"URL": address}],
        "DatasetLinks": {"raw": address},
    })
    if not os.path.lexists(folder / ".bidsignore"):  # users may have added lines
        write_whole(folder / ".bidsignore", IGNORED)


def digests_beside(path):
    """SHA-256 of a volume's sidecar and gradient tables, by file name: dict of str to str."""
    found = {}
    for ending in (".json", *GRADIENTS):
        with contextlib.suppress(OSError):
            beside = Path(path).with_name(stem(path) + ending)
            found[beside.name] = file_digest(beside)
    return found


def copy_gradients(path, target, files=None):
    """Copy the .bval and .bvec files of a volume to the folder of its result.

    The copies keep their names: BIDS applies them to the result by inheritance. It does not if the
    name has an entity ``desc``, which differs in the result; such copies are named after the
    result. `files` is the `disk.files.WholeFiles` that the result belongs to.
    """
    for beside, copied in _gradients(path, target):
        write_whole(copied, beside.read_bytes(), files)


def _gradients(path, target):
    """Pairs of paths: a gradient table beside a volume, and its copy beside the result."""
    name = stem(target) if DESCRIBED.search(path.name) else stem(path)
    pairs = [(path.with_name(stem(path) + ending), target.with_name(name + ending))
             for ending in GRADIENTS]
    return [pair for pair in pairs if pair[0].is_file()]


def more_of_result(path, target, masked):
    """Files that belong to a result: its mask, and gradient tables that are not there in this form.

    `path` is that of the volume, `target` that of the result; `masked` is True with --mask.
    """
    files = [copied for beside, copied in _gradients(path, target)
             if not copied.is_file() or copied.read_bytes() != beside.read_bytes()]
    if masked:
        mask = mask_stem(stem(target))
        files += [target.with_name(mask + target.name[len(stem(target)):]),
                  target.with_name(f"{mask}.json")]
    return files
