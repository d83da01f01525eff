"""LR volumes to learn from as scanners make them: blurred, noisy, with the outline that they show.

A volume is cut into slabs along its first axis. Each slab is learned from as a part of an LR volume
of its own: the whole volume, degraded by a slice profile that is drawn, with noise of a level that
is drawn. So a few volumes give hundreds of scanners. Everything that is drawn hangs on the seed,
the volume's name and the slab's number alone: it is the same in every pass, and after a stop.
"""
from typing import NamedTuple

import numpy as np

from crop_black import tight_box
from degrading.acquisition import make_low, original_of
from degrading.banded import apply_operators, banded
from degrading.degradation import degradation_of
from degrading.profile_reader import blur_of
from degrading.slice_profile import PROFILES, Profile
from degrading.spline import zoom_matrix
from get_lar import RIM, LRVolume
from util import bright_level_of_scan, random_of

HALO = 10  # planes around a slab, which filters and features see
AROUND = 32  # planes around it that are degraded with it
CLEAN = 0.35  # share of draws without noise
LOW_NOISE = 1.5  # power of a uniform number: noise is low more often than high
NOISY_ORIGINALS = 0.4  # share of draws
FAINTEST = 1e-3  # of the brightest intensity: so dark a voxel of brain may become by noise
# How often a profile is drawn that is not told, over others. What blurs little is taken more often
# than it occurs, and strong windows not at all: to take a scan for too blurred does most harm.
SHARES = {"box": 1.0, "gap": 1.0, "gauss": 0.8, "sharp": 1.0, "kspace": 2.5, "hamming": 0.0}
EXACT, WIDER = 0.5, 0.15  # share of profiles as they are named; how much others vary in width
MISREAD = (0.08, 0.1)  # standard deviation that readings are off by in learning
MIXED = 0.15  # share of draws in which one axis has another profile
# Of the original: share that is sharpened, and by how much of its finest detail at most; share that
# is left as it is; the others are blurred by a Gaussian, sigma in voxels, unlike along the axes.
SHARPENED, MOST_SHARPENED, FINEST = 0.15, 0.5, 0.7
AS_IT_IS = 0.2
LEAST_BLUR, MOST_BLUR, UNLIKE = 0.25, 1.0, 0.3
TOLD = 0.5  # share of draws whose profile is told
LEAST_MISSED = 1e-5  # mean squared error: no draw counts more than its 1 / LEAST_MISSED


class Draw(NamedTuple):
    """How one LR volume is made."""

    profiles: tuple  # of three slice_profile.Profile, of each axis
    sigma: float  # of the noise, of the brightest intensity
    softness: tuple  # of three float: sigma of the original's own blur along each axis, in voxels
    sharpening: float  # share of its finest detail that is added to the original
    grain: float  # sigma of the original's own noise, of the brightest intensity
    told: bool  # whether filters are told the profiles
    misread: np.ndarray  # (len(READING_NAMES),): what its reading is off by, where none is told


def draw_of(method, random):
    """Draw profiles, a noise level, and how sharp and noisy the original is."""
    told = random.random() < TOLD
    profiles = _profiles_of(method, told, random)
    clean, level = random.random(2)
    sigma = 0.0 if clean < CLEAN else method.noise / 100 * level**LOW_NOISE
    random.random(3)  # passed over: filters that come with the project were learned so
    noisy, grain = random.random(2)
    softness, sharpening = _sharpness_of(random)
    return Draw(profiles, sigma, softness, sharpening,
                method.original_noise / 100 * grain if noisy < NOISY_ORIGINALS else 0.0,
                told, np.multiply(MISREAD, random.standard_normal(len(MISREAD))))


