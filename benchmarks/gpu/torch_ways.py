"""The contenders that PyTorch runs."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import contenders as names
from benchmarks.gpu.agreement import TOP, dense
from benchmarks.gpu.contenders import GRAPHED_ROWS, K, Makers, Way
from benchmarks.gpu.device import Device
from benchmarks.gpu.equations import encode, original, six_hooks, top_features
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_NAMES

try:
    from saeexport import HookedSAE
except ImportError:  # transformer_lens is not installed; `equations.original` stands in, and the results say so
    HookedSAE = None  # type: ignore[assignment, misc]

Function = Callable[[Tensor], Any]

REDUCE_OVERHEAD = "reduce-overhead"

ORIGINAL_IS = "its equations in plain PyTorch" if HookedSAE is None else "HookedSAE.run_with_cache"


def torch_ways(weights: Mapping[str, Tensor], inputs: Sequence[Tensor], device: Device, tuned: bool) -> Makers:
    """Return PyTorch's contenders for some sets of inputs.

    Args:
        weights: on the device.
        inputs: on the device.
        device: that they are on.
        tuned: whether to autotune, which takes up to a minute.
    """
    run = original_of(weights)
    eager, given = torch.inference_mode(), tuple(weights.values())
    on_host = [x.cpu() for x in inputs]

    def deduplicated(x: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return six_hooks(x, *given)

    def compiled(mode: str | None) -> Way:
        function = torch.compile(Deduplicated(weights), dynamic=False, mode=mode)

        def call(x: Tensor) -> tuple[Tensor, ...]:
            if mode == REDUCE_OVERHEAD:  # the results of the call before are no longer needed
                torch.compiler.cudagraph_mark_step_begin()
            with torch.no_grad():
                return function(x)

        return Way(inputs, call, six_named)

    def from_host_to_host(x: Tensor) -> list[Tensor]:
        return [tensor.cpu() for tensor in deduplicated(x.to(device.torch))]

    def encoder(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return encode(x, weights["W_enc"], weights["b_enc"], weights["b_dec"])

    def top(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.inference_mode():
            return top_features(encoder(x), min(K, len(weights["b_enc"])))

    makers: Makers = {
        names.ORIGINAL: lambda: Way(inputs, eager(run), six_named),
        names.DEDUPLICATED: lambda: Way(inputs, deduplicated, six_named),
        names.COMPILED: functools.partial(compiled, None),
        names.TORCH_HOST: lambda: Way(on_host, from_host_to_host, six_named),
        names.TORCH_ENCODE: lambda: Way(inputs, encoder, lambda acts: {HOOK_ACTS_POST: acts}),
        names.TORCH_TOP: lambda: Way(
            inputs, top, lambda found: {TOP: dense(found[0], found[1], len(weights["b_enc"]))}
        ),
    }
    if tuned:
        makers[names.TUNED] = functools.partial(compiled, "max-autotune-no-cudagraphs")
    if device.torch.type == "cuda" and len(inputs[0]) in GRAPHED_ROWS:
        makers[names.ORIGINAL_GRAPH] = lambda: Way(inputs, Captured(eager(run), inputs[0]), six_named)
        makers[names.REDUCED] = functools.partial(compiled, REDUCE_OVERHEAD)
    return makers


class Deduplicated(torch.nn.Module):
    """`six_hooks` of parameters, which a CUDA graph reads where they are; arguments would be copied for each call."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in weights.items():
            self.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the six hook tensors."""
        return six_hooks(x, self.W_enc, self.b_enc, self.W_dec, self.b_dec)


class Captured:
    """A function as a CUDA graph: what it reads is copied to one place, what it writes is in one place."""

    def __init__(self, function: Function, example: Tensor) -> None:
        self._x = example.clone()
        for _ in range(3):  # libraries start up in the first calls, which cannot be captured
            function(self._x)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = function(self._x)

    def __call__(self, x: Tensor) -> Any:
        """Replay the graph."""
        self._x.copy_(x)
        self._graph.replay()
        return self._result


def original_of(weights: Mapping[str, Tensor]) -> Function:
    """Return the PyTorch original with the error term, as its user calls it."""
    if HookedSAE is None:
        return lambda x: original(x, *weights.values())
    d_in, d_sae = weights["W_enc"].shape
    config = {"d_in": d_in, "d_sae": d_sae, "hook_name": "h", "use_error_term": True, "device": "meta",
              "dtype": weights["W_enc"].dtype}  # fmt: skip
    sae = HookedSAE(config)
    sae.load_state_dict(dict(weights), assign=True)
    return lambda x: sae.run_with_cache(x)[1]


def six_named(hooks: Any) -> dict[str, Tensor]:
    """Return six hooks by name, of a cache or of a sequence in firing order."""
    if hasattr(hooks, "keys"):
        return {name: hooks[name] for name in HOOK_NAMES}
    return dict(zip(HOOK_NAMES, hooks, strict=True))
