"""The life of a session: files that change, other working directories, forks, copies, threads, tasks, and its end."""

import asyncio
import copy
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from runtime import Ablate, Clamp, InputError, IntegrityError, SAEError, SAESession, read_artifact
from runtime.artifact.files import OpenedFile
from runtime.devices.tensorrt import backend
from saeexport import export
from tests.support.samples import HOOKS, TINY, make_sae, normal

ROOT = Path(__file__).parents[3]
X = normal(9, 6)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """An artifact of the same shapes with other weights; not to be changed."""
    return export(make_sae(seed=5), tmp_path_factory.mktemp("other") / "sae", normal(40, 6)).path


def results(session):
    """Return what every kind of graph computes."""
    return {
        **session.run_with_cache(X)[1],
        "acts": session.encode(X),
        "recons": session.decode(session.encode(X)),
        "steered": session.steer(X, {3: Clamp(2.0)})[0],
        "values": session.top_features(X, 4).values,
        "W_dec": np.array(session.W_dec),
    }


def assert_same(found, expected):
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.fixture(scope="module")
def expected():
    with SAESession(TINY, "cpu") as session:
        return results(session)


# Files that change


def replace(artifact, other):
    copied = shutil.copytree(other, artifact.with_name("new"))
    artifact.rename(artifact.with_name("old"))
    copied.rename(artifact)
    shutil.rmtree(artifact.with_name("old"))


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
def test_a_session_goes_on_with_the_artifact_that_it_opened(artifact, other, expected, change, loaded, device, machine):
    with SAESession(artifact, device) as session:
        if loaded:
            session.encode(X)
        change(artifact, other)
        assert_same(results(session), expected)
        for graph in list(session._graphs.loaded):
            session.release(graph)
        assert_same(results(session), expected)


def test_it_goes_on_when_export_overwrites_the_artifact(artifact, expected):
    with SAESession(artifact, "cpu") as session:
        session.encode(X)
        export(make_sae(seed=5), artifact, normal(40, 6), overwrite=True)
        assert_same(results(session), expected)
        with SAESession(artifact, "cpu") as new:
            assert not np.array_equal(new(X), session(X))


def test_onnx_runtime_gets_the_bytes_that_were_checked(artifact, other, expected, monkeypatch):
    """The files are exchanged after their check and before ONNX Runtime loads them."""
    check = OpenedFile.check

    def check_and_exchange(self):
        check(self)
        if artifact.exists():
            replace_files(artifact, other)

    monkeypatch.setattr(OpenedFile, "check", check_and_exchange)
    with SAESession(artifact, "cpu") as session:
        assert_same({"acts": session.encode(X)}, {"acts": expected["acts"]})


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


# Folders


def test_a_relative_path_does_not_depend_on_the_working_directory(artifact, expected, monkeypatch):
    monkeypatch.chdir(artifact.parent)
    opened = read_artifact(artifact.name)
    with SAESession(artifact.name, "cpu") as session:
        session.encode(X)
        monkeypatch.chdir("/")
        assert_same(results(session), expected)
        assert str(session.artifact.path) == artifact.name
        assert_same(results(copy.deepcopy(session)), expected)
    opened.check_files()
    with SAESession(opened, "cpu") as session:
        assert_same(results(session), expected)


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


# Processes


def python(code, folder, **environment):
    """Run a script in a process of its own, and return how it ended."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=environment, cwd=folder
    )


FORKED = """
    import gc, os, signal, sys
    import numpy as np
    from runtime import SAEError, SAESession
    {before}
    x = np.zeros((3, 6), np.float32)
    session = SAESession({path!r}, "cpu", threads=4)
    y = session(x)
    session.encode(x)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        {in_child}
        sys.exit(7)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert np.array_equal(session(x), y)
    session.close()
    print(status)
