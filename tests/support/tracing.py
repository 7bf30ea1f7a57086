"""A cache of traces for the tests: tracing is most of what a small export costs, and many tests trace the same SAE.

A trace is reused only if everything that it depends on is equal: the class and its functions, the configuration, and
the parameters with their values. A class that a test defines is always traced. The cache does not
notice a change of a function outside the class that an SAE calls; a test with such a change uses `fresh_trace`.
"""

import copy
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
    tensors = [
        (name, tensor.dtype, tensor.device, tensor.shape, tensor.stride(), pointers.index(tensor.data_ptr()),
         hashlib.sha256(to_bits(tensor.contiguous())).digest())
        for name, tensor in state.items()
    ]  # fmt: skip
    return (type(sae), *functions, repr(config), repr(sae.cfg), *tensors, torch.get_default_dtype())


def clone(model):
    """Return a copy, in which new nodes will have the same names as in the model itself."""
    copied = model.clone()
    copied.graph._name_authority = copy.deepcopy(model.graph._name_authority)
    return copied


def hooked(sae):
    """Tell whether a function is attached to a module of an SAE."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in sae.modules())


def remember_operators(monkeypatch):
    """Let PyTorch's exporter build its table of operators once for each opset, and not for each trace."""
    try:
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
