"""crop_black.py: the box around what is not black."""

import naive
import numpy as np
import pytest

from crop_black import black_crop_box


def as_pairs(box):
    return [(sides.start, sides.stop) for sides in box]


def test_box_is_the_released_codes(golden):
    shape = [side - side % golden.factor for side in golden.volume.shape]
    image = golden.volume[tuple(slice(side) for side in shape)]
    np.testing.assert_array_equal(
        as_pairs(black_crop_box(image, 5, golden.method.factor)), golden.slice_area
    )


@pytest.mark.parametrize("factor", [(2, 2, 2), (3, 3, 3), (4, 4, 4), (1, 1, 4)])
@pytest.mark.parametrize("padding", [1, 2, 5])
def test_box_equals_the_literal_one(factor, padding):
    rng = np.random.default_rng(padding)
    for _ in range(30):
        shape = rng.integers(2 * padding + 3, 30, 3)
        image = np.zeros(shape, np.float32)
        low = [rng.integers(0, side) for side in shape]
        high = [rng.integers(a, side) + 1 for a, side in zip(low, shape)]
        image[tuple(slice(a, b) for a, b in zip(low, high))] = (
            rng.random([b - a for a, b in zip(low, high)]) > 0.7
        )
        centre = tuple(side // 2 for side in shape)
        image[centre] = 1  # so that there is something inside the padding
        assert as_pairs(black_crop_box(image, padding, factor)) == naive.crop_box(
            image, padding, factor
        )


def test_single_bright_voxel_has_its_padding_around_it():
    image = np.zeros((20, 21, 22), np.float32)
    image[10, 11, 12] = 1
    # The stop is exclusive and counts from the voxel itself, as published: one voxel less after it
    # than before it.
    assert as_pairs(black_crop_box(image, 5, (1, 1, 1))) == [(5, 15), (6, 16), (7, 17)]


def test_start_is_rounded_down_to_a_multiple_of_the_factor():
    image = np.zeros((24, 24, 24), np.float32)
    image[10:14, 11:14, 12:14] = 1
    assert [start for start, _ in as_pairs(black_crop_box(image, 5, (4, 4, 4)))] == [4, 4, 4]


def test_volume_that_is_nowhere_black_keeps_its_shape_but_the_last_slice():
    # Published: the last slice that may end the box is the one before side - padding.
    assert as_pairs(black_crop_box(np.ones((15, 16, 17), np.float32), 5, (1, 1, 1))) == [
        (0, 14),
        (0, 15),
        (0, 16),
    ]


@pytest.mark.parametrize("shape", [(20, 20, 20), (4, 20, 20), (10, 20, 20), (1, 1, 1)])
def test_black_volume_is_refused(shape):
    with pytest.raises(ValueError, match="no voxel above zero"):
        black_crop_box(np.zeros(shape, np.float32), 5, (2, 2, 2))


def test_volume_thinner_than_the_padding_is_refused():
    with pytest.raises(ValueError, match="5 voxels"):
        black_crop_box(np.ones((10, 30, 30), np.float32), 5, (2, 2, 2))
