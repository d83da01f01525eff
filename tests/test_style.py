"""The whole project passes ruff, and what people call from Python passes the type checker."""
import importlib.util
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder of mypy's own: it reads the types of NumPy once."""
    return ["--cache-dir", str(tmp_path_factory.mktemp("mypy"))]


@pytest.mark.parametrize("tool, words", [("ruff", ["check", "--no-cache", "."]), ("mypy", [])])
def test_the_tools_find_nothing(tool, words, kept):
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed; python -m pip install -r requirements-dev.txt")
    if tool == "mypy":
        words = kept
    done = subprocess.run([sys.executable, "-m", tool, *words], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_type_checker_sees_faults(kept, tmp_path):
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed; python -m pip install -r requirements-dev.txt")
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import api\napi.upscale([1.0], factor='two')\n")
    done = subprocess.run([sys.executable, "-m", "mypy", *kept, str(wrong)], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 1 and 'Argument "factor"' in done.stdout, done.stdout + done.stderr
