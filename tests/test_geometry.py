"""Where upscaled voxels lie in world space: for every grid, factor and orientation.

And in the eyes of other software.
"""
import itertools

import nibabel as nib
import numpy as np
import pytest
from gram_cases import accumulate
from nibabel.processing import resample_from_to
from scipy.ndimage import gaussian_filter
from synthetic import brain, one_stage, save, upscale

import test as script
from degrading.degradation import degradation_of
from disk.filters import save_filters
from filter_constant import Method, Request
from get_lar import make_pair
from hashtable import Boundaries, features, interior_voxels, quantile_boundaries
from matrix_compute import Gram, solve
from nifti.geometry import finer_header, voxel_sizes_in_mm
from options.command_line import command_line

FACTORS = [(2, 2, 2), (3, 3, 3), (1, 1, 4), (2, 1, 3)]
BOUNDARIES = Boundaries(np.array([0.01, 0.02]), np.array([0.3, 0.6]))
AFFINES = {
    "RAS": np.diag([0.9, 1.1, 2.0, 1.0]),
    "LAS": np.diag([-0.9, 1.1, 2.0, 1.0]),
    "LPI": np.diag([-0.9, -1.1, -2.0, 1.0]),
    "PSR": np.array([[0, 0, 2.0, 0], [-0.9, 0, 0, 0], [0, 1.1, 0, 0], [0, 0, 0, 1]]),
}
turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
AFFINES["oblique"] = np.eye(4)
AFFINES["oblique"][:3, :3] = turn * [0.9, 1.1, 2.0]
for affine in AFFINES.values():
    affine[:3, 3] = [-12.5, 7.25, 30.0]
PLACES = pytest.mark.parametrize(
    "orientation, grid", list(itertools.product(["LAS", "oblique"], ["centers", "edges"])))


def keeping(method):
    """Filters that keep the LR voxel."""
    h = np.zeros((method.buckets, method.taps), np.float32)
    h[:, method.taps // 2] = 1
    return h


def run_upscale(tmp_path, image, method, h, name="scan.nii"):
    """Save, upscale by the command's own story, load."""
    request = Request(
        method, arrays_dir=str(tmp_path / "arrays"), test_dir=str(tmp_path / name), upscale=True,
        output=str(tmp_path / f"fine_{name}"), report=False)
    nib.save(image, tmp_path / name)
    save_filters(one_stage(h, BOUNDARIES), request, [])
    assert script.main(request) == 0
    return nib.load(tmp_path / f"fine_{name}")


def world(image, affine=None):
    """World coordinates of all voxels, shape (X, Y, Z, 3)."""
    voxels = np.moveaxis(np.indices(image.shape[:3]), 0, -1)
    return nib.affines.apply_affine(image.affine if affine is None else affine, voxels)


@pytest.mark.parametrize("factor", FACTORS, ids=str)
@pytest.mark.parametrize("grid", ["centers", "edges", "average"])
@pytest.mark.parametrize("orientation", AFFINES)
def test_a_ramp_in_world_coordinates_stays_that_ramp(tmp_path, orientation, grid, factor):
    lies = {"lr_type": "average", "grid": "edges"} if grid == "average" else {"grid": grid}
    method = Method(factor=factor, filter_len=5, grad_len=5, **lies)
    image = nib.Nifti1Image(np.zeros((14, 13, 12), np.float32), AFFINES[orientation])
    image.set_sform(AFFINES[orientation], code=1)
    image.set_qform(AFFINES[orientation], code=2)
    slope = np.array([1.0, -2.0, 1.5])
    ramp = world(image) @ slope
    low, span = ramp.min() - 5, np.ptp(ramp)
    ramp_image = nib.Nifti1Image((ramp - low).astype(np.float32), None, image.header)
    fine = run_upscale(tmp_path, ramp_image, method, keeping(method))
    assert fine.shape == tuple(n * f for n, f in zip(image.shape, factor))
    assert (int(fine.header["sform_code"]), int(fine.header["qform_code"])) == (1, 2)
    inner = tuple(slice(3 * f, -3 * f) for f in factor)
    for affine in (fine.get_sform(), fine.get_qform()):
        error = fine.get_fdata() - (world(fine, affine) @ slope - low)
        assert np.abs(error[inner]).max() < 1e-4 * span
    assert np.allclose(fine.header.get_zooms(), nib.affines.voxel_sizes(fine.affine), rtol=1e-5)


@pytest.mark.parametrize("side", [12, 15])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_wave_filled_with_zeros_in_k_space_stays_that_wave(side, factor):
    method = Method(factor=(factor, 1, 1), lr_type="kspace", kspace_keep="auto")
    place = np.arange(side)[:, None, None] * np.ones((1, 3, 4))
    low = (2 + np.cos(2 * np.pi * (2 * place / side + 0.1))).astype(np.float32)
    operator = degradation_of((side * factor, 3, 4), method)
    fine, to_low = operator.interpolate(low), operator.fine_to_low()
    positions = to_low[0, 0] * np.arange(side * factor) + to_low[0, 3]
    assert operator.grid == "first" and positions[1] == 1 / factor
    wave = 2 + np.cos(2 * np.pi * (2 * positions / side + 0.1))
    assert np.allclose(fine[:, 0, 0], wave, atol=1e-5)


def test_a_volume_without_codes_keeps_none_and_its_centre(tmp_path):
    method = Method(filter_len=5, grad_len=5, grid="edges")
    image = nib.Nifti1Image(1 + np.arange(720, dtype=np.float32).reshape(8, 9, 10), None)
    image.header.set_zooms((1, 2, 3))
    fine = run_upscale(tmp_path, image, method, keeping(method))
    assert (int(fine.header["sform_code"]), int(fine.header["qform_code"])) == (0, 0)
    assert np.allclose(fine.header.get_zooms(), (0.5, 1, 1.5))


@pytest.mark.parametrize("before, after", [
    (b"", b"upscaled, not measured"),
    (b"TE=2.98;Time=101112.0", b"TE=2.98;Time=101112.0; upscaled, not measured"),
    (b"upscaled, not measured; by 2", b"upscaled, not measured; by 2"),
    (b"x" * 55, b"x" * 55 + b"; upscaled, not measured"),
    (b"x" * 56, b"x" * 56)])  # 80 bytes, the last one 0
def test_a_result_is_marked_in_its_header_where_there_is_room(before, after):
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4))
    image.header["descrip"] = before
    header = finer_header(image, (4, 4, 4), np.diag([0.5, 0.5, 0.5, 1]))
    assert header["descrip"].item() == after and image.header["descrip"].item() == before


