"""Low-resolution volumes: how an HR volume is degraded, and brought back to the HR grid."""
from dataclasses import dataclass

import numpy as np
import scipy.fft

from back_projection import Known, Projection, SpectrumProjection, middle
from crop_black import black_crop_box, tight_box
from filter_constant import CLIP_FRACTION
from spline import apply_operators, spacing_and_start, upsample, zoom_matrix, zoom_operator

RIM = 0.1  # share of brain, between LR voxels, from which on a fine voxel is restored in upscaling
KSPACE_BACKGROUND = 0.02  # of the range: voxels of a k-space volume that are darker are taken as background


@dataclass(frozen=True)
class Pair:
    """An HR volume and its LR counterpart on the same grid: what is learned from, and tested on.

    Both are cropped to `box`, float32 and divided by `scale`, so in [0, 1]. `low` is the low-resolution volume itself,
    uncropped and unscaled; `shape` is that of the volume that `box` lies in. `mask` tells the voxels of
    the brain. `known` is what `low` says of HR, where that is asked for.
    """

    hr: np.ndarray
    lr: np.ndarray
    low: np.ndarray
    box: tuple
    scale: float
    shape: tuple
    mask: np.ndarray | None = None
    known: Known | None = None


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
        smaller = " or a smaller --filter_len" if settings.margin else ""
        raise ValueError(f"its shape {image.shape} has a side of fewer than the {least} voxels that a patch and the factor "
                         f"need; give a larger volume{smaller}")
    image = mod_crop(clip_bright(image), settings.factor)
    scale = float(image.max(initial=0))
    if not scale > 0:
        raise ValueError("hardly any voxel is above zero (fewer than one in a thousand); crop it, or take another volume")
    spherical = settings.feature_space == "spherical"
    box = black_crop_box(image, settings.margin, settings.factor) if spherical else tight_box(image != 0)
    inner = tuple(slice(box_side.start + settings.margin, box_side.stop - settings.margin) for box_side in box)
    if not image[inner].any():
        raise ValueError(f"no voxel above zero has a whole patch of {2 * settings.margin + 1} voxels around it; "
                         "take a larger mask or a smaller --filter_len")
    low, hr = degrade(image, settings), np.ascontiguousarray(image[box]) / np.float32(scale)
    projected, kspace = settings.start == "projected", settings.lr_type == "kspace"
    if kspace or not projected:
        lr = interpolate(low, image.shape, settings)[box] / np.float32(scale)
    # The published k-space volume is not masked: there, no more than the LR volume shows is known of the brain's outline.
    mask = lr > KSPACE_BACKGROUND if kspace else hr != 0
    known = known_of(low / np.float32(scale), image.shape, box, mask, settings)
    if projected:
        lr = known.start()
    elif not kspace:
        lr[~mask] = 0
    return Pair(hr, lr, low, box, scale, image.shape, mask, known)


@dataclass(frozen=True)
class Fine:
    """A truly low-resolution volume brought to the finer grid, ready for the filters.

    `lr` is cropped to `box` and extended by a margin on every side, clipped at `scale` and divided by it, so in [0, 1] as
    the filters learned. `above` holds what the clipping took off, in [0, ...) on the same grid, and `mask` the brain, both
    without the margin. `low` is the low-resolution volume, clipped; `known` what it says of the fine one, where that is asked.
    """

    lr: np.ndarray
    above: np.ndarray
    low: np.ndarray
    mask: np.ndarray
    box: tuple
    scale: float
    shape: tuple
    known: Known | None = None


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
    above = interpolate(np.clip(low - scale, 0, None), shape, settings)
    # A corner of the brain's outline holds an eighth of a voxel's weight: what is cut at more would lose it.
    background = upsample((low != 0).astype(np.float32), shape, order=1, grid=placement(settings)) < RIM
    above[background] = 0
    box = tight_box(~background)
    mask, low = ~background[box], np.minimum(low, scale)
    known = known_of(low / np.float32(scale), shape, box, mask, settings)
    if settings.start == "projected":
        lr = known.start()
    else:
        lr = interpolate(low, shape, settings)[box] / np.float32(scale) * mask
    return Fine(np.pad(lr, settings.margin, mode="reflect"), above[box], low, mask, box, scale, shape, known)


