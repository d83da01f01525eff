"""api.py: calls from Python give what the commands give, to the last bit, and say what is wrong."""
import csv
import subprocess
import sys
import warnings

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, load_script
from synthetic import brain, zero_filled

import api
from degrading import descriptors
from degrading.measured_grid import measured_grid
from degrading.slice_profile import profile_matrix
from disk.filters import PRETRAINED_SCAN, load_filters
from filter_constant import Request
from options.arguments import sizes_of
from options.command_line import command_line

SIZES = (1.5, 1.25, 2.0)


def on_disk(data, path, sizes=SIZES):
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), np.diag([*sizes, 1.0])), path)
    return path


def command(script, *words):
    return load_script(script).main(command_line(script, [*map(str, words), "--quiet"]))


def upscaled(tmp_path, data, *words, sizes=SIZES):
    """What test.py --upscale makes of a volume."""
    target = tmp_path / "fine.nii"
    assert command("test", "--upscale", "--test_dir", on_disk(data, tmp_path / "scan.nii", sizes),
                   "--output", target, "--no-report", *words) == 0
    return nib.load(target).get_fdata(dtype=np.float32)


@pytest.fixture(autouse=True)
def no_word(recwarn):
    """Phantoms are unlike brains, which is said; tests of warnings look themselves."""
    warnings.simplefilter("ignore")


@pytest.mark.parametrize("factor, words, more", [
    (2, [], {}),
    ((1, 1, 4), ["--factor", 1, 1, 4], {}),
    ((4, 1, 1), ["--factor", 4, 1, 1, "--no-adapt"], {"adapt": False}),
    (3, ["--factor", 3, "--profile", "box"], {"profile": "box"}),
    (2, ["--profile", "box", "kspace", "gap"], {"profile": ("box", "kspace", "gap")}),
], ids=str)
def test_upscaling_is_that_of_the_command(tmp_path, monkeypatch, factor, words, more):
    monkeypatch.chdir(tmp_path)  # where arrays/ holds nothing
    low = 300 * brain(1, (22, 20, 18))
    fine = api.upscale(low, factor, voxel_size=SIZES, **more)
    assert fine.dtype == np.float32 and fine.std() > 0
    np.testing.assert_array_equal(fine, upscaled(tmp_path, low, *words))


def test_a_signed_volume_and_one_with_no_numbers_are_those_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    low = brain(2, (20, 20, 20)) * 4 - 2
    low[3, 4, 5] = np.nan
    fine = api.upscale(low, voxel_size=SIZES)
    assert fine.min() < -1
    np.testing.assert_array_equal(fine, upscaled(tmp_path, low))


def test_an_interpolated_scan_is_that_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    low = zero_filled(brain(3, (48, 48, 24)))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fine = api.upscale(low, 2, voxel_size=SIZES)
    assert any("it was interpolated" in str(one.message) for one in found)
    np.testing.assert_array_equal(fine, upscaled(tmp_path, low))


def test_a_masked_head_is_that_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head = brain(4, (22, 22, 22)) + np.float32(0.05)
    inside = brain(4, (22, 22, 22)) > 0
    on_disk(inside, tmp_path / "scan_mask.nii")
    fine = api.upscale(head, 2, voxel_size=SIZES, mask=0.2 + 0.6 * inside)  # brain above a half
    np.testing.assert_array_equal(fine, upscaled(tmp_path, head, "--mask", "{name}_mask.nii"))


def test_evaluating_is_that_of_the_command(tmp_path):
    data = brain(5, (40, 38, 36))
    on_disk(data, tmp_path / "v.nii")
    assert command("test", "--preset", "scan", "--test_dir", tmp_path / "v.nii", "--result_dir",
                   tmp_path / "r", "--test_profile", "box", "--test_noise", 0, 3, "--tissue") == 0
    with open(next(tmp_path.glob("r/*/metrics.csv")), newline="") as file:
        rows = list(csv.DictReader(file))
    found = api.evaluate(data, voxel_size=SIZES, profiles=["box"], noises=[0, 3], name="v.nii",
                         tissue=True)
    assert len(found) == len(rows) == 2
    assert "restored_dice_dark" in found[0] and "restored_noise_left" in found[0]
    assert "restored_dice_dark" not in api.evaluate(
        data, voxel_size=SIZES, profiles=["box"], noises=[0])[0]
    for row, written in zip(found, rows, strict=True):
        assert {name: str(value) for name, value in row.items() if name != "noise"} == {
            name: value for name, value in written.items() if value and name != "noise"}


@pytest.mark.parametrize("preset, words, options", [
    ("paper", ["--filter_len", 3, "--grad_len", 3], {"filter_len": 3, "grad_len": 3}),
    ("scan", ["--leaves", 8, "--draws", 2], {"leaves": 8, "draws": 2})])
