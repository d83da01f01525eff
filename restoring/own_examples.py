"""Training examples from a scan itself: the scan is blurred once more, and is its own original.

Thick slices are blurred along an in-plane axis, as the scanner blurred them across the slices.
Other scans are made coarser along all refined axes, by each slice profile that their blur allows.

The noise of the scan would be in the example and in its original, and filters would learn to keep
it. To prevent this, noise e with the scan's noise level s is added to the example and subtracted
from the original, in a proportion that leaves no common noise (Pang et al., CVPR 2021, section 3):
the noises of y + t e and y - e / t have covariance s^2 - s^2 = 0.
"""
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from degrading.acquisition import outline_of
from degrading.banded import apply_operators, banded, identity
from degrading.degradation import SliceProfile
from degrading.descriptors import NOISE, descriptors_of, differences_along
from degrading.likeness import belief, texture_of
from degrading.profile_reader import blur_of, likely_profiles, read, toward_least_blur
from degrading.slice_profile import PROFILES, profile_matrix
from degrading.spline import resizing_matrix, zoom_matrix
from get_lar import RIM, LRVolume, above_zero, in_units
from nifti.geometry import ratio_of_lengths
from util import mod_crop, random_of, tight_box, used_along

MOST_VOXELS = 4_000_000  # largest number of fine voxels to learn from, for each in-plane axis
MOST_COARSER = 300_000  # largest number of voxels to learn from, if all axes are made coarser
SLAB = 6  # planes in turn for one profile, then as many for the next
AS_FINE = 1.15  # an in-plane axis may be coarser than the new slices by this factor
FEWEST_COARSE = 2  # an in-plane axis must hold at least this many voxels as thick as the slices
SAME = 1.02  # an in-plane axis is resampled if it is finer by more than this factor


