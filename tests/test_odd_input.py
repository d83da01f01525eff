"""Good volumes, if odd: types, values, names, folders and affines of all kinds."""

import csv
import gzip
import struct
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from synthetic import brain, command, save

from machine.errors import UserError
from machine.memory import GB
from nifti.checks import checked_image
from nifti.study import find_volumes
from nifti.volumes import read_volume, relative_name

pytestmark = pytest.mark.usefixtures("drawn")


def integers():
    # Whole numbers from 0 to 250: every type holds them.
    return np.rint(brain() / 4).astype(np.float32)


def scaled(path):
    save(path, integers().astype(np.int16))
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<ff", 0.37, -3)
    path.write_bytes(content)
    return integers().astype(np.float64) * np.float64(np.float32(0.37)) - 3


def big_endian(path, dtype):
    image = nib.Nifti1Image(integers().astype(dtype), np.eye(4), nib.Nifti1Header(endianness=">"))
    image.header.set_data_dtype(np.dtype(dtype).newbyteorder(">"))
    nib.save(image, path)
    assert path.read_bytes()[:4] == struct.pack(">i", 348)
    return integers()


@pytest.mark.parametrize(
    "make",
    [
        *(
            lambda path, dtype=dtype: (save(path, integers().astype(dtype)), integers())[1]
            for dtype in ("u1", "i2", "u2", "i4", "u4", "f4", "f8")
        ),
        *(lambda path, dtype=dtype: big_endian(path, dtype) for dtype in ("i2", "f4", "f8")),
        lambda path: (nib.save(nib.Nifti2Image(integers(), np.eye(4)), path), integers())[1],
        lambda path: (save(path, integers()[..., None]), integers())[1],
        lambda path: (save(path, integers()[..., None, None]), integers())[1],
        scaled,
    ],
)
def test_the_type_that_values_are_stored_in_does_not_matter(tmp_path, make):
    expected = make(tmp_path / "v.nii").astype(np.float32)
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress((tmp_path / "v.nii").read_bytes(), 1))
    for name in ("v.nii", "v.nii.gz"):
        volume = read_volume(tmp_path / name)
        assert volume.data.dtype == np.float32
        if volume.shift:  # many are below zero
            np.testing.assert_allclose(volume.data + volume.shift.low, expected, atol=1e-5)
        else:
            np.testing.assert_array_equal(volume.data, expected)
        assert volume.image.ndim == 3


def test_odd_values_are_background_and_said_so(tmp_path, capsys):
    data = brain()
    data[15, 14, 10:14] = 3e38, -np.inf, np.inf, np.nan
    data[0, 0, 0] = -5
    found = read_volume(save(tmp_path / "v.nii", data)).data
    out = capsys.readouterr().err.splitlines()
    assert (found[15, 14, 10:14] == 0).all() and found[0, 0, 0] == -5
    assert len(out) == 2
    assert "not-a-number" in out[0]
    assert "below zero (down to -5)" in out[1]
    assert "clipped" in out[1]


def test_a_whole_volume_is_refused_where_the_work_on_it_does_not_fit(tmp_path, monkeypatch):
    path = save(tmp_path / "v.nii", brain(shape=(30, 28, 26)))
    needed = path.stat().st_size + 30 * 28 * 26 * 100
    monkeypatch.setattr("nifti.checks.free_memory", lambda: needed)
    assert checked_image(path, voxel_bytes=100)[1] == (30, 28, 26)
    monkeypatch.setattr("nifti.checks.free_memory", lambda: needed - 1)
    with pytest.raises(UserError, match="v.nii: its shape .* GB of memory, .* are free; crop it"):
        checked_image(path, voxel_bytes=100)
    monkeypatch.setattr("nifti.checks.free_memory", lambda: 3 * GB)
    with pytest.raises(UserError, match="needs 43.7 GB of memory, 3.0 GB are free"):
        checked_image(path, voxel_bytes=2 * GB / 1000)


def odd_extension(content):
    """A volume's bytes with a header extension of 24 bytes, where a multiple of 16 is due."""
    content[108:112] = struct.pack("<f", 352 + 24)
    content[348:352] = b"\1\0\0\0"
    return content[:352] + struct.pack("<ii", 24, 6) + bytes(16) + content[352:]


def with_bytes(place, value):
    """What writes these bytes over a volume's."""
    return lambda content: content[:place] + value + content[place + len(value):]


SIGNALLING = bytes.fromhex("0100a07f")  # a float32 that is no number, and says so when it is read
ODD_BYTES = {
    "extension": (odd_extension, ""),
    "quaternion": (with_bytes(256, SIGNALLING), "its qform holds values that are no numbers"),
    "voxel": (with_bytes(352 + 4 * 9000, SIGNALLING), "taken as background"),
    "infinite voxel": (with_bytes(352 + 4 * 9000, struct.pack("<f", np.inf)), "as background"),
}


