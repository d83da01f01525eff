"""train.py and test.py: what options change, and what they leave alone."""

import json
from types import SimpleNamespace

import naive
import nibabel as nib
import numpy as np
import pytest
from conftest import learn, restore, same

from get_lar import make_pair


@pytest.mark.parametrize(
    "options, filters, boundaries",
    [
        (["--seed", 1], True, True),
        (["--sharpen"], True, False),  # the HR side only: features are of LR
        (["--sharpen", "False"], False, False),
        (["--feature_type", "lambda1_fa"], True, True),
        (["--feature_type", "trace_coh2"], True, True),
        (["--feature_type", "trace_fa"], True, True),
        (["--lr_type", "kspace"], True, True),
        (["--factor", 2, 2, 2], False, False),
        (["--grad_len", 3], True, True),
        (["--sample_rate", 2], True, False),
        (["--quantization_rate", 2], True, True),
        (["--solver", "cg"], True, False),
        (["--solver", "ridge", "--ridge", 10], False, False),
        (["--ridge", 0.1], True, False),
        (["--train_file_max", 1], True, True),
        (["--train_file_max", 2], False, False),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_option_changes_what_it_should_and_nothing_else(
    pieces, small_filters, tmp_path, options, filters, boundaries
):
    h, found, _ = learn(pieces, tmp_path, *options)
    assert (not same([h], [small_filters.h])) == filters
    assert (not same(found, small_filters.boundaries)) == boundaries


@pytest.mark.parametrize(
    "options, buckets, taps",
    [
        (["--q_angle_p", 4], 72, 125),
        (["--q_angle_t", 3], 54, 125),
        (["--filter_len", 7], 36, 343),
        (["--filter_len", 3], 36, 27),
    ],
    ids=str,
)
def test_option_sets_the_shape_of_the_filters_and_restoring_follows(
    pieces, tmp_path, options, buckets, taps
):
    h, _, method = learn(pieces, tmp_path / "arrays", *options)
    assert h.shape == (buckets, taps) == (method.buckets, method.taps)
    _, row = restore(pieces, tmp_path / "arrays", tmp_path / "result")
    assert float(row["sr_psnr"]) > float(row["lr_psnr"]) + 0.25


@pytest.mark.parametrize("factor", [["3"], ["4"], ["1", "1", "3"]], ids=" ".join)
def test_other_factors_learn_and_restore(pieces, tmp_path, factor):
    tag = factor[0] if len(factor) == 1 else "x".join(factor)
    learn(pieces, tmp_path / "arrays", "--factor", *factor)
    assert (tmp_path / "arrays" / f"h_{tag}.npy").exists()
    _, row = restore(pieces, tmp_path / "arrays", tmp_path / "result", "--factor", *factor)
    assert float(row["sr_psnr"]) > float(row["lr_psnr"]) + 0.25


def test_kspace_filters_restore_kspace_volumes_without_being_told(pieces, tmp_path):
    learn(pieces, tmp_path / "arrays", "--lr_type", "kspace")
    _, row = restore(pieces, tmp_path / "arrays", tmp_path / "result")
    assert float(row["sr_psnr"]) > float(row["lr_psnr"]) + 0.5


def test_train_file_max_takes_the_first_by_name(pieces, tmp_path):
    learn(pieces, tmp_path / "two", "--train_file_max", 1)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "a.nii.gz").write_bytes((pieces.train / "a.nii.gz").read_bytes())
    learn(SimpleNamespace(train=alone), tmp_path / "one")
    one, two = ((tmp_path / name / "h_2.npy").read_bytes() for name in ("one", "two"))
    assert two == one
    assert json.loads((tmp_path / "two" / "settings_2.json").read_text())["volumes"] == ["a.nii.gz"]


def test_census_blend_takes_lr_or_the_restored_voxel(pieces, small_filters, tmp_path):
    plain, _ = restore(pieces, small_filters.arrays, tmp_path / "plain")
    data = nib.load(pieces.test / "c.nii.gz").get_fdata(dtype=np.float32)
    pair = make_pair(data, small_filters.method)
    lr = pair.whole(pair.lr)
    shares = []
    for threshold in (0, 10, 26):
        blended, _ = restore(
            pieces, small_filters.arrays, tmp_path / f"t{threshold}", "--blend_threshold", threshold
        )
        inner = tuple(slice(sides.start + 1, sides.stop - 1) for sides in pair.box)
        if threshold == 10:
            ten = blended
            volumes = (pair.lr, plain[pair.box] / np.float32(pair.scale))
            around = (np.pad(volume, 1, mode="edge") for volume in volumes)
            literal = naive.census_blend(*around, threshold)[1:-1, 1:-1, 1:-1]
            # Only a neighbour as bright as the centre to rounding may be counted otherwise.
            assert np.mean(np.abs(blended[pair.box] / pair.scale - literal) > 1e-5) < 1e-3
        assert ((blended == lr) | (blended == plain))[inner].all()
        shares.append(np.mean((blended == plain)[inner]))
    assert shares[0] < shares[1] < shares[2] == 1
    bare, _ = restore(pieces, small_filters.arrays, tmp_path / "bare", "--blend_threshold")
    np.testing.assert_array_equal(bare, ten)
