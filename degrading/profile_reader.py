"""Estimate a scan's blur from its noise and blur descriptors.

A slice profile is described by its transfer: the share of a wave's amplitude that it keeps. No
single descriptor shows the profile, because each also depends on the sharpness of the anatomy and
on noise. The *reading* is the transfer at two frequencies, estimated from all descriptors by ridge
regression. Trees split on the reading, or on the transfer of a profile that the user gives.
"""
import math

import numpy as np

from degrading.descriptors import SPECTRAL
from degrading.slice_profile import PROFILES, transfer

READING_NAMES = (
    "transfer_3_4",  # transfer of the profile at 3/4 of the highest frequency of the LR grid
    "transfer_end",  # transfer of the profile at the highest frequency
)
SHARES = (0.75, 1.0)  # frequencies of the readings, relative to the highest frequency
TOLD_NAMES = (*READING_NAMES, "told")  # told: 1 if the user gave the profile, 0 if it is estimated
# For probable and doubtful profiles: 1.6 times the root mean square of errors on scanners outside
# the training set; relative frequency of profiles before anything is known.
READING_ERROR = (0.21, 0.32)
BEFORE = {"kspace": 2.5, "hamming": 0.0}  # 1 for other profiles
DOUBTFUL = 2.0  # a given profile is doubted at this distance from the reading, in READING_ERROR
UNLIKELY = 0.2  # profiles less probable than this share of the most probable one are left out
RIDGE = 3.0  # weight of the ridge, as a number of sampled acquisitions
SHRINKAGE = 0.1  # added to variances, to reduce the weight of directions that hardly vary


def blur_of(profiles, factor):
    """The true reading of known profiles: the mean of their transfers over the refined axes.

    Parameters
    ----------
    profiles : sequence of three str or slice_profile.Profile
    factor : sequence of three int

    Returns
    -------
    ndarray of float32, shape (len(READING_NAMES),)

    Examples
    --------
    >>> blur_of(("kspace", "kspace", "box"), (2, 2, 2)).round(2)
    array([0.93, 0.88], dtype=float32)
    """
    refined = [profile for profile, f in zip(profiles, factor, strict=True) if f > 1]
    return np.mean([[transfer(profile, share) for share in SHARES] for profile in refined],
                   axis=0).astype(np.float32)


def fit_reader(descriptors, blur):
    """The linear map from descriptors to readings, by ridge regression.

    Parameters
    ----------
    descriptors : ndarray, shape (draws, descriptors)
        Descriptors of the sampled acquisitions (draws) of the training.
    blur : ndarray, shape (draws, len(READING_NAMES))
        `blur_of` of each sampled acquisition.

    Returns
    -------
    reader : ndarray of float64, shape (len(READING_NAMES) + descriptors, 1 + descriptors)
        Rows of a constant and a weight for each descriptor. The first rows give the reading; the
        others whiten the descriptors (mean 0, variance about 1) for `strangeness`.

    Examples
    --------
    >>> descriptors = np.random.default_rng(0).random((500, 2))
    >>> fit_reader(descriptors, 3 + descriptors @ [[2.0, 0.5], [1, 1]])[:2].round(1)
    array([[3. , 2. , 1. ],
           [3. , 0.5, 1. ]])
    """
    descriptors, blur = np.asarray(descriptors, np.float64), np.asarray(blur, np.float64)
    middle, spread = descriptors.mean(0), descriptors.std(0)
    spread[spread < 1e-9] = 1.0
    x = (descriptors - middle) / spread
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (blur - blur.mean(0)))
    variance, directions = np.linalg.eigh(x.T @ x / len(x))
    whitening = directions / np.sqrt(np.maximum(variance, 0) + SHRINKAGE)
    weights = np.vstack([weights.T, whitening.T]) / spread
    constant = np.concatenate([blur.mean(0), np.zeros(x.shape[1])]) - weights @ middle
    return np.ascontiguousarray(np.column_stack([constant, weights]))


def read(reader, descriptors, reading_error=0.0):
    """The reading of a scan, clipped to [0, 1]: ndarray of float32.

    In training, a random error `reading_error` is added, so that filters tolerate wrong readings.
    In restoring, `toward_least_blur` is added if the estimated blur is not believed.
    """
    return np.clip(estimate(reader, descriptors) + reading_error, 0, 1).astype(np.float32)


def estimate(reader, descriptors):
    """The reading of a scan before it is clipped: ndarray of float64."""
    rows, descriptors = reader[:len(READING_NAMES)], _completed(reader, descriptors)
    return rows[:, 0] + rows[:, 1:] @ descriptors


def toward_least_blur(reader, descriptors, belief):
    """A `reading_error` of `read`, for a scan whose estimated blur is believed only partly.

    The least blur is that of an acquisition in k-space, which leaves all of the signal.

    Parameters
    ----------
    reader : ndarray, see `fit_reader`
    descriptors : ndarray of float32, shape (descriptors,)
    belief : float
        1: the reading as estimated; 0: the least blur.

    Returns
    -------
    ndarray of float32, shape (len(READING_NAMES),)

    Examples
    --------
    >>> reader = fit_reader(np.random.default_rng(0).random((500, 3)), np.full((500, 2), 0.6))
    >>> error = toward_least_blur(reader, np.full(3, 0.5), belief=0.5)
    >>> read(reader, np.full(3, 0.5)).round(2), read(reader, np.full(3, 0.5), error).round(2)
    (array([0.6, 0.6], dtype=float32), array([0.8, 0.8], dtype=float32))
    """
    wanted = 1 - belief * (1 - read(reader, descriptors))
    return (wanted - estimate(reader, descriptors)).astype(np.float32)


