"""Small steps that several files share: clipping, cropping, random generators."""
import numpy as np

CLIP_FRACTION = 0.999  # quantile for clipping, so that a bright vessel does not set the scale
MEDIAN_OF_NORMAL = 0.6744897501960817  # median of |x| for normal x of standard deviation 1
SPARSE = 0.05  # a volume is sparse if a smaller share of its voxels is nonzero
# If the published clipping changes a larger share of the voxels above zero, a message reports it.
MUCH = 0.01


def bright_level(image):
    """The 99.9 % quantile of a volume: an element of its sorted voxels."""
    place = min(int(image.size * CLIP_FRACTION), image.size - 1)
    # Only the brightest voxels are sorted, to save time: those above the 99th percentile, which is
    # estimated from about one voxel in a hundred.
    some = image.ravel()[::101]
    brightest = image[image > np.partition(some, int(some.size * 0.99))[int(some.size * 0.99)]]
    if brightest.size >= image.size - place:
        return float(np.partition(brightest, place - image.size)[place - image.size])
    return float(np.partition(image, place, axis=None)[place])


def clip_bright(image):
    """Clip a volume below 0 and above its 99.9 % quantile."""
    return np.clip(image, 0, np.float32(bright_level(image)))


def bright_level_of_scan(image):
    """The 99.9 % quantile of a volume; of its nonzero voxels if it is sparse, as an angiogram.

    Parameters
    ----------
    image : ndarray of float32, shape (x, y, z)
        The background is 0.

    Returns
    -------
    float

    Examples
    --------
    >>> vessels = np.zeros((40, 40, 40), np.float32)
    >>> vessels[20, 20] = np.arange(40)
    >>> bright_level(vessels), bright_level_of_scan(vessels)
    (0.0, 39.0)
    """
    if 0 < np.count_nonzero(image) < SPARSE * image.size:
        return bright_level(image[image != 0])
    return bright_level(image)


def clipping_in_words(image, scale):
    """A message about a sparse volume if the published clipping changes many of its voxels.

    Parameters
    ----------
    image : ndarray of float32, shape (X, Y, Z)
        The background is 0.
    scale : float
        Intensity to which the volume is clipped: the 99.9 % quantile of all voxels.

    Returns
    -------
    str
        Empty if hardly anything is clipped, as in a brain.
    """
    share = np.count_nonzero(image > scale) / max(np.count_nonzero(image > 0), 1)
    if share <= MUCH:
        return ""
    return (f"{share:.1%} of its voxels above zero are clipped to {scale:g}, as in the paper, "
            "because most of its voxels are zero; crop it, or use --preset scan")


def mod_crop(image, factor):
    """Drop trailing voxels until each side is a multiple of the factor.

    Examples
    --------
    >>> mod_crop(np.zeros((7, 8, 9)), (2, 2, 4)).shape
    (6, 8, 8)
    """
    sides = zip(image.shape, factor, strict=True)
    return image[tuple(slice(0, side - side % f) for side, f in sides)]


def tight_box(used):
    """The smallest box that holds all True voxels: a tuple of slices. One voxel must be True.

    Examples
    --------
    >>> used = np.zeros((5, 6, 7), bool)
    >>> used[1:3, 2, 4:] = True
    >>> tight_box(used)
    (slice(1, 3, None), slice(2, 3, None), slice(4, 7, None))
    """
    along = (used_along(used, axis) for axis in range(3))
    return tuple(slice(int(places[0]), int(places[-1]) + 1) for places in along)


def used_along(used, axis):
    """Indices of the slices across an axis that hold a voxel other than zero."""
    return np.flatnonzero(used.any(axis=tuple(a for a in range(3) if a != axis)))


def random_of(seed, name):
    """A random generator whose numbers depend on a seed and a name only."""
    return np.random.default_rng([seed, *name.encode("utf-8", "surrogateescape")])


def decibel(error):
    """PSNR in dB of a mean squared error, for a peak of 1; NaN if the error is NaN."""
    with np.errstate(divide="ignore"):
        return float(-10 * np.log10(error))


def robust_deviation(values):
    """Standard deviation of normally distributed values, from the median absolute deviation.

    scipy.stats has the same, and takes 0.4 s to import.

    Examples
    --------
    >>> round(robust_deviation(np.array([1.0, 2.0, 3.0, 4.0, 1000.0])), 4)
    1.4826
    """
    return float(np.median(np.abs(values - np.median(values))) / MEDIAN_OF_NORMAL)


def without_nonsense(volume):
    """The volume with zeros for voxels that are infinite or not a number."""
    good = np.isfinite(volume)
    return volume if good.all() else np.where(good, volume, np.float32(0))
