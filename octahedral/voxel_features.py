"""Compute the features of voxels, in the own frame of each voxel, for 64 voxels at a time.

A cube has 48 symmetries: 6 orders of the axes times 8 flips. The surroundings of a voxel are turned
by one of these symmetries, into the voxel's own frame. In this frame, the principal gradient
direction v points along the smoothed gradient, and its components are positive and descending.
Edges of different orientations thus become one case and are learned together, and one filter serves
48 orientations. The features describe the surroundings in this frame. If the factor differs between
axes, only axes of equal factor are exchanged.

The frame, and the features that need no neighbours, are computed in loops without a branch, several
voxels at a time. The features that need neighbours are then computed voxel by voxel.
"""
from typing import NamedTuple

import numpy as np

from degrading.descriptors import DESCRIPTOR_NAMES
from degrading.profile_reader import TOLD_NAMES
from machine.kernels import njit
from published.structure_tensor import BATCH, eigen_batch

# Axes 0, 1, 2 are axes of the voxel's frame. Differences are divided by sqrt(l1), except "raw".
FEATURE_NAMES = (
    "strength", "ratio_2", "ratio_3",  # log l1, l2 / l1, l3 / l1
    "slope_1", "slope_2",  # |v1| / |v0|, |v2| / |v0|
    "place_0", "place_1", "place_2",  # distance from the nearest LR sample, signed
    "apart_0", "apart_1", "apart_2",  # this distance, unsigned
    "bend_0", "bend_1", "bend_2", "bend", "bend_raw",  # second differences; their sum (Laplacian)
    "wide_bend_0", "wide_bend_1", "wide_bend_2",  # second differences over two voxels
    "twist_01", "twist_02", "twist_12",  # mixed differences
    "rise_0", "rise_1", "rise_2",  # first differences
    "above_wide", "above_mean",  # voxel minus Gaussian mean, sigma 2; minus the mean of 5^3 voxels
    "mean", "value",  # the mean of 5^3 voxels, and the voxel
    "moved", "moved_raw",  # the voxel minus its initial estimate
    "brain",  # share of the 5^3 voxels that are in the mask
    "coherence",  # coherence of the square roots of l1, l2, l3, as in the published method
)
# The column of each feature: integers, which numba compiles as constants.
(STRENGTH, RATIO_2, RATIO_3, SLOPE_1, SLOPE_2, PLACE_0, PLACE_1, PLACE_2, APART_0, APART_1, APART_2,
 BEND_0, BEND_1, BEND_2, BEND, BEND_RAW, WIDE_BEND_0, WIDE_BEND_1, WIDE_BEND_2,
 TWIST_01, TWIST_02, TWIST_12, RISE_0, RISE_1, RISE_2, ABOVE_WIDE, ABOVE_MEAN, MEAN, VALUE,
 MOVED, MOVED_RAW, BRAIN, COHERENCE) = range(len(FEATURE_NAMES))
VOXEL_FEATURES = OVER_NOISE = len(FEATURE_NAMES)
SHARE_VOXELS = 125  # number of voxels of which BRAIN is a share
# Further features, only in scenes with descriptors: the strength relative to that of noise, and
# features of the whole volume.
FEATURE_NAMES += ("over_noise", *DESCRIPTOR_NAMES, *TOLD_NAMES)


class Slab(NamedTuple):
    """Planes of a scene, and volumes computed from them; each volume is flat, (n,) float32."""

    estimate: np.ndarray
    start: np.ndarray  # the initial estimate
    rows: int  # number of rows in a plane
    row: int  # voxels in a row
    first: int  # number of the slab's first plane in the padded volume
    place: np.ndarray
    swaps: np.ndarray
    steps: np.ndarray  # (48, 3) int64: offset to the next voxel along the axes of each frame
    axes: np.ndarray  # (48, 3) int64: axis of the volume for each axis of each frame
    tensor: np.ndarray  # (6, n): xx, yy, zz, xy, xz, yz
    smooth: np.ndarray  # the estimate smoothed by a Gaussian
    wide: np.ndarray  # ... by a Gaussian of sigma 2
    mean: np.ndarray  # ... by the mean of 5^3 voxels
    brain: np.ndarray  # share of brain in 5^3 voxels


# Rows of `BATCH` numbers in the scratch array of a batch; `eigen_batch` uses rows 0 to 12.
(L1, L2, L3, V0, V1, V2, _, SLOPE_X, SLOPE_Y, SLOPE_Z, CODE, PER_SCALE, W_RATIO_2, W_RATIO_3,
 W_SLOPE_1, W_SLOPE_2, W_COHERENCE) = (BATCH * row for row in range(6, 23))
