"""A file appears whole or not at all, and what a killed writer left is removed by the next write to its folder."""

import contextlib
import errno
import os
import signal
import stat
import sys
import threading
from pathlib import Path

import pytest

from runtime import InputError
from runtime.artifact import writing
from runtime.artifact.writing import PARTIAL, replaced_file, write_text

LEFT = f".out.01234567{PARTIAL}"


def write(path, data=b"new", overwrite=True):
    with replaced_file(path, overwrite) as file:
        file.write(data)


def write_and_die(path, last, overwrite):
    """Write a file in a child process that is killed at its step number `last`. Return whether the write was done."""
    steps = iter(range(1, last + 1))

    def die(event, arguments):
        if event in ("open", "os.rename", "os.remove", "ctypes.dlopen", "fcntl.flock") and next(steps) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        sys.addaudithook(die)
        write(path, overwrite=overwrite)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_writer_that_is_killed_at_any_step_loses_nothing(tmp_path, overwrite):
    path, left = tmp_path / "out", 0
    for last in range(1, 100):
        path.unlink(missing_ok=True)
        if overwrite:
            path.write_bytes(b"old")
        done = write_and_die(path, last, overwrite)
        assert not path.exists() if not (overwrite or done or path.exists()) else path.read_bytes() in (b"old", b"new")
        left += len(list(tmp_path.iterdir())) - path.exists()
        write(tmp_path / "other")
        assert {entry.name for entry in tmp_path.iterdir()} <= {"out", "other"}
        if done:
            break
    assert 5 < last < 99
    assert left > 2  # some of the deaths leave a partial file


def test_the_partial_file_of_a_living_writer_is_spared(tmp_path):
    with replaced_file(tmp_path / "out", overwrite=False) as file:
        file.write(b"slow")
        write(tmp_path / "out")
        write(tmp_path / "other")
        assert len(list(tmp_path.glob(f".out.*{PARTIAL}"))) == 1
        (tmp_path / "out").unlink()
    assert (tmp_path / "out").read_bytes() == b"slow"


def test_a_partial_file_that_another_writer_is_removing_is_not_used(tmp_path, monkeypatch):
    """Between its making and its lock, a partial file looks abandoned to a writer that starts at that moment."""
    lock, others = writing.lock, []

    def lock_after_another(path, locks, wait=False):
        if not others:
            with contextlib.ExitStack() as held:
                assert lock(path, held)
                others.append(threading.Timer(0.1, lambda rest: (path.unlink(), rest.close()), [held.pop_all()]))
            others[0].start()
        return lock(path, locks, wait)

    monkeypatch.setattr(writing, "lock", lock_after_another)
    write(tmp_path / "out")
    others[0].join()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", [f".out.0123456{PARTIAL}", f"out.01234567{PARTIAL}", ".out.01234567", "out.partial"])
def test_files_with_other_names_are_spared(tmp_path, name):
    (tmp_path / name).write_text("precious")
    write(tmp_path / "out")
    assert (tmp_path / name).exists()


