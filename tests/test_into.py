"""--into: later runs of a command add volumes to the folder of its results."""
import csv
import gzip
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script, refused
from synthetic import brain, save, save_brains

from disk.files import whole_file
from disk.run_folder import run_folder
from machine.errors import UserError
from options.command_line import command_line

SHAPE = (18, 17, 16)


@pytest.fixture
def folder(tmp_path):
    """A folder with two volumes."""
    save_brains(tmp_path / "low", 2, SHAPE)
    return tmp_path


def request_of(folder, *options, low="low"):
    return command_line("test", ["--test_dir", str(folder / low), "--into", str(folder / "fine"),
                                 *map(str, options)])


def restore(folder, *options, low="low"):
    return load_script("test").main(request_of(folder, *options, low=low))


def written(folder):
    """When each file of a folder was written, by name."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "fine").iterdir()}


def test_the_same_command_restores_only_what_was_added(folder, capsys):
    assert restore(folder, "--upscale") == 0
    first = written(folder)
    save(folder / "low" / "2.nii", brain(2, SHAPE))
    capsys.readouterr()
    assert restore(folder, "--upscale") == 0
    assert capsys.readouterr().out.count("finished before") == 2
    second = written(folder)
    unchanged = {name for name in first if first[name] == second[name]}
    assert unchanged >= {f"{number}.{end}" for number in range(2)
                         for end in ("nii", "json", "png", "html")}
    page = (folder / "fine" / "report.html").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("<tr><th scope")]
    assert len(rows) == 3 and all(re.search('data-jpeg="[^"]{400,}"', row) for row in rows)


def test_a_result_of_an_earlier_input_is_named_where_the_later_one_fails(folder, capsys):
    assert restore(folder, "--upscale") == 0
    before = (folder / "fine" / "1.nii").read_bytes()
    (folder / "low" / "1.nii").write_bytes(b"no volume any more")
    assert restore(folder, "--upscale") == 1
    first, *_ = capsys.readouterr().err.splitlines()
    assert "1.nii: " in first and f"result is still there: {folder / 'fine' / '1.nii'}" in first
    assert (folder / "fine" / "1.nii").read_bytes() == before
    assert "earlier result is still there" in (folder / "fine" / "report.html").read_text("utf-8")
    (folder / "low" / "2.nii").write_bytes(b"no volume")  # one that never had a result
    assert restore(folder, "--upscale") == 1
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "2.nii: " in one]
    assert "still there" not in line


def test_a_page_lists_one_volume_and_later_two_and_one_again(folder):
    """The first subjects of a study come one by one."""
    page, second = folder / "fine" / "report.html", folder / "low" / "1.nii"
    kept = second.read_bytes()
    for count in (1, 2, 1):
        second.write_bytes(kept) if count == 2 else second.unlink()
        assert restore(folder, "--upscale") == 0
        text = page.read_text(encoding="utf-8")
        rows = [line for line in text.splitlines() if line.startswith("<tr><th scope=\"row\" data")]
        assert len(rows) == count and all(re.search('data-jpeg="[^"]{400,}"', row) for row in rows)
        assert f">{count} volume{'s' * (count > 1)} upscaled" in text
        assert 'href="0.html"' in rows[0]


def test_a_volume_keeps_its_result_when_another_of_its_name_comes_and_goes(folder):
    other = folder / "low" / "1.nii.gz"
    for there in (False, True, False):
        other.write_bytes(gzip.compress((folder / "low" / "0.nii").read_bytes())) if there else (
            other.unlink(missing_ok=True))
        assert restore(folder, "--upscale") == 0
        beside = {path.name for path in (folder / "fine").glob("1*") if path.suffix != ".gz"}
        own = {f"1.nii{end}" for end in ("", ".json", ".png", ".html")}
        assert own <= beside if there else beside >= {"1.nii", "1.json", "1.png", "1.html"}
        assert not (there and beside & {"1.json", "1.png", "1.html"})
        assert there or not beside & (own - {"1.nii"})


def test_results_of_a_run_without_into_are_made_again(folder):
    """Nothing is known of their settings, which may differ."""
    result = folder / "result"
    options = ["--test_dir", str(folder / "low"), "--upscale", "--result_dir", str(result)]
    assert load_script("test").main(command_line("test", [*options, "--factor", "3"])) == 0
    next(result.iterdir()).rename(folder / "fine")
    for _ in range(2):
        assert restore(folder, "--upscale") == 0
        assert {nib.load(path).shape for path in (folder / "fine").glob("*.nii")} == {(36, 34, 32)}


def test_figures_of_a_test_are_those_of_all_volumes(folder):
    for number in range(2, 4):
        assert restore(folder, "--no-report") == 0
        with open(folder / "fine" / "metrics.csv", newline="") as file:
            assert len(list(csv.reader(file))) == number + 1
        save(folder / "low" / f"{number}.nii", brain(number, SHAPE))


@pytest.mark.parametrize("text", ["no JSON", "{}", '{"name": "1.nii"}'])
def test_a_damaged_viewer_gives_a_link_to_the_picture(folder, text):
    assert restore(folder) == 0
    (folder / "fine" / ".viewers" / "1.json").write_text(text)
    assert restore(folder) == 0
    page = (folder / "fine" / "report.html").read_text(encoding="utf-8")
    assert "Pictures of volumes without a viewer: <a href=\"1.png\">" in page
    assert 'aria-label="viewer of 0.nii"' in page


@pytest.mark.parametrize("option, value", [("--factor", 3), ("--profile", "box"),
                                           ("--include", "1*")])
def test_results_of_other_settings_are_not_mixed(folder, option, value):
    assert restore(folder, "--upscale", "--no-report") == 0
    before = written(folder)
    with pytest.raises(UserError, match=rf"fine: its results were made with other .*{option}\b.*"
                                        "; restore all volumes again with another --into"):
        restore(folder, "--upscale", "--no-report", option, value)
    assert written(folder) == before


def test_after_a_training_the_former_filters_can_be_named(folder, monkeypatch):
    assert restore(folder, "--upscale", "--no-report") == 0
    made = folder / "fine" / ".made_with.json"
    about = json.loads(made.read_text())
    made.write_text(json.dumps(about | {"filters": "others"}))
    with pytest.raises(UserError, match="made with other filters; name the former ones with "
                                        "--arrays_dir, or restore all"):
        restore(folder, "--upscale", "--no-report")


def test_what_is_still_missing_of_a_series_is_said_again(folder, capsys):
    series = np.stack([brain(0, SHAPE), np.zeros(SHAPE, np.float32)], -1)
    save(folder / "low" / "s.nii", series)
    assert restore(folder, "--upscale") == 1
    capsys.readouterr()
    assert restore(folder, "--upscale") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "s.nii: 1 of its volumes could not be restored in an earlier run" in line
    assert "--overwrite tries again" in line


@pytest.mark.parametrize("text", ["{", '{"settings": 5}'])
def test_a_damaged_account_of_the_settings_is_one_line(folder, text):
    (folder / "fine").mkdir()
    (folder / "fine" / ".made_with.json").write_text(text)
    with pytest.raises(UserError, match="were made with other"):
        restore(folder, "--upscale")


def test_files_that_are_not_from_the_volume_are_kept(folder, capsys):
    (folder / "fine").mkdir()
    (folder / "fine" / "1.nii").write_text("of another program")
    assert restore(folder, "--upscale", "--no-report") == 1
    assert "1.nii: exists already, and no record" in capsys.readouterr().err
    assert (folder / "fine" / "1.nii").read_text() == "of another program"
    save(folder / "other" / "0.nii", brain(5, SHAPE))
    assert restore(folder, "--upscale", "--no-report", low="other") == 2
    assert re.search("0.nii: was made from .*low/0.nii, not from .*other/0.nii",
                     capsys.readouterr().err)
    assert restore(folder, "--upscale", "--no-report", "--overwrite", low="other") == 0
    assert restore(folder, "--upscale", "--no-report", "--overwrite") == 0


def test_a_run_that_wrote_no_result_does_not_decide_the_settings(folder):
    """The folder of the inputs needs --suffix, as the first message says."""
    into = ["--upscale", "--no-report", "--into", str(folder / "low")]
    with pytest.raises(UserError, match="0.nii: a result would overwrite it; .*--suffix.*--into"):
        restore(folder, *into)
    assert len(list((folder / "low").iterdir())) == 2
    assert restore(folder, *into, "--suffix", "_fine") == 0
    assert (folder / "low" / ".made_with.json").exists()


def test_the_description_of_another_dataset_is_kept(folder):
    """Also that of the raw dataset, if results are written into it."""
    raw, fine = folder / "low" / "dataset_description.json", folder / "fine"
    raw.write_text('{"Name": "raw", "BIDSVersion": "1.8.0"}')
    fine.mkdir()
    (fine / raw.name).write_text('{"Name": "of others", "BIDSVersion": "1.8.0"}')
    (folder / "low" / "0.nii").rename(folder / "low" / "sub-1_T1w.nii")
    for into in ("low", "fine"):
        kept = (folder / into / raw.name).read_text()
        with pytest.raises(UserError, match=f"{into}/dataset_description.json: exists already"):
            restore(folder, "--upscale", "--no-report", "--into", folder / into)
        assert (folder / into / raw.name).read_text() == kept
    (fine / raw.name).unlink()
    (fine / ".bidsignore").write_text("notes.txt\n")
    for _ in range(2):
        assert restore(folder, "--upscale", "--no-report") == 0
    assert json.loads((fine / raw.name).read_text())["DatasetType"] == "derivative"
    assert (fine / ".bidsignore").read_text() == "notes.txt\n"


@pytest.mark.parametrize("name", ["sub-1_desc-fineT1w_mask.nii", "sub-1_T1w.bval"])
def test_a_mask_or_gradient_table_of_others_is_kept(folder, capsys, name):
    low, fine = folder / "low", folder / "fine"
    (low / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.8.0"}')
    (low / "0.nii").rename(low / "sub-1_T1w.nii")
    save(low / "sub-1_desc-brain_mask.nii", (brain(0, SHAPE) > 0).astype("float32"))
    (low / "sub-1_T1w.bval").write_text("0 1000")
    fine.mkdir()
    (fine / name).write_text("of others")
    options = ["--upscale", "--no-report", "--mask", "auto"]
    assert restore(folder, *options) == 2
    assert f"{name}: exists already" in capsys.readouterr().err
    assert (fine / name).read_text() == "of others"
    (fine / name).unlink()
    for bval in ("0 1000", "0 2000"):  # its own files are replaced
        (low / "sub-1_T1w.bval").write_text(bval)
        assert restore(folder, *options) == 0
        assert (fine / "sub-1_T1w.bval").read_text() == bval


def test_two_runs_at_once_are_not_in_one_folder(folder):
    request = request_of(folder, "--upscale")
    with run_folder(request, [], {}) as place:
        with (pytest.raises(UserError, match="another run writes into it"),
              run_folder(request, [], {})):
            pass
        assert (place / ".made_with.json").exists()  # the other one did not remove it
        (place / "x").write_text("")
    with run_folder(request, [], {}) as place:
        assert place == folder / "fine" and (place / "x").exists()


def test_files_that_another_run_writes_below_the_folder_are_kept(folder, monkeypatch):
    """The folder may hold those of other runs, such as --into result."""
    def stopped(*_):
        raise KeyboardInterrupt

    left = folder / "fine" / ".0.nii.0123456789ab.part.nii"
    (folder / "fine" / "112522").mkdir(parents=True)
    left.write_bytes(b"of a killed run")
    with (whole_file(folder / "fine" / "112522" / "0.nii") as temporary,
          run_folder(request_of(folder, "--upscale"), [], {})):
        assert Path(temporary).exists() and not left.exists()
        request = request_of(folder, "--upscale", "--scheduler", "local:2")
        monkeypatch.setattr("cluster.workers.connected", stopped)
        with (pytest.raises(KeyboardInterrupt),
              load_script("test").place_of(request, folder / "fine")):
            pass
        assert Path(temporary).exists()


def test_a_run_that_writes_nothing_leaves_no_folder(folder):
    for path in (folder / "low").iterdir():
        path.write_bytes(b"no volume")
    assert restore(folder, "--upscale") == 2
    assert not (folder / "fine").exists()


@pytest.mark.parametrize("option", [["--upscale", "--output", "a.nii"],
                                    ["--upscale", "--result_dir", "result"], ["--look"]])
def test_one_option_names_the_folder(capsys, option):
    assert "argument --into: " in refused(capsys, "test", "--into", "fine", *option)


@pytest.mark.parametrize("option", ["--into", "--output"])
def test_an_empty_name_is_an_error(capsys, option):
    """As from a variable of a shell that is not set; results would go elsewhere."""
    assert f"argument {option}: is empty; name a f" in refused(capsys, "test", "--upscale",
                                                               option, "")
