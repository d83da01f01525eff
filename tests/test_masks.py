"""nifti/masks.py: which mask goes with a volume, and what is refused."""
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line, refused, write_nifti
from synthetic import brain

from nifti.masks import find_mask, mask_for, masks_among, masks_in_words, read_brain
from nifti.study import find_volumes
from nifti.volumes import read_volume

SHAPE = (14, 13, 12)
CUT = brain(1, SHAPE)
INSIDE = (CUT > 0).astype(np.uint8)
HEAD = CUT + (1 - INSIDE) * np.random.default_rng(0).uniform(1, 90, SHAPE).astype(np.float32)
RAW, DERIVED = "ds/sub-1/ses-2/anat", "ds/derivatives/{}/sub-1/ses-2/anat"


def tree(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "ds").mkdir(exist_ok=True)
    (folder / "ds" / "dataset_description.json").write_text("{}")


@pytest.mark.parametrize("volume, mask", [
    ("sub-1_T1w.nii.gz", "sub-1_desc-brain_mask.nii.gz"),
    ("sub-1_T1w.nii.gz", "sub-1_T1w_desc-brain_mask.nii"),
    ("sub-1_T1w.nii.gz", "sub-1_T1w_mask.nii.gz"),
    ("sub-1_T1w.nii", "sub-1_T1w_brainmask.nii.gz"),
    ("sub-1_T1w.nii.gz", "sub-1_brainmask.nii.gz"),
    ("sub-1_T1w.nii.gz", "sub-1_T1w_brain_mask.nii.gz"),
    ("sub-1_T1w.nii.gz", "sub-1_space-T1w_desc-brain_mask.nii.gz"),
    ("sub-1_run-2_desc-preproc_T1w.nii.gz", "sub-1_run-2_desc-brain_mask.nii.gz"),
    ("sub-1_space-MNI_desc-preproc_T1w.nii.gz", "sub-1_space-MNI_desc-brain_mask.nii.gz"),
    ("head [2]*.nii", "head [2]*_mask.nii"),
    (f"{RAW}/sub-1_ses-2_T1w.nii", f"{DERIVED.format('prep')}/sub-1_ses-2_desc-brain_mask.nii.gz"),
])
def test_auto_finds_masks_by_usual_names(tmp_path, volume, mask):
    others = [mask.replace("1", "3").replace("[2]", "[3]"), "sub-1_run-1_desc-brain_mask.nii.gz",
              mask.replace(".nii", ".json").replace(".gz", ""), "head 2x_mask.nii"]
    tree(tmp_path, volume, *others)
    assert str(tmp_path / volume) in one_line(find_mask, tmp_path / volume, "auto")
    tree(tmp_path, mask)
    assert find_mask(tmp_path / volume, "auto") == tmp_path / mask


@pytest.mark.parametrize("deeper, found", [("", True), ("more", False)])
def test_a_dataset_is_searched_for_no_further_up_than_bids_has_folders(tmp_path, deeper, found):
    volume = tmp_path / "ds" / deeper / "sub-1/ses-2/anat/sub-1_ses-2_T1w.nii"
    mask = (tmp_path / "ds/derivatives/prep" / deeper
            / "sub-1/ses-2/anat/sub-1_ses-2_desc-brain_mask.nii")
    tree(tmp_path, volume, mask)
    if found:
        assert find_mask(volume, "auto") == mask
    else:
        assert "finds no mask for it" in one_line(find_mask, volume, "auto")


def test_masks_of_the_volumes_own_space_and_folder_come_first(tmp_path):
    volume = f"{RAW}/sub-1_ses-2_T1w.nii.gz"
    ever_nearer = [f"{DERIVED.format('prep')}/sub-1_ses-2_space-MNI_res-2_desc-brain_mask.nii.gz",
                   f"{DERIVED.format('prep')}/sub-1_ses-2_desc-brain_mask.nii.gz",
                   f"{RAW}/sub-1_ses-2_space-orig_desc-brain_mask.nii.gz",
                   f"{RAW}/sub-1_ses-2_T1w_mask.nii.gz"]
    for mask in ever_nearer:
        tree(tmp_path, volume, mask)
        assert find_mask(tmp_path / volume, "auto") == tmp_path / mask


