"""Arrange the filters of tree leaves for the pictures of report/filter_pictures.py."""
import numpy as np


def leaves_in_rows(values, counts, columns=32):
    """Arrange values of each stage's leaves in rows, the leaves with most samples first.

    Parameters
    ----------
    values : list of ndarray, shape (leaves, ...)
        Values of each stage.
    counts : list of ndarray, shape (leaves,)
        Number of samples of each leaf, for each stage.
    columns : int, optional

    Returns
    -------
    values : ndarray of float32, shape (stages * columns * rows, ...)
        NaN where a stage has fewer leaves.
    classes, names : tuple
        Arguments for `report.filter_pictures`.
    """
    rows, shape = -(-max(map(len, values)) // columns), values[0].shape[1:]
    grid = np.full((len(values), rows * columns, *shape), np.nan, np.float32)
    for stage, (part, count) in enumerate(zip(values, counts, strict=True)):
        grid[stage, :len(part)] = part[np.argsort(-count, kind="stable")]
    grid = grid.reshape(len(values), rows, columns, *shape).swapaxes(1, 2)
    names = ("stage", "column", "row, by samples")
    return grid.reshape(-1, *shape), (len(values), columns, rows), names


def as_cubes(weights, displacements):
    """Filters as cubes of weights around the centre.

    Parameters
    ----------
    weights : ndarray, shape (n, taps or more)
        Further weights (of the initial estimate) are left out.
    displacements : ndarray of int, shape (taps, 3)

    Returns
    -------
    ndarray of float32, shape (n, side**3)
    """
    reach = np.abs(displacements).max()
    cubes = np.zeros((len(weights), *3 * [2 * reach + 1]), np.float32)
    x, y, z = (displacements + reach).T
    cubes[:, x, y, z] = weights[:, :len(displacements)]
    return cubes.reshape(len(weights), -1)
