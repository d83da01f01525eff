"""Draw pictures that compare a restored volume with others; they are returned as PNG bytes."""
import io

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from disk.results import MADE_BY
from util import tight_box

SURROUND = 3  # voxels of black surround that are kept around the brain
PLANES = ("sagittal", "coronal", "axial")  # perpendicular to axes 0, 1 and 2 of a RAS volume
# Directions at the left, right, top and bottom of each plane.
EDGES = (("A", "P", "S", "I"), ("L", "R", "S", "I"), ("L", "R", "A", "P"))
COLUMN_INCHES = 2.6  # width of a slice
LONGEST = 20  # largest ratio of a drawn voxel's sides, to limit the size of pictures
HIGHEST = 4  # largest ratio of a drawn plane's height and width
GOLD = "#ffb000"  # frames of enlarged squares


def canonical(images, affine):
    """Crop the black surround, and turn volumes to axes right, anterior, superior (RAS).

    Parameters
    ----------
    images : dict of str to ndarray, shape (X, Y, Z)
        The first image defines the black surround.
    affine : ndarray, shape (4, 4)
        Affine from voxel indices to mm.

    Returns
    -------
    images : dict of str to ndarray
    sizes : ndarray, shape (3,)
        Voxel sizes along the turned axes, mm.
    """
    turn = nib.io_orientation(affine)
    order = np.argsort(turn[:, 0])
    first = next(iter(images.values()))
    box = ...
    if first.any():
        box = tuple(slice(max(side.start - SURROUND, 0), side.stop + SURROUND)
                    for side in tight_box(first))
    turned = {name: nib.apply_orientation(image[box], turn) for name, image in images.items()}
    sizes = nib.affines.voxel_sizes(affine)[order]
    return turned, np.minimum(sizes, LONGEST * sizes.min())


def plane(image, axis, place):
    """A slice in the orientation of the pictures: superior is at the top.

    In axial slices, anterior is at the top. In sagittal slices, anterior is at the left.

    Parameters
    ----------
    image : ndarray, shape (X, Y, Z)
        Its axes point right, anterior, superior.
    axis : int
        Axis perpendicular to the slice.
    place : int
        Index of the slice along that axis.

    Returns
    -------
    ndarray, shape (rows, columns)

    Examples
    --------
    >>> plane(np.arange(8).reshape(2, 2, 2), 2, 0)
    array([[2, 6],
           [0, 4]])
    """
    shown = np.take(image, place, axis).T[::-1]
    return shown[:, ::-1] if axis == 0 else shown


def middle(image):
    """Indices of the slices to draw: for each axis, the slice with the largest sum of voxels."""
    others = ((1, 2), (0, 2), (0, 1))
    return tuple(int(np.argmax(image.sum(axis=across))) for across in others)


def picture_volume(images, affine, compare=True):
    """A PNG of three planes of each image, and of error maps against the first image.

    Parameters
    ----------
    images : dict of str to ndarray, shape (X, Y, Z), in [0, 1]
        The first image is the original, with which the error maps compare, or the LR volume.
    affine : ndarray, shape (4, 4)
        Only its directions and voxel sizes are used.
    compare : bool, optional
        If True, error maps are added, all on one scale.

    Returns
    -------
    bytes
    """
    images, sizes = canonical(images, affine)
    names, volumes = list(images), list(images.values())
    errors, titles = [], names
    if compare:
        errors = [np.abs(volume - volumes[0]) for volume in volumes[1:]]
        titles = names + [f"|{name} - {names[0]}|" for name in names[1:]]
    limit = error_limit(errors)
    gray = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    inferno = {"cmap": "inferno", "vmin": 0, "vmax": limit, "interpolation": "nearest"}
    figure, grid = _black_grid(volumes[0], sizes, len(titles), compare, bool(errors))
    for axis, cut in enumerate(middle(volumes[0])):
        aspect = np.divide(*np.delete(sizes, axis)[::-1])
        square = inset_place(volumes, axis, cut)
        for column, volume in enumerate(volumes + errors):
            axes = figure.add_subplot(grid[axis, column])
            axes.set_axis_off()
            of_volume = column < len(volumes)
            style = gray if of_volume else inferno
            pixels = plane(volume, axis, cut)
            mapped = axes.imshow(pixels, aspect=aspect, **style)
            if axis == 0:
                axes.set_title(titles[column], color="white", fontsize=10, pad=4)
            if square and of_volume:
                add_inset(axes, pixels, square, aspect, style)
    if errors:
        _add_error_scale(figure, mapped, limit, len(titles))
    return png(figure)


