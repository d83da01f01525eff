"""octahedral/: samples, ridges pulled to the parent, filters in the voxel's own frame."""

import json
from dataclasses import replace

import naive_octahedral
import numpy as np
import pytest
from conftest import golden_figures
from synthetic import accumulate_stage, degrade, upscale

from disk.files import file_digest
from disk.filters import load_filters, save_filters
from filter_constant import PRESETS, Method, Request
from get_lar import best_spline, make_pair
from machine.errors import UserError
from matrix_compute import Gram, Stage
from octahedral.features import classify, features_of_voxels
from octahedral.ridge import solve_stage
from octahedral.scene import REACH, turned_offsets
from octahedral.stages import (
    apply_stage,
    held_out,
    restore_stages,
    sample_features,
    scene_of,
    stage_taps,
    stage_tree,
)
from octahedral.tree import tree_of
from restoring.steps import restore

BEST = Method(**PRESETS["best"] | {"leaves": 8, "stages": 2})
QUICK = replace(BEST, filter_len=5)


def piece(seed=0):
    """A piece of a brain with some black around it."""
    volume = golden_figures(2).volume[4:34, 6:36, 6:38].copy()
    return np.ascontiguousarray(np.roll(volume, seed, 0))


def stage_gram(tree, number, method):
    return Gram(2 * tree.leaves, sum(map(len, stage_taps(number, method))))


def learn(pairs, method):
    stages = []
    for number in range(method.stages):
        tree = stage_tree(
            [sample_features(pair, stages, method, 20_000, str(n)) for n, pair in enumerate(pairs)],
            method,
        )
        gram = stage_gram(tree, number, method)
        for n, pair in enumerate(pairs):
            accumulate_stage(stages, gram, pair, tree, method, str(n))
        stages.append(Stage(tree, solve_stage(gram, tree, method).weights))
    return stages


@pytest.fixture(scope="module")
def pair():
    return make_pair(piece(), QUICK)


@pytest.fixture(scope="module")
def stages(pair):
    return learn([pair], QUICK)


@pytest.fixture(scope="module")
def uncut():
    """Stages learned where no face cuts the brain: mirrored at one, it looks alike to both sides,
    and trees put thresholds there.
    """
    return learn([make_pair(np.pad(piece(), REACH), QUICK)], QUICK)


def rows_of(scene, hr, voxels, orientation, number, method):
    """Literal samples: taps of the estimate, taps of the start, the target.

    All are less the estimate's voxel.
    """
    x, start, target = (
        scene.estimate.reshape(-1),
        scene.start.reshape(-1),
        np.pad(hr, REACH).reshape(-1),
    )
    now, then = (turned_offsets(taps, scene.mask.shape) for taps in stage_taps(number, method))
    return np.array(
        [
            [*(x[at + now[turn]] - x[at]), *(start[at + then[turn]] - x[at]), target[at] - x[at]]
            for at, turn in zip(voxels, orientation)
        ],
        np.float64,
    )


# ---- learning


@pytest.mark.parametrize("rate", [1, 3])
@pytest.mark.parametrize("number", [0, 1])
def test_sums_equal_the_products_of_all_samples(pair, stages, number, rate):
    method = replace(QUICK, sample_rate=rate)
    scene = scene_of(pair, restore_stages(pair, stages[:number], method), method)
    voxels = np.flatnonzero(np.pad(pair.mask, REACH))
    tree = naive_octahedral.tree_of_medians(features_of_voxels(scene, voxels)[0])
    gram = stage_gram(tree, number, method)
    accumulate_stage(stages[:number], gram, pair, tree, method, "a")
    leaf, orientation = classify(scene, voxels, tree)
    bucket = leaf[0] + tree.leaves * held_out(voxels, scene.mask.shape, method.seed, "a")
    if rate == 1:
        np.testing.assert_array_equal(gram.count, np.bincount(bucket, minlength=2 * tree.leaves))
        for b in (0, int(bucket.max()), int(np.bincount(bucket).argmax())):
            rows = rows_of(
                scene, pair.hr, voxels[bucket == b], orientation[bucket == b], number, method
            )
            np.testing.assert_allclose(gram.full(b), np.tril(rows.T @ rows), rtol=1e-3, atol=1e-4)
    else:
        assert 0.25 < gram.count.sum() / voxels.size < 0.42


def test_sums_are_the_same_for_any_number_of_threads_and_in_two_parts(pair, stages, monkeypatch):
    tree = stages[0].classes
    grams = [stage_gram(tree, 0, QUICK) for _ in range(3)]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    accumulate_stage([], grams[0], pair, tree, QUICK, "a")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    accumulate_stage([], grams[1], pair, tree, QUICK, "a")
    wanted = np.arange(2 * tree.leaves) % 3 == 0
    for part in (wanted, ~wanted):  # as after a kill between two files of sums
        accumulate_stage([], grams[2], pair, tree, QUICK, "a", wanted=part)
    for gram in grams[1:]:
        np.testing.assert_array_equal(gram.packed, grams[0].packed)
        np.testing.assert_array_equal(gram.count, grams[0].count)


