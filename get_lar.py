"""Low-resolution volumes: how an HR volume is degraded, and brought back to the HR grid.

``scipy.ndimage.zoom`` is separable: what it does along one axis is a small matrix, which zooming unit vectors gives.
Each row of that matrix holds few weights, so applying it is a few multiplications a voxel. The result is zoom's own, up
to rounding (largest difference measured: 3e-5 of a range of 120), some ten times faster.
"""
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from numba import njit, prange
from scipy.ndimage import spline_filter1d

from crop_black import black_crop_box
from filter_constant import CLIP_FRACTION


@dataclass(frozen=True)
class Operator:
    """A banded matrix along one axis: output i is the sum of ``weights[i, t] * input[start[i] + t]``."""

    start: np.ndarray  # (n_out,) int64
    weights: np.ndarray  # (n_out, taps) float32
    n_in: int


@dataclass(frozen=True)
class Pair:
    """An HR volume and its LR counterpart on the same grid: what is learned from, and tested on.

    Both are cropped to `box`, float32 and divided by `scale`, so in [0, 1]. `low` is the low-resolution volume itself,
    uncropped and unscaled; `shape` is that of the volume that `box` lies in.
    """

    hr: np.ndarray
    lr: np.ndarray
    low: np.ndarray
    box: tuple
    scale: float
    shape: tuple


def make_pair(image, settings):
    """Degrade a volume and bring it back to its own grid (section 3.1 of the paper).

    Parameters
    ----------
    image : ndarray of float32, shape (X, Y, Z)
    settings : Settings

    Returns
    -------
    pair : Pair

    Raises
    ------
    ValueError
        If nothing is left to learn from: all black, or smaller than a patch.
    """
    least = max(2 * settings.margin + 1, 2 * max(settings.factor), 6 if settings.lr_type == "kspace" else 1)
    if any(side - side % f < least for side, f in zip(image.shape, settings.factor, strict=True)):
        raise ValueError(f"its shape {image.shape} has a side of fewer than the {least} voxels that a patch and the factor "
                         f"need; give a larger volume or a smaller --filter_len")
    image = mod_crop(clip_bright(image), settings.factor)
    scale = float(image.max(initial=0))
    if not scale > 0:
        raise ValueError("hardly any voxel is above zero (fewer than one in a thousand); crop it, or take another volume")
    box = black_crop_box(image, settings.margin, settings.factor)
    low = degrade(image, settings)
    lr = interpolate(low, image.shape, settings)
    if settings.lr_type != "kspace":
        lr[image == 0] = 0
    inner = tuple(slice(box_side.start + settings.margin, box_side.stop - settings.margin) for box_side in box)
    if not image[inner].any():
        raise ValueError(f"no voxel above zero has a whole patch of {2 * settings.margin + 1} voxels around it; "
                         "take a larger mask or a smaller --filter_len")
    scaled = [np.ascontiguousarray(volume[box]) / np.float32(scale) for volume in (image, lr)]
    return Pair(*scaled, low=low, box=box, scale=scale, shape=image.shape)


@dataclass(frozen=True)
class Fine:
    """A truly low-resolution volume brought to the finer grid, ready for the filters.

    `lr` is cropped to `box` and extended by a margin on every side, clipped at `scale` and divided by it, so in [0, 1] as
    the filters learned. `above` holds what the clipping took off, in [0, ...) on the same grid, without the margin.
    """

    lr: np.ndarray
    above: np.ndarray
    box: tuple
    scale: float
    shape: tuple


