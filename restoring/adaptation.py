"""Fine-tune filters on a scan of thick slices, with a training example from its own plane.

Thick slices have a high resolution within their plane. The scan is blurred along an in-plane axis
as the scanner blurred it across the slices. The blurred scan is an LR volume with a known original,
the scan itself. The two form a training example with the weighting, noise and anatomy of the scan.
The filters are corrected by their error on this example; a ridge limits the correction. A FLAIR
scan, for instance, gets filters that learned from T1-weighted volumes and from the scan itself.

The scan y and the blurred scan contain the same noise, and filters would learn to keep it. To
prevent this, noise e with the scan's noise level s is added before the blur and subtracted from the
original: the noises of y + t e and y - e / t have covariance s^2 - s^2 = 0 (Pang et al., CVPR 2021,
section 3).
"""
from typing import NamedTuple

import numpy as np

from degrading.banded import apply_operators, banded
from degrading.degradation import degradation_of
from degrading.descriptors import NOISE, descriptors_of, differences_along
from degrading.slice_profile import PROFILES, profile_matrix
from degrading.spline import resizing_matrix, zoom_matrix
from get_lar import RIM, LRVolume, above_zero, in_units
from matrix_compute import Gram, Stage, sum_rows
from octahedral.ridge import corrected_filters
from octahedral.stages import stage_samples, tap_count
from util import random_of, tight_box

ADAPTING_RIDGE = 5e5  # weight of the ridge that limits the correction, as a number of samples
TRUST = 0.5  # share of a correction that is applied: keeps 3/4 of its gain, and 1/4 of its risk
MOST_VOXELS = 4_000_000  # largest number of fine voxels in the example of an in-plane axis
LEAST_SAMPLES = 50_000  # with fewer samples the filters are not corrected
AS_FINE = 1.15  # in-plane voxels may be larger than the new slice spacing by this factor
SAME = 1.02  # an in-plane axis is resampled if its voxels are smaller by more than this factor


class Adapted(NamedTuple):
    """Filters after fine-tuning on one scan."""

    stages: list  # of Stage
    profile: str | None  # the estimated slice profile; None if the filters were not fine-tuned
    why_not: str  # the reason why the filters were not fine-tuned, otherwise empty


def adapt_to_scan(low, stages, method, voxel_size=None):
    """Fine-tune filters on examples from the plane of a scan of thick slices.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        The background is 0.
    stages : list of Stage
    method : Method
        Method of the filters, for one thick axis.
    voxel_size : sequence of three float, optional
        Voxel size of `low`, in any unit. By default the in-plane size equals the new slice spacing.

    Returns
    -------
    Adapted

    Examples
    --------
    >>> from disk.filters import load_filters
    >>> from filter_constant import Request
    >>> filters = load_filters(Request.of(preset="scan", factor=(1, 1, 4)))
    >>> scan = np.random.default_rng(0).random((12, 12, 6), np.float32)
    >>> adapt_to_scan(scan, filters.stages, filters.method).why_not
    'its plane holds too few voxels to learn from'
    """
    refined = [axis for axis in range(3) if method.factor[axis] > 1]
    if not method.for_scans or len(refined) != 1:
        return Adapted(stages, None, "the filters are not for thick slices of scans")
    scan = Scan.of(low, method, refined[0], voxel_size)
    if not scan.axes:
        return Adapted(stages, None, "its plane is coarser than the new slices")
    profile = profile_of_slices(scan)
    examples = [example for axis in scan.axes
                if (example := own_example(scan, axis, profile, method)) is not None]
    if sum(int(example.mask.sum()) for example in examples) < LEAST_SAMPLES * method.sample_rate:
        return Adapted(stages, None, "its plane holds too few voxels to learn from")
    corrected = []
    for number, (tree, weights) in enumerate(stages):
        gram = Gram(2 * tree.leaves, tap_count(number, method))
        for axis, example in enumerate(examples):
            drawn = stage_samples(example, corrected, tree, method, f"own plane {axis}")
            sum_rows(gram, drawn.ends, drawn.fill)
        corrected.append(Stage(tree, corrected_filters(gram, tree, weights, ADAPTING_RIDGE, TRUST)))
    return Adapted(corrected, profile, "")


