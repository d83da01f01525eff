"""structure_tensor.py: eigenvalues in closed form."""

import naive
import numpy as np
import pytest

from structure_tensor import eigen_3x3


def assert_eigen(tensor):
    """The closed form against LAPACK, on a matrix of any kind."""
    a = np.asarray(tensor, np.float64)
    l1, l2, l3, *v = eigen_3x3(a[0, 0], a[1, 1], a[2, 2], a[0, 1], a[0, 2], a[1, 2])
    values, vector = naive.eigen(a)
    # Where two eigenvalues meet, the arc cosine of the closed form is flat: right to the root of
    # float64's rounding, 1e-8.
    np.testing.assert_allclose((l1, l2, l3), values, atol=1e-7 * max(values[0], 1e-300))
    if not a.any():
        return
    assert np.linalg.norm(v) == pytest.approx(1, abs=1e-6)
    # It is an eigenvector, of the largest; less exactly so where the next one is nearer than 1e-12.
    exact = values[0] - values[1] > 1e-12 * values[0] or values[0] == values[1]
    np.testing.assert_allclose(a @ v, l1 * np.array(v), atol=(1e-6 if exact else 1e-3) * values[0])
    if values[1] < 0.99 * values[0]:
        assert abs(vector @ v) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3, 10])
def test_eigenvalues_of_random_tensors_are_lapacks(rank):
    rng = np.random.default_rng(rank)
    for _ in range(300):
        a = rng.standard_normal((3, rank))
        assert_eigen(a @ a.T)


@pytest.mark.parametrize(
    "values",
    [
        (1, 1, 1),
        (1, 1, 0),
        (1, 0, 0),
        (2, 2, 1),
        (2, 1, 1),
        (0, 0, 0),
        (1, 1 - 1e-6, 0),
        (1, 1 - 1e-9, 1 - 1e-9),
        (1, 1e-9, 1e-9),
        (1, 1 - 1e-13, 0.5),
    ],
    ids=str,
)
def test_eigenvalues_of_degenerate_tensors_are_lapacks(values):
    assert_eigen(np.diag(values))
    for axes in ((0, 2, 1), (1, 0, 2), (2, 1, 0)):
        assert_eigen(np.diag(np.array(values, float)[list(axes)]))
    rng = np.random.default_rng(22)
    for _ in range(50):
        turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        assert_eigen(turn * values @ turn.T)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_eigenvalues_do_not_hang_on_the_scale(size):
    rng = np.random.default_rng(23)
    for _ in range(50):
        a = rng.standard_normal((3, 3))
        assert_eigen(a @ a.T * size)


def test_line_along_each_axis_is_its_own_eigenvector():
    for axis in range(3):
        entries = np.zeros(6)
        entries[axis] = 4
        l1, l2, l3, *v = eigen_3x3(*entries)
        assert (l1, l2, l3) == pytest.approx((4, 0, 0), abs=1e-7)
        assert abs(v[axis]) == pytest.approx(1)
