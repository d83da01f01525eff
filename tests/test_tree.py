"""tree.py: splits that are chosen for the error they remove."""

import naive_octahedral
import numpy as np
import pytest

from octahedral.tree import BINS, Tree, errors_left, grow, read_tree
from octahedral.voxel_features import BEND, FEATURE_NAMES, MEAN, VOXEL_FEATURES

RANDOM = np.random.default_rng(0)


def leaves_of(tree, features):
    return np.array([naive_octahedral.walk(tree, row) for row in features])


def two_laws(n=6000, seed=1):
    """Samples whose linear law depends on two features only.

    These are 'bend' above 0.3, and there 'mean' above -0.2.
    """
    random = np.random.default_rng(seed)
    features = random.standard_normal((n, VOXEL_FEATURES)).astype(np.float32)
    taps = random.standard_normal((n, 4))
    bend, mean = features[:, BEND] > 0.3, features[:, MEAN] > -0.2
    laws = np.array([[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, -1, 3]])
    target = (taps * laws[np.where(bend, np.where(mean, 2, 1), 0)]).sum(1) + random.normal(
        0, 0.1, n
    )
    return features, np.column_stack([taps, target]).astype(np.float32)


def test_a_tree_finds_the_features_that_matter_and_where():
    features, samples = two_laws()
    tree = grow(features, samples, 3)
    assert tree.leaves == 3 and len(tree.leaf) == 5
    assert {FEATURE_NAMES[f] for f in tree.feature[tree.feature >= 0]} == {"bend", "mean"}
    thresholds = {FEATURE_NAMES[f]: t for f, t in zip(tree.feature, tree.threshold) if f >= 0}
    assert abs(thresholds["bend"] - 0.3) < 0.15 and abs(thresholds["mean"] + 0.2) < 0.25


def test_a_threshold_lies_where_the_law_changes_to_half_a_bin():
    features, samples = two_laws()
    features[:, BEND] = (np.argsort(np.argsort(features[:, BEND])) + 0.5) / len(features)
    samples[:, -1] = np.where(features[:, BEND] < 0.5, samples[:, 0], -samples[:, 0])
    tree = grow(features, samples, 2)
    assert tree.feature[0] == BEND and abs(tree.threshold[0] - 0.5) < 0.5 / BINS


def test_a_tree_does_not_depend_on_the_threads_and_grows_by_adding_leaves(monkeypatch):
    from octahedral import tree as module

    features, samples = two_laws()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    first = grow(features, samples, 12)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for one, other in zip(first, grow(features, samples, 12)):
        np.testing.assert_array_equal(one, other)
    small = grow(features, samples, 6)
    np.testing.assert_array_equal(
        small.threshold[small.feature >= 0][:2], first.threshold[first.feature >= 0][:2]
    )
    assert module.LEAST >= 100
    assert np.bincount(leaves_of(first, features)).min() >= module.LEAST * 0.5


def test_errors_left_are_those_of_ridge_regressions():
    random, ridge, counts, expected = np.random.default_rng(4), 0.05, np.array([300, 40]), []
    rows = [random.standard_normal((count, 9)) @ random.standard_normal((9, 9)) for count in counts]
    for taps, target in ((row[:, :-1], row[:, -1]) for row in rows):
        weights = np.linalg.solve(taps.T @ taps + ridge * len(taps) * np.eye(8), taps.T @ target)
        expected.append(
            ((target - taps @ weights) ** 2).sum() + ridge * len(taps) * (weights**2).sum()
        )
    np.testing.assert_allclose(
        errors_left(np.array([row.T @ row for row in rows]), counts, ridge), expected, rtol=1e-9
    )
    nothing = np.zeros((1, 9, 9))
    nothing[0, 8, 8] = 2.5
    assert errors_left(nothing, counts[:1], 0.0) == 2.5


def test_too_few_samples_or_none_to_gain_from_leave_one_leaf():
    features, samples = two_laws(300)
    assert grow(features, samples, 64).leaves == 1
    assert grow(features[:5], samples[:5], 64).leaves == 1


def test_a_tree_is_read_as_it_was_written():
    features, samples = two_laws()
    tree = grow(features, samples, 8)
    for one, other in zip(
        tree, read_tree({name: array.tolist() for name, array in tree._asdict().items()})
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "spoil",
    [
        {"feature": [len(FEATURE_NAMES), -1, -1]},
        {"feature": [-2, -1, -1]},
        {"threshold": [float("nan"), 0, 0]},
        {"child": [[0, 2], [0, 0], [0, 0]]},
        {"child": [[1, 1], [0, 0], [0, 0]]},
        {"child": [[1, 3], [0, 0], [0, 0]]},
        {"leaf": [-1, 0, 0]},
        {"leaf": [0, 1, 2]},
        {"leaf": [-1, 0]},
        {"child": [[1, 2]]},
        {"feature": []},
        {"feature": [0, 0, -1], "leaf": [-1, -1, 0]},
    ],
    ids=str,
)
def test_hostile_trees_are_refused(spoil):
    good = {
        "feature": [0, -1, -1],
        "threshold": [0.5, 0, 0],
        "child": [[1, 2], [0, 0], [0, 0]],
        "leaf": [-1, 0, 1],
    }
    assert isinstance(read_tree(good), Tree)
    with pytest.raises(ValueError):
        read_tree(good | spoil)
