"""Folders import from those below them, never in a circle, and files stay short."""
import ast
from graphlib import TopologicalSorter

from conftest import ROOT

from machine.sources import all_sources

MOST_LINES = 350
MOST_ARROWS = 115  # between rooms; a newcomer follows no more


def room(module):
    """The folder of a module; a file at the top is a room of its own."""
    return module.partition(".")[0]


def imported(path, modules):
    """Modules of this project that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            yield from whole or {node.module} & modules


def rooms():
    """For each room the rooms that it imports from."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in all_sources()}
    found = {}
    for module, path in paths.items():
        below = {room(name) for name in imported(path, set(paths))} - {room(module)}
        found.setdefault(room(module), set()).update(below)
    return found


def test_rooms_import_in_no_circle():
    found = rooms()
    assert len(found) > 20 and "degrading" in found["get_lar"]
    list(TopologicalSorter(found).static_order())  # CycleError names the circle


def test_rooms_import_from_few_others():
    found = rooms()
    assert sum(map(len, found.values())) <= MOST_ARROWS, {room: sorted(below) for room, below
                                                          in found.items()}


def test_machine_knows_nothing_of_the_project():
    assert rooms()["machine"] == set()


def test_files_are_short():
    long = {str(path.relative_to(ROOT)): lines for path in all_sources()
            if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES}
    assert not long
