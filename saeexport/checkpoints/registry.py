"""Loads a HookedSAE from a path: finds the format that recognises it and calls its reader.

A format is a module with five names: `TITLE`, its short name; `NAME`, the files that it consists of; `ARCHITECTURES`,
the architectures that it can hold; `recognises(path)`; and `read(path)`, which returns the HookedSAE, its parameters
views of the file where possible.
"""

import os
from pathlib import Path
from types import ModuleType

from runtime.arrays.arguments import as_path
from runtime.errors import CheckpointError, InputError

from ..original.dtypes import DTypeLike, torch_dtype
from ..original.hooked_sae import HookedSAE
from .formats import (
    artifact,
    attention_gpt2,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    llama_scope,
    openai,
    saelens,
    saelens_legacy,
    sparsify,
    state_dict,
)

# Specific formats come first: any file of tensors may be a state dict.
FORMATS = (
    artifact,
    saelens,
    saelens_legacy,
    gemma_scope,
    gemma_scope_2,
    attention_gpt2,
    sparsify,
    dictionary_learning,
    llama_scope,
    goodfire,
    openai,
    state_dict,
)


def load(path: str | os.PathLike[str], *, hook_name: str | None = None, dtype: DTypeLike | None = None) -> HookedSAE:
    """Load a checkpoint of any format that `saeexport formats` lists as a HookedSAE.

    The HookedSAE is on CUDA if CUDA is available, otherwise on the CPU. Options that the checkpoint leaves out take the
    defaults of `HookedSAEConfig`.

    Args:
        path: File or folder of the checkpoint. The symbolic links of the Hugging Face Hub's cache are followed.
        hook_name: TransformerLens name of the hook that the activations come from. None keeps the checkpoint's name,
            which is empty in formats that do not store one.
        dtype: Dtype to convert the parameters to: a name ("float16"), a `torch.dtype` or a numpy dtype. None keeps the
            checkpoint's.

    Raises:
        CheckpointError: No format recognises `path`, a file is damaged, or an option is unknown.
        ArtifactError: `path` is an artifact whose manifest or weights are damaged.
        InputError: `dtype` is not a dtype that weights may have, or `path` or `hook_name` has another type.
    """
    path = as_path("path", path)
    if hook_name is not None and not isinstance(hook_name, str):
        raise InputError(f"hook_name is {hook_name!r}; it must be a string, or None for the checkpoint's.")
    wanted = None if dtype is None else torch_dtype(dtype)
    sae: HookedSAE = recognise(path).read(path)
    if hook_name is not None:
        sae.cfg.hook_name = hook_name
    if wanted is not None:
        sae.cfg.dtype = wanted
        sae = sae.to(wanted)
    return sae


def recognise(path: Path) -> ModuleType:
    """Return the module of the format that recognises `path`.

    Raises:
        CheckpointError: No format does.
    """
    for form in FORMATS:
        if form.recognises(path):
            return form
    if not path.exists():
        found = "does not exist"
    elif path.is_dir():
        found = f"is a folder with {', '.join(sorted(entry.name for entry in path.iterdir())[:6]) or 'nothing in it'}"
    else:
        found = f"is a file ending in {path.suffix!r}" if path.suffix else "is a file without an ending"
    raise CheckpointError(f"{path} {found}. What can be loaded: {'; '.join(form.NAME for form in FORMATS)}.")
