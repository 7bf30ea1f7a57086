"""HostSession computes what the host with its SAEs computes in NumPy, for each caller what that caller attached."""

import asyncio
import copy
import pickle
import threading

import numpy as np
import pytest

from runtime import Ablate, Add, Clamp, HostSession, InputError, SAEError, Scale, UnknownHookError
from tests.support.grafted import POST, PRE, Z, assert_near

HOOKS = [POST, PRE, Z]
SAE_HOOKS = [f"hook_sae_{name}" for name in ("input", "acts_pre", "acts_post", "recons", "error", "output")]


def test_a_call_without_saes_is_the_host(host, grafted, feeds, mask):
    output = host(feeds)
    assert_near(output.logits, grafted.run(feeds)[0]["logits"], mask)
    assert next(iter(output)) == "logits"
    assert output.logits is output["logits"]
    assert {name for name in output if name.startswith("present")} == {
        f"present.{i}.{what}" for i in range(3) for what in ("key", "value")
    }
    with pytest.raises(AttributeError, match="does not have the output hidden; it has logits"):
        output.hidden  # noqa: B018
    assert pickle.loads(pickle.dumps(output)).logits.shape == output.logits.shape
    assert repr(output).startswith("HostOutput(logits=(3, 7, 40) float32, present.0.key=")


@pytest.mark.parametrize("attached", [[POST], [PRE], [Z], [POST, PRE], [PRE, Z], HOOKS])
@pytest.mark.parametrize("use_error_term", [False, True])
def test_attached_saes_are_in_the_host(host, grafted, feeds, mask, attached, use_error_term):
    output = host.run_with_saes(feeds, attached, use_error_term)
    expected, _ = grafted.run(feeds, attached, use_error_term)
    assert_near(output.logits, expected["logits"], mask)
    staged = host.run_with_hooks_with_saes(feeds, [], attached, use_error_term)
    assert_near(staged.logits, expected["logits"], mask)
    assert host.attached == {}


def test_without_the_error_term_an_sae_changes_the_output(host, feeds, mask):
    clean = host(feeds).logits[mask]
    for hook in HOOKS:
        assert np.abs(host.run_with_saes(feeds, hook, False).logits[mask] - clean).max() > 0.1


def test_the_cache_has_the_hooks_of_transformer_lens(host, grafted, feeds, mask):
    output, cache = host.run_with_cache(feeds)
    assert list(cache) == HOOKS
    assert_near(cache[Z], grafted.run(feeds)[0][Z], mask)
    _, cache = host.run_with_cache_with_saes(feeds, [PRE], use_error_term=False)
    assert list(cache) == [POST, *(f"{PRE}.{name}" for name in SAE_HOOKS if name != "hook_sae_error"), Z]
    _, features = grafted.run(feeds, [PRE])
    assert_near(cache[f"{PRE}.hook_sae_acts_post"], features[PRE], mask)
    _, cache = host.run_with_cache_with_saes(feeds, HOOKS, use_error_term=True)
    assert list(cache) == [f"{hook}.{name}" for hook in HOOKS for name in SAE_HOOKS]
    assert cache[f"{Z}.hook_sae_recons"].shape == (3, 7, 4, 4)
    assert output.logits.shape == (3, 7, 40)


def test_names_filter(host, feeds):
    with host.saes([PRE]):
        name = f"{PRE}.hook_sae_acts_post"
        for names_filter in (name, [name, "unknown"], lambda one: one.endswith("acts_post")):
            nothing, cache = host.run_with_cache(feeds, names_filter, return_output=False)
            assert (nothing, list(cache)) == (None, [name])
        assert host.run_with_cache(feeds, [])[1] == {}
        with pytest.raises(InputError, match="names_filter is 3; it must be None"):
            host.run_with_cache(feeds, 3)


def test_blocks_are_nested_and_restore_what_was_attached(host):
    host.add_sae(POST, use_error_term=False)
    with host.saes([POST, PRE], use_error_term=True):
        assert host.attached == {POST: True, PRE: True}
        with host.saes(Z):
            assert host.attached == {POST: True, PRE: True, Z: True}
            host.reset_saes([PRE])
            assert host.attached == {POST: True, Z: True}
        assert host.attached == {POST: True}
    assert host.attached == {POST: False}
    with pytest.raises(KeyError, match="no SAE was grafted"), host.saes(Z):
        host.add_sae("blocks.9.hook_resid_pre")
    assert host.attached == {POST: False}
    with host.saes(Z, False, reset_saes_end=False):
        pass
    assert host.attached == {POST: False, Z: False}
    host.reset_saes(Z)
    assert host.attached == {POST: False}
    host.reset_saes()
    assert host.attached == {}


