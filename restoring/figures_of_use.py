"""Measures of practical use of a restored volume: class means, edges, noise and tissue.

PSNR does not distinguish blur from noise. These measures compare separately those properties of a
volume and its original that later tools depend on. They are computed over voxels that are chosen
from the original alone, so all compared volumes use the same voxels.
"""
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.ndimage import (
    binary_dilation,
    binary_erosion,
    gaussian_filter,
    minimum_filter,
    uniform_filter,
)
from skimage.filters import threshold_multiotsu

from util import robust_deviation

CLASSES = ("dark", "middle", "bright")  # CSF, grey matter and white matter in T1-weighted brains
DEEP, AROUND = 5, 2  # voxels: `inside` is the brain eroded by DEEP, `whole` dilated by AROUND
EDGE_SMOOTHING, FLAT_SMOOTHING = 1.0, 2.0  # voxels, standard deviations
FLAT_SHARE = 0.2  # share of the inside voxels that count as flat: those with the smallest gradients
WINDOW = 5  # voxels; a smaller window would miss noise that extends over two or three voxels
FEWEST = 30  # a measure with fewer voxels is left out
TEN_TO_NINETY = 2.563 / np.sqrt(2 * np.pi)  # 10-90 % width of a unit Gaussian edge, times its slope

COMPARED = {"spline": "best spline", "denoised": "denoised", "restored": "restored"}  # by key
# Key of the measure, name in tables, unit, True if each class has a value, decimals.
COLUMNS = (("edge_width", "edge", "mm", False, 2), ("noise_left", "noise", "%", False, 2),
           ("bias", "bias, %", "", True, 1), ("dice", "Dice", "", True, 3),
           ("volume_error", "volumes off, %", "", True, 1))
CELL = 8  # characters


@dataclass(frozen=True)
class Regions:
    """The voxels of an original over which measures are computed.

    Attributes
    ----------
    brain, inside, whole : ndarray of bool, shape (X, Y, Z)
        Nonzero voxels; the brain eroded by DEEP voxels; the brain dilated by AROUND voxels.
    classes : ndarray of uint8, one for each voxel of the brain, or None
        Index of the voxel's class in CLASSES. None if the original has fewer than three classes.
    means : ndarray, shape (3,), or None
        Mean intensity of each class.
    edge : ndarray of int
        Flat indices of the voxels on the edge between the middle and the bright class.
    distance : ndarray of float32
        Signed distance of the `edge` voxels from the edge in mm, positive on the bright side.
    contrast : float
        Difference of the medians of the bright and the middle class.
    flat : ndarray of int
        Flat indices of the voxels in regions of small gradient.
    own : dict of str to float
        ``edge_width`` and ``noise_left`` of the original itself, see `figures_of_use`.
    """

    brain: np.ndarray
    inside: np.ndarray
    whole: np.ndarray
    classes: np.ndarray | None
    means: np.ndarray | None
    edge: np.ndarray
    distance: np.ndarray
    contrast: float
    flat: np.ndarray
    own: dict[str, float] = field(default_factory=dict)


def regions_of(hr, voxel_size=(1, 1, 1)):
    """Choose the voxels of an original over which measures are computed.

    Parameters
    ----------
    hr : ndarray of float32, shape (X, Y, Z), in [0, 1]
        The background is 0.
    voxel_size : sequence of three float, optional
        Voxel size in mm.

    Returns
    -------
    Regions
    """
    brain = hr > 0
    inside = binary_erosion(brain, iterations=DEEP)
    if not inside.any():
        inside = brain
    whole = binary_dilation(brain, iterations=AROUND)
    slope = _slope(hr, FLAT_SMOOTHING, voxel_size)
    flat = np.flatnonzero(inside & (slope <= np.quantile(slope[inside], FLAT_SHARE)))
    values = hr[brain]
    thresholds, classes = _three_classes(values)
    if classes is None:
        regions = Regions(brain, inside, whole, None, None, np.zeros(0, int), np.zeros(0), 0.0,
                          flat)
    else:
        edge, distance = _edge(hr, inside, thresholds, voxel_size)
        middle, bright = (np.median(values[classes == number]) for number in (1, 2))
        regions = Regions(brain, inside, whole, classes, _means(values, classes), edge,
                          distance, float(bright - middle), flat)
    own = figures_of_use(hr, regions)
    return replace(regions, own={name: own[name] for name in own if not name.startswith("bias")})