def test_what_is_not_an_ordinary_file_is_spared(tmp_path):
    os.mkfifo(tmp_path / LEFT)
    (tmp_path / "precious").touch()
    (tmp_path / LEFT.replace("0", "a")).symlink_to(tmp_path / "precious")
    (tmp_path / LEFT.replace("0", "b")).mkdir()
    write(tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == 5


MOUNTS = {
    "ext4 rw": True,
    "overlay rw,lowerdir=/a": True,
    "nfs4 rw,vers=4.2,local_lock=none,addr=10.0.0.1": True,
    "nfs rw,vers=3,local_lock=flock,addr=10.0.0.1": False,
    "nfs rw,nolock,local_lock=all": False,
    "cifs rw,nobrl": False,
    "fuse.sshfs rw": False,
    "a file system of the future rw": False,
}


@pytest.mark.parametrize("mount", MOUNTS)
def test_nothing_is_removed_where_another_machine_may_hold_a_lock(tmp_path, monkeypatch, mount):
    """The writer may live on another machine, whose lock this one does not see."""
    kind, _, options = mount.rpartition(" ")
    table = f"30 1 0:26 / / rw - proc proc rw\n31 30 0:27 / /data rw,relatime shared:1 - {kind} server:/x {options}\n"
    read = Path.read_text

    def read_text(self, *args):
        if self.parent.name == "fdinfo":
            return "pos:\t0\nflags:\t02\nmnt_id:\t31\n"
        return table.replace("a file system of the future", "future") if self.name == "mountinfo" else read(self, *args)

    monkeypatch.setattr(Path, "read_text", read_text)
    (tmp_path / LEFT).touch()
    write(tmp_path / "out")
    assert (tmp_path / LEFT).exists() != MOUNTS[mount]


def test_this_machine_says_that_its_locks_are_its_own(tmp_path):
    """Without this, the real mount table of Linux could be misread, and nothing would ever be removed."""
    (tmp_path / LEFT).touch()
    with contextlib.ExitStack() as locks:
        assert writing.lock(tmp_path / LEFT, locks) is True


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), None])
def test_a_system_without_locks_removes_nothing(tmp_path, monkeypatch, error):
    if error is None:
        monkeypatch.setattr(writing, "fcntl", None)
    else:
        monkeypatch.setattr(writing.fcntl, "flock", lambda *args: (_ for _ in ()).throw(error))
    (tmp_path / LEFT).touch()
    write(tmp_path / "out")
    assert (tmp_path / LEFT).exists()
    assert (tmp_path / "out").read_bytes() == b"new"


def test_file_and_folder_are_on_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    steps, fsync, move = [], os.fsync, writing._move

    def record(descriptor):
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(writing.os, "fsync", record)
    monkeypatch.setattr(writing, "_move", lambda *args: (steps.append("rename"), move(*args)))
    write(tmp_path / "out")
    assert steps == ["file", "rename", "folder"]


@pytest.mark.parametrize("step", ["fsync", "write"])
def test_a_full_disk_leaves_nothing_and_loses_nothing(tmp_path, monkeypatch, step):
    """Some file systems say only at the flush that there is no space."""
    full = OSError(errno.ENOSPC, "No space left on device")
    (tmp_path / "out").write_bytes(b"old")
    if step == "fsync":
        monkeypatch.setattr(writing.os, "fsync", lambda descriptor: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space left"), replaced_file(tmp_path / "out", overwrite=True) as file:
        file.write(b"new")
        if step == "write":
            raise full
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("out", b"old")]


@pytest.mark.parametrize("can", [True, False])
def test_a_file_that_appears_at_the_last_moment_is_kept(tmp_path, monkeypatch, can):
    check, checks = writing.check_output_file, []

    def appear(path, overwrite):
        check(path, overwrite)
        checks.append(path)
        if len(checks) == 2:
            path.write_bytes(b"precious")

    monkeypatch.setattr(writing, "check_output_file", appear)
    if not can:  # there it is replaced: between the check and the rename nothing can be known
        monkeypatch.setattr(writing, "rename", lambda *args: False)
        write(tmp_path / "out", overwrite=False)
        assert (tmp_path / "out").read_bytes() == b"new"
        return
    with pytest.raises(InputError, match="out exists. Choose another file"):
        write(tmp_path / "out", overwrite=False)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("out", b"precious")]


def test_a_link_goes_on_pointing_to_the_file(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(Path("data") / "out")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "data" / "out").read_bytes() == b"new"
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["out"]


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(InputError, match="link is not an ordinary file"):
        write(tmp_path / "link")


@pytest.mark.parametrize("folder", ["none", "file"])
def test_the_folder_must_exist(tmp_path, folder):
    """Otherwise the error of the system would name a partial file that the caller has never heard of."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"{folder} is not a folder. Make it first, or choose another path"):
        write(tmp_path / folder / "out")


def test_a_file_keeps_its_permissions(tmp_path):
    (tmp_path / "secret").touch(mode=0o600)
    write(tmp_path / "secret")
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_write_text_writes_utf8_in_place_of_a_file(tmp_path):
    for text in ("old", "straße"):
        write_text(tmp_path / "out", text)
    assert (tmp_path / "out").read_bytes() == "straße".encode()
