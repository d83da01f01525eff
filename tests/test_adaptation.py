"""Filters fine-tuned on a scan, by examples that are made from the scan itself."""
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from conftest import command_line, load_script
from scipy.ndimage import gaussian_filter, zoom
from synthetic import upscale
from test_scan import phantom

import api
from degrading.descriptors import NOISE
from degrading.profile_reader import blur_of, likely_profiles
from degrading.slice_profile import profile_matrix
from degrading.spline import resizing_matrix
from disk.filters import PRETRAINED_SCAN, load_filters
from filter_constant import Method, Request
from matrix_compute import Gram
from octahedral.ridge import corrected_filters
from octahedral.scene import REACH
from octahedral.stages import apply_stage, scene_of, stage_samples, tap_count
from octahedral.tree import NO_READER, tree_of
from restoring import adaptation, own_examples
from restoring.adaptation import adapt_to_scan, wants_adapting
from restoring.own_examples import (
    Scan,
    coarser_examples,
    kept_noise,
    own_example,
    profile_of_slices,
    twins,
)


@pytest.fixture(scope="module")
def shipped():
    return load_filters(Request.of(factor=(1, 1, 4), arrays_dir=str(PRETRAINED_SCAN)))


def tissue(seed, shape=(72, 72, 72)):
    """A brain with detail of all sizes, alike along all axes."""
    fine = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 0.8)
    return np.where(phantom(seed, shape) > 0, phantom(seed, shape) + 300 * fine / fine.std(), 0)


def thick_slices(volume, profile="box", factor=4):
    low = volume @ profile_matrix(volume.shape[2], factor, profile).T
    outline = (volume > 0) @ profile_matrix(volume.shape[2], factor, "box").T >= 0.5
    return (np.maximum(low, 1) * outline).astype(np.float32)


@pytest.mark.parametrize("profile", ["box", "gauss", "kspace"])
def test_the_profile_of_slices_is_told_from_the_plane(shipped, profile):
    scan = Scan.of(thick_slices(tissue(0), profile), shipped[1], 2, None)
    assert profile_of_slices(scan) == profile


def test_the_profile_is_told_where_the_plane_is_finer_than_the_slices_become(shipped):
    # Sampled at 1.5 mm along the first two axes, at 6 mm across: the slices become 1.5 mm.
    volume = tissue(1, (120, 120, 120))
    low = thick_slices(volume, "gauss", 6)
    method = replace(shipped.method, factor=(1, 1, 4))
    assert profile_of_slices(Scan.of(low, method, 2, (1.0, 1.0, 6.0))) == "gauss"


def test_too_few_slices_count_as_means_over_the_slice(shipped):
    low = thick_slices(tissue(0), "gauss")[:, :, 7:11]
    assert profile_of_slices(Scan.of(low, shipped[1], 2, None)) == "box"


@pytest.mark.parametrize("axis", [0, 1])
def test_an_example_is_the_scan_blurred_along_an_axis_of_its_plane(shipped, axis):
    low = thick_slices(tissue(2, (48, 44, 40)))
    scan = Scan.of(low, shipped[1], 2, None)
    scan.noise[:] = 0  # the scan is its own original
    example = own_example(scan, axis, "box", shipped[1])
    # Exchanged back, the original is the scan with its slices brought to the fine grid.
    expected = np.repeat(scan.unit, 4, axis=2).transpose(1 - axis, 2, axis)
    expected = expected[expected.any((1, 2))][example.box]  # without planes that are background
    inside = example.mask & (example.hr > 0)
    assert np.corrcoef(example.hr[inside], expected[inside])[0, 1] > 0.9
    whole = np.zeros(example.operator.shape, np.float32)
    whole[example.box] = example.hr
    means = whole.reshape(*whole.shape[:2], -1, 4).mean(3)
    apart = np.abs(example.low - means)[example.low > 0]
    assert np.quantile(apart, 0.9) < 1e-5  # the original is cut where its spline is below zero
    # Of order 5 is that spline, and thick voxels are brain where half of them is.
    spline = zoom(scan.unit, (1, 1, 4), order=5, mode="grid-mirror", grid_mode=True)
    brain = zoom((scan.unit > 0).astype(np.float32), (1, 1, 4), order=1, mode="nearest",
                 grid_mode=True) >= 0.5
    spline, brain = (part.transpose(1 - axis, 2, axis) for part in (spline, brain))
    used = brain.any((1, 2))
    found = (spline * brain)[used][example.box]
    np.testing.assert_allclose(example.hr[inside], np.maximum(found, 0)[inside], atol=1e-5)
    half = brain[used].reshape(*example.low.shape, 4).mean(3) >= 0.5
    assert half.any() and not example.low[~half].any()
    assert (example.low[half] > 0).mean() > 0.95


