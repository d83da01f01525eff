"""The descriptors of an LR volume against their definitions, written out voxel by voxel."""
from itertools import product

import numpy as np
import pytest
from synthetic import brain

from degrading.descriptors import (
    DESCRIPTOR_NAMES,
    bright_part,
    descriptors_of,
    differences_along,
    head_in_zeros,
    noise_of,
)
from octahedral.features import noise_strength


def noisy(seed=0, shape=(22, 20, 18), sigma=0.03):
    """A brain with noise, in [0, 1]."""
    clean = brain(seed, shape) / 1000
    noise = np.random.default_rng(seed).normal(0, sigma, shape)
    return np.where(clean > 0, np.clip(clean + noise, 1e-3, 1), 0).astype(np.float32)


def windows(volume, axis):
    """Each nine voxels of brain in a row along an axis."""
    lines = np.moveaxis(volume.astype(float), axis, 2)
    found = []
    for i, j in product(*map(range, lines.shape[:2])):
        for k in range(lines.shape[2] - 8):
            if (lines[i, j, k:k + 9] > 0).all():
                found.append(lines[i, j, k:k + 9])
    return found


def along(volume, axis):
    """Energies of differences, and the rise of the tenth of the places that rises most."""
    rows = windows(volume, axis)
    energy = {name: np.mean([np.dot(weights, row) ** 2 for row in rows]) for name, weights in {
        "lag 2": [0, 0, 0, -1, 0, 1, 0, 0, 0], "lag 4": [0, 0, -1, 0, 0, 0, 1, 0, 0],
        "second": [0, 0, 0, 1, -2, 1, 0, 0, 0],
        "fourth": [0, 0, 1, -4, 6, -4, 1, 0, 0]}.items()}
    limit = np.quantile([abs(row[5] - row[3]) for row in rows], 0.9)
    steep = [row if row[5] > row[3] else -row for row in rows if abs(row[5] - row[3]) >= limit]
    edge = np.mean(steep, axis=0)
    rises = [(edge[4 + k] - edge[4 - k]) / (edge[5] - edge[3]) for k in (2, 3)]
    return energy, rises


