"""Restoring: odd backgrounds, units, headers, files beside a volume, and pictures of odd shapes."""
import json
import os
import struct
import subprocess
import sys
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from conftest import run_here, write_nifti
from scipy.ndimage import gaussian_filter
from scipy.signal import resample
from synthetic import QUICK, ROOT, brain, save

from degrading.measured_grid import wave_matrix
from filter_constant import Request
from intensities import shift_of
from nifti.checks import checked_image
from nifti.masks import mask_for
from nifti.volumes import _shifted, read_series
from report.pictures import picture_volume
from report.record import finished
from restoring.planning import plan
from restoring.steps import FilterStore
from restoring.whole_volume import Job

pytestmark = pytest.mark.usefixtures("drawn")

SHAPE = (20, 18, 16)


@pytest.mark.parametrize("background", [-5, -30, -1000, -9999])
def test_a_background_far_below_the_tissue_leaves_it_the_range(background):
    scores = np.random.default_rng(0).normal(0, 1, (20, 20, 20)).astype(np.float32)
    data = np.full((30, 30, 30), background, np.float32)
    data[5:25, 5:25, 5:25] = scores
    shift = shift_of(data)
    work = shift.work(data)
    tissue = work[5:25, 5:25, 5:25]
    assert tissue.std() > 0.09 * tissue.max() and work[0, 0, 0] == 0


def slow_wave_matrix(n_in, n_out):
    """The same by a sum of complex waves."""
    places = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    last = (min(n_in, n_out) - 1) // 2
    return sum(np.exp(2j * np.pi * cycle * (places[:, None] - np.arange(n_in)) / n_in).real
               for cycle in range(-last, last + 1)) / n_in


@pytest.mark.parametrize("sides", [(8, 4), (9, 5), (12, 9), (5, 10)])
def test_fourier_interpolation_is_a_sum_of_waves(sides):
    np.testing.assert_allclose(wave_matrix(*sides), slow_wave_matrix(*sides), atol=1e-12)


def test_fourier_interpolation_takes_memory_like_its_matrix():
    tracemalloc.start()
    wave_matrix(512, 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 512 * 256 * 8


def test_a_missing_backend_of_a_notebook_does_not_matter():
    words = "from machine.errors import run; run('test', lambda: __import__('report.pictures'))"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"MPLBACKEND": "no_such_backend"})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shape, sizes", [((2, 300, 300), (1, 1, 1)), ((2, 60, 60), (1, 20, 20))])
def test_the_picture_of_a_slab_is_no_tower(shape, sizes):
    volume = np.random.default_rng(0).random(shape, np.float32)
    png = picture_volume({"a": volume, "b": volume}, np.diag([*sizes, 1.0]), compare=False)
    width, height = struct.unpack(">II", png[16:24])
    assert height < 6 * width


