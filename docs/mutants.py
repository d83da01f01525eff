"""Mutation testing: small faults put into the code one at a time, and which of them tests notice.

    python -m pip install cosmic-ray==8.7.0 coverage
    python docs/mutants.py cover FOLDER              # once: the lines that each test executes
    python docs/mutants.py run FOLDER --seed 1 --most 6 --seconds 10
    python docs/mutants.py again FOLDER --seconds 100     # survivors, with more of their tests
    python docs/mutants.py run FOLDER tests/test_tree.py --only tree --compiled  # these tests
    python docs/mutants.py survivors FOLDER
    python docs/mutants.py table FOLDER

A fault (mutant) is one change by cosmic-ray, for instance `<` to `<=`, in a clone of the last
commit. Then the quickest tests that execute its line run, or the tests that are named, because the
lines of compiled code and of a cluster's workers are not measured. The fault is "killed" if a test
fails, and "survives" if none does. The command `run` continues where it was stopped.
"""
import argparse
import ast
import importlib
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = re.compile(r"test_(gpu|commands_on|strict|style|rooms|fuzz)")
LIBRARIES = ("numba", "nibabel", "scipy.ndimage", "scipy.signal", "scipy.sparse.linalg",
             "skimage.metrics", "matplotlib.pyplot", "PIL.Image", "tqdm", "hypothesis.strategies")
OPEN = ("survived", "no test", "timeout")  # outcomes that are looked at again
# Faults that tell nothing about tests: operators on bits raise a TypeError for floats, `is` equals
# == for small integers, and a function without its decorator is slow or fails.
WITHOUT_USE = re.compile(r"_(Bit\w+|[LR]Shift)$|(Eq|Lt|LtE|Gt|GtE)_Is(Not)?$|Decorator")
# Compiled code is kept by the text of kernels and constants alone: most faults are elsewhere.
KEEP = '''
import ast as _ast  # added by docs/mutants.py
import hashlib as _hashlib


@cache
def _digest_behind(path):
    parts = [_part(source.read_bytes()) for source in sorted(sources_behind(path))]
    return _hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _part(text):
    kept = Path(__file__).parents[2] / "parts" / _hashlib.sha256(text).hexdigest()
    if not kept.exists():
        whole = b"llvmlite" in text or b"PERMUTATIONS =" in text
        found = [_ast.dump(node) for node in _ast.parse(text).body
                 if whole or isinstance(node, _ast.Assign)
                 or "njit" in "".join(map(_ast.dump, getattr(node, "decorator_list", ())))]
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(_hashlib.sha256("".join(found).encode()).hexdigest())
    return kept.read_text()


_KeptCode.save_overload = FunctionCache.save_overload
_stamp = IndexDataCacheFile.__init__
IndexDataCacheFile.__init__ = lambda self, cache_path, filename_base, source_stamp: _stamp(
    self, cache_path, filename_base, "")
'''


class Work:
    """A folder with the clone, the lines that tests execute, and the outcomes so far."""

    def __init__(self, folder):
        self.folder = Path(folder).resolve()
        self.clone = self.folder / "clone"
        self.outcomes = self.folder / "outcomes.json"
        self.environment = os.environ | {"NUMBA_CACHE_DIR": str(self.folder / "numba"),
                                         "PYTHONDONTWRITEBYTECODE": "1"}
        if not self.clone.exists():
            subprocess.run(["git", "clone", "-q", str(ROOT), str(self.clone)], check=True)

    def clean(self):
        """Remove a fault that an interrupted run left in the clone."""
        subprocess.run(["git", "checkout", "-q", "."], cwd=self.clone, check=True)
        with open(self.clone / "machine" / "kernels.py", "a", encoding="utf-8") as file:
            file.write(KEEP)

    def read(self):
        return json.loads(self.outcomes.read_text()) if self.outcomes.exists() else []

    def write(self, mutants):
        whole = self.outcomes.with_suffix(".part")  # a run may be stopped at any time
        whole.write_text(json.dumps(mutants, indent=1))
        whole.replace(self.outcomes)

    def files(self):
        """The files with faults: all of the project outside gpu/, tests/ and docs/."""
        rooms = {path.parent for path in self.clone.glob("*/__init__.py")} - {self.clone / "gpu"}
        return sorted(path.relative_to(self.clone).as_posix() for folder in (self.clone, *rooms)
                      for path in folder.glob("*.py"))


