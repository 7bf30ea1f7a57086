"""The contenders that PyTorch runs."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.cpu.contenders.cases import ARTIFACT, WATCHED, load_encoder, load_weights
from benchmarks.cpu.contenders.names import Call, UnavailableError
from benchmarks.cpu.contenders.uses import ALL_HOOKS, FEATURES, FEW, WATCH
from benchmarks.shared.equations import encode, six_hooks
from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_NAMES, INDICES, VALUES
from saeexport import HookedSAE, load

Equation = Callable[..., tuple[Tensor, ...]]


class Original:
    """HookedSAE as its user calls it; with the error term it runs the encoder and decoder a second time."""

    use_error_term = True

    def __init__(self, folder: Path, use: str, threads: int) -> None:
        self.use = use
        self.sae = _load_sae(folder, threads)
        self.sae.cfg.use_error_term = self.use_error_term
        self.ids = torch.from_numpy(np.load(folder / WATCHED))

    def bind(self, x: Array) -> Call:
        """Return the call for an input."""
        tensor = torch.from_numpy(x)
        run = {ALL_HOOKS: self.sae.run_with_cache, FEATURES: self._strongest, WATCH: self._watched}[self.use]

        def call() -> object:
            with torch.inference_mode():
                return run(tensor)

        return call

    def compute(self, x: Array) -> dict[str, Array]:
        """Return the hooks that fire, and what a use selects of them; the other contenders are compared with these."""
        with torch.inference_mode():
            _, cache = self.sae.run_with_cache(torch.from_numpy(x))
            hooks = {hook: cache[hook] for hook in cache}
            if self.use == FEATURES:
                indices, values = strongest_of(hooks[HOOK_ACTS_POST])
                hooks |= {INDICES: indices, VALUES: values}
            elif self.use == WATCH:
                hooks = {hook: hooks[hook][..., self.ids] for hook in (HOOK_ACTS_PRE, HOOK_ACTS_POST)}
            return {name: tensor.numpy() for name, tensor in hooks.items()}

    def _strongest(self, x: Tensor) -> tuple[Tensor, ...]:
        return strongest_of(self.sae.encode(x))

    def _watched(self, x: Tensor) -> Tensor:
        return self.sae.encode(x)[..., self.ids]


class OriginalWithoutError(Original):
    """HookedSAE without the error term. This is another function: its output is the reconstruction."""

    use_error_term = False

    def compute(self, x: Array) -> dict[str, Array]:
        """Return the hooks that do not depend on the error term."""
        hooks = super().compute(x)
        return {hook: hooks[hook] for hook in HOOK_NAMES[:4]}


class Equations:
    """The same equations and the same tensors in plain PyTorch, with each product computed once.

    For `WATCH` it multiplies with the columns of the watched features alone.
    """

    def __init__(self, folder: Path, use: str, threads: int) -> None:
        torch.set_num_threads(threads)
        W_enc, b_enc, b_dec = load_encoder(folder, use)
        arrays = (W_enc, b_enc, *([load_weights(folder)["W_dec"]] if use == ALL_HOOKS else []), b_dec)
        self.weights = [torch.from_numpy(array).clone() for array in arrays]  # in memory that PyTorch aligned
        self.equation, self.names = EQUATIONS[use]

    def bind(self, x: Array) -> Call:
        """Return the call for an input."""
        tensor, function = torch.from_numpy(x), self.make_function()

        def call() -> object:
            with torch.no_grad():
                return function(tensor, *self.weights)

        return call

    def compute(self, x: Array) -> dict[str, Array]:
        """Return the outputs for an input."""
        with torch.no_grad():
            tensors = self.make_function()(torch.from_numpy(x), *self.weights)
        return {name: tensor.numpy() for name, tensor in zip(self.names, tensors, strict=True)}

    def make_function(self) -> Equation:
        """Return the function that computes the outputs."""
        return self.equation


class Compiled(Equations):
    """The same function, compiled for each number of rows."""

    mode = "default"

    def make_function(self) -> Equation:
        """Return the compiled function."""
        return cast(Equation, torch.compile(self.equation, dynamic=False, mode=self.mode))

    def bind(self, x: Array) -> Call:
        """Return the call for an input after compiling it.

        Raises:
            UnavailableError: torch.compile does not work here, most often because there is no C++ compiler.
        """
        torch._dynamo.reset()
        call = super().bind(x)
        try:
            call()
        except Exception as error:  # the type depends on what is missing
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UnavailableError(f"torch.compile does not work here: {reason}") from error
        return call


class Autotuned(Compiled):
    """The same function, compiled with the kernels that are fastest in a trial."""

    mode = "max-autotune"


def strongest_of(acts_post: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices and values of the `FEW` strongest features of each token."""
    values, indices = acts_post.topk(FEW, dim=-1)
    return indices, values


def strongest(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> tuple[Tensor, ...]:
    """Return the indices and values of the `FEW` strongest features of each token."""
    return strongest_of(encode(x, W_enc, b_enc, b_dec))


def watched(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> tuple[Tensor, ...]:
    """Return the activations of the features whose parameters are given."""
    return (encode(x, W_enc, b_enc, b_dec),)


EQUATIONS: dict[str, tuple[Equation, tuple[str, ...]]] = {
    ALL_HOOKS: (six_hooks, HOOK_NAMES),
    FEATURES: (strongest, (INDICES, VALUES)),
    WATCH: (watched, (HOOK_ACTS_POST,)),
}
"""The function of each use, and the names of what it returns."""


def _load_sae(folder: Path, threads: int) -> HookedSAE:
    """Return the SAE with its weights in memory that PyTorch allocated and aligned, not in a mapped file."""
    torch.set_num_threads(threads)
    sae = load(folder / ARTIFACT)
    sae.load_state_dict({name: tensor.clone() for name, tensor in sae.state_dict().items()}, assign=True)
    return sae
