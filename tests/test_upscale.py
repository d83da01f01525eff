"""Upscaling volumes: files, types, series, intensities, borders, factors, refusals."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest
from conftest import run_command, run_process
from scipy.ndimage import gaussian_filter
from synthetic import degrade, interpolate, one_stage, upscale

import test as script
from degrading.degradation import kspace_kept
from disk.filters import load_filters, save_filters
from filter_constant import Method, Request
from get_lar import best_spline, make_fine, make_pair
from hashtable import Boundaries
from machine.errors import UserError
from matrix_compute import apply_filters
from options.command_line import command_line
from restoring.comparison import comparison_images, spline_onto
from util import bright_level_of_scan

METHOD = Method(filter_len=5, grad_len=5)
BOUNDARIES = Boundaries(np.array([0.01, 0.02]), np.array([0.3, 0.6]))


def landscape(seed=0, shape=(14, 15, 16)):
    """Smooth, positive, with a background of zeros in one corner."""
    data = 50 + 300 * gaussian_filter(np.random.default_rng(seed).random(shape), 1)
    data[:4, :5, :6] = 0
    return data.astype(np.float32)


def filters(method, centre=1.0, seed=None):
    """Filters that keep the LR voxel or, with a seed, blur a little at random; they sum to one."""
    h = np.zeros((method.buckets, method.taps), np.float32)
    if seed is not None:
        h += np.random.default_rng(seed).random(h.shape) * 0.2 / method.taps
    h[:, method.taps // 2] += centre - h.sum(1)
    return h


@pytest.fixture
def restored(tmp_path):
    """Run test.py --upscale on images and return what it wrote, by name."""
    save_filters(
        one_stage(filters(METHOD), BOUNDARIES),
        Request(METHOD, arrays_dir=str(tmp_path / "arrays")),
        [],
    )
    (tmp_path / "in").mkdir()

    def run(images, *options):
        for name, image in images.items():
            nib.save(image, tmp_path / "in" / name)
        status = script.main(
            command_line(
                "test",
                [
                    "--upscale",
                    "--no-report",
                    "--arrays_dir",
                    str(tmp_path / "arrays"),
                    "--test_dir",
                    str(tmp_path / "in"),
                    "--result_dir",
                    str(tmp_path / "out"),
                    *options,
                ],
            )
        )
        assert status == 0
        return {path.name: nib.load(path) for path in (tmp_path / "out").glob("*/[!.]*")}

    return run


def test_constant_volumes_stay_constant_up_to_their_faces():
    method = dataclasses.replace(METHOD, factor=(2, 1, 3))
    fine = upscale(
        np.full((9, 8, 7), 37.5, np.float32),
        one_stage(filters(method, seed=1), BOUNDARIES),
        method,
    )
    assert fine.shape == (18, 8, 21)
    assert np.allclose(fine, 37.5, rtol=1e-5)


def test_voxels_near_the_faces_are_filtered_too():
    low = landscape()
    method = dataclasses.replace(METHOD, grid="edges")
    doubled = upscale(low, one_stage(filters(method, centre=1.1), BOUNDARIES), method)
    kept = upscale(low, one_stage(filters(method), BOUNDARIES), method)
    touched = doubled != kept
    assert touched[kept > 0].mean() > 0.99  # but for what is clipped at the top


def test_the_background_is_the_volumes_own():
    low = landscape()
    fine = upscale(low, one_stage(filters(METHOD, seed=2), BOUNDARIES), METHOD)
    assert not fine[:7, :9, :11].any()
    assert fine[9:, 11:, 13:].all()


def test_bright_voxels_above_the_clip_stay_bright():
    low = np.full((20, 20, 20), 100, np.float32)
    low[9:12, 9:12, 9] = 4000  # nine voxels of 8000: above the 99.9 % level
    low[0, 0, 0:8] = 200
    method = dataclasses.replace(METHOD, grid="edges", factor=(1, 1, 2))
    assert make_fine(low, method).scale < 4001
    low[10, 10, 9] = 20_000
    assert make_fine(low, method).scale < 4001
    fine = upscale(low, one_stage(filters(method), BOUNDARIES), method)
    assert fine.max() == interpolate(low, fine.shape, method).max() > 10_000


def test_scaling_intensities_scales_the_result():
    low = landscape()
    learned = one_stage(filters(METHOD, seed=3), BOUNDARIES)
    once, often = (upscale(low * np.float32(gain), learned, METHOD) for gain in (1, 1000))
    assert np.allclose(once * 1000, often, rtol=1e-4, atol=1e-2)


def test_upscaling_what_degrading_made_is_what_evaluation_restores():
    """Inside, where neither mask nor border differ, both ways give the same voxels."""
    for options in (
        {},
        {"grid": "edges"},
        {"lr_type": "average", "grid": "edges"},
        {"lr_type": "kspace", "kspace_keep": "auto"},
    ):
        method = dataclasses.replace(METHOD, factor=(2, 2, 2), **options)
        image = landscape(4, (40, 42, 44))
        image[image > 0] = np.clip(image[image > 0], 100, 250)
        h, pair = filters(method, seed=5), make_pair(image, method)
        evaluated = np.zeros(pair.operator.shape, np.float32)
        evaluated[pair.box] = apply_filters(pair.lr, h, BOUNDARIES, method) * pair.scale
        fine = upscale(pair.low, one_stage(h, BOUNDARIES), method)
        inner = (slice(16, 28),) * 3
        # The 99.9 % level of the LR volume is a little lower, and strengths near a boundary change
        # bucket.
        assert np.abs(fine - evaluated)[inner].max() < 0.01 * pair.scale, options


@pytest.mark.parametrize(
    "lr_type, keep",
    [("interpolation", "third"), ("average", "third"), ("kspace", "auto"), ("kspace", "third")],
)
def test_an_axis_of_factor_one_is_left_untouched(lr_type, keep):
    method = dataclasses.replace(METHOD, factor=(1, 1, 4), lr_type=lr_type, kspace_keep=keep)
    image = landscape(6, (12, 13, 16))
    # Nothing to lose along the axis that is degraded.
    profile = image[:, :, :1] * np.ones((1, 1, 16), np.float32)
    low = degrade(profile, method)
    fine = interpolate(low, profile.shape, method)
    assert np.allclose(fine, profile, atol=1e-3 * profile.max())
    pair = make_pair(np.pad(image, 6), method)
    assert best_spline(pair).shape == pair.hr.shape == pair.lr.shape


def test_block_means_keep_the_mean():
    image = landscape(7, (12, 12, 16))
    method = dataclasses.replace(METHOD, factor=(2, 3, 4), lr_type="average")
    low = degrade(image, method)
    assert low.shape == (6, 4, 4)
    assert low[1, 2, 3] == pytest.approx(image[2:4, 6:9, 12:16].mean(), rel=1e-6)


def test_k_space_keeps_one_in_factor_with_the_zero_frequency_in_its_middle():
    for side, factor in ((48, 2), (45, 3), (44, 4), (30, 2), (50, 2)):
        start, stop = kspace_kept(side, factor, "auto")
        assert stop - start == side // factor and side // 2 - start == (stop - start) // 2
    assert kspace_kept(45, 1, "third") == (0, 45)
    assert kspace_kept(45, 2, "third") == (22 - 7, 22 + 7)


def test_k_space_filled_with_zeros_passes_through_every_voxel():
    for shape in ((12, 15, 9), (13, 10, 8)):
        low = landscape(8, shape) + 200
        method = dataclasses.replace(
            METHOD, lr_type="kspace", kspace_keep="auto", factor=(2, 1, 3)
        )
        fine = interpolate(low, (shape[0] * 2, shape[1], shape[2] * 3), method)
        assert np.allclose(fine[::2, :, ::3], low, atol=1e-3 * low.max())


def test_k_space_of_the_published_third_is_refused_where_the_factor_is_not_three(
    tmp_path, restored
):
    method = dataclasses.replace(METHOD, lr_type="kspace")
    with pytest.raises(ValueError, match="--kspace_keep auto"):
        make_fine(landscape(), method)
    thrice = make_fine(landscape(), dataclasses.replace(method, factor=(3, 3, 3)))
    assert thrice.whole_shape == (42, 45, 48)


def test_filters_learned_for_another_lr_type_are_refused(tmp_path, restored):
    for options in (["--lr_type", "average"], ["--grid", "edges"]):
        with pytest.raises(UserError, match=f"learned with {options[0]}"):
            load_filters(
                command_line(
                    "test", ["--upscale", "--arrays_dir", str(tmp_path / "arrays"), *options]
                )
            )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--lr_type average --grid centers", "means of blocks"),
        ("--lr_type kspace --grid edges", "leave --grid out"),
        ("--lr_type average --kspace_keep auto", "has no effect"),
        ("--factor 1", "above 1"),
        ("--output fine.mgz", "must end in"),
        ("--output fine.nii --suffix _sr", "leave --suffix out"),
        ("--suffix a/b", "slash"),
    ],
)
def test_options_that_contradict_are_refused_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line("test", arguments.split())
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said and said.count("\n") == 1


def test_block_means_lie_on_the_grid_of_edges():
    assert command_line("train", ["--lr_type", "average"]).method.grid == "edges"


def test_a_series_is_restored_volume_by_volume(restored):
    volumes = [landscape(n, (9, 8, 7)) for n in range(3)]
    series = nib.Nifti1Image(np.stack(volumes, -1), np.diag([2, 2, 3, 1]))
    series.header.set_zooms((2, 2, 3, 1.5))
    series.header.set_xyzt_units("mm", "sec")
    fine = restored({"bold.nii.gz": series})["bold.nii.gz"]
    assert fine.shape == (18, 16, 14, 3)
    assert fine.header.get_zooms()[3] == 1.5 and fine.header.get_xyzt_units() == ("mm", "sec")
    for n, volume in enumerate(volumes):
        assert np.array_equal(
            fine.get_fdata()[..., n],
            upscale(volume, one_stage(filters(METHOD), BOUNDARIES), METHOD),
        )


def test_dtype_same_keeps_the_stored_type_and_its_scaling(restored):
    low = landscape()
    plain = nib.Nifti1Image(low.astype(np.int16), np.eye(4))
    scaled = nib.Nifti1Image(np.rint(low / 0.25).astype(np.uint16), np.eye(4))
    scaled.header.set_slope_inter(0.25, 0)
    fine = restored({"plain.nii.gz": plain, "scaled.nii": scaled}, "--dtype", "same")
    assert fine["plain.nii.gz"].get_data_dtype() == np.int16
    assert fine["scaled.nii"].get_data_dtype() == np.uint16
    assert (fine["scaled.nii"].dataobj.slope, fine["scaled.nii"].dataobj.inter) == (0.25, 0)
    voxels = np.asarray(scaled.dataobj, np.float32) * np.float32(0.25)
    expected = upscale(voxels, one_stage(filters(METHOD), BOUNDARIES), METHOD)
    assert np.abs(fine["scaled.nii"].get_fdata() - expected).max() <= 0.126
    assert restored({}, "--suffix", "_f")["plain_f.nii.gz"].get_data_dtype() == np.float32


def test_nifti_2_stays_nifti_2(restored):
    fine = restored({"two.nii.gz": nib.Nifti2Image(landscape(), np.eye(4))})["two.nii.gz"]
    assert isinstance(fine, nib.Nifti2Image)


def test_suffix_and_output_name_the_result(tmp_path, restored):
    image = nib.Nifti1Image(landscape(), np.eye(4))
    assert list(restored({"a.b.nii.gz": image}, "--suffix", "_sr")) == ["a.b_sr.nii.gz"]
    restored(
        {},
        "--test_dir",
        str(tmp_path / "in" / "a.b.nii.gz"),
        "--overwrite",
        "--output",
        str(tmp_path / "deep" / "fine.nii"),
    )
    assert nib.load(tmp_path / "deep" / "fine.nii").shape == (28, 30, 32)
    with pytest.raises(UserError, match="names one file"):
        restored({"second.nii.gz": image}, "--output", str(tmp_path / "fine.nii"))
    with pytest.raises(UserError, match="overwrite"):
        same = str(tmp_path / "in" / "a.b.nii.gz")
        restored({}, "--test_dir", same, "--output", same)


def test_quiet_says_nothing_and_without_it_the_last_line_says_where(tmp_path, restored):
    restored({"a.nii.gz": nib.Nifti1Image(landscape(), np.eye(4))})
    options = [
        "--upscale",
        "--arrays_dir",
        str(tmp_path / "arrays"),
        "--test_dir",
        str(tmp_path / "in" / "a.nii.gz"),
        "--overwrite",
        "--output",
        str(tmp_path / "q" / "a.nii.gz"),
    ]
    said = run_process("test.py", *options, "--quiet", "--no-report")
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    said = run_command("test.py", *options)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.splitlines()[-1].endswith("a.html")


def test_the_images_to_compare_with_lie_on_the_grid_of_the_result():
    low = np.random.default_rng(0).uniform(1, 9, (7, 8, 6)).astype(np.float32)
    fine = np.kron(low, np.ones((2, 2, 2), np.float32))
    fine[:3] = 0
    onto = np.diag([0.5, 0.5, 0.5, 1])
    onto[:3, 3] = -0.25  # both grids have the same faces
    images = comparison_images(low, fine, onto)
    scale = np.float32(bright_level_of_scan(low))
    nearest = np.clip(np.kron(low, np.ones((2, 2, 2))) / scale, 0, 1)
    np.testing.assert_allclose(images["LR"], nearest, rtol=1e-6)
    np.testing.assert_allclose(images["Restored"], np.clip(fine / scale, 0, 1), rtol=1e-6)
    spline = np.clip(spline_onto(low, fine.shape, onto) / scale, 0, 1)
    assert not images["Spline"][:3].any() and spline[:3].any()
    np.testing.assert_allclose(images["Spline"][3:], spline[3:], rtol=1e-6)
