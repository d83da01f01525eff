"""What several test files need: golden figures, small volumes and filters, ways to run commands."""

import csv
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import clusters
import nibabel as nib
import numpy as np
import pytest
import synthetic
from synthetic import load_script
from trainings import learned, training

from disk.filters import load_filters
from filter_constant import Method
from machine.errors import UserError
from options.command_line import command_line

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
FACTORS = (2, 3, 4)

if "PYTEST_XDIST_WORKER" in os.environ:
    # The processes of pytest share the cores, and several threads in each take up to a third more.
    # Tests of threads set their own number. BLAS is loaded already, and keeps its threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Filters small enough to be learned and applied in a blink: 36 buckets of 125 voxels.
SMALL = ("--filter_len", "5", "--grad_len", "5", "--q_angle_p", "2", "--q_angle_t", "2")


# ---- the golden figures


@cache
def golden_figures(factor):
    with np.load(GOLDEN / f"seed_x{factor}.npz", allow_pickle=False) as arrays:
        figures = dict(arrays)
    for array in figures.values():
        array.setflags(write=False)  # shared between tests
    method = Method(factor=(factor,) * 3)
    return SimpleNamespace(
        **figures,
        factor=factor,
        method=method,
        box=tuple(slice(*map(int, sides)) for sides in figures["slice_area"]),
        voxels=np.flatnonzero(figures["bucket"] >= 0),
    )


@pytest.fixture(params=FACTORS, ids=[f"x{factor}" for factor in FACTORS])
def golden(request):
    """The golden figures of each factor; `voxels`: the flat indices of those that have a bucket."""
    found = SimpleNamespace(**vars(golden_figures(request.param)))
    # Copies: numba would compile kernels a second time, for arrays that nobody may write to.
    found.lr, found.hr = found.lr.copy(), found.hr.copy()
    return found


@pytest.fixture(scope="session")
def brain():
    """A 26x27x28 piece of the golden volume: folds of the cortex, with black on some sides.

    float32, units of the scanner.
    """
    return np.ascontiguousarray(golden_figures(2).volume[4:30, 6:33, 8:36])


# ---- files and commands


def write_nifti(path, data, affine=None, **header):
    """Write a volume; keyword arguments set fields of its header."""
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    for field, value in header.items():
        image.header[field] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def run_process(*arguments, cwd=ROOT, **options):
    """Run a script as a user does: ``run_process("train.py", "--factor", 3)``."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=synthetic.PATIENT,
        **options,
    )


def run_command(script, *arguments, cwd=ROOT):
    """The same with train.py or test.py in this process, see `synthetic.command`."""
    status, out, errors = synthetic.command(script, *arguments, cwd=cwd)
    return subprocess.CompletedProcess(script, status, out, "".join(f"{line}\n" for line in errors))


def run_here(script, *arguments):
    """A command in this process; returns its exit status."""
    request = command_line(script, list(map(str, arguments)))
    return load_script(script).main(request)


def assert_one_line(finished, *words):
    """The command failed as it should for a user's mistake.

    That is status 2 and one line on stderr that holds these words.
    """
    assert finished.returncode == 2, finished.stderr
    assert len(finished.stderr.splitlines()) == 1, finished.stderr
    for word in words:
        assert str(word) in finished.stderr


def one_line(function, *arguments):
    """The text of the user's error that a call ends in, one line of it."""
    with pytest.raises(UserError) as fault:
        function(*arguments)
    text = str(fault.value)
    assert len(text.splitlines()) == 1
    return text


