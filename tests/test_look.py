"""test.py --look: what is said of a scan, and the command that serves it."""
import shlex

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script, refused
from scipy.ndimage import gaussian_filter
from synthetic import brain, zero_filled
from test_scan import phantom

from degrading.descriptors import descriptors_of
from degrading.likeness import Texture, Weights
from degrading.measured_grid import wave_matrix
from disk.filters import PRETRAINED_SCAN
from options.command_line import command_line


def looked(capsys, folder, *words):
    """Exit status and what was printed, by volume and heading."""
    status = load_script("test").main(command_line("test", [
        "--look", "--test_dir", str(folder), *map(str, words)]))
    found, name = {}, None
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  "):
            found[name][line[:12].strip()] = line[12:]
        elif line.endswith((".nii", ".nii.gz")) and " " not in line:
            name = line
            found[name] = {}
    return status, found


def scan(path, data, sizes=(1, 1, 1), dtype=np.float32):
    nib.save(nib.Nifti1Image(np.asarray(data, dtype), np.diag([*sizes, 1.0])), path)


def test_grid_content_and_noise_of_a_brain(tmp_path, capsys):
    noise = np.random.default_rng(0).normal(0, 10, (48, 46, 44))
    inside = np.linalg.norm(np.indices(noise.shape) - 22.0 * np.ones((3, 1, 1, 1)), axis=0) < 20
    scan(tmp_path / "v.nii.gz", (500 + noise) * inside, (1, 1.25, 0.9), np.int16)
    status, found = looked(capsys, tmp_path)
    about = found["v.nii.gz"]
    assert status == 0 and not list(tmp_path.glob("**/*.json"))
    assert about["grid"] == "48 x 46 x 44 voxels of 1 x 1.25 x 0.9 mm; axes RAS; int16"
    assert about["measured"] == "no sign of interpolation"
    assert about["content"].startswith("tissue in 34% of its voxels")
    assert float(about["noise"].split()[1]) == pytest.approx(1.9, abs=0.3)


