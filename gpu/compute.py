"""The engine of graphics cards: it sums Gram matrices, solves for filters and applies filters.

Each function takes the card as an argument. The card's array module `xp` is CuPy or, in tests,
NumPy. The code is the same for both: arrays pass between card and main memory only by
``xp.asarray`` and ``card.to_host``. CuPy has a current card for each thread, so work on a card
begins with ``with card.use()``.

The CPU computes features and buckets (hashtable.py). As in matrix_compute.py, products of at most
`BLOCK` samples at a time are float32, and sums are float64. Filters from a card and from the CPU
differ only by rounding.
"""
import contextlib
from functools import partial
from queue import SimpleQueue
from threading import Lock

import numpy as np

from machine.errors import UserError
from matrix_compute import BLOCK, bucket_order
from published.apply_filters import TILE

BATCH = 32  # filters solved at a time, if the card has memory for copies of their sums (7 MB each)
LEAST_BLOCK = 16  # smallest number of samples or voxels at a time; if they do not fit, an error
FREE_SHARE = 0.85  # share of the free memory that is used; libraries and gaps need the rest
WORK_BYTES = 64 << 20  # for indices, patches, products of a block: 24 MB for 1024 of 11^3 voxels
TOO_FULL = ("the GPU has too little free memory; close other programs that use it, or give "
            "--device cpu")


# ----------------------------------------------------------------------------------------- learning

class Cards:
    """Graphics cards as an engine, with the same methods as `engine.CPU`.

    Each card sums one volume at a time into its own Gram matrices. These matrices are later added
    to the Gram matrices in main memory. A training uses one thread for each card, and one more
    thread that prepares the next volume. Only the first card solves for filters and applies them.

    Parameters
    ----------
    cards : list of Card
    """

    def __init__(self, cards):
        lock = Lock()
        self.streams, self.idle = [Stream(card, lock) for card in cards], SimpleQueue()
        self.ahead, self.fault = len(cards), None
        for stream in self.streams:
            self.idle.put(stream)
        self.ridge_filters = partial(ridge_filters, cards[0])
        self.filter_voxels = partial(filter_voxels, cards[0])

    @contextlib.contextmanager
    def place(self):
        """A context that waits for an idle card, and gives the card for one volume."""
        stream = self.idle.get()
        try:
            yield stream
        except BaseException as fault:
            self.fault = fault
            raise
        finally:
            self.idle.put(stream)

    @contextlib.contextmanager
    def settled(self, gram):
        """A context in which all cards are idle, and `gram` holds the sums of all cards.

        If a card failed while it summed a volume, its exception is raised again. The sums may then
        contain a part of this volume, so they must not be saved.
        """
        taken = [self.idle.get() for _ in self.streams]
        try:
            if self.fault:
                raise self.fault
            for stream in taken:
                stream.settle(gram)
            yield
        finally:
            for stream in taken:
                self.idle.put(stream)


