"""Standard streams that were closed before a command began, as some schedulers and daemons do."""
import os
import subprocess
import sys

import pytest
from synthetic import QUICK, ROOT, brain, save

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
CLOSED = ["2>&-", "1>&-", "<&-", "<&- 1>&- 2>&-"]


def run(closed, *arguments):
    """Run Python with streams closed; returns the exit status."""
    return subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable,
                           *map(str, arguments)], cwd=ROOT, capture_output=True).returncode


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A volume below zero, which is said, and beside it what open streams restore of it."""
    scan = save(tmp_path_factory.mktemp("streams") / "a.nii", brain(0, (18, 17, 16)) - 1)
    assert run("", *upscaling(scan, scan.with_name("open.nii"))) == 0
    return scan


def upscaling(scan, target):
    return "test.py", "--upscale", "--no-report", "--test_dir", scan, "--output", target


@pytest.mark.parametrize("closed", CLOSED)
def test_a_volume_is_restored_all_the_same(tmp_path, scan, closed):
    assert run(closed, *upscaling(scan, tmp_path / "closed.nii")) == 0
    assert (tmp_path / "closed.nii").read_bytes() == scan.with_name("open.nii").read_bytes()


def test_filters_are_learned_all_the_same(tmp_path):
    save(tmp_path / "train" / "a.nii", brain())
    assert run("2>&-", "train.py", "--train_dir", tmp_path / "train", "--arrays_dir",
               tmp_path / "arrays", *QUICK) == 0
    assert (tmp_path / "arrays" / "h_2.npy").is_file()


STORY = """
import os, sys
from machine.errors import run

def story():
    with open(sys.argv[1], "w") as file:
        os.write(1, b"a message")
        os.write(2, b"a message")
        print("another"), print("another", file=sys.stderr)
        file.write(str(min(file.fileno(), 3)))
    return 0

sys.exit(run("test", story))
"""


@pytest.mark.parametrize("closed", CLOSED)
def test_no_message_falls_into_a_file_that_takes_the_number_of_a_stream(tmp_path, closed):
    assert run(closed, "-c", STORY, tmp_path / "file") == 0
    assert (tmp_path / "file").read_text() == "3"
