"""Clusters with something amiss: a run that is not disturbed by it, or one line with a remedy."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from clusters import DIES, HELD, ONCE, ONE_TRY, dask, prepare_workers, prepared
from conftest import one_line
from synthetic import PATIENT, QUICK, ROOT, brain, command, save, start

distributed = pytest.importorskip("distributed", reason="needs requirements-cluster.txt")
dask_config = pytest.importorskip("dask.config")
workers_of = pytest.importorskip("cluster.workers")
CLUSTER = ("--scheduler", "local:2")


def connect(address):
    with workers_of.connected(address):
        pass


def training(folder, arrays, *more):
    return ["--train_dir", folder / "train", "--arrays_dir", folder / arrays, *QUICK, *more]


def agree(folder, *names):
    """Filters differ by the order of sums; solving makes that larger by the condition."""
    ours, theirs = (np.load(folder / name / "h_2.npy") for name in names)
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with volumes in train/, and in plain/ the filters of the plain run."""
    folder = tmp_path_factory.mktemp("faults")
    for number in range(9):
        save(folder / "train" / f"v{number}.nii.gz", brain(number))
    assert command("train.py", *training(folder, "plain"))[0] == 0
    return folder


def test_each_fault_of_a_worker_has_its_remedy():
    def line(fault):
        return str(workers_of.error_of(fault, "v.nii: "))

    assert line(MemoryError()).startswith("v.nii: a worker has too little memory; start workers")
    assert line(ZeroDivisionError("by 0")) == "v.nii: a worker failed: ZeroDivisionError: by 0"


def test_processes_here_share_the_threads_and_the_command_keeps_its_own(monkeypatch):
    def told():
        return [os.environ[f"{name}_NUM_THREADS"] for name in ("OMP", "NUMBA", "OPENBLAS", "MKL")]

    monkeypatch.setattr("cluster.connecting.thread_count", lambda: 5)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    own = dict(os.environ)
    with workers_of.connected("local:2") as workers:
        assert list(workers.client.run(told).values()) == 2 * [4 * ["2"]]
        assert dict(os.environ) == own
        before = workers.client.run(os.getpid)
        for process in before.values():
            os.kill(process, signal.SIGTERM)
        while len(set(workers.about) - set(before)) < 2:
            time.sleep(0.1)  # others come in their stead
        assert list(workers.client.run(told).values()) == 2 * [4 * ["2"]]
        assert "OMP_NUM_THREADS" not in os.environ


def test_more_processes_than_threads_get_one_thread_each(monkeypatch):
    class Asked(Exception):
        pass

    def cluster(n_workers, env, **_):
        raise Asked(n_workers, {env[f"{name}_NUM_THREADS"] for name in ("OMP", "NUMBA", "MKL")})

    monkeypatch.setattr("cluster.connecting.LocalCluster", cluster)
    monkeypatch.setattr("cluster.connecting.thread_count", lambda: 2)
    with pytest.raises(Asked) as found:
        connect("local:3")
    assert found.value.args == (3, {"1"})


# ---- what goes on

def test_a_worker_killed_amid_a_training_changes_nothing(folder, tmp_path, monkeypatch):
    flag = str(tmp_path / "killed")
    prepare_workers(monkeypatch, tmp_path, "learning", "v7", ONCE.format(flag=flag))
    status, out, errors = command("train.py", *training(folder, "killed", *CLUSTER))
    assert (status, errors) == (0, []), errors
    assert os.path.exists(flag) and out.count(" samples, ") == 9
    agree(folder, "killed", "plain")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a process")
