"""In evaluation all of a brain is restored, also where the published crop leaves some of it out."""
import numpy as np
import pytest
from conftest import load_script
from synthetic import brain, save

from disk.filters import PRETRAINED, load_filters
from engine import CPU
from filter_constant import Request
from get_lar import make_pair
from nifti.volumes import read_volume
from options.command_line import command_line
from restoring.steps import restore, whole_of


def filling(shape, seed=0):
    """A volume of brain from face to face."""
    inner = tuple(slice(side // 2, side // 2 + side) for side in shape)
    return np.maximum(brain(seed, tuple(2 * side for side in shape))[inner], 100)


@pytest.fixture(params=["published", "octahedral"])
def filters(request):
    if request.param == "octahedral":
        return load_filters(Request.of(arrays_dir=str(PRETRAINED)))[:2]
    small = request.getfixturevalue("small_filters")
    return load_filters(Request.of(arrays_dir=str(small.arrays)))[:2]


@pytest.mark.parametrize("shape", [(24, 22, 20), (25, 23, 21), (24, 23, 20)])
def test_a_brain_from_face_to_face_keeps_its_last_planes(filters, shape):
    stages, method = filters
    data = filling(shape)
    assert (data > 0).all()
    pair = make_pair(data, method)
    sr = restore(pair, stages, method)
    whole = whole_of(data, pair, sr, stages, method, CPU())
    assert (whole > 0).mean() > 0.99
    np.testing.assert_array_equal(whole[pair.box], pair.whole(sr)[pair.box])
    outside = np.ones(shape, bool)
    outside[pair.box] = False
    assert outside.any() or method.octahedral
    if outside.any():
        assert np.abs(whole - data)[outside].mean() < 0.1 * data.mean()


def test_the_unit_of_intensities_plays_no_part(filters):
    stages, method = filters
    whole = {}
    for unit in (1, 2.0**-14):  # a power of two, so that nothing is rounded otherwise
        data = filling((25, 23, 21)) * np.float32(unit)
        pair = make_pair(data, method)
        sr = restore(pair, stages, method)
        whole[unit] = whole_of(data, pair, sr, stages, method, CPU()) / np.float32(unit)
    np.testing.assert_array_equal(*whole.values())


def test_other_volumes_are_restored_once(filters, monkeypatch):
    stages, method = filters
    data = np.pad(filling((16, 16, 16)), 8)
    pair = make_pair(data, method)
    sr = restore(pair, stages, method)
    monkeypatch.setattr("restoring.steps.make_pair", None)
    whole = whole_of(data, pair, sr, stages, method, CPU())
    np.testing.assert_array_equal(whole, pair.whole(sr))


def test_the_command_writes_all_of_it_and_gives_the_published_figures(
        tmp_path, pieces, small_filters):
    save(tmp_path / "test" / "v.nii", filling((25, 24, 23)))
    request = command_line("test", [
        "--test_dir", str(tmp_path / "test"), "--arrays_dir", str(small_filters.arrays),
        "--result_dir", str(tmp_path / "result"), "--no-report"])
    assert load_script("test").main(request) == 0
    path, = (tmp_path / "result").rglob("*.nii")
    assert (read_volume(path).data > 0).mean() > 0.99
    rows = next((tmp_path / "result").rglob("metrics.csv")).read_text().splitlines()
    box = make_pair(filling((25, 24, 23)), small_filters.method).hr
    assert int(rows[1].split(",")[1]) <= box.size < 25 * 24 * 23
