"""LR volumes as scanners make them: profiles, noise, what is drawn, read off and gained."""
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script
from scipy.ndimage import gaussian_filter
from synthetic import save, upscale

from degrading.acquisition import make_low
from degrading.degradation import degradation_of
from degrading.descriptors import DESCRIPTOR_NAMES, NOISE, descriptors_of, noise_of
from degrading.slice_profile import PROFILES as PROFILES_OF
from degrading.slice_profile import profile_matrix
from disk.filters import axes_between, load_filters
from filter_constant import PROFILES, Request
from get_lar import make_fine
from learning import acquisitions
from learning.acquisitions import NOISY, WINDOWED, sample_acquisition, sampled_volumes
from options.command_line import command_line
from util import bright_level, random_of

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
SCAN = command_line("train", ["--preset", "scan", "--leaves", "12", "--draws", "4"]).method


def phantom(seed, shape=(48, 44, 40)):
    """Folded tissue of three intensities with sharp borders in a black surround, as a brain has."""
    random = np.random.default_rng(seed)
    folds = gaussian_filter(random.standard_normal(shape), 2.5)
    folds /= folds.std()
    volume = np.select([folds > 0.4, folds > -0.5], [900, 600], 250)
    volume = gaussian_filter(volume.astype(np.float32), 0.5)
    grid = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    return np.where(sum(axis**2 for axis in grid) < 0.8, volume, 0).astype(np.float32)


# ---- profiles

