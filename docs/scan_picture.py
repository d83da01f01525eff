"""Make docs/scan.png: a noisy scan upscaled by a spline, by --preset best and by --preset scan.

    make demo
    .venv/bin/python docs/scan_picture.py

The script degrades the sample brain as a scanner does: mean over two voxels, 3 % of Rician noise,
and the outline of the low-resolution volume. Both sets of filters come with the project.
"""

import numpy as np
from demo_brain import ROOT, demo_file
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from degrading.acquisition import make_low
from degrading.degradation import degradation_of
from disk.files import write_whole
from disk.filters import PRETRAINED, PRETRAINED_SCAN, load_filters
from filter_constant import Request
from get_lar import make_fine
from nifti.volumes import read_volume
from report.pictures import canonical, plane, png
from restoring.steps import restore
from util import clip_bright, decibel, mod_crop

NOISE = 0.03  # standard deviation of the noise, as a share of the 99.9 % quantile
AXIS, PLACE = 2, 0.52  # an axial slice, at this part of the brain's height
SQUARE = 0.1, 0.32, 0.36  # top, left and side of the square to show, as shares of the slice's width
ERROR = 0.15  # an error of this share of the intensity range is white


def main():
    """Draw original, quintic spline, --preset best and --preset scan, with errors below."""
    path = demo_file("test", "*.nii.gz")
    volume = read_volume(path)
    filters = {
        name: load_filters(Request(arrays_dir=str(folder)))
        for name, folder in (("best", PRETRAINED), ("scan", PRETRAINED_SCAN))
    }
    hr = mod_crop(clip_bright(volume.data), (2, 2, 2))
    hr = np.ascontiguousarray(hr / hr.max())
    operator = degradation_of(hr.shape, filters["scan"][1])
    low = make_low(hr, operator, NOISE, np.random.default_rng(0))
    images = {
        "original": hr,
        "quintic spline": operator.spline(low),
        **{f"--preset {name}": upscaled(low, *found[:2]) for name, found in filters.items()},
    }
    images = {name: np.clip(image, 0, 1) for name, image in images.items()}
    errors = [decibel(np.mean(np.square(image - hr)[hr > 0])) for image in images.values()]
    turned, _ = canonical(images, volume.image.affine)
    slices = [plane(image, AXIS, int(PLACE * image.shape[AXIS])) for image in turned.values()]
    row, column, side = (round(part * slices[0].shape[1]) for part in SQUARE)
    figure = Figure(figsize=(4 * 2.4, 2 * 2.4 + 0.4), dpi=100, facecolor="black")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2,
        4,
        left=0,
        right=1,
        bottom=0,
        top=1 - 0.4 / figure.get_figheight(),
        wspace=0.02,
        hspace=0.02,
    )
    for n, (name, image) in enumerate(zip(images, slices, strict=True)):
        for below, shown in enumerate((image, np.abs(image - slices[0]))):
            axes = figure.add_subplot(grid[below, n])
            axes.set_axis_off()
            if n or not below:
                axes.imshow(
                    shown[row : row + side, column : column + side],
                    vmin=0,
                    cmap="inferno" if below else "gray",
                    vmax=ERROR if below else 1,
                    interpolation="nearest",
                )
            if not below:
                title = f"{name}\n{errors[n]:.2f} dB" if n else name
                axes.set_title(title, color="white", fontsize=9, pad=3)
    write_whole(ROOT / "docs" / "scan.png", png(figure))


def upscaled(low, stages, method):
    """The scan on the fine grid, restored by these filters."""
    fine = make_fine(low, method)
    return fine.whole(restore(fine, stages, method))


if __name__ == "__main__":
    main()
