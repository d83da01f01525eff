"""What is read of a scan's profile, what is told of it, and what is too strange to restore."""
import json
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script
from scipy.ndimage import binary_erosion, gaussian_filter
from synthetic import brain, save
from test_scan import SCAN, phantom

import api
from degrading.descriptors import DESCRIPTOR_NAMES, NOISE, edge_density
from degrading.profile_reader import (
    DENSE,
    READING_NAMES,
    SPARSE,
    blur_of,
    fit_reader,
    limits_of,
    read,
    strangeness,
    told_or_read,
    trust,
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
from octahedral.tree import NO_READER, together, tree_of
from octahedral.voxel_features import FEATURE_NAMES
from options.command_line import command_line
from restoring.estimates import Estimates
from restoring.evaluation import evaluate_scan
from restoring.remarks import say_of_trust, say_of_unlike_slices
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


def test_strangeness_grows_with_the_distance_and_ends_trust():
    descriptors = np.random.default_rng(0).normal(size=(2000, 4)) * [1, 5, 0.1, 2]
    reader = fit_reader(descriptors, np.zeros((2000, 2)))
    usual = [strangeness(reader, one) for one in descriptors]
    assert 0.8 < np.median(usual) < 1.1
    steps = np.array([1, 5, 0.1, 2])
    far = [strangeness(reader, descriptors[0] + step * steps) for step in (3, 6, 12)]
    assert far[0] < far[1] < far[2]
    middle = descriptors.mean(0)
    direction = np.array([1, 0, 0.1, 2])  # the noise stays as it is
    steps = np.linspace(0, 8, 200)
    for voxel in (1, 1.6, 2):
        shares = [trust(reader, middle + step * direction, 0.5, voxel) for step in steps]
        levels = [strangeness(reader, middle + step * direction) for step in steps]
        assert shares[0] == 1 and shares[-1] == 0 and (np.diff(shares) <= 0).all()
        usual, too_strange = limits_of(middle[NOISE], voxel)
        expected = np.clip((too_strange - np.array(levels)) / (too_strange - usual), 0, 1)
        np.testing.assert_allclose(shares, expected, atol=1e-9)


def test_less_strangeness_is_tolerated_in_voxels_as_in_training_and_more_with_much_noise():
    assert limits_of(0) == limits_of(0.01, 1.4) == limits_of(0.03, 3) == limits_of(0, 4) == (1.5, 2)
    assert limits_of(0, 1.8) == limits_of(0.01, 2.6) == pytest.approx((1.2, 1.45))
    assert limits_of(0, 3) == limits_of(0, 1)  # a scan measured in 4 x 4 x 2 mm is too
    assert limits_of(0.05, 1) == limits_of(0.08, 3) == (3, 3.5)
    assert limits_of(0.017, 0.7)[0] > 1.7  # a scan of 0.7 mm is as strange as this; its noise tells
    assert limits_of(0.03, 1.4) == pytest.approx((2.2, 2.7))
    for voxel in (1, 2):
        found = np.array([limits_of(noise, voxel) for noise in np.linspace(0, 0.07, 50)])
        assert (np.diff(found, axis=0) >= 0).all() and (found[:, 0] < found[:, 1]).all()


@pytest.mark.parametrize("size, share", [(1, 1), (2, 0)])
def test_the_voxel_size_of_a_scan_and_of_a_degraded_volume_reach_the_limits(
        tmp_path, monkeypatch, size, share):
    """At this strangeness, filters are used for fine voxels alone."""
    monkeypatch.setattr("degrading.profile_reader.strangeness", lambda *_: 1.5)
    monkeypatch.setattr("get_lar.edge_density", lambda *_: DENSE)
    scan = save(tmp_path / "low.nii", phantom(0), np.diag(3 * [size] + [1]))
    request = command_line("test", ["--upscale", "--test_dir", str(scan), "--no-report",
                                    "--output", str(tmp_path / "fine.nii")])
    assert load_script("test").main(request) == 0
    record = json.loads((tmp_path / ".fine.json").read_text())
    assert record["figures"]["trust"] == share
    fine = []
    monkeypatch.setattr("restoring.evaluation.restore", lambda volume, *_: fine.append(volume)
                        or volume.lr)
    request = Request.of(preset="scan")
    evaluate_scan(phantom(0), load_filters(request), request, "box", 0, "v",
                  voxel_size=3 * (size / 2,))
    assert fine[0].voxel == pytest.approx(size)


def test_filters_learned_without_a_reader_find_nothing_strange():
    assert trust(NO_READER, np.full(len(DESCRIPTOR_NAMES), 100.0), 0.5) == 1


def test_sparse_edges_end_trust():
    reader = fit_reader(np.random.default_rng(0).normal(size=(50, 3)), np.zeros((50, 2)))
    shares = [trust(reader, np.zeros(3), density) for density in (0.1, SPARSE, 0.25, DENSE, 0.6)]
    assert shares == sorted(shares) and shares[:2] == [0, 0] and shares[3:] == [1, 1]
    assert 0.4 < shares[2] < 0.6


def blocks():
    """A phantom of a few flat blocks with sharp borders, far from any brain."""
    volume = np.zeros((56, 56, 56), np.float32)
    volume[6:50, 6:50, 6:50] = 0.2
    volume[14:40, 20:44, 16:36] = 1.0
    volume[20:30, 24:30, 30:46] = 0.6
    return volume


def test_density_of_edges_is_small_in_blocks_and_large_in_tissue():
    volume = gaussian_filter(phantom(0), 1.0) * (phantom(0) > 0) / 1000
    assert edge_density(blocks()) < SPARSE < DENSE < edge_density(volume)
    steps = [volume[2:] - volume[:-2], volume[:, 2:] - volume[:, :-2],
             volume[:, :, 2:] - volume[:, :, :-2]]
    inside = volume > 0
    kept = [inside[2:] & inside[1:-1] & inside[:-2],
            inside[:, 2:] & inside[:, 1:-1] & inside[:, :-2],
            inside[:, :, 2:] & inside[:, :, 1:-1] & inside[:, :, :-2]]
    found = np.abs(np.concatenate([step[keep] for step, keep in zip(steps, kept, strict=True)]))
    expected = np.median(found) / np.sqrt(np.mean(found.astype(float) ** 2))
    assert edge_density(volume) == pytest.approx(expected, rel=1e-5)
    assert edge_density(np.ones((9, 9, 9), np.float32)) == 1


def test_a_phantom_far_from_brains_is_not_sharpened(tmp_path, capsys):
    low = blocks()
    save(tmp_path / "phantom.nii.gz", 1000 * low)
    target = tmp_path / "fine.nii.gz"
    request = command_line("test", ["--upscale", "--test_dir", str(tmp_path / "phantom.nii.gz"),
                                    "--output", str(target)])
    assert load_script("test").main(request) == 0
    assert "unlike the training brains of the filters; all" in capsys.readouterr().out
    fine = make_fine(1000 * low, load_filters(request).method)
    np.testing.assert_allclose(nib.load(target).get_fdata(), fine.whole(fine.lr), atol=0.1)
    assert json.loads((tmp_path / "fine.json").read_text())["figures"]["trust"] == 0


@pytest.mark.parametrize("factor, distance, said", [
    ((1, 1, 4), 1.8, True), ((1, 1, 4), 1.4, False), ((1, 1, 4), None, False),
    ((2, 2, 2), 1.8, False)])  # of which `say_of_trust` reports
def test_thick_slices_that_are_unlike_brains_are_reported(capsys, factor, distance, said):
    method = load_filters(Request.of(preset="scan", factor=factor)).method
    say_of_unlike_slices("scan", Estimates(np.zeros(22), 1.0, distance, 1.5), method)
    assert ("distance 1.8, usual up to 1.5" in capsys.readouterr().out) == said


@pytest.mark.parametrize("distance, alike", [(1.4, "like"), (1.6, "unlike")])
def test_look_says_of_thick_slices_if_they_are_like_brains(
        tmp_path, capsys, monkeypatch, distance, alike):
    """As upscaling does: by the distance alone, whatever the density of edges."""
    monkeypatch.setattr("restoring.looking.strangeness", lambda *_: distance)
    monkeypatch.setattr("restoring.looking.edge_density", lambda *_: 0.0)
    save(tmp_path / "v.nii", phantom(0, (64, 60, 56))[..., ::4], np.diag([1, 1, 4, 1]))
    load_script("test").main(command_line("test", ["--look", "--test_dir", str(tmp_path)]))
    out = capsys.readouterr().out
    assert f"brains    {alike} the training brains" in out and "--isotropic" in out


def test_later_volumes_of_a_series_that_are_unlike_brains_are_counted_in_one_message(
        tmp_path, capsys):
    series = np.stack([brain(seed, (26, 24, 22)) for seed in (1, 5, 0)], -1)
    save(tmp_path / "series.nii.gz", series)
    request = command_line("test", ["--upscale", "--test_dir", str(tmp_path / "series.nii.gz"),
                                    "--output", str(tmp_path / "fine.nii.gz"), "--no-report"])
    assert load_script("test").main(request) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "unlike" in line)
    assert line.startswith("series.nii.gz: 2 of 3 volumes, such as volume 2, are unlike the "
                           "training brains of the filters; up to all of the weight")


def test_one_later_volume_that_is_unlike_brains_is_named(capsys):
    say_of_trust("a.nii", {0: 1.0, 2: 1.0}, 3)
    assert capsys.readouterr().out == ""
    say_of_trust("a.nii", {0: 1.0, 2: 0.25}, 3)
    assert capsys.readouterr().out.startswith(
        "a.nii: volume 3 of 3 is unlike the training brains of the filters; 75% of the weight")


def test_few_edges_are_named_where_they_are_the_reason(capsys):
    say_of_trust("a.nii", {0: 0.25}, few_edges=True)
    assert "brains of the filters (few edges); 75% of the weight" in capsys.readouterr().out
    usual = Estimates(np.zeros(22), 0.5, 1.0, 1.5)
    assert usual.few_edges and not usual._replace(distance=1.6).few_edges
    assert not usual._replace(trust=1.0).few_edges


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
