"""Steps whose absence no other test would notice: each is checked by itself."""
import os
import signal
import time
import tracemalloc
from threading import Event, Thread
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from synthetic import PATIENT, brain

from degrading.spline import upsample
from disk import files
from disk.interrupt import Stop, stopped
from filter_constant import Method, Request
from get_lar import make_fine, make_pair
from hashtable import nearest_buckets
from learning.checkpoint import Checkpoint
from learning.steps import checkpoint_of
from machine import errors, threads
from matrix_compute import Gram, solve
from nifti.geometry import finer_header
from nifti.volumes import write_volume
from octahedral import tree
from structure import structure_of

SMALL = Method(filter_len=3, grad_len=3, q_angle_p=2, q_angle_t=2)


# ---- what is written

@pytest.mark.parametrize("kind, least, most", [(np.uint8, 0, 255), (np.int16, -32768, 32767)])
def test_integers_are_clipped_to_what_their_type_holds(tmp_path, kind, least, most):
    like = nib.Nifti1Image(np.ones((2, 2, 2), kind), np.eye(4))
    data = np.zeros((2, 2, 2), np.float32)
    data[0, 0] = 1e6, -1e6
    write_volume(tmp_path / "v.nii", data, like, dtype="same")
    written = np.asarray(nib.load(tmp_path / "v.nii").dataobj)
    assert written[0, 0].tolist() == [most, least] and not written[1].any()


@pytest.mark.parametrize("order", "CF")
def test_writing_in_the_inputs_type_takes_little_memory_beside_the_volume(tmp_path, order):
    like = nib.Nifti1Image(np.ones((2, 2, 2), np.int16), np.eye(4))
    data = np.asarray(np.random.default_rng(0).random((120, 110, 100), np.float32), order=order)
    write_volume(tmp_path / "v.nii", data[:9, :9, :9], like, dtype="same")
    tracemalloc.start()
    write_volume(tmp_path / "v.nii", data, like, dtype="same")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / data.size < 4


def test_slice_timing_of_a_finer_volume_is_cleared():
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))
    fields = {"slice_start": 1, "slice_end": 3, "slice_code": 2, "slice_duration": 0.5}
    for name, value in fields.items():
        image.header[name] = value
    header = finer_header(image, (8, 8, 8), np.diag([0.5, 0.5, 0.5, 1]))
    assert [float(header[name]) for name in fields] == [0, 0, 0, 0]
    assert float(image.header["slice_duration"]) == 0.5


def test_what_is_written_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace

    def recorded(name, step):
        def act(*arguments):
            steps.append(name)
            return step(*arguments)
        return act

    monkeypatch.setattr(files.os, "fsync", recorded("flush", fsync))
    monkeypatch.setattr(files.os, "replace", recorded("rename", replace))
    files.write_whole(tmp_path / "x", "text")
    assert steps == ["flush", "rename"]


def test_saving_takes_no_more_than_a_tenth_of_the_time(tmp_path):
    request = Request(SMALL, arrays_dir=str(tmp_path), checkpoint_minutes=0)
    checkpoint = checkpoint_of(structure_of(SMALL), [], request)
    assert isinstance(checkpoint, Checkpoint)
    checkpoint.took = 5
    for seconds, due in ((0, False), (45, False), (55, True)):
        checkpoint.saved_at = time.monotonic() - seconds
        assert checkpoint.due() == due


# ---- what is computed

def test_all_of_a_low_resolution_brain_is_restored_but_its_corners_rounding():
    low = np.zeros((9, 9, 9), np.float32)
    low[3:6, 3:6, 3:6] = brain(0, (9, 9, 9))[3:6, 3:6, 3:6] + 1
    fine = make_fine(low, Method(grid="edges", filter_len=3, grad_len=3))
    restored = np.zeros(fine.whole_shape, bool)
    restored[fine.box] = fine.mask
    # Whole voxels of the brain, whose corners weigh (3/4)^3 = 0.42.
    assert restored[6:12, 6:12, 6:12].all()
    share = upsample((low > 0).astype(np.float32), fine.whole_shape, order=1, grid="edges")
    np.testing.assert_array_equal(restored, share >= 0.1)


