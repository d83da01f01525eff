"""Checkpoints in one process: the volumes that are in the sums of each bucket, and their files."""
import json
from types import SimpleNamespace

import numpy as np
import pytest

from filter_constant import Method, Request
from hashtable import Boundaries
from learning.ledger import Finished, fingerprint
from learning.steps import checkpoint_of
from learning.sums import SPARE_DISK, SumFiles
from machine.errors import CannotWrite, UserError
from machine.memory import MB, row_bytes
from matrix_compute import Gram
from structure import structure_of

SMALL = Method(filter_len=3, grad_len=3, q_angle_p=2, q_angle_t=2)  # 36 buckets
CLASSES = Boundaries(np.array([0.1, 0.2]), np.array([0.3, 0.6]))
A, B = Finished("a.nii", 1, "aa"), Finished("b.nii", 2, "bb")


def checkpoint_in(folder):
    """The checkpoint of a training in a folder."""
    return checkpoint_of(structure_of(SMALL), [], Request(
        SMALL, arrays_dir=str(folder), train_dir=str(folder)))


def ledger_of(folder, step=None, sources=()):
    """The ledger of a training in a folder; with `step`, one that begins."""
    checkpoint = checkpoint_in(folder)
    if step:
        checkpoint.folder.mkdir(exist_ok=True)
        checkpoint.ledger.begin(CLASSES, list(sources), step)
    return checkpoint.ledger


