"""Make docs/quality.png: one slice of the sample brain, restored by several methods.

    make demo
    .venv/bin/python docs/compare.py

The filters of --preset paper are those that the demo learned from the template. The filters of
--preset best come with the project.
"""

import numpy as np
from demo_brain import ROOT, demo_file
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from disk.files import write_whole
from disk.filters import PRETRAINED, load_filters
from filter_constant import Request
from get_lar import best_spline, make_pair
from nifti.volumes import read_volume
from report.pictures import canonical, plane, png
from restoring.figures import brain_mask, figures
from restoring.steps import restore
from util import mod_crop

AXIS, PLACE = 2, 0.52  # an axial slice, at this part of the brain's height
SQUARE = 0.1, 0.32, 0.36  # top, left and side of the square to show, as shares of the slice's width
ERROR = 0.15  # an error of this share of the intensity range is white


def main():
    """Draw original, best spline, paper, initial estimate of best and best, with errors below."""
    path = demo_file("test", "*.nii.gz")
    volume, images, decibel = read_volume(path), {}, []
    for arrays, name in (
        (ROOT / "demo" / "arrays", "--preset paper"),
        (PRETRAINED, "--preset best"),
    ):
        filters, method, *_ = load_filters(Request(arrays_dir=str(arrays)))
        pair = make_pair(volume.data, method)
        found = {
            "original": pair.hr,
            "best's start": pair.lr,
            "best spline": best_spline(pair),
            name: restore(pair, filters, method),
        }
        mask = brain_mask(pair)
        for label, image in found.items():  # best comes second: its initial estimate is kept
            whole = mod_crop(pair.whole(image), method.factor) / np.float32(pair.scale)
            images[label] = whole, figures(pair.hr, image, mask)["psnr"]
    order = ["original", "best spline", "--preset paper", "best's start", "--preset best"]
    turned, _ = canonical({label: images[label][0] for label in order}, volume.image.affine)
    decibel = [images[label][1] for label in order]
    slices = [plane(image, AXIS, int(PLACE * image.shape[AXIS])) for image in turned.values()]
    row, column, side = (round(part * slices[0].shape[1]) for part in SQUARE)
    figure = Figure(figsize=(5 * 2.2, 2 * 2.2 + 0.4), dpi=100, facecolor="black")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2,
        5,
        left=0,
        right=1,
        bottom=0,
        top=1 - 0.4 / figure.get_figheight(),
        wspace=0.02,
        hspace=0.02,
    )
    for n, (label, image) in enumerate(zip(order, slices, strict=True)):
        for where, shown in enumerate((image, np.abs(image - slices[0]))):
            axes = figure.add_subplot(grid[where, n])
            axes.set_axis_off()
            if where == 0 or n:
                axes.imshow(
                    shown[row : row + side, column : column + side],
                    cmap="inferno" if where else "gray",
                    vmin=0,
                    vmax=ERROR if where else 1,
                    interpolation="nearest",
                )
            if where == 0:
                axes.set_title(
                    label if n == 0 else f"{label}\n{decibel[n]:.2f} dB",
                    color="white",
                    fontsize=9,
                    pad=3,
                )
    write_whole(ROOT / "docs" / "quality.png", png(figure))


if __name__ == "__main__":
    main()
