"""Scans unlike brains: what shows them, and what becomes of their blur and of the filters."""
import json
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script
from scipy.ndimage import gaussian_filter
from synthetic import brain, save
from test_scan import phantom

import api
from degrading.degradation import SliceProfile
from degrading.descriptors import DESCRIPTOR_NAMES, NOISE, edge_density
from degrading.likeness import (
    BLURRED,
    CUBE,
    DENSE,
    EVEN,
    SIGNAL,
    SPARSE,
    UNEVEN,
    UNKNOWN,
    UNUSED,
    USED,
    Texture,
    Weights,
    belief,
    limits_of,
    sharpness_spread,
    texture_of,
    trust,
)
from degrading.profile_reader import (
    estimate,
    fit_reader,
    likely_profiles,
    read,
    strangeness,
    toward_least_blur,
)
from disk.filters import Filters, load_filters
from filter_constant import Request
from get_lar import make_fine
from octahedral.stages import restore_stages
from octahedral.tree import NO_READER
from options.command_line import command_line
from restoring.adaptation import adapt_to_scan
from restoring.estimates import Estimates, estimates_of, usual_distance
from restoring.evaluation import evaluate_scan
from restoring.own_examples import coarser_examples
from restoring.remarks import say_of_trust, say_of_unlike_slices
from structure import structure_of

CUBES_OF_2 = (2, 2, 2)  # a factor
SEEN = Estimates(np.zeros(22), 1.0, 1.0, 1.0, 1.5)


def reader_of(count=2000, blur=1.0):
    """A reader of four descriptors, and the descriptors that it was fitted to."""
    descriptors = np.random.default_rng(0).normal(size=(count, 4)) * [1, 0.001, 0.1, 2]
    return fit_reader(descriptors, np.full((count, 2), blur)), descriptors


# ---- measures

def test_strangeness_grows_with_the_distance_and_ends_belief():
    reader, descriptors = reader_of()
    usual = [strangeness(reader, one) for one in descriptors]
    assert 0.8 < np.median(usual) < 1.1
    middle, direction = descriptors.mean(0), np.array([1, 0, 0.1, 2])  # the noise stays as it is
    steps = np.linspace(0, 8, 200)
    levels = np.array([strangeness(reader, middle + step * direction) for step in steps])
    assert (np.diff(levels) > 0).all()
    for voxel in (1, 1.6, 2):
        shares = [belief(reader, middle + step * direction, UNKNOWN, voxel, CUBES_OF_2)[0]
                  for step in steps]
        assert shares[0] == 1 and shares[-1] == 0 and (np.diff(shares) <= 0).all()
        usual, too_strange = limits_of(middle[NOISE], voxel)
        expected = np.clip((too_strange - levels) / (too_strange - usual), 0, 1)
        np.testing.assert_allclose(shares, expected, atol=1e-9)
    shares = [trust(reader, middle + step * direction) for step in steps]
    expected = np.clip((UNUSED - levels) / (UNUSED - USED), 0, 1)
    np.testing.assert_allclose(shares, expected, atol=1e-9)


def test_less_strangeness_is_tolerated_in_voxels_as_in_training_and_more_with_much_noise():
    assert limits_of(0) == limits_of(0.01, 1.4) == (1.5, 2)
    assert limits_of(0, 1.8) == limits_of(0.01, 2.6) == pytest.approx((1.2, 1.45))
    assert limits_of(0, 3) == limits_of(0, 5) == (1.4, 1.7)
    assert limits_of(0.05, 1) == limits_of(0.08, 3) == (3, 3.5)
    assert limits_of(0.017, 0.7)[0] > 1.7  # a scan of 0.7 mm is as strange as this; its noise tells
    assert limits_of(0.03, 1.4) == pytest.approx((2.2, 2.7))
    for voxel in (1, 2):
        found = np.array([limits_of(noise, voxel) for noise in np.linspace(0, 0.07, 50)])
        assert (np.diff(found, axis=0) >= 0).all() and (found[:, 0] < found[:, 1]).all()
        # The blur is not believed any more where the spline begins to replace the filters.
        assert found[:, 1].max() < USED


