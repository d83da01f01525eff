"""Features of the voxels of a volume, and the classes into which a tree sorts the voxels.

Volumes are padded by `REACH` voxels on every side, and processed in slabs to save memory.
voxel_features.py lists the features and computes them for each voxel.
"""
import numpy as np

from degrading.descriptors import DESCRIPTOR_NAMES, FLOOR
from degrading.profile_reader import READING_NAMES, TOLD_NAMES, told_or_read
from filter_func import WINDOW_SIGMA, gaussian_weights
from machine.kernels import njit
from machine.simd import LANES, correlate
from machine.threads import in_threads, spans
from octahedral.scene import PERMUTATIONS, REACH, turned_offsets
from octahedral.tree import NO_READER, Tree
from octahedral.voxel_features import (
    OVER_NOISE,
    STRENGTH,
    VOXEL_FEATURES,
    Slab,
    write_features,
    write_leaves,
)

SLAB, PIECE = 48, 4096  # planes per slab; voxels per task of a thread
WINDOW, WIDE_WINDOW, MEAN_WINDOW = (np.asarray(weights, np.float32) for weights in (
    gaussian_weights(9, WINDOW_SIGMA), gaussian_weights(11, 2.0), np.full(5, 1 / 5)))


def in_slabs(scene, voxels, work):
    """Process a scene in slabs, and the voxels of each slab in threads.

    Parameters
    ----------
    scene : Scene
    voxels : ndarray of int64, ascending
        Flat indices in the padded volume.
    work : callable
        Called with a slab, the flat indices of its voxels, and the slice of `voxels` that they are.
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
    """The `Slab` of some planes of a scene, with its smoothed volumes."""
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
    frames = turned_offsets(np.eye(3, dtype=np.int64), scene.mask.shape)
    return Slab(x, scene.start[planes].reshape(-1), rows, row, planes.start, scene.place,
                scene.swaps, frames, np.repeat(PERMUTATIONS, 8, axis=0), maps[:6], *maps[6:])


def features_of_voxels(scene, voxels):
    """Compute the features and the orientation of voxels.

    Parameters
    ----------
    scene : Scene
    voxels : ndarray of int64, ascending
        Flat indices in the padded volume.

    Returns
    -------
    features : ndarray of float32, shape (n, VOXEL_FEATURES) or (n, len(FEATURE_NAMES))
        If the scene has descriptors, every row also holds the descriptors, and the transfer values
        of the slice profile (NaN if the profile is not known).
    orientation : ndarray of uint8, shape (n,)
        Row number in `turned_offsets`.

    Examples
    --------
    >>> from octahedral.scene import make_scene, places
    >>> from octahedral.voxel_features import RATIO_2
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
    in_slabs(scene, voxels, lambda slab, inside, these: write_features(
        inside, slab, features[these], orientation[these]))
    if scene.descriptors is not None:
        over_noise = features[:, STRENGTH, None] - noise_strength(scene.descriptors)
        unknown = np.full(len(READING_NAMES), np.nan, np.float32)
        blur = unknown if scene.blur is None else scene.blur
        whole = np.concatenate([scene.descriptors, blur, [scene.blur is not None]])
        whole = np.tile(whole.astype(np.float32), (voxels.size, 1))
        features = np.hstack([features, over_noise, whole])
    return features, orientation


def noise_strength(descriptors):
    """Approximate strength (log l1) of pure noise, from the descriptors of an LR volume."""
    return np.float32(np.log(descriptors[FLOOR] ** 2 + 1e-5))


def classify(scene, voxels, tree):
    """Find the leaves and the orientations of voxels.

    Parameters
    ----------
    scene : Scene
    voxels : ndarray of int64, ascending
        Flat indices in the padded volume.
    tree : octahedral.tree.Tree

    Returns
    -------
    leaf : ndarray of int32, shape (roots, n)
        Leaf of each voxel in each tree.
    orientation : ndarray of uint8, shape (n,)
        Row number in `turned_offsets`.
    """
    leaf = np.empty((len(tree.roots), voxels.size), np.int32)
    orientation = np.empty(voxels.size, np.uint8)
    whole = np.zeros(len(DESCRIPTOR_NAMES) + len(TOLD_NAMES), np.float32)
    if scene.descriptors is not None:
        whole = told_or_read(tree.reader, scene.descriptors, scene.blur, scene.reading_error)
    tree = for_volume(tree, whole)
    in_slabs(scene, voxels, lambda slab, inside, these: write_leaves(
        inside, slab, tree, leaf, these.start, orientation[these]))
    return leaf, orientation


def for_volume(tree, whole):
    """Simplify a tree for one volume; each voxel of the volume reaches the same leaf as before.

    Splits on features of the whole volume, equal for all its voxels, are decided here. Splits on
    the strength relative to the noise become splits on the strength. Nodes that cannot be reached
    any more stay in the arrays.

    Parameters
    ----------
    tree : octahedral.tree.Tree
    whole : ndarray of float32, shape (len(DESCRIPTOR_NAMES) + len(TOLD_NAMES),)
        Features of the whole volume, see `degrading.profile_reader.told_or_read`.

    Returns
    -------
    Tree
        The simplified tree, without a reader.
    """
    if tree.feature.max() < OVER_NOISE:
        return tree._replace(reader=NO_READER)
    feature, threshold = tree.feature.copy(), tree.threshold.copy()
    over = feature == OVER_NOISE
    feature[over], threshold[over] = STRENGTH, threshold[over] + noise_strength(whole)
    leads_to = np.arange(len(feature))
    for node in np.flatnonzero(feature > OVER_NOISE)[::-1]:  # children come after their parent
        above = whole[feature[node] - OVER_NOISE - 1] >= threshold[node]
        leads_to[node] = leads_to[tree.child[node, int(above)]]
    return Tree(feature, threshold, leads_to[tree.child], tree.leaf, leads_to[tree.roots],
                NO_READER)


# ------------------------------------------------------------------------------------------ kernels

@njit(cache=True, nogil=True, error_model="numpy")
def _smooth(x, plane, row, step_a, step_b, weights, values, smooth, smoothed, result):
    """Smooth a volume, or the product of its central differences along two axes.

    The window is the product of one window along each axis. All arrays are flat. At the end of a
    row or plane, the window extends into the next row or plane. The result is therefore correct
    only at REACH - 1 voxels or more from the faces, and only these voxels are used.

    Parameters
    ----------
    x : ndarray of float32, shape (n,)
    plane, row : int
        Numbers of voxels in a plane and in a row.
    step_a, step_b : int
        Offsets to the next voxel along the two axes; 0 to smooth the volume itself.
    weights : ndarray of float32, shape (9,) or so
        At most REACH - 1 weights on either side of the middle.
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
