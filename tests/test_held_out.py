"""What --ridge auto chooses by is held out from every stage before, and learned from in the end."""
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from synthetic import brain, save

from filter_constant import PRESETS, Request
from learning import steps
from learning.steps import learn_stages
from octahedral import ridge
from octahedral.scene import REACH
from octahedral.stages import held_out, sample_features

QUICK = {"leaves": 6, "filter_len": 5, "seed": 4, "quiet": True}
KINDS = {"best": PRESETS["best"] | {"stages": 3},
         "scan": PRESETS["scan"] | {"draws": 2, "stages": 2}}
SHAPE = (28, 27, 30)


def cubes_of(volume, seed, name):
    """Where a volume's voxels are held out: ndarray of bool, shape of the box."""
    shape = tuple(side + 2 * REACH for side in volume.lr.shape)
    found = held_out(np.arange(np.prod(shape)), shape, seed, name).reshape(shape)
    return found[3 * (slice(REACH, -REACH),)]


@pytest.fixture(params=KINDS)
def asked(request, tmp_path):
    """Of both presets with stages, for a folder of two volumes, cubes of which are held out."""
    for n in range(2):
        save(tmp_path / "train" / f"v{n}.nii", brain(n, SHAPE))
    return Request.of(**KINDS[request.param] | QUICK, train_dir=str(tmp_path / "train"))


def learn(asked, arrays, monkeypatch, spoil):
    """Learn; with `spoil`, the originals are other ones where they are held out."""
    shares = []

    def pairs_of(path, request):
        for name, pair in plain(path, request):
            cubes = cubes_of(pair, request.method.seed, name) & pair.mask
            shares.append(cubes.sum() / pair.mask.sum())
            hr = np.where(cubes, 0.9 - 0.5 * pair.hr, pair.hr) if spoil else pair.hr
            yield name, dataclasses.replace(pair, hr=hr.astype(np.float32))

    plain = steps.pairs_of
    with monkeypatch.context() as patch:
        patch.setattr(steps, "pairs_of", pairs_of)
        volumes = sorted(arrays.parent.glob("train/*.nii"))
        learned = learn_stages(volumes, asked.but(arrays_dir=str(arrays)))
    assert 0.02 < np.mean(shares) < 0.4
    return learned


def test_no_stage_learns_what_the_next_ones_choose_by(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(ridge, "RIDGES", (300.0,))  # which of them is all that the cubes may decide
    one, other = (learn(asked, tmp_path / f"spoil {spoil}", monkeypatch, spoil)
                  for spoil in (False, True))
    assert one.checkpoint.sums.after and one.checkpoint.sums.after == other.checkpoint.sums.after
    first, second = (found.checkpoint.ledger.classes for found in (one, other))
    for mine, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    sums = [found.checkpoint.load(range(found.checkpoint.ledger.buckets)) for found in (one, other)]
    leaves = one.checkpoint.ledger.classes.leaves
    learned, held = ([gram.packed[half] for gram in sums]
                     for half in (slice(leaves), slice(leaves, None)))
    np.testing.assert_array_equal(*learned)
    assert (held[0] != held[1]).any()
    for mine, theirs in zip(one.stages, other.stages, strict=True):  # in the end all is learned
        assert np.abs(mine.weights - theirs.weights).max() > 1e-3


def test_with_a_given_ridge_every_stage_learns_on_the_stages_that_are_written(
        asked, tmp_path, monkeypatch):
    learned = learn(asked.but(ridge=300.0), tmp_path / "arrays", monkeypatch, False)
    assert learned.checkpoint.sums.after == steps.digest_of(learned.stages[:-1])


def test_a_tree_grows_from_held_out_voxels_only_where_there_are_no_others(asked, monkeypatch):
    method, seen = asked.method, 0
    for path in sorted(Path(asked.train_dir).iterdir()):
        for name, pair in steps.pairs_of(path, asked):
            inside = pair.mask if pair.training_mask is None else pair.training_mask
            others = inside & ~cubes_of(pair, method.seed, name)
            assert len(sample_features(pair, [], method, 10**9, name)[0]) == others.sum()
            seen += (inside & ~others).sum()
    assert seen
    monkeypatch.setattr("octahedral.stages.HELD_OUT_SHARE", 1)
    assert len(sample_features(pair, [], method, 10**9, name)[0]) == inside.sum()
