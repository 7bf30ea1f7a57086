"""The number of threads that a session should use on this machine."""

import contextlib
import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def thread_limit(cgroup: Path = CGROUP) -> int | None:
    """Return how many threads to use if this process may not use all cores of the machine, or else None.

    ONNX Runtime starts one thread per core of the machine. In a container with a CPU quota the kernel would suspend all
    of them together for most of the time.

    Args:
        cgroup: Folder where the control groups are mounted.

    Source: Linux, cgroup v2, `cpu.max` ("max 100000", or the quota and the period in microseconds); cgroup v1,
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
