"""Loads a HookedSAE from a path: finds the format that recognises it and calls its reader.

A format is a module with five names: `TITLE`, its short name; `NAME`, the files that it consists of; `ARCHITECTURES`,
the architectures that it can hold; `recognises(path)`; and `read(path, request)`, which returns the HookedSAE, its
parameters views of the file where possible. `request` has what the caller says about the checkpoint; a reader takes the
fields that it uses, and the others are refused here.

A format may also have `CONFIG` and `WEIGHTS`, the names of its two files; `BESIDE`, those of further files that its
reader looks at if they are there; and `TENSORS`, the names of its tensors. `layouts` finds checkpoints by them, and
`nearest` says what a path that no format recognises lacks.

Formats of libraries whose objects people have in memory also have `from_parts(contents, stored, source, request)`. It
takes the config and the state dict, and does everything that `read` does after reading the files.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from runtime.arrays.arguments import as_integer, as_path
from runtime.errors import CheckpointError, InputError

from ..original.dtypes import DTypeLike, torch_dtype
from ..original.hooked_sae import HookedSAE
from .formats import (
    artifact,
    attention_gpt2,
    circuit_tracer,
    circuit_tracer_clt,
    deepseek_r1,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    llama_scope,
    llama_scope_r1,
    openai,
    qwen_scope,
    saelens,
    saelens_legacy,
    sentence_transformers,
    sparsify,
    state_dict,
)
from .hub import locate
from .nearest import describe
from .request import Request
from .unsupported import refuse

# Specific formats come first: any file of tensors may be a state dict.
FORMATS = (
    artifact,
    saelens,
    saelens_legacy,
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    llama_scope_r1,
    qwen_scope,
    circuit_tracer,
    circuit_tracer_clt,
    sparsify,
    dictionary_learning,
    sentence_transformers,
    attention_gpt2,
    goodfire,
    deepseek_r1,
    openai,
    state_dict,
)


class Reading(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        form: Module of its format.
        sae: The HookedSAE.
        notes: Sentences about the checkpoint that its reader noted.
    """

    form: ModuleType
    sae: HookedSAE
    notes: tuple[str, ...]


def load(
    path: str | os.PathLike[str],
    *,
    hook_name: str | None = None,
    dtype: DTypeLike | None = None,
    norm_scaling_factor: float | None = None,
    already_folded: bool = False,
    normalize_activations: str | None = None,
    transcoder: bool | None = None,
    ignore_config: Iterable[str] = (),
    index: int | None = None,
) -> HookedSAE:
    """Load a checkpoint of any format that `saeexport formats` lists as a HookedSAE.

    The HookedSAE is on CUDA if CUDA is available, otherwise on the CPU. Options that the checkpoint leaves out take the
    defaults of `HookedSAEConfig`. Arguments that the checkpoint does not need are refused.

    Args:
        path: File or folder of the checkpoint, or its address on the Hugging Face Hub,
            `hf://OWNER/NAME[@REVISION][/PATH]`. Symbolic links, as in the Hub's cache, are followed.
        hook_name: TransformerLens name of the hook that the activations come from. None keeps the checkpoint's name,
            which is empty in formats that do not store one.
        dtype: Dtype to convert the parameters to: a name ("float16"), a `torch.dtype` or a numpy dtype. None keeps the
            checkpoint's.
        norm_scaling_factor: Factor that the inputs are multiplied by before encoding, for a checkpoint whose config
            says "expected_average_only_in". It is folded into the weights.
        already_folded: Whether the weights of such a checkpoint already include the factor.
        normalize_activations: Normalisation of the input, one of those of `HookedSAEConfig`, instead of the one in the
            checkpoint's config.
        transcoder: Whether the checkpoint is a transcoder, for formats whose files do not tell.
        ignore_config: Keys of the checkpoint's config to ignore although their effect is unknown.
        index: Number of one SAE in a file that holds several, such as one head or layer.

    Raises:
        CheckpointError: No format recognises `path`, a file is damaged, an option is unknown, or an argument is not
            needed or missing.
        ArtifactError: `path` is an artifact whose manifest or weights are damaged.
        InputError: `dtype` is not a dtype that weights may have, or another argument has the wrong type.
        HubError: The address does not exist on the Hub, access is refused, or the Hub cannot be reached.
    """
    request = request_of(
        dtype=dtype,
        norm_scaling_factor=norm_scaling_factor,
        already_folded=already_folded,
        normalize_activations=normalize_activations,
        transcoder=transcoder,
        ignore_config=ignore_config,
        index=index,
    )
    return _load(path, hook_name, request)


