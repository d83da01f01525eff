"""The structure tensor of each voxel, its eigenvalues and its principal direction.

The structure tensor of a voxel is the Gaussian-weighted sum of g g^T over the gradients g in a
window around it (section 3.2 of the paper). The weights are separable: each of the tensor's six
products of gradients is smoothed along the three axes. This takes some 160 multiplications instead
of the 729 x 729 matrix of the formula. Each plane of products is smoothed along two axes, and
stored in a ring buffer, which holds the planes that the window along the third axis needs. No
temporary array has the size of the volume.
"""
import numpy as np

from machine.kernels import njit
from machine.simd import LANES, correlate, load, multiply_add, splat, store, zeros

BATCH = 64  # number of tensors whose eigenvalues are computed at a time
SHORTEST = 1e-28  # if a cross product's squared length is smaller, two eigenvalues count as equal
NEARLY_ROUND = 1e-12  # if the eigenvalues' spread (`_scaled`) is smaller, all three count as equal


@njit(cache=True, nogil=True, error_model="numpy")
def features_of_slab(lr, voxels, first, start, stop, weights, sin_p, cos_p, cos_t, trace, fa,
                     angle, strength, coherence):
    """Write the features of the voxels in planes `start` to `stop` - 1.

    Parameters
    ----------
    lr : ndarray of float32, shape (X, Y, Z), C-contiguous
    voxels : ndarray of int64, ascending
        Flat indices, at least half a gradient window from the faces.
    first : ndarray of int64, shape (X + 1,)
        Index in `voxels` of the first voxel of each plane.
    start, stop : int
        First plane, and the plane after the last one.
    weights : ndarray of float32, shape (window side,)
        Weights of the window along each axis.
    sin_p, cos_p : ndarray of float64, shape (classes - 1,)
        Sines and cosines of the boundaries between classes of the azimuth.
    cos_t : ndarray of float64, shape (classes - 1,)
        Cosines of the boundaries between classes of the inclination.
    trace : bool
        If True, the strength is the sum of the eigenvalues instead of the largest.
    fa : bool
        If True, the coherence is the fractional anisotropy.
    angle, strength, coherence : ndarray, shape (n, 2), (n,) and (n,)
        Output for these voxels; see `hashtable.Features`.
    """
    half, length = weights.size // 2, weights.size
    ny, nz = lr.shape[1], lr.shape[2]
    if first[stop] == first[start]:
        return
    # Bounding rectangle of the slab's voxels. Products are needed half a window beyond each side.
    y0, y1, z0, z1 = ny, 0, nz, 0
    for n in range(first[start], first[stop]):
        y, z = voxels[n] // nz % ny, voxels[n] % nz
        y0, y1, z0, z1 = min(y0, y), max(y1, y + 1), min(z0, z), max(z1, z + 1)
    # Rows are padded to whole vectors; columns from z1 on are not used.
    height, width = y1 - y0, -(-(z1 - z0) // LANES) * LANES
    products = np.zeros((6, height + 2 * half, width + 2 * half), np.float32)
    rows = np.zeros((height + 2 * half, width), np.float32)
    ring = np.zeros((length, 6, height, width), np.float32)
    tensor, w = np.zeros((6, width), np.float32), np.zeros(13 * BATCH)
    for plane in range(max(start - half, 0), min(stop + half, lr.shape[0])):
        _gradient_products(lr, plane, y0 - half, z0 - half, z1 - z0 + 2 * half, products)
        for c in range(6):
            _smooth_plane(products, c, weights, rows, ring, plane % length)
        centre = plane - half
        if centre < start:
            continue
        n, last = first[centre], first[centre + 1]
        while n < last:  # row by row
            y = voxels[n] // nz % ny
            origin = (centre * ny + y) * nz + z0
            end = n
            while end < last and voxels[end] < origin - z0 + nz:
                end += 1
            _smooth_across(ring, weights, centre - half, y - y0, voxels[n] - origin,
                           voxels[end - 1] - origin + 1, tensor)
            for begin in range(n, end, BATCH):
                count = min(BATCH, end - begin)
                for m in range(count):
                    k = voxels[begin + m] - origin
                    for c in range(6):
                        w[c * BATCH + m] = tensor[c, k]
                eigen_batch(w)
                for m in range(count):
                    l1, l2, l3 = w[6 * BATCH + m], w[7 * BATCH + m], w[8 * BATCH + m]
                    here = begin + m
                    angle[here, 0], angle[here, 1] = _angle_classes(
                        w[9 * BATCH + m], w[10 * BATCH + m], w[11 * BATCH + m], sin_p, cos_p, cos_t)
                    strength[here] = l1 + l2 + l3 if trace else l1
                    coherence[here] = (_fractional_anisotropy(l1, l2, l3) if fa
                                       else _coherence(l1, l2, l3))
            n = end


@njit(cache=True, fastmath=True)
def _gradient_products(lr, x, y_first, z_first, width, products):
    """Write products xx, yy, zz, xy, xz, yz of gradients on a rectangle of plane x.

    The gradients equal those of np.gradient. The rectangle is `width` voxels wide.
    """
    nx, ny, nz = lr.shape
    height = products.shape[1]
    x_back, x_ahead = max(x - 1, 0), min(x + 1, nx - 1)
    x_scale = np.float32(1 / max(x_ahead - x_back, 1))
    for i in range(height):
        y = y_first + i
        y_back, y_ahead = max(y - 1, 0), min(y + 1, ny - 1)
        y_scale = np.float32(1 / max(y_ahead - y_back, 1))
        inner = min(max(1 - z_first, 0), width), max(min(nz - 1 - z_first, width), 0)
        for j in range(inner[0], inner[1]):  # inner voxels need no branch: the loop is vectorised
            z = z_first + j
            gx = (lr[x_ahead, y, z] - lr[x_back, y, z]) * x_scale
            gy = (lr[x, y_ahead, z] - lr[x, y_back, z]) * y_scale
            gz = (lr[x, y, z + 1] - lr[x, y, z - 1]) * np.float32(0.5)
            products[0, i, j], products[1, i, j], products[2, i, j] = gx * gx, gy * gy, gz * gz
            products[3, i, j], products[4, i, j], products[5, i, j] = gx * gy, gx * gz, gy * gz
        for j in range(width):
            z = z_first + j
            if inner[0] <= j < inner[1]:
                continue
            z_back, z_ahead = max(z - 1, 0), min(z + 1, nz - 1)
            gx = (lr[x_ahead, y, z] - lr[x_back, y, z]) * x_scale
            gy = (lr[x, y_ahead, z] - lr[x, y_back, z]) * y_scale
            gz = (lr[x, y, z_ahead] - lr[x, y, z_back]) * np.float32(1 / max(z_ahead - z_back, 1))
            products[0, i, j], products[1, i, j], products[2, i, j] = gx * gx, gy * gy, gz * gz
            products[3, i, j], products[4, i, j], products[5, i, j] = gx * gy, gx * gz, gy * gz


@njit(cache=True, error_model="numpy")
def _smooth_plane(products, c, weights, rows, ring, place):
    """Smooth product c along both axes of its plane, into the ring buffer; `rows` is scratch."""
    height, width = ring.shape[2:]
    for i in range(rows.shape[0]):
        row = (c * rows.shape[0] + i) * products.shape[2]
        correlate(products, row, 1, weights, rows, i * width, width)
    correlate(rows, 0, width, weights, ring, (place * 6 + c) * height * width, height * width)


@njit(cache=True, error_model="numpy")
def _smooth_across(ring, weights, plane, row, low, high, tensor):
    """Smooth a row of the six products across planes, for voxels `low` to `high`, to `tensor`."""
    length, _, height, width = ring.shape
    for c in range(6):
        for k in range(low // LANES * LANES, high, LANES):
            total = zeros()
            for t in range(length):
                at = (((plane + t) % length * 6 + c) * height + row) * width + k
                total = multiply_add(splat(weights[t]), load(ring, at), total)
            store(tensor, c * width + k, total)


@njit(cache=True, error_model="numpy")
def eigen_batch(w):
    """Eigenvalues, descending, and principal unit eigenvectors of `BATCH` symmetric 3x3 matrices.

    Each matrix T is divided by its largest entry. The roots of its characteristic cubic are
    computed in closed form, in float64. The eigenvector is the longest cross product of two rows of
    T - l1. If the two largest eigenvalues are equal, all directions in their plane are
    eigenvectors, and one of them is returned.

    Parameters
    ----------
    w : ndarray of float64, shape (13 * BATCH,)
        13 rows of `BATCH` numbers. Input rows: xx, yy, zz, xy, xz, yz. Output rows: l1, l2, l3, vx,
        vy, vz. The last row is scratch.

    Examples
    --------
    >>> w = np.zeros((13, BATCH))
    >>> w[:3, 0] = 1, 2, 4
    >>> eigen_batch(w.reshape(-1))
    >>> [round(float(number), 9) + 0.0 for number in w[6:12, 0]]
    [4.0, 2.0, 1.0, 0.0, 0.0, 1.0]
    """
    for m in range(BATCH):
        l1, l2, l3, vx, vy, vz, longest = _eigen(
            w[m], w[BATCH + m], w[2 * BATCH + m], w[3 * BATCH + m], w[4 * BATCH + m],
            w[5 * BATCH + m])
        w[6 * BATCH + m], w[7 * BATCH + m], w[8 * BATCH + m] = l1, l2, l3
        w[9 * BATCH + m], w[10 * BATCH + m], w[11 * BATCH + m] = vx, vy, vz
        w[12 * BATCH + m] = longest
    for m in range(BATCH):
        if not w[12 * BATCH + m] >= SHORTEST:
            l1, l2, l3, vx, vy, vz = _degenerate(
                w[m], w[BATCH + m], w[2 * BATCH + m], w[3 * BATCH + m], w[4 * BATCH + m],
                w[5 * BATCH + m])
            w[6 * BATCH + m], w[7 * BATCH + m], w[8 * BATCH + m] = l1, l2, l3
            w[9 * BATCH + m], w[10 * BATCH + m], w[11 * BATCH + m] = vx, vy, vz


@njit(cache=True, error_model="numpy", inline="always")
def _eigen(xx, yy, zz, xy, xz, yz):
    """Eigenvalues, principal eigenvector, and squared length of the cross product that gave it.

    All calls are inlined and there is no branch, so that the compiler can process several matrices
    at a time. If the squared length is not at least `SHORTEST`, `_degenerate` is used instead.
    """
    size, a, b, c, d, e, f, mean, radius = _scaled(xx, yy, zz, xy, xz, yz)
    a0, b0, c0 = a - mean, b - mean, c - mean
    det = a0 * (b0 * c0 - f * f) - d * (d * c0 - f * e) + e * (d * f - b0 * e)
    cosine = _cosine_of_third(min(max(det / (2 * radius * radius * radius), -1.0), 1.0))
    l1 = mean + 2 * radius * cosine
    l3 = mean - radius * (cosine + np.sqrt(max(3 * (1 - cosine * cosine), 0.0)))
    l2 = 3 * mean - l1 - l3
    a, b, c = a - l1, b - l1, c - l1
    # All cross products of rows of T - l1 lie along the eigenvector; the longest is most exact.
    px, py, pz = d * f - e * b, e * d - a * f, a * b - d * d  # rows 1 and 2
    qx, qy, qz = d * c - e * f, e * e - a * c, a * f - d * e  # rows 1 and 3
    rx, ry, rz = b * c - f * f, f * e - d * c, d * f - b * e  # rows 2 and 3
    p, q, r = px * px + py * py + pz * pz, qx * qx + qy * qy + qz * qz, rx * rx + ry * ry + rz * rz
    longer = q > p
    px, py, pz = qx if longer else px, qy if longer else py, qz if longer else pz
    p = q if longer else p
    longer = r > p
    px, py, pz = rx if longer else px, ry if longer else py, rz if longer else pz
    p = r if longer else p
    per_length = 1 / np.sqrt(p)
    return (l1 * size, max(l2, 0.0) * size, max(l3, 0.0) * size, px * per_length, py * per_length,
            pz * per_length, p if radius >= NEARLY_ROUND else 0.0)


@njit(cache=True, error_model="numpy", inline="always")
def _scaled(xx, yy, zz, xy, xz, yz):
    """Largest entry of a matrix; the matrix divided by it; mean and spread of its eigenvalues."""
    size = max(max(max(abs(xx), abs(yy)), max(abs(zz), abs(xy))), max(abs(xz), abs(yz)))
    per_size = 1 / np.float64(size)
    a, b, c = xx * per_size, yy * per_size, zz * per_size
    d, e, f = xy * per_size, xz * per_size, yz * per_size
    mean = (a + b + c) / 3
    a0, b0, c0 = a - mean, b - mean, c - mean
    radius = np.sqrt((a0 * a0 + b0 * b0 + c0 * c0 + 2 * (d * d + e * e + f * f)) / 6)
    return size, a, b, c, d, e, f, mean, radius


@njit(cache=True, inline="always")
def _cosine_of_third(x):
    """``cos(arccos(x) / 3)`` for x in [-1, 1], to 1e-14.

    The result is a smooth function of the cosine of half the angle, so its Chebyshev series
    converges fast. The first sixteen terms of the series are evaluated in Horner's form.
    """
    t = 2 * np.sqrt(0.5 * (x + 1)) - 1
    y = 5.240740064138549e-10 * t - 1.7099900037620408e-09
    y = y * t + 3.6113593365749708e-09
    y = y * t - 1.2408720391054312e-08
    y = y * t + 4.616534620208168e-08
    y = y * t - 1.603772091709338e-07
    y = y * t + 5.639880958007923e-07
    y = y * t - 2.035467208442483e-06
    y = y * t + 7.541127389750022e-06
    y = y * t - 2.8920040854758718e-05
    y = y * t + 0.00011642544526763838
    y = y * t - 0.0005041246778717787
    y = y * t + 0.002466352815624197
    y = y * t - 0.015509188437124618
    y = y * t + 0.24740906632284215
    return y * t + 0.7660444431189831


@njit(cache=True, error_model="numpy")
def _degenerate(xx, yy, zz, xy, xz, yz):
    """Eigenvalues and eigenvector of a matrix whose two largest eigenvalues, or all, are equal."""
    size, a, b, c, d, e, f, mean, radius = _scaled(xx, yy, zz, xy, xz, yz)
    if not size > 0:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 1.0
    if radius < NEARLY_ROUND:
        return mean * size, mean * size, mean * size, 0.0, 0.0, 1.0
    l1, l2, l3, _, _, _, _ = _eigen(xx, yy, zz, xy, xz, yz)
    # Any vector at right angles to the third eigenvector is an eigenvector.
    a, b, c = a - l1 / size, b - l1 / size, c - l1 / size
    if abs(a) + abs(d) + abs(e) >= max(abs(d) + abs(b) + abs(f), abs(e) + abs(f) + abs(c)):
        nx, ny, nz = a, d, e
    elif abs(d) + abs(b) + abs(f) >= abs(e) + abs(f) + abs(c):
        nx, ny, nz = d, b, f
    else:
        nx, ny, nz = e, f, c
    if abs(nx) > abs(ny):
        px, py, pz = -nz, 0.0, nx
    else:
        px, py, pz = 0.0, nz, -ny
    length = np.sqrt(px * px + py * py + pz * pz)
    per_length = 1 / length if length > 0 else 0.0
    return l1, l2, l3, px * per_length, py * per_length, pz * per_length


@njit(cache=True, error_model="numpy")
def _angle_classes(vx, vy, vz, sin_p, cos_p, cos_t):
    """Classes of a direction: for each angle, the number of class boundaries below it.

    The sines and cosines of the boundaries are given, which saves an arc tangent per voxel.
    """
    if vy < 0:  # a vector and its opposite are one direction
        vx, vy, vz = -vx, -vy, -vz
    azimuth = inclination = 0
    if vx != 0 or vy != 0:
        for edge in range(sin_p.size):
            azimuth += cos_p[edge] * vy >= sin_p[edge] * vx
    for edge in range(cos_t.size):
        inclination += vz <= cos_t[edge]
    return azimuth, inclination


@njit(cache=True, error_model="numpy")
def _coherence(l1, l2, l3):
    s1, s2, s3 = np.sqrt(l1), np.sqrt(l2), np.sqrt(l3)
    return (s1 - s2 - s3) / (s1 + s2 + s3) if s1 > 0 else 0.0


@njit(cache=True, error_model="numpy")
def _fractional_anisotropy(l1, l2, l3):
    squares = l1 * l1 + l2 * l2 + l3 * l3
    if not squares > 0:
        return 0.0
    return np.sqrt(((l1 - l2)**2 + (l2 - l3)**2 + (l3 - l1)**2) / (2 * squares))
