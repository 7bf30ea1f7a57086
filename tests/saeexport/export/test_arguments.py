"""Functions of `saeexport` with wrong arguments, and exceptions that are not theirs."""

import signal

import numpy as np
import pytest
import torch

from runtime import InputError
from saeexport import HookedSAE, HookedSAEConfig, assert_parity, export, load, verify
from saeexport.checkpoints.files import read_tensors
from saeexport.checkpoints.pickled import read_pickle
from saeexport.original.architectures import ARCHITECTURES
from tests.support.samples import TINY, make_sae, normal
from tests.support.wrong import NOT_A_NUMBER, NOT_A_PATH, accepted, arrays_of
from tests.support.zoo import D_IN, D_OUT, sae_of


def refused_by_export(width):
    """Return arrays that cannot be a sample. A view of any number of tokens can be: a sample is drawn from it."""
    wrong = arrays_of(width)
    for name in ("none", "requires grad", "not contiguous, bfloat16", *(n for n in wrong if n.startswith("more"))):
        del wrong[name]
    return wrong


def test_activations_and_targets(tmp_path):
    path = tmp_path / "sae"
    assert not accepted(lambda x: export(make_sae(), path, x), refused_by_export(6))
    sae, x = sae_of("transcoder", use_error_term=True), normal(20, D_IN)
    assert not accepted(lambda y: export(sae, path, x, targets=y), refused_by_export(D_OUT) | {"none": None})
    assert not path.exists()


@pytest.mark.parametrize(
    ("x", "what"),
    [
        (np.ma.masked_array(normal(20, 6), normal(20, 6) > 0), r"Pass x.filled\(value\)"),
        (torch._neg_view(torch.ones(20, 6)), r"Pass x.resolve_neg\(\)"),
    ],
)
def test_activations_whose_memory_holds_other_values(tmp_path, x, what):
    with pytest.raises(InputError, match=what):
        export(make_sae(), tmp_path / "sae", x)
    with pytest.raises(InputError, match=what):
        verify(TINY, activations=x)


def test_other_arguments(tmp_path):
    path, z = tmp_path / "sae", make_sae(d_in=12, hook_name="blocks.0.attn.hook_z")
    assert not accepted(lambda wrong: export(make_sae(), wrong), NOT_A_PATH)
    assert not accepted(lambda sae: export(sae, path), [None, 3, "sae", {}, torch.nn.Linear(2, 2), HookedSAE])
    shapes = [3, "ab", (3,), (3, 4, 1), (3.0, 4), ("3", "4"), (0, 0), (-3, -4), (2, 5), (True, 12), [None, None]]
    assert not accepted(lambda shape: export(z, path, head_shape=shape), shapes)
    assert not accepted(lambda dtype: export(make_sae(), path, dtype=dtype), ["int8", 3, "float", object(), np.int8])
    assert not accepted(lambda weights: export(make_sae(), path, weights=weights), ["int4", 3, ["int8"], b"int8"])
    for function in (load, verify, assert_parity):
        assert not accepted(function, [*NOT_A_PATH, "nothing", __file__, tmp_path])
    assert not accepted(lambda dtype: load(TINY, dtype=dtype), ["int8", 3, "float", object(), np.int8, ["float32"]])
    assert not accepted(lambda name: load(TINY, hook_name=name), [3, b"name", ["name"]])
    assert not accepted(lambda device: verify(TINY, device=device), [None, 3, "gpu", "cuda:x"])
    assert not path.exists()


def test_configs():
    good = {"d_in": 6, "d_sae": 16, "hook_name": "blocks.0.hook_resid_pre", "device": "cpu"}
    assert not accepted(HookedSAE, [None, 3, "cfg", [good], {}, {**good, "more": 1}, {"d_in": 6}])
    for name in ("d_in", "d_sae"):
        assert not accepted(lambda n, name=name: HookedSAEConfig(**{**good, name: n}), [*NOT_A_NUMBER, 0, -1])
    assert not accepted(lambda dtype: HookedSAEConfig(**good, dtype=dtype), [None, 3, "int8", "float", torch.int8])
    assert not accepted(lambda how: HookedSAEConfig(**good, normalize_activations=how), [None, 3, "other", ["none"]])
    assert not accepted(lambda k: ARCHITECTURES["topk"]({**good, "k": k}), [*NOT_A_NUMBER, 0, 17])
    wide = {**good, "hook_name_out": "blocks.0.hook_mlp_out"}
    assert not accepted(lambda n: ARCHITECTURES["transcoder"]({**wide, "d_out": n}), [*NOT_A_NUMBER, 0, -1])
    assert HookedSAEConfig(**{**good, "d_sae": np.int64(16)}).d_sae == 16


class AlarmError(Exception):
    """Stands for the exception of a service's signal handler."""


@pytest.mark.parametrize("error", [AlarmError("now"), RuntimeError("now"), TimeoutError("now")], ids=repr)
@pytest.mark.parametrize("read", [read_tensors, read_pickle])
def test_the_exception_of_a_signal_handler_is_not_damage(tmp_path, monkeypatch, read, error):
    """The handler runs while the file is read, between two lines of the reader."""
    torch.save({"W": torch.zeros(3)}, tmp_path / "sae.pt")
    loading = torch.load

    def handler(*args):
        raise error

    def interrupted(*args, **kwargs):
        signal.raise_signal(signal.SIGUSR1)
        return loading(*args, **kwargs)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        monkeypatch.setattr(torch, "load", interrupted)
        with pytest.raises(type(error)) as caught:
            read(tmp_path / "sae.pt")
        assert caught.value is error
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("error", [AlarmError("now"), TimeoutError("now"), KeyboardInterrupt()], ids=repr)
def test_the_exception_of_a_signal_handler_ends_an_export(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr("saeexport._export.save_golden", fail)
    with pytest.raises(type(error)) as caught:
        export(make_sae(), tmp_path / "sae", normal(20, 6))
    assert caught.value is error
    assert not list(tmp_path.iterdir())
