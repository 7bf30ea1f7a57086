"""Blocks with attached SAEs end as they are left, in whatever order, and hooks are named as the type says."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime import HostSession, InputError, UnknownHookError


def attach(host, hook):
    """Attach an SAE in the block of a generator."""
    with host.saes(hook, use_error_term=False):
        yield


def test_blocks_of_generators_end_in_any_order(host):
    first, second, _ = host.hook_names
    one, other = attach(host, first), attach(host, second)
    next(one), next(other)
    assert {*host.attached} == {first, second}
    one.close()
    assert {*host.attached} == {second}
    other.close()
    assert host.attached == {}


def test_a_block_that_another_thread_ends_is_over(host):
    block = attach(host, host.hook_names[0])
    next(block)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(block.close).result()
    assert host.attached == {}


@pytest.mark.parametrize(
    "attach_them",
    [
        HostSession.add_sae,
        lambda host, hooks: host.run_with_saes({}, hooks),
        lambda host, hooks: next(attach(host, hooks)),
    ],
    ids=["add_sae", "run_with_saes", "saes"],
)
def test_no_hook_is_not_every_hook(host, attach_them):
    with pytest.raises(InputError, match="The SAEs are None; they must be the name of a hook, or a list of names"):
        attach_them(host, None)
    assert host.attached == {}


@pytest.mark.parametrize("hook", [None, [], {}, 3, ["blocks.0.hook_resid_post"]])
def test_one_sae_has_one_name(host, hook):
    with pytest.raises(UnknownHookError, match="no SAE was grafted at such a hook"):
        host.sae(hook)
    if hook is not None:
        with pytest.raises(UnknownHookError, match="no SAE was grafted at such a hook"):
            host.only_hook(hook)


def test_a_public_key_is_a_path(grafted):
    with pytest.raises(InputError, match="public_key is 3; it must be the path of a file"):
        HostSession(grafted.path, "cpu", public_key=3)
