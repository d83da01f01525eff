"""The input of a stage for one volume, and the 48 orientations of positions around a voxel."""
import itertools
from typing import NamedTuple

import numpy as np

REACH = 6  # voxels: features and filters use no voxel farther away along an axis
PERMUTATIONS = np.array(list(itertools.permutations(range(3))), np.int64)  # (6, 3)


class Scene(NamedTuple):
    """The input of a stage for one volume; all arrays are padded by REACH voxels on every side."""

    estimate: np.ndarray  # (X, Y, Z) float32, in [0, 1]: output of the stage before
    start: np.ndarray  # (X, Y, Z) float32: the initial estimate
    mask: np.ndarray  # (X, Y, Z) bool: brain
    place: np.ndarray  # (3, longest side) float32: signed distance from the nearest LR sample
    swaps: np.ndarray  # (3,) int64: axes with equal numbers may be exchanged
    descriptors: np.ndarray | None = None  # float32: noise and blur descriptors of the LR volume
    blur: np.ndarray | None = None  # float32: transfer values of the slice profile, if known
    reading_error: np.ndarray | None = None  # float32: added to estimated transfer values


def make_scene(estimate, start, mask, place, factor, descriptors=None, tile=None,
               ends=((0, 0),) * 3, blur=None, reading_error=None):
    """Make the `Scene` of a volume, or of a tile of it, by padding.

    Parameters
    ----------
    estimate, start, mask : ndarray, shape (X, Y, Z)
    place : list of ndarray of float32
        Result of `places` for each axis.
    factor : tuple of three int
    descriptors : ndarray of float32, optional
    tile : tuple of three slice, optional
        The part of the volumes to restore; by default the whole.
    ends : sequence of three pairs of bool, optional
        For both faces of each axis: True if the face is also a face of the whole array, before it
        was cropped. Beyond these faces the mask is mirrored like the voxels. Beyond all other faces
        the mask is False.
    blur, reading_error : ndarray of float32, optional

    Returns
    -------
    Scene
        Scene of the tile and its surroundings.
    """
    tile = tile or tuple(slice(0, side) for side in mask.shape)
    longest = max(side.stop - side.start for side in tile)
    padded = np.zeros((3, longest + 2 * REACH), np.float32)
    for axis, (along, side) in enumerate(zip(place, tile, strict=True)):
        padded[axis, REACH:REACH + side.stop - side.start] = along[side]
    swaps = np.array([factor.index(f) for f in factor])
    around = _with_reach(estimate, tile)
    begun = around if start is estimate else _with_reach(start, tile)
    brain = _with_reach(mask, tile)
    for axis, (side, length) in enumerate(zip(tile, mask.shape, strict=True)):
        planes, mirrored = np.moveaxis(brain, axis, 0), ends[axis]
        if not mirrored[0]:
            planes[:max(REACH - side.start, 0)] = False
        if not mirrored[1]:
            planes[REACH + length - side.start:] = False
    return Scene(around, begun, brain, padded, swaps, descriptors, blur, reading_error)


def _with_reach(volume, tile):
    """A tile with REACH voxels around it; beyond the volume's faces, its voxels are mirrored."""
    inside, beyond = [], []
    for side, length in zip(tile, volume.shape, strict=True):
        first, last = side.start - REACH, side.stop + REACH
        inside.append(slice(max(first, 0), min(last, length)))
        beyond.append((max(-first, 0), max(last - length, 0)))
    return np.pad(volume[tuple(inside)], beyond, mode="symmetric")


def places(side, step, first):
    """Signed distance of each of `side` voxels along an axis from the nearest LR sample.

    All lengths are in LR voxels. Half-way between two LR samples the value is 1/2, never -1/2.

    Examples
    --------
    >>> places(5, 0.25, 0.0)
    array([ 0.  ,  0.25,  0.5 , -0.25,  0.  ], dtype=float32)
    """
    at = first + step * np.arange(side)
    apart = np.round(at - np.round(at), 6)  # without rounding errors, both ends of a volume agree
    return np.where(apart == -0.5, 0.5, apart).astype(np.float32)


def ball(radius_squared, centre=True):
    """Displacements (taps, 3) to voxels within a radius, in raster order; none if it is negative.

    Examples
    --------
    >>> ball(1).tolist()
    [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    """
    reach = int(max(radius_squared, 0) ** 0.5)
    along = np.arange(-reach, reach + 1)
    near = np.stack(np.meshgrid(along, along, along, indexing="ij"), -1).reshape(-1, 3)
    squares = (near**2).sum(1)
    return near[(squares <= radius_squared) & (centre | (squares > 0))]


def turned(displacements):
    """Turn displacements in a voxel's own frame to axes of the volume, for all 48 orientations.

    Parameters
    ----------
    displacements : ndarray of int, shape (taps, 3)

    Returns
    -------
    ndarray of int, shape (48, taps, 3)
        Row ``permutation * 8 + flips``: axis k of the frame is axis
        ``PERMUTATIONS[permutation, k]`` of the volume, reversed where bit k of flips is set.

    Examples
    --------
    >>> turned(np.array([[1, 2, 3]]))[[0, 1, 47], 0].tolist()
    [[1, 2, 3], [-1, 2, 3], [-3, -2, -1]]
    """
    signs = np.array([[-1 if flips >> k & 1 else 1 for k in range(3)] for flips in range(8)])
    result = np.empty((len(PERMUTATIONS), len(signs), *displacements.shape), np.int64)
    for found, permutation in zip(result, PERMUTATIONS, strict=True):
        found[..., permutation] = displacements * signs[:, None]
    return np.concatenate(result)


def turned_offsets(displacements, shape):
    """The result of `turned` as offsets in a flat volume of a shape: int64, shape (48, taps)."""
    return turned(displacements) @ np.array([shape[1] * shape[2], shape[2], 1])
