"""PSNR and SSIM of a restored volume against the original."""
import numpy as np
from skimage.metrics import structural_similarity

from machine.threads import in_threads, spans
from util import decibel

SSIM_WINDOW, SSIM_PLANES = 7, 32  # voxels
FIGURE_MARGIN = 5  # voxels: half a patch of the published size


def brain_mask(volume):
    """Mask of the voxels for PSNR and SSIM: ndarray of bool, shape of the box.

    The mask holds the nonzero HR voxels at a distance of FIGURE_MARGIN or more from the faces of
    the volume, because voxels nearer to the faces have no whole patch in the published method. If
    the volume is too small for this, the mask holds all nonzero HR voxels.
    """
    mask = volume.hr != 0
    for axis, (part, side) in enumerate(zip(volume.box, volume.operator.shape, strict=True)):
        place = np.arange(part.start, part.stop)
        inside = (place >= FIGURE_MARGIN) & (place < side - FIGURE_MARGIN)
        mask = mask & inside.reshape([-1 if a == axis else 1 for a in range(3)])
    return mask if mask.any() else volume.hr != 0


def figures(hr, estimate, mask):
    """PSNR (dB) and SSIM of an estimate, data range 1.

    Both are computed over the brain and, as in the paper, over the whole cropped box. Every method
    restores the black surround in the box without error, so the values over the box are higher and
    less informative. If all errors lie within the brain, the difference in PSNR between two methods
    is the same over the brain and over the box.

    Parameters
    ----------
    hr, estimate : ndarray of float32, shape (X, Y, Z), in [0, 1]
    mask : ndarray of bool, shape (X, Y, Z)
        Brain mask.

    Returns
    -------
    dict of str to float
        psnr, ssim, psnr_box, ssim_box.

    Examples
    --------
    >>> hr = np.zeros((9, 9, 9), np.float32)
    >>> round(figures(hr, hr + np.float32(0.1), hr == 0)["psnr"], 3)
    20.0
    """
    short = [max(SSIM_WINDOW - side, 0) for side in hr.shape]  # voxels missing for one window
    half, (x, y, z) = SSIM_WINDOW // 2, hr.shape  # before the volumes are padded
    if any(short):
        hr, estimate, mask = (np.pad(part, [(0, n) for n in short], mode=mode) for part, mode in (
            (hr, "symmetric"), (estimate, "symmetric"), (mask, "constant")))
    sums = dict.fromkeys(("psnr", "ssim", "psnr_box", "ssim_box"), 0.0)
    inner = np.zeros(hr.shape[0], bool)
    inner[half:-half] = True
    for planes, similarity in _similarity(hr, estimate):
        squares, brain = np.square(hr[planes] - estimate[planes]), mask[planes]
        box = squares[:max(x - planes.start, 0), :y, :z]
        seen = similarity[inner[planes], half:-half, half:-half]
        for name, part in (("psnr", squares[brain]), ("ssim", similarity[brain]),
                           ("psnr_box", box), ("ssim_box", seen)):
            sums[name] += part.sum(dtype=np.float64)
    voxels = np.count_nonzero(mask)
    return {"psnr": decibel(sums["psnr"] / voxels), "ssim": float(sums["ssim"] / voxels),
            "psnr_box": decibel(sums["psnr_box"] / (x * y * z)),
            "ssim_box": float(sums["ssim_box"] / np.prod([side - 2 * half for side in hr.shape]))}


def _similarity(hr, estimate):
    """Yield scikit-image's SSIM of each voxel, some planes at a time: a slice and an ndarray.

    Computing the whole volume at once would need the memory of a dozen volumes.
    """
    half = SSIM_WINDOW // 2
    for start, stop in spans(len(hr), SSIM_PLANES):
        last = min(stop + half, len(hr))
        first = max(min(start - half, last - SSIM_WINDOW), 0)
        part = structural_similarity(hr[first:last], estimate[first:last], win_size=SSIM_WINDOW,
                                     data_range=1.0, full=True)[1]
        yield slice(start, stop), part[start - first:stop - first]


def figures_of(hr, estimates, mask):
    """The figures of several estimates (a dict of arrays by name), computed in parallel."""
    found = dict.fromkeys(estimates)  # in this order, whichever is computed first

    def measure(name):
        found[name] = figures(hr, estimates[name], mask)

    in_threads(list(estimates), measure)
    return found
