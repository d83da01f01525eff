"""An interrupted run of a folder goes on: what is finished is known by its record."""
import copy
import json
import time
from dataclasses import replace

import pytest
from conftest import load_script, read_rows
from synthetic import brain, save, save_brains

from disk import results, run_folder
from disk.filters import Filters
from filter_constant import Method, Request
from nifti.volumes import write_volume
from options.command_line import command_line
from restoring import steps, upscaling, whole_volume
from restoring.whole_volume import _finished_before

SHAPE = (18, 17, 16)


@pytest.fixture
def study(tmp_path):
    save_brains(tmp_path / "low", 3, SHAPE)
    return tmp_path


@pytest.fixture
def run(study, monkeypatch):
    """Run test.py in some hour, with Ctrl-C at the volume of a number; what was restored."""
    def running(hour, *options, stop=None):
        done = []

        def write(path, *more):
            if len(done) == stop:
                raise KeyboardInterrupt
            done.append(path.name)
            return write_volume(path, *more)

        request = command_line("test", [
            "--test_dir", str(study / "low"), "--result_dir", str(study / "result"), *options])
        with monkeypatch.context() as patch:
            patch.setattr(time, "strftime", lambda *_: hour)
            for module in (upscaling, steps):
                patch.setattr(module, "write_volume", write)
            try:
                assert load_script("test").main(request) == 0
            except KeyboardInterrupt:
                assert stop is not None
        return done

    return running


@pytest.mark.parametrize("options", [("--upscale",), ("--upscale", "--no-report"), (),
                                     ("--upscale", "--isotropic")], ids=" ".join)
def test_the_same_command_goes_on_hours_later_and_restores_what_is_missing_alone(
        study, run, capsys, options):
    for number in range(3):  # for --isotropic
        save(study / "low" / f"{number}.nii", brain(number, SHAPE))
    assert run("112522", *options, stop=2) == ["0.nii", "1.nii"]
    capsys.readouterr()
    assert run("112607", *options) == ["2.nii"]
    out = capsys.readouterr().out
    assert out.count("finished before") == 2 and [path.name for path in
                                                  (study / "result").iterdir()] == ["112522"]
    folder = study / "result" / "112522"
    if "--no-report" not in options:
        page = (folder / "report.html").read_text(encoding="utf-8")
        for number in range(3):
            if "--upscale" in options:
                assert page.count(f'<a href="{number}.html"><img class="thumb"') == 1
                own = (folder / f"{number}.html").read_text(encoding="utf-8")
                assert own.count(f"<h3>{number}.nii</h3>") == 1
            else:
                assert page.count(f"<h3>{number}.nii</h3>") == 1
        assert not (folder / results.VIEWERS).exists()
    if "--upscale" not in options:
        assert [row["volume"] for row in read_rows(folder / "metrics.csv")] == [
            "0.nii", "1.nii", "2.nii"]
    assert run("112608", *options) == ["0.nii", "1.nii", "2.nii"]  # that one was finished


def test_what_changed_since_is_restored_again(study, run):
    run("112522", "--upscale", stop=2)
    folder = study / "result" / "112522"
    save(study / "low" / "0.nii", brain(9, SHAPE))
    assert run("112522", "--upscale", stop=1) == ["0.nii"]
    with open(folder / "1.nii", "r+b") as file:
        file.write(b"spoilt")
    assert run("112522", "--upscale") == ["1.nii", "2.nii"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"result": 3}', None])
def test_a_record_that_makes_no_sense_is_none(study, run, content):
    run("112522", "--upscale", stop=1)
    record = study / "result" / "112522" / "0.json"
    about = json.loads(record.read_text()) | {"figures": None}
    record.write_text(json.dumps(about) if content is None else content)
    record.with_suffix(".png").unlink()
    if content is not None:
        record.unlink()
        (record.parent / "0.json").write_text(json.dumps(about | {"figures": {}}))
    assert run("112522", "--upscale", stop=1) == ["0.nii"]


def test_another_version_of_the_program_is_another_run(study, run, monkeypatch):
    run("112522", "--upscale", stop=1)
    monkeypatch.setattr(run_folder, "digest_of", lambda paths: "another")
    assert len(run("112523", "--upscale")) == 3
    assert sorted(path.name for path in (study / "result").iterdir()) == ["112522", "112523"]


def test_viewers_are_kept_in_files_until_the_page_is_written(study, run, monkeypatch):
    kept, restore_volume = [], whole_volume.restore_volume

    def restoring_volume(job, *arguments, **options):
        found = restore_volume(job, *arguments, **options)
        kept.append((found.viewer, job.viewer.exists()))
        return found

    monkeypatch.setattr(whole_volume, "restore_volume", restoring_volume)
    run("112522", "--upscale")
    assert kept == 3 * [(None, True)]


def test_a_page_of_many_volumes_shows_the_first_and_links_to_the_pictures_of_others(study):
    save(study / "low" / "deeper" / "it's #4.nii", brain(4, SHAPE))
    script = load_script("test")
    script.MOST_SHOWN = 2
    words = ["--test_dir", study / "low", "--result_dir", study / "result"]
    assert script.main(command_line("test", list(map(str, words)))) == 0
    folder = next((study / "result").iterdir())
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('<section class="viewer"') == 2
    assert '<a href="deeper/it%27s%20%234.png">' in page and '<a href="2.png">' in page
    assert '<a href="0.png">' not in page


def test_a_volume_that_was_finished_before_has_the_settings_and_figures_of_its_record():
    methods = {factor: Method(factor=factor, seed=seed)
               for seed, factor in enumerate([(2, 2, 2), (1, 1, 4), (2, 2, 8)])}

    def store(factor):
        return Filters(["stages"], methods[factor], (0, 1, 2), {}, "arrays")

    store.request = Request(upscale=True)
    about = {"settings": {"factor": [2, 2, 8]}, "figures": {"volume": "a.nii"}, "missed": 1,
             "result_sha256": "abc", "seconds": {"restore": 2.0, "interpolate": 1.0, "other": 9.0}}
    steps = {"steps": [{"factor": [2, 2, 2]}, {"factor": [1, 1, 4]}]}
    found = _finished_before(copy.deepcopy(about | steps), store)
    assert found.method == replace(methods[1, 1, 4], factor=(2, 2, 8))
    assert [use.method.seed for use in found.uses] == [0, 1]
    assert not any(use.stages for use in found.uses)
    assert found.row == {"volume": "a.nii", "seconds": 3.0}
    assert (found.before, found.missed, found.digest, found.viewer) == (True, 1, "abc", None)
    assert _finished_before(about, store).uses[0].method.seed == 2  # one set of filters
