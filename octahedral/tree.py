"""Decision trees that sort voxels into classes (leaves) by their features, and their training.

To find the best split of a node, each feature is tried with a few thresholds. For each threshold, a
small linear filter is fitted to the voxels on each side. The best split is the one that reduces the
squared error to the HR voxels most. Of all nodes, the one with the largest reduction is split
first, as in the regression tree of Breiman et al. (1984), but with linear models in its leaves.
"""
import heapq
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from degrading.descriptors import DESCRIPTOR_NAMES
from degrading.profile_reader import READING_NAMES
from machine.kernels import njit
from machine.threads import blas_alone, thread_count
from octahedral.voxel_features import FEATURE_NAMES

BINS = 64  # bins of each feature, with equal numbers of samples; thresholds lie between bins
CUTS = 11  # largest number of thresholds that are tried for a node and a feature
MOST_SAMPLES = 20_000  # largest number of samples from which a node chooses its split
MOST_LEAVES, MOST_TREES = 4096, 8
MOST_NODES = 2 * MOST_LEAVES * MOST_TREES
LEAST = 200  # smallest number of samples on either side of a split
SMALL_RIDGE = 0.05  # ridge, as a share of the mean square of a regressor
NO_READER = np.zeros((len(READING_NAMES) + len(DESCRIPTOR_NAMES), 1 + len(DESCRIPTOR_NAMES)))


class Tree(NamedTuple):
    """The nodes of one or several trees: parents come before children, and node 0 is a root.

    The nodes of several trees follow each other; a voxel has one leaf in each tree.
    """

    feature: np.ndarray  # (nodes,) int64: index of the feature to split on; -1 in a leaf
    threshold: np.ndarray  # (nodes,) float32: a feature >= this leads to child 1, else to 0
    child: np.ndarray  # (nodes, 2) int64; 0 in a leaf
    leaf: np.ndarray  # (nodes,) int64: number of the leaf among those of all trees; -1 in others
    roots: np.ndarray  # (trees,) int64: node number of each root
    reader: np.ndarray = NO_READER  # estimator of slice profiles, see degrading/profile_reader.py

    @property
    def leaves(self):
        return int(self.leaf.max()) + 1


def tree_of(splits):
    """A tree from a list of its nodes: (feature, threshold, child 0, child 1), or None for a leaf.

    Examples
    --------
    >>> tree = tree_of([(3, 0.5, 1, 2), None, None])
    >>> tree.leaves, tree.leaf
    (2, array([-1,  0,  1]))
    """
    feature, threshold = np.full(len(splits), -1), np.zeros(len(splits), np.float32)
    child, leaf = np.zeros((len(splits), 2), np.int64), np.full(len(splits), -1)
    for node, split in enumerate(splits):
        if split is not None:
            feature[node], threshold[node], child[node] = split[0], split[1], split[2:]
    leaf[feature < 0] = np.arange((feature < 0).sum())
    return Tree(feature, threshold, child, leaf, np.zeros(1, np.int64))


def together(trees, reader=NO_READER):
    """Join several trees to one `Tree`, with a reader.

    Examples
    --------
    >>> tree = tree_of([(3, 0.5, 1, 2), None, None])
    >>> together([tree, tree]).roots, together([tree, tree]).leaf
    (array([0, 3]), array([-1,  0,  1, -1,  2,  3]))
    """
    nodes = np.cumsum([0, *(len(tree.leaf) for tree in trees)])
    leaves = np.cumsum([0, *(tree.leaves for tree in trees)])
    parts = [(tree.feature, tree.threshold,
              np.where(tree.feature[:, None] < 0, 0, tree.child + first_node),
              np.where(tree.feature < 0, tree.leaf + first_leaf, -1))
             for tree, first_node, first_leaf in zip(trees, nodes, leaves)]
    return Tree(*map(np.concatenate, zip(*parts)), nodes[:-1], reader)


def read_tree(held):
    """A tree from a dict of lists or arrays, after a check that every path ends in a leaf.

    Raises
    ------
    ValueError
        If the arrays are not a tree; the message names the fault.

    Examples
    --------
    >>> tree = tree_of([(3, 0.5, 1, 2), None, None])
    >>> read_tree(tree._asdict()).leaves
    2
    """
    kinds = {"feature": np.int64, "threshold": np.float32, "child": np.int64, "leaf": np.int64}
    # Contiguous, as those of a training: numba compiles kernels anew for every other layout.
    arrays = [np.array(held[name], kind, order="C") for name, kind in kinds.items()]
    feature, _, child, leaf = arrays
    nodes, inner = len(leaf), feature >= 0
    shapes = [(nodes,), (nodes,), (nodes, 2), (nodes,)]
    if [array.shape for array in arrays] != shapes or not 0 < nodes < MOST_NODES:
        raise ValueError("the arrays of a tree do not fit together")
    roots = np.setdiff1d(np.arange(nodes), child[inner])
    tree = Tree(*arrays, roots, np.asarray(held.get("reader", NO_READER), np.float64))
    if tree.reader.shape != NO_READER.shape or not np.isfinite(tree.reader).all():
        raise ValueError("the reader of a tree has another shape, or is not finite")
    if (tree.feature.min() < -1 or tree.feature.max() >= len(FEATURE_NAMES)
            or not np.isfinite(tree.threshold).all()):
        raise ValueError("a tree has a split on an unknown feature, or at no finite number")
    children, parents = tree.child[inner], np.flatnonzero(inner)[:, None]
    below = np.setdiff1d(np.arange(nodes), roots)
    if ((children <= parents).any() or 0 not in roots
            or not np.array_equal(np.sort(children.ravel()), below)):
        raise ValueError("the nodes of a tree are not linked as a tree")
    if not np.array_equal(tree.leaf, np.where(inner, -1, np.cumsum(~inner) - 1)):
        raise ValueError("the leaves of a tree are not numbered in order")
    return tree


