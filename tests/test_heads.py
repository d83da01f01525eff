"""Whole heads: around them is air, noisy and not zero."""
import json

import nibabel as nib
import numpy as np
import pytest
from conftest import run_here
from scipy.ndimage import binary_erosion
from skimage.filters import threshold_otsu
from synthetic import brain, command, save, upscale
from test_scan import phantom

from degrading import descriptors
from degrading.degradation import degradation_of
from degrading.descriptors import NOISE, bright_part, descriptors_of, head_in_zeros
from degrading.likeness import Weights
from degrading.slice_profile import profile_matrix
from disk.filters import load_filters
from filter_constant import Request
from get_lar import make_fine
from restoring.adaptation import adapt_to_scan
from restoring.evaluation import evaluate_scan
from restoring.planning import find_head
from restoring.steps import restore
from util import decibel

REQUEST = Request.of(preset="scan")


def in_air(clean, sigma, seed=0):
    """What a scanner shows of a head: Rician noise, in the air too. In the units of `clean`."""
    noise = sigma * np.random.default_rng(seed).standard_normal((2, *clean.shape), np.float32)
    return np.hypot(clean + noise[0], noise[1]).astype(np.float32)


@pytest.fixture(autouse=True)
def all_is_restored(monkeypatch):
    """Filters work in full on phantoms too, which are unlike brains."""
    monkeypatch.setattr("structure.weights_of", lambda *_: Weights())


@pytest.fixture(scope="module")
def shipped():
    return load_filters(REQUEST)


def test_a_head_is_found_in_noisy_air_and_in_zeros_and_a_brain_is_none():
    head = np.zeros((40, 40, 40), np.float32)
    head[5:35, 5:35, 5:35] = 100
    head[10:30, 10:30, 10:30] = 300
    found, bright = find_head(head, np.array([5, 5, 5]))
    assert found and bright.sum() == 20**3
    air = np.random.default_rng(0).uniform(1, 9, head.shape).astype(np.float32)
    assert find_head(np.maximum(head, air), np.array([1, 1, 1])) == (True, None)
    assert find_head(head, np.array([1, 1, 1])) == (False, None)  # no larger than a brain


def test_descriptors_of_a_head_in_noisy_air_are_those_of_its_brain_cut_out():
    clean = phantom(0, (64, 64, 64))
    clean *= 0.8 / clean.max()
    head = np.clip(in_air(clean, 0.04), 0, 1)
    bright = bright_part(head)
    assert bright[clean == 0].mean() < 0.01 and bright[clean > 0].mean() > 0.6
    cut = descriptors_of(np.where(bright, head, 0), (2, 2, 2))
    np.testing.assert_array_equal(descriptors_of(head, (2, 2, 2)), cut)
    assert 0.03 < cut[NOISE] < 0.05


@pytest.mark.parametrize("kind", ["brain", "part of a brain", "all alike"])
def test_brains_and_parts_of_them_are_no_heads(kind):
    volume = brain(1, (40, 40, 40)) / 1000
    if kind == "part of a brain":
        volume = in_air(phantom(1, (64, 64, 64))[24:40, 24:40, 24:40] / 1000, 0.02)
        assert volume.all()
    if kind == "all alike":
        volume = np.ones((9, 9, 9), np.float32)
    assert bright_part(volume) is None


@pytest.mark.filterwarnings("error")  # of scikit-image, which takes three slices for colours
@pytest.mark.parametrize("slices", [3, 4])
def test_few_slices_are_no_colours(slices):
    volume = np.random.default_rng(0).random((40, 40, slices), np.float32)
    volume[:20] *= 0.1
    assert bright_part(volume)[20:].any()
    assert head_in_zeros(volume, (20, 20, 20)).mean() > 0.2


def test_a_head_is_restored_better_by_descriptors_of_its_bright_part(shipped, monkeypatch):
    stages, method, *_ = shipped
    hr = phantom(2, (64, 64, 64))
    hr /= hr.max()
    operator = degradation_of(hr.shape, method)
    operator.profiles = 3 * ("box",)
    low = in_air(np.maximum(operator.forward(hr), 0), 0.03)
    inside = binary_erosion(hr > 0, iterations=3)
    found = {}
    for way in ("bright part", "all of it"):
        if way == "all of it":
            monkeypatch.setattr(descriptors, "bright_part", lambda volume: None)
        fine = upscale(low, stages, method)
        found[way] = decibel(np.mean(np.square(fine - hr)[inside], dtype=np.float64))
    assert found["bright part"] > found["all of it"] + 0.05


