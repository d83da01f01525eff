"""Scans that were interpolated before they came are restored from what was measured."""
import json

import nibabel as nib
import numpy as np
import pytest
from conftest import run_here
from scipy.ndimage import binary_erosion
from synthetic import save
from test_scan import phantom

from degrading.banded import apply_operators, banded
from degrading.measured_grid import MeasuredGrid, measured_grid, onto_measured, wave_matrix
from filter_constant import Request
from nifti.slices import filled_up
from nifti.volumes import Volume
from restoring.measured_scan import Scan, as_measured
from restoring.spacing import route_to
from restoring.steps import FilterStore


def filled(low, axes, times=2):
    """A volume whose spectrum is filled up with zeros along axes, cut at its own outline."""
    sides = [side * times if axis in axes else side for axis, side in enumerate(low.shape)]
    fine = apply_operators(low, [banded(wave_matrix(*pair)) for pair in zip(low.shape, sides)])
    inside = np.kron((low > 0), np.ones([times if axis in axes else 1 for axis in range(3)]))
    return (np.maximum(fine, 1e-3) * inside).astype(np.float32)


def scan(seed=0, sigma=0.0, shape=(72, 68, 64)):
    """A head of tissue in a black surround, in [0, 1], with noise."""
    clean = phantom(seed, shape) / 1000
    noise = np.random.default_rng(seed).normal(0, sigma, shape)
    return (np.maximum(clean + noise, 1e-3) * (clean > 0)).astype(np.float32)


@pytest.mark.parametrize("sigma", [0, 0.03])
@pytest.mark.parametrize("axes", [(0,), (0, 1), (0, 1, 2)])
def test_a_volume_filled_up_with_zeros_is_known_as_one(axes, sigma):
    low = scan(sigma=sigma)
    grid = measured_grid(filled(low, axes))
    assert grid.shares == tuple(0.5 if axis in axes else 1.0 for axis in range(3))
    assert grid.shape == low.shape and not grid.is_own


@pytest.mark.parametrize("unit", [1e-25, 1e-9, 1e25])
def test_it_is_known_in_any_unit_of_intensity(unit):
    low = filled(scan(sigma=0.03), (0,)) * np.float32(unit)
    assert measured_grid(low).shares == (0.5, 1.0, 1.0)
    assert measured_grid(scan(sigma=0.03) * np.float32(unit)).is_own


