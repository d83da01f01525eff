"""filter_func.py: the Gaussian window, the sharpener and the census blend."""

import naive
import numpy as np
import pytest

from filter_func import (
    WINDOW_SIGMA,
    census_blend,
    census_changes,
    gaussian_smooth,
    gaussian_weights,
    sharpen,
)

INPUTS = {
    "random": lambda rng, shape: rng.random(shape),
    "constant": lambda rng, shape: np.full(shape, 0.3),
    "zero": lambda rng, shape: np.zeros(shape),
    # Many ties between neighbours.
    "few grey levels": lambda rng, shape: rng.integers(0, 3, shape) / 2,
    "one bright voxel": lambda rng, shape: (
        (np.arange(np.prod(shape)) == np.prod(shape) // 2).reshape(shape).astype(float)
    ),
}


# ---- against the released code


def test_window_is_the_released_codes(golden):
    weights = gaussian_weights(9, WINDOW_SIGMA)
    window = np.einsum("i,j,k->ijk", weights, weights, weights).ravel()
    np.testing.assert_allclose(window, golden.gaussian_diagonal, rtol=1e-6)  # stored as float32


def test_sharpened_volume_is_the_released_codes(golden):
    difference = np.abs(sharpen(golden.hr) - golden.sharpened)
    # 16 G - 15 Ga magnifies the rounding of float32; a voxel may also change sides of a census
    # threshold by rounding.
    assert np.mean(difference > 1e-5) < 1e-4


def test_blended_volume_is_the_released_codes(golden):
    np.testing.assert_array_equal(census_blend(golden.lr, golden.sr, 10), golden.blended)


# ---- against the twin


@pytest.mark.parametrize("length", [1, 3, 5, 9])
@pytest.mark.parametrize("sigma", [0.5, 0.85, 3.0])
def test_separable_window_is_the_3d_gaussian(length, sigma):
    weights = gaussian_weights(length, sigma)
    window = np.einsum("i,j,k->ijk", weights, weights, weights)
    np.testing.assert_allclose(window, naive.gaussian_window(length, sigma), rtol=1e-12)
    assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 4, 3), (1, 1, 1)])
def test_smoothing_equals_the_literal_one(kind, shape):
    image = INPUTS[kind](np.random.default_rng(1), shape)
    np.testing.assert_allclose(
        gaussian_smooth(image, 0.85), naive.gaussian(image, 0.85), atol=1e-14
    )


@pytest.mark.parametrize("kind", ["random", "constant", "zero"])
def test_sharpening_equals_the_literal_one(kind):
    # float64 on both sides, and no ties that rounding could decide either way
    image = INPUTS[kind](np.random.default_rng(2), (7, 6, 9))
    np.testing.assert_allclose(sharpen(image), naive.sharpen(image), atol=1e-12)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("threshold", [0, 5, 10, 25, 26])
def test_census_blend_equals_the_literal_one(kind, threshold):
    rng = np.random.default_rng(3)
    lr = INPUTS[kind](rng, (6, 5, 7)).astype(np.float32)
    sr = (lr + 0.2 * rng.standard_normal(lr.shape)).astype(np.float32)
    np.testing.assert_array_equal(
        census_blend(lr, sr, threshold), naive.census_blend(lr, sr, threshold)
    )


def test_sharpening_keeps_dtype_and_the_unit_range():
    image = np.random.default_rng(4).random((8, 9, 10), np.float32)
    result = sharpen(image)
    assert result.dtype == np.float32 and result.min() >= 0 and result.max() <= 1


def test_sharpening_leaves_its_input_alone():
    image = np.random.default_rng(5).random((6, 6, 6), np.float32)
    before = image.copy()
    sharpen(image)
    np.testing.assert_array_equal(image, before)


def test_census_of_a_volume_and_itself_has_no_change():
    image = np.random.default_rng(6).random((5, 5, 5))
    assert not census_changes(image, image).any()
    # Nor of one that is brighter throughout: only ranks count.
    assert not census_changes(image, 2 * image + 1).any()


def test_census_counts_all_26_neighbours():
    valley, peak = np.ones((3, 3, 3)), np.zeros((3, 3, 3))
    valley[1, 1, 1], peak[1, 1, 1] = 0, 1
    assert census_changes(valley, peak).item() == 26


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 3, 2), (2, 9, 9)])
def test_blend_of_a_volume_without_an_inside_is_zero(shape):
    image = np.ones(shape, np.float32)
    np.testing.assert_array_equal(census_blend(image, image), 0)
