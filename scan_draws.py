"""LR volumes to learn from as scanners make them: blurred, noisy, with the outline that they show.

A volume is cut into slabs along its first axis. Each slab is learned from as a part of an LR volume
of its own: the whole volume, degraded by a slice profile that is drawn, with noise of a level that
is drawn. So a few volumes give hundreds of scanners. Everything that is drawn hangs on the seed,
the volume's name and the slab's number alone: it is the same in every pass, and after a stop.
"""
from typing import NamedTuple

import numpy as np

from crop_black import tight_box
from degradation import degradation_of
from get_lar import RIM, LRVolume
from slice_profile import profile_matrix
from spline import apply_operators, banded, zoom_matrix
from util import bright_level_of_scan, mod_crop, random_of

PADDING = 8  # voxels of background that are kept around the brain
HALO = 10  # planes around a slab, which filters and features see
CLEAN = 0.2  # share of draws without noise
LOW_NOISE = 1.5  # power of a uniform number: noise is low more often than high
NOISY_ORIGINALS = 0.5  # share of draws
FAINTEST = 1e-3  # of the brightest intensity: so dark a voxel of brain may become by noise
KSPACE = 0.3  # share of k-space among the draws, where other profiles are drawn too


class Draw(NamedTuple):
    """How one LR volume is made."""

    profile: str
    sigma: float  # of the noise, of the brightest intensity
    inverted: bool  # bright and dark exchanged, a stand-in for other weightings
    power: float  # that intensities are raised to
    grain: float  # sigma of the original's own noise, of the brightest intensity


def draw_of(settings, random):
    """Draw a profile, a noise level and intensities."""
    profiles = settings.profile
    shares = np.full(len(profiles), 1.0)
    if "kspace" in profiles and len(profiles) > 1:
        shares[:] = (1 - KSPACE) / (len(profiles) - 1)
        shares[profiles.index("kspace")] = KSPACE
    profile = str(random.choice(profiles, p=shares / shares.sum()))
    clean, level = random.random(2)
    sigma = 0.0 if clean < CLEAN else settings.noise / 100 * level**LOW_NOISE
    turned, bent, power = random.random(3)
    noisy, grain = random.random(2)
    return Draw(profile, sigma, turned < settings.inverted,
                2 ** (2 * power - 1) if bent < settings.bent else 1.0,
                settings.original_noise / 100 * grain if noisy < NOISY_ORIGINALS else 0.0)


def make_low(hr, operator, sigma, random):
    """The LR volume that a scanner makes of a fine one, and its outline.

    Parameters
    ----------
    hr : ndarray of float32, shape (X, Y, Z), in [0, 1]
        Background 0.
    operator : degradation.SliceProfile
    sigma : float
        Standard deviation of the noise in both parts of the complex signal: Rician.
    random : numpy.random.Generator

    Returns
    -------
    low : ndarray of float32, shape (x, y, z)
        Cut where less than half a voxel is brain, as brain extraction of the LR volume would.
    """
    clean = np.maximum(operator.forward(hr), 0)
    noise = sigma * random.standard_normal((2, *clean.shape), np.float32)
    brain = [banded(profile_matrix(side, factor, "box"))
             for side, factor in zip(hr.shape, operator.factor, strict=True)]
    seen = apply_operators((hr > 0).astype(np.float32), brain) >= 0.5
    return np.hypot(clean + noise[0], noise[1]) * seen


def drawn_volumes(image, settings, name):
    """All LR volumes that a volume is learned from, one for each slab.

    Parameters
    ----------
    image : ndarray of float32, shape (X, Y, Z)
        Background 0.
    settings : Settings
        As --preset scan has them.
    name : str
        Of the volume: with the seed, it decides what is drawn.

    Yields
    ------
    LRVolume
        With its original; `core` are the voxels of the slab.

    Raises
    ------
    ValueError
        If hardly anything is above zero, or an axis is too short.
    """
    hr = original_of(image, settings.factor)
    used, step = np.flatnonzero(hr.any((1, 2))), settings.factor[0]
    edges = np.linspace(used[0], used[-1] + 1, settings.draws + 1) / step
    edges = np.round(edges).astype(int) * step
    order = random_of(settings.seed, f"{name} slabs").permutation(settings.draws)
    for number, slab in enumerate(order):
        random = random_of(settings.seed, f"{name} draw {number}")
        volume = _drawn_volume(hr, settings, random, edges[slab], edges[slab + 1])
        if volume is not None:
            yield volume


