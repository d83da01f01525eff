"""Splines along long axes: made in blocks of columns, to the bit as all at once."""
import tracemalloc

import numpy as np
import pytest

from degrading import spline
from degrading.banded import banded
from degrading.spline import prefilter_operator, spline_matrix, zoom_matrix, zoom_operator


@pytest.mark.parametrize("grid", ["centers", "edges", "first"])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("n_in", [2, 100, 129, 300])
def test_blocks_of_columns_give_the_matrix_of_all_at_once(monkeypatch, n_in, order, grid):
    zoom_operator.cache_clear(), prefilter_operator.cache_clear()
    monkeypatch.setattr(spline, "COLUMNS", 1000)
    whole = banded(zoom_matrix(n_in, 2 * n_in, order, True, grid))
    filtered = banded(spline_matrix(n_in, np.arange(n_in) + 0.25, order, at_faces=True))
    monkeypatch.setattr(spline, "COLUMNS", 64)
    parts = zoom_operator(n_in, 2 * n_in, order, True, grid)
    found = spline.spline_operator(n_in, np.arange(n_in) + 0.25, order, at_faces=True)
    zoom_operator.cache_clear()
    for one, other in ((whole, parts), (filtered, found)):
        np.testing.assert_array_equal(one.start, other.start)
        np.testing.assert_array_equal(one.weights, other.weights)


def test_memory_grows_with_an_axis_not_with_its_square():
    peaks = []
    for side in (512, 2048):
        zoom_operator.cache_clear(), prefilter_operator.cache_clear()
        tracemalloc.start()
        zoom_operator(side, 2 * side, 5, False, "edges")
        prefilter_operator(side, 5, True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 6 * peaks[0] < 100e6
