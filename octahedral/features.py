"""Features of a voxel in a frame of its own, so that filters need not learn each direction anew.

A cube has 48 symmetries: 6 orders of the axes times 8 flips. Each voxel's surroundings are turned
by the one that brings its principal gradient direction v into a fixed range: v points along the
smoothed gradient, and its components are positive and descending. So an edge that runs up and one
that runs left are one case, learned together; a filter is stored once instead of 48 times. In that
frame, the features below say what the surroundings look like. Where the factor differs between
axes, only axes of equal factor change places.

Volumes are padded by `REACH` voxels on every side, and worked on in slabs to save memory.
"""
from typing import NamedTuple

import numpy as np
from numba import njit

from filter_constant import WINDOW_SIGMA
from filter_func import gaussian_weights
from machine.simd import LANES, correlate
from machine.threads import in_threads, spans
from octahedral.scene import REACH
from scan_cues import CUE_NAMES, FLOOR
from structure_tensor import eigen_3x3

SLAB, PIECE = 48, 4096  # planes at a time, and voxels that a thread takes of them
WINDOW, WIDE_WINDOW, MEAN_WINDOW = (np.asarray(weights, np.float32) for weights in (
    gaussian_weights(9, WINDOW_SIGMA), gaussian_weights(11, 2.0), np.full(5, 1 / 5)))

# Axes 0, 1, 2 are those of the voxel's frame. Differences are divided by sqrt(l1), except "raw".
FEATURE_NAMES = (
    "strength", "ratio_2", "ratio_3",  # log l1, l2 / l1, l3 / l1
    "slope_1", "slope_2",  # |v1| / |v0|, |v2| / |v0|
    "place_0", "place_1", "place_2",  # from the nearest LR sample, signed
    "apart_0", "apart_1", "apart_2",  # the same, unsigned
    "bend_0", "bend_1", "bend_2", "bend", "bend_raw",  # second differences, and their sum
    "wide_bend_0", "wide_bend_1", "wide_bend_2",  # second differences over two voxels
    "twist_01", "twist_02", "twist_12",  # mixed differences
    "rise_0", "rise_1", "rise_2",  # first differences
    "above_wide", "above_mean",  # the voxel less a Gaussian of sigma 2, less the mean of 5^3 voxels
    "mean", "value",  # that mean, and the voxel
    "moved", "moved_raw",  # the voxel less what the first stage began with
    "brain",  # share of the 5^3 voxels that are in the brain
    "coherence",  # of the square roots of l1, l2, l3, as in the published method
)
# The place of each in a row of features; integers, which numba compiles in.
(STRENGTH, RATIO_2, RATIO_3, SLOPE_1, SLOPE_2, PLACE_0, PLACE_1, PLACE_2, APART_0, APART_1, APART_2,
 BEND_0, BEND_1, BEND_2, BEND, BEND_RAW, WIDE_BEND_0, WIDE_BEND_1, WIDE_BEND_2,
 TWIST_01, TWIST_02, TWIST_12, RISE_0, RISE_1, RISE_2, ABOVE_WIDE, ABOVE_MEAN, MEAN, VALUE,
 MOVED, MOVED_RAW, BRAIN, COHERENCE) = range(len(FEATURE_NAMES))
VOXEL_FEATURES = OVER_NOISE = len(FEATURE_NAMES)
# Of scenes with cues: the strength over that of the noise, and what is the same for each voxel.
FEATURE_NAMES += ("over_noise", *CUE_NAMES)


class Slab(NamedTuple):
    """Planes of a scene with what is computed from them; all volumes are flat, (n,) float32."""

    estimate: np.ndarray
    start: np.ndarray
    rows: int  # in a plane
    row: int  # voxels in a row
    first: int  # plane of the padded volume
    place: np.ndarray
    swaps: np.ndarray
    tensor: np.ndarray  # (6, n): xx, yy, zz, xy, xz, yz
    smooth: np.ndarray
    wide: np.ndarray
    mean: np.ndarray
    brain: np.ndarray


