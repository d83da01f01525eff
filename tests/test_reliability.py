"""Training that is killed or stopped goes on: what docs/reliability.md promises."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from synthetic import QUICK, ROOT, brain, command, one_stage, save, start

import structure
from disk import interrupt
from disk.files import whole_file
from disk.filters import load_filters, save_filters
from filter_constant import Settings
from hashtable import Boundaries
from machine import memory
from machine.errors import CannotWrite, UserError
from matrix_compute import Gram, solve, solve_groups

# train.py with its sums in files of 10 buckets and, if asked, so little memory that they need
# several passes.
SMALL_FILES = """
import sys
import filter_constant, structure
from disk import checkpoint as sums
sums.FILE_BYTES = 650_000
structure.work_bytes = lambda settings, voxels: 0
import train
sys.exit(filter_constant.run("train", train.main))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    for n in range(6):
        save(folder / "train" / f"v{n}.nii.gz", brain(n))
    return folder


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
        f"import learning, train\nlearning.memory_budget = lambda most: {files} * 650_000 + 9\n",
    )


def learned(arrays):
    """All bytes of the filters, boundaries and settings."""
    return {
        name: (Path(arrays) / name).read_bytes()
        for name in ("h_2.npy", "Qfactor_str2", "Qfactor_coh2", "settings_2.json")
    }


@pytest.fixture(scope="module")
def undisturbed(folder):
    status, _, errors = command("train.py", *training(folder, folder / "undisturbed"))
    assert (status, errors) == (0, [])
    return learned(folder / "undisturbed")


def leftovers(arrays):
    return [
        path.name
        for path in Path(arrays).rglob("*")
        if ".part" in path.name or path.name == "train.lock"
    ]


# ---- killed and stopped


def test_twenty_kills_change_no_bit_of_the_filters(folder, undisturbed):
    """Ten in each of two rows of trainings, side by side."""
    with ThreadPoolExecutor(2) as rows:
        found = set.union(
            *rows.map(lambda seed: killed_ten_times(folder, undisturbed, seed), (0, 1))
        )
    assert len(found) >= 3  # the kills fell before, between and after volumes


def killed_ten_times(folder, undisturbed, seed):
    """Kill trainings at ten random moments and compare what each one learned in the end.

    Returns the states found on the way.
    """
    moments = random.Random(seed)
    kills, finished, found = 0, 0, set()
    while kills < 10:
        arrays = folder / f"killed{seed}_{finished}"
        for _ in range(5):
            process = small_files(folder, arrays, "--checkpoint_minutes", "0")
            said, volumes = [process.stdout.readline()], moments.randrange(4)
            # So many volumes, and some time in the next one, in saving or, where few are left, in
            # solving.
            while said[-1] and sum(line.startswith("[") for line in said) < volumes:
                said.append(process.stdout.readline())
            time.sleep(moments.uniform(0, 0.3))
            if process.poll() is None:
                process.kill()
                kills += 1
            said += process.communicate()[0].splitlines()
            found.add(next((line for line in said if line.startswith("Going on")), "begun"))
            if process.returncode == 0:
                break
        process = small_files(folder, arrays, "--checkpoint_minutes", "0")
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert learned(arrays) == undisturbed
        assert leftovers(arrays) == []
        finished += 1
    print(f"{kills} kills, {finished} trainings, found on the way: {len(found)} different states")
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a process")
def test_a_stop_saves_the_volume_at_hand_and_goes_on_from_there(
    folder, undisturbed, tmp_path, number
):
    process = start("train.py", *training(folder, tmp_path))
    for line in process.stdout:
        if line.startswith("[1/"):
            process.send_signal(number)
            break
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Stopped; " in out and "goes on" in out
    assert not (tmp_path / "h_2.npy").exists() and leftovers(tmp_path) == []
    status, out, _ = command("train.py", *training(folder, tmp_path))
    assert status == 0 and "Going on from" in out and "[1/6]" not in out
    assert learned(tmp_path) == undisturbed


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a process")
def test_a_second_stop_does_not_wait(folder, undisturbed, tmp_path):
    process = small_files(folder, tmp_path, "--sample_rate", "1", "--train_div", "30")
    for line in process.stdout:
        if line.startswith("[1/"):
            process.send_signal(signal.SIGTERM)
            # An empty line, then what happens.
            assert "once more" in process.stderr.readline() + process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            break
    _, errors = process.communicate(timeout=60)
    # The second falls in the work, or in the saving after it; or, where it comes late, when all is
    # saved.
    assert process.returncode in (130, 143) and "Traceback" not in errors
    assert not (tmp_path / "h_2.npy").exists() and leftovers(tmp_path) == []


