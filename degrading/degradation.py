"""Operators that degrade a high-resolution volume to a low-resolution (LR) volume.

A degradation is linear and separable: along each axis it multiplies by a small matrix D. There is
one class for each --lr_type. It holds everything that depends on this type: degrading,
interpolation to the fine grid, positions of fine voxels, the matrix of an axis, and the constraints
on the fine volume. A new type needs one more class, and one more row of tests/test_degradation.py.
"""
import numpy as np
import scipy.fft

from degrading.back_projection import (
    DataConsistency,
    Projection,
    SpectrumProjection,
    middle,
    operators_between,
)
from degrading.banded import apply_operators, banded
from degrading.descriptors import descriptors_of
from degrading.slice_profile import profile_matrix, profile_operator
from degrading.spline import spacing_and_start, upsample, zoom_matrix, zoom_operator
from machine.threads import thread_count

KSPACE_BACKGROUND = 0.02  # darker voxels of a k-space volume in [0, 1] are background


def degradation_of(shape, method, low_shape=None):
    """The degradation of a method, for a fine volume of a given shape.

    Parameters
    ----------
    shape : tuple of three int
        Shape of the fine volume: multiples of the factor.
    method : Method
    low_shape : tuple of three int, optional
        Shape of an existing LR volume; by default the shape that degrading gives.

    Returns
    -------
    Degradation

    Examples
    --------
    >>> import numpy as np
    >>> from filter_constant import Method
    >>> operator = degradation_of((4, 4, 8), Method(factor=(1, 1, 4), lr_type="average"))
    >>> operator.degrade(np.arange(128, dtype=np.float32).reshape(4, 4, 8))[0, 0]
    array([1.5, 5.5], dtype=float32)
    """
    operator = OPERATORS[method.lr_type](shape, method)
    operator.low_shape = low_shape or operator.low_shape
    return operator


