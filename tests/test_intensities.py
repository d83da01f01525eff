"""Intensities that are not those of a skull-stripped scan: negative, sparse."""
import nibabel as nib
import numpy as np
import pytest
from conftest import read_rows, run_command
from scipy.ndimage import binary_erosion
from synthetic import brain, command, save, upscale

from degrading.acquisition import original_of
from disk.filters import PRETRAINED, load_filters
from filter_constant import Method, Request
from get_lar import brightness_of, make_fine
from intensities import shift_of, surround_of
from nifti.volumes import read_series, read_volume
from util import bright_level, bright_level_of_scan, clipping_in_words

SHIPPED = Request.of(arrays_dir=str(PRETRAINED))


def scored(kind, seed=0, shape=(26, 25, 24)):
    """A brain with a mean of 0 and its background."""
    data = brain(seed, shape)
    inside = data > 0
    scores = (data - data[inside].mean()) / data[inside].std()
    if kind == "zero around":
        return np.where(inside, scores, 0).astype(np.float32), 0
    if kind == "lowest around":
        return np.where(inside, scores, np.float32(-4.5)).astype(np.float32), -4.5
    noise = np.random.default_rng(seed).normal(-1, 0.2, shape)  # a whole head: air, no background
    return np.where(inside, scores, noise).astype(np.float32), None


KINDS = ("zero around", "lowest around", "no background")


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_makes_background_zero_and_all_else_positive_and_goes_back(kind):
    data, background = scored(kind)
    shift = shift_of(data)
    assert shift.background == background
    work = shift.work(data)
    outside = np.zeros(data.shape, bool) if background is None else data == np.float32(background)
    np.testing.assert_array_equal(work == 0, outside)
    assert work.min() >= 0
    back = shift.undo(work)
    np.testing.assert_allclose(back, data, atol=1e-5)
    np.testing.assert_array_equal(back[outside], data[outside])


def test_up_to_one_voxel_in_a_hundred_below_zero_is_clipped_as_ever(tmp_path, capsys):
    data = brain(1, (20, 20, 20))
    data.reshape(-1)[np.flatnonzero(data)[:80]] = -3  # a hundredth of 8000
    assert shift_of(data) is None
    path = save(tmp_path / "v.nii", data)
    np.testing.assert_array_equal(read_volume(path).data, data)
    line, = capsys.readouterr().err.splitlines()
    assert "clipped" in line
    data.reshape(-1)[np.flatnonzero(data > 0)[0]] = -3
    assert shift_of(data) is not None


def test_zeros_that_do_not_surround_are_no_background():
    difference = np.random.default_rng(5).integers(-2, 3, (15, 15, 15)).astype(np.float32)
    assert shift_of(difference).background is None


@pytest.mark.parametrize("preset", ["paper", "scan"])
@pytest.mark.parametrize("kind", KINDS)
def test_upscaling_a_shifted_volume_is_upscaling_and_shifting(kind, preset):
    stages, method, *_ = load_filters(
        Request.of(arrays_dir=str(PRETRAINED)) if preset == "paper" else Request.of(preset="scan"))
    data, background = scored(kind, 2)
    shift = shift_of(data)
    fine, work = (upscale(part, stages, method) for part in (data, shift.work(data)))
    if background is None or background == shift.low:
        np.testing.assert_allclose(fine, work + np.float32(shift.low), atol=1e-5)
        return
    deep = np.kron(data != background, np.ones((2, 2, 2))) > 0
    for axis in range(3):  # two LR voxels from the edge there is brain all around
        for step in (-4, -3, -2, -1, 1, 2, 3, 4):
            deep &= np.roll(deep, step, axis)
    assert deep.sum() > 300
    np.testing.assert_allclose(fine[deep], work[deep] + np.float32(shift.low), atol=1e-5)
    assert (fine[work == 0] == 0).mean() > 0.97  # background, and no brain of the lowest intensity
    assert fine.min() > data.min() - 0.5
    # No rim of the lowest intensity: at the outline the brain goes over into background.
    rim = (work != 0) & (np.kron(data, np.ones((2, 2, 2))) == 0)
    assert abs(fine[rim]).mean() < 0.5 * abs(shift.low) < abs(work[rim] + shift.low).mean()


def test_brain_at_a_face_of_the_array_is_no_rim():
    stages, method, *_ = load_filters(SHIPPED)
    data = np.zeros((16, 22, 22), np.float32)
    data[:12, 5:17, 5:17] = np.random.default_rng(8).uniform(-2, 2, (12, 12, 12))
    shift = shift_of(data)
    assert shift.background == 0
    fine, work = (upscale(part, stages, method) for part in (data, shift.work(data)))
    deep = np.s_[:16, 16:28, 16:28]
    np.testing.assert_allclose(fine[deep], work[deep] + np.float32(shift.low), atol=1e-5)


