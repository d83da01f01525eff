"""What several tests need: the golden figures, a small volume, and a way to run the commands."""

import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from filter_constant import Settings
from machine.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
FACTORS = (2, 3, 4)

# Filters small enough to be learned and applied in a blink: 36 buckets of 125 voxels.
SMALL = ("--filter_len", "5", "--grad_len", "5", "--q_angle_p", "2", "--q_angle_t", "2")


@cache
def golden_figures(factor):
    with np.load(GOLDEN / f"seed_x{factor}.npz", allow_pickle=False) as arrays:
        figures = dict(arrays)
    for array in figures.values():
        array.setflags(write=False)  # shared between tests
    return SimpleNamespace(
        **figures,
        factor=factor,
        settings=Settings(factor=(factor,) * 3),
        box=tuple(slice(*map(int, sides)) for sides in figures["slice_area"]),
        voxels=np.flatnonzero(figures["bucket"] >= 0),
    )


@pytest.fixture(params=FACTORS, ids=[f"x{factor}" for factor in FACTORS])
def golden(request):
    """The golden figures of each factor; `voxels`: the flat indices of those that have a bucket."""
    return golden_figures(request.param)


@pytest.fixture(scope="session")
def brain():
    """A 26x27x28 piece of the golden volume: folds of the cortex, with black on some sides.

    float32, units of the scanner.
    """
    return np.ascontiguousarray(golden_figures(2).volume[4:30, 6:33, 8:36])


def write_nifti(path, data, affine=None, **header):
    """Write a volume; keyword arguments set fields of its header."""
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    for field, value in header.items():
        image.header[field] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def run_command(*arguments, cwd=ROOT, **options):
    """Run a script as a user does: ``run_command("train.py", "--factor", 3)``."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=900,
        **options,
    )


def load_script(name):
    """Import train.py or test.py by its path.

    `import test` could find the standard library's package of that name.
    """
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_one_line(finished, *words):
    """The command failed as it should for a user's mistake.

    That is status 2 and one line on stderr that holds these words.
    """
    assert finished.returncode == 2, finished.stderr
    assert len(finished.stderr.splitlines()) == 1, finished.stderr
    for word in words:
        assert str(word) in finished.stderr


def one_line(function, *arguments):
    """The text of the user's error that a call ends in, one line of it."""
    with pytest.raises(UserError) as fault:
        function(*arguments)
    text = str(fault.value)
    assert len(text.splitlines()) == 1
    return text