@pytest.mark.parametrize("size, share", [(1, 1), (2, 0)])
def test_the_voxel_size_of_a_scan_and_of_a_degraded_volume_reach_the_limits(
        tmp_path, monkeypatch, size, share):
    """At this strangeness, the blur is believed for fine voxels alone."""
    monkeypatch.setattr("degrading.likeness.strangeness", lambda *_: 1.5)
    monkeypatch.setattr("get_lar.texture_of", lambda *_: Texture(DENSE, 0.0))
    monkeypatch.setattr("degrading.likeness.estimate", lambda *_: np.ones(2))
    scan = save(tmp_path / "low.nii", phantom(0), np.diag(3 * [size] + [1]))
    request = command_line("test", ["--upscale", "--test_dir", str(scan), "--no-report",
                                    "--output", str(tmp_path / "fine.nii")])
    assert load_script("test").main(request) == 0
    record = json.loads((tmp_path / ".fine.json").read_text())
    assert record["figures"]["blur_trust"] == share and record["figures"]["trust"] == 1
    fine = []
    monkeypatch.setattr("restoring.evaluation.restore", lambda volume, *_: fine.append(volume)
                        or volume.lr)
    request = Request.of(preset="scan")
    evaluate_scan(phantom(0), load_filters(request), request, "box", 0, "v",
                  voxel_size=3 * (size / 2,))
    assert fine[0].voxel == pytest.approx(size)


def test_filters_learned_without_a_reader_find_nothing_strange():
    filters = load_filters(Request.of(preset="scan"))
    volume, stages = make_fine(phantom(0), filters.method), filters.stages
    blind = [stage._replace(classes=stage.classes._replace(reader=NO_READER)) for stage in stages]
    volume = replace(volume, descriptors=np.full(len(DESCRIPTOR_NAMES), 100, np.float32),
                     texture=Texture(0.0, 9.0))
    method = structure_of(filters.method)
    assert method.weights(volume, blind) == (1, 1, "")
    assert method.weights(volume, stages) == (0, 0, "noise and blur")


@pytest.mark.parametrize("full, none, texture, reason", [
    (DENSE, SPARSE, lambda value: Texture(value, 0.0), "few edges"),
    (EVEN[0][0], UNEVEN[0][0], lambda value: Texture(1.0, value), "uneven sharpness"),
    (EVEN[1][0], UNEVEN[1][0], lambda value: Texture(1.0, value), "uneven sharpness")])
def test_few_edges_and_uneven_sharpness_end_belief(full, none, texture, reason):
    reader, _ = reader_of()
    voxel = 1.0 if full != EVEN[1][0] else 2.0
    found = [belief(reader, np.zeros(4), texture(value), voxel, CUBES_OF_2)
             for value in (2 * full - none, full, (full + none) / 2, none, 2 * none - full)]
    assert found[:2] == [(1, ""), (1, "")] and found[3:] == [(0, reason), (0, reason)]
    assert found[2] == (pytest.approx(0.5), reason)


def test_unevenness_of_noisy_scans_means_nothing():
    """The sharpness of a noisy cube is uncertain."""
    reader = fit_reader(np.random.default_rng(0).normal(size=(500, 4)), np.ones((500, 2)))
    found = [belief(reader, np.array([0, noise, 0, 0]), Texture(1.0, 0.6), 2.0, CUBES_OF_2)[0]
             for noise in (0.0, 0.03, 0.045, 0.05)]
    assert found == [0, 0, 1, 1]


def test_less_signal_than_a_window_leaves_ends_belief():
    reader, _ = reader_of(blur=0.5)
    found = []
    for mean in (0.5, SIGNAL[0], (SIGNAL[0] + BLURRED[0]) / 2, BLURRED[0], -0.3):
        lower = reader.copy()
        lower[:2, 0] += mean - 0.5 + np.array([0.2, -0.2])  # only their mean counts
        found.append(belief(lower, np.zeros(4), UNKNOWN, 1.0, CUBES_OF_2))
    assert [share for share, _ in found] == pytest.approx([1, 1, 0.5, 0, 0], abs=0.01)
    assert found[-1][1] == "smoothed"


def blocks():
    """A phantom of a few flat blocks with sharp borders, far from any brain."""
    volume = np.zeros((56, 56, 56), np.float32)
    volume[6:50, 6:50, 6:50] = 0.2
    volume[14:40, 20:44, 16:36] = 1.0
    volume[20:30, 24:30, 30:46] = 0.6
    return volume


