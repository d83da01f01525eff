"""Training that is killed, stopped or grown goes on: promised in docs/reliability.md."""

import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from clusters import HELD, prepared
from synthetic import PATIENT, brain, command, save, start
from trainings import learned, leftovers, small_files, training

from disk import interrupt

# ---- killed and stopped


# Kills in each of two rows of trainings. By hand, at more moments: ``KILLS=50 python -m pytest
# tests/test_going_on.py -s``.
KILLS = int(os.environ.get("KILLS", 2))


def test_kills_change_no_bit_of_the_filters(six_volumes, undisturbed):
    """In two rows of trainings, side by side."""
    with ThreadPoolExecutor(2) as rows:
        found = set.union(
            *rows.map(lambda row: killed_often(six_volumes, undisturbed, row), (0, 1))
        )
    assert len(found) >= 3  # the kills fell before, between and after volumes


def killed_often(folder, undisturbed, row):
    """Kill trainings at KILLS moments and compare what each one learned in the end.

    Returns the states found on the way.
    """
    moments = random.Random(row)
    kills, finished, found = 0, 0, set()
    while kills < KILLS:
        arrays = folder / f"killed{row}_{finished}"
        for _ in range(5):
            process = small_files(folder, arrays, "--checkpoint_minutes", "0")
            # Before the first, second, third and fourth volume of this run in turn.
            said, volumes = [process.stdout.readline()], (row + 2 * kills) % 4
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
            if process.returncode == 0 or kills == KILLS:
                break
        process = small_files(folder, arrays, "--checkpoint_minutes", "0")
        out, errors = process.communicate()
        found.add(next((line for line in out.splitlines() if line.startswith("Going on")), "begun"))
        assert process.returncode == 0, errors
        assert learned(arrays) == undisturbed
        assert leftovers(arrays) == []
        finished += 1
    print(f"{kills} kills, {finished} trainings, found on the way: {len(found)} different states")
    return found


def stopped(number, folder, *options):
    """Have a signal fall into a training that holds at its fourth volume; what it printed then."""
    flag = folder / "go on"
    held = prepared(folder, "learning", "v3", HELD.format(flag=str(flag)))
    process = start("train.py", *options, env=held)
    for line in process.stdout:
        if line.startswith("[1/"):
            process.send_signal(number)
            break
    assert "once more" in process.stderr.readline() + process.stderr.readline()
    assert flag.with_name("go on read").exists()  # so that volume waits for this
    flag.write_text("")
    out, _ = process.communicate(timeout=PATIENT)
    assert process.returncode == 128 + number
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a process")
def test_a_stop_saves_the_volume_at_hand_and_goes_on_from_there(
    six_volumes, undisturbed, tmp_path, number
):
    out = stopped(number, tmp_path, *training(six_volumes, tmp_path / "a"))
    assert "Stopped; " in out and "The same command goes on" in out
    assert not (tmp_path / "a" / "h_2.npy").exists() and leftovers(tmp_path / "a") == []
    status, out, _ = command("train.py", *training(six_volumes, tmp_path / "a"))
    assert status == 0 and "Going on from" in out and "[1/6]" not in out
    assert learned(tmp_path / "a") == undisturbed


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a process")
def test_a_second_stop_does_not_wait(six_volumes, undisturbed, tmp_path):
    process = small_files(six_volumes, tmp_path, "--sample_rate", "1")
    for line in process.stdout:
        if line.startswith("[1/"):
            process.send_signal(signal.SIGTERM)
            # An empty line, then what happens.
            assert "once more" in process.stderr.readline() + process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            break
    _, errors = process.communicate(timeout=PATIENT)
    # The second falls in the work, or in the saving after it; or, where it comes late, when all is
    # saved.
    assert process.returncode in (130, 143) and "Traceback" not in errors
    assert not (tmp_path / "h_2.npy").exists() and leftovers(tmp_path) == []


# ---- grown and changed


def test_a_grown_folder_goes_on_and_restart_begins_anew(six_volumes, undisturbed, tmp_path):
    for n in range(1, 6):
        save(tmp_path / "train" / f"v{n}.nii.gz", brain(n))
    assert command("train.py", *training(tmp_path, tmp_path / "a"))[0] == 0
    save(tmp_path / "train" / "v0.nii.gz", brain(0))
    status, out, _ = command("train.py", *training(tmp_path, tmp_path / "a"))
    assert status == 0
    assert "5 of 6 volumes are summed" in out
    assert "v0.nii.gz" in out
    assert "v1.nii.gz" not in out
    # Another order of the same sums, and boundaries of the first five: near, not equal.
    assert learned(tmp_path / "a") != undisturbed
    status, out, _ = command("train.py", *training(tmp_path, tmp_path / "a", "--restart"))
    assert status == 0 and "Going on" not in out
    assert learned(tmp_path / "a")["h_2.npy"] == undisturbed["h_2.npy"]


def test_volumes_that_are_left_out_now_are_not_to_be_put_back(six_volumes, undisturbed, tmp_path):
    shutil.copytree(six_volumes / "undisturbed", tmp_path / "a")
    for option in (["--train_file_max", "1"], ["--exclude", "v1*"]):
        status, _, errors = command("train.py", *training(six_volumes, tmp_path / "a", *option))
        assert status == 2 and "v1.nii.gz" in errors[-1] and "put it back" not in errors[-1]
        assert option[0] in errors[-1]


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a process")
def test_what_was_stopped_after_a_restart_goes_on_without_it(six_volumes, undisturbed, tmp_path):
    out = stopped(signal.SIGINT, tmp_path, *training(six_volumes, tmp_path / "a", "--restart"))
    assert "The same command without --restart goes on from there." in out
    status, out, _ = command("train.py", *training(six_volumes, tmp_path / "a"))
    assert status == 0 and "Going on from" in out
    assert learned(tmp_path / "a") == undisturbed


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
    six_volumes, undisturbed, tmp_path, change, words
):
    shutil.copytree(six_volumes / "train", tmp_path / "train")
    shutil.copytree(six_volumes / "undisturbed", tmp_path / "a")
    status, _, errors = command("train.py", *training(tmp_path, tmp_path / "a", *change(tmp_path)))
    assert status == 2 and len(errors) == 1
    assert words in errors[0] and "--restart" in errors[0]
    assert learned(tmp_path / "a") == undisturbed


def test_another_ridge_is_solved_from_the_same_sums(six_volumes, undisturbed, tmp_path):
    shutil.copytree(six_volumes / "undisturbed", tmp_path / "a")
    status, out, _ = command("train.py", *training(six_volumes, tmp_path / "a", "--ridge", "3"))
    assert status == 0 and "6 of 6 volumes are summed" in out
    assert learned(tmp_path / "a")["h_2.npy"] != undisturbed["h_2.npy"]


# ---- one at a time


def test_a_second_training_is_refused_while_the_first_runs(six_volumes, tmp_path):
    with interrupt.only_training(tmp_path):
        status, _, errors = command("train.py", *training(six_volumes, tmp_path))
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
