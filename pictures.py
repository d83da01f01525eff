"""Pictures as PNG bytes: of a restored volume beside the others, and of what was learned. Nothing here touches disk."""
import io

import matplotlib
import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from crop_black import tight_box

SURROUND = 3  # voxels of black left around the brain
PLANES = ("sagittal", "coronal", "axial")  # across the first, second and third axis of a canonical (RAS) volume
EDGES = (("A", "P", "S", "I"), ("L", "R", "S", "I"), ("L", "R", "A", "P"))  # left, right, top, bottom of each plane


def canonical(images, affine):
    """Cut off the black surround and turn volumes so that their axes run nearest to right, anterior, superior.

    Parameters
    ----------
    images : dict of str to ndarray, shape (X, Y, Z)
    affine : ndarray, shape (4, 4)

    Returns
    -------
    images : dict of str to ndarray
    sizes : ndarray, shape (3,)
        Of a voxel, mm, along the turned axes.
    """
    turn = nib.io_orientation(affine)
    order = np.argsort(turn[:, 0])
    first = next(iter(images.values()))
    box = tuple(slice(max(side.start - SURROUND, 0), side.stop + SURROUND) for side in tight_box(first)) if first.any() else ...
    turned = {name: nib.apply_orientation(image[box], turn) for name, image in images.items()}
    return turned, nib.affines.voxel_sizes(affine)[order]


def plane(image, axis, place):
    """A slice as it is shown: superior (or anterior) at the top; in the sagittal plane anterior at the left."""
    shown = np.take(image, place, axis).T[::-1]
    return shown[:, ::-1] if axis == 0 else shown