def test_a_result_that_is_upscaled_or_looked_at_again_is_reported(tmp_path, capsys):
    scan, fine = tmp_path / "scan.nii", tmp_path / "fine.nii"
    save(scan, brain(0, (18, 17, 16)))
    for path, said in ((scan, False), (fine, True)):
        words = ["--upscale", "--no-report", "--test_dir", str(path), "--output",
                 str(tmp_path / f"{path.stem}_fine.nii" if said else fine)]
        assert script.main(command_line("test", words)) == 0
        assert ("is itself a result of upscaling" in capsys.readouterr().err) == said
        assert script.main(command_line("test", ["--look", "--test_dir", str(path)])) == 0
        assert ("measured  no: a result of upscaling" in capsys.readouterr().out) == said


def test_finer_slices_were_not_measured_one_after_another():
    image = nib.Nifti1Image(np.zeros((8, 9, 10), np.float32), AFFINES["RAS"])
    timed = {"slice_end": 9, "slice_code": 3, "slice_duration": 0.1, "slice_start": 1}
    for name, value in timed.items():
        image.header[name] = value
    header = finer_header(image, (8, 9, 40), np.diag([1, 1, 0.25, 1]))
    assert not any(header[name] for name in timed)
    assert image.header["slice_code"] == 3  # that of the scan is left as it is


def landscape(shape, seed, smooth, ground):
    """A smooth random volume, 0 where it is below ground."""
    volume = gaussian_filter(np.random.default_rng(seed).random(shape), smooth)
    return np.clip(volume - ground, 0, None).astype(np.float32)


def learned_filters(method):
    """Filters learned from a small random landscape."""
    pair = make_pair(landscape((40, 40, 40), seed=5, smooth=1.5, ground=0.45), method)
    found = features(pair.lr, interior_voxels(pair.lr != 0, method.margin), method)
    boundaries = Boundaries(quantile_boundaries(found.strength, 3),
                            quantile_boundaries(found.coherence, 3))
    gram = Gram(method.buckets, method.taps)
    accumulate(gram, pair, boundaries, method, "landscape")
    return solve(gram, method), boundaries


