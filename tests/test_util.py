"""util.py: filters on disk, and the figures."""

import csv
import io
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import naive
import nibabel as nib
import numpy as np
import pytest
from conftest import one_line, run_process
from skimage.metrics import structural_similarity
from synthetic import filter_paths, one_stage

from disk.files import write_whole
from disk.filters import load_filters, save_filters
from disk.metrics import mean_row, metrics_row, write_metrics
from filter_constant import Method, Request
from hashtable import Boundaries
from machine.progress import Stopwatch, progress
from nifti.volumes import write_volume
from restoring.figures import brain_mask, figures

SMALL = Method(filter_len=3, grad_len=3, q_angle_p=2, q_angle_t=2)


# ---- filters


@pytest.fixture
def saved(tmp_path):
    """Filters on disk, and the request that finds them."""
    request = Request(SMALL, arrays_dir=str(tmp_path / "arrays"))
    rng = np.random.default_rng(47)
    h = rng.standard_normal((SMALL.buckets, SMALL.taps)).astype(np.float32)
    boundaries = Boundaries(np.array([0.001, 0.02]), np.array([0.25, 0.5]))
    save_filters(one_stage(h, boundaries), request, ["a.nii.gz", "sub/b.nii.gz"])
    return SimpleNamespace(
        h=h, boundaries=boundaries, request=request, paths=filter_paths(request)
    )


def test_filters_lie_under_their_published_names(saved):
    assert [path.name for path in saved.paths] == [
        "h_2.npy",
        "Qfactor_str2",
        "Qfactor_coh2",
        "settings_2.json",
    ]
    assert sorted(path.name for path in saved.paths[0].parent.iterdir()) == sorted(
        path.name for path in saved.paths
    )
    for path in saved.paths[:3]:
        np.load(path, allow_pickle=False)
    about = json.loads(saved.paths[3].read_text())
    assert about["volumes"] == ["a.nii.gz", "sub/b.nii.gz"]


def test_filters_of_several_factors_lie_side_by_side(saved):
    other = saved.request.but(factor=(1, 1, 4))
    save_filters(one_stage(saved.h, saved.boundaries), other, [])
    assert filter_paths(other)[0].name == "h_1x1x4.npy"
    assert load_filters(other).method.factor == (1, 1, 4)
    assert load_filters(saved.request).method.factor == (2, 2, 2)


def test_filters_come_back_as_they_were_saved_with_their_settings(saved):
    learned = saved.request.but(sharpen=True, seed=3, solver="cg", lr_type="kspace")
    save_filters(one_stage(saved.h, saved.boundaries), learned, [])
    plain = Request(arrays_dir=learned.arrays_dir, test_dir="elsewhere", blend_threshold=7)
    found = load_filters(plain)
    ((boundaries, h),) = found.stages
    np.testing.assert_array_equal(h, saved.h)
    for read, written in zip(boundaries, saved.boundaries):
        np.testing.assert_array_equal(read, written)
    assert (found.method, found.folder) == (learned.method, learned.arrays_dir)


@pytest.mark.parametrize(
    "change",
    [
        dict(filter_len=5),
        dict(grad_len=5),
        dict(q_angle_p=3),
        dict(q_angle_t=3),
        dict(feature_type="trace_fa"),
        dict(lr_type="kspace"),
    ],
    ids=str,
)
def test_filters_learned_with_other_settings_are_refused(saved, change):
    name, value = next(iter(change.items()))
    text = one_line(load_filters, saved.request.but(given=frozenset({name}), **change))
    assert f"--{name}" in text
    assert str(value) in text
    assert str(getattr(SMALL, name)) in text
    assert "settings_2.json" in text


def test_equal_settings_may_be_given(saved):
    given = "filter_len", "grad_len", "q_angle_p", "q_angle_t", "feature_type", "lr_type", "factor"
    load_filters(saved.request.but(given=frozenset(given)))


def test_filters_of_another_factor_are_pointed_at(saved):
    asked = saved.request.but(given=frozenset({"factor"}), factor=(3, 3, 3))
    text = one_line(load_filters, asked)
    assert "settings_3.json" in text and "--factor 2" in text


@pytest.mark.parametrize("number", range(4))
def test_missing_file_is_named(saved, number):
    saved.paths[number].unlink()
    assert saved.paths[number].name in one_line(load_filters, saved.request)


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
        np.save(
            tmp_path / "x.npy", np.array([Burglar(tmp_path / "loot")], object), allow_pickle=True
        )
        saved.paths[number].write_bytes((tmp_path / "x.npy").read_bytes())
    else:
        saved.paths[number].write_bytes(pickle.dumps(Burglar(tmp_path / "loot")))
    assert saved.paths[number].name in one_line(load_filters, saved.request)
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
    assert path.name in one_line(load_filters, saved.request)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"settings": {}}',
        '{"settings": {"factor": [2, 2, 2], "nonsense": 1}}',
        '{"settings": {"factor": 2}}',
        "null",
    ],
)
def test_spoilt_settings_are_refused_by_name(saved, text):
    saved.paths[3].write_text(text)
    assert "settings_2.json" in one_line(load_filters, saved.request)


