"""Kernels: compiled where nothing can be kept, and within the bounds of their arrays."""
import ast
import os
import shutil

import pytest
from conftest import ROOT, run_command
from synthetic import brain, save


@pytest.fixture
def closed_clone(tmp_path):
    """A copy of the scripts in which no folder takes compiled code, and a home that is none.

    A file in the place of __pycache__ is as good as a read-only disk, also for root.
    """
    clone = tmp_path / "clone"
    for path in ROOT.glob("*.py"):
        clone.mkdir(exist_ok=True)
        shutil.copy(path, clone)
    for room in ("disk", "gpu", "machine", "octahedral", "report"):
        shutil.copytree(ROOT / room, clone / room, ignore=shutil.ignore_patterns("__pycache__"))
        (clone / room / "__pycache__").write_text("")
    (clone / "__pycache__").write_text("")
    shutil.copytree(ROOT / "pretrained", clone / "pretrained")
    return clone


@pytest.mark.skipif(os.name == "nt", reason="homes are found otherwise there")
def test_a_clone_that_takes_no_files_compiles_for_this_run(tmp_path, closed_clone):
    save(tmp_path / "low.nii", brain(0, (14, 13, 12)))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/cache", "TMPDIR": str(temporary)}
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    command = ["test.py", "--upscale", "--no-report", "--test_dir", tmp_path / "low.nii"]
    finished = run_command(*command, "--output", tmp_path / "one.nii", cwd=closed_clone,
                           env=environment | nowhere)
    assert finished.returncode == 0 and not finished.stderr, finished.stderr
    assert "NUMBA_CACHE_DIR" in finished.stdout and (tmp_path / "one.nii").exists()
    assert not list(temporary.iterdir())
    kept = nowhere | {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    finished = run_command(*command, "--output", tmp_path / "two.nii", cwd=closed_clone,
                           env=environment | kept)
    assert finished.returncode == 0 and "NUMBA_CACHE_DIR" not in finished.stdout
    assert list((tmp_path / "kept").rglob("*.nbi"))
    assert (tmp_path / "one.nii").read_bytes() == (tmp_path / "two.nii").read_bytes()


def test_no_kernel_reads_out_of_bounds_with_any_option_at_its_limits(tmp_path):
    """numba checks each index; half a minute of it is compiling."""
    checking = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    finished = run_command(ROOT / "tests" / "every_kernel.py", tmp_path, cwd=tmp_path,
                           env=os.environ | checking)
    assert finished.returncode == 0, finished.stderr
    compiled = {path.name.split("-")[0].split(".")[-1] for path in
                (tmp_path / "cache").rglob("*.nbi")}
    assert kernels() <= compiled


def kernels():
    """Names of all functions that numba compiles and keeps."""
    found = set()
    for path in [*ROOT.glob("*.py"), *(ROOT / "octahedral").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            marks = "".join(map(ast.unparse, getattr(node, "decorator_list", ())))
            if "njit" in marks and "inline" not in marks:  # those are compiled with their callers
                found.add(node.name)
    return found
