"""Where results go: no run writes into another's folder, nor over a file that is not ours."""
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script, run_command
from synthetic import brain, one_stage, save, save_brains

from disk.files import whole_file
from disk.filters import load_filters, save_filters
from disk.locks import only_one_in
from disk.results import check_beside, is_ours
from disk.run_folder import UNFINISHED, run_folder
from filter_constant import Request
from hashtable import Boundaries
from machine.errors import UserError
from nifti.volumes import write_volume
from options.command_line import command_line

SHAPE = (18, 17, 16)


def restore(folder, *options):
    """test.py on the volumes in a folder, in this process; its exit status."""
    request = command_line("test", [
        "--test_dir", str(folder / "low"), "--result_dir", str(folder / "result"), "--quiet",
        *map(str, options)])
    return load_script("test").main(request)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two volumes; the hour in it does not change."""
    monkeypatch.setattr(time, "strftime", lambda *_: "112522")
    save_brains(tmp_path / "low", 2, SHAPE)
    return tmp_path


def shapes(folder):
    return {path.relative_to(folder).as_posix(): nib.load(path).shape
            for path in sorted(folder.rglob("*.nii"))}


# ---- a folder for each run

def test_other_runs_within_an_hour_get_folders_of_their_own(folder):
    for options in (["--upscale"], ["--upscale", "--factor", 3], [], ["--upscale"]):
        assert restore(folder, "--no-report", *options) == 0
    result = folder / "result"
    assert sorted(path.name for path in result.iterdir()) == [
        "112522", "112522-2", "112522-3", "112522-4"]
    assert shapes(result)["112522/1.nii"] == (36, 34, 32)
    assert shapes(result)["112522-2/1.nii"] == (54, 51, 48)
    assert shapes(result)["112522-3/1.nii"] == SHAPE
    with_figures = [path.parent.name for path in result.glob("*/metrics.csv")]
    assert with_figures == ["112522-3"]
    assert not list(result.rglob(UNFINISHED))


def test_an_interrupted_run_is_gone_on_with_by_the_same_command_alone(
        folder, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        for options in (["--upscale"], ["--upscale", "--dtype", "same"]):
            patch.setattr("restoring.upscaling.write_volume", stops_at_the_second())
            with pytest.raises(KeyboardInterrupt):
                restore(folder, "--no-report", *options)
    result = folder / "result"
    assert sorted(shapes(result)) == ["112522-2/0.nii", "112522/0.nii"]
    killed = result / "112522" / ".1.nii.0123456789ab.part.nii"
    killed.write_bytes(b"half of it")
    assert restore(folder, "--no-report", "--upscale", "--no-quiet") == 0  # changes no result
    assert not killed.exists()
    assert sorted(shapes(result)) == ["112522-2/0.nii", "112522/0.nii", "112522/1.nii"]
    assert "is not continued" not in capsys.readouterr().err
    save(folder / "low" / "2.nii", brain(2, SHAPE))  # other volumes: another run
    assert restore(folder, "--no-report", "--upscale", "--dtype", "same") == 0
    assert "112522-2: a run of the same command was interrupted" in capsys.readouterr().err
    assert sorted(path.name for path in (result / "112522-2").iterdir()) == [
        ".0.json", UNFINISHED, "0.nii"]
    assert len(shapes(result / "112522-3")) == 3


def test_an_interrupted_run_is_gone_on_with_whether_its_paths_are_relative_or_not(
        folder, monkeypatch):
    """On a cluster, all paths are absolute."""
    monkeypatch.chdir(folder)
    with monkeypatch.context() as patch:
        patch.setattr("restoring.upscaling.write_volume", stops_at_the_second())
        with pytest.raises(KeyboardInterrupt):
            restore(Path(), "--no-report", "--upscale")
    assert restore(folder, "--no-report", "--upscale") == 0
    assert sorted(shapes(folder / "result")) == ["112522/0.nii", "112522/1.nii"]


def stops_at_the_second():
    """A `write_volume` that Ctrl-C falls into at the second volume."""
    done = []

    def write(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(write_volume(*arguments))

    return write


def test_a_run_that_writes_nothing_leaves_no_folder(folder):
    for path in (folder / "low").iterdir():
        path.write_bytes(b"no volume")
    assert restore(folder, "--upscale") == 2
    assert not (folder / "result").exists()
    (folder / "result").mkdir()
    assert restore(folder, "--upscale") == 2
    assert not list((folder / "result").iterdir())


def test_two_runs_at_once_share_no_folder(folder):
    def run_of(*more):
        request = command_line("test", ["--result_dir", str(folder / "result"), *more])
        filters = load_filters(request)
        return run_folder(replace(request, method=filters.asked), [], filters.digests)

    with (run_of() as one, run_of("--upscale") as two,
          run_of() as three):  # as the first, which goes on
        assert len({one, two, three}) == 3
        for place in (one, two, three):
            (place / "x").write_text("")
    assert sorted(os.listdir(folder / "result")) == ["112522", "112522-2", "112522-3"]


def test_a_run_that_still_works_is_not_called_interrupted(folder, capsys):
    request = Request(result_dir=str(folder / "result"))
    with run_folder(request, [], {}) as one, run_folder(request, [Path("new.nii")], {}) as two:
        assert one != two and "interrupted" not in capsys.readouterr().err


@pytest.mark.parametrize("newer", ["112520", "112521"])
def test_of_two_interrupted_runs_the_newer_is_gone_on_with(folder, newer):
    request = Request(result_dir=str(folder / "result"))
    with pytest.raises(KeyboardInterrupt), run_folder(request, [], {}) as place:
        (place / "x").write_text("")
        raise KeyboardInterrupt
    for name in ("112520", "112521"):
        shutil.copytree(place, folder / "result" / name)
        os.utime(folder / "result" / name / UNFINISHED, (9, 9 + (name == newer)))
    shutil.rmtree(place)
    with run_folder(request, [], {}) as again:
        assert again.name == newer
    assert not (again / UNFINISHED).exists() and (again / "x").exists()


def test_a_folder_whose_run_ends_at_this_moment_is_left_to_it(folder, monkeypatch):
    request = Request(result_dir=str(folder / "result"))
    with pytest.raises(KeyboardInterrupt), run_folder(request, [], {}) as first:
        (first / "x").write_text("")
        raise KeyboardInterrupt
    # The record that was locked is no longer the file of that name.
    monkeypatch.setattr("disk.run_folder.holds_lock", lambda _, path: path.parent != first)
    with run_folder(request, [], {}) as second:
        assert second.name == f"{first.name}-2"


def test_an_interrupted_run_with_other_filters_is_another(folder):
    request = Request(arrays_dir=str(folder), result_dir=str(folder / "result"))
    method = request.method
    limits, places = Boundaries(np.array([0.1, 0.2]), np.array([0.3, 0.6])), []
    for weight in (1, 1, 2):
        h = np.full((method.buckets, method.taps), weight, np.float32)
        save_filters(one_stage(h, limits), request, [])
        digests = load_filters(request).digests
        with pytest.raises(KeyboardInterrupt), run_folder(request, [], digests) as place:
            (place / "x").write_text("")
            places.append(place.name)
            raise KeyboardInterrupt
    assert places == ["112522", "112522", "112522-2"]


@pytest.mark.skipif(os.name == "nt", reason="temporary files hold no locks there")
def test_what_a_killed_run_left_beside_its_output_is_removed_but_not_what_another_writes(folder):
    names = [".x.nii.0123456789ab.part.nii", ".x.png.0123456789ab.part",
             ".x.json.0123456789ab.part", ".x.html.0123456789ab.part"]
    other = folder / ".y.png.0123456789ab.part"
    for name in names:
        (folder / name).write_bytes(b"half of it")
    other.write_bytes(b"of another result")
    with whole_file(folder / "x.png") as temporary:
        assert restore(folder, "--upscale", "--no-report", "--include", "0*",
                       "--output", folder / "x.nii") == 0
        assert Path(temporary).exists() and other.exists()
    assert not [name for name in names if (folder / name).exists()]


# ---- files beside results

@pytest.mark.parametrize("name, content", [
    ("scan.json", '{"EchoTime": 0.003}'), ("scan.json", "not even JSON"),
    ("scan.png", "a screenshot"), ("scan.html", "<html>of the radiologist</html>"),
    ("metrics.csv", "subject,age\n1,30\n"), ("metrics.csv", "volume,age\n1,30\n"),
    ("metrics.csv", "subject,gain_kg\n1,3\n")])
def test_a_file_of_the_users_beside_a_result_is_never_replaced(folder, name, content):
    place = folder / "anat"
    scan = save(place / "scan.nii", brain(0, SHAPE))
    (place / name).write_text(content)
    options = ["--test_dir", scan, "--output", place / "scan.nii.gz", "--quiet"]
    if name != "metrics.csv":
        options.append("--upscale")
    finished = run_command("test.py", *options)
    assert finished.returncode == 2
    message, = finished.stderr.splitlines()
    assert name in message and "--output" in message
    assert ("--no-report" in message) == (name != "metrics.csv")
    assert (place / name).read_text() == content
    assert sorted(path.name for path in place.iterdir()) == sorted(["scan.nii", name])


def test_a_link_to_nothing_beside_a_result_is_the_users_too(folder):
    (folder / "scan.html").symlink_to("not mounted")
    with pytest.raises(UserError, match="scan.html: exists already"):
        restore(folder, "--test_dir", folder / "low" / "0.nii", "--upscale",
                "--output", folder / "scan.nii.gz")
    assert (folder / "scan.html").is_symlink() and not (folder / "scan.nii.gz").exists()


def test_a_page_of_the_users_beside_one_of_several_results_is_not_replaced(tmp_path):
    names = [tmp_path / name for name in "ab"]
    check_beside(tmp_path, names, Request(upscale=True))
    (tmp_path / "b.html").write_text("<html>of the radiologist</html>")
    with pytest.raises(UserError, match="b.html: exists already"):
        check_beside(tmp_path, names, Request(upscale=True))


def test_without_a_report_what_it_would_fall_on_does_not_matter(folder):
    (folder / "scan.json").write_text('{"EchoTime": 0.003}')
    assert restore(folder, "--test_dir", folder / "low" / "0.nii", "--upscale", "--no-report",
                   "--output", folder / "scan.nii.gz") == 0
    assert json.loads((folder / "scan.json").read_text()) == {"EchoTime": 0.003}


def test_what_test_py_wrote_itself_is_known_and_replaced(folder):
    options = ["--test_dir", folder / "low" / "0.nii", "--output", folder / "fine" / "scan.nii"]
    for _ in range(2):
        assert restore(folder, *options) == 0
    beside = {path.name for path in (folder / "fine").iterdir() if is_ours(path)}
    assert beside == {"scan.json", "scan.png", "scan.html", "metrics.csv"}
    assert not is_ours(folder / "nowhere.json") and not is_ours(Path(folder, "low"))


def test_the_figures_of_filters_for_scans_are_known_as_ours(folder):
    save(folder / "low" / "0.nii", brain(0, (30, 28, 26)))
    assert restore(folder, "--preset", "scan", "--test_dir", folder / "low" / "0.nii",
                   "--test_profile", "box", "--test_noise", 0) == 0
    assert is_ours(folder / "result" / "112522" / "metrics.csv")


def test_a_result_folder_that_takes_no_files_is_one_line(folder):
    (folder / "result").write_text("a file")
    with pytest.raises(UserError, match="result"):
        restore(folder, "--upscale")


# ---- the volume that --output names

def to_output(folder, name, *options):
    return restore(folder, "--upscale", "--test_dir", folder / "low" / "0.nii", "--output",
                   folder / name, *options)


def never(*_):
    raise AssertionError("a volume is restored")


@pytest.mark.parametrize("beside", [None, {"EchoTime": 0.003}, "another volume's"])
def test_an_output_that_test_py_did_not_write_is_refused_before_work(folder, monkeypatch, beside):
    path = save(folder / "fine.nii.gz", brain(2, SHAPE))
    if beside == "another volume's":  # of fine.nii, which was moved away
        assert to_output(folder, "fine.nii") == 0
        (folder / "fine.nii").unlink()
    elif beside:
        (folder / "fine.json").write_text(json.dumps(beside))
    before = path.read_bytes()
    monkeypatch.setattr("restoring.upscaling.restore", never)
    with pytest.raises(UserError, match="fine.nii.gz: exists already.* --overwrite to replace"):
        to_output(folder, "fine.nii.gz", "--no-report")
    assert path.read_bytes() == before


def test_a_link_in_the_place_of_the_output_is_refused_too(folder):
    (folder / "fine.nii").symlink_to("not mounted")
    with pytest.raises(UserError, match="fine.nii: exists already"):
        to_output(folder, "fine.nii")
    assert (folder / "fine.nii").is_symlink()


def test_an_output_is_replaced_where_that_is_asked_for(folder):
    save(folder / "fine.nii", brain(2, SHAPE))
    assert to_output(folder, "fine.nii", "--overwrite", "--no-report") == 0
    assert shapes(folder)["fine.nii"] == (36, 34, 32)


def test_files_beside_an_output_are_never_replaced_even_so(folder):
    save(folder / "fine.nii", brain(2, SHAPE))
    (folder / "fine.json").write_text("{}")
    with pytest.raises(UserError, match="fine.json: exists already"):
        to_output(folder, "fine.nii", "--overwrite")


@pytest.mark.parametrize("then", [[], ["--no-report"]])
@pytest.mark.parametrize("name", ["again.nii", "hidden.nii", "0-fine.nii"])
def test_an_output_that_its_record_knows_is_replaced(folder, name, then):
    if name == "0-fine.nii":  # written by a run with --suffix
        assert restore(folder, "--upscale", "--suffix=-fine") == 0
        name = f"result/112522/{name}"
    else:
        assert to_output(folder, name, *["--no-report"][:name == "hidden.nii"]) == 0
    assert to_output(folder, name, "--factor", 3, *then) == 0
    assert shapes(folder)[name] == (54, 51, 48)


@pytest.mark.parametrize("options", [[], ["--no-report"]])
def test_an_output_that_was_changed_since_is_refused_before_work(folder, monkeypatch, options):
    assert to_output(folder, "fine.nii", *options) == 0
    save(folder / "fine.nii", brain(2, SHAPE))
    monkeypatch.setattr("restoring.upscaling.restore", never)
    with pytest.raises(UserError, match="fine.nii: exists already.* it was changed since"):
        to_output(folder, "fine.nii", *options)


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be locked there")
def test_an_output_that_another_run_is_replacing_is_waited_for(folder):
    """Between the renames of the other run, the new volume has no record yet."""
    assert to_output(folder, "fine.nii", "--no-report") == 0
    record, aside = folder / ".fine.json", folder / "aside"
    request = Request(output=str(folder / "fine.nii"), upscale=True, report=False)
    with ThreadPoolExecutor(1) as another:
        with only_one_in(folder):
            record.rename(aside)
            checked = another.submit(check_beside, folder, [folder / "fine"], request)
            assert wait([checked], 0.5).not_done
            aside.rename(record)
        checked.result()


def test_an_output_that_was_made_from_another_input_is_replaced_with_a_message(folder, capsys):
    assert to_output(folder, "fine.nii", "--no-report") == 0
    (folder / "same.nii").write_bytes((folder / "low" / "0.nii").read_bytes())
    (folder / "other.nii").write_bytes((folder / "low" / "0.nii").read_bytes() + bytes(8))
    capsys.readouterr()
    for given, said in (("low", False), ("same.nii", False), ("other.nii", True)):
        request = Request(output=str(folder / "fine.nii"), upscale=True, report=False,
                          test_dir=str(folder / given))
        check_beside(folder, [folder / "fine"], request)
        assert ("is replaced by a result from another input" in capsys.readouterr().err) == said


def test_an_output_does_not_take_the_record_of_a_result_with_the_other_ending(folder):
    assert to_output(folder, "fine.nii", "--no-report") == 0
    with pytest.raises(UserError, match="fine.nii: exists already, and its record would be"):
        to_output(folder, "fine.nii.gz", "--no-report")
    assert to_output(folder, "fine.nii", "--no-report") == 0
    assert to_output(folder, "fine.nii.gz", "--no-report", "--overwrite") == 0


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_an_output_that_is_a_folder_is_refused_before_work(folder, monkeypatch, more):
    (folder / "fine.nii").mkdir()
    monkeypatch.setattr("restoring.upscaling.restore", never)
    with pytest.raises(UserError, match="--output: .*fine.nii is a folder; name a file in it"):
        to_output(folder, "fine.nii", *more)
    assert not list((folder / "fine.nii").iterdir())


def test_an_output_below_a_file_is_refused_before_work(folder, monkeypatch):
    monkeypatch.setattr("restoring.upscaling.restore", never)
    with pytest.raises(UserError, match="0.nii is no folder that takes files; give another"):
        to_output(folder, "low/0.nii/deeper/fine.nii")


def test_a_name_that_is_too_long_is_that_volumes_fault(folder, capsys):
    (folder / "low" / "0.nii").rename(folder / "low" / f"{200 * 'a'}.nii")
    assert restore(folder, "--upscale", "--no-report", f"--suffix={60 * 'b'}") == 1
    assert "File name too long); shorten its name" in capsys.readouterr().err
    assert shapes(folder / "result" / "112522") == {f"1{60 * 'b'}.nii": (36, 34, 32)}


# ---- what is printed

@pytest.mark.parametrize("volumes", [1, 2])
def test_the_mean_is_printed_where_there_are_several_volumes(folder, capsys, volumes):
    if volumes == 1:
        (folder / "low" / "1.nii").unlink()
    assert restore(folder, "--no-report") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("mean ") for line in lines) == (volumes > 1)
