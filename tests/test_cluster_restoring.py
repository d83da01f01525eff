"""test.py --scheduler: what the plain run writes and prints, and one line for what is wrong."""
import csv
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from clusters import DIES, ONE_TRY, prepare_workers, prepared
from conftest import refused
from synthetic import PATIENT, ROOT, brain, command, save, start

pytestmark = pytest.mark.usefixtures("drawn")

pytest.importorskip("distributed", reason="needs requirements-cluster.txt")
dask_config = pytest.importorskip("dask.config")
SHAPE = (20, 19, 18)
CLUSTER, ALONE = ("--scheduler", "local:2"), ("--scheduler", "local:1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Volumes in two folders, one of them with some voxels below zero, and one that is none."""
    root = tmp_path_factory.mktemp("restored") / "test"
    save(root / "a.nii.gz", brain(0, SHAPE))
    dark = brain(1, SHAPE)
    dark[10, 9, 9] = -1
    save(root / "sub" / "b.nii.gz", dark)
    save(root / "z.nii.gz", brain(2, SHAPE))
    (root / "bad.nii.gz").write_bytes(b"no volume")
    return root


def restored(folder, result, *options, cwd=ROOT):
    """Run test.py; its errors, and what it wrote by name."""
    status, out, errors = command("test.py", "--test_dir", folder, "--result_dir", result, *options,
                                  cwd=cwd)
    assert status == 1, errors
    (run,) = result.iterdir()
    return out, errors, {path.relative_to(run).as_posix(): path.read_bytes()
                         for path in sorted(run.rglob("*")) if path.is_file()}


def without_seconds(record):
    """What a record says but for how long it took, and by which command, into which folder."""
    found = json.loads(record)
    del found["seconds"], found["command"]
    found["settings"] = {name: value for name, value in found["settings"].items()
                         if name not in ("scheduler", "result_dir")}
    return found


def lines(out):
    """The table that was printed, without seconds and paths."""
    return [re.sub(r", [\d.]+ s$", "", line) for line in out.splitlines() if ".nii.gz " in line]


@pytest.mark.parametrize("options", [(), ("--upscale",), ("--upscale", "--isotropic"),
                                     ("--preset", "scan")])
def test_all_that_is_written_is_that_of_the_plain_run(
        folder, tmp_path, options, request):
    cluster, count = CLUSTER, "2 workers"
    if "--isotropic" in options:  # its worker must begin in the folder of the command; one will do
        cluster, count = ALONE, "1 worker"
    else:
        request.getfixturevalue("shared_workers")
    out, errors, plain = restored(folder, tmp_path / "plain", *options)
    # Workers run elsewhere, the command in another folder.
    said, complaints, ours = restored(os.path.relpath(folder, tmp_path), tmp_path / "cluster",
                                      *options, *cluster, cwd=tmp_path)
    assert f"Cluster: {count}, " in said and lines(said) == lines(out)
    assert list(ours) == list(plain) and len(plain) > (0 if "scan" in options else 9)
    for name, content in plain.items():
        if name.endswith(".json"):
            assert without_seconds(ours[name]) == without_seconds(content)
        elif name.endswith(".html"):
            pictures = re.compile(rb'(?s)<script type="application/json">.*?</script>'
                                  rb'|data-jpeg="[^"]+"')
            assert pictures.findall(ours[name]) == pictures.findall(content) != []
        else:
            assert ours[name] == content, name
    # The same is complained of, beside the worker's address.
    where = re.compile(r" \(on worker tls://[\d.:]+\)")
    assert [where.sub("", line) for line in complaints] == errors
    assert sum("bad.nii.gz" in line and bool(where.search(line)) for line in complaints) == 1
    assert any("b.nii.gz: voxels below zero" in line for line in errors)


def test_a_volume_that_kills_its_worker_is_named_and_the_folder_goes_on(tmp_path, monkeypatch):
    for name in ("a", "deadly", "z"):
        save(tmp_path / "test" / f"{name}.nii.gz", brain(0, SHAPE))
    prepare_workers(monkeypatch, tmp_path, "restoring", "deadly", DIES)
    with dask_config.set(ONE_TRY):
        status, _, errors = command("test.py", "--test_dir", tmp_path / "test", "--result_dir",
                                    tmp_path / "result", "--no-report", *ALONE)
    assert status == 1 and len(errors) == 2, errors
    assert "deadly.nii.gz: worker tls://" in errors[0] and "--memory-limit" in errors[0]
    (table,) = (tmp_path / "result").glob("*/metrics.csv")
    with open(table, newline="") as file:
        assert [row["volume"] for row in csv.DictReader(file)] == ["a.nii.gz", "z.nii.gz"]


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a process")
def test_a_stop_leaves_whole_files_and_the_same_command_goes_on(tmp_path, request):
    for number in range(8):
        save(tmp_path / "test" / f"{number:02}.nii.gz", brain(number, SHAPE))
    options = "--test_dir", tmp_path / "test", "--result_dir", tmp_path / "result", *CLUSTER
    held = prepared(tmp_path, "restoring", "05.nii", "__import__('time').sleep(300)")
    # As a terminal sends it: to all processes.
    process = start("test.py", *options, start_new_session=True, env=held)
    for line in process.stdout:
        if line.startswith("01.nii.gz"):
            os.killpg(process.pid, signal.SIGINT)
            break
    _, errors = process.communicate(timeout=PATIENT)
    *_, finished, last = errors.splitlines()
    assert process.returncode == 130 and last == "test.py: stopped"
    assert " of 8 volumes are finished in " in finished and "same command" in finished
    (run,) = (tmp_path / "result").iterdir()
    left = [path.name for path in run.rglob("*")]
    assert "00.nii.gz" in left and not [name for name in left if ".part" in name]
    request.getfixturevalue("shared_workers")
    assert command("test.py", *options)[0] == 0
    results = list(run.glob("*.nii.gz"))
    # The hour may have ended in between.
    assert len(results) == 8 or len(list((tmp_path / "result").iterdir())) == 2


def test_a_card_is_refused(capsys):
    said = refused(capsys, "test", "--scheduler", "local:2", "--device", "gpu")
    assert "--device" in said and "--scheduler" in said


def test_without_the_option_dask_is_not_imported(folder, tmp_path):
    code = ("import sys, test\nfrom options.command_line import run\n"
            "status = run('test', test.main)\nassert 'dask' not in sys.modules\n"
            "sys.exit(status)")
    done = subprocess.run([sys.executable, "-c", code, "--test_dir", str(folder), "--result_dir",
                           str(tmp_path), "--no-report"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert np.any([path.name == "metrics.csv" for path in tmp_path.rglob("*")])