@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("side, factor", [(24, 2), (30, 3), (32, 8), (7, 1)])
def test_a_profile_keeps_constants_and_lies_on_its_slice(profile, side, factor):
    matrix = profile_matrix(side, factor, profile)
    assert matrix.shape == (side // factor, side)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-9)
    if PROFILES_OF[profile].kind != "kspace" or factor == 1:  # whose weights reach round the ends
        middle = len(matrix) // 2
        centre = matrix[middle] @ np.arange(side)
        assert centre == pytest.approx((middle + 0.5) * factor - 0.5, abs=0.02 * factor)


@pytest.mark.parametrize("factor", [2, 3, 5])
@pytest.mark.parametrize("profile, width", [
    ("box", 1), ("gap", 0.75), ("gauss", 1), ("sharp", 0.6)])
def test_profiles_are_as_wide_as_documented(profile, width, factor):
    side = 12 * factor
    fine = np.arange(side)
    for thick, row in enumerate(profile_matrix(side, factor, profile)):
        centre = factor * thick + (factor - 1) / 2
        if profile in ("box", "gap"):  # the share of each fine voxel that is measured
            parts = fine[:, None] + (np.arange(1000) + 0.5) / 1000 - 0.5
            weights = (abs(parts - centre) < width * factor / 2).mean(1)
        else:  # half of the maximum at half of the width
            weights = 0.5 ** ((fine - centre) / (width * factor / 2)) ** 2
        np.testing.assert_allclose(row, weights / weights.sum(), atol=1e-3)


def test_k_space_keeps_waves_below_its_reach_and_drops_those_above():
    side, factor = 48, 2
    matrix, places = profile_matrix(side, factor, "kspace"), np.arange(side)
    for cycles, kept in ((0, 1), (5, 1), (11, 1), (13, 0), (20, 0)):
        wave = np.cos(2 * np.pi * cycles * places / side + 0.3)
        at = (np.arange(side // factor) + 0.5) * factor - 0.5
        expected = kept * np.cos(2 * np.pi * cycles * at / side + 0.3)
        np.testing.assert_allclose(matrix @ wave, expected, atol=1e-9)


# ---- draws

def test_what_is_drawn_hangs_on_seed_name_and_number_alone():
    first, again, other = (list(sampled_volumes(phantom(0), method, name)) for method, name in (
        (SCAN, "a"), (SCAN, "a"), (SCAN, "b")))
    assert len(first) == len(again) == SCAN.draws
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.lr, two.lr)
        np.testing.assert_array_equal(one.hr, two.hr)
        np.testing.assert_array_equal(one.descriptors, two.descriptors)
    assert not np.array_equal(first[0].descriptors, other[0].descriptors)
    reseeded = next(sampled_volumes(phantom(0), replace(SCAN, seed=1), "a"))
    assert not np.array_equal(first[0].descriptors, reseeded.descriptors)


def test_slabs_together_are_the_brain_each_voxel_once(monkeypatch):
    monkeypatch.setattr(acquisitions, "AROUND", 1000)  # so that boxes are of the whole volume
    volume = phantom(1)
    seen = np.zeros(volume.shape, int)
    for part in sampled_volumes(volume, replace(SCAN, profile=("box",), noise=0.0), "a"):
        training_mask = np.zeros(part.operator.shape, int)
        training_mask[part.box] = part.training_mask
        lowest = np.maximum([used.min() - 8 for used in np.nonzero(volume)], 0)
        inside = tuple(slice(first, first + side)
                       for first, side in zip(lowest, training_mask.shape))
        seen[inside] += training_mask[tuple(slice(0, s) for s in seen[inside].shape)]
    assert seen.max() == 1 and (seen[volume > 0] == 1).mean() > 0.99


def test_every_profile_and_many_levels_are_drawn_and_options_narrow_them():
    drawn = [sample_acquisition(SCAN, random_of(0, f"volume {n}")) for n in range(400)]
    named = {name for one in drawn for name, profile in PROFILES_OF.items()
             if profile in one.profiles}
    assert named == set(PROFILES)
    sigmas = np.array([one.sigma for one in drawn])
    assert (sigmas == 0).mean() == pytest.approx(acquisitions.CLEAN, abs=0.06)
    assert 0.06 < sigmas.max() <= 0.07
    assert np.median(sigmas[sigmas > 0]) < 0.03  # low noise is more frequent
    of_each = [sum(PROFILES_OF[name] in one.profiles for one in drawn if not one.given)
               for name in ("kspace", "box", "gap", "gauss", "sharp")]
    assert of_each[0] > 1.8 * max(of_each[1:])  # little blur is drawn more often
    narrow = replace(SCAN, profile=("gap",), noise=2.0)
    drawn = [sample_acquisition(narrow, random_of(0, f"volume {n}")) for n in range(50)]
    assert {profile.kind for one in drawn for profile in one.profiles} == {"box"}
    assert max(profile.width for one in drawn for profile in one.profiles) < 0.9
    assert max(one.sigma for one in drawn) <= 0.02


def test_windows_that_are_not_given_are_drawn_for_noisy_cubes_alone(monkeypatch):
    def drawn(method):
        return [sample_acquisition(method, random_of(0, f"v {n}")) for n in range(600)]

    def windowed(one):  # the softest of the other profiles of k-space leaves more at the end
        return all(profile.kind == "kspace" and profile.damping > 0.3 for profile in one.profiles)

    cubes, thick = drawn(SCAN), drawn(replace(SCAN, factor=(1, 1, 4)))
    noisy, others = ([one for one in cubes if not one.given and (one.sigma > NOISY) == which]
                     for which in (True, False))
    assert np.mean([windowed(one) for one in noisy]) == pytest.approx(WINDOWED, abs=0.06)
    assert not any(windowed(one) for one in [*others, *thick] if not one.given)
    milder = {one.profiles[0].damping for one in noisy if windowed(one)}
    assert min(milder) < 0.6 and max(milder) == PROFILES_OF["hamming"].damping
    without = [one for one in drawn(replace(SCAN, profile=("box", "kspace"))) if windowed(one)]
    assert not without
    # All else is drawn as without windows.
    monkeypatch.setattr(acquisitions, "WINDOWED", 0)
    for one, other in zip(cubes, drawn(SCAN), strict=True):
        assert one[1:6] == other[1:6] and (windowed(one) or one.profiles == other.profiles)


# ---- noise and descriptors

@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.08])
def test_noise_of_a_flat_volume_is_found(sigma):
    random = np.random.default_rng(0)
    unit = np.clip(random.normal(0.5, sigma, (40, 40, 40)), 0, 1).astype(np.float32)
    assert noise_of(unit)[1] == pytest.approx(sigma, rel=0.1)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the brains to measure on are not here")