def cover(work, names):
    """Run each test file once, and keep the lines that each test executes and the time it takes."""
    rc = work.folder / "coverage.ini"
    rc.write_text(f"[run]\nsource = {work.clone}\nomit = */tests/*\nparallel = true\n"
                  "patch = subprocess\ndynamic_context = test_function\n")
    for path in sorted((work.clone / "tests").glob("test_*.py")):
        data, log = work.folder / "cover" / path.stem, work.folder / "cover" / f"{path.stem}.log"
        if path.name not in names and (names or LEFT_OUT.match(path.stem) or log.exists()):
            continue
        data.parent.mkdir(exist_ok=True)
        for old in data.parent.glob(f"{path.stem}.*"):
            old.unlink()
        done = subprocess.run(
            [sys.executable, "-m", "coverage", "run", f"--rcfile={rc}", f"--data-file={data}",
             "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "--durations=0", str(path)],
            cwd=work.clone, env=work.environment, text=True, capture_output=True)
        log.write_text(done.stdout + done.stderr)
        print(path.stem, done.stdout.splitlines()[-1:], flush=True)


def executed(work):
    """Tests by file and line, and the seconds of each test, from the data of `cover`.

    A line that runs in another process, or while pytest collects tests, has the name of the test
    file instead of a test.
    """
    from coverage import CoverageData
    from coverage.exceptions import DataError

    by, seconds = {}, {}
    for log in (work.folder / "cover").glob("*.log"):
        spent = re.findall(r"^([\d.]+)s \w+ +(\S+?)(?:\[.*)?$", log.read_text(), re.MULTILINE)
        for number, test in spent:
            seconds[test] = seconds.get(test, 0) + float(number)
        file = f"tests/{log.stem}.py"
        seconds[file] = sum(float(number) for number, _ in spent) + 0.5
        for path in log.parent.glob(f"{log.stem}.*"):
            if path == log:
                continue
            data = CoverageData(str(path))
            try:
                data.read()
            except DataError:  # a process that was killed wrote only a part of this file
                continue
            for source in data.measured_files():
                name = source.rpartition("/clone/")[2]
                for line, contexts in data.contexts_by_lineno(source).items():
                    for context in contexts:
                        test = file + "::" + context.rpartition(".")[2] if context else file
                        by.setdefault(name, {}).setdefault(line, set()).add(test)
    return by, seconds


def cached(work):
    """The result of `executed`, kept in a file, because computing it takes a minute."""
    kept = work.folder / "executed.pickle"
    logs = [log.stat().st_mtime for log in (work.folder / "cover").glob("*.log")]
    if not kept.exists() or kept.stat().st_mtime < max(logs):
        kept.write_bytes(pickle.dumps(executed(work)))
    return pickle.loads(kept.read_bytes())


def tests_of(mutant, work, by, seconds, most):
    """Tests that execute the statement of a mutant, at most `most` seconds of them.

    Tests that import the mutant's file come first, and among these the quickest.
    """
    tree = ast.parse((work.clone / mutant["file"]).read_text(encoding="utf-8"))
    line, lines = mutant["line"], by.get(mutant["file"], {})
    around = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)
              and node.lineno <= line <= node.end_lineno]
    inner = max(around, key=lambda node: (node.lineno, -node.end_lineno))
    last = inner.body[0].lineno - 1 if getattr(inner, "body", None) else inner.end_lineno
    compiled = any("njit" in ast.dump(mark) for node in around
                   for mark in getattr(node, "decorator_list", ()))
    named = set()
    for number in range(inner.lineno, max(last, inner.lineno) + 1):
        named |= lines.get(number, set())
    module = mutant["file"][:-3].replace("/", ".")
    pattern = re.compile(rf"\b{module.replace('.', '(.| import .*)')}\b")
    own = {path.name for path in (work.clone / "tests").glob("test_*.py")
           if pattern.search(path.read_text(encoding="utf-8"))}

    def is_own(test):
        return Path(test.partition("::")[0]).name in own

    found = {test for test in named if "::" in test}
    files = set() if compiled else named - found
    if not found or len(around) < 2:  # a kernel, a constant, or a line of a child process
        every = {test for tests in lines.values() for test in tests if "::" in test}
        found |= set(filter(is_own, every)) or {f"tests/{name}" for name in own} or every
    chosen, spent = [], 0.0
    for test in sorted(found | files, key=lambda test: (
            not is_own(test), test not in named, test in files, seconds.get(test, 0.01))):
        if not chosen or spent + seconds.get(test, 0.01) <= most:
            spent += seconds.get(test, 0.01)
            chosen.append(test)
    return chosen, spent, compiled