@pytest.mark.parametrize("options", [[], ["--upscale"]], ids=["evaluate", "upscale"])
def test_a_z_scored_brain_keeps_its_background_and_its_dark_half(tmp_path, options):
    data, _ = scored("zero around", 3, (30, 30, 30))
    save(tmp_path / "z.nii", data)
    save(tmp_path / "plain.nii", np.where(data, data + 5, 0).astype(np.float32))
    rows = {}
    for name in ("z", "plain"):
        status, out, errors = command(
            "test.py", *options, "--test_dir", tmp_path / f"{name}.nii", "--no-report",
            "--output", tmp_path / name / "fine.nii")
        assert status == 0
        if name == "z":
            line, = errors  # said once
            assert "below zero" in line and "shifted" in line and "background of 0 stays" in line
        if not options:
            rows[name] = read_rows(tmp_path / name / "metrics.csv")[0]
    z = nib.load(tmp_path / "z" / "fine.nii").get_fdata()
    assert (z < -0.2).mean() > 0.5 * (data < -0.2).mean()
    assert 0.9 < (z == 0).sum() / z.size / (data == 0).mean() < 1.4
    assert z.min() > data.min() - 1 and z.max() < data.max() + 2
    if rows:
        assert abs(float(rows["z"]["sr_psnr"]) - float(rows["plain"]["sr_psnr"])) < 4


def test_a_series_below_zero_is_shifted_as_one(tmp_path):
    data, _ = scored("zero around", 4, (16, 16, 16))
    path = save(tmp_path / "s.nii", np.stack([data, 2 * data], -1))
    volume = read_series(path)
    assert volume.shift.background == 0 and volume.data.shape == (16, 16, 16, 2)
    finished = run_command("test.py", "--upscale", "--test_dir", path,
                           "--output", tmp_path / "o.nii")
    assert finished.returncode == 0 and finished.stderr.count("below zero") == 1
    fine = nib.load(tmp_path / "o.nii").get_fdata()
    assert fine.shape == (32, 32, 32, 2)
    for part, factor in ((fine[..., 0], 1), (fine[..., 1], 2)):
        assert (part == 0).mean() > 0.4 and (part < -factor * 0.5).mean() > 0.05


def test_each_volume_of_a_series_is_shifted_as_if_it_stood_alone(tmp_path):
    scores, _ = scored("zero around", 4, (16, 16, 16))
    padded, _ = scored("lowest around", 4, (16, 16, 16))
    volumes = [scores, 50 * scores, brain(4, (16, 16, 16)), padded]
    volumes += 20 * [brain(5, (16, 16, 16))]  # of all voxels, few are below zero
    both = {}
    for name, data in (("series", np.stack(volumes, -1)), *enumerate(volumes[:4])):
        status, _, errors = command(
            "test.py", "--upscale", "--no-report", "--preset", "scan", "--overwrite",
            "--output",
            tmp_path / f"{name}_fine.nii", "--test_dir", save(tmp_path / f"{name}.nii", data))
        assert status == 0 and len(errors) == (name != 2)
        if name == "series":
            assert "in 3 of its 24 volumes many voxels are below zero" in errors[0]
        both[name] = nib.load(tmp_path / f"{name}_fine.nii").get_fdata()
    for number in range(4):
        np.testing.assert_array_equal(both["series"][..., number], both[number])


@pytest.mark.parametrize("outlier", [-1000, 1e5])
def test_one_voxel_far_from_all_others_spoils_nothing_but_its_surroundings(outlier):
    stages, method, *_ = load_filters(Request.of(preset="scan"))
    data, _ = scored("zero around", 3, (30, 30, 30))
    spoiled = data.copy()
    spoiled[15, 15, 15] = outlier
    plain, found = (upscale(volume, stages, method) for volume in (data, spoiled))
    far = np.ones(plain.shape, bool)
    far[16:46, 16:46, 16:46] = False
    assert np.abs(found - plain)[far].mean() < 0.15 * data.std()
    assert found[far].min() > data.min() - 2


def test_few_voxels_below_zero_are_said_once(tmp_path):
    data = brain(5, (16, 16, 16))
    data[0, 0, 0] = -2
    finished = run_command("test.py", "--upscale", "--no-report", "--test_dir",
                           save(tmp_path / "v.nii", data), "--output", tmp_path / "o.nii")
    line, = finished.stderr.splitlines()
    assert "below zero (down to -2)" in line


