"""util.py: what touches disk, and the figures."""
import csv
import gzip
import json
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import naive
import nibabel as nib
import numpy as np
import pytest
from conftest import write_nifti
from synthetic import filter_paths

from filter_constant import Settings, UserError
from hashtable import Boundaries
from matrix_compute import Filters
from util import (
    brain_mask,
    figures,
    find_volumes,
    load_filters,
    metrics_row,
    read_volume,
    save_filters,
    uncrop,
    whole_file,
    write_metrics,
    write_volume,
    write_whole,
)

SMALL = Settings(filter_len=3, grad_len=3, q_angle_p=2, q_angle_t=2)


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


def one_line(function, *arguments):
    with pytest.raises(UserError) as fault:
        function(*arguments)
    text = str(fault.value)
    assert len(text.splitlines()) == 1
    return text


# ---- volumes

def test_volumes_are_found_below_a_folder_in_the_order_of_their_names(tmp_path):
    for name in ("b.nii.gz", "a.nii", "sub/c.nii.gz", "note.txt", ".hidden.nii.gz", "d.nii.gz.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_volumes(tmp_path)] == ["a.nii", "b.nii.gz", "sub/c.nii.gz"]
    assert [path.name for path in find_volumes(tmp_path, 2)] == ["a.nii", "b.nii.gz"]
    assert len(find_volumes(tmp_path, 9)) == 3


def test_missing_and_empty_folders_are_refused(tmp_path):
    assert "no such folder" in one_line(find_volumes, tmp_path / "none")
    assert str(tmp_path) in one_line(find_volumes, tmp_path)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", ">i2", ">f4"])
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
    with nib.openers.Opener(path, "wb") as file:  # nib.save would undo the slope of an array in memory
        image.header["vox_offset"] = 352
        file.write(image.header.binaryblock + bytes(4) + image.dataobj.tobytes(order="F"))
    np.testing.assert_allclose(read_volume(path).data, np.arange(60).reshape(3, 4, 5) / 4)


def test_fourth_dimension_of_one_is_dropped_and_more_refused(tmp_path):
    data = np.random.default_rng(41).random((4, 5, 6, 1), np.float32)
    np.testing.assert_array_equal(read_volume(write_nifti(tmp_path / "one.nii.gz", data)).data, data[..., 0])
    text = one_line(read_volume, write_nifti(tmp_path / "two.nii.gz", np.repeat(data, 2, 3)))
    assert "two.nii.gz" in text and "3 are needed" in text
    assert "3 are needed" in one_line(read_volume, write_nifti(tmp_path / "flat.nii.gz", data[:, :, 0, 0]))


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
    """Most spoilt bytes still decompress, to other voxels: the check sum at the end of the file tells."""
    path = write_nifti(tmp_path / "x.nii.gz", np.random.default_rng(43).integers(0, 9, (20, 21, 22)).astype(np.int16))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(50):
        spoilt = bytearray(whole)
        spoilt[rng.integers(200, len(whole) - 8)] ^= int(rng.integers(1, 256))
        path.write_bytes(spoilt)
        assert "x.nii.gz" in one_line(read_volume, path)


@pytest.mark.parametrize("dtype", ["complex64", [("R", "u1"), ("G", "u1"), ("B", "u1")]], ids=["complex", "RGB"])
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
        for field in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
                      "srow_x", "srow_y", "srow_z", "pixdim"):
            np.testing.assert_array_equal(written.header[field], volume.image.header[field], field)
        np.testing.assert_array_equal(written.get_fdata(), data)


def test_rest_of_the_header_is_kept_and_the_type_is_float32(tmp_path):
    data = np.random.default_rng(45).integers(0, 900, (5, 6, 7)).astype(np.int16)
    path = write_nifti(tmp_path / "in.nii.gz", data, descrip=b"T1w of somebody", xyzt_units=10, intent_name=b"x", cal_max=700)
    volume = read_volume(path)
    write_volume(tmp_path / "out.nii.gz", volume.data + 0.125, volume.image)
    written = nib.load(tmp_path / "out.nii.gz")
    for field in ("descrip", "xyzt_units", "intent_name", "cal_max"):
        assert written.header[field] == volume.image.header[field]
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(written.get_fdata(), data + 0.125)


