"""Reads the config of a checkpoint without ignoring a key: an unknown option may change what the SAE computes."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from runtime.errors import CheckpointError

from ..original.dtypes import TORCH_DTYPES
from .request import Request

_REQUIRED = object()


class Options:
    """The options of a config, which are taken key by key; `finish` refuses those that are left.

    Args:
        config: JSON object of the config. It is not changed.
        source: Path of the config, for error messages.
        request: What the caller says, among it the keys to ignore.
    """

    def __init__(self, config: dict[str, Any], source: str, request: Request) -> None:
        self._left = dict(config)
        self.source = source
        self.request = request

    def take(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        """Return the value of `key`, or `default` if the key is missing or null. 8.0 is taken for the integer 8.

        Raises:
            CheckpointError: The key is missing and has no default, or its value is not of the type `kind`.
        """
        value = self._left.pop(key, None)
        if value is None:
            if default is _REQUIRED:
                raise CheckpointError(f"{self.source} has no {key!r}.")
            return default
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)  # a config that went through a table or JavaScript
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.refused(key, value, f"it must be of the type {kind.__name__}")
        return value

    def choose(
        self,
        key: str,
        choices: Iterable[str],
        default: Any = _REQUIRED,
        *,
        unsupported: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """Return the value of `key`, as `take` does, which must be one of `choices`.

        Args:
            key: Key of the config.
            choices: Values that are supported.
            default: Value if the key is missing or null.
            unsupported: Reasons why known values are not supported, by value.

        Raises:
            CheckpointError: The value is not one of `choices`; the message has the reason if it is known.
        """
        value: str = self.take(key, str, default)
        if value in unsupported:
            raise self.refused(key, value, f"it is not supported: {unsupported[value]}")
        if value not in (known := tuple(choices)):
            raise self.refused(key, value, f"it must be one of {', '.join(known)}")
        return value

    def require(self, key: str, needed: bool, default: Any = _REQUIRED) -> None:
        """Take the value of `key`, as `take` does, which must be `needed`.

        Raises:
            CheckpointError: It is not.
        """
        if (value := self.take(key, bool, default)) != needed:
            raise self.refused(key, value, f"it must be {needed}")

    def take_dtype(self) -> torch.dtype | None:
        """Return the `dtype`, given as "float32" or "torch.float32"; None if the key is missing or null.

        Raises:
            CheckpointError: The dtype is not in `TORCH_DTYPES`.
        """
        name: str | None = self.take("dtype", str, None)
        if name is None:
            return None
        if (short := name.removeprefix("torch.")) not in TORCH_DTYPES:
            raise self.refused("dtype", name, f"it must be one of {', '.join(TORCH_DTYPES)}")
        return TORCH_DTYPES[short]

    def finish(self, without_effect: Iterable[str] = (), known: Iterable[str] = ()) -> None:
        """Refuse the keys that were not taken, except those `without_effect` on what the SAE computes.

        An option that is off (null, false, or empty) is without effect, too.

        Args:
            without_effect: Keys that have no effect on what the SAE computes.
            known: Keys that the config may have, for the message; none if another library's documentation has them.

        Raises:
            CheckpointError: Another key is left, and the caller does not say to ignore it; the message names it.
        """
        harmless = set(without_effect)
        unknown = {
            key: value
            for key, value in self._left.items()
            if not self.request.ignores(key) and key not in harmless and not _is_off(value)
        }
        if unknown:
            shown = ", ".join(f"{key} = {value!r}" for key, value in sorted(unknown.items()))
            keys = f"Its keys are {', '.join(known)}. " if known else ""
            raise CheckpointError(
                f"{self.source} has unknown options, which may change what the SAE computes: {shown}. {keys}If they do "
                f"not, say so: {' '.join(f'--ignore-config {key}' for key in sorted(unknown))}, or in Python "
                f"ignore_config={sorted(unknown)!r}."
            )

    def refused(self, key: str, value: Any, reason: str) -> CheckpointError:
        """Return an error that names a key, its value and the reason to refuse it."""
        return CheckpointError(f"{self.source}: {key} is {value!r}; {reason}.")


def _is_off(value: Any) -> bool:
    """Tell whether a value is that of an option that is off: null, false, or an empty string, list or object."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)
