"""The part of an encoder that computes the activations of some features, loaded."""

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort

from ..arrays.dtypes import BFLOAT16, DTYPES
from ..arrays.tensor import Array
from ..artifact.manifest import GraphSpec, SAEConfig
from ..devices.blocks import default_block
from ..devices.start import CPU, Device


class Selection:
    """The part of an encoder that computes the activations of some features, with its ONNX Runtime session.

    Attributes:
        ids: Ids of the features, `(m,)`.
        name: What it is, for messages.
        spec: Its inputs and its output.
        at_once: Largest number of tokens that one call of the ONNX Runtime session computes from an array of the host,
            to an array of the host; 0 if the backend has to run it.
        session: Its ONNX Runtime session; None after the `SAESession` was closed.
    """

    def __init__(
        self,
        ids: Array,
        name: str,
        spec: GraphSpec,
        at_once: int,
        session: ort.InferenceSession,
        release: Callable[[ort.InferenceSession], None],
    ) -> None:
        self.ids = ids
        self.name = name
        self.spec = spec
        self.at_once = at_once
        self._dtype = DTYPES[spec.inputs[0].dtype].numpy
        self._token = tuple(int(size) for size in spec.inputs[0].shape[1:])
        self._width = math.prod(self._token)
        self.session: ort.InferenceSession | None = session
        self._finalizer = weakref.finalize(self, release, session)
        self._finalizer.atexit = False

    def rows_of(self, x: Any) -> Array | None:
        """Return the tokens of an array if the ONNX Runtime session can read them as they are.

        They have the shape that the graph takes: `(tokens, d_in)`, or `(tokens, n_heads, d_head)`. None if the array
        has to be converted or refused, if it has more tokens than one call computes, or if the backend has to run it.
        """
        if not self.at_once or type(x) is not np.ndarray or x.dtype != self._dtype:
            return None
        if x.shape[-len(self._token) :] != self._token or x.size > self.at_once * self._width:
            return None
        return x.reshape(-1, *self._token)

    def release(self) -> None:
        """Free the ONNX Runtime session."""
        self.session = None
        self._finalizer()


def tokens_at_once(cfg: SAEConfig, device: Device, block_tokens: int) -> int:
    """Return up to how many tokens a selection runs without a backend; see `Selection.at_once`."""
    if device.kind != CPU or cfg.dtype == BFLOAT16:  # ONNX Runtime's `run` does not take ml_dtypes' arrays
        return 0
    return min(block_tokens, default_block(cfg))
