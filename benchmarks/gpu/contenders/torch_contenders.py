"""The contenders that PyTorch runs."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contenders import names
from benchmarks.gpu.contenders.agreement import TOP, WATCH, scatter_top
from benchmarks.gpu.contenders.names import GRAPHED_ROWS, TOP_K, Contender, Factories
from benchmarks.gpu.device import Device
from benchmarks.shared.equations import encode, original_hooks, six_hooks, top_features
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_NAMES

try:
    from saeexport import HookedSAE
except ImportError:  # transformer_lens is not installed: `original_hooks` replaces the class, and the results say so
    HookedSAE = None  # type: ignore[assignment, misc]

Function = Callable[[Tensor], Any]

REDUCE_OVERHEAD = "reduce-overhead"

ORIGINAL_IS = "its equations in plain PyTorch" if HookedSAE is None else "HookedSAE.run_with_cache"


def torch_contenders(
    weights: Mapping[str, Tensor], inputs: Sequence[Tensor], device: Device, tuned: bool, watched: Tensor
) -> Factories:
    """Return PyTorch's contenders for some sets of inputs.

    Args:
        weights: Parameters of the SAE, on the device.
        inputs: Sets of inputs, on the device.
        device: The device that runs them.
        tuned: Whether torch.compile also autotunes, which takes up to a minute.
        watched: Ids of the features that are watched.
    """
    run = make_original(weights)
    eager, given = torch.inference_mode(), tuple(weights.values())
    on_host = [x.cpu() for x in inputs]

    def deduplicated(x: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return six_hooks(x, *given)

    def compiled(mode: str | None) -> Contender:
        function = torch.compile(Deduplicated(weights), dynamic=False, mode=mode)

        def call(x: Tensor) -> tuple[Tensor, ...]:
            if mode == REDUCE_OVERHEAD:  # the results of the previous call are no longer needed
                torch.compiler.cudagraph_mark_step_begin()
            with torch.no_grad():
                return function(x)

        return Contender(inputs, call, name_hooks)

    def from_host_to_host(x: Tensor) -> list[Tensor]:
        return [tensor.cpu() for tensor in deduplicated(x.to(device.torch))]

    def encoder(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return encode(x, weights["W_enc"], weights["b_enc"], weights["b_dec"])

    def top(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.inference_mode():
            return top_features(encoder(x), min(TOP_K, len(weights["b_enc"])))

    columns = weights["W_enc"][:, watched].contiguous(), weights["b_enc"][watched].contiguous()

    def watch(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return encode(x, *columns, weights["b_dec"])

    factories: Factories = {
        names.ORIGINAL: lambda: Contender(inputs, eager(run), name_hooks),
        names.DEDUPLICATED: lambda: Contender(inputs, deduplicated, name_hooks),
        names.COMPILED: functools.partial(compiled, None),
        names.TORCH_HOST: lambda: Contender(on_host, from_host_to_host, name_hooks),
        names.TORCH_ENCODE: lambda: Contender(inputs, encoder, lambda acts: {HOOK_ACTS_POST: acts}),
        names.TORCH_TOP: lambda: Contender(
            inputs, top, lambda result: {TOP: scatter_top(result[0], result[1], len(weights["b_enc"]))}
        ),
        names.TORCH_WATCH: lambda: Contender(inputs, watch, lambda acts: {WATCH: acts}),
    }
    if tuned:
        factories[names.TUNED] = functools.partial(compiled, "max-autotune-no-cudagraphs")
    if device.torch.type == "cuda" and len(inputs[0]) in GRAPHED_ROWS:
        factories[names.ORIGINAL_GRAPH] = lambda: Contender(inputs, Captured(eager(run), inputs[0]), name_hooks)
        factories[names.REDUCED] = functools.partial(compiled, REDUCE_OVERHEAD)
    return factories


class Deduplicated(torch.nn.Module):
    """`six_hooks` with its weights as parameters. A CUDA graph reads parameters in place, but copies arguments."""

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
    """A function captured as a CUDA graph. Its input is copied to a fixed buffer; its result is in a fixed buffer."""

    def __init__(self, function: Function, example: Tensor) -> None:
        self._x = example.clone()
        for _ in range(3):  # libraries initialise themselves in the first calls, which cannot be captured
            function(self._x)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = function(self._x)

    def __call__(self, x: Tensor) -> Any:
        """Replay the graph."""
        self._x.copy_(x)
        self._graph.replay()
        return self._result


def make_original(weights: Mapping[str, Tensor]) -> Function:
    """Return the PyTorch original with the error term, as its user calls it."""
    if HookedSAE is None:
        return lambda x: original_hooks(x, *weights.values())
    d_in, d_sae = weights["W_enc"].shape
    config = {"d_in": d_in, "d_sae": d_sae, "hook_name": "h", "use_error_term": True, "device": "meta",
              "dtype": weights["W_enc"].dtype}  # fmt: skip
    sae = HookedSAE(config)
    sae.load_state_dict(dict(weights), assign=True)
    return lambda x: sae.run_with_cache(x)[1]


def name_hooks(hooks: Any) -> dict[str, Tensor]:
    """Return six hooks by name, from a cache or from a sequence in firing order."""
    if hasattr(hooks, "keys"):
        return {name: hooks[name] for name in HOOK_NAMES}
    return dict(zip(HOOK_NAMES, hooks, strict=True))
