"""Parses manifests into dataclasses. Keys that a later release adds are ignored; everything else is checked."""

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import ManifestError
from .checks import check_manifest
from .checksum import CHECKSUM, checksum_of
from .manifest import SAE_FORMAT, Manifest
from .manifest_format import ManifestFormat
from .strict_json import read_json, shown

Content = TypeVar("Content")


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest of the bytes of a `sae.json`.

    Args:
        data: The content of the file.

    Raises:
        ManifestError: The data is not JSON within the bounds of `strict_json`, has another format version, was changed
            since it was written, lacks a key, or has a value of another type or outside of its range; the message
            names the key.
    """
    return parse(data, Manifest, SAE_FORMAT, check_manifest)


def parse(data: bytes, kind: type[Content], format: ManifestFormat, check: Callable[[Content], None]) -> Content:
    """Return the content of a manifest of any format.

    Args:
        data: The content of the file.
        kind: Dataclass whose fields are the keys of the manifest.
        format: Format of the manifest.
        check: Function that raises a `ManifestError` for a value that is outside of its range.

    Raises:
        ManifestError: As for `parse_manifest`.
    """
    text, content = read_json(data, format)
    if not isinstance(content, dict):
        raise ManifestError(f"{format.file} is {shown(content)}, expected an object. {format.copy_again}")
    _check_version(content, format)
    _check_checksum(text, content, format)
    try:
        manifest = _build(kind, content, format.file)
        assert isinstance(manifest, kind)
        check(manifest)
    except ManifestError as error:  # the checksum is right, so it was written like this
        raise ManifestError(f"{error} {format.order}.") from None
    return manifest


def _check_version(content: dict[str, Any], format: ManifestFormat) -> None:
    """Refuse a manifest of another format, whose checksum may follow another rule."""
    version = content.get("format_version")
    if type(version) is not int or version < 1:
        raise ManifestError(
            f"{format.file}: format_version is {shown(version)}; it must be an integer from 1 on. {format.copy_again}"
        )
    if version > format.version:
        raise ManifestError(
            f"{format.file} has format version {version}; this release reads {format.version}. "
            "Upgrade: pip install --upgrade saeexport"
        )


def _check_checksum(text: str, content: dict[str, Any], format: ManifestFormat) -> None:
    """Refuse a manifest that was changed after it was written."""
    stated = content.get(CHECKSUM)
    if stated is None:
        raise ManifestError(
            f"{format.file} has no {CHECKSUM} of its own content: an older release wrote it, or it was edited. "
            f"{format.order}, to a new folder."
        )
    if not isinstance(stated, str) or not re.fullmatch("[0-9a-f]{64}", stated):
        raise ManifestError(
            f"{format.file}: {CHECKSUM} is {shown(stated)}; it must be 64 hexadecimal digits. {format.copy_again}"
        )
    found = checksum_of(text, stated)
    if found != stated:
        raise ManifestError(
            f"{format.file} was changed after the export: its content has the {CHECKSUM} {found}, and it says {stated}."
            f" {format.copy_again}"
        )


@functools.cache
def _type_hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _build(kind: Any, value: Any, where: str) -> Any:
    """Convert a JSON value to the annotated type `kind`; `where` names the value in errors."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        content = _expect(dict, value, where)
        hints = _type_hints(typing.cast(Any, kind))
        missing = [
            field.name
            for field in dataclasses.fields(kind)
            if field.name not in content
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ManifestError(f"{where} has no key {', '.join(map(repr, missing))}.")
        return typing.cast(Any, kind)(
            **{name: _build(hint, content[name], f"{where}: {name}") for name, hint in hints.items() if name in content}
        )
    if origin is dict:
        content = _expect(dict, value, where)
        return {key: _build(arguments[1], item, f"{where}[{shown(key)}]") for key, item in content.items()}
    if origin is tuple:
        content = _expect(list, value, where)
        return tuple(_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(content))
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        options = tuple(option for option in arguments if option is not type(None))
        return _build(options[0], value, where) if len(options) == 1 else _scalar(options, value, where)
    return _scalar((kind,), value, where)


def _expect(kind: type[dict[str, Any]] | type[list[Any]], value: Any, where: str) -> Any:
    if not isinstance(value, kind):
        raise ManifestError(f"{where} is {shown(value)}, expected {'an object' if kind is dict else 'a list'}.")
    return value


def _scalar(kinds: tuple[type, ...], value: Any, where: str) -> Any:
    if float in kinds and int not in kinds and type(value) is int:
        return float(value)
    if type(value) not in kinds:
        raise ManifestError(f"{where} is {shown(value)}, expected {' or '.join(kind.__name__ for kind in kinds)}.")
    return value