def test_learning_is_that_of_the_command(tmp_path, preset, words, options):
    images = {name: brain(n, (28, 26, 24)) for n, name in enumerate(("b.nii", "a/anat/b.nii"))}
    (tmp_path / "train" / "a" / "anat").mkdir(parents=True)
    for name, image in images.items():
        on_disk(image, tmp_path / "train" / name)
    assert command("train", "--preset", preset, "--train_dir", tmp_path / "train", "--arrays_dir",
                   tmp_path / "command", *words) == 0
    found = api.learn(images, preset=preset, folder=tmp_path / "call", **options)
    arrays = sorted(path.name for path in (tmp_path / "command").glob("*.npy"))
    assert arrays
    for name in arrays:
        assert (tmp_path / "call" / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
    low = brain(3, (16, 15, 14))
    np.testing.assert_array_equal(api.upscale(low, filters=found),
                                  api.upscale(low, filters=tmp_path / "command"))


def test_learning_into_a_folder_leaves_no_pictures_of_earlier_filters_and_speaks_python(tmp_path):
    quick = {"preset": "paper", "filter_len": 3, "grad_len": 3, "q_angle_p": 1, "q_angle_t": 1,
             "folder": tmp_path}
    for name in ("filters_2.png", "samples_2.png", "filters_3.png"):
        (tmp_path / name).write_text("of earlier filters")
    api.learn({"x": brain(1, (28, 26, 24))}, **quick)
    assert [path.name for path in tmp_path.glob("*.png")] == ["filters_3.png"]
    with pytest.raises(ValueError, match="^x.nii: has changed .* old one back, or restart to beg"):
        api.learn({"x": brain(2, (28, 26, 24))}, **quick)
    with (pytest.warns(UserWarning, match="train.py: x--y.nii: all its voxels"),  # as it was given
          pytest.raises(ValueError, match="^images: no volume in it")):
        api.learn({"x--y": np.full((28, 26, 24), 7)}, **quick | {"folder": tmp_path / "other"})


def test_an_array_of_a_brain_without_a_voxel_size_is_no_whole_head(monkeypatch, recwarn):
    """In voxels of 2 mm, it would have the size of a head."""
    low = np.zeros((32, 32, 32), np.float32)
    low[1:-1, 1:-1, 1:-1] = np.random.default_rng(0).uniform(50, 90, (30, 30, 30))
    monkeypatch.setattr(descriptors, "MOST_BRAIN", 4 * 30**3)
    assert descriptors.head_in_zeros(low, (2, 2, 2)) is not None
    assert np.array_equal(api.upscale(low), api.upscale(low, voxel_size=1))
    assert not [str(one.message) for one in recwarn if "whole head" in str(one.message)]
    for factor, sizes in (((1, 1, 4), (1, 1, 4)), ((2, 2, 4), (1, 1, 2)), ((2, 2, 1), (2, 2, 1))):
        np.testing.assert_array_equal(sizes_of(None, factor), sizes)


def test_learned_filters_serve_their_factor_along_any_axis():
    filters = api.learn([brain(1, (28, 26, 24))], (1, 1, 2), leaves=4, draws=2)
    low = brain(3, (16, 15, 14))
    assert api.upscale(low, (2, 1, 1), filters=filters).shape == (32, 15, 14)
    assert repr(filters) == "<Filters of preset scan for factor 1 1 2>"
    with pytest.raises(ValueError, match="the filters are for factor 1 1 2, not 2"):
        api.upscale(low, 2, filters=filters)


def test_degrading_is_the_matrix_of_the_profile_along_each_axis():
    data = 7 * brain(6, (16, 18, 20))
    low = api.degrade(data, (2, 1, 4), profile=("gauss", "box", "kspace"))
    expected = np.clip(data, 0, np.sort(data, None)[int(data.size * 0.999)])
    for axis, (factor, profile) in enumerate(((2, "gauss"), (1, "box"), (4, "kspace"))):
        matrix = profile_matrix(data.shape[axis], factor, profile)
        expected = np.moveaxis(np.tensordot(matrix, expected, (1, axis)), 0, axis)
    seen = low > 0
    assert seen.any() and low.shape == (8, 18, 5)
    np.testing.assert_allclose(low[seen], expected[seen], rtol=1e-5)


def test_noise_is_seeded_and_as_strong_as_asked():
    data = np.full((40, 40, 40), 200.0)
    one, same, other = (api.degrade(data, noise=5, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.std() == pytest.approx(10, rel=0.05)


LOW = brain(1, (8, 9, 10))


@pytest.mark.parametrize("call, words", [
    (lambda: api.upscale(np.zeros((64, 64))), r"array must be 3-D, got shape \(64, 64\)"),
    (lambda: api.upscale(LOW.astype(complex)), "array must hold real numbers, got complex128"),
    (lambda: api.upscale(np.zeros((0, 4, 4))), "array is empty"),
    (lambda: api.upscale(np.zeros((9, 9, 9))), "holds no voxel above zero"),
    (lambda: api.upscale(LOW, 1), "factor must be a whole number from 2 to 8"),
    (lambda: api.upscale(LOW, 2.5), "factor must be a whole number .*got 2.5"),
    (lambda: api.upscale(LOW, (2, 2)), "factor must be"),
    (lambda: api.upscale(LOW, 5), "settings_5.json: there are no filters for factor 5, but .*; "
     "python train.py --preset scan --factor 5 learns the missing ones"),
    (lambda: api.upscale("scan.nii"), r"array must be an array, got str; .*load\(path\).get_fdata"),
    (lambda: api.upscale(nib.Nifti1Image(LOW, np.eye(4))), "must be an array, got Nifti1Image"),
    (lambda: api.upscale(LOW, mask="mask.nii"), "mask must be an array, got str; read a file"),
    (lambda: api.upscale(LOW, voxel_size=-1), "voxel_size must be one length in mm above 0"),
    (lambda: api.upscale(LOW, voxel_size=(1, 2)), "voxel_size must be"),
    (lambda: api.upscale(LOW, mask=np.ones((3, 3, 3))), "mask must have the shape of array"),
    (lambda: api.upscale(LOW, mask=np.zeros(LOW.shape)), "mask holds no voxel"),
    (lambda: api.upscale(LOW, profile="round"), "profile must be one of box, gap"),
    (lambda: api.upscale(LOW[:, :1], 2), "has a single slice along axis 1"),
    (lambda: api.degrade(LOW, noise=-1), "noise must be a number of per cent"),
    (lambda: api.degrade(LOW[:1], 2), "is smaller than factor"),
    (lambda: api.degrade(-LOW - 1), "array holds no voxel above zero"),
    (lambda: api.degrade(LOW - 50), "array has many voxels below zero"),
    (lambda: api.upscale(LOW, adapt="no"), "adapt must be True, False or None, got 'no'"),
    (lambda: api.evaluate(LOW, adapt=1), "adapt must be True, False or None"),
    (lambda: api.evaluate(LOW, tissue="no"), "tissue must be True, False or None"),
    (lambda: api.evaluate(LOW, profiles=["round"]), "profile must be one of"),
    (lambda: api.learn([]), "images holds no volume"),
    (lambda: api.learn([LOW], preset="worst"), "preset must be one of paper, best, scan"),
    (lambda: api.learn([LOW], leaf=3), "options: .*leaf"),
    (lambda: api.learn([LOW], leaves=0), "argument --leaves: 0 is not in 1 to 4096"),
    (lambda: api.learn({"a": LOW[0]}), r"a must be 3-D, got shape \(9, 10\)"),
])
def test_what_is_wrong_with_an_argument_is_said(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("call, words", [
    (lambda: api.upscale(LOW, [1, [2]]), "factor must be a whole number"),
    (lambda: api.upscale(LOW, voxel_size=1j), "voxel_size must be one length"),
    (lambda: api.upscale(LOW, profile=5), "profile must be one of"),
    (lambda: api.upscale(LOW, profile=[["box"], "box", "box"]), "profile must be one of"),
    (lambda: api.upscale(LOW, mask=LOW.astype(str)), "mask must hold real numbers"),
    (lambda: api.degrade(LOW, noise="3"), "noise must be a number of per cent"),
    (lambda: api.degrade(LOW, noise=1e300), "noise must be a number of per cent"),
    (lambda: api.degrade(LOW, seed=1.5), "seed must be a whole number"),
    (lambda: api.evaluate(LOW, noises=3), "noises must be a list"),
    (lambda: api.evaluate(LOW, noises=[-3]), "noise must be a number of per cent"),
    (lambda: api.evaluate(LOW, noises=[np.nan]), "noise must be a number of per cent"),
    (lambda: api.evaluate(LOW, profiles="box"), "profiles must be a list"),
    (lambda: api.evaluate(LOW, profiles=[]), "profiles must be a list"),
    (lambda: api.evaluate(LOW, profiles=[("box", "box", "box")]), "profile must be one of"),
    (lambda: api.learn(None), "images must be a dict or a list"),
    (lambda: api.learn([LOW], preset=["scan"]), "preset must be one of"),
    (lambda: api.learn([LOW], leaves="many"), "argument --leaves: 'many' is not a whole number"),
    (lambda: api.learn([LOW], leaves=64.5), "argument --leaves: 64.5 is not a whole number"),
    (lambda: api.learn([LOW], leaves=None), "argument --leaves: None is not a whole number"),
    (lambda: api.learn([LOW], upscale=True), "learn has no option upscale"),
    (lambda: api.learn([LOW], scheduler="local:2"), "learn has no option scheduler"),
    (lambda: api.learn({"a": LOW, "a.nii": LOW}), "'a' and 'a.nii', which may name one file"),
    (lambda: api.learn({"a.nii": LOW, "A.nii/b": LOW}), "'a.nii' and 'A.nii/b', which may name"),
    (lambda: api.learn({"a/b.nii/c": LOW, "a/b": LOW}), "'a/b.nii/c' and 'a/b', which may name"),
    (lambda: api.learn({1: LOW}), "names must be those of files"),
    (lambda: api.learn({"": LOW}), "names must be those of files"),
    (lambda: api.learn({"a" * 300: LOW}), "has a name of 300 letters"),
])
def test_no_argument_of_another_type_or_out_of_range_is_another_error(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("name", ["{folder}/mine.nii", "../mine", "sub/../../mine", "sub\\mine",
                                  "sub//mine", "./mine"])
def test_names_of_volumes_to_learn_from_lead_to_no_file_of_the_users(tmp_path, name):
    mine = tmp_path / "mine.nii"
    mine.write_bytes(b"mine")
    with pytest.raises(ValueError, match="names must be those of files"):
        api.learn({name.format(folder=tmp_path): LOW})
    assert mine.read_bytes() == b"mine"


def test_masked_voxels_are_background_and_no_part_of_a_mask():
    low = brain(4, (20, 20, 20))
    masked = np.ma.array(np.where(low == 0, 9999, low), mask=low == 0)
    np.testing.assert_array_equal(api.upscale(masked), api.upscale(low))
    np.testing.assert_array_equal(api.degrade(masked), api.degrade(low))
    inside = low > np.median(low[low > 0])
    whole = np.ma.array(np.ones(low.shape), mask=~inside)
    np.testing.assert_array_equal(api.upscale(low, mask=whole), api.upscale(low, mask=inside))


def test_filters_that_were_given_serve_all_axes_and_no_others_are_taken(monkeypatch):
    low = zero_filled(brain(3, (48, 48, 24)), axes=(0,))
    assert min(measured_grid(low.astype(np.float32)).shares) < 1
    given = load_filters(Request.of(factor=(1, 1, 2), arrays_dir=str(PRETRAINED_SCAN)))

    def others(*_):
        raise AssertionError("other filters")

    monkeypatch.setattr("restoring.steps.load_filters", others)
    fine = api.upscale(low, (1, 1, 2), voxel_size=(1, 1, 2), adapt=False, filters=given)
    assert fine.shape == (48, 48, 48)


def test_names_of_profiles_may_be_those_of_an_array():
    names = np.array(["box", "kspace", "gap"])
    np.testing.assert_array_equal(api.upscale(LOW, profile=names),
                                  api.upscale(LOW, profile=tuple(names.tolist())))
    (row,) = api.evaluate(brain(4, (28, 26, 24)), profiles=names[:1], noises=[0])
    assert type(row["profile"]) is str


def test_profiles_and_noises_may_come_from_generators():
    data = brain(2, (30, 29, 28))
    rows = api.evaluate(data, profiles=(one for one in ["box"]), noises=(one for one in [0, 0]))
    assert [(row["profile"], row["noise"]) for row in rows] == [("box", 0)]


def test_arguments_are_not_changed():
    low = brain(1, (12, 12, 12)) - np.float32(0.2)
    low[0, 0, 0] = np.nan
    before = low.copy()
    api.upscale(low)
    np.testing.assert_array_equal(low, before)


def test_importing_changes_nothing_of_the_host():
    libraries = ("matplotlib, nibabel, numba, numpy, scipy.sparse.linalg, scipy.special, "
                 "skimage.metrics, skimage.restoration, tqdm")  # some set filters of their own
    code = (f"import logging, warnings, {libraries}\n"
            "def state():\n"
            "    found = {n: l for n, l in logging.root.manager.loggerDict.items()"
            " if hasattr(l, 'level')}\n"
            "    return (list(warnings.filters), logging.root.level, logging.root.handlers[:],"
            " {n: l.level for n, l in found.items() if l.level})\n"
            "before = state()\nimport api\nassert state() == before\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_the_largest_factor_is_taken_and_the_next_one_refused():
    array = np.random.default_rng(0).uniform(1, 2, 3 * (2 * api.MOST + 2,)).astype(np.float32)
    assert api.degrade(array, api.MOST).shape == (2, 2, 2)
    with pytest.raises(ValueError, match=f"a whole number from 2 to {api.MOST}"):
        api.degrade(array, api.MOST + 1)
