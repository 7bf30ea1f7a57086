"""The number of threads under the CPU quotas of nested control groups, in a file system made of temporary files."""

import pytest

from runtime.devices import threads
from runtime.devices.threads import thread_limit

V2 = "31 23 0:28 {root} {place} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 31 0:29 {root} {place} rw,relatime shared:10 - cgroup cgroup rw,cpu,cpuacct"


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch):
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def unified(own="/", root="/", place="/sys/fs/cgroup"):
    mounts = V2.format(root=root, place=place)
    return {"proc/self/cgroup": f"0::{own}\n", "proc/self/mountinfo": f"21 1 8:1 / / rw - ext4 /dev/sda rw\n{mounts}\n"}


def divided(own="/", root="/", place="/sys/fs/cgroup/cpu,cpuacct"):
    groups = f"9:name=systemd:/elsewhere\n3:cpuset:/elsewhere\n1:cpu,cpuacct:{own}\n0::/elsewhere\n"
    return {"proc/self/cgroup": groups, "proc/self/mountinfo": V1.format(root=root, place=place) + "\n"}


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", None), ("50000 100000", 1), ("150000 100000", 2)])
def test_a_container_with_a_quota_gets_no_more_threads_than_it_may_use(tmp_path, quota, expected):
    assert thread_limit(write(tmp_path, {**unified(), "sys/fs/cgroup/cpu.max": f"{quota}\n"})) == expected


@pytest.mark.parametrize(
    ("outer", "middle", "inner", "expected"),
    [
        ("max 100000", "max 100000", "200000 100000", 2),
        ("max 100000", "300000 100000", "max 100000", 3),
        ("max 100000", "300000 100000", "800000 100000", 3),
        ("100000 100000", "300000 100000", "200000 100000", 1),
        ("max 100000", "max 100000", "max 100000", None),
    ],
)
def test_the_smallest_quota_from_the_own_group_up_to_the_root_counts(tmp_path, outer, middle, inner, expected):
    groups = {"": outer, "system.slice/": middle, "system.slice/x.service/": inner, "user.slice/": "100000 100000"}
    files = {f"sys/fs/cgroup/{group}cpu.max": f"{quota}\n" for group, quota in groups.items()}
    assert thread_limit(write(tmp_path, {**unified("/system.slice/x.service"), **files})) == expected


def test_the_first_version_has_two_files_and_its_own_mount(tmp_path):
    mount = "sys/fs/cgroup/cpu,cpuacct"
    write(tmp_path, divided("/docker/1234"))
    assert thread_limit(tmp_path) is None
    write(tmp_path, {f"{mount}/docker/cpu.cfs_quota_us": "-1\n", f"{mount}/docker/cpu.cfs_period_us": "100000\n"})
    assert thread_limit(tmp_path) is None
    write(tmp_path, {f"{mount}/docker/cpu.cfs_quota_us": "400000\n"})
    assert thread_limit(tmp_path) == 4
    write(tmp_path, {f"{mount}/docker/1234/cpu.cfs_quota_us": "150000\n",
                     f"{mount}/docker/1234/cpu.cfs_period_us": "50000\n"})  # fmt: skip
    assert thread_limit(tmp_path) == 3
    write(tmp_path, {"sys/fs/cgroup/cpu.max": "100000 100000"})  # not mounted
    assert thread_limit(tmp_path) == 3


@pytest.mark.parametrize(
    ("own", "root"),
    [("/", "/"), ("/docker/1234", "/docker/1234"), ("/../../elsewhere", "/"), ("/other", "/docker/1234")],
    ids=["own namespace", "bind mount", "outside of the namespace", "outside of the mount"],
)
def test_in_a_container_the_mount_is_the_topmost_group(tmp_path, own, root):
    assert thread_limit(write(tmp_path, {**unified(own, root), "sys/fs/cgroup/cpu.max": "200000 100000"})) == 2


def test_the_groups_of_others_that_are_mounted_as_well_do_not_count(tmp_path):
    own = unified()
    others = V2.format(root="/../others", place="/host/others")
    own["proc/self/mountinfo"] += f"{others}\n"
    write(tmp_path, {**own, "host/others/cpu.max": "100000 100000"})
    assert thread_limit(tmp_path) is None
    write(tmp_path, {"sys/fs/cgroup/cpu.max": "200000 100000"})
    assert thread_limit(tmp_path) == 2


def test_a_group_inside_of_a_container(tmp_path):
    files = {"sys/fs/cgroup/cpu.max": "800000 100000", "sys/fs/cgroup/job/cpu.max": "200000 100000"}
    assert thread_limit(write(tmp_path, {**unified("/docker/1234/job", "/docker/1234"), **files})) == 2


def test_a_mount_with_a_space_in_its_path(tmp_path):
    files = {**unified(place=r"/my\040groups"), "my groups/cpu.max": "200000 100000"}
    assert thread_limit(write(tmp_path, files)) == 2


def test_the_affinity_counts_too(tmp_path, monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    assert thread_limit(tmp_path) == 12
    write(tmp_path, {**unified(), "sys/fs/cgroup/cpu.max": "400000 100000"})
    assert thread_limit(tmp_path) == 4


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"max", b"1 0", b"0 0", b"-1 -1", b"nan nan", b"inf 1", b"1e400 1", b"9" * 5000 + b" 1",
     b"9" * 400 + b" 1", b"200000", b"1 2 3", b"\xff\xfe", b"\x00", b"200000 max", b"0.5 1"],
)  # fmt: skip
def test_odd_contents_are_no_quota(tmp_path, content):
    write(tmp_path, {**unified(), "sys/fs/cgroup/cpu.max": content})
    assert thread_limit(tmp_path) is None


@pytest.mark.parametrize("name", ["proc/self/cgroup", "proc/self/mountinfo"])
@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"::::", b"0:", b" - ", b"a b c d e f - cgroup2", b"\xff\x00\n0::", b"0::/\x00",
     b"1 2 3 / /\\000 rw - cgroup2 x rw"],
)  # fmt: skip
def test_odd_lists_of_groups_and_mounts_are_ignored(tmp_path, name, content):
    write(tmp_path, {**unified(), "sys/fs/cgroup/cpu.max": "max 100000", name: content})
    assert thread_limit(tmp_path) is None


def test_a_folder_in_place_of_a_file_is_no_quota(tmp_path):
    write(tmp_path, unified())
    (tmp_path / "sys/fs/cgroup/cpu.max").mkdir(parents=True)
    assert thread_limit(tmp_path) is None


def test_this_machine_has_an_answer():
    assert thread_limit() is None or thread_limit() >= 1
