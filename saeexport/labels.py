"""Reads labels of features: `labels.json` of an artifact, and what Neuronpedia exports.

Neuronpedia's objects have `modelId`, `layer` (the SAE) and `index`. An explanation has `description`, an activation has
`tokens` and `values`, and a feature has lists of both.

Source: Neuronpedia's API, https://www.neuronpedia.org/api/explanation/export?modelId=...&saeId=..., a JSON list, and
https://www.neuronpedia.org/api/feature/MODEL/SAE/INDEX; its datasets have one object per line, compressed.
"""

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from runtime.arrays.arguments import as_path
from runtime.artifact.files import open_file
from runtime.artifact.labels import FORMAT, LARGEST, Example, Label, Labels, read_labels
from runtime.errors import ArtifactError, InputError

GZIP = b"\x1f\x8b"

EXAMPLES, AROUND = 5, 10
"""Number of examples of a feature that are taken from Neuronpedia, and of tokens on each side of the strongest one."""

STRONG = 0.5
"""Activation of the tokens of an example that are marked, as a fraction of its largest one."""

LARGEST_ACTIVATION = float(np.finfo(np.float32).max)

ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
"""Endings of the files of labels in a folder that has those of several SAEs."""


def load_labels(path: str | os.PathLike[str], d_sae: int) -> Labels:
    """Return the labels in a file.

    If a feature has several explanations, the first one is taken. Of its activations on Neuronpedia, the strongest five
    become examples, each cut to the tokens around the strongest one.

    Args:
        path: `labels.json` of an artifact, or an export of Neuronpedia, a JSON list or an object on each line. Both
            may be compressed with gzip.
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
    if not isinstance(entries, list) or not all(map(_is_of_neuronpedia, entries)):
        raise InputError(
            f"{path} does not hold labels. Give labels.json of an artifact, or an export of Neuronpedia, objects with "
            "modelId, layer, index, and a description, explanations, activations, or tokens with values."
        )
    return _of_neuronpedia(path, entries, d_sae)


def _is_of_neuronpedia(entry: Any) -> bool:
    known = {"description", "explanations", "activations", "tokens"}
    return isinstance(entry, dict) and "index" in entry and not known.isdisjoint(entry)


def _of_neuronpedia(path: Path, entries: list[dict[str, Any]], d_sae: int) -> Labels:
    names = {(entry.get("modelId"), entry.get("layer")) for entry in entries}
    if len(saes := sorted(f"{model}/{sae}" for model, sae in names if model and sae)) > 1:
        raise InputError(f"{path} is about features of several SAEs: {', '.join(saes[:5])}. Give those of one.")
    texts: dict[int, str] = {}
    examples: dict[int, list[Example]] = {}
    for entry in entries:
        try:
            index = int(str(entry["index"]))  # a string in the API
        except ValueError as error:
            raise InputError(f"{path}: an index is {entry['index']!r}; it must be a whole number.") from error
        for explanation in (entry, *_parts(path, entry, "explanations")):
            if isinstance(text := explanation.get("description"), str):
                texts.setdefault(index, text.strip())
        for activation in (entry, *_parts(path, entry, "activations")):
            if "tokens" in activation and (example := _example(path, index, activation)):
                examples.setdefault(index, []).append(example)
    for found in examples.values():
        found.sort(key=lambda example: -(example.activation or 0))
    labels = [Label(i, texts.get(i), tuple(examples.get(i, ())[:EXAMPLES])) for i in {**texts, **examples}]
    return Labels(d_sae, labels, f"https://www.neuronpedia.org/{saes[0]}" if saes else None)


def _parts(path: Path, entry: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the explanations or activations of a feature."""
    parts = entry.get(key) or []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise InputError(f"{path}: {key} of feature {entry['index']} is not a list of objects.")
    return parts


def _example(path: Path, index: int, activation: dict[str, Any]) -> Example | None:
    """Return an activation as an example; None if the feature is not on."""
    tokens, values = activation["tokens"], activation.get("values")
    if not isinstance(tokens, list) or not isinstance(values, list) or not _fit(tokens, values):
        raise InputError(
            f"{path}: an activation of feature {index} must have as many values, finite numbers, as tokens, texts."
        )
    largest = max(values, default=0)
    if largest <= 0:
        return None
    strongest = values.index(largest)
    text, spans = "", []
    for i in range(max(0, strongest - AROUND), min(len(tokens), strongest + AROUND + 1)):
        token = tokens[i].replace("\u2581", " ")  # how SentencePiece writes a space
        start = len(text) + len(token) - len(token.lstrip())
        text += token
        if values[i] >= STRONG * largest and start < len(text):
            spans.append((start, len(text)))
    return Example(text, tuple(spans), float(largest))


def _fit(tokens: list[Any], values: list[Any]) -> bool:
    """Tell whether the tokens of an activation are texts, with as many values, which are numbers."""
    numbers = all(isinstance(value, int | float) and abs(value) <= LARGEST_ACTIVATION for value in values)
    return numbers and len(tokens) == len(values) and all(isinstance(token, str) for token in tokens)


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
