"""Which calls the edits of `steering` reach: each method inside the block, and calls of other threads and tasks."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest

from runtime import Ablate, Add, Clamp, Intervention, SAESession, Scale
from runtime.artifact.names import HOOK_NAMES
from tests.support.samples import HOOKS, normal

POST = HOOKS[2]
EDITS, MORE = {1: Ablate(), 3: Clamp(2.5), 5: Add(0.75)}, {3: Scale(2.0), 9: Clamp(1.0)}
X = normal(7, 6)


@pytest.mark.parametrize("blocks", [(EDITS,), (EDITS, MORE), (EDITS, {}, MORE)], ids=len)
@pytest.mark.parametrize(
    "names", [[POST], [HOOKS[1]], ["hook_sae_error"], ["hook_sae_recons", "hook_sae_output"], list(HOOK_NAMES), []]
)
def test_compute_is_edited_as_a_pass_is(exported, blocks, names):
    with SAESession(exported[1], "cpu") as session:
        clean = session.compute(X, HOOK_NAMES)
        with session.hooks([(POST, Intervention.of(edits)) for edits in blocks]):
            output, cache = session.run_with_cache(X)
        with nested(session, blocks):
            computed = session.compute(X, names)
    expected = {**clean, **cache, "hook_sae_output": output}  # without the error term the error does not fire
    assert list(computed) == names
    for name in names:
        np.testing.assert_allclose(computed[name], expected[name], rtol=0, atol=1e-5, err_msg=name)
    if POST in names:
        assert (computed[POST] != clean[POST]).any()


def nested(session, blocks):
    stack = ExitStack()
    for edits in blocks:
        stack.enter_context(session.steering(edits))
    return stack


def test_what_is_given_activations_or_inputs_does_not_edit_them(session):
    acts = session.encode(X)
    recons, outputs = session.decode(acts), session.run_graph("model", {"input": X})
    with session.steering(EDITS):
        np.testing.assert_array_equal(session.decode(acts), recons)
        for name, array in session.run_graph("model", {"input": X}).items():
            np.testing.assert_array_equal(array, outputs[name])


CALLS = {
    "__call__": lambda s: s(X),
    "encode": lambda s: s.encode(X),
    "compute": lambda s: s.compute(X, [POST])[POST],
    "top_features": lambda s: s.top_features(X, 16).dense(16),
    "run_with_cache": lambda s: s.run_with_cache(X)[1][POST],
}


@pytest.fixture(params=CALLS.values(), ids=CALLS)
def call(request):
    return request.param


def test_a_thread_or_task_is_edited_only_by_its_own_block(session, call):
    """As the description of `steering` says: also one that was started inside the block is not."""
    clean = call(session)
    with session.steering(EDITS):
        edited = call(session)
    assert (clean != edited).any()

    def in_its_own_block():
        with session.steering(EDITS):
            return call(session)

    async def task(function):
        return function()

    async def elsewhere():
        with session.steering(EDITS):
            found = [
                await asyncio.to_thread(call, session),
                await asyncio.create_task(task(lambda: call(session))),
                await asyncio.get_running_loop().run_in_executor(None, call, session),
            ]
            own = [
                await asyncio.to_thread(in_its_own_block),
                await asyncio.create_task(task(in_its_own_block)),
                await task(lambda: call(session)),  # awaited, and so a part of this task
            ]
            return found, [*own, call(session)]

    found, own = asyncio.run(elsewhere())
    with session.steering(EDITS), ThreadPoolExecutor() as executor:
        found.append(executor.submit(call, session).result())
    for array in found:
        np.testing.assert_array_equal(array, clean)
    for array in own:
        np.testing.assert_array_equal(array, edited)


def test_two_threads_steer_at_once(session, call):
    """Each has its own edits, at the same time."""
    barrier, found = threading.Barrier(2), {}
    edits = ({3: Clamp(2.0)}, {3: Clamp(-5.0)})

    def work(i):
        with session.steering(edits[i]):
            barrier.wait()
            found[i] = call(session)
            barrier.wait()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        with session.steering(edits[i]):
            np.testing.assert_array_equal(found[i], call(session))