@pytest.mark.parametrize("grid", ["centers", "edges"])
def test_a_flipped_volume_gives_the_flipped_result_in_world_space(grid):
    """With learned filters: up to these filters' own lack of symmetry.

    Each bin of them is learned from samples of its own.
    """
    method = Method(filter_len=5, grad_len=5, grid=grid, sample_rate=1)
    learned = one_stage(*learned_filters(method))
    keeps = one_stage(keeping(method), BOUNDARIES)
    low = landscape((16, 18, 20), seed=6, smooth=1, ground=0.3)
    straight, kept = upscale(low, learned, method), upscale(low, keeps, method)
    change = np.sqrt(np.mean((straight - kept)**2))
    for axis in range(3):
        # Flipping voxels and the affine's axis leaves the world as it was: results flip alike.
        flipped = np.flip(upscale(np.flip(low, axis).copy(), learned, method), axis)
        assert np.allclose(np.flip(upscale(np.flip(low, axis).copy(), keeps, method), axis), kept,
                           atol=1e-5 * low.max())
        # Measured: 0.10 to 0.11.
        assert np.sqrt(np.mean((flipped - straight)**2)) < 0.2 * change
        flip = np.eye(4)
        flip[axis, axis], flip[axis, 3] = -1, low.shape[axis] - 1
        fine_flip = np.eye(4)
        fine_flip[axis, axis], fine_flip[axis, 3] = -1, straight.shape[axis] - 1
        to_low = degradation_of(straight.shape, method).fine_to_low()
        assert np.allclose(flip @ to_low, to_low @ fine_flip)


def smooth_image(affine, shape=(20, 18, 16)):
    """A volume so smooth that any interpolation of it agrees."""
    image = nib.Nifti1Image(np.zeros(shape, np.float32), affine)
    place = world(image) - world(image).mean((0, 1, 2))
    voxels = 100 + place @ [2, -1, 1.5] + 0.02 * (place**2).sum(-1)
    return nib.Nifti1Image(voxels.astype(np.float32), affine)


@PLACES
def test_other_software_finds_the_same_voxels_at_the_same_places(tmp_path, orientation, grid):
    method = Method(factor=(2, 2, 3), filter_len=5, grad_len=5, grid=grid)
    image = smooth_image(AFFINES[orientation])
    fine = run_upscale(tmp_path, image, method, keeping(method))
    inner = tuple(slice(4 * f, -4 * f) for f in method.factor)
    voxels, tolerance = fine.get_fdata()[inner], 0.01 * np.ptp(image.get_fdata())
    by_nibabel = resample_from_to(image, fine, order=3).get_fdata()[inner]
    assert np.abs(by_nibabel - voxels).max() < tolerance


@PLACES
def test_nilearn_finds_the_same_voxels_at_the_same_places(tmp_path, orientation, grid):
    resampling = pytest.importorskip(
        "nilearn.image", reason="nilearn is not installed (requirements-dev.txt)")
    method = Method(factor=(2, 2, 3), filter_len=5, grad_len=5, grid=grid)
    image = smooth_image(AFFINES[orientation])
    fine = run_upscale(tmp_path, image, method, keeping(method))
    inner = tuple(slice(4 * f, -4 * f) for f in method.factor)
    by_nilearn = resampling.resample_to_img(image, fine, interpolation="continuous").get_fdata()
    assert np.abs(by_nilearn - fine.get_fdata())[inner].max() < 0.01 * np.ptp(image.get_fdata())


@PLACES
def test_simpleitk_finds_the_same_voxels_at_the_same_places(tmp_path, orientation, grid):
    sitk = pytest.importorskip(
        "SimpleITK", reason="SimpleITK is not installed (requirements-dev.txt)")
    method = Method(factor=(2, 2, 3), filter_len=5, grad_len=5, grid=grid)
    image = smooth_image(AFFINES[orientation])
    fine = run_upscale(tmp_path, image, method, keeping(method))
    scan, restored = (sitk.ReadImage(str(tmp_path / name), sitk.sitkFloat32)
                      for name in ("scan.nii", "fine_scan.nii"))
    # ITK's world is LPS.
    corner = np.array(restored.TransformIndexToPhysicalPoint([3, 4, 5])) * [-1, -1, 1]
    assert np.allclose(corner, fine.affine[:3] @ [3, 4, 5, 1], atol=1e-3)
    resampled = sitk.Resample(scan, restored, sitk.Transform(), sitk.sitkBSpline)
    inner = tuple(slice(4 * f, -4 * f) for f in method.factor)
    by_itk = sitk.GetArrayFromImage(resampled).T[inner]
    assert np.abs(by_itk - fine.get_fdata()[inner]).max() < 0.01 * np.ptp(image.get_fdata())


@pytest.mark.parametrize("unit, per_mm", [("mm", 1), ("micron", 1000), ("meter", 0.001), (None, 1)])
def test_voxel_sizes_in_mm_follow_the_unit_of_the_header(unit, per_mm):
    affine = np.diag([per_mm, 2 * per_mm, 3 * per_mm, 1])
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), affine)
    image.header.set_xyzt_units(unit)
    np.testing.assert_allclose(voxel_sizes_in_mm(image), (1, 2, 3), rtol=1e-6)
