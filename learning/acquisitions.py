"""Sampled acquisitions: simulated LR training volumes with a scanner's blur, noise and outline.

A training volume is cut into slabs along its first axis. Each slab is degraded together with the
planes around it. The slice profile, the noise level and other properties of this acquisition are
drawn at random, so that a few volumes give hundreds of acquisitions. Only the voxels of the slab
are training samples. The random choice depends only on the seed, the volume's name and the
acquisition's number. Every pass, also after an interruption, therefore makes the same LR volumes.
"""
from typing import NamedTuple

import numpy as np

from degrading.acquisition import make_low, original_of
from degrading.banded import apply_operators, banded
from degrading.degradation import SliceProfile
from degrading.profile_reader import BEFORE, blur_of
from degrading.slice_profile import PROFILES, Profile
from degrading.spline import zoom_matrix
from get_lar import RIM, LRVolume
from util import bright_level_of_scan, random_of, tight_box, used_along

HALO = 10  # planes on either side of a slab, for filters and features
AROUND = 32  # planes on either side of a slab that are degraded with it
CLEAN = 0.35  # share of acquisitions without noise
LOW_NOISE = 1.5  # power of a uniform random number, so that low noise is more frequent than high
NOISY_ORIGINALS = 0.4  # share of acquisitions whose original gets noise
FAINTEST = 1e-3  # lowest value of brain after sharpening or noise; the brightest intensity is 1
# Relative frequency of each profile in acquisitions whose profile is not given to the filters.
# Profiles with little blur are drawn more often than they occur in practice, and the Hamming window
# is not drawn without noise, because an overestimated blur does most harm there.
SHARES = dict.fromkeys(PROFILES, 1.0) | BEFORE | {"gauss": 0.8}
EXACT, WIDER = 0.5, 0.15  # share of profiles of exact width; largest relative change of others
READING_ERROR = (0.08, 0.1)  # standard deviations of random errors of estimated transfer values
MIXED = 0.15  # share of acquisitions in which the profile of one axis is drawn separately
# Share of sharpened originals, largest share of the finest detail that is added to them, and sigma
# (voxels) of the Gaussian that separates the finest detail.
SHARPENED, MOST_SHARPENED, FINEST = 0.15, 0.5, 0.7
AS_IT_IS = 0.2  # share of unchanged originals
# Blur of the others: smallest and largest sigma in voxels, largest relative difference of axes.
LEAST_BLUR, MOST_BLUR, UNLIKE = 0.25, 1.0, 0.3
# Share of windows in k-space among noisy acquisitions whose profile is not given, the noise above
# which they are noisy, and the smallest strength of a window relative to the Hamming window.
WINDOWED, NOISY, MILDEST = 0.2, 0.012, 0.4
GIVEN = 0.5  # share of acquisitions whose profile is given to the filters
LEAST_MISSED = 1e-5  # mean squared error; the weight of an acquisition is below 1 / LEAST_MISSED


class SampledAcquisition(NamedTuple):
    """The random properties of one acquisition."""

    profiles: tuple  # of three slice_profile.Profile, one for each axis
    sigma: float  # standard deviation of the noise, as a share of the brightest intensity
    softness: tuple  # of three float: sigma of the blur of the original along each axis, voxels
    sharpening: float  # share of the original's finest detail that is added to it
    original_noise: float  # sigma of the original's noise, as a share of the brightest intensity
    given: bool  # True if the profiles are given to the filters
    reading_error: np.ndarray  # (len(READING_NAMES),): error added to the estimated transfer values


def sample_acquisition(method, random):
    """Draw profiles, a noise level, and the sharpness and noise of the original."""
    given = random.random() < GIVEN
    profiles = _profiles_of(method, given, random)
    clean, level = random.random(2)
    sigma = 0.0 if clean < CLEAN else method.noise / 100 * level**LOW_NOISE
    windowed, exact, width = random.random(3)
    # Noise shows where a window ends in k-space. Slices are thick by excitation, not by a window.
    if (windowed < WINDOWED and sigma > NOISY and not given and "hamming" in method.profile
            and not method.refines_one_axis):
        strength = MILDEST + (1 - MILDEST) * width
        profiles = 3 * (_varied("hamming", exact, width, strength),)
    noisy, original_noise = random.random(2)
    softness, sharpening = _sharpness_of(random)
    original_noise *= method.original_noise / 100 if noisy < NOISY_ORIGINALS else 0.0
    error = np.multiply(READING_ERROR, random.standard_normal(len(READING_ERROR)))
    return SampledAcquisition(profiles, sigma, softness, sharpening, original_noise, given, error)


def _profiles_of(method, given, random):
    """Draw the profile of each axis at random: often the same for all, sometimes one differs."""
    names = method.profile
    shares = np.array([1.0 if given else SHARES[name] for name in names])
    if not shares.any():
        shares += 1
    first, other = random.choice(len(names), 2, p=shares / shares.sum())
    exact, width, damping, mixed = random.random(4)
    axis = int(random.integers(3))

    found = 3 * [_varied(names[first], exact, width, damping)]
    if mixed < MIXED:  # as in a 2-D acquisition, where slice and plane have different profiles
        found[axis] = _varied(names[other], exact, width, damping)
    return tuple(found)


def _varied(name, exact, width, strength):
    """A profile as it is, or with another width and, for a window in k-space, another strength."""
    kind, nominal, damping = PROFILES[name]
    if exact < EXACT:
        return PROFILES[name]
    return Profile(kind, nominal * (1 + WIDER * (2 * width - 1)), damping * strength)


