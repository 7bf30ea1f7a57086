"""SAESession: a HookedSAE, run by ONNX Runtime, with the names, shapes and order of the PyTorch original."""

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, TypeAlias, final, overload

from ..arrays.arguments import as_integer, as_output_names
from ..arrays.dtypes import FLOAT32
from ..arrays.tensor import Array, TensorValue
from ..artifact.folder import Artifact
from ..artifact.held import open_artifact
from ..artifact.labels import LABELS, Labels
from ..artifact.manifest import SAEConfig
from ..artifact.names import HOOK_ACTS_POST, HOOK_OUTPUT
from ..devices.blocks import block_sizes
from ..devices.capabilities import choose_block_tokens, choose_device
from ..devices.options import Options
from ..devices.start import CPU
from ..errors import InputError, IntegrityError
from .batch import Batch, NamesFilter, select_hooks
from .features import TopFeatures
from .forward import SteeringHook, active_interventions, decode, encode, forward, top_features
from .graphs import Graphs
from .hooks import DIRECTIONS, FwdHooks, HookFunction, HookPoint, HookRegistry, HookSelector, refuse_backward
from .interventions import Edit, Intervention, as_feature_ids
from .route import Plan
from .watch import FeatureWatch
from .weights import map_parameters, parameter

Edits: TypeAlias = Mapping[int, Edit] | Intervention
"""Edits of features: a dict from feature ids to edits, or an intervention."""

KEPT_WATCHES = 8
"""Number of lists of ids that `compute_features` is ready for."""