@pytest.mark.parametrize("value", [5, None, True, "a.nii.gz", {"a": 1}])
def test_settings_whose_volumes_are_no_list_are_refused_by_name(saved, value):
    about = json.loads(saved.paths[3].read_text())
    saved.paths[3].write_text(json.dumps(about | {"volumes": value}))
    assert "volumes is no list" in one_line(load_filters, saved.request)


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
    pair = SimpleNamespace(
        hr=hr,
        box=(slice(2, 14), slice(0, 13), slice(0, 14)),
        operator=SimpleNamespace(shape=(16, 13, 30)),
    )
    mask = brain_mask(pair)
    assert mask.sum() == 6 * 3 * 9 - 1  # 3 to 8 along the first axis, 5 to 7, 5 to 13
    assert mask[3, 5, 5]
    assert mask[8, 7, 13]
    assert not mask[2, 5, 5]
    assert not mask[9, 5, 5]
    assert not mask[6, 6, 6]
    tiny = SimpleNamespace(
        hr=hr[:8, :8, :8], box=(slice(0, 8),) * 3, operator=SimpleNamespace(shape=(8, 8, 8))
    )
    assert brain_mask(tiny).sum() == 8**3 - 1


def test_the_mean_has_all_figures_and_no_names():
    rows = [{"volume": "a", "mask": "m", "brain_voxels": 10, "sr_psnr": 30.0},
            {"volume": "b", "mask": "n", "brain_voxels": 20, "sr_psnr": 32.0}]
    assert mean_row(rows) == {"volume": "mean", "brain_voxels": 15, "sr_psnr": 31.0}
    assert mean_row(rows[:1]) == {"volume": "mean", "brain_voxels": 10, "sr_psnr": 30.0}


def test_metrics_are_written_as_csv_with_one_row_a_volume(tmp_path):
    values = {
        image: {"psnr": psnr, "ssim": 0.9, "psnr_box": psnr + 4, "ssim_box": 0.95}
        for image, psnr in (("lr", 25.0), ("spline5", 28.123456789), ("sr", 30.0))
    }
    write_metrics(
        tmp_path / "metrics.csv",
        [metrics_row(name, 1000, values) for name in ("a.nii.gz", "b, c.nii.gz")],
    )
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["volume"] for row in rows] == ["a.nii.gz", "b, c.nii.gz"]
    assert rows[0]["spline5_psnr"] == "28.12346"
    assert float(rows[0]["gain_over_spline"]) == pytest.approx(30 - 28.123456789, abs=1e-5)
    assert all(all(row.values()) for row in rows)


@pytest.mark.skipif(os.name == "nt", reason="no file modes of this kind on Windows")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_results_may_be_read_by_whom_the_user_lets_read_files(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_volume(
            tmp_path / "x.nii.gz",
            np.ones((4, 5, 6)),
            nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)),
        )
        write_whole(tmp_path / "report.html", "text")
        write_metrics(tmp_path / "metrics.csv", [{"volume": "x.nii.gz"}])
        save_filters(
            one_stage(
                np.zeros((SMALL.buckets, SMALL.taps), np.float32),
                Boundaries(np.zeros(2), np.zeros(2)),
            ),
            Request(SMALL, arrays_dir=str(tmp_path)),
            [],
        )
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) == 7 and set(modes.values()) == {0o666 & ~mask}


def test_times_of_a_step_add_up(monkeypatch):
    times = iter([10.0, 10.5, 20.0, 21.0, 30.0, 30.25])
    monkeypatch.setattr("machine.progress.time.perf_counter", lambda: next(times))
    watch = Stopwatch()
    for step in ("read", "restore", "read"):
        with watch(step):
            pass
    assert watch.seconds == {"read": 0.75, "restore": 1.0}


@pytest.mark.parametrize("quiet", [False, True])
def test_a_bar_is_shown_on_a_terminal_unless_quiet(monkeypatch, quiet):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress(3, "summing", "volume", quiet) as bar:
        bar.update()
    assert ("summing" in terminal.getvalue()) == (not quiet)


def test_bars_share_no_semaphore_that_a_killed_process_would_leave():
    words = ("import multiprocessing; multiprocessing.set_start_method('spawn')\n"  # as on workers
             "from machine.progress import progress, say; progress(2, 'a', 'b').update()\n"
             "say('c')\n"
             "from multiprocessing.resource_tracker import _resource_tracker as tracker\n"
             "assert tracker._pid is None")
    done = run_process("-c", words)
    assert (done.returncode, done.stdout) == (0, "c\n"), done.stderr
