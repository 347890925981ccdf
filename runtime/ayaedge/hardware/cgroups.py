"""What Linux's control groups leave to this process: processors' time and memory, in both versions, parents included.

Containers and services are limited by them, and neither the system's counts nor an affinity tells of it. Where there
are no such groups, or they cannot be read, there is no limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

SYSTEM = Path("/")
"""Where /proc and the mount points are looked for."""
_UNIFIED = ""
"""The controllers of version 2's only hierarchy in /proc/self/cgroup."""


@dataclass(frozen=True)
class MemoryLimit:
    """What one group may hold, in bytes."""

    total: int
    available: int
    """The rest, with what the kernel gives back at once."""


@dataclass(frozen=True)
class _Mount:
    root: str
    """The group that appears at the mount point."""
    point: Path
    path: str
    """The process's group."""

    @property
    def inside(self) -> PurePosixPath | None:
        """The group below the mount point; None if it lies elsewhere."""
        try:
            below = PurePosixPath(self.path).relative_to(self.root)
        except ValueError:
            return None
        return None if ".." in below.parts else below


def whole_processors(root: Path = SYSTEM) -> int | None:
    """The least quota of the process's groups, rounded down but at least 1; None without a quota."""
    quotas = [quota for group in _groups("cpu", root) if (quota := _quota(group)) is not None]
    return max(1, min(quotas)) if quotas else None


def memory_limits(root: Path = SYSTEM) -> list[MemoryLimit]:
    """Of each of the process's groups that has one."""
    return [limit for group in _groups("memory", root) if (limit := _memory(group))]


def _quota(group: Path) -> int | None:
    """Whole processors: quota / period."""
    quota, period = ([*_read(group / "cpu.max").split(), "", ""])[:2]  # version 2
    if not quota:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    if not (quota.isdecimal() and period.isdecimal() and int(period)):  # `max`, or -1
        return None
    return int(quota) // int(period)


def _memory(group: Path) -> MemoryLimit | None:
    """The limit with what is used of it.

    The page cache of files counts as available, as in the kernel's MemAvailable: mapped weights are such pages, clean
    ones, which are dropped and read again. Above `memory.high` a group is not ended but slowed down until it is of no
    use, so that counts as a limit as well.
    """
    stat: dict[str, str] = dict(re.findall(r"^(\w+) (\d+)$", _read(group / "memory.stat"), re.MULTILINE))
    limits = [_read(group / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    limits.append(stat.get("hierarchical_memory_limit", ""))  # version 1: of parents, visible or not
    known = [int(limit) for limit in limits if limit.isdecimal()]
    if not known:
        return None
    used = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
    cached = sum(
        int(stat.get(f"total_{name}", stat.get(name, "0")))  # version 1 has sums over children beside
        for name in ("inactive_file", "active_file", "slab_reclaimable")
    )
    taken = max(0, int(used) - cached) if used.isdecimal() else 0
    return MemoryLimit(min(known), max(0, min(known) - taken))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Directories of the process's group and its parents, as far as they are mounted.

    A group that lies outside all mounts is a container's that sees its own files at the mount point.
    """
    mounts = list(_mounts(controller, root))
    if all(mount.inside is None for mount in mounts):
        yield from (mount.point for mount in mounts)
    for mount in mounts:
        if mount.inside is not None:
            yield from (mount.point / level for level in (mount.inside, *mount.inside.parents))


def _mounts(controller: str, root: Path) -> Iterator[_Mount]:
    """Where the hierarchies are mounted that may have a controller: its own of version 1, and that of version 2."""
    paths = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, path = ([*line.split(":", 2), "", ""])[:3]
        paths.update(dict.fromkeys(names.split(","), path))
    for line in _read(root / "proc/self/mountinfo").splitlines():
        place, _, kind = line.partition(" - ")
        fields, (kind, *_, options) = place.split(), kind.split() or ("", "")
        name = {"cgroup": controller, "cgroup2": _UNIFIED}.get(kind)
        if name is None or name not in paths or len(fields) < 5 or name not in ["", *options.split(",")]:
            continue
        point = root / _unescaped(fields[4]).lstrip("/")
        yield _Mount(_unescaped(fields[3]), point, paths[name])


def _unescaped(path: str) -> str:
    r"""A path of mountinfo, in which blanks are written as \040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _read(path: Path) -> str:
    """A file's text without blanks around it; nothing if it cannot be read."""
    try:
        return path.read_text("utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""
