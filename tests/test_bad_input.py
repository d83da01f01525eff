"""Bad volumes: each ends in one line that names it, and the others are still processed."""

import gzip
import os
import sys

import nibabel as nib
import numpy as np
import pytest
from synthetic import QUICK, brain, command, save

from filter_constant import Request
from learning import steps
from machine.errors import UserError


def raw(path, data=None, **fields):
    """A .nii whose header says what `fields` say, whatever the voxels are."""
    save(path, brain() if data is None else data)
    header = nib.Nifti1Header(path.read_bytes()[:348])
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    return path


def packed(path, content):
    path.write_bytes(gzip.compress(content, 1))
    return path


def whole(folder):
    return save(folder / "whole.nii.gz", brain()).read_bytes()


def truncated(folder):
    content = whole(folder)
    (folder / "whole.nii.gz").unlink()
    (folder / "bad.nii.gz").write_bytes(content[: len(content) // 2])


def corrupt(folder):
    content = bytearray(whole(folder))
    (folder / "whole.nii.gz").unlink()
    content[len(content) // 2] ^= 255
    (folder / "bad.nii.gz").write_bytes(content)


def checksum(folder):
    content = bytearray(whole(folder))
    (folder / "whole.nii.gz").unlink()
    content[-8] ^= 1
    (folder / "bad.nii.gz").write_bytes(content)


def nearly_empty(folder):
    data = np.zeros((30, 28, 26), np.float32)
    data[15, 14, 13] = 5.5  # no whole number: those would be labels
    data[3, 3, 3] = 7
    save(folder / "bad.nii", data)


def hollow(folder):  # enough voxels, none of which has a whole patch around it
    data = np.zeros((30, 28, 26), np.float32)
    data[15, 0], data[0, 14], data[:2, :2] = 5.5, 6, 7  # as above
    save(folder / "bad.nii", data)


def colours(folder):
    save(folder / "bad.nii", np.zeros((20, 20, 20), [("R", "u1"), ("G", "u1"), ("B", "u1")]))


def bomb(folder):  # 2 KB that claim 32767^3 voxels, and 1 MB of zeros that are a GB
    header = raw(
        folder / "bad.nii", dim=[3, 32767, 32767, 32767, 1, 1, 1, 1], datatype=64, bitpix=64
    ).read_bytes()[:352]
    (folder / "bad.nii").unlink()
    packed(folder / "bad.nii.gz", header + bytes(1 << 20))


def goes_on(folder):  # a good volume with a gigabyte of zeros behind it, in a megabyte
    content = save(folder / "bad.nii", brain()).read_bytes()
    (folder / "bad.nii").unlink()
    packed(folder / "bad.nii.gz", content + bytes(1 << 26))


def loop(folder):
    (folder / "bad.nii.gz").symlink_to(folder / "bad.nii.gz")


def pipe(folder):
    os.mkfifo(folder / "bad.nii")


BAD = {
    "text": (lambda f: (f / "bad.nii").write_text("not a volume " * 99), "not a NIfTI file"),
    "empty file": (lambda f: (f / "bad.nii").write_bytes(b""), "not a NIfTI file"),
    "empty gzip": (lambda f: packed(f / "bad.nii.gz", b""), "not a NIfTI file"),
    "named .gz, not gzip": (
        lambda f: raw(f / "x.nii").rename(f / "bad.nii.gz"),
        "not a readable NIfTI volume",
    ),
    "gzip named .nii": (lambda f: packed(f / "bad.nii", b"x" * 999), "not a NIfTI file"),
    "truncated gzip": (truncated, "not a readable NIfTI volume"),
    "corrupt gzip": (corrupt, "not a readable NIfTI volume"),
    "wrong checksum": (checksum, "CRC"),
    "truncated": (
        lambda f: (f / "bad.nii").write_bytes(raw(f / "bad.nii").read_bytes()[:9000]),
        "truncated",
    ),
    "huge shape": (
        lambda f: raw(f / "bad.nii", dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
        "truncated",
    ),
    "huge shape in gzip": (bomb, "truncated"),
    "long gzip": (goes_on, "bytes after its voxels"),
    "negative shape": (
        lambda f: raw(f / "bad.nii", dim=[3, 30, -28, 26, 1, 1, 1, 1]),
        "every side must be 1 or more",
    ),
    "no dimensions": (
        lambda f: raw(f / "bad.nii", dim=[0, 30, 28, 26, 1, 1, 1, 1]),
        "every side must be 1 or more",
    ),
    "nine dimensions": (
        lambda f: raw(f / "bad.nii", dim=[9, 30, 28, 26, 1, 1, 1, 1]),
        "every side must be 1 or more",
    ),
    "offset": (lambda f: raw(f / "bad.nii", vox_offset=1e20), "puts the voxels at byte"),
    "offset that is no number": (
        lambda f: raw(f / "bad.nii", vox_offset=np.nan),
        "puts the voxels at byte",
    ),
    "unknown type": (lambda f: raw(f / "bad.nii", datatype=999), "999"),
    "of 128 bits": (
        lambda f: raw(f / "bad.nii", datatype=1536, bitpix=128),
        "truncated" if np.dtype(np.longdouble).itemsize == 16 and np.finfo(np.longdouble).nmant > 63
        else "data type 1536 cannot be read on this machine; save it as float64",
    ),
    "2-D": (lambda f: save(f / "bad.nii", brain()[:, :, 0]), "has 2 dimensions"),
    "4-D": (lambda f: save(f / "bad.nii", np.stack([brain()] * 2, -1)), "has 4 dimensions"),
    "RGB": (colours, "colours"),
    "complex": (lambda f: save(f / "bad.nii", brain().astype(np.complex64)), "complex numbers"),
    "all zeros": (
        lambda f: save(f / "bad.nii", np.zeros((20, 20, 20), np.uint8)),
        "no voxel above zero",
    ),
    "all NaN": (
        lambda f: save(f / "bad.nii", np.full((20, 20, 20), np.nan, np.float32)),
        "no voxel above zero",
    ),
    "all negative": (lambda f: save(f / "bad.nii", -1 - brain()), "no voxel above zero"),
    "constant": (
        lambda f: save(f / "bad.nii", np.full((20, 20, 20), 7, np.float32)),
        "all its voxels are 7",
    ),
    "minute": (lambda f: save(f / "bad.nii", brain() * np.float32(1e-42)), "rescale"),
    "smaller than a patch": (
        lambda f: save(f / "bad.nii", brain()[12:16]),
        "has 4 voxels, and a patch and the factor need 5",
    ),
    "one voxel": (
        lambda f: save(f / "bad.nii", np.array([[[1.0]]], np.float32)),
        "all its voxels are 1",
    ),
    "nearly empty": (nearly_empty, "above zero"),
    "nothing inside": (hollow, "above zero"),
    "symlink loop": (loop, "ymbolic link"),
    "broken link": (lambda f: (f / "bad.nii").symlink_to(f / "nowhere"), "No such file"),
    "pipe": (pipe, "not a regular file"),
}


if sys.platform == "win32":
    for name in ("symlink loop", "broken link", "pipe"):
        del BAD[name]


def all_bad(folder):
    """Every bad file in one folder; returns the word that each one's line must hold, by name."""
    words = {}
    for name, (make, word) in BAD.items():
        here = folder / name.replace(" ", "_")
        here.mkdir(parents=True)
        make(here)
        words.update({f"{here / path.name}": word for path in here.iterdir()})
    return words


@pytest.mark.parametrize("name", BAD)
def test_a_bad_volume_is_one_line(tmp_path, name):
    make, word = BAD[name]
    make(tmp_path)
    (path,) = tmp_path.iterdir()
    with pytest.raises(UserError) as raised:
        next(steps.pairs_of(path, Request.of(filter_len=5, grad_len=5)))
    text = str(raised.value)
    assert text.startswith(str(path)) and word in text and "\n" not in text
    assert ";" in text or "," in text  # what is wrong, and what would be right


def test_the_other_volumes_are_learned_from(tmp_path):
    words = all_bad(tmp_path / "train")
    save(tmp_path / "train" / "good.nii.gz", brain())
    status, out, errors = command(
        "train.py", "--train_dir", tmp_path / "train", "--arrays_dir", tmp_path / "arrays", *QUICK
    )
    assert status == 1
    assert "good.nii.gz: " in out and "81 filters" in out
    assert f"{len(words)} of {len(words) + 1} volumes could not be used" in errors[-1]
    for path, word in words.items():
        (line,) = (line for line in errors if path + ":" in line)
        assert word in line
    assert len(errors) == len(words) + 1


def test_the_other_volumes_are_restored(tmp_path, trained):
    words = all_bad(tmp_path / "test")
    save(tmp_path / "test" / "good.nii.gz", brain(1))
    status, out, errors = command(
        "test.py",
        "--test_dir",
        tmp_path / "test",
        "--arrays_dir",
        trained / "arrays",
        "--result_dir",
        tmp_path / "result",
        "--no-report",
    )
    assert status == 1
    assert f"{len(words)} of {len(words) + 1} volumes could not be restored" in errors[-1]
    assert len(errors) == len(words) + 1
    assert {path.name for path in (tmp_path / "result").rglob("*") if path.is_file()} == {
        ".good.json",
        "good.nii.gz",
        "metrics.csv",
    }


@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_nothing_but_bad_volumes_is_status_2(tmp_path, trained, script):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad\nname.nii").write_text("nothing")
    arrays = trained / "arrays" if script == "test.py" else tmp_path / "arrays"
    where = (
        ["--test_dir", tmp_path / "in", "--result_dir", tmp_path / "result"]
        if script == "test.py"
        else ["--train_dir", tmp_path / "in", *QUICK]
    )
    status, _, errors = command(script, *where, "--arrays_dir", arrays)
    assert status == 2
    assert "bad\\nname.nii: not a NIfTI file" in errors[0]


@pytest.mark.parametrize("script, option", [("train.py", "--train_dir"), ("test.py", "--test_dir")])
def test_a_folder_without_volumes_is_one_line(tmp_path, trained, script, option):
    (tmp_path / "notes.txt").write_text("no volume")
    for folder, word in ((tmp_path, "no .nii or .nii.gz"), (tmp_path / "none", "no such folder")):
        status, _, errors = command(script, option, folder, "--arrays_dir", trained / "arrays")
        assert status == 2 and len(errors) == 1 and word in errors[0]
