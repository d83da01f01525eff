"""Make the initial estimate: a low-resolution (LR) volume interpolated to the fine grid.

In training and evaluation, a high-resolution (HR) volume is degraded and interpolated back to its
own grid (`make_pair`). In upscaling, the scan is LR (`make_fine`). All later steps are the same.
"""
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import binary_erosion

from crop_black import black_crop_box
from degrading.agreement import NoisyProjection
from degrading.degradation import Degradation, degradation_of
from degrading.descriptors import NOISE
from degrading.likeness import UNKNOWN, Texture, texture_of
from degrading.profile_reader import are_plausible, blur_of
from degrading.spline import upsample
from util import bright_level_of_scan, clip_bright, mod_crop, tight_box, without_nonsense

AGREEING = 2  # corrections of a restored volume by a scan with known slice profiles
RIM = 0.1  # upscaling restores a fine voxel if its interpolated share of brain is this or more


@dataclass(frozen=True)
class LRVolume:
    """An LR volume on the fine grid, cropped to the restored box, in [0, 1].

    Attributes
    ----------
    lr : ndarray of float32, shape (X, Y, Z)
        The initial estimate in the box and `margin` voxels around it, divided by `scale`.
    low : ndarray, shape (x, y, z)
        The low-resolution volume in its own intensities. With the published k-space degradation
        it is the complex spectrum.
    operator : Degradation
        The degradation from the fine volume to `low`.
    box : tuple of three slice
        Position of the restored voxels in the whole fine volume.
    whole_shape : tuple of three int
        Shape of the fine volume that is written; ``operator.shape`` may be smaller (published
        crop).
    scale : float
        The intensity that becomes 1.
    mask : ndarray of bool, shape of the box
        Brain mask.
    margin : int, default 0
        Voxels of `lr` beyond each face of the box, for whole patches at the faces.
    hr : ndarray of float32, shape of the box, optional
        The original, divided by `scale`.
    above : ndarray of float32, shape of `low`, optional
        The part of `low` above `scale`. It is interpolated to the fine grid and added to the
        restored volume.
    descriptors : ndarray of float32, shape (len(descriptors.DESCRIPTOR_NAMES),), optional
        Noise and blur descriptors of `low`.
    blur : ndarray of float32, shape (len(profile_reader.READING_NAMES),), optional
        Transfer values of known slice profiles of `low`; by default they are estimated.
    true_blur : ndarray of float32, optional
        True transfer values of a sampled acquisition, even if its profile counts as unknown.
    reading_error : ndarray of float32, optional
        Added to estimated transfer values, see `profile_reader.read`.
    texture : likeness.Texture
        Density of the edges of `low`, and unevenness of its structure.
    voxel : float
        Geometric mean of the voxel size of `low` in mm.
    training_mask : ndarray of bool, shape of the box, optional
        Voxels of the mask from which training samples are taken; by default all.
    weight : float
        Weight of each training sample of this volume.
    profiles : tuple of three str
        Known slice profile of each axis of `low`, with which the restored volume must agree; empty
        if they are unknown.
    """

    lr: np.ndarray
    low: np.ndarray
    operator: Degradation
    box: tuple
    whole_shape: tuple
    scale: float
    mask: np.ndarray
    margin: int = 0
    hr: np.ndarray | None = None
    above: np.ndarray | None = None
    descriptors: np.ndarray | None = None
    blur: np.ndarray | None = None
    true_blur: np.ndarray | None = None
    reading_error: np.ndarray | None = None
    texture: Texture = UNKNOWN
    voxel: float = 1.0
    training_mask: np.ndarray | None = None
    weight: float = 1.0
    profiles: tuple = ()

    @cached_property
    def consistency(self):
        """The object that makes a fine volume in the box agree with `low` (data consistency)."""
        return self.operator.consistency(self.low / np.float32(self.scale), self.box, self.mask)

    def agreeing(self, restored, reader):
        """A restored volume, corrected where it disagrees with `low` by more than noise.

        It is unchanged if the slice profiles are unknown, or if the blur that the filters' `reader`
        estimates contradicts them. See `degrading.agreement.NoisyProjection`.
        """
        if not self.profiles or not are_plausible(self.profiles, self.operator.factor, reader,
                                                  self.descriptors):
            return restored
        return NoisyProjection(
            self.low / np.float32(self.scale), self.profiles, self.operator.factor, self.box,
            self.mask, self.descriptors[NOISE]).refine(restored, AGREEING)

    def whole(self, restored):
        """The whole fine volume in original intensities; `restored` has the shape of `lr`."""
        margin = self.margin
        inner = tuple(slice(margin, side - margin) for side in restored.shape)
        volume = np.zeros(self.whole_shape, np.float32)
        found = volume[self.box]
        np.multiply(restored[inner], np.float32(self.scale), out=found)
        if self.above is not None:
            above = self.operator.interpolate(self.above)[self.box]
            np.add(found, above, out=found, where=self.mask)
        return volume

    def whole_shifted(self, whole, shift, own, black=None):
        """Undo the shift of intensities in the result of `whole`.

        If the value of the background lies between the intensities of the tissue, filters are not
        reliable within about one LR voxel of the outline. These voxels get the plain spline
        instead. Voxels outside the outline get the value of the background.

        Parameters
        ----------
        whole : ndarray of float32, shape `whole_shape`
        shift : intensities.Shift
        own : ndarray of float32, shape of `low`
            The LR volume before it was shifted.
        black : ndarray of bool, shape of `low`, optional
            Background voxels of the LR volume; by default all voxels with the background's value.

        Returns
        -------
        ndarray of float32, shape `whole_shape`
        """
        if shift.background in (None, shift.low):
            return whole + np.float32(shift.low)
        black = own == np.float32(shift.background) if black is None else black
        brain = (~black).astype(np.float32)
        share = upsample(brain, whole.shape, 1, grid=self.operator.grid)
        outside = share < RIM
        deep = binary_erosion(share > 0.999, border_value=1)
        del share, brain  # to save memory
        least = own.min()
        fine = self.operator.spline(own - least)  # the spline is clipped at zero
        fine += least
        fine[outside] = shift.background
        np.add(whole, np.float32(shift.low), out=fine, where=deep)
        return fine


