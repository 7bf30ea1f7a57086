"""What the manifest says about the engines that can load a graph."""

from dataclasses import dataclass

STANDARD = "ai.onnx"
"""Domain of the standard operators."""

CONTROL_FLOW = ("If", "Loop", "Scan")
"""Operators with graphs inside."""


@dataclass(frozen=True)
class Requirements:
    """What an engine must support in order to load a graph. The exporter reads it from the file.

    Attributes:
        ir_version: Version of the format of the file.
        opset_import: Versions of the sets of operators, by domain, such as {"ai.onnx": 20}.
        operators: Names of the operators, with those of the bodies of `If` and `Loop`, in alphabetical order. A name
            that is not standard begins with its domain: "com.microsoft.MatMulNBits".
        portable: Whether the documentation of TensorRT 10 and of ONNX Runtime 1.23 lists every operator with its types,
            without control flow and operators that are not standard.
        onnxruntime: First release of ONNX Runtime with this opset, IR version and these operators, such as "1.18"; None
            if it is not known for one of the operators.
    """

    ir_version: int
    opset_import: dict[str, int]
    operators: tuple[str, ...]
    portable: bool
    onnxruntime: str | None
