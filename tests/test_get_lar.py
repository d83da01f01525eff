"""get_lar.py: LR volumes of both types, and the operators that stand in for scipy.ndimage.zoom."""

import warnings
from dataclasses import replace

import naive
import numpy as np
import pytest
from scipy.ndimage import zoom
from synthetic import degrade, interpolate

from degrading.banded import apply_operators
from degrading.degradation import degradation_of, kspace_kept
from degrading.spline import upsample, zoom_operator
from filter_constant import Method
from get_lar import LRVolume, best_spline, make_pair
from util import bright_level, clip_bright, mod_crop


def scipy_zoom(volume, shape, order, prefilter):
    """zoom to an exact shape; it warns when it rounds a side."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = zoom(volume, np.divide(shape, volume.shape), order=order, prefilter=prefilter)
    assert result.shape == tuple(shape)
    return result


# ---- against the released code


def test_cropped_hr_volume_is_the_released_codes(golden):
    pair = make_pair(golden.volume, golden.method)
    assert pair.scale == golden.clip_max
    assert pair.box == golden.box
    np.testing.assert_allclose(pair.hr, golden.hr, atol=1e-7)


def test_interpolated_lr_volume_is_the_released_codes(golden):
    pair = make_pair(golden.volume, golden.method)
    # float32 sums of at most 27 terms in [0, 1], in another order than zoom's (measured: 3e-7)
    np.testing.assert_allclose(pair.lr, golden.lr, atol=2e-6)
    np.testing.assert_array_equal(pair.lr == 0, golden.lr == 0)


def test_kspace_lr_volume_is_the_released_codes(golden):
    pair = make_pair(golden.volume, replace(golden.method, lr_type="kspace"))
    assert pair.box == golden.box
    # A float32 FFT (measured: 7e-7).
    np.testing.assert_allclose(pair.lr[::2, ::2, ::2], golden.lr_kspace, atol=5e-6)


# ---- zoom


@pytest.mark.parametrize("prefilter", [False, True], ids=["plain", "prefilter"])
@pytest.mark.parametrize("order", range(6))
def test_operators_equal_scipy_zoom(order, prefilter):
    rng = np.random.default_rng(order)
    for shape, target in [
        ((12, 9, 7), (24, 18, 14)),
        ((12, 9, 8), (6, 3, 4)),
        ((5, 6, 7), (15, 24, 9)),
        ((20, 3, 2), (7, 8, 9)),
        ((9, 2, 3), (3, 4, 5)),
        ((2, 4, 30), (6, 1, 10)),
        ((1, 5, 3), (4, 2, 1)),
    ]:
        volume = rng.random(shape, np.float32)
        result = apply_operators(
            volume, [zoom_operator(*sides, order, prefilter) for sides in zip(shape, target)]
        )
        # Weights and sums are float32; the prefilter's tails are cut off below 1e-7 of the weight.
        np.testing.assert_allclose(
            result, scipy_zoom(volume.astype(np.float64), target, order, prefilter), atol=5e-6
        )


@pytest.mark.parametrize("sides", [(28, 14), (48, 24), (29, 87), (88, 22)])
def test_last_slice_is_not_lost_where_zoom_loses_it(sides):
    # At these lengths zoom rounds its last position to just outside the volume and writes a slice
    # of zeros there. Its mode "mirror" has the same values elsewhere, and the right ones there.
    row = 1 + np.random.default_rng(7).random((sides[0], 1, 1), np.float32)
    right = zoom(
        row[:, 0, 0].astype(np.float64),
        sides[1] / sides[0],
        order=2,
        prefilter=False,
        mode="mirror",
    )
    np.testing.assert_allclose(upsample(row, (sides[1], 1, 1), 2, False)[:, 0, 0], right, atol=2e-6)


@pytest.mark.parametrize("order", [0, 1, 2, 5])
def test_side_that_keeps_its_length_is_left_alone(order):
    volume = np.random.default_rng(8).random((6, 7, 8), np.float32)
    operators = [
        zoom_operator(6, 12, order, False),
        zoom_operator(7, 7, order, False),
        zoom_operator(8, 8, order, False),
    ]
    result = apply_operators(volume, operators)
    row = [
        zoom(volume[:, y, z].astype(np.float64), 2, order=order, prefilter=False)
        for y, z in np.ndindex(7, 8)
    ]
    np.testing.assert_allclose(result, np.stack(row, 1).reshape(12, 7, 8), atol=2e-6)


def test_unchanged_shape_gives_the_volume_back():
    volume = np.random.default_rng(9).random((4, 5, 6), np.float32)
    np.testing.assert_array_equal(upsample(volume, volume.shape, 2, False), volume)


@pytest.mark.parametrize("prefilter", [False, True])
@pytest.mark.parametrize("order", range(6))
def test_constant_volume_stays_constant(order, prefilter):
    result = upsample(np.full((5, 6, 7), 0.25, np.float32), (10, 18, 28), order, prefilter)
    np.testing.assert_allclose(result, 0.25, rtol=2e-6)


def test_upsampling_makes_negatives_zero():
    volume = np.zeros((6, 6, 6), np.float32)
    volume[3, 3, 3] = 1  # a spline with prefilter swings below zero around it
    result = upsample(volume, (12, 12, 12), 5)
    assert result.min() == 0 and result.max() > 0.5


@pytest.mark.parametrize("layout", ["C", "F", "strided", "float64"])
def test_operators_take_any_memory_layout(layout):
    volume = np.random.default_rng(10).random((6, 7, 8), np.float32)
    given = {
        "C": volume,
        "F": np.asfortranarray(volume),
        "strided": np.repeat(volume, 2, axis=1)[:, ::2],
        "float64": volume.astype(np.float64),
    }[layout]
    result = upsample(given, (12, 14, 16), 2, False)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_array_equal(result, upsample(volume, (12, 14, 16), 2, False))


# ---- the brightest voxels


@pytest.mark.parametrize(
    "kind", ["noise", "levels", "mostly black", "two values", "small", "one voxel"]
)
def test_bright_level_is_the_voxel_of_the_sorted_ones(kind):
    rng = np.random.default_rng(23)
    for shape in rng.integers(1, 4, (20, 3)) * rng.integers(1, 20, (20, 1)):
        image = {
            "noise": rng.random(shape),
            "levels": rng.integers(0, 9, shape),
            "two values": rng.random(shape) < 0.5,
            "mostly black": rng.random(shape) * (rng.random(shape) < 0.002),
            "small": rng.random((2, 3, 4)),
            "one voxel": np.eye(1)[None],
        }[kind].astype(np.float32)
        place = min(int(image.size * 0.999), image.size - 1)
        assert bright_level(image) == np.sort(image, axis=None)[place]


# ---- LR volumes against the twin


@pytest.mark.parametrize("factor", [(2, 2, 2), (3, 3, 3), (4, 4, 4), (2, 3, 4)])
def test_lr_volume_equals_zoom_down_and_up(factor):
    rng = np.random.default_rng(11)
    for shape in [(24, 12, 36), (12, 24, 12)]:
        image = (200 * rng.random(shape) * (rng.random(shape) > 0.3)).astype(np.float32)
        method = Method(factor=factor)
        lr = interpolate(degrade(image, method), shape, method)
        lr[image == 0] = 0
        np.testing.assert_allclose(
            np.minimum(lr, image.max()), naive.lr_interpolation(image, factor), atol=200 * 2e-6
        )


@pytest.mark.parametrize("shape", [(12, 18, 24), (13, 17, 19), (6, 7, 8)])
def test_kspace_volume_equals_the_masked_spectrum(shape):
    image = np.random.default_rng(12).random(shape, np.float32)
    method = Method(lr_type="kspace")
    lr = interpolate(degrade(image, method), shape, method)
    np.testing.assert_allclose(lr, naive.lr_kspace(image), atol=2e-6)


@pytest.mark.parametrize("side", range(6, 40))
def test_kept_spectrum_is_the_middle_third_whatever_the_factor(side):
    centre = side // 2
    for factor in (2, 3, 4):
        assert kspace_kept(side, factor, "third") == (
            centre - int(side / 6),
            centre + int(side / 6),
        )
        start, stop = kspace_kept(side, factor, "auto")
        assert stop - start == side // factor and start <= centre < stop
    assert kspace_kept(side, 1, "third") == kspace_kept(side, 1, "auto") == (0, side)


def test_kspace_lr_volume_is_not_masked_but_interpolated_is(brain):
    assert (make_pair(brain, Method()).lr[make_pair(brain, Method()).hr == 0] == 0).all()
    pair = make_pair(brain, Method(lr_type="kspace"))
    assert (pair.lr[pair.hr == 0] != 0).all()


@pytest.mark.parametrize("factor", [(2, 2, 2), (3, 3, 3), (5, 1, 2)])
def test_clipping_and_mod_crop_equal_the_literal_ones(factor):
    rng = np.random.default_rng(13)
    for shape in [(11, 13, 14), (1, 7, 5), (6, 6, 6)]:
        image = (rng.standard_normal(shape) * 100).astype(np.float32)
        np.testing.assert_array_equal(clip_bright(image), naive.clip_bright(image))
        np.testing.assert_array_equal(mod_crop(image, factor), naive.mod_crop(image, factor))


@pytest.mark.parametrize("lr_type", ["interpolation", "kspace"])
@pytest.mark.parametrize("factor", [(2, 2, 2), (3, 3, 3), (1, 1, 4)])
def test_pair_lies_in_the_unit_range_on_one_grid(brain, factor, lr_type):
    pair = make_pair(brain, Method(factor=factor, lr_type=lr_type, filter_len=5, grad_len=5))
    assert pair.hr.shape == pair.lr.shape == tuple(sides.stop - sides.start for sides in pair.box)
    assert pair.hr.dtype == pair.lr.dtype == np.float32
    assert pair.hr.min() >= 0 and pair.hr.max() <= 1
    # The magnitude of a cut spectrum rings above the brightest voxel; the published method does not
    # clip it.
    assert pair.lr.min() >= 0 and pair.lr.max() <= (1 if lr_type == "interpolation" else 1.5)
    np.testing.assert_allclose(
        pair.hr * np.float32(pair.scale), clip_bright(brain)[pair.box], rtol=2e-7
    )


def test_pair_does_not_change_the_volume_it_is_made_from(brain):
    before = brain.copy()
    make_pair(brain, Method())
    np.testing.assert_array_equal(brain, before)


def test_pair_does_not_hang_on_the_intensity_unit(brain):
    one, other = make_pair(brain, Method()), make_pair(brain * np.float32(1000), Method())
    np.testing.assert_allclose(one.lr, other.lr, atol=1e-6)
    assert other.scale == pytest.approx(1000 * one.scale)


@pytest.mark.parametrize("length, side", [(7, 9), (13, 13)])
def test_a_volume_without_a_whole_patch_names_the_side_of_a_patch(length, side):
    volume = np.zeros((30, 28, 26), np.float32)
    volume[15, 0], volume[0, 14] = 5.5, 6  # planes inside, but each voxel is at a face
    with pytest.raises(ValueError, match=f"has a whole patch of {side} voxels around it"):
        make_pair(volume, Method(filter_len=length))


def test_volume_without_a_voxel_above_zero_is_refused():
    for image in (np.zeros((20, 20, 20), np.float32), np.full((20, 20, 20), -3, np.float32)):
        with pytest.raises(ValueError, match="above zero"):
            make_pair(image, Method())


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 20, 20), (8, 8, 8)])
@pytest.mark.parametrize("lr_type", ["interpolation", "kspace"])
def test_volume_smaller_than_a_patch_is_refused(shape, lr_type):
    with pytest.raises(ValueError):
        make_pair(np.ones(shape, np.float32), Method(lr_type=lr_type))


@pytest.mark.parametrize("factor", [(2, 2, 2), (3, 3, 3)])
def test_best_spline_is_zoom_of_order_5_from_the_same_low_volume(brain, factor):
    method = Method(factor=factor, filter_len=5, grad_len=5)
    pair = make_pair(brain, method)
    image = naive.mod_crop(naive.clip_bright(brain), factor)
    # mode="mirror" for the reason below: one side of this volume is 28
    low = zoom(
        image.astype(np.float64), [1 / f for f in factor], order=2, prefilter=False, mode="mirror"
    )
    spline = np.clip(zoom(low, factor, order=5, mode="mirror")[pair.box] / pair.scale, 0, 1) * (
        pair.hr != 0
    )
    # The prefilter magnifies low's rounding.
    np.testing.assert_allclose(best_spline(pair), spline, atol=2e-5)


def test_best_spline_of_a_kspace_volume_is_on_the_same_grid():
    # A smooth bump loses nothing in k-space: its small volume, splined, must lie where the bump
    # lay.
    x, y, z = np.meshgrid(*(np.arange(side) - 26.5 for side in (54, 54, 54)), indexing="ij")
    image = np.exp(-((x - 2) ** 2 + (y + 3) ** 2 + z**2) / (2 * 5**2)).astype(np.float32)
    method = Method(lr_type="kspace")
    operator = degradation_of(image.shape, method)
    pair = LRVolume(
        image,
        operator.degrade(image),
        operator,
        (slice(None),) * 3,
        image.shape,
        1.0,
        image > 0,
        hr=image,
    )
    # A shift by a tenth of a voxel would change it by 0.01.
    assert np.abs(best_spline(pair) - image).max() < 1e-3
