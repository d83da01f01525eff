"""Records beside results: of the files that were read, and of the result that they stand beside."""
import json
import os
import threading
from pathlib import Path

import pytest
from conftest import load_script
from synthetic import brain, save

from disk.files import file_digest, whole_files, write_whole
from machine.errors import UserError
from nifti.masks import mask_for
from options.command_line import command_line
from restoring import steps as restoring_steps
from restoring import upscaling

SHAPE = (18, 17, 16)


def restore(folder, *options):
    """test.py in this process, results beside one another in a folder; its exit status."""
    words = ["--output", folder / "out" / "x.nii", "--quiet", *options]
    return load_script("test").main(command_line("test", list(map(str, words))))


def belongs(folder, record="x.json"):
    """Whether the record beside the result is of that file."""
    about = json.loads((folder / "out" / record).read_text())
    return about["result_sha256"] == file_digest(folder / "out" / "x.nii")


@pytest.mark.parametrize("options", [("--upscale",), ()])
@pytest.mark.parametrize("report", [(), ("--no-report",)])
def test_a_record_names_input_and_result_by_their_digests(tmp_path, options, report):
    path = save(tmp_path / "v.nii", brain(0, (26, 24, 22)))
    assert restore(tmp_path, "--test_dir", path, *options, *report) == 0
    name = ".x.json" if report else "x.json"
    about = json.loads((tmp_path / "out" / name).read_text())
    assert about["input_sha256"] == file_digest(path) and belongs(tmp_path, name)


@pytest.mark.parametrize("moment", range(5))
def test_a_stop_between_any_two_renames_leaves_no_record_beside_another_result(
        tmp_path, monkeypatch, moment):
    """Two old files are removed, then three take their places."""
    for number in range(2):
        save(tmp_path / f"{number}.nii", brain(number, SHAPE))
    assert restore(tmp_path, "--upscale", "--test_dir", tmp_path / "0.nii") == 0
    steps = []

    def stopping(name, act):
        def acts(path, *more, **options):
            if name == "replace" or ".part" not in Path(path).name:
                steps.append(name)
                if len(steps) > moment:
                    raise KeyboardInterrupt
            return act(path, *more, **options)

        return acts

    with monkeypatch.context() as patch:
        for place, name in ((os, "replace"), (Path, "unlink")):
            patch.setattr(place, name, stopping(name, getattr(place, name)))
        with pytest.raises(KeyboardInterrupt):
            restore(tmp_path, "--upscale", "--test_dir", tmp_path / "1.nii")
    assert not (tmp_path / "out" / "x.json").exists() or belongs(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be locked there")
def test_files_that_two_write_at_once_are_all_of_one(tmp_path, monkeypatch):
    """The second is ready between two renames of the first, and has to wait for it."""
    names, replace = [tmp_path / name for name in ("volume", "picture", "record")], os.replace

    def write(who):
        with whole_files() as files:
            for name in names:
                write_whole(name, who, files)

    second = threading.Thread(target=write, args=("second",))

    def replacing(temporary, path):
        if path.name == "picture" and not second.ident:
            second.start()
            second.join(1)
        replace(temporary, path)

    monkeypatch.setattr(os, "replace", replacing)
    write("first")
    second.join()
    assert [name.read_text() for name in names] == 3 * ["second"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failed_write_of_one_file_leaves_all_others_as_they_were(tmp_path):
    for name in ("volume", "record"):
        (tmp_path / name).write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_files() as files:
        write_whole(tmp_path / "volume", "new", files)
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "volume": "old", "record": "old"}


@pytest.mark.parametrize("module, reader, options", [
    (upscaling, "read_series", ("--upscale",)), (restoring_steps, "read_brain", ())])
def test_an_input_that_is_replaced_while_it_is_read_is_refused(
        tmp_path, monkeypatch, capsys, module, reader, options):
    path = save(tmp_path / "v.nii", brain(0, SHAPE))
    read = getattr(module, reader)

    def replaced(*arguments):
        found = read(*arguments)
        os.replace(save(tmp_path / "other.nii", brain(1, SHAPE)), path)
        return found

    monkeypatch.setattr(module, reader, replaced)
    assert restore(tmp_path, "--test_dir", path, *options) == 2
    assert "v.nii: was changed while it was read" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


@pytest.mark.parametrize("later", [
    lambda path: os.replace(save(path.with_name("other.nii"), brain(1, SHAPE)), path), os.remove],
    ids=["replaced", "removed"])
def test_a_record_is_of_what_was_read_whatever_becomes_of_the_input(tmp_path, monkeypatch, later):
    path, plain = save(tmp_path / "v.nii", brain(0, SHAPE)), upscaling.restore
    before = file_digest(path)

    def restoring_later(*arguments):
        later(path)
        return plain(*arguments)

    monkeypatch.setattr(upscaling, "restore", restoring_later)
    assert restore(tmp_path, "--upscale", "--test_dir", path) == 0
    about = json.loads((tmp_path / "out" / "x.json").read_text())
    assert about["input_sha256"] == before


def test_a_mask_that_is_replaced_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "v.nii", brain(0, SHAPE))
    mask = save(tmp_path / "v_mask.nii", (brain(0, SHAPE) > 0).astype("uint8"))
    assert mask_for(path, "{name}_mask.nii").digest == file_digest(mask)
    from nifti import masks

    read = masks.read_voxels

    def replaced(*arguments):
        found = read(*arguments)
        os.utime(mask, (0, 0))
        return found

    monkeypatch.setattr(masks, "read_voxels", replaced)
    with pytest.raises(UserError, match="v_mask.nii: was changed while it was read"):
        mask_for(path, "{name}_mask.nii")


def test_a_run_without_report_leaves_no_picture_and_record_of_the_run_before(tmp_path):
    path = save(tmp_path / "v.nii", brain(0, SHAPE))
    for report, names in ((), ["x.html", "x.json", "x.nii", "x.png"]), (
            ("--no-report",), [".x.json", "x.nii"]), (
            (), ["x.html", "x.json", "x.nii", "x.png"]):
        assert restore(tmp_path, "--upscale", "--test_dir", path, *report) == 0
        assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == names


def test_the_page_names_the_results_it_shows_by_their_digests(tmp_path):
    path = save(tmp_path / "v.nii", brain(0, SHAPE))
    assert restore(tmp_path, "--upscale", "--test_dir", path) == 0
    page = (tmp_path / "out" / "x.html").read_text(encoding="utf-8")
    assert file_digest(tmp_path / "out" / "x.nii") in page
