"""nifti/study.py: which volumes of a folder are taken, and what is said of the others."""
import errno
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script, one_line, run_command, run_here, write_nifti
from synthetic import QUICK, brain, command

from nifti.labels import LABEL_VALUES, is_label_map
from nifti.study import equal_files, find_volumes
from nifti.volumes import read_volume
from options.command_line import command_line

SHAPE = (18, 17, 16)


def tree(folder, *names, data=None):
    """Small scans under these names."""
    for number, name in enumerate(names):
        write_nifti(folder / name, brain(number, SHAPE) if data is None else data)
    return folder


def names_of(folder, *arguments, **options):
    return [path.relative_to(folder).as_posix()
            for path in find_volumes(folder, *arguments, **options)[0]]


def labels(count=5, dtype=np.int16):
    return np.random.default_rng(7).integers(0, count, SHAPE).astype(dtype)


# ---- folders that cannot be read

def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys):
    tree(tmp_path, "a.nii", "closed/b.nii")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read all folders
    assert names_of(tmp_path) == ["a.nii"]
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "closed") in line and "cannot be read (Permission denied)" in line
    assert "cannot be read" in one_line(find_volumes, tmp_path / "closed")


# ---- hidden folders, names in capitals

def test_hidden_folders_are_not_searched_and_links_into_them_are_followed(tmp_path, capsys):
    tree(tmp_path, ".git/annex/objects/K1/K1.nii.gz", ".snapshot/old.nii")
    (tmp_path / "sub-7").mkdir()
    (tmp_path / "sub-7" / "T1w.nii.gz").symlink_to("../.git/annex/objects/K1/K1.nii.gz")
    assert names_of(tmp_path) == ["sub-7/T1w.nii.gz"]
    assert capsys.readouterr().err == ""


def test_endings_count_in_any_case_and_results_keep_them(tmp_path):
    tree(tmp_path / "in", "a.nii", "c.nii.gz")
    shutil.move(tmp_path / "in" / "c.nii.gz", tmp_path / "in" / "c.Nii.GZ")
    shutil.copy(tmp_path / "in" / "a.nii", tmp_path / "in" / "b.NII")
    assert names_of(tmp_path / "in") == ["a.nii", "b.NII", "c.Nii.GZ"]
    status, _, errors = command("test.py", "--upscale", "--test_dir", tmp_path / "in",
                                "--result_dir", tmp_path / "out", "--suffix", "_fine")
    assert (status, errors) == (0, [])
    folder, = (tmp_path / "out").iterdir()
    assert {"a_fine.nii", "b_fine.NII", "c_fine.Nii.GZ"} <= {path.name for path in folder.iterdir()}
    a, b = ((folder / name).read_bytes() for name in ("a_fine.nii", "b_fine.NII"))
    assert a == b and read_volume(folder / "c_fine.Nii.GZ").data.shape == (36, 34, 32)
    status, _, errors = command("test.py", "--upscale", "--test_dir", tmp_path / "in" / "b.NII",
                                "--no-report", "--output", tmp_path / "one.NII.GZ")
    assert (status, errors) == (0, []) and nib.load(tmp_path / "one.NII.GZ").shape[0] == 36


# ---- results of earlier runs

def test_the_folder_of_results_is_not_searched(tmp_path, capsys):
    tree(tmp_path, "a.nii", "result/112522/a.nii", "elsewhere/112522/a.nii")
    assert names_of(tmp_path, results=tmp_path / "result") == ["a.nii", "elsewhere/112522/a.nii"]
    line, = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "result") in line and "not searched" in line
    assert names_of(tmp_path / "result", results=tmp_path / "result") == ["112522/a.nii"]


def test_a_second_run_does_not_take_the_results_of_the_first(tmp_path, monkeypatch, capsys):
    tree(tmp_path, "a.nii", "b.nii.gz")
    for where, count in ((tmp_path / "out", 2), (tmp_path / "later", 2), (tmp_path / "out", 2)):
        request = command_line("test", [
            "--upscale", "--test_dir", str(tmp_path), "--result_dir", str(where)])
        assert load_script("test").main(request) == 0
        out, err = capsys.readouterr()
        assert f"Upscaling {count} volumes" in out
    # The results of the other folder are known by the records beside them.
    line, = (line for line in err.splitlines() if "earlier runs" in line)
    assert "2 results such as later/" in line