class Stream:
    """The sums on one card.

    The card holds the packed lower triangles of all buckets if its memory is large enough,
    otherwise those of one group of buckets after another. If memory runs out, the group is halved,
    and the work continues with the remaining samples.

    Attributes
    ----------
    buckets : range
        Buckets of the `Gram` whose sums are on the card.
    packed : array of float64, shape (most, (P + 1)(P + 2) / 2), or None
    """

    def __init__(self, card, lock, block=BLOCK):
        self.card, self.lock, self.block, self.most = card, lock, block, None
        self.buckets, self.packed, self.touched = range(0), None, set()

    def add(self, gram, drawn, method, advance=lambda samples: None):
        """Add a volume's samples to the sums on the card, like `engine.CPU.add`.

        Later, `settle` adds these sums to those in `gram`.
        """
        reached = drawn.ends[:-1].copy()  # for each bucket: the first sample that is not added yet
        with self.card.use():
            while if_it_fits(self._add, gram, drawn, reached, method, advance) is None:
                self._shrink(gram)
        with self.lock:
            gram.count += np.diff(drawn.ends)

    def settle(self, gram):
        """Add the sums on the card to those in main memory."""
        with self.card.use(), self.lock:
            for b in sorted(self.touched):
                gram.packed[b] += self.card.to_host(self.packed[b - self.buckets.start])
            if self.packed is not None:
                self.packed[:] = 0
        self.touched, self.buckets = set(), range(0)

    def _add(self, gram, drawn, reached, method, advance):
        """Add samples bucket by bucket; note the progress in `reached`, and return `reached`."""
        xp, ends, volume = self.card.xp, drawn.ends[1:], drawn.volume
        lr, hr = xp.asarray(volume.lr.reshape(-1)), xp.asarray(volume.hr.reshape(-1))
        voxels = xp.asarray(drawn.voxels.astype(index_type(volume.lr)))
        offsets = xp.asarray(patch_offsets(volume.lr.shape, method.filter_len))
        lower = xp.asarray(lower_triangle(gram.side))
        for b in np.flatnonzero(reached < ends).tolist():
            sums = self._sums_of(b, gram, 2 * volume.lr.nbytes)
            while reached[b] < ends[b]:
                stop = min(reached[b] + self.block, ends[b])
                rows = gather_rows(xp, lr, hr, voxels[reached[b]:stop], offsets,
                                   method.solver == "ridge")
                # float32 is added to float64. If memory runs out, no sample of the block is added.
                sums += xp.take(rows.T @ rows, lower)
                advance(stop - reached[b])
                reached[b] = stop
        return reached

    def _sums_of(self, b, gram, next_volume):
        """A view of a bucket's sums on the card; if necessary, another group is put on the card."""
        if b not in self.buckets:
            self.settle(gram)
            buckets, length = gram.packed.shape
            if self.packed is None or self.packed.shape[1] != length:
                self.packed = None  # freed first, because old and new might not fit together
                room = FREE_SHARE * self.card.free() - WORK_BYTES - next_volume
                self.most = min(max(int(room // (8 * length)), 1), buckets, self.most or buckets)
                self.packed = self.card.xp.zeros((self.most, length))
            first = max(min(b, buckets - self.most), 0)
            self.buckets = range(first, min(first + self.most, buckets))
        self.touched.add(b)
        return self.packed[b - self.buckets.start]

    def _shrink(self, gram):
        """Use less memory: halve the number of buckets on the card, or of samples at a time."""
        self.settle(gram)
        if self.most is not None and self.most > 1:
            self.most //= 2
        elif self.block // 2 >= LEAST_BLOCK:
            self.block //= 2
        else:
            raise UserError(TOO_FULL)
        self.packed = None
        self.card.release()


def if_it_fits(work, *arguments):
    """The result of ``work(*arguments)``; None if the card has too little memory.

    When this function returns, the exception and its arrays are freed.
    """
    try:
        return work(*arguments)
    except MemoryError:  # CuPy's OutOfMemoryError is one
        return None


def patch_offsets(shape, length):
    """Offset of each voxel of a cubic patch from its centre, in the flat volume.

    Returns
    -------
    ndarray of int32, shape (P,), in C order
    """
    reach = np.arange(length) - length // 2
    offsets = (reach[:, None, None] * shape[1] + reach[:, None]) * shape[2] + reach
    return offsets.ravel().astype(np.int32)


def index_type(volume):
    """Data type of flat indices: int32 if it suffices, otherwise int64.

    Index arrays are a large part of the memory that `gather_rows` writes.
    """
    return np.int32 if volume.size < 1 << 31 else np.int64


def lower_triangle(side):
    """Flat indices of a square matrix's lower triangle, in the order of `Gram.packed`; int32."""
    return np.flatnonzero(np.tri(side, dtype=bool)).astype(np.int32)


def gather_rows(xp, lr, hr, voxels, offsets, centred):
    """Make the row [patch, target] of each voxel, from flat volumes.

    If `centred`, the LR voxel at the patch's centre is subtracted from patch and target.

    Returns
    -------
    rows : array of float32, shape (n, P + 1)
    """
    rows = xp.empty((voxels.size, offsets.size + 1), xp.float32)
    rows[:, :-1] = xp.take(lr, voxels[:, None] + offsets)
    rows[:, -1] = xp.take(hr, voxels)
    if centred:
        rows -= xp.take(lr, voxels)[:, None]
    return rows


# ------------------------------------------------------------------------------------------ solving

def ridge_filters(card, gram, buckets, weight, g0, g, advance):
    """Do the same as `matrix_compute.ridge_filters` on the card, a batch of buckets at a time.

    If the card has too little memory, the batch is halved.
    """
    with card.use():
        each = 6 * 8 * gram.side**2  # bytes: matrices, factors, temporary arrays
        most = min(max(int(FREE_SHARE * card.free() / each), 1), BATCH)
        while buckets.size:
            batch = buckets[:most]
            found = if_it_fits(solve_batch, card, gram.packed[batch], gram.side, weight, g0)
            if found is None:
                if most == 1:
                    raise UserError(TOO_FULL)
                most //= 2
                card.release()
                continue
            g[batch] = found
            advance(batch.size)
            buckets = buckets[batch.size:]


def solve_batch(card, packed, side, weight, g0):
    """The filters g of `matrix_compute.ridge_filter` for a stack of packed Gram matrices.

    Parameters
    ----------
    packed : ndarray of float64, shape (n, side (side + 1) / 2)

    Returns
    -------
    g : ndarray of float64, shape (n, side - 1)
    """
    xp = card.xp
    matrices = xp.zeros((len(packed), side * side))
    matrices[:, xp.asarray(lower_triangle(side))] = xp.asarray(packed)
    matrices[:, :-1:side + 1] += weight  # the diagonal of Q
    matrices[:, -side:-1] += weight * xp.asarray(g0)  # V is the last row
    # This keeps the matrix positive definite, see `matrix_compute.ridge_filter`.
    matrices[:, -1] = 2 * matrices[:, -1] + float(weight * (g0 @ g0) + 1)
    factors = xp.linalg.cholesky(matrices.reshape(-1, side, side))
    g = xp.empty((len(packed), side - 1))
    for n in range(len(packed)):
        g[n] = card.solve_triangular(factors[n, :-1, :-1], factors[n, -1, :-1], trans="T",
                                     lower=True, check_finite=False)
    g = card.to_host(g)
    if not np.isfinite(g).all():  # CuPy's cholesky raises no error
        raise np.linalg.LinAlgError("matrix is not positive definite")
    return g


# ----------------------------------------------------------------------------------------- applying

def filter_voxels(card, lr, voxels, bucket, h, filter_len):
    """Do the same as `published.apply_filters.filter_voxels` on the card, bucket by bucket.

    If the card has too little memory, fewer voxels are filtered at a time.
    """
    order, ends = bucket_order(bucket, len(h))
    voxels, tile = voxels[order], TILE
    with card.use():
        while (sr := if_it_fits(_filter_voxels, card, lr, voxels, ends, h, filter_len,
                                tile)) is None:
            tile //= 2
            if tile < LEAST_BLOCK:
                raise UserError(TOO_FULL)
            card.release()
    return sr


def _filter_voxels(card, lr, voxels, ends, h, filter_len, tile):
    xp = card.xp
    flat, offsets = xp.asarray(lr.reshape(-1)), xp.asarray(patch_offsets(lr.shape, filter_len))
    voxels, h, sr = xp.asarray(voxels.astype(index_type(lr))), xp.asarray(h), flat.copy()
    for b in np.flatnonzero(np.diff(ends)).tolist():
        for start in range(ends[b], ends[b + 1], tile):
            at = voxels[start:min(start + tile, ends[b + 1])]
            sr[at] = xp.clip(xp.take(flat, at[:, None] + offsets) @ h[b], 0, 1)
    return card.to_host(sr).reshape(lr.shape)
