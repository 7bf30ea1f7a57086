"""Sessions and processes: forks, and sessions that are handed to other processes."""

import os

import pytest

from tests.support.life import python
from tests.support.samples import TINY

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
     "session.run_graph('model', dict(input=x))", "session.steer(x, dict())", "session.watch([3])",
     "session.compute_features(x, [3])"],
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
@pytest.mark.parametrize(
    ("in_thread", "in_child"),
    [("session(x)", "session.encode(x)"), ("session(x)", "session.watch([3])"),
     ("session.compute_features(x, [2])", "session.compute_features(x, [3])")],
)  # fmt: skip
def test_a_fork_while_another_thread_loads_a_graph(in_thread, in_child, tmp_path):
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
        thread = threading.Thread(target=lambda: found.append({in_thread}))
        thread.start()
        checking.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            try:
                {in_child}
            except SAEError:
                session.close()
                sys.exit(7)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        go_on.set()
        thread.join()
        print(status, len(found[0]))
    """
    done = python(code, tmp_path)
    assert (done.stdout, done.returncode) == ("7 3\n", 0), done.stderr


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
