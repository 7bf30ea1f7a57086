"""Reads values inside a host: it runs the host's graph with these values as outputs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from runtime.arrays.tensor import Array
from runtime.devices.loading import ort_value
from runtime.devices.start import ORT_ERRORS
from runtime.errors import GraftError

from .sessions import start_on_cpu

FLOATS = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
"""The dtypes of values that an SAE may read or replace, and their names."""

PROBE_BYTES = 256 << 20
"""Bytes of values that are held at a time. A host with more candidates is run several times."""


def candidates(host: ir.Model, width: int) -> list[ir.Value]:
    """Return the values of the main graph that may be `(..., width)` or `(..., heads, width / heads)`, in order.

    A value whose dtype or shape is not known is among them.
    """
    found = []
    for node in host.graph:
        for value in node.outputs:
            if value.name and (value.dtype is None or value.dtype in FLOATS) and may_have_width(value, width):
                found.append(value)
    return found


def may_have_width(value: ir.Value, width: int) -> bool:
    """Tell whether the declared shape of a value allows `(..., width)` or `(..., heads, width / heads)`."""
    if value.shape is None:
        return True
    sizes = [size if isinstance(size, int) else None for size in value.shape]
    if len(sizes) < 2:
        return False
    *_, before, last = sizes
    if last is None or last == width:
        return True
    return last > 0 and width % last == 0 and before in (None, width // last) and len(sizes) > 2


def read(
    host: ir.Model, folder: Path, values: Sequence[ir.Value], feeds: Mapping[str, Array], sizes: int
) -> Iterator[tuple[ir.Value, Array]]:
    """Yield the values that have `sizes` elements, as float32 arrays of their own shapes, in order.

    ONNX Runtime runs without optimisations, so that every value exists.

    Args:
        host: The host.
        folder: Folder that its external data is relative to.
        values: Values of its main graph.
        feeds: Its inputs.
        sizes: Number of elements of the values that are looked for.

    Raises:
        GraftError: ONNX Runtime cannot run the host.
    """
    if not values:
        return
    proto = ir.to_proto(host)
    del proto.graph.output[:]
    order = {name: index for index, node in enumerate(proto.graph.node) for name in node.output}
    nodes = list(proto.graph.node)
    at_once = max(1, PROBE_BYTES // (4 * max(sizes, 1)))
    for start in range(0, len(values), at_once):
        part = values[start : start + at_once]
        del proto.graph.node[:], proto.graph.output[:]
        proto.graph.node.extend(nodes[: max(order[str(value.name)] for value in part) + 1])
        for index, value in enumerate(part):  # a cast, so that numpy has the dtype and the types need not be known
            name = f"probe.{start + index}"
            proto.graph.node.append(onnx.helper.make_node("Cast", [str(value.name)], [name], to=onnx.TensorProto.FLOAT))
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        for value, array in zip(part, _run(proto, folder, feeds), strict=True):
            if array.size == sizes:
                yield value, array


def _run(proto: onnx.ModelProto, folder: Path, feeds: Mapping[str, Array]) -> list[Array]:
    try:
        session = start_on_cpu(proto.SerializeToString(), folder, optimize=False)
        taken = {tensor.name for tensor in session.get_inputs()}
        if missing := sorted(taken - set(feeds)):
            raise GraftError(f"The host takes {', '.join(missing)}, for which there are no values. Pass --reference "
                             "FILE with a value for each of its inputs.")  # fmt: skip
        inputs = {name: ort_value(feed) for name, feed in feeds.items() if name in taken}
        return [value.numpy() for value in session.run_with_ort_values(None, inputs)]
    except ORT_ERRORS as error:
        raise GraftError(f"ONNX Runtime cannot run the host on the CPU: {error}") from error
