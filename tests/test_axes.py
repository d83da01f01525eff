"""Factors along other axes than filters were learned for, and several sets of filters in a run."""
import csv
import json
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script
from synthetic import brain
from test_scan import phantom

from disk.filters import load_filters
from disk.run_folder import run_folder
from filter_constant import Request
from options.command_line import command_line
from restoring.steps import FilterStore


def run(folder, *options):
    """test.py in this process: its one folder of results."""
    words = ["--result_dir", str(folder), *map(str, options)]
    assert load_script("test").main(command_line("test", words)) == 0
    return next(path for path in folder.iterdir() if path.is_dir())


def write(path, data, sizes):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([*sizes, 1.0])), path)
    return path


def figures(folder):
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scans_are_evaluated_along_the_axis_that_is_asked_for(tmp_path, capsys):
    image = np.pad(phantom(7, (40, 36, 32)), 4)
    last = write(tmp_path / "last" / "v.nii", image, (1, 1.1, 1.2))
    first = write(tmp_path / "first" / "v.nii", image.transpose(2, 0, 1), (1.2, 1, 1.1))
    scan = ("--preset", "scan", "--test_profile", "box", "--test_noise", "3", "--factor")
    along_last = figures(run(tmp_path / "a", *scan, 1, 1, 4, "--test_dir", last))
    capsys.readouterr()
    along_first = figures(run(tmp_path / "b", *scan, 4, 1, 1, "--test_dir", first))
    assert "x4x1x1;" in capsys.readouterr().out
    across = figures(run(tmp_path / "c", *scan, 4, 1, 1, "--test_dir", last))
    for name in ("restored_inside", "cubic_whole"):
        assert float(along_first[0][name]) == pytest.approx(float(along_last[0][name]), abs=0.01)
        assert abs(float(across[0][name]) - float(along_last[0][name])) > 0.05


@pytest.mark.parametrize("options", [("--upscale",), ()])
def test_page_and_record_say_the_factor_that_was_asked_for(tmp_path, options):
    write(tmp_path / "v.nii", brain(0, (24, 26, 22)), (4, 1, 1))
    folder = run(tmp_path / "result", "--test_dir", tmp_path / "v.nii", "--factor", 4, 1, 1,
                 *options)
    record = json.loads((folder / "v.json").read_text())
    assert record["settings"]["factor"] == [4, 1, 1] and "steps" not in record
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "by 4 × 1 × 1" in page and "1 × 1 × 4" not in page


def test_a_record_names_all_filters_that_were_used_and_along_which_axes(tmp_path):
    write(tmp_path / "v.nii", brain(0, (12, 26, 22)), (4, 1, 1))
    folder = run(tmp_path / "result", "--test_dir", tmp_path / "v.nii", "--upscale",
                 "--voxel_size", 0.5)
    record = json.loads((folder / "v.json").read_text())
    factors = [step["factor"] for step in record["steps"]]
    assert [2, 2, 2] in factors and [4, 1, 1] in factors
    assert record["settings"]["factor"] == [8, 2, 2]
    tags = {name.partition("_")[2].partition(".")[0] for name in record["filters"]}
    assert tags == {"2", "1x1x4"}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "v.nii upscaled to voxels of 0.5 × 0.5 × 0.5" in page
    assert all(digest in page for digest in record["filters"].values())


def test_a_page_names_all_filters_that_any_of_its_volumes_took(tmp_path):
    write(tmp_path / "in" / "a.nii", brain(0, (12, 26, 22)), (4, 1, 1))
    write(tmp_path / "in" / "b.nii", brain(1, (20, 20, 20)), (2, 2, 2))
    folder = run(tmp_path / "result", "--test_dir", tmp_path / "in", "--upscale", "--isotropic",
                 "--exclude", "b*")
    one = json.loads((folder / "a.json").read_text())["filters"]
    folder = run(tmp_path / "both", "--test_dir", tmp_path / "in", "--upscale",
                 "--voxel_size", 1)
    two = json.loads((folder / "b.json").read_text())["filters"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert set(one) != set(two)
    assert all(digest in page for digest in [*one.values(), *two.values()])


def test_the_same_filters_along_other_axes_are_another_run(tmp_path):
    request = Request.of(result_dir=str(tmp_path), upscale=True, factor=(1, 1, 4))
    turned = request.but(factor=(4, 1, 1))
    with pytest.raises(KeyboardInterrupt), run_folder(request, [], {"h": "0"}) as first:
        (first / "v.nii").write_text("")
        raise KeyboardInterrupt
    with run_folder(turned, [], {"h": "0"}) as second:
        assert second != first


def test_filters_that_were_read_serve_any_axis_also_where_their_files_are_not(
        tmp_path, monkeypatch):
    asked = Request.of(preset="scan", upscale=True, isotropic=True,
                       arrays_dir=str(Path(Request.arrays_dir).resolve()))
    expected = {axis: load_filters(asked, axis) for axis in ((1, 2, 1), (4, 1, 1))}
    store = pickle.loads(pickle.dumps(FilterStore(asked).read_all()))
    monkeypatch.chdir(tmp_path)  # as a worker that was started in another folder
    for factor, use in expected.items():
        found = store(factor)
        assert found.axes == use.axes and found.factor == factor
        np.testing.assert_array_equal(found.stages[0].weights, use.stages[0].weights)


@pytest.mark.parametrize("preset", ["scan", "best"])
def test_a_volume_too_small_for_filters_of_another_axis_is_given_no_turned_shape(
        tmp_path, capsys, preset):
    write(tmp_path / "v.nii", brain(0, (6, 26, 22)), (1, 1, 1))
    words = ["--preset", preset, "--factor", "4", "1", "1", "--test_dir", str(tmp_path / "v.nii"),
             "--result_dir", str(tmp_path / "result")]
    assert load_script("test").main(command_line("test", words)) == 2
    said = capsys.readouterr().err
    assert "v.nii: a" in said and "a side" in said and "(26, 22, 6)" not in said