def test_several_passes_give_the_filters_of_one(folder, undisturbed, tmp_path):
    process = small_files(folder, tmp_path, "--max_memory", "1e-9")
    out, errors = process.communicate()
    assert process.returncode == 2 and "needs at least" in errors
    code = little_memory(2)
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, training(folder, tmp_path))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "5 passes" in process.stdout
    assert learned(tmp_path) == undisturbed


def test_passes_that_are_killed_and_planned_anew_give_the_same_filters(
    folder, undisturbed, tmp_path
):
    arguments = map(str, training(folder, tmp_path, "--checkpoint_minutes", "0"))
    process = subprocess.Popen(
        [sys.executable, "-c", little_memory(3), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "pass 2" in line:
            process.kill()
            break
    process.communicate()
    # In one pass, and by itself in larger files.
    status, out, _ = command("train.py", *training(folder, tmp_path))
    assert status == 0 and "in part" in out and "pass" not in out.split("Going on")[1].split("[")[1]
    assert learned(tmp_path) == undisturbed


# ---- grown and changed


def test_a_grown_folder_goes_on_and_restart_begins_anew(folder, undisturbed, tmp_path):
    for n in range(1, 6):
        save(tmp_path / "train" / f"v{n}.nii.gz", brain(n))
    assert command("train.py", *training(tmp_path, tmp_path / "a"))[0] == 0
    save(tmp_path / "train" / "v0.nii.gz", brain(0))
    status, out, _ = command("train.py", *training(tmp_path, tmp_path / "a"))
    assert (
        status == 0
        and "5 of 6 volumes are summed" in out
        and "v0.nii.gz" in out
        and "v1.nii.gz" not in out
    )
    # Another order of the same sums, and boundaries of the first five: near, not equal.
    assert learned(tmp_path / "a") != undisturbed
    status, out, _ = command("train.py", *training(tmp_path, tmp_path / "a", "--restart"))
    assert status == 0 and "Going on" not in out
    assert learned(tmp_path / "a")["h_2.npy"] == undisturbed["h_2.npy"]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda folder: ["--seed", "1"], "--seed 0, not 1"),
        (lambda folder: ["--sample_rate", "2"], "--sample_rate 3, not 2"),
        (lambda folder: ["--solver", "cg"], "--solver ridge, not cg"),
        (lambda folder: ["--sharpen"], "--sharpen False, not True"),
        (lambda folder: ["--filter_len", "7"], "--filter_len 5, not 7"),
        (
            lambda folder: save(folder / "train" / "v1.nii.gz", brain(9)) and [],
            "v1.nii.gz: has changed",
        ),
        (
            lambda folder: (folder / "train" / "v1.nii.gz").unlink() or [],
            "v1.nii.gz: was learned from",
        ),
    ],
)
def test_changed_settings_and_files_are_refused_by_name(
    folder, undisturbed, tmp_path, change, words
):
    shutil.copytree(folder / "train", tmp_path / "train")
    shutil.copytree(folder / "undisturbed", tmp_path / "a")
    status, _, errors = command("train.py", *training(tmp_path, tmp_path / "a", *change(tmp_path)))
    assert status == 2 and len(errors) == 1
    assert words in errors[0] and "--restart" in errors[0]
    assert learned(tmp_path / "a") == undisturbed


