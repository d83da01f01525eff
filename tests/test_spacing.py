"""Voxel sizes that are asked for: which filters, where voxels lie, what is said of slices."""
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script
from synthetic import brain, command

import test as script
from nifti.geometry import voxel_sizes_of
from nifti.slices import slice_axis, slices_in_words
from options.command_line import command_line
from restoring.planning import warn_of_axis
from restoring.spacing import Route, describe, nearest, onto_sizes, route_to, voxels_along

SCAN = [(2, 2, 2), (3, 3, 3), (4, 4, 4)] + [(1, 1, k) for k in range(2, 9)]
TABLE = load_script("docs/spacings")

PLAIN = nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4))  # its header states no slice axis


@pytest.mark.parametrize("sizes, asked, factors, most", [
    ((0.43, 0.43, 5.5), (1, 1, 1), [(1, 1, 5)], False),
    ((0.43, 0.43, 5.5), (0.43, 0.43, 0.43), [(1, 1, 8)], True),
    ((1, 1, 8.5), (1, 1, 1), [(1, 1, 8)], False),
    ((1, 1, 9.5), (1, 1, 1), [(1, 1, 8)], True),
    ((1, 4, 1), (1, 1, 1), [(1, 4, 1)], False),
    ((2, 2, 2), (1, 1, 1), [(2, 2, 2)], False),
    ((2, 2, 2), (0.8, 0.8, 0.8), [(3, 3, 3)], False),
    ((2, 2, 1), (1, 1, 1), [(2, 1, 1), (1, 2, 1)], False),
    ((1, 1, 4), (0.5, 0.5, 0.5), [(2, 2, 2), (1, 1, 4)], False),
    ((5, 5, 5), (1, 1, 1), [(4, 4, 4)], True),
    ((1, 1, 1.2), (1, 1, 1), [(1, 1, 2)], False),
    ((2, 1, 4), (1, 1, 1), [(1, 1, 4), (2, 1, 1)], False),  # the coarsest first
    ((0.9, 0.9000001, 3.6), (0.9, 0.9, 0.9), [(1, 1, 4)], False),
])
def test_filters_follow_from_the_header(sizes, asked, factors, most):
    route = route_to(asked, sizes, SCAN)
    assert route == Route(factors, asked, most)


SCAN = [(2, 2, 2), (3, 3, 3), (4, 4, 4), *((1, 1, factor) for factor in range(2, 9))]


@pytest.mark.parametrize("sizes, goal, shape", [
    ((1.1, 1.1, 1.1), 1, (39, 39, 39)), ((2.2, 2.2, 2.2), 1, (77, 77, 77)),
    ((1, 1, 1.5), 0.5, (70, 70, 105)), ((1, 1, 3.5), 1, (35, 35, 123)),
    ((1, 1, 2.2), 1, (35, 35, 77)), ((3.3, 3.3, 3.3), 1, (116, 116, 116)),
    ((0.9, 0.9, 1.35), 0.9, (35, 35, 53))])
def test_rounding_in_headers_changes_no_route_and_no_shape(sizes, goal, shape):
    """A rotated scan, or one in another unit, has sizes that differ in their last bits."""
    routes, shapes, axes = [], [], []
    for unit in (1, 1000):
        for number in range(8):
            turn = np.linalg.qr(np.random.default_rng(number).normal(size=(3, 3)))[0]
            affine = np.eye(4)
            affine[:3, :3] = (turn if number else np.eye(3)) @ np.diag(sizes) * unit
            image = nib.Nifti1Image(np.zeros((2, 2, 2)), None)
            image.header.set_sform(affine, 1)
            found = voxel_sizes_of(image)
            asked = 3 * (goal * unit,)
            route = route_to(asked, found, SCAN)
            routes.append(route.factors)
            shapes.append(tuple(voxels_along(35, *pair) for pair in zip(found, asked)))
            axes.append(slice_axis(image, found))
    assert all(route == routes[0] for route in routes) and set(shapes) == {shape}
    assert len(set(axes)) == 1


def test_axes_are_called_slices_where_only_one_is_refined():
    one = describe(Route([(1, 1, 4)], (1, 1, 1)), (1, 1, 4))
    assert one.startswith("slices of 4 mm along axis")
    two = describe(Route([(2, 1, 1), (1, 2, 1)], (1, 1, 1)), (2, 2, 1))
    assert two.count("voxels of 2 mm along axis") == 2 and "slices" not in two


def test_a_grid_of_other_voxels_has_the_centre_of_the_volume():
    fine, low_shape = np.zeros((20, 12, 30), np.float32), (10, 12, 30)
    to_low = np.diag([0.5, 1, 1, 1.0])
    to_low[0, 3] = -0.25
    result, found = onto_sizes(fine, to_low, low_shape, (2, 1, 1), (0.8, 1, 1.3))
    assert result.shape == (25, 12, 23)
    middle = found[:3, :3] @ (np.array(result.shape) - 1) / 2 + found[:3, 3]
    np.testing.assert_allclose(middle, (np.array(low_shape) - 1) / 2)


