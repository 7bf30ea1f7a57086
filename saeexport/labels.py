"""Reads labels of features: `labels.json` of an artifact, and the explanations that Neuronpedia exports.

Source: Neuronpedia's API, https://www.neuronpedia.org/api/explanation/export?modelId=...&saeId=..., a JSON list of
objects with `modelId`, `layer` (the SAE), `index` and `description`; its datasets have one object per line, compressed.
"""

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any

from runtime.arrays.arguments import as_path
from runtime.artifact.files import open_file
from runtime.artifact.labels import FORMAT, LARGEST, Label, Labels, read_labels
from runtime.errors import ArtifactError, InputError

GZIP = b"\x1f\x8b"

ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
"""Endings of the files of labels in a folder that has those of several SAEs."""


def load_labels(path: str | os.PathLike[str], d_sae: int) -> Labels:
    """Return the labels in a file.

    If a feature has several explanations, the first one is taken.

    Args:
        path: `labels.json` of an artifact, or an export of Neuronpedia, a JSON list or an object per line. It may be
            compressed with gzip.
        d_sae: Number of features of the SAE.

    Raises:
        InputError: The file cannot be read, or holds something else.
        ArtifactError: It is a `labels.json` that is damaged or of another SAE.
    """
    path = as_path("labels", path)
    content = _read(path)
    try:
        text = content.decode("utf-8")
        entries = json.loads(text) if text.lstrip()[:1] == "[" else _lines(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} does not hold labels: it is not JSON ({error}).") from error
    if isinstance(entries, dict) and entries.get("format") == FORMAT:
        return read_labels(content, d_sae, str(path))
    entries = [entries] if isinstance(entries, dict) else entries  # a text of one line
    if not isinstance(entries, list) or not all(map(_is_explanation, entries)):
        raise InputError(
            f"{path} does not hold labels. Give labels.json of an artifact, or an export of Neuronpedia, objects with "
            "modelId, layer, index and description."
        )
    return _of_neuronpedia(path, entries, d_sae)


def _is_explanation(entry: Any) -> bool:
    return isinstance(entry, dict) and {"index", "description"} <= set(entry)


def _of_neuronpedia(path: Path, entries: list[dict[str, Any]], d_sae: int) -> Labels:
    names = {(entry.get("modelId"), entry.get("layer")) for entry in entries}
    if len(saes := sorted(f"{model}/{sae}" for model, sae in names if model and sae)) > 1:
        raise InputError(f"{path} has explanations of several SAEs: {', '.join(saes[:5])}. Give those of one.")
    found: dict[int, Label] = {}
    for entry in entries:
        if isinstance(entry["description"], str):
            try:
                index = int(entry["index"])  # a string in the API
            except (TypeError, ValueError) as error:
                raise InputError(f"{path}: an index is {entry['index']!r}; it must be a whole number.") from error
            found.setdefault(index, Label(index, entry["description"].strip()))
    return Labels(d_sae, found.values(), f"https://www.neuronpedia.org/{saes[0]}" if saes else None)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is not a file. Give the file of the labels.")
    try:
        with open_file(path) as file:
            content = file.read() if file.size <= LARGEST else None
        if content is not None and content.startswith(GZIP):
            with gzip.open(path) as unpacked:
                content = unpacked.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error, ArtifactError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if content is None or len(content) > LARGEST:
        raise InputError(f"{path} has more than {LARGEST:,} bytes, so it does not hold labels.")
    return content


def _lines(text: str) -> Any:
    """Return the value of a JSON text, or the values of a text with one on each line."""
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