def middle(image):
    """Where to cut: per axis the slice that holds most signal."""
    return tuple(int(np.argmax(image.sum(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3))


def picture(images, affine, compare=True):
    """A PNG of three planes: each image, and with `compare` the error maps of all but the first image against it.

    Parameters
    ----------
    images : dict of str to ndarray, shape (X, Y, Z), in [0, 1]
        The first is what the others are compared with, or the LR volume.
    affine : ndarray, shape (4, 4)
        Only its directions and voxel sizes are used.
    compare : bool
        Show error maps, all on one scale.

    Returns
    -------
    bytes
    """
    images, sizes = canonical(images, affine)
    names, volumes = list(images), list(images.values())
    cuts = middle(volumes[0])
    wrongs = [np.abs(volume - volumes[0]) for volume in volumes[1:]] if compare else []
    limit = max((np.quantile(wrong[wrong > 0], 0.99) if (wrong > 0).any() else 0 for wrong in wrongs), default=0) or 1
    columns = len(volumes) + len(wrongs)
    shapes = [plane(volumes[0], axis, 0).shape * np.delete(sizes, axis)[::-1] for axis in range(3)]
    heights = [shape[0] / shape[1] for shape in shapes]
    width = 2.6
    figure = Figure(figsize=(columns * width, sum(heights) * width + (0.6 if compare else 0.29)), dpi=110, facecolor="black")
    FigureCanvasAgg(figure)
    inch = 1 / figure.get_figheight()
    grid = figure.add_gridspec(3, columns, height_ratios=heights, left=0, right=1, bottom=(0.36 if wrongs else 0.02) * inch,
                               top=1 - 0.27 * inch, wspace=0.02, hspace=0.02)
    for axis in range(3):
        aspect = np.divide(*np.delete(sizes, axis)[::-1])
        eye = inset_place(volumes, axis, cuts[axis])
        for column, volume in enumerate(volumes + wrongs):
            axes = figure.add_subplot(grid[axis, column])
            axes.set_axis_off()
            error = column >= len(volumes)
            shown = plane(volume, axis, cuts[axis])
            how = {"cmap": "inferno" if error else "gray", "vmin": 0, "vmax": limit if error else 1, "interpolation": "nearest"}
            drawn = axes.imshow(shown, aspect=aspect, **how)
            if axis == 0:
                title = f"|{names[column - len(wrongs)]} - {names[0]}|" if error else names[column]
                axes.set_title(title, color="white", fontsize=10, pad=4)
            if eye and not error:
                draw_inset(axes, shown, eye, aspect, how)
    if wrongs:
        where = figure.add_axes([1 - 1.95 / columns, 0.19 * inch, 1.9 / columns, 0.07 * inch])
        bar = figure.colorbar(drawn, cax=where, orientation="horizontal", ticks=[0, limit])
        bar.ax.set_xticklabels(["0", f"{limit:.2f}"], color="white", fontsize=8)
        figure.text(1 - 1 / columns, 0.06 * inch, "error, of the range of intensities", color="white",
                    fontsize=8, ha="center")
        bar.ax.tick_params(length=0, pad=2)
        bar.outline.set_visible(False)
    return png(figure)


def inset_place(volumes, axis, cut):
    """Row, column and side of the square where the first image and the second differ most: where the eye should go."""
    first, second = (plane(volume, axis, cut) for volume in volumes[:2])
    side = max(min(first.shape) // 6, 8)
    if min(first.shape) < 2 * side:
        return None
    sums = np.pad(np.abs(first - second), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    squares = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return (*np.unravel_index(squares.argmax(), squares.shape), side)


def draw_inset(axes, shown, eye, aspect, how):
    """Enlarge a square of the slice in the corner that is darkest, and frame where it comes from."""
    row, column, side = eye
    colour = "#ffb000"
    axes.plot(np.array([0, 1, 1, 0, 0]) * side + column - 0.5, np.array([0, 0, 1, 1, 0]) * side + row - 0.5, colour, lw=0.8)
    third = [shown.shape[0] * 3 // 8, shown.shape[1] * 3 // 8]
    corners = {(x, y): shown[:third[0] if y else None, :][-third[0] if not y else 0:, (slice(-third[1], None) if x
               else slice(None, third[1]))].sum() for x in (0, 1) for y in (0, 1)}
    x, y = min(corners, key=corners.get)
    inset = axes.inset_axes([0.63 * x, 0.63 * y, 0.37, 0.37])
    inset.imshow(shown[row:row + side, column:column + side], aspect=aspect, **how)
    inset.set_anchor(("N" if y else "S") + ("E" if x else "W"))
    inset.set(xticks=[], yticks=[])
    for spine in inset.spines.values():
        spine.set_color(colour)


def picture_filters(h, classes, names=()):
    """A PNG of the centre slice of every filter, laid out by bucket; beside it what sets each apart from the mean of all.

    Parameters
    ----------
    h : ndarray, shape (buckets, P)
    classes : tuple of int
        Classes per feature.
    names : sequence of str
        Of the features.

    Returns
    -------
    bytes
    """
    side = round(h.shape[1] ** (1 / 3))
    maps, apart = [], h - np.nanmean(h, 0)
    for title, filters in (("Learned filters: the middle slice of each", h), ("The same, less the mean of all", apart)):
        slices = by_bucket(filters.reshape(-1, side, side, side)[:, side // 2], classes)
        tiles = np.full((slices.shape[0], side + 1, slices.shape[1], side + 1), np.nan, np.float32)
        tiles[:, :side, :, :side] = slices.transpose(0, 2, 1, 3)
        around = np.abs(slices)
        around[:, :, side // 2, side // 2] = 0  # the centre outweighs all others, and says least
        limit = np.nanquantile(around, 0.99) or 1
        maps.append((tiles.reshape(slices.shape[0] * (side + 1), -1), title, {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}))
    return maps_of_buckets(maps, slices.shape[:2], side + 1, classes, names, "weight")


def picture_counts(count, classes, names=()):
    """A PNG of how many samples each bucket saw, laid out as the filters are."""
    from matplotlib.colors import LogNorm

    grid = np.nan_to_num(by_bucket(np.asarray(count, float), classes))
    shades = LogNorm(max(np.min(grid[grid > 0], initial=grid.max()), 1) * 0.99, max(grid.max(), 10))
    return maps_of_buckets([(np.where(grid > 0, grid, np.nan), "Samples in each bucket (blank: none)",
                             {"cmap": "viridis", "norm": shades})], grid.shape, 1, classes, names, "samples")


def leaves_in_rows(values, counts, columns=32):
    """Lay out values of each stage's leaves, those with most samples first, as if they were buckets.

    Parameters
    ----------
    values : list of ndarray, shape (leaves, ...)
        One per stage.
    counts : list of ndarray, shape (leaves,)
        Samples of each leaf.

    Returns
    -------
    values : ndarray of float32, shape (stages * columns * rows, ...)
        Not a number where a stage has fewer leaves.
    classes, names : tuple
        As `picture_filters` and `picture_counts` take them.
    """
    rows = -(-max(map(len, values)) // columns)
    grid = np.full((len(values), rows * columns, *values[0].shape[1:]), np.nan, np.float32)
    for stage, (part, count) in enumerate(zip(values, counts, strict=True)):
        grid[stage, :len(part)] = part[np.argsort(-count, kind="stable")]
    grid = grid.reshape(len(values), rows, columns, *values[0].shape[1:]).swapaxes(1, 2)
    return grid.reshape(-1, *values[0].shape[1:]), (len(values), columns, rows), ("stage", "column", "row, by samples")


def as_cubes(weights, displacements):
    """Weights of taps, shape (n, taps or more), as cubes around the centre, shape (n, side**3); what is left over is dropped."""
    reach = np.abs(displacements).max()
    cubes = np.zeros((len(weights), *3 * [2 * reach + 1]), np.float32)
    x, y, z = (displacements + reach).T
    cubes[:, x, y, z] = weights[:, :len(displacements)]
    return cubes.reshape(len(weights), -1)


def by_bucket(values, classes):
    """Lay out values of buckets in rows, by the first, third, ... feature, and columns, by the second, fourth, ..."""
    odd, even = range(0, len(classes), 2), range(1, len(classes), 2)
    grid = values.reshape(*classes, -1).transpose(*odd, *even, len(classes))
    shape = [int(np.prod([classes[n] for n in axes])) for axes in (odd, even)]
    return grid.reshape(*shape, *values.shape[1:])


def maps_of_buckets(maps, grid, tile, classes, names, what):
    """A picture with one tile for each bucket; several maps (image, title, colours) stand side by side."""
    rows, columns = grid
    width, height = (min(max(number * 0.26, 3), 14) for number in (columns, rows))
    figure = Figure(figsize=(len(maps) * (width + 1.6), height + 0.9), dpi=130)
    FigureCanvasAgg(figure)
    for place, (image, title, how) in enumerate(maps, 1):
        axes = figure.add_subplot(1, len(maps), place)
        cmap = matplotlib.colormaps[how["cmap"]].with_extremes(bad="white")
        drawn = axes.imshow(image, interpolation="nearest", aspect="equal", **how | {"cmap": cmap})
        for first, axis, number in ((0, axes.yaxis, rows), (1, axes.xaxis, columns)):
            mine = [*zip(names, classes)][first::2]
            step = max(number // classes[first], 1) if first < len(classes) else 1
            ticks = np.arange(0, number, step)
            axis.set_ticks(ticks * tile + step * tile / 2 - 0.5, ticks // step, fontsize=8)
            within = ", ".join(f"within each {count} of {name}" for name, count in mine[1:])
            axis.set_label_text(f"class of {mine[0][0]}" + (f"; {within}" if within else "") if mine else "", fontsize=9)
        axes.tick_params(length=0)
        axes.set_title(title, fontsize=11)
        bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02)
        bar.set_label(what, fontsize=9)
        bar.ax.tick_params(labelsize=8)
    return png(figure, bbox_inches="tight")


def png(figure, **how):
    """A figure as PNG bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor=figure.get_facecolor(), **how)
    return file.getvalue()