def test_a_ledger_is_read_as_it_was_begun(tmp_path):
    begun = ledger_of(tmp_path, 16, [A])
    found = ledger_of(tmp_path)
    assert found.key is None and found.read()
    assert (found.key, found.sources, found.step) == (begun.key, [A], 16)
    assert list(found.starts) == [0, 16, 32] and (found.buckets, found.taps) == (36, 27)
    assert found.finished == found.kept == {0: [], 16: [], 32: []}
    for one, other in zip(found.classes, CLASSES, strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_file_of_sums_gets_the_volumes_that_it_lacks(tmp_path):
    ledger = ledger_of(tmp_path, 16)
    first = ledger.lacking(range(16), A)
    assert np.flatnonzero(first).tolist() == list(range(16))
    ledger.add(first, A)
    assert ledger.lacking(range(16), A) is None
    assert ledger.names() == (set(), {"a.nii"})
    rest = ledger.lacking(range(36), A)
    assert np.flatnonzero(rest).tolist() == list(range(16, 36))
    ledger.add(rest, A)
    ledger.add(ledger.lacking(range(16, 32), B), B)
    assert ledger.finished == {0: [A], 16: [A, B], 32: [A]}
    assert ledger.names() == ({"a.nii"}, {"b.nii"})
    with pytest.raises(UserError, match="a.nii: changed while it was learned from"):
        ledger.lacking(range(36), A._replace(sha256="cc"))


def test_a_volume_that_changes_between_two_passes_is_refused(tmp_path):
    """The sums of the first pass hold the earlier file, and the second pass other buckets."""
    ledger = ledger_of(tmp_path, 16)
    ledger.add(ledger.lacking(range(16), A), A)
    with pytest.raises(UserError, match="a.nii: changed while it was learned from"):
        ledger.lacking(range(16, 36), A._replace(sha256="cc"))


@pytest.mark.parametrize("step", [0, 37, 1.0, True, None])
def test_a_number_of_buckets_that_makes_no_sense_is_refused(tmp_path, step):
    path = ledger_of(tmp_path, 16).path
    path.write_text(json.dumps(json.loads(path.read_text()) | {"buckets_per_file": step}))
    with pytest.raises(UserError, match="about.json: not a complete checkpoint"):
        ledger_of(tmp_path).read()


@pytest.mark.parametrize("step", [1, 36])
def test_one_bucket_in_a_file_and_all_in_one_are_good(tmp_path, step):
    ledger_of(tmp_path, step)
    found = ledger_of(tmp_path)
    assert found.read() and len(found.starts) == 36 // step


@pytest.mark.parametrize("entry", [["a", 1], ["a", "1", "x"], [1, 1, "x"], ["a", 1, None]], ids=str)
def test_volumes_that_make_no_sense_are_refused(tmp_path, entry):
    path = ledger_of(tmp_path, 16).path
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sources": [entry]}))
    with pytest.raises(UserError, match="about.json: not a complete checkpoint"):
        ledger_of(tmp_path).read()


def test_sums_after_other_stages_are_of_no_use(tmp_path):
    path = ledger_of(tmp_path, 16).path
    path.write_text(json.dumps(json.loads(path.read_text()) | {"after": "other stages"}))
    assert ledger_of(tmp_path).read() is False


def test_volumes_that_changed_or_are_gone_are_named(tmp_path):
    paths = [tmp_path / "a.nii", tmp_path / "b.nii"]
    for path in paths:
        path.write_bytes(path.name.encode())
    of_classes, summed = (fingerprint(path, tmp_path) for path in paths)
    assert of_classes[:2] == ("a.nii", 5)
    ledger = ledger_of(tmp_path, 16, [of_classes])
    ledger.add(ledger.lacking(range(16), summed), summed)
    ledger.compare(paths)
    with pytest.raises(UserError, match="b.nii: was learned from .* check that --train_file_max"):
        ledger.compare(paths[:1])
    paths[0].unlink()
    with pytest.raises(UserError, match="a.nii: was learned from .* put it back"):
        ledger.compare(paths[1:])
    paths[0].write_bytes(b"A.nii")
    with pytest.raises(UserError, match="a.nii: has changed since it was learned from"):
        ledger.compare(paths)


def test_options_that_the_sums_depend_on_are_compared(tmp_path):
    ledger_of(tmp_path, 16)
    other = ledger_of(tmp_path)
    other.request = Request(Method(filter_len=3, grad_len=3, q_angle_p=2, q_angle_t=2, ridge=0.5,
                                   train_file_max=3), arrays_dir=str(tmp_path))
    assert other.read()
    other.request = Request(Method(filter_len=3, grad_len=3, q_angle_p=2, q_angle_t=2, seed=7),
                            arrays_dir=str(tmp_path))
    with pytest.raises(UserError, match="was begun with --seed 0, not 7; give that, or --restart"):
        other.read()


# ---- files of sums

def saved(folder, step):
    """Random sums that were saved with a volume in them."""
    checkpoint = checkpoint_in(folder)
    checkpoint.begin(CLASSES, [A])
    ledger = checkpoint.ledger
    ledger._divide(CLASSES, 36, 27, step)
    gram, random = Gram(36, 27), np.random.default_rng(0)
    gram.packed[:] = random.random(gram.packed.shape)
    gram.count[:] = random.integers(0, 3, 36)  # some have no samples
    ledger.add(ledger.lacking(range(36), B), B)
    assert checkpoint.save(gram) == sum(
        path.stat().st_size for path in checkpoint.folder.glob("sums_*.npy"))
    gram.packed[gram.count == 0] = 0
    return gram


def test_sums_come_back_as_they_were_saved(tmp_path):
    gram = saved(tmp_path, 36)
    checkpoint = checkpoint_in(tmp_path)
    assert checkpoint.find() and checkpoint.ledger.names() == ({"b.nii"}, set())
    found = checkpoint.load(range(36))
    np.testing.assert_array_equal(found.packed, gram.packed)
    np.testing.assert_array_equal(found.count, gram.count)
    assert checkpoint.save(found) == 0  # nothing is ahead of its file


def test_sums_after_other_stages_are_removed(tmp_path):
    saved(tmp_path, 36)
    checkpoint = checkpoint_in(tmp_path)
    path = checkpoint.ledger.path
    path.write_text(json.dumps(json.loads(path.read_text()) | {"after": "other stages"}))
    assert not checkpoint.find() and not list(checkpoint.folder.iterdir())
    assert not checkpoint.find()  # where there is none


def test_the_last_file_has_the_buckets_that_are_left(tmp_path):
    files = SumFiles(tmp_path, "key", 36, 27, 16)
    assert [files.inside(start) for start in (0, 16, 32)] == [
        range(16), range(16, 32), range(32, 36)]


@pytest.mark.parametrize("taps", [100, 4000], ids=["little", "much"])
def test_a_checkpoint_needs_its_size_once_more_than_it_grows_and_some_to_spare(
        tmp_path, monkeypatch, taps):
    files, full = SumFiles(tmp_path, "key", 36, taps, 16), SimpleNamespace(
        count=np.ones(36, int), first=0)
    needed = (36 + 16) * row_bytes(taps)  # all files, and the largest of them twice
    enough = needed + min(SPARE_DISK, needed)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=enough))
    files.demand_space(full, [0, 16, 32])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=enough - 1))
    files.demand_space(full, [])
    words = f"needs {needed / MB:.0f} MB more, {(enough - 1) / MB:.0f} MB are free"
    with pytest.raises(CannotWrite, match=words):
        files.demand_space(full, [0, 16, 32])
    assert SPARE_DISK == 1 << 25
