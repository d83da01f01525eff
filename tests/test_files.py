"""disk/files.py: files that are whole or not there at all."""
import hashlib
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from disk import files
from disk.files import (
    array_header,
    file_digest,
    read_json,
    remove_unfinished,
    whole_file,
    write_json,
)
from disk.seal import Seal
from machine.errors import CannotWrite, UserError


def test_nothing_half_written_is_left(tmp_path):
    path = tmp_path / "x.npy"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        Path(temporary).write_text("half")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"] and path.read_text() == "before"


def test_json_is_written_for_people_and_read_again(tmp_path):
    path, content = tmp_path / "x.json", {"factor": (2, 2, 2), "name": "\u00e9"}
    write_json(path, content)
    assert path.read_bytes() == (b'{\n "factor": [\n  2,\n  2,\n  2\n ],\n "name": "\\u00e9"\n}\n')
    assert read_json(path) == content | {"factor": [2, 2, 2]}


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(ValueError):
        read_json(path)


def test_of_a_json_file_no_more_is_read_than_one_of_ours_may_hold(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_bytes(b"{}".ljust(files.JSON_BYTES))
    assert read_json(path) == {}
    path.write_bytes(b"{}".ljust(files.JSON_BYTES + 1))
    with pytest.raises(ValueError, match="no JSON object"):
        read_json(path)
    assert files.JSON_BYTES == 64 << 20
    monkeypatch.setattr(files, "JSON_BYTES", 1000)
    tracemalloc.start()
    with pytest.raises(ValueError):
        read_json(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_digest_is_that_of_all_bytes(tmp_path):
    content = bytes(range(256)) * 5000  # more than is read at a time
    path = tmp_path / "x"
    path.write_bytes(content)
    assert file_digest(path) == hashlib.sha256(content).hexdigest()


def test_what_killed_processes_left_unfinished_is_removed_and_nothing_else(tmp_path):
    left = [".a.nii.gz.0123456789ab.part.nii.gz", "sub/.b.png.0123456789ab.part"]
    kept = ["a.nii.gz", ".hidden", "sub/x.part", ".a.nii.gz.0123.part"]
    (tmp_path / "sub").mkdir()
    for name in left + kept:
        (tmp_path / name).touch()
    remove_unfinished(tmp_path / "sub", ["a.nii.gz", "b.png"])
    assert not (tmp_path / left[1]).exists() and (tmp_path / left[0]).exists()
    remove_unfinished(tmp_path)
    assert not (tmp_path / left[0]).exists()
    assert all((tmp_path / name).exists() for name in kept)


@pytest.mark.parametrize("name, suffix", [("x.png", ""), (f"{60 * 'a'}.nii.gz", ".nii.gz")])
def test_what_is_written_has_a_name_that_is_known_as_unfinished(tmp_path, name, suffix):
    with pytest.raises(CannotWrite), whole_file(tmp_path / name, suffix) as temporary:
        assert temporary.endswith(suffix)
        remove_unfinished(tmp_path, [name])
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("array, good", [
    (np.zeros((2, 3)), True), (np.zeros(3), True), (np.zeros(3, order="F"), True),
    (np.zeros((2, 3), order="F"), False), (np.zeros((2, 3, 4), order="F"), False),
    (np.array([None]), False)], ids=["2-D", "1-D", "1-D F", "2-D F", "3-D F", "objects"])
def test_the_header_of_an_array_in_another_order_is_refused(array, good):
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    if good:
        assert array_header(file) == (array.shape, array.dtype)
    else:
        with pytest.raises(ValueError, match="objects, Fortran order"):
            array_header(file)


def test_a_file_that_is_gone_after_it_was_read_is_named(tmp_path):
    path = tmp_path / "x.nii"
    path.write_bytes(b"voxels")
    seal = Seal(path)
    assert seal.digest() == file_digest(path)
    path.unlink()
    with pytest.raises(UserError, match=r"x.nii: cannot be read any more \(No such file"):
        seal.digest()
    unseen = Seal(path)  # not there yet
    path.write_bytes(b"voxels")
    with pytest.raises(UserError, match="x.nii: was changed while it was read"):
        unseen.digest()
    both = Seal(path, tmp_path / "mask.nii")
    both.check()
    (tmp_path / "mask.nii").write_bytes(b"mask")
    with pytest.raises(UserError, match="mask.nii: was changed while it was read"):
        both.check()