@final
class SAESession:
    """The SAE of an artifact, ready to run.

    A call on a NumPy array returns NumPy arrays. On a GPU, an array on that GPU from any library with DLPack is read in
    place, and the results are `Tensor`s on the GPU, which `torch.from_dlpack`, CuPy and JAX read without a copy. On the
    host, bfloat16 is `ml_dtypes.bfloat16`.

    A graph is loaded when it is first needed, and a request is answered by the smallest graph that computes it. Calls
    from several threads at once are safe. Use the session as a context manager, or call `close`, to free its memory.

    The files of the artifact are opened once. On a CPU the session goes on if the artifact is replaced or deleted, with
    the artifact that it opened; on a GPU a graph that was not loaded before raises an `IntegrityError` then. A session
    does not work in a forked process. `pickle` and `copy.deepcopy` give a session that opens the same artifact with the
    same options.

    Activations can be changed during a call. Edits of features (`steer`, `steering`) are carried out by a graph and
    affect `__call__`, `run_with_cache`, `run_with_hooks`, `encode`, `compute_features`, `top_features` and `compute`.
    Hook functions (`run_with_hooks`, `hooks`, `add_hook`) affect the first three only: as in TransformerLens, `encode`
    does not call them. `decode` and `run_graph` compute what they are given, without edits. Both kinds of block apply
    to the thread or asyncio task that entered them, and to no other; see `steering`.

    Attributes:
        artifact: Artifact that was opened.
        device: Name of the device, "cpu", "cuda:N" or "tensorrt:N".

    Args:
        path: Folder of the artifact.
        device: "auto", "cpu", "cuda", "cuda:N", "tensorrt" or "tensorrt:N". "auto" chooses a GPU that can run the
            artifact, or else the CPU.
        graphs: "cpu" prefers CPU variants, "portable" runs portable graphs only, "auto" chooses by the device.
        precision: Precision of float32 matrix products on a GPU: "float32", PyTorch's default, or "tf32", which rounds
            the factors to 10 bits and is faster.
        threads: Number of CPU threads per call; None means one per core that this process may use, and one for few
            tokens of a `watch`.
        arena: Whether to keep freed memory for the next calls. Without it, large calls take longer.
        memory_limit: Bytes of GPU memory for the weights and for a graph while it runs; batches are cut into blocks
            that fit. Each further open graph may need as much in addition to the weights. The limit does not include
            CUDA itself (a few hundred MB) and results that stay on the GPU.
        block_tokens: Number of tokens to run at a time; None means 64 MiB of features, on a GPU 512 MiB. Apart from the
            result, the memory of a call does not grow with the batch.
        stream: CUDA stream of PyTorch or CuPy, or its address. All work is queued on it, and a call with an array on
            the GPU returns at once; keep an input that was made on another stream until its results are complete. A
            stream that is given by its address has to live as long as the session. None creates a stream, and a call
            returns when its results are complete.
        cuda_graph: Numbers of tokens for which the launches are captured once and then replayed
            (`runtime/devices/cuda/replay.py`). Batches of other sizes are run without a capture.
        cache: Folder for TensorRT's engines; None means the default folder in the user's cache.
        check_integrity: Whether to compare the sha256 of every file that is loaded with the manifest. This reads the
            weights once more (about a second per 2 GB). Sizes are compared in any case.
        shared_stages: Whether the graphs of a large SAE on a CPU share one copy of the weights, and one token runs
            without a copy. Without it, each graph is loaded whole, as other engines and a verification load it.
        public_key: PEM file with the public key of the person who signed the artifact (`saeexport sign`), or with the
            certificates of the authorities that the signer's certificate must come from. An artifact without that
            signature is refused before anything else is read from its folder. This reads every file once more, and
            cannot be combined with `check_integrity=False`. None does not ask for a signature.

    Raises:
        ArtifactError: The folder is not an artifact, or one of its files differs from the manifest.
        SignatureError: `public_key` is given, and the artifact does not have that signature.
        ProviderError: The device cannot be used, or cannot run this artifact.
        InputError: An option has an invalid value.
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
        shared_stages: bool = True,
        public_key: str | os.PathLike[str] | None = None,
    ) -> None:
        self._options = options = Options(
            graphs, precision, threads, arena, memory_limit, block_tokens, stream, cuda_graph, cache,
            check_integrity, shared_stages,
        )  # fmt: skip
        artifact, files = open_artifact(path, options.check_integrity, public_key)
        self.artifact: Artifact = artifact
        self._asked_device = device
        self._public_key = None if public_key is None else os.path.abspath(public_key)
        found = choose_device(self.artifact, device, options)
        self.device: str = found.name
        for_cpu = options.graphs == "cpu" or (options.graphs == "auto" and found.kind == CPU)
        block_tokens = choose_block_tokens(self.artifact, found, options)
        self._files = files
        self._graphs = Graphs(self.artifact, files, found, options, for_cpu, block_tokens)
        self._hooks = HookRegistry()
        self._parameters: dict[str, Array] = {}
        self._labels: Labels | None = None
        self._watches: dict[bytes, FeatureWatch] = {}
        self._watching = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        device: str = "auto",
        *,
        revision: str | None = None,
        subfolder: str = "",
        token: str | None = None,
        **options: Any,
    ) -> "SAESession":
        """Open an artifact on the Hugging Face Hub; its files are downloaded if the Hub's cache does not hold them.

        This needs huggingface_hub (`pip install "saeexport[hub]"`), whose cache, login and offline mode
        (`HF_HUB_OFFLINE=1`) are used. The files are checked against the manifest as those of any artifact.

        Args:
            repo_id: Repository, "OWNER/NAME".
            device: As for `SAESession`.
            revision: Branch, tag or commit; None for the branch "main".
            subfolder: Folder of the artifact in the repository; "" for its root.
            token: Access token, or None for the one that `hf auth login` or HF_TOKEN stored.
            **options: Further options of `SAESession`. With `public_key`, the signature is downloaded, too.

        Raises:
            HubError: There is no such repository, revision or artifact, access is refused, the Hub cannot be reached,
                or huggingface_hub is not installed.
            ArtifactError: As for `SAESession`, as are `ProviderError` and `InputError`.
        """
        from ..artifact.published import download_artifact  # only here, so that a session starts without it

        artifact = download_artifact(
            repo_id, revision=revision, subfolder=subfolder, token=token, signed=options.get("public_key") is not None
        )
        return cls(artifact.path, device, **options)

    @property
    def labels(self) -> Labels:
        """The labels of the features, read from `labels.json`; `sae.labels[j]` is that of feature `j`.

        An artifact that was exported without labels has none, and each label is empty.

        Raises:
            ArtifactError: `labels.json` is damaged.
        """
        if self._labels is None:
            self._labels = self.artifact.read_labels()
        return self._labels

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the artifact to a repository on the Hugging Face Hub; see `Artifact.push_to_hub`."""
        return self.artifact.push_to_hub(repo_id, **options)

    @property
    def cfg(self) -> SAEConfig:
        """The configuration of the SAE, from the manifest."""
        return self.artifact.manifest.sae

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The hooks that this artifact computes, in firing order; the same as `cfg.hooks`.

        Three sets of names differ in `hook_sae_error`:

        - `hook_dict` always has all six hooks, because a function can be placed at each of them.
        - `hook_names` has the hooks that `compute` and `explain` accept: all six, or five for a transcoder without the
          error term, whose error would need a target.
        - `cfg.fired_hooks` has the hooks that fire in the original and that `run_with_cache` returns: all six with the
          error term, five without it.
        """
        return self.cfg.hooks

    @property
    def hook_dict(self) -> dict[str, HookPoint]:
        """The six hook points by name, in firing order; see `hook_names`."""
        return dict(self._hooks.points)

    @property
    def W_enc(self) -> Array:  # noqa: N802
        """The encoder's weights, `(d_in, d_sae)`, read-only and mapped from the file.

        They have the SAE's dtype; bfloat16 is `ml_dtypes.bfloat16`. Matrices that are stored as int8 are not available.

        Raises:
            AttributeError: The architecture does not have this parameter, or it is stored as int8.
        """
        return self._parameter("W_enc")

    @property
    def b_enc(self) -> Array:
        """The encoder's bias, `(d_sae,)`, see `W_enc`. A gated SAE does not have it."""
        return self._parameter("b_enc")

    @property
    def W_dec(self) -> Array:  # noqa: N802
        """The decoder's weights, `(d_sae, d_in)` or `(d_sae, d_out)`; row j is the direction of feature j."""
        return self._parameter("W_dec")

    @property
    def b_dec(self) -> Array:
        """The decoder's bias, `(d_in,)`, or `(d_out,)` for a transcoder; see `W_enc`."""
        return self._parameter("b_dec")

    @overload
    def __call__(self, x: Array, target: Any = None) -> Array: ...
    @overload
    def __call__(self, x: Any, target: Any = None) -> TensorValue: ...
    def __call__(self, x: Any, target: Any = None) -> TensorValue:
        """Return `hook_sae_output`, with the shape of `x`, or `(..., d_out)` for a transcoder, and the SAE's dtype.

        Args:
            x: Activations, `(..., d_in)`, or `(..., n_heads, d_head)` if `cfg.hook_name` ends in `_z`. They have the
                SAE's dtype; a float32 SAE also accepts float16, bfloat16 and integers.
            target: Activation that a transcoder with the error term predicts (`cfg.takes_target`), `(..., d_out)`.

        Raises:
            InputError: `x` or `target` has another shape or dtype, or the target is missing or not accepted.
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
        """Return the output, and the hooks that fire in the original and match the filter, in firing order.

        `hook_sae_input` is `x` itself. Unknown names in the filter are ignored.

        Args:
            x: Activations, as for `__call__`.
            names_filter: None for all hooks, a name, a list of names, or a predicate on names.
            target: As for `__call__`.
            return_output: Whether to compute the output; if not, the first result is None. With
                `names_filter="hook_sae_acts_post", return_output=False` only the encoder runs.

        Raises:
            InputError: As for `__call__`.
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
        `x`, and a `HookPoint` with the `name` of the hook. An array that it returns replaces the tensor, and None keeps
        it. Edits in place take effect. Functions at the same hook run in the order given. At `hook_sae_input` a
        returned array changes nothing, and an edit in place changes the caller's `x`. The error is always that of the
        clean pass, and `hook_sae_error` fires only with the error term.

        Args:
            x: Activations, as for `__call__`.
            fwd_hooks: Pairs of a hook and a function. The hook is a name or a predicate on names.
            target: As for `__call__`.
            bwd_hooks: Must be empty, as for `hooks`.
            reset_hooks_end: As for `hooks`.
            clear_contexts: As for `hooks`.

        Raises:
            UnknownHookError: A name is not a hook; it is a KeyError.
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
        """Call hook functions in every `__call__`, `run_with_cache` and `run_with_hooks` inside the `with` block.

        They apply only to the thread or asyncio task that entered the block. Blocks can be nested, also with those of
        `steering`; functions of the outer block are called first.

        Args:
            fwd_hooks: Pairs of a hook and a function. The hook is a name or a predicate on names.
            bwd_hooks: Must be empty, because an artifact does not compute gradients.
            reset_hooks_end: Whether to remove the functions at the end of the block. If not, they stay, for every
                thread, until `reset_hooks` or until the next block of the same depth ends; a call of `run_with_hooks`
                or `run_with_cache` is such a block. TransformerLens has the same rule.
            clear_contexts: Whether to clear the `ctx` of the hook points when functions are removed at the end.

        Raises:
            UnknownHookError: A name is not a hook; it is a KeyError.
            InputError: Backward hooks were given.
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
        """Add a hook function that every thread calls from now on, until `reset_hooks`.

        Args:
            name: Name of a hook, or a predicate on names.
            hook: Function, as for `run_with_hooks`.
            dir: Must be "fwd", because an artifact does not compute gradients.
            is_permanent: Whether `reset_hooks` keeps the function, unless it includes permanent ones.
            level: Depth of the `hooks` block whose end removes the function; None for no block.
            prepend: Whether the function is called before all functions added so far.

        Raises:
            UnknownHookError: The name is not a hook; it is a KeyError.
            InputError: The hook is a backward hook.
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
            clear_contexts: Whether to clear the `ctx` of the hook points.
            direction: Direction of the functions to remove: "fwd", "bwd" or "both". There are none of "bwd".
            including_permanent: Whether to remove permanent functions too.
            level: Depth of the block whose functions are removed; None for all.

        Raises:
            InputError: The direction is none of these, or the level is not a whole number.
        """
        if not isinstance(direction, str) or direction not in (*DIRECTIONS, "both"):
            raise InputError(f'direction is {direction!r}; it must be "fwd", "bwd" or "both".')
        if level is not None:
            level = as_integer("level", level, hint=", or None for all")
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

        The result is what `run_with_cache` returns in PyTorch with a forward hook on `hook_sae_acts_post` that makes
        the same edits: acts_post, recons and output are edited, the error is that of the clean pass. The edited
        reconstruction is the clean one plus an update, and has the rounding errors of the clean one. If the edits
        remove nearly all of a very large reconstruction, `run_with_hooks` with the `Intervention` as a function is
        more exact.

            sae.steer(x, {123: Ablate(), 77: Clamp(5.0), 9: Scale(3.0), 4: Add(0.5)})

        Args:
            x: Activations, as for `__call__`.
            edits: Edit of each feature, for all tokens or, with arrays of the tokens' shape, for each token.
            names_filter: As for `run_with_cache`.
            target: As for `__call__`.
            return_output: As for `run_with_cache`.

        Raises:
            InputError: `x` does not fit, or `Intervention` refuses the edits.
        """
        with self.steering(edits):
            return self.run_with_cache(x, names_filter, target=target, return_output=return_output)

    @contextmanager
    def steering(self, edits: Edits) -> Iterator["SAESession"]:
        """Edit features in the calls inside the `with` block, as `steer` does.

        The edits are those of a forward hook on `hook_sae_acts_post`: `encode`, `top_features` and `compute` return the
        edited activations, too. `decode` takes activations that the caller has, edited or not, and does not edit them;
        `run_graph` runs the graph with the inputs that it is given.

        The edits apply to the thread or asyncio task that entered the block. A call that another thread or task makes
        meanwhile runs without them, also one that was started inside the block, as by `asyncio.to_thread`,
        `asyncio.create_task` or an executor: enter the block there, or call `steer`.

        Blocks can be nested like those of `hooks`. A single block runs in a graph; several blocks, or a block together
        with hook functions, run in stages.

        Raises:
            InputError: `Intervention` refuses the edits.
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

        Inside `steering` they are edited, in the order of nesting. As in the original, `encode` does not call hook
        functions; use `run_with_cache` for their effect.

        Raises:
            InputError: `x` has another shape or dtype than `__call__` takes.
        """
        return encode(self._graphs, self._batch(x), active_interventions(self._hooks))

    @overload
    def decode(self, acts_post: Array, x: Any = None) -> Array: ...
    @overload
    def decode(self, acts_post: Any, x: Any = None) -> TensorValue: ...
    def decode(self, acts_post: Any, x: Any = None) -> TensorValue:
        """Return the reconstruction from activations `(..., d_sae)`, without hook functions and interventions.

        It has the shape `(..., d_in)`, or `(..., n_heads, d_head)` if the artifact was exported with its head shape,
        or `(..., d_out)` for a transcoder.

        Args:
            acts_post: Activations of the features.
            x: Input that they were encoded from, with the same leading dimensions. It is needed only if the decoder
                undoes a normalisation or adds a skip connection.

        Raises:
            InputError: An array has another shape or dtype, or `x` is needed.
        """
        return decode(self._graphs, acts_post, x)

    @overload
    def compute(self, x: Array, names: Sequence[str], target: Any = None) -> dict[str, Array]: ...
    @overload
    def compute(self, x: Any, names: Sequence[str], target: Any = None) -> dict[str, TensorValue]: ...
    def compute(self, x: Any, names: Sequence[str], target: Any = None) -> dict[str, Any]:
        """Return the named hooks, in that order, by the smallest graph that computes them all.

        Hook functions are not called. Inside `steering` the edits are carried out, as in `steer`. Unlike a cache, the
        result can contain `hook_sae_error` even if that hook does not fire in the original.

        Args:
            x: Activations, as for `__call__`.
            names: Names from `hook_names`.
            target: As for `__call__`.

        Raises:
            InputError: `x` or `target` has another shape or dtype, or a name is not a hook.
        """
        steering = [hook for hook in self._hooks.active() if isinstance(hook.function, SteeringHook)]
        return forward(self._graphs, self._batch(x, target), self._known(names), steering, self._hooks.points)

    @overload
    def top_features(self, x: Array, k: int) -> TopFeatures[Array]: ...
    @overload
    def top_features(self, x: Any, k: int) -> TopFeatures[TensorValue]: ...
    def top_features(self, x: Any, k: int) -> TopFeatures[Any]:
        """Return the k strongest features of each token: indices and values, `(..., k)`, and l0, `(...)`.

        A service that needs only these moves k values per token instead of `d_sae`. Where `lossless` is true, the
        result holds everything that `encode` would return. Inside `steering` it is taken from the edited activations,
        which are computed in full.

        Args:
            x: Activations, as for `__call__`.
            k: Number of features, from 1 to d_sae.

        Raises:
            InputError: `x` has another shape or dtype, or k is out of range.
        """
        k = as_integer("k", k, 1, self.cfg.d_sae, most_is="d_sae = ")
        found = top_features(self._graphs, self._batch(x), k, active_interventions(self._hooks))
        return TopFeatures(*found, lambda: self.labels) if LABELS in self.artifact.manifest.files else found

    def watch(self, ids: Any) -> FeatureWatch:
        """Return a function of `x` that computes the activations of some features alone, `(..., m)`.

            watched = sae.watch([17, 4, 123])
            acts = watched(x)  # sae.encode(x)[..., [17, 4, 123]]

        It is meant for guardrails and probes, which need a few features of every token. Their columns of the encoder
        are read here, and a call multiplies with `m` columns instead of `d_sae`. The values are those of `encode`, up
        to the rounding of the matrix product, and `steering` edits them, too. Few tokens are computed on one thread;
        the first call with more of them reads the columns once more, for a session with several threads.

        Where a feature is on only if the others are weaker, as in a top-k SAE, the others would have to be computed,
        and it is refused.

        Args:
            ids: Ids of the features, in the order of the results; a list or an array.

        Raises:
            InputError: An id is not that of a feature, or the features cannot be computed without the others.
        """
        return FeatureWatch(self._graphs, self._hooks, ids)

    @overload
    def compute_features(self, x: Array, ids: Any) -> Array: ...
    @overload
    def compute_features(self, x: Any, ids: Any) -> TensorValue: ...
    def compute_features(self, x: Any, ids: Any) -> TensorValue:
        """Return the activations of some features, `(..., m)`, as `watch(ids)(x)` does.

        The session keeps what it made for the last few lists of ids. The first call with a list reads the encoder,
        which takes as long as loading it; later calls are fast.

        Args:
            x: Activations, as for `__call__`.
            ids: Ids of the features, in the order of the result; a list or an array.

        Raises:
            InputError: `x` has another shape or dtype than `__call__` takes, or as for `watch`.
        """
        ids = as_feature_ids(ids, self.cfg.d_sae)  # a copy, which the caller cannot change
        key = ids.tobytes()
        self._graphs.check_process()  # in a forked process a thread that is not there may hold the lock
        with self._watching:  # two threads that need the same features load them once
            watched = self._watches.pop(key, None) or self.watch(ids)
            self._watches[key] = watched  # the last one; the first one is the one that was not used for longest
            if len(self._watches) > KEPT_WATCHES:
                del self._watches[next(iter(self._watches))]
        return watched(x)

    def explain(self, names: Sequence[str] | None = None, tokens: int = 1, *, steered: bool = False) -> Plan:
        """Return how a request would be carried out, and why. The result can be printed.

        Args:
            names: Hooks that are asked for; None for all. `sae(x)` asks for `hook_sae_output`.
            tokens: Number of tokens of the batch.
            steered: Whether an intervention is carried out.

        Raises:
            InputError: A name is not a hook, or the number of tokens is not a whole number from 0 on.
        """
        tokens = as_integer("tokens", tokens, 0)
        choice = self._graphs.choose(
            self._known(self.hook_names if names is None else names), steered=steered, in_numpy=True
        )
        blocks = block_sizes(tokens, self._graphs.block_tokens)
        return Plan.of(choice, self.device, self._options, self._graphs.for_cpu, blocks)

    def run_graph(
        self, graph: str, feeds: Mapping[str, TensorValue], names: Sequence[str] | None = None
    ) -> dict[str, TensorValue]:
        """Run one graph of the artifact as it is, a large batch in blocks, and return its outputs.

        Args:
            graph: Name of the graph in the manifest, such as "model".
            feeds: Array for each of its inputs, by name, with the rank and dtype in the manifest.
            names: Names of the outputs to return; None for all, in the order of the manifest.

        Raises:
            ArtifactError: The artifact does not contain the graph, or it cannot be loaded.
            InputError: An input is missing, or has another shape or dtype than in the manifest, or the graph does not
                have an input or output with a given name.
            SAEError: ONNX Runtime refuses the feeds, or runs out of memory.
        """
        names = as_output_names(names)
        return self._graphs.run(graph, self._graphs.feeds(graph, feeds), names)

    def release(self, graph: str) -> None:
        """Free one graph's copy of the weights; a later call loads it again.

        Raises:
            ArtifactError: The artifact does not contain the graph.
        """
        self._graphs.release(graph)

    def close(self) -> None:
        """Free the graphs, their weights and the open file. A later call raises an error; closing twice does not."""
        self._graphs.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how `pickle` and `copy` open the same artifact again, from its absolute path, with the same options.

        Raises:
            SAEError: The session is closed.
            InputError: Hook functions or interventions apply to the caller, or the session has a CUDA stream: a copy
                would be without them.
        """
        self._graphs.check_open()
        if self._hooks.active():
            raise InputError(
                "This session has hook functions, or is inside `hooks` or `steering`, and a copy would be without "
                "them. Leave the block, or call reset_hooks(including_permanent=True), before you copy the session."
            )
        if self._options.stream is not None:
            raise InputError("This session has a CUDA stream, which cannot be copied. Open another with stream=.")
        artifact = self.artifact
        options = {**vars(self._options), "public_key": self._public_key}
        return _open_again, (str(artifact.folder), self._asked_device, options, artifact.sha256)

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
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise InputError(f"names is {names!r}; it must be a list of hooks, of {', '.join(self.hook_names)}.")
        names, known = list(names), self.hook_names
        if unknown := [name for name in names if not isinstance(name, str) or name not in known]:
            raise InputError(f"{', '.join(map(str, unknown))}: no such hook. There are {', '.join(known)}.")
        return names

    def _forward(self, x: Any, names: Sequence[str], target: Any) -> dict[str, TensorValue]:
        """Return the named hooks of a pass with the hook functions and interventions that apply to the caller."""
        return forward(self._graphs, self._batch(x, target), names, self._hooks.active(), self._hooks.points)

    def _parameter(self, name: str) -> Array:
        if not self._parameters:
            self._graphs.check_open()
            self._files.check_data()
            self._parameters = map_parameters(self._files.weights)
        return parameter(self._parameters, name, self.cfg.architecture)


def _open_again(path: str, device: str, options: Mapping[str, Any], sha256: str) -> SAESession:
    """Open the artifact of a session that was pickled or copied.

    Raises:
        IntegrityError: Another artifact is at its path now.
    """
    session = SAESession(path, device, **options)
    if session.artifact.sha256 != sha256:
        session.close()
        raise IntegrityError(
            f"{path} holds another artifact now than when its session was pickled or copied: the sha256 of sae.json is "
            f"{session.artifact.sha256}, and was {sha256}. Open the new artifact with SAESession({path!r})."
        )
    return session
