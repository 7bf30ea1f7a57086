"""A cache of traces for the tests: tracing is most of what a small export costs, and many tests trace the same SAE.

A trace is reused only if everything that it depends on is equal: the class and its functions, the configuration, and
the shapes, dtypes and strides of the parameters. PyTorch traces without their values. The optimizer reads the values
once, to merge initializers that are equal, so that it also counts which parameters equal each other, and what the
values are where all values of a parameter are the same, as those of a constant in the graph may be. A class that a
test defines is always traced. The cache does not notice a change of a function outside the class that an SAE calls; a
test with such a change uses `fresh_trace`.
"""

import copy
import dataclasses
import functools
import hashlib
import types

import torch

from saeexport.graphs import write
from saeexport.original.running import to_bits

TRACE = write.trace
FUNCTIONS = (types.FunctionType, types.MethodType, classmethod, staticmethod, property)


class CachedTrace:
    """Stands for `saeexport.graphs.trace.trace`, and calls it for an SAE that it has not seen yet."""

    def __init__(self):
        self.models = {}
        self.reused = 0

    def __call__(self, sae, config):
        if (key := key_of(sae, config)) is None:
            return TRACE(sae, config)
        if key in self.models:
            self.reused += 1
        else:
            self.models[key] = clone(TRACE(sae, config))
        model = clone(self.models[key])
        state = sae.state_dict()  # a test may have changed the parameters of the SAE that was traced
        for name, value in model.graph.initializers.items():
            if name in state:
                value.const_value = type(value.const_value)(state[name], name)
        return model


def key_of(sae, config):
    """Return what a trace depends on, or None for an SAE that has to be traced: a test's own, or changed by a test."""
    bases = [base for base in type(sae).__mro__ if base.__module__.startswith("saeexport.")]
    if type(sae) not in bases or any(isinstance(value, FUNCTIONS) for value in vars(sae).values()) or hooked(sae):
        return None
    functions = [value for base in bases for value in vars(base).values() if isinstance(value, FUNCTIONS)]
    state = sae.state_dict()
    pointers = [tensor.data_ptr() for tensor in state.values()]  # PyTorch sees which parameters share their memory
    digests = [hashlib.sha256(to_bits(tensor.contiguous())).digest() for tensor in state.values()]
    tensors = [
        (name, tensor.dtype, tensor.device, tensor.shape, tensor.stride(), pointers.index(tensor.data_ptr()),
         digest if uniform(tensor) else digests.index(digest))
        for (name, tensor), digest in zip(state.items(), digests, strict=True)
    ]  # fmt: skip
    cfgs = [repr(dataclasses.replace(cfg, seed=None)) for cfg in (config, sae.cfg)]  # the seed is that of the weights
    return (type(sae), *functions, *cfgs, *tensors, torch.get_default_dtype())


def uniform(tensor):
    """Tell whether all values of a tensor are the same."""
    return bool((tensor == tensor.flatten()[:1]).all())


def clone(model):
    """Return a copy, in which new nodes will have the same names as in the model itself."""
    copied = model.clone()
    copied.graph._name_authority = copy.deepcopy(model.graph._name_authority)
    return copied


def hooked(sae):
    """Tell whether a function is attached to a module of an SAE."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in sae.modules())


def remember_operators(monkeypatch):
    """Let PyTorch list its operators once, and not for each trace; its exporter builds a table for each opset."""
    try:
        from torch._export.utils import _collect_all_valid_cia_ops as collect
        from torch.export import decomp_utils, exported_program
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # another PyTorch: the tests are slower
        return
    build, built = ONNXRegistry.from_torchlib, {}

    def from_torchlib(**options):
        key = tuple(options.items())
        if key not in built:
            built[key] = build(**options)
        registry = ONNXRegistry()  # operators are registered in a copy only
        registry._opset_version = built[key].opset_version
        registry.functions = {target: list(found) for target, found in built[key].functions.items()}
        return registry

    monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))
    collected = functools.cache(lambda: frozenset(collect()))
    for module in (decomp_utils, exported_program):
        monkeypatch.setattr(module, "_collect_all_valid_cia_ops", lambda: set(collected()), raising=False)