def test_thick_slices_of_a_head_in_air_are_adapted_to_sanely():
    stages, method, *_ = load_filters(Request.of(preset="scan", factor=(1, 1, 4)))
    hr = phantom(3, (64, 64, 64))
    hr /= hr.max()
    low = in_air(hr @ profile_matrix(64, 4, "box").T.astype(np.float32), 0.02)
    inside = binary_erosion(hr > 0, iterations=3)
    adapted = adapt_to_scan(low, stages, method)
    errors = {}
    for way, used in (("as they are", stages), ("adapted", adapted.stages)):
        fine = upscale(low, used, method)
        assert np.isfinite(fine).all() and fine.max() < 1.5 * low.max()
        errors[way] = decibel(np.mean(np.square(fine - hr)[inside], dtype=np.float64))
    assert errors["adapted"] > errors["as they are"] - 0.2


def test_a_head_is_said_to_be_one(tmp_path):
    clean = phantom(4, (32, 32, 32))
    head = in_air(clean, 30)
    series = np.stack([0 * head, head], -1)  # begins with a black volume
    for name, volume in (("head", head), ("brain", clean), ("series", series)):
        status, out, errors = command(
            "test.py", "--upscale", "--no-report", "--preset", "scan", "--test_dir",
            save(tmp_path / f"{name}.nii", volume), "--overwrite", "--output", tmp_path / "o.nii")
        assert status == len(errors) == (name == "series")  # that the first is left black
        assert out.count("seems to be a whole head") == (name != "brain")
        record = json.loads((tmp_path / ".o.json").read_text())
        assert record["figures"]["skull_stripped"] is (name == "brain")


def test_a_volume_all_alike_is_no_head_whatever_its_size():
    assert head_in_zeros(np.full((20, 20, 20), 50, np.float32), (10, 10, 10)) is None


def test_a_head_in_air_of_zeros_is_told_by_its_size_and_read_where_it_is_bright(
        tmp_path, shipped, capsys):
    """As volumes of 1 and of 6 mm: the first is smaller than a brain, the second is a head."""
    stages, method, *_ = shipped
    low = np.floor(phantom(5, (32, 32, 32)))
    found = {}
    for side in (1, 6):
        image = nib.Nifti1Image(low, np.diag([side, side, side, 1]))
        nib.save(image, tmp_path / "low.nii")
        assert run_here("test", "--upscale", "--no-report", "--preset", "scan", "--test_dir",
                        tmp_path / "low.nii", "--output", tmp_path / f"{side}.nii") == 0
        assert capsys.readouterr().out.count("seems to be a whole head") == (side == 6)
        found[side] = nib.load(tmp_path / f"{side}.nii").get_fdata(dtype=np.float32)
    for side, inside in ((1, None), (6, low > threshold_otsu(low))):
        fine = make_fine(low, method, inside, voxel_size=3 * (side,))
        expected = fine.whole(restore(fine, stages, method))
        np.testing.assert_allclose(found[side], expected, atol=1e-3)
    assert np.abs(found[1] - found[6]).max() > 1


def test_each_volume_of_a_series_of_heads_is_read_where_it_is_bright_itself(tmp_path):
    low = np.floor(phantom(5, (32, 32, 32)))
    other = np.where(low > 0, low.max() + 5 - low, 0)  # bright where the first one is dark
    found = {}
    for name, data in (("other", other), ("series", np.stack([low, other], -1))):
        nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([6, 6, 6, 1])),
                 tmp_path / "low.nii")
        assert run_here("test", "--upscale", "--no-report", "--preset", "scan", "--test_dir",
                        tmp_path / "low.nii", "--output", tmp_path / f"{name}.nii") == 0
        found[name] = nib.load(tmp_path / f"{name}.nii").get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(found["series"][..., 1], found["other"])


def test_evaluation_reads_a_head_in_air_of_zeros_where_it_is_bright(shipped):
    hr = phantom(6, (48, 48, 48))
    small, large = (evaluate_scan(hr, shipped, REQUEST, "box", 3, "head", voxel_size=3 * (side,))
                    for side in (0.5, 4))
    assert small["restored_inside"] != large["restored_inside"]
    assert small["quintic_inside"] == large["quintic_inside"]
