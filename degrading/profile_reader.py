"""How a scan was blurred, read off its noise and blur descriptors; and when not to restore it.

No descriptor alone tells the profile of a scanner: each of them also moves with how sharp its
originals are, with noise and with anatomy. Together they tell more. The reading is a ridge
regression from all of them to what filters need to know, the profile's transfer at two
frequencies. Trees split on the reading, or on the user's word where the profile is known.

Filters of brains make a phantom or a CT worse. Two measures tell: how far the descriptors lie from
those that were learned from, and how sparse the edges are. There filters give way to the spline.
"""
import numpy as np

from degrading.descriptors import SPECTRAL
from degrading.slice_profile import transfer

READING_NAMES = (
    "transfer_3_4",  # of the profile, at 3/4 of the highest frequency of the LR grid
    "transfer_end",  # at the highest frequency
)
SHARES = (0.75, 1.0)  # of the highest frequency, as above
TOLD_NAMES = (*READING_NAMES, "told")
RIDGE = 3.0  # draws
SHRINKAGE = 0.1  # added to variances of 1: descriptors that hardly vary are not trusted to
USUAL, TOO_STRANGE = 1.5, 2.0  # strangeness up to which filters work in full, and not at all
# Median over root mean square of differences: 0.42 to 0.58 in brains, 0.28 and more in heads, 0.07
# in a CT without noise. From the first on filters work in full, below the second not at all. With
# 3 % of noise a CT has 0.36, and filters gain there as elsewhere.
DENSE, SPARSE = 0.3, 0.2


def blur_of(profiles, factor):
    """The reading that profiles should give: the mean of their transfers over refined axes.

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
    blur : ndarray, shape (draws, len(READING_NAMES))
        What `blur_of` says of each draw.

    Returns
    -------
    reader : ndarray of float64, shape (len(READING_NAMES) + descriptors, 1 + descriptors)
        In each row a constant, then a weight for each descriptor. First the readings; then what
        makes the descriptors numbers of mean 0 and variance 1, for `strangeness`.

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


def read(reader, descriptors, misread=0.0):
    """The reading of a scan, within what profiles can be: ndarray of float32.

    In learning, `misread` is added: filters shall be ready for scanners that are read less well.
    """
    rows, descriptors = reader[:len(READING_NAMES)], _completed(reader, descriptors)
    return np.clip(rows[:, 0] + rows[:, 1:] @ descriptors + misread, 0, 1).astype(np.float32)


def strangeness(reader, descriptors):
    """How far descriptors lie from those that were learned from: about 0.5 among these.

    The root mean square of what the last rows of the reader make of them; 0 of filters that were
    learned without.
    """
    rows, descriptors = reader[len(READING_NAMES):], _completed(reader, descriptors)
    return float(np.sqrt(np.mean(np.square(rows[:, 0] + rows[:, 1:] @ descriptors))))


def _completed(reader, descriptors):
    """The descriptors, with the usual spectrum where a volume is too small to have one."""
    if len(descriptors) <= SPECTRAL or np.any(descriptors[SPECTRAL:]) or not reader.any():
        return descriptors
    constant, weights = np.split(reader[len(READING_NAMES):], [1], axis=1)
    usual = np.linalg.solve(weights, -constant[:, 0])  # what makes all whitened numbers 0
    return np.concatenate([descriptors[:SPECTRAL], usual[SPECTRAL:]])


def trust(reader, descriptors, density):
    """Share of what filters change that is made: 1 of usual scans, 0 of too strange ones.

    Parameters
    ----------
    reader : ndarray, see `fit_reader`
    descriptors : ndarray of float32, shape (descriptors,)
    density : float
        What `degrading.descriptors.edge_density` gives.

    Examples
    --------
    >>> descriptors = np.random.default_rng(0).normal(size=(500, 3))
    >>> reader = fit_reader(descriptors, np.zeros((500, 2)))
    >>> trust(reader, np.zeros(3), 0.5), trust(reader, np.full(3, 9.0), 0.5)
    (1.0, 0.0)
    >>> round(trust(reader, np.zeros(3), 0.25), 2)
    0.5
    """
    known = (TOO_STRANGE - strangeness(reader, descriptors)) / (TOO_STRANGE - USUAL)
    dense = (density - SPARSE) / (DENSE - SPARSE)
    return float(np.clip(min(known, dense), 0, 1))


def told_or_read(reader, descriptors, blur=None, misread=None):
    """What trees may split on of a whole scan: descriptors, readings, and whether these were told.

    Parameters
    ----------
    reader : ndarray, see `fit_reader`
    descriptors : ndarray of float32, shape (descriptors,)
    blur : ndarray of float32, shape (len(READING_NAMES),), optional
        What is known of the profile. By default it is read.
    misread : ndarray of float32, optional
        See `read`.

    Returns
    -------
    ndarray of float32, shape (descriptors + len(TOLD_NAMES),)
    """
    found = blur
    if blur is None:
        found = read(reader, descriptors, 0.0 if misread is None else misread)
    return np.concatenate([descriptors, found, [blur is not None]]).astype(np.float32)