def load_for_export(
    path: str | os.PathLike[str], dtype: DTypeLike | None, *, hook_name: str | None = None, **said: Any
) -> HookedSAE:
    """Load a checkpoint that an export will convert to `dtype`; further arguments and errors are those of `load`.

    A checkpoint that has another dtype is returned in float32: the export rounds to half precision once, and measures
    what that loses.
    """
    return _load(path, hook_name, request_of(export_dtype=dtype, **said))


def _load(path: str | os.PathLike[str], hook_name: str | None, request: Request) -> HookedSAE:
    """Load a checkpoint as the HookedSAE of a hook; None keeps the checkpoint's name of it."""
    path = as_path("path", path)
    if hook_name is not None and not isinstance(hook_name, str):
        raise InputError(f"hook_name is {hook_name!r}; it must be a string, or None for the checkpoint's.")
    sae = read(path, request).sae
    if hook_name is not None:
        sae.cfg.hook_name = hook_name
    return sae


def request_of(
    *,
    dtype: DTypeLike | None = None,
    export_dtype: DTypeLike | None = None,
    ignore_config: Iterable[str] = (),
    **said: Any,
) -> Request:
    """Return the request that arguments of `load` make.

    Raises:
        InputError: A dtype is not one that weights may have, `index` is not a whole number, or a switch is not a bool.
        CheckpointError: `ignore_config` is a string instead of several.
    """
    if isinstance(ignore_config, str):
        raise CheckpointError(f"ignore_config is {ignore_config!r}; pass a list of keys: [{ignore_config!r}].")
    for switch in ("already_folded", "transcoder"):
        if not isinstance(value := said.get(switch), (bool, type(None))):
            raise InputError(f"{switch} is {value!r}; it must be True or False.")
    if said.get("index") is not None:
        said["index"] = as_integer("index", said["index"], 0)
    return Request(
        dtype=None if dtype is None else torch_dtype(dtype),
        export_dtype=None if export_dtype is None else torch_dtype(export_dtype),
        ignore_config=tuple(ignore_config),
        **said,
    )


def read(path: Path, request: Request) -> Reading:
    """Read a checkpoint of any format.

    Raises:
        CheckpointError, ArtifactError, HubError: As for `load`.
    """
    path, provenance = locate(path, FORMATS)
    form = recognise(path)
    sae: HookedSAE = form.read(path, request)
    sae.provenance |= provenance
    return Reading(form, finish(sae, f"{path}, which is read as {form.TITLE},", request), tuple(request.notes))


def finish(sae: HookedSAE, source: str, request: Request) -> HookedSAE:
    """Return the SAE with its parameters in the dtype of its config, and a record of what the caller said.

    Args:
        sae: SAE that a reader returned.
        source: The checkpoint or object and its format, for error messages.
        request: What the caller said, after the reader took what it uses.

    Raises:
        CheckpointError: The reader did not use something that the caller said.
    """
    request.finish(source)
    sae.provenance |= request.record()
    return sae.to(sae.cfg.dtype)


def recognise(path: Path) -> ModuleType:
    """Return the module of the format that recognises `path`.

    Raises:
        CheckpointError: No format does; the message has the nearest one, or why the layout is not supported.
    """
    refuse(path)
    for form in FORMATS:
        if form.recognises(path):
            return form
    raise CheckpointError(f"{describe(path, FORMATS)} `saeexport formats` lists what can be loaded.")