def test_of_a_large_scan_its_middle_planes_are_learned_from(shipped, monkeypatch):
    low = thick_slices(tissue(2, (48, 44, 40)))
    scan = Scan.of(low, shipped[1], 2, None)
    whole = own_example(scan, 0, "box", shipped[1])
    planes = np.flatnonzero(scan.unit.any((0, 2)))  # across the axis that is not refined
    monkeypatch.setattr(own_examples, "MOST_VOXELS", 10 * 48 * 40)
    part = own_example(scan, 0, "box", shipped[1])
    assert whole.operator.shape[0] == len(planes)
    assert abs(part.operator.shape[0] - 10) <= 1
    start = (len(planes) - part.operator.shape[0] + 1) // 2
    np.testing.assert_allclose(part.low, whole.low[start:start + len(part.low)], atol=0.2)
    assert (part.low > 0).mean() > (whole.low > 0).mean()


@pytest.fixture(scope="module")
def adapted(shipped):
    """A volume, its thick slices, and the filters that are adapted to these."""
    truth = tissue(6, (64, 64, 64))  # random texture, as no brain has it
    low = thick_slices(truth, "gauss")
    return truth, low, adapt_to_scan(low, shipped.stages, shipped.method)


def test_half_of_a_correction_is_made(shipped, adapted, monkeypatch):
    stages, method, *_ = shipped
    _, low, found = adapted
    half = found.stages[0].weights - stages[0].weights
    monkeypatch.setattr(adaptation, "TRUST", 1)
    whole = adapt_to_scan(low, stages, method).stages[0].weights - stages[0].weights
    assert np.abs(whole).max() > 0.005
    np.testing.assert_allclose(half, whole / 2, atol=1e-6)


def test_noise_of_example_and_original_are_independent_and_as_strong_as_the_scan_s(shipped):
    sigma, blur = 0.05, profile_matrix(64, 4, "box")
    noise = np.random.default_rng(3).normal(0, sigma, (64, 64, 64))
    scan = Scan.of(thick_slices(tissue(4)), shipped[1], 2, None)
    assert scan.noise.std() == pytest.approx(scan.descriptors[NOISE], rel=0.01)
    drawn = np.random.default_rng(4).normal(0, sigma, noise.shape).astype(np.float32)
    flat = (0.5 + noise).astype(np.float32)
    noisy, original = (twin - 0.5 for twin in twins(flat, drawn, kept_noise([blur])))
    assert abs(np.corrcoef(noisy.ravel(), original.ravel())[0, 1]) < 0.01
    assert np.einsum("ij,jkl->ikl", blur, noisy).std() == pytest.approx(sigma, rel=0.03)


def test_the_noise_of_all_axes_together_is_kept_as_strong():
    sigma, blur = 0.05, profile_matrix(64, 2, "gauss")
    random = np.random.default_rng(3)
    flat, noise = (random.normal(0, sigma, (64, 64, 64)).astype(np.float32) for _ in range(2))
    noisy, original = (twin - 0.5 for twin in twins(0.5 + flat, noise, kept_noise(3 * [blur])))
    assert abs(np.corrcoef(noisy.ravel(), original.ravel())[0, 1]) < 0.01
    blurred = np.einsum("ai,bj,ck,ijk->abc", blur, blur, blur, noisy, optimize=True)
    assert blurred.std() == pytest.approx(sigma, rel=0.03)