@pytest.mark.parametrize("profile", ["box", "gauss", "kspace"])
@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 1, 4)])
def test_noise_of_brains_is_found_within_a_fifth(profile, factor):
    path = SHARED / "ds002748" / "test" / "sub-68_T1w.nii.gz"
    image = nib.load(path).get_fdata(dtype=np.float32)[60:-60, 60:-60, 40:140]
    image = np.minimum(image, bright_level(image)) / bright_level(image)
    operator = degradation_of(image.shape, replace(SCAN, factor=factor, profile=(profile,)))
    for sigma in (0.01, 0.02, 0.04, 0.08):
        low = make_low(image, operator, sigma, np.random.default_rng(3))
        scale = bright_level(low)
        found = descriptors_of(np.minimum(low, scale) / scale, factor)[NOISE] * scale
        assert found == pytest.approx(sigma, rel=0.2)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 9), (9, 9, 2), (40, 40, 3), (8, 8, 8)])
def test_volumes_too_small_to_tell_give_finite_descriptors(shape):
    for unit in (np.zeros(shape, np.float32), np.full(shape, 0.5, np.float32),
                 np.random.default_rng(1).random(shape, np.float32)):
        descriptors = descriptors_of(unit, (2, 2, 2))
        assert descriptors.shape == (len(DESCRIPTOR_NAMES),) and np.isfinite(descriptors).all()


# ---- learning and upscaling

