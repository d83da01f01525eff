"""A tree that sorts voxels into classes: fixed ones by quantiles, or splits chosen for the error that they remove.

A node is grown by asking, of each feature and a few thresholds: if the voxels on either side had a small linear filter of
their own, how much less would these miss the HR voxel by? The best node of all is split first. This is the regression tree
of Breiman et al. (1984) with linear models in its leaves, grown best-first.
"""
import heapq
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit
from threadpoolctl import threadpool_limits

from octahedral import FEATURES
from threads import thread_count

BINS = 64  # quantiles of a feature between which thresholds lie
CUTS = 11  # thresholds that a node tries, at most
LOOK_AT = 20_000  # samples that a node looks at, at most
MOST_LEAVES = 4096
LEAST = 200  # samples on either side of a split, at least
SMALL_RIDGE = 0.05  # of the mean energy of a regressor
QUANTILE_SPLITS = (("strength", 6), ("coherence", 4), ("slope_1", 3), ("slope_2", 2))  # 144 classes


class Tree(NamedTuple):
    """Nodes in order of their making: children come after their parent. Node 0 is the root."""

    feature: np.ndarray  # (nodes,) int64: which feature decides; -1 in a leaf
    threshold: np.ndarray  # (nodes,) float32: child 1 where the feature is at least this, else child 0
    child: np.ndarray  # (nodes, 2) int64; 0 in a leaf
    leaf: np.ndarray  # (nodes,) int64: number of a leaf; -1 elsewhere

    @property
    def leaves(self):
        return int(self.leaf.max()) + 1


def tree_of(splits):
    """A tree from its nodes in order: (feature, threshold, first child, second child), or None for a leaf."""
    feature, threshold = np.full(len(splits), -1), np.zeros(len(splits), np.float32)
    child, leaf = np.zeros((len(splits), 2), np.int64), np.full(len(splits), -1)
    for node, split in enumerate(splits):
        if split is not None:
            feature[node], threshold[node], child[node] = split[0], split[1], split[2:]
    leaf[feature < 0] = np.arange((feature < 0).sum())
    return Tree(feature, threshold, child, leaf)


def read_tree(held):
    """A tree from a dict of lists or arrays, checked: whatever they hold, walking it ends in a leaf.

    Raises
    ------
    ValueError
        Saying what is wrong.
    """
    tree = Tree(*(np.asarray(held[name], kind) for name, kind in zip(Tree._fields, (np.int64, np.float32, np.int64, np.int64),
                                                                     strict=True)))
    nodes, inner = len(tree.leaf), tree.feature >= 0
    if [array.shape for array in tree] != [(nodes,), (nodes,), (nodes, 2), (nodes,)] or not 0 < nodes < 2 * MOST_LEAVES:
        raise ValueError("the arrays of a tree do not fit together")
    if tree.feature.min() < -1 or tree.feature.max() >= len(FEATURES) or not np.isfinite(tree.threshold).all():
        raise ValueError("a tree asks for what there is not")
    children = np.sort(tree.child[inner].ravel())
    if (tree.child[inner] <= np.flatnonzero(inner)[:, None]).any() or not np.array_equal(children, np.arange(1, nodes)):
        raise ValueError("the nodes of a tree do not hang together")
    if not np.array_equal(tree.leaf, np.where(inner, -1, np.cumsum(~inner) - 1)):
        raise ValueError("the leaves of a tree are not numbered")
    return tree


