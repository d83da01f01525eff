"""Splines along the axes of a volume, as banded matrices.

``scipy.ndimage.zoom`` is separable: along one axis it multiplies by a small matrix, whose columns
are zoomed unit vectors. Each row of that matrix has few weights other than zero, so applying it
takes a few multiplications a voxel. The result is zoom's own, up to rounding (largest difference
measured: 3e-5 of a range of 120), some ten times faster.
"""
from functools import lru_cache

import numpy as np
from scipy.ndimage import spline_filter1d

from degrading.banded import COLUMNS, apply_operators, banded_by_columns, identity
from machine.threads import spans


def upsample(low, shape, order, prefilter=True, grid="centers"):
    """Bring a low-resolution volume to a finer grid by a spline; negative values become 0.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
    shape : tuple of three int
        Of the fine volume.
    order : int
        Of the spline: 2 is quadratic, 3 cubic.
    prefilter : bool, optional
        Whether the spline goes through the voxels, or only has them as coefficients, which blurs.
    grid : {"centers", "edges", "first"}, optional
        What the two grids share; see `spacing_and_start`.

    Returns
    -------
    ndarray of float32, of `shape`

    Examples
    --------
    >>> low = np.full((2, 2, 1), 3, np.float32)
    >>> low[1] = 6
    >>> upsample(low, (4, 2, 1), order=3)[:, 0, 0].round(3)
    array([3.   , 3.778, 5.222, 6.   ], dtype=float32)
    """
    sides = list(zip(low.shape, shape, strict=True))
    # Apart, since it has some forty weights a voxel, and the small volume has few voxels.
    coefficients = apply_operators(low, [
        prefilter_operator(n_in, order if prefilter and n_in != n_out else 0, grid == "edges")
        for n_in, n_out in sides])
    fine = apply_operators(coefficients, [zoom_operator(*pair, order, False, grid)
                                          for pair in sides])
    # Not in place where that is `low` itself, left alone along all axes.
    return np.clip(fine, 0, None, out=None if np.shares_memory(fine, low) else fine)


def spacing_and_start(n_in, n_out, grid):
    """Where the voxels of a finer grid lie along an axis.

    Parameters
    ----------
    n_in, n_out : int
        Voxels of the input and of the finer grid.
    grid : {"centers", "edges", "first"}
        ``centers``: the first and the last centres of both grids coincide, as in
        scipy.ndimage.zoom. ``edges``: the field of view is kept. ``first``: the first centres
        coincide and the step is n_in / n_out, as for a spectrum padded with zeros.

    Returns
    -------
    step : float
        From one output voxel to the next, in input voxels.
    start : float
        Place of the first output voxel, in input voxels.

    Examples
    --------
    >>> spacing_and_start(4, 8, "edges"), spacing_and_start(4, 8, "first")
    ((0.5, -0.25), (0.5, 0.0))
    """
    if n_in == n_out:
        return 1.0, 0.0
    if grid == "centers":
        return (n_in - 1) / max(n_out - 1, 1), 0.0
    step = n_in / n_out
    return step, (step - 1) / 2 if grid == "edges" else 0.0


@lru_cache(maxsize=64)
def zoom_operator(n_in, n_out, order, prefilter, grid="centers"):
    """`zoom_matrix` as a banded matrix."""
    if n_in == n_out:
        return identity(n_in)
    step, start = spacing_and_start(n_in, n_out, grid)
    return spline_operator(n_in, start + step * np.arange(n_out), order, prefilter,
                           at_faces=grid == "edges")


@lru_cache(maxsize=64)
def prefilter_operator(side, order, at_faces):
    """What makes the voxels along an axis the coefficients of the spline through them."""
    return banded_by_columns(side, side, lambda first, last: _coefficients(
        side, order, at_faces, first, last))


def _coefficients(side, order, at_faces, first, last):
    """The coefficients of the splines through some unit vectors: (side, last - first)."""
    units = np.zeros((side, last - first))
    units[np.arange(first, last), np.arange(last - first)] = 1
    if order < 2 or side < 2:
        return units
    return spline_filter1d(units, order, axis=0, mode="reflect" if at_faces else "mirror")