def test_header_extensions_are_kept(tmp_path):
    image = nib.Nifti1Image(np.arange(120, dtype=np.float32).reshape(4, 5, 6), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"scanned on a Sunday"))
    nib.save(image, tmp_path / "in.nii.gz")
    volume = read_volume(tmp_path / "in.nii.gz")
    write_volume(tmp_path / "out.nii.gz", volume.data, volume.image)
    assert nib.load(tmp_path / "out.nii.gz").header.extensions[0].get_content() == b"scanned on a Sunday"


def test_writing_changes_nothing_of_the_image_it_is_like(tmp_path):
    volume = read_volume(write_nifti(tmp_path / "in.nii.gz", np.arange(120, dtype=np.int16).reshape(4, 5, 6)))
    write_volume(tmp_path / "out.nii.gz", volume.data, volume.image)
    assert volume.image.get_data_dtype() == np.int16


@pytest.mark.parametrize("name", ["sub-01_T1w.nii.gz", "a.b.c.nii", "a.longer.nii", "x.nii", "v1.0.nii.gz",
                                  "X" * 120 + ".nii.gz"])
def test_result_may_have_any_name(tmp_path, name):
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4))
    write_volume(tmp_path / name, np.ones((4, 5, 6)), image)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert nib.load(tmp_path / name).get_fdata().all()
    assert (tmp_path / name).read_bytes()[:2] == (b"\x1f\x8b" if name.endswith(".gz") else (348).to_bytes(4, "little")[:2])


def test_uncropping_puts_voxels_back_at_their_place_and_scale():
    pair = SimpleNamespace(box=(slice(2, 5), slice(0, 4), slice(1, 3)), scale=250.0)
    cropped = np.random.default_rng(46).random((3, 4, 2), np.float32)
    volume = uncrop(cropped, pair, (7, 6, 5))
    assert volume.shape == (7, 6, 5) and volume.dtype == np.float32
    np.testing.assert_array_equal(volume[2:5, 0:4, 1:3], cropped * np.float32(250))
    assert np.count_nonzero(volume) == np.count_nonzero(cropped)


@pytest.mark.skipif(os.name == "nt", reason="no file modes of this kind on Windows")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_results_may_be_read_by_whom_the_user_lets_read_files(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_volume(tmp_path / "x.nii.gz", np.ones((4, 5, 6)), nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)))
        write_whole(tmp_path / "report.html", "text")
        write_metrics(tmp_path / "metrics.csv", [{"volume": "x.nii.gz"}])
        save_filters(Filters(np.zeros((SMALL.buckets, SMALL.taps), np.float32), Boundaries(np.zeros(2), np.zeros(2))),
                     replace(SMALL, arrays_dir=str(tmp_path)), [])
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) == 7 and set(modes.values()) == {0o666 & ~mask}


def test_nothing_half_written_is_left(tmp_path):
    path = tmp_path / "x.npy"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        Path(temporary).write_text("half")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"] and path.read_text() == "before"


# ---- filters

@pytest.fixture
def saved(tmp_path):
    """Filters on disk, and the settings that find them."""
    settings = replace(SMALL, arrays_dir=str(tmp_path / "arrays"))
    rng = np.random.default_rng(47)
    h = rng.standard_normal((settings.buckets, settings.taps)).astype(np.float32)
    boundaries = Boundaries(np.array([0.001, 0.02]), np.array([0.25, 0.5]))
    save_filters(Filters(h, boundaries), settings, ["a.nii.gz", "sub/b.nii.gz"])
    return SimpleNamespace(h=h, boundaries=boundaries, settings=settings, paths=filter_paths(settings))


def test_filters_lie_under_their_published_names(saved):
    assert [path.name for path in saved.paths] == ["h_2.npy", "Qfactor_str2", "Qfactor_coh2", "settings_2.json"]
    assert sorted(path.name for path in saved.paths[0].parent.iterdir()) == sorted(path.name for path in saved.paths)
    for path in saved.paths[:3]:
        np.load(path, allow_pickle=False)
    about = json.loads(saved.paths[3].read_text())
    assert about["volumes"] == ["a.nii.gz", "sub/b.nii.gz"]