def test_a_result_is_known_by_its_record_and_its_input_is_none(tmp_path, capsys):
    tree(tmp_path, "scan.nii", "scan.nii.gz", "bids_T1w.nii.gz", "odd.nii")
    record = {"input": str(tmp_path / "scan.nii"), "input_sha256": "0", "filters": {},
              "settings": {}}
    (tmp_path / "scan.json").write_text(json.dumps(record))
    (tmp_path / "bids_T1w.json").write_text(json.dumps({"SliceThickness": 3}))
    (tmp_path / "odd.json").write_text("[1, 2")
    assert names_of(tmp_path) == ["bids_T1w.nii.gz", "odd.nii", "scan.nii"]
    assert "1 result such as scan.nii.gz of earlier runs" in capsys.readouterr().err


# ---- patterns

@pytest.mark.parametrize("include, exclude, expected", [
    (["*_T1w.nii.gz"], [], ["sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz"]),
    (["sub-2_*"], [], ["sub-2/anat/sub-2_FLAIR.nii", "sub-2/anat/sub-2_T1w.nii.gz"]),
    (["sub-1/*"], ["*.nii"], ["sub-1/anat/sub-1_T1w.nii.gz"]),
    (["anat/*_FLAIR*", "lone.nii"], [], ["lone.nii", "sub-2/anat/sub-2_FLAIR.nii"]),
    ([], ["sub-?/*", "nothing*"], ["lone.nii"]),
])
def test_patterns_choose_by_name_or_path(tmp_path, capsys, include, exclude, expected):
    tree(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz",
         "sub-2/anat/sub-2_FLAIR.nii", "lone.nii")
    assert names_of(tmp_path, include=include, exclude=exclude) == expected
    assert capsys.readouterr().err.count("fits no volume") == ("nothing*" in exclude)


def test_patterns_that_fit_nothing_are_said(tmp_path, capsys):
    tree(tmp_path, "sub-1/a.nii", "sub-2/b.nii")
    found = names_of(tmp_path, include=["*.nii", "*.mgz"], exclude=["sub-2", "sub-1/*"])
    assert found == ["sub-2/b.nii"]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ", 1)[1] for line in said] == [
        '--include *.mgz fits no volume; to select a folder write "*.mgz/*"',
        '--exclude sub-2 fits no volume; to select a folder write "sub-2/*"']


def test_a_very_long_name_stops_no_other(tmp_path):
    long = "l" * 248 + ".nii"  # with .json behind it, it is longer than any name may be
    tree(tmp_path, long, "a.nii")
    assert names_of(tmp_path) == ["a.nii", long]


def test_patterns_that_leave_nothing_are_one_line(tmp_path):
    tree(tmp_path, "a.nii")
    assert "--include" in one_line(find_volumes, tmp_path, None, ["*.gz"])
    finished = run_command("train.py", "--train_dir", tmp_path, "--exclude", "a*", "b*")
    assert finished.returncode == 2 and "--exclude" in finished.stderr


# ---- BIDS

