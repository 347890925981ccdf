"""Limits of control groups, read from trees of files as container engines and systemd make them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ayaedge.hardware.cgroups import MemoryLimit, memory_limits, whole_processors
from ayaedge.hardware.machine import memory, usable_threads

GB = 10**9
V2 = "30 23 0:26 {root} {point} ro,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate"
V1 = "35 31 0:32 {root} {point} ro,nosuid - cgroup cgroup rw,{controllers}"
NONE = "9223372036854771712"


@dataclass(frozen=True)
class System:
    """A root directory with /proc and the mounted groups of a process."""

    root: Path

    def process(self, groups: str, *mounts: str) -> System:
        """Write what the kernel says of the process."""
        self.write("proc/self/cgroup", groups)
        self.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + "\n".join(mounts) + "\n")
        return self

    def group(self, path: str, **files: object) -> System:
        """Write a group's files; `__` stands for the point in their names."""
        for name, text in files.items():
            self.write(f"{path}/{name.replace('__', '.')}", f"{text}\n")
        return self

    def write(self, path: str, text: str) -> None:
        """Write a file with the directories above it."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def v2(root: str = "/", point: str = "/sys/fs/cgroup") -> str:
    return V2.format(root=root, point=point)


def v1(controllers: str, root: str = "/") -> str:
    return V1.format(root=root, point=f"/sys/fs/cgroup/{controllers}", controllers=controllers)


def stat(**values: int) -> str:
    return "\n".join(f"{name} {value}" for name, value in values.items())


def test_a_container_of_version_2_sees_its_own_group_as_the_root(system: System) -> None:
    system.process("0::/\n", v2()).group(
        "sys/fs/cgroup", cpu__max="250000 100000", memory__max=8 * GB, memory__high="max", memory__current=3 * GB,
        memory__stat=stat(anon=GB, active_file=GB, inactive_file=GB // 2, slab_reclaimable=GB // 2, shmem=GB),
    )  # fmt: skip
    assert whole_processors(system.root) == 2
    assert memory_limits(system.root) == [MemoryLimit(8 * GB, 7 * GB)]


def test_the_slices_of_systemd_limit_what_is_in_them(system: System) -> None:
    """No limit in the service's own group, one above it, and a smaller one at the top."""
    system.process("0::/work.slice/work-models.slice/app.service\n", v2())
    top = "sys/fs/cgroup/work.slice"
    system.group(
        top, cpu__max="300000 100000", memory__max="max", memory__high=6 * GB, memory__current=5 * GB
    )
    system.group(f"{top}/work-models.slice", cpu__max="50000 10000", memory__max=9 * GB, memory__current=GB)
    system.group(f"{top}/work-models.slice/app.service", cpu__max="max 100000", memory__max="max")
    assert whole_processors(system.root) == 3
    assert memory_limits(system.root) == [MemoryLimit(9 * GB, 8 * GB), MemoryLimit(6 * GB, GB)]


def test_a_pod_of_version_1_is_seen_through_the_group_that_is_mounted(system: System) -> None:
    """/proc says the path in the host, of which only the container's own part is mounted."""
    pod = "/kubepods/burstable/pod4a1c/8f3e"
    system.process(
        f"4:memory:{pod}\n3:cpu,cpuacct:{pod}\n1:name=systemd:{pod}\n",
        v1("cpu,cpuacct", pod), v1("memory", pod), v1("devices", pod),
    )  # fmt: skip
    system.group("sys/fs/cgroup/cpu,cpuacct", cpu__cfs_quota_us=400000, cpu__cfs_period_us=100000)
    system.group(
        "sys/fs/cgroup/memory", memory__limit_in_bytes=4 * GB, memory__usage_in_bytes=3 * GB,
        memory__stat=stat(
            inactive_file=1, active_file=1, hierarchical_memory_limit=4 * GB, total_inactive_file=GB,
            total_active_file=GB,
        ),
    )  # fmt: skip
    assert whole_processors(system.root) == 4
    assert memory_limits(system.root) == [MemoryLimit(4 * GB, 3 * GB)]


def test_a_parent_that_is_not_mounted_still_counts_in_version_1(system: System) -> None:
    system.process("4:memory:/docker/8f3e\n", v1("memory", "/docker/8f3e")).group(
        "sys/fs/cgroup/memory", memory__limit_in_bytes=NONE, memory__usage_in_bytes=GB,
        memory__stat=stat(hierarchical_memory_limit=2 * GB, total_inactive_file=0, total_active_file=0),
    )  # fmt: skip
    assert memory_limits(system.root) == [MemoryLimit(2 * GB, GB)]


def test_a_group_outside_of_all_mounts_is_looked_for_at_the_mount_point(system: System) -> None:
    """A container whose namespace begins below the group that it was moved to, and a deleted group."""
    for path in ("/../../system.slice/docker-8f3e.scope", "/elsewhere/8f3e"):
        system.process(f"0::{path}\n", v2("/" if ".." in path else "/docker"))
        system.group("sys/fs/cgroup", cpu__max="100000 100000")
        assert whole_processors(system.root) == 1
    system.process("0::/gone/8f3e (deleted)\n", v2())
    assert whole_processors(system.root) == 1


