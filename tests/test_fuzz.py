"""Mutated files: each ends in a result or in one line that names the file.

No hang, no other exception, bounded memory. 2,000 cases and more by default. By hand, many more:
``FUZZ_CASES=50000 python -m pytest tests/test_fuzz.py -s``.
"""

import gzip
import hashlib
import json
import os
import shutil
import time
import warnings
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import brain, filter_paths, one_stage, save

from disk.filters import load_filters, save_filters
from engine import CPU
from filter_constant import Request
from hashtable import Boundaries
from learning.ledger import Finished
from learning.steps import checkpoint_of
from machine.errors import UserError
from matrix_compute import solve
from restoring.steps import restore_file
from structure import structure_of

CASES = int(os.environ.get("FUZZ_CASES", 2100))
SHARES = {
    "volume": 0.25,
    "gzip": 0.25,
    "packed": 0.2,
    "filters": 0.15,
    "checkpoint": 0.15,
    # Those of test_fuzz_scans.py come on top.
    "geometry": 0.15,
    "upscaled": 0.1,
    "stages": 0.1,
    "report": 0.01,
}
BOTH = ("volume", "packed", "geometry", "upscaled", "stages")  # kinds that also end in results
SECONDS = 20  # for one case; they take some milliseconds
GROWN = 600 << 20  # bytes that the process may take more at the end than at the beginning
SMALL = Request.of(filter_len=3, grad_len=3, q_angle_p=2, q_angle_t=2)
ended = Counter()


def mutations(longest):
    """Changes to a file: bytes overwritten, flipped, cut out, repeated or put in.

    Most are near its beginning.
    """
    place = st.one_of(st.integers(0, min(400, longest)), st.integers(0, longest))
    interesting = st.sampled_from(
        [
            b"\0",
            b"\xff",
            b"\x7f",
            b"\x80",
            b"\xff\x7f",
            b"\0\x80",
            b"\xff\xff\xff\x7f",
            b"\0\0\0\x80",
            b"\0\0\x80\x7f",
            b"\0\0\xc0\x7f",
            b"\xff" * 8,
            b"999999999",
            b"-1",
            b"{",
            b"'",
        ]
    )
    change = st.one_of(
        st.tuples(
            st.just("write"), place, st.one_of(interesting, st.binary(min_size=1, max_size=8))
        ),
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("cut"), place, st.one_of(st.integers(1, 16), st.integers(1, longest))),
        st.tuples(
            st.just("insert"), place, st.one_of(interesting, st.binary(min_size=1, max_size=64))
        ),
        st.tuples(st.just("repeat"), place, st.integers(1, 400)),
    )
    return st.lists(change, min_size=1, max_size=4)


def mutated(content, changes):
    content = bytearray(content)
    for what, place, value in changes:
        place = min(place, len(content))
        if what == "write":
            content[place : place + len(value)] = value
        elif what == "flip" and place < len(content):
            content[place] ^= 1 << value
        elif what == "cut":
            del content[place : place + value]
        elif what == "insert":
            content[place:place] = value
        elif what == "repeat":
            content[place:place] = content[place : place + value]
    return bytes(content)