def random_sums(tree, taps=6, seed=0, empty=()):
    random = np.random.default_rng(seed)
    gram = Gram(2 * tree.leaves, taps)
    rows = []
    for b in range(2 * tree.leaves):
        n = 0 if b in empty else 60
        a = random.standard_normal((n, taps))
        rows.append(
            np.column_stack([a, a @ random.standard_normal(taps) + random.normal(0, 0.3, n)])
        )
        gram.packed[b], gram.count[b] = (rows[-1].T @ rows[-1])[np.tril_indices(taps + 1)], n
    return gram, rows


TREE = tree_of([(0, 0.0, 1, 2), None, (1, 0.5, 3, 4), None, None])  # leaves 0, 1, 2: nodes 1, 3, 4


def literal_filters(rows, ridge):
    """The filters of TREE's leaves from the samples of each.

    By the definition of the pull to the parent.
    """

    def pulled(samples, towards):
        a, b = samples[:, :-1], samples[:, -1]
        pull = ridge * (a**2).sum() / (len(a) * a.shape[1]) if len(a) else 1.0
        return np.linalg.solve(a.T @ a + pull * np.eye(a.shape[1]), a.T @ b + pull * towards)

    root = pulled(np.concatenate(rows), np.zeros(rows[0].shape[1] - 1))
    middle = pulled(np.concatenate(rows[1:]), root)
    return np.array([pulled(rows[0], root), pulled(rows[1], middle), pulled(rows[2], middle)])