def test_few_edges_are_named_where_they_make_a_scan_unlike_a_brain(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("restoring.looking.texture_of", lambda *_: Texture(0.25, 0.0))
    for module in ("restoring.looking", "degrading.likeness"):
        monkeypatch.setattr(f"{module}.strangeness", lambda *_: 1.0)
    scan(tmp_path / "v.nii", brain(3, (40, 40, 40)))
    about = looked(capsys, tmp_path)[1]["v.nii"]
    assert about["brains"] == (
        "unlike the training brains (few edges; distance 1.0, usual up to 1.5)")
    assert ("the least blur would be assumed with 50% of the weight, unless you give --profile"
            in about["because"])
    assert looked(capsys, tmp_path, "--profile", "box")[1]["v.nii"]["brains"].startswith("like the")


def test_a_scan_is_judged_by_the_filters_of_the_command_that_is_suggested(
        tmp_path, capsys, monkeypatch):
    """Zero-filled in its plane, with thick slices: all three axes become finer at first."""
    plane = wave_matrix(56, 112)
    fine = np.einsum("ax,by,xyz->abz", plane, plane, phantom(3, (56, 56, 56))[..., ::4])
    scan(tmp_path / "v.nii", np.clip(fine, 0, None), (0.5, 0.5, 4))
    factors = []
    monkeypatch.setattr("restoring.looking.weights_of", lambda *_: Weights())
    monkeypatch.setattr("restoring.looking.descriptors_of", lambda unit, factor: factors.append(
        factor) or descriptors_of(unit, factor))
    about = looked(capsys, tmp_path)[1]["v.nii"]
    assert "--voxel_size 0.5 0.5 1" in about["try"] and factors == [(2, 2, 2)]


@pytest.mark.parametrize("sizes, factor", [((1, 1, 5), (1, 1, 5)), ((2, 2, 1), (2, 1, 1))])
def test_uneven_voxels_are_judged_by_the_filters_that_make_them_cubes(
        tmp_path, capsys, monkeypatch, sizes, factor):
    scan(tmp_path / "v.nii", phantom(3, (32, 32, 24)), sizes)
    factors = []
    monkeypatch.setattr("restoring.looking.descriptors_of", lambda unit, factor: factors.append(
        factor) or descriptors_of(unit, factor))
    about = looked(capsys, tmp_path)[1]["v.nii"]
    assert "--isotropic" in about["try"] and factors == [factor]


def test_filters_are_fine_tuned_on_what_is_named_flair(tmp_path, capsys):
    others = {"sub-1_FLAIR.nii": "FLAIR", "flair_brain.nii": "flair", "sub-1_T2w.nii": "T2w"}
    alike = ("sub-1_T1w.nii", "unflairly.nii", "sub-T2015_T1w.nii")
    for name in (*others, *alike):
        scan(tmp_path / name, brain(3, (40, 40, 40)))
    _, found = looked(capsys, tmp_path)
    for name, said in others.items():
        assert "--factor 2 --adapt --test_dir" in found[name]["try"]
        assert f"the name says {said}, and" in found[name]["because"]
    assert not any("--adapt" in found[name]["try"] for name in alike)


def test_a_mask_beside_a_head_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("restoring.looking.weights_of", lambda *_: Weights())
    monkeypatch.setattr("degrading.descriptors.MOST_BRAIN", 1000)
    data = brain(3, (40, 40, 40))
    scan(tmp_path / "a.nii", data)
    scan(tmp_path / "b.nii", data)
    scan(tmp_path / "b_mask.nii", (data > 0).astype(np.float32))
    _, found = looked(capsys, tmp_path)
    assert found["a.nii"]["content"].startswith("a whole head, it seems: noise and blur are")
    assert found["b.nii"]["content"].endswith("bright part; b_mask.nii lies beside it")
    request = command_line("test", shlex.split(found["b.nii"]["try"])[2:])
    assert request.mask == "auto"
    assert "mask" not in found["a.nii"]["content"] and "--mask" not in found["a.nii"]["try"]


def test_thick_slices_are_served_by_isotropic_voxels(tmp_path, capsys):
    scan(tmp_path / "thick.nii", brain(1, (24, 24, 8)), (1, 1, 4))
    words = shlex.split(looked(capsys, tmp_path)[1]["thick.nii"]["try"])
    assert words[:4] == ["python", "test.py", "--upscale", "--isotropic"]
    command_line("test", words[2:])  # all of it are options


def test_the_command_goes_through_for_a_brain_and_names_what_was_given(tmp_path, capsys,
                                                                       monkeypatch):
    monkeypatch.setattr("restoring.looking.weights_of", lambda *_: Weights(0.75))
    scan(tmp_path / "a b.nii.gz", brain(1, (48, 48, 48)))
    scan(tmp_path / "a b_mask.nii.gz", brain(1, (48, 48, 48)) > 0)
    load_script("test").main(command_line("test", [
        "--look", "--test_dir", str(tmp_path / "a b.nii.gz"), "--mask", "{name}_mask.nii.gz",
        "--profile", "box"]))
    lines = capsys.readouterr().out.splitlines()
    command = next(line[12:] for line in lines if line.startswith("  try"))
    request = command_line("test", shlex.split(command)[2:])
    assert request.test_dir == str(tmp_path / "a b.nii.gz") and request.upscale
    assert request.mask == "{name}_mask.nii.gz" and request.known_profile == 3 * ("box",)
    assert not any("would go to a spline" in line for line in lines)  # a given profile counts
    assert any("box, by --profile (signal left: 78 % at 3/4 of" in line
               for line in lines)


def test_profiles_of_three_axes_are_repeated_as_they_were_given(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("restoring.looking.weights_of", lambda *_: Weights())
    scan(tmp_path / "v.nii.gz", brain(1, (48, 48, 48)))
    profiles = ("kspace", "kspace", "box")
    about = looked(capsys, tmp_path, "--profile", *profiles)[1]["v.nii.gz"]
    assert about["blur"].startswith("kspace kspace box, by --profile")
    request = command_line("test", shlex.split(about["try"])[2:])
    assert request.known_profile == profiles


def test_the_command_names_the_filters_that_were_given_and_no_file_that_is_an_option(
        tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scan(tmp_path / "-a.nii.gz", brain(1, (24, 24, 24)))
    about = looked(capsys, "./-a.nii.gz", "--arrays_dir", PRETRAINED_SCAN)[1]["-a.nii.gz"]
    request = command_line("test", shlex.split(about["try"])[2:])
    assert request.arrays_dir == str(PRETRAINED_SCAN)
    assert (request.test_dir, request.output) == ("./-a.nii.gz", "./-a_fine.nii.gz")


def test_an_interpolated_scan_is_known_and_measured_sizes_are_named(tmp_path, capsys):
    scan(tmp_path / "zip.nii", zero_filled(brain(3, (48, 48, 24))), (0.5, 0.5, 1))
    about = looked(capsys, tmp_path, "--profile", "box")[1]["zip.nii"]
    assert about["measured"].startswith(
        "interpolated after it was measured (axis 0: 1 mm on a grid of 0.5; axis 1: ")
    request = command_line("test", shlex.split(about["try"])[2:])
    assert request.voxel_size == (0.5, 0.5, 1) and not request.known_profile


@pytest.mark.parametrize("sizes, thick", [((3, 3, 3), False), ((0.4, 0.4, 0.8), True)])
def test_slices_are_thick_against_the_plane_whatever_its_size(tmp_path, capsys, sizes, thick):
    scan(tmp_path / "v.nii", brain(1, (48, 48, 48)), sizes)
    about = looked(capsys, tmp_path)[1]["v.nii"]
    assert ("blur" in about) == (not thick)


def test_what_is_unlike_brains_gets_no_command(tmp_path, capsys):
    scan(tmp_path / "blurred.nii", gaussian_filter(phantom(0), 2) * (phantom(0) > 0))
    about = looked(capsys, tmp_path / "blurred.nii")[1]["blurred.nii"]
    assert about["brains"].startswith("unlike") and "try" not in about
    assert about["advice"].startswith("none: the scan is so unlike the training brains")


def test_a_faulty_file_is_named_and_the_others_are_looked_at(tmp_path, capsys):
    scan(tmp_path / "good.nii", brain(1, (24, 24, 24)))
    (tmp_path / "bad.nii").write_bytes(b"no volume")
    load_script("test")
    status = load_script("test").main(command_line("test", ["--look", "--test_dir", str(tmp_path)]))
    out, err = capsys.readouterr()
    assert status == 1 and "good.nii" in out and "bad.nii" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("option", [["--output", "x.nii"], ["--factor", "2"], ["--upscale"],
                                    ["--isotropic"], ["--no-report"], ["--dtype", "same"],
                                    ["--no-adapt"], ["--test_noise", "3"], ["--tissue"]])
def test_options_without_effect_are_refused(capsys, option):
    assert "has no effect with --look" in refused(capsys, "test", "--look", *option)


@pytest.mark.parametrize("sizes", [(1, 4, 4), (1, 2, 3), (0.9, 5, 5.5)])
def test_axes_of_different_lengths_are_made_equally_fine(tmp_path, capsys, sizes):
    scan(tmp_path / "v.nii", brain(1, (48, 48, 48)), sizes)
    about = looked(capsys, tmp_path)[1]["v.nii"]
    assert "--isotropic" in about["try"] and "about as long" not in about["because"]


def test_a_single_slice_gets_no_command_that_would_fail(tmp_path, capsys):
    scan(tmp_path / "v.nii", brain(1, (48, 48, 12))[..., 5:6], (1, 1, 4))
    about = looked(capsys, tmp_path)[1]["v.nii"]
    assert "try" not in about and "single slice" in about["advice"]


def test_thick_slices_whose_plane_was_interpolated_are_made_thinner(tmp_path, capsys):
    scan(tmp_path / "zip.nii", zero_filled(brain(3, (48, 48, 24))), (1, 1, 4))
    about = looked(capsys, tmp_path)[1]["zip.nii"]
    assert about["measured"].startswith("interpolated")
    request = command_line("test", shlex.split(about["try"])[2:])
    assert request.voxel_size == (1, 1, 2)


def test_scans_of_the_same_name_in_two_folders_get_two_results(tmp_path, capsys):
    outputs = set()
    for folder in "ab":
        (tmp_path / folder).mkdir()
        scan(tmp_path / folder / "T1.nii", brain(1, (40, 40, 10)), (1, 1, 4))
        about = looked(capsys, tmp_path)[1][f"{folder}/T1.nii"]
        outputs.add(command_line("test", shlex.split(about["try"])[2:]).output)
    assert outputs == {"a__T1_fine.nii", "b__T1_fine.nii"}


def test_no_two_volumes_of_a_folder_get_one_output(tmp_path, capsys):
    names = ("x.nii", "x.nii.gz", "a/b.nii", "a_b.nii")
    (tmp_path / "a").mkdir()
    for number, name in enumerate(names):
        scan(tmp_path / name, brain(number, (20, 18, 16)), (1, 1, 2))
    found = looked(capsys, tmp_path)[1]
    outputs = {command_line("test", shlex.split(found[name]["try"])[2:]).output for name in names}
    assert len(outputs) == len(names)


@pytest.mark.parametrize("options", [(), ("--preset", "scan")])
def test_the_command_uses_filters_for_scans(tmp_path, capsys, monkeypatch, options, trained):
    monkeypatch.chdir(trained)  # its arrays/ holds filters of the paper's preset
    scan(tmp_path / "v.nii", brain(1, (40, 40, 40)))
    about = looked(capsys, tmp_path / "v.nii", *options)[1]["v.nii"]
    if "try" in about:
        assert "--preset scan" in about["try"]