class Scan(NamedTuple):
    """A scan of thick slices with its noise and blur descriptors."""

    unit: np.ndarray  # (x, y, z) float32, in [0, 1]
    thick: int  # the thick axis
    factor: int  # the slices become finer by this factor
    shrink: dict  # in-plane axis to float: spacing of the new slices over the axis's own spacing
    descriptors: np.ndarray
    noise: np.ndarray  # (x, y, z) float32, random noise with the scan's noise level

    @classmethod
    def of(cls, low, method, thick, voxel_size):
        """A Scan from the arguments of `adapt_to_scan`."""
        low, scale = above_zero(low)
        unit, size, factor = in_units(low, scale), voxel_size, method.factor[thick]
        if size is None:
            size = [factor if axis == thick else 1 for axis in range(3)]
        shrink = {axis: ratio_of_lengths(size[thick] / factor, size[axis])
                  for axis in range(3) if axis != thick}
        descriptors = descriptors_of(unit, method.factor)
        noise = random_of(method.seed, "own plane").standard_normal(unit.shape, np.float32)
        noise *= descriptors[NOISE]
        return cls(unit, thick, factor, shrink, descriptors, noise)

    @property
    def fine_axes(self):
        """The in-plane axes whose voxels are small enough for an example."""
        return [axis for axis, shrink in self.shrink.items() if shrink > 1 / AS_FINE]

    @property
    def axes(self):
        """The axes of `fine_axes` that are also long enough for an example."""
        return [axis for axis in self.fine_axes
                if self._resized(axis) >= FEWEST_COARSE * self.factor]

    def resizing(self, axis):
        """The matrix that resamples an in-plane axis to the spacing of the new slices.

        The new length is cut to a multiple of the factor, which the original of an example needs.
        """
        fine = self._resized(axis)
        return resizing_matrix(self.unit.shape[axis], fine)[:fine // self.factor * self.factor]

    def _resized(self, axis):
        """Number of voxels of an in-plane axis at the spacing of the new slices."""
        side = self.unit.shape[axis]
        return side if self.shrink[axis] < SAME else round(side / self.shrink[axis])


def profile_of_slices(scan):
    """Estimate the slice profile that makes an in-plane axis look like the thick axis.

    An in-plane axis is blurred with each profile, and sampled like the thick axis. The result is
    the profile (a key of PROFILES) whose differences along both axes agree best, or ``box`` if
    slices are too few.
    """
    apart = dict.fromkeys(PROFILES, 0.0)
    for axis in scan.axes:
        fine = scan.resizing(axis)
        seen = _along(scan.unit > 0, _blur(fine, scan.factor, "box"), axis) >= 0.5
        for profile in PROFILES:
            blur = _blur(fine, scan.factor, profile)
            noisy, _ = twins(scan.unit, scan.noise, kept_noise([blur]))
            blurred = np.maximum(_along(noisy, blur, axis), 0) * seen
            found, across = (differences_along(blurred, a) for a in (axis, scan.thick))
            if found is None or across is None:
                return "box"
            apart[profile] += float(np.abs(found - across).sum())
    return min(apart, key=apart.get)


def own_example(scan, axis, profile, method):
    """Make a training example: the scan blurred along `axis`, with the scan as its original.

    Parameters
    ----------
    scan : Scan
    axis : int
        The in-plane axis to blur.
    profile : str
    method : Method

    Returns
    -------
    LRVolume
        Its axes are permuted: the blurred axis takes the position of the thick axis. None if the
        example holds no brain.
    """
    fine = scan.resizing(axis)
    kept = kept_noise([_blur(fine, scan.factor, profile)])
    noisy, original = twins(scan.unit, scan.noise, kept)
    other = 3 - axis - scan.thick
    planes = _middle(scan.unit, other, len(fine) * scan.unit.shape[scan.thick] * scan.factor)

    def on_fine_grid(volume, order):
        """Resample the in-plane axis and, by a spline, the thick axis to the new spacing."""
        side = scan.unit.shape[scan.thick]
        volume = _along(volume[planes], fine, axis)
        matrix = zoom_matrix(side, side * scan.factor, order, True, "edges")
        volume = _along(volume, matrix, scan.thick)
        order = [other, scan.thick, axis]
        order.insert(scan.thick, order.pop())  # the blurred axis replaces the thick one
        return np.ascontiguousarray(volume.transpose(order))

    brain = on_fine_grid((scan.unit > 0).astype(np.float32), 1) >= 0.5
    if not brain.any():
        return None
    noisy, original = (on_fine_grid(part, 5) * brain for part in (noisy, original))
    return _example(noisy, original, brain, 3 * (profile,), method, scan.descriptors)


def coarser_examples(low, reader, method, inside=None, profiles=(), voxel=1.0):
    """LR volumes made from a scan that is coarsened along all refined axes, one for each profile.

    The blur of the scan is estimated, so it is uncertain. Each profile that agrees with the
    estimate has examples, with a weight by its probability: otherwise the filters would learn to
    rely on the estimate. The profiles share the scan: each has every few planes.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        Background 0.
    reader : ndarray, see `degrading.profile_reader.fit_reader`
    method : Method
    inside : ndarray of bool, shape (x, y, z), optional
        Brain, or bright part, of a whole head: noise and blur are estimated there. All of the head
        is learned from, since all of it is restored.
    profiles : sequence of three str, optional
        Slice profile of each axis, if known.
    voxel : float, optional
        Geometric mean of the voxel size in mm.

    Returns
    -------
    list of LRVolume
        Volumes with voxels to learn from, in the `training_mask`.
    """
    low, scale = above_zero(low, inside)
    seen = in_units(low, scale, inside)
    descriptors = descriptors_of(seen, method.factor)
    believed, _ = belief(reader, descriptors, texture_of(seen, descriptors), voxel, method.factor)
    error = toward_least_blur(reader, descriptors, believed)  # as in restoring
    unit = np.ascontiguousarray(mod_crop(in_units(low, scale), method.factor))
    brain = unit > 0
    if not brain.any():
        return []
    noise = random_of(method.seed, "own scan").standard_normal(unit.shape, np.float32)
    noise *= descriptors[NOISE]
    shares = {tuple(profiles): 1.0} if len(profiles) else {
        3 * (name,): share
        for name, share in likely_profiles(read(reader, descriptors, error)).items()}
    blur = blur_of(profiles, method.factor) if len(profiles) else None
    planes = np.arange(len(brain)) - used_along(brain, 0)[0]
    turn, profile = np.divmod(planes // SLAB, len(shares))
    used = turn % math.ceil(brain.sum() / MOST_COARSER) == 0
    found = []
    for number, (names, share) in enumerate(shares.items()):
        blurs = map(profile_matrix, unit.shape, method.factor, names)
        pair = twins(unit, noise, kept_noise(blurs))
        wanted = (used & (profile == number))[:, None, None]
        example = _example(*pair, brain, names, method, descriptors, wanted)
        if example is not None:
            found.append(replace(example, blur=blur, reading_error=error,
                                 weight=share * len(shares)))
    return found


def twins(unit, noise, kept):
    """A scan with noise added, and with noise subtracted: the two have independent noise.

    Parameters
    ----------
    unit, noise : ndarray of float32, shape (x, y, z)
    kept : float
        Share of the noise's variance that the blur of the first of the two volumes will keep. The
        added noise is scaled so that, after this blur, the volume is as noisy as the scan.
    """
    share, brain = np.float32(np.sqrt(max(1 / kept - 1, 0.1))), unit > 0
    return (unit + share * noise) * brain, (unit - noise / share) * brain


def kept_noise(blurs):
    """Share of the variance of white noise that remains after a blur matrix along each axis."""
    return math.prod(float(np.square(blur[len(blur) // 2]).sum()) for blur in blurs)


def _example(noisy, original, brain, profiles, method, descriptors, wanted=True):
    """An LR volume made from `noisy`, to learn from its `wanted` voxels; None if there are none."""
    operator = SliceProfile(original.shape, method, profiles)
    low = np.maximum(operator.forward(noisy), 0) * outline_of(brain, method.factor)
    mask = operator.spline((low > 0).astype(np.float32), 1) >= RIM
    learned = mask & wanted
    if not learned.any():
        return None
    start = operator.interpolate(low) * mask
    box = tight_box(mask)
    start, mask, original, learned = (
        np.ascontiguousarray(part[box]) for part in (start, mask, original, learned))
    return LRVolume(start, low, operator, box, original.shape, 1.0, mask,
                    hr=np.maximum(original, 0), descriptors=descriptors, training_mask=learned)


def _blur(fine, factor, profile):
    """The matrix that blurs an in-plane axis and samples it to thick voxels."""
    return profile_matrix(len(fine), factor, profile) @ fine


def _along(volume, matrix, axis):
    """A volume multiplied by a matrix along one axis."""
    operators = [identity(side) for side in volume.shape]
    operators[axis] = banded(matrix)
    return apply_operators(volume, operators)


def _middle(unit, axis, voxels_of_plane):
    """Index that cuts a volume to its middle planes along an axis: at most MOST_VOXELS voxels."""
    used = used_along(unit, axis)
    most = max(MOST_VOXELS // voxels_of_plane, 2)
    spare = max(used[-1] + 1 - used[0] - most, 0) // 2
    index = [slice(None)] * 3
    index[axis] = slice(used[0] + spare, used[-1] + 1 - spare)
    return tuple(index)
