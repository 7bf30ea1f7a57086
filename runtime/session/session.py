"""SAESession: a HookedSAE, executed by ONNX Runtime, with the names, shapes and order of the PyTorch original."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..arrays.dtypes import FLOAT32
from ..arrays.tensor import Array, TensorValue
from ..artifact.contracts import DECODE
from ..artifact.names import HOOK_ACTS_POST, HOOK_NAMES, HOOK_OUTPUT, HOOK_RECONS, INPUT
from ..devices.options import Options
from ..errors import InputError
from .batch import NamesFilter, as_dtype, flat_shape, select_hooks
from .engine import Engine
from .hooks import FwdHooks, HookPoint, PlacedHooks, caller, placed_hooks, run_hooked
from .interventions import Edit, Intervention


@dataclass(frozen=True)
class _InGraph:
    """An intervention that the graph carries out if it is alone, and a hook function otherwise."""

    intervention: Intervention

    def __call__(self, acts_post: Array, hook: object = None) -> Array:
        return self.intervention(acts_post, hook)


class SAESession(Engine):
    """The SAE of an artifact, ready to run.

    numpy in, numpy out. On a GPU, an array of the device in any library that speaks DLPack is read where it is, and
    what comes back is a `Tensor` of the device, which `torch.from_dlpack`, CuPy and JAX take without a copy. On the
    host, bfloat16 arrays have the dtype `ml_dtypes.bfloat16`.

    A graph is loaded when it is first needed, and the smallest one that computes what was asked is run. Calls from
    several threads at once are safe. Use it as a context manager, or call `close`, to free its memory.

    Activations can be changed on their way: by edits of features that the graph carries out (`steer`, `steering`), or
    by hook functions (`run_with_hooks`, `hooks`). Both reach `__call__` and `run_with_cache`; `encode`, `decode` and
    `compute` stay those of the clean pass.

    Attributes:
        artifact: what was opened.
        device: what runs it, "cpu" or "cuda:N".

    Args:
        path: the artifact's folder.
        device: "auto" (CUDA if it really starts, else the CPU), "cpu", "cuda", "cuda:N", "tensorrt" or "tensorrt:N".
        graphs: "auto" prefers on the CPU the graphs that are written for it, and elsewhere the portable ones, without
            control flow; "cpu" and "portable" say which. They compute the same; `explain` says which one would run.
        precision: of products in float32 on a GPU: "float32", as PyTorch's default, or "tf32", which rounds their
            factors to 10 bits and is faster.
        threads: of the CPU, for one call; None takes one per core that this process may use.
        arena: keep freed memory for the next call. Without, it goes back to the system, and large calls take longer.
        memory_limit: in bytes, of a GPU, for the weights and what a graph needs while it runs; batches are cut into
            blocks that fit. Of several graphs that are open each may need as much beside the weights. What comes on
            top: CUDA itself, some hundred MB, and results that stay on the GPU.
        block_tokens: how many tokens are run at a time; None for 64 MiB of features, on a GPU 512 MiB. Memory beyond
            the result does not grow with the batch.
        stream: of a GPU, a CUDA stream of torch or CuPy, or its address: everything is queued on it, and a call with an
            array of the device returns at once; an input that was made on another stream has to be kept until then.
            None takes a stream of its own, and a call returns when its results are there.
        cuda_graph: of a GPU, the numbers of tokens for which the launches are captured once and replayed
            (`runtime/devices/cuda/replay.py`); other batches take the normal path.
        cache: the folder for TensorRT's engines; None for the user's.
        check_integrity: compare the sha256 of every file that is loaded with the manifest's. It reads the weights once
            more (about a second per 2 GB); the sizes are compared in any case.

    Raises:
        ArtifactError: the folder is not an artifact, or a file of it is not what it should be.
        ProviderError: the device cannot be used, or cannot run this artifact.
        InputError: an option has a value that it cannot have.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        *,
        graphs: str = "auto",
        precision: str = FLOAT32,
        threads: int | None = None,
        arena: bool = True,
        memory_limit: int | None = None,
        block_tokens: int | None = None,
        stream: Any = None,
        cuda_graph: Sequence[int] = (),
        cache: str | os.PathLike[str] | None = None,
        check_integrity: bool = True,
    ) -> None:
        options = Options(
            graphs, precision, threads, arena, memory_limit, block_tokens, stream, tuple(cuda_graph), cache,
            check_integrity,
        )  # fmt: skip
        super().__init__(path, device, options)
        self._hook_points = {name: HookPoint(name) for name in HOOK_NAMES}
        # With whom they are of: a task that was started inside the block copies the context, and must not see them.
        self._hooks: ContextVar[tuple[object, PlacedHooks]] = ContextVar("hooks", default=(None, ()))

    def __call__(self, x: Any, target: Any = None) -> TensorValue:
        """Return `hook_sae_output`, with the shape of `x` (of a transcoder `(..., d_out)`) and the SAE's dtype.

        Args:
            x: `(..., d_in)`, or `(..., n_heads, d_head)` where `cfg.hook_name` ends in `_z`; of the SAE's dtype, or
                for float32 also float16 and integers.
            target: for a transcoder with the error term (`cfg.takes_target`), the activation that it predicts.

        Raises:
            InputError: `x` or `target` has another shape or dtype, or the target is missing or not taken.
        """
        return self._forward(x, [HOOK_OUTPUT], target)[HOOK_OUTPUT]

    def run_with_cache(
        self,
        x: Any,
        names_filter: NamesFilter = None,
        *,
        target: Any = None,
        return_output: bool = True,
    ) -> tuple[TensorValue | None, dict[str, TensorValue]]:
        """Return the output, and the hooks that fire in the original and pass the filter, in firing order.

        `hook_sae_input` is `x` itself. Unknown names in the filter are ignored.

        Args:
            x: as for `__call__`.
            names_filter: None for all hooks, a name, a list of names, or a function of a name.
            target: as for `__call__`.
            return_output: False returns None for the output and does not compute it: with
                `names_filter="hook_sae_acts_post"` only the encoder runs.

        Raises:
            InputError: as for `__call__`.
            ValueError: `names_filter` is of another type.
        """
        wanted = [name for name in select_hooks(names_filter) if name in self.cfg.fired_hooks]
        hooks = self._forward(x, [*wanted, HOOK_OUTPUT] if return_output else wanted, target)
        return (hooks[HOOK_OUTPUT] if return_output else None), {name: hooks[name] for name in wanted}

    def run_with_hooks(self, x: Any, fwd_hooks: FwdHooks = (), *, target: Any = None) -> TensorValue:
        """Return the output of a pass in which functions read or replace the tensors at hooks.

        As in TransformerLens: `fn(tensor, hook=point)` is called with the tensor, `(..., d_sae)` or of the shape of
        `x`, and a `HookPoint`, whose `name` says where. What it returns replaces the tensor, None keeps it; an edit in
        place is effective; functions at one hook run in the order given. At `hook_sae_input` a returned value changes
        nothing, and an edit in place changes the caller's `x`. The error is always that of the clean pass; without the
        error term `hook_sae_error` does not fire.

        Args:
            x: as for `__call__`.
            fwd_hooks: (where, function) pairs; where is a hook's name, or a function that tells of a name whether.
            target: as for `__call__`.

        Raises:
            UnknownHookError: a name is not a hook; it is a KeyError.
            InputError: `x` or `target` does not fit, or a function returned an array of another shape or dtype.
        """
        with self.hooks(fwd_hooks):
            return self(x, target)

    @contextmanager
    def hooks(self, fwd_hooks: FwdHooks = ()) -> Iterator["SAESession"]:
        """Let hook functions take part in every `__call__` and `run_with_cache` inside the `with` block.

        They count for the thread or asyncio task that entered the block, and for no other. Blocks can be nested, with
        `steering` too: functions of the outer one come first.

        Raises:
            UnknownHookError: a name is not a hook; it is a KeyError.
        """
        token = self._hooks.set((caller(), self._active_hooks() + placed_hooks(fwd_hooks)))
        try:
            yield self
        finally:
            self._hooks.reset(token)

    def steer(
        self,
        x: Any,
        edits: Mapping[int, Edit] | Intervention,
        names_filter: NamesFilter = None,
        *,
        target: Any = None,
        return_output: bool = True,
    ) -> tuple[TensorValue | None, dict[str, TensorValue]]:
        """Return the output and the hooks of a pass with edited features, at about the price of a pass without.

        It is what `run_with_cache` returns in PyTorch with a forward hook on `hook_sae_acts_post` that makes the same
        edits: acts_post, recons and output are edited, the error is that of the clean pass. The edited reconstruction
        is the clean one plus an update, and rounds as the clean one does: where the edits take away nearly all of a
        very large one, `run_with_hooks` with the `Intervention` as a function is more exact.

            sae.steer(x, {123: Ablate(), 77: Clamp(5.0), 9: Scale(3.0), 4: Add(0.5)})

        Args:
            x: as for `__call__`.
            edits: what to do with which feature, for all tokens or, with arrays of the shape of the tokens, for each.
            names_filter: as for `run_with_cache`.
            target: as for `__call__`.
            return_output: as for `run_with_cache`.

        Raises:
            InputError: `x` does not fit, or the edits are not as `Intervention` says.
        """
        with self.steering(edits):
            return self.run_with_cache(x, names_filter, target=target, return_output=return_output)

    @contextmanager
    def steering(self, edits: Mapping[int, Edit] | Intervention) -> Iterator["SAESession"]:
        """Edit features in every `__call__` and `run_with_cache` inside the `with` block, as `steer` does in one.

        Blocks nest as those of `hooks`; a lone one runs in the graph, several or with hook functions run in stages.

        Raises:
            InputError: the edits are not as `Intervention` says.
        """
        if not isinstance(edits, Intervention):
            edits = Intervention.of(edits)
        edits.check(self.cfg.d_sae, self.cfg.dtype)
        with self.hooks([(HOOK_ACTS_POST, _InGraph(edits))]):
            yield self

    def encode(self, x: Any) -> TensorValue:
        """Return the activations of the features, `hook_sae_acts_post`, `(..., d_sae)`.

        Raises:
            InputError: `x` has another shape or dtype than `__call__` takes.
        """
        return self.compute(x, [HOOK_ACTS_POST])[HOOK_ACTS_POST]

    def decode(self, acts_post: Any, x: Any = None) -> TensorValue:
        """Return the reconstruction from activations `(..., d_sae)`.

        It has the shape `(..., d_in)`, or `(..., n_heads, d_head)` if the artifact was exported with its head shape;
        of a transcoder `(..., d_out)`.

        Args:
            acts_post: the activations.
            x: what they were encoded from, of the same leading dimensions; needed only where a normalisation has to be
                undone or a skip connection added.

        Raises:
            InputError: an array has another shape or dtype, or `x` is needed.
        """
        acts = as_dtype(self._graphs.backend.import_array(acts_post), self.cfg.dtype, "acts_post")
        lead = flat_shape(acts.shape, self.cfg.d_sae, what="acts_post")[:-1]
        feeds: dict[str, TensorValue] = {HOOK_ACTS_POST: acts.reshape(math.prod(lead), self.cfg.d_sae)}
        if INPUT in self._graphs.inputs(DECODE):
            batch = None if x is None else self._batch(x)
            if batch is None or batch.lead != lead:
                got = "no x" if batch is None else f"an x with the leading dimensions {batch.lead}"
                raise InputError(f"The decoder of this {self.cfg.architecture} SAE also reads the input; {got} was "
                                 f"given. Pass decode(acts_post, x) with {(*lead, self.cfg.d_in)}.")  # fmt: skip
            feeds |= batch.feeds()
        recons = self.run_graph(self._graphs.fitting(DECODE), feeds, [HOOK_RECONS])[HOOK_RECONS]
        return recons.reshape(*lead, *self.cfg.output_shape)

    def _active_hooks(self) -> PlacedHooks:
        """Return the functions of the blocks that this thread or asyncio task is in."""
        owner, hooks = self._hooks.get()
        return hooks if owner == caller() else ()

    def _forward(self, x: Any, names: Sequence[str], target: Any) -> dict[str, TensorValue]:
        """Return the named hooks, in that order, of a pass with what `hooks` and `steering` ask for in this context."""
        hooks = self._active_hooks()
        if not hooks:
            return self._compute(x, names, target)
        (where, function), *more = hooks
        if not more and where == HOOK_ACTS_POST and isinstance(function, _InGraph):
            return self._compute(x, names, target, function.intervention)
        batch = self._batch(x, target)
        fired = run_hooked(self._graphs, batch, hooks, self._hook_points, self.cfg.use_error_term)
        return {name: fired[name] for name in names}
