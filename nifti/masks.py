"""Find, check and read the brain masks of volumes, for --mask.

BIDS datasets, and many others, hold whole-head scans with brain masks. A mask is found by its name.
It must be on the grid of its volume. Mask voxels above one half are brain.
"""
import glob
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from disk.files import file_digest, stem
from disk.seal import Seal
from filter_constant import MASK_AUTO, MASK_ENTITIES, MASK_NAME
from machine.errors import UserError
from nifti.bids import BIDS_FILE, NAME, digests_beside
from nifti.checks import checked_image, read_voxels
from nifti.geometry import MM, unit_of
from nifti.volumes import is_volume_name, read_volume

NAMES = ("{entities}_desc-brain_mask", "{entities}_brainmask", "{name}_desc-brain_mask",
         "{name}_mask", "{name}_brainmask", "{name}_brain_mask")
SPACES = ("{entities}_space-*_desc-brain_mask",)  # names to try if no file has one of NAMES
ENDINGS = (".nii.gz", ".nii")
DESCRIPTION = re.compile(r"_desc-[^_]+$")
# Suffixes of names that are not of BIDS, such as subject1_T1w.
SUFFIX = re.compile(r"_(T1w|T2w|T2starw|PDw|FLAIR|UNIT1|bold|sbref|dwi|epi)$")
DERIVATIVES = "derivatives"
DEEPEST = 4  # the dataset's root is searched in this many folders, upward from sub-*/ses-*/anat
INSIDE = 0.5  # mask voxels above this value are brain
APART = 0.1  # largest accepted offset of a mask, in voxels: headers hold rounded quaternions
BYTES = 13  # bytes of memory for each voxel of a mask while it is read


class Mask(NamedTuple):
    """The brain mask of a volume."""

    path: Path
    inside: np.ndarray  # bool, shape (X, Y, Z): True in the brain
    digest: str  # SHA-256 of its file


def read_brain(path, pattern):
    """Read a 3-D volume with `volumes.read_volume`, with zeros outside its mask.

    Parameters
    ----------
    path : Path
    pattern : str
        Value of --mask. If empty, no mask is used.

    Returns
    -------
    volume : volumes.Volume
    mask : Mask or None

    Raises
    ------
    UserError
        See `mask_for` and `volumes.read_volume`.
    """
    mask = mask_for(path, pattern)
    return read_volume(path, mask and mask.inside), mask


def mask_for(path, pattern, opened=None):
    """The mask of a volume.

    Parameters
    ----------
    path : Path
        Path of a volume, or of a series whose volumes share one mask.
    pattern : str
        Value of --mask.
    opened : tuple, optional
        Result of `checks.checked_image` for the volume, if its header was read before.

    Returns
    -------
    Mask or None
        None if the pattern is empty.

    Raises
    ------
    UserError
        If the volume has no mask, or more than one. Also if the mask cannot be read, is on another
        grid than the volume, or is empty.
    """
    if not pattern:
        return None
    image, shape = opened or checked_image(path, (3, 4))
    found = find_mask(path, pattern)
    seal = Seal(found)
    try:
        mask, mask_shape = checked_image(found, (3,), BYTES)
        if mask_shape != shape[:3]:
            raise UserError(f"{found}: has the shape {mask_shape}, the volume {shape[:3]}; "
                            "resample it to the volume's grid")
        if (apart := _apart(image, mask, shape[:3])) > APART:
            raise UserError(f"{found}: lies up to {apart:.3g} voxels away from the volume, "
                            "according to their headers; resample it to the volume's grid, or "
                            "correct its header")
        inside = read_voxels(found, mask, mask_shape) > INSIDE
        if not inside.any():
            raise UserError(f"{found}: has no voxel above {INSIDE:g}, so no brain; replace it by "
                            "a whole mask")
        digest = seal.digest()
    except UserError as fault:
        raise UserError(f"{path}: not used, because of its mask: {fault}") from fault
    return Mask(found, inside, digest)


def _apart(image, mask, shape):
    """Largest distance between corresponding corners of mask and volume, in volume voxels."""
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(shape)[:, None] - 1)
    corners = np.vstack([corners, np.ones(8)])
    in_mm = [np.diag(3 * [MM[unit_of(one)]] + [1]) @ one.header.get_best_affine()
             for one in (image, mask)]
    to_volume = np.linalg.solve(*in_mm)
    return float(np.abs(to_volume @ corners - corners).max())


