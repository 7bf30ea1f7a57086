"""What a grafted host is compared with: feeds, and the activations and outputs of the model in PyTorch or in a file."""

import dataclasses
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from runtime.arrays.arguments import as_path
from runtime.arrays.dtypes import BFLOAT16, FLOAT32
from runtime.arrays.tensor import Array
from runtime.errors import GraftError
from runtime.hosts.names import TOKENIZER

from .candidates import GOLDEN, REFERENCE, Reference
from .feeds import default_feeds, select_sequences
from .host import Host
from .reference import capture, load_model

HOOKS, OUTPUTS = "hooks/", "outputs/"
"""Prefixes of the names of activations and outputs in a file."""


@dataclass(frozen=True)
class Given:
    """What a grafted host is compared with.

    Attributes:
        reference: Feeds, and the activations at the hooks if there are any.
        source: Where the feeds are from: "sentences", "synthetic" or "reference".
        model: The same model in PyTorch; None if there is none.
        outputs: Outputs of the host that a file holds, by name.
        tokenizer: File of the host's tokenizer; None if there is none.
    """

    reference: Reference
    source: str
    model: Any
    outputs: Mapping[str, Array] = field(default_factory=dict)
    tokenizer: Path | None = None


def prepare(
    host: Host, hooks: Collection[str], hf: "str | os.PathLike[str] | None", file: "str | os.PathLike[str] | None"
) -> Given:
    """Return what a host is compared with.

    Args:
        host: The host.
        hooks: Hooks whose activations are needed.
        hf: Folder of the model for transformers.
        file: Safetensors or .npz file with feeds, activations and outputs.

    Raises:
        GraftError: Both are given, one cannot be read, or the feeds do not fit the host.
    """
    if hf is not None and file is not None:
        raise GraftError("Both a model for transformers and a file are given to compare with. Pass one of them.")
    folders = [host.path.parent] if hf is None else [as_path("hf", hf), host.path.parent]
    tokenizer = next((folder / TOKENIZER for folder in folders if (folder / TOKENIZER).is_file()), None)
    if file is not None:
        return _from_file(host, hooks, as_path("reference", file), tokenizer)
    feeds, source = default_feeds(host, tokenizer)
    if hf is None:
        return Given(Reference(feeds), source, None, {}, tokenizer)
    model = load_model(as_path("hf", hf), weights=BFLOAT16 if host.is_widened else FLOAT32)
    return Given(Reference(feeds, capture(model, feeds, hooks), REFERENCE), source, model, {}, tokenizer)


def select(host: Host, given: Given, keep: Array) -> Given:
    """Return what a host is compared with on some of the sequences.

    Args:
        host: The host.
        given: What it is compared with on all of them.
        keep: Which sequences to keep, `(batch,)` bool.

    Raises:
        GraftError: The host takes batches of one size only.
    """
    old = given.reference
    activations = {hook: array[keep] for hook, array in old.activations.items()}
    reference = dataclasses.replace(old, feeds=select_sequences(host, old.feeds, keep), activations=activations)
    return dataclasses.replace(given, reference=reference, outputs={k: y[keep] for k, y in given.outputs.items()})


def _from_file(host: Host, hooks: Collection[str], file: Path, tokenizer: Path | None) -> Given:
    arrays = _read(file)
    inputs = [str(value.name) for value in host.graph.inputs]
    feeds = {name: arrays[name] for name in inputs if name in arrays}
    if missing := [name for name in inputs if name not in feeds]:
        raise GraftError(
            f"{file} does not hold the host's inputs {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}."
        )
    activations = {hook: arrays[HOOKS + hook] for hook in hooks if HOOKS + hook in arrays}
    outputs = {name.removeprefix(OUTPUTS): array for name, array in arrays.items() if name.startswith(OUTPUTS)}
    return Given(Reference(feeds, activations, GOLDEN), "reference", None, outputs, tokenizer)


def _read(file: Path) -> dict[str, Array]:
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as content:
                return {name: content[name] for name in content.files}
        if file.suffix == ".safetensors":
            return load_file(file)
    except (OSError, ValueError, EOFError, SafetensorError, KeyError) as error:
        raise GraftError(f"{file} cannot be read: {error}") from error
    raise GraftError(f"{file} ends in {file.suffix!r}; references are read from .safetensors and .npz.")
