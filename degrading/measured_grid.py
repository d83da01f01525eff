"""Find the grid on which an interpolated scan was measured, and bring the scan back to it.

A scanner often pads the spectrum of a plane with zeros and writes a grid twice as fine (zero
filling: "ZIP 512", "Interpolation2D"). Filters would mistake the missing frequencies for blur, and
sharpen the scan and its noise. An interpolated scan is therefore brought back to its measured grid,
where it loses nothing, and is restored from this grid.
"""
from typing import NamedTuple

import numpy as np

from degrading.banded import apply_operators, banded
from degrading.descriptors import power_along
from degrading.spline import zoom_operator

LINE = 32  # voxels of a line for the spectrum: its frequencies have steps of 1/16
# A drop of so many dB within two steps shows interpolation. Zero filling makes it 21 and more, the
# filters of scanners up to 16; scans of one study must not lie on both sides of the limit.
SHARP_DROP = 18.0
TOLD_DROP = 6.0  # the same at a frequency that a sidecar states; 3 to 5 dB without interpolation
LOWEST = 4  # first step that is used; at lower frequencies the power of anatomy drops steeply
RATIOS = (1 / 2, 2 / 3)  # usual ratios of measured to written voxels along an axis
NEAR_ENOUGH = 0.07  # largest difference from the nearest of these ratios


class MeasuredGrid(NamedTuple):
    """The grid on which a volume was measured."""

    shape: tuple  # of three int
    shares: tuple  # of three float: measured share of the voxels along each axis

    @property
    def is_own(self):
        """True if the volume was measured on its own grid."""
        return min(self.shares) == 1

    def in_words(self, sizes, unit):
        """The interpolated axes of a volume with these voxel sizes, as a text.

        Examples
        --------
        >>> MeasuredGrid((24, 48, 48), (0.5, 1.0, 1.0)).in_words((0.5, 1, 1), "mm")
        'axis 0: 1 mm on a grid of 0.5'
        """
        return "; ".join(f"axis {axis}: {size / share:.4g} {unit} on a grid of {size:.4g}"
                         for axis, (size, share) in enumerate(zip(sizes, self.shares, strict=True))
                         if share < 1)

    def to_low(self):
        """The matrix from voxels of this grid to voxels of the volume, shape (4, 4)."""
        matrix = np.eye(4)
        for axis, share in enumerate(self.shares):
            matrix[axis, axis], matrix[axis, 3] = 1 / share, (1 / share - 1) / 2
        return matrix


def measured_grid(low, told=(1.0, 1.0, 1.0)):
    """Find the measured grid of a volume from the frequency at which its spectrum ends.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        The background is 0.
    told : sequence of three float, optional
        Shares from a sidecar, see `nifti.slices.filled_up`; 1 if unknown.

    Returns
    -------
    MeasuredGrid

    Examples
    --------
    >>> noise = np.random.default_rng(0).random((48, 48, 48), np.float32) + 1
    >>> measured_grid(noise).shares
    (1.0, 1.0, 1.0)
    >>> half = MeasuredGrid((24, 48, 48), (0.5, 1.0, 1.0))
    >>> back = [banded(wave_matrix(*pair)) for pair in ((24, 48), (48, 48), (48, 48))]
    >>> fine = apply_operators(onto_measured(noise, half), back)
    >>> measured_grid(fine)
    MeasuredGrid(shape=(24, 48, 48), shares=(0.5, 1.0, 1.0))
    """
    # Scaled by a power of two, so that squares of any intensities fit into float32: the spectrum of
    # a map in metres squared per second is as good as that of a scan.
    low, shares = np.ldexp(low, -np.frexp(low.max())[1]), []
    for axis, (side, share) in enumerate(zip(low.shape, told, strict=True)):
        found = _share_along(np.moveaxis(low, axis, -1), share)
        ratio = min(RATIOS, key=lambda ratio: abs(ratio - found))
        near = abs(ratio - found) <= NEAR_ENOUGH
        count = round(side * ratio)
        shares.append(count / side if near and count > 1 else 1.0)
    shape = tuple(round(side * share) for side, share in zip(low.shape, shares, strict=True))
    return MeasuredGrid(shape, tuple(shares))


def onto_measured(low, grid):
    """Bring a volume to its measured grid by Fourier interpolation.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        The background is 0.
    grid : MeasuredGrid

    Returns
    -------
    ndarray of float32, shape ``grid.shape``
        Intensities not below zero; 0 where more than half of a voxel is background.
    """
    sides = list(zip(low.shape, grid.shape, strict=True))
    found = apply_operators(low, [banded(wave_matrix(*pair)) for pair in sides])
    inside = (low > 0).astype(np.float32)
    kept = apply_operators(inside, [zoom_operator(*pair, 1, False, "edges")
                                    for pair in sides]) >= 0.5
    return np.clip(found, 0, None) * kept


def mask_onto_measured(inside, grid):
    """Bring a mask to a volume's measured grid; returns bool of shape ``grid.shape``."""
    return onto_measured(inside.astype(np.float32), grid) >= 0.5


def wave_matrix(n_in, n_out):
    """The matrix of Fourier interpolation from n_in to n_out voxels of an axis.

    Examples
    --------
    >>> wave_matrix(4, 4).round(12)[0].tolist()
    [1.0, 0.0, 0.0, 0.0]
    """
    if n_in == n_out:
        return np.eye(n_in)
    places = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    turns = 2 * np.pi / n_in * np.arange(1, (min(n_in, n_out) - 1) // 2 + 1)
    there, here = np.outer(places, turns), np.outer(np.arange(n_in), turns)
    waves = np.cos(there) @ np.cos(here).T + np.sin(there) @ np.sin(here).T
    return (1 + 2 * waves) / n_in


def _share_along(volume, told):
    """Frequency at which the spectrum along the last axis ends, as a share of the highest one."""
    power = power_along(volume, LINE)
    if power is None:
        return 1.0
    level = 10 * np.log10(power + 1e-20)
    drop = level[LOWEST:-2] - level[LOWEST + 2:]
    at = int(drop.argmax())
    if drop[at] >= SHARP_DROP:
        return (LOWEST + at) / (LINE // 2)
    if told < 1:  # the value of the sidecar is used if the power drops there
        there = abs(np.arange(LOWEST, LOWEST + len(drop)) - told * (LINE // 2)) <= 1
        if drop[there].max(initial=0) >= TOLD_DROP:
            return told
    return 1.0