def test_of_a_bids_dataset_t1w_volumes_are_taken_and_derivatives_left(tmp_path, capsys):
    dataset = tree(
        tmp_path / "ds", "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_T2w.nii.gz",
        "sub-1/func/sub-1_bold.nii.gz", "derivatives/prep/sub-1/sub-1_desc-preproc_T1w.nii.gz",
        "sourcedata/sub-1_T1w.nii.gz")
    (dataset / "dataset_description.json").write_text("{}")
    assert names_of(dataset) == ["sub-1/anat/sub-1_T1w.nii.gz"]
    line, = capsys.readouterr().err.splitlines()
    assert "BIDS" in line and "2 others are not" in line and "derivatives" in line
    assert names_of(dataset, include=["*_T2w.nii.gz"]) == ["sub-1/anat/sub-1_T2w.nii.gz"]
    assert names_of(dataset, include=["sub-*"]) == ["sub-1/anat/sub-1_T1w.nii.gz"]
    assert "2 others are not (--include selects others by their suffix" in capsys.readouterr().err
    assert names_of(dataset, include=["*/func/*"]) == ["sub-1/func/sub-1_bold.nii.gz"]
    assert names_of(dataset / "derivatives")  # asked for by itself
    tree(tmp_path, "plain/x.nii")  # a dataset beside other folders
    assert names_of(tmp_path) == ["ds/sub-1/anat/sub-1_T1w.nii.gz", "plain/x.nii"]


# ---- masks and label maps

@pytest.mark.parametrize("name", ["s_desc-brain_mask.nii.gz", "brainmask.nii", "s_dseg.nii",
                                  "s_label-GM_probseg.nii.gz", "aseg.NII", "tumour_label.nii"])
def test_masks_and_label_maps_are_left_out_by_name_in_one_line(tmp_path, capsys, name):
    tree(tmp_path, "s_T1w.nii.gz", name)
    assert names_of(tmp_path) == ["s_T1w.nii.gz"]
    line, = capsys.readouterr().err.splitlines()
    assert "1 mask or label map such as" in line and name in line and "1 by names" in line


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_label_maps_are_left_out_by_their_values(tmp_path, capsys, dtype, name):
    tree(tmp_path, "scan.nii")
    tree(tmp_path, name, data=labels(LABEL_VALUES, dtype))
    assert names_of(tmp_path) == ["scan.nii"]
    assert "1 that hold at most 32 whole numbers" in capsys.readouterr().err
    tree(tmp_path, name, data=labels(LABEL_VALUES + 1, dtype))
    assert names_of(tmp_path) == ["scan.nii", name]
    capsys.readouterr()
    assert find_volumes(tmp_path / name) == ([tmp_path / name], [])
    assert capsys.readouterr().err == ""


def test_a_label_map_that_is_given_itself_is_taken_with_a_warning(tmp_path, capsys):
    for name, data in (("x.nii", labels()), ("S_MASK.nii", brain(0, SHAPE))):
        path = write_nifti(tmp_path / name, data)
        assert find_volumes(path) == ([path], [])
        line, = capsys.readouterr().err.splitlines()
        assert str(path) in line and "label map" in line


def test_labels_behind_many_voxels_of_background_and_those_by_the_header_are_found(tmp_path):
    late = np.zeros((80, 80, 80), np.uint8)
    late[:, :, 70:] = 3
    assert is_label_map(write_nifti(tmp_path / "late.nii.gz", late))
    halves = np.repeat(np.uint8([0, 3]), 1 << 18).reshape(64, 64, 128, order="F")
    assert is_label_map(write_nifti(tmp_path / "halves.nii", halves))
    late[:, :, 79] = np.arange(80)
    assert not is_label_map(write_nifti(tmp_path / "scan.nii.gz", late))
    assert is_label_map(write_nifti(tmp_path / "header.nii", late, intent_code=1002))
    fractions = write_nifti(tmp_path / "half.nii", (late % 4 / 2).astype(np.float32))
    assert not is_label_map(fractions)
    assert not is_label_map(write_nifti(tmp_path / "one.nii", np.ones(SHAPE, "u1")))
    (tmp_path / "cut.nii").write_bytes((tmp_path / "late.nii.gz").read_bytes()[:100])
    assert not is_label_map(tmp_path / "cut.nii")  # its fault is said when its turn comes


def test_telling_labels_from_scans_reads_little_of_a_scan(tmp_path, monkeypatch):
    data = np.random.default_rng(3).integers(0, 900, (128, 128, 64)).astype(np.int16)
    path = write_nifti(tmp_path / "scan.nii", data)
    monkeypatch.setattr("nifti.labels.BLOCK", 1 << 12)
    read = []
    monkeypatch.setattr("nifti.labels.opened", lambda _: Counting(path, read))
    assert not is_label_map(path)
    assert sum(read) < 20_000