def test_each_filter_is_pulled_to_that_of_the_node_above():
    gram, rows = random_sums(TREE)
    together = [np.concatenate([rows[leaf], rows[leaf + 3]]) for leaf in range(3)]
    solved = solve_stage(gram, TREE, replace(QUICK, ridge=40.0))
    assert solved.ridge == 40 and not solved.missed
    expected = literal_filters(together, 40.0)
    np.testing.assert_allclose(solved.weights, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(solved.without_held_out, solved.weights)


def test_a_leaf_without_samples_has_the_filter_of_its_parent():
    gram, rows = random_sums(TREE, empty=(1, 4))
    weights, *_ = solve_stage(gram, TREE, replace(QUICK, ridge=40.0))
    together = [np.concatenate([rows[leaf], rows[leaf + 3]]) for leaf in range(3)]
    np.testing.assert_allclose(weights, literal_filters(together, 40.0), rtol=1e-4, atol=1e-5)
    assert np.abs(weights[1] - weights[2]).max() > 0.01


def test_auto_takes_the_ridge_that_misses_the_held_out_voxels_by_least():
    gram, rows = random_sums(TREE, taps=20)
    solved = solve_stage(gram, TREE, replace(QUICK, ridge=None))
    ridge, missed = solved.ridge, solved.missed
    assert ridge == min(missed, key=missed.get) and len(missed) >= 5
    together = [np.concatenate([rows[leaf], rows[leaf + 3]]) for leaf in range(3)]
    for found, learned in ((solved.weights, together), (solved.without_held_out, rows[:3])):
        np.testing.assert_allclose(found, literal_filters(learned, ridge), rtol=1e-4, atol=1e-5)
    for weight, value in missed.items():
        filters = literal_filters(rows[:3], weight)
        literal = np.concatenate(
            [part[:, -1] - part[:, :-1] @ g for part, g in zip(rows[3:], filters)]
        )
        assert value == pytest.approx(np.mean(literal**2), rel=1e-6)


@pytest.mark.parametrize("empty", [(3, 4, 5), (0, 1, 2)], ids=["none held out", "all held out"])
def test_where_cubes_hold_out_nothing_or_all_auto_takes_the_usual_ridge(empty):
    gram, rows = random_sums(TREE, empty=empty)
    solved = solve_stage(gram, TREE, replace(QUICK, ridge=None))
    assert solved.ridge == 300 and not solved.missed
    learned = [rows[leaf] if len(rows[leaf]) else rows[leaf + 3] for leaf in range(3)]
    for found in (solved.weights, solved.without_held_out):
        np.testing.assert_allclose(found, literal_filters(learned, 300.0), rtol=1e-4, atol=1e-5)


def test_held_out_voxels_are_cubes_and_about_one_in_sixteen():
    shape = (96, 96, 96)
    of_a, of_b = (held_out(np.arange(96**3), shape, 0, name) for name in "ab")
    cubes = of_a.reshape(6, 16, 6, 16, 6, 16).transpose(0, 2, 4, 1, 3, 5)
    held = cubes.reshape(216, -1)
    assert (held.all(1) == held.any(1)).all() and 3 <= held.any(1).sum() <= 30
    assert (of_b != of_a).any()


# ---- restoring


@pytest.mark.parametrize("number", [0, 1])
def test_a_stage_gives_each_voxel_the_filter_of_its_leaf_turned_its_way(pair, stages, number):
    scene = scene_of(pair, restore_stages(pair, stages[:number], QUICK), QUICK)
    result = np.pad(apply_stage(scene, stages[number], number, QUICK), REACH).reshape(-1)
    voxels = np.flatnonzero(np.pad(pair.mask, REACH))[::97]
    leaf, orientation = classify(scene, voxels, stages[number].classes)
    rows = rows_of(scene, pair.hr, voxels, orientation, number, QUICK)[:, :-1]
    expected = scene.estimate.reshape(-1)[voxels] + (rows * stages[number].weights[leaf[0]]).sum(1)
    np.testing.assert_allclose(result[voxels], expected, atol=1e-5)


def test_stages_learned_on_a_brain_restore_another_better_than_the_best_spline(pair, stages):
    other = make_pair(
        np.ascontiguousarray(golden_figures(2).volume[10:40, 12:42, 10:40]), QUICK
    )
    spline, mask = best_spline(other), other.mask
    errors = [
        float(np.mean((volume - other.hr)[mask] ** 2))
        for volume in (spline, other.lr, restore(other, stages, QUICK))
    ]
    assert errors[2] < errors[1] < errors[0], errors


@pytest.mark.parametrize(
    "turn, back",
    [
        (lambda v: v[::-1], lambda v: v[::-1]),
        (lambda v: v[:, ::-1, ::-1], lambda v: v[:, ::-1, ::-1]),
        (lambda v: v.transpose(1, 0, 2), lambda v: v.transpose(1, 0, 2)),
        (lambda v: v.transpose(2, 0, 1)[::-1], lambda v: v[::-1].transpose(1, 2, 0)),
    ],
    ids=["flip", "flips", "swap", "rotate"],
)
def test_a_turned_volume_is_restored_to_the_turned_restoration(uncut, turn, back):
    """To rounding: 1e-4 of the range.

    Where a feature lies on a threshold to rounding, a voxel may take another leaf.
    """
    volume = piece()[:28, :28, :28].copy()
    results = []
    for source in (volume, np.ascontiguousarray(turn(volume))):
        pair = make_pair(source, QUICK)
        results.append(np.zeros(source.shape, np.float32))
        results[-1][pair.box] = restore_stages(pair, uncut, QUICK)
    apart = np.abs(back(results[1]) - results[0])
    assert np.mean(apart > 1e-4) < 0.02 and apart.mean() < 1e-4, (
        np.mean(apart > 1e-4),
        apart.mean(),
    )


def test_factors_may_differ_by_axis():
    method = replace(QUICK, factor=(1, 1, 4), lr_type="average", grid="edges")
    pair = make_pair(piece(), method)
    learned = learn([pair], method)
    error = [
        float(np.mean((volume - pair.hr)[pair.mask] ** 2))
        for volume in (best_spline(pair), restore(pair, learned, method))
    ]
    assert error[1] < error[0]


@pytest.mark.parametrize(
    "kind",
    [{}, {"lr_type": "average", "grid": "edges"}, {"lr_type": "kspace", "kspace_keep": "auto"}],
    ids=str,
)
def test_upscaling_in_stages_keeps_scale_and_background(stages, kind):
    method = replace(QUICK, **kind)
    low = degrade(piece(), method).astype(np.float32)
    low[:3] = 0
    fine = upscale(low, stages, method)
    assert fine.shape == tuple(2 * side for side in low.shape)
    assert np.isfinite(fine).all()
    assert fine.min() >= 0
    assert not fine[:4].any()
    assert abs(np.median(fine[fine > 0]) / np.median(low[low > 0]) - 1) < 0.1
    np.testing.assert_allclose(
        upscale(low * 10, stages, method), fine * 10, rtol=1e-3, atol=fine.max() * 1e-2
    )


# ---- files


def test_stages_are_read_as_they_were_written(stages, tmp_path):
    save_filters(stages, Request(QUICK, arrays_dir=str(tmp_path)), ["a.nii.gz"])
    found, learned, *_ = load_filters(Request(arrays_dir=str(tmp_path)))
    assert (learned.feature_space, learned.stages, learned.ridge) == ("octahedral", 2, None)
    for one, other in zip(stages, found, strict=True):
        for written, read in zip((one.weights, *one.classes), (other.weights, *other.classes)):
            np.testing.assert_array_equal(read, written)


@pytest.mark.parametrize("name", ["stage1_2.npy", "tree1_2.npy", "stage2_2.npy", "tree2_2.npy"])
@pytest.mark.parametrize("spoil", ["gone", "short", "nan", "child"])
def test_spoiled_stages_are_refused_by_name(stages, tmp_path, name, spoil):
    request = Request(QUICK, arrays_dir=str(tmp_path))
    save_filters(stages, request, ["a.nii.gz"])
    path = tmp_path / name
    array = np.load(path)
    if spoil == "gone":
        path.unlink()
    elif spoil == "short":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        array[0, -1] = np.nan if spoil == "nan" else 0
        np.save(path, array)
    if spoil == "child" and name.startswith("tree"):  # even where the digest was made to fit
        about = json.loads((tmp_path / "settings_2.json").read_text())
        about["sha256"][name] = file_digest(path)
        (tmp_path / "settings_2.json").write_text(json.dumps(about))
    with pytest.raises(UserError) as refused:
        load_filters(request)
    assert (name if spoil != "child" or name.startswith("stage") else str(tmp_path)) in str(
        refused.value
    )
