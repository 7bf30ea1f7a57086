import numpy as np
import onnx

from saeexport.grafting.host import load_host
from tests.support.tiny_hosts import TinyHost


def test_a_constant_has_the_shape_of_its_tensor_and_not_the_one_that_is_declared(tmp_path):
    """onnxruntime-genai declares its constants as scalars; as the input of a stage, such a shape cannot be loaded."""
    path = TinyHost().write(tmp_path / "host.onnx")
    model = onnx.load(path)
    tensor = onnx.numpy_helper.from_array(np.array([0, -1, 16]), "sizes")
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["sizes"], value=tensor))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("sizes", onnx.TensorProto.INT64, []))
    onnx.save(model, path)
    assert list(load_host(path).values()["sizes"].shape) == [3]