WORK = 23 * BATCH


# ------------------------------------------------------------------------------------------ kernels

@njit(cache=True, nogil=True)
def write_features(voxels, slab, features, orientation):
    """Write the features and the orientation of voxels.

    Parameters
    ----------
    voxels : ndarray of int64, ascending, shape (n,)
        Flat indices in the slab.
    slab : Slab
    features : ndarray of float32, shape (n, VOXEL_FEATURES)
        Output.
    orientation : ndarray of uint8, shape (n,)
        Output.
    """
    w = np.zeros(WORK)
    for first in range(0, voxels.size, BATCH):
        part = slice(first, min(first + BATCH, voxels.size))
        _write_batch(voxels[part], slab, w, features[part], orientation[part])


@njit(cache=True, nogil=True)
def write_leaves(voxels, slab, tree, leaf, column, orientation):
    """Write the leaves and the orientation of voxels, see `write_features`.

    Parameters
    ----------
    voxels, slab, orientation
        See `write_features`.
    tree : octahedral.tree.Tree
    leaf : ndarray of int32, shape (roots, N)
        Output, in the columns from `column` on. It is the whole array: numba would compile anew for
        a part that is not contiguous.
    column : int
    """
    w, features = np.zeros(WORK), np.zeros((BATCH, VOXEL_FEATURES), np.float32)
    found = np.zeros(BATCH, np.int32)
    # A leaf is its own child, so that the four walks of `_walk` may end at different depths.
    asked, child = np.maximum(tree.feature, 0), tree.child.copy()
    for node in range(tree.feature.size):
        if tree.feature[node] < 0:
            child[node] = node
    for first in range(0, voxels.size, BATCH):
        part = slice(first, min(first + BATCH, voxels.size))
        _write_batch(voxels[part], slab, w, features, orientation[part])
        for number in range(tree.roots.size):
            _walk(tree, asked, child, tree.roots[number], features, found)
            for m in range(voxels[part].size):
                leaf[number, column + first + m] = found[m]


@njit(cache=True, nogil=True)
def _walk(tree, asked, child, root, f, leaf):
    """Find the leaves of a batch of voxels in one tree; four walks at a time hide latencies."""
    for m in range(0, BATCH, 4):
        a = b = c = d = np.int64(root)
        while tree.feature[a] & tree.feature[b] & tree.feature[c] & tree.feature[d] >= 0:
            a = child[a, int(f[m, asked[a]] >= tree.threshold[a])]
            b = child[b, int(f[m + 1, asked[b]] >= tree.threshold[b])]
            c = child[c, int(f[m + 2, asked[c]] >= tree.threshold[c])]
            d = child[d, int(f[m + 3, asked[d]] >= tree.threshold[d])]
        leaf[m], leaf[m + 1], leaf[m + 2], leaf[m + 3] = (
            tree.leaf[a], tree.leaf[b], tree.leaf[c], tree.leaf[d])


@njit(cache=True, nogil=True, error_model="numpy")
def _write_batch(voxels, slab, w, f, orientation):
    """Write features and orientation of `BATCH` voxels or less; `w` is scratch."""
    t, smooth = slab.tensor, slab.smooth
    plane, row = slab.rows * slab.row, slab.row
    for m in range(voxels.size):
        at = voxels[m]
        for component in range(6):
            w[component * BATCH + m] = t[component, at]
        w[SLOPE_X + m] = smooth[at + plane] - smooth[at - plane]
        w[SLOPE_Y + m] = smooth[at + row] - smooth[at - row]
        w[SLOPE_Z + m] = smooth[at + 1] - smooth[at - 1]
    eigen_batch(w)
    _frames(w, slab.swaps)
    here, before = np.zeros(3, np.int64), np.int64(-2)
    for m in range(voxels.size):
        at, code = voxels[m], int(w[CODE + m])
        if at == before + 1 and here[2] + 1 < row:
            here[2] += 1
        else:
            here[0], here[1], here[2] = at // plane + slab.first, at // row % slab.rows, at % row
        before = at
        orientation[m] = code
        _write_one(at, here, code, m, w, slab, f[m])


