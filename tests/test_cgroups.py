"""What control groups leave of memory: version 1 and 2, nested, with what can be dropped."""
import math

import pytest

from machine import memory
from machine.cgroups import group_memory

MB = 1 << 20
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")
MOUNT_V1 = "35 31 0:32 {top} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
MOUNT_CPU = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
MOUNT_V2 = "31 23 0:38 {top} /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate"


def system(root, mount, of_process):
    """A system with this mount, and this process in these groups."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "mountinfo").write_text(f"{MOUNT_CPU}\n{mount}\n")
    (root / "proc" / "self" / "cgroup").write_text(of_process + "\n")


def group(root, path, version, limit, used, cache=0):
    """A group with a limit in MB or "max", of which so much is used, so much of that for files."""
    place = root / path
    place.mkdir(parents=True, exist_ok=True)
    limit_file, used_file, line = version
    (place / limit_file).write_text(f"{limit if limit == 'max' else limit * MB}\n")
    (place / used_file).write_text(f"{used * MB}\n")
    (place / "memory.stat").write_text(
        f"anon {(used - cache) * MB}\nactive_file 0\n{line} {cache * MB}\n")


@pytest.mark.parametrize("version, mount, of_process, top", [
    (V2, MOUNT_V2, "0::/user.slice/job/step", "sys/fs/cgroup"),
    (V1, MOUNT_V1, "9:name=systemd:/\n4:memory:/user.slice/job/step\n1:cpu:/elsewhere",
     "sys/fs/cgroup/memory")], ids=["v2", "v1"])
def test_the_closest_limit_of_all_groups_above_counts(tmp_path, version, mount, of_process, top):
    system(tmp_path, mount.format(top="/"), of_process)
    group(tmp_path, f"{top}/user.slice/job/step", version, 900, 100)
    group(tmp_path, f"{top}/user.slice/job", version, 700, 500)
    group(tmp_path, f"{top}/user.slice", version, 5000, 100)
    group(tmp_path, f"{top}/user.slice/job/sibling", version, 10, 10)
    group(tmp_path, "sys/fs/cgroup/cpu/user.slice/job/step", version, 10, 10)  # not of memory
    assert group_memory(tmp_path) == 200 * MB
    group(tmp_path, f"{top}/user.slice/job", version, 700, 500, cache=450)
    assert group_memory(tmp_path) == 650 * MB
    group(tmp_path, f"{top}/user.slice", version, 100, 300)
    assert group_memory(tmp_path) == 0


@pytest.mark.parametrize("version, mount, of_process, top", [
    (V2, MOUNT_V2.format(top="/"), "0::/", "sys/fs/cgroup"),  # a namespace of its own
    (V2, MOUNT_V2.format(top="/"), "0::/../other", "sys/fs/cgroup"),
    (V2, MOUNT_V2.format(top="/docker/abc"), "0::/docker/abc", "sys/fs/cgroup"),
    (V1, MOUNT_V1.format(top="/docker/abc"), "4:cpu,memory:/docker/abc", "sys/fs/cgroup/memory"),
    (V1, MOUNT_V1.format(top="/docker/abc"), "4:memory:/process", "sys/fs/cgroup/memory")])
def test_a_container_sees_its_own_group_at_the_top(tmp_path, version, mount, of_process, top):
    system(tmp_path, mount, of_process)
    group(tmp_path, top, version, 800, 300, cache=200)
    group(tmp_path, "sys/fs/other", version, 10, 10)  # beside the mount: of no concern
    assert group_memory(tmp_path) == 700 * MB


def test_no_limit_and_no_groups_are_none(tmp_path):
    assert group_memory(tmp_path) == math.inf
    system(tmp_path, MOUNT_V2.format(top="/"), "0::/a")
    assert group_memory(tmp_path) == math.inf
    group(tmp_path, "sys/fs/cgroup/a", V2, "max", 300)
    assert group_memory(tmp_path) == math.inf


def test_free_memory_is_the_lesser_of_the_systems_and_the_groups(monkeypatch):
    everything = memory.psutil.virtual_memory().available
    monkeypatch.setattr(memory, "group_memory", lambda: 5 * MB)
    assert memory.free_memory() == 5 * MB
    monkeypatch.setattr(memory, "group_memory", lambda: math.inf)
    assert memory.free_memory() == pytest.approx(everything, rel=0.5)


def test_a_mount_with_a_space_and_a_letter_beyond_ascii_is_found(tmp_path):
    mount = MOUNT_V2.format(top="/").replace("/sys/fs/cgroup", r"/sys/é\040x")
    system(tmp_path, mount, "0::/job")
    group(tmp_path, "sys/é x/job", V2, 900, 100)
    assert group_memory(tmp_path) == 800 * MB
