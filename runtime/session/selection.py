"""The part of an encoder that computes the activations of some features, loaded."""

import weakref
from collections.abc import Callable

import onnxruntime as ort

from ..arrays.tensor import Array
from ..artifact.manifest import GraphSpec


class Selection:
    """The part of an encoder that computes the activations of some features, with its ONNX Runtime session.

    Attributes:
        ids: Ids of the features, `(m,)`.
        name: What it is, for messages.
        spec: Its inputs and its output.
        session: Its ONNX Runtime session; None after the `SAESession` was closed.
    """

    def __init__(
        self,
        ids: Array,
        name: str,
        spec: GraphSpec,
        session: ort.InferenceSession,
        release: Callable[[ort.InferenceSession], None],
    ) -> None:
        self.ids = ids
        self.name = name
        self.spec = spec
        self.session: ort.InferenceSession | None = session
        self._finalizer = weakref.finalize(self, release, session)
        self._finalizer.atexit = False

    def release(self) -> None:
        """Free the ONNX Runtime session."""
        self.session = None
        self._finalizer()
