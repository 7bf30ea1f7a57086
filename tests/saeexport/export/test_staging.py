"""A failed or interrupted export leaves no files behind and keeps what was there before."""

import contextlib
import importlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading

import pytest

import runtime
from saeexport import ExportError, export, load, staging
from tests.support.samples import TINY, contents, make_sae, normal

exporting = importlib.import_module("saeexport._export")


STAGES = ["trace_model", "_write_weights", "write_graphs", "reference_of", "save_golden", "prove", "prove_checkpoint"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError("No space left on device")])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_at_any_stage_leaves_what_was_there(tmp_path, monkeypatch, stage, error, existing):
    target = tmp_path / "new" / "sae"
    if existing:
        shutil.copytree(TINY, target)
    original = getattr(exporting, stage)

    def fail(*args):
        original(*args)
        raise error

    monkeypatch.setattr(exporting, stage, fail)
    expected = ExportError if isinstance(error, OSError) else error
    with pytest.raises(expected) as caught:
        export(make_sae(), target, overwrite=existing)
    if expected is ExportError:
        assert str(caught.value) == f"{target} was not written: No space left on device"
    if existing:
        assert contents(target) == contents(TINY)
        assert list(target.parent.iterdir()) == [target]
    else:
        assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_full_disk(tmp_path):
    """A limit on file sizes simulates a full disk: the same system call fails."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))

    done = subprocess.run(
        [sys.executable, "-m", "saeexport", "export", TINY, tmp_path / "sae"],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert re.match(r"error: .*sae was not written: .*(File too large|os error 27)", done.stderr)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    mkdir = exporting.Path.mkdir

    def refuse(self, *args, **kwargs):
        if self.name.startswith(".sae."):
            raise PermissionError(13, "Permission denied", str(self))
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr("saeexport.staging.Path.mkdir", refuse)
    with pytest.raises(ExportError, match=r"sae was not written: .*Permission denied"):
        export(make_sae(), tmp_path / "sae")


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ExportError, match="was not written"):
        export(make_sae(), tmp_path / "file" / "sae")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_path_that_exists_needs_overwrite(artifact):
    with pytest.raises(ExportError, match=r"tiny exists. Choose another path, or overwrite it \(overwrite=True"):
        export(make_sae(), artifact)
    assert contents(artifact) == contents(TINY)


def test_overwrite_replaces_an_artifact(artifact):
    export(make_sae(), artifact, overwrite=True)
    assert load(artifact).cfg.hook_name == "blocks.0.hook_resid_pre"
    assert list(artifact.parent.iterdir()) == [artifact]


def test_overwrite_takes_an_empty_folder(tmp_path):
    export(make_sae(), tmp_path, overwrite=True)
    assert (tmp_path / "sae.json").exists()


def test_overwrite_keeps_a_folder_that_is_not_an_artifact(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ExportError, match=r"will not be overwritten, because it may not be an artifact: .*thesis.tex"):
        export(make_sae(), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_overwrite_keeps_foreign_files_in_an_artifact(artifact):
    (artifact / "notes.txt").write_text("precious")
    with pytest.raises(ExportError, match=r"not part of its artifact: notes.txt. Move them elsewhere first"):
        export(make_sae(), artifact, overwrite=True)
    assert (artifact / "notes.txt").read_text() == "precious"


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    """Both ways to replace an artifact. The second one is for systems that cannot exchange folders."""
    if request.param == "two renames":
        monkeypatch.setattr(staging, "exchange", lambda a, b: False)
    return request.param


def test_replacing_leaves_the_new_artifact_only(artifact, way):
    export(make_sae(), artifact, overwrite=True)
    assert load(artifact).cfg.d_sae == 16
    assert list(artifact.parent.iterdir()) == [artifact]


def test_overwrite_puts_the_old_one_back_if_the_last_step_fails(artifact, monkeypatch):
    monkeypatch.setattr(staging, "exchange", lambda a, b: False)
    rename = exporting.Path.rename

    def fail(self, target):
        if self.name.startswith(".tiny.") and "replaced" not in self.name:
            raise OSError("the disk went away")
        return rename(self, target)

    monkeypatch.setattr("saeexport.staging.Path.rename", fail)
    with pytest.raises(ExportError, match="the disk went away"):
        export(make_sae(), artifact, overwrite=True)
    assert contents(artifact) == contents(TINY)
    assert list(artifact.parent.iterdir()) == [artifact]


def test_an_exchange_that_the_system_refuses_is_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError):
        staging.exchange(tmp_path / "a", tmp_path / "missing")


def replace_and_die(path, last):
    """Replace an artifact in a child process that is killed at its change number `last` of the file system.

    Return whether the replacement was completed.
    """
    changes = iter(range(1, last + 1))
    events = ("os.rename", "os.rmdir", "os.remove", "os.mkdir", "shutil.rmtree", "ctypes.get_errno")

    def die(event, arguments):
        if event in events and next(changes) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        sys.addaudithook(die)
        with staging.staged_folder(path, overwrite=True) as folder:
            for file in TINY.iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_process_that_is_killed_at_any_step_loses_nothing(artifact, way):
    """Whichever change of the file system is the last one, a complete artifact is there afterwards."""
    for last in range(1, 100):
        done = replace_and_die(artifact, last)
        staging.recover(artifact)
        assert contents(artifact) == contents(TINY)
        assert list(artifact.parent.iterdir()) == [artifact]
        if done:
            break
    assert 10 < last < 99  # a folder, a move or an exchange, and every file of the old artifact


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path):
    left = tmp_path / ".sae.01234567"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    export(make_sae(), tmp_path / "sae")
    assert list(tmp_path.iterdir()) == [tmp_path / "sae"]


@pytest.mark.parametrize("name", [".sae.backup", ".sae.01234567.old", ".other.01234567", "sae.01234567"])
def test_what_no_export_left_is_spared(tmp_path, name):
    (tmp_path / name).mkdir()
    staging.recover(tmp_path / "sae")
    assert (tmp_path / name).exists()


def test_the_staging_folder_of_a_living_export_is_spared(tmp_path):
    with staging.staged_folder(tmp_path / "sae", overwrite=False) as folder:
        staging.recover(tmp_path / "sae")
        assert folder.exists()


def test_a_folder_that_another_export_is_removing_is_not_used(tmp_path, monkeypatch):
    """Between its making and its lock, a folder looks abandoned to an export that starts at that moment."""
    lock, others = staging.lock, []

    def lock_after_another(folder, locks, wait=False):
        if not others:
            with contextlib.ExitStack() as held:
                assert lock(folder, held)
                others.append(
                    threading.Timer(0.1, lambda rest: (shutil.rmtree(folder), rest.close()), [held.pop_all()])
                )
            others[0].start()
        return lock(folder, locks, wait)

    monkeypatch.setattr(staging, "lock", lock_after_another)
    with staging.staged_folder(tmp_path / "sae", overwrite=False) as folder:
        others[0].join()
        (folder / "file").write_text("whole")
    assert contents(tmp_path / "sae") == {"file": b"whole"}


def test_folders_of_another_user_are_kept(tmp_path, monkeypatch):
    left = tmp_path / ".sae.01234567"
    left.mkdir()
    open_file = os.open

    def refuse(path, flags):
        if path == left:
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, flags)

    monkeypatch.setattr("runtime.artifact.writing.os.open", refuse)
    staging.recover(tmp_path / "sae")
    assert left.exists()


def test_a_system_that_does_not_flush_folders(artifact, monkeypatch):
    """The files are on the disk then; what the file system does with their names is up to it."""
    flush = staging.flush

    def refuse(path):
        if path.is_dir():
            raise OSError(22, "Invalid argument", str(path))
        flush(path)

    monkeypatch.setattr(staging, "flush", refuse)
    export(make_sae(), artifact, overwrite=True)
    assert list(artifact.parent.iterdir()) == [artifact]


def test_what_appears_while_an_export_runs_is_spared(tmp_path, monkeypatch):
    prove = exporting.prove

    def appear(*args):
        prove(*args)
        (tmp_path / "sae").mkdir()
        (tmp_path / "sae" / "thesis.tex").write_text("precious")

    monkeypatch.setattr(exporting, "prove", appear)
    with pytest.raises(ExportError, match="sae exists"):
        export(make_sae(), tmp_path / "sae")
    assert contents(tmp_path / "sae") == {"thesis.tex": b"precious"}
    assert list(tmp_path.iterdir()) == [tmp_path / "sae"]


def test_a_symbolic_link_is_refused_up_front(artifact):
    (artifact.parent / "link").symlink_to(artifact)
    with pytest.raises(ExportError, match=r"link is a symbolic link. Pass the folder that it points to"):
        export(make_sae(), artifact.parent / "link", overwrite=True)


@pytest.mark.slow
def test_a_process_that_is_terminated_leaves_nothing(tmp_path):
    code = f"""
import importlib, os, signal, sys
exporting = importlib.import_module("saeexport._export")
prove = exporting.prove
exporting.prove = lambda *args: (prove(*args), os.kill(os.getpid(), signal.SIGTERM))
from saeexport.cli import main
sys.exit(main(["export", {str(TINY)!r}, {str(tmp_path / "sae")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 143, done.stderr
    assert not any(tmp_path.iterdir())


def test_an_sae_can_be_exported_over_its_own_artifact(artifact):
    export(load(artifact), artifact, normal(9, 6), overwrite=True)
    assert runtime.verify(artifact, "cpu").failures == []
