"""Trainings in processes of their own, which tests kill, stop, starve and compare."""

import subprocess
import sys
from pathlib import Path

from synthetic import QUICK, ROOT

# train.py with its sums in files of 10 buckets and, if asked, so little memory that they need
# several passes.
SMALL_FILES = """
import sys
import structure
from options import command_line
from learning import sums
sums.FILE_BYTES = 650_000
structure.work_bytes = lambda method, voxels: 0
import train
sys.exit(command_line.run("train", train.main))
"""


def training(folder, arrays, *more):
    return ["--train_dir", folder / "train", "--arrays_dir", arrays, *QUICK, *more]


def small_files(folder, arrays, *more):
    return subprocess.Popen(
        [sys.executable, "-c", SMALL_FILES, *map(str, training(folder, arrays, *more))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def little_memory(files):
    """The same with memory for this many files at once."""
    return SMALL_FILES.replace(
        "import train\n",
        "import learning.steps, train\n"
        f"learning.steps.memory_budget = lambda most: {files} * 650_000 + 9\n",
    )


def learned(arrays):
    """All bytes of the filters, boundaries and settings."""
    return {
        name: (Path(arrays) / name).read_bytes()
        for name in ("h_2.npy", "Qfactor_str2", "Qfactor_coh2", "settings_2.json")
    }


def leftovers(arrays):
    return [
        path.name
        for path in Path(arrays).rglob("*")
        if ".part" in path.name or path.name == "train.lock"
    ]
