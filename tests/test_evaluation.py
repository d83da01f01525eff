"""restoring/evaluation.py: the figures of test.py --preset scan, computed a second time."""
import numpy as np
import pytest
from conftest import load_script
from scipy.ndimage import distance_transform_cdt, zoom
from skimage.restoration import denoise_nl_means
from synthetic import brain, command, save, upscale, zero_filled
from test_scan import phantom

from degrading.acquisition import make_low, original_of
from degrading.degradation import degradation_of
from disk.filters import axes_between, load_filters
from filter_constant import Request
from nifti.masks import is_same_input
from options.command_line import command_line
from restoring import evaluation
from restoring.evaluation import evaluate_scan, evaluate_volume
from restoring.figures_of_use import figures_of_use, regions_of, tissue_figures
from util import random_of

REQUEST = Request.of(preset="scan")


@pytest.fixture(scope="module")
def shipped():
    return load_filters(REQUEST)


@pytest.mark.parametrize("profile, noise", [("box", 3), ("kspace", 0)])
def test_figures_are_those_of_rivals_taken_from_scipy(shipped, profile, noise):
    """On the grid that keeps the field of view; beyond its ends the phantom is black either way."""
    stages, method, *_ = shipped
    image = np.pad(phantom(7, (48, 48, 48)), 8)
    row = evaluate_scan(image, shipped, REQUEST.but(tissue=True), profile, noise, "v")
    hr = original_of(image, (2, 2, 2))
    operator = degradation_of(hr.shape, method)
    operator.profiles = 3 * (profile,)
    low = make_low(hr, operator, noise / 100, random_of(0, f"v {profile} {noise}"))
    how = {"mode": "grid-mirror", "grid_mode": True}
    found = {name: zoom(low, 2, order=order, **how)
             for name, order in (("linear", 1), ("cubic", 3), ("quintic", 5))}
    if noise:
        clean = denoise_nl_means(low, patch_size=3, patch_distance=4, h=0.024, sigma=0.03)
        found["denoised"] = zoom(clean, 2, order=5, **how)
    found["restored"] = upscale(low, stages, method, voxel_size=(2, 2, 2))
    brain = hr > 0
    places = {"inside": distance_transform_cdt(brain, "taxicab") > 5,
              "whole": distance_transform_cdt(~brain, "taxicab") <= 2}
    psnr = {}
    for place, voxels in places.items():
        apart = {}
        for name, volume in found.items():
            error = np.mean(np.square(np.clip(volume, 0, 1) - hr)[voxels], dtype=np.float64)
            apart[name] = -10 * np.log10(error)
            assert row[f"{name}_{place}"] == pytest.approx(apart[name], abs=0.05), name
        psnr[place] = apart
        best = max(value for name, value in apart.items() if name != "restored")
        assert row[f"gain_{place}"] == pytest.approx(apart["restored"] - best, abs=0.1)
    assert ("denoised_inside" in row) == ("denoised_noise_left" in row) == bool(noise)
    found["spline"] = found[max(("linear", "cubic", "quintic"), key=psnr["inside"].get)]
    regions = regions_of(hr)
    for way in {"spline", "denoised", "restored"} & set(found):
        volume = np.clip(found[way], 0, 1)
        figures = figures_of_use(volume, regions) | tissue_figures(volume, regions)
        assert len(figures) == 11
        for name, value in figures.items():  # a voxel near a threshold may change its class
            assert row[f"{way}_{name}"] == pytest.approx(value, rel=0.01, abs=0.03), (way, name)
    assert row["original_edge_width"] == figures_of_use(hr, regions)["edge_width"]


def test_an_original_that_was_interpolated_is_named(tmp_path):
    save(tmp_path / "in" / "full.nii", brain(3, (48, 48, 24)))
    save(tmp_path / "in" / "zip.nii", zero_filled(brain(3, (48, 48, 24))))
    status, _, errors = command("test.py", "--preset", "scan", "--test_dir", tmp_path / "in",
                                "--test_profile", "box", "--test_noise", "0",
                                "--result_dir", tmp_path / "out")
    (line,) = [line for line in errors if "interpolated" in line]
    assert status == 0 and "zip.nii: it was interpolated (axis 0: " in line
    assert line.endswith("so as an original it lacks fine detail")


@pytest.mark.parametrize("noise", ["0", "3"])
def test_a_constant_brain_is_refused_and_spoils_no_mean(tmp_path, noise):
    save(tmp_path / "in" / "good.nii", np.pad(phantom(8, (32, 32, 32)), 4))
    save(tmp_path / "in" / "flat.nii", np.pad(np.full((28, 28, 28), 300.5, np.float32), 6))
    status, out, errors = command("test.py", "--preset", "scan", "--test_dir", tmp_path / "in",
                                  "--result_dir", tmp_path / "result", "--test_noise", noise)
    assert status == 1 and "flat.nii" in errors[0] and "have the same intensity" in errors[0]
    assert "inf" not in out and "nan" not in out


