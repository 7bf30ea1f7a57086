"""add_hook, reset_hooks, hook_dict and reset_hooks_end: the same program on the original and on the artifact."""

import threading

import numpy as np
import pytest
import torch

from runtime import InputError, SAESession, UnknownHookError
from runtime.session.hooks import HookPoint
from tests.support.samples import HOOKS, TINY, normal

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS


class Program:
    """One of the two models, and a record of what its hook functions saw."""

    def __init__(self, model, x):
        self.model, self.x, self.log = model, x, []

    def function(self, label, factor=1):
        """Return a hook function that records its call, counts it in `ctx`, and multiplies."""

        def function(tensor, hook):
            hook.ctx["calls"] = hook.ctx.get("calls", 0) + 1
            self.log.append((label, hook.name, hook.ctx["calls"], hook is self.model.hook_dict[hook.name]))
            return tensor * factor if factor != 1 else None

        return function

    def keep(self, output):
        self.log.append(np.asarray(output))

    def call(self):
        self.keep(self.model(self.x))

    def cache(self, names_filter=None):
        output, cache = self.model.run_with_cache(self.x, names_filter=names_filter)
        self.log.append(list(cache))
        for tensor in (output, *cache.values()):
            self.keep(tensor)

    def hooked(self, *fwd_hooks, **options):
        self.keep(self.model.run_with_hooks(self.x, fwd_hooks=list(fwd_hooks), **options))

    def contexts(self):
        self.log.append({name: dict(point.ctx) for name, point in self.model.hook_dict.items()})


def added_functions_stay_until_they_are_reset(p):
    p.model.add_hook(POST, p.function("first", 2))
    p.model.add_hook(lambda name: "acts" in name, p.function("second", 3))
    p.call()
    p.cache([POST, RECONS])
    p.hooked((POST, p.function("third", 5)), (RECONS, p.function("fourth")))
    p.call()
    p.model.reset_hooks()
    p.contexts()
    p.call()


def a_function_can_come_first(p):
    for label in "abc":
        p.model.add_hook(POST, p.function(label), prepend=label != "a")
    p.hooked((POST, p.function("own")))


def functions_are_left_behind(p):
    p.hooked((POST, p.function("left", 2)), reset_hooks_end=False)
    p.call()
    p.hooked((POST, p.function("next", 3)), reset_hooks_end=False)
    p.call()
    p.hooked((POST, p.function("last", 5)))
    p.call()


def a_cache_ends_what_was_left_behind(p):
    p.hooked((POST, p.function("left", 2)), reset_hooks_end=False)
    p.cache()
    p.cache()


def an_inner_block_leaves_functions_to_the_outer_one(p):
    with p.model.hooks(fwd_hooks=[(POST, p.function("outer", 2))]):
        with p.model.hooks(fwd_hooks=[(POST, p.function("inner", 3))], reset_hooks_end=False):
            p.call()
        p.call()
        with p.model.hooks(fwd_hooks=[(PRE, p.function("second inner", 5))]):
            p.call()
        p.call()
    p.call()


def functions_that_are_left_by_an_inner_block_outlive_the_outer_one(p):
    with (
        p.model.hooks(fwd_hooks=[(POST, p.function("outer", 2))]),
        p.model.hooks(fwd_hooks=[(POST, p.function("inner", 3))], reset_hooks_end=False),
    ):
        p.call()
    p.call()
    p.cache()
    p.model.reset_hooks()
    p.call()


def a_function_that_is_added_in_a_block_stays_and_comes_last(p):
    with p.model.hooks(fwd_hooks=[(POST, p.function("block", 2))]):
        p.model.add_hook(POST, p.function("added", 3))
        p.hooked((POST, p.function("inner", 5)))
    p.call()
    p.cache(POST)


def a_reset_reaches_into_open_blocks(p):
    with p.model.hooks(fwd_hooks=[(POST, p.function("outer", 2))]):
        with p.model.hooks(fwd_hooks=[(POST, p.function("inner", 3))]):
            p.model.reset_hooks()
            p.call()
        p.call()
    p.call()


def a_reset_of_backward_functions_removes_none(p):
    p.model.add_hook(POST, p.function("added", 2))
    p.model.reset_hooks(False, "bwd")
    p.call()
    p.model.reset_hooks(direction="fwd")
    p.call()


def a_reset_of_one_level(p):
    p.model.add_hook(POST, p.function("added", 2))
    with (
        p.model.hooks(fwd_hooks=[(POST, p.function("outer", 3))]),
        p.model.hooks(fwd_hooks=[(POST, p.function("inner", 5))]),
    ):
        p.model.reset_hooks(level=1)
        p.call()
        p.model.reset_hooks(level=2)
        p.call()


def a_function_of_a_level_goes_with_its_block(p):
    p.model.add_hook(POST, p.function("first level", 2), level=1)
    p.call()
    with p.model.hooks():
        p.call()
    p.call()


def permanent_functions_stay(p):
    p.model.add_hook(POST, p.function("permanent", 2), is_permanent=True, level=1)
    p.model.reset_hooks()
    p.hooked()
    p.call()
    p.model.reset_hooks(including_permanent=True)
    p.call()


def contexts_are_cleared_on_request(p):
    count = p.function("count")
    p.hooked((POST, count), (PRE, count))
    p.contexts()
    p.hooked((POST, count), clear_contexts=True)
    p.contexts()
    p.hooked((POST, count), reset_hooks_end=False, clear_contexts=True)
    p.contexts()
    p.model.reset_hooks(clear_contexts=False)
    p.contexts()
    kept = p.model.hook_dict[POST].ctx
    p.model.reset_hooks()
    p.contexts()
    p.log.append(kept)


