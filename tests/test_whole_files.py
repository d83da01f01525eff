"""Files are whole, whatever the disk does: promised in docs/reliability.md."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import ROOT, command, in_process, one_stage
from trainings import learned, leftovers, training

from disk.files import whole_file
from disk.filters import load_filters, save_filters
from filter_constant import Request
from hashtable import Boundaries
from machine.errors import CannotWrite, UserError


def filters(tmp_path):
    request = Request.of(filter_len=3, q_angle_p=2, q_angle_t=2, arrays_dir=str(tmp_path))
    random = np.random.default_rng(0)
    h = random.standard_normal((request.method.buckets, request.method.taps)).astype(np.float32)
    return request, h, Boundaries(np.array([1.0, 2.0]), np.array([0.1, 0.2]))


def test_a_kill_between_two_renames_leaves_no_mix_that_loads(tmp_path):
    request, h, boundaries = filters(tmp_path)
    save_filters(one_stage(h, boundaries), request, ["a"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save_filters(
        one_stage(h + 1, Boundaries(boundaries.strength + 1, boundaries.coherence)), request, ["b"]
    )
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for names in (
        ["h_2.npy"],
        ["settings_2.json"],
        ["Qfactor_str2"],
        ["h_2.npy", "settings_2.json"],
        ["h_2.npy", "Qfactor_str2"],
    ):
        for name in after:
            (tmp_path / name).write_bytes((after if name in names else before)[name])
        with pytest.raises(UserError, match="run python train.py again"):
            load_filters(request)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "figures.csv"
    path.write_text("old")
    for fault, raised in (
        (OSError(28, "No space left on device"), CannotWrite),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        with pytest.raises(raised), whole_file(path) as temporary:
            Path(temporary).write_text("half")
            raise fault
        assert [entry.name for entry in tmp_path.iterdir()] == ["figures.csv"]
        assert path.read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="no read-only folders of this kind on Windows")
@pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root writes into read-only folders"
)
def test_a_read_only_folder_is_one_line(six_volumes, tmp_path):
    tmp_path.chmod(0o500)
    status, _, errors = command("train.py", *training(six_volumes, tmp_path))
    tmp_path.chmod(0o700)
    assert status == 2 and len(errors) == 1 and str(tmp_path) in errors[0]


def test_a_read_only_disk_is_one_line(six_volumes, undisturbed, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    process = in_small_disk(
        "8m",
        disk,
        six_volumes / "undisturbed",
        f"mount -o remount,ro {disk} && "
        f"{train_line(six_volumes, f'{disk}/a', '--ridge 3')}; echo status $?",
    )
    assert process.stdout.splitlines()[-1] == "status 2"
    assert len(process.stderr.splitlines()) == 1 and "Read-only file system" in process.stderr


@pytest.mark.parametrize(
    "script, option", [("train.py", "--arrays_dir"), ("test.py", "--result_dir")]
)
def test_a_folder_that_cannot_be_made_is_one_line(
    six_volumes, undisturbed, tmp_path, script, option
):
    (tmp_path / "file").write_text("")
    where = (
        ["--test_dir", six_volumes / "train", "--arrays_dir", six_volumes / "undisturbed"]
        if script == "test.py"
        else training(six_volumes, tmp_path)
    )
    status, _, errors = command(script, *where, option, tmp_path / "file" / "below")
    assert status == 2 and len(errors) == 1 and "below" in errors[0]


TMPFS = "mount -t tmpfs -o size={size} none {place} && cp -r {arrays} {place}/a && "


def in_small_disk(size, place, arrays, then):
    """Run a shell line in a name space of its own with a small disk at `place`.

    Skips where that is not permitted.
    """
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    ):
        pytest.skip("no name spaces without privileges here")
    line = TMPFS.format(size=size, place=place, arrays=arrays) + then
    process = subprocess.run(
        ["unshare", "-rm", "sh", "-c", line], capture_output=True, text=True, cwd=ROOT
    )
    if "mount:" in process.stderr:
        pytest.skip("no tmpfs without privileges here")
    return process


def train_line(folder, arrays, *more):
    return " ".join(map(str, [sys.executable, "train.py", *training(folder, arrays, *more)]))


def test_a_full_disk_leaves_the_old_filters(six_volumes, undisturbed, tmp_path):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    (tmp_path / "empty").mkdir()
    shutil.copytree(six_volumes / "undisturbed", tmp_path / "old")
    process = in_small_disk(
        "8m",
        disk,
        tmp_path / "old",
        f"(cat /dev/zero > {disk}/filler; "
        f"{train_line(six_volumes, f'{disk}/a', '--ridge 3')}; echo status $?; rm {disk}/filler; "
        f"cp -r {disk}/a {kept}) 2>&1",
    )
    lines = [
        line for line in process.stdout.splitlines() if line.startswith(("train.py", "status"))
    ]
    assert lines[-1] == "status 2" and len(lines) == 2
    assert "train.lock: cannot be written (No space left on device); make room" in lines[0]
    assert learned(kept) == undisturbed and leftovers(kept) == []


def test_a_disk_too_small_for_checkpoints_is_said_and_filters_are_learned(
    six_volumes, undisturbed, tmp_path
):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    (tmp_path / "empty").mkdir()
    process = in_small_disk(
        "4m",
        disk,
        tmp_path / "empty",
        f"{train_line(six_volumes, f'{disk}/a')}; echo status $?; cp -r {disk}/a {kept}",
    )
    assert "status 0" in process.stdout
    assert "a checkpoint needs" in process.stderr and "are free" in process.stderr
    assert "Not all sums could be saved" in process.stdout and "sums stay" not in process.stdout
    assert learned(kept) == undisturbed and leftovers(kept) == []


@pytest.mark.skipif(os.name == "nt", reason="no limit on the size of files on Windows")
def test_a_file_size_limit_leaves_the_old_files(six_volumes, undisturbed, tmp_path):
    import resource

    shutil.copytree(six_volumes / "undisturbed", tmp_path / "a")
    status, _, errors = in_process(
        "train.py",
        *training(six_volumes, tmp_path / "a", "--ridge", "3"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert status == 2 and len(errors) == 1 and "cannot be written" in errors[0]
    assert learned(tmp_path / "a") == undisturbed and leftovers(tmp_path / "a") == []


def test_settings_json_is_readable_by_people(six_volumes, undisturbed):
    about = json.loads(undisturbed["settings_2.json"])
    assert about["volumes"] == [f"v{n}.nii.gz" for n in range(6)]
    assert set(about["sha256"]) == set(undisturbed) - {"settings_2.json"}
