"""The method written down literally and slowly, one voxel after another.

The tests compare the fast code with it, and only they import it. It shares no code with the
scripts: where a script is separable, blocked or in closed form, this has the window, the loop and
the library's eigenvectors.
"""

import itertools

import numpy as np
from scipy.ndimage import zoom

# ---- LR volumes


def clip_bright(image):
    """Clip to [0, v], v the voxel at 99.9 % of the sorted ones."""
    return np.clip(image, 0, sorted(image.ravel().tolist())[int(0.999 * image.size)])


def mod_crop(image, factor):
    while image.shape[0] % factor[0]:
        image = image[:-1]
    while image.shape[1] % factor[1]:
        image = image[:, :-1]
    while image.shape[2] % factor[2]:
        image = image[:, :, :-1]
    return image


def lr_interpolation(image, factor):
    """Down and up with scipy.ndimage.zoom; zero where the image is."""
    down = zoom(image, [1 / f for f in factor], order=2, prefilter=False)
    lr = np.clip(zoom(down, factor, order=2, prefilter=False), 0, image.max())
    lr[image == 0] = 0
    return lr


def lr_kspace(image):
    """Every frequency outside the middle third set to zero, one axis after another.

    Returns the magnitude of what is left.
    """
    spectrum = np.fft.fftshift(np.fft.fftn(image.astype(np.float64)))
    for axis, side in enumerate(image.shape):
        for index in range(side):
            if not side // 2 - int(side / 6) <= index < side // 2 + int(side / 6):
                spectrum[(slice(None),) * axis + (index,)] = 0
    return np.abs(np.fft.ifftn(np.fft.ifftshift(spectrum)))


def crop_box(image, padding, factor):
    """Start and stop per axis."""
    box = []
    for axis in range(3):
        slices = np.moveaxis(image, axis, 0)
        start = next(i for i in range(padding, len(slices)) if (slices[i] != 0).any()) - padding
        while start % factor[axis]:
            start -= 1
        stop = (
            next(j for j in range(len(slices) - padding - 1, -1, -1) if (slices[j] != 0).any())
            + padding
        )
        box.append((start, stop))
    return box


# ---- features


def gaussian_window(length, sigma):
    """The normalised 3-D Gaussian, shape (length, length, length)."""
    window, centre = np.empty((length,) * 3), (length - 1) / 2
    for i, j, k in np.ndindex(window.shape):
        window[i, j, k] = np.exp(
            -((i - centre) ** 2 + (j - centre) ** 2 + (k - centre) ** 2) / (2 * sigma**2)
        )
    return window / window.sum()


def interior(mask, margin):
    """Indices (x, y, z) in raster order of the True voxels that lie `margin` or more inside."""
    return [
        index
        for index in np.ndindex(mask.shape)
        if mask[index] and all(margin <= i < side - margin for i, side in zip(index, mask.shape))
    ]


