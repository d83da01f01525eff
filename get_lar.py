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
    if settings.lr_type == "interpolation":
        lr[image == 0] = 0
    inner = tuple(slice(box_side.start + settings.margin, box_side.stop - settings.margin) for box_side in box)
    if not image[inner].any():
        raise ValueError(f"no voxel above zero has a whole patch of {2 * settings.margin + 1} voxels around it; "
                         "take a larger mask or a smaller --filter_len")
    scaled = [np.ascontiguousarray(volume[box]) / np.float32(scale) for volume in (image, lr)]
    return Pair(*scaled, low=low, box=box, scale=scale, shape=image.shape)


def clip_bright(image):
    """Clip to [0, v], v the voxel at 99.9 % of the sorted ones."""
    place = min(int(image.size * CLIP_FRACTION), image.size - 1)
    return np.clip(image, 0, np.partition(image, place, axis=None)[place])


def mod_crop(image, factor):
    """Drop trailing voxels until each side is a multiple of the factor."""
    return image[tuple(slice(0, side - side % f) for side, f in zip(image.shape, factor, strict=True))]


def degrade(image, settings):
    """The low-resolution volume of an HR volume whose sides are multiples of the factor."""
    if settings.lr_type == "kspace":
        return kspace_low(image)
    shape = tuple(side // f for side, f in zip(image.shape, settings.factor, strict=True))
    return apply_operators(image, [zoom_operator(*sides, order=2, prefilter=False)
                                   for sides in zip(image.shape, shape, strict=True)])


def interpolate(low, shape, settings):
    """Bring a low-resolution volume to the grid of `shape`: the LR volume of the method."""
    if settings.lr_type == "kspace":
        return kspace_zero_filled(low, shape)
    return upsample(low, shape, order=2, prefilter=False)


def best_spline(pair, settings, order=5):
    """What a user would pick without filters: the spline of order 5 through the low-resolution volume, masked alike."""
    if settings.lr_type == "kspace":
        low = np.abs(scipy.fft.ifftn(scipy.fft.ifftshift(pair.low)) * np.float32(pair.low.size))
        # The small matrix covers the same field of view from the same first centre.
        operators = [banded(spline_matrix(n, np.arange(side) * n / side, order, prefilter=True))
                     for n, side in zip(low.shape, pair.shape, strict=True)]
        spline = apply_operators(low, operators)
    else:
        spline = upsample(pair.low, pair.shape, order)
    spline = np.clip(spline[pair.box] / np.float32(pair.scale), 0, 1)
    spline[pair.hr == 0] = 0
    return spline


def upsample(low, shape, order, prefilter=True):
    """Bring a low-resolution volume to the grid of `shape` by a spline, as scipy.ndimage.zoom does; negatives become 0."""
    operators = [zoom_operator(*sides, order=order, prefilter=prefilter) for sides in zip(low.shape, shape, strict=True)]
    return np.clip(apply_operators(low, operators), 0, None)


# ---------------------------------------------------------------------------------------------- splines

@lru_cache(maxsize=64)
def zoom_operator(n_in, n_out, order, prefilter):
    """What scipy.ndimage.zoom does along one axis of n_in voxels to make n_out of them, as a banded matrix.

    Zoom's grid joins the centres of the first and the last voxel: output i lies at ``i * (n_in - 1) / (n_out - 1)``.
    A side that keeps its length is left alone, where zoom without prefilter would blur it.
    """
    if n_in == n_out:
        return Operator(np.arange(n_out), np.ones((n_out, 1), np.float32), n_in)
    positions = np.arange(n_out) * ((n_in - 1) / max(n_out - 1, 1))
    return banded(spline_matrix(n_in, positions, order, prefilter))


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

def kspace_kept(side):
    """First and last-plus-one index of the centred spectrum that is kept: the middle third, as published."""
    return side // 2 - side // 6, side // 2 + side // 6


def kspace_low(image):
    """The middle third of the centred spectrum, as a complex volume of its own (small) size."""
    spectrum = scipy.fft.fftshift(scipy.fft.fftn(image, workers=-1))
    kept = spectrum[tuple(slice(*kspace_kept(side)) for side in image.shape)]
    return kept / np.float32(image.size)


def kspace_zero_filled(low, shape):
    """Fill the spectrum with zeros up to `shape` and take the magnitude of its inverse."""
    spectrum = np.zeros(shape, np.complex64)
    spectrum[tuple(slice(*kspace_kept(side)) for side in shape)] = low
    return np.abs(scipy.fft.ifftn(scipy.fft.ifftshift(spectrum), workers=-1)) * np.float32(np.prod(shape))
