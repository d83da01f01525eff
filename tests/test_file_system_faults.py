"""An error of the file system amid a volume is that volume's: the others are still done."""
import errno
import os
from functools import partial

import pytest
from conftest import one_line, run_here
from synthetic import QUICK, brain, save

from learning import steps
from machine.threads import in_turn
from restoring import evaluation, whole_volume

SHAPE = (18, 17, 16)
GONE = errno.EIO, os.strerror(errno.EIO)


def fails_at(name, function):
    """That function; at a volume of this name its disk fails instead."""
    def work(path, *more):
        if path.name == name:
            raise OSError(*GONE, str(path))
        return function(path, *more)

    return work


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        save(tmp_path / "in" / f"{number}.nii", brain(number, SHAPE))
    return tmp_path


@pytest.mark.parametrize("module, step, options", [
    (whole_volume, "upscale_file", ["--upscale"]), (whole_volume, "restore_file", []),
    (evaluation, "read_brain", ["--preset", "scan", "--test_noise", 0,
                                     "--test_profile", "box"])])
def test_the_others_are_restored(folder, monkeypatch, capsys, module, step, options):
    monkeypatch.setattr(module, step, fails_at("0.nii", getattr(module, step)))
    assert run_here("test", "--no-report", "--test_dir", folder / "in", "--result_dir",
               folder / "out", *options) == 1
    out, err = capsys.readouterr()
    assert "2.nii" in out and len(err.splitlines()) == 2
    assert f"{folder / 'in' / '0.nii'}: cannot be read (Input/output error); check that" in err


def test_the_others_are_learned_from(folder, monkeypatch, capsys):
    monkeypatch.setattr(steps, "read_brain", fails_at("0.nii", steps.read_brain))
    assert run_here("train", "--train_dir", folder / "in", "--arrays_dir", folder / "arrays",
               *QUICK) == 1
    out, err = capsys.readouterr()
    assert "2.nii: " in out and "0.nii: cannot be read (Input/output error)" in err


def failing(fault, item):
    raise fault


@pytest.mark.parametrize("ahead", [0, 1])
def test_the_error_names_the_volume_and_the_file(folder, ahead):
    other = FileNotFoundError(*GONE, "mask.nii")
    ((item, found),) = in_turn(partial(failing, other), ["v.nii"], ahead)
    assert one_line(found).startswith("v.nii: mask.nii cannot be read (Input/output error);")


def test_a_closed_standard_output_is_no_fault_of_a_volume():
    ((_, found),) = in_turn(partial(failing, BrokenPipeError()), ["v.nii"])
    with pytest.raises(BrokenPipeError):
        found()


def test_on_a_worker_of_a_cluster_it_is_the_volumes_too():
    workers = pytest.importorskip("cluster.workers")
    done = workers._done((partial(failing, OSError(*GONE)), {}), "v.nii")
    assert str(done[1]).startswith("v.nii: cannot be read (Input/output error);")