def test_filters_for_single_axes_do_where_there_are_none_for_all():
    assert route_to((0.5, 0.5, 0.5), (1, 1, 1), [(1, 1, 2)]).factors == [
        (2, 1, 1), (1, 2, 1), (1, 1, 2)]


def test_what_cannot_be_finer_or_has_no_filters_is_refused():
    with pytest.raises(ValueError, match="nothing to restore"):
        route_to((1, 1, 1), (1, 0.5, 1.05), SCAN)
    with pytest.raises(ValueError, match="some for factor 2;"):
        route_to((1, 1, 1), (1, 1, 3), [(2, 2, 2)])


def test_the_nearest_filters_are_those_that_restore_most():
    there = {2, 3, 4, 5, 6, 7, 8}
    assert [nearest(ratio, there) for ratio in (1.2, 2.1, 2.3, 3.5, 4.8, 5.5, 8.9, 40)] == [
        2, 2, 3, 3, 5, 5, 8, 8]


def test_what_is_done_is_said():
    route = Route([(1, 1, 5)], (1.0, 1.0, 1.0))
    assert describe(route, (1, 1, 5.5)) == (
        "slices of 5.5 mm along axis 2: 5 times finer, then to 1 mm")
    assert describe(route, (0.43, 1, 5.5)).endswith("; axis 0 from 0.43 to 1 mm by spline")
    said = describe(Route([(1, 1, 8)], (0.43, 0.43, 0.43), True), (0.43, 0.43, 5.5))
    assert "8 times finer (the most that there are filters for), then to 0.43 mm" in said


@pytest.fixture(scope="module")
def keeping(tmp_path_factory):
    """A folder with filters in arrays/ that keep voxels as they are."""
    folder = tmp_path_factory.mktemp("keeping")
    TABLE.keeping_filters(folder / "arrays")
    return folder


