"""The SAEs that a caller asks for: which artifact, at which hook, and at which value of the host."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from runtime.artifact.checks import FILE_NAME
from runtime.artifact.folder import Artifact, read_artifact
from runtime.artifact.manifest import INT8
from runtime.errors import GraftError
from runtime.hosts.names import FEATURES

from .locate import target_hook

PathLike: TypeAlias = "str | os.PathLike[str]"

PLACE = re.compile(r"(?P<hook>[^@]+)(@(?P<value>.+))?")
"""A hook, and the name of the host's value at it if the caller knows it: `HOOK` or `HOOK@VALUE`."""

SEPARATOR = ","
"""What separates the hook that a transcoder reads from that of its target."""


@dataclass(frozen=True)
class AskedHook:
    """A hook as a caller asks for it.

    Attributes:
        hook: Name of the hook.
        value: Name of the host's value at the hook; None if it is to be found.
    """

    hook: str
    value: str | None


@dataclass(frozen=True)
class Asked:
    """An SAE as a caller asks for it.

    Attributes:
        read: The hook that the SAE reads.
        target: For a transcoder, the hook of the activation that it predicts; None for an SAE, and for a transcoder
            that is grafted for its features only.
        artifact: The SAE.
    """

    read: AskedHook
    target: AskedHook | None
    artifact: Artifact

    @property
    def hooks(self) -> list[str]:
        """The names of the hooks."""
        return [self.read.hook] if self.target is None else [self.read.hook, self.target.hook]


def read_saes(saes: "Mapping[str, PathLike] | Sequence[PathLike]", modes: Collection[str]) -> list[Asked]:
    """Return the SAEs that a caller asks for, after checking that they can be grafted.

    Args:
        saes: As for `graft`.
        modes: The graphs that are written.

    Raises:
        GraftError: There is none, two are for one hook, or one of them cannot be grafted.
        ArtifactError: A folder is not an artifact, or is damaged.
    """
    pairs = list(saes.items()) if isinstance(saes, Mapping) else [(None, path) for path in saes]
    asked = [_read_sae(key, read_artifact(path), modes) for key, path in pairs]
    hooks = [hook for each in asked for hook in each.hooks]
    if not asked:
        raise GraftError("No SAE was given. Pass at least one artifact.")
    if twice := sorted({hook for hook in hooks if hooks.count(hook) > 1}):
        raise GraftError(f"Two SAEs are to be grafted at {', '.join(twice)}. Graft one SAE at each hook.")
    return asked


def split_sae(text: str) -> tuple[str, str]:
    """Return the hook, "" if there is none, and the artifact; both may contain "=".

    It is divided where the rest is a path that exists, or at the first "=" if there is none.
    """
    if Path(text).exists() or "=" not in text:
        return "", text
    ends = [i for i, character in enumerate(text) if character == "="]
    end = next((i for i in ends if Path(text[i + 1 :]).exists()), ends[0])
    return text[:end], text[end + 1 :]


def _read_sae(key: str | None, artifact: Artifact, modes: Collection[str]) -> Asked:
    artifact.check_files()
    sae = artifact.manifest.sae
    if artifact.manifest.weights_dtype == INT8:
        raise GraftError(f"{artifact.path} has int8 weights, which are not at parity. Graft the SAE in float32.")
    if sae.d_out is None:
        return Asked(_hook(sae.hook_name if key is None else key, artifact), None, artifact)
    first, separator, second = (sae.hook_name if key is None else key).partition(SEPARATOR)
    read = _hook(first, artifact)
    if set(modes) == {FEATURES}:
        return Asked(read, None, artifact)
    if not separator and not (second := target_hook(artifact)):
        raise GraftError(
            f"{artifact.path} is a transcoder, and does not say at which hook the activation is that it predicts. Name "
            f"it behind a comma, as in blocks.2.mlp.hook_in,blocks.2.hook_mlp_out, or graft the transcoder for its "
            "features only: modes=['features'], --modes features."
        )
    return Asked(read, _hook(second, artifact), artifact)


def _hook(text: str, artifact: Artifact) -> AskedHook:
    match = PLACE.fullmatch(text)
    if match is None or not FILE_NAME.fullmatch(match["hook"]):  # the SAE's folder is named like it
        raise GraftError(
            f"The hook of {artifact.path} is {text!r}. Name the hook at which it is grafted, in letters, digits and "
            "._- only, as in blocks.2.hook_resid_post, or with the host's value, as in "
            "blocks.2.hook_resid_post@VALUE."
        )
    return AskedHook(match["hook"], match["value"])
