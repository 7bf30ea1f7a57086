"""From a path to a HookedSAE: one on-disk format per file, asked in turn.

A format is a module with `TITLE`, its short name; `NAME`, which files it consists of; `ARCHITECTURES`, the names of the
architectures that it can hold; `recognises(path)`; and `read(path)`, which returns the HookedSAE on the CPU, its
parameters views of the file where that can be.
"""

import os
from pathlib import Path
from types import ModuleType

import torch

from runtime.errors import CheckpointError
from runtime.tables import markdown_table

from ..original.architectures import ARCHITECTURES
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

# The specific before the general: a state dict is any file of tensors.
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


def load(path: str | os.PathLike[str], *, hook_name: str | None = None, dtype: torch.dtype | None = None) -> HookedSAE:
    """Return the HookedSAE at `path`, of any format that `saeexport formats` lists.

    It lives on CUDA if present, else on the CPU. What the checkpoint does not say has the default of `HookedSAEConfig`.

    Args:
        path: a file or a folder, also as the Hub's client leaves it, with symbolic links.
        hook_name: where the activations come from, in TransformerLens' names; None takes the checkpoint's, which is
            empty where it has none.
        dtype: of the parameters; None keeps the checkpoint's.

    Raises:
        CheckpointError: `path` is of no known format, or of one and not sound, or has an option that is not known.
        ArtifactError: `path` is an artifact, and its manifest or weights are not sound.
    """
    path = Path(path)
    sae: HookedSAE = recognise(path).read(path)
    if hook_name is not None:
        sae.cfg.hook_name = hook_name
    if dtype is not None:
        sae.cfg.dtype = dtype
        sae = sae.to(dtype)
    return sae


def recognise(path: Path) -> ModuleType:
    """Return the format, a module, of what is at `path`.

    Raises:
        CheckpointError: it is of no known format.
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


def table() -> str:
    """Return which format can hold which architecture, as a Markdown table."""
    rows = [
        [architecture, *("✓" if architecture in form.ARCHITECTURES else "" for form in FORMATS)]
        for architecture in ARCHITECTURES
    ]
    return markdown_table(["", *(form.TITLE for form in FORMATS)], rows, centered=range(1, len(FORMATS) + 1))