def noise(volume):
    """What second differences along all axes leave in flat places, and the noise in that."""
    finest, slope = {}, {}
    smooth = np.full(volume.shape, np.nan)
    weights = np.array([1, -2, 1]) / np.sqrt(6)
    for at in product(*(range(1, side - 1) for side in volume.shape)):
        block = volume[tuple(slice(i - 1, i + 2) for i in at)].astype(float)
        smooth[at] = block.mean()
        if (block > 0).all():
            finest[at] = abs(np.einsum("i,j,k,ijk", weights, weights, weights, block))
    smooth = smooth[1:-1, 1:-1, 1:-1]
    steep = np.pad(sum(np.gradient(smooth, axis=axis) ** 2 for axis in range(3)), 1, "symmetric")
    for i, j, k in finest:
        slope[i, j, k] = steep[i - 1:i + 2, j - 1:j + 2, k - 1:k + 2].mean()
    deviations = []
    for share in (0.1, 0.3):
        limit = np.quantile(list(slope.values()), share)
        flat = [finest[at] for at in finest if slope[at] <= limit]
        deviations.append(np.median(flat) / 0.6745)
    return deviations[0], np.sqrt(max(2.54 * deviations[0]**2 - 1.54 * deviations[1]**2, 0))


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 1, 4), (1, 3, 1)])
def test_descriptors_are_what_they_are_called(factor):
    volume = noisy()
    axes = [axis for axis in range(3) if factor[axis] > 1]
    energies, rises = zip(*(along(volume, axis) for axis in axes))
    mean = {name: np.mean([energy[name] for energy in energies]) for name in energies[0]}
    floor, level = noise(volume)
    edge_2, edge_3 = np.mean(rises, axis=0)
    expected = [floor, level, np.log(mean["second"] / mean["lag 2"]),
                np.log(mean["lag 4"] / mean["lag 2"]), edge_2, edge_3,
                np.log(floor**2 / mean["lag 2"] + 1e-4), np.log(mean["fourth"] / mean["lag 2"])]
    np.testing.assert_allclose(descriptors_of(volume, factor)[:8], expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("factor, line", [((2, 2, 2), 32), ((1, 4, 1), 16)])
def test_spectra_are_those_of_lines_within_the_brain(factor, line):
    volume = noisy(shape=(46, 50, 44), sigma=0.02)
    taper = np.array([0.5 - 0.5 * np.cos(2 * np.pi * (k + 1) / (line + 1)) for k in range(line)])
    powers = []
    for axis in (axis for axis in range(3) if factor[axis] > 1):
        lines = np.moveaxis(volume.astype(float), axis, 2)
        found = []
        for i, j in product(*map(range, lines.shape[:2])):
            for k in range(0, lines.shape[2] - line + 1, 4):
                part = lines[i, j, k:k + line]
                if (part > 0).all():
                    waves = np.fft.rfft((part - part.mean()) * taper)
                    found.append(abs(waves) ** 2 / (taper**2).sum())
        if len(found) >= 50:
            powers.append(np.mean(found, axis=0))
    power = np.mean(powers, axis=0)
    _, level = noise(volume)
    low = power[line // 16:line // 8].mean()
    clean = np.log(np.maximum(power - level**2, 0.05 * power) / low)
    expected = np.interp(np.arange(3, 17) / 16, np.linspace(0, 1, len(power)), clean)
    np.testing.assert_allclose(descriptors_of(volume, factor)[8:], expected, rtol=1e-3, atol=1e-3)


def test_spectra_are_zero_where_no_line_lies_within_the_brain():
    assert not descriptors_of(noisy(shape=(20, 20, 20)), (2, 2, 2))[8:].any()


def test_a_few_saturated_voxels_are_not_the_head():
    random = np.random.default_rng(0)
    head = random.uniform(1, 6, (30, 30, 30)).astype(np.float32)
    head[6:24, 6:24, 6:24] = random.uniform(60, 140, (18, 18, 18))
    saturated = head.copy()
    saturated[10:12, 10:12, 10:12] = 32767
    np.testing.assert_array_equal(bright_part(saturated), bright_part(head))
    assert head_in_zeros(saturated, (5, 5, 5)).sum() == head_in_zeros(head, (5, 5, 5)).sum()


def test_strength_is_compared_with_that_of_the_floor():
    descriptors = np.full(len(DESCRIPTOR_NAMES), 7.0)
    descriptors[DESCRIPTOR_NAMES.index("floor")] = 0.02
    assert noise_strength(descriptors) == pytest.approx(np.log(0.02**2 + 1e-5))


@pytest.mark.parametrize("axis", range(3))
def test_axes_are_compared_by_the_same_differences(axis):
    volume = noisy(1)
    energy, (edge_2, edge_3) = along(volume, axis)
    expected = [np.log(energy["second"] / energy["lag 2"]),
                np.log(energy["lag 4"] / energy["lag 2"]), edge_2, edge_3,
                np.log(energy["fourth"] / energy["lag 2"])]
    np.testing.assert_allclose(differences_along(volume, axis), expected, rtol=1e-5)
    assert differences_along(volume[:8, :8, :8], axis) is None


@pytest.mark.parametrize("air, is_head", [(0.3, True), (0.36, False)])
def test_air_is_darker_than_a_third_of_what_is_bright(air, is_head):
    random = np.random.default_rng(0)
    head = np.full((20, 20, 20), air) + random.normal(0, 1e-3, (20, 20, 20))
    head[5:15, 5:15, 5:15] = 1 + random.normal(0, 1e-3, (10, 10, 10))
    assert (bright_part(head.astype(np.float32)) is not None) == is_head


@pytest.mark.parametrize("zeros, is_head", [(0.09, True), (0.11, False)])
def test_a_head_has_hardly_a_voxel_of_zero(zeros, is_head):
    head = np.random.default_rng(0).uniform(0.01, 0.1, (20, 20, 20)).astype(np.float32)
    head[5:15, 5:15, 5:15] = 1
    head.reshape(-1)[:int(zeros * head.size)] = 0
    assert (bright_part(head) is not None) == is_head


@pytest.mark.parametrize("axis", range(3))
def test_slices_that_repeat_two_by_two_give_descriptors_that_are_numbers(axis):
    volume = np.random.default_rng(4).random((20, 20, 20)).astype(np.float32) + 1
    along = np.moveaxis(volume, axis, 0)
    along[2::2], along[3::2] = along[0], along[1]
    assert np.isfinite(descriptors_of(volume / 2, (2, 2, 2))).all()
    assert np.isfinite(differences_along(volume, axis)).all()


def test_noise_is_zero_where_the_flattest_part_has_none():
    """Its extrapolation is below zero there, which has no root."""
    unit = np.random.default_rng(0).normal(0.5, 0.05, (20, 20, 20)).astype(np.float32)
    unit[:4] = 0.5  # a ninth of the voxels with neighbours on all sides
    assert noise_of(unit)[1] == 0 and noise_of(unit[4:])[1] > 0.03
