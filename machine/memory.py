"""Available memory, and the number of passes of a training whose sums do not fit into it."""
from typing import NamedTuple

import psutil

from machine.cgroups import group_memory
from machine.errors import UserError
from machine.threads import spans

GB, MB = 1e9, 1e6
CODE_BYTES = 0.15 * GB  # memory of compiled code
VOXEL_BYTES = 64  # work memory per voxel of the largest volume; 43 to 52 were measured in training
SERIES_BYTES = 16  # memory per voxel to load a file for upscaling and keep it
SPARE = 0.1  # share of the free memory that is not used


class TooLittle(UserError):
    """An error for a training that needs more memory than there is."""


class Plan(NamedTuple):
    """The buckets that each pass over the volumes sums, and the memory for them."""

    passes: list  # of range, ascending; together they hold all buckets
    needed: float  # bytes
    budget: float  # bytes that may be used

    def __str__(self):
        how = "one pass over the volumes"
        if len(self.passes) > 1:
            most = max(map(len, self.passes))
            how = f"{len(self.passes)} passes over the volumes, {most} buckets at a time"
        return f"Memory: up to {self.needed / GB:.1f} GB of {self.budget / GB:.1f} GB: {how}"


def free_memory():
    """Bytes that this process may still take: free memory, or less if control groups limit it."""
    return min(psutil.virtual_memory().available, group_memory())


def memory_budget(max_memory):
    """Bytes that a training may add to the memory of the process.

    Parameters
    ----------
    max_memory : float or None
        Total memory in GB that the process may take; None: the share 1 - SPARE of free memory.
    """
    if max_memory is not None:
        return max_memory * GB - psutil.Process().memory_info().rss
    return free_memory() * (1 - SPARE)


def row_bytes(taps):
    """Bytes of one bucket's sums: half of the symmetric matrix of [patch, target], in float64."""
    return (taps + 1) * (taps + 2) // 2 * 8


def plan_passes(buckets, row, work, budget, step):
    """Divide the sums of all buckets into passes that fit into memory.

    Parameters
    ----------
    buckets : int
    row : float
        Bytes of one bucket's sums.
    work : float
        Bytes needed besides the sums.
    budget : float
        Bytes that may be used.
    step : int
        Buckets in one file of the checkpoint; a pass never splits a file.

    Returns
    -------
    Plan
        The smallest number of passes that fits; the passes have about equal sizes. The filters do
        not depend on the plan.

    Raises
    ------
    TooLittle
        If not even one `step` of buckets fits.
    """
    groups, least = -(-buckets // step), min(step, buckets) * row
    at_once = int((budget - work) // least)
    if at_once < 1:
        raise too_little(work + least, budget,
                         "take smaller volumes, a smaller --filter_len or a larger --max_memory")
    ranges = [range(first * step, min(last * step, buckets))
              for first, last in spans(groups, at_once)]
    return Plan(ranges, work + max(map(len, ranges)) * row, budget)


def too_little(needed, budget, remedy):
    """The error of a training that does not fit into memory."""
    return TooLittle(f"training needs at least {needed / GB:.1f} GB of memory, "
                     f"{max(budget, 0) / GB:.1f} GB may be used; close other programs, or {remedy}")
