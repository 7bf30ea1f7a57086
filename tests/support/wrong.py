"""Arguments that a function must refuse, and a check that it does so with an error of `runtime.errors`."""

import warnings

import numpy as np
import torch

from runtime import SAEError

RECURSIVE = []
RECURSIVE.append(RECURSIVE)


class Opaque:
    """An object that is nothing in particular."""


NOT_A_NUMBER = [None, "3", 2.5, np.float32(2), [3], object(), True, float("nan"), 1 + 2j, b"3", np.array([1, 2])]
"""Values that are not a whole number."""

NOT_A_PATH = [None, 3, 2.5, b"tiny", ["tiny"], object(), "a\0b"]


def arrays_of(width):
    """Return arrays, by what is wrong with them, that an SAE of this width in float32 cannot take."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the kinds of tensors that it is about to give up
        return _arrays_of(width)


def _arrays_of(width):
    ones, zeros = np.ones((3, width), np.float32), torch.zeros(3, width)
    return {
        "none": None,
        "text": "activations",
        "bytes": b"activations",
        "number": 3.0,
        "object": object(),
        "opaque": Opaque(),
        "dict": {"x": ones},
        "set": {1.0, 2.0},
        "generator": (row for row in ones),
        "ragged list": [[1.0] * width, [1.0]],
        "recursive list": RECURSIVE,
        "list of text": ["a"] * width,
        "huge integers": [10**400] * width,
        "list of None": [None] * width,
        "object array": ones.astype(object),
        "text array": ones.astype(str),
        "dates": np.zeros((3, width), "datetime64[s]"),
        "records": np.zeros(3, [(f"f{i}", "f4") for i in range(width)]),
        "complex": ones.astype(np.complex64),
        "bool": ones.astype(bool),
        "float64": ones.astype(np.float64),
        "longdouble": ones.astype(np.longdouble),
        "big-endian": ones.astype(">f4"),
        "0-d": np.float32(1),
        "0-d array": np.array(1, np.float32),
        "no width": np.zeros((3, 0), np.float32),
        "other width": np.zeros((3, width + 1), np.float32),
        "transposed": np.zeros((width, 3), np.float32) if width != 3 else np.zeros((3, 4), np.float32),
        "masked": np.ma.masked_array(ones, ones > 0),
        "masked without a mask": np.ma.masked_array(ones),
        "list of masked": [np.ma.masked_array(np.ones(width, np.float32), True)],
        "negative bit": torch._neg_view(torch.ones(3, width)),
        "negative bit, bfloat16": torch._neg_view(torch.ones(3, width, dtype=torch.bfloat16)),
        "imaginary part of a conjugate": torch.complex(zeros, zeros + 1).conj().imag,
        "conjugate": torch.complex(zeros, zeros).conj(),
        "list of negative": [torch._neg_view(torch.ones(width))],
        "requires grad": zeros.clone().requires_grad_(),
        "sparse": zeros.to_sparse(),
        "csr": zeros.to_sparse_csr(),
        "meta": zeros.to("meta"),
        "quantized": torch.quantize_per_tensor(zeros, 1.0, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([zeros[:1], zeros]),
        "jagged": torch.nested.nested_tensor([zeros[:1], zeros], layout=torch.jagged),
        "float8": zeros.to(torch.float8_e4m3fn),
        "not contiguous, bfloat16": torch.zeros(width, 3, dtype=torch.bfloat16).T,
        "more tokens than any memory": np.broadcast_to(np.ones(width, np.float32), (2**40, width)),
        "more tokens than any memory, to be converted": np.broadcast_to(np.ones(width, np.int8), (2**40, width)),
    }  # fmt: skip


def feeds_of(name):
    """Return feeds, by what is wrong with them, that a host with an input `(batch, sequence)` int64 cannot take."""
    ids = np.array([[1, 2, 3]])
    whole = {
        "none": None,
        "number": 3,
        "array": ids,
        "list of numbers": [1, 2, 3],
        "generator": (one for one in "ab"),
        "opaque": Opaque(),
        "empty": {},
        "unknown name": {"unknown": ids},
        "name that is not a text": {3: ids},
    }
    arrays = arrays_of(3) | {
        "floats": ids.astype(np.float32),
        "big-endian": ids.astype(">i8"),
        "one dimension": ids[0],
        "three dimensions": ids[None],
        "too large": ids.astype(np.uint64) + np.uint64(2**63),
        "timedelta": ids.astype("timedelta64[s]"),
    }
    del arrays["bool"]  # masks are
    return whole | {kind: {name: array} for kind, array in arrays.items()}


def accepted(call, wrong):
    """Return what a function did not refuse as it should: a line for each argument.

    Args:
        call: Function of one argument.
        wrong: The arguments, in a dict by what is wrong with them, or in a list.
    """
    lines = []
    for name, value in wrong.items() if isinstance(wrong, dict) else ((repr(value), value) for value in wrong):
        try:
            call(value)
        except SAEError as error:
            if not str(error).strip():
                lines.append(f"{name}: the error has no message")
        except Exception as error:
            lines.append(f"{name}: {type(error).__name__}: {str(error)[:150]}")
        else:
            lines.append(f"{name}: no error")
    return lines
