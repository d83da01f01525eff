"""Restore a volume with learned filters, whichever feature space they were learned in."""
from functools import partial

import numpy as np

from filter_func import census_blend
from get_lar import make_fine
from gpu_compute import filter_voxels
from matrix_compute import Filters, apply_filters
from stages import restore_stages


def restore(pair, filters, settings, card=None):
    """Restore the LR volume of a pair, or of a truly low-resolution volume on the finer grid.

    Parameters
    ----------
    pair : get_lar.Pair or get_lar.Fine
    filters : Filters or list of Stage
    settings : Settings
        As the filters were learned.
    card : device.Card, optional
        Where to apply filters of the spherical space; by default on the CPU.

    Returns
    -------
    sr : ndarray of float32, of the shape of ``pair.lr``, in [0, 1]
    """
    if isinstance(filters, Filters):
        sr = apply_filters(pair.lr, filters.h, filters.boundaries, settings, card and partial(filter_voxels, card))
    else:
        sr = restore_stages(pair, filters, settings)
    return sr if settings.blend_threshold is None else census_blend(pair.lr, sr, settings.blend_threshold)


def upscale(low, filters, settings, card=None):
    """Bring a truly low-resolution volume to the finer grid and restore it there.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
    filters : Filters or list of Stage
    settings : Settings
        As the filters were learned.
    card : device.Card, optional
        As for `restore`.

    Returns
    -------
    fine : ndarray of float32, shape (factor[0] * x, factor[1] * y, factor[2] * z)
        In the intensities of `low`. `get_lar.fine_to_low` says where its voxels lie.
    """
    fine = make_fine(low, settings)
    sr = restore(fine, filters, settings, card)
    inner = tuple(slice(settings.margin, side - settings.margin) for side in sr.shape)
    volume = np.zeros(fine.shape, np.float32)
    volume[fine.box] = sr[inner] * np.float32(fine.scale) + fine.above
    return volume
