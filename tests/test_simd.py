"""machine/simd.py: kernels that work on whole vectors."""
import numpy as np
import pytest

from machine.simd import LANES, correlate


@pytest.mark.parametrize("count", [1, LANES, LANES + 1])
def test_correlating_fills_whole_vectors_from_the_first_place_on_and_nothing_else(count):
    random, filled = np.random.default_rng(0), -(-count // LANES) * LANES
    x, weights = random.random(80, np.float32), random.random(5, np.float32)
    result = np.full(90, 7, np.float32)
    correlate(x, 3, 4, weights, result, 20, count)
    expected = [weights @ x[3 + k:][:17:4] for k in range(filled)]
    np.testing.assert_allclose(result[20:20 + filled], expected, rtol=1e-6)
    assert (np.delete(result, slice(20, 20 + filled)) == 7).all()
