"""Filters adapted to a scan of thick slices by examples from its own plane."""
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom
from test_scan import phantom

from degrading.descriptors import NOISE
from degrading.slice_profile import profile_matrix
from degrading.spline import resizing_matrix
from disk.filters import PRETRAINED_SCAN, load_filters
from filter_constant import Request
from matrix_compute import Gram
from octahedral.ridge import corrected_filters
from octahedral.tree import tree_of
from restoring import adaptation
from restoring.adaptation import Scan, adapt_to_scan, own_example, profile_of_slices
from restoring.steps import upscale


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
    monkeypatch.setattr(adaptation, "MOST_VOXELS", 10 * 48 * 40)
    part = own_example(scan, 0, "box", shipped[1])
    assert whole.operator.shape[0] == len(planes)
    assert abs(part.operator.shape[0] - 10) <= 1
    start = (len(planes) - part.operator.shape[0] + 1) // 2
    np.testing.assert_allclose(part.low, whole.low[start:start + len(part.low)], atol=0.2)
    assert (part.low > 0).mean() > (whole.low > 0).mean()


def test_half_of_a_correction_is_made(shipped, monkeypatch):
    stages, method, *_ = shipped
    low = thick_slices(tissue(6))
    half = adapt_to_scan(low, stages, method).stages[0].weights - stages[0].weights
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
    flat = scan._replace(unit=(0.5 + noise).astype(np.float32), noise=drawn)
    noisy, original = (twin - 0.5 for twin in flat.twins(blur))
    assert abs(np.corrcoef(noisy.ravel(), original.ravel())[0, 1]) < 0.01
    assert np.einsum("ij,jkl->ikl", blur, noisy).std() == pytest.approx(sigma, rel=0.03)


def test_corrections_are_those_of_a_ridge_regression_of_what_is_missed():
    random = np.random.default_rng(5)
    rows = random.standard_normal((400, 7))
    tree = tree_of([(0, 0.0, 1, 2), None, None])
    weights = random.standard_normal((2, 6)).astype(np.float32)
    gram, leaf = Gram(4, 6), np.arange(400) % 2
    for bucket in range(4):  # leaves, then the same of voxels held out: both count here
        part = rows[(leaf == bucket % 2) & (np.arange(400) // 200 == bucket // 2)]
        gram.packed[bucket] = (part.T @ part)[np.tril_indices(7)]
        gram.count[bucket] = len(part)
    taps, target, ridge = rows[:, :6], rows[:, 6], 50.0
    missed = target - np.einsum("ij,ij->i", taps, weights[leaf])
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


def test_a_scan_unlike_those_learned_from_is_nearer_to_the_truth_than_without(shipped):
    stages, method, *_ = shipped
    truth = tissue(6, (96, 96, 96))  # random texture, as no brain has it
    low = thick_slices(truth, "gauss")
    adapted = adapt_to_scan(low, stages, method)
    assert adapted.profile == "gauss"
    inside = truth > 0
    missed = [np.square(upscale(low, filters, method) - truth)[inside].mean()
              for filters in (stages, adapted.stages)]
    assert missed[1] < 0.95 * missed[0]
    again = adapt_to_scan(low, stages, method, (0.3, 0.3, 1.2))  # the unit plays no part
    for one, other in zip(adapted.stages, again.stages, strict=True):
        np.testing.assert_array_equal(one.weights, other.weights)


def test_a_scan_that_cannot_be_learned_from_keeps_the_filters_and_says_why(shipped):
    stages, method, *_ = shipped
    low = thick_slices(tissue(0))
    coarse = adapt_to_scan(low, stages, method, (1.0, 1.0, 2.0))
    assert coarse.stages is stages and "coarser" in coarse.why_not
    few = adapt_to_scan(low[20:40, 20:40, 6:10], stages, method)
    assert few.stages is stages and "too few" in few.why_not
    cubes, of_cubes, *_ = load_filters(Request.of(arrays_dir=str(PRETRAINED_SCAN)))
    assert adapt_to_scan(low, cubes, of_cubes).stages is cubes


def test_resampling_an_axis_keeps_constants_ramps_and_its_field_of_view():
    for n_in, n_out in ((40, 40), (46, 40), (60, 40), (40, 52)):
        matrix = resizing_matrix(n_in, n_out)
        np.testing.assert_allclose(matrix.sum(1), 1)
        places = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
        inner = slice(6, -6)
        np.testing.assert_allclose((matrix @ np.arange(n_in))[inner], places[inner], atol=0.03)
