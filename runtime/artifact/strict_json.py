"""Reads the JSON of a manifest, however damaged it is, in bounded time and memory.

It takes what RFC 8259 allows and nothing more: no NaN and no Infinity, no byte order mark, no key twice in one object.
"""

import json
import math
import re
from typing import Any, NoReturn

from ..errors import ManifestError
from .manifest import SAE_FORMAT
from .manifest_format import ManifestFormat

MAX_BYTES = 1 << 20
"""Largest size of a manifest in bytes. One of a real SAE has about 20,000."""

MAX_DEPTH = 32
"""Largest number of objects and lists inside each other. Format 1 has 6."""

MAX_NUMBER = 32
"""Largest number of characters of a number. A float64 needs up to 24, an integer of 64 bits up to 20."""

_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.DOTALL)


def check_size(size: int, format: ManifestFormat = SAE_FORMAT) -> None:
    """Check the size of a manifest in bytes, which is known before it is read.

    Raises:
        ManifestError: It is larger than `MAX_BYTES`.
    """
    if size > MAX_BYTES:
        raise ManifestError(
            f"{format.file} has more than {MAX_BYTES:,} bytes, so it is not a manifest. {format.copy_again}"
        )


def read_json(data: bytes, format: ManifestFormat = SAE_FORMAT) -> tuple[str, Any]:
    """Return the text of a manifest and the value that it stands for.

    Args:
        data: The content of the file.
        format: The format of the manifest, for the messages.

    Raises:
        ManifestError: The data is too large, is not UTF-8, is not JSON, or exceeds one of the bounds of this module.
    """
    check_size(len(data), format)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{format.file} is not text ({error.reason} at byte {error.start}). {format.copy_again}"
        ) from None
    try:
        _check_depth(text)
        return text, json.loads(
            text, parse_int=_int, parse_float=_float, parse_constant=_refuse_constant, object_pairs_hook=_object
        )
    except json.JSONDecodeError as error:
        raise ManifestError(f"{format.file} is not JSON ({error}); it may be truncated. {format.copy_again}") from None
    except ValueError as error:
        raise ManifestError(f"{format.file} has {error}. {format.copy_again}") from None


def shown(value: object) -> str:
    """Return a value as error messages show it: escaped, on one line, and cut after 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _check_depth(text: str) -> None:
    """Refuse deep nesting before the parser, which is recursive, sees it."""
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        token = match[0]
        depth += (token in "[{") - (token in "]}")
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} objects and lists inside each other, so it is not a manifest")


def _int(digits: str) -> int:
    _check_length(digits)
    return int(digits)


def _float(digits: str) -> float:
    _check_length(digits)
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits}, which is larger than any float64")
    return value


def _check_length(digits: str) -> None:
    if len(digits) > MAX_NUMBER:
        raise ValueError(f"a number of {len(digits):,} characters, {digits[:16]}...; a number has at most {MAX_NUMBER}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the value {name}, which is not JSON: a number must be finite")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise ValueError(f"the key {shown(name)} twice in one object")
        value[name] = item
    return value
