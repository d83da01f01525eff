"""How much memory there is, and how a training is laid out to fit: all buckets at once, or in several passes."""
from pathlib import Path
from typing import NamedTuple

import psutil

from filter_constant import UserError
from threads import thread_count

GB = 1e9
VOXEL_BYTES = 64  # of work per voxel of the largest volume while its samples are drawn: 43 to 52 were measured
STAGE_VOXEL_BYTES = 40  # the same where learning goes in stages
TREE_BYTES = 0.5 * GB  # what a tree is grown from
SPARE = 0.1  # of the free memory is left alone
CGROUPS = (("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
           ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"))


class Plan(NamedTuple):
    """Which buckets each pass over the volumes sums, and the bytes of memory that this takes."""

    passes: list  # of range, ascending, together all buckets
    needed: float
    budget: float


def free_memory():
    """Bytes that this process may still take: what the system has free, or less where a container has a limit."""
    free = psutil.virtual_memory().available
    for limit, used in CGROUPS:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue  # no such group, or "max": no limit
    return max(free, 0)


def memory_budget(max_memory):
    """Bytes that a training may add to what the process holds: --max_memory GB in all, else what is free less a spare."""
    if max_memory:
        return max_memory * GB - psutil.Process().memory_info().rss
    return free_memory() * (1 - SPARE)


def row_bytes(taps):
    """Size of one bucket's sums: half of the symmetric matrix of [patch, target], in float64."""
    return (taps + 1) * (taps + 2) // 2 * 8


def work_bytes(settings, voxels):
    """Memory beside the sums: the work on a volume of so many voxels, or solving, whichever is more."""
    threads, side = thread_count(), settings.taps + 1
    summing = voxels * VOXEL_BYTES * (1.5 if settings.sharpen else 1) + threads * (1024 + side) * side * 4
    solving = (3 * threads + 3) * side**2 * 8 + 3 * settings.buckets * settings.taps * 8
    return max(summing, solving) + 0.15 * GB  # compiled code


def plan_passes(settings, voxels, budget, step):
    """Lay out the sums of all buckets in memory.

    Parameters
    ----------
    settings : Settings
    voxels : int
        Of the largest volume.
    budget : float
        Bytes that may be taken.
    step : int
        Buckets that are kept together, in one file of the checkpoint.

    Returns
    -------
    Plan
        As few passes as fit, of about equal size. The filters do not depend on it.

    Raises
    ------
    UserError
        If not even one `step` of buckets fits.
    """
    row, work = row_bytes(settings.taps), work_bytes(settings, voxels)
    groups = -(-settings.buckets // step)
    at_once = int((budget - work) // (min(step, settings.buckets) * row))
    if at_once < 1:
        raise UserError(f"training needs at least {(work + min(step, settings.buckets) * row) / GB:.1f} GB of memory, "
                        f"{max(budget, 0) / GB:.1f} GB may be used; close other programs, or take smaller volumes, "
                        "a smaller --filter_len or a larger --max_memory")
    passes = -(-groups // at_once)
    cuts = [min(groups * n // passes * step, settings.buckets) for n in range(passes)] + [settings.buckets]
    ranges = [range(start, stop) for start, stop in zip(cuts[:-1], cuts[1:], strict=True)]
    return Plan(ranges, work + max(map(len, ranges)) * row, budget)


def plan_stages(settings, voxels, budget):
    """The memory that learning in stages takes: all classes at once, since their filters are small.

    Raises
    ------
    UserError
        If it is more than `budget` bytes.
    """
    sums = 4 * settings.leaves * row_bytes(settings.filter_len**3 // 2 + 81)  # of leaves, held-out voxels and all nodes
    needed = sums + voxels * STAGE_VOXEL_BYTES + TREE_BYTES + 0.15 * GB
    if needed > budget:
        raise UserError(f"training needs at least {needed / GB:.1f} GB of memory, {max(budget, 0) / GB:.1f} GB may be used; "
                        "close other programs, or take smaller volumes, fewer --leaves or a larger --max_memory")
    return Plan([], needed, budget)


def describe(plan):
    """The plan in one line."""
    count = max(len(plan.passes), 1)
    how = "one pass over the volumes" if count == 1 else (
        f"{count} passes over the volumes, {max(map(len, plan.passes))} buckets at a time")
    return f"Memory: up to {plan.needed / GB:.1f} GB of {plan.budget / GB:.1f} GB: {how}"
