"""Many threads and streams share a session on a GPU, and batches are larger than its indices of 32 bits."""

import gc
import random
import threading
import time

import numpy as np
import pytest
import torch

from runtime import Ablate, Clamp, SAESession
from tests.support.samples import HOOKS, MINILM, normal

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
THREADS, SECONDS = 6, 4
TOKENS = (1, 3, 8, 64, 257)
EDITS = {3: Ablate(), 7: Clamp(2.0)}
K = 12


@pytest.fixture(scope="module")
def batches():
    """Batches with the results of a CPU: all hooks, the edited output and the strongest activations in order."""
    with SAESession(MINILM, "cpu") as session:
        made = []
        for tokens in TOKENS:
            x = normal(tokens, 384, seed=tokens)
            hooks = session.compute(x, HOOKS)
            strongest = np.sort(hooks["hook_sae_acts_post"])[:, -K:]
            made.append((x, hooks, session.steer(x, EDITS)[0], strongest))
    return made


def is_near(found, expected):
    return np.allclose(found, expected, atol=2e-4, rtol=1e-4)


def from_host_to_host(session, batch):
    found = session.compute(batch[0], HOOKS)
    return all(is_near(found[hook], batch[1][hook]) for hook in HOOKS)


def on_the_gpu(session, batch):
    cache = session.compute(torch.from_numpy(batch[0]).to(DEVICE), HOOKS)
    copies = {hook: torch.from_dlpack(tensor).clone() for hook, tensor in cache.items()}
    del cache  # its memory may be written again
    return all(is_near(copies[hook].cpu(), batch[1][hook]) for hook in HOOKS)


def a_late_input(session, batch):
    x = torch.zeros(batch[0].shape, device=DEVICE)
    torch.cuda._sleep(2_000_000)  # about a millisecond
    x.copy_(torch.from_numpy(batch[0]))
    return is_near(torch.from_dlpack(session.encode(x)).cpu(), batch[1]["hook_sae_acts_post"])


def a_result_passed_on(session, batch):
    acts = session.encode(torch.from_numpy(batch[0]).to(DEVICE))
    return is_near(session.decode(acts).numpy(), batch[1]["hook_sae_recons"])


def edits(session, batch):
    return is_near(session.steer(batch[0], EDITS)[0], batch[2])


def strongest_features(session, batch):
    return is_near(np.sort(session.top_features(batch[0], K).dense(3072))[:, -K:], batch[3])


CALLS = (from_host_to_host, on_the_gpu, a_late_input, a_result_passed_on, edits, strongest_features)


@pytest.mark.parametrize(
    "options",
    [{}, {"cuda_graph": (1, 8, 64)}, {"memory_limit": 64 << 20}, {"arena": False}],
    ids=["own stream", "cuda graphs", "memory limit", "no arena"],
)
def test_every_thread_gets_its_results(batches, options):
    wrong, done = [], []

    def work(seed):
        draws, stream = random.Random(seed), torch.cuda.Stream()
        with torch.cuda.stream(stream):
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                call, batch = draws.choice(CALLS), draws.choice(batches)
                try:
                    right = call(session, batch)
                except Exception as error:
                    right, call = False, repr(error)
                (done if right else wrong).append((call, len(batch[0])))

    with SAESession(MINILM, DEVICE, **options) as session:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert {call for call, _ in done} == set(CALLS)


def test_captures_while_another_thread_allocates_and_frees_memory(batches):
    x, hooks, *_ = batches[-1]
    ended, failed = threading.Event(), []

    def allocate():
        try:
            while not ended.is_set():
                torch.empty(1 << 24, device=DEVICE)
                torch.cuda.empty_cache()
        except Exception as error:
            failed.append(error)

    other = threading.Thread(target=allocate)
    with SAESession(MINILM, DEVICE, cuda_graph=range(1, 25)) as session:
        other.start()
        try:
            for tokens in range(1, 25):
                assert is_near(session(x[:tokens]), hooks["hook_sae_output"][:tokens])
        finally:
            ended.set()
            other.join()
    assert failed == []


def test_sessions_leave_no_memory():
    free = []
    for i in range(6):
        session = SAESession(MINILM, DEVICE, cuda_graph=(1,))
        session(normal(1, 384))
        session.encode(normal(64, 384))
        if i % 2:
            session.close()  # the others are dropped without it
        del session
        gc.collect()
        torch.cuda.synchronize()
        free.append(torch.cuda.mem_get_info()[0])
    assert min(free[1:]) == max(free[1:])


@pytest.mark.parametrize("block_tokens", [None, 800_000], ids=["blocks", "one block"])
def test_a_result_with_more_than_2_31_elements(block_tokens):
    x = torch.randn(800_000, 384, device=DEVICE)
    with SAESession(MINILM, DEVICE, block_tokens=block_tokens) as session:
        acts = torch.from_dlpack(session.encode(x))
        assert acts.numel() > 2**31
        for start in (0, 350_000, 799_990):
            few = torch.from_dlpack(session.encode(x[start : start + 10].contiguous()))
            assert torch.allclose(acts[start : start + 10], few, atol=1e-5)