@njit(cache=True, error_model="numpy")
def _frames(w, swaps):
    """Write the frames of a batch, and the features that depend only on tensor and gradient."""
    xy, yz, xz = swaps[0] == swaps[1], swaps[1] == swaps[2], swaps[0] == swaps[2]
    xz = xz and not yz
    for m in range(BATCH):
        l1, l2, l3 = w[L1 + m], w[L2 + m], w[L3 + m]
        u0, u1, u2 = w[V0 + m], w[V1 + m], w[V2 + m]
        along = u0 * w[SLOPE_X + m] + u1 * w[SLOPE_Y + m] + u2 * w[SLOPE_Z + m]
        turn = -1.0 if along < 0 else 1.0
        u0, u1, u2 = turn * u0, turn * u1, turn * u2
        # Order the axes by the size of v's components. Only axes of equal factor are exchanged.
        p0, p1, p2 = 0.0, 1.0, 2.0
        u0, u1, p0, p1 = _larger_first(xy, u0, u1, p0, p1)
        u1, u2, p1, p2 = _larger_first(yz, u1, u2, p1, p2)
        u0, u2, p0, p2 = _larger_first(xz, u0, u2, p0, p2)
        u0, u1, p0, p1 = _larger_first(xy, u0, u1, p0, p1)
        permutation = 2 * p0 + (1.0 if p1 > p2 else 0.0)
        flips = ((1.0 if u0 < 0 else 0.0) + (2.0 if u1 < 0 else 0.0)
                 + (4.0 if u2 < 0 else 0.0))
        w[CODE + m] = 8 * permutation + flips
        r1, r2, r3 = np.sqrt(l1), np.sqrt(l2), np.sqrt(l3)
        w[PER_SCALE + m] = 1 / (r1 + 1e-5)
        w[W_RATIO_2 + m], w[W_RATIO_3 + m] = l2 / (l1 + 1e-12), l3 / (l1 + 1e-12)
        w[W_SLOPE_1 + m] = abs(u1) / (abs(u0) + 1e-6)
        w[W_SLOPE_2 + m] = abs(u2) / (abs(u0) + 1e-6)
        w[W_COHERENCE + m] = (r1 - r2 - r3) / (r1 + r2 + r3 + 1e-12)


@njit(cache=True, inline="always")
def _larger_first(may, u, v, p, q):
    """Two components and their axes, exchanged if `may` is True and the second is larger."""
    swap = may & (abs(v) > abs(u))
    return v if swap else u, u if swap else v, q if swap else p, p if swap else q


@njit(cache=True, error_model="numpy")
def _write_one(at, here, code, m, w, slab, f):
    """Write the features of the voxel with flat index `at`, which is number m of the batch."""
    flat, centre, per_scale = slab.estimate, slab.estimate[at], w[PER_SCALE + m]
    f[STRENGTH] = np.log(w[L1 + m] + 1e-8)
    f[RATIO_2], f[RATIO_3] = w[W_RATIO_2 + m], w[W_RATIO_3 + m]
    f[SLOPE_1], f[SLOPE_2] = w[W_SLOPE_1 + m], w[W_SLOPE_2 + m]
    f[COHERENCE] = w[W_COHERENCE + m]
    total = 0.0
    for k in range(3):
        step, axis = slab.steps[code, k], slab.axes[code, k]
        apart = slab.place[axis, here[axis]]
        signed = -apart if code >> k & 1 and apart != np.float32(0.5) else apart
        f[PLACE_0 + k], f[APART_0 + k] = signed, abs(apart)
        ahead, behind = flat[at + step], flat[at - step]
        bend = ahead + behind - 2 * centre
        total += bend
        f[BEND_0 + k] = bend * per_scale
        f[WIDE_BEND_0 + k] = (flat[at + 2 * step] + flat[at - 2 * step] - 2 * centre) * per_scale
        f[RISE_0 + k] = (ahead - behind) * per_scale
    f[BEND], f[BEND_RAW] = total * per_scale, total
    pair = TWIST_01
    for a in range(2):
        for b in range(a + 1, 3):
            i, j = slab.steps[code, a], slab.steps[code, b]
            f[pair] = (flat[at + i + j] - flat[at + i - j]
                       - flat[at - i + j] + flat[at - i - j]) * (0.25 * per_scale)
            pair += 1
    average, moved = slab.mean[at], centre - slab.start[at]
    f[ABOVE_WIDE] = (centre - slab.wide[at]) * per_scale
    f[ABOVE_MEAN] = (centre - average) * per_scale
    f[MEAN], f[VALUE] = average, centre
    f[MOVED], f[MOVED_RAW] = moved * per_scale, moved
    # Rounded to whole voxels: the last bit of the smoothed share depends on the order of the axes,
    # and trees split between such values.
    f[BRAIN] = np.rint(slab.brain[at] * SHARE_VOXELS) / SHARE_VOXELS
