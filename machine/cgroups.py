"""Memory still available under the limits of Linux control groups (containers, SLURM, systemd).

A process belongs to one group of each hierarchy. The limits of all parent groups apply too. There
are two versions of control groups; version 1 has a separate hierarchy for memory.
"""
import contextlib
import math
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Version(NamedTuple):
    """Names of the files that describe a group, in one version of control groups."""

    limit: str
    used: str
    cache: str  # line of memory.stat: cached content of files, which the system can drop


VERSIONS = {
    "cgroup2": Version("memory.max", "memory.current", "inactive_file"),
    "cgroup": Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def group_memory(root="/"):
    """Bytes that this process may still use within its control groups.

    The system's cache of files counts as free, because the system drops it on demand.

    Parameters
    ----------
    root : path-like, optional
        Folder that holds proc/self and the mounted groups.

    Returns
    -------
    float
        Infinite if there is no limit, or no control group.
    """
    free = [_free_in(group, version) for group, version in _groups(Path(root))]
    return max(min(free, default=math.inf), 0)


def _free_in(group, version):
    """Bytes left under the limit of one group."""
    try:
        limit = int(Path(group, version.limit).read_text())
        used = int(Path(group, version.used).read_text())
    except (OSError, ValueError):
        return math.inf  # no file, as in the topmost group, or "max": no limit
    with contextlib.suppress(OSError, ValueError):
        for line in Path(group, "memory.stat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == version.cache:
                used -= int(count)
    return limit - used


def _groups(root):
    """The mounted groups of this process, and all their parent groups: (folder, Version)."""
    try:
        of_process = Path(root, "proc/self/cgroup").read_text().splitlines()
        mounts = Path(root, "proc/self/mountinfo").read_text().splitlines()
    except (OSError, ValueError):
        return  # not Linux
    paths = {}
    for line in of_process:  # such as 4:memory:/slurm/job_1 or, in version 2, 0::/user.slice
        number, controllers, path = line.split(":", 2)
        if number == "0":
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, options = (after.split(" ") + ["", ""])[:3]
        if kind not in paths or kind == "cgroup" and "memory" not in options.split(","):
            continue
        top, place = (_unescaped(part) for part in before.split(" ")[3:5])
        below = PurePosixPath()
        # A container may mount its own group only, and the path may lie outside this mount.
        with contextlib.suppress(ValueError):
            below = PurePosixPath(paths[kind]).relative_to(top)
        if ".." in below.parts:
            below = PurePosixPath()
        for group in (below, *below.parents):
            yield Path(root, place.lstrip("/"), group), VERSIONS[kind]


def _unescaped(path):
    """A path from mountinfo, which writes a space as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)
