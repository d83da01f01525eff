"""published/structure_tensor.py: eigenvalues in closed form."""

import naive
import numpy as np
import pytest

from published.structure_tensor import BATCH, _angle_classes, eigen_batch


def eigen_of(entries):
    """l1, l2, l3, vx, vy, vz of each row of xx, yy, zz, xy, xz, yz."""
    found = []
    for first in range(0, len(entries), BATCH):
        part = np.asarray(entries[first : first + BATCH])
        w = np.zeros((13, BATCH))
        w[:6, : len(part)] = part.T
        eigen_batch(w.reshape(-1))
        found.append(w[6:12, : len(part)].T)
    return np.concatenate(found)


def eigen_3x3(*entries):
    return eigen_of([entries])[0].tolist()


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


def test_a_matrix_has_its_eigenvalues_whatever_the_others_of_its_batch_are():
    rng = np.random.default_rng(24)
    parts = rng.standard_normal((2 * BATCH + 7, 3, 3))
    parts[:20, 2] = 0  # of rank 2, 1 and 0
    parts[:10, 1] = parts[:5] = 0
    tensors = parts.transpose(0, 2, 1) @ parts
    tensors[20:30] = np.diag([1, 1, 0.5])  # equal eigenvalues
    tensors[30:34] = np.eye(3) * 1e-14
    entries = tensors[:, (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)]
    found = eigen_of(entries)
    np.testing.assert_array_equal(found, [eigen_3x3(*row) for row in entries])
    assert np.isfinite(found).all()


def test_equal_eigenvalues_of_float32_are_themselves():
    for size in (1.2298989e-14, 0.1, 3e5):
        entries = np.array([size] * 3 + [0] * 3, np.float32)
        assert eigen_3x3(*entries) == pytest.approx((*entries[:3], 0, 0, 1), rel=1e-7)


@pytest.mark.parametrize(
    "direction", [(1, 0, 0), (-1, 0, 0), (0, 0, 1), (0, 0, -1), (1, 0, 1), (-1, 0, 1)], ids=str
)
def test_directions_between_x_and_z_have_the_classes_of_the_twin(direction):
    v, edges = np.array(direction) / np.linalg.norm(direction), (5, 7)
    p, t = (np.arange(1, bins) * np.pi / bins for bins in edges)
    found = _angle_classes(*v, np.sin(p), np.cos(p), np.cos(t))
    assert found == naive.angle_classes(v, *edges)