def known_of(low, shape, box, mask, settings):
    """What a low-resolution volume in [0, 1] says of the fine one; None where the settings do not ask."""
    if settings.start != "projected" and settings.feature_space != "octahedral":
        return None
    if settings.lr_type == "kspace":
        return SpectrumProjection(spectrum_of(low) * np.float32(np.prod(shape)), shape, box, np.ones_like(mask))
    degrading = [degrading_matrix(*sides, factor, settings)
                 for *sides, factor in zip(shape, low.shape, settings.factor, strict=True)]
    return Projection(low, degrading, box, mask)


def degrading_matrix(side, n_low, factor, settings):
    """The matrix that degrades along one axis, shape (n_low, side), float64."""
    if settings.lr_type == "average":
        return np.kron(np.eye(n_low), np.full(factor, 1 / factor))
    return zoom_matrix(side, n_low, order=2, prefilter=False, grid=settings.grid)


def bright_level(image):
    """The voxel at 99.9 % of the sorted ones."""
    place = min(int(image.size * CLIP_FRACTION), image.size - 1)
    # Only the brightest need sorting: those above what one voxel in a hundred says that 99 % lie below.
    some = image.ravel()[::101]
    brightest = image[image > np.partition(some, int(some.size * 0.99))[int(some.size * 0.99)]]
    if brightest.size >= image.size - place:
        return float(np.partition(brightest, place - image.size)[place - image.size])
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
    if settings.start != "quadratic":
        return upsample(low, shape, order=3, grid=placement(settings))
    return upsample(low, shape, order=2, prefilter=False, grid=placement(settings))


def best_spline(pair, settings, order=5):
    """What a user would pick without filters: the spline of order 5 through the low-resolution volume, masked alike."""
    low = pair.low
    if np.iscomplexobj(low):
        low = magnitude_of(low)
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


def placement(settings):
    """How LR and HR grid lie to each other: ``centers``, ``edges``, or ``first``, where first voxels share a centre."""
    return {"interpolation": settings.grid, "average": "edges", "kspace": "first"}[settings.lr_type]


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
    kept = [slice(*kspace_kept(*axis, settings.kspace_keep)) for axis in zip(image.shape, settings.factor, strict=True)]
    low = spectrum_of(image)[tuple(kept)]
    return low if settings.kspace_keep == "third" else magnitude_of(low)


def spectrum_of(volume):
    """The centred spectrum of a volume, divided by its voxels; a complex volume is that already."""
    if np.iscomplexobj(volume):
        return volume
    return scipy.fft.fftshift(scipy.fft.fftn(volume, workers=-1)) / np.float32(volume.size)


def magnitude_of(spectrum):
    """The magnitude image of what `spectrum_of` gives."""
    return np.abs(scipy.fft.ifftn(scipy.fft.ifftshift(spectrum), workers=-1)) * np.float32(spectrum.size)


def kspace_zero_filled(low, shape, settings):
    """Fill the spectrum with zeros up to `shape`: output i lies at voxel ``i * n_in / n_out`` of the small volume.

    Of a spectrum (complex `low`) the magnitude is taken, as published. Of an image the real part, which counts the
    highest frequency of an even side half to either end; negatives become 0.
    """
    spectrum = np.zeros(shape, np.complex64)
    spectrum[middle(shape, low.shape)] = spectrum_of(low)
    filled = scipy.fft.ifftn(scipy.fft.ifftshift(spectrum), workers=-1) * np.float32(np.prod(shape))
    return np.abs(filled) if np.iscomplexobj(low) else np.clip(filled.real, 0, None)
