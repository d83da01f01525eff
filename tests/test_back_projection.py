"""degrading/back_projection.py: what a low-resolution volume says of the fine one."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic import brain, degrade

from degrading.back_projection import returning
from degrading.degradation import degradation_of
from filter_constant import Method
from get_lar import best_spline, make_pair

PROJECTED = Method(
    start="projected", feature_space="octahedral", filter_len=7, back_projections=2
)
KINDS = [
    {"factor": (2, 2, 2)},
    {"factor": (3, 3, 3)},
    {"factor": (4, 4, 4)},
    {"factor": (1, 1, 4)},
    {"grid": "edges"},
    {"lr_type": "average", "grid": "edges"},
    {"lr_type": "kspace"},
    {"lr_type": "kspace", "kspace_keep": "auto"},
]
KIND_IDS = [" ".join(f"{name} {value}" for name, value in kind.items()) for kind in KINDS]


def error(estimate, pair):
    return float(np.mean((estimate - pair.hr)[pair.hr != 0] ** 2))


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.get("lr_type") != "kspace"], ids=str
)
def test_the_matrices_of_the_axes_degrade_as_the_volume_was_degraded(kind):
    method = replace(PROJECTED, **kind)
    volume = np.random.default_rng(0).random((24, 36, 48), np.float32)
    low = degrade(volume, method)
    matrices = [degradation_of(volume.shape, method).matrix(axis) for axis in range(3)]
    np.testing.assert_allclose(
        np.einsum("xyz,ax,by,cz->abc", volume, *matrices, optimize=True), low, atol=1e-5
    )


def test_what_is_brought_back_is_the_least_squares_guess_under_the_covariance():
    """M minimises the expected |x - M y|^2 for y = D x + noise.

    (D C D^T + s I)^-1 against a dense solve of the joint normal.
    """
    degrading = degradation_of((20, 20, 20), PROJECTED).matrix(0)
    apart = np.abs(np.subtract.outer(np.arange(20), np.arange(20)))
    covariance = np.exp(-((apart / 5) ** 1.7))
    joint = np.block(
        [
            [covariance, covariance @ degrading.T],
            [degrading @ covariance, degrading @ covariance @ degrading.T + 1e-2 * np.eye(10)],
        ]
    )
    np.testing.assert_allclose(
        returning(degrading), joint[:20, 20:] @ np.linalg.inv(joint[20:, 20:]), atol=1e-9
    )


# In k-space, what was cut off leaves no trace.
@pytest.mark.parametrize("kind", KINDS[:-2], ids=KIND_IDS[:-2])
def test_a_start_from_what_is_known_is_nearer_to_hr_than_the_best_spline(kind):
    pair = make_pair(brain(shape=(36, 36, 36)), replace(PROJECTED, **kind))
    assert error(pair.lr, pair) < error(best_spline(pair), pair)
    assert pair.lr.min() >= 0 and pair.lr.max() <= 1 and pair.lr.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
def test_back_projecting_reduces_the_residual_and_clips(kind):
    method = replace(PROJECTED, **kind)
    pair = make_pair(brain(shape=(36, 36, 36)), method)
    noise = np.random.default_rng(1).normal(0, 0.05, pair.lr.shape).astype(np.float32)
    far = pair.lr + noise * (pair.lr > 0)
    near = pair.consistency.refine(far, 3)
    left, before = (np.abs(pair.consistency.correction(image)).mean() for image in (near, far))
    assert left < 0.5 * before
    assert near.min() >= 0 and near.max() <= 1 and not near[~pair.consistency.mask].any()


def test_no_times_only_clips_to_what_is_known():
    pair = make_pair(brain(shape=(20, 22, 24)), PROJECTED)
    wild = pair.lr * 3 - 0.5
    expected = np.where(pair.mask, np.clip(wild, 0, 1), 0)
    np.testing.assert_array_equal(pair.consistency.refine(wild, 0), expected.astype(np.float32))


@pytest.mark.parametrize("axis", range(3))
def test_the_start_of_a_flipped_volume_is_the_flipped_start(axis):
    volume = brain(shape=(24, 28, 32))
    straight, flipped = (np.zeros(volume.shape, np.float32) for _ in range(2))
    for source, target in ((volume, straight), (np.flip(volume, axis).copy(), flipped)):
        pair = make_pair(source, PROJECTED)
        target[pair.box] = pair.lr
    np.testing.assert_allclose(np.flip(flipped, axis), straight, atol=1e-5)
