"""What messages advise does help, and nothing is said twice or hidden."""
import errno
import gzip
import os

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, assert_one_line, one_line, run_command
from synthetic import brain, save

from disk.filters import PRETRAINED, load_filters
from filter_constant import Method, Request
from get_lar import make_pair
from machine.errors import UserError
from machine.remarks import each_once, withheld
from nifti.checks import checked_image
from nifti.study import find_volumes
from nifti.volumes import read_volume
from restoring.evaluation import evaluate_scan

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ANNEX = "/annex/objects/MD5E-s123--0f.nii.gz\n"


@pytest.mark.parametrize("name, content, remedy", [
    ("v.nii.gz", LFS.encode(), "git lfs pull"),
    ("v.nii", LFS.encode(), "git lfs pull"),
    ("v.nii.gz", ANNEX.encode(), "datalad get or git annex get"),
    ("v.nii", gzip.compress(bytes(2000), mtime=0), "rename it to end in .nii.gz"),
    ("v.nii.gz", gzip.compress(gzip.compress(bytes(2000), mtime=0), mtime=0), "gunzip"),
    ("v.nii", b"word " * 200, "convert it to .nii or .nii.gz"),
    ("v.nii.gz", b"word " * 200, "replace it by a whole file")])
def test_what_stands_in_the_place_of_a_volume_is_told_apart(tmp_path, name, content, remedy):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=remedy):
        checked_image(tmp_path / name)


def test_a_volume_that_is_not_compressed_is_to_be_renamed(tmp_path):
    save(tmp_path / "v.nii", brain(0, (12, 11, 10))).rename(tmp_path / "v.nii.gz")
    with pytest.raises(UserError, match="rename it to end in .nii$"):
        checked_image(tmp_path / "v.nii.gz")