def test_the_groups_of_both_versions_are_read_where_both_are_mounted(system: System) -> None:
    """As systemd's hybrid mode has it: an empty version 2 beside the controllers of version 1."""
    system.process(
        "6:memory:/lxc/web\n5:cpu:/lxc/web\n0::/lxc/web/init.scope\n",
        v2(point="/sys/fs/cgroup/unified"), v1("cpu"), v1("memory"),
    )  # fmt: skip
    system.group("sys/fs/cgroup/unified/lxc/web/init.scope", cgroup__procs="1")
    system.group("sys/fs/cgroup/cpu/lxc", cpu__cfs_quota_us=200000, cpu__cfs_period_us=100000)
    system.group("sys/fs/cgroup/cpu/lxc/web", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    system.group("sys/fs/cgroup/memory/lxc/web", memory__limit_in_bytes=GB, memory__usage_in_bytes=GB // 4)
    assert whole_processors(system.root) == 2
    assert memory_limits(system.root) == [MemoryLimit(GB, GB - GB // 4)]


def test_a_mount_point_with_a_blank_is_found(system: System) -> None:
    system.process("0::/\n", v2(point=r"/run/my\040groups")).group("run/my groups", cpu__max="100000 50000")
    assert whole_processors(system.root) == 2


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("10000 100000", 1),
        ("99999 100000", 1),
        ("199999 100000", 1),
        ("200000 100000", 2),
        ("max 100000", None),
    ],
)
def test_a_quota_is_rounded_down_but_leaves_one_thread(
    system: System, quota: str, expected: int | None
) -> None:
    system.process("0::/\n", v2()).group("sys/fs/cgroup", cpu__max=quota)
    assert whole_processors(system.root) == expected


@pytest.mark.parametrize("text", ["", "nonsense", "100000", "100000 0", "0 0", "-1 x"])
def test_a_file_that_says_nothing_is_no_limit(system: System, text: str) -> None:
    system.process("0::/\n", v2()).group(
        "sys/fs/cgroup", cpu__max=text, memory__max=text.replace("100000", "x")
    )
    assert whole_processors(system.root) is None
    assert memory_limits(system.root) == []


def test_without_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert whole_processors(tmp_path) is None
    assert memory_limits(tmp_path) == []
    assert usable_threads(tmp_path) == len(psutil.Process().cpu_affinity())
    assert memory(tmp_path).total == psutil.virtual_memory().total


def test_the_smaller_of_the_system_and_the_group_counts(system: System) -> None:
    system.process("0::/\n", v2())
    system.group("sys/fs/cgroup", cpu__max="100000 100000", memory__max=2**29, memory__current=2**28)
    assert usable_threads(system.root) == 1
    assert (memory(system.root).total, memory(system.root).available) == (2**29, 2**28)
    system.group("sys/fs/cgroup", cpu__max="900000000 100000", memory__max=10**18, memory__current=0)
    assert usable_threads(system.root) == usable_threads(Path("/nothing"))
    assert memory(system.root).total == psutil.virtual_memory().total


def test_a_group_that_holds_more_than_its_limit_leaves_nothing(system: System) -> None:
    system.process("0::/\n", v2()).group("sys/fs/cgroup", memory__high=GB, memory__current=2 * GB)
    assert memory_limits(system.root) == [MemoryLimit(GB, 0)]


@pytest.fixture
def real_groups() -> Iterator[list[Path]]:
    """Empty groups of this system for its own processes: one processor's quota, and half a GB."""
    mounted, name = Path("/sys/fs/cgroup"), f"ayaedge-test-{os.getpid()}"
    parents = [mounted] if (mounted / "cgroup.procs").is_file() else [mounted / "cpu", mounted / "memory"]
    made = [parent / name for parent in parents]
    limits = {
        "cpu.max": "100000 100000",
        "memory.max": 2**29,
        "cpu.cfs_quota_us": 100000,
        "memory.limit_in_bytes": 2**29,
    }
    try:
        for group in made:
            group.mkdir()
        found = [group / file for group in made for file in limits if (group / file).is_file()]
        if len(found) < 2:
            pytest.skip("control groups here do not limit processors and memory")
        for file in found:
            file.write_text(str(limits[file.name]))
        yield made
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    finally:
        for group in made:
            with suppress(OSError):
                group.rmdir()


def test_a_real_group_limits_a_real_process(real_groups: list[Path]) -> None:
    program = (
        "import pathlib, sys\n"
        "for group in sys.argv[1:]: pathlib.Path(group, 'cgroup.procs').write_text('0')\n"
        "from ayaedge.hardware.machine import memory, usable_threads\n"
        "print(usable_threads(), memory().total, memory().available)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, real_groups)], capture_output=True, text=True, check=True
    )
    threads, total, available = map(int, done.stdout.split())
    assert threads == 1
    assert total == 2**29
    assert 2**28 < available < 2**29
