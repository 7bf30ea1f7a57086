"""Reads from the file of a graph what an engine must support in order to load it, for the manifest."""

from pathlib import Path

import onnx_ir as ir

from runtime.artifact.engines import STANDARD, Requirements
from runtime.errors import ExportError

from .portable import IR_VERSION, OPSET, violations

FIRST_ONNXRUNTIME = "1.18"
"""First release of ONNX Runtime that reads `OPSET` and `IR_VERSION`: 1.17 reads the opset, and IR versions up to 9.

Source: https://onnxruntime.ai/docs/reference/compatibility.html, "ONNX opset support". `make example-engines` runs
both releases.
"""

CONTRIBUTED = {"com.microsoft.MatMulNBits": "1.22"}
"""First release of ONNX Runtime that computes an operator of its own in the form in which the exporter writes it.

MatMulNBits is older, but up to 1.21 the CPU provider refuses weights of 8 bits.
"""


def requirements_of(path: Path) -> Requirements:
    """Return what an engine must support in order to load a graph. The weights are not read.

    Raises:
        ExportError: The graph has another opset or IR version than the exporter writes.
    """
    model = ir.load(path)
    opsets = {domain or STANDARD: version for domain, version in sorted(model.opset_imports.items())}
    if (model.ir_version, opsets.get(STANDARD)) != (IR_VERSION, OPSET):
        raise ExportError(
            f"{path.name} has opset {opsets.get(STANDARD)} and IR version {model.ir_version}; the exporter writes "
            f"opset {OPSET} and IR version {IR_VERSION}, which old engines read, too."
        )
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    operators = tuple(sorted({f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes}))
    return Requirements(IR_VERSION, opsets, operators, not violations(path), _first_onnxruntime(operators))


def _first_onnxruntime(operators: tuple[str, ...]) -> str | None:
    """Return the first release of ONNX Runtime that has the operators; None if it has not been found out."""
    releases = [CONTRIBUTED.get(name) if "." in name else FIRST_ONNXRUNTIME for name in operators]
    known = [release for release in releases if release is not None]
    if len(known) < len(releases):
        return None
    return max([FIRST_ONNXRUNTIME, *known], key=lambda release: [int(part) for part in release.split(".")])