def test_a_file_that_may_not_be_read_is_not_to_be_replaced(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("nifti.checks.opened", refuse)  # root may read all files
    with pytest.raises(UserError, match="Permission denied.*; change its permissions$"):
        checked_image(save(tmp_path / "v.nii", brain(0, (12, 11, 10))))


def test_a_pair_of_header_and_voxels_is_to_be_converted(tmp_path):
    nib.save(nib.Nifti1Pair(brain(0, (12, 11, 10)), np.eye(4)), tmp_path / "v.hdr")
    for place in (tmp_path, tmp_path / "v.hdr", tmp_path / "v.img"):
        with pytest.raises(UserError, match="nib-convert"):
            find_volumes(place)
    (tmp_path / "v.hdr").rename(tmp_path / "v.nii")
    with pytest.raises(UserError, match="nib-convert"):
        checked_image(tmp_path / "v.nii")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_whose_file_was_not_fetched_says_how_to_fetch_it(tmp_path):
    (tmp_path / "v.nii.gz").symlink_to(".git/annex/objects/aa/bb/MD5E-s123--0f.nii.gz")
    with pytest.raises(UserError, match="fetch the file it links to, .git/annex.*datalad get"):
        checked_image(tmp_path / "v.nii.gz")


@pytest.mark.parametrize("shape, factor, filter_len, helps", [
    ((8, 20, 20), (2, 2, 2), 11, True), ((8, 20, 20), (8, 8, 8), 11, False),
    ((6, 20, 20), (4, 4, 4), 7, False)])
def test_smaller_filters_are_advised_only_where_they_help(shape, factor, filter_len, helps):
    with pytest.raises(ValueError, match="give a larger volume") as fault:
        make_pair(np.ones(shape, np.float32),
                  Method(factor=factor, filter_len=filter_len, grad_len=3))
    assert ("--filter_len" in str(fault.value)) == helps


@pytest.mark.parametrize("at", [12, 13, 14])
def test_one_slice_of_brain_is_evaluated_or_said_to_be_empty(at):
    data = np.zeros((30, 30, 30), np.float32)
    data[at] = brain(0, (30, 30, 30))[14]
    request = Request.of(factor=(3, 3, 3), preset="scan")
    filters = load_filters(request)
    try:
        row = evaluate_scan(data, filters, request, "box", 0, "v")
    except ValueError as fault:
        assert "no voxel above zero" in str(fault)
    else:
        assert np.isfinite(row["restored_whole"])


@pytest.mark.parametrize("mode", [[], ["--upscale"]], ids=["evaluate", "upscale"])
def test_voxels_below_zero_are_said_once(tmp_path, mode):
    data = brain(0, (18, 17, 16))
    data[0, 0, 0] = -3
    save(tmp_path / "v.nii", data)
    finished = run_command("test.py", *mode, "--no-report", "--test_dir", tmp_path / "v.nii",
                           "--result_dir", tmp_path / "result")
    assert finished.returncode == 0
    assert finished.stderr.count("below zero") == 1


@pytest.mark.parametrize("options", [
    ["--filter_len", "3", "--grad_len", "3"],
    ["--preset", "best", "--stages", "2", "--leaves", "4", "--filter_len", "5"]],
    ids=["paper", "stages"])
def test_learning_says_each_remark_once_however_often_it_reads(tmp_path, options):
    data = brain(0, (24, 23, 22))
    data[0, 0, 0], data[0, 0, 1] = -3, np.nan
    save(tmp_path / "in" / "v.nii", data)
    finished = run_command("train.py", *options, "--train_dir", tmp_path / "in",
                           "--arrays_dir", tmp_path / "arrays")
    assert finished.returncode == 0
    assert sorted(line.split(": ", 1)[1] for line in finished.stderr.splitlines()) == [
        "not-a-number and infinite voxels are taken as background",
        "voxels below zero (down to -3) are clipped to 0, as in the paper"]


def test_quiet_does_not_hide_that_the_projects_filters_were_taken_rather_than_ones_own(tmp_path):
    low = save(tmp_path / "low.nii", brain(0, (16, 15, 14)))
    command = [ROOT / "test.py", "--upscale", "--quiet", "--no-report", "--test_dir", low,
               "--output", tmp_path / "fine.nii"]
    finished = run_command(*command, cwd=tmp_path)
    assert finished.returncode == 0 and not finished.stdout and not finished.stderr
    (tmp_path / "arrays").mkdir()
    (tmp_path / "arrays" / "settings_5.json").write_text("{}")
    finished = run_command(*command, cwd=tmp_path)
    assert finished.returncode == 0 and not finished.stdout
    line, = finished.stderr.splitlines()
    assert "that come with the project" in line
    assert load_filters(Request.of(arrays_dir=str(PRETRAINED))).method.preset == "best"
    for place in (PRETRAINED, f"{PRETRAINED}{os.sep}"):
        finished = run_command(*command, "--arrays_dir", place)
        assert finished.returncode == 0 and not finished.stderr


@pytest.mark.parametrize("name, words", [
    ("scam.nii.gz", "no such file; check its name, there is scan.nii.gz"),
    ("other.nii.gz", "no such file; check its name"), ("study", "no such folder or file")])
def test_a_misspelt_name_is_not_to_be_made_a_folder(tmp_path, name, words):
    save(tmp_path / "scan.nii.gz", brain(0, (8, 8, 8)))
    assert one_line(find_volumes, tmp_path / name) == (
        f"{tmp_path / name}: {words}" if words.startswith("no such file;") else
        f"{tmp_path / name}: {words}; check its name, or make the folder and put .nii.gz volumes "
        "into it")


def test_a_broken_link_says_how_to_fetch_what_it_links_to(tmp_path):
    (tmp_path / "v.nii.gz").symlink_to(".git/annex/objects/aa/bb/MD5E-s123--0f.nii.gz")
    assert "datalad get" in one_line(find_volumes, tmp_path / "v.nii.gz")


@pytest.mark.parametrize("name, content", [
    ("IM0001", bytes(128) + b"DICM" + bytes(9)), ("a.dcm", b""), ("a.IMA", b"x")])
def test_dicom_is_to_be_converted_with_dcm2niix(tmp_path, name, content):
    (tmp_path / "series" / "deeper").mkdir(parents=True)
    (tmp_path / "series" / "deeper" / name).write_bytes(content)
    for path in (tmp_path / "series", tmp_path / "series" / "deeper" / name):
        assert "dcm2niix" in one_line(find_volumes, path)
    if content.endswith(bytes(9)):
        (tmp_path / "v.nii").write_bytes(content)
        assert "dcm2niix" in one_line(checked_image, tmp_path / "v.nii")


@pytest.mark.parametrize("times", [1e33, np.inf])
def test_intensities_that_are_too_large_are_called_so(tmp_path, times):
    data = brain(1, (12, 12, 12))
    with np.errstate(all="ignore"):
        data = np.where(data > 0, data * np.float32(times), 0).astype(np.float32)
    assert "too large" in one_line(read_volume, save(tmp_path / "v.nii", data))


def test_a_few_voxels_that_are_too_large_are_background_and_called_so(tmp_path, capsys):
    data = brain(1, (12, 12, 12))
    data[6, 6, 6] = 1e33
    assert read_volume(save(tmp_path / "v.nii", data)).data[6, 6, 6] == 0
    assert "voxels beyond 1e+30" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(20, 20, 1), (20, 20, 1, 3)])
