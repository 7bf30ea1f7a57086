"""Loads a HookedSAE from a path: finds the format that recognises it and calls its reader.

A format is a module with five names: `TITLE`, its short name; `NAME`, the files that it consists of; `ARCHITECTURES`,
the architectures that it can hold; `recognises(path)`; and `read(path)`, which returns the HookedSAE, its parameters
views of the file where possible.
"""

import os
from pathlib import Path
from types import ModuleType

from runtime.errors import CheckpointError

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
from .nearest import describe_nearest
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
        InputError: `dtype` is not a dtype that weights may have.
    """
    path = Path(path)
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
        CheckpointError: No format does; the message has the nearest one, or why the layout is not supported.
    """
    refuse(path)
    for form in FORMATS:
        if form.recognises(path):
            return form
    if not path.exists():
        found = "does not exist"
    elif path.is_dir():
        found = f"is a folder with {', '.join(sorted(entry.name for entry in path.iterdir())[:6]) or 'nothing in it'}"
    else:
        found = f"is a file ending in {path.suffix!r}" if path.suffix else "is a file without an ending"
    nearest = describe_nearest(path, FORMATS)
    raise CheckpointError(
        f"{path} {found}.{nearest} What can be loaded: {'; '.join(form.NAME for form in FORMATS)}."
    )
