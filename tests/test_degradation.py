"""degrading/degradation.py: every operator passes the same table of tests."""
import numpy as np
import pytest
from scipy.ndimage import zoom

from degrading.degradation import OPERATORS, degradation_of
from filter_constant import LR_TYPES, PROFILES, Method

KINDS = [
    {"lr_type": "interpolation"},
    {"lr_type": "interpolation", "grid": "edges"},
    {"lr_type": "average"},
    {"lr_type": "kspace"},
    {"lr_type": "kspace", "kspace_keep": "auto"},
    *({"lr_type": "scan", "profile": (profile,)} for profile in PROFILES),
]
FACTORS = [(2, 2, 2), (3, 3, 3), (1, 1, 4), (2, 1, 3)]
every_kind = pytest.mark.parametrize(
    "kind", KINDS, ids=lambda kind: " ".join(map(str, kind.values())))
every_factor = pytest.mark.parametrize("factor", FACTORS, ids=str)


def operator_of(kind, factor, shape=(12, 18, 24)):
    return degradation_of(shape, Method(factor=factor, **kind))


def random_volume(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def test_every_type_of_lr_is_in_the_table():
    assert {kind["lr_type"] for kind in KINDS} == set(OPERATORS) == set(LR_TYPES)


@pytest.mark.parametrize("start, order", [("cubic", 3), ("quintic", 5)])
@pytest.mark.parametrize("grid", ["centers", "edges"])
def test_interpolating_is_the_spline_of_the_order_that_is_asked_for(start, order, grid):
    low = random_volume((6, 7, 8))
    operator = degradation_of((12, 14, 16), Method(start=start, grid=grid), low.shape)
    expected = zoom(low, 2, order=order,
                    mode="grid-mirror" if grid == "edges" else "mirror", grid_mode=grid == "edges")
    inner = np.s_[2:-2, 2:-2, 2:-2]
    np.testing.assert_allclose(operator.interpolate(low)[inner],
                               np.maximum(expected, 0)[inner], atol=1e-5)


@every_kind
@every_factor
def test_degrading_equals_the_matrices_of_the_axes(kind, factor):
    operator = operator_of(kind, factor)
    image = random_volume(operator.shape)
    matrices = [operator.matrix(axis) for axis in range(3)]
    by_matrices = np.einsum("xyz,ax,by,cz->abc", image, *matrices, optimize=True)
    assert by_matrices.shape == operator.low_shape
    np.testing.assert_allclose(operator.forward(image), by_matrices, atol=1e-5)


@every_kind
@every_factor
def test_an_axis_of_factor_one_is_left_alone(kind, factor):
    operator = operator_of(kind, factor)
    for axis in (axis for axis in range(3) if factor[axis] == 1):
        matrix = operator.matrix(axis)
        if np.iscomplexobj(matrix):  # the whole spectrum: brought back by its inverse
            matrix = len(matrix) * matrix.conj().T @ matrix
        np.testing.assert_allclose(matrix, np.eye(operator.shape[axis]), atol=1e-9)
        assert operator.step_and_start(axis) == (1, 0)


@every_kind
@every_factor
def test_fine_voxels_lie_where_interpolating_puts_them(kind, factor):
    """A wave that the LR grid holds well is interpolated to what it is at the places given.

    A shift by a tenth of an LR voxel would change it by 0.04.
    """
    operator = operator_of(kind, factor, (48, 48, 48))
    axis = int(np.argmax(factor))
    n = operator.low_shape[axis]
    wave = [1] * 3
    wave[axis] = -1

    def at(places):
        return 2 + np.cos(2 * np.pi * np.asarray(places) / n).reshape(wave)

    low = np.ones(operator.low_shape, np.float32) * at(np.arange(n)).astype(np.float32)
    step, start = operator.step_and_start(axis)
    fine = operator.spline(low)
    places = start + step * np.arange(operator.shape[axis])
    inside = (places >= 4) & (places <= n - 5)  # a spline mirrors at the faces, the wave does not
    error = (fine - at(places)).take(np.flatnonzero(inside), axis=axis)
    assert inside.any() and np.abs(error).max() < 0.01


@every_kind
def test_there_and_back_keeps_the_grid(kind):
    """Degrading what was interpolated gives about what there was: no shift of a part of a voxel."""
    operator = operator_of(kind, (2, 2, 2), (48, 48, 48))
    grid = np.meshgrid(*(np.linspace(-1, 1, side) for side in operator.shape), indexing="ij")
    bump = np.exp(-8 * sum((axis - 0.1) ** 2 for axis in grid)).astype(np.float32)
    low = operator.degrade(bump)
    fine = operator.spline(low)
    again, shifted = operator.degrade(fine), operator.degrade(np.roll(fine, 1, 0))
    error = np.abs(again - low).max()
    blurred = kind.get("profile") == ("hamming",)  # twice, which takes more than a shift's third
    assert error < (0.6 if blurred else 0.3) * np.abs(shifted - low).max()


@every_kind
@every_factor
def test_what_the_lr_volume_says_leaves_the_original_alone(kind, factor):
    """The original agrees with its LR volume: data consistency has next to nothing to correct."""
    operator = operator_of(kind, factor, (24, 24, 24))
    image = np.clip(random_volume(operator.shape, 4), 0.01, 1)
    low = operator.degrade(image)
    asks = operator.masked or np.iscomplexobj(low)  # a magnitude image has lost signs
    if asks:  # a scan of unknown blur demands nothing
        whole = (slice(None),) * 3
        mask = np.ones(operator.shape, bool)
        correction = operator.consistency(low, whole, mask).correction(image)
        assert np.abs(correction).max() < 2e-3


@every_factor
def test_the_nearest_lr_voxel_of_means_of_blocks_is_its_own_block(factor):
    operator = operator_of({"lr_type": "average"}, factor)
    low = random_volume(operator.low_shape, 5)
    blocks = low
    for axis in range(3):
        blocks = np.repeat(blocks, factor[axis], axis=axis)
    np.testing.assert_array_equal(operator.nearest(low), blocks)