def an_error_ends_a_block_as_well(p):
    def fail(tensor, hook):
        raise RuntimeError("on purpose")

    for options in ({}, {"reset_hooks_end": False}):
        with pytest.raises(RuntimeError, match="on purpose"):
            p.hooked((PRE, p.function("before", 2)), (POST, fail), **options)
        if options:
            with pytest.raises(RuntimeError, match="on purpose"):
                p.call()
    p.model.reset_hooks()
    p.call()


def an_unknown_name_is_a_key_error(p):
    for attempt in (
        lambda: p.model.add_hook("hook_mlp_out", p.function("no")),
        lambda: p.hooked((POST, p.function("no", 2)), ("hook_mlp_out", p.function("no"))),
    ):
        with pytest.raises(KeyError):
            attempt()
        p.call()


PROGRAMS = [
    added_functions_stay_until_they_are_reset,
    a_function_can_come_first,
    functions_are_left_behind,
    a_cache_ends_what_was_left_behind,
    an_inner_block_leaves_functions_to_the_outer_one,
    functions_that_are_left_by_an_inner_block_outlive_the_outer_one,
    a_function_that_is_added_in_a_block_stays_and_comes_last,
    a_reset_reaches_into_open_blocks,
    a_reset_of_backward_functions_removes_none,
    a_reset_of_one_level,
    a_function_of_a_level_goes_with_its_block,
    permanent_functions_stay,
    contexts_are_cleared_on_request,
    an_error_ends_a_block_as_well,
    an_unknown_name_is_a_key_error,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_program_does_what_it_does_in_the_original(exported, program):
    sae, path = exported
    x = normal(4, 6)
    sae.reset_hooks(including_permanent=True)
    original = Program(sae, torch.from_numpy(x.copy()))
    try:
        with torch.no_grad():
            program(original)
    finally:
        sae.reset_hooks(including_permanent=True)
    with SAESession(path, "cpu") as session:
        artifact = Program(session, x)
        program(artifact)
    assert len(artifact.log) == len(original.log)
    for found, expected in zip(artifact.log, original.log, strict=True):
        if isinstance(expected, np.ndarray):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        else:
            assert found == expected


def test_the_programs_are_seen_to_edit(exported):
    """If they had no effect, the comparison above would show nothing."""
    _, path = exported
    with SAESession(path, "cpu") as session:
        program = Program(session, normal(4, 6))
        added_functions_stay_until_they_are_reset(program)
    first, *_, last = [entry for entry in program.log if isinstance(entry, np.ndarray)]
    assert np.abs(first - last).max() > 1
    assert [entry[0] for entry in program.log if isinstance(entry, tuple)][:3] == ["second", "first", "second"]


def test_the_hook_points_are_six_in_firing_order(session):
    assert list(session.hook_dict) == HOOKS
    assert all(isinstance(point, HookPoint) and point.name == name for name, point in session.hook_dict.items())
    session.hook_dict.clear()
    assert list(session.hook_dict) == HOOKS


def test_the_three_sets_of_names(exported):
    sae, path = exported
    with SAESession(path, "cpu") as session:
        assert list(session.hook_dict) == list(session.hook_names) == list(session.cfg.hooks) == HOOKS
        assert list(session.cfg.fired_hooks) == [name for name in HOOKS if name != ERROR or sae.cfg.use_error_term]


@pytest.mark.parametrize(
    "attempt",
    [
        lambda sae, x: sae.run_with_hooks(x, bwd_hooks=[(POST, print)]),
        lambda sae, x: sae.hooks(bwd_hooks=[(POST, print)]).__enter__(),
        lambda sae, x: sae.add_hook(POST, print, dir="bwd"),
    ],
)
def test_backward_hooks_are_refused(session, attempt):
    with pytest.raises(InputError, match="A backward hook was given; an artifact does not compute gradients"):
        attempt(session, normal(4, 6))


def test_an_unknown_name_adds_nothing(session):
    with pytest.raises(UnknownHookError, match=r"^'hook_mlp_out': no such hook. There are hook_sae_input, "):
        session.add_hook("hook_mlp_out", print)
    session.add_hook(lambda name: "mlp" in name, print)
    assert session._hooks.active() == ()


def test_added_functions_count_for_every_thread_and_block_functions_for_one(session):
    x, seen = normal(4, 6), []
    session.add_hook(POST, lambda tensor, hook: seen.append("added"))
    with session.hooks([(POST, lambda tensor, hook: seen.append("block"))]):
        thread = threading.Thread(target=session, args=(x,))
        thread.start()
        thread.join()
        assert seen == ["added"]
        session(x)
    assert seen == ["added", "added", "block"]


def test_a_reset_in_another_thread_leaves_a_block_alone(session):
    x, seen = normal(4, 6), []
    with session.hooks([(POST, lambda tensor, hook: seen.append("block"))]):
        thread = threading.Thread(target=session.reset_hooks)
        thread.start()
        thread.join()
        session(x)
    assert seen == ["block"]


def test_threads_that_add_and_leave_functions_lose_none():
    def work():
        barrier.wait()
        for _ in range(200):
            session.add_hook(POST, print)
            with session.hooks([(PRE, print)]):
                pass

    barrier = threading.Barrier(4)
    with SAESession(TINY, "cpu") as session:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(session._hooks.active()) == 800