@pytest.mark.parametrize("way", [["--isotropic"], ["--factor", "2"]], ids=" ".join)
def test_a_single_slice_is_called_so(tmp_path, shape, way):
    data = np.random.default_rng(0).integers(1, 900, shape).astype(np.int16)
    path = save(tmp_path / "v.nii", data, np.diag([0.6, 0.6, 6, 1]))
    finished = run_command("test.py", "--upscale", "--no-report", "--quiet", *way, "--test_dir",
                           path, "--output", tmp_path / "fine.nii")
    assert_one_line(finished, "v.nii", "a single slice along axis 2")


@pytest.mark.parametrize("options, name", [
    (["--preset", "scan", "--dtype", "same"], "dtype"),
    (["--preset", "scan", "--output"], "output"),
    (["--preset", "scan", "--suffix", "_x"], "suffix"), (["--test_noise", "5"], "test_noise"),
    (["--preset", "best", "--test_profile", "box"], "test_profile"),
    (["--upscale", "--test_noise", "5"], "test_noise"),
    (["--preset", "scan", "--blend_threshold"], "blend_threshold"),
    (["--upscale", "--arrays_dir", PRETRAINED, "--adapt"], "adapt"),
    (["--upscale", "--arrays_dir", PRETRAINED, "--profile", "box"], "profile"),
    (["--upscale", "--tissue"], "tissue"), (["--preset", "best", "--tissue"], "tissue")],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else value)
def test_options_that_would_have_no_effect_are_refused_before_work(tmp_path, options, name):
    path = save(tmp_path / "v.nii", brain(0, (30, 28, 26)))
    options = [*options, tmp_path / "x.nii"] if options[-1] == "--output" else options
    finished = run_command("test.py", "--test_dir", path, "--result_dir", tmp_path / "r", *options)
    assert finished.returncode == 2 and f"argument --{name}: has no effect" in finished.stderr
    assert not (tmp_path / "r").exists() and not (tmp_path / "x.nii").exists()


def test_each_line_of_standard_error_is_printed_once_within_each_command():
    for _ in range(2):  # a second command prints it again
        with each_once():
            assert [withheld("a", "stderr") for _ in range(3)] == [False, True, True]
            with each_once():  # a command within a command
                assert [withheld("a", "stderr") for _ in range(2)] == [False, True]
            assert not withheld("b", "stdout") and not withheld("b", "stdout")
    assert not withheld("a", "stderr") and not withheld("a", "stderr")  # outside of commands
