"""Tensors of the Open Inference Protocol."""

import numpy as np
import pytest

from runtime import InputError, read_artifact
from runtime.serving.protocol import DATATYPES, NUMBERS, array_of, dimensions
from tests.support.samples import TINY


@pytest.mark.parametrize("datatype", NUMBERS)
def test_each_datatype_gives_its_dtype(datatype):
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]], np.array([1, 2, 3, 4], NUMBERS[datatype])):
        array = array_of("x", datatype, [2, 2], data)
        assert array.dtype == NUMBERS[datatype]
        assert array.tolist() == [[1, 2], [3, 4]]
    assert array_of("x", datatype, [0, 2], []).shape == (0, 2)


def test_null_stands_for_nan():
    assert np.isnan(array_of("x", "FP32", [2], [None, 1.0])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("BYTES", [1], ["a"], "datatype BYTES; it must be one of FP16"),
        ("BF16", [1], [1.0], "datatype BF16"),
        ("FP32", [3], [1.0, 2.0], r"shape \[3\] and 2 numbers"),
        ("FP32", [-1, -2], [1.0, 2.0], r"shape \[-1, -2\] and 2 numbers"),
        ("FP32", [2], [[1.0], [2.0, 3.0]], "data of x are not numbers of FP32"),
        ("FP32", [1], ["a"], "data of x are not numbers of FP32"),
        ("FP32", [1], [{}], "data of x are not numbers of FP32"),
        ("FP32", [1], None, "data of x|shape"),
        ("FP32", [1], [10**400], "data of x are not numbers of FP32"),
        ("FP32", [2], ["1.5", "nan"], "data of x are not numbers of FP32"),
        ("FP32", [2], [None, "1.5"], "data of x are not numbers of FP32: some are text"),
        ("FP32", [2], [None, b"1.5"], "data of x are not numbers of FP32: some are text"),
        ("FP32", [2], [True, False], "data of x are not numbers of FP32: they are bool"),
        ("FP32", [1], [1e39], "data of x are not numbers of FP32: overflow"),
        ("FP16", [1], [70000.0], "data of x are not numbers of FP16: overflow"),
        ("FP32", [1] * 70, [1.0], "x has the shape .* and 1 numbers"),
        ("FP32", [1.0], [1.0], r"shape \[1.0\] and 1 numbers"),
        ("FP32", [0, 2**70], [], "and 0 numbers"),
        ("INT64", [1], [1.5], "data of x are not numbers of INT64"),
        ("INT64", [1], [None], "data of x are not numbers of INT64"),
        ("INT64", [1], [True], "data of x are not numbers of INT64"),
        ("INT64", [1], [2**70], "data of x are not numbers of INT64"),
        ("INT8", [2], [1, 128], "data of x are not numbers of INT8"),
        ("UINT8", [2], [1, -1], "data of x are not numbers of UINT8"),
    ],
)
def test_data_that_do_not_fit_are_refused(datatype, shape, data, message):
    with pytest.raises(InputError, match=message):
        array_of("x", datatype, shape, data) if data is not None else array_of("x", datatype, [2], data)


def test_tensors_of_an_artifact():
    graphs = read_artifact(TINY).manifest.graphs
    assert [dimensions(spec) for spec in graphs["features"].outputs] == [[-1, -1], [-1, -1], [-1]]
    assert [dimensions(spec) for spec in graphs["features"].inputs] == [[-1, 6], [1]]
    assert {spec.dtype for graph in graphs.values() for spec in (*graph.inputs, *graph.outputs)} <= set(DATATYPES)
