"""The filters of a stage's leaves: ridge regressions, each pulled to that of the node above it."""
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from machine.threads import in_threads
from matrix_compute import unpacked

USUAL_RIDGE = 300.0  # samples: what the first stage chooses on a dozen brains
RIDGES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0)  # samples


class Solved(NamedTuple):
    """The filters of a stage, and how its ridge was chosen."""

    weights: np.ndarray  # (leaves, taps) float32, learned from all voxels
    # The same without the voxels that are held out, where the ridge was chosen by these.
    without_held_out: np.ndarray
    ridge: float  # samples
    missed: dict  # of each ridge tried, the mean squared error on the voxels held out


def solve_stage(gram, tree, method):
    """The filters of a stage's leaves, from the filter of all voxels down the tree.

    A node's filter g minimises ``|b - a.g|^2 + r |g - g of its parent|^2``, with r the energy of an
    average tap in so many samples as the ridge says. With ``--ridge auto`` that number is the one
    of RIDGES that misses the voxels held out by least; learned is then from all voxels. The filters
    without these voxels are what later stages have to begin from while they are learned: so the
    voxels are held out from all that their ridge is chosen by.

    Parameters
    ----------
    gram : Gram
        A bucket for each leaf, then as many for the voxels that are held out.
    tree : Tree
    method : Method

    Returns
    -------
    Solved

    Raises
    ------
    numpy.linalg.LinAlgError
        If the ridge is too little, or with auto any of RIDGES.
    """
    leaves = tree.leaves
    learned, held = gram.packed[:leaves], gram.packed[leaves:]
    counts, held_counts = gram.count[:leaves], gram.count[leaves:]
    ridge, missed = method.ridge, {}
    if ridge is None and not (held_counts.any() and counts.any()):  # volumes too small for cubes
        ridge = USUAL_RIDGE
    if ridge is None:
        sums, tried = _sums_of_nodes(learned, counts, tree), {}
        held_full = [unpacked(held[leaf], gram.side) for leaf in range(leaves)]
        for ridge in RIDGES:
            try:
                tried[ridge] = _filters_of_leaves(*sums, tree, ridge, gram.side)
            except np.linalg.LinAlgError:
                if ridge == max(RIDGES) and not tried:
                    raise
                continue  # too little
            errors = [squared_error(full, g)
                      for full, g in zip(held_full, tried[ridge], strict=True)]
            missed[ridge] = sum(errors) / held_counts.sum()
        ridge = min(missed, key=missed.get)
    sums = _sums_of_nodes(learned + held, counts + held_counts, tree)
    weights = _filters_of_leaves(*sums, tree, ridge, gram.side)
    weights = weights.astype(np.float32)
    without = tried[ridge].astype(np.float32) if missed else weights
    return Solved(weights, without, ridge, missed)


def corrected_filters(gram, tree, weights, ridge, trust):
    """Filters of leaves corrected by what they miss of further samples.

    A node's correction d minimises ``|b - a.g - a.d|^2 + r |d - d of its parent|^2``, with g the
    filter of each sample's leaf and r as in `solve_stage`; above the root there is none.

    Parameters
    ----------
    gram : Gram
        Of the further samples, as for `solve_stage`. Changed in place: it may be large.
    tree : Tree
    weights : ndarray of float32, shape (leaves, taps)
    ridge : float
        Samples.
    trust : float
        Share of the correction that is made.

    Returns
    -------
    ndarray of float32, shape (leaves, taps)
    """
    leaves, side = tree.leaves, gram.side
    missed = gram.packed[:leaves]
    missed += gram.packed[leaves:]
    counts = gram.count[:leaves] + gram.count[leaves:]
    for leaf in np.flatnonzero(counts):
        lower, g = unpacked(missed[leaf], side)[:-1, :-1], weights[leaf].astype(np.float64)
        missed[leaf, -side:-1] -= lower @ g + g @ lower - lower.diagonal() * g
    corrections = _filters_of_leaves(*_sums_of_nodes(missed, counts, tree), tree, ridge, side)
    return (weights + trust * corrections).astype(np.float32)


def _sums_of_nodes(packed, counts, tree):
    """Sums and samples of all nodes from those of the leaves."""
    nodes, total = np.empty((len(tree.leaf), packed.shape[1])), np.empty(len(tree.leaf), np.int64)
    for node in range(len(tree.leaf) - 1, -1, -1):
        if tree.feature[node] < 0:
            nodes[node], total[node] = packed[tree.leaf[node]], counts[tree.leaf[node]]
        else:
            nodes[node] = nodes[tree.child[node]].sum(0)
            total[node] = total[tree.child[node]].sum()
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
    while level.size:  # a level of nodes at a time: their parents are solved
        in_threads(level, solve_node, blas=True)
        level = tree.child[level[tree.feature[level] >= 0]].ravel()
    leaves = np.flatnonzero(tree.feature < 0)
    return g[leaves[np.argsort(tree.leaf[leaves])]]


def squared_error(matrix, g):
    """What a filter misses, from the lower triangle of the Gram matrix of [taps, target]."""
    q = matrix[:-1, :-1]
    linear = matrix[-1, -1] - 2 * matrix[-1, :-1] @ g
    return linear + 2 * g @ (q @ g) - g @ (q.diagonal() * g)