def _slope(volume, smoothing, voxel_size):
    """Gradient magnitude per mm of a smoothed volume, by derivatives of a Gaussian.

    Differences of neighbouring voxels would give gradients 8 % too small at the sharpest edges.
    """
    squares = np.zeros(volume.shape, np.float32)
    for axis, size in enumerate(voxel_size):
        order = [int(axis == other) for other in range(3)]
        squares += np.square(gaussian_filter(volume, smoothing, order) / np.float32(size))
    return np.sqrt(squares)


def _three_classes(values):
    """Thresholds and classes by three-class multi-Otsu; (None, None) if there are fewer classes."""
    try:
        thresholds = threshold_multiotsu(values, len(CLASSES))
    except ValueError:  # fewer than three intensities
        return None, None
    classes = np.digitize(values, thresholds).astype(np.uint8)
    if np.bincount(classes, minlength=len(CLASSES)).min() < FEWEST:
        return None, None
    return thresholds, classes


def _means(values, classes):
    return np.bincount(classes, values) / np.bincount(classes)


def _edge(hr, inside, thresholds, voxel_size):
    """Voxels on the edge between the middle and the bright class, and their signed distances.

    On this edge, the smoothed original crosses the upper threshold. Voxels within two voxels of the
    dark class or of the background are left out, because they lie on another edge.
    """
    smooth = gaussian_filter(hr, EDGE_SMOOTHING)
    slope = _slope(hr, EDGE_SMOOTHING, voxel_size)
    distance = (smooth - np.float32(thresholds[1])) / np.maximum(slope, np.float32(1e-6))
    near = np.abs(distance) <= min(voxel_size) / 2
    edge = np.flatnonzero(inside & near & (minimum_filter(smooth, 5) >= thresholds[0]))
    return edge, distance.ravel()[edge]


def figures_of_use(volume, regions):
    """Bias of the class means, edge width and noise of a volume.

    Parameters
    ----------
    volume : ndarray of float32, shape (X, Y, Z), in [0, 1]
        A volume to compare with the original, or the original itself.
    regions : Regions
        Regions of the original.

    Returns
    -------
    dict of str to float
        ``bias_dark``, ``bias_middle``, ``bias_bright`` (per cent of the original's mean in this
        class), ``edge_width`` (mm) and ``noise_left`` (per cent of the brightest intensity, 1). A
        measure is left out if it has too few voxels, or needs more classes than there are.

    Examples
    --------
    >>> random = np.random.default_rng(0)
    >>> flat = np.full((40, 40, 40), 0.5, np.float32)
    >>> noisy = flat + 0.02 * random.standard_normal(flat.shape, np.float32)
    >>> found = figures_of_use(noisy, regions_of(flat))  # no classes, no edge
    >>> list(found), abs(found["noise_left"] - 2) < 0.03
    (['noise_left'], True)
    """
    found = {}
    if regions.classes is not None:
        means = _means(volume[regions.brain], regions.classes)
        bias = 100 * (means / regions.means - 1)
        found |= {f"bias_{name}": round(float(one), 2)
                  for name, one in zip(CLASSES, bias, strict=True)}
    width = edge_width(volume, regions)
    if width is not None:
        found["edge_width"] = round(width, 3)
    if len(regions.flat) >= FEWEST:
        found["noise_left"] = round(100 * noise_left(volume, regions), 2)
    return found