def test_learning_takes_all_of_a_z_scored_brain(tmp_path):
    data, _ = scored("zero around", 6, (30, 28, 26))
    save(tmp_path / "in" / "z.nii", data)
    small = ["--filter_len", "3", "--grad_len", "3", "--q_angle_p", "1", "--q_angle_t", "1",
             "--sample_rate", "1"]
    status, out, errors = command("train.py", "--train_dir", tmp_path / "in",
                                  "--arrays_dir", tmp_path / "a", *small)
    assert status == 0 and all("shifted" in line for line in errors)
    assert out.count("Memory: up to") == 1
    samples = int(out.split("z.nii: ")[1].split(" samples")[0].replace(",", ""))
    assert samples > 0.8 * (data != 0).sum()


@pytest.mark.parametrize("options", [
    ["--voxel_size", "0.55"], ["--voxel_size", "0.5", "0.5", "0.3"], ["--factor", "1", "1", "4"],
], ids=["last spline", "two uses", "thick slices"])
def test_a_shift_goes_with_any_way_of_upscaling(tmp_path, options):
    data, background = scored("zero around", 7, (30, 28, 14))
    shift, fine = shift_of(data), {}
    for name, volume in (("z", data), ("work", shift.work(data))):
        status, out, errors = command(
            "test.py", "--upscale", "--no-report", "--preset", "scan", *options, "--overwrite",
            "--output",
            tmp_path / f"{name}_fine.nii", "--test_dir",
            save(tmp_path / f"{name}.nii", volume, np.diag([1, 1, 1.2, 1])))
        assert status == 0 and sum("below zero" in line for line in errors) == (name == "z")
        fine[name] = nib.load(tmp_path / f"{name}_fine.nii").get_fdata()
    deep = binary_erosion(fine["work"] > 0, iterations=8)  # the rim is the spline's
    assert deep.sum() > 100
    apart = fine["z"] - (fine["work"] + shift.low)
    assert np.quantile(abs(apart[deep]), 0.99) < 0.02  # of a standard deviation
    assert (fine["z"] == 0).mean() > 0.3 and data.min() - 0.5 < fine["z"].min() < -1


def sparse(seed=0, shape=(48, 48, 48)):
    """A cube in 97 % of zeros."""
    data = np.zeros(shape, np.float32)
    data[16:31, 16:31, 16:31] = np.random.default_rng(seed).uniform(50, 250, (15, 15, 15))
    return data


def test_a_sparse_volume_is_as_bright_as_what_is_not_zero_in_it():
    data = sparse()
    assert bright_level(data) < 245 < bright_level_of_scan(data)
    assert make_fine(data, Method()).scale == bright_level_of_scan(data)
    assert original_of(data, (2, 2, 2)).max() == 1
    assert (original_of(data, (2, 2, 2)) == 1).sum() < 10
    whole = brain(8)
    assert bright_level_of_scan(whole) == bright_level(whole) == make_fine(whole, Method()).scale


@pytest.mark.parametrize("script", ["test.py", "train.py"])
def test_what_published_clipping_cuts_off_a_sparse_volume_is_said(tmp_path, script):
    for name, data in (("sparse", sparse()), ("brain", brain(9))):
        folder = save(tmp_path / name / f"{name}.nii", data).parent
        options = (["--test_dir", folder, "--no-report", "--output", tmp_path / f"{name}.nii"]
                   if script == "test.py" else
                   ["--train_dir", folder, "--arrays_dir", tmp_path / f"{name}_a",
                    "--filter_len", "3", "--grad_len", "3"])
        status, out, errors = command(script, *options)
        assert status == 0
        assert any("% of its voxels above zero are clipped" in line for line in errors) == (
            name == "sparse")


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6])
def test_a_slab_of_one_value_is_background(share):
    volume = np.random.default_rng(5).uniform(-2, 2, (20, 20, 20)).astype(np.float32)
    slab = np.zeros(volume.shape, bool)
    slab[:, :, : int(20 * share)] = True
    volume[slab] = 0
    np.testing.assert_array_equal(shift_of(volume).work(volume) == 0, slab)


def test_single_voxels_of_the_value_of_a_slab_are_tissue():
    volume = np.random.default_rng(5).integers(-9, 10, (20, 20, 20)).astype(np.float32)
    volume[:, :, :5] = 0
    work = shift_of(volume).work(volume)
    assert (work[:, :, :5] == 0).all() and (work[:, :, 6:] > 0).all()
    assert (volume[:, :, 6:] == 0).any()


