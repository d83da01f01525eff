"""Print the table of docs/conventions.md: requested and resulting voxel sizes, and position errors.

    .venv/bin/python docs/spacings.py

For each geometry, test.py upscales three volumes whose intensities are the x, y and z coordinates
of their voxels, with filters that do not change a voxel. The intensities of a result, which are
then the true positions of its voxels, are compared with the positions by the header.
"""
import contextlib
import io
import itertools
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import test as script  # noqa: E402
from disk.filters import save_filters  # noqa: E402
from filter_constant import Method, Request  # noqa: E402
from hashtable import Boundaries  # noqa: E402
from matrix_compute import Stage  # noqa: E402
from options.command_line import command_line  # noqa: E402

TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
CORONAL = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)
SAGITTAL = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], float)
GEOMETRIES = [  # name, directions of the axes, voxel sizes in mm, sides in voxels, options
    ("axial slices", np.eye(3), (0.43, 0.43, 5.5), (40, 38, 14), "--isotropic"),
    ("axial slices, to 1 mm", np.eye(3), (0.43, 0.43, 5.5), (40, 38, 14), "--voxel_size 1"),
    ("the same, left-handed", np.diag([-1, 1, 1]), (0.43, 0.43, 5.5), (40, 38, 14),
     "--voxel_size 0.43 0.43 1"),
    ("sagittal slices", SAGITTAL, (0.9, 0.9, 4.4), (30, 28, 16), "--voxel_size 0.9"),
    ("coronal slices, the second axis", np.eye(3), (0.7, 3.3, 0.7), (34, 14, 30), "--isotropic"),
    ("coronal, turned", CORONAL, (3.0, 0.8, 0.8), (14, 30, 28), "--isotropic"),
    ("oblique", TURN, (0.6, 0.65, 2.7), (30, 31, 16), "--voxel_size 0.6"),
    ("oblique, cubes of 1.25 mm", -TURN, (1.25, 1.25, 1.25), (18, 17, 19), "--voxel_size 0.5"),
    ("two coarse axes", np.eye(3), (2, 2, 1), (18, 19, 24), "--isotropic"),
    ("cubes and slices", SAGITTAL, (1, 1, 4.1), (20, 21, 14), "--voxel_size 0.5"),
]
FACTORS = [(k, k, k) for k in (2, 3, 4)] + [(1, 1, k) for k in range(2, 9)]


def keeping_filters(folder):
    """Write filters that do not change a voxel, for all factors of the filters for scans."""
    for factor in FACTORS:
        method = Method(factor=factor, filter_len=3, grad_len=3, grid="edges")
        h = np.zeros((method.buckets, method.taps), np.float32)
        h[:, method.taps // 2] = 1
        boundaries = Boundaries(np.array([0.01, 0.02]), np.array([0.3, 0.6]))
        save_filters([Stage(boundaries, h)], Request(method, arrays_dir=str(folder)), [])


def affine_of(geometry):
    """The affine of a geometry's volume, shape (4, 4)."""
    _, directions, sizes, _, _ = geometry
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * np.array(sizes), [-12.5, 7.25, 30]
    return affine


def measure(geometry, folder):
    """Upscale volumes of world coordinates, and measure the error of the result's positions.

    Parameters
    ----------
    geometry : tuple
        An element of GEOMETRIES.
    folder : Path
        Its folder arrays/ holds the filters of `keeping_filters`.

    Returns
    -------
    image : nibabel image
        The last result.
    shift : float
        The largest distance, in mm, between a voxel's position by the header and its true position,
        without the outermost four voxels of the input, where splines are not exact.
    """
    _, _, _, sides, options = geometry
    affine = affine_of(geometry)
    places = _world(affine, sides)
    shifts = []
    for axis in range(3):
        lowest = places[..., axis].min() - 10
        nib.save(nib.Nifti1Image((places[..., axis] - lowest).astype(np.float32), affine),
                 folder / "scan.nii")
        arguments = ["--upscale", "--no-report", "--arrays_dir", str(folder / "arrays"),
                     "--test_dir", str(folder / "scan.nii"), "--overwrite", "--output",
                     str(folder / "fine.nii"),
                     *options.split()]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert script.main(command_line("test", arguments)) == 0, said.getvalue()
        image = nib.load(folder / "fine.nii")
        there = _world(image.affine, image.shape)
        at = nib.affines.apply_affine(np.linalg.inv(affine), there)
        inner = ((at >= 4) & (at <= np.array(sides) - 5)).all(-1)
        shifts.append((image.get_fdata() + lowest - there[..., axis])[inner])
    return image, float(np.sqrt(np.square(shifts).sum(0)).max())


def _world(affine, shape):
    voxels = np.moveaxis(np.indices(shape[:3]), 0, -1)
    return nib.affines.apply_affine(affine, voxels)


def main():
    """Print the table."""
    print("| geometry | voxels, mm | requested | result, mm | shape | largest shift, mm |",
          "|---|---|---|---|---|---|", sep="\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keeping_filters(folder / "arrays")
        for geometry, number in zip(GEOMETRIES, itertools.count(1)):
            what, _, sizes, sides, options = geometry
            image, shift = measure(geometry, folder)
            was, got = (" x ".join(f"{mm:.7g}" for mm in three)
                        for three in (sizes, nib.affines.voxel_sizes(image.affine)))
            shapes = " -> ".join(" x ".join(map(str, shape)) for shape in (sides, image.shape))
            print(f"| {number}. {what} | {was} | `{options}` | {got} | {shapes} | {shift:.5f} |",
                  flush=True)


if __name__ == "__main__":
    main()
