"""Values that nobody means: no number, too wide a filter, too small a ridge, a closed pipe."""
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict

import naive
import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, assert_one_line, refused, run_process
from synthetic import brain, save, upscale

from disk.files import write_whole
from disk.filters import PRETRAINED, load_filters
from disk.saved_method import checked_settings
from filter_constant import OCTAHEDRAL_FILTER_MAX, Request
from get_lar import make_pair
from learning import steps
from machine.errors import UserError
from nifti.volumes import write_volume
from octahedral import ridge
from octahedral.scene import REACH
from options.command_line import command_line
from restoring.figures import figures
from restoring.steps import restore
from util import decibel

BEST = Request.of(arrays_dir=str(PRETRAINED))


# ---- not a number

def test_an_error_that_is_no_number_is_not_scored_as_perfect():
    assert math.isnan(decibel(float("nan"))) and decibel(0.0) == float("inf")
    hr = brain(0) / 1000
    wrong = hr.copy()
    wrong[15, 14, 13] = np.nan
    assert math.isnan(figures(hr, wrong, hr > 0)["psnr"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_voxel_of_an_array_is_background_and_spoils_no_other(bad):
    stages, method, *_ = load_filters(BEST)
    low = brain(1, (16, 15, 14))
    spoilt, blank = low.copy(), low.copy()
    spoilt[8, 7, 6], blank[8, 7, 6] = bad, 0
    np.testing.assert_array_equal(
        upscale(spoilt, stages, method), upscale(blank, stages, method))
    spoilt, blank = np.pad(spoilt, 8), np.pad(blank, 8)
    np.testing.assert_array_equal(make_pair(spoilt, method).lr, make_pair(blank, method).lr)


def test_results_that_are_no_numbers_are_not_written(tmp_path):
    image = nib.Nifti1Image(np.zeros((3, 3, 3), np.float32), np.eye(4))
    data = np.ones((3, 3, 3), np.float32)
    data[1, 1, 1] = np.nan
    with pytest.raises(UserError, match="not finite numbers"):
        write_volume(tmp_path / "x.nii", data, image)
    assert not list(tmp_path.iterdir())


# ---- options at and beyond their limits

def test_filters_wider_than_what_volumes_are_padded_by_are_refused(capsys):
    assert OCTAHEDRAL_FILTER_MAX // 2 == REACH
    for length in (OCTAHEDRAL_FILTER_MAX + 2, 21):
        for preset in ("best", "scan"):
            assert "--filter_len" in refused(
                capsys, "train", "--preset", preset, "--filter_len", length)
    saved = asdict(command_line("train", ["--preset", "best", "--filter_len", "13"]).method)
    assert checked_settings(saved)["filter_len"] == 13
    with pytest.raises(ValueError, match="filter_len"):
        checked_settings(saved | {"filter_len": 15})


@pytest.mark.parametrize("options", [
    ["--kspace_keep", "auto"], ["--lr_type", "kspace", "--start", "cubic"],
    ["--preset", "best", "--lr_type", "kspace", "--start", "quintic"]], ids=" ".join)
def test_options_without_effect_are_refused(capsys, options):
    assert "has no effect" in refused(capsys, "train", *options)


SPHERICAL = ["--grad_len", "3", "--q_angle_p", "1", "--q_angle_t", "1"]
STAGES = ["--preset", "best", "--stages", "1", "--leaves", "2"]


@pytest.mark.parametrize("options, solver, tried, folder", [
    (SPHERICAL, "structure.solve_groups", "10", "QVF_2"),
    (STAGES, "octahedral.ridge.cho_factor", "auto", "QVF_2_stage1"),
    ([*STAGES, "--ridge", "2"], "octahedral.ridge.cho_factor", "2", "QVF_2_stage1"),
], ids=["a number", "auto", "a number for stages"])
def test_too_little_a_ridge_is_one_line_and_the_sums_are_kept(
        tmp_path, monkeypatch, options, solver, tried, folder):
    save(tmp_path / "train" / "v.nii.gz", brain(2, (34, 36, 32)))
    request = command_line("train", [
        "--filter_len", "3", *options, "--quiet", "--train_dir", str(tmp_path / "train"),
        "--arrays_dir", str(tmp_path / "arrays")])

    def failing(*_, **__):
        raise np.linalg.LinAlgError("matrix is not positive definite")

    monkeypatch.setattr(solver, failing)
    with pytest.raises(UserError, match=f"--ridge: {tried} is too small"):
        steps.learn_stages([tmp_path / "train" / "v.nii.gz"], request)
    assert (tmp_path / "arrays" / folder / "about.json").exists()


def test_auto_passes_over_a_ridge_that_is_too_little(tmp_path, monkeypatch):
    save(tmp_path / "train" / "v.nii.gz", brain(2, (44, 46, 42)))
    volumes = [tmp_path / "train" / "v.nii.gz"]

    def chosen(arrays, ridges):
        request = command_line("train", [
            "--filter_len", "3", *STAGES, "--quiet", "--train_dir", str(tmp_path / "train"),
            "--arrays_dir", str(tmp_path / arrays)])
        monkeypatch.setattr(ridge, "RIDGES", ridges)
        return steps.learn_stages(volumes, request).stages[0].weights

    plain, solve = chosen("plain", (300.0, 1000.0)), ridge._filters_of_leaves

    def failing_below(nodes, total, tree, number, side):
        if number < 100:
            raise np.linalg.LinAlgError("matrix is not positive definite")
        return solve(nodes, total, tree, number, side)

    monkeypatch.setattr(ridge, "_filters_of_leaves", failing_below)
    np.testing.assert_array_equal(chosen("other", (30.0, 300.0, 1000.0)), plain)


# ---- blending at the faces

def test_blending_keeps_brain_that_reaches_the_faces_of_the_box():
    stages, method, *_ = load_filters(BEST)
    pair = make_pair(np.full((20, 20, 20), 100, np.float32) + brain(3, (20, 20, 20)), method)
    plain = restore(pair, stages, method)
    loose, strict = (restore(pair, stages, method, blend_threshold=threshold)
                     for threshold in (26, 0))
    np.testing.assert_array_equal(loose, plain)
    assert ((strict == plain) | (strict == pair.lr)).all()
    for threshold in (0, 10):
        blended = restore(pair, stages, method, blend_threshold=threshold)
        literal = naive.census_blend(
            *(np.pad(part, 1, mode="edge") for part in (pair.lr, plain)), threshold)
        # Only a neighbour as bright as the centre to rounding may be counted otherwise.
        assert (blended != literal[1:-1, 1:-1, 1:-1]).mean() < 1e-3
    assert (strict != plain).any() and (strict[0] > 0).mean() > 0.9 and (plain[0] > 0).mean() > 0.9


# ---- the world outside

def test_names_that_are_no_utf8_are_written_as_they_are(tmp_path):
    write_whole(tmp_path / "page.html", "caf\udce9")
    assert (tmp_path / "page.html").read_bytes() == b"caf\xe9"


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin",
                    reason="file names there are Unicode")
def test_a_volume_with_a_latin_1_name_is_restored_with_report_and_record(tmp_path):
    name = os.fsdecode(b"caf\xe9.nii")
    save(tmp_path / "in.nii", brain(4, (16, 16, 16)))
    os.rename(tmp_path / "in.nii", tmp_path / name)
    finished = run_process("test.py", "--upscale", "--test_dir", tmp_path / name,
                           "--result_dir", tmp_path / "result")
    assert finished.returncode == 0, finished.stderr
    folder, = (tmp_path / "result").iterdir()
    assert {path.suffix for path in folder.iterdir()} == {".nii", ".png", ".json", ".html"}
    record = json.loads((folder / os.fsdecode(b"caf\xe9.json")).read_bytes())
    assert record["input"].endswith("caf\udce9.nii")


@pytest.mark.skipif(os.name == "nt", reason="no such pipes on Windows")
def test_a_pipe_that_is_closed_ends_a_command_without_a_word(tmp_path):
    for number in range(3):
        save(tmp_path / "low" / f"{number}.nii", brain(number, (16, 16, 16)))
    process = subprocess.Popen(
        [sys.executable, "-u", "test.py", "--upscale", "--no-report", "--test_dir",
         tmp_path / "low", "--result_dir", tmp_path / "result"], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_a_wrong_ridge_on_the_command_line_is_one_line():
    assert_one_line(run_process("train.py", "--ridge", "1e-9"), "--ridge")
