"""From the text of `sae.json` to a `Manifest`: strict about what it must have, blind to what a later release adds."""

import dataclasses
import json
import types
import typing
from typing import Any

from ..arrays.dtypes import FLOAT32
from ..errors import ManifestError
from .contracts import ACTIVATE, CPU_VARIANTS, DECODE, graph_specs
from .manifest import FORMAT_VERSION, INT8, MANIFEST, Manifest


def parse_manifest(text: str) -> Manifest:
    """Return the manifest of a `sae.json` text.

    Raises:
        ManifestError: it is not JSON, of a newer format, or lacks a key or has one of another type; the message says
            which.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ManifestError(
            f"{MANIFEST} is not JSON ({error}); it may be truncated. Copy or export the artifact again."
        ) from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ManifestError(
            f"{MANIFEST} has format version {version}; this release reads {FORMAT_VERSION}. "
            "Upgrade: pip install --upgrade saeexport"
        )
    manifest = _build(Manifest, data, MANIFEST)
    assert isinstance(manifest, Manifest)
    _check_files(manifest)
    _check_graphs(manifest)
    _check_records(manifest)
    return manifest


def _check_records(manifest: Manifest) -> None:
    """Refuse what was measured if it is not what such an artifact has."""
    weights, dtype = manifest.weights_dtype, manifest.sae.dtype
    if dtype not in CPU_VARIANTS or weights not in (dtype, INT8):
        raise ManifestError(
            f"{MANIFEST}: dtype is {dtype!r} and weights_dtype {weights!r}; what this release reads is "
            f"{', '.join(CPU_VARIANTS)}, with weights of the same or {INT8}."
        )
    if (manifest.parity is None) != (weights == INT8):
        raise ManifestError(
            f"{MANIFEST}: weights_dtype is {weights!r}; there must be parity unless it is {INT8!r}, and then not."
        )
    if manifest.fidelity is None if weights == INT8 else manifest.fidelity is not None and dtype == FLOAT32:
        raise ManifestError(
            f"{MANIFEST}: weights_dtype is {weights!r}; with {INT8!r} there must be fidelity, with {FLOAT32!r} none."
        )


def _check_files(manifest: Manifest) -> None:
    """Refuse what would lead a reader out of the folder, or to a file that nothing vouches for."""
    for name in manifest.files:
        if not name or name != name.replace("\\", "/").rsplit("/", 1)[-1] or name in (".", ".."):
            raise ManifestError(f"{MANIFEST}: files names {name!r}, which is not a plain file name.")
    used = [manifest.weights, manifest.golden.file, *(graph.file for graph in manifest.graphs.values())]
    for name in used:
        if name not in manifest.files:
            raise ManifestError(f"{MANIFEST}: {name!r} is used but has no entry in files.")


def _check_graphs(manifest: Manifest) -> None:
    """Refuse a graph that does not keep the contract; graphs without one are of a later release."""
    needing_input = [
        name for name, graph in manifest.graphs.items() if name in (ACTIVATE, DECODE) and len(graph.inputs) > 1
    ]
    specs = graph_specs(manifest.sae, needing_input)
    for name, expected in specs.items():
        if name not in manifest.graphs:
            raise ManifestError(
                f"{MANIFEST}: graphs has no {name!r}; every artifact in {manifest.sae.dtype} has {', '.join(specs)}."
            )
        if manifest.graphs[name] != expected:
            raise ManifestError(f"{MANIFEST}: graph {name!r} is {manifest.graphs[name]}, of this SAE it is {expected}.")


def _build(kind: Any, value: Any, where: str) -> Any:
    """Return `value`, as JSON gave it, as an object of the annotated type `kind`; `where` names it in errors."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ManifestError(f"{where} is {value!r}, expected an object.")
        hints = typing.get_type_hints(kind)
        missing = [name for name in hints if name not in value]
        if missing:
            raise ManifestError(f"{where} has no key {', '.join(map(repr, missing))}.")
        return typing.cast(Any, kind)(
            **{name: _build(hint, value[name], f"{where}: {name}") for name, hint in hints.items()}
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise ManifestError(f"{where} is {value!r}, expected an object.")
        return {key: _build(arguments[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list):
            raise ManifestError(f"{where} is {value!r}, expected a list.")
        return tuple(_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        options = tuple(option for option in arguments if option is not type(None))
        return _build(options[0], value, where) if len(options) == 1 else _scalar(options, value, where)
    return _scalar((kind,), value, where)


def _scalar(kinds: tuple[type, ...], value: Any, where: str) -> Any:
    if float in kinds and int not in kinds and type(value) is int:
        return float(value)
    if type(value) not in kinds:
        raise ManifestError(f"{where} is {value!r}, expected {' or '.join(kind.__name__ for kind in kinds)}.")
    return value
