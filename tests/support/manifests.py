"""Changes the text of a manifest on purpose and corrects its checksum, so that only its other checks can notice."""

import json
import re

from runtime.artifact.checksum import CHECKSUM, checksum_of, with_checksum


def sealed(data):
    """Return the bytes of a manifest with these keys and the right checksum, which replaces the one of `data`."""
    return with_checksum({key: value for key, value in data.items() if key != CHECKSUM}).encode()


def sealed_text(text):
    """Return the bytes of a manifest's text with the right checksum; the text may be changed in any other place."""
    stated = re.search(rf'"{CHECKSUM}": "(\w+)"', text)[1]
    return text.replace(stated, checksum_of(text, stated)).encode()


def edited(text, *keys, value=None, remove=False):
    """Return the bytes of a manifest in which one key has another value, or is not there."""
    data = json.loads(text)
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    if remove:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return sealed(data)
