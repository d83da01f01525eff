"""Brains so thin that they lie between the voxels of the LR volume."""
from dataclasses import replace

import numpy as np
import pytest
from conftest import read_rows, run_here
from synthetic import brain, save

from degrading.back_projection import Projection, operators_between
from degrading.banded import apply_operators, banded
from degrading.degradation import degradation_of
from disk.filters import PRETRAINED, load_filters
from filter_constant import PRESETS, Method, Request
from get_lar import make_pair
from restoring.steps import restore, whole_of

SIDE = 40
BEST = replace(Method(), **PRESETS["best"])


def planes(first, count, axis=0, shape=(SIDE, SIDE, SIDE)):
    """A volume that is black but for some planes across an axis."""
    place = [slice(None)] * 3
    place[axis] = slice(first, first + count)
    volume = np.zeros(shape, np.float32)
    volume[tuple(place)] = 400 + 200 * np.random.default_rng(0).random(volume[tuple(place)].shape)
    return volume


@pytest.fixture
def folder(tmp_path):
    """A brain of two planes, which a factor of 4 or 5 steps over, and a whole one."""
    for factor, first in ((4, 19), (5, 13)):
        save(tmp_path / f"x{factor}" / "thin.nii", planes(first, 2))
        save(tmp_path / f"x{factor}" / "whole.nii", brain(0, (SIDE, SIDE, SIDE)))
    return tmp_path


def test_a_brain_between_the_voxels_is_named_and_the_others_are_restored(folder, capsys):
    assert run_here("test", "--factor", 4, "--no-report", "--test_dir", folder / "x4",
                    "--result_dir", folder / "out") == 1
    assert "thin.nii: when it is degraded, no voxel above zero is left" in capsys.readouterr().err
    (table,) = (folder / "out").glob("*/metrics.csv")
    assert [row["volume"] for row in read_rows(table)] == ["whole.nii"]


def test_a_brain_between_the_voxels_is_named_and_the_others_are_learned_from(folder, capsys):
    assert run_here("train", "--preset", "best", "--factor", 5, "--stages", 1, "--leaves", 4,
               "--filter_len", 5, "--train_dir", folder / "x5", "--arrays_dir",
               folder / "arrays") == 1
    assert "thin.nii: when it is degraded, no voxel above zero is left" in capsys.readouterr().err
    assert (folder / "arrays" / "settings_5.json").is_file()


@pytest.mark.parametrize("start", ["quadratic", "projected"])
@pytest.mark.parametrize("factor", [2, 3, 4, 5, 6, 8])
def test_a_thin_brain_makes_a_pair_that_holds_something_or_is_refused(factor, start):
    method = replace(BEST, factor=(factor,) * 3, start=start)
    made = 0
    for axis in range(3):
        for first in range(16, 25):
            for count in (1, 2):
                try:
                    pair = make_pair(planes(first, count, axis), method)
                except ValueError as fault:
                    assert "too thin for the factor" in str(fault)
                else:
                    assert pair.low.any() and np.isfinite(pair.lr).all()
                    made += 1
    assert made


def test_of_a_box_that_no_voxel_sees_an_lr_volume_says_nothing():
    operator = degradation_of((SIDE, SIDE, SIDE), replace(BEST, factor=(4, 4, 4)))
    low = np.ones(operator.low_shape, np.float32)
    box = slice(19, 20), slice(0, SIDE), slice(0, SIDE)
    matrices = [operator.matrix(axis) for axis in range(3)]
    operators = [operators_between(*axis) for axis in zip(matrices, box, strict=True)]
    projection = Projection(low, operators, np.ones((1, SIDE, SIDE), bool))
    assert not projection.start().any()
    estimate = np.full((1, SIDE, SIDE), 0.5, np.float32)
    np.testing.assert_array_equal(projection.refine(estimate), estimate)


def test_planes_outside_the_box_that_no_voxel_sees_do_no_harm():
    """The grid of the larger volume steps over this brain, that of the volume itself does not."""
    stages, method, *_ = load_filters(Request.of(factor=(4, 4, 4), arrays_dir=str(PRETRAINED)))
    data = planes(7, 1, shape=(56, SIDE - 2, SIDE))
    pair = make_pair(data, method)
    whole = whole_of(data, pair, restore(pair, stages, method), stages, method, None)
    assert whole[:, :36].any() and np.isfinite(whole).all()


@pytest.mark.parametrize("diagonal", [[0.5], [1, 0.5, 0.25], [0]])
def test_a_diagonal_matrix_is_applied(diagonal):
    volume = np.random.default_rng(0).random((len(diagonal), 2, 3), np.float32)
    same = banded(np.eye(2)), banded(np.eye(3))
    found = apply_operators(volume, (banded(np.diag(np.array(diagonal, float))), *same))
    np.testing.assert_array_equal(found, volume * np.float32(diagonal)[:, None, None])