def test_the_value_of_most_voxels_on_the_faces_surrounds():
    volume = np.random.default_rng(5).uniform(1, 2, (12, 12, 12)).astype(np.float32)
    for axis in range(3):  # one voxel thick: of no region, but three of the six faces
        np.moveaxis(volume, axis, 0)[-1] = 0
    assert surround_of(volume) == (0, "all")
    volume[-1] = 3  # two of the six faces
    assert surround_of(volume) == (None, "all")


def test_a_background_of_minus_zeros_is_zero():
    volume = np.full((9, 9, 9), -0.0, np.float32)
    volume[2:7, 2:7, 2:7] = np.linspace(-2, 2, 125).reshape(5, 5, 5)
    shift = shift_of(volume)
    assert str(shift).endswith("the background of 0 stays")
    assert not np.signbit(shift.undo(shift.work(volume))[0]).any()


def test_a_small_block_of_one_value_at_a_face_is_tissue():
    volume = np.random.default_rng(5).uniform(1, 2, (30, 30, 30)).astype(np.float32)
    volume[:6, :6, :6] = 0  # fewer than one voxel in a hundred
    assert surround_of(volume) == (None, "all")
    volume[:7, :7, :7] = 0
    assert surround_of(volume) == (0, "solid")


def test_more_than_one_clipped_voxel_in_a_hundred_above_zero_is_said():
    image = np.zeros((10, 10, 10), np.float32)
    image[0] = 3
    image[0, 0, 0] = 9
    assert clipping_in_words(image, 5.0) == ""
    image[0, 0, 1] = 9
    said = clipping_in_words(image, 5.0)
    assert said.startswith("2.0% of its voxels above zero are clipped to 5")


def test_an_empty_volume_has_no_brightness():
    empty = np.zeros((8, 8, 8), np.float32)
    assert brightness_of(empty) == 0
    assert brightness_of(empty + 5, inside=empty > 0) == 0


def test_a_small_object_keeps_its_voxels_below_zero():
    volume = np.zeros((40, 40, 40), np.float32)
    volume[16:25, 16:25, 16:25] = np.random.default_rng(6).normal(0, 1, (9, 9, 9))
    assert (volume < 0).mean() < 0.01
    shift = shift_of(volume)
    np.testing.assert_allclose(shift.undo(shift.work(volume)), volume, atol=1e-5)


def test_zeros_inside_a_mask_are_tissue_where_others_are_below_zero(tmp_path):
    """Water is 0 in a CT."""
    volume = np.random.default_rng(7).integers(-40, 80, (20, 20, 20)).astype(np.int16)
    inside = np.zeros(volume.shape, bool)
    inside[4:16, 4:16, 4:16] = True
    read = read_volume(save(tmp_path / "ct.nii", volume), inside)
    np.testing.assert_array_equal(read.data > 0, inside)
    assert (volume[inside] == 0).any()
    back = read.shift.undo(read.data)
    np.testing.assert_allclose(back, np.where(inside, volume, 0), atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e35])
def test_what_is_no_number_in_a_signed_map_is_background_of_zero(tmp_path, bad):
    stages, method, *_ = load_filters(SHIPPED)
    data = np.random.default_rng(8).uniform(-2, 2, (20, 18, 16)).astype(np.float32)
    data[:, :6] = bad
    volume = read_series(save(tmp_path / "v.nii", data))
    np.testing.assert_array_equal(volume.data == 0, ~(np.abs(data) <= 2))
    if not np.isfinite(bad):
        fine = upscale(data, stages, method)
        assert (fine[:, :10] == 0).all() and (fine[:, 14:] < 0).mean() > 0.3


def test_what_is_no_number_gets_the_background_that_surrounds_the_rest():
    stages, method, *_ = load_filters(SHIPPED)
    data = np.full((20, 18, 16), -100, np.float32)
    data[4:16, 4:14, 4:12] = np.random.default_rng(8).uniform(-50, 50, (12, 10, 8))
    blank = data.copy()
    data[8, 8, 8], blank[8, 8, 8] = np.nan, -100
    np.testing.assert_array_equal(*(upscale(low, stages, method) for low in (data, blank)))


def test_what_is_black_in_the_original_gets_its_background_back():
    volume = np.zeros((12, 12, 12), np.float32)
    volume[3:9, 3:9, 3:9] = np.linspace(-2, 2, 216).reshape(6, 6, 6)
    shift = shift_of(volume)
    work = shift.work(volume)
    work[0, 0, 0], work[5, 5, 5] = 1, 0  # restored where it was black, and to zero inside
    own = shift.undo(work, volume == 0)
    assert own[0, 0, 0] == 0 and own[5, 5, 5] == np.float32(shift.low)
    assert shift.undo(work)[5, 5, 5] == 0
