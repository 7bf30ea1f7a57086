"""Classes that depart from `HookedSAE` in unusual ways: each is exported as it computes, or refused with a reason."""

import types

import numpy as np
import pytest
import torch
from torch import nn

from runtime import SAESession
from saeexport import ExportError, HookedSAE, export
from saeexport.original.architectures import ARCHITECTURES
from tests.support.close import assert_hooks_close
from tests.support.samples import HOOKS, make_sae, normal

ACTIVATIONS = normal(200, 6)


def make(kind, **options):
    """Return an SAE of a class, with the parameters of `make_sae`."""
    given = make_sae(**options)
    sae = kind(given.cfg)
    sae.load_state_dict(given.state_dict(), strict=False)
    return sae


def exported(sae, path, **options):
    export(sae, path, ACTIVATIONS, **options)
    return SAESession(path, "cpu")


class EncodesByItself(HookedSAE):
    def encode(self, x):
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)


class EncodesElsewhere(HookedSAE):
    def encode(self, x):  # only the error is computed from it
        return 2 * super().encode(x)


class DecodesByItself(HookedSAE):
    def decode(self, acts_post, x=None):
        return nn.functional.linear(2 * acts_post, self.W_dec.T, self.b_dec)


class RunsForward(HookedSAE):
    def forward(self, input):
        return super().forward(input * 1.0)


class NamesItsParameters(HookedSAE):
    @classmethod
    def parameter_shapes(cls, cfg):
        names = ("sub", "relu", "add_1", "W_enc_and_b_enc", "sae")  # names that PyTorch and the passes give
        return {**super().parameter_shapes(cfg), **dict.fromkeys(names, (cfg.d_sae,))}

    def activation(self, acts_pre, x):
        return torch.relu(acts_pre + 0.1 - self.sub + self.relu + self.add_1 + self.W_enc_and_b_enc + self.sae)


class HasAMask(HookedSAE):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.register_buffer("mask", torch.arange(cfg.d_sae) % 2 == 0, persistent=False)

    def activation(self, acts_pre, x):
        return torch.relu(acts_pre) * self.mask


KINDS = [EncodesByItself, EncodesElsewhere, DecodesByItself, RunsForward, NamesItsParameters, HasAMask]


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_overrides_methods_is_at_parity(kind, tmp_path):
    sae = make(kind)
    with exported(sae, tmp_path / "sae") as session:
        _, cache = sae.run_with_cache(torch.from_numpy(ACTIVATIONS))
        _, found = session.run_with_cache(ACTIVATIONS)
        assert session.cfg.architecture == f"custom:{kind.__name__}"
        assert_hooks_close(found, {hook: cache[hook].detach().numpy() for hook in HOOKS})


@pytest.mark.parametrize(
    "change",
    [
        lambda sae: setattr(sae, "b_enc", nn.Parameter(torch._neg_view(sae.b_enc.detach()))),
        lambda sae: setattr(sae, "W_dec", nn.Parameter(sae.W_dec.detach().T.contiguous().T)),
        lambda sae: setattr(sae, "b_enc", nn.Parameter(torch.tensor(-0.1).expand(16))),
        lambda sae: setattr(sae, "W_dec", nn.Parameter(torch.randn(40).as_strided((16, 6), (2, 1)))),
        lambda sae: setattr(sae, "W_dec", nn.Parameter(sae.W_enc.detach().T)),
        lambda sae: sae.requires_grad_(False),
    ],
    ids=["negative-bit", "transposed", "expanded", "overlapping", "shared", "frozen"],
)
def test_parameters_that_are_views(change, tmp_path):
    sae = make_sae()
    change(sae)
    with exported(sae, tmp_path / "sae") as session:
        _, cache = sae.run_with_cache(torch.from_numpy(ACTIVATIONS))
        assert_hooks_close(session.run_with_cache(ACTIVATIONS)[1], {h: cache[h].detach().numpy() for h in HOOKS})


def test_a_compiled_module_is_exported_as_what_it_is(tmp_path):
    sae = make_sae()
    with exported(torch.compile(sae, backend="eager"), tmp_path / "sae") as session:
        assert session.cfg.architecture == "standard"


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_autocast_does_not_change_what_is_exported(dtype, tmp_path):
    sae = make_sae()
    with torch.autocast("cpu", torch.bfloat16):
        export(sae, tmp_path / "within", ACTIVATIONS, dtype=dtype)
    export(sae, tmp_path / "without", ACTIVATIONS, dtype=dtype)
    within, without = ((tmp_path / name / "sae.json").read_bytes() for name in ("within", "without"))
    assert within == without


def test_sizes_of_numpy_are_those_of_python(tmp_path):
    sae = make(EncodesElsewhere)
    sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.seed = np.int64(6), np.int32(16), np.int64(3)
    with exported(sae, tmp_path / "sae") as session:
        assert (session.cfg.d_in, session.cfg.d_sae, session.cfg.seed) == (6, 16, 3)