def in_slabs(scene, voxels, work):
    """Go through a scene in slabs, and through the voxels of each in threads.

    Parameters
    ----------
    scene : Scene
    voxels : ndarray of int64, ascending
        Flat indices in the padded volume.
    work : callable
        Called with a slab, its voxels as flat indices in it, and their slice of `voxels`.
    """
    nx, plane = scene.mask.shape[0], scene.mask[0].size
    for begin in range(REACH, nx - REACH, SLAB):
        end = min(begin + SLAB, nx - REACH)
        first, last = np.searchsorted(voxels, [begin * plane, end * plane]).tolist()
        if first == last:
            continue
        planes = slice(begin - REACH, end + REACH)
        slab, inside = _slab(scene, planes), voxels[first:last] - planes.start * plane
        in_threads(spans(last - first, PIECE),
                   lambda span, slab=slab, inside=inside, first=first:
                   work(slab, inside[slice(*span)], slice(first + span[0], first + span[1])))


def _slab(scene, planes):
    """The slab of these planes, with its smoothed volumes."""
    x = scene.estimate[planes].reshape(-1)
    brain = scene.mask[planes].astype(np.float32).reshape(-1)
    rows, row = scene.mask.shape[1:]
    plane = rows * row
    steps = (plane, row, 1)  # from a voxel to the next along each axis
    products = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))  # of gradients, along these axes
    tasks = [(n, x, steps[a], steps[b], WINDOW) for n, (a, b) in enumerate(products)]
    tasks += [(6, x, 0, 0, WINDOW), (7, x, 0, 0, WIDE_WINDOW),
              (8, x, 0, 0, MEAN_WINDOW), (9, brain, 0, 0, MEAN_WINDOW)]
    maps = np.empty((len(tasks), x.size), np.float32)

    def smooth(task, *scratch):
        n, volume, step_a, step_b, weights = task
        _smooth(volume, plane, row, step_a, step_b, weights, *scratch, maps[n])

    scratch_sizes = plane + 2 * LANES, plane + 2 * LANES, x.size + LANES
    in_threads(tasks, smooth, lambda: [np.zeros(size, np.float32) for size in scratch_sizes])
    return Slab(x, scene.start[planes].reshape(-1), rows, row, planes.start, scene.place,
                scene.swaps, maps[:6], *maps[6:])


def features_of_voxels(scene, voxels):
    """Features and orientation of voxels.

    Parameters
    ----------
    scene : Scene
    voxels : ndarray of int64, ascending
        Flat indices in the padded volume.

    Returns
    -------
    features : ndarray of float32, shape (n, VOXEL_FEATURES) or (n, len(FEATURE_NAMES))
        With the cues of the volume, where the scene has them.
    orientation : ndarray of uint8, shape (n,)
        Row of `turned_offsets`.

    Examples
    --------
    >>> from octahedral.scene import make_scene, places
    >>> estimate = np.tile(np.linspace(0, 1, 8, dtype=np.float32)[:, None, None], (1, 8, 8))
    >>> along = 3 * [places(8, 0.5, 0.0)]
    >>> scene = make_scene(estimate, estimate, estimate > 0, along, (2, 2, 2))
    >>> features, orientation = features_of_voxels(scene, np.flatnonzero(scene.mask))
    >>> features.shape, orientation.shape
    ((448, 33), (448,))
    >>> bool(features[:, RATIO_2].max() < 1e-6)  # all gradients have one direction
    True
    """
    features = np.empty((voxels.size, VOXEL_FEATURES), np.float32)
    orientation = np.empty(voxels.size, np.uint8)
    in_slabs(scene, voxels, lambda slab, inside, these: _features_of_voxels(
        inside, slab, features[these], orientation[these]))
    if scene.cues is not None:
        over_noise = features[:, STRENGTH, None] - noise_strength(scene.cues)
        features = np.hstack([features, over_noise, np.tile(scene.cues, (voxels.size, 1))])
    return features, orientation


def noise_strength(cues):
    """About the strength that noise alone has, from the cues of an LR volume; float32."""
    return np.float32(np.log(cues[FLOOR] ** 2 + 1e-5))


