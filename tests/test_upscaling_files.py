"""Upscaling files: in tiles, within memory that is planned before, and series with bad volumes."""
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from synthetic import brain, upscale

import octahedral.stages as stages_of
import test as script
from disk.filters import PRETRAINED_SCAN, load_filters
from engine import CPU
from filter_constant import Request
from get_lar import make_fine
from intensities import Shift
from machine.memory import SERIES_BYTES
from machine.progress import Stopwatch
from nifti.checks import checked_image
from options.command_line import command_line
from restoring import planning, upscaling
from restoring.adaptation import adapt_to_scan
from restoring.steps import FilterStore, restore
from structure import structure_of

SCAN = Request.of(arrays_dir=str(PRETRAINED_SCAN), upscale=True)


@pytest.fixture(scope="module")
def filters():
    return {factor: load_filters(SCAN.but(factor=factor)) for factor in ((2, 2, 2), (1, 1, 2))}


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of a few planes and rows, so that small volumes have many."""
    monkeypatch.setattr(stages_of, "SLAB", 7)
    monkeypatch.setattr(stages_of, "TILE_VOXELS", 30_000)


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 1, 2)])
def test_tiles_restore_to_the_bit_what_the_whole_does(filters, factor, request):
    low, (stages, method, *_) = brain(1, (20, 22, 21)), filters[factor]
    whole = upscale(low, stages, method)
    request.getfixturevalue("small_tiles")
    shares = []
    assert len(stages_of.tiles_of(whole.shape)) > 2
    fine = make_fine(low, method)
    tiled = fine.whole(restore(fine, stages, method, advance=shares.append))
    np.testing.assert_array_equal(tiled, whole)
    assert sum(shares) == pytest.approx(1) and len(shares) > 4


def test_bright_voxels_are_added_where_there_is_brain_only(filters):
    low = brain(2, (20, 20, 20))
    low[10, 10, 10] = 50_000
    fine = make_fine(low, filters[2, 2, 2].method)
    assert fine.above.shape == low.shape and fine.above.max() > 40_000
    found, outside = fine.whole(np.zeros_like(fine.lr)), np.ones(fine.whole_shape, bool)
    outside[fine.box] = ~fine.mask
    assert found.max() > 10_000 and outside.any() and not found[outside].any()


@pytest.mark.parametrize("factor, side, tile, shifted", [
    ((2, 2, 2), 36, 10_000, True), ((1, 1, 2), 56, 30_000, False)])
def test_memory_stays_below_what_is_planned(
        filters, small_tiles, monkeypatch, factor, side, tile, shifted):
    monkeypatch.setattr(stages_of, "TILE_VOXELS", tile)
    uses = [filters[factor]]
    low = 1 + brain(3, (side, side, side))  # without background: all of it is restored
    shift = Shift(-400.0, -50.0) if shifted else None
    upscaling.upscale_by(low[:12, :12, :12], uses, CPU(), Stopwatch(), shift=shift)  # compiles
    tracemalloc.start()
    fine, *_ = upscaling.upscale_by(low, uses, CPU(), Stopwatch(), shift=shift)
    peak = tracemalloc.get_traced_memory()[1] - tile * 75  # but for a tile, and its three leaves
    tracemalloc.stop()
    assert peak / fine.size < structure_of(uses[0].method).restore_bytes


def test_a_series_in_the_inputs_type_is_planned_with_what_is_written(tmp_path, monkeypatch, capsys):
    data = np.random.default_rng(0).integers(1, 900, (10, 10, 10, 60)).astype(np.int16)
    image = nib.Nifti1Image(data, np.eye(4))
    fine = 60 * 20**3
    for name in ("WORK_BYTES", "CODE_BYTES"):
        monkeypatch.setattr(planning, name, 0)
    monkeypatch.setattr(planning, "free_memory", lambda: 5 * fine)
    assert command(tmp_path, image) == 0
    assert command(tmp_path, image, "--dtype", "same") == 2
    assert "GB of memory" in capsys.readouterr().err


def command(folder, image, *options):
    nib.save(image, folder / "scan.nii.gz")
    return script.main(command_line("test", [
        "--upscale", "--no-report", "--arrays_dir", str(PRETRAINED_SCAN), "--test_dir",
        str(folder / "scan.nii.gz"), "--overwrite", "--output",
        str(folder / "fine.nii.gz"), *options]))


@pytest.mark.parametrize("shape, factor, options, more", [
    ((8, 8, 8), "2 2 2", [], 0),
    ((8, 8, 8, 500), "2 2 2", [], 499 * 4 * 16**3),  # all fine volumes of a series but one
    ((8, 8, 8), "1 1 4", [], planning.ADAPT_BYTES - 8 * 8 * 32 * 20),
    ((8, 8, 8), "1 1 4", ["--no-adapt"], 0),
    ((8, 8, 8), "2 2 2", ["--adapt"], planning.ADAPT_BYTES - 8 * 8**3 * 20),
], ids=["one", "series", "thick", "as they are", "asked for"])
def test_memory_of_series_and_of_adapting_is_planned(tmp_path, monkeypatch, capsys, shape, factor,
                                                     options, more):
    nib.save(nib.Nifti1Image(np.full(shape, 50, np.uint8), np.eye(4)), tmp_path / "low.nii.gz")
    fine = np.prod(shape[:3]) * np.prod([int(part) for part in factor.split()])
    needed = 20 * fine + more + planning.WORK_BYTES + planning.CODE_BYTES

    def begin(path, opened):
        raise Begun

    monkeypatch.setattr(upscaling, "read_series", begin)
    for spare, begins in ((-1e5, False), (1e5, True)):
        monkeypatch.setattr(planning, "free_memory", lambda spare=spare: needed + spare)
        asked = command_line("test", [
            "--upscale", "--preset", "scan", "--no-report", "--factor", *factor.split(), *options,
            "--test_dir", str(tmp_path / "low.nii.gz"), "--output", str(tmp_path / "fine.nii.gz")])
        if begins:
            with pytest.raises(Begun):
                script.main(asked)
        else:
            assert script.main(asked) == 2 and "GB of memory" in capsys.readouterr().err


class Begun(Exception):
    """Work has begun."""


def test_too_little_memory_is_said_before_work_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planning, "free_memory", lambda: 0.5e9)
    monkeypatch.setattr(upscaling, "read_series", None)
    assert command(tmp_path, nib.Nifti1Image(brain(4), np.eye(4))) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "takes 0.6 GB of memory, 0.5 GB are free" in said[0]
    assert not (tmp_path / "fine.nii.gz").exists()


def test_voxels_far_finer_than_any_filters_make_are_counted_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planning, "free_memory", lambda: 4e9)
    monkeypatch.setattr(upscaling, "read_series", None)
    image = nib.Nifti1Image(brain(4, (20, 18, 16)), np.eye(4))
    assert command(tmp_path, image, "--voxel_size", "0.012") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "to bring it to voxels of 0.012 mm takes" in said[0].replace(
        "0.012 x 0.012 x 0.012", "0.012")


def test_sizes_are_taken_in_metres_and_microns(tmp_path, capsys):
    for unit, size in (("meter", 1e-3), ("micron", 1000)):
        image = nib.Nifti1Image(brain(4, (16, 15, 14)), np.diag([size, size, size, 1]))
        image.header.set_xyzt_units(unit)
        assert command(tmp_path, image, "--voxel_size", f"{size / 2:g}") == 0
        assert nib.load(tmp_path / "fine.nii.gz").shape == (32, 30, 28)


def test_a_long_series_of_small_volumes_needs_little(tmp_path, monkeypatch):
    monkeypatch.setattr("nifti.checks.free_memory", lambda: 2e8)  # 64 bytes a voxel are more
    series = nib.Nifti1Image(np.ones((20, 20, 20, 500), np.uint8), np.eye(4))
    nib.save(series, tmp_path / "series.nii.gz")
    assert checked_image(tmp_path / "series.nii.gz", (3, 4), SERIES_BYTES)


@pytest.mark.parametrize("options", [["--factor", "2"], ["--voxel_size", "0.6"]])
def test_a_volume_of_a_series_that_cannot_be_restored_is_named_and_the_others_done(
        tmp_path, capsys, options):
    volumes = [brain(5, (14, 15, 16)), np.zeros((14, 15, 16), np.float32), brain(6, (14, 15, 16))]
    alone = []
    for volume in volumes[::2]:
        assert command(tmp_path, nib.Nifti1Image(volume, np.eye(4)), *options) == 0
        alone.append(nib.load(tmp_path / "fine.nii.gz").get_fdata())
    capsys.readouterr()
    series = nib.Nifti1Image(np.stack(volumes, -1), np.eye(4))
    assert command(tmp_path, series, *options) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "volume 2 of 3 is left black: the volume holds no voxel" in said[0]
    fine = nib.load(tmp_path / "fine.nii.gz").get_fdata()
    for number, volume in zip((0, 2), alone, strict=True):
        np.testing.assert_array_equal(fine[..., number], volume)
    assert not fine[..., 1].any()


def test_where_restoring_gives_no_numbers_a_series_gets_the_spline(tmp_path, monkeypatch, capsys):
    plain, calls = upscaling.restore, []

    def second_fails(volume, *arguments):
        calls.append(1)
        return plain(volume, *arguments) * np.float32(np.nan if len(calls) == 2 else 1)

    monkeypatch.setattr(upscaling, "restore", second_fails)
    volumes = [brain(seed, (14, 15, 16)) for seed in (7, 8)]
    assert command(tmp_path, nib.Nifti1Image(np.stack(volumes, -1), np.eye(4))) == 1
    said = capsys.readouterr().err
    assert "volume 2 of 2 is a spline, not restored" in said
    fine = nib.load(tmp_path / "fine.nii.gz").get_fdata()
    assert np.isfinite(fine).all() and np.corrcoef(
        fine[::2, ::2, ::2, 1].ravel(), volumes[1].ravel())[0, 1] > 0.9


def upscaled(folder, data, spacing=(1, 1, 1), **asked):
    """A file upscaled with the shipped filters for scans; returns the array and what is shown."""
    nib.save(nib.Nifti1Image(data, np.diag([*spacing, 1])), folder / "scan.nii.gz")
    given = frozenset({"preset", "factor"})
    store = FilterStore(Request.of(preset="scan", upscale=True, given=given, **asked))
    found = upscaling.upscale_file(folder / "scan.nii.gz", folder / "fine.nii.gz", store, CPU())
    return nib.load(folder / "fine.nii.gz").get_fdata(dtype=np.float32), found


@pytest.fixture(scope="module")
def two_thick():
    """Two thick scans, and the second restored by filters that are fine-tuned on the first."""
    one, other = (brain(seed, (76, 72, 18)) for seed in (7, 8))
    stages, method, *_ = load_filters(SCAN.but(factor=(1, 1, 4)))
    adapted = adapt_to_scan(one, stages, method, (1, 1, 4)).stages
    return one, other, upscale(other, adapted, method)


@pytest.mark.parametrize("first", ["black", "no numbers"])
def test_a_series_is_adapted_once_to_its_first_volume_that_can_be(
        tmp_path, monkeypatch, two_thick, first):
    one, other, expected = two_thick
    plain, calls = upscaling.restore, []

    def first_fails(volume, *arguments):
        calls.append(1)
        return plain(volume, *arguments) * np.float32(np.nan if len(calls) == 1 else 1)

    if first == "no numbers":
        monkeypatch.setattr(upscaling, "restore", first_fails)
    volumes = [one, other] if first == "no numbers" else [0 * one, one, other]
    fine, found = upscaled(tmp_path, np.stack(volumes, -1), (1, 1, 4), factor=(1, 1, 4))
    assert found.missed == 1 and found.row["profile"] and len(found.row["voxel_size"]) == 3
    np.testing.assert_array_equal(fine[..., -1], expected)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("background", [0, -4.5])
def test_a_volume_that_cannot_be_restored_is_left_to_the_background(tmp_path, background, lost):
    data = brain(9, (16, 16, 16))
    scores = np.where(data > 0, data / 200 - 2, background).astype(np.float32)
    volumes = [scores, scores]
    volumes.insert(lost, np.full_like(scores, background))
    fine, found = upscaled(tmp_path, np.stack(volumes, -1))
    assert found.missed == 1 and (fine[..., lost] == background).all()
    assert (fine[..., 2] != background).any()
    # What is shown is a volume that was restored, in the intensities that filters take.
    assert found.images["Restored"].max() > 0.9 and found.images["LR"].max() == 1


def test_the_spline_instead_of_a_volume_keeps_what_is_below_zero(tmp_path, monkeypatch):
    monkeypatch.setattr(upscaling, "restore", lambda volume, *_: np.full_like(volume.lr, np.nan))
    data = brain(9, (16, 16, 16))
    scores = np.where(data > 0, data / 200 - 2, 0).astype(np.float32)
    fine, found = upscaled(tmp_path, np.stack([scores, scores], -1), report=False)
    assert found.missed == 2 and np.isfinite(fine).all()
    assert (fine < -1).mean() == pytest.approx((scores < -1).mean(), rel=0.3)


def test_a_volume_alone_that_becomes_no_numbers_is_not_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(upscaling, "restore", lambda volume, *_: np.full_like(volume.lr, np.nan))
    assert command(tmp_path, nib.Nifti1Image(brain(9, (16, 16, 16)), np.eye(4))) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "fine.nii.gz: not written" in said[0]
    assert "not finite numbers" in said[0]
    assert not (tmp_path / "fine.nii.gz").exists()


def test_the_noise_that_is_told_is_that_of_the_scan_not_of_what_a_first_use_made(tmp_path):
    random = np.random.default_rng(10)
    data = brain(10, (24, 24, 24))
    data = np.where(data > 0, np.maximum(data + random.normal(0, 50, data.shape), 1), 0)
    data = data.astype(np.float32)
    _, once = upscaled(tmp_path, data, (1, 1, 2), report=False)
    _, twice = upscaled(tmp_path, data, (1, 1, 2), report=False, voxel_size=(0.5, 0.5, 0.5))
    assert np.prod(twice.row["to"]) == 2 * np.prod(once.row["to"])
    assert once.row["noise"] == twice.row["noise"] > 0.02


def test_of_filters_that_nothing_adapts_it_is_not_said_that_they_were_not(tmp_path, capsys):
    upscaled(tmp_path, brain(11, (20, 20, 20)), report=False)
    said = "".join(capsys.readouterr())
    assert "used as they are" not in said and "not fine-tuned" not in said


def test_filters_for_thick_slices_that_come_second_are_said_to_be_used_as_they_are(
        tmp_path, capsys):
    upscaled(tmp_path, brain(11, (20, 20, 16)), (1, 1, 2), report=False,
             voxel_size=(0.5, 0.5, 0.5))
    said = "".join(capsys.readouterr())
    assert "the filters for 1x1x2 are not fine-tuned on the scan, because another axis" in said
    upscaled(tmp_path, brain(11, (20, 20, 16)), (1, 1, 2), report=False, adapt=False,
             voxel_size=(0.5, 0.5, 0.5))
    said = "".join(capsys.readouterr())
    assert "used as they are" not in said and "not fine-tuned" not in said


def test_thick_slices_adapt_the_filters_unless_told_not_to_and_say_so(tmp_path, capsys):
    low = brain(7, (76, 72, 18))  # enough of a plane to learn from
    images, said = [], []
    for options in ([], [], ["--no-adapt"]):
        image = nib.Nifti1Image(low, np.diag([1, 1, 4, 1]))
        assert command(tmp_path, image, "--factor", "1", "1", "4", *options) == 0
        images.append(nib.load(tmp_path / "fine.nii.gz").get_fdata())
        said.append(capsys.readouterr().out)
    assert "adapted to slices like " in said[0] and "adapted" not in said[2]
    np.testing.assert_array_equal(images[0], images[1])
    apart = np.abs(images[0] - images[2])
    assert 1 < apart.max() < 500 and apart.mean() < 20  # of 1000: another image, not a wild one


def test_a_plane_that_is_coarser_than_the_slices_become_is_said(tmp_path, capsys):
    image = nib.Nifti1Image(brain(7, (40, 40, 18)), np.diag([2, 2, 4, 1]))
    assert command(tmp_path, image, "--factor", "1", "1", "4") == 0
    assert "used as they are: its plane is coarser" in "".join(capsys.readouterr())


@pytest.fixture
def known_to_filters(monkeypatch):
    """The profiles that filters were given, and those that results agreed with, one after another.
    """
    known, agreed, plain = [], [], upscaling.make_fine

    def recorded(low, method, inside, profiles, agree_with, voxel_size):
        found = plain(low, method, inside, profiles, agree_with, voxel_size)
        known.append(tuple(profiles))
        agreed.append(found.profiles)
        return found

    monkeypatch.setattr(upscaling, "make_fine", recorded)
    return known, agreed


def test_later_filters_take_what_earlier_ones_restored_for_unblurred(filters, known_to_filters):
    known, agreed = known_to_filters
    uses = [filters[2, 2, 2], filters[1, 1, 2]]
    for profiles in ((), ("box", "box", "gap")):
        fine, *_ = upscaling.upscale_by(brain(4, (16, 16, 16)), uses, CPU(), Stopwatch(),
                                        profiles=profiles)
        assert fine.shape == (32, 32, 64)
        assert known[-2:] == [profiles, ("kspace", "kspace", "kspace")]
        assert agreed[-2:] == [profiles, ()]  # what was restored is not a scan to agree with


@pytest.mark.parametrize("profiles, agree_with, second", [
    ((), None, ()), (("box", "gap", "gauss"), None, ("box", "gauss", "gap")),
    ((), 3 * ("kspace",), 3 * ("kspace",))])
def test_an_axis_that_no_earlier_filters_refined_keeps_the_scanners_blur(
        filters, known_to_filters, profiles, agree_with, second):
    known, agreed = known_to_filters
    thick = filters[1, 1, 2]
    uses = [thick._replace(axes=axes) for axes in ((1, 2, 0), (0, 2, 1))]
    fine, *_ = upscaling.upscale_by(brain(4, (16, 16, 16)), uses, CPU(), Stopwatch(),
                                    profiles=profiles, agree_with=agree_with)
    assert fine.shape == (32, 32, 16)
    assert known[-1] == second and agreed[-1] == ()
