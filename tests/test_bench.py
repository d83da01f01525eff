"""bench.py: it runs, and its figures are there and positive.

How large they are is not tested: machines are busy.
"""

import json
import math

import pytest
from conftest import ROOT, golden_figures, run_process, write_nifti

import bench
from filter_constant import Method
from machine import bench_figures, measure
from machine.errors import UserError

RATIOS = {
    "restore_vs_cubic_zoom",
    "gram_vs_sgemm",
    "solve_vs_dpotrf",
    "stage_vs_cubic_zoom",
    "best_vs_cubic_zoom",
    "upscale_vs_cubic_zoom",
    "scaling_4x",
    "restoring_scaling_4x",
    "best_scaling_4x",
    "upscale_scaling_4x",
    "io_share",
    "peak_train_gb",
    "peak_test_gb",
}


def numbers(value):
    """All numbers in nested dicts and lists."""
    if isinstance(value, dict | list):
        return [
            number
            for inner in (value.values() if isinstance(value, dict) else value)
            for number in numbers(inner)
        ]
    return [value] if type(value) in (int, float) else []


def test_every_figure_is_there_and_positive(tmp_path, monkeypatch, capsys):
    """The processes that shall compile are given a folder of their own, and do not compile here."""
    piece = golden_figures(2).volume[8:32, 8:32, 8:32]
    volume = write_nifti(tmp_path / "brain.nii.gz", piece)
    folders, process = [], measure.process

    def compiled(*command, cwd, **environment):
        if folder := environment.pop("NUMBA_CACHE_DIR", None):
            assert not folder.exists() and folder not in folders  # nothing compiled lies there
            folders.append(folder)
        return process(*command, cwd=cwd, **environment)

    monkeypatch.setattr(measure, "process", compiled)
    words = ["--volume", str(volume), "--filter_len", "5", "--quick", "--json"]
    monkeypatch.setattr("sys.argv", ["bench.py", *words])
    assert bench.main() == 0
    assert len(folders) == 2
    report = json.loads(capsys.readouterr().out)
    assert set(report["ratios"]) == RATIOS and report["runs"] == 1
    assert {"processor", "threads", "python", "numpy", "scipy", "numba"} <= set(report["machine"])
    everything = {*bench_figures.STEPS, *bench_figures.YARDSTICKS}
    assert set(report["seconds"]["1x"]) >= everything
    assert set(report["seconds"]["4x"]) >= everything - {"solve", "dpotrf"}
    assert report["seconds"]["4x"]["voxels"] >= 4 * report["seconds"]["1x"]["voxels"]
    for part in ("ratios", "spread", "seconds"):
        found = numbers(report[part])
        assert found and all(math.isfinite(number) and number > 0 for number in found)
    for name in ("train", "test", "test 4x", "train, nothing compiled", "test, nothing compiled"):
        found = report["processes"][name]
        assert all(number > 0 for number in numbers(found))
        assert found["peak_gb"] < 1000  # not bytes
    assert "restore_vs_cubic_zoom" in bench.table(report)


def test_a_process_that_is_measured_has_the_environment_it_is_given(tmp_path):
    words = "import os, sys; sys.exit(os.environ['FOLDER'] != sys.argv[1])"
    assert measure.process("-c", words, tmp_path, cwd=ROOT, FOLDER=tmp_path)["seconds"] > 0
    with pytest.raises(UserError, match="-c failed"):
        measure.process("-c", words, tmp_path, cwd=ROOT, FOLDER="another")


def test_a_process_that_prints_more_than_a_pipe_holds_ends():
    printing = "import sys; print('x' * 300_000); sys.exit(3)"
    with pytest.raises(UserError, match="^-c failed: x{300000}"):
        measure.process("-c", printing, cwd=ROOT)


def test_a_missing_volume_is_one_line(tmp_path):
    finished = run_process("bench.py", "--volume", tmp_path / "none.nii.gz")
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 1
    assert "none.nii.gz" in finished.stderr


def test_a_volume_that_is_too_thin_is_one_line(tmp_path, capsys, monkeypatch):
    path = write_nifti(tmp_path / "flat.nii", golden_figures(2).volume[:, :, 20:21])
    with pytest.raises(UserError, match="flat.nii: a side of it, cut .* has 0 voxels, and a patch"):
        bench.volume_to_measure(path, Method())
    monkeypatch.setattr("sys.argv", ["bench.py", "--runs", "0"])
    with pytest.raises(SystemExit) as end:
        bench.command_line()
    error = capsys.readouterr().err
    assert end.value.code == 2 and "--runs" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("side", [0, -3, 4])
def test_a_patch_without_a_centre_is_refused(side, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench.py", "--filter_len", str(side)])
    with pytest.raises(SystemExit) as end:
        bench.command_line()
    assert end.value.code == 2 and "--filter_len" in capsys.readouterr().err


def test_made_up_brain_has_a_black_surround_and_texture():
    brain = bench.made_up_brain((20, 22, 24))
    assert brain.shape == (20, 22, 24) and (brain >= 0).all()
    assert not brain[0].any() and brain[10, 11, 6:18].std() > 0


def test_ratios_are_those_of_their_names():
    steps = [*bench_figures.STEPS, *bench_figures.YARDSTICKS]
    one = {name: 2.0 + place for place, name in enumerate(steps)} | {
        "voxels": 1000, "side": 10, "samples": 50, "flops": 1e4, "buckets": 5}
    four = {name: 5 * one[name] for name in steps} | {"voxels": 4000}
    found = bench_figures.ratios_of_run({"1x": one, "4x": four})
    for name in ("scaling_4x", "restoring_scaling_4x", "best_scaling_4x", "upscale_scaling_4x"):
        assert math.isclose(found[name], 5 / 4)
    assert math.isclose(found["solve_vs_dpotrf"], one["solve"] / 5 / one["dpotrf"])
    assert math.isclose(found["gram_vs_sgemm"], (10**2 * 50 / one["gather and Gram products"])
                        / (1e4 / one["sgemm"]))
    moved = one["read"] + one["write"]
    computed = sum(one[name] for name in ("degrade", "interpolate", "features", "apply"))
    assert math.isclose(found["io_share"], moved / (moved + computed))