def nearest_profile(reading):
    """The name of the slice profile that is most similar to a reading of `read`.

    Examples
    --------
    >>> nearest_profile(blur_of(("box", "box", "box"), (2, 2, 2)))
    'box'
    """
    errors = _errors(reading)
    return min(errors, key=lambda name: np.square(errors[name]).sum())


def _errors(reading):
    """The errors that a reading has if the slice profile is each of PROFILES: a dict by name."""
    return {name: reading - blur_of(3 * (name,), (2, 2, 2)) for name in PROFILES}


def likely_profiles(reading):
    """The slice profiles that agree with a reading of `read`, and their probabilities.

    Errors of readings count as normal and independent. Profiles much less probable than the most
    probable one are left out.

    Parameters
    ----------
    reading : ndarray, shape (len(READING_NAMES),)

    Returns
    -------
    dict of str to float
        Probability by name; the sum is 1.

    Examples
    --------
    >>> list(likely_profiles(np.array([0.4, 0.1])))
    ['gauss']
    """
    found = {name: BEFORE.get(name, 1.0) * math.exp(-_misfit(error) / 2)
             for name, error in _errors(reading).items()}
    least = UNLIKELY * max(found.values())
    found = {name: share for name, share in found.items() if share > least}
    return {name: share / sum(found.values()) for name, share in found.items()}


def claims_too_much_blur(reading, blur):
    """True if a given profile has clearly more blur than the reading of `read`.

    Too much blur does most harm. Over 25 brains with four profiles, each with and without noise,
    6 % of the right profiles `hamming` are doubted, and none of the other right profiles. All wrong
    profiles `hamming` are doubted, and two of three profiles `gauss` of scans like `kspace`.

    Parameters
    ----------
    reading : ndarray, shape (len(READING_NAMES),)
    blur : ndarray, shape (len(READING_NAMES),)
        `blur_of` the given profile.

    Examples
    --------
    >>> reading = blur_of(3 * ("kspace",), (2, 2, 2))
    >>> [claims_too_much_blur(reading, blur_of(3 * (name,), (2, 2, 2))) for name in
    ...  ("hamming", "kspace")]
    [True, False]
    """
    error = reading - blur
    return bool((error / READING_ERROR).sum() > 0 and _misfit(error) > DOUBTFUL**2)


def are_plausible(profiles, factor, reader, descriptors):
    """True if the blur that is estimated for a scan agrees with its known slice profiles.

    Parameters
    ----------
    profiles : sequence of three str
    factor : sequence of three int
    reader : ndarray, see `fit_reader`
        Without a reader, nothing is plausible.
    descriptors : ndarray of float32, shape (descriptors,)
    """
    error = read(reader, descriptors) - blur_of(profiles, factor)
    return bool(reader.any() and _misfit(error) <= DOUBTFUL**2)


def _misfit(error):
    """Square of the length of an error of a reading, in READING_ERROR."""
    return np.square(error / READING_ERROR).sum()


def strangeness(reader, descriptors):
    """Distance of descriptors from the training descriptors; about 0.5 for training volumes.

    It is the root mean square of the whitened descriptors, or 0 for filters without a reader.
    """
    rows, descriptors = reader[len(READING_NAMES):], _completed(reader, descriptors)
    return float(np.sqrt(np.mean(np.square(rows[:, 0] + rows[:, 1:] @ descriptors))))


def _completed(reader, descriptors):
    """The descriptors; a volume that is too small for a spectrum gets the usual spectrum."""
    if len(descriptors) <= SPECTRAL or np.any(descriptors[SPECTRAL:]) or not reader.any():
        return descriptors
    constant, weights = np.split(reader[len(READING_NAMES):], [1], axis=1)
    usual = np.linalg.solve(weights, -constant[:, 0])  # whitening turns these values into zeros
    return np.concatenate([descriptors[:SPECTRAL], usual[SPECTRAL:]])


def told_or_read(reader, descriptors, blur=None, reading_error=None):
    """Features of a whole scan for trees: descriptors, reading, and 1 if the profile was given.

    Parameters
    ----------
    reader : ndarray, see `fit_reader`
    descriptors : ndarray of float32, shape (descriptors,)
    blur : ndarray of float32, shape (len(READING_NAMES),), optional
        Transfer of the given profile, see `blur_of`. By default it is estimated.
    reading_error : ndarray of float32, optional
        See `read`.

    Returns
    -------
    ndarray of float32, shape (descriptors + len(TOLD_NAMES),)
    """
    found = blur
    if blur is None:
        found = read(reader, descriptors, 0.0 if reading_error is None else reading_error)
    return np.concatenate([descriptors, found, [blur is not None]]).astype(np.float32)
