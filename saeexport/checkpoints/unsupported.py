"""Refuses published layouts that no HookedSAE can be, by name and with the reason."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from runtime.errors import CheckpointError

from .containers import is_stored
from .files import folder_with


class Unsupported(NamedTuple):
    """A layout that is not read.

    Attributes:
        name: What it is.
        reason: Why it is not read.
        recognises: Tells whether a path is one.
    """

    name: str
    reason: str
    recognises: Callable[[Path], bool]


LOOPS = "it chooses its features one after the other, in a loop whose length depends on the data"
OTHER_TOKENS = "its features depend on other tokens, by attention"
SEVERAL_LAYERS = "its features read or write several layers of the model"

LAYOUTS = (
    Unsupported(
        "a temporal SAE (conf.yaml and latest_ckpt.safetensors)",
        OTHER_TOKENS,
        lambda path: folder_with(path, "conf.yaml", "latest_ckpt.safetensors") is not None,
    ),
    Unsupported(
        "a crosscoder or cross-layer transcoder of Gemma Scope 2 (params_layer_<n>.safetensors)",
        SEVERAL_LAYERS,
        lambda path: (
            is_stored(path / "params_layer_0.safetensors")
            or (path.is_file() and re.fullmatch(r"params_layer_\d+\.safetensors", path.name) is not None)
        ),
    ),
)


def refuse(path: Path) -> None:
    """Refuse a path with a layout that is not read; return if it is none of them.

    Raises:
        CheckpointError: The layout is one of `LAYOUTS`; the message has its name and the reason.
    """
    for layout in LAYOUTS:
        if layout.recognises(path):
            raise CheckpointError(f"{path} is {layout.name}, which is not supported: {layout.reason}.")