def _profiles_of(method, told, random):
    """Draw the profile of each axis: mostly one for all, now and then another for one of them."""
    names = method.profile
    shares = np.array([1.0 if told else SHARES[name] for name in names])
    if not shares.any():
        shares += 1
    first, other = random.choice(len(names), 2, p=shares / shares.sum())
    exact, width, damping, mixed = random.random(4)
    axis = int(random.integers(3))

    def varied(name):
        kind, nominal, damped = PROFILES[name]
        if exact < EXACT:
            return PROFILES[name]
        return Profile(kind, nominal * (1 + WIDER * (2 * width - 1)), damped * damping)

    found = 3 * [varied(names[first])]
    if mixed < MIXED:  # a 2-D acquisition: slices have another profile than their plane
        found[axis] = varied(names[other])
    return tuple(found)


def _sharpness_of(random):
    """Draw how sharp the original is: blur along each axis, and sharpening where there is none."""
    which, amount, *along = random.random(5)
    if which < SHARPENED:
        return (0.0, 0.0, 0.0), MOST_SHARPENED * amount
    if which < SHARPENED + AS_IT_IS:
        return (0.0, 0.0, 0.0), 0.0
    sigma = LEAST_BLUR + (MOST_BLUR - LEAST_BLUR) * amount
    return tuple(sigma * (1 + UNLIKE * (2 * share - 1)) for share in along), 0.0


def drawn_volumes(image, method, name):
    """All LR volumes that a volume is learned from, one for each slab.

    Parameters
    ----------
    image : ndarray of float32, shape (X, Y, Z)
        Background 0.
    method : Method
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
    hr = original_of(image, method.factor)
    used, step = np.flatnonzero(hr.any((1, 2))), method.factor[0]
    edges = np.linspace(used[0], used[-1] + 1, method.draws + 1) / step
    edges = np.round(edges).astype(int) * step
    order = random_of(method.seed, f"{name} slabs").permutation(method.draws)
    for number, slab in enumerate(order):
        random = random_of(method.seed, f"{name} draw {number}")
        volume = _drawn_volume(hr, method, random, edges[slab], edges[slab + 1])
        if volume is not None:
            yield volume


def _drawn_volume(hr, method, random, first, last):
    """One LR volume of `hr`, of planes first to last; None where they hold no brain."""
    draw, step = draw_of(method, random), method.factor[0]
    # So many planes around that noise and blur are read as off a whole volume.
    begin, end = max(first - AROUND, 0) // step * step, -(-(last + AROUND) // step) * step
    hr, first, last = hr[begin:end], first - begin, last - begin
    hr = with_grain(with_sharpness(hr, draw), draw.grain, random)
    operator = degradation_of(hr.shape, method)
    operator.profiles = draw.profiles
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
    missed = np.mean(np.square(hr - cut[0])[cut[2]])
    blur = blur_of(draw.profiles, method.factor)
    return LRVolume(cut[0], low, operator, whole, hr.shape, scale, cut[1], hr=hr,
                    descriptors=operator.descriptors(unit), blur=blur if draw.told else None,
                    true_blur=blur, misread=draw.misread.astype(np.float32),
                    core=cut[2], weight=1 / (missed + LEAST_MISSED))


def with_sharpness(hr, draw):
    """The volume blurred or sharpened as drawn, within its outline, in [0, 1]."""
    if draw.sharpening:
        finest = hr - _blurred(hr, 3 * (FINEST,))
        return np.clip(hr + np.float32(draw.sharpening) * finest, FAINTEST, 1) * (hr > 0)
    if not any(draw.softness):
        return hr
    brain = hr > 0
    # A mean of brain alone: the outline is cut after the scan, and is not darker for its blur.
    return np.divide(_blurred(hr, draw.softness), _blurred(brain.astype(np.float32), draw.softness),
                     out=np.zeros_like(hr), where=brain)


def _blurred(volume, sigmas):
    """The volume under a Gaussian of these standard deviations along its axes, in voxels."""
    operators = []
    for side, sigma in zip(volume.shape, sigmas, strict=True):
        apart = np.arange(side)[:, None] - np.arange(side)
        weights = np.exp(-0.5 * (apart / sigma) ** 2) * (abs(apart) <= 4 * sigma)
        operators.append(banded(weights / weights.sum(1, keepdims=True)))
    return apply_operators(volume, operators)


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
