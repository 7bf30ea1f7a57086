"""What a caller says about a checkpoint that its files do not say, and what a reader has to tell about it."""

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch

from runtime.errors import CheckpointError


class Source(NamedTuple):
    """The names of a config and of tensors in error messages: paths of files, or the name of an object in memory."""

    config: str
    tensors: str


@dataclass(frozen=True)
class Request:
    """What a caller says about a checkpoint. A reader takes each field that it uses; `finish` refuses the others.

    Attributes:
        dtype: Dtype of the parameters; None keeps the checkpoint's.
        export_dtype: Dtype that an export will convert the parameters to. They are in float32 until then, unless it is
            the checkpoint's own, so that what a reader computes is rounded once; see `dtype_for`.
        norm_scaling_factor: Factor that the inputs are multiplied by before encoding, which the files do not hold.
        already_folded: Whether the weights already include a factor that the config mentions.
        normalize_activations: Normalisation of the input, instead of the one in the config.
        transcoder: Whether the checkpoint is a transcoder, for formats whose files do not tell.
        ignore_config: Keys of the config to ignore although the reader does not know them.
        index: Number of one SAE in a file that holds several, such as one head or layer.
        notes: What the reader tells about the checkpoint, one sentence each; `saeexport inspect` prints them.
    """

    dtype: torch.dtype | None = None
    export_dtype: torch.dtype | None = None
    norm_scaling_factor: float | None = None
    already_folded: bool = False
    normalize_activations: str | None = None
    transcoder: bool | None = None
    ignore_config: tuple[str, ...] = ()
    index: int | None = None
    notes: list[str] = field(default_factory=list, init=False, compare=False)
    _taken: set[str] = field(default_factory=set, init=False, compare=False, repr=False)

    def dtype_for(self, own: torch.dtype | None) -> torch.dtype | None:
        """Return the dtype of the parameters of the HookedSAE.

        Args:
            own: Dtype of the checkpoint; None if it has several, where None is returned unless the caller says one.
        """
        if self.dtype is not None:
            return self.dtype
        return own if self.export_dtype in (None, own) else torch.float32

    def take(self, name: str) -> Any:
        """Return a field, and note that the reader uses it."""
        self._taken.add(name)
        return getattr(self, name)

    def ignores(self, key: str) -> bool:
        """Tell whether the caller says to ignore a key of a config, and note that the config has the key."""
        if key not in self.ignore_config:
            return False
        self._taken.add(f"ignore_config {key}")
        return True

    def finish(self, source: str) -> None:
        """Refuse what the caller said and the reader did not use.

        Args:
            source: The checkpoint and its format, for the error message.

        Raises:
            CheckpointError: A field is given that this checkpoint does not need; the message names it.
        """
        for name, value in self.said().items():
            if name not in self._taken:
                raise CheckpointError(
                    f"{name} = {value!r} was given ({option_of(name)}), but {source} does not need it. Leave it out."
                )
        unknown = [key for key in self.ignore_config if f"ignore_config {key}" not in self._taken]
        if unknown:
            raise CheckpointError(
                f"ignore_config names {', '.join(map(repr, unknown))} ({option_of('ignore_config')}); the config of "
                f"{source} does not have such a key, or the key is one that the reader understands. Leave it out."
            )

    def said(self) -> dict[str, Any]:
        """Return the fields that the caller gave, by name, except the dtypes and `ignore_config`."""
        return {
            each.name: value
            for each in fields(self)
            if each.init
            and each.name not in ("dtype", "export_dtype", "ignore_config")
            and (value := getattr(self, each.name)) != each.default
        }

    def record(self) -> dict[str, str]:
        """Return what the caller said as entries of a manifest's `provenance`."""
        said = {name: str(value) for name, value in self.said().items()}
        if self.ignore_config:
            said["ignore_config"] = ", ".join(self.ignore_config)
        return {f"{RECORDED}{name}": value for name, value in said.items()}


RECORDED = "checkpoint."
"""Prefix of the keys of `provenance` that hold what the caller said about the checkpoint."""


def option_of(name: str) -> str:
    """Return the option of the command line for a field of `Request`."""
    return f"--{name.replace('_', '-')}"