def wrapped(sae):
    two_tensor = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor
    sae.W_dec = nn.Parameter(two_tensor(sae.W_dec.detach(), sae.W_dec.detach().clone()))


def within_inference_mode(sae):
    with torch.inference_mode():
        sae.W_dec = nn.Parameter(sae.W_dec.clone())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sae: setattr(sae, "W_dec", nn.UninitializedParameter()), "W_dec .*not initialised. Run the SAE on a"),
        (lambda sae: sae.to("meta"), "W_enc of this HookedSAE is on the device meta, which holds no values. Load the"),
        (lambda sae: setattr(sae, "W_dec", nn.Parameter(sae.W_dec.detach().to_sparse())), r"W_dec .*sparse_coo.*dense"),
        (wrapped, "W_dec of this HookedSAE is a TwoTensor, which wraps other tensors. Convert it"),
        (within_inference_mode, r"W_dec .*inference tensor, .*Load the SAE outside of torch.inference_mode\(\)"),
        (lambda sae: sae.register_parameter("extra", nn.Parameter(torch.zeros(2))), r"holds .*extra \[2\].*a subclass"),
        (lambda sae: setattr(sae.cfg, "d_sae", 17), r"holds W_dec \[16, 6\].*by its config .* W_dec \[17, 6\]"),
        (lambda sae: sae.register_buffer("steps", torch.tensor(7)), r"holds .*steps \[\]; by its config"),
        (lambda sae: setattr(sae, "cfg", None), "cfg of this HookedSAE is None, without the attributes d_in, d_sae,"),
        (lambda sae: setattr(sae, "cfg", sae.cfg.to_dict()), r"cfg .* is \{.*it must be an object with d_in, d_sae"),
        (lambda sae: setattr(sae.cfg, "hook_name", 5), "cfg.hook_name of this HookedSAE is 5; it must be a string"),
        (lambda sae: setattr(sae.cfg, "d_in", 6.5), "cfg.d_in is 6.5; it must be a whole number"),
        (lambda sae: setattr(sae.cfg, "d_sae", 0), "cfg.d_sae is 0; it must be at least 1"),
    ],
)
def test_parameters_and_configs_that_cannot_be_exported(change, message, tmp_path):
    sae = make_sae()
    change(sae)
    with pytest.raises(ExportError, match=message):
        export(sae, tmp_path / "sae", ACTIVATIONS)
    assert not any(tmp_path.iterdir())


def test_an_sae_without_parameters(tmp_path):
    sae = make(EncodesByItself)
    for name in list(sae._parameters):
        values = sae._parameters.pop(name).detach()
        sae.register_buffer(name, values)
    with pytest.raises(ExportError, match="This EncodesByItself has no parameters; its weights must be parameters"):
        export(sae, tmp_path / "sae", ACTIVATIONS)


@pytest.mark.parametrize("name", ["input", "target", "k", "values", "feature_scale"])
def test_a_parameter_with_the_name_of_an_input_or_output(name, tmp_path):
    sae = make(EncodesByItself)
    sae.register_parameter(name, nn.Parameter(torch.zeros(16)))
    with pytest.raises(ExportError, match=f"{name} is the name of an input or output of a graph"):
        export(sae, tmp_path / "sae", ACTIVATIONS)


def test_a_buffer_that_is_no_weight(tmp_path):
    sae = make(EncodesByItself)
    sae.register_buffer("steps", torch.tensor(7))
    with pytest.raises(ExportError, match=r"steps is int64; weights .*Register a buffer .* with persistent=False"):
        export(sae, tmp_path / "sae", ACTIVATIONS)


def test_methods_of_one_object_are_not_lost(tmp_path):
    sae = make_sae()
    sae.activation = types.MethodType(lambda self, acts_pre, x: 2 * torch.relu(acts_pre), sae)
    with pytest.raises(ExportError, match=r"computes something else than the SAE that is loaded.*make it a subclass"):
        export(sae, tmp_path / "sae", ACTIVATIONS)


def test_what_pytorch_cannot_trace_is_said_without_its_advice(tmp_path):
    class Numpy(HookedSAE):
        def activation(self, acts_pre, x):
            return torch.from_numpy(np.maximum(acts_pre.numpy(), 0))

    with pytest.raises(ExportError, match=r"PyTorch cannot trace this Numpy: \w+: .*numpy") as caught:
        export(make(Numpy), tmp_path / "sae", ACTIVATIONS)
    assert "\033" not in str(caught.value)


def test_every_architecture_has_the_parameters_of_its_config():
    from saeexport.original.exportable import check_tensors
    from tests.support.zoo import sae_of

    for architecture in ARCHITECTURES:
        check_tensors(sae_of(architecture))
