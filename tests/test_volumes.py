"""nifti/volumes.py: volumes from and to NIfTI files."""
import gzip
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import one_line, write_nifti

from disk.results import sidecar_names
from get_lar import LRVolume
from nifti.study import find_volumes
from nifti.volumes import read_series, read_volume, write_volume


def rotation(degrees, axis):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(3)
    a, b = [i for i in range(3) if i != axis]
    turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
    return turn


def placed(matrix):
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = (-12.5, 30.25, 7)
    return affine


AFFINES = {
    "identity": np.eye(4),
    "anisotropic": placed(np.diag([0.7, 0.8, 1.25])),
    "flipped": placed(np.diag([-1.0, 1.0, 1.0])),
    "oblique": placed(rotation(20, 0) @ rotation(-35, 2) @ np.diag([1.0, 1.1, 0.9])),
    "oblique and flipped": placed(rotation(15, 1) @ np.diag([-1.0, 2.0, 1.0])),
    "axes swapped": placed(np.eye(3)[[2, 0, 1]] * 1.5),
}


def test_volumes_are_found_below_a_folder_in_the_order_of_their_names(tmp_path):
    for name in ("b.nii.gz", "a.nii", "sub/c.nii.gz", "note.txt", ".hidden.nii.gz",
                 "d.nii.gz.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in find_volumes(tmp_path)[0]]
    assert names == ["a.nii", "b.nii.gz", "sub/c.nii.gz"]
    assert [path.name for path in find_volumes(tmp_path, 2)[0]] == ["a.nii", "b.nii.gz"]
    assert len(find_volumes(tmp_path, 9)[0]) == 3


def test_missing_and_empty_folders_are_refused(tmp_path):
    assert "no such folder" in one_line(find_volumes, tmp_path / "none")
    assert str(tmp_path) in one_line(find_volumes, tmp_path)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64",
                                   ">i2", ">f4"])
def test_voxels_of_any_type_are_read_as_float32(tmp_path, dtype):
    data = np.random.default_rng(40).integers(0, 100, (5, 6, 7)).astype(dtype)
    for name in ("x.nii", "x.nii.gz"):
        volume = read_volume(write_nifti(tmp_path / name, data))
        assert volume.data.dtype == np.float32
        np.testing.assert_array_equal(volume.data, data.astype(np.float32))


def test_intensity_scale_is_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    image.header.set_slope_inter(0.25, 0)
    path = tmp_path / "x.nii.gz"
    # Not by nib.save, which would undo the slope of an array in memory.
    with nib.openers.Opener(path, "wb") as file:
        image.header["vox_offset"] = 352
        file.write(image.header.binaryblock + bytes(4) + image.dataobj.tobytes(order="F"))
    np.testing.assert_allclose(read_volume(path).data, np.arange(60).reshape(3, 4, 5) / 4)


@pytest.mark.parametrize("dtype, slope, inter", [
    (np.int16, 0.01, -100), (np.int16, 0.3, -0.9), (np.int32, -0.02, 50)])
def test_a_zero_that_the_header_rounds_is_background(tmp_path, capsys, dtype, slope, inter):
    true = np.zeros((9, 9, 9))
    true[2:7, 2:7, 2:7] = slope * np.arange(1, 126).reshape(5, 5, 5) * np.sign(slope)
    image = nib.Nifti1Image(np.rint((true - inter) / slope).astype(dtype), np.eye(4))
    image.header.set_slope_inter(slope, inter)
    image.to_filename(tmp_path / "v.nii")
    assert nib.load(tmp_path / "v.nii").dataobj[0, 0, 0] != 0
    volume = read_volume(tmp_path / "v.nii")
    assert ((volume.data == 0) == (true == 0)).all() and volume.shift is None
    assert volume.data == pytest.approx(true, abs=1e-4) and not capsys.readouterr().err


def test_fourth_dimension_of_one_is_dropped_and_more_refused(tmp_path):
    data = np.random.default_rng(41).random((4, 5, 6, 1), np.float32)
    one = write_nifti(tmp_path / "one.nii.gz", data)
    two = write_nifti(tmp_path / "two.nii.gz", np.repeat(data, 2, 3))
    flat = write_nifti(tmp_path / "flat.nii.gz", data[:, :, 0, 0])
    np.testing.assert_array_equal(read_volume(one).data, data[..., 0])
    text = one_line(read_volume, two)
    assert "two.nii.gz" in text and "3 are needed" in text
    assert "3 are needed" in one_line(read_volume, flat)


def test_a_series_keeps_its_fourth_dimension_unless_that_is_one(tmp_path):
    data = np.random.default_rng(48).random((4, 5, 6, 3), np.float32)
    for name, shape in (("series", (4, 5, 6, 3)), ("five", (4, 5, 6, 3, 1)), ("one", (4, 5, 6, 1)),
                        ("volume", (4, 5, 6))):
        voxels = data.reshape(shape) if name in ("series", "five") else data[..., :1].reshape(shape)
        found = read_series(write_nifti(tmp_path / f"{name}.nii", voxels)).data
        expected = data if name in ("series", "five") else data[..., 0]
        np.testing.assert_array_equal(found, expected)
    text = one_line(read_series, write_nifti(tmp_path / "many.nii", np.ones((2, 2, 2, 2, 2), "u1")))
    assert "3 or 4 are needed" in text


