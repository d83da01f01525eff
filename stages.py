"""Restoring in stages: each learns what the one before left wrong, with filters in the voxel's own frame.

A stage has a tree that sorts voxels into classes, and one linear filter for each. Its filters see a ball of the estimate so
far and, from the second stage on, a smaller ball of the start. After each stage the estimate is clipped and back-projected.
"""
import hashlib
from typing import NamedTuple

import numpy as np
from numba import njit
from scipy.linalg import cho_factor, cho_solve

from get_lar import placement
from hashtable import sample_voxels
from matrix_compute import BLOCK, TILE, by_bucket, sum_rows, unpacked
from octahedral import REACH, ball, classify, describe, make_scene, places, turned_offsets
from spline import spacing_and_start
from threads import in_threads, spans
from tree import Tree, grow, quantile_tree

START_RADIUS_SQUARED = 6  # of the ball of the start that later stages see
SMALL_BALL = ball(3, centre=False), np.array([[2, 0, 0], [-2, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 2], [0, 0, -2]])
TREE_SAMPLES, TREE_VOLUMES = 400_000, 12  # voxels that a tree is grown from, and from how many volumes at most
HELD_OUT_BLOCK, HELD_OUT_SHARE = 16, 1 / 16  # cubes of so many voxels are kept out of learning, to choose the ridge by
USUAL_RIDGE = 300.0  # samples: what the first stage chooses on a dozen brains
RIDGES = (30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0)  # samples


class Stage(NamedTuple):
    """A tree and the filters of its leaves."""

    tree: Tree
    weights: np.ndarray  # (leaves, taps) float32: of each tap less the centre of the estimate


