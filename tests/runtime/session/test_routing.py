"""The choice of graph, blocks and threads for a request, and the options that change it."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import runtime
from runtime import Clamp, InputError, Plan, SAESession
from runtime.arrays.pool import BufferPool
from runtime.artifact.contracts import CONTRACTS, SPARSE
from runtime.devices.blocks import FEATURE_BYTES, FEWEST_TOKENS, block_sizes, default_block
from tests.support.samples import HOOKS, MINILM, TINY, normal
from tests.support.zoo import sae_of, target_of

PORTABLE = [name for name, contract in CONTRACTS.items() if not contract.for_cpu]


@pytest.fixture(scope="module")
def zoo(artifact_of):
    """Artifacts of three architectures, with the inputs that their SAEs take in addition to `x`."""
    artifacts = []
    for name in ("standard", "skip_transcoder", "gated"):
        path = artifact_of(name, use_error_term=True).path
        artifacts.append((path, target_of(sae_of(name, use_error_term=True), 45)))
    return artifacts


@pytest.mark.parametrize(
    ("names", "steered", "on_cpu", "portable"),
    [
        (HOOKS, False, "model.sparse", "model"),
        (["hook_sae_output"], False, "model.sparse", "model"),
        (["hook_sae_acts_post"], False, "acts", "encode"),
        (["hook_sae_acts_pre"], False, "encode", "encode"),
        (HOOKS[1:3], False, "encode", "encode"),
        (HOOKS, True, "steer.sparse", "steer"),
        (["hook_sae_acts_post"], True, "acts", "encode"),
        (["hook_sae_input"], False, None, None),
    ],
)
def test_the_graph_that_is_run_is_the_one_that_is_explained(names, steered, on_cpu, portable):
    for family, expected in (("auto", on_cpu), ("cpu", on_cpu), ("portable", portable)):
        with SAESession(TINY, "cpu", graphs=family) as session:
            plan = session.explain(names, 3, steered=steered)
            assert plan.graph == expected
            assert f'graphs="{family}"' in str(plan) or expected is None
            x = normal(3, session.cfg.d_in)
            if steered:
                session.steer(x, {1: Clamp(2.0)}, names, return_output=False)
            else:
                session.compute(x, names)
            assert list(session._graphs.loaded) == ([] if expected is None else [expected])


def test_a_plan_says_where_in_how_many_blocks_and_why():
    with SAESession(TINY, "cpu", threads=1, block_tokens=100) as session:
        assert str(session.explain(["hook_sae_acts_post"], tokens=250)) == (
            "acts on cpu with 1 thread, 250 tokens in 3 blocks of at most 84: it is the smallest graph that computes "
            'hook_sae_acts_post; CPU variants are preferred (graphs="auto" on cpu).'
        )
        assert list(session.explain(tokens=7).blocks) == [7]
        with pytest.raises(InputError, match="hook_sae_nothing: no such hook"):
            session.explain(["hook_sae_nothing"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"graphs": "dense"}, "graphs is 'dense'; it must be one of 'auto', 'cpu', 'portable'"),
        ({"block_tokens": 0}, "block_tokens is 0; it must be at least 1"),
        ({"threads": 0}, "threads is 0; it must be from 1 to 4096, or None for one per core"),
    ],
)
def test_an_impossible_option_is_refused(option, message):
    with pytest.raises(InputError, match=message):
        SAESession(TINY, "cpu", **option)


def everything(session, x, target):
    """Return the results of every kind of request in one list."""
    edits = {3: Clamp(2.0), 5: runtime.Scale(np.linspace(0, 2, len(x)).astype(np.float32))}
    outputs, cache = session.run_with_cache(x, target=target)
    steered, edited = session.steer(x, edits, target=target)
    shared, _ = session.steer(x, {3: Clamp(2.0)}, target=target)
    hooked = session.run_with_hooks(x, [("hook_sae_acts_post", lambda acts, hook: acts * 2)], target=target)
    decoded = session.decode(session.encode(x), x)
    tensors = [outputs, steered, shared, hooked, decoded, session.encode(x), *session.top_features(x, 5)]
    return [*tensors, *cache.values(), *edited.values()]


@pytest.mark.parametrize("options", [{"block_tokens": 7}, {"block_tokens": 1}, {"graphs": "portable"},
                                     {"graphs": "portable", "block_tokens": 20}, {"arena": False}])  # fmt: skip
def test_blocks_graphs_and_memory_change_nothing(zoo, options):
    x = normal(45, 10, seed=9)
    for path, target in zoo:
        with SAESession(path, "cpu") as whole, SAESession(path, "cpu", **options) as other:
            pairs = zip(everything(whole, x, target), everything(other, x, target), strict=True)
            for expected, found in pairs:
                assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
                np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_a_batch_in_blocks_is_whole_and_belongs_to_the_caller():
    x = normal(1000, 384)
    with SAESession(MINILM, "cpu", block_tokens=64) as session:
        first = session.compute(x, HOOKS)
        copies = {name: array.copy() for name, array in first.items()}
        session.compute(-x, HOOKS)
        for name, array in first.items():
            np.testing.assert_array_equal(array, copies[name])
            assert array.flags.writeable


def test_memory_is_used_again_when_the_last_view_of_it_is_gone():
    memory, form = BufferPool(keep=True, calls=2), ((10, 4), np.dtype(np.float32))
    (first,) = memory.arrays([form])
    first[:] = 1
    address, view = first.ctypes.data, first[3:]
    (second,) = memory.arrays([form])
    assert second.ctypes.data != address
    del first
    (third,) = memory.arrays([form])
    assert third.ctypes.data != address
    assert view.sum() == 28
    del view
    assert memory.kept == 160
    (fourth,) = memory.arrays([form])
    assert (fourth.ctypes.data, fourth.shape, fourth.dtype, fourth.flags.writeable) == (address, *form, True)
    assert memory.kept == 0


def test_memory_is_kept_for_some_calls():
    memory, form = BufferPool(keep=True, calls=2), ((1000,), np.dtype(np.float32))
    large = memory.arrays([form] * 3)
    del large
    for _ in range(2):
        assert memory.kept == 12000
        again = memory.arrays([form])  # one of the three, each time the same
        assert memory.kept == 8000
        del again
    memory.arrays([])
    assert memory.kept == 4000
    for _ in range(3):
        memory.arrays([])
    assert memory.kept == 0
    without = BufferPool(keep=False, calls=2)
    without.arrays([form])
    assert without.kept == 0


def test_a_larger_buffer_is_used_unless_most_of_it_would_be_left():
    memory, dtype = BufferPool(keep=True, calls=9), np.dtype(np.float32)
    two = memory.arrays([((1000,), dtype), ((1200,), dtype)])
    del two
    (small,) = memory.arrays([((499,), dtype)])
    assert memory.kept == 8800
    first, second, third = memory.arrays([((900,), dtype), ((900,), dtype), ((900,), dtype)])
    assert memory.kept == 0
    assert [array.size for array in (small, first, second, third)] == [499, 900, 900, 900]
    del second
    assert memory.kept == 4800


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells how much memory a process has")
def test_memory_that_is_not_kept_goes_back_to_the_system():
    memory, dtype, sizes = BufferPool(keep=False, calls=1), np.dtype(np.uint8), range(100_000, 3_000_000, 100_000)

    def pages():
        return int(Path("/proc/self/statm").read_text().split()[1])

    def make():
        return [array for size in sizes for array in memory.arrays([((size,), dtype)])]

    make()  # the C library asks the system for what is larger than all that was freed before
    before = pages()
    arrays = make()
    for array in arrays:
        array.fill(1)
    assert pages() - before > 0.9 * sum(sizes) / os.sysconf("SC_PAGESIZE")
    del array, arrays[::2]  # the C library would keep what lies between others that are in use
    assert pages() - before < 0.7 * sum(sizes) / os.sysconf("SC_PAGESIZE")
    assert all((array == 1).all() for array in arrays)


def test_memory_that_the_system_does_not_have_is_a_memory_error():
    with pytest.raises(MemoryError, match="bytes: "):
        BufferPool(keep=True, calls=1).arrays([((1 << 60,), np.dtype(np.uint8))])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes fork where there is fork")
def test_a_forked_process_does_not_write_into_the_memory_of_its_parent():
    (array,) = BufferPool(keep=True, calls=1).arrays([((1000,), np.dtype(np.float32))])
    array[:] = 1
    child = os.fork()
    if child == 0:
        array[:] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert (array == 1).all()


def test_memory_survives_threads_and_its_owner():
    def work(i):
        for _ in range(200):
            a, b = memory[0].arrays([((50, 7), np.dtype(np.float32)), ((50,), np.dtype(np.int64))])
            a[:], b[:] = i, -i
            if not ((a == i).all() and (b == -i).all()):
                wrong.append(i)

    memory, wrong = [BufferPool(keep=True, calls=2)], []
    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (kept,) = memory[0].arrays([((3,), np.dtype(np.float32))])
    kept[:] = 7
    memory.clear()
    assert not wrong
    np.testing.assert_array_equal(kept, [7, 7, 7])


@given(st.integers(0, 10000), st.integers(1, 3000))
def test_blocks_are_few_and_equal(tokens, block):
    sizes = block_sizes(tokens, block)
    assert sum(sizes) == tokens
    assert max(sizes) <= block
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == max(1, -(-tokens // block))


def test_a_block_holds_64_mib_of_features():
    cfg = runtime.read_artifact(MINILM).manifest.sae
    assert default_block(cfg) == FEATURE_BYTES // (3072 * 4)
    assert default_block(type(cfg)(**{**vars(cfg), "d_sae": 1 << 24})) == FEWEST_TOKENS


def test_every_sparse_graph_has_its_dense_one():
    for dense, sparse in SPARSE.items():
        assert CONTRACTS[sparse].inputs == CONTRACTS[dense].inputs
        assert CONTRACTS[sparse].outputs == CONTRACTS[dense].outputs
        assert dense in PORTABLE


def test_the_threads_are_those_that_were_asked_for():
    with SAESession(TINY, "cpu", threads=1, arena=False) as session:
        session.encode(normal(1, session.cfg.d_in))
        (loaded,) = session._graphs.loaded.values()
        options = loaded.get_session_options()
        assert (options.intra_op_num_threads, options.enable_cpu_mem_arena) == (1, False)


def test_a_plan_of_one_token_says_so():
    assert ", 1 token at once: " in str(Plan("model", "cpu", 1, block_sizes(1, 5), "it fits."))
