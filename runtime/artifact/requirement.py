"""The error of a value of a manifest that is outside of its range."""

from ..errors import ManifestError
from .manifest import MANIFEST
from .strict_json import shown


def require(holds: bool, key: str, value: object, expected: str, manifest: str = MANIFEST) -> None:
    """Raise a ManifestError unless a condition on the value of a key holds.

    Args:
        holds: The condition.
        key: Name of the key and of those around it.
        value: The value.
        expected: What the value must be.
        manifest: Name of the manifest's file.
    """
    if not holds:
        raise ManifestError(f"{manifest}: {key} is {shown(value)}; it must be {expected}.")