def compiled_lines(tree):
    """Lines of the functions that numba compiles; of all functions, if a file writes LLVM code."""
    llvm = any(getattr(node, "module", None) == "llvmlite" for node in tree.body)
    return {line for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
            and (llvm or "njit" in "".join(map(ast.dump, node.decorator_list)))
            for line in range(node.lineno, node.end_lineno + 1)}


def sample(work, seed, most, only, compiled):
    """Draw mutants of each file at random, at most one at each place in the text."""
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import WorkDB, use_db

    mutants = []
    for file in work.files():
        if only and not re.search(only, file):
            continue
        text = (work.clone / file).read_text(encoding="utf-8").partition("\nimport ast as _ast")[0]
        tree = ast.parse(text)
        lines = compiled_lines(tree) if compiled else range(text.count("\n") + 1)
        notes = [note for node in ast.walk(tree) for note in
                 (getattr(node, "annotation", None), getattr(node, "returns", None),
                  *getattr(node, "decorator_list", ())) if note]
        with use_db(str(work.folder / "mutants.sqlite"), WorkDB.Mode.create) as database:
            init([work.clone / file], database, {})
            specs = [item.mutations[0] for item in database.work_items]
        specs.sort(key=lambda spec: (spec.start_pos, spec.operator_name, spec.occurrence))
        random.Random(f"{seed} {file}").shuffle(specs)
        places = set()
        for spec in specs:
            line, column = spec.start_pos
            typed = any((note.lineno, note.col_offset) <= (line, column)
                        <= (note.end_lineno, note.end_col_offset) for note in notes)
            if (len(places) < most and spec.start_pos not in places and not typed
                    and not WITHOUT_USE.search(spec.operator_name) and line in lines):
                places.add(spec.start_pos)
                mutants.append({"file": file, "line": line, "column": column,
                                "operator": spec.operator_name.rpartition("/")[2],
                                "full": spec.operator_name, "occurrence": spec.occurrence,
                                "compiled": compiled})
    return mutants


def try_out(work, mutant, chosen):
    """Put a fault into the clone, run its tests (`chosen` by `tests_of`), and remove the fault."""
    from cosmic_ray.mutating import _make_diff, use_mutation
    from cosmic_ray.plugins import get_operator

    tests, spent, compiled = chosen
    mutant["tests"], mutant["outcome"], begun = tests, "no test", time.monotonic()
    if tests:
        with use_mutation(work.clone / mutant["file"], get_operator(mutant["full"])(),
                          mutant["occurrence"]) as (before, after):
            lines = "\n".join(_make_diff(before, after, mutant["file"])).splitlines()
            mutant["diff"] = "\n".join(line for line in lines if line[:1] in "+-"
                                       and line[:3] not in ("+++", "---"))
            mutant["outcome"] = show(work, tests, 3 * spent + (300 if compiled else 120))
            log = (work.folder / "pytest.log").read_text(encoding="utf-8", errors="replace")
            mutant["by"] = re.findall(r"^(?:FAILED|ERROR) (.*)", log, re.MULTILINE)
            if "Failed in nopython mode" in log:
                mutant["outcome"] = "not compiled"
    mutant["seconds"] = round(time.monotonic() - begun, 1)