class Degradation:
    """A degradation of fine volumes to low-resolution volumes.

    Parameters
    ----------
    shape : tuple of three int
        Shape of the fine volume: multiples of the factor.
    method : Method

    Attributes
    ----------
    shape, low_shape : tuple of three int
        Shapes of the fine volume and of the LR volume.
    grid : {"centers", "edges", "first"}
        Alignment of the two grids, see `degrading.spline.spacing_and_start`.
    """

    least_side = 1  # smallest side of the fine volume, in voxels
    masked = True  # True if training and evaluation use the brain outline of HR
    own_grid = None  # the value of `grid` if the degradation sets it, not the method

    def __init__(self, shape, method):
        self.shape, self.factor, self.method = tuple(shape), method.factor, method
        self.low_shape = tuple(side // f for side, f in zip(shape, method.factor, strict=True))
        self.grid = self.own_grid or method.grid

    # ---- from fine to low

    def matrix(self, axis):
        """The matrix D along an axis, shape (side of low, side of fine), float64 or complex128.

        With factor 1, D is the identity, except in `TruncatedSpectrum`, where it is the Fourier
        transform.
        """
        raise NotImplementedError

    def forward(self, image):
        """Apply D to a fine volume along all axes; returns float32 or complex64."""
        return apply_operators(image, [banded(self.matrix(axis)) for axis in range(3)])

    def degrade(self, image):
        """Degrade a fine volume to an LR volume; some subclasses do more than `forward`."""
        return self.forward(image)

    # ---- from low to fine

    def interpolate(self, low):
        """Interpolate an LR volume to the fine grid: the initial estimate, not below zero."""
        if self.method.start == "quadratic":  # as in the paper: without prefilter, so blurred
            return upsample(low, self.shape, order=2, prefilter=False, grid=self.grid)
        return upsample(low, self.shape, self.start_order, grid=self.grid)

    @property
    def start_order(self):
        """Order of the interpolating spline of the initial estimate."""
        return 5 if self.method.start == "quintic" else 3

    def spline(self, low, order=5):
        """Interpolating spline of the LR volume: the alternative without filters."""
        return upsample(low, self.shape, order, grid=self.grid)

    def step_and_start(self, axis):
        """Step between fine voxels along an axis, and position of the first one, in LR voxels."""
        return spacing_and_start(self.low_shape[axis], self.shape[axis], self.grid)

    def fine_to_low(self):
        """The matrix from fine voxels to LR voxels, shape (4, 4)."""
        matrix = np.eye(4)
        for axis in range(3):
            matrix[axis, axis], matrix[axis, 3] = self.step_and_start(axis)
        return matrix

    def nearest(self, low):
        """Nearest-neighbour interpolation of the LR volume to the fine grid."""
        places = []
        for axis, (side, fine) in enumerate(zip(low.shape, self.shape, strict=True)):
            step, start = self.step_and_start(axis)
            at = np.floor(start + step * np.arange(fine) + 0.5).astype(int)
            places.append(np.clip(at, 0, side - 1))
        return low[np.ix_(*places)]

    def outline(self, hr, lr):
        """The mask of the brain in training and evaluation: ndarray of bool.

        Parameters
        ----------
        hr, lr : ndarray of float32
            The original and its interpolated LR volume, both in [0, 1].
        """
        return hr != 0

    def check_upscaling(self):
        """Raise ValueError if an LR volume of this shape cannot be upscaled."""
        for axis, (side, factor) in enumerate(zip(self.low_shape, self.factor, strict=True)):
            if factor > 1 and side < 2:
                raise ValueError(f"axis {axis} has one slice, which cannot be interpolated; "
                                 "learn with factor 1 along this axis")

    # ---- information from the LR volume

    def descriptors(self, unit):
        """Noise and blur descriptors of an LR volume in [0, 1]; None if they are not needed."""
        return None

    def consistency(self, low, box, mask):
        """The constraints that an LR volume sets on the fine volume.

        Parameters
        ----------
        low : ndarray
            Result of `degrade`, in [0, 1].
        box : tuple of three slice
            Position of the estimates in the fine volume.
        mask : ndarray of bool, shape of the box
            True where the fine volume may differ from zero.

        Returns
        -------
        back_projection.DataConsistency
        """
        return Projection(low, [operators_between(self.matrix(axis), side)
                                for axis, side in enumerate(box)], mask)


class SplineZoom(Degradation):
    """The published degradation: ``scipy.ndimage.zoom`` of order 2 without prefilter."""

    how = {"order": 2, "prefilter": False}

    def matrix(self, axis):
        return zoom_matrix(self.shape[axis], self.low_shape[axis], **self.how, grid=self.grid)

    def forward(self, image):
        sides = zip(self.shape, self.low_shape, strict=True)
        return apply_operators(image, [zoom_operator(*pair, **self.how, grid=self.grid)
                                       for pair in sides])


class BlockMean(Degradation):
    """The mean of each block of voxels, as in thick slices with a box profile."""

    own_grid = "edges"

    def matrix(self, axis):
        factor = self.factor[axis]
        return np.kron(np.eye(self.low_shape[axis]), np.full(factor, 1 / factor))

    def forward(self, image):
        (x, y, z), (a, b, c) = self.low_shape, self.factor
        return image.reshape(x, a, y, b, z, c).mean(axis=(1, 3, 5), dtype=np.float32)


class TruncatedSpectrum(Degradation):
    """The lowest frequencies of the spectrum. `forward` returns the centred spectrum, complex64.

    With ``--kspace_keep third`` the LR volume is this complex spectrum for every factor, as in the
    paper. With ``auto`` the LR volume is its magnitude image, because a scan is a magnitude image.
    """

    least_side = 6
    masked = False  # as in the paper for k-space volumes
    own_grid = "first"

    def __init__(self, shape, method):
        super().__init__(shape, method)
        self.kept = [kspace_kept(side, factor, method.kspace_keep)
                     for side, factor in zip(shape, self.factor, strict=True)]
        self.low_shape = tuple(stop - start for start, stop in self.kept)

    def matrix(self, axis):
        side, (start, stop) = self.shape[axis], self.kept[axis]
        frequency = np.arange(start, stop)[:, None] - side // 2
        return np.exp(-2j * np.pi * frequency * np.arange(side) / side) / side

    def forward(self, image):
        return spectrum_of(image)[tuple(slice(*kept) for kept in self.kept)]

    def degrade(self, image):
        spectrum = self.forward(image)
        return spectrum if self.method.kspace_keep == "third" else magnitude_of(spectrum)

    def interpolate(self, low):
        """Zero-fill the spectrum: fine voxel i lies at ``i * n_low / n_fine`` LR voxels.

        If `low` is a complex spectrum, the result is the magnitude, as in the paper. If `low` is an
        image, the result is the real part, with negative values set to 0. The real part divides the
        highest frequency of an even side between both ends of the spectrum.
        """
        filled = scipy.fft.ifftn(scipy.fft.ifftshift(self._filled(spectrum_of(low))),
                                 workers=thread_count())
        filled *= np.float32(np.prod(self.shape))
        return np.abs(filled) if np.iscomplexobj(low) else np.clip(filled.real, 0, None)

    def spline(self, low, order=5):
        return super().spline(magnitude_of(low) if np.iscomplexobj(low) else low, order)

    def outline(self, hr, lr):
        # As in the paper, the outline comes from the LR volume, not from HR.
        return lr > KSPACE_BACKGROUND

    def check_upscaling(self):
        super().check_upscaling()
        for factor in self.factor:
            if factor not in (1, 3) and self.method.kspace_keep == "third":
                raise ValueError("the filters were learned for the middle third of the spectrum; "
                                 f"a scan to upscale by {factor} holds 1/{factor} of it: learn "
                                 "with --kspace_keep auto")

    def consistency(self, low, box, mask):
        spectrum = spectrum_of(low) * np.float32(np.prod(self.shape))
        return SpectrumProjection(spectrum, self.shape, box, np.ones_like(mask))

    def _filled(self, spectrum):
        """A spectrum with zeros around it, up to the fine shape."""
        filled = np.zeros(self.shape, np.complex64)
        filled[middle(self.shape, spectrum.shape)] = spectrum
        return filled


class SliceProfile(Degradation):
    """Blur by a slice profile along each refined axis, as a scanner does.

    Attributes
    ----------
    profiles : tuple of three str or slice_profile.Profile
        Profile of each axis, see `degrading.slice_profile.PROFILES`.
    """

    masked = False
    own_grid = "edges"

    def __init__(self, shape, method, profiles=None):
        super().__init__(shape, method)
        self.profiles = profiles or 3 * method.profile[:1]

    def matrix(self, axis):
        return profile_matrix(self.shape[axis], self.factor[axis], self.profiles[axis])

    def forward(self, image):
        sides = zip(self.shape, self.factor, self.profiles, strict=True)
        return apply_operators(image, [profile_operator(*axis) for axis in sides])

    def descriptors(self, unit):
        return descriptors_of(unit, self.factor)

    def consistency(self, low, box, mask):
        # Agreement with the LR volume is not enforced, because it would put the noise back.
        return DataConsistency(mask)


OPERATORS = {"interpolation": SplineZoom, "average": BlockMean, "kspace": TruncatedSpectrum,
             "scan": SliceProfile}


def kspace_kept(side, factor, keep):
    """First index and end (exclusive) of the kept part of the centred spectrum along an axis.

    With ``third``, a third of the frequencies is kept for every factor, as in the paper. With
    ``auto``, side / factor frequencies are kept. With a factor of 1, all are kept.
    """
    if factor == 1:
        return 0, side
    if keep == "third":
        return side // 2 - side // 6, side // 2 + side // 6
    start = side // 2 - side // factor // 2
    return start, start + side // factor


def spectrum_of(volume):
    """Centred spectrum of a volume, divided by its number of voxels; complex input is unchanged."""
    if np.iscomplexobj(volume):
        return volume
    spectrum = scipy.fft.fftn(volume, workers=thread_count())
    return scipy.fft.fftshift(spectrum) / np.float32(volume.size)


def magnitude_of(spectrum):
    """The magnitude image of a spectrum from `spectrum_of`."""
    image = scipy.fft.ifftn(scipy.fft.ifftshift(spectrum), workers=thread_count())
    return np.abs(image) * np.float32(spectrum.size)