def test_two_thirds_are_known_as_a_share_too():
    low = scan(sigma=0.03, shape=(72, 64, 60))
    sides = [(72, 108), (64, 64), (60, 60)]
    fine = apply_operators(low, [banded(wave_matrix(*pair)) for pair in sides])
    inside = (low > 0)[np.arange(108) * 2 // 3]
    grid = measured_grid((np.maximum(fine, 1e-3) * inside).astype(np.float32))
    assert grid.shares == (2 / 3, 1.0, 1.0) and grid.shape == low.shape


@pytest.mark.parametrize("sigma", [0, 0.03])
def test_a_volume_that_was_measured_in_full_keeps_its_grid(sigma):
    assert measured_grid(scan(sigma=sigma)).is_own
    windowed = np.fft.rfft(scan(sigma=sigma), axis=2)
    windowed *= 0.54 + 0.46 * np.cos(np.pi * np.linspace(0, 1, windowed.shape[2]))
    low = np.fft.irfft(windowed, axis=2).astype(np.float32) * (scan() > 0)
    assert measured_grid(low).is_own  # a Hamming window falls off, but not at once


def test_what_was_measured_comes_back_without_loss():
    low = scan(sigma=0.03)
    fine = filled(low, (0, 1))
    grid = measured_grid(fine)
    deep = binary_erosion(low > 0, iterations=6)
    apart = (onto_measured(fine, grid) - low)[deep]
    # The outline, cut anew, takes some of the ringing around it away.
    assert np.sqrt(np.mean(apart**2)) < 0.02 < 0.5 * low[deep].std()


def test_its_voxels_lie_where_they_were():
    grid = MeasuredGrid((4, 6, 8), (0.5, 1.0, 2 / 3))
    np.testing.assert_allclose(grid.to_low() @ [0, 0, 0, 1], [0.5, 0, 0.25, 1])
    np.testing.assert_allclose(grid.to_low() @ [3, 5, 7, 1], [6.5, 5, 10.75, 1])


def test_small_volumes_keep_their_grid():
    assert measured_grid(filled(scan(shape=(10, 12, 9)), (0, 1))).is_own


@pytest.mark.parametrize("sides", [(16, 8), (8, 16), (15, 6), (6, 15)])
def test_waves_below_the_highest_frequency_of_both_grids_are_kept_and_it_is_dropped(sides):
    n_in, n_out = sides
    at_in = (np.arange(n_in) + 0.5) / n_in
    at_out = (np.arange(n_out) + 0.5) / n_out
    matrix, highest = wave_matrix(n_in, n_out), min(sides) // 2
    for cycles in range(highest):
        wave = np.cos(2 * np.pi * (cycles * at_in + 0.1))
        np.testing.assert_allclose(
            matrix @ wave, np.cos(2 * np.pi * (cycles * at_out + 0.1)), atol=1e-9)
    wave = np.cos(2 * np.pi * (highest * at_in + 0.1))
    np.testing.assert_allclose(matrix @ wave, 0, atol=1e-9)


# ---- sidecars

def test_a_sidecar_says_what_was_measured_of_the_plane(tmp_path):
    scan_path = tmp_path / "scan.nii.gz"
    image = nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4))
    for held, share in (({"AcquisitionMatrixPE": 128, "ReconMatrixPE": 256}, 0.5), ({}, 1.0),
                        ({"AcquisitionMatrixPE": 256, "ReconMatrixPE": 256}, 1.0),
                        ({"AcquisitionMatrixPE": 320, "ReconMatrixPE": 256}, 1.0),
                        ({"AcquisitionMatrixPE": 128}, 1.0), ({"ReconMatrixPE": 256}, 1.0),
                        ({"AcquisitionMatrixPE": "many", "ReconMatrixPE": 256}, 1.0)):
        (tmp_path / "scan.json").write_text(json.dumps(held))
        assert filled_up(scan_path, image, np.array([0.5, 0.5, 4])) == (share, share, 1.0)


@pytest.mark.parametrize("unit, per_mm", [("mm", 1), ("micron", 1000), ("meter", 0.001)])
def test_the_slice_axis_of_a_sidecar_is_found_in_the_unit_of_the_header(tmp_path, unit, per_mm):
    (tmp_path / "scan.json").write_text(json.dumps({
        "AcquisitionMatrixPE": 128, "ReconMatrixPE": 256, "SliceThickness": 1.2}))
    image = nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4))
    image.header.set_xyzt_units(unit)
    sizes = per_mm * np.array([1, 1, 1.2])
    assert filled_up(tmp_path / "scan.nii", image, sizes) == (0.5, 0.5, 1.0)


def test_a_sidecar_alone_does_not_take_detail_away():
    assert measured_grid(scan(sigma=0.03), (0.5, 0.5, 1.0)).is_own


# ---- upscaling

def test_an_interpolated_scan_is_restored_from_what_was_measured(tmp_path, capsys):
    low = filled(scan(shape=(40, 36, 30)), (0, 1))
    affine = np.diag([0.5, 0.5, 1, 1.0])
    affine[:3, 3] = [-7, 3, 11]
    save(tmp_path / "scan.nii.gz", 1000 * low, affine)
    target = tmp_path / "fine.nii.gz"
    assert run_here("test", "--upscale", "--test_dir", tmp_path / "scan.nii.gz",
                    "--output", target, "--no-report") == 0
    said = capsys.readouterr().out
    assert "axis 0: 1 mm on a grid of 0.5; axis 1: 1 mm on a grid of 0.5" in said
    assert "--profile" not in said and "axis 2: 1 mm on a grid" not in said
    told = tmp_path / "told.nii.gz"
    assert run_here("test", "--upscale", "--profile", "box", "--test_dir",
                    tmp_path / "scan.nii.gz", "--output", told, "--no-report") == 0
    assert "because it describes the interpolated grid" in capsys.readouterr().out
    np.testing.assert_array_equal(nib.load(told).dataobj, nib.load(target).dataobj)
    found = nib.load(target)
    assert found.shape == tuple(2 * side for side in low.shape)
    np.testing.assert_allclose(found.affine[:3, 3], affine[:3, 3] - [0.125, 0.125, 0.25], atol=1e-5)
    np.testing.assert_allclose(found.header.get_zooms(), [0.25, 0.25, 0.5], rtol=1e-5)
    record = found.get_fdata()
    brain = binary_erosion(np.kron(low > 0, np.ones((2, 2, 2))) > 0, iterations=6)
    assert abs(record[brain].mean() / (1000 * low[low > 0].mean()) - 1) < 0.1


