"""Kernels: compiled where nothing can be kept, anew after changes, within the bounds of arrays."""
import ast
import os
import shutil

import pytest
from conftest import ROOT, run_process
from synthetic import brain, command, save

from machine import sources
from machine.sources import all_sources


@pytest.fixture
def closed_clone(tmp_path):
    """A copy of the scripts in which no folder takes compiled code, and a home that is none.

    A file in the place of __pycache__ is as good as a read-only disk, also for root.
    """
    clone = tmp_path / "clone"
    for path in ROOT.glob("*.py"):
        clone.mkdir(exist_ok=True)
        shutil.copy(path, clone)
    for room in (path.parent.name for path in ROOT.glob("*/__init__.py")):
        shutil.copytree(ROOT / room, clone / room, ignore=shutil.ignore_patterns("__pycache__"))
        (clone / room / "__pycache__").write_text("")
    (clone / "__pycache__").write_text("")
    shutil.copytree(ROOT / "pretrained", clone / "pretrained")
    return clone


@pytest.mark.skipif(os.name == "nt", reason="homes are found otherwise there")
def test_a_clone_that_takes_no_files_compiles_for_this_run(tmp_path, closed_clone, trained):
    save(tmp_path / "low.nii", brain(0, (14, 13, 12)))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/cache", "TMPDIR": str(temporary)}
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    words = ["--upscale", "--no-report", "--test_dir", tmp_path / "low.nii",
             "--arrays_dir", trained / "arrays"]  # which takes fewer kernels than others
    finished = run_process("test.py", *words, "--output", tmp_path / "one.nii", cwd=closed_clone,
                           env=environment | nowhere)
    assert finished.returncode == 0 and not finished.stderr, finished.stderr
    assert "NUMBA_CACHE_DIR" in finished.stdout and (tmp_path / "one.nii").exists()
    assert not list(temporary.iterdir())
    status, *_ = command("test.py", *words, "--output", tmp_path / "two.nii")  # compiled before
    assert status == 0
    assert (tmp_path / "one.nii").read_bytes() == (tmp_path / "two.nii").read_bytes()


ONE_KERNEL = """
import sys
from options.command_line import run

def main(request):
    import numpy as np
    from machine.simd import correlate
    x, result = np.arange(40, dtype=np.float32), np.zeros(16, np.float32)
    correlate(x, 0, 2, np.array([0.5, 0.5], np.float32), result, 0, 3)
    return 0

sys.exit(run("test", main))
"""


@pytest.mark.skipif(os.name == "nt", reason="homes are found otherwise there")
def test_a_clone_that_takes_no_files_compiles_into_a_folder_that_is_given(tmp_path, closed_clone):
    """As a command does, but with one small kernel."""
    given = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/cache",
             "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    finished = run_process("-c", ONE_KERNEL, cwd=closed_clone, env=os.environ | given)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
    assert list((tmp_path / "kept").rglob("*correlate*.nbi"))


@pytest.mark.skipif(os.name == "nt", reason="homes are found otherwise there")
def test_processes_of_a_command_compile_where_it_does(tmp_path, closed_clone):
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/cache", "TMPDIR": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    words = ("import subprocess, sys; from machine.compiled import keep_compiled_code\n"
             "keep_compiled_code(); "
             "sys.exit(subprocess.run([sys.executable, '-c', 'import octahedral.features']"
             ").returncode)")
    finished = run_process("-c", words, cwd=closed_clone, env=environment | nowhere)
    assert (finished.returncode, finished.stderr) == (0, ""), finished.stderr
    assert not list(tmp_path.glob("numba_*"))


@pytest.mark.skipif(os.name == "nt", reason="homes are found otherwise there")
def test_where_there_is_no_home_no_library_says_so():
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/a", "XDG_CONFIG_HOME": "/dev/null"}
    environment = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"}
    words = "from machine.errors import run; run('test', lambda: __import__('matplotlib') and 0)"
    finished = run_process("-c", words, env=environment | nowhere)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


KERNEL = """from machine.kernels import njit
from middle import fold

@njit(cache=True)
def kernel(value):
    return fold(value)

if __name__ == "__main__":
    print(kernel(7.0))
"""
MIDDLE = """from constants import TIMES
from machine.kernels import njit

@njit(inline="always")
def fold(value):
    return TIMES * value
"""


@pytest.fixture
def layered(tmp_path):
    """A kernel that takes in a function of another file, and that a constant of a third one."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "machine", clone / "machine",
                    ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in (("kernel", KERNEL), ("middle", MIDDLE), ("constants", "TIMES = 2.0")):
        (clone / f"{name}.py").write_text(text)

    def result():
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
        finished = run_process("kernel.py", cwd=clone, env=environment)
        assert finished.returncode == 0, finished.stderr
        return float(finished.stdout)

    return clone, result


def test_a_change_of_what_a_kernel_takes_in_compiles_it_anew(layered):
    clone, result = layered
    assert result() == 14
    (clone / "constants.py").write_text("TIMES = 3.0")
    assert result() == 21
    (clone / "middle.py").write_text(MIDDLE.replace("*", "+"))
    assert result() == 10


def test_code_of_earlier_sources_is_removed_and_that_of_the_same_sources_kept(tmp_path, layered):
    clone, result = layered

    def kept():
        return sorted((path.name, path.stat().st_mtime_ns)
                      for path in (tmp_path / "kept").rglob("*.nb[ic]"))

    result()
    first = kept()
    result()
    assert kept() == first
    (clone / "constants.py").write_text("TIMES = 3.0")
    result()
    assert len(kept()) == len(first) and kept() != first


def test_all_kernels_are_kept_by_the_digest_of_their_sources():
    for path in all_sources():
        from_numba = [name.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                      if isinstance(node, ast.ImportFrom) and node.module == "numba"
                      for name in node.names]
        assert not {"njit", "jit", "vectorize", "guvectorize"} & set(from_numba), path


def test_all_sources_are_those_of_each_package():
    listed = {path.relative_to(ROOT).as_posix() for path in all_sources()}
    assert {"test.py", "gpu/compute.py", "machine/simd.py", "nifti/volumes.py"} <= listed
    assert not [name for name in listed if name.startswith(("tests/", "docs/"))]


def test_a_users_own_script_is_no_source_of_the_project(tmp_path, monkeypatch):
    before = all_sources()
    for path in before:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    (tmp_path / "my_plot.py").write_text("import numpy, util\n")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    assert all_sources() == [tmp_path / path.relative_to(ROOT) for path in before]


def test_no_kernel_reads_out_of_bounds_with_any_option_at_its_limits(tmp_path):
    """numba checks each index; twenty seconds of it are compiling.

    The checks are put in before LLVM optimizes the code, which therefore may take less time.
    """
    checking = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_OPT": "1",
                "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    finished = run_process(ROOT / "tests" / "every_kernel.py", tmp_path, cwd=tmp_path,
                           env=os.environ | checking)
    assert finished.returncode == 0, finished.stderr
    compiled = {path.name.split("-")[0].split(".")[-1] for path in
                (tmp_path / "cache").rglob("*.nbi")}
    assert kernels() <= compiled


def kernels():
    """Names of all functions that numba compiles and keeps."""
    found = set()
    for path in all_sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            marks = "".join(map(ast.unparse, getattr(node, "decorator_list", ())))
            if "njit" in marks and "inline" not in marks:  # those are compiled with their callers
                found.add(node.name)
    return found
