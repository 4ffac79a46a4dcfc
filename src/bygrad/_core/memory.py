"""How much memory there is."""

import math
from collections.abc import Iterator
from pathlib import Path

import jax
import psutil

_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def bytes_available(devices: int = 1) -> int:
    """Return the memory that is free for a program on each of so many local devices.

    That is an accelerator's own memory; on a CPU, an equal part of what this process may use.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return min([psutil.virtual_memory().available, *_free_in_cgroups()]) // devices


def _free_in_cgroups() -> Iterator[int]:
    """Yield what the control groups of this process leave it: a container, a job or a service may hold less than its
    machine. Each lies in others with limits of their own. Files in the cache count as used, but make room when asked.
    """
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if not kinds:
            top, limit, used, cached = _CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in kinds.split(","):  # version 1
            top, limit, used = _CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        else:
            continue
        # In a container, the path may be the machine's, and only the top be there.
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            try:
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                most, held = (int((folder / name).read_text()) for name in (limit, used))
                yield most - held + int(stat[cached])
            except (OSError, ValueError, KeyError):  # no such group, or no limit
                continue


def in_words(count: int) -> str:
    """Write bytes as a person reads them: `1.5 GiB`."""
    power = min(int(math.log2(max(count, 1)) / 10), 4)
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
