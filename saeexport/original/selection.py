"""Takes features of an SAE: an SAE of its own, with their columns of the encoder and rows of the decoder."""

import json
import os
from dataclasses import replace
from typing import Any

import torch

from runtime.arrays.arguments import as_path
from runtime.artifact.labels import Labels
from runtime.errors import ExportError, InputError
from runtime.session.interventions import as_feature_ids

from .architectures import ARCHITECTURES
from .hooked_sae import HookedSAE


def select_features(sae: Any, features: Any) -> HookedSAE:
    """Return the SAE that consists of some features of an SAE, in the order given.

    Feature `i` of the result is feature `features[i]` of `sae`, with the same preactivation and activation. `recons` is
    the part of the reconstruction that these features write, with `b_dec`, and `error` is the rest, so that with the
    error term the output is the same, and steering one of the features changes it by the same vector.

    Args:
        sae: HookedSAE in which no feature needs the others to be on or off; a top-k SAE is refused.
        features: Distinct ids of features of `sae`; a list or an array.

    Raises:
        ExportError: The features of `sae` compete with each other, or it is an instance of a custom class.
        InputError: An id is not that of a feature, or is there twice, or there is none.
    """
    if type(sae) not in ARCHITECTURES.values():
        raise ExportError(
            f"Features of a {type(sae).__name__} cannot be taken without the others, because what its class does with "
            "them is not known. Export it whole, and use encode(x)[..., ids]."
        )
    if sae.features_compete:
        raise ExportError(
            f"Features of a {sae.architecture} SAE cannot be taken without the others: whether one is on depends on "
            "all of them. Export it whole, and use encode(x)[..., ids] or top_features(x, k)."
        )
    ids = as_feature_ids(features, sae.cfg.d_sae)
    if not ids.size or len(set(ids.tolist())) < ids.size:
        raise InputError(f"features has {ids.size} ids, {len(set(ids.tolist()))} distinct; give each one once.")
    selected = type(sae)(replace(sae.cfg, d_sae=len(ids), device="meta"))
    selected.cfg.device = sae.cfg.device
    wider = type(sae).parameter_shapes(replace(sae.cfg, d_sae=sae.cfg.d_sae + 1))
    index = torch.from_numpy(ids)
    state = {}
    for name, tensor in sae.state_dict().items():
        axes = [axis for axis, size in enumerate(wider[name]) if size != tensor.shape[axis]]
        state[name] = tensor.index_select(axes[0], index.to(tensor.device)) if axes else tensor
    selected.load_state_dict(state, assign=True)
    own = sae.feature_ids
    selected.feature_ids = tuple(ids.tolist() if own is None else [own[i] for i in ids.tolist()])
    selected.provenance = dict(sae.provenance)
    if sae.labels is not None:
        selected.labels = select_labels(sae.labels, features)
    return selected


def read_feature_ids(path: str | os.PathLike[str]) -> list[Any]:
    """Return the ids in a JSON file with a list; `select_features` checks them.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    path = as_path("features", path)
    try:
        ids = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a JSON list of feature ids: {error}") from error
    if not isinstance(ids, list):
        raise InputError(f"{path} does not hold a JSON list of feature ids, such as [17, 4, 123].")
    return ids


def select_labels(labels: Labels, features: Any) -> Labels:
    """Return the labels of some features, in the order given.

    Raises:
        InputError: An id is not that of a feature.
    """
    ids = as_feature_ids(features, labels.d_sae).tolist()
    found = [replace(labels[j], index=i) for i, j in enumerate(ids) if j in labels]
    return Labels(len(ids), found, labels.source, labels.license)