def make_fine(low, settings):
    """Bring a truly low-resolution volume to the grid that is finer by the factor.

    Intensities are divided by the voxel at 99.9 % of the sorted ones, as in learning. What lies above that is clipped
    for the filters, but kept aside to be added to their result: a bright vessel or lesion stays bright.
    The background is where the volume itself is zero. Around the faces the volume is mirrored, so that voxels less than
    half a patch from them have whole patches.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        Voxels below zero count as background.

    Returns
    -------
    Fine

    Raises
    ------
    ValueError
        If it is all black, has one slice along an axis to refine, or holds another part of the spectrum than was learned.
    """
    for axis, (side, factor) in enumerate(zip(low.shape, settings.factor, strict=True)):
        if factor > 1 and side < 2:
            raise ValueError(f"axis {axis} has one slice, nothing to interpolate between; learn with factor 1 there")
        if factor not in (1, 3) and settings.lr_type == "kspace" and settings.kspace_keep == "third":
            raise ValueError("the filters were learned for the middle third of the spectrum; upscaling by "
                             f"{factor} keeps 1/{factor} of it: learn with --kspace_keep auto")
    low = np.clip(low, 0, None)
    scale = bright_level(low) or float(low.max(initial=0))
    if not scale > 0:
        raise ValueError("the volume holds no voxel above zero")
    shape = tuple(side * factor for side, factor in zip(low.shape, settings.factor, strict=True))
    lr = interpolate(np.minimum(low, scale), shape, settings)
    above = interpolate(np.clip(low - scale, 0, None), shape, settings)
    background = upsample((low != 0).astype(np.float32), shape, order=1, grid=placement(settings)) < 0.5
    lr[background] = above[background] = 0
    box = tuple(slice(int(used[0]), int(used[-1]) + 1) for used in
                (np.flatnonzero((lr != 0).any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)))
    return Fine(np.pad(lr[box], settings.margin, mode="reflect") / np.float32(scale), above[box], box, scale, shape)


def bright_level(image):
    """The voxel at 99.9 % of the sorted ones."""
    place = min(int(image.size * CLIP_FRACTION), image.size - 1)
    return float(np.partition(image, place, axis=None)[place])


def clip_bright(image):
    """Clip to [0, v], v the voxel at 99.9 % of the sorted ones."""
    return np.clip(image, 0, np.float32(bright_level(image)))


def mod_crop(image, factor):
    """Drop trailing voxels until each side is a multiple of the factor."""
    return image[tuple(slice(0, side - side % f) for side, f in zip(image.shape, factor, strict=True))]