def test_corrections_are_those_of_a_ridge_regression_of_what_is_missed():
    random = np.random.default_rng(5)
    rows = random.standard_normal((400, 7))  # the last column is what is missed
    tree = tree_of([(0, 0.0, 1, 2), None, None])
    weights = random.standard_normal((2, 6)).astype(np.float32)
    gram, leaf = Gram(2, 6), np.arange(400) % 2
    for bucket in range(2):
        part = rows[leaf == bucket]
        gram.packed[bucket] = (part.T @ part)[np.tril_indices(7)]
        gram.count[bucket] = len(part)
    taps, missed, ridge = rows[:, :6], rows[:, 6], 50.0
    pull = ridge * np.square(taps).sum() / taps.size
    root = np.linalg.solve(taps.T @ taps + pull * np.eye(6), taps.T @ missed)
    expected = []
    for number in range(2):
        a, b = taps[leaf == number], missed[leaf == number]
        pull = ridge * np.square(a).sum() / a.size
        d = np.linalg.solve(a.T @ a + pull * np.eye(6), a.T @ b + pull * root)
        expected.append(weights[number] + 0.5 * d)
    found = corrected_filters(gram, tree, weights, ridge, trust=0.5)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_scan_unlike_those_learned_from_is_nearer_to_the_truth_than_without(shipped, adapted):
    stages, method, *_ = shipped
    truth, low, adapted = adapted
    assert adapted.profile == "gauss"
    inside = truth > 0
    missed = [np.square(upscale(low, filters, method) - truth)[inside].mean()
              for filters in (stages, adapted.stages)]
    assert missed[1] < 0.96 * missed[0]  # 0.944; the larger the scan, the less
    again = adapt_to_scan(low, stages, method, (0.3, 0.3, 1.2))  # the unit plays no part
    for one, other in zip(adapted.stages, again.stages, strict=True):
        np.testing.assert_array_equal(one.weights, other.weights)


def test_a_given_profile_of_the_slices_is_not_estimated(shipped, adapted):
    _, low, estimated = adapted
    given = adapt_to_scan(low, shipped.stages, shipped.method, profiles=("gauss", "gauss", "box"))
    assert (estimated.profile, given.profile) == ("gauss", "box")
    assert not np.array_equal(given.stages[0].weights, estimated.stages[0].weights)


def test_a_scan_that_cannot_be_learned_from_keeps_the_filters_and_says_why(shipped):
    stages, method, *_ = shipped
    low = thick_slices(tissue(0))
    coarse = adapt_to_scan(low, stages, method, (1.0, 1.0, 2.0))
    assert coarse.stages is stages and "coarser" in coarse.why_not
    few = adapt_to_scan(low[20:40, 20:40, 6:10], stages, method)
    assert few.stages is stages and "too few" in few.why_not
    cubes, of_cubes, *_ = load_filters(Request.of(arrays_dir=str(PRETRAINED_SCAN)))
    few = adapt_to_scan(low[20:40, 20:40, 6:10], cubes, of_cubes)
    assert few.stages is cubes and few.why_not == "it holds too few voxels to learn from"
    best, of_best, *_ = load_filters(Request.of(preset="best"))
    assert "not for scans" in adapt_to_scan(low, best, of_best).why_not


@pytest.mark.parametrize("shape, sizes", [((30, 1, 25), None), ((2, 30, 25), None),
                                          ((2, 2, 2), None), ((14, 14, 9), (0.2, 0.2, 4))], ids=str)
def test_a_plane_of_few_voxels_is_no_example(shipped, shape, sizes):
    low = np.random.default_rng(0).random(shape, np.float32) + 1
    stages, method, *_ = shipped
    found = adapt_to_scan(low, stages, method, sizes)
    assert found.stages is stages and "too few voxels to learn from" in found.why_not


def test_filters_without_an_estimator_of_blur_are_fine_tuned_for_thick_slices_alone(shipped, cubes):
    def blind(stages):
        return [stage._replace(classes=stage.classes._replace(reader=NO_READER))
                for stage in stages]

    low = thick_slices(tissue(6, (64, 64, 64)))
    assert not adapt_to_scan(low, blind(shipped.stages), shipped.method).why_not
    assert "blur" in adapt_to_scan(low, blind(cubes.stages), cubes.method).why_not


def test_resampling_an_axis_keeps_constants_ramps_and_its_field_of_view():
    for n_in, n_out in ((40, 40), (46, 40), (60, 40), (40, 52)):
        matrix = resizing_matrix(n_in, n_out)
        np.testing.assert_allclose(matrix.sum(1), 1)
        places = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
        inner = slice(6, -6)
        np.testing.assert_allclose((matrix @ np.arange(n_in))[inner], places[inner], atol=0.03)


# ------------------------------------------------------------------------- all axes made coarser

