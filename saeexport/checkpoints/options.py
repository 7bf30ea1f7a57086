"""A checkpoint's config, read so that no key is overlooked: an option that is not understood may change the numbers."""

from collections.abc import Iterable
from typing import Any

import torch

from runtime.errors import CheckpointError

from ..original.dtypes import TORCH_DTYPES

_REQUIRED = object()


class Options:
    """The keys of a config, taken one by one; what is left at the end is refused.

    Args:
        config: the JSON object; not changed.
        source: what it was read from, for the messages.
    """

    def __init__(self, config: dict[str, Any], source: str) -> None:
        self._left = dict(config)
        self.source = source

    def take(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        """Return the value of `key`; `default`, if there is one, stands for a key that is not there or is null.

        Raises:
            CheckpointError: the key is missing and has no default, or its value is not of the type `kind`.
        """
        value = self._left.pop(key, None)
        if value is None:
            if default is _REQUIRED:
                raise CheckpointError(f"{self.source} has no {key!r}.")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.refused(key, value, f"it must be of the type {kind.__name__}")
        return value

    def choose(self, key: str, choices: Iterable[str], default: Any = _REQUIRED) -> str:
        """Return the value of `key`, one of `choices`, as `take` does.

        Raises:
            CheckpointError: it is none of them.
        """
        value: str = self.take(key, str, default)
        if value not in (known := tuple(choices)):
            raise self.refused(key, value, f"what is understood: {', '.join(known)}")
        return value

    def take_dtype(self, key: str = "dtype") -> torch.dtype | None:
        """Return a dtype that reads like "float32" or "torch.float32"; None if it is not there.

        Raises:
            CheckpointError: The dtype is not in `TORCH_DTYPES`.
        """
        name: str | None = self.take(key, str, None)
        if name is None:
            return None
        if (short := name.removeprefix("torch.")) not in TORCH_DTYPES:
            raise self.refused(key, name, f"what is understood: {', '.join(TORCH_DTYPES)}")
        return TORCH_DTYPES[short]

    def finish(self, without_effect: Iterable[str] = ()) -> None:
        """Refuse the keys that were not taken, except those `without_effect` on the SAE's numbers.

        Raises:
            CheckpointError: there is another one.
        """
        unknown = {key: value for key, value in self._left.items() if key not in set(without_effect)}
        if unknown:
            shown = ", ".join(f"{key} = {value!r}" for key, value in sorted(unknown.items()))
            raise CheckpointError(
                f"{self.source} has options that are not understood, and may change what the SAE computes: {shown}."
            )

    def refused(self, key: str, value: Any, reason: str) -> CheckpointError:
        """Return the error that names a key, its value and why it is refused."""
        return CheckpointError(f"{self.source}: {key} is {value!r}; {reason}.")
