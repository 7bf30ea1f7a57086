"""The checksum of a manifest over its own content.

It is the sha256 of the text of `sae.json` in UTF-8, after two changes: white space outside of strings is removed, and
so are the 64 digits of the checksum itself. Readers in other languages thus need no rule for the order of keys or for
the digits of floats. Every changed character is noticed, except for white space, such as line ends that git converts.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

CHECKSUM = "checksum"
"""The key of the checksum in `sae.json`."""

WIDTH = 100
"""Characters of a line of a manifest, if it can be divided."""

_STRING_OR_OTHER = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[^" \t\r\n]+')


def checksum_of(text: str, stated: str = "") -> str:
    """Return the checksum that the text of a manifest must have, in hexadecimal.

    Args:
        text: JSON.
        stated: The checksum in the text, 64 hexadecimal digits; it may also be empty.
    """
    content = "".join(_STRING_OR_OTHER.findall(text)).replace(stated, "")
    return hashlib.sha256(content.encode()).hexdigest()


def with_checksum(content: Mapping[str, Any]) -> str:
    """Return the text of a manifest, the same bytes for the same content; its last key is the checksum."""
    checksum = checksum_of(_to_text({**content, CHECKSUM: ""}))
    return _to_text({**content, CHECKSUM: checksum})


def _to_text(content: Mapping[str, Any]) -> str:
    return _indented(content) + "\n"


def _indented(value: Any, margin: str = "\n") -> str:
    """Return JSON for people: what is short is on one line, and so is a list without lists and objects."""
    line = json.dumps(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    nested = isinstance(value, dict) or any(isinstance(part, dict | list | tuple) for part in parts)
    if not nested or len(line) + len(margin) <= WIDTH:
        return line
    inner = f"{margin}  "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_indented(item, inner)}" for key, item in value.items()]
        return f"{{{inner}{f',{inner}'.join(items)}{margin}}}"
    return f"[{inner}{f',{inner}'.join(_indented(item, inner) for item in value)}{margin}]"