"""


def fork(in_child, folder, before=""):
    """Return the exit status of a forked child of a process with an open session, and what both printed."""
    done = python(FORKED.format(path=str(TINY), in_child=in_child.replace("\n", "\n        "), before=before), folder)
    assert done.returncode == 0, done.stderr
    *printed, status = done.stdout.splitlines()
    return int(status), printed


linux = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@linux
@pytest.mark.parametrize(
    "in_child",
    ["pass", "session.close(); session.close()", "del session; gc.collect()", "session.__exit__(None, None, None)"],
)
def test_a_forked_child_ends_as_usual(in_child, tmp_path):
    assert fork(in_child, tmp_path) == (7, [])


@linux
def test_without_the_precaution_a_forked_child_hangs_or_crashes(tmp_path):
    """Shows that the tests above can fail."""
    before = "import runtime.devices.forks as forks; forks._sessions.add = lambda session: None"
    status, _ = fork("signal.alarm(3); session._graphs.loaded.clear(); gc.collect()", tmp_path, before)
    assert status != 7


@linux
@pytest.mark.parametrize(
    "call",
    ["session(x)", "session.encode(x)", "session.decode(session._graphs)", "session.run_with_cache(x)", "session.W_dec",
     "session.top_features(x, 3)", "session.compute(x, ['hook_sae_recons'])", "session.release('acts')",
     "session.run_graph('model', dict(input=x))", "session.steer(x, dict())"],
)  # fmt: skip
def test_a_call_in_a_forked_child_says_what_to_do(call, tmp_path):
    status, printed = fork(f"try:\n    {call}\nexcept SAEError as error:\n    print(error, flush=True)", tmp_path)
    assert status == 7
    assert len(printed) == 1
    assert "was opened in process " in printed[0]
    assert (
        'leave out --preload or open it in post_fork, with multiprocessing use the start method "spawn"' in printed[0]
    )


@linux
def test_a_session_that_is_opened_in_the_child_works(tmp_path):
    code = f"""with SAESession({str(TINY)!r}, "cpu", threads=4) as own:
    print(np.array_equal(own(x), y), flush=True)"""
    assert fork(code, tmp_path) == (7, ["True"])


@linux
def test_a_fork_while_another_thread_loads_a_graph(tmp_path):
    code = f"""
        import os, signal, sys, threading
        import numpy as np
        from runtime import SAEError, SAESession
        from runtime.artifact.files import OpenedFile
        x, checking, go_on, check = np.zeros((3, 6), np.float32), threading.Event(), threading.Event(), OpenedFile.check

        def wait(self):
            checking.set()
            go_on.wait()
            check(self)

        OpenedFile.check = wait
        session, found = SAESession({str(TINY)!r}, "cpu"), []
        thread = threading.Thread(target=lambda: found.append(session(x)))
        thread.start()
        checking.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            try:
                session.encode(x)
            except SAEError:
                session.close()
                sys.exit(7)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        go_on.set()
        thread.join()
        print(status, found[0].shape)
    """
    done = python(code, tmp_path)
    assert (done.stdout, done.returncode) == ("7 (3, 6)\n", 0), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=linux)])
def test_multiprocessing_with_a_session_as_an_argument(method, tmp_path):
    code = f"""
        import multiprocessing
        import numpy as np
        from runtime import SAESession

        def work(session, x):
            return session(x)

        if __name__ == "__main__":
            x = np.linspace(-1, 1, 18, dtype=np.float32).reshape(3, 6)
            with SAESession({str(TINY)!r}, "cpu") as session:
                with multiprocessing.get_context({method!r}).Pool(2) as pool:
                    found = pool.starmap(work, [(session, x), (session, x + 1)])
                print(np.array_equal(found[0], session(x)) and np.array_equal(found[1], session(x + 1)))
    """
    done = python(code, tmp_path)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


# Copies


def through_pickle(session):
    return pickle.loads(pickle.dumps(session))


COPIES = [through_pickle, copy.deepcopy, copy.copy]


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_opens_the_same_artifact_with_the_same_options(copied, expected):
    with SAESession(TINY, "cpu", threads=1, block_tokens=4, graphs="portable", check_integrity=False) as session:
        session.encode(X)
        with copied(session) as other:
            assert other is not session
            assert other._options == session._options
            assert other.artifact == session.artifact
            assert not other._graphs.loaded
        np.testing.assert_array_equal(session.encode(X), copied(session).encode(X))


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_says_if_another_artifact_is_there_now(copied, artifact, other):
    with SAESession(artifact, "cpu") as session:
        data = pickle.dumps(session)
        replace(artifact, other)
        for make in (lambda: copied(session), lambda: pickle.loads(data)):
            with pytest.raises(
                IntegrityError, match=r"holds another artifact now .* Open the new artifact with SAESess"
            ):
                make()


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_does_not_lose_hook_functions_or_interventions(copied):
    message = "a copy would be without them. Leave the block, or call reset_hooks"
    with SAESession(TINY, "cpu") as session:
        for block in (session.steering({3: Ablate()}), session.hooks([(HOOKS[2], lambda tensor, hook: None)])):
            with block, pytest.raises(InputError, match=message):
                copied(session)
        session.add_hook(HOOKS[2], lambda tensor, hook: None, is_permanent=True)
        with pytest.raises(InputError, match=message):
            copied(session)
        session.reset_hooks(including_permanent=True)
        copied(session).close()


def test_a_stream_is_not_copied(machine):
    with SAESession(TINY, "cuda", stream=1) as session, pytest.raises(InputError, match="CUDA stream, which cannot be"):
        pickle.dumps(session)


# Threads and tasks


def test_asyncio_tasks_with_their_own_interventions():
    inputs = [normal(3, 6, seed=seed) for seed in range(12)]

    async def plain(session, x):
        return await asyncio.to_thread(session, x)

    async def steered(session, x, feature):
        with session.steering({feature: Clamp(3.0)}):  # applies to this task, and not to the thread
            await asyncio.sleep(0)
            return session(x), await asyncio.to_thread(session.steer, x, {feature: Clamp(3.0)})

    async def main(session):
        calls = [plain(session, x) for x in inputs] + [steered(session, x, i) for i, x in enumerate(inputs)]
        return await asyncio.gather(*calls)

    with SAESession(TINY, "cpu") as session:
        found = asyncio.run(main(session))
        for i, x in enumerate(inputs):
            np.testing.assert_array_equal(found[i], session(x))
            wanted = session.steer(x, {i: Clamp(3.0)})[0]
            in_task, (in_thread, _) = found[len(inputs) + i]
            np.testing.assert_array_equal(in_task, wanted)
            np.testing.assert_array_equal(in_thread, wanted)


def test_a_thread_that_calls_while_another_closes():
    for _ in range(20):
        session, ended = SAESession(TINY, "cpu"), []

        def call(session=session, ended=ended):
            try:
                while True:
                    session(X)
                    session.release("model.sparse")
            except SAEError as error:
                ended.append(str(error))

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        session.close()
        for thread in threads:
            thread.join()
        assert len(ended) == 3
        assert all("is closed" in text for text in ended)


# The end


@pytest.mark.parametrize(
    "call",
    [
        lambda session: session(X),
        lambda session: session.encode(X),
        lambda session: session.decode(np.zeros((2, 16), np.float32)),
        lambda session: session.compute(X, HOOKS),
        lambda session: session.top_features(X, 3),
        lambda session: session.run_graph("model", {"input": X}),
        lambda session: session.W_enc,
        lambda session: pickle.dumps(session),
        lambda session: copy.deepcopy(session),
    ],
)
def test_a_closed_session_says_so(call):
    session = SAESession(TINY, "cpu")
    session.encode(X)
    session.close()
    session.close()
    session.release("acts")
    with pytest.raises(SAEError, match="The session of .*tiny is closed"):
        call(session)
