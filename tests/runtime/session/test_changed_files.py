"""A session goes on with the artifact that it opened, whatever happens to its files and to the working directory."""

import copy
import os
import shutil

import numpy as np
import pytest

from runtime import IntegrityError, SAESession, read_artifact
from runtime.artifact.files import OpenedFile
from runtime.devices.tensorrt import backend
from saeexport import export
from tests.support.life import X, assert_same, python, replace, results
from tests.support.samples import MINILM, make_sae, normal


def delete(artifact, other):
    shutil.rmtree(artifact)


def move(artifact, other):
    artifact.rename(artifact.with_name("moved"))


def replace_files(artifact, other):
    for file in other.iterdir():
        shutil.copy(file, artifact / "copied")
        (artifact / "copied").rename(artifact / file.name)


CHANGES = [replace, delete, move, replace_files]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_session_goes_on_with_the_artifact_that_it_opened(artifact, other, wanted, change, loaded, device, machine):
    with SAESession(artifact, device) as session:
        if loaded:
            session.encode(X)
        change(artifact, other)
        assert_same(results(session), wanted)
        for graph in list(session._graphs.loaded):
            session.release(graph)
        assert_same(results(session), wanted)


def test_it_goes_on_when_export_overwrites_the_artifact(artifact, wanted):
    with SAESession(artifact, "cpu") as session:
        session.encode(X)
        export(make_sae(seed=5), artifact, normal(40, 6), overwrite=True)
        assert_same(results(session), wanted)
        with SAESession(artifact, "cpu") as new:
            assert not np.array_equal(new(X), session(X))


def test_onnx_runtime_gets_the_bytes_that_were_checked(artifact, other, wanted, monkeypatch):
    """The files are exchanged after their check and before ONNX Runtime loads them."""
    check = OpenedFile.check

    def check_and_exchange(self):
        check(self)
        if artifact.exists():
            replace_files(artifact, other)

    monkeypatch.setattr(OpenedFile, "check", check_and_exchange)
    with SAESession(artifact, "cpu") as session:
        assert_same({"acts": session.encode(X)}, {"acts": wanted["acts"]})


@pytest.mark.parametrize("check_integrity", [True, False])
def test_weights_that_are_overwritten_in_place_are_noticed(artifact, check_integrity):
    weights = artifact / "weights.safetensors"
    with SAESession(artifact, "cpu", check_integrity=check_integrity) as session:
        session.encode(X)
        with weights.open("r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(b"\0" * 8)
        os.utime(weights, (1, 1))
        with pytest.raises(IntegrityError, match=r"weights.safetensors was changed while it was in use. Rep"):
            session(X)
        with pytest.raises(IntegrityError, match="was changed while it was in use"):
            session.W_dec  # noqa: B018


@pytest.fixture
def tensorrt(machine, artifact, monkeypatch):
    """Return a function that opens the artifact with TensorRT, on a simulated GPU."""
    monkeypatch.setattr(backend, "tensorrt_version", lambda: "10.9.0")
    monkeypatch.setattr(backend, "driver", lambda: machine)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    return lambda: SAESession(artifact, "tensorrt", cache=artifact.with_name("cache"))


def test_with_tensorrt_a_graph_is_not_loaded_from_a_path_that_leads_elsewhere(artifact, other, tensorrt):
    with tensorrt() as session:
        before = session.encode(X)
        replace(artifact, other)
        np.testing.assert_array_equal(session.encode(X), before)
        with pytest.raises(IntegrityError, match="was replaced, moved or deleted after this session opened it"):
            session(X)


def test_with_tensorrt_a_graph_that_is_replaced_while_it_is_loaded_is_refused(artifact, other, tensorrt, monkeypatch):
    start = backend.start_session

    def start_late(*args, **options):
        session = start(*args, **options)
        replace(artifact, other)
        return session

    monkeypatch.setattr(backend, "start_session", start_late)
    with tensorrt() as session, pytest.raises(IntegrityError, match="was replaced, moved or deleted"):
        session.encode(X)


def test_a_relative_path_does_not_depend_on_the_working_directory(artifact, wanted, monkeypatch):
    monkeypatch.chdir(artifact.parent)
    opened = read_artifact(artifact.name)
    with SAESession(artifact.name, "cpu") as session:
        session.encode(X)
        monkeypatch.chdir("/")
        assert_same(results(session), wanted)
        assert str(session.artifact.path) == artifact.name
        assert_same(results(copy.deepcopy(session)), wanted)
    opened.check_files()
    with SAESession(opened, "cpu") as session:
        assert_same(results(session), wanted)


def test_nothing_is_written(artifact):
    """The root, the artifact and the home may be read-only: the limit of the size of a file that is written is 0."""
    code = f"""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        import numpy as np, runtime
        with runtime.SAESession({str(artifact)!r}, "cpu") as session:
            session.run_with_cache(np.zeros((3, 6), np.float32))
        print(runtime.verify({str(artifact)!r}, "cpu").failures)
        open({str(artifact.parent / "must-not-be-written")!r}, "w").write("x")
    """
    before = sorted(entry.name for entry in artifact.iterdir())
    done = python(code, artifact.parent)
    assert done.stdout == "[]\n"
    assert done.returncode != 0, "the limit has an effect"
    assert sorted(entry.name for entry in artifact.iterdir()) == before


@pytest.mark.parametrize(
    ("loaded", "call"),
    [
        ("None", "session(x)"),
        ("None", "session.watch([1])"),
        ("session.encode(x)", "session(x)"),
        ("session.watch([1])", "watch(many)"),
    ],
)
def test_weights_that_became_shorter_are_refused_where_they_are_needed_next(loaded, call, tmp_path):
    """Memory that is mapped from bytes that are gone ends the process when it is read."""
    shutil.copytree(MINILM, tmp_path / "sae")
    ended = python(
        f"""
        import os
        import numpy as np
        from runtime import IntegrityError, SAESession
        from runtime.session import selection

        selection.thread_limit = lambda: 2  # so that the watch has a session of several threads to start
        session = SAESession("sae", "cpu", check_integrity=False)
        x, many = (np.zeros((tokens, session.cfg.d_in), np.float32) for tokens in (1, 1000))
        watch = {loaded}
        os.truncate("sae/weights.safetensors", 4096)
        try:
            {call}
        except IntegrityError as error:
            print(error)
        """,
        tmp_path,
    )
    assert "weights.safetensors was changed while it was in use" in ended.stdout, ended