def test_voxel_sizes_in_metres_keep_their_digits(tmp_path, capsys):
    image = nib.Nifti1Image(brain(0, SHAPE), np.diag([45e-5, 45e-5, 45e-5, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "v.nii")
    assert run_here("test", "--upscale", "--test_dir", tmp_path / "v.nii", "--output",
                    tmp_path / "o.nii", "--no-report") == 0
    assert "0.000225 x 0.000225 x 0.000225 m" in capsys.readouterr().out


def test_a_mask_in_another_unit_fits_or_not_by_its_place(tmp_path):
    volume = save(tmp_path / "v.nii", brain(0, SHAPE), np.eye(4))
    for name, scale, unit in (("same", 1e-3, "meter"), ("larger", 1, "meter")):
        mask = nib.Nifti1Image((brain(0, SHAPE) > 0).astype(np.uint8),
                               np.diag(3 * [scale] + [1.0]))
        mask.header.set_xyzt_units(unit)
        nib.save(mask, tmp_path / f"{name}.nii")
    image = nib.load(volume)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "w.nii")
    assert mask_for(tmp_path / "w.nii", "same.nii").inside.any()
    with pytest.raises(Exception, match="voxels away"):
        mask_for(tmp_path / "w.nii", "larger.nii")


def test_the_message_about_slices_has_the_headers_size_also_for_an_interpolated_scan(
        tmp_path, capsys):
    random = np.random.default_rng(0)
    low = gaussian_filter(random.standard_normal((36, 40, 36)), 0.7) * 300 + 500
    low += random.normal(0, 30, low.shape)
    image = nib.Nifti1Image(np.clip(resample(low, 72, axis=2), 1, None).astype(np.float32),
                            np.diag([1, 1, 0.5, 1]))
    image.header.set_dim_info(0, 1, 2)
    nib.save(image, tmp_path / "s.nii")
    (tmp_path / "s.json").write_text('{"SpacingBetweenSlices": 0.5, "SliceThickness": 1.0}')
    path = tmp_path / "s.nii"
    request = Request.of(upscale=True, voxel_size=(1.0, 1.0, 0.5), test_dir=str(path))
    opened = checked_image(path, (3, 4))
    plan(path, "s.nii", FilterStore(request), opened, lambda: read_series(path, opened))
    said = "".join(capsys.readouterr())
    assert "header says" not in said and "overlap" in said


def test_a_volume_without_odd_voxels_in_a_series_has_no_odd_background():
    series = np.random.default_rng(0).normal(0, 9, (*SHAPE, 2)).astype(np.float32)
    alone = shift_of(series[..., 0])
    outside = np.zeros(series.shape, bool)
    outside[3, 3, 3, 1] = True
    shifts, _ = _shifted(series.copy(), outside)
    assert shifts[0] == alone


# ---- files beside a volume

def dataset(folder, sidecar, suffix="T1w"):
    folder = folder / "ds"
    write_nifti(folder / "sub-1" / "anat" / f"sub-1_{suffix}.nii.gz", brain(0, SHAPE))
    (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    (folder / "sub-1" / "anat" / f"sub-1_{suffix}.json").write_text(sidecar)
    return folder


def test_fields_of_a_sidecar_do_not_become_those_of_the_record(tmp_path):
    folder = dataset(tmp_path, '{"steps": 5, "mask": "none.nii", "EchoTime": NaN, "FlipAngle": 9}')
    assert run_here("test", "--upscale", "--test_dir", folder, "--result_dir",
                    tmp_path / "r") == 0
    record = json.loads(next((tmp_path / "r").rglob("sub-1*T1w.json")).read_text())
    assert "steps" not in record and "mask" not in record and record["FlipAngle"] == 9
    assert any("fields of its JSON sidecar" in line for line in record["figures"]["messages"])


@pytest.mark.parametrize("ending", [".json", ".bval", ".bvec"])
def test_a_volume_whose_sidecar_or_gradients_changed_is_restored_again(tmp_path, ending):
    volume = save(tmp_path / "in" / "v.nii", brain(0, SHAPE))
    beside = volume.with_suffix(ending)
    beside.write_text("{}")
    assert run_here("test", "--upscale", "--test_dir", tmp_path / "in", "--result_dir",
                    tmp_path / "r") == 0
    target = next((tmp_path / "r").rglob("v.nii"))
    job = Job(volume, target, target.with_suffix(""))

    def known():
        return finished(job, "v.nii", target.with_suffix(".json"), Request())

    assert known()
    beside.write_text('{"EchoTime": 0.2}')
    assert known() is None
    beside.unlink()
    assert known() is None


def test_blending_keeps_a_brain_that_touches_the_faces(tmp_path):
    full = np.clip(500 + brain(3, (30, 28, 26)), 50, 1000)
    save(tmp_path / "train" / "a.nii", brain(0))
    save(tmp_path / "test" / "b.nii", full)
    arrays = ["--arrays_dir", tmp_path / "a"]
    assert run_here("train", "--train_dir", tmp_path / "train", *arrays, *QUICK) == 0
    found = []
    for number, more in enumerate(([], ["--blend_threshold", 26])):
        out = tmp_path / f"r{number}"
        assert run_here("test", "--test_dir", tmp_path / "test", *arrays, "--result_dir", out,
                        "--no-report", *more) == 0
        found.append(nib.load(next(out.rglob("b.nii"))).get_fdata())
    np.testing.assert_array_equal(found[1] == 0, found[0] == 0)