def test_a_stopped_training_finishes_volumes_and_goes_on(folder, tmp_path, request):
    flag = tmp_path / "go on"
    held = prepared(tmp_path, "learning", "v7", HELD.format(flag=str(flag)))
    process = start("train.py", *training(folder, "stopped", "--checkpoint_minutes", "0", *CLUSTER),
                    start_new_session=True, env=held)
    out = ""
    for line in process.stdout:
        out += line
        if line.startswith("["):
            break
    while not flag.with_name("go on read").exists():  # that volume then waits for this
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to all processes
    assert "once more" in process.stderr.readline() + process.stderr.readline()
    flag.write_text("")
    # Not by communicate(), which loses what was read ahead of the lines above.
    out, errors = out + process.stdout.read(), process.stderr.read()
    assert process.wait(PATIENT) == 130 and "Traceback" not in errors, errors
    summed = re.findall(r"(v\d)\.nii\.gz: [\d,]+ samples", out)
    assert f"Stopped; {len(summed)} volumes saved" in out and 0 < len(summed) < 9
    request.getfixturevalue("shared_workers")
    status, out, _ = command("train.py", *training(folder, "stopped", *CLUSTER))
    assert status == 0 and f"{len(summed)} of 9 volumes are summed" in out
    assert not set(summed) & set(re.findall(r"(v\d)\.nii\.gz: [\d,]+ samples", out))
    agree(folder, "stopped", "plain")
    # The plain run goes on from the same checkpoint: there is nothing left to sum.
    status, out, _ = command("train.py", *training(folder, "stopped"))
    assert status == 0 and "9 of 9 volumes are summed" in out and "samples, " not in out


def test_workers_that_a_user_starts_stay_below_their_limit_with_groups_and_passes(tmp_path):
    for number in range(2):
        save(tmp_path / "train" / f"v{number}.nii.gz", brain(number))
    limit, small = 1_500_000_000, ["--filter_len", "7", "--grad_len", "5"]  # sums of 270 MB
    with dask(tmp_path, ["--memory-limit", str(limit)], count=2) as address:
        status, out, errors = command(
            "train.py", "--train_dir", tmp_path / "train", "--arrays_dir", tmp_path / "arrays",
            *small, "--scheduler", address)
        if sys.platform == "linux":
            with distributed.Client(address) as client:
                peaks = client.run(lambda: open("/proc/self/status").read())
    assert (status, errors) == (0, []), errors
    assert "Cluster: 2 workers" in out and "3 passes over the volumes" in out
    assert (tmp_path / "arrays" / "h_2.npy").is_file()
    if sys.platform != "linux":
        return  # nothing tells how much memory they took
    peaks = [int(re.search(r"VmHWM:\s+(\d+)", text)[1]) * 1024 for text in peaks.values()]
    assert len(peaks) == 2 and max(peaks) < 0.8 * limit, peaks  # where Dask pauses a worker


# ---- what is one line

@pytest.mark.parametrize("script", ["train", "test"])
def test_without_dask_the_remedy_is_said(script, tmp_path):
    save(tmp_path / "v.nii.gz", brain())
    code = (f"import sys\nsys.modules['distributed'] = None\nimport {script}\n"
            f"from options.command_line import run\nsys.exit(run('{script}', {script}.main))")
    folders = [f"--{script}_dir", tmp_path]
    if script == "train":
        folders += ["--arrays_dir", tmp_path / "arrays"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, folders), "--scheduler", "local"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "Dask is not installed" in done.stderr and "requirements-cluster.txt" in done.stderr


@pytest.mark.parametrize("number", ["0", "two", "10000", ""])
def test_a_number_of_processes_that_is_none(number):
    assert "give one, for example local:2" in one_line(connect, f"local:{number}")


DROPPED = """
import os, signal
from cluster.workers import connected

class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)  # Python drops what a finalizer raises

with connected("local:1") as workers:
    done = []
    for item, result in workers.in_order(os.path.basename, map(str, range(20))):
        done.append(result())
        if len(done) == 3:
            item = Finalized()
            del item
            print("went on", flush=True)
"""


def test_a_ctrl_c_that_falls_into_a_finalizer_is_not_lost():
    done = subprocess.run([sys.executable, "-c", DROPPED], cwd=ROOT, text=True,
                          capture_output=True, timeout=PATIENT)
    assert "went on" in done.stdout and "Exception ignored" in done.stderr
    assert done.returncode != 0 and done.stderr.rstrip().endswith("KeyboardInterrupt")


