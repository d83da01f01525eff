"""README.md and docs/: what they show runs, what they name exists."""

import ast
import doctest
import importlib
import os
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, load_script
from synthetic import brain, save

from filter_constant import OPTIONS

PAGES = [
    "README.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
    *(f"{folder}/README.md" for folder in ("train", "test", "arrays", "result", "pretrained")),
]


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore")  # phantoms are unlike brains, which is said
@pytest.mark.parametrize("number, makes", [
    (0, {"fine": (30, 32, 34)}), (1, {"fine": (15, 16, 68)}), (2, {"fine": (30, 32, 34)}),
    (3, {"low": (15, 14, 13)}), (4, {"fine": (30, 32, 34)})])
def test_the_plain_python_of_its_page_runs(number, makes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where arrays/ holds nothing
    code = re.findall(r"```python\n(.*?)```", text_of("docs/python.md"), re.DOTALL)[number]
    images = [brain(seed) for seed in (1, 2)]
    low = brain(3, (15, 16, 17))
    names = {"images": images, "image": images[0], "low": low, "brain": low > 0}
    save(tmp_path / "scan.nii.gz", low, np.diag([2, 2, 3, 1]))
    quick = code.replace("learn(images, factor=2)", "learn(images, factor=2, leaves=8, draws=4)")
    assert ("learn(" in code) == (quick != code)
    exec(compile(quick, "docs/python.md", "exec"), names)
    for name, shape in makes.items():
        assert names[name].shape == shape
        assert np.isfinite(names[name]).all()
        assert names[name].std() > 0
    if number == 2:
        placed = nib.load("scan_fine.nii.gz")
        np.testing.assert_allclose(placed.affine @ [0, 0, 0, 1], [-0.5, -0.5, -0.75, 1])
        np.testing.assert_allclose(placed.header.get_zooms(), [1, 1, 1.5])


def test_the_page_of_options_has_every_option_as_it_is():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from options_table import rows
    finally:
        sys.path.pop(0)
    table = [line for line in text_of("docs/options.md").splitlines() if line.startswith("|")]
    assert table == rows()  # python docs/options_table.py prints it anew


OF_DASK = {"nthreads", "nworkers", "memory-limit", "scheduler-file", "protocol", "tls-ca-file",
           "tls-cert", "tls-key"}
OF_SLURM = {"nodes", "ntasks-per-node", "cpus-per-task", "mem", "time"}


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_is_named_exists(page):
    known = {"help", "quiet"} | OF_DASK | OF_SLURM
    for field in OPTIONS:
        known |= {field.name, f"no-{field.name}"} if "switch" in field.metadata else {field.name}
    for script in (*ROOT.glob("*.py"), *ROOT.glob("docs/*.py")):
        known |= set(re.findall(r"""["']--([a-z_]+)["']""", script.read_text(encoding="utf-8")))
    for name in re.findall(r"(?<![\w-])--([a-z][a-zA-Z_-]*)", text_of(page)):
        assert name in known, name


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    text = text_of(page)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith("https://"):
            assert (ROOT / page).parent.joinpath(target).exists(), target
    for name in re.findall(r"`?([a-z_/]+\.py)\b", text):
        assert any((ROOT / folder / name).exists() for folder in (".", "tests")), name


def test_every_heading_that_is_linked_to_exists():
    headings = {}
    for page in PAGES:
        titles = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
        marks = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
        headings[(ROOT / page).resolve()] = {mark.replace(" ", "-") for mark in marks}
    for page in PAGES:
        for target, mark in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text_of(page)):
            path = (ROOT / page).parent / target if target else ROOT / page
            assert mark in headings[path.resolve()], f"{page}: {target}#{mark}"


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(text_of("README.md").splitlines()) <= 150
    for path in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{path.name}" in text_of("README.md"), path.name


def test_every_test_that_the_page_on_reliability_names_exists():
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", text_of("docs/reliability.md"))
    assert len(named) > 30
    for file, function in named:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            function
        )


def test_the_readmes_picture_is_small():
    assert 10_000 < os.path.getsize(ROOT / "docs" / "restored.png") < 300_000


def test_pictures_of_the_demo_ask_for_the_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "docs")
    monkeypatch.setattr("demo_brain.ROOT", tmp_path)
    for script in ("compare", "picture", "scan_picture"):
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(script).main()
        assert stopped.value.code == 2 and "run `make demo` first" in capsys.readouterr().err
    (tmp_path / "demo" / "test").mkdir(parents=True)
    (tmp_path / "demo" / "test" / "a.nii.gz").touch()
    found = importlib.import_module("demo_brain").demo_file("test", "*.nii.gz")
    assert found == tmp_path / "demo" / "test" / "a.nii.gz"


@pytest.mark.parametrize("words, said", [
    ([], "no volumes in B"),
    (["--only", "C"], "no folder C"),
    (["--options", "--draws", "2"], "unrecognized arguments: --draws 2"),
    (["--train_options", "--leaf 2"], "unrecognized arguments: --leaf 2")])
def test_faults_of_an_evaluation_by_scanner_are_found_before_it_learns(
        tmp_path, monkeypatch, capsys, words, said):
    left_out = load_script("docs/left_out")
    for name in ("A/sub/a.nii", *(["B/b.nii"] if words else ["B/b.txt"])):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(left_out, "learn", None)
    monkeypatch.setattr("sys.argv", ["left_out.py", str(tmp_path), *words])
    with pytest.raises(SystemExit) as stopped:
        left_out.main()
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_the_roofline_on_the_page_is_what_its_script_prints():
    printed = subprocess.run(
        [sys.executable, "docs/roofline.py"], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout
    assert printed in (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


MODULES = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in (ROOT, *(path.parent for path in ROOT.glob("*/__init__.py")))
    for path in sorted(folder.glob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_docstrings_run(name):
    tests, runner = 0, doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        result = runner.run(test)
        assert result.failed == 0, test.name
        tests += result.attempted
    assert tests > 0