def make_pair(image, method, level=None):
    """Degrade a volume and bring it back to its own grid (section 3.1 of the paper).

    Parameters
    ----------
    image : ndarray of float32, shape (X, Y, Z)
        The background is 0.
    method : Method
    level : float, optional
        The intensity to clip at; by default the 99.9 % quantile of the volume. If it is given, a
        degraded volume without voxels above zero raises no error.

    Returns
    -------
    LRVolume
        It includes the original.

    Raises
    ------
    ValueError
        If nothing is left to learn from: all voxels are black, the volume is smaller than a patch,
        or it is so thin that it lies between the LR voxels.

    Examples
    --------
    >>> import numpy as np
    >>> from filter_constant import Method
    >>> brain = np.pad(np.full((20, 20, 20), 100, np.float32), 8)
    >>> pair = make_pair(brain, Method())
    >>> pair.hr.shape, pair.lr.shape, pair.low.shape, float(pair.hr.max())
    ((30, 30, 30), (30, 30, 30), (18, 18, 18), 1.0)
    """
    whole_shape, margin, image = image.shape, method.margin, without_nonsense(image)
    cropped = mod_crop(image, method.factor)
    operator = degradation_of(cropped.shape, method)
    least = max(2 * margin + 1, 2 * max(method.factor), operator.least_side)
    if min(cropped.shape) < least:
        smaller = ""
        if least == 2 * margin + 1:  # else the factor needs this size
            smaller = " or learn with smaller --filter_len and --grad_len"
        # Without the shape: filters for other axes turn the volume before it comes here.
        raise ValueError(
            f"a side of it, cut to a multiple of the factor, has {min(cropped.shape)} voxels, and "
            f"a patch and the factor need {least}; give a larger volume{smaller}")
    clipped = clip_bright(image) if level is None else np.clip(image, 0, np.float32(level))
    image = mod_crop(clipped, method.factor)
    scale = float(image.max(initial=0))
    if not scale > 0:
        raise ValueError("hardly any voxel is above zero (fewer than one in a thousand); crop it, "
                         "or take another volume")
    if margin:  # the published box includes a black surround, so that whole patches lie inside it
        box = black_crop_box(image, margin, method.factor)
    else:
        box = tight_box(image != 0)
    inner = tuple(slice(side.start + margin, side.stop - margin) for side in box)
    if not image[inner].any():
        raise ValueError(f"no voxel above zero has a whole patch of {2 * margin + 1} voxels around "
                         "it; take a larger mask, or learn with smaller --filter_len and "
                         "--grad_len")
    low = operator.degrade(image)
    if level is None and not low.any():
        raise ValueError("when it is degraded, no voxel above zero is left: its brain is too thin "
                         "for the factor; take a larger mask, another volume or a smaller "
                         "--factor")
    hr = np.ascontiguousarray(image[box]) / np.float32(scale)
    projected = method.start == "projected"
    lr = None if projected and operator.masked else (
        operator.interpolate(low)[box] / np.float32(scale))
    mask = operator.outline(hr, lr)
    if projected:
        lr = operator.consistency(low / np.float32(scale), box, mask).start()
    elif operator.masked:
        lr[~mask] = 0
    return LRVolume(lr, low, operator, box, whole_shape, scale, mask, hr=hr)


