"""Engines that run ONNX files, behind one function each: load a graph, and run it on arrays by name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Run: TypeAlias = Callable[[Mapping[str, Array]], dict[str, Array]]
"""Runs a graph: inputs by name, outputs by name."""


def load_onnxruntime(path: Path, spec: Mapping[str, Any]) -> Run:
    """Load a graph with ONNX Runtime's CPU provider."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = names_of(spec, "outputs")
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def load_openvino(path: Path, spec: Mapping[str, Any]) -> Run:
    """Load a graph with OpenVINO on a CPU, in float32: left to itself, it computes in bfloat16 where a CPU can."""
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda feeds: {output.any_name: value for output, value in model(dict(feeds)).items()}


def load_tract(path: Path, spec: Mapping[str, Any]) -> Run:
    """Load a graph with tract, whose inputs and outputs have positions and no names."""
    import tract

    model = tract.onnx().load(str(path)).into_model().into_runnable()

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        outputs = model.run([feeds[name] for name in names_of(spec, "inputs")])
        return {name: output.to_numpy() for name, output in zip(names_of(spec, "outputs"), outputs, strict=True)}

    return run


def load_onnx(path: Path, spec: Mapping[str, Any]) -> Run:
    """Load a graph with the reference evaluator of onnx, which is written in Python."""
    from onnx.reference import ReferenceEvaluator

    model = ReferenceEvaluator(str(path))
    names = names_of(spec, "outputs")
    return lambda feeds: dict(zip(names, map(np.asarray, model.run(names, dict(feeds))), strict=True))


def names_of(spec: Mapping[str, Any], what: str) -> list[str]:
    """Return the names of the inputs or outputs of a graph in sae.json, in order."""
    return [tensor["name"] for tensor in spec[what]]


ENGINES: dict[str, Callable[[Path, Mapping[str, Any]], Run]] = {
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
    "tract": load_tract,
    "onnx": load_onnx,
}
"""The engines, by the name of the package that has them."""