def fuzz(kind, changes):
    """Run a test on so many mutations.

    They must end in both ways where they can, or the mutations test nothing.
    """

    def decorate(test):
        cases = max(1, round(CASES * SHARES[kind]))
        run = settings(
            max_examples=cases,
            deadline=None,
            database=None,
            derandomize=CASES < 5000,
            suppress_health_check=list(HealthCheck),
        )(given(changes=changes)(test))

        def checked(files):
            run(files=files)
            print(
                *(
                    f"{count:6} {kind}: {how}"
                    for (of, how), count in sorted(ended.items())
                    if of == kind
                ),
                sep="\n",
            )
            assert (
                cases < 200
                or ended[kind, "refused"]
                and (kind not in BOTH or ended[kind, "result"])
            )

        checked.__name__, checked.__doc__ = test.__name__, test.__doc__
        return checked

    return decorate


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Valid files, small, with filters that restore them."""
    folder = tmp_path_factory.mktemp("valid")
    data = brain(shape=(13, 12, 11))
    made = {
        "volume": save(folder / "v.nii", data).read_bytes(),
        "integers": save(folder / "w.nii", np.rint(data).astype(np.int16)).read_bytes(),
    }
    made["gzip"] = gzip.compress(made["integers"], 6, mtime=0)
    here = SMALL.but(arrays_dir=str(folder))
    method = here.method
    h = np.zeros((method.buckets, method.taps), np.float32)
    h[:, method.taps // 2] = 1
    save_filters(
        one_stage(h, Boundaries(np.array([1e-4, 1e-3]), np.array([0.2, 0.4]))), here, ["v.nii"]
    )
    checkpoint = checkpoint_of(structure_of(method), [], here)
    checkpoint.begin(
        Boundaries(np.array([1e-4, 1e-3]), np.array([0.2, 0.4])), [Finished("v.nii", 1, "0")]
    )
    gram = checkpoint.load(range(method.buckets))
    samples = np.random.default_rng(0).standard_normal((60, gram.side))
    gram.packed[3:20], gram.count[3:20] = (samples.T @ samples)[np.tril_indices(gram.side)], 60
    checkpoint.ledger.add(np.ones(method.buckets, bool), Finished("v.nii", 1, "0"))
    checkpoint.save(gram)
    made["request"], made["folder"], made["filters"] = here, folder, load_filters(here)
    shutil.copytree(folder, folder / "kept")
    restore(folder, "v.nii", made["volume"], made)  # compiles
    solve(gram, method)
    return made


def restore(folder, name, content, files):
    """What test.py does with one volume."""
    path = Path(folder, name)
    path.write_bytes(content)
    target = Path(folder, "result", name)
    return restore_file(path, target, files["filters"], files["request"], CPU()).row


class Case:
    """Within: a result, or a UserError of one line that names the file; not long, and not large."""

    def __init__(self, kind, folder):
        self.kind, self.folder = kind, str(folder)

    def __enter__(self):
        self.begun, self.before = time.perf_counter(), psutil.Process().memory_info().rss
        self.warnings = warnings.catch_warnings()  # that a user would see, beside the one line
        self.warnings.__enter__()
        warnings.simplefilter("error", RuntimeWarning)

    def __exit__(self, kind, fault, _):
        self.warnings.__exit__()
        ended[self.kind, "refused" if fault else "result"] += 1
        assert time.perf_counter() - self.begun < SECONDS
        assert psutil.Process().memory_info().rss - self.before < GROWN
        if isinstance(fault, UserError):
            text = str(fault)
            assert (
                text.startswith(self.folder) and "\n" not in text and (";" in text or "," in text)
            ), text
            return True


def restored_or_refused(kind, name, content, files):
    with Case(kind, files["folder"]):
        row = restore(files["folder"], name, content, files)
        assert row["brain_voxels"] > 0
        written = nib.load(files["folder"] / "result" / name)
        assert np.isfinite(np.asarray(written.dataobj)).all()


@fuzz("volume", mutations(7000))
def test_mutated_volumes(files, changes):
    restored_or_refused("volume", "m.nii", mutated(files["volume"], changes), files)


@fuzz("gzip", mutations(2000))
def test_mutated_gzip(files, changes):
    restored_or_refused("gzip", "m.nii.gz", mutated(files["gzip"], changes), files)


@fuzz("packed", mutations(3800))
def test_mutated_volumes_in_good_gzip(files, changes):
    restored_or_refused(
        "packed", "p.nii.gz", gzip.compress(mutated(files["integers"], changes), 1), files
    )


@fuzz("filters", mutations(4000))
def test_mutated_filters(files, changes):
    """One of the four files.

    Half of the cases have digests that fit, so that what stands behind them is met, too.
    """
    here, folder = files["request"], files["folder"]
    paths = filter_paths(here)
    first = changes[0][1]
    path = paths[first % 4]
    good = (folder / "kept" / path.name).read_bytes()
    path.write_bytes(mutated(good, changes))
    if first % 8 < 4 and path != paths[-1]:
        about = json.loads((folder / "kept" / paths[-1].name).read_text())
        about["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        paths[-1].write_text(json.dumps(about))
    try:
        with Case("filters", folder):
            learned = load_filters(here)
            ((_, h),), method = learned.stages, learned.method
            assert h.shape == (method.buckets, method.taps) and np.isfinite(h).all()
            assert learned.folder == here.arrays_dir
    finally:
        for name in {path.name, paths[-1].name}:
            shutil.copy(folder / "kept" / name, folder / name)


@fuzz("checkpoint", mutations(4000))
def test_mutated_checkpoint(files, changes):
    folder, here = files["folder"], files["request"]
    checkpoint = checkpoint_of(structure_of(here.method), [], here)
    path = checkpoint.folder / ("about.json" if changes[0][1] % 3 == 0 else "sums_00000.npy")
    good = (folder / "kept" / "QVF_2" / path.name).read_bytes()
    path.write_bytes(mutated(good, changes))
    try:
        with Case("checkpoint", folder):
            if checkpoint.find():
                gram = checkpoint.load(range(here.method.buckets))
                assert np.isfinite(gram.packed).all() and (gram.count >= 0).all()
                checkpoint.ledger.names()
    finally:
        path.write_bytes(good)
