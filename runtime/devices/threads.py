"""The number of threads that a session should use on this machine."""

import contextlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

UNIFIED, CPU_CONTROLLER = "cgroup2", "cpu"


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

    A group may have less than the group around it, or more, of which it gets the part that is left there. So all of
    them count, from the group of the process up to the root.

    Source: Linux, cgroup v2, `cpu.max` ("max 100000", or the quota and the period in microseconds); cgroup v1,
    `cpu.cfs_quota_us` and `cpu.cfs_period_us`; cgroups(7), `/proc/self/cgroup`; proc(5), `/proc/self/mountinfo`.
    """
    for group, mount, version in _groups(root):
        files = ["cpu.max"] if version == UNIFIED else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError, ArithmeticError):  # no quota, or no such file
                quota, period = (int(word) for file in files for word in (folder / file).read_text().split())
                if quota > 0 and period > 0:
                    yield quota / period
            if folder == mount:
                break


def _groups(root: Path) -> Iterator[tuple[Path, Path, str]]:
    """Yield the folders of the groups of this process that limit the CPU: the group, where it is mounted, its version.

    The mount may show only a part of the tree, from the mount's root down. In a container that is the container's own
    group, which then is the topmost that can be seen.
    """
    own = {}
    for line in _lines(root / "proc/self/cgroup"):  # such as "0::/user.slice" and "4:cpu,cpuacct:/docker/1234"
        parts = line.split(":", 2)
        if len(parts) == 3 and (not parts[1] or CPU_CONTROLLER in parts[1].split(",")):
            own["cgroup" if parts[1] else UNIFIED] = PurePosixPath(parts[2])
    for line in _lines(root / "proc/self/mountinfo"):  # ID PARENT DEVICE ROOT PLACE OPTIONS ... - TYPE SOURCE OPTIONS
        before, _, after = line.partition(" - ")
        fields, more = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(more) < 3 or more[0] not in own:
            continue
        if more[0] != UNIFIED and CPU_CONTROLLER not in more[2].split(","):
            continue
        mount = root / _unescape(fields[4]).lstrip("/")
        group, top = own[more[0]], PurePosixPath(_unescape(fields[3]))
        inside = group.relative_to(top) if group.is_relative_to(top) and ".." not in group.parts else PurePosixPath()
        yield mount / inside, mount, more[0]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:  # not Linux, or it may not be read
        return []


def _unescape(field: str) -> str:
    """Return a field of mountinfo, in which a space is a backslash with the number 040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