def test_filters_of_several_factors_lie_side_by_side(saved):
    other = replace(saved.settings, factor=(1, 1, 4))
    save_filters(Filters(saved.h, saved.boundaries), other, [])
    assert filter_paths(other)[0].name == "h_1x1x4.npy"
    assert load_filters(other, {"factor"})[1].factor == (1, 1, 4) and load_filters(saved.settings, set())[1].factor == (2, 2, 2)


def test_filters_come_back_as_they_were_saved_with_their_settings(saved):
    learned = replace(saved.settings, sharpen=True, seed=3, solver="cg", lr_type="kspace")
    save_filters(Filters(saved.h, saved.boundaries), learned, [])
    plain = Settings(arrays_dir=saved.settings.arrays_dir, test_dir="elsewhere", blend_threshold=7)
    (h, boundaries), settings = load_filters(plain, set())
    np.testing.assert_array_equal(h, saved.h)
    for read, written in zip(boundaries, saved.boundaries):
        np.testing.assert_array_equal(read, written)
    assert settings == replace(learned, test_dir="elsewhere", blend_threshold=7)


@pytest.mark.parametrize("change", [dict(filter_len=5), dict(grad_len=5), dict(q_angle_p=3), dict(q_angle_t=3),
                                    dict(feature_type="trace_fa"), dict(lr_type="kspace")], ids=str)
def test_filters_learned_with_other_settings_are_refused(saved, change):
    name, value = next(iter(change.items()))
    text = one_line(load_filters, replace(saved.settings, **change), {name})
    assert f"--{name}" in text and str(value) in text and str(getattr(SMALL, name)) in text and "settings_2.json" in text


def test_equal_settings_may_be_given(saved):
    load_filters(saved.settings, {"filter_len", "grad_len", "q_angle_p", "q_angle_t", "feature_type", "lr_type", "factor"})


def test_filters_of_another_factor_are_pointed_at(saved):
    text = one_line(load_filters, replace(saved.settings, factor=(3, 3, 3)), {"factor"})
    assert "settings_3.json" in text and "--factor 2" in text


@pytest.mark.parametrize("number", range(4))
def test_missing_file_is_named(saved, number):
    saved.paths[number].unlink()
    assert saved.paths[number].name in one_line(load_filters, saved.settings, set())


class Burglar:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("wrapped", [False, True], ids=["pickle", "npy of objects"])
def test_pickles_are_refused_and_their_code_is_not_run(saved, tmp_path, number, wrapped):
    if wrapped:
        np.save(tmp_path / "x.npy", np.array([Burglar(tmp_path / "loot")], object), allow_pickle=True)
        saved.paths[number].write_bytes((tmp_path / "x.npy").read_bytes())
    else:
        saved.paths[number].write_bytes(pickle.dumps(Burglar(tmp_path / "loot")))
    assert saved.paths[number].name in one_line(load_filters, saved.settings, set())
    assert not (tmp_path / "loot").exists()


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("fault", ["cut off", "empty", "shape", "dtype", "nan", "text"])
def test_spoilt_filter_files_are_refused_by_name(saved, number, fault):
    path = saved.paths[number]
    array = np.load(path)
    if fault == "cut off":
        path.write_bytes(path.read_bytes()[:-4])
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "text":
        path.write_text("hello")
    else:
        spoilt = {"shape": array[:-1], "dtype": array.astype(np.int32), "nan": array.copy()}[fault]
        if fault == "nan":
            spoilt.flat[-1] = np.nan
        with open(path, "wb") as file:
            np.save(file, spoilt)
    assert path.name in one_line(load_filters, saved.settings, set())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"settings": {}}', '{"settings": {"factor": [2, 2, 2], "nonsense": 1}}',
                                  '{"settings": {"factor": 2}}', "null"])
def test_spoilt_settings_are_refused_by_name(saved, text):
    saved.paths[3].write_text(text)
    assert "settings_2.json" in one_line(load_filters, saved.settings, set())


# ---- figures

