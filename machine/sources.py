"""Source files of this project and their digests, and versions of packages.

The digests show whether compiled code, a worker or an interrupted run belongs to the current
version. This file imports the standard library only.
"""
import hashlib
import importlib.metadata
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "scipy", "numba", "scikit-image", "nibabel")  # versions may change a result
SCRIPTS = ("api", "bench", "sample", "test", "train")  # what users start and import
# The module in an import line. Lines of text may match too; an additional file does no harm.
IMPORT = re.compile(r"^\s*(?:from|import)\s+([\w.]+)", re.MULTILINE)


def all_sources():
    """The scripts of this project and the modules of its packages: a list of Path.

    A user's own script beside them is none of these.
    """
    scripts = (ROOT / f"{name}.py" for name in SCRIPTS)
    reached = set().union(*map(sources_behind, scripts))
    packages = {path.parent for path in reached} - {ROOT}
    return sorted(reached.union(*(folder.glob("*.py") for folder in packages)))


def sources_behind(path):
    """A source file and all files of this project that it imports, directly or indirectly: a set.

    Examples
    --------
    >>> sorted(path.name for path in sources_behind(ROOT / "machine" / "blas.py"))
    ['__init__.py', 'blas.py']
    """
    found, left = set(), [Path(path).resolve()]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += _imported_by(path)
    return found


@cache
def _imported_by(path):
    """The files of this project that a file imports directly, and the files of their packages."""
    names = {path.relative_to(ROOT).with_suffix("").as_posix()} if ROOT in path.parents else set()
    names |= {name.replace(".", "/") for name in IMPORT.findall(path.read_text(encoding="utf-8"))}
    found = []
    for name in names:
        module = ROOT / f"{name}.py"
        # `from package import module` may take any module of the package.
        found += [module] if module.is_file() else (ROOT / name).glob("*.py")
        package = module.parent / "__init__.py"
        found += [package] if package.is_file() else []
    return found


def digest_of(paths):
    """A digest of the names and contents of source files: 16 hexadecimal digits."""
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:16]


def versions_of(packages=PACKAGES):
    """The versions of installed packages, by name: dict of str."""
    return {name: importlib.metadata.version(name) for name in packages}
