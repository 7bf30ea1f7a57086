"""A call may not ask for more memory than the machine has, or than the control groups of the process allow it."""

import numpy as np
import pytest

from runtime import InputError, SAESession
from runtime.arrays import limits
from runtime.arrays.limits import check_fits, memory_limit
from tests.support.samples import TINY

GIB = 2**30
UNIFIED = {
    "proc/self/cgroup": "0::/system.slice/x.service\n",
    "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
}
DIVIDED = {
    "proc/self/cgroup": "3:cpuset:/elsewhere\n2:memory:/docker/1234\n1:cpu,cpuacct:/docker/9\n",
    "proc/self/mountinfo": "32 31 0:29 /docker/1234 /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n",
}


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, float("inf")),
        ({"system.slice/x.service/memory.max": "max\n"}, float("inf")),
        ({"system.slice/x.service/memory.max": f"{GIB}\n"}, GIB),
        ({"system.slice/x.service/memory.max": f"{2 * GIB}\n", "system.slice/memory.max": f"{GIB}\n"}, GIB),
        ({"system.slice/x.service/memory.max": f"{GIB}\n", "user.slice/memory.max": "1\n"}, GIB),
        ({"system.slice/x.service/memory.max": "many\n"}, float("inf")),
        ({"system.slice/x.service/memory.max": "0\n"}, float("inf")),
        ({"system.slice/x.service/memory.max": "-1\n", "system.slice/memory.max": f"{GIB}\n"}, GIB),
    ],
)
def test_the_smallest_limit_from_the_own_group_up_to_the_root_counts(tmp_path, files, expected):
    groups = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert memory_limit(write(tmp_path, {**UNIFIED, **groups})) == expected


def test_the_first_version_of_control_groups(tmp_path):
    write(tmp_path, {**DIVIDED, "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}\n"})
    assert memory_limit(tmp_path) == 3 * GIB


def test_a_system_without_control_groups_has_no_limit(tmp_path):
    assert memory_limit(tmp_path) == float("inf")


def test_the_smaller_of_the_two_bounds_counts(monkeypatch):
    monkeypatch.setattr(limits, "physical_memory", lambda: 64 * GIB)
    monkeypatch.setattr(limits, "memory_limit", lambda: GIB)
    check_fits("x", GIB)
    with pytest.raises(InputError, match=r"x would take 1\.50 GiB, and this process may use 1\.00 GiB, the limit"):
        check_fits("x", 3 * GIB // 2)
    monkeypatch.setattr(limits, "memory_limit", lambda: float("inf"))
    check_fits("x", 64 * GIB)
    with pytest.raises(InputError, match="x would take 65 GiB, and this machine has 64 GiB of memory. Pass fewer"):
        check_fits("x", 65 * GIB)


def test_a_call_in_a_container_is_refused_before_the_kernel_ends_the_process(monkeypatch):
    monkeypatch.setattr(limits, "memory_limit", lambda: 1 << 20)
    with SAESession(TINY, "cpu") as sae, pytest.raises(InputError, match="this process may use"):
        sae.run_with_cache(np.zeros((20_000, 6), np.float32))
