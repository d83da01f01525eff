"""train.py and test.py with --mask: heads learned from, evaluated and upscaled by their brains."""
import json
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from conftest import SMALL, learn, load_script, read_rows, write_nifti
from synthetic import brain, command, upscale
from test_heads import in_air
from test_scan import phantom

from degrading.descriptors import NOISE
from disk.filters import load_filters
from filter_constant import Request
from get_lar import make_fine
from learning.ledger import Ledger
from machine.errors import UserError
from options.command_line import command_line
from restoring import upscaling
from restoring.adaptation import Adapted
from restoring.steps import restore

SHAPE = (26, 25, 24)
SHIPPED = Request.of(preset="scan")


def head_of(cut, seed=0):
    """A brain in tissue and air that are as bright as it in places, and its mask."""
    inside = cut > 0
    around = np.random.default_rng(seed).uniform(1, 1.2 * cut.max(), cut.shape)
    return np.where(inside, cut, around).astype(np.float32), inside.astype(np.uint8)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two heads with masks in one folder, their brains in another."""
    root = tmp_path_factory.mktemp("study")
    for number in range(2):
        cut = brain(number, SHAPE)
        head, inside = head_of(cut, number)
        write_nifti(root / "heads" / f"s{number}_T1w.nii.gz", head)
        write_nifti(root / "heads" / f"s{number}_desc-brain_mask.nii.gz", inside)
        write_nifti(root / "brains" / f"s{number}_T1w.nii.gz", cut)
    return root


def main(script, *options):
    request = command_line(script, list(map(str, options)))
    return load_script(script).main(request)


# ---- learning

@pytest.mark.parametrize("options", [
    SMALL, ("--preset", "scan", "--stages", "1", "--leaves", "4", "--filter_len", "5", "--draws",
            "3")], ids=["paper", "scan"])
def test_heads_with_masks_are_learned_from_as_their_brains(study, tmp_path, capsys, options):
    for kind, more in (("heads", ("--mask", "auto")), ("brains", ())):
        assert main("train", "--train_dir", study / kind, "--arrays_dir", tmp_path / kind,
                    *options, *more) == 0
        said = capsys.readouterr().out
        assert ("Masks (auto): found for 2 of 2" in said) == (kind == "heads")
    arrays = sorted(path.name for path in (tmp_path / "brains").glob("*2*") if path.is_file()
                    and path.suffix not in (".json", ".png"))
    assert arrays
    for name in arrays:
        assert (tmp_path / "heads" / name).read_bytes() == (tmp_path / "brains" / name).read_bytes()
    masks = [json.loads((tmp_path / kind / "settings_2.json").read_text()).get("mask")
             for kind in ("heads", "brains")]
    assert masks == ["auto", None]


def test_a_mask_that_changes_while_its_volume_is_summed_is_recorded_as_it_was_read(
        study, tmp_path, monkeypatch):
    """What the next run finds is another mask, and another volume to learn from."""
    heads = shutil.copytree(study / "heads", tmp_path / "heads")
    asked = ("--mask", "auto", "--train_dir", heads, "--arrays_dir", tmp_path / "arrays", *SMALL)
    plain = Ledger.add

    def add(ledger, wanted, record):
        if record.name == "s1_T1w.nii.gz":
            write_nifti(heads / "s1_desc-brain_mask.nii.gz", np.ones(SHAPE, np.uint8))
        plain(ledger, wanted, record)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "add", add)
        assert main("train", *asked) == 0
    with pytest.raises(UserError, match="s1_T1w.nii.gz: has changed since it was learned from"):
        main("train", *asked)


def test_a_head_without_a_mask_is_named_and_the_others_are_learned_from(study, tmp_path, capsys):
    train = tmp_path / "train"
    for path in (study / "heads").iterdir():
        (train / path.name).parent.mkdir(exist_ok=True)
        (train / path.name).write_bytes(path.read_bytes())
    (train / "s1_desc-brain_mask.nii.gz").unlink()
    status = main("train", "--train_dir", train, "--arrays_dir", tmp_path / "a", "--mask", "auto",
                  *SMALL)
    out, err = capsys.readouterr()
    assert status == 1 and "Masks (auto): found for 1 of 2" in out
    line, = (line for line in err.splitlines() if "finds no mask" in line)
    assert str(train / "s1_T1w.nii.gz") in line and "--exclude" in line
    about = json.loads((tmp_path / "a" / "settings_2.json").read_text())
    assert about["volumes"] == ["s0_T1w.nii.gz"]


@pytest.fixture(scope="module")
def begun(study, tmp_path_factory):
    arrays = tmp_path_factory.mktemp("begun")
    learn(SimpleNamespace(train=study / "heads"), arrays, "--mask", "auto")
    return arrays


@pytest.mark.parametrize("change, options, words", [
    ("", ["--mask", "auto"], ""),
    ("", [], "with --mask auto, not left out"),
    ("", ["--mask", "{entities}_desc*.nii.gz"], "with --mask auto, not {entities}_desc*.nii.gz"),
    ("larger", ["--mask", "auto"], "s0_T1w.nii.gz: has changed"),
    ("gone", ["--mask", "auto"], "s0_T1w.nii.gz: --mask auto finds no mask"),
])
def test_a_training_goes_on_with_the_same_masks_only(study, begun, tmp_path, change, options,
                                                     words):
    train = tmp_path / "train"
    train.mkdir()
    for path in (study / "heads").iterdir():
        (train / path.name).write_bytes(path.read_bytes())
    mask = train / "s0_desc-brain_mask.nii.gz"
    if change == "larger":
        write_nifti(mask, np.ones(SHAPE, "u1"))
    if change == "gone":
        mask.unlink()
    arrays = tmp_path / "arrays"
    shutil.copytree(begun, arrays)
    status, out, errors = command("train.py", "--train_dir", train, "--arrays_dir", arrays, *SMALL,
                                  *options)
    if words:
        assert status == 2 and words in errors[-1]
    else:
        assert status == 0 and "2 of 2 volumes are summed" in out


@pytest.mark.usefixtures("shared_workers")
def test_workers_of_a_cluster_cut_the_same_brains(study, begun, tmp_path):
    status, out, _ = command("train.py", "--train_dir", study / "heads", "--arrays_dir",
                             tmp_path / "a", "--mask", "auto", "--scheduler", "local:2", *SMALL)
    assert status == 0 and "Masks (auto): found for 2 of 2" in out
    ours, theirs = (np.load(arrays / "h_2.npy") for arrays in (tmp_path / "a", begun))
    # Sums are added in another order.
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


# ---- evaluating

def test_figures_are_of_the_masked_brain_and_the_record_names_the_mask(study, tmp_path, capsys):
    rows = {}
    for kind, more in (("heads", ("--mask", "auto")), ("brains", ())):
        assert main("test", "--test_dir", study / kind, "--result_dir", tmp_path / kind, *more) == 0
        assert ("Masks (auto): found for 2 of 2" in capsys.readouterr().out) == (kind == "heads")
        folder, = (tmp_path / kind).iterdir()
        rows[kind] = read_rows(folder / "metrics.csv")
        fine = nib.load(folder / "s0_T1w.nii.gz").get_fdata()
        assert not fine[brain(0, SHAPE) == 0].any() and fine.any()
        record = json.loads((folder / "s0_T1w.json").read_text())
        page = (folder / "report.html").read_text()
        if kind == "heads":
            mask = study / "heads" / "s0_desc-brain_mask.nii.gz"
            assert record["mask"] == str(mask) and len(record["mask_sha256"]) == 64
            assert "mask: s0_desc-brain_mask.nii.gz" in page
        else:
            assert "mask" not in record and "mask: " not in page
    assert [row.pop("mask") for row in rows["heads"]] == [
        "s0_desc-brain_mask.nii.gz", "s1_desc-brain_mask.nii.gz"]
    assert rows["heads"] == rows["brains"]


def test_scans_are_evaluated_by_their_brains(study, tmp_path):
    rows = {}
    for kind, more in (("heads", ("--mask", "auto")), ("brains", ())):
        assert main("test", "--preset", "scan", "--test_dir", study / kind, "--test_noise", "3",
                    "--test_profile", "box", "--result_dir", tmp_path / kind, *more) == 0
        folder, = (tmp_path / kind).iterdir()
        rows[kind] = read_rows(folder / "metrics.csv")
    assert [row.pop("mask") for row in rows["heads"]] == [
        "s0_desc-brain_mask.nii.gz", "s1_desc-brain_mask.nii.gz"]
    assert rows["heads"] == rows["brains"]


# ---- upscaling

@pytest.fixture(scope="module")
def scan():
    """A brain with noise of 3 % in smooth tissue twice as bright, without noise; and its mask."""
    clean = phantom(5, (40, 40, 40))
    inside = clean > 0
    head = np.where(inside, in_air(clean, 27, 5), 2000 + 3 * np.arange(40, dtype=np.float32))
    return head.astype(np.float32), inside


def test_brightness_and_descriptors_are_read_inside_and_all_is_restored(scan):
    head, inside = scan
    stages, method, *_ = load_filters(SHIPPED)
    fine, cut = make_fine(head, method, inside), make_fine(head * inside, method)
    assert fine.scale == cut.scale < 1200 < make_fine(head, method).scale
    np.testing.assert_array_equal(fine.descriptors, cut.descriptors)
    assert abs(make_fine(head, method).descriptors[NOISE] / cut.descriptors[NOISE] - 1) > 0.3
    whole = fine.whole(restore(fine, stages, method))
    deep = np.zeros(whole.shape, bool)
    deep[:14, :14, :14] = deep[-14:, -14:, -14:] = True  # corners, all tissue
    expected = np.broadcast_to(2000 + 3 * (np.arange(80) / 2 - 0.25), whole.shape)
    assert np.abs(whole - expected)[deep].mean() < 10
    np.testing.assert_array_equal(upscale(head, stages, method, inside=inside), whole)


def test_a_mask_over_nothing_is_refused(scan):
    head, inside = scan
    with pytest.raises(ValueError, match="inside its mask"):
        make_fine(head * ~inside, load_filters(SHIPPED).method, inside)


def upscaled(folder, *options):
    status, out, errors = command("test.py", "--upscale", "--preset", "scan", "--test_dir",
                                  folder / "v.nii", "--overwrite", "--output", folder / "o.nii",
                                  *options)
    assert status == 0 and not errors, errors
    return nib.load(folder / "o.nii").get_fdata(dtype=np.float32), out


@pytest.mark.parametrize("options", [(), ("--voxel_size", "0.5")],
                         ids=["factor", "two steps"])
def test_the_command_upscales_a_head_by_its_mask(scan, tmp_path, options):
    head, inside = scan
    head, inside = (part[:, :, ::4] if options else part for part in (head, inside))
    affine = np.diag([1, 1, 4 if options else 1, 1])
    write_nifti(tmp_path / "v.nii", head, affine)
    write_nifti(tmp_path / "v_mask.nii", inside.astype("u1"), affine)
    fine, out = upscaled(tmp_path, "--mask", "auto", *options)
    assert "noise and blur are estimated inside its mask, v_mask.nii; the whole head" in out
    assert "seems to be a whole head" not in out and "found for 1 of 1" in out
    assert (fine[:12, :12] > 1900).all()  # far from the brain
    record = json.loads((tmp_path / "o.json").read_text())
    assert record["mask"] == str(tmp_path / "v_mask.nii")
    assert "mask: v_mask.nii" in (tmp_path / "o.html").read_text()
    plain, out = upscaled(tmp_path, "--no-report", *options)
    assert np.abs(fine - plain).max() > 1


def test_one_mask_serves_all_volumes_of_a_series(scan, tmp_path):
    head, inside = scan
    write_nifti(tmp_path / "v_mask.nii", inside.astype("u1"))
    write_nifti(tmp_path / "v.nii", head)
    single, _ = upscaled(tmp_path, "--no-report", "--mask", "{name}_mask.nii")
    write_nifti(tmp_path / "v.nii", np.stack([head, head / 2], -1))
    series, _ = upscaled(tmp_path, "--no-report", "--mask", "{name}_mask.nii")
    np.testing.assert_array_equal(series[..., 0], single)
    np.testing.assert_allclose(series[..., 1], single / 2, atol=0.5)


def test_thick_slices_are_adapted_to_by_the_brain_alone(monkeypatch, scan):
    head, inside = scan
    seen = []

    def adapt(low, stages, *_):
        seen.append(low)
        return Adapted(stages, "box", "")

    monkeypatch.setattr(upscaling, "adapt_to_scan", adapt)
    use = load_filters(SHIPPED.but(factor=(1, 1, 4)))
    for mask, expected in ((inside, head * inside), (None, head)):
        assert upscaling.adapted("v.nii", head, (1, 1, 4), use, mask)[1].profile == "box"
        np.testing.assert_array_equal(seen.pop(), expected)
