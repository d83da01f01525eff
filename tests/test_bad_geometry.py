"""Headers that say wrongly where their voxels lie: a good part of them is taken, or the file named.

What fine volumes say of space is in test_geometry.py.
"""
import nibabel as nib
import numpy as np
import pytest
from conftest import run_command
from synthetic import brain, command, save

from machine.errors import UserError
from nifti.geometry import FLATTEST, OFFSETS, QUATERNION, ROWS, mend_geometry
from nifti.volumes import read_series, read_volume

pytestmark = pytest.mark.usefixtures("drawn")

AFFINE = np.array([[-0.8, 0, 0, 20], [0, 0, 1.1, -30], [0, 0.9, 0, 5], [0, 0, 0, 1.0]])
NAN = np.nan
# What is wrong: fields of the header, and whether that spoils the sform, the qform, neither.
SPOILT = {
    "quaternion longer than 1": ({"quatern_b": 1.2}, "qform"),
    "quaternion longer than rounding makes it": (
        {"quatern_b": 1.001, "quatern_c": 0, "quatern_d": 0}, "qform"),
    "quaternion is no number": ({"quatern_c": NAN}, "qform"),
    "quaternion infinite": ({"quatern_d": np.inf}, "qform"),
    "offset is no number": ({"qoffset_y": NAN}, "qform"),
    "offset far away": ({"qoffset_z": 1e30}, "qform"),
    "voxel size 0": ({"pixdim": [1, 0.8, 0, 1.1, 0, 0, 0, 0]}, "qform"),
    "voxel size no number": ({"pixdim": [1, 0.8, 0.9, NAN, 0, 0, 0, 0]}, "qform"),
    "voxel size enormous": ({"pixdim": [1, 1e7, 0.9, 1.1, 0, 0, 0, 0]}, "qform"),
    "voxel size infinite": ({"pixdim": [1, np.inf, 0.9, 1, 0, 0, 0, 0]}, "qform"),
    "sform is no number": ({"srow_x": [NAN, 0, 0, 1]}, "sform"),
    "sform infinite": ({"srow_y": [0, np.inf, 0, 1]}, "sform"),
    "sform all zero": ({name: np.zeros(4) for name in ("srow_x", "srow_y", "srow_z")}, "sform"),
    "sform singular": ({"srow_x": [1, 1, 0, 0], "srow_y": [1, 1, 0, 0]}, "sform"),
    "sform nearly flat": ({"srow_x": [1, 1, 0, 0], "srow_y": [1, 1.0001, 0, 0],
                           "srow_z": [0, 0, 1, 0]}, "sform"),
    "sform enormous": ({"srow_z": [0, 0, 1e20, 0]}, "sform"),
}


def written(path, fields, sform=1, qform=1, data=None):
    """A volume with these fields of its header, as they are."""
    image = nib.Nifti1Image(brain(0, (18, 17, 16)) if data is None else data, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    content = path.read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    header["sform_code"], header["qform_code"] = sform, qform
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])
    return path


@pytest.mark.parametrize("fault", SPOILT)
def test_the_good_one_of_sform_and_qform_is_taken_and_said(tmp_path, fault, capsys):
    fields, spoilt = SPOILT[fault]
    image = read_volume(written(tmp_path / "v.nii", fields)).image
    message, = capsys.readouterr().err.splitlines()
    good = "qform" if spoilt == "sform" else "sform"
    assert "v.nii" in message and spoilt in message and f"its {good} is used" in message
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    np.testing.assert_allclose(image.header.get_zooms(), (0.8, 0.9, 1.1), rtol=1e-5)
    rest = ROWS if spoilt == "sform" else (*QUATERNION, *OFFSETS)
    assert not any(image.header[name].any() for name in rest)  # nor does a result say it
    assert int(image.header[f"{spoilt}_code"]) == 0 and int(image.header[f"{good}_code"]) == 1


@pytest.mark.parametrize("fault", SPOILT)
def test_where_none_is_good_the_volume_is_refused_by_name(tmp_path, fault):
    fields, spoilt = SPOILT[fault]
    path = written(tmp_path / "v.nii", fields, **{"sform": 0, "qform": 0, spoilt: 1})
    with pytest.raises(UserError, match=f"v.nii: its {spoilt} .*; give it a good sform or qform"):
        read_volume(path)


def test_voxel_sizes_alone_must_be_above_zero(tmp_path):
    assert read_volume(written(tmp_path / "v.nii", {}, 0, 0)).image.shape == (18, 17, 16)
    for size in (0, NAN, np.inf):
        path = written(tmp_path / "v.nii", {"pixdim": [1, size, 1, 1, 0, 0, 0, 0]}, 0, 0)
        with pytest.raises(UserError, match="voxel sizes are not above zero"):
            read_volume(path)


