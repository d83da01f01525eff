"""restoring/figures_of_use.py: figures of phantoms whose edges, noise and classes are known."""
import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import read_rows
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr
from synthetic import save

from filter_constant import Request
from machine.errors import UserError
from nifti.masks import is_same_input
from restoring import evaluation
from restoring.evaluation import FINISHED, evaluate_files
from restoring.figures_of_use import (
    CLASSES,
    FEWEST,
    figures_of_use,
    regions_of,
    table_of_use,
    tissue_figures,
)
from restoring.steps import origin_of

LEVELS = (0.2, 0.5, 0.8)
TEN_PERCENT = 2.5631  # a Gaussian edge rises from 10 to 90 % within this many standard deviations


def radius(size=(1, 1, 1), side=64):
    """Distance in mm from a point near the middle of a cube of `side` mm."""
    axes = [(np.arange(int(side / one)) + 0.3) * one - side / 2 for one in size]
    return np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))


def ball(sigma, size=(1, 1, 1)):
    """A bright ball in a middle one in a dark one: the inner edge has a standard deviation in mm.

    The outer edge is sharp, and black lies around.
    """
    low, middle, high = LEVELS
    from_middle = radius(size)
    volume = (low + (middle - low) * ndtr((25 - from_middle) / 0.5)
              + (high - middle) * ndtr((15 - from_middle) / sigma))
    return np.where(from_middle < 30, volume, 0).astype(np.float32)


def noise(shape, sigma, seed=0):
    return sigma * np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("size", [(1, 1, 1), (0.7, 0.7, 1)], ids=str)
@pytest.mark.parametrize("sigma", [0.8, 1.2, 2.0])
def test_a_known_edge_has_its_width_with_and_without_noise(size, sigma):
    """10 %: voxels within half a voxel of an edge see its slope a little too small."""
    regions = regions_of(ball(1, size), size)
    volume = ball(sigma, size)
    for sample in (volume, volume + noise(volume.shape, 0.03)):
        width = figures_of_use(sample, regions)["edge_width"]
        assert width == pytest.approx(TEN_PERCENT * sigma, rel=0.1)


def test_noise_of_the_original_does_not_sharpen_its_edge():
    clean = ball(1.2)
    noisy = clean + noise(clean.shape, 0.02) * (clean > 0)
    own = regions_of(np.clip(noisy, 0, 1)).own
    assert own["edge_width"] == pytest.approx(TEN_PERCENT * 1.2, rel=0.1)


def test_the_edge_to_the_dark_class_does_not_count():
    """A second bright ball lies in the dark: its edge is sharp, and crosses the same threshold."""
    volume = np.concatenate([ball(2), np.where(radius() < 30, LEVELS[0], 0)]).astype(np.float32)
    beside = np.concatenate([np.full_like(ball(2), np.inf), radius()])
    volume += (LEVELS[2] - LEVELS[0]) * ndtr((14 - beside) / 0.7).astype(np.float32)
    assert regions_of(volume).own["edge_width"] == pytest.approx(TEN_PERCENT * 2, rel=0.1)


