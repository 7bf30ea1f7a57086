"""SAESession: a HookedSAE, run by ONNX Runtime, with the names, shapes and order of the PyTorch original."""

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, TypeAlias, final, overload

from ..arrays.dtypes import FLOAT32
from ..arrays.tensor import Array, TensorValue
from ..artifact.folder import Artifact, read_artifact
from ..artifact.manifest import SAEConfig
from ..artifact.names import HOOK_ACTS_POST, HOOK_OUTPUT
from ..devices.blocks import block_sizes
from ..devices.capabilities import choose_block_tokens, choose_device
from ..devices.options import Options
from ..devices.start import CPU
from ..devices.threads import thread_limit
from ..errors import InputError
from .batch import Batch, NamesFilter, select_hooks
from .features import TopFeatures
from .forward import SteeringHook, compute, decode, encode, forward, top_features
from .graphs import Graphs
from .hooks import FwdHooks, HookFunction, HookPoint, HookRegistry, HookSelector, refuse_backward
from .interventions import Edit, Intervention
from .route import Plan, choose_graph
from .weights import map_parameters, parameter

Edits: TypeAlias = Mapping[int, Edit] | Intervention
"""The edit of each feature, by its id; or an intervention."""


@final
class SAESession:
    """The SAE of an artifact, ready to run.

    A numpy array gives numpy arrays. On a GPU, an array of the device, from any library that speaks DLPack, is read
    where it is and gives `Tensor`s of the device, which `torch.from_dlpack`, CuPy and JAX take without a copy. On the
    host, bfloat16 is `ml_dtypes.bfloat16`.

    A graph is loaded when it is first needed, and a request is answered by the smallest graph that computes it. Calls
    from several threads at once are safe. Use the session as a context manager, or call `close`, to free its memory.

    Activations can be changed on their way. Edits of features (`steer`, `steering`) are carried out by a graph, and
    reach `__call__`, `run_with_cache`, `run_with_hooks`, `encode` and `top_features`. Hook functions (`run_with_hooks`,
    `hooks`, `add_hook`) reach the first three, as in TransformerLens; there too `encode` is past the hooks. `compute`,
    `decode` and `run_graph` are always of the clean pass.

    Attributes:
        artifact: The artifact that was opened.
        device: Name of the device, "cpu", "cuda:N" or "tensorrt:N".

    Args:
        path: The folder of the artifact.
        device: "auto", "cpu", "cuda", "cuda:N", "tensorrt" or "tensorrt:N". "auto" chooses a GPU that can run the
            artifact, otherwise the CPU.
        graphs: "cpu" prefers CPU variants, "portable" runs portable graphs only, "auto" chooses by the device.
        precision: How float32 is multiplied on a GPU: "float32", as PyTorch's default, or "tf32", which rounds the
            factors to 10 bits and is faster.
        threads: Number of CPU threads of one call; None takes one per core that this process may use.
        arena: Whether freed memory is kept for the next call. Without it, large calls take longer.
        memory_limit: Bytes of GPU memory for the weights and for what a graph needs while it runs; batches are cut into
            blocks that fit. Each further open graph may need as much beside the weights, and CUDA itself (some hundred
            MB) and results that stay on the GPU come on top.
        block_tokens: Number of tokens that are run at a time; None takes 64 MiB of features, on a GPU 512 MiB. Memory
            beyond the result does not grow with the batch.
        stream: A CUDA stream of torch or CuPy, or its address. Everything is queued on it, and a call with an array of
            the device returns at once; an input made on another stream must be kept until then. None creates a stream,
            and a call returns when its results are there.
        cuda_graph: Numbers of tokens for which the launches are captured once and replayed
            (`runtime/devices/cuda/replay.py`); other batches take the normal path.
        cache: The folder for TensorRT's engines; None takes the user's.
        check_integrity: Whether the sha256 of every file that is loaded is compared with the manifest's, which reads
            the weights once more (about a second per 2 GB). Sizes are compared in any case.

    Raises:
        ArtifactError: the folder is not an artifact, or a file of it is not what the manifest says.
        ProviderError: the device cannot be used, or cannot run this artifact.
        InputError: an option has an invalid value.
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
        self._options = options = Options(
            graphs, precision, threads, arena, memory_limit, block_tokens, stream, tuple(cuda_graph), cache,
            check_integrity,
        )  # fmt: skip
        self.artifact: Artifact = read_artifact(path)
        found = choose_device(self.artifact, device, options)
        self.device: str = found.name
        for_cpu = options.graphs == "cpu" or (options.graphs == "auto" and found.kind == CPU)
        block_tokens = choose_block_tokens(self.artifact, found, options)
        self._graphs = Graphs(self.artifact, found, options, for_cpu, block_tokens)
        self._hooks = HookRegistry()
        self._parameters: dict[str, Array] = {}

    @property
    def cfg(self) -> SAEConfig:
        """The configuration of the SAE, from the manifest."""
        return self.artifact.manifest.sae

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The hooks that this artifact computes, in firing order; the same as `cfg.hooks`.

        Three sets of names differ in `hook_sae_error`:

        - `hook_dict` always has all six hooks: a function can be placed at each.
        - `hook_names` has the hooks that `compute` and `explain` take: all six; five for a transcoder without the error
          term, whose error would need a target.
        - `cfg.fired_hooks` has the hooks that fire in the original, and that `run_with_cache` returns: all six with the
          error term, five without.
        """
        return self.cfg.hooks

    @property
    def hook_dict(self) -> dict[str, HookPoint]:
        """The six hook points by name, in firing order; see `hook_names`."""
        return dict(self._hooks.points)

    @property
    def W_enc(self) -> Array:  # noqa: N802
        """The encoder's weights, `(d_in, d_sae)`; read-only and mapped from the file, as are the other three.

        Their dtype is the SAE's; bfloat16 is `ml_dtypes.bfloat16`. Matrices that are stored as int8 are not available.

        Raises:
            AttributeError: the architecture does not have this parameter, or it is stored as int8.
        """
        return self._parameter("W_enc")

    @property
    def b_enc(self) -> Array:
        """The encoder's bias, `(d_sae,)`; a gated SAE does not have it, see `W_enc`."""
        return self._parameter("b_enc")

    @property
    def W_dec(self) -> Array:  # noqa: N802
        """The decoder's weights, `(d_sae, d_in)` or `(d_sae, d_out)`; row j is feature j's direction. See `W_enc`."""
        return self._parameter("W_dec")

    @property
    def b_dec(self) -> Array:
        """The decoder's bias, `(d_in,)`, of a transcoder `(d_out,)`; see `W_enc`."""
        return self._parameter("b_dec")

    @overload
    def __call__(self, x: Array, target: Any = None) -> Array: ...
    @overload
    def __call__(self, x: Any, target: Any = None) -> TensorValue: ...
    def __call__(self, x: Any, target: Any = None) -> TensorValue:
        """Return `hook_sae_output`, with the shape of `x` (of a transcoder `(..., d_out)`) and the SAE's dtype.

        Args:
            x: `(..., d_in)`, or `(..., n_heads, d_head)` where `cfg.hook_name` ends in `_z`; of the SAE's dtype, or
                for a float32 SAE also float16, bfloat16 and integers.
            target: `(..., d_out)`, the activation that a transcoder with the error term predicts (`cfg.takes_target`).

        Raises:
            InputError: `x` or `target` has another shape or dtype, or the target is missing or not taken.
        """
        return self._forward(x, [HOOK_OUTPUT], target)[HOOK_OUTPUT]

    # fmt: off
    @overload
    def run_with_cache(self, x: Array, names_filter: NamesFilter = None, *, target: Any = None,
                       return_output: Literal[True] = True) -> tuple[Array, dict[str, Array]]: ...
    @overload
    def run_with_cache(self, x: Array, names_filter: NamesFilter = None, *, target: Any = None,
                       return_output: Literal[False]) -> tuple[None, dict[str, Array]]: ...
    @overload
    def run_with_cache(self, x: Any, names_filter: NamesFilter = None, *, target: Any = None,
                       return_output: Literal[True] = True) -> tuple[TensorValue, dict[str, TensorValue]]: ...
    @overload
    def run_with_cache(self, x: Any, names_filter: NamesFilter = None, *, target: Any = None,
                       return_output: Literal[False]) -> tuple[None, dict[str, TensorValue]]: ...
    @overload
    def run_with_cache(self, x: Any, names_filter: NamesFilter = None, *, target: Any = None,
                       return_output: bool) -> tuple[TensorValue | None, dict[str, TensorValue]]: ...
    # fmt: on
    def run_with_cache(
        self, x: Any, names_filter: NamesFilter = None, *, target: Any = None, return_output: bool = True
    ) -> tuple[Any, dict[str, Any]]:
        """Return the output, and the hooks that fire in the original and pass the filter, in firing order.

        `hook_sae_input` is `x` itself. Unknown names in the filter are ignored.

        Args:
            x: The activations, as for `__call__`.
            names_filter: None for all hooks, a name, a list of names, or a predicate on names.
            target: As for `__call__`.
            return_output: Whether the output is computed; if not, None is returned for it. With
                `names_filter="hook_sae_acts_post", return_output=False` only the encoder runs.

        Raises:
            InputError: as for `__call__`.
            ValueError: `names_filter` has another type.
        """
        wanted = [name for name in select_hooks(names_filter) if name in self.cfg.fired_hooks]
        with self._hooks.block((), True, False):  # as in TransformerLens, whose cache is filled by hooks of a block
            tensors = self._forward(x, [*wanted, HOOK_OUTPUT] if return_output else wanted, target)
        return (tensors[HOOK_OUTPUT] if return_output else None), {name: tensors[name] for name in wanted}

    # fmt: off
    @overload
    def run_with_hooks(self, x: Array, fwd_hooks: FwdHooks = (), *, target: Any = None, bwd_hooks: Sequence[Any] = (),
                       reset_hooks_end: bool = True, clear_contexts: bool = False) -> Array: ...
    @overload
    def run_with_hooks(self, x: Any, fwd_hooks: FwdHooks = (), *, target: Any = None, bwd_hooks: Sequence[Any] = (),
                       reset_hooks_end: bool = True, clear_contexts: bool = False) -> TensorValue: ...
    # fmt: on
    def run_with_hooks(
        self, x: Any, fwd_hooks: FwdHooks = (), *, target: Any = None, bwd_hooks: Sequence[Any] = (),
        reset_hooks_end: bool = True, clear_contexts: bool = False,
    ) -> TensorValue:  # fmt: skip
        """Return the output of a pass in which functions read or replace the tensors at hooks.

        As in TransformerLens, `fn(tensor, hook=point)` is called with the tensor, `(..., d_sae)` or of the shape of
        `x`, and a `HookPoint`, whose `name` says where. What it returns replaces the tensor, None keeps it; an edit in
        place takes effect; functions at one hook run in the order given. At `hook_sae_input` a returned value changes
        nothing, and an edit in place changes the caller's `x`. The error is always that of the clean pass, and
        `hook_sae_error` fires only with the error term.

        Args:
            x: The activations, as for `__call__`.
            fwd_hooks: Pairs of a hook's name, or a predicate on names, and a function.
            target: As for `__call__`.
            bwd_hooks: Must be empty, as for `hooks`.
            reset_hooks_end: As for `hooks`.
            clear_contexts: As for `hooks`.

        Raises:
            UnknownHookError: a name is not a hook; it is a KeyError.
            InputError: `x` or `target` does not fit, a function returned an array of another shape or dtype, or there
                are backward hooks.
        """
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(x, target)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: FwdHooks = (),
        bwd_hooks: Sequence[Any] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator["SAESession"]:
        """Let hook functions take part in every `__call__`, `run_with_cache` and `run_with_hooks` in the `with` block.

        They count for the thread or asyncio task that entered the block only. Blocks can be nested, with those of
        `steering` too: functions of the outer block come first.

        Args:
            fwd_hooks: Pairs of a hook's name, or a predicate on names, and a function.
            bwd_hooks: Must be empty: an artifact computes no gradients.
            reset_hooks_end: Whether the functions are removed at the end of the block. If not, they stay, for every
                thread, until `reset_hooks`, or until the next block of the same depth ends; a call of `run_with_hooks`
                or `run_with_cache` is such a block. This is TransformerLens' rule.
            clear_contexts: Whether the `ctx` of the hook points is emptied when functions are removed at the end.

        Raises:
            UnknownHookError: a name is not a hook; it is a KeyError.
            InputError: there are backward hooks.
        """
        refuse_backward(bwd_hooks)
        with self._hooks.block(fwd_hooks, reset_hooks_end, clear_contexts):
            yield self

    def add_hook(
        self,
        name: HookSelector,
        hook: HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a hook function to every later call, of every thread, until `reset_hooks`.

        Args:
            name: A hook's name, or a predicate on names.
            hook: The function, as for `run_with_hooks`.
            dir: Must be "fwd": an artifact computes no gradients.
            is_permanent: Whether `reset_hooks` keeps it, unless it includes permanent ones.
            level: Depth of the `hooks` block whose end removes it; None for no block.
            prepend: Whether it comes before all functions that are there.

        Raises:
            UnknownHookError: the name is not a hook; it is a KeyError.
            InputError: it is a backward hook.
        """
        refuse_backward((), dir)
        self._hooks.add(name, hook, is_permanent, level, prepend)

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove hook functions: those that were added, and those of the blocks that this thread or task is in.

        Args:
            clear_contexts: Whether the `ctx` of the hook points is emptied.
            direction: Which functions are removed; there are none of direction "bwd".
            including_permanent: Whether permanent functions are removed too.
            level: Depth of the block whose functions are removed; None for all.
        """
        if clear_contexts:
            self._hooks.clear_contexts()
        if direction != "bwd":
            self._hooks.reset(including_permanent, level)

    # fmt: off
    @overload
    def steer(self, x: Array, edits: Edits, names_filter: NamesFilter = None, *,
              target: Any = None, return_output: Literal[True] = True) -> tuple[Array, dict[str, Array]]: ...
    @overload
    def steer(self, x: Array, edits: Edits, names_filter: NamesFilter = None, *,
              target: Any = None, return_output: Literal[False]) -> tuple[None, dict[str, Array]]: ...
    @overload
    def steer(self, x: Any, edits: Edits, names_filter: NamesFilter = None, *,
              target: Any = None,
              return_output: Literal[True] = True) -> tuple[TensorValue, dict[str, TensorValue]]: ...
    @overload
    def steer(self, x: Any, edits: Edits, names_filter: NamesFilter = None, *,
              target: Any = None, return_output: Literal[False]) -> tuple[None, dict[str, TensorValue]]: ...
    @overload
    def steer(self, x: Any, edits: Edits, names_filter: NamesFilter = None, *,
              target: Any = None, return_output: bool) -> tuple[TensorValue | None, dict[str, TensorValue]]: ...
    # fmt: on
    def steer(
        self,
        x: Any,
        edits: Edits,
        names_filter: NamesFilter = None,
        *,
        target: Any = None,
        return_output: bool = True,
    ) -> tuple[Any, dict[str, Any]]:
        """Return the output and the hooks of a pass with edited features, at about the price of a clean pass.

        It is what `run_with_cache` returns in PyTorch with a forward hook on `hook_sae_acts_post` that makes the same
        edits: acts_post, recons and output are edited, the error is that of the clean pass. The edited reconstruction
        is the clean one plus an update, and rounds as the clean one does: where the edits take away nearly all of a
        very large one, `run_with_hooks` with the `Intervention` as a function is more exact.

            sae.steer(x, {123: Ablate(), 77: Clamp(5.0), 9: Scale(3.0), 4: Add(0.5)})

        Args:
            x: The activations, as for `__call__`.
            edits: The edit of each feature, for all tokens or, with arrays of the shape of the tokens, for each token.
            names_filter: As for `run_with_cache`.
            target: As for `__call__`.
            return_output: As for `run_with_cache`.

        Raises:
            InputError: `x` does not fit, or the edits are not as `Intervention` says.
        """
        with self.steering(edits):
            return self.run_with_cache(x, names_filter, target=target, return_output=return_output)

    @contextmanager
    def steering(self, edits: Edits) -> Iterator["SAESession"]:
        """Edit features inside the `with` block, as `steer` does in one call; also in `encode` and `top_features`.

        Blocks nest as those of `hooks` do. One alone runs in a graph; several, or with hook functions, run in stages.

        Raises:
            InputError: the edits are not as `Intervention` says.
        """
        if not isinstance(edits, Intervention):
            edits = Intervention.of(edits)
        edits.check(self.cfg.d_sae, self.cfg.dtype)
        with self._hooks.block([(HOOK_ACTS_POST, SteeringHook(edits))], True, False):
            yield self

    @overload
    def encode(self, x: Array) -> Array: ...
    @overload
    def encode(self, x: Any) -> TensorValue: ...
    def encode(self, x: Any) -> TensorValue:
        """Return the activations of the features, `hook_sae_acts_post`, `(..., d_sae)`.

        Inside `steering` they are edited, in the order of nesting. Hook functions do not see them, as in the original,
        whose `encode` is past the hooks; take them from `run_with_cache` then.

        Raises:
            InputError: `x` has another shape or dtype than `__call__` takes.
        """
        return encode(self._graphs, self._batch(x), self._interventions())

    @overload
    def decode(self, acts_post: Array, x: Any = None) -> Array: ...
    @overload
    def decode(self, acts_post: Any, x: Any = None) -> TensorValue: ...
    def decode(self, acts_post: Any, x: Any = None) -> TensorValue:
        """Return the reconstruction from activations `(..., d_sae)`, past hooks and interventions.

        It has the shape `(..., d_in)`, or `(..., n_heads, d_head)` if the artifact was exported with its head shape;
        of a transcoder `(..., d_out)`.

        Args:
            acts_post: The activations.
            x: The input that they were encoded from, with the same leading dimensions; needed only where a
                normalisation has to be undone or a skip connection added.

        Raises:
            InputError: an array has another shape or dtype, or `x` is needed.
        """
        return decode(self._graphs, acts_post, x)

    @overload
    def compute(self, x: Array, names: Sequence[str], target: Any = None) -> dict[str, Array]: ...
    @overload
    def compute(self, x: Any, names: Sequence[str], target: Any = None) -> dict[str, TensorValue]: ...
    def compute(self, x: Any, names: Sequence[str], target: Any = None) -> dict[str, Any]:
        """Return the named hooks of the clean pass, in that order, by the smallest graph that computes them all.

        Unlike a cache, it contains `hook_sae_error` also where that does not fire in the original.

        Args:
            x: The activations, as for `__call__`.
            names: Names from `hook_names`.
            target: As for `__call__`.

        Raises:
            InputError: `x` or `target` has another shape or dtype, or a name is not a hook.
        """
        return compute(self._graphs, self._batch(x, target), self._known(names))

    @overload
    def top_features(self, x: Array, k: int) -> TopFeatures[Array]: ...
    @overload
    def top_features(self, x: Any, k: int) -> TopFeatures[TensorValue]: ...
    def top_features(self, x: Any, k: int) -> TopFeatures[Any]:
        """Return the k strongest features of each token: indices and values `(..., k)`, and the l0 `(...)`.

        A service that only needs these moves k values per token instead of `d_sae`. Where `lossless` holds, they say
        all that `encode` would. Inside `steering` they are those of the edited activations, which are computed whole.

        Args:
            x: The activations, as for `__call__`.
            k: The number of features, from 1 to d_sae.

        Raises:
            InputError: `x` has another shape or dtype, or k is out of range.
        """
        try:
            k = operator.index(k)
        except TypeError:
            raise InputError(f"k is {k!r}; it must be a whole number.") from None
        if not 1 <= k <= self.cfg.d_sae:
            raise InputError(f"k is {k}; it must be from 1 to d_sae = {self.cfg.d_sae}.")
        return top_features(self._graphs, self._batch(x), k, self._interventions())

    def explain(self, names: Sequence[str] | None = None, tokens: int = 1, *, steered: bool = False) -> Plan:
        """Return how a request would be carried out, and why; print it.

        Args:
            names: The hooks that are asked for; None for all. `sae(x)` asks for `hook_sae_output`.
            tokens: The number of tokens of the batch.
            steered: Whether an intervention is carried out.

        Raises:
            InputError: a name is not a hook.
        """
        known, options = self._known(self.hook_names if names is None else names), self._options
        choice = choose_graph(self.artifact.manifest, known, self._graphs.for_cpu, steered=steered)
        family = "CPU variants" if self._graphs.for_cpu else "portable graphs"
        because = f'graphs="{options.graphs}"' + (f" on {self.device}" if options.graphs == "auto" else "")
        why = choice.why if choice.graph is None else f"{choice.why}; {family} are preferred ({because})."
        if choice.graph is not None and tokens in options.cuda_graph:
            why += " Its launches are captured at the first call and replayed."
        blocks = tuple(block_sizes(tokens, self._graphs.block_tokens))
        return Plan(choice.graph, self.device, options.threads or thread_limit(), blocks, why)

    def run_graph(
        self, graph: str, feeds: Mapping[str, TensorValue], names: Sequence[str] | None = None
    ) -> dict[str, TensorValue]:
        """Run one graph of the artifact as it is, a large batch in blocks, and return its outputs.

        Args:
            graph: Name of the graph in the manifest, such as "model".
            feeds: An array for each of its inputs, with the rank and dtype that the manifest gives.
            names: Names of the outputs to return; None for all, in the order of the manifest.

        Raises:
            ArtifactError: the artifact does not contain the graph, or it cannot be loaded.
            InputError: an input is missing, or there is no input or output of a name.
            SAEError: ONNX Runtime refuses the feeds, or runs out of memory.
        """
        return self._graphs.run(graph, feeds, names)

    def release(self, graph: str) -> None:
        """Free one graph's copy of the weights; a later call loads it again."""
        self._graphs.release(graph)

    def close(self) -> None:
        """Free the graphs and their weights; a later call is an error. Closing twice is not."""
        self._graphs.close()

    def __enter__(self) -> "SAESession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        cfg = self.cfg
        return f"SAESession({str(self.artifact.path)!r}, {cfg.hook_name}, {cfg.d_in} -> {cfg.d_sae}, {self.device})"

    def _batch(self, x: Any, target: Any = None) -> Batch:
        return Batch.of(x, self.cfg, target, self._graphs.backend.import_array)

    def _known(self, names: Sequence[str]) -> Sequence[str]:
        if unknown := [name for name in names if name not in self.hook_names]:
            raise InputError(f"{', '.join(unknown)}: no such hook. There are {', '.join(self.hook_names)}.")
        return names

    def _interventions(self) -> list[Intervention]:
        """Return the interventions of the `steering` blocks that the caller is in."""
        functions = [hook.function for hook in self._hooks.active()]
        return [function.intervention for function in functions if isinstance(function, SteeringHook)]

    def _forward(self, x: Any, names: Sequence[str], target: Any) -> dict[str, TensorValue]:
        """Return the named hooks of a pass with the hook functions and interventions that count for the caller."""
        return forward(self._graphs, self._batch(x, target), names, self._hooks.active(), self._hooks.points)

    def _parameter(self, name: str) -> Array:
        if not self._parameters:
            weights = self.artifact.file(self.artifact.manifest.weights, self._options.check_integrity)
            self._parameters = map_parameters(weights)
        return parameter(self._parameters, name, self.cfg.architecture)