def classify(scene, voxels, tree):
    """The leaf of a tree for each voxel, int32, and its orientation; see `features_of_voxels`."""
    leaf, orientation = np.empty(voxels.size, np.int32), np.empty(voxels.size, np.uint8)
    cues = np.zeros(len(CUE_NAMES), np.float32) if scene.cues is None else scene.cues
    tree = for_volume(tree, cues)
    in_slabs(scene, voxels, lambda slab, inside, these: _classify(
        inside, slab, tree, leaf[these], orientation[these]))
    return leaf, orientation


def for_volume(tree, cues):
    """The tree that is left in a volume of these cues; it leads each voxel to the same leaf.

    Splits on what is the same for all voxels are decided, and those on the strength over the noise
    become splits on the strength. Nodes that nothing leads to stay.

    Parameters
    ----------
    tree : octahedral.tree.Tree
    cues : ndarray of float32, shape (len(CUE_NAMES),)

    Returns
    -------
    Tree
    """
    if tree.feature.max() < OVER_NOISE:
        return tree
    feature, threshold = tree.feature.copy(), tree.threshold.copy()
    over = feature == OVER_NOISE
    feature[over], threshold[over] = STRENGTH, threshold[over] + noise_strength(cues)
    leads_to = np.arange(len(feature))
    for node in np.flatnonzero(feature > OVER_NOISE)[::-1]:  # children come after their parent
        above = cues[feature[node] - OVER_NOISE - 1] >= threshold[node]
        leads_to[node] = leads_to[tree.child[node, int(above)]]
    child = leads_to[tree.child]
    root = leads_to[0]
    for array, of_root in ((feature, feature[root]), (threshold, threshold[root]),
                           (child, child[root].copy())):
        array[0] = of_root
    leaf = tree.leaf.copy()
    leaf[0] = leaf[root]
    return type(tree)(feature, threshold, child, leaf)


# ------------------------------------------------------------------------------------------ kernels

@njit(cache=True, nogil=True, error_model="numpy")
def _smooth(x, plane, row, step_a, step_b, weights, values, smooth, smoothed, result):
    """Smooth a volume, or the product of its central differences along two axes.

    The window is the product of one along each axis. All arrays are flat, and a window that reaches
    over the end of a row or plane reads the next one: the result is right where it is REACH - 1
    voxels or more from the faces, and is used nowhere else.

    Parameters
    ----------
    x : ndarray of float32, shape (n,)
    plane, row : int
        Voxels in a plane and in a row.
    step_a, step_b : int
        From a voxel to the next along the two axes; 0 for the volume itself.
    weights : ndarray of float32, shape (9,) or so
        At most REACH - 1 on either side of the middle.
    values, smooth, smoothed : ndarray of float32
        Scratch for two planes and the volume.
    result : ndarray of float32, shape (n,)
    """
    first, half = REACH - 1, weights.size // 2
    for at in range(plane, x.size - plane, plane):
        if step_a:
            ahead_a, behind_a = x[at + step_a:][:plane], x[at - step_a:][:plane]
            ahead_b, behind_b = x[at + step_b:][:plane], x[at - step_b:][:plane]
            for n in range(plane):
                values[n] = np.float32(0.25) * (
                    (ahead_a[n] - behind_a[n]) * (ahead_b[n] - behind_b[n]))
        else:
            values[:plane] = x[at:at + plane]
        correlate(values, first - half, 1, weights, smooth, first, plane - first)
        correlate(smooth, (first - half) * row, row, weights,
                  smoothed, at + first * row, plane - 2 * first * row)
    correlate(smoothed, (first - half) * plane, plane, weights,
              result, first * plane, x.size - 2 * first * plane)


@njit(cache=True, nogil=True)
def _features_of_voxels(voxels, slab, features, orientation):
    for n in range(voxels.size):
        orientation[n] = _write_features(voxels[n], slab, features[n])


@njit(cache=True, nogil=True)
def _classify(voxels, slab, tree, leaf, orientation):
    f = np.empty(VOXEL_FEATURES, np.float32)
    for n in range(voxels.size):
        orientation[n] = _write_features(voxels[n], slab, f)
        node = 0
        while tree.feature[node] >= 0:
            node = tree.child[node, 1 if f[tree.feature[node]] >= tree.threshold[node] else 0]
        leaf[n] = tree.leaf[node]