def edge_width(volume, regions):
    """Width of the edge between the middle and the bright class, 10 to 90 %, in mm.

    The slope across the edge comes from a regression: intensities within half a voxel of the edge
    against their distance from the edge. Noise of the volume does not make this slope steeper,
    because the distance comes from the original. The result is the width of a Gaussian edge with
    this slope and the original's contrast. It is None if there are too few voxels on the edge, or
    the volume has no edge there.
    """
    if len(regions.edge) < FEWEST:
        return None
    apart = regions.distance - regions.distance.mean(dtype=float)
    slope = apart @ volume.ravel()[regions.edge] / max(apart @ apart, 1e-12)
    return float(TEN_TO_NINETY * regions.contrast / slope) if slope > 0 else None


def noise_left(volume, regions):
    """Standard deviation of the noise in flat regions, in intensity units of the volume.

    It comes from the median absolute deviation.
    """
    rest = volume.ravel()[regions.flat] - uniform_filter(volume, WINDOW).ravel()[regions.flat]
    return robust_deviation(rest)


def tissue_figures(volume, regions):
    """Agreement of a simple segmentation of a volume with that of the original.

    Each volume is segmented by three-class multi-Otsu of its own intensities, within the original's
    brain.

    Parameters
    ----------
    volume : ndarray of float32, shape (X, Y, Z)
    regions : Regions

    Returns
    -------
    dict of str to float
        ``dice_dark`` and so on: 2 |A and B| / (|A| + |B|). ``volume_error_dark`` and so on: error
        in per cent of the original's volume. Empty if one of the volumes has fewer than three
        classes.
    """
    _, classes = _three_classes(volume[regions.brain])
    if regions.classes is None or classes is None:
        return {}
    pairs = len(CLASSES) * regions.classes + classes
    counts = np.bincount(pairs, minlength=len(CLASSES)**2).reshape(len(CLASSES), len(CLASSES))
    true, own, both = counts.sum(1), counts.sum(0), counts.diagonal()
    dice, error = 2 * both / (true + own), 100 * (own / true - 1)
    return ({f"dice_{name}": round(float(one), 4) for name, one in zip(CLASSES, dice, strict=True)}
            | {f"volume_error_{name}": round(float(one), 2)
               for name, one in zip(CLASSES, error, strict=True)})


def table_of_use(rows):
    """Text table of the measures of an evaluation: means over its volumes.

    Parameters
    ----------
    rows : list of dict
        Rows of `evaluation.evaluate_scan`; rows of an older version lack the measures.

    Returns
    -------
    list of str
        Lines: three headings, the original, and each compared volume for each profile and noise
        level. Bias and errors are means of absolute values. Empty if no row has a measure.
    """
    groups = {("original", "original"): rows}
    for row in rows:
        for way in COMPARED:
            title = f"{row['profile']} {row['noise']:g}%"
            groups.setdefault((title, way), []).append(row)
    columns = [column for column in COLUMNS if any(
        name.startswith(f"restored_{column[0]}") for row in rows for name in row)]
    if not columns:
        return []
    heads, units = 26 * " ", 26 * " "
    for _, name, unit, by_class, _ in columns:
        cells = CLASSES if by_class else (unit,)
        heads += f"{name:>{CELL}}".ljust(CELL * len(cells))
        units += "".join(f"{cell:>{CELL}}" for cell in cells)
    lines = ["Measures of use, means over volumes (bias and errors: of absolute values):",
             heads.rstrip(), units]
    for (title, way), members in groups.items():
        cells = "".join(
            _mean_cell(members, f"{way}_{figure}" + (f"_{name}" if by_class else ""), digits)
            for figure, _, _, by_class, digits in columns
            for name in (CLASSES if by_class else ("",)))
        if cells.strip():
            lines.append(f"{title:13} {COMPARED.get(way, ''):12}{cells}".rstrip())
    return lines


def _mean_cell(rows, name, digits):
    """The mean of the absolute values of a column, or blanks."""
    values = [abs(row[name]) for row in rows if name in row]
    return f"{np.mean(values):{CELL}.{digits}f}" if values else CELL * " "