def test_another_ridge_is_solved_from_the_same_sums(folder, undisturbed, tmp_path):
    shutil.copytree(folder / "undisturbed", tmp_path / "a")
    status, out, _ = command("train.py", *training(folder, tmp_path / "a", "--ridge", "3"))
    assert status == 0 and "6 of 6 volumes are summed" in out
    assert learned(tmp_path / "a")["h_2.npy"] != undisturbed["h_2.npy"]


# ---- one at a time


def test_a_second_training_is_refused_while_the_first_runs(folder, tmp_path):
    with interrupt.only_training(tmp_path):
        status, _, errors = command("train.py", *training(folder, tmp_path))
    assert status == 2 and len(errors) == 1
    assert "a training runs here already" in errors[0] and str(os.getpid()) in errors[0]
    assert leftovers(tmp_path) == []


def test_a_lock_that_a_killed_training_left_is_none(tmp_path):
    # Even with the number of a living process.
    (tmp_path / "train.lock").write_text(f"process {os.getpid()} on elsewhere")
    (tmp_path / "QVF_2").mkdir()
    for name in (
        ".h_2.npy.0123456789ab.part",
        "QVF_2/.sums_00000.npy.0123456789ab.part",
        ".mine.partial",
    ):
        (tmp_path / name).write_bytes(b"half")
    with interrupt.only_training(tmp_path):
        assert leftovers(tmp_path) == ["train.lock", ".mine.partial"] or leftovers(tmp_path) == [
            ".mine.partial",
            "train.lock",
        ]
    (tmp_path / ".mine.partial").unlink()  # not one of ours
    assert leftovers(tmp_path) == []


# ---- whole files


def filters(tmp_path):
    settings = Settings(filter_len=3, q_angle_p=2, q_angle_t=2, arrays_dir=str(tmp_path))
    random = np.random.default_rng(0)
    h = random.standard_normal((settings.buckets, settings.taps)).astype(np.float32)
    return settings, h, Boundaries(np.array([1.0, 2.0]), np.array([0.1, 0.2]))


