"""train.py and test.py: from volumes on disk to filters, results and figures."""

import json
import re
from types import SimpleNamespace

import naive
import nibabel as nib
import numpy as np
import pytest
from conftest import (
    ROOT,
    SMALL,
    assert_one_line,
    golden_figures,
    learn,
    load_script,
    read_rows,
    restore,
    run_command,
    run_process,
    same,
    write_nifti,
)

from options.command_line import command_line

# Oblique, and flipped.
OBLIQUE = np.array(
    [[-0.9, 0.2, 0.1, 20], [0.18, 0.95, -0.3, -30], [0.12, 0.28, 1.1, 5], [0, 0, 0, 1]]
)


# ---- the published run


@pytest.mark.slow
def test_published_settings_give_the_released_codes_boundaries_and_psnr(tmp_path, monkeypatch):
    """Every voxel sampled, conjugate gradients, default filters: half a minute on two cores."""
    golden = golden_figures(2)
    monkeypatch.setattr("learning.steps.save", lambda *_: None)  # 4 GB, which nothing reads again
    write_nifti(tmp_path / "volumes" / "golden.nii.gz", golden.volume)
    finished = run_command(
        "train.py",
        "--sample_rate",
        1,
        "--quantization_rate",
        1,
        "--solver",
        "cg",
        "--factor",
        2,
        "--train_dir",
        tmp_path / "volumes",
        "--arrays_dir",
        tmp_path / "arrays",
    )
    assert finished.returncode == 0, finished.stderr
    for name, expected in (
        ("Qfactor_str2", golden.strength_boundary),
        ("Qfactor_coh2", golden.coherence_boundary),
    ):
        np.testing.assert_allclose(
            np.load(tmp_path / "arrays" / name, allow_pickle=False), expected, rtol=1e-4
        )
    h = np.load(tmp_path / "arrays" / "h_2.npy", allow_pickle=False)
    assert h.shape == (576, 1331) and h.dtype == np.float32 and h.any(1).all()

    finished = run_command(
        "test.py",
        "--test_dir",
        tmp_path / "volumes",
        "--arrays_dir",
        tmp_path / "arrays",
        "--result_dir",
        tmp_path / "result",
    )
    assert finished.returncode == 0, finished.stderr
    (folder,) = (tmp_path / "result").iterdir()
    (row,) = read_rows(folder / "metrics.csv")
    assert float(row["lr_psnr_box"]) == pytest.approx(golden.psnr[0], abs=1e-3)
    assert float(row["lr_ssim_box"]) == pytest.approx(golden.ssim[0], abs=1e-4)
    # What single filters are hangs on rounding, so few are the samples; what they restore does not.
    assert float(row["sr_psnr_box"]) == pytest.approx(golden.psnr[1], abs=0.02)
    assert float(row["sr_ssim_box"]) == pytest.approx(golden.ssim[1], abs=1e-3)
    restored = nib.load(folder / "golden.nii.gz").get_fdata() / golden.clip_max
    # Against the released code's own result.
    assert naive.psnr(golden.sr, restored[golden.box]) > 45


# ---- from end to end


def test_two_commands_in_an_empty_place_learn_and_restore(tmp_path):
    """The default folders lie where the command is run, not where the scripts are."""
    volume = golden_figures(2).volume
    write_nifti(tmp_path / "train" / "a.nii.gz", volume[2:28, 4:34, 8:38])
    write_nifti(tmp_path / "test" / "sub" / "b.nii", volume[8:36, 8:36, 4:34])
    trained = run_process(ROOT / "train.py", *SMALL, cwd=tmp_path)
    assert trained.returncode == 0 and not trained.stderr, trained.stderr
    assert {path.name for path in (tmp_path / "arrays").iterdir()} == {
        "h_2.npy",
        "Qfactor_str2",
        "Qfactor_coh2",
        "settings_2.json",
        "filters_2.png",
        "samples_2.png",
        "QVF_2",
    }
    tested = run_process(ROOT / "test.py", cwd=tmp_path)
    assert tested.returncode == 0 and not tested.stderr, tested.stderr
    (folder,) = (tmp_path / "result").iterdir()
    assert re.fullmatch(r"\d{6}", folder.name)  # month, day, hour
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == [
        "metrics.csv",
        "report.html",
        "sub/b.json",
        "sub/b.nii",
        "sub/b.png",
    ]
    (row,) = read_rows(folder / "metrics.csv")
    assert row["volume"] == "sub/b.nii" and all(row.values())
    for image in ("lr", "spline5", "sr"):
        assert row[f"{image}_psnr"] and 0 < float(row[f"{image}_ssim"]) < 1
    assert "b.nii" in tested.stdout and f"{float(row['sr_psnr']):.2f}" in tested.stdout