def _sharpness_of(random):
    """Draw the sharpness of the original: sigma of a blur along each axis, and the sharpening."""
    which, amount, *along = random.random(5)
    if which < SHARPENED:
        return (0.0, 0.0, 0.0), MOST_SHARPENED * amount
    if which < SHARPENED + AS_IT_IS:
        return (0.0, 0.0, 0.0), 0.0
    sigma = LEAST_BLUR + (MOST_BLUR - LEAST_BLUR) * amount
    return tuple(sigma * (1 + UNLIKE * (2 * share - 1)) for share in along), 0.0


def sampled_volumes(image, method, name):
    """All LR volumes made from one training volume, one for each slab that holds brain.

    Parameters
    ----------
    image : ndarray of float32, shape (X, Y, Z)
        The background is 0.
    method : Method
        Method of --preset scan.
    name : str
        Name of the volume. The name and the seed determine the random choice.

    Yields
    ------
    LRVolume
        The LR volume with its original; `training_mask` marks the brain voxels of the slab.

    Raises
    ------
    ValueError
        If no voxel is above zero, or an axis is too short.
    """
    hr = original_of(image, method.factor)
    used, step = used_along(hr, 0), method.factor[0]
    edges = np.linspace(used[0], used[-1] + 1, method.draws + 1) / step
    edges = np.round(edges).astype(int) * step
    order = random_of(method.seed, f"{name} slabs").permutation(method.draws)
    for number, slab in enumerate(order):
        random = random_of(method.seed, f"{name} draw {number}")
        volume = _sampled_volume(hr, method, random, edges[slab], edges[slab + 1])
        if volume is not None:
            yield volume


def _sampled_volume(hr, method, random, first, last):
    """One LR volume of `hr` for the planes first to last; None if these planes hold no brain."""
    acquisition, step = sample_acquisition(method, random), method.factor[0]
    # With these planes around the slab, the descriptors are like those of a whole volume.
    begin, end = max(first - AROUND, 0) // step * step, -(-(last + AROUND) // step) * step
    hr, first, last = hr[begin:end], first - begin, last - begin
    hr = with_original_noise(with_sharpness(hr, acquisition), acquisition.original_noise, random)
    operator = SliceProfile(hr.shape, method, acquisition.profiles)
    low = make_low(hr, operator, acquisition.sigma, random)
    scale = bright_level_of_scan(low)
    if not scale > 0:
        return None
    unit = np.minimum(low, scale) / np.float32(scale)
    planes = slice(max(first - HALO, 0), min(last + HALO, hr.shape[0]))
    start, mask = _planes_of_start(unit, operator, planes)
    training_mask = np.zeros(mask.shape, bool)
    training_mask[first - planes.start:last - planes.start] = True
    if not (training_mask & mask).any():
        return None
    box = tight_box(mask)
    whole = (slice(planes.start + box[0].start, planes.start + box[0].stop), *box[1:])
    cut = [np.ascontiguousarray(part[box]) for part in (start, mask, training_mask & mask)]
    hr = np.ascontiguousarray(hr[whole]) / np.float32(scale)
    missed = np.mean(np.square(hr - cut[0])[cut[2]])
    blur = blur_of(acquisition.profiles, method.factor)
    return LRVolume(cut[0], low, operator, whole, hr.shape, scale, cut[1], hr=hr,
                    descriptors=operator.descriptors(unit), true_blur=blur,
                    blur=blur if acquisition.given else None,
                    reading_error=acquisition.reading_error.astype(np.float32),
                    training_mask=cut[2], weight=1 / (missed + LEAST_MISSED))


def with_sharpness(hr, acquisition):
    """The volume blurred or sharpened as the acquisition states, within its outline, in [0, 1]."""
    if acquisition.sharpening:
        finest = hr - _blurred(hr, 3 * (FINEST,))
        return np.clip(hr + np.float32(acquisition.sharpening) * finest, FAINTEST, 1) * (hr > 0)
    if not any(acquisition.softness):
        return hr
    brain = hr > 0
    # Only brain voxels are averaged, so that the blur does not darken the outline.
    blurred, weight = (_blurred(part, acquisition.softness)
                       for part in (hr, brain.astype(np.float32)))
    return np.divide(blurred, weight, out=np.zeros_like(hr), where=brain)


def _blurred(volume, sigmas):
    """The volume smoothed by a Gaussian; `sigmas`: standard deviation along each axis, voxels."""
    operators = []
    for side, sigma in zip(volume.shape, sigmas, strict=True):
        apart = np.arange(side)[:, None] - np.arange(side)
        weights = np.exp(-0.5 * (apart / sigma) ** 2) * (abs(apart) <= 4 * sigma)
        operators.append(banded(weights / weights.sum(1, keepdims=True)))
    return apply_operators(volume, operators)


def with_original_noise(hr, sigma, random):
    """Add noise to the original, before it is degraded.

    Good volumes of many scanners are noisy: filters learn to keep noise that their targets have.
    """
    if not sigma:
        return hr
    noise = np.float32(sigma) * random.standard_normal(hr.shape, np.float32)
    return np.clip(hr + noise, FAINTEST, 1) * (hr > 0)


def _planes_of_start(unit, operator, planes):
    """Initial estimate and mask on some planes of the fine grid, as in `get_lar.make_fine`."""
    def upsampled(volume, order):
        matrices = [zoom_matrix(n, side, order, True, operator.grid)
                    for n, side in zip(volume.shape, operator.shape, strict=True)]
        matrices[0] = matrices[0][planes]
        return apply_operators(volume, [banded(matrix) for matrix in matrices])

    mask = upsampled((unit > 0).astype(np.float32), 1) >= RIM
    return np.clip(upsampled(unit, operator.start_order), 0, None) * mask, mask
