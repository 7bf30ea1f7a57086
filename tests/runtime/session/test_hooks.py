"""run_with_hooks and hooks: the same functions have the same effect on the original and on the artifact."""

import asyncio
import contextvars
import threading

import numpy as np
import pytest
import torch

from runtime import InputError, SAEError, SAESession, UnknownHookError
from tests.support.close import assert_hooks_close
from tests.support.samples import HOOKS, TINY, normal

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS


def caches(sae, path, x, fwd_hooks, names_filter=None):
    """Return (output, cache) of the original and of the artifact, both numpy, under the same hook functions."""
    given = torch.from_numpy(x.copy())
    with torch.no_grad(), sae.hooks(fwd_hooks=fwd_hooks):
        output, cache = sae.run_with_cache(given, names_filter=names_filter)
    expected = output.numpy(), {name: tensor.numpy() for name, tensor in cache.items()}
    with SAESession(path, "cpu") as session, session.hooks(fwd_hooks):
        actual = session.run_with_cache(x.copy(), names_filter=names_filter)
    return expected, actual


def same(expected, actual):
    """Compare outputs and caches: keys in order, shapes, dtypes, and values within rounding."""
    assert list(actual[1]) == list(expected[1])
    actual, expected = ({**cache, "the output": output} for output, cache in (actual, expected))
    assert {name: y.dtype for name, y in actual.items()} == {name: y.dtype for name, y in expected.items()}
    assert_hooks_close(actual, expected)


def double(tensor, hook):
    return tensor * 2


def in_place(tensor, hook):
    tensor[..., 1] += 3


def look(tensor, hook):
    return None


@pytest.mark.parametrize("function", [double, in_place, look])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_function_at_each_hook_does_what_it_does_in_the_original(exported, hook, function):
    expected, actual = caches(*exported, normal(2, 5, 6), [(hook, function)])
    same(expected, actual)


@pytest.mark.parametrize("function", [double, in_place])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("token", [(12,), (3, 4)])
def test_heads_and_leading_dimensions(exported_z, hook, token, function):
    for lead in ((), (0,), (2, 3)):
        expected, actual = caches(*exported_z, normal(*lead, *token), [(hook, function)])
        same(expected, actual)


def test_functions_at_all_hooks_together(exported):
    fwd_hooks = [(lambda name: True, double), (PRE, in_place), (lambda name: "acts" in name, in_place)]
    same(*caches(*exported, normal(4, 6), fwd_hooks))
    same(*caches(*exported, normal(4, 6), fwd_hooks, names_filter=[POST, ERROR]))


def test_functions_at_one_hook_run_in_the_order_given(session):
    seen = []
    x = normal(4, 6)

    def first(tensor, hook):
        return tensor + 1

    def second(tensor, hook):
        seen.append((hook.name, tensor))

    session.run_with_hooks(x, fwd_hooks=[(lambda name: name.endswith("recons"), first), (RECONS, second)])
    ((name, tensor),) = seen
    assert name == RECONS
    np.testing.assert_array_equal(tensor, session.run_with_cache(x)[1][RECONS] + 1)


def test_tensors_have_the_callers_shape(session):
    shapes = {}

    def note(tensor, hook):
        shapes[hook.name] = tensor.shape

    assert session.run_with_hooks(normal(2, 3, 6), [(lambda name: True, note)]).shape == (2, 3, 6)
    assert list(shapes) == HOOKS
    assert shapes == {name: (2, 3, 16 if name in (PRE, POST) else 6) for name in HOOKS}


def test_without_an_edit_nothing_changes(exported):
    _, path = exported
    x = normal(7, 6)
    with SAESession(path, "cpu") as session:
        plain = session.run_with_cache(x)
        with session.hooks([(lambda name: True, look)]):
            hooked = session.run_with_cache(x)
    for name, y in plain[1].items():
        if name not in (RECONS, OUTPUT):  # another graph may round differently
            np.testing.assert_array_equal(hooked[1][name], y)
    same(plain, hooked)


def test_the_error_stays_that_of_the_clean_pass_bit_for_bit(session):
    x = normal(7, 6)
    clean = session.run_with_cache(x)[1][ERROR]
    for hook in (PRE, POST, RECONS):
        with session.hooks([(hook, double)]):
            np.testing.assert_array_equal(session.run_with_cache(x)[1][ERROR], clean)


def test_a_returned_input_is_discarded_and_an_edit_in_place_reaches_the_caller(session):
    x = normal(4, 6)
    np.testing.assert_array_equal(session.run_with_hooks(x, [(INPUT, lambda t, hook: t[:1])]),
                                  session.run_with_hooks(x))  # fmt: skip
    before = x.copy()
    edited = session.run_with_hooks(x, [(INPUT, in_place)])
    before[..., 1] += 3
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(edited, session(before))


def test_an_edit_of_the_output_in_place_reaches_recons_where_they_are_one_tensor(exported):
    sae, path = exported
    expected, actual = caches(sae, path, normal(4, 6), [(OUTPUT, in_place)])
    same(expected, actual)
    assert (actual[1][RECONS] == actual[0]).all() == (not sae.cfg.use_error_term)


