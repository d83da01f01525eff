"""Make docs/restored.png, the picture of the README, from the results of `make demo`.

make demo
.venv/bin/python docs/picture.py
"""

import numpy as np
from demo_brain import ROOT, demo_file
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from disk.files import write_whole
from disk.filters import load_filters
from filter_constant import Request
from get_lar import best_spline, make_pair
from nifti.volumes import read_volume
from report.pictures import canonical, plane, png
from restoring.figures import brain_mask, figures

AXIS, PLACE = 1, 0.42  # a coronal slice, at this part of the brain's length
SQUARE = 0.2, 0.08, 0.3  # top, left and side of the enlarged square, as shares of the slice's width
GOLD = "#ffb000"


def main():
    """Draw four columns: HR, LR, best spline, restored; below each an enlarged square of it."""
    path = demo_file("test", "*.nii.gz")
    result = demo_file("result", "*", path.name)
    _, method, *_ = load_filters(Request(arrays_dir=str(ROOT / "demo" / "arrays")))
    volume = read_volume(path)
    pair = make_pair(volume.data, method)
    images = {
        "original (HR)": pair.hr,
        "low resolution (LR)": pair.lr,
        "best spline": best_spline(pair),
        "restored": read_volume(result).data[pair.box] / np.float32(pair.scale),
    }
    mask = brain_mask(pair)
    decibel = [f"{figures(pair.hr, image, mask)['psnr']:.2f} dB" for image in images.values()]
    turned, _ = canonical(images, volume.image.affine)
    slices = [plane(image, AXIS, int(PLACE * image.shape[AXIS])) for image in turned.values()]
    height, width = slices[0].shape
    row, column, side = (round(part * width) for part in SQUARE)
    frame = np.array([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]) * side + [[column], [row]] - 0.5
    figure = Figure(
        figsize=(4 * 2.2, 2.2 * (height / width + 1) + 0.42), dpi=100, facecolor="black"
    )
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2,
        4,
        height_ratios=(height / width, 1),
        left=0,
        right=1,
        bottom=0,
        top=1 - 0.42 / figure.get_figheight(),
        wspace=0.02,
        hspace=0.02,
    )
    for n, (name, image) in enumerate(zip(turned, slices, strict=True)):
        for where, shown in enumerate((image, image[row : row + side, column : column + side])):
            axes = figure.add_subplot(grid[where, n])
            axes.set_axis_off()
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if where == 0:
                axes.set_title(
                    name if n == 0 else f"{name}\n{decibel[n]}", color="white", fontsize=9, pad=3
                )
                axes.plot(*frame, GOLD, lw=1)
    write_whole(ROOT / "docs" / "restored.png", png(figure))


if __name__ == "__main__":
    main()
