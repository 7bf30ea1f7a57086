"""The search for the strongest features of many tokens, which `features` leaves to ONNX Runtime's TopK.

From about a hundred tokens on, that TopK takes longer on a GPU than the encoder. Then the encoder runs by itself, and a
graph of this package searches its activations, which stay on the GPU: it first finds the groups of features with the
largest maxima, and then the strongest features among their members.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ...arrays.tensor import Array, Tensor
from ...artifact.contracts import FEATURES
from ...artifact.manifest import Manifest
from ..start import CUDA, TENSORRT

FIRST_IDS = "first_ids"
"""Input of the search graph: for each member of a group, the id of that member in the first group, `(1, GROUP, 1)`."""

GROUP = 16
"""Number of features whose maximum is found first."""

BLOCK = 128
"""Number of activations that are summed in the dtype of the SAE. The number of features has to be a multiple."""

FEWEST_TOKENS = {CUDA: 128, TENSORRT: 0}
"""Smallest number of tokens that are searched, by kind of device.

With fewer tokens `features` takes less time on CUDA. TensorRT cannot run it, because it does not take `k`.
"""

FEATURES_PER_K = 64
"""`d_sae` is at least so many times k. The chosen groups then have at most a quarter of the features."""


@dataclass(frozen=True)
class EncodeAndSearch:
    """What a backend runs in place of the session of `features`.

    Attributes:
        encoder: Session of `encode`.
        search: Session of the search graph.
        first_ids: Its input `FIRST_IDS`, on the GPU.
    """

    encoder: ort.InferenceSession
    search: ort.InferenceSession
    first_ids: Tensor


def is_searched(device: str, manifest: Manifest, tokens: int, k: int) -> bool:
    """Tell whether the strongest features are found by the search graph, and not by `features`.

    Args:
        device: Kind of device, `CUDA` or `TENSORRT`.
        manifest: Manifest of the artifact.
        tokens: Number of tokens.
        k: Number of features to find.
    """
    d_sae, requires = manifest.sae.d_sae, manifest.graphs[FEATURES].requires
    has_negative = requires is None or "Abs" in requires.operators  # `features` compares absolute values where needed
    is_possible = not has_negative and d_sae % BLOCK == 0 and k * FEATURES_PER_K <= d_sae
    return is_possible and tokens >= FEWEST_TOKENS[device]


def first_ids(d_sae: int) -> Array:
    """Return the input `FIRST_IDS` of the search graph for an SAE with `d_sae` features."""
    return np.arange(0, d_sae, d_sae // GROUP).reshape(1, GROUP, 1)


def read_search_model(dtype: str) -> bytes:
    """Return the search graph for a dtype: "float32", "float16" or "bfloat16"."""
    return Path(__file__).with_name(f"search_{dtype}.onnx").read_bytes()
