"""hashtable.py: gradient features of voxels."""

import naive
import numpy as np
import pytest

import hashtable
from filter_constant import FEATURE_TYPES, Method
from hashtable import features, interior_voxels
from machine import threads


def grid(shape):
    return np.meshgrid(*(np.arange(side, dtype=np.float32) for side in shape), indexing="ij")


def ramp(shape, direction):
    along = sum(np.float32(step) * axis for step, axis in zip(direction, grid(shape)))
    return along / np.float32(sum(shape))


def ball(shape):
    squares = sum((axis - side // 2) ** 2 for axis, side in zip(grid(shape), shape))
    return np.sqrt(squares).astype(np.float32) / 20


def one_voxel(shape):
    volume = np.zeros(shape, np.float32)
    volume[tuple(side // 2 for side in shape)] = 1
    return volume


def random(shape):
    return np.random.default_rng(20).random(shape, np.float32)


VOLUMES = {
    "random": random,
    "faint": lambda shape: random(shape) * np.float32(1e-4),
    "constant": lambda shape: np.full(shape, 0.5, np.float32),
    "zero": lambda shape: np.zeros(shape, np.float32),
    "ramp along x": lambda shape: ramp(shape, (1, 0, 0)),  # a plane: two eigenvalues are zero
    "ramp along z": lambda shape: ramp(shape, (0, 0, 1)),
    "oblique ramp": lambda shape: ramp(shape, (1, -2, 0.5)),
    # A line: one eigenvalue is zero.
    "cylinder": lambda shape: (
        np.hypot(grid(shape)[0] - shape[0] // 2, grid(shape)[1] - shape[1] // 2) / 20
    ),
    "ball": ball,  # at its centre all three eigenvalues are equal
    "one bright voxel": one_voxel,
    # Central differences see nothing of this one.
    "checkerboard": lambda shape: (sum(grid(shape)) % 2).astype(np.float32),
    "step": lambda shape: (grid(shape)[1] > shape[1] // 2).astype(np.float32),
}


def compare_with_twin(lr, method):
    """Features of all interior voxels against the twin's.

    Returns the fraction of voxels whose direction was compared.
    """
    voxels = interior_voxels(np.ones(lr.shape, bool), method.grad_len // 2)
    found = features(lr, voxels, method)
    indices = naive.interior(np.ones(lr.shape, bool), method.grad_len // 2)
    twins = naive.features(lr, indices, method.grad_len, method.feature_type)
    assert found.strength.shape == (len(twins),)

    # The tensor is float32: its entries, and so the eigenvalues, are right to about 1e-6 of the
    # largest.
    np.testing.assert_allclose(found.strength, [twin[2] for twin in twins], rtol=3e-6, atol=1e-12)
    for coherence, (values, _, _, twin) in zip(found.coherence, twins):
        # Coherence takes roots of eigenvalues: where the second is near zero, 1e-6 becomes 1e-3.
        second = max(values[1], 0) / values[0] if values[0] > 1e-12 else 0
        assert abs(coherence - twin) < (
            2e-3 if second < 1e-2 or values[2] < 1e-2 * values[0] else 5e-5
        )

    compared = 0
    for classes, (values, vector, _, _) in zip(found.angle, twins):
        bins = np.array(naive.angles(vector)) / np.pi * (method.q_angle_p, method.q_angle_t)
        well_known = values[0] > 1e-12 and values[1] < 0.999 * values[0]
        # A direction is known to about 1e-3 of a bin then; a class can only be demanded away from
        # the bins' edges. Near the pole the azimuth hangs on rounding as well.
        pole = np.hypot(vector[0], vector[1]) < 1e-3
        if well_known and (np.abs(bins - np.rint(bins)) > 5e-3).all() and not pole:
            assert tuple(classes) == naive.angle_classes(
                vector, method.q_angle_p, method.q_angle_t
            )
            compared += 1
    return compared / len(twins)


# ---- against the released code


def test_features_are_the_released_codes(golden):
    found = features(golden.lr, golden.voxels, golden.method)
    # float32 sums of 729 terms; in the coherence the roots magnify the rounding of small
    # eigenvalues (measured: 7e-6)
    np.testing.assert_allclose(found.strength[::3], golden.features[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found.coherence[::3], golden.features[:, 1], atol=5e-5)


# ---- features against the twin


@pytest.mark.parametrize("feature_type", FEATURE_TYPES)
@pytest.mark.parametrize("kind", VOLUMES)
def test_features_equal_the_literal_ones(kind, feature_type):
    compare_with_twin(VOLUMES[kind]((9, 8, 10)), Method(grad_len=5, feature_type=feature_type))


@pytest.mark.parametrize(
    "options",
    [
        dict(grad_len=3),
        dict(grad_len=5, q_angle_p=5, q_angle_t=7),
        dict(grad_len=7, q_angle_p=1),
        dict(grad_len=9, q_angle_p=24, q_angle_t=1),
        dict(grad_len=9),
    ],
    ids=str,
)
def test_window_and_angle_bins_do_what_they_say(options):
    assert compare_with_twin(random((12, 11, 13)), Method(**options)) > 0.5


@pytest.mark.parametrize("shape", [(9, 9, 9), (9, 10, 30), (30, 9, 9), (9, 30, 10)])
def test_windows_that_reach_the_faces_use_one_sided_gradients(shape):
    assert compare_with_twin(random(shape), Method(grad_len=9)) > 0.5


def test_features_of_some_voxels_are_those_of_all_at_these_voxels(brain):
    method = Method(grad_len=5)
    lr = brain / brain.max()
    voxels = interior_voxels(lr != 0, 2)
    whole = features(lr, voxels, method)
    for chosen in (
        np.arange(0, voxels.size, 7),
        np.arange(1),
        np.arange(voxels.size - 1, voxels.size),
        np.arange(0),
    ):
        for some, every in zip(features(lr, voxels[chosen], method), whole):
            np.testing.assert_array_equal(some, every[chosen])


def test_features_do_not_depend_on_the_number_of_threads(brain, monkeypatch):
    method, lr = Method(grad_len=5), brain / brain.max()
    voxels = interior_voxels(lr != 0, 2)
    by_threads = []
    for number in (1, 2, 5):
        monkeypatch.setattr(hashtable, "thread_count", lambda number=number: number)
        monkeypatch.setattr(threads, "thread_count", lambda number=number: number)
        by_threads.append(features(lr, voxels, method))
    for other in by_threads[1:]:
        for one, two in zip(by_threads[0], other):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("feature_type", FEATURE_TYPES)
def test_features_scale_as_their_formulas_say(feature_type):
    lr, method = random((11, 11, 11)), Method(feature_type=feature_type)
    voxels = interior_voxels(lr != 0, 4)
    full, half = features(lr, voxels, method), features(lr / 2, voxels, method)
    np.testing.assert_allclose(half.strength, full.strength / 4, rtol=1e-5)
    np.testing.assert_allclose(half.coherence, full.coherence, atol=1e-5)


def test_no_gradient_is_no_strength_and_no_coherence():
    for feature_type in FEATURE_TYPES:
        found = features(
            np.full((9, 9, 9), 0.7, np.float32),
            np.array([364]),
            Method(feature_type=feature_type),
        )
        assert found.strength == found.coherence == 0 and not found.angle.any()


def test_azimuth_and_inclination_are_those_of_the_gradient():
    # Azimuth 45 degrees: class 2 of 8 begins there; a little off it, to be on no edge.
    lr = ramp((9, 9, 9), (1, 1, 0))
    lr += ramp((9, 9, 9), (0, 0.1, 0.05))
    found = features(lr, np.array([364]), Method())
    assert tuple(found.angle[0]) == (2, 3)
    found = features(np.ascontiguousarray(lr[::-1]), np.array([364]), Method())
    assert tuple(found.angle[0]) == (5, 3)  # mirrored at x: azimuth 180 degrees less what it was
    found = features(np.ascontiguousarray(lr[::-1, ::-1]), np.array([364]), Method())
    # Turned by 180 degrees about z: its other end has the same azimuth.
    assert tuple(found.angle[0]) == (2, 4)
