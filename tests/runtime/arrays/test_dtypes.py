"""One table of dtypes, and one function that reads every spelling of them."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from runtime import InputError
from runtime.arrays.dtypes import DTYPES, dtype_name, is_float, rounded, widened
from runtime.artifact.tensorfile import read_header


@pytest.mark.parametrize("name", DTYPES)
def test_every_spelling_of_a_dtype_has_one_name(name):
    of_numpy = getattr(ml_dtypes if name == "bfloat16" else np, name)
    for dtype in (name, f"torch.{name}", getattr(torch, name), of_numpy, np.dtype(of_numpy)):
        assert dtype_name(dtype) == name


@pytest.mark.parametrize("dtype", ["int4", "torch.half", "f4", "", None, 16, np.complex64, torch.complex64, dict, list])
def test_anything_else_is_refused(dtype):
    with pytest.raises(InputError, match=r"dtype is .*; it must be one of float32, float16, bfloat16.*torch.dtype"):
        dtype_name(dtype)


def test_the_table_has_the_numbers_of_onnx_and_the_names_of_safetensors(tmp_path):
    for name, dtype in DTYPES.items():
        assert onnx.helper.tensor_dtype_to_np_dtype(dtype.onnx) == dtype.numpy == np.dtype(name)
        assert onnx.helper.np_dtype_to_tensor_dtype(dtype.numpy) == dtype.onnx
        save_file({"x": torch.zeros(3, dtype=getattr(torch, name))}, tmp_path / name)
        assert read_header(tmp_path / name)["x"].dtype == dtype.safetensors
        session = ort.InferenceSession(identity(dtype.onnx), providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].type == f"tensor({dtype.onnx_name})"


def identity(dtype):
    x, y = (onnx.helper.make_tensor_value_info(name, dtype, ["n"]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
    opset = onnx.helper.make_opsetid("", 14)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


@given(st.floats(width=32, allow_nan=False))
def test_bfloat16_is_rounded_to_nearest_ties_to_even(value):
    x = np.array([value], np.float32)
    bits = x.view(np.uint32)
    expected = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    assert np.array_equal(rounded(x, "bfloat16").view(np.uint32), expected)
    assert np.array_equal(rounded(x.astype(np.float64), "bfloat16").view(np.uint32), expected)


def test_bfloat16_is_widened_exactly_and_other_dtypes_stay_as_they_are():
    every = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    wide = widened(every)
    assert wide.dtype == np.float32
    known = ~np.isnan(wide)
    assert np.array_equal(wide.view(np.uint32)[known] >> 16, every.view(np.uint16)[known])
    assert np.array_equal(wide[known].astype(ml_dtypes.bfloat16), every[known])
    for dtype in ("float32", "float16", "float64"):
        x = np.ones(3, dtype)
        assert widened(x) is x


def test_which_dtypes_are_floating_point():
    assert [name for name, dtype in DTYPES.items() if is_float(dtype.numpy)] == [
        "float32", "float16", "bfloat16", "float64"
    ]  # fmt: skip
