"""octahedral/features.py: features in the voxel's own frame, against their literal definition."""

import itertools

import naive_octahedral
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from degrading.descriptors import DESCRIPTOR_NAMES
from machine.simd import HALF, LANES
from octahedral import features as module
from octahedral import voxel_features
from octahedral.applying import apply_turned, lines_of
from octahedral.features import classify, features_of_voxels
from octahedral.scene import PERMUTATIONS, REACH, ball, make_scene, places, turned_offsets
from octahedral.tree import tree_of
from octahedral.voxel_features import FEATURE_NAMES, OVER_NOISE, STRENGTH, VOXEL_FEATURES

FACTOR = (2, 2, 2)


def landscape(seed=0, shape=(17, 19, 18)):
    return np.clip(
        gaussian_filter(np.random.default_rng(seed).random(shape), 1.3) * 3 - 1, 0, 1
    ).astype(np.float32)


def scene_of(estimate, start=None, mask=None, factor=FACTOR):
    along = [places(side, (side // 2 - 1) / (side - 1), 0.0) for side in estimate.shape]
    mask = np.ones(estimate.shape, bool) if mask is None else mask
    return make_scene(estimate, estimate if start is None else start, mask, along, factor)


def everything(scene):
    return np.flatnonzero(scene.mask)


def test_the_48_rows_are_all_orientations_of_a_cube():
    shape, displacements = (31, 37, 41), np.array([[1, 2, 3]])
    flat = {int(offset) for offset in turned_offsets(displacements, shape).ravel()}
    expected = {
        (s[0] * p[0] * 37 + s[1] * p[1]) * 41 + s[2] * p[2]
        for p in itertools.permutations((1, 2, 3))
        for s in itertools.product((1, -1), repeat=3)
    }
    assert flat == expected and len(flat) == 48


def test_the_share_of_brain_is_that_of_whole_voxels_in_any_order_of_the_axes():
    """Trees split between shares, so their last bits decide."""
    mask = np.random.default_rng(3).random((12, 13, 14)) < 0.7

    def shares(mask):
        scene, found = scene_of(landscape(shape=mask.shape), mask=mask), np.zeros(mask.shape, "f4")
        voxels = everything(scene)
        inner = np.zeros(scene.mask.shape, np.float32)
        inner.flat[voxels] = features_of_voxels(scene, voxels)[0][:, voxel_features.BRAIN]
        found[:] = inner[REACH:-REACH, REACH:-REACH, REACH:-REACH]
        return found

    found = shares(mask)
    voxels = np.rint(found * 125)
    assert voxels[mask].min() > 10 and (found == (voxels / 125).astype(np.float32)).all()
    for axes in itertools.permutations(range(3)):
        np.testing.assert_array_equal(shares(mask.transpose(axes)), found.transpose(axes))


@pytest.mark.parametrize("radius, other", [(1, -1), (3, -1), (3, 6), (4, 2), (6, 6)])
def test_lines_hold_the_taps_of_each_orientation(radius, other):
    """Lines of up to 7 voxels are one vector, longer ones are two."""
    taps, shape = (ball(radius**2, centre=False), ball(other)), (15, 16, 17)
    lines = lines_of(taps, shape)
    begins = np.concatenate([lines.in_estimate, lines.in_start])
    at = begins[lines.slots // HALF] + lines.slots % HALF
    expected = np.concatenate([turned_offsets(part, shape) for part in taps], axis=1)
    np.testing.assert_array_equal(at, expected)
    in_start = lines.slots // HALF >= len(lines.in_estimate)
    np.testing.assert_array_equal(in_start, np.arange(at.shape[1]) >= len(taps[0]) + 0 * at)
    assert begins[lines.centre // HALF] + lines.centre % HALF == 0
    assert not (lines.slots == lines.centre).any()


def test_buckets_of_any_number_of_voxels_are_restored_with_their_filters():
    """Four voxels of a bucket are restored at a time, the others one by one."""
    sizes, shape = (1, 2, 3, 4, 5, 9), (13, 14, 15)
    taps, random = (ball(1, centre=False), ball(-1)), np.random.default_rng(0)
    leaf, orientation = (np.repeat(numbers, sizes) for numbers in (
        (0, 0, 1, 1, 2, 2), (3, 7, 0, 47, 20, 21)))
    inner = np.flatnonzero(np.pad(np.ones((9, 10, 11), bool), 2))
    voxels = random.choice(inner, leaf.size, replace=False)
    x, weights = random.random(13 * 14 * 15, np.float32), random.random((3, 6), np.float32)
    result = x.copy()
    apply_turned(x, x, voxels, leaf[None].astype(np.int32), orientation.astype(np.uint8),
                 lines_of(taps, shape), weights, result)
    near = x[voxels[:, None] + turned_offsets(taps[0], shape)[orientation]]
    expected = x.copy()
    expected[voxels] += ((near - x[voxels, None]) * weights[leaf]).sum(1)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_balls_hold_the_voxels_within_their_radius():
    assert [len(ball(r2)) for r2 in (-1, 0, 1, 3, 6, 9)] == [0, 1, 7, 27, 81, 123]
    assert len(ball(9, centre=False)) == 122 and (ball(6) ** 2).sum(1).max() == 6


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 1, 4), (2, 3, 2), (2, 3, 4)], ids=str)
def test_features_equal_their_definition(factor):
    estimate, start = landscape(), landscape(1)
    mask = np.random.default_rng(2).random(estimate.shape) < 0.7
    scene = scene_of(estimate, start, mask, factor)
    voxels = everything(scene)
    features, orientation = features_of_voxels(scene, voxels)
    chosen = np.random.default_rng(3).choice(len(voxels), 60, replace=False)
    for n in chosen:
        expected, code = naive_octahedral.describe(
            scene.estimate, scene.start, scene.mask, scene.place, factor, voxels[n], PERMUTATIONS
        )
        assert orientation[n] == code
        np.testing.assert_allclose(features[n], expected, rtol=2e-3, atol=2e-4)


def test_flat_surroundings_give_finite_features():
    scene = scene_of(np.full((9, 9, 9), 0.5, np.float32))
    features, orientation = features_of_voxels(scene, everything(scene))
    assert np.isfinite(features).all() and (orientation < 48).all()


def test_slabs_do_not_show(monkeypatch):
    scene = scene_of(landscape())
    whole = features_of_voxels(scene, everything(scene))
    monkeypatch.setattr(module, "SLAB", 5)
    for one, other in zip(whole, features_of_voxels(scene, everything(scene))):
        np.testing.assert_array_equal(one, other)


def test_smoothing_fills_the_voxels_that_are_used_and_at_most_a_vector_beyond():
    """Kernels of whole vectors have no check of their bounds."""
    first, planes, rows, row = REACH - 1, 2 * REACH + 3, 2 * REACH + 1, 2 * REACH + 2
    plane, size, more = rows * row, planes * rows * row, first * rows * row
    volume = np.random.default_rng(0).random(size, np.float32)
    scratch = [np.zeros(plane + 2 * LANES + first * row, np.float32) for _ in range(2)]
    # Numbers that no smoothed volume has, and room for those beyond.
    smoothed, result = (np.full(size + more, 7, np.float32) for _ in range(2))
    module._smooth(volume, plane, row, 0, 0, module.WINDOW, *scratch, smoothed, result)
    at = np.flatnonzero(smoothed != 7)
    assert at[0] == plane + first * row and at[-1] < size - plane - first * row + LANES
    assert (at % plane).min() == first * row
    assert (at % plane).max() < plane - first * row + LANES
    at = np.flatnonzero(result != 7)
    assert at[0] == first * plane and at[-1] < size - first * plane + LANES


def test_axes_of_different_factors_keep_their_places():
    scene = scene_of(landscape(), factor=(1, 1, 4))
    _, orientation = features_of_voxels(scene, everything(scene))
    kept = PERMUTATIONS[orientation // 8]
    assert set(map(tuple, kept)) == {(0, 1, 2), (1, 0, 2)}


@pytest.mark.parametrize(
    "turn",
    [
        lambda v: v[::-1],
        lambda v: v[:, ::-1, ::-1],
        lambda v: v.transpose(1, 0, 2),
        lambda v: v.transpose(2, 0, 1)[:, ::-1],
    ],
    ids=["flip", "two flips", "swap", "rotate"],
)
def test_a_turned_volume_has_the_turned_features(turn):
    """To rounding; where two components of the direction are alike, the frame may be another."""
    estimate = landscape(4, (16, 16, 16))
    turned = np.ascontiguousarray(turn(estimate))
    scene, other = scene_of(estimate), scene_of(turned)
    features, _ = features_of_voxels(scene, everything(scene))
    found, _ = features_of_voxels(other, everything(other))
    grids = [np.moveaxis(values.reshape(16, 16, 16, -1), -1, 0) for values in (features, found)]
    apart = np.abs(np.stack([turn(grid) for grid in grids[0]]) - grids[1]) / (1 + np.abs(grids[1]))
    assert np.mean(apart.max(0) > 1e-2) < 0.01, np.mean(apart.max(0) > 1e-2)


def test_places_are_the_same_from_both_ends():
    for side, factor in itertools.product((8, 12, 14, 24, 36), (2, 3, 4)):
        n = side // factor
        if n > 1:
            along = places(side, (n - 1) / (side - 1), 0.0)
            assert np.abs(along).max() <= 0.5
            half = along == 0.5
            np.testing.assert_array_equal(np.where(half, along, -along), along[::-1])


def test_places_are_distances_from_the_nearest_lr_sample():
    np.testing.assert_allclose(places(6, 0.5, -0.25), [-0.25, 0.25] * 3)
    np.testing.assert_allclose(places(5, 0.25, 0.5), [0.5, -0.25, 0, 0.25, 0.5])


def test_classify_walks_the_tree_that_their_features_decide():
    scene = scene_of(landscape())
    voxels = everything(scene)
    features, orientation = features_of_voxels(scene, voxels)
    tree = naive_octahedral.tree_of_medians(features)
    leaf, turned = classify(scene, voxels, tree)
    np.testing.assert_array_equal(turned, orientation)
    np.testing.assert_array_equal(leaf, [[naive_octahedral.walk(tree, row) for row in features]])


def test_every_feature_has_a_name():
    scene = scene_of(landscape())
    assert features_of_voxels(scene, everything(scene)[:3])[0].shape == (3, VOXEL_FEATURES)
    seen = scene._replace(descriptors=np.zeros(len(DESCRIPTOR_NAMES), np.float32))
    assert features_of_voxels(seen, everything(scene)[:3])[0].shape == (3, len(FEATURE_NAMES))
    assert len(set(FEATURE_NAMES)) == len(FEATURE_NAMES)
    assert REACH >= 6  # the Gaussian of sigma 2 reaches 5, the window over gradients 5


def test_the_constant_of_each_feature_is_its_place_among_the_names():
    names = FEATURE_NAMES[:VOXEL_FEATURES]
    assert [getattr(voxel_features, name.upper()) for name in names] == list(range(len(names)))


def test_descriptors_lead_each_voxel_to_the_leaf_that_the_whole_tree_does():
    """Splits on descriptors and on strength over noise come before voxels are looked at."""
    descriptor, over = VOXEL_FEATURES + 1, OVER_NOISE  # the floor and the strength over it
    for floor, first in ((0.02, descriptor), (0.08, descriptor), (0.05, over), (0.05, STRENGTH)):
        descriptors = np.full(len(DESCRIPTOR_NAMES), floor, np.float32)
        scene = scene_of(landscape())._replace(descriptors=descriptors)
        voxels = everything(scene)
        features, _ = features_of_voxels(scene, voxels)
        middle = {
            descriptor: 0.05,
            over: np.median(features[:, over]),
            STRENGTH: np.median(features[:, 0]),
        }
        others = [feature for feature in middle if feature != first]
        tree = tree_of(
            [
                (first, middle[first], 1, 2),
                (others[0], middle[others[0]], 3, 4),
                (others[1], middle[others[1]], 5, 6),
                None,
                None,
                None,
                None,
            ]
        )
        leaf, _ = classify(scene, voxels, tree)
        walked = [naive_octahedral.walk(tree, row) for row in features]
        # A split at a strength to rounding may fall either way.
        assert np.mean(leaf != walked) < 1e-3
        assert len(np.unique(leaf)) >= 2


@pytest.mark.parametrize("tile", [
    None, (slice(0, 4), slice(3, 9), slice(0, 10)), (slice(5, 8), slice(0, 9), slice(8, 10))])
@pytest.mark.parametrize("ends", [
    [(True, np.True_)] * 3, [(True, False), (np.False_, False), (False, True)], None],
    ids=["all", "some", "of a thin one"])
def test_the_mask_is_mirrored_where_the_array_ends_and_only_there(tile, ends):
    shape = (8, 9, 10)
    if ends is None:  # thinner than filters reach: it is mirrored more than once
        shape, tile, ends = (2, 5, 1), None, [(True, True)] * 3
    mask = np.random.default_rng(0).random(shape) < 0.7
    expected = mask
    for axis, pair in enumerate(ends):
        for side, mirrored in zip((0, 1), pair, strict=True):
            around = [(0, 0)] * 3
            around[axis] = (REACH, 0) if side == 0 else (0, REACH)
            expected = np.pad(expected, around, mode="symmetric" if mirrored else "constant")
    estimate = np.zeros(mask.shape, np.float32)
    place = [np.zeros(side, np.float32) for side in mask.shape]
    scene = make_scene(estimate, estimate, mask, place, (2, 2, 2), tile=tile, ends=ends)
    if tile:
        expected = expected[tuple(slice(side.start, side.stop + 2 * REACH) for side in tile)]
    np.testing.assert_array_equal(scene.mask, expected)
