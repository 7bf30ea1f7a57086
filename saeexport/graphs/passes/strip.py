"""Removes traces of the exporting machine from a graph: stack traces, local paths and comments."""

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass


def strip_remarks(model: ir.Model) -> ir.Model:
    """Remove the metadata and doc strings of the model, its graph, its nodes and its values."""
    model = ClearMetadataAndDocStringPass()(model).model
    model.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph:
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
    model.producer_name, model.producer_version = "saeexport", None  # versions are in the manifest
    return model