def test_a_block_is_for_its_thread_and_task_only(host):
    seen = []

    async def task():
        with host.saes(PRE):
            inner = asyncio.create_task(look())
            await inner
            seen.append(host.attached)

    async def look():
        seen.append(host.attached)

    with host.saes(POST):
        thread = threading.Thread(target=lambda: seen.append(host.attached))
        thread.start()
        thread.join()
    asyncio.run(task())
    assert seen == [{}, {}, {PRE: True}]


EDITS = {0: Ablate(), 3: Clamp(2.0), 5: Scale(3.0), 9: Add(0.5)}


def edited(acts):
    acts[:, 0] = 0
    acts[:, 3] = 2
    acts[:, 5] *= 3
    acts[:, 9] += 0.5
    return acts


@pytest.mark.parametrize("use_error_term", [False, True])
def test_steering_edits_features(host, grafted, feeds, mask, use_error_term):
    expected, features = grafted.run(feeds, [PRE], use_error_term, {PRE: edited})
    clean = host(feeds)
    with host.steering({PRE: EDITS}, use_error_term):
        output, cache = host.run_with_cache(feeds)
        acts = host.encode(feeds)[PRE]
    assert_near(output.logits, expected["logits"], mask)
    assert_near(cache[f"{PRE}.hook_sae_acts_post"], features[PRE], mask)
    assert_near(acts, features[PRE], mask)
    assert np.abs(output.logits - clean.logits)[mask].max() > 0.1
    assert host.attached == {}

    def function(acts_post, hook):
        assert hook.name == f"{PRE}.hook_sae_acts_post"
        return edited(acts_post.reshape(-1, 24)).reshape(acts_post.shape)

    staged = host.run_with_hooks_with_saes(feeds, [(f"{PRE}.hook_sae_acts_post", function)], PRE, use_error_term)
    assert_near(staged.logits, expected["logits"], mask)


def test_edits_of_blocks_follow_each_other(host, grafted, feeds, mask):
    def both(acts):
        acts[:, 3] = 2
        acts[:, 3] *= 4
        acts[:, 7] = acts[:, 7] * 2 + 1
        return acts

    outer, inner = {3: Clamp(2.0), 7: Scale(2.0)}, {7: Add(1.0), 3: Scale(4.0)}
    with host.saes(PRE, False), host.steering({PRE: outer}), host.steering({PRE: inner}):
        assert host.attached == {PRE: False}
        output = host(feeds)
        staged = host.run_with_hooks_with_saes(feeds)
    expected, _ = grafted.run(feeds, [PRE], False, {PRE: both})
    assert_near(output.logits, expected["logits"], mask)
    assert_near(staged.logits, expected["logits"], mask)


def test_an_edit_may_differ_for_each_token(host, feeds):
    strength = np.zeros(feeds["input_ids"].shape)
    strength[1, 2] = 5.0
    with host.saes(PRE):
        clean = host.encode(feeds)[PRE]
        with host.steering({PRE: {4: Add(strength)}}):
            moved = host.encode(feeds)[PRE] - clean
    assert moved[1, 2, 4] == pytest.approx(5)
    moved[1, 2, 4] = 0
    assert not moved.any()


def test_features_of_masked_positions_are_zero(host, grafted, feeds, mask):
    _, features = grafted.run(feeds, HOOKS, True)
    acts = host.encode(feeds)
    assert list(acts) == HOOKS
    for hook in HOOKS:
        assert_near(acts[hook], features[hook], mask)
        assert not acts[hook][~mask].any()
        top = host.top_features(feeds, hook, k=3)
        assert (top.indices[~mask] == -1).all()
        assert (top.l0 == (acts[hook] != 0).sum(-1)).all()
        assert (top.indices[mask][:, 0] == np.abs(acts[hook][mask]).argmax(-1)).all()
    with pytest.raises(InputError, match=r"several SAEs; choose one \(hook=, --hook\) of blocks.0.hook_resid_post, "):
        host.top_features(feeds)