def structure_tensor(gradients, index, length, sigma=0.85):
    """Sum of w g g^T over the window around a voxel; `gradients` is np.gradient's list."""
    window = gaussian_window(length, sigma)
    here = tuple(slice(i - length // 2, i + length // 2 + 1) for i in index)
    g = np.stack([component[here].ravel() for component in gradients], 1)
    return g.T @ np.diag(window.ravel()) @ g


def eigen(tensor):
    """Eigenvalues, descending and not negative, and the principal eigenvector."""
    values, vectors = np.linalg.eigh(tensor)
    return np.maximum(values[::-1], 0), vectors[:, -1]


def strength(values, feature_type):
    return values[0] if feature_type.startswith("lambda1") else values.sum()


def coherence(values, feature_type):
    l1, l2, l3 = values
    if l1 == 0:
        return 0.0  # no gradient: no direction to agree on
    if feature_type.endswith("fa"):
        return np.sqrt(
            ((l1 - l2) ** 2 + (l2 - l3) ** 2 + (l3 - l1) ** 2) / (2 * (l1**2 + l2**2 + l3**2))
        )
    s1, s2, s3 = np.sqrt(values)
    return (s1 - s2 - s3) / (s1 + s2 + s3)


def angles(v):
    """Azimuth and inclination of a direction, both in [0, pi]."""
    azimuth, inclination = np.arctan2(v[1], v[0]), np.arccos(v[2] / np.linalg.norm(v))
    return (azimuth + np.pi, np.pi - inclination) if azimuth < 0 else (azimuth, inclination)


def angle_classes(v, q_angle_p, q_angle_t):
    azimuth, inclination = angles(v)
    return (
        min(max(int(azimuth / (np.pi / q_angle_p)), 0), q_angle_p - 1),
        min(max(int(inclination / (np.pi / q_angle_t)), 0), q_angle_t - 1),
    )


def features(lr, indices, grad_len, feature_type):
    """Per voxel: (eigenvalues, principal eigenvector, strength, coherence)."""
    gradients, found = np.gradient(lr.astype(np.float64)), []
    for index in indices:
        values, vector = eigen(structure_tensor(gradients, index, grad_len))
        found.append(
            (values, vector, strength(values, feature_type), coherence(values, feature_type))
        )
    return found


def bucket_number(angle_p, angle_t, strength_class, coherence_class, q_angle_t):
    return angle_p * q_angle_t * 9 + angle_t * 9 + strength_class * 3 + coherence_class


def boundaries(values, classes):
    ordered = sorted(values)
    return [ordered[int((i + 1) * len(ordered) / classes)] for i in range(classes - 1)]


def nearest_bucket(bucket, served, q_angle_p, q_angle_t):
    """The least distance from `bucket` to one of `served`, and all of them that are so near.

    Distances are in bins of inclination and in classes.
    """

    def place(number):
        rest, coherence_class = divmod(number, 3)
        rest, strength_class = divmod(rest, 3)
        angle_p, angle_t = divmod(rest, q_angle_t)
        phi, theta = (angle_p + 0.5) * np.pi / q_angle_p, (angle_t + 0.5) * np.pi / q_angle_t
        direction = np.array(
            [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)]
        )
        return direction, strength_class, coherence_class

    here, distances = place(bucket), {}
    for other in served:
        there = place(other)
        turn = min(np.arccos(np.clip(sign * here[0] @ there[0], -1, 1)) for sign in (1, -1))
        turn = turn * q_angle_t / np.pi
        distances[other] = np.sqrt(turn**2 + (here[1] - there[1]) ** 2 + (here[2] - there[2]) ** 2)
    least = min(distances.values())
    return least, {other for other, distance in distances.items() if distance < least + 1e-6}


# ---- filters


def patch(volume, index, length):
    reach = length // 2
    return volume[tuple(slice(i - reach, i + reach + 1) for i in index)].ravel()


def gram(lr, hr, indices, bucket, buckets, length, centred=False):
    """Q, V, sum of b b and count of each bucket, one sample after another, in float64."""
    taps = length**3
    q, v, bb, count = (
        np.zeros((buckets, taps, taps)),
        np.zeros((buckets, taps)),
        np.zeros(buckets),
        np.zeros(buckets, int),
    )
    for index, j in zip(indices, bucket):
        base = float(lr[index]) if centred else 0.0
        a, b = patch(lr, index, length).astype(np.float64) - base, float(hr[index]) - base
        q[j] += np.outer(a, a)
        v[j] += a * b
        bb[j] += b * b
        count[j] += 1
    return q, v, bb, count


def ridge_filters(q, v, weight):
    """Plain filters of all buckets by dense solution.

    (Q + w I) g = V + w g0, then HR - LR becomes HR.
    """
    identity = np.eye(q.shape[1])
    g0 = np.linalg.solve(q.sum(0) + weight * identity, v.sum(0))
    h = np.array(
        [np.linalg.solve(qj + weight * identity, vj + weight * g0) for qj, vj in zip(q, v)]
    )
    h[:, q.shape[1] // 2] += 1 - h.sum(1)
    return h


def restore(lr, indices, bucket, h, length):
    sr = lr.astype(np.float64)
    for index, j in zip(indices, bucket):
        sr[index] = min(max(patch(lr, index, length).astype(np.float64) @ h[j], 0), 1)
    return sr


# ---- image filters

NEIGHBOURS = [offset for offset in itertools.product((-1, 0, 1), repeat=3) if any(offset)]


def gaussian(image, sigma):
    """3x3x3 Gaussian, edges reflected (the edge voxel is repeated)."""
    window, padded, result = (
        gaussian_window(3, sigma),
        np.pad(image, 1, mode="symmetric"),
        np.empty(image.shape),
    )
    for x, y, z in np.ndindex(image.shape):
        result[x, y, z] = (padded[x : x + 3, y : y + 3, z : z + 3] * window).sum()
    return result


def census_blend(lr, sr, threshold=10):
    result = np.zeros(lr.shape, lr.dtype)
    for index in interior(np.ones(lr.shape, bool), 1):
        changed = 0
        for offset in NEIGHBOURS:
            other = tuple(i + o for i, o in zip(index, offset))
            changed += (lr[other] < lr[index]) != (sr[other] < sr[index])
        result[index] = lr[index] if changed > threshold else sr[index]
    return result


def sharpen(image, sigma=0.85):
    """B1 = blend(x, blend(x, D3)), B2 = blend(x, blend(B1, D2)), B3 = blend(x, blend(B2, D1))."""
    wide = sigma * 1.414
    once = gaussian(image, wide)
    twice = gaussian(once, wide)
    d1, d2, d3 = (
        16 * gaussian(source, sigma) - 15 * gaussian(source, wide)
        for source in (image, once, twice)
    )
    b1 = census_blend(image, census_blend(image, d3))
    b2 = census_blend(image, census_blend(b1, d2))
    b3 = census_blend(image, census_blend(b2, d1))
    return np.clip(b3, 0, 1)


def psnr(hr, estimate):
    return 10 * np.log10(1 / np.mean((hr.astype(np.float64) - estimate.astype(np.float64)) ** 2))
