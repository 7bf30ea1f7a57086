"""From a path to a HookedSAE: one on-disk format per file, asked in turn.

A format is a module with `NAME`, what it is called; `recognises(path)`; and `read(path)`, which returns the HookedSAE.
"""

import os
from pathlib import Path

from runtime.errors import CheckpointError

from ..hooked_sae import HookedSAE
from . import artifact, state_dict

FORMATS = (artifact, state_dict)


def load(path: str | os.PathLike[str]) -> HookedSAE:
    """Return the HookedSAE at `path`: an artifact folder, or a state dict with its config beside it.

    It lives on CUDA if present, else on the CPU.

    Raises:
        CheckpointError: `path` is of no known format, or of one and not sound.
        ArtifactError: `path` is an artifact, and its manifest or weights are not sound.
    """
    path = Path(path)
    for form in FORMATS:
        if form.recognises(path):
            return form.read(path)
    if not path.exists():
        found = "does not exist"
    elif path.is_dir():
        found = f"is a folder with {', '.join(sorted(entry.name for entry in path.iterdir())[:6]) or 'nothing in it'}"
    else:
        found = f"is a file ending in {path.suffix!r}" if path.suffix else "is a file without an ending"
    raise CheckpointError(f"{path} {found}. What can be loaded: {'; '.join(form.NAME for form in FORMATS)}.")