def grow(features, samples, leaves, advance=lambda leaves: None):
    """Grow a tree whose splits reduce the squared error of one linear filter per leaf.

    Parameters
    ----------
    features : ndarray of float32, shape (n, VOXEL_FEATURES) or (n, len(FEATURE_NAMES))
    samples : ndarray of float32, shape (n, regressors + 1)
        One row per voxel: a few voxels of its patch and the HR voxel, minus the patch's centre.
    leaves : int
        Largest number of leaves.
    advance : callable, optional
        Called with 1 for each leaf that is added.

    Returns
    -------
    Tree
        The tree does not depend on the number of threads.

    Examples
    --------
    Voxels with a value below 0.5 follow one rule, the others the opposite rule:

    >>> random = np.random.default_rng(0)
    >>> features = random.random((2000, len(FEATURE_NAMES)), np.float32)
    >>> tap = random.standard_normal(2000, np.float32)
    >>> target = np.where(features[:, FEATURE_NAMES.index("value")] < 0.5, tap, -tap)
    >>> tree = grow(features, np.column_stack([tap, target]), leaves=2)
    >>> FEATURE_NAMES[tree.feature[0]], bool(abs(tree.threshold[0] - 0.5) < 0.1)
    ('value', True)
    """
    some = features[::max(len(features) // 100_000, 1)]
    quantiles = np.quantile(some, np.arange(1, BINS) / BINS, axis=0).astype(np.float32)
    bins = np.stack([np.searchsorted(quantiles[:, f], features[:, f], side="right")
                     for f in range(features.shape[1])], 1).astype(np.uint8)  # below BINS
    splits, heap, everything = [None], [], np.arange(len(features))
    with blas_alone(), ThreadPoolExecutor(thread_count()) as workers:
        _queue(heap, 0, everything, _best_split(bins, samples, everything))
        count = 1
        while heap and count < leaves:
            _, node, rows, (feature, cut) = heapq.heappop(heap)
            above = bins[rows, feature] >= cut
            first = len(splits)
            splits[node] = (feature, quantiles[cut - 1, feature], first, first + 1)
            splits.extend([None, None])
            count += 1
            advance(1)
            if count == leaves:
                break  # the halves need no split of their own
            halves = [rows[~above], rows[above]]
            found = workers.map(lambda half: _best_split(bins, samples, half), halves)
            for number, split in enumerate(found):
                _queue(heap, first + number, halves[number], split)
    return tree_of(splits)


def _queue(heap, node, rows, split):
    """Add a node to the heap of nodes that may be split, if its best split reduces the error."""
    gain, feature, cut = split
    if gain > 0:
        heapq.heappush(heap, (-gain, node, rows, (feature, cut)))


def _best_split(bins, samples, rows):
    """The split that reduces squared error most: (reduction, feature, first bin above the cut)."""
    best, chosen = (0.0, 0, 0), rows[::-(-len(rows) // MOST_SAMPLES) or 1]
    if len(rows) < 2 * LEAST:
        return best
    bins, samples, weight = bins[chosen], samples[chosen], len(rows) / len(chosen)
    least = LEAST / weight
    whole = (samples.T @ samples).astype(np.float64)
    ridge = SMALL_RIDGE * np.trace(whole[:-1, :-1]) / (len(whole) - 1) / len(samples)
    error = errors_left(whole[None], np.array([len(samples)]), ridge)[0]
    for feature in range(bins.shape[1]):
        order = np.argsort(bins[:, feature], kind="stable")
        sorted_bins = bins[order, feature]
        # For each cut: the first bin above it.
        cuts = np.unique(sorted_bins[np.arange(1, CUTS + 1) * len(order) // (CUTS + 1)])
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
        missed = (errors_left(sums, below, ridge)
                  + errors_left(whole - sums, len(order) - below, ridge))
        at = int(missed.argmin())
        if (error - missed[at]) * weight > best[0]:
            best = ((error - missed[at]) * weight, feature, int(cuts[at]))
    return best


@njit(cache=True, nogil=True)
def errors_left(grams, counts, ridge):
    """Squared errors of ridge regressions, from Gram matrices of [regressors, target].

    Each error is the square of the last diagonal entry of a Cholesky factor. A regressor that is a
    linear combination of earlier regressors is left out.

    Parameters
    ----------
    grams : ndarray of float64, shape (m, regressors + 1, regressors + 1)
    counts : ndarray of int, shape (m,)
        Number of samples of each matrix.
    ridge : float
        This number times the number of samples is added to the diagonal.

    Returns
    -------
    ndarray of float64, shape (m,)
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


def tree_of_nodes(nodes, reader):
    """Trees from the array of a file, with the columns feature, threshold, child 0, child 1."""
    if (np.abs(nodes) > 1e9).any():
        raise ValueError("the nodes of a tree are not linked as a tree")
    leaf = nodes[:, 0] < 0
    return read_tree({"feature": nodes[:, 0], "threshold": nodes[:, 1], "child": nodes[:, 2:],
                      "leaf": np.where(leaf, np.cumsum(leaf) - 1, -1), "reader": reader})
