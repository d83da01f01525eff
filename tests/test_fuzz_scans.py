"""Mutated files once more: geometry of headers, volumes to upscale, filters of stages, the report.

As in test_fuzz.py, each ends in a result or in one line that names the file. By hand, many more:
``FUZZ_CASES=50000 python -m pytest tests/test_fuzz.py tests/test_fuzz_scans.py -s``.
"""
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script
from hypothesis import strategies as st
from synthetic import brain, one_stage, save
from test_fuzz import SMALL, Case, fuzz, mutated, mutations

from disk.files import whole_files
from disk.filters import Filters, load_filters
from engine import CPU
from hashtable import Boundaries
from options.command_line import command_line
from report.page import make_page
from report.record import about_run, write_beside
from restoring.steps import restore_file

pytestmark = pytest.mark.usefixtures("drawn")

FIELDS = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
          "qoffset_z", "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units", "scl_slope",
          "scl_inter", "slice_duration", "slice_code", "intent_code", "toffset", "vox_offset")
ODD = st.one_of(
    st.sampled_from([0, 1, -1, 2, 1e-30, 1e30, -1e30, np.nan, np.inf, -np.inf, 1 + 1e-6, 255]),
    st.floats(-3, 3, width=32))


def of_geometry():
    """Changes to a header: a field, which of its numbers, and what is written there."""
    change = st.tuples(st.sampled_from(FIELDS), st.integers(0, 7), ODD)
    return st.lists(change, min_size=1, max_size=5)


def spoilt(content, changes):
    """A volume's bytes, with these fields of its header."""
    header = nib.Nifti1Header(content[:348], check=False)
    for name, place, value in changes:
        field = np.array(header[name])
        with np.errstate(all="ignore"):
            if field.dtype.kind in "iu":
                value = np.nan_to_num(value, posinf=127, neginf=-128) % 128
            field.reshape(-1)[place % field.size] = value
        header[name] = field
    return header.binaryblock + content[348:]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small volume with an oblique place in space, and small filters of both structures."""
    folder = tmp_path_factory.mktemp("scans")
    affine = np.array([[-0.8, 0.1, 0, 9], [0.1, 0.9, 0.2, -8], [0, -0.2, 1.1, 7], [0, 0, 0, 1]])
    image = nib.Nifti1Image(brain(shape=(13, 12, 11)), affine)
    image.set_qform(affine, 1)
    nib.save(image, folder / "v.nii")
    save(folder / "train" / "v.nii", brain())
    request = command_line("train", [
        "--preset", "best", "--stages", "1", "--leaves", "2", "--filter_len", "3", "--train_dir",
        str(folder / "train"), "--arrays_dir", str(folder / "arrays")])
    assert load_script("train").main(request) == 0
    shutil.copytree(folder / "arrays", folder / "kept")
    published = SMALL.but(upscale=True, arrays_dir=str(folder / "arrays"))
    method = published.method
    h = np.zeros((method.buckets, method.taps), np.float32)
    h[:, method.taps // 2] = 1
    limits = Boundaries(np.array([1e-4, 1e-3]), np.array([0.2, 0.4]))
    found = {"folder": folder, "volume": (folder / "v.nii").read_bytes(),
             "stages": replace(request, given=frozenset()),
             "filters": Filters(one_stage(h, limits), method), "asked": published}
    path, target, first = restored(found, "v.nii", found["volume"])  # compiles
    with whole_files() as files:
        write_beside("v", target.with_suffix(".png"), first, 1, files, False)  # loads what draws
    return found


def restored(files, name, content):
    """What test.py --upscale does with one volume."""
    path = Path(files["folder"], name)
    path.write_bytes(content)
    target = Path(files["folder"], "result", name)
    return path, target, restore_file(path, target, files["filters"], files["asked"], CPU())


def check(target):
    """The result is whole, and says where it lies."""
    written = nib.load(target)
    assert np.isfinite(np.asarray(written.dataobj)).all() and np.isfinite(written.affine).all()
    assert (np.array(written.header.get_zooms()[:3]) > 0).all()
    assert abs(np.linalg.det(written.affine)) > 0


@fuzz("geometry", of_geometry())
def test_mutated_geometry(files, changes):
    with Case("geometry", files["folder"]):
        _, target, _ = restored(files, "g.nii", spoilt(files["volume"], changes))
        check(target)


@fuzz("upscaled", mutations(7000))
def test_mutated_volumes_that_are_upscaled(files, changes):
    with Case("upscaled", files["folder"]):
        _, target, _ = restored(files, "u.nii", mutated(files["volume"], changes))
        check(target)


@fuzz("report", of_geometry())
def test_mutated_geometry_in_the_report(files, changes):
    with Case("report", files["folder"]):
        path, target, found = restored(files, "r.nii", spoilt(files["volume"], changes))
        with whole_files() as beside:
            shown = write_beside(path.name, target.with_suffix(".png"), found, 1, beside,
                                 compare=False)
        about = about_run(files["asked"], found.method, ["test.py"])
        page = "".join(make_page(about, [found.row], [shown]))
        assert "nan" not in page.split("<table>")[1].split("</table>")[0]


@fuzz("stages", mutations(3000))
def test_mutated_filters_of_stages(files, changes):
    """One of the three files; half of the cases have digests that fit."""
    here = files["stages"]
    names = ("stage1_2.npy", "tree1_2.npy", "settings_2.json")
    arrays, kept = Path(here.arrays_dir), files["folder"] / "kept"
    first = changes[0][1]
    name = names[first % 3]
    (arrays / name).write_bytes(mutated((kept / name).read_bytes(), changes))
    if first % 6 < 3 and name != names[-1]:
        about = json.loads((kept / names[-1]).read_text())
        about["sha256"][name] = hashlib.sha256((arrays / name).read_bytes()).hexdigest()
        (arrays / names[-1]).write_text(json.dumps(about))
    try:
        with Case("stages", files["folder"]):
            filters = load_filters(here)
            (tree, weights), = filters.stages
            assert weights.shape[0] == tree.leaves and np.isfinite(weights).all()
            restore_file(files["folder"] / "v.nii", files["folder"] / "result" / "s.nii", filters,
                         here.but(upscale=True), CPU())
    finally:
        for changed in {name, names[-1]}:
            shutil.copy(kept / changed, arrays / changed)
