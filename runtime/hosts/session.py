"""HostSession: a language model with SAEs grafted into it, with the methods of HookedSAETransformer."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, final, overload

import numpy as np

from ..arrays.arguments import as_integer, as_output_names
from ..arrays.tensor import Array, as_given
from ..devices.options import Options
from ..errors import InputError, IntegrityError
from ..session.batch import NamesFilter, select_hooks
from ..session.features import TopFeatures, strongest_features
from ..session.hooks import FwdHooks
from ..session.session import SAESession
from .attaching import Attachments, Hooks, HostEdits, Setup
from .feeds import complete_feeds
from .folder import GraftedHost
from .generation import check_same_for_all_tokens, checked_prompt, generate
from .output import HostOutput
from .running import HostRunner
from .text import Tokenizer, is_text


@final
class HostSession:
    """A language model with SAEs grafted into it, ready to run.

    A call takes the inputs of the host by name, or text if the folder has a tokenizer, and returns numpy arrays. Inputs
    that follow from `input_ids` may be left out (`attention_mask` and so on).

    At first no SAE is attached, and the host computes what it computed before the graft. An attached SAE replaces the
    activation at its hook by its output: by the reconstruction, or by the reconstruction plus the error if its error
    term is on. `add_sae` attaches an SAE for every caller until `reset_saes`; `saes`, `steering` and `run_with_saes`
    attach SAEs for the thread or asyncio task that calls them, and for no other.

    A graph is loaded when it is first needed. Calls from several threads at once are safe. Use the session as a context
    manager, or call `close`, to free its memory. It does not work in a forked process. `pickle` and `copy.deepcopy`
    give a session that opens the same folder with the same options and the SAEs of `add_sae`.

    Attributes:
        host: The folder that was opened.
        device: Name of the device, "cpu" or "cuda:N".

    Args:
        path: Folder of the grafted host.
        device: "auto", "cpu", "cuda" or "cuda:N". "auto" chooses a GPU that can run the host, or else the CPU.
        threads: Number of CPU threads per call; None means one per core that this process may use.
        check_integrity: Whether to compare the sha256 of every file that is loaded with the manifests. Sizes are
            compared in any case.
        public_key: PEM file with the key or the certificates that the folder must be signed with (`saeexport sign`), as
            `SAESession` takes it. None does not ask for a signature.

    Raises:
        ArtifactError: The folder is not a grafted host, or one of its files differs from the manifest.
        SignatureError: `public_key` is given, and the folder does not have that signature.
        ProviderError: The device cannot be used, or cannot run this host.
        InputError: An option has an invalid value.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        *,
        threads: int | None = None,
        check_integrity: bool = True,
        public_key: str | os.PathLike[str] | None = None,
    ) -> None:
        self._options = Options(threads=threads, check_integrity=check_integrity)
        self._asked_device = device
        self._runner = HostRunner(path, device, self._options, public_key)
        self._public_key = None if public_key is None else os.path.abspath(public_key)
        self.host: GraftedHost = self._runner.host
        self.device: str = self._runner.device
        self._attachments = Attachments(self.host)
        self._tokenizer: Tokenizer | None = None
        self._lock = threading.Lock()

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The hooks that have an SAE, in the order of the graph."""
        return self.host.manifest.hooks

    @property
    def attached(self) -> dict[str, bool]:
        """The hooks whose SAE is attached for the caller, and whether its error term is on."""
        return dict(self._attachments.current().attached)

    def only_hook(self, hook: str | None = None) -> str:
        """Return a hook that has an SAE: the given one, or the only one there is.

        Raises:
            UnknownHookError: No SAE was grafted at this hook; it is a KeyError.
            InputError: None is given, and there are several.
        """
        if hook is None and len(self.hook_names) > 1:
            raise InputError(f"This host has several SAEs; choose one (hook=, --hook) of {', '.join(self.hook_names)}.")
        name = self.hook_names[0] if hook is None else hook
        self._attachments.check_name(name)
        return name

    def sae(self, hook: str) -> SAESession:
        """Return the session of the SAE at a hook; it is closed with this session.

        Raises:
            UnknownHookError: No SAE was grafted at this hook; it is a KeyError.
            IntegrityError: The folder holds another SAE now than when this session was opened.
        """
        self._attachments.check_name(hook)
        return self._runner.sae(hook)

    def tokenize(self, text: str | Sequence[str], *, max_length: int | None = None) -> dict[str, Array]:
        """Return the inputs of the host for a text, or for a list of texts, which are padded on the right.

        Args:
            text: A text, or a list of texts.
            max_length: Largest number of tokens of a text, special tokens included; the rest of the text is cut off.
                None keeps it.

        Raises:
            InputError: The folder does not have a tokenizer, or `text` is not text.
            SAEError: `tokenizers` is not installed.
        """
        encoded = self.tokenizer.encode(text, max_length)
        inputs = [tensor.name for tensor in self.host.manifest.host.inputs]
        return {name: array for name, array in encoded.items() if name in inputs}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the host.

        Raises:
            InputError: The folder does not have one.
            SAEError: `tokenizers` is not installed.
        """
        self._runner.graphs.check_open()
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = Tokenizer(self.host)
            return self._tokenizer

    def __call__(self, feeds: Any) -> HostOutput:
        """Return the outputs of the host, with the SAEs and edits that apply to the caller.

        Args:
            feeds: Arrays by the name of the input, a text, or a list of texts.

        Raises:
            InputError: The feeds do not fit the host.
            ArtifactError: SAEs are attached, and the folder does not have a splice.

        Warns:
            RuntimeWarning: An SAE is in float16, and an activation that it reads is larger than 65504, where float16
                ends. Every method that runs an SAE gives this warning.
        """
        return HostOutput(self._runner.run(self._feeds(feeds), self._attachments.current(), self._runner.outputs))

    # fmt: off
    @overload
    def run_with_cache(self, feeds: Any, names_filter: NamesFilter = None, *,
                       return_output: Literal[True] = True) -> tuple[HostOutput, dict[str, Array]]: ...
    @overload
    def run_with_cache(self, feeds: Any, names_filter: NamesFilter = None, *,
                       return_output: Literal[False]) -> tuple[None, dict[str, Array]]: ...
    @overload
    def run_with_cache(self, feeds: Any, names_filter: NamesFilter = None, *,
                       return_output: bool) -> tuple[HostOutput | None, dict[str, Array]]: ...
    # fmt: on
    def run_with_cache(
        self, feeds: Any, names_filter: NamesFilter = None, *, return_output: bool = True
    ) -> tuple[HostOutput | None, dict[str, Array]]:
        """Return the outputs of the host, and the tensors at its hooks that match the filter, in firing order.

        As in TransformerLens, a hook without an attached SAE has its activation in the cache, `<hook>`. A hook with one
        has the tensors of the SAE instead, such as `<hook>.hook_sae_acts_post`; `hook_sae_error` is one of them if its
        error term is on. Masked positions are not left out.

        Args:
            feeds: As for `__call__`.
            names_filter: None for all tensors, a name, a list of names, or a predicate on names. Unknown names are
                ignored.
            return_output: Whether to return the outputs; if not, the first result is None.

        Raises:
            InputError: As for `__call__`; also `names_filter` has another type.
            ArtifactError: As for `__call__`.
        """
        setup = self._attachments.current()
        sources = self._runner.cached(setup)
        wanted = select_hooks(names_filter, list(sources))
        outputs = self._runner.outputs if return_output else []
        tensors = self._runner.run(self._feeds(feeds), setup, [*outputs, *(sources[name] for name in wanted)])
        cache = {name: self._runner.with_heads(sources[name], tensors[sources[name]]) for name in wanted}
        return (HostOutput({name: tensors[name] for name in outputs}) if return_output else None), cache

    def run_with_saes(
        self, feeds: Any, saes: Hooks = (), use_error_term: bool | None = None, *, reset_saes_end: bool = True
    ) -> HostOutput:
        """Return the outputs of the host with SAEs attached for this call.

        Args:
            feeds: As for `__call__`.
            saes: Hooks whose SAEs are attached in addition to those that already are.
            use_error_term: Whether their error terms are on; None takes each SAE's own setting.
            reset_saes_end: Whether to detach them at the end, as in `saes`.

        Raises:
            UnknownHookError: No SAE was grafted at one of the hooks; it is a KeyError.
            InputError: As for `__call__`, as is `ArtifactError`.
        """
        with self.saes(saes, use_error_term, reset_saes_end=reset_saes_end):
            return self(feeds)

    def run_with_cache_with_saes(
        self,
        feeds: Any,
        saes: Hooks = (),
        use_error_term: bool | None = None,
        names_filter: NamesFilter = None,
        *,
        reset_saes_end: bool = True,
    ) -> tuple[HostOutput, dict[str, Array]]:
        """Return what `run_with_cache` returns with SAEs attached for this call; see `run_with_saes`."""
        with self.saes(saes, use_error_term, reset_saes_end=reset_saes_end):
            return self.run_with_cache(feeds, names_filter)

    def run_with_hooks_with_saes(
        self,
        feeds: Any,
        fwd_hooks: FwdHooks = (),
        saes: Hooks = (),
        use_error_term: bool | None = None,
        *,
        reset_saes_end: bool = True,
    ) -> HostOutput:
        """Return the outputs of a pass in which functions read or replace tensors, with SAEs attached for this call.

        The host runs in stages, and Python between them. As in TransformerLens, `fn(tensor, hook=point)` is called with
        the tensor and a `HookPoint` with its `name`; an array that it returns replaces the tensor, and None keeps it.
        Edits in place take effect. The functions are at the names that `run_with_cache` would have: `<hook>` without
        an attached SAE, and `<hook>.hook_sae_acts_post` and so on with one.

        Args:
            feeds: As for `__call__`.
            fwd_hooks: Pairs of a name and a function. Instead of a name it may be a predicate on names.
            saes: As for `run_with_saes`.
            use_error_term: As for `run_with_saes`.
            reset_saes_end: As for `saes`.

        Raises:
            UnknownHookError: A name is not one of these; it is a KeyError.
            InputError: As for `__call__`; also a function returned an array of another shape or dtype.
            ArtifactError: The folder does not have the stages.
        """
        with self.saes(saes, use_error_term, reset_saes_end=reset_saes_end):
            setup = self._attachments.current()
            placed = self._runner.place(fwd_hooks, setup)
            return HostOutput(self._runner.run_in_stages(self._feeds(feeds), setup, placed))

    @contextmanager
    def saes(
        self, saes: Hooks = (), use_error_term: bool | None = None, *, reset_saes_end: bool = True
    ) -> Iterator["HostSession"]:
        """Attach SAEs inside the `with` block, for the thread or asyncio task that entered it.

        Blocks can be nested. SAEs that were attached before stay attached, and have their setting of the error term
        again after the block.

        Args:
            saes: Hooks whose SAEs are attached.
            use_error_term: Whether their error terms are on; None takes each SAE's own setting.
            reset_saes_end: Whether to detach them at the end of the block. If not, they stay attached for every thread,
                as after `add_sae`.

        Raises:
            UnknownHookError: No SAE was grafted at one of the hooks; it is a KeyError.
            InputError: `use_error_term` is not a bool or None.
            ArtifactError: The folder does not have a splice.
        """
        attached = self._attachments.chosen(saes, use_error_term)
        with self._attachments.block(Setup(attached), keep=not reset_saes_end):
            yield self

    def add_sae(self, hook: str, use_error_term: bool | None = None) -> None:
        """Attach the SAE at a hook for every thread, until `reset_saes`.

        Args:
            hook: The hook.
            use_error_term: Whether the error term is on; None takes the SAE's own setting.

        Raises:
            UnknownHookError: No SAE was grafted at this hook; it is a KeyError.
            InputError: `use_error_term` is not a bool or None.
            ArtifactError: The folder does not have a splice.
        """
        self._attachments.add(self._attachments.chosen(hook, use_error_term))

    def reset_saes(self, hooks: Hooks | None = None) -> None:
        """Detach SAEs: those that were added, and those of the blocks that this thread or task is in.

        Args:
            hooks: The hooks; None for all.

        Raises:
            UnknownHookError: No SAE was grafted at one of the hooks; it is a KeyError.
        """
        names = self.hook_names if hooks is None else self._attachments.names_of(hooks)
        self._attachments.reset(names)

    @contextmanager
    def steering(self, edits: HostEdits, use_error_term: bool | None = None) -> Iterator["HostSession"]:
        """Edit features in the calls inside the `with` block, for the thread or asyncio task that entered it.

            with host.steering({"blocks.2.hook_resid_post": {1460: Scale(8.0)}}):
                steered = host("The ship left the harbor at dawn.")

        The SAEs at these hooks are attached in the block. The edits are those of a hook function at
        `<hook>.hook_sae_acts_post`; the error is that of the clean pass, so that with the error term on nothing but the
        edit changes. Blocks can be nested: the edits of the outer block come first.

        Args:
            edits: Edits of the features of each hook, as `SAESession.steering` takes them.
            use_error_term: Whether the error terms of SAEs that are not attached yet are on; None takes each SAE's own
                setting.

        Raises:
            UnknownHookError: No SAE was grafted at one of the hooks; it is a KeyError.
            InputError: `Intervention` refuses the edits.
            ArtifactError: The folder does not have a splice.
        """
        with self._attachments.block(self._attachments.steered(edits, use_error_term)):
            yield self

    def encode(self, feeds: Any, hooks: Hooks | None = None) -> dict[str, Array]:
        """Return the activations of the features at every hook, `<hook>.hook_sae_acts_post`, by hook.

        They are 0 at masked positions. Without attached SAEs the graph `features` computes them, which ends behind the
        last hook. With attached SAEs the features at a later hook are those of the host that goes on from the earlier
        SAE's output, and inside `steering` they are edited.

        Args:
            feeds: As for `__call__`.
            hooks: The hooks; None for all.

        Raises:
            UnknownHookError: No SAE was grafted at one of the hooks; it is a KeyError.
            InputError: As for `__call__`, as is `ArtifactError`.
        """
        names = self.hook_names if hooks is None else self._attachments.names_of(hooks)
        return self._runner.features(self._feeds(feeds), self._attachments.current(), names)

    def top_features(self, feeds: Any, hook: str | None = None, k: int = 10) -> TopFeatures[Array]:
        """Return the k strongest features of each token at a hook: indices and values, `(..., k)`, and l0, `(...)`.

        A masked position has no feature: its indices are -1, its values and its l0 are 0.

        Args:
            feeds: As for `__call__`.
            hook: The hook; it may be left out if there is only one.
            k: Number of features, from 1 to d_sae.

        Raises:
            UnknownHookError: No SAE was grafted at this hook; it is a KeyError.
            InputError: As for `__call__`; also k is out of range, or the hook is left out and there are several.
        """
        name = self.only_hook(hook)
        d_sae = self.host.saes[name].manifest.sae.d_sae
        k = as_integer("k", k, 1, d_sae, most_is="d_sae = ")
        acts = self._runner.features(self._feeds(feeds), self._attachments.current(), [name])[name]
        return TopFeatures(*strongest_features(acts, k), lambda: self._runner.sae(name).labels)

    # fmt: off
    @overload
    def generate(self, prompt: str, max_new_tokens: int, *, edits: HostEdits | None = None,
                 use_error_term: bool | None = None, do_sample: bool = False, temperature: float = 1.0,
                 top_k: int | None = None, seed: int | None = None,
                 eos_token_id: int | Sequence[int] | None = None) -> str: ...
    @overload
    def generate(self, prompt: Array | Sequence[int], max_new_tokens: int, *, edits: HostEdits | None = None,
                 use_error_term: bool | None = None, do_sample: bool = False, temperature: float = 1.0,
                 top_k: int | None = None, seed: int | None = None,
                 eos_token_id: int | Sequence[int] | None = None) -> Array: ...
    @overload
    def generate(self, prompt: list[str] | tuple[str, ...], max_new_tokens: int, *, edits: HostEdits | None = None,
                 use_error_term: bool | None = None, do_sample: bool = False, temperature: float = 1.0,
                 top_k: int | None = None, seed: int | None = None,
                 eos_token_id: int | Sequence[int] | None = None) -> list[str]: ...
    @overload
    def generate(self, prompt: Sequence[Array] | Sequence[Sequence[int]], max_new_tokens: int, *,
                 edits: HostEdits | None = None, use_error_term: bool | None = None, do_sample: bool = False,
                 temperature: float = 1.0, top_k: int | None = None, seed: int | None = None,
                 eos_token_id: int | Sequence[int] | None = None) -> list[Array]: ...
    # fmt: on
    def generate(
        self,
        prompt: Any,
        max_new_tokens: int,
        *,
        edits: HostEdits | None = None,
        use_error_term: bool | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
    ) -> Any:
        """Return a prompt and the tokens that a decoder continues it with, or those of several prompts.

        The attached SAEs and the edits are the same for the prompt and for every new token, so that the cache of keys
        and values holds one model throughout. A decoder without a cache computes the sequence again for each token.

        Several prompts are continued in one batch. Those with fewer tokens are padded on the left, and masked there;
        the host has to take `attention_mask` and `position_ids` for that.

        Args:
            prompt: A text, or the ids of tokens, `(tokens,)` or `(1, tokens)`; or a list of texts, or of ids.
            max_new_tokens: Largest number of tokens to add.
            edits: Edits of features for the whole sequence, as for `steering`; each is a number, the same for all
                tokens.
            use_error_term: As for `steering`; None without `edits`.
            do_sample: Whether to draw each token. If not, it is the one with the largest logit, and the three options
                that follow must be left out.
            temperature: Number that the logits are divided by before drawing.
            top_k: Number of tokens with the largest logits to draw from; None for all.
            seed: Seed of the draws, which differ between prompts; None for different draws in each call.
            eos_token_id: Id or ids of tokens after which a sequence ends; None never ends it early.

        Returns:
            The text of the whole sequence for a text, or its ids, `(1, tokens)` int64. For a list, a list of texts, or
            of ids, `(tokens,)` int64 each.

        Raises:
            InputError: The host is not a decoder, or the prompt or an option has an invalid value.
            UnknownHookError: As for `steering`, as is `ArtifactError`.
            SAEError: The logits are not finite, because of edits that are too large for the dtype of the host.
        """
        setup = self._attachments.current()
        if edits is None and use_error_term is not None:
            raise InputError(
                f"use_error_term is {use_error_term!r}, and there are no edits, which attach SAEs. Leave it out, or "
                "attach the SAEs with `saes` and its use_error_term."
            )
        if edits is not None:
            with self.steering(edits, use_error_term):
                setup = self._attachments.current()
        check_same_for_all_tokens(setup.edits)

        def run(feeds: Mapping[str, Any], names: Sequence[str]) -> dict[str, Array]:
            return self._runner.run(complete_feeds(self.host.manifest.host, feeds), setup, names)

        several = isinstance(prompt, (list, tuple)) and len(prompt) > 0 and not isinstance(prompt[0], (int, np.integer))
        prompts = list(prompt) if several else [prompt]
        sequences = generate(
            self.host.manifest.host, run, [self._prompt(one) for one in prompts], max_new_tokens, do_sample=do_sample,
            temperature=temperature, top_k=top_k, seed=seed, eos_token_id=eos_token_id,
        )  # fmt: skip
        results = [
            self.tokenizer.decode(ids.tolist()) if isinstance(one, str) else ids
            for one, ids in zip(prompts, sequences, strict=True)
        ]
        if several:
            return results
        return results[0] if isinstance(prompt, str) else sequences[0][None]

    def run_graph(self, graph: str, feeds: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one graph of the folder as it is, and return its outputs.

        Args:
            graph: Name of the graph in the manifest, such as "splice".
            feeds: Arrays by the name of the input; those with a default may be left out.
            names: Names of the outputs; None for all.

        Raises:
            ArtifactError: The folder does not contain the graph, or it cannot be loaded.
            InputError: The graph does not have an input or output with a given name, or an input is missing.
            SAEError: ONNX Runtime refuses the feeds, or runs out of memory.
        """
        if not isinstance(feeds, Mapping):
            raise InputError(f"feeds is {feeds!r}; it must be a dict from the names of inputs to arrays.")
        names = as_output_names(names)
        self._runner.graphs.check_names(graph, feeds, names or ())
        arrays = {name: np.asarray(as_given(array)) for name, array in feeds.items()}
        return self._runner.graphs.run(graph, arrays, names)

    def release(self, graph: str) -> None:
        """Free one graph's copy of the weights; a later call loads it again.

        Raises:
            ArtifactError: The folder does not contain the graph.
        """
        self._runner.graphs.release(graph)

    def close(self) -> None:
        """Free the graphs, their weights and the open files. A later call raises an error; closing twice does not."""
        self._runner.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how `pickle` and `copy` open the same folder again, with the same options and added SAEs.

        Raises:
            SAEError: The session is closed.
            InputError: The caller is inside `saes` or `steering`: a copy would be without them.
        """
        self._runner.graphs.check_open()
        if self._attachments.is_in_block:
            raise InputError(
                "This session is inside `saes` or `steering`, and a copy would be without them. Leave the block before "
                "you copy the session."
            )
        options = {
            "threads": self._options.threads,
            "check_integrity": self._options.check_integrity,
            "public_key": self._public_key,
        }
        return _open_again, (str(self.host.folder), self._asked_device, options, self.host.sha256, self.attached)

    def __enter__(self) -> "HostSession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        hooks = ", ".join(self.hook_names)
        return f"HostSession({str(self.host.path)!r}, {self.host.manifest.host.name}, SAEs at {hooks}, {self.device})"

    def _feeds(self, given: Any) -> dict[str, Array]:
        if is_text(given):
            given = self.tokenize(given)
        return complete_feeds(self.host.manifest.host, given)

    def _prompt(self, prompt: Any) -> Array:
        return checked_prompt(self.tokenizer.encode(prompt)["input_ids"] if isinstance(prompt, str) else prompt)


def _open_again(
    path: str, device: str, options: Mapping[str, Any], sha256: str, attached: Mapping[str, bool]
) -> HostSession:
    """Open the folder of a session that was pickled or copied.

    Raises:
        IntegrityError: Another host is at its path now.
    """
    session = HostSession(path, device, **options)
    if session.host.sha256 != sha256:
        session.close()
        raise IntegrityError(
            f"{path} holds another host now than when its session was pickled or copied: the sha256 of host.json is "
            f"{session.host.sha256}, and was {sha256}. Open the new one with HostSession({path!r})."
        )
    for hook, use_error_term in attached.items():
        session.add_sae(hook, use_error_term)
    return session