@pytest.mark.parametrize("geometry", TABLE.GEOMETRIES, ids=lambda geometry: geometry[0])
def test_voxels_have_the_size_that_was_asked_for_and_lie_where_the_header_says(keeping, geometry):
    what, _, sizes, sides, options = geometry
    image, shift = TABLE.measure(geometry, keeping)
    asked = [float(word) for word in options.split()[1:]] or [min(sizes)]
    got = nib.affines.voxel_sizes(image.affine)
    np.testing.assert_allclose(got, asked * (3 // len(asked)), rtol=1e-5)
    np.testing.assert_allclose(image.header.get_zooms(), got, rtol=1e-5)
    assert shift < 0.002 * min(sizes)  # splines bend a little, four voxels from a face
    # The middle of the field of view stays, and its length to the nearest voxel.
    before, after = (nib.affines.apply_affine(affine, (np.array(shape) - 1) / 2) for affine, shape
                     in ((TABLE.affine_of(geometry), sides), (image.affine, image.shape)))
    np.testing.assert_allclose(after, before, atol=1e-4)
    length = np.multiply(sides, sizes)
    assert (np.abs(image.shape * got - length) <= got / 2 + 1e-4).all()


def test_coarser_voxels_are_means_not_samples():
    wave = 1 + 0.5 * np.cos(np.pi * 0.95 * np.arange(200))
    fine = np.broadcast_to(wave, (3, 3, 200)).astype(np.float32)
    coarse, _ = onto_sizes(fine, np.eye(4), fine.shape, (1, 1, 1), (1, 1, 2.5))
    inner = coarse[1, 1, 4:-4]
    assert np.abs(inner - 1).max() < 0.12  # sampled, it would be another wave, of 0.5
    same, to_low = onto_sizes(fine, np.eye(4), fine.shape, (1, 1, 1), (1, 1, 1.000001))
    assert same is fine and np.array_equal(to_low, np.eye(4))
    _, to_low = onto_sizes(fine, np.eye(4), fine.shape, (1, 1, 1), (1, 1, 1.0005))
    assert to_low[2, 2] == 1.0005


def test_a_mean_is_so_wide_that_with_the_fine_voxel_it_is_the_coarser_one():
    cycles, ratio = 0.1, 2.5  # so slow a wave is damped by the mean alone, not by the spline
    wave = (1 + np.cos(2 * np.pi * cycles * np.arange(400))).astype(np.float32)
    coarse, _ = onto_sizes(wave[None, None], np.eye(4), (1, 1, 400), (1, 1, 1), (1, 1, ratio))
    damped = np.sinc(cycles * np.sqrt(ratio**2 - 1))
    assert np.sqrt(2) * coarse[0, 0, 8:-8].std() == pytest.approx(damped, abs=0.004)


@pytest.mark.parametrize("least", [0.0, 0.5])
def test_the_last_spline_goes_no_further_below_the_lowest_intensity(least):
    step = np.repeat(np.float32([1, 1000]), 20)[None, None]
    finer, _ = onto_sizes(step, np.eye(4), step.shape, (1, 1, 1), (1, 1, 0.7), least)
    assert finer.min() == least


def test_the_background_stays_zero_on_the_last_grid():
    fine = np.zeros((9, 9, 30), np.float32)
    fine[:, :, 10:20] = 100
    coarse, _ = onto_sizes(fine, np.eye(4), fine.shape, (1, 1, 1), (1, 1, 0.8))
    assert not coarse[:, :, :11].any() and not coarse[:, :, 26:].any() and coarse[:, :, 13:24].all()


# ---- slices

def thick(folder, name="scan.nii", sizes=(1, 1, 4), **beside):
    """Write a volume of thick slices and, with further arguments, its BIDS sidecar."""
    data = 100 + np.random.default_rng(0).random((12, 13, 10), np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([*sizes, 1])), folder / name)
    (folder / "scan.json").unlink(missing_ok=True)
    if beside:
        (folder / "scan.json").write_text(json.dumps(beside))
    return folder / name


def upscaled(folder, path, *options):
    return script.main(command_line("test", [
        "--upscale", "--no-report", "--arrays_dir", str(folder / "arrays"), "--test_dir", str(path),
        "--overwrite", "--output", str(folder / "fine.nii"), *options]))


def test_gaps_overlaps_and_contradictions_are_said(keeping, capsys):
    for beside, options, out, err in (
        ({"SliceThickness": 3}, [], "slices of 3 mm lie 4 mm apart along axis 2, a gap of", ""),
        ({"SliceThickness": 6}, [], "", "slices of 6 mm lie 4 mm apart along axis 2, so they over"),
        ({"SpacingBetweenSlices": 5}, [], "", "slices lie 5 mm apart, its header says 4 mm"),
        ({"SliceThickness": 4, "SpacingBetweenSlices": 4}, [], "", ""),
        ({"SliceThickness": "4"}, [], "", ""),
    ):
        assert upscaled(keeping, thick(keeping, **beside), "--isotropic", *options) == 0
        said = capsys.readouterr()
        assert out in said.out and err in said.err
        assert out or "apart" not in said.out
        assert err or said.err == ""
        assert "slices of 4 mm along axis 2: 4 times finer" in said.out


def test_a_sidecar_that_is_none_says_nothing(tmp_path, capsys):
    path = tmp_path / "scan.nii.gz"
    texts = (f'{{"{name}": {value}}}' for name in ("SliceThickness", "SpacingBetweenSlices")
             for value in ("true", -1, 0, "NaN", "Infinity"))
    for text in ("{", "[1]", "{}", *texts):
        (tmp_path / "scan.json").write_text(text)
        assert slices_in_words(path, PLAIN, np.array([1, 1, 4])) == ""
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("sizes, stated, beside, said", [
    ((2.5, 2.5, 2), None, {"SliceThickness": 2, "SpacingBetweenSlices": 2}, ""),
    ((2.5, 2.5, 2), None, {"SliceThickness": 1.5, "SpacingBetweenSlices": 2},
     "2 mm apart along axis 2"),
    ((0.9, 1, 1), 0, {"SliceThickness": 0.9}, ""),
    ((0.9, 1, 1), 0, {"SliceThickness": 0.7}, "0.9 mm apart along axis 0"),
    ((1, 1, 1), None, {"SliceThickness": 0.8}, ""),  # nothing tells the axis
    ((1, 1, 4), 0, {"SliceThickness": 1}, ""),
    ((1, 1, 4), None, {"SliceThickness": 3}, "4 mm apart along axis 2"),
])
def test_the_slice_axis_is_that_of_the_header_or_of_the_sidecars_sizes(
        tmp_path, capsys, sizes, stated, beside, said):
    image = nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4))
    image.header.set_dim_info(slice=stated)
    (tmp_path / "v.json").write_text(json.dumps(beside))
    found = slices_in_words(tmp_path / "v.nii", image, np.array(sizes))
    assert said in found and bool(said) == bool(found) and capsys.readouterr().err == ""


def test_a_factor_along_another_axis_than_the_thick_one_is_warned_of(keeping, capsys):
    assert upscaled(keeping, thick(keeping, sizes=(4, 1, 1)), "--factor", "1", "1", "4") == 0
    said = capsys.readouterr().err
    assert "slices are thick along axis 0" in said and "--factor 4 1 1 refines" in said
    assert upscaled(keeping, thick(keeping), "--factor", "1", "1", "4") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments, message", [
    ("--voxel_size 1", "without --upscale"),
    ("--isotropic", "without --upscale"),
    ("--upscale --voxel_size 1 --factor 2", "leave one of the two out"),
    ("--upscale --isotropic --voxel_size 1", "leave one of the two out"),
    ("--upscale --isotropic --factor 2", "leave one of the two out"),
    ("--upscale --voxel_size 1 1", "one number or three"),
])
def test_options_that_mean_nothing_together_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line("test", arguments.split())
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said and said.count("\n") == 1


