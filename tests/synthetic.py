"""Small volumes and quick settings for tests, and commands."""

import contextlib
import importlib.util
import io
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from degrading.degradation import degradation_of
from get_lar import make_fine
from intensities import shift_of
from matrix_compute import Stage, sum_rows
from octahedral.stages import stage_samples
from options import command_line
from restoring.steps import restore
from util import without_nonsense

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


def save_brains(folder, count, shape):
    """Write the volumes 0.nii, 1.nii ... into a folder."""
    for number in range(count):
        save(folder / f"{number}.nii", brain(number, shape))


def zero_filled(volume, axes=(0, 1)):
    """A volume with the outer half of its spectrum along axes set to zero, within its outline."""
    spectrum = np.fft.fftshift(np.fft.fftn(volume))
    for axis in axes:
        along, quarter = np.moveaxis(spectrum, axis, 0), volume.shape[axis] // 4
        along[:quarter] = along[-quarter:] = 0
    return np.abs(np.fft.ifftn(np.fft.ifftshift(spectrum))) * (volume > 0)


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


def load_script(name):
    """Import train.py or test.py by its path.

    `import test` could find the standard library's package of that name.
    """
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(script, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        **options,
    )


def in_process(script, *arguments, **options):
    """Run a script in a process of its own; returns what `command` does."""
    process = start(script, *arguments, **options)
    out, err = process.communicate(timeout=PATIENT)
    return process.returncode, out, err.splitlines()


def command(script, *arguments, cwd=None):
    """Run train.py or test.py; returns its exit status, standard output, lines of standard error.

    It runs in this process, which saves the second or two that a new one takes to load numba and
    compiled code. It prints and ends as there, warnings included.
    """
    out, err = io.StringIO(), io.StringIO()
    status = printing_to(out, err, script, *arguments, cwd=cwd)
    return status, out.getvalue(), err.getvalue().splitlines()


def printing_to(out, err, script, *arguments, cwd=None):
    """The same with these streams; returns the exit status."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(as_a_new_process(err))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        if cwd is not None:
            stack.callback(os.chdir, os.getcwd())
            os.chdir(cwd)
        sys.argv = [str(ROOT / script), *map(str, arguments)]
        try:
            return command_line.run(Path(script).stem, load_script(Path(script).stem).main)
        except SystemExit as end:
            return end.code


@contextlib.contextmanager
def as_a_new_process(err):
    """Inside, warnings are printed as Python does by default; what a command sets is undone."""
    argv, nibabel = sys.argv, logging.getLogger("nibabel.global")
    level, handler = nibabel.level, signal.getsignal(signal.SIGTERM)

    def show(*warning):
        err.write(warnings.formatwarning(*warning[:4]))

    try:
        with warnings.catch_warnings():
            warnings.resetwarnings()
            for kind in (
                DeprecationWarning,
                PendingDeprecationWarning,
                ImportWarning,
                ResourceWarning,
            ):
                warnings.simplefilter("ignore", kind)
            warnings.showwarning = show
            yield
    finally:
        sys.argv = argv
        nibabel.setLevel(level)
        signal.signal(signal.SIGTERM, handler)


def one_stage(h, boundaries):
    """Filters of the published structure."""
    return [Stage(boundaries, h)]


def degrade(image, method):
    """The LR volume of a fine one."""
    return degradation_of(image.shape, method).degrade(image)


def interpolate(low, shape, method):
    """An LR volume on the fine grid."""
    return degradation_of(shape, method, low.shape).interpolate(low)


def upscale(low, stages, method, engine=None, inside=None, voxel_size=(1, 1, 1)):
    """A scan brought to the finer grid by filters for one factor; its background is 0."""
    outside = ~np.isfinite(low)
    low, outside = without_nonsense(low), outside if outside.any() else None
    shift = shift_of(low, outside)
    if not shift:
        fine = make_fine(low, method, inside, voxel_size=voxel_size)
        return fine.whole(restore(fine, stages, method, engine))
    work = shift.work(low, outside)
    if outside is not None:
        low[outside] = shift.background
    fine = make_fine(work, method, inside, voxel_size=voxel_size)
    whole = fine.whole(restore(fine, stages, method, engine))
    return fine.whole_shifted(whole, shift, low, work == 0)


def accumulate_stage(stages, gram, volume, tree, method, name, wanted=None):
    """Add a volume's samples to the sums of the stage after `stages`; returns how many."""
    drawn = stage_samples(volume, stages, tree, method, name, wanted)
    sum_rows(gram, drawn.ends, drawn.fill)
    return drawn.voxels.size