def test_results_that_differ_only_in_their_ending_have_sidecars_of_their_own():
    names = sidecar_names([Path("r/a.nii"), Path("r/b.nii.gz"), Path("r/b.nii"), Path("s/b.nii")])
    assert names == [Path("r/a"), Path("r/b.nii.gz"), Path("r/b.nii"), Path("s/b")]
    odd = [Path(f"r/x{ending}") for ending in (".nii", ".nii.gz", ".nii.gz.nii", ".nii.nii")]
    assert sidecar_names(odd) == odd  # the names without endings are x, x, x.nii.gz, x.nii


def test_voxels_that_are_no_numbers_become_background(tmp_path):
    data = np.ones((4, 5, 6), np.float32)
    data[0, 0, :3] = np.nan, np.inf, -np.inf
    read = read_volume(write_nifti(tmp_path / "x.nii.gz", data)).data
    assert (read[0, 0, :3] == 0).all() and read.sum() == data.size - 3


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("fault", ["empty", "text", "cut off", "folder", "missing"])
def test_broken_files_are_refused_by_name(tmp_path, name, fault):
    path = tmp_path / name
    data = np.random.default_rng(42).random((10, 11, 12), np.float32)
    if fault == "empty":
        path.touch()
    elif fault == "text":
        path.write_text("not a volume\n" * 100)
    elif fault == "cut off":
        write_nifti(path, data)
        path.write_bytes(path.read_bytes()[:2500])
    elif fault == "folder":
        path.mkdir()
    assert name in one_line(read_volume, path)


def test_gzip_file_with_a_spoilt_byte_is_refused(tmp_path):
    """Most spoilt bytes still decompress, to other voxels: the checksum at the end tells."""
    data = np.random.default_rng(43).integers(0, 9, (20, 21, 22)).astype(np.int16)
    path = write_nifti(tmp_path / "x.nii.gz", data)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(50):
        spoilt = bytearray(whole)
        spoilt[rng.integers(200, len(whole) - 8)] ^= int(rng.integers(1, 256))
        path.write_bytes(spoilt)
        assert "x.nii.gz" in one_line(read_volume, path)


@pytest.mark.parametrize("dtype", ["complex64", [("R", "u1"), ("G", "u1"), ("B", "u1")]],
                         ids=["complex", "RGB"])
def test_voxels_that_are_not_real_numbers_are_refused(tmp_path, dtype):
    path = write_nifti(tmp_path / "x.nii.gz", np.zeros((4, 5, 6), dtype))
    assert "x.nii.gz" in one_line(read_volume, path)


@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 4), (4, 4), (0, 0)], ids=str)
@pytest.mark.parametrize("kind", AFFINES)
def test_place_in_space_is_kept(tmp_path, kind, codes):
    data = np.random.default_rng(44).random((5, 6, 7), np.float32)
    image = nib.Nifti1Image(data, AFFINES[kind])
    image.set_qform(AFFINES[kind], codes[0])
    other = AFFINES[kind].copy()
    other[:3, 3] += 3 * (codes == (1, 4))  # the two may differ, and then both are kept
    image.set_sform(other, codes[1])
    nib.save(image, tmp_path / "in.nii.gz")

    volume = read_volume(tmp_path / "in.nii.gz")
    for name in ("out.nii.gz", "out.nii"):
        write_volume(tmp_path / name, volume.data, volume.image)
        written = nib.load(tmp_path / name)
        np.testing.assert_array_equal(written.affine, volume.image.affine)
        for field in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
                      "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
                      "pixdim"):
            np.testing.assert_array_equal(written.header[field], volume.image.header[field], field)
        np.testing.assert_array_equal(written.get_fdata(), data)


def test_rest_of_the_header_is_kept_and_the_type_is_float32(tmp_path):
    data = np.random.default_rng(45).integers(0, 900, (5, 6, 7)).astype(np.int16)
    path = write_nifti(tmp_path / "in.nii.gz", data, descrip=b"T1w of somebody", xyzt_units=10,
                       intent_name=b"x", cal_max=700)
    volume = read_volume(path)
    write_volume(tmp_path / "out.nii.gz", volume.data + 0.125, volume.image)
    written = nib.load(tmp_path / "out.nii.gz")
    for field in ("descrip", "xyzt_units", "intent_name", "cal_max"):
        assert written.header[field] == volume.image.header[field]
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(written.get_fdata(), data + 0.125)


