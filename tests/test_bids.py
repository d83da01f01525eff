"""nifti/bids.py: results of a BIDS dataset are a valid derivative dataset."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script
from synthetic import brain

from nifti.bids import copy_gradients, derivative_stem, mask_stem, sidecar_of
from options.command_line import command_line

VALIDATOR = shutil.which("bids-validator-deno") or str(
    Path(sys.executable).with_name("bids-validator-deno"))


def volume(path, data, **sidecar):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image((900 * data).astype(np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    """The folder of results of a small dataset: two runs and a diffusion series."""
    folder = tmp_path_factory.mktemp("study")
    study = folder / "ds"
    for run in (1, 2):
        volume(study / f"sub-01/ses-a/anat/sub-01_ses-a_run-{run}_T1w.nii.gz",
               np.pad(brain(run, (20, 20, 20)), 4), MagneticFieldStrength=3, EchoTime=0.003)
    series = np.stack([np.pad(brain(n, (14, 14, 14)), 3) for n in (3, 4)], -1)
    volume(study / "sub-01/ses-a/dwi/sub-01_ses-a_dwi.nii.gz", series, EchoTime=0.08)
    for ending, text in ((".bval", "0 1000\n"), (".bvec", "0 1\n0 0\n0 0\n")):
        (study / f"sub-01/ses-a/dwi/sub-01_ses-a_dwi{ending}").write_text(text)
    (study / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    there = os.getcwd()
    os.chdir(folder)  # where arrays/ holds nothing
    try:
        assert load_script("test").main(command_line("test", [
            "--upscale", "--test_dir", str(study), "--result_dir", str(folder / "r"), "--quiet",
            "--include", "*_T1w.nii.gz", "*_dwi.nii.gz"])) == 0
    finally:
        os.chdir(there)
    return next((folder / "r").iterdir())


def test_names_sidecars_and_gradients_are_those_of_a_derivative(restored):
    anat, dwi = restored / "sub-01/ses-a/anat", restored / "sub-01/ses-a/dwi"
    assert {path.name for path in restored.rglob("*.nii.gz")} == {
        "sub-01_ses-a_run-1_desc-fine_T1w.nii.gz", "sub-01_ses-a_run-2_desc-fine_T1w.nii.gz",
        "sub-01_ses-a_desc-fine_dwi.nii.gz"}
    held = json.loads((anat / "sub-01_ses-a_run-1_desc-fine_T1w.json").read_text())
    assert held["EchoTime"] == 0.003 and held["SkullStripped"] is True
    assert held["Sources"] == ["bids:raw:sub-01/ses-a/anat/sub-01_ses-a_run-1_T1w.nii.gz"]
    assert {"input_sha256", "result_sha256", "settings"} <= set(held)
    assert (dwi / "sub-01_ses-a_dwi.bval").read_text() == "0 1000\n"
    assert (dwi / "sub-01_ses-a_dwi.bvec").exists()


def test_gradients_of_a_described_series_are_named_after_the_result(tmp_path):
    """Tables apply by inheritance only to names with the same entity desc."""
    for entities, name in (("sub-1_", "sub-1_dwi"), ("sub-1_desc-preproc_",
                                                     "sub-1_desc-preprocfine_dwi")):
        raw = tmp_path / f"{entities}dwi.nii.gz"
        raw.with_name(f"{entities}dwi.bval").write_text("0 1000")
        target = tmp_path / entities / f"{derivative_stem(f'{entities}dwi', '_fine')}.nii.gz"
        target.parent.mkdir()
        copy_gradients(raw, target)
        assert [path.name for path in target.parent.iterdir()] == [f"{name}.bval"]


def test_a_volume_without_its_gradients_does_not_count_as_finished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dwi = tmp_path / "ds/sub-01/dwi"
    volume(dwi / "sub-01_dwi.nii.gz", np.pad(brain(3, (14, 14, 14)), 3))
    (dwi / "sub-01_dwi.bval").write_text("0\n")
    (tmp_path / "ds/dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')

    def stopped(*_, **__):
        raise KeyboardInterrupt

    def run():
        return load_script("test").main(command_line("test", [
            "--upscale", "--test_dir", "ds", "--result_dir", "r", "--quiet", "--no-report",
            "--include", "*_dwi.nii.gz"]))

    with monkeypatch.context() as patched:
        patched.setattr("restoring.whole_volume.copy_gradients", stopped)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert run() == 0
    assert len(list((tmp_path / "r").rglob("sub-01_dwi.bval"))) == 1


def test_a_run_without_results_describes_no_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds/sub-1/anat").mkdir(parents=True)
    (tmp_path / "ds/dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    (tmp_path / "ds/sub-1/anat/sub-1_T1w.nii.gz").write_bytes(b"no volume")
    assert load_script("test").main(command_line("test", [
        "--upscale", "--test_dir", "ds", "--result_dir", "r", "--quiet"])) == 2
    assert not (tmp_path / "r").exists()


def test_the_dataset_is_described(restored):
    held = json.loads((restored / "dataset_description.json").read_text())
    assert held["DatasetType"] == "derivative" and held["BIDSVersion"] == "1.9.0"
    assert held["GeneratedBy"][0]["Name"] and held["SourceDatasets"][0]["URL"].endswith("/ds")


def test_a_mask_is_carried_to_the_grid_of_its_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = np.pad(brain(1, (20, 20, 20)), 4)
    head = np.maximum(inside, np.pad(np.full((24, 24, 24), 0.2), 2))
    volume(tmp_path / "ds/sub-01/anat/sub-01_T2w.nii.gz", head)
    mask = tmp_path / "ds/derivatives/prep/sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    mask.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image((inside > 0).astype(np.uint8), np.eye(4)), mask)
    (tmp_path / "ds/dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    assert load_script("test").main(command_line("test", [
        "--upscale", "--test_dir", "ds", "--result_dir", "r", "--include", "*_T2w.nii.gz",
        "--mask", "auto", "--quiet"])) == 0
    folder = next((tmp_path / "r").iterdir())
    anat = folder / "sub-01/anat"
    fine = nib.load(anat / "sub-01_desc-fineT2w_mask.nii.gz")
    result = nib.load(anat / "sub-01_desc-fine_T2w.nii.gz")
    assert fine.get_data_dtype() == np.uint8 and fine.shape == result.shape
    np.testing.assert_array_equal(fine.affine, result.affine)
    expected = np.kron(inside > 0, np.ones((2, 2, 2))) > 0
    assert ((np.asarray(fine.dataobj) > 0) != expected).sum() < 0.05 * expected.sum()
    held = json.loads((anat / "sub-01_desc-fineT2w_mask.json").read_text())
    assert held["Type"] == "Brain" and held["Sources"] == [
        "bids:raw:derivatives/prep/sub-01/anat/sub-01_desc-brain_mask.nii.gz"]
    assert errors_in(folder, tmp_path) == []


def errors_in(dataset, cache):
    """The errors that the validator finds; the test is skipped where it is not installed."""
    if not os.access(VALIDATOR, os.X_OK):
        pytest.skip("bids-validator-deno is not installed; "
                    "python -m pip install -r requirements-dev.txt")
    done = subprocess.run([VALIDATOR, "--json", str(dataset)], text=True, capture_output=True,
                          env=os.environ | {"DENO_DIR": str(cache)})
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [issue for issue in issues if issue["severity"] == "error"]


def test_the_validator_finds_no_error(restored, tmp_path):
    assert errors_in(restored, tmp_path) == []


@pytest.mark.parametrize("name, suffix, expected", [
    ("sub-01_T1w", "", "sub-01_desc-fine_T1w"),
    ("sub-01_ses-2_run-1_T2w", "_x-2", "sub-01_ses-2_run-1_desc-x2_T2w"),
    ("sub-01_desc-preproc_T1w", "_fine", "sub-01_desc-preprocfine_T1w"),
    ("sub-01_space-MNI_desc-preproc_bold", "", "sub-01_space-MNI_desc-preprocfine_bold"),
    ("scan", "_fine", None), ("sub-01", "", None), ("acq-a_T1w", "", None)])
def test_names_of_derivatives(name, suffix, expected):
    assert derivative_stem(name, suffix) == expected


@pytest.mark.parametrize("name, expected", [
    ("sub-01_desc-fine_T1w", "sub-01_desc-fineT1w_mask"),
    ("sub-01_desc-fine_run-1_T1w", "sub-01_desc-fineT1w_run-1_mask"),
    ("t1_mprage_fine", "t1_mprage_fine_mask"), ("t1m_prage_fine", "t1m_prage_fine_mask"),
    ("scan", "scan_mask"), ("acq-a_desc-b_T1w", "acq-a_desc-b_T1w_mask")])
def test_names_of_masks_differ_as_the_names_of_their_results(name, expected):
    assert mask_stem(name) == expected


@pytest.mark.parametrize("spoilt", ["NaN", "-Infinity", "1e999", "[0, {\"b\": NaN}]"])
def test_a_field_of_a_sidecar_that_json_cannot_hold_is_named_and_left_out(
        spoilt, tmp_path, capsys):
    (tmp_path / "sub-01_T1w.json").write_text(f'{{"EchoTime": 0.003, "SliceTiming": {spoilt}}}')
    held = sidecar_of(tmp_path / "sub-01_T1w.nii.gz", tmp_path, {})
    assert held["EchoTime"] == 0.003 and "SliceTiming" not in held
    assert "SliceTiming" in capsys.readouterr().err


def test_fields_about_the_grid_of_the_scan_are_not_copied_to_a_finer_one(tmp_path):
    kept = {"RepetitionTime": 2.0, "TotalReadoutTime": 0.03, "EchoTime": 0.03}
    old = {"SliceTiming": [0, 1], "SliceThickness": 4, "SpacingBetweenSlices": 4.05,
           "NumberOfSlices": 12, "AcquisitionMatrixPE": 64, "ReconMatrixPE": 128,
           "BaseResolution": 64, "EffectiveEchoSpacing": 0.0005}
    (tmp_path / "sub-01_bold.json").write_text(json.dumps(kept | old))
    held = sidecar_of(tmp_path / "sub-01_bold.nii.gz", tmp_path, {})
    assert {name: held.get(name) for name in kept} == kept and not set(old) & set(held)


def test_outside_of_bids_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    volume(tmp_path / "v" / "sub-01_T1w.nii.gz", np.pad(brain(1, (16, 16, 16)), 3))
    assert load_script("test").main(command_line("test", [
        "--upscale", "--test_dir", "v", "--result_dir", "r", "--suffix", "_fine", "--quiet"])) == 0
    names = {path.name for path in next((tmp_path / "r").iterdir()).iterdir()}
    assert "sub-01_T1w_fine.nii.gz" in names and "dataset_description.json" not in names
