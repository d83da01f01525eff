"""Fine-tune filters on a scan, with training examples that are made from the scan itself.

The examples have the weighting, the noise and the anatomy of the scan. The error of the project's
filters on these examples corrects the filters; a ridge limits the correction. So a FLAIR scan gets
filters that learned from T1-weighted volumes and from the scan itself.
"""
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from matrix_compute import Gram, Stage, sum_rows
from octahedral.ridge import corrected_filters
from octahedral.stages import stage_samples, tap_count
from restoring.own_examples import Scan, coarser_examples, own_example, profile_of_slices

THICK_RIDGE, COARSER_RIDGE = 5e5, 3e4  # samples: weight of the pull to the uncorrected filters
THICK_RATE = 3  # one voxel in this many of an example from thick slices is learned from
TRUST = 0.5  # share of a correction that is applied: 3/4 of its gain for 1/4 of its risk
LEAST_SAMPLES = 50_000


class Adapted(NamedTuple):
    """Filters after fine-tuning on one scan."""

    stages: list  # of Stage
    # Slice profile of thick slices; None for other scans, or if nothing was learned.
    profile: str | None
    why_not: str  # reason if nothing was learned from the scan, otherwise empty


def wants_adapting(request, method):
    """True if filters are to be fine-tuned: by --adapt or, by default, for thick slices."""
    return method.for_scans and (is_thick(method) if request.adapt is None else request.adapt)


def is_thick(method):
    """True for filters for thick slices of scans: one axis is refined."""
    return method.for_scans and method.refines_one_axis


def adapt_to_scan(low, stages, method, voxel_size=None, inside=None, profiles=()):
    """Correct filters by their error on examples that are made from a scan.

    Parameters
    ----------
    low : ndarray of float32, shape (x, y, z)
        The background is 0.
    stages : list of Stage
    method : Method
        Method of the filters.
    voxel_size : sequence of three float, optional
        Voxel size of `low` in mm. By default it is 1 mm, and for thick slices in-plane voxels are
        as small as the new slices.
    inside : ndarray of bool, shape (x, y, z), optional
        Brain, or bright part, of a whole head, for estimates. Not used for thick slices.
    profiles : sequence of three str, optional
        Slice profile of each axis, if known; by default it is estimated.

    Returns
    -------
    Adapted

    Examples
    --------
    >>> import numpy as np
    >>> from disk.filters import load_filters
    >>> from filter_constant import Request
    >>> filters = load_filters(Request.of(preset="scan", factor=(1, 1, 4)))
    >>> low = np.random.default_rng(0).random((12, 12, 6), np.float32)
    >>> adapt_to_scan(low, filters.stages, filters.method).why_not
    'its plane holds too few voxels to learn from'
    """
    refined = [axis for axis in range(3) if method.factor[axis] > 1]
    if not method.for_scans:
        return Adapted(stages, None, "the filters are not for scans")
    if len(refined) > 1:
        if not (reader := stages[0].classes.reader).any():
            return Adapted(stages, None, "the filters do not estimate the blur of scans")
        voxel = 1.0 if voxel_size is None else float(np.cbrt(np.prod(voxel_size)))
        examples = coarser_examples(low, reader, method, inside, profiles, voxel)
        rate, profile, ridge, source = 1, None, COARSER_RIDGE, "it"
    else:
        scan = Scan.of(low, method, refined[0], voxel_size)
        if not scan.fine_axes:
            return Adapted(stages, None, "its plane is coarser than the new slices")
        profile = profiles[refined[0]] if len(profiles) else profile_of_slices(scan)
        rate, ridge, source = THICK_RATE, THICK_RIDGE, "its plane"
        examples = [example for axis in scan.axes
                    if (example := own_example(scan, axis, profile, method)) is not None]
    voxels = sum(int(example.training_mask.sum()) for example in examples)
    if voxels < LEAST_SAMPLES * rate:
        return Adapted(stages, None, f"{source} holds too few voxels to learn from")
    corrected, method = [], replace(method, sample_rate=rate)
    for number, (tree, weights) in enumerate(stages):
        gram = Gram(tree.leaves, tap_count(number, method))
        for place, example in enumerate(examples):
            samples = stage_samples(example, corrected, tree, method, f"own {place}",
                                    missed_by=weights)
            sum_rows(gram, samples.ends, samples.fill)
        corrected.append(Stage(tree, corrected_filters(gram, tree, weights, ridge, TRUST)))
    return Adapted(corrected, profile, "")
