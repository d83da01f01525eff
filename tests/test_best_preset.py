"""--preset best: train.py and test.py in stages, from end to end."""

import csv
import time

import nibabel as nib
import numpy as np
import pytest
from conftest import assert_one_line, load_script, run_command, run_process, write_nifti
from synthetic import brain, command, save, start

from learning import steps
from options.command_line import command_line

SMALL = ("--preset", "best", "--stages", "2", "--leaves", "8", "--filter_len", "5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best")
    for n in range(2):
        save(folder / "train" / f"v{n}.nii.gz", brain(n, (28, 27, 26)))
    write_nifti(folder / "test" / "c.nii.gz", brain(9, (28, 27, 26)), np.diag([-0.8, 0.8, 0.9, 1]))
    return folder


def learned_bytes(arrays):
    return {
        path.name: path.read_bytes()
        for path in arrays.glob("*_2.*")
        if path.suffix in (".npy", ".json")
    }


@pytest.fixture(scope="module")
def undisturbed(folder):
    status, out, errors = command(
        "train.py", *SMALL, "--train_dir", folder / "train", "--arrays_dir", folder / "arrays"
    )
    assert (status, errors) == (0, []), errors
    assert out.count("Memory: up to") == 1
    assert "Stage 1: 8 classes" in out and "Stage 2: 8 classes" in out and "ridge of" in out
    return learned_bytes(folder / "arrays")


@pytest.mark.usefixtures("drawn")  # also the pictures of the filters of trees
def test_the_commands_learn_in_stages_and_restore_with_the_settings_of_the_filters(
    folder, undisturbed, tmp_path
):
    assert set(undisturbed) == {
        "settings_2.json",
        *(f"{kind}{n}_2.npy" for kind in ("stage", "tree") for n in (1, 2)),
    }
    assert {"filters_2.png", "samples_2.png"} < {
        path.name for path in (folder / "arrays").iterdir()
    }
    status, _, errors = command(
        "test.py",
        "--test_dir",
        folder / "test",
        "--arrays_dir",
        folder / "arrays",
        "--result_dir",
        tmp_path / "result",
    )
    assert (status, errors) == (0, [])
    (result,) = (tmp_path / "result").iterdir()
    restored = nib.load(result / "c.nii.gz")
    np.testing.assert_allclose(restored.affine, np.diag([-0.8, 0.8, 0.9, 1]), atol=1e-6)
    with open(result / "metrics.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["sr_psnr"]) > float(row["spline5_psnr"]) and all(row.values())


@pytest.mark.parametrize("preset", ["best", "scan"])
def test_kills_change_no_bit_of_the_stages(folder, undisturbed, preset, tmp_path):
    options = [*SMALL, "--train_dir", folder / "train", "--checkpoint_minutes", "0"]
    if preset == "scan":
        options += ["--preset", "scan", "--draws", "3"]
        assert command("train.py", *options, "--arrays_dir", tmp_path / "undisturbed")[0] == 0
        undisturbed = learned_bytes(tmp_path / "undisturbed")
    options += ["--arrays_dir", tmp_path / "killed"]
    said = []
    for volumes, moment in ((1, 0), (1, 0.1), (2, 0.05)):  # summed in a run before it is killed
        process = start("train.py", *options)
        for line in process.stdout:
            said.append(line)
            volumes -= line.startswith("[")
            if not volumes:
                break
        time.sleep(moment)  # amid what comes next
        process.kill()
        said += process.communicate()[0].splitlines()
    status, out, errors = command("train.py", *options)
    assert status == 0, errors
    going_on = [line for line in [*said, *out.splitlines()] if line.startswith("Going on from")]
    assert len(going_on) >= 3
    assert learned_bytes(tmp_path / "killed") == undisturbed


def test_more_volumes_and_another_stage_go_on_from_what_is_there(folder, undisturbed, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "v0.nii.gz").write_bytes((folder / "train" / "v0.nii.gz").read_bytes())
    options = [*SMALL, "--train_dir", tmp_path / "train", "--arrays_dir", tmp_path / "arrays"]
    assert command("train.py", *options)[0] == 0
    (tmp_path / "train" / "v1.nii.gz").write_bytes((folder / "train" / "v1.nii.gz").read_bytes())
    status, out, _ = command("train.py", *options)
    assert status == 0
    assert "1 of 2 volumes are summed" in out
    assert out.count("[2/2]") == 2
    assert out.count("[1/2]") == 1
    options[options.index("--stages") + 1] = "3"
    status, out, _ = command("train.py", *options)
    assert status == 0 and out.count("2 of 2 volumes are summed") == 2 and "Stage 3" in out


def test_what_a_stop_amid_another_training_leaves_of_later_stages_is_begun_anew(
        folder, undisturbed, tmp_path, monkeypatch, capsys):
    def main(*options):
        return load_script("train").main(command_line("train", [
            *SMALL, "--train_dir", str(folder / "train"), "--arrays_dir", str(tmp_path),
            *options]))

    def stop(*arguments):
        raise KeyboardInterrupt

    assert main("--seed", "1") == 0
    monkeypatch.setattr(steps, "solve", stop)  # stage 1 is summed, stage 2 is of seed 1
    with pytest.raises(KeyboardInterrupt):
        main("--restart")
    monkeypatch.undo()
    assert main() == 0
    assert "Going on from" in capsys.readouterr().out
    assert learned_bytes(tmp_path) == undisturbed


def test_too_little_memory_is_one_line_at_the_start(folder, tmp_path):
    assert_one_line(
        run_command(
            "train.py",
            *SMALL,
            "--train_dir",
            folder / "train",
            "--arrays_dir",
            tmp_path / "arrays",
            "--max_memory",
            "0.2",
        ),
        "GB of memory",
        "--max_memory",
    )


def test_learned_on_the_sample_the_best_preset_beats_the_best_spline_there(tmp_path):
    """The middle of both brains, a stage and few leaves, so that it is quick."""
    fetched = run_process(
        "sample.py", "--train_dir", tmp_path / "all/train", "--test_dir", tmp_path / "all/test"
    )
    if fetched.returncode:
        pytest.skip(f"the sample could not be fetched: {fetched.stderr.strip()[-200:]}")
    for part in ("train", "test"):
        (path,) = (tmp_path / "all" / part).glob("*.nii.gz")
        image = nib.load(path)
        middle = tuple(slice(side // 2 - 32, side // 2 + 32) for side in image.shape)
        write_nifti(tmp_path / part / "brain.nii.gz", image.get_fdata(dtype=np.float32)[middle])
    quick = ("--preset", "best", "--stages", "1", "--leaves", "64")
    status, _, errors = command(
        "train.py", *quick, "--train_dir", tmp_path / "train", "--arrays_dir", tmp_path / "arrays"
    )
    assert status == 0, errors
    status, _, errors = command(
        "test.py",
        "--no-report",
        "--test_dir",
        tmp_path / "test",
        "--arrays_dir",
        tmp_path / "arrays",
        "--result_dir",
        tmp_path / "result",
    )
    assert status == 0, errors
    with open(
        next((tmp_path / "result").glob("*/metrics.csv")), newline="", encoding="utf-8"
    ) as file:
        (row,) = csv.DictReader(file)
    assert float(row["gain_over_spline"]) > 1, row