def degrade(image, settings):
    """The low-resolution volume of an HR volume whose sides are multiples of the factor.

    An axis whose factor is 1 is left untouched. The k-space volume of the published third is complex: its spectrum.
    """
    if settings.lr_type == "kspace":
        return kspace_low(image, settings)
    if settings.lr_type == "average":
        return block_mean(image, settings.factor)
    shape = tuple(side // f for side, f in zip(image.shape, settings.factor, strict=True))
    return apply_operators(image, [zoom_operator(*sides, order=2, prefilter=False, grid=settings.grid)
                                   for sides in zip(image.shape, shape, strict=True)])


def block_mean(image, factor):
    """The mean of each block of `factor` voxels: what a thick slice with a box profile measures."""
    x, y, z = (side // f for side, f in zip(image.shape, factor, strict=True))
    blocks = image.reshape(x, factor[0], y, factor[1], z, factor[2])
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def interpolate(low, shape, settings):
    """Bring a low-resolution volume to the grid of `shape`: the LR volume of the method."""
    if settings.lr_type == "kspace":
        return kspace_zero_filled(low, shape, settings)
    return upsample(low, shape, order=2, prefilter=False, grid=placement(settings))


def best_spline(pair, settings, order=5):
    """What a user would pick without filters: the spline of order 5 through the low-resolution volume, masked alike."""
    low = pair.low
    if np.iscomplexobj(low):
        low = np.abs(scipy.fft.ifftn(scipy.fft.ifftshift(low)) * np.float32(low.size))
    spline = upsample(low, pair.shape, order, grid=placement(settings))
    spline = np.clip(spline[pair.box] / np.float32(pair.scale), 0, 1)
    spline[pair.hr == 0] = 0
    return spline


def fine_to_low(shape, settings):
    """The 4x4 matrix from voxels of the finer grid to those of a low-resolution volume of this shape (x, y, z)."""
    matrix = np.eye(4)
    for axis, (side, factor) in enumerate(zip(shape, settings.factor, strict=True)):
        matrix[axis, axis], matrix[axis, 3] = spacing_and_start(side, side * factor, placement(settings))
    return matrix


def beside(low, fine, settings, order=5):
    """What to show beside an upscaled volume, on its grid: the LR voxels as they are, and the best spline; in [0, 1]."""
    scale = np.float32(bright_level(low) or low.max())
    nearest = []
    for side, factor in zip(low.shape, settings.factor, strict=True):
        step, start = spacing_and_start(side, side * factor, placement(settings))
        nearest.append(np.clip(np.floor(start + step * np.arange(side * factor) + 0.5).astype(int), 0, side - 1))
    spline = upsample(low, fine.shape, order, grid=placement(settings)) * (fine > 0)
    return {name: np.clip(volume / scale, 0, 1) for name, volume in (("LR", low[np.ix_(*nearest)]), ("Spline", spline),
                                                                     ("Restored", fine))}


def upsample(low, shape, order, prefilter=True, grid="centers"):
    """Bring a low-resolution volume to the grid of `shape` by a spline; negatives become 0."""
    operators = [zoom_operator(*sides, order=order, prefilter=prefilter, grid=grid)
                 for sides in zip(low.shape, shape, strict=True)]
    return np.clip(apply_operators(low, operators), 0, None)


# ---------------------------------------------------------------------------------------------- grids

def placement(settings):
    """How LR and HR grid lie to each other: ``centers``, ``edges``, or ``first``, where first voxels share a centre."""
    return {"interpolation": settings.grid, "average": "edges", "kspace": "first"}[settings.lr_type]


def spacing_and_start(n_in, n_out, grid):
    """Along one axis of n_in voxels, the step between n_out voxels and the place of the first, in voxels of the input.

    ``centers``: the first and the last centres coincide, as scipy.ndimage.zoom has it. ``edges``: the field of view is
    kept. ``first``: the first centres coincide and the step is n_in / n_out, as a spectrum filled with zeros has it.
    """
    if n_in == n_out:
        return 1.0, 0.0
    if grid == "centers":
        return (n_in - 1) / max(n_out - 1, 1), 0.0
    step = n_in / n_out
    return step, (step - 1) / 2 if grid == "edges" else 0.0


# ---------------------------------------------------------------------------------------------- splines

@lru_cache(maxsize=64)
def zoom_operator(n_in, n_out, order, prefilter, grid="centers"):
    """The spline along one axis of n_in voxels at the places of n_out voxels, as a banded matrix.

    On the grid ``centers`` it is what scipy.ndimage.zoom does, on ``edges`` what it does with ``grid_mode=True``. A side
    that keeps its length is left alone, where zoom without prefilter would blur it.
    """
    if n_in == n_out:
        return Operator(np.arange(n_out), np.ones((n_out, 1), np.float32), n_in)
    step, start = spacing_and_start(n_in, n_out, grid)
    return banded(spline_matrix(n_in, start + step * np.arange(n_out), order, prefilter))


def spline_matrix(n_in, positions, order, prefilter):
    """The values at `positions` of the spline through (or, without prefilter, controlled by) each unit vector.

    Beyond the ends the samples are mirrored about the first and the last, as zoom does.

    Returns
    -------
    matrix : ndarray of float64, shape (len(positions), n_in)
    """
    first = np.floor(positions + 0.5 * (order % 2 == 0)).astype(int) - order // 2
    taps = first[:, None] + np.arange(order + 1)
    weights = bspline(positions[:, None] - taps, order)
    period = max(2 * (n_in - 1), 1)
    taps = np.abs((taps + period // 2) % period - period // 2) if n_in > 1 else taps * 0
    coefficients = np.eye(n_in)
    if prefilter and order > 1 and n_in > 1:
        coefficients = spline_filter1d(coefficients, order, axis=0, mode="mirror")
    return np.einsum("ot,otn->on", weights, coefficients[taps])


def bspline(x, order):
    """The centred cardinal B-spline of this order at `x`, by its recursion."""
    if order == 0:
        return ((x >= -0.5) & (x < 0.5)).astype(float)
    half = (order + 1) / 2
    return ((half + x) * bspline(x + 0.5, order - 1) + (half - x) * bspline(x - 0.5, order - 1)) / order


def banded(matrix, negligible=1e-7):
    """Keep the band of a matrix that holds all weights above `negligible` (a prefilter's tails fall off fast)."""
    n_out, n_in = matrix.shape
    used = np.abs(matrix) > negligible
    start = used.argmax(1)
    taps = int((n_in - used[:, ::-1].argmax(1) - start).max())
    start = np.minimum(start, n_in - taps)
    weights = np.take_along_axis(matrix, start[:, None] + np.arange(taps), axis=1)
    return Operator(start, np.ascontiguousarray(weights, np.float32), n_in)


def apply_operators(volume, operators):
    """Apply one operator per axis.

    Parameters
    ----------
    volume : ndarray of float32, shape (X, Y, Z)
    operators : sequence of three Operator

    Returns
    -------
    ndarray of float32, C-contiguous
    """
    volume = np.ascontiguousarray(volume, np.float32)
    # The passes that leave least work for the next come first; the last axis, whose pass is slowest, is best done small.
    growth = [len(operator.start) / operator.n_in for operator in operators]
    for axis in sorted(range(3), key=lambda a: (growth[a], -a) if min(growth) < 1 else -a):
        operator = operators[axis]
        shape = (*volume.shape[:axis], len(operator.start), *volume.shape[axis + 1:])
        if operator.weights.shape[1] == 1 and operator.n_in == len(operator.start):
            continue
        result = np.empty(shape, np.float32)
        if axis == 2:
            _along_rows(volume.reshape(-1, operator.n_in), operator.start, operator.weights, result.reshape(-1, shape[2]))
        else:
            before = int(np.prod(shape[:axis]))
            _across_rows(volume.reshape(before, operator.n_in, -1), operator.start, operator.weights,
                         result.reshape(before, shape[axis], -1))
        volume = result
    return volume


@njit(parallel=True, cache=True, fastmath=True)
def _across_rows(volume, start, weights, result):
    n_out, taps = weights.shape
    for row in prange(result.shape[0] * n_out):
        a, o = row // n_out, row % n_out
        out = result[a, o]
        out[:] = 0
        for t in range(taps):
            weight = weights[o, t]
            if weight != 0:
                source = volume[a, start[o] + t]
                for k in range(out.size):
                    out[k] += weight * source[k]


@njit(parallel=True, cache=True, fastmath=True)
def _along_rows(volume, start, weights, result):
    n_out, taps = weights.shape
    for row in prange(result.shape[0]):
        source, out = volume[row], result[row]
        for o in range(n_out):
            total = np.float32(0)
            for t in range(taps):
                total += weights[o, t] * source[start[o] + t]
            out[o] = total


# ---------------------------------------------------------------------------------------------- k-space

def kspace_kept(side, factor, keep):
    """First and last-plus-one index of an axis's centred spectrum that are kept.

    ``third`` is the published one, whatever the factor; ``auto`` keeps side / factor. A factor of 1 keeps all.
    """
    if factor == 1:
        return 0, side
    if keep == "third":
        return side // 2 - side // 6, side // 2 + side // 6
    start = side // 2 - side // factor // 2
    return start, start + side // factor


def kspace_low(image, settings):
    """The middle of the centred spectrum, brought to a volume of its own (small) size.

    Returns
    -------
    low : ndarray
        With ``--kspace_keep third`` the complex spectrum itself. With ``auto`` the magnitude image, float32: all that a
        scanner hands out, and so all that upscaling has.
    """
    spectrum = scipy.fft.fftshift(scipy.fft.fftn(image, workers=-1))
    kept = [slice(*kspace_kept(*axis, settings.kspace_keep)) for axis in zip(image.shape, settings.factor, strict=True)]
    low = spectrum[tuple(kept)] / np.float32(image.size)
    if settings.kspace_keep == "third":
        return low
    return np.abs(scipy.fft.ifftn(scipy.fft.ifftshift(low), workers=-1)) * np.float32(low.size)


def kspace_zero_filled(low, shape, settings):
    """Fill the spectrum with zeros up to `shape`: output i lies at voxel ``i * n_in / n_out`` of the small volume.

    Of a spectrum (complex `low`) the magnitude is taken, as published. Of an image the real part, which counts the
    highest frequency of an even side half to either end; negatives become 0.
    """
    published = np.iscomplexobj(low)
    if not published:
        low = scipy.fft.fftshift(scipy.fft.fftn(low, workers=-1)) / np.float32(low.size)
    kept = [slice(side // 2 - n // 2, side // 2 - n // 2 + n) for side, n in zip(shape, low.shape, strict=True)]
    spectrum = np.zeros(shape, np.complex64)
    spectrum[tuple(kept)] = low
    filled = scipy.fft.ifftn(scipy.fft.ifftshift(spectrum), workers=-1) * np.float32(np.prod(shape))
    return np.abs(filled) if published else np.clip(filled.real, 0, None)
