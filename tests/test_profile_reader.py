"""What is read of a scan's profile, and what is told of it."""
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from test_scan import SCAN, phantom

import api
from degrading.descriptors import DESCRIPTOR_NAMES, NOISE
from degrading.profile_reader import (
    READING_NAMES,
    blur_of,
    fit_reader,
    read,
    told_or_read,
)
from degrading.slice_profile import Profile, profile_matrix, transfer
from disk.filters import load_filters
from filter_constant import PROFILES, Request
from get_lar import make_fine
from learning.acquisitions import NOISY, sample_acquisition, sampled_volumes, with_sharpness
from matrix_compute import Stage
from octahedral.features import classify
from octahedral.scene import REACH
from octahedral.stages import apply_stage, sample_features, scene_of, stage_tree, tap_count
from octahedral.tree import together, tree_of
from octahedral.voxel_features import FEATURE_NAMES
from restoring.steps import restore
from util import random_of

TOLD = FEATURE_NAMES.index("told")


# ---- profiles

@pytest.mark.parametrize("profile", [*PROFILES, Profile("kspace", damping=0.3)])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_transfer_is_what_the_matrix_leaves_of_a_wave(profile, share):
    side, factor = 320, 8
    cycles = round(share * side / (2 * factor))
    wave = np.cos(2 * np.pi * cycles * np.arange(side) / side)
    at = (np.arange(side // factor) + 0.5) * factor - 0.5
    seen = profile_matrix(side, factor, profile) @ wave
    expected = transfer(profile, 2 * cycles * factor / side)
    expected = expected * np.cos(2 * np.pi * cycles * at / side)
    np.testing.assert_allclose(seen[3:-3], expected[3:-3], atol=0.01)  # a box of eight voxels


def test_blur_is_the_mean_over_refined_axes_alone():
    expected = [np.mean([transfer(name, share) for name in ("box", "gauss")])
                for share in (0.75, 1.0)]
    np.testing.assert_allclose(blur_of(("box", "kspace", "gauss"), (2, 1, 3)), expected, rtol=1e-6)


# ---- the reader

def test_a_reader_finds_what_descriptors_say_linearly():
    random = np.random.default_rng(0)
    descriptors = random.normal(size=(400, 6)) * [1, 10, 0.1, 1, 1, 0]
    blur = 0.5 + descriptors[:, :2] @ [[0.1, 0.0], [0.0, 0.02]] + random.normal(0, 0.01, (400, 2))
    reader = fit_reader(descriptors, blur)
    inside = (blur > 0.1) & (blur < 0.9)
    found = np.array([read(reader, one) for one in descriptors])
    assert np.abs(found - blur)[inside].max() < 0.05


def test_readings_stay_within_what_a_profile_can_be():
    reader = fit_reader(np.random.default_rng(0).normal(size=(50, 3)), np.full((50, 2), 0.9))
    assert read(reader, np.zeros(3), [5.0, -5.0]).tolist() == [1.0, 0.0]


def test_what_is_told_takes_the_place_of_what_is_read():
    reader = fit_reader(np.random.default_rng(0).normal(size=(50, 3)), np.full((50, 2), 0.4))
    descriptors, blur = np.zeros(3, np.float32), np.array([0.7, 0.2], np.float32)
    np.testing.assert_allclose(told_or_read(reader, descriptors, blur)[3:], [0.7, 0.2, 1])
    np.testing.assert_allclose(told_or_read(reader, descriptors)[3:], [0.4, 0.4, 0], atol=1e-6)


# ---- what trees see of it

def feature_samples(told=None):
    """Sampled features of a few acquisitions."""
    found = []
    for number in range(3):
        for part, volume in enumerate(sampled_volumes(phantom(number), SCAN, f"v{number}")):
            if told is not None:
                volume = replace(volume, blur=volume.true_blur if told else None)
            found.append((volume, sample_features(volume, [], SCAN, 200, f"v{number} {part}")))
    return found


def test_trees_are_told_the_true_profile_or_what_is_read(monkeypatch):
    drawn = feature_samples()
    seen = []
    monkeypatch.setattr("octahedral.stages.grow", lambda features, *_: (
        seen.append(features), tree_of([None]))[1])
    reader = stage_tree([found for _, found in drawn], replace(SCAN, trees=1)).reader
    whole = np.split(seen[0], np.cumsum([len(found[0]) for _, found in drawn])[:-1])
    assert {volume.blur is None for volume, _ in drawn} == {True, False}
    for (volume, _), features in zip(drawn, whole, strict=True):
        expected = volume.true_blur
        if volume.blur is None:
            expected = read(reader, volume.descriptors, volume.reading_error)
        place = TOLD - len(READING_NAMES)
        np.testing.assert_allclose(features[:, place:TOLD], np.tile(expected, (len(features), 1)),
                                   atol=1e-6)
        assert (features[:, TOLD] == (volume.blur is not None)).all()


def test_descriptors_that_move_with_the_scanner_are_for_the_reader_alone(monkeypatch):
    seen = []
    monkeypatch.setattr("octahedral.stages.grow", lambda features, *_: (
        seen.append(features), tree_of([None]))[1])
    stage_tree([found for _, found in feature_samples()], replace(SCAN, trees=1))
    first = FEATURE_NAMES.index(DESCRIPTOR_NAMES[0])
    assert seen[0].shape[1] == len(FEATURE_NAMES)
    assert np.ptp(seen[0][:, first + NOISE]) > 0  # noise is the same on every scanner
    assert not seen[0][:, first + NOISE + 1:first + len(DESCRIPTOR_NAMES)].any()


def test_each_tree_leaves_out_another_part_of_the_draws(monkeypatch):
    drawn = [found for _, found in feature_samples()]
    sizes = []
    monkeypatch.setattr("octahedral.stages.grow", lambda features, *_: (
        sizes.append(len(features)), tree_of([None]))[1])
    tree = stage_tree(drawn, replace(SCAN, trees=3))
    counts = [len(features) for features, _ in drawn]
    assert sizes == [sum(counts) - sum(counts[part::3]) for part in range(3)]
    assert tree.roots.tolist() == [0, 1, 2] and tree.leaves == 3


def test_a_told_profile_reaches_the_trees():
    volume = next(sampled_volumes(phantom(0), SCAN, "one"))
    split = FEATURE_NAMES.index("transfer_end")
    tree = together([tree_of([(split, 0.8, 1, 2), None, None])],
                    fit_reader(np.random.default_rng(0).normal(size=(50, len(DESCRIPTOR_NAMES))),
                               np.full((50, 2), 0.5)))
    for name, leaf in (("kspace", 1), ("gauss", 0), (None, 0)):
        fine = make_fine(volume.low, SCAN, None, 3 * (name,) if name else ())
        scene = scene_of(fine, fine.lr, SCAN)
        found, _ = classify(scene, np.flatnonzero(np.pad(fine.mask, REACH)), tree)
        assert (found == leaf).all()


def test_a_stage_of_several_trees_gives_the_mean_of_what_they_give():
    volume = next(sampled_volumes(phantom(0), SCAN, "one"))
    scene = scene_of(volume, volume.lr, SCAN)
    trees = [tree_of([(0, -4.0, 1, 2), None, None]), tree_of([(3, 0.4, 1, 2), None, None])]
    random = np.random.default_rng(1)
    weights = random.normal(0, 0.02, (4, tap_count(0, SCAN))).astype(np.float32)
    both = apply_stage(scene, Stage(together(trees), weights), 0, SCAN)
    each = [apply_stage(scene, Stage(tree, part), 0, SCAN)
            for tree, part in zip(trees, (weights[:2], weights[2:]), strict=True)]
    assert not np.array_equal(*each)
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-6)


@pytest.mark.parametrize("true, given, doubted", [
    ("kspace", "hamming", True), ("kspace", "kspace", False), ("hamming", "hamming", False),
    ("hamming", "kspace", False),  # too little blur leaves a scan soft, which does less harm
    ("too few slices", "hamming", False),
])
def test_a_profile_with_more_blur_than_the_scan_has_is_doubted(true, given, doubted):
    small = true == "too few slices"  # for a spectrum, without which the blur is not estimated
    low = api.degrade(phantom(0), 2, profile="kspace" if small else true)
    low = low[8:20, 8:20, 8:20] if small else low
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        api.upscale(low, profile=given)
    messages = [str(one.message) for one in found]
    assert any("has more blur than the scan seems to have" in one for one in messages) == doubted


@pytest.mark.parametrize("true, given, changed", [
    ("kspace", "kspace", True), ("gauss", "gauss", True), ("kspace", "hamming", False),
    ("hamming", "kspace", False),
])
def test_with_a_plausible_profile_the_restored_volume_agrees_with_the_scan(true, given, changed):
    filters = load_filters(Request.of(preset="scan", upscale=True))
    truth = phantom(0) / 1000
    fine = make_fine(api.degrade(truth, 2, profile=true), filters.method, None, 3 * (given,))
    fine.descriptors[NOISE] = 0  # the phantom's finest detail looks like noise
    plain = restore(replace(fine, profiles=()), filters.stages, filters.method)
    agreeing = restore(fine, filters.stages, filters.method)
    assert np.array_equal(agreeing, plain) != changed
    if changed:
        deep = binary_erosion(truth[fine.box] > 0, iterations=5)
        errors = [np.mean((found - truth[fine.box] / fine.scale)[deep] ** 2)
                  for found in (agreeing, plain)]
        assert errors[0] < 0.99 * errors[1]


@pytest.mark.parametrize("profile", ["kspace", "hamming"])
def test_agreement_does_no_harm_where_a_scan_ends_within_the_brain(profile, monkeypatch):
    monkeypatch.setattr("get_lar.are_plausible", lambda *_: True)  # a phantom seems blurred
    filters = load_filters(Request.of(preset="scan", upscale=True))
    truth = phantom(1, (72, 44, 40)) / 1000
    low, truth = api.degrade(truth, 2, profile=profile)[10:22], truth[20:44]
    fine = make_fine(low, filters.method, None, 3 * (profile,))
    fine.descriptors[NOISE] = 0
    results = [fine.whole(restore(volume, filters.stages, filters.method))[:4]
               for volume in (fine, replace(fine, profiles=()))]
    errors = [np.mean((found - truth[:4])[truth[:4] > 0] ** 2) for found in results]
    assert errors[0] < errors[1]


# ---- draws

def test_strong_windows_are_drawn_only_where_they_are_told_or_noise_shows_them():
    acquisitions = [sample_acquisition(SCAN, random_of(0, f"volume {number}"))
                    for number in range(600)]
    damped = [max(profile.damping for profile in one.profiles) for one in acquisitions]
    untold = [amount for one, amount in zip(acquisitions, damped, strict=True)
              if not one.given and one.sigma <= NOISY]
    told = [amount for one, amount in zip(acquisitions, damped, strict=True) if one.given]
    assert max(untold) == 0 and np.mean(np.array(told) > 0) > 0.1
    assert 0.4 < np.mean([one.given for one in acquisitions]) < 0.6


def test_originals_are_drawn_sharper_softer_and_as_they_are():
    acquisitions = [sample_acquisition(SCAN, random_of(0, f"volume {number}"))
                    for number in range(600)]
    sharper = np.array([one.sharpening > 0 for one in acquisitions])
    softer = np.array([max(one.softness) > 0 for one in acquisitions])
    assert not (sharper & softer).any()
    assert 0.1 < sharper.mean() < 0.2 and 0.6 < softer.mean() < 0.7
    unlike = [np.ptp(one.softness) for one in acquisitions if max(one.softness)]
    assert min(unlike) > 0  # along each axis another


def test_a_blurred_original_stays_in_its_outline_and_keeps_flat_tissue():
    hr = (phantom(0) > 0).astype(np.float32) * 0.5
    one = sample_acquisition(SCAN, random_of(0, "a"))
    one = one._replace(softness=(0.6, 0.7, 0.5), sharpening=0.0)
    np.testing.assert_allclose(with_sharpness(hr, one), hr, atol=1e-6)
    tissue = phantom(0) / 1000
    found = with_sharpness(tissue, one)
    np.testing.assert_array_equal(found > 0, tissue > 0)
    deep = binary_erosion(tissue > 0, iterations=2)[2:]
    bend, before = (np.abs(np.diff(part, 2, axis=0))[deep].mean() for part in (found, tissue))
    assert bend < 0.8 * before


def test_draws_count_by_what_the_start_misses_of_them():
    for number in range(2):
        for volume in sampled_volumes(phantom(number), SCAN, "a"):
            missed = np.mean(np.square(volume.hr - volume.lr)[volume.training_mask])
            assert volume.weight == pytest.approx(1 / (missed + 1e-5), rel=1e-5)
            features, rows = sample_features(volume, [], SCAN, 100, "a")
            _, plain = sample_features(replace(volume, weight=1.0), [], SCAN, 100, "a")
            np.testing.assert_allclose(rows, plain * np.sqrt(volume.weight), rtol=1e-5)