def test_a_factor_without_filters_names_those_there_are_and_what_would_serve(tmp_path):
    status, _, errors = command(
        "test.py", "--upscale", "--factor", "5", "--test_dir", thick(tmp_path))
    assert status == 2 and len(errors) == 1
    assert "no filters for --factor 5, but for --factor 2, 3, 4, 1 1 2, 1 1 3" in errors[0]
    assert "--voxel_size, in place of --factor, gives any voxel size" in errors[0]
    assert "python train.py --preset scan --factor 5 learns the missing ones" in errors[0]


def test_the_filters_of_each_factor_are_named_when_a_volume_has_used_them(keeping, tmp_path):
    for name, sizes in ("a", (1, 1, 4)), ("b", (4, 1, 1)), ("c", (2, 2, 2)):
        thick(tmp_path, f"{name}.nii", sizes)
    status, out, errors = command(
        "test.py", "--upscale", "--voxel_size", "1", "--test_dir", tmp_path, "--result_dir",
        tmp_path / "result", "--arrays_dir", keeping / "arrays", "--no-report")
    named = [line.split(":")[0] for line in out.splitlines() if line.startswith("Filters")]
    assert status == 0 and named == ["Filters x1x1x4", "Filters x2"], (out, errors)


def test_in_a_folder_a_volume_that_is_fine_already_is_no_fault(keeping, tmp_path):
    thick(tmp_path, "fine.nii", (1, 1, 1))
    thick(tmp_path, "thick.nii")
    status, _, errors = command(
        "test.py", "--upscale", "--isotropic", "--test_dir", tmp_path, "--arrays_dir",
        keeping / "arrays", "--result_dir", tmp_path / "result")
    assert status == 0 and len(errors) == 1 and "fine.nii: its voxels are 1 x 1 x 1" in errors[0]
    page = next((tmp_path / "result").glob("*/report.html")).read_text(encoding="utf-8")
    assert "1 of 2 volumes upscaled, 1 fine already" in page and ">fine already</td>" in page


def test_what_there_is_nothing_to_restore_of_is_one_line(keeping):
    path = thick(keeping, sizes=(1, 1, 1))
    status, _, errors = command(
        "test.py", "--upscale", "--isotropic", "--test_dir", path,
        "--arrays_dir", keeping / "arrays", "--output", keeping / "none.nii")
    assert status == 2 and len(errors) == 1 and "nothing to restore" in errors[0]
    assert not (keeping / "none.nii").exists() and str(path) in errors[0]


@pytest.mark.parametrize("unit, said", [("micron", "um"), ("mm", "mm"), ("unknown", "mm"),
                                        ("meter", "m")])
def test_sizes_are_printed_in_the_unit_of_the_header(tmp_path, unit, said):
    image = nib.Nifti1Image(brain(3, (20, 20, 10)), np.diag([50, 50, 100, 1]))
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "mouse.nii")
    status, out, _ = command("test.py", "--upscale", "--isotropic", "--test_dir",
                             tmp_path / "mouse.nii", "--output", tmp_path / "o.nii")
    assert status == 0
    assert f"slices of 100 {said} along axis 2" in out
    assert f"voxels of 50 x 50 x 50 {said}," in out
    assert f" 50 {said}</td>" in (tmp_path / "o.html").read_text()
    assert nib.load(tmp_path / "o.nii").header.get_xyzt_units() == (unit, "sec")


def test_a_sidecar_in_mm_is_compared_in_the_unit_of_the_header(tmp_path):
    (tmp_path / "v.json").write_text(json.dumps({"SliceThickness": 0.08}))
    said = slices_in_words(tmp_path / "v.nii", PLAIN, np.array([50, 50, 100]), "um")
    assert said == "slices of 80 um lie 100 um apart along axis 2, a gap of 20 um"


@pytest.mark.parametrize("thick, unit", [(1.4, "mm"), (1.6, "mm"), (1.6, "um")])
def test_another_axis_is_warned_of_from_half_as_thick_again_in_the_headers_unit(
        thick, unit, capsys):
    warn_of_axis(Path("v.nii"), (4, 1, 1), np.array([1, 1, thick]), unit)
    said = capsys.readouterr().err
    assert bool(said) == (thick > 1.5)
    assert not said or (f"axis 2 (1.6 {unit})" in said and "--factor 1 1 4" in said)