def test_header_extensions_are_kept(tmp_path):
    image = nib.Nifti1Image(np.arange(120, dtype=np.float32).reshape(4, 5, 6), np.eye(4))
    said = b"scanned on a Sunday"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", said))
    nib.save(image, tmp_path / "in.nii.gz")
    volume = read_volume(tmp_path / "in.nii.gz")
    write_volume(tmp_path / "out.nii.gz", volume.data, volume.image)
    assert nib.load(tmp_path / "out.nii.gz").header.extensions[0].get_content() == said


def test_writing_changes_nothing_of_the_image_it_is_like(tmp_path):
    data = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    volume = read_volume(write_nifti(tmp_path / "in.nii.gz", data))
    write_volume(tmp_path / "out.nii.gz", volume.data, volume.image)
    assert volume.image.get_data_dtype() == np.int16


@pytest.mark.parametrize("name", ["sub-01_T1w.nii.gz", "a.b.c.nii", "a.longer.nii", "x.nii",
                                  "v1.0.nii.gz", "X" * 120 + ".nii.gz"])
def test_result_may_have_any_name(tmp_path, name):
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4))
    write_volume(tmp_path / name, np.ones((4, 5, 6)), image)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert nib.load(tmp_path / name).get_fdata().all()
    begins = b"\x1f\x8b" if name.endswith(".gz") else (348).to_bytes(4, "little")
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_uncropping_puts_voxels_back_at_their_place_and_scale():
    cropped = np.random.default_rng(46).random((3, 4, 2), np.float32)
    box = slice(2, 5), slice(0, 4), slice(1, 3)
    pair = LRVolume(cropped, cropped, None, box, (7, 6, 5), 250.0, cropped > 0)
    volume = pair.whole(cropped)
    assert volume.shape == (7, 6, 5) and volume.dtype == np.float32
    np.testing.assert_array_equal(volume[2:5, 0:4, 1:3], cropped * np.float32(250))
    assert np.count_nonzero(volume) == np.count_nonzero(cropped)


def test_equal_voxels_give_equal_bytes_whatever_the_name_and_the_time(tmp_path):
    data = np.random.default_rng(47).random((9, 8, 7), np.float32)
    image = nib.Nifti1Image(data, np.eye(4))
    write_volume(tmp_path / "one.nii.gz", data, image)
    time.sleep(1.1)  # a gzip header tells whole seconds
    write_volume(tmp_path / "two.nii.gz", data, image)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()
    with gzip.open(tmp_path / "one.nii.gz") as file:  # and the standard library reads them
        assert len(file.read()) == 352 + data.nbytes


def test_gzip_results_are_whole(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4))
    write_volume(tmp_path / "x.nii.gz", np.ones((4, 5, 6)), image)
    with gzip.open(tmp_path / "x.nii.gz") as file:
        assert len(file.read()) == 352 + 4 * 120


@pytest.mark.parametrize("more", [(), (1,), (1, 1)], ids=str)
def test_integers_with_a_scaling_keep_it_whatever_axes_of_one_follow(tmp_path, more):
    voxels = np.random.default_rng(0).integers(0, 3000, (6, 5, 4)).astype(np.int16)
    image = nib.Nifti1Image(voxels.reshape(*voxels.shape, *more), np.eye(4))
    image.header.set_slope_inter(0.0004, 0.5)
    nib.save(image, tmp_path / "in.nii")
    volume = read_volume(tmp_path / "in.nii")
    write_volume(tmp_path / "out.nii", volume.data, volume.image, dtype="same")
    written = nib.load(tmp_path / "out.nii")
    assert written.shape == (6, 5, 4) and written.get_data_dtype() == np.int16
    assert (written.dataobj.slope, written.dataobj.inter) == pytest.approx((0.0004, 0.5))
    np.testing.assert_array_equal(np.asarray(written.dataobj.get_unscaled()), voxels)


def test_a_long_name_with_a_dot_early_in_it_is_written(tmp_path):
    like = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4))
    path = tmp_path / f"a.{220 * 'b'}.nii"
    write_volume(path, np.ones((4, 4, 4), np.float32), like)
    assert nib.load(path).get_fdata().min() == 1


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32, np.uint8])
def test_values_beyond_the_largest_integer_are_written_as_the_largest(tmp_path, dtype):
    image = nib.Nifti1Image(np.ones((3, 4, 5), dtype), np.eye(4), dtype=dtype)
    write_volume(tmp_path / "v.nii", np.full((3, 4, 5), 2.0**64, np.float32), image, None, "same")
    stored = np.asanyarray(nib.load(tmp_path / "v.nii").dataobj)
    assert stored.dtype == dtype
    assert stored.min() >= np.iinfo(dtype).max * (1 - 2**-52)


@pytest.mark.parametrize("background, said", [(50, True), (0, False)])
def test_a_background_that_is_not_zero_is_said(tmp_path, capsys, background, said):
    volume = np.full((12, 12, 12), background, np.float32)
    volume[3:9, 3:9, 3:9] = np.random.default_rng(0).uniform(100, 200, (6, 6, 6))
    read_volume(write_nifti(tmp_path / "v.nii", volume))
    assert ("its background seems to be 50, not 0" in capsys.readouterr().err) == said
