"""How many threads a session may take on this machine."""

import contextlib
import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def thread_limit(cgroup: Path = CGROUP) -> int | None:
    """Return how many threads to take where this process may not use all cores of the machine, else None.

    ONNX Runtime takes one thread per core of the machine. In a container with a quota they would be stopped, all at
    once, for most of the time.

    Source: Linux, cgroup-v2 `cpu.max` ("max 100000", or the quota and the period in microseconds), and before
    `cpu/cpu.cfs_quota_us` and `cpu/cpu.cfs_period_us`.
    """
    cores = os.cpu_count() or 1
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores)
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (float(word) for file in files for word in (cgroup / file).read_text().split())
            if quota > 0:
                allowed = min(allowed, quota / period)
    return None if allowed >= cores else max(1, math.ceil(allowed))
