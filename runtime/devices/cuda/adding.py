"""A model of one node, `z = x + y`: the sum of two tensors that are on a GPU."""

from ...arrays.dtypes import DTYPES


def adding_model(dtype: str) -> bytes:
    """Return the model, opset 13 and IR 8, of vectors in a dtype; the tests make the same bytes with onnx."""
    vector = b"\x12\x0b\n\t\x08" + bytes([DTYPES[dtype].onnx]) + b"\x12\x05\n\x03\x12\x01n"
    node = b'\n\x0e\n\x01x\n\x01y\x12\x01z"\x03Add\x12\x03add'
    tensors = ((b"Z", b"x"), (b"Z", b"y"), (b"b", b"z"))  # two inputs and an output
    graph = node + b"".join(role + b"\x10\n\x01" + name + vector for role, name in tensors)
    return b"\x08\x08:" + bytes([len(graph)]) + graph + b"B\x04\n\x00\x10\r"