@pytest.mark.parametrize("what", ODD_BYTES)
def test_no_warning_of_a_library_stands_beside_what_is_said(tmp_path, what):
    change, message = ODD_BYTES[what]
    image = nib.Nifti1Image(brain(), np.eye(4))
    image.set_qform(np.eye(4), 1)
    nib.save(image, tmp_path / "v.nii")
    path = tmp_path / "odd.nii"
    path.write_bytes(change(bytearray((tmp_path / "v.nii").read_bytes())))
    status, _, errors = command("test.py", "--upscale", "--no-report", "--test_dir", path,
                                "--output", tmp_path / "o.nii")
    assert status == 0 and len(errors) == bool(message)
    assert message in "".join(errors)


AFFINES = {
    "oblique": nib.affines.from_matvec(
        nib.eulerangles.euler2mat(0.3, 0.2, 0.1) @ np.diag([0.7, 0.8, 0.9]), [9, -8, 7]
    ),
    "flipped": np.diag([-1, -1, 1, 1.0]),
    "swapped": np.array([[0, 1, 0, 4], [0, 0, 1, 5], [1, 0, 0, 6], [0, 0, 0, 1.0]]),
}


def test_names_folders_and_affines_are_kept(tmp_path, trained):
    folder = tmp_path / "in"
    made = {}
    for name, affine in AFFINES.items():
        made[f"{name}/scan of Zoë 脳.nii.gz"] = affine
    for name in ("one/v.nii.gz", "two/v.nii.gz", "two/v.nii", "w.nii.gz"):
        made[name] = np.eye(4)
    for number, (name, affine) in enumerate(made.items()):
        save(folder / name, brain(number), affine)
    if sys.platform != "win32":
        (folder / "one" / "loop").symlink_to(folder, target_is_directory=True)
    status, _, errors = command(
        "test.py",
        "--test_dir",
        folder,
        "--arrays_dir",
        trained / "arrays",
        "--result_dir",
        tmp_path / "out",
    )
    assert (status, errors) == (0, [])
    (there,) = (tmp_path / "out").iterdir()
    beside = {name.removesuffix(".gz").removesuffix(".nii") for name in made} - {"two/v"} | {
        "two/v.nii",
        "two/v.nii.gz",
    }
    assert {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()} == {
        *made,
        "metrics.csv",
        "report.html",
        *(f"{name}.{kind}" for name in beside for kind in ("png", "json")),
    }
    with open(there / "metrics.csv", newline="", encoding="utf-8") as file:
        assert [row["volume"] for row in csv.DictReader(file)] == sorted(
            made, key=lambda name: folder / name
        )
    for name, affine in made.items():
        np.testing.assert_allclose(nib.load(there / name).affine, affine, atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_links_to_folders_are_followed_once(tmp_path):
    if sys.platform == "win32":
        pytest.skip("making links needs privileges on Windows")
    save(tmp_path / "data" / "v.nii", brain())
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "linked").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "back").symlink_to(tmp_path / "train")
    found, _ = find_volumes(tmp_path / "train")
    assert [relative_name(path, tmp_path / "train") for path in found] == ["linked/v.nii"]


def test_a_result_never_overwrites_its_input(tmp_path, trained):
    save(tmp_path / "v.nii.gz", brain())
    # Seconds: the hour names the folder, and may end while the command runs.
    for later in (0, 3600):
        save(
            tmp_path / time.strftime("%m%d%H", time.localtime(time.time() + later)) / "v.nii.gz",
            brain(1),
        )
    (tmp_path / "other").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    filters = ["--arrays_dir", trained / "arrays", "--no-report"]
    itself = tmp_path / "other" / ".." / "v.nii.gz"
    status, _, errors = command(
        "test.py", "--test_dir", tmp_path / "v.nii.gz", "--output", itself, *filters
    )
    assert status == 2 and len(errors) == 1 and "would overwrite it" in errors[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")} == before
    status, *_ = command("test.py", "--test_dir", tmp_path, "--result_dir", tmp_path, *filters)
    assert status == 0
    after = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    assert len(after) == 2 * len(before)
    assert {path: after[path] for path in before} == before


def test_a_result_never_overwrites_the_mask_that_is_read(tmp_path):
    save(tmp_path / "v.nii.gz", brain())
    mask = save(tmp_path / "v_mask.nii.gz", (brain() > 0).astype(np.uint8))
    before = mask.read_bytes()
    status, _, errors = command(
        "test.py", "--upscale", "--mask", "auto", "--no-report", "--test_dir",
        tmp_path / "v.nii.gz", "--output", mask)
    assert status == 2 and len(errors) == 1 and "v_mask.nii.gz: a result would" in errors[0]
    assert mask.read_bytes() == before


def test_checked_image_reads_no_voxels(tmp_path):
    image, shape = checked_image(
        save(tmp_path / "v.nii.gz", np.stack([brain()] * 2, -1)), dimensions=(3, 4)
    )
    assert shape == (30, 28, 26, 2) and image.in_memory is False