@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Filters for two kinds of factor, learned from phantoms."""
    folder = tmp_path_factory.mktemp("scan")
    for seed in range(2):
        save(folder / "train" / f"v{seed}.nii.gz", phantom(seed))
        save(folder / "smaller" / f"v{seed}.nii.gz", phantom(seed, (40, 36, 34)))
    learn(folder / "train", folder / "arrays", "--factor", "2", "--draws", "4")
    learn(folder / "smaller", folder / "arrays", *THICK)
    return folder


THICK = ("--factor", "1", "1", "3", "--draws", "3")


def learn(volumes, arrays, *options):
    request = command_line("train", [
        "--preset", "scan", "--leaves", "6", "--sample_rate", "2", "--noise", "6", "--quiet",
        "--train_dir", str(volumes), "--arrays_dir", str(arrays), *options])
    assert load_script("train").main(request) == 0


def filters(folder, *factor):
    request = Request(replace(SCAN, factor=factor), arrays_dir=str(folder / "arrays"))
    return load_filters(request)[:2]


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 1, 3)])
@pytest.mark.parametrize("profile", ["box", "gauss"])
@pytest.mark.parametrize("sigma", [0.0, 0.03])
def test_a_noisy_phantom_is_nearer_to_the_truth_than_every_spline(learned, factor, profile, sigma):
    stages, method = filters(learned, *factor)
    hr = phantom(9, (48, 42, 42))
    peak = hr.max()
    operator = degradation_of(hr.shape, replace(method, profile=(profile,)))
    low = make_low(hr / peak, operator, sigma, np.random.default_rng(5)) * peak
    inside = hr > 0

    def error(volume):
        return np.mean(np.square(np.clip(volume, 0, peak) - hr)[inside])

    splines = [error(operator.spline(low, order)) for order in (1, 3, 5)]
    assert error(upscale(low, stages, method)) < 0.95 * min(splines)


def test_a_stack_along_any_axis_restores_to_the_same_voxels(learned, tmp_path):
    low = phantom(8, (30, 28, 12))
    results = []
    for axis in range(3):
        order = np.roll((0, 1, 2), axis - 2)  # the thick axis comes to stand at `axis`
        data, factor = low.transpose(order), ["3" if a == axis else "1" for a in range(3)]
        path = save(tmp_path / f"{axis}.nii.gz", np.ascontiguousarray(data), np.diag([1, 2, 3, 1]))
        request = command_line("test", [
            "--upscale", "--factor", *factor, "--test_dir", str(path), "--no-report", "--quiet",
            "--arrays_dir", str(learned / "arrays"), "--output", str(tmp_path / f"fine{axis}.nii")])
        assert load_script("test").main(request) == 0
        fine = nib.load(tmp_path / f"fine{axis}.nii")
        assert fine.shape[axis] == 36
        zooms = np.array([1, 2, 3], float)
        zooms[axis] /= 3
        np.testing.assert_allclose(fine.header.get_zooms(), zooms, rtol=1e-6)
        shift = fine.affine[:3, 3]
        expected = np.zeros(3)
        expected[axis] = (zooms[axis] - 3 * zooms[axis]) / 2  # the field of view is kept
        np.testing.assert_allclose(shift, expected, atol=1e-5)
        results.append(fine.get_fdata(dtype=np.float32).transpose(np.argsort(order)))
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[1], results[2])


def test_axes_are_exchanged_to_those_that_were_learned():
    assert axes_between((2, 2, 2), (2, 2, 2)) == (0, 1, 2)
    for asked in ((4, 1, 1), (1, 4, 1), (1, 1, 4)):
        axes = axes_between(asked, (1, 1, 4))
        assert tuple(asked[axis] for axis in axes) == (1, 1, 4)
    for learned, asked in product(permutations((1, 1, 4)), repeat=2):
        axes = axes_between(asked, learned)
        assert tuple(asked[axis] for axis in axes) == learned
        assert axes in ((0, 1, 2), (1, 2, 0), (2, 0, 1))  # a turn, no mirror image


def test_scan_filters_read_the_noise_and_say_it(learned, tmp_path, capsys):
    random = np.random.default_rng(7)
    low = phantom(8, (40, 40, 14))
    low = np.where(low > 0, np.clip(low + random.normal(0, 36, low.shape), 1, None), 0)
    path = save(tmp_path / "low.nii.gz", low.astype(np.float32))
    request = command_line("test", [
        "--upscale", "--factor", "1", "1", "3", "--test_dir", str(path), "--no-report",
        "--arrays_dir", str(learned / "arrays"), "--output", str(tmp_path / "fine.nii")])
    assert load_script("test").main(request) == 0
    assert "noise about " in capsys.readouterr().out
    noise = make_fine(low.astype(np.float32), filters(learned, 1, 1, 3)[1]).descriptors[NOISE]
    assert 0.02 < noise < 0.06


def test_learning_twice_gives_the_same_bytes_for_any_number_of_threads(learned, monkeypatch):
    kept = {path.name: path.read_bytes() for path in (learned / "arrays").glob("*_1x1x3.npy")}
    assert len(kept) == 5  # a reader, and trees and filters of two stages
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    learn(learned / "smaller", learned / "again", *THICK)
    for name, content in kept.items():
        assert (learned / "again" / name).read_bytes() == content


def test_filters_for_scans_are_taken_by_name_beside_others_and_others_are_said_to_be_none(
        tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "train" / "v.nii.gz", phantom(0))
    save(tmp_path / "low.nii.gz", phantom(1, (20, 20, 20)))
    request = command_line("train", ["--filter_len", "3", "--grad_len", "3", "--quiet",
                                      "--q_angle_p", "1", "--q_angle_t", "1"])
    assert load_script("train").main(request) == 0
    capsys.readouterr()
    for options, noted in ((["--upscale"], True), (["--upscale", "--preset", "scan"], False)):
        request = command_line("test", [
            *options, "--test_dir", "low.nii.gz", "--output", "fine.nii", "--no-report",
            "--overwrite"])
        assert load_script("test").main(request) == 0
        out = capsys.readouterr().out
        assert ("may sharpen" in out) == noted and ("preset scan)" in out) != noted


@pytest.mark.parametrize("options", [(), ("--factor", "1", "1", "3")], ids=str)
def test_evaluating_what_is_no_brain_is_one_line_and_the_others_are_done(
        learned, tmp_path, options, capsys):
    speck = np.zeros((40, 40, 40), np.float32)
    speck[20, 20, 20] = 5.5  # one voxel; no whole number, as those of label maps are
    save(tmp_path / "in" / "a.nii", speck)
    save(tmp_path / "in" / "b.nii", phantom(7))
    request = command_line("test", [
        *options, "--test_dir", str(tmp_path / "in"), "--arrays_dir", str(learned / "arrays"),
        "--result_dir", str(tmp_path / "result"), "--test_profile", "box"])
    assert load_script("test").main(request) == 1
    said = capsys.readouterr()
    first, last = said.err.splitlines()
    assert "a.nii: when it is degraded, no voxel above zero is left" in first
    assert last == "test.py: 1 of 2 volumes could not be evaluated, see above"
    folder, = (tmp_path / "result").iterdir()
    assert [path.name for path in folder.iterdir()] == ["metrics.csv"]
    assert (folder / "metrics.csv").read_text().count("b.nii") == 2  # two levels of noise
    assert "gain_whole" in (folder / "metrics.csv").read_text()
