"""The voxel's own frame, written down literally and slowly: naive.py for octahedral/."""

import numpy as np

from octahedral.tree import tree_of


def describe(estimate, start, mask, place, factor, voxel, permutations):
    """Features and orientation of one voxel, in the order of octahedral.FEATURES.

    `voxel` is a flat index into padded volumes.
    """
    at = np.array(np.unravel_index(voxel, estimate.shape))
    unit = np.eye(3, dtype=int)

    def value(volume, *steps):
        return float(volume[tuple(at + sum(steps, np.zeros(3, int)))])

    def average(volume, weights):
        half = len(weights) // 2
        window = tuple(slice(i - half, i + half + 1) for i in at)
        return float(
            np.einsum("xyz,x,y,z->", volume[window].astype(float), weights, weights, weights)
        )

    def gaussian(length, sigma):
        x = np.arange(length) - length // 2
        return np.exp(-(x**2) / (2 * sigma**2)) / np.exp(-(x**2) / (2 * sigma**2)).sum()

    tensor, slope = np.zeros((3, 3)), np.zeros(3)
    window = gaussian(9, 0.85)
    for shift in np.ndindex(9, 9, 9):
        here, weight = at + shift - 4, np.prod(window[list(shift)])
        gradient = np.array(
            [
                (float(estimate[tuple(here + step)]) - float(estimate[tuple(here - step)])) / 2
                for step in unit
            ]
        )
        tensor += weight * np.outer(gradient, gradient)
        slope += weight * gradient
    values, vectors = np.linalg.eigh(tensor)
    l3, l2, l1 = np.maximum(values, 0)
    v = vectors[:, 2] if vectors[:, 2] @ slope >= 0 else -vectors[:, 2]
    axes = list(range(3))
    for group in set(factor):  # axes of equal factor are sorted among the places that they hold
        mine = [axis for axis in range(3) if factor[axis] == group]
        for slot, axis in zip(mine, sorted(mine, key=lambda axis: -abs(v[axis]))):
            axes[slot] = axis
    sign = [-1 if v[axis] < 0 else 1 for axis in axes]
    step = [sign[k] * unit[axes[k]] for k in range(3)]
    code = permutations.tolist().index(axes) * 8 + sum(1 << k for k in range(3) if sign[k] < 0)
    scale, centre = np.sqrt(l1) + 1e-5, value(estimate)
    apart = [float(place[axes[k], at[axes[k]]]) for k in range(3)]
    bends = [value(estimate, s) + value(estimate, -s) - 2 * centre for s in step]
    moved, mean = centre - value(start), average(estimate, np.full(5, 0.2))
    roots = np.sqrt([l1, l2, l3])
    return np.array(
        [
            np.log(l1 + 1e-8),
            l2 / (l1 + 1e-12),
            l3 / (l1 + 1e-12),
            *(abs(v[axes[k]]) / (abs(v[axes[0]]) + 1e-6) for k in (1, 2)),
            *(a if a == 0.5 else s * a for a, s in zip(apart, sign)),
            *np.abs(apart),
            *(bend / scale for bend in bends),
            sum(bends) / scale,
            sum(bends),
            *(
                (value(estimate, 2 * s) + value(estimate, -2 * s) - 2 * centre) / scale
                for s in step
            ),
            *(
                (
                    value(estimate, i, j)
                    - value(estimate, i, -j)
                    - value(estimate, -i, j)
                    + value(estimate, -i, -j)
                )
                / (4 * scale)
                for i, j in ((step[0], step[1]), (step[0], step[2]), (step[1], step[2]))
            ),
            *((value(estimate, s) - value(estimate, -s)) / scale for s in step),
            (centre - average(estimate, gaussian(11, 2.0))) / scale,
            (centre - mean) / scale,
            mean,
            centre,
            moved / scale,
            moved,
            average(mask, np.full(5, 0.2)),
            (roots[0] - roots[1] - roots[2]) / (roots.sum() + 1e-12),
        ]
    ), code


def walk(tree, features):
    """The leaf that a row of features falls into."""
    node = 0
    while tree.feature[node] >= 0:
        node = tree.child[node, int(features[tree.feature[node]] >= tree.threshold[node])]
    return tree.leaf[node]


def tree_of_medians(features, depth=5):
    """A tree that cuts at the median of strength, of coherence and so on in turn, for tests."""
    nodes = [None]

    def divide(place, rows, level):
        if level == depth or len(rows) < 4:
            return
        threshold = np.median(features[rows, level])
        below = features[rows, level] < threshold
        if below.any():
            first = len(nodes)
            nodes[place] = (level, threshold, first, first + 1)
            nodes.extend([None, None])
            divide(first, rows[below], level + 1)
            divide(first + 1, rows[~below], level + 1)

    divide(0, np.arange(len(features)), 0)
    return tree_of(nodes)
