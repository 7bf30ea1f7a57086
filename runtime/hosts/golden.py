"""Reads the golden batch of a host: feeds, and what the host computes from them, for later proofs.

The tensors of `golden.safetensors`, by name:

    feeds/INPUT             inputs of the host
    outputs/OUTPUT          outputs of the ungrafted host
    HOOK.input              its activation at a hook, also at that of a transcoder's target
    splice/OUTPUT           outputs with every SAE attached, without the error terms
    edit/HOOK.feature_ids   an edit of features, as the splice takes it; likewise feature_scale and feature_shift
    edited/OUTPUT           outputs with every SAE attached, without the error terms, under the edit

The last three are there if there is a splice. bfloat16 is stored in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..arrays.tensor import Array
from ..artifact.names import INTERVENTION
from ..artifact.tensorfile import tensors_in
from ..errors import IntegrityError
from ..session.interventions import Intervention
from .feeds import complete_feeds, is_token
from .folder import GraftedHost
from .names import SPLICE, at


@dataclass(frozen=True)
class GoldenHost:
    """The golden batch of a host.

    Attributes:
        feeds: Inputs of the host.
        mask: Which tokens count, `(batch, sequence)` bool.
        outputs: Outputs of the ungrafted host, without those of the cache.
        inputs: The activation at each hook, by hook.
        splice: Outputs with every SAE attached, without the error terms; empty without a splice.
        edited: Outputs under the edits; empty without a splice.
        edits: The edits, by hook.
    """

    feeds: dict[str, Array]
    mask: Array
    outputs: dict[str, Array]
    inputs: dict[str, Array]
    splice: dict[str, Array]
    edited: dict[str, Array]
    edits: dict[str, Intervention]


def load_golden_host(host: GraftedHost) -> GoldenHost:
    """Return the golden batch of a host.

    Raises:
        IntegrityError: The file differs from the manifest's record, lacks a tensor, or has one that does not fit.
    """
    with host.open(host.manifest.golden.file) as file:
        path, content = file.path, np.frombuffer(file.read(check=True), np.uint8)
    tensors = {name: tensor.copy() for name, tensor in tensors_in(content, path).items()}

    def part(prefix: str) -> dict[str, Array]:
        return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}

    manifest = host.manifest
    present = {pair.present for pair in manifest.host.cache}
    names = [tensor.name for tensor in manifest.host.outputs if tensor.name not in present]
    needed = [f"outputs/{name}" for name in names] + [at(hook, "input") for hook in manifest.all_hooks]
    edits: dict[str, Intervention] = {}
    if SPLICE in manifest.graphs:
        needed += [f"{what}/{name}" for what in ("splice", "edited") for name in names]
        needed += [f"edit/{at(hook, name)}" for hook in manifest.hooks for name in INTERVENTION]
    if missing := [name for name in needed if name not in tensors]:
        raise IntegrityError(f"{path} has no tensor {', '.join(missing)}. Graft the SAEs again.")
    try:
        feeds = complete_feeds(manifest.host, part("feeds/"))
        if SPLICE in manifest.graphs:
            edits = {hook: _intervention(part("edit/"), hook) for hook in manifest.hooks}
    except ValueError as error:  # InputError
        raise IntegrityError(f"{path} does not fit the host: {error} Graft the SAEs again.") from None
    inputs = {hook: tensors[at(hook, "input")] for hook in manifest.all_hooks}
    selected = {what: {name: part(f"{what}/")[name] for name in names if f"{what}/{name}" in tensors}
                for what in ("outputs", "splice", "edited")}  # fmt: skip
    return GoldenHost(feeds, is_token(feeds), **selected, inputs=inputs, edits=edits)


def _intervention(edit: Mapping[str, Array], hook: str) -> Intervention:
    ids, scale, shift = (edit[at(hook, name)] for name in INTERVENTION)
    if len(scale) != 1 or len(shift) != 1:
        raise ValueError(f"the edit at {hook} has several rows.")
    return Intervention(ids, scale[0], shift[0])
