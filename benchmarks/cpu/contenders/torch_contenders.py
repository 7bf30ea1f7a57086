"""The contenders that PyTorch runs."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from benchmarks.cpu.contenders.cases import ARTIFACT
from benchmarks.cpu.contenders.names import (
    COMPILED,
    DEDUPLICATED,
    ORIGINAL,
    ORIGINAL_WITHOUT_ERROR,
    Call,
    UnavailableError,
)
from benchmarks.shared.equations import six_hooks
from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_NAMES
from saeexport import HookedSAE, load

SixHooks = Callable[..., tuple[Tensor, ...]]


class Original:
    """HookedSAE with the error term, as its user calls it; the error runs the encoder and decoder a second time."""

    name, use_error_term = ORIGINAL, True

    def __init__(self, folder: Path, threads: int) -> None:
        self.sae = _load_sae(folder, threads)
        self.sae.cfg.use_error_term = self.use_error_term

    def bind(self, x: Array) -> dict[str, Call]:
        """Return the call for an input."""
        tensor = torch.from_numpy(x)

        def call() -> object:
            with torch.inference_mode():
                return self.sae.run_with_cache(tensor)

        return {self.name: call}

    def compute_hooks(self, x: Array) -> dict[str, Array]:
        """Return the hooks that run."""
        with torch.inference_mode():
            _, cache = self.sae.run_with_cache(torch.from_numpy(x))
            return {hook: cache[hook].numpy() for hook in cache}


class OriginalWithoutError(Original):
    """HookedSAE without the error term. This is another function: its output is the reconstruction."""

    name, use_error_term = ORIGINAL_WITHOUT_ERROR, False

    def compute_hooks(self, x: Array) -> dict[str, Array]:
        """Return the hooks that do not depend on the error term."""
        hooks = super().compute_hooks(x)
        return {hook: hooks[hook] for hook in HOOK_NAMES[:4]}


class Deduplicated:
    """The same equations and the same six tensors in plain PyTorch, with each product computed once."""

    name = DEDUPLICATED

    def __init__(self, folder: Path, threads: int) -> None:
        sae = _load_sae(folder, threads)
        self.weights = tuple(tensor.detach() for tensor in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))

    def bind(self, x: Array) -> dict[str, Call]:
        """Return the call for an input."""
        tensor, function = torch.from_numpy(x), self.make_function()

        def call() -> object:
            with torch.no_grad():
                return function(tensor, *self.weights)

        return {self.name: call}

    def compute_hooks(self, x: Array) -> dict[str, Array]:
        """Return the six hooks."""
        with torch.no_grad():
            tensors = self.make_function()(torch.from_numpy(x), *self.weights)
        return {hook: tensor.numpy() for hook, tensor in zip(HOOK_NAMES, tensors, strict=True)}

    def make_function(self) -> SixHooks:
        """Return the function that computes the six hooks."""
        return six_hooks


class Compiled(Deduplicated):
    """The same function, compiled for each number of rows."""

    name = COMPILED

    def make_function(self) -> SixHooks:
        """Return the compiled function."""
        return cast(SixHooks, torch.compile(six_hooks, dynamic=False))

    def bind(self, x: Array) -> dict[str, Call]:
        """Return the call for an input after compiling it.

        Raises:
            UnavailableError: torch.compile does not work here, most often because there is no C++ compiler.
        """
        torch._dynamo.reset()
        parts = super().bind(x)
        try:
            parts[self.name]()
        except Exception as error:  # the type depends on what is missing
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UnavailableError(f"torch.compile does not work here: {reason}") from error
        return parts


def _load_sae(folder: Path, threads: int) -> HookedSAE:
    """Return the SAE with its weights in memory that PyTorch allocated and aligned, not in a mapped file."""
    torch.set_num_threads(threads)
    sae = load(folder / ARTIFACT)
    sae.load_state_dict({name: tensor.clone() for name, tensor in sae.state_dict().items()}, assign=True)
    return sae
