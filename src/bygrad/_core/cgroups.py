"""What a container, a job or a service leaves this process of its machine. Nothing here imports JAX."""

import math
from collections.abc import Iterator
from pathlib import Path

_TOP, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_bytes() -> Iterator[int]:
    """Yield what the memory limits of control groups leave. Files in the cache count as used, but make room when asked.

    Each group lies in others with limits of their own.
    """
    for folder, version in _groups("memory"):
        limit, used, cached = {
            1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            2: ("memory.max", "memory.current", "inactive_file"),
        }[version]
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            most, held = (int((folder / name).read_text()) for name in (limit, used))
            yield most - held + int(stat[cached])
        except (OSError, ValueError, KeyError):  # no such group, or no limit
            continue


def cores() -> Iterator[int]:
    """Yield how many cores the quotas of control groups allow, rounded up: `docker --cpus=2`, say."""
    for folder, version in _groups("cpu"):
        names = {1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), 2: ("cpu.max",)}[version]
        try:
            quota, period = (int(word) for name in names for word in (folder / name).read_text().split())
        except (OSError, ValueError):  # no such group, or no quota ("max")
            continue
        if quota > 0 and period > 0:  # of version 1, -1 is none
            yield math.ceil(quota / period)


def _groups(controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the folders of the groups of this process for a controller, with the version of their files."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if not kinds:
            top, version = _TOP, 2
        elif controller in kinds.split(","):
            top, version = _TOP / kinds, 1
            top = top if top.is_dir() else _TOP / controller
        else:
            continue
        # In a container, the path may be the machine's, and only the top be there.
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            yield folder, version
