"""The threads of a session: how many it should use on this machine, and the cores that they are bound to."""

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


def bound_cores(threads: int) -> str | None:
    """Return the cores that ONNX Runtime should bind the threads of a session to, as it writes them; None for no cores.

    ONNX Runtime binds threads if it chooses their number itself, and not if it is told the number. The caller of a
    session does not sleep while it waits for the threads that it has woken. Linux may wake one of them on the core of
    the caller although another core is idle. Then both wait until Linux moves one of them, which takes longer than many
    calls. So as many threads as the process has cores are bound here, too, one to each core, and the first core is left
    to the caller. Fewer threads are not bound: nothing tells which cores other threads and containers leave idle.

    Args:
        threads: Number of threads, with the caller.

    Source: ONNX Runtime, `session.intra_op_thread_affinities`: one entry for each thread except the caller, separated
    by semicolons; the first core is 1.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return ";".join(str(core + 1) for core in cores[1:]) if 1 < threads == len(cores) else None


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
