"""Chains of ONNX Runtime sessions, each of which reads what the sessions before it have computed.

A short chain is run with `run_at_once`, and ONNX Runtime allocates all values. With `run_into`, the caller gives the
memory of all outputs: what a session allocates itself, it keeps for its own next call.
"""

import functools
import itertools
import math
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort

from ..arrays.dtypes import BFLOAT16, DTYPES
from ..arrays.tensor import Array, TensorValue
from ..artifact.names import FEATURE_HOOKS, TOKENS, K
from .blocks import block_sizes

Place: TypeAlias = "str | tuple[int, str]"
"""A value of a graph by its name, or an output of a session that is none, by the id of the session and its name."""

Form: TypeAlias = "tuple[tuple[int | str, ...], np.dtype[Any]]"
"""A shape, with names for the dimensions that depend on the call, and a dtype."""

DTYPE_OF = {f"tensor({dtype.onnx_name})": dtype.numpy for dtype in DTYPES.values()}
"""The dtypes by the names of ONNX Runtime's types."""


@dataclass(frozen=True)
class Step:
    """A session in the chain of a graph.

    Attributes:
        session: The session.
        inputs: The value of the graph for each input of the session, by name of the input.
        outputs: The output of the session for each value of the graph, by name of the value.
        most_tokens: Largest number of tokens of a run; a larger batch runs in parts. Anything but the largest integer
            is for sessions that compute each token alone.
    """

    session: ort.InferenceSession
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    most_tokens: int = sys.maxsize

    @functools.cached_property
    def per_token(self) -> set[str]:
        """The inputs that have a row per token."""
        return {argument.name for argument in self.session.get_inputs() if argument.shape[:1] == [TOKENS]}

    @functools.cached_property
    def forms(self) -> dict[str, Form]:
        """The outputs that the chain needs, and the other activations of all features, which are computed anyway."""
        needed = {*self.outputs.values(), *FEATURE_HOOKS}
        return {name: form for name, form in _forms_of(self.session).items() if name in needed}

    @functools.cached_property
    def place_of(self) -> dict[str, Place]:
        """The place that each of these outputs is written to, by name of the output."""
        values = {output: value for value, output in self.outputs.items()}
        assert values.keys() <= self.forms.keys(), f"{values} are not all tensors with a row per token"
        return {output: values.get(output, (id(self.session), output)) for output in self.forms}

    def places(self) -> dict[Place, Form]:
        """Return the places of the outputs, and the form of each."""
        return {self.place_of[output]: form for output, form in self.forms.items()}


def _forms_of(session: ort.InferenceSession) -> dict[str, Form]:
    """Return the form of each output of a session that has a row per token, by name."""
    return {
        output.name: (tuple(output.shape), DTYPE_OF[output.type])
        for output in session.get_outputs()
        if output.shape[:1] == [TOKENS]
        and output.type in DTYPE_OF
        and all(isinstance(size, int) or size == K for size in output.shape[1:])
    }


_token_bytes: "weakref.WeakKeyDictionary[ort.InferenceSession, int]" = weakref.WeakKeyDictionary()


def token_bytes(session: ort.InferenceSession) -> int:
    """Return the bytes of the outputs of a session for one token, apart from dimensions that depend on the call."""
    if (found := _token_bytes.get(session)) is None:  # to ask a session takes as long as to run a tiny one
        found = _token_bytes[session] = sum(
            math.prod(size for size in shape if isinstance(size, int)) * dtype.itemsize
            for shape, dtype in _forms_of(session).values()
        )
    return found


def run_at_once(
    steps: Sequence[Step], names: Sequence[str], feeds: Mapping[str, Array], tokens: int
) -> list[TensorValue]:
    """Run a chain and return some of its values, in memory of ONNX Runtime."""
    values = dict(feeds)
    for step in steps:
        given = {inner: _value(values, step, inner, tokens) for inner in step.inputs}
        values.update(zip(step.outputs, step.session.run(list(step.outputs.values()), given), strict=True))
    return [values[name] for name in names]


def run_into(steps: Sequence[Step], feeds: Mapping[str, Array], targets: Mapping[Place, Array], tokens: int) -> None:
    """Run a chain that writes its outputs into arrays, from which the next session reads them.

    Args:
        steps: The chain.
        feeds: The inputs of its graph.
        targets: The array for each place of each step.
        tokens: Number of tokens.
    """
    values = {**feeds, **{place: array for place, array in targets.items() if isinstance(place, str)}}
    for step in steps:
        given = {inner: _value(values, step, inner, tokens) for inner in step.inputs}
        outputs = {output: targets[place] for output, place in step.place_of.items()}
        ends = [0, *itertools.accumulate(block_sizes(tokens, step.most_tokens))]
        for rows in itertools.starmap(slice, itertools.pairwise(ends)):
            binding = step.session.io_binding()
            # The parts stay alive until the run ends: a binding only knows addresses.
            parts = {
                name: np.ascontiguousarray(array[rows] if name in step.per_token else array)
                for name, array in given.items()
            }
            for name, array in parts.items():
                binding.bind_input(name, "cpu", 0, _element_type(array), array.shape, array.ctypes.data)
            for name, array in outputs.items():
                part = array[rows]
                binding.bind_output(name, "cpu", 0, _element_type(part), part.shape, part.ctypes.data)
            step.session.run_with_iobinding(binding)


_BRAIN = DTYPES[BFLOAT16]


def _element_type(array: Array) -> Any:
    return _BRAIN.onnx if array.dtype == _BRAIN.numpy else array.dtype


def _value(values: Mapping[str, Array], step: Step, inner: str, tokens: int) -> Array:
    """Return the value for an input of a session.

    A stage may take an input that its graph does not have, because it also computes values that are not asked for. It
    gets zeros.
    """
    name = step.inputs[inner]
    if name in values:
        return values[name]
    argument = next(argument for argument in step.session.get_inputs() if argument.name == inner)
    return np.zeros((tokens, *argument.shape[1:]), DTYPE_OF[argument.type])