def original_of(image, factor):
    """The brain of a volume with a little background around it, in [0, 1].

    Its sides are multiples of the factor. Raises ValueError as `drawn_volumes` does.
    """
    image = np.clip(image, 0, np.float32(bright_level_of_scan(image)))
    if not image.max(initial=0) > 0:
        raise ValueError("no voxel is above zero; take another volume")
    box = [slice(max(side.start - PADDING, 0), side.stop + PADDING)
           for side in tight_box(image > 0)]
    hr = np.ascontiguousarray(mod_crop(image[tuple(box)], factor)) / image.max()
    if min(side // f for side, f in zip(hr.shape, factor, strict=True)) < 2:
        raise ValueError(f"its shape {image.shape} has a side of fewer than two LR voxels; "
                         "give a larger volume")
    return hr


def _drawn_volume(hr, settings, random, first, last):
    """One LR volume of `hr`, of planes first to last; None where they hold no brain."""
    draw = draw_of(settings, random)
    hr = with_grain(with_intensities(hr, draw), draw.grain, random)
    operator = degradation_of(hr.shape, settings)
    operator.profiles = 3 * (draw.profile,)
    low = make_low(hr, operator, draw.sigma, random)
    scale = bright_level_of_scan(low)
    if not scale > 0:
        return None
    unit = np.minimum(low, scale) / np.float32(scale)
    planes = slice(max(first - HALO, 0), min(last + HALO, hr.shape[0]))
    start, mask = _planes_of_start(unit, operator, planes)
    core = np.zeros(mask.shape, bool)
    core[first - planes.start:last - planes.start] = True
    if not (core & mask).any():
        return None
    box = tight_box(mask)
    whole = (slice(planes.start + box[0].start, planes.start + box[0].stop), *box[1:])
    cut = [np.ascontiguousarray(part[box]) for part in (start, mask, core & mask)]
    hr = np.ascontiguousarray(hr[whole]) / np.float32(scale)
    return LRVolume(cut[0], low, operator, whole, hr.shape, scale, cut[1], hr=hr,
                    cues=operator.cues(unit), core=cut[2])


def with_intensities(hr, draw):
    """The volume with intensities inverted and bent as drawn, in [0, 1]."""
    if draw.inverted:
        hr = np.where(hr > 0, np.clip(1.05 - hr, 0.02, None), 0).astype(np.float32)
        hr /= hr.max()
    return hr if draw.power == 1 else hr ** np.float32(draw.power)


def with_grain(hr, sigma, random):
    """The volume with noise of its own, which filters cannot tell from anatomy: they shall keep it.

    Good volumes of many scanners are noisy. Their LR volumes show noise, and so do their originals.
    """
    if not sigma:
        return hr
    noise = np.float32(sigma) * random.standard_normal(hr.shape, np.float32)
    return np.clip(hr + noise, FAINTEST, 1) * (hr > 0)


def _planes_of_start(unit, operator, planes):
    """The start on some planes of the fine grid, and its mask, as `get_lar.make_fine` has it."""
    def upsampled(volume, order):
        matrices = [zoom_matrix(n, side, order, True, operator.grid)
                    for n, side in zip(volume.shape, operator.shape, strict=True)]
        matrices[0] = matrices[0][planes]
        return apply_operators(volume, [banded(matrix) for matrix in matrices])

    mask = upsampled((unit > 0).astype(np.float32), 1) >= RIM
    return np.clip(upsampled(unit, operator.start_order), 0, None) * mask, mask