class Scan(NamedTuple):
    """A scan of thick slices with its noise and blur descriptors."""

    unit: np.ndarray  # (x, y, z) float32, in [0, 1]
    thick: int  # number of the thick axis
    factor: int  # the slices become thinner by this factor
    shrink: dict  # by in-plane axis: spacing of the new slices divided by the axis's voxel size
    descriptors: np.ndarray
    noise: np.ndarray  # (x, y, z) float32, random noise with the scan's noise level

    @classmethod
    def of(cls, low, method, thick, voxel_size):
        """Make a `Scan` from the arguments of `adapt_to_scan`."""
        low, scale = above_zero(low)
        unit, size, factor = in_units(low, scale), voxel_size, method.factor[thick]
        if size is None:
            size = [factor if axis == thick else 1 for axis in range(3)]
        shrink = {axis: size[thick] / factor / size[axis] for axis in range(3) if axis != thick}
        descriptors = descriptors_of(unit, method.factor)
        noise = random_of(method.seed, "own plane").standard_normal(unit.shape, np.float32)
        noise *= descriptors[NOISE]
        return cls(unit, thick, factor, shrink, descriptors, noise)

    @property
    def axes(self):
        """The in-plane axes whose voxels are small enough for an example."""
        return [axis for axis, shrink in self.shrink.items() if shrink > 1 / AS_FINE]

    def resizing(self, axis):
        """The matrix that resamples an in-plane axis to the spacing of the new slices.

        The new length is cut to a multiple of the factor, which the original of an example needs.
        """
        side = self.unit.shape[axis]
        fine = side if self.shrink[axis] < SAME else round(side / self.shrink[axis])
        return resizing_matrix(side, fine)[:fine // self.factor * self.factor]

    def twins(self, blur):
        """The scan with noise added, and with noise subtracted; their noise is independent.

        Parameters
        ----------
        blur : ndarray, shape (n, side)
            Matrix that will blur the first of the two volumes. The added noise is scaled so that,
            after this blur, the volume is as noisy as the scan.
        """
        kept = np.square(blur[len(blur) // 2]).sum()
        share = np.sqrt(max(1 / kept - 1, 0.1))
        brain = self.unit > 0
        return ((self.unit + np.float32(share) * self.noise) * brain,
                (self.unit - self.noise / np.float32(share)) * brain)


def profile_of_slices(scan):
    """Estimate the slice profile that makes an in-plane axis look like the thick axis.

    An in-plane axis is blurred with each profile, and sampled like the thick axis. The result is
    the profile whose differences along both axes agree best, or ``box`` if slices are too few.

    Parameters
    ----------
    scan : Scan

    Returns
    -------
    profile : str
        A key of `degrading.slice_profile.PROFILES`.
    """
    apart = dict.fromkeys(PROFILES, 0.0)
    for axis in scan.axes:
        fine = scan.resizing(axis)
        seen = _along(scan.unit > 0, _blur(fine, scan.factor, "box"), axis) >= 0.5
        for profile in PROFILES:
            blur = _blur(fine, scan.factor, profile)
            blurred = np.maximum(_along(scan.twins(blur)[0], blur, axis), 0) * seen
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
    noisy, original = scan.twins(_blur(fine, scan.factor, profile))
    other = 3 - axis - scan.thick
    planes = _middle(scan.unit, other, len(fine) * scan.unit.shape[scan.thick] * scan.factor)

    def on_fine_grid(volume, order):
        """Resample the in-plane axis and (by a spline) the thick axis to the new spacing."""
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
    operator = degradation_of(original.shape, method)
    operator.profiles = 3 * (profile,)
    outline = _along(brain, profile_matrix(brain.shape[scan.thick], scan.factor, "box"), scan.thick)
    low = np.maximum(operator.forward(noisy), 0) * (outline >= 0.5)
    mask = operator.spline((low > 0).astype(np.float32), 1) >= RIM
    if not mask.any():
        return None
    start = operator.interpolate(low) * mask
    box = tight_box(mask)
    start, mask, original = (np.ascontiguousarray(part[box]) for part in (start, mask, original))
    return LRVolume(start, low, operator, box, original.shape, 1.0, mask,
                    hr=np.maximum(original, 0), descriptors=scan.descriptors)


def _blur(fine, factor, profile):
    """The matrix that blurs an in-plane axis and samples it to thick voxels."""
    return profile_matrix(len(fine), factor, profile) @ fine


def _along(volume, matrix, axis):
    """A volume multiplied by a matrix along one axis."""
    operators = [banded(np.eye(side)) for side in volume.shape]
    operators[axis] = banded(matrix)
    return apply_operators(volume, operators)


def _middle(unit, axis, voxels_of_plane):
    """Index that cuts a volume to its middle planes along an axis: at most MOST_VOXELS voxels."""
    used = np.flatnonzero(unit.any(tuple(a for a in range(3) if a != axis)))
    most = max(MOST_VOXELS // voxels_of_plane, 2)
    spare = max(used[-1] + 1 - used[0] - most, 0) // 2
    index = [slice(None)] * 3
    index[axis] = slice(used[0] + spare, used[-1] + 1 - spare)
    return tuple(index)
