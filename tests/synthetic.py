"""Small volumes and quick settings for tests."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from degrading.degradation import degradation_of
from matrix_compute import Stage, sum_rows
from octahedral.stages import stage_samples

ROOT = Path(__file__).resolve().parent.parent
PATIENT = 3600  # seconds until a test takes something for hanging: no machine is that slow
# 81 buckets of 126 x 126
QUICK = ["--filter_len", "5", "--grad_len", "5", "--q_angle_p", "3", "--q_angle_t", "3"]


def brain(seed=0, shape=(30, 28, 26)):
    """A smooth random volume in [0, 1000] with a black surround, float32."""
    random = np.random.default_rng(seed)
    texture = gaussian_filter(random.standard_normal(shape), 1.2)
    grid = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    volume = 500 + 1500 * texture
    volume[sum(axis**2 for axis in grid) > 0.8] = 0
    return np.clip(volume, 0, 1000).astype(np.float32)


def save(path, data, affine=None, **header):
    """Write a volume; further arguments are fields of the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, np.diag([0.7, 0.8, 0.9, 1]) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def filter_paths(request):
    """The files of filters of the spherical space, settings last."""
    return [
        Path(request.arrays_dir, name)
        for name in (
            f"h_{request.method.tag}.npy",
            f"Qfactor_str{request.method.tag}",
            f"Qfactor_coh{request.method.tag}",
            f"settings_{request.method.tag}.json",
        )
    ]


def start(script, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        **options,
    )


def command(script, *arguments, **options):
    """Run a script; returns its exit status, standard output and the lines of standard error."""
    process = start(script, *arguments, **options)
    out, err = process.communicate(timeout=PATIENT)
    return process.returncode, out, err.splitlines()


def one_stage(h, boundaries):
    """Filters of the published structure."""
    return [Stage(boundaries, h)]


def degrade(image, method):
    """The LR volume of a fine one."""
    return degradation_of(image.shape, method).degrade(image)


def interpolate(low, shape, method):
    """An LR volume on the fine grid."""
    return degradation_of(shape, method, low.shape).interpolate(low)


def accumulate_stage(stages, gram, volume, tree, method, name, wanted=None):
    """Add a volume's samples to the sums of the stage after `stages`; returns how many."""
    drawn = stage_samples(volume, stages, tree, method, name, wanted)
    sum_rows(gram, drawn.ends, drawn.fill)
    return drawn.voxels.size