def test_density_of_edges_is_small_in_blocks_and_large_in_tissue():
    volume = gaussian_filter(phantom(0), 1.0) * (phantom(0) > 0) / 1000
    assert edge_density(blocks()) < SPARSE < DENSE < edge_density(volume)
    steps = [volume[2:] - volume[:-2], volume[:, 2:] - volume[:, :-2],
             volume[:, :, 2:] - volume[:, :, :-2]]
    inside = volume > 0
    kept = [inside[2:] & inside[1:-1] & inside[:-2],
            inside[:, 2:] & inside[:, 1:-1] & inside[:, :-2],
            inside[:, :, 2:] & inside[:, :, 1:-1] & inside[:, :, :-2]]
    found = np.abs(np.concatenate([step[keep] for step, keep in zip(steps, kept, strict=True)]))
    expected = np.median(found) / np.sqrt(np.mean(found.astype(float) ** 2))
    assert edge_density(volume) == pytest.approx(expected, rel=1e-5)
    assert edge_density(np.ones((9, 9, 9), np.float32)) == 1


def slow_spread(unit, noise):
    """`sharpness_spread`, voxel by voxel."""
    used = [np.flatnonzero((unit > 0).any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    for axis, places in enumerate(used):
        count = int(places[-1] - places[0]) + 1
        start = places[0] + count % CUBE // 2
        unit = np.take(unit, range(start, start + count // CUBE * CUBE), axis)
    found = []
    for axis in range(3):
        finest, energy = [], []
        x = np.moveaxis(unit, axis, 0).astype(np.float64)
        for corner in np.ndindex(*(side // CUBE for side in x.shape)):
            second, first = [], []
            for place in np.ndindex(CUBE, CUBE, CUBE):
                i, j, k = np.multiply(corner, CUBE) + place
                if not 2 <= i < len(x) - 2:
                    continue
                a, b, c, d, e = x[i - 2:i + 3, j, k]
                if min(a, b, c, d, e) > 0:
                    second.append((b - 2 * c + d) ** 2 / 6)
                    first.append((d - b) ** 2 / 2)
            if len(first) >= 0.6 * CUBE**3:
                finest.append(np.mean(second) - noise**2)
                energy.append(np.mean(first) - noise**2)
        finest, energy = np.array(finest), np.array(energy)
        used = energy > max(np.quantile(energy, 0.3), 4 * noise**2 / np.sqrt(CUBE**3 / 4))
        sharpness = np.log(np.maximum(finest[used] / energy[used], 0.02))
        found.extend(sharpness - np.median(sharpness))
    first, third = np.quantile(found, [0.25, 0.75])
    return third - first


@pytest.mark.parametrize("noise", [0, 0.02])
def test_spread_of_sharpness_equals_its_slow_twin(noise):
    rng = np.random.default_rng(0)
    volume = gaussian_filter(rng.random((43, 38, 51)), (0.7, 0.7, 1.5)).astype(np.float32)
    volume[24:] = gaussian_filter(volume[24:], 1)
    volume *= np.linalg.norm(np.indices(volume.shape) - np.array([20, 20, 26])[:, None, None, None],
                             axis=0) < 24
    found = sharpness_spread(volume, noise)
    assert found == pytest.approx(slow_spread(volume, noise), rel=1e-4) and found > 0.1


def test_background_flips_and_turns_leave_the_spread_of_sharpness_as_it_is():
    volume = gaussian_filter(np.random.default_rng(0).random((42, 44, 50)), 0.8).astype(np.float32)
    volume[20:] = gaussian_filter(volume[20:], 1)
    expected = sharpness_spread(volume, 0)
    padded = np.pad(volume, [(3, 8), (1, 0), (0, 7)])
    for other in (padded, volume[::-1], volume[:, ::-1, ::-1], volume.transpose(2, 0, 1)):
        found = sharpness_spread(np.ascontiguousarray(other), 0)
        assert found == pytest.approx(expected, rel=1e-4)
    assert sharpness_spread(np.zeros((20, 20, 20), np.float32), 0) == 0


def test_axes_of_different_sharpness_are_not_uneven():
    """As of a scan with another profile across its slices, or shifted along one axis."""
    texture = gaussian_filter(np.random.default_rng(0).random((60, 60, 60)), 0.8)
    blurred = (texture + np.roll(texture, 1, 0)) / 2
    spread = [sharpness_spread(volume.astype(np.float32), 0) for volume in (texture, blurred)]
    assert spread[1] < 1.3 * spread[0]


def test_spread_of_sharpness_of_few_cubes_is_zero_and_large_volumes_are_sampled(monkeypatch):
    volume = np.random.default_rng(0).random((84, 82, 70), np.float32)  # 8 x 8 x 7 cubes
    volume[42:] = 20 * gaussian_filter(volume[42:], 1)
    assert sharpness_spread(volume[:, :12, :12], 0) == 0 == sharpness_spread(volume[:5], 0)
    whole = sharpness_spread(volume, 0)
    monkeypatch.setattr("degrading.likeness.MOST_VOXELS", volume.size // 8)  # every second cube
    sampled = sharpness_spread(volume, 0)
    assert sampled != whole and sampled > 0.5
    for other in (volume[::-1], volume.transpose(1, 2, 0), volume[:, ::-1].transpose(2, 0, 1)):
        assert sharpness_spread(np.ascontiguousarray(other), 0) == pytest.approx(sampled, rel=1e-4)


def test_an_average_of_subjects_is_uneven():
    """It is sharp where all brains agree, and blurred elsewhere."""
    rng = np.random.default_rng(0)
    one = gaussian_filter(rng.random((64, 64, 64), np.float32), 0.8)
    average = np.where(np.arange(64)[:, None, None] < 28, one, 3 * gaussian_filter(one, 1.2))
    descriptors = np.zeros(len(DESCRIPTOR_NAMES))
    spread = [texture_of(np.pad(volume / volume.max(), 4), descriptors).uneven
              for volume in (one, average)]
    assert spread[0] < 0 and spread[1] > spread[0] + 0.7
    assert texture_of(one, None) == UNKNOWN


# ---- what follows

def test_a_doubted_reading_moves_toward_the_least_blur():
    reader, _ = reader_of(blur=0.6)
    descriptors = np.array([0.3, 0, 0, 0])
    plain = read(reader, descriptors)
    for share in (0, 0.3, 1):
        error = toward_least_blur(reader, descriptors, share)
        expected = 1 - share * (1 - plain)
        np.testing.assert_allclose(read(reader, descriptors, error), expected, atol=1e-6)
    reader[:2, 0] -= 2  # a reading below 0 counts as 0
    assert estimate(reader, descriptors).max() < 0
    error = toward_least_blur(reader, descriptors, 0.25)
    np.testing.assert_allclose(read(reader, descriptors, error), 0.75, atol=1e-6)


def test_the_belief_reaches_the_filters_unless_the_profile_is_given(monkeypatch):
    filters = load_filters(Request.of(preset="scan"))
    method, stages = structure_of(filters.method), filters.stages
    reader = stages[0].classes.reader
    volume, seen = make_fine(phantom(0), filters.method), []
    monkeypatch.setattr("structure.restore_stages", lambda volume, *_, **__: seen.append(
        volume.reading_error) or volume.lr)
    for share in (1, 0.4):
        monkeypatch.setattr("structure.weights_of", lambda *_, share=share: Weights(1.0, share))
        method.restore(volume, stages, None)
    assert seen[0] is None
    np.testing.assert_array_equal(seen[1], toward_least_blur(reader, volume.descriptors, 0.4))
    blurs = [read(reader, volume.descriptors, error) for error in (0, seen[1])]
    told = make_fine(phantom(0), filters.method, profiles=3 * ("gauss",))
    with_belief, without = (restore_stages(replace(told, reading_error=error), stages,
                                           filters.method) for error in (seen[1], None))
    assert blurs[1].min() > blurs[0].min()
    np.testing.assert_array_equal(with_belief, without)
    use = Filters(stages, filters.method, (0, 1, 2))
    assert estimates_of(volume, use).belief == 0.4 and estimates_of(told, use).belief == 1


def test_a_phantom_far_from_brains_is_not_oversharpened(tmp_path, capsys):
    fine = np.kron(blocks(), np.ones((2, 2, 2), np.float32))
    method = load_filters(Request.of(preset="scan")).method
    operator = SliceProfile(fine.shape, method, 3 * ("box",))
    low = np.maximum(operator.forward(fine), 0)
    save(tmp_path / "phantom.nii.gz", 1000 * low)
    target = tmp_path / "fine.nii.gz"
    request = command_line("test", ["--upscale", "--test_dir", str(tmp_path / "phantom.nii.gz"),
                                    "--output", str(target)])
    assert load_script("test").main(request) == 0
    out = capsys.readouterr().out
    assert "(noise and blur); the least blur is assumed, so that no detail is invented" in out
    restored, spline = nib.load(target).get_fdata() / 1000, operator.spline(low)
    assert restored.max() < spline.max() - 0.2  # the rims of the spline are higher
    assert np.square(restored - fine).mean() < 0.7 * np.square(spline - fine).mean()
    figures = json.loads((tmp_path / "fine.json").read_text())["figures"]
    assert figures["blur_trust"] == 0 and figures["trust"] == 1 and figures["edge_density"] == 0
    page = (tmp_path / "fine.html").read_text(encoding="utf-8")
    assert "estimated blur used" in page and "0 %; otherwise the least blur is assumed" in page


def test_a_volume_that_resembles_no_scan_gets_the_spline(tmp_path, capsys):
    low = gaussian_filter(phantom(0), 2) * (phantom(0) > 0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fine, told = api.upscale(low, 2), api.upscale(low, 2, profile="kspace")
    (words,) = (str(one.message) for one in said)
    assert "all of the weight goes to the quintic spline" in words
    expected = make_fine(low, load_filters(Request.of(preset="scan")).method)
    spline = expected.whole(expected.lr)
    np.testing.assert_allclose(fine, spline, atol=0.1)
    assert np.abs(told - spline).max() > 1  # a given profile counts whatever the volume


@pytest.mark.parametrize("factor, distance, said", [
    ((1, 1, 4), 1.8, True), ((1, 1, 4), 1.4, False), ((1, 1, 4), None, False),
    ((2, 2, 2), 1.8, False)])  # of which `say_of_trust` reports
def test_thick_slices_that_are_unlike_brains_are_reported(capsys, factor, distance, said):
    method = load_filters(Request.of(preset="scan", factor=factor)).method
    say_of_unlike_slices("scan", SEEN._replace(distance=distance), method)
    assert ("distance 1.8, usual up to 1.5" in capsys.readouterr().out) == said


def test_the_usual_distance_of_slices_depends_on_their_noise():
    method = load_filters(Request.of(preset="scan", factor=(1, 1, 4))).method
    descriptors = np.zeros(len(DESCRIPTOR_NAMES))
    found = []
    for descriptors[NOISE] in (0, 0.03, 0.06):
        found.append(usual_distance(descriptors, method, 1.0))
    assert found == [1.5, 1.5, 3.0]


@pytest.mark.parametrize("factor", [(2, 2, 2), (3, 3, 3)])
def test_factor_and_voxel_size_reach_the_belief(monkeypatch, tmp_path, factor):
    filters, given = load_filters(Request.of(preset="scan", factor=factor)), []

    def believed(reader, descriptors, texture, voxel, factor):
        given.append((voxel, tuple(factor)))
        return 0.5, "few edges"

    for module in ("degrading.likeness", "restoring.own_examples"):
        monkeypatch.setattr(f"{module}.belief", believed)
    volume = make_fine(phantom(0), filters.method, voxel_size=(2, 2, 2))
    assert estimates_of(volume, Filters(filters.stages, filters.method)).reason == "few edges"
    adapt_to_scan(phantom(0), filters.stages, filters.method, (2, 2, 2))
    assert given == [(pytest.approx(2), factor)] * 2
    if factor == (2, 2, 2):
        image = nib.Nifti1Image(phantom(0), np.diag([2000.0, 2000, 2000, 1]))
        image.header.set_xyzt_units("micron")
        nib.save(image, tmp_path / "v.nii")
        for words in (["--look"], ["--upscale", "--adapt", "--no-report", "--output",
                                   str(tmp_path / "o.nii")]):
            given.clear()
            request = command_line("test", [*words, "--test_dir", str(tmp_path / "v.nii")])
            assert load_script("test").main(request) == 0
            assert given and given == len(given) * [(pytest.approx(2), factor)]


def test_examples_for_fine_tuning_have_the_least_blur_too(monkeypatch):
    monkeypatch.setattr("restoring.own_examples.belief", lambda *_: (0.0, "few edges"))
    filters = load_filters(Request.of(preset="scan"))
    reader, low = filters.stages[0].classes.reader, phantom(0)
    blurred = gaussian_filter(low, 0.7) * (low > 0)
    for example in coarser_examples(blurred, reader, filters.method):
        seen = read(reader, example.descriptors, example.reading_error)
        np.testing.assert_allclose(seen, 1, atol=1e-6)
    names = [example.operator.profiles for example in coarser_examples(blurred, reader,
                                                                       filters.method)]
    least = likely_profiles(np.ones(2, np.float32))
    assert len(names) == len(least) and "hamming" not in least


@pytest.mark.parametrize("distance, alike", [(1.4, "like"), (1.6, "unlike")])
def test_look_says_of_thick_slices_if_they_are_like_brains(
        tmp_path, capsys, monkeypatch, distance, alike):
    """As upscaling does: by the distance alone, whatever the texture."""
    monkeypatch.setattr("restoring.looking.strangeness", lambda *_: distance)
    monkeypatch.setattr("restoring.looking.texture_of", lambda *_: Texture(0.0, 9.0))
    save(tmp_path / "v.nii", phantom(0, (64, 60, 56))[..., ::4], np.diag([1, 1, 4, 1]))
    load_script("test").main(command_line("test", ["--look", "--test_dir", str(tmp_path)]))
    out = capsys.readouterr().out
    assert f"brains    {alike} the training brains" in out and "--isotropic" in out


def test_later_volumes_of_a_series_that_are_unlike_brains_are_counted_in_one_message(
        tmp_path, capsys):
    series = np.stack([brain(seed, (26, 24, 22)) for seed in (1, 5, 0)], -1)
    save(tmp_path / "series.nii.gz", series)
    request = command_line("test", ["--upscale", "--test_dir", str(tmp_path / "series.nii.gz"),
                                    "--output", str(tmp_path / "fine.nii.gz"), "--no-report"])
    assert load_script("test").main(request) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "unlike" in line)
    assert line.startswith("series.nii.gz: 2 of 3 volumes, such as volume 2, are unlike the "
                           "training brains of the filters; the least blur is assumed with up to "
                           "all of the weight")


def test_one_later_volume_that_is_unlike_brains_is_named(capsys):
    say_of_trust("a.nii", {0: SEEN, 2: SEEN}, 3)
    assert capsys.readouterr().out == ""
    say_of_trust("a.nii", {0: SEEN, 2: SEEN._replace(trust=0.25)}, 3)
    assert capsys.readouterr().out.startswith(
        "a.nii: volume 3 of 3 is unlike the training brains of the filters; 75% of the weight goes "
        "to the quintic spline")


def test_volumes_with_a_spline_and_volumes_with_the_least_blur_are_counted_apart(capsys):
    strange, even = SEEN._replace(trust=0.5, belief=0.0), SEEN._replace(belief=0.999)
    say_of_trust("a.nii", {0: strange, 1: even, 2: SEEN, 3: even}, 4)
    first, second = capsys.readouterr().out.splitlines()
    assert "volume 1 of 4 is unlike" in first and "50% of the weight goes to the quintic" in first
    assert "2 of 4 volumes, such as volume 2, are unlike" in second and "--profile" in second
    assert "the least blur is assumed with up to 1% of the weight" in second
    say_of_trust("a.nii", {0: even}, measured=True)
    assert "--profile" not in capsys.readouterr().out


def test_the_record_of_a_series_has_its_lowest_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("degrading.likeness.trust",
                        lambda reader, seen: 1.0 if seen[NOISE] > 0.002 else 0.5)
    series = np.stack([brain(seed, (26, 24, 22)) for seed in (1, 5)], -1)
    request = command_line("test", [
        "--upscale", "--test_dir", str(save(tmp_path / "series.nii.gz", series)), "--output",
        str(tmp_path / "fine.nii.gz"), "--no-report"])
    assert load_script("test").main(request) == 0
    figures = json.loads((tmp_path / ".fine.json").read_text())["figures"]
    assert figures["blur_trust"] == 0 and figures["distance"] < figures["usual_distance"]
    assert figures["trust"] == 0.5


def test_air_of_a_head_does_not_count_as_uneven():
    noise = np.abs(np.random.default_rng(0).normal(0, 0.01, (72, 68, 64))).astype(np.float32)
    head = gaussian_filter(np.random.default_rng(1).random((72, 68, 64)), 0.8).astype(np.float32)
    inside = np.zeros(head.shape, bool)
    inside[10:60, 10:58, 10:54] = True
    descriptors = np.zeros(len(DESCRIPTOR_NAMES))
    in_air, alone = (texture_of(np.where(inside, head, air), descriptors) for air in (noise, 0))
    assert in_air.uneven == pytest.approx(alone.uneven, abs=0.02)


def test_the_reading_shows_a_smoothed_volume_at_factor_2_only():
    """At larger factors, the reading of brains under a window may be negative."""
    reader, _ = reader_of(blur=0.5)
    reader[:2, 0] -= 0.8
    found = [belief(reader, np.zeros(4), UNKNOWN, 2.0, 3 * (factor,))[0] for factor in (2, 3, 4)]
    assert found == [0, 1, 1]


def test_the_reason_is_named_where_it_is_only_one(capsys):
    say_of_trust("a.nii", {0: SEEN._replace(belief=0.25, reason="few edges")})
    assert ("brains of the filters (few edges); the least blur is assumed with 75% of the weight"
            ) in capsys.readouterr().out