def test_a_kill_between_two_renames_leaves_no_mix_that_loads(tmp_path):
    settings, h, boundaries = filters(tmp_path)
    save_filters(one_stage(h, boundaries), settings, ["a"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save_filters(
        one_stage(h + 1, Boundaries(boundaries.strength + 1, boundaries.coherence)), settings, ["b"]
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
        with pytest.raises(UserError, match="run python train.py once more"):
            load_filters(settings, set())


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
        assert [entry.name for entry in tmp_path.iterdir()] == [
            "figures.csv"
        ] and path.read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="no read-only folders of this kind on Windows")
@pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root writes into read-only folders"
)
def test_a_read_only_folder_is_one_line(folder, tmp_path):
    tmp_path.chmod(0o500)
    status, _, errors = command("train.py", *training(folder, tmp_path))
    tmp_path.chmod(0o700)
    assert status == 2 and len(errors) == 1 and str(tmp_path) in errors[0]


def test_a_read_only_disk_is_one_line(folder, undisturbed, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    process = in_small_disk(
        "8m",
        disk,
        folder / "undisturbed",
        f"mount -o remount,ro {disk} && "
        f"{train_line(folder, f'{disk}/a', '--ridge 3')}; echo status $?",
    )
    assert process.stdout.splitlines()[-1] == "status 2"
    assert len(process.stderr.splitlines()) == 1 and "Read-only file system" in process.stderr


@pytest.mark.parametrize(
    "script, option", [("train.py", "--arrays_dir"), ("test.py", "--result_dir")]
)
def test_a_folder_that_cannot_be_made_is_one_line(folder, undisturbed, tmp_path, script, option):
    (tmp_path / "file").write_text("")
    where = (
        ["--test_dir", folder / "train", "--arrays_dir", folder / "undisturbed"]
        if script == "test.py"
        else (training(folder, tmp_path))
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


def test_a_full_disk_leaves_the_old_filters(folder, undisturbed, tmp_path):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    (tmp_path / "empty").mkdir()
    shutil.copytree(folder / "undisturbed", tmp_path / "old")
    process = in_small_disk(
        "8m",
        disk,
        tmp_path / "old",
        f"(cat /dev/zero > {disk}/filler; "
        f"{train_line(folder, f'{disk}/a', '--ridge 3')}; echo status $?; rm {disk}/filler; "
        f"cp -r {disk}/a {kept}) 2>&1",
    )
    lines = [
        line for line in process.stdout.splitlines() if line.startswith(("train.py", "status"))
    ]
    assert lines[-1] == "status 2" and len(lines) == 2 and "No space left" in lines[0]
    assert learned(kept) == undisturbed and leftovers(kept) == []


def test_a_disk_too_small_for_checkpoints_is_said_and_filters_are_learned(
    folder, undisturbed, tmp_path
):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    (tmp_path / "empty").mkdir()
    process = in_small_disk(
        "4m",
        disk,
        tmp_path / "empty",
        f"{train_line(folder, f'{disk}/a')}; echo status $?; cp -r {disk}/a {kept}",
    )
    assert "status 0" in process.stdout
    assert "a checkpoint needs" in process.stderr and "are free" in process.stderr
    assert learned(kept) == undisturbed and leftovers(kept) == []


@pytest.mark.skipif(os.name == "nt", reason="no limit on the size of files on Windows")
def test_a_file_size_limit_leaves_the_old_files(folder, undisturbed, tmp_path):
    import resource

    shutil.copytree(folder / "undisturbed", tmp_path / "a")
    status, _, errors = command(
        "train.py",
        *training(folder, tmp_path / "a", "--ridge", "3"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert status == 2 and len(errors) == 1 and "cannot be written" in errors[0]
    assert learned(tmp_path / "a") == undisturbed and leftovers(tmp_path / "a") == []


# ---- memory


def test_the_plan_covers_all_buckets_once_and_fits():
    settings = Settings()
    row, work = memory.row_bytes(settings.taps), structure.work_bytes(settings, 10**7)
    assert row * settings.buckets == pytest.approx(4.09e9, rel=1e-3)
    for step in (1, 18, 576):
        for rows in (step, 100, 288, 576, 1000):
            budget = work + max(rows, step) * row
            plan = structure.Published(settings).plan(10**7, budget, step)
            assert [b for buckets in plan.passes for b in buckets] == list(range(576))
            assert all(buckets.start % step == 0 for buckets in plan.passes)
            assert plan.needed <= budget
            assert len(plan.passes) == 1 or rows < 576
        with pytest.raises(UserError, match="needs at least"):
            structure.Published(settings).plan(10**7, work + step * row - 1, step)


def test_too_little_memory_is_one_line_at_the_start(folder, tmp_path):
    status, _, errors = command("train.py", *training(folder, tmp_path, "--max_memory", "0.01"))
    assert status == 2 and len(errors) == 1 and "needs at least" in errors[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("solver", ["ridge", "cg"])
def test_groups_of_buckets_are_solved_as_all_at_once(solver):
    settings = Settings(filter_len=3, q_angle_p=2, q_angle_t=2, solver=solver)
    random, whole = np.random.default_rng(0), Gram(settings.buckets, settings.taps)
    rows, columns = np.tril_indices(whole.side)
    for bucket in range(0, settings.buckets, 2):
        samples = random.standard_normal((60, whole.side))
        whole.packed[bucket], whole.count[bucket] = (samples.T @ samples)[rows, columns], 60
    parts = []
    for buckets in (range(0, 5), range(5, 30), range(30, 36)):
        parts.append(Gram(len(buckets), settings.taps, buckets.start))
        parts[-1].packed[:], parts[-1].count[:] = whole.packed[buckets], whole.count[buckets]
    np.testing.assert_array_equal(solve_groups(parts, settings), solve(whole, settings))


def test_settings_json_is_readable_by_people(folder, undisturbed):
    about = json.loads(undisturbed["settings_2.json"])
    assert about["volumes"] == [f"v{n}.nii.gz" for n in range(6)]
    assert set(about["sha256"]) == set(undisturbed) - {"settings_2.json"}