def test_figures_of_the_box_are_the_released_codes(golden):
    for number, estimate in enumerate((golden.lr, golden.sr)):
        found = figures(golden.hr, estimate, golden.hr != 0)
        # 1e-3 dB and 1e-4: means in float32 or float64
        assert found["psnr_box"] == pytest.approx(golden.psnr[number], abs=1e-3)
        assert found["ssim_box"] == pytest.approx(golden.ssim[number], abs=1e-4)


def test_figures_of_the_brain_are_over_its_mask():
    rng = np.random.default_rng(48)
    hr, estimate = rng.random((12, 13, 14), np.float32), rng.random((12, 13, 14), np.float32)
    mask = rng.random(hr.shape) > 0.5
    found = figures(hr, estimate, mask)
    assert found["psnr"] == pytest.approx(naive.psnr(hr[mask], estimate[mask]), abs=1e-5)
    assert found["psnr_box"] == pytest.approx(naive.psnr(hr, estimate), abs=1e-5)
    whole = figures(hr, estimate, np.ones(hr.shape, bool))
    assert whole["psnr"] == pytest.approx(whole["psnr_box"])


def test_equal_volumes_have_an_infinite_psnr_and_an_ssim_of_one():
    hr = np.random.default_rng(49).random((9, 9, 9), np.float32)
    found = figures(hr, hr, hr > 0.5)
    assert found["psnr"] == found["psnr_box"] == np.inf
    assert found["ssim"] == pytest.approx(1) and found["ssim_box"] == pytest.approx(1)


def test_ssim_in_parts_is_that_of_the_whole():
    from skimage.metrics import structural_similarity
    random = np.random.default_rng(8)
    for planes in (7, 48, 49, 52, 101):
        hr = random.random((planes, 11, 12)).astype(np.float32)
        estimate = np.clip(hr + random.normal(0, 0.1, hr.shape), 0, 1).astype(np.float32)
        mean, similarity = structural_similarity(hr, estimate, data_range=1.0, full=True)
        found = figures(hr, estimate, hr > 0.5)
        assert found["ssim"] == pytest.approx(similarity[hr > 0.5].mean(dtype=np.float64), abs=1e-6)
        assert found["ssim_box"] == pytest.approx(mean, abs=1e-6)


def test_brain_mask_holds_what_is_not_black_five_voxels_from_the_faces_of_the_volume():
    hr = np.ones((12, 13, 14), np.float32)
    hr[6, 6, 6] = 0
    pair = SimpleNamespace(hr=hr, box=(slice(2, 14), slice(0, 13), slice(0, 14)), shape=(16, 13, 30))
    mask = brain_mask(pair)
    assert mask.sum() == 6 * 3 * 9 - 1  # 3 to 8 along the first axis, 5 to 7, 5 to 13
    assert mask[3, 5, 5] and mask[8, 7, 13] and not mask[2, 5, 5] and not mask[9, 5, 5] and not mask[6, 6, 6]
    tiny = SimpleNamespace(hr=hr[:8, :8, :8], box=(slice(0, 8),) * 3, shape=(8, 8, 8))
    assert brain_mask(tiny).sum() == 8**3 - 1


def test_metrics_are_written_as_csv_with_one_row_a_volume(tmp_path):
    values = {image: {"psnr": psnr, "ssim": 0.9, "psnr_box": psnr + 4, "ssim_box": 0.95}
              for image, psnr in (("lr", 25.0), ("spline5", 28.123456789), ("sr", 30.0))}
    write_metrics(tmp_path / "metrics.csv", [metrics_row(name, 1000, values) for name in ("a.nii.gz", "b, c.nii.gz")])
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["volume"] for row in rows] == ["a.nii.gz", "b, c.nii.gz"]
    assert rows[0]["spline5_psnr"] == "28.12346"
    assert float(rows[0]["gain_over_spline"]) == pytest.approx(30 - 28.123456789, abs=1e-5)
    assert all(all(row.values()) for row in rows)


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
    write_volume(tmp_path / "x.nii.gz", np.ones((4, 5, 6)), nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)))
    with gzip.open(tmp_path / "x.nii.gz") as file:
        assert len(file.read()) == 352 + 4 * 120