def test_of_two_pipelines_a_pattern_chooses(tmp_path):
    volume = tmp_path / RAW / "sub-1_ses-2_T1w.nii.gz"
    masks = [f"{DERIVED.format(name)}/sub-1_ses-2_desc-brain_mask.nii.gz" for name in ("a", "b")]
    tree(tmp_path, f"{RAW}/{volume.name}", *masks)
    text = one_line(find_mask, volume, "auto")
    for word in (volume, "--mask auto", "finds 2 masks", tmp_path / masks[0], tmp_path / masks[1],
                 "a pattern that fits only one"):
        assert str(word) in text
    pattern = "../../../derivatives/b/sub-*/ses-*/anat/{entities}_desc-brain_mask.nii.gz"
    assert find_mask(volume, pattern).resolve() == tmp_path / masks[1]


@pytest.mark.parametrize("pattern, mask", [
    ("{name}_m.nii", "a_m.nii"), ("masks/{name}.nii.gz", "masks/a.nii.gz"),
    ("../in/m*/{name}*", "masks/a.nii.gz"), ("{name}?m.nii", "a_m.nii"), ("{name}*", "a_m.nii"),
    ("brain.nii", "brain.nii"),
])
def test_patterns_fit_one_file_that_is_not_the_volume(tmp_path, pattern, mask):
    tree(tmp_path, "in/a.nii", "in/b.nii", "in/b_m.nii", "in/a.json", f"in/{mask}")
    assert find_mask(tmp_path / "in" / "a.nii", pattern).resolve() == tmp_path / "in" / mask


def test_none_and_several_are_one_line_with_a_remedy(tmp_path, monkeypatch):
    tree(tmp_path, "a.nii", "a_1.nii", "a_2.nii", "a_3.nii")
    text = one_line(find_mask, tmp_path / "a.nii", "{name}_mask.nii")
    assert "{name}_mask.nii finds no mask" in text and "--exclude" in text
    assert str(tmp_path / "a_mask.nii") in text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_here.nii").write_text("")
    text = one_line(find_mask, tmp_path / "sub" / "a.nii", "of_here.nii")
    assert f"give {tmp_path / 'of_here.nii'}" in text
    (tmp_path / "of_here.nii").unlink()
    text = one_line(find_mask, tmp_path / "a.nii", "{name}_?.nii")
    assert "finds 3 masks" in text and "a_1.nii" in text and "among them" in text
    monkeypatch.chdir(tmp_path)
    assert find_mask("a.nii", "{name}_1.nii") == Path("a_1.nii")


@pytest.mark.parametrize("command", ["train", "test"])
@pytest.mark.parametrize("pattern, word", [("{nam}_mask.nii", "{name}"), ("{name}_mask", ".nii"),
                                           ("automatic", "auto")])
def test_patterns_that_can_fit_nothing_are_refused_at_once(capsys, command, pattern, word):
    text = refused(capsys, command, "--mask", pattern)
    assert "argument --mask" in text and pattern in text and word in text


# ---- reading

def pair(folder, mask=INSIDE, volume=HEAD, affine=None, **header):
    write_nifti(folder / "v_mask.nii.gz", mask, affine, **header)
    return write_nifti(folder / "v.nii", volume)


@pytest.mark.parametrize("mask", [INSIDE, INSIDE[..., None], 255 * INSIDE, 0.5 * INSIDE + 0.3,
                                  0.5 * INSIDE + 0.5, np.where(INSIDE, 2.0, np.nan)],
                         ids=["bytes", "trailing axis", "255", "soft", "half", "nan"])
def test_what_lies_outside_the_mask_becomes_zero(tmp_path, mask):
    path = pair(tmp_path, mask)
    volume, found = read_brain(path, "auto")
    assert found.path == tmp_path / "v_mask.nii.gz"
    np.testing.assert_array_equal(volume.data, CUT)
    volume, found = read_brain(path, "")
    assert found is None
    np.testing.assert_array_equal(volume.data, HEAD)


