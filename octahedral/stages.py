"""Restoring and training in stages: each stage corrects the output of the previous one.

A stage has one or more trees that sort voxels into classes (leaves), and one linear filter for each
leaf. A filter covers a ball of voxels of the current estimate and, from the second stage on, a
smaller ball of the initial estimate; these voxels are its taps. After each stage the estimate is
clipped. With --back_projections it is also corrected to agree with the LR volume.
"""
from dataclasses import replace

import numpy as np
from scipy.ndimage import binary_dilation

from degrading.descriptors import DESCRIPTOR_NAMES, NOISE
from degrading.profile_reader import READING_NAMES, fit_reader, read
from hashtable import sample_voxels
from machine.kernels import njit
from machine.threads import in_threads, spans
from matrix_compute import BLOCK, TrainingSamples, bucket_order
from octahedral.applying import apply_turned, lines_of
from octahedral.features import SLAB, classify, features_of_voxels
from octahedral.scene import REACH, ball, make_scene, places, turned_offsets
from octahedral.tree import NO_READER, grow, together
from octahedral.voxel_features import FEATURE_NAMES, OVER_NOISE
from util import random_of, tight_box

TILE_VOXELS = 3_500_000  # largest tile with its surroundings; it takes some 70 bytes per voxel
LEAST_TILE = 8  # smallest width of a tile in voxels
INNER = 3 * (slice(REACH, -REACH),)  # a scene without its padding
NEAR = 4  # voxels: the input of later stages is restored this far around the training voxels
START_RADIUS_SQUARED = 6  # squared radius of the ball of the initial estimate
SMALL_BALL = ball(3, centre=False), np.array(  # taps of the small filters for growing trees
    [[2, 0, 0], [-2, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 2], [0, 0, -2]])
TREE_SAMPLES = 400_000  # number of voxels from which the trees of a stage are grown
# Held-out voxels, on which the ridge is chosen: side of their cubes in voxels, share of all voxels.
HELD_OUT_BLOCK = 16
HELD_OUT_SHARE = 1 / 16
# Columns of features: descriptors of the volume; transfer values of its slice profile (BLUR); 1 if
# the profile is given (TOLD). Trees do not use the descriptors in HIDDEN.
DESCRIPTORS = slice(OVER_NOISE + 1, OVER_NOISE + 1 + len(DESCRIPTOR_NAMES))
TOLD = DESCRIPTORS.stop + len(READING_NAMES)
BLUR = slice(DESCRIPTORS.stop, TOLD)
HIDDEN = slice(DESCRIPTORS.start + NOISE + 1, DESCRIPTORS.stop)


