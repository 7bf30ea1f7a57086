"""Moves the parameters out of a graph: it refers to the weights file that all graphs share.

Source: ONNX's external data, the `location`, `offset` and `length` of a tensor's bytes. A safetensors file holds the
same little-endian, row-major bytes, so it can be the location.
"""

from pathlib import Path

import onnx_ir as ir

from runtime.artifact.tensorfile import read_header
from runtime.errors import ExportError


def point_to_weights(model: ir.Model, weights: Path) -> ir.Model:
    """Replace the initializers that the safetensors file `weights` holds by references into it.

    Raises:
        ExportError: An initializer differs from the tensor of its name in the file, or is large and not in the file.
    """
    header = read_header(weights)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if name not in header:
            if tensor.nbytes > 1024:  # constants such as the target of a reshape are small
                raise ExportError(
                    f"The traced graph has a constant {name!r} of shape {tuple(tensor.shape)} that is not in the "
                    "state dict: it is computed from parameters, or a tensor of another kind. Store it as a parameter."
                )
            continue
        stored = header[name]
        if stored.shape != tuple(tensor.shape.numpy()) or stored.nbytes != tensor.nbytes:
            raise ExportError(f"{name} is {tuple(tensor.shape)} in the graph and {stored.shape} in {weights.name}.")
        value.const_value = ir.ExternalTensor(
            weights.name, stored.offset, stored.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name,
            base_dir=str(weights.parent),
        )  # fmt: skip
    return model
