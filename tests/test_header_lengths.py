"""Whatever lengths a header claims, reading it takes little: it is refused in one line, or read."""
import gzip
import struct
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import one_line
from synthetic import brain

from nifti.checks import EXTENSIONS_MAX, checked_image
from nifti.labels import is_label_map
from nifti.volumes import read_volume, write_volume

SHAPE = (8, 7, 6)
KINDS = [(nib.Nifti1Image, "<"), (nib.Nifti1Image, ">"), (nib.Nifti2Image, "<"),
         (nib.Nifti2Image, ">")]
MEMORY = 8 << 20  # bytes: far more than is needed, far less than what the files could be made into


def volume(path, extensions=b"", offset=None, kind=nib.Nifti1Image, order="<", behind=b"",
           **fields):
    """Write a volume with these bytes between header and voxels, and others behind."""
    header = kind.header_class(endianness=order)
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.dtype(np.float32).newbyteorder(order))
    header.set_sform(np.eye(4), 1)
    size = header.template_dtype.itemsize
    header["magic"] = header.single_magic
    header["vox_offset"] = size + 4 + len(extensions) if offset is None else offset
    for name, value in fields.items():
        header[name] = value
    voxels = brain(0, SHAPE).astype(f"{order}f4").tobytes(order="F")
    content = header.binaryblock + b"\1\0\0\0" + extensions + voxels + behind
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def memory_of(function, *arguments):
    """What a call allocates at most, in bytes."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind, order", KINDS)
@pytest.mark.parametrize("length", [7, 0, -1, -(2**31), 2**31 - 1, 65])
def test_an_extension_that_claims_what_is_not_there_is_refused(tmp_path, kind, order, length):
    extension = struct.pack(f"{order}ii", length, 6) + bytes(56)
    path = volume(tmp_path / "v.nii.gz", extension, kind=kind, order=order, behind=bytes(1 << 25))

    def refused():
        said = one_line(checked_image, path)
        assert f"v.nii.gz: header extension 1 claims {length:,} bytes, of 64 before" in said

    assert memory_of(refused) < MEMORY


def test_too_many_extensions_are_refused(tmp_path):
    each = struct.pack("<ii", 8, 6)
    path = volume(tmp_path / "v.nii", each * (EXTENSIONS_MAX + 2))
    assert "more than 1,000 header extensions; save it without" in one_line(checked_image, path)


@pytest.mark.parametrize("kind, order", KINDS)
@pytest.mark.parametrize("offset", [0, 44, -1])
def test_voxels_that_would_begin_within_the_header_are_refused(tmp_path, kind, order, offset):
    path = volume(tmp_path / "v.nii", offset=offset, kind=kind, order=order, behind=bytes(1 << 12))
    first = kind.header_class.single_vox_offset
    assert (f"v.nii: its header puts the voxels at byte {offset}, and they can begin at byte "
            f"{first} to ") in one_line(checked_image, path)


def test_where_voxels_begin_before_the_extensions_none_is_read(tmp_path):
    path = volume(tmp_path / "v.nii.gz", offset=352, behind=bytes(1 << 25))
    found = []
    assert memory_of(lambda: found.append(checked_image(path)[0])) < MEMORY
    assert not found[0].header.extensions


@pytest.mark.parametrize("kind, order", KINDS)
def test_good_extensions_come_with_the_volume_and_its_result(tmp_path, kind, order):
    parts = [(2, b"of DICOM"), (6, b"a comment of 24 bytes..."), (9999, b"of no known kind")]
    extensions = b"".join(struct.pack(f"{order}ii", 8 + -(-len(text) // 8) * 8, code)
                          + text.ljust(-(-len(text) // 8) * 8, b"\0") for code, text in parts)
    read = read_volume(volume(tmp_path / "v.nii.gz", extensions, kind=kind, order=order))
    np.testing.assert_array_equal(read.data, brain(0, SHAPE))
    write_volume(tmp_path / "out.nii", read.data, read.image)
    for header in (read.image.header, nib.load(tmp_path / "out.nii").header):
        assert [(int(part.get_code()), part.get_content()) for part in header.extensions] == parts


@pytest.mark.parametrize("bytes_left, padding", [(15, True), (16, False)])
def test_fewer_bytes_than_an_extension_has_are_padding(tmp_path, bytes_left, padding):
    path = volume(tmp_path / "v.nii", b"\7" * bytes_left)
    if padding:
        np.testing.assert_array_equal(read_volume(path).data, brain(0, SHAPE))
    else:
        assert "v.nii: header extension 1 claims" in one_line(checked_image, path)


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_some_bytes_behind_the_voxels_do_no_harm_and_many_are_refused(tmp_path, ending):
    path = volume(tmp_path / f"v.{ending}", behind=bytes(1 << 20))
    np.testing.assert_array_equal(read_volume(path).data, brain(0, SHAPE))
    volume(path, behind=bytes((1 << 24) + 1))
    assert "has more than 16,777,216 bytes after its voxels" in one_line(read_volume, path)


@pytest.mark.parametrize("field, value", [
    ("dim", [3, 2**62, 2**62, 2**62, 1, 1, 1, 1]), ("dim", [2**62, *SHAPE, 1, 1, 1, 1]),
    ("dim", [3, -(2**63), *SHAPE[1:], 1, 1, 1, 1]), ("dim", [7, *SHAPE, 2**40, 2, 2, 2]),
    ("vox_offset", 2**63 - 1), ("vox_offset", -(2**63)), ("vox_offset", 64 << 20)])
def test_sizes_of_64_bits_are_refused(tmp_path, field, value):
    path = volume(tmp_path / "v.nii.gz", kind=nib.Nifti2Image, **{field: value})

    def refused():
        assert one_line(checked_image, path, (3, 4)).startswith(f"{path}: ")

    assert memory_of(refused) < MEMORY


@pytest.mark.parametrize("flag", [8, 16])
def test_a_gzip_header_with_an_endless_name_or_comment_is_refused(tmp_path, flag):
    path = Path(tmp_path, "v.nii.gz")
    path.write_bytes(b"\x1f\x8b\x08" + bytes([flag]) + bytes(6) + b"a" * (1 << 22))
    assert "v.nii.gz: not a readable NIfTI volume" in one_line(checked_image, path)
    assert not is_label_map(path)