@pytest.mark.parametrize("dtype", ["float16", "int64"])
def test_other_dtypes_stay_as_given_at_the_input(exported, dtype):
    x = (10 * normal(4, 6)).astype(dtype)
    same(*caches(*exported, x, [(INPUT, double), (POST, double)]))


def test_an_unknown_name_is_a_key_error(session):
    for error in (KeyError, UnknownHookError, SAEError):
        with pytest.raises(error, match=r"^'hook_mlp_out': no such hook. There are hook_sae_input, "):
            session.run_with_hooks(normal(6), [("hook_mlp_out", look)])
    assert session.run_with_hooks(normal(6), [(lambda name: "mlp" in name, double)]).shape == (6,)


@pytest.mark.parametrize("hook", HOOKS[1:])
@pytest.mark.parametrize("returned", [lambda t: t[:1], lambda t: t.astype(np.float64), lambda t: 3.0])
def test_a_function_must_return_what_fits(session, hook, returned):
    with pytest.raises(InputError, match=rf"The hook function at {hook} returned .*; it must return \(4, \d+\) fl"):
        session.run_with_hooks(normal(4, 6), [(hook, lambda t, hook: returned(t))])


def test_the_hook_points_keep_what_functions_store(session):
    def count(tensor, hook):
        hook.ctx["calls"] = hook.ctx.get("calls", 0) + 1

    def read(tensor, hook):
        seen.append(hook.ctx["calls"])

    seen = []
    for _ in range(3):
        session.run_with_hooks(normal(6), [(POST, count)])
    session.run_with_hooks(normal(6), [(POST, read)])
    assert seen == [3]


def test_after_the_block_the_functions_are_gone_also_after_an_error(session):
    x = normal(4, 6)
    plain = session(x)
    with pytest.raises(RuntimeError, match="on purpose"), session.hooks([(POST, double)]) as same_session:
        assert same_session is session
        assert (session(x) != plain).any()
        raise RuntimeError("on purpose")
    np.testing.assert_array_equal(session(x), plain)


def test_blocks_nest_and_the_outer_functions_come_first(session):
    order = []
    with session.hooks([(POST, lambda t, hook: order.append("outer"))]):
        with session.hooks([(POST, lambda t, hook: order.append("inner"))]):
            session(normal(6))
        session(normal(6))
    assert order == ["outer", "inner", "outer"]


def test_encode_decode_and_compute_run_the_clean_pass(session):
    x = normal(4, 6)
    acts = session.encode(x)
    plain = acts, session.decode(acts), session.compute(x, [RECONS])[RECONS]
    with session.hooks([(lambda name: True, double)]):
        hooked = session.encode(x), session.decode(acts), session.compute(x, [RECONS])[RECONS]
    for a, b in zip(plain, hooked, strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_threads_and_tasks_do_not_see_the_functions(session):
    x = normal(4, 6)
    plain, results = session(x), {}
    with session.hooks([(POST, double)]):
        thread = threading.Thread(target=lambda: results.update(thread=session(x)))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(results["thread"], plain)

    async def hooked(entered, left):
        with session.hooks([(POST, double)]):
            entered.set()
            await left.wait()
            return session(x)

    async def both():
        entered, left = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(hooked(entered, left))
        await entered.wait()
        other = session(x)
        left.set()
        return other, await task

    other, own = asyncio.run(both())
    np.testing.assert_array_equal(other, plain)
    assert (own != plain).any()


def test_tasks_and_threads_started_inside_do_not_see_the_functions_either(session):
    """They inherit a copy of the context, and may outlive the block."""
    x = normal(4, 6)
    plain = session(x)

    async def main():
        async def child():
            await asyncio.sleep(0)
            return session(x)

        with session.hooks([(POST, double)]):
            task = asyncio.create_task(child())
            in_thread = await asyncio.to_thread(session, x)
            own = session(x)
        return in_thread, await task, own

    in_thread, in_task, own = asyncio.run(main())
    np.testing.assert_array_equal(in_thread, plain)
    np.testing.assert_array_equal(in_task, plain)
    assert (own != plain).any()


def test_a_function_sees_another_session_untouched(session):
    """Hooks belong to one session, even if two sessions of the same artifact are open."""
    x = normal(4, 6)
    with SAESession(TINY, "cpu") as other, session.hooks([(POST, double)]):
        np.testing.assert_array_equal(other(x), other.run_with_hooks(x))


def test_nothing_of_a_session_stays_in_the_context(session):
    """A service opens many sessions in one thread."""
    before = len(contextvars.copy_context())
    session.run_with_cache(normal(6))
    with session.hooks(), session.hooks():
        assert len(contextvars.copy_context()) == before + 1
    assert len(contextvars.copy_context()) == before


def test_a_block_may_end_in_a_copy_of_the_context(session):
    block = session.hooks([("hook_sae_acts_post", lambda tensor, hook: tensor * 0)])
    block.__enter__()

    def end():
        block.__exit__(None, None, None)
        return session._hooks.active()

    assert contextvars.copy_context().run(end) == ()
    assert session._hooks.active() == ()
