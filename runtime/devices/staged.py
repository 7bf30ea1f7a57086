"""Sessions of graphs that share their stages: the encoder and the decoder are loaded once, whatever graphs need them.

ONNX Runtime repacks the matrices that a session multiplies by, and its Python interface cannot share the copies between
sessions. So a CPU variant with large parameters runs as a chain of sessions: the stages, which all CPU variants share,
and what is left of the graph (`runtime/artifact/stages.py`). Their values are passed on without a copy. Portable graphs
run whole, as other engines run them. `python -m benchmarks.costs.memory` measures the memory and the time.
"""

import functools
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import onnxruntime as ort

from ..arrays.dtypes import DTYPES
from ..artifact.contracts import whole_variant
from ..artifact.held import HeldFolder
from ..artifact.interface import Interface, ValueType
from ..artifact.names import INDICES, L0, VALUES
from ..artifact.stages import Part, Remainder, Stages, rest_of, rest_of_whole, split
from .background import at_the_same_time
from .chains import Step
from .start import is_from_onnx_runtime

SMALLEST_SHARED = 1 << 20
"""Number of elements from which a parameter is shared, 4 MB in float32. Below, a second session takes longer than the
copy of the parameter is worth."""

SEARCHED_TOKENS = 128
"""Number of tokens whose strongest features are searched at once. Each token is searched alone and nothing is added up,
so this decides only how much memory the search takes."""


@dataclass(frozen=True)
class Metadata:
    """The metadata of a model, as `onnxruntime.ModelMetadata` has them."""

    custom_metadata_map: dict[str, str]


class Argument(NamedTuple):
    """An input or output of a graph, as `onnxruntime.NodeArg` describes it."""

    name: str
    type: str
    shape: list[int | str]


class StagedSession:
    """A graph that runs as a chain of sessions. It describes itself as an `onnxruntime.InferenceSession` does."""

    def __init__(self, interface: Interface, steps: Sequence[Step]) -> None:
        self._interface = interface
        self._steps = tuple(steps)
        self._chains: dict[tuple[tuple[str, ...], frozenset[str]], list[Step]] = {}

    def get_inputs(self) -> list[Argument]:
        """Return the inputs, in order."""
        return [_argument(value) for value in self._interface.inputs]

    def get_outputs(self) -> list[Argument]:
        """Return the outputs, in order."""
        return [_argument(value) for value in self._interface.outputs]

    def get_modelmeta(self) -> Metadata:
        """Return the metadata of the graph."""
        return Metadata(self._interface.metadata)

    def chain(self, names: Sequence[str], given: frozenset[str]) -> Sequence[Step]:
        """Return the steps that compute some outputs from the values that are given, in order.

        The steps compute nothing else. A hook among the values that are given is not computed again.
        """
        key = (tuple(names), given)
        if key not in self._chains:
            wanted, steps = {*names} - given, []
            for step in reversed(self._steps):
                outputs = {name: inner for name, inner in step.outputs.items() if name in wanted}
                if outputs:
                    steps.append(replace(step, outputs=outputs))
                    wanted = (wanted - {*outputs} | {*step.inputs.values()}) - given
            self._chains[key] = steps[::-1]
        return self._chains[key]


def chain_of(session: Any, names: Sequence[str], given: Sequence[str]) -> Sequence[Step]:
    """Return the steps that compute some outputs of a session, which may be one of ONNX Runtime."""
    if isinstance(session, StagedSession):
        return session.chain(names, frozenset(given))
    return [Step(session, {name: name for name in given}, {name: name for name in names})]


class StageError(Exception):
    """ONNX Runtime cannot start a stage; its own error is the cause.

    Attributes:
        graph: Name of the graph that the stage was cut out of, which is often another one than is being loaded.
    """

    def __init__(self, graph: str) -> None:
        super().__init__(graph)
        self.graph = graph


class SharedStages:
    """The sessions of the stages of an artifact. They are loaded when first needed, and freed after their last graph.

    Args:
        start: Starts a session of a model that was cut out of a graph.
    """

    def __init__(self, start: Callable[[str, HeldFolder, bytes], ort.InferenceSession]) -> None:
        self._start = start
        self._split: dict[str, Stages | None] = {}
        self._sessions: weakref.WeakValueDictionary[tuple[str, int], ort.InferenceSession] = (
            weakref.WeakValueDictionary()
        )

    def has(self, graph: str, files: HeldFolder) -> bool:
        """Tell whether a graph of the whole SAE runs as a chain of sessions."""
        return graph == whole_variant(graph) and self._stages_of(graph, files) is not None

    def load(self, graph: str, files: HeldFolder) -> StagedSession | None:
        """Return a graph as a chain of sessions; None if it does not share a stage with the CPU variant of `model`.

        Raises:
            StageError: ONNX Runtime cannot start a stage.
        """
        whole = whole_variant(graph)
        if whole is None or (stages := self._stages_of(whole, files)) is None:
            return None
        if graph == whole:
            remainder: Remainder | None = rest_of_whole(stages)
        else:
            remainder = rest_of(files.graphs[graph].content, stages, SMALLEST_SHARED)
        if remainder is None:
            return None
        values = _values(remainder.hooks)
        needed = [(i, part) for i, part in enumerate(stages.parts) if not values.keys().isdisjoint(part.outputs)]
        # Each start repacks its matrix in one thread.
        sessions = at_the_same_time(functools.partial(self._stage, whole, i, part, files) for i, part in needed)
        steps = [
            Step(session, _inputs(part, values), _outputs(part, values))
            for session, (_, part) in zip(sessions, needed, strict=True)
        ]
        if (rest := remainder.part) is not None:
            own = {name: name for name in (*rest.inputs, *rest.outputs)}
            most = SEARCHED_TOKENS if {*rest.outputs} <= {INDICES, VALUES, L0} else sys.maxsize
            steps.append(Step(self._start(graph, files, rest.model), _inputs(rest, own), _outputs(rest, own), most))
        return StagedSession(remainder.graph.interface, steps)

    def _stages_of(self, whole: str, files: HeldFolder) -> Stages | None:
        if whole not in self._split:
            self._split[whole] = split(files.graphs[whole].content, SMALLEST_SHARED)
        return self._split[whole]

    def _stage(self, whole: str, i: int, part: Part, files: HeldFolder) -> ort.InferenceSession:
        session = self._sessions.get((whole, i))
        if session is None:
            try:
                session = self._sessions[whole, i] = self._start(whole, files, part.model)
            except Exception as error:
                if not is_from_onnx_runtime(error):
                    raise
                raise StageError(whole) from error
        return session


def _values(hooks: Mapping[str, str]) -> dict[str, str]:
    """Return the value of a graph for each hook that it computes as the stages do."""
    return {hook: value for value, hook in hooks.items()}


def _inputs(part: Part, values: Mapping[str, str]) -> dict[str, str]:
    return {name: values.get(name, name) for name in part.inputs}


def _outputs(part: Part, values: Mapping[str, str]) -> dict[str, str]:
    return {values[name]: name for name in part.outputs if name in values}


def _argument(value: ValueType) -> Argument:
    dtype = next((dtype.onnx_name for dtype in DTYPES.values() if dtype.onnx == value.element_type), "")
    return Argument(value.name, f"tensor({dtype})", list(value.shape))
