"""Names of files, which come with a data set, do no harm to a terminal nor in a spreadsheet."""
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import read_rows
from synthetic import QUICK, brain, printing_to, save

from disk.metrics import write_metrics
from machine.errors import Harmless, short, short_names
from nifti.volumes import relative_name

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
SEQUENCE = "\x1b]0;title\x07"
SHAPE = (18, 17, 16)
ONE_CELL = ["--preset", "scan", "--test_profile", "box", "--test_noise", "0"]


def on_terminal(script, *arguments):
    """Run a script with a terminal for all streams; what it sends there, bytes."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 200, 0, 0))
    with ThreadPoolExecutor(1) as reader:
        seen = reader.submit(all_of, ours)
        with open(theirs, "w", encoding="utf-8") as stream:
            printing_to(stream, stream, script, *arguments)
        return seen.result()


def all_of(ours):
    """All bytes that are sent to a terminal until its other side is closed."""
    seen = b""
    while True:
        try:
            block = os.read(ours, 1 << 16)
        except OSError:  # how Linux says that the other side is closed
            break
        if not block:
            break
        seen += block
    os.close(ours)
    return seen


@pytest.fixture
def folder(tmp_path):
    """Two volumes in folder SEQUENCE, one of which has that in its name too."""
    scans = tmp_path / f"in {SEQUENCE}"
    save(scans / "a.nii", brain(0, SHAPE))
    save(scans / "b.nii", brain(1, SHAPE)).rename(scans / f"{SEQUENCE}b.nii")
    return scans


@pytest.mark.parametrize("options", [["--upscale", "--no-report"], ["--no-report"], ONE_CELL])
@pytest.mark.parametrize("what", [".", f"{SEQUENCE}b.nii"])
def test_what_restores_volumes_sends_no_sequence(folder, tmp_path, options, what):
    seen = on_terminal("test.py", "--test_dir", folder / what, "--result_dir", tmp_path / "out",
                       *options)
    assert SEQUENCE.encode() not in seen and rb"\x1b]0;title\x07" in seen


def test_what_learns_sends_no_sequence(folder, tmp_path):
    seen = on_terminal("train.py", "--train_dir", folder, "--arrays_dir", tmp_path / SEQUENCE,
                       *QUICK)
    assert SEQUENCE.encode() not in seen and rb"\x1b]0;title\x07b.nii: " in seen


def test_a_wrong_option_sends_no_sequence():
    seen = on_terminal("test.py", f"{SEQUENCE}.nii", "--upscale")
    assert seen.startswith(rb"test.py: error: unrecognized arguments: \x1b]0;title\x07.nii")


def test_a_stream_keeps_lines_and_shows_the_rest(capsys):
    print("one\ntwo\x1b[2J \u202e", file=Harmless(sys.stdout), flush=True)
    assert capsys.readouterr().out == "one\ntwo\\x1b[2J \\u202e\n"


@pytest.mark.parametrize("name", ["=1+1.nii", "+1.nii", "-1.nii", "@SUM(A1).nii", "\t=1.nii",
                                  "＝1.nii"])
def test_a_name_in_metrics_csv_is_no_formula_and_still_names_its_file(tmp_path, name):
    save(tmp_path / "in" / "a.nii", brain(0, SHAPE)).rename(tmp_path / "in" / name)
    rows = [{"volume": relative_name(tmp_path / "in" / name, tmp_path / "in"), "mask": name,
             "gain_over_spline": -0.5}]
    write_metrics(tmp_path / "metrics.csv", rows)
    (row,) = read_rows(tmp_path / "metrics.csv")
    assert row["volume"] == row["mask"] == f"./{name}" and row["gain_over_spline"] == "-0.5"
    assert (tmp_path / "in" / row["volume"]).is_file()


def test_short_names_tell_volumes_apart():
    names = [f"sub-{number:05}/ses-01/anat/sub_acq-mprage_T1w.nii.gz" for number in range(3)]
    assert len(set(map(short, names))) == 1
    found = short_names([*names, "sub-1/ses-01/anat/sub-1_acq-mprage_T1w.nii.gz"])
    assert len(set(found.values())) == 4 and all(len(text) <= 32 for text in [*found.values()][3:])