def test_features_behind_an_attached_sae_are_those_of_the_changed_host(host, grafted, feeds, mask):
    with host.saes(POST, use_error_term=False):
        acts = host.encode(feeds)
    _, features = grafted.run(feeds, [POST, Z], False)
    assert_near(acts[Z], features[Z], mask)


def test_functions_replace_activations_without_an_sae(host, grafted, feeds, mask):
    seen = []

    def halve(x, hook):
        seen.append((hook.name, x.shape, x.dtype))
        return x / 2

    output = host.run_with_hooks_with_saes(feeds, [(lambda name: name in (PRE, Z), halve)])
    expected, _ = grafted.run(feeds, replace={PRE: lambda x: x / 2, Z: lambda x: x / 2})
    assert_near(output.logits, expected["logits"], mask)
    assert seen == [(PRE, (3, 7, 16), np.float32), (Z, (3, 7, 4, 4), np.float32)]

    def in_place(z, hook):
        z[...] = 0

    cut = host.run_with_hooks_with_saes(feeds, [(f"{Z}.hook_sae_recons", in_place)], [Z], use_error_term=False)
    expected, _ = grafted.run(feeds, replace={Z: lambda x: 0 * x})
    assert_near(cut.logits, expected["logits"], mask)


def test_a_name_that_does_not_fire_is_an_error(host, feeds):
    def same(x, hook):
        return x

    for name, saes in ((f"{PRE}.hook_sae_acts_post", []), (PRE, [PRE]), ("unknown", [])):
        with pytest.raises(UnknownHookError, match="no such hook fires"):
            host.run_with_hooks_with_saes(feeds, [(name, same)], saes)
    with pytest.raises(UnknownHookError, match="hook_sae_error': no such hook fires"):
        host.run_with_hooks_with_saes(feeds, [(f"{PRE}.hook_sae_error", same)], PRE, use_error_term=False)
    with pytest.raises(InputError, match=r"returned \(3,\) float64; it must return \(3, 7, 16\) float32"):
        host.run_with_hooks_with_saes(feeds, [(PRE, lambda x, hook: np.zeros(3))])


def test_the_sae_of_a_hook_is_a_session(host, grafted, feeds, mask):
    _, cache = host.run_with_cache(feeds)
    acts = host.sae(PRE).encode(cache[PRE])
    assert host.sae(PRE) is host.sae(PRE)
    assert_near(acts, grafted.run(feeds, [PRE], True)[1][PRE], mask)


def test_copies_open_the_same_folder_with_the_added_saes(host, feeds):
    host.add_sae(PRE, use_error_term=False)
    expected = host(feeds).logits
    for again in (pickle.loads(pickle.dumps(host)), copy.deepcopy(host)):
        with again:
            assert again.attached == {PRE: False}
            np.testing.assert_array_equal(again(feeds).logits, expected)
    with host.saes(Z), pytest.raises(InputError, match="is inside `saes` or `steering`"):
        pickle.dumps(host)


def test_a_closed_session_refuses_to_run(grafted, feeds):
    host = HostSession(grafted.path, "cpu")
    host(feeds)
    sae = host.sae(PRE)
    host.close()
    host.close()
    for call in (lambda: HostSession.__call__(host, {**feeds}), lambda: host.encode("w1 w2"), lambda: host.sae(PRE),
                 lambda: pickle.dumps(host), lambda: sae(np.zeros((1, 16), np.float32))):  # fmt: skip
        with pytest.raises(SAEError, match=r"The session of .* is closed\."):
            call()


def test_threads_share_a_session(host, feeds):
    expected = {hook: host.run_with_saes(feeds, hook, False).logits for hook in HOOKS}
    wrong = []

    def work(hook):
        for _ in range(5):
            with host.saes(hook, False):
                if not np.array_equal(host(feeds).logits, expected[hook]):
                    wrong.append(hook)

    threads = [threading.Thread(target=work, args=(hook,)) for hook in HOOKS * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_repr(host, grafted):
    assert repr(host) == f"HostSession({str(grafted.path)!r}, tiny, SAEs at {', '.join(HOOKS)}, cpu)"
    assert repr(host.host).startswith(f"GraftedHost({str(grafted.path)!r}): decoder tiny; tap, splice, features, ")