def test_a_head_below_zero_is_shifted_as_its_brain_would_be(tmp_path, capsys):
    scores = (HEAD - 300) / 100
    scores[0, 0, 0] = np.nan  # outside
    path = pair(tmp_path, volume=scores)
    alone = write_nifti(tmp_path / "brain.nii", np.where(INSIDE, scores, 0).astype(np.float32))
    volume, stripped = read_brain(path, "auto")[0], read_volume(alone)
    np.testing.assert_array_equal(volume.data, stripped.data)
    assert volume.shift == stripped.shift and volume.shift.background == 0
    assert "not-a-number" not in capsys.readouterr().err


def moved(by):
    affine = np.eye(4)
    affine[0, 3] = by
    return affine


@pytest.mark.parametrize("spoil, words", [
    (lambda folder: pair(folder, INSIDE[1:]), ["the shape (13, 13, 12)", "(14, 13, 12)"]),
    (lambda folder: pair(folder, np.pad(INSIDE, 1)), ["the shape (16, 15, 14)", "(14, 13, 12)"]),
    (lambda folder: pair(folder, affine=moved(1)), ["up to 1 voxels away"]),
    (lambda folder: pair(folder, affine=np.diag([-1, 1, 1, 1])), ["up to 26 voxels away"]),
    (lambda folder: pair(folder, np.zeros(SHAPE, "u1")), ["no voxel above 0.5"]),
    (lambda folder: pair(folder, np.stack([INSIDE, INSIDE], -1)), ["4 dimensions"]),
    (lambda folder: pair(folder, volume=CUT * 0 + np.where(INSIDE, 0, HEAD)),
     ["inside its mask", "no voxel above zero"]),
], ids=["shape", "larger", "place", "flipped", "empty", "series", "dark"])
def test_a_mask_of_no_use_is_one_line(tmp_path, spoil, words):
    text = one_line(read_brain, spoil(tmp_path), "auto")
    for word in (tmp_path / "v.nii", *words):
        assert str(word) in text


def test_a_mask_that_cannot_be_read_is_named_with_its_volume(tmp_path):
    path = pair(tmp_path)
    (tmp_path / "v_mask.nii.gz").write_bytes(b"no mask")
    text = one_line(mask_for, path, "auto")
    assert str(path) in text and "v_mask.nii.gz: not a readable NIfTI volume" in text


def test_headers_may_differ_by_rounding(tmp_path):
    assert mask_for(pair(tmp_path, affine=moved(0.05)), "auto").inside.any()


# ---- a folder

def test_masks_are_no_volumes_and_their_number_is_said(tmp_path, capsys):
    for name in ("a", "b", "c"):
        write_nifti(tmp_path / f"{name}.nii", HEAD)
    for name in ("a", "b"):  # of more values than a label map
        write_nifti(tmp_path / "soft" / f"{name}.nii", INSIDE * HEAD / 1000)
    assert len(find_volumes(tmp_path)[0]) == 5
    pattern = "soft/{name}.nii"
    volumes, masks = find_volumes(tmp_path, mask=pattern)
    assert [path.name for path in volumes] == ["a.nii", "b.nii", "c.nii"]
    assert find_volumes(tmp_path, 2, mask=pattern) == (volumes[:2], masks)
    assert find_volumes(tmp_path, 1, mask=pattern)[1] == masks[:1]
    assert find_volumes(tmp_path / "b.nii", mask=pattern) == (volumes[1:2], masks[1:])
    assert "2 masks such as soft/a.nii of --mask left out" in capsys.readouterr().err
    assert masks == list(masks_among(volumes, pattern).values())
    assert masks_in_words(masks, volumes, pattern) == f"Masks ({pattern}): found for 2 of 3"


def test_the_sidecar_of_a_volume_is_not_its_mask(tmp_path):
    path = pair(tmp_path)
    (tmp_path / "v_mask.json").write_text(json.dumps({"Type": "Brain"}))
    assert find_mask(path, "{name}_mask*").name == "v_mask.nii.gz"
