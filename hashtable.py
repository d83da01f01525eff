"""Features of voxels, and their buckets: classes of similar features (section 3.2 of the paper)."""
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from filter_func import WINDOW_SIGMA, gaussian_weights
from machine.threads import in_threads, thread_count
from published.structure_tensor import features_of_slab
from util import random_of


class Features(NamedTuple):
    """Features of voxels, in the order of the voxels."""

    angle: np.ndarray  # (n, 2) uint8: class of the azimuth, class of the inclination
    strength: np.ndarray  # (n,) float32
    coherence: np.ndarray  # (n,) float32


class Boundaries(NamedTuple):
    """Thresholds between the classes of strength and of coherence, ascending."""

    strength: np.ndarray  # (classes - 1,) float64
    coherence: np.ndarray  # (classes - 1,) float64


def interior_voxels(mask, margin):
    """Flat indices, in raster order, of the True voxels `margin` or more from the volume's faces.

    Examples
    --------
    >>> interior_voxels(np.ones((3, 3, 4), bool), 1)
    array([17, 18])
    """
    inside = np.zeros(mask.shape, bool)
    inner = tuple(slice(margin, side - margin) for side in mask.shape)
    inside[inner] = mask[inner]
    return np.flatnonzero(inside)


def sample_voxels(voxels, rate, seed, name):
    """Choose one voxel in `rate` at random; the same seed and name give the same choice.

    Parameters
    ----------
    voxels : ndarray of int, ascending
    rate : int
    seed : int
    name : str
        Name of the volume and of the purpose, so that volumes are sampled independently.
    """
    if rate == 1:
        return voxels
    return voxels[random_of(seed, name).random(voxels.size) < 1 / rate]


def features(lr, voxels, method):
    """Direction, strength and coherence of the gradients around voxels (section 3.2 of the paper).

    Parameters
    ----------
    lr : ndarray of float32, shape (X, Y, Z), C-contiguous
    voxels : ndarray of int64, ascending
        Flat indices, at least half a gradient window from the faces.
    method : Method
        Its grad_len, q_angle_p, q_angle_t and feature_type are used.

    Returns
    -------
    Features

    Examples
    --------
    A ramp along the first axis: all gradients point along this axis, and coherence is 1.

    >>> from filter_constant import Method
    >>> ramp = np.tile(np.arange(12, dtype=np.float32)[:, None, None], (1, 12, 12))
    >>> found = features(ramp, np.array([5 * 144 + 5 * 12 + 5]), Method())
    >>> found.angle.tolist(), found.strength.round(3), found.coherence.round(3)
    ([[0, 4]], array([1.], dtype=float32), array([1.], dtype=float32))
    """
    weights = gaussian_weights(method.grad_len, WINDOW_SIGMA).astype(np.float32)
    plane = lr.shape[1] * lr.shape[2]
    first = np.searchsorted(voxels, np.arange(lr.shape[0] + 1) * plane)  # first voxel of each plane
    found = Features(np.empty((voxels.size, 2), np.uint8), np.empty(voxels.size, np.float32),
                     np.empty(voxels.size, np.float32))
    strength, coherence = method.feature_type.split("_")
    edges_p = np.arange(1, method.q_angle_p) * np.pi / method.q_angle_p
    edges_t = np.cos(np.arange(1, method.q_angle_t) * np.pi / method.q_angle_t)
    # Slabs of about equal work, two per thread; the cuts affect only the speed, not the features.
    cuts = np.searchsorted(first, np.linspace(0, first[-1], 2 * thread_count() + 1))
    cuts = np.unique([0, *cuts, first.size - 1])

    def do_slab(slab):
        features_of_slab(lr, voxels, first, *slab, weights, np.sin(edges_p), np.cos(edges_p),
                         edges_t, strength == "trace", coherence == "fa", *found)

    in_threads(pairwise(cuts.tolist()), do_slab)
    return found


def quantile_boundaries(values, classes):
    """Boundaries between classes with about equal numbers of values.

    Boundary i is element ``floor((i + 1) * count / classes)`` of the sorted values.

    Examples
    --------
    >>> quantile_boundaries(np.array([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]), 3)
    array([3., 5.])
    """
    places = (np.arange(1, classes) * values.size) // classes
    return np.sort(values)[places].astype(np.float64)


def buckets_of(found, boundaries, method):
    """The bucket of each voxel.

    Parameters
    ----------
    found : Features
    boundaries : Boundaries

    Returns
    -------
    bucket : ndarray of int32, shape (n,)
        ``((angle_p * q_angle_t + angle_t) * 3 + strength) * 3 + coherence``.

    Examples
    --------
    >>> from filter_constant import Method
    >>> found = Features(np.array([[1, 2]]), np.array([0.5]), np.array([0.9]))
    >>> buckets_of(found, Boundaries(np.array([0.4, 0.6]), np.array([0.2, 0.3])), Method())
    array([95], dtype=int32)
    """
    strength = np.searchsorted(boundaries.strength, found.strength)
    coherence = np.searchsorted(boundaries.coherence, found.coherence)
    classes = (*found.angle.T, strength, coherence)
    return np.ravel_multi_index(classes, method.classes).astype(np.int32)


def nearest_buckets(served, method):
    """For each bucket, the nearest bucket that has a filter of its own.

    A bucket is a point in feature space: a direction (the middle of its bin), a class of strength
    and a class of coherence. Opposite directions are equal. Neighbouring bins of inclination,
    classes of strength and classes of coherence have the distance 1.

    Parameters
    ----------
    served : ndarray of bool, shape (buckets,)
        True for buckets with a filter of their own.

    Returns
    -------
    nearest : ndarray of int, shape (buckets,)
    """
    angle_p, angle_t, strength, coherence = np.unravel_index(np.arange(method.buckets),
                                                             method.classes)
    phi, theta = ((angle + 0.5) * np.pi / bins for angle, bins in (
        (angle_p, method.q_angle_p), (angle_t, method.q_angle_t)))
    direction = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)],
                         1)
    nearest = np.arange(method.buckets)
    marked = np.flatnonzero(served)
    for bucket in np.flatnonzero(~served):
        cosine = np.clip(np.abs(direction[marked] @ direction[bucket]), 0, 1)
        turn = np.arccos(cosine) * method.q_angle_t / np.pi
        apart = (turn**2 + (strength[marked] - strength[bucket])**2
                 + (coherence[marked] - coherence[bucket])**2)
        nearest[bucket] = marked[apart.argmin()]
    return nearest


def ascending(values, classes):
    """Class boundaries from a list; raises ValueError if they are not valid."""
    array = np.array([float(value) for value in values])
    if (array.shape != (classes - 1,) or not np.isfinite(array).all()
            or (np.diff(array) < 0).any()):
        raise ValueError("its class boundaries make no sense")
    return array