def test_a_scheduler_without_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(workers_of, "PATIENCE", 3)
    with dask(tmp_path) as address:
        assert f"has no worker; start one with: dask worker {address}" in one_line(connect, address)


def test_local_processes_that_dask_gave_up_are_started_again(monkeypatch):
    """As after a process that died while it started: no nanny is left to start another."""
    monkeypatch.setattr(workers_of, "LOOK", 0.5)
    with (dask_config.set({
            "distributed.deploy.lost-worker-timeout": "0.1s"}),
          workers_of.connected("local:1") as workers):
        cluster = workers.client.cluster
        assert [result() for _, result in workers.in_order(abs, [-1])] == [1]
        cluster.sync(next(iter(cluster.workers.values())).close)
        assert [result() for _, result in workers.in_order(abs, [-2, -3])] == [2, 3]
        assert workers.smallest()[1] > 0


def test_a_worker_that_lacks_the_project_or_has_another_version(tmp_path):
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("report/*.html")]:
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    with open(tmp_path / "degrading/spline.py", "a") as file:
        file.write("# changed\n")
    elsewhere = tmp_path / "report"
    for path, words in ((tmp_path, ("the code of this project is",
                                    "install the same version on both")),
                        (elsewhere, ("does not find this project", f"PYTHONPATH={ROOT}"))):
        with dask(elsewhere, [], PYTHONPATH=str(path)) as address:
            said = one_line(connect, address)
        assert said.startswith("worker tcp://") and all(word in said for word in words), said


def test_a_scheduler_that_lacks_the_project(tmp_path):
    """It cannot read what the command sends to the workers."""
    with dask(tmp_path, [], scheduler_path=tmp_path) as address:
        said = one_line(connect, address)
    assert said.startswith("argument --scheduler: the scheduler tcp://")
    assert "does not find this project" in said and f"PYTHONPATH={ROOT}" in said


@pytest.mark.usefixtures("shared_workers")
def test_a_worker_that_joins_with_another_version_ends_the_run(monkeypatch, tmp_path):
    with workers_of.connected("local:2") as workers:
        # To it, the command has another one.
        monkeypatch.setattr(workers_of, "software", lambda: {"numba": "0"})
        said = one_line(list, workers.in_order(str, [tmp_path]))
    assert said.startswith("worker tls://") and "there and 0 here; install the same" in said


def test_a_worker_with_too_little_memory(folder, tmp_path):
    with dask(tmp_path, ["--memory-limit", "600MB"]) as address:
        status, _, errors = command("train.py", *training(folder, "little"), "--scheduler", address)
    assert status == 2 and len(errors) == 1, errors
    assert re.search(r"error: worker tcp://[\d.:]+: has 0.6 GB for each task", errors[0])
    assert "--memory-limit" in errors[0]


def test_a_volume_that_kills_every_worker_ends_a_training(folder, tmp_path, monkeypatch):
    prepare_workers(monkeypatch, tmp_path, "learning", "v7", DIES)
    with dask_config.set(ONE_TRY):
        status, _, errors = command(
            "train.py", *training(folder, "deadly", "--scheduler", "local:1"))
    assert status == 2 and len(errors) == 1, errors
    assert re.search(r"error: worker tls://[\d.:]+: was killed several times", errors[0])
    assert "--memory-limit" in errors[0]


@pytest.mark.usefixtures("shared_workers")
def test_a_worker_without_the_data(tmp_path):
    from learning.ledger import fingerprint

    missing = tmp_path / "v.nii.gz"
    with workers_of.connected("local:2") as workers:
        ((path, found),) = workers.in_order(partial(fingerprint, folder=tmp_path), [missing])
        said = one_line(found)
    assert path == missing and str(missing) in said and "on worker tls://" in said
    assert "volumes must lie there at the same paths as here" in said