def stage_taps(number, method):
    """The taps of a stage's filters, as displacements from the voxel.

    Returns
    -------
    in_estimate : ndarray of int, shape (taps, 3)
    in_start : ndarray of int, shape (taps, 3)
        Empty in the first stage, whose estimate is the initial estimate.
    """
    in_estimate = ball((method.filter_len // 2) ** 2, centre=False)
    return in_estimate, ball(START_RADIUS_SQUARED if number else -1)


def tap_count(number, method):
    """Number of taps of a stage's filters."""
    return sum(map(len, stage_taps(number, method)))


# ----------------------------------------------------------------------------------------- applying

def restore_stages(volume, stages, method, near=None, advance=lambda share: None):
    """Restore a volume by all stages, tile by tile to save memory.

    Parameters
    ----------
    volume : LRVolume
    stages : list of Stage
    method : Method
    near : ndarray of bool, shape of the box, optional
        Voxels to restore; by default all of the mask.
    advance : callable, optional
        Called from time to time with the share of the work done since the last call.

    Returns
    -------
    sr : ndarray of float32, shape of the box, in [0, 1]
    """
    estimate, tiles = volume.lr, tiles_of(volume.lr.shape)
    wanted = volume.mask if near is None else near
    for number, stage in enumerate(stages):
        restored = estimate.copy()
        for tile in tiles:
            if inner := part_of(tile, wanted):
                scene = scene_of(volume, estimate, method, inner)
                restored[inner] = apply_stage(scene, stage, number, method, wanted[inner])
            advance(1 / (len(tiles) * len(stages)))
        estimate = restored  # frees the memory of the previous estimate
        del restored
        estimate = volume.consistency.refine(estimate, method.back_projections)
    return estimate


def what_stages_learn_from(volume, stages, method):
    """The `Scene` of a volume for the stage after `stages`, and indices of its training voxels."""
    training_mask, near = volume.mask, None
    if volume.training_mask is not None:
        training_mask = volume.training_mask
        near = binary_dilation(training_mask, iterations=NEAR) & volume.mask
    scene = scene_of(volume, restore_stages(volume, stages, method, near), method)
    return scene, np.flatnonzero(np.pad(training_mask, REACH))


def tiles_of(shape):
    """Divide a volume into tiles; each tile has the planes of one slab, and whole rows.

    Examples
    --------
    >>> [y for x, y, z in tiles_of((40, 300, 200))]
    [slice(0, 150, None), slice(150, 300, None)]
    """
    around = 2 * REACH
    across = TILE_VOXELS // ((SLAB + around) * (shape[2] + around)) - around
    return [(slice(*x), slice(*y), slice(0, shape[2])) for x in spans(shape[0], SLAB)
            for y in spans(shape[1], max(across, LEAST_TILE))]


def part_of(tile, wanted):
    """The smallest part of a tile that contains its wanted voxels; None if it has none.

    Examples
    --------
    >>> wanted = np.zeros((4, 5, 6), bool)
    >>> wanted[2, 1:3, 4] = True
    >>> part_of((slice(1, 4), slice(0, 5), slice(0, 6)), wanted)
    (slice(2, 3, None), slice(1, 3, None), slice(4, 5, None))
    """
    if not wanted[tile].any():
        return None
    return tuple(slice(side.start + inner.start, side.start + inner.stop)
                 for side, inner in zip(tile, tight_box(wanted[tile]), strict=True))


def scene_of(volume, estimate, method, tile=None):
    """The `Scene` for restoring a volume, or a tile of it, from the current estimate."""
    operator = volume.operator
    along = [places(side, *operator.step_and_start(axis))[volume.box[axis]]
             for axis, side in enumerate(operator.shape)]
    ends = [(side.start == 0, side.stop == length)
            for side, length in zip(volume.box, operator.shape, strict=True)]
    return make_scene(estimate, volume.lr, volume.mask, along, method.factor, volume.descriptors,
                      tile, ends, volume.blur, volume.reading_error)


def apply_stage(scene, stage, number, method, near=None):
    """The output of one stage, unclipped, in `near` or in the mask; the estimate elsewhere."""
    voxels = np.flatnonzero(np.pad(scene.mask[INNER] if near is None else near, REACH))
    return _filtered(scene, stage.weights, number, method, voxels,
                     *classify(scene, voxels, stage.classes))


def _filtered(scene, weights, number, method, voxels, leaf, orientation):
    """The estimate with the output of a stage's filters, unclipped, at classified voxels."""
    result = scene.estimate.copy()
    apply_turned(scene.estimate.reshape(-1), scene.start.reshape(-1), voxels, leaf, orientation,
                 lines_of(stage_taps(number, method), result.shape), weights, result.reshape(-1))
    return np.ascontiguousarray(result[INNER])


# ----------------------------------------------------------------------------------------- learning

def sample_features(volume, stages, method, count, name):
    """Samples of one volume for growing the trees of the next stage.

    Parameters
    ----------
    volume : LRVolume
        LR volume with its original.
    stages : list of Stage
        Earlier stages.
    method : Method
    count : int
        Largest number of voxels.
    name : str
        Name of the volume. The name and the seed determine the sampled and the held-out voxels.

    Returns
    -------
    features : ndarray of float32
        Result of `features_of_voxels`. For a sampled acquisition, it holds the true transfer
        values, and further columns hold `reading_error`.
    rows : ndarray of float32, shape (n, taps + 1)
        A few taps and the target, minus the voxel's own estimate.
    """
    scene, voxels = what_stages_learn_from(volume, stages, method)
    learned = voxels[~held_out(voxels, scene.mask.shape, method.seed, name)]
    if learned.size:  # otherwise the volume is too small for cubes
        voxels = learned
    if voxels.size > count:
        random = random_of(method.seed, f"{name} tree {len(stages)}")
        voxels = np.sort(random.choice(voxels, count, replace=False))
    features, orientation = features_of_voxels(scene, voxels)
    if volume.true_blur is not None:
        features[:, BLUR] = volume.true_blur
        reading_error = np.tile(volume.reading_error, (len(features), 1))
        features = np.hstack([features, reading_error])  # for `_with_readings`
    taps = np.concatenate(SMALL_BALL), ball(1 if stages else -1)
    rows = np.empty((voxels.size, sum(map(len, taps)) + 1), np.float32)
    fill = row_filler(scene, volume, voxels, orientation, taps)
    in_threads(spans(voxels.size, BLOCK), lambda span: fill(slice(*span), rows[slice(*span)]))
    return features, rows


def stage_tree(feature_samples, method, advance=lambda leaves: None):
    """Grow the trees of a stage from sampled features, and fit the estimator of slice profiles.

    If there are several trees, each leaves out a part of the samples. So the trees differ, and the
    mean of their outputs has a smaller variance than the output of one tree.
    """
    reader = NO_READER
    if feature_samples[0][0].shape[1] > len(FEATURE_NAMES):
        reader, feature_samples = _with_readings(feature_samples)
    trees = []
    for number in range(method.trees):
        parts = [part for place, part in enumerate(feature_samples)
                 if method.trees == 1 or place % method.trees != number] or feature_samples
        features, samples = (np.concatenate(found) for found in zip(*parts, strict=True))
        trees.append(grow(features, samples, method.leaves, advance))
    return together(trees, reader)


def _with_readings(feature_samples):
    """Fit a reader to sampled features, and put its estimates where the profile is unknown.

    Returns
    -------
    reader : ndarray
    feature_samples : list
        Pairs of features, without further columns, and rows.
    """
    whole = np.array([features[0] for features, _ in feature_samples])
    reader = fit_reader(whole[:, DESCRIPTORS], whole[:, BLUR])
    found = []
    for (features, rows), of_volume in zip(feature_samples, whole, strict=True):
        features = features[:, :len(FEATURE_NAMES)].copy()
        if not of_volume[TOLD]:
            reading_error = of_volume[len(FEATURE_NAMES):]
            features[:, BLUR] = read(reader, of_volume[DESCRIPTORS], reading_error)
        features[:, HIDDEN] = 0
        found.append((features, rows))
    return reader, found


def stage_samples(volume, stages, tree, method, name, wanted=None, missed_by=None):
    """Draw the samples of one volume for the stage after `stages`.

    Parameters
    ----------
    volume : LRVolume
        LR volume with its original.
    stages : list of Stage
        Earlier stages.
    tree : Tree
    method : Method
    name : str
        Name of the volume. The name and the seed determine the sampled and the held-out voxels.
    wanted : ndarray of bool, shape (buckets,), optional
        Buckets to draw samples of; by default all.
    missed_by : ndarray of float32, shape (leaves, taps), optional
        Filters of the leaves. If given, the target is the part of the original that their output
        misses, and no voxels are held out.

    Returns
    -------
    TrainingSamples
        One bucket for each leaf, then as many buckets for the held-out voxels, if any.
    """
    scene, voxels = what_stages_learn_from(volume, stages, method)
    voxels = sample_voxels(voxels, method.sample_rate, method.seed, f"{name} learn")
    leaf, orientation = classify(scene, voxels, tree)
    if missed_by is None:
        buckets = 2 * tree.leaves
        leaf += tree.leaves * held_out(voxels, scene.mask.shape, method.seed, name)
    else:
        buckets = tree.leaves
        output = _filtered(scene, missed_by, len(stages), method, voxels, leaf, orientation)
        volume = replace(volume, hr=volume.hr - (output - scene.estimate[INNER]))
    bucket = leaf.ravel()  # each voxel is a sample in each tree
    voxels, orientation = np.tile(voxels, len(leaf)), np.tile(orientation, len(leaf))
    if wanted is not None:
        kept = wanted[bucket]
        voxels, bucket, orientation = voxels[kept], bucket[kept], orientation[kept]
    order, ends = bucket_order(bucket, buckets)
    voxels, orientation = voxels[order], orientation[order]
    fill = row_filler(scene, volume, voxels, orientation, stage_taps(len(stages), method))
    return TrainingSamples(volume, voxels, ends, fill)


def row_filler(scene, volume, voxels, orientation, taps):
    """Make a function ``fill(samples, rows)`` that writes the rows of a slice of the voxels.

    A row is [taps of the estimate, taps of the initial estimate, target], minus the voxel's own
    estimate. Rows are multiplied by the square root of the volume's weight, so that squared errors
    are multiplied by the weight.
    """
    in_estimate, in_start = (turned_offsets(displacements, scene.mask.shape).astype(np.int32)
                             for displacements in taps)
    estimate, start = scene.estimate.reshape(-1), scene.start.reshape(-1)
    hr, root = np.pad(volume.hr, REACH).reshape(-1), np.float32(np.sqrt(volume.weight))

    def fill(samples, rows):
        _gather(estimate, start, hr, voxels[samples], orientation[samples], in_estimate, in_start,
                rows)
        if root != 1:
            rows *= root

    return fill


def held_out(voxels, shape, seed, name):
    """True for voxels in the cubes that no filter is trained on: ndarray of bool, shape (n,)."""
    blocks = [-(-side // HELD_OUT_BLOCK) for side in shape]
    chosen = random_of(seed, f"{name} held out").random(blocks) < HELD_OUT_SHARE
    x, y, z = (axis // HELD_OUT_BLOCK for axis in np.unravel_index(voxels, shape))
    return chosen[x, y, z]


# ------------------------------------------------------------------------------------------ kernels

@njit(cache=True, nogil=True)
def _gather(x, start, hr, voxels, orientation, in_estimate, in_start, rows):
    """Write rows [taps of x, taps of start, hr] of the voxels, minus x at the voxel."""
    taps, more = in_estimate.shape[1], in_start.shape[1]
    for n in range(voxels.size):
        at, row = voxels[n], rows[n]
        near, far = in_estimate[orientation[n]], in_start[orientation[n]]
        centre = x[at]
        for j in range(taps):
            row[j] = x[at + near[j]] - centre
        for j in range(more):
            row[taps + j] = start[at + far[j]] - centre
        row[taps + more] = hr[at] - centre