def test_learned_filters_restore_better_than_lr(pieces, small_filters, tmp_path):
    _, row = restore(pieces, small_filters.arrays, tmp_path / "result")
    assert float(row["sr_psnr"]) > float(row["lr_psnr"]) + 0.3  # 0.4 dB were measured


@pytest.mark.parametrize(
    "dtype, slope, unit",
    [(np.float32, 1, 1), (np.float32, 1, 1e-6), (np.int16, 1, 1), (np.int16, 0.01, 1)],
)
def test_result_keeps_place_header_and_intensity_unit(small_filters, tmp_path, dtype, slope, unit):
    # An odd side: the last slice is cut off before degrading.
    data = golden_figures(2).volume[8:36, 8:36, 4:35]
    image = nib.Nifti1Image((data * unit).astype(dtype), OBLIQUE)
    image.set_qform(OBLIQUE, 1, strip_shears=True)
    image.set_sform(OBLIQUE, 4)
    image.header["descrip"] = b"kept"
    image.header.set_xyzt_units("mm", "sec")
    path = tmp_path / "test" / "c.nii.gz"
    path.parent.mkdir()
    nib.save(image, path)
    if slope != 1:  # an array in memory is saved with a slope of 1; scl_slope is at byte 112
        raw = bytearray(nib.openers.Opener(path).read())
        raw[112:116] = np.float32(slope).tobytes()
        with nib.openers.Opener(path, "wb") as file:
            file.write(bytes(raw))

    before = nib.load(path)
    restored, row = restore(
        SimpleNamespace(test=path.parent), small_filters.arrays, tmp_path / "result"
    )
    after = nib.load(next((tmp_path / "result").rglob("c.nii.gz")))
    assert after.shape == before.shape
    np.testing.assert_array_equal(after.affine, before.affine)
    for field in (
        "qform_code",
        "sform_code",
        "quatern_b",
        "quatern_c",
        "quatern_d",
        "srow_x",
        "srow_y",
        "srow_z",
        "pixdim",
        "descrip",
        "xyzt_units",
    ):
        np.testing.assert_array_equal(after.header[field], before.header[field], field)
    original = before.get_fdata()
    inside = np.s_[4:-4, 4:-4, 4:-4]
    slope_of_fit = (restored * original)[inside].sum() / (original**2)[inside].sum()
    assert slope_of_fit == pytest.approx(1, abs=0.03)  # in the input's own unit
    assert float(row["sr_psnr"]) > 15
    # The published crop leaves out the last plane: restored all the same.
    assert restored[..., -1].any() == original[..., -1].any()


def test_same_command_gives_the_same_filters_and_results(pieces, small_filters, tmp_path):
    h, boundaries, _ = learn(pieces, tmp_path / "arrays")
    assert same([h, *boundaries], [small_filters.h, *small_filters.boundaries])
    first, _ = restore(pieces, small_filters.arrays, tmp_path / "one")
    second, _ = restore(pieces, tmp_path / "arrays", tmp_path / "two")
    np.testing.assert_array_equal(first, second)


# ---- mistakes


@pytest.mark.parametrize(
    "options", [["--filter_len", 7], ["--q_angle_p", 8], ["--lr_type", "kspace"]], ids=str
)
def test_restoring_with_other_settings_than_learned_is_refused(
    pieces, small_filters, tmp_path, options
):
    finished = run_command(
        "test.py",
        *options,
        "--arrays_dir",
        small_filters.arrays,
        "--test_dir",
        pieces.test,
        "--result_dir",
        tmp_path / "result",
    )
    assert_one_line(finished, "test.py: error:", options[0], "settings_2.json")
    assert not (tmp_path / "result").exists()