def test_a_quaternion_that_nibabel_reads_is_left_as_it_is():
    header = nib.Nifti1Header()
    header["qform_code"], header["pixdim"][:4] = 1, 1
    header["quatern_b"], header["quatern_c"] = 0.013130163, 0.9999138  # squares: 1 + 2e-8
    before = header.binaryblock
    assert mend_geometry(header) == [] and header.binaryblock == before


@pytest.mark.parametrize("over", [1.000001, 1.0004])
def test_a_quaternion_longer_than_1_by_rounding_is_shortened(tmp_path, over, capsys):
    path = written(tmp_path / "v.nii", dict(quatern_b=over, quatern_c=0, quatern_d=0), sform=0)
    header = read_volume(path).image.header
    assert "shortened" in capsys.readouterr().err
    np.testing.assert_allclose(header.get_qform()[:3, :3], np.diag([0.8, -0.9, -1.1]), atol=1e-3)
    assert int(header["qform_code"]) == 1


def test_a_quaternion_that_was_shortened_is_no_longer_than_1_for_anyone():
    random = np.random.default_rng(0)
    for _ in range(300):
        header, quaternion = nib.Nifti1Header(), random.standard_normal(3)
        header["qform_code"], header["pixdim"][:4] = 1, 1
        for name, value in zip(QUATERNION, 1.0004 * quaternion / np.linalg.norm(quaternion)):
            header[name] = value
        assert len(mend_geometry(header)) == 1
        assert 1 - 1e-6 < sum(float(header[name]) ** 2 for name in QUATERNION) <= 1


def test_a_good_header_is_left_as_it_is(tmp_path, capsys):
    image = read_volume(written(tmp_path / "v.nii", {})).image
    reference = nib.load(tmp_path / "v.nii")
    assert image.header.binaryblock == reference.header.binaryblock
    np.testing.assert_array_equal(image.affine, reference.affine)
    assert not capsys.readouterr().err


def test_shears_that_occur_are_good(tmp_path):
    sheared = AFFINE @ np.array([[1, 2, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    header = nib.Nifti1Header()
    header.set_sform(sheared, 1)
    header["pixdim"][1:4] = nib.affines.voxel_sizes(sheared)
    assert abs(np.linalg.det(sheared)) > 100 * FLATTEST
    assert mend_geometry(header) == []


def test_a_time_step_that_is_none_is_unknown(tmp_path):
    data = np.stack([brain(0, (12, 11, 10))] * 2, -1)
    for step in (-2, NAN):
        path = written(tmp_path / "v.nii", {"pixdim": [1, 0.8, 0.9, 1.1, step, 0, 0, 0]}, data=data)
        assert read_series(path).image.header.get_zooms()[3] == 0


@pytest.mark.parametrize("report", ["--report", "--no-report"])
@pytest.mark.parametrize("mode", [[], ["--upscale"]], ids=["evaluate", "upscale"])
def test_the_folder_goes_on_when_restoring(tmp_path, mode, report):
    written(tmp_path / "low" / "a.nii", SPOILT["quaternion longer than 1"][0])
    written(tmp_path / "low" / "b.nii", SPOILT["sform singular"][0], qform=0)
    written(tmp_path / "low" / "c.nii", SPOILT["voxel size no number"][0])
    save(tmp_path / "low" / "d.nii", brain(1, (18, 17, 16)))
    finished = run_command("test.py", *mode, report, "--quiet", "--test_dir", tmp_path / "low",
                           "--result_dir", tmp_path / "result")
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stderr and "b.nii: its sform" in finished.stderr
    results = {path.name: nib.load(path) for path in (tmp_path / "result").rglob("*.nii")}
    assert sorted(results) == ["a.nii", "c.nii", "d.nii"]
    for name in ("a.nii", "c.nii"):
        sizes = nib.affines.voxel_sizes(results[name].affine)
        np.testing.assert_allclose(results[name].header.get_zooms(), sizes, rtol=1e-5)
        assert int(results[name].header["qform_code"]) == 0


def test_the_folder_goes_on_when_learning(tmp_path):
    written(tmp_path / "train" / "a.nii", SPOILT["sform all zero"][0], data=brain(0))
    written(tmp_path / "train" / "b.nii", SPOILT["voxel size 0"][0], sform=0, data=brain(1))
    status, _, errors = command(
        "train.py", "--train_dir", tmp_path / "train", "--arrays_dir", tmp_path / "arrays",
        "--filter_len", 3, "--grad_len", 3, "--q_angle_p", 2, "--q_angle_t", 2)
    assert status == 1
    text = "\n".join(errors)
    assert "a.nii: its sform is singular" in text and "b.nii: its qform has voxel sizes" in text
    assert (tmp_path / "arrays" / "settings_2.json").exists()
