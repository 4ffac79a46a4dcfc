"""How much memory there is."""

import math

import jax
import psutil

from . import cgroups


def bytes_available(devices: int = 1) -> int:
    """Return the memory that is free for a program on each of so many local devices.

    That is an accelerator's own memory; on a CPU, an equal part of what this process may use.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return min([psutil.virtual_memory().available, *cgroups.free_bytes()]) // devices


def in_words(count: int) -> str:
    """Write bytes as a person reads them: `1.5 GiB`."""
    power = min(int(math.log2(max(count, 1)) / 10), 4)
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