@pytest.mark.parametrize("sigma", [0.01, 0.03])
def test_known_noise_is_found_in_flat_places(sigma):
    """The edges do not count, nor does one voxel in a thousand that is far off.

    3 %: a window of 125 voxels holds a little of the noise itself, and of the nearest edge.
    """
    clean = ball(1)
    volume = clean + noise(clean.shape, sigma)
    volume.ravel()[np.random.default_rng(1).permutation(volume.size)[:volume.size // 1000]] = 1
    found = figures_of_use(volume, regions_of(clean))["noise_left"]
    assert found == pytest.approx(100 * sigma, rel=0.03)
    own = regions_of(clean + noise(clean.shape, sigma) * (clean > 0)).own["noise_left"]
    assert own == pytest.approx(100 * sigma, rel=0.03)


def test_noise_is_that_of_a_literal_loop():
    volume = ball(1) + noise(ball(1).shape, 0.02)
    regions = replace(regions_of(ball(1)), flat=regions_of(ball(1)).flat[::300])
    apart = []
    for i, j, k in zip(*np.unravel_index(regions.flat, volume.shape), strict=True):
        window = volume[i - 2:i + 3, j - 2:j + 3, k - 2:k + 3]
        apart.append(volume[i, j, k] - window.mean(dtype=float))
    deviation = np.median(np.abs(apart - np.median(apart))) / 0.67449
    found = figures_of_use(volume, regions)["noise_left"]
    assert len(apart) > FEWEST and found == pytest.approx(100 * deviation, abs=0.006)


def tissue(seed=0):
    """Blocks of three known intensities with noise, and their labels."""
    labels = np.random.default_rng(seed).integers(0, 3, (8, 8, 8)).repeat(4, 0)
    labels = labels.repeat(4, 1).repeat(4, 2)
    volume = np.take(np.float32(LEVELS), labels) + noise(labels.shape, 0.02, seed)
    return np.pad(volume, 3), np.pad(labels, 3, constant_values=-1)


def test_classes_and_their_bias_are_the_known_ones():
    """The thresholds lie at the ends of bins of a histogram, so a voxel there may be on the
    other side.
    """
    volume, labels = tissue()
    regions = regions_of(volume)
    assert np.count_nonzero(regions.classes != labels[volume > 0]) <= 3
    change = np.array([0.02, -0.01, 0.03])  # added to each class
    found = figures_of_use(volume + np.append(change, 0)[labels].astype(np.float32), regions)
    for number, name in enumerate(CLASSES):
        mean = volume[labels == number].mean(dtype=float)
        assert found[f"bias_{name}"] == pytest.approx(100 * change[number] / mean, abs=0.02)


def test_dice_and_volumes_are_those_of_sets_of_voxels():
    volume, labels = tissue()
    random = np.random.default_rng(1)
    moved = np.where(random.random(labels.shape) < 0.1, random.integers(0, 3, labels.shape), labels)
    other = np.where(labels < 0, 0, np.take(np.float32(LEVELS), moved) * np.float32(0.7))
    other += noise(other.shape, 0.01) * (labels >= 0)  # darker: it has thresholds of its own
    found = tissue_figures(other, regions_of(volume))
    for number, name in enumerate(CLASSES):
        true, own = (set(np.flatnonzero((one == number) & (labels >= 0)))
                     for one in (labels, moved))
        assert found[f"dice_{name}"] == pytest.approx(
            2 * len(true & own) / (len(true) + len(own)), abs=5e-4)
        assert found[f"volume_error_{name}"] == pytest.approx(
            100 * (len(own) / len(true) - 1), abs=0.05)


@pytest.mark.parametrize("levels", [(0.5, 0.5, 0.5), (0.2, 0.2, 0.8)], ids=str)
def test_without_three_classes_their_figures_are_left_out(levels):
    """Nothing fails, and the noise is still found."""
    _, labels = tissue()
    volume = np.where(labels < 0, 0, np.take(np.float32(levels), labels))
    regions = regions_of(volume)
    assert list(figures_of_use(volume, regions)) == list(regions.own) == ["noise_left"]
    assert tissue_figures(tissue()[0], regions) == {}
    assert tissue_figures(volume, regions_of(tissue()[0])) == {}


def test_a_class_of_a_few_voxels_does_not_count():
    volume, labels = tissue()
    bright = np.flatnonzero(labels == 2)
    volume.ravel()[bright[FEWEST - 1:]] = LEVELS[0] + noise(bright[FEWEST - 1:].size, 0.02)
    volume.ravel()[bright[:FEWEST - 1]] = 3  # far off: a class of its own
    assert "bias_bright" not in figures_of_use(volume, regions_of(volume))


@pytest.mark.filterwarnings("error")
def test_without_an_edge_between_the_upper_classes_it_has_no_width():
    """The middle and the bright class lie far apart in the dark."""
    volume = np.full((40, 40, 40), LEVELS[0], np.float32)
    volume[:12], volume[28:] = LEVELS[1], LEVELS[2]
    volume = np.pad(volume + noise(volume.shape, 0.01), 3)
    own = figures_of_use(volume, regions_of(volume))
    assert "edge_width" not in own and "bias_bright" in own


@pytest.mark.parametrize("voxels", [1, 2])
def test_a_brain_of_a_few_voxels_has_no_figures(voxels):
    volume = np.zeros((12, 12, 12), np.float32)
    volume[5, 5, 5:5 + voxels] = np.linspace(0.5, 1, voxels)
    regions = regions_of(volume)
    assert figures_of_use(volume, regions) == regions.own == {}


def test_blur_widens_the_edge_and_denoising_lowers_the_noise():
    clean = ball(1) + noise(ball(1).shape, 0.02) * (ball(1) > 0)
    regions = regions_of(clean)
    found = figures_of_use(gaussian_filter(clean, 1.5), regions)
    assert found["edge_width"] > 1.4 * regions.own["edge_width"]
    assert found["noise_left"] < 0.4 * regions.own["noise_left"]


# ---- the evaluation that reports them

def row_of(volume, profile, dice):
    """A row of an evaluation with some figures of use, made up."""
    return {"volume": volume, "profile": profile, "noise": 0.0, "restored_inside": 30.0,
            "gain_inside": 1.0, "gain_whole": 2.0, "original_edge_width": 2.0,
            "restored_edge_width": 2.5, "restored_bias_dark": -10 * dice,
            "restored_dice_dark": dice}


def test_the_table_has_means_over_volumes_for_each_profile():
    rows = [row_of(name, profile, dice) for (name, profile), dice in zip(
        itertools.product("ab", ("box", "kspace")), (0.5, 0.6, 0.7, 0.9), strict=True)]
    _, heads, classes, *lines = table_of_use(rows)
    assert "Dice" in heads and classes.split()[0] == "mm" and len(lines) == 3
    assert lines[0].split() == ["original", "2.00"]
    assert lines[1].split() == ["box", "0%", "restored", "2.50", "6.0", "0.600"]
    assert lines[2].split() == ["kspace", "0%", "restored", "2.50", "7.5", "0.750"]
    assert table_of_use([{"volume": "a", "profile": "box", "noise": 0.0}]) == []


def test_finished_records_without_these_figures_are_kept_and_leave_blanks(
        tmp_path, monkeypatch, capsys):
    """An evaluation that was interrupted goes on with records of a version without figures."""
    paths = [save(tmp_path / f"{name}.nii", np.ones((4, 4, 4), np.float32)) for name in "abc"]
    seen = []

    def evaluate(path, **_):
        seen.append(path.name)
        if path.name == "b.nii" and len(seen) == 2:
            raise KeyboardInterrupt
        if path.name == "c.nii":
            raise UserError("c.nii: no volume")
        row = row_of(path.name, "box", 0.5)
        if path.name == "a.nii":
            row = {name: row[name] for name in list(row)[:6]}
        return {"origin": origin_of(path, evaluation.Seal(path).digest()), "rows": [row]}

    monkeypatch.setattr(evaluation, "evaluate_file", evaluate)
    request = Request.of(preset="scan", test_dir=str(tmp_path))

    class Filters:
        asked = request.method

    def run():
        return evaluate_files(paths, tmp_path / "r", Filters, request, None)

    with pytest.raises(KeyboardInterrupt):
        run()
    kept = evaluation.read_json(tmp_path / "r" / FINISHED / "0.json")
    assert is_same_input(kept["origin"], paths[0], "")
    assert run() == 1 and seen == ["a.nii", "b.nii", "b.nii", "c.nii"]
    first, second = read_rows(tmp_path / "r" / "metrics.csv")
    assert first["restored_dice_dark"] == "" and second["restored_dice_dark"] == "0.5"
    assert first["gain_inside"] == second["gain_inside"] == "1.0"
    assert "0.500" in capsys.readouterr().out
