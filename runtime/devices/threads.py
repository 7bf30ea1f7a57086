"""The number of threads that a session should use on this machine."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

from ..arrays.cgroups import limit_files


def thread_limit(root: Path = Path("/")) -> int | None:
    """Return how many threads to use if this process may not use all cores of the machine, or else None.

    ONNX Runtime starts one thread per core of the machine. Under a CPU quota, as a container or a systemd service may
    have, the kernel would suspend all of them together for most of the time.

    Args:
        root: Root of the file system, in which `proc` and the control groups are looked for.
    """
    cores = os.cpu_count() or 1
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores)
    allowed = min((allowed, *_quotas(root)))
    return None if allowed >= cores else max(1, math.ceil(allowed))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas, in cores, of the control groups that this process is in.

    Source: Linux, cgroup v2, `cpu.max` ("max 100000", or the quota and the period in microseconds); cgroup v1,
    `cpu.cfs_quota_us` and `cpu.cfs_period_us`.
    """
    for files in limit_files(root, "cpu", "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"):
        with contextlib.suppress(OSError, ValueError, ArithmeticError):  # no quota, or no such file
            quota, period = (int(word) for file in files for word in file.read_text().split())
            if quota > 0 and period > 0:
                yield quota / period