def zoom_matrix(n_in, n_out, order, prefilter, grid="centers"):
    """The spline along one axis of n_in voxels at the places of n_out voxels.

    On the grid ``centers`` it is what scipy.ndimage.zoom does with ``mode="mirror"``, on ``edges``
    what zoom does with ``grid_mode=True, mode="grid-mirror"``. A side that keeps its length is left
    alone, where zoom without prefilter would blur it.

    Returns
    -------
    matrix : ndarray of float64, shape (n_out, n_in)

    Examples
    --------
    >>> zoom_matrix(2, 3, order=1, prefilter=False)
    array([[1. , 0. ],
           [0.5, 0.5],
           [0. , 1. ]])
    """
    if n_in == n_out:
        return np.eye(n_in)
    step, start = spacing_and_start(n_in, n_out, grid)
    return spline_matrix(n_in, start + step * np.arange(n_out), order, prefilter,
                         at_faces=grid == "edges")


def spline_matrix(n_in, positions, order, prefilter=True, *, at_faces):
    """The values at `positions` of the splines that interpolate each unit vector.

    Without prefilter the unit vectors are the splines' coefficients instead. Beyond the ends the
    samples are mirrored: `at_faces` of the first and the last voxel, which are seen twice, since
    half of them is to be filled there; or about their centres.

    Returns
    -------
    matrix : ndarray of float64, shape (len(positions), n_in)
    """
    columns = spline_columns(n_in, positions, order, prefilter, at_faces)
    return np.hstack([columns(*span) for span in spans(n_in, COLUMNS)])


def spline_operator(n_in, positions, order, prefilter=True, *, at_faces):
    """`spline_matrix` as a banded matrix, in memory that grows with the sides, not their square."""
    columns = spline_columns(n_in, positions, order, prefilter, at_faces)
    return banded_by_columns(len(positions), n_in, columns)


def spline_columns(n_in, positions, order, prefilter, at_faces):
    """What gives the columns from `first` to `last` of `spline_matrix`: a callable."""
    # A place that misses a knot by rounding is put there, or it would fall into two pieces.
    knots = np.round(2 * positions) / 2
    positions = np.where(np.abs(positions - knots) < 1e-9, knots, positions)
    first = np.floor(positions + 0.5 * (order % 2 == 0)).astype(int) - order // 2
    taps = first[:, None] + np.arange(order + 1)
    weights = bspline(positions[:, None] - taps, order)
    if at_faces:
        taps = np.minimum(taps % (2 * n_in), (-1 - taps) % (2 * n_in))
    elif n_in > 1:
        period = 2 * (n_in - 1)
        taps = np.abs((taps + period // 2) % period - period // 2)
    else:
        taps = taps * 0

    def columns(first, last):
        coefficients = _coefficients(n_in, order if prefilter else 0, at_faces, first, last)
        return np.einsum("ot,otn->on", weights, coefficients[taps])

    return columns


def resizing_matrix(n_in, n_out):
    """What resamples an axis and keeps its field of view, by Lanczos' kernel of three lobes.

    Where the new spacing is coarser the kernel is as much wider, so that nothing folds back.

    Returns
    -------
    matrix : ndarray of float64, shape (n_out, n_in)
        Its rows sum to 1.

    Examples
    --------
    >>> resizing_matrix(4, 4).round(6).tolist() == np.eye(4).tolist()
    True
    """
    step, start = spacing_and_start(n_in, n_out, "edges")
    apart = (start + step * np.arange(n_out))[:, None] - np.arange(n_in)
    apart = apart / max(step, 1)
    weights = np.where(np.abs(apart) < 3, np.sinc(apart) * np.sinc(apart / 3), 0)
    return weights / weights.sum(1, keepdims=True)


def bspline(x, order):
    """The centred cardinal B-spline of this order at `x`, by its recursion.

    Examples
    --------
    >>> bspline(np.array([-1.0, 0.0, 1.0]), 2)
    array([0.125, 0.75 , 0.125])
    """
    if order == 0:
        return ((x >= -0.5) & (x < 0.5)).astype(float)
    half = (order + 1) / 2
    return ((half + x) * bspline(x + 0.5, order - 1)
            + (half - x) * bspline(x - 0.5, order - 1)) / order