def test_the_start_by_projections_steps_ahead():
    pair = make_pair(np.pad(brain(0), 4), Method(
        start="projected", feature_space="octahedral", filter_len=7))
    known = pair.consistency
    before = ahead = np.zeros(pair.mask.shape, np.float32)
    plain = before
    for i in range(6):  # Nesterov's method, literally
        estimate = np.clip(ahead + known.correction(ahead), 0, 1) * pair.mask
        ahead = estimate + i / (i + 3) * (estimate - before)
        before, plain = estimate, known.refine(plain, 1)
    np.testing.assert_allclose(known.start(6), estimate, atol=1e-5)
    assert np.abs(plain - estimate).max() > 1e-3


@pytest.mark.parametrize("samples, own", [(29, False), (30, True)])
def test_a_bucket_needs_thirty_samples_for_a_filter_of_its_own(samples, own):
    gram = Gram(SMALL.buckets, SMALL.taps)
    random = np.random.default_rng(0)
    for bucket in range(SMALL.buckets):
        rows = random.standard_normal((60, gram.side))
        gram.packed[bucket] = (rows.T @ rows)[np.tril_indices(gram.side)]
    gram.count[:] = 60
    gram.count[3] = samples
    h = solve(gram, SMALL)
    nearest = nearest_buckets(np.arange(SMALL.buckets) != 3, SMALL)[3]
    assert (not np.array_equal(h[3], h[nearest])) == own


def test_a_split_of_a_large_node_weighs_as_much_as_if_all_its_samples_were_looked_at(monkeypatch):
    random = np.random.default_rng(0)
    bins = random.integers(0, 50, (8000, 3)).astype(np.uint8)
    taps = random.standard_normal((8000, 2))
    target = np.where(bins[:, 1] > 25, taps[:, 0], taps[:, 1])
    samples = np.column_stack([taps, target]).astype(np.float32)
    rows = np.arange(8000)
    gain, feature, _ = tree._best_split(bins, samples, rows)
    monkeypatch.setattr(tree, "MOST_SAMPLES", 2000)
    found, same, _ = tree._best_split(bins, samples, rows)
    assert same == feature == 1 and found == pytest.approx(gain, rel=0.25)


def test_threads_end_after_a_fault_and_begin_no_more_tasks(monkeypatch):
    monkeypatch.setattr(threads, "thread_count", lambda: 3)
    done, raised = [], Event()

    def work(task):
        if task == 0:
            raised.set()
            raise KeyboardInterrupt
        raised.wait(PATIENT)
        time.sleep(0.02)
        done.append(task)

    ended = Event()

    def all_of_it():
        with pytest.raises(KeyboardInterrupt):
            threads.in_threads(range(200), work)
        ended.set()

    Thread(target=all_of_it, daemon=True).start()
    assert ended.wait(PATIENT), "a thread waits for a task for ever"
    assert len(done) < 100


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
def test_the_second_signal_interrupts_at_once():
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_ends_with_the_status_of_its_signal(number, status, capsys):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let jobs behind ignore it
    try:
        assert errors.run("test", lambda: signal.raise_signal(number)) == status
    finally:
        for each, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(each, handler)
    assert capsys.readouterr().err == "test.py: stopped\n"


def test_after_the_work_signals_do_what_they_did_before():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with Stop():
        assert all(signal.getsignal(number) != handler
                   for number, handler in zip(numbers, before, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("volumes, words", [([], "0 volumes"), (["a"], "1 volume"),
                                            (["a", "b"], "2 volumes")])
def test_a_stop_counts_the_volumes_in_all_files_of_sums(volumes, words, capsys):
    kept = [SimpleNamespace(name=name) for name in volumes]
    ledger = SimpleNamespace(kept={0: kept, 9: [*kept, SimpleNamespace(name="ahead")]})
    checkpoint = SimpleNamespace(ledger=ledger, request=Request(restart=True), folder="arrays")
    assert stopped(signal.SIGTERM, checkpoint) == 143
    assert f"; {words} saved in arrays. The same command without" in capsys.readouterr().out