def test_a_volume_of_no_use_is_named_and_the_others_are_evaluated(tmp_path):
    save(tmp_path / "in" / "good.nii", np.pad(phantom(8, (32, 32, 32)), 4))
    (tmp_path / "in" / "bad.nii").write_bytes(b"no volume")
    status, out, errors = command("test.py", "--preset", "scan", "--test_dir", tmp_path / "in",
                                  "--result_dir", tmp_path / "result", "--test_noise", "0")
    assert status == 1 and len(errors) == 2 and "bad.nii" in errors[0]
    assert "1 of 2 volumes could not be evaluated" in errors[1]
    assert sum(line.startswith("good.nii") for line in out.splitlines()) == 2
    (table,) = (tmp_path / "result").rglob("metrics.csv")
    assert len(table.read_text().splitlines()) == 3


def test_an_interrupted_evaluation_goes_on_with_the_volumes_that_are_left(tmp_path, monkeypatch):
    (tmp_path / "v").mkdir()
    for n in range(3):
        save(tmp_path / "v" / f"{n}.nii", np.pad(phantom(n, (36, 36, 36)), 6))
    words = ["--preset", "scan", "--test_dir", str(tmp_path / "v"), "--result_dir",
             str(tmp_path / "r"), "--test_profile", "box", "--test_noise", "0", "--quiet",
             "--tissue"]
    plain, seen = evaluation.evaluate_file, []

    def until(last):
        def evaluate(path, **options):
            if path.name == last:
                raise KeyboardInterrupt
            seen.append(path.name)
            return plain(path, **options)
        monkeypatch.setattr(evaluation, "evaluate_file", evaluate)

    def run():
        return load_script("test").main(command_line("test", words))

    until("2.nii")
    with pytest.raises(KeyboardInterrupt):
        run()
    save(tmp_path / "v" / "1.nii", np.pad(phantom(9, (36, 36, 36)), 6))  # another one now
    until("none")
    assert run() == 0
    assert seen == ["0.nii", "1.nii", "1.nii", "2.nii"]
    (table,) = tmp_path.glob("r/*/metrics.csv")
    figures = table.read_text()
    assert {path.name for path in table.parent.iterdir()} == {"metrics.csv"}
    assert [line.split(",")[0] for line in figures.splitlines()[1:]] == ["0.nii", "1.nii", "2.nii"]
    assert "restored_dice_dark" in figures and "restored_edge_width" in figures
    assert run() == 0  # a run of its own
    assert sorted(path.read_text() == figures for path in tmp_path.glob("r/*/metrics.csv")) == [
        True, True]


def test_a_volume_that_is_replaced_while_it_is_evaluated_is_evaluated_again(tmp_path, monkeypatch):
    """The digest that is kept is that of the file that was read."""
    path = save(tmp_path / "v.nii", np.pad(phantom(1, (36, 36, 36)), 6))
    plain = evaluation.evaluate_volume

    def replaced(*arguments):
        save(tmp_path / "v.nii", np.pad(phantom(2, (36, 36, 36)), 6))
        return plain(*arguments)

    monkeypatch.setattr(evaluation, "evaluate_volume", replaced)
    request = REQUEST.but(test_dir=str(path), test_profile=("box",), test_noise=(0.0,))
    found = evaluation.evaluate_file(path, load_filters(REQUEST), request, None)
    assert found["rows"] and not is_same_input(found["origin"], path, "")


def test_a_profile_for_each_axis_is_turned_with_the_axes_of_the_filters(shipped):
    thick = load_filters(Request.of(preset="scan", factor=(1, 1, 4)))
    image = brain(2, (36, 32, 40))
    rows = []
    for turn, profiles in (((0, 1, 2), ("kspace", "kspace", "gauss")),
                           ((2, 0, 1), ("gauss", "kspace", "kspace"))):
        factor = tuple(np.array([1, 1, 4])[list(turn)])
        filters = thick._replace(axes=axes_between(factor, (1, 1, 4)))
        request = Request.of(preset="scan", factor=factor, known_profile=profiles, adapt=False,
                             test_profile=("gauss",), test_noise=(0.0,))
        rows += evaluate_volume(image.transpose(turn), np.ones(3), filters, request, "a")
    assert rows[0]["restored_inside"] == pytest.approx(rows[1]["restored_inside"], abs=0.02)