def test_an_interpolated_scan_gets_the_detail_that_its_own_grid_lacks(tmp_path, capsys):
    low = filled(scan(shape=(40, 36, 30)), (0, 1))
    save(tmp_path / "scan.nii.gz", 1000 * low, np.diag([0.5, 0.5, 1, 1.0]))
    target = tmp_path / "own.nii.gz"
    words = ("--test_dir", tmp_path / "scan.nii.gz", "--output", target, "--no-report")
    assert run_here("test", "--upscale", "--voxel_size", "0.5", "0.5", "1", *words) == 0
    said = capsys.readouterr().out
    assert said.count("restored from what was measured") == 1
    found = nib.load(target)
    assert found.shape == low.shape
    np.testing.assert_allclose(found.affine, np.diag([0.5, 0.5, 1, 1.0]), atol=1e-6)
    assert not np.allclose(found.get_fdata(), 1000 * low, atol=1)


def test_a_scan_filled_up_along_all_axes_is_known_to_be_cut_out_of_k_space():
    low = filled(scan(shape=(40, 36, 30)), (0, 1, 2))
    store = FilterStore(Request.of(preset="scan", upscale=True))
    whole = Scan(Volume(low, nib.Nifti1Image(low, np.eye(4))), None, np.ones(3),
                 route_to((0.5, 0.5, 0.5), np.ones(3), store.there), [store((2, 2, 2))],
                 np.eye(4), ())
    found = as_measured("scan", whole, store)
    assert found.uses[0].factor == (4, 4, 4) and not found.profiles
    assert found.agree_with == ("kspace", "kspace", "kspace")


def test_a_scan_measured_in_full_has_nothing_to_restore_on_its_own_grid(tmp_path, capsys):
    save(tmp_path / "scan.nii.gz", 1000 * scan(shape=(40, 36, 30)), np.diag([0.5, 0.5, 1, 1.0]))
    assert run_here("test", "--upscale", "--voxel_size", "0.5", "0.5", "1", "--test_dir",
                    tmp_path / "scan.nii.gz", "--output", tmp_path / "own.nii.gz") == 2
    assert "is hardly finer: there is nothing to restore" in capsys.readouterr().err


def test_each_volume_of_an_interpolated_series_comes_onto_the_measured_grid():
    lows = [filled(scan(seed, shape=(40, 36, 30)), (0, 1)) for seed in (0, 1)]
    store = FilterStore(Request.of(preset="scan", upscale=True))
    filters = store((2, 2, 2))
    image = nib.Nifti1Image(np.stack(lows, -1), np.diag([0.5, 0.5, 1, 1]))
    route = route_to((0.25, 0.25, 0.5), np.array([0.5, 0.5, 1]), store.there)
    series = Scan(Volume(np.stack(lows, -1), image), None, np.array([0.5, 0.5, 1]), route,
                  [filters], np.eye(4), ())
    found = as_measured("series", series, store)
    assert found.agree_with == ()  # nothing is known of axis 2
    assert found.volume.data.shape == (40, 36, 30, 2)
    np.testing.assert_array_equal(found.sizes, [1, 1, 1])
    for number, low in enumerate(lows):
        np.testing.assert_array_equal(found.volume.data[..., number],
                                      onto_measured(low, measured_grid(low)))
