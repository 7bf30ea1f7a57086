"""Graphs that are loaded in two forms: as they are stored for one token, and repacked for more.

ONNX Runtime repacks the matrices that a session multiplies by, so that products of many tokens are fast. The product of
one token reads each weight once and gains nothing. So for one token a graph runs on the mapped weights file, without a
copy of its own, and loads in a tenth of the time. Two tokens would already take twice as long in this form. The forms
are loaded when they are first needed. `python -m benchmarks.costs.memory` measures the memory and the time.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort

from ..artifact.onnxfile import Parameter
from . import staged
from .staged import StagedSession

Session: TypeAlias = ort.InferenceSession | StagedSession


def has_two_forms(parameters: Mapping[str, Parameter]) -> bool:
    """Tell whether a graph with some parameters is loaded in two forms.

    It is if it has a matrix that is worth sharing, and if all such matrices are in float32. ONNX Runtime converts
    others when it loads them, and would keep the result in each session.
    """
    large = [parameter.array for parameter in parameters.values() if parameter.array.size >= staged.SMALLEST_SHARED]
    return bool(large) and all(array.dtype == np.float32 for array in large)


class TwoForms:
    """A graph in two forms. It describes itself as an `onnxruntime.InferenceSession` does.

    Args:
        load: Loads a form: the one for one token if its argument is True, or else the one for more.
        tokens: Number of tokens of the first batch, whose form is loaded at once.
    """

    def __init__(self, load: Callable[[bool], Session], tokens: int) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._forms: dict[bool, Session] = {}
        self._first = self.of(tokens)

    def of(self, tokens: int) -> Session:
        """Return the form for batches of a number of tokens."""
        one = tokens <= 1
        session = self._forms.get(one)
        if session is None:
            with self._lock:  # two threads that need the same form load it once
                if one not in self._forms:
                    self._forms[one] = self._load(one)
                session = self._forms[one]
        return session

    @property
    def repacked(self) -> Session | None:
        """The form for more than one token if it is loaded."""
        return self._forms.get(False)

    def get_inputs(self) -> list[Any]:
        """Return the inputs, in order."""
        return list(self._first.get_inputs())

    def get_outputs(self) -> list[Any]:
        """Return the outputs, in order."""
        return list(self._first.get_outputs())

    def get_modelmeta(self) -> Any:
        """Return the metadata of the graph."""
        return self._first.get_modelmeta()
