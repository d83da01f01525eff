"""learning/ledger.py: the volumes that are in the sums of each bucket."""
import json

import numpy as np
import pytest

from filter_constant import Method, Request
from hashtable import Boundaries
from learning.ledger import Finished, fingerprint
from learning.steps import checkpoint_of
from machine.errors import UserError
from structure import structure_of

SMALL = Method(filter_len=3, grad_len=3, q_angle_p=2, q_angle_t=2)  # 36 buckets
CLASSES = Boundaries(np.array([0.1, 0.2]), np.array([0.3, 0.6]))
A, B = Finished("a.nii", 1, "aa"), Finished("b.nii", 2, "bb")


def ledger_of(folder, step=None, sources=(), **options):
    """The ledger of a training in a folder; with `step`, one that begins."""
    checkpoint = checkpoint_of(structure_of(SMALL), [], Request(
        SMALL, arrays_dir=str(folder), train_dir=str(folder), **options))
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
    ledger.compare(paths, tmp_path)
    with pytest.raises(UserError, match="b.nii: was learned from .* check that --train_file_max"):
        ledger.compare(paths[:1], tmp_path)
    paths[0].unlink()
    with pytest.raises(UserError, match="a.nii: was learned from .* put it back"):
        ledger.compare(paths[1:], tmp_path)
    paths[0].write_bytes(b"A.nii")
    with pytest.raises(UserError, match="a.nii: has changed since it was learned from"):
        ledger.compare(paths, tmp_path)


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
