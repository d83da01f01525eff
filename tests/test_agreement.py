"""degrading/agreement.py: a restored volume is corrected by a scan with a known slice profile."""
import numpy as np
import pytest
from scipy.stats import rice
from synthetic import brain

from degrading.agreement import NoisyProjection, axis_operators, beyond_noise
from degrading.back_projection import covariance_at
from degrading.banded import apply_operators, banded, identity
from degrading.slice_profile import PROFILES, mirrored_matrix, profile_matrix


@pytest.mark.parametrize("estimated", [0.05, 0.2])
@pytest.mark.parametrize("shape", [(12, 9, 10), (7, 8, 11)])
def test_each_frequency_of_a_residual_has_the_weight_of_a_wiener_filter(shape, estimated):
    random = np.random.default_rng(4)
    residual = random.normal(0, 0.1, shape).astype(np.float32)
    residual += np.float32(0.3) * np.sin(np.arange(shape[0]))[:, None, None]
    axes = np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")
    length = 2 * np.sqrt(sum(np.square(along) for along in axes))
    spectrum, band = np.fft.fftn(residual), np.floor(12 * length)
    highest = np.mean(np.abs(spectrum[band >= 16]) ** 2) / residual.size
    variance = min(estimated**2, highest)
    assert (variance < estimated**2) == (estimated > 0.1)
    for number in np.unique(band):
        power = np.mean(np.abs(spectrum[band == number]) ** 2)
        spectrum[band == number] *= max(1 - residual.size * variance / power, 0)
    np.testing.assert_allclose(
        beyond_noise(residual, residual.size, estimated), np.fft.ifftn(spectrum).real, atol=1e-6
    )


@pytest.mark.parametrize("side, factor", [(24, 2), (12, 4), (15, 3), (5, 1)])
@pytest.mark.parametrize("profile", PROFILES)
def test_a_volume_that_is_mirrored_at_its_ends_is_degraded_as_if_it_went_on(profile, side, factor):
    volume = np.random.default_rng(0).random(side)
    longer = np.pad(volume, (side, 2 * side), mode="symmetric")  # a period of the mirrored volume
    expected = profile_matrix(4 * side, factor, profile) @ longer
    found = mirrored_matrix(side, factor, profile) @ volume
    np.testing.assert_allclose(found, expected[side // factor:][:side // factor], atol=2e-4)


def scanned(profile, noise, shape=(40, 40, 40)):
    """A fine volume, and its scan with Rician noise."""
    fine = brain(shape=shape)
    fine = np.minimum(fine / np.quantile(fine, 0.999), 1).astype(np.float32)
    matrices = [profile_matrix(side, 2, profile) for side in shape]
    low = apply_operators(fine, [banded(matrix) for matrix in matrices])
    random = np.random.default_rng(3).normal(0, noise, (2, *low.shape))
    low = np.hypot(np.maximum(low, 0) + random[0], random[1]) * (low > 0.05)
    return fine, low.astype(np.float32)


def agreement(low, profile, shape, noise):
    box = tuple(slice(0, side) for side in shape)
    factor = [side // thick for side, thick in zip(shape, low.shape, strict=True)]
    return NoisyProjection(low, 3 * (profile,), factor, box, np.ones(shape, bool), noise)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_scan_without_noise_gives_back_what_an_estimate_lacks(profile):
    fine, low = scanned(profile, 0)
    dull = 0.9 * fine
    found = agreement(low, profile, fine.shape, 0).refine(dull, 2)
    assert np.mean((found - fine) ** 2) < 0.3 * np.mean((dull - fine) ** 2)


@pytest.mark.parametrize("profile", PROFILES)
def test_noise_is_not_put_back_into_the_truth(profile):
    fine, low = scanned(profile, 0.05)
    found = agreement(low, profile, fine.shape, 0.05).refine(fine, 2)
    plain = agreement(low, profile, fine.shape, 0).refine(fine, 2)
    assert np.mean((found - fine) ** 2) < 0.02 * np.mean((plain - fine) ** 2)


def test_a_noisy_magnitude_is_expected_to_be_brighter_than_the_truth():
    truth = np.linspace(0, 0.5, 27, dtype=np.float32).reshape(3, 3, 3)
    expected = agreement(truth + 1, "box", truth.shape, 0.05).expected(truth)
    mean = rice.mean(truth / 0.05, scale=0.05)
    assert np.abs(expected - mean).max() < 0.3 * 0.05
    bright = truth > 0.15
    assert np.abs(expected - mean)[bright].max() < 0.1 * np.abs(truth - mean)[bright].max()


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("thick, factor", [(20, 2), (15, 3), (9, 4)])
@pytest.mark.parametrize("profile", ["kspace", "hamming"])
def test_the_transforms_of_an_axis_are_its_matrices(profile, thick, factor, axis):
    """D and C D^T (D C D^T + s I)^-1 of the mirrored volume, by dense matrices."""
    fine = thick * factor
    side = slice(3, fine - 2)
    seen, down, back = axis_operators(thick, factor, profile, side)
    degrading = mirrored_matrix(fine, factor, profile)
    random = np.random.default_rng(0)
    assert seen == slice(0, thick) and (down.n_in, back.n_out) == (fine - 5, fine - 5)
    assert (down.n_out, back.n_in) == (thick, thick)
    at, mirror = np.arange(fine), -1 - np.arange(fine)
    covariance = sum(covariance_at(np.subtract.outer(at, other) + 2 * fine * turn)
                     for other in (at, mirror) for turn in range(-9, 10))
    across = covariance @ degrading.T
    returned = across @ np.linalg.inv(degrading @ across + 3e-3 * np.eye(thick))
    for operator, matrix in ((down, degrading[:, side]), (back, returned[side])):
        shape = [4, 5, 6]
        shape[axis] = operator.n_in
        volume = random.random(shape, np.float32)
        expected = np.moveaxis(np.tensordot(matrix, volume, (1, axis)), 0, axis)
        every = [identity(length) for length in shape]
        every[axis] = operator
        np.testing.assert_allclose(apply_operators(volume, every), expected, atol=2e-6)