def quantile_tree(features):
    """Fixed classes: each feature of QUANTILE_SPLITS in turn is cut into parts of equal size, inside the parts before.

    Parameters
    ----------
    features : ndarray of float32, shape (n, len(FEATURES))
    """
    splits = [None]

    def divide(node, rows, plan):
        plan = [(name, parts) for name, parts in plan if parts > 1]
        if not plan or not rows.size:
            return
        name, parts = plan[0]
        values, low, first = features[rows, FEATURES.index(name)], parts // 2, len(splits)
        threshold = np.sort(values)[values.size * low // parts]
        splits[node] = (FEATURES.index(name), threshold, first, first + 1)
        splits.extend([None, None])
        divide(first, rows[values < threshold], [(name, low), *plan[1:]])
        divide(first + 1, rows[values >= threshold], [(name, parts - low), *plan[1:]])

    divide(0, np.arange(len(features)), QUANTILE_SPLITS)
    return tree_of(splits)


def grow(features, samples, leaves, advance=lambda leaves: None):
    """Grow a tree whose leaves are served best by linear filters of their own.

    Parameters
    ----------
    features : ndarray of float32, shape (n, len(FEATURES))
    samples : ndarray of float32, shape (n, regressors + 1)
        A few voxels of each patch, less its centre, and HR less the centre.
    leaves : int
        How many at most.
    advance : callable, optional
        Told of each leaf that is added.

    Returns
    -------
    Tree
        Does not depend on the number of threads.
    """
    quantiles = np.quantile(features[::max(len(features) // 100_000, 1)], np.arange(1, BINS) / BINS, axis=0).astype(np.float32)
    bins = np.stack([np.searchsorted(quantiles[:, f], features[:, f], side="right")
                     for f in range(features.shape[1])], 1).astype(np.uint8)  # below BINS
    splits, heap = [None], []
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(thread_count()) as workers:
        _queue(heap, 0, np.arange(len(features)), _best_split(bins, samples, np.arange(len(features))))
        count = 1
        while heap and count < leaves:
            _, node, rows, (feature, cut) = heapq.heappop(heap)
            above = bins[rows, feature] >= cut
            first = len(splits)
            splits[node] = (feature, quantiles[cut - 1, feature], first, first + 1)
            splits.extend([None, None])
            halves = [rows[~above], rows[above]]
            for number, found in enumerate(workers.map(lambda half: _best_split(bins, samples, half), halves)):
                _queue(heap, first + number, halves[number], found)
            count += 1
            advance(1)
    return tree_of(splits)


def _queue(heap, node, rows, found):
    gain, feature, cut = found
    if gain > 0:
        heapq.heappush(heap, (-gain, node, rows, (feature, cut)))


def _best_split(bins, samples, rows):
    """The split of a node that removes most squared error: (error removed, feature, first bin above)."""
    best, look = (0.0, 0, 0), rows[::-(-len(rows) // LOOK_AT) or 1]
    if len(rows) < 2 * LEAST:
        return best
    bins, samples, weight = bins[look], samples[look], len(rows) / len(look)
    least = LEAST / weight
    whole = (samples.T @ samples).astype(np.float64)
    ridge = SMALL_RIDGE * np.trace(whole[:-1, :-1]) / (len(whole) - 1) / len(samples)
    error = errors_left(whole[None], np.array([len(samples)]), ridge)[0]
    for feature in range(bins.shape[1]):
        order = np.argsort(bins[:, feature], kind="stable")
        sorted_bins = bins[order, feature]
        cuts = np.unique(sorted_bins[np.arange(1, CUTS + 1) * len(order) // (CUTS + 1)])  # first bins above
        below = np.searchsorted(sorted_bins, cuts)
        good = (below >= least) & (len(order) - below >= least)
        if not good.any():
            continue
        cuts, below = cuts[good], below[good]
        sorted_samples, left, sums = samples[order], np.zeros_like(whole), []
        for start, stop in zip(np.r_[0, below[:-1]], below, strict=True):
            part = sorted_samples[start:stop]
            left = left + part.T @ part
            sums.append(left)
        sums = np.array(sums)
        missed = errors_left(sums, below, ridge) + errors_left(whole - sums, len(order) - below, ridge)
        at = int(missed.argmin())
        if (error - missed[at]) * weight > best[0]:
            best = ((error - missed[at]) * weight, feature, int(cuts[at]))
    return best


@njit(cache=True, nogil=True)
def errors_left(grams, counts, ridge):
    """Squared errors that are left by ridge regressions, from Gram matrices of [regressors, target]: shape (m,).

    That is the last entry of each Cholesky factor's diagonal, squared. Regressors that are sums of others count nothing.
    """
    side = grams.shape[1]
    missed, factor = np.empty(len(grams)), np.empty((side, side))
    for m in range(len(grams)):
        for i in range(side):
            for j in range(i + 1):
                total = grams[m, i, j]
                if i == j < side - 1:
                    total += ridge * counts[m]
                for k in range(j):
                    total -= factor[i, k] * factor[j, k]
                if i == j == side - 1:
                    missed[m] = total
                elif i == j:
                    factor[i, i] = np.sqrt(max(total, 0.0))
                else:
                    factor[i, j] = total / factor[j, j] if factor[j, j] > 0 else 0.0
    return missed
