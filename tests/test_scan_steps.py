"""Steps of learning and evaluating for scans whose absence would go unnoticed elsewhere."""
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion
from test_scan import SCAN, phantom

from degrading.acquisition import make_low, original_of
from degrading.degradation import degradation_of
from degrading.likeness import Weights
from disk.filters import PRETRAINED_SCAN, load_filters
from filter_constant import Request
from get_lar import make_fine
from learning.acquisitions import (
    FAINTEST,
    NOISY_ORIGINALS,
    sample_acquisition,
    sampled_volumes,
    with_original_noise,
    with_sharpness,
)
from octahedral.scene import REACH
from octahedral.stages import NEAR, restore_stages, what_stages_learn_from
from restoring import evaluation
from restoring.steps import restore
from util import random_of

REQUEST = Request(arrays_dir=str(PRETRAINED_SCAN))


@pytest.fixture(scope="module")
def shipped():
    return load_filters(REQUEST)


def test_a_noisy_lr_volume_is_black_outside_its_outline():
    hr = phantom(0) / 1000
    low = make_low(hr, degradation_of(hr.shape, SCAN), 0.05, random_of(0, "noise"))
    share = (hr > 0).reshape(24, 2, 22, 2, 20, 2).mean(axis=(1, 3, 5))
    assert not low[share < 0.5].any() and low[share >= 0.5].all()


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 1, 4)])
def test_tissue_that_a_face_of_the_array_cuts_is_restored_as_if_it_went_on(factor, monkeypatch):
    monkeypatch.setattr("structure.weights_of", lambda *_: Weights())  # of phantoms too
    stages, method, *_ = load_filters(Request.of(preset="scan", factor=factor))
    whole = np.clip(phantom(11, (96, 96, 96)), 0, 1000) / 1000
    hr = whole[24:72, 24:72, 24:72]
    assert (hr > 0).mean() > 0.99  # no background at any face
    operator = degradation_of(hr.shape, method)
    operator.profiles = 3 * ("box",)
    low = np.maximum(operator.forward(hr.astype(np.float32)), 1e-3)
    around = [(4 * factor[axis] // max(factor[axis], 1),) * 2 for axis in range(3)]

    def restored(volume):  # with a known profile: an estimate differs from one box to the other
        fine = make_fine(volume, method, profiles=operator.profiles)
        return fine.whole(restore(fine, stages, method))

    found, larger = restored(low), restored(np.pad(low, around, mode="symmetric"))
    inner = tuple(slice(before * f, before * f + side)
                  for (before, _), f, side in zip(around, factor, hr.shape, strict=True))
    mirrored = larger[inner]
    assert np.abs(found - mirrored).mean() < 0.006
    far = np.minimum(np.indices(hr.shape), 47 - np.indices(hr.shape))
    for depth in range(4):
        at = (far[[f > 1 for f in factor]] == depth).any(0)
        errors = [np.square(volume - hr)[at].mean() for volume in (found, mirrored)]
        assert errors[0] < 1.1 * errors[1], (depth, errors)


@pytest.mark.parametrize("above", [0, 20], ids=["black", "few voxels"])
def test_a_volume_without_a_voxel_above_zero_is_refused(above):
    volume = np.zeros((30, 30, 30), np.float32)
    volume.reshape(-1)[:above] = 7
    if above:
        assert original_of(volume, (2, 2, 2)).max() == 1  # bright is what is not zero
    else:
        with pytest.raises(ValueError, match="no voxel is above zero"):
            original_of(volume, (2, 2, 2))


def test_many_originals_are_noisy_and_stay_in_their_outline():
    acquisitions = [sample_acquisition(SCAN, random_of(0, f"draw {number}"))
                    for number in range(400)]
    grains = np.array([one.original_noise for one in acquisitions])
    assert (grains > 0).mean() == pytest.approx(NOISY_ORIGINALS, abs=0.08)
    assert 0.035 < grains.max() <= 0.04
    hr = phantom(1) / 1000
    noisy = with_original_noise(hr, 0.04, random_of(0, "grain"))
    np.testing.assert_array_equal(noisy > 0, hr > 0)
    middle = (hr > 0.3) & (hr < 0.8)
    assert (noisy - hr)[middle].std() == pytest.approx(0.04, rel=0.05) and noisy.max() <= 1
    assert with_original_noise(hr, 0.0, random_of(0, "grain")) is hr


def test_dark_tissue_stays_tissue_under_noise_and_sharpening():
    hr = np.where(phantom(1) > 0, phantom(1) / 1000 - 0.24, 0).clip(0).astype(np.float32)
    sampled = sample_acquisition(SCAN, random_of(0, "a"))
    sharp = sampled._replace(softness=(0.0, 0.0, 0.0), sharpening=3.0)
    for found in (with_original_noise(hr, 0.04, random_of(0, "grain")), with_sharpness(hr, sharp)):
        np.testing.assert_array_equal(found > 0, hr > 0)
        assert found[hr > 0].min() == np.float32(FAINTEST) and found.max() <= 1
    assert FAINTEST < 0.01  # fainter than tissue, so that it brightens none


def test_later_stages_learn_from_voxels_whose_surroundings_are_restored(shipped):
    stages, method, *_ = shipped
    volume = next(sampled_volumes(phantom(2), SCAN, "one"))
    scene, voxels = what_stages_learn_from(volume, stages[:1], method)
    inner = 3 * (slice(REACH, -REACH),)
    near = binary_dilation(volume.training_mask, iterations=NEAR) & volume.mask
    whole = restore_stages(volume, stages[:1], method)
    np.testing.assert_array_equal(scene.estimate[inner][near], whole[near])
    assert NEAR >= 3  # filters of later stages see 3 voxels
    assert voxels.size == volume.training_mask.sum()


def test_inside_is_what_lies_five_voxels_deep(shipped, monkeypatch):
    method, seen = shipped.method, []
    monkeypatch.setattr(evaluation, "decibel", lambda error: seen.append(float(error)) or 0.0)
    brain = phantom(3)
    monkeypatch.setattr(evaluation, "restore", lambda fine, *_: fine.lr)
    evaluation.evaluate_scan(brain, shipped, REQUEST, "box", 0, "brain")
    hr = evaluation.original_of(brain, method.factor)
    operator = degradation_of(hr.shape, method)
    low = make_low(hr, operator, 0, random_of(0, "brain box 0"))
    missed = np.square(np.clip(operator.spline(low, 1), 0, 1) - hr)
    inside = binary_erosion(hr > 0, iterations=5)
    whole = binary_dilation(hr > 0, iterations=2)
    assert seen[0] == pytest.approx(missed[inside].mean(), rel=1e-5)
    assert seen[len(seen) // 2] == pytest.approx(missed[whole].mean(), rel=1e-5)


def test_the_noise_that_is_found_stands_beside_the_noise_that_was_added(shipped, monkeypatch):
    monkeypatch.setattr(evaluation, "restore", lambda fine, *_: fine.lr)
    for noise in (2, 6):
        row = evaluation.evaluate_scan(phantom(3), shipped, REQUEST, "box", noise, "brain")
        assert row["noise"] == noise and noise / 2 < row["noise_found"] < 2 * noise
