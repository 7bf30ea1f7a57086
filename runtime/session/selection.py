"""The part of an encoder that computes the activations of some features, loaded."""

import math
import os
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
from ..devices.threads import thread_limit

ONE_THREAD, FEWEST_COLUMNS = 5_000_000, 48
"""Number of multiplications up to which one thread takes less time than several, which have to be woken for each call;
and the number of features that a token costs at least, because all of it is read and `b_dec` is subtracted."""


class Selection:
    """The part of an encoder that computes the activations of some features, with its ONNX Runtime sessions.

    A session has its number of threads for life. So there may be two: one that computes few tokens on the thread of the
    caller, and one that computes more on several threads, which is started when it is first needed.

    Attributes:
        ids: Ids of the features, `(m,)`.
        name: What it is, for messages.
        spec: Its inputs and its output.
        at_once: Largest number of tokens that one call of the ONNX Runtime session computes from an array of the host,
            to an array of the host; 0 if the backend has to run it.
        many: Smallest number of tokens that are computed on several threads; None if there is no choice.
        session: Its ONNX Runtime session, of one thread if there is a choice; None after the `SAESession` was closed.
        several: Its ONNX Runtime session of several threads; None if it was not needed, or after the `SAESession` was
            closed.
    """

    def __init__(
        self,
        ids: Array,
        name: str,
        spec: GraphSpec,
        at_once: int,
        many: int | None,
        release: Callable[[ort.InferenceSession], None],
    ) -> None:
        self.ids = ids
        self.name = name
        self.spec = spec
        self.at_once = at_once
        self.many = many
        self._dtype = DTYPES[spec.inputs[0].dtype].numpy
        self._token = tuple(int(size) for size in spec.inputs[0].shape[1:])
        self._width = math.prod(self._token)
        self.session: ort.InferenceSession | None = None
        self.several: ort.InferenceSession | None = None
        self._release = release
        self._finalizers: list[weakref.finalize[..., Selection]] = []

    def keep(self, session: ort.InferenceSession) -> ort.InferenceSession:
        """Free an ONNX Runtime session when the selection is released or dropped, and return it."""
        finalizer = weakref.finalize(self, self._release, session)
        finalizer.atexit = False
        self._finalizers.append(finalizer)
        return session

    def rows_of(self, x: Any) -> Array | None:
        """Return the tokens of an array if the ONNX Runtime session can read them as they are.

        They have the shape that the graph takes: `(tokens, d_in)`, or `(tokens, n_heads, d_head)`. None if the array
        has to be converted or refused, if it has more tokens than one call computes, or if the backend has to run it.
        """
        if not self.at_once or type(x) is not np.ndarray or x.dtype != self._dtype:
            return None
        if x.shape[-len(self._token) :] != self._token or x.size > self.at_once * self._width:
            return None
        return x if x.ndim == len(self._token) + 1 else x.reshape(-1, *self._token)

    def release(self) -> None:
        """Free the ONNX Runtime sessions."""
        self.session = self.several = None
        for finalizer in self._finalizers:
            finalizer()


def tokens_at_once(cfg: SAEConfig, device: Device, block_tokens: int) -> int:
    """Return up to how many tokens a selection runs without a backend; see `Selection.at_once`."""
    if device.kind != CPU or cfg.dtype == BFLOAT16:  # ONNX Runtime's `run` does not take ml_dtypes' arrays
        return 0
    return min(block_tokens, default_block(cfg))


def tokens_for_threads(cfg: SAEConfig, device: Device, m: int, threads: int | None) -> int | None:
    """Return from how many tokens several threads compute the activations of `m` features in less time than one.

    None if there is no choice: on a GPU, with one core, if the user chose the number of threads, or if one token takes
    less time on several threads.
    """
    if device.kind != CPU or threads is not None or (thread_limit() or os.cpu_count()) == 1:
        return None
    many = ONE_THREAD // (cfg.d_in * max(m, FEWEST_COLUMNS))
    return many if many > 1 else None
