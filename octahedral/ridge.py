"""Filters of a stage's leaves by ridge regression, which pulls each toward its parent's filter."""
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from machine.threads import in_threads
from matrix_compute import unpacked

# Weights of the ridge, as numbers of samples: without held-out voxels, and those that auto tries.
USUAL_RIDGE = 300.0  # --ridge auto chose it for a dozen brains in the first stage
RIDGES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0)


class Solved(NamedTuple):
    """The filters of a stage, and how its ridge was chosen."""

    weights: np.ndarray  # (leaves, taps) float32, learned from all voxels
    # Weights learned without the held-out voxels, on which the ridge was chosen; or `weights`.
    without_held_out: np.ndarray
    ridge: float  # weight of the ridge, as a number of samples
    missed: dict  # mean squared error on held-out voxels, for each ridge that could be solved


def solve_stage(gram, tree, method):
    """Solve for the filters of a stage's leaves, from the root of each tree down.

    A sample is a patch a and the HR voxel b. A node's filter g minimises
    ``|b - a.g|^2 + r |g - g of its parent|^2``. r is the ridge (a number of samples) times the mean
    square of a voxel in the patch. ``--ridge auto`` chooses the one with the smallest error on the
    held-out voxels, and then learns from all voxels. The input of later stages is restored with
    filters learned without the held-out voxels, on which later stages choose their ridge too.

    Parameters
    ----------
    gram : Gram
        One bucket for each leaf, then as many buckets for the held-out voxels.
    tree : Tree
    method : Method

    Returns
    -------
    Solved

    Raises
    ------
    numpy.linalg.LinAlgError
        If the ridge is too small; with auto, if all RIDGES are too small.
    """
    leaves = tree.leaves
    learned, held = gram.packed[:leaves], gram.packed[leaves:]
    counts, held_counts = gram.count[:leaves], gram.count[leaves:]
    ridge, missed = method.ridge, {}
    if ridge is None and not (held_counts.any() and counts.any()):  # too small volumes
        ridge = USUAL_RIDGE
    if ridge is None:
        sums, tried = _sums_of_nodes(learned, counts, tree), {}
        for ridge in RIDGES:
            try:
                tried[ridge] = _filters_of_leaves(*sums, tree, ridge, gram.side)
            except np.linalg.LinAlgError:  # this ridge is too small
                if ridge == max(RIDGES) and not tried:
                    raise
        del sums  # frees memory for the sums of all samples
        missed = dict.fromkeys(tried, 0.0)
        for leaf in range(leaves):
            full = gram.full(leaves + leaf)
            for ridge, filters in tried.items():
                missed[ridge] += squared_error(full, filters[leaf])
        missed = {ridge: error / held_counts.sum() for ridge, error in missed.items()}
        ridge = min(missed, key=missed.get)
    sums = _sums_of_nodes(learned + held, counts + held_counts, tree)
    weights = _filters_of_leaves(*sums, tree, ridge, gram.side)
    weights = weights.astype(np.float32)
    without = tried[ridge].astype(np.float32) if missed else weights
    return Solved(weights, without, ridge, missed)


def corrected_filters(gram, tree, weights, ridge, trust):
    """Filters of leaves, corrected by what the stage missed on further samples.

    A node's correction d minimises ``|m - a.d|^2 + r |d - d of its parent|^2``. m is the missed
    part of each sample, r is as in `solve_stage`. Roots are pulled to zero.

    Parameters
    ----------
    gram : Gram
        Sums of the further samples, one bucket for each leaf, with the missed part as the target.
    tree : Tree
    weights : ndarray of float32, shape (leaves, taps)
    ridge : float
        Weight of the ridge, in samples.
    trust : float
        Share of the correction that is applied.

    Returns
    -------
    ndarray of float32, shape (leaves, taps)
    """
    sums = _sums_of_nodes(gram.packed, gram.count, tree)
    return (weights + trust * _filters_of_leaves(*sums, tree, ridge, gram.side)).astype(np.float32)


def _sums_of_nodes(packed, counts, tree):
    """Sums and sample counts of all nodes, from those of the leaves."""
    nodes, total = {}, np.empty(len(tree.leaf), np.int64)
    for node in range(len(tree.leaf) - 1, -1, -1):
        if tree.feature[node] < 0:
            nodes[node], total[node] = packed[tree.leaf[node]], counts[tree.leaf[node]]
        else:
            first, second = tree.child[node]
            nodes[node] = nodes[first] + nodes[second]
            total[node] = total[first] + total[second]
    return nodes, total


def _filters_of_leaves(nodes, total, tree, ridge, side):
    """Filters of the leaves, from the root down; float64."""
    g, parent = np.zeros((len(tree.leaf), side - 1)), np.full(len(tree.leaf), -1)
    inner = np.flatnonzero(tree.feature >= 0)
    parent[tree.child[inner]] = inner[:, None]

    def solve_node(node):
        towards = np.zeros(side - 1) if parent[node] < 0 else g[parent[node]]
        g[node] = towards
        if total[node]:
            matrix = unpacked(nodes[node], side)
            q, v = matrix[:-1, :-1], matrix[-1, :-1]
            pull = ridge * np.trace(q) / (total[node] * (side - 1)) or 1.0
            q[np.diag_indices(side - 1)] += pull
            factor = cho_factor(q, lower=True, overwrite_a=True, check_finite=False)
            g[node] = cho_solve(factor, v + pull * towards)

    level = tree.roots
    while level.size:  # one level of nodes at a time, because children need the parents' filters
        in_threads(level, solve_node, blas=True)
        level = tree.child[level[tree.feature[level] >= 0]].ravel()
    leaves = np.flatnonzero(tree.feature < 0)
    return g[leaves[np.argsort(tree.leaf[leaves])]]


def squared_error(matrix, g):
    """Squared error of a filter, from the lower triangle of the Gram matrix of [taps, target]."""
    q = matrix[:-1, :-1]
    linear = matrix[-1, -1] - 2 * matrix[-1, :-1] @ g
    return linear + 2 * g @ (q @ g) - g @ (q.diagonal() * g)