@pytest.fixture(scope="module")
def cubes():
    """The project's filters for voxels twice as fine along all axes."""
    return load_filters(Request.of(factor=(2, 2, 2), arrays_dir=str(PRETRAINED_SCAN)))


def means_of_cubes(volume, side=2):
    """The mean of each cube of voxels."""
    x, y, z = (length // side for length in volume.shape)
    return volume.reshape(x, side, y, side, z, side).mean((1, 3, 5), dtype=np.float32)


def test_a_coarser_example_has_the_scan_as_its_original(cubes):
    scan, reader = tissue(2, (48, 44, 41)).astype(np.float32), cubes.stages[0].classes.reader
    (example,) = coarser_examples(scan, reader, cubes.method, profiles=("box", "box", "gauss"))
    unit = (np.clip(scan, 0, None) / scan.max())[:, :, :40]
    inside = example.training_mask & (example.hr > 0)
    own = unit[example.box][inside]
    assert np.corrcoef(example.hr[inside], own)[0, 1] > 0.9  # apart from the noise
    gauss = means_of_cubes(unit, 2)
    kept = example.low > 0
    assert np.corrcoef(example.low[kept], gauss[kept])[0, 1] > 0.9
    assert example.operator.profiles == ("box", "box", "gauss")
    assert example.weight == 1 and example.blur is not None
    assert example.training_mask.sum() == example.mask.sum()  # one profile learns from all planes


def test_without_noise_the_example_is_the_scan_degraded(cubes, monkeypatch):
    monkeypatch.setattr(own_examples, "twins", lambda unit, noise, kept: (unit, unit))
    scan, reader = tissue(2, (48, 44, 40)).astype(np.float32), cubes.stages[0].classes.reader
    (example,) = coarser_examples(scan, reader, cubes.method, profiles=3 * ("box",))
    unit = np.minimum(np.clip(scan, 0, None) / own_examples.above_zero(scan)[1], 1)
    np.testing.assert_allclose(example.hr, unit[example.box], atol=1e-6)
    kept = example.low > 0
    np.testing.assert_allclose(example.low[kept], means_of_cubes(unit)[kept], atol=1e-6)
    brain = means_of_cubes((unit > 0).astype(np.float32)) >= 0.5
    np.testing.assert_array_equal(kept, brain & (means_of_cubes(unit) > 0))


def test_profiles_that_the_blur_allows_share_the_planes_of_the_scan(cubes, monkeypatch):
    shares = {"box": 0.5, "gap": 0.3, "kspace": 0.2}
    monkeypatch.setattr(own_examples, "likely_profiles", lambda reading: shares)
    scan, reader = tissue(2, (60, 44, 40)).astype(np.float32), cubes.stages[0].classes.reader
    examples = coarser_examples(scan, reader, cubes.method)
    assert [example.operator.profiles for example in examples] == [3 * (name,) for name in shares]
    np.testing.assert_allclose([example.weight for example in examples], [1.5, 0.9, 0.6])
    learned = np.zeros((3, *scan.shape), bool)
    for own, example in zip(learned, examples, strict=True):
        own[example.box] = example.training_mask
        assert example.blur is None
    brain = (scan > 0).any((1, 2))
    assert learned.any((1, 2, 3)).all() and learned.any((0, 2, 3))[brain].all()
    assert learned.any((2, 3)).sum(0).max() == 1  # each plane has one profile
    monkeypatch.setattr(own_examples, "MOST_COARSER", int((scan > 0).sum()) // 2 + 1)
    half = coarser_examples(scan, reader, cubes.method)
    fewer = sum(example.training_mask.sum() for example in half)
    assert 0.4 < fewer / learned.sum() < 0.7


def test_likely_profiles_are_those_near_the_reading():
    for name in ("gauss", "kspace"):
        found = likely_profiles(blur_of(3 * (name,), (2, 2, 2)))
        assert max(found, key=found.get) == name and sum(found.values()) == pytest.approx(1)
    assert "gauss" not in likely_profiles(np.array([1.0, 1.0]))
    # With equal errors, k-space is 2.5 times as probable as others, and a window is never assumed.
    middle = (blur_of(3 * ("kspace",), (2, 2, 2)) + blur_of(3 * ("gap",), (2, 2, 2))) / 2
    found = likely_profiles(middle)
    assert found["kspace"] / found["gap"] == pytest.approx(2.5, rel=0.01)
    assert "hamming" not in likely_profiles(blur_of(3 * ("hamming",), (2, 2, 2)))


def test_of_a_head_all_is_learned_from_with_the_noise_and_blur_of_its_brain(cubes):
    head, reader = tissue(2, (48, 44, 40)).astype(np.float32), cubes.stages[0].classes.reader
    inside = np.zeros(head.shape, bool)
    inside[12:36, 10:34, 10:30] = True
    examples = coarser_examples(head, reader, cubes.method, inside)
    learned = np.zeros(head.shape, bool)
    for example in examples:
        learned[example.box] |= example.training_mask
    assert learned[inside].any() and learned[~inside].any()
    cut = coarser_examples(head * inside, reader, cubes.method)
    whole = coarser_examples(head, reader, cubes.method)
    np.testing.assert_allclose(examples[0].descriptors, cut[0].descriptors, atol=1e-5)
    assert np.abs(examples[0].descriptors - whole[0].descriptors).max() > 1e-3


def test_the_target_of_a_correction_is_what_the_stage_misses(cubes):
    scan, reader = tissue(3, (40, 40, 40)).astype(np.float32), cubes.stages[0].classes.reader
    (example,) = coarser_examples(scan, reader, cubes.method, profiles=3 * ("box",))
    method, (stage, _) = replace(cubes.method, sample_rate=1), cubes.stages
    samples = stage_samples(example, [], stage.classes, method, "own", missed_by=stage.weights)
    assert len(samples.ends) == stage.classes.leaves + 1 and samples.ends[-1] == len(samples.voxels)
    rows = np.empty((len(samples.voxels), tap_count(0, method) + 1), np.float32)
    samples.fill(slice(0, len(rows)), rows)
    scene = scene_of(example, example.lr, method)
    missed = np.pad(example.hr - apply_stage(scene, stage, 0, method), REACH).reshape(-1)
    np.testing.assert_allclose(rows[:, -1], missed[samples.voxels], atol=1e-6)


def test_the_command_says_that_filters_were_fine_tuned(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(adaptation, "LEAST_SAMPLES", 2000)
    low = tmp_path / "low.nii"
    scan = np.clip(tissue(2, (32, 32, 32)), 0, None).astype(np.float32)
    nib.save(nib.Nifti1Image(scan, np.eye(4)), low)
    said, fine = [], []
    for number, options in enumerate((["--adapt"], [])):
        path = tmp_path / f"fine{number}.nii"
        assert load_script("test").main(command_line("test", [
            "--upscale", "--preset", "scan", "--no-report", *options, "--test_dir", str(low),
            "--output", str(path)])) == 0
        said.append(capsys.readouterr().out)
        fine.append(nib.load(path).get_fdata())
    assert "fine-tuned on it" in said[0] and "fine-tuned" not in said[1]
    assert np.abs(fine[0] - fine[1]).max() > 1
    assert (api.upscale(scan, 2, adapt=True) == fine[0]).all()


@pytest.mark.parametrize("factor, adapt, wanted", [
    ((1, 1, 4), None, True), ((1, 1, 4), False, False), ((2, 2, 2), None, False),
    ((2, 2, 2), True, True), ((2, 2, 2), False, False)])
def test_by_default_filters_are_fine_tuned_for_thick_slices_alone(factor, adapt, wanted):
    method = load_filters(Request.of(factor=factor, preset="scan")).method
    assert wants_adapting(Request.of(adapt=adapt), method) is wanted
    assert not wants_adapting(Request.of(adapt=adapt), Method(factor=factor))  # not for scans


def test_filters_fine_tuned_on_a_scan_are_nearer_to_the_truth(cubes, monkeypatch):
    monkeypatch.setattr(adaptation, "LEAST_SAMPLES", 20_000)
    stages, method, *_ = cubes
    truth = tissue(6, (80, 80, 80))  # random texture, as no brain has it
    low = np.maximum(means_of_cubes(truth), 1) * (means_of_cubes(truth > 0) >= 0.5)
    adapted = adapt_to_scan(low, stages, method)
    assert adapted.profile is None and not adapted.why_not
    inside = truth > 0
    missed = [np.square(upscale(low, filters, method) - truth)[inside].mean()
              for filters in (stages, adapted.stages)]
    assert missed[1] < 0.97 * missed[0]