def error_limit(errors):
    """Upper end of the scale of all error maps: the largest 99th percentile; 1 without errors."""
    tops = [np.quantile(error[error > 0], 0.99) for error in errors if (error > 0).any()]
    return max(tops, default=1)


def _black_grid(volume, sizes, columns, compare, scale):
    """A black figure with a grid of three rows, whose heights fit the planes of the volume.

    `sizes` are voxel sizes in mm. `compare` makes the figure higher. `scale` leaves room below the
    grid for the colour bar of errors.
    """
    shapes = [plane(volume, axis, 0).shape * np.delete(sizes, axis)[::-1] for axis in range(3)]
    heights = [min(shape[0] / shape[1], HIGHEST) for shape in shapes]
    size = (columns * COLUMN_INCHES, sum(heights) * COLUMN_INCHES + (0.6 if compare else 0.29))
    figure = Figure(figsize=size, dpi=110, facecolor="black")
    FigureCanvasAgg(figure)
    inch = 1 / figure.get_figheight()
    grid = figure.add_gridspec(3, columns, height_ratios=heights, left=0, right=1,
                               bottom=(0.36 if scale else 0.02) * inch, top=1 - 0.27 * inch,
                               wspace=0.02, hspace=0.02)
    return figure, grid


def _add_error_scale(figure, mapped, limit, columns):
    """Add a colour bar below the error maps, at the right."""
    inch = 1 / figure.get_figheight()
    where = figure.add_axes([1 - 1.95 / columns, 0.19 * inch, 1.9 / columns, 0.07 * inch])
    bar = figure.colorbar(mapped, cax=where, orientation="horizontal", ticks=[0, limit])
    bar.ax.set_xticklabels(["0", f"{limit:.2f}"], color="white", fontsize=8)
    figure.text(1 - 1 / columns, 0.06 * inch, "error, of the range of intensities",
                color="white", fontsize=8, ha="center")
    bar.ax.tick_params(length=0, pad=2)
    bar.outline.set_visible(False)


def inset_place(volumes, axis, cut):
    """The square of a slice to enlarge: there the first two images differ most.

    Parameters
    ----------
    volumes : list of ndarray, shape (X, Y, Z)
        Two or more.
    axis, cut : int
        Axis and index of the slice, see `plane`.

    Returns
    -------
    row, column, side : int
        First row, first column and side of the square, pixels; None if the slice is too small.
    """
    first, second = (plane(volume, axis, cut) for volume in volumes[:2])
    side = max(min(first.shape) // 6, 8)
    if min(first.shape) < 2 * side:
        return None
    # The sum over each square follows from cumulative sums at its corners.
    sums = np.pad(np.abs(first - second), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    squares = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return (*np.unravel_index(squares.argmax(), squares.shape), side)


def add_inset(axes, pixels, square, aspect, style):
    """Draw an enlarged square of a slice in the slice's darkest corner, and frame the square.

    Parameters
    ----------
    axes : matplotlib Axes
        The axes with the slice.
    pixels : ndarray, shape (rows, columns)
    square : tuple of three int
        Square from `inset_place`.
    aspect : float
        Height of a pixel over its width.
    style : dict
        Options of ``imshow``.
    """
    row, column, side = square
    axes.plot(np.array([0, 1, 1, 0, 0]) * side + column - 0.5,
              np.array([0, 0, 1, 1, 0]) * side + row - 0.5, GOLD, lw=0.8)
    x, y = _darkest_corner(pixels)
    inset = axes.inset_axes([0.63 * x, 0.63 * y, 0.37, 0.37])
    inset.imshow(pixels[row:row + side, column:column + side], aspect=aspect, **style)
    inset.set_anchor(("N" if y else "S") + ("E" if x else "W"))
    inset.set(xticks=[], yticks=[])
    for spine in inset.spines.values():
        spine.set_color(GOLD)


def _darkest_corner(pixels):
    """The darkest corner of a slice: (x, y), with x = 1 at the right and y = 1 at the top."""
    height, width = (side * 3 // 8 for side in pixels.shape)  # size of an inset
    bottom, top = pixels[-height:], pixels[:height]
    corners = {(0, 0): bottom[:, :width], (0, 1): top[:, :width],
               (1, 0): bottom[:, -width:], (1, 1): top[:, -width:]}
    return min(corners, key=lambda corner: corners[corner].sum())


def png(figure, **options):
    """A matplotlib figure as PNG bytes; `options` are those of ``savefig``."""
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor=figure.get_facecolor(),
                   metadata={"Software": MADE_BY}, **options)
    return file.getvalue()