def show(work, tests, timeout):
    """Run tests in a fork (libraries are loaded once): "killed", "survived" or "timeout"."""
    with open(work.folder / "pytest.log", "wb") as log:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            os._exit(pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider",
                                   "--assert=plain", *tests]))
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return "killed" if os.waitstatus_to_exitcode(status) else "survived"
            time.sleep(0.05)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "timeout"


def run(work, given):
    """Try out all mutants without an outcome, or with `again` those that survived."""
    by, seconds = ({}, {}) if given.names else cached(work)
    again, only = given.what == "again", given.only
    mutants = work.read()
    known = {(mutant["file"], mutant["full"], mutant["occurrence"]) for mutant in mutants}
    for mutant in [] if again else sample(work, given.seed, given.most, only, given.compiled):
        if (mutant["file"], mutant["full"], mutant["occurrence"]) not in known:
            mutants.append(mutant)
    os.chdir(work.clone)
    os.environ.update(work.environment)
    sys.dont_write_bytecode = True
    for library in LIBRARIES:
        importlib.import_module(library)
    for mutant in mutants:
        if only and not re.search(only, mutant["file"]):
            continue
        if "outcome" not in mutant or again and mutant["outcome"] in OPEN:
            first = mutant.get("outcome")
            try:
                try_out(work, mutant, (given.names, given.seconds, given.compiled) if given.names
                        else tests_of(mutant, work, by, seconds, given.seconds))
            except AttributeError:  # cosmic-ray cannot change `except module.Error`
                mutant["outcome"] = "no mutant"
            mutant["first"] = mutant.get("first", first or mutant["outcome"])
            work.write(mutants)
            print(mutant["file"], mutant["line"], mutant["operator"], mutant["outcome"],
                  mutant.get("seconds"), flush=True)


def table(work):
    """Print the table of reliability.md: mutants of each folder, and how many survived."""
    equivalent = work.folder / "equivalent.txt"  # a line "file line operator: why" for each
    judged = {line.partition(":")[0] for line in
              (equivalent.read_text().splitlines() if equivalent.exists() else [])}
    counts = {}
    for mutant in work.read():
        room = mutant["file"].partition("/")[0] if "/" in mutant["file"] else "files at the top"
        room = "compiled code" if mutant.get("compiled") else room
        count = counts.setdefault(room, Counter())
        same = f"{mutant['file']} {mutant['line']} {mutant['operator']}" in judged
        first, now = mutant.get("first"), mutant.get("outcome")
        if now and now not in ("no mutant", "not compiled"):
            count["run"] += 1
            count["killed"] += first == "killed"
            count["first"] += first in OPEN
            count["same"] += same and now in OPEN
            count["now"] += not same and now in OPEN
    counts["together"] = sum(counts.values(), Counter())
    for room, count in counts.items():
        print(f"| {room} | {count['run']} | {count['killed']} | {count['first']} | "
              f"{count['same']} | {count['now']} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["cover", "run", "again", "survivors", "table"])
    parser.add_argument("folder")
    parser.add_argument("names", nargs="*", help="test files to run again with `cover`; "
                        "with `run` and `again`, tests that see each fault")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample")
    parser.add_argument("--most", type=int, default=6, help="largest number of mutants of a file")
    parser.add_argument("--only", help="regular expression of files")
    parser.add_argument("--compiled", action="store_true", help="draw in compiled code alone")
    parser.add_argument("--seconds", type=float, default=20, help="of tests for each mutant")
    given = parser.parse_args()
    work = Work(given.folder)
    if given.what == "cover":
        work.clean()
        cover(work, given.names)
    elif given.what in ("run", "again"):
        work.clean()
        run(work, given)
    elif given.what == "table":
        table(work)
    else:
        for mutant in work.read():
            if mutant.get("outcome") in OPEN:
                print(f"{mutant['file']} {mutant['line']} {mutant['operator']}:"
                      f"\n{mutant.get('diff')}\n  {mutant['tests'][:4]}")


if __name__ == "__main__":
    main()
