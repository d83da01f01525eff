"""train.py --scheduler: the filters of the plain run, and one line for what is wrong."""
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic import QUICK, brain, command, save

from disk.interrupt import Stop
from machine.memory import GB

pytest.importorskip("distributed", reason="needs requirements-cluster.txt")
training_of = pytest.importorskip("cluster.training")
SCAN = ("--preset", "scan", "--stages", "1", "--leaves", "4", "--filter_len", "5", "--draws", "3")
BEST = ("--preset", "best", "--stages", "2", "--leaves", "4", "--filter_len", "5")


@pytest.mark.parametrize(("options", "files"), [(QUICK, ["h_2.npy"]), (BEST, None), (SCAN, None)])
@pytest.mark.usefixtures("shared_workers")
def test_filters_are_those_of_the_plain_run(options, files, tmp_path):
    for n in range(3):
        save(tmp_path / "train" / f"v{n}.nii.gz", brain(n))
    (tmp_path / "train" / "bad.nii.gz").write_bytes(b"no volume")
    for name, more in (("plain", ()), ("cluster", ("--scheduler", "local:2"))):
        status, out, errors = command("train.py", "--train_dir", tmp_path / "train", "--arrays_dir",
                                      tmp_path / name, *options, *more)
        assert status == 1 and "1 of 4 volumes" in errors[-1], errors
        assert all("bad.nii.gz" in line for line in errors[:-1]), errors  # once a stage
    assert "Cluster: 2 workers" in out and "on worker tls://" in errors[0]
    names = files or [path.name for path in (tmp_path / "plain").glob("*.npy")]
    assert names
    for name in names:
        ours, theirs = (np.load(tmp_path / run / name) for run in ("cluster", "plain"))
        # Sums are added in another order; solving makes that rounding larger by the condition.
        assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


def test_a_scheduler_that_does_not_answer_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.connecting.PATIENCE", 1)
    save(tmp_path / "train" / "v.nii.gz", brain())
    status, _, errors = command("train.py", "--train_dir", tmp_path / "train", "--arrays_dir",
                                tmp_path / "arrays", "--scheduler", "tcp://127.0.0.1:9")
    assert status == 2 and len(errors) == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in errors[0]


def training(slots=2, memory=4 * GB):
    """A training on workers that do not exist."""
    return training_of.OnCluster(
        SimpleNamespace(slots=slots, smallest=lambda: ("tcp://a:1", memory)))


def test_sums_take_a_third_of_a_workers_memory_besides_the_idle_process(monkeypatch):
    monkeypatch.setattr(training_of, "memory_budget", lambda limit: limit * GB)
    found = training(memory=3.35 * GB)
    assert found.budget(None) == found.budget(2.0) == pytest.approx(GB)
    assert found.budget(0.5) == 0.5 * GB


def test_rounds_of_volumes_last_as_long_as_the_interval_between_checkpoints(monkeypatch):
    now = 0.0
    monkeypatch.setattr(training_of, "time", SimpleNamespace(monotonic=lambda: now))
    found, sizes = training(), []
    records = {f"v{number}": number for number in range(37)}
    rounds = found._rounds(records, SimpleNamespace(checkpoint_minutes=2), Stop())
    # Seconds of each round, and of saving its sums: half the interval, then so much saving that
    # the interval becomes 240 s, then longer than any interval, then shorter than a quarter.
    for part, (seconds, saving) in zip(rounds, ((60, 0), (480, 24), (1e6, 0), (1, 0), (1, 0))):
        sizes.append(len(part))
        now += seconds
        found.saving = saving
    assert sizes == [8, 16, 8, 2, 3]
    stop = Stop()
    stop.asked = 2
    assert not list(found._rounds(records, SimpleNamespace(checkpoint_minutes=2), stop))
