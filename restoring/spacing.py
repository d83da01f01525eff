"""Plan the steps from a volume's voxel sizes to the requested ones, for --voxel_size.

Filters exist for integer factors only. For any other ratio of voxel sizes, filters for a near
factor are used. Their result is about as fine as requested; a spline then resamples it to the exact
voxel sizes. Nothing in this file reads files or applies filters.
"""
from typing import NamedTuple

import numpy as np

from degrading.banded import apply_operators, banded_by_columns, identity
from degrading.spline import spline_columns, spline_operator
from disk.filters import tags
from nifti.geometry import ratio_of_lengths

SAME = 1e-5  # relative: a smaller difference of voxel sizes comes from rounding in headers
LEAST_RATIO = 1.1  # an axis that becomes finer by less than this ratio needs no filters
LEAST_REST = 1.5  # the same limit for the ratio that remains after filters for all axes together
# A ratio may exceed the factor of its filters by this much; from a ratio of 3 on, by the second
# value. For larger ratios, the filters of the next factor are better (see docs/scan_figures.md).
OVER, OVER_FROM_3 = 0.2, 0.5
SUB_VOXELS = 8  # number of positions that are averaged for a voxel that becomes larger


class FineEnough(ValueError):
    """The error for voxels that are as small as requested."""


class Route(NamedTuple):
    """The steps from a volume to the requested voxel sizes."""

    factors: list  # of tuple of three int: factors of the filters, in the order of their use
    sizes: tuple | None  # of three float: voxel sizes after the last spline; None without one
    most: bool = False  # True if an axis needs a larger factor than any filters have

    @property
    def factor(self):
        """The total factor of the filters along each axis."""
        return tuple(int(product) for product in np.prod(self.factors, axis=0))


def route_to(asked, sizes, there, unit="mm"):
    """Choose the filters for the requested voxel sizes.

    Parameters
    ----------
    asked, sizes : sequence of three float
        Requested voxel sizes, and voxel sizes of the volume.
    there : iterable of tuple of three int
        Factors of the available filters, in any order of axes.
    unit : str, optional
        Unit of the sizes.

    Returns
    -------
    Route

    Raises
    ------
    FineEnough
        If no axis becomes finer.
    ValueError
        If there are no filters for the axes that do.

    Examples
    --------
    >>> scan = [(2, 2, 2), (3, 3, 3), (1, 1, 2), (1, 1, 4), (1, 1, 5)]
    >>> route_to((1, 1, 1), (1, 1, 5.5), scan).factors
    [(1, 1, 5)]
    >>> route_to((0.5, 0.5, 0.5), (1, 1, 4), scan).factors
    [(2, 2, 2), (1, 1, 4)]
    """
    ratios = [ratio_of_lengths(size, goal) for size, goal in zip(sizes, asked, strict=True)]
    if max(ratios) < LEAST_RATIO:
        raise FineEnough(f"its voxels are {of_three(sizes, unit)} already, and "
                         f"{of_three(asked, unit)} is hardly finer: there is nothing "
                         "to restore; ask for smaller voxels")
    goal = tuple(asked)
    whole = tuple(round(ratio) for ratio in ratios)
    exact = all(_same(ratio, factor) for ratio, factor in zip(ratios, whole, strict=True))
    if exact and any(sorted(whole) == sorted(factor) for factor in there):
        return Route([whole], goal)
    cubes = {factor[0] for factor in there if len(set(factor)) == 1}
    single = {max(factor) for factor in there if sorted(factor)[1] == 1}
    rest, factors, most = np.array(ratios), [], False
    if cubes and rest.min() >= LEAST_RATIO:
        together = nearest(rest.min(), cubes)
        factors.append(3 * (together,))
        most = rest.min() >= max(cubes) + 1
        rest = np.array([ratio_of_lengths(ratio, together) for ratio in ratios])
    least = LEAST_REST if factors else LEAST_RATIO
    for axis in np.argsort(-rest, kind="stable"):  # the coarsest first
        if rest[axis] >= least and single:
            along = nearest(rest[axis], single)
            factors.append(tuple(along if a == axis else 1 for a in range(3)))
            most |= rest[axis] >= max(single) + 1
    if not factors:
        raise ValueError(f"there are no filters from voxels of {of_three(sizes, unit)} to "
                         f"{of_three(asked, unit)}; there are some for factor {tags(there)}; "
                         "learn others, or give --factor")
    return Route(factors, goal, bool(most))


def nearest(ratio, there):
    """Of the factors with filters, the one that suits a ratio of voxel sizes best.

    Examples
    --------
    >>> [nearest(ratio, {2, 3, 4, 5}) for ratio in (1.5, 2.1, 2.5, 3.5, 12.8)]
    [2, 2, 3, 3, 5]
    """
    over = OVER if ratio < 3 else OVER_FROM_3
    above = [factor for factor in there if factor + over >= ratio]
    return min(above, default=max(there))