def is_same_input(about, path, pattern):
    """True if a volume, its mask, sidecar and gradient tables are those of a result's record.

    The record `about` has the fields of `restoring.steps.origin_of`; `pattern` is the value of
    --mask. False also if a file cannot be read.
    """
    try:
        mask = file_digest(find_mask(path, pattern)) if pattern else None
        return (about.get("mask_sha256") == mask and about["input_sha256"] == file_digest(path)
                and about["beside_input_sha256"] == digests_beside(path))
    except (OSError, UserError):
        return False


def find_mask(path, pattern):
    """Find the file of a volume's mask.

    Parameters
    ----------
    path : Path
    pattern : str
        ``auto``, or a path relative to the volume's folder. ``{name}`` is the volume's name without
        .nii or .nii.gz. ``{entities}`` is this name without its BIDS suffix. ``*``, ``?`` and
        ``[ ]`` have the same meaning as in a shell.

    Returns
    -------
    Path

    Raises
    ------
    UserError
        If no file or more than one file matches.
    """
    found = _found(Path(path), pattern)
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{path}: --mask {pattern} finds {len(found)} masks for it, "
                        f"{found[0]} and {found[1]}{' among them' * (len(found) > 2)}; keep only "
                        "one, or give --mask a pattern that fits only one")
    sought = NAMES[0] + ENDINGS[0] if pattern == MASK_AUTO else pattern
    sought = sought.replace(MASK_NAME, stem(path)).replace(MASK_ENTITIES, entities(path))
    example = Path(path).parent / sought
    remedy = "put one there, give --mask a pattern that fits, or --exclude the volume"
    if os.path.isfile(pattern):  # as the user's shell completes it
        remedy = f"a pattern is relative to the volume's folder: give {os.path.abspath(pattern)}"
    raise UserError(f"{path}: --mask {pattern} finds no mask for it, such as {example}; {remedy}")


def masks_among(volumes, pattern):
    """The masks of the volumes that have exactly one: a dict of Path to Path, in their order."""
    found = {path: _found(path, pattern) for path in volumes} if pattern else {}
    return {path: masks[0] for path, masks in found.items() if len(masks) == 1}


def masks_in_words(masks, volumes, pattern):
    """One line with the number of volumes that have a mask."""
    return f"Masks ({pattern}): found for {len(masks)} of {len(volumes)}"


def entities(path):
    """The name of a volume without its BIDS suffix and description.

    Examples
    --------
    >>> entities("sub-1_run-2_desc-preproc_T1w.nii.gz"), entities("sub-1_angio.nii")
    ('sub-1_run-2', 'sub-1')
    >>> entities("scan_3_T1w.nii"), entities("scan_3.nii")
    ('scan_3', 'scan_3')
    """
    name = stem(path)
    found = NAME.fullmatch(name)
    return DESCRIPTION.sub("", found["entities"][:-1] if found else SUFFIX.sub("", name))


def _found(path, pattern):
    """All candidates for the mask of a volume: list of Path, sorted by name."""
    here = glob.escape(str(path.parent))
    if pattern != MASK_AUTO:
        return _fitting(path, here, (pattern,))
    for folder in (here, *_derived(path)):
        for names in (NAMES, SPACES):
            if found := _fitting(path, folder, [name + end for name in names for end in ENDINGS]):
                return found
    return []


def _derived(path):
    """List with one glob pattern for the BIDS folders that hold derivatives of a volume.

    The list is empty if the volume is not in a BIDS dataset.
    """
    here = path.absolute().parent
    for folder in (here, *here.parents)[:DEEPEST]:
        if (folder / BIDS_FILE).is_file():
            return [os.path.join(glob.escape(str(folder / DERIVATIVES)), "*",
                                 glob.escape(str(here.relative_to(folder))))]
    return []


def _fitting(path, folder, patterns):
    """Volumes that match the patterns, in folders that match `folder`; not the volume itself."""
    found = set()
    for pattern in patterns:
        pattern = pattern.replace(MASK_NAME, glob.escape(stem(path)))
        pattern = pattern.replace(MASK_ENTITIES, glob.escape(entities(path)))
        found.update(glob.glob(os.path.join(folder, pattern)))
    return sorted(Path(name) for name in found
                  if is_volume_name(name) and os.path.abspath(name) != os.path.abspath(path))