def make_fine(low, method, inside=None, profiles=(), agree_with=None, voxel_size=(1, 1, 1)):
    """Interpolate a scan (low-resolution volume) to the grid that is finer by the factor.

    Intensities are divided by their 99.9 % quantile, as in training (in sparse volumes, by that of
    the nonzero voxels). Higher intensities are clipped for the filters. The clipped part is added
    to the result of the filters, so that a bright vessel or lesion stays bright. Voxels of `low`
    that are zero are background. The volume is mirrored at its faces, so that voxels there have
    whole patches.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        Voxels below zero, infinite or not a number count as background.
    method : Method
    inside : ndarray of bool, shape (x, y, z), optional
        Brain of a whole head. The scale of intensities and the descriptors are computed from these
        voxels alone; the whole head is brought to the finer grid.
    profiles : sequence of three str, optional
        Slice profile of each axis, see `degrading.slice_profile.PROFILES`; by default it is
        estimated.
    agree_with : sequence of three str, optional
        Slice profiles with which the restored volume must agree, see `LRVolume.profiles`; by
        default `profiles`.
    voxel_size : sequence of three float, optional
        Voxel sizes of `low` in mm.

    Returns
    -------
    LRVolume
        Without an original.

    Raises
    ------
    ValueError
        If all voxels are zero, if the volume has a single slice along an axis to refine, or if
        upscaling by the factor is not possible with the k-space degradation of the training.

    Examples
    --------
    >>> import numpy as np
    >>> from filter_constant import Method
    >>> fine = make_fine(np.full((9, 9, 3), 50, np.float32), Method(factor=(1, 1, 4)))
    >>> fine.whole_shape, fine.margin, fine.lr.shape
    ((9, 9, 12), 5, (19, 19, 22))
    """
    shape = tuple(side * factor for side, factor in zip(low.shape, method.factor, strict=True))
    operator = degradation_of(shape, method, low.shape)
    operator.check_upscaling()
    low, scale = above_zero(low, inside)
    above = np.clip(low - scale, 0, None)
    # A corner voxel has an interpolated weight of 1/8; a threshold above that would erase it.
    mask = upsample((low != 0).astype(np.float32), shape, order=1, grid=operator.grid) >= RIM
    box = tight_box(mask)
    mask, low = np.ascontiguousarray(mask[box]), np.minimum(low, scale)
    unit = in_units(low, scale, inside)
    descriptors = operator.descriptors(unit)
    if method.start == "projected":
        lr = operator.consistency(low / np.float32(scale), box, mask).start()
    else:
        lr = np.ascontiguousarray(operator.interpolate(low)[box])
        lr /= np.float32(scale)
        lr *= mask
    if method.margin:
        lr = np.pad(lr, method.margin, mode="reflect")
    return LRVolume(lr, low, operator, box, shape, scale, mask, method.margin,
                    above=above if above.any() else None, descriptors=descriptors,
                    blur=blur_of(profiles, method.factor) if len(profiles) else None,
                    texture=texture_of(unit, descriptors),
                    voxel=float(np.cbrt(np.prod(voxel_size))),
                    profiles=() if descriptors is None else tuple(
                        profiles if agree_with is None else agree_with))


def above_zero(low, inside=None):
    """The volume with 0 for voxels that are negative or not finite, and its `brightness_of`.

    It raises ValueError if no voxel is above zero.
    """
    low = np.clip(np.ascontiguousarray(without_nonsense(low)), 0, None)
    scale = brightness_of(low, inside)
    if not scale > 0:
        where = "" if inside is None else " inside its mask or bright part"
        raise ValueError(f"the volume holds no voxel above zero{where}; take another one")
    return low, scale


def brightness_of(low, inside=None):
    """Intensity of a volume, or of the brain inside it, that becomes 1 for the filters."""
    low = low if inside is None else low * inside
    return bright_level_of_scan(low) or float(low.max(initial=0))


def in_units(low, scale, inside=None):
    """The volume in [0, 1] for noise and blur descriptors; 0 outside `inside`, if it is given."""
    clipped = np.minimum(low, scale)
    return (clipped if inside is None else clipped * inside) / np.float32(scale)


def best_spline(volume):
    """The alternative without filters: the spline through the LR volume, 0 where HR is 0.

    Parameters
    ----------
    volume : LRVolume
        LR volume with its original.

    Returns
    -------
    ndarray of float32, shape of the box, in [0, 1]
    """
    spline = volume.operator.spline(volume.low)
    spline = np.clip(spline[volume.box] / np.float32(volume.scale), 0, 1)
    spline[volume.hr == 0] = 0
    return spline