class Counting:
    """A file that notes how many bytes are asked for."""

    def __init__(self, path, read):
        self.file, self.sizes = open(path, "rb"), read

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def read(self, size):
        self.sizes.append(size)
        return self.file.read(size)


def test_both_commands_take_the_same_volumes(tmp_path):
    folder = tree(tmp_path / "in", "sub-1_T1w.nii.gz")
    tree(folder, "sub-1_desc-brain_mask.nii.gz", "sub-1_tissue.nii.gz", data=labels())
    small = ["--filter_len", "3", "--grad_len", "3", "--q_angle_p", "1", "--q_angle_t", "1"]
    train = command("train.py", "--train_dir", folder, "--arrays_dir", tmp_path / "a", *small)
    test = command("test.py", "--test_dir", folder, "--arrays_dir", tmp_path / "a",
                   "--result_dir", tmp_path / "r", "--no-report")
    for (status, _, errors), lines in ((train, 1), (test, 2)):  # test: it was learned from
        assert status == 0 and "2 masks or label maps" in errors[0] and len(errors) == lines
    assert "from 1 volume in" in train[1]


@pytest.mark.parametrize("name", [".nii", ".nii.gz"])
def test_a_volume_needs_a_name_before_its_ending(tmp_path, name):
    path = write_nifti(tmp_path / "a.nii", brain(0, SHAPE)).rename(tmp_path / name)
    assert "with something before it" in one_line(find_volumes, path)


def test_each_dataset_has_its_own_count(tmp_path, capsys):
    for name, others in (("one", ["T2w", "FLAIR", "PDw"]), ("two", [])):
        tree(tmp_path / name, *(f"sub-1/anat/sub-1_{suffix}.nii" for suffix in ["T1w", *others]))
        (tmp_path / name / "dataset_description.json").write_text("{}")
    find_volumes(tmp_path)
    said = [line for line in capsys.readouterr().err.splitlines() if "BIDS dataset" in line]
    assert len(said) == 2 and "one: " in said[0] and "3 others are not" in said[0]
    assert "not" not in said[1].split("(")[0]


# ---- the same content twice

@pytest.mark.skipif(os.name == "nt", reason="no such pipes there")
def test_equal_files_are_found_by_their_content(tmp_path):
    tree(tmp_path, "a.nii", "b.nii")  # as large as each other
    shutil.copy(tmp_path / "a.nii", tmp_path / "c.nii")
    os.symlink("b.nii", tmp_path / "d.nii")
    for name in ("f.nii", "g.nii"):  # reading a pipe would wait for ever
        os.mkfifo(tmp_path / name)
    paths = [tmp_path / f"{letter}.nii" for letter in "abcdefg"]  # there is no e.nii
    assert equal_files(paths) == [(paths[2], paths[0]), (paths[3], paths[1])]


def test_a_training_names_volumes_that_it_learns_from_twice(tmp_path, capsys):
    tree(tmp_path / "train", "a.nii", "b.nii")
    shutil.copy(tmp_path / "train" / "a.nii", tmp_path / "train" / "c.nii")
    where = ["--train_dir", tmp_path / "train", "--arrays_dir", tmp_path / "arrays", *QUICK]
    assert run_here("train", *where) == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert f"c.nii: has the same content as {tmp_path / 'train' / 'a.nii'}," in said
    tested = ["--test_dir", tmp_path / "train", "--arrays_dir", tmp_path / "arrays",
              "--result_dir", tmp_path / "result", "--no-report"]
    assert run_here("test", *tested, "--exclude", "c.nii") == 0
    assert "2 of 2 volumes have the name of a training volume" in capsys.readouterr().err
    os.rename(tmp_path / "train" / "b.nii", tmp_path / "train" / "new.nii")
    assert run_here("test", *tested, "--include", "new.nii") == 0
    assert "training volume" not in capsys.readouterr().err
