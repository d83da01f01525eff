"""Scans that were interpolated before they came: as fine as their grid looks, less was measured.

A scanner often fills up the spectrum of a plane with zeros and hands out a grid twice as fine (zero
filling: "ZIP 512", "Interpolation2D"). Filters take what is missing there for blur and sharpen it,
and the noise with it. Such a volume loses nothing on the grid that was measured; from there filters
know the way.
"""
from typing import NamedTuple

import numpy as np

from degrading.banded import apply_operators, banded
from degrading.descriptors import power_along
from degrading.spline import zoom_matrix

LINE = 32  # voxels of a line whose spectrum is looked at: frequencies in steps of 1/16
SHARP_DROP = 13.0  # dB within two such steps: Hamming windows and blur fall by 10 at most
TOLD_DROP = 6.0  # dB, where a sidecar says that it ends there: else it falls by 3 to 5
LOWEST = 4  # step: below, energy falls by itself
RATIOS = (1 / 2, 2 / 3)  # that scanners fill up: the nearest is taken
NEAR_ENOUGH = 0.07


class MeasuredGrid(NamedTuple):
    """What was measured of a volume."""

    shape: tuple  # of three int
    shares: tuple  # of three float, of the volume's own voxels along each axis; 1: all

    @property
    def is_own(self):
        """Whether the volume's own grid is what was measured."""
        return min(self.shares) == 1

    def to_low(self):
        """The matrix from its voxels to those of the volume, shape (4, 4)."""
        matrix = np.eye(4)
        for axis, share in enumerate(self.shares):
            matrix[axis, axis], matrix[axis, 3] = 1 / share, (1 / share - 1) / 2
        return matrix


def measured_grid(low, told=(1.0, 1.0, 1.0)):
    """The grid that a volume was measured on, by where its spectrum ends.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        Background 0.
    told : sequence of three float, optional
        Shares that a sidecar says; 1 where it does not.

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
    shares = []
    for axis, (side, share) in enumerate(zip(low.shape, told, strict=True)):
        found = _share_along(np.moveaxis(low, axis, -1), share)
        ratio = min(RATIOS, key=lambda ratio: abs(ratio - found))
        near = abs(ratio - found) <= NEAR_ENOUGH
        count = round(side * ratio)
        shares.append(count / side if near and count > 1 else 1.0)
    shape = tuple(round(side * share) for side, share in zip(low.shape, shares, strict=True))
    return MeasuredGrid(shape, tuple(shares))


def onto_measured(low, grid):
    """A volume on the grid that it was measured on: its waves, at fewer places.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        Background 0.
    grid : MeasuredGrid

    Returns
    -------
    ndarray of float32, shape ``grid.shape``
        Not below zero; 0 where less than half of a voxel is not background.
    """
    sides = list(zip(low.shape, grid.shape, strict=True))
    found = apply_operators(low, [banded(wave_matrix(*pair)) for pair in sides])
    inside = (low > 0).astype(np.float32)
    kept = apply_operators(inside, [banded(zoom_matrix(*pair, 1, False, "edges"))
                                    for pair in sides]) >= 0.5
    return np.clip(found, 0, None) * kept


def wave_matrix(n_in, n_out):
    """The waves through n_in voxels along an axis, below the highest of either grid, at n_out.

    Examples
    --------
    >>> wave_matrix(4, 4).round(12)[0].tolist()
    [1.0, 0.0, 0.0, 0.0]
    """
    if n_in == n_out:
        return np.eye(n_in)
    places = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    apart = places[:, None] - np.arange(n_in)
    cycles = np.arange(-((min(n_in, n_out) - 1) // 2), (min(n_in, n_out) - 1) // 2 + 1)
    waves = np.exp(2j * np.pi * cycles[:, None, None] * apart / n_in)
    return waves.sum(0).real / n_in


def _share_along(volume, told):
    """Where the spectrum along the last axis ends, of its length; 1 where it does not."""
    power = power_along(volume, LINE)
    if power is None:
        return 1.0
    level = 10 * np.log10(power + 1e-20)
    drop = level[LOWEST:-2] - level[LOWEST + 2:]
    at = int(drop.argmax())
    if drop[at] >= SHARP_DROP:
        return (LOWEST + at) / (LINE // 2)
    if told < 1:  # of an axis that was measured in full, energy goes on there
        there = abs(np.arange(LOWEST, LOWEST + len(drop)) - told * (LINE // 2)) <= 1
        if drop[there].max(initial=0) >= TOLD_DROP:
            return told
    return 1.0