def refused(capsys, command, *arguments):
    """The one line that a command answers with; the exit status is 2."""
    with pytest.raises(SystemExit) as end:
        command_line(command, [str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out
    assert len(err.splitlines()) == 1 and err.startswith(f"{command}.py: error: ")
    return err


def same(first, second):
    return all(np.array_equal(one, two) for one, two in zip(first, second))


def learn(folders, arrays, *options):
    """train.py with small filters, in this process, which saves two seconds.

    Returns filters, boundaries and the method.
    """
    request = command_line(
        "train",
        [
            "--train_dir",
            str(folders.train),
            "--arrays_dir",
            str(arrays),
            *SMALL,
            *map(str, options),
        ],
    )
    assert load_script("train").main(request) == 0
    filters = load_filters(request)
    ((boundaries, h),) = filters.stages
    return h, boundaries, filters.method


def restore(folders, arrays, result, *options):
    """test.py in this process; returns the restored volume and its row of figures."""
    request = command_line(
        "test",
        [
            "--test_dir",
            str(folders.test),
            "--arrays_dir",
            str(arrays),
            "--result_dir",
            str(result),
            *map(str, options),
        ],
    )
    assert load_script("test").main(request) == 0
    (folder,) = result.iterdir()
    restored = nib.load(folder / "c.nii.gz").get_fdata(dtype=np.float32)
    return restored, read_rows(folder / "metrics.csv")[0]


@pytest.fixture(scope="session")
def blank():
    """A PNG file as the commands write them, with nothing on it."""
    # Here: most tests need no pictures, and matplotlib takes half a second to load.
    from matplotlib.figure import Figure

    from report import pictures

    return pictures.png(Figure(figsize=(0.1, 0.1)))


@pytest.fixture(scope="session", autouse=True)
def undrawn(blank):
    """Pictures of filters and of volumes are blank; yields the functions that draw them.

    Putting them together and drawing them takes most of the time of a small run.
    """
    from report import filter_pictures, pictures  # here, as above

    plain = pictures.picture_volume, filter_pictures.maps_of_buckets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "picture_volume", lambda images, affine, compare=True: blank)
        patch.setattr(filter_pictures, "maps_of_buckets", lambda *_: blank)
        yield plain


@pytest.fixture(scope="module")
def drawn(undrawn):
    """Pictures are drawn: in tests of pictures, and of input that might make drawing fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("report.pictures.picture_volume", undrawn[0])
        patch.setattr("report.filter_pictures.maps_of_buckets", undrawn[1])
        yield


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- what several files learn from, and what is learned


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder whose arrays/ holds quick filters, learned from one volume."""
    folder = tmp_path_factory.mktemp("trained")
    synthetic.save(folder / "train" / "v.nii.gz", synthetic.brain())
    status, *_ = synthetic.command("train.py", *training(folder, folder / "arrays"))
    assert status == 0
    return folder


@pytest.fixture(scope="session")
def six_volumes(tmp_path_factory):
    """A folder whose train/ holds six volumes."""
    folder = tmp_path_factory.mktemp("learned")
    for n in range(6):
        synthetic.save(folder / "train" / f"v{n}.nii.gz", synthetic.brain(n))
    return folder


@pytest.fixture(scope="session")
def undisturbed(six_volumes):
    """What a training on these that nothing disturbs has learned; it lies in undisturbed/ there."""
    status, _, errors = synthetic.command(
        "train.py", *training(six_volumes, six_volumes / "undisturbed")
    )
    assert (status, errors) == (0, [])
    return learned(six_volumes / "undisturbed")


@pytest.fixture(scope="session")
def pieces(tmp_path_factory):
    """Two volumes to learn from and one to restore, all small pieces of the golden volume."""
    root, volume = tmp_path_factory.mktemp("volumes"), golden_figures(2).volume
    write_nifti(root / "train" / "a.nii.gz", volume[2:28, 4:34, 8:38])
    write_nifti(root / "train" / "b.nii.gz", volume[14:42, 10:40, 6:36].astype(np.int16))
    write_nifti(root / "test" / "c.nii.gz", volume[8:36, 8:36, 4:34])
    return SimpleNamespace(root=root, train=root / "train", test=root / "test")


@pytest.fixture(scope="session")
def small_filters(pieces):
    """Small filters learned with the defaults otherwise."""
    arrays = pieces.root / "arrays"
    h, boundaries, method = learn(pieces, arrays)
    return SimpleNamespace(arrays=arrays, h=h, boundaries=boundaries, method=method)


# ---- a cluster


@pytest.fixture(scope="session")
def two_workers():
    """The client of two processes as commands start them with local:2."""
    pytest.importorskip("distributed", reason="needs requirements-cluster.txt")
    with clusters.local_processes(2) as client:
        yield client


@pytest.fixture
def shared_workers(two_workers, monkeypatch):
    """Commands in this process that ask for local:N share these two processes."""
    monkeypatch.setattr("cluster.connecting._processes_here", lambda *_: two_workers)


# ---- browser

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--window-size=1200,1000"
).split()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium, driven by selenium."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed (requirements-dev.txt)"
    )
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip(
            "no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        opened = webdriver.Chrome(options=options, service=Service(driver))
    except WebDriverException as fault:
        pytest.skip(f"chromium does not start here: {str(fault).splitlines()[0]}")
    yield opened
    opened.quit()
