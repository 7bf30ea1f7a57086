"""Sessions that are copied, used by several threads and tasks, and closed."""

import asyncio
import copy
import pickle
import threading

import numpy as np
import pytest

from runtime import Ablate, Clamp, InputError, IntegrityError, SAEError, SAESession
from tests.support.life import X, replace
from tests.support.samples import HOOKS, TINY, normal


def through_pickle(session):
    return pickle.loads(pickle.dumps(session))


COPIES = [through_pickle, copy.deepcopy, copy.copy]


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_opens_the_same_artifact_with_the_same_options(copied, wanted):
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