@njit(cache=True, error_model="numpy")
def _write_features(at, slab, f):
    """Write the features of the voxel with flat index `at` to `f`; return its orientation."""
    strides = (slab.rows * slab.row, slab.row, 1)
    here = (at // strides[0] + slab.first, at // slab.row % slab.rows, at % slab.row)
    place, swaps, flat, smooth, t = slab.place, slab.swaps, slab.estimate, slab.smooth, slab.tensor
    centre = flat[at]
    l1, l2, l3, v0, v1, v2 = eigen_3x3(t[0, at], t[1, at], t[2, at], t[3, at], t[4, at], t[5, at])
    v = (v0, v1, v2)
    along = 0.0
    for a in range(3):
        along += v[a] * (smooth[at + strides[a]] - smooth[at - strides[a]])
    turn = -1.0 if along < 0 else 1.0
    # Order the axes by the size of v's components; axes of different factors keep their places.
    p0, p1, p2 = 0, 1, 2
    if swaps[p0] == swaps[p1] and abs(v[p1]) > abs(v[p0]):
        p0, p1 = p1, p0
    if swaps[p1] == swaps[p2] and abs(v[p2]) > abs(v[p1]):
        p1, p2 = p2, p1
    elif swaps[p0] == swaps[p2] and swaps[p1] != swaps[p2] and abs(v[p2]) > abs(v[p0]):
        p0, p2 = p2, p0
    if swaps[p0] == swaps[p1] and abs(v[p1]) > abs(v[p0]):
        p0, p1 = p1, p0
    p = (p0, p1, p2)
    permutation = p0 * 2 + (1 if p1 > p2 else 0)
    flips = 0
    scale = np.sqrt(l1) + 1e-5
    f[STRENGTH] = np.log(l1 + 1e-8)
    f[RATIO_2] = l2 / (l1 + 1e-12)
    f[RATIO_3] = l3 / (l1 + 1e-12)
    f[SLOPE_1] = abs(v[p1]) / (abs(v[p0]) + 1e-6)
    f[SLOPE_2] = abs(v[p2]) / (abs(v[p0]) + 1e-6)
    signs = (-1 if turn * v[p0] < 0 else 1, -1 if turn * v[p1] < 0 else 1,
             -1 if turn * v[p2] < 0 else 1)
    total = 0.0
    for k in range(3):
        flips |= (1 << k) if signs[k] < 0 else 0
        step = signs[k] * strides[p[k]]
        apart = place[p[k], here[p[k]]]
        signed = apart if apart == np.float32(0.5) else signs[k] * apart
        f[PLACE_0 + k], f[APART_0 + k] = signed, abs(apart)
        ahead, behind = flat[at + step], flat[at - step]
        bend = ahead + behind - 2 * centre
        total += bend
        f[BEND_0 + k] = bend / scale
        f[WIDE_BEND_0 + k] = (flat[at + 2 * step] + flat[at - 2 * step] - 2 * centre) / scale
        f[RISE_0 + k] = (ahead - behind) / scale
    f[BEND], f[BEND_RAW] = total / scale, total
    pair = TWIST_01
    for a in range(2):
        for b in range(a + 1, 3):
            i, j = signs[a] * strides[p[a]], signs[b] * strides[p[b]]
            f[pair] = (flat[at + i + j] - flat[at + i - j]
                       - flat[at - i + j] + flat[at - i - j]) / (4 * scale)
            pair += 1
    average, moved = slab.mean[at], centre - slab.start[at]
    f[ABOVE_WIDE] = (centre - slab.wide[at]) / scale
    f[ABOVE_MEAN] = (centre - average) / scale
    f[MEAN], f[VALUE] = average, centre
    f[MOVED], f[MOVED_RAW] = moved / scale, moved
    f[BRAIN] = slab.brain[at]
    r1, r2, r3 = np.sqrt(l1), np.sqrt(l2), np.sqrt(l3)
    f[COHERENCE] = (r1 - r2 - r3) / (r1 + r2 + r3 + 1e-12)
    return np.uint8(permutation * 8 + flips)