def onto_sizes(fine, fine_to_low, low_shape, sizes, goal, least=0.0, background=0.0):
    """Resample a restored volume to exact voxel sizes; the middle of its field of view stays.

    Along an axis on which voxels become smaller, the cubic spline is evaluated at their centres. If
    voxels become larger by a ratio r, the spline is averaged over sqrt(r^2 - 1) fine voxels, so
    that the total width is one coarse voxel.

    Parameters
    ----------
    fine : ndarray of float32, shape (X, Y, Z)
    fine_to_low : ndarray, shape (4, 4)
        Matrix from voxels of `fine` to voxels of the LR volume.
    low_shape : tuple of three int
        Shape of the LR volume.
    sizes, goal : sequence of three float
        Voxel sizes of the LR volume, and the requested ones.
    least : float, optional
        Lowest intensity; results below it are clipped.
    background : float, optional
        The intensity of the background; None if there is none.

    Returns
    -------
    volume : ndarray of float32
        The resampled volume. It covers the field of view, to the nearest voxel. If `fine` already
        has the requested sizes, it is `fine` itself.
    to_low : ndarray, shape (4, 4)
        Matrix from voxels of `volume` to voxels of the LR volume.

    Examples
    --------
    >>> fine, to_low = np.arange(11, dtype=np.float32).reshape(1, 1, 11), np.diag([1, 1, 0.5, 1])
    >>> onto_sizes(fine, to_low, (1, 1, 6), (1, 1, 2), (1, 1, 1.25))[0].shape
    (1, 1, 10)
    """
    to_low, operators, middles = np.array(fine_to_low, float), [], []
    for axis, (side, low_side) in enumerate(zip(fine.shape, low_shape, strict=True)):
        step, start = fine_to_low[axis][axis], fine_to_low[axis][3]
        if _same(step * sizes[axis], goal[axis]):
            operators.append(identity(side))
            middles.append(np.arange(side))
            continue
        new_step = goal[axis] / sizes[axis]  # in LR voxels
        count = voxels_along(low_side, sizes[axis], goal[axis])
        new_start = (low_side - 1) / 2 - (count - 1) / 2 * new_step
        places = (new_start + new_step * np.arange(count) - start) / step
        operators.append(_mean_operator(side, places, new_step / step))
        middles.append(np.clip(np.rint(places).astype(int), 0, side - 1))
        to_low[axis, axis], to_low[axis, 3] = new_step, new_start
    if np.array_equal(to_low, fine_to_low):
        return fine, to_low
    volume = apply_operators(fine, operators)
    np.clip(volume, least, None, out=volume)
    if background is not None:  # the background keeps its intensity
        volume[fine[np.ix_(*middles)] == np.float32(background)] = background
    return volume, to_low


def voxels_along(side, size, goal):
    """Number of voxels of size `goal` that cover `side` voxels of size `size`, to the nearest one.

    Examples
    --------
    >>> voxels_along(35, 1.1, 1), voxels_along(35, 1.1000001, 1), voxels_along(35, 1.0999999, 1)
    (39, 39, 39)
    """
    return max(int(side * ratio_of_lengths(size, goal) + 0.5 + 1e-9), 1)


def _mean_operator(side, places, ratio):
    """Operator of a spline at `places`, averaged if `ratio` (new / old voxel size) is above 1."""
    if ratio <= 1:
        return spline_operator(side, places, 3, at_faces=True)
    width = np.sqrt(ratio**2 - 1)
    within = (np.arange(SUB_VOXELS) + 0.5) / SUB_VOXELS - 0.5
    columns = spline_columns(side, (places[:, None] + width * within).ravel(), 3, True, True)
    return banded_by_columns(len(places), side, lambda first, last: columns(first, last).reshape(
        len(places), SUB_VOXELS, last - first).mean(1))


def describe(route, sizes, unit="mm"):
    """Describe a route in words, for a volume with voxel sizes `sizes`.

    Examples
    --------
    >>> describe(Route([(1, 1, 5)], (1, 1, 1)), (1, 1, 5.5))
    'slices of 5.5 mm along axis 2: 5 times finer, then to 1 mm'
    >>> describe(Route([(2, 2, 2)], (1, 1, 1)), (2, 2, 2))
    'voxels of 2 x 2 x 2 mm: 2 times finer'
    """
    fine = [size / factor for size, factor in zip(sizes, route.factor, strict=True)]
    refined = [axis for axis in range(3) if route.factor[axis] > 1]
    left = [axis for axis in range(3) if not _same(fine[axis], route.sizes[axis])]
    most = " (the most that there are filters for)" if route.most else ""
    if len(route.factors) == 1 and len(set(route.factor)) == 1:
        text = f"voxels of {of_three(sizes, unit)}: {route.factor[0]} times finer"
        return text + (f"{most}, then to {of_three(route.sizes, unit)}" if left else "")
    parts = []
    for axis in refined:
        what = "slices" if len(refined) == 1 else "voxels"
        then = f"{most}, then to {route.sizes[axis]:.4g} {unit}" if axis in left else ""
        parts.append(f"{what} of {sizes[axis]:.4g} {unit} along axis {axis}: {route.factor[axis]} "
                     f"times finer{then}")
    parts += [f"axis {axis} from {sizes[axis]:.4g} to {route.sizes[axis]:.4g} {unit} by spline"
              for axis in left if axis not in refined]
    return "; ".join(parts)


def of_three(sizes, unit="mm"):
    """Voxel sizes in words.

    Examples
    --------
    >>> of_three((0.5, 0.5, 2.0))
    '0.5 x 0.5 x 2 mm'
    """
    return " x ".join(f"{size:.4g}" for size in sizes) + f" {unit}"


def _same(one, other):
    return abs(one - other) <= SAME * abs(other)
