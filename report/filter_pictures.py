"""Draw pictures of learned filters and of sample counts; they are returned as PNG bytes."""
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from report.pictures import png

TILE_INCHES, SHORTEST, LONGEST = 0.26, 3, 14  # side of a bucket's tile; limits of a map's sides


def picture_filters(h, classes, names=()):
    """A PNG of the centre slice of every filter, and of its difference from the mean filter.

    Parameters
    ----------
    h : ndarray, shape (buckets, P)
        NaN for buckets without a filter.
    classes : tuple of int
        Number of classes of each feature.
    names : sequence of str, optional
        Names of the features.

    Returns
    -------
    bytes
    """
    side = round(h.shape[1] ** (1 / 3))
    maps = []
    for title, filters in (("Learned filters: the middle slice of each", h),
                           ("Difference from the mean filter", h - np.nanmean(h, 0))):
        middles = filters.reshape(-1, side, side, side)[:, side // 2]
        slices = grid_of_buckets(middles, classes)  # (rows, columns, side, side)
        rows, columns = slices.shape[:2]
        tiles = np.full((rows, side + 1, columns, side + 1), np.nan, np.float32)
        tiles[:, :side, :, :side] = slices.transpose(0, 2, 1, 3)
        around = np.abs(slices)
        around[:, :, side // 2, side // 2] = 0  # the centre weight is far larger than the others
        limit = np.nanquantile(around, 0.99) or 1
        style = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        maps.append((tiles.reshape(rows * (side + 1), -1), title, style))
    return maps_of_buckets(maps, (rows, columns), side + 1, classes, names, "weight")


def picture_counts(count, classes, names=()):
    """A PNG of the number of samples in each bucket, in the layout of `picture_filters`.

    Parameters
    ----------
    count : array_like, shape (buckets,)
        NaN counts as 0.
    classes, names
        See `picture_filters`.

    Returns
    -------
    bytes
    """
    grid = np.nan_to_num(grid_of_buckets(np.asarray(count, float), classes))
    lowest = max(np.min(grid[grid > 0], initial=grid.max()), 1)
    style = {"cmap": "viridis", "norm": LogNorm(lowest * 0.99, max(grid.max(), 10))}
    seen = np.where(grid > 0, grid, np.nan)
    maps = [(seen, "Samples in each bucket (blank: none)", style)]
    return maps_of_buckets(maps, grid.shape, 1, classes, names, "samples")


def grid_of_buckets(values, classes):
    """Arrange values of buckets in rows and columns.

    Rows are the classes of the first, third, ... feature. Columns are the classes of the second,
    fourth, ... feature. In rows and in columns, the first feature varies slowest.

    Parameters
    ----------
    values : ndarray, shape (buckets, ...)
    classes : tuple of int
        Number of classes of each feature.

    Returns
    -------
    ndarray, shape (rows, columns, ...)

    Examples
    --------
    >>> grid_of_buckets(np.arange(8), (2, 2, 2))
    array([[0, 2],
           [1, 3],
           [4, 6],
           [5, 7]])
    """
    odd, even = range(0, len(classes), 2), range(1, len(classes), 2)
    grid = values.reshape(*classes, -1).transpose(*odd, *even, len(classes))
    shape = [int(np.prod([classes[n] for n in axes])) for axes in (odd, even)]
    return grid.reshape(*shape, *values.shape[1:])


def maps_of_buckets(maps, grid, tile, classes, names, what):
    """A PNG of maps side by side, each with one tile for each bucket.

    Parameters
    ----------
    maps : list of tuple
        For each map: pixels (ndarray of shape (rows * tile, columns * tile)), title, and options of
        ``imshow`` for colours.
    grid : tuple of two int
        Rows and columns.
    tile : int
        Side of a tile, pixels.
    classes, names
        See `picture_filters`.
    what : str
        Label of the colour bar.

    Returns
    -------
    bytes
    """
    rows, columns = grid
    width, height = (min(max(number * TILE_INCHES, SHORTEST), LONGEST)
                     for number in (columns, rows))
    figure = Figure(figsize=(len(maps) * (width + 1.6), height + 0.9), dpi=130)
    FigureCanvasAgg(figure)
    for place, (pixels, title, style) in enumerate(maps, 1):
        axes = figure.add_subplot(1, len(maps), place)
        cmap = matplotlib.colormaps[style["cmap"]].with_extremes(bad="white")
        mapped = axes.imshow(pixels, interpolation="nearest", aspect="equal",
                             **style | {"cmap": cmap})
        _label_classes(axes.yaxis, rows, tile, classes[::2], names[::2])
        _label_classes(axes.xaxis, columns, tile, classes[1::2], names[1::2])
        axes.tick_params(length=0)
        axes.set_title(title, fontsize=11)
        bar = figure.colorbar(mapped, ax=axes, fraction=0.04, pad=0.02)
        bar.set_label(what, fontsize=9)
        bar.ax.tick_params(labelsize=8)
    return png(figure, bbox_inches="tight")


def _label_classes(axis, number, tile, classes, names):
    """Label an axis of `number` tiles with the numbers of the classes and the names of features.

    Ticks mark the classes of the first feature. Within each class, the other features repeat.
    """
    step = max(number // classes[0], 1) if classes else 1
    ticks = np.arange(0, number, step)
    axis.set_ticks(ticks * tile + step * tile / 2 - 0.5, ticks // step, fontsize=8)
    label = ""
    if names:
        label = f"class of {names[0]}"
        within = ", ".join(f"within each {count} of {name}"
                           for name, count in zip(names[1:], classes[1:]))
        if within:
            label += f"; {within}"
    axis.set_label_text(label, fontsize=9)