def test_restoring_without_filters_or_with_those_of_another_factor_is_refused(
    pieces, small_filters, tmp_path
):
    common = ("--test_dir", pieces.test, "--result_dir", tmp_path / "result")
    assert_one_line(
        run_command("test.py", "--arrays_dir", tmp_path, *common),
        "settings_2.json",
        "python train.py",
    )
    assert_one_line(
        run_command("test.py", "--arrays_dir", small_filters.arrays, "--factor", 3, *common),
        "settings_3.json",
        "--factor 2",
    )


@pytest.mark.parametrize(
    "content", ["no folder", "empty folder", "all black", "too small", "not a volume"]
)
def test_folder_without_a_usable_volume_is_refused(tmp_path, content):
    folder = tmp_path / "train"
    if content != "no folder":
        folder.mkdir()
    if content == "all black":
        write_nifti(folder / "x.nii.gz", np.zeros((30, 30, 30), np.float32))
    if content == "too small":
        write_nifti(folder / "x.nii.gz", np.ones((4, 4, 4), np.float32))
    if content == "not a volume":
        (folder / "x.nii.gz").write_text("hello")
    finished = run_command(
        "train.py", "--train_dir", folder, "--arrays_dir", tmp_path / "arrays", *SMALL
    )
    assert finished.returncode == 2 and "Traceback" not in finished.stderr
    *named, last = finished.stderr.splitlines()  # one line for each volume, and one for the folder
    assert last.startswith(f"train.py: error: {folder}: ")
    assert len(named) == (0 if content in ("no folder", "empty folder") else 1)
    assert all(line.startswith(f"train.py: {folder / 'x.nii.gz'}: ") for line in named)
    assert not list((tmp_path / "arrays").glob("*"))


def test_one_broken_volume_does_not_stop_the_others(pieces, small_filters, tmp_path):
    for kind in ("train", "test"):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "broken.nii.gz").write_text("hello")
        good = "a.nii.gz" if kind == "train" else "c.nii.gz"
        (folder / good).write_bytes((getattr(pieces, kind) / good).read_bytes())
    trained = run_command(
        "train.py", "--train_dir", tmp_path / "train", "--arrays_dir", tmp_path / "arrays", *SMALL
    )
    assert trained.returncode == 1
    assert "broken.nii.gz" in trained.stderr
    assert "Traceback" not in trained.stderr
    assert json.loads((tmp_path / "arrays" / "settings_2.json").read_text())["volumes"] == [
        "a.nii.gz"
    ]
    tested = run_command(
        "test.py",
        "--test_dir",
        tmp_path / "test",
        "--arrays_dir",
        small_filters.arrays,
        "--result_dir",
        tmp_path / "result",
        "--no-report",
    )
    assert tested.returncode == 1
    assert "broken.nii.gz" in tested.stderr
    assert "Traceback" not in tested.stderr
    (folder,) = (tmp_path / "result").iterdir()
    assert [row["volume"] for row in read_rows(folder / "metrics.csv")] == ["c.nii.gz"]
    assert sorted(path.name for path in folder.iterdir()) == [
        ".c.json", "c.nii.gz", "metrics.csv"]


def test_volumes_of_one_name_in_several_folders_all_get_a_result(pieces, small_filters, tmp_path):
    for subject in ("sub-01", "sub-02"):
        (tmp_path / "test" / subject).mkdir(parents=True)
        (tmp_path / "test" / subject / "T1w.nii.gz").write_bytes(
            (pieces.test / "c.nii.gz").read_bytes()
        )
    request = command_line(
        "test",
        [
            "--test_dir",
            str(tmp_path / "test"),
            "--arrays_dir",
            str(small_filters.arrays),
            "--result_dir",
            str(tmp_path / "result"),
        ],
    )
    load_script("test").main(request)
    assert len(list((tmp_path / "result").rglob("T1w.nii.gz"))) == 2