def stage_taps(number, settings):
    """What a stage's filters see: displacements in the estimate and, from the second stage on, in the start."""
    now = ball((settings.filter_len // 2) ** 2, centre=False)
    return now, ball(START_RADIUS_SQUARED if number else -1)


def scene_of(pair, estimate, settings):
    """What a stage sees of a pair, given the estimate so far."""
    along = []
    for n_in, n_out, side in zip(pair.low.shape, pair.shape, pair.box, strict=True):
        along.append(places(n_out, *_lr_step(n_in, n_out, settings))[side])
    return make_scene(estimate, pair.lr, pair.mask, along, settings.factor)


def _lr_step(n_in, n_out, settings):
    return spacing_and_start(n_in, n_out, placement(settings))


def restore_stages(pair, stages, settings, advance=lambda stages: None):
    """Restore a volume by all stages; `pair` is a `get_lar.Pair` or `get_lar.Fine`.

    Returns
    -------
    sr : ndarray of float32, shape of the box, in [0, 1]
    """
    estimate = pair.lr
    for number, stage in enumerate(stages):
        scene = scene_of(pair, estimate, settings)
        estimate = pair.known.refine(apply_stage(scene, stage, number, settings), settings.back_projections)
        advance(1)
    return estimate


def apply_stage(scene, stage, number, settings):
    """The output of one stage, unclipped; the estimate itself outside the mask."""
    voxels = np.flatnonzero(scene.mask)
    leaf, orientation = classify(scene, voxels, stage.tree)
    now, start = _offsets(stage_taps(number, settings), scene)
    result = scene.estimate.copy()
    in_threads(spans(voxels.size, TILE), lambda span: _apply(
        scene.estimate.reshape(-1), scene.start.reshape(-1), voxels[slice(*span)], leaf[slice(*span)],
        orientation[slice(*span)], now, start, stage.weights, result.reshape(-1)))
    return np.ascontiguousarray(result[REACH:-REACH, REACH:-REACH, REACH:-REACH])


def draw(pair, stages, settings, count, name):
    """Features of `count` voxels of a volume, and the few taps and the target by which the next stage's tree is grown."""
    scene = scene_of(pair, restore_stages(pair, stages, settings), settings)
    voxels = np.flatnonzero(scene.mask)
    if voxels.size > count:
        random = np.random.default_rng([settings.seed, *f"{name} tree {len(stages)}".encode("utf-8", "surrogateescape")])
        voxels = np.sort(random.choice(voxels, count, replace=False))
    features, orientation = describe(scene, voxels)
    taps = np.concatenate(SMALL_BALL), ball(1 if stages else -1)
    rows = np.empty((voxels.size, sum(map(len, taps)) + 1), np.float32)
    fill = row_filler(scene, pair.hr, voxels, orientation, taps)
    in_threads(spans(voxels.size, BLOCK), lambda span: fill(slice(*span), rows[slice(*span)]))
    return features, rows


def row_filler(scene, hr, voxels, orientation, taps):
    """What writes the rows of a slice of the voxels: [taps of the estimate, taps of the start, target], less the estimate."""
    now, start = _offsets(taps, scene)
    x, began, hr = scene.estimate.reshape(-1), scene.start.reshape(-1), np.pad(hr, REACH).reshape(-1)
    return lambda samples, rows: _gather(x, began, hr, voxels[samples], orientation[samples], now, start, rows)


def _offsets(taps, scene):
    """The taps' offsets in the flat volume, for each orientation."""
    return [turned_offsets(displacements, scene.mask.shape).astype(np.int32) for displacements in taps]


def plant(drawn, settings, advance=lambda leaves: None):
    """The tree of a stage, from what was drawn of several volumes."""
    features, samples = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    return quantile_tree(features) if settings.splits == "quantiles" else grow(features, samples, settings.leaves, advance)


def accumulate_stage(stages, gram, pair, tree, settings, name, advance=lambda samples: None, wanted=None):
    """Add one volume's samples to the Gram matrices of the stage after `stages`.

    Parameters
    ----------
    stages : list of Stage
        Those before.
    gram : Gram
        Changed in place: a bucket for each leaf, then as many for the voxels that are held out.
    pair : Pair
    tree : Tree
    settings : Settings
    name : str
        Of the volume: with the seed, it decides which voxels are drawn and which are held out.
    advance : callable, optional
        Told of the number of samples added, now and then.
    wanted : ndarray of bool, shape (buckets,), optional
        Only the samples of these buckets are added.

    Returns
    -------
    samples : int
        How many were added.
    """
    scene, number = scene_of(pair, restore_stages(pair, stages, settings), settings), len(stages)
    voxels = sample_voxels(np.flatnonzero(scene.mask), settings.sample_rate, settings.seed, f"{name} learn")
    leaf, orientation = classify(scene, voxels, tree)
    bucket = leaf + tree.leaves * held_out(voxels, scene.mask.shape, settings.seed, name)
    if wanted is not None:
        voxels, bucket, orientation = voxels[wanted[bucket]], bucket[wanted[bucket]], orientation[wanted[bucket]]
    order, ends = by_bucket(bucket, len(gram.count))
    sum_rows(gram, ends, row_filler(scene, pair.hr, voxels[order], orientation[order], stage_taps(number, settings)), advance)
    return voxels.size


def held_out(voxels, shape, seed, name):
    """Which voxels lie in the cubes that are held out of learning: ndarray of bool, shape (n,)."""
    blocks = [-(-side // HELD_OUT_BLOCK) for side in shape]
    random = np.random.default_rng([seed, *f"{name} held out".encode("utf-8", "surrogateescape")])
    chosen = random.random(blocks) < HELD_OUT_SHARE
    x, y, z = (axis // HELD_OUT_BLOCK for axis in np.unravel_index(voxels, shape))
    return chosen[x, y, z]


def solve_stage(gram, tree, settings):
    """The filters of a stage's leaves, each pulled to that of the node above it, up to the filter of all.

    A node's filter g minimises ``|b - a.g|^2 + r |g - g of its parent|^2``, with r the energy of an average tap in so many
    samples as the ridge says. With ``--ridge auto`` that number is the one of RIDGES that misses the voxels held out by
    least; learned is then from all voxels.

    Returns
    -------
    weights : ndarray of float32, shape (leaves, taps)
    ridge : float
    missed : dict of float to float
        Of each ridge tried, the mean squared error on the voxels held out.
    """
    leaves = tree.leaves
    learned, held = gram.packed[:leaves], gram.packed[leaves:]
    counts, held_counts = gram.count[:leaves], gram.count[leaves:]
    ridge, missed = settings.ridge, {}
    if not ridge and not held_counts.sum():  # volumes so small that no cube of theirs was held out
        ridge = USUAL_RIDGE
    if not ridge:
        sums = _up(learned, counts, tree)
        held_full = [unpacked(held[leaf], gram.side) for leaf in range(leaves)]
        for ridge in RIDGES:
            weights = _down(*sums, tree, ridge, gram.side)
            missed[ridge] = sum(_missed(full, g) for full, g in zip(held_full, weights, strict=True)) / held_counts.sum()
        ridge = min(missed, key=missed.get)
    weights = _down(*_up(learned + held, counts + held_counts, tree), tree, ridge, gram.side)
    return weights.astype(np.float32), ridge, missed


def digest(stages):
    """What stages are recognised by: SHA-256 in hexadecimal, empty for none."""
    found = hashlib.sha256()
    for stage in stages:
        for array in (stage.weights, *stage.tree):
            found.update(np.ascontiguousarray(array))
    return found.hexdigest() if stages else ""


def _up(packed, counts, tree):
    """Sums of all nodes from those of the leaves."""
    nodes, total = np.empty((len(tree.leaf), packed.shape[1])), np.empty(len(tree.leaf), np.int64)
    for node in range(len(tree.leaf) - 1, -1, -1):
        if tree.feature[node] < 0:
            nodes[node], total[node] = packed[tree.leaf[node]], counts[tree.leaf[node]]
        else:
            nodes[node] = nodes[tree.child[node]].sum(0)
            total[node] = total[tree.child[node]].sum()
    return nodes, total


def _down(nodes, total, tree, ridge, side):
    """Filters of the leaves, from the root down."""
    g, parent = np.zeros((len(tree.leaf), side - 1)), np.full(len(tree.leaf), -1)
    inner = np.flatnonzero(tree.feature >= 0)
    parent[tree.child[inner]] = inner[:, None]

    def solve_node(node):
        towards = g[parent[node]] if node else np.zeros(side - 1)
        g[node] = towards
        if total[node]:
            matrix = unpacked(nodes[node], side)
            q, v = matrix[:-1, :-1], matrix[-1, :-1]
            pull = ridge * np.trace(q) / (total[node] * (side - 1)) or 1.0
            q[np.diag_indices(side - 1)] += pull
            g[node] = cho_solve(cho_factor(q, lower=True, overwrite_a=True, check_finite=False), v + pull * towards)

    level = np.array([0])
    while level.size:  # a level of nodes at a time: their parents are solved
        in_threads(level, solve_node, blas=True)
        level = tree.child[level[tree.feature[level] >= 0]].ravel()
    leaves = np.flatnonzero(tree.feature < 0)
    return g[leaves[np.argsort(tree.leaf[leaves])]]


def _missed(matrix, g):
    """Squared error of a filter, from the lower triangle of the Gram matrix of [taps, target]."""
    q = matrix[:-1, :-1]
    return matrix[-1, -1] - 2 * matrix[-1, :-1] @ g + 2 * g @ (q @ g) - g @ (q.diagonal() * g)


# ---------------------------------------------------------------------------------------------- kernels

@njit(cache=True, nogil=True)
def _gather(x, start, hr, voxels, orientation, now, began, rows):
    """Rows [taps of x, taps of start, hr] of the voxels, all less x at the voxel."""
    taps, more = now.shape[1], began.shape[1]
    for n in range(voxels.size):
        at, near, far, row = voxels[n], now[orientation[n]], began[orientation[n]], rows[n]
        centre = x[at]
        for j in range(taps):
            row[j] = x[at + near[j]] - centre
        for j in range(more):
            row[taps + j] = start[at + far[j]] - centre
        row[taps + more] = hr[at] - centre


@njit(cache=True, nogil=True, fastmath=True)
def _apply(x, start, voxels, leaf, orientation, now, began, weights, result):
    """``result[voxels]``: x there, and the weights of the leaf times the taps less x there."""
    taps, more = now.shape[1], began.shape[1]
    for n in range(voxels.size):
        at, w, near, far = voxels[n], weights[leaf[n]], now[orientation[n]], began[orientation[n]]
        centre, total = x[at], np.float32(0)
        for j in range(taps):
            total += w[j] * (x[at + near[j]] - centre)
        for j in range(more):
            total += w[taps + j] * (start[at + far[j]] - centre)
        result[at] = centre + total
